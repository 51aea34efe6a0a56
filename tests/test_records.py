"""What a save says of itself in its checkpoint is a hint to a restore; what the structure does not bear out is not believed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

same = cs.assert_trees_identical


class Old(cs.Schema):
    q: Float32[Array, "embed out"]
    k: Float32[Array, "embed out"]


class New(cs.Schema):
    qk: Float32[Array, "embed 2*out"]


class Turned(cs.Schema):
    q: Float32[Array, "out embed"]
    k: Float32[Array, "out embed"]


FUSED = cs.derive(Old, New, rules=[cs.fuse("qk", ["q", "k"])])
TURNED = cs.derive(Old, Turned)


def old(out: int = 4) -> dict[str, Any]:
    return {"q": jnp.ones((4, out)), "k": jnp.arange(4.0 * out).reshape(4, out)}


def empty(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def told(path: Path) -> Any:
    return ocp.metadata(path).custom_metadata


def changed(path: Path, **changes: Any) -> None:
    """Another record in a checkpoint."""
    file = path / "_CHECKPOINT_METADATA"
    whole = json.loads(file.read_text())
    whole["custom_metadata"]["ckpt_schema"].update(changes)
    file.write_text(json.dumps(whole))


def test_a_save_says_what_it_wrote_and_through_which_lens(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", FUSED.get(old()), FUSED, custom_metadata={"run": 7})
    record = told(tmp_path / "0")["ckpt_schema"]
    assert told(tmp_path / "0")["run"] == 7
    cs.orbax.save(tmp_path / "1", old(), cs.derive(Old, Old))
    assert told(tmp_path / "1")["ckpt_schema"] == {
        "layout": "Old",
        "fingerprint": record["fingerprint"],
    }
    lens = cs.from_json(json.dumps(record["lens"]), cs.Lens)
    same(lens.get(old()), FUSED.get(old()))
    with pytest.raises(cs.ConformanceError, match="this library's own"):
        cs.orbax.save(tmp_path / "2", old(), FUSED, custom_metadata={"ckpt_schema": 1})


def test_it_is_restored_without_the_lens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    view = FUSED.get(old())
    cs.orbax.save(tmp_path / "0", view, FUSED)
    with caplog.at_level(logging.INFO, logger="ckpt_schema"):
        same(cs.orbax.restore(tmp_path / "0", empty(view)), view)
    assert "through the lens that it was saved through, Old -> New" in caplog.text
    same(cs.orbax.restore(tmp_path / "0", empty(old())), old())


def test_it_tells_which_side_is_on_disk(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", old(), TURNED, side="source")
    found = cs.orbax.restore(tmp_path / "0", empty(old()), TURNED, target_side="view")
    same(found, TURNED.get(old()))
    same(cs.orbax.restore(tmp_path / "0", empty(old()), TURNED, target_side="source"), old())
    cs.orbax.save(tmp_path / "1", old(), ~TURNED, side="source")
    same(cs.orbax.restore(tmp_path / "1", empty(old()), TURNED, target_side="view"), old())
    changed(tmp_path / "0", fingerprint="sha256:0")
    with pytest.raises(cs.CheckpointMismatchError, match="disk_side"):
        cs.orbax.restore(tmp_path / "0", empty(old()), TURNED, target_side="view")


class Far(cs.Schema):
    embed: Float32[Array, "embed 2*out"]


def test_it_tells_which_version_is_on_disk(tmp_path: Path) -> None:
    last = cs.derive(New, Far, rules=[cs.rename("qk", "embed")])
    registry = cs.Registry([TURNED, FUSED, last])
    target = empty(registry.lens(Old, Far).get(old()))
    for name, lens in (("old", TURNED), ("turned", ~TURNED)):
        cs.orbax.save(tmp_path / name, old(), lens, side="source")
        found = cs.orbax.restore(tmp_path / name, target, registry)
        same(found, registry.lens(lens.source, Far).get(old()))
    ocp.save(tmp_path / "unsaid", old())
    with pytest.raises(cs.CheckpointMismatchError, match="of Old as well as of Turned"):
        cs.orbax.restore(tmp_path / "unsaid", target, registry)


@pytest.mark.parametrize(
    "record",
    [
        {"lens": None},
        {"lens": {"ckpt_schema": "layout"}},
        {"lens": "text"},
        {"fingerprint": 7},
        {"lens": []},
    ],
)
def test_what_cannot_be_read_is_passed_over(tmp_path: Path, record: Any) -> None:
    view = FUSED.get(old())
    cs.orbax.save(tmp_path / "0", view, FUSED)
    changed(tmp_path / "0", **record)
    same(cs.orbax.restore(tmp_path / "0", empty(old())), old())
    same(cs.orbax.restore(tmp_path / "0", empty(view), FUSED), view)
    with pytest.raises(cs.DerivationError):
        cs.orbax.restore(tmp_path / "0", empty(view))


def test_the_structure_has_the_last_word(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", FUSED.get(old()), FUSED)
    cs.orbax.save(tmp_path / "1", {"a": {"w": jnp.ones(3)}})
    lens = told(tmp_path / "0")["ckpt_schema"]
    changed(tmp_path / "1", **lens)  # a record of something else
    target = {"b": {"w": jnp.zeros(3)}}
    found = cs.orbax.restore(tmp_path / "1", target, rules=[cs.rename("a", "b")])
    assert found["b"]["w"].tolist() == [1, 1, 1]
    same(cs.orbax.restore(tmp_path / "1", {"a": {"w": jnp.zeros(3)}}), {"a": {"w": jnp.ones(3)}})


def test_what_is_converted_does_not_say_that_it_is_the_old_one(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "0", old(), TURNED, side="source", custom_metadata={"run": 7})
    cs.orbax.convert(tmp_path / "0", tmp_path / "1", TURNED)
    assert told(tmp_path / "1") == {"run": 7}

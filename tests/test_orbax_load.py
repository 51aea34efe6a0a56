"""Checkpoints read as they are: without a target, in part, on other devices than they were saved on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs


def tree() -> dict[str, Any]:
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    kernel = jnp.arange(32.0).reshape(8, 4)
    return {
        "params": {
            "a/b": {"kernel": jax.device_put(kernel, NamedSharding(mesh, PartitionSpec("x", "y")))},
            "layers": [{"w": jnp.full(2, float(n))} for n in range(3)],
        },
        "rng": jax.random.key(3, impl="rbg"),
        "step": 7,
        "empty": {},
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("load") / "7"
    cs.orbax.save(where, tree())
    return where


def test_everything_comes_to_the_memory_of_the_host(path: Path) -> None:
    found = cs.orbax.load(path)
    wanted = tree()
    np.testing.assert_array_equal(
        found["params"]["a/b"]["kernel"], wanted["params"]["a/b"]["kernel"]
    )
    assert found["params"]["layers"][2]["w"].tolist() == [2.0, 2.0]
    assert found["step"] == 7 and found["rng"].dtype == wanted["rng"].dtype
    for leaf in jax.tree.leaves(found):
        if isinstance(leaf, jax.Array):
            assert leaf.devices() == {jax.devices("cpu")[0]}


@pytest.mark.parametrize(
    ("only", "keys"),
    [
        ("step", {"step"}),
        ("**/kernel", {"params/'a/b'/kernel"}),
        ("params/'a/b'/*", {"params/'a/b'/kernel"}),
        ("params/layers/1/**", {"params/layers/1/w"}),
        (["st*", "**/layers/0/w"], {"step", "params/layers/0/w"}),
    ],
)
def test_a_part_is_read_by_glob(path: Path, only: Any, keys: set[str]) -> None:
    found = cs.orbax.load(path, only=only)
    flat = jax.tree_util.tree_flatten_with_path(found)[0]
    assert len(flat) == len(keys)
    if keys == {"params/layers/1/w"}:  # a member of a list keeps its place
        assert found == {"params": {"layers": [None, found["params"]["layers"][1], None]}}


def test_nothing_is_asked_of_orbax_but_what_was_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    load = ocp.load

    def spied(place: Any, abstract: Any, **named: Any) -> Any:
        asked.extend(x for x in jax.tree.leaves(abstract) if x is not ocp.PLACEHOLDER)
        return load(place, abstract, **named)

    monkeypatch.setattr(ocp, "load", spied)
    cs.orbax.load(path, only="**/kernel")
    assert [leaf.shape for leaf in asked] == [(8, 4)]


def test_arrays_go_where_they_are_told_to(path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("z",))
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(key: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec("z")) if key.endswith("kernel") else everywhere

    found = cs.orbax.load(path, sharding=place)
    assert found["params"]["a/b"]["kernel"].sharding.spec == PartitionSpec("z")
    assert found["params"]["layers"][0]["w"].sharding == everywhere
    alone = cs.orbax.load(path, only="**/kernel", sharding=everywhere)
    assert alone["params"]["a/b"]["kernel"].sharding == everywhere


def test_a_glob_that_matches_nothing_is_an_error_that_names_leaves(path: Path) -> None:
    with pytest.raises(cs.CheckpointMismatchError) as raised:
        cs.orbax.load(path, only=["**/bias", "step", "nothing"])
    assert [fault.path for fault in raised.value.mismatches] == ["**/bias", "nothing"]
    assert "params/'a/b'/kernel" in str(raised.value)


def test_what_is_loaded_can_be_adapted(tmp_path: Path) -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    cs.orbax.save(tmp_path / "0", {"params": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
    found = cs.orbax.load(tmp_path / "0")
    lens = cs.adapt(found, model)
    nnx.update(model, lens.get(found))
    assert model.kernel[...].tolist() == [[1.0] * 3] * 2


def test_no_leaf_of_64_bits_is_narrowed(tmp_path: Path) -> None:
    numbers = {"step": np.array(2**40 + 7), "loss": np.array(1 / 3)}
    ocp.save(tmp_path / "0", {**numbers, "w": np.arange(3) + 2**40, "b": np.zeros(3, "float32")})
    with pytest.raises(cs.CheckpointMismatchError, match="jax_enable_x64") as raised:
        cs.orbax.load(tmp_path / "0")
    assert [fault.path for fault in raised.value.mismatches] == ["w"]
    found = cs.orbax.load(tmp_path / "0", only=["step", "loss", "b"])
    assert (found["step"], found["loss"]) == (2**40 + 7, 1 / 3)


def test_a_number_is_of_its_own_type(path: Path) -> None:
    assert type(cs.orbax.load(path, only="step")["step"]) is int

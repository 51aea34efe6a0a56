"""Versions of a model over its life: a checkpoint of any of them loads into any other, by one lens."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as v0
import pytest
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema import cli
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._lens import registry as registries
from ckpt_schema._lens.cells import Cell, identity, taken_apart
from ckpt_schema._lens.lens import planned

same = cs.assert_trees_identical
TX = optax.adam(1e-3)


class Block1(cs.Schema):
    q: Float32[Array, "embed out"]
    k: Float32[Array, "embed out"]
    v: Float32[Array, "embed out"]


class Body1(cs.Schema):
    """A stack of layers, as Linen scans it."""

    layers: Block1 = cs.field(scan="depth", axis=0)
    embed: Float32[Array, "vocab embed"]


class Body2(cs.Schema):
    """The layers in a list."""

    layers: list[Block1] = cs.field(length="depth")
    embed: Float32[Array, "vocab embed"]


class Block3(cs.Schema):
    qkv: Float32[Array, "embed 3*out"]


class Body3(cs.Schema):
    """Projections in one."""

    layers: list[Block3] = cs.field(length="depth")
    embed: Float32[Array, "vocab embed"]


class Block4(cs.Schema):
    qkv: Float32[Array, "embed 3*out"] = cs.field(key="attention/qkv/kernel")


class Body4(cs.Schema):
    """Other names."""

    layers: list[Block4] = cs.field(length="depth")
    embed: Float32[Array, "vocab embed"] = cs.field(key="wte/embedding")


V1, V2, V3, V4 = (cs.linen.TrainState[body, TX] for body in (Body1, Body2, Body3, Body4))
V5 = cs.nnx.TrainState[Body4, TX]
VERSIONS = (V1, V2, V3, V4, V5)
FUSE = [cs.fuse("layers[]/qkv", ["layers[]/q", "layers[]/k", "layers[]/v"])]
LENSES = [
    cs.derive(V1, V2),
    cs.derive(V2, V3, rules=FUSE),
    cs.derive(V3, V4),
    cs.derive(V4, V5),
]
REGISTRY = cs.Registry(LENSES)


@functools.cache
def states() -> dict[str, Any]:
    """One state, in all five versions, each by the lenses up to it, one after the other."""
    rng = np.random.default_rng(0)
    layers = {name: jnp.asarray(rng.random((3, 4, 2), "float32")) for name in "qkv"}
    params = {"params": {"layers": layers, "embed": jnp.asarray(rng.random((5, 4), "float32"))}}
    found: list[Any] = [{"step": jnp.int32(7), "params": params, "opt_state": TX.init(params)}]
    for lens in LENSES:
        found.append(lens.get(found[-1]))
    return dict(zip(("V1", "V2", "V3", "V4", "V5"), found, strict=True))


def abstract(tree: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def test_a_checkpoint_of_each_version_loads_into_the_newest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    every = states()
    caplog.set_level(logging.INFO, "ckpt_schema")
    for name, state in every.items():
        ocp.save(tmp_path / name, state)
        same(cs.orbax.restore(tmp_path / name, abstract(every["V5"]), REGISTRY), every["V5"])
    told = " -> ".join(cs.layout(version).name for version in VERSIONS)
    assert told in caplog.text
    same(cs.orbax.restore(tmp_path / "V5", abstract(every["V2"]), REGISTRY), every["V2"])


def test_the_lens_of_a_chain_does_what_one_lens_does() -> None:
    every = states()
    chain = REGISTRY.lens(V1, V5)
    alone = cs.derive(V1, V5, rules=FUSE)
    same(chain.get(every["V1"]), every["V5"])
    same(chain.put(every["V5"]), every["V1"])
    plans = [planned(lens, every["V1"], None) for lens in (chain, alone)]
    assert len(plans[0].jobs) == len(plans[1].jobs)
    blocks = [sum(len(job.task.copies) for job in plan.jobs) for plan in plans]
    assert blocks[0] == blocks[1]
    assert REGISTRY.lens(V1, V5) is chain
    assert [each.view.name for each in REGISTRY.path(V5, V3)] == [
        cs.layout(V4).name,
        cs.layout(V3).name,
    ]


def test_versions_are_told_by_what_they_are() -> None:
    class Renamed(cs.Schema):
        layers: Block1 = cs.field(scan="depth", axis=0)
        embed: Float32[Array, "vocab embed"]

    assert REGISTRY.lens(cs.linen.TrainState[Renamed, TX], V2)
    assert len(REGISTRY.layouts) == 5
    assert str(REGISTRY).startswith("5 versions, 4 lenses\n")


# --- several ways  ---


class A(cs.Schema):
    w: Float32[Array, "n m"]
    u: Float32[Array, "n m"]


class B(cs.Schema):
    w: Float32[Array, "m n"]
    u: Float32[Array, "n m"]


class C(cs.Schema):
    w: Float32[Array, "m n"] = cs.field(key="w/kernel")
    u: Float32[Array, "n m"] = cs.field(key="u/kernel")


CROSSED = [cs.rename("w", "u"), cs.rename("u", "w")]


def test_ways_that_do_the_same_are_one() -> None:
    registry = cs.Registry([cs.derive(A, B), cs.derive(B, C), cs.derive(A, C)])
    assert len(registry.path(A, C)) == 1
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "u": jnp.ones((2, 3))}
    same(registry.lens(A, C).get(tree), cs.derive(A, C).get(tree))
    # The first goes by the second version to a stack of parts, the other straight there.
    stacked = cs.Registry([*LENSES[:2], cs.derive(V1, V3, rules=FUSE)])
    assert stacked.lens(V1, V3)


class Other(A):
    x: Float32[Array, ""]


class Far(cs.Schema):
    z: Float32[Array, " k"]


def test_cells_that_are_worded_otherwise_are_compared_element_by_element() -> None:
    cell = identity(0, (Size.of(3), Size.of("n")))
    cells = [Cell(0, 0, each) for each in taken_apart(cell.geometry)]
    assert len(cells) == 3
    assert registries._equal([cell], cells)
    assert not registries._equal([cell], cells[1:])


def test_ways_that_differ_are_an_error() -> None:
    there, back = (
        cs.derive(A, Other, rules=[cs.private("x", 0.0)]),
        cs.derive(Other, A, rules=[*CROSSED, cs.private("x", 0.0)]),
    )
    with pytest.raises(cs.DerivationError) as caught:
        cs.Registry([there, ~back]).lens(A, Other)
    text = str(caught.value)
    assert "two ways lead from A to Other" in text
    assert "u  expected made of u, by A -> Other, found made of w, by A -> Other" in text
    ones = cs.derive(A, Other, rules=[cs.private("x", 1.0)])
    with pytest.raises(cs.DerivationError, match=r"private, default 0.0, by A -> Other"):
        cs.Registry([there, ones]).lens(A, Other)


def test_no_way_and_no_version_are_errors() -> None:
    registry = cs.Registry([cs.derive(A, B), cs.derive(Far, Far)])
    with pytest.raises(cs.DerivationError, match="add a lens from one of A, B to Far"):
        registry.lens(A, Far)
    with pytest.raises(cs.DerivationError, match="C is no version of the registry"):
        registry.lens(A, C)
    with pytest.raises(cs.SchemaError, match="a registry is made of lenses"):
        cs.Registry([])


# --- what is of no version, or of several  ---


def test_what_is_of_no_version_is_named_with_the_nearest(tmp_path: Path) -> None:
    state = states()["V1"]
    ocp.save(tmp_path / "0", {**state, "more": jnp.ones(2)})
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        cs.orbax.restore(tmp_path / "0", state, REGISTRY)
    assert "is of no version of the registry" in str(caught.value)
    assert [fault.path for fault in caught.value.mismatches] == ["more"]
    ocp.save(tmp_path / "1", state)
    with pytest.raises(cs.ConformanceError, match="the target is of no version") as other:
        cs.orbax.restore(tmp_path / "1", {**state, "step": jnp.ones(3)}, REGISTRY)
    assert "the versions are" in str(other.value)


def test_what_is_of_two_versions_is_an_error(tmp_path: Path) -> None:
    registry = cs.Registry([cs.derive(A, B), cs.derive(B, C)])
    square = {"w": jnp.arange(4.0).reshape(2, 2), "u": jnp.ones((2, 2))}
    ocp.save(tmp_path / "0", square)
    target = {name: {"kernel": jnp.zeros((2, 2))} for name in "wu"}
    with pytest.raises(cs.CheckpointMismatchError, match="is of A as well as of B"):
        cs.orbax.restore(tmp_path / "0", target, registry)
    same(
        cs.orbax.restore(tmp_path / "0", target, registry.lens(A, C)),
        cs.derive(A, C).get(square),
    )


def test_the_item_that_is_of_a_version_is_found(tmp_path: Path) -> None:
    every = states()
    cs.orbax.save(
        tmp_path / "0",
        every["V1"],
        REGISTRY.lens(V1, V1),
        item="items",
        also={"x": {"y": jnp.ones(2)}},
    )
    same(cs.orbax.restore(tmp_path / "0", abstract(every["V3"]), REGISTRY), every["V3"])


def test_what_takes_one_lens_says_how_a_registry_has_it(tmp_path: Path) -> None:
    state = states()["V3"]
    ocp.save(tmp_path / "0", state)
    calls: list[Callable[[Any], Any]] = [
        lambda registry: cs.orbax.items_of(state, registry),
        lambda registry: cs.orbax.abstract_items(state, registry),
        lambda registry: cs.orbax.save(tmp_path / "1", state, registry),
    ]
    for call in calls:
        with pytest.raises(
            cs.ConformanceError, match=r"(?s)registry\.lens\(V1, V3\).*lens_between"
        ):
            call(REGISTRY)
    assert not (tmp_path / "1").exists()


# --- a run whose steps are of several versions  ---


def saved_run(root: Path) -> dict[str, Any]:
    """A run that went on while its model changed: the version of each step by its name."""
    ages = {"1": "V1", "2": "V2", "3": "V2", "20": "V5"}
    every = states()
    for step, name in ages.items():
        ocp.save(root / step, every[name])
    return ages


def test_each_step_of_a_run_goes_its_own_way(tmp_path: Path) -> None:
    run, every = tmp_path / "run", states()
    ages = saved_run(run)
    planned = cs.orbax.convert(run, tmp_path / "new", REGISTRY, dry_run=True)
    done = cs.orbax.convert(run, tmp_path / "new", REGISTRY, verify=True)
    assert done == planned
    names = [cs.layout(version).name for version in VERSIONS]
    for step, name in ages.items():
        same(ocp.load(tmp_path / "new" / step, abstract(every["V5"])), every["V5"])
        assert done.steps[step].versions == tuple(names[int(name[1]) - 1 :])
    assert (done.steps["20"].edited, done.steps["20"].written) == (0, 0)
    again = cs.orbax.convert(run, tmp_path / "new", REGISTRY)
    assert (again.already, again.steps) == (4, {})


def test_the_version_that_is_made_may_be_an_older_one(tmp_path: Path) -> None:
    every = states()
    for name in ("V1", "V5"):
        ocp.save(tmp_path / "run" / name, every[name])
    cs.orbax.convert(tmp_path / "run", tmp_path / "new", REGISTRY, to=V3)
    for name in ("V1", "V5"):
        same(ocp.load(tmp_path / "new" / name, abstract(every["V3"])), every["V3"])
    tree = abstract(every["V1"])
    cs.orbax.convert(tmp_path / "run" / "V5", tmp_path / "alone", REGISTRY, to=tree)
    same(ocp.load(tmp_path / "alone", tree), every["V1"])


def test_what_a_registry_does_not_tell_is_an_error(tmp_path: Path) -> None:
    saved_run(tmp_path / "run")
    forked = cs.Registry([cs.derive(A, B), cs.derive(A, C)])
    new: dict[str, Any] = {"src": tmp_path / "run", "dst": tmp_path / "new"}

    def refused(kind: type[cs.CkptSchemaError], *given: Any, **named: Any) -> str:
        with pytest.raises(kind) as caught:
            cs.orbax.convert(new["src"], new["dst"], *given, **named)
        assert not new["dst"].exists()
        return str(caught.value)

    assert "say which version is to be made, to=" in refused(cs.ConformanceError, forked)
    circle = cs.Registry([cs.derive(V1, V2), cs.derive(V2, V1)])
    assert "in a circle" in refused(cs.ConformanceError, circle)
    told = refused(cs.ConformanceError, REGISTRY, disk_side="source")
    assert "disk_side" in told and "none beside a registry" in told
    told = refused(cs.ConformanceError, LENSES[0], to=V3)
    assert "none without a registry" in told
    assert "is no version" in refused(cs.DerivationError, REGISTRY, to=A)
    assert "of no version" in refused(cs.ConformanceError, REGISTRY, to={"w": jnp.ones(2)})
    assert "beside a lens" in refused(cs.ConformanceError, REGISTRY, rules=[cs.rename("a", "b")])
    ocp.save(tmp_path / "run" / "30", {"w": jnp.ones(2)})
    assert f"{tmp_path}/run/30 is of no version" in refused(cs.CheckpointMismatchError, REGISTRY)


def test_the_command_converts_a_run_of_several_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    every, here = states(), Path(__file__).stem
    saved_run(tmp_path / "run")
    given = ["convert", str(tmp_path / "run"), str(tmp_path / "new"), f"{here}:REGISTRY"]
    assert cli.main([*given, "--dry-run"]) == 0
    names = [cs.layout(version).name for version in VERSIONS]
    printed = capsys.readouterr().out
    assert f"  2, 3 is of {' -> '.join(names[1:])}\n" in printed
    assert f"  20 is of {names[4]}\n" in printed
    given[1:3] = [f"{path}/1" for path in given[1:3]]
    assert cli.main([*given, "--to", f"{here}:V4"]) == 0
    same(ocp.load(tmp_path / "new" / "1", abstract(every["V4"])), every["V4"])
    plan = ["plan", str(tmp_path / "run" / "1"), f"{here}:newest_state", f"{here}:REGISTRY"]
    assert cli.main(plan) == 0
    assert cli.main(["explain", f"{here}:REGISTRY"]) == 3
    assert "registry.lens(V1, V3)" in capsys.readouterr().err


def newest_state() -> Any:
    return states()["V5"]


# --- a manager reads a step of any age  ---


def by_checkpointer(root: Path, step: int, state: Any) -> Any:
    with ocp.training.Checkpointer(root) as checkpointer:
        lens = cs.orbax.lens_between(root / str(step), state, REGISTRY)
        items = cs.orbax.abstract_items(state, lens)
        found = checkpointer.load_checkpointables(step, items)
        return cs.orbax.state_of(found, state, lens)


def by_manager(root: Path, step: int, state: Any) -> Any:
    with v0.CheckpointManager(root) as manager:
        lens = cs.orbax.lens_between(manager.directory / str(step), state, REGISTRY)
        items = cs.orbax.abstract_items(state, lens)
        args = {name: v0.args.StandardRestore(tree) for name, tree in items.items()}
        found = manager.restore(step, args=v0.args.Composite(**args))
        return cs.orbax.state_of(found, state, lens)


def without_target(root: Path, step: int, state: Any) -> Any:
    with ocp.training.Checkpointer(root) as checkpointer:
        found = checkpointer.load_checkpointables(step)
        return cs.orbax.state_of(found, state, REGISTRY)


@pytest.mark.parametrize("manager", [by_checkpointer, by_manager, without_target])
def test_a_manager_reads_a_step_of_any_age(tmp_path: Path, manager: Callable[..., Any]) -> None:
    every = states()
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        for step, state in enumerate(every.values()):
            checkpointer.save_checkpointables(step, {"state": state})
    for step in range(len(every)):
        same(manager(tmp_path, step, abstract(every["V5"])), every["V5"])
    same(manager(tmp_path, 4, abstract(every["V2"])), every["V2"])
    with pytest.raises(cs.ConformanceError, match="expected a Registry, found a Lens"):
        cs.orbax.lens_between(tmp_path / "1", V5, LENSES[0])

"""Layers in every form: their order written down by hand, and what is said of trees in which they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float32, UInt32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs


class Layer(cs.Schema):
    """A layer of two leaves; its count is stacked on an axis of its own."""

    w: Float32[Array, "a b"]
    count: UInt32[Array, ""] = cs.field(axis=0)


class Named(cs.Schema):
    """``layers_0``, ``layers_1``."""

    layers: list[Layer] = cs.field(key="layers_{i}", length="depth")


class Listed(cs.Schema):
    """A list."""

    layers: list[Layer] = cs.field(length="depth")


class Stacked(cs.Schema):
    """A stack."""

    layers: Layer = cs.field(scan="depth", axis=1)


def layer(number: int, dtype: str = "float32") -> dict[str, Any]:
    """A layer that is told by its values."""
    return {"w": jnp.full((2, 3), number, dtype), "count": jnp.uint32(number)}


def named(*numbers: int, key: str = "layers_{}") -> dict[str, Any]:
    """Layers under their names."""
    return {key.format(number): layer(number) for number in numbers}


def numbers(stack: Any) -> list[Any]:
    """Which layer is in each place of a stack on axis 0."""
    found: list[Any] = np.asarray(stack).tolist()
    return found


# --- Orders  ---


def test_ten_comes_after_nine() -> None:
    state = named(*range(12))
    view = cs.derive(Named, Stacked).get(state)
    assert numbers(view["layers"]["count"]) == [*range(12)]
    assert numbers(view["layers"]["w"][0, :, 0]) == [*range(12)]
    cs.assert_trees_identical(cs.derive(Named, Stacked).put(view), state)


@pytest.mark.parametrize(
    "key", ["block_{i+1}", "block_{i:02}", "blocks.{2*i}", "blocks/{i}", "blocks/'{i}'"]
)
def test_names_that_count_otherwise(key: str) -> None:
    class Other(cs.Schema):
        layers: list[Layer] = cs.field(key=key, length="depth")

    view = cs.derive(Named, Other).get(named(*range(11)))
    last = {"block_{i+1}": "block_11", "block_{i:02}": "block_10", "blocks.{2*i}": "blocks.20"}.get(
        key
    )
    found = view[last] if last else view["blocks"]["10" if "'" in key else 10]
    np.testing.assert_array_equal(found["w"], layer(10)["w"])
    cs.assert_trees_identical(cs.derive(Named, Other).put(view), named(*range(11)))


class DenseThenExperts(cs.Schema):
    """Layers as Llama 4 and DeepSeek name them: some with an MLP, then some with experts; their attention is alike."""

    dense_layers: Layer = cs.field(scan="dense", axis=0)
    moe_layers: Layer = cs.field(scan="moe", axis=0)
    layers = cs.series("dense_layers[]", "moe_layers[]")


class All(cs.Schema):
    """The same in one row."""

    layers: list[Layer] = cs.field(key="layers_{i}", length="dense+moe")


def test_dense_layers_come_before_those_of_experts() -> None:
    lens = cs.derive(All, DenseThenExperts, dims={"dense": 3})
    view = lens.get(named(*range(11)))
    assert numbers(view["dense_layers"]["count"]) == [0, 1, 2]
    assert numbers(view["moe_layers"]["w"][:, 1, 1]) == [*range(3, 11)]
    cs.assert_trees_identical(lens.put(view), named(*range(11)))


def test_stages_of_a_pipeline_count_outside_of_their_layers() -> None:
    class Stage(cs.Schema):
        layers: Layer = cs.field(scan="depth", axis=0)

    class Pipeline(cs.Schema):
        stages: Stage = cs.field(scan="stages", axis=0)
        layers = cs.series("stages[]/layers[]")

    class Flat(cs.Schema):
        layers: list[Layer] = cs.field(length="stages*depth")

    lens = cs.derive(Flat, Pipeline, dims={"stages": 3})
    state = {"layers": {i: layer(i) for i in range(12)}}
    view = lens.get(state)
    assert numbers(view["stages"]["layers"]["count"]) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    cs.assert_trees_identical(lens.put(view), state)


def test_experts_are_stacked_within_layers_that_are_listed() -> None:
    class Expert(cs.Schema):
        wi: Float32[Array, "a b"]

    class Each(cs.Schema):
        experts: list[Expert] = cs.field(key="expert_{i}", length="experts")

    class Stack(cs.Schema):
        experts: Expert = cs.field(scan="experts", axis=0)

    class Apart(cs.Schema):
        layers: list[Each] = cs.field(key="layers_{i}", length="depth")

    class Together(cs.Schema):
        layers: Stack = cs.field(scan="depth", axis=1)

    def expert(i: int, j: int) -> dict[str, Any]:
        return {"wi": jnp.full((2, 3), 10 * i + j, "float32")}

    state = {f"layers_{i}": {f"expert_{j}": expert(i, j) for j in range(4)} for i in range(3)}
    lens = cs.derive(Apart, Together)
    found = lens.get(state)["layers"]["experts"]["wi"]
    # The scan over layers is outside of the stack of experts: its axis is put in last, at 1.
    assert found.shape == (4, 3, 2, 3)
    for i in range(3):
        for j in range(4):
            np.testing.assert_array_equal(found[j, i], np.full((2, 3), 10 * i + j))
    cs.assert_trees_identical(lens.put({"layers": {"experts": {"wi": found}}}), state)


# --- What does not fit  ---

Change = Callable[[dict[str, Any]], Any]


def _lost(state: dict[str, Any]) -> None:
    del state["layers_3"]


def _doubled(state: dict[str, Any]) -> None:
    state["layers_03"] = layer(3)


def _lacking(state: dict[str, Any]) -> None:
    del state["layers_1"]["count"]


def _more(state: dict[str, Any]) -> None:
    state["layers_1"]["bias"] = jnp.ones(3)


def _longer(state: dict[str, Any]) -> None:
    state["layers_1"]["w"] = jnp.ones((2, 4))


def _narrower(state: dict[str, Any]) -> None:
    state["layers_2"]["w"] = jnp.ones((2, 3), "bfloat16")


CHANGES: list[tuple[Change, list[tuple[str, str, str, str]]]] = [
    (
        _lost,
        [
            ("layers_3/count", "missing", "uint32[]", "nothing"),
            ("layers_3/w", "missing", "float32[a=2 b=3]", "nothing"),
        ],
    ),
    (
        _doubled,
        [
            ("layers_03/count", "extra", "nothing", "uint32[]"),
            ("layers_03/w", "extra", "nothing", "float32[2 3]"),
        ],
    ),
    (_lacking, [("layers_1/count", "missing", "uint32[]", "nothing")]),
    (_more, [("layers_1/bias", "extra", "nothing", "float32[3]")]),
    (_longer, [("layers_1/w", "shape", "float32[a=2 b=3]", "float32[2 4]")]),
    (_narrower, [("layers_2/w", "dtype", "float32[a=2 b=3]", "bfloat16[2 3]")]),
]


@pytest.mark.parametrize(
    ("change", "faults"), CHANGES, ids=[change.__name__.strip("_") for change, _ in CHANGES]
)
def test_a_layer_that_is_not_like_the_others(
    change: Change, faults: list[tuple[str, str, str, str]]
) -> None:
    state = named(*range(5))
    change(state)
    for view in (Stacked, Listed):
        with pytest.raises(cs.ConformanceError) as caught:
            cs.derive(Named, view).get(state)
        assert [(m.path, m.kind, m.expected, m.found) for m in caught.value.mismatches] == faults


def test_all_that_is_wrong_with_layers_is_said_at_once() -> None:
    state = named(*range(6))
    for change, _ in CHANGES:
        change(state)
    with pytest.raises(cs.ConformanceError) as caught:
        cs.derive(Named, Stacked).get(state)
    assert {(m.path, m.kind) for m in caught.value.mismatches} == {
        (p, k) for _, faults in CHANGES for p, k, *_ in faults
    }


def test_an_index_that_is_there_as_a_number_and_as_text() -> None:
    state = {"layers": {0: layer(0), 1: layer(1), "1": layer(1)}}
    with pytest.raises(
        cs.ConformanceError, match="expected keys of one kind, found int key 1 and str key '1'"
    ):
        cs.derive(Listed, Stacked).get(state)


def test_other_numbers_of_layers_on_both_sides(tmp_path: Path) -> None:
    stacked, listed = (cs.derive(Named, view) for view in (Stacked, Listed))
    with pytest.raises(cs.ConformanceError) as caught:
        stacked.get(named(*range(3)), onto=stacked.get(named(*range(4))))
    assert [(m.path, m.expected, m.found) for m in caught.value.mismatches] == [
        ("layers/count", "uint32[depth=3]", "uint32[4]"),
        ("layers/w", "float32[a=2 depth=3 b=3]", "float32[2 4 3]"),
    ]
    assert "the number of layers_{i}" in caught.value.mismatches[0].hint
    with pytest.raises(cs.ConformanceError, match="expected 3 repeats"):
        listed.get(named(*range(3)), onto=listed.get(named(*range(4))))
    with pytest.raises(cs.ConformanceError) as caught:
        stacked.bind(depth=5).get(named(*range(3)))
    assert "layers_4/w" in {m.path for m in caught.value.mismatches}
    ocp.save(tmp_path / "0", named(*range(3)))
    target = jax.eval_shape(lambda: stacked.get(named(*range(4))))
    with pytest.raises(cs.CheckpointMismatchError) as refused:
        cs.orbax.restore(tmp_path / "0", target, stacked)
    assert {m.path.partition("/")[0] for m in refused.value.mismatches} <= {"layers", "layers_3"}


@pytest.mark.parametrize("axis", [3, -4])
def test_a_stack_axis_that_a_leaf_does_not_have(axis: int) -> None:
    with pytest.raises(cs.SchemaError) as caught:

        class Deep(cs.Schema):
            layers: Layer = cs.field(scan="depth", axis=axis)

        cs.layout(Deep)
    (fault,) = caught.value.mismatches  # the count has its own axis, and no part in this
    assert (fault.expected, fault.found) == (
        "a stack axis between -3 and 2",
        f"axis {axis} for float32[a b]",
    )


class Fused(cs.Schema):
    """Three leaves in one."""

    qkv: Float32[Array, "embed q+k+v"]


class Apart(cs.Schema):
    """The three."""

    q: Float32[Array, "embed q"]
    k: Float32[Array, "embed k"]
    v: Float32[Array, "embed v"]


def test_parts_whose_sizes_do_not_add_up() -> None:
    lens = cs.derive(Fused, Apart, rules=[cs.fuse("qkv", ["q", "k", "v"])])
    whole = {"qkv": jnp.arange(16.0).reshape(2, 8)}
    with pytest.raises(
        cs.ConformanceError, match=r"expected float32\[embed=2 q\+k\+v=9\], found float32\[2 8\]"
    ):
        lens.bind(q=4, k=2, v=3).get(whole)
    apart = {"q": jnp.ones((2, 4)), "k": jnp.ones((2, 2)), "v": jnp.ones((2, 3))}
    with pytest.raises(cs.ConformanceError, match=r"expected q\+k\+v=9, found 8"):
        lens.get(whole, onto=apart)
    with pytest.raises(
        cs.ConformanceError,
        match=r"no size for k, q, v\n.*bind\(k=..., q=..., v=...\); .* one follows",
    ):
        lens.get(whole)
    np.testing.assert_array_equal(lens.bind(q=4, k=2).get(whole)["v"], whole["qkv"][:, 6:])


@pytest.mark.parametrize("view", [Listed, Named])
def test_a_stack_of_no_layers_is_told_before_anything_is_made_of_it(view: type[cs.Schema]) -> None:
    empty = {"layers": {"w": jnp.zeros((2, 0, 3)), "count": jnp.zeros(0, "uint32")}}
    with pytest.raises(cs.ConformanceError) as caught:
        cs.derive(Stacked, view).get(empty)
    assert [(fault.path, fault.found) for fault in caught.value.mismatches] == [
        ("layers/w", "depth=0"),
        ("layers/count", "depth=0"),
    ]

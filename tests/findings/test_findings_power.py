"""What the law suite did not find: faults that are the same both ways, or shared with the law, or in states never drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import faults
import jax
import jax.numpy as jnp
import numpy as np
import planted_families
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._trees import defaults as made_defaults
from ckpt_schema.testing import LAWS, Sample
from ckpt_schema.testing._meshes import other_memories
from ckpt_schema.testing._states import bound
from ckpt_schema.testing._suite import Options, check_law
from ckpt_schema.testing._trials import Trial

FEW = Options(max_examples=4, meshes=(), shrinking=0.0)


SIZES = {"vocab": 3, "padded": 5, "embed": 2, "heads": 2, "q": 2, "kv": 2, "width": 3}
LAYERS = {"first": 2, "blocks": 2, "rest": 1, "experts": 2, "embed": 2, "mlp": 3}
DECODER = ("depth", "embed", "head_dim", "heads", "mlp", "stats", "vocab")


def found_by(law: str, lens: cs.Lens, sizes: Mapping[str, int] = SIZES) -> str:
    """What a law says of a lens that breaks it, on one state of NumPy arrays of each side."""
    at = bound(lens, sizes)
    trial = Trial(at, (Sample(at.dims, 1), Sample(at.dims, 3)))
    with pytest.raises(cs.CkptSchemaError) as caught:
        LAWS[law].check(trial)
    return str(caught.value)


def rules() -> cs.Lens:
    """A lens that rules say everything of."""
    return planted_families.FAMILIES["rules"]()


# --- (a) the same both ways  ---


Change = Callable[[Sequence[Join], cs.Lens], tuple[Join, ...] | None]


def with_fault(kind: str) -> Change:
    """One of the faults in joins or in cells, by name."""
    if kind in faults.JOINS:
        return faults.JOINS[kind]
    return lambda joins, lens: faults.with_mistake(joins, faults.CELLS[kind])


def planted(lens: cs.Lens, change: Change) -> cs.Lens:
    """The lens with other joins, there and back."""
    joins = change(lens.joins, lens)
    assert joins is not None
    return dataclasses.replace(lens, joins=tuple(joins))


@pytest.mark.parametrize(
    ("kind", "leaf"),
    [("a flip removed", "kernel"), ("a factor doubled", "query"), ("padding in front", "table")],
)
def test_2_10_a_cells_that_are_wrong_both_ways_are_found(kind: str, leaf: str) -> None:
    assert f"\n  {leaf} " in found_by("Naming", planted(rules(), with_fault(kind)))


def test_2_10_a_parts_of_a_leaf_exchanged_both_ways_are_found() -> None:
    lens = rules()
    gates = [join for join in lens.joins if "gates" in lens.source.rows[join.sources[0]].path]
    (exchanged,) = faults.JOINS["two parts exchanged"](gates, lens) or ()
    joins = [exchanged if join in gates else join for join in lens.joins]
    said = found_by("Naming", dataclasses.replace(lens, joins=tuple(joins)))
    assert "attention/first" in said and "attention/third" in said


def test_2_10_a_words_of_a_raw_key_reversed_both_ways_are_found() -> None:
    lens = rules()
    (join,) = [join for join in lens.joins if lens.view.rows[join.views[0]].path == ("noise",)]
    words = len(lens.view.rows[join.views[0]].dims) - 1
    turned = faults.turned_back(lambda digit: digit.at[1] is not None and digit.at[1][0] == words)
    (cell,) = join.cells
    made = turned(cell.geometry)
    assert made is not None
    wrong = dataclasses.replace(join, cells=(dataclasses.replace(cell, geometry=made),))
    joins = tuple(wrong if each is join else each for each in lens.joins)
    assert "\n  noise " in found_by("Naming", dataclasses.replace(lens, joins=joins))


def test_2_10_a_the_wrong_one_of_two_copies_is_found() -> None:
    class Two(cs.Schema):
        table: Float32[Array, "vocab embed"]
        other: Float32[Array, "vocab embed"]

    class Three(Two):
        head: Float32[Array, "embed vocab"]

    right = cs.derive(Two, Three, rules=[cs.tie("head", "table")])
    check_law(right, LAWS["Naming"], FEW)
    wrong = cs.derive(Two, Three, rules=[cs.tie("head", "other")])
    mixed = dataclasses.replace(wrong, derivations=right.derivations)
    assert "\n  head " in found_by("Naming", mixed, {"vocab": 2, "embed": 3})


def test_2_10_a_layers_and_experts_of_a_series_exchanged_both_ways_are_found() -> None:
    lens = planted_families.FAMILIES["layers"]()
    check_law(lens, LAWS["Naming"], FEW)
    wrong = planted(lens, with_fault("layers in reverse"))
    assert "elements are not where their names say" in found_by("Naming", wrong, LAYERS)


def test_2_10_a_composed_lenses_are_told_by_both_derivations() -> None:
    lens = rules()
    check_law(lens >> ~lens, LAWS["Naming"], FEW)
    assert len((lens >> ~lens).derivations) == 2


# --- (b) a default is what is declared, whatever makes it  ---


@pytest.mark.parametrize("which", ["_words", "_number"])
def test_2_10_b_defaults_are_not_asked_of_what_makes_them(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = planted_families.FAMILIES["decoder"]()
    check_law(lens, LAWS["Defaults"], FEW)
    made = getattr(made_defaults, which)
    monkeypatch.setattr(made_defaults, which, lambda *args: made(*args) + np.uint8(1))
    said = found_by("Defaults", dataclasses.replace(lens), dict.fromkeys(DECODER, 2))
    assert "attention/rngs/" in said or "calibration" in said


# --- 2.7: what no test found  ---


class Narrow(cs.Schema):
    table: Float32[Array, "vocab embed"]


class Tall(cs.Schema):
    table: Float32[Array, "padded embed"]


class Wide(cs.Schema):
    table: Float32[Array, "padded wide"]


PADS = [cs.pad("table", "vocab", "padded"), cs.pad("table", "embed", "wide", fill=2)]


def test_2_7_every_check_of_the_values_of_a_leaf_is_made() -> None:
    lens = cs.derive(Narrow, Wide, rules=PADS)
    small = {"table": np.ones((2, 3), np.float32)}
    large = lens.bind(vocab=2, embed=3, padded=4, wide=5).get(small)
    large["table"][0, 4] = 7.0  # the padding of the second axis
    with pytest.raises(cs.ConformanceError, match=r"expected 2 in the padding of axis 1"):
        lens.bind(vocab=2, embed=3).put(large)
    both = cs.derive(Narrow, Tall, rules=[PADS[0], cs.scale("table", 2.0**100)])
    with pytest.raises(cs.ConformanceError, match="over- or underflows"):
        both.bind(vocab=2).put({"table": np.array([[1e-30, 1.0], [0.0, 1.0], [0, 0]], np.float32)})


def test_2_7_both_paddings_of_composed_lenses_are_there() -> None:
    first, second = cs.derive(Narrow, Tall, rules=PADS[:1]), cs.derive(Tall, Wide, rules=PADS[1:])
    sizes = {"vocab": 2, "padded": 3, "embed": 2, "wide": 4}
    composed = (first >> second).bind(**sizes)
    small = {"table": np.ones((2, 2), np.float32)}
    wanted = [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 2, 2]]
    np.testing.assert_array_equal(composed.get(small)["table"], wanted)
    check_law(first >> second, LAWS["Naming"], FEW)


def test_2_7_edited_leaves_stay_in_the_memory_that_they_were_in() -> None:
    class Turned(cs.Schema):
        table: Float32[Array, "embed vocab"]

    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    other = other_memories()
    if not other:
        pytest.skip("there is one memory")
    where = NamedSharding(mesh, PartitionSpec("x"), memory_kind=other[0])
    table = jax.device_put(jnp.ones((8, 2)), where)
    lens = cs.derive(Narrow, Turned)
    made = lens.get({"table": table})["table"]
    assert made.sharding.memory_kind == other[0]
    assert lens.put({"table": made})["table"].sharding.memory_kind == other[0]
    abstract = jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=where)
    assert lens.get({"table": abstract})["table"].sharding.memory_kind == other[0]


def test_2_7_what_is_stacked_padded_or_scaled_may_be_in_any_memory() -> None:
    class Layer(cs.Schema):
        table: Float32[Array, "embed vocab"]
        query: Float32[Array, " embed"]

    class Listed(cs.Schema):
        layers: list[Layer] = cs.field(length="depth")

    class Wider(cs.Schema):
        table: Float32[Array, "embed padded"]
        query: Float32[Array, " embed"]

    class Scanned(cs.Schema):
        layers: Wider = cs.field(scan="depth", axis=0)

    other = other_memories()
    if not other:
        pytest.skip("there is one memory")
    rules = [cs.pad("layers[]/table", "vocab", "padded"), cs.scale("layers[]/query", 0.5)]
    lens = cs.derive(Listed, Scanned, rules=rules, dims={"padded": 6})
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    layer = {"table": np.ones((8, 4), "float32"), "query": np.ones(8, "float32")}
    tree = {"layers": dict.fromkeys(range(3), layer)}
    wanted = lens.get(tree)
    for where in (
        NamedSharding(mesh, PartitionSpec("x"), memory_kind=other[0]),
        jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=other[0]),
    ):
        placed = jax.tree.map(lambda leaf, where=where: jax.device_put(leaf, where), tree)
        made = lens.get(placed)
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(made)} == {other[0]}
        cs.assert_trees_identical(jax.tree.map(np.asarray, made), wanted)
        cs.assert_trees_identical(lens.put(made, onto=placed), placed)

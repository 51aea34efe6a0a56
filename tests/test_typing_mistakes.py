"""Mistakes in declarations, which `derive` finds, and in cells, which covering does: without a tree, for all sizes."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pair_schemas
import planted_families
import pytest
from jaxtyping import Array, Float32, Int32
from support.covered import flaws_of

import ckpt_schema as cs
from ckpt_schema._layouts.sizes import ONE, ZERO, Size, UndecidedError
from ckpt_schema._lens.cells import Cell, Digit, Geometry, Place


def schema(**leaves: Any) -> type[cs.Schema]:
    """A schema of leaves, given by their dims, or by an annotation and a field."""
    given = {
        name: each if isinstance(each, tuple) else (each, cs.field())
        for name, each in leaves.items()
    }
    kinds = {
        name: Float32[Array, kind] if isinstance(kind, str) else kind
        for name, (kind, _) in given.items()
    }
    body = {"__annotations__": kinds, **{name: value for name, (_, value) in given.items()}}
    return types.new_class(
        "Model", (cs.Schema,), exec_body=lambda namespace: namespace.update(body)
    )


def listed(count: str, dims: str = "a b") -> type[cs.Schema]:
    """Layers in a list."""
    return schema(layers=(list[schema(w=dims)], cs.field(length=count)))  # type: ignore[misc]


def scanned(count: str, dims: str = "a b", axis: int = 0) -> type[cs.Schema]:
    """Layers in a stack."""
    return schema(layers=(schema(w=dims), cs.field(scan=count, axis=axis)))


def in_blocks(inside: int, dims: str = "a b") -> type[cs.Schema]:
    """Layers in blocks, with a remainder."""
    layer = schema(w="a b")
    block = schema(layers=(list[layer], cs.field(length=inside)))  # type: ignore[valid-type]

    class Blocks(cs.Schema):
        blocks: block = cs.field(scan="blocks", axis=0)  # type: ignore[valid-type]
        rest: list[schema(w=dims)] = cs.field(length="rest")  # type: ignore[misc]
        layers = cs.series("blocks[]/layers[]", "rest[]")

    return Blocks


def _derived(sides: tuple[Any, ...]) -> cs.Lens:
    """The lens between two layouts, with rules if there are any."""
    source, view, *rules = sides
    return cs.derive(source, view, rules=rules[0] if rules else ())


@dataclasses.dataclass(frozen=True)
class Mistake:
    """Two layouts that do not go together, and the same without the mistake.

    Attributes:
        wrong: The layouts, and rules.
        right: The same, as was meant.
        path: What the error is about.
        shown: What it shows of both sides.
    """

    wrong: tuple[Any, ...]
    right: tuple[Any, ...]
    path: str
    shown: tuple[str, str]


QKV = [cs.fuse("qkv", ["q", "k", "v"])]
APART = {"q": "embed heads*dim", "k": "embed kv*dim", "v": "embed kv*dim"}
FUSED = schema(qkv="embed heads*dim+2*kv*dim")
BLOCKED = "6*blocks+rest"

MISTAKES = {
    "axes of equal size under names that are not the other side's": Mistake(
        (schema(w="query key"), schema(w="key value")),
        (schema(w="query key"), schema(w="key query")),
        "w",
        ("float32[key value]", "float32[query key]"),
    ),
    "sizes that say nothing about which axis is which": Mistake(
        (schema(w="8 8 4"), schema(w="8 4 8")),
        (schema(w="a b 4"), schema(w="a 4 b")),
        "w",
        ("float32[8 4 8]", "float32[8 8 4]"),
    ),
    "a factor that is lost in a merge": Mistake(
        (schema(w="embed heads dim"), schema(w="embed heads")),
        (schema(w="embed heads dim"), schema(w="embed heads*dim")),
        "w",
        ("float32[embed heads]", "float32[embed heads dim]"),
    ),
    "a factor that is there twice": Mistake(
        (schema(w="embed heads dim"), schema(w="embed heads*heads*dim")),
        (schema(w="embed heads dim"), schema(w="embed dim*heads")),
        "w",
        ("float32[embed heads*heads*dim]", "float32[embed heads dim]"),
    ),
    "a dim that occurs twice, moved": Mistake(
        (schema(w="n n m"), schema(w="n m n")),
        (schema(w="n k m"), schema(w="n m k")),
        "w",
        ("float32[n m n]", "float32[n n m]"),
    ),
    "an axis squeezed that is longer than 1": Mistake(
        (schema(w="n 2 m"), schema(w="n m")),
        (schema(w="n 1 m"), schema(w="n m")),
        "w",
        ("float32[n m]", "float32[n 2 m]"),
    ),
    "another kind of number": Mistake(
        (schema(w="n m"), schema(w=(Int32[Array, "m n"], cs.field()))),
        (schema(w="n m"), schema(w="m n")),
        "w",
        ("int32[m n]", "float32[n m]"),
    ),
    "a stack and a list that are counted differently": Mistake(
        (scanned("depth"), listed("blocks")),
        (scanned("depth"), listed("depth")),
        "layers[]/w",
        ("repeats: blocks", "depth in the source"),
    ),
    "a stack that is a level short": Mistake(
        (scanned("stages*depth"), listed("depth")),
        (scanned("stages*depth"), listed("stages*depth")),
        "layers[]/w",
        ("depth in the view", "stages*depth in the source"),
    ),
    "a stack axis that is declared as one of the leaf's own": Mistake(
        (schema(layers=(schema(w="depth a b"), cs.field())), listed("depth")),
        (scanned("depth"), listed("depth")),
        "layers/w",
        ("a partner", "alone"),
    ),
    "blocks without their remainder": Mistake(
        (in_blocks(6), listed("6*blocks")),
        (in_blocks(6), listed(BLOCKED)),
        "layers[]/w",
        ("blocks*6+rest in the source", "6*blocks in the view"),
    ),
    "blocks of another size": Mistake(
        (in_blocks(5), listed(BLOCKED)),
        (in_blocks(6), listed(BLOCKED)),
        "layers[]/w",
        ("6*blocks+rest in the view", "blocks*5+rest in the source"),
    ),
    "a remainder of other layers than the blocks'": Mistake(
        (in_blocks(6, dims="a c"), listed(BLOCKED)),
        (in_blocks(6), listed(BLOCKED)),
        "layers[]/w",
        ("float32[a c]", "float32[a b]"),
    ),
    "parts that are not the terms of the sum": Mistake(
        (FUSED, schema(**{**APART, "k": "embed heads*dim"}), QKV),
        (FUSED, schema(**APART), QKV),
        "qkv",
        ("float32[embed heads*dim]", "kv"),
    ),
    "parts of which one has another axis": Mistake(
        (FUSED, schema(**{**APART, "v": "hidden kv*dim"}), QKV),
        (FUSED, schema(**{**APART, "v": "kv*dim embed"}), QKV),
        "qkv",
        ("hidden", "embed"),
    ),
    "parts of a whole that is no sum": Mistake(
        (schema(qkv="embed joined"), schema(**APART), QKV),
        (FUSED, schema(**APART), QKV),
        "qkv",
        ("one axis that 3 leaves share", "none in float32[embed joined]"),
    ),
    "parts in another order": Mistake(
        (FUSED, schema(**APART), [cs.fuse("qkv", ["k", "q", "v"])]),
        (FUSED, schema(**APART), QKV),
        "qkv",
        ("heads", "kv"),
    ),
    "padding of an axis that is not there": Mistake(
        (schema(w="vocab embed"), schema(w="padded embed"), [cs.pad("w", "tokens", "padded")]),
        (schema(w="vocab embed"), schema(w="padded embed"), [cs.pad("w", "vocab", "padded")]),
        "pad('w', 'tokens', 'padded', fill=0)",
        ("tokens", "none"),
    ),
    "a flip of an axis that is not there": Mistake(
        (schema(w="a b"), schema(w="a b"), [cs.flip("w", "c")]),
        (schema(w="a b"), schema(w="a b"), [cs.flip("w", "b")]),
        "flip('w', 'c')",
        ("an axis c", "none"),
    ),
    "integers that are scaled": Mistake(
        (
            schema(n=(Int32[Array, " k"], cs.field())),
            schema(n=(Int32[Array, " k"], cs.field())),
            [cs.scale("n", 0.5)],
        ),
        (schema(n=" k"), schema(n=" k"), [cs.scale("n", 0.5)]),
        "scale('n', 0.5)",
        ("", ""),
    ),
}
each_mistake = pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)


@each_mistake
def test_a_mistake_in_a_declaration_is_found_without_a_tree(mistake: Mistake) -> None:
    with pytest.raises(cs.DerivationError) as caught:
        _derived(mistake.wrong)
    message = str(caught.value)
    assert mistake.path in [m.path for m in caught.value.mismatches], message
    assert all(each in message for each in mistake.shown), message


@each_mistake
def test_what_was_meant_is_derived(mistake: Mistake) -> None:
    assert _derived(mistake.right).joins


# --- Cells  ---

PAIRS: dict[str, Callable[[], cs.Lens]] = {
    **planted_families.FAMILIES,
    **{name: lambda name=name: pair_schemas.pair(name).lens for name in pair_schemas.NAMES},
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_what_is_derived_writes_each_element_once(make: Callable[[], cs.Lens]) -> None:
    lens = make()
    assert [*flaws_of(lens)] == []
    assert [*flaws_of(~lens)] == []


Plant = Callable[[Geometry], Geometry]


def _axes_exchanged(side: int) -> Plant:
    """The first two axes of a side, each for the other: of equal size they may be, but not of one name."""
    other = {0: 1, 1: 0}
    return _moved(side, lambda place: (other.get(place[0], place[0]), place[1]))


def _moved(side: int, change: Callable[[Place], Place]) -> Plant:
    """Every digit of a side at another place."""

    def plant(geometry: Geometry) -> Geometry:
        digits: list[Digit] = []
        for digit in geometry.digits:
            at = list(digit.at)
            place = at[side]
            at[side] = place and change(place)
            digits.append(Digit(digit.size, (at[0], at[1])))
        return Geometry(geometry.starts, tuple(digits))

    return plant


def _as_in_the_source(geometry: Geometry) -> Geometry:
    """Every digit on the axis of the view that it is on in the source."""
    start = geometry.starts[0]
    digits = (Digit(digit.size, (digit.at[0], digit.at[0])) for digit in geometry.digits)
    return Geometry((start, start), tuple(digits))


def _later(side: int, steps: Size, axis: int = 0) -> Plant:
    """A side that starts so many elements, or layers, later."""

    def plant(geometry: Geometry) -> Geometry:
        starts = [[*start] for start in geometry.starts]
        starts[side][axis] = starts[side][axis] + steps
        return Geometry((tuple(starts[0]), tuple(starts[1])), geometry.digits)

    return plant


def _sized(size: str, change: Callable[[Size], Size]) -> Plant:
    """A digit with another number of steps."""

    def plant(geometry: Geometry) -> Geometry:
        digits = (
            Digit(change(digit.size), digit.at) if str(digit.size) == size else digit
            for digit in geometry.digits
        )
        return Geometry(geometry.starts, tuple(digits))

    return plant


def _without(size: str) -> Plant:
    """All but one digit."""
    return lambda geometry: Geometry(
        geometry.starts, tuple(digit for digit in geometry.digits if str(digit.size) != size)
    )


@dataclasses.dataclass(frozen=True)
class Planted:
    """A mistake in a cell.

    Attributes:
        layouts: Those that the lens is derived from, and rules.
        plant: What is wrong with the geometry.
        kinds: What is found.
        cell: Which cell of the lens it is in.
    """

    layouts: tuple[Any, ...]
    plant: Plant
    kinds: frozenset[str]
    cell: int = 0


def _planted(layouts: tuple[Any, ...], plant: Plant, *kinds: str, cell: int = 0) -> Planted:
    return Planted(layouts, plant, frozenset(kinds), cell)


SAME = schema(w="a b"), schema(w="a b")
MATRIX = schema(w="a b"), schema(w="b a")
HEADS = schema(w="embed heads*dim"), schema(w="heads embed dim")
STACKED = scanned("depth", axis=1), listed("depth", "b a")
STACKING = listed("depth", "b a"), scanned("depth", axis=1)
SPLIT = FUSED, schema(**APART), QKV
PADDED = schema(w="a b"), schema(w="c b"), [cs.pad("w", "a", "c")]
FLIPPED = schema(w="a b"), schema(w="a b"), [cs.flip("w", "a")]

PLANTS = {
    "a transposition dropped": _planted(MATRIX, _as_in_the_source, "outside"),
    "axes of a product swapped": _planted(HEADS, _axes_exchanged(1), "outside"),
    "an axis merged that is to stand alone": _planted(HEADS, _axes_exchanged(0), "outside"),
    "factors of a product interleaved": _planted(
        HEADS,
        _moved(0, lambda place: (place[0], Size.of("heads") if place[1] == ONE else place[1])),
        "outside",
    ),
    "unstacked on the wrong axis": _planted(STACKED, _axes_exchanged(0), "outside"),
    "not transposed after unstacking": _planted(
        STACKED, _moved(1, lambda place: (3 - place[0] if place[0] else 0, place[1])), "outside"
    ),
    "stacked on the wrong axis": _planted(STACKING, _axes_exchanged(1), "outside"),
    "the way back instead of the way there": _planted(MATRIX, lambda each: ~each, "outside"),
    "one layer too far": _planted(STACKED, _later(1, ONE), "outside"),
    "a layer too few": _planted(STACKED, _sized("depth", lambda size: size - 1), "gap"),
    "a layer too many": _planted(
        STACKING, _sized("depth", lambda size: size + 1), "outside", "gap"
    ),
    "nothing but the first layer": _planted(STACKING, _without("depth"), "gap"),
    "an axis that is not walked along": _planted(MATRIX, _without("a"), "gap"),
    "one element for all of an axis": _planted(
        SAME,
        lambda each: Geometry(
            each.starts, tuple(Digit(digit.size, (None, digit.at[1])) for digit in each.digits)
        ),
        "gap",
    ),
    "an element too late": _planted(SAME, _later(1, ONE), "outside"),
    "a flip that starts at its end": _planted(
        FLIPPED, lambda each: Geometry((each.starts[0], (ZERO, ZERO)), each.digits), "outside"
    ),
    "a part that is too long": _planted(
        SPLIT, _sized("dim*heads", lambda size: size + 1), "overlap", "gap"
    ),
    "a part from where another one is": _planted(
        SPLIT, _later(0, Size.of("dim") * Size.of("kv"), axis=1), "overlap", cell=1
    ),
    "a part too short": _planted(SPLIT, _sized("embed", lambda size: size - 1), "gap"),
    "parts on the wrong axis": _planted(SPLIT, _axes_exchanged(0), "outside"),
    "padding over what is padded": _planted(
        PADDED, _later(1, ZERO - Size.of("a")), "undecided", cell=1
    ),
    "padding beyond its end": _planted(PADDED, _later(1, ONE), "outside", cell=1),
    "padding that is too short": _planted(
        PADDED, _sized("b", lambda size: size - 1), "gap", cell=1
    ),
}


@pytest.mark.parametrize("planted", PLANTS.values(), ids=PLANTS)
def test_a_mistake_in_a_cell_is_found_for_all_sizes(planted: Planted) -> None:
    lens = _derived(planted.layouts)
    assert [*flaws_of(lens)] == []
    wrong = _with_cell(
        lens,
        planted.cell,
        lambda cell: dataclasses.replace(cell, geometry=planted.plant(cell.geometry)),
    )
    assert planted.kinds <= _found(wrong)


def _found(lens: cs.Lens) -> set[str]:
    """The kinds of flaws that a lens has, up to what no sizes decide."""
    kinds: set[str] = set()
    try:
        for flaw in flaws_of(lens):
            kinds.add(flaw.kind)
    except UndecidedError:
        kinds.add("undecided")
    return kinds


def _with_cell(lens: cs.Lens, number: int, change: Callable[[Cell], Cell]) -> cs.Lens:
    """The lens with another cell in the place of one."""
    count, joins = 0, list(lens.joins)
    for at, join in enumerate(joins):
        if count <= number < count + len(join.cells):
            cells = list(join.cells)
            cells[number - count] = change(cells[number - count])
            joins[at] = dataclasses.replace(join, cells=tuple(cells))
        count += len(join.cells)
    return dataclasses.replace(lens, joins=tuple(joins))


def test_a_cell_that_is_there_twice_or_not_at_all_is_found() -> None:
    lens = _derived(MATRIX)
    (join,) = lens.joins
    twice = dataclasses.replace(join, cells=join.cells * 2)
    assert _found(dataclasses.replace(lens, joins=(twice,))) == {"overlap", "gap"}
    padded = _derived(PADDED)
    (join,) = padded.joins
    bare = dataclasses.replace(join, cells=join.cells[:1])
    assert "gap" in _found(dataclasses.replace(padded, joins=(bare,)))


def test_parts_are_joined_on_the_axis_that_they_share() -> None:
    lens = cs.derive(schema(**APART), FUSED, rules=QKV)
    (join,) = lens.joins
    heads, kv = (Size.of(name) * Size.of("dim") for name in ("heads", "kv"))
    assert [cell.geometry.starts[1][1] for cell in join.cells] == [ZERO, heads, heads + kv]

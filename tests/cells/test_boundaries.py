"""Where it ends: what sizes leave open and which sizes decide it, what a middle cannot hold, and a real pair of layouts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ckpt_schema._layouts.sizes import ONE, Size, UndecidedError, slack
from ckpt_schema._lens.cells import (
    Cell,
    Constant,
    ContradictionError,
    Digit,
    Geometry,
    Place,
    composed,
    identity,
    tidy,
)
from ckpt_schema._lens.cells import through as cells_through
from ckpt_schema._lens.codecs import Codec, Exact, Rounded
from ckpt_schema._lens.covering import flaws
from ckpt_schema._lens.normal import merged as merged_geometries
from ckpt_schema._lens.normal import normal

Number = Size | int | str
At = tuple[int, Number] | None


def geometry(starts: Sequence[Sequence[Number]], *digits: tuple[Number, At, At]) -> Geometry:
    """A geometry of starts, and of digits with the axis and the stride on each side."""

    def place(at: At) -> Place | None:
        return at and (at[0], Size.of(at[1]))

    source, view = (tuple(map(Size.of, start)) for start in starts)
    made = (Digit(Size.of(size), (place(one), place(other))) for size, one, other in digits)
    return Geometry((source, view), tuple(made))


def cell(
    source: Any, view: Any, starts: Sequence[Sequence[Number]], *digits: Any, codec: Codec = ()
) -> Cell:
    return Cell(source, view, geometry(starts, *digits), codec)


def part(source: Any, view: Any, length: Number, here: Number = 0, there: Number = 0) -> Cell:
    """A part of one axis that is a part of another."""
    return cell(source, view, ([here], [there]), (length, (0, 1), (0, 1)))


def through(first: Sequence[Cell], second: Sequence[Cell], **sizes: Number) -> tuple[Cell, ...]:
    """The composite, with sizes put in before."""
    known = {name: Size.of(size) for name, size in sizes.items()}
    return normal(composed([c.where(known) for c in first], [c.where(known) for c in second]))


def printed(cells: Sequence[Cell]) -> list[str]:
    return [str(each) for each in cells]


N, P, R = Size.of("n"), slack("p"), slack("r")

# --- What sizes leave open, and what decides it  ---

Q_THEN_KV = [part("q", "m", "q"), part("k", "m", "kv", 0, "q")]
KV_THEN_Q = [part("m", "b", "kv"), part("m", "c", "q", "kv", 0)]


def merged(outer: Number, inner: Number, *, sides: tuple[str, str]) -> Cell:
    """Two axes that are one on the other side."""
    return cell(*sides, ([0, 0], [0]), (outer, (0, 1), (0, inner)), (inner, (1, 1), (0, 1)))


def blocks(count: Number, length: int, *, sides: tuple[str, str]) -> Cell:
    return merged(count, length, sides=sides)


TWO_K, THREE_K = Size.of("k") * 2, Size.of("k") * 3
HEADS_CUT = [
    cell("m", "x", ([0], [0]), (3, (0, 1), (0, 1))),
    cell("m", "y", ([3], [0]), (Size.of("h") * Size.of("d") - 3, (0, 1), (0, 1))),
]
OPEN: dict[str, tuple[Sequence[Cell], Sequence[Cell], dict[str, int], int]] = {
    "q|kv against kv|q": (Q_THEN_KV, KV_THEN_Q, {"q": 3, "kv": 2}, 3),
    "heads*d against kv*rep*d": (
        [merged("heads", "d", sides=("a", "m"))],
        [~merged(Size.of("kv") * Size.of("rep"), "d", sides=("c", "m"))],
        {"heads": 6, "kv": 2, "rep": 3},
        1,
    ),
    "x*y as (x, y) and as (y, x)": (
        [merged("x", "y", sides=("a", "m"))],
        [~merged("y", "x", sides=("c", "m"))],
        {"x": 2, "y": 3},
        4,
    ),
    "6*a against 4*b": (
        [blocks("a", 6, sides=("a", "m"))],
        [~blocks("b", 4, sides=("c", "m"))],
        {"a": 2, "b": 3},
        4,
    ),
    "a cut at 3 of (h, d)": (
        [merged("h", "d", sides=("a", "m"))],
        HEADS_CUT,
        {"h": 4, "d": 2},
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPEN)
def test_what_sizes_leave_open_is_an_error_and_numbers_decide_it(name: str) -> None:
    first, second, sizes, count = OPEN[name]
    with pytest.raises(UndecidedError) as caught:
        through(first, second)
    assert len(caught.value.points) == 2
    assert len(through(first, second, **sizes)) == count


def test_some_of_the_sizes_are_not_enough() -> None:
    with pytest.raises(UndecidedError):
        through(Q_THEN_KV, KV_THEN_Q, q=3)
    with pytest.raises(UndecidedError):
        through(*OPEN["a cut at 3 of (h, d)"][:2], d=2)


def test_a_relation_of_sizes_decides_as_numbers_do() -> None:
    first = [merged("heads", "d", sides=("a", "m"))]
    second = [~merged("rest", "d", sides=("c", "m"))]
    heads = Size.of("kv") * Size.of("rep")
    (found,) = through(first, second, heads=heads, rest=heads)
    assert str(found) == "a ~ c, [0 0] ~ [0 0] d(1:1 1:1) kv*rep(0:1 0:1)"


def test_blocks_of_other_lengths_meet_where_one_dim_tells_both() -> None:
    first = [blocks(TWO_K, 6, sides=("a", "m"))]
    second = [~blocks(THREE_K, 4, sides=("c", "m"))]
    assert printed(through(first, second)) == [
        "a ~ c, [0 0] ~ [0 0] 4(1:1 1:1) k(0:2 0:3)",
        "a ~ c, [0 4] ~ [1 0] 2(1:1 1:1) k(0:2 0:3)",
        "a ~ c, [1 0] ~ [1 2] 2(1:1 1:1) k(0:2 0:3)",
        "a ~ c, [1 2] ~ [2 0] 4(1:1 1:1) k(0:2 0:3)",
    ]


def test_short_digits_are_taken_step_by_step_where_nothing_else_decides() -> None:
    """Two copies of a part, each flipped, at the ends of an axis whose middle has the length of five."""
    hd, wide = Size.of("hd"), Size.of("wide")
    plain = geometry(([0, 0], [0, 0]), (R + hd * 7, (0, 1), (0, 1)), (wide, (1, 1), (1, 1)))
    ends = geometry(
        ([0, 0], [hd * 2 - 1, wide - 1]),
        (2, (0, hd * 5), (0, -hd)),
        (hd, (0, 1), (0, -1)),
        (wide, (1, 1), (1, -1)),
    )
    found = [path.geometry for path in cells_through(plain, ends)]
    assert len(found) == 2
    assert {str(each) for each in merged_geometries(tuple(found))} == {str(tidy(ends))}


# --- What a middle cannot hold  ---


def verify_covered(cells: Sequence[Cell], *sides: Mapping[Any, Sequence[Size]]) -> None:
    for side, rows in enumerate(sides):
        assert not [*flaws(cells, side, rows)]


def test_a_middle_that_rounds_stays_visible() -> None:
    row = geometry(([0], [0]), ("n", (0, 1), (0, 1)))
    down = [Cell("a", "m", row, (Rounded("float32", "float16"),))]
    (found,) = through(down, [Cell("m", "c", row, (Exact("float16", "float32"),))])
    assert found.codec == (Rounded("float32", "float16"), Exact("float16", "float32"))


def fill(value: float, row: str, start: Number, length: Number, *, cut_off: bool = False) -> Cell:
    made = cell(Constant(value, is_fill=True), row, ([], [start]), (length, None, (0, 1)))
    return ~made if cut_off else made


def default(
    value: float, row: str, start: Number, length: Number, *, cut_off: bool = False
) -> Cell:
    made = cell(Constant(value), row, ([], [start]), (length, None, (0, 1)))
    return ~made if cut_off else made


TWICE = (Exact("float32", "float32", 1),)


def test_padding_that_the_next_lens_takes_for_data_goes_through_its_codec() -> None:
    first = [part("a", "m", N), fill(0.0, "m", N, P)]
    second = [
        cell("m", "c", ([0], [0]), (N + P, (0, 1), (0, 1)), codec=TWICE),
        fill(7.0, "c", N + P, R),
    ]
    found = through(first, second)
    holes = {c.source.value: c.codec for c in found if isinstance(c.source, Constant)}
    assert holes == {0.0: TWICE, 7.0: ()}
    verify_covered(found, {"a": [N]}, {"c": [N + P + R]})


def test_what_one_lens_fills_in_the_next_one_may_only_cut_off() -> None:
    first = [part("a", "m", N), fill(0.0, "m", N, P)]
    for value in (0.0, 1.0):
        second = [part("m", "c", N), fill(value, "m", N, P, cut_off=True)]
        if value:
            with pytest.raises(ContradictionError):
                through(first, second)
        else:
            assert printed(through(first, second)) == ["a ~ c, [0] ~ [0] n(0:1 0:1)"]


def test_padding_that_is_private_in_the_next_lens_is_nobody_s() -> None:
    first = [part("a", "m", N), fill(0.0, "m", N, P)]
    second = [part("m", "c", N), default(1.0, "m", N, P, cut_off=True)]
    assert printed(through(first, second)) == ["a ~ c, [0] ~ [0] n(0:1 0:1)"]
    made = [part("a", "m", N), default(1.0, "m", N, P)]
    cut = [part("m", "c", N), fill(0.0, "m", N, P, cut_off=True)]
    assert printed(through(made, cut)) == ["a ~ c, [0] ~ [0] n(0:1 0:1)"]


@pytest.mark.parametrize("is_fill", [True, False])
def test_of_constants_only_padding_is_compared(is_fill: bool) -> None:
    made = cell(Constant(0.0, is_fill=is_fill), "m2", ([], [0]), (N, None, (0, 1)))
    onward = [part("m1", "c", N), tie(part("m2", "c", N))]
    found = through([part("a", "m1", N), made], onward)
    assert len(found) == 1 + is_fill
    back = through([~each for each in onward], [part("m1", "a", N), ~made])
    assert len(back) == 1 + is_fill


def test_which_of_several_copies_is_the_first_is_not_guessed() -> None:
    copies = cell("a", "m", ([0], [0, 0]), (P + 2, None, (0, 1)), (N, (0, 1), (1, 1)))
    rest = cell("m", "c", ([P, 0], [0, 0]), (2, (0, 1), (0, 1)), (N, (1, 1), (1, 1)))
    with pytest.raises(UndecidedError, match="the first of several copies"):
        through([copies], [rest])
    (found,) = through([copies], [cell("m", "c", ([1, 0], [0]), (N, (1, 1), (0, 1)))])
    assert found.compares == (True, False)
    (first,) = through([copies], [cell("m", "c", ([0, 0], [0]), (N, (1, 1), (0, 1)))])
    assert first.compares == (False, False)


def test_a_constant_s_codec_runs_from_it_to_the_row_whichever_side_it_is_on() -> None:
    hole = fill(3.0, "m", N, P)
    scaled = Cell(hole.source, hole.view, hole.geometry, TWICE)
    assert (~scaled).codec == TWICE
    assert ~~scaled == scaled
    row = part("a", "m", N)
    assert (~Cell("a", "m", row.geometry, TWICE)).codec == (TWICE[0].inverse,)


def test_blocks_that_are_apart_on_one_axis_need_not_be_decided_on_another() -> None:
    one = cell("a", "m", ([0, 0], [0, 0]), ("q", (1, 1), (1, 1)))
    other = cell("m", "c", ([1, 0], [0, 0]), ("kv", (1, 1), (1, 1)))
    assert through([one], [other]) == ()
    again = cell("m", "c", ([0, 0], [0, 0]), ("kv", (1, 1), (1, 1)))
    with pytest.raises(UndecidedError):
        through([one], [again])


def tie(copy: Cell) -> Cell:
    """The cell of a copy: from the middle, it is only compared."""
    return Cell(copy.source, copy.view, copy.geometry, copy.codec, (False, True))


def test_a_tie_in_the_middle_ties_both_ends() -> None:
    tied = [part("a1", "m", N), tie(part("a2", "m", N))]
    back = [~each for each in tied]
    found = through(tied, back)
    pairs = {(c.source, c.view, c.compares) for c in found}
    assert pairs == {
        ("a1", "a1", (False, False)),
        ("a1", "a2", (True, False)),
        ("a2", "a1", (False, True)),
        ("a2", "a2", (True, True)),
    }
    verify_covered(found, {"a1": [N], "a2": [N]}, {"a1": [N], "a2": [N]})


def test_a_default_is_for_what_has_no_partner() -> None:
    """Of two copies in the middle one goes on, and the other is private there: the first is what counts."""
    copies = [part("a", "m1", N), ~tie(part("m2", "a", N))]
    onward = [part("m1", "c", N), default(0.0, "m2", 0, N, cut_off=True)]
    assert printed(through(copies, onward)) == ["a ~ c, [0] ~ [0] n(0:1 0:1)"]


def test_a_part_of_a_row_without_a_partner_is_private_in_part() -> None:
    first = [part("qkv", name, N, N * at, 0) for at, name in enumerate("qkv")]
    second = [part(name, "qk", N, 0, N * at) for at, name in enumerate("qk")]
    second.append(default(0.0, "v", 0, N, cut_off=True))
    found = through(first, second)
    assert [str(c.geometry) for c in found if c.view == "qk"] == ["[0] ~ [0] 2*n(0:1 0:1)"]
    assert [str(c.geometry) for c in found if c.view != "qk"] == ["[2*n] ~ [] n(0:1 -)"]
    verify_covered(found, {"qkv": [N * 3]}, {"qk": [N * 2]})


@pytest.mark.parametrize(
    ("cells", "kinds"),
    [
        ([part("a", "c", N)], {"gap"}),
        ([part("a", "c", N), part("b", "c", N)], {"overlap"}),
        ([part("a", "c", N + N, 0, N)], {"outside"}),
        ([part("a", "c", N), part("b", "c", N, 0, N)], set()),
    ],
)
def test_a_row_is_written_once(cells: Sequence[Cell], kinds: set[str]) -> None:
    assert {flaw.kind for flaw in flaws(cells, 1, {"c": [N * 2]})} == kinds


# --- A real pair: layers in one list, and six stacks with a rest  ---

REST, DIM, EMBED = slack("rest"), Size.of("dim"), Size.of("embed")
DENSE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "query": (("embed",), ("heads", "dim")),
    "key": (("embed",), ("kv", "dim")),
    "out": (("heads", "dim"), ("embed",)),
    "up": (("embed",), ("mlp",)),
    "norm": ((), ("embed",)),
}
"""Inputs and outputs of each leaf of a layer."""


def product(names: Sequence[str]) -> Size:
    return functools.reduce(Size.__mul__, map(Size.of, names), ONE)


def listed_and_stacked(name: str) -> list[Cell]:
    """From ``[out, in]`` of each layer of a list to six stacks on the second axis, and a list of the rest."""
    inputs, outputs = DENSE[name]
    axes = [
        *((2, inputs, n) for n in range(len(inputs))),
        *((1, outputs, n) for n in range(len(outputs))),
    ]
    where = [(axis, product(of[n + 1 :])) for axis, of, n in axes]
    dims = [Size.of(of[n]) for _, of, n in axes]
    rank = 3 if inputs else 2
    cells: list[Cell] = []
    for at in range(6):
        digits = [(N, (0, 6), (1, 1))]
        for n, dim in enumerate(dims):
            digits.append((dim, where[n], (n + (n > 0), 1)))  # type: ignore[arg-type]
        starts = [at, *[0] * (rank - 1)], [0] * (len(dims) + 1)
        cells.append(cell(name, f"stack{at}/{name}", starts, *digits))
    digits = [(REST, (0, 1), (0, 1))]
    digits += [(dim, where[n], (n + 1, 1)) for n, dim in enumerate(dims)]  # type: ignore[misc]
    starts = [N * 6, *[0] * (rank - 1)], [0] * (len(dims) + 1)
    return [*cells, cell(name, f"rest/{name}", starts, *digits)]


@pytest.mark.parametrize("name", DENSE)
def test_from_a_list_to_stacks_and_back_is_the_identity(name: str) -> None:
    inputs, outputs = DENSE[name]
    cells = listed_and_stacked(name)
    back = [~each for each in cells]
    listed = [N * 6 + REST, product(outputs), *[product(inputs)] * bool(inputs)]
    assert through(cells, back) == normal([identity(name, listed)])
    stacks = {c.view for c in cells}
    found = through(back, cells)
    assert [(c.source, c.view) for c in found] == sorted((row, row) for row in stacks)
    assert all(c.geometry.starts[0] == c.geometry.starts[1] for c in found)
    assert all(digit.at[0] == digit.at[1] for c in found for digit in c.geometry.digits)
    verify_covered(cells, {name: listed})


def test_a_hundred_layers_are_one_cell() -> None:
    stacked = cell("a", "m", ([0, 0], [0, 0]), (100, (0, 1), (0, 1)), ("e", (1, 1), (1, 1)))
    assert len(through([stacked], [~stacked])) == 1


@pytest.mark.parametrize("count", [3, 12])
def test_layers_of_their_own_are_one_cell_after_there_and_back(count: int) -> None:
    cells = [cell("a", f"layer{n}", ([n, 0], [0]), ("e", (1, 1), (0, 1))) for n in range(count)]
    found = through(cells, [~each for each in cells])
    assert found == normal([identity("a", [Size.of(count), Size.of("e")])])

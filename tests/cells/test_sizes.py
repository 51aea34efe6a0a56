"""Sizes against plain numbers, and against the symbolic dims of ``jax.export``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.export import symbolic_shape
from support.profiles import examples

from ckpt_schema._layouts.sizes import ONE, ZERO, Size, UndecidedError, greater, lesser, slack

NAMES = ("a", "b", "c~")
LEAST = {"a": 1, "b": 1, "c~": 0}


@st.composite
def sizes(draw: st.DrawFn) -> Size:
    """A polynomial of up to four terms."""
    total = ZERO
    for _ in range(draw(st.integers(0, 4))):
        term = Size.of(draw(st.integers(-4, 6)))
        for name in draw(st.lists(st.sampled_from(NAMES), max_size=3)):
            term *= Size.of(name)
        total += term
    return total


def values(upto: int) -> Iterator[dict[str, int]]:
    """Sizes for the names, each from the least it may be."""
    ranges = (range(LEAST[name], upto) for name in NAMES)
    for numbers in itertools.product(*ranges):
        yield dict(zip(NAMES, numbers, strict=True))


@examples(10)
@given(a=sizes(), b=sizes(), n=st.integers(-5, 5))
def test_arithmetic_is_that_of_the_numbers(a: Size, b: Size, n: int) -> None:
    for at in values(4):
        x, y = a.at(at), b.at(at)
        found = [(a + b).at(at), (a - b).at(at), (a * b).at(at), (-a).at(at), (a * n + n).at(at)]
        assert found == [x + y, x - y, x * y, -x, x * n + n]
    assert (a == b) == all(a.at(at) == b.at(at) for at in values(6))
    assert bool(a - b) == (a != b)


@examples(10)
@given(a=sizes(), b=sizes(), c=sizes())
def test_one_size_has_one_spelling(a: Size, b: Size, c: Size) -> None:
    assert (a + b) * c == c * b + a * c
    assert (a - a) == ZERO
    assert a * ONE == a
    assert str(a + b) == str(b + a)


@examples(10)
@given(quotient=sizes(), by=sizes(), more=sizes())
def test_division_undoes_a_product(quotient: Size, by: Size, more: Size) -> None:
    if not by or by.terms[0][1] < 0:
        return
    assert (quotient * by).over(by) == quotient
    whole, rest = divmod(more, by)
    assert whole * by + rest == more
    assert (more.over(by) is None) == bool(rest)


@examples(10)
@given(a=sizes())
def test_what_is_called_nonnegative_never_is_negative(a: Size) -> None:
    if a.nonnegative:
        assert min(a.at(at) for at in values(7)) >= 0
    if a.number is not None:
        assert {a.at(at) for at in values(3)} == {a.number}


@pytest.mark.parametrize(
    ("text", "nonnegative"),
    [
        ("a - 1", True),
        ("a - 2", False),
        ("a*b - a", True),
        ("a*b - a - b + 1", True),
        ("a*a - 2*a + 1", True),
        ("a + b - 2", True),
        ("a + b - 3", False),
        ("a - b", False),
        ("c", True),
        ("c - 1", False),
        ("a*c - c", True),
        ("a*c - a", False),
    ],
)
def test_what_is_decided(text: str, nonnegative: bool) -> None:
    dims = {"a": Size.of("a"), "b": Size.of("b"), "c": slack("c")}
    assert eval(text, {}, dims).nonnegative is nonnegative


@examples(10)
@given(a=sizes(), b=sizes())
def test_the_lesser_and_the_greater_are_so_for_all_sizes(a: Size, b: Size) -> None:
    try:
        low, high = lesser(a, b), greater(a, b)
    except UndecidedError as error:
        assert {str(a), str(b)} == set(map(str, error.points))
        return
    for at in values(5):
        assert (low.at(at), high.at(at)) == (min(a.at(at), b.at(at)), max(a.at(at), b.at(at)))


@examples(10)
@given(a=sizes(), known=sizes())
def test_what_is_known_is_put_in(a: Size, known: Size) -> None:
    found = a.where({"a": known})
    for at in values(4):
        assert found.at(at) == a.at({**at, "a": known.at(at)})
    assert "a" not in a.where({"a": Size.of("b")}).names


@examples(10)
@given(a=sizes(), b=sizes())
def test_jax_finds_the_same_of_its_symbolic_dims(a: Size, b: Size) -> None:
    names = dict(zip(NAMES, symbolic_shape("a, b, c"), strict=True))

    def symbolic(size: Size) -> object:
        total: object = 0
        for product, count in size.terms:
            term: object = count
            for name in product:
                term = term * names[name]  # type: ignore[operator]
            total = total + term  # type: ignore[operator]
        return total

    assert symbolic(a) + symbolic(b) == symbolic(a + b)  # type: ignore[operator]
    assert symbolic(a) * symbolic(b) == symbolic(a * b)  # type: ignore[operator]
    assert (symbolic(a) == symbolic(b)) == (a == b)


def test_spelling() -> None:
    a, b = Size.of("a"), Size.of("b")
    assert str(ZERO) == "0"
    assert str(a * b * 2 - b - 3) == "2*a*b-b-3"
    assert str(-a) == "-a"

"""Codecs against NumPy's values: what merges says the same, and what loses something never merges."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from carrying import coded
from hypothesis import given
from hypothesis import strategies as st
from support.profiles import examples

from ckpt_schema._lens.codecs import (
    Codec,
    Exact,
    Plus,
    Rounded,
    Times,
    Word,
    holds,
    inverted,
    joined,
)

FLOATS = ("float32", "float16", "bfloat16", "float64", "float8_e5m2", "float8_e4m3fn")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "int64")
VALUES = (0.0, -0.0, 1.0, -1.5, 0.1, 3e-5, 240.0, 65504.0, 1e30, 2.0**-130)


@st.composite
def words(draw: st.DrawFn, source: str, *, rounds: bool = True) -> Word:
    """A word for elements of a dtype."""
    kinds = ["exact", "exact", "times", "plus", *(["rounded"] if rounds else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "times":
        return Times(draw(st.sampled_from([3.0, 0.7])), draw(st.booleans()))
    if kind == "plus":
        return Plus(draw(st.sampled_from([1.0, -1.0])))
    view = draw(st.sampled_from(FLOATS))
    if kind == "rounded":
        return Rounded(source, view)
    return Exact(source, view, draw(st.integers(-3, 3)))


@st.composite
def codecs(draw: st.DrawFn, source: str, *, rounds: bool = True) -> tuple[list[Word], str]:
    """Words one after the other, and the dtype that they end in."""
    found: list[Word] = []
    for _ in range(draw(st.integers(0, 4))):
        found.append(draw(words(source, rounds=rounds)))
        word = found[-1]
        source = word.view if isinstance(word, (Exact, Rounded)) else source
    return found, source


def outcome(value: Any, codec: Sequence[Word]) -> bytes | None:
    """The bits after a codec; None where it refuses the value."""
    try:
        with np.errstate(all="ignore"):
            return np.asarray(coded(value, tuple(codec))).tobytes()
    except AssertionError:
        return None


@examples(20)
@given(data=st.data(), source=st.sampled_from(FLOATS))
def test_merged_words_say_the_same_wherever_each_alone_is_defined(data: Any, source: str) -> None:
    found, _ = data.draw(codecs(source))
    merged: Codec = ()
    for word in found:
        merged = joined(merged, (word,))
    assert len(merged) <= len(found)
    for number in VALUES:
        value = (
            jnp.asarray(number, "float32").astype(source)
            if source != "float64"
            else np.float64(number)
        )
        wanted = outcome(np.asarray(value), found)
        assert wanted in (None, outcome(np.asarray(value), merged)), (number, found, merged)


@examples(8)
@given(data=st.data(), source=st.sampled_from(FLOATS))
def test_joining_is_associative_and_inverts(data: Any, source: str) -> None:
    # Where one word refuses what another rounds, the order says which of them stays: values say the same for both.
    rounds = data.draw(st.booleans())
    first, middle = data.draw(codecs(source, rounds=rounds))
    second, end = data.draw(codecs(middle, rounds=rounds))
    third, last = data.draw(codecs(end, rounds=rounds))
    a, b, c = (joined((), tuple(each)) for each in (first, second, third))
    agree(joined(joined(a, b), c), joined(a, joined(b, c)), source, alike=not rounds)
    assert inverted(inverted(a)) == a
    back = joined(inverted(c), inverted(b))
    agree(inverted(joined(b, c)), back, last, alike=not rounds)


def agree(one: Codec, other: Codec, source: str, *, alike: bool) -> None:
    """Two codecs are the same words, or say the same of each value that neither refuses."""
    assert one == other or not alike
    for number in VALUES if one != other else ():
        with np.errstate(all="ignore"):
            value = np.asarray(number).astype(jnp.dtype(source))
        said = {outcome(value, one), outcome(value, other)} - {None}
        assert len(said) <= 1, (number, one, other)


def test_what_does_nothing_is_no_word() -> None:
    same = Exact("float32", "float32"), Rounded("float32", "float32")
    assert joined((), same) == ()
    down, up = Rounded("float32", "float16"), Exact("float16", "float32")
    assert joined((down,), (up.inverse.inverse, *same, up.inverse)) == (down,)


@pytest.mark.parametrize("word", [Times(3.0), Plus(1.0), Rounded("float32", "bfloat16")], ids=str)
def test_what_loses_something_stays_beside_its_own_inverse(word: Word) -> None:
    assert joined((word,), (word.inverse,)) == (word, word.inverse)


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (Exact("float32", "float32", 3), Exact("float32", "float32", -3), ()),
        (Exact("bfloat16", "float32"), Rounded("float32", "bfloat16"), ()),
        (Rounded("bfloat16", "float32"), Rounded("float32", "float16"), (Rounded("bfloat16", "float16"),)),
        (Exact("int8", "int32"), Exact("int32", "uint8"), (Exact("int8", "uint8"),)),
    ],
)  # fmt: skip
def test_what_merges(one: Word, other: Word, both: Codec) -> None:
    assert joined((one,), (other,)) == both


def test_a_dtype_holds_another_if_every_value_comes_back() -> None:
    narrow = (
        "float16",
        "bfloat16",
        "float8_e5m2",
        "float8_e4m3fn",
        "float8_e4m3b11fnuz",
        "float4_e2m1fn",
    )
    for wide, other in itertools.product(("float32", *narrow), narrow):
        bits = 8 * jnp.dtype(other).itemsize
        every = np.arange(2**bits, dtype=f"uint{bits}").view(jnp.dtype(other))
        with np.errstate(all="ignore"):
            values = every.astype("float64")
            back = values.astype(jnp.dtype(wide)).astype("float64")
        numbers = ~np.isnan(values)
        signs = np.signbit(values)[numbers], np.signbit(back)[numbers]  # -0.0 is not 0.0
        is_held = np.array_equal(values, back, equal_nan=True) and np.array_equal(*signs)
        assert holds(wide, other) == is_held, (wide, other)


@pytest.mark.parametrize(("wide", "other"), [*itertools.product(INTEGERS, INTEGERS)])
def test_an_integer_dtype_holds_another_if_its_ends_fit(wide: str, other: str) -> None:
    ends = (np.iinfo(other).min, np.iinfo(other).max)
    assert holds(wide, other) == all(
        np.iinfo(wide).min <= int(end) <= np.iinfo(wide).max for end in ends
    )
    assert not holds(wide, "float32")


def test_every_dtype_holds_itself_and_none_of_another_kind() -> None:
    for dtype in ("bool", "complex64", "int4", "float32"):
        assert holds(dtype, dtype)
    assert not holds("complex64", "float32")
    assert not holds("float32", "bool")

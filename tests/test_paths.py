"""Index symbols: what they spell, what they read, and when two of them spell one key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckpt_schema as cs
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import Index


@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 200), st.booleans())
def test_a_symbol_reads_what_it_writes_and_nothing_else(
    first: int, step: int, width: int, index: int, text: bool
) -> None:
    symbol = Index("h" if text else "", "", text, first, step, width if text else 0)
    assert symbol.index(symbol.key(index)) == index
    for other in (first - 1, first + step * index + 1):
        key = Index(symbol.prefix, "", text, 0, 1, symbol.width).key(other) if other >= 0 else -1
        read = symbol.index(key)
        assert (
            read is None
            if other < first or (other - first) % step
            else read is not None and symbol.key(read) == key
        )
    assert symbol.index(f"h0{first + step * index:0{width}}") is None
    assert symbol.index("h²") is None


Drawn = tuple[int, int, int | None]
SYMBOLS = st.tuples(st.integers(0, 6), st.integers(1, 4), st.none() | st.integers(1, 5))


@given(SYMBOLS, SYMBOLS)
def test_symbols_coincide_where_they_spell_one_key(left: Drawn, right: Drawn) -> None:
    one, other = (Index("h", text=True, first=first, step=step) for first, step, _ in (left, right))
    spelled = [
        {s.key(i) for i in range(count or 40)} for s, (_, _, count) in ((one, left), (other, right))
    ]
    assert paths.may_coincide(one, other, (left[2], right[2])) == bool(spelled[0] & spelled[1])


@pytest.mark.parametrize(
    "key",
    [
        "layers_{i+}",
        "layers_{0*i}",
        "layers_{i-1}",
        "layers_{i:2}",
        "layers_{i}_{j}",
        "layers/{i:02}",
        "{",
    ],
)
def test_a_pattern_that_spells_no_key_is_an_error(key: str) -> None:
    with pytest.raises(cs.SchemaError) as caught:
        paths.parse_pattern(key)
    assert [(fault.path, fault.kind) for fault in caught.value.mismatches] == [(key, "declaration")]


@pytest.mark.parametrize(
    "key", ["layers/{i}", "layers_{i+1}", "'{i:02}'", "a/{3*i+2}/'0'/b{2*i:04}c"]
)
def test_a_pattern_is_written_as_it_is_read(key: str) -> None:
    assert paths.format_path(paths.parse_pattern(key)) == key

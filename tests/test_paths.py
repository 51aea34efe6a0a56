"""Index symbols: what they spell, what they read, and when two of them spell one key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckpt_schema as cs
from ckpt_schema._layouts import overlaps, paths
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
    assert overlaps.may_coincide(one, other, (left[2], right[2])) == bool(spelled[0] & spelled[1])


@pytest.mark.parametrize(
    "key",
    [
        "layers_{i+}",
        "layers_{0*i}",
        "layers_{i-1}",
        "layers_{i:2}",
        "layers_{i}{j}",
        "layers_{i}0_{j}",
        "'a",
        "a'",
        "'a'b",
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


KEYS = st.one_of(
    st.integers(-(10**18), 10**18),
    st.text(max_size=6),
    st.text("/'\"{}[]*.i0-", max_size=6),
    st.from_regex(r"-?[0-9]{1,3}", fullmatch=True),
)


@given(st.lists(KEYS, min_size=1, max_size=4))
def test_6_any_key_is_written_and_read_as_itself(keys: list[str | int]) -> None:
    """Of all of Unicode; a number and a string of its digits are two keys."""
    path = tuple(keys)
    written = paths.format_path(path)
    assert paths.parse_pattern(written) == path
    assert [type(key) for key in paths.parse_pattern(written)] == [type(key) for key in path]
    logical = tuple(map(paths.named, path))
    assert paths.parse_path("/".join(logical)) == logical
    assert [paths.unquoted(segment) for segment in logical] == [str(key) for key in path]


SEPARATORS = st.text("./_'{", min_size=1, max_size=2)
NUMBERED = st.builds(Index, first=st.integers(0, 3), step=st.integers(1, 3), width=st.just(0))


@given(st.lists(KEYS | NUMBERED, min_size=1, max_size=5), SEPARATORS, st.data())
def test_6_several_symbols_in_one_key(
    segments: list[str | int | Index], separator: str, data: st.DataObject
) -> None:
    """What is joined reads back, and spells the keys that its segments spell."""
    pattern = tuple(segments)
    one = paths.joined_key(pattern, separator)
    assert paths.parse_pattern(paths.format_path((one,))) == (one,)
    count = paths.symbols(pattern)
    indices = data.draw(st.tuples(*[st.integers(0, 30)] * count))
    key = separator.join(str(part) for part in paths.fill(pattern, indices))
    assert paths.fill((one,), indices) == (key,)
    if isinstance(one, Index):
        assert one.indices(key) == indices
        assert overlaps.coincide((one,), (key,), ([31] * count, []))
        assert not overlaps.coincide((one,), (key,), ([0] * count, []))
        assert overlaps.outlined((one,)) == overlaps.outlined((key,))

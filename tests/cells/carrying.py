"""Cells carried out element by element with NumPy, at given sizes: slow, and plain."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from spellings import Spelling

from ckpt_schema._lens.cells import Cell, Constant
from ckpt_schema._lens.codecs import Codec, Exact, Plus, Rounded, Times

Arrays = Mapping[Hashable, np.ndarray[Any, Any]]


def carried(
    cells: Iterable[Cell], sizes: Mapping[str, int], source: Arrays, view: Mapping[str, Spelling]
) -> dict[Hashable, Any]:
    """The arrays of the view, keys and axes alike, from those of the source.

    Every element is written once; what only compares is equal to the bit; padding is what it is to be.
    """
    made: dict[Hashable, Any] = {}
    written: dict[Hashable, Any] = {}
    for name, row in view.items():
        made[name] = np.zeros(row.array.shape, row.array.dtype)
        written[name] = np.zeros(row.array.shape, bool)
    for cell in sorted(cells, key=lambda cell: cell.compares[1]):
        values = _read(cell, sizes, source, view)
        if isinstance(cell.view, Constant):
            continue
        at = _elements(cell, 1, sizes)
        for index, value in zip(at, values, strict=True):
            if written[cell.view][index] or cell.compares[1]:
                assert written[cell.view][index], f"compared with nothing: {cell}"
                assert _bits(made[cell.view][index]) == _bits(value), f"not equal: {cell}"
            made[cell.view][index] = value
            written[cell.view][index] = True
    for name, done in written.items():
        assert done.all(), f"not all of {name} is written"
    return made


def writers(
    cells: Iterable[Cell], side: int, sizes: Mapping[str, int], rows: Mapping[str, Spelling]
) -> dict[Hashable, Any]:
    """How many cells write each element of a side; repeats count once."""
    found: dict[Hashable, Any] = {
        name: np.zeros(row.array.shape, int) for name, row in rows.items()
    }
    for cell in cells:
        row = (cell.source, cell.view)[side]
        if isinstance(row, Constant) or cell.compares[side]:
            continue
        for index in dict.fromkeys(_elements(cell, side, sizes)):
            found[row][index] += 1
    return found


def _elements(cell: Cell, side: int, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
    """Where a cell's elements are on a side, in the order of its digits."""
    start = [size.at(sizes) for size in cell.geometry.starts[side]]
    digits = cell.geometry.digits
    found: list[tuple[int, ...]] = []
    for steps in itertools.product(*(range(digit.size.at(sizes)) for digit in digits)):
        index = list(start)
        for digit, step in zip(digits, steps, strict=True):
            place = digit.at[side]
            if place is not None:
                index[place[0]] += place[1].at(sizes) * step
        assert all(i >= 0 for i in index), f"before the start: {cell}"
        found.append(tuple(index))
    return found


def _read(
    cell: Cell, sizes: Mapping[str, int], source: Arrays, view: Mapping[str, Spelling]
) -> list[Any]:
    """What a cell writes, element by element."""
    count = len(_elements(cell, 1, sizes))
    if isinstance(cell.source, Constant):
        value = np.array(
            cell.source.value, "float32" if not cell.codec else _first_dtype(cell.codec)
        )
        value = coded(value, cell.codec).astype(view[cell.view].array.dtype)  # type: ignore[index]
        return [value] * count
    read = [source[cell.source][index] for index in _elements(cell, 0, sizes)]
    if isinstance(cell.view, Constant):
        if cell.view.is_fill:
            for value in read:
                wanted = coded(
                    np.array(
                        cell.view.value, "float32" if not cell.codec else _first_dtype(cell.codec)
                    ),
                    cell.codec,
                )
                assert _bits(value) == _bits(wanted.astype(value.dtype)), f"padding: {cell}"
        return read
    return [coded(value, cell.codec) for value in read]


def _first_dtype(codec: Codec) -> str:
    word = codec[0]
    return word.source if isinstance(word, (Exact, Rounded)) else "float32"


def _bits(value: Any) -> bytes:
    return np.asarray(value).tobytes()


def coded(value: Any, codec: Codec) -> Any:
    """An element after a codec."""
    for word in codec:
        if isinstance(word, Times):
            value = value / word.factor if word.divides else value * word.factor
        elif isinstance(word, Plus):
            value = value + word.amount
        else:
            value = np.asarray(value)
            assert str(value.dtype) == word.source, (value.dtype, word)
            exponent = word.exponent if isinstance(word, Exact) else 0
            wide = np.ldexp(value.astype("float64"), exponent)
            found = wide.astype(word.view)
            if isinstance(word, Exact):
                assert found.astype("float64") == wide, f"{value} does not fit: {word}"
            value = found
    return value


def same(found: Arrays, wanted: Mapping[str, Spelling]) -> bool:
    """Whether arrays are those of a layout, to the bit."""

    def alike(one: Any, other: Any) -> bool:
        return (one.dtype, one.shape) == (
            other.dtype,
            other.shape,
        ) and one.tobytes() == other.tobytes()

    return found.keys() == wanted.keys() and all(
        alike(found[name], row.array) for name, row in wanted.items()
    )


def arrays(rows: Mapping[str, Spelling]) -> dict[Hashable, Any]:
    return {name: row.array for name, row in rows.items()}

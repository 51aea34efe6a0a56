"""The rows of layouts that were read off, with the axes that rules spell for them.

Such a row has sizes alone. A rule says which sizes are products, and what their factors are called;
then the row is as a class would have declared it, and all else treats it so: what an optimizer
keeps for the leaf, stacks of layers, and parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import AxisName, Binder, Dim, DimFactor, Dims, Sum
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.scope import Scope
from ckpt_schema._lens.rules import Fuse, Rename, Rule
from ckpt_schema._lens.spelled_axes import SpelledAxes
from ckpt_schema.errors import Mismatch

__all__ = ["as_read", "with_spelled_axes"]

Tables = tuple[Layout, Layout]


@dataclasses.dataclass(frozen=True)
class _Spelling:
    """What a rule says of the axes of one leaf."""

    rule: Rename | Fuse
    axes: SpelledAxes
    dims: Dims


def with_spelled_axes(tables: Tables, rules: Sequence[Rule], faults: list[Mismatch]) -> Tables:
    """Both layouts, with the axes of leaves as rules spell them.

    Args:
        tables: The source and the view.
        rules: All rules, each for one node.
        faults: Takes what is wrong: a rule that does not fit its leaf.
    """
    spoken = _spoken(rules)
    if not spoken:
        return tables
    met = _met(tables[0], 0, spoken), _met(tables[1], 1, spoken)
    # The sizes of names hold within one rule, and are learned from all of its leaves: a whole with
    # "heads*dim" tells neither, until a part with "heads" alone does.
    sizes: dict[int, dict[str, int]] = {}
    for rule in spoken:
        binder = Binder()
        for table, spelled in zip(tables, met, strict=True):
            for number, spelling in spelled:
                if spelling.rule is rule:
                    _see(binder, table.rows[number], spelling.dims)
        binder.settle()
        sizes[id(rule)] = binder.sizes
    respelled: list[Layout] = []
    wrong: dict[int, Mismatch] = {}
    for table, spelled in zip(tables, met, strict=True):
        rows = list(table.rows)
        for number, spelling in spelled:
            made = _respelled(rows[number], spelling, sizes[id(spelling.rule)])
            if isinstance(made, Mismatch):
                # One fault a rule: what is wrong with it shows at the first leaf.
                wrong.setdefault(id(spelling.rule), made)
            else:
                rows[number] = made
        respelled.append(dataclasses.replace(table, rows=tuple(rows)))
    faults += wrong.values()
    return respelled[0], respelled[1]


def as_read(tables: Tables, rules: Sequence[Rule]) -> Tables:
    """Both layouts, with the axes of leaves as they were before rules spelled them: sizes alone.

    So what was joined once is joined again by the same rules.
    """
    spoken = _spoken(rules)
    if not spoken:
        return tables
    plain: list[Layout] = []
    for side, table in enumerate(tables):
        rows = list(table.rows)
        for number, _ in _met(table, side, spoken):
            # Dims without a size are those of a class, which no rule has spelled.
            shape = dims_.sizes_of(rows[number].leaf.dims, {})
            if shape is not None:
                leaf = Leaf(tuple((size,) for size in shape), rows[number].leaf.dtype)
                rows[number] = dataclasses.replace(rows[number], leaf=leaf)
        plain.append(dataclasses.replace(table, rows=tuple(rows)))
    return plain[0], plain[1]


def _spoken(rules: Sequence[Rule]) -> list[Rename | Fuse]:
    """The rules that spell axes."""
    return [rule for rule in rules if isinstance(rule, (Rename, Fuse)) and rule.spelled]


def _met(table: Layout, side: int, spoken: Sequence[Rename | Fuse]) -> list[tuple[int, _Spelling]]:
    """The rows of one side whose axes rules spell, by number, and how."""
    entries: list[tuple[LogicalPath, _Spelling]] = []
    for rule in spoken:
        entries += _entries(rule, side)
    met: list[tuple[int, _Spelling]] = []
    for number, hits in Scope(entries).along(table.rows).items():
        row = table.rows[number]
        # What an optimizer keeps in a shape of its own has not the axes that are spelled.
        if row.reshaped:
            continue
        for hit in hits:
            # A rule for a node above spells the axes of no leaf below it.
            if hit.end == len(row.path):
                met.append((number, hit.rule))
                break
    return met


def _entries(rule: Rename | Fuse, side: int) -> Iterator[tuple[LogicalPath, _Spelling]]:
    """The leaves of one side whose axes a rule spells."""
    axes = rule.spelled
    assert axes is not None
    if isinstance(rule, Rename):
        path = rule.view if side else rule.source
        yield path, _Spelling(rule, axes, axes.of_part(0) if side else axes.first)
        return
    # The whole is on one side and its parts are on the other: no side has both.
    yield rule.whole, _Spelling(rule, axes, _parted(axes.first, len(rule.parts)))
    for number, part in enumerate(rule.parts):
        yield part, _Spelling(rule, axes, axes.of_part(number))


def _parted(dims: Dims, count: int) -> Dims:
    """The axes of a whole; the factor that counts its parts is a sum, lest a size that is as large be meant."""
    ones = Sum(((1,),) * count)
    parted: list[Dim] = []
    for dim in dims:
        parted.append(tuple(ones if factor == count else factor for factor in dim))
    return tuple(parted)


def _see(binder: Binder, row: Row, dims: Dims) -> None:
    """Learns the sizes of names from one leaf."""
    shape = dims_.sizes_of(row.leaf.dims, {})
    # What does not fit is told by `_respelled`, once all sizes are known.
    if shape is not None and len(shape) == len(dims):
        binder.see(dims, shape, "/".join(row.path))


def _respelled(row: Row, spelling: _Spelling, sizes: Mapping[str, int]) -> Row | Mismatch:
    """The row with other words for its axes, or why they do not fit."""
    dims = spelling.dims
    written = dims_.format_dims(dims)
    shape = dims_.sizes_of(row.leaf.dims, {})

    def fault(hint: str) -> Mismatch:
        expected = f"a leaf with axes {written}"
        return Mismatch("/".join(row.path), "rule", expected, str(row.stored), hint)

    if shape is None:
        return fault(f"a class declares its axes already: leave axes= out of {spelling.rule}")
    if len(shape) != len(dims):
        return fault(
            f"axes={str(spelling.axes)!r} spells {len(dims)} axes, and the leaf has {len(shape)}; "
            "an axis that stacks layers is not counted"
        )
    unknown = sorted(dims_.dim_names(dims) - sizes.keys())
    if unknown:
        names = " and ".join(unknown)
        return fault(f"no axis of either side tells the size of {names}: write a number for one")
    if dims_.sizes_of(dims, sizes) != shape:
        told = ", ".join(f"{name}={sizes[name]}" for name in sorted(dims_.dim_names(dims)))
        return fault(f"with {told}, as the other leaves of the rule have it, the sizes differ")
    numbers = tuple(_numbered(dim, sizes) for dim in dims)
    names = tuple(AxisName(tuple(map(_called, dim))) for dim in dims)
    leaf = Leaf(numbers, row.leaf.dtype, names)
    return dataclasses.replace(row, leaf=leaf)


def _called(factor: DimFactor) -> str:
    """What a factor is called; a number is a name too, lest another size that is as large be taken for it."""
    return f"[{factor}]" if isinstance(factor, int) and factor != 1 else str(factor)


def _numbered(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """An axis with the sizes of its names; a sum keeps its terms, for parts are told by them."""
    numbers: list[DimFactor] = []
    for factor in dim:
        if isinstance(factor, Sum):
            numbers.append(Sum(tuple(_numbered(term, sizes) for term in factor.terms)))
        elif isinstance(factor, str):
            numbers.append(sizes[factor])
        else:
            numbers.append(factor)
    return tuple(numbers)

"""Composition: the join of two joins. The layout between them is never built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from ckpt_schema import dims as dims_
from ckpt_schema import leaves, paths
from ckpt_schema.chains import with_mirrors
from ckpt_schema.errors import DerivationError, Mismatch
from ckpt_schema.leaves import Default, Init
from ckpt_schema.lens.axis_names import composed
from ckpt_schema.lens.joins import Join, Place
from ckpt_schema.lens.relate import relate
from ckpt_schema.lens.told import Told
from ckpt_schema.paths import Pattern
from ckpt_schema.table import Layout, Row
from ckpt_schema.text import shown

__all__ = ["Joined", "compose"]


class Joined(Protocol):
    """Two layouts, their joins, and sizes that are bound beforehand."""

    @property
    def source(self) -> Layout:
        """The left layout."""
        ...

    @property
    def view(self) -> Layout:
        """The right layout."""
        ...

    @property
    def joins(self) -> tuple[Join, ...]:
        """Which rows are one leaf."""
        ...

    @property
    def dims(self) -> Mapping[str, int]:
        """Sizes, in elements."""
        ...


def compose(first: Joined, second: Joined) -> tuple[Layout, Layout, tuple[Join, ...]]:
    """The join of two joins; a row the middle layout alone defaults carries that default to the far side.

    The edits between two rows are derived anew, which is what makes a stack on the way from list to list vanish.

    Raises:
        DerivationError: With every row in which the layouts in the middle differ, and all that do not compose.
    """
    faults = [*_differences(first.view, second.source), *_contradictions(first, second)]
    if faults:
        header = f"{first.view.name} and {second.source.name} are not one layout, so their lenses do not compose"
        raise DerivationError(header, faults)
    number = {row.key: n for n, row in enumerate(first.view.rows)}
    middle = {
        number[row.key]: n for n, row in enumerate(second.source.rows)
    }  # of the first's view: of the second's source
    onward: dict[int, list[Join]] = {}
    for join in second.joins:
        for place in join.sources:
            onward.setdefault(place.row, []).append(join)
    back = {middle[place.row] for join in first.joins for place in join.views}
    source, view = list(first.source.rows), list(second.view.rows)
    for before in first.joins:
        for place in before.views:
            if middle[place.row] not in onward:
                for at in {p.row for p in before.sources}:
                    source[at] = _left_over(
                        source[at], second.source.rows[middle[place.row]], first.source, faults
                    )
    # Where one end lacks an optional leaf, the layout between them fills it in before the other end can.
    for before in first.joins:
        for one, row in before.pairs:
            for other in {p.row for after in onward.get(middle[row], ()) for p in after.views}:
                if first.source.rows[one].optional:
                    view[other] = _defaulted(
                        view[other], first.view.rows[row].default, second.view, faults
                    )
                if second.view.rows[other].optional:
                    source[one] = _defaulted(
                        source[one], second.source.rows[middle[row]].default, first.source, faults
                    )
    joins: dict[
        tuple[tuple[Place, ...], tuple[Place, ...]], Join
    ] = {}  # two ways to one place meet where a tie is undone
    for made in _through(first, second, onward, middle):
        if isinstance(made, Mismatch):
            faults.append(made)
        else:
            joins.setdefault((made.sources, made.views), made)
    by_second = {m: n for n, m in middle.items()}
    for join in second.joins:
        for place in join.sources:
            if place.row not in back:
                for at in {p.row for p in join.views}:
                    view[at] = _left_over(
                        view[at], first.view.rows[by_second[place.row]], second.view, faults
                    )
    if faults:
        raise DerivationError(
            f"no lens from {first.source.name} to {second.view.name}",
            faults,
        )
    return (
        dataclasses.replace(first.source, rows=tuple(source)),
        dataclasses.replace(second.view, rows=tuple(view)),
        tuple(sorted(joins.values(), key=lambda join: join.views[0].row)),
    )


def _unlike_padding(row: Row, before: Told, after: Told) -> Mismatch | None:
    """The fault where a row in the middle is padded with one value, and cut where it holds another."""
    for _, made in before.ends:
        for cut, _ in after.ends:
            alike = (made.small, made.large) == (cut.small, cut.large)
            if alike and made != cut and made.large in row.leaf.dims:
                where, axis = paths.format_path(row.key), dims_.format_dim(made.large)
                expected = f"one fill in the padding of {axis}"
                found = f"{shown(made.value)} and {shown(cut.value)}"
                hint = "no tree is padded with both: give both lenses the same fill="
                return Mismatch(where, "rule", expected, found, hint)
    return None


def _through(
    first: Joined, second: Joined, onward: Mapping[int, Sequence[Join]], middle: Mapping[int, int]
) -> Iterator[Join | Mismatch]:
    """The joins from end to end, and what is wrong where there is none."""
    # Of joins of parts, the first lens's and the second's: the outer row for each row in the middle.
    waiting: tuple[dict[Join, dict[Place, Place]], dict[Join, dict[Place, Place]]] = {}, {}
    for before in first.joins:
        afters = dict.fromkeys(
            join for place in before.views for join in onward.get(middle[place.row], ())
        )
        for after in afters:
            inner = tuple(
                dataclasses.replace(place, row=middle[place.row]) for place in before.views
            )
            row = first.view.rows[before.views[0].row]
            unlike = _unlike_padding(row, before.told, after.told)
            if unlike is not None:
                yield unlike
            elif before.plain and after.plain:
                one, other = before.sources[0].row, after.views[0].row
                ends = first.source.rows[one], second.view.rows[other]
                near = first.view.rows[before.views[0].row]
                far = second.source.rows[after.sources[0].row]
                told = composed((ends[0], near, far, ends[1]), (before.told, after.told))
                if isinstance(told, Mismatch):
                    yield told
                    continue
                made = relate(*ends, told)
                yield made if isinstance(made, Mismatch) else made.join(one, other, told)
            elif inner == after.sources and before.levels == after.levels:
                yield Join(before.sources, after.views, before.chain >> after.chain, before.levels)
            elif before.plain and not before.chain:
                waiting[1].setdefault(after, {}).update(
                    _renamed(after.sources, inner[0], before.sources[0])
                )
            elif after.plain and not after.chain:
                near = _back(after.sources[0], middle)
                waiting[0].setdefault(before, {}).update(
                    _renamed(before.views, near, after.views[0])
                )
            elif not _apart(inner, after.sources):
                yield _no_way(first.view.rows[before.views[0].row])
    for join, outer in waiting[0].items():
        made = _replaced(join.inverse, outer, first.view)
        yield made if isinstance(made, Mismatch) else made.inverse
    for join, outer in waiting[1].items():
        yield _replaced(join, outer, second.source)


def _replaced(join: Join, outer: Mapping[Place, Place], table: Layout) -> Join | Mismatch:
    """The join with other rows on its source's side; not every one of them may be known."""
    if any(place not in outer for place in join.sources):
        return _no_way(table.rows[join.sources[0].row])
    return Join(tuple(outer[place] for place in join.sources), join.views, join.chain, join.levels)


def _back(place: Place, middle: Mapping[int, int]) -> Place:
    return dataclasses.replace(
        place, row=next(row for row, at in middle.items() if at == place.row)
    )


def _renamed(places: Sequence[Place], near: Place, far: Place) -> Iterator[tuple[Place, Place]]:
    """For those of a join's rows that are the near row of a join which only moves, the far row, spelled as they are."""
    for place in places:
        if place.row == near.row:
            spelled = dict(zip(near.symbols, place.symbols, strict=True))
            if all(symbol in spelled for symbol in far.symbols):
                yield place, Place(far.row, tuple(spelled[symbol] for symbol in far.symbols))


def _apart(places: Sequence[Place], others: Sequence[Place]) -> bool:
    """Whether these are other parts of the same lists."""
    starts = [
        {
            (place.row, symbol.start)
            for place in each
            for symbol in place.symbols
            if symbol.start is not None
        }
        for each in (places, others)
    ]
    return bool(starts[0] and starts[1]) and not starts[0] & starts[1]


def _no_way(row: Row) -> Mismatch:
    hint = (
        "parts that are joined or split on both ways do not compose: apply the two lenses in turn"
    )
    return Mismatch(
        "/".join(row.path),
        "dims",
        "the same parts on the way there and on the way on",
        str(row.stored),
        hint,
    )


def _contradictions(first: Joined, second: Joined) -> list[Mismatch]:
    """Dims that both lenses are bound to, differently."""
    return [
        Mismatch(
            name,
            "dims",
            f"{first.dims[name]}, as in the first",
            f"{size} in the second",
            "bind both to the same",
        )
        for name, size in second.dims.items()
        if first.dims.get(name, size) != size
    ]


def _left_over(row: Row, middle: Row, table: Layout, faults: list[Mismatch]) -> Row:
    """An outer row whose partner in the middle has none on the far side, with the default it has then."""
    row = _defaulted(row, middle.default, table, faults)
    if row.default is None and not row.optional:
        hint = "declare a default, or make it optional"
        found = f"{row.stored} in {table.name} alone, the layout between them making it optional"
        faults.append(
            Mismatch("/".join(row.path), "unplaced", "a partner on the far side", found, hint)
        )
    return row


def _defaulted(row: Row, default: Default | None, table: Layout, faults: list[Mismatch]) -> Row:
    """``row`` with the default that the layout in the middle declares, if it does."""
    if default is None:
        return row
    if isinstance(default, Init) and table.initial is None:
        hint = f"declare {table.name} with its transformation"
        faults.append(
            Mismatch("/".join(row.path), "chain", "a transformation that starts it", "none", hint)
        )
    if not leaves.holds(row.leaf, default):
        hint = "the layout between them declares it"
        faults.append(
            Mismatch(
                "/".join(row.path),
                "dtype",
                f"a default that {row.leaf.dtype} can hold",
                str(default),
                hint,
            )
        )
    return dataclasses.replace(row, default=default)


def _differences(first: Layout, second: Layout) -> list[Mismatch]:
    left, right = ({row.key: str(row.stored) for row in table.rows} for table in (first, second))
    faults = [
        Mismatch(_spelled(key), "unplaced", left.get(key, "nothing"), right.get(key, "nothing"))
        for key in sorted({**left, **right}, key=lambda key: paths.natural(paths.format_path(key)))
        if left.get(key) != right.get(key)
    ]
    return [*with_mirrors(first, faults)]


def _spelled(key: Pattern) -> str:
    """A key path; a segment that holds the separator is quoted here, for two layouts are told apart by it."""
    return paths.format_path(repr(k) if isinstance(k, str) and "/" in k else k for k in key)

"""Lists of layers that a layout keeps in several nodes: gathered first, and joined as the lists that they are.

A series says that some nodes are one list. No tree has that list, and yet all else is said of it:
it is renamed, its leaves are fused, turned or scaled, and the other side may divide it elsewhere.
So a layout with a series becomes one that has the list, that one is joined, and its cells are
composed with those of the nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import jax.numpy as jnp

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths as paths_
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.leaves import ANY_FLOAT
from ckpt_schema._layouts.paths import Index, LogicalPath
from ckpt_schema._layouts.sizes import ONE, Size, UndecidedError
from ckpt_schema._layouts.table import Layout, Repeat, Row, Series, called
from ckpt_schema._lens.cells import Cell, tidy
from ckpt_schema._lens.derive import derivation
from ckpt_schema._lens.derive.bounds import composed_if_known
from ckpt_schema._lens.derive.joins import Join, joins_of
from ckpt_schema._lens.derive.leaf_joins import with_moments
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, Told, spoken, told
from ckpt_schema._lens.derive.moments import Moments
from ckpt_schema._lens.derive.parts import Divided, Numbered, listed
from ckpt_schema._lens.derive.relations import GivenSizes, stripped, undecided
from ckpt_schema._lens.derive.scope import Hit, Scope, standing
from ckpt_schema._lens.derive.wholes import Group, Member, lacking, memberships, span
from ckpt_schema._lens.rules import Apart, Fuse, Private, Rename, Reset, Rule, Tie, verify_rules
from ckpt_schema._lens.spellings import of_dim
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["join"]

Tables = tuple[Layout, Layout]


def join(
    source: Layout, view: Layout, rules: Sequence[Rule], sizes: Mapping[str, int]
) -> tuple[Layout, Layout, tuple[Join, ...], tuple[Rule, ...]]:
    """Joins two layouts on their logical paths, with their lists as wholes.

    See `derivation.join_rows`.

    Raises:
        DerivationError: With all that has no place, or is not one leaf on both sides.
    """
    verify_rules(rules)
    tables = source, view
    wanted = _wanted(tables, rules)
    if not any(wanted):
        return derivation.join_rows(source, view, rules, sizes)
    known = {name: Size.of(size) for name, size in sizes.items()}
    # A list that cannot be gathered is told of first: all else would be a consequence.
    faults: list[Mismatch] = []
    sides: list[_Lists] = []
    for number, several in enumerate(wanted):
        sides.append(_gathered(tables, number, several, rules, known, faults))
    if faults:
        raise DerivationError("no lens from {} to {}".format(*called(source, view)), faults)
    used = {*wanted[0], *wanted[1], *sides[0].rules, *sides[1].rules}
    moments = Moments(source, view, (sides[0].originals, sides[1].originals))
    left, right, joins, each = derivation.join_rows(
        sides[0].whole, sides[1].whole, [rule for rule in rules if rule not in used], sizes, moments
    )
    divided = _Divided((source, view), (sides[0], sides[1]), known)
    inner = [one for join in joins for one in divided.joins(join)]
    if divided.faults:
        raise DerivationError("no lens from {} to {}".format(*called(source, view)), divided.faults)
    inner.sort(key=lambda one: min(one.views))
    each = *each, *(rule for rule in rules if rule in used)
    return sides[0].restored(left), sides[1].restored(right), tuple(inner), each


# --- Which lists  ---


def _wanted(tables: Tables, rules: Sequence[Rule]) -> tuple[list[Series], list[Series]]:
    """For each side, the series whose list the other side has as well: whole, or in other nodes."""
    said = [rule for rule in rules if isinstance(rule, Series)]
    wanted: tuple[list[Series], list[Series]] = [], []
    if not (said or tables[0].series or tables[1].series):
        return wanted
    several: list[dict[Series, list[Size]]] = []
    for table in tables:
        own = dict.fromkeys((*table.series, *said))
        shares = {series: _shares(table, series) for series in own}
        several.append({series: each for series, each in shares.items() if each is not None})
    for number, own in enumerate(several):
        other, table = several[1 - number], tables[1 - number]
        for series, shares in own.items():
            if other.get(series) == shares:
                continue  # both sides have these nodes: each is joined by itself
            paths = {series.path, *_called(series.path, number, rules)}
            if standing(table, paths) or any(each.path in paths for each in other):
                wanted[number].append(series)
    return wanted


def _shares(table: Layout, series: Series) -> list[Size] | None:
    """How many layers each node of a series has; None where the table lacks one of them."""
    scope = Scope((path, number) for number, path in enumerate(series.members))
    sizes: dict[int, Size] = {}
    for at, hits in scope.along(table.rows).items():
        for hit in hits:
            if hit.rule not in sizes:
                outer = paths_.list_depth(table.rows[at].path[: hit.start])
                repeats = table.rows[at].repeats[
                    outer : outer + paths_.list_depth(series.members[hit.rule])
                ]
                size = ONE
                for repeat in repeats:
                    size *= of_dim(repeat.size)
                sizes[hit.rule] = size
    return [sizes[n] for n in sorted(sizes)] if len(sizes) == len(series.members) else None


def _called(path: LogicalPath, number: int, rules: Sequence[Rule]) -> Iterator[LogicalPath]:
    """What a list may be called on the other side."""
    pairs: list[tuple[LogicalPath, LogicalPath]] = []
    for rule in rules:
        if isinstance(rule, Rename):
            pairs.append((rule.view, rule.source) if number else (rule.source, rule.view))
        elif isinstance(rule, Fuse):
            pairs += [(rule.whole, part) for part in rule.parts]
            pairs += [(part, rule.whole) for part in rule.parts]
    for own, there in pairs:
        if path[: len(own)] == own:
            yield (*there, *path[len(own) :])
        elif own[: len(path)] == path:
            yield there[: len(there) - len(own) + len(path)]


# --- The table that has them whole  ---


@dataclasses.dataclass(frozen=True, slots=True)
class _Lists:
    """A side whose nodes are gathered.

    Attributes:
        table: As it is.
        whole: With a row for each list in the place of those of its nodes.
        numbers: Of each row of ``whole`` that is one of ``table``, its number there.
        cells: By the number of a list's row, from there to the rows of its nodes.
        originals: By the path of a list's row, the row of its first node.
        rules: Those that speak of single nodes, and are in these cells.
    """

    table: Layout
    whole: Layout
    numbers: Mapping[int, int]
    cells: Mapping[int, Sequence[Cell]]
    originals: Mapping[LogicalPath, Row]
    rules: frozenset[Rule]

    def restored(self, whole: Layout) -> Layout:
        """The table, with what a derivation has declared of the other one."""
        rows = list(self.table.rows)
        for number, row in enumerate(whole.rows):
            if number in self.numbers:
                rows[self.numbers[number]] = row
            elif row.default != self.whole.rows[number].default:
                for at in {cell.view for cell in self.cells[number] if isinstance(cell.view, int)}:
                    rows[at] = dataclasses.replace(rows[at], default=row.default)
        return dataclasses.replace(whole, rows=tuple(rows), series=self.table.series)


def _gathered(
    tables: Tables,
    number: int,
    several: Sequence[Series],
    rules: Sequence[Rule],
    known: GivenSizes,
    faults: list[Mismatch],
) -> _Lists:
    """A side with a row for each leaf of its lists."""
    table = tables[number]
    members = memberships(table, [Group(one.path, one.members, one) for one in several])
    apart = _spoken_of(table, number, members, rules)
    nodes: dict[LogicalPath, dict[int, int]] = {}
    for at, member in members.items():
        nodes.setdefault(member.path, {})[member.number] = at
    said = _told(tables, number, members, rules, faults)
    paths = {"/".join(table.rows[at].path): member.path for at, member in members.items()}
    lists: dict[int, tuple[Row, list[int]]] = {}  # by the number of its first node
    for path, parts in nodes.items():
        numbers = [parts[part] for part in sorted(parts)]
        rows = [table.rows[at] for at in numbers]
        # A list takes no rule for one of its nodes, and has one default, or, where the other side
        # has it whole, none: other nodes are joined by themselves.
        several_defaults = len({row.default for row in rows}) > 1
        names = {path, *_called(path, number, rules)}
        if apart.intersection(numbers):
            continue
        if several_defaults and not standing(tables[1 - number], names):
            continue
        if several_defaults:
            rows = [dataclasses.replace(row, default=None) for row in rows]
        missing = lacking(rows[0], members[numbers[0]].group, parts)
        if missing is not None:
            if all(row.default is None and not row.optional for row in rows):
                faults.append(missing)
            continue
        spans = [span(table.rows[at], members[at]) for at in numbers]
        row = _list(path, rows, spans, said.get(numbers[0], UNTOLD))
        mirrors = "/".join(paths.get(row.mirrors, ())) or row.mirrors
        lists[numbers[0]] = dataclasses.replace(row, mirrors=mirrors), numbers
    return _with_lists(table, lists, members, said, known, faults)


def _with_lists(
    table: Layout,
    lists: Mapping[int, tuple[Row, list[int]]],
    members: Mapping[int, Member],
    said: Mapping[int, Told],
    known: GivenSizes,
    faults: list[Mismatch],
) -> _Lists:
    gone = {at for _, numbers in lists.values() for at in numbers}
    rows: list[Row] = []
    places: dict[int, int] = {}
    cells: dict[int, list[Cell]] = {}
    originals: dict[LogicalPath, Row] = {}
    for at, row in enumerate(table.rows):
        if at not in gone:
            places[len(rows)] = at
            rows.append(row)
        elif at in lists:
            whole, numbers = lists[at]
            parts = tuple(Numbered(n, table.rows[n], said.get(n, UNTOLD)) for n in numbers)
            spans = [span(table.rows[n], members[n]) for n in numbers]
            both = Divided(Numbered(len(rows), whole), parts)
            made = listed(both, spans[0][0], spans, known)
            if isinstance(made, Mismatch):
                faults.append(made)
            else:
                cells[len(rows)] = [cell for one in made for cell in one.cells]
            originals[whole.path] = row
            rows.append(whole)
    used = frozenset(rule for at in gone for rule in said.get(at, UNTOLD).rules)
    table_of_lists = dataclasses.replace(table, rows=tuple(rows), series=())
    return _Lists(table, table_of_lists, places, cells, originals, used)


def _list(
    path: LogicalPath, rows: Sequence[Row], spans: Sequence[tuple[int, int]], said: Told
) -> Row:
    """The row of a list whose nodes have these rows; of each, which levels are the list's."""
    first, (start, end) = rows[0], spans[0]
    shares: list[Dim] = []
    for row, (low, high) in zip(rows, spans, strict=True):
        shares.append(tuple(factor for repeat in row.repeats[low:high] for factor in repeat.size))
    outer = [Repeat(repeat.size, None) for repeat in first.repeats[:start]]
    inner = [Repeat(repeat.size, None) for repeat in first.repeats[end:]]
    dtypes = {row.leaf.dtype for row in rows}
    leaf = stripped(first, said).leaf
    if len(dtypes) > 1 and not any(row.leaf.is_key for row in rows):
        leaf = dataclasses.replace(leaf, dtype=_widest(dtypes))
    key = [
        each
        for segment in path
        for each in (segment.removesuffix("[]"), *_index(segment))
        if each != ""
    ]
    return dataclasses.replace(
        first,
        path=path,
        key=tuple(key),
        leaf=leaf,
        repeats=(*outer, Repeat(dims_.add(shares), None), *inner),
        optional=all(row.optional for row in rows),
        inside=0,
        held=(),
    )


def _index(segment: str) -> tuple[Index, ...]:
    return (Index(),) if segment.endswith("[]") else ()


def _widest(dtypes: Collection[str]) -> str:
    """A dtype that holds all values of some, if there is one; in it no array is ever made."""
    if ANY_FLOAT in dtypes:
        return ANY_FLOAT
    several = [jnp.dtype(dtype) for dtype in sorted(dtypes)]
    if all(jnp.issubdtype(dtype, jnp.integer) for dtype in several):
        wide = max(several, key=lambda dtype: (jnp.iinfo(dtype).bits, jnp.iinfo(dtype).max))
        signed = any(jnp.iinfo(dtype).min < 0 for dtype in several)
        return "int64" if signed and jnp.iinfo(wide).min == 0 else wide.name
    return jnp.promote_types(*several[:2]).name if len(several) == 2 else "float32"


# --- What rules say of single nodes  ---


def _reaches(hit: Hit[object], row: Row, member: Member) -> bool:
    """Whether the path of a rule goes to a node of a list, and not to what that and the list stand in."""
    both = zip(row.path[member.start :], member.group.whole, strict=False)
    shared = next((n for n, (one, other) in enumerate(both) if one != other), 0)
    return hit.end > member.start + shared


def _spoken_of(
    table: Layout, number: int, members: Mapping[int, Member], rules: Sequence[Rule]
) -> set[int]:
    """The rows of nodes that a rule calls by their own path: these stay as they are."""
    entries: list[tuple[LogicalPath, Rule]] = []
    for rule in rules:
        if isinstance(rule, (Private, Apart)):
            entries.append((rule.path, rule))
        elif isinstance(rule, Tie):
            entries += [(rule.copy, rule), (rule.of, rule)]
        elif isinstance(rule, Fuse):
            entries += [(path, rule) for path in (rule.whole, *rule.parts)]
        elif isinstance(rule, (Rename, Reset)):
            path = (rule.source, rule.view)[number]
            entries += [] if path is None else [(path, rule)]
    numbers: set[int] = set()
    for at, hits in Scope(entries).along(table.rows).items():
        member = members.get(at)
        if member and any(_reaches(hit, table.rows[at], member) for hit in hits):
            numbers.add(at)
    return numbers


def _told(
    tables: Tables,
    number: int,
    members: Mapping[int, Member],
    rules: Sequence[Rule],
    faults: list[Mismatch],
) -> dict[int, Told]:
    """What rules say of the values in single nodes, on the way from the list."""
    table = tables[number]
    said: dict[int, Told] = {}
    moments = Moments(table, table)
    for at, several in spoken(rules).along(table.rows).items():
        member = members.get(at)
        hits = [hit for hit in several if member and _reaches(hit, table.rows[at], member)]
        if hits:
            row = table.rows[at]
            made = with_moments(row, row, hits, told(row, hits), moments)
            if isinstance(made, Mismatch):
                faults.append(made)
            else:
                said[at] = made if number else made.inverse
    return said


# --- The way back  ---


class _Divided:
    """Joins of lists, as those of their nodes."""

    def __init__(self, tables: Tables, sides: tuple[_Lists, _Lists], known: GivenSizes) -> None:
        self._tables, self._sides, self._known = tables, sides, known
        self._padded: set[tuple[int, int]] = set()
        self._symbols = [[len(row.unrolled) for row in table.rows] for table in tables]
        self.faults: list[Mismatch] = []

    def joins(self, one: Join) -> Iterator[Join]:
        """A join of both tables as they are."""
        source, view = self._sides
        is_whole = any(n in source.cells for n in one.sources) or any(
            n in view.cells for n in one.views
        )
        try:
            cells = self._own(one.cells, 0)
            turned = self._own([~cell for cell in cells], 1)
        except UndecidedError as wrong:
            rows = source.whole.rows[one.sources[0]], view.whole.rows[one.views[0]]
            self.faults.append(undecided(*rows, wrong))
            return
        # What is read goes forward.
        back = (~cell for cell in turned)
        cells = [dataclasses.replace(cell, geometry=tidy(cell.geometry)) for cell in back]
        if not is_whole:
            yield dataclasses.replace(one, cells=tuple(cells))
            return
        yield from joins_of(cells, lambda side, at: self._symbols[side][at])

    def _own(self, cells: Sequence[Cell], side: int) -> list[Cell]:
        """Cells from rows of lists on, as from those of the table."""
        lists = self._sides[side]
        through = [cell for cell in cells if cell.source in lists.cells]
        found = [
            dataclasses.replace(cell, source=lists.numbers[cell.source])
            if isinstance(cell.source, int)
            else cell
            for cell in cells
            if cell.source not in lists.cells
        ]
        if not through:
            return found
        first: list[Cell] = []
        for number in dict.fromkeys(cell.source for cell in through):
            assert isinstance(number, int)
            for cell in lists.cells[number]:
                if not cell.is_constant or (side, number) not in self._padded:
                    first.append(~cell)
            self._padded.add((side, number))
        return [*found, *composed_if_known(first, through, self._known)]

"""Lists of layers that a layout keeps in several nodes: gathered first, and joined as the lists that they are.

A series says that some nodes are one list. No tree has that list, and yet all else is said of it:
it is renamed, its leaves are fused, turned or scaled, and the other side may divide it elsewhere.
So a layout with a series becomes one that has the list, that one is joined, and its cells are
composed with those of the nodes.

This is where `derive` enters: `join` gathers, hands two tables of whole lists to `derivation`, and
divides what comes back.

    dense[]/w (2 layers) + moe[]/w (4 layers)  ->  layers[]/w (6 layers)  ->  the other side
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import jax.numpy as jnp

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths as paths_
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.leaves import ANY_FLOAT
from ckpt_schema._layouts.paths import Index, Key, LogicalPath, Pattern
from ckpt_schema._layouts.sizes import ONE, Size, UndecidedError
from ckpt_schema._layouts.table import Layout, Repeat, Row, Series, called
from ckpt_schema._lens.cells import Cell, tidy
from ckpt_schema._lens.derive import derivation
from ckpt_schema._lens.derive.bounds import composed_if_known
from ckpt_schema._lens.derive.joins import Join, joins_of
from ckpt_schema._lens.derive.leaf_joins import with_moments
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, Told, spoken, told
from ckpt_schema._lens.derive.moments import Moments
from ckpt_schema._lens.derive.padded_rows import stripped
from ckpt_schema._lens.derive.parts import Divided, Numbered, listed
from ckpt_schema._lens.derive.relations import GivenSizes, undecided
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
    faults: list[Mismatch] = []
    # Both sides are gathered before anything is raised: the faults of both are told at once.
    left = _Gathering(tables, 0, rules, known, faults).lists(wanted[0])
    right = _Gathering(tables, 1, rules, known, faults).lists(wanted[1])
    # A list that cannot be gathered is told of first: all else would be a consequence.
    if faults:
        raise _error(tables, faults)
    # Some rules are in the gathered rows and their cells already, and must not be done twice.
    in_gathered_rows = {*wanted[0], *wanted[1], *left.rules, *right.rules}
    used: list[Rule] = []
    remaining: list[Rule] = []
    for rule in rules:
        (used if rule in in_gathered_rows else remaining).append(rule)
    moments = Moments(source, view, (left.originals, right.originals))
    new_left, new_right, joins, node_rules = derivation.join_rows(
        left.whole, right.whole, remaining, sizes, moments
    )
    node_joins = _NodeJoins(tables, (left, right), known)
    divided: list[Join] = []
    for list_join in joins:
        divided += node_joins.of(list_join)
    if node_joins.faults:
        raise _error(tables, node_joins.faults)
    # Joins are in the order of the view's rows, and nodes of a list need not stand side by side.
    divided.sort(key=lambda join: min(join.views))
    all_rules = *node_rules, *used
    return left.restored(new_left), right.restored(new_right), tuple(divided), all_rules


def _error(tables: Tables, faults: Sequence[Mismatch]) -> DerivationError:
    return DerivationError("no lens from {} to {}".format(*called(*tables)), faults)


# --- Which lists  ---


def _wanted(tables: Tables, rules: Sequence[Rule]) -> tuple[list[Series], list[Series]]:
    """For each side, the series whose list the other side has as well: whole, or in other nodes.

    A series that both sides have, node by node and of the same lengths, is not among them: there
    each node is joined by itself, as if nothing were said of a list.
    """
    said = [rule for rule in rules if isinstance(rule, Series)]
    wanted: tuple[list[Series], list[Series]] = [], []
    if not (said or tables[0].series or tables[1].series):
        return wanted
    lengths = _node_lengths(tables[0], said), _node_lengths(tables[1], said)
    for side in (0, 1):
        other_table, other_lengths = tables[1 - side], lengths[1 - side]
        lists_there = {series.path for series in other_lengths}
        for series, counts in lengths[side].items():
            if other_lengths.get(series) == counts:
                continue
            names = {series.path, *_names_there(series.path, side, rules)}
            is_whole_there = bool(standing(other_table, names))
            if is_whole_there or not names.isdisjoint(lists_there):
                wanted[side].append(series)
    return wanted


def _node_lengths(table: Layout, said: Sequence[Series]) -> dict[Series, list[Size]]:
    """The series of a side, by its schema or by rules, with the number of layers in each node.

    One of which the side lacks a node is none of its.
    """
    lengths: dict[Series, list[Size]] = {}
    for series in dict.fromkeys((*table.series, *said)):
        by_node = _lengths_by_node(table, series)
        if len(by_node) == len(series.members):
            lengths[series] = [by_node[node] for node in sorted(by_node)]
    return lengths


def _lengths_by_node(table: Layout, series: Series) -> dict[int, Size]:
    """How many layers each node of a series has, of those nodes that the table has."""
    scope = Scope((path, node) for node, path in enumerate(series.members))
    lengths: dict[int, Size] = {}
    for number, hits in scope.along(table.rows).items():
        row = table.rows[number]
        for hit in hits:
            if hit.rule in lengths:
                continue  # any row of a node tells its length
            first = paths_.list_depth(row.path[: hit.start])
            depth = paths_.list_depth(series.members[hit.rule])
            # A node that is no list, "blocks_0", has no level of its own: it is one layer.
            length = ONE
            for repeat in row.repeats[first : first + depth]:
                length *= of_dim(repeat.size)
            lengths[hit.rule] = length
    return lengths


def _names_there(path: LogicalPath, side: int, rules: Sequence[Rule]) -> Iterator[LogicalPath]:
    """What a list of one side may be called on the other, by the rules that rename or fuse.

    With ``rename("enc", "encoder")`` the source's ``enc/layers[]`` is ``encoder/layers[]`` there,
    and with ``rename("enc/layers[]/mlp", "blocks[]/ff")`` the list ``enc/layers[]`` is ``blocks[]``.
    """
    pairs: list[tuple[LogicalPath, LogicalPath]] = []
    for rule in rules:
        if isinstance(rule, Rename):
            pairs.append((rule.view, rule.source) if side else (rule.source, rule.view))
        elif isinstance(rule, Fuse):
            for part in rule.parts:
                # Either side may have the whole.
                pairs += [(rule.whole, part), (part, rule.whole)]
    for here, there in pairs:
        if path[: len(here)] == here:
            yield (*there, *path[len(here) :])
        elif here[: len(path)] == path:
            # The rule is for a node below the list. As much of its end is below the list there.
            below = len(here) - len(path)
            yield there[: len(there) - below]


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
                # A default of the list is that of each of its nodes.
                for cell in self.cells[number]:
                    if isinstance(cell.view, int):
                        node = rows[cell.view]
                        rows[cell.view] = dataclasses.replace(node, default=row.default)
        return dataclasses.replace(whole, rows=tuple(rows), series=self.table.series)


@dataclasses.dataclass(frozen=True, slots=True)
class _ListRow:
    """A leaf of a list: the row that stands for it, and the rows of the nodes, in their order."""

    row: Row
    nodes: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class _Gathering:
    """How the nodes of one side become lists.

    Attributes:
        tables: The source and the view.
        side: Which of them it is.
        rules: All rules.
        known: Sizes that are given beforehand.
        faults: Takes what is wrong with a list.
    """

    tables: Tables
    side: int
    rules: Sequence[Rule]
    known: GivenSizes
    faults: list[Mismatch]

    def lists(self, wanted: Sequence[Series]) -> _Lists:
        """The side with a row for each leaf of the lists of some series."""
        table = self.tables[self.side]
        groups = [Group(series.path, series.members, series) for series in wanted]
        members = memberships(table, groups)
        kept_apart = _spoken_of(table, self.side, members, self.rules)
        said = self._said_of_nodes(members)
        # The rows of each leaf of a list, by their nodes: {0: 4, 1: 9} for "layers[]/w".
        by_list: dict[LogicalPath, dict[int, int]] = {}
        # The list's path by the path of each of these rows, spelled as `Row.mirrors` spells it.
        list_paths: dict[str, LogicalPath] = {}
        for number, member in members.items():
            by_list.setdefault(member.path, {})[member.number] = number
            list_paths["/".join(table.rows[number].path)] = member.path
        list_rows: dict[int, _ListRow] = {}  # by the number of the first node's row
        for path, by_node in by_list.items():
            nodes = [by_node[node] for node in sorted(by_node)]
            # A list takes no rule for one of its nodes.
            if not kept_apart.isdisjoint(nodes):
                continue
            row = self._list_row(path, by_node, nodes, members, said.get(nodes[0], UNTOLD))
            if row is not None:
                # A moment of a node mirrors the node's param; that of the list mirrors the list's.
                mirrored = list_paths.get(row.mirrors)
                if mirrored:
                    row = dataclasses.replace(row, mirrors="/".join(mirrored))
                list_rows[nodes[0]] = _ListRow(row, nodes)
        return self._with_list_rows(list_rows, members, said)

    def _list_row(
        self,
        path: LogicalPath,
        by_node: Mapping[int, int],
        nodes: Sequence[int],
        members: Mapping[int, Member],
        said: Told,
    ) -> Row | None:
        """The row of one leaf of a list; None where its nodes are joined by themselves."""
        table, other = self.tables[self.side], self.tables[1 - self.side]
        rows = [table.rows[number] for number in nodes]
        # A list has one default. Where its nodes have several it has none, if the other side has it
        # whole and so says what becomes of it; and else its nodes are joined by themselves.
        if len({row.default for row in rows}) > 1:
            if not standing(other, {path, *_names_there(path, self.side, self.rules)}):
                return None
            rows = [dataclasses.replace(row, default=None) for row in rows]
        missing = lacking(rows[0], members[nodes[0]].group, by_node)
        if missing is not None:
            # What may be absent, or has a default, need not be in every node.
            if not any(row.default is not None or row.optional for row in rows):
                self.faults.append(missing)
            return None
        spans = [span(table.rows[number], members[number]) for number in nodes]
        return _list(path, rows, spans, said)

    def _with_list_rows(
        self,
        list_rows: Mapping[int, _ListRow],
        members: Mapping[int, Member],
        said: Mapping[int, Told],
    ) -> _Lists:
        """The side with the rows of lists in the places of those of their first nodes."""
        table = self.tables[self.side]
        gathered: set[int] = set()
        for leaf in list_rows.values():
            gathered.update(leaf.nodes)
        # Numbers are of the new table here, where a list stands for several rows of the old one.
        rows: list[Row] = []
        numbers: dict[int, int] = {}
        cells: dict[int, Sequence[Cell]] = {}
        originals: dict[LogicalPath, Row] = {}
        for number, row in enumerate(table.rows):
            if number not in gathered:
                numbers[len(rows)] = number
                rows.append(row)
            elif number in list_rows:
                leaf = list_rows[number]
                made = self._cells(Numbered(len(rows), leaf.row), leaf.nodes, members, said)
                if isinstance(made, Mismatch):
                    self.faults.append(made)
                else:
                    cells[len(rows)] = made
                originals[leaf.row.path] = row
                rows.append(leaf.row)
        used: set[Rule] = set()
        for number in gathered:
            used.update(said.get(number, UNTOLD).rules)
        whole = dataclasses.replace(table, rows=tuple(rows), series=())
        return _Lists(table, whole, numbers, cells, originals, frozenset(used))

    def _cells(
        self,
        whole: Numbered,
        nodes: Sequence[int],
        members: Mapping[int, Member],
        said: Mapping[int, Told],
    ) -> list[Cell] | Mismatch:
        """The cells from a leaf of a list to the rows of its nodes."""
        rows = self.tables[self.side].rows
        parts: list[Numbered] = []
        spans: list[tuple[int, int]] = []
        for number in nodes:
            parts.append(Numbered(number, rows[number], said.get(number, UNTOLD)))
            spans.append(span(rows[number], members[number]))
        # The list's level stands where the first of a node's own did.
        joins = listed(Divided(whole, tuple(parts)), spans[0][0], spans, self.known)
        if isinstance(joins, Mismatch):
            return joins
        cells: list[Cell] = []
        for join in joins:
            cells += join.cells
        return cells

    def _said_of_nodes(self, members: Mapping[int, Member]) -> dict[int, Told]:
        """What rules say of the values in single nodes, on the way from the list."""
        table = self.tables[self.side]
        said: dict[int, Told] = {}
        moments = Moments(table, table)
        for number, over in spoken(self.rules).along(table.rows).items():
            member, row = members.get(number), table.rows[number]
            if member is None:
                continue
            # What speaks of the whole list is said of its one row, when that is joined.
            hits = [hit for hit in over if _reaches(hit, row, member)]
            if not hits:
                continue
            words = with_moments(row, row, hits, told(row, hits), moments)
            if isinstance(words, Mismatch):
                self.faults.append(words)
            else:
                # Rules speak of the way to the view. A list stands in the middle of it, so from
                # there it is the way on to nodes of the view, and the way back to those of the source.
                said[number] = words if self.side else words.inverse
        return said


def _list(
    path: LogicalPath, rows: Sequence[Row], spans: Sequence[tuple[int, int]], said: Told
) -> Row:
    """The row of a list whose nodes have these rows; of each, which levels are the list's.

    Nodes of ``dense`` and of ``moe`` layers make a list of ``dense+moe``.
    """
    first, (start, end) = rows[0], spans[0]
    lengths: list[Dim] = []
    for row, (low, high) in zip(rows, spans, strict=True):
        # A dim is its factors: one node of 2 blocks of 3 layers is 2*3 layers of the list.
        length: Dim = ()
        for repeat in row.repeats[low:high]:
            length += repeat.size
        lengths.append(length)
    # Where the layers stand in the nodes' arrays is the nodes' matter: in no tree is there a list.
    repeats = [Repeat(repeat.size, None) for repeat in first.repeats]
    repeats[start:end] = [Repeat(dims_.add(lengths), None)]
    leaf = stripped(first, said).leaf
    dtypes = {row.leaf.dtype for row in rows}
    # No dtype holds keys of two implementations: these stay, and are told where they are joined.
    if len(dtypes) > 1 and not any(row.leaf.is_key for row in rows):
        leaf = dataclasses.replace(leaf, dtype=_widest(dtypes))
    return dataclasses.replace(
        first,
        path=path,
        key=_key(path),
        leaf=leaf,
        repeats=tuple(repeats),
        optional=all(row.optional for row in rows),
        # These tell of containers in the first node's tree; the list is in no tree.
        inside=0,
        held=(),
    )


def _key(path: LogicalPath) -> Pattern:
    """A key path that reads like a logical path: ``layers[]`` is the key ``layers`` and an index."""
    key: list[Key | Index] = []
    for segment in path:
        name = segment.removesuffix("[]")
        if name:
            key.append(name)
        if name != segment:
            key.append(Index())
    return tuple(key)


def _widest(dtypes: Collection[str]) -> str:
    """A dtype that holds all values of some, if there is one; in it no array is ever made.

    So ``int8`` and ``int32`` give ``int32``, and ``int8`` and ``uint8``, of which neither holds the
    other, give ``int64``.
    """
    if ANY_FLOAT in dtypes:
        return ANY_FLOAT
    several = [jnp.dtype(dtype) for dtype in sorted(dtypes)]
    if all(jnp.issubdtype(dtype, jnp.integer) for dtype in several):
        # Of two that are as wide, the unsigned one has the greater maximum.
        wide = max(several, key=lambda dtype: (jnp.iinfo(dtype).bits, jnp.iinfo(dtype).max))
        is_signed = any(jnp.iinfo(dtype).min < 0 for dtype in several)
        # The widest is unsigned and another is not: only a wider signed one holds both.
        return "int64" if is_signed and jnp.iinfo(wide).min == 0 else wide.name
    return jnp.promote_types(*several[:2]).name if len(several) == 2 else "float32"


# --- What rules say of single nodes  ---


def _reaches(hit: Hit[object], row: Row, member: Member) -> bool:
    """Whether the path of a rule goes to a node of a list, and not to what that and the list stand in.

    Of the node ``decoder/dense[]`` of the list ``decoder/layers[]`` a rule for ``decoder/dense[]``
    does, and one for ``decoder`` does not: that one speaks of the list as well.
    """
    segments = zip(row.path[member.start :], member.group.whole, strict=False)
    # How many segments the node has in common with the list: 1 in the example, "decoder".
    shared = 0
    for place, (segment, other) in enumerate(segments):
        if segment != other:
            shared = place
            break
    return hit.end > member.start + shared


def _spoken_of(
    table: Layout, side: int, members: Mapping[int, Member], rules: Sequence[Rule]
) -> set[int]:
    """The rows of nodes that a rule calls by their own path: these stay as they are."""
    entries: list[tuple[LogicalPath, Rule]] = []
    for rule in rules:
        entries += [(path, rule) for path in _own_paths(rule, side)]
    numbers: set[int] = set()
    for number, hits in Scope(entries).along(table.rows).items():
        member, row = members.get(number), table.rows[number]
        if member and any(_reaches(hit, row, member) for hit in hits):
            numbers.add(number)
    return numbers


def _own_paths(rule: Rule, side: int) -> Sequence[LogicalPath]:
    """The paths by which a rule calls nodes of one side; none of a rule that speaks of values alone."""
    if isinstance(rule, (Private, Apart)):
        return (rule.path,)
    if isinstance(rule, Tie):
        return rule.copy, rule.of
    if isinstance(rule, Fuse):
        return (rule.whole, *rule.parts)
    if isinstance(rule, (Rename, Reset)):
        path = (rule.source, rule.view)[side]
        return () if path is None else (path,)
    return ()


# --- The way back  ---


class _NodeJoins:
    """Joins of lists, as those of their nodes.

    Attributes:
        faults: What sizes alone would say of a list, added to with each join.
    """

    def __init__(self, tables: Tables, sides: tuple[_Lists, _Lists], known: GivenSizes) -> None:
        self._sides, self._known = sides, known
        # The lists whose padding, by side and number, is in a join already: it is written once.
        self._padded: set[tuple[int, int]] = set()
        self._tables = tables
        self.faults: list[Mismatch] = []

    def of(self, join: Join) -> Iterator[Join]:
        """A join of two tables of lists, as joins of both tables as they are."""
        source, view = self._sides
        is_of_lists = not source.cells.keys().isdisjoint(join.sources)
        is_of_lists = is_of_lists or not view.cells.keys().isdisjoint(join.views)
        try:
            # nodes of the source -> lists -> nodes of the view; the second half is done backwards.
            cells = self._from_nodes(join.cells, 0)
            turned = self._from_nodes([~cell for cell in cells], 1)
        except UndecidedError as wrong:
            rows = source.whole.rows[join.sources[0]], view.whole.rows[join.views[0]]
            self.faults.append(undecided(*rows, wrong))
            return
        cells = []
        for cell in turned:  # what is read goes forward
            forward = ~cell
            cells.append(dataclasses.replace(forward, geometry=tidy(forward.geometry)))
        # The nodes of a list need not share a leaf: each group of cells that does is a join.
        if is_of_lists:
            yield from joins_of(cells, self._symbols)
        else:
            yield dataclasses.replace(join, cells=tuple(cells))

    def _symbols(self, side: int, number: int) -> int:
        """How many index symbols the key of a row has."""
        return len(self._tables[side].rows[number].unrolled)

    def _from_nodes(self, cells: Sequence[Cell], side: int) -> list[Cell]:
        """Cells from rows of lists on, as from those of the table: node -> list -> on."""
        lists = self._sides[side]
        from_nodes: list[Cell] = []
        from_lists: list[Cell] = []
        for cell in cells:
            if cell.source in lists.cells:
                from_lists.append(cell)
            elif isinstance(cell.source, int):
                from_nodes.append(dataclasses.replace(cell, source=lists.numbers[cell.source]))
            else:
                from_nodes.append(cell)
        if not from_lists:
            return from_nodes
        # Several cells may lead on from one list: what leads there is taken once.
        to_lists: list[Cell] = []
        for number in dict.fromkeys(cell.source for cell in from_lists):
            assert isinstance(number, int)
            for cell in lists.cells[number]:
                if not cell.is_constant or (side, number) not in self._padded:
                    to_lists.append(~cell)
            self._padded.add((side, number))
        return [*from_nodes, *composed_if_known(to_lists, from_lists, self._known)]

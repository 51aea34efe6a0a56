"""The join: two layouts in, a total lens out, or one error that names everything that has no place.

This is the flow of `derive`, and each step is a module:

1. a rule for many leaves becomes one for each node (`globs`), and rows get the axes that rules
   spell (`spelled_rows`);
2. leaves that rules excuse from having a partner get their defaults (`exemptions`);
3. the source's rows are called as the view's are (`names`, `alignment`, `wholes`);
4. rows of one path are one leaf (`pairing`), but for tied copies (`ties`);
5. each leaf gets its cells (`leaf_joins`);
6. what is left has no place, and neither have rules that did nothing: all of it is told at once
   (`idle_rules`, `unplaced`, `causes`).

No step stops at what it finds wrong: it notes a fault, and goes on with the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Layout, Row, called
from ckpt_schema._lens.derive.alignment import Alignment, Settled, align
from ckpt_schema._lens.derive.causes import causes
from ckpt_schema._lens.derive.disputes import disputes
from ckpt_schema._lens.derive.exemptions import (
    Alone,
    Lone,
    declare,
    lone,
    owned,
    part,
    restart,
)
from ckpt_schema._lens.derive.globs import as_written, by_node
from ckpt_schema._lens.derive.idle_rules import idle_rules, without_spare_casts
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_joins import LeafJoins, said_of_parts
from ckpt_schema._lens.derive.leaf_rules import ValueRule, spoken
from ckpt_schema._lens.derive.missing_paths import MissingPaths
from ckpt_schema._lens.derive.moments import Moments
from ckpt_schema._lens.derive.names import Decision, Names
from ckpt_schema._lens.derive.pairing import (
    Members,
    SharedLeaf,
    paths_in_view,
    rows_by_path,
    same_parts,
    seen_paths,
    take_names_away,
)
from ckpt_schema._lens.derive.private_pairs import private_pairs
from ckpt_schema._lens.derive.rename_faults import HalfRooted, nameless
from ckpt_schema._lens.derive.scope import Spoken
from ckpt_schema._lens.derive.spelled_rows import with_spelled_axes
from ckpt_schema._lens.derive.ties import Copies
from ckpt_schema._lens.derive.unplaced import unplaced
from ckpt_schema._lens.derive.wholes import groups, memberships
from ckpt_schema._lens.rules import Move, Rename, Reset, Rule
from ckpt_schema._trees import chains
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["join_rows"]


def join_rows(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    sizes: Mapping[str, int],
    moments: Moments | None = None,
) -> tuple[Layout, Layout, tuple[Join, ...], tuple[Rule, ...]]:
    """Joins two layouts on their logical paths; a list that a series divides has no place here.

    Args:
        source: The left layout.
        view: The right layout.
        rules: What the types cannot say.
        sizes: Sizes that are given beforehand, in elements: they decide what is open for all sizes.
        moments: What knows the powers of what optimizers keep; those of the two layouts, unless given.

    Returns:
        Both layouts, with defaults that rules declare, the joins in the view's order, and the
        rules, each for one node.

    Raises:
        DerivationError: With every row of both sides that has no place, every pair of rows whose types
            do not go together, every ambiguity, and every rule that matches nothing.
    """
    # Faults need two names that differ; the layouts that are handed back have those they came with.
    own_names = source.name, view.name
    source, view = _told_apart(source, view)
    node_rules, written, faults = by_node(source, view, rules)
    # Two globs may mean one node, and say the same of it.
    rules = list({str(rule): rule for rule in node_rules}.values())
    derivation = _Derivation(source, view, rules, sizes, moments, faults)
    joins = derivation.joins()
    derivation.tell_idle_rules(joins)
    derivation.tell_unplaced(joins)
    source, view = derivation.source, derivation.view
    if written:
        # Of a rule for many leaves, what does nothing to its node is no rule for that.
        idle: set[str] = set()
        for fault in faults:
            if fault.found.startswith("none"):
                idle.add(fault.path)
        rules = [rule for rule in rules if str(rule) not in idle]
        faults = list(as_written(faults, written))
    if faults:
        raise _error(source, view, joins, faults)
    # Here and no sooner: without an error, a cast that does nothing is known by the cells that were made.
    rules = without_spare_casts((source, view), rules, joins)
    source = dataclasses.replace(source, name=own_names[0])
    view = dataclasses.replace(view, name=own_names[1])
    return source, view, tuple(joins), tuple(rules)


def _told_apart(source: Layout, view: Layout) -> tuple[Layout, Layout]:
    """Both layouts under names that differ, as faults name them: a layout may be both sides."""
    names = called(source, view)
    return dataclasses.replace(source, name=names[0]), dataclasses.replace(view, name=names[1])


def _error(
    source: Layout, view: Layout, joins: Sequence[Join], faults: Sequence[Mismatch]
) -> DerivationError:
    """The one error of all faults; two chains that differ are shown side by side below them."""
    faults = causes(source, view, _pairs(joins), faults)
    notes: list[str] = []
    if any(fault.kind == "chain" for fault in faults):
        parts = [*map(str, source.parts)], [*map(str, view.parts)]
        notes = chains.side_by_side((source.name, view.name), parts)
    return DerivationError(f"no lens from {source.name} to {view.name}", faults, notes)


def _pairs(joins: Sequence[Join]) -> list[tuple[int, int]]:
    """The numbers of the rows that share elements, of the source and of the view."""
    pairs: list[tuple[int, int]] = []
    for join in joins:
        pairs += join.pairs
    return pairs


class _Derivation:
    """The steps between rules for single nodes and faults.

    Attributes:
        source: The source, with the defaults that rules declare.
        view: The view, the same.
    """

    def __init__(
        self,
        source: Layout,
        view: Layout,
        rules: Sequence[Rule],
        sizes: Mapping[str, int],
        moments: Moments | None,
        faults: list[Mismatch],
    ) -> None:
        self._rules, self._faults = rules, faults
        self._missing_paths = MissingPaths()
        source, view = with_spelled_axes((source, view), rules, faults)
        source, view = _as_weights(source, view, rules), _as_weights(view, source, rules)
        # From here on rows are told by their numbers, so that no step adds one or drops one.
        self._excused = _Excused.of((source, view), rules, self._missing_paths, faults)
        self.source, self.view = self._excused.tables
        self._names = _RowNames.of(self._excused, rules)
        known = {name: Size.of(size) for name, size in sizes.items()}
        moments = moments or Moments(self.source, self.view)
        self._leaf_joins = LeafJoins(self._excused.tables, known, moments, faults)
        # For each side, the rows of which a fault is told, or that are meant to lack a partner.
        self._told: tuple[set[int], set[int]] = set(), set()
        for side in (0, 1):
            excused = self._excused
            self._told[side].update(excused.parted[side], excused.own_values[side])

    # --- the joins  ---

    def joins(self) -> list[Join]:
        """The joins of all rows that are one leaf, or parts of one."""
        tables, rules, faults = self._excused.tables, self._rules, self._faults
        names, alone, members = self._names, self._excused.alone, self._names.members
        decisions, values = names.decisions, spoken(rules).along(self.view.rows)
        faults += nameless(*tables, rules, names.rules, decisions, self._missing_paths)
        half_rooted = HalfRooted.of(*tables, names.rules, decisions)
        faults += half_rooted.faults
        source_values = said_of_parts(self.source, rules, values, members)
        faults += disputes(*tables, rules, decisions, values, alone, members[0])

        copies = Copies.by(*tables, rules)
        whole_pairs, shared = self._paired(copies)
        # First the leaves that one side has in parts: a copy of one that is refused has no fault of its own.
        joins: list[Join] = []
        refused: tuple[set[int], set[int]] = set(), set()
        for leaf in shared:
            made = self._leaf_joins.of_parts(leaf, members, (source_values, values))
            joins += made
            if not made:  # it has its fault: its leaves are not told besides to lack a partner
                refused[0].update(leaf.before.values())
                refused[1].update(leaf.after.values())
        # Then those that are whole, and their tied copies, of which the same is said.
        copied_pairs = _copied_pairs(copies, whole_pairs, refused)
        private = private_pairs(*tables, alone, [*whole_pairs, *copied_pairs], names.losers)
        joins += self._leaf_joins.of_pairs(whole_pairs, values, decisions, private)
        joins += self._leaf_joins.of_pairs(
            copied_pairs,
            _values_of_copies(values, copies.of[1]),
            _decisions_of_copies(decisions, copies.of[0]),
            private,
            copies,
        )
        joins = self._leaf_joins.with_copies(joins, copies)
        faults += private.faults()

        # Each of these has a fault or a pair by now, and is not told besides to have no place.
        for side, told in enumerate(self._told):
            told.update(refused[side], half_rooted.rows[side])
            for pair in private.pairs:
                told.add(pair[side])
        return joins

    def _paired(self, copies: Copies) -> tuple[list[tuple[int, int]], list[SharedLeaf]]:
        """Rows that are one whole leaf, by number, and leaves of which one side has parts.

        Tied copies are neither: they go with what they are copies of.
        """
        members, faults = self._names.members, self._faults
        said = (
            "one source leaf for one view leaf",
            "rename one of them, or say that the one which no rule renames is private",
        )
        copied = copies.of[0].keys()
        theirs = rows_by_path(self.source, self._names.paths, members[0], copied, said, faults)
        said = "one view leaf for one source leaf", "rename one of them"
        left_out = copies.of[1].keys() | self._excused.without_partner(1)
        seen = seen_paths(self.view, self._names.rules, members[1])
        ours = rows_by_path(self.view, seen, members[1], left_out, said, faults)

        pairs: list[tuple[int, int]] = []
        shared: list[SharedLeaf] = []
        for path, after in ours.items():
            before = theirs.get(path)
            if before is None:
                continue
            if same_parts(self._excused.tables, before, after):
                # q, k and v on both sides are three pairs, though a rule fuses them.
                for part, row_number in after.items():
                    pairs.append((before[part], row_number))
            else:
                shared.append(SharedLeaf(before, after))
        return pairs, shared

    # --- what has no place  ---

    def tell_idle_rules(self, joins: Sequence[Join]) -> None:
        """Adds the faults of rules that did nothing."""
        # A rule that says what a leaf's parts are has done something, whatever became of the leaf.
        dividing: set[object] = set()
        for members in self._names.members:
            for member in members.values():
                dividing.add(member.group.rule)
        known = {fault.path for fault in self._faults}
        tables, names = self._excused.tables, self._names.rules
        self._faults += idle_rules(*tables, self._rules, names, joins, dividing, known)

    def tell_unplaced(self, joins: Sequence[Join]) -> None:
        """Adds the faults of rows without a place, but for those of which a fault tells already."""
        paths = self._names.paths
        known = {fault.path for fault in self._faults}
        # The source's rows are known by what the view calls them, as all faults name them.
        for row_number in self._told[0]:
            known.add("/".join(paths[row_number]))
        for row_number in self._told[1]:
            known.add("/".join(self.view.rows[row_number].path))
        alignment = self._names.alignment
        self._faults += unplaced(
            self.source, self.view, paths, _pairs(joins), alignment, known, self._rules
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Excused:
    """Both layouts, with what rules say of leaves without a partner.

    Attributes:
        tables: The source and the view, with the defaults that rules declare.
        alone: For each side, the rules that excuse its rows.
        own_values: For each side, the rows that keep their own value, for the rule gives no other.
        parted: For each side, the rows that share no more than a name with the other side's.
        restarted: For each side, the rows that begin as the transformation makes them.
    """

    tables: tuple[Layout, Layout]
    alone: Alone
    own_values: Lone
    parted: Lone
    restarted: Lone

    @classmethod
    def of(
        cls,
        tables: tuple[Layout, Layout],
        rules: Sequence[Rule],
        missing_paths: MissingPaths,
        faults: list[Mismatch],
    ) -> _Excused:
        """Those by some rules."""
        alone = lone(tables, rules)
        tables = declare(tables, alone, rules, missing_paths, faults)
        own_values = owned(tables, alone)
        tables, parted = part(tables, alone, rules, missing_paths, faults)
        # A reset says how a leaf starts, whatever a rule that makes it private says: so it is last.
        tables, restarted = restart(tables, rules, missing_paths, faults)
        return cls(tables, alone, own_values, parted, restarted)

    def without_partner(self, side: int) -> frozenset[int]:
        """The rows of a side that no path is looked up for."""
        return self.parted[side] | self.restarted[side]


@dataclasses.dataclass(frozen=True, slots=True)
class _RowNames:
    """What the rows of both sides are called, so that one leaf has one path on both.

    Attributes:
        rules: The rules that rename or move.
        alignment: Which parts of the optimizer states are partners.
        decisions: What the rules say of rows of the source, by number.
        members: For each side, the rows that are parts of one leaf of the other.
        paths: The path of each row of the source in the view's words.
        losers: The paths of private rows of the source whose name others have in the view.
    """

    rules: Names
    alignment: Alignment
    decisions: Mapping[int, Decision]
    members: tuple[Members, Members]
    paths: Sequence[LogicalPath]
    losers: frozenset[LogicalPath]

    @classmethod
    def of(cls, excused: _Excused, rules: Sequence[Rule]) -> _RowNames:
        """Those by some rules."""
        (source, view), names = excused.tables, Names.of(rules)
        # `align` needs the renames, for parts of optimizers are told by the params that they keep
        # something for; and the paths of what they keep need `align`.
        alignment = align(source, view, names.called, _settled(rules))
        decisions = names.decisions(source.rows)
        members = (
            memberships(source, groups(source, view, rules)),
            memberships(view, groups(view, source, rules)),
        )
        lone_rows = excused.without_partner(0)
        paths = paths_in_view(source, names, decisions, alignment, lone_rows, members[0])
        losers = take_names_away(source, paths, decisions, excused.alone[0])
        return cls(names, alignment, decisions, members, paths, losers)


def _settled(rules: Sequence[Rule]) -> list[Settled]:
    """The parts of the optimizer state that rules place, which are aligned no more."""
    settled: list[Settled] = []
    for rule in rules:
        if isinstance(rule, (Move, Reset)):
            settled.append((rule.source, rule.view))
    return settled


# --- tied copies  ---


def _copied_pairs(
    copies: Copies, pairs: Sequence[tuple[int, int]], refused: tuple[set[int], set[int]]
) -> list[tuple[int, int]]:
    """The pairs of tied copies: each copy with what its original is paired with.

    Where ``head`` is a copy of ``embed``, and ``embed`` is row 3 here and row 5 there, the pairs are
    (3, 5) and (head, 5). Each copy that has a pair, or whose original has a fault, is added to the
    rows that are ``refused``: no fault is told of it besides.
    """
    for lost, originals in zip(refused, copies.of, strict=True):
        for copy, original in originals.items():
            if original in lost:
                lost.add(copy)
    onward = dict(pairs)
    back = {there: here for here, there in pairs}
    copied: list[tuple[int, int]] = []
    for copy, original in copies.of[0].items():
        if original in onward:
            copied.append((copy, onward[original]))
    for copy, original in copies.of[1].items():
        if original in back:
            copied.append((back[original], copy))
    for pair in copied:
        for side in (0, 1):
            if pair[side] in copies.of[side]:
                refused[side].add(pair[side])
    return copied


def _values_of_copies(values: Spoken[ValueRule], originals: Mapping[int, int]) -> Spoken[ValueRule]:
    """What is said of rows of the view, where what is said of a leaf is said of its copies too."""
    said = dict(values)
    for copy, original in originals.items():
        said[copy] = (*said.get(copy, ()), *said.get(original, ()))
    return said


def _decisions_of_copies(
    decisions: Mapping[int, Decision], originals: Mapping[int, int]
) -> Mapping[int, Decision]:
    """What is said of the names of rows of the source, where a copy has what its original has."""
    said = dict(decisions)
    for copy, original in originals.items():
        if original in decisions:
            said[copy] = decisions[original]
    return said


# --- a plain schema beside a train state  ---


def _as_weights(table: Layout, other: Layout, rules: Sequence[Rule]) -> Layout:
    """``table``; where it is a plain schema and the other one has one model, with its leaves called weights too.

    A plain schema says how a file's weights are called, and not that they are weights: beside nothing but weights there is
    no doubt, and beside a train state none where the model has one of its leaves. A rename that says where they are has
    settled it.

    So ``wte/weight`` of a file beside ``params/wte/weight`` of a state is ``params/wte/weight`` too.
    """
    # Where a state keeps its params and an average of them there are two, and a file may be either.
    models: set[LogicalPath] = set()
    for row in other.rows:
        if row.body and not row.optimizer:
            models.add(row.path[: row.body])
    if len(models) != 1:
        return table
    (model,) = models
    for row in table.rows:
        # It stands in a model already, or its paths begin with `params` as those of a state do.
        if row.body != 0 or row.path[0] == model[0]:
            return table
    is_state = any(row.body != 1 for row in other.rows)
    if is_state and not _has_a_weight(table, other):
        return table
    for rule in rules:
        if isinstance(rule, Rename) and model[0] in (*rule.source[:1], *rule.view[:1]):
            return table
    rows: list[Row] = []
    for row in table.rows:
        rows.append(dataclasses.replace(row, path=(*model, *row.path), body=len(model)))
    return dataclasses.replace(table, rows=tuple(rows))


def _has_a_weight(table: Layout, state: Layout) -> bool:
    """Whether a plain schema has one of the leaves of a state's model."""
    weights: set[LogicalPath] = set()
    for row in state.rows:
        if row.body and not row.optimizer:
            weights.add(row.model_path)
    return any(row.path in weights for row in table.rows)

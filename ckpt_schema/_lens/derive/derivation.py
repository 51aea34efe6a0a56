"""The join: two layouts in, a total lens out, or one error that names everything that has no place."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.sizes import ONE, Size, UndecidedError
from ckpt_schema._layouts.table import Layout, Row, called
from ckpt_schema._lens.cells import Cell
from ckpt_schema._lens.derive.alignment import Alignment, Owners, Settled, align
from ckpt_schema._lens.derive.bounds import composed_if_known
from ckpt_schema._lens.derive.causes import causes
from ckpt_schema._lens.derive.disputes import disputes
from ckpt_schema._lens.derive.exemptions import declare, lone, owned, part, restart
from ckpt_schema._lens.derive.globs import as_written, by_node
from ckpt_schema._lens.derive.idle_rules import (
    Contested,
    Unmatched,
    idle,
    partnered,
    without_spare_casts,
)
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import (
    UNTOLD,
    Told,
    ValueRule,
    spoken,
    told,
    unscaled,
    unshifted,
)
from ckpt_schema._lens.derive.moments import Moments
from ckpt_schema._lens.derive.names import Decision, Names, moved_paths, nowhere
from ckpt_schema._lens.derive.relations import relate, undecided
from ckpt_schema._lens.derive.rename_faults import HalfRooted, nameless
from ckpt_schema._lens.derive.repeats import unlike_moments
from ckpt_schema._lens.derive.scope import Hit, Scope, Spoken
from ckpt_schema._lens.derive.spelled_rows import with_spelled_axes
from ckpt_schema._lens.derive.ties import Copies
from ckpt_schema._lens.derive.unplaced import unplaced
from ckpt_schema._lens.derive.wholes import Member, both_divided, divided, groups, memberships
from ckpt_schema._lens.rules import Apart, Fuse, Move, Private, Rename, Reset, Rule
from ckpt_schema._lens.spellings import of_dim
from ckpt_schema._trees import chains
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["join_rows", "with_moments"]


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
    names_of = source.name, view.name
    source, view = (
        dataclasses.replace(table, name=name)
        for table, name in zip((source, view), called(source, view), strict=True)
    )
    several, written, faults = by_node(source, view, rules)
    rules = list({str(rule): rule for rule in several}.values())
    source, view = with_spelled_axes((source, view), rules, faults)
    unmatched, names, values = Unmatched(), Names.of(rules), spoken(rules)
    source, view = _as_weights(source, view, rules), _as_weights(view, source, rules)
    alone = lone((source, view), rules)
    sides = declare((source, view), alone, rules, unmatched, faults)
    kept = owned(sides, alone)
    sides, parted = part(sides, alone, rules, unmatched, faults)
    (source, view), anew = restart(sides, rules, unmatched, faults)
    left, right = (one | other for one, other in zip(parted, anew, strict=True))
    alignment = align(source, view, names.called, _settled(rules))
    decisions, said = names.decisions(source.rows), values.along(view.rows)
    known = {name: Size.of(size) for name, size in sizes.items()}
    moments = moments or Moments(source, view)
    members = tuple(
        memberships(table, groups(table, other, rules))
        for table, other in ((source, view), (view, source))
    )
    renamed = _renamed(source, names, decisions, alignment, left, members[0])
    losers = _losers(source, renamed, decisions, alone[0])
    faults += nameless(source, view, rules, names, decisions, unmatched)
    half_rooted = HalfRooted.of(source, view, names, decisions)
    faults += half_rooted.faults
    said_of_parts = _said_of_parts(source, rules, said, members)
    faults += disputes(source, view, rules, decisions, said, alone, members[0])
    copies = Copies.by(source, view, rules)
    twice = copies.of
    expected = "one source leaf for one view leaf"
    either = "rename one of them, or say that the one which no rule renames is private"
    theirs = _by_path(source, renamed, members[0], twice[0].keys(), (expected, either), faults)
    expected = "one view leaf for one source leaf"
    seen = _seen(view, names, members[1])
    ours = _by_path(
        view, seen, members[1], twice[1].keys() | right, (expected, "rename one of them"), faults
    )
    pairs: list[tuple[int, int]] = []
    joins: list[Join] = []
    refused: tuple[set[int], set[int]] = set(), set()
    for path, after in ours.items():
        before = theirs.get(path, {})
        if before.keys() == after.keys() and _alike((source, view), (before, after)):
            pairs += [(before[part], after[part]) for part in after]
        elif before:
            made = _divided(
                (source, view),
                (before, after),
                members,
                (said_of_parts, said),
                known,
                moments,
                faults,
            )
            joins += made
            if not made:  # it has its fault: its leaves are not told besides to lack a partner
                refused[0].update(before.values())
                refused[1].update(after.values())
    for lost, several in zip(refused, twice, strict=True):
        lost.update(copy for copy, of in several.items() if of in lost)
    onward, back = dict(pairs), {there: here for here, there in pairs}
    copied = [(copy, onward[of]) for copy, of in twice[0].items() if of in onward]
    copied += [(back[of], copy) for copy, of in twice[1].items() if of in back]
    for pair in copied:  # it is joined, or has its fault
        for side in (0, 1):
            refused[side].update({pair[side]} & twice[side].keys())
    contested = partnered(source, view, alone, [*pairs, *copied], losers)
    joins += _joined(source, view, said, decisions, pairs, contested, faults, known, moments)
    for copy, of in twice[1].items():  # what is said of a leaf is said of its copies
        said = {**said, copy: (*said.get(copy, ()), *said.get(of, ()))}
    told_of = {
        **decisions,
        **{copy: decisions[of] for copy, of in twice[0].items() if of in decisions},
    }
    joins += _joined(source, view, said, told_of, copied, contested, faults, known, moments, copies)
    joins = _with_copies(joins, copies, known, faults)
    faults += contested.faults()
    divided_by = {member.group.rule for side in members for member in side.values()}
    faults += idle(source, view, rules, names, joins, divided_by, {f.path for f in faults})
    joined = [pair for one in joins for pair in one.pairs]
    known = {f.path for f in faults}
    # Of these rows a fault is told, or they are meant to lack a partner.
    told: list[set[int]] = []
    for side in (0, 1):
        open_ = {pair[side] for pair in contested.pairs}
        told.append(open_.union(parted[side], kept[side], refused[side], half_rooted.rows[side]))
    known |= {"/".join(renamed[n]) for n in told[0]}
    known |= {"/".join(view.rows[n].path) for n in told[1]}
    faults += unplaced(source, view, renamed, joined, alignment, known, rules)
    if written:
        # Of a rule for many leaves, what does nothing to its node is no rule for that.
        spare = {fault.path for fault in faults if fault.found.startswith("none")}
        rules = [rule for rule in rules if str(rule) not in spare]
        faults = list(as_written(faults, written))
    if faults:
        faults = causes(source, view, joined, faults)
        parts = [*map(str, source.parts)], [*map(str, view.parts)]
        notes: list[str] = []
        if any(fault.kind == "chain" for fault in faults):
            notes = chains.side_by_side((source.name, view.name), parts)
        raise DerivationError(f"no lens from {source.name} to {view.name}", faults, notes)
    rules = without_spare_casts((source, view), rules, joins)
    source = dataclasses.replace(source, name=names_of[0])
    view = dataclasses.replace(view, name=names_of[1])
    return source, view, tuple(joins), tuple(rules)


def _as_weights(table: Layout, other: Layout, rules: Sequence[Rule]) -> Layout:
    """``table``; where it is a plain schema and the other one has one model, with its leaves called weights too.

    A plain schema says how a file's weights are called, and not that they are weights: beside nothing but weights there is
    no doubt, and beside a train state none where the model has one of its leaves. A rename that says where they are has
    settled it.
    """
    models = {row.path[: row.body] for row in other.rows if row.body and not row.optimizer}
    heads = {model[0] for model in models}
    plain = all(row.body == 0 and row.path[0] not in heads for row in table.rows)
    if not plain or len(models) != 1:
        return table
    (model,) = models
    if any(row.body != 1 for row in other.rows):
        weights = {row.model_path for row in other.rows if row.body and not row.optimizer}
        if weights.isdisjoint(row.path for row in table.rows):
            return table
    named = (rule for rule in rules if isinstance(rule, Rename))
    if any(heads & {*rule.source[:1], *rule.view[:1]} for rule in named):
        return table
    rows = [
        dataclasses.replace(row, path=(*model, *row.path), body=len(model)) for row in table.rows
    ]
    return dataclasses.replace(table, rows=tuple(rows))


_Members = Mapping[int, Member]
"""By the numbers of rows: what they are part of."""


def _seen(view: Layout, names: Names, members: _Members) -> list[LogicalPath]:
    """The path of each of the view's rows, parts under that of the whole; a rule calls it what the source does."""
    seen = [row.path for row in view.rows]
    for number, member in members.items():
        path = member.path
        seen[number] = (*path[: member.start], *names.called(path[member.start :]))
    return seen


def _by_path(
    table: Layout,
    found: Sequence[LogicalPath],
    members: _Members,
    left_out: Container[int],
    said: tuple[str, str],
    faults: list[Mismatch],
) -> dict[LogicalPath, dict[int | None, int]]:
    """The rows by path, and where they are parts of one leaf, by part."""
    rows: dict[LogicalPath, dict[int | None, int]] = {}
    for number, path in enumerate(found):
        if number in left_out:
            continue
        parts = rows.setdefault(path, {})
        part = members[number].number if number in members else None
        first = parts.setdefault(part, number)
        if first != number or (None in parts and len(parts) > 1):
            other = first if first != number else next(n for n in parts.values() if n != number)
            both = f"{'/'.join(table.rows[other].path)} and {'/'.join(table.rows[number].path)}"
            expected, hint = said
            faults.append(Mismatch("/".join(path), "ambiguous", expected, both, hint))
    return rows


def _parts(rows: Mapping[int | None, int]) -> dict[int, int]:
    """The rows that are parts, and not the whole."""
    return {part: number for part, number in rows.items() if part is not None}


def _alike(
    tables: tuple[Layout, Layout],
    rows: tuple[Mapping[int | None, int], Mapping[int | None, int]],
) -> bool:
    """Whether rows are one leaf each; if parts of one, whether both sides have the same parts."""
    if None in rows[0]:
        return True
    sizes: list[list[Size]] = []
    for table, by_part in zip(tables, rows, strict=True):
        numbers = [by_part[part] for part in sorted(by_part, key=str)]
        sizes.append([_elements(table.rows[number]) for number in numbers])
    return sizes[0] == sizes[1]


def _elements(row: Row) -> Size:
    """How many elements one repeat of a leaf has."""
    count = ONE
    for dim in row.leaf.dims:
        count *= of_dim(dim)
    return count


_Told = Mapping[int, Sequence[Hit[ValueRule]]]
"""What rules say of rows, by number."""


def _said_of_parts(
    source: Layout, rules: Sequence[Rule], said: _Told, members: Sequence[_Members]
) -> _Told:
    """What rules say of the source's rows that are parts, or have parts, by the source's own paths.

    A rule speaks of the view's rows. One for none of these may be for a part that the view has in
    a whole.
    """
    if not any(members):
        return {}
    used = {id(hit.rule) for hits in said.values() for hit in hits}
    return spoken([rule for rule in rules if id(rule) not in used]).along(source.rows)


def _divided(
    tables: tuple[Layout, Layout],
    rows: tuple[Mapping[int | None, int], Mapping[int | None, int]],
    members: Sequence[_Members],
    said: tuple[_Told, _Told],
    known: Mapping[str, Size],
    moments: Moments,
    faults: list[Mismatch],
) -> list[Join]:
    """The joins of a row on one side with rows on the other that are parts of it."""
    before, after = rows
    parts = _parts(before), _parts(after)
    if None in before and None in after:  # a whole beside its parts, which is told as ambiguous
        return []

    wrong: list[Mismatch] = []

    def told_of(side: int, number: int) -> Told:
        hits = said[side].get(number, ())
        if not hits:
            return UNTOLD
        pair = [
            tables[0].rows[next(iter(before.values()))],
            tables[1].rows[next(iter(after.values()))],
        ]
        pair[side] = tables[side].rows[number]
        found = with_moments(pair[0], pair[1], hits, told(pair[side], hits), moments)
        if isinstance(found, Mismatch):
            wrong.append(found)
            return UNTOLD
        return found

    def turned(side: int, number: int) -> Told:
        return told_of(1 - side, number).inverse

    if None in before:
        found = divided(tables, before[None], parts[1], members[1], told_of, known)
    elif None in after:
        found = divided((tables[1], tables[0]), after[None], parts[0], members[0], turned, known)
    else:
        found = both_divided(tables, parts, members, told_of, known)
    faults += wrong
    if wrong:
        return []
    if isinstance(found, Mismatch):
        row = tables[1].rows[next(iter(after.values()))]
        # A rule that names the order of the axes would speak of the whole, and not of a part.
        faults.append(dataclasses.replace(found, mirrors=row.mirrors, rules=()))
        return []
    return [one.inverse for one in found] if None in after else found


def _joined(
    source: Layout,
    view: Layout,
    values: Spoken[ValueRule],
    decisions: Mapping[int, Decision],
    pairs: Sequence[tuple[int, int]],
    contested: Contested,
    faults: list[Mismatch],
    known: Mapping[str, Size],
    moments: Moments,
    copies: Copies | None = None,
) -> list[Join]:
    """The joins of rows, by number, that are one leaf; of those that are private by a rule, that is the fault."""
    joins: list[Join] = []
    for one, other in pairs:
        row, hits = view.rows[other], values.get(other, ())
        said = _said(row, hits, decisions.get(one))
        compares = False, False
        if copies is not None:
            compares, said = copies.compares(one, other), copies.said(said, one, other)
        said = with_moments(source.rows[one], row, hits, said, moments)
        if isinstance(said, Mismatch):
            faults.append(said)
            continue
        made = relate(source.rows[one], row, said, known)
        if isinstance(made, Mismatch):
            if (one, other) not in contested.pairs:
                faults.append(made if copies is None else copies.told(made, one, other))
            continue
        joins.append(Join(made.cells(one, other, compares), said, plain=True))
    return joins


def with_moments(
    before: Row, after: Row, hits: Sequence[Hit[ValueRule]], said: Told, moments: Moments
) -> Told | Mismatch:
    """What is said of a leaf; what an optimizer keeps for one that rules scale and shift goes along."""
    wrong = unlike_moments(before, after, hits)
    if wrong is not None:
        return wrong
    started = moments.started(before, after, said)
    if isinstance(started, Mismatch):
        return started
    said = started
    if not hits:
        return said
    rows = after, before
    factor = next(filter(None, (unscaled(row, hits) for row in rows)), None)
    if factor is not None:
        power = moments.power(before, after, factor)
        if isinstance(power, Mismatch):
            return power
        said = said.scaled(factor, power)
    shift = next(filter(None, (unshifted(row, hits) for row in rows)), None)
    if shift is None:
        return said
    follows = moments.follows(before, after, shift)
    return follows if isinstance(follows, Mismatch) else said.shifted(shift, follows=follows)


def _with_copies(
    joins: list[Join], copies: Copies, known: Mapping[str, Size], faults: list[Mismatch]
) -> list[Join]:
    """The joins; copies of what is part of a leaf, or has parts, go where it goes."""
    with_copies = list(joins)
    for side, table in enumerate(copies.tables):
        by_row: dict[int, list[int]] = {}
        for at, one in enumerate(with_copies):
            for row in () if one.plain else (one.views if side else one.sources):
                by_row.setdefault(row, []).append(at)
        for copy, of in copies.of[side].items():
            order = dataclasses.replace(UNTOLD, axes=copies.orders[side][copy])
            for at in by_row.get(of, ()):
                one = with_copies[at]
                turned = one if side == 0 else one.inverse
                onward = [cell for cell in turned.cells if cell.source == of]
                made = relate(table.rows[copy], table.rows[of], order, known)
                if isinstance(made, Mismatch):
                    faults.append(made)
                    continue
                try:
                    cells = composed_if_known(made.cells(copy, of), onward, known)
                except UndecidedError as wrong:
                    faults.append(undecided(table.rows[copy], table.rows[of], wrong))
                    continue
                again: list[Cell] = []
                for cell in cells:
                    if not cell.is_constant:  # or else it is padding, which the copy has too
                        cell = dataclasses.replace(cell, compares=(cell.compares[0], True))
                    again.append(cell)
                both = dataclasses.replace(turned, cells=(*turned.cells, *again))
                with_copies[at] = both if side == 0 else both.inverse
    return with_copies


def _said(view: Row, hits: Sequence[Hit[ValueRule]], decision: Decision | None) -> Told:
    """What rules say of one leaf."""
    said = told(view, hits) if hits else UNTOLD
    rule = decision.inner.rule if decision is not None and decision.inner is not None else None
    if not isinstance(rule, Rename) or rule.axes is None:
        return said
    return dataclasses.replace(said, axes=rule.axes, rules=(*said.rules, rule))


def _settled(rules: Sequence[Rule]) -> list[Settled]:
    """The parts of the optimizer state that rules place."""
    moves: list[Settled] = [(rule.source, rule.view) for rule in rules if isinstance(rule, Move)]
    return moves + [(rule.source, rule.view) for rule in rules if isinstance(rule, Reset)]


def _renamed(
    source: Layout,
    names: Names,
    decisions: Mapping[int, Decision],
    alignment: Alignment,
    restarted: frozenset[int],
    members: _Members,
) -> list[LogicalPath]:
    """The path of each source row in the view's words."""
    owners = Owners(source)
    unnamed = dataclasses.replace(names, renames=Scope[Rename | Move](()))
    found: list[LogicalPath] = []
    for number, row in enumerate(source.rows):
        if number in restarted:
            found.append(nowhere(row))
            continue
        member = members.get(number)
        part = owners.part(row) if source.parts else None
        if member is None:
            found.append(moved_paths(row, decisions.get(number), part, alignment))
            continue
        # A rule that fuses says the view's words already.
        said = unnamed if isinstance(member.group.rule, Fuse) else names
        whole = dataclasses.replace(row, path=member.path)
        found.append(moved_paths(whole, said.decision(whole), part, alignment))
    return found


def _losers(
    source: Layout,
    renamed: list[LogicalPath],
    decisions: Mapping[int, Decision],
    alone: Spoken[Private | Apart],
) -> frozenset[LogicalPath]:
    """The paths of private rows whose name a rule gives to others, as EMA weights are served as the params."""
    given = {renamed[n] for n in decisions if renamed[n] != source.rows[n].path}
    losers: set[LogicalPath] = set()
    for number, row in enumerate(source.rows) if given else ():
        is_private = any(isinstance(hit.rule, Private) for hit in alone.get(number, ()))
        if row.path in given and number not in decisions and is_private:
            losers.add(row.path)
            renamed[number] = nowhere(row)
    return frozenset(losers)

"""What an optimizer keeps on one side alone: whether it starts anew, is left behind, or may be something on the other side.

Where nothing on the other side can be it, a ``reset`` says so and is certain: of a wrapper its own
leaves alone, by name, for what it wraps has a partner. Where something can, it is open, for a reset
would make zeros of what is there.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._frameworks.state_names import USUAL_COLLECTION
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.leaves import Init, kind_name
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Part, Row
from ckpt_schema._lens.derive.alignment import Alignment, Owners
from ckpt_schema._lens.derive.partners import form
from ckpt_schema._lens.derive.scope import is_mirror
from ckpt_schema._lens.rules import Move, Rename, Reset, Rule
from ckpt_schema.errors import Mismatch

__all__ = ["Lost", "is_param_row", "restarts"]

_SHOWN = 3  # candidates of one part; more do not help


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """What one side's optimizer state keeps without a partner.

    Attributes:
        near: The layout.
        far: The other.
        called: The path of each of its rows in the view's words.
        joined: The numbers of rows that are joined, and with which of the far side.
        rows: The numbers of those that must have a partner and have none.
        models: The numbers of such rows of the model.
        nameless: What is said where the far side may have it, and says of no leaf that it is an optimizer's.
        is_view: Whether the near layout is the view.
    """

    near: Layout
    far: Layout
    called: Sequence[LogicalPath]
    joined: Mapping[int, int]
    rows: Sequence[int]
    models: set[int]
    nameless: str
    is_view: bool

    def reset(self, path: LogicalPath) -> Reset:
        """The rule that starts it anew, or leaves it behind."""
        return Reset(view=path) if self.is_view else Reset(source=path)

    @property
    def verb(self) -> str:
        """What a reset does, as hints say it."""
        return "to start it anew" if self.is_view else "to leave it behind"


def restarts(states: tuple[Lost, Lost], alignment: Alignment) -> Iterator[Mismatch]:
    """A fault for each part of either optimizer state that has no partner, and for each row that has none of its own."""
    apart = _apart(states[0], alignment.apart[0]), _apart(states[1], alignment.apart[1])
    moves = _moves(*states)
    for side, state in enumerate(states):
        resets = _Resets(state)
        told: set[int] = set()
        for part, rows in apart[side].items():
            yield _part_fault(state, part, rows, apart[1 - side], resets)
            told.update(rows)
        lost = {"/".join(state.near.rows[number].path) for number in state.models}
        rest: list[int] = []
        for number in state.rows:
            # What places a row of the model places what mirrors it too.
            if number not in told and state.near.rows[number].mirrors not in lost:
                rest.append(number)
        if rest:
            yield from _Rows(state, states[1 - side], resets, moves).faults(rest)


# --- parts  ---


def _apart(state: Lost, paths_: frozenset[LogicalPath]) -> dict[Part, list[int]]:
    """The parts that have no partner, by their paths, with the numbers of their rows."""
    owners = Owners(state.near)
    parts: dict[Part, list[int]] = {}
    for number in state.rows if paths_ else ():
        part = owners.part(state.near.rows[number])
        if part is not None and part.path in paths_:
            parts.setdefault(part, []).append(number)
    return parts


def _part_fault(
    state: Lost,
    part: Part,
    rows: Sequence[int],
    others: Mapping[Part, Sequence[int]],
    resets: _Resets,
) -> Mismatch:
    """The fault of a part without a partner: what of the other side may be it, or what starts it anew.

    Args:
        state: What its side keeps without a partner.
        part: The part.
        rows: The numbers of its rows.
        others: The parts of the other side that have no partner, with theirs.
        resets: The rules that reset rows of its side.
    """
    fields = _fields(part, state.near, rows)
    alike = [other for other in others if other.type is part.type]
    # A state of another type that keeps fields of the same names may be what has become of it.
    if not alike:
        for other, alone in others.items():
            if _fields(other, resets.far, alone) == fields:
                alike.append(other)
    rules: tuple[Rule, ...] = ()
    if alike:
        shown = ", ".join("/".join(other.path) for other in alike[:_SHOWN])
        which = "it" if len(alike) == 1 else "one of them"
        hint = f"{shown} may be its partner: if {which} is, say so with a move; else reset both"
    elif state.near.initial is None:
        hint = _untold(state)
    else:
        rules = tuple(resets.of_part(part, rows))
        inner = "" if rules == (state.reset(part.path),) else "; what it wraps is carried over"
        hint = f"{', '.join(map(str, rules))} {state.verb}{inner}"
    alone = f"{part.type.__name__} ({', '.join(fields)}) in {state.near.name} alone"
    expected = f"its partner in the chain of {state.far.name}"
    return Mismatch("/".join(part.path), "chain", expected, alone, hint, rules=rules)


def _untold(state: Lost) -> str:
    """What to do about a state that nothing can start anew."""
    how = "declare it with its transformation, or read it with infer(..., tx=tx)"
    return f"to reset what {state.near.name} keeps, {how}"


def _fields(part: Part, table: Layout, numbers: Sequence[int]) -> list[str]:
    """What a part keeps, by name: ``count``, ``mu``, ``nu``."""
    start = len(part.path)
    names: dict[str, None] = {}
    for number in numbers:
        row = table.rows[number]
        # A field that is like the params ends where their own paths begin.
        name = "/".join(row.path[start : row.body]) if row.body else row.path[start]
        names[name] = None
    return list(names)


class _Resets:
    """The rules that reset rows without a partner: as few as there can be, and none that resets another row."""

    def __init__(self, state: Lost) -> None:
        self._state = state
        self.far = state.far
        self._owners = Owners(state.near)
        # By each path at or above a row: how many rows stand there, and how many have no partner.
        self._total: collections.Counter[LogicalPath] = collections.Counter()
        self._lost: collections.Counter[LogicalPath] = collections.Counter()
        for number, row in enumerate(state.near.rows):
            if not row.optimizer:
                continue
            free = number not in state.joined
            for end in range(1, len(row.path) + 1):
                self._total[row.path[:end]] += 1
                self._lost[row.path[:end]] += free

    def of_part(self, part: Part, numbers: Sequence[int]) -> Iterator[Reset]:
        """Those of a part: of the whole where it holds no other, else of each of its own fields."""
        depth = len(part.path)
        count = 0
        count_of_field: collections.Counter[LogicalPath] = collections.Counter()
        for row in self._state.near.rows:
            if row.path[:depth] == part.path and self._owners.part(row) is part:
                count += 1
                count_of_field[row.path[: depth + 1]] += 1
        # A wrapper holds what it wraps: a reset of the whole would lose moments that have a partner.
        if self._total[part.path] == count:
            yield self._state.reset(part.path)
            return
        reset_paths: dict[LogicalPath, None] = {}
        for number in numbers:
            path = self._state.near.rows[number].path
            field = path[: depth + 1]
            is_whole_field = count_of_field[field] == self._total[field]
            reset_paths[field if is_whole_field else path] = None
        yield from map(self._state.reset, reset_paths)

    def of_row(self, row: Row) -> Reset:
        """That of one row: of the whole field, or node of the model, where all in it have no partner."""
        part = self._owners.part(row)
        # Never more than a field: what else the part keeps has faults of its own.
        first = len(part.path) + 1 if part is not None else (row.body or len(row.path))
        for end in range(first, len(row.path)):
            if self._lost[row.path[:end]] == self._total[row.path[:end]]:
                return self._state.reset(row.path[:end])
        return self._state.reset(row.path)


# --- chains that do not tell their parts  ---


def _moves(source: Lost, view: Lost) -> list[Move]:
    """The rules for parts that keep the same, where a chain does not tell what they are: those that can be no other."""
    if source.near.parts and view.near.parts:
        return []
    ours, theirs = _kinds(source), _kinds(view)
    waiting = dict(ours)
    moves: list[Move] = []
    # A move must be the only one that fits, seen from either side, or it would be a guess.
    while waiting:
        path, kind = next(iter(waiting.items()))
        goals = _same_nodes(path, kind, ours, theirs)
        done = path
        if len(goals) == 1:
            done, there = goals[0]
            path_there = (*there, *path[len(done) :])
            if len(_same_nodes(path_there, kind, theirs, ours)) == 1:
                moves.append(Move(done, there))
        # What stands below the node has its answer, be it a move or none.
        waiting = {p: k for p, k in waiting.items() if p[: len(done)] != done}
    return moves


_Kinds = Mapping[LogicalPath, object]


def _kinds(state: Lost) -> _Kinds:
    """What each row without a partner is, wherever it stands, by its path in the view's words."""
    # Where a model stands is a part of its form; here the two sides may differ in that.
    return {state.called[number]: form(state.near.rows[number])[1:] for number in state.rows}


def _same_nodes(
    path: LogicalPath, kind: object, near: _Kinds, far: _Kinds
) -> list[tuple[LogicalPath, LogicalPath]]:
    """A node above a row and one of the other side, wherever both hold the same rows."""
    same: list[tuple[LogicalPath, LogicalPath]] = []
    for here, there in _cuts(path, kind, far):
        if _below(near, here) == _below(far, there):
            same.append((here, there))
    return same


def _cuts(path: LogicalPath, kind: object, others: _Kinds) -> set[tuple[LogicalPath, LogicalPath]]:
    """What would have to take the place of what on a path to make it another of its kind, in as few segments as will do."""
    cuts: set[tuple[LogicalPath, LogicalPath]] = set()
    for other, known in others.items():
        if known != kind or other[-1] != path[-1] or other == path:
            continue
        # How many segments both end in alike, of which the heads are told no more.
        same = 1
        while same < min(len(path), len(other)) - 1 and path[-1 - same] == other[-1 - same]:
            same += 1
        cuts.add((path[: len(path) - same], other[: len(other) - same]))
    return cuts


def _below(kinds: _Kinds, head: LogicalPath) -> _Kinds:
    """What stands below a node, by the rest of its path."""
    below: dict[LogicalPath, object] = {}
    for path, kind in kinds.items():
        if path[: len(head)] == head:
            below[path[len(head) :]] = kind
    return below


# --- rows of parts that have a partner  ---


@dataclasses.dataclass(frozen=True, slots=True)
class _Cure:
    """What to do about a row: why it has no partner, the rules that mend it for certain, and what these do."""

    told: str
    rules: tuple[Rule, ...] = ()
    does: str = ""


class _Rows:
    """Rows of one optimizer state whose parts have partners, or are not told."""

    def __init__(self, state: Lost, other: Lost, resets: _Resets, moves: Sequence[Move]) -> None:
        self._state, self._resets = state, resets
        self._moves = {(rule.view if state.is_view else rule.source): rule for rule in moves}
        self._owners = Owners(state.near), Owners(state.far)
        # The rows of the model by their paths, as mirrors write them.
        self._models: dict[str, int] = {}
        for number, row in enumerate(state.near.rows):
            if not row.optimizer:
                self._models["/".join(row.path)] = number
        self._is_bare = not any(row.optimizer for row in state.far.rows)
        # What the other side's optimizer keeps without a partner: by path, and by param.
        self._free: dict[LogicalPath, list[Row]] = {}
        taken = set(state.joined.values())
        for number, row in enumerate(state.far.rows):
            if row.optimizer and number not in taken:
                self._free.setdefault(other.called[number], []).append(row)
                if is_mirror(row):
                    self._free.setdefault(_name_of_param(row), []).append(row)

    def faults(self, numbers: Sequence[int]) -> Iterator[Mismatch]:
        """A fault for each, and one for all that mirror one leaf of the model."""
        rows = self._state.near.rows
        groups: dict[LogicalPath, list[int]] = {}
        for number in numbers:
            row = rows[number]
            name = _name_of_param(row) if is_mirror(row) else row.path
            groups.setdefault(name, []).append(number)
        for group in groups.values():
            row = rows[group[0]]
            cures = [self._cure(number) for number in group]
            # The first one speaks for all, with the rules of all: mu and nu are reset together.
            rules: dict[Rule, None] = {}
            for cure in cures:
                rules.update(dict.fromkeys(cure.rules))
            also: list[str] = []
            for number in group[1:]:
                also.append("/".join(rows[number].path[: rows[number].body]))
            done = f": {', '.join(map(str, rules))} {cures[0].does}" if rules else ""
            alone = f"{row.stored} in {self._state.near.name} alone"
            expected, hint = f"a partner in {self._state.far.name}", f"{cures[0].told}{done}"
            yield Mismatch(
                "/".join(row.path),
                "unplaced",
                expected,
                alone,
                hint,
                rules=tuple(rules),
                also=tuple(also),
            )

    def _cure(self, number: int) -> _Cure:
        """What to do about one row: from what joins it, if that is known, to what gives it up."""
        state, row, called = self._state, self._state.near.rows[number], self._state.called[number]
        for end in range(1, len(called)):
            moved = self._moves.get(called[:end])
            if moved is not None:
                return _Cure("nothing else keeps the same", (moved,), "joins them")
        if state.nameless:
            return _Cure(state.nameless)
        # Only what knows its transformation can be started anew, so a reset is told of no other.
        if self._is_bare and state.near.initial is not None:
            whole = tuple(state.reset(path) for path, _ in state.near.states)
            return _Cure(f"{state.far.name} keeps no optimizer state", whole, state.verb)
        if not self._is_bare and not (state.near.parts and state.far.parts):
            told = "a chain that does not tell its parts: any of the other side's may be it"
            return _Cure(f"{told}; say which with a move, or read both with infer(..., tx=tx)")
        if state.near.initial is None:
            return _Cure(_untold(state))
        reset = (self._resets.of_row(row),)
        free = self._free.get(called, ())
        # A rule has reset the one without the other: both ends of a pair have to be said.
        if any(other.default == Init() for other in free):
            return _Cure(f"{state.far.name} has it reset", reset, "to leave this one behind too")
        if is_mirror(row):
            return self._mirror(row, reset)
        if free:
            return _Cure("two of one name that no rule joins: say so with a rename, or reset both")
        return _Cure(f"{state.far.name} keeps no such thing", reset, state.verb)

    def _mirror(self, row: Row, reset: tuple[Rule, ...]) -> _Cure:
        """Why one side keeps something for a leaf that both have, and the other does not."""
        state, name = self._state, "/".join(row.model_path)
        here = self._models.get(row.mirrors)
        there = None if here is None else state.joined.get(here)
        if here is None or there is None:
            return _Cure(f"{name} itself is private", reset, state.verb)
        near, far = state.near.rows[here], state.far.rows[there]
        if is_param_row(near) and not is_param_row(far):
            kinds = f"{name} is {_kind(near)} here and {_kind(far)} there"
            return _Cure(f"{kinds}: declare it alike, by collection= in Linen and type= in NNX")
        # The param may be called otherwise there, and what is kept for it goes by that name.
        same: list[Row] = []
        for other in self._free.get(_name_of_param(far), ()):
            if self._is_field(row, other):
                same.append(other)
        if len(same) == 1 and form(same[0])[1:] == form(row)[1:]:
            pair = (same[0], row) if state.is_view else (row, same[0])
            told = f"{state.far.name} keeps it in {'/'.join(same[0].path[: same[0].body])}"
            return _Cure(told, (Rename(pair[0].path, pair[1].path),), "joins them")
        if same:
            listed = ", ".join(paths.format_path(other.key) for other in same[:_SHOWN])
            return _Cure(f"one of {listed} may be it: say which with a rename")
        axes = ""
        if len(near.stored.dims) != len(far.stored.dims):
            ours = dims_.format_dims(near.stored.dims)
            theirs = dims_.format_dims(far.stored.dims)
            axes = f", the number of its axes: [{ours}] here, [{theirs}] there"
        why = f"wrt=, a mask, labels{axes}"
        return _Cure(f"{state.far.name} does not train {name} this way ({why})", reset, state.verb)

    def _is_field(self, row: Row, other: Row) -> bool:
        """Whether two rows are one field of parts of one type."""
        mine, theirs = self._owners[0].part(row), self._owners[1].part(other)
        if mine is None or theirs is None or mine.type is not theirs.type:
            return False
        return row.path[len(mine.path) : row.body] == other.path[len(theirs.path) : other.body]


def _name_of_param(row: Row) -> LogicalPath:
    """What all that is kept for one param goes by; the empty segment keeps it apart from real paths."""
    return ("", *row.model_path)


def is_param_row(row: Row) -> bool:
    """Whether a leaf is a param of a model, and no statistic of it or the like."""
    if not isinstance(row.kind, type):
        return row.kind in (None, USUAL_COLLECTION)
    from ckpt_schema._frameworks import variables

    return variables.is_param(row.kind)


def _kind(row: Row) -> str:
    return kind_name(row.kind) or "of no kind"

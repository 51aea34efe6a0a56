"""Leaves that have no place on the other side, and what would give them one: hints that can all be followed together."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema import dims as dims_
from ckpt_schema import paths
from ckpt_schema.errors import Mismatch
from ckpt_schema.leaves import Fill, FreshKey
from ckpt_schema.lens.align import Alignment, Owners
from ckpt_schema.lens.rules import Move, Private, Rename, Reset
from ckpt_schema.paths import LogicalPath
from ckpt_schema.table import Layout, Part, Row

__all__ = ["unplaced"]

_SHOWN = 3  # candidates of one leaf; more do not help
_COMPARED = 200  # kinds of leaves on each side; beyond that, names are compared no more


def unplaced(
    source: Layout,
    view: Layout,
    renamed: Sequence[LogicalPath],
    joined: Sequence[tuple[int, int]],
    alignment: Alignment,
    known: set[str],
) -> Iterator[Mismatch]:
    """Rows of both sides that are neither joined nor private with a default, each with its likeliest partner.

    Rows of the optimizer state that mirror an unplaced row of the model are named on its line: what places one places all.
    A part of the optimizer state that has no partner is named as a whole.

    Args:
        source: The source's layout.
        view: The view's layout.
        renamed: The path of each row of the source in the view's words.
        joined: The numbers of rows that are joined, of the source and of the view.
        alignment: Which parts of the optimizer states are partners.
        known: Paths that have a fault already.
    """
    onward, inverse = dict(joined), {there: here for here, there in joined}
    left = [
        r
        for n, (p, r) in enumerate(zip(renamed, source.rows, strict=True))
        if n not in onward and "/".join(p) not in known
    ]
    right = [
        r for n, r in enumerate(view.rows) if n not in inverse and "/".join(r.path) not in known
    ]
    lost = [r for r in left if _required(r)], [r for r in right if _required(r)]
    if not any(lost):
        return
    likely = _likeliest(left, right)
    sides = (
        _Side(source, view, onward, likely[0], swapped=False),
        _Side(view, source, inverse, likely[1], swapped=True),
    )
    whole = _parts(source, lost[0], alignment.apart[0]), _parts(view, lost[1], alignment.apart[1])
    for n, (rows, side) in enumerate(zip(lost, sides, strict=True)):
        yield from (
            _chain_fault(side, part, found, whole[1 - n]) for part, found in whole[n].items()
        )
        told = {row.path for found in whole[n].values() for row in found}
        for row, mirrors in _with_mirrors([row for row in rows if row.path not in told]):
            found = f"{row.stored} in {side.near.name} alone"
            yield Mismatch(
                "/".join(row.path),
                "unplaced",
                f"a partner in {side.far.name}",
                found,
                side.hint(row),
                mirrors=row.mirrors,
                also=tuple(mirrors),
            )


def _parts(
    table: Layout, lost: Sequence[Row], apart: frozenset[LogicalPath]
) -> dict[Part, list[Row]]:
    """The parts of the optimizer state that are lost as a whole, with their rows."""
    owners = Owners(table)
    found: dict[Part, list[Row]] = {}
    for row in lost if apart else ():
        part = owners.part(row)
        if part is not None and part.path in apart:
            found.setdefault(part, []).append(row)
    return found


def _chain_fault(
    side: _Side, part: Part, rows: Sequence[Row], others: Mapping[Part, Sequence[Row]]
) -> Mismatch:
    fields = _fields(part, rows)
    alike = [other for other in others if other.type is part.type]
    alike = alike or [other for other, found in others.items() if _fields(other, found) == fields]
    moves = [
        Move(*((other.path, part.path) if side.swapped else (part.path, other.path)))
        for other in alike[:_SHOWN]
    ]
    cures = [f"{rule} if that is its partner" for rule in moves]
    if side.near.initial is not None:
        cures.append(
            f"{_reset(side, part.path)} to {'start it anew' if side.swapped else 'leave it behind'}"
        )
    else:
        cures.append(f"declare {side.near.name} with its transformation, and it can be reset")
    found = f"a {part.type.__name__} of {', '.join(fields)} in {side.near.name} alone"
    return Mismatch(
        "/".join(part.path),
        "chain",
        f"its partner in the chain of {side.far.name}",
        found,
        "; ".join(cures),
    )


def _fields(part: Part, rows: Sequence[Row]) -> list[str]:
    """What a part keeps, by name."""
    names = (
        "/".join(row.path[len(part.path) : row.body]) if row.body else row.path[len(part.path)]
        for row in rows
    )
    return list(dict.fromkeys(names))


def _reset(side: _Side, path: LogicalPath) -> Reset:
    return Reset(view=path) if side.swapped else Reset(source=path)


def _required(row: Row) -> bool:
    return row.default is None and not row.optional


def _with_mirrors(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """Each row that mirrors no other of ``rows``, with the places in the optimizer state of those that mirror it."""
    groups: dict[LogicalPath, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.path if row.body is None else ("", *row.path[row.body :]), []).append(
            row
        )
    return [
        (first, ["/".join(row.path[: row.body]) for row in mirrors])
        for first, *mirrors in groups.values()
    ]


# --- what would place a row  ---


@dataclasses.dataclass(frozen=True, slots=True)
class _Side:
    """The rows of one layout that have no place in another, seen from the first."""

    near: Layout
    far: Layout
    joined: Mapping[int, int]
    candidates: Mapping[LogicalPath, Sequence[Row]]
    swapped: bool  # whether the near layout is the view

    def hint(self, row: Row) -> str:
        """What places ``row``: the rename that joins it to its likeliest partner, or a default."""
        untrained = self._untrained(row)
        if untrained:
            return untrained
        cure = self._default(row)
        likely = self.candidates.get(row.path, ())
        if not likely:
            return cure
        if len(likely) > 1:
            shown = ", ".join(
                [
                    *(paths.format_path(other.key) for other in likely[:_SHOWN]),
                    *["..."][: len(likely) - _SHOWN],
                ]
            )
            rule = f"rename(..., {'/'.join(row.path[row.body or 0 :])!r})"
            return f"likeliest one of {shown}: {rule} says which, or {cure}"
        (other,) = likely
        likeliest = f"likeliest: {paths.format_path(other.key)}"
        if [r.size for r in row.repeats] != [r.size for r in other.repeats]:
            return f"{likeliest}; {_repeated(row, other)}, or {cure}"
        return f"{likeliest}; {self._joining(row, other)} joins them, or {cure}"

    def _default(self, row: Row) -> str:
        """What lets ``row`` be private."""
        if row.path[0] == "opt_state" and self.near.initial is not None:
            return f"let it start anew: {_reset(self, row.path)}"
        path = row.path if _mirror(row) else row.path[row.body or 0 :]
        return f"give it a default: field(default=...) or {Private(path, FreshKey(0) if row.leaf.is_key else Fill(0))}"

    def _untrained(self, row: Row) -> str | None:
        """Why there is a part of the optimizer state for a leaf on this side alone: it is no param on the other."""
        body = row.body or 0
        model = {
            r.path[r.body or 0 :]: n
            for n, r in enumerate(self.near.rows)
            if r.body is not None and not _mirror(r)
        }
        number = model.get(row.path[body:]) if _mirror(row) else None
        there = self.joined.get(number) if number is not None else None
        if (
            number is None
            or there is None
            or not any(_mirror(r) and r.path[:body] == row.path[:body] for r in self.far.rows)
        ):
            return None
        kinds = [_kind(table.rows[n]) for table, n in ((self.near, number), (self.far, there))]
        path = "/".join(row.path[body:])
        return f"{path} is {kinds[0]} here and {kinds[1]} there: declare it alike, by collection= in Linen and type= in NNX"

    def _joining(self, row: Row, other: Row) -> Rename | Move:
        return _joining(other, row) if self.swapped else _joining(row, other)


def _mirror(row: Row) -> bool:
    return row.body is not None and row.path[0] == "opt_state"


def _kind(row: Row) -> str:
    return row.kind if isinstance(row.kind, str) else getattr(row.kind, "__name__", "of no kind")


def _repeated(row: Row, other: Row) -> str:
    if _mirror(row) or _mirror(other):
        return (
            "what stacked layers share cannot be told apart: stack them on both sides or on neither"
        )
    there, here = (
        " x ".join(dims_.format_dim(r.size) for r in each.repeats) for each in (other, row)
    )
    return f"repeats there: {there or 'none'}, here: {here or 'none'}; declare scan= or list[...] on both sides"


def _joining(source: Row, view: Row) -> Rename | Move:
    """The shortest rule that makes ``source`` the partner of ``view``."""
    start = source.body or 0
    start = start if source.path[:start] == view.path[:start] else 0
    before, after = list(source.path[start:]), list(view.path[start:])
    while len(before) > 1 and len(after) > 1 and before[-1] == after[-1]:
        before.pop()
        after.pop()
    kind = Move if before[0] == after[0] == "opt_state" else Rename
    return kind(tuple(before), tuple(after))


# --- which rows are alike  ---

_Group = tuple[
    Any, str
]  # what its rows must share with those of the other side, and their path without its numbers
_Candidates = dict[LogicalPath, Sequence[Row]]


def _likeliest(left: Sequence[Row], right: Sequence[Row]) -> tuple[_Candidates, _Candidates]:
    """For rows of either side the one row, or the several, that they most likely are on the other.

    Rows whose names differ in numbers alone are paired in the order of the numbers, so that no two pairs cross; where one side
    has more of them than the other, each might be any.
    """
    found: tuple[_Candidates, _Candidates] = {}, {}
    siblings = [_siblings(rows) for rows in (left, right)]

    def remaining(key: Callable[[Row, _Siblings], Any]) -> list[dict[_Group, list[Row]]]:
        groups: list[dict[_Group, list[Row]]] = []
        for rows, beside, done in zip((left, right), siblings, found, strict=True):
            groups.append({})
            for row in rows:
                if row.path not in done:
                    groups[-1].setdefault(
                        (key(row, beside), "/".join(paths.outline(row.path))), []
                    ).append(row)
        return groups

    for key, least in ((_place, 0.5), (_form, 0.5), (_anything, 0.8)):
        groups = remaining(key)
        for a, b in _closest(list(groups[0])[:_COMPARED], list(groups[1])[:_COMPARED], least):
            _pair(groups[0][a], groups[1][b], *found)
    first, second = (
        _by_form([row for rows in groups.values() for row in rows]) for groups in remaining(_form)
    )
    for form in first.keys() & second.keys():
        if len(first[form]) == len(second[form]) == 1:
            _pair(first[form], second[form], *found)
    return found


def _by_form(rows: Sequence[Row]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(_form(row, {}), []).append(row)
    return found


_Siblings = Mapping[LogicalPath, frozenset[Any]]


def _siblings(rows: Sequence[Row]) -> _Siblings:
    """What stands in each node: the names and types of its leaves."""
    found: dict[LogicalPath, set[Any]] = {}
    for row in rows:
        found.setdefault(row.path[:-1], set()).add((row.path[-1], row.leaf))
    return {path: frozenset(names) for path, names in found.items()}


def _place(row: Row, siblings: _Siblings) -> Any:
    return row.path[: row.body or 0], row.leaf, siblings[row.path[:-1]]


def _form(row: Row, _: _Siblings) -> Any:
    return row.path[: row.body or 0], row.leaf


def _anything(row: Row, _: _Siblings) -> Any:
    return None


def _closest(
    left: Sequence[_Group], right: Sequence[_Group], least: float
) -> Iterator[tuple[_Group, _Group]]:
    """Pairs of groups, the most alike first, each group in one pair at most."""
    scored: list[tuple[float, int, int]] = []
    for i, (kind, name) in enumerate(left):
        for j, (other_kind, other) in enumerate(right):
            matcher = difflib.SequenceMatcher(None, name, other, autojunk=False)
            if kind == other_kind and matcher.quick_ratio() >= least and matcher.ratio() >= least:
                scored.append((-matcher.ratio(), i, j))
    taken: tuple[set[int], set[int]] = set(), set()
    for _, i, j in sorted(scored):
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            yield left[i], right[j]


def _pair(
    left: Sequence[Row], right: Sequence[Row], lefts: _Candidates, rights: _Candidates
) -> None:
    left, right = (
        sorted(rows, key=lambda row: paths.natural("/".join(row.path))) for rows in (left, right)
    )
    alone = len(left) == len(right)
    for rows, others, found in ((left, right, lefts), (right, left, rights)):
        found |= {row.path: [others[n]] if alone else others for n, row in enumerate(rows)}

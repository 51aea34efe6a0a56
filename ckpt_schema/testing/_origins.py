"""An oracle: where each element of a lens's result comes from, told by layouts and by what rules are documented to mean.

It shares no code with what it is an oracle of: elements are numbered, the numbers are moved about in plain NumPy by the names
of axes and layers, and nothing of the lens but the declared layouts and the classes of the rules is looked at.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row, Series
from ckpt_schema._lens.ancestry import Derivation
from ckpt_schema._lens.rules import (
    Apart,
    Fuse,
    Move,
    Rename,
    Reset,
    Tie,
)
from ckpt_schema.testing._named_arrays import (
    FILLS,
    Ids,
    Named,
    NamedRow,
    Sizes,
    bases,
    frame_of,
    read_numbers,
    words,
    write_numbers,
)
from ckpt_schema.testing._provenance import Line, Origin, order_of_copy
from ckpt_schema.testing._shares import PartOf, Share, fused, layers_of, merged_shares, split_axis
from ckpt_schema.testing._statements import Statement, rules_over, start_in, statement_of
from ckpt_schema.testing._sums import rules_without_sums

__all__ = ["origins"]

T = TypeVar("T")
_UNKNOWN = -1  # comes from no leaf that anything is known of


# --- How both rows of a pair are looked at  ---


def _framed(rows: tuple[Row, Row], said: Statement) -> tuple[NamedRow, NamedRow]:
    """Both rows of a pair, the source's first, with what rules say of their axes."""
    raw = said.raw and bool(words(rows[0])) != bool(words(rows[1]))
    frames = [frame_of(row, raw=raw and not words(row)) for row in rows]
    for number, (small, large, _) in enumerate(said.pads):
        places = [[_axis(frame, dim) for dim in (large, small)] for frame in frames]
        for side in (0, 1):
            at = places[side][0]
            if at is not None and places[1 - side][1] is not None:
                axes = list(frames[side].axes)
                axes[at] = ("axis", small)
                padded = {**frames[side].large, at: (large, number)}
                frames[side] = dataclasses.replace(frames[side], axes=tuple(axes), large=padded)
                break
    for dim in said.flips:
        for side in (0, 1):
            at = _axis(frames[side], dim)
            if at is not None:
                flipped = frames[side].flipped | {at}
                frames[side] = dataclasses.replace(frames[side], flipped=flipped)
                break
    return _called(frames[0], frames[1], said.order)


def _called(
    one: NamedRow, other: NamedRow, order: tuple[int, ...] | None
) -> tuple[NamedRow, NamedRow]:
    """Both frames, with axes of one dim told apart: by the order that a rule says, or by what their classes call them."""
    both = one, other
    own = [frame.own() for frame in both]
    if order is not None:
        if any(len(each) != len(order) for each in own):
            return both
        places = [*range(len(order))], [*order]
        named = [
            {at: _numbered(frame, at, place) for at, place in zip(axes, side, strict=True)}
            for frame, axes, side in zip(both, own, places, strict=True)
        ]
        return dataclasses.replace(one, called=named[0]), dataclasses.replace(
            other, called=named[1]
        )
    atoms = [_atoms(frame) for frame in both]
    names: list[dict[str, list[str]]] = [{}, {}]
    for side, found in zip(names, atoms, strict=True):
        for _, factor, name in found:
            side.setdefault(factor, []).append(name)
    told = {
        factor
        for factor, each in names[0].items()
        if len(each) > 1 and sorted(each) == sorted(names[1].get(factor, []))
    }
    if not told:
        return both
    called: list[dict[int, tuple[str, ...]]] = [{}, {}]
    for side, found in zip(called, atoms, strict=True):
        for at, factor, name in found:
            word = f"{factor} {name}" if factor in told else factor
            side[at] = (*side.get(at, ()), word)
    return dataclasses.replace(one, called=called[0]), dataclasses.replace(other, called=called[1])


def _numbered(frame: NamedRow, at: int, place: int) -> tuple[str, ...]:
    return tuple(f"axis {place}, {n}" for n, _ in enumerate(frame.axes[at][1]))


def _atoms(frame: NamedRow) -> list[tuple[int, str, str]]:
    """Each factor of the leaf's own axes: of which axis, what it is called, and what its class calls it."""
    own: Sequence[Any] = getattr(frame.row.leaf, "own", ())
    found: list[tuple[int, str, str]] = []
    for number, at in enumerate(frame.own()):
        dim = frame.axes[at][1]
        parts = own[number].parts if number < len(own) else tuple(map(str, dim))
        if len(parts) != len(dim):
            parts = (str(own[number]),) * len(dim)
        found += [(at, str(factor), name) for factor, name in zip(dim, parts, strict=True)]
    return found


def _axis(frame: NamedRow, dim: Dim) -> int | None:
    """Which axis of its own a leaf has with this dim."""
    found = (at for at, axis in enumerate(frame.axes) if axis == ("axis", dim))
    return next(found, None)


# --- Which rows are one leaf  ---


class _Side:
    """One layout of a derivation: which leaf each of its rows is, in the words of the view."""

    def __init__(self, origin: Derivation, number: int) -> None:
        self.layout = (origin.source, origin.view)[number]
        self.other = (origin.view, origin.source)[number]
        self.rules, self.number = rules_without_sums(origin), number
        self.moved = _moved(origin) if number == 0 else {}
        rows = self.layout.rows
        self.paths = {row.path: at for at, row in enumerate(rows)}
        tied = {at: found for at, row in enumerate(rows) if (found := self._original(row))}
        self.copies = {at: of for at, (of, _) in tied.items()}
        self.tied_axes = {at: axes for at, (_, axes) in tied.items()}
        self.parts = {
            at: part for at, row in enumerate(rows) if (part := self._part(row)) is not None
        }

    def _original(self, row: Row) -> tuple[int, tuple[int, ...] | None] | None:
        """The row that a row is a copy of, by a rule that ties them, and the order of its axes."""
        ties = [(rule.copy, rule) for rule in self.rules if isinstance(rule, Tie)]
        for start, rule in rules_over(row, ties):
            of = (*row.path[:start], *rule.of, *row.path[start + len(rule.copy) :])
            if of in self.paths:
                return self.paths[of], rule.axes
        return None

    def _part(self, row: Row) -> PartOf | None:
        several = [*self.layout.series, *(r for r in self.rules if isinstance(r, (Fuse, Series)))]
        members: list[tuple[LogicalPath, tuple[Fuse | Series, int]]] = []
        for rule in several:
            parts = rule.parts if isinstance(rule, Fuse) else rule.members
            there = all(_has(self.layout, part) for part in parts)
            if there and (isinstance(rule, Series) or _has(self.other, rule.whole)):
                members += [(part, (rule, number)) for number, part in enumerate(parts)]
        found = rules_over(row, members)
        lists = [hit for hit in found if isinstance(hit[1][0], Series)]
        for start, (rule, number) in [*lists, *found]:
            return PartOf(rule, number, start)
        return None

    def path(self, at: int) -> LogicalPath | None:
        """The path of a row in the words of the view; None where nothing is known, or it has no partner."""
        row = self.layout.rows[at]
        if any(isinstance(r, Apart) and start_in(row, r.path) is not None for r in self.rules):
            return None
        for rule in self.rules:
            reset = (rule.source, rule.view)[self.number] if isinstance(rule, Reset) else None
            if reset is not None and row.path[: len(reset)] == reset:
                return None
        part, path = self.parts.get(at), row.path
        if part is not None:
            rule = part.rule
            member = (rule.parts if isinstance(rule, Fuse) else rule.members)[part.number]
            whole = rule.whole if isinstance(rule, Fuse) else rule.path
            path = (*path[: part.start], *whole, *path[part.start + len(member) :])
        fused = part is not None and isinstance(part.rule, Fuse)
        if self.number == 1:
            return (*path[: row.body or 0], *self._called(path[row.body or 0 :])) if fused else path
        return self._placed(path if fused else self._renamed(row, path), row)

    def _called(self, path: LogicalPath) -> LogicalPath:
        rules = [
            r for r in self.rules if isinstance(r, Rename) and path[: len(r.source)] == r.source
        ]
        if not rules:
            return path
        rule = max(rules, key=lambda rule: len(rule.source))
        return (*rule.view, *path[len(rule.source) :])

    def order(self, at: int) -> tuple[int, ...] | None:
        """Which axis of a row of the source each of the view is, where a rename says so."""
        row = self.layout.rows[at]
        said = [(rule.source, rule) for rule in self.rules if isinstance(rule, Rename)]
        hits = rules_over(row, said)
        return getattr(hits[0][1], "axes", None) if hits else None

    def _renamed(self, row: Row, path: LogicalPath) -> LogicalPath:
        """A path of the source after the rename that wins."""
        said = [(rule.source, rule) for rule in self.rules if isinstance(rule, Rename)]
        hits = rules_over(dataclasses.replace(row, path=path), said)
        if not hits:
            return path
        start, rule = hits[0]
        return (*path[:start], *rule.view, *path[start + len(rule.source) :])

    def _placed(self, path: LogicalPath, row: Row) -> LogicalPath | None:
        """A path after what is said of parts of the optimizer state, and what is found of these by their types."""
        for rule in self.rules:
            if isinstance(rule, Move) and row.path[: len(rule.source)] == rule.source:
                return (*rule.view, *path[len(rule.source) :])
        homes = [home for home in self.moved if row.path[: len(home)] == home]
        if not homes:
            return path
        home = max(homes, key=len)
        there = self.moved[home]
        return None if there is None else (*there, *path[len(home) :])


def _has(layout: Layout, path: LogicalPath) -> bool:
    return any(start_in(row, path) is not None for row in layout.rows)


def _moved(origin: Derivation) -> dict[LogicalPath, LogicalPath | None]:
    """Where the parts of the source's optimizer state are in the view: None where types do not tell beyond doubt."""
    sides = origin.source.parts, origin.view.parts
    if [str(part) for part in sides[0]] == [str(part) for part in sides[1]]:
        return {}
    counts = [collections.Counter(part.type for part in parts) for parts in sides]
    there = {part.type: part.path for part in sides[1]}
    found: dict[LogicalPath, LogicalPath | None] = {}
    for part in sides[0]:
        alone = counts[0][part.type] == 1 == counts[1][part.type]
        found[part.path] = there[part.type] if alone else None
    return found


# --- The oracle  ---


def origins(
    steps: Sequence[Derivation], sizes: Sizes, pairs: Iterable[tuple[int, int]] = ()
) -> dict[int, Origin]:
    """Where the leaves of each row of the last layout come from, for all rows that something is known of.

    Args:
        steps: What the lens was derived from, one after the other.
        sizes: The size of every dim, in elements.
        pairs: Rows of the first layout and of the last that are known to be one leaf, where paths do not tell.
    """
    known = [(one, other) for one, other in pairs] if len(steps) == 1 else []
    # Sizes that only layouts in between have are any: what was padded there is cut off again.
    names = [name for step in steps for table in step.ends for name in table.names()]
    sizes = {**dict.fromkeys(names, max(sizes.values(), default=0) + 1), **sizes}
    found = _step(steps[0], sizes, known)
    for before, after in itertools.pairwise(steps):
        found = _through(before.ends[1], after, found, sizes)
    return found


def _step(origin: Derivation, sizes: Sizes, pairs: Sequence[tuple[int, int]]) -> dict[int, Origin]:
    return _Step(origin, origin.sized(sizes)).found(pairs)


class _Step:
    """One derivation, gone through in its direction."""

    def __init__(self, origin: Derivation, sizes: Sizes) -> None:
        self.origin, self.sizes = origin, sizes
        sides = _Side(origin, 0), _Side(origin, 1)
        self.source = sides[0]
        self.sides = sides[::-1] if origin.inverted else sides
        self.bases = bases(self.sides[0].layout, sizes)

    def found(self, pairs: Sequence[tuple[int, int]]) -> dict[int, Origin]:
        here, there = (self._addressed(side) for side in self.sides)
        made: dict[int, Origin] = {}
        for path, after in there.items():
            before = here.get(path, {})
            if before.keys() == after.keys():
                for part in after:
                    self._add(made, after[part], self._pair(before[part], after[part]))
            elif None in before:
                self._add_parts(made, before[None], after)
            elif None in after and before:
                self._add(made, after[None], self._whole(before, after[None]))
        self._add_copies(made)
        for one, other in pairs:
            if other not in made:
                self._add(made, other, self._pair(one, other))
        return made

    def _addressed(self, side: _Side) -> dict[LogicalPath, dict[int | None, int]]:
        """The rows of a side by the path that they have in the words of the view, and by part."""
        found: dict[LogicalPath, dict[int | None, int]] = {}
        for at in range(len(side.layout.rows)):
            path = None if at in side.copies else side.path(at)
            if path is not None:
                part = side.parts[at].number if at in side.parts else None
                found.setdefault(path, {})[part] = at
        return found

    def _add(self, made: dict[int, Origin], row: int, origin: Origin | None) -> None:
        if origin is not None:
            made[row] = origin

    def _add_copies(self, made: dict[int, Origin]) -> None:
        """What is stored twice is made of what it is a copy of."""
        for copy, of in self.sides[1].copies.items():
            if of in made and len(made[of].rows) == 1:
                self._add(made, copy, self._pair(made[of].rows[0], copy))

    def _ids(self, row: int, frame: NamedRow) -> Ids:
        shape = frame.shape(self.sizes)
        return self.bases[row] + np.arange(math.prod(shape)).reshape(shape)

    def _pair(self, one: int, other: int) -> Origin | None:
        """Where a row comes from that is one leaf with a row of the other side."""
        rows = self.sides[0].layout.rows[one], self.sides[1].layout.rows[other]
        told = rows[::-1] if self.origin.inverted else rows
        said = statement_of(told[1], self.origin.rules)
        if said.is_open:
            return None
        of, tied = self.sides[1].copies.get(other, other), self.sides[1].tied_axes.get(other)
        order = self.source.order(of if self.origin.inverted else one)
        order = order_of_copy(order, tied, on_source=self.origin.inverted)
        said = dataclasses.replace(said, order=order)
        frames = _framed((told[0], told[1]), said)
        here, there = frames[::-1] if self.origin.inverted else frames
        ids = write_numbers(there, read_numbers(here, self._ids(one, here), self.sizes), self.sizes)
        if ids is None:
            return None
        dtypes = [row.leaf.dtype for row in rows]
        exponent, line = self._values(said, dtypes)
        return Origin(ids, (one,), exponent, tuple(fill for _, _, fill in said.pads), line)

    def _values(self, said: Statement, dtypes: Sequence[str]) -> tuple[int, Line]:
        """What becomes of elements: a power of two, and then a line."""
        is_float = all("float" in dtype for dtype in dtypes)
        exponent = said.exponent if is_float else 0
        line = said.line(self.sizes, dtypes) if is_float else Line()
        return (-exponent, line.back(exponent)) if self.origin.inverted else (exponent, line)

    def _add_parts(
        self, made: dict[int, Origin], whole: int, parts: Mapping[int | None, int]
    ) -> None:
        """A row of the one side is several rows of the other."""
        one = self.sides[0].layout.rows[whole]
        said = self._said_of_parts(one, self.sides[1], parts)
        shares = self._shares(one, self.sides[1], parts)
        if shares is None or said is None:
            return
        frame, cut = shares
        named = read_numbers(frame, self._ids(whole, frame), self.sizes)
        for row, (part, token, start, stop, inner) in cut.items():
            at = named.tokens.index(token)
            own = np.take(named.ids, range(start, stop), axis=at)
            ids = write_numbers(part, split_axis(own, named.tokens, at, inner), self.sizes)
            if ids is not None:
                dtypes = [one.leaf.dtype, self.sides[1].layout.rows[row].leaf.dtype]
                exponent, line = self._values(said, dtypes)
                made[row] = Origin(ids, (whole,), exponent, line=line)

    def _whole(self, parts: Mapping[int | None, int], whole: int) -> Origin | None:
        """Several rows of the one side are a row of the other."""
        one = self.sides[1].layout.rows[whole]
        said = self._said_of_parts(one, self.sides[0], parts)
        shares = self._shares(one, self.sides[0], parts)
        if shares is None or said is None:
            return None
        frame, cut = shares
        tokens = tuple(token for axis in frame.tokens() for token, _ in axis)
        pieces: list[Ids] = []
        for row, (part, token, _, _, inner) in cut.items():
            named = merged_shares(
                read_numbers(part, self._ids(row, part), self.sizes), tokens, token, inner
            )
            if named is None:
                return None
            pieces.append(named)
        at = tokens.index(next(iter(cut.values()))[1])
        ids = write_numbers(frame, Named(tokens, np.concatenate(pieces, axis=at)), self.sizes)
        dtypes = [one.leaf.dtype, *(self.sides[0].layout.rows[row].leaf.dtype for row in cut)]
        exponent, line = self._values(said, dtypes)
        return None if ids is None else Origin(ids, tuple(cut), exponent, line=line)

    def _said_of_parts(
        self, whole: Row, side: _Side, parts: Mapping[int | None, int]
    ) -> Statement | None:
        """What rules say of a row of the view that is parts, or of each of its parts; None where that is not one thing.

        Of parts that are a series rules speak by its name as well.
        """
        is_whole = self.origin.inverted == (side is self.sides[1])
        rules, told = (
            self.origin.rules,
            {statement_of(whole, self.origin.rules)} if is_whole else set(),
        )
        for part, at in parts.items():
            if part is None or is_whole:
                continue
            row, path = side.layout.rows[at], side.path(at)
            own = statement_of(row, rules)
            if path is not None and isinstance(side.parts[at].rule, Series):
                by_name = statement_of(dataclasses.replace(row, path=path), rules)
                if own not in (Statement(), by_name):
                    told.add(own)
                own = by_name if own == Statement() else own
            told.add(own)
        said = told.pop()
        return said if not told and said.is_of_values else None

    def _shares(
        self, whole: Row, side: _Side, parts: Mapping[int | None, int]
    ) -> tuple[NamedRow, dict[int, Share]] | None:
        """How a row is looked at as a whole, and each of its parts: its share of which axis, and the factors of that."""
        numbers = [parts[number] for number in sorted(n for n in parts if n is not None)]
        rule = side.parts[numbers[0]].rule
        count = len(rule.parts if isinstance(rule, Fuse) else rule.members)
        if len(numbers) != count or None in parts:
            return None
        if isinstance(rule, Fuse):
            return fused(whole, rule, [(n, side.layout.rows[n]) for n in numbers], self.sizes)
        members = [(n, side.layout.rows[n], side.parts[n]) for n in numbers]
        return layers_of(whole, rule, members, self.sizes)


def _through(
    between: Layout, step: Derivation, before: Mapping[int, Origin], sizes: Sizes
) -> dict[int, Origin]:
    """What is made of what another lens has made; what is known of only one of the two ways is not known."""
    after = _step(step, sizes, [])
    numbers = {row.path: number for number, row in enumerate(between.rows)}
    starts = bases(step.ends[0], step.sized(sizes))
    whole = np.full(starts[-1], _UNKNOWN)
    fills: list[float] = []
    rows = {number: numbers.get(row.path) for number, row in enumerate(step.ends[0].rows)}
    for number, there in rows.items():
        origin = before.get(there) if there is not None else None
        if origin is not None and origin.ids.size == starts[number + 1] - starts[number]:
            ids = origin.ids.ravel()
            ids = np.where(ids <= FILLS, ids - len(fills), ids)
            whole[starts[number] : starts[number + 1]] = ids
            fills += origin.fills
    found: dict[int, Origin] = {}
    for number, origin in after.items():
        inner = [
            before[at]
            for at in (rows[row] for row in origin.rows)
            if at is not None and at in before
        ]
        scales = {(each.exponent, each.line) for each in inner}
        if len(inner) != len(origin.rows) or len(scales) != 1:
            continue
        if (origin.exponent or origin.line != Line()) and any(each.fills for each in inner):
            continue
        moved = np.where(origin.ids <= FILLS, origin.ids - len(fills), origin.ids)
        ids = np.where(moved >= 0, whole[np.maximum(moved, 0)] if whole.size else moved, moved)
        if (ids == _UNKNOWN).any():
            continue
        sources = tuple(dict.fromkeys(at for each in inner for at in each.rows))
        every = (*fills, *origin.fills)
        exponent, line = scales.pop()
        exponent, line = exponent + origin.exponent, line.then(origin.line, origin.exponent)
        found[number] = Origin(ids, sources, exponent, every, line)
    return found

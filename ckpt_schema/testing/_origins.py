"""An oracle: where each element of a lens's result comes from, told by layouts and by what rules are documented to mean.

It shares no code with what it is an oracle of: elements are numbered, the numbers are moved about in plain NumPy by the names
of axes and layers, and nothing of the lens but the declared layouts and the classes of the rules is looked at.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
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
    # Of a typed key and its raw data, the last axis of the raw one holds the words.
    raw = said.raw and bool(words(rows[0])) != bool(words(rows[1]))
    frames = [frame_of(row, raw=raw and not words(row)) for row in rows]
    for number, (small, large, _) in enumerate(said.pads):
        # Either side may be the padded one: it has the large dim, and the other the small one.
        for side, other in ((0, 1), (1, 0)):
            at = _axis(frames[side], large)
            if at is not None and _axis(frames[other], small) is not None:
                axes = list(frames[side].axes)
                axes[at] = ("axis", small)  # so that both sides have one name for it
                padded = {**frames[side].large, at: (large, number)}
                frames[side] = dataclasses.replace(frames[side], axes=tuple(axes), large=padded)
                break
    for dim in said.flips:
        # One side alone runs the other way: flipped on both, an axis would be as it was.
        for side in (0, 1):
            at = _axis(frames[side], dim)
            if at is not None:
                flipped = frames[side].flipped | {at}
                frames[side] = dataclasses.replace(frames[side], flipped=flipped)
                break
    if said.order is not None:
        return _by_order(frames[0], frames[1], said.order)
    return _by_class(frames[0], frames[1])


def _by_order(one: NamedRow, other: NamedRow, order: tuple[int, ...]) -> tuple[NamedRow, NamedRow]:
    """Both frames, with their axes called by the order that a rule says.

    Of the order (1, 0) the view's first axis is called as the source's second, ``axis 1``.
    """
    axes, others = one.own(), other.own()
    # Of leaves of another rank, as an optimizer may keep them of one, the order says nothing.
    if len(axes) != len(order) or len(others) != len(order):
        return one, other
    here: dict[int, tuple[str, ...]] = {}
    there: dict[int, tuple[str, ...]] = {}
    for place, at in enumerate(axes):
        here[at] = _numbered(one, at, place)
    for place, at in zip(order, others, strict=True):
        there[at] = _numbered(other, at, place)
    return dataclasses.replace(one, called=here), dataclasses.replace(other, called=there)


def _numbered(frame: NamedRow, at: int, place: int) -> tuple[str, ...]:
    """What the factors of an axis are called by its place: ``axis 1, 0`` and ``axis 1, 1``."""
    return tuple(f"axis {place}, {n}" for n, _ in enumerate(frame.axes[at][1]))


_Atom = tuple[int, str, str]
"""A factor of an axis: of which axis, what it is called, and what its class calls it."""


def _by_class(one: NamedRow, other: NamedRow) -> tuple[NamedRow, NamedRow]:
    """Both frames, with axes of one dim told apart by what their classes call them."""
    atoms = _atoms(one), _atoms(other)
    classes, theirs = _by_factor(atoms[0]), _by_factor(atoms[1])
    told: set[str] = set()
    for factor, names in classes.items():
        # A square leaf `in=embed out=embed` has two axes `embed`: their labels tell which is which,
        # where both sides have the same. Else the axes stay in the order in which they stand.
        if len(names) > 1 and sorted(names) == sorted(theirs.get(factor, [])):
            told.add(factor)
    if not told:
        return one, other
    here, there = _words_of(atoms[0], told), _words_of(atoms[1], told)
    return dataclasses.replace(one, called=here), dataclasses.replace(other, called=there)


def _by_factor(atoms: Iterable[_Atom]) -> dict[str, list[str]]:
    """What classes call each factor, once for each time that it is there."""
    names: dict[str, list[str]] = {}
    for _, factor, name in atoms:
        names.setdefault(factor, []).append(name)
    return names


def _words_of(atoms: Iterable[_Atom], told: Collection[str]) -> dict[int, tuple[str, ...]]:
    """What the factors of each axis are called, if the classes tell some of them apart."""
    called: dict[int, tuple[str, ...]] = {}
    for at, factor, name in atoms:
        word = f"{factor} {name}" if factor in told else factor
        called[at] = (*called.get(at, ()), word)
    return called


def _atoms(frame: NamedRow) -> list[_Atom]:
    """Each factor of the leaf's own axes."""
    own: Sequence[Any] = getattr(frame.row.leaf, "own", ())
    atoms: list[_Atom] = []
    for number, at in enumerate(frame.own()):
        dim = frame.axes[at][1]
        parts = own[number].parts if number < len(own) else tuple(map(str, dim))
        # The class may have one name for what is a product by now: all factors go by it.
        if len(parts) != len(dim):
            parts = (str(own[number]),) * len(dim)
        for factor, name in zip(dim, parts, strict=True):
            atoms.append((at, str(factor), name))
    return atoms


def _axis(frame: NamedRow, dim: Dim) -> int | None:
    """Which axis of its own a leaf has with this dim."""
    for at, axis in enumerate(frame.axes):
        if axis == ("axis", dim):
            return at
    return None


# --- Which rows are one leaf  ---


class _Side:
    """One layout of a derivation: which leaf each of its rows is, in the words of the view."""

    def __init__(self, origin: Derivation, number: int) -> None:
        self.layout = (origin.source, origin.view)[number]
        self.other = (origin.view, origin.source)[number]
        self.rules, self.number = rules_without_sums(origin), number
        self.renames = [(rule.source, rule) for rule in self.rules if isinstance(rule, Rename)]
        # Parts of an optimizer move in the source alone: all paths are told in the view's words.
        self.moved = _moved(origin) if number == 0 else {}
        self.paths = {row.path: at for at, row in enumerate(self.layout.rows)}
        self.copies: dict[int, int] = {}
        self.tied_axes: dict[int, tuple[int, ...] | None] = {}
        self.parts: dict[int, PartOf] = {}
        for at, row in enumerate(self.layout.rows):
            tied = self._original(row)
            if tied is not None:
                self.copies[at], self.tied_axes[at] = tied
            part = self._part(row)
            if part is not None:
                self.parts[at] = part

    def _original(self, row: Row) -> tuple[int, tuple[int, ...] | None] | None:
        """The row that a row is a copy of, by a rule that ties them, and the order of its axes."""
        ties = [(rule.copy, rule) for rule in self.rules if isinstance(rule, Tie)]
        for start, rule in rules_over(row, ties):
            of = (*row.path[:start], *rule.of, *row.path[start + len(rule.copy) :])
            # A rule of the other side names paths that are none of this one.
            if of in self.paths:
                return self.paths[of], rule.axes
        return None

    def _part(self, row: Row) -> PartOf | None:
        """What a row is a part of: of a list that is told as several nodes, or of a leaf."""
        several: list[Fuse | Series] = [*self.layout.series]
        several += [rule for rule in self.rules if isinstance(rule, (Fuse, Series))]
        members: list[tuple[LogicalPath, tuple[Fuse | Series, int]]] = []
        for rule in several:
            parts = rule.parts if isinstance(rule, Fuse) else rule.members
            there = all(_has(self.layout, part) for part in parts)
            # No rule says which side has the parts: of a fuse, the other one has the whole.
            if there and (isinstance(rule, Series) or _has(self.other, rule.whole)):
                members += [(part, (rule, number)) for number, part in enumerate(parts)]
        hits = rules_over(row, members)
        # The list counts before the leaf, however short its path is.
        lists = [hit for hit in hits if isinstance(hit[1][0], Series)]
        for start, (rule, number) in [*lists, *hits]:
            return PartOf(rule, number, start)
        return None

    def path(self, at: int) -> LogicalPath | None:
        """The path of a row in the words of the view; None where nothing is known, or it has no partner."""
        row = self.layout.rows[at]
        for rule in self.rules:
            # What is parted, or begins anew, is no leaf of the other side.
            if isinstance(rule, Apart) and start_in(row, rule.path) is not None:
                return None
            reset = (rule.source, rule.view)[self.number] if isinstance(rule, Reset) else None
            if reset is not None and row.path[: len(reset)] == reset:
                return None
        part, path = self.parts.get(at), row.path
        if part is not None:
            # What parts are together is called by the whole: `attn/q/kernel` is `attn/qkv/kernel`.
            rule = part.rule
            member = (rule.parts if isinstance(rule, Fuse) else rule.members)[part.number]
            whole = rule.whole if isinstance(rule, Fuse) else rule.path
            path = (*path[: part.start], *whole, *path[part.start + len(member) :])
        fused = part is not None and isinstance(part.rule, Fuse)
        if self.number == 1:
            # The view has the parts of a whole that a rule names as the source does.
            return (*path[: row.body or 0], *self._called(path[row.body or 0 :])) if fused else path
        if part is None or not fused:
            return self._placed(self._renamed(row, path), row)
        # The source has the parts of a whole that a rule names as the view does: what is left to
        # rename is where the model stands, ema in ema/attn/qkv.
        head = self._called(path[: part.start])
        return self._placed((*head, *path[part.start :]), row)

    def _called(self, path: LogicalPath) -> LogicalPath:
        """What the view calls a path of the source's model, by the longest rename of it."""
        rules = [rule for source, rule in self.renames if path[: len(source)] == source]
        if not rules:
            return path
        rule = max(rules, key=lambda rule: len(rule.source))
        return (*rule.view, *path[len(rule.source) :])

    def order(self, at: int) -> tuple[int, ...] | None:
        """Which axis of a row of the source each of the view is, where a rename says so."""
        hits = rules_over(self.layout.rows[at], self.renames)
        return hits[0][1].axes if hits else None

    def _renamed(self, row: Row, path: LogicalPath) -> LogicalPath:
        """A path of the source after the rename that wins."""
        hits = rules_over(dataclasses.replace(row, path=path), self.renames)
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
        # Of a chain in a chain the inner one counts.
        home = max(homes, key=len)
        there = self.moved[home]
        return None if there is None else (*there, *path[len(home) :])


def _has(layout: Layout, path: LogicalPath) -> bool:
    return any(start_in(row, path) is not None for row in layout.rows)


def _moved(origin: Derivation) -> dict[LogicalPath, LogicalPath | None]:
    """Where the parts of the source's optimizer state are in the view: None where types do not tell beyond doubt."""
    ours, theirs = origin.source.parts, origin.view.parts
    # Equal chains stay where they are: what they have of one type is in one order.
    if list(map(str, ours)) == list(map(str, theirs)):
        return {}
    types = collections.Counter(part.type for part in ours)
    others = collections.Counter(part.type for part in theirs)
    there = {part.type: part.path for part in theirs}
    places: dict[LogicalPath, LogicalPath | None] = {}
    for part in ours:
        is_certain = types[part.type] == 1 == others[part.type]
        places[part.path] = there[part.type] if is_certain else None
    return places


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
    # Pairs are of the ends of the lens: where it has several steps, no one step has both.
    known = list(pairs) if len(steps) == 1 else []
    names: list[str] = []
    for step in steps:
        for table in step.ends:
            names += table.names()
    # Sizes that only layouts in between have are any: what was padded there is cut off again.
    sizes = {**dict.fromkeys(names, max(sizes.values(), default=0) + 1), **sizes}
    by_row = _step(steps[0], sizes, known)
    for before, after in itertools.pairwise(steps):
        by_row = _through(before.ends[1], after, by_row, sizes)
    return by_row


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
        """Where each row that something is known of comes from."""
        here, there = self._addressed(self.sides[0]), self._addressed(self.sides[1])
        made: dict[int, Origin] = {}
        for path, after in there.items():
            before = here.get(path, {})
            # Rows that are no part have None for one: {None} on both sides are two whole rows.
            if before.keys() == after.keys():
                for part in after:
                    self._add(made, after[part], self._pair(before[part], after[part]))
            elif None in before:
                self._add_parts(made, before[None], after)
            elif None in after and before:
                self._add(made, after[None], self._whole(before, after[None]))
        self._add_copies(made)
        # What the lens says is asked last, and only of what paths do not tell.
        for one, other in pairs:
            if other not in made:
                self._add(made, other, self._pair(one, other))
        return made

    def _addressed(self, side: _Side) -> dict[LogicalPath, dict[int | None, int]]:
        """The rows of a side by the path that they have in the words of the view, and by part."""
        addressed: dict[LogicalPath, dict[int | None, int]] = {}
        for at in range(len(side.layout.rows)):
            path = None if at in side.copies else side.path(at)
            if path is not None:
                part = side.parts[at].number if at in side.parts else None
                addressed.setdefault(path, {})[part] = at
        return addressed

    def _add(self, made: dict[int, Origin], row: int, origin: Origin | None) -> None:
        if origin is not None:
            made[row] = origin

    def _add_copies(self, made: dict[int, Origin]) -> None:
        """What is stored twice is made of what it is a copy of."""
        for copy, of in self.sides[1].copies.items():
            # Of what is made of parts no one row is the copy's.
            if of in made and len(made[of].rows) == 1:
                self._add(made, copy, self._pair(made[of].rows[0], copy))

    def _ids(self, row: int, frame: NamedRow) -> Ids:
        shape = frame.shape(self.sizes)
        return self.bases[row] + np.arange(math.prod(shape)).reshape(shape)

    def _pair(self, one: int, other: int) -> Origin | None:
        """Where a row comes from that is one leaf with a row of the other side."""
        rows = self.sides[0].layout.rows[one], self.sides[1].layout.rows[other]
        # Rules are in the words of the derivation, whichever way is gone: its source comes first.
        told = rows[::-1] if self.origin.inverted else rows
        said = statement_of(told[1], self.origin.rules)
        if said.is_open:
            return None
        # A rename speaks of what a copy is a copy of, and the tie of the copy's axes.
        of, tied = self.sides[1].copies.get(other, other), self.sides[1].tied_axes.get(other)
        order = self.source.order(of if self.origin.inverted else one)
        order = order_of_copy(order, tied, on_source=self.origin.inverted)
        said = dataclasses.replace(said, order=order)
        frames = _framed((told[0], told[1]), said)
        here, there = frames[::-1] if self.origin.inverted else frames
        ids = write_numbers(there, read_numbers(here, self._ids(one, here), self.sizes), self.sizes)
        if ids is None:
            return None
        exponent, line = self._values(said, (rows[0].leaf.dtype, rows[1].leaf.dtype))
        return Origin(ids, (one,), exponent, tuple(fill for _, _, fill in said.pads), line)

    def _values(self, said: Statement, dtypes: Sequence[str]) -> tuple[int, Line]:
        """What becomes of elements: a power of two, and then a line."""
        # A scale of a node speaks of its floats: a counter in it is not scaled.
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
        tokens = tuple(token for token, _ in frame.factors())
        dtypes = [one.leaf.dtype]
        pieces: list[Ids] = []
        for row, (part, token, _, _, inner) in cut.items():
            named = read_numbers(part, self._ids(row, part), self.sizes)
            piece = merged_shares(named, tokens, token, inner)
            if piece is None:
                return None
            pieces.append(piece)
            dtypes.append(self.sides[0].layout.rows[row].leaf.dtype)
        # All parts share one axis, so the token of any of them tells where they are joined.
        at = tokens.index(next(iter(cut.values()))[1])
        named = Named(tokens, np.concatenate(pieces, axis=at))
        ids = write_numbers(frame, named, self.sizes)
        exponent, line = self._values(said, dtypes)
        return None if ids is None else Origin(ids, tuple(cut), exponent, line=line)

    def _said_of_parts(
        self, whole: Row, side: _Side, parts: Mapping[int | None, int]
    ) -> Statement | None:
        """What rules say of a row of the view that is parts, or of each of its parts; None where that is not one thing.

        Of parts that are a series rules speak by its name as well.
        """
        rules = self.origin.rules
        # Rules speak of the view: here it has the whole, or else the parts.
        is_whole = self.origin.inverted == (side is self.sides[1])
        told: set[Statement] = {statement_of(whole, rules)} if is_whole else set()
        for part, at in parts.items():
            if part is None or is_whole:
                continue
            row, path = side.layout.rows[at], side.path(at)
            own = statement_of(row, rules)
            if path is not None and isinstance(side.parts[at].rule, Series):
                # `scale("layers/mlp", 2)` speaks of `blocks/mlp` too, which is of these layers.
                by_name = statement_of(dataclasses.replace(row, path=path), rules)
                if own not in (Statement(), by_name):
                    told.add(own)
                own = by_name if own == Statement() else own
            told.add(own)
        said = told.pop()
        # An `Origin` has one factor for all of a row, and no axis that only a part of it has.
        return said if not told and said.is_of_values else None

    def _shares(
        self, whole: Row, side: _Side, parts: Mapping[int | None, int]
    ) -> tuple[NamedRow, dict[int, Share]] | None:
        """How a row is looked at as a whole, and each of its parts: its share of which axis, and the factors of that."""
        numbers = [row for _, row in sorted(parts.items(), key=lambda item: item[0] or 0)]
        rule = side.parts[numbers[0]].rule
        count = len(rule.parts if isinstance(rule, Fuse) else rule.members)
        # With a part missing, or a row beside them that is no part, nothing is known of the whole.
        if len(numbers) != count or None in parts:
            return None
        members = [(n, side.layout.rows[n], side.parts[n]) for n in numbers]
        if isinstance(rule, Fuse):
            return fused(whole, rule, members, self.sizes)
        return layers_of(whole, rule, members, self.sizes)


def _through(
    between: Layout, step: Derivation, before: Mapping[int, Origin], sizes: Sizes
) -> dict[int, Origin]:
    """What is made of what another lens has made; what is known of only one of the two ways is not known."""
    after = _step(step, sizes, [])
    # Both lenses have the layout between, in an order of their own: a path tells which row it is.
    numbers = {row.path: number for number, row in enumerate(between.rows)}
    rows = [numbers.get(row.path) for row in step.ends[0].rows]
    starts = bases(step.ends[0], step.sized(sizes))
    # For each element of the layout between, as the second lens numbers them, where it comes from.
    whole = np.full(starts[-1], _UNKNOWN)
    fills: list[float] = []
    for number, there in enumerate(rows):
        origin = before.get(there) if there is not None else None
        if origin is not None and origin.ids.size == starts[number + 1] - starts[number]:
            ids = origin.ids.ravel()
            # All fills stand in one list: those of this row come after those that are there.
            ids = np.where(ids <= FILLS, ids - len(fills), ids)
            whole[starts[number] : starts[number + 1]] = ids
            fills += origin.fills
    by_row: dict[int, Origin] = {}
    for number, origin in after.items():
        inner: list[Origin] = []
        scales: set[tuple[int, Line]] = set()
        is_filled = False
        for row in origin.rows:
            there = rows[row]
            if there is not None and there in before:
                each = before[there]
                inner.append(each)
                scales.add((each.exponent, each.line))
                is_filled = is_filled or bool(each.fills)
        # One row may be made of several, which must have been scaled alike.
        if len(inner) != len(origin.rows) or len(scales) != 1:
            continue
        # A fill stands for itself in an `Origin`: one that is scaled afterwards cannot be told.
        if is_filled and (origin.exponent or origin.line != Line()):
            continue
        moved = np.where(origin.ids <= FILLS, origin.ids - len(fills), origin.ids)
        ids = np.where(moved >= 0, whole[np.maximum(moved, 0)] if whole.size else moved, moved)
        if (ids == _UNKNOWN).any():
            continue
        sources: dict[int, None] = {}
        for each in inner:
            sources |= dict.fromkeys(each.rows)
        every = (*fills, *origin.fills)
        exponent, line = scales.pop()
        exponent, line = exponent + origin.exponent, line.then(origin.line, origin.exponent)
        by_row[number] = Origin(ids, tuple(sources), exponent, every, line)
    return by_row

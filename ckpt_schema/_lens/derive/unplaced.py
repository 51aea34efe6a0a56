"""Leaves that have no place on the other side, and what would give them one.

What is certain is printed as rules, which can all be followed together; what is open, as the leaves
that it could be, which is no rule. A default is offered for what a model works without: a stream, a
cache, a count. A weight is never given one, for to follow that would be to lose it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import overlaps, paths
from ckpt_schema._layouts.leaves import Fill, FreshKey
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.streams import is_raw_key
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.alignment import Alignment
from ckpt_schema._lens.derive.copies_of_weights import CopyOfWeights, copy_of_weights
from ckpt_schema._lens.derive.fuse_guesses import FuseGuess, fuse_guesses
from ckpt_schema._lens.derive.lone_arrays import LoneArrays, lone_arrays
from ckpt_schema._lens.derive.nameless_states import nameless_rows, nameless_told
from ckpt_schema._lens.derive.outside_partners import OutsidePartner, outside_partners
from ckpt_schema._lens.derive.partners import Loose, partners, renames
from ckpt_schema._lens.derive.restarts import Lost, restarts
from ckpt_schema._lens.derive.scope import said_paths
from ckpt_schema._lens.rules import Private, Rename, Rule
from ckpt_schema.errors import Mismatch

__all__ = ["unplaced"]

_SHOWN = 3  # candidates of one leaf; more do not help
_LOOKED = 20  # candidates whose names are looked at
_NEAR = 200  # leaves on a side; where there are more, names are compared no more


def unplaced(
    source: Layout,
    view: Layout,
    renamed: Sequence[LogicalPath],
    joined: Sequence[tuple[int, int]],
    alignment: Alignment,
    known: set[str],
    rules: Sequence[Rule] = (),
) -> Iterator[Mismatch]:
    """Rows of both sides that are neither joined nor private with a default, each with what would place it.

    Rows of the optimizer state that mirror an unplaced row of the model are named on its line: what
    places one places all. Those that have a fault of their own are told by `restarts`.

    Args:
        source: The source's layout.
        view: The view's layout.
        renamed: The path of each row of the source in the view's words.
        joined: The numbers of rows that are joined, of the source and of the view.
        alignment: Which parts of the optimizer states are partners.
        known: Paths that have a fault already.
        rules: The rules that are given.
    """
    onward = dict(joined)
    inverse = {there: here for here, there in joined}
    called = list(renamed), [row.path for row in view.rows]
    left = _without_place(called[0], onward, known)
    right = _without_place(called[1], inverse, known)
    lost = _required_among(source, left), _required_among(view, right)
    if not any(lost):
        return
    # Leaves that need no partner are looked at as well: one that needs one may be one of them.
    loose = _loose(source, left, called[0]), _loose(view, right, called[1])
    judged = partners(*loose, _placed(source, view, called[0], onward))
    ours = renames(
        judged.certain, source.rows, view.rows, onward, set(_renamed_paths(source, rules))
    )
    # The same pairs and their rules, by the numbers of the view's rows.
    back: dict[int, int] = {}
    theirs: dict[int, Rename] = {}
    for here, there in judged.certain.items():
        back[there] = here
        if here in ours:
            theirs[there] = ours[here]
    guesses = fuse_guesses(loose, (judged.certain, back))
    outside = outside_partners(source, view, loose, judged.certain)
    arrays = lone_arrays(source, view, loose)
    nameless = _nameless(source, view, lost), _nameless(view, source, lost[::-1])
    # An average of the weights may be called otherwise.
    copy = copy_of_weights(source, view, loose, rules)
    tables, placed = (source, view), (onward, inverse)
    certain, joins = (judged.certain, back), (ours, theirs)
    # One sentence is said of all nameless leaves of a side, and of the state that they may be.
    told = [next(iter(by_path.values()), "") for by_path in nameless]
    # Both layouts are looked at in the same way, each as the one that is near.
    sides: list[_Side] = []
    states: list[Lost] = []
    for at in (0, 1):
        near, far, is_view = tables[at], tables[1 - at], at == 1
        sides.append(
            _Side(
                near,
                far,
                certain=certain[at],
                open=judged.open[at],
                rules=joins[at],
                left=_Left.of(loose[1 - at], loose[at]),
                streams=_streams(near),
                said=said_paths(near, far),
                nameless=nameless[at],
                arrays=arrays,
                guesses=guesses,
                outside=outside[at],
                copy=copy,
                is_view=is_view,
            )
        )
        alone, state = _split(near, lost[at])
        states.append(
            Lost(near, far, called[at], placed[at], state, alone, told[1 - at], is_view=is_view)
        )
    for fault in restarts((states[0], states[1]), alignment):
        yield arrays.told(fault)
    # The first lines of an error are read most, and those of the weights say what to do first.
    last: list[Mismatch] = []
    for side, of_state in zip(sides, states, strict=True):
        mirrors = _mirrors(side.near, of_state.models)
        for number in sorted(of_state.models):
            fault = side.fault(number, mirrors.get(number, ()))
            if copy is not None and copy.holds(side.near.rows[number]):
                last.append(fault)
            else:
                yield fault
    yield from last


def _without_place(
    called: Sequence[LogicalPath], placed: Mapping[int, int], known: set[str]
) -> list[int]:
    """The numbers of rows, of which the paths are given, that are neither joined nor have a fault already."""
    numbers: list[int] = []
    for number, path in enumerate(called):
        if number not in placed and "/".join(path) not in known:
            numbers.append(number)
    return numbers


def _required(row: Row) -> bool:
    return row.default is None and not row.optional


def _required_among(table: Layout, numbers: Sequence[int]) -> list[int]:
    """Those of some rows that must have a partner."""
    return [number for number in numbers if _required(table.rows[number])]


def _placed(
    source: Layout, view: Layout, called: Sequence[LogicalPath], onward: Mapping[int, int]
) -> list[tuple[Row, LogicalPath, Row]]:
    """The leaves of the model that are joined, as `partners` asks for them."""
    placed: list[tuple[Row, LogicalPath, Row]] = []
    for here, there in onward.items():
        row = source.rows[here]
        # An optimizer state is placed by its chain, and tells nothing of names in the model.
        if not row.optimizer:
            placed.append((row, called[here][row.body or 0 :], view.rows[there]))
    return placed


def _nameless(near: Layout, far: Layout, lost: Sequence[Sequence[int]]) -> dict[LogicalPath, str]:
    """What is said of the leaves of a layout that may be what the other's optimizer keeps, by path."""
    own = [near.rows[number] for number in lost[0]]
    others = [far.rows[number] for number in lost[1]]
    rows = nameless_rows(near, own, others)
    if not rows:
        return {}
    told = nameless_told(rows, near, [row for row in others if row.optimizer], far)
    return {row.path: told for row in rows}


def _loose(table: Layout, numbers: Sequence[int], called: Sequence[LogicalPath]) -> list[Loose]:
    """The leaves of the model among some rows."""
    leaves: list[Loose] = []
    for number in numbers:
        row = table.rows[number]
        if row.optimizer:
            continue
        # Where a rule leads out of the model, nothing is left of what it is called there.
        path = called[number][row.body or 0 :] or row.model_path
        leaves.append(Loose(number, row, path, _required(row)))
    return leaves


def _renamed_paths(source: Layout, rules: Sequence[Rule]) -> Iterator[LogicalPath]:
    """The paths in the model that rules rename, whether these say them from the root or not.

    ``rename("params/enc", ...)`` renames ``enc`` where the model stands at ``params``.
    """
    heads = {row.root for row in source.rows}
    for rule in rules:
        if not isinstance(rule, Rename):
            continue
        yield rule.source
        for head in heads:
            if head and rule.source[: len(head)] == head:
                yield rule.source[len(head) :]


def _mirrors(table: Layout, numbers: set[int]) -> dict[int, list[str]]:
    """Where the optimizer state mirrors some rows of the model."""
    # Mirrors name their params by written paths.
    model = {"/".join(table.rows[number].path): number for number in numbers}
    mirrors: dict[int, list[str]] = {}
    for row in table.rows if model else ():
        if row.mirrors and _required(row):
            number = model.get(row.mirrors)
            if number is not None:
                mirrors.setdefault(number, []).append("/".join(row.path[: row.body]))
    return mirrors


def _split(table: Layout, numbers: Sequence[int]) -> tuple[set[int], list[int]]:
    """The rows of the model among some, and those of the optimizer state."""
    states = [number for number in numbers if table.rows[number].optimizer]
    return set(numbers).difference(states), states


# --- what would place a leaf of the model  ---


@dataclasses.dataclass(frozen=True, slots=True)
class _Left:
    """The leaves of a model that have no partner, as the other side looks for its own among them.

    Attributes:
        plain: By type, and by path without levels of repetition.
        named: By path; none where there are too many on either side to compare them all.
        raw: Those that may be the raw data of keys.
        keys: Those that are keys.
        counts: Those that are counts.
    """

    plain: Mapping[Any, Row]
    named: Mapping[str, Row]
    raw: Sequence[Row]
    keys: Sequence[Row]
    counts: Sequence[Row]

    @classmethod
    def of(cls, loose: Sequence[Loose], others: Sequence[Loose]) -> _Left:
        """Those on one side, and those that look for their own among them."""
        plain: dict[Any, Row] = {}
        named: dict[str, Row] = {}
        raw: list[Row] = []
        keys: list[Row] = []
        counts: list[Row] = []
        # Each lost leaf is compared with every name: of many that would take longer than all else.
        are_few = max(len(loose), len(others)) <= _NEAR
        for leaf in loose:
            row = leaf.row
            plain[_plain(row)] = row
            if are_few:
                named["/".join(row.model_path)] = row
            if is_raw_key(row.leaf.dtype, row.leaf.dims):
                raw.append(row)
            if row.leaf.is_key:
                keys.append(row)
            if _kind(row) == "count":
                counts.append(row)
        return cls(plain, named, raw, keys, counts)

    def other_form(self, row: Row) -> Sequence[Row]:
        """Raw data that a key may be, and keys that raw data may be."""
        if row.leaf.is_key:
            return self.raw
        is_raw = is_raw_key(row.leaf.dtype, row.leaf.dims)
        return self.keys if is_raw else ()


def _plain(row: Row) -> Any:
    return row.leaf, paths.path_names(row.path)


@dataclasses.dataclass(frozen=True, slots=True)
class _Side:
    """The leaves of one layout that have no place in another, seen from the first.

    Attributes:
        near: The layout.
        far: The other.
        certain: The partners that are beyond doubt, by number.
        open: What other rows may be.
        rules: The rule that joins each certain pair, by the number of this side's row.
        left: The far side's leaves that have no partner.
        streams: The nodes of this side that are a key and the count beside it, as each stream of NNX.
        said: What rules call each leaf of this side.
        nameless: What is said of leaves that may be what the far side's optimizer keeps, by path.
        arrays: What is said where a whole model is one array.
        guesses: The leaves of either side that may be one leaf of the other.
        outside: The partners that stand beside one of the two models, by number.
        copy: The rule that joins a tree like the weights with the far side's, if there is one.
        is_view: Whether the first is the view.
    """

    near: Layout
    far: Layout
    certain: Mapping[int, int]
    open: Mapping[int, Sequence[Loose]]
    rules: Mapping[int, Rename]
    left: _Left
    streams: frozenset[LogicalPath]
    said: Mapping[LogicalPath, LogicalPath]
    nameless: Mapping[LogicalPath, str]
    arrays: LoneArrays
    guesses: Sequence[FuseGuess]
    outside: Mapping[int, OutsidePartner]
    copy: CopyOfWeights | None = None
    is_view: bool = False

    def fault(self, number: int, mirrors: Sequence[str]) -> Mismatch:
        """The fault of one row, and of those that mirror it."""
        row = self.near.rows[number]
        # From what is certain to what is likely: the first that holds is told, and no other.
        guesses: tuple[Rule, ...] = ()
        cure = self._certain_cure(number, row)
        if cure is None:
            cure = self._likely_cure(number, row)
            guess = self._guess(row)
            if guess is not None:
                cure, guesses = (guess[0], ()), guess[1]
        hint, rules = cure
        expected = f"a partner in {self.far.name}"
        found = f"{row.stored} in {self.near.name} alone"
        return Mismatch(
            "/".join(row.path),
            "unplaced",
            expected,
            found,
            hint,
            rules=rules,
            guesses=guesses,
            also=tuple(mirrors),
        )

    def _guess(self, row: Row) -> tuple[str, tuple[Rule, ...]] | None:
        """What is said of a leaf that may be several of the far side, or one of several."""
        for guess in self.guesses:
            if guess.whole.row is row:
                return guess.cure, (guess.rule,)
            if any(part.row is row for part in guess.parts):
                return guess.cure_of_part, (guess.rule,)
        return None

    def _certain_cure(self, number: int, row: Row) -> tuple[str, tuple[Rule, ...]] | None:
        """What places a row whose partner is beyond doubt, and the rules that do so."""
        # A tree beside the weights goes as a whole, whatever might be said of its single leaves.
        if self.copy is not None and self.copy.holds(row):
            told = "each side has one such tree beside the weights"
            if self.copy.is_certain:
                return f"{told}; {self.copy.rule} joins them", (self.copy.rule,)
            return f"{told}; the lines for the weights come first", ()
        if row in self.arrays:
            return self.arrays.cure(row)
        if number in self.outside:
            partner = self.outside[number]
            return partner.cure, (partner.rule,)
        if number not in self.certain:
            return None
        only = paths.format_path(self.far.rows[self.certain[number]].key)
        rule = self.rules.get(number)
        # Some rules for one leaf can be written down only when others have taken effect.
        if rule is None:
            return f"only {only} may be it; the rules for other leaves come first", ()
        return f"only {only} can be it; {rule} joins them", (rule,)

    def _likely_cure(self, number: int, row: Row) -> tuple[str, tuple[Rule, ...]]:
        """What might place a row, and a rule where no leaf can be its partner but it needs none."""
        open_ = self.open.get(number, ())
        # A few are looked at: each of thousands of leaves may have thousands of others.
        candidates = [other.row for other in open_[:_LOOKED]]
        several = len(open_)
        if not candidates:
            candidates = self.left.other_form(row)
            several = len(candidates)
        # Two lone keys fit each other whatever they are for: both lines are told, to choose from.
        if several == 1 and row.leaf.is_key and candidates[0].leaf.is_key:
            return self._stream(row, candidates[0]), ()
        if candidates:
            return _choice(row, candidates[:_LOOKED], several), ()
        repeated = self.left.plain.get(_plain(row))
        if repeated is not None:
            return _repeated(row, repeated), ()
        return self._alone(row)

    def _stream(self, row: Row, other: Row) -> str:
        """The two lines for a key that one key of the other side may be."""
        pair = (other, row) if self.is_view else (row, other)
        joined = Rename(pair[0].model_path, pair[1].model_path)
        apart = f"{Private(pair[0].model_path, None)} and {Private(pair[1].model_path, None)}"
        where = paths.format_path(other.key)
        return f"it may be {where}, which nothing proves: {joined} if it is, or else {apart}"

    def _alone(self, row: Row) -> tuple[str, tuple[Rule, ...]]:
        """What to do about a row that nothing on the far side can be: by what it is."""
        own = row.model_path
        kind = _kind(row)
        # A stream is made anew as a whole: the count beside a key goes with it.
        if kind == "stream" or (row.path[-1] == "count" and row.path[:-1] in self.streams):
            rule = Private(own, FreshKey(0))
            return f"a stream of {self.near.name} alone: {rule} makes it anew", (rule,)
        if row.path in self.nameless:
            return self.nameless[row.path], ()
        if kind in ("cache", "record"):
            rule = Private(own, Fill(False if row.leaf.dtype == "bool" else 0))
            return f"a {kind} of {self.near.name} alone: {rule} starts it at 0", (rule,)
        if kind == "count":
            anew = f"{Private(own, Fill(0))} starts it at 0"
            if len(self.left.counts) != 1:
                return f"a count: {anew}, if nothing else is it", ()
            # The only count there may be this one by another name, and then 0 would be a loss.
            [other] = self.left.counts
            pair = (other, row) if self.is_view else (row, other)
            joined = Rename(pair[0].model_path, pair[1].model_path)
            return f"a count: {joined} if these two are one, or else {anew}", ()
        return self._weight(row), ()

    def _weight(self, row: Row) -> str:
        told = f"no leaf of {self.far.name} without a partner has its type"
        own = "/".join(row.model_path)
        near = difflib.get_close_matches(own, [*self.left.named], n=1)
        if near:
            other = self.left.named[near[0]]
            if other.leaf == row.leaf:  # and it stands in no model, or in another one
                pair = (other, row) if self.is_view else (row, other)
                joined = Rename(pair[0].path, pair[1].path)
                where = paths.format_path(other.key)
                return f"near is {where}, of its type, which nothing proves: {joined} if it is"
            return f"{told}; near is {paths.format_path(other.key)}, which is {other.stored}"
        rule = Private(self.said[row.path] or row.path, None)  # a whole model has no path there
        cure = f"declare it in {self.far.name} too, or leave it aside: {rule}"
        return f"{told}, and a weight is not made up: {cure}"


def _streams(table: Layout) -> frozenset[LogicalPath]:
    """The nodes that hold a key and a count alone: streams, of which a checkpoint has lost the Variable types."""
    held: dict[LogicalPath, dict[str, bool]] = {}  # by node and name, whether a leaf is a key
    for row in table.rows:
        held.setdefault(row.path[:-1], {})[row.path[-1]] = row.leaf.is_key
    nodes: set[LogicalPath] = set()
    for node, is_key in held.items():
        if is_key.keys() == {"key", "count"} and is_key["key"]:
            nodes.add(node)
    return frozenset(nodes)


def _kind(row: Row) -> str:
    """What a leaf is to a model: a ``weight``, or something that it works without."""
    if row.leaf.is_key:
        return "stream"
    # NNX says what a leaf is by a class, Linen by the name of its collection.
    if isinstance(row.kind, type):
        from ckpt_schema._frameworks import variables

        kind = variables.passing(row.kind)
    else:
        kind = _COLLECTIONS.get(str(row.kind))
    if kind is not None:
        return kind
    is_count = not row.leaf.dims and row.leaf.dtype.startswith(("int", "uint"))
    return "count" if is_count else "weight"


_COLLECTIONS = {"cache": "cache", "intermediates": "record", "perturbations": "record"}
"""Linen's collections that a model works without."""


def _choice(row: Row, candidates: Sequence[Row], several: int) -> str:
    """The leaves that a row could be, none of them for certain.

    Of ``several`` the first ones are given.
    """
    shown = [paths.format_path(other.key) for other in candidates[:_SHOWN]]
    if several > len(shown):
        shown.append(f"{several - len(shown)} more")
    listed = ", ".join(shown)
    if several == 1:
        return f"it may be {listed}, which nothing proves: if it is, say so with a rename"
    # An outline has "#" for each number: "layers_0/w" and "layers_1/w" are "layers_#/w" both, so
    # one outline on each side looks like layers that nobody has called a list.
    outlines = {overlaps.outlined(other.path) for other in (row, *candidates)}
    has_numbers = ["#" in "/".join(outline) for outline in outlines]
    are_layers = len(outlines) <= 2 and all(has_numbers)
    cure = "; where they count layers, declare each side's as a list" if are_layers else ""
    return f"one of {listed} may be it: say which with a rename{cure}"


def _repeated(row: Row, other: Row) -> str:
    """What to do about a leaf that is there under its name, and repeated otherwise."""
    where = paths.format_path(other.key)
    told = f"repeats there: {_counts(other)}, here: {_counts(row)}"
    return f"likeliest: {where}; {told}; declare scan= or list[...] on both sides"


def _counts(row: Row) -> str:
    """How often a leaf is repeated at each level: ``blocks x 2``."""
    return " x ".join(dims_.format_dim(repeat.size) for repeat in row.repeats) or "none"

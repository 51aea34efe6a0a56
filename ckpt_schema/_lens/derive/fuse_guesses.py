"""Leaves that the other side may have in one: a guess by sizes, which an error prints as a line to confirm.

    attn/q, attn/k, attn/v, [16 16] each, here, and attn/qkv, [16 48], there

Sizes prove neither that they are one, nor in which order the parts stand. So what is found here is
never a rule by itself.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Container, Iterator, Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.paths import LogicalPath, natural
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.derive.axis_shares import axes_of_parts, is_told
from ckpt_schema._lens.derive.partners import Loose
from ckpt_schema._lens.rules import Fuse, fuse

__all__ = ["FuseGuess", "fuse_guesses"]

_MOST = 200  # leaves on a side; where there are more, no sizes are added up

_USUAL = "qkv"
"""How parts of attention are ordered wherever they are one leaf, by the letters that they begin with."""


@dataclasses.dataclass(frozen=True, slots=True)
class FuseGuess:
    """A leaf, and several of the other side that may be its parts.

    Attributes:
        whole: The leaf.
        parts: The others.
        rule: What joins them, if they are.
        among: What is written for ``axes=`` where their elements take turns; empty where they cannot.
    """

    whole: Loose
    parts: tuple[Loose, ...]
    rule: Fuse
    among: str = ""

    @property
    def cure(self) -> str:
        """What an error says of the leaf."""
        names = ", ".join(["/".join(part.row.path) for part in self.parts])
        turns = f"; axes={self.among!r} where their elements take turns" if self.among else ""
        return f"it may be {names}, which nothing proves: {self.rule} if it is{turns}"

    @property
    def cure_of_part(self) -> str:
        """What it says of the parts."""
        return f"it may be a part of {'/'.join(self.whole.row.path)}, as is told there"


def fuse_guesses(
    loose: tuple[Sequence[Loose], Sequence[Loose]], certain: tuple[Container[int], Container[int]]
) -> list[FuseGuess]:
    """The leaves of either side that may be one leaf of the other, where no two guesses contradict each other.

    Args:
        loose: The leaves of each side that have no partner.
        certain: The numbers of those whose partner is beyond doubt.
    """
    left = [one for one in loose[0] if one.required and one.number not in certain[0]]
    right = [one for one in loose[1] if one.required and one.number not in certain[1]]
    if not left or not right or max(len(left), len(right)) > _MOST:
        return []
    guesses = [*_guesses(left, right), *_guesses(right, left)]
    # A vector has the sizes of many others: it goes where the matrices beside it go.
    beside: set[tuple[object, ...]] = set()
    for guess in guesses:
        if len(guess.whole.row.leaf.dims) > 1:
            beside.add(_nodes(guess))
    found: list[FuseGuess] = []
    for guess in guesses:
        if len(guess.whole.row.leaf.dims) > 1 or _nodes(guess) in beside:
            found.append(guess)
    return found


def _nodes(guess: FuseGuess) -> tuple[object, ...]:
    """The nodes that a leaf and its parts stand in."""
    return guess.whole.row.path[:-1], *[part.row.path[:-1] for part in guess.parts]


# --- which leaves could be parts of which  ---

_Family = tuple[LogicalPath, LogicalPath]
"""What stands before and behind the one name by which siblings differ, in the words of the view."""


def _guesses(wholes: Sequence[Loose], others: Sequence[Loose]) -> Iterator[FuseGuess]:
    """The guesses for leaves of one side with parts on the other: of each the one that is nearest, and of no part two."""
    families = _families(others)
    fitting: list[tuple[tuple[int, bool], _Family, FuseGuess]] = []
    for whole in wholes:
        for family, members in families[_kind(whole.row)].items():
            guess = _guess(whole, members, family)
            if guess is not None:
                fitting.append((_nearness(whole, family), family, guess))
    # A leaf may be made of either of two families, and a family may be either of two leaves.
    best: dict[object, tuple[int, bool]] = {}
    for nearness, family, guess in fitting:
        for one in (guess.whole.number, family):
            best[one] = max(best.get(one, nearness), nearness)
    counts: collections.Counter[object] = collections.Counter()
    for nearness, family, guess in fitting:
        for one in (guess.whole.number, family):
            counts[one] += nearness == best[one]
    for nearness, family, guess in fitting:
        both = guess.whole.number, family
        if all(nearness == best[one] and counts[one] == 1 for one in both):
            yield guess


def _kind(row: Row) -> object:
    """What a leaf and its parts have in common."""
    repeats = tuple(repeat.size for repeat in row.repeats)
    return row.root, row.leaf.dtype, repeats


def _families(leaves: Sequence[Loose]) -> Mapping[object, Mapping[_Family, list[Loose]]]:
    """Leaves of one kind whose paths differ by one name: ``q`` and ``k`` of ``attn/q/kernel``, ``attn/k/kernel``."""
    families: dict[object, dict[_Family, list[Loose]]] = collections.defaultdict(dict)
    for leaf in leaves:
        for at, name in enumerate(leaf.path):
            if not name.endswith("[]"):
                family = leaf.path[:at], leaf.path[at + 1 :]
                families[_kind(leaf.row)].setdefault(family, []).append(leaf)
    return families


_NUMBER = re.compile(r"\d+")


def _nearness(whole: Loose, family: _Family) -> tuple[int, bool]:
    """How much tells that a leaf and its parts belong together: the nodes that both stand in, and the numbers on the way."""
    head, tail = family
    common = _alike(whole.path[:-1], head)
    numbers = _NUMBER.findall("/".join(whole.path)), _NUMBER.findall("/".join((*head, *tail)))
    return common, numbers[0] == numbers[1]


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many items, or letters, two begin with alike."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def _guess(whole: Loose, members: Sequence[Loose], family: _Family) -> FuseGuess | None:
    """The guess that some of a family are the parts of a leaf, where their sizes add up to it."""
    at = len(family[0])
    fitting = _of_one_axis(whole.row, members)
    if len(fitting) < 2:
        return None
    for order in _orders([one.path[at] for one in fitting], whole.path):
        parts = tuple([fitting[number] for number in order])
        rows = [part.row for part in parts]
        axes = axes_of_parts(whole.row, rows)
        # What a class writes of its axes needs no words.
        if axes is None and not is_told(whole.row, rows):
            continue
        paths = ["/".join(row.model_path) for row in rows]
        after, among = axes or (None, "")
        rule = fuse("/".join(whole.row.model_path), paths, axes=after)
        return FuseGuess(whole, parts, rule, among)
    return None


def _of_one_axis(whole: Row, members: Sequence[Loose]) -> list[Loose]:
    """Those of some leaves that have all axes of a whole but for one, of which they have less."""
    sizes = dims_.sizes_of(whole.leaf.dims, {})
    # Of dims with names, whether they fit is told by all parts together.
    if sizes is None:
        return [*members]
    by_axis: dict[int, list[Loose]] = collections.defaultdict(list)
    for member in members:
        own = dims_.sizes_of(member.row.leaf.dims, {})
        if own is None or len(own) != len(sizes):
            continue
        for at, size in enumerate(sizes):
            rest = [*own[:at], *own[at + 1 :]]
            if own[at] < size and rest == [*sizes[:at], *sizes[at + 1 :]]:
                by_axis[at].append(member)
    return max(by_axis.values(), key=len, default=[])


# --- the order of parts, and which of a family are parts: as good a guess as any  ---


def _orders(names: Sequence[str], whole: LogicalPath) -> Iterator[list[int]]:
    """Parts by their numbers, in the orders that they may stand in, the likeliest first."""
    # What all names begin and end with tells nothing: of `q_proj`, `k_proj` it leaves `q` and `k`.
    start = min([_alike(names[0], name) for name in names])
    rests = [name[start:] for name in names]
    end = min([_alike(rests[0][::-1], rest[::-1]) for rest in rests])
    cores: list[str] = []
    for name, rest in zip(names, rests, strict=True):
        cores.append((rest[: len(rest) - end] or name).lower())
    # `q_proj`, `k_proj` and `v_proj` of `qkv_proj` stand there as its name has them.
    for words in (cores, [core[0] for core in cores]):
        for segment in (*map(str.lower, reversed(whole)), _USUAL):
            places = [segment.find(word) for word in words]
            found = [number for number, place in enumerate(places) if place >= 0]
            if len(found) > 1 and len({places[number] for number in found}) == len(found):
                yield sorted(found, key=places.__getitem__)

    def usual(number: int) -> tuple[object, ...]:
        place = _USUAL.find(cores[number][0])
        return place if place >= 0 else len(_USUAL), natural(names[number])

    yield sorted(range(len(names)), key=usual)

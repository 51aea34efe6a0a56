"""What pieces that belong together say as rules for leaves: by pattern, once for all layers."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.rules import Fuse, Rule, fuse, rename, tie
from ckpt_schema._lens.value_rules import scale, shift
from ckpt_schema.discovery._axis_letters import LayerPair, lettered_axes
from ckpt_schema.discovery._beforehand import KnownLeaves
from ckpt_schema.discovery._cuts import LeafPiece
from ckpt_schema.discovery._layer_levels import Addresses, LayerLevels, found_levels, single_axes
from ckpt_schema.discovery._matching import Choice, Pairing
from ckpt_schema.discovery._models import RunnableModel

__all__ = ["FoundRules", "Unsaid", "rules_of"]

Models = tuple[RunnableModel, RunnableModel]


@dataclasses.dataclass(frozen=True)
class Unsaid:
    """What was found, and no rule says.

    Attributes:
        what: What it is.
        why: Why no rule says it.
    """

    what: str
    why: str

    def __str__(self) -> str:
        """As a sentence."""
        return f"{self.what}: {self.why}"


@dataclasses.dataclass(frozen=True)
class FoundRules:
    """Rules, and the layouts that they speak of.

    Attributes:
        rules: Rules for `derive` that say which leaf is which.
        values: Those that say how values differ.
        levels: How each side is read: its lists and stacks.
        sides: Where the leaves of each side stand when they are read so.
        options: For each choice, the rules of each of its options. A choice that all layers have alike is
            said once; one that no rule can say has no options.
        unsaid: What was found and no rule says, with the reason.
    """

    rules: tuple[Rule, ...]
    values: tuple[Rule, ...]
    levels: tuple[LayerLevels, LayerLevels]
    sides: tuple[Addresses, Addresses]
    options: tuple[tuple[Choice, tuple[tuple[Rule, ...], ...]], ...]
    unsaid: tuple[Unsaid, ...]

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        """The layouts of both sides."""
        return self.sides[0].layout, self.sides[1].layout

    @property
    def paths(self) -> Mapping[str, str]:
        """The logical path of each leaf of the view, in its model."""
        return {leaf: self.sides[1].path(leaf) for leaf in self.sides[1].slots}


def rules_of(
    models: Models,
    pieces: tuple[Sequence[LeafPiece], Sequence[LeafPiece]],
    pairings: Sequence[Pairing],
    names: tuple[str, str],
    choices: Sequence[Choice] = (),
    known: KnownLeaves | None = None,
) -> FoundRules:
    """The rules that pairings say.

    Args:
        models: The source and the view.
        pieces: All their pieces.
        pairings: Those that are told.
        names: What the layouts are called.
        choices: Those that are told but for a choice.
        known: What was known beforehand, which is not said again.
    """
    known = known or KnownLeaves()
    partners: tuple[dict[LeafPiece, list[LeafPiece]], dict[LeafPiece, list[LeafPiece]]] = {}, {}
    first = [pairing for choice in choices for pairing in choice.options[0]]
    for pairing in [*pairings, *first]:
        for source in pairing.sources:
            partners[0].setdefault(source, []).append(pairing.view)
            partners[1].setdefault(pairing.view, []).append(source)
    found = found_levels(models, pieces, partners)
    levels = known.levels[0].beside(found[0]), known.levels[1].beside(found[1])
    sides = [
        Addresses(model, own, name) for model, own, name in zip(models, levels, names, strict=True)
    ]
    both = sides[0], sides[1]
    unsaid: list[Unsaid] = []
    pairs = _pairs(pairings, both, unsaid)
    said = _said(known, both)
    spoken = [each for each in _spoken(pairs, unsaid) if not _is_said(each, said)]
    scaled = {both[1].path(leaf) for leaf in known.recodes}
    options, chosen = _options(pairs, choices, both, scaled, unsaid)
    values = _recodes([one for one in pairs if one.view.leaf not in scaled], unsaid)
    return FoundRules(
        rules=tuple(_folded(spoken, both)),
        values=(*values, *chosen),
        levels=levels,
        sides=both,
        options=options,
        unsaid=tuple(dict.fromkeys(unsaid)),
    )


def _options(
    told: Sequence[LayerPair],
    choices: Sequence[Choice],
    sides: tuple[Addresses, Addresses],
    scaled: Collection[str],
    unsaid: list[Unsaid],
) -> tuple[tuple[tuple[Choice, tuple[tuple[Rule, ...], ...]], ...], tuple[Rule, ...]]:
    """The rules of each option of the choices; of those that all layers have alike, once.

    Returns:
        Each choice with the rules of its options, and what is so of the values whichever is chosen.
    """
    known: list[Unsaid] = []
    spoken = [*_spoken(told, known)]
    alike: dict[frozenset[frozenset[LayerPair]], list[Choice]] = {}
    ways: dict[frozenset[frozenset[LayerPair]], list[list[LayerPair]]] = {}
    for choice in choices:
        own = [[*_layer_pairs(option, sides, [])] for option in choice.options]
        mark = frozenset(map(frozenset, own))
        alike.setdefault(mark, []).append(choice)
        ways.setdefault(mark, own)
    found: list[tuple[Choice, tuple[tuple[Rule, ...], ...]]] = []
    common: list[Rule] = []
    for mark, several in alike.items():
        options: list[tuple[list[Rule], list[Rule]]] = []
        for own in ways[mark]:
            faults: list[Unsaid] = []
            more = [each for each in _spoken([*told, *own], faults) if each not in spoken]
            recodes = [*_recodes([one for one in own if one.view.leaf not in scaled], faults)]
            wanted = {_count(sides[1].rows[pair.view.leaf]) for pair in own}
            if wanted != {len(several)}:
                faults.append(
                    Unsaid("a choice that layers have each of their own", "no rule says it")
                )
            faults = [fault for fault in faults if fault not in known]
            if faults:
                unsaid += faults
            else:
                options.append(([_as_rule(each) for each in more], recodes))
        if len(options) < len(ways[mark]):
            found.append((several[0], ()))
            continue
        always = [rule for rule in options[0][1] if all(rule in own for _, own in options)]
        common += always
        rules: list[tuple[Rule, ...]] = []
        for more, recodes in options:
            rules.append((*more, *(rule for rule in recodes if rule not in always)))
        found.append((several[0], tuple(rules)))
    return tuple(found), tuple(common)


def _said(known: KnownLeaves, sides: tuple[Addresses, Addresses]) -> tuple[set[str], set[str]]:
    """The leaves of both sides that rules say already, by their logical paths."""
    here, there = (
        {side.path(leaf) for leaf in allowed}
        for allowed, side in zip(known.allowed, sides, strict=True)
    )
    return here, there


def _is_said(found: _Saying | Rule, said: tuple[set[str], set[str]]) -> bool:
    if isinstance(found, _Saying):
        return found.source in said[0] or found.view in said[1]
    if not isinstance(found, Fuse):
        return False
    every = said[0] | said[1]
    return any("/".join(path) in every for path in (found.whole, *found.parts))


# --- One layer for all  ---


def _pairs(
    pairings: Sequence[Pairing], sides: tuple[Addresses, Addresses], unsaid: list[Unsaid]
) -> list[LayerPair]:
    """What belongs together in one layer, where it is so in all."""
    layers = collections.Counter(_layer_pairs(pairings, sides, unsaid))
    found: list[LayerPair] = []
    for pair, count in layers.items():
        wanted = _count(sides[1].rows[pair.view.leaf])
        if count != wanted:
            why = f"it holds in {count} of {wanted} layers alone"
            unsaid.append(Unsaid(f"{pair.source.leaf} is {pair.view.leaf}", why))
        else:
            found.append(pair)
    return found


def _layer_pairs(
    pairings: Sequence[Pairing], sides: tuple[Addresses, Addresses], unsaid: list[Unsaid]
) -> Iterator[LayerPair]:
    """Each pairing, as its layer has it."""
    for pairing in pairings:
        if len(pairing.sources) > 1:
            own = " and ".join(map(str, pairing.sources))
            unsaid.append(Unsaid(f"{pairing.view} is {own} together", "no rule says it"))
            continue
        source, order = next(zip(pairing.sources, pairing.orders, strict=True))
        before, first = _layer(source, sides[0])
        after, second = _layer(pairing.view, sides[1])
        if first != second:
            why = "layers have other numbers, or another nesting, on the two sides"
            unsaid.append(Unsaid(f"{source} is {pairing.view}", why))
            continue
        factor = pairing.view.scale / source.scale
        offset = pairing.view.offset - factor * source.offset
        yield LayerPair(before, after, order, factor, offset)


def _layer(piece: LeafPiece, side: Addresses) -> tuple[LeafPiece, tuple[int, ...]]:
    """A piece as its layer has it, and the numbers of the layer."""
    row, slot = side.slots[piece.leaf]
    stored = dict(single_axes(piece))
    marks = iter(slot)
    indices: list[int] = []
    dropped: set[int] = set()
    stacks = {level: axis for axis, (kind, level) in enumerate(row.axes) if kind == "level"}
    for level, repeat in enumerate(row.repeats):
        if repeat.axis is None:
            indices.append(next(marks))
        else:
            axis = stacks[level]
            dropped.add(axis)
            indices.append(stored.get(axis, -1))
    factors: list[tuple[int, ...]] = []
    spans: list[tuple[int, int]] = []
    kept: dict[int, int] = {}
    for axis, sizes in enumerate(piece.factors):
        if axis in dropped:
            continue
        first = piece.first_factor(axis)
        for number in range(first, first + len(sizes)):
            kept[number] = len(spans)
            spans.append(piece.spans[number])
        factors.append(sizes)
    axes = tuple(tuple(kept[number] for number in own if number in kept) for own in piece.axes)
    return LeafPiece(side.path(piece.leaf), tuple(factors), tuple(spans), axes), tuple(indices)


def _count(row: Row) -> int:
    """How many layers a leaf has."""
    sizes = [size for repeat in row.repeats for size in repeat.size]
    return math.prod(size for size in sizes if isinstance(size, int))


# --- Rules  ---


@dataclasses.dataclass(frozen=True)
class _Saying:
    """A leaf that is renamed, and the order of its axes where it is not the same."""

    source: str
    view: str
    axes: str | None = None


def _as_rule(said: _Saying | Rule) -> Rule:
    if isinstance(said, _Saying):
        return rename(said.source, said.view, axes=said.axes)
    return said


def _spoken(pairs: Sequence[LayerPair], unsaid: list[Unsaid]) -> Iterator[_Saying | Rule]:
    """A rule, or what may become one, for each leaf that is one, or that has parts."""
    by_source: dict[str, list[LayerPair]] = collections.defaultdict(list)
    by_view: dict[str, list[LayerPair]] = collections.defaultdict(list)
    originals: dict[LeafPiece, LayerPair] = {}
    for pair in sorted(pairs, key=_unlikeness):
        original = originals.setdefault(pair.source, pair)
        if original is not pair and pair.source.is_whole:  # the view stores it twice
            if original.order == pair.order:
                yield tie(pair.view.leaf, original.view.leaf)
            else:
                why = "declare both layouts as classes, whose dims say how, beside a tie(...)"
                unsaid.append(Unsaid(f"{pair.view.leaf} is {original.view.leaf} turned", why))
            continue
        by_source[pair.source.leaf].append(pair)
        by_view[pair.view.leaf].append(pair)
    for path, own in by_view.items():
        others = {pair.source.leaf for pair in own}
        counts = {len(by_source[other]) for other in others}
        if len(own) == 1 and counts == {1}:
            yield _renamed(own[0], unsaid)
        elif counts == {1} and all(pair.source.is_whole for pair in own):
            yield from _fused(path, own, unsaid, whole_is_view=True)
    for path, own in by_source.items():
        if len(own) > 1 and all(len(by_view[pair.view.leaf]) == 1 for pair in own):
            yield from _fused(path, own, unsaid, whole_is_view=False)
        elif len(own) > 1:
            why = "it is cut into parts on both sides; declare both layouts as classes"
            unsaid.append(Unsaid(path, why))


def _unlikeness(pair: LayerPair) -> tuple[bool, bool]:
    """What makes one of two copies the original: the one that is as the source has it."""
    return [*pair.order] != sorted(pair.order), pair.view.leaf != pair.source.leaf


def _renamed(pair: LayerPair, unsaid: list[Unsaid]) -> _Saying:
    """A leaf that is one leaf on both sides."""
    source, view = pair.source, pair.view
    spelled = lettered_axes([pair], whole_is_view=False)
    if spelled is None:
        why = "its axes are cut where no rule can say it"
        unsaid.append(Unsaid(f"{source.leaf} is {view.leaf}", why))
        return _Saying(source.leaf, view.leaf)
    before, [after] = spelled
    plain = all("*" not in axis for axis in (*before, *after)) and len(before) == len(after)
    if plain and before == after and not _is_square(source):
        return _Saying(source.leaf, view.leaf)
    if plain and "1" not in before:
        order = " ".join(str(before.index(axis)) for axis in after)
        return _Saying(source.leaf, view.leaf, order)
    return _Saying(source.leaf, view.leaf, f"{' '.join(before)} -> {' '.join(after)}")


def _is_square(part: LeafPiece) -> bool:
    """Whether sizes do not tell the axes of a leaf apart."""
    sizes = [math.prod(own) for own in part.factors if math.prod(own) > 1]
    return len(set(sizes)) < len(sizes)


def _fused(
    path: str, pairs: Sequence[LayerPair], unsaid: list[Unsaid], *, whole_is_view: bool
) -> Iterator[Rule]:
    """A leaf that the other side has in parts."""

    def start(pair: LayerPair) -> tuple[tuple[int, int], ...]:
        return (pair.view if whole_is_view else pair.source).spans

    ordered = sorted(pairs, key=start)
    parts = [(pair.source if whole_is_view else pair.view).leaf for pair in ordered]
    wholes = [pair.view if whole_is_view else pair.source for pair in ordered]
    held = sum(math.prod(whole.shape) for whole in wholes)
    if held < math.prod(wholes[0].flat):
        why = "what the rest of it is is open; fuse(...) says it once you know"
        unsaid.append(Unsaid(f"{path} has {' and '.join(parts)} as parts", why))
        return
    spelled = lettered_axes(ordered, whole_is_view=whole_is_view)
    if spelled is None:
        why = "in parts that no rule can say"
        unsaid.append(Unsaid(f"{path} is made of {', '.join(parts)}", why))
        return
    whole, others = spelled
    words = [" ".join(each) for each in others]
    behind = words[0] if len(set(words)) == 1 else ", ".join(words)
    yield fuse(path, parts, axes=f"{' '.join(whole)} -> {behind}")


# --- Nodes for leaves  ---


def _folded(found: Sequence[_Saying | Rule], sides: tuple[Addresses, Addresses]) -> Iterator[Rule]:
    """Renames of leaves as renames of nodes, where a node has nothing else."""
    sayings = [each for each in found if isinstance(each, _Saying)]
    plain = {each.source: each.view for each in sayings if each.axes is None}
    paths = [{path for path, row in side.rows.items() if row.body is not None} for side in sides]
    nodes: dict[str, str] = dict(plain)
    merged = True
    while merged:
        merged = False
        for source, view in sorted(nodes.items(), key=lambda pair: -pair[0].count("/")):
            if source not in nodes or "/" not in source or "/" not in view:
                continue
            above, over = source.rpartition("/"), view.rpartition("/")
            if above[2] != over[2] or not _is_all(above[0], over[0], plain, paths):
                continue
            for each in [each for each in nodes if _is_below(each, above[0])]:
                del nodes[each]
            nodes[above[0]] = over[0]
            merged = True
    for source, view in nodes.items():
        if source != view:
            yield rename(source, view)
    yield from (_as_rule(each) for each in sayings if each.axes is not None)
    yield from (each for each in found if not isinstance(each, _Saying))


def _is_below(path: str, node: str) -> bool:
    return path.startswith(f"{node}/")


def _is_all(source: str, view: str, plain: Mapping[str, str], paths: Sequence[set[str]]) -> bool:
    """Whether all leaves below two nodes are each other's, by the names that they have there."""
    own = [
        [path for path in side if _is_below(path, node)]
        for side, node in zip(paths, (source, view), strict=True)
    ]
    wanted = {path: f"{view}{path[len(source) :]}" for path in own[0]}
    return len(own[0]) == len(own[1]) and all(plain.get(p) == v for p, v in wanted.items())


def _recodes(pairs: Iterable[LayerPair], unsaid: list[Unsaid]) -> Iterator[Rule]:
    """Rules for values that differ."""
    told: dict[str, set[tuple[float, float]]] = collections.defaultdict(set)
    for pair in pairs:
        told[pair.view.leaf].add((pair.factor, pair.offset))
    for path, several in told.items():
        if several == {(1.0, 0.0)}:
            continue
        if len(several) > 1:
            unsaid.append(Unsaid(path, "its parts hold other values each"))
            continue
        [(factor, offset)] = several
        if factor != 1:
            yield scale(path, factor)
        if offset:
            yield shift(path, offset)

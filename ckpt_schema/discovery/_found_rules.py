"""What pieces that belong together say as rules for leaves: by pattern, once for all layers."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.rules import Fuse, Rule, fuse, rename, tie
from ckpt_schema._lens.value_rules import scale, shift
from ckpt_schema.discovery._axis_letters import LayerPair, lettered_axes
from ckpt_schema.discovery._coarse_pairs import coarse_pairs
from ckpt_schema.discovery._known_leaves import KnownLeaves
from ckpt_schema.discovery._layer_levels import Addresses, LayerLevels, found_levels, single_axes
from ckpt_schema.discovery._leaf_pieces import LeafPiece
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
    pieces, pairings = coarse_pairs(pieces, pairings)
    # Lists and stacks first, for rules speak of a layer. Any option of a choice shows them.
    first_options = [choice.options[0] for choice in choices]
    partners: tuple[dict[LeafPiece, list[LeafPiece]], dict[LeafPiece, list[LeafPiece]]] = {}, {}
    for pairing in itertools.chain(pairings, *first_options):
        for source in pairing.sources:
            partners[0].setdefault(source, []).append(pairing.view)
            partners[1].setdefault(pairing.view, []).append(source)
    found = found_levels(models, pieces, partners)
    levels = known.levels[0].beside(found[0]), known.levels[1].beside(found[1])
    sides = (
        Addresses(models[0], levels[0], names[0]),
        Addresses(models[1], levels[1], names[1]),
    )
    # Then what belongs together in one layer, and what that is as rules. The user's own rules say
    # some of it: that is not said again.
    unsaid: list[Unsaid] = []
    pairs = _pairs(pairings, sides, unsaid)
    said = _said(known, sides)
    spoken = [saying for saying in _spoken(pairs, unsaid) if not _is_said(saying, said)]
    scaled = {sides[1].path(leaf) for leaf in known.recodes}
    options, chosen = _options(pairs, choices, sides, scaled, unsaid)
    values = _recodes(_unscaled(pairs, scaled), unsaid)
    return FoundRules(
        rules=tuple(_folded(spoken, sides)),
        values=(*values, *chosen),
        levels=levels,
        sides=sides,
        options=options,
        unsaid=tuple(dict.fromkeys(unsaid)),
    )


def _unscaled(pairs: Sequence[LayerPair], scaled: Collection[str]) -> list[LayerPair]:
    """The pairs of whose values the user has said nothing."""
    return [pair for pair in pairs if pair.view.leaf not in scaled]


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
    # Choices of which each layer has its own are alike if their options say the same of the layer.
    alike: dict[frozenset[frozenset[LayerPair]], list[Choice]] = {}
    ways: dict[frozenset[frozenset[LayerPair]], list[list[LayerPair]]] = {}
    for choice in choices:
        pairs_of_options = [[*_layer_pairs(option, sides, [])] for option in choice.options]
        mark = frozenset(map(frozenset, pairs_of_options))
        alike.setdefault(mark, []).append(choice)
        ways.setdefault(mark, pairs_of_options)
    said: list[tuple[Choice, tuple[tuple[Rule, ...], ...]]] = []
    common: list[Rule] = []
    for mark, several in alike.items():
        options: list[tuple[list[Rule], list[Rule]]] = []
        for pairs in ways[mark]:
            # What an option says is what is said with it and not without: a part of a fused leaf
            # makes one rule together with the parts that are told.
            faults: list[Unsaid] = []
            more: list[Rule] = []
            for saying in _spoken([*told, *pairs], faults):
                if saying not in spoken:
                    more.append(_as_rule(saying))
            recodes = [*_recodes(_unscaled(pairs, scaled), faults)]
            wanted = {_count(sides[1].rows[pair.view.leaf]) for pair in pairs}
            if wanted != {len(several)}:
                faults.append(
                    Unsaid("a choice that layers have each of their own", "no rule says it")
                )
            faults = [fault for fault in faults if fault not in known]
            if faults:
                unsaid += faults
            else:
                options.append((more, recodes))
        # Where one option cannot be said, the user could not choose it.
        if len(options) < len(ways[mark]):
            said.append((several[0], ()))
            continue
        # A scale that all options have is no part of the choice.
        always = [rule for rule in options[0][1] if all(rule in own for _, own in options)]
        common += always
        rules: list[tuple[Rule, ...]] = []
        for more, recodes in options:
            of_option = [rule for rule in recodes if rule not in always]
            rules.append((*more, *of_option))
        said.append((several[0], tuple(rules)))
    return tuple(said), tuple(common)


def _said(known: KnownLeaves, sides: tuple[Addresses, Addresses]) -> tuple[set[str], set[str]]:
    """The leaves of both sides that rules say already, by their logical paths."""
    return set(map(sides[0].path, known.allowed[0])), set(map(sides[1].path, known.allowed[1]))


def _is_said(saying: _Saying | Rule, said: tuple[set[str], set[str]]) -> bool:
    if isinstance(saying, _Saying):
        return saying.source in said[0] or saying.view in said[1]
    if not isinstance(saying, Fuse):
        return False
    # Either side may have the whole.
    either = said[0] | said[1]
    return any("/".join(path) in either for path in (saying.whole, *saying.parts))


# --- One layer for all  ---


def _pairs(
    pairings: Sequence[Pairing], sides: tuple[Addresses, Addresses], unsaid: list[Unsaid]
) -> list[LayerPair]:
    """What belongs together in one layer, where it is so in all."""
    # Layers 0, 1 and 2 whose pieces are paired alike are one pair, counted three times.
    layers = collections.Counter(_layer_pairs(pairings, sides, unsaid))
    pairs: list[LayerPair] = []
    for pair, count in layers.items():
        wanted = _count(sides[1].rows[pair.view.leaf])
        if count != wanted:
            why = f"it holds in {count} of {wanted} layers alone"
            unsaid.append(Unsaid(f"{pair.source.leaf} is {pair.view.leaf}", why))
        else:
            pairs.append(pair)
    return pairs


def _layer_pairs(
    pairings: Sequence[Pairing], sides: tuple[Addresses, Addresses], unsaid: list[Unsaid]
) -> Iterator[LayerPair]:
    """Each pairing, as its layer has it."""
    for pairing in pairings:
        if len(pairing.sources) > 1:
            several = " and ".join(map(str, pairing.sources))
            unsaid.append(Unsaid(f"{pairing.view} is {several} together", "no rule says it"))
            continue
        source, order = next(zip(pairing.sources, pairing.orders, strict=True))
        before, first = _layer(source, sides[0])
        after, second = _layer(pairing.view, sides[1])
        if first != second:
            why = "layers have other numbers, or another nesting, on the two sides"
            unsaid.append(Unsaid(f"{source} is {pairing.view}", why))
            continue
        # view = s2 * x + o2 and source = s1 * x + o1: without x, view = f * source + o.
        factor = pairing.view.scale / source.scale
        offset = pairing.view.offset - factor * source.offset
        yield LayerPair(before, after, order, factor, offset)


def _layer(piece: LeafPiece, side: Addresses) -> tuple[LeafPiece, tuple[int, ...]]:
    """A piece as its layer has it, and the numbers of the layer."""
    row, slot = side.slots[piece.leaf]
    stored = dict(single_axes(piece))
    marks = iter(slot)
    # The number of the layer at each level: of a list it is in the path, of a stack it is the index
    # on an axis, which the layer does not have. A stack that is not taken apart has none, -1.
    indices: list[int] = []
    dropped: set[int] = set()
    stacks: dict[int, int] = {}
    for axis, (kind, level) in enumerate(row.axes):
        if kind == "level":
            stacks[level] = axis
    for level, repeat in enumerate(row.repeats):
        if repeat.axis is None:
            indices.append(next(marks))
        else:
            axis = stacks[level]
            dropped.add(axis)
            indices.append(stored.get(axis, -1))
    # The other factors are counted anew.
    factors: list[tuple[int, ...]] = []
    spans: list[tuple[int, int]] = []
    kept: dict[int, int] = {}
    for axis, sizes in enumerate(piece.factors):
        if axis in dropped:
            continue
        first = piece.first_factor(axis)
        for factor in range(first, first + len(sizes)):
            kept[factor] = len(spans)
            spans.append(piece.spans[factor])
        factors.append(sizes)
    axes: list[tuple[int, ...]] = []
    for numbers in piece.axes:
        axes.append(tuple(kept[factor] for factor in numbers if factor in kept))
    layer = LeafPiece(side.path(piece.leaf), tuple(factors), tuple(spans), tuple(axes))
    return layer, tuple(indices)


def _count(row: Row) -> int:
    """How many layers a leaf has."""
    count = 1
    for repeat in row.repeats:
        for size in repeat.size:
            count *= size if isinstance(size, int) else 1
    return count


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
        # A leaf of the source that is two of the view: the view stores it twice.
        if original is not pair and pair.source.is_whole:
            # A tie joins axis by axis: of a copy that is turned it would exchange the axes.
            if original.order == pair.order:
                yield tie(pair.view.leaf, original.view.leaf)
            else:
                why = "declare both layouts as classes, whose dims say how, beside a tie(...)"
                unsaid.append(Unsaid(f"{pair.view.leaf} is {original.view.leaf} turned", why))
            continue
        by_source[pair.source.leaf].append(pair)
        by_view[pair.view.leaf].append(pair)
    # One of one is a rename; one of several whole leaves is fused of them, on either side.
    for path, of_view in by_view.items():
        counts = {len(by_source[pair.source.leaf]) for pair in of_view}
        if len(of_view) == 1 and counts == {1}:
            yield _renamed(of_view[0], unsaid)
        elif counts == {1} and all(pair.source.is_whole for pair in of_view):
            yield from _fused(path, of_view, unsaid, whole_is_view=True)
    for path, of_source in by_source.items():
        counts = {len(by_view[pair.view.leaf]) for pair in of_source}
        if len(of_source) > 1 and counts == {1}:
            yield from _fused(path, of_source, unsaid, whole_is_view=False)
        elif len(of_source) > 1:
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
    # The least that has to be said: nothing, an order such as 1 0, or all axes by letters.
    before, [after] = spelled
    is_plain = "*" not in " ".join((*before, *after)) and len(before) == len(after)
    # Of a square kernel that it is not turned has to be said: its sizes do not show it.
    if is_plain and before == after and not _is_square(source):
        return _Saying(source.leaf, view.leaf)
    if is_plain and "1" not in before:
        order = " ".join(str(before.index(axis)) for axis in after)
        return _Saying(source.leaf, view.leaf, order)
    return _Saying(source.leaf, view.leaf, f"{' '.join(before)} -> {' '.join(after)}")


def _is_square(part: LeafPiece) -> bool:
    """Whether sizes do not tell the axes of a leaf apart."""
    sizes = [size for size in part.leaf_shape if size > 1]
    return len(set(sizes)) < len(sizes)


def _fused(
    path: str, pairs: Sequence[LayerPair], unsaid: list[Unsaid], *, whole_is_view: bool
) -> Iterator[Rule]:
    """A leaf that the other side has in parts."""

    def start(pair: LayerPair) -> tuple[tuple[int, int], ...]:
        return (pair.view if whole_is_view else pair.source).spans

    ordered = sorted(pairs, key=start)
    wholes: list[LeafPiece] = []
    parts: list[str] = []
    for pair in ordered:
        wholes.append(pair.view if whole_is_view else pair.source)
        parts.append((pair.source if whole_is_view else pair.view).leaf)
    # Parts that no gradient tells, as of an expert that no token chooses, are not among the pairs.
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
    # Parts that are alike are spelled once.
    words = [" ".join(axes) for axes in others]
    behind = words[0] if len(set(words)) == 1 else ", ".join(words)
    yield fuse(path, parts, axes=f"{' '.join(whole)} -> {behind}")


# --- Nodes for leaves  ---


def _folded(found: Sequence[_Saying | Rule], sides: tuple[Addresses, Addresses]) -> Iterator[Rule]:
    """Renames of leaves as renames of nodes, where a node has nothing else."""
    sayings: list[_Saying] = []
    rules: list[Rule] = []
    for each in found:
        if isinstance(each, _Saying):
            sayings.append(each)
        else:
            rules.append(each)
    plain = {saying.source: saying.view for saying in sayings if saying.axes is None}
    paths = [_body_paths(side) for side in sides]
    # From the deepest nodes up: a/x -> b/x and a/y -> b/y are a -> b, if neither has more.
    nodes: dict[str, str] = dict(plain)
    is_merged = True
    while is_merged:
        is_merged = False
        for source, view in sorted(nodes.items(), key=lambda pair: -pair[0].count("/")):
            # A sibling may have merged it within this round.
            if source not in nodes or "/" not in source or "/" not in view:
                continue
            above, _, name = source.rpartition("/")
            over, _, other_name = view.rpartition("/")
            if name != other_name or not _is_all(above, over, plain, paths):
                continue
            for below in [node for node in nodes if _is_below(node, above)]:
                del nodes[below]
            nodes[above] = over
            is_merged = True
    # What has the same path on both sides needs no rule.
    for source, view in nodes.items():
        if source != view:
            yield rename(source, view)
    for saying in sayings:
        if saying.axes is not None:
            yield _as_rule(saying)
    yield from rules


def _body_paths(side: Addresses) -> set[str]:
    """The paths of a side's leaves but for those that stand beside its model."""
    return {path for path, row in side.rows.items() if row.body is not None}


def _is_below(path: str, node: str) -> bool:
    return path.startswith(f"{node}/")


def _is_all(source: str, view: str, plain: Mapping[str, str], paths: Sequence[set[str]]) -> bool:
    """Whether all leaves below two nodes are each other's, by the names that they have there."""
    below_source = [path for path in paths[0] if _is_below(path, source)]
    below_view = [path for path in paths[1] if _is_below(path, view)]
    if len(below_source) != len(below_view):
        return False
    # a/x/kernel -> b/x/kernel for each: the same behind both nodes.
    return all(plain.get(path) == f"{view}{path.removeprefix(source)}" for path in below_source)


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

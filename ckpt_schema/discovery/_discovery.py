"""A lens found by running both models: what is told, what is open, and on what evidence."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.adapt.one_sided import derived
from ckpt_schema._lens.adapt.stacks import Scan
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Rule
from ckpt_schema._messages.html import Section
from ckpt_schema._messages.pictures import Picture, Pictured
from ckpt_schema._messages.text import PRINT_WIDTH, columns, text_lines
from ckpt_schema.discovery._cautions import colliding_sizes, differing_leaves, unexercised
from ckpt_schema.discovery._coarse_pairs import coarse_pairs
from ckpt_schema.discovery._depths import LayerFactory, first_other, verify_factories
from ckpt_schema.discovery._found_rules import FoundRules, rules_of
from ckpt_schema.discovery._known_leaves import KnownLeaves, known_leaves
from ckpt_schema.discovery._layer_levels import Addresses, LayerLevels
from ckpt_schema.discovery._leaf_pieces import whole_piece
from ckpt_schema.discovery._matching import Matched, Pairing, match_pieces
from ckpt_schema.discovery._models import (
    DiscoveryError,
    RunnableModel,
    drawn_tree,
    model_of,
    named_values,
    unstable_run,
)
from ckpt_schema.discovery._open import (
    Open,
    SpokenNames,
    leaf_kinds,
    open_asleep,
    open_entries,
    open_skipped,
    open_unsaid,
    piece_text,
    rules_text,
)
from ckpt_schema.discovery._open_values import OpenValues
from ckpt_schema.discovery._points import leaves_of, relative_gap, shared_values
from ckpt_schema.discovery._readings import NEARLY, Reading, Search, turns_of
from ckpt_schema.errors import CkptSchemaError, DerivationError, Mismatch

__all__ = ["Discovery", "Evidence", "Open", "discover", "makes_one_function"]

Models = tuple[RunnableModel, RunnableModel]
Status = Literal["complete", "complete but for choices", "incomplete", "refused"]

_MOST_READINGS = 8


@dataclasses.dataclass(frozen=True)
class Evidence:
    """How far the two models differ with what was found, and how near the next candidate is.

    Attributes:
        outputs: The difference of the outputs at independent random values, relative to their size.
        gradients: The greatest difference of gradients there.
        noise: The difference of outputs at the shared point: what rounding makes.
        nearest: The least difference of gradients of a pair that was refused.
        readings: How many readings were tried.
    """

    outputs: float
    gradients: float
    noise: float
    nearest: float
    readings: int


@dataclasses.dataclass(frozen=True)
class Discovery(Pictured):
    """What was found by running two models; a proposal, from which rules are made.

    Attributes:
        status: ``"complete"``; ``"complete but for choices"``, where `open` has what only the user can
            choose; ``"incomplete"``, where something that matters has no place; ``"refused"``, where
            no reading makes the outputs equal: the two are not one function.
        rules: What was found, as rules for `derive` and `adapt`, once for all layers.
        open: What is not decided, each with its candidates.
        evidence: The differences that this rests on.
        source: The layout of the source, with its lists and stacks.
        view: The layout of the view.
        scan: What `adapt` is to be told of stacked layers, for other sizes of the same models.
        lists: What it is to be told of lists.
        pairings: What belongs together: leaves, or pieces of them where a leaf is of several; not of
            leaves whose values are open.
        differ_from: With how many layers the two begin to differ, where ``with_layers`` was given and
            they are not one function: 1 is the first, 0 what stands before and behind all layers.
        notes: What else is to be known: what no rule can say, readings that are as good.
    """

    status: Status
    rules: tuple[Rule, ...]
    open: tuple[Open, ...]
    evidence: Evidence
    source: Layout
    view: Layout
    scan: Mapping[str, Any]
    lists: tuple[str, ...]
    pairings: tuple[Pairing, ...] = ()
    differ_from: int | None = None
    notes: tuple[str, ...] = ()
    _gap: Callable[[Lens], tuple[float, float]] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    _names: SpokenNames = dataclasses.field(default=({}, {}), repr=False, compare=False)

    @property
    def is_one_function(self) -> bool:
        """Whether all that matters has its place; choices may be open."""
        return self.status in ("complete", "complete but for choices")

    def lens(self, rules: Sequence[Rule] = ()) -> Lens:
        """The lens between the two layouts.

        Args:
            rules: What settles that which is open.

        Raises:
            DiscoveryError: The two are not one function, something that matters has no place, a choice
                is not said, or the lens does not carry random values to equal outputs.
            DerivationError: What is open has no place by these rules; the candidates stand beneath.
        """
        faults: list[Mismatch] = []
        if not self.is_one_function:
            for entry in self.open:
                faults.append(Mismatch(entry.where, "open", "one candidate", entry.reason))
            raise DiscoveryError(f"no lens: the discovery is {self.status}", faults, self.notes)
        for entry in self.open:
            if not entry.is_settled(rules):
                count = f"{len(entry.options)} that leave the outputs equal"
                ways = " or rules=".join(map(rules_text, entry.options))
                hint = f"say which: lens(rules={ways})"
                expected = "a choice, which is yours"
                faults.append(Mismatch(entry.where, "open", expected, count, hint))
        if faults:
            raise DiscoveryError("no lens: a choice is the user's", faults)
        # The user's rules may be wrong, and what rules say is checked for shapes alone: the lens is
        # tried at random values. What was made without models has nothing to try it with.
        lens = self._derived(rules)
        gap, bound = (0.0, 0.0) if self._gap is None else self._gap(lens)
        if gap > bound:
            hint = "what was found leaves them equal: see which of your rules say otherwise"
            found = f"outputs that differ by {gap:.1e}"
            fault = Mismatch("the lens", "outputs", "equal outputs at random values", found, hint)
            raise DiscoveryError("no lens: it would make another function", [fault])
        return lens

    def _derived(self, rules: Sequence[Rule]) -> Lens:
        try:
            return derived(self.source, self.view, [*self.rules, *rules], None)
        except DerivationError as error:
            # What is open is likely what the derivation lacks: both stand in one error.
            lines = ["running the models does not tell these; say of each what it is, in rules=:"]
            lines += [f"    # {entry}" for entry in self.open]
            notes = [*error.notes]
            if self.open:
                notes.append("\n".join(lines))
            raise DerivationError(error.header, error.mismatches, notes) from error

    def _picture(self) -> Picture:
        """What is what, the rules, what is open, and the evidence."""
        names = self.source.name, self.view.name
        rules = [(str(rule),) for rule in self.rules]
        pairs: list[tuple[str, str]] = []
        for pairing in self.pairings:
            view = piece_text(str(pairing.view), self._names[1])
            pairs.append((self._sources_text(pairing), view))
        told = self.evidence
        # No other pair was near enough to be compared.
        no_other = told.nearest == float("inf")
        evidence = [
            ("outputs at random values", f"{told.outputs:.1e}"),
            ("gradients there", f"{told.gradients:.1e}"),
            ("gradients of the next candidate", "none" if no_other else f"{told.nearest:.1e}"),
        ]
        sections = [
            Section("open", ("where", "why"), [(each.where, each.reason) for each in self.open]),
            Section("rules", ("",), rules, one="rule", code=True),
            Section("pairs of pieces", names, pairs, folded=bool(rules), one="pair of pieces"),
            Section("notes", ("",), [(note,) for note in self.notes], one="note"),
            Section("differences", ("of", "relative to their size"), evidence),
        ]
        return Picture(f"{names[0]} -> {names[1]}: {self.status}", sections)

    def _sources_text(self, pairing: Pairing) -> str:
        """What of the source a piece of the view is."""
        sources = [piece_text(str(source), self._names[0]) for source in pairing.sources]
        return " and ".join(sources)

    def __str__(self) -> str:
        """A table: what is what, what is open, and the evidence."""
        cells: list[tuple[str, ...]] = []
        for pairing in self.pairings:
            view = piece_text(str(pairing.view), self._names[1])
            cells.append((view, "<-", self._sources_text(pairing)))
        lines = [f"{self.source.name} -> {self.view.name}: {self.status}"]
        lines += columns(cells, width=PRINT_WIDTH)
        lines += [f"  {rule}" for rule in self.rules]
        lines += [f"  open: {each}" for each in self.open]
        lines += [f"  {note}" for note in self.notes]
        told = self.evidence
        lines.append(
            f"  outputs differ by {told.outputs:.1e} at random values, gradients by "
            f"{told.gradients:.1e}; the next candidate by {told.nearest:.1e}"
        )
        printed: list[str] = []
        for line in lines:
            printed += text_lines(line, hang=6)
        return "\n".join(printed)


def discover(
    source_run: Callable[[Any], Any] | None,
    source: Any,
    view_run: Callable[[Any], Any] | None,
    view: Any,
    *,
    rules: Sequence[Rule] = (),
    scan: Scan | None = None,
    lists: Sequence[str] | None = None,
    with_layers: tuple[LayerFactory, LayerFactory] | None = None,
    seed: int = 0,
    budget: int = 20_000,
    names: tuple[str, str] = ("source", "view"),
) -> Discovery:
    """Finds which leaf of one model is which leaf of another, by running both; no name is compared.

    Two models that are one function have equal outputs and equal gradients where their leaves hold
    equal values. Both get values that depend on the shapes of leaves alone; then equal gradients are
    equal leaves, whatever they are called, and however they are turned, stacked or fused. What is
    found is proved at independent random values. What cannot be told is never guessed: it is `open`.

    Everything is run in float64 on small models: two to four layers, all sizes different, none the
    sum of others. The rules hold by pattern for all sizes.

    Args:
        source_run: Computes outputs of what ``source`` is, for an input of your choice, as in
            evaluation: ``lambda variables: model.apply(variables, tokens)``.
        source: A tree of arrays or abstract values, an ``nnx.Module``, a layout or schema whose dims
            have sizes, the path of a checkpoint, or a `RunnableModel`, which needs no run.
        view_run: The same for the view, of the same input.
        view: The other model's leaves.
        rules: What is known beforehand. Leaves that a `rename` or a `fuse` names are no others, and
            are not said again; what a `scale` or a `shift` says of values is carried over first.
        scan: Which nodes are stacked, and on which axis, where that is known; as `ckpt_schema.adapt`
            takes it, and by logical paths. Their leaves are taken apart on that axis.
        lists: Which siblings are a list of layers, where that is known; the same.
        with_layers: Where the two are no one function, at which layer they begin to differ is told by
            fewer layers of them: ``(old, new)``, each of which takes a number of layers and gives a run
            and the leaves for it, as they are given here.
        seed: Of the random values.
        budget: How many readings to try at most, where the models do not agree at once: how leaves are
            cut, and how their values differ. Each takes a run of one model or both; what is found does
            not depend on how fast that is.
        names: What messages call the two.

    Returns:
        What was found.

    Raises:
        DiscoveryError: A model cannot be run, keeps a state, has other outputs each time or in
            another shape, or its outputs are no finite floats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)
        >>> old = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 5))}
        >>> new = {"w1": jnp.ones((6, 4)), "w2": jnp.ones((5, 6))}
        >>> found = discover(
        ...     lambda p: jnp.tanh(x @ p["up"]) @ p["down"], old,
        ...     lambda p: jnp.tanh(x @ p["w1"].T) @ p["w2"].T, new,
        ... )
        >>> print(found.status, *found.rules)
        complete rename('down', 'w2', axes='1 0') rename('up', 'w1', axes='1 0')
        >>> found.lens().get(old)["w1"].shape
        (6, 4)
    """
    if with_layers is not None:
        verify_factories(with_layers)
    models = model_of(source_run, source, names[0]), model_of(view_run, view, names[1])

    words = _Words(tuple(rules), scan, lists, seed, budget, names)
    found = _discovered(models, words, known_leaves(models, rules, scan, lists, names))
    if with_layers is None or found.is_one_function:
        return found
    other = first_other(with_layers, models, names, lambda fewer: _is_one_function(fewer, words))
    notes = (*found.notes, str(other))
    return dataclasses.replace(found, differ_from=other.layers, notes=notes)


@dataclasses.dataclass(frozen=True)
class _Words:
    """What a caller says besides the models; see `discover`."""

    rules: tuple[Rule, ...]
    scan: Scan | None
    lists: Sequence[str] | None
    seed: int
    budget: int
    names: tuple[str, str]


def _is_one_function(models: Models, words: _Words) -> bool:
    """Whether two models with fewer layers than those that are given are one function."""
    try:
        known = known_leaves(models, words.rules, words.scan, words.lists, words.names)
    # With fewer layers a rule may name one that is not there, which is no fault of the caller's.
    except CkptSchemaError:
        known = KnownLeaves()
    return _discovered(models, words, known).is_one_function


def _discovered(models: Models, words: _Words, known: KnownLeaves) -> Discovery:
    """What running two models tells."""
    names, seed = words.names, words.seed
    _verify_runs(models, names, seed)
    # Readings come in turns, the least changed first; each is matched, until one explains all.
    searches: list[Search] = []
    judged: dict[tuple[Search, Reading], Matched] = {}
    readings: list[Reading] = []
    for search, readings in turns_of(models, seed, words.budget, known, searches):
        if readings[0].noise > NEARLY:
            break
        for reading in readings[:_MOST_READINGS]:
            if (search, reading) not in judged:
                pieces = search.cutting.both_pieces(reading.changes)
                matched = match_pieces(models, pieces, reading.noise, seed, known)
                judged[search, reading] = matched
        # Other readings would explain no more.
        if any(matched.agrees and not any(matched.alone) for matched in judged.values()):
            break
    # Nothing made the outputs nearly equal: the last turn has the best of all readings.
    if not judged:
        search = searches[0]
        collisions = colliding_sizes(itertools.chain(*search.cutting.both_pieces(frozenset())))
        return _refused(models, search, readings, names, collisions)
    # The sort is stable: of readings that cost the same, the one that came first.
    ordered = sorted(judged.items(), key=lambda pair: _cost(pair[1]))
    (search, reading), best = ordered[0]
    pieces = search.cutting.both_pieces(reading.changes)
    found = rules_of(models, pieces, best.pairings, names, best.choices, known)
    # Values may differ in other ways that are as good: the same factor in another leaf, or all of
    # another reading that explains as much.
    values = OpenValues(found.values)
    if reading.recodes and best.complete:
        values.add_places(models[1], found.paths, best, known, seed)
        for (other_search, other), matched in ordered[1:]:
            if _cost(matched)[:2] == _cost(best)[:2]:
                pieces = other_search.cutting.both_pieces(other.changes)
                way = rules_of(models, pieces, matched.pairings, names, known=known)
                values.add_way(way.values)
    carried = functools.partial(_carried, models, seed, best.noise)
    notes = unexercised(models[0], best.values[0], seed)
    if not best.complete:
        notes += colliding_sizes(itertools.chain(*search.cutting.both_pieces(reading.changes)))
    tried = sum(each.tried for each in searches)
    return _told(models, best, found, values, carried, tried, known, notes)


def _carried(models: Models, seed: int, noise: float, lens: Lens) -> tuple[float, float]:
    """How far outputs differ where a lens has carried random values over, and how far they may."""
    # The view's own random values stay where the lens carries none.
    trees = [drawn_tree(model, seed + side) for side, model in enumerate(models)]
    before = named_values(models[0], trees[0])
    outputs = models[0].run(before)
    if relative_gap(outputs, outputs) > 0:
        trees[0] = jax.tree.map(_above_zero, trees[0])
        before = named_values(models[0], trees[0])
        outputs = models[0].run(before)
    after = named_values(models[1], lens.get(trees[0], onto=trees[1]))
    gap = relative_gap(outputs, models[1].run(after))
    # Values that a lens scales are rounded to the dtype of their leaf.
    return gap, max(1e-3, 1000 * noise)


def _above_zero(leaf: Any) -> Any:
    """A leaf of floats without its signs, as variances that are stacked have to be: other leaves as they are."""
    return abs(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def makes_one_function(models: Models, lens: Lens, seed: int = 0) -> bool:
    """Whether a lens makes one function of two models: it makes_one_function random values over to equal outputs."""
    _verify_runs(models, ("source", "view"), seed)
    noise = 0.0 if all(model.wide for model in models) else 3e-5
    gap, bound = _carried(models, seed, noise, lens)
    return gap <= bound


def _verify_runs(models: Models, names: tuple[str, str], seed: int) -> None:
    """Raises unless both models give the same finite outputs each time."""
    faults: list[Mismatch] = []
    shapes: list[int] = []
    for model, name in zip(models, names, strict=True):
        # At the shared point of whole leaves; twice, for a run with dropout differs each time.
        pieces = [whole_piece(leaf, shape) for leaf, shape in model.shapes.items()]
        leaves = leaves_of(model, pieces, shared_values(pieces, seed))
        first = model.run(leaves)
        # Variances that are stacked have two axes, as a kernel has: values above zero are tried then.
        if relative_gap(first, first) > 0:
            leaves = {key: abs(value) for key, value in leaves.items()}
            first = model.run(leaves)
        second = model.run(leaves)
        shapes.append(first.size)
        # What is not finite has an infinite gap even to itself.
        if relative_gap(first, first) > 0:
            hint = "the values are random, of size one: leave out what masks with infinities"
            faults.append(Mismatch(name, "outputs", "finite numbers", "NaN or infinities", hint))
        elif relative_gap(first, second) > 1e-6:
            faults += unstable_run(name).mismatches
    if shapes[0] != shapes[1]:
        hint = "give both the same input, and return the same of both"
        expected = f"{shapes[0]} numbers, as {names[0]} gives"
        faults.append(Mismatch(names[1], "outputs", expected, f"{shapes[1]}", hint))
    if faults:
        raise DiscoveryError("the models cannot be compared", faults)


def _cost(matched: Matched) -> tuple[bool, int, int]:
    """What tells one reading from a worse one: it must hold at random values, leave nothing alone, and cut little."""
    pieces = len(matched.pairings) + sum(len(choice.views) for choice in matched.choices)
    return (not matched.agrees, sum(map(len, matched.alone)), pieces)


def _refused(
    models: Models,
    search: Search,
    readings: Sequence[Reading],
    names: tuple[str, str],
    collisions: Sequence[str],
) -> Discovery:
    """That the two are not one function."""
    found = rules_of(models, ([], []), [], names)
    nearest = readings[0]
    notes = [f"no reading makes the outputs equal: they differ by {nearest.noise:.1e} at best"]
    for reading in readings[1:4]:
        notes.append(f"with {_worded(reading)} they differ by {reading.noise:.1e}")
    # Outputs are compared flat, so that as many numbers may be another order of axes. A model of a
    # user's own need not tell its shapes.
    shapes = [getattr(model, "output_shapes", None) for model in models]
    if None not in shapes and shapes[0] != shapes[1]:
        words = [", ".join(map(str, shapes_of_side or ())) for shapes_of_side in shapes]
        notes.append(f"their outputs have other shapes: {' and '.join(words)}")
    notes += collisions
    notes += differing_leaves(search.suspects, list(map(_spoken_names, found.sides)))
    return Discovery(
        status="refused",
        rules=(),
        open=(),
        evidence=Evidence(nearest.noise, 0.0, nearest.noise, 0.0, search.tried),
        source=found.layouts[0],
        view=found.layouts[1],
        scan={},
        lists=(),
        notes=tuple(notes),
    )


def _worded(reading: Reading) -> str:
    words: list[str] = []
    for change in reading.changes:
        leaves = leaf_kinds(change.names)
        if change.what == "recode":
            words.append(f"{leaves} {change.how}")
        elif change.what == "cut":
            words.append(f"{leaves} cut otherwise")
        else:
            words.append(f"axes of {change.how[0]} cut")
    return " and ".join(sorted(words)) or "nothing changed"


def _told(
    models: Models,
    matched: Matched,
    found: FoundRules,
    values: OpenValues,
    carried: Callable[[Lens], tuple[float, float]],
    tried: int,
    known: KnownLeaves,
    cautions: Sequence[str],
) -> Discovery:
    """The discovery that a match makes."""
    asleep = open_asleep(matched, known)
    rules = tuple(dict.fromkeys([*found.rules, *values.settled, *known.rules]))
    skipped = open_skipped(models, found, rules) if matched.complete else []
    unsaid = open_unsaid(found)
    opens = [*open_entries(matched, found), *asleep, *values.opens, *skipped]
    notes = [*cautions]
    if matched.complete:
        opens += unsaid
    else:
        notes = [*map(str, unsaid), *cautions]
    if matched.odd:
        names = ", ".join(map(str, matched.odd))
        notes.append(f"outputs agree and gradients do not, as of a masked row: {names}")
    if matched.noise > 1e-6:
        notes.append(
            f"the outputs agree to {matched.noise:.0e} only: another epsilon, or float32 inside"
        )
    status: Status = "complete"
    if not matched.complete:
        status = "incomplete"
    elif opens:
        status = "complete but for choices"
    # Asked once: each makes all paths anew, of thousands of leaves.
    paths, open_paths = found.paths, values.paths
    closed = [each for each in matched.pairings if paths[each.view.leaf] not in open_paths]
    # What was cut for the sake of other leaves is told as one, as the rules say it.
    _, pairings = coarse_pairs(([], []), closed)
    here, there = map(_spoken_names, found.sides)
    opens = [dataclasses.replace(each, _names=(here, there)) for each in opens]
    evidence = Evidence(matched.outputs, matched.gradients, matched.noise, matched.nearest, tried)
    before, after = found.levels
    lists = dict.fromkeys((*before.lists, *after.lists))
    return Discovery(
        status=status,
        rules=rules,
        open=tuple(opens),
        evidence=evidence,
        source=found.layouts[0],
        view=found.layouts[1],
        scan=_both_scans(before, after),
        lists=tuple(lists),
        pairings=tuple(pairings),
        notes=tuple(notes),
        _gap=carried,
        _names=(here, there),
    )


def _spoken_names(side: Addresses) -> dict[str, str]:
    """What rules call each leaf of a side."""
    return {leaf: side.spoken(leaf) for leaf in side.slots}


def _both_scans(before: LayerLevels, after: LayerLevels) -> dict[str, Any]:
    """The axes of both sides as `adapt` takes them: a pair where both have a node of one name."""
    scans: dict[str, Any] = {**before.scan, **after.scan}
    for node in before.scan.keys() & after.scan.keys():
        scans[node] = before.scan[node], after.scan[node]
    return scans

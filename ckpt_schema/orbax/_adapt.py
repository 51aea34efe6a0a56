"""A checkpoint adapted to a target: the lens between them, when nobody has declared either."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from ckpt_schema._frameworks.state_names import OPTIMIZER_STATE, WEIGHTS
from ckpt_schema._frameworks.variables import state_of
from ckpt_schema._layouts.paths import KeyPath, format_path
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.adapt.adaptation import adapt_trees
from ckpt_schema._lens.adapt.one_sided import Keeps
from ckpt_schema._lens.adapt.siblings import names_in
from ckpt_schema._lens.adapt.stacks import Scan
from ckpt_schema._lens.derived_lens import derive
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.plan.moved_leaves import only_moves
from ckpt_schema._lens.read_sides import (
    ReadSide,
    ReadSides,
    have_in_common,
    is_path,
    made_abstract,
    name_of,
    read_once,
)
from ckpt_schema._lens.rules import Rule
from ckpt_schema._messages.text import counted
from ckpt_schema._trees.inference import infer_tree
from ckpt_schema.errors import (
    CheckpointMismatchError,
    CkptSchemaError,
    ConformanceError,
    DerivationError,
    Mismatch,
    SchemaError,
)
from ckpt_schema.orbax._folders import SeveralItemsError
from ckpt_schema.orbax._metadata import AUX, DiskTree, read_metadata
from ckpt_schema.orbax._private_leaves import PrivateLeaves, find
from ckpt_schema.orbax._sides import Side, interchangeable
from ckpt_schema.orbax._whereabouts import (
    candidates,
    lower_nodes,
    meant,
    several,
    tree_below,
    verify_standing,
)

__all__ = ["Words", "adapt", "adapted", "adapted_item", "saved_through", "spare_words"]

ModelRun = Callable[[Any], Any]
"""Computes the outputs of a model, of its leaves."""

_LOGGER = logging.getLogger("ckpt_schema")


def adapt(
    source: Any,
    view: Any,
    *,
    rules: Sequence[Rule] = (),
    scan: Scan | None = None,
    lists: Sequence[str] | None = None,
    run: tuple[ModelRun | None, ModelRun | None] | None = None,
    item: str | None = None,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
) -> Lens:
    """The lens between two trees whose layouts nobody has declared.

    Both layouts are read off, as by `infer`, and the lens is derived between them, as by `derive`.
    Leaves join by equal paths in the model, whatever Linen or NNX puts around them. A list of
    layers on one side and a stack on the other are told by both together. Streams, caches and
    records that one side alone has are private to it. Nothing is guessed: where two readings fit,
    the error has the line that settles it.

    Args:
        source: The path of a checkpoint, of which the metadata alone is read; or a tree of arrays or
            abstract values, a module, a function that makes either, a schema or a layout. Of a dict of
            leaves whose names have dots, as `ckpt_schema.hf.load` gives it, the names are paths.
        view: The same, of the other side.
        rules: What names and shapes do not tell, as in `derive`. Print the lens, or the error, for
            the paths.
        scan: The axis that the layers of a node are stacked on, by the path of the node in the model:
            ``{"layers": 1}``; by collection or Variable type, ``{"layers": {nnx.Param: 1}}``; a pair
            where both sides are stacked, ``{"layers": (0, 1)}``; another one for what is in the node, by
            its path, ``{"layers": 1, "layers/**/rngs": 0}``.
        lists: Patterns of siblings that are a list of layers, ``["layers_{i}"]``; unless given, those
            that are one node of the other side. Those of which a rule calls one by its own name are none.
        run: What computes the outputs of each side, as `discover` takes it. The lens that names give
            has to carry random values over to equal outputs then; where it does not, or names give
            none, running both tells which leaf is which.
        item: Which pytree of a checkpoint that is the source, where it holds several.
        at: The key path in the source where the state stands, as in ``{"model": state, "config": ...}``.
            The lens is one for what is there, as `ckpt_schema.orbax.restore` with ``at=`` takes it.
        items: For a state that is spread over several pytrees of a checkpoint, which one holds what is
            at a key.

    Returns:
        A lens from the source to the view, to print, keep and test.

    Raises:
        CheckpointMismatchError: There is no checkpoint at the path, or the state stands at another key.
        ConformanceError: There is nothing at ``at``, or ``item`` and ``items`` are given of a tree.
        DiscoveryError: Both were run, and are no one function, or have a choice that is yours.
        DerivationError: With everything that has two readings, or no partner.
        SchemaError: A tree holds what is no leaf.

    Example:
        >>> import jax
        >>> leaf, stack = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 8), (3, 4, 8)))
        >>> old = {"params": {"layers": {"kernel": stack}}}
        >>> new = {"params": {f"layers_{i}": {"kernel": leaf} for i in range(3)}}
        >>> print(adapt(old, new))
        source -> view: 1 joined, 0 private to source, 0 private to view
          params/layers/kernel  params/layers_{i}/kernel  3 4 8 -> {3} 4 8
    """
    verify_standing(at, items)
    where: dict[str, Any] = {"item": item, "at": at, "items": items}
    is_told = any(word is not None for word in where.values())
    # Where it is said which pytree is meant, or there is no tree to try them on,
    # none is looked for.
    if is_path(view) or run is not None or is_told:
        disk = _on_disk(source, where)
    else:
        try:
            disk = _on_disk(source, where)
        except SeveralItemsError:
            told = Words(rules, scan, lists)
            target, name = made_abstract(view), name_of(view, "view")
            return adapted_item(source, None, target, name, told, AUX)[0]
    left = tree_below(source, **where) if disk is None else disk.without(AUX).tree
    here = None if disk is None else disk.joined
    right, there = _read(view)
    beside: PrivateLeaves | None = None
    if disk is not None and here is None:  # what a restore reads of it
        left = _part(left, _weights_alone(left, made_abstract(view), rules))
        beside = find(disk, AUX, total=False)
    names = name_of(source, "source"), name_of(view, "view")
    how: dict[str, Any] = {"names": names, "own": _kept_by(None, beside), "joined": (here, there)}
    words: dict[str, Any] = {"rules": rules, "scan": scan, "lists": lists}
    if run is None:
        # Two plain trees are read once, for the lens and for the error, if there is one.
        is_whole = disk is None and at is None
        read = read_once((left, right), names, rules) if is_whole else None
        try:
            return adapt_trees(*(read or (left, right)), **words, **how)
        except (DerivationError, SchemaError) as error:
            told = Words(**words)
            below = None if at is not None else _below_root(source, disk, view, told, read)
            raise below or error from None
    _verify_runs(run)
    # Running models takes modules that nothing else does.
    from ckpt_schema.discovery._discovery import discover, makes_one_function
    from ckpt_schema.discovery._models import model_of

    models = (
        model_of(run[0], left, names[0], here),
        model_of(run[1], right, names[1], there),
    )
    # Names first, which is quick. They may join leaves wrongly, so outputs have the last word.
    try:
        lens = adapt_trees(left, right, **words, **how)
    except DerivationError:
        lens = None
    if lens is not None and makes_one_function(models, lens):
        return lens
    found = discover(None, models[0], None, models[1], names=names, **words)
    lens = found.lens()
    # Of private leaves beside the state running tells nothing: they come in by a second derivation.
    if how["own"] is None:
        return lens
    return adapt_trees(left, right, rules=found.rules, scan=found.scan, lists=found.lists, **how)


def _verify_runs(run: object) -> None:
    several: tuple[object, ...] = run if isinstance(run, tuple) else ()
    if len(several) != 2:
        hint = "run=(old_run, new_run): what computes the outputs of each side"
        fault = Mismatch("run", "argument", "two functions", type(run).__name__, hint)
        raise ConformanceError("wrong arguments", [fault])


@dataclasses.dataclass(frozen=True)
class Words:
    """What a caller says of the lens that is to be made; see `adapt`.

    Attributes:
        own: Which leaves that the target alone has keep their own values; unless given, none does.
    """

    rules: Sequence[Rule] = ()
    scan: Scan | None = None
    lists: Sequence[str] | None = None
    own: Keeps | None = None


def adapted_item(
    path: epath.PathLike,
    usual: DiskTree | None,
    target: Any,
    name: str,
    words: Words,
    aux: str | None,
) -> tuple[Lens, DiskTree]:
    """The same as `adapted`, of the pytree that is usually meant, or else of the one other that fits.

    Args:
        path: The checkpoint.
        usual: What is usually meant, if it was read already.
        target: The target.
        name: What messages call it.
        words: What the caller says.
        aux: Where private leaves lie.

    Raises:
        CheckpointMismatchError: There is none, or several others fit.
        DerivationError: None fits; it is told of the one that is usually meant.
    """
    first, rest, unnamed = candidates(path, None, aux, usual)
    wrong: CkptSchemaError | None = unnamed
    for disk in first:
        try:
            return adapted(disk.without_texts(), target, name, words, aux)
        except CkptSchemaError as error:
            wrong = error
    fits: list[tuple[Lens, DiskTree]] = []
    others: list[DiskTree] = []
    # All of them are tried, though one fits: a second one that fits is a choice of the user's.
    for item in rest:
        others.append(read_metadata(path, item, aux=aux).without_texts())
        try:
            fits.append(_fitted(others[-1], target, name, words, aux))
        except CkptSchemaError:
            continue
    if len(fits) > 1:
        raise several([disk for _, disk in fits])
    for lens, disk in fits:
        _LOGGER.info("%s: of %s, item %r fits", disk.path, ", ".join(rest), disk.item)
        _LOGGER.info("%s", _summary(lens))
        return lens, disk
    assert wrong is not None
    if not rest:
        raise wrong
    raise _not_in_items(wrong, [*first, *others], target, name, words, aux)


def _not_in_items(
    wrong: CkptSchemaError,
    disks: Sequence[DiskTree],
    target: Any,
    name: str,
    words: Words,
    aux: str | None,
) -> CkptSchemaError:
    """The error of a checkpoint of several pytrees, none of which fits: together they may."""
    said = _of_items(disks, target, name, words, aux)
    if said is None:
        names = ", ".join(str(disk.item) for disk in disks)
        cure = 'item= says which is meant, and items={"params": ...} which is at which key'
        return type(wrong)(
            wrong.header, wrong.mismatches, [*wrong.notes, f"it holds {names}: {cure}"]
        )
    found, hint = f"one in {', '.join(str(disk.item) for disk in disks)}", f"pass {said}"
    fault = Mismatch("items", "checkpoint", "a state in one item", found, hint)
    return CheckpointMismatchError(f"{disks[0].path} has no such state where it is read", [fault])


_Items = tuple[Mapping[str, str], str | None]
"""What ``items=`` and ``item=`` would be."""


def _of_items(
    disks: Sequence[DiskTree], target: Any, name: str, words: Words, aux: str | None
) -> str | None:
    """The words by which several items are one state; None where none are, or one reading is as good as another."""
    # The first reading: each item at the key of its own name, {"params": "params", "step": "step"}.
    by_name: dict[str, str] = {}
    by_item: dict[str, DiskTree] = {}
    for disk in disks:
        by_item[str(disk.item)] = disk
        if disk.item not in (None, "state"):
            by_name[str(disk.item)] = str(disk.item)
    readings: list[_Items] = [(by_name, None)]
    several = [*by_item] if len(by_item) <= 4 else []  # a lens is derived for each reading
    # The others: weights and optimizer are items of any names,
    # and the rest of the state is a third.
    for weights, optimizer in itertools.permutations(several, 2):
        if _is_run(by_item[weights].tree, by_item[optimizer].tree):
            items = {WEIGHTS: weights, OPTIMIZER_STATE: optimizer}
            readings.append((items, None))
            for item in several:
                if item not in (weights, optimizer):
                    readings.append((items, item))
    fits: list[_Items] = []
    for items, rest in readings:
        root = by_item.get(rest or "state")
        parts = [] if root is None else [((), root)]
        parts += [((key,), by_item[item]) for key, item in items.items()]
        try:
            _fitted(DiskTree.of_parts(parts, frozenset()), target, name, words, aux)
        except CkptSchemaError:
            continue
        fits.append((items, rest))
        if items is by_name:  # names that say themselves what they are leave no choice
            break
    if len(fits) != 1:
        return None
    [(items, rest)] = fits
    return f"items={dict(items)!r}" + (f", item={rest!r}" if rest is not None else "")


def _is_run(weights: Any, optimizer: Any) -> bool:
    """Whether one tree is the state of an optimizer that keeps moments of another."""
    try:
        rows = infer_tree({WEIGHTS: weights, OPTIMIZER_STATE: optimizer}).rows
    except SchemaError:
        return False
    return any(row.mirrors for row in rows)


def adapted(
    read: DiskTree, target: Any, name: str, words: Words, aux: str | None
) -> tuple[Lens, DiskTree]:
    """The lens from what is on disk to a target, and one line in the log of what it does.

    Args:
        read: What is on disk.
        target: The target.
        name: What messages call it.
        words: What the caller says.
        aux: Where private leaves lie in it, which are none of the layout.

    Returns:
        The lens, and the part of what is on disk that it reads.
    """
    lens, part = _fitted(read, target, name, words, aux)
    _LOGGER.info("%s", _summary(lens))
    return lens, part


def _fitted(
    read: DiskTree, target: Any, name: str, words: Words, aux: str | None
) -> tuple[Lens, DiskTree]:
    """The same, not told yet."""
    # What stands beside the state is none of its layout, but a restore reads it from there.
    disk = read.without(aux)
    own = _kept_by(words.own, find(read, aux, total=False))
    words = dataclasses.replace(words, own=own)
    try:
        lens, kept = _adapted(disk, target, name, words)
    except (DerivationError, SchemaError) as error:
        # A state below a key shares no name with the target: that error would name every leaf.
        raise _elsewhere(disk, target, name, words) or error from None
    if _is_identity(lens):
        # What is on disk may be the target's own layout, and stand where its own side has such.
        homes = dict.fromkeys((*lens.view.homes, *lens.source.homes))
        own_layout = dataclasses.replace(lens.view, homes=tuple(homes))
        lens = derive(own_layout, own_layout)
    if kept is None:
        return lens, read
    # Weights alone are wanted of a train state. They are read where they stand,
    # without what is beside.
    part = read.below(tuple(kept)) if len(kept) == 1 else None
    if part is not None and (*kept,) not in lens.source.homes:  # under a name of the user's
        return lens, part
    return lens, read.only({*kept, aux})


def _adapted(disk: DiskTree, target: Any, name: str, words: Words) -> tuple[Lens, set[Any] | None]:
    """The lens, and the keys of the root that it reads, where it does not read all."""
    kept = None if disk.joined else _weights_alone(disk.tree, target, words.rules)
    lens = adapt_trees(
        _part(disk.tree, kept),
        target,
        rules=words.rules,
        scan=words.scan,
        lists=words.lists,
        names=(disk.path.name or "the checkpoint", name),
        own=words.own,
        joined=(disk.joined, None),
    )
    return lens, kept


_TRIED = 8
"""How many nodes are tried where no leaf of a target is at the root."""


def _elsewhere(
    disk: DiskTree, target: Any, name: str, words: Words, read: ReadSides | None = None
) -> CheckpointMismatchError | None:
    """The error of a state that stands below a key of what was read, and not at its root; None where it does not."""
    if disk.joined or have_in_common(*(read or (disk.tree, target))):
        return None
    faults: list[Mismatch] = []
    found: list[KeyPath] = []
    for key in itertools.islice(lower_nodes(disk), _TRIED):
        part = disk.below(key)
        # In {"model": {"params": ...}} both `model` and `model/params` may fit:
        # the upper one is told.
        is_below = any(key[: len(other)] == other for other in found)
        if is_below or part is None or not isinstance(part.tree, dict):
            continue
        if not words.rules and not have_in_common(part.tree, target):
            continue  # names that nothing else joins, which takes longer to tell
        try:
            _adapted(part, target, name, words)
        except CkptSchemaError:
            continue
        found.append(key)
        where = format_path((*disk.root, *key))
        expected, hint = "a state where it is read", f"pass at={where!r}"
        faults.append(Mismatch("at", "checkpoint", expected, f"one at {where}", hint))
    header = f"{disk.where} has no such state where it is read"
    return CheckpointMismatchError(header, faults) if faults else None


def _kept_by(own: Keeps | None, beside: PrivateLeaves | None) -> Keeps | None:
    """What keeps its own values: what a caller says, and what stands beside the state on disk and is read from there.

    A trainer keeps there whatever its layout has no place for: streams, which are private anyhow,
    but also what is a weight to this library, such as the scales of fp8 or a table of routes.
    """
    if beside is None:
        return own

    def kept(view: Layout) -> list[Row]:
        return [*(own(view) if own is not None else ()), *beside.rows(view)]

    return kept


def saved_through(
    state: Any,
    lens: Lens | None,
    side: Side | None,
    layout: Any,
    words: Words,
    *,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
) -> tuple[Lens, Side | None]:
    """The lens that a state is saved through, and the side that the state is on.

    Args:
        state: The state, or a module.
        lens: The lens, if one is given; else it is made from the layout to the state.
        side: The side, if it is given.
        layout: What to save like; without it the state is saved as it is.
        words: What is said of the lens that is to be made.
        at: The key path where the state will stand, and stands in a checkpoint that is the layout.
        items: The same for a state that is spread over several pytrees.

    Raises:
        ConformanceError: A lens is given, and words about one.
    """
    rules, scan, lists = words.rules, words.scan, words.lists
    if lens is not None:
        if layout is not None or rules or scan is not None or lists is not None:
            raise spare_words()
        return lens, side
    whole = state_of(state)
    given = whole if layout is None else layout
    # Of a tree, and of the state itself, it says where that will stand.
    where: dict[str, Any] = {"at": at, "items": items} if is_path(given) else {}
    made = adapt(given, whole, rules=rules, scan=scan, lists=lists, **where)
    return made, "source" if layout is None else "view"


def spare_words() -> ConformanceError:
    """The error for words about a lens that is to be made, beside one that is given."""
    hint = "give them to derive or adapt, which make the lens"
    fault = Mismatch("rules, scan, lists, layout", "argument", "none beside a lens", "some", hint)
    return ConformanceError("wrong arguments", [fault])


def _read(given: Any) -> tuple[Any, str | None]:
    """A side, and what joins its paths to keys; of a path, what metadata tells."""
    disk = _on_disk(given, {"item": None, "at": None, "items": None})
    return (given, None) if disk is None else (disk.without(AUX).tree, disk.joined)


def _on_disk(given: Any, where: Mapping[str, Any]) -> DiskTree | None:
    """What metadata tells of a path, without texts; None of what is no path."""
    return meant(given, **where, aux=AUX).without_texts() if is_path(given) else None


def _below_root(
    source: Any, disk: DiskTree | None, view: Any, words: Words, read: ReadSides | None
) -> CheckpointMismatchError | None:
    """The error of a source that has the view's state below a key, and not at its root; None where it has not."""
    names = name_of(source, "source"), name_of(view, "view")
    tree, target = (x.tree if isinstance(x, ReadSide) else x for x in (source, view))
    if target is None or isinstance(target, (type, Layout)) or is_path(target):
        return None
    if disk is None and isinstance(tree, dict):
        disk = DiskTree(epath.Path(names[0]), None, tree)
    if disk is None:
        return None
    return _elsewhere(disk.without(AUX), made_abstract(target), names[1], words, read)


def _weights_alone(tree: Any, target: Any, rules: Sequence[Rule]) -> set[Any] | None:
    """Where a train state on disk has its weights, if the target has no place for anything else."""
    if isinstance(target, (type, Layout)) or is_path(target):
        return None
    whole, wanted = infer_tree(tree), infer_tree(target)
    # A target with a step or moments takes the whole train state.
    weights = [row for row in whole.rows if row.is_weight]
    if not isinstance(tree, dict) or not all(row.is_weight for row in wanted.rows):
        return None
    # Averages beside the weights are none of the model's, unless a rule speaks of them.
    named = {row.path[0] for row in wanted.rows}
    for rule in rules:
        named.update(names_in(rule))
    kept = {row.key[0] for row in weights if row.path[0] in named}
    return kept if kept and len(weights) < len(whole.rows) else None


def _part(tree: Any, kept: set[Any] | None) -> Any:
    """What is at some keys of the root: of one alone, without that level."""
    if kept is None:
        return tree
    parts = {key: child for key, child in tree.items() if key in kept}
    return parts if len(parts) > 1 else next(iter(parts.values()))


def _is_identity(lens: Lens) -> bool:
    """Whether what is on disk is the target's own layout."""
    source_count, view_count = (len(rows) for rows in lens.joined)
    is_total = (source_count, view_count) == (len(lens.source.rows), len(lens.view.rows))
    return is_total and interchangeable(lens)


def _summary(lens: Lens) -> str:
    """What a lens does, in one line."""
    rows = lens.source.rows, lens.view.rows
    edited = 0
    for join in lens.joins:
        if not only_moves(join, rows):
            edited += 1
    # What has no partner: of the disk it is left there, of the target it is made by its default.
    left = len(lens.source.rows) - len(lens.joined[0])
    made = len(lens.view.rows) - len(lens.joined[1])
    return (
        f"adapted {lens.source.name} to {lens.view.name}: "
        f"{counted(len(lens.joins) - edited, 'leaf moved', 'leaves moved')}, "
        f"{edited} edited, {made} made, {left} left"
    )

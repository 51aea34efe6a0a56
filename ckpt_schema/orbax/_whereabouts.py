"""Where on disk a state stands: in which item, at which key of it, or in several items at once."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from ckpt_schema._frameworks.variables import state_of
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import Key, KeyPath
from ckpt_schema._layouts.pytrees import children
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.read_sides import made_abstract, name_of
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError, Mismatch, SchemaError
from ckpt_schema.orbax._folders import SeveralItemsError, pytrees_of
from ckpt_schema.orbax._metadata import AUX, DiskTree, planted, read_arrays, read_metadata
from ckpt_schema.orbax._places import absolute
from ckpt_schema.orbax._sides import Fit, locate, may_stand

__all__ = [
    "Standing",
    "all_meant",
    "candidates",
    "keys_named",
    "lower_nodes",
    "meant",
    "part_below",
    "read_several",
    "several",
    "spread_over",
    "stand",
    "tree_below",
    "usual",
    "verify_standing",
]

Standing = tuple[DiskTree, list[Fit]]
"""A checkpoint, or the part of it that is meant, and what in it conforms to which side."""

_DEEPEST = 2  # levels that are looked through for what was meant
_MOST = 64  # nodes on them


def stand(
    path: epath.PathLike,
    lens: Lens,
    read: DiskTree | None = None,
    first: DiskTree | None = None,
    *,
    item: str | None,
    at: str | None,
    items: Mapping[str, str] | None,
    aux: str | None,
    texts: bool = True,
) -> Standing:
    """Where the checkpoint at ``path`` holds a tree of either side of ``lens``.

    Args:
        path: The checkpoint.
        lens: The lens.
        read: What is meant, where it is known already.
        first: What is usually meant, if it was read already.
        item: The pytree that is meant. Where none is named, and what is usually meant does not fit,
            the one that does.
        at: The key path in it where the state stands; what is beside it is not read.
        items: The pytree that holds what is at each key, where a state is spread over several.
        aux: The pytree of private leaves.
        texts: Whether leaves that are texts are looked at, too, which no layout has a place for.

    Raises:
        CheckpointMismatchError: There is none, or several; what would have fitted is named.
    """
    if items is not None:
        read = read or meant(path, item=item, at=at, items=items, aux=aux)
    if read is not None:
        read = read if texts else read.without_texts()
        return read, locate(_alone(read, lens, aux), lens)
    # Nobody has said where: what is usually meant comes first, then each other pytree.
    usual, rest, unnamed = candidates(path, item, aux, first)
    fits: list[Standing] = []
    tried: list[tuple[DiskTree, CheckpointMismatchError]] = []
    for disk in itertools.chain(usual, (read_metadata(path, name, aux=aux) for name in rest)):
        try:
            fits.append(_looked(disk, lens, at, aux, texts=texts))
        except CheckpointMismatchError as error:
            tried.append((disk, error))
        if fits and disk in usual:  # what is usually meant fits: no other item is looked at
            break
    if len(fits) == 1:
        return fits[0]
    raise several([disk for disk, _ in fits]) if fits else _nowhere(tried, unnamed, lens, aux)


def meant(
    path: epath.PathLike | DiskTree,
    *,
    item: str | None,
    at: str | None,
    items: Mapping[str, str] | None,
    aux: str | None,
) -> DiskTree:
    """The part of a checkpoint, or of what was read of it already, that the arguments say, or that is usually meant.

    Raises:
        CheckpointMismatchError: There is none.
    """
    if items is None or isinstance(path, DiskTree):
        whole = read_metadata(path, item, aux=aux)
    else:
        whole = _joined(path, items, item, aux)
    return part_below(whole, at)


def all_meant(
    path: epath.PathLike,
    *,
    item: str | None = None,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
) -> DiskTree:
    """The same; where nothing says which of several pytrees is meant, each at the key that is its name.

    Without private leaves, and without texts.

    Raises:
        CheckpointMismatchError: There is none.
    """
    verify_standing(at, items)
    try:
        disk = meant(path, item=item, at=at, items=items, aux=AUX)
    except SeveralItemsError:
        names = sorted(pytrees_of(absolute(path)) - {AUX}, key=paths.natural)
        # As Orbax's managers keep it: the items `params` and `opt_state` are keys of one state.
        every = {paths.format_path((name,)): name for name in names}
        disk = meant(path, item=None, at=at, items=every, aux=AUX)
        text = "%s: all items are read, as one state; restore says so with items=%r"
        logging.getLogger("ckpt_schema").info(text, disk.path, every)
    else:
        beside = sorted(disk.beside - {AUX, *([disk.item] if disk.item else [])})
        if beside and item is None and items is None:
            text = "%s: item %r is read, and not %s"
            logging.getLogger("ckpt_schema").info(text, disk.path, disk.item, ", ".join(beside))
    return disk.without(AUX).without_texts()


def usual(
    path: epath.PathLike, item: str | None, items: Mapping[str, str] | None, aux: str | None
) -> DiskTree | None:
    """The pytree that is usually meant; None where a state is spread over several, or there is no such."""
    if items is not None:
        return None
    try:
        return read_metadata(path, item, aux=aux)
    except CheckpointMismatchError:  # whoever looks further says it
        return None


def candidates(
    path: epath.PathLike, item: str | None, aux: str | None, first: DiskTree | None
) -> tuple[list[DiskTree], list[str], CheckpointMismatchError | None]:
    """The pytree that is meant, if any is; the names of others that may be; and why none is.

    Raises:
        CheckpointMismatchError: There is none, and none else.
    """
    try:
        disk = read_metadata(path if first is None else first, item, aux=aux)
    except SeveralItemsError as error:
        rest = pytrees_of(absolute(path)) - {aux or ""}
        return [], sorted(rest, key=paths.natural), error
    others = disk.beside - {aux or ""} if item is None else ()
    return [disk], sorted(others, key=paths.natural), None


def _looked(
    disk: DiskTree, lens: Lens, at: str | None, aux: str | None, *, texts: bool
) -> Standing:
    part = part_below(disk, at)
    part = part if texts else part.without_texts()
    return part, locate(_alone(part, lens, aux), lens)


def _alone(disk: DiskTree, lens: Lens, aux: str | None) -> DiskTree:
    """A state without the private leaves that stand inside of it, whether anybody asks for them or not."""
    # Left in, they would be leaves too many.
    # A layout that has that very key means a part of its own.
    rows = [*lens.source.rows, *lens.view.rows]
    if aux is None and not any(row.key[:1] == (AUX,) for row in rows):
        aux = AUX
    return disk.without(aux)


def keys_named(at: str) -> KeyPath:
    """The keys that a path names.

    Raises:
        SchemaError: It has the number of a list in it, and names many places.
    """
    keys: list[Key] = []
    for key in paths.parse_pattern(at):
        if isinstance(key, paths.Index):
            hint = "say which one; a brace that is part of a key is written twice, {{"
            fault = Mismatch(at, "argument", "a path of keys", "one for each of a list", hint)
            raise SchemaError(f"{at!r} is no one place", [fault])
        keys.append(key)
    return tuple(keys)


def tree_below(tree: Any, *, item: object, at: str | None, items: object) -> Any:
    """The part of a tree at a key path; of names with dots, what has names that begin so.

    Raises:
        ConformanceError: There is none, or an item is named, which no tree has.
    """
    if item is not None or items is not None:
        fault = Mismatch("item, items", "argument", "none of a tree", "some", "pass the path")
        raise ConformanceError("wrong arguments", [fault])
    if at is None:
        return tree
    name = name_of(tree, "source")
    tree = state_of(made_abstract(tree))
    named = _named_below(tree, at)
    if named:
        return named
    for key in keys_named(at):
        below: dict[str, Any] = {}
        if isinstance(tree, Mapping):  # a state gives its parts as states
            several: Mapping[Any, Any] = tree
            below = {str(own): several[own] for own in several}
        elif not jax.tree_util.all_leaves([tree]):  # a layout has no parts, either
            below = {str(own): child for own, child in children(tree)}
        if str(key) not in below:
            there = ", ".join(below) or "no keys"
            fault = Mismatch("at", "argument", f"a tree at {at}", there, "name one of these keys")
            raise ConformanceError(f"{name} has nothing at {at}", [fault])
        tree = below[str(key)]
    return tree


def _named_below(tree: Any, at: str) -> dict[str, Any]:
    """What has names with dots that begin so, by the rest of their names; nothing of a tree that has the key itself."""
    keys = keys_named(at)
    if not isinstance(tree, dict) or not keys or keys[0] in tree:
        return {}
    start = ".".join(map(str, keys)) + "."
    several: dict[Any, Any] = tree
    # Below "text", the leaf "text.norm.weight" is called "norm.weight".
    named: dict[str, Any] = {}
    for name, leaf in several.items():
        if isinstance(name, str) and name.startswith(start):
            named[name.removeprefix(start)] = leaf
    return named


def part_below(disk: DiskTree, at: str | None) -> DiskTree:
    """The part of a checkpoint at a key path.

    Raises:
        CheckpointMismatchError: There is no such part.
    """
    if at is None:
        return disk
    part = disk.below(keys_named(at))
    if part is None:
        there = ", ".join(disk.roots) or "no keys"
        fault = Mismatch("at", "checkpoint", f"a tree at {at}", there, "name one of these keys")
        raise CheckpointMismatchError(f"{disk.where} has nothing at {at}", [fault])
    beside = [key for key in disk.roots if key != str(keys_named(at)[0])]
    if beside:
        text = "%s: what stands beside %s is not read: %s"
        logging.getLogger("ckpt_schema").info(text, disk.where, at, ", ".join(sorted(beside)))
    return part


def _joined(
    path: epath.PathLike, items: Mapping[str, str], rest: str | None, aux: str | None
) -> DiskTree:
    """One tree of several items.

    Raises:
        CheckpointMismatchError: With every item that is not there.
    """
    place = absolute(path)
    there = pytrees_of(place)
    faults: list[Mismatch] = []
    for key, name in items.items():
        if name not in there:
            near = difflib.get_close_matches(name, sorted(there), n=1, cutoff=0.5)
            hint = f"near: {key!r}: {near[0]!r}" if near else "name one of these for it"
            expected, found = f"an item for {key}", f"items {', '.join(sorted(there))}"
            faults.append(Mismatch(name, "checkpoint", expected, found, hint))
    if faults:
        raise CheckpointMismatchError(f"{place} lacks items", faults)
    parts: list[tuple[KeyPath, DiskTree]] = []
    for key, name in items.items():
        parts.append((keys_named(key), read_metadata(path, name, aux=aux)))
    left = rest or "state"
    # What no key was named for is at the root, below the others: they are planted into it.
    if left in there - set(items.values()):
        parts.insert(0, ((), read_metadata(path, left, aux=aux)))
    return DiskTree.of_parts(parts, there - set(items.values()) - {left})


def several(fits: Sequence[DiskTree]) -> CheckpointMismatchError:
    """The error of a checkpoint of which more than one pytree fits."""
    names = [disk.item or "" for disk in fits]
    found = f"what fits in each of {', '.join(names)}"
    hint = f"say which: item={names[0]!r}, or another of them"
    fault = Mismatch("item", "ambiguous", "one item that fits", found, hint)
    return CheckpointMismatchError(f"{fits[0].path} holds several such states", [fault])


def _nowhere(
    tried: list[tuple[DiskTree, CheckpointMismatchError]],
    unnamed: CheckpointMismatchError | None,
    lens: Lens,
    aux: str | None,
) -> CheckpointMismatchError:
    """The error of the first that was tried, with the key path and the item that would have fitted."""
    faults: list[Mismatch] = []
    # A state that was saved inside of something, {"model": state}, is what is meant most often.
    for disk, _ in tried:
        for key in lower_nodes(disk):
            part = disk.below(key)
            if part is not None and may_stand(part.without(aux), lens):
                where = paths.format_path((*disk.root, *key))
                named = "" if disk is tried[0][0] else f"item={disk.item!r}, "
                hint = f"pass {named}at={where!r}"
                found = f"one in {disk.where}, at {where}"
                faults.append(Mismatch("at", "checkpoint", "a state where it is read", found, hint))
    # Next in line: one item for each key of the state, of which none alone fits.
    items = _spread([disk for disk, _ in tried], lens)
    if items is not None:
        found, hint = f"one in {', '.join(items.values())}", f"pass items={items!r}"
        faults.append(Mismatch("items", "checkpoint", "a state in one item", found, hint))
    error = tried[0][1] if unnamed is None else unnamed
    if faults:  # what is wrong with what was read says nothing more
        return CheckpointMismatchError(error.header, faults)
    notes: list[str] = []
    if len(tried) > 1:
        names = ", ".join(disk.item or "" for disk, _ in tried[unnamed is None :])
        notes.append(f"no other item fits: {names}" if unnamed is None else f"none fits: {names}")
    return CheckpointMismatchError(error.header, error.mismatches, [*error.notes, *notes])


def _spread(disks: list[DiskTree], lens: Lens) -> dict[str, str] | None:
    """The items that hold what is at the keys of a state of either side, where several together are one."""
    for table in (lens.view, lens.source):
        slot = SlotFinder(table).slot
        by_item: dict[str, DiskTree] = {}
        # An item holds what is at a key where each leaf of it, below that key,
        # is one of the layout's.
        for root in dict.fromkeys(row.key[0] for row in table.rows):
            if isinstance(root, paths.Index):  # the items of a list have no names
                continue
            for disk in disks:
                flat = flatten(disk.tree)
                known = (slot((root, *key), stored=flat.stored) is not None for key in flat.keys)
                if disk.item is not None and flat.keys and all(known):
                    by_item.setdefault(paths.format_path((root,)), disk)
        parts: list[tuple[KeyPath, DiskTree]] = []
        for disk in disks:
            if disk.item == "state" and disk not in by_item.values():
                parts.append(((), disk))
        parts += [(keys_named(key), disk) for key, disk in by_item.items()]
        # That each leaf is known does not say that none is missing:
        # the whole is looked at once more.
        if len(parts) > 1 and by_item and may_stand(DiskTree.of_parts(parts, frozenset()), lens):
            return {key: str(disk.item) for key, disk in by_item.items()}
    return None


def lower_nodes(disk: DiskTree) -> Iterator[KeyPath]:
    """Some key paths of containers below the root, those above first."""
    waiting: list[tuple[KeyPath, Any]] = [((), disk.tree)]
    for _ in range(_MOST):
        if not waiting:
            return
        key, node = waiting.pop(0)
        if key:
            yield key
        # By breadth, so that of two nodes that would do the upper one comes first.
        if len(key) < _DEEPEST and isinstance(node, (dict, list)):
            pairs: Any = node.items() if isinstance(node, dict) else enumerate(node)
            for name, child in pairs:
                if isinstance(child, (dict, list)):
                    waiting.append(((*key, name), child))


def spread_over(tree: Any, item: str, at: str | None, items: Mapping[str, str]) -> dict[str, Any]:
    """A state as the items that it is saved in, each with what is at its key; all else in ``item``.

    Raises:
        ConformanceError: With every key that the state does not have.
    """
    if at is not None:
        tree = planted({}, keys_named(at), tree)
    if not items:
        return {item: tree}
    rest: dict[Any, Any] = dict(children(tree))
    # The user writes keys as text; a state may have an int there.
    named = {str(key): key for key in rest}
    faults: list[Mismatch] = []
    for key in items:
        if key not in named:
            expected = f"a key of the state ({', '.join(named)})"
            faults.append(Mismatch(key, "argument", expected, "none", ""))
    if faults:
        raise ConformanceError("the state has no such parts", faults)
    parts = {name: rest.pop(named[key]) for key, name in items.items()}
    return {**({item: rest} if rest else {}), **parts}


def read_several(
    several: Mapping[str, epath.PathLike],
    standing: str | Mapping[str, str] | None = None,
    below: object = None,
    *,
    aux: str | None = None,
) -> DiskTree:
    """Several checkpoints as one, of Orbax or of Hugging Face: the tree of each at its name.

    Args:
        several: Their paths by name.
        standing: The key path at which the state stands in each of those that are named.
        below: What is said of items, which are not known of several.
        aux: The item of each that holds its private leaves, which are not read.

    Raises:
        CheckpointMismatchError: With all that is wrong with any of them.
        ConformanceError: What is said of key paths is not said of each by its name.
    """
    _verify_standing_of_each(several, standing)
    places = standing if isinstance(standing, Mapping) else {}
    faults: list[Mismatch] = []
    parts: list[tuple[KeyPath, DiskTree]] = []
    # One after another, though one is wrong: all that is wrong with any is told at once.
    for name, path in several.items():
        try:
            disk = read_metadata(path, aux=aux)
            parts.append(((name,), _part_alone(disk, places.get(name))))
        except CheckpointMismatchError as error:
            faults += (dataclasses.replace(f, path=f"{name}: {f.path}") for f in error.mismatches)
    told = ", ".join(f"{name}: {path}" for name, path in several.items())
    if below:
        hint = "merge lenses whose sources are what the checkpoints hold"
        faults.append(Mismatch("path", "argument", "item= or items= of one path", told, hint))
    if not several:
        hint = 'such as {"vision": path, "text": other}'
        faults.append(Mismatch("path", "argument", "a path for each part", "none", hint))
    if faults:
        raise CheckpointMismatchError(f"checkpoints cannot be read: {told}", faults)
    return dataclasses.replace(DiskTree.of_parts(parts, frozenset()), path=epath.Path(told))


def _part_alone(disk: DiskTree, at: str | None) -> DiskTree:
    """The part of a checkpoint at a key path, as one that has nothing else.

    Raises:
        CheckpointMismatchError: There is no such part.
    """
    if at is None:
        return disk
    part, keys = part_below(disk, at), keys_named(at)
    if part.joined is not None:  # which reads by its own names
        return part

    # Among parts of other checkpoints it has no place of its own:
    # only the reader knows the key path.
    def read_part(order: Any) -> Any:
        return read_arrays(disk, keys, order)

    return dataclasses.replace(part, root=(), whole=None, reader=read_part)


def _verify_standing_of_each(several: Mapping[str, epath.PathLike], standing: object) -> None:
    """Raises unless key paths are those of parts, by their names, or None.

    Raises:
        ConformanceError: With everything that is otherwise.
    """
    if standing is None:
        return
    expected = f"a key path for some of {', '.join(several)}"
    hint = f'at={{"{next(iter(several), "text")}": "params"}}'
    if not isinstance(standing, Mapping):
        fault = Mismatch("at", "argument", expected, repr(standing), hint)
        raise ConformanceError("wrong arguments", [fault])
    named: Mapping[Any, Any] = standing
    faults: list[Mismatch] = []
    for name, at in named.items():
        if name not in several or not (isinstance(at, str) and at):
            faults.append(Mismatch("at", "argument", expected, f"{name!r}: {at!r}", hint))
    if faults:
        raise ConformanceError("wrong arguments", faults)


def verify_standing(at: object, items: object) -> None:
    """Raises unless these say where on disk a state stands, or are None.

    Raises:
        ConformanceError: With every argument that does not.
    """
    faults: list[Mismatch] = []
    if at is not None and not (isinstance(at, str) and at):
        faults.append(Mismatch("at", "argument", "a key path, or None", repr(at), 'at="model"'))
    named: Any = items
    pairs = list(named.items()) if isinstance(items, Mapping) else []
    wrong = any(not (isinstance(key, str) and key and isinstance(name, str)) for key, name in pairs)
    if items is not None and (not pairs or wrong):
        hint = 'such as items={"params": "model_params", "opt_state": "optimizer_state"}'
        faults.append(Mismatch("items", "argument", "names of items by key", repr(items), hint))
    if faults:
        raise ConformanceError("wrong arguments", faults)

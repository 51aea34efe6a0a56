"""What a checkpoint holds, as an abstract tree: one metadata read, no array data. And the reading of a part of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, cast

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from ckpt_schema._compat import CHECKPOINT_FILE
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import KeyPath, format_path
from ckpt_schema._layouts.pytrees import children
from ckpt_schema._safetensors.header import Tensor
from ckpt_schema._safetensors.ranges import read_tensor
from ckpt_schema._safetensors.shards import read_sharded
from ckpt_schema._safetensors.weights import Weights, is_of_weights, read_weights
from ckpt_schema._trees import placement
from ckpt_schema._trees.containers import Tree, flatten, without
from ckpt_schema.errors import CheckpointMismatchError
from ckpt_schema.orbax._agreement import first_line
from ckpt_schema.orbax._array_headers import read_headers
from ckpt_schema.orbax._contexts import alone
from ckpt_schema.orbax._folders import find_item, refusal
from ckpt_schema.orbax._older import (
    is_older_pytree,
    is_packed_file,
    read_older_pytree,
    read_packed_file,
)
from ckpt_schema.orbax._places import absolute
from ckpt_schema.orbax._pytree_files import array_notes
from ckpt_schema.orbax._transfers import watched_arrays

__all__ = [
    "AUX",
    "SKIP",
    "DiskTree",
    "of_weights",
    "planted",
    "read_arrays",
    "read_metadata",
]

_LOGGER = logging.getLogger("ckpt_schema")

AUX = "nnx_aux"
"""What private leaves are called on disk unless somebody says another name."""

SKIP = ocp.PLACEHOLDER
"""Stands for a leaf that is not to be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class DiskTree:
    """A checkpoint's state without its values.

    Attributes:
        path: Where it lies.
        item: The name of the pytree in it; None where it stands at the root, as older versions of
            Orbax wrote it.
        tree: Dicts, lists and None slots as Orbax returns them, of ``ShapeDtypeStruct``s without
            sharding and Python numbers. Typed keys have the dtype of the implementation they were
            saved with; a number says its type, not its value.
        beside: The names of the other pytrees in it.
        root: The key path in the pytree at which the tree stands.
        whole: The tree of the whole pytree, where the state is a part of it.
        parts: Where a state is spread over several pytrees: each, and at which key path.
        joined: What joins the segments of a path to the one key that it has, as in files of Hugging
            Face.
        reader: Reads what is ordered of it, as Orbax does, where it is no checkpoint of today's Orbax.
    """

    path: epath.Path
    item: str | None
    tree: Tree
    beside: frozenset[str] = frozenset()
    root: KeyPath = ()
    whole: Tree = None
    parts: tuple[tuple[KeyPath, DiskTree], ...] = ()
    joined: str | None = None
    reader: Callable[[Tree], Tree] | None = None

    @classmethod
    def of_parts(
        cls, parts: Sequence[tuple[KeyPath, DiskTree]], beside: frozenset[str]
    ) -> DiskTree:
        """Several pytrees as one, each at its key path."""
        tree: Tree = {}
        # `read_arrays` takes an order for this tree apart again, by the same key paths.
        for at, part in parts:
            tree = planted(tree, at, part.tree)
        return cls(parts[0][1].path, None, tree, beside, parts=tuple(parts))

    @property
    def where(self) -> str:
        """The checkpoint as messages name it: with the item, unless that is the usual one, and the place in it."""
        told = [f"item {self.item}"] if self.item not in (None, "state") else []
        told += [f"at {format_path(self.root)}"] if self.root else []
        return f"{self.path} ({', '.join(told)})" if told else str(self.path)

    @property
    def roots(self) -> list[str]:
        """The keys of the root; of names that are joined, what they begin with."""
        keys = [*map(str, self.tree)] if isinstance(self.tree, dict) else []
        if self.joined is None:
            return keys
        # "model.layers.0.weight" and "model.norm.weight" have one root: a dict keeps it once,
        # in order.
        first: dict[str, None] = {}
        for key in keys:
            first[key.split(self.joined)[0]] = None
        return list(first)

    def below(self, prefix: KeyPath) -> DiskTree | None:
        """The part at ``prefix``, or None when there is none."""
        if self.joined is not None:
            return self._named_below(self.joined.join(map(str, prefix)) + self.joined)
        tree = self.at(prefix)
        if tree is None:
            return None
        # Orbax asks for all containers of a pytree, however little of it is read: they are kept.
        whole = self.tree if self.whole is None else self.whole
        return dataclasses.replace(self, tree=tree, root=(*self.root, *prefix), whole=whole)

    def _named_below(self, start: str) -> DiskTree | None:
        """What has names that begin so, as a tree of the rest of these names."""
        read = self.reader
        # Below "text.", the leaf "text.norm.weight" is called "norm.weight".
        tree: dict[str, Any] = {}
        for name, leaf in self.tree.items():
            if name.startswith(start):
                tree[name.removeprefix(start)] = leaf
        if not tree or read is None:
            return None

        # Files know the full names alone: an order goes to them under these,
        # and what comes is renamed.
        def read_part(order: Tree) -> Tree:
            whole = read({start + name: asked for name, asked in order.items()})
            return {name: whole[start + name] for name in order}

        return dataclasses.replace(self, tree=tree, reader=read_part)

    def at(self, prefix: KeyPath) -> Tree | None:
        """The subtree at ``prefix``, or None when there is none."""
        return _at(self.tree, prefix)

    def without(self, key: str | None) -> DiskTree:
        """The same without what is at one key of the root."""
        if not isinstance(self.tree, dict) or key not in self.tree:
            return self
        kept = {name: child for name, child in self.tree.items() if name != key}
        return dataclasses.replace(self, tree=kept)

    def without_texts(self) -> DiskTree:
        """The same without the leaves that are texts, which no state has a place for."""
        texts = _texts(self.tree, ())
        if not texts:
            return self
        kept = without(self.tree, texts)
        _LOGGER.info("%s: what is text is not read", self.where)
        return dataclasses.replace(
            self, tree=kept, whole=self.tree if self.whole is None else self.whole
        )

    def only(self, keys: Collection[Any]) -> DiskTree:
        """The same without what is at other keys of the root."""
        assert isinstance(self.tree, dict)
        kept = {name: child for name, child in self.tree.items() if name in keys}
        whole = self.tree if self.whole is None else self.whole
        return dataclasses.replace(self, tree=kept, whole=whole)


def _texts(tree: Tree, at: KeyPath) -> set[KeyPath]:
    """The key paths of texts."""
    if isinstance(tree, str):
        return {at}
    texts: set[KeyPath] = set()
    for key, child in children(tree) if isinstance(tree, (dict, list, tuple)) else ():
        texts |= _texts(child, (*at, key))
    return texts


def _at(tree: Tree, prefix: KeyPath) -> Tree | None:
    # A key path that a user wrote is of texts: `layers/0` means the item 0 of a list,
    # or a key 0 or "0".
    for key in prefix:
        if isinstance(tree, (list, tuple)) and str(key).isdecimal() and int(key) < len(tree):
            tree = tree[int(key)]
        elif isinstance(tree, dict) and (key in tree or str(key) in tree):
            tree = tree[key if key in tree else str(key)]
        else:
            return None
    return tree


def read_metadata(
    path: epath.PathLike | DiskTree, item: str | None = None, *, aux: str | None = None
) -> DiskTree:
    """Reads the metadata of the checkpoint at ``path``, once.

    Args:
        path: A checkpoint of Orbax's v1 or v0 API, a file of Flax, or a folder of Hugging Face; or
            what was read of one already.
        item: Which pytree of it, where it holds several.
        aux: One that is not meant unless it is named.

    Raises:
        CheckpointMismatchError: There is no checkpoint, no such item, or no metadata that Orbax can
            read.
    """
    if isinstance(path, DiskTree):
        return path
    place = absolute(path)
    # What is no checkpoint of Orbax is told by its files, and holds one pytree,
    # so that none is named.
    if item is None and is_of_weights(path):
        return of_weights(read_weights(path))
    try:
        if item is None and is_packed_file(place):
            return _of_values(place, None, read_packed_file(place))
        meant = find_item(place, item, aux)
    except ValueError as error:
        found = f"a msgpack file of Flax: {first_line(error)}"
        raise refusal(place, found, "take another copy") from error
    except OSError as error:  # nobody may look there, or no file system has such a name
        raise refusal(place, first_line(error), "check the path, and who may read it") from error
    name = meant.name
    try:
        # Without this file Orbax takes some checkpoints for none.
        is_known = (place / CHECKPOINT_FILE).exists()
        # The headers are what Orbax reads too, in a fraction of its time. None:
        # they were not understood.
        stored = read_headers(place / (name or "")) if is_known else None
        if stored is None and is_older_pytree(place / (name or "")):
            tree = read_older_pytree(place / (name or ""))
            return _of_values(place, name, tree, meant.every - {name or ""})
        if stored is None:
            stored = _found(place, name)
        flat = flatten(stored)
        written = _written(place / (name or ""))
        named = [".".join(map(str, key)) for key in flat.keys]
        typed: list[Any] = []
        for dotted, leaf in zip(named, flat.leaves, strict=True):
            # Orbax's metadata has a key's raw words, uint32:
            # a note beside them says that it is a key.
            impl = written.get(dotted) if _may_be_key(leaf) else None
            typed.append(_abstract(leaf, impl))
    except Exception as error:  # Orbax has no one class for what may be wrong with a directory
        raise _unreadable(place, name, error) from error
    # An array whose name is gone would be read as one that was never saved, and get a default.
    lost = sorted(written.keys() - set(named))
    if lost:
        which = f"an array {lost[0]}" if len(lost) == 1 else f"{len(lost)} arrays, as {lost[0]},"
        hint = "a copy may be incomplete, or a file was changed by hand"
        raise refusal(place / (name or ""), f"{which} that its metadata does not name", hint)
    return DiskTree(place, name, flat.treedef.unflatten(typed), meant.every - {name or ""})


def of_weights(weights: Weights) -> DiskTree:
    """A folder of Hugging Face as a checkpoint of one pytree."""

    def read(order: Tree) -> Tree:
        return {name: _tensor(weights.tensors[name], asked) for name, asked in order.items()}

    return DiskTree(weights.path, None, weights.tree, joined=".", reader=read)


def _of_values(
    place: epath.Path, name: str | None, values: Tree, beside: frozenset[str] = frozenset()
) -> DiskTree:
    """A pytree that had to be read to know its leaves."""

    # The values are held until this is read, and are not read a second time.
    def read(order: Tree) -> Tree:
        return jax.tree.map(_placed, order, values)

    tree = jax.tree.map(lambda value: _abstract(value, None), values)
    return DiskTree(place, name, tree, beside, reader=read)


def _placed(asked: Any, value: Any) -> Any:
    """A value as it is asked for."""
    if asked is SKIP:
        return SKIP
    if leaves.is_scalar(asked):
        return value if leaves.is_scalar(value) else value.item()
    return placement.placed(value, asked.sharding)


def _tensor(tensor: Tensor, asked: Any) -> Any:
    """A tensor as it is asked for."""
    if asked is SKIP:
        return SKIP
    if leaves.is_scalar(asked):
        return read_tensor(tensor).item()
    return read_sharded(tensor, asked.sharding)


@contextlib.contextmanager
def _logged() -> Generator[list[str]]:
    """What Orbax logs meanwhile: of metadata that it cannot read, it says why there alone."""
    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("absl")
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)


def _found(place: epath.Path, name: str | None) -> Tree:
    """The tree of a pytree's metadata.

    Raises:
        ValueError: Orbax could not read it, and logged why.
    """
    with _logged() as said:
        stored = ocp.metadata(place, checkpointable_name=name).metadata
    if stored is not None:
        return stored
    # Of all that Orbax logs, the cause comes after these words.
    _, _, why = "\n".join(said).partition("Error details: ")
    raise ValueError(why.strip() or "no metadata could be read; the log says why")


def _unreadable(place: epath.Path, name: str | None, error: Exception) -> CheckpointMismatchError:
    """The error for a pytree whose metadata Orbax cannot read."""
    said = first_line(error)
    found, hint = "a checkpoint that cannot be read", "a copy may be incomplete"
    if "dtype: bool" in said:
        found = "a checkpoint with a plain Python bool among the leaves"
        hint = "Orbax reads no metadata of such; save it as an array: np.asarray(flag)"
    return refusal(place, found, hint, [f"Orbax says: {said}"])


def _may_be_key(leaf: Any) -> bool:
    return (
        leaves.signature(leaf) is not None
        and not leaves.is_scalar(leaf)
        and leaves.dtype_name(leaf.dtype) == "uint32"
        and bool(leaf.shape)
    )


def _abstract(leaf: Any, impl: str | None) -> Any:
    if leaves.is_scalar(leaf):
        return leaves.untold(type(leaf))
    if leaves.signature(leaf) is None:
        return leaf
    if impl is None and leaves.is_abstract(leaf) and leaf.sharding is None:
        return leaf  # as most are; of many leaves, making each anew takes as long as finding it
    if impl is None:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    # The last axis on disk is the words of each key, which a typed key does not have.
    key = jax.eval_shape(functools.partial(jax.random.key, impl=impl), 0)
    return jax.ShapeDtypeStruct(leaf.shape[:-1], key.dtype)


def _written(item: epath.Path) -> Mapping[str, str | None]:
    """The arrays of a pytree by dotted name: the implementation of a typed key, None of any other.

    No public function of Orbax tells it without reading the key, so this reads the file that Orbax
    keeps it in. Where there is none, keys read as raw data, which conforms to no key.
    """
    impls: dict[str, str | None] = {}
    # Each process has noted the arrays that it wrote itself: all notes together name all.
    for _, arrays in array_notes(item):
        for array in arrays:
            impls[array["param_name"]] = (array.get("ext_metadata") or {}).get("random_key_impl")
    return impls


def read_arrays(disk: DiskTree, prefix: KeyPath, wanted: Tree) -> Tree:
    """Reads a part of the subtree at ``prefix``, and nothing else, into the shardings of ``wanted``.

    Args:
        disk: The checkpoint.
        prefix: Where in it the subtree stands.
        wanted: Abstract leaves with shardings, Python numbers, or `SKIP`, in the containers of the
            disk; if it is a dict, some keys may be left out.

    Returns:
        A tree like ``wanted``, with values.

    Raises:
        CheckpointMismatchError: Orbax cannot read it.
    """
    # Orbax skips what is a placeholder, as long as the containers are all there.
    skipped = jax.tree.map(lambda _: SKIP, disk.tree if disk.whole is None else disk.whole)
    place = (*disk.root, *prefix)
    order, whole = _completed(planted(skipped, place, wanted), skipped), skipped
    for at, part in disk.parts or [((), disk)]:
        own = _at(order, at)
        # The root of a spread state has the keys of the other pytrees too,
        # which are none of its own.
        if disk.parts and isinstance(own, dict):
            own = {key: own[key] for key in part.tree}
        # A pytree of which nothing is wanted is not opened.
        if not disk.parts or any(leaf is not SKIP for leaf in jax.tree.leaves(own)):
            whole = planted(whole, at, _read(part, own))
    return _picked(_at(whole, place), wanted)


def _completed(order: Tree, skipped: Tree) -> Tree:
    """An order with a placeholder for what it leaves out of dicts."""
    if not isinstance(order, dict) or not isinstance(skipped, dict):
        return order
    completed = dict(skipped)
    for key, child in order.items():
        completed[key] = _completed(child, skipped.get(key))
    return completed


def _picked(loaded: Tree, wanted: Tree) -> Tree:
    """Of what was loaded, what was wanted."""
    if not isinstance(wanted, dict) or not isinstance(loaded, dict):
        return loaded
    return {key: _picked(loaded[key], child) for key, child in wanted.items()}


def _read(disk: DiskTree, order: Tree) -> Tree:
    """What is ordered of one pytree.

    Raises:
        CheckpointMismatchError: Orbax cannot read it.
    """
    if disk.reader is not None:
        return _in_memory_asked(disk.reader(order), order)
    try:
        with alone(), watched_arrays("reading", order, "bytes_read"):
            loaded = ocp.load(disk.path, order, checkpointable_name=disk.item)
    except Exception as error:  # Orbax has no one class for what may be wrong with its files
        hint = "a copy may be incomplete, or a file damaged"
        notes = [f"Orbax says: {first_line(error)}"]
        raise refusal(disk.path, "a checkpoint whose arrays cannot be read", hint, notes) from error
    return _in_memory_asked(loaded, order)


def _in_memory_asked(loaded: Tree, order: Tree) -> Tree:
    """What was loaded, each array in the memory of the sharding that it was asked for.

    Orbax makes keys of their data in the memory that arrays are in where nothing is said.
    """
    values, treedef = jax.tree.flatten(loaded)
    made: list[Any] = []
    for value, asked in zip(values, jax.tree.leaves(order), strict=True):
        sharding = getattr(asked, "sharding", None)
        if sharding is not None and isinstance(value, jax.Array):
            value = placement.in_memory(value, sharding.memory_kind)
        made.append(value)
    return treedef.unflatten(made)


def planted(tree: Any, prefix: KeyPath, wanted: Tree) -> Tree:
    """A tree with another one in it at a key path."""
    if not prefix:
        return {**tree, **wanted} if isinstance(wanted, dict) and tree is not None else wanted
    key: Any = prefix[0]
    # Each container on the way is made anew: the tree that was given is not changed.
    if isinstance(tree, (list, tuple)):
        made = list(cast(Sequence[Any], tree))
        made[int(key)] = planted(made[int(key)], prefix[1:], wanted)
        return made
    given = dict(cast(Mapping[Any, Any], tree)) if isinstance(tree, dict) else {}
    key = str(key) if key not in given and str(key) in given else key
    return {**given, key: planted(given.get(key), prefix[1:], wanted)}

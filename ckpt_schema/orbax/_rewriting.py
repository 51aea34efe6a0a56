"""The writing of a converted checkpoint: arrays that only move are linked, the others are made leaf by leaf."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from ckpt_schema._compat import CHECKPOINT_FILE, COMMIT_FILE
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.pytrees import children
from ckpt_schema._lens.arrays.checks import narrowed
from ckpt_schema._lens.arrays.comparison import difference
from ckpt_schema._lens.plan.pieces import Piece
from ckpt_schema._trees.containers import Tree, flatten
from ckpt_schema.errors import (
    CheckpointExistsError,
    CheckpointWriteError,
    ConformanceError,
    Mismatch,
)
from ckpt_schema.orbax._conversion import SUMMED, Conversion, TimedLeaf
from ckpt_schema.orbax._items import STATE
from ckpt_schema.orbax._load import on_host, ordered
from ckpt_schema.orbax._metadata import SKIP, DiskTree, planted, read_arrays, read_metadata
from ckpt_schema.orbax._places import UNFINISHED
from ckpt_schema.orbax._pytree_files import (
    Assembly,
    PytreeFiles,
    Stored,
    linked,
    linked_tree,
    saved,
    skeleton,
)
from ckpt_schema.orbax._records import RECORD
from ckpt_schema.orbax._route import Route, Whereabouts, dotted
from ckpt_schema.orbax._whereabouts import spread_over

__all__ = ["Rewriting"]

# Bytes that are held without a thought: trees of small leaves are not read one by one.
_SMALL = 2**26

# Of the bytes of what is made to see how fast it goes: long enough to be measured, and soon done.
_SAMPLE = 2**25


class Rewriting:
    """What a conversion does, known before anything is written.

    Attributes:
        route: What is to be done.
        where: Where the state stands.
        source: The checkpoint that is converted.
        versions: The versions on the way, where a registry has told it.
    """

    def __init__(
        self, route: Route, where: Whereabouts, source: Path, versions: Sequence[str] = ()
    ) -> None:
        """Reads what the files of the source say of themselves."""
        self.route, self.where, self.source, self.versions = route, where, source, versions
        self.disks: dict[Path, DiskTree] = {}
        self._files: dict[Path, PytreeFiles] = {}
        self._numbers = itertools.count()
        # Files that are written have the format of the first pytree's,
        # and go by what it says of itself.
        parts = [part for _, part in route.disk.parts] or [route.disk]
        self.main = self._known(parts[0])
        for part in parts[1:]:
            self._known(part)
        if route.private is not None:
            self._known(route.private.disk)
        pieces = route.pieces
        # Where each value of the plan stands, by its position there.
        # What is made is added when it is saved.
        self.stored = {at: self._stored(*told) for at, told in route.sources.items()}
        self.goals: dict[Stored, Any] = {}
        for at, leaf in enumerate(jax.tree.leaves(route.fit.tree)):
            self.goals[self.stored[at]] = leaf
        # An array of zarr2 cannot be linked into files of zarr3: it is read and written,
        # but not edited.
        self._foreign: list[int] = []
        for at in {*pieces.places, *route.beside}:
            if at in self.stored and not self.stored[at].files.is_like(self.main):
                self._foreign.append(at)
        self.trees: dict[str | None, Tree] = {}

    # --- where things are  ---

    def _known(self, disk: DiskTree) -> PytreeFiles:
        folder = self.source / (disk.item or "")
        if folder not in self._files:
            whole = disk.tree if disk.whole is None else disk.whole
            self.disks[folder] = dataclasses.replace(disk, tree=whole, root=(), whole=None)
            self._files[folder] = PytreeFiles.read(folder)
        return self._files[folder]

    def _stored(self, disk: DiskTree, key: KeyPath) -> Stored:
        """The array at a key path of a tree on disk."""
        # The longest prefix first: a pytree at the root has all key paths,
        # also those of the others.
        for at, part in sorted(disk.parts, key=lambda each: -len(each[0])):
            if key[: len(at)] == at:
                return self._stored(part, key[len(at) :])
        return Stored(self._known(disk), dotted((*disk.root, *key)))

    # --- writing  ---

    def write(self, draft: Path, place: Path, scrap: Path, told: Callable[[int], None]) -> None:
        """Writes the new checkpoint.

        Args:
            draft: Where.
            place: Where it will be put then.
            scrap: A folder for what is written by the way.
            told: Called with the bytes of what is made, whenever some of it is saved.
        """
        scrap.mkdir(parents=True)
        self._make(scrap, told)
        places = self.route.pieces.places
        self.trees = self._items([self.stored[at] for at in places])
        for name, tree in self.trees.items():
            self._write_item(name, tree, draft, scrap)
        self._write_rest(draft, place)

    @property
    def outcome(self) -> Conversion:
        """What becomes of the leaves of the new state."""
        pieces, result = self.route.pieces, self.route.result
        # What is made of nothing is a default; what is made of leaves is edited;
        # all else only moves.
        anew: set[int] = set()
        edited: set[int] = set()
        for piece in pieces.every:
            if not piece.inputs:
                anew.update(piece.results)
        for piece in self.pieces:
            edited.update(piece.results)
        edited -= anew
        numbers = dict.fromkeys(SUMMED, 0)
        rewritten: list[str] = []
        for at, key, leaf in zip(pieces.places, result.keys, result.leaves, strict=True):
            kind = "made" if at in anew else "edited" if at in edited else "moved"
            numbers[kind] += 1
            numbers["linked" if kind == "moved" else "written"] += _bytes(leaf)
            rewritten += [] if kind == "moved" else [paths.format_path(key)]
        return Conversion(**numbers, rewritten=tuple(rewritten), versions=tuple(self.versions))

    @property
    def pieces(self) -> Iterator[Piece]:
        """All that is made, and what has to be written anew because it stands in files of another format."""
        yield from self.route.pieces.every
        for at in self._foreign:
            yield Piece((at,), (at,), list)

    def _make(self, scrap: Path, told: Callable[[int], None]) -> None:
        """Makes and saves what does not only move, so much at a time as may be held."""
        places = {*self.route.pieces.places, *self._foreign, *self.route.beside}
        sizes = self._sizes()
        # The unit of what may be held: one leaf, the largest. Two of them are the promised peak.
        most = max([*sizes.values(), _SMALL // 2])
        held: dict[str, Any] = {}
        used = 0
        for piece in self.pieces:
            coming = sum(sizes.get(at, 0) for at in piece.results)
            read = sum(sizes.get(at, 0) for at in piece.inputs)
            # What is held goes to the disk where it and what comes would be more than two leaves;
            # what is read is there twice for a while, as it is in its file and as an array.
            if held and (used + coming > most or used + read + max(coming, read) > 2 * most):
                self._save(held, scrap)
                told(used)
                held, used = {}, 0
            values = piece.run(self._read([self.stored[at] for at in piece.inputs]))
            jax.block_until_ready(values)  # until then the inputs are held too
            made = zip(piece.results, values, strict=True)
            # What is not kept was only looked at. A loop's own name would hold its last value on.
            held |= {str(at): _savable(value) for at, value in made if at in places}
            used += coming
            del made, values
        if held:
            self._save(held, scrap)
            told(used)

    def sample(self, scrap: Path) -> TimedLeaf | None:
        """One of the leaves that are made, read and made and saved as all will be, and how long it took.

        None where nothing is made of what is on disk.

        Args:
            scrap: A folder for what is written, which is no longer needed then.
        """
        sizes = self._sizes()
        reading = [piece for piece in self.pieces if piece.inputs]
        if not reading:
            return None
        made = [sum(sizes.get(at, 0) for at in piece.results) for piece in reading]
        size, number = min(zip(made, range(len(made)), strict=True), key=_far_from_sample)
        piece = reading[number]
        start = time.perf_counter()
        inputs = self._read([self.stored[at] for at in piece.inputs])
        seconds = time.perf_counter() - start
        jax.block_until_ready(piece.run(inputs))  # compiles, which is done once for many leaves
        start = time.perf_counter()
        values = piece.run(inputs)
        jax.block_until_ready(values)
        held = {str(at): _savable(value) for at, value in zip(piece.results, values, strict=True)}
        saved(held, self.main, scrap)
        seconds += time.perf_counter() - start
        return TimedLeaf(size, seconds)

    def _sizes(self) -> dict[int, int]:
        """The bytes of what is read and of what is made, by position."""
        sizes = dict(enumerate(map(_bytes, jax.tree.leaves(self.route.fit.tree))))
        made = map(_bytes, self.route.result.leaves)
        sizes.update(zip(self.route.pieces.places, made, strict=True))
        return sizes

    def _save(self, held: Mapping[str, Any], scrap: Path) -> None:
        files = saved(held, self.main, scrap / str(next(self._numbers)))
        self.stored |= {int(name): Stored(files, name) for name in held}

    def _read(self, wanted: Sequence[Stored]) -> list[Any]:
        """The values of arrays of the source."""
        values_of: dict[Stored, Any] = {}
        # Orbax reads one pytree at a call: what is wanted of each is read together.
        names_in: dict[Path, set[str]] = {}
        for stored in wanted:
            names_in.setdefault(stored.files.folder, set()).add(stored.name)
        for folder, names in names_in.items():
            goals: dict[str, Any] = {}
            for stored, leaf in self.goals.items():
                if stored.files.folder == folder:
                    goals[stored.name] = leaf
            values = _values(self.disks[folder], names, goals)
            values_of |= {Stored(self._files[folder], name): x for name, x in values.items()}
        return [values_of[stored] for stored in wanted]

    def _items(self, found: Sequence[Any]) -> dict[str | None, Tree]:
        """The new trees by name, with what each leaf of the state is."""
        route = self.route
        state = route.result.treedef.unflatten(found)
        main, aux = route.disk.item, self.where.aux
        beside = self._beside()
        # Older releases wrote one pytree at the root of the directory:
        # what is beside has a key in it.
        is_flat = main is None and not route.disk.parts
        if beside and aux is not None and (is_flat or route.disk.at((aux,)) is not None):
            state = {**dict(children(state)), aux: beside}
            beside = {}
        items: dict[str | None, Tree] = {main: self._in_whole(state)}
        if route.disk.parts:
            spread = self.where.items or {}
            # Spread as the source is if the new layout has these keys too, as `convert` says.
            keys = {paths.format_path(key[:1]) for key in route.result.keys}
            items = {**spread_over(state, STATE, None, spread if keys >= spread.keys() else {})}
        if beside and aux is not None:
            items[aux] = beside
        return items

    def _beside(self) -> Tree:
        """What the new layout has no place for, as nested dicts, with the place of each leaf in files."""
        route = self.route
        beside: Tree = {}
        for at, key in route.beside.items():
            beside = planted(beside, key, self.stored.get(at, Stored(self.main, "")))
        for key in route.kept:
            assert route.private is not None
            place = (*route.private.prefix, *key)
            beside = planted(beside, key, self._stored(route.private.disk, place))
        return beside

    def _in_whole(self, state: Tree) -> Tree:
        """The state in what stands around it, which is as it was."""
        disk = self.route.disk
        if not disk.root:
            return state
        flat = flatten(disk.whole)
        where = [self._stored(self.disks[self.main.folder], key) for key in flat.keys]
        whole = planted(flat.treedef.unflatten(where), disk.root, None)
        return planted(whole, disk.root, state)

    def _write_item(self, name: str | None, tree: Tree, draft: Path, scrap: Path) -> None:
        flat = flatten(tree)
        named = dict(zip(map(dotted, flat.keys), flat.leaves, strict=True))
        # {"a": {"b": x}} and {"a.b": y} would both be the array a.b.
        if len(named) != len(flat.keys):
            fault = Mismatch("", "ambiguous", "leaves of different names", "two of one name")
            raise ConformanceError("the state cannot be saved", [fault])
        entries = skeleton(tree, scrap / str(next(self._numbers)))
        Assembly(entries, named, self.main).write(draft / (name or ""))
        commit = self.main.folder / COMMIT_FILE
        if name is not None and commit.exists():
            linked(commit, draft / name / COMMIT_FILE)

    def _write_rest(self, draft: Path, place: Path) -> None:
        """All that is no part of the state; what makes a checkpoint of a folder comes last."""
        old = {folder.name for folder in self._files}
        flat = self.route.disk.item is None and not self.route.disk.parts
        last = self.source / CHECKPOINT_FILE
        for part in sorted(self.source.iterdir()):
            if part.name in old or UNFINISHED in part.name or part == last:
                continue
            if flat and part.name not in _BESIDE:
                continue  # files of the pytree, which is all of the folder
            copy = linked_tree if part.is_dir() else linked
            # It names the directory that it commits, and would commit the old one.
            if part.name == COMMIT_FILE:
                text = part.read_text().replace(str(self.source), str(place))
                (draft / part.name).write_text(text)
            else:
                copy(part, draft / part.name)
        if last.exists():
            (draft / CHECKPOINT_FILE).write_text(
                json.dumps(self._listed(json.loads(last.read_text()), old))
            )

    def _listed(self, told: dict[str, Any], old: set[str]) -> dict[str, Any]:
        """What a checkpoint says of itself, with the pytrees that it has now."""
        custom = told.get("custom_metadata")
        if isinstance(custom, dict):  # what was said of the old layout is not so of the new one
            kept = {key: value for key, value in custom.items() if key != RECORD}
            told = {**told, "custom_metadata": kept}
        handlers = told.get("item_handlers")
        if not isinstance(handlers, dict):
            return told
        own = handlers.get(self.main.folder.name)
        rest = {name: handler for name, handler in handlers.items() if name not in old}
        return {**told, "item_handlers": rest | dict.fromkeys(filter(None, self.trees), own)}

    # --- looking again  ---

    def verify_there(self, place: epath.Path) -> None:
        """Raises unless what is there already has the leaves that the new checkpoint would have; reads metadata only.

        Raises:
            CheckpointExistsError: It has others.
            CheckpointMismatchError: It is no checkpoint.
        """
        faults: list[Mismatch] = []
        for name, tree in self._items(self.route.result.leaves).items():
            if name == self.where.aux:  # a run that went on there may have other ones
                continue
            disk = read_metadata(place, name, aux=self.where.aux)
            there = _leaves(disk)
            flat = flatten(tree)
            wanted = dict(zip(map(dotted, flat.keys), flat.leaves, strict=True))
            for key in sorted({*wanted, *there}):
                expected, found = _described(wanted.get(key)), _described(there.get(key))
                # Of what comes along as it is nothing is known but its place: that says no dtype.
                if expected is not None and found is not None and expected != found:
                    faults.append(Mismatch(key, "exists", expected, found))
        if faults:
            hint = "it was converted by other words, or is another run's: remove it, or convert to another directory"
            faults[-1] = dataclasses.replace(faults[-1], hint=hint)
            raise CheckpointExistsError(f"{place} is not what this makes", faults)

    def verify(self, draft: Path, *, values: bool) -> None:
        """Raises unless the new checkpoint has the leaves that it should have, and with ``values``, their bits."""
        faults: list[Mismatch] = []
        for name, tree in self.trees.items():
            aux = self.where.aux if name != self.where.aux else None
            disk = read_metadata(epath.Path(draft), name, aux=aux)
            flat = flatten(tree)
            there = {dotted(key) for key in flatten(disk.tree).keys}
            # What one of them has alone: a leaf that was lost on the way,
            # or one that nobody asked for.
            for name_ in sorted({dotted(key) for key in flat.keys} ^ there):
                faults.append(Mismatch(name_, "key", "the leaves of the new layout", "another"))
            if values and not faults:
                stored = dict(zip(map(dotted, flat.keys), flat.leaves, strict=True))
                faults += self._unlike(disk, stored)
        if faults:
            raise CheckpointWriteError(f"{draft} is not what was to be written", faults)

    def _unlike(self, disk: DiskTree, stored: Mapping[str, Stored]) -> Iterator[Mismatch]:
        """The leaves whose bits are others than those of the source, or of what is made of it once more."""
        sizes = {name: _bytes(leaf) for name, leaf in _leaves(disk).items()}
        moved: dict[str, Stored] = {}
        made: dict[Stored, list[str]] = {}  # one array may stand for several leaves that are tied
        for name, each in stored.items():
            if each.files.is_made:
                made.setdefault(each, []).append(name)
            else:
                moved[name] = each
        # What moved has the same bits on both sides; what was made is made again,
        # and compared with that.
        for names in _batches(moved, sizes):
            yield from self._unlike_moved(disk, {name: moved[name] for name in names})
        for piece in self.pieces:
            named: list[tuple[str, int]] = []
            for number, at in enumerate(piece.results):
                if at not in self.stored:
                    continue  # a leaf that the new layout has no place for
                for name in made.get(self.stored[at], []):
                    named.append((name, number))
            if named:
                yield from self._unlike_made(disk, piece, named)

    # Each of these returns before the next is asked, so that none holds what another reads.

    def _unlike_moved(self, disk: DiskTree, stored: Mapping[str, Stored]) -> list[Mismatch]:
        own = self._read([*stored.values()])
        found = _values(disk, set(stored), {})
        faults: list[Mismatch] = []
        for name, value in zip(stored, own, strict=True):
            faults += _bits(name, value, found[name])
        return faults

    def _unlike_made(
        self, disk: DiskTree, piece: Piece, named: Sequence[tuple[str, int]]
    ) -> list[Mismatch]:
        # Of the source once more, as it is on disk: nothing that was made before is used.
        again = piece.run(self._read([self._original(at) for at in piece.inputs]))
        jax.block_until_ready(again)
        found = _values(disk, {name for name, _ in named}, {})
        faults: list[Mismatch] = []
        for name, number in named:
            faults += _bits(name, again[number], found[name])
        return faults

    def _original(self, at: int) -> Stored:
        return self._stored(*self.route.sources[at])


def _far_from_sample(piece: tuple[int, int]) -> tuple[float, int]:
    """How much larger or smaller a piece is than a sample should be, and its number."""
    size, number = piece
    return abs(math.log(max(size, 1) / _SAMPLE)), number


_BESIDE = (COMMIT_FILE, "orbax.checkpoint", "descriptor")
"""What Orbax writes into the folder of a pytree that is no item, and that is none of its files."""


def _bytes(leaf: Any) -> int:
    shape = getattr(leaf, "shape", ())
    return math.prod(shape) * getattr(getattr(leaf, "dtype", None), "itemsize", 8)


def _described(leaf: Any) -> str | None:
    """What a leaf is, or that there is none; None of what only has a place in files."""
    if leaf is None:
        return "no such leaf"
    return leaves.describe(leaf) if leaves.signature(leaf) is not None else None


def _savable(value: Any) -> Any:
    return value if isinstance(value, (jax.Array, np.ndarray)) else np.asarray(value)


def _leaves(disk: DiskTree) -> dict[str, Any]:
    flat = flatten(disk.tree)
    return dict(zip(map(dotted, flat.keys), flat.leaves, strict=True))


def _values(disk: DiskTree, names: set[str], goals: Mapping[str, Any]) -> dict[str, Any]:
    """The values of leaves on disk by dotted name, each as it is, or as what it is to be read.

    Raises:
        ConformanceError: With every leaf of 64 bits that jax would narrow.
    """
    flat = flatten(disk.tree)
    order: list[Any] = []
    faults: list[Mismatch] = []
    for key, leaf in zip(flat.keys, flat.leaves, strict=True):
        if dotted(key) not in names:
            order.append(SKIP)
            continue
        goal = goals.get(dotted(key), leaf)
        order.append(ordered(key, goal, on_host))
        fault = None
        if not leaves.is_scalar(goal):
            fault = narrowed(paths.format_path(key), str(goal.dtype))
        faults += [fault] if fault is not None else []
    if faults:
        raise ConformanceError(f"{disk.where} has leaves that jax would narrow", faults)
    loaded = read_arrays(disk, (), flat.treedef.unflatten(order))
    # What was read is NumPy's, of which jax makes a copy while it returns already. Threads of its
    # own let go of the original: it is freed when Python next looks for garbage, however little.
    jax.block_until_ready(loaded)
    gc.collect(0)
    values: dict[str, Any] = {}
    for key, value in zip(flat.keys, flat.treedef.flatten_up_to(loaded), strict=True):
        if dotted(key) in names:
            values[dotted(key)] = value
    return values


def _batches(names: Iterable[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names, so many together as may be held beside one another."""
    most = max([*sizes.values(), _SMALL // 2])
    batch: list[str] = []
    used = 0
    for name in names:
        if batch and used + sizes[name] > most:
            yield batch
            batch, used = [], 0
        batch.append(name)
        used += sizes[name]
    if batch:
        yield batch


def _bits(name: str, expected: Any, found: Any) -> Iterator[Mismatch]:
    # A Python number has no bits to compare: it becomes an array, as it was when it was saved.
    wanted, there = _savable(expected), _savable(found)
    if (wanted.shape, wanted.dtype) != (there.shape, there.dtype):
        yield Mismatch(name, "dtype", leaves.describe(wanted), leaves.describe(there))
        return
    differs = difference(wanted, there)
    if differs is not None:
        index, own, other = differs
        yield Mismatch(name, "value", f"{own} at {index}", other, "a disk may be damaged")

"""Save a state of either side of a lens as a folder of Hugging Face, leaf by leaf.

First all is found out that can be wrong, of every process. Then the files are laid out: from
shapes and dtypes alone it is known where each tensor begins. So each is made, written to its
place and forgotten, in any order and by any process. A file is none of safetensors until its
first bytes, which tell the length of its header, are written: they are written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from etils import epath

from ckpt_schema._frameworks.variables import state_of
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._lens.adapt.stacks import Scan
from ckpt_schema._lens.lens import Lens, planned
from ckpt_schema._lens.plan.pieces import Pieces, pieces_of
from ckpt_schema._lens.rules import Rule
from ckpt_schema._messages.text import shown
from ckpt_schema._safetensors.dtypes import RANKS, name_of_dtype
from ckpt_schema._safetensors.header import LENGTH_BYTES
from ckpt_schema._safetensors.packing import WeightsFile, index_of, packed
from ckpt_schema._safetensors.weights import (
    FILE,
    INDEX_ENDING,
    is_name_of_file,
    is_weights_file,
)
from ckpt_schema._trees.containers import Tree, flatten, verify_readable
from ckpt_schema.errors import CkptSchemaError, ConformanceError, Mismatch
from ckpt_schema.orbax._adapt import Words, saved_through
from ckpt_schema.orbax._agreement import agree, raised_by_all
from ckpt_schema.orbax._items import valueless, verify_each
from ckpt_schema.orbax._places import UNFINISHED, Site, absolute, is_remote, verify_free
from ckpt_schema.orbax._restore import declared
from ckpt_schema.orbax._sides import Side, toward, verify_arguments, verify_written

__all__ = ["save"]

FILE_BYTES = 5_000_000_000
_AT_ONCE = (
    1 << 22
)  # bytes that a system is given to write: many times as many took up to twice as long
_PIECE = (
    1 << 20
)  # bytes that are put together at once: so many stay in the cache of a core until they are written
_CONFIGS = ("config.json", "adapter_config.json")  # of a model, and of an adapter of PEFT
_CARD = ".md"  # tells of the model that it was written for


def save(
    path: epath.PathLike,
    state: Any,
    lens: Lens | None = None,
    *,
    layout: Any = None,
    rules: Sequence[Rule] = (),
    scan: Scan | None = None,
    lists: Sequence[str] | None = None,
    onto: Tree | None = None,
    side: Side | None = None,
    name: str = FILE,
    shard_bytes: int = FILE_BYTES,
    metadata: Mapping[str, str] | None = None,
    config_from: epath.PathLike | None = None,
) -> None:
    """Saves ``state`` as a folder of Hugging Face, in the layout of ``lens.source``, whichever side it is on.

    The files are what the library safetensors writes of the same tensors. Where each tensor begins
    is known before a byte is written, so they are made and written leaf by leaf: besides the state,
    no more is held than twice its largest leaf. Of several processes each writes what its devices
    hold. A tensor that the layout has once is written once, however often a model uses it. The
    folder comes to its place by one rename, when it is whole; of a save that failed or was killed
    nothing is left that could be read.

    Args:
        path: The folder to make. There must be nothing yet.
        state: A concrete ``nnx.State``, ``nnx.Module``, ``TrainState`` or dict. Leaves that the
            layout has no place for by declaration, such as streams, are not saved.
        lens: The lens, whose source has dotted names. Without one and without a `layout`, the state
            is saved as it is, the segments of its paths joined by dots.
        layout: What to save like, where no lens is given: the path of a folder of Hugging Face, a
            tree, a schema or a layout. `ckpt_schema.adapt` makes the lens from it to the state.
        rules: What names and shapes do not tell, where no lens is given; see `ckpt_schema.adapt`.
        scan: The axis of stacked nodes, where no lens is given.
        lists: Patterns of lists of layers, where no lens is given.
        onto: Where the source's private leaves come from; see `Lens.put`.
        side: The side that the state is on, for states that conform to both.
        name: What the file is called, such as ``"adapter_model.safetensors"``, which PEFT looks
            for. Of several files, what the names of the files and of the index are made of.
        shard_bytes: How many bytes of tensors a file has at most; several have an index.
        metadata: What the files say besides, as text by name; ``{"format": "pt"}``, which
            transformers asks for, unless given.
        config_from: A folder whose other files are copied: the config of a model or of an adapter,
            the tokenizer, whatever is no weights and no model card.

    Raises:
        CheckpointExistsError: There is something at ``path``; it is not touched.
        CheckpointWriteError: It could not be written; nothing of it is left.
        ConformanceError: The state is on neither side, or could be on either, or holds what the
            format has no dtype or name for, or values that cannot be carried over.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import ckpt_schema as cs
        >>> folder = tempfile.mkdtemp() + "/mine"
        >>> cs.hf.save(folder, {"model": {"norm": {"weight": jnp.ones(3)}}})
        >>> cs.hf.load(folder)
        {'model.norm.weight': array([1., 1., 1.], dtype=float32)}
    """
    with raised_by_all():
        state = state_of(state)
        lens, side = saved_through(state, lens, side, layout, Words(rules, scan, lists))
        verify_arguments(lens, side=side)
        place = _place(path)
        config = _config(config_from)
        words = {"format": "pt"} if metadata is None else metadata
        _verify_words(name, shard_bytes, words)
        source = _Source.of(state, lens, onto, side)
        files = packed(source.goals, shard_bytes, words, name)
    # Each process lays the files out by itself: one with other tensors would write elsewhere.
    agree("processes do not save the same", {"path": place, "tensors": [*source.goals.items()]})
    site = Site.beside(place)
    try:
        _write(Path(site.draft), source, files)
        with raised_by_all():
            if jax.process_index() == 0:
                _finish(Path(site.draft), files, name, config)
    except Exception as error:
        # A value that would not survive is refused by the package, whose message says all. What a
        # system says of a disk is put into words by the site.
        if not isinstance(error, OSError) and isinstance(error, CkptSchemaError):
            site.sweep()
            raise
        raise site.failed(error) from error
    site.finish()


_Part = tuple[tuple[tuple[int, int], ...], np.ndarray[Any, Any]]
"""A part of an array: where it begins and ends on each axis, and what it is."""


# --- what is asked for  ---


def _place(path: epath.PathLike) -> epath.Path:
    """The folder to make.

    Raises:
        CheckpointExistsError: There is something.
        ConformanceError: No folder can be made there.
    """
    place = absolute(path)
    found = hint = ""
    # A store has no `pwrite`, by which tensors come to their places in any order.
    if is_remote(place):
        found, hint = "a remote store", "save to a disk, and copy the folder"
    elif is_weights_file(place.name):
        found, hint = "the name of a file", f"pass the folder: {place.parent}"
    elif UNFINISHED in place.name:
        found, hint = "the name of an unfinished save", "save elsewhere"
    if found:
        fault = Mismatch(str(place), "argument", "a folder on a disk", found, hint)
        raise ConformanceError(f"{place} is no place for a folder of Hugging Face", [fault])
    if jax.process_index() == 0:  # of several, another may have begun to write meanwhile
        verify_free(place)
    return place


def _config(path: epath.PathLike | None) -> list[Path]:
    """The files to copy.

    Raises:
        ConformanceError: There is no such folder, or no config in it.
    """
    if path is None:
        return []
    folder = Path(absolute(path))
    if not any((folder / name).is_file() for name in _CONFIGS):
        expected = f"a folder with a {' or '.join(_CONFIGS)}"
        fault = Mismatch(str(folder), "argument", expected, "none")
        raise ConformanceError("config_from= names no folder of Hugging Face", [fault])
    config: list[Path] = []
    for file in sorted(folder.iterdir()):
        # Weights in other formats too: beside the new ones they would be those of another model.
        is_left = is_weights_file(file.name) or file.suffix == _CARD
        if file.is_file() and not is_left and not file.name.startswith("."):
            config.append(file)
    return config


def _verify_words(name: object, file_bytes: object, metadata: object) -> None:
    faults: list[Mismatch] = []
    if not is_name_of_file(name):
        expected = "the name of a file, such as 'adapter_model.safetensors'"
        faults.append(Mismatch("name", "argument", expected, shown(name)))
    if type(file_bytes) is not int or file_bytes < 1:
        expected = "a number of bytes, such as 5_000_000_000"
        faults.append(Mismatch("shard_bytes", "argument", expected, shown(file_bytes)))
    if not _are_texts(metadata):
        faults.append(Mismatch("metadata", "argument", "texts by name", shown(metadata)))
    if faults:
        raise ConformanceError("wrong arguments", faults)


def _are_texts(metadata: object) -> bool:
    """Whether these are texts by name, all of which can be written."""
    if not isinstance(metadata, Mapping):
        return False
    pairs = cast(Mapping[Any, Any], metadata)
    return all(map(_is_text, [*pairs.keys(), *pairs.values()]))


def _is_text(text: object) -> bool:
    """Whether this is a text that can be written: half of a pair of surrogates cannot."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- what is written  ---


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """The tensors of a state in the layout of the files, which are made when their turn comes.

    Attributes:
        goals: Each by name, without values.
        pool: The leaves of the state, and of what it goes onto.
        pieces: What is made.
    """

    goals: Mapping[str, jax.ShapeDtypeStruct]
    pool: Sequence[Any]
    pieces: Pieces

    @classmethod
    def of(cls, state: Tree, lens: Lens, onto: Tree | None, side: Side | None) -> _Source:
        """The tensors of a state.

        Raises:
            ConformanceError: They are on neither side, or cannot be written.
        """
        verify_readable(state)
        tree = declared(state, lens)
        turned, _ = toward(tree, lens, "the state", side, "side")
        is_view = turned.view is lens.view
        if is_view:
            verify_written(lens.source, lens, onto)
        verify_each(tree, valueless)
        pool = flatten(tree).leaves
        if is_view:
            back = ~turned
            plan = planned(back, tree, onto)
            # What the files have no place for is an error, unless the way back would make it.
            lost = [drop.fault for drop in plan.dropped if drop.loses(pool[drop.position])]
            if lost:
                raise ConformanceError(f"onto lacks leaves of {lens.source.name}", lost)
            pieces = pieces_of(plan)
            # The names and kinds of what will be made, from shapes alone: no value is made yet.
            flat = flatten(back.get(_abstract(tree), onto=_abstract(onto)))
            pool = pool if onto is None else [*pool, *flatten(onto).leaves]
        else:
            # The state has the layout of the files: each leaf is written as it is.
            flat = flatten(tree)
            pieces = Pieces(len(pool), tuple(range(len(pool))), ())
        named: list[tuple[str, KeyPath, Any]] = []
        for key, leaf in zip(flat.keys, flat.leaves, strict=True):
            named.append((_name(key, lens), key, leaf))
        _verify_writable(named)
        goals = {name: leaves.abstract(leaf) for name, _, leaf in named}
        return cls(goals, pool, pieces)

    def __iter__(self) -> Iterator[tuple[Sequence[str], Any]]:
        """Each tensor with the names that it is written under; what only moves comes first."""
        names = list(self.goals)
        for numbers, value in self.pieces.values(self.pool):
            yield [names[number] for number in numbers], value


def _abstract(tree: Tree) -> Tree:
    """A tree without values. A Python number stays: it takes the dtype that its leaf is declared to have."""
    return jax.tree.map(lambda x: x if leaves.is_scalar(x) else leaves.abstract(x), tree)


def _name(key: KeyPath, lens: Lens) -> str:
    """What a leaf is called in the files: a Variable of NNX holds its value under a key of its own."""
    inner = key[:-1] if lens.source.container == "nnx" and key[-1:] == ("value",) else key
    return ".".join(map(str, inner))


def _verify_writable(named: Sequence[tuple[str, KeyPath, Any]]) -> None:
    """Raises unless each tensor has a name of its own, and a dtype of the format.

    Raises:
        ConformanceError: With every one that has not.
    """
    faults: list[Mismatch] = []
    known: dict[str, KeyPath] = {}
    for name, key, leaf in named:
        where = paths.format_path(key)
        # {"a": {"b": x}, "a.b": y}: both would be a.b.
        first = known.setdefault(name, key)
        if first is not key:
            found = f"{name} for {paths.format_path(first)} too"
            faults.append(Mismatch(where, "ambiguous", "a name of its own", found))
        # A header has the metadata among the tensors, under this name.
        if not _is_text(name) or name == "__metadata__":
            faults.append(Mismatch(where, "key", "a name that a file can have", shown(name)))
        dtype = leaves.abstract(leaf).dtype
        if name_of_dtype(dtype) is None:
            hint = "cast it beforehand"
            if str(dtype).startswith("key<"):
                hint = "save the weights alone, such as nnx.state(model, nnx.Param)"
            expected = f"a dtype among {', '.join(RANKS)}"
            faults.append(Mismatch(where, "dtype", expected, leaves.describe(leaf), hint))
    if faults:
        raise ConformanceError("the state cannot be saved as safetensors", faults)


# --- writing  ---


def _write(draft: Path, source: _Source, files: Sequence[WeightsFile]) -> None:
    """Writes all tensors into files whose headers are not yet told to be there."""
    places: dict[str, tuple[str, int]] = {}
    for file in files:
        for name, start in file.starts.items():
            places[name] = file.name, start
    # The first process makes the files. Others open them once it has, which this waits for.
    with raised_by_all():
        if jax.process_index() == 0:
            draft.mkdir(parents=True)
            for file in files:
                with (draft / file.name).open("wb") as opened:
                    opened.seek(LENGTH_BYTES)  # zeros: no reader takes that for a length
                    opened.write(file.header)
                    # Its full size at once, so that each process writes anywhere within it.
                    opened.truncate(file.size)
    with raised_by_all(), contextlib.ExitStack() as stack:
        opened_files: dict[str, Any] = {}
        for file in files:
            # Unbuffered: `pwrite` goes by the file's number, past any buffer.
            opened = stack.enter_context((draft / file.name).open("r+b", buffering=0))
            opened_files[file.name] = opened
        for names, value in source:
            value = leaves.materialized(value, str(source.goals[names[0]].dtype))
            # Tied leaves are one value, written under each of its names.
            for name in names:
                file_name, start = places[name]
                _write_tensor(opened_files[file_name], start, value)
            del value  # before the next is made


def _write_tensor(opened: Any, start: int, array: Any) -> None:
    """Writes what this process is to write of a tensor."""
    is_jax = isinstance(array, jax.Array)
    is_spread = is_jax and not array.is_fully_addressable
    # What every process has whole, the first one writes.
    if not is_spread and jax.process_index() != 0:
        return
    parts = _parts(array) if is_jax else []
    are_cut_inside = any(part.shape[1:] != array.shape[1:] for _, part in parts)
    if not is_spread and len(parts) < 2:
        _write_bytes(opened, start, np.asarray(array))
    elif not is_spread and are_cut_inside:
        _write_rows(opened, start, array.shape, parts)
    # Cut along the first axis alone, the bytes of a shard stand together. Of what is spread over
    # processes each writes its shards, row by row where these are cut inside.
    else:
        for spans, part in parts:
            _write_part(opened, start, array.shape, spans, part, array.dtype.itemsize)


def _parts(array: jax.Array) -> list[_Part]:
    """The shards that this process has, each of which no other writes."""
    parts: list[_Part] = []
    for shard in array.addressable_shards:
        # Of the devices that hold copies of one shard, jax gives the number 0 to one, anywhere.
        if shard.replica_id == 0:
            axes = zip(shard.index, array.shape, strict=True)
            spans = tuple(index.indices(size)[:2] for index, size in axes)
            parts.append((spans, np.asarray(shard.data)))
    return parts


def _write_rows(opened: Any, start: int, shape: Sequence[int], parts: Sequence[_Part]) -> None:
    """Writes an array whose bytes begin at ``start``, of which as many rows are put together as are few.

    ``np.asarray`` would put together all, and jax would keep that as long as the array.
    """
    _, some = parts[0]
    row = some.itemsize * math.prod(shape[1:])
    # As many rows as fill a piece, and one at least.
    step = min(max(1, _PIECE // row), shape[0])
    piece = np.empty([step, *shape[1:]], some.dtype)
    for first in range(0, shape[0], step):
        last = min(first + step, shape[0])
        for spans, part in parts:
            begin, end = spans[0]
            # The rows that both the shard and the piece have, counted in each from its first.
            low, high = max(begin, first), min(end, last)
            if low < high:
                inner = tuple(slice(*span) for span in spans[1:])
                piece[(slice(low - first, high - first), *inner)] = part[low - begin : high - begin]
        _write_bytes(opened, start + first * row, piece[: last - first])


def _write_part(
    opened: Any,
    start: int,
    shape: Sequence[int],
    spans: Sequence[tuple[int, int]],
    part: np.ndarray[Any, Any],
    width: int,
) -> None:
    """Writes a part of an array whose bytes begin at ``start``, row by row where its rows stand apart."""
    row = width * math.prod(shape[1:])
    # A scalar has no axis, and one element.
    begin = spans[0][0] if spans else 0
    whole = [(0, size) for size in shape[1:]]
    if list(spans[1:]) == whole:
        _write_bytes(opened, start + begin * row, part)
        return
    for number, inner in enumerate(part, begin):
        _write_part(opened, start + number * row, shape[1:], spans[1:], inner, width)


def _write_bytes(opened: Any, start: int, array: np.ndarray[Any, Any]) -> None:
    """Writes the bytes of an array from ``start`` on, wherever others write meanwhile."""
    left = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    # A system may write less than it was given: 2 GiB at most, on Linux.
    while left:
        count = os.pwrite(opened.fileno(), left[:_AT_ONCE], start)
        start, left = start + count, left[count:]


def _finish(draft: Path, files: list[WeightsFile], name: str, config: Sequence[Path]) -> None:
    """Makes a model of what has been written: the headers come to be there last of all."""
    for copied in config:
        shutil.copyfile(copied, draft / copied.name)
    if len(files) > 1:
        (draft / f"{name}{INDEX_ENDING}").write_text(index_of(files))
    # Whoever finds the draft of a save that was killed cannot take it for a model.
    for file in files:
        with (draft / file.name).open("r+b") as opened:
            opened.write(len(file.header).to_bytes(LENGTH_BYTES, "little"))

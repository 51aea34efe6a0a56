"""Save a state of either side of a lens in the layout of its source."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from ckpt_schema._lens.adapt.stacks import Scan
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Rule
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.orbax._adapt import Words, saved_through
from ckpt_schema.orbax._agreement import agree, raised_by_all
from ckpt_schema.orbax._chunks import chunkings_for, shards_read, written_in
from ckpt_schema.orbax._collector import old_objects_aside
from ckpt_schema.orbax._contexts import patience
from ckpt_schema.orbax._items import STATE, items_of
from ckpt_schema.orbax._places import (
    Site,
    absolute,
    is_remote,
    verify_free,
    verify_name,
    verify_writable,
)
from ckpt_schema.orbax._records import RECORD, record_of
from ckpt_schema.orbax._sides import Side
from ckpt_schema.orbax._transfers import watched_arrays

__all__ = ["save"]


@old_objects_aside()
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
    item: str = STATE,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
    aux: str | None = "nnx_aux",
    private: Tree | None = None,
    read_as: Any = None,
    also: Mapping[str, Any] | None = None,
    custom_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Saves ``state`` as a checkpoint in the layout of ``lens.source``, whichever side it is on.

    An NNX run that writes Linen checkpoints passes a lens from Linen to NNX; ``~lens`` writes the
    other way. Leaves that the source has no place for, which are private to the view by
    declaration, stand beside the state in a pytree of their own: who loads the checkpoint without
    this library does not meet them, and `restore` gives them back. Everything is validated before
    anything is written; Orbax writes to a directory that this save has for itself, and one rename
    puts it in its place, so that what exists is whole, and of several writers one wins. In a store,
    where nothing is renamed in one step, Orbax writes to the path itself: there, let one writer
    have one path.

    Args:
        path: The directory to make, local or remote. It must not exist.
        state: A concrete ``nnx.State``, ``TrainState`` or dict, or a module, or a dict that holds
            modules.
        lens: The lens. Without one and without a `layout`, the state is saved as it is.
        layout: What to save like, where no lens is given: the path of a checkpoint, a tree, a
            schema or a layout. `ckpt_schema.adapt` makes the lens from it to the state.
        rules: What names and shapes do not tell, where no lens is given; see `ckpt_schema.adapt`.
        scan: The axis of stacked nodes, where no lens is given.
        lists: Patterns of lists of layers, where no lens is given.
        onto: Where the source's private leaves come from, and its containers; see `Lens.put`. Boxes
            are saved if it has them.
        side: The side that the state is on, for states that conform to both.
        item: The name of the pytree that holds the state.
        at: The key path in it where the state stands; in a checkpoint that is the ``layout``, too.
        items: For a state that is spread over several pytrees, which one holds what is at a key;
            see `restore`. All other keys are in ``item``.
        aux: The name of that pytree. With None, private leaves are not saved.
        private: The private leaves that are saved beside it, as `load_private` returns them; those
            of the state unless given.
        read_as: Who will read the checkpoint, where devices will hold other parts of leaves than
            they do here: a mesh, over which leaves keep their specs; or a target of either side, or
            shardings by leaf. Abstract meshes do, of devices that are elsewhere. Leaves are cut into
            smaller chunks on disk then, so that a device reads little more than it holds. The values
            are the same, and so is every restore.
        also: More items of the same checkpoint, by name: a data iterator, a config, whatever Orbax
            saves. Orbax's ``load_checkpointables`` reads them.
        custom_metadata: What is kept with the checkpoint as JSON, for Orbax's ``metadata`` to read.
            Beside it stands, under ``ckpt_schema``, the layout that was written and the lens.

    Raises:
        CheckpointExistsError: There is something at ``path``, or another writer was first; it is
            not touched.
        CheckpointWriteError: It could not be written; nothing of it is left.
        ConformanceError: The state is on neither side, or could be on either, or holds leaves that
            Orbax cannot save, or values that cannot be carried over; or an argument is none.
    """
    # What one process refuses none may write: a save that some do not come to would wait for them.
    with raised_by_all():
        lens, side = saved_through(
            state, lens, side, layout, Words(rules, scan, lists), at=at, items=items
        )
        place = absolute(path)
        shards = {} if read_as is None else shards_read(read_as, state, lens, side)
        verify_writable(place)
        if jax.process_index() == 0:  # of several, another may have begun to write meanwhile
            verify_free(place)
        if also is not None and not isinstance(also, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            fault = Mismatch(
                "also", "argument", "items by name, or None", f"a {type(also).__name__}"
            )
            raise ConformanceError("also holds no items", [fault])
        # Two items of one name would be one entry of what Orbax is given,
        # and the later one would win.
        for name in also or ():
            taken = (item, aux or "", *(items.values() if isinstance(items, Mapping) else ()))
            verify_name(name, "also", "an item beside the state", taken)
        _verify_json(custom_metadata)
    # Processes that cut one leaf in different ways would write an array that none could read.
    checksum = zlib.crc32(repr(sorted(shards.items())).encode())
    agree("processes do not save the same", {"path": place, "read_as": f"{checksum:08x}"})
    given: dict[str, Any] = {"onto": onto, "side": side, "aux": aux, "private": private}
    trees = items_of(state, lens, item=item, at=at, items=items, **given)
    chunkings = chunkings_for(trees, shards, lens, at=at, items=items) if shards else {}
    # A folder beside the place: a save that dies leaves no half of a checkpoint under its name.
    site = Site.beside(place)
    try:
        # The record is what a restore without a lens goes by; see `recorded`.
        noted = {**(custom_metadata or {}), RECORD: record_of(lens)}
        every = {**trees, **(also or {})}
        with watched_arrays("writing", trees, "bytes_written"):
            # Where no directory can be made, this raises here, in each process, before any waits.
            with written_in(chunkings):
                saving = ocp.save_checkpointables_async(site.draft, every, custom_metadata=noted)
            # Some of what Orbax waits for at the end has no bound that a caller could set: other
            # processes, a store that does not answer. What has one says more than this does.
            is_alone = jax.process_count() == 1 and not is_remote(place)
            saving.result(timeout=None if is_alone else patience() + _GRACE)
    except Exception as error:  # Orbax has no one class for what may go wrong
        raise site.failed(error) from error
    site.finish()


# Seconds, so that a wait of Orbax that has a bound of its own ends first, and says why.
_GRACE = 5.0


def _verify_json(told: Any) -> None:
    if told is None:
        return
    # Through JSON and back: a key counts as what JSON makes of it, which is what is written.
    try:
        if RECORD in json.loads(json.dumps(dict(told))):
            raise ValueError(f"{RECORD}, which is this library's own")
    except (TypeError, ValueError) as error:
        hint = "keep arrays and objects in an item of their own: also={...}"
        fault = Mismatch("custom_metadata", "argument", "what JSON can say", str(error), hint)
        raise ConformanceError("custom_metadata is no JSON", [fault]) from error

"""What a save says of itself in the metadata of its checkpoint: the layout that it wrote, and the lens that it wrote through.

It is a hint to whoever reads the checkpoint, and no more: files are copied, and changed by others.
What the structure on disk does not bear out is not believed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from etils import epath

from ckpt_schema._compat import CHECKPOINT_FILE
from ckpt_schema._json.json_text import from_json, to_json
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.registry import digest
from ckpt_schema.errors import CkptSchemaError

__all__ = ["RECORD", "Record", "record_of", "recorded", "recorded_alone"]

_LOGGER = logging.getLogger("ckpt_schema")

Reading = TypeVar("Reading")

RECORD = "ckpt_schema"
"""The key of Orbax's custom metadata that holds it."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What a checkpoint says of how it was written.

    Attributes:
        fingerprint: That of the layout on disk; None where nothing is said.
        told: The lens that it was saved through, as data of JSON; None where it was saved as it was.
    """

    fingerprint: str | None = None
    told: Any = None

    def names(self, table: Layout) -> bool:
        """Whether it says that this layout is on disk."""
        return self.fingerprint is not None and self.fingerprint == digest(table)

    def lens(self) -> Lens | None:
        """The lens that it was saved through, with what is on disk as its source."""
        if self.told is None:
            return None
        try:
            return from_json(json.dumps(self.told), Lens)
        # It may name a class that is no more: what is on disk is read without the record then.
        except CkptSchemaError as error:
            _LOGGER.info("the lens that a checkpoint was saved through is not read: %s", error)
            return None


@functools.lru_cache(maxsize=64)
def record_of(lens: Lens) -> dict[str, Any]:
    """What a save through a lens says of itself, as data of JSON."""
    record: dict[str, Any] = {"layout": lens.source.name, "fingerprint": digest(lens.source)}
    # A lens from a layout to itself would tell nothing more.
    if digest(lens.view) == record["fingerprint"]:
        return record
    try:
        record["lens"] = json.loads(to_json(lens))
    except CkptSchemaError as error:  # a class or a default that only code can say
        _LOGGER.info("the lens is not recorded in the checkpoint: %s", error)
    return record


def recorded(place: epath.Path) -> Record:
    """What a checkpoint says of how it was written, which is nothing unless this library wrote it."""
    try:
        whole: Any = json.loads((place / CHECKPOINT_FILE).read_text())
        told: Any = whole["custom_metadata"][RECORD]
        fingerprint = told["fingerprint"]
    # Others write what they like there, or nothing.
    except (OSError, ValueError, KeyError, TypeError):
        return Record()
    if not isinstance(fingerprint, str):
        return Record()
    return Record(fingerprint, told.get("lens"))


def recorded_alone(
    place: epath.Path, readings: Sequence[Reading], layout_of: Callable[[Reading], Layout]
) -> list[Reading]:
    """Of several readings that the structure of a checkpoint bears out, the one that it says itself.

    None where it is silent.
    """
    record = recorded(place)
    named = [reading for reading in readings if record.names(layout_of(reading))]
    return named if len(named) == 1 else []

"""What the leaves of a tree are, by the framework that makes it: of dicts here, of NNX in ``_frameworks.variables``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from ckpt_schema._frameworks.state_names import USUAL_COLLECTION
from ckpt_schema._layouts.immutable import replaced
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Row
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["Dicts", "Untold"]


class Dicts:
    """Trees of dicts, as Linen makes them: what a leaf is, its collection says.

    Attributes:
        container: See `Layout`.
        homes: Where a train state keeps a model of this kind.
    """

    container: ClassVar[Literal["dict", "nnx"]] = "dict"
    homes: ClassVar[tuple[KeyPath, ...]] = (
        (USUAL_COLLECTION,),
        (USUAL_COLLECTION, USUAL_COLLECTION),
    )

    def model(self, row: Row, collection: str | None) -> Row:
        """A leaf of a model; ``params`` is what a field that names no collection means."""
        kind = collection or USUAL_COLLECTION
        return row if row.kind == kind else replaced(row, kind=kind)

    def leaf(self, row: Row) -> Row:
        """A leaf beside models and optimizers."""
        return row

    def trained(self, wrt: Any) -> Callable[[Row, KeyPath], bool]:
        """Whether an optimizer trains a leaf of a model, told by its row and its key in the model.

        Args:
            wrt: A collection, several, or None for ``params``.

        Raises:
            SchemaError: It is none of these.
        """
        # A filter of NNX would name Variable types, which dicts tell nothing of.
        several: Any = [wrt] if isinstance(wrt, str) else [USUAL_COLLECTION] if wrt is None else wrt
        if not isinstance(several, (list, tuple, set)) or not all(
            isinstance(each, str) for each in several
        ):
            hint = 'write wrt="params", or wrt=["params", "lora"]; filters are for layouts of NNX'
            fault = Mismatch("wrt", "declaration", "collections by name", repr(wrt), hint)
            raise SchemaError("an optimizer is not well declared", [fault])
        return lambda row, _: row.kind in several

    def kept(self, *, mirror: bool, boxed: bool) -> Any:
        """The kind of a leaf of an optimizer state."""
        # What mirrors a param is told as one; a count is of no collection.
        return USUAL_COLLECTION if mirror else None

    def parted(self, owner: str, trained: Sequence[Row]) -> SchemaError | None:
        """The error for params that an optimizer state of this kind has no place for."""
        return None

    @property
    def box(self) -> Any:
        """How params are wrapped for a transformation; None where they are not."""
        return None


class Untold(Dicts):
    """Trees of dicts that tell of no collections, as files of other frameworks do, and checkpoints of NNX."""

    homes = ((USUAL_COLLECTION,), ("model",))

    def model(self, row: Row, collection: str | None) -> Row:
        """A leaf of a model, of no collection unless its field names one."""
        return row if row.kind == collection else replaced(row, kind=collection)

    def trained(self, wrt: Any) -> Callable[[Row, KeyPath], bool]:
        """Whether an optimizer trains a leaf of a model: all, unless collections are named."""
        return super().trained(wrt) if wrt is not None else lambda row, key: True

    def kept(self, *, mirror: bool, boxed: bool) -> Any:
        """The kind of a leaf of an optimizer state: none."""
        return None

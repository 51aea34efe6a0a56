"""Random streams: a key and a count, as Flax keeps both."""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.fields import Field
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.schema import Schema

__all__ = ["Stream", "is_raw_key"]

if TYPE_CHECKING:
    from typing import Literal as Stream  # to a type checker, Stream["urbg"] is a legal annotation
else:

    class Stream:
        """The annotation of an RNG stream: ``Stream["urbg"]`` is a schema of ``key`` and ``count``, as in ``nnx.RngStream``."""

        def __class_getitem__(cls, impl: str) -> type[Schema]:
            """The schema of a stream whose key has implementation ``impl``."""
            return _stream(impl)


@functools.cache
def _stream(impl: str) -> type[Schema]:
    names: dict[str, Any] = {
        "__annotations__": {"key": Leaf((), leaves.key_dtype(impl)), "count": Leaf((), "uint32")},
        "key": Field(type="RngKey", axis=0),
        "count": Field(type="RngCount", axis=0),
    }
    return types.new_class(f"Stream[{impl}]", (Schema,), exec_body=lambda body: body.update(names))


def is_raw_key(dtype: str, axes: Sequence[object]) -> bool:
    """Whether a leaf may be the raw data of keys, whose last axis has 2 words for fry, and 4 for others.

    Args:
        dtype: Its dtype.
        axes: Its shape, or its dims.
    """
    return dtype == "uint32" and len(axes) > 0 and axes[-1] in (2, 4, (2,), (4,))

"""Schemas of trees that tell of no framework."""

from __future__ import annotations

from typing import ClassVar

from ckpt_schema._layouts.kinds import Dicts, Untold
from ckpt_schema._layouts.schema import Schema

__all__ = ["Plain"]


class Plain(Schema):
    """The base of schemas of trees that tell of no framework: their leaves are of no collection and no Variable type.

    Example:
        >>> from jaxtyping import Array, Float32
        >>> from ckpt_schema import field, layout
        >>> class Dense(Schema):
        ...     kernel: Float32[Array, "embed mlp"]
        >>> class File(Plain):
        ...     params: Dense = field(key="")
        >>> print(layout(File))
        File: 1 row
          params/kernel  kernel  float32[embed mlp]
    """

    __kinds__: ClassVar[Dicts] = Untold()

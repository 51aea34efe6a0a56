"""A layout as a folder of Hugging Face has it: with the dtypes of its files, which a family does not know."""

from __future__ import annotations

import dataclasses

from etils import epath

from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout
from ckpt_schema._safetensors.weights import read_weights
from ckpt_schema._trees.slots import SlotFinder

__all__ = ["as_stored"]


def as_stored(schema: type[Schema] | Layout, path: epath.PathLike) -> Layout:
    """A layout of dotted names with the dtypes that the files of a folder have.

    So a family is declared once, and read in whatever precision somebody has saved it. Nothing else
    of the layout is changed: what the files lack, or have besides, is an error when they are read.

    Args:
        schema: The layout, ``class Weights(cs.Schema, joined=".")``.
        path: A folder, a safetensors file, or the index of several. Its headers alone are read.

    Returns:
        The layout; a leaf that the files do not have is as it was declared.

    Raises:
        CheckpointMismatchError: There is no such folder, or its files are damaged.
        SchemaError: The schema is wrong in itself.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jaxtyping import Array, Float32
        >>> import ckpt_schema as cs
        >>> class Weights(cs.Schema, joined="."):
        ...     scale: Float32[Array, " embed"] = cs.field(key="model/norm/weight")
        >>> folder = tempfile.mkdtemp() + "/hub"
        >>> cs.hf.save(folder, {"model.norm.weight": jnp.ones(3, "bfloat16")})
        >>> print(as_stored(Weights, folder))
        Weights: 1 rows
          scale  model.norm.weight  bfloat16[embed]
    """
    table = layout(schema)
    slot = SlotFinder(table).slot
    dtypes: dict[int, str] = {}
    for name, tensor in read_weights(path).tensors.items():
        at = slot((name,), stored=True)
        if at is not None:
            dtypes.setdefault(at[0], str(tensor.dtype))
    rows = [
        dataclasses.replace(row, leaf=dataclasses.replace(row.leaf, dtype=dtypes[number]))
        if number in dtypes
        else row
        for number, row in enumerate(table.rows)
    ]
    return dataclasses.replace(table, rows=tuple(rows))

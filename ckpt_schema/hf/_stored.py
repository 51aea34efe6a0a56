"""A layout as a folder of Hugging Face has it: what a family does not know, dtypes and what else is there."""

from __future__ import annotations

import dataclasses

import jax
from etils import epath

from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import Index, Key, LogicalPath
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Row, verify_table
from ckpt_schema._safetensors.weights import read_weights
from ckpt_schema._trees.inference import infer_tree
from ckpt_schema._trees.slots import SlotFinder

__all__ = ["as_stored"]


_SCALES = ("_scale_inv", "_scale")
"""What stands behind the name of a tensor in that of its scales."""


def as_stored(schema: type[Schema] | Layout, path: epath.PathLike) -> Layout:
    """A layout of dotted names with the dtypes that the files of a folder have, and with what else they have.

    So a family is declared once, and read in whatever precision somebody has saved it. What the files
    lack is an error when they are read. What they have besides becomes part of the layout, so that
    `ckpt_schema.derive` is an error that names it, until a rule says what becomes of it: with
    ``cs.private("vision_tower", cs.own)`` a restore does not read it, and a save writes what it is
    given, ``onto=cs.hf.load(folder)``.

    A tensor that is called as a declared one with ``_scale_inv`` or ``_scale`` behind it holds its
    scales, and stands beside it: ``weight_scale_inv`` beside ``weight``, which `ckpt_schema.dequantize`
    takes.

    Args:
        schema: The layout, ``class Weights(cs.Schema, joined=".")``.
        path: A folder, a safetensors file, or the index of several. Its headers alone are read.

    Returns:
        The layout; a leaf that the files do not have is as it was declared. What only they have is
        called as it is there, its dots read as slashes.

    Raises:
        CheckpointMismatchError: There is no such folder, or its files are damaged.
        SchemaError: The schema is wrong in itself, or has a name of something else in the files.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jaxtyping import Array, Float32
        >>> import ckpt_schema as cs
        >>> class Weights(cs.Schema, joined="."):
        ...     scale: Float32[Array, " embed"] = cs.field(key="model/norm/weight")
        >>> folder = tempfile.mkdtemp() + "/hub"
        >>> cs.hf.save(folder, {"model.norm.weight": jnp.ones(3, "bfloat16"), "eyes.w": jnp.ones(2)})
        >>> print(as_stored(Weights, folder))
        Weights: 2 rows
          scale   model.norm.weight  bfloat16[embed]
          eyes/w  eyes.w             float32[2]
    """
    table = layout(schema)
    slot_of = SlotFinder(table).slot
    # By the number of the row. A row of several layers takes the dtype of the first: where another
    # layer has another one, the restore says so.
    dtypes: dict[int, str] = {}
    scales: dict[LogicalPath, Row] = {}
    others: dict[str, jax.ShapeDtypeStruct] = {}
    for name, tensor in read_weights(path).tree.items():
        slot = slot_of((name,), stored=True)
        if slot is not None:
            dtypes.setdefault(slot[0], str(tensor.dtype))
            continue
        # "weight_scale_inv" holds the scales of "weight", if there is one.
        ending = next((end for end in _SCALES if name.endswith(end)), "")
        scaled = slot_of((name.removesuffix(ending),), stored=True) if ending else None
        if scaled is None:
            others[name] = tensor
        else:
            # One row for the scales of all layers, as the weights have.
            row = _scales_of(table.rows[scaled[0]], ending, tensor)
            scales.setdefault(row.path, row)
    rows: list[Row] = []
    for number, row in enumerate(table.rows):
        if number in dtypes:
            leaf = dataclasses.replace(row.leaf, dtype=dtypes[number])
            row = dataclasses.replace(row, leaf=leaf)
        rows.append(row)
    rows += scales.values()
    if others:
        for row in infer_tree(others, joined=".").rows:
            # They are plain weights, as what is declared without a framework is.
            rows.append(dataclasses.replace(row, path=row.model_path, body=0))
    return verify_table(dataclasses.replace(table, rows=tuple(rows)))


def _scales_of(row: Row, ending: str, tensor: jax.ShapeDtypeStruct) -> Row:
    """The row of the scales of another one, each layer of which has as many."""
    *above, last = row.key
    # Plain numbers: how the scales' axes follow from those of the weight, the format does not say.
    dims = tuple((size,) for size in tensor.shape)
    return Row(
        (*row.path[:-1], row.path[-1] + ending),
        (*above, _with_ending(last, ending)),
        Leaf(dims, str(tensor.dtype)),
        row.repeats,
        body=row.body,
    )


def _with_ending(segment: Key | Index, ending: str) -> Key | Index:
    """A segment of a key with something behind it."""
    if not isinstance(segment, Index):
        return f"{segment}{ending}"
    # In a dotted name the layer is in the midst of the segment: "layers.{i}.mlp.weight".
    if segment.then is None:
        return dataclasses.replace(segment, suffix=segment.suffix + ending)
    # Of several layers in one name, the ending stands behind the last.
    then = _with_ending(segment.then, ending)
    assert isinstance(then, Index)
    return dataclasses.replace(segment, then=then)

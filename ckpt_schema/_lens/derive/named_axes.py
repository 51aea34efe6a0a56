"""Which axis of a leaf a rule means by a dim, or why nobody can say.

``flip("head", "vocab")`` and ``pad("head", "vocab", "padded")`` name an axis by its dim, by its label,
or by what its class calls it. A leaf may have two axes of that name, and then there is no answer but a
fault that says how to name one of them.
"""

from __future__ import annotations

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import EITHER, Dim
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.derive.axis_names import axes_called
from ckpt_schema._lens.derive.row_parts import spots_of
from ckpt_schema._lens.rules import Reset

__all__ = ["is_unsure", "one_of_several", "spots_called"]


def spots_called(row: Row, dim: Dim) -> list[tuple[int, int, int]]:
    """The axes of a leaf that are called so, or else the factors of an axis that are.

    Each is the number of the axis, its first factor that is meant, and the one after the last.
    """
    # "embed" is the axis of that name, whatever else it is a factor of.
    whole = [(at, 0, len(row.leaf.dims[at])) for at in axes_called(row.leaf, dim)]
    return whole or spots_of(row, dim)


def is_unsure(row: Row, dim: Dim) -> bool:
    """Whether an axis of a leaf may be the one that is called so, and nobody can say.

    A factored moment keeps one axis of its param, and which of two is not known.
    """
    spelled = dims_.format_dim(dim)
    for axis in row.leaf.names:
        for name in axis.parts:
            # "embed_or_mlp" is what an axis is called that may be either.
            if EITHER in name and spelled in name.split(EITHER):
                return True
    return False


def one_of_several(row: Row, dim: Dim) -> str:
    """What to do where a rule names an axis that a leaf has twice."""
    spelled = dims_.format_dim(dim)
    # An optimizer has made its axes, and no label that the user gives reaches them.
    if row.reshaped:
        reset = Reset(view=row.path)
        return f"nobody can say which axis of the param {spelled} is here: start it anew, {reset}"
    names: list[str] = []
    for axis, size in zip(row.leaf.own, row.leaf.dims, strict=True):
        if size == dim:
            names.append(str(axis))
    # Only names that differ can be told to the user as a choice.
    if len(names) > 1 and len(set(names)) == len(names):
        return f"{spelled} is the size of several axes: name one of them, {' or '.join(names)}"
    return (
        f"{spelled} is the size of several axes, and nothing tells them apart: "
        f'give them labels, "in={spelled} out={spelled}", and name one of these'
    )

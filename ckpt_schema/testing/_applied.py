"""What a lens does to the leaves of states, leaf by leaf, by NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ckpt_schema._layouts.paths import format_path
from ckpt_schema._layouts.table import Row, Slot
from ckpt_schema._lens.arrays import execution
from ckpt_schema._lens.arrays.blocks import Task, bits_of
from ckpt_schema._lens.arrays.conversions import is_checked
from ckpt_schema._lens.codecs import Codec, Exact, Plus, Times, Word
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.plan.tasks import Application, applications, as_it_is

__all__ = [
    "applied",
    "asks",
    "carry",
    "changes_floats",
    "is_integer",
    "looked_at",
    "scaled_by",
    "turned",
]


def applied(
    lens: Lens, sizes: Mapping[str, int] | None = None
) -> Iterator[tuple[Join, Application]]:
    """Each join, with the leaves that it makes of leaves; every dim has a size."""
    rows = lens.wholes[0].rows, lens.wholes[1].rows
    for join in lens.joins:
        for made in applications(join, rows, lens.dims if sizes is None else sizes):
            yield join, made


def asks(join: Join) -> str:
    """What a join asks of the values that it reads, beyond their dtype."""
    for cell in join.cells:
        # What is cut off must hold the fill, and nothing that would be lost.
        if cell.is_constant and isinstance(cell.source, int):
            return "padding is cut off"
        if is_checked(cell.codec):
            return ", ".join(map(str, cell.codec))
        if cell.compares[1]:
            return "tied"
        # A digit that goes nowhere in the view reads the same element of it several times.
        if not cell.is_constant and any(digit.at[1] is None for digit in cell.geometry.digits):
            return "copies are compared"
    return ""


def carry(
    made: Application,
    values: Mapping[Slot, Any],
    onto: Mapping[Slot, Any],
    rows: Sequence[Row],
    sizes: Mapping[str, int],
    change: Callable[[Task], Task] | None = None,
) -> dict[Slot, Any]:
    """What is made of leaves.

    Args:
        made: What is done.
        values: The leaves that are read.
        onto: Those that what has no partner is kept from.
        rows: The rows of what is read.
        sizes: The sizes of all dims, in elements.
        change: What is done instead.
    """
    task, read, _ = made.onto(lambda slot: slot in onto)
    # What only moves is in no task of a plan: here it is one that copies.
    if made.moves:
        task = as_it_is(rows[made.inputs[0][0]], sizes)
    # A task reads its own leaves first, and then those that it keeps elements of.
    inputs = [values[slot] for slot in made.inputs]
    inputs += [onto[slot] for slot in read]
    task = task if change is None else change(task)
    results = execution.run(task, inputs, [None] * len(made.results))
    return dict(zip(made.results, results, strict=True))


def turned(task: Task) -> Task:
    """What becomes of gradients: those of what is scaled are scaled back, and padding has none."""
    copies = []
    for copy in task.copies:
        # The derivative of a sum does not know what was added.
        words = (word for word in copy.block.codec if not isinstance(word, Plus))
        codec = tuple(map(_gradient, words))
        copies.append(dataclasses.replace(copy, block=dataclasses.replace(copy.block, codec=codec)))
    fillings = []
    for filling in task.fillings:
        # NaN, for no gradient of another leaf is that of padding: it is not compared.
        bits = bits_of(float("nan"), task.results[filling.result].dtype)
        fillings.append(dataclasses.replace(filling, bits=bits))
    return dataclasses.replace(task, copies=tuple(copies), fillings=tuple(fillings))


def _gradient(word: Word) -> Word:
    """The word for the gradient: where a param is c times as large, its gradient is divided by c."""
    if isinstance(word, Times):
        return word.inverse
    # The dtype of a gradient changes as the param's does, so that a cast stays what it is.
    return dataclasses.replace(word, exponent=-word.exponent) if isinstance(word, Exact) else word


def changes_floats(codec: Codec) -> bool:
    """Whether a codec is for floats: not all of them come back."""
    return any(not isinstance(word, Exact) or not is_integer(word.source) for word in codec)


def is_integer(dtype: str) -> bool:
    """Whether a dtype is one of integers."""
    return not dtype.startswith("key<") and jnp.issubdtype(jnp.dtype(dtype), jnp.integer)


def scaled_by(task: Task) -> Mapping[int, Codec]:
    """For each input whose floats are scaled or cast, how."""
    codecs: dict[int, Codec] = {}
    for copy in task.copies:
        if changes_floats(copy.block.codec):
            codecs[copy.source] = copy.block.codec
    return codecs


def looked_at(lens: Lens) -> list[str]:
    """What ``get`` does that depends on values, by key path: where there is none, it may be traced."""
    looked: list[str] = []
    for join in lens.joins:
        what = asks(join)
        for row in join.views if what else ():
            looked.append(f"{format_path(lens.view.rows[row].key)}: {what}")
    return looked

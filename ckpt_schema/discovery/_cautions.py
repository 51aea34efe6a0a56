"""What is to be known of a discovery besides: sizes that may be taken for others, and what the input does not exercise."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_schema.discovery._leaf_pieces import LeafPiece
from ckpt_schema.discovery._models import Leaves, RunnableModel
from ckpt_schema.discovery._open import leaf_kinds

__all__ = ["colliding_sizes", "differing_leaves", "unexercised"]

_SHOWN = 4


def colliding_sizes(pieces: Iterable[LeafPiece]) -> list[str]:
    """That sizes are one, or sums or products of others, so that leaves may be cut where nothing was joined.

    Args:
        pieces: What both models were cut into.

    Returns:
        A line, or none.
    """
    forms = {piece.form for piece in pieces}
    sizes = sorted(set(itertools.chain(*forms)))
    words: list[str] = []
    for form in sorted(forms):
        for size in _sizes_twice(form):
            words.append(f"{size} is two axes of one leaf")
    # A leaf of 12 may be cut in 4 and 8 where it was never fused, if others have 4 and 8.
    for first, second in itertools.combinations_with_replacement(sizes, 2):
        if first + second in sizes:
            words.append(f"{first + second} is {first} + {second}")
        if first * second in sizes:
            words.append(f"{first * second} is {first} * {second}")
    if not words:
        return []
    shown = ", ".join(dict.fromkeys(words[:_SHOWN])) + ", ..." * (len(words) > _SHOWN)
    hint = "a configuration whose sizes are no sums or products of others may tell more"
    return [f"sizes collide, {shown}: {hint}"]


def differing_leaves(
    suspects: Sequence[Collection[str]] | None, names: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    """In which leaves two models differ, where that is known, and what the user can do to find out more.

    Args:
        suspects: The leaves of each side among which is all that differs.
        names: What rules call the leaves of each side.
    """
    if suspects is not None:
        words: list[str] = []
        for leaves, names_of_side in zip(suspects, names, strict=True):
            told = [name for leaf, name in names_of_side.items() if leaf in leaves]
            words.append(leaf_kinds(told))
        yield f"what differs is in {words[0]}, and in {words[1]}: while these are silent, they agree"
    yield (
        "give scan= and lists= if layers are stacked; discover parts of both alone, as one block, and "
        "give what is found as rules=; with_layers= tells at which layer two models begin to differ"
    )


def _sizes_twice(form: Sequence[int]) -> Iterator[int]:
    """The sizes of axes that are as long as the one before them; a form is in order."""
    for before, size in itertools.pairwise(form):
        if size == before:
            yield size


def unexercised(model: RunnableModel, values: Leaves, seed: int) -> list[str]:
    """What of its leaves no output of a model depends on at the input that is given: tokens and positions beyond it.

    Args:
        model: The model.
        values: Random values of its leaves.
        seed: Of others, at which the same must hold: an activation may be zero at some.

    Returns:
        A line, or none. Whole leaves that nothing depends on are not in it: these are open.
    """
    random = np.random.default_rng([seed, 19])
    others: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in values.items():
        # What has one axis may be a variance: it keeps its values.
        drawn = random.normal(size=value.shape) * float(np.std(value))
        others[name] = drawn if value.ndim > 1 else value
    # A row of an embedding whose token the input does not have is zero in each gradient.
    live = {name: np.zeros(shape, bool) for name, shape in model.shapes.items()}
    for point in (values, others):
        outputs = model.run(point)
        gradients = model.pullback(point, random.normal(size=outputs.shape))
        for name, gradient in gradients.items():
            live[name] |= gradient != 0
    words: list[str] = []
    for name, live_of_leaf in live.items():
        for where in _dead_indices(live_of_leaf):
            words.append(f"{name}[{where}]")
    if not words:
        return []
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return [f"this input does not exercise {', '.join(words[:_SHOWN])}{more}"]


def _dead_indices(live: np.ndarray[Any, Any]) -> Iterator[str]:
    """The indices of the first axis that has some where nothing is alive; none where nothing is at all."""
    for axis in range(live.ndim if live.any() else 0):
        others = tuple(other for other in range(live.ndim) if other != axis)
        dead = np.flatnonzero(~live.any(axis=others))
        if dead.size:
            yield ":, " * axis + _ranges(dead)
            return


def _ranges(numbers: Sequence[int] | np.ndarray[Any, Any]) -> str:
    """Indices as slices: ``3, 5:8``."""
    # Within a run a number and its place differ by the same: 3, 5, 6, 7 by 3, and then by 4.
    words: list[str] = []
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        indices = [int(number) for _, number in run]
        first, last = indices[0], indices[-1]
        words.append(str(first) if first == last else f"{first}:{last + 1}")
    return ", ".join(words)

"""Weights that are not the params: what an optimizer keeps has to be worked into them before they are served.

``optax.contrib.schedule_free`` trains on a point between two averages. Who takes the params of such
a run and drops the state of the optimizer has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import jax

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.table import Layout, Part
from ckpt_schema._messages.warned import warn
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import ServedWeightsWarning

__all__ = ["lacks_served", "unserved", "warn_of_unserved"]

_FIELDS = {"weight_sum", "max_lr", "z"}
"""What `optax.contrib.ScheduleFreeState` alone keeps, as a checkpoint spells it."""


def unserved(near: Layout, joined_rows: Callable[[], Collection[int]]) -> str | None:
    """What to say where a lens drops a state of ``near`` that the weights to serve are made of.

    Args:
        near: The layout.
        joined_rows: Tells which of its rows have a partner. Most layouts have no such state, and ask for none.
    """
    for part in near.parts:
        # By its name: to compare types would be to load optax for every lens.
        if part.type.__name__ != "ScheduleFreeState":
            continue
        joined = joined_rows()
        if _is_carried(near, part, joined):
            continue
        from ckpt_schema._frameworks import optimizer_rows

        cure = optimizer_rows.served_by(part.type)
        if cure is not None and _carries_weights(near, joined):
            return f"{near.name} keeps {'/'.join(part.path)}, a {part.type.__name__}: {_told(cure)}"
    return None


def _is_carried(table: Layout, part: Part, joined: Collection[int]) -> bool:
    """Whether all that a part keeps has a partner."""
    for number, row in enumerate(table.rows):
        is_of_part = row.path[: len(part.path)] == part.path
        if is_of_part and number not in joined:
            return False
    return True


def _carries_weights(table: Layout, joined: Collection[int]) -> bool:
    # A lens of nothing but the optimizer serves no weights.
    return not all(table.rows[number].optimizer for number in joined)


def _told(cure: str) -> str:
    made = f"the weights to serve are {cure}(opt_state, params)"
    return f"{made}, and the state is not carried over. Make them first, or these are others."


def warn_of_unserved(told: str | None, tree: Tree) -> None:
    """Warns where there is something to say, and a tree has values."""
    if told is not None and not any(map(leaves.is_abstract, jax.tree.leaves(tree))):
        warn(told, ServedWeightsWarning)


def lacks_served(keys: Collection[KeyPath], layout: Layout) -> str | None:
    """What to say where a checkpoint has a state that the weights to serve are made of, and a layout has no place for it."""
    segments: set[object] = set()
    for key in keys:
        segments.update(key)
    known: set[object] = set()
    for row in layout.rows:
        known.update(row.key)
    # A checkpoint has no types, so the state is told by the fields that it alone has.
    if not segments >= _FIELDS or known >= _FIELDS:
        return None
    return f"the checkpoint keeps a ScheduleFreeState: {_told('optax.contrib.schedule_free_eval_params')}"

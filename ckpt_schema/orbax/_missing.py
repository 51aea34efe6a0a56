"""What a checkpoint lacks and the target's own function makes: new adapters, a new head."""

from __future__ import annotations

import dataclasses
import functools
import logging
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ckpt_schema._frameworks.variables import state_of
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import KeyPath, LogicalPath
from ckpt_schema._layouts.precision import glob_reaches
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.lens import Lens
from ckpt_schema._messages.text import counted
from ckpt_schema._trees.conformance import Match
from ckpt_schema._trees.containers import flatten
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["Missing", "init", "initialised", "verify_missing"]

_LOGGER = logging.getLogger("ckpt_schema")


@dataclasses.dataclass(frozen=True)
class Missing:
    """See `init`."""

    where: tuple[LogicalPath, ...]

    def means(self, row: Row) -> bool:
        """Whether a row is named: by its path in the model, or that of the param that it mirrors."""
        own = paths.path_names(row.model_path)
        return any(glob_reaches(glob, own) for glob in self.where)

    def rows(self, view: Layout) -> list[Row]:
        """The rows of a layout that are named."""
        return [row for row in view.rows if self.means(row)]


def init(*where: str) -> Missing:
    """Names leaves that a restore makes by the target's own function, where the checkpoint lacks them.

    Args:
        *where: Globs of paths in the model, of leaves or of nodes above them, as in a rule:
            ``"**/lora_*"``, ``"head"``. What an optimizer keeps for these leaves is made too, by the
            transformation.

    Returns:
        What `ckpt_schema.orbax.restore` takes as ``missing=``.

    Example:
        >>> init("**/lora_*", "head/**").where
        (('**', 'lora_*'), ('head', '**'))
    """
    return Missing(tuple(paths.path_names(paths.rule_path(each)) for each in where))


def verify_missing(missing: Any, target: Any) -> None:
    """Raises unless the target is a function, which alone can make what is missing.

    Raises:
        ConformanceError: It is none, or `missing` is not what `init` returns.
    """
    if missing is None:
        return
    faults: list[Mismatch] = []
    if not isinstance(missing, Missing):
        expected = 'what cs.init returns, such as cs.init("**/lora_*")'
        faults.append(Mismatch("missing", "argument", expected, f"a {type(missing).__name__}"))
    if not isinstance(target, (types.FunctionType, types.MethodType, functools.partial)):
        hint = "write restore(path, lambda: Training(...), missing=...): the function makes what is named"
        found = f"a {type(target).__name__}"
        faults.append(Mismatch("target", "argument", "a function beside missing=", found, hint))
    if faults:
        raise ConformanceError("wrong arguments", faults)


def initialised(
    missing: Missing, factory: Callable[[], Any], state: Any, side: Lens, match: Match
) -> dict[int, Any]:
    """The values of the leaves that are named and that the checkpoint has no partner for, by position.

    They are computed in one program, and nothing else is.

    Args:
        missing: Names them.
        factory: Makes the target.
        state: The target, abstract.
        side: The lens from the checkpoint's layout to the target's.
        match: The target, matched with the lens's view.

    Raises:
        ConformanceError: Some name means no leaf that is missing.
    """
    joined, rows = side.joined[1], side.view.rows
    # The leaves that nothing on disk is joined to. A glob may mean others too: those are restored.
    alone: dict[int, Row] = {}
    for (number, _), position in match.slots.items():
        if number not in joined:
            alone[position] = rows[number]
    _verify_each_is_used(missing, list(alone.values()))
    positions: list[int] = []
    for position, row in sorted(alone.items()):
        if missing.means(row):
            positions.append(position)
    keys, goals = flatten(state).keys, jax.tree.leaves(state)

    # Under jit only what is returned is computed: the rest of the model is never made.
    def made() -> list[Any]:
        flat = flatten(state_of(factory()))
        by_key: dict[KeyPath, Any] = dict(zip(flat.keys, flat.leaves, strict=True))
        return [by_key[keys[position]] for position in positions]

    # Made where the target wants them, and on no single device first.
    shardings = [getattr(goals[position], "sharding", None) for position in positions]
    values = jax.jit(made, out_shardings=shardings)()
    # Layers of a list are several leaves of one row, and told once.
    names: dict[str, None] = {}
    for position in positions:
        names["/".join(alone[position].path)] = None
    count = counted(len(positions), "leaf", "leaves")
    _LOGGER.info("made by the target's function: %s (%s)", count, ", ".join(names))
    return dict(zip(positions, values, strict=True))


def _verify_each_is_used(missing: Missing, rows: Sequence[Row]) -> None:
    faults: list[Mismatch] = []
    # A glob that means nothing is a slip of the pen, or the checkpoint has these leaves after all.
    for glob in missing.where:
        if not any(Missing((glob,)).means(row) for row in rows):
            near = ", ".join(dict.fromkeys("/".join(row.path) for row in rows[:3])) or "none"
            hint = f"leaves that the checkpoint lacks: {near}"
            found = "none"
            expected = "leaves that the checkpoint lacks"
            faults.append(Mismatch("/".join(glob), "rule", expected, found, hint))
    if faults:
        raise ConformanceError("missing= names what is not missing", faults)

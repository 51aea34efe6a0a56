"""A model that is one array on one side, and holds its leaves by name on the other.

``params`` float32[4 8] here, and ``params/kernel`` float32[4 8] there. Within the model such an array has no
path, so that no rename in the words of the model speaks of it: the rule says both paths from the root.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.partners import Loose, form
from ckpt_schema._lens.rules import Rename, Rule
from ckpt_schema.errors import Mismatch

__all__ = ["LoneArrays", "lone_arrays"]

_SHOWN = 3  # leaves that one array may be; more do not help


@dataclasses.dataclass(frozen=True, slots=True)
class LoneArrays:
    """What joins arrays that are whole models with leaves of the other side.

    Attributes:
        cures: What is said of each leaf, and the rules that are certain, by its path.
    """

    cures: Mapping[LogicalPath, tuple[str, tuple[Rule, ...]]]

    def __contains__(self, row: Row) -> bool:
        """Whether a leaf is such an array, or may be one."""
        return row.path in self.cures

    def cure(self, row: Row) -> tuple[str, tuple[Rule, ...]]:
        """What is said of such a leaf."""
        return self.cures[row.path]

    def told(self, fault: Mismatch) -> Mismatch:
        """The fault of what an optimizer keeps, with what joins it where it goes with such an array."""
        hint, rules = self.cures.get(tuple(fault.path.split("/")), (fault.hint, fault.rules))
        return dataclasses.replace(fault, hint=hint, rules=rules)


def lone_arrays(source: Layout, view: Layout, loose: Sequence[Sequence[Loose]]) -> LoneArrays:
    """The arrays among the leaves without a partner that are all of a model, and what each can be.

    Args:
        source: The source's layout.
        view: The view's layout.
        loose: The leaves of each side that have no partner.
    """
    cures: dict[LogicalPath, tuple[str, tuple[Rule, ...]]] = {}
    for near in (0, 1):
        for leaf in loose[near]:
            # The path of the model itself leads to the array.
            if not leaf.row.body or leaf.row.model_path:
                continue
            others: list[Row] = []
            for other in loose[1 - near]:
                if form(other.row) == form(leaf.row) and other.row.model_path:
                    others.append(other.row)
            if len(others) == 1:
                pair = (leaf.row, others[0]) if near == 0 else (others[0], leaf.row)
                rule = _rename(pair)
                for row, far in ((leaf.row, others[0]), (others[0], leaf.row)):
                    told = f"only {paths.format_path(far.key)} can be it; {rule} joins them"
                    cures[row.path] = told, (rule,)
                cures |= _of_moments((source, view), pair, near)
                continue
            shown = [paths.format_path(other.key) for other in others[:_SHOWN]]
            if len(others) > _SHOWN:
                shown.append(f"{len(others) - _SHOWN} more")
            for other in others:
                pair = (leaf.row, other) if near == 0 else (other, leaf.row)
                rule = _rename(pair)
                where = paths.format_path(leaf.row.key)
                cures[other.path] = f"it may be {where}, which nothing proves: {rule} if it is", ()
            if others:
                told = f"one of {', '.join(shown)} may be it: what joins them is told there"
                cures[leaf.row.path] = told, ()
    return LoneArrays(cures)


def _rename(pair: tuple[Row, Row]) -> Rename:
    """The rule that joins an array with a leaf of the other side."""
    here, there = pair
    # One level less is said in the words of the model, and so holds in all that mirrors it.
    return Rename(here.model_path, ()) if here.model_path else Rename(here.path, there.path)


def _of_moments(
    tables: tuple[Layout, Layout], pair: tuple[Row, Row], near: int
) -> dict[LogicalPath, tuple[str, tuple[Rule, ...]]]:
    """What is said of what an optimizer keeps for the array: nothing in it tells by itself that it mirrors a param.

    Args:
        tables: The source and the view.
        pair: The array and the leaf that it is, the source's first.
        near: Which of them is the array.
    """
    alone = {row.path for row in tables[near].rows if row.optimizer and not row.mirrors}
    cures: dict[LogicalPath, tuple[str, tuple[Rule, ...]]] = {}
    for row in tables[1 - near].rows:
        # opt_state/0/mu keeps for params what opt_state/0/mu/a keeps for params/a.
        if row.mirrors != "/".join(pair[1 - near].path) or row.root not in alone:
            continue
        rule = _rename(pair) if near else Rename(row.root, row.path)
        told = f"it goes with {'/'.join(pair[near].path)}; {rule} joins it"
        cures[row.root] = cures[row.path] = told, (rule,)
    return cures

"""Which side of a lens a tree is on, and where in a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema.conformance import Match, Matcher, Report
from ckpt_schema.dims import Binder
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError
from ckpt_schema.lens.core import Lens
from ckpt_schema.orbax.metadata import DiskTree
from ckpt_schema.paths import KeyPath, format_path
from ckpt_schema.slots import SlotFinder
from ckpt_schema.table import Layout, Slot
from ckpt_schema.trees import Tree, flatten

__all__ = ["Place", "locate", "toward"]

_ENVELOPE = ("step", "opt_state")
"""What stands beside the variables in a Linen train state that keeps its weights bare."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What part of a checkpoint conforms to which layout.

    Attributes:
        layout: The layout.
        prefix: The key path of the conforming subtree; empty for the whole.
        tree: The conforming part of the subtree there.
        slots: Which leaf of it (by position) is which slot of the layout.
    """

    layout: Layout
    prefix: KeyPath
    tree: Tree
    slots: Mapping[Slot, int]


def toward(tree: Tree, lens: Lens, what: str) -> tuple[Lens, Match]:
    """The lens, turned so that ``tree`` is on its view side, and which leaf of the tree is what there.

    Raises:
        ConformanceError: The tree conforms to neither side; the faults are those of the nearer one.
    """
    reports: list[Report] = []
    for side in sorted((lens, ~lens), key=lambda side: _distance(tree, side.view)):
        match = Matcher(side.view).match(tree, Binder(side.dims))
        if not match.report:
            return side, match
        reports.append(match.report)
    nearest = _nearest(reports)
    sides = f"{lens.source.name} nor {lens.view.name}"
    header = f"{what} conforms to neither {sides}; nearest is {nearest.layout}: {len(nearest)} fault(s)"
    raise ConformanceError(header, nearest.mismatches, nearest.notes)


def locate(disk: DiskTree, lens: Lens) -> Place:
    """Where in the checkpoint a tree of either side of ``lens`` stands: its view (no translation is needed), or its source.

    Weights alone are looked for in the whole, then where a full train state keeps them.

    Raises:
        CheckpointMismatchError: Neither is anywhere; the faults are those of the nearest.
    """
    reports: list[tuple[Report, KeyPath]] = []
    for layout, prefix, tree in sorted(_candidates(disk, lens), key=lambda found: _distance(found[2], found[0])):
        match = Matcher(layout).match(tree, Binder(lens.dims))
        if not match.report:
            return Place(layout, prefix, tree, match.slots)
        reports.append((match.report, prefix))
    nearest = _nearest([report for report, _ in reports])
    prefix = next(at for report, at in reports if report is nearest)
    where = f" under {format_path(prefix)}" if prefix else ""
    header = (
        f"{disk.path} is a checkpoint of neither {lens.view.name} nor {lens.source.name}; "
        f"nearest is {nearest.layout}{where}: {len(nearest)} fault(s)"
    )
    raise CheckpointMismatchError(header, nearest.mismatches, nearest.notes)


def _candidates(disk: DiskTree, lens: Lens) -> Iterator[tuple[Layout, KeyPath, Tree]]:
    sides = (lens.view, lens.source)
    yield from ((layout, (), disk.tree) for layout in sides)
    for layout in sides:
        for home in layout.homes:
            inner = disk.at(home)
            if inner is not None:
                yield layout, home, inner
        if layout.homes and isinstance(disk.tree, dict) and disk.tree.keys() >= set(_ENVELOPE):
            yield layout, (), {key: child for key, child in disk.tree.items() if key not in _ENVELOPE}


def _distance(tree: Tree, layout: Layout) -> int:
    """How many leaves and rows are without the other: what has the least is tried first.

    A whole `Matcher.match` of the wrong side costs far more, because it also looks for the likeliest cause of every fault.
    """
    flat, slot = flatten(tree), SlotFinder(layout).slot
    found = [slot(key, stored=flat.stored) for key in flat.keys]
    rows = {at[0] for at in found if at is not None}
    return found.count(None) + sum(number not in rows and not row.optional for number, row in enumerate(layout.rows))


def _nearest(reports: Sequence[Report]) -> Report:
    return min(reports, key=lambda report: (sum(f.kind in ("missing", "extra") for f in report), len(report)))

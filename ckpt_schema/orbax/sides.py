"""Which side of a lens a tree is on, and where in a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from ckpt_schema.conformance import Matcher, Report
from ckpt_schema.dims import Binder
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError
from ckpt_schema.lens.core import Lens
from ckpt_schema.orbax.metadata import DiskTree
from ckpt_schema.paths import KeyPath, format_path
from ckpt_schema.table import Layout
from ckpt_schema.trees import Tree

__all__ = ["Place", "locate", "toward"]


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What part of a checkpoint conforms to which layout.

    Attributes:
        layout: The layout.
        prefix: The key path of the conforming subtree; empty for the whole.
    """

    layout: Layout
    prefix: KeyPath


def toward(tree: Tree, lens: Lens, what: str) -> Lens:
    """The lens, turned so that ``tree`` is on its view side.

    Raises:
        ConformanceError: The tree conforms to neither side; the faults are those of the nearer one.
    """
    reports = [(side, Matcher(side.view).match(tree, Binder(side.dims)).report) for side in (lens, ~lens)]
    for side, report in reports:
        if not report:
            return side
    nearest = _nearest([report for _, report in reports])
    header = f"{what} conforms to neither {lens.source.name} nor {lens.view.name}; nearest is {nearest.layout}: {len(nearest)} fault(s)"
    raise ConformanceError(header, nearest.mismatches, nearest.notes)


def locate(disk: DiskTree, lens: Lens) -> Place:
    """Where in the checkpoint a tree of either side of ``lens`` stands: its view (no translation is needed), or its source.

    Weights alone are looked for in the whole, then where a full train state keeps them.

    Raises:
        CheckpointMismatchError: Neither is anywhere; the faults are those of the nearest.
    """
    reports: list[tuple[Report, KeyPath]] = []
    for layout, prefix in _candidates(lens):
        tree = disk.at(prefix)
        if tree is not None:
            report = Matcher(layout).match(tree, Binder(lens.dims)).report
            if not report:
                return Place(layout, prefix)
            reports.append((report, prefix))
    nearest = _nearest([report for report, _ in reports])
    prefix = next(at for report, at in reports if report is nearest)
    where = f" under {format_path(prefix)}" if prefix else ""
    header = (
        f"{disk.path} is a checkpoint of neither {lens.view.name} nor {lens.source.name}; "
        f"nearest is {nearest.layout}{where}: {len(nearest)} fault(s)"
    )
    raise CheckpointMismatchError(header, nearest.mismatches, nearest.notes)


def _candidates(lens: Lens) -> Iterator[tuple[Layout, KeyPath]]:
    yield lens.view, ()
    yield lens.source, ()
    for layout in (lens.view, lens.source):
        yield from ((layout, home) for home in layout.homes)


def _nearest(reports: Sequence[Report]) -> Report:
    return min(reports, key=lambda report: (sum(f.kind in ("missing", "extra") for f in report), len(report)))

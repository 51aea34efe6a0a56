"""Which version of a registry a target is, and which a checkpoint is: told by their structure."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.registry import Registry
from ckpt_schema._trees.conformance import Match, Matcher
from ckpt_schema._trees.containers import Tree, without
from ckpt_schema._trees.undeclared import unread
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError, Mismatch
from ckpt_schema.orbax._folders import SeveralItemsError, pytrees_of
from ckpt_schema.orbax._metadata import DiskTree
from ckpt_schema.orbax._places import absolute
from ckpt_schema.orbax._records import recorded_alone
from ckpt_schema.orbax._sides import interchangeable, locate, standing_distance
from ckpt_schema.orbax._whereabouts import meant

__all__ = ["lens_between"]

_LOGGER = logging.getLogger("ckpt_schema")


def lens_between(
    path: epath.PathLike,
    target: Tree,
    registry: Registry,
    *,
    item: str | None,
    at: str | None,
    items: Mapping[str, str] | None,
    aux: str | None,
) -> tuple[Lens, DiskTree]:
    """The lens from the version that is on disk to that of the target, and what of the checkpoint is that.

    Raises:
        ConformanceError: The target is of no version, or of several.
        CheckpointMismatchError: There is no checkpoint, or it is of no version, or of several.
    """
    view = _version_of(target, registry)
    where: dict[str, Any] = {"at": at, "items": items, "aux": aux}
    try:
        disks = [meant(path, item=item, **where)]
    except SeveralItemsError:
        disks = [*_each_item(path, where)]
    disk, source = _version_on_disk(disks, view, registry, aux)
    steps = [each.view.name for each in registry.path(source, view)]
    _LOGGER.info("%s is of %s", disk.where, " -> ".join([source.name, *steps]))
    return registry.lens(source, view), disk


def _each_item(path: epath.PathLike, where: Mapping[str, Any]) -> Iterator[DiskTree]:
    for name in sorted(pytrees_of(absolute(path)) - {where["aux"]}, key=paths.natural):
        with contextlib.suppress(CheckpointMismatchError):  # without a key of which `at` speaks
            yield meant(path, item=name, **where)


def _version_of(tree: Tree, registry: Registry) -> Layout:
    """The version that a tree is of.

    Raises:
        ConformanceError: It is of none, with the faults of the nearest; or of several.
    """
    layouts: list[Layout] = []
    tried: list[tuple[int, Match, Layout]] = []
    for table in registry.layouts:
        matcher = Matcher(table)
        slot = matcher.slot
        own = without(tree, unread(tree, lambda key: slot(key, stored=False) is not None))  # noqa: B023
        far = matcher.distance(own)
        # As in `toward`: the version whose keys are nearest tells the faults.
        if tried and far > min(tried, key=lambda each: each[0])[0]:
            continue  # a whole match of a version that is further would only find its keys again
        match = matcher.match(own)
        tried.append((far, match, table))
        layouts += [table] if match.report.ok else []
    if not layouts:
        _, match, table = min(tried, key=lambda each: each[0])
        header = f"the target is of no version of the registry; nearest is {table.name}"
        notes = [*match.report.notes, _versions(registry)]
        raise ConformanceError(header, match.report.mismatches, notes)
    return _one_of(layouts, registry, "the target", "target_side", ConformanceError)


def _version_on_disk(
    disks: Sequence[DiskTree], view: Layout, registry: Registry, aux: str | None
) -> tuple[DiskTree, Layout]:
    """The version that a checkpoint is of, and the item that is.

    Raises:
        CheckpointMismatchError: It is of none, with the faults of the nearest; or of several.
    """
    ranked: list[tuple[int, DiskTree, Layout]] = []
    for disk in disks:
        for table in registry.layouts:
            ranked.append((standing_distance(disk.without(aux), table), disk, table))
    ranked.sort(key=lambda each: each[0])
    nearest = ranked[0][0]
    fitting: list[tuple[DiskTree, Layout]] = []
    faults: list[CheckpointMismatchError] = []
    # Versions that differ in shapes alone are equally near: each of these is matched as a whole.
    for far, disk, table in ranked:
        if far > nearest:
            break
        lens = registry.lens(table, view)
        try:
            fits = locate(disk.without(aux), lens)
        except CheckpointMismatchError as error:
            faults.append(error)
            continue
        fitting += [(disk, table)] if any(fit.layout is lens.source for fit in fits) else []
    if not fitting:
        header = f"{ranked[0][1].where} is of no version of the registry"
        error = faults[0]
        raise CheckpointMismatchError(
            header, error.mismatches, [*error.notes, error.header, _versions(registry)]
        )
    if len({disk.item for disk, _ in fitting}) > 1:
        names = ", ".join(str(disk.item) for disk, _ in fitting)
        hint = f"say which: item={fitting[0][0].item!r}, or another of them"
        fault = Mismatch("item", "ambiguous", "one item that fits", names, hint)
        raise CheckpointMismatchError(f"{fitting[0][0].path} holds several such states", [fault])
    # The record of the save has the word where two versions are the same tree on disk.
    named = recorded_alone(fitting[0][0].path, fitting, lambda each: each[1])
    if len(named) == 1:
        return named[0]
    what = f"{fitting[0][0].where}"
    return fitting[0][0], _one_of(
        [table for _, table in fitting], registry, what, "disk_side", CheckpointMismatchError
    )


def _one_of(
    found: Sequence[Layout],
    registry: Registry,
    what: str,
    argument: str,
    error: type[ConformanceError],
) -> Layout:
    """The one version, or the first of several that are the same tree on disk.

    Raises:
        ConformanceError: There are several that mean something else of the same leaves.
    """
    first, *others = found
    for other in others:
        if not interchangeable(registry.lens(first, other)):
            hint = f"pass the lens itself, registry.lens(...), and say {argument}="
            expected = f"{first.name} or {other.name}, not both"
            told = "leaves that conform to both, and mean something else in each"
            fault = Mismatch("", "ambiguous", expected, told, hint)
            raise error(f"{what} is of {first.name} as well as of {other.name}", [fault])
    return first


def _versions(registry: Registry) -> str:
    return f"the versions are {', '.join(table.name for table in registry.layouts)}"

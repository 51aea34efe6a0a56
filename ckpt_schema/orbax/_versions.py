"""Which version of a registry a target is, and which a checkpoint is: told by their structure."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from ckpt_schema._frameworks import variables
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.read_sides import made_abstract
from ckpt_schema._lens.registry import Registry, fingerprint
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

__all__ = [
    "VersionReading",
    "lens_between",
    "newest",
    "reading",
    "reading_of",
    "verify_registry",
    "version_of",
]

_LOGGER = logging.getLogger("ckpt_schema")


def lens_between(
    path: epath.PathLike,
    target: Any,
    registry: Registry,
    *,
    item: str | None = None,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
    aux: str | None = "nnx_aux",
) -> Lens:
    """The lens from the version that a checkpoint is of to that of a target; reads metadata only.

    `restore` finds it by itself. It is for those who let a manager read: `abstract_items` and
    `state_of` take it, as they do any lens.

    Args:
        path: The checkpoint, a step of a run.
        target: A state, or a module, or a function that makes one; or the version itself, a schema
            or a layout.
        registry: The versions.
        item: See `restore`.
        at: See `restore`.
        items: See `restore`.
        aux: See `restore`.

    Raises:
        ConformanceError: The target is of no version, or of several.
        CheckpointMismatchError: There is no checkpoint, or it is of no version, or of several.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jaxtyping import Array, Float32
        >>> import ckpt_schema as cs
        >>> class V1(cs.Schema):
        ...     w: Float32[Array, " n"]
        >>> class V2(cs.Schema):
        ...     w: Float32[Array, " n"] = cs.field(key="kernel")
        >>> versions = cs.Registry([cs.derive(V1, V2)])
        >>> folder = tempfile.mkdtemp()
        >>> cs.orbax.save(folder + "/1", {"w": jnp.ones(2)})
        >>> print(lens_between(folder + "/1", V2, versions))
        V1 -> V2: 1 joined, 0 private to V1, 0 private to V2
          w  kernel
    """
    verify_registry(registry)
    where: dict[str, Any] = {"item": item, "at": at, "items": items, "aux": aux}
    return reading(path, version_of(target, registry), registry, **where).lens


@dataclasses.dataclass(frozen=True, slots=True)
class VersionReading:
    """How a checkpoint of some version is read.

    Attributes:
        lens: The lens from its version to the one that is asked for.
        disk: What of the checkpoint is of that version.
        versions: The names of the versions on the way, that on disk first.
    """

    lens: Lens
    disk: DiskTree
    versions: tuple[str, ...]


def reading(
    path: epath.PathLike,
    view: Layout,
    registry: Registry,
    *,
    item: str | None,
    at: str | None,
    items: Mapping[str, str] | None,
    aux: str | None,
) -> VersionReading:
    """How the checkpoint at a path is read as a version of a registry.

    Raises:
        CheckpointMismatchError: There is none, or it is of no version, or of several.
    """
    where: dict[str, Any] = {"at": at, "items": items, "aux": aux}
    try:
        disks = [meant(path, item=item, **where)]
    except SeveralItemsError:
        disks = [*_each_item(path, where)]
    return reading_of(disks, view, registry, aux)


def reading_of(
    disks: Sequence[DiskTree], view: Layout, registry: Registry, aux: str | None
) -> VersionReading:
    """How that of several pytrees is read which is of a version.

    Raises:
        CheckpointMismatchError: None is, or more than one, or it is of several versions.
    """
    disk, source = _version_on_disk(disks, view, registry, aux)
    steps = [each.view.name for each in registry.path(source, view)]
    names = (source.name, *steps)
    _LOGGER.info("%s is of %s", disk.where, " -> ".join(names))
    return VersionReading(registry.lens(source, view), disk, names)


def newest(registry: Registry) -> Layout:
    """The version that lenses lead to and that none leads on from.

    Raises:
        ConformanceError: There is none such, or several.
    """
    begun = {fingerprint(lens.source) for lens in registry.lenses}
    ends = [table for table in registry.layouts if fingerprint(table) not in begun]
    if len(ends) == 1:
        return ends[0]
    found = ", ".join(table.name for table in ends) or "none, for the lenses go in a circle"
    hint = f"say which version is to be made, to={(ends or registry.layouts)[0].name}"
    fault = Mismatch("to", "ambiguous", "one version that no lens leads on from", found, hint)
    raise ConformanceError("the registry does not tell which version is the newest", [fault])


def verify_registry(registry: object) -> None:
    """Raises unless it is a registry.

    Raises:
        ConformanceError: It is something else.
    """
    if not isinstance(registry, Registry):
        found = f"a {type(registry).__name__}"
        hint = "of one lens there is nothing to choose: pass the lens itself"
        fault = Mismatch("registry", "argument", "a Registry", found, hint)
        raise ConformanceError("wrong arguments", [fault])


def _each_item(path: epath.PathLike, where: Mapping[str, Any]) -> Iterator[DiskTree]:
    for name in sorted(pytrees_of(absolute(path)) - {where["aux"]}, key=paths.natural):
        with contextlib.suppress(CheckpointMismatchError):  # without a key of which `at` speaks
            yield meant(path, item=name, **where)


def version_of(target: Any, registry: Registry) -> Layout:
    """The version that a target is of, which may be the version itself.

    Raises:
        ConformanceError: It is of none, with the faults of the nearest; or of several.
        DerivationError: It is a layout, and none of those of the registry.
    """
    if isinstance(target, Layout) or (isinstance(target, type) and issubclass(target, Schema)):
        return registry.lens(target, target).view
    return _version_of(variables.state_of(made_abstract(target)), registry)


def _version_of(tree: Tree, registry: Registry) -> Layout:
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

"""What a directory or file is: a checkpoint, and which item of it is meant.

Or what else, and what reads that.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from etils import epath

from ckpt_schema._compat import CHECKPOINT_FILE, DATABASE_FILE, OLD_PYTREE_FILE, PYTREE_FILE
from ckpt_schema._layouts import paths
from ckpt_schema._messages.text import counted
from ckpt_schema.errors import CheckpointMismatchError, Mismatch
from ckpt_schema.orbax._older import is_packed_file, is_pytree
from ckpt_schema.orbax._places import UNFINISHED, misread

__all__ = [
    "Item",
    "RunFolderError",
    "SeveralItemsError",
    "find_item",
    "is_checkpoint",
    "pytrees_of",
    "refusal",
    "steps_of",
]

_PYTREES = ("PyTree", "StandardCheckpoint")  # in the names of the handlers of pytrees


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A pytree in a checkpoint.

    Attributes:
        name: Its name; None where it stands at the root, as older versions of Orbax wrote it.
        every: The names of all pytrees in the checkpoint.
    """

    name: str | None
    every: frozenset[str]


class SeveralItemsError(CheckpointMismatchError):
    """A checkpoint holds several pytrees, and it was not said which is meant."""


class RunFolderError(CheckpointMismatchError):
    """A folder holds checkpoints, as that of a run does, and it was not said which is meant.

    Attributes:
        steps: Their names, the last one last.
    """

    steps: tuple[str, ...] = ()


def refusal(
    place: epath.Path, found: str, hint: str, notes: Iterable[str] = ()
) -> CheckpointMismatchError:
    """The error for a path that cannot be read."""
    return CheckpointMismatchError(f"{place} cannot be read", [_fault(place, found, hint)], notes)


def _fault(place: epath.Path, found: str, hint: str) -> Mismatch:
    return Mismatch(str(place), "checkpoint", "an Orbax checkpoint", found, hint)


def _run_folder(place: epath.Path, found: str, steps: Sequence[str]) -> RunFolderError:
    """The error for the folder of a run.

    Args:
        place: The folder.
        found: How many of what it holds.
        steps: The names of these.
    """
    latest = ", ".join(str(place / name) for name in steps[-3:])
    fault = _fault(place, found, f"pass one of them: {latest}")
    error = RunFolderError(f"{place} holds checkpoints, and is none itself", [fault])
    error.steps = tuple(steps)
    return error


def find_item(place: epath.Path, wanted: str | None, aux: str | None) -> Item:
    """Which pytree of a checkpoint is meant, and which there are.

    Args:
        place: The path of the checkpoint.
        wanted: The name, if it was said.
        aux: One that is not meant unless it is named, and that is read beside it.

    Raises:
        CheckpointMismatchError: There is none, or none of that name, or several that could be
            meant; or the checkpoint lists some that are not there, or not finished.
    """
    if misread(place):
        hint = "move it: no part of the path may hold a backslash, *, ? or ["
        raise refusal(place, "a path that Orbax takes for a pattern", hint)
    # Orbax would read what an unfinished save has left as if it were whole.
    if UNFINISHED in place.name or not place.is_dir():
        raise _other(place, [])
    children = sorted([child.name for child in place.iterdir()], key=paths.natural)
    steps: list[str] = []
    every: list[str] = []
    for name in children:
        if UNFINISHED not in name and (place / name / CHECKPOINT_FILE).exists():
            steps.append(name)
        if is_pytree(place / name):
            every.append(name)
    finished = frozenset(name for name in every if UNFINISHED not in name)
    # A pytree in a checkpoint is a part of it, and not one that an older release wrote at the root.
    flat = is_pytree(place) and not (place.parent / CHECKPOINT_FILE).exists()
    is_listed = CHECKPOINT_FILE in children
    if (steps and not is_listed) or not (flat or every or is_listed):
        raise _other(place, steps)
    listed = _listed(place) if is_listed else {}
    _verify_whole(place, children, listed, wanted, aux, finished)
    # Private leaves stand beside the state, and are meant only where nothing else is there.
    items = [name for name in every if name in finished - {aux or ""}] or [*finished]
    if wanted in finished:
        return Item(wanted, finished)
    if not (flat or items):
        raise _other(place, steps)
    if wanted is None and flat:
        return Item(None, finished)
    # "state" is what `save` of Orbax v1 calls the one pytree that it is given.
    if wanted is None and (len(items) == 1 or "state" in items):
        return Item(items[0] if len(items) == 1 else "state", finished)
    found = f"{'a pytree without a name' if flat else ', '.join(items)}"
    near = difflib.get_close_matches(wanted or "", items, n=1, cutoff=0.5) or items
    hint = "leave item= out" if flat else f"pass item={near[0]!r}, or another of them"
    error = refusal(place, f"a checkpoint that holds {found}", hint)
    if wanted is None:
        raise SeveralItemsError(error.header, error.mismatches)
    raise error


def pytrees_of(place: epath.Path) -> frozenset[str]:
    """The names of the pytrees of a checkpoint that are finished."""
    if not place.is_dir():
        return frozenset()
    names: set[str] = set()
    for child in place.iterdir():
        if is_pytree(child) and UNFINISHED not in child.name:
            names.add(child.name)
    return frozenset(names)


def is_checkpoint(place: epath.Path) -> bool:
    """Whether a directory is a checkpoint, or a pytree of one."""
    return (place / CHECKPOINT_FILE).exists() or is_pytree(place)


def steps_of(place: epath.Path) -> list[str]:
    """The names of the checkpoints in a directory, where it is that of a run; none where it is none."""
    if is_checkpoint(place) or not place.is_dir():
        return []
    children = sorted(place.iterdir(), key=lambda child: paths.natural(child.name))
    steps: list[str] = []
    for child in children:
        # What a save is at work in is not looked into: it may be renamed under our eyes.
        if UNFINISHED in child.name:
            continue
        if (child / CHECKPOINT_FILE).exists() or _holds_items(child):
            steps.append(child.name)
    return steps


def _listed(place: epath.Path) -> Mapping[str, str]:
    """The items that a checkpoint says it has, each with the name of what wrote it."""
    try:
        told: Any = json.loads((place / CHECKPOINT_FILE).read_text())
        handlers: Any = told.get("item_handlers") if isinstance(told, dict) else None
        if not isinstance(told, dict):
            raise ValueError("not a dict")
    except (ValueError, OSError) as error:
        notes = [f"{CHECKPOINT_FILE}: {error}"]
        hint = f"{CHECKPOINT_FILE} is damaged; take another copy"
        raise refusal(place, "a checkpoint that cannot be read", hint, notes) from error
    if not isinstance(handlers, dict):
        return {}  # of one pytree without a name
    named = cast(dict[str, Any], handlers)
    return {name: str(handler) for name, handler in named.items()}


def _verify_whole(
    place: epath.Path,
    children: list[str],
    listed: Mapping[str, str],
    wanted: str | None,
    aux: str | None,
    finished: frozenset[str],
) -> None:
    """Raises where something is missing or unfinished that could be what is read."""
    # What is wrong with each item, by its name.
    lost: dict[str, str] = {}
    for name, handler in listed.items():
        if not _is_there(place / name, handler):
            lost[name] = "a checkpoint without its item {!r}, which it lists"
    # An item that is there may have been saved again, and that save be killed:
    # the old one is whole.
    for name in children:
        base, mark, _ = name.partition(UNFINISHED)
        if mark and base not in finished:
            lost[base] = f"a checkpoint whose item {{!r}} is unfinished: {name}"
    # What is not read may be missing: a copy without a data iterator is good enough for weights.
    for name, missing in lost.items():
        if wanted is None or name in (wanted, aux):
            hint = f"take a copy that has {name}"
            rest = sorted(finished - {aux or "", name}, key=lambda other: (other != "state", other))
            if name != wanted and rest:
                without = ", aux=None" if name == aux else ""
                hint = f"{hint}; or read without it: item={wanted or rest[0]!r}{without}"
            raise refusal(place, missing.format(name), hint)


def _is_there(item: epath.Path, handler: str) -> bool:
    if any(word in handler for word in _PYTREES):
        return (item / PYTREE_FILE).exists() or (item / OLD_PYTREE_FILE).exists()
    return item.is_dir() and any(item.iterdir())


# --- what is no checkpoint  ---


def _other(place: epath.Path, steps: list[str]) -> CheckpointMismatchError:
    """The error for a path that is no checkpoint, with what it is instead."""
    if UNFINISHED in place.name:
        hint = "pass a checkpoint that was saved to its end, or save again"
        return refusal(place, "what an unfinished save has left", hint)
    if not place.exists():
        return refusal(place, "no such path", _near(place))
    if not place.is_dir():
        return refusal(place, *_file(place))
    if steps:
        return _run_folder(place, f"a directory of {counted(len(steps), 'checkpoint')}", steps)
    if (place.parent / CHECKPOINT_FILE).exists():
        named = f" with item={place.name!r}" if is_pytree(place) else ""
        return refusal(place, "a part of a checkpoint", f"pass {place.parent}{named}")
    return _folder(place)


def _near(place: epath.Path) -> str:
    """What there is beside a path where nothing is."""
    above = place.parent
    if not above.is_dir():
        return "check the path"
    # A step that a manager has removed meanwhile: the ones that are there are what can be read.
    steps = [child.name for child in above.iterdir() if (child / CHECKPOINT_FILE).exists()]
    if not steps:
        return "check the path"
    steps.sort(key=paths.natural)
    told = ", ".join(steps[-10:])
    return f"{above} holds {counted(len(steps), 'checkpoint')}: {'..., ' * (len(steps) > 10)}{told}"


def _file(place: epath.Path) -> tuple[str, str]:
    """What a file is, and what reads it."""
    if is_packed_file(place):
        return "a msgpack file of Flax, which holds one tree", "leave item= out"
    with place.open("rb") as file:
        head = file.read(9)
    if len(head) == 9 and head[8:] == b"{" and not any(head[4:8]):
        return "a safetensors file", "safetensors.numpy.load_file reads it"
    return "a file", "a checkpoint is a directory"


def _folder(place: epath.Path) -> CheckpointMismatchError:
    """The error for a directory that holds no checkpoint of today, with what to pass instead."""
    children = sorted(place.iterdir(), key=lambda child: paths.natural(child.name))
    if not children:
        return refusal(place, "an empty directory", "check the path")
    whole = [child for child in children if UNFINISHED not in child.name]
    packed = [child.name for child in whole if is_packed_file(child)]
    old_steps = [child.name for child in whole if _holds_items(child)]
    kinds = [("msgpack file of Flax", packed), ("step of an old CheckpointManager", old_steps)]
    for what, here in kinds:
        if here:
            found = f"a directory with {counted(len(here), what, what.replace(' of', 's of', 1))}"
            return _run_folder(place, found, here)
    if len(whole) < len(children):
        found = f"a directory with {counted(len(children) - len(whole), 'unfinished save')}"
        return refusal(place, found, "pass a checkpoint that was saved to its end, or save again")
    # A pytree whose file of metadata is lost still has its database, in itself or one level down.
    holders = [place]
    for child in children:
        if child.is_dir():
            holders.append(child)
    if any((holder / DATABASE_FILE).exists() for holder in holders):
        found = f"arrays without the {PYTREE_FILE} that tells their tree"
        return refusal(place, found, "a copy may be incomplete")
    found = "a directory without a pytree that Orbax wrote"
    return refusal(place, found, "check the path; a copy may be incomplete")


def _holds_items(step: epath.Path) -> bool:
    """Whether a directory is a step of a manager of releases that wrote no `_CHECKPOINT_METADATA`."""
    return step.is_dir() and any(is_pytree(item) for item in step.iterdir() if item.is_dir())

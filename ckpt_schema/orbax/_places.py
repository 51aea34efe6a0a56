"""Where a checkpoint stands, and how it comes there: made elsewhere, put in its place by one rename.

Two writers to one path so never meet: each works beside the path, in a directory that bears its own
token, and the file system lets one rename only succeed. Who fails, or comes too late, removes his
own directory and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import os
import re
import secrets
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
from etils import epath

from ckpt_schema._compat import CHECKPOINT_FILE, COMMIT_FILE, PYTREE_FILE
from ckpt_schema.errors import (
    CheckpointExistsError,
    CheckpointWriteError,
    CkptSchemaError,
    ConformanceError,
    Mismatch,
)
from ckpt_schema.orbax._agreement import (
    first_line,
    raised_by_all,
    said_by_others,
    shortened,
    told_by_first,
)

__all__ = [
    "UNFINISHED",
    "Site",
    "absolute",
    "is_remote",
    "misread",
    "verify_free",
    "verify_name",
    "verify_writable",
]

UNFINISHED = ".orbax-checkpoint-tmp"
"""In the name of a directory that a save is, or was, writing to; Orbax removes what managers find
under such names."""

# What a path may hold, and Orbax does not find again.
_UNREAD = {"\\": "TensorStore takes it for a separator"} | dict.fromkeys(
    "*?[", "Orbax reads it as a pattern"
)
_RESERVED = (
    "metrics",
    CHECKPOINT_FILE,
    PYTREE_FILE,
    COMMIT_FILE,
    "orbax.checkpoint",
)
_SWEEPS, _QUIET = 40, 5  # at most, and in a row without a find: two seconds, a quarter of one
_LONGEST = 255  # bytes that local file systems give to a name


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a store's, with a scheme: no directory is renamed there in one step."""
    return "://" in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root; Orbax takes no other.

    Raises:
        ConformanceError: It is no path at all.
    """
    hint = "pass the directory as a str or a pathlib.Path"
    try:
        text = os.fspath(path)
        return epath.Path(text if is_remote(text) else _resolved(Path(text)))
    except TypeError:  # of bytes, too
        problem = f"a {type(path).__name__}"
    except KeyError as error:  # etils has no backend for the scheme
        problem = f"{path!r}, of the unknown kind {error}"
    except (ValueError, OSError, RuntimeError) as error:  # a null byte, a loop of links, no home
        problem, hint = f"{path!r}: {first_line(error)}", "choose another path"
    inside = getattr(path, "directory", None) or getattr(path, "path", None)
    if inside is not None:  # a manager or a checkpointer, which holds many
        hint = f"pass the directory of one step, such as {inside}/100"
    fault = Mismatch("path", "argument", "the path of a checkpoint", problem, hint)
    raise ConformanceError("there is no such path", [fault])


def _resolved(path: Path) -> Path:
    """The path without links.

    Raises:
        OSError: A link leads back to itself. From Python 3.13 on, `Path.resolve` stops there
            without a word.
    """
    whole = path.expanduser().resolve()
    if any(os.path.islink(part) for part in (whole, *whole.parents)):  # noqa: PTH114  raises never
        raise OSError("a symbolic link leads back to itself")
    return whole


def misread(place: epath.Path) -> bool:
    """Whether Orbax, which finds some files by a pattern of the whole path, finds others."""
    text = str(place)
    if is_remote(text):
        return False
    hits = glob.glob(text)  # noqa: PTH207  as Orbax does
    return "\\" in text or (any(char in text for char in "*?[") and hits != [text])


def verify_writable(place: epath.Path) -> None:
    """Raises where a checkpoint could be written, and not be read again.

    Raises:
        ConformanceError: The path holds characters that Orbax does not find again, or is named like
            an unfinished save.
    """
    text = str(place)
    faults: list[Mismatch] = []
    if not is_remote(text):
        for char, why in _UNREAD.items():
            if char in text:
                expected, hint = f"a path without {char!r}", f"{why}: save elsewhere"
                faults.append(Mismatch(text, "argument", expected, char, hint))
        if len(os.fsencode(place.name)) > _LONGEST:
            expected, found = f"a name of at most {_LONGEST} bytes", f"{len(place.name)} characters"
            faults.append(Mismatch(text, "argument", expected, found, "choose a shorter one"))
    if UNFINISHED in place.name:
        hint = "it would be taken for what an unfinished save has left, and removed: save elsewhere"
        found = repr(place.name)
        faults.append(Mismatch(text, "argument", f"a name without {UNFINISHED}", found, hint))
    if faults:
        raise ConformanceError(f"{place} could not be read again", faults)


def verify_name(name: object, argument: str, what: str, taken: Collection[str] = ()) -> None:
    """Raises unless an item of a checkpoint can have this name, and be found again under it.

    Args:
        name: The name.
        argument: The argument that says it.
        what: What is to be called so, for messages.
        taken: The names of other items.

    Raises:
        ConformanceError: With what is wrong with it.
    """
    text = name if isinstance(name, str) else ""
    unread = UNFINISHED in text or any(char in "/\0" or char in _UNREAD for char in text)
    if not unread and text not in ("", ".", "..", *_RESERVED, *taken):
        return
    expected, hint = f"a name of its own for {what}", "a plain word; some are Orbax's own"
    fault = Mismatch(argument, "argument", expected, repr(name), hint)
    raise ConformanceError(f"{argument} names no item of a checkpoint", [fault])


def verify_free(place: epath.Path) -> None:
    """Raises where something stands already.

    Raises:
        CheckpointExistsError: At the path, or a file where a directory above it should be.
        CheckpointWriteError: Nobody may look there.
    """
    try:
        _verify_free(place)
    except OSError as error:
        if isinstance(error, CkptSchemaError):
            raise
        raise _not_written(place, {"": str(error)}) from error


def _verify_free(place: epath.Path) -> None:
    hint = "save elsewhere, or remove it"
    if place.exists():
        found = "a file or directory"
        fault = Mismatch(str(place), "checkpoint", "nothing there yet", found, hint)
        raise CheckpointExistsError(f"{place} exists and is not overwritten", [fault])
    above = next((p for p in place.parents if p.exists()), place)
    if above.exists() and not above.is_dir():
        fault = Mismatch(str(above), "checkpoint", "a directory, or nothing", "a file", hint)
        raise CheckpointExistsError(f"{place} cannot be made below a file", [fault])


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """What one save has for itself, until it is whole.

    Attributes:
        place: Where the checkpoint is to stand.
        own: The directory that this save works in, beside it; in a store, which renames nothing in
            one step, the place itself.
    """

    place: epath.Path
    own: epath.Path

    @classmethod
    def beside(cls, place: epath.Path) -> Site:
        """A site for ``place``, the same in every process of one cluster."""
        if is_remote(place):
            return cls(place, place)
        token = told_by_first(secrets.token_hex(6))
        start = place.name.encode()[:100].decode(errors="ignore")  # names have an end
        return cls(place, place.parent / f"{start}{UNFINISHED}-{token}")

    @property
    def draft(self) -> epath.Path:
        """Where Orbax is to write the checkpoint."""
        return self.place if self.own == self.place else self.own / "0"

    def finish(self) -> None:
        """Puts the draft in its place, if nothing has come to stand there meanwhile.

        Raises:
            CheckpointExistsError: Another was first; what it has written stays, and what this save
                has written is removed.
            CheckpointWriteError: The rename failed.
        """
        if self.own == self.place:
            return
        with raised_by_all():
            if jax.process_index() == 0:
                try:
                    self._rename()
                finally:
                    self.sweep()

    def _rename(self) -> None:
        _verify_free(self.place)  # a rename would replace an empty directory
        try:
            Path(self.draft).rename(self.place)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                _verify_free(self.place)
            raise _not_written(self.place, {"": str(error)}) from error

    def failed(self, error: Exception) -> CheckpointWriteError:
        """Removes what this save has written, and gives the error to raise."""
        own = str(error) or type(error).__name__
        is_waiting = _BARRIER in own.lower() or isinstance(error, TimeoutError)
        # Whoever has only waited has nothing to say of the cause.
        said = "" if is_waiting else own
        others = said_by_others(self.own.name, said, seconds=_LISTENS if is_waiting else 0)
        again = _AGAIN
        if self.own == self.place:
            again = "remove what is there, and save again"
        elif jax.process_index() == 0:
            self.sweep()
        causes = {"": own}
        if is_waiting and any(other != "" for other in others.values()):
            # A process that says nothing has only waited as well;
            # one that does not answer may be gone.
            causes = {}
            for number, told in others.items():
                if told != "":
                    causes[f"process {number}"] = "no answer" if told is None else told
        elif is_waiting and (late := _LATE.search(own)):
            causes = {f"process {late[1]}": "others have waited for it in vain"}
        return _not_written(self.place, causes, again)

    def sweep(self) -> None:
        """Removes this save's own directory, until nothing of it comes back.

        Orbax raises at the first failure, while other arrays are still being written by threads
        that no one can wait for.
        """
        with contextlib.suppress(OSError):
            Path(self.own).rmdir()  # all that is left of it after a rename
            return
        quiet = 0
        for _ in range(_SWEEPS):
            left = self.own.exists()
            if left:
                with contextlib.suppress(OSError):  # something was written meanwhile: once more
                    self.own.rmtree(missing_ok=True)
            quiet = 0 if left else quiet + 1
            if quiet == _QUIET:
                return
            time.sleep(0.05)


_CURES = {
    "No space left": "make room, or save elsewhere",
    "Disk quota": "make room, or save elsewhere",
    "Read-only file system": "save where this process may write",
    "ermission denied": "save where this process may write",
    "too long": "choose a shorter path",
}


_AGAIN = "nothing of it is left; mend the cause, and save again"


_BARRIER = "barrier"
"""In what Orbax says where a process has waited for others in vain."""

_LATE = re.compile(r"timed out task names:\s*(\d+)")
"""In what it says then, one of those that did not come."""

_LISTENS = 5.0  # seconds, for what these say


def _not_written(
    place: epath.Path, causes: Mapping[str, str], again: str = _AGAIN
) -> CheckpointWriteError:
    """The error for a checkpoint that could not be written, with what went wrong by process, or by none."""
    faults: list[Mismatch] = []
    for who, text in causes.items():
        hint = next((cure for word, cure in _CURES.items() if word in text), again)
        found = shortened(text)
        where = f"{place} ({who})" if who else str(place)
        faults.append(Mismatch(where, "checkpoint", "a checkpoint, written whole", found, hint))
    return CheckpointWriteError(f"{place} could not be written", faults)

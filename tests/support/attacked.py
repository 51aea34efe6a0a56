"""A process that is attacked: it reads hostile checkpoints under an audit hook, then saves until it is killed.

``python attacked.py ROOT`` writes one line of JSON, how each restore ended and what the hook saw,
and then the number of each state that it has saved to ``ROOT/runs``.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

import ckpt_schema as cs

SIZE = 3000

CALL = "__import__('os').system('touch ran')"


class Before(cs.Schema):
    """What is on disk."""

    step: Int32[Array, ""]
    w: Float32[Array, " a"]


class After(cs.Schema):
    """What is saved and restored: turned, with a stream beside it."""

    step: Int32[Array, ""]
    w: Float32[Array, " a"] = cs.field(key="weight")
    drop: cs.Stream["fry"] = cs.field(default=cs.fresh_key(0))


LENS = cs.derive(Before, After)


def state(number: int) -> dict[str, Any]:
    """A state that tells its number in each leaf."""
    key = jax.random.key(number, impl="threefry2x32")
    drop = {"key": key, "count": jnp.uint32(number)}
    return {"step": jnp.int32(number), "weight": jnp.full(SIZE, float(number)), "drop": drop}


class Evil:
    """What runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        """What a reader of pickles would call."""
        return eval, (CALL,)


def _edited(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(copy: Path) -> None:
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))

    return edit


def _replaced(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda copy: (copy / name).write_bytes(data) and None


_LISTS, _TREE = "_CHECKPOINT_METADATA", "state/_METADATA"
HOSTILE: dict[str, Callable[[Path], None]] = {
    "a key that leaves": _edited(_TREE, "('w',)", "('../../../../ran',)"),
    "a name that leaves": _edited(_TREE, '"w"', '"../../../../ran"'),
    "a key that is code": _edited(_TREE, "('w',)", f"({CALL},)"),
    "an item that leaves": _edited(_LISTS, '"state"', '"../../ran"'),
    "an item that is code": _edited(_LISTS, '"state"', f'"{CALL}"'),
    "a handler that is code": _edited(_LISTS, "orbax.", "os.system.orbax."),
    "a type that is code": _edited(_TREE, "jax.Array", CALL),
    "a pickle for metadata": _replaced(_TREE, pickle.dumps(Evil())),
    "a pickle for the list": _replaced(_LISTS, pickle.dumps(Evil())),
    "a pickle for the data": _replaced("state/manifest.ocdbt", pickle.dumps(Evil())),
    "brackets without end": _replaced(_TREE, b"[" * 100_000),
}


def _end(path: Path, whole: Any) -> str:
    try:
        found = cs.orbax.restore(path, state(1), LENS)
    except cs.CkptSchemaError:
        return "named"
    except Exception as error:  # what a reader of hostile files must never raise
        return f"raw {type(error).__name__}: {error}"[:200]
    return "other values" if cs.differences(found, whole) else "restored"


_WATCHED = (
    *("compile", "exec", "marshal.", "pickle.", "ctypes."),
    *("os.exec", "os.fork", "os.posix_spawn", "os.system", "subprocess."),
    *("os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"),
    *("shutil.", "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.send"),
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _is_watched(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether a restore must not do this: it reads, and runs nothing but what is imported."""
    if event == "open":
        return bool(arguments[2] & _WRITES)
    return event.startswith(_WATCHED)


def main(root: Path) -> None:
    """Is attacked, then saves until it is killed."""
    logging.disable(logging.CRITICAL)
    sound, whole = root / "sound", state(7)
    cs.orbax.save(sound, whole, LENS)
    for number, edit in enumerate(HOSTILE.values()):
        edit(Path(shutil.copytree(sound, root / f"copy{number}")))
    assert _end(sound, whole) == "restored"  # and what is imported and compiled once, is
    assert _end(root / "copy10", whole) == "named"
    seen: list[str] | None = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if seen is not None and _is_watched(event, arguments):
            seen.append(f"{event} {arguments}"[:200])

    sys.addaudithook(audit)
    ends = {name: _end(root / f"copy{number}", whole) for number, name in enumerate(HOSTILE)}
    eval("1")  # which the hook must see
    told, shown, seen = seen[:-2], seen[-2:], None
    assert [text.split()[0] for text in shown] == ["compile", "exec"], shown
    print(json.dumps({"ends": ends, "seen": told}), flush=True)
    for number in itertools.count():
        cs.orbax.save(root / "runs" / str(number), state(number), LENS)
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Command lines that nobody should give: each answers, or says on stderr what is wrong, and exits with a number of ours."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import ckpt_schema as cs
from ckpt_schema.cli import main
from fuzz import texts


def state() -> Any:
    """A tree that a command may be given by the name of this function."""
    params = {f"layers_{n}": {"wi": {"kernel": jnp.ones((4, 8))}} for n in range(3)}
    return {"step": jnp.int32(5), "params": params, "opt_state": optax.adam(1.0).init(params)}


def lens() -> cs.Lens:
    """The lens of such a tree to one of another name."""
    params = {f"layers_{n}": {"up": {"kernel": jnp.ones((4, 8))}} for n in range(3)}
    other = {"step": jnp.int32(5), "params": params, "opt_state": optax.adam(1.0).init(params)}
    return cs.adapt(state(), other, rules=[cs.rename("layers[]/wi", "layers[]/up")])


@functools.cache
def folder() -> Path:
    """A folder with what commands may be given, whole and damaged."""
    holder = tempfile.TemporaryDirectory(prefix="ckpt-schema-commands-")
    atexit.register(holder.cleanup)
    made = Path(holder.name)
    cs.orbax.save(made / "run" / "1000", state())
    shutil.copytree(made / "run" / "1000", made / "damaged")
    for file in (made / "damaged").rglob("*METADATA*"):
        file.write_bytes(file.read_bytes()[::2])
    (made / "layout.py").write_text(cs.to_source(cs.infer(state())))
    (made / "broken.py").write_text("layout = (\n")
    (made / "raises.py").write_text("raise ValueError('no')\n")
    (made / "other.py").write_text("layout = 7\n")
    (made / "empty").write_bytes(b"")
    (made / "bytes.json").write_bytes(bytes(range(256)))
    (made / "empty-folder").mkdir()
    return made


def _whats(drawn: random.Random) -> str:
    """What a command is asked about."""
    base = folder()
    if drawn.random() < 0.2:
        file = base / f"text_{drawn.randrange(10**9)}.json"
        text = drawn.choice(texts.whole())
        file.write_text(
            text if drawn.random() < 0.3 else texts.damaged(text, drawn), errors="replace"
        )
        return str(file)
    good = [base / "run" / "1000", base / "layout.py", "fuzz.commands:state", "fuzz.texts:Old"]
    bad = [
        base / name for name in ("damaged", "broken.py", "raises.py", "other.py", "empty", "run")
    ]
    bad += [base / "bytes.json", base / "empty-folder", base / "none", f"{base / 'layout.py'}:none"]
    names = ["fuzz.commands:lens", "fuzz.commands:none", "fuzz.none:state", "math:pi", "os:getcwd"]
    names += [
        "",
        ":",
        "a:",
        ":b",
        "a:b:c",
        "\0",
        "é/ü",
        "x" * 300,
        "~nobody/x",
        "gs://",
        "file:///",
    ]
    return str(drawn.choice(good if drawn.random() < 0.75 else [*bad, *names]))


_WORDS = (
    "",
    "state",
    "params",
    "opt_state/0/mu",
    "'",
    "a//b",
    "layers_{i}",
    "{",
    "{i}/{j}",
    "\0",
    "-1",
)
_SCANS = ("layers=0", "layers=-1", "layers=--1", "layers", "=", "=0", "params=9", "a=1=2")
_SCANS += ("layers=" + "9" * 5000, "layers=²", "layers=\uff11")
_MESHES = ("1", "8x16", "2x", "x", "0x4", "data=2,model=2", "data=2,model", "a b=2", "²x2", "-1")
_MESHES += ("9" * 30, "9" * 5000, "data=1,data=1")
_COUNTS = ("1", "0", "-3", "3", "many", "9" * 30, "9" * 5000)
_RULES = ("READ", "read,EXACT", "", "READ,,", "NONE", "RESUME,RESUME")
_REFS = ("HEAD", "none", "-h", "--output=none", "@{u}", "HEAD:", "..", "\0", "")


def line(drawn: random.Random) -> list[str]:
    """A command with what may follow it."""
    new = folder() / "new"
    out = str(drawn.choice([new / "a", new, folder(), folder() / "empty", "", "\0", "/dev/null/a"]))
    place = [["--item", drawn.choice(_WORDS)], ["--at", drawn.choice(_WORDS)]]
    reading = [*place, ["--scan", drawn.choice(_SCANS)]]
    first, second = _whats(drawn), _whats(drawn)
    shapes: dict[str, tuple[list[str], list[list[str]]]] = {
        "show": ([first], [*reading, ["--json"]]),
        "infer": ([first], [*reading, ["--list", drawn.choice(_WORDS)], ["-o", out]]),
        "lock": ([first], [*reading, ["--check"], ["-o", out]]),
        "check": ([first, second], [*place, ["--json"]]),
        "explain": ([first, second][: drawn.choice([1, 2])], [["--json"]]),
        "breaking": (
            [first, f"--against={drawn.choice([second, drawn.choice(_REFS)])}"],
            [
                ["--lens", _whats(drawn)],
                ["--rules", drawn.choice(_RULES)],
                ["--lock", out],
                ["--json"],
            ],
        ),
        "diff": ([first, second], [["--values"], ["--lens", _whats(drawn)], ["--json"]]),
        "convert": (
            [first, str(new / "b"), second],
            [*place, ["--verify"], ["--dry-run"], ["--json"]],
        ),
        "hf": (
            [first, str(new / "c"), "--family", drawn.choice(["llama", "none", ""])],
            [
                ["--to", drawn.choice(["nnx", "maxtext", "x"])],
                ["--from", "nnx"],
                ["--like", second],
            ],
        ),
        "plan": (
            [first, second],
            [*place, ["--mesh", drawn.choice(_MESHES)], ["--processes", drawn.choice(_COUNTS)]],
        ),
    }
    command = drawn.choice([*shapes])
    given, options = shapes[command]
    told = [command, *given]
    for option in options:
        if drawn.random() < 0.15:
            told += option
    if drawn.random() < 0.05:
        told.insert(drawn.randrange(len(told) + 1), drawn.choice(["--none", "-", "--", "", "é"]))
    return told


def attempt(rng: np.random.Generator) -> object:
    """Runs one command line."""
    drawn = random.Random(int(rng.integers(2**63)))
    told = line(drawn)
    out, wrong = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(wrong):
            try:
                status: Any = main(told)
            except SystemExit as error:  # of argparse
                status = error.code
    except Exception as error:
        error.add_note(str(told))
        raise
    finally:
        shutil.rmtree(folder() / "new", ignore_errors=True)
    if status not in (0, 1, 2, 3):
        raise AssertionError(f"{told} exits with {status}")
    said = wrong.getvalue()
    if "Traceback" in said or (status > 1 and not said.strip()):
        raise AssertionError(f"{told} exits with {status} and says {said!r}")
    if status > 1:
        raise cs.CkptSchemaError("the command said what is wrong")
    return out.getvalue()

"""Damaged checkpoints, and what a restore makes of each.

``python tests/fuzz/damage.py --cases 6000`` damages copies of small checkpoints of several forms, restores
each in another process, and prints how they ended, by the kind of the damage. It exits with 1 unless
each ended in an error of the library's own or in the right values.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import ckpt_schema

LIMIT = 60.0  # seconds that a restore may take, on a busy machine
GOOD = ("named", "right", "theirs")
_ROOT = Path(ckpt_schema.__file__).parents[1]  # the same package as here, wherever this runs

_WORKER = """
import json, logging, sys, warnings
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
import jax, jax.numpy as jnp, numpy as np, optax
from flax import nnx
from jaxtyping import Array, BFloat16, Float32, Int8
import orbax.checkpoint as orbax_v0
from orbax.checkpoint import v1 as ocp
import ckpt_schema as cs

class Block(cs.Schema):
    w: Float32[Array, "e m"]
    small: BFloat16[Array, " e"]

class Stacked(cs.Schema):
    layers: Block = cs.field(scan="d", axis=0)
    bits: Int8[Array, " m"]
    key: cs.Key["urbg"]

class Drawn(cs.Schema):
    layers: list[Block] = cs.field(length="d")
    bits: Int8[Array, " m"]
    key: cs.Key["urbg"]
    drop: cs.Stream["fry"] = cs.field(default=cs.fresh_key(0))

LENS = cs.derive(cs.linen.Params[Stacked], cs.nnx.Params[Drawn])

def source(seed):
    r = np.random.default_rng(seed)
    layers = {"w": jnp.asarray(r.normal(size=(3, 4, 5)), jnp.float32)}
    layers["small"] = jnp.asarray(r.normal(size=(3, 4)), jnp.bfloat16)
    bits = jnp.asarray(r.integers(-128, 128, 5), jnp.int8)
    key = jax.random.key(seed, impl="unsafe_rbg")
    return {"params": {"layers": layers, "bits": bits, "key": key}}

def view(seed):
    made = LENS.get(source(seed))
    made["drop"]["count"][...] = jnp.uint32(100 + seed)
    made["drop"]["key"][...] = jax.random.key(1000 + seed, impl="threefry2x32")
    return made

def told(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    def one(x):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return [str(x.dtype), np.asarray(jax.random.key_data(x)).tobytes().hex()]
        return [str(x.dtype), list(x.shape), np.asarray(x).tobytes().hex()]
    return {jax.tree_util.keystr(path): one(x) for path, x in flat}

def save(form, path, seed):
    if form == "drawn":
        cs.orbax.save(path, view(seed), LENS)
    elif form == "same side":
        cs.orbax.save(path, view(seed), ~LENS)
    elif form == "flat":
        orbax_v0.PyTreeCheckpointer().save(path, source(seed))
    else:
        orbax_v0.PyTreeCheckpointer(use_ocdbt=False).save(path, source(seed))

TARGET = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), view(0))
PLAIN = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), source(0))

for line in sys.stdin:
    call, form, path, seed = json.loads(line)
    if call == "save":
        save(form, path, seed)
        answer = told(source(seed) if form.startswith("flat") else view(seed))
    else:
        try:
            target = PLAIN if form.startswith("flat") else TARGET
            answer = ["value", told(cs.orbax.restore(path, target, LENS))]
        except cs.CkptSchemaError as error:
            answer = ["named", str(error)]
        except BaseException as error:
            answer = ["raw", f"{type(error).__name__}: {error}"[:300]]
    print("ANSWER", json.dumps(answer), flush=True)
"""

FORMS = ("drawn", "same side", "flat", "flat files")
"""What is damaged: the other side with private leaves beside it, the target's own side, and two of the
v0 API, the last without OCDBT, whose files have no checksums: nobody finds a bit that is flipped there."""


@dataclasses.dataclass(frozen=True)
class Damage:
    """One thing that is done to a copy of a checkpoint.

    Attributes:
        kind: What is done.
        where: The file or directory, relative to the checkpoint.
        apply: Does it, to the checkpoint at a path.
        exchanges: Whether whole leaves of another sound checkpoint of the same layout come in, which
            nothing on disk tells from the right ones.
    """

    kind: str
    where: str
    apply: Callable[[Path], None]
    exchanges: bool = False

    def __str__(self) -> str:
        """What is done, and to what."""
        return f"{self.kind}: {self.where or '.'}"


def damages(path: Path, other: Path, seed: int = 0) -> Iterator[Damage]:
    """Every damage of each kind, of a checkpoint at ``path``.

    Args:
        path: The checkpoint.
        other: One of the same layout with other values, of which parts are exchanged for its own.
        seed: Draws where files are cut, and which bits are flipped.
    """
    draw = random.Random(seed)
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        yield from _of_file(path, other, str(file.relative_to(path)), draw)
    folders = sorted(p for p in path.rglob("*") if p.is_dir())
    for folder in folders:
        yield from _of_folder(path, other, str(folder.relative_to(path)))
    yield Damage("directory emptied", "", _emptied)


def _of_file(path: Path, other: Path, where: str, draw: random.Random) -> Iterator[Damage]:
    data = (path / where).read_bytes()
    yield Damage("file removed", where, lambda root: (root / where).unlink())
    yield Damage("file emptied", where, _writing(where, b""))
    if data:
        yield Damage("file cut", where, _writing(where, data[: draw.randrange(len(data))]))
        at = draw.randrange(len(data) * 8)
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        yield Damage("bit flipped", f"{where} at {at}", _writing(where, bytes(flipped)))
    yield Damage("file grown", where, _writing(where, data + b"\0" * 9))
    yield Damage("file for directory", where, _made_folder(where))
    theirs = other / where
    if theirs.is_file():
        yield Damage("file of another", where, _writing(where, theirs.read_bytes()), True)
    if data[:1] == b"{":
        edits = [*_edited(json.loads(data))]
        for name, told in draw.sample(edits, min(len(edits), 40)):
            text = json.dumps(told).encode()
            yield Damage("JSON edited", f"{where} {name}", _writing(where, text))


def _of_folder(path: Path, other: Path, where: str) -> Iterator[Damage]:
    yield Damage("directory removed", where, lambda root: shutil.rmtree(root / where))
    yield Damage("directory emptied", where, lambda root: _emptied(root / where))
    for end in ("-moved", ".orbax-checkpoint-tmp-1"):
        yield Damage("directory moved", where, lambda root, e=end: _moved(root / where, e))
    if (other / where).is_dir():
        yield Damage("directory of another", where, lambda root: exchange(root, other, where), True)
    siblings = [p for p in (path / where).parent.iterdir() if p.is_dir() and p != path / where]
    for sibling in sorted(siblings):
        name = str(sibling.relative_to(path))
        yield Damage("directory of a sibling", f"{where} by {name}", _swapped(where, name))


def _writing(where: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: void((root / where).write_bytes(data))


def _made_folder(where: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        (root / where).unlink()
        (root / where).mkdir()

    return apply


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _moved(folder: Path, end: str) -> None:
    folder.rename(folder.with_name(folder.name + end))


def exchange(root: Path, other: Path, where: str) -> None:
    """Puts a directory of another checkpoint in the place of one's own."""
    shutil.rmtree(root / where)
    shutil.copytree(other / where, root / where)


def _swapped(where: str, sibling: str) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        shutil.rmtree(root / where)
        shutil.copytree(root / sibling, root / where)

    return apply


def void(_: object) -> None:
    """Nothing, whatever came."""


def _edited(told: Any) -> Iterator[tuple[str, Any]]:
    """JSON with one value in it removed, or exchanged for another."""
    for at, value in _values(told, ()):
        name = "/".join(map(str, at))
        yield f"without {name}", _with(told, at, _GONE)
        others: list[Any] = [None, 1, "x", [], {}]
        if isinstance(value, bool):
            others.append(not value)
        elif isinstance(value, int):
            others.append(value + 1)
        yield from ((f"{name} = {one!r}", _with(told, at, one)) for one in others if one != value)


_GONE = object()


def _values(told: Any, at: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(told, dict):
        pairs = list(told.items())
    elif isinstance(told, list):
        pairs = list(enumerate(told))
    for key, value in pairs:
        yield (*at, key), value
        yield from _values(value, (*at, key))


def _with(told: Any, at: Sequence[Any], value: Any) -> Any:
    """A copy of JSON with another value at one place."""
    made = json.loads(json.dumps(told))
    node = made
    for key in at[:-1]:
        node = node[key]
    if value is _GONE:
        del node[at[-1]]
    else:
        node[at[-1]] = value
    return made


class Restorer:
    """A process that saves and restores on demand, and is started anew when it does not answer."""

    def __init__(self) -> None:
        """Starts the process."""
        self._process = self._started()

    def save(self, form: str, path: Path, seed: int) -> dict[str, Any]:
        """Saves one checkpoint, and tells the leaves that a restore of it must give."""
        answer = self._asked("save", form, path, seed)
        assert isinstance(answer, dict), answer
        return answer

    def restore(self, form: str, path: Path) -> list[Any]:
        """``["value", leaves]``, ``["named", text]``, ``["raw", text]`` or ``["hang", text]``."""
        answer = self._asked("restore", form, path, 0)
        assert isinstance(answer, list), answer
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _asked(self, *call: object) -> Any:
        line = json.dumps([str(x) if isinstance(x, Path) else x for x in call])
        writing, reading = self._process.stdin, self._process.stdout
        assert writing is not None and reading is not None
        writing.write(f"{line}\n")
        writing.flush()
        answer = _answer(reading)
        if answer is not None:
            return json.loads(answer)
        ended = self._process.poll()
        self.close()
        self._process = self._started()
        return ["hang", f"no answer in {LIMIT} s"] if ended is None else ["raw", f"died: {ended}"]

    @staticmethod
    def _started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu"},
        )


def _answer(reading: IO[str]) -> str | None:
    """The next answer of a process; None where it ends, or says nothing for too long."""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while selector.select(LIMIT):
            line = reading.readline()
            if not line:
                return None
            if line.startswith("ANSWER "):
                return line.removeprefix("ANSWER ")
    return None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the restore of a damaged checkpoint ended.

    Attributes:
        form: The form of the checkpoint.
        damage: What was done to it.
        end: ``named``, ``right``, ``theirs`` (whole leaves that came in from another checkpoint),
            ``raw``, ``silent`` or ``hang``.
        text: What was raised, or which leaves are wrong.
    """

    form: str
    damage: Damage
    end: str
    text: str

    @property
    def good(self) -> bool:
        """Whether it ended as it may."""
        return self.end in GOOD


class Fuzz:
    """Checkpoints of one form, and what became of damaged copies."""

    def __init__(self, form: str, root: Path, restorer: Restorer) -> None:
        """Saves two checkpoints of the form below ``root``."""
        self.form, self._root, self._restorer = form, root, restorer
        self.path, self.other = root / "mine", root / "theirs"
        self._mine = restorer.save(form, self.path, 1)
        self._theirs = restorer.save(form, self.other, 2)

    def damages(self, seed: int = 0) -> list[Damage]:
        """All damages of the checkpoint."""
        found = damages(self.path, self.other, seed)
        return [d for d in found if self.form != "flat files" or d.kind != "bit flipped"]

    def outcome(self, damage: Damage | None) -> Outcome:
        """What a restore makes of a copy that is damaged so."""
        copy = self._root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.path, copy)
        damage = damage or Damage("nothing", "", void)
        damage.apply(copy)
        kind, told = self._restorer.restore(self.form, copy)
        if kind != "value":
            return Outcome(self.form, damage, kind, str(told))
        wrong = [name for name in {**self._mine, **told} if told.get(name) != self._mine.get(name)]
        if not wrong:
            return Outcome(self.form, damage, "right", "")
        theirs = damage.exchanges and all(told.get(n) == self._theirs[n] for n in wrong)
        return Outcome(self.form, damage, "theirs" if theirs else "silent", ", ".join(wrong))


def main() -> int:
    """Damages checkpoints and prints how the restores of them ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=6000)
    cases, done, bad = parser.parse_args().cases, Counter[tuple[str, str]](), 0
    restorer = Restorer()
    with tempfile.TemporaryDirectory() as root:
        fuzzes = [Fuzz(form, Path(root) / form, restorer) for form in FORMS]
        seed = 0
        while sum(done.values()) < cases:
            todo = [(fuzz, damage) for fuzz in fuzzes for damage in fuzz.damages(seed)]
            for fuzz, damage in todo[: cases - sum(done.values())]:
                outcome = fuzz.outcome(damage)
                done[damage.kind, outcome.end] += 1
                bad += not outcome.good
                if not outcome.good:
                    print(f"{outcome.end}: {fuzz.form}: {damage}: {outcome.text[:200]}", flush=True)
            seed += 1
    restorer.close()
    ends = ("named", "right", "theirs", "raw", "silent", "hang")
    print(f"| damage | {' | '.join(ends)} |\n|---|{'---|' * len(ends)}")
    for kind in sorted({kind for kind, _ in done}):
        print(f"| {kind} | {' | '.join(str(done[kind, end]) for end in ends)} |")
    print(f"\n{sum(done.values())} damaged checkpoints, {bad} that did not end well.")
    return bad > 0


if __name__ == "__main__":
    raise SystemExit(main())

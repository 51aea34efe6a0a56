"""Damaged folders of Hugging Face, and what a restore makes of each.

``python tests/fuzz/headers.py --cases 5000`` damages copies of small folders, of one file and of
several with an index, and restores each. It exits with 1 unless each ended in an error of the
library's own or in the right values, and unless the library safetensors takes every file that is
taken here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Array, BFloat16, Bool, Float32, Int8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import ckpt_schema as cs

GOOD = ("named", "right")


class FileLayer(cs.Schema):
    weight: Float32[Array, "out inner"] = cs.field(key="fc.weight")
    bias: BFloat16[Array, " out"] = cs.field(key="fc.bias")
    mask: Bool[Array, "out"]


class File(cs.Schema, joined="."):
    layers: list[FileLayer] = cs.field(key="model/layers/{i}", length="depth")
    codes: Int8[Array, "out 3"]
    scale: Float32[Array, ""]


class ModelLayer(cs.Schema):
    weight: Float32[Array, "inner out"]
    bias: BFloat16[Array, " out"]
    mask: Bool[Array, "out"]


class Model(cs.Schema):
    layers: list[ModelLayer] = cs.field(length="depth")
    codes: Int8[Array, "out 3"]
    scale: Float32[Array, ""]


LENS = cs.derive(File, Model)


def tensors() -> dict[str, Any]:
    """The tensors of the folders; no two of one type are equal."""
    drawn = np.random.default_rng(0)
    found: dict[str, Any] = {
        "codes": drawn.integers(-9, 9, (5, 3)).astype(np.int8),
        "scale": np.array(2.5, np.float32),
    }
    for number in range(3):
        layer = f"model.layers.{number}"
        found[f"{layer}.fc.weight"] = drawn.standard_normal((5, 4)).astype(np.float32)
        found[f"{layer}.fc.bias"] = drawn.standard_normal(5).astype(ml_dtypes.bfloat16)
        found[f"{layer}.mask"] = drawn.integers(0, 2, 5).astype(np.bool_)
    return found


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to a folder.

    Attributes:
        kind: What it is called in the tables.
        file: Which file it is done to.
        make: The damaged bytes of the file, from the whole ones; none where the file is removed.
    """

    kind: str
    file: str
    make: Callable[[bytes], bytes | None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a restore of a damaged folder ended.

    Attributes:
        damage: What was done.
        end: ``named``, ``right``, ``silent``, ``raw`` or ``alone``, where only we take the file.
        told: The error, if there was one.
    """

    damage: Damage
    end: str
    told: str = ""


class Folder:
    """A folder that is damaged, over and over."""

    def __init__(self, form: str, path: Path) -> None:
        self.path = path
        self.tensors = tensors()
        if form == "one":
            save_file(self.tensors, path / "model.safetensors", {"format": "pt"})
        else:
            names = [f"model-{n}.safetensors" for n in (1, 2, 3)]
            where = {name: names[at % 3] for at, name in enumerate(self.tensors)}
            for file in names:
                own = {name: self.tensors[name] for name in where if where[name] == file}
                save_file(own, path / file)
            index = {"metadata": {"total_size": 1}, "weight_map": where}
            (path / "model.safetensors.index.json").write_text(json.dumps(index))
        self.whole = {file.name: file.read_bytes() for file in sorted(path.iterdir())}
        self.target = jax.eval_shape(lambda: LENS.get(self.tensors))

    def outcome(self, damage: Damage) -> Outcome:
        """How a restore ends."""
        file = self.path / damage.file
        made = damage.make(self.whole[damage.file])
        if made is None:
            file.unlink()
        else:
            file.write_bytes(made)
        try:
            return self._outcome(damage, file, changed=made != self.whole[damage.file])
        finally:
            file.write_bytes(self.whole[damage.file])

    def _outcome(self, damage: Damage, file: Path, *, changed: bool) -> Outcome:
        try:
            restored = cs.hf.restore(self.path, self.target, LENS)
        except cs.CkptSchemaError as error:
            return Outcome(damage, "named", str(error))
        except BaseException as error:
            return Outcome(damage, "raw", f"{type(error).__name__}: {error}")
        found = LENS.put(restored)
        same = (
            np.asarray(found[name]).tobytes() == array.tobytes()
            for name, array in self.tensors.items()
        )
        if not all(same):
            return Outcome(damage, "silent")
        if changed and file.suffix == ".safetensors":
            try:
                with safe_open(file, "numpy") as opened:
                    opened.keys()
            except SafetensorError as error:
                return Outcome(damage, "alone", str(error))
        return Outcome(damage, "right")

    def damages(self, seed: int) -> Iterator[Damage]:
        """One damage after the other, without an end."""
        drawn = random.Random(seed)
        while True:
            file = drawn.choice([*self.whole])
            index = file.endswith(".json")
            kind = drawn.choice([*(_TEXT if index else {**_TEXT, **_BINARY, **_JSON})])
            make: Any = {**_TEXT, **_BINARY, **_JSON}[kind]
            own = drawn.getrandbits(32)
            yield Damage(
                kind, file, lambda whole, m=make, s=own, i=index: m(whole, random.Random(s), i)
            )


# --- Damages to the text  ---


def _parts(whole: bytes, index: bool) -> tuple[bytes, bytes, bytes]:
    """What stands before the text, the text, and what comes after it."""
    if index:
        return b"", whole, b""
    (length,) = struct.unpack("<Q", whole[:8])
    return whole[:8], whole[8 : 8 + length], whole[8 + length :]


def _with_text(change: Callable[[bytes, random.Random], bytes]) -> Any:
    """A damage to the text, of which the length is told as it then is, or is left as it was."""

    def make(whole: bytes, drawn: random.Random, index: bool) -> bytes:
        _, text, rest = _parts(whole, index)
        made = change(text, drawn)
        if index:
            return made
        told = len(made) if drawn.random() < 0.7 else len(text)
        return struct.pack("<Q", told) + made + rest

    return make


def _flipped(text: bytes, drawn: random.Random) -> bytes:
    at = drawn.randrange(len(text))
    return text[:at] + bytes([text[at] ^ 1 << drawn.randrange(8)]) + text[at + 1 :]


def _garbled(text: bytes, drawn: random.Random) -> bytes:
    at, count = drawn.randrange(len(text)), drawn.randint(1, 6)
    return text[:at] + drawn.randbytes(count) + text[at + count :]


def _digits(text: bytes, drawn: random.Random) -> bytes:
    places = [at for at, char in enumerate(text) if chr(char).isdigit()]
    at = drawn.choice(places)
    words = [
        b"-1",
        b"1e3",
        b"0.5",
        b"007",
        b"9" * 20,
        b"1" * 5000,
        b"null",
        b"true",
        b'"4"',
        b"NaN",
    ]
    digit = str(drawn.randrange(10)).encode()
    return text[:at] + drawn.choice([*words, *[digit] * 10]) + text[at + 1 :]


def _cut_out(text: bytes, drawn: random.Random) -> bytes:
    at = drawn.randrange(len(text))
    return text[:at] + text[at + drawn.randint(1, 40) :]


def _repeated(text: bytes, drawn: random.Random) -> bytes:
    at = drawn.randrange(len(text))
    part = text[at : at + drawn.randint(1, 60)]
    return text[:at] + part + text[at:]


def _nested(text: bytes, drawn: random.Random) -> bytes:
    at = drawn.choice([at for at, char in enumerate(text) if char in b":[,"])
    return text[: at + 1] + drawn.choice([b"[", b'{"a":', b"[" * 5000]) + text[at + 1 :]


TEXT_DAMAGES = (_flipped, _garbled, _digits, _cut_out, _repeated, _nested)
"""What may become of a text of JSON."""

_TEXT = {
    "a bit of the text": _with_text(_flipped),
    "some bytes of the text": _with_text(_garbled),
    "a number of the text": _with_text(_digits),
    "a part of the text gone": _with_text(_cut_out),
    "a part of the text twice": _with_text(_repeated),
    "containers in the text": _with_text(_nested),
    "no file": lambda whole, drawn, index: None,
    "an empty file": lambda whole, drawn, index: b"",
}


# --- Damages to the file  ---


def _length(whole: bytes, drawn: random.Random, index: bool) -> bytes:
    (length,) = struct.unpack("<Q", whole[:8])
    near = length + drawn.choice([-8, -1, 1, 8])
    told = drawn.choice([0, 1, 2, near, 100_000_000, 2**31, 2**32 + length, 2**63, 2**64 - 1])
    return struct.pack("<Q", told) + whole[8:]


def _shorter(whole: bytes, drawn: random.Random, index: bool) -> bytes:
    return whole[: drawn.randrange(len(whole))]


def _longer(whole: bytes, drawn: random.Random, index: bool) -> bytes:
    return whole + drawn.randbytes(drawn.choice([1, 4, 100]))


_BINARY = {"the length": _length, "a shorter file": _shorter, "a longer file": _longer}


# --- Damages to what the text says  ---


def _with_json(change: Callable[[dict[str, Any], random.Random], object]) -> Any:
    def make(whole: bytes, drawn: random.Random, index: bool) -> bytes:
        _, text, rest = _parts(whole, index)
        told = json.loads(text)
        change(told, drawn)
        made = json.dumps(told).encode()
        return struct.pack("<Q", len(made)) + made + rest

    return make


def _entry(told: dict[str, Any], drawn: random.Random) -> dict[str, Any]:
    return told[drawn.choice([name for name in told if name != "__metadata__"])]


def _dtype(told: dict[str, Any], drawn: random.Random) -> None:
    kinds = ["F32", "I32", "BF16", "F16", "I8", "U8", "BOOL", "F8_E4M3", "F4", "f32", "", None, 3]
    _entry(told, drawn)["dtype"] = drawn.choice(kinds)


def _shape(told: dict[str, Any], drawn: random.Random) -> None:
    shape = _entry(told, drawn)["shape"]
    change = drawn.randrange(5)
    if change == 0:
        shape.reverse()
    elif change == 1:
        shape.insert(drawn.randint(0, len(shape)), drawn.choice([0, 1, 2, -1, 2**40, 2**64, True]))
    elif change == 2 and shape:
        shape.pop()
    elif change == 3 and shape:
        shape[0] = drawn.choice([0, 1, shape[0] * 2, -shape[0], float(shape[0])])
    else:
        shape[:] = [int(np.prod(shape))]


def _offsets(told: dict[str, Any], drawn: random.Random) -> None:
    offsets = _entry(told, drawn)["data_offsets"]
    step = drawn.choice([-(2**63), -4, -1, 1, 4, 8, 2**62])
    for at in drawn.choice([[0], [1], [0, 1]]):
        offsets[at] += step
    if drawn.random() < 0.2:
        offsets.reverse()


def _exchanged(told: dict[str, Any], drawn: random.Random) -> None:
    """The bytes of two tensors of different types; of one type, no reader could tell."""
    one, other = (_entry(told, drawn) for _ in range(2))
    if (one["dtype"], one["shape"]) != (other["dtype"], other["shape"]):
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]


def _renamed(told: dict[str, Any], drawn: random.Random) -> None:
    name = drawn.choice([*told])
    other = drawn.choice(
        ["", "a", name + ".x", name.upper(), "__metadata__", "model.layers.7.mask"]
    )
    told[other] = told.pop(name)


def _lost(told: dict[str, Any], drawn: random.Random) -> None:
    told.pop(drawn.choice([*told]))


def _more(told: dict[str, Any], drawn: random.Random) -> None:
    own = dict(_entry(told, drawn))
    told[drawn.choice(["more", "model.layers.3.mask", "model.layers.0"])] = own
    if drawn.random() < 0.5:
        own["data_offsets"] = [0, 0]
        own["shape"] = [0]


_JSON = {
    "a dtype": _with_json(_dtype),
    "a shape": _with_json(_shape),
    "offsets": _with_json(_offsets),
    "bytes of two tensors": _with_json(_exchanged),
    "a name": _with_json(_renamed),
    "a tensor gone": _with_json(_lost),
    "a tensor more": _with_json(_more),
}


def main() -> int:
    """Tries the damages, and prints how they ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    bad: list[Outcome] = []
    for form in ("one", "several"):
        with tempfile.TemporaryDirectory() as path:
            folder = Folder(form, Path(path))
            damages = folder.damages(told.seed)
            for _ in range(told.cases // 2):
                outcome = folder.outcome(next(damages))
                counts.setdefault(outcome.damage.kind, Counter())[outcome.end] += 1
                bad += [outcome] if outcome.end not in GOOD else []
    ends = (*GOOD, "raw", "silent", "alone")
    print(f"| damage | {' | '.join(ends)} |")
    print(f"|---|{'---|' * len(ends)}")
    for kind, found in sorted(counts.items()):
        print(f"| {kind} | {' | '.join(str(found[end]) for end in ends)} |")
    print(f"\n{told.cases} damaged folders, {len(bad)} that did not end well.")
    for outcome in bad[:20]:
        print(outcome.damage.kind, outcome.damage.file, outcome.end, outcome.told[:300])
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

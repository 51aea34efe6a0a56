"""Rules drawn at random, in lists, with those that are needed or without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt32

import ckpt_schema as cs
from fuzz.attempts import SilentError
from fuzz.hostile import DIMS, NUMBERS, pick
from fuzz.seen import same


class OldLayer(cs.Schema):
    q: Float32[Array, "e h"]
    k: Float32[Array, "e h"]
    n: Float32[Array, " e"]


class Old(cs.Schema):
    layers: OldLayer = cs.field(scan="d", axis=0)
    emb: Float32[Array, "v e"]
    key: cs.Key["fry"]


class NewLayer(cs.Schema):
    qk: Float32[Array, "e 2*h"]
    n: Float32[Array, " e"]


class New(cs.Schema):
    layers: list[NewLayer] = cs.field(length="d")
    emb: Float32[Array, "w e"]
    key: UInt32[Array, "2"]


NEEDED = [
    cs.fuse("layers[]/qk", ["layers[]/q", "layers[]/k"]),
    cs.pad("emb", "v", "w"),
    cs.raw_key("key"),
]
PATHS: tuple[Any, ...] = (
    *("layers[]/q", "layers[]/k", "layers[]/qk", "layers[]/n", "emb", "key", "layers[]", "layers"),
    *("layers[]/", "", "/", "opt_state/0", "nope", "layers[]/q/x", "[]", "layers[][]", "a" * 3000),
    *("é", "*", "**/q", "layers[0]/q", "emb/emb", "'emb'"),
)
WRONG: tuple[Any, ...] = (None, 5, b"x", ("a",), ["emb"])
SIZES: tuple[Any, ...] = (
    *(None, {}, {"e": 2}, {"nope": 1}, {"e": -1}, {"e": 0}, {"e": "x"}, {"e": 1.5}, {1: 2}, 5, "e"),
)
BOUND = {"v": 4, "w": 6, "h": 4}
Draw = Callable[[np.random.Generator], Any]


def path(rng: np.random.Generator) -> Any:
    """A path, or now and then what is none."""
    return pick(rng, WRONG) if rng.integers(12) == 0 else pick(rng, PATHS)


def dim(rng: np.random.Generator) -> Any:
    """A dim, or what is none."""
    return pick(rng, ("v", "w", "e", "h", "d", "2*h", "nope", None, 3, *DIMS))


def number(rng: np.random.Generator) -> Any:
    """A number, or what is none."""
    return pick(rng, NUMBERS)


RULES: tuple[Draw, ...] = (
    lambda rng: cs.rename(path(rng), path(rng)),
    lambda rng: cs.private(path(rng), number(rng)),
    lambda rng: cs.private(path(rng), cs.fresh_key(pick(rng, (0, 1, 7)))),
    lambda rng: cs.fuse(path(rng), [path(rng) for _ in range(int(rng.integers(4)))]),
    lambda rng: cs.fuse(path(rng), [path(rng), path(rng)], axis=dim(rng)),
    lambda rng: cs.flip(path(rng), dim(rng)),
    lambda rng: cs.pad(path(rng), dim(rng), dim(rng), fill=number(rng)),
    lambda rng: cs.scale(path(rng), number(rng)),
    lambda rng: cs.tie(path(rng), path(rng)),
    lambda rng: cs.raw_key(path(rng)),
    lambda rng: cs.move(path(rng), path(rng)),
    lambda rng: cs.reset(source=path(rng)),
    lambda rng: cs.reset(view=path(rng)),
    lambda rng: cs.series(path(rng), path(rng), name=path(rng)),
    lambda rng: cs.apart(path(rng)),
    lambda rng: cs.fresh_key(number(rng)),
    lambda rng: pick(rng, (None, 5, "rename", object(), cs.field())),
)


LEAVES = ("layers[]/q", "layers[]/k", "layers[]/qk", "layers[]/n", "emb", "key")
LIKELY: tuple[Draw, ...] = (
    lambda rng: cs.private(pick(rng, LEAVES), pick(rng, (0, 1.0, 0.5))),
    lambda rng: cs.private("key", cs.fresh_key(3)),
    lambda rng: cs.apart(pick(rng, LEAVES)),
    lambda rng: cs.apart(pick(rng, LEAVES), pick(rng, (0, 1.0, -0.0))),
    lambda rng: cs.flip(pick(rng, LEAVES), pick(rng, ("v", "w", "e", "h", "d"))),
    lambda rng: cs.scale(pick(rng, LEAVES), pick(rng, (0.25, 2.0, -1.0, 1.0))),
    lambda rng: cs.tie(pick(rng, LEAVES), pick(rng, LEAVES)),
    lambda rng: cs.rename(*(pick(rng, LEAVES) for _ in range(2))),
    lambda rng: cs.rename("layers[]", "layers[]"),
    lambda rng: cs.rename("layers[]/q", "layers[]/k"),
    lambda rng: cs.rename("layers[]/k", "layers[]/q"),
)
"""Rules as somebody writes them who knows the layouts: more of them are taken."""


# What can hold beside the needed rules, with what it does to a leaf of one layer.
Plausible = tuple[Any, str, Callable[[Any], Any]]
PLAUSIBLE: tuple[Plausible, ...] = (
    (cs.flip("emb", "e"), "emb", lambda x: x[:, ::-1]),
    (cs.flip("emb", "v"), "emb", lambda x: x[::-1]),
    (cs.flip("layers[]/n", "e"), "n", lambda x: x[..., ::-1]),
    (cs.scale("layers[]/n", 0.25), "n", lambda x: x * np.float32(0.25)),
    (cs.scale("emb", 2.0), "emb", lambda x: x * np.float32(2)),
    (
        cs.flip("layers[]/qk", "h"),
        "qk",
        lambda x: x.reshape(*x.shape[:-1], 2, 4)[..., ::-1].reshape(x.shape),
    ),
    (cs.scale("layers[]/qk", 0.5), "qk", lambda x: x * np.float32(0.5)),
    (cs.rename("layers[]/n", "layers[]/n"), "n", lambda x: x),
)


def attempt(rng: np.random.Generator) -> None:
    """Derives by random rules, and uses what comes of it."""
    if rng.integers(2):
        plausible(rng)
        return
    drawn = pick(rng, (RULES, LIKELY, LIKELY))
    most = 3 if drawn is RULES else 2
    extra = [pick(rng, drawn)(rng) for _ in range(int(rng.integers(1, most + 1)))]
    source, view = pick(rng, ((Old, New), (New, Old), (Old, Old), (New, New)))
    needed = rng.integers(10) < (2 if source is view else 8)
    rules = [*NEEDED, *extra] if needed else extra
    rules = [rules[at] for at in rng.permutation(len(rules))]
    bound = {name: size for name, size in BOUND.items() if name in _names(source, view)}
    sizes = pick(rng, SIZES) if rng.integers(4) == 0 else bound
    lens = cs.derive(source, view, rules=rules, dims=sizes)
    str(lens)
    str(lens >> ~lens)
    if rng.integers(8) == 0:
        lens.bind(**pick(rng, ({}, {"h": 3}, {"zz": 1}, {"h": -1}, {"h": None})))
    old = state(rng)
    states = {Old: old, New: other_side(old)}
    held(lens, states[source], states[view], extra)


def _names(*sides: type[cs.Schema]) -> set[str]:
    """Those of the dims of `BOUND` that one side has."""
    return {"h"} | {"v" if side is Old else "w" for side in sides}


def held(lens: cs.Lens, source: Any, view: Any, rules: Sequence[Any]) -> None:
    """Holds a lens by random rules against what is known of it: leaves that no rule names, and the way back."""
    found = lens.get(source)
    said = repr(rules)
    untouched = [name for name in ("emb", "key", "layers") if name not in said and "*" not in said]
    same({name: found[name] for name in untouched}, {name: view[name] for name in untouched})
    same(lens.put(found, onto=source), source)


def state(rng: np.random.Generator) -> Any:
    """A state of the old layout."""
    rows = rng.normal(size=(2, 3, 4)).astype("float32")
    return {
        "layers": {"q": rows, "k": rows + 1, "n": rows[:, :, 0]},
        "emb": rows[1].T.copy(),
        "key": jax.random.key(5, impl="threefry2x32"),
    }


def other_side(tree: Any, chosen: Sequence[Plausible] = ()) -> Any:
    """The same state in the new layout, as NumPy makes it."""
    layers = tree["layers"]
    made = {
        "emb": tree["emb"],
        "n": layers["n"],
        "qk": np.concatenate([layers["q"], layers["k"]], -1),
    }
    for rule, name, done in chosen:
        value = done(made[name])
        if value is None:
            raise SilentError(f"{rule} was taken, of which nobody knows what it means")
        made[name] = value
    return {
        "layers": {at: {"qk": made["qk"][at], "n": made["n"][at]} for at in range(2)},
        "emb": np.concatenate([made["emb"], np.zeros((2, 3), "float32")]),
        "key": np.asarray(jax.random.key_data(tree["key"])),
    }


def plausible(rng: np.random.Generator) -> None:
    """Rules that may stand together, in any order; what is accepted is held against plain NumPy."""
    chosen = [at for at in PLAUSIBLE if rng.integers(4) == 0]
    rules = [*NEEDED, *(rule for rule, _, _ in chosen)]
    shuffled = [rules[at] for at in rng.permutation(len(rules))]
    lens = cs.derive(Old, New, rules=shuffled, dims=BOUND)
    tree = state(rng)
    view = lens.get(tree)
    same(view, other_side(tree, chosen))
    same(lens.put(view, onto=tree), tree)
    same(lens.put(view), tree)

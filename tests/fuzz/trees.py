"""States malformed at random: leaves, keys and containers exchanged, lost, added and buried."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Int32

import ckpt_schema as cs
from fuzz.attempts import SilentError
from fuzz.hostile import CONTAINERS, KEYS, LEAVES, pick

Tree = Any
DEPTH, ROWS, COLUMNS = 3, 2, 3


class Layer(cs.Schema):
    w: Float32[Array, "a b"]
    n: Int32[Array, ""] = cs.field(axis=0)


class Source(cs.Schema):
    emb: Float32[Array, "a b"]
    layers: list[Layer] = cs.field(key="layers_{i}", length="depth")
    key: cs.Key["fry"]


class View(cs.Schema):
    emb: Float32[Array, "b a"]
    layers: Layer = cs.field(scan="depth")
    key: cs.Key["fry"]


LENS = cs.derive(Source, View)


def state(rng: np.random.Generator) -> Tree:
    """A state of the source."""
    tree: Tree = {"emb": rng.normal(size=(ROWS, COLUMNS)).astype("float32")}
    for number in range(DEPTH):
        w = rng.normal(size=(ROWS, COLUMNS)).astype("float32")
        tree[f"layers_{number}"] = {"w": w, "n": np.int32(number)}
    return {**tree, "key": jax.random.key(1, impl="threefry2x32")}


def malformed(rng: np.random.Generator, tree: Tree) -> Tree:
    """The tree with one thing changed, here or in a node below."""
    change = int(rng.integers(8))
    names = list(tree)
    name = pick(rng, names)
    if change == 0:
        return {**tree, name: pick(rng, LEAVES)()}
    if change == 1:
        return {key: value for key, value in tree.items() if key != name}
    if change == 2:
        return {**tree, pick(rng, KEYS): pick(rng, LEAVES)()}
    if change == 3:
        new = pick(rng, KEYS)
        return {new if key == name else key: value for key, value in tree.items()}
    if change == 4:
        return pick(rng, CONTAINERS)(tree)
    if change == 5:
        return {**tree, name: buried(int(rng.integers(1, 4000)))}
    if change == 6:
        return {**tree, name: tree[pick(rng, names)]}
    below = [name for name in names if isinstance(tree[name], dict)]
    if not below:
        return pick(rng, LEAVES)()
    name = pick(rng, below)
    return {**tree, name: malformed(rng, tree[name])}


def buried(levels: int) -> Tree:
    """A leaf at the bottom of many nodes."""
    tree: Tree = np.float32(0)
    for _ in range(levels):
        tree = {"a": tree}
    return tree


def attempt(rng: np.random.Generator) -> None:
    """Uses a malformed state in one of the ways there are."""
    tree = malformed(rng, state(rng))
    if rng.integers(4) == 0 and isinstance(tree, dict) and tree:
        tree = malformed(rng, tree)
    use = int(rng.integers(6))
    if use == 0:
        str(cs.check(LENS.source, tree).mismatches)
    elif use == 1:
        str(cs.infer(tree))
    elif use == 2:
        str(cs.differences(tree, state(rng)))
    elif use == 3:
        good = state(rng)
        cs.assert_trees_identical(LENS.put(LENS.get(good), onto=tree), good)
    elif use == 4:
        cs.derive(cs.infer(tree), LENS.view)
    else:
        verify(tree, LENS.get(tree))


# --- What is accepted, held against plain NumPy  ---


def verify(tree: Tree, view: Tree) -> None:
    """Raises where a view is not that of the tree."""
    # A node without a leaf is no layer.
    full = [name for name in tree if name.startswith("layers_") and jax.tree.leaves(tree[name])]
    layers = [tree[f"layers_{number}"] for number in range(len(full))]
    expected = {
        "emb": plain(tree["emb"], "float32").T,
        "w": np.stack([plain(layer["w"], "float32") for layer in layers]),
        "n": np.stack([plain(layer["n"], "int32") for layer in layers]),
        "key": np.asarray(jax.random.key_data(tree["key"])),
    }
    stacked = view["layers"]
    found = {
        "emb": np.asarray(view["emb"]),
        "w": np.asarray(stacked["w"]),
        "n": np.asarray(stacked["n"]),
        "key": np.asarray(jax.random.key_data(view["key"])),
    }
    for name, value in expected.items():
        other = found[name]
        same = (other.dtype, other.shape) == (value.dtype, value.shape)
        if not same or other.tobytes() != value.tobytes():
            raise SilentError(f"{name}: {other!r} instead of {value!r}")


def plain(leaf: Any, dtype: str) -> np.ndarray[Any, Any]:
    """A leaf as an array of the dtype that is declared, which it must have; a Python number must fit."""
    if isinstance(leaf, (bool, int, float)):
        value = np.asarray(leaf, dtype)
        if isinstance(leaf, bool) or value.item() != leaf:
            raise SilentError(f"{leaf!r} was taken for {dtype}")
        return value
    value = np.asarray(leaf)
    if value.dtype != np.dtype(dtype):
        raise SilentError(f"{value.dtype} was taken for {dtype}")
    return value

"""States malformed at random: leaves, keys and containers exchanged, lost, added and buried."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float32, Int32

import ckpt_schema as cs
from fuzz.attempts import SilentError
from fuzz.hostile import CONTAINERS, KEYS, LEAVES, pick
from fuzz.seen import ABSTRACT, DELETED, bits, leaves, same

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
    change = int(rng.integers(10))
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
    if change == 7:
        return {**tree, name: another_kind(rng, tree[name])}
    if change == 8:
        return dict(reversed(tree.items()))
    below = [name for name in names if isinstance(tree[name], dict)]
    if not below:
        return pick(rng, LEAVES)()
    name = pick(rng, below)
    return {**tree, name: malformed(rng, tree[name])}


def another_kind(rng: np.random.Generator, leaf: Any) -> Any:
    """A leaf of the same values in another form, which is nothing wrong; a node as it is."""
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return leaf
    forms: tuple[Callable[[Any], Any], ...] = (
        jnp.asarray,
        np.asfortranarray,
        np.asarray,
        lambda x: np.repeat(x, 2, 0)[::2] if x.ndim else x.item(),
    )
    return pick(rng, forms)(leaf)


def buried(levels: int) -> Tree:
    """A leaf at the bottom of many nodes."""
    tree: Tree = np.float32(0)
    for _ in range(levels):
        tree = {"a": tree}
    return tree


def attempt(rng: np.random.Generator) -> None:
    """Uses a malformed state in one of the ways there are."""
    good = state(rng)
    tree = malformed(rng, good)
    if rng.integers(4) == 0 and isinstance(tree, dict) and tree:
        tree = malformed(rng, tree)
    use = pick(rng, USES)
    right = use not in (put_back, joined) and sound(tree)  # for these it must have as many layers
    try:
        use(tree, good)
    except cs.CkptSchemaError as error:
        if right:
            raise SilentError(f"what is right is refused: {error}"[:300]) from error
        raise


def checked(tree: Tree, _: Tree) -> None:
    """`check` finds a fault where there is one."""
    report = cs.check(LENS.source, tree)
    str(report)
    if report.ok:
        plain_state(tree)
    else:
        raise cs.ConformanceError("it does not conform", report.mismatches)


def inferred(tree: Tree, _: Tree) -> None:
    """The layout of a tree takes that tree, and leaves it as it is."""
    layout = cs.infer(tree)
    str(layout)
    if not cs.check(layout, tree).ok:
        raise SilentError("a tree is not of its own layout")
    same(cs.derive(layout, layout).get(tree), tree)


def compared(tree: Tree, good: Tree) -> None:
    """`differences` finds one where there is one, and only there."""
    found = cs.differences(good, tree)
    str(found)
    if not found:
        same(tree, good)
    elif sound(tree, (np.ndarray, np.generic)) and leaves(tree) == leaves(good):
        raise SilentError(f"equal trees are told apart: {found}"[:300])
    if cs.differences(tree, tree):
        raise SilentError("a tree is not what it is")


def put_back(tree: Tree, good: Tree) -> None:
    """What is put onto a tree has the values of the view, and no other leaf."""
    same(LENS.put(LENS.get(good), onto=tree), good)


def joined(tree: Tree, good: Tree) -> None:
    """Two inferred layouts: the state as it is, with its keys in the other's order."""
    ours, theirs = (cs.infer(one, lists=["layers_{i}"]) for one in (tree, good))
    same(cs.derive(ours, theirs).get(tree), plain_state(tree), abstract=valueless(tree))


def viewed(tree: Tree, _: Tree) -> None:
    """The view of a tree."""
    verify(tree, LENS.get(tree))


def gone_round(tree: Tree, _: Tree) -> None:
    """The view of a tree, and the tree that it is the view of."""
    same(LENS.put(LENS.get(tree)), plain_state(tree), abstract=valueless(tree))


USES: tuple[Callable[[Tree, Tree], None], ...] = (
    *(checked, inferred, compared, put_back, joined, viewed, gone_round),
)


# --- What is accepted, held against plain NumPy  ---


def plain_state(tree: Tree) -> Tree:
    """A state of the source as nested dicts of NumPy arrays.

    Raises:
        SilentError: It is none.
    """
    if not isinstance(tree, Mapping):
        raise SilentError(f"a {type(tree).__name__} was taken for a state")
    names = [str(name) for name in tree if leaves(tree[name])]
    depth = sum(name.startswith("layers_") for name in names)
    wanted = ["emb", "key", *(f"layers_{number}" for number in range(depth))]
    if sorted(names) != sorted(wanted):
        raise SilentError(f"the leaves {names} were taken"[:300])
    made: Tree = {"emb": plain(tree["emb"], "float32"), "key": tree["key"]}
    if bits(tree["key"])[:2] != ("key<fry>", ()):
        raise SilentError(f"{tree['key']!r} was taken for a key"[:300])
    for name in wanted[2:]:
        layer = tree[name]
        if not isinstance(layer, Mapping) or sorted(map(str, layer)) != ["n", "w"]:
            raise SilentError(f"{name}: {layer!r} was taken"[:300])
        made[name] = {"w": plain(layer["w"], "float32"), "n": plain(layer["n"], "int32")}
        shapes = made["emb"].shape, made[name]["w"].shape, made[name]["n"].shape
        if len(shapes[0]) != 2 or shapes[1] != shapes[0] or shapes[2]:
            raise SilentError(f"{name}: leaves of the shapes {shapes} were taken")
    return made


ANY = (np.ndarray, np.generic, jax.Array)


def sound(tree: Tree, kinds: tuple[type, ...] = ANY) -> bool:
    """Whether a tree is a state in plain dicts, of the kinds of leaves that nobody may refuse."""
    if type(tree) is not dict or not all(isinstance(name, str) for name in tree):
        return False
    below = [node for node in tree.values() if isinstance(node, dict)]
    members = [*tree.values(), *(leaf for node in below for leaf in node.values())]
    plain_nodes = all(type(node) is dict and node for node in below)
    own = (np.matrix, np.ma.MaskedArray)
    arrays = (leaf for leaf in members if not isinstance(leaf, dict))
    if not plain_nodes or not all(isinstance(x, kinds) and type(x) not in own for x in arrays):
        return False
    if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in members):
        return False
    try:
        plain_state(tree)
    except (SilentError, KeyError, RecursionError):  # the last, of what is buried too deep
        return False
    return True


def valueless(tree: Tree) -> bool:
    """Whether a tree has a leaf without a value."""
    return any(value in (ABSTRACT, DELETED) for _, _, value in leaves(tree).values())


def verify(tree: Tree, view: Tree) -> None:
    """Raises where a view is not that of the tree."""
    source = plain_state(tree)
    layers = [source[f"layers_{number}"] for number in range(len(source) - 2)]
    stacked = {name: np.stack([layer[name] for layer in layers]) for name in ("w", "n")}
    same(
        view,
        {"emb": source["emb"].T, "layers": stacked, "key": source["key"]},
        abstract=valueless(tree),
    )


def plain(leaf: Any, dtype: str) -> np.ndarray[Any, Any]:
    """A leaf as an array of the dtype that is declared, which it must have; a Python number must fit."""
    if isinstance(leaf, nnx.Variable):
        leaf = leaf.get_value()
    if isinstance(leaf, jax.ShapeDtypeStruct):
        leaf = np.zeros(leaf.shape, leaf.dtype)
    if isinstance(leaf, (bool, int, float)):
        value = np.asarray(leaf, dtype)
        if isinstance(leaf, bool) or value.item() != leaf:
            raise SilentError(f"{leaf!r} was taken for {dtype}")
        return value
    found = bits(leaf)[0]
    if found != dtype:
        raise SilentError(f"{found} was taken for {dtype}")
    if isinstance(leaf, jax.Array) and leaf.is_deleted():  # which `check` never reads
        return np.zeros(leaf.shape, dtype)
    return np.asarray(leaf)

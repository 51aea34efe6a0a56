"""Each kind of difference between two layouts: both declarations, and what both sides hold, said with NumPy's own functions.

No annotation here is a string, so that a class may use the dtype of the function that it stands in.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import ckpt_schema as cs
from ckpt_schema._layouts.dims import parse_dims
from ckpt_schema._layouts.leaves import Leaf
from oracle.values import array, small

Tree = dict[Any, Any]

A, B, C, DEPTH = 8, 4, 2, 4  # sizes that the axes of a mesh of (4, 2) divide now and then


@dataclasses.dataclass(frozen=True)
class Case:
    """Two layouts, and one state as each has it.

    Attributes:
        layouts: The source's schema and the view's.
        trees: What they hold, as nested dicts of NumPy arrays.
        rules: What types do not say.
        dims: Sizes that no tree tells.
    """

    layouts: tuple[type[cs.Schema], type[cs.Schema]]
    trees: tuple[Tree, Tree]
    rules: Sequence[Any] = ()
    dims: Mapping[str, int] = dataclasses.field(default_factory=dict)


Maker = Callable[[str], Case | None]
CASES: dict[str, Maker] = {}
"""By name: the case of a dtype, or None where the dtype has none."""


def case(maker: Maker) -> Maker:
    """Adds a case under the name of its function."""
    CASES[maker.__name__] = maker
    return maker


def leaf(dtype: str, dims: str) -> Leaf:
    """The annotation of an array."""
    return Leaf(parse_dims(dims), dtype)


def layers(stack: np.ndarray[Any, Any], names: Callable[[int], Any] = lambda i: i) -> Tree:
    """A list of layers, each with a leaf ``w``, of a stack on axis 0."""
    return {names(i): {"w": stack[i]} for i in range(len(stack))}


@case
def moved(dtype: str) -> Case:
    class Source(cs.Schema):
        w: leaf(dtype, "a b")
        v: leaf(dtype, "c") = cs.field(key="x/y")

    class View(cs.Schema):
        w: leaf(dtype, "a b") = cs.field(key="deep/er")
        v: leaf(dtype, "c")

    w, v = array(dtype, A, B), array(dtype, C, seed=1)
    return Case((Source, View), ({"w": w, "x": {"y": v}}, {"deep": {"er": w}, "v": v}))


@case
def transposed(dtype: str) -> Case:
    class Source(cs.Schema):
        w: leaf(dtype, "a b c")

    class View(cs.Schema):
        w: leaf(dtype, "c a b")

    w = array(dtype, A, B, C)
    return Case((Source, View), ({"w": w}, {"w": np.transpose(w, (2, 0, 1))}))


@case
def square_transposed(dtype: str) -> Case:
    class Source(cs.Schema):
        w: leaf(dtype, "a b")

    class View(cs.Schema):
        w: leaf(dtype, "b a")

    w = array(dtype, A, A)
    return Case((Source, View), ({"w": w}, {"w": w.T}))


@case
def merged(dtype: str) -> Case:
    class Source(cs.Schema):
        w: leaf(dtype, "a b c")

    class View(cs.Schema):
        w: leaf(dtype, "c b*a")

    w = array(dtype, A, B, C)
    merged = np.transpose(w, (2, 1, 0)).reshape(C, B * A)
    return Case((Source, View), ({"w": w}, {"w": merged}), dims={"a": A})


@case
def parted(dtype: str) -> Case:
    class Source(cs.Schema):
        w: leaf(dtype, "c 3*a*b")

    class View(cs.Schema):
        w: leaf(dtype, "3 b c a")

    w = array(dtype, C, 3 * A * B)
    whole = w.reshape(C, 3, A, B)
    return Case((Source, View), ({"w": w}, {"w": np.transpose(whole, (1, 3, 0, 2))}), dims={"a": A})


@case
def squeezed(dtype: str) -> Case:
    class Source(cs.Schema):
        w: leaf(dtype, "1 a 1 b")

    class View(cs.Schema):
        w: leaf(dtype, "b 1 a")

    w = array(dtype, 1, A, 1, B)
    return Case((Source, View), ({"w": w}, {"w": w[0, :, 0].T[:, None]}))


def _scanned(dtype: str, axis: int, *, turned: bool) -> Case:
    class Layer(cs.Schema):
        w: leaf(dtype, "a b")

    class Turned(cs.Schema):
        w: leaf(dtype, "b a")

    class Source(cs.Schema):
        layers: Layer = cs.field(scan="depth", axis=axis)

    class View(cs.Schema):
        layers: list[Turned if turned else Layer] = cs.field(length="depth")

    stack = array(dtype, DEPTH, A, B)
    found = np.transpose(stack, (0, 2, 1)) if turned else stack
    source = {"layers": {"w": np.moveaxis(stack, 0, axis)}}
    return Case((Source, View), (source, {"layers": layers(found)}))


@case
def scanned_first(dtype: str) -> Case:
    return _scanned(dtype, 0, turned=False)


@case
def scanned_between(dtype: str) -> Case:
    return _scanned(dtype, 1, turned=True)


@case
def scanned_last(dtype: str) -> Case:
    return _scanned(dtype, -1, turned=False)


@case
def other_stack_axis(dtype: str) -> Case:
    class Layer(cs.Schema):
        w: leaf(dtype, "a b")

    class Source(cs.Schema):
        layers: Layer = cs.field(scan="depth", axis=0)

    class View(cs.Schema):
        layers: Layer = cs.field(scan="depth", axis=2)

    stack = array(dtype, DEPTH, A, B)
    view = {"layers": {"w": np.moveaxis(stack, 0, 2)}}
    return Case((Source, View), ({"layers": {"w": stack}}, view))


@case
def other_numbers(dtype: str) -> Case:
    class Layer(cs.Schema):
        w: leaf(dtype, "a b")

    class Source(cs.Schema):
        layers: list[Layer] = cs.field(key="layers_{i+1}", length="depth")

    class View(cs.Schema):
        layers: list[Layer] = cs.field(key="blocks_{2*i:02}", length="depth")

    # More than ten, for names sort otherwise than numbers do.
    stack = array(dtype, 12, A, B)
    source = layers(stack, lambda i: f"layers_{i + 1}")
    return Case((Source, View), (source, layers(stack, lambda i: f"blocks_{2 * i:02}")))


@case
def two_levels(dtype: str) -> Case:
    class Layer(cs.Schema):
        w: leaf(dtype, "a b")

    class Block(cs.Schema):
        layers: list[Layer] = cs.field(length=2)

    class Source(cs.Schema):
        layers: Layer = cs.field(scan="2*blocks+rest")

    class View(cs.Schema):
        blocks: list[Block] = cs.field(length="blocks")
        rest: list[Layer] = cs.field(length="rest")
        layers = cs.series("blocks[]/layers[]", "rest[]")

    stack = array(dtype, 7, A, B)
    blocks = {i: {"layers": layers(stack[2 * i : 2 * i + 2])} for i in range(3)}
    view = {"blocks": blocks, "rest": layers(stack[6:])}
    return Case((Source, View), ({"layers": {"w": stack}}, view), dims={"rest": 1})


@case
def fused_thirds(dtype: str) -> Case:
    class Source(cs.Schema):
        qkv: leaf(dtype, "a 3*b")

    class View(cs.Schema):
        q: leaf(dtype, "a b")
        k: leaf(dtype, "a b")
        v: leaf(dtype, "b a")

    whole = array(dtype, A, 3 * B)
    q, k, v = np.split(whole, 3, 1)
    rules = [cs.fuse("qkv", ["q", "k", "v"])]
    return Case((Source, View), ({"qkv": whole}, {"q": q, "k": k, "v": v.T}), rules)


@case
def fused_unequal_in_a_stack(dtype: str) -> Case:
    class Whole(cs.Schema):
        qkv: leaf(dtype, "a q+2*kv")

    class Parts(cs.Schema):
        q: leaf(dtype, "a q")
        k: leaf(dtype, "a kv")
        v: leaf(dtype, "a kv")

    class Source(cs.Schema):
        layers: Whole = cs.field(scan="depth", axis=1)

    class View(cs.Schema):
        layers: list[Parts] = cs.field(length="depth")

    stack = array(dtype, DEPTH, A, B + 2 * C)
    view: Tree = {}
    for number, whole in enumerate(stack):
        q, k, v = np.split(whole, [B, B + C], 1)
        view[number] = {"q": q, "k": k, "v": v}
    source = {"layers": {"qkv": np.moveaxis(stack, 0, 1)}}
    rules = [cs.fuse("layers[]/qkv", [f"layers[]/{part}" for part in "qkv"], axis="q+2*kv")]
    return Case((Source, View), (source, {"layers": view}), rules, {"q": B, "kv": C})


@case
def flipped(dtype: str) -> Case:
    class Source(cs.Schema):
        w: leaf(dtype, "a b c")

    class View(cs.Schema):
        w: leaf(dtype, "b a c")

    w = array(dtype, A, B, C)
    view = np.transpose(w[::-1], (1, 0, 2))
    return Case((Source, View), ({"w": w}, {"w": view}), [cs.flip("w", "a")])


@case
def padded(dtype: str) -> Case:
    class Source(cs.Schema):
        w: leaf(dtype, "a b")

    class View(cs.Schema):
        w: leaf(dtype, "b padded")

    # Complex numbers are padded with zeros alone.
    fill = {"bool": True, "complex64": 0}.get(dtype, 1)
    w = array(dtype, A, B)
    rows = np.full((8, B), fill).astype(w.dtype)
    view = np.concatenate([w, rows]).T
    rules = [cs.pad("w", "a", "padded", fill=fill)]
    return Case((Source, View), ({"w": w}, {"w": view}), rules, {"a": A, "padded": A + 8})


@case
def recast(dtype: str) -> Case | None:
    if "int" not in dtype:
        return None
    other = "uint16" if dtype != "uint16" else "int8"

    class Source(cs.Schema):
        w: leaf(dtype, "a b")

    class View(cs.Schema):
        w: leaf(other, "b a")

    w = small(dtype, A, B)
    return Case((Source, View), ({"w": w}, {"w": w.astype(other).T}))


@case
def tied(dtype: str) -> Case:
    class Source(cs.Schema):
        table: leaf(dtype, "a b")
        head: leaf(dtype, "b a")

    class View(cs.Schema):
        table: leaf(dtype, "a b")

    w = array(dtype, A, B)
    source = {"table": w, "head": np.ascontiguousarray(w.T)}
    return Case((Source, View), (source, {"table": w}), [cs.tie("head", "table")])

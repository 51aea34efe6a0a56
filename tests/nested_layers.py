"""Two lists of layers in one node, inside of blocks that are a list or under a scan, with streams that all layers share.

Run as a command this restores every such model of NNX into every other, and those that Linen can have too, without a
declaration: ``python tests/nested_layers.py``, or as many of the pairs as a number says. The values are held against an oracle
that makes each leaf from where it stands in the model.
"""

from __future__ import annotations

import collections
import itertools
import random
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ckpt_schema as cs

DEPTH = 3
LAYERS = {"local": 2, "global": 4}
SHAPES = {"up/kernel": (5, 6), "up/bias": (6,), "norm/scale": (5,), "norm/bias": (5,)}
HEAD = {"head/kernel": (5, 7), "head/bias": (7,)}


class Style(NamedTuple):
    """How the layers of a model are kept.

    Attributes:
        outer: The blocks: a ``list``, ``named`` with numbers, or one ``stack``.
        inner: The layers in each of them, the same.
        axis: On which axis params of stacked blocks are stacked.
    """

    outer: str
    inner: str
    axis: int = 1

    @property
    def is_twice_stacked(self) -> bool:
        """Whether a leaf has an axis of blocks and an axis of layers."""
        return self.outer == self.inner == "stack"

    @property
    def is_of_linen(self) -> bool:
        """Whether Linen has such: it has no lists."""
        return "list" not in (self.outer, self.inner)


KEPT = ("list", "named", "stack")
STYLES = [
    *(Style(outer, inner) for outer, inner in itertools.product(KEPT, KEPT)),
    *(Style("stack", inner, 0) for inner in KEPT),
]


# --- the models  ---


class Layer(nnx.Module):
    """A layer, with the streams that all share."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes it."""
        self.up = nnx.Linear(5, 6, rngs=rngs)
        self.norm = nnx.LayerNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def _stacked(make: Any, rngs: nnx.Rngs, count: int, axis: int) -> Any:
    axes = nnx.StateAxes({nnx.Param: axis, ...: 0})
    return nnx.vmap(make, in_axes=0, out_axes=axes)(rngs.split(count))


def _keep(node: nnx.Module, name: str, how: str, make: Any, rngs: nnx.Rngs, count: int) -> None:
    """Gives a node several layers, as a style has them."""
    if how == "list":
        setattr(node, name, nnx.List([make(rngs) for _ in range(count)]))
    elif how == "named":
        for number in range(count):
            setattr(node, f"{name}_{number}", make(rngs))


class Block(nnx.Module):
    """Two lists of layers, side by side."""

    def __init__(self, rngs: nnx.Rngs, inner: str) -> None:
        """Makes both."""
        for name, count in LAYERS.items():
            if inner == "stack":
                setattr(self, name, _stacked(Layer, rngs, count, 1))
            _keep(self, name, inner, Layer, rngs, count)


class Decoder(nnx.Module):
    """Blocks, and a head."""

    def __init__(self, style: Style) -> None:
        """Makes them."""
        rngs = nnx.Rngs(0)

        def block(own: nnx.Rngs) -> Block:
            return Block(own, style.inner)

        if style.outer == "stack":
            self.layers = _stacked(block, rngs, DEPTH, style.axis)
        _keep(self, "layers", style.outer, block, rngs, DEPTH)
        self.head = nnx.Linear(5, 7, rngs=rngs)


# --- what each leaf holds  ---


def _random(shape: tuple[int, ...], *where: object) -> np.ndarray[Any, Any]:
    seed = zlib.crc32(repr(where).encode())
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def oracle(style: Style) -> dict[str, np.ndarray[Any, Any]]:
    """Every param by its key path, made from where it stands in the model."""
    found = {path: _random(shape, path) for path, shape in HEAD.items()}
    for name, path in itertools.product(LAYERS, SHAPES):
        each = {
            (block, layer): _random(SHAPES[path], block, name, layer, path)
            for block in range(DEPTH)
            for layer in range(LAYERS[name])
        }
        for (block, layer), value in each.items():
            if style.inner != "stack" and style.outer != "stack":
                key = _key(style.outer, "layers", block), _key(style.inner, name, layer)
                found["/".join((*key, path))] = value
        blocks = {
            block: np.stack([each[block, layer] for layer in range(LAYERS[name])], 1)
            for block in range(DEPTH)
        }
        if style.inner == "stack" and style.outer != "stack":
            for block, value in blocks.items():
                found[f"{_key(style.outer, 'layers', block)}/{name}/{path}"] = value
        if style.outer == "stack":
            found |= _of_scanned(style, name, path, each, blocks)
    return found


def _of_scanned(
    style: Style, name: str, path: str, each: Any, blocks: Any
) -> Iterator[tuple[str, Any]]:
    """Those of blocks under a scan."""
    if style.inner == "stack":
        yield f"layers/{name}/{path}", np.stack([*blocks.values()], style.axis)
        return
    for layer in range(LAYERS[name]):
        column = [each[block, layer] for block in range(DEPTH)]
        yield f"layers/{_key(style.inner, name, layer)}/{path}", np.stack(column, style.axis)


def _key(how: str, name: str, number: int) -> str:
    return f"{name}/{number}" if how == "list" else f"{name}_{number}"


def params_of(model: Any) -> dict[str, Any]:
    """The params of a model, or of a variables dict, by key path."""
    if isinstance(model, nnx.Module):
        flat: Any = nnx.to_flat_state(nnx.state(model, nnx.Param))
        return {"/".join(map(str, key)): param.get_value() for key, param in flat}
    return dict(_below(model["params"], ()))


def _below(node: Any, at: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield "/".join(at), node
        return
    for key, child in node.items():
        yield from _below(child, (*at, key))


def made(style: Style) -> Decoder:
    """A model of a style, with the values of the oracle; nothing is initialised."""
    model, values = nnx.eval_shape(lambda: Decoder(style)), oracle(style)
    flat: Any = nnx.to_flat_state(nnx.state(model))
    filled: list[Any] = []
    for key, variable in flat:
        told = variable.get_value()
        value: Any = values.get("/".join(map(str, key)))
        if isinstance(variable, nnx.RngKey):
            value = (
                jax.random.split(jax.random.key(0), told.shape) if told.shape else jax.random.key(0)
            )
        elif value is None:
            value = np.zeros(told.shape, told.dtype)
        filled.append((key, variable.replace(jnp.asarray(value))))
    nnx.update(model, nnx.from_flat_state(filled))
    return model


def of_linen(style: Style) -> dict[str, Any]:
    """The variables of such a model as Linen has them."""
    root: dict[str, Any] = {}
    for path, value in oracle(style).items():
        *above, last = path.split("/")
        node = root
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return {"params": root}


def is_right(found: Any, style: Style) -> bool:
    """Whether all params are those of the oracle, to the bit."""
    values, params = oracle(style), params_of(found)
    return params.keys() == values.keys() and all(
        np.array_equal(params[path], value) for path, value in values.items()
    )


# --- without a declaration  ---


def settled(path: Path, style: Style) -> tuple[str, str]:
    """What a restore comes to: ``right``, ``wrong``, ``right with its line`` or ``refused``; and what the error said."""
    said, scan = "", dict[str, Any]()
    for told in ("right", "right with its line"):
        try:
            found = cs.orbax.restore(path, lambda: Decoder(style), scan=scan)
        except cs.CkptSchemaError as error:
            said = str(error)
            # Each fault has a line of its own; the first of several is as good as any, if it is not ambiguous.
            lines = re.findall(r"add (scan=\{.*\})$", said, re.MULTILINE)
            for line in lines:
                scan |= eval(line.removeprefix("scan="))
            if not lines:
                return "refused", said
        else:
            return (told if is_right(found, style) else "wrong"), said
    return "refused", said


def main() -> int:
    """Restores each into each, and prints what came of it."""
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        saved: dict[str, tuple[Style, Path]] = {}
        for style in STYLES:
            saved[f"NNX {style}"] = style, Path(folder) / f"nnx{len(saved)}"
            cs.orbax.save(saved[f"NNX {style}"][1], made(style))
            if style.is_of_linen:
                saved[f"Linen {style}"] = style, Path(folder) / f"linen{len(saved)}"
                cs.orbax.save(saved[f"Linen {style}"][1], of_linen(style))
        pairs = [*itertools.product(saved.items(), STYLES)]
        if len(sys.argv) > 1:
            pairs = random.Random(0).sample(pairs, int(sys.argv[1]))
        for (name, (one, path)), other in pairs:
            told, said = settled(path, other)
            kind = "with a leaf stacked twice" if _is_twice(one, other) else "others"
            counts[f"{kind}: {told}"] += 1
            if told == "wrong" or (told == "refused" and kind == "others"):
                print(f"{name} -> {other}: {told}\n{said}")
    for kind, count in sorted(counts.items()):
        print(f"{count:5} {kind}")
    return int(any("wrong" in kind for kind in counts))


def _is_twice(one: Style, other: Style) -> bool:
    return one.is_twice_stacked or other.is_twice_stacked


if __name__ == "__main__":
    sys.exit(main())

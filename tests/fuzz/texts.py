"""Damaged texts of layouts and lenses: each is read as it says, or is an error with a name."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import flax_models
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, UInt32

import ckpt_schema as cs
from ckpt_schema._json.layout_json import layout_json
from fuzz import headers


class Frozen(nnx.Param[Any]):
    """A Variable type of nobody's but the test's."""


class Old(cs.Schema):
    """A layout with something of everything."""

    kernel: Float32[Array, "in=embed heads*dim"] = cs.field(key="'Dense/0'/kernel")
    bias: Float32[Array, "q+2*kv"] = cs.field(default=float("nan"), type=Frozen)
    any: Float[Array, "2 3"]
    rng: UInt32[Array, "2"] = cs.field(default=7, optional=True)
    norm: Float32[Array, ""] = cs.field(key=("norms", ("kernel", 1)))


@functools.cache
def whole() -> tuple[str, ...]:
    """Texts that nothing is wrong with."""
    tx = flax_models.OPTIMIZERS["chain schedule"]
    layers = {f"layers_{n}": {"wi": jnp.zeros((4, 8))} for n in range(3)}
    lists = cs.infer({"params": layers, "pair": (jnp.zeros(2), None)}, lists=["layers_{i}"])
    trained = cs.layout(cs.nnx.TrainState[flax_models.NnxSchema, optax.adamw(1e-3)])
    states = flax_models.linen_state(tx), flax_models.nnx_state(tx)
    old = {"params": {"a": jnp.zeros((4, 6)), "b": jnp.zeros(3)}}
    new = {"params": {"c": jnp.zeros((6, 4)), "b": jnp.zeros(3), "head": jnp.zeros(2)}}
    rules = [cs.rename("a", "c", axes="1 0"), cs.private("head", 0.5), cs.scale("b", 2)]
    lens = cs.adapt(old, new, rules=rules)
    given: list[Any] = [*map(cs.infer, states), lists, trained, cs.layout(Old), lens, lens >> ~lens]
    return tuple(map(cs.to_json, given))


def attempt(rng: np.random.Generator) -> object:
    """Reads one damaged text, and uses what it says."""
    drawn = random.Random(int(rng.integers(2**63)))
    text = drawn.choice(whole())
    made = damaged(text, drawn)
    kind = cs.Lens if '"ckpt_schema": "lens"' in made else cs.Layout
    found = cs.from_json(made, kind)
    # What is taken is a layout like any other: it is printed, written again, and read as the same.
    table = found.source if isinstance(found, cs.Lens) else found
    if isinstance(found, cs.Lens):
        str(found)
    again = cs.from_json(cs.to_json(table), cs.Layout, like=[table])
    if layout_json(again) != layout_json(table) or not str(table):
        raise AssertionError("read otherwise than it was written")
    return found


def damaged(text: str, drawn: random.Random) -> str:
    """A text with something wrong: in its bytes, or in what it says."""
    if drawn.random() < 0.5:
        change: Any = drawn.choice(headers.TEXT_DAMAGES)
        return change(text.encode(), drawn).decode(errors="replace")
    told = json.loads(text)
    for _ in range(drawn.choice([1, 1, 1, 3])):
        _change(told, drawn)
    return json.dumps(told)


HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 10**17, 10**30, 0.5, 1e308, "", "a", "a/b", "[]"),
    *("layers[]", "layers_{i}", "{i}/{j}", "'", "float32[4 8]", "float32[a a]", "key<fry>[]"),
    *("object[2]", "float32[-1]", "float32[...]", "key<none>[]", "flax.nnx.Linear", "os.system"),
    *("builtins.eval", "__import__('os').system('true')", "optax.EmptyState", "flax.nnx.State"),
    *("tuple", "None", "dict", "flax.nnx.Param", "nnx", "own", "tx.init", "é\u0000", "x" * 5000),
    *([], {}, [[]], [{}], [None], [0, 0], ["4", 0], ["4", None], [["", "a"]], {"": {}}),
    *({"fresh_key": 1}, {"float": "zz"}, {"float": "7ff8000000000000"}, {"type": "a.B"}),
    *({"complex": [1, {}]}, {"dtype": "bfloat16", "bits": "803f"}, {"dtype": "O", "bits": "00"}),
    *({"a.B": {"variable": "flax.nnx.Param"}}, {"a.B": {"fields": ["x"]}}),
    *({"key": ["a", 1]}, {"key": [[[[[[[[[[1]]]]]]]]]]}, ["a", {"key": None}], [{"key": {}}]),
)


def _change(told: Any, drawn: random.Random) -> None:
    """Changes one thing somewhere in data, in place."""
    holder = told
    while True:
        places = [*holder] if isinstance(holder, dict) else [*range(len(holder))]
        if not places:
            return
        at = drawn.choice(places)
        inner = holder[at]
        if not isinstance(inner, (dict, list)) or drawn.random() < 0.15:
            break
        holder = inner
    change = drawn.randrange(5)
    if change == 0:
        del holder[at]
    elif change == 1 and isinstance(holder, dict):
        name = drawn.choice(["", "more", "default", "held", "axes", "repeats", "types", at.upper()])
        holder[name] = holder.pop(at)
    elif change == 2 and isinstance(holder, list):
        holder.insert(drawn.randrange(len(holder) + 1), drawn.choice([inner, *HOSTILE]))
    elif change == 3 and isinstance(holder, dict):
        name = drawn.choice(["more", "default", "held", "axes", "repeats", "optional", "body"])
        holder[name] = drawn.choice(HOSTILE)
    else:
        holder[at] = drawn.choice(HOSTILE)

"""Schema classes drawn at random, from what users write and from what nobody should."""

from __future__ import annotations

import types
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, BFloat16, Bool, Complex64, Float32, Int32, UInt32

import ckpt_schema as cs
from fuzz.hostile import DIMS, NUMBERS, pick


class Below(cs.Schema):
    x: Float32[Array, "a b"]


TYPES = (Float32, Int32, UInt32, Bool, BFloat16, Complex64)
ANNOTATIONS: tuple[Any, ...] = (
    *(Below, list[Below], list[Float32[Array, " a"]], Float32[Array, " a"] | None, Below | None),
    *("Float32[Array, 'a b']", "Nope", "1/0", "(", "", None, int, list, list[int], 5, ...),
    *(list[list[Below]], dict[str, Below], tuple[Below], cs.Schema, Float32, Array, object()),
    *(Float32[np.ndarray, " a"], Float32[Array, "..."], [Below], {"a": 1}, "list['Self']"),
    *(cs.Key["fry"], cs.Stream["fry"], cs.Key["urbg", "layers"], cs.Key, cs.Stream),
)
VALUES: tuple[Any, ...] = (
    *(
        *NUMBERS,
        "a",
        "a/{i}",
        "{i}",
        "a/{i}/{j}",
        "{i+1}",
        "{2*i}",
        "{0*i}",
        "{i:02}",
        "{i:2}",
        "{i",
    ),
    *("x" * 5000, "9" * 5000, "'0'", "0", "//", "a//b", [], {}, {"a": "b"}, {"a": 1}, {1: 2}),
    *({"a": "b c"}, {"a": None}, {"nope": "b"}, int, cs.fresh_key(0), cs.field(), nnx.Param),
    *("RngKey", dict, tuple, jnp.float32, Ellipsis, "depth", 2),
)
ARGUMENTS = (
    *("key", "default", "scan", "axis", "length", "dims", "type", "collection", "optional"),
    *("ephemeral", "value", "tag"),
)
NAMES = ("w", "x", "é", "key", "value", "step", "params", "layers", "a b", "", "1", "__class__")


def drawn(rng: np.random.Generator) -> type[cs.Schema] | None:
    """A class of one or two attributes; None where jaxtyping itself refuses an annotation."""
    body: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    for _ in range(int(rng.integers(1, 3))):
        name = pick(rng, NAMES)
        annotations[name] = pick(rng, ANNOTATIONS)
        if rng.integers(2):
            try:
                annotations[name] = pick(rng, TYPES)[Array, pick(rng, DIMS)]
            except Exception:  # jaxtyping's own word on its own syntax
                return None
        if rng.integers(2):
            count = int(rng.integers(1, 4))
            given = {str(a): pick(rng, VALUES) for a in rng.permutation(ARGUMENTS)[:count]}
            body[name] = cs.field(**given)
        elif rng.integers(8) == 0:
            body[name] = pick(rng, VALUES)
    body["__annotations__"] = annotations
    # `type` refuses some names by itself, and so would the statement.
    if any(not name.isidentifier() or name.startswith("__") for name in annotations):
        return None
    return types.new_class("Drawn", (cs.Schema,), exec_body=lambda space: space.update(body))


def attempt(rng: np.random.Generator) -> None:
    """Declares a schema, and uses it in the ways there are."""
    schema = drawn(rng)
    if schema is None:
        return
    str(cs.layout(schema))
    lens = cs.derive(schema, schema)
    str(lens)
    str(cs.check(schema, {"w": np.zeros((2, 3), "float32")}).mismatches)
    use = int(rng.integers(4))
    if use == 0:
        str(cs.linen.Params[schema])
    elif use == 1:
        str(cs.nnx.Params[schema])
    elif use == 2:
        cs.derive(cs.linen.Params[schema], cs.nnx.Params[schema])

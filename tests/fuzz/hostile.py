"""What hostile inputs are made of: leaves, keys, containers, texts, numbers."""

from __future__ import annotations

import collections
import datetime
import fractions
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import FrozenDict

Thing = TypeVar("Thing")


def pick(rng: np.random.Generator, things: Sequence[Thing]) -> Thing:
    """One of several."""
    return things[int(rng.integers(len(things)))]


def deleted() -> jax.Array:
    """An array that was given up."""
    array = jnp.ones((2, 3))
    array.delete()
    return array


def frozen(tree: dict[Any, Any]) -> Any:
    """A FrozenDict; a dict as it is where flax, which copies it node by node, runs out of levels."""
    try:
        return FrozenDict(tree)
    except RecursionError:
        return tree


# Functions, for a leaf that is shared between cases could be deleted by one of them.
LEAVES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: 0,
    lambda: 5,
    lambda: -1,
    lambda: True,
    lambda: 1.5,
    lambda: float("nan"),
    lambda: 1j,
    lambda: 2**31,
    lambda: 2**40,
    lambda: 10**400,
    lambda: 10**5000,
    lambda: "text",
    lambda: b"bytes",
    lambda: object(),
    lambda: (),
    lambda: [],
    lambda: {},
    lambda: [1, 2],
    lambda: fractions.Fraction(1, 2),
    lambda: np.zeros((2, 3), "float64"),
    lambda: np.zeros((2, 3), ">f4"),
    lambda: np.zeros((2, 3), "float32"),
    lambda: np.zeros((2, 3), "int32"),
    lambda: np.zeros((3, 2), "float32").T,
    lambda: np.zeros(0, "float32"),
    lambda: np.zeros((0, 3), "float32"),
    lambda: np.float32(1),
    lambda: np.int64(1),
    lambda: np.int32(7),
    lambda: np.array("x"),
    lambda: np.array([None, "a"], object),
    lambda: np.array("2020", "datetime64[D]"),
    lambda: np.zeros(2, [("a", "f4"), ("b", "i4")]),
    lambda: np.zeros((2, 3), "V2"),
    lambda: np.ma.masked_array(np.zeros((2, 3), "float32")),
    lambda: np.matrix([[1.0]]),
    lambda: jnp.zeros((2, 3)),
    lambda: jnp.zeros((2, 3), "bfloat16"),
    lambda: jnp.zeros((2, 3), "int4"),
    lambda: jnp.zeros((2, 3), "uint32"),
    deleted,
    lambda: jax.random.key(0),
    lambda: jax.random.key(0, impl="rbg"),
    lambda: jax.random.PRNGKey(0),
    lambda: jax.random.split(jax.random.key(0, impl="threefry2x32"), 2),
    lambda: jax.ShapeDtypeStruct((2, 3), "float32"),
    lambda: jax.ShapeDtypeStruct((), "int32"),
    lambda: nnx.Param(jnp.zeros((2, 3))),
    lambda: datetime.date(2020, 1, 1),
    lambda: jnp.float32,
    lambda: len,
)

KEYS: tuple[Any, ...] = (
    *(
        "",
        "a",
        "layers_0",
        "layers_00",
        "layers_9",
        "layers_-1",
        "layers_\u0660",
        "layers_",
        "0",
        "00",
    ),
    *("a/b", "'q'", '"', "{i}", "[]", "\0", "é", " ", "x" * 5000, "layers_" + "9" * 5000),
    *(0, 1, -1, 10**30, 10**5000, True, False, None, 1.0, float("nan"), 1j),
    *(b"layers_0", ("a", "b"), (), frozenset(), np.int64(0), np.str_("emb"), object()),
)

CONTAINERS: tuple[Callable[[dict[Any, Any]], Any], ...] = (
    lambda d: collections.OrderedDict(reversed(d.items())),
    lambda d: collections.defaultdict(dict, d),
    lambda d: collections.UserDict(d),
    frozen,
    lambda d: list(d.values()),
    lambda d: tuple(d.values()),
    lambda d: {"value": d},
    lambda d: {**d, "value": d},
    lambda d: [d],
    lambda d: (d,),
    lambda d: dict.fromkeys(d),
    lambda d: iter(d),
    lambda d: nnx.State({"a": nnx.Param(1.0)}),
    lambda d: set(map(str, d)),
)

NUMBERS: tuple[Any, ...] = (
    *(0, 1, 2, -1, 3, 0.0, -0.0, 0.5, 1.5, 5e-324, float("nan"), float("inf"), True, None),
    *(
        "x",
        "",
        1j,
        2.0**1000,
        10**400,
        jnp.float32(2),
        np.float64(0.5),
        np.zeros(2),
        object(),
        b"1",
    ),
)

DIMS: tuple[str, ...] = (
    *("", " a", "a b", "b a", "3*a*b", "a+b", "q+k+v", "6*blocks+rest", "*batch", "...", "#x", "_"),
    *("?x", "x=3", "in=a out=a", "-1", "0", "1", "a*a", "a a", "a*b b*a", "2**3", "a-b", "a/b"),
    *("(a+b)*c", "a,b", "é", "1e3", "9" * 5000, "+".join(["a"] * 60), "a" * 5000, "a  b", "\t"),
    *("{a}", "a*", "*a", "+", "a+", "0*a", "1*a", "a*1 1", "a+0", "01", "lambda: 0", "None", "a.b"),
)

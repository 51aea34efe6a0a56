"""Small models some of whose leaves are equals: gates, experts, cells, tables, adapters and others.

Each in Linen and in NNX, its parts called alike, so that both layouts are read off the states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import ckpt_schema as cs

WIDTH, WIDE, LENGTH, EXPERTS, VOCAB = 6, 10, 5, 3, 7
VECTORS = jax.random.normal(jax.random.key(1), (4, LENGTH, WIDTH))
TOKENS = jnp.arange(2 * LENGTH).reshape(2, LENGTH) * 3 % VOCAB
OTHERS = jnp.arange(2 * LENGTH).reshape(2, LENGTH) * 5 % VOCAB
ACTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


# --- Gated layers  ---


class LinenGated(nn.Module):
    """A gated layer beside a residual."""

    act: str

    @nn.compact
    def __call__(self) -> jax.Array:
        """What it makes of some vectors."""
        gate, up = (nn.Dense(WIDE, use_bias=False, name=name)(VECTORS) for name in ("gate", "up"))
        return VECTORS + nn.Dense(WIDTH, use_bias=False, name="down")(ACTS[self.act](gate) * up)


class NnxGated(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs, act: str) -> None:
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.gate, self.up, self.down = (
            linear(WIDTH, WIDE),
            linear(WIDTH, WIDE),
            linear(WIDE, WIDTH),
        )
        self.act = act

    def __call__(self) -> jax.Array:
        """The same."""
        return VECTORS + self.down(ACTS[self.act](self.gate(VECTORS)) * self.up(VECTORS))


# --- Experts  ---


def mixed(gates: jax.Array, outputs: list[jax.Array], chosen: int) -> jax.Array:
    """The outputs of the experts, each by its share; of the chosen ones alone."""
    least = jax.lax.top_k(gates, chosen)[0][..., -1:]
    shares = jax.nn.softmax(jnp.where(gates < least, -jnp.inf, gates))
    return (jnp.stack(outputs, -1) * shares[..., None, :]).sum(-1)


class LinenExpert(nn.Module):
    """An expert."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """What it computes."""
        return nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(WIDE, name="up")(x)))


class LinenExperts(nn.Module):
    """Experts behind a router."""

    chosen: int

    @nn.compact
    def __call__(self) -> jax.Array:
        """What they make of some vectors."""
        gates = nn.Dense(EXPERTS, use_bias=False, name="router")(VECTORS)
        outputs = [LinenExpert(name=f"expert_{i}")(VECTORS) for i in range(EXPERTS)]
        return mixed(gates, outputs, self.chosen)


class NnxExpert(nnx.Module):
    """An expert."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = (
            nnx.Linear(WIDTH, WIDE, rngs=rngs),
            nnx.Linear(WIDE, WIDTH, rngs=rngs),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """What it computes."""
        return self.down(nnx.gelu(self.up(x)))


class NnxExperts(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs, chosen: int) -> None:
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        for i in range(EXPERTS):
            setattr(self, f"expert_{i}", NnxExpert(rngs))
        self.chosen = chosen

    def __call__(self) -> jax.Array:
        """The same."""
        outputs = [getattr(self, f"expert_{i}")(VECTORS) for i in range(EXPERTS)]
        return mixed(self.router(VECTORS), outputs, self.chosen)


# --- Cells that read both ways  ---


class LinenBoth(nn.Module):
    """A cell that reads forward, and one that reads backward."""

    cell: str
    summed: bool

    @nn.compact
    def __call__(self) -> jax.Array:
        """What they make of some sequences."""
        kind = {"LSTM": nn.LSTMCell, "simple": nn.SimpleCell}[self.cell]
        ahead = nn.RNN(kind(WIDE, name="forward"))(VECTORS)
        back = nn.RNN(kind(WIDE, name="backward"))(VECTORS[:, ::-1])[:, ::-1]
        joined = ahead + 2 * back if self.summed else jnp.concatenate([ahead, back], -1)
        return nn.Dense(WIDTH, name="head")(joined)


class NnxBoth(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs, cell: str, summed: bool) -> None:
        kind = {"LSTM": nnx.LSTMCell, "simple": nnx.SimpleCell}[cell]
        self.forward, self.backward = (kind(WIDTH, WIDE, rngs=rngs) for _ in range(2))
        self.head = nnx.Linear(WIDE if summed else 2 * WIDE, WIDTH, rngs=rngs)
        self.summed = summed

    def __call__(self) -> jax.Array:
        """The same."""
        ahead, back = _run(self.forward, VECTORS), _run(self.backward, VECTORS[:, ::-1])[:, ::-1]
        return self.head(ahead + 2 * back if self.summed else jnp.concatenate([ahead, back], -1))


def _run(cell: Any, x: jax.Array) -> jax.Array:
    size = cell.hidden_features if isinstance(cell, nnx.SimpleCell) else WIDE
    carry: Any = jnp.zeros((len(x), size))
    carry = (carry, carry) if isinstance(cell, nnx.LSTMCell) else carry
    outputs: list[jax.Array] = []
    for at in range(x.shape[1]):
        carry, output = cell(carry, x[:, at])
        outputs.append(output)
    return jnp.stack(outputs, 1)


# --- Embeddings of one size  ---


def joined(one: jax.Array, other: jax.Array, how: str) -> jax.Array:
    """Two embeddings together."""
    if how == "sum":
        return jnp.tanh(one + other)
    return one * jnp.tanh(other) if how == "product" else jnp.concatenate([one, other], -1)


class LinenTables(nn.Module):
    """Two tables, of what is said and of who says it."""

    how: str

    @nn.compact
    def __call__(self) -> jax.Array:
        """What they make of some numbers."""
        words, speakers = (nn.Embed(VOCAB, WIDTH, name=name) for name in ("words", "speakers"))
        return nn.Dense(WIDE, name="head")(joined(words(TOKENS), speakers(OTHERS), self.how))


class NnxTables(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs, how: str) -> None:
        self.words, self.speakers = (nnx.Embed(VOCAB, WIDTH, rngs=rngs) for _ in range(2))
        self.head = nnx.Linear(2 * WIDTH if how == "beside" else WIDTH, WIDE, rngs=rngs)
        self.how = how

    def __call__(self) -> jax.Array:
        """The same."""
        return self.head(joined(self.words(TOKENS), self.speakers(OTHERS), self.how))


# --- Convolutions  ---


class LinenConvs(nn.Module):
    """Two convolutions of one size, beside a residual or one after the other."""

    residual: bool

    @nn.compact
    def __call__(self) -> jax.Array:
        """What they make of some sequences."""
        y = nn.Conv(WIDTH, (3,), name="conv1")(VECTORS)
        y = nn.Conv(WIDTH, (3,), name="conv2")(nn.silu(y))
        return VECTORS + y if self.residual else y


class NnxConvs(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs, residual: bool) -> None:
        self.conv1, self.conv2 = (nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs) for _ in range(2))
        self.residual = residual

    def __call__(self) -> jax.Array:
        """The same."""
        y = self.conv2(nnx.silu(self.conv1(VECTORS)))
        return VECTORS + y if self.residual else y


# --- Adapters  ---


class LinenAdapter(nn.Module):
    """A layer with an adapter of full rank, whose second matrix is zero at first."""

    where: str

    @nn.compact
    def __call__(self) -> jax.Array:
        """What it makes of some vectors."""
        a = self.param("a", nn.initializers.he_uniform(), (WIDTH, WIDTH))
        b = self.param("b", nn.initializers.zeros, (WIDTH, WIDTH))
        layer = nn.Dense(WIDTH, name="layer")
        return adapted(layer, VECTORS, a, b, self.where)


class NnxAdapter(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs, where: str) -> None:
        self.a = nnx.Param(nnx.initializers.he_uniform()(rngs.params(), (WIDTH, WIDTH)))
        self.b = nnx.Param(jnp.zeros((WIDTH, WIDTH)))
        self.layer = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.where = where

    def __call__(self) -> jax.Array:
        """The same."""
        return adapted(self.layer, VECTORS, self.a[...], self.b[...], self.where)


def adapted(layer: Any, x: jax.Array, a: jax.Array, b: jax.Array, where: str) -> jax.Array:
    """A layer and its adapter: side by side, one before the other, or in a residual branch."""
    if where == "beside":
        return jnp.tanh(layer(x) + x @ a @ b)
    return layer(x + x @ a @ b) if where == "before" else x + jax.nn.silu(layer(x)) @ a @ b


# --- The pairs  ---

_CELLS = {
    "LSTM": [cs.rename(f"{way}/if", f"{way}/if_") for way in ("forward", "backward")],
    "simple": [
        cs.rename(f"{way}/{gate}", f"{way}/dense_{gate}")
        for way in ("forward", "backward")
        for gate in "ih"
    ],
}
_MODELS: dict[str, tuple[Any, Any, list[Any]]] = {
    **{
        f"gated by {act}": (LinenGated(act), functools.partial(NnxGated, act=act), [])
        for act in ACTS
    },
    **{
        f"{n} of {EXPERTS} experts": (
            LinenExperts(n),
            functools.partial(NnxExperts, chosen=n),
            [],
        )
        for n in range(1, EXPERTS + 1)
    },
    **{
        f"{cell}s both ways, {'summed' if summed else 'side by side'}": (
            LinenBoth(cell, summed),
            functools.partial(NnxBoth, cell=cell, summed=summed),
            _CELLS[cell],
        )
        for cell, summed in (("LSTM", False), ("LSTM", True), ("simple", False))
    },
    **{
        f"two tables, {how}": (LinenTables(how), functools.partial(NnxTables, how=how), [])
        for how in ("sum", "product", "beside")
    },
    **{
        f"two convolutions{', residual' if residual else ''}": (
            LinenConvs(residual),
            functools.partial(NnxConvs, residual=residual),
            [],
        )
        for residual in (False, True)
    },
    **{
        f"an adapter {where}": (LinenAdapter(where), functools.partial(NnxAdapter, where=where), [])
        for where in ("beside", "before", "in a branch")
    },
}
SMALL = tuple(_MODELS)


def small(name: str) -> tuple[cs.Lens, Any, Any, tuple[Any, Any]]:
    """A pair: the lens, a state of each model at its own scale, and what both compute."""
    linen, made, rules = _MODELS[name]
    s = jax.jit(linen.init)(jax.random.key(0))
    graph, v = nnx.split(nnx.jit(lambda: made(nnx.Rngs(0)))())
    lens = cs.derive(cs.infer(s["params"]), cs.infer(v), rules=rules)
    return (
        lens,
        s["params"],
        v,
        (
            lambda state: linen.apply({"params": state}),
            lambda state: nnx.merge(graph, state)(),
        ),
    )

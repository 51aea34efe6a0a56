"""Four models that are one: in Linen scanned and unrolled, in NNX in a list and stacked.

All of them add up branches that are linear in their own weights, of features that are whole numbers. No param multiplies
another: gradients are whole numbers too, and whatever the compiler makes of a step is exact.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

DEPTH, VOCAB, FEATURES, HEADS, HEAD_DIM, EXAMPLES = 3, 8, 4, 8, 2, 4
EMBED = HEADS * HEAD_DIM

Batch = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def batch(number: int) -> Batch:
    """Tokens, features and targets of a step; no feature and no target is zero, so that no sum is a negative zero."""
    draw = np.random.default_rng(number)
    tokens = draw.integers(0, VOCAB, EXAMPLES).astype(np.int32)
    features = draw.integers(1, 4, (EXAMPLES, FEATURES)).astype(np.float32)
    targets = draw.choice([-2, -1, 1, 2], (EXAMPLES, EMBED)).astype(np.float32)
    return tokens, features, targets


# --- Linen  ---


class ScannedLayer(nn.Module):
    """Two branches, in the form that ``nn.scan`` wants, their modules named by Linen."""

    @nn.compact
    def __call__(
        self, carry: tuple[jax.Array, jax.Array], _: None
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        """The features for the next layer, and the sum of all branches so far."""
        x, total = carry
        seen = self.variable("seen", "first", jnp.int32, 0)
        seen.value += x[0, 0].astype(jnp.int32)
        total += nn.Dense(EMBED)(x)
        total += nn.Dense(EMBED, use_bias=False)(x[:, ::-1])
        return (jnp.roll(x, 1, -1), total), None


class LinenScanned(nn.Module):
    """The model under ``nn.scan``: weights are stacked on axis 1, what was seen on axis 0."""

    @nn.compact
    def __call__(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        """The sum of all branches."""
        total = nn.Embed(VOCAB, EMBED)(tokens)
        axes = {"params": 1, "seen": 0}
        layers: Any = nn.scan(
            ScannedLayer, variable_axes=axes, split_rngs={"params": True}, length=DEPTH
        )
        return layers(name="layers")((x, total), None)[0][1]


class UnrolledLayer(nn.Module):
    """The same branches, one of them split into heads."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The sum of both."""
        seen = self.variable("seen", "first", jnp.int32, 0)
        seen.value += x[0, 0].astype(jnp.int32)
        mixed = nn.DenseGeneral((HEADS, HEAD_DIM), use_bias=False, name="mix")(x[:, ::-1])
        return nn.Dense(EMBED, name="wi")(x) + mixed.reshape(-1, EMBED)


class LinenUnrolled(nn.Module):
    """The model with its layers one by one."""

    @nn.compact
    def __call__(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        """The sum of all branches."""
        total = nn.Embed(VOCAB, EMBED, name="embed")(tokens)
        for i in range(DEPTH):
            total += UnrolledLayer(name=f"layers_{i}")(jnp.roll(x, i, -1))
        return total


# --- NNX  ---


class NnxLayer(nnx.Module):
    """The same branches; what dropout draws is multiplied by nothing, so that its stream advances and the sum is Linen's."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(FEATURES, EMBED, rngs=rngs)
        self.mix = nnx.LinearGeneral(FEATURES, (HEADS, HEAD_DIM), use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The sum of both."""
        return self.up(x) + self.mix(x[:, ::-1]).reshape(-1, EMBED) + 0 * self.dropout(x).sum()


class NnxListed(nnx.Module):
    """The model with a list of layers, and with other names."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.table = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.layers = nnx.List([NnxLayer(rngs) for _ in range(DEPTH)])

    def __call__(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        """The sum of all branches."""
        return self.table(tokens) + sum(
            layer(jnp.roll(x, i, -1)) for i, layer in enumerate(self.layers)
        )


class StackedLayer(nnx.Module):
    """The same branches, one of them transposed."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wi = nnx.Linear(FEATURES, EMBED, rngs=rngs)
        self.mix = nnx.Einsum("bf,ef->be", (EMBED, FEATURES), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The sum of both."""
        return self.wi(x) + self.mix(x[:, ::-1]) + 0 * self.drop(x).sum()


class NnxStacked(nnx.Module):
    """The model with its layers stacked by ``nnx.vmap``."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.layers = nnx.split_rngs(splits=DEPTH)(nnx.vmap(StackedLayer))(rngs)

    def __call__(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        """The sum of all branches."""

        def add(
            carry: tuple[jax.Array, jax.Array], layer: StackedLayer
        ) -> tuple[jax.Array, jax.Array]:
            return jnp.roll(carry[0], 1, -1), carry[1] + layer(carry[0])

        return nnx.scan(add, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            (x, self.embed(tokens)), self.layers
        )[1]

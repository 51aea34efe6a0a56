"""A small vision transformer and a perceptron, in Linen and in NNX: models that share few names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

CHANNELS, PATCH, EMBED, HEADS, WIDE, CLASSES, DEPTH = 3, 2, 10, 2, 17, 7, 2
IMAGES = jax.random.normal(jax.random.key(4), (2, 6, 4, CHANNELS))
PATCHES = (6 // PATCH) * (4 // PATCH)


class LinenViT(nn.Module):
    """Patches, a token for the class, positions, blocks; modules are named by Linen."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits."""
        x = nn.Conv(EMBED, (PATCH, PATCH), (PATCH, PATCH))(images)
        x = x.reshape(len(x), -1, EMBED)
        normal = nn.initializers.normal(0.02)
        first = self.param("cls", normal, (1, 1, EMBED))
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, EMBED)), x], 1)
        x = x + self.param("pos_embedding", normal, (1, PATCHES + 1, EMBED))
        for _ in range(DEPTH):
            x = x + nn.MultiHeadDotProductAttention(HEADS)(nn.LayerNorm()(x))
            x = x + nn.Dense(EMBED)(nn.gelu(nn.Dense(WIDE)(nn.LayerNorm()(x))))
        return nn.Dense(CLASSES)(nn.LayerNorm()(x)[:, 0])


class NnxVitBlock(nnx.Module):
    """A block."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = (nnx.LayerNorm(EMBED, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(HEADS, EMBED, decode=False, rngs=rngs)
        self.up, self.down = (
            nnx.Linear(EMBED, WIDE, rngs=rngs),
            nnx.Linear(WIDE, EMBED, rngs=rngs),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """What it makes of patches."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class NnxViT(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        patch = PATCH, PATCH
        self.patches = nnx.Conv(CHANNELS, EMBED, patch, patch, rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, EMBED)))
        self.positions = nnx.Param(jnp.zeros((1, PATCHES + 1, EMBED)))
        self.blocks = nnx.List([NnxVitBlock(rngs) for _ in range(DEPTH)])
        self.norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.head = nnx.Linear(EMBED, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits."""
        x = self.patches(images)
        x = x.reshape(len(x), -1, EMBED)
        first = jnp.broadcast_to(self.token[...], (len(x), 1, EMBED))
        x = jnp.concatenate([first, x], 1) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vit_names() -> dict[str, str]:
    """Which leaf of the NNX model is which of the Linen model, as their authors know."""
    names = {"token": "cls", "positions": "pos_embedding"}
    names |= _both("patches", "Conv_0", "kernel", "bias")
    for number in range(DEPTH):
        block, norms = f"blocks/{number}", 2 * number
        names |= _both(f"{block}/norm1", f"LayerNorm_{norms}", "scale", "bias")
        names |= _both(f"{block}/norm2", f"LayerNorm_{norms + 1}", "scale", "bias")
        # Linen makes, and numbers, what stands outside first.
        names |= _both(f"{block}/down", f"Dense_{norms}", "kernel", "bias")
        names |= _both(f"{block}/up", f"Dense_{norms + 1}", "kernel", "bias")
        for part in ("query", "key", "value", "out"):
            attention = f"MultiHeadDotProductAttention_{number}"
            names |= _both(f"{block}/attention/{part}", f"{attention}/{part}", "kernel", "bias")
    names |= _both("norm", f"LayerNorm_{2 * DEPTH}", "scale", "bias")
    return names | _both("head", f"Dense_{2 * DEPTH}", "kernel", "bias")


def _both(view: str, source: str, *leaves: str) -> dict[str, str]:
    return {f"{view}/{leaf}": f"{source}/{leaf}" for leaf in leaves}


class LinenMlp(nn.Module):
    """Three layers of one size."""

    @nn.compact
    def __call__(self, x: Any) -> jax.Array:
        """What they make of some vectors."""
        for _ in range(2):
            x = nn.tanh(nn.Dense(EMBED)(x))
        return nn.Dense(EMBED)(x)


class NnxMlp(nnx.Module):
    """The same, named in the other order."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.c, self.b, self.a = (nnx.Linear(EMBED, EMBED, rngs=rngs) for _ in range(3))

    def __call__(self, x: Any) -> jax.Array:
        """The same."""
        return self.a(nnx.tanh(self.b(nnx.tanh(self.c(x)))))


def mlp_names() -> dict[str, str]:
    """Which leaf of the NNX model is which of the Linen model."""
    names: dict[str, str] = {}
    for number, name in enumerate("cba"):
        names |= _both(name, f"Dense_{number}", "kernel", "bias")
    return names

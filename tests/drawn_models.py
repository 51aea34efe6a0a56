"""Small models drawn at random, as plain functions of their leaves.

A model is a stack of layers; each layer is blocks; each block is a norm and something that mixes. What
a layer computes is its fields, so a twin that computes something else differs in one field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Leaves = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

ACTS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "none": lambda x: x,
}


def below(leaves: Mapping[str, Any], head: str) -> Leaves:
    """The leaves below a path, by the rest of theirs."""
    return {
        name.removeprefix(f"{head}/"): leaf
        for name, leaf in leaves.items()
        if name.startswith(f"{head}/")
    }


def _under(head: str, shapes: Shapes) -> Shapes:
    return {f"{head}/{name}": shape for name, shape in shapes.items()}


def moderate(shape: Sequence[int], *seed: int) -> Any:
    """Random values under which no layer is saturated: what differs in one is seen in the outputs."""
    drawn_values = np.random.default_rng(seed).normal(size=shape)
    if len(shape) < 2:  # it may be a variance, or the scale of a norm
        return 1 + 0.6 * np.tanh(drawn_values / 2)
    return drawn_values / np.sqrt(np.prod(shape) / max(shape))


# --- Layers  ---


class Layer(Protocol):
    """Something between arrays of batch by time by width."""

    def shapes(self) -> Shapes:
        """The shapes of its leaves."""
        ...

    def __call__(self, p: Leaves, x: Any) -> Any:
        """What it makes of an array."""
        ...


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm over the last axis, of the mean too where it is centered."""

    width: int
    centered: bool = True
    biased: bool = True
    eps: float = 1e-5
    axis: int = -1

    def shapes(self) -> Shapes:
        """Its scale, and its bias."""
        return {"scale": (self.width,)} | ({"bias": (self.width,)} if self.biased else {})

    def __call__(self, p: Leaves, x: Any) -> Any:
        """The normed array."""
        if self.centered:
            x = x - x.mean(self.axis, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(self.axis, keepdims=True) + self.eps) * p["scale"]
        return x + p["bias"] if self.biased else x


@dataclasses.dataclass(frozen=True)
class Mlp:
    """Two kernels and what is between them."""

    width: int
    wide: int
    act: str = "gelu"
    biased: bool = True
    biased_after: bool = False
    times: float = 1.0

    def shapes(self) -> Shapes:
        """Its kernels, and their biases."""
        kernels: Shapes = {"up": (self.width, self.wide), "down": (self.wide, self.width)}
        biases: Shapes = {"up_bias": (self.wide,), "down_bias": (self.width,)}
        return kernels | (biases if self.biased else {})

    def __call__(self, p: Leaves, x: Any) -> Any:
        """What it makes of an array."""
        up, down = (p[name] if self.biased else 0.0 for name in ("up_bias", "down_bias"))
        y = x @ p["up"]
        y = ACTS[self.act](y) + up if self.biased_after else ACTS[self.act](y + up)
        return self.times * (y @ p["down"] + down)


@dataclasses.dataclass(frozen=True)
class Gate:
    """A gated layer."""

    width: int
    wide: int
    act: str = "silu"
    act_of_product: bool = False

    def shapes(self) -> Shapes:
        """Its kernels."""
        both = (self.width, self.wide)
        return {"gate": both, "up": both, "down": (self.wide, self.width)}

    def __call__(self, p: Leaves, x: Any) -> Any:
        """What it makes of an array."""
        gate, up, act = x @ p["gate"], x @ p["up"], ACTS[self.act]
        return (act(gate * up) if self.act_of_product else act(gate) * up) @ p["down"]


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention of groups of heads.

    Attributes:
        rotary: Which of query and key are rotated, and how: in halves, or in pairs.
        mask: Which keys a query sees.
        axis: Along which axis of scores the softmax is.
        tiled: Which of key and value are given to heads in turns rather than in runs.
        raw: Whether the value is of what the norm is given.
    """

    width: int
    heads: int
    groups: int
    head: int
    biased: bool = False
    rotary: tuple[str, str] = ("", "")
    mask: str = "causal"
    axis: int = -1
    tiled: str = ""
    times: float = 1.0

    def shapes(self) -> Shapes:
        """Its kernels, and their biases."""
        found: Shapes = {"o": (self.heads, self.head, self.width)}
        for name, heads in (("q", self.heads), ("k", self.groups), ("v", self.groups)):
            found[name] = self.width, heads, self.head
            if self.biased:
                found[f"{name}_bias"] = heads, self.head
        return found | ({"o_bias": (self.width,)} if self.biased else {})

    def __call__(self, p: Leaves, x: Any) -> Any:
        """What it makes of an array."""
        each: dict[str, Any] = {}
        for name in "qkv":
            each[name] = jnp.einsum("btw,whd->bthd", x, p[name])
            each[name] = each[name] + (p[f"{name}_bias"] if self.biased else 0.0)
        q, k = (_rotated(each[n], how) for n, how in zip("qk", self.rotary, strict=True))
        k, v = (self._given(x, name in self.tiled) for name, x in (("k", k), ("v", each["v"])))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * self.times * self.head**-0.5
        weights = jax.nn.softmax(jnp.where(_seen(self.mask, x.shape[1]), scores, -1e9), self.axis)
        found = jnp.einsum("bhqk,bkhd,hdw->bqw", weights, v, p["o"])
        return found + (p["o_bias"] if self.biased else 0.0)

    def _given(self, x: Any, tiled: bool) -> Any:
        """Keys or values for each head."""
        count = self.heads // self.groups
        return jnp.tile(x, (1, 1, count, 1)) if tiled else jnp.repeat(x, count, 2)


def _rotated(x: Any, how: str) -> Any:
    """Rotary positions; the last number of an odd head stays."""
    half, time = x.shape[-1] // 2, x.shape[1]
    if not how:
        return x
    angles = jnp.arange(time)[:, None] / 10.0 ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    firsts, seconds = slice(0, half), slice(half, 2 * half)
    if how == "pairs":
        firsts, seconds = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    one, other = x[..., firsts], x[..., seconds]
    turned = one * cos - other * sin, other * cos + one * sin
    return x.at[..., firsts].set(turned[0]).at[..., seconds].set(turned[1])


def _seen(mask: str, time: int) -> Any:
    at = jnp.arange(time)
    behind = at[:, None] - at[None]
    near = behind < time if mask != "window" else behind < 2
    return near if mask == "none" else near & (behind >= 0)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution along time, and what is behind it."""

    width: int
    size: int = 3
    act: str = "silu"
    biased: bool = True
    apart: int = 1
    ahead: int = 1

    def shapes(self) -> Shapes:
        """Its kernel, and its bias."""
        kernel: Shapes = {"kernel": (self.size, self.width, self.width)}
        return kernel | ({"bias": (self.width,)} if self.biased else {})

    def __call__(self, p: Leaves, x: Any) -> Any:
        """What it makes of an array."""
        time, total = x.shape[1], p["bias"] if self.biased else 0.0
        for tap in range(self.size):
            shift = (tap - self.ahead) * self.apart
            at = jnp.arange(time) + shift
            inside = (at >= 0) & (at < time)
            moved = jnp.where(inside[None, :, None], x[:, jnp.clip(at, 0, time - 1)], 0.0)
            total = total + moved @ p["kernel"][tap]
        return ACTS[self.act](total)


@dataclasses.dataclass(frozen=True)
class Experts:
    """Experts, and a router that gives each its share."""

    width: int
    wide: int
    count: int
    act: str = "gelu"
    shares: str = "softmax"

    def shapes(self) -> Shapes:
        """The router, and the kernels of the experts."""
        return {
            "router": (self.width, self.count),
            "up": (self.count, self.width, self.wide),
            "down": (self.count, self.wide, self.width),
        }

    def __call__(self, p: Leaves, x: Any) -> Any:
        """What they make of an array."""
        gates = x @ p["router"]
        shares = jax.nn.sigmoid(gates) if self.shares == "sigmoid" else jax.nn.softmax(gates)
        y = ACTS[self.act](jnp.einsum("btw,ewh->bteh", x, p["up"]))
        return jnp.einsum("bteh,ehw,bte->btw", y, p["down"], shares)


@dataclasses.dataclass(frozen=True)
class Block:
    """A norm and a layer, beside what they are given.

    Attributes:
        residual: What the layer is added to: what the block is given, that after the norm, or nothing.
        behind: Whether the norm stands behind the layer.
    """

    norm: Norm
    inner: Layer
    residual: str = "given"
    behind: bool = False
    times: float = 1.0

    def shapes(self) -> Shapes:
        """Those of both."""
        return _under("norm", self.norm.shapes()) | _under("mix", self.inner.shapes())

    def __call__(self, p: Leaves, x: Any) -> Any:
        """What it makes of an array."""
        own = below(p, "norm"), below(p, "mix")
        if self.behind:
            y = base = x
            y = self.norm(own[0], self.inner(own[1], y))
        else:
            base = self.norm(own[0], x)
            y = self.inner(own[1], base)
        if self.residual == "none":
            return y
        return (x if self.residual == "given" else base) + self.times * y


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model: a table, layers of blocks, a norm, a head.

    Attributes:
        layers: The blocks of each layer.
        reads: Whose leaves each layer takes; its own where this is empty.
        beside: Layers whose blocks are all given the same, and add to it.
        backward: Layers whose last block comes first.
        norm_first: Whether the last norm stands before the layers.
        positions: Whether there is a table of positions, and where it is added.
        capped: What logits are bounded by; 0 where they are not.
        times: What the table is multiplied by.
    """

    vocab: int
    width: int
    time: int
    layers: tuple[tuple[Block, ...], ...]
    norm: Norm
    tied: bool = False
    positions: str = ""
    reads: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()
    norm_first: bool = False
    capped: float = 0.0
    times: float = 1.0

    @property
    def tokens(self) -> Any:
        """What it is given."""
        return np.arange(3 * self.time).reshape(3, self.time) * 5 % self.vocab

    def shapes(self) -> Shapes:
        """The shapes of its leaves."""
        found: Shapes = {"embed": (self.vocab, self.width)}
        if self.positions:
            found["positions"] = self.time, self.width
        for number, blocks in enumerate(self.layers):
            for at, block in enumerate(blocks):
                found |= _under(f"layers/{number}/block{'abc'[at]}", block.shapes())
        found |= _under("norm", self.norm.shapes())
        return found | ({} if self.tied else {"head": (self.width, self.vocab)})

    def leaves(self, seed: int = 0) -> Leaves:
        """Random values, each of its own, of the size that training begins with."""
        return {
            name: moderate(shape, seed, at)
            for at, (name, shape) in enumerate(self.shapes().items())
        }

    def __call__(self, p: Leaves) -> Any:
        """Logits."""
        x = self.times * p["embed"][self.tokens]
        if self.positions == "first":
            x = x + p["positions"]
        if self.norm_first:
            x = self.norm(below(p, "norm"), x)
        for number, blocks in enumerate(self.layers):
            own = below(p, f"layers/{self.reads[number] if self.reads else number}")
            given, numbered = x, list(enumerate(blocks))
            for at, block in numbered[::-1] if number in self.backward else numbered:
                added = block(below(own, f"block{'abc'[at]}"), given)
                x = x + added - given if number in self.beside else added
                given = given if number in self.beside else x
        if self.positions == "last":
            x = x + p["positions"]
        if not self.norm_first:
            x = self.norm(below(p, "norm"), x)
        logits = x @ (p["embed"].T if self.tied else p["head"])
        return self.capped * jnp.tanh(logits / self.capped) if self.capped else logits


def with_block(model: Model, layer: int, at: int, block: Block) -> Model:
    """The model with another block in one place."""
    layers = list(model.layers)
    layers[layer] = (*layers[layer][:at], block, *layers[layer][at + 1 :])
    return dataclasses.replace(model, layers=tuple(layers))


def with_layers(model: Model, count: int) -> Model:
    """The model with its first layers alone."""
    return dataclasses.replace(model, layers=model.layers[:count], reads=model.reads[:count])


# --- Drawing  ---


def drawn(random: np.random.Generator, *, collide: bool = False, layers: int = 0) -> Model:
    """A model of random layers and sizes.

    Args:
        random: What draws.
        collide: Whether sizes may be equal, or sums and products of others.
        layers: How many layers; drawn where it is 0.
    """

    def one(*given: Any) -> Any:
        return given[random.integers(len(given))]

    if collide:
        heads, head = one(2, 4), one(2, 4, 6)
        width = one(heads * head, 8, 12)
        wide, vocab, time = one(width, 2 * width, 16), one(width, 16, 24), one(6, 8)
    else:
        heads, head, width = one(2, 4), one(6, 7, 9), one(10, 11, 13)
        wide, vocab, time = one(17, 19, 23), one(29, 31, 37), 5
    groups = one(heads, heads, heads // 2)
    rms = one(True, False)
    norm = Norm(width, centered=not rms, biased=not rms)
    biased = one(True, False)
    act = one("gelu", "silu", "tanh", "relu")

    def layer(kind: str) -> Layer:
        if kind == "attention":
            rotary = ("halves", "halves") if rotated and head % 2 == 0 else ("", "")
            mask = "causal" if causal else "none"
            return Attention(width, heads, groups, head, biased, rotary, mask)
        if kind == "mlp":
            return Mlp(width, wide, act, biased)
        if kind == "gate":
            return Gate(width, wide, act)
        if kind == "convolution":
            return Convolution(width, act=act, biased=biased)
        return Experts(width, wide, 3, act)

    rotated, causal = one(True, False), one(True, False)
    kinds = [
        one("attention", "attention", "convolution", "mlp"),
        one("mlp", "gate", "gate", "experts", "convolution"),
    ]
    kinds = kinds[: one(1, 2, 2)]
    blocks = tuple(Block(norm, layer(kind)) for kind in kinds)
    positions = "" if rotated else one("first", "")
    return Model(
        vocab,
        width,
        time,
        (blocks,) * (layers or one(1, 2, 2, 3)),
        norm,
        tied=one(True, False, False),
        positions=positions,
    )

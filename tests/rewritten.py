"""A small decoder as a plain function, and the ways in which others keep its weights: each is another function of other leaves.

A way is a pair of functions, of NumPy or jax arrays: from the decoder's own leaves to the other's, and
back. So what is right is known, and shares nothing with lenses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VOCAB, EMBED, HEADS, GROUPS, HEAD, MLP, LAYERS, TIME = 37, 16, 10, 5, 6, 27, 3, 7
TOKENS = np.arange(2 * TIME).reshape(2, TIME) * 11 % VOCAB

Params = dict[str, Any]


def leaves(seed: int = 0) -> Params:
    """The decoder's own leaves: every layer's apart, kernels as inputs by outputs, heads as axes."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (VOCAB, EMBED),
        "norm": (EMBED,),
        "head": (EMBED, VOCAB),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"blocks/{layer}/norm1": (EMBED,),
            f"blocks/{layer}/q": (EMBED, HEADS, HEAD),
            f"blocks/{layer}/k": (EMBED, GROUPS, HEAD),
            f"blocks/{layer}/v": (EMBED, GROUPS, HEAD),
            f"blocks/{layer}/o": (HEADS, HEAD, EMBED),
            f"blocks/{layer}/norm2": (EMBED,),
            f"blocks/{layer}/gate": (EMBED, MLP),
            f"blocks/{layer}/up": (EMBED, MLP),
            f"blocks/{layer}/down": (MLP, EMBED),
        }
    return {name: random.uniform(0.5, 1.5, shape) for name, shape in shapes.items()}


def normed(x: Any, scale: Any) -> Any:
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def rotated(x: Any) -> Any:
    """Rotary positions, in halves."""
    half = HEAD // 2
    angles = jnp.arange(TIME)[:, None] / 10.0 ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    one, other = x[..., :half], x[..., half:]
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], -1)


@dataclasses.dataclass(frozen=True)
class Model:
    """The decoder; what differs in wrong twins is named.

    Attributes:
        act: The gate's activation.
        swapped: Whether gate and up change places.
        post: Whether the first norm stands behind its layer.
        residual: Whether the second layer is added to what it is given.
        scale: What scores are multiplied by.
        rotary: Whether heads are rotated.
        shared: Whether the second layer has the leaves of the first.
        permuted: Whether values take their heads in another order.
    """

    act: Callable[[Any], Any] = jax.nn.silu
    swapped: bool = False
    post: bool = False
    residual: bool = True
    scale: float = HEAD**-0.5
    rotary: bool = True
    shared: bool = False
    permuted: bool = False

    def __call__(self, p: Params) -> Any:
        """Logits."""
        x = p["embed"][TOKENS]
        for layer in range(LAYERS):
            own = {
                name.rsplit("/", 1)[1]: value
                for name, value in p.items()
                if name.startswith(f"blocks/{0 if self.shared else layer}/")
            }
            y = x if self.post else normed(x, own["norm1"])
            y = self.attention(own, y)
            x = x + (normed(y, own["norm1"]) if self.post else y)
            y = normed(x, own["norm2"])
            gate, up = y @ own["gate"], y @ own["up"]
            gate, up = (up, gate) if self.swapped else (gate, up)
            y = (self.act(gate) * up) @ own["down"]
            x = x + y if self.residual else y
        return normed(x, p["norm"]) @ p["head"]

    def attention(self, own: Params, y: Any) -> Any:
        """Attention of groups of heads."""
        q, k, v = (jnp.einsum("bte,ehd->bthd", y, own[name]) for name in "qkv")
        if self.rotary:
            q, k = rotated(q), rotated(k)
        if self.permuted:
            v = v[:, :, ::-1]
        k, v = (jnp.repeat(each, HEADS // GROUPS, 2) for each in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * self.scale
        mask = jnp.tril(jnp.ones((TIME, TIME), bool))
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), -1)
        return jnp.einsum("bhqk,bkhd,hde->bqe", weights, v, own["o"])


# --- Ways to keep the weights  ---


@dataclasses.dataclass(frozen=True)
class Way:
    """Another way to keep the weights: from the decoder's own leaves, and back."""

    there: Callable[[Params], Params]
    back: Callable[[Params], Params]

    def then(self, other: Way) -> Way:
        """Both, one after the other."""
        return Way(lambda p: other.there(self.there(p)), lambda p: self.back(other.back(p)))


def each_leaf(ends: Sequence[str], there: Callable[[Any], Any], back: Callable[[Any], Any]) -> Way:
    """Leaves with some last names are kept otherwise."""

    def mapped(p: Params, change: Callable[[Any], Any]) -> Params:
        return {n: change(x) if n.rsplit("/", 1)[-1] in ends else x for n, x in p.items()}

    return Way(lambda p: mapped(p, there), lambda p: mapped(p, back))


def fused(
    parts: Sequence[str],
    whole: str,
    join: Callable[[list[Any]], Any],
    cut: Callable[[Any], list[Any]],
) -> Way:
    """Some leaves of each layer are one."""

    def there(p: Params) -> Params:
        found = {n: x for n, x in p.items() if n.rsplit("/", 1)[-1] not in parts}
        for layer in range(LAYERS):
            own = [p[f"blocks/{layer}/{part}"] for part in parts]
            found[f"blocks/{layer}/{whole}"] = join(own)
        return found

    def back(p: Params) -> Params:
        found = {n: x for n, x in p.items() if n.rsplit("/", 1)[-1] != whole}
        for layer in range(LAYERS):
            each = cut(p[f"blocks/{layer}/{whole}"])
            found |= {f"blocks/{layer}/{n}": x for n, x in zip(parts, each, strict=True)}
        return found

    return Way(there, back)


def _grouped(own: list[Any]) -> Any:
    q, k, v = own
    xp = jnp if isinstance(q, jax.Array) else np
    q = q.reshape(EMBED, GROUPS, HEADS // GROUPS, HEAD)
    each = xp.concatenate([q, k[:, :, None], v[:, :, None]], 2)
    return each.reshape(EMBED, -1)


def _ungrouped(x: Any) -> list[Any]:
    each = x.reshape(EMBED, GROUPS, HEADS // GROUPS + 2, HEAD)
    per = HEADS // GROUPS
    return [each[:, :, :per].reshape(EMBED, HEADS, HEAD), each[:, :, per], each[:, :, per + 1]]


def _beside(own: list[Any]) -> Any:
    xp = jnp if isinstance(own[0], jax.Array) else np
    return xp.concatenate([x.reshape(EMBED, -1) for x in own], 1)


def _cut(x: Any) -> list[Any]:
    ends = [HEADS * HEAD, (HEADS + GROUPS) * HEAD]
    q, k, v = x[:, : ends[0]], x[:, ends[0] : ends[1]], x[:, ends[1] :]
    return [q.reshape(EMBED, HEADS, HEAD), *(y.reshape(EMBED, GROUPS, HEAD) for y in (k, v))]


def _stacked(axis: int) -> Way:
    def there(p: Params) -> Params:
        found = {n: x for n, x in p.items() if not n.startswith("blocks/")}
        for name in (n.split("/", 2)[2] for n in p if n.startswith("blocks/0/")):
            own = [p[f"blocks/{layer}/{name}"] for layer in range(LAYERS)]
            xp = jnp if isinstance(own[0], jax.Array) else np
            found[f"layers/{name}"] = xp.stack(own, min(axis, own[0].ndim))
        return found

    def back(p: Params) -> Params:
        found = {n: x for n, x in p.items() if not n.startswith("layers/")}
        for name, x in p.items():
            if name.startswith("layers/"):
                for layer in range(LAYERS):
                    rest = name.removeprefix("layers/")
                    at = min(axis, x.ndim - 1)
                    found[f"blocks/{layer}/{rest}"] = x[(slice(None),) * at + (layer,)]
        return found

    return Way(there, back)


def _interleaved(x: Any) -> Any:
    """Halves of each head, one by one."""
    return x.reshape(*x.shape[:-1], 2, HEAD // 2).swapaxes(-1, -2).reshape(x.shape)


def _halves(x: Any) -> Any:
    return x.reshape(*x.shape[:-1], HEAD // 2, 2).swapaxes(-1, -2).reshape(x.shape)


AS_THEY_ARE = Way(dict, dict)
LINEAR = Way(
    lambda p: {n: _linear(n, x) for n, x in p.items()},
    lambda p: {n: _unlinear(n, x) for n, x in p.items()},
)
"""As torch has it: outputs by inputs, heads side by side."""


def _linear(name: str, x: Any) -> Any:
    last = name.rsplit("/", 1)[-1]
    if last in "qkv":
        return x.reshape(EMBED, -1).T
    if last == "o":
        return x.reshape(-1, EMBED).T
    return x.T if last in ("gate", "up", "down", "head") else x


def _unlinear(name: str, x: Any) -> Any:
    last = name.rsplit("/", 1)[-1]
    if last in "qkv":
        return x.T.reshape(EMBED, -1, HEAD)
    if last == "o":
        return x.T.reshape(HEADS, HEAD, EMBED)
    return x.T if last in ("gate", "up", "down", "head") else x


WAYS: dict[str, Way] = {
    "as they are": AS_THEY_ARE,
    "as torch's": LINEAR,
    "stacked": _stacked(0),
    "stacked on axis 1": _stacked(1),
    "qkv side by side": fused("qkv", "qkv", _beside, _cut),
    "qkv in groups": fused("qkv", "qkv", _grouped, _ungrouped),
    "gate and up side by side": fused(
        ("gate", "up"),
        "wi",
        lambda own: (jnp if isinstance(own[0], jax.Array) else np).concatenate(own, 1),
        lambda x: [x[:, :MLP], x[:, MLP:]],
    ),
    "gate and up one by one": fused(
        ("gate", "up"),
        "wi",
        lambda own: (jnp if isinstance(own[0], jax.Array) else np).stack(own, 2).reshape(EMBED, -1),
        lambda x: [x[:, ::2], x[:, 1::2]],
    ),
    "gate and up on an axis": fused(
        ("gate", "up"),
        "wi",
        (lambda own: (jnp if isinstance(own[0], jax.Array) else np).stack(own, 1)),
        lambda x: [x[:, 0], x[:, 1]],
    ),
    "norms about one": each_leaf(("norm", "norm1", "norm2"), lambda x: x - 1, lambda x: x + 1),
    "rotary pairs": each_leaf(("q", "k"), _interleaved, _halves),
    "embedding times its root": each_leaf(
        ("embed",), lambda x: x * EMBED**-0.5, lambda x: x * EMBED**0.5
    ),
}
WAYS["stacked, qkv side by side"] = WAYS["qkv side by side"].then(WAYS["stacked"])
WAYS["norms about one, as torch's"] = WAYS["norms about one"].then(LINEAR)
WAYS["stacked, gate and up one by one"] = WAYS["gate and up one by one"].then(_stacked(1))
GAUGES: dict[str, Way] = {
    "query scaled": each_leaf(("q",), lambda x: x / 2, lambda x: x * 2),
}


def nested(p: Params) -> dict[Any, Any]:
    """Leaves by path as a tree; numbers are int keys."""
    tree: dict[Any, Any] = {}
    for name, leaf in p.items():
        *above, last = (int(part) if part.isdecimal() else part for part in name.split("/"))
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def flattened(tree: Any, head: str = "") -> Params:
    """A tree as leaves by path."""
    found: Params = {}
    for name, node in tree.items():
        if isinstance(node, dict):
            found |= flattened(node, f"{head}{name}/")
        else:
            found[f"{head}{name}"] = node
    return found

"""Every layer of Flax that holds state, Linen's and NNX's, made small, and its state with values of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

__all__ = ["LINEN", "NNX", "filled", "of_linen", "of_nnx"]

# --- how each layer is made: of n + 1 features n + 2, and with or without what it may lack  ---


def _one(n: int) -> jax.Array:
    return jnp.zeros((2, n + 1))


def _text(n: int) -> jax.Array:
    return jnp.zeros((2, n + 3, n + 1))


def _image(n: int) -> jax.Array:
    return jnp.zeros((2, n + 3, n + 4, n + 1))


def _carry(n: int) -> jax.Array:
    return jnp.zeros((2, n + 2))


def _heads(n: int) -> dict[str, Any]:
    return {"num_heads": n + 1, "qkv_features": 3 * (n + 1), "out_features": n + 2}


Layer = tuple[nn.Module, tuple[Any, ...]]
LINEN: dict[str, Callable[[int, bool], Layer]] = {
    "BatchNorm": lambda n, b: (nn.BatchNorm(use_running_average=True, use_bias=b), (_one(n),)),
    "Bidirectional": lambda n, _: (
        nn.Bidirectional(nn.RNN(nn.LSTMCell(n + 2)), nn.RNN(nn.SimpleCell(n + 2))),
        (_text(n),),
    ),
    "Conv": lambda n, b: (nn.Conv(n + 2, (2, 3), use_bias=b), (_image(n),)),
    "ConvLSTMCell": lambda n, b: (
        nn.ConvLSTMCell(n + 2, (2, 3), use_bias=b),
        ((jnp.zeros((2, 4, 5, n + 2)),) * 2, jnp.zeros((2, 4, 5, n + 1))),
    ),
    "ConvLocal": lambda n, b: (nn.ConvLocal(n + 2, (2, 3), use_bias=b), (_image(n),)),
    "ConvTranspose": lambda n, b: (nn.ConvTranspose(n + 2, (2, 3), use_bias=b), (_image(n),)),
    "Dense": lambda n, b: (nn.Dense(n + 2, use_bias=b), (_one(n),)),
    "DenseGeneral": lambda n, b: (nn.DenseGeneral((n + 2, 3), use_bias=b), (_one(n),)),
    "Dropout": lambda n, _: (nn.Dropout(0.1, deterministic=False), (_one(n),)),
    "Einsum": lambda n, b: (nn.Einsum((n + 1, n + 2, 3), "ab,bcd->acd", use_bias=b), (_one(n),)),
    "Embed": lambda n, _: (nn.Embed(n + 7, n + 1), (jnp.zeros(2, int),)),
    "Fp8DirectDotGeneralOp": lambda n, _: _product(nn.Fp8DirectDotGeneralOp(n + 5), n),
    "Fp8DotGeneral": lambda n, _: _product(nn.Fp8DotGeneral(n + 5), n),
    "Fp8DotGeneralOp": lambda n, _: _product(nn.Fp8DotGeneralOp(n + 5), n),
    "Fp8Einsum": lambda n, _: (
        nn.Fp8Einsum(n + 5),
        ("ab,bc->ac", _one(n), jnp.zeros((n + 1, n + 2))),
    ),
    "GRUCell": lambda n, _: (nn.GRUCell(n + 2), (_carry(n), _one(n))),
    "GroupNorm": lambda n, b: (nn.GroupNorm(n + 1, use_bias=b), (_text(n),)),
    "InstanceNorm": lambda n, b: (nn.InstanceNorm(use_bias=b), (_text(n),)),
    "LSTMCell": lambda n, _: (nn.LSTMCell(n + 2), ((_carry(n),) * 2, _one(n))),
    "LayerNorm": lambda n, b: (nn.LayerNorm(use_bias=b), (_one(n),)),
    "MGUCell": lambda n, b: (nn.MGUCell(n + 2, reset_gate=b), (_carry(n), _one(n))),
    "MultiHeadAttention": lambda n, b: (
        nn.MultiHeadAttention(**_heads(n), use_bias=b, normalize_qk=b, decode=b),
        (_text(n),),
    ),
    "MultiHeadDotProductAttention": lambda n, b: (
        nn.MultiHeadDotProductAttention(**_heads(n), use_bias=b),
        (_text(n), jnp.zeros((2, 4, n + 6))),
    ),
    "NANOOFp8DotGeneralOp": lambda n, _: _product(nn.NANOOFp8DotGeneralOp(n + 5), n),
    "OptimizedLSTMCell": lambda n, _: (
        nn.OptimizedLSTMCell(n + 2),
        ((_carry(n),) * 2, _one(n)),
    ),
    "PReLU": lambda n, _: (nn.PReLU(), (_one(n),)),
    "RMSNorm": lambda n, _: (nn.RMSNorm(), (_one(n),)),
    "RNN": lambda n, _: (nn.RNN(nn.LSTMCell(n + 2)), (_text(n),)),
    "SelfAttention": lambda n, b: (
        nn.SelfAttention(**_heads(n), use_bias=b, decode=b),
        (_text(n),),
    ),
    "SimpleCell": lambda n, _: (nn.SimpleCell(n + 2), (_carry(n), _one(n))),
    "SpectralNorm": lambda n, b: (
        nn.SpectralNorm(nn.Conv(n + 2, (2, 3), use_bias=b)),
        (_image(n),),
    ),
    "WeightNorm": lambda n, b: (nn.WeightNorm(nn.Conv(n + 2, (2, 3), use_bias=b)), (_image(n),)),
}
NNX: dict[str, Callable[[int, bool, nnx.Rngs], Any]] = {
    "BatchNorm": lambda n, b, rngs: nnx.BatchNorm(n + 1, use_bias=b, rngs=rngs),
    "Bidirectional": lambda n, b, rngs: nnx.Bidirectional(
        nnx.RNN(nnx.LSTMCell(n + 1, n + 2, rngs=rngs), rngs=b),
        nnx.RNN(nnx.SimpleCell(n + 1, n + 2, rngs=rngs), rngs=b),
        rngs=b,
    ),
    "Conv": lambda n, b, rngs: nnx.Conv(n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs),
    "ConvTranspose": lambda n, b, rngs: nnx.ConvTranspose(
        n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs
    ),
    "Dropout": lambda n, b, rngs: nnx.Dropout(0.1, rngs=rngs if b else None),
    "Einsum": lambda n, b, rngs: nnx.Einsum(
        "ab,bcd->acd", (n + 1, n + 2, 3), (n + 2, 3) if b else None, rngs=rngs
    ),
    "Embed": lambda n, _, rngs: nnx.Embed(n + 7, n + 1, rngs=rngs),
    "GRUCell": lambda n, b, rngs: nnx.GRUCell(n + 1, n + 2, keep_rngs=b, rngs=rngs),
    "GroupNorm": lambda n, b, rngs: nnx.GroupNorm(n + 1, n + 1, use_bias=b, rngs=rngs),
    "InstanceNorm": lambda n, b, rngs: nnx.InstanceNorm(n + 1, use_bias=b, rngs=rngs),
    "LSTMCell": lambda n, b, rngs: nnx.LSTMCell(n + 1, n + 2, keep_rngs=b, rngs=rngs),
    "LayerNorm": lambda n, b, rngs: nnx.LayerNorm(n + 1, use_bias=b, rngs=rngs),
    "Linear": lambda n, b, rngs: nnx.Linear(n + 1, n + 2, use_bias=b, rngs=rngs),
    "LinearGeneral": lambda n, b, rngs: nnx.LinearGeneral(n + 1, (n + 2, 3), use_bias=b, rngs=rngs),
    "LoRA": lambda n, b, rngs: nnx.LoRA(
        n + 1, 3, n + 2, base_module=nnx.Linear(n + 1, n + 2, use_bias=b, rngs=rngs), rngs=rngs
    ),
    "LoRALinear": lambda n, b, rngs: nnx.LoRALinear(
        n + 1, n + 2, lora_rank=3, use_bias=b, rngs=rngs
    ),
    "MultiHeadAttention": lambda n, b, rngs: _attention(n, b, rngs),
    "OptimizedLSTMCell": lambda n, b, rngs: nnx.OptimizedLSTMCell(
        n + 1, n + 2, keep_rngs=b, rngs=rngs
    ),
    "PReLU": lambda n, _, rngs: nnx.PReLU(),
    "RMSNorm": lambda n, _, rngs: nnx.RMSNorm(n + 1, rngs=rngs),
    "RNN": lambda n, b, rngs: nnx.RNN(nnx.LSTMCell(n + 1, n + 2, rngs=rngs), rngs=b),
    "SimpleCell": lambda n, b, rngs: nnx.SimpleCell(n + 1, n + 2, keep_rngs=b, rngs=rngs),
    "SpectralNorm": lambda n, b, rngs: nnx.SpectralNorm(
        nnx.Conv(n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs), rngs=rngs
    ),
    "WeightNorm": lambda n, b, rngs: nnx.WeightNorm(
        nnx.Conv(n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs), rngs=rngs
    ),
}


def _product(op: nn.Module, n: int) -> Layer:
    dims = (((1,), (0,)), ((), ()))
    return op, (_one(n), jnp.zeros((n + 1, n + 2)), dims)


def _attention(n: int, full: bool, rngs: nnx.Rngs) -> nnx.MultiHeadAttention:
    heads: dict[str, Any] = {
        **_heads(n),
        "in_features": n + 1,
        "use_bias": full,
        "normalize_qk": full,
    }
    made = nnx.MultiHeadAttention(**heads, dropout_rate=0.1 * full, decode=False, rngs=rngs)
    if full:
        made.init_cache((2, n + 3, n + 1))
    return made


# --- the trees of these layers, each leaf with values of its own  ---


def filled(tree: Any, seed: int) -> Any:
    """The tree with random values in it, of any bits that are no NaN's."""
    rng = np.random.default_rng(seed)

    def value(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(int(rng.integers(2**31)))
        values = rng.normal(size=leaf.shape) * 100
        counts = jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.asarray(np.abs(values) if counts else values, leaf.dtype)

    return jax.tree.map(value, tree)


def of_linen(name: str, n: int, full: bool) -> Any:
    """The variables of a layer of Linen, in a model that has it as ``layer``."""
    layer, inputs = LINEN[name](n, full)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    told: dict[str, Any] = {"update_stats": False} if name == "SpectralNorm" else {}
    variables: Any = jax.eval_shape(lambda: layer.init(keys, *inputs, **told))
    return {kind: {"layer": leaves} for kind, leaves in filled(variables, n).items()}


def of_nnx(name: str, n: int, full: bool) -> Any:
    """The state of a layer of NNX, in a model that has it as ``layer``."""

    def made() -> Any:
        return nnx.Dict(layer=NNX[name](n, full, nnx.Rngs(0)))

    # The plain arrays of this one are no leaves of an abstract module.
    model = made() if name == "WeightNorm" else nnx.eval_shape(made)
    return filled(nnx.state(model), n + 100)

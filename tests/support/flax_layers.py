"""Every layer of Flax that holds state, Linen's and NNX's, made small, and its state with values of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

__all__ = ["LINEN", "MADE_OTHERWISE", "NNX", "filled", "of_linen", "of_nnx"]

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
    "WeightNorm": lambda n, b: (
        nn.WeightNorm(nn.Conv(n + 2, (2, 3), use_bias=b), use_scale=b),
        (_image(n),),
    ),
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
        nnx.Conv(n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs), use_scale=b, rngs=rngs
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
            impl = "rbg" if str(leaf.dtype) == "key<rbg>" else None
            return jax.random.key(int(rng.integers(2**31)), impl=impl)
        values = rng.normal(size=leaf.shape) * 100
        counts = jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.asarray(np.abs(values) if counts else values, leaf.dtype)

    return jax.tree.map(value, tree)


def of_linen(name: str, n: int, full: bool) -> Any:
    """The variables of a layer of Linen, in a model that has it as ``layer``."""
    layer, inputs = LINEN[name](n, full)
    return _variables(layer, inputs, n)


def _variables(layer: nn.Module, inputs: tuple[Any, ...], seed: int) -> Any:
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    told: dict[str, Any] = {"update_stats": False} if isinstance(layer, nn.SpectralNorm) else {}
    variables: Any = jax.eval_shape(lambda: layer.init(keys, *inputs, **told))
    return {kind: {"layer": leaves} for kind, leaves in filled(variables, seed).items()}


def of_nnx(name: str, n: int, full: bool) -> Any:
    """The state of a layer of NNX, in a model that has it as ``layer``."""

    def made() -> Any:
        return nnx.Dict(layer=NNX[name](n, full, nnx.Rngs(0)))

    # The plain arrays of this one are no leaves of an abstract module.
    model = made() if name == "WeightNorm" else nnx.eval_shape(made)
    return filled(nnx.state(model), n + 100)


# --- the same layers where their arguments are other ones  ---


def _linen(layer: nn.Module, *inputs: Any) -> Callable[[], Any]:
    return lambda: _variables(layer, inputs, 5)


def _nnx(make: Callable[[nnx.Rngs], Any]) -> Callable[[], Any]:
    rngs = {"params": 0, "dropout": 1, "carry": 2}
    return lambda: filled(nnx.state(nnx.Dict(layer=make(nnx.Rngs(**rngs)))), 6)


def _rbg(seed: int) -> jax.Array:
    return jax.random.key(seed, impl="rbg")


MADE_OTHERWISE: dict[str, Callable[[], Any]] = {
    "Linen's BatchNorm without params": _linen(
        nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False), _one(2)
    ),
    "Linen's Conv of groups": _linen(nn.Conv(6, 3, feature_group_count=3), _text(2)),
    "Linen's ConvTranspose, transpose_kernel": _linen(
        nn.ConvTranspose(5, (2, 3), transpose_kernel=True), _image(2)
    ),
    "Linen's Dense of complex numbers": _linen(nn.Dense(5, param_dtype=jnp.complex64), _one(2)),
    "Linen's Dense with a product in eight bits": _linen(
        nn.Dense(16, dot_general_cls=nn.Fp8DotGeneralOp), jnp.zeros((16, 16))
    ),
    "Linen's DenseGeneral, batch_dims": _linen(nn.DenseGeneral(5, batch_dims=(0,)), _text(2)),
    "Linen's LayerNorm of two axes": _linen(
        nn.LayerNorm(reduction_axes=(1, 2), feature_axes=(1, 2)), _text(2)
    ),
    "Linen's LayerNorm without a scale": _linen(nn.LayerNorm(use_scale=False), _one(2)),
    "Linen's RNN of a GRUCell": _linen(nn.RNN(nn.GRUCell(4)), _text(2)),
    "Linen's SpectralNorm of attention": _linen(
        nn.SpectralNorm(nn.MultiHeadAttention(2, qkv_features=6)), _text(2)
    ),
    "Linen's SpectralNorm, collection_name": _linen(
        nn.SpectralNorm(nn.Dense(4), collection_name="norms"), _one(2)
    ),
    "Linen's WeightNorm of attention": _linen(
        nn.WeightNorm(nn.MultiHeadAttention(2, qkv_features=6)), _text(2)
    ),
    "Linen's WeightNorm, feature_axes": _linen(
        nn.WeightNorm(nn.Dense(4), feature_axes=(0, 1)), _one(2)
    ),
    "Linen's WeightNorm, variable_filter": _linen(
        nn.WeightNorm(nn.Dense(4), variable_filter=None), _one(2)
    ),
    "NNX's Bidirectional with streams": _nnx(
        lambda rngs: nnx.Bidirectional(
            nnx.RNN(nnx.LSTMCell(3, 4, rngs=rngs)), nnx.RNN(nnx.SimpleCell(3, 4, rngs=rngs))
        )
    ),
    "NNX's ConvTranspose, transpose_kernel": _nnx(
        lambda rngs: nnx.ConvTranspose(3, 5, (2, 3), transpose_kernel=True, rngs=rngs)
    ),
    "NNX's Dropout of rbg": _nnx(lambda _: nnx.Dropout(0.1, rngs=nnx.Rngs(_rbg(0)))),
    "NNX's Dropout with the stream dropout": _nnx(lambda rngs: nnx.Dropout(0.1, rngs=rngs)),
    "NNX's LSTMCell that keeps its stream": _nnx(
        lambda rngs: nnx.LSTMCell(3, 4, keep_rngs=True, rngs=rngs)
    ),
    "NNX's LayerNorm without a scale": _nnx(
        lambda rngs: nnx.LayerNorm(3, use_scale=False, rngs=rngs)
    ),
    "NNX's LinearGeneral, batch_axis": _nnx(
        lambda rngs: nnx.LinearGeneral(3, 5, batch_axis={0: 2}, rngs=rngs)
    ),
    "NNX's LoRA alone": _nnx(lambda rngs: nnx.LoRA(3, 2, 5, rngs=rngs)),
    "NNX's LoRA around a Linear": _nnx(
        lambda rngs: nnx.LoRA(3, 2, 5, base_module=nnx.Linear(3, 5, rngs=rngs), rngs=rngs)
    ),
    "NNX's MultiHeadAttention with the stream dropout": _nnx(
        lambda rngs: nnx.MultiHeadAttention(2, 6, dropout_rate=0.1, decode=False, rngs=rngs)
    ),
    "NNX's RNN of an OptimizedLSTMCell": _nnx(
        lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(3, 4, rngs=rngs))
    ),
    "NNX's RNN with a stream of its own": _nnx(
        lambda rngs: nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs), rngs=rngs)
    ),
    "NNX's SpectralNorm of an Embed": _nnx(
        lambda rngs: nnx.SpectralNorm(nnx.Embed(3, 4, rngs=rngs), rngs=rngs)
    ),
    "NNX's WeightNorm of a Linear": _nnx(
        lambda rngs: nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs), rngs=rngs)
    ),
    "NNX's WeightNorm, feature_axes": _nnx(
        lambda rngs: nnx.WeightNorm(nnx.Linear(3, 4, rngs=rngs), feature_axes=(0, 1), rngs=rngs)
    ),
}

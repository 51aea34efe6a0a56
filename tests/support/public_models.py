"""Public models at full size, abstract: Llama 2 and 3, DeepSeek MoE, Gemma 2, T5 and ViT, as Flax's users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

import ckpt_schema as cs

__all__ = ["MODELS", "PARAMS"]

TX = optax.adamw(3e-4)


class Attention(nnx.Module):
    """Attention whose keys and values have heads of their own number."""

    def __init__(self, embed: int, heads: int, kv_heads: int, head_dim: int, rngs: nnx.Rngs):
        def projection(number: int) -> nnx.LinearGeneral:
            return nnx.LinearGeneral(embed, (number, head_dim), use_bias=False, rngs=rngs)

        self.q_proj = projection(heads)
        self.k_proj = projection(kv_heads)
        self.v_proj = projection(kv_heads)
        self.o_proj = nnx.LinearGeneral(
            (heads, head_dim), embed, axis=(-2, -1), use_bias=False, rngs=rngs
        )


class GatedMlp(nnx.Module):
    """Gate, up and down."""

    def __init__(self, embed: int, mlp: int, rngs: nnx.Rngs):
        self.gate_proj = nnx.Linear(embed, mlp, use_bias=False, rngs=rngs)
        self.up_proj = nnx.Linear(embed, mlp, use_bias=False, rngs=rngs)
        self.down_proj = nnx.Linear(mlp, embed, use_bias=False, rngs=rngs)


class Experts(nnx.Module):
    """Routed experts, stacked, beside shared ones."""

    def __init__(self, embed: int, mlp: int, routed: int, shared: int, rngs: nnx.Rngs):
        self.router = nnx.Linear(embed, routed, use_bias=False, rngs=rngs)
        self.gate = nnx.Param(jnp.zeros((routed, embed, mlp)))
        self.up = nnx.Param(jnp.zeros((routed, embed, mlp)))
        self.down = nnx.Param(jnp.zeros((routed, mlp, embed)))
        self.shared = GatedMlp(embed, shared * mlp, rngs)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and whatever stands in the place of the mlp."""

    def __init__(self, embed: int, attention: nnx.Module, mlp: nnx.Module, rngs: nnx.Rngs):
        self.input_norm = nnx.RMSNorm(embed, rngs=rngs)
        self.attention = attention
        self.post_attention_norm = nnx.RMSNorm(embed, rngs=rngs)
        self.mlp = mlp


class Decoder(nnx.Module):
    """Embedding, layers, norm and head."""

    def __init__(self, vocab: int, embed: int, layers: list[Any], rngs: nnx.Rngs):
        self.embed_tokens = nnx.Embed(vocab, embed, rngs=rngs)
        self.layers = nnx.List(layers)
        self.norm = nnx.RMSNorm(embed, rngs=rngs)
        self.lm_head = nnx.Linear(embed, vocab, use_bias=False, rngs=rngs)


class Training(nnx.Module):
    """A model and its optimizer."""

    def __init__(self, model: nnx.Module):
        self.model = model
        self.optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)


def llama(vocab: int, embed: int, depth: int, heads: tuple[int, int, int], mlp: int) -> Any:
    """A Llama: every layer alike."""
    rngs = nnx.Rngs(0)
    layers = [
        DecoderLayer(embed, Attention(embed, *heads, rngs), GatedMlp(embed, mlp, rngs), rngs)
        for _ in range(depth)
    ]
    return Training(Decoder(vocab, embed, layers, rngs))


def deepseek() -> Any:
    """DeepSeek MoE 16B: a dense layer, then 27 of 64 experts and 2 shared ones."""
    embed, rngs = 2048, nnx.Rngs(0)
    layers: list[Any] = []
    for n in range(28):
        mlp = Experts(embed, 1408, 64, 2, rngs) if n else GatedMlp(embed, 10944, rngs)
        layers.append(DecoderLayer(embed, Attention(embed, 16, 16, 128, rngs), mlp, rngs))
    return Training(Decoder(102400, embed, layers, rngs))


class GemmaLayer(nn.Module):
    """A layer of Gemma 2, with a norm before and after each part."""

    def setup(self) -> None:
        embed, mlp = 3584, 14336
        self.pre_attention_norm, self.post_attention_norm = nn.RMSNorm(), nn.RMSNorm()
        self.pre_ffw_norm, self.post_ffw_norm = nn.RMSNorm(), nn.RMSNorm()
        self.q_proj = nn.DenseGeneral((16, 256), use_bias=False)
        self.k_proj = nn.DenseGeneral((8, 256), use_bias=False)
        self.v_proj = nn.DenseGeneral((8, 256), use_bias=False)
        self.o_proj = nn.DenseGeneral(embed, axis=(-2, -1), use_bias=False)
        self.gate_proj = nn.Dense(mlp, use_bias=False)
        self.up_proj = nn.Dense(mlp, use_bias=False)
        self.down_proj = nn.Dense(embed, use_bias=False)

    def __call__(self, x: Any) -> Any:
        y = self.pre_attention_norm(x)
        q, k, v = self.q_proj(y), self.k_proj(y), self.v_proj(y)
        kv = jnp.repeat(k + v, 2, axis=-2)
        x = x + self.post_attention_norm(self.o_proj(q + kv))
        y = self.pre_ffw_norm(x)
        return x + self.post_ffw_norm(self.down_proj(self.gate_proj(y) * self.up_proj(y)))


class GemmaPair(nn.Module):
    """A layer that looks near, and one that looks everywhere."""

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        return GemmaLayer(name="global_layer")(GemmaLayer(name="local_layer")(x)), None


class Gemma(nn.Module):
    """Gemma 2 9B: 21 pairs of layers, stacked."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        embedder = nn.Embed(256000, 3584, name="embedder")
        pairs = nn.scan(
            GemmaPair, variable_axes={"params": 0}, split_rngs={"params": True}, length=21
        )
        x, _ = pairs(name="layers")(embedder(tokens), None)
        return embedder.attend(nn.RMSNorm(name="final_norm")(x))


def linen_state(model: nn.Module, *inputs: Any) -> Any:
    """A train state as Linen's users save it."""
    params = model.init(jax.random.key(0), *inputs)
    return {"step": jnp.int32(0), "params": params, "opt_state": TX.init(params)}


class T5Layer(nnx.Module):
    """A layer of T5 1.1: attention to itself, to the encoder where that is told, and a gated mlp."""

    def __init__(self, rngs: nnx.Rngs, *, is_decoder: bool):
        self.self_norm = nnx.RMSNorm(1024, rngs=rngs)
        self.self_attention = Attention(1024, 16, 16, 64, rngs)
        if is_decoder:
            self.cross_norm = nnx.RMSNorm(1024, rngs=rngs)
            self.cross_attention = Attention(1024, 16, 16, 64, rngs)
        self.mlp_norm = nnx.RMSNorm(1024, rngs=rngs)
        self.mlp = GatedMlp(1024, 2816, rngs)


class T5Stack(nnx.Module):
    """The encoder, or the decoder."""

    def __init__(self, rngs: nnx.Rngs, *, is_decoder: bool):
        self.relative_embedding = nnx.Embed(32, 16, rngs=rngs)
        self.layers = nnx.List([T5Layer(rngs, is_decoder=is_decoder) for _ in range(24)])
        self.final_norm = nnx.RMSNorm(1024, rngs=rngs)


class T5(nnx.Module):
    """T5 1.1 large."""

    def __init__(self, rngs: nnx.Rngs):
        self.shared = nnx.Embed(32128, 1024, rngs=rngs)
        self.encoder = T5Stack(rngs, is_decoder=False)
        self.decoder = T5Stack(rngs, is_decoder=True)
        self.lm_head = nnx.Linear(1024, 32128, use_bias=False, rngs=rngs)


class VitBlock(nn.Module):
    """A block of a vision transformer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.MultiHeadDotProductAttention(16)(nn.LayerNorm()(x))
        x = x + y
        y = nn.Dense(4096)(nn.LayerNorm()(x))
        return x + nn.Dense(1024)(nn.gelu(y))


class Vit(nn.Module):
    """ViT-L/16 for 1000 classes."""

    @nn.compact
    def __call__(self, images: Any) -> Any:
        x = nn.Conv(1024, (16, 16), strides=(16, 16), name="embedding")(images)
        x = x.reshape(x.shape[0], -1, 1024)
        cls = self.param("cls", nn.initializers.zeros, (1, 1, 1024))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, 197, 1024))
        for n in range(24):
            x = VitBlock(name=f"encoderblock_{n}")(x)
        return nn.Dense(1000, name="head")(nn.LayerNorm(name="encoder_norm")(x)[:, 0])


def _nnx(make: Callable[[], Any]) -> cs.Layout:
    return cs.infer(nnx.eval_shape(make))


MODELS: dict[str, Callable[[], cs.Layout]] = {
    "llama_2_7b": lambda: _nnx(lambda: llama(32000, 4096, 32, (32, 32, 128), 11008)),
    "llama_3_8b": lambda: _nnx(lambda: llama(128256, 4096, 32, (32, 8, 128), 14336)),
    "deepseek_moe_16b": lambda: _nnx(deepseek),
    "gemma_2_9b": lambda: cs.infer(
        jax.eval_shape(lambda: linen_state(Gemma(), jnp.zeros((1, 8), "int32"))),
        scan={"layers": 0},
    ),
    "t5_large": lambda: _nnx(lambda: Training(T5(nnx.Rngs(0)))),
    "vit_l_16": lambda: cs.infer(
        jax.eval_shape(lambda: linen_state(Vit(), jnp.zeros((1, 224, 224, 3)))),
        lists=["encoderblock_{i}"],
    ),
}
"""The layouts of their train states."""

PARAMS = {
    "llama_2_7b": 6_738_415_616,
    "llama_3_8b": 8_030_261_248,
    "deepseek_moe_16b": 16_375_728_128,
    "gemma_2_9b": 9_241_705_984,
    "t5_large": 783_150_080,
    "vit_l_16": 304_326_632,
}
"""How many params each has, as its makers and the Hub tell."""

"""Discovery of models of PyTorch: tiny random ones of `transformers`, against plain functions of jax.

`python tests/discovered_torch.py` needs `torch` and `transformers`, which nothing else does:
`pip install torch transformers`. For each model it prints what was found, carries the real random
weights over, compares the outputs, and holds the way back bit for bit. A failure makes the exit
status 1.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import ckpt_schema as cs

VOCAB, EMBED, HEADS, GROUPS, HEAD, MLP, LAYERS, TIME = 37, 20, 10, 5, 6, 27, 2, 7
TOKENS = (np.arange(2 * TIME).reshape(2, TIME) * 11 % VOCAB).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model of transformers, and the same function in jax with leaves of its own.

    Attributes:
        module: The model.
        run: The function.
        tree: Its leaves, abstract.
        rules: What settles that which no run can tell.
    """

    module: Any
    run: Callable[[Any], Any]
    tree: Any
    rules: tuple[Any, ...] = ()


def _leaf(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _normed(x: Any, scale: Any) -> Any:
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def _centered(x: Any, own: Any) -> Any:
    x = x - jnp.mean(x, -1, keepdims=True)
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * own["scale"] + own["bias"]


def _rotated(x: Any) -> Any:
    half = HEAD // 2
    angles = jnp.arange(TIME)[:, None] / 10000.0 ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    one, other = x[..., :half], x[..., half:]
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], -1)


def _attended(q: Any, k: Any, v: Any, out: Any, scale: float) -> Any:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * scale
    mask = jnp.tril(jnp.ones((TIME, TIME), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), -1)
    return jnp.einsum("bhqk,bkhd,hde->bqe", weights, v, out)


def _decoder_tree(*, biased: bool) -> Any:
    def layer() -> Any:
        found = {
            "attention_norm": {"scale": _leaf(EMBED)},
            "query": _leaf(EMBED, HEADS, HEAD),
            "key": _leaf(EMBED, GROUPS, HEAD),
            "value": _leaf(EMBED, GROUPS, HEAD),
            "out": _leaf(HEADS, HEAD, EMBED),
            "mlp_norm": {"scale": _leaf(EMBED)},
            "gate_up": _leaf(EMBED, 2, MLP),
            "down": _leaf(MLP, EMBED),
        }
        if biased:
            found["query_bias"] = _leaf(HEADS, HEAD)
            found |= {f"{name}_bias": _leaf(GROUPS, HEAD) for name in ("key", "value")}
        return found

    return {
        "table": _leaf(VOCAB, EMBED),
        "layers": {at: layer() for at in range(LAYERS)},
        "final_norm": {"scale": _leaf(EMBED)},
    }


def _decoder(*, act: Any, biased: bool, root: bool, tied: bool) -> Callable[[Any], Any]:
    def run(p: Any) -> Any:
        x = p["table"][TOKENS] * (EMBED**0.5 if root else 1.0)
        for at in range(LAYERS):
            own = p["layers"][at]
            y = _normed(x, own["attention_norm"]["scale"])
            q, k, v = (
                jnp.einsum("bte,ehd->bthd", y, own[name]) + (own[f"{name}_bias"] if biased else 0.0)
                for name in ("query", "key", "value")
            )
            q, k = _rotated(q), _rotated(k)
            k, v = (jnp.repeat(each, HEADS // GROUPS, 2) for each in (k, v))
            x = x + _attended(q, k, v, own["out"], HEAD**-0.5)
            y = _normed(x, own["mlp_norm"]["scale"])
            both = jnp.einsum("bte,egm->btgm", y, own["gate_up"])
            x = x + (act(both[:, :, 0]) * both[:, :, 1]) @ own["down"]
        x = _normed(x, p["final_norm"]["scale"])
        return x @ (p["table"].T if tied else p["head"])

    return run


def _config(kind: Any, **more: Any) -> Any:
    return kind(
        vocab_size=VOCAB,
        hidden_size=EMBED,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD,
        rms_norm_eps=1e-6,
        attn_implementation="eager",
        **more,
    )


def llama() -> Pair:
    """Kernels turned, heads on one axis there and on two here, gate and up in one."""
    config = _config(transformers.LlamaConfig, tie_word_embeddings=False)
    tree = _decoder_tree(biased=False) | {"head": _leaf(EMBED, VOCAB)}
    run = _decoder(act=jax.nn.silu, biased=False, root=False, tied=False)
    return Pair(transformers.LlamaForCausalLM(config), run, tree)


def gemma() -> Pair:
    """Norms that stand about one there, a table that is multiplied by a root, tied."""
    config = _config(transformers.GemmaConfig, hidden_activation="gelu_pytorch_tanh")
    run = _decoder(act=jax.nn.gelu, biased=False, root=True, tied=True)
    return Pair(transformers.GemmaForCausalLM(config), run, _decoder_tree(biased=False))


def gpt2() -> Pair:
    """Queries, keys and values in one; inputs by outputs there as here; tied."""
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=13,
        n_embd=24,
        n_layer=LAYERS,
        n_head=3,
        n_inner=31,
        attn_implementation="eager",
    )
    width, heads, head = 24, 3, 8

    def dense(inputs: int, outputs: int) -> Any:
        return {"kernel": _leaf(inputs, outputs), "bias": _leaf(outputs)}

    def norm() -> Any:
        return {"scale": _leaf(width), "bias": _leaf(width)}

    def layer() -> Any:
        parts = {
            name: {"kernel": _leaf(width, heads, head), "bias": _leaf(heads, head)}
            for name in ("query", "key", "value")
        }
        out = {"kernel": _leaf(heads, head, width), "bias": _leaf(width)}
        mlp = {"up": dense(width, 31), "down": dense(31, width)}
        return {"norm1": norm(), **parts, "out": out, "norm2": norm(), **mlp}

    tree = {
        "table": _leaf(VOCAB, width),
        "positions": _leaf(13, width),
        "layers": {at: layer() for at in range(LAYERS)},
        "norm": norm(),
    }

    def run(p: Any) -> Any:
        x = p["table"][TOKENS] + p["positions"][:TIME]
        for at in range(LAYERS):
            own = p["layers"][at]
            y = _centered(x, own["norm1"])
            q, k, v = (
                jnp.einsum("bte,ehd->bthd", y, own[name]["kernel"]) + own[name]["bias"]
                for name in ("query", "key", "value")
            )
            x = x + _attended(q, k, v, own["out"]["kernel"], head**-0.5) + own["out"]["bias"]
            y = _centered(x, own["norm2"]) @ own["up"]["kernel"] + own["up"]["bias"]
            x = x + jax.nn.gelu(y) @ own["down"]["kernel"] + own["down"]["bias"]
        return _centered(x, p["norm"]) @ p["table"].T

    # No value of a key's bias changes the outputs, so where it is in the fused leaf is for us to say.
    parts = [f"layers[]/{name}/bias" for name in ("query", "key", "value")]
    rule = cs.fuse("transformer/h[]/attn/c_attn/bias", parts, axes="3*a*b -> a b")
    return Pair(transformers.GPT2LMHeadModel(config), run, tree, (rule,))


def qwen2() -> Pair:
    """Biases of queries, keys and values; those of keys change nothing but by their rotation."""
    config = _config(transformers.Qwen2Config, tie_word_embeddings=False)
    tree = _decoder_tree(biased=True) | {"head": _leaf(EMBED, VOCAB)}
    run = _decoder(act=jax.nn.silu, biased=True, root=False, tied=False)
    return Pair(transformers.Qwen2ForCausalLM(config), run, tree)


PAIRS = {"Llama": llama, "Qwen 2": qwen2, "Gemma": gemma, "GPT-2": gpt2}


def main() -> int:
    """Discovers all, or those that are named."""
    torch.set_num_threads(1)
    failed = False
    for name in sys.argv[1:] or PAIRS:
        torch.manual_seed(0)
        pair = PAIRS[name]()
        tokens = torch.tensor(TOKENS.astype(np.int64))
        source = cs.discovery.torch_model(pair.module, lambda model: model(tokens).logits)  # noqa: B023
        start = time.monotonic()
        found = cs.discover(None, source, pair.run, pair.tree)
        print(f"{name}: {found.status}, {time.monotonic() - start:.0f} s", flush=True)
        for line in (*found.rules, *found.open, *found.notes):
            print("   ", line)
        try:
            lens = found.lens(pair.rules)
        except cs.CkptSchemaError as error:
            print("   ", error)
            failed = True
            continue
        weights = {
            key: jnp.asarray(value.detach().numpy())
            for key, value in pair.module.state_dict().items()
            if key in source.shapes
        }
        made = lens.get(weights)
        want = pair.module.eval()(tokens).logits.detach().numpy()
        gap = float(np.abs(np.asarray(pair.run(made)) - want).max() / np.abs(want).max())
        back = lens.put(made, onto=weights)
        same = all((np.asarray(back[key]) == np.asarray(weights[key])).all() for key in weights)
        print(f"    outputs differ by {gap:.1e}; back bit for bit: {same}", flush=True)
        failed |= gap > 1e-4 or not same
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

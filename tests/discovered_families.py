"""Declared lenses of families against what running both models shows: ``python tests/discovered_families.py``.

It needs torch and transformers beside the package: ``pip install torch transformers``. For each
family a small random model of transformers is discovered against the model of NNX. The lens that
the family declares must make of each leaf what was found that it is, and of the random weights the
same bits as the lens that was found; the model that has them must give the logits that transformers
computes. Values that were found to be kept otherwise are printed, and what is open, as biases of
keys are that no value changes, which a rule settles. Names of families may be given to try no other;
`--kept FILE` remembers outcomes, so that a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import families
import jax
import numpy as np
import torch
import transformers as hub
from flax import nnx
from support.kept import Kept

import ckpt_schema as cs
from ckpt_schema.testing import assert_discovered

HERE = Path(__file__).parent
SOURCES = (
    Path(cs.discovery.__file__).parent,
    *(
        HERE / name
        for name in ("families.py", "decoder.py", "centered.py", "discovered_families.py")
    ),
)
TOKENS = np.arange(14).reshape(2, 7) * 11 % 37
SIZES = {  # none is another, or a sum of others
    "hidden_size": 20,
    "intermediate_size": 27,
    "vocab_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
    "head_dim": 6,
    "attn_implementation": "eager",
}
EXPERTS = SIZES | {"num_experts_per_tok": 2, "experts_implementation": "eager"}
GEMMA = SIZES | {"sliding_window": 3, "query_pre_attn_scalar": 5}
LAYERS = ["sliding_attention", "full_attention"]
CONFIGS: Mapping[str, Any] = {
    "llama": hub.LlamaConfig(**SIZES),
    "qwen2": hub.Qwen2Config(**SIZES),
    "qwen3": hub.Qwen3Config(**SIZES),
    "mixtral": hub.MixtralConfig(**EXPERTS, num_local_experts=3),
    "qwen3_moe": hub.Qwen3MoeConfig(**EXPERTS, num_experts=3, moe_intermediate_size=23),
    "gemma2": hub.Gemma2Config(**GEMMA),
    "gemma2, sums": hub.Gemma2Config(**GEMMA),
    "gemma2, products": hub.Gemma2Config(**GEMMA, tie_word_embeddings=False),
    "gemma2, both": hub.Gemma2Config(**GEMMA, tie_word_embeddings=False),
    "gemma3": hub.Gemma3TextConfig(**GEMMA, layer_types=LAYERS),
    "gemma3, sums": hub.Gemma3TextConfig(**GEMMA, layer_types=LAYERS),
    "gemma3, products": hub.Gemma3TextConfig(
        **GEMMA, layer_types=LAYERS, tie_word_embeddings=False
    ),
    "gemma3, both": hub.Gemma3TextConfig(**GEMMA, layer_types=LAYERS, tie_word_embeddings=False),
    "gpt2": hub.GPT2Config(
        n_embd=24, n_head=3, n_layer=2, n_inner=31, vocab_size=37, n_positions=13
    ),
    "vit": hub.ViTConfig(
        hidden_size=24,
        intermediate_size=31,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=[8, 10],
        patch_size=[4, 5],
        num_labels=11,
    ),
    "whisper": hub.WhisperConfig(
        vocab_size=37,
        num_mel_bins=7,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=3,
        encoder_ffn_dim=31,
        decoder_ffn_dim=29,
        max_source_positions=5,
        max_target_positions=13,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
}
KINDS = {"vit": hub.ViTForImageClassification, "whisper": hub.WhisperForConditionalGeneration}

# A model may keep the scale of its norms as it uses it, or its embedding: the rules of its lens,
# and what it says of itself.
SUMS = cs.shift("**/*norm/weight", 1.0), {"offset": 0.0}
PRODUCTS = cs.scale("embed/weight", "embed ** 0.5"), {"root": 1.0}
KEPT_AS_USED = {"sums": [SUMS], "products": [PRODUCTS], "both": [SUMS, PRODUCTS]}
# What no value of changes the outputs, so that which is which is for us to say.
BIASES = [f"layers[]/attention/{part}/bias" for part in ("query", "key", "value")]
SETTLED: Mapping[str, Any] = {
    "gpt2": cs.fuse("transformer/h[]/attn/c_attn/bias", BIASES, axes="3*heads*dim -> heads dim"),
    "vit": cs.rename(
        "vit/layers[]/attention/k_proj/bias", BIASES[1], axes="heads*dim -> heads dim"
    ),
}


def given(config: Any) -> dict[str, Any]:
    """What a model is run on."""
    draw = np.random.default_rng(0)
    if config.model_type == "vit":
        return {"pixel_values": draw.normal(size=(2, 3, 8, 10))}
    if config.model_type == "whisper":
        return {"input_features": draw.normal(size=(2, 7, 10)), "decoder_input_ids": TOKENS}
    return {"input_ids": TOKENS}


def tried(name: str, config: Any, folder: Path) -> dict[str, Any]:
    """Whether the declared lens of a family is what running both models shows, and what is said."""
    torch.manual_seed(0)
    module = KINDS[name](config) if name in KINDS else hub.AutoModelForCausalLM.from_config(config)
    module.save_pretrained(folder, save_original_format=False)
    inputs = given(config)
    rules: list[Any] = []
    told: dict[str, Any] = {}
    for rule, words in KEPT_AS_USED.get(name.partition(", ")[2], ()):
        rules.append(rule)
        told |= words
    lens = families.family_of(folder).lens_of(folder, families.view_of(folder), rules=rules)
    view = families.begun(folder, lens, **told)
    start = time.process_time()

    def outputs(model: Any) -> Any:
        tensors = {key: torch.tensor(value) for key, value in inputs.items()}
        return model(**tensors).logits

    def run(model: Any) -> Any:
        return model(**{key: jax.numpy.asarray(value) for key, value in inputs.items()})

    source = cs.discovery.torch_model(module, outputs)
    try:
        found = assert_discovered(lens, None, source, run, view)
    except AssertionError as error:
        return {"right": False, "said": [f"{name}: {error}"]}
    said = [f"{name}: {found.status}, {time.process_time() - start:.0f} CPU s"]
    values = [rule for rule in found.rules if str(rule).startswith(("shift(", "scale("))]
    said += [f"    {line}" for line in (*values, *found.open, *found.notes)]
    other = found.lens([SETTLED[name]] if name in SETTLED else [])
    weights = cs.hf.load(folder)
    one, two = (
        jax.tree.leaves_with_path(each.get(weights, onto=nnx.state(view))) for each in (lens, other)
    )
    unlike = [
        jax.tree_util.keystr(path)
        for (path, x), (other_path, y) in zip(one, two, strict=True)
        if path != other_path or np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]
    nnx.update(view, other.get(weights, onto=nnx.state(view)))
    with torch.no_grad():
        gap = families.far(run(view), outputs(module.double().eval()).numpy())
    said.append(
        f"    {len(one)} leaves, other than by the lens that was found: {', '.join(unlike) or 'none'};"
        f" logits differ by {gap:.0e}"
    )
    return {"right": not unlike and gap < families.MOST, "said": said}


def main() -> int:
    """Discovers all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--kept", type=Path, help="a file of outcomes: these are not tried again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = Kept(options.kept, SOURCES)
    failed = False
    with tempfile.TemporaryDirectory() as path:
        for name in options.names or CONFIGS:
            settings = name, CONFIGS[name], Path(path) / name
            outcome = kept.outcome(f"family {name}", lambda each=settings: tried(*each))
            print(*outcome["said"], sep="\n", flush=True)
            failed |= not outcome["right"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

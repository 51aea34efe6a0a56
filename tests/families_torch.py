"""The part of `families.py` that needs torch: ``families_torch.py make FOLDER`` makes tiny random models of transformers.

``families_torch.py check FOLDER`` loads them, and what was saved beside each under ``NAME again``,
and holds the two against each other bit for bit.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hub

TOKENS = torch.tensor([[1, 5, 3, 9, 15, 0, 2], [7, 7, 1, 4, 12, 11, 10]])
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "vocab_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WIDE = SIZES | {"head_dim": 6}
EXPERTS = WIDE | {"num_local_experts": 3, "num_experts_per_tok": 2}
QWEN_EXPERTS = WIDE | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 4}
GEMMA = WIDE | {"sliding_window": 3, "query_pre_attn_scalar": 5}
GPT2 = {"n_embd": 8, "n_head": 4, "n_layer": 2, "vocab_size": 16, "n_positions": 9}
VIT = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
WHISPER = {
    "vocab_size": 16,
    "num_mel_bins": 6,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 10,
    "max_source_positions": 5,
    "max_target_positions": 7,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
BFLOAT16 = torch.bfloat16


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to make.

    Attributes:
        config: What it is of.
        dtype: That of its weights.
        words: How it is saved.
        kind: The class of transformers that loads it.
    """

    config: Any
    dtype: torch.dtype = torch.float32
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    kind: Any = hub.AutoModelForCausalLM

    def load(self, folder: Path, dtype: torch.dtype) -> Any:
        return self.kind.from_pretrained(folder, dtype=dtype).eval()


class BareVit(hub.ViTModel):
    """One without a pooler."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, add_pooling_layer=False)


MEMORY = {"save_original_format": False}
CASES = {
    "llama": Case(hub.LlamaConfig(**SIZES)),
    "llama, tied": Case(hub.LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama, wide heads": Case(hub.LlamaConfig(**WIDE)),
    "llama, bfloat16": Case(hub.LlamaConfig(**SIZES), BFLOAT16),
    "llama, several files": Case(hub.LlamaConfig(**SIZES), words={"max_shard_size": 2000}),
    "llama, no prefix": Case(hub.LlamaConfig(**SIZES), kind=hub.AutoModel),
    "mistral": Case(hub.MistralConfig(**SIZES, head_dim=2, sliding_window=None)),
    "qwen2": Case(hub.Qwen2Config(**SIZES)),
    "qwen2, tied": Case(hub.Qwen2Config(**SIZES, tie_word_embeddings=True), BFLOAT16),
    "qwen3": Case(hub.Qwen3Config(**WIDE)),
    "qwen3, tied": Case(hub.Qwen3Config(**WIDE, tie_word_embeddings=True), BFLOAT16),
    "gemma2": Case(hub.Gemma2Config(**GEMMA)),
    "gemma2, bfloat16": Case(hub.Gemma2Config(**GEMMA), BFLOAT16),
    "gemma2, untied": Case(hub.Gemma2Config(**GEMMA, tie_word_embeddings=False)),
    "gemma3": Case(
        hub.Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"])
    ),
    "gemma3, bfloat16": Case(hub.Gemma3TextConfig(**GEMMA), BFLOAT16),
    "mixtral": Case(hub.MixtralConfig(**EXPERTS)),
    "mixtral, stacked": Case(hub.MixtralConfig(**EXPERTS), words=MEMORY),
    "mixtral, tied": Case(hub.MixtralConfig(**EXPERTS, tie_word_embeddings=True), BFLOAT16),
    "mixtral, tied, stacked": Case(
        hub.MixtralConfig(**EXPERTS, tie_word_embeddings=True), BFLOAT16, MEMORY
    ),
    "qwen3_moe": Case(hub.Qwen3MoeConfig(**QWEN_EXPERTS)),
    "qwen3_moe, shares of one": Case(hub.Qwen3MoeConfig(**QWEN_EXPERTS, norm_topk_prob=True)),
    "qwen3_moe, stacked": Case(hub.Qwen3MoeConfig(**QWEN_EXPERTS), words=MEMORY),
    "qwen3_moe, tied": Case(hub.Qwen3MoeConfig(**QWEN_EXPERTS, tie_word_embeddings=True), BFLOAT16),
    "gpt2": Case(hub.GPT2Config(**GPT2, **ENDS)),
    "gpt2, narrow, bfloat16": Case(hub.GPT2Config(**GPT2, **ENDS, n_inner=12), BFLOAT16),
    "gpt2, untied": Case(hub.GPT2Config(**GPT2, **ENDS, tie_word_embeddings=False)),
    "gpt2, no prefix": Case(hub.GPT2Config(**GPT2, **ENDS), kind=hub.AutoModel),
    "vit": Case(hub.ViTConfig(**VIT), kind=hub.ViTForImageClassification),
    "vit, as in memory": Case(
        hub.ViTConfig(**VIT), words=MEMORY, kind=hub.ViTForImageClassification
    ),
    "vit, bfloat16": Case(hub.ViTConfig(**VIT), BFLOAT16, kind=hub.ViTForImageClassification),
    "vit, pooled": Case(hub.ViTConfig(**VIT, pooler_output_size=3), kind=hub.ViTModel),
    "vit, pooled, as in memory": Case(hub.ViTConfig(**VIT), words=MEMORY, kind=hub.ViTModel),
    "vit, bare": Case(hub.ViTConfig(**VIT), kind=BareVit),
    "vit, bare, as in memory": Case(hub.ViTConfig(**VIT), words=MEMORY, kind=BareVit),
    "whisper": Case(hub.WhisperConfig(**WHISPER, **ENDS), kind=hub.WhisperForConditionalGeneration),
    "whisper, bfloat16": Case(
        hub.WhisperConfig(**WHISPER, **ENDS), BFLOAT16, kind=hub.WhisperForConditionalGeneration
    ),
    "whisper, no prefix": Case(hub.WhisperConfig(**WHISPER, **ENDS), kind=hub.WhisperModel),
}


def drawn(case: Case, seed: int) -> Any:
    """A model with random weights: scales of norms too, which begin as ones or zeros."""
    torch.manual_seed(seed)
    make = getattr(case.kind, "from_config", case.kind)
    model = make(case.config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight.ndim == 1) + 0.4 * torch.randn(weight.shape))
    return model.to(case.dtype)


def inputs(case: Case) -> dict[str, torch.Tensor]:
    """What a model is given, by the names that it has for it."""
    kind, draw = case.config.model_type, torch.Generator().manual_seed(0)
    if kind == "vit":
        return {"pixel_values": torch.randn((2, 3, 8, 8), generator=draw)}
    if kind == "whisper":
        heard = torch.randn((2, 6, 10), generator=draw)
        return {"input_features": heard, "decoder_input_ids": TOKENS}
    return {"input_ids": TOKENS}


def computed(case: Case, model: Any) -> dict[str, torch.Tensor]:
    """Inputs and logits of a model; where it has no head, that is the embedding."""
    given = inputs(case)
    with torch.no_grad():
        found = model(**given)
    if "logits" in found:
        logits = found.logits
    elif case.config.model_type == "vit":
        logits = found.pooler_output if found.pooler_output is not None else found[0]
    else:
        logits = found[0] @ model.get_input_embeddings().weight.T
    return {**given, "logits": logits}


def make(root: Path, names: Sequence[str]) -> None:
    for name in names:
        case, seed = CASES[name], [*CASES].index(name)
        drawn(case, seed).save_pretrained(root / name, **case.words)
        found = computed(case, case.load(root / name, torch.float32))
        np.savez(
            root / name / "expected.npz", **{key: x.detach().numpy() for key, x in found.items()}
        )


def check(root: Path, names: Sequence[str]) -> None:
    for name in names:
        case = CASES[name]
        left, right = (
            case.load(root / f"{name}{end}", case.dtype).state_dict() for end in ("", " again")
        )
        assert left.keys() == right.keys(), name
        bits = torch.int16 if case.dtype == BFLOAT16 else torch.int32
        wrong = [k for k in left if not torch.equal(left[k].view(bits), right[k].view(bits))]
        assert not wrong, (name, wrong)


if __name__ == "__main__":
    torch.set_num_threads(1)
    hub.logging.set_verbosity_error()
    hub.utils.logging.disable_progress_bar()
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:] or [*CASES])

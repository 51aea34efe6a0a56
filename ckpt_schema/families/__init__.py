"""Families of models: how Hugging Face has each, how a model of NNX does, and the lens between the two."""

from __future__ import annotations

from ckpt_schema.families import gemma2 as gemma2
from ckpt_schema.families import gemma3 as gemma3
from ckpt_schema.families import gpt2 as gpt2
from ckpt_schema.families import llama as llama
from ckpt_schema.families import mixtral as mixtral
from ckpt_schema.families import qwen2 as qwen2
from ckpt_schema.families import qwen3 as qwen3
from ckpt_schema.families import qwen3_moe as qwen3_moe
from ckpt_schema.families import vit as vit
from ckpt_schema.families import whisper as whisper

__all__ = [
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "vit",
    "whisper",
]

"""Families of models: how Hugging Face has each, how a model of NNX does, and the lens between the two."""

from __future__ import annotations

from ckpt_schema.families import llama as llama

__all__ = ["llama"]

"""Folders of Hugging Face, read, restored and written without torch: safetensors files, one or several with an index."""

from __future__ import annotations

from ckpt_schema.hf._load import load as load
from ckpt_schema.hf._load import metadata as metadata
from ckpt_schema.hf._restore import restore as restore
from ckpt_schema.hf._save import save as save
from ckpt_schema.hf._stored import as_stored as as_stored

__all__ = ["as_stored", "load", "metadata", "restore", "save"]

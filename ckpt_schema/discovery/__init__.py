"""A lens found by running both models: for models that share not one name."""

from __future__ import annotations

from ckpt_schema.discovery._discovery import Discovery as Discovery
from ckpt_schema.discovery._discovery import Evidence as Evidence
from ckpt_schema.discovery._discovery import discover as discover
from ckpt_schema.discovery._models import DiscoveryError as DiscoveryError
from ckpt_schema.discovery._models import JaxModel as JaxModel
from ckpt_schema.discovery._models import RunnableModel as RunnableModel
from ckpt_schema.discovery._open import Open as Open
from ckpt_schema.discovery._torch import torch_model as torch_model

__all__ = [
    "Discovery",
    "DiscoveryError",
    "Evidence",
    "JaxModel",
    "Open",
    "RunnableModel",
    "discover",
    "torch_model",
]

"""Ready-made schemas: one for each layer of Flax that holds state, Linen's and NNX's, under the same logical names.

A model is declared as a class of such layers, its dims called as the model calls them:
``wi: blocks.nnx.Linear = cs.field(dims={"in_features": "embed", "out_features": "mlp"})``.
"""

from __future__ import annotations

from ckpt_schema.blocks import linen as linen
from ckpt_schema.blocks import nnx as nnx

__all__ = ["linen", "nnx"]

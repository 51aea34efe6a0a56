"""What stands in the checkpoints of ``tests/older/data``; NumPy alone, for old releases import it too."""

from __future__ import annotations

import ml_dtypes
import numpy as np

STEP = 7


def params():
    """The params; the moments are two and three times these."""
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
    bias = np.array([1.5, -0.25, 0.0]).astype(ml_dtypes.bfloat16)
    layers = {f"layers_{i}": {"w": np.full((2,), i + 0.5, np.float32)} for i in range(2)}
    return {"dense": {"kernel": kernel, "bias": bias}, **layers}

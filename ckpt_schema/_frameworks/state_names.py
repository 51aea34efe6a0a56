"""What Flax calls the parts of a train state."""

from __future__ import annotations

__all__ = ["OPTIMIZER_STATE", "STATE_FIELDS", "USUAL_COLLECTION", "WEIGHTS"]

USUAL_COLLECTION = "params"
"""The collection of Linen that a leaf is in of which nobody says another."""

WEIGHTS = "params"
"""The logical name of the model in a layout that is read off a tree, whatever the tree calls it."""

OPTIMIZER_STATE = "opt_state"
"""That of the optimizer state, and its key in a train state."""

STATE_FIELDS = ("step", WEIGHTS, OPTIMIZER_STATE)
"""The fields of a train state that hold arrays."""

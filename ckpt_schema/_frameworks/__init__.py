"""What Linen, NNX and optax make of a model's leaves: containers, envelopes, Variable types.

The only place that imports flax.
"""

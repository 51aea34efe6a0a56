"""Blocks of real leaves: read, changed and written; on NumPy's arrays, on jax's, and inside of programs."""

"""Blocks of real leaves: read, changed and written.

On NumPy's arrays, on jax's, and inside of programs.
"""

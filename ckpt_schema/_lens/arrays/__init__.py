"""Blocks of real leaves: read, changed and written.

On NumPy's arrays, on jax's, and inside of programs. In the order in which a translation meets them:

- `blocks` is the data: which elements of which leaf become which of another, and with what codec.
- `checks` looks for what would be lost, `comparison` for the first element that differs.
- `execution` makes the results: with `moves` on NumPy's arrays, with `programs` on jax's. `frames`
  shows a block as a slice, and `shardings` and `axes` say where a result is.
- `conversions` changes values by `floats`, as integers, so that all backends make the same bits.
- `fold_tasks` does this where a leaf stands for several, by `fold_arithmetic`.
- `own_bits` leaves a leaf alone that still is what a lens made of it; `donation` frees inputs.
"""

"""Inputs that nobody should give: each must end in an error of the library's own, or in the right result.

A case is a kind and a seed. `trees` malforms states, `declarations` and `rules` draw what users write, `targets` draws what a
restore and a save are given, `damage` breaks checkpoints; `attempts` runs one case and says how it ended.
"""

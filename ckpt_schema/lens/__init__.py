"""Lenses between two layouts: small edits of leaves, their derivation from types, and their compiled execution."""

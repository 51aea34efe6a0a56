"""Malformed trees, declarations and rules, and damaged checkpoints: nothing raw, nothing silent."""

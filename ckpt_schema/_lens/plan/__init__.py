"""From cells and two trees to list operations: compiled once for trees of one structure."""

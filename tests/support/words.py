"""What a lens does to its leaves, in the words of its table."""

from __future__ import annotations

import ckpt_schema as cs
from ckpt_schema._lens.description import described


def done(lens: cs.Lens) -> list[str]:
    """What happens to each joined leaf; nothing where it only moves."""
    rows = lens.source.rows, lens.view.rows
    return [described(join, rows) for join in lens.joins]

"""The lines that say on which axes layers are stacked, as an error prints them to be pasted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax

from ckpt_schema._lens.read_sides import Axes

__all__ = ["ScanLine", "scan_lines"]

ScanLine = Mapping[str, tuple[Axes, Axes]]
"""For a node, and for what is in it and stacked otherwise, the axes on both sides."""

_SHOWN = 4
"""How many lines a message offers where several settle it."""

_KIND = "nnx.{}"


def scan_lines(readings: Iterable[ScanLine]) -> str:
    """The first of the lines that say readings."""
    written: list[str] = []
    for stacks in readings:
        cells = [f"{path!r}: {_of_both(axes)}" for path, axes in stacks.items()]
        written.append(f"scan={{{', '.join(cells)}}}")
    more = f" or another of {len(written)}" if len(written) > _SHOWN else ""
    return " or ".join(written[:_SHOWN]) + more


def _of_both(axes: tuple[Axes, Axes]) -> str:
    """The axes on both sides as they are pasted: one where one side alone is stacked."""
    both = _written(axes[0]), _written(axes[1])
    if axes[0] is None or axes[1] is None:
        return both[axes[0] is None]
    return f"({both[0]}, {both[1]})"


def _written(axes: Axes) -> str:
    """Axes as they are pasted."""
    if not isinstance(axes, Mapping):
        return repr(axes)
    cells = [f"{_kind(kind)}: {axis}" for kind, axis in axes.items()]
    return f"{{{', '.join(cells)}}}"


def _kind(kind: type | str) -> str:
    """A collection or a Variable type as it is pasted."""
    if not isinstance(kind, type):
        return repr(kind)
    return "jax.Array" if kind is jax.Array else _KIND.format(kind.__name__)

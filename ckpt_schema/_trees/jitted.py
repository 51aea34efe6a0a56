"""Compiled programs: as many as are in use, and no more.

jax keeps what it has compiled for a function as long as that function lives, for every shape that
it ever met. So a function here is jitted anew for each kind of arguments, and of these the least
recently used are let go with all that was compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["Program"]

_KEPT = 512  # an edit takes about five programs: those of a hundred shapes of leaves, of about 1 MB each on a CPU


class Program:
    """A jitted function, compiled once per kind of arguments while it is among those in use."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        """Nothing is compiled yet; ``options`` are those of ``jax.jit``."""
        self._function, self._options = function, options

    def __call__(self, *values: Any) -> Any:
        """What the function returns."""
        return _jitted(self, tuple(map(_kind, values)))(*values)

    def jitted(self) -> Any:
        """The function, jitted anew: jax tells what it has compiled by the function that it is given."""
        function = self._function
        return jax.jit(lambda *values: function(*values), **self._options)


@functools.lru_cache(maxsize=_KEPT)
def _jitted(program: Program, kinds: tuple[Any, ...]) -> Any:
    return program.jitted()


def _kind(value: Any) -> Any:
    """What jax compiles anew for: shape, dtype and sharding."""
    return (
        getattr(value, "shape", ()),
        getattr(value, "dtype", type(value)),
        getattr(value, "weak_type", None),
        getattr(value, "sharding", None),
    )

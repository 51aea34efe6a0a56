"""What edits would change in values, found before anything is edited."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ckpt_schema import leaves
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.lens import stages
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.partial import Cast, Partial, Unpad

__all__ = ["narrowed", "verify_values"]


def verify_values(
    jobs: Sequence[tuple[Chain, Mapping[str, int], Sequence[Any], Sequence[str]]],
) -> None:
    """Raises unless every value survives its edits.

    Args:
        jobs: Edits, the sizes they need, their input leaves and these leaves' key paths.

    Raises:
        ConformanceError: With every leaf whose values do not fit, or are not known under a trace.
    """
    faults: list[Mismatch] = []
    for chain, sizes, values, names in jobs:
        if not any(isinstance(edit, Partial) for edit in chain.edits):
            continue
        for value, name in zip(values, names, strict=True):
            faults += _lost(chain, sizes, value, name)
    if faults:
        raise ConformanceError("values cannot be carried over exactly", faults)


def narrowed(path: str, dtype: str) -> Mismatch | None:
    """The fault where jax would make a leaf of another dtype: it has no 64-bit arrays unless told to."""
    made = None if dtype.startswith("key<") else jax.dtypes.canonicalize_dtype(dtype)
    if made is None or made == jnp.dtype(dtype):
        return None
    found = f"{made}, which is what jax makes of it"
    return Mismatch(
        path,
        "dtype",
        f"an array of {dtype}",
        found,
        'set jax.config.update("jax_enable_x64", True)',
    )


def _lost(chain: Chain, sizes: Mapping[str, int], value: Any, path: str) -> Iterator[Mismatch]:
    """What does not survive. Padding is cut off before anything else is done; the rest treats each element alike."""
    partial = [edit for edit in chain.edits if isinstance(edit, Partial)]
    for edit in partial:
        fault = _fault(edit, sizes, value, path)
        if fault is not None:
            yield fault
            return
        if isinstance(edit, Unpad) and edit is not partial[-1]:
            value = _unpadded(edit, sizes, value)


def _unpadded(edit: Unpad, sizes: Mapping[str, int], value: Any) -> Any:
    if leaves.is_abstract(value):
        return jax.eval_shape(functools.partial(edit.one, sizes=sizes), value)
    return (
        stages.run(Chain((edit,)), [value], sizes)[0]
        if isinstance(value, jax.Array)
        else edit.one(value, sizes)
    )


def _fault(edit: Partial, sizes: Mapping[str, int], value: Any, path: str) -> Mismatch | None:
    """What one edit would change in a leaf."""
    if (
        isinstance(edit, Cast)
        and not isinstance(value, (np.ndarray, np.generic))
        and (fault := narrowed(path, edit.view))
    ):
        return fault
    if leaves.is_abstract(value) or (not leaves.is_scalar(value) and 0 in value.shape):
        return None
    kind, expected = type(edit).__name__.lower(), edit.expected(sizes)
    if isinstance(value, Tracer):
        return Mismatch(
            path,
            kind,
            expected,
            "a tracer",
            f"{edit} is checked by value: translate outside of jit",
        )
    found = edit.found(value, sizes)
    return None if found is None else Mismatch(path, kind, expected, *found)

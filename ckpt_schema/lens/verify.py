"""What edits would change in values, found before anything is edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ckpt_schema import leaves, placement
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.lens import stages
from ckpt_schema.lens.edits import Chain
from ckpt_schema.lens.partial import Cast, Partial, Unpad
from ckpt_schema.lens.stacks import Beside, edits_of

__all__ = ["narrowed", "verify_values"]


def verify_values(
    jobs: Sequence[tuple[Chain, Mapping[str, int], Sequence[Any], Sequence[str]]],
    known: Sequence[Mismatch] = (),
) -> None:
    """Raises unless every value survives its edits.

    Args:
        jobs: Edits, the sizes they need, their input leaves and these leaves' key paths.
        known: What is wrong besides.

    Raises:
        ConformanceError: With every leaf whose values do not fit, or are not known under a trace.
    """
    faults, wrong = [*known], {fault.path for fault in known}
    for chain, sizes, values, names in jobs:
        if wrong.isdisjoint(names) and any(isinstance(edit, Partial) for edit in edits_of(chain)):
            faults += _faults(chain, sizes, values, names)
    if faults:
        raise ConformanceError("values cannot be carried over exactly", faults)


def narrowed(path: str, dtype: str) -> Mismatch | None:
    """The fault where jax would make a leaf of another dtype: it has no 64-bit arrays unless told to."""
    if not leaves.is_narrowed(dtype):
        return None
    found = f"{jax.dtypes.canonicalize_dtype(dtype)}, which is what jax makes of it"
    return Mismatch(
        path,
        "dtype",
        f"an array of {dtype}",
        found,
        'set jax.config.update("jax_enable_x64", True)',
    )


def _faults(
    chain: Chain, sizes: Mapping[str, int], values: Sequence[Any], names: Sequence[str]
) -> Iterator[Mismatch]:
    """What does not survive of all leaves that go into a chain."""
    at = next((n for n, edit in enumerate(chain.edits) if isinstance(edit, Beside)), None)
    for value, name in zip(values, names, strict=True):
        yield from _lost(Chain(chain.edits[:at]), sizes, value, name)
    if at is None:
        return
    # Each chain has leaves of its own there: those that the edits before make, which are made for this check alone.
    before, beside = Chain(chain.edits[:at]), chain.edits[at]
    assert isinstance(beside, Beside)
    inner = _made(before, sizes, values)
    told = list(names) if len(names) == len(inner) else [", ".join(names)] * len(inner)
    for each, own in beside.dealt([*zip(inner, told, strict=True)], sizes):
        faults = list(_faults(each, sizes, [value for value, _ in own], [name for _, name in own]))
        yield from faults
        if faults:
            return
    after = Chain(chain.edits[at + 1 :])
    if any(isinstance(edit, Partial) for edit in edits_of(after)):
        made = _made(Chain((beside,)), sizes, inner)
        yield from _faults(after, sizes, made, [", ".join(names)] * len(made))


def _made(chain: Chain, sizes: Mapping[str, int], values: Sequence[Any]) -> list[Any]:
    """What a chain makes of leaves."""
    if not chain:
        return list(values)
    if any(leaves.is_abstract(v) or isinstance(v, Tracer) for v in values):
        return jax.eval_shape(lambda *xs: chain.apply(xs, sizes), *values)
    if any(isinstance(v, jax.Array) for v in values):
        return stages.run(chain, values, sizes)
    return chain.apply([np.asarray(v) for v in values], sizes)


def _lost(chain: Chain, sizes: Mapping[str, int], value: Any, path: str) -> Iterator[Mismatch]:
    """What does not survive. Padding is cut off before anything else is done; the rest treats each element alike."""
    partial = [edit for edit in chain.edits if isinstance(edit, Partial)]
    for edit in partial:
        fault = _fault(edit, sizes, value, path)
        if fault is not None:
            yield fault
            return
        if isinstance(edit, Unpad) and edit is not partial[-1]:
            (value,) = _made(Chain((edit,)), sizes, [value])


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
    found = edit.found(placement.near(value), sizes)
    return None if found is None else Mismatch(path, kind, expected, *found)

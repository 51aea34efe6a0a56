"""What is wrong with one leaf that was found where a row of a layout is.

`conformance` asks for each kind of leaf once, when all dims are bound, and writes the path into the fault.
The first thing that is wrong is told: of a leaf of another rank the sizes say nothing.
"""

from __future__ import annotations

from typing import Any

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import Binder
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.table import Row
from ckpt_schema._trees import foreign
from ckpt_schema.errors import Mismatch

__all__ = ["expected_leaf", "leaf_fault", "open_dim"]


def leaf_fault(
    row: Row,
    value: Any,
    found: tuple[tuple[int, ...], str] | None,
    binder: Binder,
    dtype: str | None = None,
) -> Mismatch | None:
    """What is wrong with one found leaf, its path left open; None when nothing is.

    Args:
        row: The row.
        value: The leaf.
        found: Its shape and dtype; None of what is no leaf.
        binder: The dims as the tree binds them.
        dtype: Where the row is any float, the one that its leaves are.
    """
    leaf = row.stored
    if found is None:
        none = "a leaf is an array, a ShapeDtypeStruct or a Python number"
        hint = foreign.leaf_cure(value) or none
        return Mismatch("", "leaf", expected_leaf(leaf, binder), leaves.describe(value), hint)
    # A Python number has no dtype of its own: what counts is whether the leaf's dtype holds it.
    if leaves.is_scalar(value):
        return _number_fault(leaf, value, binder)
    shape, found_dtype = found
    if found_dtype != (dtype or leaf.dtype):
        return _dtype_fault(leaf, value, found_dtype, binder, dtype)
    if len(shape) != len(leaf.dims):
        hint = f"rank {len(leaf.dims)} is declared"
        expected, described = expected_leaf(leaf, binder), leaves.describe(value)
        return Mismatch("", "shape", expected, described, hint)
    is_other, reason = False, ""
    for size, dim in zip(shape, leaf.dims, strict=True):
        known = dims_.size_of(dim, binder.sizes)
        if known is not None:
            is_other = is_other or known != size
        # Though 3*heads is not bound, it is not 7.
        elif not reason:
            reason = open_dim(dim, size, binder)
    if not is_other and not reason:
        return None
    # Where each size was bound: the wrong leaf may be the other one.
    hint = reason or "".join(binder.notes(dims_.dim_names(leaf.dims)))
    return Mismatch("", "shape", expected_leaf(leaf, binder), leaves.describe(value), hint)


def open_dim(dim: dims_.Dim, size: int, binder: Binder) -> str:
    """Why ``size`` cannot be a product whose names are not all bound; empty when it can."""
    if dims_.size_of(dim, binder.sizes) is not None:
        return ""
    if len(dim) == 1 and isinstance(dim[0], dims_.Sum):
        # heads*8+4 is 4 at least. What is left of the size has to be a heads*8.
        least = sum(dims_.size_of(term, binder.sizes) or 0 for term in dim[0].terms)
        if size < least:
            return f"{size} is less than {least}, which is known of {dims_.format_dim(dim)}"
        rest = [term for term in dim[0].terms if dims_.size_of(term, binder.sizes) is None]
        return open_dim(rest[0], size - least, binder) if len(rest) == 1 else ""
    # A known factor of 0 counts as 1 here: nothing can be said of its quotient.
    known, unbound = 1, list[dims_.DimFactor]()
    for factor in dim:
        factor_size = dims_.size_of((factor,), binder.sizes)
        if factor_size is None:
            unbound.append(factor)
        known *= factor_size or 1
    if size % known:
        return f"{size} is no multiple of {known} in {dims_.format_dim(dim)}"
    # A name may be any quotient; a sum may be too small for it.
    if len(unbound) == 1 and isinstance(unbound[0], dims_.Sum):
        return open_dim((unbound[0],), size // known, binder)
    return ""


def _number_fault(leaf: leaves.Leaf, value: Any, binder: Binder) -> Mismatch | None:
    """What is wrong with a Python number; nothing where the leaf's dtype holds its value."""
    if leaves.accepts(leaf, value):
        return None
    # An int that a scalar cannot hold would wrap in a cast; anything else has another dtype.
    is_int = isinstance(value, int) and not isinstance(value, bool)
    kind = "cast" if is_int and not leaf.dims else "dtype"
    hint = "the value must fit the dtype exactly"
    if leaf.is_open:
        hint = "a Python number does not say which float it is: make it an array of one dtype"
    return Mismatch("", kind, expected_leaf(leaf, binder), leaves.describe(value), hint)


def _dtype_fault(
    leaf: leaves.Leaf, value: Any, dtype: str, binder: Binder, others: str | None
) -> Mismatch:
    """What is wrong with the dtype of a leaf; ``others`` are its like in a list, of any float."""
    expected, found = expected_leaf(leaf, binder), leaves.describe(value)
    if leaf.is_key and dtype.startswith("key<"):
        hint = "a key never changes its implementation; declare the one the state has"
        return Mismatch("", "impl", expected, found, hint)
    if leaf.is_key:
        hint = "raw key data: wrap it with jax.random.wrap_key_data(data, impl=...), with the impl it was made with"
        return Mismatch("", "dtype", expected, found, hint)
    if dtype.startswith("key<"):
        hint = 'a typed key: declare Key["..."] or take jax.random.key_data of it'
        return Mismatch("", "dtype", expected, found, hint)
    cast = "nothing is cast silently; cast it yourself, or declare this dtype"
    # Any float is right, but all layers of one row have to be the same one.
    if leaf.is_open and dtype in FORMATS:
        cast = f"all of a list are one dtype, and most are {others}: cast it, or declare it apart"
    hint = foreign.dtype_cure(value, "" if leaf.is_open else leaf.dtype) or cast
    return Mismatch("", "dtype", expected, found, hint)


def expected_leaf(leaf: leaves.Leaf, binder: Binder) -> str:
    """A leaf as it is declared, with the sizes that are bound."""
    return leaf.spelled(binder.sizes)

"""Annotations of leaves: what jaxtyping says of an array, and what stands for a typed PRNG key."""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING, Any

import jaxtyping

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.leaves import ANY_FLOAT, Leaf, OrNone, key_dtype
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["Key", "alternatives", "from_annotation", "spelled_annotation", "strip_optional"]

_AnyFloat: Any = jaxtyping.Float  # which a checker takes for an alias
_FLOATS: set[str] = set(_AnyFloat.dtypes)

if TYPE_CHECKING:
    from typing import (
        Literal as Key,
    )  # to a type checker, Key["urbg"] is a legal annotation and no forward reference
else:

    class Key:
        """The annotation of a typed PRNG key: ``Key["urbg"]``, or with dims ``Key["urbg", "layers"]``."""

        def __class_getitem__(cls, item: str | tuple[str, str]) -> Leaf:
            """The leaf for an implementation's tag and, if given, a dimension string."""
            impl, text = item if isinstance(item, tuple) else (item, "")
            return _leaf(text, key_dtype(impl))


def _leaf(text: str, dtype: str) -> Leaf:
    """The leaf of a dimension string."""
    dims, names = dims_.parse_axes(text)
    # Without labels an axis is called as its dim is spelled, which a leaf knows by itself.
    return Leaf(dims, dtype, names if any(name.label for name in names) else ())


def from_annotation(annotation: Any) -> Leaf | None:
    """The leaf a jaxtyping annotation (or ``Key[...]``) declares, or None when it is neither.

    Raises:
        SchemaError: The annotation allows several dtypes, or an axis has no size.

    Example:
        >>> from jaxtyping import Array, Float, Float32
        >>> str(from_annotation(Float32[Array, "embed 3*heads"]))
        'float32[embed 3*heads]'
        >>> str(from_annotation(Float32[Array, "in=embed out=embed"]))
        'float32[in=embed out=embed]'
        >>> from_annotation(Float[Array, " embed"]).is_open
        True
    """
    # `Key[...]` is a leaf already when Python has read it.
    if isinstance(annotation, Leaf):
        return annotation
    # jaxtyping has no public way to ask what an annotation is, other than these two attributes.
    dim_str, dtypes = getattr(annotation, "dim_str", None), getattr(annotation, "dtypes", None)
    if not isinstance(dim_str, str) or dtypes is None:
        return None
    return _leaf(dim_str, _one_dtype(annotation, dtypes))


def _one_dtype(annotation: Any, dtypes: Any) -> str:
    # What is no list is jaxtyping's mark for any dtype at all, as `Shaped` has it.
    names: set[str] = set()
    if isinstance(dtypes, (tuple, list)):
        for name in dtypes:
            # jaxtyping knows the bool of NumPy by both of its names.
            names.add("bool" if name == "bool_" else name)
    if len(names) == 1 and "prng_key" not in names:
        return names.pop()
    # Exactly the floats of `Float`: a leaf of `Inexact` could be complex, and is none that is open.
    if names == _FLOATS:
        return ANY_FLOAT
    what = "several dtypes" if names else "any dtype"
    cure = "write one dtype, such as Float32 or BFloat16, or Float for any float"
    if names == {"prng_key"}:
        what, cure = "a key of no known implementation", 'write ckpt_schema.Key["urbg"]'
    fault = Mismatch(str(annotation), "declaration", "exactly one dtype", what, cure)
    raise SchemaError(f"{annotation} does not say which dtype the leaf has", [fault])


def strip_optional(annotation: Any) -> tuple[Any, bool]:
    """An annotation without ``| None``, and whether it had that."""
    if isinstance(annotation, OrNone):
        return annotation.leaf, True
    several = alternatives(annotation)
    members = [one for one in several if one is not type(None)]
    if len(members) == 1 and len(several) == 2:
        return members[0], True
    return annotation, False


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """What ``A | B`` is one of; of any other annotation itself alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def spelled_annotation(annotation: Any) -> str:
    """An annotation as messages show it."""
    return annotation.__qualname__ if isinstance(annotation, type) else repr(annotation)

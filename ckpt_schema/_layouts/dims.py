"""Dimension strings, the dims they denote, and the binding of names to sizes.

A dim is a product of names and integers, major factor first: ``3*heads*head_dim``. Order matters, for it says how the axis
splits. An axis that several parts share one after the other is a sum of products: ``heads*head_dim+2*kv_heads*head_dim``.
Names bind across a whole tree: one name, one size; a conflict names both origins.

Two axes of one leaf may come to have the same dim: ``inputs outputs`` where a class is used with ``dims=`` that calls both
``embed``. What the class itself calls them, or jaxtyping's label in ``in=embed out=embed``, still tells them apart.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "EITHER",
    "AxisName",
    "Binder",
    "Dim",
    "DimFactor",
    "Dims",
    "Sum",
    "add",
    "dim_names",
    "factors",
    "format_axes",
    "format_dim",
    "format_dims",
    "is_name",
    "known_dim",
    "own_names",
    "parse_axes",
    "parse_dims",
    "renamed_axes",
    "renamed_dims",
    "size_of",
    "sizes_of",
    "verify_sizes",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Sum:
    """A factor that is a sum: parts of an axis, one after the other.

    Attributes:
        terms: What is added, each a product.
    """

    terms: tuple[Dim, ...]

    def __str__(self) -> str:
        """Its spelling: ``heads+2*kv_heads``."""
        return "+".join(map(format_dim, self.terms))


DimFactor = str | int | Sum
"""What an axis is a product of."""

Dim = tuple[DimFactor, ...]
"""The factors of one axis, major first; ``()`` never occurs."""

Dims = tuple[Dim, ...]
"""One dim per axis."""


@dataclasses.dataclass(frozen=True, slots=True)
class AxisName:
    """What the class that declares a leaf calls one axis of it, whatever ``dims=`` call it further up.

    Attributes:
        factors: For each factor of the axis as it is now: the factor of the class's own that it is, or is a part of.
        label: What jaxtyping's ``label=`` calls the whole axis; empty where it has none.
    """

    factors: tuple[str, ...]
    label: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The name of each factor: that of the whole axis where it has a label."""
        return (self.label,) * len(self.factors) if self.label else self.factors

    def __str__(self) -> str:
        """The name of the axis: its label, or the product that the class wrote."""
        return self.label or "*".join(dict.fromkeys(self.factors))


EITHER = " or "
"""What stands between the names that an axis may have of which nobody can say which one it has."""

LARGEST = 10**18 - 1
"""The largest size of an axis that can be written; no array is larger."""

# To jaxtyping, a name with a leading underscore is anonymous: it would have no size.
_FACTOR = re.compile(r"[A-Za-z]\w*|\d{1,18}")

_WORD = re.compile(r"[\w.]+|\S")
_DEEPEST = 20  # parentheses in parentheses: no axis has more


def is_name(text: str) -> bool:
    """Whether ``text`` is the name of one dim."""
    return _FACTOR.fullmatch(text) is not None and not text.isdecimal()


def parse_dims(text: str) -> Dims:
    """The dims that a jaxtyping dimension string denotes.

    Args:
        text: Axes separated by blanks; each a name, an integer, a product of them with ``*``, or a sum of products with ``+``.

    Raises:
        SchemaError: An axis is variadic, anonymous, broadcastable or no such sum. A layout gives every axis a size.

    Example:
        >>> parse_dims("embed 3*heads*head_dim")
        (('embed',), (3, 'heads', 'head_dim'))
        >>> format_dims(parse_dims("q+2*kv 6+2"))
        'q+2*kv 8'
    """
    return tuple(_parse_dim(axis, text) for axis in text.split())


def _parse_dim(axis: str, whole: str) -> Dim:
    dim = _read_axis(axis)
    if dim is None:
        hint = (
            "write names, integers, products and sums such as 3*heads*head_dim or groups*(per+2)*dim; "
            "'...', '_', '*x', '#x' and '_x' have no size"
        )
        expected = "an axis that is a product of names, integers and sums in parentheses"
        fault = Mismatch(repr(whole), "declaration", expected, repr(axis), hint)
        raise SchemaError(f"{whole!r} is no dimension string of a layout", [fault])
    return dim


@functools.lru_cache(maxsize=1024)  # few axes are all of a large model's
def _read_axis(axis: str) -> Dim | None:
    return _Reader(axis).axis()


class _Reader:
    """Reads one axis from left to right: a sum of products, whose factors may be sums in parentheses."""

    def __init__(self, text: str) -> None:
        self._words = _WORD.findall(text)
        self._whole = "".join(self._words) == text

    def axis(self) -> Dim | None:
        """The axis; None where the text is none."""
        summed = self._sum(0) if self._whole else None
        return None if summed is None or self._words else summed

    def _sum(self, depth: int) -> Dim | None:
        terms: list[Dim] = []
        # Each parenthesis is a call of its own: without a bound, many of them end Python's stack.
        while depth <= _DEEPEST:
            term = self._product(depth)
            if term is None:
                return None
            terms.append(term)
            if not self._takes("+"):
                return add(terms)
        return None

    def _product(self, depth: int) -> Dim | None:
        factors: Dim = ()
        while True:
            factor = self._factor(depth)
            if factor is None:
                return None
            factors += factor
            if not self._takes("*"):
                return factors

    def _factor(self, depth: int) -> Dim | None:
        if self._takes("("):
            inner = self._sum(depth + 1)
            return inner if inner is not None and self._takes(")") else None
        word = self._words.pop(0) if self._words else ""
        if _FACTOR.fullmatch(word) is None:
            return None
        return (int(word) if word.isdecimal() else word,)

    def _takes(self, sign: str) -> bool:
        """Whether the next word is this sign, which is read then."""
        is_next = self._words[:1] == [sign]
        if is_next:
            self._words.pop(0)
        return is_next


def parse_axes(text: str) -> tuple[Dims, tuple[AxisName, ...]]:
    """The dims that a jaxtyping dimension string denotes, and what it calls each axis.

    Raises:
        SchemaError: As `parse_dims` does, or a label is no name.

    Example:
        >>> dims, own = parse_axes("in=embed out=2*embed")
        >>> print(format_axes(dims, own))
        in=embed out=2*embed
    """
    dims, names = list[Dim](), list[AxisName]()
    for axis in text.split():
        label, equals, size = axis.rpartition("=")
        if equals and not is_name(label):
            hint = 'write "in=embed out=embed": before = stands one name, which labels the axis'
            fault = Mismatch(repr(text), "declaration", "a name as the label", repr(axis), hint)
            raise SchemaError(f"{text!r} is no dimension string of a layout", [fault])
        dim = _parse_dim(size, text)
        dims.append(dim)
        names.append(AxisName(tuple(map(str, dim)), label))
    return tuple(dims), tuple(names)


def own_names(dims: Iterable[Dim]) -> tuple[AxisName, ...]:
    """What axes are called that nothing has renamed: as their dims are."""
    return tuple(AxisName(tuple(map(str, dim))) for dim in dims)


def add(terms: Sequence[Dim]) -> Dim:
    """The axis that has these parts one after the other; of integers alone, their sum.

    Example:
        >>> print(format_dims(parse_dims("q+k+k groups*(per+1+1)*dim 1+2")))
        q+2*k groups*(per+2)*dim 3
    """
    if len(terms) == 1:
        return terms[0]
    # A sum in a sum is one sum: (q+k)+v has the parts of q+k+v.
    parts: list[Dim] = []
    for term in terms:
        parts += _parts(term)
    whole = Sum(_gathered(parts))
    if len(whole.terms) == 1:
        return whole.terms[0]
    size = size_of((whole,), {})
    return (whole if size is None else size,)


def _gathered(terms: Iterable[Dim]) -> tuple[Dim, ...]:
    """The same terms, those alike that follow each other as one: a sum has one spelling."""
    # How often, and what: q+k+k is (1, q), (2, k). Order matters, so k+q+k stays as it is.
    gathered: list[tuple[int, Dim]] = []
    for term in terms:
        count, rest = (term[0], term[1:]) if isinstance(term[0], int) else (1, term)
        if gathered and gathered[-1][1] == rest:
            count += gathered.pop()[0]
        gathered.append((count, rest))
    # Of a number there is no rest: 1 stays 1, while 1*q is q.
    return tuple(rest if count == 1 and rest else (count, *rest) for count, rest in gathered)


def _parts(term: Dim) -> tuple[Dim, ...]:
    """What a term adds to a sum: the terms of one that is a sum itself."""
    if len(term) == 1 and isinstance(term[0], Sum):
        return term[0].terms
    return (term,)


def format_dim(dim: Dim) -> str:
    """The spelling of one dim: ``3*heads*head_dim``; a sum that is multiplied stands in parentheses."""
    words: list[str] = []
    for factor in dim:
        is_inner = isinstance(factor, Sum) and len(dim) > 1
        words.append(f"({factor})" if is_inner else str(factor))
    return "*".join(words)


def format_dims(dims: Dims, sizes: Mapping[str, int] | None = None) -> str:
    """The spelling of dims, with the sizes that are known: ``embed=512 3*heads``.

    Example:
        >>> format_dims(parse_dims("embed 4"), {"embed": 512})
        'embed=512 4'
    """
    return " ".join(_format_bound(dim, sizes or {}) for dim in dims)


def format_axes(dims: Dims, own: Sequence[AxisName], sizes: Mapping[str, int] | None = None) -> str:
    """The spelling of dims as `format_dims` has it, with what the axes are called where it is a label, or tells twins apart.

    Example:
        >>> dims, own = parse_axes("inputs outputs")
        >>> format_axes(*renamed_axes(dims, own, dict.fromkeys(("inputs", "outputs"), "embed")))
        'inputs=embed outputs=embed'
    """
    # Which of two axes of 1 is which makes no difference: they are no twins.
    every = [factor for factor in factors(dims) if factor != 1]
    twins = len(set(every)) < len(every)
    words: list[str] = []
    for dim, axis in zip(dims, own, strict=True):
        renamed = axis.factors != tuple(map(str, dim))
        head = f"{axis}=" if axis.label or (twins and renamed) else ""
        words.append(head + _format_bound(dim, sizes or {}))
    return " ".join(words)


def _format_bound(dim: Dim, sizes: Mapping[str, int]) -> str:
    known, spelled = size_of(dim, sizes), format_dim(dim)
    # A number says its size itself: 4, and not 4=4.
    is_told = all(isinstance(factor, int) for factor in dim)
    return spelled if known is None or is_told else f"{spelled}={known}"


def verify_sizes(given: object) -> None:
    """Raises unless sizes are given by the names of dims.

    Raises:
        SchemaError: With every name that is none, and every size that is none.

    Example:
        >>> verify_sizes({"embed": 512})
    """
    hint = 'write dims={"embed": 512}'
    faults: list[Mismatch] = []
    if not isinstance(given, Mapping):
        expected = "sizes by the names of dims"
        faults.append(Mismatch("dims", "dims", expected, shown(given), hint))
    else:
        sizes: Mapping[Any, Any] = given
        for name in sizes:
            if not isinstance(name, str):
                found = shown(name)
                faults.append(Mismatch(found, "dims", "the name of a dim", found, hint))
        for name, size in sizes.items():
            # Python takes True for a 1; who writes it means no size.
            if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
                found = shown(size)
                faults.append(Mismatch(str(name), "dims", "a size in elements", found, hint))
    if faults:
        raise SchemaError("dims= is not well formed", faults)


def dim_names(dims: Iterable[Dim]) -> set[str]:
    """Every name that occurs in ``dims``."""
    names: set[str] = set()
    for dim in dims:
        for factor in dim:
            if isinstance(factor, str):
                names.add(factor)
            elif isinstance(factor, Sum):
                names |= dim_names(factor.terms)
    return names


def factors(dims: Dims) -> Dim:
    """All factors of all axes in order: the axes of the array when every product is split."""
    return sum(dims, ())


def renamed_dims(dims: Dims, renames: Mapping[str, str | int]) -> Dims:
    """``dims`` with names replaced, each by an integer or by what a string spells.

    Example:
        >>> format_dims(renamed_dims(parse_dims("depth 3*heads"), {"depth": "6*blocks+rest", "heads": "kv*groups"}))
        '6*blocks+rest 3*kv*groups'
    """
    if not renames:
        return dims
    parsed: dict[str, Dim] = {}
    for name, new in renames.items():
        parsed[name] = (new,) if isinstance(new, int) else parse_dims(new)[0]
    return tuple(_replaced(dim, parsed) for dim in dims)


def _replaced(dim: Dim, renames: Mapping[str, Dim]) -> Dim:
    replaced: list[DimFactor] = []
    for factor in dim:
        if isinstance(factor, Sum):
            # Added anew: with numbers for all of its names, the sum is a number.
            replaced += add([_replaced(term, renames) for term in factor.terms])
        else:
            replaced += renames.get(factor, (factor,)) if isinstance(factor, str) else (factor,)
    return tuple(replaced)


def renamed_axes(
    dims: Dims, own: Sequence[AxisName], renames: Mapping[str, str | int]
) -> tuple[Dims, tuple[AxisName, ...]]:
    """Axes with names in their dims replaced; each keeps what its class calls it.

    An axis that is one name may become several, which are called as they are spelled.
    """
    renamed: list[Dim] = []
    names: list[AxisName] = []
    for dim, called in zip(dims, own, strict=True):
        several = parse_dims(str(renames.get(str(dim[0]), ""))) if len(dim) == 1 else ()
        if len(several) > 1:
            renamed += several
            names += own_names(several)
            continue
        parts: Dim = ()
        kept: tuple[str, ...] = ()
        for factor, name in zip(dim, called.factors, strict=True):
            # Where heads becomes kv*groups, both are parts of what the class calls heads.
            part = renamed_dims(((factor,),), renames)[0]
            parts += part
            kept += (name,) * len(part)
        renamed.append(parts)
        names.append(AxisName(kept, called.label))
    return tuple(renamed), tuple(names)


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """The size of one axis in elements, or None while a factor is unbound."""
    if len(dim) == 1:  # by far the commonest dim
        factor = dim[0]
        if isinstance(factor, int):
            return factor
        return sizes.get(factor) if isinstance(factor, str) else _total(factor, sizes)
    parts = sizes_of([(factor,) for factor in dim], sizes)
    return None if parts is None else math.prod(parts)


def _total(factor: Sum, sizes: Mapping[str, int]) -> int | None:
    parts = sizes_of(factor.terms, sizes)
    return None if parts is None else sum(parts)


def known_dim(dim: Dim, sizes: Mapping[str, int]) -> Dim:
    """The dim with the sizes that are known in the place of names, one number where all are.

    Example:
        >>> known_dim(("heads", "dim"), {"heads": 2}), known_dim(("heads", "dim"), {"heads": 2, "dim": 4})
        ((2, 'dim'), (8,))
    """
    whole = size_of(dim, sizes)
    return renamed_dims((dim,), sizes)[0] if whole is None else (whole,)


def sizes_of(dims: Iterable[Dim], sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape that ``dims`` take under ``sizes``, or None while a name is unbound."""
    shape: list[int] = []
    for dim in dims:
        size = size_of(dim, sizes)
        if size is None:
            return None
        shape.append(size)
    return tuple(shape)


class Binder:
    """Binds names to sizes as shapes are seen, and remembers where each size came from.

    The first sight of a name binds it. A product or sum in which one name is unbound is solved by division and subtraction;
    those that cannot be solved yet are kept and tried again by `settle`.

    Attributes:
        sizes: Names that are bound, with their sizes in elements.
        origins: Where each of these sizes came from.
    """

    def __init__(self, given: Mapping[str, int] | None = None) -> None:
        """Starts from sizes that the caller gave."""
        self.sizes: dict[str, int] = dict(given or {})
        self.origins: dict[str, str] = dict.fromkeys(self.sizes, "argument")
        self._open: list[tuple[Dim, int, str]] = []
        self._seen: dict[Dim, tuple[int, str]] = {}

    def copy(self) -> Binder:
        """A binder that knows what this one knows now."""
        twin = Binder(self.sizes)
        twin.origins = dict(self.origins)
        twin._open, twin._seen = list(self._open), dict(self._seen)
        return twin

    def see(self, dims: Dims, shape: tuple[int, ...], origin: str) -> None:
        """Learns what it can from one leaf of the right rank; contradictions are left for the shape check to report."""
        for dim, size in zip(dims, shape, strict=True):
            self.see_dim(dim, size, origin)

    def see_dim(self, dim: Dim, size: int, origin: str) -> None:
        """Learns what it can from one axis of ``size`` elements."""
        if len(dim) == 1 and not isinstance(dim[0], Sum):
            if isinstance(dim[0], str) and dim[0] not in self.sizes:
                self._bind(dim[0], size, origin)
            return
        # A name that is bound later may make this dim another size than it was seen with: see `broken`.
        self._seen.setdefault(dim, (size, origin))
        if not self._solve(dim, size, origin):
            self._open.append((dim, size, origin))

    def size(self, dim: Dim) -> int | None:
        """The size of ``dim``, or what was first seen of it while a name in it is unbound; None where nothing was."""
        known = size_of(dim, self.sizes)
        return self._seen.get(dim, (None,))[0] if known is None else known

    def broken(self) -> Iterator[tuple[Dim, int, str]]:
        """The products and sums that were seen to be of another size than their names, bound since, make them: seen where."""
        for dim, (size, origin) in self._seen.items():
            if size_of(dim, self.sizes) not in (None, size):
                yield dim, size, origin

    def credit(self, name: str) -> None:
        """Says of every size learned so far that it came from the tree called ``name``, before another tree is seen."""
        for dim, origin in self.origins.items():
            if origin != "argument":
                self.origins[dim] = f"{origin} of {name}"

    def settle(self) -> None:
        """Solves the products that were kept, until nothing more follows."""
        # With a from a*b a later a*c gives c: the same dims are tried until a round solves none.
        progress = True
        while progress:
            pending, self._open = self._open, []
            for dim, size, origin in pending:
                if not self._solve(dim, size, origin):
                    self._open.append((dim, size, origin))
            progress = len(self._open) < len(pending)

    def notes(self, used: Iterable[str] | None = None) -> list[str]:
        """One line that lists the bound names (those in ``used``) and their origins; empty when there are none."""
        bound: list[str] = []
        for name, size in self.sizes.items():
            if used is None or name in used:
                bound.append(f"{name}={size} (from {self.origins[name]})")
        return [f"dims: {', '.join(bound)}"] if bound else []

    def _bind(self, name: str, size: int, origin: str) -> None:
        self.sizes[name] = size
        self.origins[name] = origin

    def _solve(self, dim: Dim, size: int, origin: str) -> bool:
        """Whether nothing is left to learn from ``dim == size``."""
        unbound = [factor for factor in dim if size_of((factor,), self.sizes) is None]
        if len(unbound) != 1:
            return not unbound
        (last,) = unbound
        known = [(factor,) for factor in dim if factor is not last]
        rest = math.prod(sizes_of(known, self.sizes) or ())
        # 10 is no 3*n, and no n is known of 0*n: nothing follows, and the shape check says why.
        if not rest or size % rest:
            return True
        if isinstance(last, Sum):
            return self._solve_sum(last, size // rest, origin)
        self._bind(str(last), size // rest, origin)
        return True

    def _solve_sum(self, factor: Sum, size: int, origin: str) -> bool:
        unbound = [term for term in factor.terms if size_of(term, self.sizes) is None]
        if len(unbound) != 1:
            return not unbound
        known = [term for term in factor.terms if term is not unbound[0]]
        rest = sum(sizes_of(known, self.sizes) or ())
        # What is left of 12 for the k of q+k is 12 less q; it cannot be less than nothing.
        return size < rest or self._solve(unbound[0], size - rest, origin)

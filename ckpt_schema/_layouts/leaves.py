"""Leaves: what one array or key of a layout is declared to be, what a found one is, and how a default is made.

A typed PRNG key is a leaf like any other whose dtype names its implementation: ``key<urbg>``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import AxisName, Dim, Dims
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "ANY_FLOAT",
    "ConstantKey",
    "Default",
    "Fill",
    "FreshKey",
    "Init",
    "Leaf",
    "LeafSignature",
    "Made",
    "OrNone",
    "abstract",
    "accepts",
    "constant_key",
    "describe",
    "dtype_name",
    "dtype_of",
    "fresh_key",
    "holds",
    "is_abstract",
    "is_array_class",
    "is_deleted",
    "is_mutable",
    "is_narrowed",
    "is_scalar",
    "itemsize",
    "key_dtype",
    "key_impl",
    "key_words",
    "kind_name",
    "materialized",
    "number_bits",
    "signature",
    "untold",
]

_IMPLS = {
    "fry": "threefry2x32",
    "rbg": "rbg",
    "urbg": "unsafe_rbg",
}  # tag in the dtype -> name jax.random.key takes


ANY_FLOAT = "Float"
"""The dtype of a leaf that may be any float, as jaxtyping calls it: no dtype of NumPy, so that no array is made of it."""

_WIDE = frozenset({"float64", "int64", "uint64", "complex128"})


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """What a leaf is declared to be.

    Attributes:
        dims: One dim per axis.
        dtype: A dtype's name, ``float32``, or that of a typed key with its implementation's tag, ``key<urbg>``;
            or ``Float``, for any float.
        names: What its own class calls each axis; none where the axes are called as their dims are. Leaves that differ in
            nothing else are equal: the same trees conform to them.
        any_float: Whether its class declares any float, and the dtype was said since.
    """

    dims: Dims
    dtype: str
    names: tuple[AxisName, ...] = dataclasses.field(default=(), compare=False)
    any_float: bool = dataclasses.field(default=False, compare=False, repr=False)

    @property
    def is_key(self) -> bool:
        """Whether this is a typed PRNG key."""
        return self.dtype.startswith("key<")

    @property
    def is_open(self) -> bool:
        """Whether this is any float: a tree says which."""
        return self.dtype == ANY_FLOAT

    @property
    def own(self) -> tuple[AxisName, ...]:
        """What its own class calls each axis."""
        return self.names or dims_.own_names(self.dims)

    def renamed(self, renames: Mapping[str, str | int]) -> Leaf:
        """The leaf with names in its dims replaced; its axes are called what they were."""
        if not renames or not renames.keys() & dims_.dim_names(self.dims):
            return self
        return self._with(*dims_.renamed_axes(self.dims, self.own, renames))

    def with_axis(self, at: int, dim: Dim) -> Leaf:
        """The leaf with another dim on one axis, which is called what it was."""
        # Where the new dim has other factors than the old one, each is called as the whole axis was.
        own = self.own[at]
        kept = own.factors if len(own.factors) == len(dim) else (str(own),) * len(dim)
        dims = (*self.dims[:at], dim, *self.dims[at + 1 :])
        names = (*self.own[:at], AxisName(kept, own.label), *self.own[at + 1 :])
        return self._with(dims, names if self.names else ())

    def sized(self, sizes: Mapping[str, int]) -> Leaf:
        """The leaf at these sizes; axes of one size are told apart by what they were called."""
        leaf = dataclasses.replace(self, names=self.own)
        for at, dim in enumerate(leaf.dims):
            leaf = leaf.with_axis(at, dims_.known_dim(dim, sizes))
        return leaf

    def without_axis(self, at: int) -> Leaf:
        """The leaf with one axis less."""
        dims, names = [*self.dims], [*self.names]
        del dims[at]
        del names[at : at + 1]
        return Leaf(tuple(dims), self.dtype, tuple(names))

    def with_factors(self, at: int, first: int, last: int, dim: Dim) -> Leaf:
        """The leaf with other factors of one axis, which are called what those were."""
        axis, own = self.dims[at], self.own[at]
        if (first, last) == (0, len(axis)):
            return self.with_axis(at, dim)
        # Factors that are parts of one name, as kv and groups of heads, are called by it once.
        called = "*".join(dict.fromkeys(own.factors[first:last]))
        names = (*own.factors[:first], *[called] * len(dim), *own.factors[last:])
        dims = (*self.dims[:at], (*axis[:first], *dim, *axis[last:]), *self.dims[at + 1 :])
        owns = (*self.own[:at], AxisName(names, own.label), *self.own[at + 1 :])
        return self._with(dims, owns if self.names else ())

    def with_dtype(self, dtype: str) -> Leaf:
        """The leaf of any float, as this one."""
        return Leaf(self.dims, dtype, self.names, any_float=True)

    def _with(self, dims: Dims, names: tuple[AxisName, ...]) -> Leaf:
        return Leaf(dims, self.dtype, names, self.any_float)

    def spelled(self, sizes: Mapping[str, int] | None = None) -> str:
        """The leaf as messages write it, with the sizes that are known: ``float32[embed=512 3*heads]``."""
        dims = dims_.format_dims(self.dims, sizes)
        if self.names:
            dims = dims_.format_axes(self.dims, self.names, sizes)
        return f"{self.dtype}[{dims}]"

    def __str__(self) -> str:
        """The leaf as messages write it: ``float32[embed 3*heads]``."""
        return self.spelled()

    def __or__(self, other: None) -> OrNone:
        """The annotation ``Key["urbg"] | None``: such a leaf, which a tree may lack."""
        return OrNone(self) if other is None else NotImplemented

    __ror__ = __or__


@dataclasses.dataclass(frozen=True, slots=True)
class OrNone:
    """The annotation of a leaf that a tree may lack, where the leaf itself is no type that ``typing`` takes."""

    leaf: Leaf


def key_dtype(impl: str) -> str:
    """The dtype name of a typed key, from a tag (``urbg``) or a name (``unsafe_rbg``).

    Raises:
        SchemaError: jax ships no implementation of that name.

    Example:
        >>> key_dtype("urbg"), key_dtype("threefry2x32")
        ('key<urbg>', 'key<fry>')
    """
    for tag, name in _IMPLS.items():
        if impl in (tag, name):
            return f"key<{tag}>"
    fault = Mismatch(
        repr(impl),
        "impl",
        f"one of {', '.join(_IMPLS)}",
        repr(impl),
        "these are the tags jax prints in key<...>",
    )
    raise SchemaError(f"{impl!r} is no key implementation", [fault])


def key_impl(dtype: str) -> str:
    """The name that jax's functions take of the implementation in a key's dtype.

    Example:
        >>> key_impl("key<urbg>")
        'unsafe_rbg'
    """
    return _IMPLS[dtype[4:-1]]


@functools.cache
def key_words(dtype: str) -> int:
    """How many words of raw data a key of this dtype has.

    Example:
        >>> key_words("key<fry>"), key_words("key<rbg>")
        (2, 4)
    """
    # As a shape alone: a key of its own would be made on a device.
    return jax.eval_shape(
        lambda: jax.random.key_data(jax.random.key(0, impl=key_impl(dtype)))
    ).shape[-1]


@functools.lru_cache(maxsize=256)  # more than there are, structured ones aside
def dtype_name(dtype: Any) -> str:
    """What a dtype is called; NumPy takes far longer to say it than a look-up does."""
    return str(dtype)


def is_scalar(value: Any) -> bool:
    """Whether ``value`` is a plain Python number, as ``TrainState.create`` leaves in ``step``."""
    return isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic)


_NUMBERS = (bool, int, float, complex)

SCALARS = frozenset(kind.__name__ for kind in _NUMBERS)
"""The dtypes that `signature` tells of plain Python numbers; arrays of bools are told so too."""


class _UntoldInt(int):
    """An int on disk that was not read."""


class _UntoldFloat(float):
    """A float on disk that was not read."""


def untold(kind: type) -> Any:
    """The stand-in for a Python number on disk, of which metadata tells the type and not the value.

    Example:
        >>> signature(untold(int)), describe(untold(float)), describe(3)
        (((), 'int'), 'a Python number (float)', 'Python int 3')
    """
    stand_ins: dict[type, type] = {int: _UntoldInt, float: _UntoldFloat}
    return stand_ins.get(kind, kind)()


LeafSignature = tuple[tuple[int, ...], str]
"""The shape and dtype name of a found leaf."""


def signature(value: Any) -> LeafSignature | None:
    """The shape and dtype name of a found leaf, or None when it is no array, abstract array or number.

    A Python number reads as a 0-d leaf of dtype ``int``, ``float``, ``complex`` or ``bool``.
    """
    if type(value) is jax.ShapeDtypeStruct:  # what most are where there are very many
        return value.shape, dtype_name(value.dtype)
    if is_scalar(value):
        # bool stands first among these, for True is an int as well.
        return (), next(kind.__name__ for kind in _NUMBERS if isinstance(value, kind))
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None or is_mutable(value):
        return None
    return tuple(shape), dtype_name(dtype)


def is_typed_key(value: Any) -> bool:
    """Whether ``value`` is an array of typed keys, also an abstract or a traced one."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)


def is_deleted(value: Any) -> bool:
    """Whether ``value`` is an array whose buffers were given up, as by donation."""
    return isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.is_deleted()


_REF: Any = getattr(jax, "Ref", ())


def is_mutable(value: Any) -> bool:
    """Whether ``value`` is a reference to an array that a program changes in place, or a Variable that is one."""
    kind = type(value)
    if issubclass(kind, Tracer):
        return isinstance(value, _REF)
    return not is_array_class(kind) and hasattr(value, "aval")


@functools.cache
def is_array_class(kind: type) -> bool:
    """Whether values of a class are arrays, abstract or traced ones too."""
    return issubclass(kind, (jax.Array, Tracer, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def kind_name(kind: type | str | None) -> str:
    """What a leaf is, in a word: its collection or its Variable type, ``Array`` where it is in no Variable.

    Example:
        >>> kind_name("batch_stats"), kind_name(jax.Array), kind_name(None)
        ('batch_stats', 'Array', '')
    """
    if isinstance(kind, type):
        # jax calls the class of its arrays after the module that it is compiled in.
        return kind.__name__.rpartition(".")[2]
    return kind or ""


def is_narrowed(dtype: Any) -> bool:
    """Whether jax would make an array of another dtype: it has no 64-bit arrays unless told to."""
    if dtype_name(dtype) not in _WIDE:
        return False
    return jax.dtypes.canonicalize_dtype(dtype) != dtype


def materialized(value: Any, dtype: str) -> Any:
    """A leaf as an array: a Python number becomes one of the dtype that it is declared to be.

    Of a dtype that jax would narrow it is NumPy's, as a NumPy scalar is.

    Example:
        >>> materialized(2**40, "int64"), type(materialized(1, "int32")).__name__
        (array(1099511627776), 'ArrayImpl')
    """
    if isinstance(value, np.generic):
        return np.asarray(value)
    if not is_scalar(value):
        return value
    # By way of NumPy, which makes an int64 whether or not jax has any.
    array = np.asarray(value, jnp.dtype(dtype))
    return array if is_narrowed(array.dtype) else jnp.asarray(array)


def number_bits(value: Any) -> Any:
    """What a number is compared by: two have the same exactly if they are the same bits in each dtype that holds them.

    Python takes 0.0 and -0.0 for equal, and a NaN for none of them, whatever its payload.

    Example:
        >>> number_bits(0.0) == number_bits(0), number_bits(0.0) == number_bits(-0.0)
        (True, False)
        >>> number_bits(math.nan) == number_bits(-math.nan), number_bits(math.nan) == number_bits(math.nan)
        (False, True)
    """
    if isinstance(value, np.generic):
        return value.dtype.str, value.tobytes()
    if isinstance(value, complex):
        return number_bits(value.real), number_bits(value.imag)
    if not isinstance(value, float) or (value and value == value):
        return value
    # What is left are zeros and NaNs. A 0.0 is compared as the int 0 is, a -0.0 and a NaN by their bits.
    return struct.pack("<d", value) if value or math.copysign(1, value) < 0 else 0


def is_abstract(value: Any) -> bool:
    """Whether ``value`` is an abstract leaf: a shape and a dtype without values."""
    return isinstance(value, jax.ShapeDtypeStruct)


def abstract(value: Any) -> jax.ShapeDtypeStruct:
    """The abstract value of a leaf, with its sharding where it has one."""
    if is_scalar(value):
        value = jnp.asarray(value)
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=getattr(value, "sharding", None))


def accepts(leaf: Leaf, value: Any) -> bool:
    """Whether a Python number may stand for ``leaf``: same kind, 0-d, and a value that the dtype holds exactly.

    Example:
        >>> accepts(Leaf((), "int32"), 7), accepts(Leaf((), "uint32"), -1), accepts(Leaf((), "int32"), True)
        (True, False, False)
        >>> accepts(Leaf((), "float32"), 0.5), accepts(Leaf((), "float32"), 0.1)
        (True, False)
    """
    if leaf.dims or leaf.is_key or leaf.is_open:
        return False
    dtype = jnp.dtype(leaf.dtype)
    if isinstance(value, bool):
        return dtype == jnp.bool_
    if isinstance(value, int):
        if not jnp.issubdtype(dtype, jnp.integer):
            return False
        info = jnp.iinfo(dtype)
        return int(info.min) <= value <= int(info.max)
    if not jnp.issubdtype(dtype, jnp.floating if isinstance(value, float) else jnp.complexfloating):
        return False
    # A NaN is held by each float, and equal to nothing.
    number, held = complex(value), complex(_as(value, dtype))
    pairs = (number.real, held.real), (number.imag, held.imag)
    return all(one != one or one == other for one, other in pairs)


def _as(value: complex, dtype: Any) -> Any:
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(dtype)


def holds(leaf: Leaf, default: Default) -> bool:
    """Whether elements of ``leaf`` can be what a default says: exactly, but for the last digits of a decimal fraction.

    A leaf of any float can be what the widest can; once it is known which it is, that is asked again.

    Example:
        >>> [holds(Leaf((), "float32"), Fill(value)) for value in (0.1, 1e300, 2**24, 2**24 + 1)]
        [True, False, True, False]
    """
    if not isinstance(default, Fill):
        return True
    if leaf.is_key or not is_scalar(default.value):
        return False
    if leaf.is_open:
        leaf = Leaf((), "float64")
    if accepts(Leaf((), leaf.dtype), default.value):
        return True
    dtype = jnp.dtype(leaf.dtype)
    # From here on the value is none that the dtype has exactly: 0.1 is meant as near as it gets.
    if isinstance(default.value, bool) or not jnp.issubdtype(dtype, jnp.inexact):
        return False
    try:
        held = _as(default.value, dtype)
    except OverflowError:  # an int that no float holds
        return False
    return (
        complex(held) == default.value
        if isinstance(default.value, int)
        else bool(np.isfinite(held))
    )


def dtype_of(name: str) -> Any:
    """The dtype of this name, a key's too."""
    if not name.startswith("key<"):
        return jnp.dtype(name)
    # The dtype of a key is no NumPy dtype, and is known to jax alone.
    return jax.eval_shape(functools.partial(jax.random.key, impl=key_impl(name)), 0).dtype


def itemsize(dtype: str) -> int:
    """How many bytes an element takes.

    Example:
        >>> itemsize("bfloat16"), itemsize("key<fry>")
        (2, 8)
    """
    return 4 * key_words(dtype) if dtype.startswith("key<") else int(jnp.dtype(dtype).itemsize)


def describe(value: Any) -> str:
    """A found leaf as messages write it: ``float32[2 3]``, or the type of what is no leaf."""
    found = signature(value)
    if found is None:
        return f"a {type(value).__name__}"
    if isinstance(value, (_UntoldInt, _UntoldFloat)):
        return f"a Python number ({found[1]})"
    if is_scalar(value):
        return f"Python {found[1]} {shown(value)}"
    return f"{found[1]}[{' '.join(map(str, found[0]))}]"


@dataclasses.dataclass(frozen=True, slots=True)
class Fill:
    """A default that fills the leaf with one value."""

    value: float | int | bool = dataclasses.field(compare=False)
    _bits: object = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keeps what tells the number from every other."""
        object.__setattr__(self, "_bits", number_bits(self.value))

    def __str__(self) -> str:
        """The default as it is declared: ``default=0``."""
        text = shown(self.value)  # for infinities and NaN Python has no word to paste
        return f'float("{text}")' if text in ("nan", "inf", "-inf") else text


@dataclasses.dataclass(frozen=True, slots=True)
class FreshKey:
    """A default key of the leaf's own implementation, another one in each layer; other leaves start at 0."""

    seed: int

    def __str__(self) -> str:
        """The default as it is declared: ``default=fresh_key(0)``."""
        return f"fresh_key({self.seed})"


@dataclasses.dataclass(frozen=True, slots=True)
class ConstantKey:
    """A default key of the leaf's own implementation, the same everywhere; other leaves start at 0."""

    seed: int

    def __str__(self) -> str:
        """The default as it is declared: ``default=constant_key(0)``."""
        return f"constant_key({self.seed})"


@dataclasses.dataclass(frozen=True, slots=True)
class Init:
    """A default that the optax transformation of a train state makes itself, from the params beside it."""

    def __str__(self) -> str:
        """How messages and tables call it."""
        return "tx.init(params)"


Made = Fill | FreshKey | ConstantKey
"""A default that is made of nothing but what is declared."""

Default = Made | Init | SameAs


def fresh_key(seed: int) -> FreshKey:
    """A default for key leaves and streams: a key of the leaf's own implementation, another one for each stream and layer.

    It is ``fold_in(key(seed), crc32(path))``, with the logical path of the leaf in its model, such as
    ``layers[]/dropout/key``; where that is repeated, ``fold_in(..., n)`` of it, with the number of the repeat, counted
    through all levels, outermost first. So a stack of layers has the keys that a list of them has. All keys of one leaf
    with axes of its own are the same. The process's default implementation plays no part, and other leaves that it is
    declared for, such as the count of a stream, start at 0.

    Example:
        >>> fresh_key(0)
        FreshKey(seed=0)
    """
    return FreshKey(seed)


def constant_key(seed: int) -> ConstantKey:
    """A default like `fresh_key`, but everywhere ``key(seed)`` itself: each stream and layer draws the same.

    Example:
        >>> constant_key(0)
        ConstantKey(seed=0)
    """
    return ConstantKey(seed)

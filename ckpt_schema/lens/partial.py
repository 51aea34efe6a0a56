"""Edits that only some values survive. What they would change is an error, found before anything is edited."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema import dims as dims_
from ckpt_schema import leaves
from ckpt_schema.dims import Dim
from ckpt_schema.lens.axes import Entries, Shape, Sizes, deal, house, product, xp
from ckpt_schema.lens.bits import difference, stray
from ckpt_schema.lens.edits import Leafwise

__all__ = ["Cast", "Pad", "Partial", "Scale", "Unpad", "subnormal"]


class Partial(Leafwise):
    """An edit that only some values survive."""

    __slots__ = ()

    def expected(self, sizes: Sizes) -> str:
        """Which values do."""
        raise NotImplementedError

    def found(self, value: Any, sizes: Sizes) -> tuple[str, str] | None:
        """What a concrete leaf has that does not survive, and what to do about it; None where all of it does."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, slots=True)
class Cast(Partial):
    """Casts an integer leaf to another integer dtype; only values that both can hold pass.

    Example:
        >>> print(Cast("int32", "uint32"))
        int32 -> uint32
    """

    source: str
    view: str

    @property
    def inverse(self) -> Cast:
        """The cast back."""
        return Cast(self.view, self.source)

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The leaf cast; `fits` says beforehand whether that keeps its values."""
        # NumPy knows no cast between the integers narrower than a byte; int64 holds every value that both dtypes hold.
        return (value.astype(np.int64) if isinstance(value, np.ndarray) else value).astype(
            self.view
        )

    def fits(self, low: int, high: int) -> bool:
        """Whether values between ``low`` and ``high`` are kept."""
        info = jnp.iinfo(self.view)
        return int(info.min) <= low and high <= int(info.max)

    def expected(self, sizes: Sizes) -> str:
        """The values that the new dtype holds."""
        info = jnp.iinfo(self.view)
        return f"values of {self.view} ({info.min} to {info.max})"

    def found(self, value: Any, sizes: Sizes) -> tuple[str, str] | None:
        """The range of the values, where some do not fit."""
        low, high = _range(value)
        if self.fits(low, high):
            return None
        return str(low if low == high else f"{low} to {high}"), f"{self} would wrap"

    def __str__(self) -> str:
        """The dtypes before and after."""
        return f"{self.source} -> {self.view}"


def _range(value: Any) -> tuple[int, int]:
    """The least and greatest element."""
    if not isinstance(value, jax.Array):
        array = np.asarray(value)
        return int(array.min()), int(array.max())
    low, high = (value, value) if value.ndim == 0 else (jnp.min(value), jnp.max(value))
    return int(np.asarray(low.addressable_data(0))), int(np.asarray(high.addressable_data(0)))


@dataclasses.dataclass(frozen=True, slots=True)
class Scale(Partial):
    """Multiplies floats by a power of two; only values for which that is undone to the last bit pass.

    Attributes:
        exponent: Of two.

    Example:
        >>> print(Scale(3), "|", ~Scale(3))
        times 2**3 | times 2**-3
    """

    exponent: int

    @property
    def inverse(self) -> Scale:
        """The division."""
        return Scale(-self.exponent)

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The product; what is no number stays as it is."""
        if isinstance(value, np.ndarray):
            with np.errstate(
                all="ignore"
            ):  # what over- or underflows has been refused, or is being looked for
                scaled = np.ldexp(value.astype(np.float64), self.exponent).astype(value.dtype)
                return np.where(np.isnan(value), value, scaled)
        return jnp.where(jnp.isnan(value), value, jnp.ldexp(value, self.exponent))

    def expected(self, sizes: Sizes) -> str:
        """Values neither too large nor too small."""
        return f"values that 2**{self.exponent} times themselves tell exactly"

    def found(self, value: Any, sizes: Sizes) -> tuple[str, str] | None:
        """The first value that does not come back."""
        scaled = self.one(value, sizes)
        lost = subnormal(value) | subnormal(scaled)  # devices flush them to zero
        back = xp(value).where(lost, xp(value).zeros_like(value), self.inverse.one(scaled, sizes))
        differs = difference(value, back)
        if differs is None:
            return None
        return (
            f"{differs[1]} at [{differs[0]}], which comes back as {differs[2]}",
            "it over- or underflows: scale it by less",
        )

    def __str__(self) -> str:
        """The factor."""
        return f"times 2**{self.exponent}"


def subnormal(value: Any) -> Any:
    """Tells which floats are subnormal, by their bits: compared as numbers they may count as zero."""
    unsigned = np.dtype(f"u{value.dtype.itemsize}")
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    smallest = np.asarray(jnp.finfo(value.dtype).smallest_normal, value.dtype).view(unsigned)[()]
    magnitude = value.view(unsigned) & ~sign
    return (magnitude > 0) & (magnitude < smallest)


@dataclasses.dataclass(frozen=True, slots=True)
class Unpad(Partial):
    """Cuts off the end of an axis, which holds nothing but a fill.

    Attributes:
        axis: The axis.
        small: Its dim without the padding.
        large: Its dim with it.
        fill: What stands in the padding.

    Example:
        >>> print(Unpad(0, ("vocab",), ("padded",), 0), "|", ~Unpad(0, ("vocab",), ("padded",), 0))
        unpad axis 0 from padded to vocab | pad axis 0 from vocab to padded with 0
    """

    axis: int
    small: Dim
    large: Dim
    fill: float | int | bool = dataclasses.field(compare=False)
    _bits: object = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keeps what tells the fill from every other number."""
        object.__setattr__(self, "_bits", leaves.number_bits(self.fill))

    @property
    def inverse(self) -> Pad:
        """The edit that puts it back."""
        return Pad(self.axis, self.small, self.large, self.fill)

    @property
    def names(self) -> set[str]:
        """The dims of the axis."""
        return dims_.names((self.small, self.large))

    @property
    def constraints(self) -> tuple[tuple[Dim, Dim], ...]:
        """A padded axis is no shorter."""
        return ((self.large, self.small),)

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The start of the axis."""
        return value[(*(slice(None),) * self.axis, slice(0, product(self.small, sizes)))]

    def shape(self, shape: Shape, sizes: Sizes) -> Shape:
        """The shape without the padding."""
        return (*shape[: self.axis], product(self.small, sizes), *shape[self.axis + 1 :])

    def sharded(
        self, entries: Entries, shape: Shape, sizes: Sizes, ways: Mapping[str, int]
    ) -> Entries:
        """As before; a mesh axis that does not divide the axis any more goes to another one it divides."""
        return _resized(entries, self.axis, self.shape(shape, sizes), ways)

    def expected(self, sizes: Sizes) -> str:
        """The fill."""
        return (
            f"{self.fill} in the padding of axis {self.axis}, from {product(self.small, sizes)} on"
        )

    def found(self, value: Any, sizes: Sizes) -> tuple[str, str] | None:
        """The first element of the padding that is no fill."""
        start = product(self.small, sizes)
        if value.shape[self.axis] == start:
            return None
        differs = stray(value, self.fill, self.axis, start)
        hint = "values there would be lost: declare the padded size, or another fill="
        return None if differs is None else (f"{differs[1]} at [{differs[0]}] of it", hint)

    def __str__(self) -> str:
        """The axis and its dims."""
        return f"unpad axis {self.axis} from {dims_.format_dim(self.large)} to {dims_.format_dim(self.small)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Pad(Leafwise):
    """Lengthens an axis with a fill."""

    axis: int
    small: Dim
    large: Dim
    fill: float | int | bool = dataclasses.field(compare=False)
    _bits: object = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keeps what tells the fill from every other number."""
        object.__setattr__(self, "_bits", leaves.number_bits(self.fill))

    @property
    def inverse(self) -> Unpad:
        """The edit that cuts it off again."""
        return Unpad(self.axis, self.small, self.large, self.fill)

    @property
    def names(self) -> set[str]:
        """The dims of the axis."""
        return dims_.names((self.small, self.large))

    @property
    def constraints(self) -> tuple[tuple[Dim, Dim], ...]:
        """A padded axis is no shorter."""
        return ((self.large, self.small),)

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The leaf, with the fill at the end of the axis."""
        more = product(self.large, sizes) - product(self.small, sizes)
        shape = (*value.shape[: self.axis], more, *value.shape[self.axis + 1 :])
        return xp(value).concatenate(
            [value, xp(value).full(shape, self.fill, value.dtype)], axis=self.axis
        )

    def shape(self, shape: Shape, sizes: Sizes) -> Shape:
        """The shape with the padding."""
        return (*shape[: self.axis], product(self.large, sizes), *shape[self.axis + 1 :])

    def sharded(
        self, entries: Entries, shape: Shape, sizes: Sizes, ways: Mapping[str, int]
    ) -> Entries:
        """As before; a mesh axis that does not divide the axis any more goes to another one it divides."""
        return _resized(entries, self.axis, self.shape(shape, sizes), ways)

    def __str__(self) -> str:
        """The axis, its dims and the fill."""
        return f"pad axis {self.axis} from {dims_.format_dim(self.small)} to {dims_.format_dim(self.large)} with {self.fill}"


def _resized(entries: Entries, axis: int, shape: Shape, ways: Mapping[str, int]) -> Entries:
    (kept,), homeless = deal(entries[axis], shape[axis : axis + 1], ways)
    return house((*entries[:axis], kept, *entries[axis + 1 :]), shape, homeless, ways)

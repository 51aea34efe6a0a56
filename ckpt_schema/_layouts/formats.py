"""What the bits of a float mean, in each dtype that jax has.

Most formats are IEEE 754's, with another number of bits for each part. Of the narrow ones some have
no infinities, one NaN, one zero, or no sign, and so one more value.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

__all__ = ["FORMATS", "Format", "format_of", "holds"]

FormatKind = Literal["ieee", "fn", "fnuz", "finite", "scale"]
"""Which values that are no numbers a format has.

- ``ieee``: infinities, and NaNs with a sign and a payload. - ``fn``: no infinities; one NaN of each
sign, with all bits set. - ``fnuz``: no infinities; one NaN, without a sign, where others have -0. -
``finite``: neither infinities nor NaNs. - ``scale``: powers of two alone; neither signs, nor a
zero, nor infinities; one NaN, with all bits set.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """The bits of a float: a sign, an exponent, a mantissa.

    Attributes:
        exponent: How many bits the exponent has.
        mantissa: How many bits the mantissa has.
        bias: What the exponent counts from: a normal float is ``1.mantissa`` times two to its
            exponent less this.
        kind: Which values it has that are no numbers.
    """

    exponent: int
    mantissa: int
    bias: int
    kind: FormatKind = "ieee"

    @property
    def bits(self) -> int:
        """How many bits there are in all."""
        # A scale is a power of two and no more: there is no bit for a sign.
        return (self.kind != "scale") + self.exponent + self.mantissa

    @property
    def magnitudes(self) -> int:
        """The bits without the sign, all of them set."""
        return (1 << (self.exponent + self.mantissa)) - 1

    @property
    def greatest(self) -> int:
        """The magnitude of the greatest number, as bits."""
        # IEEE 754 gives the whole highest exponent away to infinities and NaNs. The others give one
        # value of it to a NaN, or none.
        if self.kind == "ieee":
            return self.magnitudes - (1 << self.mantissa)
        return self.magnitudes - (self.kind in ("fn", "scale"))

    @property
    def nan(self) -> int | None:
        """The bits of the NaN that stands for all without a payload of their own.

        None if there is none.
        """
        if self.kind == "ieee":
            # Infinity comes after the greatest number; a quiet NaN is that with the first bit set.
            return self.greatest + 1 + (1 << (self.mantissa - 1))
        return {"fn": self.magnitudes, "scale": self.magnitudes, "fnuz": self.magnitudes + 1}.get(
            self.kind
        )

    @property
    def normal(self) -> int:
        """Two to this is the least number that has all bits of the mantissa."""
        # Exponent 0 means numbers below this one, but in a scale, which has none that are subnormal.
        return 1 - self.bias if self.kind != "scale" else -self.bias

    @property
    def least(self) -> int:
        """Two to this is the least number above zero."""
        return self.normal - self.mantissa

    @property
    def top(self) -> float:
        """The greatest number.

        Example:
            >>> format_of("float8_e4m3fn").top, format_of("float16").top
            (448.0, 65504.0)
        """
        exponent, rest = divmod(self.greatest, 1 << self.mantissa)
        return (1 + rest / (1 << self.mantissa)) * 2.0 ** (exponent - self.bias)


FORMATS = {
    "float64": Format(11, 52, 1023),
    "float32": Format(8, 23, 127),
    "bfloat16": Format(8, 7, 127),
    "float16": Format(5, 10, 15),
    "float8_e5m2": Format(5, 2, 15),
    "float8_e4m3": Format(4, 3, 7),
    "float8_e3m4": Format(3, 4, 3),
    "float8_e4m3fn": Format(4, 3, 7, "fn"),
    "float8_e5m2fnuz": Format(5, 2, 16, "fnuz"),
    "float8_e4m3fnuz": Format(4, 3, 8, "fnuz"),
    "float8_e4m3b11fnuz": Format(4, 3, 11, "fnuz"),
    "float8_e8m0fnu": Format(8, 0, 127, "scale"),
    "float4_e2m1fn": Format(2, 1, 1, "finite"),
}
"""The floats that jax has arrays of, by the names of their dtypes."""


def format_of(dtype: str) -> Format | None:
    """The format of a dtype; None if it is no float.

    Example:
        >>> format_of("bfloat16")
        Format(exponent=8, mantissa=7, bias=127, kind='ieee')
        >>> format_of("int8") is None
        True
    """
    return FORMATS.get(dtype)


@functools.cache
def holds(wide: str, narrow: str) -> bool:
    """Whether a float has every value of another one: the numbers, both zeros, infinities and NaNs.

    Example:
        >>> holds("float32", "bfloat16"), holds("float16", "bfloat16")
        (True, False)
        >>> holds("float8_e5m2fnuz", "float8_e5m2")  # neither infinities nor -0.0
        False
    """
    ours, theirs = FORMATS[wide], FORMATS[narrow]
    if ours == theirs:
        return True
    # As many digits, and as far up and down: then each number of the one is a number of the other.
    numbers = (
        ours.mantissa >= theirs.mantissa and ours.top >= theirs.top and ours.least <= theirs.least
    )
    return numbers and theirs.kind in _HELD[ours.kind]


_HELD: dict[FormatKind, tuple[FormatKind, ...]] = {
    "ieee": ("ieee", "fn", "fnuz", "finite", "scale"),
    "fn": ("fn", "fnuz", "finite", "scale"),
    "fnuz": ("fnuz", "scale"),
    "finite": ("finite",),
    "scale": ("scale",),
}
"""Of each kind, the kinds all of whose values it has, where it has the numbers."""

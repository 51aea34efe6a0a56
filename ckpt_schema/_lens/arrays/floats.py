"""Floats computed on as integers, so that NumPy and every backend of jax make the same bits.

Backends take subnormal floats for zero, make quiet NaNs of signaling ones, and compute on wider
floats than they are told to. None of them touches an integer. So a float is taken apart into its
sign, its exponent and its digits, and put together in another format, all by operations on unsigned
integers: those of 32 bits, and of 64 only where a float64 is one of both.

Floats are multiplied where they have digits alone, as numbers from 1 to 2: such a product never
overflows, and is rounded in the same way everywhere. A quotient is not: what a backend says is
taken for a guess, and set right by the remainder.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.formats import FORMATS, Format

__all__ = [
    "added",
    "as_unsigned",
    "is_nan",
    "multiplied",
    "product",
    "recast",
    "reinterpreted",
    "xp_of",
]

Made = tuple[Any, Any]
"""The bits of floats, and where a number became something that is none, or the other way round."""


def xp_of(value: Any) -> Any:
    """The library that an array is of."""
    return np if isinstance(value, (np.ndarray, np.generic)) else jnp


def reinterpreted(value: Any, dtype: Any) -> Any:
    """The bits of an array as another dtype that is as wide.

    Example:
        >>> reinterpreted(np.float32([1.0, -0.0]), "uint32")
        array([1065353216, 2147483648], dtype=uint32)
    """
    if xp_of(value) is np:
        # NumPy views what lies in one piece, and an array of no axes as one of one.
        return np.ascontiguousarray(value).view(dtype).reshape(value.shape)
    return value if value.dtype == dtype else jax.lax.bitcast_convert_type(value, dtype)


def as_unsigned(value: Any) -> Any:
    """The bits of an array as integers without a sign."""
    return reinterpreted(value, f"uint{value.dtype.itemsize * 8}")


def recast(bits: Any, before: Format, after: Format, exponent: int = 0) -> Made:
    """Floats in another format, times a power of two: to the nearest one there is, the even of two.

    A NaN keeps its sign and as much of its payload as the format has bits for, from the top; in
    formats that have neither, it becomes the one there is. What is greater than all numbers
    becomes infinity, where there is none a NaN, and where there is neither the greatest number.

    Args:
        bits: The floats, as unsigned integers of their width.
        before: Their format.
        after: The format wanted.
        exponent: Of two.
    """
    if not exponent and _share_exponents(before, after):
        return _recut(bits, before, after)
    work = _Work.on(bits, before, after)
    parts = work.apart(bits, before)
    shift = np.int32(min(max(exponent, -_FAR), _FAR))
    return work.together(dataclasses.replace(parts, exponent=parts.exponent + shift), after)


def multiplied(bits: Any, form: Format, factor: float, *, divides: bool = False) -> Made:
    """Floats times a factor, or divided by it, each rounded to the digits of a float32, or float64.

    The factor is rounded so as well. The product of a narrower float is then rounded to its own
    digits.

    Args:
        bits: The floats, as unsigned integers of their width.
        form: Their format.
        factor: The factor, which is no zero.
        divides: Whether they are divided by it.
    """
    work = _Work.on(bits, form)
    parts = work.apart(bits, form)
    # From 1/2 to 1: a digit more than those before the point.
    fraction, exponent = math.frexp(abs(factor))
    digits = round(fraction * 2.0 ** (work.point + 1))
    if digits >> (work.point + 1):  # rounded up to 1
        digits, exponent = digits >> 1, exponent + 1
    done = work.divided if divides else work.times
    sign = parts.sign ^ work.word(factor < 0)
    made = dataclasses.replace(done(parts, digits, exponent - 1), sign=sign)
    return work.together(made, form)


def product(few: Any, other: Any, form: Format, after: Format) -> Any:
    """Numbers of 8 digits at most times others, rounded once, also where a factor or the product is subnormal.

    Args:
        few: The numbers of few digits, as bits of floats of 32 bits, or 64; none is subnormal.
        other: The others, likewise.
        form: The format of both.
        after: That of the products, which has no more digits.
    """
    work = _Work.on(few, form)
    one, two = work.apart(few, form), work.apart(other, form)
    word, where = work.word, work.xp.where
    # Digits of 8 and of 24 make one of 31 or 32, which is the product, exactly.
    digits = (one.digits >> word(work.point - 7)) * two.digits
    carry = digits >> word(work.point + 8)
    by = carry + word(1)
    kept = digits >> by
    # 6 more than are wanted tell how to round, where the last says whether anything is behind it.
    kept = kept | (digits != (kept << by)).astype(word)
    exponent = one.exponent + two.exponent + carry.astype(np.int32)
    made = dataclasses.replace(two, exponent=exponent, digits=kept, sign=one.sign ^ two.sign)
    magnitude = work.magnitude(made, after, more=6)
    magnitude = where(magnitude > word(after.greatest), word(_beyond(after)), magnitude)
    exact = ((made.sign << word(after.bits - 1)) | magnitude).astype(f"uint{after.bits}")
    # Infinities and NaNs are multiplied as floats, by nothing that a backend takes for zero.
    size = other & word(form.magnitudes)
    small = (size > word(0)) & (size < word(1 << form.mantissa))
    one_ = word(form.bias << form.mantissa) | (two.sign << word(form.bits - 1))
    by_float = work.as_float(few) * work.as_float(where(small, one_, other))
    special, _ = recast(work.as_bits(by_float), form, after)
    return where(_is_finite(few, form) & _is_finite(other, form), exact, special)


def added(bits: Any, form: Format, amount: float) -> Made:
    """Floats plus a number, rounded to the digits of a float32, or float64, and then to their own.

    Args:
        bits: The floats, as unsigned integers of their width.
        form: Their format.
        amount: The number. It is so great that no sum is subnormal, see `shift`.
    """
    work = _Work.on(bits, form)
    wide, _ = recast(bits, form, work.form)
    number = work.as_float(wide) + work.float(amount)
    made, ruined = recast(work.as_bits(number), work.form, form)
    nan = is_nan(bits, form)
    ruined = ruined | (_is_finite(bits, form) & ~_is_finite(work.as_bits(number), work.form))
    return work.xp.where(nan, bits, made), ruined & ~nan


def is_nan(bits: Any, form: Format) -> Any:
    """Which floats are no numbers."""
    word = bits.dtype.type
    if form.kind == "ieee":
        return (bits & word(form.magnitudes)) > word(form.greatest + 1)
    if form.kind == "fn":
        return (bits & word(form.magnitudes)) == word(form.magnitudes)
    if form.kind == "finite":
        return bits != bits
    return bits == word(form.nan)


def _is_finite(bits: Any, form: Format) -> Any:
    if form.kind == "ieee":
        return (bits & bits.dtype.type(form.magnitudes)) <= bits.dtype.type(form.greatest)
    return ~is_nan(bits, form)


def _share_exponents(one: Format, other: Format) -> bool:
    """Whether two formats differ in their digits alone, as bfloat16 and float32 do."""
    alike = (one.exponent, one.bias) == (other.exponent, other.bias)
    return alike and one.kind == other.kind == "ieee" and 64 not in (one.bits, other.bits)


def _recut(bits: Any, before: Format, after: Format) -> Made:
    """Floats with more or fewer digits, which are the last of their bits."""
    xp, word = xp_of(bits), np.uint32
    wide, more = bits.astype(word), after.mantissa - before.mantissa
    if more >= 0:
        return (wide << word(more)).astype(f"uint{after.bits}"), xp.zeros(bits.shape, bool)
    magnitude = wide & word(before.magnitudes)
    nan = magnitude > word(before.greatest + 1)
    finite = magnitude <= word(before.greatest)
    made = xp.where(nan, magnitude >> word(-more), _rounded(magnitude, word(-more), xp))
    # All that is left of a payload may be zero, which would be infinity.
    made = xp.where(nan & (made == word(after.greatest + 1)), word(after.nan or 0), made)
    ruined = finite & (made > word(after.greatest))
    sign = (wide >> word(before.bits - 1)) << word(after.bits - 1)
    return (made | sign).astype(f"uint{after.bits}"), ruined


def _rounded(digits: Any, by: Any, xp: Any) -> Any:
    """Digits shifted to the right, to the nearest number, the even of two."""
    word = digits.dtype.type
    kept = digits >> by
    half = (word(1) << by) >> word(1)
    rest = digits - (kept << by)
    is_tie = (rest == half) & (half > word(0)) & ((kept & word(1)) == word(1))
    return kept + xp.where((rest > half) | is_tie, word(1), word(0))


@dataclasses.dataclass(frozen=True, slots=True)
class _Parts:
    """Floats taken apart.

    Attributes:
        bits: The floats, as they were.
        form: Their format.
        sign: 1 of negative ones.
        exponent: Of two.
        digits: An integer: what the exponent's power of two is multiplied with, times two to the
            place of the point. It has one digit before the point; of zero it is zero.
    """

    bits: Any
    form: Format
    sign: Any
    exponent: Any
    digits: Any


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """The integers that floats are computed on as.

    Attributes:
        xp: NumPy or ``jax.numpy``.
        word: The unsigned integer.
        signed: The signed one of that width.
        float: The float of that width.
        form: Its format.
    """

    xp: Any
    word: Any
    signed: Any
    float: Any
    form: Format

    @classmethod
    def on(cls, bits: Any, *forms: Format) -> _Work:
        """What is wide enough for these formats."""
        wide = any(form.bits == 64 for form in forms)
        if wide:
            return cls(xp_of(bits), np.uint64, np.int64, np.float64, FORMATS["float64"])
        return cls(xp_of(bits), np.uint32, np.int32, np.float32, FORMATS["float32"])

    @property
    def point(self) -> int:
        """How many digits stand behind the point."""
        return self.form.mantissa

    def as_float(self, bits: Any) -> Any:
        """Bits of this width, as floats."""
        if self.xp is np:
            return bits.view(self.float)
        return jax.lax.bitcast_convert_type(bits, self.float)

    def as_bits(self, value: Any) -> Any:
        """Floats of this width, as bits."""
        if self.xp is np:
            return value.view(self.word)
        return jax.lax.bitcast_convert_type(value, self.word)

    def apart(self, bits: Any, form: Format) -> _Parts:
        """Floats, taken apart."""
        word, where = self.word, self.xp.where
        given = bits.astype(word)
        magnitude = given & word(form.magnitudes)
        bias = form.bias
        if form.kind == "scale":  # which has no zero: the same numbers, with one before them
            magnitude, bias = magnitude + word(1), bias + 1
        field = magnitude >> word(form.mantissa)
        lead = where(field > word(0), word(1 << form.mantissa), word(0))
        digits = (magnitude & word((1 << form.mantissa) - 1)) | lead
        digits = digits << word(self.point - form.mantissa)
        exponent = self.xp.maximum(field, word(1)).astype(np.int32) - np.int32(bias)
        step = 1 << (form.mantissa.bit_length() - 1) if form.mantissa else 0
        while step:  # a subnormal float has no digit before the point
            small = digits < word(1 << (self.point + 1 - step))
            digits = where(small, digits << word(step), digits)
            exponent = exponent - where(small, np.int32(step), np.int32(0))
            step >>= 1
        none = form.kind == "scale"
        sign = self.xp.zeros_like(given) if none else given >> word(form.bits - 1)
        return _Parts(bits, form, sign, exponent, digits)

    def together(self, parts: _Parts, form: Format) -> Made:
        """Floats of a format, put together of parts; NaNs and infinities as they were before."""
        word, where = self.word, self.xp.where
        magnitude = self.magnitude(parts, form)
        nan, finite = is_nan(parts.bits, parts.form), _is_finite(parts.bits, parts.form)
        beyond = magnitude > word(form.greatest + (form.kind == "scale"))
        if form.kind == "scale":
            beyond = beyond | (parts.digits == word(0)) | (parts.sign == word(1))
            magnitude = self.xp.maximum(magnitude, word(1)) - word(1)
        magnitude = where(beyond | ~finite, word(_beyond(form)), magnitude)
        made = where(nan, self._nan(parts, form), self._signed(magnitude, parts.sign, form))
        # Infinity stays what it is in the formats that have it, and a NaN in those that have one.
        kept = where(nan, form.nan is not None, form.kind == "ieee")
        return made.astype(f"uint{form.bits}"), where(finite, beyond, ~kept)

    def magnitude(self, parts: _Parts, form: Format, more: int = 0) -> Any:
        """The bits without the sign, as if the exponent had one bit more; the digits may be so many more."""
        word, xp, point = self.word, self.xp, self.point + more
        bias = form.bias + (form.kind == "scale")
        field = parts.exponent + np.int32(bias)
        field = xp.clip(field, -point - 2, (1 << form.exponent) + (form.kind == "scale"))
        short = xp.maximum(np.int32(1) - field, np.int32(0))  # digits that a subnormal float lacks
        by = xp.minimum(short + np.int32(point - form.mantissa), np.int32(point + 2))
        above = (xp.maximum(field, np.int32(1)) - np.int32(1)).astype(word) << word(form.mantissa)
        rounded = _rounded(parts.digits, by.astype(word), xp) + above
        return xp.where(parts.digits == word(0), word(0), rounded)

    def _signed(self, magnitude: Any, sign: Any, form: Format) -> Any:
        """The bits of a number."""
        word = self.word
        if form.kind == "scale":
            return magnitude
        sign = sign << word(form.bits - 1)
        if form.kind == "fnuz":  # -0 would be its NaN
            is_nan_ = magnitude == word(form.nan or 0)
            bare = is_nan_ | (magnitude == word(0))
            return self.xp.where(bare, magnitude, magnitude | sign)
        return magnitude | sign

    def _nan(self, parts: _Parts, form: Format) -> Any:
        """The NaN of a format that stands for another one."""
        word, given = self.word, parts.form
        sign = parts.bits.astype(word) >> word(given.bits - 1)
        if given.kind not in ("ieee", "fn"):
            sign = self.xp.zeros_like(sign)
        if form.nan is None:
            return sign << word(form.bits - 1)
        if form.kind not in ("ieee", "fn"):
            return self.xp.full_like(sign, word(form.nan))
        sign = sign << word(form.bits - 1)
        if given.kind != "ieee" or form.kind != "ieee":
            return sign | word(form.nan)
        payload = parts.bits.astype(word) & word((1 << given.mantissa) - 1)
        more = form.mantissa - given.mantissa
        payload = payload << word(more) if more >= 0 else payload >> word(-more)
        # All that is left of a payload may be zero, which would be infinity.
        quiet = word(1 << (form.mantissa - 1))
        payload = self.xp.where(payload == word(0), quiet, payload)
        return sign | word(form.greatest + 1) | payload

    def times(self, parts: _Parts, digits: int, exponent: int) -> _Parts:
        """Numbers times one of these digits, times a power of two."""
        word, one = self.word, self.form.bias << self.point
        mask = word((1 << self.point) - 1)
        alone = self.as_float((parts.digits & mask) | word(one))
        product = self.as_bits(alone * self.float(digits / (1 << self.point)))
        carry = ((product >> word(self.point)) - word(self.form.bias)).astype(np.int32)
        mantissa = (product & mask) | word(1 << self.point)
        return dataclasses.replace(
            parts,
            exponent=parts.exponent + carry + np.int32(exponent),
            digits=self.xp.where(parts.digits == word(0), word(0), mantissa),
        )

    def divided(self, parts: _Parts, digits: int, exponent: int) -> _Parts:
        """Numbers divided by one of these digits, and by a power of two."""
        word, signed, where = self.word, self.signed, self.xp.where
        by, less = signed(digits), parts.digits < word(digits)
        over = where(less, parts.digits << word(1), parts.digits)
        guess = over.astype(self.float) / self.float(digits) * self.float(1 << self.point)
        quotient = guess.astype(word)
        # Both products overflow, and their difference does not.
        rest = (over << word(self.point)) - quotient * word(digits)
        rest = rest.astype(signed)
        for _ in range(_ULPS):
            low = rest < signed(0)
            quotient = quotient - low.astype(word)
            rest = rest + where(low, by, signed(0))
        for _ in range(_ULPS):
            high = rest >= by
            quotient = quotient + high.astype(word)
            rest = rest - where(high, by, signed(0))
        # It is never half a unit: no quotient of two numbers has just one digit more than they.
        quotient = quotient + (rest + rest > by).astype(word)
        carry = quotient >> word(self.point + 1)
        power = parts.exponent - less.astype(np.int32) + carry.astype(np.int32)
        return dataclasses.replace(
            parts,
            exponent=power - np.int32(exponent),
            digits=where(parts.digits == word(0), word(0), quotient >> carry),
        )


_FAR = 1 << 13
"""A power of two that takes every number to none."""

_ULPS = 3
"""How far a backend's quotient may be off: two units by a reciprocal, one by where the guess is cut."""


def _beyond(form: Format) -> int:
    """The magnitude of what is greater than all numbers, as bits."""
    if form.kind == "ieee":
        return form.greatest + 1
    return form.greatest if form.nan is None else form.nan

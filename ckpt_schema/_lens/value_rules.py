"""Rules for the numbers in a leaf: what they are rounded to, multiplied by, and what is added to them."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Literal

from ckpt_schema._layouts.paths import LogicalPath, rule_path
from ckpt_schema._lens import expressions
from ckpt_schema._lens.wellformed import not_well_formed, verify_paths
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch

__all__ = ["Factor", "Offset", "Rounding", "cast", "scale", "shift"]

_FAR = 64
"""Two to this is the greatest amount of a shift, and two to minus this the least."""


@dataclasses.dataclass(frozen=True, slots=True)
class Factor:
    """See `scale`.

    Attributes:
        path: Where it holds.
        factor: What the source's values are multiplied by: a number, or an expression of dims.
    """

    path: LogicalPath
    factor: float | str

    @property
    def exponent(self) -> int:
        """Of two, where the factor is a power of two or minus that; otherwise 0."""
        if isinstance(self.factor, str):
            return 0
        # `frexp` has its mantissa from 0.5 to 1: 8 is 0.5 times 2**4.
        mantissa, exponent = math.frexp(self.factor)
        return exponent - 1 if abs(mantissa) == 0.5 else 0

    @property
    def rest(self) -> float | str:
        """What the factor is besides that power of two."""
        return self.factor if isinstance(self.factor, str) else self.factor / 2.0**self.exponent

    def __str__(self) -> str:
        """The rule as it is written."""
        # Pasted back, 8 is the same rule as 8.0, and is what most would write.
        factor = self.factor
        if isinstance(factor, float) and factor.is_integer():
            factor = int(factor)
        return f"scale({'/'.join(self.path)!r}, {factor!r})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Offset:
    """See `shift`."""

    path: LogicalPath
    amount: float

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"shift({'/'.join(self.path)!r}, {self.amount!r})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Rounding:
    """See `cast`."""

    path: LogicalPath

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"cast({'/'.join(self.path)!r}, rounding='nearest')"

    __repr__ = __str__


def cast(path: str | type, *, rounding: Literal["nearest"]) -> Rounding:
    """A rule: floats at logical path ``path`` of the view are rounded where a dtype has fewer values.

    Dtypes are declared, and floats are cast to what each side declares. Without this rule a value
    that the narrower dtype does not have is an error; with it, the nearest one that it has stands
    for it, in whichever direction that is. What is too great for the dtype is an error still. It
    holds in the model and in every part of the optimizer state that mirrors it.

    Args:
        path: A leaf or node.
        rounding: ``"nearest"``: to the nearest value, and of two that are as near to the even one.

    Returns:
        The rule.

    Raises:
        SchemaError: ``path`` is no string, or ``rounding`` something else.

    Example:
        >>> print(cast("layers[]/mlp", rounding="nearest"))
        cast('layers[]/mlp', rounding='nearest')
    """
    verify_paths("cast", path=path)
    if rounding != "nearest":
        hint = "floats are rounded to the nearest value, or not at all"
        raise not_well_formed(
            "cast", Mismatch("rounding", "declaration", '"nearest"', shown(rounding), hint)
        )
    return Rounding(rule_path(path))


def scale(path: str | type, factor: float | str) -> Factor:
    """A rule: what is at logical path ``path`` of the view is ``factor`` times what it is in the source.

    By a power of two that is exact, and a value that over- or underflows is an error. The product
    with another factor is rounded, and the way back divides by it, which may be off in the last
    place. Values are scaled in the wider dtype of both sides.

    What an optimizer keeps for the leaf goes along, by the power of the factor that a trial of its
    transformation shows: Adam's first moment is divided by it, the second by its square. Where none
    holds, as after a clip by the norm of all gradients, or the transformation is not known, that
    takes a rule of its own, which always wins: ``scale("opt_state/0/mu/...", ...)``, where 1 leaves
    it as it is, or a ``reset``.

    Args:
        path: A leaf or node.
        factor: A number, or an expression of dims, which may have names, numbers, parentheses and
            the operators ``+ - * / **``.

    Returns:
        The rule.

    Raises:
        SchemaError: ``path`` is no string, or ``factor`` neither a number but 0 nor an expression.

    Example:
        >>> print(scale("attention/query", 0.125))
        scale('attention/query', 0.125)
        >>> print(scale("attention/query", "head_dim ** -0.5"))
        scale('attention/query', 'head_dim ** -0.5')
    """
    verify_paths("scale", path=path)
    number: object = factor
    if isinstance(factor, str):
        why = expressions.wrong(factor)
        if why is not None:
            expected = 'an expression of dims, such as "head_dim ** -0.5"'
            hint = f"{why}: write names of dims, numbers, parentheses and + - * / **"
            raise not_well_formed(
                "scale", Mismatch("factor", "declaration", expected, repr(factor), hint)
            )
        # With dims in it the number is known once a tree has bound these.
        if expressions.dims_in(factor):
            return Factor(rule_path(path), factor)
        number = _constant(factor)
    if not _is_finite(number) or not number:
        expected = (
            'a finite number other than 0, or an expression of dims, such as "head_dim ** -0.5"'
        )
        hint = "nothing undoes any other factor"
        raise not_well_formed(
            "scale", Mismatch("factor", "declaration", expected, shown(factor), hint)
        )
    return Factor(rule_path(path), float(number))


def shift(path: str | type, amount: float) -> Offset:
    """A rule: what is at logical path ``path`` of the view is the source's plus ``amount``.

    So a norm whose scale one side keeps as a difference from 1: ``shift("norm/scale", 1.0)``. A leaf
    that is scaled as well is scaled first. The sum is rounded, and the way back takes the amount off
    again, which may be off in its last place.

    Of what an optimizer keeps for the leaf, that which is a copy of it is shifted too, as an average
    over steps, and what depends on its gradients alone stays as it is; a trial of the transformation
    tells. Where that is not known, it takes a rule of its own, which always wins:
    ``shift("opt_state/0/mu/...", 0.0)`` leaves it as it is.

    Args:
        path: A leaf or node.
        amount: What is added: 0, or from 2**-64 to 2**64, or minus that.

    Returns:
        The rule.

    Raises:
        SchemaError: ``path`` is no string, or ``amount`` no such number.

    Example:
        >>> print(shift("norm/scale", 1.0))
        shift('norm/scale', 1.0)
    """
    verify_paths("shift", path=path)
    # Further from 1 a sum has no digit left of one of the two. The bound is for all dtypes alike.
    is_far = not _is_finite(amount) or (amount and abs(math.frexp(amount)[1] - 1) > _FAR)
    if is_far:
        expected = f"0, or a number from 2**-{_FAR} to 2**{_FAR}, or minus that"
        hint = "a sum with any other has no digit left of one of the two"
        raise not_well_formed(
            "shift", Mismatch("amount", "declaration", expected, shown(amount), hint)
        )
    return Offset(rule_path(path), float(amount))


def _is_finite(number: object) -> bool:
    """Whether something is a number that a float64 holds."""
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        return False
    # A comparison, for `math.isfinite` raises for an int that no float64 holds.
    return abs(number) <= sys.float_info.max


def _constant(text: str) -> float:
    """What an expression without dims is worth; not a number where it is none."""
    try:
        return expressions.value(text, {})
    except ArithmeticError:
        return math.nan

"""Rules for axes: one side has one the other way round, or has more of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim, DimFactor
from ckpt_schema._layouts.leaves import Default, Fill, number_bits
from ckpt_schema._layouts.paths import LogicalPath, rule_path
from ckpt_schema._lens.wellformed import not_well_formed, one_dim, verify_paths
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch

__all__ = [
    "Grown",
    "Padding",
    "Repeated",
    "Replicated",
    "Reverse",
    "flip",
    "pad",
    "repeat",
    "replicated",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Reverse:
    """See `flip`."""

    path: LogicalPath
    dim: Dim

    def __str__(self) -> str:
        """The rule as it is written."""
        return f"flip({'/'.join(self.path)!r}, {dims_.format_dim(self.dim)!r})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Padding:
    """See `pad`."""

    path: LogicalPath
    small: Dim
    large: Dim
    # Compared by its bits: 0.0 is not -0.0, and a NaN is equal to itself.
    fill: float | int | bool = dataclasses.field(compare=False)
    _bits: object = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keeps what tells the fill from every other number."""
        object.__setattr__(self, "_bits", number_bits(self.fill))

    def __str__(self) -> str:
        """The rule as it is written."""
        small, large = map(dims_.format_dim, (self.small, self.large))
        return f"pad({'/'.join(self.path)!r}, {small!r}, {large!r}, fill={Fill(self.fill)})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Grown:
    """See `private`."""

    path: LogicalPath
    default: Default
    small: Dim
    large: Dim

    def __str__(self) -> str:
        """The rule as it is written."""
        small, large = map(dims_.format_dim, (self.small, self.large))
        sizes = f"small={small!r}, large={large!r}"
        return f"private({'/'.join(self.path)!r}, {self.default}, {sizes})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Repeated:
    """See `repeat`."""

    path: LogicalPath
    times: DimFactor
    axis: Dim | None = None

    def __str__(self) -> str:
        """The rule as it is written."""
        axis = "" if self.axis is None else f", axis={dims_.format_dim(self.axis)!r}"
        return f"repeat({'/'.join(self.path)!r}, {str(self.times)!r}{axis})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True, slots=True)
class Replicated:
    """See `replicated`."""

    axis: int
    is_view: bool = False

    def __str__(self) -> str:
        """The rule as it is written."""
        side = ", side='view'" if self.is_view else ""
        return f"replicated({self.axis}{side})"

    __repr__ = __str__


def flip(path: str | type, dim: str) -> Reverse:
    """A rule: the axis ``dim`` of what is at logical path ``path`` of the view runs the other way in the source.

    It holds in the model and in every part of the optimizer state that mirrors it.

    Raises:
        SchemaError: ``path`` is no string, or ``dim`` no dim.

    Example:
        >>> print(flip("conv/kernel", "width"))
        flip('conv/kernel', 'width')
    """
    verify_paths("flip", path=path)
    return Reverse(rule_path(path), one_dim("flip", dim))


def pad(path: str | type, small: str, large: str, fill: float = 0) -> Padding:
    """A rule: one side pads an axis ``small`` of what is at logical path ``path`` of the view to ``large``.

    What stands in the padding is verified wherever it is cut off. It holds in every part of the optimizer state that mirrors
    the leaf as well, with 0 in the padding, for what is never used gets no gradient; where that is not so, another rule for the
    whole path there, ``pad("opt_state/...", ...)``, wins.

    Args:
        path: A leaf or node.
        small: The dim without padding: ``"vocab"``.
        large: The dim with it: ``"padded_vocab"``.
        fill: What the padding holds.

    Raises:
        SchemaError: ``path`` is no string, a dim is none, or ``fill`` is no number.

    Example:
        >>> print(pad("embed/embedding", "vocab", "padded"))
        pad('embed/embedding', 'vocab', 'padded', fill=0)
    """
    verify_paths("pad", path=path)
    if not isinstance(fill, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
        fault = Mismatch("fill", "declaration", "a number", shown(fill), "what the padding holds")
        raise not_well_formed("pad", fault)
    return Padding(rule_path(path), one_dim("pad", small), one_dim("pad", large), fill)


def repeat(path: str | type, times: str | int, *, axis: str | None = None) -> Repeated:
    """A rule: one side keeps what is at logical path ``path`` of the view several times, the other once.

    That side declares ``times`` as a factor of an axis, where the other has the rest: ``"kv*rep"``
    beside ``"kv"`` has each head ``rep`` times in a row, as ``jnp.repeat`` makes them, ``"rep*kv"``
    has all of them ``rep`` times over, as ``jnp.tile`` does, and ``"kv rep"`` has an axis of copies.
    Where one is made of several, that these are equal to the last bit is verified.

    What an optimizer keeps for the leaf does not follow, and is an error: each copy has a gradient
    of its own, and what stands once has their sum. Say ``reset(source=..., view=...)`` to start it
    anew; or, where all copies are known to have the same, as where their gradients are summed, a
    rule for the whole path there, ``repeat("opt_state/0/mu/...", times)``.

    Args:
        path: A leaf or node.
        times: The factor that repeats, by its name or number.
        axis: The whole axis that it is a factor of, where the leaf has the factor more than once.

    Raises:
        SchemaError: ``path`` is no string, ``times`` no factor of a dim, or ``axis`` no dim.

    Example:
        >>> print(repeat("layers[]/attention/key/kernel", "rep"))
        repeat('layers[]/attention/key/kernel', 'rep')
    """
    verify_paths("repeat", path=path)
    # As text a number goes through the same reader as a name: 1 and 0 are no factors of a dim.
    is_number = isinstance(times, int) and not isinstance(times, bool)
    factors = one_dim("repeat", str(times) if is_number else times)
    if len(factors) != 1 or factors[0] in (0, 1):
        hint = "the axis may have others beside it: axis= says which axis"
        expected = "one factor of a dim, such as 'rep' or 4"
        fault = Mismatch("times", "declaration", expected, shown(times), hint)
        raise not_well_formed("repeat", fault)
    shared = None if axis is None else one_dim("repeat", axis)
    return Repeated(rule_path(path), factors[0], shared)


def replicated(axis: int = 0, *, side: Literal["source", "view"] = "source") -> Replicated:
    """A rule: the source keeps each of its leaves once for each device, as ``flax.jax_utils.replicate`` makes them.

    All else is said of one copy: layouts that are declared, other rules, and paths. A layout that is
    read off a tree is that of one copy, too. It is `repeat` for every leaf on an axis of its own:
    that all copies are equal to the last bit is verified where one is made of several, the
    optimizer's too, for such a step is taken with the mean of all gradients.

    The number of copies is a dim, ``devices``. What is read off a tree has it; else `Lens.bind` says
    it where copies are to be written.

    Args:
        axis: Where the copies stand in each leaf: 0 in front.
        side: ``"view"`` where that side keeps them.

    Raises:
        SchemaError: ``axis`` is no number, or ``side`` none of the two.

    Example:
        >>> print(replicated(0))
        replicated(0)
    """
    faults: list[Mismatch] = []
    # True is an int to Python.
    if not isinstance(axis, int) or isinstance(axis, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = "replicate puts the copies in front, on axis 0"
        faults.append(Mismatch("axis", "declaration", "the number of an axis", shown(axis), hint))
    if side not in ("source", "view"):
        faults.append(Mismatch("side", "declaration", '"source" or "view"', shown(side)))
    if faults:
        raise not_well_formed("replicated", *faults)
    return Replicated(axis, side == "view")

"""Blocks inside of programs: floats travel as unsigned integers, so that no backend touches a bit of them.

`execution` calls these programs, which are the only place where jax moves a leaf.

XLA may compute on a wider float between two moves, which changes the payload of a NaN: its CPU
backend does so where it fuses the slices and transposes of ``float8_e5m2``. Between devices it adds
what each has of a slice to the zeros of the others, which changes one as well: complex numbers
travel as two floats. So does a move between shardings: bits have theirs given before it. Where it
does not optimize, the CPU backend hands a padded bfloat16 on as a wider float, also if one program
makes floats of the bits. So what is put together of several blocks leaves its program as bits, and
a second one makes floats of them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from ckpt_schema._layouts.leaves import is_typed_key, key_impl
from ckpt_schema._lens.arrays import moves, shardings
from ckpt_schema._lens.arrays.blocks import Block, Filling, Kind
from ckpt_schema._lens.arrays.conversions import bits_converted
from ckpt_schema._trees.jitted import Program

__all__ = [
    "Bits",
    "KnownShardings",
    "assembled",
    "begun",
    "from_bits",
    "is_handed_as_bits",
    "known_shardings",
    "number_of",
    "of_bits",
    "put_together",
    "read",
    "settled",
    "spread",
    "taken",
    "to_bits",
    "write",
]

Bits = tuple[Any, ...]
"""The arrays that stand for a leaf while it is moved: mostly one; of complex numbers, two."""

KnownShardings = tuple[NamedSharding, ...]
"""How leaves are sharded: one for each, or none where that is not known."""


# --- Leaves as bits  ---


def to_bits(value: Any) -> Bits:
    """A leaf as arrays that no backend computes on: itself, its bits, the words of keys, or both parts of a complex number."""
    if is_typed_key(value):
        return (jax.random.key_data(value),)
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        return *to_bits(jax.lax.real(value)), *to_bits(jax.lax.imag(value))
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return (value,)
    return (jax.lax.bitcast_convert_type(value, f"uint{jnp.finfo(value.dtype).bits}"),)


def from_bits(bits: Bits, dtype: str) -> Any:
    """The leaf of this dtype, from what `to_bits` made of it."""
    if dtype.startswith("key<"):
        return jax.random.wrap_key_data(bits[0], impl=key_impl(dtype))
    kind = jnp.dtype(dtype)
    if jnp.issubdtype(kind, jnp.complexfloating):
        inner = str(jnp.finfo(kind).dtype)
        return jax.lax.complex(from_bits(bits[:1], inner), from_bits(bits[1:], inner))
    if jnp.issubdtype(kind, jnp.floating):
        return jax.lax.bitcast_convert_type(bits[0], kind)
    return bits[0]


def of_bits(dtype: str) -> list[Any]:
    """The dtypes of the arrays that stand for a leaf: ``[uint32, uint32]`` of complex64."""
    if dtype.startswith("key<"):
        return [jnp.dtype("uint32")]
    kind = jnp.dtype(dtype)
    if jnp.issubdtype(kind, jnp.complexfloating):
        return [jnp.dtype(f"uint{jnp.finfo(kind).bits}")] * 2
    if jnp.issubdtype(kind, jnp.floating):
        return [jnp.dtype(f"uint{jnp.finfo(kind).bits}")]
    return [kind]


def part(bits: Bits, block: Block, kinds: tuple[Kind, Kind], turns: Sequence[Any]) -> Bits:
    """What a block reads, in the shape of the slice that it writes, with each element changed."""
    shape = kinds[1].stored
    moved = tuple(moves.read(array, block, shape, turns) for array in bits)
    if not block.codec:
        return moved
    # Moved first, changed then: what is cut off is not computed on.
    return bits_converted(moved, kinds[0].dtype, block.codec)[0]


def empty(kind: Kind, fillings: Sequence[Filling]) -> Bits:
    """A leaf of zeros, with what is filled in."""
    made: list[Any] = []
    for part_number, dtype in enumerate(of_bits(kind.dtype)):
        array = jnp.zeros(kind.stored, dtype)
        for filling in fillings:
            number = number_of(filling.bits, dtype, part_number)
            array = moves.filled_in(array, filling.block, number)
        made.append(array)
    return tuple(made)


def number_of(bits: int, dtype: Any, part: int = 0) -> Any:
    """One of the numbers that stand for a value, from its bits.

    Example:
        >>> int(number_of(0x0002_0001, np.dtype("uint16"), part=1))
        2
    """
    size = dtype.itemsize
    # Of a complex number the real part comes first, in the low bytes.
    raw = bits.to_bytes(max(size * (part + 1), (bits.bit_length() + 7) // 8), "little")
    return np.frombuffer(raw[size * part : size * (part + 1)], dtype)[0]


# --- Programs  ---


def _placed(bits: Bits, to: KnownShardings) -> Bits:
    """The bits of a leaf, sharded as given."""
    if not to:
        return bits
    return tuple(shardings.constrained(array, to[0]) for array in bits)


def _handed(bits: Bits, dtype: str) -> Any:
    """What stands for a leaf between two programs: itself, the bits of a narrow float, or the words of keys."""
    return bits[0] if is_handed_as_bits(dtype) else from_bits(bits, dtype)


def is_handed_as_bits(dtype: str) -> bool:
    """Whether a leaf is another array between two programs: a backend takes narrow floats for wider ones."""
    if dtype.startswith("key<"):
        return True
    kind = jnp.dtype(dtype)
    return jnp.issubdtype(kind, jnp.floating) and jnp.finfo(kind).bits < 32


# Programs are kept by what they do, so that all layers, and all leaves of one shape, share one.


@functools.lru_cache(maxsize=1024)
def read(
    block: Block, kinds: tuple[Kind, Kind], own: KnownShardings, to: KnownShardings, *, handed: bool
) -> Any:
    """From a leaf and the steps of turns to what a block reads of it.

    Args:
        block: The block.
        kinds: What both leaves are.
        own: How the leaf is sharded.
        to: How what is read is to be.
        handed: Whether a slice is wanted, as it goes to the next program; or else all of the other
            leaf.
    """

    def program(value: Any, *turns: Any) -> Any:
        bits = _placed(to_bits(value), own)
        bits = _placed(part(bits, block, kinds, turns), to)
        if handed:
            return _handed(bits, kinds[1].dtype)
        # A slice has an axis of one step for each turn, which the leaf has not.
        shaped = tuple(array.reshape(kinds[1].stored) for array in bits)
        return from_bits(shaped, kinds[1].dtype)

    return jitted(program, to[0] if to else None)


@functools.lru_cache(maxsize=1024)
def assembled(
    copies: tuple[tuple[int, Block, tuple[int, ...]], ...],
    kinds: tuple[Kind, ...],
    fillings: tuple[Filling, ...],
    kind: Kind,
    own: KnownShardings,
    to: KnownShardings,
) -> Any:
    """From some leaves to one that is put together of blocks of them, as it goes to the next program.

    Args:
        copies: For each block: which leaf it reads, the block, and the steps of its turns.
        kinds: What the leaves are.
        fillings: What no leaf has.
        kind: What the other is.
        own: How the leaves are sharded.
        to: How the other is to be.
    """

    def program(*values: Any) -> Any:
        given: list[Bits] = []
        for number, value in enumerate(values):
            given.append(_placed(to_bits(value), own[number : number + 1]))
        made = put_together(copies, kinds, fillings, kind, given)
        return _handed(_placed(made, to), kind.dtype)

    return jitted(program, to[0] if to else None)


def put_together(
    copies: Sequence[tuple[int, Block, tuple[int, ...]]],
    kinds: Sequence[Kind],
    fillings: Sequence[Filling],
    kind: Kind,
    given: Sequence[Bits],
) -> Bits:
    """The bits of a leaf, of blocks of others: see `assembled`."""
    # One block that is all of the leaf needs no array of zeros to be written into.
    if len(copies) == 1 and not fillings and not copies[0][1].is_empty:
        source, block, turns = copies[0]
        moved = part(given[source], block, (kinds[source], kind), turns)
        if block.count == math.prod(kind.stored):
            return tuple(array.reshape(kind.stored) for array in moved)
    made = empty(kind, fillings)
    for source, block, turns in copies:
        if block.is_empty:
            continue
        pieces = part(given[source], block, (kinds[source], kind), turns)
        wholes: list[Any] = []
        for array, piece in zip(made, pieces, strict=True):
            wholes.append(moves.written(array, piece, block, turns))
        made = tuple(wholes)
    return made


@functools.lru_cache(maxsize=1024)
def begun(kind: Kind, fillings: tuple[Filling, ...], to: KnownShardings) -> Any:
    """From a leaf, which tells the devices, to another with nothing but what is filled in, as it goes to the next program."""

    def program(like: Any) -> Any:
        # The barrier costs nothing, and keeps the leaf among the arguments. jit's own `keep_unused` does too, but newer
        # versions of jax never let go of a program with it.
        made, _ = jax.lax.optimization_barrier((empty(kind, fillings), to_bits(like)))
        return _handed(made, kind.dtype)

    return jitted(program, to[0] if to else None)


@functools.lru_cache(maxsize=1024)
def write(block: Block, to: KnownShardings) -> Any:
    """From a leaf, what a block reads, and the steps of turns, to the leaf with this in its place.

    XLA writes into the array that it is given only if that is all it does: both are of one dtype,
    and sharded alike.
    """

    def program(whole: Any, piece: Any, *turns: Any) -> Any:
        return moves.written(whole, piece, block, turns)

    return jitted(program, to[0] if to else None, donate_argnums=0)


@functools.lru_cache(maxsize=1024)
def taken(dtype: str, to: KnownShardings) -> Any:
    """From what a program has handed on to the leaf that it stands for; it is used up."""

    def program(handed: Any) -> Any:
        return from_bits((handed,), dtype)

    # Keys have words of their own, which no array of another shape can be made of.
    donated = () if dtype.startswith("key<") else (0,)
    return jitted(program, to[0] if to else None, donate_argnums=donated)


@functools.lru_cache(maxsize=1024)
def spread(own: KnownShardings, to: KnownShardings, dtype: str) -> Any:
    """From a leaf to the same in another sharding, as it goes to the next program."""

    def program(value: Any) -> Any:
        return _handed(_placed(_placed(to_bits(value), own), to), dtype)

    return jitted(program, to[0])


def jitted(program: Callable[..., Any], to: NamedSharding | None, **options: Any) -> Any:
    """A jitted function whose result is sharded so; as jax finds where nothing is said."""
    if to is None:
        return Program(program, **options)
    if AxisType.Explicit in to.mesh.axis_types:
        made = Program(known_shardings(program, to), **options)
    else:
        made = Program(program, out_shardings=to, **options)
    return lambda *values: settled(made(*values))


def settled(made: Any) -> Any:
    """What a program made; where it runs on several CPU devices, once it is there.

    XLA runs no more than 32 programs per CPU device at once. The threads that would launch more
    wait, and if one of those programs goes between the devices, it may be these threads that it
    needs: a deadlock.
    """
    for leaf in jax.tree.leaves(made):
        if isinstance(leaf, jax.Array):
            # All results of one program are on the same devices.
            devices = leaf.sharding.device_set
            if len(devices) > 1 and next(iter(devices)).platform == "cpu":
                return jax.block_until_ready(made)
            return made
    return made


def known_shardings(program: Callable[..., Any], to: Any) -> Callable[..., Any]:
    """``program`` with its results' shardings given: on an explicit mesh a sharded axis is not split or merged without."""
    automatic: Any = jax.sharding.auto_axes(out_sharding=to)(program)
    return automatic

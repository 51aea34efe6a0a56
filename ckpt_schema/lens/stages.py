"""Edits of concrete jax arrays, in stages that are each compiled once per shape, whatever the number of layers.

A program that has every layer among its results compiles the longer, the more there are. Here a stack is taken apart by one
small program that is told which layer to slice, and put together by one that writes a layer into its place. What is between two
stages is freed as soon as the next has used it: no more than twice the bytes of what is edited is held besides the inputs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from ckpt_schema import placement
from ckpt_schema.lens import shardings, traced
from ckpt_schema.lens.axes import Sizes
from ckpt_schema.lens.edits import Chain, Edit, Leafwise
from ckpt_schema.lens.partial import Pad, Scale
from ckpt_schema.lens.stacks import Beside, Stack, Unstack, edits_of
from ckpt_schema.programs import Program

__all__ = ["cut", "needed_sizes", "run", "settled", "told"]

_Sized = tuple[tuple[str, int], ...]


def run(chain: Chain, values: Sequence[Any], sizes: Mapping[str, int]) -> list[Any]:
    """The edited leaves.

    Args:
        chain: What is done.
        values: The leaves: jax arrays, or NumPy arrays beside such.
        sizes: The sizes of the dims that the chain needs.

    Returns:
        The results, sharded as the edits map the inputs' shardings, and in the memory that these were in.
    """
    held = [placement.near(value) for value in values]
    if all(one is other for one, other in zip(held, values, strict=True)):
        return _run(chain, held, sizes)
    to = shardings.results(chain, values, sizes)
    made = _run(chain, held, sizes)
    return [placement.placed(x, s) for x, s in zip(made, to, strict=True)] if to else made


def _run(chain: Chain, held: list[Any], sizes: Mapping[str, int]) -> list[Any]:
    """`run`, the list of leaves used up: what nobody else holds is freed on the way."""
    for stage in cut(chain):
        held = _RUNS.get(type(stage.edits[0]), _RUNS.get(type(stage.edits[-1]), _whole))(
            stage, held, sizes
        )
    return held


def cut(chain: Chain) -> Iterator[Chain]:
    """The stages of a chain: each has one edit that depends on the number of layers, or one that computes, or neither.

    Example:
        >>> from ckpt_schema.dims import parse_dims
        >>> from ckpt_schema.lens.rearranged import Rearrange
        >>> turn = Rearrange(parse_dims("a b"), parse_dims("b a"))
        >>> for stage in cut(Unstack(0, ("stages",)) >> Unstack(0, ("depth",)) >> turn):
        ...     print(stage)
        unstack stages on axis 0
        unstack depth on axis 0, a b -> b a
    """
    stage: tuple[Edit, ...] = ()
    for edit in chain.edits:
        if stage and not _together(stage, edit):
            yield Chain(stage)
            stage = ()
        stage = (*stage, edit)
    if stage:
        yield Chain(stage)


def _together(stage: Sequence[Edit], edit: Edit) -> bool:
    """Whether an edit is done in the same stage as those before it."""
    if isinstance(edit, (Unstack, Beside, Scale)) or isinstance(stage[-1], (Stack, Beside, Scale)):
        return False
    if isinstance(edit, Stack):
        return all(isinstance(each, Leafwise) for each in stage)
    return not isinstance(stage[0], Unstack) or isinstance(edit, Leafwise)


def _whole(stage: Chain, held: list[Any], sizes: Mapping[str, int]) -> list[Any]:
    """Edits of a few leaves, all at once."""
    needed = needed_sizes(stage, sizes)

    def made(group: list[Any]) -> list[Any]:
        named = tuple(
            s for s in shardings.results(stage, group, sizes) if isinstance(s, NamedSharding)
        )
        dtype = group[0].dtype
        bits = _bits_of_padded(stage, dtype)
        found: list[Any] = _compiled(stage, needed, bits, _known(group), named)(*group)
        if bits is None:
            return found
        each_named = [(s,) for s in named] or [()] * len(found)
        return [_floats(x, dtype, to) for x, to in zip(found, each_named, strict=True)]

    return [result for group in _used_up(held, stage.takes(sizes)) for result in made(group)]


def _side_by_side(stage: Chain, held: list[Any], sizes: Mapping[str, int]) -> list[Any]:
    """Chains side by side, each in its own stages."""
    (edit,), found = stage.edits, list[Any]()
    assert isinstance(edit, Beside)
    for group in _used_up(held, edit.takes(sizes)):
        for chain in edit.chains:
            found += _run(chain, [group.pop(0) for _ in range(chain.takes(sizes))], sizes)
    return found


def _taken_apart(stage: Chain, held: list[Any], sizes: Mapping[str, int]) -> list[Any]:
    """Each layer of each stack, sliced and edited."""
    unstack, rest = stage.edits[0], Chain(stage.edits[1:])
    assert isinstance(unstack, Unstack)
    found: list[Any] = []
    for (whole,) in _used_up(held, 1):
        inner = shardings.results(Chain((unstack,)), [whole], sizes)[:1]
        named = tuple(
            s for s in shardings.results(stage, [whole], sizes)[:1] if isinstance(s, NamedSharding)
        )
        apart = tuple(
            shardings.with_axis(s, unstack.axis, whole.ndim - 1)
            for s in inner
            if isinstance(s, NamedSharding)
        )
        bits_of = None
        if not all(shardings.equivalent(whole, s) for s in apart):
            # Of an axis that is sharded, each slice would be gathered from all devices: once, other axes take its place.
            bits_of = whole.dtype if _bits(whole.dtype) else None
            whole = _bitwise(Chain(), (), _bits(whole.dtype), _known([whole]), apart)(whole)
        dtype = whole.dtype if bits_of is None else bits_of
        bits = _bits_of_padded(rest, dtype)
        one = _slicer(
            unstack.axis, rest, needed_sizes(rest, sizes), bits_of, bits, _known([whole]), named
        )
        layers = [one(whole, np.uint32(at)) for at in range(unstack.gives(sizes))]
        found += layers if bits is None else [_floats(x, dtype, named) for x in layers]
    return found


def _put_together(stage: Chain, held: list[Any], sizes: Mapping[str, int]) -> list[Any]:
    """Stacks, each layer edited and written into its place."""
    rest, stack = Chain(stage.edits[:-1]), stage.edits[-1]
    assert isinstance(stack, Stack)
    size = stack.takes(sizes)
    bits = _bits(held[0].dtype, narrow=True)
    found: list[Any] = []
    for group in _used_up(held, size):
        named = tuple(
            s for s in shardings.results(stage, group, sizes) if isinstance(s, NamedSharding)
        )
        to = tuple(shardings.without_axis(s, stack.axis) for s in named)
        begin, write, whole = _beginner(stack.axis, size, named), _writer(stack.axis, named), None
        needed, dtype = needed_sizes(rest, sizes), group[0].dtype
        for at in range(size):
            layer = group.pop(0)
            if rest or bits or not all(shardings.equivalent(layer, s) for s in to):
                layer = _bitwise(rest, needed, bits, _known([layer]), to)(layer)
            whole = write(begin(layer) if whole is None else whole, layer, np.uint32(at))
        found.append(_floats(whole, dtype, named) if bits else whole)
    return found


def _known(values: Sequence[Any]) -> tuple[NamedSharding, ...]:
    """How the leaves are sharded, if all of them are over one mesh."""
    found = tuple(
        v.sharding for v in values if isinstance(getattr(v, "sharding", None), NamedSharding)
    )
    return found if len(found) == len(values) and len({each.mesh for each in found}) == 1 else ()


def _bits(dtype: Any, *, narrow: bool = False) -> str | None:
    """The integers that floats travel as between two programs; if ``narrow``, only such as a backend takes for wider ones."""
    if not jnp.issubdtype(dtype, jnp.floating) or (narrow and jnp.finfo(dtype).bits >= 32):
        return None
    return f"uint{jnp.finfo(dtype).bits}"


def _bits_of_padded(chain: Chain, dtype: Any) -> str | None:
    """The integers that padded leaves of a narrow float leave a program as, or None.

    XLA's CPU backend, where it does not optimize, hands a padded bfloat16 on as a wider float.
    The cast back makes a signaling NaN a quiet one. It does so for bits as well, if the same
    program makes floats of them.
    """
    pads = any(isinstance(edit, Pad) for edit in edits_of(chain))
    return _bits(dtype, narrow=True) if pads else None


def _floats(bits: Any, dtype: Any, named: tuple[NamedSharding, ...]) -> Any:
    """The leaf of a dtype whose bits a program made, in a program of its own; the bits are used up."""
    return _bitwise(Chain(), (), str(dtype), named, named, donate=True)(bits)


_RUNS: dict[type[Edit], Callable[[Chain, list[Any], Mapping[str, int]], list[Any]]] = {
    Beside: _side_by_side,
    Unstack: _taken_apart,
    Stack: _put_together,
}


def _used_up(held: list[Any], size: int) -> Iterator[list[Any]]:
    """Leaves in groups of ``size``; those that were given out are not held any more."""
    held.reverse()
    while held:
        yield [held.pop() for _ in range(size)]


def needed_sizes(chain: Chain, sizes: Mapping[str, int]) -> _Sized:
    """The sizes of the dims that a chain needs, hashable."""
    return tuple((name, sizes[name]) for name in sorted(chain.names))


# --- Programs  ---


@functools.lru_cache(maxsize=1024)
def _compiled(
    chain: Chain,
    sizes: _Sized,
    bits: str | None,
    own: tuple[NamedSharding, ...],
    named: tuple[NamedSharding, ...],
) -> Any:
    """One program per distinct edit and sharding of the results; it is compiled once per shape."""

    def program(*values: Any) -> list[Any]:
        return [_as(bits, x) for x in traced.edited(chain, values, dict(sizes), own, named)]

    return _jitted(program, list(named))


@functools.lru_cache(maxsize=1024)
def _slicer(
    axis: int,
    rest: Chain,
    sizes: _Sized,
    bits_of: Any,
    bits: str | None,
    own: tuple[NamedSharding, ...],
    named: tuple[NamedSharding, ...],
) -> Any:
    """From a stack, or from the bits of one of a dtype, and a number, to that layer, edited."""

    def program(value: Any, at: Any) -> Any:
        chain = Chain((_At(axis, at), *rest.edits))
        (found,) = traced.edited(chain, [value], dict(sizes), own, named, bits_of)
        return _as(bits, found)

    return _jitted(program, named[0] if named else None)


@functools.lru_cache(maxsize=1024)
def _bitwise(
    chain: Chain,
    sizes: _Sized,
    dtype: str | None,
    own: tuple[NamedSharding, ...],
    named: tuple[NamedSharding, ...],
    *,
    donate: bool = False,
) -> Any:
    """From a leaf to the edited leaf, or to its bits where a dtype for them is given."""

    def program(value: Any) -> Any:
        (found,) = traced.edited(chain, [value], dict(sizes), own, named)
        return _as(dtype, found)

    return _jitted(program, named[0] if named else None, donate_argnums=(0,) if donate else ())


def _as(dtype: str | None, value: Any) -> Any:
    """The bits of a leaf as a dtype; the leaf itself where none is given."""
    return value if dtype is None else jax.lax.bitcast_convert_type(value, dtype)


@functools.lru_cache(maxsize=1024)
def _beginner(axis: int, size: int, named: tuple[NamedSharding, ...]) -> Any:
    """From a layer to a stack of as many."""

    def begin(value: Any) -> Any:
        shape = (*value.shape[:axis], size, *value.shape[axis:])
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):  # there are no zeros of keys
            return jnp.broadcast_to(jnp.expand_dims(value, axis), shape)
        return jnp.zeros(shape, value.dtype)

    return _jitted(
        begin, named[0] if named else None, keep_unused=True
    )  # the layer tells the devices


@functools.lru_cache(maxsize=1024)
def _writer(axis: int, named: tuple[NamedSharding, ...]) -> Any:
    """From a stack, a layer and a number to the stack with that layer in its place.

    XLA writes into the array that it is given only if that is all it does: both are of one dtype, and sharded alike.
    """

    def write(whole: Any, layer: Any, at: Any) -> Any:
        starts = _starts(axis, at, whole.ndim)
        return jax.lax.dynamic_update_slice(whole, jax.lax.expand_dims(layer, (axis,)), starts)

    return _jitted(write, named[0] if named else None, donate_argnums=0)


def _jitted(program: Callable[..., Any], to: Any, **options: Any) -> Any:
    """A jitted function whose results are sharded so; as jax finds where nothing is said."""
    if not to:
        return Program(program, **options)
    mesh = (to[0] if isinstance(to, list) else to).mesh
    if AxisType.Explicit in mesh.axis_types:
        made = Program(told(program, to), **options)
    else:
        made = Program(program, out_shardings=to, **options)
    return lambda *values: settled(made(*values))


def settled(found: Any) -> Any:
    """What a program made; where it runs on several CPU devices, once it is there.

    XLA runs no more than 32 programs per CPU device at once. The threads that would launch more wait, and if one of those
    programs goes between the devices, it may be these threads that it needs: a deadlock.
    """
    some = next((x for x in jax.tree.leaves(found) if isinstance(x, jax.Array)), None)
    if (
        some is None
        or len(devices := some.sharding.device_set) == 1
        or next(iter(devices)).platform != "cpu"
    ):
        return found
    return jax.block_until_ready(found)


def told(program: Callable[..., Any], to: Any) -> Callable[..., Any]:
    """``program`` with its results' shardings given: on an explicit mesh a sharded axis is not split or merged without."""
    found: Any = jax.sharding.auto_axes(out_sharding=to)(program)
    return found


# --- Edits inside of programs, with a number that is traced  ---


def _starts(axis: int, at: Any, ndim: int) -> list[Any]:
    """Where one layer starts on each axis.

    Numbers without a sign need no look at what a negative one would mean, for which jax keeps a program of its own.
    """
    return [at if n == axis else np.uint32(0) for n in range(ndim)]


@dataclasses.dataclass(frozen=True, slots=True)
class _At(Leafwise):
    """One layer of a stack."""

    axis: int
    at: Any

    def one(self, value: Any, sizes: Sizes) -> Any:
        """The layer."""
        shape = (*value.shape[: self.axis], 1, *value.shape[self.axis + 1 :])
        starts = _starts(self.axis, self.at, value.ndim)
        return jax.lax.squeeze(jax.lax.dynamic_slice(value, starts, shape), (self.axis,))

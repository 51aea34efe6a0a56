"""Leaves that come back up to a loss: by how much there and back may change each of their values.

A lens that rounds, scales or shifts gives another number back than it was given. How far off that
may be follows from each word of a codec, and from no run of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.paths import fill, format_path
from ckpt_schema._lens.codecs import Codec, Plus, Rounded, Times, evaluated, inverted
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.losses import loss
from ckpt_schema._trees.conformance import Matcher
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import Mismatch
from ckpt_schema.testing._held import host
from ckpt_schema.testing._sums import is_within_bound, sum_bounds

__all__ = ["excused", "lost_more", "within_loss"]

_TWICE = 1.01
"""What a second rounding adds at most: numbers are computed in float32, and then take a narrower dtype."""


def within_loss(value: Any, other: Any, codec: Codec) -> np.ndarray[Any, Any]:
    """Which elements of two arrays are apart by no more than a codec and its inverse may make of them.

    Args:
        value: What the codec is given.
        other: What comes back.
        codec: What happens to each element.

    Example:
        >>> within_loss(np.float32([0.1, 0.1]), np.float32([0.1001, 0.11]), (Rounded("float32", "bfloat16"),))
        array([ True, False])
    """
    # A complex number is rounded as the two floats that it is.
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        is_real = within_loss(np.real(value), np.real(other), codec)
        return is_real & within_loss(np.imag(value), np.imag(other), codec)
    with np.errstate(all="ignore"):
        one, two = value.astype(np.longdouble), other.astype(np.longdouble)
        alike = (one == two) | (np.isnan(one) & np.isnan(two))
        return alike | (np.abs(one - two) <= _bound(one, str(value.dtype), codec))


def _bound(value: Any, dtype: str, codec: Codec) -> Any:
    """How far what comes back may be from a value: errors grow with factors, and each word adds its own."""
    error = np.zeros_like(value)
    # There, and back again: both ways round.
    for word in (*codec, *inverted(codec)):
        if isinstance(word, Times):
            assert not isinstance(word.factor, str)
            factor = 1 / np.longdouble(word.factor) if word.divides else np.longdouble(word.factor)
            value, error = value * factor, error * abs(factor)
        elif isinstance(word, Plus):
            value = value + np.longdouble(word.amount)
        else:
            dtype = word.view
            factor = np.longdouble(1) if isinstance(word, Rounded) else 2.0**word.exponent
            value, error = value * factor, error * factor
        # What comes out of each word is rounded to its dtype: by half of its last bit at most, or
        # of the least number, where it is subnormal.
        form = FORMATS.get(dtype)
        if form is not None:
            unit = np.ldexp(np.longdouble(_TWICE), -(form.mantissa + 1))
            least = np.ldexp(np.longdouble(_TWICE), form.least - 1)
            error = error + unit * (np.abs(value) + error) + least
    return error


@functools.lru_cache(maxsize=64)
def _lossy(lens: Lens) -> Mapping[int, Sequence[Codec]]:
    """What happens to the rows of a source that do not come back to the last bit."""
    codecs: dict[int, list[Codec]] = {}
    for join in lens.joins:
        for cell in join.cells:
            # A constant is no value of a row.
            if not isinstance(cell.source, int) or not isinstance(cell.view, int):
                continue
            if loss(cell.codec) is not None:
                codecs.setdefault(cell.source, []).append(evaluated(cell.codec, lens.dims))
    return codecs


def excused(lens: Lens, found: Tree, expected: Tree) -> Tree:
    """``found``, with the leaves of ``expected`` where only what the lens loses sets them apart.

    Args:
        lens: The lens, all of whose dims are bound.
        found: What came back, a tree of its source.
        expected: What it was, of the same structure.
    """
    if lens.exact:
        return found
    lossy, slots = _lossy(lens), Matcher(lens.source).match(found).slots
    (leaves, treedef), likes = jax.tree.flatten(found), jax.tree.leaves(expected)
    for (number, _), at in slots.items():
        if number in lossy and _is_within(leaves[at], likes[at], lossy[number]):
            leaves[at] = likes[at]
    for at, bound in sum_bounds(lens, slots, likes):
        if is_within_bound(leaves[at], likes[at], bound):
            leaves[at] = likes[at]
    return treedef.unflatten(leaves)


def lost_more(lens: Lens, found: Tree, expected: Tree) -> Iterator[Mismatch]:
    """The leaves that are set apart by more than the lens loses, of those that do not come back.

    Args:
        lens: The lens, all of whose dims are bound.
        found: What came back, a tree of its source, which may have defaults for what did not.
        expected: What it was.
    """
    lossy, matcher = _lossy(lens), Matcher(lens.source)
    ours, left = matcher.match(found).slots, jax.tree.leaves(found)
    theirs, right = matcher.match(expected).slots, jax.tree.leaves(expected)
    # What came back may have a leaf more, by its default, or one less, of which nothing is kept.
    for slot in ours.keys() & theirs.keys():
        number, indices = slot
        if number not in lossy:
            continue
        if not _is_within(left[ours[slot]], right[theirs[slot]], lossy[number]):
            where = format_path(fill(lens.source.rows[number].key, indices))
            told = "; ".join(dict.fromkeys(filter(None, map(loss, lossy[number]))))
            yield Mismatch(where, "loss", f"what it was, but for this loss: {told}", "more is lost")
    by_position = {at: slot for slot, at in theirs.items()}
    for at, bound in sum_bounds(lens, theirs, right):
        slot = by_position[at]
        # Parts of a sum that nobody kept are no loss of what was added.
        if lens.folds[0] or slot not in ours:
            continue
        if not is_within_bound(left[ours[slot]], right[at], bound):
            where = format_path(fill(lens.source.rows[slot[0]].key, slot[1]))
            yield Mismatch(where, "loss", "what it was, but for two roundings", "more is lost")


def _is_within(found: Any, expected: Any, codecs: Sequence[Codec]) -> bool:
    """Whether elements are apart by no more than one of the codecs loses: each is for some of them."""
    one, two = host(found), host(expected)
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    each = [within_loss(two, one, codec) for codec in codecs]
    return bool(np.logical_or.reduce(each).all())

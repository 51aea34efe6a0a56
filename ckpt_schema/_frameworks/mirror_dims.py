"""The dims of what an optimizer keeps for a param: which of its axes is which axis of the param.

A leaf is told by its shapes at several sizes of the params. An axis that is always as long as a
dim of the param is that dim; one that is always of one length is a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import EITHER, AxisName, Dim, Dims
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.table import Repeat, Row

__all__ = ["dims_at_one_size", "dims_of_shapes", "mirror_leaf", "unstacked"]

_Sizes = Mapping[str, int]


def dims_of_shapes(
    param: Dims, shapes: Sequence[tuple[int, ...]], sizes: Sequence[_Sizes]
) -> Dims | None:
    """The dims of a leaf that has these shapes at these sizes.

    Those of its param where it has the same.
    """
    ranks = set(map(len, shapes))
    if len(ranks) > 1:
        return None
    # A shape like the param's own is that of the param, though two of its axes may be of one dim.
    shapes_of_param = [dims_.sizes_of(param, sizes_) for sizes_ in sizes]
    if shapes_of_param == list(shapes):
        return param
    dims: list[Dim] = []
    for lengths in zip(*shapes, strict=True):
        dim = _axis(param, lengths, sizes)
        if dim is None:
            return None
        dims.append(dim)
    return tuple(dims)


def _axis(param: Dims, lengths: Sequence[int], sizes: Sequence[_Sizes]) -> Dim | None:
    """The dim of a param, or product of neighbouring ones, that is always as long as an axis.

    If there is none, its one length.
    """

    def is_as_long(dim: Dim) -> bool:
        return [dims_.size_of(dim, sizes_) for sizes_ in sizes] == list(lengths)

    fits = set(filter(is_as_long, param))
    is_constant = len(set(lengths)) == 1
    # At one size a length alone tells nothing: 8 may be a dim of 8, or the number 8.
    if len(fits) == 1 and not (is_constant and len(sizes) == 1):
        return fits.pop()
    # An axis that no size changes is a number of the transformation's own.
    if is_constant:
        return (lengths[0],)
    # Some flatten a param: of [a b c] the axis may be a*b, b*c or a*b*c.
    for start in range(len(param)):
        for end in range(start + 2, len(param) + 1):
            run = dims_.factors(param[start:end])
            if is_as_long(run):
                return run
    return None


def dims_at_one_size(
    param: Dims, shape: Sequence[int], guesses: Sequence[Dims], sizes: _Sizes
) -> Dims:
    """The dims of a leaf at one size.

    An axis that the guesses do not tell has the names of all dims that are as long.

    A dim called ``embed_or_mlp`` is the same in two layouts only if both keep these two in this
    order.
    """
    dims: list[Dim] = []
    for axis, length in enumerate(shape):
        guessed = {guess[axis] for guess in guesses}
        fits = [dim for dim in param if dims_.size_of(dim, sizes) == length]
        if len(guessed) == 1:
            dims.append(guessed.pop())
        elif len(set(fits)) > 1:
            # The sizes near by tell nothing of it, or two things: it may be either, so it is called both.
            either = [dims_.format_dim(dim).replace("*", "_x_") for dim in fits]
            dims.append(("_or_".join(either),))
        else:
            dims.append(fits[0] if fits else (length,))
    return tuple(dims)


def unstacked(stored: Dims, param: Row) -> tuple[Dims, tuple[Repeat, ...]]:
    """Dims as stored, split into those of one repeat and the levels of repetition the leaf shares with its param."""
    if stored == param.dims:
        return param.leaf.dims, param.repeats
    rest, repeats = list(stored), list[Repeat]()
    # Outermost first: each axis is told as it stands once those before are taken out.
    for repeat in param.repeats:
        # A list has a leaf for each layer, and so has what is kept for its leaves.
        if repeat.axis is None:
            repeats.append(repeat)
        # A stack is shared where one axis alone can be it. Where an optimizer has summed over that
        # axis, all layers share what is kept.
        elif rest.count(repeat.size) == 1 and param.dims.count(repeat.size) == 1:
            repeats.append(Repeat(repeat.size, rest.index(repeat.size)))
            rest.remove(repeat.size)
    return tuple(rest), tuple(repeats)


def mirror_leaf(dims: Dims, dtype: str, param: Row) -> Leaf:
    """A leaf that is kept for a param, its axes called as those of the param are.

    Where several axes of the param have this dim, an axis has the names of all of them, in their
    order: it is the same in two layouts only if both keep these axes in one order, for which of
    them an optimizer reduces may hang on that.
    """
    if dims == param.leaf.dims:
        return Leaf(dims, dtype, param.leaf.names)
    if not param.leaf.names:
        return Leaf(dims, dtype)
    return Leaf(dims, dtype, tuple([_axis_name(dim, param.leaf) for dim in dims]))


def _axis_name(dim: Dim, of_param: Leaf) -> AxisName:
    """What an axis of this dim is called after those of the param's leaf."""
    fits: list[AxisName] = []
    for axis, name in zip(of_param.dims, of_param.names, strict=True):
        if axis == dim:
            fits.append(name)
    if len(fits) == 1:
        return fits[0]
    if fits:
        return AxisName((EITHER.join(map(str, fits)),) * len(dim))
    # An axis of several neighbours has the names of each: a flattened [heads head_dim] keeps both.
    count = len(of_param.dims)
    for start in range(count):
        for end in range(start + 1, count + 1):
            if dims_.factors(of_param.dims[start:end]) == dim:
                parts: list[str] = []
                for name in of_param.names[start:end]:
                    parts += name.parts
                return AxisName(tuple(parts))
    # A number of the transformation's own has no name but itself.
    return AxisName(tuple(map(str, dim)))

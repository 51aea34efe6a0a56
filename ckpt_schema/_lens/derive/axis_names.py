"""Which axis of one leaf is which axis of another.

Axes match by the names of their dims where these differ within the leaf. Axes that have come to
have one dim, `twins`, match by what the class of each side calls them, before ``dims=`` and beside
a label. What only one side tells apart is an error: a square leaf that is taken for its transpose
conforms to everything, and nobody sees it.

`relations` asks `matched` of each pair of rows whose axes need a look; what `matched` cannot say
becomes a fault, with a rule to paste where a rule would settle it.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterator, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import EITHER, Dim, DimFactor, Dims
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.axis_rules import Repeated
from ckpt_schema._lens.derive.leaf_rules import Told
from ckpt_schema._lens.rules import Apart, Rename, Reset, Tie
from ckpt_schema._lens.spelled_axes import SpelledAxes
from ckpt_schema.errors import Mismatch

__all__ = [
    "axes_called",
    "fault",
    "guessed",
    "guessed_tie",
    "in_doubt",
    "matched",
    "same_axes",
    "sized",
    "square",
]

_Atom = tuple[DimFactor, str]
"""A factor of an axis, and what its class calls it."""


def fault(source: Row, view: Row, kind: str, hint: str, rules: Sequence[Rename] = ()) -> Mismatch:
    """The fault of two rows that are one leaf and are not related."""
    return Mismatch(
        "/".join(view.path),
        kind,
        f"{view.stored} as in the view",
        f"{source.stored} in the source",
        hint,
        mirrors=view.mirrors,
        rules=tuple(rules),
    )


def same_axes(one: Leaf, other: Leaf) -> bool:
    """Whether leaves of equal dims need no look at what their axes are called."""
    if one.names == other.names:
        return True
    # A size may be another axis's by chance, and `embed_or_mlp` is a name of two.
    atoms = [*_atoms(one), *_atoms(other)]
    is_unsure = any(isinstance(factor, int) or EITHER in name for factor, name in atoms)
    # Without twins each axis has a dim of its own, and is found by it.
    return not is_unsure and not _twins(one)


def square(leaf: Leaf) -> bool:
    """Whether sizes alone say what axes there are, and two of them are equal.

    Example:
        >>> from ckpt_schema._layouts.dims import parse_dims
        >>> [square(Leaf(parse_dims(text), "float32")) for text in ("8 8", "8 4", "embed embed", "1 1")]
        [True, False, False, False]
    """
    return not leaf.names and any(isinstance(factor, int) for factor in _twins(leaf))


def guessed(source: Row, view: Row, told: Told, *, turned: bool = False) -> str:
    """The rule that says the order of a square leaf's axes as it was taken, where the names of the leaf differ and none does.

    Square leaves of one name are taken for the same leaf; those of two names may come from
    libraries that order axes in two ways, as a ``weight`` of PyTorch and a ``kernel`` of Flax do;
    and so may those of one name where another leaf is ``turned`` by a rule.
    """
    if told.axes is not None or (source.model_path == view.model_path and not turned):
        return ""
    if not square(source.leaf) or not square(view.leaf):
        return ""
    # The order that was taken is that of both: 0 1. Whoever knows better writes 1 0.
    rule = Rename(source.model_path, view.model_path, tuple(range(len(source.leaf.dims))))
    return f"{rule}  {source.leaf}"


def guessed_tie(copy: Row, of: Row) -> str:
    """The same of a square leaf that was taken for a copy of another one of its side."""
    if copy is of or not square(copy.leaf) or not square(of.leaf):
        return ""
    rule = Tie(copy.model_path, of.model_path, tuple(range(len(copy.leaf.dims))))
    return f"{rule}  {copy.leaf}"


def in_doubt(source: Row, view: Row, order: tuple[int, ...]) -> Mismatch:
    """The fault of a square leaf that was taken as it stands, where a rule turns a namesake into another order."""
    straight = tuple(range(len(source.leaf.dims)))
    # That of a convolution has more numbers than a linear layer has axes.
    turned = order if len(order) == len(straight) else straight[::-1]
    said: list[str] = []
    for axes in (turned, straight):
        if axes in _fitting(source.leaf.dims, view.leaf.dims):
            said.append(str(Rename(source.model_path, view.model_path, axes)))
    hint = (
        f"a rule turns the axes of another {''.join(source.model_path[-1:])} that is a "
        f"{''.join(view.model_path[-1:])}, "
        f"and the sizes of this one do not show whether it is turned too: say {' or '.join(said)}"
    )
    return fault(source, view, "ambiguous", hint)


def axes_called(leaf: Leaf, dim: Dim) -> list[int]:
    """The axes with this dim, or where there are none, those that their class calls so."""
    spelled = dims_.format_dim(dim)
    with_dim: list[int] = []
    with_name: list[int] = []
    for axis, (its_dim, name) in enumerate(zip(leaf.dims, leaf.own, strict=True)):
        if its_dim == dim:
            with_dim.append(axis)
        if str(name) == spelled:
            with_name.append(axis)
    # With dims={"vocab": 32} the axis `vocab` of the class has the dim 32, and rules still say vocab.
    return with_dim or with_name


def _atoms(leaf: Leaf) -> list[_Atom]:
    """The factors of all axes, each with its name: of ``embed 3*heads`` with 3 heads, embed, 3 and 3 called heads."""
    atoms: list[_Atom] = []
    for dim, name in zip(leaf.dims, leaf.own, strict=True):
        for factor, called in zip(dim, name.parts, strict=True):
            # An axis of size 1 holds nothing that could be in the wrong place.
            if factor != 1:
                atoms.append((factor, called))
    return atoms


def _twins(leaf: Leaf) -> set[DimFactor]:
    """The factors that a leaf has more than once, without those of size 1."""
    once: set[DimFactor] = set()
    again: set[DimFactor] = set()
    # A Counter would take most of the time of a derivation, and nearly all leaves have no twins.
    for dim in leaf.dims:
        for factor in dim:
            if factor != 1:
                (again if factor in once else once).add(factor)
    return again


def matched(source: Row, view: Row, told: Told) -> list[int] | Mismatch:
    """For each factor of the view's own dims, which of the source's it is.

    Those of size 1 are none.
    """
    atoms = _atoms(source.leaf), _atoms(view.leaf)
    before = [factor for factor, _ in atoms[0]]
    after = [factor for factor, _ in atoms[1]]
    # As text, for numbers, names and sums are in no order among one another.
    if sorted(map(str, before)) != sorted(map(str, after)):
        return _unlike_factors(source, view, before, after)
    keys, conflict = _keyed(*atoms)
    # A rule that says the order comes before all names: it is how a user settles what they leave open.
    if told.axes is not None:
        return _ordered(source, view, told.axes, keys)
    if conflict is not None:
        return _conflict(source, view, conflict)
    # Even where two axes are as long, [8 8] beside [8 8]: without names that is the same leaf.
    if keys[0] == keys[1] and source.leaf.dims == view.leaf.dims:
        return [*range(len(before))]
    # [8 4] beside [4 8] may be its transpose, or the same elements in another shape.
    if before != after and not any(isinstance(factor, str) for factor in before):
        if _named(atoms[0]) and sorted(map(str, atoms[0])) == sorted(map(str, atoms[1])):
            keys = [*atoms[0]], [*atoms[1]]
        else:
            hint = (
                "sizes alone do not say which axis is which: "
                f"declare the axes with named dims, or {_orders(source, view)}"
            )
            return fault(source, view, "ambiguous", hint, _only_order(source, view))
    twice: set[str] = set()
    for (factor, _), count in collections.Counter(keys[0]).items():
        if count > 1:
            twice.add(str(factor))
    if twice:
        hint = (
            f"{' '.join(sorted(twice))} occurs twice in one leaf: "
            "name the axes apart with different dims or labels, "
            f"or {_orders(source, view)}"
        )
        return fault(source, view, "ambiguous", hint)
    return [keys[0].index(key) for key in keys[1]]


def _unlike_factors(
    source: Row, view: Row, before: Sequence[DimFactor], after: Sequence[DimFactor]
) -> Mismatch:
    """The fault of two rows whose axes are products of other factors."""
    differing = sorted({*map(str, before)} ^ {*map(str, after)})
    lacking = " ".join(differing) or "how often each occurs"
    hint = f"the dims must have the same factors; they differ in: {lacking}"
    offered = _spelled(source, view)
    if offered:
        return fault(source, view, "ambiguous", f"{hint}. Say {offered}")
    # What a rule has renamed was meant as one leaf; two of one name may share nothing else.
    if source.body is not None and source.model_path == view.model_path:
        name = Apart(source.model_path, None)
        hint = f"{hint}. Declare the same on both sides, or say {name} if the two share only their name"
        counts = collections.Counter(before), collections.Counter(after)
        more = (counts[0] - counts[1]) or (counts[1] - counts[0])
        # One factor more, such as heads where one side has a value for each: it may be repeated.
        if abs(len(before) - len(after)) == 1 and more.total() == 1:
            hint = f"{hint}, or {Repeated(view.model_path, next(iter(more)))} if they are copies"
    return fault(source, view, "dims", hint)


_Keys = tuple[list[_Atom], list[_Atom]]
"""The factors of both sides, each with its name where that is needed to tell it from others."""


def _keyed(one: Sequence[_Atom], other: Sequence[_Atom]) -> tuple[_Keys, DimFactor | None]:
    """What the factors of both sides are matched by, and one whose names do not match, if there is any."""
    # Factors that are matched by their names besides.
    named: set[DimFactor] = set()
    conflict: DimFactor | None = None
    names_here, names_there = _names_by_factor(one), _names_by_factor(other)
    for factor, here in names_here.items():
        there = names_there.get(factor, [])
        # What an optimizer keeps of one of two equal axes is called by both names.
        is_unsure = any(EITHER in name for name in (*here, *there))
        if len(here) == 1 and not is_unsure:
            continue  # it is the only one of its size: nothing has to tell it apart
        if sorted(here) == sorted(there):
            named.add(factor)
        elif is_unsure or len(set(here)) > 1 or len(set(there)) > 1:
            conflict = factor

    def keys(atoms: Sequence[_Atom]) -> list[_Atom]:
        return [(factor, name if factor in named else "") for factor, name in atoms]

    return (keys(one), keys(other)), conflict


def _names_by_factor(atoms: Sequence[_Atom]) -> dict[DimFactor, list[str]]:
    """What the factors of each kind are called, in their order: of ``in=embed out=embed`` embed is in and out."""
    names: dict[DimFactor, list[str]] = {}
    for factor, name in atoms:
        names.setdefault(factor, []).append(name)
    return names


def _named(atoms: Sequence[_Atom]) -> bool:
    """Whether every axis has a name, and different ones."""
    # An axis that is declared as 8 is called 8, which says no more than its size.
    names: set[str] = set()
    for factor, name in atoms:
        if name == str(factor):
            return False
        names.add(name)
    return len(names) == len(atoms)


def _conflict(source: Row, view: Row, factor: DimFactor) -> Mismatch:
    """The fault of twins that one side alone tells apart, or each side by other names."""
    telling: list[str] = []
    for side, row in (("the source", source), ("the view", view)):
        names = _names_by_factor(_atoms(row.leaf)).get(factor, ())
        if len(set(names)) > 1:
            telling.append(side)
    # A factored moment keeps an axis of its param, and its class has no name for which.
    if source.reshaped or view.reshaped:
        why = f"nobody can say which axis of the param {factor} is: start it anew"
        return fault(source, view, "ambiguous", f"{why}, {Reset(source.path, view.path)}")
    if len(telling) == 1:
        why = f"{factor} occurs twice in one leaf, and only {telling[0]} tells which is which"
    else:
        why = f"{factor} occurs twice in one leaf, and the sides call the two by different names"
    hint = (
        f'{why}: call them alike in the classes, or by labels, "in={factor} out={factor}", '
        f"or {_orders(source, view)}"
    )
    return fault(source, view, "ambiguous", hint)


def _orders(source: Row, view: Row) -> str:
    """How to say the order of the axes."""
    count = len(source.leaf.dims)
    if count != len(view.leaf.dims):
        return "declare both sides with the same number of axes"
    # Three tell whether it is one, two or more; of many equal axes there are thousands.
    fitting = [*itertools.islice(_fitting(source.leaf.dims, view.leaf.dims), 3)]
    if not fitting:
        return "declare both sides with the same axes"
    first = Rename(source.model_path, view.model_path, fitting[0])
    if len(fitting) == 1:
        return f"say the order of the axes, of which one alone fits: {first}"
    second = repr(" ".join(map(str, fitting[1])))
    if count == 2:
        second = f"{second} for the transpose"
    elif len(fitting) > 2:
        second = "another order"
    return f"say the order of the axes: {first}, or {second}"


def _spelled(source: Row, view: Row) -> str:
    """How to say that axes of the one side are products of those of the other.

    Nothing where they are none. Of ``[8 6]`` and ``[8 2 3]`` it is ``a b*c -> a b c``.

    The order of the factors is never certain: heads may come first or last.
    """
    before, after = _plain_shape(source), _plain_shape(view)
    if before is None or after is None or len(before) == len(after):
        return ""
    coarse, fine = sorted((before, after), key=len)
    letters = "abcdefghijklmnop"[: len(fine)]
    offered: list[str] = []
    order = ""
    # Two are shown, and the third tells that there are more.
    for groups in itertools.islice(_grouped(coarse, fine), 3):
        products: list[str] = []
        for group in groups:
            products.append("*".join(letters[axis] for axis in group) or "1")
            if len(group) > 2:
                first, second, *rest = [letters[axis] for axis in group]
                swapped = "*".join([second, first, *rest])
                # A fused leaf of GPT-NeoX has query, key and value head by head, and that of GPT-2 side by side.
                order = (
                    f"; no size shows in which order factors stand in a product: {products[-1]} is "
                    f"{swapped} if each of the {second} has parts of its own"
                )
        sides = [" ".join(products), " ".join(letters)]
        if before is fine:
            sides.reverse()
        axes = SpelledAxes((), (), " -> ".join(sides))
        offered.append(str(Rename(source.model_path, view.model_path, spelled=axes)))
    if len(offered) < 3:
        return " or ".join(offered) + order
    return f"{offered[0]} or {offered[1]} or another order{order}"


def _plain_shape(row: Row) -> tuple[int, ...] | None:
    """The shape of a leaf that was read off a tree."""
    # Who has declared the axes by name writes the product there, and needs no rule.
    if row.leaf.names or not row.leaf.dims:
        return None
    return dims_.sizes_of(row.leaf.dims, {})


def _grouped(
    coarse: Sequence[int], fine: Sequence[int], taken: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The ways to deal the axes of one leaf to those of another that are their products."""
    if not coarse:
        if len(taken) == len(fine):
            yield ()
        return
    free = [axis for axis in range(len(fine)) if axis not in taken]
    # Each of the axes that come after this one needs one of the free ones at least.
    for count in range(1, len(free) - len(coarse) + 2):
        for group in itertools.combinations(free, count):
            if math.prod(fine[axis] for axis in group) != coarse[0]:
                continue
            for rest in _grouped(coarse[1:], fine, (*taken, *group)):
                yield (group, *rest)


def _only_order(source: Row, view: Row) -> list[Rename]:
    """The rule that says the order of the axes, where their sizes leave only one."""
    fitting = [*itertools.islice(_fitting(source.leaf.dims, view.leaf.dims), 2)]
    return [Rename(source.model_path, view.model_path, fitting[0])] if len(fitting) == 1 else []


def _fitting(source: Dims, view: Dims, chosen: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The orders of the source's axes whose sizes are those of the view's."""
    if len(source) != len(view):
        return
    if len(chosen) == len(view):
        yield chosen
        return
    wanted = sized(view[len(chosen)])
    for axis, dim in enumerate(source):
        if axis not in chosen and sized(dim) == wanted:
            yield from _fitting(source, view, (*chosen, axis))


def _ordered(source: Row, view: Row, axes: Sequence[int], keys: _Keys) -> list[int] | Mismatch:
    """The order that a rule says, if it is one of these leaves, and their names do not say another."""
    before, after = source.leaf.dims, view.leaf.dims
    said = " ".join(map(str, axes))
    # A rule for a node speaks of all leaves below it, of a bias as well as of a kernel.
    if len(before) != len(axes) or len(after) != len(axes):
        hint = (
            f"axes={said!r} orders {len(axes)} axes: say it of this leaf alone, "
            "in a rename of its own"
        )
        return fault(source, view, "rule", hint)
    # A rule counts axes, and what is returned counts factors: of `2*heads dim` axis 1 is factor 2.
    starts = [0]
    for dim in before:
        starts.append(starts[-1] + len(sized(dim)))
    order: list[int] = []
    for place, axis in enumerate(axes):
        if sized(before[axis]) != sized(after[place]):
            there, here = dims_.format_dim(before[axis]), dims_.format_dim(after[place])
            hint = (
                f"axes={said!r} makes axis {axis} of the source, {there}, "
                f"axis {place} of the view, {here}"
            )
            return fault(source, view, "rule", hint)
        order += range(starts[axis], starts[axis + 1])
    # A rule may say once more what the names say, and nothing else.
    if [keys[0][factor] for factor in order] != keys[1]:
        hint = f"axes={said!r} is not the order that the names of the axes say: drop one of the two"
        return fault(source, view, "rule", hint)
    return order


def sized(dim: Dim) -> Dim:
    """The factors of an axis, without those of size 1."""
    return tuple(factor for factor in dim if factor != 1)

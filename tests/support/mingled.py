"""Random layouts of one model: how each keeps every leaf, as a schema and as NumPy arrays, and the rules between two.

Each layout says of each leaf, by itself, how it keeps what the model means: where it stands, under
which name, in which order of axes, together with which others, turned, padded, scaled, cast, or
twice. So the arrays of a layout are made by NumPy alone, and the rules between any two layouts
follow from what the two say. Nothing of the package is asked for either.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jaxtyping
import ml_dtypes
import numpy as np
import optax

import ckpt_schema as cs

Atom = str | int
"""A factor of an axis that is nowhere split: the name of a dim, or a number."""
Array = np.ndarray[Any, Any]
Tree = dict[Any, Any]

FLOATS = ("float32", "bfloat16", "float16")
INTEGERS = ("int32", "int8", "uint32", "int16")
_CLASSES = {
    "float32": jaxtyping.Float32,
    "bfloat16": jaxtyping.BFloat16,
    "float16": jaxtyping.Float16,
    "int32": jaxtyping.Int32,
    "int16": jaxtyping.Int16,
    "int8": jaxtyping.Int8,
    "uint32": jaxtyping.UInt32,
}
ADAM = optax.adam(1e-3)
STATES = {
    "linen": cs.linen.TrainState,
    "nnx": cs.nnx.TrainState,
    "bare": cs.linen.BareTrainState,
}


# --- What the model means  ---


@dataclasses.dataclass(frozen=True)
class Unit:
    """A leaf of the model, or several that some layouts keep as one.

    Attributes:
        name: What it is called.
        kind: ``float``, ``int`` or ``key``.
        common: The atoms of all of its parts.
        terms: What each part has besides, of the axis that they share when they are one; none if
            there is one part alone.
        dtypes: In which dtypes layouts may keep it.
        private: ``field`` or ``rule`` if some layouts lack it: what says the default.
    """

    name: str
    kind: str
    common: tuple[Atom, ...]
    terms: tuple[tuple[Atom, ...], ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    private: str = ""

    @property
    def count(self) -> int:
        """How many parts it has."""
        return max(1, len(self.terms))


@dataclasses.dataclass(frozen=True)
class Shared:
    """The atom that is an axis which parts share."""

    terms: tuple[tuple[Atom, ...], ...]
    gathers: bool = dataclasses.field(default=True, compare=False)

    def spelled(self, *, alone: bool) -> str:
        """How a declaration writes it."""
        if not any(self.terms):
            return str(len(self.terms))
        groups = [(term, 1) for term in self.terms]
        if self.gathers:
            groups = [(term, len([*same])) for term, same in itertools.groupby(self.terms)]
        words: list[str] = []
        for term, count in groups:
            number = (count,) if count > 1 or not term else ()
            words.append("*".join(map(str, (*number, *term))))
        text = "+".join(words)
        return text if alone else f"({text})"


Factor = Atom | Shared


@dataclasses.dataclass(frozen=True)
class Pad:
    """An axis, or a factor, that is kept longer."""

    dim: tuple[Factor, ...]
    large: str
    fill: int


@dataclasses.dataclass(frozen=True)
class Kept:
    """How a layout keeps the parts ``first`` to ``last`` of a unit.

    Attributes:
        name: The attribute.
        key: How it is spelled, if otherwise.
        axes: What each of its axes is a product of.
        flips: What runs the other way.
        copy: Another order of axes, of a copy; None if there is none.
    """

    unit: Unit
    first: int
    last: int
    name: str
    key: str | None
    axes: tuple[tuple[Factor, ...], ...]
    dtype: str
    flips: frozenset[tuple[Factor, ...]] = frozenset()
    exponent: int = 0
    pads: tuple[Pad, ...] = ()
    copy: tuple[tuple[Factor, ...], ...] | None = None
    raw: bool = False

    @property
    def factors(self) -> tuple[Factor, ...]:
        """In the order of the logical array."""
        if self.last - self.first == 1:
            own = self.unit.terms[self.first] if self.unit.terms else ()
            return (*self.unit.common, *own)
        return (*self.unit.common, self.shared)

    @property
    def shared(self) -> Shared:
        """The axis that its parts share."""
        found = (f for axis in self.axes for f in axis if isinstance(f, Shared))
        return next(found)

    @property
    def as_copy(self) -> Kept:
        """The copy of it."""
        assert self.copy is not None
        key = self.key and f"{self.key}_copy"
        return dataclasses.replace(self, name=f"{self.name}_copy", key=key, axes=self.copy)


Sizes = Mapping[str, int]


def size(factor: Factor, sizes: Sizes) -> int:
    """Of a factor."""
    if isinstance(factor, Shared):
        return sum(math.prod(size(f, sizes) for f in term) for term in factor.terms)
    return factor if isinstance(factor, int) else sizes[factor]


def spelled(axes: Sequence[Sequence[Factor]], pads: Sequence[Pad] = ()) -> str:
    """As a declaration writes them."""
    large = {pad.dim: pad.large for pad in pads}
    words: list[str] = []
    for axis in axes:
        whole = tuple(axis)
        if whole in large:
            words.append(large[whole])
            continue
        own = [large.get((f,)) or _factor(f, alone=len(whole) == 1) for f in whole]
        words.append("*".join(own) or "1")
    return " ".join(words)


def _factor(factor: Factor, *, alone: bool) -> str:
    return factor.spelled(alone=alone) if isinstance(factor, Shared) else str(factor)


def stored(kept: Kept, parts: Sequence[Array], sizes: Sizes, degree: int = 1) -> Array:
    """What a layout keeps of the logical arrays of all parts, which have an axis for layers in front.

    Args:
        kept: How.
        parts: Of all parts of the unit, each with the common atoms first.
        sizes: Of all dims.
        degree: Of a moment: 0 for one that is not scaled; -1 and -2 for Adam's.
    """
    own = parts[kept.first : kept.last]
    words = own[0].shape[1 + len(kept.factors) :] if kept.unit.kind == "key" else ()
    lead = own[0].shape[:1]
    inner = tuple(size(f, sizes) for f in kept.unit.common)
    if len(own) > 1:
        several = [x.reshape(*lead, *inner, -1) for x in own]
        array = np.concatenate(several, axis=-1)
    else:
        array = own[0]
    factors = list(kept.factors)
    for dim in kept.flips:
        array = np.flip(array, [1 + factors.index(f) for f in dim])
    array = _valued(array, kept, degree)
    shape = {f: size(f, sizes) for f in factors}
    if kept.raw or not words:
        array = _padded(array, kept, factors, shape, sizes, degree)
    order = [f for axis in kept.axes for f in axis]
    array = np.transpose(
        array,
        [0, *(1 + factors.index(f) for f in order), *range(1 + len(factors), array.ndim)],
    )
    lengths = [math.prod(_stored(kept, axis, shape, sizes)) for axis in kept.axes]
    return np.ascontiguousarray(array.reshape(*lead, *lengths, *words))


def _stored(
    kept: Kept, axis: Sequence[Factor], shape: Mapping[Factor, int], sizes: Sizes
) -> list[int]:
    large = {pad.dim: pad.large for pad in kept.pads}
    if tuple(axis) in large:
        return [sizes[large[tuple(axis)]]]
    return [sizes[large[(f,)]] if (f,) in large else shape[f] for f in axis]


def _valued(array: Array, kept: Kept, degree: int) -> Array:
    exponent = kept.exponent * degree
    dtype = np.dtype(getattr(ml_dtypes, kept.dtype, kept.dtype))
    if exponent:
        array = (array.astype("float64") * 2.0**exponent).astype(dtype)
    return array.astype(dtype)


def _padded(
    array: Array,
    kept: Kept,
    factors: Sequence[Factor],
    shape: dict[Factor, int],
    sizes: Sizes,
    degree: int,
) -> Array:
    for pad in kept.pads:
        (factor,) = pad.dim
        widths = [(0, 0)] * array.ndim
        widths[1 + factors.index(factor)] = (0, sizes[pad.large] - shape[factor])
        fill = pad.fill if degree == 1 else 0
        array = np.pad(array, widths, constant_values=np.asarray(fill).astype(array.dtype))
    return array


# --- Where it stands  ---


@dataclasses.dataclass(frozen=True)
class Level:
    """A level of repetition: stacked on an axis, or a list."""

    name: str
    length: str
    axis: int | None = None
    key: str | None = None


@dataclasses.dataclass(frozen=True)
class Member:
    """A node of a layout that has some of the layers.

    Attributes:
        levels: From the outermost on; none of what is not repeated.
        count: How many layers it has, as a dim.
        leaves: What each layer has.
    """

    levels: tuple[Level, ...]
    count: str
    leaves: tuple[Kept, ...]

    @property
    def path(self) -> str:
        """Its logical path, with a slash at the end."""
        return "".join(f"{level.name}[]/" for level in self.levels)


@dataclasses.dataclass(frozen=True)
class Place:
    """All members that a layout has of the layers, and what they are called together.

    Attributes:
        path: The logical path of the layers, with a slash at the end.
        by_rule: Whether a rule says that several members are these layers, or the schema itself.
    """

    members: tuple[Member, ...]
    path: str = ""
    by_rule: bool = False


@dataclasses.dataclass(frozen=True)
class Keeping:
    """A layout: what is not repeated, and what is; and in which train state, if in any."""

    places: tuple[Place, ...]
    state: str | None = None

    @functools.cached_property
    def schema(self) -> Any:
        """Its schema."""
        bodies: dict[tuple[str, ...], dict[str, Any]] = {(): {}}
        for place in self.places:
            for member in place.members:
                _declare(bodies, member)
        built = _built(bodies, (), "Body")
        series = {
            place.path.rstrip("/").removesuffix("[]"): cs.series(
                *(member.path.rstrip("/") for member in place.members)
            )
            for place in self.places
            if len(place.members) > 1 and not place.by_rule
        }
        if series:
            built = type("Body", (built,), series)
        return STATES[self.state][built, ADAM] if self.state else built


def _declare(bodies: dict[tuple[str, ...], dict[str, Any]], member: Member) -> None:
    path: tuple[str, ...] = ()
    for level in member.levels:
        bodies.setdefault(path, {})[level.name] = level
        path = (*path, level.name)
    for kept in member.leaves:
        for each in (kept, kept.as_copy) if kept.copy is not None else (kept,):
            bodies.setdefault(path, {})[each.name] = each


def _built(
    bodies: Mapping[tuple[str, ...], Mapping[str, Any]], at: tuple[str, ...], name: str
) -> Any:
    annotations: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for attribute, told in bodies[at].items():
        if isinstance(told, Kept):
            annotations[attribute] = _annotation(told)
            default = {"default": PRIVATE} if told.unit.private == "field" else {}
            fields[attribute] = cs.field(key=told.key, **default)
            continue
        inner = _built(bodies, (*at, attribute), attribute.title())
        if told.axis is None:
            annotations[attribute] = list[inner]
            fields[attribute] = cs.field(length=told.length, key=told.key)
        else:
            annotations[attribute] = inner
            fields[attribute] = cs.field(scan=told.length, axis=told.axis, key=told.key)
    return type(name, (cs.Schema,), {"__annotations__": annotations, **fields})


def _annotation(kept: Kept) -> Any:
    dims = spelled(kept.axes, kept.pads)
    if kept.unit.kind == "key":
        if kept.raw:
            return jaxtyping.UInt32[jax.Array, f"{dims} 2"]
        return cs.Key["fry", dims]
    return _CLASSES[kept.dtype][jax.Array, dims]


PRIVATE = 2
"""What a leaf holds that one of two layouts lacks."""


# --- The tree of a layout  ---


Values = Mapping[str, Sequence[Array]]
"""By the name of a unit: of each part its logical array, with an axis for layers in front."""


def tree(
    keeping: Keeping,
    values: Sequence[Values],
    sizes: Sizes,
    count: int,
    lost: frozenset[str] = frozenset(),
) -> Tree:
    """The state of a layout: of the model, and of both moments and a count of steps if it has them.

    Of units that are ``lost`` it has what nobody has told it: their default, and new moments.
    """
    bodies = [
        _body(keeping, each, sizes, degree, lost)
        for each, degree in zip(values, (1, -1, -2), strict=False)
    ]
    if keeping.state is None:
        return bodies[0]
    if keeping.state == "nnx":
        mirrors = {0: {"count": np.int32(count), "mu": bodies[1], "nu": bodies[2]}}
        return {
            "model": bodies[0],
            "optimizer": {"step": np.uint32(count), "opt_state": mirrors},
        }
    wrapped = bodies if keeping.state == "bare" else [{"params": body} for body in bodies]
    moments = optax.ScaleByAdamState(np.int32(count), wrapped[1], wrapped[2])  # type: ignore[arg-type]
    opt_state = (moments, optax.EmptyState())
    return {"step": np.int32(count), "params": wrapped[0], "opt_state": opt_state}


def _body(
    keeping: Keeping, values: Values, sizes: Sizes, degree: int, lost: frozenset[str]
) -> Tree:
    found: Tree = {}
    for place in keeping.places:
        start = 0
        for member in place.members:
            count = total(member.count, sizes)
            for kept in member.leaves:
                several = (kept, kept.as_copy) if kept.copy is not None else (kept,)
                for each in several:
                    parts = [x[start : start + count] for x in values[kept.unit.name]]
                    array = stored(each, parts, sizes, degree)
                    if kept.unit.name in lost:
                        array = np.full_like(array, PRIVATE if degree == 1 else 0)
                    _put(found, member.levels, each, array, sizes)
            start += count
    return found


def total(count: str, sizes: Sizes) -> int:
    """The size of a product or sum of dims."""
    terms = [
        [int(f) if f.isdigit() else sizes[f] for f in term.split("*")] for term in count.split("+")
    ]
    return sum(map(math.prod, terms))


def _put(found: Tree, levels: Sequence[Level], kept: Kept, array: Array, sizes: Sizes) -> None:
    """Puts all layers of a leaf into a tree."""
    lengths = [total(level.length, sizes) for level in levels]
    array = array.reshape(*lengths, *array.shape[1:])
    for number in reversed(range(len(levels))):  # the innermost is stacked first
        axis = levels[number].axis
        if axis is not None:
            words = int(kept.unit.kind == "key" and not kept.raw)
            array = _stacked(array, levels, number, axis, words)
    _hung(found, levels, kept, array)


def _stacked(array: Array, levels: Sequence[Level], number: int, axis: int, words: int) -> Array:
    """With the axis of a level put where it is stacked; those of lists below it stay before."""
    lists = sum(level.axis is None for level in levels[number + 1 :])
    # Axes are now: the levels up to this one, lists below it, then those of the array.
    first = number + 1 + lists
    inner = array.ndim - first - words
    at = axis if axis >= 0 else inner + 1 + axis
    return np.moveaxis(array, number, first - 1 + at)


def _hung(found: Tree, levels: Sequence[Level], kept: Kept, array: Array) -> None:
    if not levels:
        node = found
        *above, last = (kept.key or kept.name).split("/")
        for segment in above:
            node = node.setdefault(segment, {})
        node[last] = np.array(array, order="C")
        if kept.unit.kind == "key" and not kept.raw:
            node[last] = jax.random.wrap_key_data(node[last], impl="threefry2x32")
        return
    level, *below = levels
    if level.axis is not None:
        _hung(found.setdefault(level.key or level.name, {}), below, kept, array)
        return
    for i, each in enumerate(array):
        if level.key is None:
            node = found.setdefault(level.name, {}).setdefault(i, {})
        else:
            node = found.setdefault(
                level.key.replace("{i+1}", str(i + 1)).replace("{i}", str(i)), {}
            )
        _hung(node, below, kept, each)


# --- The rules between two  ---


@dataclasses.dataclass
class Pairing:
    """The rules from one layout to another, and what kinds of difference each leaf has.

    Attributes:
        rules: For `derive`.
        kinds: For each leaf of the model that both have, the kinds of difference.
    """

    rules: list[Any] = dataclasses.field(default_factory=list)
    kinds: list[set[str]] = dataclasses.field(default_factory=list)


def paired(source: Keeping, view: Keeping) -> Pairing:
    """What is to be said between two layouts."""
    found = Pairing()
    for ours, theirs in zip(source.places, view.places, strict=True):
        _pair_places(found, ours, theirs)
    if source.state:
        for kinds in found.kinds:
            kinds.add("mirrors")
    return found


def _pair_places(found: Pairing, ours: Place, theirs: Place) -> None:
    shares = [[(m.path, m.count) for m in place.members] for place in (ours, theirs)]
    if len(ours.members) > 1 and shares[0] == shares[1]:
        for one, other in zip(ours.members, theirs.members, strict=True):
            _pair_members(found, one, other, (one.path, other.path), set())
        return
    kinds: set[str] = set()
    for place in (ours, theirs):
        if len(place.members) > 1:
            kinds.add("series")
            if place.by_rule:
                members = [member.path.rstrip("/") for member in place.members]
                found.rules.append(cs.series(*members, name=place.path.rstrip("/")))
    if len(ours.members) == len(theirs.members) == 1:
        one, other = ours.members[0].levels, theirs.members[0].levels
        if [level.axis for level in one] != [level.axis for level in other]:
            kinds.add("stack")
        if [level.length for level in one] != [level.length for level in other]:
            kinds.add("blocks")
        if len(one) != len(other):
            several, single = (ours, theirs) if len(one) > len(other) else (theirs, ours)
            found.rules.append(
                cs.series(several.members[0].path.rstrip("/"), name=single.path.rstrip("/"))
            )
            own = (single.path, single.path)
            _pair_members(found, ours.members[0], theirs.members[0], own, kinds)
            return
    if ours.path != theirs.path:
        kinds.add("rename")
    _pair_members(found, ours.members[0], theirs.members[0], (ours.path, theirs.path), kinds)


def _pair_members(
    found: Pairing, ours: Member, theirs: Member, paths: tuple[str, str], kinds: set[str]
) -> None:
    units = {kept.unit.name: kept.unit for kept in (*ours.leaves, *theirs.leaves)}
    for name in units:
        one, other = (
            [kept for kept in member.leaves if kept.unit.name == name] for member in (ours, theirs)
        )
        if one and other:
            for several in _components(one, other):
                _pair_leaves(found, *several, paths, kinds)
        elif units[name].private == "rule":
            path = paths[0] if one else paths[1]
            found.rules += [cs.private(f"{path}{kept.name}", PRIVATE) for kept in (*one, *other)]


def _components(
    ours: Sequence[Kept], theirs: Sequence[Kept]
) -> Iterator[tuple[list[Kept], list[Kept]]]:
    """Leaves of both sides that have the same parts together, as few as may be."""
    left, right = list(ours), list(theirs)
    while left:
        one, other = [left.pop(0)], [right.pop(0)]
        while one[-1].last != other[-1].last:
            if one[-1].last < other[-1].last:
                one.append(left.pop(0))
            else:
                other.append(right.pop(0))
        yield one, other


def _pair_leaves(
    found: Pairing,
    ours: Sequence[Kept],
    theirs: Sequence[Kept],
    paths: tuple[str, str],
    above: set[str],
) -> None:
    kinds = set(above)
    here, there = (
        [f"{path}{k.name}" for k in side] for path, side in zip(paths, (ours, theirs), strict=True)
    )
    if len(ours) == len(theirs) == 1:
        _pair_two(found, ours[0], theirs[0], paths, kinds)
        found.kinds.append(kinds)
        return
    if len(ours) == 1 or len(theirs) == 1:
        whole, parts = (here[0], there) if len(ours) == 1 else (there[0], here)
        found.rules.append(cs.fuse(whole, parts))
        kinds.add("fuse")
    else:
        whole = f"{paths[1]}{ours[0].unit.name}_whole"
        found.rules += [cs.fuse(whole, here), cs.fuse(whole, there)]
        kinds |= {"fuse", "parts both ways"}
    for kept, path in zip(ours, here, strict=True):
        found.rules += _told(path, kept, back=True)
    for kept, path in zip(theirs, there, strict=True):
        found.rules += _told(path, kept, back=False)
    for side, names in ((ours, here), (theirs, there)):
        for kept, path in zip(side, names, strict=True):
            kinds |= _own_kinds(kept)
            if kept.copy is not None:
                found.rules.append(cs.tie(f"{path}_copy", path))
                kinds.add("tie")
    if len({kept.dtype for kept in (*ours, *theirs)}) > 1:
        kinds.add("cast")
    found.kinds.append(kinds)


def _own_kinds(kept: Kept) -> set[str]:
    """What a leaf has that is a whole beside its parts, or a part."""
    order = [f for axis in kept.axes for f in axis]
    shared = [(axis, f) for axis in kept.axes for f in axis if isinstance(f, Shared)]
    ways = {
        "flip": bool(kept.flips),
        "pad": bool(kept.pads),
        "scale": bool(kept.exponent),
        "transpose": tuple(order) != kept.factors,
        "merge": len(kept.axes) != len(order),
        "interleave": any(f is not axis[0] for axis, f in shared),
    }
    return {name for name, holds in ways.items() if holds}


def _told(path: str, kept: Kept, *, back: bool) -> Iterator[Any]:
    """The rules of a leaf that has parts, or is one, to or from what it would be plain."""
    for dim in sorted(kept.flips, key=str):
        yield cs.flip(path, spelled([dim]))
    if kept.exponent:
        yield cs.scale(path, 2.0 ** (-kept.exponent if back else kept.exponent))
    for pad in reversed(kept.pads) if back else kept.pads:
        yield cs.pad(path, spelled([pad.dim]), pad.large, pad.fill)


def _pair_two(
    found: Pairing, ours: Kept, theirs: Kept, paths: tuple[str, str], kinds: set[str]
) -> None:
    """The rules of a leaf that both sides have as one."""
    names = f"{paths[0]}{ours.name}", f"{paths[1]}{theirs.name}"
    twice = ours.copy is not None and theirs.copy is not None
    for copy in ("", "_copy") if twice else ("",):
        if ours.name != theirs.name:
            found.rules.append(cs.rename(f"{names[0]}{copy}", f"{names[1]}{copy}"))
            kinds.add("rename")
        elif paths[0] != paths[1]:
            nodes = cs.rename(paths[0].rstrip("/"), paths[1].rstrip("/"))
            found.rules += [nodes] if nodes not in found.rules else []
        found.rules += _between(f"{names[1]}{copy}", ours, theirs, kinds)
    for kept, path, is_copied in (
        (ours, names[0], theirs.copy is None),
        (theirs, names[1], ours.copy is None),
    ):
        if kept.copy is not None and is_copied:
            found.rules.append(cs.tie(f"{path}_copy", path))
            kinds.add("tie")
    if ours.dtype != theirs.dtype:
        kinds.add("cast")
    orders = [[f for axis in kept.axes for f in axis] for kept in (ours, theirs)]
    if [str(f) for f in orders[0]] != [str(f) for f in orders[1]]:
        kinds.add("transpose")
    if sorted(map(len, ours.axes)) != sorted(map(len, theirs.axes)):
        kinds.add("merge")
    if (ours.key or ours.name) != (theirs.key or theirs.name):
        kinds.add("rename")


def _between(path: str, ours: Kept, theirs: Kept, kinds: set[str]) -> Iterator[Any]:
    if ours.raw != theirs.raw:
        kinds.add("raw_key")
        yield cs.raw_key(path)
    turned = ours.flips ^ theirs.flips
    if turned:
        kinds.add("flip")
    for dim in sorted(turned, key=str):
        yield cs.flip(path, spelled([dim]))
    exponent = theirs.exponent - ours.exponent
    if exponent:
        kinds.add("scale")
        yield cs.scale(path, 2.0**exponent)
    alike = not exponent and not turned and {*ours.pads} == {*theirs.pads}
    if not alike:
        for pad in dict.fromkeys((*reversed(ours.pads), *theirs.pads)):
            kinds.add("pad")
            yield cs.pad(path, spelled([pad.dim]), pad.large, pad.fill)

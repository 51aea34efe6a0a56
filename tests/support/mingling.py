"""Draws layouts of one model at random: see `mingled`."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence

import numpy as np

from support.mingled import (
    FLOATS,
    INTEGERS,
    STATES,
    Array,
    Atom,
    Factor,
    Keeping,
    Kept,
    Level,
    Member,
    Pad,
    Place,
    Shared,
    Unit,
    Values,
    size,
    total,
)

__all__ = ["Case", "drawn"]

NAMES = ("embed", "mlp", "heads", "kv", "dim", "groups", "per")


@dataclasses.dataclass(frozen=True)
class Case:
    """Layouts of one model, and a state of it.

    Attributes:
        layouts: Any two of which have a lens between them.
        sizes: Of all dims.
        values: Of the model, and of both moments.
        count: Of steps.
    """

    layouts: tuple[Keeping, ...]
    sizes: dict[str, int]
    values: tuple[Values, ...]
    count: int


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Units that stand in one place of each layout.

    Attributes:
        form: ``once``, ``plain``, ``series``, ``pairs`` or ``blocks``.
    """

    form: str
    units: tuple[Unit, ...]
    by_rule: bool = False


DEPTHS = {
    "once": "1",
    "plain": "depth",
    "series": "blocks+rest",
    "pairs": "2*blocks+rest",
    "blocks": "6*blocks",
}


def drawn(seed: str, *, lengths: Sequence[int] = (1, 2, 3)) -> Case:
    """Three layouts of one model, and a state.

    Args:
        seed: Says everything.
        lengths: Which sizes dims may have.
    """
    rng = random.Random(seed)
    has_state = rng.random() < 0.2
    places = [_Layers("once", _units(rng, "w", 1, has_state))]
    if rng.random() < 0.7:
        form = rng.choice(("plain", "plain", "series", "pairs", "blocks"))
        units = _units(rng, "u", rng.choice((1, 1, 2)), has_state)
        places.append(_Layers(form, units, rng.random() < 0.5))
    sizes = {name: rng.choice(lengths) for name in NAMES}
    sizes |= {"depth": rng.randint(1, 3), "blocks": rng.randint(1, 2), "rest": rng.randint(1, 2)}
    lacking = {
        unit.name: rng.randrange(3) for place in places for unit in place.units if unit.private
    }
    layouts: list[Keeping] = []
    for number in range(3):
        kept: list[Place] = []
        for place in places:
            own = tuple(unit for unit in place.units if lacking.get(unit.name) != number)
            kept.append(_place(rng, dataclasses.replace(place, units=own), sizes))
        layouts.append(Keeping(tuple(kept), rng.choice([*STATES]) if has_state else None))
    values = tuple(
        {
            unit.name: _values(rng, unit, total(DEPTHS[place.form], sizes), sizes, moment == 2)
            for place in places
            for unit in place.units
        }
        for moment in range(3 if has_state else 1)
    )
    return Case(tuple(layouts), sizes, values, rng.randrange(100))


# --- Units  ---


def _units(rng: random.Random, prefix: str, count: int, has_state: bool) -> tuple[Unit, ...]:
    units = [_unit(rng, f"{prefix}{n}", has_state) for n in range(count)]
    if rng.random() < 0.15:
        how = rng.choice(("field", "rule"))
        units.append(Unit(f"{prefix}own", "float", _atoms(rng, 2), private=how))
    return tuple(units)


def _unit(rng: random.Random, name: str, has_state: bool) -> Unit:
    kind = rng.choice(("parts", "parts", "plain", "plain", "int", "key"))
    floats = FLOATS if rng.random() < 0.4 else ("float32",)
    if kind == "parts":
        common, terms = rng.choice(_PARTS)
        return Unit(name, "float", common, terms, floats)
    if has_state or kind == "plain":
        return Unit(name, "float", _atoms(rng, 3), dtypes=floats)
    if kind == "int":
        return Unit(name, "int", _atoms(rng, 3), dtypes=INTEGERS)
    # A number would be that of the words of raw data.
    own = tuple(rng.sample(("embed", "mlp", "heads", "dim"), rng.randint(0, 1)))
    return Unit(name, "key", own, dtypes=("uint32",))


def _atoms(rng: random.Random, most: int) -> tuple[Atom, ...]:
    return tuple(rng.sample(("embed", "mlp", "heads", "dim", 2), rng.randint(most > 1, most)))


_Terms = tuple[tuple[Atom, ...], ...]
_PARTS: tuple[tuple[tuple[Atom, ...], _Terms], ...] = (
    (("embed",), (("heads", "dim"), ("kv", "dim"), ("kv", "dim"))),
    (("embed", "dim"), (("heads",), ("kv",), ("kv",))),
    (("embed", "mlp"), ((), ())),
    (("embed", "heads", "dim"), ((), (), ())),
    (("groups", "dim"), (("per",), (), ())),
    (("embed",), (("heads",), ("mlp",))),
)


def _values(
    rng: random.Random, unit: Unit, layers: int, sizes: dict[str, int], positive: bool
) -> tuple[Array, ...]:
    """Of each part its logical array, in values that each of its dtypes holds."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    found: list[Array] = []
    for term in unit.terms or ((),):
        shape = (layers, *(size(f, sizes) for f in (*unit.common, *term)))
        if unit.kind == "key":
            found.append(numbers.integers(0, 2**32, (*shape, 2), dtype="uint32"))
        elif unit.dtypes == ("float32",):
            array = numbers.normal(size=shape).astype("float32")
            special = np.array([-0.0, np.inf, 0.0], "float32")
            chosen = numbers.random(shape) < 0.05
            array[chosen] = numbers.choice(special, chosen.sum())
            found.append(np.abs(array) if positive else array)
        else:
            found.append(numbers.integers(0, 100, shape).astype("int32"))
    return tuple(found)


# --- How a layout keeps them  ---


def _place(rng: random.Random, layers: _Layers, sizes: dict[str, int]) -> Place:
    if layers.form == "once":
        leaves = _leaves(rng, layers.units, sizes, members=1)[0]
        return Place((Member((), "1", leaves),))
    depth = DEPTHS[layers.form]
    way = rng.choice(("list", "scan", "divided") if layers.form != "plain" else ("list", "scan"))
    if way != "divided":
        (leaves,) = _leaves(rng, layers.units, sizes, members=1)
        level = _level(rng, rng.choice(("layers", "h")), depth, leaves, stacked=way == "scan")
        member = Member((level,), depth, leaves)
        return Place((member,), member.path, layers.by_rule)
    if layers.form == "blocks":
        (leaves,) = _leaves(rng, layers.units, sizes, members=1)
        outer, inner = rng.choice((("2*blocks", "3"), ("3*blocks", "2"), ("blocks", "6")))
        levels = _levels(rng, ("blocks", outer), ("each", inner), leaves)
        member = Member(levels, depth, leaves)
        return Place((member,), member.path, layers.by_rule)
    first, last = _leaves(rng, layers.units, sizes, members=2)
    rest = Member((_level(rng, "rest", "rest", last),), "rest", last)
    if layers.form == "pairs":
        levels = _levels(rng, ("blocks", "blocks"), ("each", "2"), first)
        block = Member(levels, "2*blocks", first)
        members = block, rest
    elif rng.random() < 0.7:
        block = Member((_level(rng, "blocks", "blocks", first),), "blocks", first)
        members = block, rest
    else:  # the other way round, in nodes of other names: a rule does not tell which side has it
        block = Member((_level(rng, "main", "blocks", first),), "blocks", first)
        members = Member((_level(rng, "head", "rest", last),), "rest", last), block
    return Place(members, "layers[]/", layers.by_rule)


def _level(
    rng: random.Random,
    name: str,
    length: str,
    leaves: Sequence[Kept],
    *,
    stacked: bool | None = None,
    more: int = 0,
) -> Level:
    if stacked is None:
        stacked = rng.random() < 0.5
    if not stacked:
        spelled = (None, f"{name}_{{i}}", f"{name}_{{i+1}}", f"{name}/'{{i}}'")
        return Level(name, length, key=rng.choice(spelled[:3]))
    axes = [kept.axes for kept in leaves] + [kept.copy for kept in leaves if kept.copy is not None]
    lowest = min(map(len, axes)) + more
    chosen = rng.randint(0, lowest)
    if chosen == lowest and not any(kept.raw for kept in leaves) and rng.random() < 0.5:
        chosen = -1
    return Level(name, length, chosen)


def _levels(
    rng: random.Random, outer: tuple[str, str], inner: tuple[str, str], leaves: Sequence[Kept]
) -> tuple[Level, Level]:
    below = _level(rng, *inner, leaves)
    above = _level(rng, *outer, leaves, more=below.axis is not None)
    return above, below


def _leaves(
    rng: random.Random, units: Sequence[Unit], sizes: dict[str, int], members: int
) -> list[tuple[Kept, ...]]:
    """How each member of a place keeps all units: alike but for the order of axes and the dtype."""
    alike: list[Kept] = []
    for unit in units:
        alike += _unit_leaves(rng, unit, sizes)
    found = [tuple(alike)]
    for _ in range(members - 1):
        found.append(tuple(_otherwise(rng, kept) for kept in alike))
    return found


def _otherwise(rng: random.Random, kept: Kept) -> Kept:
    if kept.unit.kind == "key" or any(len(dim) > 1 for dim in kept.flips):
        return kept
    return dataclasses.replace(
        kept,
        axes=_axes(rng, kept.factors),
        dtype=rng.choice(kept.unit.dtypes),
        copy=None if kept.copy is None else _axes(rng, kept.factors),
    )


def _unit_leaves(rng: random.Random, unit: Unit, sizes: dict[str, int]) -> list[Kept]:
    cuts = [0, *(n for n in range(1, unit.count) if rng.random() < 0.5), unit.count]
    if len(unit.terms[0]) > 1 if unit.terms else False:
        # Parts both ways need what each has for itself on one axis: two cuts of such are not drawn.
        cuts = rng.choice(([0, 1, 2, 3], [0, 1, 3], [0, 3]))
    names = "qkv"
    found: list[Kept] = []
    for first, last in itertools.pairwise(cuts):
        own = names[first:last] if unit.count > 1 else ""
        name = f"{unit.name}{own}{rng.choice(('', '', 'x'))}"
        found.append(_kept(rng, unit, first, last, name, sizes))
    return found


def _kept(
    rng: random.Random, unit: Unit, first: int, last: int, name: str, sizes: dict[str, int]
) -> Kept:
    if last - first == 1:
        factors: tuple[Factor, ...] = (*unit.common, *(unit.terms[first] if unit.terms else ()))
    else:
        shared = Shared(unit.terms[first:last], rng.random() < 0.5)
        factors = (*unit.common, shared)
    axes = _axes(rng, factors)
    copy = _axes(rng, factors) if rng.random() < 0.12 and not unit.private else None
    flips = {(f,) for f in factors if rng.random() < 0.15}
    several = [axis for axis in axes if len(axis) > 1]
    if several and copy is None and rng.random() < 0.15:
        flips = {rng.choice(several)}
    is_float = unit.kind == "float"
    exponent = rng.choice((0, 0, 0, -2, 1, 3)) if is_float and not unit.private else 0
    pads: list[Pad] = []
    if unit.kind != "key" and not unit.private:
        for factor in factors:
            counts = isinstance(factor, int) or (
                isinstance(factor, Shared) and not any(factor.terms)
            )
            if rng.random() < 0.12 and not pads and not counts:
                where = f"{first}{last}" if isinstance(factor, Shared) else str(factor)
                pads.append(_pad(rng, f"{unit.name}_{where}", factor, sizes))
    key = rng.choice((None, None, f"{name}_0", f"value/{name}", f"{name}/kernel"))
    return Kept(
        unit=unit,
        first=first,
        last=last,
        name=name,
        key=key,
        axes=axes,
        dtype=rng.choice(unit.dtypes),
        flips=frozenset(flips) if not unit.private else frozenset(),
        exponent=exponent,
        pads=tuple(pads),
        copy=copy,
        raw=unit.kind == "key" and rng.random() < 0.5,
    )


def _pad(rng: random.Random, name: str, factor: Factor, sizes: dict[str, int]) -> Pad:
    """One of two ways to pad a factor, each with its own size and fill."""
    which = rng.randrange(2)
    large = f"{name}_{'ab'[which]}"
    sizes.setdefault(large, size(factor, sizes) + rng.randint(0, 2))
    return Pad((factor,), large, (0, 1)[which])


def _axes(rng: random.Random, factors: Sequence[Factor]) -> tuple[tuple[Factor, ...], ...]:
    """In any order, some of them one axis."""
    order = rng.sample([*factors], len(factors))
    axes: list[tuple[Factor, ...]] = []
    for factor in order:
        if axes and axes[-1] and rng.random() < 0.3:
            axes[-1] = (*axes[-1], factor)
        else:
            axes.append((factor,))
        if rng.random() < 0.05:
            axes.append(())
    return tuple(axes)

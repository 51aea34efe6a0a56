"""Versions of a model over its life: layouts, lenses between some of them, and the lens between any two."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, called
from ckpt_schema._lens.cells import Cell
from ckpt_schema._lens.derived_lens import derive
from ckpt_schema._lens.description import described
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.step_dtypes import verify_one_dtype
from ckpt_schema.errors import DerivationError, Mismatch, SchemaError

__all__ = ["Registry", "digest", "fingerprint"]

_MOST_PATHS = 32  # that are compared: each costs a composition
_MOST_ELEMENTS = 100_000  # of a trial, by which lenses that are worded otherwise are compared

Fingerprint = frozenset[tuple[str, str]]


def fingerprint(table: Layout) -> Fingerprint:
    """What makes a layout the one that it is: each key path with what is stored there, whatever it is called."""
    pairs: set[tuple[str, str]] = set()
    for row in table.rows:
        pairs.add((paths.format_path(row.key), str(row.stored)))
    return frozenset(pairs)


def digest(table: Layout) -> str:
    """The fingerprint of a layout as one word: of equal layouts it is equal, on every machine."""
    lines = sorted("  ".join(pair) for pair in fingerprint(table))
    return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


class Registry:
    """Versions of a layout, and the lenses between them.

    Layouts are told by what they are, key paths and leaves, and not by their names. Each lens is
    gone through both ways. Between any two versions the lenses on the way are composed into one,
    which costs what a lens between these two alone costs.

    Args:
        lenses: The lenses, such as one from each version to the next. Of one alone there is none
            to choose: `ckpt_schema.orbax.restore` takes either.

    Raises:
        SchemaError: There is no lens, or something else among them.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtyping import Array, Float32
        >>> import ckpt_schema as cs
        >>> class V1(cs.Schema):
        ...     w: Float32[Array, "a b"]
        >>> class V2(cs.Schema):
        ...     w: Float32[Array, "a b"] = cs.field(key="dense/kernel")
        >>> class V3(cs.Schema):
        ...     w: Float32[Array, "b a"] = cs.field(key="dense/kernel")
        >>> versions = Registry([cs.derive(V1, V2), cs.derive(V2, V3)])
        >>> print(versions.lens(V1, V3))
        V1 -> V3: 1 joined, 0 private to V1, 0 private to V3
          w  dense/kernel  a b -> b a
        >>> print(versions)
        3 versions, 2 lenses
          V1 -> V2
          V2 -> V3
    """

    def __init__(self, lenses: Iterable[Lens]) -> None:
        """Keeps the lenses; they are composed when two versions are asked for."""
        given: list[Any] = list(lenses)
        strays = [type(lens).__name__ for lens in given if not isinstance(lens, Lens)]
        if strays or not given:
            found = f"a {strays[0]}" if strays else "none"
            hint = "Registry([cs.derive(V1, V2), cs.derive(V2, V3)])"
            fault = Mismatch("lenses", "argument", "lenses", found, hint)
            raise SchemaError("a registry is made of lenses", [fault])
        self.lenses: tuple[Lens, ...] = tuple(given)
        # The first lens that names a version says what it is called.
        known: dict[Fingerprint, Layout] = {}
        for lens in self.lenses:
            for end in (lens.source, lens.view):
                known.setdefault(fingerprint(end), end)
        self._layouts: Mapping[Fingerprint, Layout] = known
        self._lenses: dict[tuple[Fingerprint, Fingerprint], Lens] = {}

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """The versions, in the order in which the lenses name them."""
        return tuple(self._layouts.values())

    def path(self, source: type[Schema] | Layout, view: type[Schema] | Layout) -> tuple[Lens, ...]:
        """The lenses on the shortest way from one version to another; none for a version itself.

        Raises:
            DerivationError: One of them is no version, or no way leads from one to the other.
        """
        ends = self._known(source), self._known(view)
        if ends[0] == ends[1]:
            return ()
        return min(self._paths(*ends), key=len)

    def lens(self, source: type[Schema] | Layout, view: type[Schema] | Layout) -> Lens:
        """The lens from one version to another, composed of those on the way.

        Raises:
            DerivationError: One of them is no version; or no way leads from one to the other, or
                two that differ; or lenses on the way do not compose.
        """
        ends = self._known(source), self._known(view)
        # A checkpoint of each age is asked for again with each restore.
        if ends not in self._lenses:
            self._lenses[ends] = self._composed(*ends)
        return self._lenses[ends]

    def _composed(self, source: Fingerprint, view: Fingerprint) -> Lens:
        if source == view:
            table = self._layouts[source]
            return derive(table, table)
        # All ways have to do the same: whoever takes the shorter one gets what the longer one gives.
        first, *others = sorted(self._paths(source, view), key=len)
        lens = _through(first)
        faults: list[Mismatch] = []
        # Whether two ways differ may depend on what floats there are between.
        if others:
            verify_one_dtype(lens.source, lens.view, "a registry with two ways")
        for other in others:
            for where, here, there in _differences(lens, _through(other)):
                expected, found = f"{here}, by {_told(first)}", f"{there}, by {_told(other)}"
                faults.append(Mismatch(where, "ambiguous", expected, found))
        if faults:
            header = "two ways lead from {} to {}, and differ".format(
                *called(lens.source, lens.view)
            )
            notes = ["take one of the lenses out of the registry, or mend it"]
            raise DerivationError(header, faults, notes)
        return lens

    def _known(self, version: type[Schema] | Layout) -> Fingerprint:
        table = layout(version)
        own = fingerprint(table)
        if own not in self._layouts:
            names = ", ".join(each.name for each in self.layouts)
            hint = "a version is told by its key paths and leaves, not by its name"
            fault = Mismatch(table.name, "argument", f"one of {names}", "another layout", hint)
            raise DerivationError(f"{table.name} is no version of the registry", [fault])
        return own

    def _paths(self, source: Fingerprint, view: Fingerprint) -> list[tuple[Lens, ...]]:
        """The ways from one version to another that come to none twice.

        Raises:
            DerivationError: There is none.
        """
        # Of many lenses there are more ways than anybody would wait for.
        walks = [*itertools.islice(self._walks(source, view, (source,)), _MOST_PATHS)]
        if not walks:
            ends = self._layouts[source].name, self._layouts[view].name
            reached = ", ".join(self._layouts[each].name for each in self._reached(source))
            hint = f"add a lens from one of {reached} to {ends[1]}"
            fault = Mismatch(
                ends[1], "unplaced", f"lenses that lead from {ends[0]} to it", "none", hint
            )
            raise DerivationError("no way from {} to {}".format(*ends), [fault])
        return walks

    def _walks(
        self, source: Fingerprint, view: Fingerprint, seen: tuple[Fingerprint, ...]
    ) -> Iterator[tuple[Lens, ...]]:
        """All ways from one version to another but by those that were seen; as there may be many, one at a time."""
        if source == view:
            yield ()
            return
        for step, end in self._steps(source):
            if end not in seen:
                for rest in self._walks(end, view, (*seen, end)):
                    yield (step, *rest)

    def _steps(self, source: Fingerprint) -> Iterator[tuple[Lens, Fingerprint]]:
        """The lenses that begin at a version, each as it goes from there, and where they end."""
        for lens in self.lenses:
            start, end = fingerprint(lens.source), fingerprint(lens.view)
            if start == source:
                yield lens, end
            elif end == source:
                yield ~lens, start

    def _reached(self, source: Fingerprint) -> list[Fingerprint]:
        """All versions that some way leads to, itself first."""
        reached = [source]
        # The list grows while it is walked: what is reached now is gone on from later.
        for version in reached:
            for _, end in self._steps(version):
                if end not in reached:
                    reached.append(end)
        return reached

    def __str__(self) -> str:
        """Its versions, and the lenses between them."""
        lines = [f"{len(self._layouts)} versions, {len(self.lenses)} lenses"]
        for lens in self.lenses:
            lines.append("  {} -> {}".format(*called(lens.source, lens.view)))
        return "\n".join(lines)


def _through(steps: Sequence[Lens]) -> Lens:
    """Lenses one after the other, as one."""
    lens = steps[0]
    for step in steps[1:]:
        lens = lens >> step
    return lens


def _told(steps: Sequence[Lens]) -> str:
    """A way in words: the versions it goes through."""
    return " -> ".join([steps[0].source.name, *(step.view.name for step in steps)])


# --- whether two lenses do the same  ---


def _differences(one: Lens, other: Lens) -> Iterator[tuple[str, str, str]]:
    """Where two lenses between the same two layouts differ, and what each does there.

    They are compared by their cells; where these are worded otherwise, element by element, for one
    choice of sizes.
    """
    here, there = _alone(one), _alone(other)
    for key in sorted(here.keys() | there.keys()):
        if here.get(key) != there.get(key):
            yield key, here.get(key, "joined"), there.get(key, "joined")
    cells, others = _by_rows(one), _by_rows(other)
    unlike = dict[str, None]()
    for rows in sorted(cells.keys() | others.keys()):
        if not _equal(cells.get(rows, []), others.get(rows, [])):
            unlike[rows[1]] = None
    for key in unlike:
        yield key, _in_words(one, key), _in_words(other, key)


def _in_words(lens: Lens, key: str) -> str:
    """What a row of the view is made of, and how."""
    rows = lens.source.rows, lens.view.rows
    for join in lens.joins:
        made = [paths.format_path(rows[1][number].key) for number in join.views]
        if key in made:
            origins = [paths.format_path(rows[0][number].key) for number in join.sources]
            text = f"made of {', '.join(origins)}"
            words = described(join, rows)
            return f"{text} ({words})" if words else text
    return "made of nothing"


def _alone(lens: Lens) -> dict[str, str]:
    """The rows that have no partner, by key path, and what they are then."""
    alone: dict[str, str] = {}
    for side, table in enumerate((lens.source, lens.view)):
        # A part of a sum has no join of its own, and still is not left out.
        wholes: dict[int, int] = {}
        for fold in lens.folds[side]:
            wholes.update(dict.fromkeys(fold.others, fold.row))
        for number, row in enumerate(table.rows):
            if number in lens.joined[side]:
                continue
            text = f"private, default {row.default}"
            if number in wholes:
                text += f", added to {paths.format_path(table.rows[wholes[number]].key)}"
            alone[paths.format_path(row.key)] = text
    return alone


def _by_rows(lens: Lens) -> dict[tuple[str, str], list[Cell]]:
    """All cells of a lens, by the key paths of their rows."""
    by_rows: dict[tuple[str, str], list[Cell]] = {}
    tables = lens.source.rows, lens.view.rows
    for join in lens.joins:
        for cell in join.cells:
            ends: list[str] = []
            for rows, end in zip(tables, (cell.source, cell.view), strict=True):
                ends.append(paths.format_path(rows[end].key) if isinstance(end, int) else str(end))
            by_rows.setdefault((ends[0], ends[1]), []).append(cell)
    return by_rows


def _wording(cell: Cell) -> str:
    """What a cell says, but for the numbers of its rows, which are others in another lens."""
    return ", ".join([str(cell.geometry), *map(str, cell.codec)])


def _equal(one: Sequence[Cell], other: Sequence[Cell]) -> bool:
    """Whether cells say the same of every element."""
    # Cells are in one spelling, so that those that say the same mostly have the same words.
    if sorted(map(_wording, one)) == sorted(map(_wording, other)):
        return True
    names: set[str] = set()
    for cell in (*one, *other):
        names |= cell.geometry.names
    # Primes: sizes of which none is a multiple of another do not make two geometries alike by chance.
    sizes = dict(zip(sorted(names), itertools.cycle((2, 3, 5, 7)), strict=False))
    count = sum(cell.geometry.volume.at(sizes) for cell in (*one, *other))
    # Of the sizes of a real model, as they are read off a tree, only the wording is compared.
    return count <= _MOST_ELEMENTS and _elements(one, sizes) == _elements(other, sizes)


def _elements(cells: Sequence[Cell], sizes: Mapping[str, int]) -> set[tuple[Any, ...]]:
    """Each pair of elements that cells have, and what is done on the way."""
    elements: set[tuple[Any, ...]] = set()
    for cell in cells:
        digits = cell.geometry.digits
        codec = tuple(map(str, cell.codec))
        first, second = ([size.at(sizes) for size in start] for start in cell.geometry.starts)
        ranges = [range(digit.size.at(sizes)) for digit in digits]
        for steps in itertools.product(*ranges):
            before, after = [*first], [*second]
            # One step of each digit: on either side that is one element, by its index.
            for step, digit in zip(steps, digits, strict=True):
                for index, place in zip((before, after), digit.at, strict=True):
                    if place is not None:
                        index[place[0]] += step * place[1].at(sizes)
            elements.add((tuple(before), tuple(after), codec, cell.compares))
    return elements

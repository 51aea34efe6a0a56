"""Conformance: which leaf of a tree is which row of a layout, and everything that is wrong with it, at once."""

from __future__ import annotations

import collections
import dataclasses
import difflib
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.dims import Binder
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.paths import KeyPath, Pattern
from ckpt_schema._layouts.precision import open_rows
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Row, Slot
from ckpt_schema._messages.faults import fault_section
from ckpt_schema._messages.html import Section
from ckpt_schema._messages.pictures import Picture, Pictured
from ckpt_schema._messages.text import counted
from ckpt_schema._trees import foreign
from ckpt_schema._trees.chains import OptimizerChain, with_mirrors
from ckpt_schema._trees.containers import FlatTree, Tree, flatten
from ckpt_schema._trees.leaf_faults import expected_leaf, leaf_fault, open_dim
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema._trees.undeclared import one_key, undeclared
from ckpt_schema.errors import ConformanceError, Mismatch, format_faults

_REPEATS = 100_000  # more repeats than leaves, and they are named one by one

_COMPARED = 40_000  # pairs of paths that are compared for a hint

__all__ = ["Match", "Matcher", "Report", "assert_conforms", "check"]

_ALL = 10**9  # lines


@dataclasses.dataclass(frozen=True, slots=True)
class Report(Pictured):
    """What `check` found. It has no truth value: ask for `ok`, or for `mismatches`.

    Attributes:
        layout: The layout's name.
        mismatches: Every fault, in natural order of their paths.
        dims: The dims as they were bound, in elements.
        notes: Where each dim was bound.
    """

    layout: str
    mismatches: tuple[Mismatch, ...]
    dims: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the tree conforms."""
        return not self.mismatches

    def __bool__(self) -> NoReturn:
        """No answer: ``assert check(...)`` would read as the opposite of what a list of faults says.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "a report has no truth value: report.ok says whether the tree conforms, "
            "report.mismatches holds all that is wrong"
        )

    def __len__(self) -> int:
        """The number of faults."""
        return len(self.mismatches)

    def __iter__(self) -> Iterator[Mismatch]:
        """The faults, in order."""
        return iter(self.mismatches)

    def __eq__(self, other: object) -> bool:
        """Equality of the faults alone, so that ``check(...) == []`` reads as it should."""
        if isinstance(other, Report):
            return self.mismatches == other.mismatches
        return list(self.mismatches) == other if isinstance(other, list) else NotImplemented

    def __hash__(self) -> int:
        """The hash of the faults."""
        return hash(self.mismatches)

    def __str__(self) -> str:
        """The faults as an error would print them."""
        if not self.mismatches:
            return f"conforms to {self.layout}"
        return format_faults(self._header, self.mismatches, self.notes)

    def in_full(self) -> str:
        """Every pattern of faults, where `print` shows the first forty lines."""
        if not self.mismatches:
            return str(self)
        told = self._header, self.mismatches, self.notes
        return format_faults(*told, lines=_ALL, at_length=True)

    @property
    def _header(self) -> str:
        return f"the tree does not conform to {self.layout}"

    def _picture(self) -> Picture:
        """The faults, a pattern to a row, and the dims as they were bound."""
        if not self.mismatches:
            dims = [(name, str(size)) for name, size in self.dims.items()]
            return Picture(
                str(self), [Section("dims", ("name", "size"), dims, folded=True, one="dim")]
            )
        faults = fault_section(self.mismatches, "patterns of faults", "pattern of faults")
        notes = [(line,) for note in self.notes for line in note.split("\n")]
        title = f"{self._header}: {counted(len(self.mismatches), 'fault')}"
        return Picture(title, [faults, Section("notes", ("",), notes, number=0)])


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """A tree held against a layout.

    Attributes:
        flat: The tree, flattened.
        slots: Which leaf (by position) is which slot of the layout.
        report: The faults.
        dtypes: Which float each row is whose leaves may be any, by its number, as the tree has it.
    """

    flat: FlatTree
    slots: Mapping[Slot, int]
    report: Report
    dtypes: Mapping[int, str] = dataclasses.field(default_factory=dict[int, str])


class Matcher:
    """Holds trees against one layout."""

    def __init__(self, table: Layout) -> None:
        """Reads the key patterns of ``table``."""
        self.layout = table
        self.slot = SlotFinder(table).slot

    @functools.cached_property
    def _chain(self) -> OptimizerChain:
        return OptimizerChain(self.layout)

    def has_keys(self, tree: Tree | FlatTree) -> bool:
        """Whether a tree has a leaf for each row, and no others; where names are others, the first of them tells it."""
        flat = flatten(tree)
        rows: set[int] = set()
        for key in flat.keys:
            found = self.slot(key, stored=flat.stored)
            if found is None:
                return False
            rows.add(found[0])
        return all(number in rows or row.optional for number, row in enumerate(self.layout.rows))

    def distance(self, tree: Tree | FlatTree) -> int:
        """How many leaves and rows are without the other: what has the least is tried first.

        A whole `match` of the wrong layout costs far more, because it also looks for the likeliest
        cause of every fault.
        """
        flat = flatten(tree)
        lacking = {number for number, row in enumerate(self.layout.rows) if not row.optional}
        strays = 0
        for key in flat.keys:
            slot = self.slot(key, stored=flat.stored)
            if slot is None:
                strays += 1
            else:
                lacking.discard(slot[0])
        return strays + len(lacking)

    def match(self, tree: Tree | FlatTree, binder: Binder | None = None) -> Match:
        """Holds ``tree`` against the layout; collects every fault, raises none.

        Args:
            tree: The tree, flattened or not.
            binder: Dims that are known already; learns those of the tree.

        Raises:
            ConformanceError: The tree cannot be flattened at all.
        """
        flat = flatten(tree)
        slots: dict[Slot, int] = {}
        faults: list[Mismatch] = []
        strays: list[int] = []
        for position, key in enumerate(flat.keys):
            slot = self.slot(key, stored=flat.stored)
            # A leaf of which only the spelling is wrong is held against its row all the same.
            if slot is None:
                slot, fault = self._respelled(key)
                faults += fault
            if slot is None:
                strays.append(position)
            # Such as w beside w/value: one tree has both spellings.
            elif slots.setdefault(slot, position) != position:
                both = f"{paths.format_path(flat.keys[slots[slot]])} and {paths.format_path(key)}"
                faults.append(
                    Mismatch(paths.format_path(key), "ambiguous", "one leaf for a row", both)
                )
        binder = Binder(self.layout.bound()) if binder is None else binder
        known = binder.copy()
        self._bind(flat, slots, binder)
        if not self._conforms(flat, slots, strays, binder):
            # What most leaves say of each dim is held to be right, so that one wrong leaf is one fault.
            self._vote(flat, slots, known)
            self._bind(flat, slots, known)
            binder = known
            faults += self._faults(flat, slots, strays, known)
        if faults:
            order = paths.NaturalOrder()
            faults = sorted(with_mirrors(self.layout, faults), key=lambda one: order(one.path))
        notes = binder.notes(self.layout.names()) if faults else []
        if any(fault.kind == "chain" for fault in faults):
            notes = [*notes, *self._chain.notes(flat.keys)]
        report = Report(self.layout.name, tuple(faults), dict(binder.sizes), tuple(notes))
        return Match(flat, slots, report, self._dtypes(flat, slots))

    def _respelled(self, key: KeyPath) -> tuple[Slot | None, list[Mismatch]]:
        """The slot that ``key`` spells but for int keys written as strings of digits, or the other way; and that fault."""
        strings = tuple(str(k) for k in key)
        slot = (
            self.slot(key, stored=True)
            or self.slot(strings, stored=False)
            or self.slot(strings, stored=True)
        )
        if slot is None:
            return None, []
        declared = paths.fill(self.layout.rows[slot[0]].key, slot[1])
        expected: list[str] = []
        found: list[str] = []
        # Not strict: the tree may have a level of a Variable more.
        for wanted, segment in zip(declared, key, strict=False):
            if wanted != segment:
                expected.append(f"{type(wanted).__name__} key {wanted!r}")
                found.append(f"{type(segment).__name__} key {segment!r}")
        hint = "a save turns int keys into strings; pass the tree as it was loaded, or declare the keys it has"
        where = paths.format_path(key)
        return slot, [Mismatch(where, "key", " ".join(expected), " ".join(found), hint)]

    def _conforms(
        self, flat: FlatTree, slots: Mapping[Slot, int], strays: list[int], binder: Binder
    ) -> bool:
        """Whether there is no fault; the first one ends the search."""
        # Lazily: nearly all trees conform, and a tree that does not is searched once more for all faults.
        searches = (
            self._missing(slots, binder),
            self._counts(binder),
            self._leaf_faults(flat, slots, binder),
        )
        return not strays and not any(True for _ in itertools.chain(*searches))

    def _faults(
        self, flat: FlatTree, slots: Mapping[Slot, int], strays: list[int], binder: Binder
    ) -> list[Mismatch]:
        absent = list(self._missing(slots, binder))
        whole: list[Mismatch] = []
        if absent or strays:
            absent_keys = [key for key, _ in absent]
            stray_keys = [flat.keys[position] for position in strays]
            matched_keys = [flat.keys[position] for position in slots.values()]
            whole = list(self._chain.faults(absent_keys, stray_keys, matched_keys))
            # A transformation that is missing as a whole is one fault, and not one for each of its leaves.
            places = {fault.path for fault in whole}
            absent = [(key, row) for key, row in absent if not self._chain.inside(key, places)]
            strays = [at for at in strays if not self._chain.inside(flat.keys[at], places)]
        faults = [
            *self._pair(absent, strays, flat, binder),
            *self._leaf_faults(flat, slots, binder),
        ]
        return [*whole, *self._counts(binder), *faults]

    def _counts(self, binder: Binder) -> Iterator[Mismatch]:
        """Numbers of repeats that no sizes of their unbound names explain."""
        told: set[dims_.Dim] = set()
        for row in self.layout.rows:
            for dim in row.unrolled:
                # Once for a dim: all rows of one list have it.
                size = None if dim in told else binder.size(dim)
                told.add(dim)
                # Of 7 items no number of pairs makes 2*pairs.
                fault = "" if size is None else open_dim(dim, size, binder)
                if fault:
                    expected = f"a number of repeats that is {dims_.format_dim(dim)}"
                    notes = "".join(binder.notes(dims_.dim_names((dim,))))
                    where, hint = paths.format_path(row.key), f"{fault}; {notes}"
                    yield Mismatch(where, "dims", expected, str(size), hint)

    @functools.cached_property
    def _dims(self) -> list[dims_.Dims]:
        """The dims of each row as it is stored."""
        return [row.dims for row in self.layout.rows]

    def _dtypes(self, flat: FlatTree, slots: Mapping[Slot, int]) -> dict[int, str]:
        """Which float each row is whose leaves may be any: that of most of them, for it is one."""
        votes: dict[int, collections.Counter[str]] = {}
        for number in self._open:
            votes[number] = collections.Counter()
        # Most layouts have no such row, and their leaves are not looked at.
        for (number, _), position in slots.items() if votes else ():
            found = leaves.signature(flat.leaves[position]) if number in votes else None
            if found is not None and found[1] in FORMATS:
                votes[number][found[1]] += 1
        dtypes: dict[int, str] = {}
        for number, floats in votes.items():
            if floats:
                dtypes[number] = floats.most_common(1)[0][0]
        return dtypes

    @functools.cached_property
    def _open(self) -> list[int]:
        return open_rows(self.layout)

    def _vote(self, flat: FlatTree, slots: Mapping[Slot, int], binder: Binder) -> None:
        """Binds each name to the size that most leaves, and for repeats most rows, have of it."""
        votes: dict[dims_.Dim, dict[int, list[str | int]]] = {}
        for (number, _), position in slots.items():
            stored, found = self._dims[number], leaves.signature(flat.leaves[position])
            if found is not None and len(found[0]) == len(stored):
                for dim, size in zip(stored, found[0], strict=True):
                    votes.setdefault(dim, {}).setdefault(size, []).append(position)
        for (number, level), count in _counted(slots).items():
            dim = self.layout.rows[number].unrolled[level]
            votes.setdefault(dim, {}).setdefault(count, []).append(self._number_of(number))
        for dim, sizes in votes.items():
            # Of a product a vote would say nothing of one of its names.
            if len(dim) != 1:
                continue
            size, origins = max(sizes.items(), key=lambda item: len(item[1]))  # the first of equals
            # The path of a leaf is written here, for one of all that voted.
            first = origins[0]
            if isinstance(first, int):
                first = paths.format_path(flat.keys[first])
            binder.see_dim(dim, size, first)

    def _bind(self, flat: FlatTree, slots: Mapping[Slot, int], binder: Binder) -> None:
        # Most leaves tell what others have told.
        seen: set[tuple[dims_.Dims, tuple[int, ...]]] = set()
        for (number, _), position in slots.items():
            stored = self._dims[number]
            signature = leaves.signature(flat.leaves[position]) if stored else None
            if (
                signature is None
                or len(signature[0]) != len(stored)
                or (stored, signature[0]) in seen
            ):
                continue
            seen.add((stored, signature[0]))
            binder.see(stored, signature[0], paths.format_path(flat.keys[position]))
        # The longest list says how many there are: where one row lacks an item, that is the fault.
        most: dict[tuple[dims_.Dim, int], tuple[int, int]] = {}
        for (number, level), count in _counted(slots).items():
            at = (self.layout.rows[number].unrolled[level], level)
            if most.get(at, (0, 0))[0] < count:
                most[at] = (count, number)
        for (dim, _), (count, number) in most.items():
            binder.see_dim(dim, count, self._number_of(number))
        binder.settle()

    def _number_of(self, row: int) -> str:
        return f"the number of {paths.format_path(self.layout.rows[row].key)}"

    def _missing(self, slots: Mapping[Slot, int], binder: Binder) -> Iterator[tuple[Pattern, Row]]:
        for number, row in enumerate(self.layout.rows):
            if row.optional:
                continue
            if not row.unrolled:
                if (number, ()) not in slots:
                    yield row.key, row
                continue
            counts = [binder.size(dim) for dim in row.unrolled]
            # Nothing tells how many there are, so no item is there: the row is told as a whole.
            if None in counts:
                yield row.key, row
                continue
            # A size may be said in dims= that is none of this tree's: a billion faults help nobody.
            if math.prod(count or 0 for count in counts) > _REPEATS + 10 * len(slots):
                yield row.key, row
                continue
            for indices in itertools.product(*(range(count or 0) for count in counts)):
                if (number, indices) not in slots:
                    yield paths.fill(row.key, indices), row

    def _pair(
        self, absent: list[tuple[Pattern, Row]], strays: list[int], flat: FlatTree, binder: Binder
    ) -> Iterator[Mismatch]:
        """Missing and extra leaves, each with the likeliest other half."""
        spelled = {paths.format_path(flat.keys[position]): position for position in strays}
        # A cure that is known goes before a likely other spelling.
        cures = undeclared(flat, strays) if strays else {}
        named = [(paths.format_path(key), row) for key, row in absent]
        there, wanted = list(spelled), [path for path, _ in named]
        if len(there) * len(wanted) > _COMPARED:  # so many say that something else is wrong
            there, wanted = [], []
        roots = {str(key[0]) for key in flat.keys if key}
        as_one = one_key(flat.keys[position] for position in strays)
        for path, row in named:
            hint = as_one.get(path) or _near(path, there)
            if not hint and row.default:
                hint = "a default is for lenses that make a tree; this one lacks it"
            yield Mismatch(path, "missing", expected_leaf(row.stored, binder), "nothing", hint)
        for path, position in spelled.items():
            leaf = flat.leaves[position]
            found = leaves.describe(leaf)
            cure = foreign.leaf_cure(leaf) if leaves.signature(leaf) is None else ""
            cure = cure or cures.get(position, "")
            hint = cure or as_one.get(path) or self._stray(flat.keys[position], path, wanted, roots)
            yield Mismatch(path, "extra", "nothing", found, hint)

    def _stray(self, key: KeyPath, path: str, wanted: list[str], roots: set[str]) -> str:
        """What may be done about a leaf that no row has."""
        near = _near(path, wanted)
        # Of a train state: beside the fields that are declared stands one that is not.
        if near or not self._chain.parts or str((*key, "")[0]) in self._fields:
            return near
        cure = ": declare what is beside it in a schema of your own, or pass these alone"
        if roots.isdisjoint(self._fields):
            cure = " at its root: pass a dict with these keys"
        return f"{self.layout.name} holds {', '.join(self._fields)}{cure}"

    @functools.cached_property
    def _fields(self) -> list[str]:
        """What stands at the root of a tree of the layout."""
        return list(dict.fromkeys(str(row.key[0]) for row in self.layout.rows))

    def _leaf_faults(
        self, flat: FlatTree, slots: Mapping[Slot, int], binder: Binder
    ) -> Iterator[Mismatch]:
        seen: dict[tuple[Any, ...], Mismatch | None] = {}  # most leaves are like another one
        counts: dict[int, tuple[int | None, ...]] = {}
        rows, dtypes = self.layout.rows, self._dtypes(flat, slots)
        for (number, indices), position in slots.items():
            row, value = rows[number], flat.leaves[position]
            signature, dtype = leaves.signature(value), dtypes.get(number)
            # The fields of a leaf, whose own hash is Python's and slow.
            token = (row.leaf.dims, row.leaf.dtype, row.repeats, signature, dtype)
            if signature is None or signature[1] in leaves.SCALARS:  # a value may be a fault
                fault = leaf_fault(row, value, signature, binder, dtype)
            elif token in seen:
                fault = seen[token]
            else:
                fault = seen[token] = leaf_fault(row, value, signature, binder, dtype)
            if fault is not None:
                path = paths.format_path(flat.keys[position])
                yield Mismatch(path, fault.kind, fault.expected, fault.found, fault.hint)
            # An item past the end, where the number of items is declared or said.
            if indices:
                if number not in counts:
                    counts[number] = tuple([binder.size(dim) for dim in row.unrolled])
                if any(map(_reached, counts[number], indices)):
                    yield from _outside(row, indices, binder, flat.keys[position])


def _counted(slots: Iterable[Slot]) -> dict[tuple[int, int], int]:
    """How many repeats there are, by the number of the row and the level."""
    most: dict[tuple[int, int], int] = {}
    for number, indices in slots:
        for level, index in enumerate(indices):
            if most.get((number, level), 0) <= index:
                most[number, level] = index + 1
    return most


def _reached(count: int | None, index: int) -> bool:
    return count is not None and index >= count


def _outside(
    row: Row, indices: tuple[int, ...], binder: Binder, key: KeyPath
) -> Iterator[Mismatch]:
    for dim, index in zip(row.unrolled, indices, strict=True):
        size = binder.size(dim)
        if size is not None and index >= size:
            name = dims_.format_dim(dim)
            hint = "".join(binder.notes({name}))
            expected = f"{size} repeats ({name})"
            # A number in the layout has no origin that could be noted.
            if name == str(size):
                expected, hint = f"{size} repeats", "their number is declared, by length="
            yield Mismatch(paths.format_path(key), "extra", expected, f"index {index}", hint)


def _near(path: str, others: list[str]) -> str:
    """A likely other spelling among ``others``, as a hint."""
    close = difflib.get_close_matches(path, others, n=1, cutoff=0.75)
    return f"near: {close[0]}" if close else ""


def check(
    source: type[Schema] | Layout, tree: Tree, dims: Mapping[str, int] | None = None
) -> Report:
    """Everything in which ``tree`` differs from a layout.

    Args:
        source: A schema class or a layout.
        tree: Arrays, abstract ones or tracers, in any container of the layout.
        dims: Sizes that are known beforehand, in elements.

    Returns:
        A report: ``report.ok`` says whether the tree conforms; it is equal to ``[]`` then.

    Raises:
        ConformanceError: jax cannot flatten the tree.

    Example:
        >>> import jax
        >>> from jaxtyping import Array, Float32
        >>> class Norm(Schema):
        ...     scale: Float32[Array, " embed"]
        >>> check(Norm, {"scale": jax.ShapeDtypeStruct((8,), "float32")}).dims
        {'embed': 8}
        >>> print(check(Norm, {"scales": jax.ShapeDtypeStruct((8,), "float32")}))
        the tree does not conform to Norm: 2 faults
          scale   expected float32[embed], found nothing
                  -> near: scales
          scales  expected nothing, found float32[8]
                  -> near: scale
    """
    table = layout(source)
    report = Matcher(table).match(tree, Binder(table.bound(dims or {}))).report
    known = table.names()
    # These are faults of the call. Beside those of the tree, for one may explain the other.
    unknown: list[Mismatch] = []
    expected = f"a dim of {table.name} ({', '.join(sorted(known))})"
    for name in dims or ():
        if name not in known:
            near = _near(name, [*known])
            unknown.append(Mismatch(name, "dims", expected, "an unknown name", near))
    if unknown:
        return dataclasses.replace(report, mismatches=(*unknown, *report.mismatches))
    return report


def assert_conforms(
    source: type[Schema] | Layout, tree: Tree, dims: Mapping[str, int] | None = None
) -> Mapping[str, int]:
    """Raises unless ``tree`` conforms; arguments as for `check`.

    Returns:
        The dims as they were bound, in elements.

    Raises:
        ConformanceError: With every fault.
    """
    report = check(source, tree, dims)
    if not report.ok:
        header = f"the tree does not conform to {report.layout}"
        raise ConformanceError(header, report.mismatches, report.notes)
    return report.dims

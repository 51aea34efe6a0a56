"""States that one side keeps once for each device: every leaf has one more axis, of copies.

What a lens is between is one copy. The copies are held against it by the rule for what repeats, on
an axis that has a name of its own.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection
from typing import Any

import jax

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.dims import AxisName, Dim
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.table import Layout, Repeat, Row
from ckpt_schema._lens.axis_rules import Repeated, Replicated
from ckpt_schema._lens.read_sides import made_abstract
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.slots import SlotFinder
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["CopiedTree", "copies_fault", "count_of_copies", "replicated_layout"]


def replicated_layout(
    table: Layout, rule: Replicated, name: str, single: Collection[int] = ()
) -> tuple[Layout, list[Repeated]]:
    """The layout of all copies, and the rules by which one of them is a tree of ``table``.

    Args:
        table: The layout of one copy.
        rule: Says on which axis the copies are.
        name: What the number of copies is called.
        single: The numbers of rows that are there once.

    Raises:
        DerivationError: With every leaf that has no such axis.
    """
    rows: list[Row] = []
    rules: list[Repeated] = []
    faults: list[Mismatch] = []
    for number, row in enumerate(table.rows):
        if number in single:
            rows.append(row)
            continue
        rank = len(row.dims) + 1
        if not -rank <= rule.axis < rank:
            expected = f"a leaf that has copies on axis {rule.axis}"
            hint = "replicate puts them in front: replicated(0)"
            where = "/".join(row.path)
            faults.append(Mismatch(where, "rule", expected, str(row.stored), hint))
            continue
        rows.append(_with_copies(row, rule.axis % rank, name))
        rules.append(Repeated(row.path, name))
    if faults:
        raise DerivationError(f"{rule} does not fit {table.name}", faults)
    # What an optimizer starts with is made of the params of one copy.
    called = f"{table.name} of each device"
    return dataclasses.replace(table, name=called, rows=tuple(rows), initial=None), rules


def _with_copies(row: Row, at: int, name: str) -> Row:
    """A row with an axis of copies; it stands at ``at`` of the leaf as it is stored."""
    stored = [*row.axes]
    stored.insert(at, ("copies", 0))
    repeats: list[Repeat] = []
    for number, repeat in enumerate(row.repeats):
        if repeat.axis is None:
            repeats.append(repeat)
            continue
        # Levels are inserted innermost first: those outside of this one do not count.
        inner = [(kind, level) for kind, level in stored if kind != "level" or level >= number]
        repeats.append(Repeat(repeat.size, inner.index(("level", number))))
    # The leaf of one layer has its own axes alone: those of stacked layers are not counted.
    own = sum(kind == "axis" for kind, _ in stored[:at])
    dims = (*row.leaf.dims[:own], (name,), *row.leaf.dims[own:])
    names = row.leaf.names
    if names:
        names = (*names[:own], AxisName((name,)), *names[own:])
    leaf = Leaf(dims, row.leaf.dtype, names)
    return dataclasses.replace(row, leaf=leaf, repeats=tuple(repeats))


@dataclasses.dataclass(frozen=True)
class CopiedTree:
    """A tree that is kept once for each device, read as one copy of it.

    Attributes:
        tree: One copy of each leaf, abstract.
        count: How many copies there are; None where a layout says nothing of it.
        single: The keys of leaves that are there once, for they have no axis for copies.
        stored: Whether these may spell numbers as strings.
    """

    tree: Any
    count: int | None = None
    single: tuple[KeyPath, ...] = ()
    stored: bool = False

    @classmethod
    def of(cls, given: Any, rule: Replicated) -> CopiedTree:
        """What a rule says is kept so; a layout is that of one copy.

        Raises:
            DerivationError: No leaf has the axis of copies, or one has another number of them than most.
        """
        if isinstance(given, Layout) or (isinstance(given, type) and issubclass(given, Schema)):
            return cls(given)
        from ckpt_schema._frameworks.variables import state_of  # which loads flax

        flat = flatten(state_of(made_abstract(given)))
        sizes: collections.Counter[int] = collections.Counter()
        for leaf in flat.leaves:
            if _has(leaf, rule.axis):
                sizes[leaf.shape[rule.axis]] += 1
        if not sizes:
            fault = Mismatch(str(rule), "rule", f"leaves with an axis {rule.axis}", "none")
            raise DerivationError("no leaf is kept for each device", [fault])
        [(count, _)] = sizes.most_common(1)
        single: list[KeyPath] = []
        faults: list[Mismatch] = []
        made: list[Any] = []
        for key, leaf in zip(flat.keys, flat.leaves, strict=True):
            made.append(leaf)
            # A scalar may be there once: it is left as it is.
            if not _has(leaf, rule.axis):
                single.append(key)
            elif leaf.shape[rule.axis] != count:
                expected = f"{count} copies on axis {rule.axis}, as most leaves have"
                hint = "read it apart from what has copies, with at="
                where = paths.format_path(key)
                faults.append(Mismatch(where, "shape", expected, leaves.describe(leaf), hint))
            else:
                shape = list(leaf.shape)
                del shape[rule.axis]
                made[-1] = jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
        if faults:
            raise DerivationError(f"{rule} does not hold for all leaves", faults)
        return cls(flat.treedef.unflatten(made), count, tuple(single), flat.stored)

    def single_rows(self, table: Layout) -> set[int]:
        """The numbers of the rows that are there once."""
        find = SlotFinder(table).slot
        numbers: set[int] = set()
        for key in self.single:
            slot = find(key, stored=self.stored)
            if slot is not None:
                numbers.add(slot[0])
        return numbers


def _has(leaf: Any, axis: int) -> bool:
    """Whether a leaf has an axis of this number."""
    signature = leaves.signature(leaf)
    if signature is None or leaves.is_scalar(leaf):
        return False
    rank = len(signature[0])
    return -rank <= axis < rank


def count_of_copies(table: Layout, other: Layout) -> int | None:
    """How many copies a state has in front of each leaf that another has too; None where it is not so."""
    theirs = {row.path: row.dims for row in other.rows}
    counts: set[Dim] = set()
    for row in table.rows:
        own = theirs.get(row.path)
        # Of a scalar on both sides nothing is to be seen.
        if own is None or not (row.dims or own):
            continue
        if not row.dims or row.dims[1:] != own:
            return None
        counts.add(row.dims[0])
    count = dims_.size_of(counts.pop(), {}) if len(counts) == 1 else None
    return count if count != 1 else None


def copies_fault(name: str, count: int | None, rule: Replicated) -> Mismatch:
    """The fault of a state of copies where nobody has said so."""
    found = f"{count} in front of the shape of every leaf of {name}, as pmap keeps a state"
    hint = f"add cs.{rule} to the rules of the lens: it verifies that all {count} are equal"
    return Mismatch("the tree", "shape", "one copy of the state", found, hint)

"""What laws say of sizes: which a tree tells, and which the two sides of a lens have in common."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim, Sum
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Apart
from ckpt_schema._trees.conformance import Matcher, check
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import Mismatch
from ckpt_schema.testing._laws import LawError

__all__ = ["known", "set_apart"]


def known(table: Layout, tree: Tree, sizes: Mapping[str, int]) -> None:
    """``check(table, tree).dims`` has every size that follows from the tree.

    A size follows from an axis, or a number of layers, of that name alone, or in which all else is
    known. Where there is nothing at all, a product tells nothing: such trees are passed by.
    """
    if not all(sizes.get(name, 1) for name in table.names()):
        return
    report = check(table, tree)
    rows = {number for number, _ in Matcher(table).match(tree).slots}
    told = (table.rows[number] for number in rows)
    follow = _follow({dim for row in told for dim in (*row.dims, *row.unrolled)})
    faults = list(report.mismatches)
    for name in sorted(follow & sizes.keys()):
        if report.dims.get(name) != sizes[name]:
            size = str(report.dims.get(name, "no size"))
            faults.append(Mismatch(name, "dims", f"{sizes[name]}, as the tree tells", size))
    if faults:
        raise LawError(f"{table.name} does not find the sizes that a tree tells", faults)


def set_apart(lens: Lens) -> None:
    """What a rule parts has sizes of its own on each side: the two heads may differ in them.

    Sizes that leaves have which are not parted are one on both sides, as ever.
    """
    rules = [rule for each in lens.derivations for rule in each.rules if isinstance(rule, Apart)]
    if not rules or len(lens.derivations) > 1:
        return
    lone, shared = list[set[str]](), set[str]()
    for table in (lens.source, lens.view):
        parted = [row for row in table.rows if any(_at(row, rule.path) for rule in rules)]
        lone.append(_sizes_of(parted))
        shared |= _sizes_of(row for row in table.rows if row not in parted)
    faults = [
        Mismatch(name, "dims", "a size of its own on each side, for rules part it", "one for both")
        for name in sorted((lone[0] & lone[1]) - shared)
    ]
    if faults:
        raise LawError("what is parted has sizes in common", faults)


def _at(row: Row, path: LogicalPath) -> bool:
    """Whether a row stands at a path or below, of the whole or of the model."""
    return any(row.path[start : start + len(path)] == path for start in {0, row.body or 0})


def _sizes_of(rows: Iterable[Row]) -> set[str]:
    """The names of the sizes of leaves, and of how often they are there."""
    dims: list[Dim] = []
    for row in rows:
        dims += [*row.leaf.dims, *(repeat.size for repeat in row.repeats)]
    return dims_.dim_names(dims)


def _follow(dims: Iterable[Dim]) -> set[str]:
    """The names whose sizes follow from those of axes: one is unknown, and all else of the axis is known."""
    counted = [collections.Counter(_names(dim)) for dim in dims]
    paths_: set[str] = set()
    while True:
        unknown = [{n: k for n, k in each.items() if n not in paths_} for each in counted]
        more = {name for each in unknown if sum(each.values()) == 1 for name in each}
        if not more:
            return paths_
        paths_ |= more


def _names(dim: Dim) -> Iterator[str]:
    """Every name in a dim, as often as it is there."""
    factors: Iterable[Any] = dim
    for factor in factors:
        if isinstance(factor, Sum):
            for term in factor.terms:
                yield from _names(term)
        elif isinstance(factor, str):
            yield factor

"""What laws say of sizes: which a tree tells, and which the two sides of a lens have in common."""

from __future__ import annotations

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
    # Of an optional leaf that is not there no axis tells anything.
    dims: set[Dim] = set()
    for number, _ in Matcher(table).match(tree).slots:
        row = table.rows[number]
        dims.update((*row.dims, *row.unrolled))
    follow = _follow(dims)
    faults = list(report.mismatches)
    # Names that do not follow may be told or not: nobody is promised these.
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
    paths: list[LogicalPath] = []
    for each in lens.derivations:
        paths += [rule.path for rule in each.rules if isinstance(rule, Apart)]
    # Of several steps, what one parts may be in another's words.
    if not paths or len(lens.derivations) > 1:
        return
    lone: list[set[str]] = []
    shared: set[str] = set()
    for table in (lens.source, lens.view):
        parted: list[Row] = []
        whole: list[Row] = []
        for row in table.rows:
            (parted if _stands(row, paths) else whole).append(row)
        lone.append(_sizes_of(parted))
        shared |= _sizes_of(whole)
    faults: list[Mismatch] = []
    for name in sorted((lone[0] & lone[1]) - shared):
        expected = "a size of its own on each side, for rules part it"
        faults.append(Mismatch(name, "dims", expected, "one for both"))
    if faults:
        raise LawError("what is parted has sizes in common", faults)


def _stands(row: Row, paths: Iterable[LogicalPath]) -> bool:
    """Whether a row stands at one of some paths or below, of the whole or of the model."""
    for path in paths:
        for start in (0, row.body or 0):
            if row.path[start : start + len(path)] == path:
                return True
    return False


def _sizes_of(rows: Iterable[Row]) -> set[str]:
    """The names of the sizes of leaves, and of how often they are there."""
    dims: list[Dim] = []
    for row in rows:
        dims += [*row.leaf.dims, *(repeat.size for repeat in row.repeats)]
    return dims_.dim_names(dims)


def _follow(dims: Iterable[Dim]) -> set[str]:
    """The names whose sizes follow from those of axes: one is unknown, and all else of the axis is known.

    Of the axes `heads*dim` and `heads` the second tells heads, and then the first tells dim.
    """
    axes = [list(_names(dim)) for dim in dims]
    follow: set[str] = set()
    while True:
        more: set[str] = set()
        for names in axes:
            # A name that is there twice, as in `dim*dim`, is not told by it.
            unknown = [name for name in names if name not in follow]
            if len(unknown) == 1:
                more.update(unknown)
        if not more:
            return follow
        follow |= more


def _names(dim: Dim) -> Iterator[str]:
    """Every name in a dim, as often as it is there."""
    factors: Iterable[Any] = dim
    for factor in factors:
        if isinstance(factor, Sum):
            for term in factor.terms:
                yield from _names(term)
        elif isinstance(factor, str):
            yield factor

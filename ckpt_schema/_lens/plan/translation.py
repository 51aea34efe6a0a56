"""Translation: one direction of a lens, which compiles a plan for each kind of trees and keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import Binder
from ckpt_schema._layouts.precision import Dtypes, open_rows, said_dtypes, verify_closed
from ckpt_schema._layouts.table import Layout, called
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._lens.plan.compilation import compile_plan
from ckpt_schema._lens.plan.plan import Plan
from ckpt_schema._trees.conformance import Match, Matcher
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import ConformanceError, Mismatch, SchemaError

__all__ = ["Translator"]

_PLANS = 8  # trees of one lens come in a handful of containers; the least recently compiled plan goes first


_Rows = Mapping[int, str]
"""The dtypes of rows, by number."""


class Translator:
    """One direction of a lens: its matchers, and the plans compiled so far."""

    def __init__(
        self,
        sides: Joined,
        dims: Mapping[str, int],
        closed: Callable[[_Rows, _Rows], Joined],
        matchers: tuple[Matcher, Matcher],
        *,
        is_put: bool = False,
    ) -> None:
        """Starts without a plan.

        Args:
            sides: The layouts of this direction, and what joins them.
            dims: The sizes that are bound.
            closed: What joins them once it is known which floats their leaves of any float are.
            matchers: What holds trees against either layout.
            is_put: Whether it is the way back. Rules speak of what is on the left then.
        """
        self._sides, self.dims, self._closed = sides, dims, closed
        self.source, self.view = sides.source, sides.view
        self._is_put = is_put
        self._is_open = bool(open_rows(self.source) or open_rows(self.view))
        self._matchers = matchers
        self._plans: dict[str | None, list[Plan]] = {}

    def __call__(
        self,
        tree: Tree,
        onto: Tree | None,
        *,
        donate: bool,
        drop: bool = False,
        dtype: Dtypes | None = None,
    ) -> Tree:
        """Translates ``tree`` with a plan that fits, compiled if need be."""
        plan, found, kept = self.plan(tree, onto, drop=drop, dtype=dtype)
        return plan.run(found, kept, donate=donate)

    def plan(
        self, tree: Tree, onto: Tree | None, *, drop: bool = False, dtype: Dtypes | None = None
    ) -> tuple[Plan, list[Any], list[Any]]:
        """A plan that fits, compiled if need be, and the leaves of both trees."""
        said = None if dtype is None else str(dtype)
        plans = self._plans.get(said, [])
        # Whether a plan fits is told by flattening both trees: the leaves are handed on with the answer.
        for plan in plans:
            flat = plan.accepts(tree, onto)
            if flat is not None:
                self.verify_kept(plan, flat[0], drop=drop)
                return plan, *flat
        plan, found, kept = self.compile(tree, onto, dtype=dtype)
        self.verify_kept(plan, found, drop=drop)
        self._plans[said] = [plan, *plans[: _PLANS - 1]]
        return plan, found, kept

    def compile(
        self,
        tree: Tree,
        onto: Tree | None,
        *,
        abstract: bool | None = None,
        dtype: Dtypes | None = None,
    ) -> tuple[Plan, list[Any], list[Any]]:
        """The plan for trees like these, and the leaves of both; ``abstract`` as the tree's leaves are, unless given."""
        read, written = self._matchers
        binder = Binder(self.dims)
        match = read.match(tree, binder)
        if not match.report.ok:
            self._refuse(match, tree, written)
        # A second tree tells sizes from here on: an error says which of both told which.
        if onto is not None:
            binder.credit(called(self.source, self.view)[0])
        kept = None if onto is None else written.match(onto, binder)
        if kept is not None and not kept.report.ok:
            header = f"onto does not conform to {called(self.source, self.view)[1]}"
            raise ConformanceError(header, kept.report.mismatches, kept.report.notes)
        if kept is not None:
            _verify_counts(binder, self.source, self.view)
        # One abstract leaf is enough: what is made of it has no value either.
        if abstract is None:
            abstract = any(map(leaves.is_abstract, match.flat.leaves))
        # Any float is a dtype that no array has: a plan is made of what these trees hold.
        sides = self._sides
        if self._is_open or dtype is not None:
            sides = self._closed(match.dtypes, self._dtypes(kept, dtype))
        plan = compile_plan(
            sides, match, kept, binder.sizes, abstract=abstract, is_put=self._is_put
        )
        return plan, match.flat.leaves, [] if kept is None else kept.flat.leaves

    def _dtypes(self, kept: Match | None, dtype: Dtypes | None) -> _Rows:
        """Which float each row of the result is that may be any: as what it goes onto, or as it is said."""
        if kept is None:
            if dtype is None:
                cure = 'add dtype="bfloat16", or give onto= a tree that has them'
                verify_closed(self.view, "a result without onto", cure)
                return {}
            return said_dtypes(self.view, dtype)
        if dtype is not None:
            hint = "leave dtype= out: the result has the dtypes of onto"
            fault = Mismatch("dtype", "argument", "onto= or dtype=", "both", hint)
            raise SchemaError("the dtypes of a result are told twice", [fault])
        return kept.dtypes

    def verify_kept(self, plan: Plan, found: Sequence[Any], *, drop: bool) -> None:
        """Raises where leaves of the tree have no place in the result, unless they may be dropped."""
        lost = () if drop else plan.dropped
        faults = [one.fault for one in lost if one.loses(found[one.position])]
        if faults:
            header = f"onto lacks leaves of {self.view.name} that the tree has"
            raise ConformanceError(header, faults)

    def _refuse(self, match: Match, tree: Tree, written: Matcher) -> None:
        report = match.report
        here, there = called(self.source, self.view)
        header = f"the tree does not conform to {here}"
        # The commonest mistake has a line of its own, instead of a fault for each leaf.
        if written.match(tree).report.ok:
            turned = "it is on the other side of the lens already, swap get and put"
            header = f"the tree conforms to {there}, not to {here}; {turned}"
        raise ConformanceError(header, report.mismatches, report.notes)


def _verify_counts(binder: Binder, source: Layout, view: Layout) -> None:
    """Raises where one tree tells the size of a product or sum, and the other that of all its names, and they differ."""
    faults: list[Mismatch] = []
    for dim, size, origin in binder.broken():
        known = dims_.size_of(dim, binder.sizes)
        hint = "".join(binder.notes(dims_.dim_names((dim,))))
        faults.append(Mismatch(origin, "dims", f"{dims_.format_dim(dim)}={known}", str(size), hint))
    if faults:
        raise ConformanceError(
            f"onto of {view.name} is not of the sizes of {source.name}",
            faults,
        )

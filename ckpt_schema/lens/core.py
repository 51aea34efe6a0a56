"""The lens: two layouts, the joins between them, and translation both ways."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema import leaves, paths
from ckpt_schema.conformance import Match, Matcher
from ckpt_schema.dims import Binder
from ckpt_schema.errors import ConformanceError, DerivationError, Mismatch
from ckpt_schema.leaves import Default, Init
from ckpt_schema.lens.compile import compile_plan
from ckpt_schema.lens.derive import Join, join
from ckpt_schema.lens.keys import UnwrapKey, WrapKey
from ckpt_schema.lens.plan import Plan
from ckpt_schema.lens.relate import relate
from ckpt_schema.lens.rules import Rule
from ckpt_schema.paths import Pattern
from ckpt_schema.schema import Schema, layout
from ckpt_schema.table import Layout, Row
from ckpt_schema.text import columns
from ckpt_schema.trees import Tree

__all__ = ["Lens", "derive"]

_PLANS = 8  # trees of one lens come in a handful of containers; the least recently compiled plan goes first


class _Translator:
    """One direction of a lens: its matchers, and the plans compiled so far."""

    def __init__(self, source: Layout, view: Layout, joins: tuple[Join, ...], dims: Mapping[str, int]) -> None:
        self.source, self.view, self.joins, self.dims = source, view, joins, dims
        self._matchers: tuple[Matcher, Matcher] | None = None
        self._plans: list[Plan] = []

    def __call__(self, tree: Tree, onto: Tree | None) -> Tree:
        """Translates ``tree`` with a plan that fits, compiled if need be."""
        for plan in self._plans:
            flat = plan.accepts(tree, onto)
            if flat is not None:
                return plan.run(*flat)
        plan, found, kept = self.compile(tree, onto)
        result = plan.run(found, kept)
        self._plans = [plan, *self._plans[: _PLANS - 1]]
        return result

    def compile(self, tree: Tree, onto: Tree | None, *, abstract: bool | None = None) -> tuple[Plan, list[Any], list[Any]]:
        """The plan for trees like these, and the leaves of both; ``abstract`` as the tree's leaves are, unless given."""
        if self._matchers is None:
            self._matchers = Matcher(self.source), Matcher(self.view)
        read, written = self._matchers
        binder = Binder(self.dims)
        match = read.match(tree, binder)
        if match.report:
            self._refuse(match, tree, written)
        if onto is not None:
            binder.credit(self.source.name)
        kept = None if onto is None else written.match(onto, binder)
        if kept is not None and kept.report:
            header = f"onto does not conform to {self.view.name}: {len(kept.report)} fault(s)"
            raise ConformanceError(header, kept.report.mismatches, kept.report.notes)
        if abstract is None:
            abstract = any(map(leaves.is_abstract, match.flat.leaves))
        plan = compile_plan(self.source, self.view, self.joins, match, kept, binder.sizes, abstract=abstract)
        return plan, match.flat.leaves, [] if kept is None else kept.flat.leaves

    def _refuse(self, match: Match, tree: Tree, written: Matcher) -> None:
        report = match.report
        header = f"the tree does not conform to {self.source.name}"
        if not written.match(tree).report:
            turned = "it is on the other side of the lens already, swap get and put"
            header = f"the tree conforms to {self.view.name}, not to {self.source.name}; {turned}"
        raise ConformanceError(f"{header}: {len(report)} fault(s)", report.mismatches, report.notes)


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
    """A bidirectional translation between two layouts.

    Attributes:
        source: The left layout.
        view: The right layout.
        joins: Which row of the source is which row of the view, and what is edited on the way.
        dims: Sizes bound beforehand, in elements.
    """

    source: Layout
    view: Layout
    joins: tuple[Join, ...]
    dims: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])

    @functools.cached_property
    def _forward(self) -> _Translator:
        return _Translator(self.source, self.view, self.joins, self.dims)

    @functools.cached_property
    def _backward(self) -> _Translator:
        return _Translator(self.view, self.source, tuple(j.inverse for j in self.joins), self.dims)

    def get(self, s: Tree, onto: Tree | None = None) -> Tree:
        """The view of ``s``.

        Args:
            s: A tree of the source layout, in any of its containers, of arrays, abstract values or tracers.
            onto: A tree of the view layout. The result has its container, takes the view's private leaves from it, and gives
                edited leaves its sharding. Abstract leaves in it give a sharding and no value.

        Returns:
            A tree of the view layout. Leaves that only move are the same objects. Without ``onto``: an ``nnx.State``, or dicts
            with the optimizer's NamedTuples, and private leaves are made from their declared defaults.

        Raises:
            ConformanceError: With every leaf of ``s`` or ``onto`` that does not conform, every value that a cast would
                change, and every leaf of the result that has neither source nor default.
        """
        return self._forward(s, onto)

    def put(self, v: Tree, onto: Tree | None = None) -> Tree:
        """The source of ``v``: `get` in the other direction, with the same rules."""
        return self._backward(v, onto)

    def rehearse(self, s: Tree, onto: Tree | None = None) -> None:
        """Raises what `get` would raise for a concrete tree like ``s``, as far as can be told without its values.

        Args:
            s: A tree of the source layout; its leaves may be abstract, and count as if they had values.
            onto: As for `get`; its abstract leaves do *not* count as values.

        Raises:
            ConformanceError: As `get` does, casts excepted.
        """
        self._forward.compile(s, onto, abstract=False)

    def bind(self, **dims: int) -> Lens:
        """This lens for fixed sizes, in elements, of dims that its trees do not tell.

        Raises:
            DerivationError: Neither layout has a dim of that name.
        """
        unknown = sorted(set(dims) - self.source.names() - self.view.names())
        known = ", ".join(sorted(self.source.names() | self.view.names()))
        faults = [Mismatch(name, "dims", f"a dim of either layout ({known})", "an unknown name") for name in unknown]
        for table in (self.source, self.view):
            own = dict(table.sizes)
            wrong = [(name, size) for name, size in dims.items() if own.get(name, size) != size]
            faults += [Mismatch(n, "dims", f"{own[n]}, as {table.name} is declared for", str(size)) for n, size in wrong]
        if faults:
            header = f"no dims to bind between {self.source.name} and {self.view.name}: {len(faults)} fault(s)"
            raise DerivationError(header, faults)
        return Lens(self.source, self.view, self.joins, {**self.dims, **dims})

    def __invert__(self) -> Lens:
        """The lens in the other direction: its ``get`` is this lens's `put`."""
        return Lens(self.view, self.source, tuple(j.inverse for j in self.joins), self.dims)

    def __rshift__(self, other: Lens) -> Lens:
        """First this lens, then ``other``, without the layout between them ever being built.

        Raises:
            DerivationError: With every row in which this lens's view differs from the other's source.
        """
        return _compose(self, other)

    def __str__(self) -> str:
        """The table: where each leaf goes, what is edited, what is private."""
        return "\n".join(_table(self))


def derive(
    source: type[Schema] | Layout,
    view: type[Schema] | Layout,
    edits: Sequence[Rule] = (),
    dims: Mapping[str, int] | None = None,
) -> Lens:
    """The lens between two layouts, joined on their logical paths.

    What differs within a joined leaf is derived from the declared types: a spelling moves it, ``scan`` against a list
    stacks or unstacks it, other dims transpose and reshape it, another integer dtype casts it where that keeps its values.

    Args:
        source: The left layout.
        view: The right layout.
        edits: Rules for what the types cannot say: `rename`, `private`.
        dims: Sizes that no tree tells, in elements; see `Lens.bind`.

    Returns:
        A lens that obeys the laws for all conforming trees, of any size.

    Raises:
        DerivationError: With every row that has no place, every pair of rows that no edit relates, every ambiguity, and every
            rule that matches nothing.
        SchemaError: One of the schemas is wrong in itself.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtyping import Array, Float32
        >>> from ckpt_schema.fields import field
        >>> class Old(Schema):
        ...     kernel: Float32[Array, "embed mlp"] = field(key="Dense_0/kernel")
        >>> class New(Schema):
        ...     kernel: Float32[Array, "mlp embed"]
        >>> lens = derive(Old, New)
        >>> lens.get({"Dense_0": {"kernel": jnp.zeros((2, 3))}})["kernel"].shape
        (3, 2)
        >>> print(lens)
        Old -> New: 1 joined, 0 private to Old, 0 private to New
          Dense_0/kernel  kernel  embed mlp -> mlp embed
    """
    lens = Lens(*join(layout(source), layout(view), edits))
    return lens.bind(**{**dict(lens.view.sizes), **dict(lens.source.sizes), **(dims or {})})


def _table(lens: Lens) -> list[str]:
    joined_s, joined_v = {j.source for j in lens.joins}, {j.view for j in lens.joins}
    rows = [(_key(lens.source.rows[j.source]), _key(lens.view.rows[j.view]), done) for j, done in _edits(lens)]
    alone = [(_key(r), "-", _private(r)) for n, r in enumerate(lens.source.rows) if n not in joined_s]
    alone += [("-", _key(r), _private(r)) for n, r in enumerate(lens.view.rows) if n not in joined_v]
    own = len(lens.source.rows) - len(joined_s), len(lens.view.rows) - len(joined_v)
    header = (
        f"{lens.source.name} -> {lens.view.name}: {len(lens.joins)} joined, "
        f"{own[0]} private to {lens.source.name}, {own[1]} private to {lens.view.name}"
    )
    return [header, *columns([*rows, *alone])]


def _edits(lens: Lens) -> Iterator[tuple[Join, str]]:
    """What is done on the way of each join, and whether it is a copy of what another carries."""
    seen: tuple[set[int], set[int]] = set(), set()
    for one in lens.joins:
        tied = one.source in seen[0] or one.view in seen[1]
        seen[0].add(one.source)
        seen[1].add(one.view)
        yield one, ", ".join(filter(None, (str(one.chain), "tied" if tied else "")))


def _key(row: Row) -> str:
    return paths.format_path(row.key)


def _private(row: Row) -> str:
    return f"private, {row.stored}, default {row.default}" if row.default is not None else f"private, {row.stored}, optional"


def _compose(first: Lens, second: Lens) -> Lens:
    """The join of two joins; a row the middle layout alone defaults carries that default to the far side.

    The edits are derived anew from the outer rows, which is what makes a stack on the way from list to list vanish.
    """
    faults = [*_differences(first.view, second.source), *_contradictions(first, second)]
    if faults:
        header = f"{first.view.name} and {second.source.name} are not one layout, so their lenses do not compose"
        raise DerivationError(f"{header}: {len(faults)} fault(s)", faults)
    number = {row.key: n for n, row in enumerate(first.view.rows)}
    middle = {number[row.key]: n for n, row in enumerate(second.source.rows)}  # of the first's view: of the second's source
    onward: dict[int, list[Join]] = {}
    for j in second.joins:
        onward.setdefault(j.source, []).append(j)
    back = {middle[j.view] for j in first.joins}
    source, view = list(first.source.rows), list(second.view.rows)
    joins: dict[tuple[int, int], Join] = {}  # two ways to one place meet where a tie is undone
    for j, after in [(before, after) for before in first.joins for after in onward.get(middle[before.view], [None])]:
        if after is None:
            source[j.source] = _left_over(source[j.source], second.source.rows[middle[j.view]], first.source, faults)
            continue
        raw = any(isinstance(edit, (WrapKey, UnwrapKey)) for edit in (*j.chain.edits, *after.chain.edits))
        made = relate(source[j.source], view[after.view], raw=raw)
        if isinstance(made, Mismatch):
            faults.append(made)
        else:
            joins.setdefault((j.source, after.view), Join(j.source, after.view, *made))
            # Where one end lacks an optional leaf, the layout between them fills it in before the other end can.
            if source[j.source].optional:
                view[after.view] = _defaulted(view[after.view], first.view.rows[j.view].default, second.view, faults)
            if view[after.view].optional:
                source[j.source] = _defaulted(
                    source[j.source], second.source.rows[middle[j.view]].default, first.source, faults
                )
    by_second = {m: n for n, m in middle.items()}
    for j in second.joins:
        if j.source not in back:
            view[j.view] = _left_over(view[j.view], first.view.rows[by_second[j.source]], second.view, faults)
    if faults:
        raise DerivationError(f"no lens from {first.source.name} to {second.view.name}: {len(faults)} fault(s)", faults)
    return Lens(
        dataclasses.replace(first.source, rows=tuple(source)),
        dataclasses.replace(second.view, rows=tuple(view)),
        tuple(sorted(joins.values(), key=lambda j: j.view)),
        {**first.dims, **second.dims},
    )


def _contradictions(first: Lens, second: Lens) -> list[Mismatch]:
    """Dims that both lenses are bound to, differently."""
    return [
        Mismatch(name, "dims", f"{first.dims[name]}, as in the first", f"{size} in the second", "bind both to the same")
        for name, size in second.dims.items()
        if first.dims.get(name, size) != size
    ]


def _left_over(row: Row, middle: Row, table: Layout, faults: list[Mismatch]) -> Row:
    """An outer row whose partner in the middle has none on the far side, with the default it has then."""
    row = _defaulted(row, middle.default, table, faults)
    if row.default is None and not row.optional:
        hint = "declare a default, or make it optional"
        found = f"{row.stored} in {table.name} alone, the layout between them making it optional"
        faults.append(Mismatch("/".join(row.path), "unplaced", "a partner on the far side", found, hint))
    return row


def _defaulted(row: Row, default: Default | None, table: Layout, faults: list[Mismatch]) -> Row:
    """``row`` with the default that the layout in the middle declares, if it does."""
    if default is None:
        return row
    if isinstance(default, Init) and table.initial is None:
        hint = f"declare {table.name} with its transformation"
        faults.append(Mismatch("/".join(row.path), "chain", "a transformation that starts it", "none", hint))
    if not leaves.holds(row.leaf, default):
        hint = "the layout between them declares it"
        faults.append(Mismatch("/".join(row.path), "dtype", f"a default that {row.leaf.dtype} can hold", str(default), hint))
    return dataclasses.replace(row, default=default)


def _differences(first: Layout, second: Layout) -> list[Mismatch]:
    left, right = ({row.key: str(row.stored) for row in table.rows} for table in (first, second))
    return [
        Mismatch(_spelled(key), "unplaced", left.get(key, "nothing"), right.get(key, "nothing"))
        for key in sorted({**left, **right}, key=lambda key: paths.natural(paths.format_path(key)))
        if left.get(key) != right.get(key)
    ]


def _spelled(key: Pattern) -> str:
    """A key path; a segment that holds the separator is quoted here, for two layouts are told apart by it."""
    return paths.format_path(repr(k) if isinstance(k, str) and "/" in k else k for k in key)

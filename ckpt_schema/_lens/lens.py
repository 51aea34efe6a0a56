"""The lens: two layouts, the joins between them, and translation both ways."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.precision import Dtypes, open_rows, said_dtypes
from ckpt_schema._layouts.table import Layout, called
from ckpt_schema._lens.ancestry import Derivation
from ckpt_schema._lens.axis_rules import Padding
from ckpt_schema._lens.derive.composition import compose, verify_alike
from ckpt_schema._lens.derive.folded_rows import (
    NO_FOLDS,
    FoldedRows,
    as_declared,
    fold_losses,
    folded_rows,
    verify_no_folds_between,
    whole_table,
    with_wholes,
    without_folds,
)
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.lists import join
from ckpt_schema._lens.derive.served_weights import unserved, warn_of_unserved
from ckpt_schema._lens.derive.spelled_rows import as_read
from ckpt_schema._lens.derive.view_names import (
    as_called,
    common_names,
    names_apart,
    names_between,
    renamed_joins,
    renamed_layout,
)
from ckpt_schema._lens.handover import CHUNK_BYTES, named_leaves, tree_in_place
from ckpt_schema._lens.lens_table import LensTable
from ckpt_schema._lens.losses import losses
from ckpt_schema._lens.plan.plan import Plan
from ckpt_schema._lens.plan.translation import Translator
from ckpt_schema._lens.rules import Rule
from ckpt_schema._lens.step_dtypes import (
    closed_steps,
    opened,
    opened_steps,
    verify_one_dtype,
    with_ends,
)
from ckpt_schema._messages.pictures import Picture, Pictured
from ckpt_schema._trees.conformance import Matcher
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import DerivationError, Mismatch

__all__ = ["Lens", "joined_lens", "planned"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Lens(Pictured):
    """A bidirectional translation between two layouts.

    Attributes:
        source: The left layout.
        view: The right layout.
        joins: Which row of the source is which row of the view, and what is edited on the way.
        dims: Sizes bound beforehand, in elements.
        derivations: What it was derived from; of a composed lens, in the order they are gone through.
        folds: Rows of the source, and of the view, that stand for what is computed of several.
    """

    source: Layout
    view: Layout
    joins: tuple[Join, ...]
    dims: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])
    derivations: tuple[Derivation, ...] = ()
    folds: FoldedRows = NO_FOLDS

    @property
    def wholes(self) -> tuple[Layout, Layout]:
        """Both layouts, whose rows that stand for several are what is computed of these: the joins speak of them."""
        return whole_table(self.source, self.folds[0]), whole_table(self.view, self.folds[1])

    @functools.cached_property
    def joined(self) -> tuple[frozenset[int], frozenset[int]]:
        """The numbers of the rows of the source, and of the view, that have a partner."""
        here: set[int] = set()
        there: set[int] = set()
        for one in self.joins:
            here.update(one.sources)
            there.update(one.views)
        return frozenset(here), frozenset(there)

    @functools.cached_property
    def private(self) -> tuple[frozenset[int], frozenset[int]]:
        """The numbers of the rows of which the other side has not everything, or nothing."""
        alone = [set(range(len(self.source.rows))), set(range(len(self.view.rows)))]
        for rows, joined in zip(alone, self.joined, strict=True):
            rows -= joined
        for one in self.joins:
            for cell in one.cells:
                if cell.is_constant:
                    side, row, constant = cell.alone
                    # Padding is the same in every tree: nobody has to keep it.
                    if not constant.is_fill and isinstance(row, int):
                        alone[side].add(row)
        return frozenset(alone[0]), frozenset(alone[1])

    @functools.cached_property
    def is_open(self) -> bool:
        """Whether leaves on either side are any float, and nothing has said yet which."""
        return bool(open_rows(self.source) or open_rows(self.view))

    @functools.cached_property
    def loss(self) -> Mapping[str, str]:
        """What is lost of values there and back, and how much at most, by the logical path in the view.

        Rules alone make a lens lose anything: `cast`, `shift`, and `scale` by a factor that is no
        power of two. What is refused is not lost. With ``onto=``, a leaf that still is what `get`
        or `put` made of ``onto`` gives all bits of that back.

        Raises:
            DerivationError: Leaves are any float still; see `at`.

        Example:
            >>> from ckpt_schema import Schema, derive
            >>> from jaxtyping import Array, BFloat16, Float32
            >>> from ckpt_schema._lens.value_rules import cast
            >>> class Wide(Schema):
            ...     kernel: Float32[Array, "embed mlp"]
            >>> class Narrow(Schema):
            ...     kernel: BFloat16[Array, "embed mlp"]
            >>> derive(Wide, Narrow, rules=[cast("kernel", rounding="nearest")]).loss
            {'kernel': 'bfloat16 keeps 8 of the 24 bits of float32: at most 2**-8 of each value'}
        """
        verify_one_dtype(self.source, self.view, "a loss")
        lost = dict(losses(*self.wholes, self.joins))
        # What is computed of several leaves may be cast besides.
        for path, what in fold_losses((self.source, self.view), self.folds, self.joins).items():
            lost[path] = f"{lost[path]}; {what}" if path in lost else what
        return lost

    @property
    def exact(self) -> bool:
        """Whether every value that is not refused comes back to the last bit; see `loss`."""
        return not self.loss

    @functools.cached_property
    def matchers(self) -> tuple[Matcher, Matcher]:
        """What holds trees against the source, and against the view. They remember the key paths that they met."""
        return Matcher(self.source), Matcher(self.view)

    @functools.cached_property
    def _forward(self) -> Translator:
        return Translator(self, self.dims, self._closed, self.matchers)

    @functools.cached_property
    def _backward(self) -> Translator:
        # A translator knows the dtypes of what it reads first, and of what it writes then.
        def closed(view: Any, source: Any) -> Lens:
            return ~self._closed(source, view)

        sides = self.matchers[1], self.matchers[0]
        return Translator(self._turned, self.dims, closed, sides, is_put=True)

    def get(
        self,
        s: Tree,
        onto: Tree | None = None,
        *,
        donate: bool = False,
        drop: bool = False,
        dtype: Dtypes | None = None,
    ) -> Tree:
        """The view of ``s``.

        Args:
            s: A tree of the source layout, in any of its containers, of arrays, abstract values or tracers.
            onto: A tree of the view layout. The result has its container, takes the view's private leaves from it, and gives
                edited leaves its sharding. Abstract leaves in it give a sharding and no value.
            donate: Whether the caller gives ``s`` up. Its jax arrays are then deleted one by one, as soon as what is made of
                them is there, but for those that only move, which are the result's. Besides ``s``, no more is ever held than
                twice the bytes of its largest leaf, or of the result's. Values that an edit would change are found before.
            drop: Whether optional leaves of ``s`` that ``onto`` lacks are left out. Without it they
                are an error, unless they are what their default says.
            dtype: Which floats the result's leaves of any float are, where no ``onto`` has them;
                see `layout`.

        Returns:
            A tree of the view layout. Leaves that only move are the same objects. Without ``onto``: an ``nnx.State``, or dicts
            with the optimizer's NamedTuples, and private leaves are made from their declared defaults.

        Raises:
            ConformanceError: With every leaf of ``s`` or ``onto`` that does not conform, every value that a cast would
                change, every leaf of the result that has neither source nor default, and every
                leaf of ``s`` that ``onto`` lacks.
            SchemaError: Leaves of the result are any float, and neither ``onto`` nor ``dtype``
                says which; or both do.
            DerivationError: What rules say of a leaf cannot be done to floats as narrow as these.
        """
        warn_of_unserved(self._dropped[0], s)
        return self._forward(s, onto, donate=donate, drop=drop, dtype=dtype)

    @functools.cached_property
    def _turned(self) -> Lens:
        return Lens.__invert__(self)

    @functools.cached_property
    def _dropped(self) -> tuple[str | None, str | None]:
        """What to say of states that each direction drops, and that the weights to serve are made of."""
        forward = unserved(self.source, lambda: self.joined[0])
        backward = unserved(self.view, lambda: self.joined[1])
        return forward, backward

    def put(
        self,
        v: Tree,
        onto: Tree | None = None,
        *,
        donate: bool = False,
        drop: bool = False,
        dtype: Dtypes | None = None,
    ) -> Tree:
        """The source of ``v``: `get` in the other direction, with the same rules."""
        warn_of_unserved(self._dropped[1], v)
        return self._backward(v, onto, donate=donate, drop=drop, dtype=dtype)

    def stream(
        self,
        s: Tree,
        onto: Tree | None = None,
        *,
        drop: bool = False,
        dtype: Dtypes | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """The leaves of the view of ``s`` by name, one after the other: each is made when its turn comes.

        Besides ``s``, no more is held than what is made at once, at most twice the bytes of the
        largest leaf of either side, as long as the caller keeps none. What only moves comes first.

        Args:
            s: A tree of the source layout, whose leaves have values.
            onto: As for `get`.
            drop: As for `get`.
            dtype: As for `get`.

        Returns:
            Pairs of a name and what `get` would have there. A name is the key path of the leaf, as
            messages spell it; in a layout of dotted names it is the dotted name.

        Raises:
            ConformanceError: As `get` does: before the first leaf, and for a value that a cast
                would change, when its leaf comes.

        Example:
            >>> from ckpt_schema import Schema, derive
            >>> import jax.numpy as jnp
            >>> from jaxtyping import Array, Float32
            >>> from ckpt_schema._lens.rules import rename
            >>> class Old(Schema):
            ...     kernel: Float32[Array, "embed mlp"]
            >>> class New(Schema):
            ...     weight: Float32[Array, "mlp embed"]
            >>> lens = derive(Old, New, rules=[rename("kernel", "weight")])
            >>> [(name, x.shape) for name, x in lens.stream({"kernel": jnp.ones((2, 3))})]
            [('weight', (3, 2))]
        """
        plan, found, kept = self._forward.plan(s, onto, drop=drop, dtype=dtype)
        return named_leaves(plan, self.view, s, found, kept)

    def transfer(
        self,
        s: Tree,
        onto: Tree,
        *,
        chunk_bytes: int = CHUNK_BYTES,
        donate_onto: bool = False,
        drop: bool = False,
    ) -> Tree:
        """The view of ``s`` in the place of ``onto``, on whatever devices that is: from a trainer to an engine.

        As `get`, but each leaf is made on the devices of ``s`` and then moved to those of the leaf
        whose place it takes, which may be others; it never shares memory with ``s``.

        Args:
            s: A tree of the source layout, whose leaves have values.
            onto: A tree of the view layout, which says where leaves go.
            chunk_bytes: How many bytes are under way at a time: besides both trees, no more is held
                than these, and twice the bytes of the largest leaf.
            donate_onto: Whether ``onto`` is given up: each of its leaves is freed before its place
                is taken. Its private leaves are the result's.
            drop: As for `get`.

        Returns:
            A tree like ``onto``, with the values of ``s``.

        Raises:
            ConformanceError: As `get` does, before anything is made or freed.
        """
        plan, found, kept = self._forward.plan(s, onto, drop=drop)
        return tree_in_place(plan, s, found, kept, chunk_bytes=chunk_bytes, donate_onto=donate_onto)

    def dry_run(
        self,
        s: Tree,
        onto: Tree | None = None,
        *,
        drop: bool = False,
        dtype: Dtypes | None = None,
    ) -> None:
        """Raises what `get` would raise for a concrete tree like ``s``, as far as can be told without its values.

        Args:
            s: A tree of the source layout; its leaves may be abstract, and count as if they had values.
            onto: As for `get`; its abstract leaves do *not* count as values.
            drop: As for `get`.
            dtype: As for `get`.

        Raises:
            ConformanceError: As `get` does, casts excepted.
        """
        plan, found, _ = self._forward.compile(s, onto, abstract=False, dtype=dtype)
        self._forward.verify_kept(plan, found, drop=drop)

    def bind(self, **dims: int) -> Lens:
        """This lens for fixed sizes, in elements, of dims that its trees do not tell.

        Raises:
            DerivationError: Neither layout has a dim of that name.
        """
        dims_.verify_sizes(dims)
        # Of 100,000 rows the names take a while.
        known = _dim_names(self) if dims else set[str]()
        expected = f"a dim of either layout ({', '.join(sorted(known))})"
        faults: list[Mismatch] = []
        for name in sorted(dims.keys() - known):
            faults.append(Mismatch(name, "dims", expected, "an unknown name"))
        for table in (self.source, self.view):
            declared = dict(table.sizes)
            for name, size in dims.items():
                if declared.get(name, size) != size:
                    expected = f"{declared[name]}, as {table.name} is declared for"
                    faults.append(Mismatch(name, "dims", expected, str(size)))
        if faults:
            header = "no dims to bind between {} and {}".format(*called(self.source, self.view))
            raise DerivationError(header, faults)
        return dataclasses.replace(self, dims={**self.dims, **dims})

    def at(self, *, source: Dtypes | None = None, view: Dtypes | None = None) -> Lens:
        """This lens for floats of which its trees tell nothing, as where nothing is there yet to go onto.

        Args:
            source: Which floats the source's leaves of any float are: one dtype, or several by globs
                of logical paths; see `layout`. They stay open unless it is given.
            view: The same of the view.

        Raises:
            SchemaError: A leaf has no dtype or two, or is not any float.
            DerivationError: What rules say of a leaf cannot be done to floats as narrow as these.

        Example:
            >>> from ckpt_schema import Schema, derive
            >>> from jaxtyping import Array, Float
            >>> class Model(Schema):
            ...     kernel: Float[Array, "embed mlp"]
            >>> lens = derive(Model, Model)
            >>> print(lens.at(source="bfloat16", view="float32"))
            Model (source) -> Model (view): 1 joined, 0 private to Model (source), 0 private to Model (view)
              kernel  kernel  bfloat16 -> float32
        """
        here = {} if source is None else said_dtypes(self.source, source)
        there = {} if view is None else said_dtypes(self.view, view)
        return self._of_dtypes(here, there) if here or there else self

    def _closed(self, source: Mapping[int, str], view: Mapping[int, str]) -> Lens:
        """The lens for one dtype of each row; what neither tree has stands for what its partner is."""
        return self._of_dtypes(source, view, is_whole=True) if self.is_open else self

    @functools.cached_property
    def _lenses(self) -> dict[Any, Lens]:
        return {}

    def _of_dtypes(
        self, source: Mapping[int, str], view: Mapping[int, str], *, is_whole: bool = False
    ) -> Lens:
        """The lens for these dtypes of rows, by number; ``is_whole`` where nothing stays open."""
        # Trees come in few precisions, and to derive a lens takes longer than to run it.
        key = tuple(sorted(source.items())), tuple(sorted(view.items())), is_whole
        if key not in self._lenses:
            steps = with_ends(self.derivations, source, view)
            self._lenses[key] = self._through(closed_steps(steps) if is_whole else steps)
        return self._lenses[key]

    def _through(self, steps: Sequence[Derivation]) -> Lens:
        """This lens, derived again by steps whose layouts say more of their dtypes."""
        lens = _gone_through(steps, [step.sized(self.dims) for step in steps])
        # Of what was composed in another order, dims may be told apart by other names.
        names = {**names_between(lens.source, self.source), **names_between(lens.view, self.view)}
        return dataclasses.replace(lens.renamed(names), dims=self.dims)

    def __invert__(self) -> Lens:
        """The lens in the other direction: its ``get`` is this lens's `put`."""
        # Nothing is derived again: cells are turned, and codecs inverted.
        joins = tuple([join.inverse for join in self.joins])
        origins = tuple([step.inverse for step in reversed(self.derivations)])
        folds = self.folds[1], self.folds[0]
        return Lens(self.view, self.source, joins, self.dims, origins, folds)

    def __rshift__(self, other: Lens) -> Lens:
        """First this lens, then ``other``, without the layout between them ever being built.

        Dims of one name at both ends that count what these have besides, and the layout between them
        does not have, are two things: padding, copies, what is private in part. Of the name
        ``padded``, that of the view is called ``padded_view``.

        Raises:
            DerivationError: With every row in which this lens's view differs from the other's source.
        """
        verify_no_folds_between((self.view, self.folds[1]), (other.source, other.folds[0]))
        other = other.renamed(as_called(other.source, self.view))
        # With any float between, cells tell no dtype: the layouts have to be joined once more.
        if self.is_open or other.is_open:
            verify_alike(self.view, other.source)
            steps = (*self.derivations, *other.derivations)
            sizes = [step.sized(self.dims) for step in self.derivations]
            sizes += [step.sized(other.dims) for step in other.derivations]
            return _gone_through(steps, sizes)
        # Dims of one name at both ends are two things, if nothing between has them.
        other = other.beside(self)
        dims, derivations = {**self.dims, **other.dims}, (*self.derivations, *other.derivations)
        folds = self.folds[0], other.folds[1]
        return Lens(*compose(self, other), dims=dims, derivations=derivations, folds=folds)

    def beside(self, first: Lens) -> Lens:
        """This lens, to come after ``first``: dims of its view that mean others there have names of their own."""
        # What the layout between has is one dim at both ends; what it has not are two of one name.
        between = first.view.names() | self.source.names()
        between |= common_names(first.joins) | common_names(self.joins)
        before, mine = first.source.names(), self.view.names()
        names = names_apart((before & mine) - between, before | mine | between)
        return self.renamed(names, view_alone=True)

    def renamed(self, names: Mapping[str, str], *, view_alone: bool = False) -> Lens:
        """This lens with other names of dims."""
        if not names:
            return self
        return Lens(
            self.source if view_alone else renamed_layout(self.source, names),
            renamed_layout(self.view, names),
            renamed_joins(self.joins, names),
            {names.get(name, name): size for name, size in self.dims.items()},
            tuple([step.renamed(names) for step in self.derivations]),
            self.folds,
        )

    def __repr__(self) -> str:
        """Its two sides, and the sizes that are bound."""
        here, there = called(self.source, self.view)
        return f"<lens {here} -> {there}{f', {dict(self.dims)}' if self.dims else ''}>"

    def __str__(self) -> str:
        """The table: where each leaf goes, what is edited, what is private."""
        return self._table().text()

    def in_full(self) -> str:
        """The table with one line for each leaf, where `print` folds what is too long for a line."""
        return self._table().text(in_full=True)

    def _picture(self) -> Picture:
        """The same with moments beside their params, and what only moves folded."""
        return self._table().picture()

    def _table(self) -> LensTable:
        return LensTable(self, {} if self.is_open else self.loss)


def _dim_names(lens: Lens) -> set[str]:
    """The dims of both layouts, and of what is done between them."""
    names = lens.source.names() | lens.view.names()
    for one in lens.joins:
        names |= one.names
    # What both sides pad has a name in rules alone.
    for step in lens.derivations:
        for rule in step.rules:
            if isinstance(rule, Padding):
                names |= dims_.dim_names((rule.small,))
    return names


def _gone_through(steps: Sequence[Derivation], sizes: Sequence[Mapping[str, int]]) -> Lens:
    """The lens that goes through steps one after the other, some of whose layouts have leaves of any float.

    Args:
        steps: The steps. What an end leaves open stays open; a layout between takes what comes in.
        sizes: The sizes of the dims of each, by its own names.
    """
    lenses: list[Lens] = []
    for step, own in zip(closed_steps(steps), sizes, strict=True):
        tables = as_read((step.source, step.view), step.rules)
        lens = joined_lens(tables, step.rules, own, step.pairs)
        # A step knows the sizes of all, and a lens refuses those of dims that it does not have.
        known = _dim_names(lens)
        dims = {name: size for name, size in own.items() if name in known}
        lens = dataclasses.replace(lens, dims=dims)
        lenses.append(~lens if step.inverted else lens)
    whole = functools.reduce(operator.rshift, lenses)
    # Joined as what is known, and shown as it was declared: the ends are open to the next tree.
    ends = steps[0].ends[0], steps[-1].ends[1]
    if not any(map(open_rows, ends)):
        return whole
    return dataclasses.replace(
        whole,
        source=opened(whole.source, ends[0]),
        view=opened(whole.view, ends[1]),
        derivations=opened_steps(whole.derivations, steps),
    )


def planned(lens: Lens, tree: Tree, onto: Tree | None) -> Plan:
    """The plan by which `Lens.get` takes trees like this one, whose leaves may be abstract and count as if they had values.

    Raises:
        ConformanceError: As `Lens.dry_run` does.
    """
    return lens._forward.compile(tree, onto, abstract=False)[0]  # pyright: ignore[reportPrivateUsage]


def joined_lens(
    tables: tuple[Layout, Layout],
    rules: Sequence[Rule],
    sizes: Mapping[str, int],
    pairs: tuple[tuple[int, int], ...] | None = None,
) -> Lens:
    """The lens of one derivation.

    Args:
        tables: Both layouts.
        rules: The rules.
        sizes: Sizes that are given beforehand.
        pairs: Which rows are one leaf, where that is known.
    """
    # A fold is joined as if the whole were a leaf; how its parts make it is kept besides.
    spelled, wanted = without_folds(*tables, rules)
    wholes, scaled = with_wholes(tables, wanted)
    left, right, joins, said = join(*wholes, spelled, sizes)
    # Rows that stand for several are joined as one, and kept as they were declared.
    if wanted:
        said = tuple(rules)
        left = as_declared(left, tables[0], scaled[0])
        right = as_declared(right, tables[1], scaled[1])
    if pairs is None:
        joined: list[tuple[int, int]] = []
        for one in joins:
            joined += one.pairs
        pairs = tuple(joined)
    made = Derivation(left, right, said, pairs=pairs)
    folds = folded_rows((left, right), wanted, joins)
    return Lens(left, right, joins, derivations=(made,), folds=folds)

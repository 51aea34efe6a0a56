"""Two layouts, trees, modules or checkpoints, and what differs between them."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ckpt_schema._diff.both_sides import BothSides, same_rows
from ckpt_schema._diff.entries import Change, Diff, ValueDifference
from ckpt_schema._diff.found_lists import with_common_lists
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import LogicalPath, NaturalOrder, format_path
from ckpt_schema._layouts.precision import may_be_one
from ckpt_schema._layouts.table import Layout, Repeat, Row
from ckpt_schema._lens.adapt.adaptation import adapt_trees
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.read_sides import ReadSide, ReadSides, is_path, made_abstract, name_of
from ckpt_schema._lens.rules import Rename, Rule
from ckpt_schema._trees.containers import flatten
from ckpt_schema.errors import (
    CheckpointMismatchError,
    ConformanceError,
    DerivationError,
    Mismatch,
    SchemaError,
)
from ckpt_schema.orbax._adapt import adapt
from ckpt_schema.orbax._load import load
from ckpt_schema.orbax._whereabouts import all_meant

__all__ = ["diff"]

_TRIES = 6
"""How often rules that an error is certain of are tried; each brings to light what the last one hid."""


def diff(
    a: Any,
    b: Any,
    *,
    rules: Sequence[Any] = (),
    lens: Lens | None = None,
    values: bool = False,
) -> Diff:
    """What differs between two layouts, trees, modules or checkpoints.

    Leaves are the same where their logical paths are, whatever Linen or NNX puts around them. What one side alone has, and of
    which the other alone has exactly one like it, is likely renamed. Where rules make a lens between the two, they are told.

    Args:
        a: The path of a checkpoint, of which metadata alone is read; or a tree, a module, a function that makes either, a
            schema or a layout.
        b: The same.
        rules: What is known to be renamed or private, as in `adapt`.
        lens: The lens between the two, where there is one; its rules are taken.
        values: Whether values are compared too: of two trees or checkpoints that have one layout, or through ``lens``. Both
            are read then.

    Raises:
        CheckpointMismatchError: There is no checkpoint at a path.
        ConformanceError: Values are to be compared of trees of two layouts, without a lens.

    Example:
        >>> import jax
        >>> leaf, wide = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 8), (4, 9)))
        >>> print(diff({"a": leaf, "up": leaf}, {"a": wide, "wi": leaf}))
        source and view: 2 changes
        likely renamed:
          params/up  -> params/wi
        reshaped:
          params/a  float32[4 8] -> float32[4 9]
    """
    names = name_of(a, "source"), name_of(b, "view")
    if lens is not None:
        # A lens composed of others has the rules of each.
        several: list[Rule] = []
        for derivation in lens.derivations:
            several += derivation.rules
        rules = tuple(several)
    sides = _Sides(a, b, rules)
    changes = sorted((*sides.changes(), *sides.resharded()), key=_order)
    found = Diff(
        names, tuple(changes), sides.respelled, sides.rules, sides.mended, notes=sides.notes
    )
    if not values:
        return found
    before, after = _read(a, names[0]), _read(b, names[1])
    return dataclasses.replace(found, values=tuple(_values(before, after, lens)))


class _Sides:
    """Both sides as layouts, in which what a lens takes for one list is one.

    Attributes:
        rules: The rules with which there is a lens, or that are certain.
        mended: Whether there is one.
        notes: Why there is none, where that can be said.
        respelled: How many rows have other keys, and are the same otherwise.
    """

    def __init__(self, a: Any, b: Any, rules: Sequence[Rule]) -> None:
        self.rules, self.mended, self.respelled = tuple(rules), False, 0
        self.notes: tuple[str, ...] = ()
        # What is no rule is told when a lens is asked for.
        given: Sequence[Any] = rules
        told = [rule for rule in given if isinstance(rule, Rule)]
        both = with_common_lists(BothSides((_side(a, "source"), _side(b, "view"))), told)
        lists = sorted({*both.sides[0].lists, *both.sides[1].lists}) or None
        on_disk = is_path(a), is_path(b)
        # What is the same row of both is no matter from here on: of two large trees that is most.
        left, right = both.rest
        self._rows: list[list[Row]] = [[*left.layout.rows], [*right.layout.rows]]
        # Where a leaf of a checkpoint will lie, the code that restores it decides.
        self._trees: list[Any] = []
        for side, is_stored in zip(both.sides, on_disk, strict=True):
            self._trees.append(None if is_stored else side.tree)
        lens: Lens | None = None
        with_certain: list[Any] = [*rules]
        if rules or any(on_disk):  # which may be of any leaf; and is read as a restore reads it
            lens = self._between((a, b), lists, with_certain)
        elif not any(self._rows):
            self.mended = True
        elif not self._are_refuted(both, lists):
            lens = self._between(both.sides, lists, with_certain)
        if lens is not None:
            self.mended, self.rules = True, tuple(with_certain)
            # The lens may have read the trees in another way, so the rows are now those that it has.
            same = same_rows(lens.source, lens.view)
            self._rows = [[], []]
            for rows, table in zip(self._rows, (lens.source, lens.view), strict=True):
                rows += [row for row in table.rows if row.path not in same]
        # Without a lens the renames that are certain are told all the same.
        self._renames: list[tuple[LogicalPath, LogicalPath]] = []
        for rule in with_certain:
            if isinstance(rule, Rename) and not _has_star(rule):
                self._renames.append((rule.source, rule.view))

    def _between(
        self, sides: tuple[Any, Any], lists: Sequence[str] | None, rules: list[Any]
    ) -> Lens | None:
        """The lens, with the rules that errors are certain of, which are added."""
        for _ in range(_TRIES):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of square leaves, which are no matter here
                    return adapt(*sides, rules=rules, lists=lists)
            except DerivationError as error:
                news = [rule for rule in error.rules if rule not in rules]
                if not news:
                    self._note_guesses(error)
                    return None
                rules += news
            except CheckpointMismatchError as error:  # the state stands elsewhere
                for fault in error.mismatches:
                    self.notes += (f"{error.header}, but {fault.found}: {fault.hint} to adapt",)
                return None
            except SchemaError:
                return None
        return None

    def _are_refuted(self, both: BothSides, lists: Sequence[str] | None) -> bool:
        """Whether what differs has no lens, nor a rule that would help: then the whole has none, and need not be asked."""
        # Where all differs, to ask for what differs would be to ask for the whole, and twice.
        if _count_rows(both.rest) == _count_rows(both.sides):
            return False
        try:
            adapt_trees(*both.rest, lists=lists)
        except DerivationError as error:
            # Which axis is stacked may be told by leaves that are alike.
            is_open = any(fault.kind == "ambiguous" for fault in error.mismatches)
            if error.rules or is_open:
                return False
            self._note_guesses(error)
            return True
        except SchemaError:
            return True
        return False

    def _note_guesses(self, error: DerivationError) -> None:
        """Notes the rules that sizes allow, and that nothing proves."""
        rules: dict[object, None] = {}
        for fault in error.mismatches:
            rules.update(dict.fromkeys(fault.guesses))
        self.notes += tuple([f"perhaps, for sizes allow it: cs.{rule}" for rule in rules])

    def changes(self) -> Iterator[Change]:
        """What differs."""
        before, after = self._rows
        known = {row.path: row for row in after}
        # By param, how many leaves optimizers keep for it: they are counted, and not told one by one.
        mirrors: tuple[collections.Counter[str], ...] = collections.Counter(), collections.Counter()
        for counter, rows in zip(mirrors, self._rows, strict=True):
            for row in rows:
                if row.mirrors:
                    counter[row.mirrors] += 1
        removed: list[Row] = []
        kept: list[_Pair] = []  # by optimizers for params
        told: set[str] = set()  # what each of these goes with
        for row in before:
            path = self._renamed(row.path, row.body or 0)
            other = known.pop(path, None)
            name = "/".join(row.path)
            if row.mirrors or (other is not None and other.mirrors):
                kept.append((row, other))
                continue
            if other is None:
                removed.append(row)
                continue
            several = mirrors[0][name]
            if path != row.path:
                yield Change("likely renamed", name, "", "/".join(path), several)
            apart = [*_apart(row, other, several)]
            yield from apart
            if apart:
                told.add(name)
            # As `layers_0` of Linen and `layers/0` of NNX: one leaf under two keys.
            elif path == row.path and row.key != other.key:
                self.respelled += 1
        # What is left is on the second side alone.
        added: list[Row] = []
        for row in known.values():
            if row.mirrors:
                kept.append((None, row))
            else:
                added.append(row)
        pairs = dict(_alike(removed, added))
        taken = set(pairs.values())
        for row in removed:
            name = "/".join(row.path)
            told.add(name)
            if row.path in pairs:
                to = "/".join(pairs[row.path])
                yield Change("likely renamed", name, "", to, mirrors[0][name])
            else:
                yield Change("removed", name, _told(row), "", mirrors[0][name])
        for row in added:
            name = "/".join(row.path)
            told.add(name)
            if row.path not in taken:
                yield Change("added", name, "", _told(row), mirrors[1][name])
        yield from _of_optimizers(kept, told)

    def resharded(self) -> Iterator[Change]:
        """What lies elsewhere."""
        if all(tree is not None for tree in self._trees):
            yield from _resharded(self._trees)

    def _renamed(self, path: LogicalPath, body: int) -> LogicalPath:
        """A path of the first side as the second calls it."""
        # A rule is from the root of the model: of opt_state/0/mu/w it renames w alone.
        head, rest = path[:body], path[body:]
        for old, new in self._renames:
            if rest[: len(old)] == old:
                return (*head, *new, *rest[len(old) :])
        return path


_Pair = tuple[Row | None, Row | None]
"""A row of the first side, and what the second has for it; None where one has nothing."""


def _of_optimizers(kept: Sequence[_Pair], told: set[str]) -> Iterator[Change]:
    """What differs in what optimizers keep for params, and does not go with what is told of the param itself."""
    found: dict[Change, None] = {}  # of all params that one part keeps something for, once
    for before, after in kept:
        row = before or after
        assert row is not None
        part = "/".join((*row.root, "**"))
        # A param that is gone takes its mu and nu with it, which is no news.
        if (before and before.mirrors in told) or (after and after.mirrors in told):
            continue
        if after is None:
            found[Change("removed", part, row.leaf.dtype, "")] = None
        elif before is None:
            found[Change("added", part, "", row.leaf.dtype)] = None
        else:
            for change in _apart(before, after, 0):
                # All of mu in another dtype is one change; a shape is that of one param.
                if change.kind == "recast":
                    change = dataclasses.replace(change, path=part)
                found[change] = None
    yield from found


def _apart(row: Row, other: Row, several: int) -> Iterator[Change]:
    """How two rows differ, whatever they are called."""
    path = "/".join(row.path)
    shape = Leaf(row.leaf.dims, ""), row.repeats
    if shape != (Leaf(other.leaf.dims, ""), other.repeats):
        yield Change("reshaped", path, _told(row), _told(other), several)
    elif not may_be_one(row.leaf.dtype, other.leaf.dtype):
        yield Change("recast", path, row.leaf.dtype, other.leaf.dtype, several)


def _has_star(rule: Rename) -> bool:
    return any("*" in segment for segment in (*rule.source, *rule.view))


def _side(given: Any, name: str) -> ReadSide:
    """One side, as it is read by itself; of a checkpoint, all of it."""
    if not is_path(given):
        return ReadSide.of(given, name)
    disk = all_meant(given)
    return ReadSide.of(disk.tree, name_of(given, name), disk.joined)


def _count_rows(sides: ReadSides) -> int:
    left, right = sides
    return len(left.layout.rows) + len(right.layout.rows)


def _alike(
    removed: Sequence[Row], added: Sequence[Row]
) -> Iterator[tuple[LogicalPath, LogicalPath]]:
    """Rows of which each side alone has exactly one like it."""
    # With the name of the leaf, and then without it: of two square arrays the kernel is the kernel.
    named: tuple[dict[Any, list[Row]], ...] = ({}, {})
    loose: tuple[dict[Any, list[Row]], ...] = ({}, {})
    for at, rows in enumerate((removed, added)):
        for row in rows:
            shape = str(row.stored), _counts(row.repeats)
            last = row.path[-1] if row.leaf.dims else ""
            named[at].setdefault((*shape, last), []).append(row)
            loose[at].setdefault(shape, []).append(row)
    for left, right in (named, loose):
        for shape, rows in left.items():
            others = right.get(shape, [])
            if len(rows) == len(others) == 1:
                yield rows[0].path, others[0].path


def _counts(repeats: Sequence[Repeat]) -> tuple[Any, ...]:
    return tuple(repeat.size for repeat in repeats)


def _told(row: Row) -> str:
    """A row as it is stored, and how often."""
    # A list of twelve layers is "12 x float32[4 8]".
    counts = [str(dim[0]) if len(dim) == 1 else str(dim) for dim in row.unrolled]
    return " x ".join((*counts, str(row.stored)))


def _order(change: Change) -> Any:
    return NaturalOrder()(change.path)


def _resharded(trees: Sequence[Any]) -> Iterator[Change]:
    """Leaves of two trees under one key path whose elements lie on devices in two ways; those of all layers as one."""
    if any(map(_lies_nowhere, trees)):
        return
    known = _by_bare_key(trees[0])
    told: dict[Change, None] = {}
    flat = flatten(_state(trees[1]))
    for place, leaf in zip(flat.keys, flat.leaves, strict=True):
        key = _bare(place)
        before = getattr(known.get(key), "sharding", None)
        after = getattr(leaf, "sharding", None)
        # P("x") and P("x", None) split a matrix in the same way.
        if before is None or after is None or before.is_equivalent_to(after, len(leaf.shape)):
            continue
        # All layers of a list that lie in one way are one change.
        numberless = ["{i}" if segment.isdecimal() else segment for segment in key]
        told[Change("resharded", "/".join(numberless), _spec(before), _spec(after))] = None
    yield from told


def _by_bare_key(tree: Any) -> dict[tuple[Any, ...], Any]:
    """The leaves of a tree or module, by key paths that are the same before a save and after it."""
    flat = flatten(_state(tree))
    return {_bare(key): leaf for key, leaf in zip(flat.keys, flat.leaves, strict=True)}


def _lies_nowhere(tree: Any) -> bool:
    """Whether all of a tree is abstract, and nothing says where it lies."""
    every = jax.tree.leaves(tree)
    return all(type(leaf) is jax.ShapeDtypeStruct and leaf.sharding is None for leaf in every)


def _spec(sharding: Any) -> str:
    """A sharding as it is told: how axes are split, and over how many devices."""
    spec = getattr(sharding, "spec", None)
    devices = len(sharding.device_set)
    return f"{spec or 'whole'} on {devices} {'device' if devices == 1 else 'devices'}"


def _read(given: Any, name: str) -> Any:
    """The tree of one side, with values.

    Raises:
        ConformanceError: It has none: it is declared, or abstract.
    """
    if is_path(given):
        return load(given)
    made = made_abstract(given)
    leaf = next(iter(_by_bare_key(made).values()), None)
    if isinstance(leaf, (Layout, type, jax.ShapeDtypeStruct)):
        found = "an abstract tree" if isinstance(leaf, jax.ShapeDtypeStruct) else "a layout"
        hint = "leave values out, or give a checkpoint or a tree of arrays"
        fault = Mismatch(name, "argument", "a tree that has values", found, hint)
        raise ConformanceError("values cannot be compared", [fault])
    return made


def _values(a: Any, b: Any, lens: Lens | None) -> Iterator[ValueDifference]:
    """The leaves whose values differ, one at a time."""
    if lens is not None:
        a = lens.get(a)
    left, right = _by_bare_key(a), _by_bare_key(b)
    if left.keys() != right.keys():
        hint = "give lens=, the lens between them"
        faults: list[Mismatch] = []
        for key in sorted(map(format_path, left.keys() ^ right.keys())):
            faults.append(Mismatch(key, "key", "in both trees", "in one alone", hint))
        raise ConformanceError("values of two layouts cannot be compared leaf by leaf", faults)
    for key, leaf in left.items():
        apart = _distance(leaf, right[key])
        if apart != (0.0, 0.0):
            yield ValueDifference(format_path(key), *apart)


def _bare(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """A key path without what a save makes of it: numbers as strings, and the level that a Variable adds."""
    return tuple([str(segment) for segment in key if segment != "value"])


def _state(tree: Any) -> Any:
    # Imported here, for it loads NNX, and a comparison of layouts does without.
    from ckpt_schema._frameworks.variables import state_of

    return state_of(tree)


def _distance(a: Any, b: Any) -> tuple[float, float]:
    """The greatest absolute and relative difference of two leaves."""
    first, second = _numbers(a), _numbers(b)
    if first.shape != second.shape:
        return float("inf"), float("inf")
    with np.errstate(all="ignore"):
        # Two NaNs are the same here, and so are two infinities, whose difference would be a NaN.
        equal = (first == second) | ((first != first) & (second != second))
        apart = np.where(equal, 0.0, np.abs(first - second))
        # A NaN that is left is of a NaN on one side alone.
        apart = np.where(np.isnan(apart), np.inf, apart)
        largest = np.maximum(np.abs(first), np.abs(second))
        relative = np.where(equal, 0.0, apart / largest)
        # So is one that is left here, or it is infinity by infinity.
        relative = np.where(np.isnan(relative), np.inf, relative)
    return (float(apart.max()), float(relative.max())) if apart.size else (0.0, 0.0)


def _numbers(leaf: Any) -> np.ndarray[Any, Any]:
    """The values of a leaf, wide enough to be subtracted."""
    # A random key has no values that could be subtracted, but those that it is stored as.
    if not leaves.is_scalar(leaf) and str(leaf.dtype).startswith("key<"):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)

"""Two layouts, trees, modules or checkpoints, and what differs between them."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ckpt_schema._diff.entries import Change, Diff, ValueDifference
from ckpt_schema._diff.found_lists import found_lists, stands_at
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import LogicalPath, NaturalOrder, format_path
from ckpt_schema._layouts.precision import may_be_one
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Repeat, Row
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.read_sides import made_abstract
from ckpt_schema._lens.rules import Rename, Rule
from ckpt_schema._trees.containers import flatten
from ckpt_schema._trees.infer import infer
from ckpt_schema.errors import ConformanceError, DerivationError, Mismatch, SchemaError
from ckpt_schema.orbax._adapt import adapt, name_of
from ckpt_schema.orbax._load import load

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
        rules = tuple([rule for each in lens.derivations for rule in each.rules])
    sides = _Sides(a, b, rules)
    changes = sorted((*sides.changes(), *_resharded(a, b)), key=_order)
    found = Diff(names, tuple(changes), sides.respelled, sides.rules, sides.mended)
    if not values:
        return found
    return dataclasses.replace(found, values=tuple(_values(_read(a), _read(b), lens)))


class _Sides:
    """Both sides as layouts, in which what a lens takes for one list is one.

    Attributes:
        rules: The rules with which there is a lens, or that are certain.
        mended: Whether there is one.
        respelled: How many rows have other keys, and are the same otherwise.
    """

    def __init__(self, a: Any, b: Any, rules: Sequence[Rule]) -> None:
        self.rules, self.mended, self.respelled = tuple(rules), False, 0
        self.lens: Lens | None = None
        found: list[Any] = [*rules]
        readings = _read_sides(a, b)
        lists = sorted({pattern for own, _ in readings for pattern in own}) or None
        for _ in range(_TRIES):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of square leaves, which are no matter here
                    self.lens = adapt(a, b, rules=found, lists=lists)
            except DerivationError as error:
                news = [rule for rule in error.rules if rule not in found]
                if not news:
                    break
                found += news
                continue
            except SchemaError:
                break
            self.mended, self.rules = True, tuple(found)
            break
        renames = [rule for rule in found if isinstance(rule, Rename)]
        self._renames = [(rule.source, rule.view) for rule in renames if not _has_star(rule)]
        if self.lens is not None:
            self._tables = self.lens.source, self.lens.view
        else:
            self._tables = readings[0][1], readings[1][1]

    def changes(self) -> Iterator[Change]:
        """What differs."""
        before, after = self._tables
        known = {row.path: row for row in after.rows}
        mirrors = [
            collections.Counter(r.mirrors for r in t.rows if r.mirrors) for t in self._tables
        ]
        removed: list[Row] = []
        moved: set[LogicalPath] = set()
        for row in before.rows:
            path = self._renamed(row.path, row.body or 0)
            other = known.pop(path, None)
            if row.mirrors or (other is not None and other.mirrors):
                continue  # what mirrors a param is told with it
            if other is None:
                removed.append(row)
                continue
            several = mirrors[0]["/".join(row.path)]
            if path != row.path:
                moved.add(path)
                yield Change("likely renamed", "/".join(row.path), "", "/".join(path), several)
            yield from self._apart(row, other, several)
        added = [row for row in known.values() if not row.mirrors]
        pairs = dict(_alike(removed, added))
        for row in removed:
            several = mirrors[0]["/".join(row.path)]
            if row.path in pairs:
                to = "/".join(pairs[row.path])
                yield Change("likely renamed", "/".join(row.path), "", to, several)
            else:
                yield Change("removed", "/".join(row.path), _told(row), "", several)
        taken = set(pairs.values())
        for row in added:
            if row.path not in taken:
                several = mirrors[1]["/".join(row.path)]
                yield Change("added", "/".join(row.path), "", _told(row), several)

    def _apart(self, row: Row, other: Row, several: int) -> Iterator[Change]:
        path = "/".join(row.path)
        shape = Leaf(row.leaf.dims, ""), row.repeats
        if shape != (Leaf(other.leaf.dims, ""), other.repeats):
            yield Change("reshaped", path, _told(row), _told(other), several)
        elif not may_be_one(row.leaf.dtype, other.leaf.dtype):
            yield Change("recast", path, row.leaf.dtype, other.leaf.dtype, several)
        elif row.path == other.path and row.key != other.key:
            self.respelled += 1

    def _renamed(self, path: LogicalPath, body: int) -> LogicalPath:
        """A path of the first side as the second calls it."""
        head, rest = path[:body], path[body:]
        for old, new in self._renames:
            if rest[: len(old)] == old:
                return (*head, *new, *rest[len(old) :])
        return path


def _has_star(rule: Rename) -> bool:
    return any("*" in segment for segment in (*rule.source, *rule.view))


_Reading = tuple[list[str], Layout]
"""The lists that one side shows, and its layout as it is read with them."""


def _read_sides(a: Any, b: Any) -> tuple[_Reading, _Reading]:
    """Both sides by themselves; of siblings that are a list on one, and by themselves unlike on the other, each is told."""
    sides = _Side(a), _Side(b)
    apart: set[str] = set()
    while True:
        here, there = sides[0].reading(apart), sides[1].reading(apart)
        unlike: set[str] = set()
        both = (
            _with_lists_of(sides[0], here, there[0], unlike),
            _with_lists_of(sides[1], there, here[0], unlike),
        )
        if not unlike:
            return both
        apart |= unlike  # what such a list holds is looked at in each of its members


class _Side:
    """One side, which is read with several choices of lists, with each of them once."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._read: dict[tuple[str, ...], Layout] = {}
        self.is_declared = isinstance(given, Layout) or (
            isinstance(given, type) and issubclass(given, Schema)
        )

    def read(self, lists: Sequence[str]) -> Layout:
        """Its layout, with these lists."""
        key = tuple(lists)
        if key not in self._read:
            self._read[key] = infer(self._given, lists=lists)
        return self._read[key]

    def reading(self, apart: Collection[str]) -> _Reading:
        """All lists that it shows by itself, but for some."""
        return ([], layout(self._given)) if self.is_declared else found_lists(self.read, apart)


def _with_lists_of(side: _Side, own: _Reading, lists: Sequence[str], unlike: set[str]) -> _Reading:
    """A side with the lists of the other whose members it has: of one layer too. Those that are none are ``unlike``."""
    known, table = own
    for pattern in lists:
        if pattern in known or side.is_declared or not stands_at(table, pattern):
            continue
        try:
            table = side.read([*known, pattern])
        except SchemaError:
            unlike.add(pattern)
        else:
            known = [*known, pattern]
    return known, table


def _is_declared(given: Any) -> bool:
    return _Side(given).is_declared


def _alike(
    removed: Sequence[Row], added: Sequence[Row]
) -> Iterator[tuple[LogicalPath, LogicalPath]]:
    """Rows of which each side alone has exactly one like it."""
    groups: tuple[dict[Any, list[Row]], ...] = ({}, {})
    for group, rows in zip(groups, (removed, added), strict=True):
        for row in rows:
            last = row.path[-1] if row.leaf.dims else ""
            group.setdefault((str(row.stored), _counts(row.repeats), last), []).append(row)
    loose: tuple[dict[Any, list[Row]], ...] = ({}, {})
    for group, rows in zip(loose, (removed, added), strict=True):
        for row in rows:
            group.setdefault((str(row.stored), _counts(row.repeats)), []).append(row)
    for one in (groups, loose):
        for shape, rows in one[0].items():
            others = one[1].get(shape, [])
            if len(rows) == len(others) == 1:
                yield rows[0].path, others[0].path


def _counts(repeats: Sequence[Repeat]) -> tuple[Any, ...]:
    return tuple(repeat.size for repeat in repeats)


def _told(row: Row) -> str:
    """A row as it is stored, and how often."""
    counts = [str(dim[0]) if len(dim) == 1 else str(dim) for dim in row.unrolled]
    return f"{' x '.join((*counts, str(row.stored)))}"


def _order(change: Change) -> Any:
    return NaturalOrder()(change.path)


def _is_tree(given: Any) -> bool:
    """Whether values may be looked at without reading anything."""
    return (
        not _is_declared(given) and not isinstance(given, str) and not hasattr(given, "__fspath__")
    )


def _resharded(a: Any, b: Any) -> Iterator[Change]:
    """Leaves under one key path whose elements lie on devices in two ways; those of all layers as one."""
    if not _is_tree(a) or not _is_tree(b):
        return
    flat = [flatten(_state(made_abstract(each))) for each in (a, b)]
    known = {_bare(key): leaf for key, leaf in zip(flat[0].keys, flat[0].leaves, strict=True)}
    told: dict[Change, None] = {}
    for key, leaf in zip(flat[1].keys, flat[1].leaves, strict=True):
        before = getattr(known.get(_bare(key)), "sharding", None)
        after = getattr(leaf, "sharding", None)
        if before is None or after is None or before.is_equivalent_to(after, len(leaf.shape)):
            continue
        path = "/".join("{i}" if segment.isdecimal() else segment for segment in _bare(key))
        told[Change("resharded", path, _spec(before), _spec(after))] = None
    yield from told


def _spec(sharding: Any) -> str:
    """A sharding as it is told: how axes are split, and over how many devices."""
    spec = getattr(sharding, "spec", None)
    devices = len(sharding.device_set)
    return f"{spec or 'whole'} on {devices} {'device' if devices == 1 else 'devices'}"


def _read(given: Any) -> Any:
    """The tree of one side, with values."""
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        return load(given)
    return made_abstract(given)


def _values(a: Any, b: Any, lens: Lens | None) -> Iterator[ValueDifference]:
    """The leaves whose values differ, one at a time."""
    if lens is not None:
        a = lens.get(a)
    flat = [flatten(_state(each)) for each in (a, b)]
    keys = [{_bare(key): leaf for key, leaf in zip(f.keys, f.leaves, strict=True)} for f in flat]
    if keys[0].keys() != keys[1].keys():
        alone = sorted(format_path(key) for key in keys[0].keys() ^ keys[1].keys())
        hint = "give lens=, the lens between them"
        faults = [Mismatch(key, "key", "in both trees", "in one alone", hint) for key in alone]
        raise ConformanceError("values of two layouts cannot be compared leaf by leaf", faults)
    for key, leaf in keys[0].items():
        apart = _distance(leaf, keys[1][key])
        if apart != (0.0, 0.0):
            yield ValueDifference(format_path(key), *apart)


def _bare(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """A key path without what a save makes of it: numbers as strings, and the level that a Variable adds."""
    return tuple(str(segment) for segment in key if segment != "value")


def _state(tree: Any) -> Any:
    from ckpt_schema._frameworks.variables import state_of

    return state_of(tree)


def _distance(a: Any, b: Any) -> tuple[float, float]:
    """The greatest absolute and relative difference of two leaves."""
    both = [_numbers(leaf) for leaf in (a, b)]
    if both[0].shape != both[1].shape:
        return float("inf"), float("inf")
    first, second = both
    with np.errstate(all="ignore"):
        equal = (first == second) | ((first != first) & (second != second))
        apart = np.where(equal, 0.0, np.abs(first - second))
        apart = np.where(np.isnan(apart), np.inf, apart)
        largest = np.maximum(np.abs(first), np.abs(second))
        relative = np.where(equal, 0.0, apart / largest)
        relative = np.where(np.isnan(relative), np.inf, relative)
    return (float(apart.max()), float(relative.max())) if apart.size else (0.0, 0.0)


def _numbers(leaf: Any) -> np.ndarray[Any, Any]:
    """The values of a leaf, wide enough to be subtracted."""
    if not leaves.is_scalar(leaf) and str(leaf.dtype).startswith("key<"):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)

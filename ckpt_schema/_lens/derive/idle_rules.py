"""Rules that change nothing: what a user wrote is never ignored.

The last but one step of `derivation`: the joins are made, and each of them knows the rules that it
was made by. What no join was made by is told of here, each family of rules in words of its own.
Rules whose very path is nowhere are told of by `missing_paths` before.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Container, Iterator, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim, Sum
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import ANY_FLOAT, Leaf
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row, Series
from ckpt_schema._lens import expressions
from ckpt_schema._lens.axis_rules import Grown, Padding, Repeated, Reverse
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.leaf_rules import PaddedAxis, Told, ValueRule
from ckpt_schema._lens.derive.named_axes import spots_called
from ckpt_schema._lens.derive.names import Names
from ckpt_schema._lens.derive.padded_rows import stripped
from ckpt_schema._lens.derive.repeats import count_of
from ckpt_schema._lens.derive.row_parts import mentions
from ckpt_schema._lens.derive.scope import Scope, standing
from ckpt_schema._lens.derive.ties import originals
from ckpt_schema._lens.rules import Fuse, RawKey, Rename, Rule, Tie
from ckpt_schema._lens.value_rules import Factor, Offset, Rounding
from ckpt_schema.errors import Mismatch

__all__ = ["idle_rules", "without_spare_casts"]

Tables = tuple[Layout, Layout]


def idle_rules(
    source: Layout,
    view: Layout,
    rules: Sequence[Rule],
    names: Names,
    joins: Sequence[Join],
    divided: Container[object],
    known: set[str],
) -> Iterator[Mismatch]:
    """The faults of rules that do nothing.

    Args:
        source: The source's layout.
        view: The view's layout.
        rules: The rules.
        names: Those that rename or move.
        joins: What was joined by them.
        divided: The rules by which parts are one leaf.
        known: Paths and rules that have a fault already.
    """
    tables = source, view
    yield from _idle_keys(tables, rules, joins, known)
    yield from _idle_ties(tables, rules)
    sound = _without_faulty(tables, rules, known) if known else rules
    yield from _idle_changes(tables, sound, names, joins)
    # A leaf with a fault has no join, and its rules would seem to order nothing.
    if not known:
        yield from _idle_orders(rules, joins)
    yield from _idle_groups(rules, divided)
    yield from _unknown_factors(tables, rules)


# --- keys, ties, parts, orders: one kind of rule each  ---


def _idle_keys(
    tables: Tables, rules: Sequence[Rule], joins: Sequence[Join], known: set[str]
) -> Iterator[Mismatch]:
    """Raw keys that are none."""
    raw_keys = [rule for rule in rules if isinstance(rule, RawKey)]
    if not raw_keys:
        return
    scope = Scope((rule.path, rule) for rule in raw_keys)
    used_rows: list[Row] = []
    for join in joins:
        for here, there in join.pairs:
            before, after = tables[0].rows[here], tables[1].rows[there]
            if before.leaf.is_key != after.leaf.is_key:
                used_rows.append(after)
    # A leaf with a fault has no join, so nobody can say that its rule was of no use.
    used_rows += _faulty_rows(tables[1], known)
    used = scope.matched(used_rows)
    for number, rule in enumerate(raw_keys):
        if number not in used:
            expected = "a key on one side and raw data on the other"
            yield Mismatch(str(rule), "rule", expected, "none", "drop the rule")


def _faulty_rows(table: Layout, known: set[str]) -> list[Row]:
    """The rows whose paths have a fault already."""
    return [row for row in table.rows if "/".join(row.path) in known]


def _idle_ties(tables: Tables, rules: Sequence[Rule]) -> Iterator[Mismatch]:
    """Ties of leaves that both sides have, or none: a tie is for a leaf that one side stores twice."""
    ties = [rule for rule in rules if isinstance(rule, Tie)]
    scope = Scope((rule.copy, rule) for rule in ties)
    # By the number of a tie: the layouts that have both of its leaves, each once.
    names_of: dict[int, dict[str, None]] = {}
    for table in tables:
        for copies in originals(table, scope).values():
            for hit, _ in copies:
                names_of.setdefault(hit.number, {})[table.name] = None
    for number, rule in enumerate(ties):
        names = names_of.get(number, {})
        if len(names) == 1:
            continue
        both = f"leaves at {'/'.join(rule.copy)} and at {'/'.join(rule.of)}"
        expected = f"{both} of one side, which the other stores once"
        hint = "drop the rule: both sides have both"
        if not names:
            hint = "print the layouts to see their paths"
        yield Mismatch(str(rule), "rule", expected, " and ".join(names) or "none", hint)


def _idle_orders(rules: Sequence[Rule], joins: Sequence[Join]) -> Iterator[Mismatch]:
    """Rules that say the order of axes of no leaf that is one on both sides."""
    ordering: list[Rename] = []
    for rule in rules:
        if isinstance(rule, Rename) and rule.axes is not None:
            ordering.append(rule)
    if not ordering:
        return
    used: set[Rule] = set()
    for join in joins:
        used.update(join.told.rules)
    for rule in ordering:
        if rule not in used:
            hint = "of parts of a leaf, declare the axes with named dims"
            expected = "a leaf that is one leaf on both sides"
            yield Mismatch(str(rule), "rule", expected, "none that it orders", hint)


def _idle_groups(rules: Sequence[Rule], used: Container[object]) -> Iterator[Mismatch]:
    """Rules that make parts one where there are none."""
    for rule in rules:
        if not isinstance(rule, (Fuse, Series)) or rule in used:
            continue
        parts = rule.parts if isinstance(rule, Fuse) else rule.members
        spelled = " and ".join("/".join(path) for path in parts)
        expected = f"leaves below {spelled} of one side, which the other has as one"
        hint = "print the layouts to see their paths"
        yield Mismatch(str(rule), "rule", expected, "none", hint)


def _unknown_factors(tables: Tables, rules: Sequence[Rule]) -> Iterator[Mismatch]:
    """Factors of dims that neither layout has, as in ``scale("q", "head_dimm**-0.5")``."""
    # The order of names decides among equally near ones: the source's are first.
    dims: dict[str, None] = {}
    for table in tables:
        dims.update(dict.fromkeys(sorted(table.names())))
    # Where neither side has a dim of that name, no tree could ever tell what the factor is.
    for rule in rules:
        if not isinstance(rule, Factor) or not isinstance(rule.factor, str):
            continue
        for name in sorted(expressions.dims_in(rule.factor) - dims.keys()):
            near = difflib.get_close_matches(name, dims, n=1)
            hint = f"near: {near[0]}" if near else "print the layouts to see their dims"
            expected = f"a dim of {tables[0].name} or {tables[1].name}"
            yield Mismatch(str(rule), "rule", expected, name, hint)


# --- rules that change values, or where they stand  ---

_Change = Reverse | Padding | Grown | Repeated | Factor | Offset | Rounding
_CHANGES = (Reverse, Padding, Grown, Repeated, Factor, Offset, Rounding)


def _without_faulty(tables: Tables, rules: Sequence[Rule], known: set[str]) -> list[Rule]:
    """Without the rules that have a fault already, or whose leaves have: it says more than that they do nothing.

    But a padding of dims that no leaf has is a fault of its own, and often the reason for the other.
    """
    rules = [rule for rule in rules if str(rule) not in known]
    changes = _changes(rules)
    if not changes:
        return rules
    scope = Scope((rule.path, rule) for rule in changes)
    speaking_of_faulty = scope.matched(_faulty_rows(tables[1], known))
    dims: set[Dim] = set()
    for table in tables:
        for row in table.rows:
            dims.update(row.all_dims)
    # By id, for two rules that are equal may stand in the list.
    dropped: set[int] = set()
    for number, rule in enumerate(changes):
        is_misnamed = isinstance(rule, (Padding, Grown)) and not {rule.small, rule.large} <= dims
        if number in speaking_of_faulty and not is_misnamed:
            dropped.add(id(rule))
    return [rule for rule in rules if id(rule) not in dropped]


def _changes(rules: Sequence[Rule]) -> list[_Change]:
    """Those of some rules that change values, or where they stand."""
    return [rule for rule in rules if isinstance(rule, _CHANGES)]


def _idle_changes(
    tables: Tables, rules: Sequence[Rule], names: Names, joins: Sequence[Join]
) -> Iterator[Mismatch]:
    """Rules for the values of leaves that change none."""
    changes = _changes(rules)
    if not changes:
        return
    used: set[int] = set()
    for join in joins:
        used.update(_applied(tables, join))
    unused: list[tuple[_Change, LogicalPath]] = []
    for rule in changes:
        if id(rule) not in used:
            # Such a rule speaks of the view's paths. Who wrote the source's is told the view's.
            unused.append((rule, names.called(rule.path)))
    there = standing(tables[1], [path for _, path in unused])
    for rule, path in unused:
        hint = "print the layouts to see their dims"
        if path != rule.path and path in there:
            meant = dataclasses.replace(rule, path=path)
            hint = f"it is in the words of {tables[1].name}: {meant}"
        expected = f"{_leaf_for(rule)}, at {'/'.join(rule.path)} or below"
        yield Mismatch(str(rule), "rule", expected, "none", hint)


def _applied(tables: Tables, join: Join) -> Iterator[int]:
    """The ids of the rules that change something of a join's leaf."""
    changes = _changes(join.told.rules)
    if not changes:  # as of nearly all joins
        return
    fills: list[PaddedAxis] = []
    for rule in changes:
        if isinstance(rule, Padding):
            fills.append(PaddedAxis.of(rule.small, rule.large, rule.fill))
    padding = Told(fills=tuple(fills))
    pairs: list[tuple[Row, Row]] = []
    for here, there in join.pairs:
        before, after = tables[0].rows[here], tables[1].rows[there]
        # A rule may speak of a dim that shows only where the padding is cut off: "vocab" of "padded".
        pairs += [(before, after), (stripped(before, padding), stripped(after, padding))]
    for rule in changes:
        if any(_applies(rule, pair) for pair in pairs):
            yield id(rule)


def _applies(rule: ValueRule, rows: tuple[Row, Row]) -> bool:
    """Whether a rule says anything of a leaf that has these rows, one of which may be a part of the other."""
    source, view = rows
    if isinstance(rule, Reverse):
        return bool(spots_called(source, rule.dim) or spots_called(view, rule.dim))
    if isinstance(rule, Repeated):
        return count_of(source, rule) != count_of(view, rule)
    if isinstance(rule, Rounding):
        return _may_round(source.leaf, view.leaf)
    # What changes nothing is meant so: it says of moments that they stay as they are.
    is_float = source.leaf.dtype in FORMATS or source.leaf.is_open
    if isinstance(rule, Factor):
        return rule.factor == 1 or is_float
    if isinstance(rule, Offset):
        return not rule.amount or is_float
    if isinstance(rule, RawKey):
        return source.leaf.is_key != view.leaf.is_key
    # Of a list in several parts each has a term of its length.
    dims: list[Dim] = [rule.large]
    for factor in rule.large:
        if isinstance(factor, Sum):
            dims += factor.terms
    return any(mentions(source, dim) or mentions(view, dim) for dim in dims)


def _may_round(leaf: Leaf, other: Leaf) -> bool:
    """Whether a cast may have something to do between two leaves."""
    if not {leaf.dtype, other.dtype} <= FORMATS.keys() | {ANY_FLOAT}:
        return False
    # Of any float it is not known which, or was not when the rule was written.
    for one in (leaf, other):
        if one.any_float or one.is_open:
            return True
    return leaf.dtype != other.dtype


def _leaf_for(rule: _Change) -> str:
    """What a rule is for."""
    if isinstance(rule, Reverse):
        return f"a leaf with an axis {dims_.format_dim(rule.dim)}"
    if isinstance(rule, Rounding):
        return "a leaf of floats whose dtype is another one on the other side"
    if isinstance(rule, (Factor, Offset)):
        return "a leaf of floats"
    if isinstance(rule, Repeated):
        return f"a leaf with a factor {rule.times} on one side alone"
    small, large = map(dims_.format_dim, (rule.small, rule.large))
    return f"a leaf with {small} on one side and {large} on the other"


def without_spare_casts(tables: Tables, rules: Sequence[Rule], joins: Sequence[Join]) -> list[Rule]:
    """The rules, but for casts of leaves of any float that turned out to be of one dtype on both sides.

    Such a cast was of use as long as nobody knew which float it is, and so it is no fault.
    """
    used: set[int] = set()
    for join in joins:
        for here, there in join.pairs:
            leaf, other = tables[0].rows[here].leaf, tables[1].rows[there].leaf
            if leaf.is_open or other.is_open or leaf.dtype != other.dtype:
                used.update(map(id, join.told.rules))
    return [rule for rule in rules if not isinstance(rule, Rounding) or id(rule) in used]

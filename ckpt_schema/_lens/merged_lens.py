"""Several lenses as one: from a record of layouts to one layout in which each view has a place of its own.

What a lens was derived from says all that it does. So each step of each part is derived once more,
with the paths, keys and dims of the whole: what comes of it is a lens like any other.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import KeyPath, LogicalPath, VariableKind, unquoted
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout, Node, Row, verify_table
from ckpt_schema._lens.ancestry import Derivation
from ckpt_schema._lens.axis_rules import Replicated
from ckpt_schema._lens.derive.globs import by_node
from ckpt_schema._lens.derive.scope import GlobPath
from ckpt_schema._lens.derive.spelled_rows import as_read
from ckpt_schema._lens.derive.view_names import renamed_layout
from ckpt_schema._lens.derived_lens import derive
from ckpt_schema._lens.lens import Lens, joined_lens
from ckpt_schema._lens.rules import Move, Reset, Rule
from ckpt_schema._lens.spelled_axes import SpelledAxes, parse_spelled
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import AxesWarning, DerivationError, Mismatch, SchemaError

__all__ = ["merge"]

_Names = Mapping[str, str]


def merge(
    view: type[Schema] | Layout | None = None,
    /,
    *,
    rules: Sequence[Rule] = (),
    **parts: tuple[Lens, str],
) -> Lens:
    """One lens of several: from a record of layouts to one layout that has the view of each at a place of its own.

    ``merge(vision=(lens_v, "vision_encoder"), text=(lens_t, "decoder"))`` is a lens whose `get` takes
    ``{"vision": v, "text": t}`` to a tree with ``lens_v.get(v)`` at ``vision_encoder`` and
    ``lens_t.get(t)`` at ``decoder``; its `put` splits such a tree into the parts. It is restored
    from a path for each: ``cs.orbax.restore({"vision": path, "text": other}, target, lens)``. A dim
    that a part before has too gets the name of the part behind its own: ``embed_text``.

    The parts are weights. A train state is derived from what is merged.

    Args:
        view: The layout of the whole, where it has more than the parts: each leaf of it is of one part,
            or has a default, or rules say what it holds, ``private("projector", 0.0)``.
        rules: What is said of such leaves, by the logical paths of ``view``.
        parts: By the name in the record: a lens, and the key path at which its view stands, ``""`` for
            the root.

    Returns:
        The lens.

    Raises:
        DerivationError: With all that two parts have, or that ``view`` has and no part, or that a
            part has and ``view`` does not.
        SchemaError: A part is no lens with a place.

    Example:
        >>> import jax.numpy as jnp
        >>> from ckpt_schema._layouts.fields import field
        >>> from jaxtyping import Array, Float32
        >>> class Stored(Schema):
        ...     kernel: Float32[Array, "inputs outputs"]
        >>> class Used(Schema):
        ...     kernel: Float32[Array, "outputs inputs"] = field(key="weight")
        >>> lens = merge(vision=(derive(Stored, Used), "encoder"), text=(derive(Stored, Used), "decoder"))
        >>> both = lens.get({"vision": {"kernel": jnp.ones((2, 3))}, "text": {"kernel": jnp.ones((4, 5))}})
        >>> both["decoder"]["weight"].shape
        (5, 4)
    """
    found = _parts(parts)
    _verify_weights(found)
    lens = functools.reduce(operator.rshift, _steps(found))
    sizes: dict[str, int] = {}
    for part in found:
        sizes |= {part.names.get(name, name): size for name, size in part.lens.dims.items()}
    pairs = sum(len(join.pairs) for part in found for join in part.lens.joins)
    assert pairs == sum(len(join.pairs) for join in lens.joins), "a part has lost a leaf"
    lens = lens.bind(**sizes)
    if view is None:
        return lens
    whole = layout(view)
    lens = _called_as(lens, whole)
    return lens >> _within(lens.view, whole, rules)


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """A lens in the record.

    Attributes:
        name: What it is called there.
        lens: The lens.
        place: The key path at which its view stands.
        names: What dims of it are called in the whole, where that is something else.
    """

    name: str
    lens: Lens
    place: KeyPath
    names: _Names

    @property
    def steps(self) -> tuple[Derivation, ...]:
        """What it was derived from."""
        return self.lens.derivations

    def called(self, step: Derivation) -> _Names:
        """What the dims of a step are called in the whole."""
        known = step.source.names() | step.view.names() | {name for name, _ in step.called}
        own = dict(step.called)
        called = {name: own.get(name, name) for name in known}
        whole = {name: self.names.get(new, new) for name, new in called.items()}
        # Dims that rules alone name are called as the lens calls them.
        whole |= {name: new for name, new in self.names.items() if name not in whole}
        return {name: new for name, new in whole.items() if name != new}


def _parts(given: Mapping[str, Any]) -> list[_Part]:
    """The parts, with names for their dims.

    Raises:
        SchemaError: With each that is no lens with a place.
    """
    faults: list[Mismatch] = []
    found: list[_Part] = []
    taken: set[str] = set()
    expected = 'a lens and a place, such as (lens, "encoder")'
    for name, pair in given.items():
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], Lens) or not isinstance(pair[1], str):
            faults.append(Mismatch(name, "declaration", expected, shown(pair)))
            continue
        lens: Lens = pair[0]
        own = lens.source.names() | lens.view.names()
        own = own.union(*(join.names for join in lens.joins))
        names: dict[str, str] = {}
        for dim in sorted(own & taken):
            new = f"{dim}_{name}"
            while new in taken | own:
                new += "_"
            names[dim] = new
        taken |= {names.get(dim, dim) for dim in own}
        place = tuple(map(unquoted, paths.parse_path(pair[1]))) if pair[1] else ()
        found.append(_Part(name, lens, place, names))
    if not faults and not found:
        faults.append(Mismatch("parts", "declaration", f"at least one: name={expected}", "none"))
    if faults:
        raise SchemaError("merge(...) is not well formed", faults)
    return found


def _verify_weights(parts: Sequence[_Part]) -> None:
    """Raises where a part is more than weights.

    Raises:
        DerivationError: With every part that is a train state, or one of several models.
    """
    faults: list[Mismatch] = []
    for part in parts:
        tables = [table for step in part.steps for table in step.ends]
        hint = "merge lenses between weights, and derive the train state from what is merged"
        if any(table.parts or table.initial or table.states for table in tables):
            fault = Mismatch(part.name, "layout", "weights alone", "an optimizer state", hint)
            faults.append(fault)
        elif any(len(_roots(table)) > 1 for table in tables):
            fault = Mismatch(part.name, "layout", "weights of one model", "those of several", hint)
            faults.append(fault)
        rules = [rule for step in part.steps for rule in step.rules]
        for rule in rules:
            if isinstance(rule, (Replicated, Move, Reset)):
                hint = "go through such a lens before, or afterwards"
                faults.append(Mismatch(str(rule), "rule", f"none such in {part.name}", "it", hint))
    if faults:
        raise DerivationError("not all parts can be merged", faults)


def _roots(table: Layout) -> set[LogicalPath]:
    """Where models stand in a layout."""
    return {row.root for row in table.rows if row.body is not None}


# --- Step by step  ---


def _steps(parts: Sequence[_Part]) -> Iterator[Lens]:
    """The lenses that the whole goes through, one after the other: in each, some parts go on, and others wait."""
    at = [0] * len(parts)
    while any(n < len(part.steps) for n, part in zip(at, parts, strict=True)):
        waiting = [p.steps[n] for n, p in zip(at, parts, strict=True) if n < len(p.steps)]
        inverted = waiting[0].inverted
        taken: list[tuple[_Part, Derivation]] = []
        for number, part in enumerate(parts):
            step = part.steps[at[number]] if at[number] < len(part.steps) else None
            if step is not None and step.inverted == inverted:
                at[number] += 1
                taken.append((part, step))
            else:
                table, called = _standing(part, at[number])
                still = Derivation(table, table, inverted=inverted, called=called)
                taken.append((part, still))
        is_last = not any(n < len(part.steps) for n, part in zip(at, parts, strict=True))
        yield _step(taken, inverted=inverted, is_last=is_last)


def _standing(part: _Part, at: int) -> tuple[Layout, tuple[tuple[str, str], ...]]:
    """Which layout a part has before one of its steps, or after all of them."""
    step = part.steps[min(at, len(part.steps) - 1)]
    return step.ends[0 if at < len(part.steps) else 1], step.called


def _step(taken: Sequence[tuple[_Part, Derivation]], *, inverted: bool, is_last: bool) -> Lens:
    """One step of all parts.

    Raises:
        DerivationError: Two parts have leaves at one place.
    """
    ends: list[list[Layout]] = [[], []]
    rules: list[Rule] = []
    for part, step in taken:
        names = part.called(step)
        homes = (part.name,), part.place if is_last else (part.name,)
        for side, (table, home) in enumerate(zip(step.ends, homes, strict=True)):
            ends[side].append(_moved(renamed_layout(table, names), part.name, home))
        rules += _rules(step, part.name, names)
    source, view = (_whole(several) for several in (ends[::-1] if inverted else ends))
    pair = as_read((source, view), rules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AxesWarning)  # who derived the parts was warned
        lens = joined_lens(pair, rules, {**dict(source.sizes), **dict(view.sizes)})
    lens = (
        lens.bind(**dict(source.sizes), **dict(view.sizes)) if source.sizes or view.sizes else lens
    )
    return ~lens if inverted else lens


def _moved(table: Layout, name: str, home: KeyPath) -> Layout:
    """A layout below a name, and at a key path."""
    rows: list[Row] = []
    for row in table.rows:
        path = row.model_path if row.body is not None else row.path
        body = None if row.body is None else 0
        rows.append(dataclasses.replace(row, path=(name, *path), key=(*home, *row.key), body=body))
    nodes = [dataclasses.replace(node, key=(*home, *node.key)) for node in table.nodes]
    series = [
        dataclasses.replace(
            each,
            path=(name, *each.path),
            members=tuple((name, *member) for member in each.members),
        )
        for each in table.series
    ]
    return Layout(
        table.name,
        tuple(rows),
        tuple(nodes),
        table.container,
        sizes=table.sizes,
        series=tuple(series),
    )


def _whole(tables: Sequence[Layout]) -> Layout:
    """Several layouts as one.

    Raises:
        DerivationError: Two have leaves at one place.
    """
    nodes: dict[Any, Node] = {}
    for node in (node for table in tables for node in table.nodes):
        nodes.setdefault(node.key, node)
    is_nnx = all(table.container == "nnx" for table in tables)
    whole = Layout(
        " + ".join(table.name for table in tables),
        tuple(row for table in tables for row in table.rows),
        tuple(sorted(nodes.values(), key=lambda node: len(node.key))),
        "nnx" if is_nnx else "dict",
        sizes=tuple(size for table in tables for size in table.sizes),
        series=tuple(series for table in tables for series in table.series),
    )
    try:
        return verify_table(whole)
    except SchemaError as error:
        raise DerivationError("parts of a merge overlap", error.mismatches) from error


# --- Rules in the words of the whole  ---

_PATHS = ("path", "source", "view", "whole", "parts", "copy", "of", "scale", "a", "b", "members")
"""What rules call the logical paths that they speak of."""

_DIMS = ("small", "large", "dim", "axis")
"""What they call dims."""

_T = TypeVar("_T", bound=Any)


def _rules(step: Derivation, name: str, names: _Names) -> Iterator[Rule]:
    """The rules of a step, each for one node, in the words of the whole."""
    roots = [root for table in (step.source, step.view) for root in _roots(table) if root]
    single, _, _ = by_node(step.source, step.view, step.rules)
    plain = {(type(rule), _speaks_of(rule)) for rule in single if not _is_of_glob(rule)}
    for rule in single:
        # A rule for one node decides over one for many, as text they would contradict each other.
        if _is_of_glob(rule) and (type(rule), _speaks_of(rule)) in plain:
            continue
        yield _renamed(_below(rule, name, roots), names)


def _speaks_of(rule: Rule) -> object:
    return (
        getattr(rule, "path", None) or getattr(rule, "source", None) or getattr(rule, "whole", None)
    )


def _is_of_glob(rule: Rule) -> bool:
    return isinstance(_speaks_of(rule), GlobPath)


def _below(rule: _T, name: str, roots: Sequence[LogicalPath]) -> _T:
    """A rule for what is below a name."""

    def moved(path: LogicalPath) -> LogicalPath:
        assert not any(isinstance(segment, VariableKind) for segment in path)
        own = next((root for root in roots if path[: len(root)] == root and path != root), ())
        below = (name, *path[len(own) :])
        if not isinstance(path, GlobPath):
            return below
        depth, literal = path.weight
        return GlobPath(below, literal + 1 - len(own), by_depth=depth != literal)

    fields: dict[str, Any] = {}
    for field in _PATHS:
        value: Any = getattr(rule, field, None)
        if isinstance(value, tuple):
            several = bool(value) and isinstance(value[0], tuple)
            fields[field] = tuple(map(moved, value)) if several else moved(value)
    return dataclasses.replace(rule, **fields)


def _renamed(rule: _T, names: _Names) -> _T:
    """A rule that calls dims as the whole does."""
    if not names:
        return rule
    fields: dict[str, Any] = {}
    for field in _DIMS:
        value: Any = getattr(rule, field, None)
        if isinstance(value, tuple):
            fields[field] = dims_.renamed_dims((value,), names)[0]
    times: Any = getattr(rule, "times", None)
    if times is not None:
        (fields["times"],) = dims_.renamed_dims(((times,),), names)[0]
    factor: Any = getattr(rule, "factor", None)
    if isinstance(factor, str):
        fields["factor"] = _reworded(factor, names)
    spelled: Any = getattr(rule, "spelled", None)
    if isinstance(spelled, SpelledAxes):
        count = len(spelled.others) if len(spelled.others) > 1 else None
        fields["spelled"] = parse_spelled("rename", _reworded(spelled.text, names), count)
    return dataclasses.replace(rule, **fields) if fields else rule


def _reworded(text: str, names: _Names) -> str:
    return re.sub(r"[^\W\d]\w*", lambda word: names.get(word[0], word[0]), text)


# --- What the whole has besides  ---


_WORD = re.compile(r"\w+|\W")


def _called_as(lens: Lens, whole: Layout) -> Lens:
    """The lens, whose dims are called as a layout calls them that has the rows of its view."""
    known = {row.key: row for row in whole.rows}
    names: dict[str, str] = {}
    for row in lens.view.rows:
        if row.key not in known:
            continue
        twin = known[row.key]
        own, theirs = (_WORD.findall(dims_.format_dims(one.all_dims)) for one in (row, twin))
        if len(own) == len(theirs):
            for name, new in zip(own, theirs, strict=True):
                if name != new and dims_.is_name(name) and dims_.is_name(new):
                    names.setdefault(name, new)
    every = lens.source.names() | lens.view.names()
    every = every.union(*(join.names for join in lens.joins))
    # What only shares such a name is another dim.
    for name in sorted((every - names.keys()) & set(names.values())):
        if name in lens.view.names():
            continue
        new = f"{name}_"
        while new in every | set(names.values()):
            new += "_"
        names[name] = new
    return lens.renamed(names)


def _within(merged: Layout, whole: Layout, rules: Sequence[Rule]) -> Lens:
    """The lens from what was merged to a layout that has more.

    Raises:
        DerivationError: With all that only one of both has.
    """
    known = {row.key: row for row in whole.rows}
    lacking = [row for row in merged.rows if row.key not in known]
    if lacking:
        faults: list[Mismatch] = []
        for row in lacking:
            where, hint = paths.format_path(row.key), "merge it at another place"
            expected = f"a leaf of {whole.name}"
            faults.append(Mismatch(where, "unplaced", expected, f"{row.stored} of a part", hint))
        raise DerivationError(f"parts of a merge have no place in {whole.name}", faults)
    keys = {row.key for row in merged.rows}
    own = [dataclasses.replace(row, default=None) for row in whole.rows if row.key in keys]
    inner = dataclasses.replace(whole, name=merged.name, rows=tuple(own))
    return derive(inner, whole, rules=rules)

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
from ckpt_schema._layouts.table import Layout, Node, Row, Series, verify_table
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
    members = _parts(parts)
    _verify_weights(members)
    lens = functools.reduce(operator.rshift, _steps(members))
    sizes: dict[str, int] = {}
    pairs = 0
    for part in members:
        pairs += _count_of_pairs(part.lens)
        for name, size in part.lens.dims.items():
            sizes[part.names.get(name, name)] = size
    assert pairs == _count_of_pairs(lens), "a part has lost a leaf"
    lens = lens.bind(**sizes)
    if view is None:
        return lens
    whole = layout(view)
    lens = _called_as(lens, whole)
    return lens >> _within(lens.view, whole, rules)


def _count_of_pairs(lens: Lens) -> int:
    """How many leaves of a lens are those of the other side."""
    return sum(len(join.pairs) for join in lens.joins)


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
        # Two steps away: the lens has a name for the dim, and the whole has one for that.
        by_lens = dict(step.called)
        # Dims that rules alone name are called as the lens calls them.
        names = dict(self.names)
        for name in step.source.names() | step.view.names() | by_lens.keys():
            in_lens = by_lens.get(name, name)
            names[name] = self.names.get(in_lens, in_lens)
        for name in [name for name, new in names.items() if name == new]:
            del names[name]
        return names


def _parts(given: Mapping[str, Any]) -> list[_Part]:
    """The parts, with names for their dims.

    Raises:
        SchemaError: With each that is no lens with a place.
    """
    faults: list[Mismatch] = []
    parts: list[_Part] = []
    taken: set[str] = set()  # names of dims
    expected = 'a lens and a place, such as (lens, "encoder")'
    for name, pair in given.items():
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not isinstance(pair[0], Lens) or not isinstance(pair[1], str):
            faults.append(Mismatch(name, "declaration", expected, shown(pair)))
            continue
        lens: Lens = pair[0]
        dims = _dims_of(lens)
        names: dict[str, str] = {}
        # In one lens a name is one size: the text model's embed is not the vision model's.
        for dim in sorted(dims & taken):
            new = f"{dim}_{name}"
            while new in taken | dims:
                new += "_"
            names[dim] = new
        for dim in dims:
            taken.add(names.get(dim, dim))
        place = tuple(map(unquoted, paths.parse_path(pair[1]))) if pair[1] else ()
        parts.append(_Part(name, lens, place, names))
    if not faults and not parts:
        faults.append(Mismatch("parts", "declaration", f"at least one: name={expected}", "none"))
    if faults:
        raise SchemaError("merge(...) is not well formed", faults)
    return parts


def _dims_of(lens: Lens) -> set[str]:
    """The dims of both layouts, and those that stand in joins alone."""
    dims = lens.source.names() | lens.view.names()
    for join in lens.joins:
        dims |= join.names
    return dims


def _verify_weights(parts: Sequence[_Part]) -> None:
    """Raises where a part is more than weights.

    Raises:
        DerivationError: With every part that is a train state, or one of several models.
    """
    faults: list[Mismatch] = []
    for part in parts:
        tables: list[Layout] = []
        rules: list[Rule] = []
        for step in part.steps:
            tables += step.ends
            rules += step.rules
        hint = "merge lenses between weights, and derive the train state from what is merged"
        # Of a train state there is one optimizer for all: two of them are none of the whole.
        if any(table.parts or table.initial or table.states for table in tables):
            fault = Mismatch(part.name, "layout", "weights alone", "an optimizer state", hint)
            faults.append(fault)
        elif any(len(_roots(table)) > 1 for table in tables):
            fault = Mismatch(part.name, "layout", "weights of one model", "those of several", hint)
            faults.append(fault)
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
    """The lenses that the whole goes through, one after the other: in each, some parts go on, and others wait.

    A step goes one way for all parts. Of ``a >> b`` beside ``~c``, a goes first, then b, then ~c.
    """
    done = [0] * len(parts)  # of each part, how many of its steps
    following = _following(parts, done)
    while following:
        inverted = following[0].inverted
        taken: list[tuple[_Part, Derivation]] = []
        for number, part in enumerate(parts):
            step = part.steps[done[number]] if done[number] < len(part.steps) else None
            if step is not None and step.inverted == inverted:
                done[number] += 1
                taken.append((part, step))
            else:
                table, called = _standing(part, done[number])
                still = Derivation(table, table, inverted=inverted, called=called)
                taken.append((part, still))
        following = _following(parts, done)
        yield _step(taken, inverted=inverted, is_last=not following)


def _following(parts: Sequence[_Part], done: Sequence[int]) -> list[Derivation]:
    """The next step of each part that has one, where so many are done."""
    following: list[Derivation] = []
    for part, count in zip(parts, done, strict=True):
        following += part.steps[count : count + 1]
    return following


def _standing(part: _Part, done: int) -> tuple[Layout, tuple[tuple[str, str], ...]]:
    """Which layout a part has before one of its steps, or after all of them."""
    step = part.steps[min(done, len(part.steps) - 1)]
    return step.ends[0 if done < len(part.steps) else 1], step.called


def _step(taken: Sequence[tuple[_Part, Derivation]], *, inverted: bool, is_last: bool) -> Lens:
    """One step of all parts.

    Raises:
        DerivationError: Two parts have leaves at one place.
    """
    ends: list[list[Layout]] = [[], []]
    rules: list[Rule] = []
    for part, step in taken:
        names = part.called(step)
        # The record has each part under its name; only the last step takes it to its place.
        homes = (part.name,), part.place if is_last else (part.name,)
        for side, (table, home) in enumerate(zip(step.ends, homes, strict=True)):
            ends[side].append(_moved(renamed_layout(table, names), part.name, home))
        rules += _rules(step, part.name, names)
    first, last = _whole(ends[0]), _whole(ends[1])
    source, view = (last, first) if inverted else (first, last)
    pair = as_read((source, view), rules)
    with warnings.catch_warnings():
        # Who derived the parts was warned.
        warnings.simplefilter("ignore", AxesWarning)
        lens = joined_lens(pair, rules, {**dict(source.sizes), **dict(view.sizes)})
    if source.sizes or view.sizes:
        lens = lens.bind(**dict(source.sizes), **dict(view.sizes))
    return ~lens if inverted else lens


def _moved(table: Layout, name: str, home: KeyPath) -> Layout:
    """A layout below a name, and at a key path."""
    rows: list[Row] = []
    for row in table.rows:
        # In the whole there is one model, of which the part is a node.
        path = row.model_path if row.body is not None else row.path
        body = None if row.body is None else 0
        rows.append(dataclasses.replace(row, path=(name, *path), key=(*home, *row.key), body=body))
    nodes = [dataclasses.replace(node, key=(*home, *node.key)) for node in table.nodes]
    series: list[Series] = []
    for one in table.series:
        members = tuple([(name, *member) for member in one.members])
        series.append(dataclasses.replace(one, path=(name, *one.path), members=members))
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
    rows: list[Row] = []
    nodes: dict[Any, Node] = {}
    series: list[Series] = []
    sizes: list[tuple[str, int]] = []
    for table in tables:
        rows += table.rows
        series += table.series
        sizes += table.sizes
        # Of a container that two parts stand in, the first says what it is.
        for node in table.nodes:
            nodes.setdefault(node.key, node)
    is_nnx = all(table.container == "nnx" for table in tables)
    whole = Layout(
        " + ".join(table.name for table in tables),
        tuple(rows),
        # Parents first, as trees are built.
        tuple(sorted(nodes.values(), key=lambda node: len(node.key))),
        "nnx" if is_nnx else "dict",
        sizes=tuple(sizes),
        series=tuple(series),
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
    roots: list[LogicalPath] = []
    for table in (step.source, step.view):
        roots += filter(None, _roots(table))
    single, _, _ = by_node(step.source, step.view, step.rules)
    plain = {(type(rule), _speaks_of(rule)) for rule in single if not _is_of_glob(rule)}
    for rule in single:
        # A rule for one node decides over one for many, as text they would contradict each other.
        if _is_of_glob(rule) and (type(rule), _speaks_of(rule)) in plain:
            continue
        yield _renamed(_below(rule, name, roots), names)


def _speaks_of(rule: Rule) -> object:
    """The first path of a rule: what two rules of one kind would have to share to be a contradiction."""
    return (
        getattr(rule, "path", None) or getattr(rule, "source", None) or getattr(rule, "whole", None)
    )


def _is_of_glob(rule: Rule) -> bool:
    """Whether a rule was one for many nodes, ``**/kernel``, before it was one for each."""
    return isinstance(_speaks_of(rule), GlobPath)


def _below(rule: _T, name: str, roots: Sequence[LogicalPath]) -> _T:
    """A rule for what is below a name."""

    def moved(path: LogicalPath) -> LogicalPath:
        assert not any(isinstance(segment, VariableKind) for segment in path)
        # A path may start at the root of the tree, params/encoder, or in the model, encoder.
        start = 0
        for root in roots:
            if path[: len(root)] == root and path != root:
                start = len(root)
                break
        below = (name, *path[start:])
        if not isinstance(path, GlobPath):
            return below
        # The name is one literal segment more, and those of the root are gone.
        depth, literal = path.weight
        return GlobPath(below, literal + 1 - start, by_depth=depth != literal)

    fields: dict[str, Any] = {}
    for field in _PATHS:
        value: Any = getattr(rule, field, None)
        if isinstance(value, tuple):
            # One path is a tuple of names, and several are a tuple of such.
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
    # A scale may be an expression of dims, "head_dim ** -0.5".
    factor: Any = getattr(rule, "factor", None)
    if isinstance(factor, str):
        fields["factor"] = _reworded(factor, names)
    # The names in axes= hold within the rule, but those that dims have too are theirs.
    spelled: Any = getattr(rule, "spelled", None)
    if isinstance(spelled, SpelledAxes):
        count = len(spelled.others) if len(spelled.others) > 1 else None
        fields["spelled"] = parse_spelled("rename", _reworded(spelled.text, names), count)
    return dataclasses.replace(rule, **fields) if fields else rule


def _reworded(text: str, names: _Names) -> str:
    """A text of dims in the words of the whole: ``heads*dim embed -> embed heads dim``."""
    return re.sub(r"[^\W\d]\w*", lambda word: names.get(word[0], word[0]), text)


# --- What the whole has besides  ---


_WORD = re.compile(r"\w+|\W")


def _called_as(lens: Lens, whole: Layout) -> Lens:
    """The lens, whose dims are called as a layout calls them that has the rows of its view."""
    twins = {row.key: row for row in whole.rows}
    names: dict[str, str] = {}
    for row in lens.view.rows:
        twin = twins.get(row.key)
        if twin is None:
            continue
        # Word by word, so that names in products and sums are told too: 3 * heads and 3 * h.
        words = _WORD.findall(dims_.format_dims(row.all_dims))
        twin_words = _WORD.findall(dims_.format_dims(twin.all_dims))
        if len(words) == len(twin_words):
            for name, new in zip(words, twin_words, strict=True):
                if name != new and dims_.is_name(name) and dims_.is_name(new):
                    names.setdefault(name, new)
    every = _dims_of(lens)
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
    known = {row.key for row in whole.rows}
    faults: list[Mismatch] = []
    for row in merged.rows:
        if row.key not in known:
            where, hint = paths.format_path(row.key), "merge it at another place"
            expected = f"a leaf of {whole.name}"
            faults.append(Mismatch(where, "unplaced", expected, f"{row.stored} of a part", hint))
    if faults:
        raise DerivationError(f"parts of a merge have no place in {whole.name}", faults)
    # What parts make has no default here: it is joined, and all else is the whole's own.
    keys = {row.key for row in merged.rows}
    shared: list[Row] = []
    for row in whole.rows:
        if row.key in keys:
            shared.append(dataclasses.replace(row, default=None))
    inner = dataclasses.replace(whole, name=merged.name, rows=tuple(shared))
    return derive(inner, whole, rules=rules)

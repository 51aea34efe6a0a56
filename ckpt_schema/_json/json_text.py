"""Layouts and lenses as texts of JSON: versioned, one line a row, and nothing in it is evaluated or imported.

The outermost step of both ways. What is in a layout is in `layout_json`, in a rule in `rules_json`, in a number or a dim in
`values_json`. Each text is read back before anyone gets it: what it does not tell is an error, and nowhere left out.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from ckpt_schema._frameworks.named_types import KnownTypes
from ckpt_schema._json.json_objects import JsonObject, is_count
from ckpt_schema._json.layout_json import LayoutReader, layout_json, types_json
from ckpt_schema._json.rules_json import rule_json, rule_read
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.paths import NaturalOrder, format_path
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.derive.spelled_rows import as_read
from ckpt_schema._lens.derived_lens import derive_anew
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.registry import digest
from ckpt_schema._lens.rules import Rule
from ckpt_schema._messages.strict_json import parsed
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import DerivationError, Mismatch, SchemaError

__all__ = ["FORMAT", "from_json", "kind_of_text", "lock_text", "to_json"]

FORMAT = 1
"""The version that is written, and the only one there is."""

Kind = TypeVar("Kind", Layout, Lens)


def to_json(given: Layout | type[Schema] | Lens) -> str:
    """A layout or a lens as JSON: a line for each row, data alone.

    Of a lens both layouts are written, the rules and the sizes: read again, it is derived as it was. Types, such as a
    Variable type or the class of a container, stand there by their names. The transformation that starts an optimizer is
    code, and is not written; that a layout has one is.

    Args:
        given: A layout, a schema, or a lens.

    Returns:
        A text that `from_json` reads.

    Raises:
        SchemaError: Something in it has no place in such a text, as keys of types of your own.

    Example:
        >>> import jax
        >>> from ckpt_schema import infer
        >>> leaf = jax.ShapeDtypeStruct((2, 3), "float32")
        >>> print(to_json(infer({"params": {"a": leaf, "b": leaf}})))
        {
         "ckpt_schema": "layout",
         "version": 1,
         "name": "inferred",
         "container": "dict",
         "homes": ["params", "params/params"],
         "rows": [
          {"key": "params/a", "leaf": "float32[2 3]", "collection": "params", "body": 1},
          {"key": "params/b", "leaf": "float32[2 3]", "collection": "params", "body": 1}
         ]
        }
        <BLANKLINE>
    """
    if isinstance(given, Lens):
        return _lens_text(given)
    return _layout_text(layout(given), {})


def lock_text(table: Layout) -> str:
    """The one text of a layout, in whatever order its rows were declared or found: with its fingerprint, for git."""
    # Layers as a person counts: 10 stands after 9, so that one more layer is one more line.
    order = NaturalOrder()
    rows = sorted(table.rows, key=lambda row: order(format_path(row.key)))
    nodes = sorted(table.nodes, key=lambda node: order(format_path(node.key)))
    ordered = dataclasses.replace(table, rows=tuple(rows), nodes=tuple(nodes))
    return _layout_text(ordered, {"fingerprint": digest(table)})


def _layout_text(table: Layout, more: Mapping[str, str]) -> str:
    """The text of a layout, with more names on top; read back, to be sure of it."""
    types = types_json([table])
    told = {"ckpt_schema": "layout", "version": FORMAT, **more, **layout_json(table)}
    text = written({**told, "types": types} if types else told, table.name)
    _verify_same(table, _read_back(text, Layout, [table], table.name))
    return text


def from_json(text: str, kind: type[Kind], *, like: Sequence[Layout | type[Schema]] = ()) -> Kind:
    """The layout or the lens that JSON tells.

    Nothing in the text is evaluated, and nothing is imported for it. The name of a type stands for
    that type of Flax or optax, or of ``like``. Any other stands for a type that has nothing but this
    name: layouts are compared with it, and a tree that would need the type itself is an error.

    Args:
        text: What `to_json` wrote.
        kind: `Layout` or `Lens`: what the text is of.
        like: Layouts that have types of your own, or the transformation of an optimizer: a text
            tells only that there is one.

    Raises:
        SchemaError: With everything that is wrong with the text.
        DerivationError: There is no lens between its two layouts by its rules.

    Example:
        >>> from ckpt_schema import infer
        >>> import jax
        >>> layout = infer({"params": {"a": jax.ShapeDtypeStruct((2, 3), "float32")}})
        >>> from_json(to_json(layout), Layout) == layout
        True
    """
    faults: list[Mismatch] = []
    what = "lens" if kind is Lens else "layout"
    told = JsonObject(_data(text, what), "", faults)
    tables = [layout(known) for known in like]
    reader = LayoutReader(KnownTypes(tables), tables, faults)
    # In a text of something else, or of another version, each name would be one more fault.
    if told.taken("ckpt_schema", f'"{what}"', lambda x: x == what, "") and told.taken(
        "version", f"{FORMAT}, which this release reads", lambda x: x == FORMAT, 0
    ):
        reader.tell(told)
        made: Any = _lens(told, reader) if kind is Lens else reader.layout(told)
        if made is not None:
            return cast(Kind, made)
    raise SchemaError(f"the text is not that of a {what}", faults)


def kind_of_text(text: str) -> type[Layout] | type[Lens] | None:
    """What a text says that it is of; None where it is no text of ours."""
    try:
        told, _ = parsed(text.encode())
    except (UnicodeError, ValueError):
        return None
    what = told.get("ckpt_schema") if isinstance(told, dict) else None
    if what == "lens":
        return Lens
    return Layout if what == "layout" else None


def _data(text: str, what: str) -> Any:
    """What the text tells.

    Raises:
        SchemaError: It is no JSON.
    """
    expected = "JSON, each name in an object once"
    try:
        told, twice = parsed(text.encode())
        found = f"{', '.join(map(shown, twice))} twice"
    except (UnicodeError, ValueError) as error:
        told, twice, found = None, [""], str(error)
    if twice:
        hint = "a merge may have left marks: write it again" if "<<<<<<<" in text else ""
        fault = Mismatch("the text", "text", expected, found, hint)
        raise SchemaError(f"the text is not that of a {what}", [fault])
    return told


# --- Texts  ---


def written(told: Mapping[str, Any], name: str) -> str:
    """Data as text: what has a list of objects in it is opened, and each of these stands on one line.

    Raises:
        SchemaError: A number in it cannot be written.
    """
    try:
        return "\n".join(_lines(told, "")) + "\n"
    except ValueError as error:  # of more than 4300 digits, Python writes no number
        fault = Mismatch(name, "declaration", "what JSON can tell", str(error))
        raise SchemaError(f"{name} cannot be written as JSON", [fault]) from error


def _lines(value: Any, indent: str) -> Iterator[str]:
    """The lines of a value: a list of objects, and all that has one in it, is opened; what is in it is indented by one.

    Args:
        value: The value.
        indent: What each of its lines begins with.
    """
    if not _is_open(value):
        yield indent + json.dumps(value, ensure_ascii=False, allow_nan=False)
        return
    # What stands before each member: its name in an object, nothing in a list.
    members: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        opens, closes = "{", "}"
        for name, member in cast(Mapping[str, Any], value).items():
            members.append((f"{json.dumps(name, ensure_ascii=False)}: ", member))
    else:
        opens, closes = "[", "]"
        for member in cast(list[Any], value):
            members.append(("", member))
    yield indent + opens
    for number, (head, member) in enumerate(members):
        first, *rest = _lines(member, indent + " ")
        # The name stands between the indent and the value.
        lines = [f"{indent} {head}{first.removeprefix(indent + ' ')}", *rest]
        if number < len(members) - 1:
            lines[-1] += ","
        yield from lines
    yield indent + closes


def _is_open(value: Any) -> bool:
    """Whether a value is more than one line."""
    if isinstance(value, Mapping):
        return any(map(_is_open, cast(Mapping[str, Any], value).values()))
    # A row is an object on a line of its own; a list of texts is one line.
    return isinstance(value, list) and any(isinstance(x, Mapping) for x in cast(list[Any], value))


def _read_back(text: str, kind: type[Kind], like: Sequence[Layout], name: str) -> Kind:
    """What a text is read as, which is what it was written for.

    Raises:
        SchemaError: It cannot be read.
    """
    try:
        return from_json(text, kind, like=like)
    except SchemaError as error:
        raise SchemaError(f"{name} cannot be written as JSON", error.mismatches) from error


def _verify_same(table: Layout, made: Layout) -> None:
    """Raises where a layout is read otherwise than it was written."""
    faults: list[Mismatch] = []
    for row, other in zip(table.rows, made.rows, strict=True):
        # Leaves are equal whatever their axes are called.
        if row != other or row.leaf.names != other.leaf.names:
            where = "/".join(row.path)
            faults.append(Mismatch(where, "declaration", repr(row), repr(other)))
    for name in ("nodes", "homes", "sizes", "parts", "series", "states", "initial"):
        before, after = getattr(table, name), getattr(made, name)
        if before != after:
            faults.append(Mismatch(name, "declaration", shown(before), shown(after)))
    if faults:
        raise SchemaError(f"{table.name} cannot be written as JSON", faults)


# --- Lenses  ---


def _lens_text(lens: Lens) -> str:
    """The text of a lens: its layouts, and how it was derived from them; no cell of it."""
    # A layout between two steps is the view of one and the source of the next: it is written once.
    tables: list[Layout] = []
    steps: list[Any] = []
    for derivation in lens.derivations:
        ends: list[int] = []
        for table in as_read((derivation.source, derivation.view), derivation.rules):
            if table not in tables:
                tables.append(table)
            ends.append(tables.index(table))
        step: dict[str, Any] = {"source": ends[0], "view": ends[1]}
        step["inverted"] = derivation.inverted
        step["rules"] = [rule_json(rule) for rule in derivation.rules]
        steps.append(step)
    types = types_json(tables)
    told = {
        "ckpt_schema": "lens",
        "version": FORMAT,
        "layouts": [layout_json(table) for table in tables],
        "steps": steps,
        "dims": dict(lens.dims),
    }
    name = f"{lens.source.name} -> {lens.view.name}"
    text = written({**told, "types": types} if types else told, name)
    made = _read_back(text, Lens, tables, name)
    # One lens may be said by several rules: the text has to have these. The lines of a lens have no order.
    is_same = sorted(made.in_full().splitlines()) == sorted(lens.in_full().splitlines())
    if not is_same or _rule_texts(made) != _rule_texts(lens):
        fault = Mismatch(name, "declaration", str(lens), str(made), "please report it")
        raise SchemaError(f"{name} cannot be written as JSON", [fault])
    return text


def _rule_texts(lens: Lens) -> list[list[str]]:
    """The rules of each step of a lens, as Python has them."""
    return [[*map(repr, step.rules)] for step in lens.derivations]


def _lens(told: JsonObject, reader: LayoutReader) -> Lens | None:
    """A lens, derived again; None where something is wrong with its text."""
    faults = reader.faults
    tables = [reader.layout(one) for one in told.objects("layouts")]
    steps = [_step(one, len(tables), reader) for one in told.objects("steps")]
    dims = told.taken("dims", "sizes by dim", _are_sizes, {})
    told.close()
    if not steps and not faults:
        told.say("steps", "what the lens is derived from", [])
    # Of damaged layouts a derivation would tell faults that are none of theirs.
    if faults:
        return None
    lens: Lens | None = None
    for source, view, rules, inverted in steps:
        ends = tables[source], tables[view]
        # None is a layout with a fault.
        assert ends[0] is not None
        assert ends[1] is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who made the lens was warned
            step = derive_anew(ends[0], ends[1], rules)
        step = ~step if inverted else step
        lens = step if lens is None else lens >> step
    assert lens is not None
    try:
        return lens.bind(**dims)
    except DerivationError as error:
        faults += error.mismatches
        return None


_Step = tuple[int, int, tuple[Rule, ...], bool]


def _step(told: JsonObject, layouts: int, reader: LayoutReader) -> _Step:
    """One derivation: which layouts, the rules, and whether it is gone through backwards."""
    ends: list[int] = []
    for name in ("source", "view"):
        expected = f"the number of one of {layouts} layouts"
        ends.append(told.taken(name, expected, lambda x: is_count(x) and x < layouts, 0))
    rules: list[Rule] = []
    for one in told.objects("rules"):
        rule = rule_read(one, reader.types)
        if rule is not None:
            rules.append(rule)
    inverted = told.flag("inverted")
    told.close()
    return ends[0], ends[1], tuple(rules), inverted


def _are_sizes(value: Any) -> bool:
    """Whether this is a size for each of some names of dims."""
    if not isinstance(value, dict):
        return False
    entries = cast(dict[str, Any], value)
    return all(dims_.is_name(name) and is_count(size) for name, size in entries.items())

"""A layout as data of JSON, and back.

Types stand there by name, see `KnownTypes`. The transformation of an optimizer is code, and stands
nowhere: that there is one is said.

What is usual is left out of a row, as in a schema: a lock file in git shows what is there, and no more. The second half
reads each part the way in which the first half writes it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ckpt_schema._frameworks.named_types import (
    KnownTypes,
    TypeTraits,
    traits_of,
    type_name,
    types_in,
)
from ckpt_schema._json.json_objects import JsonObject, is_count, is_text
from ckpt_schema._json.values_json import (
    default_json,
    keys_json,
    leaf_json,
    number_json,
    parse_dim,
    read_default,
    read_keys,
    read_leaf,
    read_number,
)
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.drafts import verify_fallbacks
from ckpt_schema._layouts.paths import (
    Index,
    Key,
    KeyPath,
    LogicalPath,
    Pattern,
    list_depth,
    parse_path,
    symbols,
)
from ckpt_schema._layouts.table import Layout, Node, Part, Repeat, Row, Series, verify_table
from ckpt_schema._lens.registry import digest, fingerprint
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["LayoutReader", "layout_json", "types_json"]


def layout_json(table: Layout) -> dict[str, Any]:
    """A layout as data; what is as it is everywhere is left out."""
    said: dict[str, Any] = {"name": table.name, "container": table.container}
    if table.homes:
        said["homes"] = [keys_json(home) for home in table.homes]
    if table.sizes:
        said["sizes"] = dict(table.sizes)
    if table.initial is not None:
        said["starts"] = True
    said["rows"] = [*map(_row_json, table.rows)]
    several = {
        "nodes": [*map(_node_json, table.nodes)],
        "parts": [*map(_part_json, table.parts)],
        "states": [{"path": _joined(path), "key": keys_json(key)} for path, key in table.states],
        "series": [*map(_series_json, table.series)],
    }
    for name, members in several.items():
        if members:
            said[name] = members
    return said


def _part_json(part: Part) -> dict[str, Any]:
    """What one transformation of an optimizer chain keeps."""
    return {"path": _joined(part.path), "type": type_name(part.type)}


def _series_json(series: Series) -> dict[str, Any]:
    """Several repeated nodes that are one list of layers."""
    return {"path": _joined(series.path), "members": [*map(_joined, series.members)]}


def types_json(tables: Iterable[Layout]) -> dict[str, Any]:
    """What is to be known of the types that layouts speak of, and that are none of Flax or optax.

    Raises:
        SchemaError: Two types have one name.
    """
    kinds: dict[str, type] = {}
    said: dict[str, Any] = {}
    faults: list[Mismatch] = []
    for kind in itertools.chain.from_iterable(map(types_in, tables)):
        name = type_name(kind)
        if kinds.setdefault(name, kind) is not kind:
            hint = "define them in modules of their own"
            faults.append(Mismatch(name, "declaration", "one type of a name", "two", hint))
        # What every reader has tells itself what it is: of Flax and optax the name is enough.
        traits = traits_of(kind)
        if traits is not None:
            said[name] = {}
            if traits.variable:
                said[name]["variable"] = traits.variable
            if traits.fields is not None:
                said[name]["fields"] = list(traits.fields)
    # Two layouts of one lens may speak of the same two types.
    if faults:
        raise SchemaError("types cannot be told apart by their names", dict.fromkeys(faults))
    return said


def _joined(path: LogicalPath) -> str:
    """A logical path as it is written."""
    return "/".join(path)


def _row_json(row: Row) -> dict[str, Any]:
    """A row as data, all that is told of it on one line."""
    said: dict[str, Any] = {"key": keys_json(row.key)}
    # Most keys are spelled as their paths are.
    if said["key"] != _joined(row.path):
        said["path"] = _joined(row.path)
    said |= leaf_json(row.leaf)
    if row.repeats:
        said["repeats"] = [[dims_.format_dim(repeat.size), repeat.axis] for repeat in row.repeats]
    # A collection of Linen is a text itself; a Variable type has a name.
    if isinstance(row.kind, type):
        said["variable"] = type_name(row.kind)
    elif row.kind is not None:
        said["collection"] = row.kind
    if row.metadata:
        said["metadata"] = {name: _datum_json(row, value) for name, value in row.metadata}
    if row.default is not None:
        said["default"] = default_json(row.default)
    if row.held:
        said["held"] = [[inside, type_name(kind)] for inside, kind in row.held]
    # 0 is the body of a tree that is one model: it is told, as no body is not.
    if row.body is not None:
        said["body"] = row.body
    # False, 0 and "" are usual.
    flags = {
        "optional": row.optional,
        "ephemeral": row.ephemeral,
        "inside": row.inside,
        "reshaped": row.reshaped,
        "optimizer": row.optimizer,
        "mirrors": row.mirrors,
    }
    for name, value in flags.items():
        if value:
            said[name] = value
    return said


def _datum_json(row: Row, value: Any) -> Any:
    """What a Variable carries besides its value.

    Raises:
        SchemaError: JSON has nothing like it.
    """
    if value is None or isinstance(value, str):
        return value
    # One form for all numbers, for one whose bits are told is an object: see `number_json`.
    if isinstance(value, (bool, int, float, complex)):
        return {"number": number_json(value)}
    if isinstance(value, tuple):
        return [_datum_json(row, member) for member in value]
    expected = "texts, numbers, None, and tuples of them as metadata"
    fault = Mismatch(_joined(row.path), "declaration", expected, shown(value))
    raise SchemaError("a row cannot be written as JSON", [fault])


def _node_json(node: Node) -> dict[str, Any]:
    """A container as data."""
    said: dict[str, Any] = {"key": keys_json(node.key), "type": type_name(node.type)}
    if node.counts:
        said["counts"] = [dims_.format_dim(dim) for dim in node.counts]
    # Of its structure the names of its children: a treedef is an object of jax, which the reader makes anew.
    if node.static is not None:
        said["children"] = [keys_json((name,)) for name in node.static[1]]
    return said


# --- And back  ---


class LayoutReader:
    """Reads the layouts of one text.

    Args:
        types: What names of types stand for.
        like: Layouts that the caller has.
        faults: What is wrong with the text.
    """

    def __init__(self, types: KnownTypes, like: Sequence[Layout], faults: list[Mismatch]) -> None:
        """Has read nothing yet."""
        self.types, self._like, self.faults = types, like, faults

    def tell(self, told: JsonObject) -> None:
        """Notes what a text says of types that not everybody has."""
        if not told.has("types"):
            return
        by_name = told.taken("types", "an object", lambda x: isinstance(x, dict), {})
        for name, traits in by_name.items():
            one = JsonObject(traits, f"{told.at('types')}/{shown(name)}", self.faults)
            variable = one.parsed("variable", _type_named, "") if one.has("variable") else ""
            # A NamedTuple without fields has an empty list; what is none has nothing.
            fields: tuple[str, ...] | None = None
            if one.has("fields"):
                fields = tuple(one.several("fields", _identifier))
            one.close()
            if _is_type_name(name):
                self.types.tell(name, TypeTraits(variable, fields))
            else:
                one.say("", "the name of a type", name)

    def layout(self, told: JsonObject) -> Layout | None:
        """A layout; None where something is wrong with it."""
        known = len(self.faults)
        starts = told.flag("starts")
        kinds = ("dict", "nnx")
        container = told.taken("container", '"dict" or "nnx"', lambda x: x in kinds, "dict")
        homes = [_home(value, where, self.faults) for where, value in told.each("homes")]
        rows = tuple(map(self._row, told.objects("rows")))
        # Of lists none is told where there is nothing in it, but of rows.
        if not told.has("rows"):
            told.each("rows")
            told.say("rows", "a list", None)
        nodes = tuple(map(self._node, told.objects("nodes")))
        parts = tuple(map(self._part, told.objects("parts")))
        states = tuple(map(_state, told.objects("states")))
        series = tuple(map(_series, told.objects("series")))
        name, sizes = told.text("name"), self._sizes(told)
        printed = told.text("fingerprint") if told.has("fingerprint") else None
        told.close()
        if len(self.faults) > known:
            return None
        made = Layout(
            name,
            rows,
            nodes,
            "nnx" if container == "nnx" else "dict",
            tuple(homes),
            tuple(sizes.items()),
            parts,
            series=series,
            states=states,
        )
        # Each row may be right, and all together no layout: two leaves at one key.
        try:
            verify_table(made)
            verify_fallbacks(made.name, made.rows)
        except SchemaError as error:
            self.faults += error.mismatches
            return None
        # The fingerprint of a lock file is that of these rows, or someone has edited them.
        if printed not in (None, digest(made)):
            hint = "write it anew; it was changed by hand, or two changes were merged"
            told.say("fingerprint", f"{digest(made)}, that of its rows", printed, hint)
            return None
        return self._started(made) if starts else made

    def _started(self, made: Layout) -> Layout:
        """The layout, with the transformation of the layout that the caller has of it."""
        for table in self._like:
            is_it = table.states == made.states and fingerprint(table) == fingerprint(made)
            if table.initial is not None and is_it:
                return dataclasses.replace(made, initial=table.initial)
        return made

    def _sizes(self, told: JsonObject) -> dict[str, int]:
        """The sizes of dims; of a wrong one there is a fault, and nobody asks for the sizes then."""
        if not told.has("sizes"):
            return {}
        sizes = told.taken("sizes", "sizes by dim", lambda x: isinstance(x, dict), {})
        for name, size in sizes.items():
            if not dims_.is_name(name) or not is_count(size):
                told.say("sizes", "sizes by dim", {name: size})
        return sizes

    def _type(
        self, told: JsonObject, name: str, find: Callable[[str], type | None], expected: str
    ) -> type:
        """The type that a name stands for."""
        text = told.parsed(name, _type_named, "")
        kind = find(text) if text else None
        if kind is None and text:
            told.say(name, expected, text)
        return kind or object

    def _row(self, told: JsonObject) -> Row:
        """A row; what is not told is usual, as where it is written."""
        key = _keys(told)
        path = told.parsed("path" if told.has("path") else "key", parse_path, ())
        leaf = read_leaf(told)
        # A Variable type, a collection, or neither.
        kind: Any = None
        if told.has("variable"):
            kind = self._type(told, "variable", self.types.variable, "a Variable type")
        elif told.has("collection"):
            kind = told.text("collection")
        made = Row(
            path,
            key,
            leaf,
            tuple(_repeats(told)),
            kind,
            tuple(self._metadata(told)),
            read_default(told, "default"),
            optional=told.flag("optional"),
            ephemeral=told.flag("ephemeral"),
            body=told.number("body") if told.has("body") else None,
            inside=told.number("inside"),
            held=tuple(self._held(told)),
            reshaped=told.flag("reshaped"),
            optimizer=told.number("optimizer"),
            mirrors=told.text("mirrors") if told.has("mirrors") else "",
        )
        told.close()
        _verify_row(told, made)
        return made

    def _metadata(self, told: JsonObject) -> Iterator[tuple[str, Any]]:
        """What a new Variable carries besides its value, by name."""
        if told.has("metadata"):
            data = told.taken("metadata", "an object", lambda x: isinstance(x, dict), {})
            for name, value in data.items():
                yield name, self._datum(told, value)

    def _datum(self, told: JsonObject, value: Any) -> Any:
        """One of these."""
        if value is None or is_text(value):
            return value
        # JSON has lists where metadata has tuples.
        if isinstance(value, list):
            several: list[Any] = value
            return tuple([self._datum(told, member) for member in several])
        entries: dict[str, Any] = value if isinstance(value, dict) else {}
        number = read_number(entries.get("number")) if entries.keys() == {"number"} else None
        if number is None:
            told.say("metadata", "a text, a number, null, or a list of them", value)
        return number

    def _held(self, told: JsonObject) -> Iterator[tuple[int, type]]:
        """The containers of a value with parts: how many segments stand in each, and its class."""
        for where, value in told.each("held"):
            kind: type | None = None
            if isinstance(value, list) and len(value) == 2 and is_count(value[0]):
                known = is_text(value[1]) and _is_type_name(value[1])
                kind = self.types.container(value[1]) if known else None
                if kind is not None:
                    yield value[0], kind
            if kind is None:
                expected = "how many segments stand in a container, and its class"
                self.faults.append(Mismatch(where, "text", expected, shown(value)))

    def _node(self, told: JsonObject) -> Node:
        """A container."""
        key = _keys(told)
        kind = self._type(told, "type", self.types.container, "a container")
        counts = tuple(told.several("counts", parse_dim))
        static: Any = None
        # Without children its structure is declared, and none was found in a tree.
        if told.has("children"):
            names = [_one_key(value, where, self.faults) for where, value in told.each("children")]
            static = self.types.structure(key, kind, tuple(names))
        told.close()
        if symbols(key) != len(counts):
            told.say("counts", "one for each index symbol of the key", len(counts))
        return Node(key, kind, counts, static)

    def _part(self, told: JsonObject) -> Part:
        """What one transformation of an optimizer chain keeps."""
        path = told.parsed("path", parse_path, ())
        kind = self._type(told, "type", self.types.container, "a container")
        told.close()
        return Part(path, kind)


def _state(told: JsonObject) -> tuple[LogicalPath, Pattern]:
    """Where an optimizer state stands."""
    path, key = told.parsed("path", parse_path, ()), _keys_or_root(told)
    told.close()
    return path, key


def _series(told: JsonObject) -> Series:
    """Several repeated nodes that are one list of layers."""
    path = told.parsed("path", parse_path, ())
    members = told.several("members", parse_path)
    told.close()
    return Series(path, tuple(members))


def _repeats(told: JsonObject) -> Iterator[Repeat]:
    """The levels of repetition of a row, each as ``["depth", 0]``; null stands for leaves of their own."""
    for where, value in told.each("repeats"):
        if isinstance(value, list) and len(value) == 2 and is_text(value[0]):
            size, axis = value
            # To Python, true is the integer 1. No array has a hundred axes.
            is_axis = axis is None or (type(axis) is int and abs(axis) < 100)
            if is_axis and _is_dim(size):
                yield Repeat(parse_dim(size), axis)
                continue
        expected = "how often, as a dim, and the axis of the stack or null"
        told.faults.append(Mismatch(where, "text", expected, shown(value)))


def _is_dim(text: str) -> bool:
    """Whether a text spells one dim."""
    try:
        parse_dim(text)
    except SchemaError:
        return False
    return True


def _verify_row(told: JsonObject, row: Row) -> None:
    """Notes what does not go together in a row."""
    # Each is one mistake of hand or merge; a layout that has it would fail far from here.
    depth = list_depth(row.path)
    if depth != len(row.repeats):
        told.say("repeats", f"one for each [] of the path, {depth}", len(row.repeats))
    if symbols(row.key) != len(row.unrolled):
        expected = f"one index symbol for each list, {len(row.unrolled)}"
        told.say("key", expected, symbols(row.key))
    axes = [repeat.axis for repeat in row.repeats if repeat.axis is not None]
    # Each stack is one more axis of the array that is stored.
    rank = len(row.leaf.dims) + len(axes)
    for axis in axes:
        if not -rank <= axis < rank:
            told.say("repeats", f"an axis of the {rank} that the leaf has", axis)
    # All of them count segments: of the path from its front, or of the key from its end.
    counts = [
        ("body", row.body or 0, len(row.path)),
        ("optimizer", row.optimizer, len(row.path)),
        ("inside", row.inside, len(row.key)),
    ]
    for inside, _ in row.held:
        counts.append(("held", inside, len(row.key)))
    for name, count, most in counts:
        if count > most:
            told.say(name, f"at most {most} segments", count)


def _keys(told: JsonObject) -> Pattern:
    """The keys of what a text tells, and that is not the root."""
    known = len(told.faults)
    keys = _keys_or_root(told)
    if not keys and len(told.faults) == known:
        told.say("key", "one key or more", told.value("key"))
    return keys


def _keys_or_root(told: JsonObject) -> Pattern:
    if not told.has("key"):
        told.text("key")  # which notes that it is lacking
        return ()
    return read_keys(told.value("key"), told.at("key"), told.faults)


def _home(value: Any, where: str, faults: list[Mismatch]) -> KeyPath:
    """A key path where models stand: no layer of a list is one."""
    keys = read_keys(value, where, faults)
    return tuple([key for key in keys if not isinstance(key, Index)])


def _one_key(value: Any, where: str, faults: list[Mismatch]) -> Key:
    """The name of one child of a container."""
    keys = read_keys(value, where, faults)
    if len(keys) == 1 and not isinstance(keys[0], Index):
        return keys[0]
    faults.append(Mismatch(where, "text", "one key", shown(value)))
    return ""


def _is_type_name(name: str) -> bool:
    """Whether a class of Python may be called so."""
    # Python calls a class in a function `make.<locals>.Model`.
    words = name.replace("<locals>", "locals").replace("<lambda>", "lambda_").split(".")
    return all(map(str.isidentifier, words))


def _type_named(text: str) -> str:
    """The name of a type, as it is."""
    if not _is_type_name(text):
        raise _no(text, "the name of a type")
    return text


def _identifier(text: str) -> str:
    """The name of a field of a NamedTuple, as it is."""
    if not text.isidentifier():
        raise _no(text, "the name of a field")
    return text


def _no(text: str, expected: str) -> SchemaError:
    """The error for a text that is none of what was expected."""
    fault = Mismatch(shown(text), "text", expected, shown(text))
    return SchemaError(f"{shown(text)} cannot be read", [fault])

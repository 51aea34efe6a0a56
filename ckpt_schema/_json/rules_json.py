"""Rules as data of JSON: the word of each, and what it was told; back they are made by the same functions.

``rename("head", "lm_head/kernel")`` is ``{"rule": "rename", "source": "head", "view": "lm_head/kernel"}``. A new rule needs an
entry in two tables: `_WRITTEN` says what is told of it, and `_READ` what makes it of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ckpt_schema._frameworks.named_types import KnownTypes, type_name
from ckpt_schema._json.json_objects import JsonObject, is_text
from ckpt_schema._json.values_json import default_json, number_json, read_default, read_number
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.fields import series
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Series
from ckpt_schema._lens import axis_rules, fold_rules, value_rules
from ckpt_schema._lens import rules as words
from ckpt_schema._lens.rules import Rule, VariableKind
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["rule_json", "rule_read"]

_Said = dict[str, Any]


def rule_json(rule: Rule) -> _Said:
    """A rule as data: its word, and its arguments by name."""
    word, arguments = _WRITTEN[type(rule)]
    told: _Said = {"rule": word}
    for name, value in arguments(rule).items():
        # An argument that was not given is not told.
        if value is not None:
            told[name] = value
    return told


def _path(path: LogicalPath | None) -> Any:
    """A path as a rule is told it; a Variable type by its name."""
    if path and isinstance(path[0], VariableKind) and isinstance(path[0].kind, type):
        return {"type": type_name(path[0].kind)}
    return None if path is None else "/".join(path)


def _dim(dim: dims_.Dim | None) -> str | None:
    """A dim as a rule is told it."""
    return None if dim is None else dims_.format_dim(dim)


def _axes(rule: Any) -> str | None:
    """The axes of a rename or a fuse, as they are written."""
    # By the names of dims, where the rule was told them so.
    if rule.spelled is not None:
        return str(rule.spelled)
    return _order(getattr(rule, "axes", None))


def _order(axes: tuple[int, ...] | None) -> str | None:
    """The order of axes: ``1 0``."""
    return None if axes is None else " ".join(map(str, axes))


def _default(default: Any) -> Any:
    """The default of a private leaf; None is that of the tree's own values."""
    return "own" if default is None else default_json(default)


_WRITTEN: Mapping[type, tuple[str, Callable[[Any], _Said]]] = {
    words.Rename: (
        "rename",
        lambda r: {"source": _path(r.source), "view": _path(r.view), "axes": _axes(r)},
    ),
    words.Private: ("private", lambda r: {"path": _path(r.path), "default": _default(r.default)}),
    # The same word with two sizes: what a leaf of one side has beyond that of the other.
    axis_rules.Grown: (
        "private",
        lambda r: {
            "path": _path(r.path),
            "default": _default(r.default),
            "small": _dim(r.small),
            "large": _dim(r.large),
        },
    ),
    words.Apart: (
        "apart",
        # The default may be left out.
        lambda r: {"path": _path(r.path), "default": r.default and default_json(r.default)},
    ),
    words.Move: ("move", lambda r: {"source": _path(r.source), "view": _path(r.view)}),
    words.Reset: ("reset", lambda r: {"source": _path(r.source), "view": _path(r.view)}),
    words.RawKey: ("raw_key", lambda r: {"path": _path(r.path)}),
    words.Tie: (
        "tie",
        lambda r: {"copy": _path(r.copy), "of": _path(r.of), "axes": _order(r.axes)},
    ),
    words.Fuse: (
        "fuse",
        lambda r: {
            "whole": _path(r.whole),
            "parts": [*map(_path, r.parts)],
            "axis": _dim(r.axis),
            "axes": _axes(r),
        },
    ),
    fold_rules.Total: (
        "total",
        lambda r: {"whole": _path(r.whole), "parts": [*map(_path, r.parts)]},
    ),
    fold_rules.Dequantize: (
        "dequantize",
        lambda r: {
            "path": _path(r.path),
            "scale": _path(r.scale),
            "block": [*r.block],
            "packed": r.packed,
            "along": None if r.along == -1 else r.along,
            "zero": (r.zero or None) if isinstance(r.zero, int) else _path(r.zero),
            "rounding": "nearest" if r.rounds else None,
        },
    ),
    fold_rules.Adapter: (
        "lora",
        lambda r: {
            "path": _path(r.path),
            "a": _path(r.a),
            "b": _path(r.b),
            "alpha": number_json(r.alpha),
        },
    ),
    Series: (
        "series",
        lambda r: {"members": [*map(_path, r.members)], "name": _path(r.path)},
    ),
    axis_rules.Reverse: ("flip", lambda r: {"path": _path(r.path), "dim": _dim(r.dim)}),
    axis_rules.Padding: (
        "pad",
        lambda r: {
            "path": _path(r.path),
            "small": _dim(r.small),
            "large": _dim(r.large),
            "fill": number_json(r.fill),
        },
    ),
    axis_rules.Repeated: (
        "repeat",
        lambda r: {"path": _path(r.path), "times": str(r.times), "axis": _dim(r.axis)},
    ),
    axis_rules.Replicated: (
        "replicated",
        lambda r: {"axis": r.axis, "side": "view" if r.is_view else "source"},
    ),
    value_rules.Factor: (
        "scale",
        lambda r: {"path": _path(r.path), "factor": _factor(r.factor)},
    ),
    value_rules.Offset: (
        "shift",
        lambda r: {"path": _path(r.path), "amount": number_json(r.amount)},
    ),
    # There is one way to round.
    value_rules.Rounding: ("cast", lambda r: {"path": _path(r.path), "rounding": "nearest"}),
}
"""The word of each kind of rule, and what makes its arguments of one."""


def _factor(factor: float | str) -> Any:
    """A factor: a number, or an expression of dims, ``1/sqrt(head_dim)``."""
    return factor if isinstance(factor, str) else number_json(factor)


# --- And back  ---


def rule_read(told: JsonObject, types: KnownTypes) -> Rule | None:
    """The rule that data tells; None where something is wrong with it."""
    known = len(told.faults)
    word = told.taken("rule", f"one of {', '.join(_READ)}", lambda x: x in [*_READ], "")
    if not word:
        return None
    make, kinds = _READ[word]
    given: _Said = {}
    for marked, kind in kinds.items():
        name = marked.removesuffix("?")
        # What has to be there is read in any case: that tells that it lacks.
        if told.has(name) or name == marked:
            given[name] = _ARGUMENTS[kind](told, name, types)
    told.close()
    if len(told.faults) > known:
        return None
    # The functions that users call check what they are given, and the text is checked so too.
    try:
        return make(**given)
    except SchemaError as error:
        for fault in error.mismatches:
            where = told.at(fault.path)
            told.faults.append(Mismatch(where, "text", fault.expected, fault.found, fault.hint))
        return None


def _series(members: Sequence[str], name: str) -> Any:
    """`series`, whose members have no name of an argument."""
    return series(*members, name=name)


_READ: Mapping[str, tuple[Callable[..., Any], Mapping[str, str]]] = {
    "rename": (words.rename, {"source": "path", "view": "text", "axes?": "text"}),
    "private": (
        words.private,
        {"path": "path", "default": "default", "small?": "text", "large?": "text"},
    ),
    "apart": (words.apart, {"path": "path", "default?": "default"}),
    "move": (words.move, {"source": "path", "view": "path"}),
    "reset": (words.reset, {"source?": "path", "view?": "path"}),
    "raw_key": (words.raw_key, {"path": "path"}),
    "tie": (words.tie, {"copy": "path", "of": "path", "axes?": "text"}),
    "fuse": (
        words.fuse,
        {"whole": "text", "parts": "texts", "axis?": "text", "axes?": "text"},
    ),
    "total": (fold_rules.total, {"whole": "text", "parts": "texts"}),
    "dequantize": (
        fold_rules.dequantize,
        {
            "path": "text",
            "scale": "text",
            "block": "block",
            "packed?": "text",
            "along?": "axis",
            "zero?": "zero",
            "rounding?": "text",
        },
    ),
    "lora": (fold_rules.lora, {"path": "text", "a": "text", "b": "text", "alpha": "number"}),
    "series": (_series, {"members": "texts", "name": "text"}),
    "flip": (axis_rules.flip, {"path": "path", "dim": "text"}),
    "pad": (
        axis_rules.pad,
        {"path": "path", "small": "text", "large": "text", "fill": "number"},
    ),
    "repeat": (axis_rules.repeat, {"path": "path", "times": "text", "axis?": "text"}),
    "replicated": (axis_rules.replicated, {"axis": "axis", "side": "text"}),
    "scale": (value_rules.scale, {"path": "path", "factor": "factor"}),
    "shift": (value_rules.shift, {"path": "path", "amount": "number"}),
    "cast": (value_rules.cast, {"path": "path", "rounding": "text"}),
}
"""What makes a rule of each word, and what kind of value each argument is; those with a question mark may lack."""


def _read_path(told: JsonObject, name: str, types: KnownTypes) -> Any:
    """A path, or a Variable type: a rule may be about all leaves of one."""
    value = told.value(name)
    entries: dict[str, Any] = value if isinstance(value, dict) else {}
    if entries.keys() == {"type"} and is_text(entries["type"]):
        kind = types.variable(entries["type"])
        if kind is not None:
            return kind
        told.say(f"{name}/type", "a Variable type", entries["type"])
        return ""
    return told.text(name)


def _read_texts(told: JsonObject, name: str, types: KnownTypes) -> list[str]:
    """A list of texts."""
    # To ask for a text that is not there notes that it lacks.
    if not told.has(name):
        return [told.text(name)]
    texts: list[str] = []
    for where, value in told.each(name):
        if is_text(value):
            texts.append(value)
        else:
            told.faults.append(Mismatch(where, "text", "a text", shown(value)))
    return texts


def _read_default(told: JsonObject, name: str, types: KnownTypes) -> Any:
    """A default, or that a leaf has the tree's own values."""
    if told.value(name) == "own":
        return words.own
    # A rule tells a default by all means: here too, this notes that it lacks.
    if not told.has(name):
        told.text(name)
    return read_default(told, name)


def _read_number(told: JsonObject, name: str, types: KnownTypes) -> Any:
    """A number, to the last bit."""
    number = read_number(told.value(name))
    if number is None:
        told.say(name, "a number", told.value(name))
    return number


def _read_axis(told: JsonObject, name: str, types: KnownTypes) -> int:
    """The number of an axis; to Python, ``true`` is an int as well."""
    return told.taken(name, "the number of an axis", lambda x: type(x) is int and abs(x) < 100, 0)


def _read_zero(told: JsonObject, name: str, types: KnownTypes) -> Any:
    value = told.value(name)
    # A number, or the path of those of each block.
    return told.text(name) if type(value) is not int else value


def _read_block(told: JsonObject, name: str, types: KnownTypes) -> Any:
    """The sizes of a block, which the rule itself checks."""
    return [value for _, value in told.each(name)]


def _read_factor(told: JsonObject, name: str, types: KnownTypes) -> Any:
    """A factor: an expression of dims, or a number."""
    value = told.value(name)
    return value if is_text(value) else _read_number(told, name, types)


_ARGUMENTS: Mapping[str, Callable[[JsonObject, str, KnownTypes], Any]] = {
    "path": _read_path,
    "text": lambda told, name, types: told.text(name),
    "texts": _read_texts,
    "default": _read_default,
    "number": _read_number,
    "axis": _read_axis,
    "factor": _read_factor,
    "block": _read_block,
    "zero": _read_zero,
}
"""What reads each kind of value."""

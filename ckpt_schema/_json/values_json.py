"""Numbers, keys, defaults and dims, as JSON has them and back.

The innermost step of both ways. A value that is written comes back with the same bits: JSON has no NaN, no complex number
and no float32, so that each of these is an object.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ckpt_schema._json.json_objects import JsonObject, is_text, meaning
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import AxisName, Dim
from ckpt_schema._layouts.fallbacks import SameAs, same_as
from ckpt_schema._layouts.leaves import ConstantKey, Default, Fill, FreshKey, Init, Leaf
from ckpt_schema._layouts.paths import Index, Key, Pattern, format_path, parse_pattern
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "default_json",
    "keys_json",
    "leaf_json",
    "number_json",
    "parse_dim",
    "read_default",
    "read_keys",
    "read_leaf",
    "read_number",
]


# --- Numbers  ---


def number_json(value: Any) -> Any:
    """A number, to the last bit."""
    # A number of NumPy first: its float64 is a float to Python, and would lose its type.
    if isinstance(value, np.generic):
        return {"dtype": str(value.dtype), "bits": value.tobytes().hex()}
    if isinstance(value, complex):
        return {"complex": [number_json(value.real), number_json(value.imag)]}
    # Of NaNs there are many, told by their bits.
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": struct.pack(">d", value).hex()}
    return value


def read_number(value: Any) -> Any:
    """The number that JSON tells; None where it tells none."""
    if isinstance(value, (bool, int, float)):
        # A longer int is no float, and no value of any dtype.
        is_short = not isinstance(value, int) or abs(value) < 2**1024
        return value if is_short else None
    told: dict[str, Any] = value if isinstance(value, dict) else {}
    # Whatever is wrong inside is one fault: the text tells no number.
    try:
        if told.keys() == {"float"}:
            return struct.unpack(">d", bytes.fromhex(told["float"]))[0]
        if told.keys() == {"complex"}:
            real, imaginary = map(read_number, told["complex"])
            return complex(real, imaginary)
        if told.keys() == {"dtype", "bits"}:
            raw = bytes.fromhex(told["bits"])
            return np.frombuffer(raw, _dtype(str(told["dtype"])), count=1)[0]
    except (TypeError, ValueError, OverflowError, struct.error):
        return None
    return None


def _dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name, which jax has arrays of.

    Raises:
        ValueError: There is none.
    """
    try:
        dtype = np.dtype(jnp.dtype(name))
    except (TypeError, ValueError) as error:
        raise ValueError(name) from error
    # NumPy has other names for dtypes, `<f4`, and dtypes of texts and dates.
    is_number = jnp.issubdtype(dtype, np.number) or dtype == np.bool_
    if str(dtype) != name or not is_number:
        raise ValueError(name)
    return dtype


# --- Keys  ---

_DEEPEST = 8
"""No key is a tuple of tuples of more levels."""


def keys_json(keys: Iterable[Key | Index]) -> Any:
    """The keys of a path: its text; where a key is neither a text nor a number, a list of them.

    Raises:
        SchemaError: JSON has nothing like one of the keys.

    Example:
        >>> keys_json(("layers", 0, "norm")), keys_json(("batch_stats", ("kernel", "u")))
        ('layers/0/norm', ['batch_stats', {'key': ['kernel', 'u']}])
    """
    segments: tuple[Any, ...] = tuple(keys)  # of any type that a dict has keys of
    if all(map(_is_usual, segments)):
        return format_path(segments)
    return [
        format_path((each,)) if _is_usual(each) else {"key": _key_json(each, segments)}
        for each in segments
    ]


def _is_usual(key: Any) -> bool:
    """Whether a path spells a key; True is an int of Python, and is spelled as none."""
    return isinstance(key, (str, int, Index)) and not isinstance(key, bool)


def _key_json(key: Any, path: Iterable[Any]) -> Any:
    if key is None or isinstance(key, str):
        return key
    if isinstance(key, (bool, int, float, complex)):
        return number_json(key)
    if type(key) is tuple:
        return [_key_json(each, path) for each in key]
    expected = "keys that are texts, numbers, None, or tuples of them"
    fault = Mismatch("/".join(map(str, path)), "declaration", expected, shown(key))
    raise SchemaError("a key cannot be written as JSON", [fault])


def read_keys(value: Any, where: str, faults: list[Mismatch]) -> Pattern:
    """The keys that a value spells; of an empty text, those of the root.

    Args:
        value: What `keys_json` gave.
        where: Where it stands.
        faults: What is wrong with the whole text.
    """
    if isinstance(value, list):
        several: list[Any] = value
        segments = [_read_segment(each, f"{where}/{at}", faults) for at, each in enumerate(several)]
        return tuple([each for segment in segments for each in segment])
    if is_text(value):
        return meaning(value, parse_pattern, (), where, faults) if value else ()
    faults.append(Mismatch(where, "text", "the keys of a path, as text or a list", shown(value)))
    return ()


def _read_segment(value: Any, where: str, faults: list[Mismatch]) -> Pattern:
    """The one key that a value spells; none where it spells none."""
    known = len(faults)
    if is_text(value):
        found: Any = meaning(value, parse_pattern, (), where, faults)
        if len(found) == 1 or len(faults) > known:
            return found
    elif isinstance(value, dict) and value.keys() == {"key"}:
        try:
            return (_read_key(value["key"], _DEEPEST),)
        except ValueError:
            pass  # said below
    expected = 'a key, or {"key": ...} of one that is no text'
    faults.append(Mismatch(where, "text", expected, shown(value)))
    return ()


def _read_key(value: Any, levels: int) -> Any:
    """The key that JSON tells.

    Raises:
        ValueError: It tells none.
    """
    if value is None or is_text(value):
        return value
    if isinstance(value, list) and levels:
        return tuple([_read_key(each, levels - 1) for each in value])
    number = read_number(value)
    if number is None:
        raise ValueError(value)
    return number


# --- Defaults  ---


def default_json(default: Default) -> Any:
    """How a default is written."""
    if isinstance(default, Fill):
        return number_json(default.value)
    if isinstance(default, Init):
        return "tx.init"
    if isinstance(default, SameAs):
        return {"same_as": "/".join(default.path), "depth": default.depth}
    return {"fresh_key" if isinstance(default, FreshKey) else "constant_key": default.seed}


def read_default(told: JsonObject, name: str) -> Default | None:
    """The default at a name, where there is one."""
    if not told.has(name):
        return None
    value = told.value(name)
    # What the transformation of an optimizer starts with.
    if value == "tx.init":
        return Init()
    if isinstance(value, dict) and len(value) == 1:
        for word, kind in (("fresh_key", FreshKey), ("constant_key", ConstantKey)):
            # jax takes seeds of 64 bits, with a sign or without one.
            seed: Any = value.get(word)
            if type(seed) is int and -(2**63) <= seed < 2**64:
                return kind(seed)
    if isinstance(value, dict) and value.keys() == {"same_as", "depth"}:
        path, depth = value["same_as"], value["depth"]
        # No path is so deep that its node is a thousand levels above.
        if is_text(path) and path and type(depth) is int and 0 < depth < 1000:
            return SameAs(same_as(path).path, depth)
    number = read_number(value)
    if number is None:
        told.say(name, 'a number, "tx.init", fresh_key, constant_key or same_as', value)
        return None
    return Fill(number)


# --- Leaves  ---


def parse_dim(text: str) -> Dim:
    """The one dim that a text spells.

    Raises:
        SchemaError: It spells none, or several.
    """
    dims = dims_.parse_dims(text)
    if len(dims) != 1:
        raise _wrong(text, "one dim")
    return dims[0]


def leaf_json(leaf: Leaf) -> dict[str, Any]:
    """A leaf: its dtype and dims, and what its axes are called where that is something else."""
    said: dict[str, Any] = {"leaf": f"{leaf.dtype}[{dims_.format_dims(leaf.dims)}]"}
    if leaf.names:
        said["axes"] = [[name.label, *name.factors] for name in leaf.names]
    return said


def read_leaf(told: JsonObject) -> Leaf:
    """The leaf of a row."""
    leaf = told.parsed("leaf", _parse_leaf, Leaf((), "float32"))
    names: list[AxisName] = []
    for where, axis in told.each("axes"):
        if isinstance(axis, list) and len(axis) > 1 and all(map(is_text, axis)):
            names.append(AxisName(tuple(axis[1:]), axis[0]))
        else:
            expected = "a label and what each factor is called"
            told.faults.append(Mismatch(where, "text", expected, shown(axis)))
    if not names:
        return leaf
    # Each factor of each axis has a name.
    fits = [len(name.factors) for name in names] == [len(dim) for dim in leaf.dims]
    if not fits:
        told.say("axes", f"a name for each factor of {leaf}", told.value("axes"))
        return leaf
    return Leaf(leaf.dims, leaf.dtype, tuple(names))


def _parse_leaf(text: str) -> Leaf:
    """The leaf that a text spells: ``float32[embed 3*heads]``."""
    dtype, bracket, rest = text.partition("[")
    if not bracket or not rest.endswith("]"):
        raise _wrong(text, "a dtype and dims, such as float32[embed 3*heads]")
    return Leaf(dims_.parse_dims(rest[:-1]), _parse_dtype(dtype))


def _parse_dtype(name: str) -> str:
    """The name of a dtype, as it is, where it is one that a leaf may have."""
    if name == leaves.ANY_FLOAT:
        return name
    # An implementation of keys that jax does not have is refused, and so is another name for one that it has.
    if name.startswith("key<"):
        if name != leaves.key_dtype(name[4:-1]):
            raise _wrong(name, "the dtype of a key, such as key<fry>")
        return name
    try:
        _dtype(name)
    except ValueError as error:
        raise _wrong(name, "a dtype that jax has arrays of") from error
    return name


def _wrong(text: str, expected: str) -> SchemaError:
    """The error for a text that is none of what was expected."""
    fault = Mismatch(shown(text), "text", expected, shown(text))
    return SchemaError(f"{shown(text)} cannot be read", [fault])

"""Numbers, defaults and dims, as JSON has them and back."""

from __future__ import annotations

import math
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np

from ckpt_schema._json.json_objects import JsonObject, is_text
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.dims import AxisName, Dim
from ckpt_schema._layouts.fallbacks import SameAs, same_as
from ckpt_schema._layouts.leaves import ConstantKey, Default, Fill, FreshKey, Init, Leaf
from ckpt_schema._layouts.paths import Pattern, parse_pattern
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "default_json",
    "leaf_json",
    "number_json",
    "parse_dim",
    "parse_key",
    "read_default",
    "read_leaf",
    "read_number",
]


# --- Numbers  ---


def number_json(value: Any) -> Any:
    """A number, to the last bit."""
    if isinstance(value, np.generic):
        return {"dtype": str(value.dtype), "bits": value.tobytes().hex()}
    if isinstance(value, complex):
        return {"complex": [number_json(value.real), number_json(value.imag)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": struct.pack(">d", value).hex()}
    return value


def read_number(value: Any) -> Any:
    """The number that JSON tells; None where it tells none."""
    if isinstance(value, (bool, int, float)):
        is_short = not isinstance(value, int) or abs(value) < 2**1024
        return value if is_short else None
    told: dict[str, Any] = value if isinstance(value, dict) else {}
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
    is_number = jnp.issubdtype(dtype, np.number) or dtype == np.bool_
    if str(dtype) != name or not is_number:
        raise ValueError(name)
    return dtype


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
    if value == "tx.init":
        return Init()
    if isinstance(value, dict) and len(value) == 1:
        for word, kind in (("fresh_key", FreshKey), ("constant_key", ConstantKey)):
            seed: Any = value.get(word)
            if type(seed) is int and -(2**63) <= seed < 2**64:
                return kind(seed)
    if isinstance(value, dict) and value.keys() == {"same_as", "depth"}:
        path, depth = value["same_as"], value["depth"]
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
    found = dims_.parse_dims(text)
    if len(found) != 1:
        raise _wrong(text, "one dim")
    return found[0]


def parse_key(text: str) -> Pattern:
    """The pattern that a text spells; of nothing, that of the root."""
    return parse_pattern(text) if text else ()


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
    fits = [len(name.factors) for name in names] == [len(dim) for dim in leaf.dims]
    if not fits:
        told.say("axes", f"a name for each factor of {leaf}", told.value("axes"))
        return leaf
    return Leaf(leaf.dims, leaf.dtype, tuple(names))


def _parse_leaf(text: str) -> Leaf:
    dtype, bracket, rest = text.partition("[")
    if not bracket or not rest.endswith("]"):
        raise _wrong(text, "a dtype and dims, such as float32[embed 3*heads]")
    return Leaf(dims_.parse_dims(rest[:-1]), _parse_dtype(dtype))


def _parse_dtype(name: str) -> str:
    if name == leaves.ANY_FLOAT:
        return name
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
    fault = Mismatch(shown(text), "text", expected, shown(text))
    return SchemaError(f"{shown(text)} cannot be read", [fault])

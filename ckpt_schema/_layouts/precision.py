"""Precision: which leaves of a layout are any float, and which float each of them is to be.

``Float[Array, "embed mlp"]`` declares a leaf that is any float. A tree says which one, or a user
does. Until then the leaf is *open*, and nothing is made of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._layouts.leaves import ANY_FLOAT
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "Dtypes",
    "glob_reaches",
    "may_be_one",
    "open_rows",
    "said_dtypes",
    "typed",
    "verify_closed",
    "with_dtypes",
]

Dtypes = Any
"""One dtype of floats, or several by globs of logical paths: ``{"**": "bfloat16", "norm": "float32"}``."""


def open_rows(table: Layout) -> list[int]:
    """The numbers of the rows that are any float."""
    # By number and not as rows: whoever closes one puts a new row in its place.
    return [number for number, row in enumerate(table.rows) if row.leaf.is_open]


def may_be_one(dtype: str, other: str) -> bool:
    """Whether two dtypes are one, or one is any float and the other a float.

    Example:
        >>> may_be_one("Float", "bfloat16"), may_be_one("Float", "int32"), may_be_one("int8", "int8")
        (True, False, True)
    """
    return dtype == other or (ANY_FLOAT in (dtype, other) and {dtype, other} <= _FLOATS)


_FLOATS = FORMATS.keys() | {ANY_FLOAT}


def verify_closed(table: Layout, what: str, cure: str = "") -> None:
    """Raises where leaves are any float still, by something that needs one dtype of each.

    Args:
        table: The layout.
        what: What needs them, for messages.
        cure: How to say them, where there is a shorter way than by a layout.

    Raises:
        SchemaError: With every such leaf.
    """
    name = table.name.rpartition(".")[2]
    hint = cure or f'say which, cs.layout({name}, dtype="bfloat16")'
    faults: list[Mismatch] = []
    for number in open_rows(table):
        row = table.rows[number]
        where, found = "/".join(row.path), str(row.stored)
        faults.append(Mismatch(where, "dtype", "one dtype", found, hint, mirrors=row.mirrors))
    if faults:
        raise SchemaError(f"{what} needs one dtype of each leaf of {table.name}", faults)


def with_dtypes(table: Layout, dtypes: Mapping[int, str]) -> Layout:
    """The layout with these dtypes, by the numbers of rows.

    Raises:
        SchemaError: With every default that a leaf of its dtype cannot hold.
    """
    rows = list(table.rows)
    faults: list[Mismatch] = []
    for number, dtype in dtypes.items():
        row = rows[number]
        leaf = row.leaf.with_dtype(dtype)
        # A default of 1e6 fits any float while that is not told, and no float16.
        if row.default is not None and not leaves.holds(leaf, row.default):
            expected = f"a default that {dtype} can hold"
            faults.append(Mismatch("/".join(row.path), "dtype", expected, str(row.default)))
        # All faults are told at once, so the row is closed whether or not its default fits.
        rows[number] = dataclasses.replace(row, leaf=leaf)
    if faults:
        raise SchemaError(f"{table.name} has defaults that are too great for its floats", faults)
    return dataclasses.replace(table, rows=tuple(rows))


def typed(table: Layout, dtype: Dtypes) -> Layout:
    """The layout in which every leaf that is any float has one of these dtypes.

    Where several globs mean a leaf, the one that names more segments decides. What an optimizer
    keeps for a leaf goes along with it, unless a glob from the root names the optimizer's state.

    Args:
        table: The layout.
        dtype: One dtype of floats, or several by globs of logical paths, which mean the leaves at
            or below these paths, from the root of the layout or from that of the model.

    Raises:
        SchemaError: With every leaf that has no dtype yet, everything that is no dtype of floats,
            every glob that means no leaf of any float, and every two that contradict each other.

    Example:
        >>> import ckpt_schema as cs
        >>> from jaxtyping import Array, Float
        >>> class Norm(cs.Schema):
        ...     scale: Float[Array, " embed"]
        >>> print(typed(cs.layout(Norm), jnp.bfloat16))
        Norm: 1 row
          scale  scale  bfloat16[embed]
    """
    return with_dtypes(table, said_dtypes(table, dtype))


def said_dtypes(table: Layout, dtype: Dtypes) -> dict[int, str]:
    """Which float each row of any float is, by its number, as a user says it; see `typed`."""
    faults: list[Mismatch] = []
    globs = _read(dtype, faults)
    used: set[str] = set()
    dtype_of: dict[int, str] = {}
    # Where a glob is not well formed, its leaves would be told as without a dtype besides.
    for number in [] if faults else open_rows(table):
        row = table.rows[number]
        path = "/".join(row.path)
        best = _most_specific(row, globs)
        dtypes: set[str] = set()
        for glob in best:
            used.add(glob.text)
            dtypes.add(glob.dtype)
        # Two globs of one rank may mean a leaf, as long as they say the same of it.
        if len(dtypes) == 1:
            dtype_of[number] = dtypes.pop()
        elif dtypes:
            both = " and ".join(repr(glob.text) for glob in best)
            hint = "write one glob that names more of the path"
            faults.append(Mismatch(path, "ambiguous", "one dtype", f"two, by {both}", hint))
        else:
            hint = f'name it in dtype=, as {{"{path}": "float32"}}'
            faults.append(Mismatch(path, "dtype", "one dtype", str(row.stored), hint))
    # A glob that decides nothing is most often misspelled. Where there are faults already, it may
    # be idle because of them.
    for glob in globs:
        if glob.text not in used and not faults:
            hint = "drop it, or print the layout to see its paths"
            expected = "leaves that are any float"
            faults.append(Mismatch(f"dtype={glob.text!r}", "rule", expected, "none", hint))
    if faults:
        raise SchemaError(f"dtype= does not say which floats {table.name} holds", faults)
    return dtype_of


@dataclasses.dataclass(frozen=True, slots=True)
class _Glob:
    """The dtype of the leaves that a glob means."""

    text: str
    path: LogicalPath
    dtype: str

    @property
    def named(self) -> int:
        """How many segments it names."""
        return sum("*" not in segment for segment in self.path)


def _read(dtype: Any, faults: list[Mismatch]) -> list[_Glob]:
    """The globs that are given; one dtype is that of all leaves."""
    given: Mapping[Any, Any] = dtype if isinstance(dtype, Mapping) else {"**": dtype}
    globs: list[_Glob] = []
    for text, value in given.items():
        name = _float_name(value)
        if name is None or not isinstance(text, str):
            expected = "a dtype of floats, or several by globs of paths"
            hint = 'write dtype="bfloat16", or dtype={"**": "bfloat16", "norm": "float32"}'
            found = shown(value) if isinstance(text, str) else shown(text)
            faults.append(Mismatch("dtype", "argument", expected, found, hint))
            continue
        globs.append(_Glob(text, paths.rule_path(text), name))
    return globs


def _float_name(dtype: Any) -> str | None:
    """The name of a dtype of floats; None of everything else."""
    if dtype is None or dtype is float:  # which NumPy takes for float64
        return None
    try:
        name = str(jnp.dtype(dtype))
    except TypeError:
        return None
    return name if name in FORMATS else None


def _most_specific(row: Row, globs: Sequence[_Glob]) -> list[_Glob]:
    """The globs that decide which dtype a row has; several where none names more than the others."""
    best: list[_Glob] = []
    highest = (False, -1)
    for glob in globs:
        from_root = glob_reaches(glob.path, row.path)
        inside = glob_reaches(glob.path, row.model_path)
        # What an optimizer keeps for a param is as precise as the param: the param's globs mean it too.
        along = bool(row.mirrors) and glob_reaches(glob.path, paths.parse_path(row.mirrors))
        if not (from_root or inside or along):
            continue
        # Of an optimizer's state, what names that state decides before what names the param.
        names_state = bool(row.mirrors) and glob.path[0] == row.path[0]
        rank = names_state, glob.named
        if rank > highest:
            best, highest = [], rank
        if rank == highest:
            best.append(glob)
    return best


def glob_reaches(glob: LogicalPath, path: LogicalPath) -> bool:
    """Whether a glob means a leaf, or a node above it."""
    # Of a/b/c it is held against a, a/b and a/b/c: "norm" means all that stands below it.
    return any(paths.glob_means(glob, path[:end]) for end in range(1, len(path) + 1))

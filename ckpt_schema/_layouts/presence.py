"""Presence: which of the leaves that a tree may lack a layout has.

A schema of layers serves models with and without biases. A layout of one model has them or lacks them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.precision import glob_reaches
from ckpt_schema._layouts.table import Layout, Row, holders
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["may_lack", "with_presence"]


def may_lack(row: Row) -> bool:
    """Whether a tree conforms without this leaf."""
    return row.optional or row.ephemeral


def with_presence(table: Layout, has: Iterable[str]) -> Layout:
    """The layout that has some of the leaves that a tree may lack, and none of the others.

    What an optimizer keeps for a param is there where the param is.

    Args:
        table: The layout.
        has: Globs of logical paths, which mean the leaves at or below these paths, from the root of the
            layout or from that of the model.

    Raises:
        SchemaError: It is no list of globs, or one of them means no leaf that a tree may lack.

    Example:
        >>> import ckpt_schema as cs
        >>> print(with_presence(cs.layout(cs.blocks.linen.LayerNorm), ["scale"]))
        LayerNorm: 1 row
          scale  scale  Float[features]
    """
    globs = _read(has)
    used: set[str] = set()
    # By logical path, of the leaves that may be absent. Params are asked for before what mirrors
    # them, wherever a class declares its optimizer.
    present: dict[str, bool] = {}
    for row in sorted(table.rows, key=lambda row: bool(row.mirrors)):
        # A mirror of a param that may be absent is not asked for itself: it goes with the param.
        if may_lack(row) and row.mirrors not in present:
            naming = _globs_of(row, globs)
            used.update(naming)
            present["/".join(row.path)] = bool(naming)
    rows: list[Row] = []
    for row in table.rows:
        path = "/".join(row.path)
        # What is not among them is always there, and so is the mirror of what is always there.
        if present.get(path, True) and present.get(row.mirrors, True):
            # The layout of one model says of each leaf that it is there: none is optional any more.
            had = dataclasses.replace(row, optional=False, ephemeral=False)
            rows.append(had if may_lack(row) else row)
    faults: list[Mismatch] = []
    for text in globs:
        if text not in used:
            where, expected = f"has={text!r}", "leaves that a tree may lack"
            hint = "drop it, or print the layout to see what a tree may lack"
            faults.append(Mismatch(where, "rule", expected, "none", hint))
    if faults:
        raise SchemaError(f"has= does not say which leaves {table.name} has", faults)
    # A container goes with the last of its leaves.
    gone = set(holders(table.rows)) - set(holders(rows))
    nodes = [node for node in table.nodes if node not in gone]
    return dataclasses.replace(table, rows=tuple(rows), nodes=tuple(nodes))


def _read(has: Any) -> dict[str, LogicalPath]:
    """The globs that are given, each as the path that it spells."""
    is_list = isinstance(has, Iterable) and not isinstance(has, (str, bytes))
    # has="bias" would be read as four globs of one letter each.
    given: list[Any] = [*has] if is_list else []
    if not is_list or not all(isinstance(text, str) for text in given):
        hint = 'write has=["**/bias"], and has=[] where it has none of them'
        fault = Mismatch("has", "argument", "a list of globs of paths", shown(has), hint)
        raise SchemaError("the arguments of layout are not well formed", [fault])
    return {text: paths.rule_path(text) for text in given}


def _globs_of(row: Row, globs: Mapping[str, LogicalPath]) -> list[str]:
    """The globs that mean a row, as they are written."""
    naming: list[str] = []
    for text, glob in globs.items():
        # Of a train state `params/norm/bias`: from the root, or `norm/bias` from that of the model.
        if glob_reaches(glob, row.path) or glob_reaches(glob, row.model_path):
            naming.append(text)
    return naming

"""A layout or a lens as Python text, which is verified to say what it was written for."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.leaves import ConstantKey, FreshKey
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.schema import layout as layout_of
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.spelled_rows import as_read
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Rule, VariableKind
from ckpt_schema._source.importing import Imports
from ckpt_schema._source.layout_text import Around, LayoutText
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["to_source"]


def to_source(given: Layout | type[Schema] | Lens, *, tx: str = "") -> str:
    """A layout or a lens as Python: the classes that declare it, in a text that can be imported.

    A layer of Flax is its block, `ckpt_schema.blocks`, where that says just what is there. What is equal is one class, and
    layers are one list or one stack. Dims of which numbers alone are known get names, one
    for each size: the text says what is to be doubted. Executed, it gives the same layout, under the name ``layout``.

    Of a lens both layouts are written, and the rules: executed, the text gives an equal lens under the name ``lens``.

    Args:
        given: A layout, such as `infer` reads off a tree, a schema, or a lens.
        tx: How the transformation of its optimizer is written, ``"optax.adamw(3e-4)"``. Without it what the optimizer keeps
            is written out, see `kept`.

    Raises:
        SchemaError: Something in it cannot be declared by classes.

    Example:
        >>> import jax
        >>> from ckpt_schema import infer
        >>> kernel, bias = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 8), (8,)))
        >>> layers = {f"layers_{n}": {"kernel": kernel, "bias": bias} for n in range(3)}
        >>> print(to_source(infer({"params": layers}, lists=["layers_{i}"])))
        import ckpt_schema as cs
        from ckpt_schema import blocks
        <BLANKLINE>
        <BLANKLINE>
        class Model(cs.Schema):
            \"\"\"2 leaves, 120 parameters.\"\"\"
        <BLANKLINE>
            layers: list[blocks.linen.Dense] = cs.field(
                key="layers_{i}",
                length="depth",
                dims={"in_features": "size_4", "out_features": "size_8"},
            )
        <BLANKLINE>
        <BLANKLINE>
        class Inferred(cs.Schema, name="inferred"):
            params: Model = cs.field(key={...: "{collection}"})
        <BLANKLINE>
        <BLANKLINE>
        SIZES = {
            "depth": 3,
            "size_8": 8,  # nothing tells what it is
            "size_4": 4,  # nothing tells what it is
        }
        layout = cs.layout(Inferred, dims=SIZES, dtype="float32", has=["**/bias"])
        <BLANKLINE>
    """
    around = Around(tx=tx)
    if isinstance(given, Lens):
        return _lens_text(given, around)
    table = layout_of(given)
    _verify_known(table, tx)
    writer = LayoutText(table, around)
    text = around.text([*writer.classes(), "\n".join(writer.last_lines())], table.name)
    _verify(text, {"layout": table})
    return text


def _lens_text(lens: Lens, around: Around) -> str:
    """The text of a lens: its layouts, and how it was derived from them."""
    pairs = [as_read((each.source, each.view), each.rules) for each in lens.derivations]
    tables: list[Layout] = []
    for pair in pairs:
        tables += (table for table in pair if table not in tables)
    names = ["source", "view"] if len(tables) == 2 else [f"layout_{n}" for n in range(len(tables))]
    around.taken.update(names, (f"{name.upper()}_SIZES" for name in names))
    blocks: list[str] = []
    ends: list[str] = []
    for table, name in zip(tables, names, strict=True):
        _verify_known(table, around.tx)
        writer = LayoutText(table, around)
        blocks += writer.classes()
        ends += writer.last_lines(name, f"{name.upper()}_SIZES")
    steps: list[str] = []
    for each, pair in zip(lens.derivations, pairs, strict=True):
        sides = (names[tables.index(table)] for table in pair)
        rules = "".join(f"        {_rule_text(rule, around.imports)},\n" for rule in each.rules)
        said = f"    rules=[\n{rules}    ],\n" if rules else ""
        both = "".join(f"    {side},\n" for side in sides)
        steps.append(f"{'~' if each.inverted else ''}cs.derive(\n{both}{said})")
    whole = steps[0] if len(steps) == 1 else " >> ".join(steps)
    dims = ", ".join(f"{name}={size}" for name, size in lens.dims.items())
    if dims:
        whole = f"({whole}).bind({dims})"
    name = f"{lens.source.name} -> {lens.view.name}"
    text = around.text([*blocks, "\n".join([*ends, f"lens = {whole}"])], name)
    found = _verify(text, dict(zip(names, tables, strict=True)))
    if sorted(str(found["lens"]).splitlines()) != sorted(str(lens).splitlines()):
        fault = Mismatch(name, "declaration", str(lens), str(found["lens"]), "please report it")
        raise SchemaError(f"{name} cannot be written", [fault])
    return text


def _rule_text(rule: Rule, imports: Imports) -> str:
    """A rule as it is written in a text that calls the library ``cs``."""
    text = f"cs.{rule}"
    default = getattr(rule, "default", 0)
    if default is None and text.endswith(", own)"):
        text = text.removesuffix("own)") + "cs.own)"
    elif isinstance(default, (FreshKey, ConstantKey)):
        before, found, after = text.rpartition(f", {default}")
        text = f"{before}, cs.{default}{after}" if found else text
    path: LogicalPath = getattr(rule, "path", ())
    for segment in path[:1]:
        if isinstance(segment, VariableKind) and isinstance(segment.kind, type):
            text = text.replace(repr(str(segment)), imports.spell(segment.kind), 1)
    # Strings stand in double quotes, as in the rest of the text, where none is in them.
    return re.sub(r"'([^'\"\\\\]*)'", r'"\1"', text) if '"' not in text else text


def _verify_known(table: Layout, tx: str) -> None:
    """Raises where a layout was made for a transformation that nobody has written."""
    if table.initial is not None and not tx:
        fault = Mismatch(
            "tx",
            "argument",
            "the transformation of the optimizer, as it is written",
            "none",
            'pass tx="optax.adamw(3e-4)"',
        )
        raise SchemaError(f"{table.name} starts an optimizer that is not told", [fault])


def _verify(text: str, tables: Mapping[str, Layout]) -> dict[str, Any]:
    """What a text defines.

    Raises:
        SchemaError: A layout is not what it should be: what classes cannot declare is nowhere left out in silence.
    """
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who made the lens was warned
        exec(compile(text, "<to_source>", "exec"), found)
    for name, table in tables.items():
        faults = [*_differences(table, found[name])]
        if faults:
            raise SchemaError(f"{table.name} cannot be written as classes", faults)
    return found


def _differences(table: Layout, made: Layout) -> Iterator[Mismatch]:
    """In what a layout that was made of a text differs from the one that it was written for."""
    rows = (table.rows, made.rows) if table.rows != made.rows else ((), ())
    known = {row.path: row for row in rows[1]}
    for row in rows[0]:
        other = known.pop(row.path, None)
        if other != row:
            hint = "declare it by hand; please report it, with the layout"
            both = (str(row), "nothing") if other is None else _apart(row, other)
            yield Mismatch("/".join(row.path), "declaration", *both, hint)
    for path, row in known.items():
        yield Mismatch("/".join(path), "declaration", "nothing", str(row))
    # Data of a container that no leaf tells is in no text.
    nodes = [{(node.key, node.type) for node in one.nodes} for one in (table, made)]
    for key, kind in sorted(nodes[0] ^ nodes[1], key=str):
        where = paths.format_path(key)
        both = (f"a {kind.__name__}", "nothing")
        yield Mismatch(where, "container", *(both if (key, kind) in nodes[0] else both[::-1]))
    for name in ("name", "container", "homes", "sizes", "series", "parts", "states"):
        before, after = getattr(table, name), getattr(made, name)
        if before != after:
            yield Mismatch(name, "declaration", str(before), str(after))


def _apart(row: Row, other: Row) -> tuple[str, str]:
    """What one row has and another has otherwise."""
    names = [
        f.name for f in dataclasses.fields(row) if getattr(row, f.name) != getattr(other, f.name)
    ]
    first, second = (
        ", ".join(f"{name}={getattr(one, name)!r}" for name in names) for one in (row, other)
    )
    return first, second

"""A layout or a lens as Python text, which is verified to say what it was written for.

``layout_text`` writes the classes of each layout. The text is executed once, before anyone gets it, and what it makes
is held against what was given: what classes cannot declare is told, and nowhere left out.
"""

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
from ckpt_schema._lens.ancestry import Derivation
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
            \"\"\"6 leaves, 120 parameters.\"\"\"
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
    pairs = [as_read((step.source, step.view), step.rules) for step in lens.derivations]
    # A layout between two steps of a composed lens is the view of one and the source of the next: it is written once.
    tables: list[Layout] = []
    for pair in pairs:
        for table in pair:
            if table not in tables:
                tables.append(table)
    names = ["source", "view"] if len(tables) == 2 else [f"layout_{n}" for n in range(len(tables))]
    sizes = [f"{name.upper()}_SIZES" for name in names]
    around.taken.update(names, sizes)
    blocks: list[str] = []
    ends: list[str] = []
    for table, name, sizes_name in zip(tables, names, sizes, strict=True):
        _verify_known(table, around.tx)
        writer = LayoutText(table, around)
        blocks += writer.classes()
        ends += writer.last_lines(name, sizes_name)
    steps: list[str] = []
    for step, (source, view) in zip(lens.derivations, pairs, strict=True):
        sides = names[tables.index(source)], names[tables.index(view)]
        steps.append(_step_text(step, sides, around.imports))
    whole = " >> ".join(steps)
    dims = ", ".join([f"{name}={size}" for name, size in lens.dims.items()])
    if dims:
        whole = f"({whole}).bind({dims})"
    name = f"{lens.source.name} -> {lens.view.name}"
    text = around.text([*blocks, "\n".join([*ends, f"lens = {whole}"])], name)
    defined = _verify(text, dict(zip(names, tables, strict=True)))
    # Equal cells in another order are the same lens.
    if sorted(str(defined["lens"]).splitlines()) != sorted(str(lens).splitlines()):
        fault = Mismatch(name, "declaration", str(lens), str(defined["lens"]), "please report it")
        raise SchemaError(f"{name} cannot be written", [fault])
    return text


def _step_text(step: Derivation, sides: tuple[str, str], imports: Imports) -> str:
    """One derivation of a lens: ``cs.derive(source, view, rules=[...])``, a line for each argument and rule.

    Args:
        step: The derivation.
        sides: What its layouts are called.
        imports: Where the classes that rules name are noted.
    """
    lines = [f"{'~' if step.inverted else ''}cs.derive("]
    for side in sides:
        lines.append(f"    {side},")
    if step.rules:
        lines.append("    rules=[")
        for rule in step.rules:
            lines.append(f"        {_rule_text(rule, imports)},")
        lines.append("    ],")
    return "\n".join([*lines, ")"])


def _rule_text(rule: Rule, imports: Imports) -> str:
    """A rule as it is written in a text that calls the library ``cs``."""
    text = f"cs.{rule}"
    # Not every rule has a default or a path; None is a default, that of the tree's own values.
    default = getattr(rule, "default", 0)
    if default is None and text.endswith(", own)"):
        text = text.removesuffix("own)") + "cs.own)"
    elif isinstance(default, (FreshKey, ConstantKey)):
        before, comma, after = text.rpartition(f", {default}")
        text = f"{before}, cs.{default}{after}" if comma else text
    # A class that a path begins with, `nnx.BatchStat`, is written as the text imports it.
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
    defined: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who made the lens was warned
        exec(compile(text, "<to_source>", "exec"), defined)
    for name, table in tables.items():
        faults = [*_differences(table, defined[name])]
        if faults:
            raise SchemaError(f"{table.name} cannot be written as classes", faults)
    return defined


def _differences(table: Layout, made: Layout) -> Iterator[Mismatch]:
    """In what a layout that was made of a text differs from the one that it was written for."""
    # Equal as a whole they mostly are, and that is told faster than row by row.
    if table.rows != made.rows:
        yield from _unlike_rows(table, made)
    # Data of a container that no leaf tells is in no text: keys and types alone are compared.
    nodes = {(node.key, node.type) for node in table.nodes}
    made_nodes = {(node.key, node.type) for node in made.nodes}
    for key, kind in sorted(nodes ^ made_nodes, key=str):
        both = f"a {kind.__name__}", "nothing"
        expected, found = both if (key, kind) in nodes else both[::-1]
        yield Mismatch(paths.format_path(key), "container", expected, found)
    for name in ("name", "container", "homes", "sizes", "series", "parts", "states"):
        before, after = getattr(table, name), getattr(made, name)
        if before != after:
            yield Mismatch(name, "declaration", str(before), str(after))


def _unlike_rows(table: Layout, made: Layout) -> Iterator[Mismatch]:
    """The rows of two layouts that differ, or that one of them has alone; of equal ones, their order is no matter."""
    left = {row.path: row for row in made.rows}
    for row in table.rows:
        other = left.pop(row.path, None)
        if other != row:
            hint = "declare it by hand; please report it, with the layout"
            both = (str(row), "nothing") if other is None else _apart(row, other)
            yield Mismatch("/".join(row.path), "declaration", *both, hint)
    for path, row in left.items():
        yield Mismatch("/".join(path), "declaration", "nothing", str(row))


def _apart(row: Row, other: Row) -> tuple[str, str]:
    """What one row has and another has otherwise."""
    first: list[str] = []
    second: list[str] = []
    for field in dataclasses.fields(row):
        here, there = getattr(row, field.name), getattr(other, field.name)
        if here != there:
            first.append(f"{field.name}={here!r}")
            second.append(f"{field.name}={there!r}")
    return ", ".join(first), ", ".join(second)

"""A layout or a lens as Python text, which is verified to say what it was written for.

``layout_text`` writes the classes of each layout. The text is executed once, before anyone gets it, and what it makes
is held against what was given: what classes cannot declare is told, and nowhere left out.
"""

from __future__ import annotations

import dataclasses
import operator
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.immutable import replaced
from ckpt_schema._layouts.leaves import ConstantKey, FreshKey, Init
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.schema import layout as layout_of
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.ancestry import Derivation
from ckpt_schema._lens.derive.spelled_rows import as_read
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Rule, VariableKind
from ckpt_schema._messages.text import counted, shown
from ckpt_schema._source.importing import Imports
from ckpt_schema._source.layout_text import Around, LayoutText
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["to_source"]

_HINT = 'pass tx="optax.adamw(3e-4)"; of two optimizers, tx=("run.source_tx", "run.view_tx")'


def to_source(given: Layout | type[Schema] | Lens, *, tx: str | tuple[str, ...] = "") -> str:
    """A layout or a lens as Python: the classes that declare it, in a text that can be imported.

    A layer of Flax is its block, `ckpt_schema.blocks`, where that says just what is there. What is equal is one class, and
    layers are one list or one stack. Dims of which numbers alone are known get names, one
    for each size: the text says what is to be doubted. Executed, it gives the same layout, under the name ``layout``.

    Of a lens both layouts are written, and the rules: executed, the text gives an equal lens under the name ``lens``.

    Args:
        given: A layout, such as `infer` reads off a tree, a schema, or a lens.
        tx: How the transformation of its optimizer is written, ``"optax.adamw(3e-4)"``. Without it what the optimizer keeps
            is written out, see `kept`. Of a lens whose sides have two optimizers, one for each side,
            ``("run.source_tx", "run.view_tx")``; an empty text for a side whose state is to be written out.

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
    if isinstance(given, Lens):
        return _lens_text(given, tx)
    table = layout_of(given)
    chains = _chains({"layout": table}, tx)
    around = Around(chains=chains.expressions)
    writer = LayoutText(table, around, chains.called["layout"])
    text = around.text([*writer.classes(), "\n".join(writer.last_lines())], table.name)
    _verify(text, {"layout": table}, chains)
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class _Chains:
    """How the transformations of layouts are written.

    Attributes:
        called: What the text calls that of each layout, by the name of the layout; empty where none is told.
        expressions: What stands for each such name.
    """

    called: Mapping[str, str]
    expressions: dict[str, str]

    def said_of(self, name: str) -> str:
        """The expression for a layout; empty where none is told."""
        return self.expressions.get(self.called[name], "")


def _chains(tables: Mapping[str, Layout], tx: object) -> _Chains:
    """The transformations of layouts, by what the text calls these.

    Raises:
        SchemaError: There is not one for each, or a layout was made for a transformation that nobody has written.
    """
    names = ", ".join(table.name for table in tables.values())
    several = [tx] * len(tables)
    if isinstance(tx, (tuple, list)):
        given: list[object] = [*tx]
        several = given
    texts = [text for text in several if isinstance(text, str)]
    if len(texts) < len(several) or len(several) != len(tables):
        expected = f"a text, or one for each of {len(tables)} layouts, {names}"
        if len(tables) == 1:
            expected = "a text"
        fault = Mismatch("tx", "argument", expected, shown(tx), _HINT)
        raise SchemaError(f"the optimizers of {names} are not told", [fault])
    faults: list[Mismatch] = []
    for table, text in zip(tables.values(), texts, strict=True):
        if table.initial is not None and not text:
            expected = f"the transformation of the optimizer of {table.name}, as it is written"
            faults.append(Mismatch("tx", "argument", expected, "none", _HINT))
    if faults:
        raise SchemaError(f"{names}: an optimizer that is to start is not told", faults)
    # Of one for all it is `tx`, and else `source_tx` and `view_tx`.
    is_one = len(set(filter(None, texts))) == 1
    called: dict[str, str] = {}
    expressions: dict[str, str] = {}
    for name, text in zip(tables, texts, strict=True):
        called[name] = ("tx" if is_one else f"{name}_tx") if text else ""
        if text:
            expressions[called[name]] = text
    return _Chains(called, expressions)


def _lens_text(lens: Lens, tx: object) -> str:
    """The text of a lens: its layouts, and how it was derived from them."""
    pairs: list[tuple[Layout, Layout]] = []
    for step in lens.derivations:
        before, after = as_read((step.source, step.view), step.rules)
        pairs.append((_without_starts(before), _without_starts(after)))
    # A layout between two steps of a composed lens is the view of one and the source of the next: it is written once.
    tables: list[Layout] = []
    for pair in pairs:
        for table in pair:
            if table not in tables:
                tables.append(table)
    names = ["source", "view"] if len(tables) == 2 else [f"layout_{n}" for n in range(len(tables))]
    sizes = [f"{name.upper()}_SIZES" for name in names]
    named = dict(zip(names, tables, strict=True))
    chains = _chains(named, tx)
    around = Around(chains=chains.expressions)
    around.taken.update(names, sizes, chains.expressions)
    blocks: list[str] = []
    ends: list[str] = []
    for table, name, sizes_name in zip(tables, names, sizes, strict=True):
        writer = LayoutText(table, around, chains.called[name])
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
    defined = _verify(text, named, chains)
    # Equal cells in another order are the same lens.
    made: Lens = defined["lens"]
    if sorted(made.in_full().splitlines()) != sorted(lens.in_full().splitlines()):
        fault = Mismatch(name, "declaration", str(lens), str(made), "please report it")
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


def _verify(text: str, tables: Mapping[str, Layout], chains: _Chains) -> dict[str, Any]:
    """What a text defines.

    Args:
        text: The text.
        tables: Its layouts by their names in it.
        chains: How their optimizers are written.

    Raises:
        SchemaError: A layout is not what it should be: what classes cannot declare is nowhere left out in silence.
    """
    defined: dict[str, Any] = {}
    failed: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who made the lens was warned
        try:
            exec(compile(text, "<to_source>", "exec"), defined)
        except Exception as error:
            failed = error
    faults: list[Mismatch] = []
    wrong: list[str] = []
    for name, table in tables.items():
        if name in defined:
            both = _without_starts(table), _without_starts(defined[name])
            found = [*_unlike_layouts(*both, chains, name)]
            faults += found
            wrong += [table.name] * bool(found)
    # A lens of wrong layouts is not derived: what is wrong with these is the cause.
    if faults:
        raise SchemaError(f"{' and '.join(wrong)} cannot be written as classes", faults)
    if failed is not None:
        for called, expression in chains.expressions.items():
            # It is what is defined first.
            if called not in defined:
                found = f"{expression}, which raises {type(failed).__name__}: {failed}"
                faults = [Mismatch("tx", "argument", "a transformation", found, _HINT)]
                raise SchemaError("the text of a transformation does not run", faults) from failed
        raise failed
    return defined


def _unlike_layouts(table: Layout, made: Layout, chains: _Chains, name: str) -> Iterator[Mismatch]:
    """What is wrong with a layout that was made of a text; only of its optimizer, where that is another one."""
    said = chains.said_of(name)
    # Of other rows of the model all that follows them is other, too.
    if said and _model_rows(table) == _model_rows(made) and _has_other_state(table, made):
        hint = "pass the one that it was made with"
        if len(chains.called) > 1 and len(chains.expressions) == 1:
            several = ", ".join(f'"run.{name}_tx"' for name in chains.called)
            hint = f"the sides have several optimizers: pass one for each, tx=({several})"
        expected, found = _kept_words(table, made)
        expected = f"the optimizer of {table.name}, which keeps {expected}"
        yield Mismatch("tx", "argument", expected, f"{said}, which keeps {found}", hint)
        return
    yield from _differences(table, made)


def _has_other_state(table: Layout, made: Layout) -> bool:
    """Whether the optimizers of two layouts keep other things."""
    return table.parts != made.parts or _state_rows(table) != _state_rows(made)


def _without_starts(table: Layout) -> Layout:
    """A layout without what rules say of its optimizer: which leaves start anew, which the rules in a text say again."""
    if not any(row.optimizer for row in table.rows):
        return table
    rows: list[Row] = []
    for row in table.rows:
        starts = row.optimizer and isinstance(row.default, Init)
        rows.append(replaced(row, default=None) if starts else row)
    return dataclasses.replace(table, rows=tuple(rows))


def _model_rows(table: Layout) -> dict[LogicalPath, Row]:
    return {row.path: row for row in table.rows if not row.optimizer}


def _state_rows(table: Layout) -> dict[LogicalPath, Row]:
    return {row.path: row for row in table.rows if row.optimizer}


def _kept_words(table: Layout, made: Layout) -> tuple[str, str]:
    """What the optimizers of two layouts keep, in words: their parts, or where these are alike, a leaf that is not."""
    parts: list[str] = []
    for each in (table, made):
        names = [part.type.__name__ for part in each.parts]
        parts.append(", ".join(names) or counted(len(_state_rows(each)), "leaf", "leaves"))
    if parts[0] != parts[1]:
        return parts[0], parts[1]
    before, after = _state_rows(table), _state_rows(made)
    for path in {**before, **after}:
        if before.get(path) != after.get(path):
            where = "/".join(path)
            one, other = before.get(path), after.get(path)
            return (
                f"no {where}" if one is None else f"{where}, {one.stored}",
                f"no {where}" if other is None else f"{where}, {other.stored}",
            )
    return parts[0], parts[1]


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
    # All that a row says, as rows themselves are compared, in half of the time.
    said = operator.attrgetter(*[field.name for field in dataclasses.fields(Row)])
    for row in table.rows:
        other = left.pop(row.path, None)
        if other is None or said(other) != said(row):
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

"""The commands: each prints its result, or the JSON of it, and says by a number how it went.

`cli` calls them with the words of the command line, ``answer_show`` for ``ckpt-schema show``. Errors that they raise are
printed there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckpt_schema._breaking.breaking import breaking
from ckpt_schema._breaking.verdicts import RuleName, Verdict
from ckpt_schema._commands.device_layouts import shardings_of
from ckpt_schema._commands.operands import (
    Operand,
    is_there,
    made_mesh,
    read_locked,
    read_newest,
    read_operand,
    write_file,
    wrong_operand,
)
from ckpt_schema._diff.comparing import diff
from ckpt_schema._json.json_text import kind_of_text, lock_text
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.leaf_trees import tree_picture
from ckpt_schema._layouts.paths import NaturalOrder, format_path
from ckpt_schema._layouts.row_sizes import RowSize, row_size, summed
from ckpt_schema._layouts.table import Layout, Row, shown_leaves
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.registry import Registry
from ckpt_schema._messages.pictures import put
from ckpt_schema._messages.text import columns, counted, in_bytes
from ckpt_schema._source.source import to_source
from ckpt_schema._trees.abstract_states import abstract
from ckpt_schema._trees.conformance import check
from ckpt_schema.errors import Mismatch
from ckpt_schema.orbax._adapt import adapt
from ckpt_schema.orbax._conversion import Conversion
from ckpt_schema.orbax._convert import convert
from ckpt_schema.orbax._cost import dry_run

__all__ = [
    "answer_breaking",
    "answer_check",
    "answer_convert",
    "answer_diff",
    "answer_explain",
    "answer_infer",
    "answer_lock",
    "answer_plan",
    "answer_show",
]

OK, DIFFERS = 0, 1

_STEPS = 10  # steps of a run that are named in a title


def answer_show(
    given: str, item: str | None, at: str | None, scan: Mapping[str, int], *, as_json: bool
) -> int:
    """Prints what a checkpoint, a tree or a layout holds: each leaf with its dtype, its shape and its bytes."""
    operand = read_newest(given, item, at)
    if isinstance(operand.value, Lens):
        put(operand.value, operand.value.in_full())
        return OK
    table = operand.layout(scan)
    # As a person counts: layer 10 after layer 9.
    order = NaturalOrder()
    rows = sorted(table.rows, key=lambda row: order(format_path(row.key)))
    sizes = [row_size(row.stored, row.unrolled) for row in rows]
    whole = summed(sizes)
    if as_json:
        rows_json = [_row_json(row, size) for row, size in zip(rows, sizes, strict=True)]
        _print_json({**operand.notes, **dataclasses.asdict(whole), "rows": rows_json})
        return OK
    title = _show_title(given, operand.notes)
    # A pipe gets plain lines, for other tools to read; a person at a terminal gets a tree.
    if not sys.stdout.isatty():
        # Of a layout whose dims have no sizes nobody can say how many bytes it is.
        lines = [title] if whole.bytes is None else [title, str(whole)]
        print("\n".join([*lines, *_show_lines(rows, sizes)]))
        return OK
    shardings = shardings_of(operand, table)
    facts = [str(whole), f"sharded over {shardings.mesh}" if shardings.mesh else ""]
    shown = shown_leaves(dataclasses.replace(table, rows=tuple(rows)), shardings.texts)
    title = "\n".join([title, ", ".join(filter(None, facts))]).strip()
    put(tree_picture(title, shown)._replace(title=title))
    return OK


def _show_title(given: str, notes: Mapping[str, Any]) -> str:
    """Over what is shown: ``/runs/base/4: item state, step 4`` of a checkpoint, else what was given.

    Where that is the folder of a run, a line before that says so.
    """
    words: list[str] = []
    for word, value in notes.items():
        if word not in ("path", "steps"):
            words.append(f"{word} {_words(value)}")
    title = f"{notes.get('path', given)}: {', '.join(words)}" if words else given
    steps: list[str] = notes.get("steps", [])
    if not steps:
        return title
    several = ", ".join(["..."] * (len(steps) > _STEPS) + steps[-_STEPS:])
    told = f"{given} is the folder of a run with {counted(len(steps), 'checkpoint')}: {several}"
    return f"{told}\nThe last one is shown; name another one to see it.\n{title}"


def _show_lines(rows: Sequence[Row], sizes: Sequence[RowSize]) -> list[str]:
    """A line for each row."""
    cells: list[tuple[str, ...]] = []
    for row, size in zip(rows, sizes, strict=True):
        kind = leaves.kind_name(row.kind)
        cells.append((format_path(row.key), str(row.stored), *_size_cells(size), kind))
    return columns(cells)


def answer_infer(
    given: str,
    output: str | None,
    item: str | None,
    at: str | None,
    scan: Mapping[str, int],
    lists: Sequence[str] | None,
) -> int:
    """Writes the classes that declare the layout of a checkpoint or a tree."""
    text = to_source(read_operand(given, item, at).layout(scan, lists))
    if output is None:
        print(text, end="")
        return OK
    # The text is for a person to go on with: what they have written is not written over.
    if is_there(output):
        hint = "name another file, or move it away"
        raise wrong_operand(output, "a file that is not there yet", "one that is", hint)
    write_file(output, text)
    return OK


def answer_lock(
    given: str,
    output: str | None,
    item: str | None,
    at: str | None,
    scan: Mapping[str, int],
    *,
    check: bool,
) -> int:
    """Writes the layout of a checkpoint or a tree as the text that git keeps."""
    text = lock_text(read_operand(given, item, at).layout(scan))
    if output is None:
        print(text, end="")
        return OK
    if is_there(output) and not Path(output).is_file():
        raise wrong_operand(output, "a file", "a folder, or a device")
    before = Path(output).read_bytes() if is_there(output) else None
    # In CI: git has the file, and it has to be the layout that the code declares now.
    if check:
        return OK if before == text.encode() else DIFFERS
    # An older lock is written over; a mistyped name of another file is not.
    if before is not None and kind_of_text(before.decode(errors="replace")) is not Layout:
        hint = "name another file, or move it away"
        raise wrong_operand(output, "no file yet, or one that lock wrote", "another file", hint)
    write_file(output, text)
    return OK


def answer_check(
    declared: str, given: str, item: str | None, at: str | None, *, as_json: bool
) -> int:
    """Prints all that is wrong with a checkpoint or a tree; says so by its number."""
    schema, tree = read_operand(declared), read_operand(given, item, at)
    if not schema.is_declared:
        raise wrong_operand(declared, "a layout or a schema", f"a {type(schema.value).__name__}")
    if tree.is_declared or isinstance(tree.value, Lens):
        raise wrong_operand(given, "a checkpoint or a tree", "a declaration")
    report = check(schema.value, tree.value)
    if as_json:
        faults = [_fault_json(fault) for fault in report.mismatches]
        _print_json({"ok": report.ok, "dims": dict(report.dims), "faults": faults})
    else:
        put(report, report.in_full())
    return OK if report.ok else DIFFERS


def answer_explain(given: str, view: str | None, *, as_json: bool) -> int:
    """Prints where a lens brings each leaf, and what is edited on the way."""
    lens = _lens(read_operand(given), view)
    # Other programs read a pipe by lines: one for each leaf, however wide it is.
    if not as_json:
        put(lens, lens.in_full())
        return OK
    rules: list[str] = []
    for step in lens.derivations:
        rules += map(str, step.rules)
    # The first line is a title. The others are in columns for the eye; in JSON one space will do.
    lines = [" ".join(line.split()) for line in lens.in_full().splitlines()[1:]]
    names = {"source": lens.source.name, "view": lens.view.name}
    _print_json({**names, "dims": dict(lens.dims), "rules": rules, "leaves": lines})
    return OK


def answer_breaking(
    given: str,
    against: str,
    lens: str | None,
    rules: Sequence[RuleName],
    lock: str,
    *,
    as_json: bool,
) -> int:
    """Prints which rules a change breaks, and by which rows; says so by its number."""
    new = read_operand(given)
    if isinstance(new.value, Lens):
        raise wrong_operand(given, "a layout or a tree", "a lens")
    # The old file may name types that only the new side can tell what they are.
    old = read_locked(against, lock, [new.layout()])
    between = None if lens is None else _lens(read_operand(lens), None)
    report = breaking(_side(old), _side(new), between, rules=rules)
    # On the command line, both sides and the lens are called as they were typed.
    report = report.called((old.text, new.text), "" if lens is None else lens.rpartition(":")[2])
    if as_json:
        verdicts = [_verdict_json(verdict) for verdict in report.verdicts]
        sides = {"old": old.text, "new": new.text}
        _print_json({"passes": report.passes, **sides, "rules": verdicts})
    else:
        put(report, report.in_full())
    return OK if report.passes else DIFFERS


def answer_plan(
    given: str,
    target: str,
    lens: str | None,
    item: str | None,
    at: str | None,
    mesh: Sequence[tuple[str, int]],
    processes: int | None,
    *,
    as_json: bool,
) -> int:
    """Prints what a restore would cost, of which all is done but the reading."""
    versions = None if lens is None else read_operand(lens)
    between = None if versions is None else versions.value
    if versions is not None and not isinstance(between, Registry):
        between = _lens(versions, None)
    # The target is made, and its restore planned, on the mesh.
    with made_mesh(mesh) as devices:
        operand = read_operand(target, mesh=devices)
        wanted = abstract(operand.value) if operand.is_declared else operand.value
        cost = dry_run(given, wanted, between, item=item, at=at, processes=processes)
    if as_json:
        numbers = ("leaves", "stored", "result", "peak", "read", "read_at_most")
        _print_json({name: getattr(cost, name) for name in numbers})
    else:
        put(cost)
    return OK


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    """What is found of one rule, as JSON."""
    fields: dict[str, Any] = {
        "rule": verdict.rule,
        "breaks": verdict.breaks,
        "passes": verdict.passes,
        "follows": verdict.follows,
        "faults": [_fault_json(fault) for fault in verdict.faults],
    }
    # A lens is named only where what is broken has one to migrate it.
    lens = verdict.migration
    if lens is not None:
        fields["lens"] = {
            "name": lens.name,
            "carried": lens.carried,
            "leaves": lens.leaves,
            "exact": lens.is_exact,
            "faults": [_fault_json(fault) for fault in lens.faults],
        }
    return fields


def answer_diff(given: str, other: str, lens: str | None, *, values: bool, as_json: bool) -> int:
    """Prints what differs between two sides; says so by its number."""
    old, new = read_operand(given), read_operand(other)
    between = None if lens is None else _lens(read_operand(lens), None)
    difference = diff(_side(old), _side(new), lens=between, values=values)
    if as_json:
        fields = dataclasses.asdict(difference)
        # Rules are written as in Python, so that one can be pasted.
        rules = [str(rule) for rule in difference.rules]
        _print_json({"same": difference.same, **fields, "rules": rules})
    else:
        put(difference, difference.in_full())
    return OK if difference.same else DIFFERS


def answer_convert(
    given: str,
    new: str,
    layout: str,
    item: str | None,
    at: str | None,
    to: str | None,
    *,
    verify: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Makes a checkpoint of another layout, and prints what was done; before that, what is to be done."""
    operand = read_operand(layout)
    if operand.is_declared:
        hint = "give module:attr of a lens, of a registry, or of a tree of the new layout"
        raise wrong_operand(layout, "a lens, a registry or a tree", "a declaration", hint)
    version = None if to is None else read_operand(to).value
    run = functools.partial(convert, given, new, operand.value, item=item, at=at, to=version)
    # All faults are told before a byte is written.
    planned = run(dry_run=True, timed=True)
    done = planned
    if not dry_run:
        put(_plan(planned), file=sys.stderr)
        # A log would be filled by a line that is written over and over.
        done = run(verify=verify, progress=_progress if sys.stderr.isatty() else None)
    if as_json:
        _print_json(dataclasses.asdict(done))
    else:
        put(_plan(planned) if dry_run else done)
    return OK


def _plan(planned: Conversion) -> str:
    """What is to be done, with the leaves that are not linked, those of a list in one line."""
    lines = [str(planned)]
    # Steps that go the same way are told together: a run has few versions and many steps.
    ways: dict[tuple[str, ...], list[str]] = {}
    for name, step in {"": planned, **planned.steps}.items():
        if step.versions:
            ways.setdefault(tuple(step.versions), []).append(name)
    for versions, names in ways.items():
        lines.append(f"  {', '.join(filter(None, names)) or 'it'} is of {' -> '.join(versions)}")
    # By what paths are without their numbers: `layers_#/kernel`.
    if planned.seconds is not None:
        lines.append(f"  about {math.ceil(planned.seconds):,} s, at {planned.sample}")
    alike: dict[str, list[str]] = {}
    for path in planned.rewritten:
        alike.setdefault(re.sub(r"\d+", "#", path), []).append(path)
    for several in alike.values():
        more = f"  and {len(several) - 1} like it" if several[1:] else ""
        lines.append(f"  written anew: {several[0]}{more}")
    return "\n".join(lines)


def _progress(done: int, whole: int) -> None:
    """Shows how many bytes are written, each time over what it showed before."""
    end = "\n" if done == whole else ""
    print(f"\r{in_bytes(done)} of {in_bytes(whole)}", end=end, file=sys.stderr, flush=True)


def _side(operand: Operand) -> Any:
    """An operand as the library takes it: a checkpoint by its path, for it reads what it needs."""
    return operand.text if operand.stored else operand.value


def _lens(operand: Operand, view: str | None) -> Lens:
    """The lens that was meant: one that has a name, or that from one side to another."""
    if view is not None:
        return adapt(_side(operand), _side(read_operand(view)))
    if not isinstance(operand.value, Lens):
        hint = "give module:attr of a lens, or two sides to adapt"
        if isinstance(operand.value, Registry):
            hint = "give module:attr of one of its lenses, registry.lens(V1, V3)"
        raise wrong_operand(operand.text, "a lens", f"a {type(operand.value).__name__}", hint)
    return operand.value


def _size_cells(size: RowSize) -> tuple[str, str]:
    """How many leaves a row has, where several, and how many bytes, where that is known."""
    several = "" if size.leaves in (None, 1) else f"x {size.leaves}"
    return several, "" if size.bytes is None else in_bytes(size.bytes)


def _words(value: Any) -> str:
    """A note on a checkpoint as a title has it."""
    return ", ".join(value) if isinstance(value, list) else str(value)


def _row_json(row: Row, size: RowSize) -> dict[str, Any]:
    """One row as JSON; its shape in numbers where all are known, and as it is declared where not."""
    fields = {
        "key": format_path(row.key),
        "path": "/".join(row.path),
        "dtype": row.leaf.dtype,
        "shape": [dims_.format_dim(dim) for dim in row.dims],
        "kind": leaves.kind_name(row.kind) or None,
        "leaves": size.leaves,
        "bytes": size.bytes,
    }
    shape = dims_.sizes_of(row.dims, {})
    return fields if shape is None else {**fields, "shape": list(shape)}


def _fault_json(fault: Mismatch) -> dict[str, str]:
    """A fault as JSON."""
    return {
        "path": fault.path,
        "kind": fault.kind,
        "expected": fault.expected,
        "found": fault.found,
        "hint": fault.hint,
    }


def _print_json(value: Any) -> None:
    """Prints a result for other programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))

"""The commands: each prints its result, or the JSON of it, and says by a number how it went."""

from __future__ import annotations

import dataclasses
import functools
import json
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
    made_mesh,
    read_locked,
    read_operand,
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
from ckpt_schema._messages.pictures import put
from ckpt_schema._messages.text import columns, in_bytes
from ckpt_schema._source.source import to_source
from ckpt_schema._trees.abstract_states import abstract
from ckpt_schema._trees.conformance import check
from ckpt_schema.errors import Mismatch
from ckpt_schema.orbax._adapt import adapt
from ckpt_schema.orbax._convert import convert
from ckpt_schema.orbax._cost import dry_run
from ckpt_schema.orbax._rewriting import Conversion

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


def answer_show(
    given: str, item: str | None, at: str | None, scan: Mapping[str, int], *, as_json: bool
) -> int:
    """Prints what a checkpoint, a tree or a layout holds: each leaf with its dtype, its shape and its bytes."""
    operand = read_operand(given, item, at)
    if isinstance(operand.value, Lens):
        put(operand.value)
        return OK
    table = operand.layout(scan)
    order = NaturalOrder()
    rows = sorted(table.rows, key=lambda row: order(format_path(row.key)))
    sizes = [row_size(row.stored, row.unrolled) for row in rows]
    whole = summed(sizes)
    if as_json:
        found = [_row_json(row, size) for row, size in zip(rows, sizes, strict=True)]
        _print_json({**operand.notes, **dataclasses.asdict(whole), "rows": found})
        return OK
    notes = [f"{word} {_words(value)}" for word, value in operand.notes.items() if word != "path"]
    title = ": ".join([str(operand.notes.get("path", given)), ", ".join(notes)]) if notes else given
    if not sys.stdout.isatty():
        lines = [title] if whole.bytes is None else [title, str(whole)]
        print("\n".join([*lines, *_show_lines(rows, sizes)]))
        return OK
    lying = shardings_of(operand, table)
    told = [str(whole), f"sharded over {lying.mesh}" if lying.mesh else ""]
    shown = shown_leaves(dataclasses.replace(table, rows=tuple(rows)), lying.texts)
    title = "\n".join([title, ", ".join(filter(None, told))]).strip()
    put(tree_picture(title, shown)._replace(title=title))
    return OK


def _show_lines(rows: Sequence[Row], sizes: Sequence[RowSize]) -> list[str]:
    """A line for each row."""
    cells = [
        (format_path(row.key), str(row.stored), *_size_cells(size), leaves.kind_name(row.kind))
        for row, size in zip(rows, sizes, strict=True)
    ]
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
    file = Path(output)
    if file.exists():
        hint = "name another file, or move it away"
        raise wrong_operand(output, "a file that is not there yet", "one that is", hint)
    file.write_text(text)
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
    file = Path(output)
    before = file.read_bytes() if file.exists() else None
    if check:
        return OK if before == text.encode() else DIFFERS
    if before is not None and kind_of_text(before.decode(errors="replace")) is not Layout:
        hint = "name another file, or move it away"
        raise wrong_operand(output, "no file yet, or one that lock wrote", "another file", hint)
    file.write_text(text)
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
    if not as_json:
        put(lens)
        return OK
    rules = [str(rule) for each in lens.derivations for rule in each.rules]
    lines = [" ".join(line.split()) for line in str(lens).splitlines()[1:]]
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
    old = read_locked(against, lock, [new.layout()])
    between = None if lens is None else _lens(read_operand(lens), None)
    sides = [side.text if side.stored else side.value for side in (old, new)]
    found = breaking(sides[0], sides[1], between, rules=rules)
    found = found.called((old.text, new.text), "" if lens is None else lens.rpartition(":")[2])
    if as_json:
        told = [_verdict_json(verdict) for verdict in found.verdicts]
        _print_json({"passes": found.passes, "old": old.text, "new": new.text, "rules": told})
    else:
        put(found, found.in_full())
    return OK if found.passes else DIFFERS


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
    between = None if lens is None else _lens(read_operand(lens), None)
    with made_mesh(mesh) as devices:
        operand = read_operand(target, mesh=devices)
        wanted = abstract(operand.value) if operand.is_declared else operand.value
        cost = dry_run(given, wanted, between, item=item, at=at, processes=processes)
    if as_json:
        told = {name: getattr(cost, name) for name in ("leaves", "stored", "result", "peak")}
        _print_json({**told, "read": cost.read, "read_at_most": cost.read_at_most})
    else:
        put(cost)
    return OK


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    lens = verdict.migration
    told: dict[str, Any] = {
        "rule": verdict.rule,
        "breaks": verdict.breaks,
        "passes": verdict.passes,
        "follows": verdict.follows,
        "faults": [_fault_json(fault) for fault in verdict.faults],
    }
    if lens is None:
        return told
    faults = [_fault_json(fault) for fault in lens.faults]
    said = {"carried": lens.carried, "leaves": lens.leaves, "exact": lens.is_exact}
    return {**told, "lens": {"name": lens.name, **said, "faults": faults}}


def answer_diff(given: str, other: str, lens: str | None, *, values: bool, as_json: bool) -> int:
    """Prints what differs between two sides; says so by its number."""
    sides = [read_operand(side) for side in (given, other)]
    between = None if lens is None else _lens(read_operand(lens), None)
    found = diff(
        *(side.text if side.stored else side.value for side in sides), lens=between, values=values
    )
    if as_json:
        told = dataclasses.asdict(found)
        rules = [str(rule) for rule in found.rules]
        _print_json({"same": found.same, **told, "rules": rules})
    else:
        put(found)
    return OK if found.same else DIFFERS


def answer_convert(
    given: str,
    new: str,
    layout: str,
    item: str | None,
    at: str | None,
    *,
    verify: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Makes a checkpoint of another layout, and prints what was done; before that, what is to be done."""
    operand = read_operand(layout)
    if operand.is_declared:
        hint = "give module:attr of a lens, or of a tree of the new layout"
        raise wrong_operand(layout, "a lens or a tree", "a declaration", hint)
    run = functools.partial(convert, given, new, operand.value, item=item, at=at)
    planned = run(dry_run=True)
    done = planned
    if not dry_run:
        put(_plan(planned), file=sys.stderr)
        done = run(verify=verify, progress=_progress if sys.stderr.isatty() else None)
    if as_json:
        _print_json(dataclasses.asdict(done))
    else:
        put(_plan(planned) if dry_run else done)
    return OK


def _plan(planned: Conversion) -> str:
    """What is to be done, with the leaves that are not linked, those of a list in one line."""
    lines = [str(planned)]
    alike: dict[str, list[str]] = {}
    for path in planned.rewritten:
        alike.setdefault(re.sub(r"\d+", "#", path), []).append(path)
    for several in alike.values():
        more = f"  and {len(several) - 1} like it" if several[1:] else ""
        lines.append(f"  written anew: {several[0]}{more}")
    return "\n".join(lines)


def _progress(done: int, whole: int) -> None:
    end = "\n" if done == whole else ""
    print(f"\r{in_bytes(done)} of {in_bytes(whole)}", end=end, file=sys.stderr, flush=True)


def _lens(operand: Operand, view: str | None) -> Lens:
    if view is not None:
        sides = [operand, read_operand(view)]
        return adapt(*(side.text if side.stored else side.value for side in sides))
    if not isinstance(operand.value, Lens):
        hint = "give module:attr of a lens, or two sides to adapt"
        raise wrong_operand(operand.text, "a lens", f"a {type(operand.value).__name__}", hint)
    return operand.value


def _size_cells(size: RowSize) -> tuple[str, str]:
    several = "" if size.leaves in (None, 1) else f"x {size.leaves}"
    return several, "" if size.bytes is None else in_bytes(size.bytes)


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _row_json(row: Row, size: RowSize) -> dict[str, Any]:
    known = {
        "key": format_path(row.key),
        "path": "/".join(row.path),
        "dtype": row.leaf.dtype,
        "shape": [dims_.format_dim(dim) for dim in row.dims],
        "kind": leaves.kind_name(row.kind) or None,
        "leaves": size.leaves,
        "bytes": size.bytes,
    }
    shape = dims_.sizes_of(row.dims, {})
    return known if shape is None else {**known, "shape": list(shape)}


def _fault_json(fault: Mismatch) -> dict[str, str]:
    return {
        "path": fault.path,
        "kind": fault.kind,
        "expected": fault.expected,
        "found": fault.found,
        "hint": fault.hint,
    }


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))

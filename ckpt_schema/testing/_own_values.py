"""Leaves that keep their own values: private, and without a default. Where no value is given, they are an error."""

from __future__ import annotations

import dataclasses
import functools

from ckpt_schema._layouts.leaves import ConstantKey, Fill
from ckpt_schema._layouts.paths import format_path
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.derive.folded_rows import FoldedRow
from ckpt_schema._lens.fold_rules import Scaling
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import ConformanceError, Mismatch
from ckpt_schema.testing._laws import LawError

__all__ = ["filled_lens", "keeps_own", "own_rows"]


def own_rows(lens: Lens, side: int) -> list[int]:
    """The numbers of the rows of a side that keep their own values."""
    table, joined = (lens.source, lens.view)[side], lens.joined[side]
    numbers: list[int] = []
    for number, row in enumerate(table.rows):
        # A tree may lack what is optional: then there is no value to ask for.
        if number not in joined and row.default is None and not row.optional:
            numbers.append(number)
    return numbers


@functools.lru_cache(maxsize=64)
def filled_lens(lens: Lens) -> Lens:
    """The lens with a default for each leaf that keeps its own value, so that laws may say ``get(s)``.

    All else that it does is the same. What the leaves are without one is said by `keeps_own`.
    """
    source, view = _filled(lens, 0), _filled(lens, 1)
    if (source, view) == (lens.source, lens.view):
        return lens
    # Parts of what is computed keep their own values too: with a default, it is said what they are.
    folds = tuple(map(_told, lens.folds[0])), tuple(map(_told, lens.folds[1]))
    return dataclasses.replace(lens, source=source, view=view, folds=folds)


def _told(one: FoldedRow) -> FoldedRow:
    """The same, of which something says what the parts are."""
    kind = one.kind
    if isinstance(kind, Scaling):
        kind = dataclasses.replace(kind, rounds=True)
    return dataclasses.replace(one, kind=kind, is_told=True)


def _filled(lens: Lens, side: int) -> Layout:
    """The layout of a side with a default for each leaf that keeps its own value."""
    table = (lens.source, lens.view)[side]
    rows = list(table.rows)
    for number in own_rows(lens, side):
        default = ConstantKey(0) if rows[number].leaf.is_key else Fill(0)
        rows[number] = dataclasses.replace(rows[number], default=default)
    return dataclasses.replace(table, rows=tuple(rows))


def keeps_own(lens: Lens, s: Tree) -> None:
    """``get(s)`` is an error that names every leaf which keeps its own value, for nobody has given one."""
    own = {format_path(lens.view.rows[number].key) for number in own_rows(lens, 1)}
    if not own:
        return
    try:
        lens.get(s)
    except ConformanceError as error:
        named = {fault.path for fault in error.mismatches}
    else:
        named = set[str]()
    faults: list[Mismatch] = []
    for path in sorted(own):
        # Of layers the error names each by its number, and the row has a symbol in its place.
        if "{" not in path and path not in named:
            faults.append(Mismatch(path, "default", "an error that asks for its value", "none"))
    if faults:
        raise LawError("leaves that keep their own values are made of nothing", faults)

"""Nodes that one side has and the other has nothing for: adapters, averages, moments of what is not trained there.

No shape proves that such a node may keep its own values, so each is a line in a comment. It says so of the highest node that
holds nothing else, and of all nodes of a name by one glob.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.nameless_states import nameless_rows
from ckpt_schema._lens.derive.partners import form
from ckpt_schema._lens.derive.scope import said_paths
from ckpt_schema.errors import CkptSchemaError

__all__ = ["lone_nodes"]


def lone_nodes(error: CkptSchemaError, source: Layout, view: Layout) -> list[str]:
    """Rules by which what one side alone has keeps its own values, commented, to paste where that is meant.

    Args:
        error: What derivation says of the two layouts.
        source: The source's layout.
        view: The view's layout.

    Returns:
        For each side a heading and a line for each node; nothing where every leaf may have a partner.
    """
    sides = [_unplaced(error, table) for table in (source, view)]
    for table, own, others in ((source, *sides), (view, *sides[::-1])):
        nameless = nameless_rows(table, own.values(), others.values())
        # One of them may be each moment of the other side: none of the two is to keep its own values.
        for row in nameless:
            own.pop(row.path)
        if nameless:
            for path in [path for path, row in others.items() if row.optimizer]:
                others.pop(path)
    notes: list[str] = []
    for near, far, own, others in ((source, view, *sides), (view, source, *sides[::-1])):
        forms = {_kind(row) for row in others.values()}
        # A leaf of one name may be it in another shape, as when its layers are stacked.
        names = {row.path[-1] for row in others.values() if not row.optimizer}
        lone = {
            path
            for path, row in own.items()
            if _kind(row) not in forms and (row.optimizer or path[-1] not in names)
        }
        weights = {row.path for row in near.rows if row.is_weight}
        if not lone or weights <= lone:  # then nothing is known of what the two have in common
            continue
        lines = [f"    # cs.private({path!r}, cs.own)," for path in _said(near, far, lone)]
        head = (
            f"open: nothing in {far.name} can be these of {near.name}; paste the lines of those that "
            "keep their own values into rules=:"
        )
        notes.append("\n".join([head, *lines]))
    return notes


def _kind(row: Row) -> object:
    """What two leaves share if one may be the other."""
    return row.optimizer > 0, form(row)[1:]


def _unplaced(error: CkptSchemaError, table: Layout) -> dict[LogicalPath, Row]:
    """The rows of a layout that have no partner, and no rule that is certain to give them one."""
    rows = {row.path: row for row in table.rows}
    unplaced: dict[LogicalPath, Row] = {}
    for fault in error.mismatches:
        row = rows.get(tuple(fault.path.split("/")))
        if fault.kind != "unplaced" or fault.rules or row is None:
            continue
        unplaced[row.path] = row
        # What mirrors a weight that has no partner follows that; what mirrors another is told here.
        for head in fault.also if row.optimizer else ():
            mirror = rows.get((*head.split("/"), *row.model_path))
            if mirror is not None:
                unplaced[mirror.path] = mirror
    return unplaced


def _said(table: Layout, far: Layout, lone: set[LogicalPath]) -> Iterator[str]:
    """The nodes that hold these leaves and no others, as rules call them."""
    total: collections.Counter[LogicalPath] = collections.Counter()
    held: collections.Counter[LogicalPath] = collections.Counter()
    spoken = said_paths(table, far)
    followers = {row.path for row in table.rows if tuple(row.mirrors.split("/")) in lone}
    for path, said in spoken.items():
        for end in range(1, len(said) + 1):
            total[said[:end]] += path not in followers
            held[said[:end]] += path in lone
    nodes: dict[LogicalPath, None] = {}
    for path in spoken:
        if path in lone:
            said = spoken[path]
            ends = range(1, len(said) + 1)
            nodes[next(said[:end] for end in ends if total[said[:end]] == held[said[:end]])] = None
    yield from _globs([*nodes], {path for path, count in total.items() if count})


def _globs(nodes: Sequence[LogicalPath], known: set[LogicalPath]) -> Iterator[str]:
    """Nodes by path; those of one name, or of one beginning, by a glob where it means no others."""
    rest = [*nodes]
    names = list(dict.fromkeys(node[-1] for node in nodes if len(node) > 1))
    stems = list(dict.fromkeys(name[: name.rfind("_") + 1] for name in names if "_" in name))
    for stem in (*(f"{stem}*" for stem in stems), *names):
        start = stem.removesuffix("*")
        meant = {p for p in known if p[-1] == stem or (stem != start and p[-1].startswith(start))}
        means = [node for node in rest if node in meant]
        if len(means) > 1 and meant == set(means):
            rest = [node for node in rest if node not in means]
            yield f"**/{stem}"
    yield from ("/".join(node) for node in rest)

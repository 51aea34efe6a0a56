"""Nodes that one side has and the other has nothing for: adapters, averages, moments of what is not trained there.

No shape proves that such a node may keep its own values, so each is a line in a comment. It says so of the highest node that
holds nothing else, and of all nodes of a name by one glob.
"""

from __future__ import annotations

import collections
from collections.abc import Collection, Iterator, Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.derive.nameless_states import nameless_rows
from ckpt_schema._lens.derive.partners import form
from ckpt_schema._lens.derive.scope import said_paths
from ckpt_schema.errors import CkptSchemaError

__all__ = ["lone_nodes"]


def lone_nodes(
    error: CkptSchemaError, source: Layout, view: Layout, told: Collection[str] = ()
) -> list[str]:
    """Rules by which what one side alone has keeps its own values, commented, to paste where that is meant.

    Args:
        error: What derivation says of the two layouts.
        source: The source's layout.
        view: The view's layout.
        told: The paths of leaves whose fault says what they may be, in another shape.

    Returns:
        For each side a heading and a line for each node; nothing where every leaf may have a partner.
    """
    ours, theirs = _unplaced(error, source), _unplaced(error, view)
    _leave_nameless_out(source, ours, theirs)
    _leave_nameless_out(view, theirs, ours)
    notes: list[str] = []
    for near, far, own, others in ((source, view, ours, theirs), (view, source, theirs, ours)):
        lone = {path for path in _lone_paths(own, others) if "/".join(path) not in told}
        weights = {row.path for row in near.rows if row.is_weight}
        # Two trees of which no weight has a partner are no model and its adapter: say nothing.
        if not lone or weights <= lone:
            continue
        # Pasted as they are they change nothing: that such a node may keep its values is a guess.
        lines = [f"    # cs.private({path!r}, cs.own)," for path in _said(near, far, lone)]
        head = (
            f"open: nothing in {far.name} can be these of {near.name}; paste the lines of those that "
            "keep their own values into rules=:"
        )
        notes.append("\n".join([head, *lines]))
    return notes


def _leave_nameless_out(
    table: Layout, own: dict[LogicalPath, Row], others: dict[LogicalPath, Row]
) -> None:
    """Takes out what may be the moments of the other side under names of a trainer's own, and these.

    One of them may be each moment of the other side: none of the two is to keep its own values.
    """
    nameless = nameless_rows(table, own.values(), others.values())
    for row in nameless:
        own.pop(row.path)
    if not nameless:
        return
    # A copy of the rows is walked, for the dict changes on the way.
    for row in [*others.values()]:
        if row.optimizer:
            others.pop(row.path)


def _lone_paths(
    own: Mapping[LogicalPath, Row], others: Mapping[LogicalPath, Row]
) -> set[LogicalPath]:
    """Those of a side's leaves without a partner that none of the other side's can be."""
    kinds: set[object] = set()
    names: set[str] = set()
    for row in others.values():
        kinds.add(_kind(row))
        # A leaf of one name may be it in another shape, as when its layers are stacked.
        if not row.optimizer:
            names.add(row.path[-1])
    lone: set[LogicalPath] = set()
    for path, row in own.items():
        # The last name of a moment is that of its param, and so tells nothing.
        is_named_alike = not row.optimizer and path[-1] in names
        if _kind(row) not in kinds and not is_named_alike:
            lone.add(path)
    return lone


def _kind(row: Row) -> object:
    """What two leaves share if one may be the other."""
    return row.optimizer > 0, form(row)[1:]


def _unplaced(error: CkptSchemaError, table: Layout) -> dict[LogicalPath, Row]:
    """The rows of a layout that have no partner, and no rule that is certain to give them one."""
    rows = {row.path: row for row in table.rows}
    unplaced: dict[LogicalPath, Row] = {}
    for fault in error.mismatches:
        row = rows.get(tuple(fault.path.split("/")))
        # A fault that has rules is mended by pasting these.
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
    # Below each node: how many leaves need a word said of them, and how many of these are lone.
    total: collections.Counter[LogicalPath] = collections.Counter()
    lone_count: collections.Counter[LogicalPath] = collections.Counter()
    spoken = said_paths(table, far)
    # The moments of a lone weight follow it, so they do not keep a node from being said as one.
    followers: set[LogicalPath] = set()
    for row in table.rows:
        if tuple(row.mirrors.split("/")) in lone:
            followers.add(row.path)
    for path, said in spoken.items():
        for end in range(1, len(said) + 1):
            total[said[:end]] += path not in followers
            lone_count[said[:end]] += path in lone
    nodes: dict[LogicalPath, None] = {}
    for path, said in spoken.items():
        if path not in lone:
            continue
        # From the root down, the first node that holds no other leaf: one line for all in it.
        for end in range(1, len(said) + 1):
            node = said[:end]
            if total[node] == lone_count[node]:
                nodes[node] = None
                break
    # What holds followers alone has a count of 0, which `+` leaves out: no glob has to spare it.
    yield from _globs([*nodes], {*(+total)})


def _globs(nodes: Sequence[LogicalPath], known: set[LogicalPath]) -> Iterator[str]:
    """Nodes by path; those of one name, or of one beginning, by a glob where it means no others.

    Of ``0/lora_a``, ``0/lora_b``, ``1/lora_a`` and ``1/lora_b`` that is ``**/lora_*``, unless a node
    ``lora_c`` has a partner.
    """
    rest = [*nodes]
    # What stands at the root is one node: its path is as short as a glob.
    names = dict.fromkeys(node[-1] for node in nodes if len(node) > 1)
    globs: dict[str, None] = {}
    for name in names:
        if "_" in name:
            globs[name[: name.rfind("_") + 1] + "*"] = None
    # The wider glob comes first: what it says needs no line for each name.
    for last in (*globs, *names):
        meant = _meant(last, known)
        means = [node for node in rest if node in meant]
        # One that means other nodes too would let these keep their own values.
        if len(means) > 1 and meant == set(means):
            rest = [node for node in rest if node not in means]
            yield f"**/{last}"
    for node in rest:
        yield "/".join(node)


def _meant(last: str, known: set[LogicalPath]) -> set[LogicalPath]:
    """The nodes of a name, or with a star of the names that begin so."""
    start = last.removesuffix("*")
    meant: set[LogicalPath] = set()
    for path in known:
        is_begun = last != start and path[-1].startswith(start)
        if is_begun or path[-1] == last:
            meant.add(path)
    return meant

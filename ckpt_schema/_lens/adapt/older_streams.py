"""Streams as Flax kept them until 0.11: all of a module's below their names, and one that layers share in the first of them.

A layer of today has the one stream that it draws from, where it had them all: ``dropout/rngs/default/key``
is ``dropout/rngs/key``, and has the data of a key alone where Orbax knew no keys yet.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.streams import is_raw_key
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.rules import Private, RawKey, Rename, Rule
from ckpt_schema.errors import CkptSchemaError

__all__ = ["older_streams"]

_HOME, _SHARED = "rngs", "default"
"""What Flax's layers call their streams, and the stream that stands for every name."""


def older_streams(error: CkptSchemaError, source: Layout, view: Layout) -> list[Rule]:
    """Rules for the streams of an older state of NNX, which are certain by their structure.

    Each goes where the layer that had it draws from now. What is left is private: the streams of
    other names, and one that the layers of a list share, for each of these has its own now.

    Args:
        error: What derivation says of the two layouts.
        source: The source's layout.
        view: The view's layout.
    """
    lost = {fault.path for fault in error.mismatches if fault.kind == "unplaced"}
    ours, theirs = _streams(source, lost), _streams(view, lost)
    # By the path of a layer's streams, `dropout/rngs`, the names that it had: `default`, `dropout`.
    homes: dict[LogicalPath, list[str]] = collections.defaultdict(list)
    for *home, name in ours:
        if home[-1:] == [_HOME]:
            homes[tuple(home)].append(name)
    rules: list[Rule] = []
    for home, names in homes.items():
        drawn = _drawn_from(names, theirs[home]) if home in theirs else None
        for name in names:
            stream = (*home, name)
            if name == drawn:
                rules += _joined(stream, ours[stream], theirs[home])
            # If the layer has a stream today and no name tells which, nothing here is certain.
            elif home not in theirs or drawn is not None:
                rules.append(Private((*stream, "key"), None))
                rules.append(Private((*stream, "count"), None))
    return rules


def _streams(table: Layout, lost: set[str]) -> Mapping[LogicalPath, Row]:
    """The keys of streams that have no partner, by the path of the stream in the model."""
    rows = {row.model_path: row for row in table.rows if "/".join(row.path) in lost}
    streams: dict[LogicalPath, Row] = {}
    for path, row in rows.items():
        # A leaf may be called key and be a weight: a stream has a count beside it.
        is_stream = path[-1:] == ("key",) and (*path[:-1], "count") in rows
        if is_stream and (row.leaf.is_key or is_raw_key(row.leaf.dtype, row.leaf.dims)):
            streams[path[:-1]] = row
    return streams


def _drawn_from(names: Sequence[str], row: Row) -> str | None:
    """Which of a layer's streams it drew from: that of its own name, or else the one that stands for all."""
    # The Variable of a stream says in its metadata what it was called.
    tag = dict(row.metadata).get("tag")
    for name in (tag, _SHARED):
        if name in names:
            return str(name)
    return None


def _joined(stream: LogicalPath, old: Row, new: Row) -> Iterator[Rule]:
    """The rules by which a stream of an older state is that of today's layer."""
    yield Rename(stream, new.model_path[:-1])
    # Two words are a key of one implementation alone; of four, somebody has to say which.
    is_fry = new.leaf.dtype == "key<fry>" and old.leaf.dims == (*new.leaf.dims, (2,))
    if is_fry and not old.leaf.is_key:
        yield RawKey(new.model_path)

"""One cause behind many faults of a derivation: it is told, and its consequences are not.

The last step of `derivation`, on the faults of all the others. There is one such cause so far:
``layers_0``, ``layers_1``, ... on one side, and a list on the other, where no leaf has a partner.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterator, Sequence

from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema.errors import Mismatch

__all__ = ["causes"]

_NUMBERED = re.compile(r"(.*?)(0|[1-9]\d{0,5})")


def causes(
    source: Layout, view: Layout, placed: Sequence[tuple[int, int]], faults: Sequence[Mismatch]
) -> list[Mismatch]:
    """The faults, where many of them have one cause that cause instead.

    Args:
        source: The source's layout.
        view: The view's layout.
        placed: The numbers of rows that are joined.
        faults: All faults.
    """
    left = _without(source, {here for here, _ in placed})
    right = _without(view, {there for _, there in placed})
    remaining = [*faults]
    # Either side may have the list.
    for near, rows, far, others in ((source, left, view, right), (view, right, source, left)):
        for numbered in _numbered(rows, others):
            told = numbered.consequences(others)
            kept = [numbered.fault(near.name, far.name)]
            for fault in remaining:
                # What is wrong with a leaf besides is a fault with the list, too.
                if fault.kind != "unplaced" or fault.path not in told:
                    kept.append(fault)
            remaining = kept
    return remaining


def _without(table: Layout, joined: set[int]) -> list[Row]:
    """The rows of a table that are not joined."""
    return [row for number, row in enumerate(table.rows) if number not in joined]


# --- layers that are no list  ---


@dataclasses.dataclass(frozen=True, slots=True)
class _Numbered:
    """Nodes side by side whose names differ in a number, where the other side has a list.

    Attributes:
        head: Their path but for the last segment.
        body: How many segments of it stand before those of the model.
        stem: Their name but for the number.
        numbers: Their numbers, in order.
        tails: The paths below each.
    """

    head: LogicalPath
    body: int
    stem: str
    numbers: tuple[int, ...]
    tails: frozenset[LogicalPath]

    def consequences(self, others: Sequence[Row]) -> Container[str]:
        """The paths of the leaves that have no place for want of the list, on both sides."""
        paths: set[str] = set()
        for number in self.numbers:
            node = (*self.head, f"{self.stem}{number}")
            for tail in self.tails:
                paths.add("/".join((*node, *tail)))
        for row in others:
            if _below_list(row) in self.tails:
                paths.add("/".join(row.path))
        return paths

    def fault(self, near: str, far: str) -> Mismatch:
        """The one fault."""
        first, last = self.numbers[0], self.numbers[-1]
        # As a key is written in a class: layers_{i}, and layers_{i+1} where they count from 1.
        symbol = f"{self.stem}{{i+{first}}}" if first else f"{self.stem}{{i}}"
        pattern = "/".join((*self.head[self.body :], symbol))
        hint = (
            f'infer(tree, lists=["{pattern}"]) reads them as one; '
            f'in a class, list[...] = field(key="{symbol}", length=...)'
        )
        return Mismatch(
            "/".join((*self.head, f"{self.stem}{{{first}..{last}}}")),
            "lists",
            f"one list of layers, as in {far}",
            f"{len(self.numbers)} nodes side by side in {near}",
            hint,
        )


def _numbered(rows: Sequence[Row], others: Sequence[Row]) -> Iterator[_Numbered]:
    """Nodes that are alike but for a number in their name, where ``others`` are in a list."""
    lists = _lists(others)
    if not lists:
        return
    # For each stem, by its place in the tree, the paths below the node of each number.
    nodes: dict[tuple[LogicalPath, int, str], dict[int, set[LogicalPath]]] = {}
    for row in rows:
        # Of what an optimizer keeps for a param there is one cause, and it is told of the param.
        if row.body is None or row.mirrors:
            continue
        for depth in range(row.body, len(row.path)):
            match = _NUMBERED.fullmatch(row.path[depth])
            if match is not None:
                key = (row.path[:depth], row.body, match[1])
                below = nodes.setdefault(key, {}).setdefault(int(match[2]), set())
                below.add(row.path[depth + 1 :])
    for (head, body, stem), tails_of in nodes.items():
        numbers = tuple(sorted(tails_of))
        tails = tails_of[numbers[0]]
        in_turn = numbers == tuple(range(numbers[0], numbers[0] + len(numbers)))
        alike = all(other == tails for other in tails_of.values())
        # Two norms of one block differ in a number too, and are no layers: a layer has all that
        # an item of the other side's list has.
        if len(numbers) > 1 and in_turn and alike and tails in lists:
            yield _Numbered(head, body, stem, numbers, frozenset(tails))


def _lists(rows: Sequence[Row]) -> list[set[LogicalPath]]:
    """What an item of each list holds that rows of the model stand in."""
    items: dict[LogicalPath, set[LogicalPath]] = {}
    for row in rows:
        below = _below_list(row)
        if below is not None:
            node = row.path[: len(row.path) - len(below)]
            items.setdefault(node, set()).add(below)
    return [*items.values()]


def _below_list(row: Row) -> LogicalPath | None:
    """The path below the first list that a row of the model stands in."""
    if row.mirrors:
        return None
    for depth, segment in enumerate(row.path):
        if segment.endswith("[]"):
            return row.path[depth + 1 :]
    return None

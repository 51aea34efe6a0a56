"""Logical names of axes: from Linen's boxes and NNX's Variables on one side to those on the other, edited as the leaves are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.leaves import Init
from ckpt_schema._layouts.paths import KeyPath, Pattern
from ckpt_schema._layouts.table import Layout, Row, Slot
from ckpt_schema._lens.arrays.axes import Clash
from ckpt_schema._lens.arrays.blocks import Task
from ckpt_schema._lens.arrays.step_labels import labelled
from ckpt_schema._trees.conformance import Match
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = ["Carried", "Labelled", "carried"]

Labelled = Mapping[str, Any]
"""What a box or a Variable says of its leaf's axes, as a Variable keeps it: ``out_sharding``, and what goes with it."""

Carried = tuple[Task | None, Sequence[Slot], Sequence[int]]
"""What is done, if anything, what it makes, and the positions of the leaves that it is made of."""

_NAMES = "out_sharding"


def carried(
    source: Layout,
    view: Layout,
    tree: Match,
    moves: Iterable[Carried],
    wanted: Iterable[Slot],
    sizes: Mapping[str, int],
) -> dict[KeyPath, Labelled]:
    """What is said of the leaves of the result, by the key path of their box or Variable.

    Nothing where the tree says nothing.

    What mirrors a param says what the param says, also where its shape is another, or a mask has
    hidden it: that is how optimizers make it.

    Raises:
        ConformanceError: With every leaf that has more names than axes, and every stack of leaves
            that are named differently.
    """
    said = _said(tree)
    if not said:
        return {}
    by_key: dict[KeyPath, Labelled] = {}
    mirrors: set[KeyPath] = set()
    faults: list[Mismatch] = []
    slots = {position: slot for slot, position in tree.slots.items()}
    for task, outputs, positions in moves:
        told = [said.get(position) for position in positions]
        if not any(told):
            continue
        rows = [source.rows[slots[position][0]] for position in positions]
        # What an optimizer state says is not edited: it is what the params say, told below.
        if rows[0].optimizer:
            for slot in outputs:
                mirrors.add(_key(view, slot))
            continue
        where = paths.format_path(tree.flat.keys[positions[0]])
        edited = _edited(where, rows, told, task)
        if isinstance(edited, Mismatch):
            faults.append(edited)
            continue
        for slot, labels in zip(outputs, edited, strict=True):
            # Of a tied pair, the first says it.
            by_key.setdefault(_key(view, slot), labels)
    if faults:
        raise ConformanceError(f"the names of axes do not fit {source.name}", faults)
    if not mirrors:
        return by_key
    # Holes, and what starts anew, are made as the leaves were that say something.
    for node in view.nodes:
        mirrors.update(node.keys(sizes))
    for slot in wanted:
        if isinstance(view.rows[slot[0]].default, Init):
            mirrors.add(_key(view, slot))
    return by_key | _mirrored(view, by_key, mirrors)


def _key(view: Layout, slot: Slot) -> KeyPath:
    """The key path of the box or Variable that a leaf stands in: the leaf's, but for what is inside."""
    row = view.rows[slot[0]]
    return paths.fill(row.key, slot[1])[: len(row.key) - row.inside]


def _mirrored(
    view: Layout, params: Mapping[KeyPath, Labelled], mirrors: Iterable[KeyPath]
) -> dict[KeyPath, Labelled]:
    """The labels of what stands in an optimizer state where params do: below the same keys.

    Where a state mirrors nothing that is there, as of a model that is masked as a whole, all but
    the model's own root tells.
    """
    rows: dict[str, Row] = {}
    for row in view.rows:
        if not row.optimizer:
            rows["/".join(row.path)] = row
    homes: set[tuple[Pattern, Pattern]] = set()
    for row in view.rows:
        param = rows.get(row.mirrors) if row.mirrors else None
        if param is not None:
            homes.add(_roots(row, param))
    # params/Dense_0/kernel without its root: Dense_0/kernel.
    below = {key[1:]: labels for key, labels in params.items()}
    by_key: dict[KeyPath, Labelled] = {}
    for key in mirrors:
        labels = _in_home(key, homes, params)
        if labels is None:
            labels = _in_tail(key, below)
        if labels is not None:
            by_key[key] = labels
    return by_key


def _in_home(
    key: KeyPath, homes: Iterable[tuple[Pattern, Pattern]], params: Mapping[KeyPath, Labelled]
) -> Labelled | None:
    """The labels of the param that has the key of a mirror, where the model's root is that of the state."""
    for root, home in homes:
        if key[: len(root)] == root:
            param: Any = (*home, *key[len(root) :])
            if param in params:
                return params[param]
    return None


def _in_tail(key: KeyPath, below: Mapping[KeyPath, Labelled]) -> Labelled | None:
    """The labels of the param whose key below its root is an end of this one, the longest that is one."""
    for start in range(1, len(key)):
        if key[start:] in below:
            return below[key[start:]]
    return None


def _roots(mirror: Row, param: Row) -> tuple[Pattern, Pattern]:
    """Where a state, and where the model stands that it mirrors: what is before the part of both keys that is the same.

    Of ``opt_state/0/mu/Dense_0/kernel`` and ``params/Dense_0/kernel``: ``opt_state/0/mu``, ``params``.
    """
    left, right = mirror.key[: len(mirror.key) - mirror.inside], param.key
    right = right[: len(right) - param.inside]
    while left and right and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    return left, right


def _said(tree: Match) -> Mapping[int, Labelled]:
    """What the boxes or Variables of a tree say of its leaves, by position."""
    # Boxes and Variables both keep what they hold below "value": most trees have none of these,
    # and do not load flax for the answer.
    if not any("value" in key for key in tree.flat.keys):
        return {}
    from ckpt_schema._frameworks import boxes, variables

    numbered = tree.flat.treedef.unflatten(range(len(tree.flat.leaves)))
    return variables.variable_labels(numbered) or boxes.box_labels(numbered)


def _edited(
    where: str,
    rows: Sequence[Row],
    told: Sequence[Labelled | None],
    task: Task | None,
) -> list[Labelled] | Mismatch:
    """What is said of each result, or what is wrong with the names of leaves that become one."""
    said = [labels for labels in told if labels is not None]
    for labels, row in zip(told, rows, strict=True):
        names: tuple[Any, ...] = () if labels is None else tuple(labels[_NAMES])
        # Of fewer names the first axes have theirs; but whoever forgot that of a stack would see another axis lose its own.
        stacked = task is not None and any(repeat.axis is not None for repeat in row.repeats)
        if len(names) > len(row.dims) or (stacked and 0 < len(names) < len(row.dims)):
            expected = f"{len(row.dims)} names, for {row.stored}"
            return Mismatch(where, "sharding", expected, str(names), "one name for each axis")
    if task is None:
        return [*said]
    # What is said besides the names, as rules for a mesh, goes with the leaf as it is.
    besides = [_without_names(labels) for labels in said]
    edited: Sequence[Sequence[Any]] = []
    if len(said) == len(told) and all(other == besides[0] for other in besides):
        full: list[tuple[Any, ...]] = []
        for labels, row in zip(said, rows, strict=True):
            missing = len(row.dims) - len(labels[_NAMES])
            full.append((*labels[_NAMES], *[None] * missing))
        edited = labelled(task, full)
    if not edited or any(map(_has_clash, edited)):
        both = " and ".join(dict.fromkeys(str(tuple(labels[_NAMES])) for labels in said))
        hint = "all that are stacked together are named alike, or not at all"
        known = both if len(said) == len(told) else f"{both}, or none"
        return Mismatch(where, "sharding", "one set of names", known, hint)
    return [{**besides[0], _NAMES: names} for names in edited]


def _without_names(labels: Labelled) -> Labelled:
    besides = dict(labels)
    del besides[_NAMES]
    return besides


def _has_clash(names: Iterable[Any]) -> bool:
    """Whether leaves that become one say two names of an axis."""
    return any(isinstance(name, Clash) for name in names)

"""Tasks at given sizes, where rows stand for what is computed of several: with the leaves of all of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.table import Row, Slot
from ckpt_schema._lens.arrays.block_scales import grid_of
from ckpt_schema._lens.arrays.blocks import Kind, Task
from ckpt_schema._lens.arrays.fold_tasks import AnyTask, FoldTask, Gathered, TakenApart
from ckpt_schema._lens.arrays.packed_words import zeros_axis
from ckpt_schema._lens.derive.folded_rows import FoldedRow, FoldedRows
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._lens.fold_rules import Scaling
from ckpt_schema._lens.plan.tasks import Application, Sizes
from ckpt_schema.errors import Mismatch

__all__ = ["FoldedLeaves", "Unfolded", "UntoldWhole", "scale_dims", "with_scales"]


def with_scales(sides: Joined, sizes: Sizes) -> dict[str, int]:
    """Sizes of dims, those of scales too that no tree tells: so many blocks as there are.

    Numbers ``[10 8]`` in blocks of 4 by all have scales ``[blocks 1]``, and ``blocks`` is 3.
    """
    known = dict(sizes)
    for numbers, others, kind in _scaled(sides):
        shape = dims_.sizes_of(numbers.dims, known)
        if shape is None:
            continue
        grid = grid_of(kind.whole(shape), kind.block)
        for row in others:
            if len(row.dims) != len(grid):
                continue
            for name, count in zip(_names(row), grid, strict=True):
                if name is not None:
                    known.setdefault(name, count)
    return known


def scale_dims(sides: Joined) -> set[str]:
    """The dims that count the blocks of others."""
    counting: set[str] = set()
    others: set[str] = set()
    # By identity: rows of both sides may be equal, and one of them a scale alone.
    scales = {id(row) for _, others, _ in _scaled(sides) for row in others}
    for row in (*sides.source.rows, *sides.view.rows):
        names: set[str] = set()
        if id(row) in scales:
            names.update(filter(None, _names(row)))
        counting |= names
        others |= dims_.dim_names(row.all_dims) - names
    # What any other leaf has for an axis is told by that leaf.
    return counting - others


def _scaled(sides: Joined) -> Iterator[tuple[Row, list[Row], Scaling]]:
    """The rows of numbers that have scales, with the rows of these and of what stands for zero."""
    for table, folds in zip((sides.source, sides.view), sides.folds, strict=True):
        for fold in folds:
            if isinstance(fold.kind, Scaling):
                others = [table.rows[number] for number in fold.others]
                yield table.rows[fold.row], others, fold.kind


def _names(row: Row) -> list[str | None]:
    """For each axis its name, where it has one alone."""
    names: list[str | None] = []
    for dim in row.dims:
        # Of a product or a sum the size tells none of its names.
        inner = [*dims_.dim_names((dim,))] if len(dim) == 1 else []
        names.append(inner[0] if len(inner) == 1 else None)
    return names


class UntoldWhole(NamedTuple):
    """A whole that nothing tells the parts of.

    Attributes:
        where: The key path of the first part that is made of it.
        cure: What to do.
        lacking: The slots of the parts that are not there, for which the result may have no place either.
    """

    where: str
    cure: str
    lacking: tuple[Slot, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Unfolded:
    """What is done, and with which leaves, where none stands for others any more.

    Attributes:
        task: What is done.
        inputs: The slots of what is read of the tree.
        kept: The slots of what is read of the tree that results go onto, after these.
        results: The slots of what is made.
        untold: The wholes that nothing tells the parts of.
    """

    task: AnyTask
    inputs: tuple[Slot, ...]
    kept: tuple[Slot, ...]
    results: tuple[Slot, ...]
    untold: tuple[UntoldWhole, ...] = ()


class FoldedLeaves:
    """The rows of both sides that stand for several."""

    def __init__(
        self, rows: tuple[Sequence[Row], Sequence[Row]], folds: FoldedRows, sizes: Sizes
    ) -> None:
        """Knows the folds of each side, by the row that stands for several."""
        self._rows, self._sizes = rows, sizes
        self._folds: tuple[dict[int, FoldedRow], dict[int, FoldedRow]] = ({}, {})
        for by_row, of_side in zip(self._folds, folds, strict=True):
            for fold in of_side:
                by_row[fold.row] = fold

    def of(self, side: int, slot: Slot) -> FoldedRow | None:
        """What a leaf stands for."""
        return self._folds[side].get(slot[0])

    def dims(self, join: Join) -> set[str]:
        """The dims of all leaves that those of a join stand for."""
        names: set[str] = set()
        for side, numbers in enumerate((join.sources, join.views)):
            for fold in filter(None, map(self._folds[side].get, numbers)):
                for number in fold.parts:
                    names |= dims_.dim_names(self._rows[side][number].all_dims)
        return names

    def parts(self, side: int, slot: Slot) -> list[Slot]:
        """The leaves that a leaf stands for, itself first."""
        fold = self.of(side, slot)
        return [slot] if fold is None else [(number, slot[1]) for number in fold.parts]

    def faults(self, side: int, slot: Slot) -> Iterator[Mismatch]:
        """What is wrong with the sizes of leaves of which something is computed."""
        fold = self.of(side, slot)
        if fold is None or not isinstance(fold.kind, Scaling):
            return
        numbers, scales, *zeros = self._kinds(side, self.parts(side, slot))
        whole = fold.kind.whole(numbers.shape)
        grid = grid_of(whole, fold.kind.block)
        block = " ".join("all" if length is None else str(length) for length in fold.kind.block)
        blocks = f"each block of {block} of {list(whole)}"
        # An axis with one block may be left out: nothing is meant by it.
        if [count for count in grid if count != 1] != [n for n in scales.shape if n != 1]:
            expected = f"{list(grid)}, a scale for {blocks}"
            yield self._unlike(side, (fold.others[0], slot[1]), expected, scales)
        for kind in zeros:
            if zeros_axis(kind, numbers.dtype, grid, fold.kind.packing) is None:
                expected = f"{list(grid)}, what is zero for {blocks}, or words of as many"
                yield self._unlike(side, (fold.others[1], slot[1]), expected, kind)

    def _unlike(self, side: int, slot: Slot, expected: str, kind: Kind) -> Mismatch:
        row = self._rows[side][slot[0]]
        where = paths.format_path(paths.fill(row.key, slot[1]))
        return Mismatch(where, "shape", expected, str(list(kind.shape)), "say another block=")

    def touch(self, made: Application, read: int) -> bool:
        """Whether any of these leaves stands for several; ``read`` is the side that is read."""
        for slot in made.inputs:
            if self.of(read, slot) is not None:
                return True
        return any(self.of(1 - read, slot) is not None for slot in made.results)

    def unfolded(
        self,
        made: Application,
        task: Task,
        kept: Sequence[Slot],
        read: int,
        there: Callable[[Slot], bool],
    ) -> Unfolded:
        """A task with all leaves that those of an application stand for.

        Args:
            made: The application.
            task: What it does.
            kept: What it reads of the tree that results go onto.
            read: The side that is read.
            there: Whether that tree has a leaf with values in a slot.
        """
        # Most leaves are told as they are, and need no task around theirs.
        if not self.touch(made, read):
            return Unfolded(task, made.inputs, tuple(kept), made.results)
        # In this order a plan numbers what is read: the tree's leaves, then those of onto.
        inputs: list[Slot] = []
        before: list[Gathered] = []
        for slot in made.inputs:
            before.append(self._gathered(read, slot, inputs))
        count = len(inputs)
        for slot in kept:
            before.append(self._gathered(1 - read, slot, inputs))
        results: list[Slot] = []
        after: list[TakenApart] = []
        untold: list[UntoldWhole] = []
        for slot in made.results:
            fold = self.of(1 - read, slot)
            first = len(results)
            if fold is None:
                after.append(TakenApart((first,)))
                results.append(slot)
                continue
            # One number does not tell the parts of a sum: those that onto has say how it is shared.
            parts = self.parts(1 - read, slot)
            own: list[int | None] = []
            lacking: list[Slot] = []
            for part in parts:
                if there(part):
                    own.append(len(inputs))
                    inputs.append(part)
                else:
                    own.append(None)
                    lacking.append(part)
            apart = self._taken_apart(fold, parts, first, tuple(own), 1 - read)
            # Without all parts there is no whole to hold the result against.
            if apart.cure and lacking:
                untold.append(UntoldWhole(apart.where, apart.cure, tuple(lacking)))
            after.append(apart)
            results += parts[: fold.kind.made]
        kinds = (*self._kinds(read, inputs[:count]), *self._kinds(1 - read, inputs[count:]))
        goals = self._kinds(1 - read, results)
        whole = FoldTask(task, kinds, goals, tuple(before), tuple(after), made.moves)
        return Unfolded(
            whole, tuple(inputs[:count]), tuple(inputs[count:]), tuple(results), tuple(untold)
        )

    def _gathered(self, side: int, slot: Slot, inputs: list[Slot]) -> Gathered:
        """What a leaf is made of, which is added to what is read."""
        fold, parts = self.of(side, slot), self.parts(side, slot)
        first = len(inputs)
        inputs += parts
        places = tuple(range(first, len(inputs)))
        return Gathered(places, None if fold is None else fold.kind)

    def _taken_apart(
        self,
        fold: FoldedRow,
        parts: Sequence[Slot],
        first: int,
        own: tuple[int | None, ...],
        side: int,
    ) -> TakenApart:
        """What is made of a result that stands for several leaves."""
        rows = [self._rows[side][number] for number in fold.parts]
        spare: list[leaves.Fill | None] = []
        for row in rows:
            # A default that has to be made first is no number to compute with.
            spare.append(row.default if isinstance(row.default, leaves.Fill) else None)
        others = ["/".join(row.model_path) for row in rows[1:]]
        return TakenApart(
            tuple(range(first, first + fold.kind.made)),
            fold.kind,
            self._kinds(side, parts),
            own,
            tuple(spare),
            paths.format_path(paths.fill(rows[0].key, parts[0][1])),
            "" if fold.is_told else fold.kind.cure(others),
        )

    def _kinds(self, side: int, slots: Sequence[Slot]) -> tuple[Kind, ...]:
        return tuple([self._kind(side, slot) for slot in slots])

    def _kind(self, side: int, slot: Slot) -> Kind:
        row = self._rows[side][slot[0]]
        shape = dims_.sizes_of(row.dims, self._sizes)
        assert shape is not None, f"unbound dims in {row}"
        return Kind(shape, row.leaf.dtype)

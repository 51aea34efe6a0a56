"""Tasks at given sizes, where rows stand for what is computed of several: with the leaves of all of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.table import Row, Slot
from ckpt_schema._lens.arrays.block_scales import grid_of
from ckpt_schema._lens.arrays.blocks import Kind, Task
from ckpt_schema._lens.arrays.fold_tasks import AnyTask, FoldTask, Gathered, TakenApart
from ckpt_schema._lens.derive.folded_rows import FoldedRow, FoldedRows
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._lens.fold_rules import Scaling
from ckpt_schema._lens.plan.tasks import Application, Sizes
from ckpt_schema.errors import Mismatch

__all__ = ["FoldedLeaves", "Unfolded", "scale_dims", "with_scales"]


def with_scales(sides: Joined, sizes: Sizes) -> dict[str, int]:
    """Sizes of dims, those of scales too that no tree tells: so many blocks as there are."""
    known = dict(sizes)
    for numbers, scales, kind in _scaled(sides):
        shape = dims_.sizes_of(numbers.dims, known)
        if shape is None or len(shape) != len(scales.dims):
            continue
        for name, count in zip(_names(scales), grid_of(shape, kind.block), strict=True):
            if name is not None:
                known.setdefault(name, count)
    return known


def scale_dims(sides: Joined) -> set[str]:
    """The dims that count the blocks of others."""
    counted: set[str] = set()
    rest: set[str] = set()
    scales = {id(row) for _, row, _ in _scaled(sides)}
    for table in (sides.source, sides.view):
        for row in table.rows:
            names = {name for name in _names(row) if name} if id(row) in scales else set[str]()
            counted |= names
            rest |= dims_.dim_names(row.all_dims) - names
    return counted - rest


def _scaled(sides: Joined) -> Iterator[tuple[Row, Row, Scaling]]:
    """The rows of numbers that have scales, with the rows of these."""
    for table, folds in zip((sides.source, sides.view), sides.folds, strict=True):
        for fold in folds:
            if isinstance(fold.kind, Scaling):
                yield table.rows[fold.row], table.rows[fold.others[0]], fold.kind


def _names(row: Row) -> list[str | None]:
    """For each axis its name, where it has one alone."""
    names = [dims_.dim_names((dim,)) if len(dim) == 1 else frozenset[str]() for dim in row.dims]
    return [next(iter(each)) if len(each) == 1 else None for each in names]


@dataclasses.dataclass(frozen=True, slots=True)
class Unfolded:
    """What is done, and with which leaves, where none stands for others any more.

    Attributes:
        task: What is done.
        inputs: The slots of what is read of the tree.
        kept: The slots of what is read of the tree that results go onto, after these.
        results: The slots of what is made.
        untold: The key paths of wholes that nothing tells the parts of, with what to do.
    """

    task: AnyTask
    inputs: tuple[Slot, ...]
    kept: tuple[Slot, ...]
    results: tuple[Slot, ...]
    untold: tuple[tuple[str, str], ...] = ()


class FoldedLeaves:
    """The rows of both sides that stand for several."""

    def __init__(
        self, rows: tuple[Sequence[Row], Sequence[Row]], folds: FoldedRows, sizes: Sizes
    ) -> None:
        self._rows, self._sizes = rows, sizes
        self._folds = [{one.row: one for one in several} for several in folds]

    def of(self, side: int, slot: Slot) -> FoldedRow | None:
        """What a leaf stands for."""
        return self._folds[side].get(slot[0])

    def dims(self, join: Join) -> set[str]:
        """The dims of all leaves that those of a join stand for."""
        found: set[str] = set()
        for side, numbers in enumerate((join.sources, join.views)):
            for fold in filter(None, map(self._folds[side].get, numbers)):
                for number in fold.parts:
                    found |= dims_.dim_names(self._rows[side][number].all_dims)
        return found

    def parts(self, side: int, slot: Slot) -> list[Slot]:
        """The leaves that a leaf stands for, itself first."""
        fold = self.of(side, slot)
        return [slot] if fold is None else [(number, slot[1]) for number in fold.parts]

    def faults(self, side: int, slot: Slot) -> Iterator[Mismatch]:
        """What is wrong with the sizes of leaves of which something is computed."""
        fold = self.of(side, slot)
        if fold is None or not isinstance(fold.kind, Scaling):
            return
        numbers, scales = (self._kind(side, part).shape for part in self.parts(side, slot))
        grid = grid_of(numbers, fold.kind.block)
        # An axis with one block may be left out: nothing is meant by it.
        if [n for n in grid if n != 1] == [n for n in scales if n != 1]:
            return
        row = self._rows[side][fold.others[0]]
        block = " ".join("all" if each is None else str(each) for each in fold.kind.block)
        expected = f"{list(grid)}, a scale for each block of {block} of {list(numbers)}"
        where = paths.format_path(paths.fill(row.key, slot[1]))
        yield Mismatch(where, "shape", expected, str(list(scales)), "say another block=")

    def touch(self, made: Application, read: int) -> bool:
        """Whether any of these leaves stands for several; ``read`` is the side that is read."""
        slots = [*((read, slot) for slot in made.inputs), *((1 - read, s) for s in made.results)]
        return any(self.of(side, slot) is not None for side, slot in slots)

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
        if not self.touch(made, read):
            return Unfolded(task, made.inputs, tuple(kept), made.results)
        inputs: list[Slot] = []
        before: list[Gathered] = []
        for slot in made.inputs:
            before.append(self._gathered(read, slot, inputs))
        count = len(inputs)
        for slot in kept:
            before.append(self._gathered(1 - read, slot, inputs))
        results: list[Slot] = []
        after: list[TakenApart] = []
        untold: list[tuple[str, str]] = []
        for slot in made.results:
            fold = self.of(1 - read, slot)
            first = len(results)
            if fold is None:
                after.append(TakenApart((first,)))
                results.append(slot)
                continue
            parts = self.parts(1 - read, slot)
            own: list[int | None] = []
            for part in parts:
                own.append(len(inputs) if there(part) else None)
                inputs += [part] if there(part) else []
            each = self._taken_apart(fold, parts, first, tuple(own), 1 - read)
            if each.cure and None in own:
                untold.append((each.where, each.cure))
            after.append(each)
            results += parts[: fold.kind.made]
        kinds = [self._kind(read if at < count else 1 - read, s) for at, s in enumerate(inputs)]
        goals = [self._kind(1 - read, slot) for slot in results]
        whole = FoldTask(task, tuple(kinds), tuple(goals), tuple(before), tuple(after), made.moves)
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
        rows = [self._rows[side][number] for number in fold.parts]
        spare = (row.default if isinstance(row.default, leaves.Fill) else None for row in rows)
        others = ["/".join(row.model_path) for row in rows[1:]]
        return TakenApart(
            tuple(range(first, first + fold.kind.made)),
            fold.kind,
            tuple(self._kind(side, slot) for slot in parts),
            own,
            tuple(spare),
            paths.format_path(paths.fill(rows[0].key, parts[0][1])),
            "" if fold.is_told else fold.kind.cure(others),
        )

    def _kind(self, side: int, slot: Slot) -> Kind:
        row = self._rows[side][slot[0]]
        shape = dims_.sizes_of(row.dims, self._sizes)
        assert shape is not None, f"unbound dims in {row}"
        return Kind(shape, row.leaf.dtype)

"""A plan taken apart: what each leaf of the result is, and what is made by itself, apart from all the rest.

So a tree too large for memory is translated leaf by leaf, each read when its turn comes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import leaves
from ckpt_schema._lens.arrays import checks, own_bits, tie_checks
from ckpt_schema._lens.arrays.fold_tasks import run_task, verify_tasks
from ckpt_schema._lens.plan import new_leaves
from ckpt_schema._lens.plan.plan import Job, Make, Plan, Restart, Same
from ckpt_schema.errors import ConformanceError

__all__ = ["Piece", "Pieces", "pieces_of"]

_Run = Callable[[Sequence[Any]], list[Any]]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Leaves that are made together.

    Attributes:
        inputs: What they are made of: positions of leaves of the tree, then of those it goes onto.
        results: The positions of what is made, which come after these.
        run: Makes them of the inputs, and raises where a value would not survive.
    """

    inputs: tuple[int, ...]
    results: tuple[int, ...]
    run: _Run


@dataclasses.dataclass(frozen=True, slots=True)
class Pieces:
    """A plan in pieces.

    Attributes:
        count: How many leaves the tree has.
        places: For each leaf of the result, its position. One below ``count`` only moves.
        every: What is made, in order; some make nothing and only look at values.
    """

    count: int
    places: tuple[int, ...]
    every: tuple[Piece, ...]

    def values(self, pool: Sequence[Any]) -> Iterator[tuple[Sequence[int], Any]]:
        """Each value once, with the numbers of the result's leaves that it is: what only moves first, then what is made.

        Args:
            pool: The leaves of the tree, then of those it goes onto.

        Raises:
            ConformanceError: With all that is refused, by this piece and by those after it.
        """
        numbers: dict[int, list[int]] = {}
        for number, at in enumerate(self.places):
            numbers.setdefault(at, []).append(number)
        for at, own in numbers.items():
            if at < len(pool):
                yield own, pool[at]
        for turn, piece in enumerate(self.every):
            try:
                made = piece.run([pool[at] for at in piece.inputs])
            except ConformanceError as error:
                raise self._refusal(error, pool, turn + 1) from error
            for at, value in zip(piece.results, made, strict=True):
                if at in numbers:
                    yield numbers[at], value
            del made  # before the next are made

    def _refusal(self, first: ConformanceError, pool: Sequence[Any], start: int) -> Exception:
        """The error of a piece, with what those from a number on would refuse too."""
        faults = dict.fromkeys(first.mismatches)
        for piece in self.every[start:]:
            try:
                piece.run([pool[at] for at in piece.inputs])
            except ConformanceError as error:
                faults.update(dict.fromkeys(error.mismatches))
        return type(first)(first.header, faults, first.notes)


def pieces_of(plan: Plan, *, verified: bool = False) -> Pieces:
    """The pieces of a plan, which may read the leaves that the result goes onto.

    Args:
        plan: The plan.
        verified: Whether all values were looked at. Then they are not again, and nothing is read
            of what the result goes onto but its private leaves: all else is made anew.
    """
    count = len(plan.source.shapes)
    base = count + (0 if plan.onto is None else len(plan.onto.shapes))
    pieces: list[Piece] = []
    at = base
    for job in plan.jobs:
        results = tuple(range(at, at + len(job.likes)))
        if verified:
            pieces.append(Piece(job.inputs, results, functools.partial(_make, job)))
        else:
            pieces.append(_with_kept(job, results, count) if job.echoes else _edited(job, results))
        at += len(job.likes)
    for make in plan.makes:
        pieces.append(Piece((), (at,), functools.partial(_default, make)))
        at += 1
    made_by = {result: piece for piece in pieces for result in piece.results}
    if plan.restart is not None:
        again, results = plan.restart, tuple(range(at, at + len(plan.restart.likes)))
        pieces.append(_joined(again.inputs, results, functools.partial(_anew, again), made_by))
        at += len(results)
    looks: list[Piece] = []
    for same in plan.same:
        verify = functools.partial(_verify_same, same)
        looks.append(_joined((same.first, same.copy), (), verify, made_by))
    # What may be refused is looked at before anything is handed over.
    return Pieces(count, tuple(plan.gather(list(range(at)))), (*looks, *pieces))


def _joined(
    wanted: Sequence[int], results: tuple[int, ...], run: _Run, made_by: Mapping[int, Piece]
) -> Piece:
    """A piece made of what may itself be made: the pieces that do so are run within it, once more."""
    inner = {id(piece): piece for at in wanted if (piece := made_by.get(at)) is not None}
    direct = [at for at in wanted if at not in made_by]
    below = [at for piece in inner.values() for at in piece.inputs]
    inputs = tuple(dict.fromkeys((*direct, *below)))

    def whole(values: Sequence[Any]) -> list[Any]:
        known = dict(zip(inputs, values, strict=True))
        for piece in inner.values():
            made_here = piece.run([known[at] for at in piece.inputs])
            known.update(zip(piece.results, made_here, strict=True))
        return run([known[at] for at in wanted])

    return Piece(inputs, results, whole)


def _edited(job: Job, results: tuple[int, ...]) -> Piece:
    return Piece(job.inputs, results, functools.partial(_edit, job))


def _with_kept(job: Job, results: tuple[int, ...], count: int) -> Piece:
    """A piece whose results may be what the leaves already hold that it goes onto: it reads these too."""
    likes = [None if like is None else count + like for like in job.likes]
    read = [*job.inputs, *(at for echo in job.echoes for at in echo.inputs)]
    read += (at for at in likes if at is not None)
    inputs = tuple(dict.fromkeys(read))
    place = {at: number for number, at in enumerate(inputs)}
    # Of a piece only its own leaves are at hand: they are counted anew.
    echoes = [
        dataclasses.replace(echo, inputs=tuple(place[at] for at in echo.inputs))
        for echo in job.echoes
    ]

    def run(values: Sequence[Any]) -> list[Any]:
        given = [values[place[at]] for at in job.inputs]
        own = [None if at is None else values[place[at]] for at in likes]
        if not own_bits.stays(job.task, echoes, given, values, job.count):
            _verify(job, given)
        return own_bits.with_own_bits(job.task, echoes, given, own, values, job.count)

    return Piece(inputs, results, run)


def _edit(job: Job, values: Sequence[Any]) -> list[Any]:
    _verify(job, values)
    return _make(job, values)


def _make(job: Job, values: Sequence[Any]) -> list[Any]:
    return run_task(job.task, values, [None] * len(job.likes)) if job.task.results else []


def _verify(job: Job, values: Sequence[Any]) -> None:
    kinds = zip(values, job.task.inputs, strict=True)
    arrays = [leaves.materialized(value, kind.dtype) for value, kind in kinds]
    likes = [None] * len(job.likes)
    verify_tasks([checks.LeafTask(job.task, arrays, likes, job.paths, job.said)])


def _default(make: Make, values: Sequence[Any]) -> list[Any]:
    how = (make.default, make.dtype, make.shape, make.spot)
    return [new_leaves.default(*how, None, None, abstract=False)]


def _anew(again: Restart, values: Sequence[Any]) -> list[Any]:
    likes = [None] * len(again.likes)
    return new_leaves.anew(again.run, values, likes, again.along, None, abstract=False)


def _verify_same(same: Same, values: Sequence[Any]) -> list[Any]:
    first, copy = values
    tie_checks.verify_same([(first, copy, same.paths, same.hint)])
    return []

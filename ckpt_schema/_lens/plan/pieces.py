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
from ckpt_schema._lens.arrays.own_bits import Echo
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
        # Tied leaves of the result are one value, with two numbers.
        numbers: dict[int, list[int]] = {}
        for number, place in enumerate(self.places):
            numbers.setdefault(place, []).append(number)
        for place, leaf_numbers in numbers.items():
            if place < len(pool):
                yield leaf_numbers, pool[place]
        for turn, piece in enumerate(self.every):
            try:
                made = piece.run(_picked(pool, piece.inputs))
            except ConformanceError as error:
                raise self._refusal(error, pool, turn + 1) from error
            for place, value in zip(piece.results, made, strict=True):
                if place in numbers:
                    yield numbers[place], value
            # Before the next are made: of a tree too large for memory there is never more than one piece.
            del made

    def _refusal(self, first: ConformanceError, pool: Sequence[Any], start: int) -> Exception:
        """The error of a piece, with what those from a number on would refuse too."""
        faults = dict.fromkeys(first.mismatches)
        # What they make is thrown away: all that is wrong is told at once.
        for piece in self.every[start:]:
            try:
                piece.run(_picked(pool, piece.inputs))
            except ConformanceError as error:
                faults.update(dict.fromkeys(error.mismatches))
        return type(first)(first.header, faults, first.notes)


def _picked(pool: Mapping[int, Any] | Sequence[Any], places: Sequence[int]) -> list[Any]:
    """The leaves at some positions."""
    return [pool[place] for place in places]


def pieces_of(plan: Plan, *, verified: bool = False) -> Pieces:
    """The pieces of a plan, which may read the leaves that the result goes onto.

    Args:
        plan: The plan.
        verified: Whether all values were looked at. Then they are not again, and nothing is read
            of what the result goes onto but its private leaves: all else is made anew.
    """
    count = len(plan.source.shapes)
    # In the pool: the tree's leaves, those of onto, then what is made, in the order of a run.
    end = count + (0 if plan.onto is None else len(plan.onto.shapes))
    pieces: list[Piece] = []
    for job in plan.jobs:
        results = tuple(range(end, end + len(job.likes)))
        if verified:
            pieces.append(Piece(job.inputs, results, functools.partial(_make, job)))
        elif job.echoes:
            pieces.append(_with_kept(job, results, count))
        else:
            pieces.append(_edited(job, results))
        end += len(job.likes)
    for make in plan.makes:
        pieces.append(Piece((), (end,), functools.partial(_default, make)))
        end += 1
    made_by: dict[int, Piece] = {}
    for piece in pieces:
        made_by.update(dict.fromkeys(piece.results, piece))
    if plan.restart is not None:
        again, results = plan.restart, tuple(range(end, end + len(plan.restart.likes)))
        pieces.append(_joined(again.inputs, results, functools.partial(_anew, again), made_by))
        end += len(results)
    looks: list[Piece] = []
    for same in plan.same:
        verify = functools.partial(_verify_same, same)
        looks.append(_joined((same.first, same.copy), (), verify, made_by))
    # What a result is, is told by gathering the numbers of the pool instead of its leaves.
    places = tuple(plan.gather([*range(end)]))
    # What may be refused is looked at before anything is handed over.
    return Pieces(count, places, (*looks, *pieces))


def _joined(
    wanted: Sequence[int], results: tuple[int, ...], run: _Run, made_by: Mapping[int, Piece]
) -> Piece:
    """A piece made of what may itself be made: the pieces that do so are run within it, once more."""
    inner: dict[int, Piece] = {}  # by id: one piece may make several of what is wanted
    direct: list[int] = []
    for place in wanted:
        piece = made_by.get(place)
        if piece is None:
            direct.append(place)
        else:
            inner[id(piece)] = piece
    for piece in inner.values():
        direct += piece.inputs
    inputs = tuple(dict.fromkeys(direct))

    def whole(values: Sequence[Any]) -> list[Any]:
        known = dict(zip(inputs, values, strict=True))
        for piece in inner.values():
            made = piece.run(_picked(known, piece.inputs))
            known.update(zip(piece.results, made, strict=True))
        return run(_picked(known, wanted))

    return Piece(inputs, results, whole)


def _edited(job: Job, results: tuple[int, ...]) -> Piece:
    """A piece that makes its results anew, whatever they stand for."""
    return Piece(job.inputs, results, functools.partial(_edit, job))


def _with_kept(job: Job, results: tuple[int, ...], count: int) -> Piece:
    """A piece whose results may be what the leaves already hold that it goes onto: it reads these too."""
    read = [*job.inputs]
    for echo in job.echoes:
        read += echo.inputs
    # A job counts the leaves of onto by themselves, and a piece behind those of the tree.
    likes = [None if like is None else count + like for like in job.likes]
    read += [like for like in likes if like is not None]
    inputs = tuple(dict.fromkeys(read))
    # Of a piece only its own leaves are at hand: they are counted anew.
    places = {position: place for place, position in enumerate(inputs)}
    echoes: list[Echo] = []
    for echo in job.echoes:
        echoes.append(dataclasses.replace(echo, inputs=tuple(_picked(places, echo.inputs))))

    def run(values: Sequence[Any]) -> list[Any]:
        given = _picked(values, _picked(places, job.inputs))
        own = [None if like is None else values[places[like]] for like in likes]
        # What is equal to its echo is onto's own, and so is never refused.
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

"""Plans: what a translation does to trees of one structure, compiled once and run as list operations.

A run flattens the tree against the structure the plan was made for (which verifies that structure), compares all shapes and
dtypes, gathers the leaves that move by index, makes the few that are edited or defaulted, and unflattens.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ckpt_schema._compat import Tracer
from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.leaves import Leaf, Made
from ckpt_schema._layouts.pytrees import TreeDef
from ckpt_schema._lens.arrays import checks, own_bits, shardings, tie_checks
from ckpt_schema._lens.arrays.checks import narrowed
from ckpt_schema._lens.arrays.comparison import difference
from ckpt_schema._lens.arrays.donation import Donation
from ckpt_schema._lens.arrays.fold_tasks import AnyTask, run_task, verify_tasks
from ckpt_schema._lens.arrays.own_bits import Echo
from ckpt_schema._lens.plan import new_leaves
from ckpt_schema._lens.plan.outline import Outline, outline
from ckpt_schema._trees.containers import Tree
from ckpt_schema._trees.defaults import Receiver, make_default
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = [
    "Dropped",
    "Job",
    "Make",
    "Plan",
    "Restart",
    "Same",
    "Signature",
    "gatherer",
    "signature_of",
]

_avals = operator.attrgetter("aval")
_shapes = operator.attrgetter("shape")
_dtypes = operator.attrgetter("dtype")


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """The structure of a tree, and the shape and dtype of its leaves.

    Attributes:
        treedef: The structure.
        outline: Its containers on top.
        shapes: The leaves' shapes, or for leaves that are no jax arrays one token each.
        dtypes: The leaves' dtypes; None in the second case.
        numbers: The positions of Python numbers, and what each stands for: it is not the number that a plan depends on.
        kinds: The classes of the leaves' abstract values.
        avals: The abstract values of the leaves seen last. Arrays that one jitted step returns carry the same ones call after
            call, so that comparing identities most often does; it is a memo, and nothing depends on what it holds.
    """

    treedef: TreeDef
    outline: Outline
    shapes: list[Any]
    dtypes: list[Any] | None
    numbers: tuple[tuple[int, Leaf], ...]
    kinds: frozenset[type]
    avals: list[Any]

    def flatten(self, tree: Tree) -> list[Any] | None:
        """The leaves of ``tree``, or None when it is not of this signature."""
        if not self.outline.fits(tree):
            return None
        try:
            # Verifies containers, keys and metadata on its way.
            flat: list[Any] = self.treedef.flatten_up_to(tree)
        except (ValueError, TypeError):
            return None
        if self.dtypes is None:
            if list(map(_token, flat)) != self.shapes:
                return None
            for position, leaf in self.numbers:
                # The same plan serves every number that the declared dtype holds.
                if not leaves.accepts(leaf, flat[position]):
                    return None
            return flat
        # From here on every line is a `map`: a loop over the leaves would take longer than all else.
        # A Variable passes for its value where only attributes are compared.
        if not all(map(leaves.is_array_class, set(map(type, flat)))):
            return None
        try:
            if all(map(operator.is_, map(_avals, flat), self.avals)):
                return flat
            # One look-up per leaf: both shape and dtype are the aval's.
            avals = list(map(_avals, flat))
            # A reference has the shape and dtype of what it refers to.
            if set(map(type, avals)) - self.kinds:
                return None
        except AttributeError:
            return None
        if list(map(_shapes, avals)) != self.shapes or list(map(_dtypes, avals)) != self.dtypes:
            return None
        self.avals[:] = avals
        return flat


def signature_of(
    treedef: TreeDef, values: Sequence[Any], declared: Callable[[int], Leaf]
) -> Signature:
    """The signature of a tree from its structure and leaves.

    Args:
        treedef: The structure.
        values: The leaves.
        declared: What the leaf at a position is declared to be.
    """
    try:
        avals = list(map(_avals, values))
    except AttributeError:
        # One leaf of NumPy, or a Python number, and each leaf has a token.
        numbers: list[tuple[int, Leaf]] = []
        for position, value in enumerate(values):
            if leaves.is_scalar(value):
                numbers.append((position, declared(position)))
        tokens = list(map(_token, values))
        return Signature(treedef, outline(treedef), tokens, None, tuple(numbers), frozenset(), [])
    shapes, dtypes = list(map(_shapes, avals)), list(map(_dtypes, avals))
    kinds = frozenset(map(type, avals))
    return Signature(treedef, outline(treedef), shapes, dtypes, (), kinds, avals)


def _token(value: Any) -> Any:
    """What a plan depends on in a leaf that may be no jax array: abstract or not, its shape and dtype."""
    if leaves.is_scalar(value):
        return type(value)
    return (
        leaves.is_abstract(value),
        isinstance(value, jax.Array),
        leaves.signature(value),
        type(value).__name__,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """Leaves that are made of others.

    Attributes:
        task: What is done. A Python number becomes an array first.
        inputs: Positions of the input leaves.
        paths: Their key paths, for messages.
        likes: For each result, the position in ``onto`` of the leaf it stands for, or None.
        echoes: What the other direction makes of these, where something is lost on the way.
        count: How many inputs are the tree's; the others are onto's.
        said: What rules call the leaves.
    """

    task: AnyTask
    inputs: tuple[int, ...]
    paths: tuple[str, ...]
    likes: tuple[int | None, ...]
    echoes: tuple[Echo, ...] = ()
    count: int = 0
    said: checks.RulePaths | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Make:
    """A default to make.

    Attributes:
        default: How it is made.
        dtype: Its dtype name.
        shape: Its shape.
        spot: Which leaf of its model it is.
        like: The position in ``onto`` of the abstract leaf it stands for, or None.
        abstract: Whether an abstract value is wanted.
    """

    default: Made
    dtype: str
    shape: tuple[int, ...]
    spot: Receiver
    like: int | None
    abstract: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """A leaf of the tree that the result has no place for.

    Attributes:
        fault: What to say of it.
        position: Where it is in the tree.
        spare: What the tree would have there by default, if it is declared: nothing is lost where it is that.
    """

    fault: Mismatch
    position: int
    spare: Make | None

    def loses(self, value: Any) -> bool:
        """Whether a leaf is another than the way back would make."""
        spare = self.spare
        # A value that is not known yet may be any.
        if spare is None or isinstance(value, Tracer):
            return True
        if leaves.is_abstract(value):
            return False
        made = make_default(spare.default, spare.dtype, spare.shape, None, spare.spot)
        return difference(leaves.materialized(value, spare.dtype), made) is not None


@dataclasses.dataclass(frozen=True, slots=True)
class Same:
    """Two leaves that must be equal: the second is a copy of the first.

    Attributes:
        first: The position in the pool of the one that the result has.
        copy: The position of the other.
        paths: The key paths of what both are made of, and of what they are to be, for messages.
    """

    first: int
    copy: int
    paths: tuple[str, str, str]
    hint: str = tie_checks.TIED


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Restart:
    """Leaves of an optimizer state as its transformation starts them.

    Attributes:
        run: Makes them from the params.
        inputs: Where the params are in the pool.
        likes: For each leaf, the position in ``onto`` of the leaf it stands for, or None.
        along: For each leaf, which of the params it is as long as on every axis, and takes the sharding of; or None.
        abstract: Whether abstract values are wanted.
    """

    run: Callable[[Sequence[Any]], list[Any]]
    inputs: tuple[int, ...]
    likes: tuple[int | None, ...]
    along: tuple[int | None, ...]
    abstract: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A compiled translation of trees of one signature.

    Attributes:
        source: The signature of the tree that is translated.
        onto: The signature of the tree whose container and private leaves are used, or None.
        treedef: The structure of the result.
        gather: Picks the result's leaves from: the tree's, then onto's, then the jobs' and the defaults.
        jobs: The edits.
        makes: The defaults.
        restart: What starts anew, or None.
        same: What must be equal.
        dropped: What the tree has and the result has no place for.
    """

    source: Signature
    onto: Signature | None
    treedef: TreeDef
    gather: Callable[[list[Any]], Sequence[Any]]
    jobs: tuple[Job, ...]
    makes: tuple[Make, ...]
    restart: Restart | None = None
    same: tuple[Same, ...] = ()
    dropped: tuple[Dropped, ...] = ()

    def accepts(self, tree: Tree, onto: Tree | None) -> tuple[list[Any], list[Any]] | None:
        """The leaves of both trees, or None when the plan was made for others."""
        if (onto is None) != (self.onto is None):
            return None
        flat = self.source.flatten(tree)
        if flat is None:
            return None
        kept: list[Any] | None = [] if self.onto is None else self.onto.flatten(onto)
        return None if kept is None else (flat, kept)

    def run(self, found: list[Any], kept: list[Any], *, donate: bool = False) -> Tree:
        """The translated tree.

        Args:
            found: The leaves of the tree that is translated; the list is used up.
            kept: The leaves of ``onto``.
            donate: Whether leaves of ``found`` are deleted when nothing needs them any more.

        Raises:
            ConformanceError: A value cannot be cast exactly, or a copy is not equal to its original; every such leaf is named.
        """
        # Grown in place: a copy would cost as much as the gathering itself.
        pool = found
        pool += kept
        if self.jobs:
            self._edit(pool, kept, donate=donate)
        if self.same:
            pairs: list[tie_checks.Pair] = []
            for same in self.same:
                pairs.append((pool[same.first], pool[same.copy], same.paths, same.hint))
            tie_checks.verify_same(pairs)
        # Last, for what starts anew is made of params that jobs may have made.
        if self.makes or self.restart is not None:
            self._make(pool, kept)
        return self.treedef.unflatten(self.gather(pool))

    def _edit(self, pool: list[Any], kept: Sequence[Any], *, donate: bool) -> None:
        """Appends what is edited."""
        # Before anything is made: a fault in the last leaf must not leave donated ones deleted.
        self.verify(pool, kept)
        donation = None
        if donate:
            # What is given up is the tree's: the leaves of onto stay, and what the result still needs.
            given = pool[: len(pool) - len(kept)]
            needed = [pool[position] for position in self._needed(len(pool))]
            donation = Donation(given, [*kept, *needed])
        gathered: list[tuple[str, list[str], Any]] = []
        for job in self.jobs:
            likes = _likes(job.likes, kept)
            inputs = [pool[position] for position in job.inputs]
            # Of what the other side has no place for, only the values are looked at.
            results = _results(job, inputs, likes, pool) if job.task.results else []
            pool += results
            # A sharding that onto has was asked for, and nobody has to be warned of it.
            if results and getattr(likes[0], "sharding", None) is None:
                lost = shardings.lost_axes(inputs, results[0])
                if lost:
                    gathered.append((job.paths[0], lost, results[0]))
            if donation is not None:
                donation.used(inputs, results)
        if gathered:
            shardings.warn_of_whole(gathered)

    def verify(self, pool: Sequence[Any], kept: Sequence[Any]) -> None:
        """Raises unless every value survives, or is to be what ``onto`` has already."""
        try:
            verify_tasks(self._leaf_tasks(self.jobs, pool, kept))
        except ConformanceError:
            # Which leaves onto has already is asked only now: the answer makes each of them once more.
            anew = [job for job in self.jobs if not _stays(job, pool)]
            if len(anew) == len(self.jobs):
                raise
            verify_tasks(self._leaf_tasks(anew, pool, kept))

    def _leaf_tasks(
        self, jobs: Sequence[Job], pool: Sequence[Any], kept: Sequence[Any]
    ) -> list[checks.LeafTask[AnyTask]]:
        """What is to be looked at."""
        tasks: list[checks.LeafTask[AnyTask]] = []
        for job in jobs:
            inputs: list[Any] = []
            for position, kind in zip(job.inputs, job.task.inputs, strict=True):
                inputs.append(leaves.materialized(pool[position], kind.dtype))
            likes = _likes(job.likes, kept)
            tasks.append(checks.LeafTask(job.task, inputs, likes, job.paths, job.said))
        return tasks

    def _make(self, pool: list[Any], kept: Sequence[Any]) -> None:
        """Appends defaults, and what starts anew."""
        # A default that stands for no leaf goes on the mesh of the others: jit takes no two meshes.
        mesh = shardings.mesh_of(pool)
        inside = any(isinstance(leaf, Tracer) for leaf in pool)
        for make in self.makes:
            narrow = narrowed("default", make.dtype) if inside else None
            if narrow is not None:
                raise ConformanceError("a default has no place inside of jit", [narrow])
            like = None if make.like is None else kept[make.like]
            pool.append(
                new_leaves.default(
                    make.default,
                    make.dtype,
                    make.shape,
                    make.spot,
                    like,
                    mesh,
                    abstract=make.abstract,
                )
            )
        if self.restart is not None:
            again = self.restart
            params = [pool[position] for position in again.inputs]
            likes = _likes(again.likes, kept)
            mesh = shardings.mesh_of(pool)
            along, abstract = again.along, again.abstract
            pool += new_leaves.anew(again.run, params, likes, along, mesh, abstract=abstract)

    def kept(self) -> set[int]:
        """The positions in ``onto`` of the leaves whose values a run needs."""
        start = len(self.source.shapes)
        count = 0 if self.onto is None else len(self.onto.shapes)
        positions: set[int] = set()
        for position in self._needed(start + count):
            if position >= start:
                positions.add(position - start)
        return positions

    def _needed(self, count: int) -> list[int]:
        """The positions of the leaves that a run needs, each as often as it does, where both trees have so many."""
        end = count + len(self.makes)
        positions: list[int] = []
        for job in self.jobs:
            end += len(job.likes)
            positions += job.inputs
        for same in self.same:
            positions += (same.first, same.copy)
        if self.restart is not None:
            end += len(self.restart.likes)
            positions += self.restart.inputs
        # What the result takes is told by gathering the numbers of the pool instead of its leaves.
        positions += self.gather([*range(end)])
        return [position for position in positions if position < count]


def _likes(positions: Sequence[int | None], kept: Sequence[Any]) -> list[Any]:
    """The leaves of ``onto`` that results stand for; None for each that stands for none."""
    return [None if position is None else kept[position] for position in positions]


def _results(job: Job, inputs: Sequence[Any], likes: Sequence[Any], pool: list[Any]) -> list[Any]:
    """What a job makes of its inputs."""
    if not job.echoes:
        return run_task(job.task, inputs, likes, pool)
    return own_bits.with_own_bits(job.task, job.echoes, inputs, likes, pool, job.count)


def _stays(job: Job, pool: Sequence[Any]) -> bool:
    """Whether the inputs of a job still are what the other direction makes of what they go onto."""
    inputs = [pool[position] for position in job.inputs]
    return bool(job.echoes) and own_bits.stays(job.task, job.echoes, inputs, pool, job.count)


def gatherer(positions: Sequence[int]) -> Callable[[list[Any]], Sequence[Any]]:
    """A function that picks ``positions`` from a list, as fast as Python can."""
    if len(positions) > 1:
        return operator.itemgetter(*positions)
    # Of one position an itemgetter makes no tuple, and of none there is no itemgetter.
    return lambda pool: [pool[position] for position in positions]

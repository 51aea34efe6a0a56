"""Trials: a lens bound to sizes, and states of both of its layouts for a law to be tried on."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st

from ckpt_schema._layouts import leaves
from ckpt_schema._layouts.precision import open_rows
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.containers import Tree
from ckpt_schema.testing._applied import looked_at
from ckpt_schema.testing._choices import Choices, choices
from ckpt_schema.testing._container_kinds import container_kinds
from ckpt_schema.testing._meshes import MESHES, MeshSpec
from ckpt_schema.testing._outputs import Outputs
from ckpt_schema.testing._own_values import filled_lens
from ckpt_schema.testing._samples import Sample
from ckpt_schema.testing._states import bound, refusable
from ckpt_schema.testing._values import VALUES, Values
from ckpt_schema.testing.strategies import Bound, counts, optional, space

__all__ = ["GivenTrial", "Trial", "TrialKind", "narrowed_trial", "precisions", "trials"]

TrialKind = Literal["any", "free", "plain", "jit", "sharded", "disk", "given"]
"""What a law is tried on: leaves of any kind, or besides with values that the lens may refuse; NumPy arrays; jax arrays on one
device, on a mesh, or on a mesh and on disk; or states that are given."""
_Where = Literal["numpy", "jax", "sharded"]
_COMPILED = 6  # how many ways leaves on devices come in: of each, all programs are compiled anew
_ANYWHERE: tuple[_Where, ...] = ("numpy", "numpy", "jax", "sharded")
_EITHER = (False, True)


class Trial:
    """A lens and states of its layouts: ``s`` and ``t`` of the source, ``v`` and ``w`` of the view.

    Not a dataclass, for hypothesis would print all of its layouts.
    """

    def __init__(
        self,
        lens: Lens,
        samples: tuple[Sample, Sample],
        *,
        wide: Callable[[], Lens] | None = None,
        turned: bool = False,
        precision: Precision | None = None,
    ) -> None:
        """Keeps a lens, all of its dims bound, and what the first state of each side is.

        ``lens`` has a default for what keeps its own value; ``given`` is without.

        Args:
            lens: The lens.
            samples: What the states are.
            wide: Makes `wide`; the lens itself is it unless given.
            turned: Whether the lens is an inverse.
            precision: Which floats it is for, where it was for any.
        """
        self.given, self.lens = lens, filled_lens(lens)
        self.samples, self.turned = samples, turned
        self.precision = precision or {}
        self._wide = wide

    @functools.cached_property
    def wide(self) -> Lens:
        """The lens of no axis with one element, as far as may be: what is said of axes is tried on it, which few trials do."""
        return self.lens if self._wide is None else filled_lens(self._wide())

    @functools.cached_property
    def told(self) -> Mapping[str, Sample]:
        """The samples by name."""
        source, view = self.samples
        # `s` and `t` differ in nothing but their values, and so do `v` and `w`.
        later = dataclasses.replace(source, seed=source.seed + 1)
        other = dataclasses.replace(view, seed=view.seed + 1)
        return {"s": source, "v": view, "t": later, "w": other}

    @property
    def mixed(self) -> bool:
        """Whether NumPy arrays stand beside sharded ones."""
        return self.samples[0].mixed or self.samples[1].mixed

    @property
    def names_axes(self) -> bool:
        """Whether what is said of axes is tried too, which does not depend on values: every fourth time."""
        return self.samples[0].seed % 4 == 0

    @property
    def concrete(self) -> bool:
        """Whether a restore is given arrays, and not what they are like: every second time."""
        return self.samples[1].seed % 2 == 0

    @property
    def gives_up(self) -> bool:
        """Whether these arrays are given up: every third time, where they have no own bits to give back."""
        return self.concrete and self.samples[1].seed % 3 == 0 and self.lens.exact

    def __getitem__(self, name: str) -> Tree:
        """The state of this name; those of a side have the same structure, and other values."""
        sample = self.told[name]
        return sample.source(self.lens) if name in "st" else sample.view(self.lens)

    def __repr__(self) -> str:
        """The samples, as code."""
        return "\n".join(self.code("s", "v"))

    def code(self, *names: str) -> list[str]:
        """The code that makes the states of these names."""
        lines: list[str] = []
        # In the order in which the lens was made: its floats are told before it is turned.
        if self.precision:
            floats = [f'{side}="{dtype}"' for side, dtype in self.precision.items()]
            lines.append(f"lens = lens.at({', '.join(floats)})")
        if self.turned:
            lines.append("lens = ~lens")
        for name in names:
            side = "source" if name in "st" else "view"
            lines.append(f"{name} = {self.told[name]!r}.{side}(lens)")
        return lines


class GivenTrial(Trial):
    """A lens and states that somebody has given; None where nobody has."""

    def __init__(
        self,
        lens: Lens,
        states: Mapping[str, Tree | None],
        outputs: Outputs | None = None,
        tolerance: float = 0.0,
        *,
        gradients: bool = True,
    ) -> None:
        """Keeps the lens, the states by name, and what the models compute with them, up to a tolerance."""
        self.given, self.lens = lens, filled_lens(lens)
        self._wide, self._states, self.outputs = None, states, outputs
        self.tolerance, self.gradients = tolerance, gradients

    @property
    def mixed(self) -> bool:
        """Nobody mixes them."""
        return False

    @property
    def concrete(self) -> bool:
        """Nothing that is given is restored."""
        return False

    @property
    def names_axes(self) -> bool:
        """What is given is of one size."""
        return False

    def __getitem__(self, name: str) -> Any:
        """The state of this name."""
        return self._states[name]

    def code(self, *names: str) -> list[str]:
        """Which states they are."""
        lines: list[str] = []
        for name in names:
            side = "source" if name == "s" else "view"
            lines.append(f"{name} = the `{side}` that is given")
        return lines


def trials(
    lens: Lens,
    kind: TrialKind,
    bounds: Mapping[str, Bound],
    meshes: tuple[MeshSpec, ...] = MESHES,
    *,
    long: bool = False,
) -> st.SearchStrategy[Trial]:
    """Random trials of a lens.

    Args:
        lens: The lens.
        kind: What leaves are, and where.
        bounds: The sizes of dims; see `ckpt_schema.testing.strategies.sizes`.
        meshes: The meshes that leaves are sharded over.
        long: Whether one in four has many layers, and a long axis.
    """
    return choices().map(lambda choose: _chosen(choose, lens, kind, bounds, meshes, long))


def _chosen(
    choose: Choices,
    lens: Lens,
    kind: TrialKind,
    bounds: Mapping[str, Bound],
    meshes: tuple[MeshSpec, ...],
    long: bool,
) -> Trial:
    # What is chosen is drawn whether it is used or not, so that a choice means the same thing in
    # every trial: or else an example would not shrink.
    precision = choose.of(precisions(lens, kind))
    lens = lens.at(**precision)
    turned = kind == "disk" and choose.of(_EITHER)  # one way at a time: it takes seconds
    lens = _turned(lens) if turned else lens
    bounds = {**_few(lens), **bounds} if kind == "disk" else bounds
    near = choose.of(_EITHER)
    where = _where(lens, kind, choose.of(_ANYWHERE), meshes)
    way, sizes = choose.of(range(_COMPILED)), space(lens, bounds).chosen(choose)
    if choose.of((False, False, False, True)) and long and where == "numpy":
        sizes = space(lens, bounds).stretched(sizes, choose.number())
    # On devices, few sizes: programs are compiled for each.
    if where != "numpy":
        sizes = _sized(lens, tuple(bounds.items()), way)
    number = choose.of(_EITHER) and kind in ("any", "free")
    near = near and kind == "free"
    told: dict[bool, tuple[Values, ...]] = {True: ("counted",), False: ("hostile",)}
    pool = told[near] if kind == "free" else VALUES  # a NaN is unlike itself, whatever else is
    seed, values = choose.number(), choose.of(pool)
    both: list[Sample] = []
    for side, layout in enumerate((lens.source, lens.view)):
        groups = [group for group in optional(lens, side) if choose.of((False, False, True))]
        absent = {*itertools.chain.from_iterable(groups)}
        if kind == "disk":
            # A save leaves out what is ephemeral; a target asks for nothing that nobody knows.
            lacking = both[0].absent if side else ()
            absent.update("/".join(row.path) for row in layout.rows if row.ephemeral)
            absent.update(_unknown(lens, side, lacking))
        kinds = [*container_kinds(layout)]
        # Source and view are mostly on other meshes, as where a run goes on elsewhere.
        on = meshes[(way + side * (1 + way // 2)) % len(meshes)] if where == "sharded" else where
        container, counts = choose.of(kinds), number and not side and _steps(layout)
        spec = way if where == "sharded" else 0
        refused = refusable(lens, side) if kind == "free" else ()
        free = choose.of(refused) if refused else None
        sample = Sample(
            sizes,
            seed + 2 * side,  # the second state of a side has the number after this
            values,
            container,
            tuple(sorted(absent)),
            on,
            spec,
            counts,
            free=None if near else free,
            flipped=free if near else None,
            mixed=kind in ("any", "free") and where == "sharded" and way % 4 == 1,
        )
        both.append(sample)

    def wide() -> Lens:
        return _bound(lens, tuple(space(lens, bounds).widened(sizes).items()))

    made = _bound(lens, tuple(sizes.items()))
    return Trial(made, (both[0], both[1]), wide=wide, turned=turned, precision=precision)


Precision = Mapping[str, str]
"""The floats that a lens of any float is tried with, by side; nothing for every other lens."""

# Few, so that few programs are compiled: both ways are to widen, and both to keep what there is.
_PRECISIONS = (("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16"))


def precisions(lens: Lens, kind: TrialKind) -> list[Precision]:
    """The floats that a lens is tried with; for each of them there is something to try."""
    several: list[Precision] = []
    for source, view in _PRECISIONS:
        said: dict[str, str] = {}
        if open_rows(lens.source):
            said["source"] = source
        if open_rows(lens.view):
            said["view"] = view
        # Where one side alone is of any float, two of the three are the same.
        if said not in several:
            several.append(said)
    busy = [said for said in several if not _is_idle(lens.at(**said), kind)]
    return busy or several


def _is_idle(lens: Lens, kind: TrialKind) -> bool:
    """Whether a lens refuses no value, where one is to be refused; or every tracer."""
    if kind == "free":
        return not refusable(lens, 0) and not refusable(lens, 1)
    return kind == "jit" and bool(looked_at(lens)) and bool(looked_at(~lens))


def _where(lens: Lens, kind: TrialKind, drawn: _Where, meshes: tuple[MeshSpec, ...]) -> _Where:
    """What leaves are, as far as a law and a lens leave it open."""
    fixed: dict[TrialKind, _Where] = {"plain": "numpy", "jit": "jax"}
    where = drawn if kind in ("any", "free") else fixed.get(kind, "sharded")
    # jax would make int32 of an int64, and the state would be none of its layout.
    if narrowed_trial(lens):
        return "numpy"
    return "jax" if where == "sharded" and not meshes else where


def _unknown(lens: Lens, side: int, lacking: Collection[str]) -> Iterator[str]:
    """The leaves of a view that a source without some leaves says nothing of, nor a default: no target asks for these."""
    if not side:
        return
    known: set[int] = set()
    for join in lens.joins:
        sources = {"/".join(lens.source.rows[number].path) for number in join.sources}
        if sources.isdisjoint(lacking):
            known.update(join.views)
    for number, row in enumerate(lens.view.rows):
        if row.optional and row.default is None and number not in known:
            yield "/".join(row.path)


@functools.lru_cache(maxsize=64)
def _turned(lens: Lens) -> Lens:
    return ~lens


@functools.lru_cache(maxsize=64)
def _few(lens: Lens) -> Mapping[str, Bound]:
    """Numbers of layers for states that go to disk."""
    return {name: (1, 2) for name in counts(lens) if name not in lens.dims}


def narrowed_trial(lens: Lens) -> tuple[str, ...]:
    """The dtypes of leaves that are NumPy's alone, for jax would narrow them."""
    dtypes = {row.leaf.dtype for row in (*lens.source.rows, *lens.view.rows)}
    return tuple(sorted(filter(leaves.is_narrowed, dtypes)))


def _steps(layout: Layout) -> bool:
    """Whether states of a layout have a step that may be a Python number."""
    return layout.container == "dict" and any(row.path == ("step",) for row in layout.rows)


@functools.lru_cache(maxsize=64)
def _bound(lens: Lens, found: tuple[tuple[str, int], ...]) -> Lens:
    return bound(lens, dict(found))


@functools.lru_cache(maxsize=64)
def _sized(lens: Lens, bounds: tuple[tuple[str, Bound], ...], way: int) -> Mapping[str, int]:
    """One of few choices of sizes, so that few programs are compiled.

    Every other one is of such as meshes divide.
    """
    return space(lens, dict(bounds), empty=False).picked(
        np.random.default_rng(way), even=not way % 2
    )

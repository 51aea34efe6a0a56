"""The laws of lenses: on the demo's layouts and a harder decoder, in every container, and on layouts drawn at random.

States hold the worst bits there are. The laws on meshes are in ``test_sharding_laws.py``, those of single edits in
``test_edits.py``, that of restoring beside the other tests of Orbax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import drawn
from support.families import Family, families
from support.models import Subject, subjects
from support.profiles import examples

import ckpt_schema as cs
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._container_kinds import LINEN, NNX, OWN
from ckpt_schema.testing._meshes import Placer, as_jax, as_numpy
from ckpt_schema.testing._states import Maker, bound, makers

PLACES = st.sampled_from((as_numpy, as_jax))
SEEDS = st.integers(0, 2**32 - 1)


class Situation:
    """A lens, another one from its view on, and a way to make states of the three layouts.

    Not a dataclass, for hypothesis would print all of its layouts.
    """

    def __init__(
        self,
        lenses: tuple[cs.Lens, cs.Lens],
        made: tuple[Maker, ...],
        containers: tuple[str, ...],
        place: Placer,
        seed: int,
    ) -> None:
        """Keeps two lenses whose dims are bound, a maker, and a container for each layout, what leaves are, and their seed."""
        self.lens, self.onward = lenses
        self.makers, self.containers, self.place, self.seed = made, containers, place, seed

    def __repr__(self) -> str:
        """What was drawn."""
        chosen = ", ".join(map(repr, (*self.containers, self.place.__name__)))
        return f"{self.lens.source.name} -> {self.lens.view.name} in {chosen}, seed {self.seed}, {dict(self.lens.dims)}"

    def states(self, *sides: int) -> list[Any]:
        """One random state for each number of a layout, all without the same optional leaves."""
        rng = np.random.default_rng(self.seed)
        return [self._state(rng, side) for side in sides]

    def _state(self, rng: np.random.Generator, side: int) -> Any:
        layout = self.makers[side].layout
        needed = {
            row.path for maker in self.makers for row in maker.layout.rows if not row.optional
        }
        coin = np.random.default_rng(self.seed + side)
        dropped = {
            at
            for at, row in enumerate(layout.rows)
            if row.path not in needed and coin.random() < 0.5
        }
        contain = {**LINEN, **NNX, "schema": OWN["own"]}[self.containers[side]]
        return contain(self.makers[side](rng, self.place, dropped))


def composition(at: Situation) -> None:
    laws.composes(at.lens, at.onward, *at.states(0, 2))


LAWS: tuple[Callable[[Situation], None], ...] = (
    *(drawn.get_put, drawn.put_get, drawn.put_put, drawn.get_get),
    *(drawn.conformance, drawn.abstraction, drawn.sharing, drawn.inverse, composition),
)
each_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)


@st.composite
def train_states(draw: st.DrawFn) -> Situation:
    """States of the demo's layouts, or of a harder decoder."""
    subject: Subject = draw(st.sampled_from(subjects()))
    sizes = draw(st.sampled_from(subject.sizes))
    layouts = subject.lens.source, subject.lens.view, subject.onward.view
    containers = tuple(draw(st.sampled_from(list(kinds))) for kinds in (LINEN, NNX, NNX))
    made = makers(sizes, *layouts, number=draw(st.booleans()))
    lenses = bound(subject.lens, sizes), bound(subject.onward, sizes)
    return Situation(lenses, made, containers, draw(PLACES), draw(SEEDS))


@each_law
@examples(0.6)
@given(at=train_states())
def test_train_state(law: Callable[[Situation], None], at: Situation) -> None:
    law(at)


def situation(
    family: Family, layouts: tuple[Any, ...], containers: tuple[str, ...], seed: int
) -> Situation:
    first, second = (bound(cs.derive(*layouts[at : at + 2]), family.sizes) for at in (0, 1))
    made = makers(family.sizes, first.source, first.view, second.view)
    return Situation((first, second), made, containers, as_numpy, seed)


@each_law
@examples(0.35)
@given(family=families(), seed=SEEDS)
def test_random_layouts(law: Callable[[Situation], None], family: Family, seed: int) -> None:
    law(situation(family, family.schemas, ("schema",) * 3, seed))


@each_law
@examples(0.4)
@given(
    family=families(),
    containers=st.tuples(*(st.sampled_from(list(NNX)) for _ in range(2))),
    seed=SEEDS,
)
def test_random_weights(
    law: Callable[[Situation], None], family: Family, containers: Any, seed: int
) -> None:
    first, second, third = family.schemas
    layouts = cs.linen.Params[first], cs.nnx.Params[second], cs.nnx.Params[third]
    law(situation(family, layouts, ("schema", *containers), seed))


@functools.cache
def optimizers() -> tuple[optax.GradientTransformation, ...]:
    return optax.sgd(0.1, momentum=0.9), optax.chain(
        optax.clip(1.0), optax.adam(optax.linear_schedule(1e-3, 0.0, 10))
    )


@each_law
@examples(0.4)
@given(
    family=families(floats=True),
    tx=st.integers(0, 1),
    containers=st.tuples(*(st.sampled_from(list(kinds)) for kinds in (LINEN, NNX, NNX))),
    seed=SEEDS,
)
def test_random_train_states(
    law: Callable[[Situation], None], family: Family, tx: int, containers: Any, seed: int
) -> None:
    chosen = optimizers()[tx]
    first, second, third = family.schemas
    layouts = (
        cs.linen.BareTrainState[first, chosen],
        cs.nnx.TrainState[second, chosen],
        cs.nnx.TrainState[third, chosen],
    )
    law(situation(family, layouts, containers, seed))

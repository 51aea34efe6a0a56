"""The laws of lenses between layouts that have the same layers listed, stacked, in blocks or stages, fused or apart."""

from __future__ import annotations

from collections.abc import Callable

import optax
import pytest
from hypothesis import given
from support import drawn
from support.layers import Layers, layers
from support.profiles import examples

LAWS: tuple[Callable[[Layers], None], ...] = (
    *(drawn.get_put, drawn.put_get, drawn.put_put, drawn.get_get),
    *(drawn.conformance, drawn.abstraction, drawn.sharing, drawn.inverse),
)
each_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)


@each_law
@examples(1)
@given(at=layers())
def test_random_layers(law: Callable[[Layers], None], at: Layers) -> None:
    law(at)


@each_law
@examples(0.3)
@given(at=layers(tx=optax.adamw(1e-3)))
def test_random_train_states(law: Callable[[Layers], None], at: Layers) -> None:
    law(at)

"""The laws on real modules: trees of Flax's own layers drawn at random, trained by chains drawn at random."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.modules import (
    Block,
    Composed,
    blocks,
    composed,
    filled,
    linen_state,
    nnx_state,
    schema,
    sizes,
)
from support.profiles import examples

import ckpt_schema as cs
from ckpt_schema.testing import _laws as laws


@examples(1.5)
@given(block=blocks(), chain=composed, bare=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_the_laws_hold_for_real_train_states(
    block: Block, chain: Composed, bare: bool, seed: int
) -> None:
    tx, rng = chain(), np.random.default_rng(seed)
    linen, real = linen_state(block, tx, bare=bare), nnx_state(block, tx)
    envelope: Any = cs.linen.BareTrainState if bare else cs.linen.TrainState
    layouts = (
        envelope[schema(block, linen=True), tx],
        cs.nnx.TrainState[schema(block, linen=False), tx],
    )
    known = layouts[0].names() | layouts[1].names()
    lens = cs.derive(
        *layouts, dims={name: size for name, size in sizes(block).items() if name in known}
    )
    assert cs.check(lens.source, linen) == []
    assert cs.check(lens.view, real) == []
    s, t = (filled(linen, rng, jnp.asarray) for _ in range(2))
    v, w = (filled(real, rng, jnp.asarray) for _ in range(2))
    laws.identical(laws.abstract_like(lens.get(linen)), laws.abstract_like(real))
    laws.identical(laws.abstract_like(lens.put(real)), laws.abstract_like(linen))
    laws.get_put(lens, s)
    laws.put_get(lens, v)
    laws.put_put(lens, s, v, w)
    laws.get_get(lens, s, t, v)
    laws.conforms(lens, s, v)
    laws.conforms(~lens, v, s)
    laws.abstraction(lens, s, v)
    laws.sharing(lens, s, v)
    laws.inverse(lens, s, v)
    laws.composes(lens, ~lens, s, s)


@examples(0.5)
@given(block=blocks(), chain=composed)
def test_inferred_layouts_are_those_of_the_real_train_states(block: Block, chain: Composed) -> None:
    real = nnx_state(block, chain())
    layout = cs.infer(real)
    assert cs.check(layout, real) == []
    assert jax.tree.structure(cs.derive(layout, layout).get(real)) == jax.tree.structure(real)

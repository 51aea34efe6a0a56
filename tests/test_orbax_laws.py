"""The restore law: ``restore(saved s, abstract(v)) == get(s)``, whatever mesh s was on, and whatever mesh v is on."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp
from support.models import SIZES, to_nnx, to_stacked
from support.profiles import examples, sampled

import ckpt_schema as cs
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._container_kinds import LINEN, NNX
from ckpt_schema.testing._meshes import MESHES, Placer, Sharded, as_jax, mesh
from ckpt_schema.testing._states import makers

SEEDS = st.integers(0, 2**32 - 1)
PLACES = st.one_of(
    st.just(as_jax),
    st.builds(lambda on, seed: Sharded(mesh(*on), seed), st.sampled_from(MESHES), SEEDS),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A lens from what is saved to what is restored, and the containers that either may be in."""

    lens: Callable[[], cs.Lens]
    saved: Mapping[str, Callable[[Any], Any]]
    restored: Mapping[str, Callable[[Any], Any]]


CASES = {
    "Linen to NNX": Case(to_nnx, LINEN, NNX),
    "NNX to Linen": Case(lambda: ~to_nnx(), NNX, LINEN),
    "unrolled to stacked": Case(to_stacked, NNX, NNX),
    "stacked to unrolled": Case(lambda: ~to_stacked(), NNX, NNX),
    "Linen to Linen": Case(lambda: cs.derive(to_nnx().source, to_nnx().source), LINEN, LINEN),
    "NNX to NNX": Case(lambda: cs.derive(to_nnx().view, to_nnx().view), NNX, NNX),
}


@pytest.mark.parametrize("name", sampled([*CASES], 2))
@examples(0.1)
@given(seed=SEEDS, on=PLACES, to=PLACES, data=st.data())
def test_restore(name: str, seed: int, on: Placer, to: Placer, data: st.DataObject) -> None:
    lens, rng = CASES[name].lens(), np.random.default_rng(seed)
    source, view = makers(SIZES[0], lens.source, lens.view)
    saved, target = source(rng, on), view(rng, to)
    into = CASES[name].restored[data.draw(st.sampled_from(sorted(CASES[name].restored)))]
    written = CASES[name].saved[data.draw(st.sampled_from(sorted(CASES[name].saved)))](saved)
    with tempfile.TemporaryDirectory() as root:
        ocp.save(Path(root) / "0", written)
        restored = cs.orbax.restore(Path(root) / "0", abstract(into(target)), lens)
    laws.identical(restored, into(laws.placed_like(lens.get(saved, onto=abstract(target)), target)))


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

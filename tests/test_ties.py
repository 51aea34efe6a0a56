"""Tied leaves: one that a side stores twice and the other once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int8
from support import drawn
from support.profiles import examples

import ckpt_schema as cs
from ckpt_schema._lens.arrays.tie_checks import verify_same
from ckpt_schema.testing import LensLaws
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._meshes import MESHES, Sharded, mesh
from ckpt_schema.testing._states import Maker, makers

SIZES = {"vocab": 8, "embed": 16, "depth": 2}
TX = optax.adamw(1e-3)


class Embed(cs.Schema):
    embedding: Float32[Array, "vocab embed"]


class Twice(cs.Schema):
    """Linen with a head of its own, which starts as the embedding and is kept equal to it."""

    embed: Embed
    head: Float32[Array, "embed vocab"] = cs.field(key="lm_head/kernel")
    scale: Float32[Array, " embed"]


class Once(cs.Schema):
    """NNX with one module under two attributes: the state has it once."""

    embed: Embed
    scale: Float32[Array, " embed"]


TIE = cs.tie("head", "embed/embedding")


class Layer(cs.Schema):
    scale: Float32[Array, " embed"]
    key: cs.Key["rbg"]
    code: Int8[Array, "2 embed"]


class Both(cs.Schema):
    """Stacked layers that are stored under two names."""

    encoder: Layer = cs.field(scan="depth", axis=0)
    decoder: Layer = cs.field(scan="depth", axis=0)


class One(cs.Schema):
    """The same as a list, once."""

    encoder: list[Layer] = cs.field(length="depth")


LENSES: Mapping[str, cs.Lens] = {
    "weights": cs.derive(cs.linen.Params[Twice], cs.nnx.Params[Once], rules=[TIE]),
    "train states": cs.derive(
        cs.linen.TrainState[Twice, TX], cs.nnx.TrainState[Once, TX], rules=[TIE]
    ),
    "layers": cs.derive(
        cs.linen.Params[Both], cs.nnx.Params[One], rules=[cs.tie("decoder[]", "encoder[]")]
    ),
    "view": cs.derive(
        cs.nnx.Params[One], cs.linen.Params[Both], rules=[cs.tie("decoder[]", "encoder[]")]
    ),
}


@dataclasses.dataclass(frozen=True)
class Tied:
    """A lens with a tie, and states in which the copies are equal."""

    name: str
    seed: int
    place: Any

    @property
    def lens(self) -> cs.Lens:
        return LENSES[self.name].bind(
            **{n: s for n, s in SIZES.items() if n in LENSES[self.name].source.names()}
        )

    def states(self, *sides: int) -> list[Any]:
        """States of either side; what is stored twice is made from the other side, which stores it once."""
        rng = np.random.default_rng(self.seed)
        made = makers(SIZES, self.lens.source, self.lens.view)
        return [self._state(made, rng, side) for side in sides]

    def _state(self, made: tuple[Maker, ...], rng: np.random.Generator, side: int) -> Any:
        stored_twice = 1 if self.name == "view" else 0
        if side != stored_twice:
            return made[side](rng, self.place)
        once = made[1 - side](rng, self.place)
        return self.lens.put(once) if side == 0 else self.lens.get(once)


@pytest.mark.parametrize(
    "law",
    [
        *(drawn.get_put, drawn.put_get, drawn.put_put, drawn.get_get),
        *(drawn.conformance, drawn.abstraction, drawn.inverse),
    ],
    ids=lambda law: law.__name__,
)
@examples(0.5)
@given(
    at=st.builds(
        Tied,
        st.sampled_from(list(LENSES)),
        st.integers(0, 2**32 - 1),
        st.sampled_from(
            [jnp.asarray, *(Sharded(mesh(*on), seed) for on in MESHES[:2] for seed in range(3))]
        ),
    )
)
def test_the_laws_hold(law: Any, at: Tied) -> None:
    law(at)


def test_one_leaf_goes_to_both_places_as_it_is() -> None:
    lens, (state,) = LENSES["layers"], Tied("layers", 1, jnp.asarray).states(0)
    listed = lens.get(state)
    again = (~LENSES["view"]).get(LENSES["view"].get(listed))
    cs.assert_trees_identical(again, listed)
    both = LENSES["view"].get({"encoder": {0: layer(0)}})
    assert both["params"]["encoder"]["scale"].shape == (1, 3)
    cs.assert_trees_identical(both["params"]["decoder"], both["params"]["encoder"])


def layer(seed: int) -> dict[str, Any]:
    key = jax.random.key(seed, impl="rbg")
    return {"scale": jnp.ones(3), "key": key, "code": jnp.zeros((2, 3), "int8")}


def test_print_says_which_are_tied() -> None:
    assert str(LENSES["weights"]) == (
        "linen.Params[Twice] -> nnx.Params[Once]: 3 joined, 0 private to linen.Params[Twice], 0 private to nnx.Params[Once]\n"
        "  params/embed/embedding  embed/embedding\n"
        "  params/scale            scale\n"
        "  params/lm_head/kernel   embed/embedding  embed vocab -> vocab embed, tied"
    )


def weights(*, wrong: tuple[int, int] | None = None, value: float = 0.5) -> dict[str, Any]:
    table = jnp.arange(12.0).reshape(3, 4)
    head = table.T if wrong is None else table.T.at[wrong].set(value)
    return {
        "params": {"embed": {"embedding": table}, "lm_head": {"kernel": head}, "scale": jnp.ones(4)}
    }


def test_a_pair_that_differs_shows_where_and_both_values() -> None:
    with pytest.raises(cs.ConformanceError) as caught:
        LENSES["weights"].get(weights(wrong=(1, 2)))
    assert str(caught.value) == (
        "tied leaves are not one: 1 fault\n"
        "  params/lm_head/kernel  expected what params/embed/embedding has, 9.0 (0x41100000) at embed/embedding[2 1], "
        "found 0.5 (0x3f000000) at embed/embedding[2 1]\n"
        "                         -> tied leaves are equal to the last bit: make them so, or drop the tie and give each a place"
    )


@pytest.mark.parametrize("on", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_zeros_of_unlike_signs_differ(on: Any) -> None:
    with pytest.raises(
        cs.ConformanceError,
        match=r"0.0 \(0x00000000\) at embed/embedding\[0 0\], found -0.0 \(0x80000000\)",
    ):
        LENSES["weights"].get(jax.tree.map(on, weights(wrong=(0, 0), value=-0.0)))


def test_every_pair_of_a_train_state_is_compared() -> None:
    lens, (state,) = LENSES["train states"], Tied("train states", 3, jnp.asarray).states(0)
    changed = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 1 if "lm_head" in jax.tree_util.keystr(path) else x,
        jax.tree.map(lambda x: jnp.zeros_like(x), state),
    )
    with pytest.raises(cs.ConformanceError) as caught:
        lens.get(changed)
    assert [fault.path for fault in caught.value.mismatches] == [
        "params/params/lm_head/kernel",
        "opt_state/0/mu/params/lm_head/kernel",
        "opt_state/0/nu/params/lm_head/kernel",
    ]


def test_keys_are_compared_by_their_data() -> None:
    state = {
        "params": {
            name: jax.tree.map(lambda *x: jnp.stack(x), *map(layer, seeds))
            for name, seeds in BLOCKS.items()
        }
    }
    with pytest.raises(cs.ConformanceError) as caught:
        LENSES["layers"].get(state)
    (fault,) = caught.value.mismatches
    assert fault.path == "params/decoder/key"
    assert (
        "[0 2 0 2]" in fault.expected
        and "[0 3 0 3]" in fault.found
        and "encoder/1/key" in fault.found
    )


BLOCKS = {"encoder": (1, 2), "decoder": (1, 3)}


def test_complex_leaves_and_bools_are_compared_too() -> None:
    for a, b in (
        (jnp.array([1j, 2]), jnp.array([1j, -2])),
        (jnp.array([True, False]), jnp.array([True, True])),
    ):
        verify_same([(a, jnp.array(a, copy=True), ("a", "b", "c"), "")])
        with pytest.raises(cs.ConformanceError, match=r"at c\[1\]"):
            verify_same([(a, b, ("a", "b", "c"), "")])


def test_under_a_trace_nothing_is_assumed() -> None:
    with pytest.raises(cs.ConformanceError, match="translate outside of jit"):
        jax.jit(LENSES["weights"].get)(weights())


def test_shardings_of_both_places_are_kept() -> None:
    on = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    (state,) = Tied("weights", 5, jnp.asarray).states(0)
    (places,) = (
        {"embed": {"embedding": ("x", "y")}, "lm_head": {"kernel": (None, "x")}, "scale": ()},
    )
    spread = {
        "params": jax.tree.map(
            lambda x, spec: jax.device_put(x, NamedSharding(on, PartitionSpec(*spec))),
            state["params"],
            places,
            is_leaf=lambda x: isinstance(x, tuple),
        )
    }
    laws.get_put(LENSES["weights"], spread)


def test_a_checkpoint_with_both_restores_and_one_that_differs_is_refused(tmp_path: Path) -> None:
    lens = LENSES["train states"]
    state, other = Tied("train states", 7, jnp.asarray).states(0, 1)
    cs.orbax.save(tmp_path / "0", state, lens)
    restored = cs.orbax.restore(
        tmp_path / "0", jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), other), lens
    )
    cs.assert_trees_identical(restored, lens.get(state))
    cs.orbax.save(tmp_path / "1", other, lens)
    cs.assert_trees_identical(
        cs.orbax.restore(tmp_path / "1", state, lens), lens.put(other, onto=state)
    )
    state["params"]["params"]["lm_head"]["kernel"] += 1
    cs.orbax.save(tmp_path / "2", state, lens)
    with pytest.raises(cs.CheckpointMismatchError, match="what params/params/embed/embedding has"):
        cs.orbax.restore(tmp_path / "2", other, lens)


def test_composition_goes_through_a_tie() -> None:
    there, back = LENSES["weights"], ~LENSES["weights"]
    both = there >> back
    cs.assert_trees_identical(both.get(weights()), weights())
    with pytest.raises(cs.ConformanceError, match="tied leaves are not one"):
        both.get(weights(wrong=(1, 2)))
    cs.assert_trees_identical((back >> there).get(there.get(weights())), there.get(weights()))


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (
            [cs.tie("tail", "embed/embedding")],
            r"leaves at tail and at embed/embedding of one side, .*, found none",
        ),
        ([TIE, cs.rename("scale", "norm")], "a leaf of nnx.Params"),
        (
            [cs.tie("head", "scale")],
            r"expected float32\[embed\] as in the view, found float32\[embed vocab\]",
        ),
        ([], r"head .* a partner in nnx.Params\[Once\]"),
    ],
)
def test_a_tie_that_fits_nothing_is_named(rules: Any, says: str) -> None:
    with pytest.raises(cs.DerivationError, match=says):
        cs.derive(cs.linen.Params[Twice], cs.nnx.Params[Once], rules=rules)


def test_a_tie_of_leaves_that_both_sides_have_is_idle() -> None:
    with pytest.raises(cs.DerivationError, match="drop the rule: both sides have both"):
        cs.derive(cs.linen.Params[Twice], cs.nnx.Params[Twice], rules=[TIE])


# --- Leaves that nobody declared, whose axes a rule orders  ---


def undeclared(vocab: int, embed: int, name: str = "embedding") -> tuple[Any, Any]:
    """A tree with a head that is the embedding, transposed, and one without; there the embedding may be transposed too."""
    table = np.arange(vocab * embed, dtype=np.float32).reshape(vocab, embed)
    twice = {"embed": {"embedding": table}, "head": {"kernel": table.T.copy()}}
    once = {"embed": {name: table if name == "embedding" else table.T.copy()}}
    return {"params": twice}, {"params": once}


TURNED = cs.tie("head/kernel", "embed/embedding", axes="1 0")


@pytest.mark.parametrize("sizes", [(5, 3), (3, 3)])
@pytest.mark.parametrize("name", ["embedding", "weight"])
@pytest.mark.filterwarnings("error::ckpt_schema.AxesWarning")
def test_a_transposed_copy_that_nobody_declared(sizes: tuple[int, int], name: str) -> None:
    twice, once = undeclared(*sizes, name)
    there, back = [TURNED], [TURNED]
    if name != "embedding":
        there.append(cs.rename("embed/embedding", f"embed/{name}", axes="1 0"))
        back.append(cs.rename(f"embed/{name}", "embed/embedding", axes="1 0"))
    lens = cs.adapt(twice, once, rules=there)
    cs.assert_trees_identical(lens.get(twice), once)
    cs.assert_trees_identical(lens.put(once), twice)
    lens = cs.adapt(once, twice, rules=back)
    cs.assert_trees_identical(lens.get(once), twice)
    cs.assert_trees_identical(lens.put(twice), once)


def test_a_transposed_copy_of_a_part_and_of_moments() -> None:
    q, k = (np.arange(at, at + 15, dtype=np.float32).reshape(5, 3) for at in (0, 20))
    apart = {"params": {"q": q, "k": k, "copy": k.T.copy()}}
    fused = {"params": {"qk": np.concatenate([q, k], 1)}}
    rules = [cs.fuse("qk", ["q", "k"], axes="embed q+k -> embed q, embed k")]
    lens = cs.adapt(apart, fused, rules=[*rules, cs.tie("copy", "k", axes="1 0")])
    cs.assert_trees_identical(lens.get(apart), fused)
    cs.assert_trees_identical(lens.put(fused), apart)
    twice, once = (jax.tree.map(jnp.asarray, tree["params"]) for tree in undeclared(3, 3))
    tx = optax.adam(0.1)
    trained = [
        {"params": tree, "opt_state": tx.update(tree, tx.init(tree))[1]} for tree in (twice, once)
    ]
    lens = cs.adapt(*trained, rules=[TURNED])
    cs.assert_trees_identical(lens.get(trained[0]), trained[1])
    cs.assert_trees_identical(lens.put(trained[1]), trained[0])


def test_the_order_of_a_copy_is_printed_where_one_fits_and_warned_of_where_none_shows() -> None:
    twice, once = undeclared(5, 3)
    for sides in ((twice, once), (once, twice)):
        with pytest.raises(cs.DerivationError) as error:
            cs.adapt(*sides, rules=[cs.tie("head/kernel", "embed/embedding")])
        assert error.value.rules == (TURNED,) and len(error.value.mismatches) == 1
        with pytest.raises(cs.DerivationError, match=r"axes='0 2 1' orders 3 axes"):
            cs.adapt(*sides, rules=[cs.tie("head/kernel", "embed/embedding", axes="0 2 1")])
    twice, once = undeclared(3, 3)
    for sides in ((twice, once), (once, twice)):
        with pytest.warns(cs.AxesWarning, match=r"tie\('head/kernel', .*, axes='0 1'\)  float32"):
            cs.adapt(*sides, rules=[cs.tie("head/kernel", "embed/embedding")])
    with pytest.raises(cs.SchemaError, match=r"tie\(\.\.\.\) is not well formed"):
        cs.tie("a", "b", axes="1 2")


class TestTurned(LensLaws):
    """All laws of a transposed, square copy of a leaf that was read off."""

    max_examples = 2
    meshes = ()
    lens = cs.adapt(*undeclared(3, 3), rules=[TURNED])

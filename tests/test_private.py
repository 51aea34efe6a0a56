"""Private leaves on disk: beside the state, met by nobody who does not ask, and given back to whoever does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax_models import OPTIMIZERS, NnxSchema, ScannedSchema, linen_state, nnx_module
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

TX = OPTIMIZERS["chain"]
LENS = cs.derive(cs.linen.TrainState[ScannedSchema, TX], cs.nnx.TrainState[NnxSchema, TX])


def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@pytest.fixture(scope="module")
def trained() -> Any:
    """An NNX state whose streams have been drawn from."""

    def drawn(leaf: Any) -> Any:
        return jax.random.fold_in(leaf, 9) if is_key(leaf) else leaf + jnp.asarray(3, leaf.dtype)

    return jax.tree.map(drawn, nnx.state(nnx_module(TX)))


@pytest.fixture(scope="module")
def saved(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that an NNX run writes in Linen's layout."""
    path = tmp_path_factory.mktemp("private") / "0"
    cs.orbax.save(path, trained, LENS)
    return path


def abstract(tree: Any) -> Any:
    """With every leaf on all devices of another mesh."""
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype, sharding=everywhere),
        tree,
    )


def placed(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, goal: jax.device_put(x, goal.sharding), tree, like)


def test_a_run_in_the_other_layout_gets_its_streams_back(saved: Path, trained: Any) -> None:
    target = abstract(trained)
    cs.assert_trees_identical(cs.orbax.restore(saved, target, LENS), placed(trained, target))
    module = nnx_module(TX)
    assert (
        nnx.state(cs.orbax.restore(saved, module, LENS))["model"]["layers"][1]["dropout"]["rngs"][
            "count"
        ].get_value()
        == 3
    )


def test_orbax_alone_does_not_meet_them(saved: Path, trained: Any) -> None:
    target = LENS.put(abstract(trained), onto=abstract(linen_state(TX)))
    cs.assert_trees_identical(
        ocp.load(saved, target), LENS.put(placed(trained, abstract(trained)), onto=target)
    )


def test_a_linen_run_is_told_and_can_keep_them(saved: Path, trained: Any, tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning,
        match=r"has leaves of another layout beside its state \(nnx_aux\), which are not read",
    ):
        linen = cs.orbax.restore(saved, linen_state(TX), LENS)
    cs.orbax.save(tmp_path / "1", linen, LENS, private=cs.orbax.load_private(saved))
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "1", trained, LENS), trained)


def test_without_them_there_are_the_defaults_or_those_of_the_target(
    tmp_path: Path, trained: Any
) -> None:
    cs.orbax.save(tmp_path / "0", trained, LENS, aux=None)
    with pytest.raises(cs.CheckpointMismatchError, match="private leaves called nnx_aux"):
        cs.orbax.load_private(tmp_path / "0")
    made = cs.orbax.restore(tmp_path / "0", abstract(trained), LENS)
    cs.assert_trees_identical(
        made, LENS.get(LENS.put(placed(trained, abstract(trained))), onto=abstract(trained))
    )
    assert made["model"]["layers"][1]["dropout"]["rngs"]["count"].get_value() == 0
    kept = cs.orbax.restore(tmp_path / "0", trained, LENS)
    cs.assert_trees_identical(kept, trained)


def test_maxtext_3929_private_leaves_inside_of_the_state(
    saved: Path, trained: Any, tmp_path: Path
) -> None:
    """As MaxText writes them: one more key beside ``params``, which made a Linen run that resumes die."""
    linen = LENS.put(trained)
    ocp.save(tmp_path / "0", {**linen, "nnx_aux": cs.orbax.load_private(saved)})
    plain = linen_state(TX)
    with pytest.warns(UserWarning, match="are not read"):
        restored = cs.orbax.restore(tmp_path / "0", plain, LENS)
    cs.assert_trees_identical(restored, LENS.put(trained, onto=plain))
    target = abstract(trained)
    cs.assert_trees_identical(
        cs.orbax.restore(tmp_path / "0", target, LENS), placed(trained, target)
    )


def test_weights_alone_find_their_streams_in_a_full_state(saved: Path, trained: Any) -> None:
    through = cs.derive(cs.linen.Params[ScannedSchema], cs.nnx.Params[NnxSchema])
    cs.assert_trees_identical(cs.orbax.restore(saved, trained["model"], through), trained["model"])
    weights = nnx.state(nnx_module(TX).model, nnx.Param)
    with pytest.warns(UserWarning, match="are not read"):
        restored = cs.orbax.restore(saved, weights, through)
    cs.assert_trees_identical(restored, nnx.filter_state(trained["model"], nnx.Param))


class Scale(nnx.Variable[jax.Array]):
    """What a model writes as it runs, and no stream is."""


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_weight_that_stands_beside_needs_no_word(tmp_path: Path, is_inside: bool) -> None:
    """The scales of fp8, which MaxText keeps where it keeps streams."""
    kernel, scale = jnp.arange(6.0).reshape(2, 3), jnp.full(3, 4.0)
    state, aside = {"params": {"dense": {"kernel": kernel}}}, {"dense": {"scale": scale}}
    if is_inside:
        ocp.save(tmp_path / "0", {**state, "nnx_aux": aside})
    else:
        ocp.save_checkpointables(tmp_path / "0", {"state": state, "nnx_aux": aside})
    trained = nnx.State({"dense": {"kernel": nnx.Param(kernel), "scale": Scale(scale)}})
    fresh = jax.tree.map(jnp.zeros_like, trained)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", fresh), trained)
    lens = cs.adapt(tmp_path / "0", fresh)
    cs.assert_trees_identical(lens.get(state, onto=trained), trained)
    ocp.save(tmp_path / "1", state)
    with pytest.raises(cs.DerivationError, match="scale"):
        cs.orbax.restore(tmp_path / "1", fresh)
    wide = nnx.State({"dense": {"kernel": nnx.Param(kernel), "scale": Scale(jnp.zeros(5))}})
    with pytest.raises(cs.CkptSchemaError, match="scale"):
        cs.orbax.restore(tmp_path / "0", wide)


class Old(cs.Schema):
    """What both models share."""

    kernel: Float32[Array, "embed mlp"]


class First(Old):
    """The model that was saved."""

    dropout: cs.Stream["fry"] = cs.field(default=cs.fresh_key(0))
    table: Float32[Array, " embed"] = cs.field(default=0.0, type="BatchStat")
    gone: Float32[Array, " embed"] = cs.field(default=0.0, type="BatchStat")


class Second(Old):
    """What has become of it."""

    dropout: cs.Stream["urbg"] = cs.field(default=cs.fresh_key(0))
    table: Float32[Array, " mlp"] = cs.field(default=0.0, type="BatchStat")
    new: Float32[Array, " embed"] = cs.field(default=0.0, type="BatchStat")


def test_those_of_an_older_model_are_refused_with_all_that_differs(tmp_path: Path) -> None:
    first, second = (
        cs.derive(cs.linen.Params[Old], cs.nnx.Params[model]) for model in (First, Second)
    )
    weights = {"params": {"kernel": jnp.ones((2, 3))}}
    cs.orbax.save(tmp_path / "0", first.get(weights), first)
    target = second.get(weights)
    with pytest.raises(cs.CheckpointMismatchError) as caught:
        cs.orbax.restore(tmp_path / "0", target, second)
    assert [(m.path, m.kind, m.expected, m.found) for m in caught.value.mismatches] == [
        ("dropout/key", "impl", "key<urbg>[]", "key<fry>[]"),
        ("gone", "extra", "no such leaf", "float32[2]"),
        ("new", "missing", "float32[2]", "no such leaf"),
        ("table", "shape", "float32[3]", "float32[2]"),
    ]
    assert all("aux=None" in m.hint for m in caught.value.mismatches)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", target, second, aux=None), target)


def test_what_is_not_private_is_not_saved_as_such(tmp_path: Path, trained: Any) -> None:
    private = {"model": {"embed": {"embedding": jnp.ones(2)}, "unknown": jnp.ones(2)}}
    with pytest.raises(cs.ConformanceError) as caught:
        cs.orbax.save(tmp_path / "0", trained, LENS, private=private)
    assert [m.path for m in caught.value.mismatches] == ["model/embed/embedding", "model/unknown"]
    with pytest.raises(cs.ConformanceError, match="a name of its own for the private leaves"):
        cs.orbax.save(tmp_path / "0", trained, LENS, private={}, aux=None)
    assert not list(tmp_path.iterdir())


def test_another_name(tmp_path: Path, trained: Any) -> None:
    cs.orbax.save(tmp_path / "0", trained, LENS, aux="streams")
    cs.assert_trees_identical(
        cs.orbax.restore(tmp_path / "0", trained, LENS, aux="streams"), trained
    )
    assert {path.name for path in (tmp_path / "0").iterdir() if path.is_dir()} == {
        "state",
        "streams",
    }


@pytest.mark.parametrize("name", ["state", "", "a/b"])
def test_a_name_that_cannot_be_one(tmp_path: Path, trained: Any, name: str) -> None:
    with pytest.raises(cs.ConformanceError, match="a name of its own"):
        cs.orbax.save(tmp_path / "0", trained, LENS, aux=name)
    assert not list(tmp_path.iterdir())

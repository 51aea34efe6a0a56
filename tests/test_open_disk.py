"""Checkpoints of any precision: one lens restores them into every other, and says what it needs to write one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array, Float
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

PAIRS = [("float32", "float32"), ("bfloat16", "float32"), ("float32", "float16")]
TX = optax.adam(1e-2)


class OldBlock(cs.Schema):
    wi: Float[Array, "embed mlp"]
    scale: Float[Array, " embed"] = cs.field(key="norm/scale")


class Old(cs.Schema):
    layers: OldBlock = cs.field(scan="depth", axis=0)


class NewBlock(cs.Schema):
    wi: Float[Array, "mlp embed"] = cs.field(key="wi/kernel")
    scale: Float[Array, " embed"]


class New(cs.Schema):
    layers: list[NewBlock] = cs.field(length="depth")


CAST = cs.cast("**", rounding="nearest")
WEIGHTS = cs.derive(Old, New, rules=[CAST])
LENS = cs.derive(cs.linen.TrainState[Old, TX], cs.nnx.TrainState[New, TX], rules=[CAST])


def weights(dtype: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    wi, scale = random.normal(size=(2, 3, 4)), random.normal(size=(2, 3))
    layers = {"wi": wi.astype(np.float32), "norm": {"scale": scale.astype(np.float32)}}
    return {"layers": jax.tree.map(lambda x: jnp.asarray(x, dtype), layers)}


def restacked(tree: Any, dtype: str) -> dict[str, Any]:
    """What NumPy makes of the weights."""
    wi, scale = (np.asarray(x) for x in (tree["layers"]["wi"], tree["layers"]["norm"]["scale"]))
    kind = jnp.dtype(dtype)
    layers = [
        {
            "wi": {"kernel": np.ascontiguousarray(wi[n].T).astype(kind)},
            "scale": scale[n].astype(kind),
        }
        for n in range(2)
    ]
    return {"layers": dict(enumerate(layers))}


def same(found: Any, wanted: Any) -> None:
    one, other = jax.tree.leaves_with_path(found), jax.tree.leaves_with_path(wanted)
    assert len(one) == len(other)
    for (_, x), (key, y) in zip(one, other, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape), key
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), key


def abstract(dtype: str) -> Any:
    return cs.abstract(New, {"depth": 2, "embed": 3, "mlp": 4}, dtype=dtype)


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_checkpoint_of_every_float_goes_into_a_target_of_every_float(
    before: str, after: str, tmp_path: Path
) -> None:
    given = weights(before)
    ocp.save(tmp_path / "old", given)
    found = cs.orbax.restore(tmp_path / "old", abstract(after), WEIGHTS)
    same(found, restacked(given, after))
    # What is on disk in the target's own layout is cast too, where that keeps every value.
    ocp.save(tmp_path / "new", restacked(given, before))
    if after == "float32":
        same(cs.orbax.restore(tmp_path / "new", abstract(after), WEIGHTS), restacked(given, after))
    else:
        with pytest.raises(cs.CheckpointMismatchError, match=after):
            cs.orbax.restore(tmp_path / "new", abstract(after), WEIGHTS)


class Block(nnx.Module):
    def __init__(self, dtype: str) -> None:
        self.wi = nnx.Linear(3, 4, use_bias=False, param_dtype=dtype, rngs=nnx.Rngs(0))
        self.scale = nnx.Param(jnp.ones(3, dtype))


class Network(nnx.Module):
    def __init__(self, dtype: str) -> None:
        self.layers = nnx.List([Block(dtype) for _ in range(2)])


class NnxBlock(cs.Schema):
    wi: Float[Array, "embed mlp"] = cs.field(key="wi/kernel")
    scale: Float[Array, " embed"]


class NnxLayers(cs.Schema):
    layers: list[NnxBlock] = cs.field(length="depth")


def run(dtype: str) -> dict[str, Any]:
    params = weights(dtype)
    state = TX.init(params)
    _, state = TX.update(jax.tree.map(lambda x: x * 0.5, params), state)
    return {"step": jnp.int32(7), "params": params, "opt_state": state}


def test_a_train_state_goes_on_in_another_precision(tmp_path: Path) -> None:
    before, after = "bfloat16", "float32"
    lens = cs.derive(
        cs.linen.BareTrainState[Old, TX], cs.nnx.TrainState[NnxLayers, TX], rules=[CAST]
    )
    given = run(before)
    ocp.save(tmp_path / "old", given)
    model = Network(after)
    target = {"model": model, "optimizer": nnx.Optimizer(model, TX, wrt=nnx.Param)}
    found = cs.orbax.restore(tmp_path / "old", target, lens)
    state = nnx.to_pure_dict(nnx.state(found["optimizer"]))["opt_state"][0]
    for name, tree in (("mu", given["opt_state"][0].mu), ("nu", given["opt_state"][0].nu)):
        wanted = np.asarray(tree["layers"]["wi"]).astype(jnp.dtype(after))
        for n in range(2):
            kernel = np.asarray(state[name]["layers"][n]["wi"]["kernel"])
            assert kernel.dtype == wanted.dtype and kernel.tobytes() == wanted[n].tobytes()
    # And is saved as what was there, bit for bit where nothing was touched.
    cs.orbax.save(tmp_path / "again", found, lens, onto=given)
    again = cs.orbax.load(tmp_path / "again")
    assert np.asarray(again["params"]["layers"]["wi"]).dtype == jnp.dtype(before)
    same(again["params"], given["params"])


def test_what_is_written_without_a_target_is_said(tmp_path: Path) -> None:
    state = jax.tree.map(jnp.asarray, restacked(weights("float32"), "float32"))
    with pytest.raises(cs.SchemaError, match="what is written needs one dtype") as caught:
        cs.orbax.save(tmp_path / "one", state, WEIGHTS)
    assert 'lens.at(source="bfloat16")' in str(caught.value)
    lens = WEIGHTS.at(source={"**": "bfloat16", "**/scale": "float32"})
    cs.orbax.save(tmp_path / "two", state, lens)
    found = cs.orbax.load(tmp_path / "two")
    assert str(found["layers"]["wi"].dtype) == "bfloat16"
    same(
        cs.orbax.restore(tmp_path / "two", abstract("bfloat16"), WEIGHTS),
        restacked(found, "bfloat16"),
    )
    # A state of the side that is written goes as it is, whatever floats it has.
    cs.orbax.save(tmp_path / "three", weights("float16"), WEIGHTS)
    same(cs.orbax.load(tmp_path / "three"), weights("float16"))


def test_a_conversion_is_told_what_it_writes(tmp_path: Path) -> None:
    given = weights("float32")
    ocp.save(tmp_path / "old", given)
    with pytest.raises(cs.SchemaError, match=r'lens\.at\(view="bfloat16"\)'):
        cs.orbax.convert(tmp_path / "old", tmp_path / "new", WEIGHTS)
    for dtype in ("bfloat16", "float16"):
        cs.orbax.convert(tmp_path / "old", tmp_path / dtype, WEIGHTS.at(view=dtype), verify=True)
        found = cs.orbax.load(tmp_path / dtype)
        same(found, jax.tree.map(jnp.asarray, _named(restacked(given, dtype))))


def _named(tree: Any) -> Any:
    """Numbers as strings, as a checkpoint has them."""
    return {"layers": {str(n): block for n, block in tree["layers"].items()}}


def test_items_of_a_manager_take_every_precision() -> None:
    given = weights("bfloat16")
    target = jax.tree.map(jnp.zeros_like, jax.tree.map(jnp.asarray, restacked(given, "float32")))
    found = cs.orbax.state_of({"state": given}, target, WEIGHTS)
    same(found, restacked(given, "float32"))
    asked = cs.orbax.abstract_items(target, WEIGHTS.at(source="bfloat16"))
    assert {str(x.dtype) for x in jax.tree.leaves(asked)} == {"bfloat16"}


def test_a_registry_of_any_float(tmp_path: Path) -> None:
    class Newest(cs.Schema):
        layers: NewBlock = cs.field(scan="depth", axis=1)

    versions = cs.Registry([WEIGHTS, cs.derive(New, Newest, rules=[CAST])])
    given = weights("bfloat16")
    ocp.save(tmp_path / "old", given)
    target = cs.abstract(Newest, {"depth": 2, "embed": 3, "mlp": 4}, dtype="float32")
    found = cs.orbax.restore(tmp_path / "old", target, versions)
    wi = np.moveaxis(np.asarray(given["layers"]["wi"]).astype(np.float32), 0, 2).transpose(1, 2, 0)
    assert np.asarray(found["layers"]["wi"]["kernel"]).tobytes() == wi.tobytes()


def test_a_folder_of_hugging_face_in_every_precision(tmp_path: Path) -> None:
    class Files(cs.Schema, joined="."):
        kernel: Float[Array, "mlp embed"] = cs.field(key="wi/weight")

    class Model(cs.Schema):
        kernel: Float[Array, "embed mlp"]

    lens = cs.derive(Files, Model)
    value = np.random.default_rng(0).normal(size=(4, 3)).astype(jnp.bfloat16)
    cs.hf.save(tmp_path / "hub", {"wi.weight": value})
    target = {"kernel": jax.ShapeDtypeStruct((3, 4), "float32")}
    found = cs.hf.restore(tmp_path / "hub", target, lens)
    wanted = np.ascontiguousarray(value.T).astype(np.float32)
    assert np.asarray(found["kernel"]).tobytes() == wanted.tobytes()
    with pytest.raises(cs.SchemaError, match="what is written needs one dtype"):
        cs.hf.save(tmp_path / "mine", found, lens)
    cs.hf.save(tmp_path / "mine", found, lens.at(source="bfloat16"))
    assert cs.hf.load(tmp_path / "mine")["wi.weight"].tobytes() == value.tobytes()

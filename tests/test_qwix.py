"""Quantized models of Qwix, real ones: their states in Linen and in NNX, through a lens and through disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import qwix
from flax import linen as nn
from flax import nnx
from jaxtyping import Array, Float32, Int8, Int32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.testing import _laws as laws

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # Qwix calls what Flax has since renamed

INPUT = jnp.linspace(-1.0, 1.0, 32).reshape(2, 16)


class LinenModel(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The layers, one after the other."""
        return nn.Dense(16, use_bias=False, name="wo")(nn.gelu(nn.Dense(64, name="wi")(x)))


class NnxModel(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Makes the layers."""
        self.wi = nnx.Linear(16, 64, rngs=rngs)
        self.wo = nnx.Linear(64, 16, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The layers, one after the other."""
        return self.wo(nnx.gelu(self.wi(x)))


class Int8Kernel(cs.Schema):
    qvalue: Int8[Array, "inputs outputs"]
    scale: Float32[Array, "1 outputs"]
    zero_point: Int8[Array, "1 outputs"] | None


class Quantized(cs.Schema):
    kernel: Int8Kernel = cs.field(key="kernel/array")
    bias: Float32[Array, " outputs"] | None


class Model(cs.Schema):
    wi: Quantized = cs.field(dims={"inputs": "embed", "outputs": "mlp"})
    wo: Quantized = cs.field(dims={"inputs": "mlp", "outputs": "embed"})


LENS = cs.derive(cs.linen.Params[Model], cs.nnx.Params[Model])


def rules(**told: Any) -> list[Any]:
    return [
        qwix.QuantizationRule(module_path=".*", weight_qtype=told.pop("qtype", jnp.int8), **told)
    ]


def linen_model(**told: Any) -> Any:
    return qwix.quantize_model(LinenModel(), qwix.PtqProvider(rules(**told)))


def nnx_model(seed: int = 0, **told: Any) -> Any:
    return qwix.quantize_model(NnxModel(nnx.Rngs(seed)), qwix.PtqProvider(rules(**told)), INPUT)


def linen_state(**told: Any) -> Any:
    return linen_model(**told).init(jax.random.key(1), INPUT)


SCHEMES: dict[str, dict[str, Any]] = {
    "symmetric": {},
    "with a zero point": {"weight_calibration_method": "minmax"},
}
schemes = pytest.mark.parametrize("told", SCHEMES.values(), ids=SCHEMES)


@schemes
def test_declared_layouts_are_the_real_ones(told: dict[str, Any]) -> None:
    linen, real = linen_state(**told), nnx.state(nnx_model(**told))
    assert cs.check(LENS.source, linen) == []
    assert cs.check(LENS.view, real) == []
    assert jax.tree.structure(LENS.get(linen)) == jax.tree.structure(real)
    for law, trees in {
        laws.get_put: (linen,),
        laws.put_get: (real,),
        laws.abstraction: (linen, real),
    }.items():
        law(LENS, *trees)


@schemes
def test_a_quantized_model_computes_the_same_in_the_other_framework(told: dict[str, Any]) -> None:
    linen, module = linen_state(**told), nnx_model(**told)
    nnx.update(module, LENS.get(linen))
    expected = jax.jit(linen_model(**told).apply)(linen, INPUT)
    cs.assert_trees_identical(nnx.jit(lambda m, x: m(x))(module, INPUT), expected)
    cs.assert_trees_identical(
        LENS.put(nnx.state(module), onto=jax.eval_shape(lambda: linen)), linen
    )


@schemes
def test_a_checkpoint_of_either_restores_into_both(told: dict[str, Any], tmp_path: Path) -> None:
    linen, module = linen_state(**told), nnx_model(**told)
    cs.orbax.save(tmp_path / "linen", linen, LENS)
    cs.orbax.save(tmp_path / "nnx", LENS.get(linen), ~LENS)
    cs.orbax.save(tmp_path / "through", LENS.get(linen), LENS, onto=jax.eval_shape(lambda: linen))
    cs.assert_trees_identical(ocp.load(tmp_path / "through", linen), linen)  # by Orbax alone
    for name in ("linen", "nnx", "through"):
        restored = cs.orbax.restore(tmp_path / name, nnx.eval_shape(lambda: module), LENS)
        cs.assert_trees_identical(nnx.state(restored), LENS.get(linen))
        cs.assert_trees_identical(cs.orbax.restore(tmp_path / name, linen, LENS), linen)


@pytest.mark.parametrize(
    "qtype", [jnp.int8, jnp.int4, jnp.float8_e4m3fn, jnp.float8_e5m2], ids=lambda x: x.__name__
)
def test_inferred_layouts_of_every_type(qtype: Any, tmp_path: Path) -> None:
    linen, module = linen_state(qtype=qtype), nnx_model(qtype=qtype)
    lens = cs.derive(cs.infer(linen), cs.infer(module))
    assert jax.tree.structure(lens.get(linen)) == jax.tree.structure(nnx.state(module))
    cs.assert_trees_identical(lens.put(lens.get(linen)), linen)
    cs.orbax.save(tmp_path / "0", linen, lens)
    cs.assert_trees_identical(
        nnx.state(cs.orbax.restore(tmp_path / "0", module, lens)), lens.get(linen)
    )


# --- statistics of quantization-aware training: one Variable that holds a dict  ---


class Stat(cs.Schema):
    count: Int32[Array, ""]
    sum_of_absmax: Float32[Array, "1 1"]


class Trained(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"] | None
    stat: Stat = cs.field(
        key="dot_general0_lhs", collection="quant_stats", type=qwix.QuantStat, value=dict
    )


class TrainedModel(cs.Schema):
    wi: Trained = cs.field(dims={"inputs": "embed", "outputs": "mlp"})
    wo: Trained = cs.field(dims={"inputs": "mlp", "outputs": "embed"})


def test_statistics_of_training_are_one_variable(tmp_path: Path) -> None:
    aware = qwix.QtProvider(rules(act_qtype=jnp.int8, act_static_scale=True))
    linen = qwix.quantize_model(LinenModel(), aware).init(jax.random.key(1), INPUT)
    module = qwix.quantize_model(NnxModel(nnx.Rngs(0)), aware, INPUT)
    lens = cs.derive(cs.linen.Params[TrainedModel], cs.nnx.Params[TrainedModel])
    assert cs.check(lens.source, linen) == []
    assert jax.tree.structure(lens.get(linen)) == jax.tree.structure(nnx.state(module))
    cs.assert_trees_identical(lens.put(lens.get(linen)), linen)
    cs.orbax.save(tmp_path / "0", linen, lens)
    restored = cs.orbax.restore(tmp_path / "0", module, lens)
    cs.assert_trees_identical(nnx.state(restored), lens.get(linen))
    nnx.jit(lambda m, x: m(x))(restored, INPUT)  # and goes on counting
    assert (
        int(restored.wi.dot_general0_lhs.get_value()["count"])
        == int(linen["quant_stats"]["wi"]["dot_general0_lhs"]["count"]) + 1
    )


def test_floats_do_not_become_quantized_by_themselves() -> None:
    class Floats(cs.Schema):
        kernel: Float32[Array, "embed mlp"]

    class Ints(cs.Schema):
        kernel: Int8Kernel = cs.field(key="kernel/array")

    with pytest.raises(cs.DerivationError, match="3 fault"):
        cs.derive(cs.linen.Params[Floats], cs.nnx.Params[Ints])

"""Situations that people have reported in public, by number: each is a test here, or one that `ELSEWHERE` names."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as v0
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jaxtyping import Array, Float32, Int32
from orbax.checkpoint import v1 as ocp
from support.outcomes import refused, same

import ckpt_schema as cs

ELSEWHERE = {
    "big_vision#88, pgx#1200: keys with slashes": "findings/test_findings_keys.test_6_haiku_keys_are_declared",
    "gemma: released keys": "findings/test_findings_keys.test_6_gemma_keys_are_declared",
    "flax#3977, flax#1429, EasyLM#72: msgpack files": "test_older_files.test_a_train_state_is_restored",
    "orbax#1484, #381, #722, #924: older forms": "findings/test_findings_disk.test_3_6_old_forms_are_read",
    "flax#676, orbax#1105: a train state with more fields": (
        "findings/test_findings_states.test_reach_04_a_train_state_with_more_fields_is_declared_and_restored"
    ),
    "levanter#853: averages are served": (
        "findings/test_findings_states.test_reach_04_averages_are_served_as_the_weights"
    ),
    "orbax#487, Flax's guide: siblings of a state": (
        "findings/test_findings_standing.test_reach_03b_06_a_state_under_a_key_with_siblings"
    ),
    "brax#655: a tuple at the root": "findings/test_findings_standing.test_reach_06_the_root_is_a_tuple",
    "transformers#9054: a square matrix, transposed": (
        "findings/test_findings_axes.test_1_1_axes_of_one_final_name_match_by_what_their_class_calls_them"
    ),
    "the same, of trees that nobody declared": (
        "findings/test_findings_axes.test_1_2_square_leaves_under_another_name_are_named_in_one_warning"
    ),
    "jasmine#57: other names of attributes": (
        "findings/test_findings_states.test_reach_15_a_training_object_has_its_own_attribute_names"
    ),
    "flax#4423: an optimizer that held its model": "test_older_files.test_an_optimizer_that_held_its_module",
    "orbax#648, #683, #678, #986: opened on another machine": (
        "test_orbax_load.test_everything_comes_to_the_memory_of_the_host"
    ),
    "maxtext#554: params, or {'params': params}": (
        "findings/test_findings_standing.test_reach_18_bare_weights_are_found_in_a_variables_dict"
    ),
    "orbax#620: typed against raw keys": "test_raw_keys.test_orbax_1105_a_checkpoint_of_raw_keys_restores_to_typed_ones",
    "t5x#1196, maxtext#879: no step, another name": (
        "findings/test_findings_states.test_reach_19_no_step_and_an_optimizer_state_of_another_name"
    ),
    "tpu-inference: repeated heads": "test_repeat.test_heads_are_repeated_as_numpy_repeats_them",
    "flax#4842: nnx.ModelAndOptimizer": (
        "findings/test_findings_states.test_reach_21_a_model_and_optimizer_in_one_object"
    ),
    "jasmine#106: model and optimizer in a dict": (
        "findings/test_findings_bits.test_1_10_a_dict_of_modules_is_updated_in_place"
    ),
    "axlearn#293: one declaration for several precisions": (
        "test_precision.test_a_leaf_of_any_float_is_every_float_that_jax_has"
    ),
    "maxtext: nnx_aux inside of the item": (
        "findings/test_findings_standing.test_3_5_private_leaves_inside_the_item_or_beside_it"
    ),
    "orbax#413, grain#1231, maxtext#416, track-mjx#49: an iterator and a config beside": (
        "findings/test_findings_disk.test_3_11_other_items_and_metadata_go_into_the_checkpoint"
    ),
    "flax#866, #1848: a plain schema and nnx.Params": (
        "findings/test_findings_rules.test_2_13_a_plain_schema_is_joined_with_weights_of_equal_names"
    ),
    "optax#1746: a wrapper around the optimizer": (
        "findings/test_findings_advice.test_2_11_the_own_leaves_of_a_wrapper_are_reset_by_name"
    ),
    "maxtext#4501, optax#1274: what one side does not train": (
        "findings/test_findings_advice.test_2_12_what_the_other_side_does_not_train_is_left_behind"
    ),
    "keras#10806, flax#3137: two train states": (
        "findings/test_findings_states.test_jobs_05_a_rule_reaches_what_mirrors_the_weight_in_its_own_state"
    ),
    "flax#4623, #5576, #3335: statistics under tuple keys": (
        "findings/test_findings_disk.test_3_12_statistics_under_tuple_keys_come_back"
    ),
    "maxtext#4274, flax#3576, #5591, numpyro#2055: what is not declared": (
        "findings/test_findings_advice.test_2_15_what_is_not_declared_is_left_as_the_target_has_it"
    ),
    "flax#4167, #3983: a part is trained": "findings/test_findings_states.test_jobs_08_what_is_trained_is_any_filter",
    "metrax#114, flax#5117: more in the training object": (
        "findings/test_findings_states.test_jobs_09_metrics_averages_streams_and_an_epoch_beside_them"
    ),
    "ml_dtypes#41, sglang-jax#1017: bfloat16 as bytes": (
        "findings/test_findings_advice.test_2_14_bytes_without_a_dtype_are_to_be_viewed"
    ),
    "vllm#53170, mlx-lm#1298, transformers#43429: a head, or else the embedding": (
        "test_fallbacks.test_vllm_53170_mlx_lm_1298_one_lens_for_files_with_a_head_and_without"
    ),
    "OLMo#236, OpenNMT-py#1911: a reset of one side": (
        "findings/test_findings_advice.test_2_14_a_reset_of_one_side_asks_for_the_other"
    ),
    "schedule_free#15: the weights that are served": (
        "findings/test_findings_advice.test_2_16_dropping_the_state_of_schedule_free_is_told"
    ),
    "maxtext#2092: two numbers in one key": "findings/test_findings_keys.test_6_two_numbers_in_one_flat_key",
    "transformers#21581: a counter of 64 bits": (
        "findings/test_findings_disk.test_3_14_a_default_of_64_bits_is_written"
    ),
}
"""Where a situation is a test, if not here."""

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("situation", ELSEWHERE)
def test_a_situation_that_is_elsewhere_is_there(situation: str) -> None:
    module, _, name = ELSEWHERE[situation].partition(".")
    tree = ast.parse((TESTS / f"{module}.py").read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


TX = optax.adam(1e-2)


def counted(*shape: int, start: int = 0) -> Any:
    return jnp.arange(start, start + np.prod(shape, dtype=int), dtype="float32").reshape(shape)


def dense(inputs: int, outputs: int, start: int) -> dict[str, Any]:
    return {"kernel": counted(inputs, outputs, start=start), "bias": counted(outputs, start=start)}


def weights(classes: int = 3) -> dict[str, Any]:
    return {"body": dense(2, 4, 1), "head": dense(4, classes, 50)}


def trained(tx: optax.GradientTransformation = TX) -> dict[str, Any]:
    params = weights()
    _, opt_state = tx.update(params, tx.init(params), params)
    return {"step": jnp.int32(7), "params": params, "opt_state": opt_state}


STATE = trained()
MOMENT = STATE["opt_state"][0].mu


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, classes: int = 3) -> None:
        self.body = nnx.Linear(2, 4, rngs=rngs)
        self.head = nnx.Linear(4, classes, rngs=rngs)


class Training(nnx.Module):
    def __init__(self, classes: int = 3) -> None:
        self.model = Model(nnx.Rngs(1), classes)
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=nnx.Param)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("public") / "7"
    ocp.save(path, STATE)
    return path


# --- Forms on disk  ---


def by_manager(path: Path, state: Any) -> Path:
    with v0.CheckpointManager(path) as manager:
        manager.save(5, args=v0.args.StandardSave(state))
        manager.wait_until_finished()
    return path / "5"


@pytest.mark.parametrize("form", ["PyTree", "no database", "manager"])
def test_flax_4521_states_that_the_v0_api_wrote(tmp_path: Path, form: str) -> None:
    path = tmp_path / "run"
    if form == "PyTree":
        v0.PyTreeCheckpointer().save(path, STATE)
    elif form == "no database":
        v0.Checkpointer(v0.PyTreeCheckpointHandler(use_ocdbt=False)).save(path, STATE)
    else:
        path = by_manager(path, STATE)
    found = cs.orbax.restore(path, jax.tree.map(jnp.zeros_like, STATE))
    cs.assert_trees_identical(found, STATE)


def test_deepmd_5748_leaves_of_no_elements(tmp_path: Path) -> None:
    class Sparse(cs.Schema):
        w: Float32[Array, "n d"]
        empty: Float32[Array, "0 d"] = cs.field(ephemeral=True, default=0.0)

    tree = {"w": jnp.ones((2, 3)), "empty": jnp.zeros((0, 3))}
    lens = cs.derive(Sparse, Sparse)
    cs.orbax.save(tmp_path / "sparse", tree, lens)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "sparse", tree, lens), tree)


def test_3_17_what_is_read_off_a_checkpoint_has_its_keys(tmp_path: Path) -> None:
    state = {"key": jax.random.key(3), "raw": jax.random.PRNGKey(3)}
    cs.orbax.save(tmp_path / "keys", state)
    layout = cs.infer(tmp_path / "keys")
    assert [str(row.leaf) for row in layout.rows] == ["key<fry>[]", "uint32[2]"]
    target = jax.tree.map(lambda _: jax.random.key(0), state)
    rules = [cs.raw_key("raw")]
    found = cs.orbax.restore(tmp_path / "keys", target, rules=rules)
    assert (jax.random.key_data(found["raw"]) == jax.random.key_data(state["key"])).all()


class Extended(TrainState):
    ema: Any = None
    key: Any = None


def test_3_18_weights_alone_of_a_state_with_more_fields(tmp_path: Path) -> None:
    state = Extended.create(
        apply_fn=None, params=weights(), tx=TX, ema=jnp.ones(3), key=jax.random.key(3)
    )
    ocp.save(tmp_path / "more", state)
    for target in (Model(nnx.Rngs(0)), lambda: Model(nnx.Rngs(0))):
        model = cs.orbax.restore(tmp_path / "more", target)
        same(model.head.bias[...], weights()["head"]["bias"])
    found = cs.orbax.restore(tmp_path / "more", {"params": jax.tree.map(jnp.zeros_like, weights())})
    cs.assert_trees_identical(found, {"params": weights()})


def test_3_18_texts_anywhere_are_not_read(tmp_path: Path) -> None:
    noted = {**STATE["params"], "note": "of run 3"}
    v0.PyTreeCheckpointer().save(tmp_path / "texts", {**STATE, "params": noted, "name": "run-1"})
    found = cs.orbax.restore(tmp_path / "texts", jax.tree.map(jnp.zeros_like, STATE))
    cs.assert_trees_identical(found, STATE)
    lens = cs.derive(cs.infer(STATE), cs.infer(STATE))
    found = cs.orbax.restore(tmp_path / "texts", jax.tree.map(jnp.zeros_like, STATE), lens)
    cs.assert_trees_identical(found, STATE)
    model = cs.orbax.restore(tmp_path / "texts", Model(nnx.Rngs(0)))
    same(model.head.bias[...], weights()["head"]["bias"])
    assert cs.orbax.load(tmp_path / "texts")["params"]["note"] == "of run 3"


class Dropping(Model):
    def __init__(self, rngs: nnx.Rngs) -> None:
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


def test_3_18_streams_of_nnx_that_linen_has_no_place_for(tmp_path: Path) -> None:
    model = Dropping(nnx.Rngs(3))
    ocp.save(tmp_path / "nnx", nnx.state(model))
    found = cs.orbax.restore(tmp_path / "nnx", {"params": jax.tree.map(jnp.zeros_like, weights())})
    same(found["params"]["body"]["kernel"], model.body.kernel[...])


# --- Another model  ---


def test_octo_95_transformers_12664_a_new_head(saved: Path) -> None:
    refused(lambda: cs.orbax.restore(saved, Training(5)), "apart('head/kernel')", "float32[4 5]")
    made = Training(5).model.head.kernel[...]
    training = cs.orbax.restore(
        saved, lambda: Training(5), rules=[cs.apart("head")], missing=cs.init("head/**")
    )
    same(training.model.body.kernel[...], STATE["params"]["body"]["kernel"])
    same(training.model.head.kernel[...], made)
    moments = nnx.state(training.optimizer)["opt_state"][0]["mu"]
    same(moments["body"]["kernel"][...], MOMENT["body"]["kernel"])
    same(moments["head"]["kernel"][...], jnp.zeros((4, 5)))


def test_openpi_984_960_985_adapters_are_not_dropped_in_silence(tmp_path: Path) -> None:
    adapted = {"body": {"kernel": counted(2, 4), "lora_a": counted(2, 1), "lora_b": counted(1, 4)}}
    ocp.save(tmp_path / "lora", adapted)
    target = {"body": {"kernel": jnp.zeros((2, 4))}}
    refused(
        lambda: cs.orbax.restore(tmp_path / "lora", target),
        "params/body/lora_a  expected a partner",
        "params/body/lora_b  expected a partner",
    )
    rules = [cs.private("**/lora_*", cs.own)]
    found = cs.orbax.restore(tmp_path / "lora", target, rules=rules)
    same(found["body"]["kernel"], adapted["body"]["kernel"])


def test_maxtext_4067_adapters_onto_a_base_model(tmp_path: Path) -> None:
    base = {"body": {"kernel": counted(2, 4, start=9)}}
    lora = {"body": {"lora_a": counted(2, 1), "lora_b": counted(1, 4)}}
    ocp.save(tmp_path / "base", base)
    ocp.save(tmp_path / "lora", lora)
    target = jax.tree.map(jnp.zeros_like, {"body": {**base["body"], **lora["body"]}})
    keeps_adapters, keeps_base = (
        cs.private(f"body/{name}", cs.own) for name in ("lora_*", "kernel")
    )
    found = cs.orbax.restore(tmp_path / "base", target, rules=[keeps_adapters])
    found = cs.orbax.restore(tmp_path / "lora", found, rules=[keeps_base])
    cs.assert_trees_identical(found, {"body": {**base["body"], **lora["body"]}})


def test_vision_transformer_317_maxtext_2914_lapa_29_rows_that_one_side_has(tmp_path: Path) -> None:
    class Small(cs.Schema):
        embed: Float32[Array, "vocab d"]

    class Large(cs.Schema):
        embed: Float32[Array, "grown d"]

    old, new = {"embed": counted(3, 2)}, {"embed": jnp.full((5, 2), 9.0)}
    cs.orbax.save(tmp_path / "old", old)
    lens = cs.derive(Small, Small)
    refused(lambda: cs.orbax.restore(tmp_path / "old", new, lens), "vocab", "3", "5")
    rule = cs.private("embed", 0.0, small="vocab", large="grown")
    words: Any = {"target_side": "view", "disk_side": "source"}
    found = cs.orbax.restore(tmp_path / "old", new, cs.derive(Small, Large, rules=[rule]), **words)
    same(found["embed"][:3], old["embed"])
    same(found["embed"][3:], new["embed"][3:])
    cut = cs.derive(Large, Small, rules=[rule])
    found = cs.orbax.restore(tmp_path / "old", {"embed": jnp.zeros((2, 2))}, cut, **words)
    same(found["embed"], old["embed"][:2])


class Layer(cs.Schema):
    w: Float32[Array, "d f"]


class Listed(cs.Schema):
    layers: list[Layer] = cs.field(key="layers_{i}", length="depth")


class Deeper(cs.Schema):
    layers: list[Layer] = cs.field(key="layers_{i}", length="more")


def listed(depth: int) -> dict[str, Any]:
    return {f"layers_{n}": {"w": np.full((2, 2), n, np.float32)} for n in range(depth)}


def test_orbax_2972_modernbert_119_a_deeper_model(tmp_path: Path) -> None:
    ocp.save(tmp_path / "3", listed(3))
    target = {name: {"w": jnp.full((2, 2), 9.0)} for name in listed(4)}
    lens = cs.derive(Listed, Listed)
    refused(lambda: cs.orbax.restore(tmp_path / "3", target, lens), "layers_3")
    rule = cs.private("layers[]", 0.0, small="depth", large="more")
    found = cs.orbax.restore(
        tmp_path / "3",
        target,
        cs.derive(Listed, Deeper, rules=[rule]),
        target_side="view",
        disk_side="source",
    )
    assert [float(found[f"layers_{n}"]["w"][0, 0]) for n in range(4)] == [0, 1, 2, 9]


def test_olmax_43_layers_that_are_doubled_or_every_other_one() -> None:
    class Doubled(cs.Schema):
        layers: list[Layer] = cs.field(key="layers_{i}", length=3)
        again: list[Layer] = cs.field(key="layers_{i+3}", length=3)

    class Three(cs.Schema):
        layers: list[Layer] = cs.field(key="layers_{i}", length=3)

    found = cs.derive(Three, Doubled, rules=[cs.tie("again[]", "layers[]")]).get(listed(3))
    assert [float(found[f"layers_{n}"]["w"][0, 0]) for n in range(6)] == [0, 1, 2, 0, 1, 2]

    class Teacher(cs.Schema):
        layers: list[Layer] = cs.field(key="layers_{2*i}", length="depth")
        others: list[Layer] = cs.field(key="layers_{2*i+1}", length="rest", default=0.0)

    found = cs.derive(Teacher, Listed).get(listed(4))
    assert [float(found[f"layers_{n}"]["w"][0, 0]) for n in range(2)] == [0, 2]


def test_flax_5106_orbax_331_a_part_of_a_model(saved: Path) -> None:
    body = {"params": {"body": jax.tree.map(jnp.zeros_like, weights()["body"])}}
    found = cs.orbax.restore(saved, body, rules=[cs.private("head", cs.own)])
    cs.assert_trees_identical(found, {"params": {"body": weights()["body"]}})


@flax.struct.dataclass
class Diagnosed:
    flux: Any
    gone: Any


@flax.struct.dataclass
class Diagnosis:
    flux: Any
    sky: Any


def test_jax_gcm_731_a_struct_gains_a_field_and_loses_one(tmp_path: Path) -> None:
    ocp.save(tmp_path / "sim", {"day": Diagnosed(counted(4), jnp.ones(2))})
    target = {"day": Diagnosis(jnp.zeros(4), jnp.full(3, 5.0))}
    refused(lambda: cs.orbax.restore(tmp_path / "sim", target), "day/gone", "day/sky")
    own, zero = (
        [cs.private("day/gone", 0.0), cs.private("day/sky", each)] for each in (cs.own, 0.0)
    )
    found = cs.orbax.restore(tmp_path / "sim", target, rules=own)["day"]
    assert isinstance(found, Diagnosis)
    same(found.flux, counted(4))
    same(found.sky, target["day"].sky)
    abstract = jax.eval_shape(lambda: target)
    same(cs.orbax.restore(tmp_path / "sim", abstract, rules=zero)["day"].sky, jnp.zeros(3))


# --- Another optimizer  ---


class Dense(cs.Schema):
    kernel: Float32[Array, "i o"]
    bias: Float32[Array, " o"]


class Body(cs.Schema):
    body: Dense = cs.field(dims={"i": "inputs", "o": "hidden"})
    head: Dense = cs.field(dims={"i": "hidden", "o": "classes"})


def zeros(tx: optax.GradientTransformation) -> dict[str, Any]:
    return jax.tree.map(jnp.zeros_like, trained(tx))


def test_runtime_error_prediction_92_mesh_transformer_28_another_optimizer(saved: Path) -> None:
    momentum = optax.sgd(0.1, momentum=0.9)
    sides = [cs.linen.BareTrainState[Body, tx] for tx in (TX, momentum)]
    refused(lambda: cs.derive(*sides), "ScaleByAdamState", "TraceState", "reset(")
    lens = cs.derive(*sides, rules=[cs.reset(source="opt_state", view="opt_state")])
    found = cs.orbax.restore(saved, zeros(momentum), lens)
    cs.assert_trees_identical(found["params"], STATE["params"])
    cs.assert_trees_identical(found["opt_state"], momentum.init(weights()))
    model = cs.orbax.restore(saved, Model(nnx.Rngs(0)))  # whatever its optimizer was
    same(model.head.kernel[...], STATE["params"]["head"]["kernel"])


def test_optax_1036_a_schedule_is_added(saved: Path) -> None:
    scheduled = optax.adam(optax.linear_schedule(1e-3, 0, 100))
    sides = [cs.linen.BareTrainState[Body, tx] for tx in (TX, scheduled)]
    refused(lambda: cs.derive(*sides), "opt_state/1", "reset(view='opt_state/1')")
    anew = cs.derive(*sides, rules=[cs.reset(view="opt_state/1")])
    found = cs.orbax.restore(saved, zeros(scheduled), anew)["opt_state"]
    assert int(found[0].count) == 1 and int(found[1].count) == 0
    along = cs.derive(*sides, rules=[cs.tie("opt_state/1/count", "opt_state/0/count")])
    found = cs.orbax.restore(saved, zeros(scheduled), along)["opt_state"]
    assert int(found[0].count) == 1 and int(found[1].count) == 1


def kept(name: str) -> type[cs.Schema]:
    class Moments(cs.Schema):
        kernel: Float32[Array, "i o"] = cs.field(key=f"kernel/{name}")
        bias: Float32[Array, " o"] = cs.field(key=f"bias/{name}")

    class Both(cs.Schema):
        body: Moments = cs.field(dims={"i": "inputs", "o": "hidden"})
        head: Moments = cs.field(dims={"i": "hidden", "o": "classes"})

    return Both


FirstMoment, SecondMoment = kept("grad_ema"), kept("grad_sq_ema")


class Legacy(cs.Schema):
    step: Int32[Array, ""] = cs.field(key="state/step")
    params: Body = cs.field(key="target")
    mu: FirstMoment = cs.field(key="state/param_states")  # pyright: ignore[reportInvalidTypeForm]
    nu: SecondMoment = cs.field(key="state/param_states")  # pyright: ignore[reportInvalidTypeForm]


def test_flax_1404_1774_the_state_of_flax_optim() -> None:
    adam = STATE["opt_state"][0]
    both = jax.tree.map(lambda m, v: {"grad_ema": m, "grad_sq_ema": v}, adam.mu, adam.nu)
    old = {"target": STATE["params"], "state": {"step": jnp.int32(1), "param_states": both}}
    rules = [
        cs.rename("mu", "opt_state/0/mu"),
        cs.rename("nu", "opt_state/0/nu"),
        cs.tie("opt_state/0/count", "step"),
    ]
    lens = cs.derive(Legacy, cs.linen.BareTrainState[Body, TX], rules=rules)
    found = lens.get(old)
    cs.assert_trees_identical(found["opt_state"][0].mu, adam.mu)
    cs.assert_trees_identical(found["opt_state"][0].nu, adam.nu)
    assert int(found["step"]) == int(found["opt_state"][0].count) == 1


# --- Other axes and dtypes  ---


class Permuted(cs.Schema, joined="."):
    wq: list[Float32[Array, "heads*2*half embed"]] = cs.field(
        key="model/layers/{i}/q_proj/weight", length="depth"
    )


class Interleaved(cs.Schema):
    wq: list[Float32[Array, "embed heads*half*2"]] = cs.field(
        key="h/'{i}'/wq/kernel", length="depth"
    )


def test_easylm_7_72_rotary_order_of_flat_dotted_names() -> None:
    heads, half, embed = 2, 2, 8
    size = 2 * heads * half
    flat = {
        f"model.layers.{n}.q_proj.weight": np.asarray(counted(size, embed, start=n * 100))
        for n in range(2)
    }
    lens = cs.derive(Permuted, Interleaved, dims={"heads": heads, "half": half})
    found = lens.get(flat)
    for n, name in enumerate(flat):
        wanted = flat[name].reshape(heads, 2, half, embed).transpose(0, 2, 1, 3)
        same(found["h"][str(n)]["wq"]["kernel"], wanted.reshape(size, embed).T)
    cs.assert_trees_identical(lens.put(found), flat)


def test_equinox_914_1093_an_axis_of_one_element() -> None:
    class Flat(cs.Schema):
        w: Float32[Array, " n"]

    class Wide(cs.Schema):
        w: Float32[Array, "1 n"]

    found = cs.derive(Flat, Wide).get({"w": np.float32([5])})
    cs.assert_trees_identical(found, {"w": np.float32([[5]])})
    refused(lambda: cs.derive(Wide, Wide).get({"w": np.float32([5])}), "float32[1 n]")


def test_axlearn_293_asi_2714_other_dtypes(tmp_path: Path) -> None:
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights())
    ocp.save(tmp_path / "bfloat16", narrow)
    found = cs.orbax.restore(tmp_path / "bfloat16", weights())
    cs.assert_trees_identical(found, jax.tree.map(lambda leaf: leaf.astype("float32"), narrow))
    odd = {"w": jnp.float32([1 + 2**-20])}
    ocp.save(tmp_path / "float32", odd)
    target = {"w": jnp.zeros(1, jnp.bfloat16)}
    refused(lambda: cs.orbax.restore(tmp_path / "float32", target), "bfloat16", "cast(")
    rules = [cs.cast("w", rounding="nearest")]
    found = cs.orbax.restore(tmp_path / "float32", target, rules=rules)
    cs.assert_trees_identical(found, {"w": jnp.ones(1, jnp.bfloat16)})
    ocp.save(tmp_path / "count", {"events": jnp.int32(2**24 + 1)})
    wrong = {"events": jnp.float32(0)}  # Orbax alone makes 16777216 of it
    refused(lambda: cs.orbax.restore(tmp_path / "count", wrong), "events", "int32", "float32")


def test_tpu_inference_heads_that_are_padded() -> None:
    class Joined(cs.Schema):
        q: Float32[Array, "embed heads*dim"]

    class Padded(cs.Schema):
        q: Float32[Array, "heads padded embed"]

    q = np.asarray(counted(3, 4, start=1))
    rules = [cs.pad("q", "dim", "padded")]
    lens = cs.derive(Joined, Padded, rules=rules, dims={"heads": 2}).bind(padded=4)
    wanted = np.zeros((2, 4, 3), np.float32)
    wanted[:, :2] = q.reshape(3, 2, 2).transpose(1, 2, 0)
    cs.assert_trees_identical(lens.get({"q": q}), {"q": wanted})


def test_flax_3787_boxes_on_disk(tmp_path: Path) -> None:
    params = weights()
    params["body"]["kernel"] = nn.LogicallyPartitioned(params["body"]["kernel"], ("in", "embed"))
    v0.PyTreeCheckpointer().save(tmp_path / "boxed", params)
    lens = cs.derive(cs.linen.BareParams[Body], cs.nnx.Params[Body])
    model = cs.orbax.restore(tmp_path / "boxed", Model(nnx.Rngs(0)), lens)
    same(model.body.kernel[...], weights()["body"]["kernel"])
    alike = cs.derive(cs.linen.BareParams[Body], cs.linen.BareParams[Body])
    found = cs.orbax.restore(tmp_path / "boxed", jax.tree.map(jnp.zeros_like, params), alike)
    assert isinstance(found["body"]["kernel"], nn.LogicallyPartitioned)


# --- What MaxText keeps  ---


def test_maxtext_params_and_streams_on_two_axes_of_one_scan() -> None:
    kernel, count = nnx.Param(jnp.ones((4, 2, 8))), nnx.RngCount(jnp.zeros(2, "uint32"))
    leaves = [(("layers", "wi", "kernel"), kernel), (("layers", "dropout", "count"), count)]
    state = nnx.from_flat_state(leaves)
    layout = cs.infer(state, scan={"layers": {nnx.Param: 1, nnx.RngState: 0}})
    assert {row.path[-1]: row.repeats[0].axis for row in layout.rows} == {"kernel": 1, "count": 0}


class Sharing(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wi = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1)
        self.dropout.rngs = rngs


def test_maxtext_layers_that_share_their_streams_are_a_list() -> None:
    model, rngs = nnx.Module(), nnx.Rngs(0)
    for n in range(2):
        setattr(model, f"layers_{n}", Sharing(rngs))
    paths = ["/".join(row.path) for row in cs.infer(model, lists=["layers_{i}"]).rows]
    assert "params/layers[]/wi/kernel" in paths
    assert any(path.startswith("params/layers_0/dropout/rngs") for path in paths)


def test_orbax_2561_flax_4308_an_nnx_state_as_pure_dicts(tmp_path: Path) -> None:
    training = Training()
    v0.PyTreeCheckpointer().save(tmp_path / "pure", nnx.to_pure_dict(nnx.state(training)))
    ocp.save(tmp_path / "state", nnx.state(training))
    for name in ("pure", "state"):
        found = cs.orbax.restore(tmp_path / name, Training())
        cs.assert_trees_identical(nnx.state(found), nnx.state(training))

"""Each situation that was tried from outside, by its number: a test here, or those that `HELD` names."""

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
from flax import nnx, serialization
from flax.core import FrozenDict, freeze
from jaxtyping import Array, BFloat16, Float, Float32, Int32
from orbax.checkpoint import v1 as ocp
from support.outcomes import refused, same

import ckpt_schema as cs

HELD = {
    "reach/01 keys with slashes": """
        keys.test_6_haiku_keys_are_declared
        keys.test_6_haiku_keys_are_inferred_and_renamed""",
    "reach/02 msgpack": "test_older_files.test_a_train_state_is_restored",
    "reach/03 forms on disk": """
        disk.test_3_6_old_forms_are_read
        public.test_flax_4521_states_that_the_v0_api_wrote""",
    "reach/03b under a key": "standing.test_reach_03b_06_a_state_under_a_key_with_siblings",
    "reach/04 more fields": """
        states.test_reach_04_a_train_state_with_more_fields_is_declared_and_restored
        states.test_reach_04_averages_are_served_as_the_weights""",
    "reach/05 another head": """
        public.test_octo_95_transformers_12664_a_new_head
        rules.test_2_5_a_restore_leaves_the_targets_own_head
        rules.test_2_5_private_for_what_both_sides_have_says_apart""",
    "reach/06 more on disk": """
        standing.test_reach_03b_06_a_state_under_a_key_with_siblings
        standing.test_reach_06_the_root_is_a_tuple
        standing.test_one_state_from_several_items_and_saved_so""",
    "reach/07 adapters": """
        public.test_openpi_984_960_985_adapters_are_not_dropped_in_silence
        public.test_maxtext_4067_adapters_onto_a_base_model""",
    "reach/08 resized": (
        "public.test_vision_transformer_317_maxtext_2914_lapa_29_rows_that_one_side_has"
    ),
    "reach/09 dtypes": "public.test_axlearn_293_asi_2714_other_dtypes",
    "reach/10 equinox": "words.test_1_1_a_square_hidden_layer_computes_the_same_in_the_other_order",
    "reach/10b square, transposed": """
        axes.test_1_1_axes_of_one_final_name_match_by_what_their_class_calls_them
        axes.test_1_1_moments_of_square_leaves_in_stacks_are_transposed_too""",
    "reach/10c square, inferred": """
        axes.test_1_2_square_leaves_under_another_name_are_named_in_one_warning""",
    "reach/11 a struct": "public.test_jax_gcm_731_a_struct_gains_a_field_and_loses_one",
    "reach/12 another optimizer": """
        public.test_runtime_error_prediction_92_mesh_transformer_28_another_optimizer
        public.test_optax_1036_a_schedule_is_added""",
    "reach/14 flat dotted names": "public.test_easylm_7_72_rotary_order_of_flat_dotted_names",
    "reach/15 forms of nnx": """
        public.test_orbax_2561_flax_4308_an_nnx_state_as_pure_dicts
        states.test_reach_15_a_training_object_has_its_own_attribute_names
        test_older_files.test_an_optimizer_that_held_its_module""",
    "reach/16 other devices": """
        test_orbax_load.test_everything_comes_to_the_memory_of_the_host
        test_orbax_load.test_arrays_go_where_they_are_told_to""",
    "reach/17 depth": """
        public.test_orbax_2972_modernbert_119_a_deeper_model
        public.test_olmax_43_layers_that_are_doubled_or_every_other_one""",
    "reach/18 wrappers, boxes, keys": """
        standing.test_reach_18_bare_weights_are_found_in_a_variables_dict
        public.test_flax_3787_boxes_on_disk
        public.test_deepmd_5748_leaves_of_no_elements
        test_raw_keys.test_orbax_1105_a_checkpoint_of_raw_keys_restores_to_typed_ones""",
    "reach/19 envelopes": """
        states.test_reach_19_no_step_and_an_optimizer_state_of_another_name
        disk.test_3_8_a_step_is_a_step_whatever_its_bits
        public.test_3_18_texts_anywhere_are_not_read""",
    "reach/20 inferred averages, heads": """
        axes.test_1_15_an_average_of_the_weights_goes_with_them
        test_repeat.test_heads_are_repeated_as_numpy_repeats_them
        public.test_tpu_inference_heads_that_are_padded""",
    "reach/21 model and optimizer": """
        states.test_reach_21_a_model_and_optimizer_in_one_object
        states.test_reach_21_a_model_and_optimizer_that_nobody_declared
        public.test_flax_5106_orbax_331_a_part_of_a_model""",
    "reach/22 targets of nnx": """
        bits.test_1_10_a_dict_of_modules_is_updated_in_place
        bits.test_1_10_a_pytree_that_is_no_module_is_updated
        words.test_1_10_a_pair_of_model_and_optimizer_is_told_what_to_pass""",
    "reach/23 old optimizers": "public.test_flax_1404_1774_the_state_of_flax_optim",
    "reach/26 gemma on disk": """
        keys.test_6_gemma_keys_are_declared
        words.test_6_a_tree_that_is_nested_at_its_slashes_is_read""",
    "reach/27 any float": "test_precision.test_a_leaf_of_any_float_is_every_float_that_jax_has",
    "reach/28 square, end to end": (
        "words.test_1_1_a_square_hidden_layer_computes_the_same_in_the_other_order"
    ),
    "reach/maxtext nnx_aux inside": """
        standing.test_3_5_private_leaves_inside_the_item_or_beside_it
        standing.test_3_5_private_leaves_that_the_target_has_no_place_for""",
    "reach/maxtext axes of a scan": (
        "public.test_maxtext_params_and_streams_on_two_axes_of_one_scan"
    ),
    "reach/maxtext shared streams": (
        "public.test_maxtext_layers_that_share_their_streams_are_a_list"
    ),
    "jobs/01 an iterator, a config": """
        disk.test_3_11_other_items_and_metadata_go_into_the_checkpoint
        disk.test_3_11_the_items_can_be_had_for_any_call_of_orbax""",
    "jobs/02 a plain schema": """
        rules.test_2_13_a_plain_schema_is_joined_with_weights_of_equal_names""",
    "jobs/03 a wrapper": "advice.test_2_11_the_own_leaves_of_a_wrapper_are_reset_by_name",
    "jobs/04 not trained": """
        advice.test_2_12_what_the_other_side_does_not_train_is_left_behind
        advice.test_2_12_what_is_trained_from_now_on_starts_anew""",
    "jobs/05 two train states": """
        axes.test_1_15_two_train_states_side_by_side_are_not_taken_for_weights
        states.test_jobs_05_a_rule_reaches_what_mirrors_the_weight_in_its_own_state""",
    "jobs/06 tuple keys": "disk.test_3_12_statistics_under_tuple_keys_come_back",
    "jobs/07 not declared": "advice.test_2_15_what_is_not_declared_is_left_as_the_target_has_it",
    "jobs/08 a part is trained": "states.test_jobs_08_what_is_trained_is_any_filter",
    "jobs/09 more in the object": (
        "states.test_jobs_09_metrics_averages_streams_and_an_epoch_beside_them"
    ),
    "jobs/10 bytes": """
        advice.test_2_14_bytes_without_a_dtype_are_to_be_viewed
        advice.test_2_14_no_layout_is_read_off_bytes_without_a_dtype""",
    "jobs/11 the sum of two": """
        advice.test_2_14_one_of_two_leaves_that_make_one_is_not_given_up
        test_sums.test_jobs_11_flax_3746_equinox_1003_a_bias_that_is_the_sum_of_two""",
    "jobs/12 a head or else": (
        "test_fallbacks.test_vllm_53170_mlx_lm_1298_one_lens_for_files_with_a_head_and_without"
    ),
    "jobs/13 a reset of one side": "advice.test_2_14_a_reset_of_one_side_asks_for_the_other",
    "jobs/14 served weights": "advice.test_2_16_dropping_the_state_of_schedule_free_is_told",
    "jobs/15 two numbers": "keys.test_6_two_numbers_in_one_flat_key",
    "jobs/16 64 bits": "disk.test_3_14_a_default_of_64_bits_is_written",
    "3.17 keys in metadata": "public.test_3_17_what_is_read_off_a_checkpoint_has_its_keys",
    "3.18 more fields, texts, streams": """
        public.test_3_18_weights_alone_of_a_state_with_more_fields
        public.test_3_18_texts_anywhere_are_not_read
        public.test_3_18_streams_of_nnx_that_linen_has_no_place_for""",
}
"""Situations, and the tests that hold them: in a module of the suite, or, by its last word, of this folder."""

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("situation", HELD)
def test_a_situation_has_its_tests(situation: str) -> None:
    for spelled in HELD[situation].split():
        module, _, name = spelled.partition(".")
        folder = "" if module.startswith("test_") else "findings/test_findings_"
        tree = ast.parse((TESTS / f"{folder}{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


TX = optax.adam(1e-2)


class Dense(cs.Schema):
    kernel: Float32[Array, "i o"]
    bias: Float32[Array, " o"]


class Body(cs.Schema):
    body: Dense = cs.field(dims={"i": "inputs", "o": "hidden"})
    head: Dense = cs.field(dims={"i": "hidden", "o": "classes"})


class Model(nnx.Module):
    def __init__(self, seed: int = 0) -> None:
        self.body = nnx.Linear(2, 4, rngs=nnx.Rngs(seed))
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(seed + 1))


class Training(nnx.Module):
    def __init__(self, tx: optax.GradientTransformation = TX) -> None:
        self.model = Model()
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)


def counted(*shape: int, start: int = 0) -> Any:
    return jnp.arange(start, start + np.prod(shape, dtype=int), dtype="float32").reshape(shape)


def weights() -> dict[str, Any]:
    body = {"kernel": counted(2, 4, start=1), "bias": counted(4, start=20)}
    return {"body": body, "head": {"kernel": counted(4, 3, start=50), "bias": counted(3, start=90)}}


def trained(tx: optax.GradientTransformation = TX) -> dict[str, Any]:
    params = weights()
    _, opt_state = tx.update(params, tx.init(params), params)
    return {"step": jnp.int32(7), "params": params, "opt_state": opt_state}


STATE = trained()
BARE = cs.linen.BareTrainState[Body, TX]
ONTO_NNX = cs.derive(BARE, cs.nnx.TrainState[Body, TX])


def zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def verify(training: Any) -> None:
    """That it is the state, moments and all."""
    cs.assert_trees_identical(nnx.to_pure_dict(nnx.state(training.model)), weights())
    moments = nnx.state(training.optimizer)["opt_state"][0]["mu"]
    same(moments["head"]["kernel"][...], STATE["opt_state"][0].mu["head"]["kernel"])


def test_reach_02_packed_files_of_flax(tmp_path: Path) -> None:
    """google/flax#3977, #1429, EasyLM#72."""
    packed = serialization.to_bytes(STATE)
    (tmp_path / "checkpoint_7").write_bytes(packed)
    refused(lambda: cs.orbax.restore(tmp_path, Training(), ONTO_NNX), "checkpoint_7")
    verify(cs.orbax.restore(tmp_path / "checkpoint_7", Training(), ONTO_NNX))
    raw = serialization.msgpack_restore(packed)
    same(ONTO_NNX.get(raw)["model"]["head"]["kernel"][...], weights()["head"]["kernel"])
    back = ONTO_NNX.put(ONTO_NNX.get(raw), onto=raw)
    assert jax.tree.structure(back) == jax.tree.structure(raw)


def test_reach_03_the_part_of_a_manager_that_is_meant(tmp_path: Path) -> None:
    """google/flax#4521: the directory of a manager, one step, an item of it, and items beside a text."""
    with v0.CheckpointManager(tmp_path / "run") as manager:
        manager.save(123, args=v0.args.StandardSave(STATE))
    step = tmp_path / "run" / "123"
    verify(cs.orbax.restore(step, Training(), ONTO_NNX))
    refused(lambda: cs.orbax.restore(tmp_path / "run", Training(), ONTO_NNX), f"{step}")
    inside = step / "default"
    refused(lambda: cs.orbax.restore(inside, Training(), ONTO_NNX), f"{step} with item='default'")
    with v0.CheckpointManager(tmp_path / "parts", item_names=("params", "meta")) as manager:
        params = v0.args.StandardSave(STATE["params"])
        meta = v0.args.JsonSave({"epoch": 3})
        manager.save(7, args=v0.args.Composite(params=params, meta=meta))
    lens = cs.derive(cs.linen.BareParams[Body], cs.nnx.Params[Body])
    model = cs.orbax.restore(tmp_path / "parts" / "7", Model(), lens)
    cs.assert_trees_identical(nnx.to_pure_dict(nnx.state(model)), weights())


def test_reach_06_orbax_487_what_a_run_kept_beside_its_state(tmp_path: Path) -> None:
    """An extra ``last_batch``: a declared layout names it, and one lens reads both kinds of files."""
    batch = {"last_batch": jnp.arange(6).reshape(2, 3)}
    ocp.save(tmp_path / "old", {**STATE, **batch})
    ocp.save(tmp_path / "new", STATE)
    plain = cs.derive(BARE, BARE)
    refused(lambda: cs.orbax.restore(tmp_path / "old", zeros(STATE), plain), "last_batch")

    class Kept(BARE):
        last_batch: Int32[Array, "n m"] = cs.field(optional=True, default=0)

    lens = cs.derive(Kept, BARE)
    for name in ("old", "new"):
        found = cs.orbax.restore(tmp_path / name, zeros(STATE), lens)
        cs.assert_trees_identical(found, STATE)
    rules = [cs.private("last_batch", cs.own)]
    found = cs.orbax.restore(tmp_path / "old", zeros(STATE), rules=rules)
    cs.assert_trees_identical(found, STATE)


class Adapted(cs.Schema):
    kernel: Float32[Array, "i o"]
    a: Float32[Array, "i rank"]
    b: Float32[Array, "rank o"]


class Plain(cs.Schema):
    kernel: Float32[Array, "i o"]


def test_reach_07_openpi_984_a_declared_lens_does_not_drop_adapters() -> None:
    refused(lambda: cs.derive(Adapted, Plain), "a  ", "b  ", "private('a', own)")
    merge = [cs.fuse("kernel", ["kernel", "a", "b"])]
    refused(lambda: cs.derive(Adapted, Plain, rules=merge), "one axis that 3 leaves share")


def test_reach_08_embeddings_of_positions_and_rows_that_were_trained(tmp_path: Path) -> None:
    """vision_transformer#317: positions of another number are the target's own. EasyLM: padding is verified."""
    old, new = {"pos": counted(1, 9, 2), "k": counted(2, 2)}, {"k": zeros(counted(2, 2))}
    new["pos"] = jnp.full((1, 16, 2), 7.0)
    ocp.save(tmp_path / "vit", old)
    refused(lambda: cs.orbax.restore(tmp_path / "vit", new), "apart('pos')")
    found = cs.orbax.restore(tmp_path / "vit", new, rules=[cs.apart("pos")])
    cs.assert_trees_identical(found, {"pos": new["pos"], "k": old["k"]})

    class Padded(cs.Schema):
        embed: Float32[Array, "padded d"]

    class Cut(cs.Schema):
        embed: Float32[Array, "vocab d"]

    lens = cs.derive(Padded, Cut, rules=[cs.pad("embed", "vocab", "padded")]).bind(vocab=4)
    refused(lambda: lens.get({"embed": counted(6, 2, start=1)}), "9.0", "would be lost")


def test_reach_09_27_axlearn_293_one_declaration_for_two_precisions(tmp_path: Path) -> None:
    class Wide(cs.Schema):
        w: Float32[Array, "i o"]

    class Narrow(cs.Schema):
        w: BFloat16[Array, "i o"]

    class Open(cs.Schema):
        w: Float[Array, "i o"]

    wide, narrow = {"w": counted(2, 3)}, {"w": counted(2, 3).astype("bfloat16")}
    cs.assert_trees_identical(cs.derive(Wide, Narrow).get(wide), narrow)
    for tree in (wide, narrow):
        assert cs.check(Open, tree).ok
    ocp.save(tmp_path / "c", narrow)
    lens = cs.derive(Open, Open)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "c", zeros(wide), lens), wide)


@flax.struct.dataclass
class Sim:
    flux: Any
    sky: Any


def test_reach_11_jax_gcm_731_an_optional_field_is_the_targets_own_or_its_default(
    tmp_path: Path,
) -> None:
    class Day(cs.Schema):
        flux: Float32[Array, " n"]
        sky: Float32[Array, " n"] = cs.field(optional=True, default=0.0)

    lens, target = cs.derive(Day, Day), Sim(jnp.zeros(4), jnp.full(4, 5.0))
    ocp.save(tmp_path / "old", {"flux": counted(4)})
    ocp.save(tmp_path / "new", {"flux": counted(4), "sky": counted(4, start=9)})
    for name, sky in (("old", target.sky), ("new", counted(4, start=9))):
        found = cs.orbax.restore(tmp_path / name, target, lens)
        cs.assert_trees_identical(found, Sim(counted(4), sky))
    abstract = jax.eval_shape(lambda: target)
    cs.assert_trees_identical(
        cs.orbax.restore(tmp_path / "old", abstract, lens), Sim(counted(4), jnp.zeros(4))
    )


def test_reach_12_mesh_transformer_28_a_slim_checkpoint_into_a_whole_run(tmp_path: Path) -> None:
    ocp.save(tmp_path / "slim", {"params": weights()})
    sides = cs.linen.BareParams[Body], cs.nnx.TrainState[Body, TX]
    refused(lambda: cs.derive(*sides), "keeps no optimizer state: reset(view='opt_state')")
    lens = cs.derive(*sides, rules=[cs.reset(view="opt_state"), cs.private("step", 0)])
    target = Training()
    target.optimizer.step[...] = jnp.uint32(5)
    found = cs.orbax.restore(tmp_path / "slim", target, lens)
    cs.assert_trees_identical(nnx.to_pure_dict(nnx.state(found.model)), weights())
    moments = nnx.state(found.optimizer)["opt_state"][0]["mu"]
    same(moments["head"]["kernel"][...], jnp.zeros((4, 3)))


def test_reach_16_orbax_648_what_is_in_it_is_read_off_the_path(tmp_path: Path) -> None:
    ocp.save(tmp_path / "c", STATE)
    layout = cs.infer(tmp_path / "c")
    assert layout.name == "c"
    assert {"/".join(row.path): str(row.leaf) for row in layout.rows}["step"] == "int32[]"
    everything = cs.orbax.load(tmp_path / "c", only="params/**")
    cs.assert_trees_identical(everything, {"params": weights()})


class Layer(cs.Schema):
    w: Float32[Array, "d f"]


class Scanned(cs.Schema):
    layers: Layer = cs.field(key="layers", scan="n+m", axis=0)


class Listed(cs.Schema):
    old: list[Layer] = cs.field(key="layers_{i}", length="n")
    new: list[Layer] = cs.field(key="more_{i}", length="m", default=0.0)


class Shorter(cs.Schema):
    old: Layer = cs.field(key="layers", scan="n", axis=0)


def test_reach_17_21b_a_scanned_stack_is_grown_or_cut_by_a_list_between(tmp_path: Path) -> None:
    """google/orbax#2972, Olmax#43: nodes of a list that have a default of their own are still that list."""
    series = [cs.series("old[]", "new[]", name="layers[]")]
    grown = cs.derive(Shorter, Listed) >> cs.derive(Listed, Scanned, rules=series)
    cut = cs.derive(Scanned, Listed, rules=series) >> cs.derive(Listed, Shorter)
    three, four = ({"layers": {"w": counted(depth, 2, 2)}} for depth in (3, 4))
    own = {"layers": {"w": jnp.full((4, 2, 2), 7.0)}}
    wanted = jnp.concatenate([three["layers"]["w"], own["layers"]["w"][3:]])
    for path, tree in (("three", three), ("four", four)):
        ocp.save(tmp_path / path, tree)
    words: Any = {"target_side": "view", "disk_side": "source"}
    found = cs.orbax.restore(tmp_path / "three", own, grown, **words)
    same(found["layers"]["w"], wanted)
    same(grown.bind(m=1).get(three)["layers"]["w"][3], jnp.zeros((2, 2)))
    found = cs.orbax.restore(tmp_path / "four", zeros(three), cut, **words)
    same(found["layers"]["w"], four["layers"]["w"][:3])


def test_reach_18_maxtext_554_bare_and_whole_train_states(tmp_path: Path) -> None:
    whole = {**STATE, "params": {"params": STATE["params"]}}
    whole["opt_state"] = TX.init(whole["params"])
    bare = {**STATE, "opt_state": TX.init(STATE["params"])}
    lens = cs.derive(BARE, cs.linen.TrainState[Body, TX])
    for name, tree in (("whole", whole), ("bare", bare)):
        ocp.save(tmp_path / name, tree)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "bare", zeros(whole), lens), whole)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "whole", zeros(bare), lens), bare)


def test_reach_19_no_step_and_frozen_dicts_that_nobody_declared(tmp_path: Path) -> None:
    """google/orbax#487, and the FrozenDict of older code as a target."""
    ocp.save(tmp_path / "c", {"params": STATE["params"], "opt_state": STATE["opt_state"]})
    refused(lambda: cs.orbax.restore(tmp_path / "c", Training()), "private('step'")
    verify(cs.orbax.restore(tmp_path / "c", Training(), rules=[cs.private("step", 0)]))
    ocp.save(tmp_path / "d", STATE)
    params = freeze(zeros(weights()))
    target = {"step": jnp.int32(0), "params": params, "opt_state": TX.init(params)}
    found = cs.orbax.restore(tmp_path / "d", target, cs.derive(BARE, BARE))
    assert isinstance(found["params"], FrozenDict)
    assert isinstance(found["opt_state"][0].mu, FrozenDict)
    same(found["params"]["head"]["kernel"], weights()["head"]["kernel"])


FROZEN = optax.multi_transform(
    {"train": TX, "freeze": optax.set_to_zero()}, {"body": "freeze", "head": "train"}
)


def test_reach_19_21_formerly_all_was_trained_and_now_a_part_is(tmp_path: Path) -> None:
    """Moments of what is frozen now are left behind by name; the others stay."""
    sides = BARE, cs.linen.BareTrainState[Body, FROZEN]
    moved = cs.move("opt_state/0", "opt_state/inner_states/train/inner_state/0")
    refused(lambda: cs.derive(*sides, rules=[moved]), "reset(source='opt_state/0/mu/body')")
    frozen = [cs.reset(source=f"opt_state/0/{name}/body") for name in ("mu", "nu")]
    lens = cs.derive(*sides, rules=[moved, *frozen])
    ocp.save(tmp_path / "c", STATE)
    found = cs.orbax.restore(tmp_path / "c", zeros(trained(FROZEN)), lens)
    kept = found["opt_state"].inner_states["train"].inner_state[0]
    assert int(kept.count) == 1
    same(kept.mu["head"]["kernel"], STATE["opt_state"][0].mu["head"]["kernel"])


@pytest.mark.parametrize("kind", ["dict", "nnx.Dict", "states"])
def test_reach_22_flax_4423_model_and_optimizer_apart(tmp_path: Path, kind: str) -> None:
    training = Training()
    both: Any = {"model": training.model, "optimizer": training.optimizer}
    target = nnx.Dict(**both) if kind == "nnx.Dict" else both
    if kind == "states":
        target = {name: nnx.state(part) for name, part in both.items()}
    ocp.save(tmp_path / "c", STATE)
    found = cs.orbax.restore(tmp_path / "c", target, ONTO_NNX)
    for name in ("model", "optimizer") if kind == "states" else ():
        nnx.update(both[name], found[name])
    verify(training)
    cs.orbax.save(tmp_path / "d", target if kind != "states" else found, ONTO_NNX)
    cs.assert_trees_identical(cs.orbax.load(tmp_path / "d", only="step"), {"step": jnp.int32(7)})


def test_reach_23_moments_of_another_dtype_and_variables_by_position(tmp_path: Path) -> None:
    """big_vision's mu_dtype, and lists of variables as Keras 3 has them."""
    halved = optax.adam(1e-2, mu_dtype=jnp.bfloat16)
    lens = cs.derive(BARE, cs.linen.BareTrainState[Body, halved])
    exact = {**STATE, "opt_state": TX.init(weights())}
    found = lens.get(exact)
    assert found["opt_state"][0].mu["head"]["kernel"].dtype == jnp.bfloat16
    cs.assert_trees_identical(lens.put(found), exact)

    class Keras(cs.Schema):
        kernel: Float32[Array, "i o"] = cs.field(key="trainable_variables/0")
        bias: Float32[Array, " o"] = cs.field(key="trainable_variables/1")
        step: Int32[Array, ""] = cs.field(key="optimizer_variables/0", default=0)

    kept = {
        "trainable_variables": [counted(2, 4), counted(4)],
        "optimizer_variables": [jnp.int32(3)],
    }
    ocp.save(tmp_path / "keras", kept)
    target = {"kernel": zeros(counted(2, 4)), "bias": zeros(counted(4))}
    found = cs.orbax.restore(tmp_path / "keras", target, cs.derive(Keras, Dense))
    cs.assert_trees_identical(found, {"kernel": counted(2, 4), "bias": counted(4)})


def test_reach_26_gemma_as_it_is_on_disk(tmp_path: Path) -> None:
    class Query(cs.Schema):
        q: Float32[Array, "heads embed dim"] = cs.field(key="attn/q_einsum/w")

    class Gemma(cs.Schema):
        embed: Float32[Array, "vocab embed"] = cs.field(key="transformer/embedder/input_embedding")
        layers: list[Query] = cs.field(key="transformer/layer_{i}", length="depth")

    class Published(Gemma, joined="/", nested=1):
        pass

    queries = [counted(2, 4, 3, start=100 * n) for n in range(2)]
    disk = {f"transformer/layer_{n}/attn/q_einsum": {"w": q} for n, q in enumerate(queries)}
    disk["transformer/embedder"] = {"input_embedding": counted(7, 4)}
    v0.PyTreeCheckpointer().save(tmp_path / "gemma", disk)
    layers = {f"layer_{n}": {"attn": {"q_einsum": {"w": q}}} for n, q in enumerate(queries)}
    nested = {"transformer": {"embedder": {"input_embedding": counted(7, 4)}, **layers}}
    lens = cs.derive(Published, Gemma)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "gemma", zeros(nested), lens), nested)
    refused(
        lambda: cs.orbax.restore(tmp_path / "gemma", zeros(nested), cs.derive(Gemma, Gemma)),
        "class ...(cs.Schema, joined='/'",
    )

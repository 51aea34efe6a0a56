"""Rules that speak of many leaves: by globs, and by Variable types."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array, Float32, Int32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs


def numbers(*shape: int, start: int = 0) -> Any:
    return jnp.asarray(np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape))


def refused(call: Any) -> cs.DerivationError:
    with pytest.raises(cs.DerivationError) as caught:
        call()
    return caught.value


def faults(error: cs.CkptSchemaError) -> list[tuple[str, str]]:
    return [(fault.path, fault.found) for fault in error.mismatches]


def equal(left: Any, right: Any) -> bool:
    """Of the same leaves in order, whether lists are lists or dicts."""
    several = [jax.tree.leaves(tree) for tree in (left, right)]
    alike = len(several[0]) == len(several[1])
    return alike and all(map(np.array_equal, *several))


def linen_tree() -> Any:
    block = {
        "LayerNorm_0": {"scale": numbers(3), "bias": numbers(3, start=1)},
        "LayerNorm_1": {"scale": numbers(3, start=2), "bias": numbers(3, start=3)},
        "Dense_0": {"kernel": numbers(3, 4)},
    }
    return {"encoder": {"block_0": block}, "LayerNorm_0": {"scale": numbers(3, start=7)}}


def nnx_tree() -> Any:
    tree = linen_tree()
    block = tree["encoder"]["block_0"]
    new = {"norm_0": block["LayerNorm_0"], "norm_1": block["LayerNorm_1"]}
    new["Dense_0"] = block["Dense_0"]
    return {"encoder": {"block_0": new}, "norm_0": tree["LayerNorm_0"]}


def test_6_one_rename_for_all_norms() -> None:
    source, view = linen_tree(), nnx_tree()
    rule = cs.rename("**/LayerNorm_*", "**/norm_*")
    assert str(rule) == "rename('**/LayerNorm_*', '**/norm_*')"
    lens = cs.derive(cs.infer(source), cs.infer(view), rules=[rule])
    assert equal(lens.get(source), view)
    assert equal(lens.put(view), source)


def test_6_what_is_above_is_renamed_as_well() -> None:
    source, view = linen_tree(), nnx_tree()
    view = {"enc": view["encoder"], "norm_0": view["norm_0"]}
    rules = [cs.rename("**/LayerNorm_*", "**/norm_*"), cs.rename("encoder", "enc")]
    assert equal(cs.derive(cs.infer(source), cs.infer(view), rules=rules).get(source), view)


def test_6_moments_follow_a_glob() -> None:
    tx = optax.adam(1e-3)

    def state_of(params: Any) -> Any:
        opt_state = tx.update(params, tx.init(params))[1]
        return {"step": jnp.int32(1), "params": params, "opt_state": opt_state}

    source, view = state_of(linen_tree()), state_of(nnx_tree())
    rule = cs.rename("**/LayerNorm_*", "**/norm_*")
    assert equal(cs.derive(cs.infer(source), cs.infer(view), rules=[rule]).get(source), view)


class Block(cs.Schema):
    w: Float32[Array, "a b"]
    bias: Float32[Array, " b"]


class Wide(Block):
    lora_a: Float32[Array, "a r"]
    lora_b: Float32[Array, "r b"]


class Small(cs.Schema):
    layers: list[Block] = cs.field(length="depth")
    head: Block


class Large(cs.Schema):
    layers: list[Wide] = cs.field(length="depth")
    head: Wide


def small() -> Any:
    block = {"w": numbers(2, 3), "bias": numbers(3)}
    return {"layers": [block, block], "head": block}


@pytest.mark.parametrize("where", ["**/lora_*", "**/lora_?", "*/lora_*"])
def test_6_one_private_for_all_adapters(where: str) -> None:
    if "?" in where:  # is a key like any other
        error = refused(lambda: cs.derive(Small, Large, rules=[cs.private(where, 0.0)]))
        assert ("private('**/lora_?', 0.0)", "none") in faults(error)
        return
    lens = cs.derive(Small, Large, rules=[cs.private(where, 0.0)], dims={"r": 2})
    view = lens.get(small())
    assert np.array_equal(view["layers"][1]["lora_a"], np.zeros((2, 2)))
    assert equal(lens.put(view), small())


def test_6_more_literal_segments_win() -> None:
    rules = [
        cs.private("**/lora_*", 0.0),
        cs.private("head/lora_a", 1.0),
        cs.private("**/lora_b", 2.0),
    ]
    lens = cs.derive(Small, Large, rules=rules, dims={"r": 2})
    view = lens.get(small())
    assert float(view["layers"][0]["lora_a"][0, 0]) == 0
    assert float(view["layers"][0]["lora_b"][0, 0]) == 2
    assert float(view["head"]["lora_a"][0, 0]) == 1


def test_6_a_draw_is_an_error_that_names_both_rules() -> None:
    rules = [cs.private("head/lora_*", 0.0), cs.private("**/lora_b", 1.0)]
    rules.append(cs.private("layers[]/lora_a", 3.0))
    error = refused(lambda: cs.derive(Small, Large, rules=rules))
    (fault,) = error.mismatches
    assert {fault.path, fault.found} == {
        "private('**/lora_b', 1.0)",
        "private('head/lora_*', 0.0) too",
    }


def test_6_globs_that_match_nothing_are_errors_all_at_once() -> None:
    rules = [
        cs.private("**/lora_*", 0.0),
        cs.private("**/adapter_*", 0.0),
        cs.rename("**/LayerNorm_*", "**/norm_*"),
        cs.rename("**/w_*", "**/v"),
        cs.private(nnx.RngState, cs.fresh_key(0)),
    ]
    error = refused(lambda: cs.derive(Small, Large, rules=rules))
    assert faults(error) == [
        ("rename('**/w_*', '**/v')", "others"),
        ("private('**/adapter_*', 0.0)", "none"),
        ("rename('**/LayerNorm_*', '**/norm_*')", "none"),
        ("private('<RngState>', fresh_key(0))", "none"),
    ]


def test_6_a_glob_whose_leaves_all_have_partners_is_an_error() -> None:
    error = refused(lambda: cs.derive(Small, Small, rules=[cs.private("**/bias", 0.0)]))
    ((path, found),) = faults(error)
    assert path == "private('**/bias', 0.0)" and "which both sides have" in found


def test_6_quoted_keys_and_brackets_are_literal() -> None:
    source = {"w*": {"a": numbers(2)}, "wx": {"a": numbers(3)}}
    view = {"v": {"a": numbers(2)}, "wx": {"a": numbers(3)}}
    lens = cs.derive(cs.infer(source), cs.infer(view), rules=[cs.rename("'w*'", "v")])
    assert equal(lens.get(source), view)
    lens = cs.derive(
        Small, Large, rules=[cs.private("layers[]/lora_*", 0), cs.private("head/*", 0)]
    )
    assert len(lens.joins) == 4


def test_6_a_part_of_a_key_with_slashes() -> None:
    source = {f"mlp/~/linear_{i}": {"w": numbers(2, 3 + i)} for i in range(12)}
    view = {f"layer_{i}": {"w": numbers(2, 3 + i)} for i in range(12)}
    rule = cs.rename("mlp*linear_*", "layer_*")
    error = refused(lambda: cs.derive(cs.infer(source), cs.infer(view), rules=[rule]))
    assert error.mismatches[0].expected == "the same stars in each path, at most one * and one **"
    back = cs.rename("layer_*", "'mlp/~/linear_0'")
    assert "at most one *" in str(refused(lambda: cs.derive(Small, Small, rules=[back])))


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.rest = nnx.List([nnx.Dropout(0.5, rngs=rngs) for _ in range(3)])


def test_6_streams_by_their_variable_type() -> None:
    """One line where MaxText takes one for each stream."""
    model = nnx.state(Model(nnx.Rngs(0)))
    weights = {"first": {"kernel": numbers(2, 3), "bias": numbers(3)}}
    rule = cs.private(nnx.RngState, cs.fresh_key(0))
    lens = cs.derive(cs.infer({"params": weights}), cs.infer(model), rules=[rule])
    view = lens.get({"params": weights})
    keys = [view["drop"]["rngs"]["key"], *(view["rest"][i]["rngs"]["key"] for i in range(3))]
    data = {tuple(jax.random.key_data(key[...]).tolist()) for key in keys}
    assert len(data) == len(keys)
    kept = lens.get({"params": weights}, onto=model)
    count = kept["drop"]["rngs"]["count"][...]
    assert np.array_equal(count, model["drop"]["rngs"]["count"][...])
    again = cs.derive(
        cs.infer({"params": weights}),
        cs.infer(model),
        rules=[cs.private("<RngState>", cs.fresh_key(0))],
    )
    assert len(again.joins) == 2


def test_6_a_glob_of_an_optimizer() -> None:
    """Of Adam, both moments start anew, and the count goes on."""
    tx = optax.adam(1e-3)
    layout = cs.linen.BareTrainState[Small, tx]
    params = small()
    state = {
        "step": jnp.int32(1),
        "params": params,
        "opt_state": tx.update(params, tx.init(params))[1],
    }
    lens = cs.derive(
        layout, layout, rules=[cs.reset(source="opt_state/**/mu"), cs.reset(view="opt_state/**/mu")]
    )
    got = lens.get(state)
    assert equal(got["opt_state"][0].mu, tx.init(params)[0].mu)
    assert equal(got["opt_state"][0].nu, state["opt_state"][0].nu)
    assert int(got["opt_state"][0].count) == 1


def test_6_rules_for_values_of_many_leaves() -> None:
    class Other(cs.Schema):
        layers: list[Block] = cs.field(length="depth")
        head: Block

    lens = cs.derive(Small, Other, rules=[cs.flip("**/w", "b"), cs.scale("**/bias", 2)])
    view = lens.get(small())
    assert np.array_equal(view["layers"][0]["w"], small()["head"]["w"][:, ::-1])
    assert np.array_equal(view["head"]["bias"], 2 * small()["head"]["bias"])


def test_6_one_fuse_for_all_layers_of_two_kinds() -> None:
    class Fused(cs.Schema):
        qkv: Float32[Array, "embed q+k+v"]

    class Parts(cs.Schema):
        q: Float32[Array, "embed q"]
        k: Float32[Array, "embed k"]
        v: Float32[Array, "embed v"]

    class One(cs.Schema):
        local: list[Fused] = cs.field(length="n")
        last: Fused

    class Three(cs.Schema):
        local: list[Parts] = cs.field(length="n")
        last: Parts

    rule = cs.fuse("**/qkv", ["**/q", "**/k", "**/v"])
    lens = cs.derive(One, Three, rules=[rule], dims={"q": 2, "k": 1, "v": 1})
    tree = {
        "local": [{"qkv": numbers(3, 4, start=i)} for i in range(2)],
        "last": {"qkv": numbers(3, 4)},
    }
    view = lens.get(tree)
    assert np.array_equal(view["local"][1]["k"], tree["local"][1]["qkv"][:, 2:3])
    assert equal(lens.put(view), tree)


class TestLaws(cs.testing.LensLaws):
    """Of a lens with globs."""

    lens = cs.derive(Small, Large, rules=[cs.private("**/lora_*", 0.0), cs.flip("**/w", "b")])


# --- what keeps its own value  ---


def test_6_own_is_what_the_target_has() -> None:
    lens = cs.derive(Small, Large, rules=[cs.private("**/lora_*", cs.own)], dims={"r": 2})
    with pytest.raises(cs.ConformanceError) as caught:
        lens.get(small())
    assert len(caught.value.mismatches) == 6
    whole = cs.derive(Small, Large, rules=[cs.private("**/lora_*", 3.0)], dims={"r": 2})
    onto = whole.get(small())
    assert equal(lens.get(small(), onto=onto), onto)
    assert equal(lens.put(onto), small())
    assert str(cs.private("head", cs.own)) == "private('head', own)"


def test_6_own_and_a_number_for_one_leaf_contradict_one_another() -> None:
    rules = [cs.private("**/lora_*", cs.own), cs.private("**/lora_*", 0.0)]
    error = refused(lambda: cs.derive(Small, Large, rules=rules))
    ((path, found),) = faults(error)
    assert {path, found} == {"private('**/lora_*', 0.0)", "private('**/lora_*', own) too"}
    assert not refused(lambda: cs.derive(Small, Small, rules=[cs.private("head", cs.own)])).rules[
        1:
    ]


def test_6_own_on_restore(tmp_path: Path) -> None:
    ocp.save(tmp_path / "run", small())
    lens = cs.derive(Small, Large, rules=[cs.private("**/lora_*", cs.own)])
    target = cs.derive(Small, Large, rules=[cs.private("**/lora_*", 3.0)], dims={"r": 2}).get(
        small()
    )
    zeros = jax.tree.map(jnp.zeros_like, target)
    got = cs.orbax.restore(tmp_path / "run", zeros, lens)
    assert float(got["head"]["lora_a"][0, 0]) == 0
    assert np.array_equal(got["head"]["w"], target["head"]["w"])


# --- names that the other side has too, and levels that it has not  ---


class Served(cs.Schema):
    params: Block


class Averaged(cs.Schema):
    params: Block
    ema_params: Block
    step: Int32[Array, ""]


class TestEmaLaws(cs.testing.LensLaws):
    """levanter#853: the averaged weights are served as the params."""

    lens = cs.derive(
        Averaged,
        Served,
        rules=[
            cs.rename("ema_params", "params"),
            cs.private("params", 0.0),
            cs.private("step", 0),
        ],
    )


def test_6_ema_weights_are_served_as_the_params() -> None:
    block = {"w": numbers(2, 3), "bias": numbers(3)}
    average = jax.tree.map(lambda x: x + 50, block)
    state = {"step": jnp.int32(3), "params": block, "ema_params": average}
    rules = [cs.rename("ema_params", "params"), cs.private("step", 0)]
    target = {"params": block}
    error = refused(lambda: cs.derive(cs.infer(state), cs.infer(target), rules=rules))
    assert sorted(path for path, _ in faults(error)) == ["params/bias", "params/w"]
    rules.append(cs.private("params", cs.own))
    lens = cs.derive(cs.infer(state), cs.infer(target), rules=rules)
    assert equal(lens.get(state), {"params": average})
    assert equal(lens.put({"params": block}, onto=state), {**state, "ema_params": block})
    with pytest.raises(cs.ConformanceError):
        lens.put({"params": block})


def test_6_two_leaves_for_one_name_are_still_ambiguous() -> None:
    tree = {"a": numbers(2), "b": numbers(2), "c": numbers(2)}
    rules = [cs.rename("a", "d"), cs.rename("b", "d"), cs.private("c", 0.0)]
    error = refused(lambda: cs.derive(cs.infer(tree), cs.infer({"d": numbers(2)}), rules=rules))
    assert error.mismatches[0].kind == "ambiguous"


class Lookahead(cs.Schema):
    fast: Wide
    slow: Wide


class TestLevelLaws(cs.testing.LensLaws):
    """Lookahead keeps two copies of the params; the slow ones are the params of a plain run."""

    lens = cs.derive(Lookahead, Wide, rules=[cs.rename("slow", ""), cs.private("fast", 1.0)])


def test_6_a_level_is_renamed_away() -> None:
    tx = optax.lookahead(optax.sgd(1e-2), 5, 0.5)
    params = optax.LookaheadParams.init_synced({"w": numbers(2, 3)})
    assert tx.init(params)
    state = {"params": params._asdict()}
    rules = [cs.rename("slow", ""), cs.private("fast", cs.own)]
    plain = {"params": {"w": numbers(2, 3)}}
    lens = cs.derive(cs.infer(state), cs.infer(plain), rules=rules)
    assert equal(lens.get(state), plain)
    other = {"params": {"w": numbers(2, 3, start=7)}}
    assert equal(lens.put(other, onto=state)["params"]["slow"], other["params"])
    with pytest.raises(cs.SchemaError, match="a logical path"):
        cs.rename("", "slow")


def test_6_rules_for_many_leaves_can_be_copied() -> None:
    lens = cs.derive(Small, Large, rules=[cs.private("**/lora_*", 0.0)])
    again = copy.deepcopy(lens.derivations[0].rules)
    assert [str(rule) for rule in again] == [str(rule) for rule in lens.derivations[0].rules]
    assert [rule.path.weight for rule in again] == [(0, 0)] * 4
    rule = cs.private(nnx.RngState, cs.fresh_key(0))
    assert pickle.loads(pickle.dumps(rule)) == copy.deepcopy(rule) == rule
    assert copy.deepcopy(rule).path[0].kind is nnx.RngState

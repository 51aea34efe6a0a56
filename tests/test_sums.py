"""One leaf that is the sum of several: cs.total. Values are held against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16, Float32, Int32
from support.outcomes import refused

import ckpt_schema as cs
from ckpt_schema._trees.conformance import Matcher
from ckpt_schema.testing import BrokenLawError, LensLaws, check_laws, weakened
from ckpt_schema.testing._sums import sum_bounds


class Torch(cs.Schema):
    """An LSTM's biases as torch has them."""

    bi: Float32[Array, " hidden"] = cs.field(key="bias_ih")
    bh: Float32[Array, " hidden"] = cs.field(key="bias_hh")


class Flax(cs.Schema):
    """The one that Flax's cell has."""

    bias: Float32[Array, " hidden"]


SUM = cs.total("bias", ["bi", "bh"])
TREE = {"bias_ih": np.float32([1, 2]), "bias_hh": np.float32([10, 2**-30])}
ALONE = cs.derive(Torch, Flax, rules=[SUM])
LENS = cs.derive(Torch, Flax, rules=[SUM, cs.private("bi", 0.0)])
OWN = cs.derive(Torch, Flax, rules=[SUM, cs.private("bi", cs.own)])
BACK = cs.derive(Flax, Torch, rules=[SUM, cs.private("bh", 0.5)])


def same(found: Any, wanted: Any) -> None:
    cs.assert_trees_identical(found, wanted)


# --- What is added, and what is left  ---


def test_jobs_11_flax_3746_equinox_1003_a_bias_that_is_the_sum_of_two() -> None:
    total = TREE["bias_ih"] + TREE["bias_hh"]
    for lens in (ALONE, LENS, OWN):
        same(lens.get(TREE), {"bias": total})
    same(BACK.put(TREE), {"bias": total})


def test_without_a_word_the_way_back_is_refused() -> None:
    made = ALONE.get(TREE)
    same(ALONE.put(made, onto=TREE), TREE)  # it is as it was
    other = {"bias": np.float32([3, 4])}
    refused(
        lambda: ALONE.put(other, onto=TREE),
        "bias_hh  expected a rule that says what becomes of the parts of what was computed, found",
        "private('bi', 0.0)",
    )
    refused(lambda: ALONE.put(other), "bias_ih", "private(path, ...)")
    refused(lambda: OWN.put(other), "bias_ih")


def test_with_a_word_one_part_has_what_is_left() -> None:
    other = {"bias": np.float32([3, 4])}
    left = {"bias_ih": TREE["bias_ih"], "bias_hh": np.float32([2, 2])}
    for lens in (LENS, OWN):
        same(lens.put(other, onto=TREE), left)
    found = LENS.put(other)
    same(
        jax.tree.map(np.asarray, found),
        {"bias_ih": np.zeros(2, np.float32), "bias_hh": other["bias"]},
    )
    found = jax.tree.map(np.asarray, BACK.get(other))
    same(found, {"bias_ih": np.float32([2.5, 3.5]), "bias_hh": np.full(2, 0.5, np.float32)})


def test_parts_of_which_the_sum_is_as_it_was_are_the_same_objects() -> None:
    made = LENS.get(TREE)
    assert np.float32(10) + np.float32(1) == made["bias"][0]
    again = LENS.put(made, onto=TREE)
    assert again["bias_hh"] is TREE["bias_hh"] and again["bias_ih"] is TREE["bias_ih"]
    rounded = {"bias": np.float32([2**-30, 1])}  # plus 1, and off again, it would be 0
    parts = LENS.put(rounded, onto=TREE)
    assert parts["bias_hh"][0] == -1
    assert LENS.get(parts, onto=rounded)["bias"] is rounded["bias"]
    assert LENS.get(parts)["bias"][0] == 0


def test_what_is_lost_is_said() -> None:
    assert LENS.loss == {"bias": "the sum of bh and bi alone is kept, rounded in float32"}
    assert BACK.loss == {"bi": "the sum of bi and bh alone is kept, rounded in float32"}
    assert not LENS.exact
    assert "PutPut" in weakened(LENS)
    assert "bias_hh  bias  the sum of bias_hh bias_ih, not exact" in str(LENS)
    same((~LENS).put(TREE), LENS.get(TREE))


# --- Where it stands  ---


class Cell(cs.Schema):
    kernel: Float32[Array, "hidden gates"]
    bi: Float32[Array, " gates"]
    bh: Float32[Array, " gates"]


class Layers(cs.Schema):
    layers: list[Cell] = cs.field(key="layers_{i}", length="depth")


class One(cs.Schema):
    kernel: Float32[Array, "gates hidden"] = cs.field(key="w")
    bias: Float32[Array, " gates"]


class Stack(cs.Schema):
    layers: One = cs.field(scan="depth", axis=0)


STACKED = cs.derive(
    Layers, Stack, rules=[cs.total("**/bias", ["**/bi", "**/bh"]), cs.private("**/bi", 0.0)]
)


def cells(depth: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 3), "bi": (3,), "bh": (3,)}
    return {
        f"layers_{n}": {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
        for n in range(depth)
    }


def test_one_rule_for_all_layers_stacked_and_turned() -> None:
    tree = cells(3)
    found = STACKED.get(tree)
    wanted = np.stack([layer["bi"] + layer["bh"] for layer in tree.values()])
    same(found["layers"]["bias"], wanted)
    same(found["layers"]["w"], np.stack([layer["kernel"].T for layer in tree.values()]))
    same(STACKED.put(found, onto=tree), tree)


def test_abstract_traced_and_sharded_trees() -> None:
    tree = jax.tree.map(jnp.asarray, TREE)
    abstract = jax.eval_shape(lambda: tree)
    assert LENS.get(abstract)["bias"].shape == (2,)
    made = jax.jit(LENS.get)(tree)
    same(made, LENS.get(tree))
    same(jax.jit(lambda v, s: LENS.put(v, onto=s))(made, tree), tree)
    gradient = jax.grad(lambda s: LENS.get(s)["bias"].sum())(tree)
    assert (gradient["bias_ih"] == 1).all() and (gradient["bias_hh"] == 1).all()
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    over = NamedSharding(mesh, PartitionSpec("x"))
    parts = {"bias_ih": tree["bias_ih"], "bias_hh": jax.device_put(tree["bias_hh"], over)}
    assert LENS.get(parts)["bias"].sharding == over


class Narrow(cs.Schema):
    bi: BFloat16[Array, " n"]
    bh: BFloat16[Array, " n"]


class Wide(cs.Schema):
    bias: Float32[Array, " n"]


def test_the_sum_is_of_the_dtype_of_its_parts() -> None:
    lens = cs.derive(Narrow, Wide, rules=[SUM])
    parts = {"bi": np.ones(1, ml_dtypes.bfloat16), "bh": np.full(1, 2**-9, ml_dtypes.bfloat16)}
    same(lens.get(parts), {"bias": np.ones(1, np.float32)})


def test_it_is_restored_and_saved(tmp_path: Path) -> None:
    lens = cs.derive(
        cs.linen.BareParams[Torch], cs.nnx.Params[Flax], rules=[SUM, cs.private("bi", 0.0)]
    )
    cs.orbax.save(tmp_path / "torch", jax.tree.map(jnp.asarray, TREE))
    model = nnx.State({"bias": nnx.Param(jnp.zeros(2))})
    found = cs.orbax.restore(tmp_path / "torch", model, lens)
    same(np.asarray(found["bias"].get_value()), TREE["bias_ih"] + TREE["bias_hh"])
    given = nnx.State({"bias": nnx.Param(jnp.zeros(2))})
    freed = cs.orbax.restore(tmp_path / "torch", given, lens, donate_target=True)
    same(freed, found)
    cs.orbax.save(tmp_path / "again", found, lens)
    again = cs.orbax.load(tmp_path / "again")
    same(np.asarray(again["bias_hh"]), np.asarray(found["bias"].get_value()))
    rules = [SUM, cs.private("bi", cs.own)]
    found = cs.orbax.restore(
        tmp_path / "torch",
        {"params": {"bias": jnp.zeros(2)}},
        rules=[cs.total("bias", ["bias_ih", "bias_hh"]), *rules[2:]],
    )
    same(np.asarray(found["params"]["bias"]), TREE["bias_ih"] + TREE["bias_hh"])


# --- What is wrong  ---


@pytest.mark.parametrize("parts", [["bi"], ["bi", "bi"], "bi", []])
def test_there_are_several_parts(parts: Any) -> None:
    refused(lambda: cs.total("bias", parts), "at least two leaves, each once")


class Integers(cs.Schema):
    bi: Int32[Array, " hidden"]
    bh: Int32[Array, " hidden"]


class Integer(cs.Schema):
    bias: Int32[Array, " hidden"]


class Unlike(cs.Schema):
    bi: Float32[Array, " other"]
    bh: Float32[Array, " hidden"]


@pytest.mark.parametrize(
    ("source", "view", "rules", "words"),
    [
        (Torch, Flax, [cs.total("bais", ["bi", "bh"])], "bi and bh on one side, and bais on"),
        (Torch, Flax, [cs.total("bias", ["bi", "bj"])], "found no such leaves"),
        (Integers, Integer, [SUM], "expected floats, found int32[hidden]"),
        (Unlike, Flax, [SUM], "declare the parts alike"),
        (
            Torch,
            Flax,
            [SUM, cs.private("bi", 0.0), cs.private("bh", 0.0)],
            "one part without a private(...), which holds what the others do not",
        ),
    ],
)
def test_a_sum_that_cannot_be_is_an_error(source: Any, view: Any, rules: Any, words: str) -> None:
    refused(lambda: cs.derive(source, view, rules=rules), words)


def test_lenses_do_not_compose_over_the_parts() -> None:
    refused(lambda: BACK >> LENS, "parts would be forgotten between the lenses")
    onward = cs.derive(Flax, One0, rules=[cs.rename("bias", "b")])
    same((LENS >> onward).get(TREE), {"b": TREE["bias_ih"] + TREE["bias_hh"]})
    same((LENS >> onward).put({"b": np.float32([3, 4])}, onto=TREE)["bias_hh"], np.float32([2, 2]))


class One0(cs.Schema):
    b: Float32[Array, " hidden"]


def test_moments_of_the_parts_are_not_added() -> None:
    tx = optax.adam(1e-2)
    sides = cs.linen.BareTrainState[Torch, tx], cs.linen.BareTrainState[Flax, tx]
    refused(
        lambda: cs.derive(*sides, rules=[SUM, cs.private("bi", 0.0)]),
        "each part takes steps of its own, and the sum takes one",
        "reset(source='opt_state/0/mu/bh')",
    )
    resets = [
        cs.reset(source=f"opt_state/0/{name}", view=f"opt_state/0/{name}") for name in ("mu", "nu")
    ]
    lens = cs.derive(*sides, rules=[SUM, cs.private("bi", 0.0), *resets])
    params = {"bias_ih": jnp.ones(2), "bias_hh": jnp.ones(2)}
    state = {"step": jnp.int32(1), "params": params, "opt_state": tx.init(params)}
    same(lens.get(state)["params"], {"bias": jnp.full(2, 2.0)})


def test_a_sum_beyond_all_numbers_is_refused() -> None:
    huge = {"bias_ih": np.full(2, 3e38, np.float32), "bias_hh": np.full(2, 3e38, np.float32)}
    refused(lambda: LENS.get(huge), "bias_hh  expected a finite number")
    infinite = {**huge, "bias_hh": np.full(2, np.inf, np.float32)}
    assert np.isinf(LENS.get(infinite)["bias"]).all()


# --- Leaf by leaf  ---


def test_a_stream_and_a_transfer_have_what_get_has() -> None:
    tree, wanted = cells(3), STACKED.get(cells(3))
    found = dict(STACKED.stream(tree))
    same(found["layers/bias"], wanted["layers"]["bias"])
    back = dict(STACKED.__invert__().stream(wanted))
    same(back["layers_1/bh"], wanted["layers"]["bias"][1])
    same(back["layers_1/bi"], jnp.zeros(3))
    here = jax.tree.map(jnp.asarray, tree)
    there = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[1]), STACKED.get(here))
    empty = jax.tree.map(jnp.zeros_like, there)
    moved = STACKED.transfer(here, empty, donate_onto=True)
    same(moved, there)
    same(STACKED.put(moved, onto=here), here)
    assert moved["layers"]["bias"].sharding == there["layers"]["bias"].sharding


def test_a_checkpoint_is_converted_either_way(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "torch", jax.tree.map(jnp.asarray, TREE))
    done = cs.orbax.convert(tmp_path / "torch", tmp_path / "flax", ALONE, verify=True)
    assert (done.moved, done.edited, done.made) == (0, 1, 0)
    found = cs.orbax.load(tmp_path / "flax")
    same(np.asarray(found["bias"]), TREE["bias_ih"] + TREE["bias_hh"])
    cs.orbax.convert(tmp_path / "flax", tmp_path / "again", LENS)
    again = cs.orbax.load(tmp_path / "again")
    left = np.asarray(found["bias"]) - TREE["bias_ih"]  # which had been kept beside the state
    same(jax.tree.map(np.asarray, again), {**TREE, "bias_hh": left})
    convert = cs.orbax.convert
    refused(lambda: convert(tmp_path / "flax", tmp_path / "no", ALONE), "becomes of the parts")


class Counted(Torch):
    """The same biases with a count beside them."""

    step: Int32[Array, ""]


def test_a_conversion_tells_a_sum_without_a_word_and_a_leaf_without_a_value_at_once(
    tmp_path: Path,
) -> None:
    cs.orbax.save(tmp_path / "torch", jax.tree.map(jnp.asarray, TREE))
    cs.orbax.convert(
        tmp_path / "torch", tmp_path / "flax", ALONE
    )  # which keeps bi beside the state
    lens = cs.derive(Counted, Flax, rules=[SUM, cs.private("step", cs.own)])
    refused(
        lambda: cs.orbax.convert(tmp_path / "flax", tmp_path / "no", lens),
        "2 faults",
        "step     expected a value for int32[]",
        "bias_hh  expected a rule that says what becomes of the parts",
    )


def test_a_part_that_is_not_there_is_told_once() -> None:
    """What places it is what its sum wants too."""
    refused(
        lambda: ALONE.put({"bias": np.float32([3, 4])}), "1 fault", "bias_ih  expected a source"
    )


class Dotted(cs.Schema, joined="."):
    """An LSTM's biases in a file of torch."""

    bi: Float32[Array, " hidden"] = cs.field(key="rnn.bias_ih")
    bh: Float32[Array, " hidden"] = cs.field(key="rnn.bias_hh")


def test_a_folder_of_hugging_face_is_read_and_written(tmp_path: Path) -> None:
    lens = cs.derive(Dotted, Flax, rules=[SUM, cs.private("bi", cs.own)])
    file = {"rnn.bias_ih": TREE["bias_ih"], "rnn.bias_hh": TREE["bias_hh"]}
    cs.hf.save(tmp_path / "torch", file)
    found = cs.hf.restore(tmp_path / "torch", {"bias": jnp.zeros(2)}, lens)
    same(np.asarray(found["bias"]), TREE["bias_ih"] + TREE["bias_hh"])
    cs.hf.save(tmp_path / "same", found, lens, onto=cs.hf.load(tmp_path / "torch"))
    same(cs.hf.load(tmp_path / "same"), file)  # the sum is as it was, and so are its parts
    cs.hf.save(tmp_path / "other", {"bias": found["bias"] + 1}, lens, onto=file)
    left = np.asarray(found["bias"]) + 1 - TREE["bias_ih"]
    same(cs.hf.load(tmp_path / "other"), {**file, "rnn.bias_hh": left})


def test_what_is_given_up_is_freed_and_what_is_wrong_is_told_before() -> None:
    tree = jax.tree.map(jnp.asarray, TREE)
    wanted = LENS.get(TREE)
    same(jax.tree.map(np.asarray, LENS.get(tree, donate=True)), wanted)
    assert tree["bias_hh"].is_deleted() and tree["bias_ih"].is_deleted()
    huge = jax.tree.map(lambda x: jnp.full_like(x, 3e38), cells(2))
    refused(
        lambda: STACKED.get(huge, donate=True),
        "layers_{0,1}/bh  2 leaves: expected a finite number",
    )
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(huge))


def test_it_is_written_as_text() -> None:
    again = cs.from_json(cs.to_json(LENS), cs.Lens)
    assert str(again) == str(LENS)
    same(again.get(TREE), LENS.get(TREE))
    assert 'cs.total("bias", ["bi", "bh"])' in cs.to_source(LENS)


class TestSum(LensLaws):
    """The laws of a sum in a stack, its parts in the source."""

    lens = STACKED
    max_examples = 1


def test_a_sum_that_is_another_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(kind: object, parts: list[Any]) -> Any:
        return parts[0]

    monkeypatch.setattr("ckpt_schema.testing._sums._computed", first)
    with pytest.raises(BrokenLawError, match="Naming does not hold"):
        check_laws(LENS, ["Naming"], max_examples=1)


@pytest.mark.parametrize("lens", [LENS, BACK])
def test_what_comes_back_is_off_by_its_rounding_and_no_more(lens: cs.Lens) -> None:
    tree = lens.put(lens.get(TREE if lens is LENS else {"bias": np.float32([3, 4])}))
    slots = Matcher(lens.source).match(tree).slots
    bounds = [bound for _, bound in sum_bounds(lens, slots, jax.tree.leaves(tree))]
    assert bounds and all((bound > 0).all() and (bound < 2.0**-16).all() for bound in bounds)


def test_the_laws_where_the_view_has_the_parts_and_keeps_one() -> None:
    check_laws(BACK, ["GetPut", "PutGet", "PutPut", "GetGet", "Naming"], max_examples=2)

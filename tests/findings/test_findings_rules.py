"""Rules that speak of one leaf: the longest path wins, and no rule is ever left out without a word."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws


def f(*shape: int) -> Any:
    """An array of distinct numbers."""
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


class OldBlock(cs.Schema):
    ln: Float32[Array, " e"]
    w: Float32[Array, "e m"]


class Old(cs.Schema):
    blocks: list[OldBlock] = cs.field(length="depth")


class NewBlock(cs.Schema):
    norm: Float32[Array, " e"]
    w: Float32[Array, "e m"]


class New(cs.Schema):
    layers: list[NewBlock] = cs.field(length="depth")


OUTER, INNER = cs.rename("blocks[]", "layers[]"), cs.rename("blocks[]/ln", "layers[]/norm")
WEIGHT = cs.rename("blocks[]/w", "layers[]/w")
OTHER_WEIGHT = cs.rename("blocks[]/w", "layers[]/norm")


def joined(lens: cs.Lens) -> dict[str, str]:
    """The logical paths of what a lens joins."""
    pairs = [pair for join in lens.joins for pair in join.pairs]
    source, view = lens.source.rows, lens.view.rows
    return {"/".join(source[a].path): "/".join(view[b].path) for a, b in pairs}


def refusal(old: Any, new: Any, rules: Sequence[Any]) -> cs.DerivationError:
    """The error of a derivation."""
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(old, new, rules=rules)
    return caught.value


# --- 2.3: several rules for one leaf  ---


@pytest.mark.parametrize("rules", [[OUTER, INNER], [INNER, OUTER], [INNER, WEIGHT]])
def test_2_3_the_longest_path_wins_whatever_the_order(rules: list[Any]) -> None:
    lens = cs.derive(Old, New, rules=rules)
    assert joined(lens) == {"blocks[]/ln": "layers[]/norm", "blocks[]/w": "layers[]/w"}
    old = {"blocks": {0: {"ln": f(2), "w": f(2, 3)}}}
    new = lens.get(old)
    assert new["layers"][0]["norm"] is old["blocks"][0]["ln"]
    assert lens.put(new)["blocks"][0]["w"] is old["blocks"][0]["w"]


@pytest.mark.parametrize("rules", [*itertools.permutations([OUTER, INNER, WEIGHT])])
def test_2_3_a_rule_whose_leaves_others_take_is_named_with_them(rules: Sequence[Any]) -> None:
    (fault,) = refusal(Old, New, rules).mismatches
    assert fault.path == str(OUTER)
    assert str(INNER) in fault.found
    assert str(WEIGHT) in fault.found


def test_2_3_two_rules_of_one_path_contradict_one_another() -> None:
    error = refusal(Old, New, [INNER, OUTER, OTHER_WEIGHT, WEIGHT])
    assert any(
        {m.path} | {m.found} == {str(WEIGHT), f"{OTHER_WEIGHT} too"} for m in error.mismatches
    )


def test_2_3_the_same_rule_twice_is_one_rule() -> None:
    assert joined(cs.derive(Old, New, rules=[OUTER, INNER, OUTER, INNER]))


def test_2_3_a_rename_in_new_words_is_told_the_words_that_are_meant() -> None:
    error = refusal(Old, New, [OUTER, cs.rename("layers[]/ln", "layers[]/norm")])
    assert f"first the words of Old, then those of New: {INNER}" in error.mismatches[0].hint
    error = refusal(Old, New, [OUTER, cs.rename("blocks[]/ln", "blocks[]/norm")])
    assert str(INNER) in error.mismatches[0].hint


def test_2_3_a_rule_for_values_in_old_words_is_told_the_words_that_are_meant() -> None:
    for rule, meant in [
        (cs.scale("blocks[]/w", 2), cs.scale("layers[]/w", 2)),
        (cs.flip("blocks[]/w", "m"), cs.flip("layers[]/w", "m")),
        (cs.pad("blocks[]/w", "m", "n"), cs.pad("layers[]/w", "m", "n")),
    ]:
        (fault,) = refusal(Old, New, [OUTER, INNER, rule]).mismatches
        assert fault.path == str(rule)
        assert str(meant) in fault.hint


class Deep(cs.Schema):
    attn: Float32[Array, "e m"]
    ln: Float32[Array, " e"]
    v: Float32[Array, "m e"]


class DeepNew(cs.Schema):
    attn: Float32[Array, "e m"]
    norm: Float32[Array, " e"]
    v: Float32[Array, "m e"]


class OldStack(cs.Schema):
    blocks: list[Deep] = cs.field(length="depth")


class NewStack(cs.Schema):
    layers: list[DeepNew] = cs.field(length="depth")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("appended", [True, False])
@pytest.mark.parametrize(("old", "new"), [(Old, New), (OldStack, NewStack)])
def test_2_3_following_the_hints_ends(old: Any, new: Any, first: bool, appended: bool) -> None:
    """One at a time or all of a round at once, before or after the rules that are there."""
    rules: list[Any] = []
    for _ in range(3):
        try:
            lens = cs.derive(old, new, rules=rules)
            break
        except cs.DerivationError as error:
            hints = re.findall(r"rename\('[^']*', '[^']*'\)", str(error))
            pairs = [re.findall(r"'([^']*)'", hint) for hint in dict.fromkeys(hints)]
            found = [cs.rename(*pair) for pair in pairs][: 1 if first else None]
            rules = [*rules, *found] if appended else [*found, *rules]
    else:
        pytest.fail(f"no end: {rules}")
    assert joined(lens)["blocks[]/ln"] == "layers[]/norm"


# --- 2.3, its siblings: every other kind of rule that takes a path  ---


class Pair(cs.Schema):
    a: Float32[Array, " n"]
    b: Float32[Array, " n"]


class Own(cs.Schema):
    shared: Float32[Array, " n"]
    extra: Pair


class Shared(cs.Schema):
    shared: Float32[Array, " n"]


@pytest.mark.parametrize("order", [1, -1])
def test_2_3_private_the_longest_path_wins(order: int) -> None:
    rules = [cs.private("extra", 1.0), cs.private("extra/b", 2.0)][::order]
    made = cs.derive(Shared, Own, rules=rules).get({"shared": f(3)})
    assert made["extra"]["a"].tolist() == [1.0] * 3
    assert made["extra"]["b"].tolist() == [2.0] * 3


def test_2_3_private_shadowed_and_contradicted() -> None:
    outer, a, b = cs.private("extra", 1.0), cs.private("extra/a", 3.0), cs.private("extra/b", 2.0)
    (fault,) = refusal(Shared, Own, [outer, a, b]).mismatches
    assert fault.path == str(outer)
    assert str(a) in fault.found
    (fault,) = refusal(Shared, Own, [outer, cs.private("extra", 5.0)]).mismatches
    assert fault.found == f"{outer} too"


class Two(cs.Schema):
    extra: Pair


@pytest.mark.parametrize("order", [1, -1])
def test_2_3_scale_the_longest_path_wins(order: int) -> None:
    rules = [cs.scale("extra", 2), cs.scale("extra/b", 8)][::order]
    made = cs.derive(Two, Two, rules=rules).get({"extra": {"a": f(3), "b": f(3)}})
    assert made["extra"]["a"].tolist() == [0, 2, 4]
    assert made["extra"]["b"].tolist() == [0, 8, 16]


def test_2_3_scale_shadowed_and_contradicted() -> None:
    outer, a, b = cs.scale("extra", 2), cs.scale("extra/a", 4), cs.scale("extra/b", 8)
    assert [m.path for m in refusal(Two, Two, [outer, a, b]).mismatches] == [str(outer)]
    (fault,) = refusal(Two, Two, [outer, cs.scale("extra", 4)]).mismatches
    assert fault.found == f"{outer} too"


@pytest.mark.parametrize("order", [1, -1])
def test_2_3_flip_said_of_a_node_and_of_its_leaf_is_said_once(order: int) -> None:
    rules = [cs.flip("extra", "n"), cs.flip("extra/b", "n")][::order]
    made = cs.derive(Two, Two, rules=rules).get({"extra": {"a": f(3), "b": f(3)}})
    assert made["extra"]["b"].tolist() == [2, 1, 0]


class Padded(cs.Schema):
    a: Float32[Array, " padded"]
    b: Float32[Array, " padded"]


class TwoPadded(cs.Schema):
    extra: Padded


@pytest.mark.parametrize("order", [1, -1])
def test_2_3_pad_the_longest_path_wins(order: int) -> None:
    rules = [cs.pad("extra", "n", "padded", 1), cs.pad("extra/b", "n", "padded", 2)][::order]
    lens = cs.derive(Two, TwoPadded, rules=rules).bind(padded=4)
    made = lens.get({"extra": {"a": f(3), "b": f(3)}})
    assert made["extra"]["a"].tolist() == [0, 1, 2, 1]
    assert made["extra"]["b"].tolist() == [0, 1, 2, 2]
    error = refusal(Two, TwoPadded, [*rules, cs.pad("extra/a", "n", "padded", 3)])
    assert [m.path for m in error.mismatches] == [str(cs.pad("extra", "n", "padded", 1))]


class Tied(cs.Schema):
    x: Pair
    y: Pair
    z: Pair


class Once(cs.Schema):
    y: Pair
    z: Pair


@pytest.mark.parametrize("order", [1, -1])
def test_2_3_tie_the_longest_path_wins(order: int) -> None:
    rules = [cs.tie("x", "y"), cs.tie("x/b", "z/b")][::order]
    tree = {name: {"a": f(3) + n, "b": f(3) - n} for n, name in enumerate("yz")}
    made = cs.derive(Once, Tied, rules=rules).get(tree)
    assert made["x"]["a"] is tree["y"]["a"]
    assert made["x"]["b"] is tree["z"]["b"]
    (fault,) = refusal(Once, Tied, [cs.tie("x", "y"), cs.tie("x", "z")]).mismatches
    assert fault.found == "tie('x', 'y') too"


class Parts(cs.Schema):
    q: Float32[Array, "e h"]
    k: Float32[Array, "e h"]


class Apart(cs.Schema):
    attention: Parts


class Whole(cs.Schema):
    attn: Float32[Array, "e 2*h"]


def test_2_3_a_rename_of_parts_that_a_fuse_takes_is_named() -> None:
    fuse = cs.fuse("attn", ["attention/q", "attention/k"])
    rename = cs.rename("attention", "attn")
    (fault,) = refusal(Apart, Whole, [rename, fuse]).mismatches
    assert fault.path == str(rename)
    assert str(fuse) in fault.found


class AdamLike(cs.Schema):
    w: Float32[Array, " n"]


def chain(*kinds: optax.GradientTransformation) -> Any:
    """A train state whose optimizer is a chain of these."""
    return cs.linen.TrainState[AdamLike, optax.chain(*kinds)]


@pytest.mark.parametrize("order", [1, -1])
def test_2_3_move_the_longest_path_wins(order: int) -> None:
    all_of_it = cs.move("opt_state", "opt_state")
    crossed = [cs.move("opt_state/0", "opt_state/1"), cs.move("opt_state/1", "opt_state/0")]
    rules = [all_of_it, *crossed][::order]
    three = chain(*[optax.scale_by_adam() for _ in range(3)])
    moved = joined(cs.derive(three, three, rules=rules))
    assert [moved[f"opt_state/{n}/mu/w"][10] for n in range(3)] == ["1", "0", "2"]
    two = chain(*[optax.scale_by_adam() for _ in range(2)])
    (fault,) = refusal(two, two, rules).mismatches
    assert fault.path == str(all_of_it)


# --- 2.5: two leaves of one name  ---


class Dense(cs.Schema):
    kernel: Float32[Array, "i o"]
    bias: Float32[Array, " o"]


class Net(cs.Schema):
    body: Dense = cs.field(dims={"i": "inputs", "o": "hidden"})
    head: Dense = cs.field(dims={"i": "hidden", "o": "classes"})


class Torso(nnx.Module):
    def __init__(self, classes: int, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.body, self.head = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, classes, rngs=rngs)


class Training(nnx.Module):
    def __init__(self, classes: int, seed: int) -> None:
        self.model = Torso(classes, seed)
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=nnx.Param)
        grads = jax.tree.map(jnp.ones_like, nnx.state(self.model, nnx.Param))
        self.optimizer.update(self.model, grads)


TX = optax.adamw(1e-3)


@pytest.fixture(scope="module")
def linen_state() -> TrainState:
    """A state of three classes, one step from its start."""
    params = nnx.to_pure_dict(nnx.state(Torso(3, 0)))
    state = TrainState.create(apply_fn=len, params=params, tx=TX)
    return state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))


def fine_tuning(*rules: Any) -> cs.Lens:
    """From a Linen state to an NNX one, whose head is another."""
    layouts = cs.linen.BareTrainState[Net, TX], cs.nnx.TrainState[Net, TX]
    return cs.derive(*layouts, rules=rules)


def test_2_5_a_restore_leaves_the_targets_own_head(linen_state: TrainState, tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", linen_state)
    target = Training(5, 1)
    before = np.asarray(target.model.head.kernel[...])
    made = cs.orbax.restore(tmp_path / "0", target, fine_tuning(cs.apart("head")))
    state = nnx.to_pure_dict(nnx.state(made))
    np.testing.assert_array_equal(state["model"]["head"]["kernel"], before)
    expected = linen_state.params["body"]["kernel"]
    np.testing.assert_array_equal(state["model"]["body"]["kernel"], expected)
    adam, theirs = state["optimizer"]["opt_state"][0], linen_state.opt_state[0]
    np.testing.assert_array_equal(adam["mu"]["body"]["kernel"], theirs.mu["body"]["kernel"])
    np.testing.assert_array_equal(adam["mu"]["head"]["kernel"], np.zeros((4, 5)))
    assert adam["count"] == 1


def test_2_5_get_takes_it_from_onto_or_the_default_or_says_so(linen_state: TrainState) -> None:
    target = nnx.state(Training(5, 1))
    made = fine_tuning(cs.apart("head")).get(linen_state, onto=target)
    assert made["model"]["head"]["kernel"][...] is target["model"]["head"]["kernel"][...]
    moments = made["optimizer"]["opt_state"][0]["mu"]["head"]["kernel"]
    assert moments[...] is target["optimizer"]["opt_state"][0]["mu"]["head"]["kernel"][...]
    with pytest.raises(
        cs.ConformanceError, match=r"pass onto=, or give a default: .*apart"
    ) as error:
        fine_tuning(cs.apart("head")).get(linen_state)
    assert [m.path for m in error.value.mismatches] == ["model/head/kernel", "model/head/bias"]
    lens = fine_tuning(cs.apart("head", 0.5)).bind(classes_view=5)
    made = lens.get(linen_state)
    assert made["model"]["head"]["bias"][...].tolist() == [0.5] * 5
    assert not made["optimizer"]["opt_state"][0]["mu"]["head"]["bias"][...].any()


def test_2_5_the_default_that_a_field_declares_holds() -> None:
    class Defaulted(cs.Schema):
        body: Dense = cs.field(dims={"i": "inputs", "o": "hidden"})
        head: Dense = cs.field(dims={"i": "hidden", "o": "labels"}, default=2.0)

    tree = {"body": {"kernel": f(2, 4), "bias": f(4)}, "head": {"kernel": f(4, 3), "bias": f(3)}}
    made = cs.derive(Net, Defaulted, rules=[cs.apart("head")]).bind(labels=5).get(tree)
    assert made["head"]["bias"].tolist() == [2.0] * 5
    assert made["body"]["kernel"] is tree["body"]["kernel"]


@pytest.mark.parametrize("classes", [3, 5])
def test_2_5_private_for_what_both_sides_have_says_apart(classes: int) -> None:
    layouts = cs.infer(Torso(3, 0)), cs.infer(Torso(classes, 1))
    (fault,) = refusal(*layouts, [cs.private("head", 0.0)]).mismatches
    assert fault.path == "private('head', 0.0)"
    assert "apart('head', 0.0)" in fault.hint
    assert fault.rules == (cs.apart("head", 0.0),)
    assert len(cs.derive(*layouts, rules=[cs.private("head", 0.0), *fault.rules]).joins) == 2


def test_2_5_apart_for_what_one_side_has_says_private() -> None:
    (fault, *_) = refusal(Shared, Own, [cs.apart("extra")]).mismatches
    assert "private('extra', 0)" in fault.hint
    with pytest.raises(cs.SchemaError, match="apart"):
        cs.apart(3)  # pyright: ignore[reportArgumentType]


class TestApart(LensLaws):
    """The laws of a lens that parts two heads."""

    lens = fine_tuning(cs.apart("head", 0.5))
    max_examples = 5


# --- 2.13: a plain schema beside weights  ---


class Torch(cs.Schema):
    w: Float32[Array, "o i"] = cs.field(key="lin.weight")
    b: Float32[Array, " o"] = cs.field(key="lin.bias")


class Flax(cs.Schema):
    w: Float32[Array, "i o"] = cs.field(key="kernel")
    b: Float32[Array, " o"] = cs.field(key="bias")


FILE = {"lin.weight": f(3, 2), "lin.bias": f(3)}


@pytest.mark.parametrize("kind", [cs.nnx.Params, cs.linen.BareParams])
def test_2_13_a_plain_schema_is_joined_with_weights_of_equal_names(kind: Any) -> None:
    lens = cs.derive(Torch, kind[Flax])
    made = lens.get(FILE)
    np.testing.assert_array_equal(lens.put(made)["lin.weight"], FILE["lin.weight"])
    back = cs.derive(kind[Flax], Torch)
    np.testing.assert_array_equal(back.get(made)["lin.weight"], FILE["lin.weight"])
    assert joined(back) == {"params/w": "params/w", "params/b": "params/b"}


def test_2_13_a_file_of_a_plain_schema_is_restored_into_a_module(tmp_path: Path) -> None:
    ocp.save(tmp_path / "0", FILE)
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    made = cs.orbax.restore(tmp_path / "0", linear, cs.derive(Torch, cs.nnx.Params[Flax]))
    np.testing.assert_array_equal(made.kernel[...], FILE["lin.weight"].T)


def test_2_13_rules_speak_of_it_as_of_any_weights() -> None:
    class Layer(cs.Schema):
        b: Float32[Array, " o"]

    rules = [cs.private("w", 0.0), cs.scale("b", 2)]
    made = cs.derive(Torch, cs.nnx.Params[Layer], rules=rules).get(FILE)
    assert made["b"][...].tolist() == [0, 2, 4]


def test_2_13_beside_a_train_state_it_is_its_weights_and_the_rest_is_told() -> None:
    state = cs.nnx.TrainState[Flax, TX]
    error = refusal(Torch, state, [])
    assert all(fault.path.split("/")[0] in ("opt_state", "step") for fault in error.mismatches)
    rules = [cs.reset(view="opt_state"), cs.private("step", 0)]
    lens = cs.derive(Torch, state, rules=rules)
    assert joined(lens) == {"params/w": "params/w", "params/b": "params/b"}
    made = lens.get(FILE)
    np.testing.assert_array_equal(made["model"]["kernel"][...], FILE["lin.weight"].T)
    np.testing.assert_array_equal(lens.put(made)["lin.weight"], FILE["lin.weight"])


def test_2_13_a_plain_schema_with_none_of_the_weights_is_not_one_of_them() -> None:
    class Other(cs.Schema):
        scale: Float32[Array, " o"]

    error = refusal(Other, cs.nnx.TrainState[Flax, TX], [])
    assert "scale" in [fault.path for fault in error.mismatches]


def test_2_13_an_envelope_of_ones_own_is_taken_at_its_word() -> None:
    class Envelope(cs.Schema):
        params: Flax

    assert joined(cs.derive(Envelope, cs.nnx.Params[Flax]))

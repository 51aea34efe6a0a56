"""What errors and warnings say, and what comes of doing what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs


def numbers(*shape: int) -> np.ndarray:
    """Different numbers."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def refused(derive: Any) -> cs.CkptSchemaError:
    """The error."""
    with pytest.raises(cs.CkptSchemaError) as caught:
        derive()
    return caught.value


def pasted(error: cs.CkptSchemaError) -> list[Any]:
    """The rules of the block to paste, as the text of a program; they are those that the error holds."""
    lines = str(error).splitlines()
    block = "\n".join(lines[lines.index("rules=[") :]).removeprefix("rules=")
    rules = eval(block, {"cs": cs})
    assert rules == list(error.rules)
    return rules


# --- the order of axes  ---

FLAX = {"up": {"w": numbers(2, 3)}, "square": {"w": numbers(2, 2)}, "down": {"w": numbers(3, 2)}}
TORCH = jax.tree.map(np.transpose, FLAX)


def test_1_2_the_only_order_that_sizes_leave_is_a_rule_to_paste() -> None:
    """It was said to be in order or transposed, of which one alone fits."""
    source, view = cs.infer(FLAX), cs.infer(TORCH)
    error = refused(lambda: cs.derive(source, view))
    assert "of which one alone fits: rename('up/w', 'up/w', axes='1 0')" in str(error)
    rules = pasted(error)
    # As the others are turned, the square one probably is: it was joined as it stands, with a warning.
    doubt = refused(lambda: cs.derive(source, view, rules=rules))
    assert [fault.path for fault in doubt.mismatches] == ["params/square/w"]
    assert not doubt.rules
    orders = [f"rename('square/w', 'square/w', axes='{order}')" for order in ("1 0", "0 1")]
    assert " or ".join(orders) in str(doubt)
    straight = [*rules, cs.rename("square/w", "square/w", axes="0 1")]
    assert np.array_equal(
        cs.derive(source, view, rules=straight).get(FLAX)["up"]["w"], TORCH["up"]["w"]
    )
    told = [*rules, cs.rename("square/w", "square/w", axes="1 0")]
    got = cs.derive(source, view, rules=told).get(FLAX)
    assert all(np.array_equal(got[name]["w"], TORCH[name]["w"]) for name in FLAX)


def test_1_2_an_order_of_three_axes_is_one_that_fits() -> None:
    def between(*shapes: tuple[int, ...]) -> cs.CkptSchemaError:
        source, view = (cs.infer({"w": numbers(*shape)}) for shape in shapes)
        return refused(lambda: cs.derive(source, view))

    assert pasted(between((3, 2, 4), (2, 4, 3))) == [cs.rename("w", "w", axes="1 2 0")]
    two = between((3, 2, 3), (2, 3, 3))
    assert "rename('w', 'w', axes='1 0 2'), or '1 2 0'" in str(two)
    assert not two.rules


class Kernel(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


class Weight(cs.Schema):
    kernel: Float32[Array, "outputs inputs"] = cs.field(key="weight")
    bias: Float32[Array, " outputs"]


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Dense(4)(x))
        x = nn.relu(nn.Dense(4)(x))
        return nn.Dense(3)(x)


def test_1_1_a_square_hidden_layer_computes_the_same_in_the_other_order(
    tmp_path: Path,
) -> None:
    """From a Linen model to one that keeps ``[out, in]``, through a file."""

    def layers(layer: Any, *keys: str) -> type[cs.Schema]:
        class Layers(cs.Schema):
            a: layer = cs.field(key=keys[0], dims={"inputs": "features", "outputs": "hidden"})
            b: layer = cs.field(key=keys[1], dims={"inputs": "hidden", "outputs": "hidden"})
            c: layer = cs.field(key=keys[2], dims={"inputs": "hidden", "outputs": "classes"})

        return Layers

    x = jnp.ones((5, 2))
    variables = Mlp().init(jax.random.key(0), x)
    ocp.save(tmp_path / "0", variables["params"])
    lens = cs.derive(
        layers(Kernel, "Dense_0", "Dense_1", "Dense_2"), layers(Weight, "one", "two", "three")
    )
    target = jax.eval_shape(lens.get, variables["params"])
    there = cs.orbax.restore(tmp_path / "0", target, lens)
    one, two, three = (there[name] for name in ("one", "two", "three"))
    hidden = jax.nn.relu(x @ one["weight"].T + one["bias"])
    hidden = jax.nn.relu(hidden @ two["weight"].T + two["bias"])
    found = hidden @ three["weight"].T + three["bias"]
    assert jnp.allclose(found, Mlp().apply(variables, x), atol=1e-6)


# --- the two sides, by name  ---


def test_two_layouts_of_one_name_are_told_apart_wherever_they_are_named() -> None:
    lens = cs.derive(
        cs.infer({"a": numbers(2)}), cs.infer({"b": numbers(2)}), rules=[cs.rename("a", "b")]
    )
    here, there = "inferred (source)", "inferred (view)"
    assert str(lens).splitlines()[0] == (
        f"{here} -> {there}: 1 joined, 0 private to {here}, 0 private to {there}"
    )
    assert repr(lens) == repr(~lens) == f"<lens {here} -> {there}>"
    turned = f"the tree conforms to {there}, not to {here}"
    assert turned in str(refused(lambda: lens.get({"b": numbers(2)})))
    assert f"does not conform to {here}" in str(refused(lambda: lens.get({"c": numbers(3)})))


# --- a new head  ---


class Head(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]


class Old(cs.Schema):
    head: Head = cs.field(dims={"outputs": "classes"})


class New(cs.Schema):
    head: Head = cs.field(dims={"outputs": "labels"})


def test_2_5_the_rule_that_is_printed_parts_the_heads() -> None:
    for view in (New, Old):
        error = refused(lambda view=view: cs.derive(Old, view, rules=[cs.private("head", 0.0)]))
        assert "found head/kernel, which both sides have" in str(error)
        for rules in (pasted(error), [cs.private("head", 0.0), *error.rules]):
            lens = cs.derive(Old, view, rules=rules)
            assert not lens.joins


def test_2_5_a_head_of_other_dims_asks_whether_it_is_another_head(tmp_path: Path) -> None:
    error = refused(lambda: cs.derive(cs.linen.Params[Old], cs.nnx.Params[New]))
    cure = "Declare the same on both sides, or say apart('head/kernel') if the two share only their name"
    assert cure in str(error)
    rule = [cs.apart("head/kernel", 0.0)]
    assert not cs.derive(cs.linen.Params[Old], cs.nnx.Params[New], rules=rule).joins

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.head = nnx.Linear(2, 5, use_bias=False, rngs=nnx.Rngs(0))

    ocp.save(tmp_path / "0", {"params": {"head": {"kernel": numbers(2, 3)}}})
    lens = cs.derive(cs.linen.Params[Old], cs.nnx.Params[Old])
    error = refused(lambda: cs.orbax.restore(tmp_path / "0", Model(), lens))
    assert "derive with apart(path), and the target keeps its own" in str(error)


# --- what a state holds besides, and where it stands  ---


def test_1_10_a_pair_of_model_and_optimizer_is_told_what_to_pass() -> None:
    tx = optax.adam(1e-3)
    model = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
    pair = nnx.state((model, nnx.Optimizer(model, tx, wrt=nnx.Param)))
    layout = cs.nnx.TrainState[Head, tx]
    cure = "holds model, optimizer at its root: pass a dict with these keys"
    assert cure in str(refused(lambda: cs.assert_conforms(layout, pair)))
    assert cs.check(layout, {"model": pair[0], "optimizer": pair[1]}).ok


def test_6_a_tree_that_is_nested_at_its_slashes_is_read() -> None:
    """As the error advises."""
    nested = cs.infer({"mlp": {"~": {"linear_0": {"w": numbers(2, 3)}}}})
    lens = cs.derive(
        nested, cs.infer({"lin": {"w": numbers(2, 3)}}), rules=[cs.rename("mlp/~/linear_0", "lin")]
    )
    assert len(lens.joins) == 1


def test_2_2_no_weight_is_private_because_a_rule_says_so() -> None:
    """``private('emb', 0)`` was printed as advice, and made a model of zeros."""

    class Emb(cs.Schema):
        emb: Float32[Array, "v a"]

    rule = cs.private("emb", 0)
    error = refused(lambda: cs.derive(Emb, cs.nnx.Params[Emb], rules=[rule]))
    assert "expected a leaf without a partner, found emb, which both sides have" in str(error)
    tree = {"emb": numbers(3, 2)}
    got = cs.derive(Emb, cs.nnx.Params[Emb]).get(tree)
    assert np.array_equal(got["emb"][...], tree["emb"])

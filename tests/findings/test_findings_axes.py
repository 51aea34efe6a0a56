"""Which axis is which: square leaves, labels, orders that a rule says, and what an optimizer keeps of them."""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array, Float32

import ckpt_schema as cs

SQUARE = np.arange(4.0, dtype=np.float32).reshape(2, 2)


class Flax(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]


class Torch(cs.Schema):
    kernel: Float32[Array, "outputs inputs"] = cs.field(key="weight")


def using(leaf: type[cs.Schema], inputs: str | int, outputs: str | int) -> type[cs.Schema]:
    class Body(cs.Schema):
        proj: leaf = cs.field(dims={"inputs": inputs, "outputs": outputs})

    return Body


def of(text: str) -> type[cs.Schema]:
    class Body(cs.Schema):
        w: Float32[Array, text]

    return Body


def refused(source: Any, view: Any, rules: Any = ()) -> str:
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(source, view, rules=rules)
    return str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "outputs", "shape"),
    [
        pytest.param("embed", "embed", (6, 6), id="one name"),
        pytest.param(6, 6, (6, 6), id="one fixed size"),
        pytest.param("heads*dim", "heads*dim", (6, 6), id="one product"),
        pytest.param("embed", "heads*dim", (6, 6), id="two names of one size"),
        pytest.param(2, 3, (2, 3), id="two fixed sizes"),
    ],
)
def test_1_1_axes_of_one_final_name_match_by_what_their_class_calls_them(
    inputs: str | int, outputs: str | int, shape: tuple[int, int]
) -> None:
    x = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    lens = cs.derive(using(Flax, inputs, outputs), using(Torch, inputs, outputs)).bind(
        **({"heads": 2} if "heads*dim" in (inputs, outputs) else {})
    )
    assert np.array_equal(lens.get({"proj": {"kernel": x}})["proj"]["weight"], x.T)
    assert np.array_equal(lens.put({"proj": {"weight": x.T}})["proj"]["kernel"], x)


def test_1_1_the_names_hold_through_several_classes() -> None:
    class Layer(cs.Schema):
        mlp: Flax = cs.field(dims={"outputs": "hidden"})

    class TorchLayer(cs.Schema):
        mlp: Torch = cs.field(dims={"outputs": "hidden"})

    class Model(cs.Schema):
        layer: Layer = cs.field(dims={"inputs": "embed", "hidden": "embed"})

    class TorchModel(cs.Schema):
        layer: TorchLayer = cs.field(dims={"inputs": "embed", "hidden": "embed"})

    lens = cs.derive(Model, TorchModel)
    got = lens.get({"layer": {"mlp": {"kernel": SQUARE}}})
    assert np.array_equal(got["layer"]["mlp"]["weight"], SQUARE.T)
    assert "inputs=embed outputs=embed" in str(cs.layout(Model))
    assert not cs.check(Model, {"layer": {"mlp": {"kernel": SQUARE}}}).mismatches


def test_1_1_two_literal_dims_of_one_name_are_the_same_on_both_sides() -> None:
    for text in ("embed embed", "8 8", "heads*dim heads*dim"):
        assert "->" not in str(cs.derive(of(text), of(text))).splitlines()[1]


@pytest.mark.parametrize(
    ("source", "view", "who"),
    [
        ("in=embed out=embed", "embed embed", "only the source"),
        ("8 8", "in=8 out=8", "only the view"),
        ("in=embed out=embed", "rows=embed cols=embed", "different names"),
    ],
)
def test_1_1_what_one_side_alone_tells_apart_is_an_error_with_the_cure(
    source: str, view: str, who: str
) -> None:
    said = refused(of(source), of(view))
    assert who in said
    assert "labels" in said
    assert "rename('w', 'w', axes='0 1')" in said
    lens = cs.derive(of(source), of(view), rules=[cs.rename("w", "w", axes="1 0")])
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    assert np.array_equal(lens.get({"w": x})["w"], x.T)


def test_1_1_a_label_names_an_axis_beside_its_size_and_survives_renames() -> None:
    class Old(cs.Schema):
        w: Float32[Array, "in=embed out=embed"]

    class New(cs.Schema):
        w: Float32[Array, "out=embed in=embed"]

    class A(cs.Schema):
        part: Old = cs.field(dims={"embed": "heads*dim"})

    class B(cs.Schema):
        part: New = cs.field(dims={"embed": "heads*dim"})

    assert "float32[in=embed out=embed]" in str(cs.layout(Old))
    assert "float32[in=heads*dim out=heads*dim]" in str(cs.layout(A))
    assert np.array_equal(cs.derive(Old, New).get({"w": SQUARE})["w"], SQUARE.T)
    got = cs.derive(A, B).bind(heads=2).get({"part": {"w": SQUARE}})
    assert np.array_equal(got["part"]["w"], SQUARE.T)
    assert "float32[in=embed out=mlp]" in str(cs.layout(of("in=embed out=mlp")))
    assert not cs.check(Old, {"w": SQUARE}).mismatches


@pytest.mark.parametrize("text", ["=embed", "_in=embed out=embed", "1a=embed", "a=b=c", "in="])
def test_1_1_a_label_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(cs.SchemaError, match=r"label|product"):
        of(text)


def test_1_1_moments_of_square_leaves_in_stacks_are_transposed_too() -> None:
    tx = optax.adam(1e-3)

    class Scanned(cs.Schema):
        layers: using(Flax, "embed", "embed") = cs.field(scan="depth", axis=1)

    class Listed(cs.Schema):
        layers: list[using(Torch, "embed", "embed")] = cs.field(length="depth")

    lens = cs.derive(cs.linen.TrainState[Scanned, tx], cs.nnx.TrainState[Listed, tx])
    kernel = np.arange(18.0, dtype=np.float32).reshape(3, 2, 3)
    params = {"params": {"layers": {"proj": {"kernel": kernel}}}}
    count, *rest = tx.init(params)
    mu = jax.tree.map(lambda x: x + 100, params)
    state = {"step": 0, "params": params, "opt_state": (count._replace(mu=mu), *rest)}
    got = lens.get(state)
    for layer in (0, 1):
        weight = got["model"]["layers"][layer]["proj"]["weight"][...]
        moment = got["optimizer"]["opt_state"][0]["mu"]["layers"][layer]["proj"]["weight"][...]
        assert np.array_equal(weight, kernel[:, layer].T)
        assert np.array_equal(moment, kernel[:, layer].T + 100)


def test_1_1_what_an_optimizer_keeps_of_one_of_two_such_axes_is_not_guessed() -> None:
    tx, sizes = optax.adafactor(1e-3, min_dim_size_to_factor=2), {"embed": 4}
    sides = [
        cs.linen.BareTrainState[using(leaf, "embed", "embed"), tx, sizes] for leaf in (Flax, Torch)
    ]
    said = refused(*sides)
    assert "opt_state/0/v_row/proj/kernel" in said
    assert "reset(source='opt_state/0/v_row/proj/kernel'" in said
    assert cs.derive(sides[0], sides[0])


def test_1_1_rules_that_name_an_axis_of_a_square_leaf_name_it_by_its_own_name() -> None:
    sides = [using(leaf, "embed", "embed") for leaf in (Flax, Torch)]
    lens = cs.derive(*sides, rules=[cs.flip("proj/kernel", "inputs")])
    got = lens.get({"proj": {"kernel": SQUARE}})
    assert np.array_equal(got["proj"]["weight"], SQUARE[::-1].T)
    assert "inputs or outputs" in refused(*sides, [cs.flip("proj/kernel", "embed")])


def test_1_1_parts_of_a_square_leaf_keep_their_axes_apart() -> None:
    class Fused(cs.Schema):
        qkv: Float32[Array, "3*outputs inputs"]

    class Whole(cs.Schema):
        attention: Fused = cs.field(dims={"inputs": "embed", "outputs": "embed"})

    class Three(cs.Schema):
        q: Flax
        k: Flax
        v: Flax

    class Parts(cs.Schema):
        attention: Three = cs.field(dims={"inputs": "embed", "outputs": "embed"})

    names = [f"attention/{name}/kernel" for name in "qkv"]
    lens = cs.derive(Whole, Parts, rules=[cs.fuse("attention/qkv", names)])
    whole = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    got = lens.get({"attention": {"qkv": whole}})
    for at, name in enumerate("qkv"):
        assert np.array_equal(got["attention"][name]["kernel"], whole[2 * at : 2 * at + 2].T)


def test_1_1_a_pad_and_a_tie_beside_square_axes() -> None:
    lens = cs.derive(
        of("in=embed out=embed"),
        of("out=padded in=embed"),
        rules=[cs.pad("w", "embed", "padded")],
        dims={"padded": 3},
    )
    got = lens.get({"w": SQUARE})["w"]
    assert np.array_equal(got[:2], SQUARE.T)
    assert not got[2].any()

    class Twice(cs.Schema):
        a: Float32[Array, "in=embed out=embed"]
        b: Float32[Array, "out=embed in=embed"]

    class Once(cs.Schema):
        a: Float32[Array, "in=embed out=embed"]

    tied = cs.derive(Once, Twice, rules=[cs.tie("b", "a")]).get({"a": SQUARE})
    assert np.array_equal(tied["b"], SQUARE.T)


def test_1_1_lenses_do_not_compose_over_a_middle_that_means_other_axes() -> None:
    flax, torch = (using(leaf, "embed", "embed") for leaf in (Flax, Torch))

    class Turned(cs.Schema):
        kernel: Float32[Array, "outputs inputs"]

    there = cs.derive(torch, flax)
    assert "->" not in str(there >> ~there).splitlines()[1]
    with pytest.raises(cs.DerivationError, match="not one layout"):
        _ = there >> cs.derive(using(Turned, "embed", "embed"), torch)


def test_1_2_axes_say_the_order_of_leaves_whose_sizes_do_not() -> None:
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    rule = cs.rename("weight", "kernel", axes="1 0")
    lens = cs.derive(cs.infer({"weight": x}), cs.infer({"kernel": x.T}), rules=[rule])
    assert np.array_equal(lens.get({"weight": x})["kernel"], x.T)
    assert np.array_equal(lens.put({"kernel": x.T})["weight"], x)
    onward = cs.derive(
        cs.infer({"kernel": x.T}), cs.infer({"last": x.T}), rules=[cs.rename("kernel", "last")]
    )
    assert np.array_equal((lens >> onward).get({"weight": x})["last"], x.T)
    assert eval(str(rule), {"rename": cs.rename}) == rule
    only = "of which one alone fits: rename('w', 'w', axes='1 0')"
    assert only in refused(cs.infer({"w": x}), cs.infer({"w": x.T}))


def test_1_2_axes_hold_in_what_mirrors_the_leaf() -> None:
    tx = optax.adam(1e-3)
    x = np.arange(4.0, dtype=np.float32).reshape(2, 2)

    def state(name: str, value: Any) -> Any:
        params = {name: value}
        return {"step": 0, "params": params, "opt_state": tx.init(params)}

    old = state("weight", x)
    old["opt_state"][0].mu["weight"] = x + 10
    lens = cs.derive(
        cs.infer(old),
        cs.infer(state("kernel", x)),
        rules=[cs.rename("weight", "kernel", axes="1 0")],
    )
    got = lens.get(old)
    assert np.array_equal(got["params"]["kernel"], x.T)
    assert np.array_equal(got["opt_state"][0].mu["kernel"], x.T + 10)


@pytest.mark.parametrize("axes", ["", "0 0", "1 2", "a b", "01", 10])
def test_1_2_axes_that_are_no_order_are_refused(axes: Any) -> None:
    with pytest.raises(cs.SchemaError, match="axes"):
        cs.rename("a", "b", axes=axes)


def test_1_2_axes_that_order_nothing_are_refused() -> None:
    x = np.zeros((2, 3), np.float32)
    said = refused(
        cs.infer({"a": {"w": x, "b": x[0]}}),
        cs.infer({"c": {"w": x.T, "b": x[0]}}),
        [cs.rename("a", "c", axes="1 0")],
    )
    assert "orders 2 axes" in said


def test_1_2_square_leaves_under_another_name_are_named_in_one_warning() -> None:
    """PyTorch keeps ``[out, in]``, Flax ``[in, out]``: of a square one, sizes show neither."""
    square, wide = np.arange(9.0, dtype=np.float32).reshape(3, 3), np.zeros((3, 4), np.float32)
    old = {"a": {"weight": square}, "b": {"weight": square}, "c": {"weight": wide}, "same": square}
    new = {"a": {"kernel": square}, "b": {"kernel": square}, "c": {"kernel": wide}, "same": square}
    rules = [cs.rename(f"{name}/weight", f"{name}/kernel") for name in "abc"]
    with pytest.warns(cs.AxesWarning) as caught:
        lens = cs.derive(cs.infer(old), cs.infer(new), rules=rules)
    said = [line.strip() for line in str(caught.pop().message).splitlines()[1:]]
    assert not caught.list
    assert said == [
        f"rename('{name}/weight', '{name}/kernel', axes='0 1')  float32[3 3]" for name in "ab"
    ]
    assert np.array_equal(lens.get(old)["a"]["kernel"], square)
    told = [
        cs.rename("a/weight", "a/kernel", axes="1 0"),
        cs.rename("b/weight", "b/kernel", axes="0 1"),
        cs.rename("same", "same", axes="0 1"),  # as others are turned, so it may be
    ]
    got = cs.derive(cs.infer(old), cs.infer(new), rules=[*told, rules[2]]).get(old)
    assert np.array_equal(got["a"]["kernel"], square.T)
    assert np.array_equal(got["b"]["kernel"], square)


def test_1_2_a_moment_of_a_square_leaf_is_not_named_besides() -> None:
    x = np.ones((2, 2), np.float32)

    def state(name: str) -> Any:
        return {"step": 0, "params": {name: x}, "opt_state": optax.adam(1e-3).init({name: x})}

    with pytest.warns(cs.AxesWarning) as caught:
        cs.derive(
            cs.infer(state("weight")),
            cs.infer(state("kernel")),
            rules=[cs.rename("weight", "kernel")],
        )
    assert len(str(caught.pop().message).splitlines()) == 2


def test_part_5_infer_grows_with_the_leaves() -> None:
    """Rows whose keys differ in their numbers alone were all compared with one another."""
    leaf = np.zeros(2, np.float32)
    flat = {f"k{i}_{i % 7}": leaf for i in range(3000)}
    lists = {f"a{i}": [{"w": leaf}, {"w": leaf}] for i in range(1500)}
    for tree in (flat, lists):
        calls = _calls(lambda tree=tree: cs.infer(tree))
        assert calls < 200 * 3000


def _calls(run: Any) -> int:
    """How many Python functions are called: a measure that a busy machine does not move."""
    count = 0

    def counted(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def _state(**more: Any) -> dict[str, Any]:
    """A train state whose moments are those of a step, so that each leaf has values of its own."""
    tx = optax.adam(1e-2)
    params = {"up": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
    _, state = tx.update(jax.tree.map(lambda x: x / 9, params), tx.init(params), params)
    return {"params": params, "opt_state": state, **more}


def _flipped(tree: Any, rule: str = "up/kernel") -> Any:
    read = cs.infer(tree)
    return cs.derive(read, read, rules=[cs.flip(rule, "2")]).get(tree)


def test_1_15_two_train_states_side_by_side_are_not_taken_for_weights() -> None:
    """A flip of the kernel reached the weights and not the moments that mirror them."""
    one = _state(step=0)
    got = _flipped(one)
    mu = one["opt_state"][0].mu["up"]["kernel"]
    assert np.array_equal(got["params"]["up"]["kernel"], one["params"]["up"]["kernel"][::-1])
    assert np.array_equal(got["opt_state"][0].mu["up"]["kernel"], mu[::-1])
    for state in (one, _state()):
        with pytest.raises(cs.SchemaError) as caught:
            cs.infer({"generator": state, "discriminator": state})
        said = str(caught.value)
        assert "generator/opt_state" in said
        assert "taken for weights" in said
        assert "one train state at a time" in said


@pytest.mark.parametrize("on_disk", [False, True])
def test_1_15_an_optimizer_under_another_name_is_not_taken_for_weights(on_disk: bool) -> None:
    """Its moments mirror the weights, whatever both are called."""
    state: Any = _state()
    moments = state["opt_state"]
    if on_disk:  # which keeps no classes
        moments = {"0": dict(moments[0]._asdict())}
    for net, opt in (("net", "opt"), ("model", "optimizer")):
        rows = cs.infer({net: state["params"], opt: moments}).rows
        mirrored = {row.key[-3]: row.mirrors for row in rows if row.key[0] == opt and row.mirrors}
        assert mirrored == {"mu": "params/up/kernel", "nu": "params/up/kernel"}


@pytest.mark.parametrize("more", [{"step": 0}, {}])
def test_1_15_an_average_of_the_weights_goes_with_them(more: dict[str, Any]) -> None:
    state = _state(**more)
    state["ema_params"] = jax.tree.map(lambda x: x + 50, state["params"])
    got = _flipped(state)
    kernels = [tree["up"]["kernel"] for tree in (state["ema_params"], got["ema_params"])]
    assert np.array_equal(kernels[1], kernels[0][::-1])
    alone = {name: state[name] for name in ("params", "ema_params")}
    assert np.array_equal(_flipped(alone)["ema_params"]["up"]["kernel"], kernels[0][::-1])
    new = {
        "params": {"down": state["params"]["up"]},
        "ema_params": {"down": state["params"]["up"]},
    }
    lens = cs.derive(cs.infer(alone), cs.infer(new), rules=[cs.rename("up", "down")])
    assert np.array_equal(lens.get(alone)["ema_params"]["down"]["kernel"], kernels[0])


def test_1_15_a_module_whose_attributes_have_other_names_is_told_by_its_variables() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))

    class Training(nnx.Module):
        def __init__(self, second: bool) -> None:
            self.net = model
            self.opt = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
            if second:
                self.other = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    told = str(cs.infer(Training(second=False)))
    assert "params/kernel" in told
    assert "opt_state/0/mu/kernel" in told
    with pytest.raises(cs.SchemaError) as caught:
        cs.infer(Training(second=True))
    assert {fault.path for fault in caught.value.mismatches} == {"opt", "other"}


def test_1_15_a_dict_of_states_is_read_as_the_state_of_both() -> None:
    """Its Variables were taken for dicts with a leaf ``value``."""
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)
    tree = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    read = cs.infer(tree)
    assert "value" not in str(read)
    assert str(read) == str(cs.infer({"model": model, "optimizer": optimizer}))
    assert cs.check(read, tree).ok


def test_1_2_a_square_torch_weight_under_the_name_of_a_kernel() -> None:
    model = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.warns(cs.AxesWarning, match=r"rename\('weight', 'kernel', axes='0 1'\)"):
        cs.derive(
            cs.infer({"weight": SQUARE}), cs.infer(model), rules=[cs.rename("weight", "kernel")]
        )
    rule = cs.rename("weight", "kernel", axes="1 0")
    got = cs.derive(cs.infer({"weight": SQUARE}), cs.infer(model), rules=[rule]).get(
        {"weight": SQUARE}
    )
    assert np.array_equal(got["kernel"][...], SQUARE.T)


def test_1_16_factors_do_not_join_what_is_kept_whole() -> None:
    """A stacked bias is factored, one without layers is not: ``v_row`` and its placeholder were one leaf."""

    class Layer(cs.Schema):
        bias: Float32[Array, " embed"]

    class Stacked(cs.Schema):
        layers: Layer = cs.field(scan="depth")

    class Listed(cs.Schema):
        layers: list[Layer] = cs.field(length="depth")

    tx, sizes = optax.adafactor(1e-3, min_dim_size_to_factor=2), {"embed": 4, "depth": 3}
    sides = [cs.linen.BareTrainState[body, tx, sizes] for body in (Stacked, Listed)]
    for source, view in (sides, sides[::-1]):
        said = refused(source, view)
        assert "reset(" in said
        assert "opt_state/0/v" in said
    assert cs.derive(sides[0], sides[0])


def test_1_1_axes_of_a_layout_for_fixed_sizes_match_by_what_they_were_called() -> None:
    sizes = {"inputs": 2, "outputs": 2}
    lens = cs.derive(cs.layout(Flax, dims=sizes), cs.layout(Torch, dims=sizes))
    assert np.array_equal(lens.get({"kernel": SQUARE})["weight"], SQUARE.T)
    assert str(lens).endswith("kernel  weight  axes 1 0")
    other = cs.layout(of("ins outs"), dims={"ins": 2, "outs": 2})
    said = refused(cs.layout(of("inputs outputs"), dims=sizes), other)
    assert "the sides call the two by different names" in said


def test_1_16_the_same_of_layouts_that_were_read_off_trees() -> None:
    params = {"w": np.zeros((4, 3), np.float32)}

    def state(least: int) -> Any:
        tx = optax.adafactor(1e-3, min_dim_size_to_factor=least)
        return cs.infer({"step": 0, "params": params, "opt_state": tx.init(params)})

    factored, whole = state(1), state(128)
    for source, view in ((factored, whole), (whole, factored)):
        said = refused(source, view)
        assert "opt_state/0/v_row/w" in said
        assert "reset(" in said
    assert cs.derive(factored, factored)

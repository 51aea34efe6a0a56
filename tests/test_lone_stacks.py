"""What names do not tell is told by the error: stacks that are called otherwise, averages, parts of a whole."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema.testing._naming import origins_of


def numbers(*shape: int, start: int = 0) -> jnp.ndarray:
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) + start


def refused(*args: Any, **said: Any) -> str:
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(*args, **said)
    return str(caught.value)


def listed(layers: int, *, name: str = "h", start: int = 0) -> dict[str, Any]:
    """Layers one by one, each leaf of a shape of its own, and a leaf beside them."""
    each = [
        {"b": numbers(12, start=start + 100 * at), "u": numbers(12, 20, start=start + at)}
        for at in range(layers)
    ]
    return {"params": {name: each, "tok": numbers(17, 12, start=start)}}


def stacked(layers: int, *, name: str = "blocks", axis: int = 0, start: int = 0) -> dict[str, Any]:
    """The same in one stack."""
    every = listed(layers, start=start)["params"]
    stack = {key: jnp.stack([one[key] for one in every["h"]], axis) for key in ("b", "u")}
    return {"params": {name: stack, "tok": every["tok"]}}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("turned", [False, True])
def test_a_stack_that_is_called_otherwise_is_told_with_its_axis(axis: int, turned: bool) -> None:
    trees = stacked(3, axis=axis), listed(3)
    names = ("h[]", "blocks[]") if turned else ("blocks[]", "h[]")
    trees = trees[::-1] if turned else trees
    scan = {"blocks": axis}
    text = refused(*trees)
    assert f"blocks may be the layers of h[], stacked: add scan={scan}" in text
    assert f"and rename({names[0]!r}, {names[1]!r})" in text
    assert "private(" not in text and "not made up" not in text
    lens = cs.adapt(*trees, scan=scan, rules=[cs.rename(*names)])
    cs.assert_trees_identical(lens.get(trees[0], onto=trees[1]), trees[1])


def test_a_stack_that_has_the_name_of_the_list_is_told_without_a_rename() -> None:
    # The leaves inside are called otherwise, so that names alone do not join the two.
    trees = stacked(3, name="h"), listed(3)
    for layer in trees[1]["params"]["h"]:
        layer["bias"], layer["up"] = layer.pop("b"), layer.pop("u")
    text = refused(*trees)
    assert "h may be the layers of h[], stacked: add scan={'h': 0}\n" in text
    text = refused(*trees, scan={"h": 0})
    inside = ("h[]/b", "h[]/bias"), ("h[]/u", "h[]/up")
    assert all(f"rename({one!r}, {other!r})" in text for one, other in inside)
    lens = cs.adapt(*trees, scan={"h": 0}, rules=[cs.rename(*names) for names in inside])
    cs.assert_trees_identical(lens.get(trees[0], onto=trees[1]), trees[1])


class Inner(cs.Schema):
    w: Float32[Array, "inputs outputs"]


class ListOfInner(cs.Schema):
    heads: list[Inner] = cs.field(length="inner")


class StackOfInner(cs.Schema):
    heads: Inner = cs.field(scan="inner", axis=1)


class ListInList(cs.Schema):
    layers: list[ListOfInner] = cs.field(length="outer")


class StackInStack(cs.Schema):
    layers: StackOfInner = cs.field(scan="outer", axis=1)


@pytest.mark.parametrize("turned", [False, True])
def test_a_leaf_that_is_stacked_twice_is_told_and_may_be_declared(turned: bool) -> None:
    whole = np.arange(5 * 2 * 3 * 7, dtype=np.float32).reshape(5, 2, 3, 7)
    apart = {"layers": [{"heads": [{"w": whole[:, at, of]} for of in range(3)]} for at in range(2)]}
    trees: list[Any] = [apart, {"layers": {"heads": {"w": whole}}}]
    layouts: list[type[cs.Schema]] = [ListInList, StackInStack]
    if turned:
        trees, layouts = trees[::-1], layouts[::-1]
    text = refused(*trees)
    told = "layers/heads/w is stacked twice, by 2 and by 3, which scan= does not say"
    assert text.count(f"{told}: declare both layouts, with scan= in scan=, and derive") == 2
    lens = cs.derive(*layouts)
    cs.assert_trees_identical(lens.get(trees[0], onto=trees[1]), trees[1])


def test_a_leaf_of_other_sizes_is_not_said_to_be_stacked_twice() -> None:
    apart = {"layers": [{"heads": [{"w": numbers(5, 7)} for _ in range(3)]} for _ in range(2)]}
    text = refused(apart, {"layers": {"heads": {"w": numbers(5, 2, 4, 7)}}})
    assert "stacked twice" not in text


def test_a_stack_that_was_renamed_to_a_list_is_told_with_its_axis() -> None:
    text = refused(stacked(3), listed(3), rules=[cs.rename("blocks", "h[]")])
    wanted = "the layers of blocks are stacked there: add scan={'blocks': 0} and write rename('blocks[]', 'h[]')"
    assert text.count(wanted) == 2


def test_where_two_axes_fit_both_are_offered() -> None:
    square = {"params": {"blocks": {"u": numbers(3, 3, 5)}, "a": numbers(2)}}
    apart = {"params": {"h": [{"u": numbers(3, 5)} for _ in range(3)], "a": numbers(2)}}
    assert "add scan={'blocks': 0} or scan={'blocks': 1} and" in refused(square, apart)


def test_where_two_nodes_fit_none_is_named() -> None:
    old, new = stacked(3), listed(3)
    old["params"]["others"] = old["params"]["blocks"]
    assert "may be the layers" not in refused(old, new)


def test_what_has_another_number_of_layers_is_not_taken_for_it() -> None:
    assert "may be the layers" not in refused(stacked(4), listed(3))


def averaged(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {**tree, name: tree["params"]}


def test_averages_are_joined_where_one_side_stacks_and_the_other_lists() -> None:
    old, new = averaged(stacked(3), "ema_params"), averaged(listed(3), "avg")
    first = refused(old, new)
    assert "tree beside the weights; the lines for the weights come first" in first
    assert "private(" not in first
    rules, scan = [cs.rename("blocks[]", "h[]")], {"blocks": 0}
    second = refused(old, new, rules=rules, scan=scan)
    assert "cs.rename('ema_params', 'avg')," in second
    lens = cs.adapt(old, new, rules=[*rules, cs.rename("ema_params", "avg")], scan=scan)
    cs.assert_trees_identical(lens.get(old, onto=new), new)


def written_anew(tree: dict[str, Any]) -> dict[str, Any]:
    """The layers of `listed` as another author has them: ``u`` turned, and its columns in two leaves."""
    layers = [
        {"c": layer["b"], "v": layer["u"][:, :8].T, "w": layer["u"][:, 8:].T}
        for layer in tree["params"]["h"]
    ]
    return {"params": {"h": layers, "tok": tree["params"]["tok"]}}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("has_averages", [False, True])
def test_a_stack_whose_leaves_are_turned_or_fused_is_told_by_its_elements(
    turned: bool, has_averages: bool
) -> None:
    old, new = stacked(3), written_anew(listed(3))
    trees = (averaged(old, "ema") if has_averages else old), new
    names = ("h[]", "blocks[]") if turned else ("blocks[]", "h[]")
    text = refused(*(trees[::-1] if turned else trees))
    told = f"blocks may be the layers of h[], stacked: add scan={{'blocks': 0}} and rename{names}"
    assert text.count(told) == (7 if has_averages else 5)
    assert "private('h[]" not in text


def test_streams_in_each_layer_do_not_hide_what_the_layers_are() -> None:
    class Layer(nnx.Module):
        def __init__(self) -> None:
            self.u = nnx.Linear(12, 20, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(1))

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.h = nnx.List([Layer() for _ in range(3)])
            self.tok = nnx.Param(numbers(17, 12))

    stack = {"w": numbers(3, 20, 12), "c": numbers(3, 20)}
    text = refused({"params": {"blocks": stack, "tok": numbers(17, 12)}}, Model())
    assert text.count("blocks may be the layers of h[], stacked: add scan={'blocks': 0}") == 4


def test_as_many_elements_in_another_number_of_layers_are_no_layers() -> None:
    assert "may be the layers" not in refused(stacked(4), written_anew(listed(3)))


def parted(tree: dict[str, Any]) -> dict[str, Any]:
    """A model of one leaf less: ``q`` and ``k`` are one."""
    qk = {"k": jnp.concatenate([tree["q"]["k"], tree["k"]["k"]], 1)}
    return {"qk": qk, "a": tree["a"]}


@pytest.mark.parametrize("turned", [False, True])
def test_an_average_whose_leaves_are_fused_on_one_side_is_joined_by_the_rules_of_the_weights(
    turned: bool,
) -> None:
    model = {"q": {"k": numbers(5, 4)}, "k": {"k": numbers(5, 4, start=50)}, "a": numbers(3)}
    ema = {"q": {"k": numbers(5, 4, start=7)}, "k": {"k": numbers(5, 4, start=9)}, "a": numbers(3)}
    old, new = {"params": model, "ema": ema}, {"params": parted(model), "avg": parted(ema)}
    trees, names = (old, new), ("ema", "avg")
    if turned:
        trees, names = trees[::-1], names[::-1]
    first = refused(*trees)
    # The lines of the weights come first, and say so.
    assert first.index("params/") < first.index("the lines for the weights come first")
    assert first.rindex("params/") < first.index("the lines for the weights come first")
    rules = [cs.fuse("qk", ["q", "k"])]
    assert f"cs.rename{names}," in refused(*trees, rules=rules)
    lens = cs.adapt(*trees, rules=[*rules, cs.rename(*names)])
    cs.assert_trees_identical(lens.get(trees[0]), trees[1])
    cs.assert_trees_identical(lens.put(trees[1]), trees[0])


@pytest.mark.parametrize("turned", [False, True])
def test_the_law_of_names_asks_for_parts_in_averages_that_are_renamed(turned: bool) -> None:
    model = {"q": {"k": numbers(5, 4)}, "k": {"k": numbers(5, 3, start=50)}, "a": numbers(3)}
    old, new = {"params": model, "ema": model}, {"params": parted(model), "avg": parted(model)}
    trees, names = (old, new), ("ema", "avg")
    if turned:
        trees, names = trees[::-1], names[::-1]

    rule = cs.fuse("qk/k", ["q/k", "k/k"], axes="a q+k -> a q, a k")
    lens = cs.adapt(*trees, rules=[rule, cs.rename(*names)])
    for one in (lens, ~lens):
        assert origins_of(one).keys() == {*range(len(one.view.rows))}


def fused(parts: list[Any], axes: str) -> Any:
    """Leaves in one, as NumPy joins them."""
    if axes.startswith("a 3*b"):
        return jnp.concatenate(parts, 1)
    return jnp.stack(parts, -1).reshape(parts[0].shape[0], -1)


def test_how_undeclared_parts_may_stand_in_a_whole_is_offered_and_each_can_be_followed() -> None:
    parts = [numbers(8, 8, start=100 * at) for at in range(3)]
    old = {"params": {name: {"k": part} for name, part in zip("qkv", parts, strict=True)}}
    text = refused(
        old, {"params": {"qkv": {"k": numbers(8, 24)}}}, rules=[cs.fuse("qkv", ["q", "k", "v"])]
    )
    offered = re.findall(r"axes='([^']+)'", text)
    assert len(offered) == 2
    for axes in offered:
        new = {"params": {"qkv": {"k": fused(parts, axes)}}}
        rule = cs.fuse("qkv/k", ["q/k", "k/k", "v/k"], axes=axes)
        cs.assert_trees_identical(cs.adapt(old, new, rules=[rule]).get(old), new)


def test_parts_of_unequal_sizes_are_offered_a_sum() -> None:
    parts = numbers(8, 6), numbers(8, 2, start=50)
    old, new = {"q": parts[0], "k": parts[1]}, {"qk": jnp.concatenate(parts, 1)}
    [axes] = re.findall(r"axes='([^']+)'", refused(old, new, rules=[cs.fuse("qk", ["q", "k"])]))
    lens = cs.adapt(old, new, rules=[cs.fuse("qk", ["q", "k"], axes=axes)])
    cs.assert_trees_identical(lens.get(old), new)


def test_a_warning_of_square_leaves_can_be_followed() -> None:
    old, new = ({"params": {name: {"kernel": numbers(4, 4)}}} for name in ("Dense_0", "key"))
    with pytest.warns(cs.AxesWarning, match="in the place of those") as caught:
        cs.adapt(old, new, rules=[cs.rename("Dense_0", "key")])
    [line] = re.findall(r"rename\(.*\)", str(caught[0].message))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cs.adapt(old, new, rules=[eval(f"cs.{line}")])


def test_a_layout_below_a_key_is_saved_like(tmp_path: Path) -> None:
    params, tx = {"w": numbers(2, 3)}, optax.adam(1e-3)
    state = {"step": jnp.int32(3), "params": params, "opt_state": tx.init(params)}
    ocp.save(tmp_path / "1", {"state": state, "ema": params})
    cs.orbax.save(tmp_path / "2", state, layout=tmp_path / "1", at="state")
    assert cs.orbax.restore(tmp_path / "2", state, at="state")["step"] == 3
    assert set(cs.orbax.load(tmp_path / "2")) == {"state"}


TORCH = {
    "up": {"weight": numbers(5, 4), "bias": numbers(5)},
    "out": {"weight": numbers(4, 4), "bias": numbers(4)},
}
LINEN = {
    "up": {"kernel": TORCH["up"]["weight"].T, "bias": numbers(5)},
    "out": {"kernel": TORCH["out"]["weight"].T, "bias": numbers(4)},
}
BOTH = [cs.rename(f"{name}/weight", f"{name}/kernel") for name in LINEN]


def test_a_square_weight_beside_one_that_a_rule_turns_is_no_guess() -> None:
    """It was joined as it stands, a warning said so, and the logits were others: as most weights of attention are square."""
    adding = [*BOTH, cs.rename("up/weight", "up/kernel", axes="1 0")]
    said = refused(TORCH, LINEN, rules=adding)
    assert "a rule turns the axes of another weight that is a kernel" in said
    right, straight = re.findall(r"rename\('out/weight'[^)]*\)", said)
    lens = cs.adapt(TORCH, LINEN, rules=[*adding, eval(f"cs.{right}")])
    cs.assert_trees_identical(lens.get(TORCH), LINEN)
    assert "axes='0 1'" in straight
    cs.adapt(TORCH, LINEN, rules=[*adding, eval(f"cs.{straight}")])
    # Another pair of names is another matter: a table of positions is turned for no layer.
    table = {"table": {"weight": numbers(5, 4)}, "out": {"weight": numbers(4, 4)}}
    other = {"table": {"embedding": numbers(4, 5)}, "out": {"kernel": numbers(4, 4)}}
    rules = [cs.rename("table/weight", "table/embedding", axes="1 0"), BOTH[1]]
    with pytest.warns(cs.AxesWarning, match=r"axes='0 1'\)  "):
        cs.adapt(table, other, rules=rules)


def test_a_record_of_a_lens_that_an_older_release_warned_of_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rules = [BOTH[1], cs.rename("up/weight", "up/kernel", axes="1 0")]
    with monkeypatch.context() as older:
        older.setattr("ckpt_schema._lens.derived_lens.verify_squares", lambda _: None)
        lens = cs.adapt(TORCH, LINEN, rules=rules)
    read = cs.from_json(cs.to_json(lens), cs.Lens)
    cs.assert_trees_identical(read.get(TORCH), lens.get(TORCH))


def test_the_rules_of_an_error_may_be_added_to_those_that_say_less() -> None:
    """It said for ever that both contradict one another, and printed the same rules again."""
    with pytest.raises(cs.DerivationError) as error:
        cs.adapt(TORCH, LINEN, rules=BOTH)
    line: Any = error.value.rules[0]
    assert len(error.value.rules) == 1
    square = cs.rename("out/weight", "out/kernel", axes="1 0")
    for rules in ([*BOTH, line, square], [square, line, *BOTH]):
        lens = cs.adapt(TORCH, LINEN, rules=rules)
        cs.assert_trees_identical(lens.get(TORCH), LINEN)
    turned = cs.rename("up/weight", "up/kernel", axes="0 1")
    assert "they contradict one another" in refused(TORCH, LINEN, rules=[*BOTH, line, turned])


def test_a_product_of_three_factors_is_offered_with_the_order_that_no_size_shows() -> None:
    """It was said to be three parts side by side, and is one of them for each head in GPT-NeoX."""
    old, new = {"qkv": numbers(3 * 2 * 5, 7)}, {"kernel": numbers(7, 3, 2, 5)}
    said = refused(old, new, rules=[cs.rename("qkv", "kernel")])
    assert "b*c*d is c*b*d if each of the c has parts of its own" in said

"""What `adapt` says where names and shapes do not settle it: each line, followed, makes the lens that is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import ckpt_schema as cs
from ckpt_schema._lens import read_sides
from ckpt_schema.orbax import _adapt as adapting


class One(nnx.Module):
    def __init__(self) -> None:
        self.c = nnx.Linear(3, 4, rngs=nnx.Rngs(0))


class Run(nnx.Module):
    def __init__(self, tx: optax.GradientTransformation) -> None:
        self.model = One()
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)


def linen_run(tx: optax.GradientTransformation) -> Any:
    params = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    return TrainState.create(apply_fn=lambda: None, params=params, tx=tx)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (("params/Dense_0", "c"), ("Dense_0", "c")),
        (("Dense_0", "params/c"), ("Dense_0", "c")),
    ],
)
def test_one_path_from_the_root_and_one_in_the_model_are_told(
    wrong: tuple[str, str], right: tuple[str, str]
) -> None:
    tx = optax.adam(1e-3)
    source, view = linen_run(tx), Run(tx)
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(source, view, rules=[cs.rename(*wrong)])
    [fault] = raised.value.mismatches  # that its leaves lack a partner follows from it
    assert fault.path == str(cs.rename(*wrong))
    assert fault.hint.endswith(
        f"both are paths in the model; write {cs.rename(*right)} in its place"
    )
    made = cs.adapt(source, view, rules=[cs.rename(*right)]).get(source, onto=nnx.state(view))
    assert np.array_equal(made["model"]["c"]["kernel"][...], source.params["Dense_0"]["kernel"])


def test_a_key_path_in_a_rule_is_told_with_the_path_in_the_model() -> None:
    tx = optax.adam(1e-3)
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(linen_run(tx), Run(tx), rules=[cs.rename("Dense_0", "model/c")])
    hints: dict[str, Any] = {fault.path: fault.hint for fault in raised.value.mismatches}
    said = hints[str(cs.rename("Dense_0", "model/c"))]
    assert said == "that is where Run stores it; rules say its path in the model, c"


# --- where hardly a path is equal, the error says how to run both models  ---

X = jnp.linspace(-1.0, 1.0, 15).reshape(3, 5)


def plain_run(p: Any) -> Any:
    return jnp.tanh(jnp.tanh(X @ p["Dense_0"]["kernel"]) @ p["Dense_1"]["kernel"])


class Twin(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(3)
        self.first = nnx.Linear(5, 5, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(5, 5, use_bias=False, rngs=rngs)

    def __call__(self) -> Any:
        return jnp.tanh(self.second(jnp.tanh(self.first(X))))


def plain_tree(count: int = 2) -> dict[str, Any]:
    kernels = [jnp.full((5, 5), 1.0 + number) for number in range(count)]
    return {f"Dense_{number}": {"kernel": kernel} for number, kernel in enumerate(kernels)}


def named_tree(count: int) -> dict[str, Any]:
    """The same under other names, which are no list."""
    names = [f"{chr(97 + number % 26)}{'x' * (number // 26)}" for number in range(count)]
    return dict(zip(names, plain_tree(count).values(), strict=True))


def adapts(path: Path, tree: Any, target: Any, **words: Any) -> Any:
    return cs.adapt(tree, target, **words)


def adapts_a_path(path: Path, tree: Any, target: Any, **words: Any) -> Any:
    return cs.adapt(path, target, **words)


def restores(path: Path, tree: Any, target: Any, **words: Any) -> Any:
    return cs.orbax.restore(path, target, **words)


def saves(path: Path, tree: Any, target: Any, **words: Any) -> Any:
    return cs.orbax.save(path.with_name("other"), target, layout=path, **words)


@pytest.mark.parametrize("call", [adapts, adapts_a_path, restores, saves])
def test_the_error_of_names_that_are_not_alike_says_how_to_discover_them(
    call: Any, tmp_path: Path
) -> None:
    path, tree, twin = tmp_path / "1", plain_tree(), Twin()
    cs.orbax.save(path, tree)
    with pytest.raises(cs.DerivationError) as raised:
        call(path, tree, twin)
    line = "found = cs.discover(source_run, source, view_run, view), then rules=found.rules"
    assert line in str(raised.value)
    found = cs.discover(plain_run, path if call is restores else tree, lambda m: m(), twin)
    call(path, tree, twin, rules=found.rules, scan=found.scan, lists=found.lists)


def test_the_line_is_not_cut_off_where_much_is_open() -> None:
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt({"params": plain_tree(40)}, {"params": named_tree(40)})
    assert "cs.discover(" in str(raised.value) and "more line" in str(raised.value)


def test_nothing_is_to_be_run_where_shapes_tell_all() -> None:
    new = {"up": {"kernel": jnp.ones((5, 4))}, "down": {"kernel": jnp.ones((4, 3))}}
    old = {f"Dense_{number}": leaf for number, leaf in enumerate(new.values())}
    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt({"params": old}, {"params": new})
    assert "cs.discover(" not in str(raised.value)
    certain: Any = raised.value.rules
    cs.adapt({"params": old}, {"params": new}, rules=certain)


def test_what_is_open_is_said_as_rules_call_it() -> None:
    """A key's bias changes nothing; a Variable's leaf is told without the level of its value."""

    class Attention(nnx.Module):
        def __init__(self) -> None:
            self.q, self.k = (nnx.Linear(5, 4, rngs=nnx.Rngs(n)) for n in (0, 1))

        def __call__(self) -> Any:
            return jax.nn.softmax(self.q(X) @ self.k(X).T, -1) @ X

    def run(p: Any) -> Any:
        query, key = (X @ p[name]["w"] + p[name]["b"] for name in ("one", "two"))
        return jax.nn.softmax(query @ key.T, -1) @ X

    old = {name: {"w": jnp.ones((5, 4)), "b": jnp.ones(4)} for name in ("one", "two")}
    found = cs.discover(run, old, lambda m: m(), Attention())
    [entry] = found.open
    assert str(entry).startswith("two/b <-> k/bias: ")
    assert entry.views == ("k/bias/value",)  # the data have key paths
    assert "/value" not in str(found)
    lens = found.lens(rules=[cs.rename(*str(entry).partition(":")[0].split(" <-> "))])
    assert len(lens.joins) == 4


def test_a_refused_adaptation_reads_each_tree_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    for module in (read_sides, adapting):
        before = module.infer_tree

        def counted(tree: object, _before: Any = before, **how: Any) -> Any:
            read.append(tree)
            return _before(tree, **how)

        monkeypatch.setattr(module, "infer_tree", counted)
    leaf, wide = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((2, 3), (5, 7)))
    old, new = ({"params": {"a": leaf, "b": each}} for each in (leaf, wide))
    with pytest.raises(cs.DerivationError):
        cs.adapt(old, new)
    assert [tree is old for tree in read] == [True, False]


@pytest.mark.parametrize("other", [{"a": 2}, {"a": 3}, 3], ids=str)
def test_a_model_of_one_array_is_told_by_its_place(other: Any) -> None:
    def state(shapes: Any) -> Any:
        params: Any = jax.tree.map(jnp.zeros, shapes)
        tree: Any = {"params": params, "opt_state": optax.adam(1.0).init(params)}
        return tree

    with pytest.raises(cs.DerivationError) as raised:
        cs.adapt(state(2), state(other))
    assert "params" in {fault.path for fault in raised.value.mismatches}
    assert "private('', own)" not in str(raised.value)
    assert cs.diff(state(2), state(other)).changes

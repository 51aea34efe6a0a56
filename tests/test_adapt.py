"""Checkpoints restored, and lenses made, without a declaration: right, or an error that says what settles it."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from support.profiles import sampled

import ckpt_schema as cs

TX = optax.adamw(1e-2)
LAYERS, EMBED, MLP, VOCAB = 3, 4, 6, 7
TOKENS = jnp.arange(10).reshape(2, 5) % VOCAB


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        h = nn.LayerNorm(name="norm")(x)
        h = nn.Dense(MLP, name="up")(h)
        return x + nn.Dense(EMBED, name="down")(nn.gelu(h)), None


class LinenModel(nn.Module):
    """Its layers unrolled, or scanned on an axis of the params."""

    axis: int | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB, EMBED, name="embed")(tokens)
        if self.axis is None:
            for i in range(LAYERS):
                x, _ = LinenBlock(name=f"layers_{i}")(x)
        else:
            axes: Any = {"params": self.axis}
            scanned = nn.scan(
                LinenBlock, variable_axes=axes, split_rngs={"params": True}, length=LAYERS
            )
            x, _ = scanned(name="layers")(x, None)
        return nn.Dense(VOCAB, name="head")(x)


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.up = nnx.Linear(EMBED, MLP, rngs=rngs)
        self.down = nnx.Linear(MLP, EMBED, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm(x)))))


class Model(nnx.Module):
    """Its layers in a list, or stacked: params on one axis, streams on axis 0."""

    def __init__(self, rngs: nnx.Rngs, axis: int | None = None) -> None:
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.axis = axis
        if axis is None:
            self.layers: Any = nnx.List([Block(rngs) for _ in range(LAYERS)])
        else:
            axes = nnx.StateAxes({nnx.Param: axis, ...: 0})
            stacked = nnx.vmap(Block, in_axes=0, out_axes=axes)
            self.layers = stacked(rngs.split(LAYERS))
        self.head = nnx.Linear(EMBED, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        if self.axis is None:
            for layer in self.layers:
                x = layer(x)
        else:
            axes = nnx.StateAxes({nnx.Param: self.axis, ...: 0})
            x = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, axes), out_axes=nnx.Carry)(
                x, self.layers
            )
        return self.head(x)


class Training(nnx.Module):
    def __init__(self, axis: int | None = None) -> None:
        self.model = Model(nnx.Rngs(0), axis)
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=nnx.Param)


@functools.cache
def linen(axis: int | None) -> TrainState:
    """A Linen run after two steps."""
    model = LinenModel(axis)
    params = jax.jit(model.init)(jax.random.key(1), TOKENS)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=TX)
    for _ in range(2):
        state, _ = linen_step(state)
    return state


def loss_of(logits: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS).mean()


@jax.jit
def linen_step(state: TrainState) -> tuple[TrainState, jax.Array]:
    loss, gradients = jax.value_and_grad(lambda p: loss_of(state.apply_fn(p, TOKENS)))(state.params)
    return state.apply_gradients(grads=gradients), loss


@nnx.jit
def step(training: Training) -> jax.Array:
    loss, gradients = nnx.value_and_grad(lambda model: loss_of(model(TOKENS)))(training.model)
    training.optimizer.update(training.model, gradients)
    return loss


@functools.cache
def folder(axis: int | None, root: Path) -> Path:
    path = root / f"linen_{axis}"
    cs.orbax.save(path, linen(axis))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapt")


def same(found: Any, wanted: Any) -> None:
    np.testing.assert_array_equal(np.asarray(found[...]), np.asarray(wanted))


def layer(params: Mapping[str, Any], number: int, axis: int | None) -> Any:
    """One layer of a Linen model, by NumPy."""
    if axis is None:
        return params[f"layers_{number}"]
    return jax.tree.map(lambda x: np.take(np.asarray(x), number, axis=axis), dict(params["layers"]))


AXES = (None, 0, 1)


# Each axis on each side once.
@pytest.mark.parametrize(("here", "there"), sampled([*itertools.product(AXES, AXES)], 4))
def test_a_linen_run_goes_on_in_nnx_by_one_line(
    here: int | None, there: int | None, root: Path
) -> None:
    training = Training(there)
    restored = cs.orbax.restore(folder(here, root), training)
    assert restored is training
    params = linen(here).params["params"]
    for number in range(LAYERS):
        block = layer(params, number, here)
        for part, leaf in (("up", "kernel"), ("down", "bias"), ("norm", "scale")):
            stored = (
                getattr(getattr(training.model.layers, part), leaf)
                if there is not None
                else (getattr(getattr(training.model.layers[number], part), leaf))
            )
            own = (
                stored[...]
                if there is None
                else jnp.take(stored[...], number, axis=min(there, stored[...].ndim - 1))
            )
            np.testing.assert_array_equal(np.asarray(own), np.asarray(block[part][leaf]))
    mu = linen(here).opt_state[0].mu["params"]["head"]["kernel"]
    same(training.optimizer.opt_state[0].mu["head"]["kernel"], mu)
    assert training.optimizer.step[...] == 2


@pytest.mark.parametrize("here", [None, 0])
def test_losses_go_on_equal_to_the_last_bit(here: int | None, root: Path) -> None:
    state, training = linen(here), cs.orbax.restore(folder(here, root), Training(here))
    for _ in range(3):
        state, loss = linen_step(state)
        assert step(training) == loss


@pytest.mark.parametrize("axis", AXES)
def test_an_nnx_run_is_saved_as_linen_has_it_and_read_by_linen(
    axis: int | None, root: Path, tmp_path: Path
) -> None:
    training = Training(None)
    step(training)
    cs.orbax.save(tmp_path / "0", training, layout=folder(axis, root))
    found = cs.orbax.restore(tmp_path / "0", linen(axis))
    block = layer(found.params["params"], 1, axis)
    same(training.model.layers[1].up.kernel, block["up"]["kernel"])
    again = cs.orbax.restore(tmp_path / "0", Training(None))
    cs.assert_trees_identical(nnx.state(again.model), nnx.state(training.model))


def test_what_an_nnx_run_saved_as_it_is_goes_into_linen(tmp_path: Path) -> None:
    training = Training(None)
    cs.orbax.save(tmp_path / "0", training)
    found = cs.orbax.restore(tmp_path / "0", linen(None))
    same(training.model.head.kernel, found.params["params"]["head"]["kernel"])


def test_weights_are_found_in_a_train_state(root: Path) -> None:
    model = Model(nnx.Rngs(0))
    cs.orbax.restore(folder(0, root), model)
    same(model.layers[2].up.kernel, linen(0).params["params"]["layers"]["up"]["kernel"][2])


def test_a_factory_is_not_run(root: Path) -> None:
    calls: list[Any] = []

    def made() -> Training:
        training = Training(None)
        calls.append(jax.tree.leaves(nnx.state(training.model))[0])
        return training

    found = cs.orbax.restore(folder(None, root), made)
    assert isinstance(calls[0], jax.core.Tracer)
    assert isinstance(found, Training)
    same(found.model.head.kernel, linen(None).params["params"]["head"]["kernel"])


def test_one_line_in_the_log_says_what_was_adapted(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ckpt_schema"):
        cs.orbax.restore(folder(0, root), Training(None))
    [line] = [record.getMessage() for record in caplog.records if record.name == "ckpt_schema"]
    assert line == "adapted linen_0 to Training: 10 leaves moved, 19 edited, 2 made, 0 left"


def test_a_lens_by_adapt_obeys_the_laws(root: Path) -> None:
    lens = cs.adapt(folder(0, root), Training(None))
    state = linen(0)
    view = lens.get({"step": jnp.int32(2), "params": state.params, "opt_state": state.opt_state})
    back = lens.put(view)
    cs.assert_trees_identical(back["params"], dict(state.params))


SHAPES = st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple)


def stacked(shape: tuple[int, ...], count: int, axis: int) -> tuple[int, ...]:
    at = axis % (len(shape) + 1)
    return (*shape[:at], count, *shape[at:])


def removals(shape: tuple[int, ...], count: int) -> dict[int, tuple[int, ...]]:
    """What one layer looks like for each axis that layers may be stacked on, by NumPy's own `take`."""
    whole = np.zeros(shape)
    return {a: whole.take(0, axis=a).shape for a in range(len(shape)) if shape[a] == count}


@hypothesis.given(
    st.lists(SHAPES, min_size=1, max_size=3), st.integers(1, 3), st.integers(-2, 1), st.booleans()
)
def test_a_stack_is_taken_if_one_axis_alone_fits(
    shapes: list[tuple[int, ...]], count: int, axis: int, turned: bool
) -> None:
    """Whatever fits two axes is an error with a line that settles it; and no answer is wrong."""
    named = {f"leaf{n}": shape for n, shape in enumerate(shapes)}
    hypothesis.assume(all(-len(s) - 1 <= axis <= len(s) for s in shapes))
    rng = np.random.default_rng(0)
    layers = [
        {name: rng.normal(size=shape).astype("float32") for name, shape in named.items()}
        for _ in range(count)
    ]
    one = {
        "params": {
            "layers": {
                name: np.stack([each[name] for each in layers], axis=axis) for name in named
            },
            "other": np.zeros((5,), "float32"),
        }
    }
    many = {
        "params": {
            **{f"layers_{n}": each for n, each in enumerate(layers)},
            "other": one["params"]["other"],
        }
    }
    readings = fitting(named, {n: x.shape for n, x in one["params"]["layers"].items()}, count)
    source, view = (many, one) if turned else (one, many)
    if len(readings) > 1:
        with pytest.raises(cs.DerivationError, match="scan=") as caught:
            cs.adapt(source, view)
        written = {line for line in str(caught.value).split() if line.startswith("scan=")}
        assert written
        lens = cs.adapt(source, view, scan={"layers": axis})
    else:
        lens = cs.adapt(source, view)
    cs.assert_trees_identical(lens.get(source), view)
    cs.assert_trees_identical(lens.put(view), source)


def fitting(
    items: Mapping[str, tuple[int, ...]], whole: Mapping[str, tuple[int, ...]], count: int
) -> set[tuple[int, ...]]:
    """All ways to stack leaves on one axis, counted from the front or from the end of each."""
    found: set[tuple[int, ...]] = set()
    for axis in range(-4, 4):
        each: list[int] = []
        for name, item in items.items():
            shape = whole[name]
            if (
                -len(shape) <= axis < len(shape)
                and removals(shape, count).get(axis % len(shape)) == item
            ):
                each.append(axis % len(shape))
        if len(each) == len(items):
            found.add(tuple(each))
    return found


def test_layers_that_stay_stacked_but_on_another_axis_take_their_square_leaves_along() -> None:
    """A kernel of as many layers as it is wide looks the same on both sides; its siblings show that it is not."""
    rng = np.random.default_rng(0)
    square = rng.normal(size=(3, 3)).astype("float32")  # layers, width
    wide = rng.normal(size=(3, 3, 5)).astype("float32")
    long = rng.normal(size=(3, 5, 3)).astype("float32")
    one = {"params": {"layers": {"a": square, "b": wide, "c": long, "d": long}}}
    two = {
        "params": {
            "layers": {
                "a": square.T.copy(),
                "b": wide.transpose(1, 0, 2).copy(),
                "c": long.transpose(1, 0, 2).copy(),
                "d": long.transpose(1, 0, 2).copy(),
            }
        }
    }
    lens = cs.adapt(one, two)
    cs.assert_trees_identical(lens.get(one), two)
    cs.assert_trees_identical(lens.put(two), one)


def test_a_stream_of_one_side_is_its_own_and_any_other_leaf_is_an_error(root: Path) -> None:
    with pytest.raises(cs.DerivationError, match="head/bias"):
        cs.adapt(
            {"params": {"head": {"kernel": np.zeros((2, 3), "float32")}}},
            {
                "params": {
                    "head": {
                        "kernel": np.zeros((2, 3), "float32"),
                        "bias": np.zeros((3,), "float32"),
                    }
                }
            },
        )


def test_a_rule_settles_what_names_do_not(root: Path) -> None:
    kernel = np.arange(6, dtype="float32").reshape(2, 3)
    old, new = {"params": {"wi": kernel}}, {"params": {"up": kernel}}
    with pytest.raises(cs.DerivationError, match="rename"):
        cs.adapt(old, new)
    lens = cs.adapt(old, new, rules=[cs.rename("wi", "up")])
    cs.assert_trees_identical(lens.get(old), new)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"scan": {"blocks": 0}}, "blocks"),
        ({"lists": ["blocks_{i}"]}, "blocks_{i}"),
    ],
)
def test_words_that_fit_neither_side_are_an_error(words: dict[str, Any], said: str) -> None:
    tree = {"params": {"layers": {"kernel": np.zeros((2, 3), "float32")}}}
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(tree, tree, **words)
    assert said in str(caught.value)


def test_a_scan_on_disk_with_streams_on_another_axis_goes_into_a_list(tmp_path: Path) -> None:
    """Variable types are lost there: leaves of another axis are told by their path."""
    training = Training(1)
    step(training)
    cs.orbax.save(tmp_path / "run", training)
    restored = cs.orbax.restore(tmp_path / "run", Training())
    kernel, stream = training.model.layers.up.kernel, training.model.layers.dropout.rngs.key
    for n, layer in enumerate(restored.model.layers):
        same(layer.up.kernel, kernel[...][:, n])
        assert (layer.dropout.rngs.key[...] == stream[...][n]).all()


def test_axes_of_one_node_are_said_by_paths(tmp_path: Path) -> None:
    class Square(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.up = nnx.Linear(2, 2, rngs=rngs)
            self.dropouts = nnx.List([nnx.Dropout(0.1, rngs=rngs) for _ in range(2)])

    rngs = nnx.Rngs(0)
    axes = nnx.StateAxes({nnx.Param: 1, ...: 0})
    stacked = nnx.vmap(Square, in_axes=0, out_axes=axes)(rngs.split(2))
    cs.orbax.save(tmp_path / "run", nnx.Dict(layers=stacked))
    target = nnx.Dict(layers=nnx.List([Square(rngs) for _ in range(2)]))
    with pytest.raises(cs.DerivationError) as caught:
        cs.orbax.restore(tmp_path / "run", target)
    assert "scan={'layers': 0, 'layers/**/up': 1}" in str(caught.value)
    for scan in (
        {"layers": 0, "layers/**/up": 1},
        {"layers": 1, "layers/**/rngs": 0},
        {"layers": 1, "layers/dropouts": 0},
    ):
        restored = cs.orbax.restore(tmp_path / "run", target, scan=scan)
        same(restored["layers"][1].up.kernel, stacked.up.kernel[...][:, 1])
        key = restored["layers"][1].dropouts[0].rngs.key
        assert (key[...] == stacked.dropouts[0].rngs.key[...][1]).all()
    with pytest.raises(cs.SchemaError, match="'layers/dropouts/rngs/key': 0"):
        cs.orbax.restore(tmp_path / "run", target, scan={"layers": 1})


class Adapted(nnx.Module):
    """A model with adapters, or without, and its optimizer and averages."""

    def __init__(self, *, lora: bool, wrt: Any = nnx.Param, ema: bool = False) -> None:
        rngs = nnx.Rngs(0)
        linear = functools.partial(nnx.LoRALinear, lora_rank=2) if lora else nnx.Linear
        self.model = nnx.Dict(
            up=linear(3, EMBED, rngs=rngs),
            layers=nnx.List([linear(EMBED, EMBED, rngs=rngs) for _ in range(2)]),
        )
        self.optimizer = nnx.Optimizer(self.model, TX, wrt=wrt)
        if ema:
            self.ema = nnx.clone(self.model)


def pasted(error: Exception) -> list[Any]:
    """The open lines of an error, all of them."""
    lines = [line.split("# ")[1] for line in str(error).split("\n") if line.startswith("    # cs.")]
    return eval(f"[{' '.join(lines)}]", {"cs": cs})


@pytest.mark.parametrize(
    ("here", "there", "lines"),
    [
        ({"lora": False}, {"lora": True}, ["**/lora"]),
        ({"lora": True}, {"lora": False}, ["**/lora"]),
        (
            {"lora": False},
            {"lora": True, "wrt": nnx.LoRAParam},
            ["opt_state/0/mu", "opt_state/0/nu", "**/lora"],
        ),
        ({"lora": False}, {"lora": False, "ema": True}, ["ema"]),
        ({"lora": False, "ema": True}, {"lora": False}, ["ema"]),
    ],
)
def test_what_one_side_alone_has_is_offered_to_keep_its_own(
    here: Any, there: Any, lines: list[str], tmp_path: Path
) -> None:
    training, target = Adapted(**here), Adapted(**there)
    cs.orbax.save(tmp_path / "run", training)
    with pytest.raises(cs.DerivationError) as caught:
        cs.orbax.restore(tmp_path / "run", target)
    assert not caught.value.rules  # nothing proves it
    rules = pasted(caught.value)
    assert rules == [cs.private(line, cs.own) for line in lines]
    wanted = nnx.state(target.model, nnx.LoRAParam)
    restored = cs.orbax.restore(tmp_path / "run", target, rules=rules)
    same(restored.model.layers[1].kernel, training.model.layers[1].kernel)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(restored.model, nnx.LoRAParam), wanted)


def test_weights_alone_out_of_a_state_with_averages_and_statistics(tmp_path: Path) -> None:
    leaf = {"norm": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
    averages = {"norm": {"scale": jnp.full(3, 2.0), "bias": jnp.zeros(3)}}
    stats = {"norm": {"mean": jnp.ones(3), "var": jnp.full(3, 4.0)}}
    tx = optax.sgd(0.1)
    state = {"step": jnp.int32(3), "params": leaf, "ema_params": averages, "batch_stats": stats}
    cs.orbax.save(tmp_path / "run", {**state, "opt_state": tx.init(leaf)})
    target = nnx.Dict(norm=nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    model = cs.orbax.restore(tmp_path / "run", target)
    same(model["norm"].var, jnp.full(3, 4.0))
    same(model["norm"].scale, jnp.ones(3))
    trained = [cs.private(f"params/norm/{name}", cs.own) for name in ("scale", "bias")]
    for private in (trained, [cs.private("params", cs.own)]):
        target = nnx.Dict(norm=nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
        served = [cs.rename("ema_params", "params"), *private]
        model = cs.orbax.restore(tmp_path / "run", target, rules=served)
        same(model["norm"].scale, jnp.full(3, 2.0))
        same(model["norm"].var, jnp.full(3, 4.0))
    with pytest.raises(cs.DerivationError, match="which are one leaf"):  # no other took its name
        cs.orbax.restore(tmp_path / "run", target, rules=[cs.private("params", cs.own)])


def test_words_beside_a_lens_are_an_error(root: Path) -> None:
    lens: Callable[..., Any] = functools.partial(cs.adapt, folder(None, root), Training(None))
    with pytest.raises(cs.ConformanceError, match="beside a lens"):
        cs.orbax.restore(folder(None, root), Training(None), lens(), scan={"layers": 0})


def test_a_list_whose_numbers_are_strings_in_memory_is_one_on_disk(tmp_path: Path) -> None:
    def params(start: float) -> Any:
        blocks = {str(i): {"w": jnp.full((2, 3), start + i)} for i in range(3)}
        return {"blocks": blocks, "head": jnp.full(2, start)}

    tx = optax.sgd(0.1, momentum=0.9)
    state, target = ({"params": params(at), "opt_state": tx.init(params(at))} for at in (5.0, 0.0))
    cs.orbax.save(tmp_path / "run", state)
    for lists in (None, ["blocks/{i}"], ["blocks/'{i}'"]):
        found = cs.orbax.restore(tmp_path / "run", target, lists=lists)
        cs.assert_trees_identical(found, state)
    stack = jnp.stack([block["w"] for block in params(5.0)["blocks"].values()])
    scanned = {"blocks": {"w": stack}, "head": params(5.0)["head"]}
    lens = cs.adapt(state, {"params": scanned, "opt_state": tx.init(scanned)})
    cs.assert_trees_identical(lens.get(state)["params"], scanned)
    # Nodes that are apart on both sides are no list of either.
    assert "blocks[]" not in str(cs.adapt(state, state).view)

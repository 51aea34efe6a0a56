"""Each layer of Flax that holds state has a block, and each block is held against the layer itself, Linen's and NNX's."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jaxtyping import Array, Float
from support.flax_layers import LINEN, MADE_OTHERWISE, NNX, filled, of_linen, of_nnx

import ckpt_schema as cs
from ckpt_schema import blocks

# Layers that Flax would rather not have any more are in checkpoints all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:keep_rngs")

SIZES = (1, 2, 5)

NO_BLOCK = {
    "linen": {
        "Module": "the base of all",
        "RNNCellBase": "the base of cells",
        "Sequential": "its layers are attributes of the model, layers_0 and layers_2",
    },
    "nnx": {
        "Module": "the base of all",
        "RNNCellBase": "the base of cells",
        "Dict": "what is in it is an attribute of a class",
        "List": "a list[...] of a schema, or attributes with the keys 0, 1, 2",
        "Sequential": "its layers are attributes of the model, with the keys layers/0 and layers/2",
    },
}


def flat(tree: Any) -> dict[tuple[Any, ...], Any]:
    """The arrays of a tree by their keys."""
    found: dict[tuple[Any, ...], Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree
    ):
        raw = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        found[tuple(step.key for step in path)] = np.asarray(raw)
    return found


def same(found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    """Raises unless both are the same arrays, to the last bit."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key].shape, found[key].dtype) == (value.shape, value.dtype), key
        assert found[key].tobytes() == value.tobytes(), key


# --- the blocks of these layers  ---


PLANE = {"kernel_size": "height width"}
HEADS = {"out_features": "heads head_dim"}
DIMS: dict[str, Mapping[str, str | int]] = {
    "Conv": PLANE,
    "ConvLSTMCell": PLANE,
    "ConvLocal": {"positions": "height width"},
    "ConvTranspose": PLANE,
    "DenseGeneral": HEADS,
    "Einsum": {"shape": "embed heads head_dim", "bias_shape": "heads head_dim"},
    "LinearGeneral": HEADS,
    "SpectralNorm": PLANE,
    "WeightNorm": PLANE,
}


def block_of(side: ModuleType, name: str) -> type[cs.Schema]:
    """The model that has a layer as ``layer``, declared by its block."""
    found: Any = getattr(side, name)
    inside: dict[str, Callable[[], Any]] = {
        "RNN": lambda: side.LSTMCell,
        "Bidirectional": lambda: (side.RNN[side.LSTMCell], side.RNN[side.SimpleCell]),
        "SpectralNorm": lambda: side.Conv,
        "WeightNorm": lambda: side.Conv,
        "LoRA": lambda: blocks.nnx.Linear,
    }
    whole = found[inside[name]()] if name in inside else found

    class Model(cs.Schema):
        layer: whole = cs.field(dims=DIMS.get(name))  # pyright: ignore[reportInvalidTypeForm]

    return Model


def layers_of(library: ModuleType) -> list[str]:
    """The public classes of modules that the installed Flax has."""
    names = (name for name in dir(library) if inspect.isclass(getattr(library, name)))
    return [name for name in names if issubclass(getattr(library, name), library.Module)]


ALL = [*itertools.product(SIZES, (False, True))]
SIDES = {"linen": (nn, LINEN), "nnx": (nnx, NNX)}


@pytest.mark.parametrize("side", ["linen", "nnx"])
def test_each_layer_of_flax_that_holds_state_has_a_block(side: str) -> None:
    library, made = SIDES[side]
    of: Any = {"linen": of_linen, "nnx": of_nnx}[side]
    named = set(getattr(blocks, side).__all__)
    known = {*made, *NO_BLOCK[side]}
    assert set(layers_of(library)) <= known, "make the new layer here, and write its block"
    stateful = {name for name in made if hasattr(library, name) and flat(of(name, 2, True))}
    assert stateful == named & set(layers_of(library)), "write a block for each of these"
    assert named <= stateful | {name for name in named if not hasattr(library, name)}


@pytest.mark.parametrize("name", sorted(blocks.linen.__all__))
def test_a_block_of_linen_is_its_layer(name: str) -> None:
    schema = cs.linen.Params[block_of(blocks.linen, name)]
    for n, full in ALL:
        report = cs.check(schema, of_linen(name, n, full))
        assert report.ok, report


@pytest.mark.parametrize("name", sorted(blocks.nnx.__all__))
def test_a_block_of_nnx_is_its_layer(name: str) -> None:
    schema = cs.nnx.Params[block_of(blocks.nnx, name)]
    lens = cs.derive(schema, schema)
    for n, full in ALL:
        state = of_nnx(name, n, full)
        report = cs.check(schema, state)
        assert report.ok, report
        if full:  # made anew, all is of the layer's own kinds, its plain arrays too
            told: dict[str, Any] = {} if name == "Dropout" else {"dtype": "float32"}
            cs.assert_trees_identical(lens.get(state, **told), state)


# --- the same layers where their arguments are other ones  ---


class Transposed(cs.Schema):
    """The leaf that ``transpose_kernel`` makes, as a derived class declares it."""

    kernel: Float[Array, "kernel_size out_features in_features"]


class LinenTransposed(Transposed, blocks.linen.ConvTranspose):
    """A block but for one leaf."""


class NnxTransposed(Transposed, blocks.nnx.ConvTranspose):
    """A block but for one leaf."""


class OfRbg(blocks.nnx.Dropout):
    """A block but for its stream."""

    rngs: cs.Stream["rbg"] = cs.field(tag="default")


class OfDropout(blocks.nnx.Dropout):
    """A block but for what its stream is called."""

    rngs: cs.Stream["fry"] = cs.field(tag="dropout")


LSTM, SIMPLE = blocks.nnx.LSTMCell, blocks.nnx.SimpleCell
OTHERWISE: dict[str, tuple[Any, Mapping[str, str | int] | None]] = {
    "Linen's BatchNorm without params": (blocks.linen.BatchNorm, None),
    "Linen's Conv of groups": (blocks.linen.Conv, None),
    "Linen's ConvTranspose, transpose_kernel": (LinenTransposed, PLANE),
    "Linen's LayerNorm of two axes": (blocks.linen.LayerNorm, {"features": "time embed"}),
    "Linen's LayerNorm without a scale": (blocks.linen.LayerNorm, None),
    "Linen's RNN of a GRUCell": (blocks.linen.RNN[blocks.linen.GRUCell], None),
    "Linen's SpectralNorm of attention": (
        blocks.linen.SpectralNorm[blocks.linen.MultiHeadAttention],
        None,
    ),
    "Linen's WeightNorm of attention": (
        blocks.linen.WeightNorm[blocks.linen.MultiHeadAttention],
        None,
    ),
    "NNX's Bidirectional with streams": (
        blocks.nnx.Bidirectional[blocks.nnx.RNN[LSTM], blocks.nnx.RNN[SIMPLE]],
        None,
    ),
    "NNX's ConvTranspose, transpose_kernel": (NnxTransposed, PLANE),
    "NNX's Dropout of rbg": (OfRbg, None),
    "NNX's Dropout with the stream dropout": (OfDropout, None),
    "NNX's LSTMCell that keeps its stream": (blocks.nnx.LSTMCell, None),
    "NNX's LayerNorm without a scale": (blocks.nnx.LayerNorm, None),
    "NNX's LoRA alone": (blocks.nnx.LoRA, None),
    "NNX's LoRA around a Linear": (blocks.nnx.LoRA[blocks.nnx.Linear], None),
    "NNX's MultiHeadAttention with the stream dropout": (blocks.nnx.MultiHeadAttention, None),
    "NNX's RNN of an OptimizedLSTMCell": (blocks.nnx.RNN[blocks.nnx.OptimizedLSTMCell], None),
    "NNX's RNN with a stream of its own": (blocks.nnx.RNN[blocks.nnx.GRUCell], None),
    "NNX's SpectralNorm of an Embed": (blocks.nnx.SpectralNorm[blocks.nnx.Embed], None),
    "NNX's WeightNorm of a Linear": (blocks.nnx.WeightNorm[blocks.nnx.Linear], None),
}
REFUSED: dict[str, tuple[Any, Mapping[str, str | int] | None, str]] = {
    "Linen's ConvTranspose, transpose_kernel": (
        blocks.linen.ConvTranspose,
        PLANE,
        "`transpose_kernel=True`",
    ),
    "Linen's Dense of complex numbers": (blocks.linen.Dense, None, "complex numbers"),
    "Linen's Dense with a product in eight bits": (blocks.linen.Dense, None, "`Fp8DotGeneralOp`"),
    "Linen's DenseGeneral, batch_dims": (blocks.linen.DenseGeneral, None, "`batch_dims`"),
    "Linen's SpectralNorm, collection_name": (
        blocks.linen.SpectralNorm[blocks.linen.Dense],
        None,
        "`collection_name`",
    ),
    "Linen's WeightNorm, feature_axes": (
        blocks.linen.WeightNorm[blocks.linen.Dense],
        None,
        "`feature_axes`",
    ),
    "Linen's WeightNorm, variable_filter": (
        blocks.linen.WeightNorm[blocks.linen.Dense],
        None,
        "`variable_filter`",
    ),
    "NNX's ConvTranspose, transpose_kernel": (
        blocks.nnx.ConvTranspose,
        PLANE,
        "`transpose_kernel=True`",
    ),
    "NNX's Dropout of rbg": (blocks.nnx.Dropout, None, "default implementation"),
    "NNX's LinearGeneral, batch_axis": (blocks.nnx.LinearGeneral, None, "`batch_axis`"),
    "NNX's WeightNorm, feature_axes": (
        blocks.nnx.WeightNorm[blocks.nnx.Linear],
        None,
        "`feature_axes`",
    ),
}
"""What a block is not, and the words by which the page on blocks says so."""


def otherwise(name: str, block: Any, dims: Mapping[str, str | int] | None) -> type[cs.Schema]:
    class Model(cs.Schema):
        layer: block = cs.field(dims=dims)  # pyright: ignore[reportInvalidTypeForm]

    params: Any = cs.linen.Params if name.startswith("Linen") else cs.nnx.Params
    return params[Model]


def test_each_layer_that_is_made_otherwise_has_a_block_or_a_reason() -> None:
    assert MADE_OTHERWISE.keys() == OTHERWISE.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_block_is_its_layer_whatever_this_is_made_with(name: str) -> None:
    schema, state = otherwise(name, *OTHERWISE[name]), MADE_OTHERWISE[name]()
    report = cs.check(schema, state)
    assert report.ok, report
    lens = cs.derive(schema, schema)
    same(flat(lens.get(state, onto=state)), flat(state))
    if "WeightNorm" not in name:  # whose scales are no leaves of the module that is made anew
        cs.assert_trees_identical(lens.get(state, onto=state), state)


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_a_block_is_not_is_refused_and_said(name: str) -> None:
    block, dims, words = REFUSED[name]
    assert not cs.check(otherwise(name, block, dims), MADE_OTHERWISE[name]()).ok
    page = Path(__file__).parent.parent / "docs" / "blocks.md"
    assert words in page.read_text()


# --- both against one another  ---

OTHER_NAMES = {"Linear": "Dense", "LinearGeneral": "DenseGeneral"}
PAIRS = [(OTHER_NAMES.get(name, name), name) for name in blocks.nnx.__all__]
BOTH = [pair for pair in PAIRS if pair[0] in blocks.linen.__all__]
RULES = {
    "OptimizedLSTMCell": blocks.nnx.OptimizedLSTMCell.gates,
    "GRUCell": (*blocks.nnx.GRUCell.gates, cs.private("**/hn/bias", 0.0)),
}


def lens_of(linen_name: str, nnx_name: str) -> cs.Lens:
    source = cs.linen.Params[block_of(blocks.linen, linen_name)]
    view = cs.nnx.Params[block_of(blocks.nnx, nnx_name)]
    return cs.derive(source, view, rules=RULES.get(nnx_name, ()))


def as_nnx(name: str, leaves: dict[tuple[Any, ...], Any]) -> dict[tuple[Any, ...], Any]:
    """The oracle: the arrays of a layer of Linen where that of NNX has them."""
    bare = {key[1:]: value for key, value in leaves.items()}

    def joined(gates: list[str], leaf: str) -> Any:
        return np.concatenate([bare["layer", gate, leaf] for gate in gates], axis=-1)

    if name == "OptimizedLSTMCell":
        return {
            ("layer", "dense_i", "kernel"): joined(["ii", "if", "ig", "io"], "kernel"),
            ("layer", "dense_h", "kernel"): joined(["hi", "hf", "hg", "ho"], "kernel"),
            ("layer", "dense_h", "bias"): joined(["hi", "hf", "hg", "ho"], "bias"),
        }
    if name == "GRUCell":
        return {
            ("layer", "dense_i", "kernel"): joined(["ir", "iz", "in"], "kernel"),
            ("layer", "dense_i", "bias"): joined(["ir", "iz", "in"], "bias"),
            ("layer", "dense_h", "kernel"): joined(["hr", "hz", "hn"], "kernel"),
        }
    found: dict[tuple[Any, ...], Any] = {}
    for key, value in bare.items():
        if "/" in key[-1]:
            *_, param, kept = key[-1].split("/")
            place = ("batch_stats", (param, kept)) if kept != "scale" else ("scales", (param,))
            found[("layer", *place)] = value
            continue
        of_simple = name == "SimpleCell" or "backward_rnn" in key
        other = {"if": "if_", **({"i": "dense_i", "h": "dense_h"} if of_simple else {})}
        found[tuple(other.get(step, step) for step in key)] = value
    return found


@pytest.mark.parametrize(("linen_name", "nnx_name"), BOTH)
def test_a_block_of_linen_is_that_of_nnx(linen_name: str, nnx_name: str) -> None:
    lens = lens_of(linen_name, nnx_name)
    for n, full in ALL:
        variables, state = of_linen(linen_name, n, full), of_nnx(nnx_name, n, full)
        found = flat(lens.get(variables, onto=state))
        own = {key: value for key, value in flat(state).items() if "rngs" in key}
        same(found, {**as_nnx(nnx_name, flat(variables)), **own})
        back = flat(lens.put(state, onto=variables))
        kept = {key: value for key, value in flat(variables).items() if key[-2:] == ("hn", "bias")}
        wanted = {key: value for key, value in flat(state).items() if "rngs" not in key}
        if nnx_name == "GRUCell":
            same({key: back[key] for key in kept}, kept)
        same(as_nnx(nnx_name, back), wanted)
        cs.assert_trees_identical(
            lens.put(lens.get(variables, onto=state), onto=variables), variables
        )


@pytest.mark.parametrize(
    "name", ["GRUCell", "LSTMCell", "MultiHeadAttention", "OptimizedLSTMCell", "SimpleCell"]
)
def test_what_comes_over_computes_the_same(name: str) -> None:
    layer, zeros = LINEN[name](2, False)
    inputs = jax.tree.map(lambda x: filled(x, 3) / 100, zeros)
    variables = jax.tree.map(lambda x: x / 100, of_linen(name, 2, False))
    if name == "GRUCell":  # of which NNX has no place
        variables["params"]["layer"]["hn"]["bias"] *= 0
    model = nnx.Dict(layer=NNX[name](2, False, nnx.Rngs(0)))
    nnx.update(model, lens_of(name, name).get(variables, onto=nnx.state(model)))
    bare = {kind: leaves["layer"] for kind, leaves in variables.items()}
    for found, expected in zip(
        jax.tree.leaves(model.layer(*inputs)),
        jax.tree.leaves(layer.apply(bare, *inputs)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_train_state_of_blocks_with_and_without_biases() -> None:
    class Model(cs.Schema):
        up: blocks.linen.Dense = cs.field(dims={"in_features": "embed", "out_features": "mlp"})
        norm: blocks.linen.BatchNorm = cs.field(dims={"features": "mlp"})
        down: blocks.linen.Dense = cs.field(dims={"in_features": "mlp", "out_features": "embed"})

    tx = optax.adam(1e-3)
    lens = cs.derive(cs.linen.TrainState[Model, tx], cs.nnx.TrainState[Model, tx])
    for bias in (False, True):
        rngs = nnx.Rngs(0)
        model = nnx.Dict(
            up=nnx.Linear(3, 5, use_bias=bias, rngs=rngs),
            norm=nnx.BatchNorm(5, use_bias=not bias, rngs=rngs),
            down=nnx.Linear(5, 3, use_bias=not bias, rngs=rngs),
        )
        training = nnx.Dict(model=model, optimizer=nnx.Optimizer(model, tx, wrt=nnx.Param))
        state = filled(nnx.state(training), 1)
        saved = lens.put(state, dtype="float32")
        assert ("bias" in saved["params"]["params"]["up"]) == bias
        assert set(saved["batch_stats"]["norm"]) == {"mean", "var"}
        assert ("bias" in saved["opt_state"][0].mu["params"]["down"]) != bias
        cs.assert_trees_identical(lens.get(saved, dtype="float32"), state)


def test_what_a_block_is_around_has_to_be_a_schema() -> None:
    wrong: Any = nn.LSTMCell
    with pytest.raises(cs.SchemaError, match="expected a Schema class, found the class LSTMCell"):
        blocks.linen.RNN[wrong]
    assert blocks.nnx.RNN[blocks.nnx.GRUCell] is blocks.nnx.RNN[blocks.nnx.GRUCell]


def test_an_abstract_state_needs_no_size_of_what_it_leaves_out() -> None:
    sizes = {"in_features": 4, "in_kv_features": 4, "num_heads": 2, "head_dim": 3}
    state: Any = cs.abstract(
        blocks.nnx.MultiHeadAttention, {**sizes, "out_features": 5}, dtype="bfloat16"
    )
    assert set(state) == {"query", "key", "value", "out"}
    assert state["out"]["kernel"].shape == (2, 3, 5)

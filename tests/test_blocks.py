"""Each layer of Flax that holds state has a block, and each block is held against the layer itself, Linen's and NNX's."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import ckpt_schema as cs
from ckpt_schema import blocks

# Layers that Flax would rather not have any more are in checkpoints all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:keep_rngs")

SIZES = (1, 2, 5)

# --- how each layer is made: of n + 1 features n + 2, and with or without what it may lack  ---


def _one(n: int) -> jax.Array:
    return jnp.zeros((2, n + 1))


def _text(n: int) -> jax.Array:
    return jnp.zeros((2, n + 3, n + 1))


def _image(n: int) -> jax.Array:
    return jnp.zeros((2, n + 3, n + 4, n + 1))


def _carry(n: int) -> jax.Array:
    return jnp.zeros((2, n + 2))


def _heads(n: int) -> dict[str, Any]:
    return {"num_heads": n + 1, "qkv_features": 3 * (n + 1), "out_features": n + 2}


Layer = tuple[nn.Module, tuple[Any, ...]]
LINEN: dict[str, Callable[[int, bool], Layer]] = {
    "BatchNorm": lambda n, b: (nn.BatchNorm(use_running_average=True, use_bias=b), (_one(n),)),
    "Bidirectional": lambda n, _: (
        nn.Bidirectional(nn.RNN(nn.LSTMCell(n + 2)), nn.RNN(nn.SimpleCell(n + 2))),
        (_text(n),),
    ),
    "Conv": lambda n, b: (nn.Conv(n + 2, (2, 3), use_bias=b), (_image(n),)),
    "ConvLSTMCell": lambda n, b: (
        nn.ConvLSTMCell(n + 2, (2, 3), use_bias=b),
        ((jnp.zeros((2, 4, 5, n + 2)),) * 2, jnp.zeros((2, 4, 5, n + 1))),
    ),
    "ConvLocal": lambda n, b: (nn.ConvLocal(n + 2, (2, 3), use_bias=b), (_image(n),)),
    "ConvTranspose": lambda n, b: (nn.ConvTranspose(n + 2, (2, 3), use_bias=b), (_image(n),)),
    "Dense": lambda n, b: (nn.Dense(n + 2, use_bias=b), (_one(n),)),
    "DenseGeneral": lambda n, b: (nn.DenseGeneral((n + 2, 3), use_bias=b), (_one(n),)),
    "Dropout": lambda n, _: (nn.Dropout(0.1, deterministic=False), (_one(n),)),
    "Einsum": lambda n, b: (nn.Einsum((n + 1, n + 2, 3), "ab,bcd->acd", use_bias=b), (_one(n),)),
    "Embed": lambda n, _: (nn.Embed(n + 7, n + 1), (jnp.zeros(2, int),)),
    "Fp8DirectDotGeneralOp": lambda n, _: _product(nn.Fp8DirectDotGeneralOp(n + 5), n),
    "Fp8DotGeneral": lambda n, _: _product(nn.Fp8DotGeneral(n + 5), n),
    "Fp8DotGeneralOp": lambda n, _: _product(nn.Fp8DotGeneralOp(n + 5), n),
    "Fp8Einsum": lambda n, _: (
        nn.Fp8Einsum(n + 5),
        ("ab,bc->ac", _one(n), jnp.zeros((n + 1, n + 2))),
    ),
    "GRUCell": lambda n, _: (nn.GRUCell(n + 2), (_carry(n), _one(n))),
    "GroupNorm": lambda n, b: (nn.GroupNorm(n + 1, use_bias=b), (_text(n),)),
    "InstanceNorm": lambda n, b: (nn.InstanceNorm(use_bias=b), (_text(n),)),
    "LSTMCell": lambda n, _: (nn.LSTMCell(n + 2), ((_carry(n),) * 2, _one(n))),
    "LayerNorm": lambda n, b: (nn.LayerNorm(use_bias=b), (_one(n),)),
    "MGUCell": lambda n, b: (nn.MGUCell(n + 2, reset_gate=b), (_carry(n), _one(n))),
    "MultiHeadAttention": lambda n, b: (
        nn.MultiHeadAttention(**_heads(n), use_bias=b, normalize_qk=b, decode=b),
        (_text(n),),
    ),
    "MultiHeadDotProductAttention": lambda n, b: (
        nn.MultiHeadDotProductAttention(**_heads(n), use_bias=b),
        (_text(n), jnp.zeros((2, 4, n + 6))),
    ),
    "NANOOFp8DotGeneralOp": lambda n, _: _product(nn.NANOOFp8DotGeneralOp(n + 5), n),
    "OptimizedLSTMCell": lambda n, _: (
        nn.OptimizedLSTMCell(n + 2),
        ((_carry(n),) * 2, _one(n)),
    ),
    "PReLU": lambda n, _: (nn.PReLU(), (_one(n),)),
    "RMSNorm": lambda n, _: (nn.RMSNorm(), (_one(n),)),
    "RNN": lambda n, _: (nn.RNN(nn.LSTMCell(n + 2)), (_text(n),)),
    "SelfAttention": lambda n, b: (
        nn.SelfAttention(**_heads(n), use_bias=b, decode=b),
        (_text(n),),
    ),
    "SimpleCell": lambda n, _: (nn.SimpleCell(n + 2), (_carry(n), _one(n))),
    "SpectralNorm": lambda n, b: (
        nn.SpectralNorm(nn.Conv(n + 2, (2, 3), use_bias=b)),
        (_image(n),),
    ),
    "WeightNorm": lambda n, b: (nn.WeightNorm(nn.Conv(n + 2, (2, 3), use_bias=b)), (_image(n),)),
}
NNX: dict[str, Callable[[int, bool, nnx.Rngs], Any]] = {
    "BatchNorm": lambda n, b, rngs: nnx.BatchNorm(n + 1, use_bias=b, rngs=rngs),
    "Bidirectional": lambda n, b, rngs: nnx.Bidirectional(
        nnx.RNN(nnx.LSTMCell(n + 1, n + 2, rngs=rngs), rngs=b),
        nnx.RNN(nnx.SimpleCell(n + 1, n + 2, rngs=rngs), rngs=b),
        rngs=b,
    ),
    "Conv": lambda n, b, rngs: nnx.Conv(n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs),
    "ConvTranspose": lambda n, b, rngs: nnx.ConvTranspose(
        n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs
    ),
    "Dropout": lambda n, b, rngs: nnx.Dropout(0.1, rngs=rngs if b else None),
    "Einsum": lambda n, b, rngs: nnx.Einsum(
        "ab,bcd->acd", (n + 1, n + 2, 3), (n + 2, 3) if b else None, rngs=rngs
    ),
    "Embed": lambda n, _, rngs: nnx.Embed(n + 7, n + 1, rngs=rngs),
    "GRUCell": lambda n, b, rngs: nnx.GRUCell(n + 1, n + 2, keep_rngs=b, rngs=rngs),
    "GroupNorm": lambda n, b, rngs: nnx.GroupNorm(n + 1, n + 1, use_bias=b, rngs=rngs),
    "InstanceNorm": lambda n, b, rngs: nnx.InstanceNorm(n + 1, use_bias=b, rngs=rngs),
    "LSTMCell": lambda n, b, rngs: nnx.LSTMCell(n + 1, n + 2, keep_rngs=b, rngs=rngs),
    "LayerNorm": lambda n, b, rngs: nnx.LayerNorm(n + 1, use_bias=b, rngs=rngs),
    "Linear": lambda n, b, rngs: nnx.Linear(n + 1, n + 2, use_bias=b, rngs=rngs),
    "LinearGeneral": lambda n, b, rngs: nnx.LinearGeneral(n + 1, (n + 2, 3), use_bias=b, rngs=rngs),
    "LoRA": lambda n, b, rngs: nnx.LoRA(
        n + 1, 3, n + 2, base_module=nnx.Linear(n + 1, n + 2, use_bias=b, rngs=rngs), rngs=rngs
    ),
    "LoRALinear": lambda n, b, rngs: nnx.LoRALinear(
        n + 1, n + 2, lora_rank=3, use_bias=b, rngs=rngs
    ),
    "MultiHeadAttention": lambda n, b, rngs: _attention(n, b, rngs),
    "OptimizedLSTMCell": lambda n, b, rngs: nnx.OptimizedLSTMCell(
        n + 1, n + 2, keep_rngs=b, rngs=rngs
    ),
    "PReLU": lambda n, _, rngs: nnx.PReLU(),
    "RMSNorm": lambda n, _, rngs: nnx.RMSNorm(n + 1, rngs=rngs),
    "RNN": lambda n, b, rngs: nnx.RNN(nnx.LSTMCell(n + 1, n + 2, rngs=rngs), rngs=b),
    "SimpleCell": lambda n, b, rngs: nnx.SimpleCell(n + 1, n + 2, keep_rngs=b, rngs=rngs),
    "SpectralNorm": lambda n, b, rngs: nnx.SpectralNorm(
        nnx.Conv(n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs), rngs=rngs
    ),
    "WeightNorm": lambda n, b, rngs: nnx.WeightNorm(
        nnx.Conv(n + 1, n + 2, (2, 3), use_bias=b, rngs=rngs), rngs=rngs
    ),
}
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


def _product(op: nn.Module, n: int) -> Layer:
    dims = (((1,), (0,)), ((), ()))
    return op, (_one(n), jnp.zeros((n + 1, n + 2)), dims)


def _attention(n: int, full: bool, rngs: nnx.Rngs) -> nnx.MultiHeadAttention:
    heads: dict[str, Any] = {
        **_heads(n),
        "in_features": n + 1,
        "use_bias": full,
        "normalize_qk": full,
    }
    made = nnx.MultiHeadAttention(**heads, dropout_rate=0.1 * full, decode=False, rngs=rngs)
    if full:
        made.init_cache((2, n + 3, n + 1))
    return made


# --- the trees of these layers, each leaf with values of its own  ---


def _filled(tree: Any, seed: int) -> Any:
    """The tree with random values in it, of any bits that are no NaN's."""
    rng = np.random.default_rng(seed)

    def value(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(int(rng.integers(2**31)))
        values = rng.normal(size=leaf.shape) * 100
        counts = jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.asarray(np.abs(values) if counts else values, leaf.dtype)

    return jax.tree.map(value, tree)


def of_linen(name: str, n: int, full: bool) -> Any:
    """The variables of a layer of Linen, in a model that has it as ``layer``."""
    layer, inputs = LINEN[name](n, full)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    told: dict[str, Any] = {"update_stats": False} if name == "SpectralNorm" else {}
    variables: Any = jax.eval_shape(lambda: layer.init(keys, *inputs, **told))
    return {kind: {"layer": leaves} for kind, leaves in _filled(variables, n).items()}


def of_nnx(name: str, n: int, full: bool) -> Any:
    """The state of a layer of NNX, in a model that has it as ``layer``."""

    def made() -> Any:
        return nnx.Dict(layer=NNX[name](n, full, nnx.Rngs(0)))

    # The plain arrays of this one are no leaves of an abstract module.
    model = made() if name == "WeightNorm" else nnx.eval_shape(made)
    return _filled(nnx.state(model), n + 100)


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
    inputs = jax.tree.map(lambda x: _filled(x, 3) / 100, zeros)
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
        state = _filled(nnx.state(training), 1)
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

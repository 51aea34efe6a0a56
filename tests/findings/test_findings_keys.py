"""Keys are any strings: those that hold slashes, dots, quotes, and several numbers in one key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs


def numbers(*shape: int, start: int = 0) -> Any:
    return jnp.asarray(np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape))


def equal(left: Any, right: Any) -> bool:
    return not cs.differences(left, right)


class Linear(cs.Schema):
    w: Float32[Array, "i o"]
    b: Float32[Array, " o"]


class Mlp(cs.Schema):
    first: Linear = cs.field(dims={"i": "a", "o": "h"})
    second: Linear = cs.field(dims={"i": "h", "o": "c"})


HAIKU = {
    "mlp/~/linear_0": {"w": numbers(2, 3), "b": numbers(3)},
    "mlp/~/linear_1": {"w": numbers(3, 4, start=9), "b": numbers(4, start=5)},
}
PLAIN = {"first": HAIKU["mlp/~/linear_0"], "second": HAIKU["mlp/~/linear_1"]}


class Haiku(cs.Schema):
    first: Linear = cs.field(key="'mlp/~/linear_0'", dims={"i": "a", "o": "h"})
    second: Linear = cs.field(key="'mlp/~/linear_1'", dims={"i": "h", "o": "c"})


class Modules(cs.Schema, joined="/", nested=1):
    """The same, as modules that stand in one another."""

    first: Linear = cs.field(key="mlp/~/linear_0", dims={"i": "a", "o": "h"})
    second: Linear = cs.field(key="mlp/~/linear_1", dims={"i": "h", "o": "c"})


@pytest.mark.parametrize("layout", [Haiku, Modules])
def test_6_haiku_keys_are_declared(layout: Any, tmp_path: Path) -> None:
    """google-research/big_vision#88, sotetsuk/pgx#1200."""
    lens = cs.derive(layout, Mlp)
    assert equal(lens.get(HAIKU), PLAIN)
    assert equal(lens.put(PLAIN), HAIKU)
    ocp.save(tmp_path / "run", HAIKU)
    target = jax.tree.map(jnp.zeros_like, PLAIN)
    assert equal(cs.orbax.restore(tmp_path / "run", target, lens), PLAIN)
    cs.orbax.save(tmp_path / "back", PLAIN, lens)
    assert equal(ocp.load(tmp_path / "back"), HAIKU)


def test_6_haiku_keys_are_inferred_and_renamed(tmp_path: Path) -> None:
    layout = cs.infer(HAIKU)
    assert "'mlp/~/linear_0'/w" in str(layout)
    rules = [cs.rename("'mlp/~/linear_0'", "first"), cs.rename("'mlp/~/linear_1'", "second")]
    assert str(rules[0]) == """rename("'mlp/~/linear_0'", 'first')"""
    lens = cs.derive(layout, cs.infer(PLAIN), rules=rules)
    assert equal(lens.get(HAIKU), PLAIN)
    ocp.save(tmp_path / "run", HAIKU)
    target = jax.tree.map(jnp.zeros_like, PLAIN)
    assert equal(cs.orbax.restore(tmp_path / "run", target, lens), PLAIN)


def test_6_moments_of_weights_with_slashes_in_their_keys(tmp_path: Path) -> None:
    tx = optax.adamw(1e-3)

    def state_of(weights: Any) -> Any:
        grads = jax.tree.map(lambda x: x + 1, weights)
        return {
            "step": jnp.int32(1),
            "params": weights,
            "opt_state": tx.update(grads, tx.init(weights), weights)[1],
        }

    lens = cs.derive(cs.linen.BareTrainState[Modules, tx], cs.linen.BareTrainState[Mlp, tx])
    state, wanted = state_of(HAIKU), state_of(PLAIN)
    assert equal(lens.get(state), wanted)
    ocp.save(tmp_path / "run", state)
    target = jax.tree.map(jnp.zeros_like, wanted)
    assert equal(cs.orbax.restore(tmp_path / "run", target, lens), wanted)


class GemmaAttention(cs.Schema):
    query: Float32[Array, "heads embed dim"] = cs.field(key="q_einsum/w")
    pair: Float32[Array, "2 kv embed dim"] = cs.field(key="kv_einsum/w")


class GemmaLayer(cs.Schema):
    attention: GemmaAttention = cs.field(key="attn")
    norm: Float32[Array, " embed"] = cs.field(key="pre_attention_norm/scale")


class Gemma(cs.Schema, joined="/", nested=1):
    """As it is released."""

    embedding: Float32[Array, "vocab embed"] = cs.field(key="transformer/embedder/input_embedding")
    layers: list[GemmaLayer] = cs.field(key="transformer/layer_{i}", length="depth")


class Stacked(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    layers: GemmaLayer = cs.field(scan="depth")


def gemma() -> Any:
    tree: dict[str, Any] = {"transformer/embedder": {"input_embedding": numbers(7, 4)}}
    for i in range(2):
        tree[f"transformer/layer_{i}/attn/q_einsum"] = {"w": numbers(2, 4, 3, start=i)}
        tree[f"transformer/layer_{i}/attn/kv_einsum"] = {"w": numbers(2, 1, 4, 3, start=i + 5)}
        tree[f"transformer/layer_{i}/pre_attention_norm"] = {"scale": numbers(4, start=i)}
    return tree


def test_6_gemma_keys_are_declared(tmp_path: Path) -> None:
    """google-deepmind/gemma: keys such as ``transformer/layer_0/attn/q_einsum``."""
    disk = gemma()
    lens = cs.derive(Gemma, Stacked)
    view = lens.get(disk)
    queries = [disk[f"transformer/layer_{i}/attn/q_einsum"]["w"] for i in range(2)]
    assert np.array_equal(view["layers"]["attn"]["q_einsum"]["w"], np.stack(queries))
    assert equal(lens.put(view), disk)
    ocp.save(tmp_path / "run", disk)
    target = jax.tree.map(jnp.zeros_like, view)
    assert equal(cs.orbax.restore(tmp_path / "run", target, lens), view)


def test_6_gemma_keys_are_inferred_as_lists_and_renamed() -> None:
    disk = gemma()
    names = ["attn/q_einsum", "attn/kv_einsum", "pre_attention_norm"]
    lists = [f"'transformer/layer_{{i}}/{name}'" for name in names]
    layout = cs.infer(disk, lists=lists)
    assert len(layout.rows) == 4
    rules = [
        cs.rename("'transformer/embedder'/input_embedding", "embedding"),
        cs.rename("'transformer/layer_/attn/q_einsum'[]", "layers[]/attn/q_einsum"),
        cs.rename("'transformer/layer_/attn/kv_einsum'[]", "layers[]/attn/kv_einsum"),
        cs.rename("'transformer/layer_/pre_attention_norm'[]", "layers[]/pre_attention_norm"),
    ]
    view = cs.derive(Gemma, Stacked).get(disk)
    lens = cs.derive(layout, cs.infer(view, scan={"layers": 0}), rules=rules)
    assert equal(lens.get(disk), view)


def test_6_joined_keys_are_inferred_as_paths() -> None:
    disk = gemma()
    layout = cs.infer(disk, joined="/", lists=["transformer/layer_{i}"])
    assert [row.key[0] for row in layout.rows if not isinstance(row.key[0], str)]
    view = cs.derive(Gemma, Stacked).get(disk)
    rules = [
        cs.rename("transformer/embedder/input_embedding", "embedding"),
        cs.rename("transformer/layer[]", "layers[]"),
    ]
    lens = cs.derive(layout, cs.infer(view, scan={"layers": 0}), rules=rules)
    assert equal(lens.get(disk), view)
    assert equal(lens.put(view), disk)
    flat = cs.infer(moe(), joined=".")
    assert "model.layers.{i}.experts.{j}.up.weight" in str(flat)
    assert equal(cs.derive(flat, flat).get(moe()), moe())


@pytest.mark.parametrize(
    ("tree", "joined", "expected"),
    [
        ({"a": numbers(2), "a.b": numbers(2)}, ".", "a leaf, or what has leaves, found both"),
        ({"a": {"b": numbers(2)}, "c": numbers(2)}, ".", "a tree of one depth"),
        ({"a": numbers(2)}, "1", "a text without digits"),
        ({0: numbers(2)}, ".", "the string keys"),
    ],
)
def test_6_keys_that_are_no_joined_paths_are_refused(tree: Any, joined: str, expected: str) -> None:
    with pytest.raises(cs.SchemaError, match=expected):
        cs.infer(tree, joined=joined)


ALPHAFOLD = {
    "alphafold/alphafold_iteration/evoformer/template_embedding//output_linear": {
        "weights": numbers(3, 2),
        "bias": numbers(2),
    },
    "alphafold/alphafold_iteration/structure_module/fold_iteration/rigid_sidechain/input_projection_1": {
        "weights": numbers(2, 3),
        "bias": numbers(3, start=7),
    },
}


def test_6_alphafold_keys_are_declared_inferred_and_renamed(tmp_path: Path) -> None:
    """Two slashes in turn are part of a key like any other."""

    class Projection(cs.Schema):
        weights: Float32[Array, "i o"]
        bias: Float32[Array, " o"]

    first, second = ALPHAFOLD

    class AlphaFold(cs.Schema):
        template: Projection = cs.field(key=f"'{first}'", dims={"i": "t"})
        sidechain: Projection = cs.field(key=f"'{second}'", dims={"o": "s"})

    class Plain(cs.Schema):
        template: Projection = cs.field(dims={"i": "t"})
        sidechain: Projection = cs.field(dims={"o": "s"})

    plain = dict(zip(("template", "sidechain"), ALPHAFOLD.values(), strict=True))
    rules = [cs.rename(f"'{first}'", "template"), cs.rename(f"'{second}'", "sidechain")]
    ocp.save(tmp_path / "run", ALPHAFOLD)
    target = jax.tree.map(jnp.zeros_like, plain)
    for lens in (
        cs.derive(AlphaFold, Plain),
        cs.derive(cs.infer(ALPHAFOLD), cs.infer(plain), rules=rules),
    ):
        assert equal(lens.get(ALPHAFOLD), plain)
        assert equal(lens.put(plain), ALPHAFOLD)
        assert equal(cs.orbax.restore(tmp_path / "run", target, lens), plain)


class Expert(cs.Schema):
    up: Float32[Array, "mlp embed"] = cs.field(key="up.weight")


class MoeLayer(cs.Schema):
    experts: list[Expert] = cs.field(length="experts")
    norm: Float32[Array, " embed"] = cs.field(key="input_layernorm/weight")


class Moe(cs.Schema, joined="."):
    layers: list[MoeLayer] = cs.field(key="model/layers/{i}", length="depth")
    head: Float32[Array, "vocab embed"] = cs.field(key="lm_head.weight")


def moe() -> Any:
    tree = {
        f"model.layers.{i}.experts.{j}.up.weight": numbers(2, 3, start=10 * i + j)
        for i in range(2)
        for j in range(12)
    }
    tree |= {f"model.layers.{i}.input_layernorm.weight": numbers(3, start=i) for i in range(2)}
    return tree | {"lm_head.weight": numbers(5, 3)}


def test_6_two_numbers_in_one_flat_key(tmp_path: Path) -> None:
    """AI-Hypercomputer/maxtext#2092: ``layers.{i}.experts.{j}.up.weight`` of safetensors files."""

    class Up(cs.Schema):
        up: Float32[Array, "embed mlp"]

    class Block(cs.Schema):
        experts: Up = cs.field(scan="experts")
        norm: Float32[Array, " embed"]

    class Scanned(cs.Schema):
        layers: Block = cs.field(scan="depth")
        head: Float32[Array, "vocab embed"]

    flat = moe()
    lens = cs.derive(Moe, Scanned)
    view = lens.get(flat)
    ups = [[flat[f"model.layers.{i}.experts.{j}.up.weight"].T for j in range(12)] for i in range(2)]
    assert np.array_equal(view["layers"]["experts"]["up"], np.asarray(ups))
    assert equal(lens.put(view), flat)
    assert "model.layers.{i}.experts.{j}.up.weight" in str(cs.layout(Moe))
    ocp.save(tmp_path / "run", flat)
    target = jax.tree.map(jnp.zeros_like, view)
    assert equal(cs.orbax.restore(tmp_path / "run", target, lens), view)


def test_6_a_symbol_inside_the_key_of_a_node() -> None:
    class Attention(cs.Schema):
        w: Float32[Array, "embed dim"]

    class Flat(cs.Schema):
        attention: list[Attention] = cs.field(key="layers.{i}.self_attn", length="depth")

    class Nested(cs.Schema):
        attention: Attention = cs.field(scan="depth")

    tree = {f"layers.{i}.self_attn": {"w": numbers(2, 3, start=i)} for i in range(3)}
    view = cs.derive(Flat, Nested).get(tree)
    assert np.array_equal(view["attention"]["w"][2], tree["layers.2.self_attn"]["w"])


def test_6_optimizer_state_of_flat_keys() -> None:
    tx = optax.adam(1e-3)

    class Same(cs.Schema):
        layers: list[MoeLayer] = cs.field(key="model/layers/{i}", length="depth")
        head: Float32[Array, "vocab embed"] = cs.field(key="lm_head.weight")

    lens = cs.derive(cs.linen.BareTrainState[Moe, tx], cs.linen.BareTrainState[Same, tx])
    params = moe()
    opt_state = tx.update(params, tx.init(params))[1]
    view = lens.get({"step": jnp.int32(1), "params": params, "opt_state": opt_state})
    nu = view["opt_state"][0].nu["model"]["layers"][1]["experts"][11]["up.weight"]
    assert np.array_equal(nu, opt_state[0].nu["model.layers.1.experts.11.up.weight"])


class Target(cs.Schema):
    layers: list[MoeLayer] = cs.field(length="depth")
    head: Float32[Array, "vocab embed"]


class TestLaws(cs.testing.LensLaws):
    """Of a lens from flat keys with two numbers each."""

    lens = cs.derive(Moe, Target)


# --- what is written wrongly  ---


def test_6_a_quote_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(cs.SchemaError, match='a closing quote, found "\'mlp/lin"'):
        cs.rename("'mlp/lin", "lin")
    with pytest.raises(cs.SchemaError, match="close it"):

        class Open(cs.Schema):
            w: Float32[Array, " a"] = cs.field(key="'mlp/lin")

        cs.layout(Open)


def test_6_a_path_that_needs_quotes_is_told() -> None:
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(cs.infer(HAIKU), cs.infer(PLAIN), rules=[cs.rename("mlp/~/linear_0", "first")])
    assert "is written in quotes: 'mlp/~/linear_0'" in str(caught.value)
    assert str(caught.value.rules[0]) == """rename("'mlp/~/linear_0'", 'first')"""


def test_6_flat_keys_that_are_declared_as_nested_are_told_of() -> None:
    class Nested(cs.Schema):
        w: Float32[Array, "a b"] = cs.field(key="model/0/w")

    report = cs.check(Nested, {"model.0.w": numbers(2, 3)})
    assert "class ...(cs.Schema, joined='.')" in str(report)


def test_6_what_joins_keys_is_a_text_without_digits() -> None:
    with pytest.raises(cs.SchemaError, match="a text without digits as joined="):

        class Joined(cs.Schema, joined="0"):
            w: Float32[Array, " a"]

        cs.layout(Joined)


def test_6_keys_of_all_kinds_side_by_side() -> None:
    """Quotes, braces, stars, brackets, nothing at all, and digits."""
    keys = ["it's", "a{i}b", "w*", "a[0]", "[]", "", "0", "x/'0'/y", '"', "é/ü"]
    tree = {key: numbers(2, start=at) for at, key in enumerate(keys)}
    layout = cs.infer(tree)
    assert equal(cs.derive(layout, layout).get(tree), tree)
    view = {f"k{at}": tree[key] for at, key in enumerate(keys)}
    named = {str(row.key[0]): "/".join(row.path[row.body or 0 :]) for row in layout.rows}
    rules = [cs.rename(named[key], f"k{at}") for at, key in enumerate(keys)]
    assert equal(cs.derive(layout, cs.infer(view), rules=rules).get(tree), view)

"""Errors are part of the interface: the whole text of what a user is told, and that the same is there as data."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jaxtyping import Array, Float32, Inexact, Int32, UInt32

import ckpt_schema as cs
from ckpt_schema.errors import Mismatch, format_faults


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]


class Matrix(cs.Schema):
    kernel: Float32[Array, "embed mlp"]


class LinenBlock(cs.Schema):
    norm: Norm = cs.field(key="LayerNorm_0")
    qkv: Float32[Array, "embed 3*heads*head_dim"]


class Linen(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    layers: LinenBlock = cs.field(scan="depth", axis=1)


class NnxBlock(cs.Schema):
    norm: Norm
    qkv: Float32[Array, "3 heads head_dim embed"]
    dropout: cs.Stream["urbg"] = cs.field(default=cs.fresh_key(0))


class Nnx(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    layers: list[NnxBlock] = cs.field(length="depth")


TX = optax.sgd(0.1)
LENS = cs.derive(cs.linen.TrainState[Linen, TX], cs.nnx.TrainState[Nnx, TX])


def linen_state(**changes: Any) -> dict[str, Any]:
    """A tree of the source."""
    layers = {"LayerNorm_0": {"scale": jnp.ones((4, 2))}, "qkv": jnp.zeros((4, 2, 18))}
    params = {"embedding": jnp.zeros((7, 4)), "layers": layers}
    return {"step": jnp.int32(3), "params": {"params": params}, **changes}


def told(use: Callable[[], Any], error: type[cs.CkptSchemaError]) -> str:
    """The text of the error that ``use`` raises."""
    with pytest.raises(error) as caught:
        use()
    assert type(caught.value) is error
    text = str(caught.value)
    assert " leaves: expected" in text or all(
        f"expected {fault.expected}, found {fault.found}" in text and fault.hint in text
        for fault in caught.value.mismatches
    )
    return text


def text(expected: str) -> str:
    """An indented block as the lines it holds."""
    return textwrap.dedent(expected).strip("\n")


# --- declarations  ---


def test_a_class_that_is_not_well_formed() -> None:
    def declare() -> None:
        class Block(cs.Schema):
            norm: nn.LayerNorm  # type: ignore[name-defined]
            kernel: Inexact[Array, "embed mlp"]
            layers: list[Norm]
            mlp: Norm = cs.field(dims={"embd": "mlp"})
            dropout: cs.Stream["urbg"] = cs.field(default=0)

    assert told(declare, cs.SchemaError) == text("""
        schema test_a_class_that_is_not_well_formed.<locals>.declare.<locals>.Block is not well formed: 5 faults
          Block.norm         expected an annotation that evaluates, found 'nn.LayerNorm': NameError: name 'nn' is not defined
                             -> define or import what it names before the class
          Block.kernel       expected exactly one dtype, found several dtypes
                             -> write one dtype, such as Float32 or BFloat16, or Float for any float
          Block.layers       expected length= on a list, found none
                             -> write field(length="depth")
          Block.mlp          expected dims= to rename a dim used below (embed), found 'embd'
                             -> write dims={"old": "new"}
          Block.dropout/key  expected fresh_key(seed) as the default of a key, found 0
                             -> write default=fresh_key(0)
    """)


def test_an_annotation_that_is_no_leaf_and_no_schema() -> None:
    def declare() -> None:
        class Model(cs.Schema):
            weights: dict

    assert told(declare, cs.SchemaError) == text("""
        schema test_an_annotation_that_is_no_leaf_and_no_schema.<locals>.declare.<locals>.Model is not well formed: 1 fault
          Model.weights  expected a leaf or a schema, found dict
                         -> write Float32[Array, "embed mlp"], Key["urbg"], Stream["urbg"], a Schema class, or list[...] of one of them
    """)


def test_two_leaves_at_one_key_path() -> None:
    class Twins(cs.Schema):
        first: Norm = cs.field(key="layers_0")
        layers: list[Norm] = cs.field(key="layers_{i}", length="depth")

    assert told(lambda: cs.linen.Params[Twins], cs.SchemaError) == text("""
        layout linen.Params[Twins] is not well formed: 1 fault
          params/layers_0/scale  expected one leaf at a key path, found params/layers[]/scale (params/layers_{i}/scale) and params/first/scale
                                 -> two leaves cannot share a key path: give one of them another key=
    """)


def test_an_envelope_without_an_optimizer() -> None:
    assert told(lambda: cs.linen.TrainState[Norm], cs.SchemaError) == text("""
        linen.TrainState[...] is not well formed: 1 fault
          argument  expected a Schema class and an optax transformation, found no transformation
                    -> write linen.TrainState[Body, optax.adamw(3e-4)]; for weights alone, linen.Params[Body]
    """)


def test_what_is_no_schema() -> None:
    assert told(lambda: cs.check({"scale": 1.0}, Norm), cs.SchemaError) == text("""
        cannot make a layout: 1 fault
          argument  expected a Schema class, found a dict
                    -> declare a class ...(ckpt_schema.Schema), or read a layout off a tree with ckpt_schema.infer(tree)
    """)


def test_an_optimizer_state_whose_type_depends_on_sizes() -> None:
    assert told(
        lambda: cs.linen.BareTrainState[Matrix, optax.adafactor(1e-3)], cs.SchemaError
    ) == text("""
        the optimizer state of linen.BareTrainState cannot be typed for all sizes: 3 faults
          opt_state/0/v_row/kernel  expected one type for all sizes, found float32[1] or float32[mlp]
                                    -> its type depends on the sizes: give them, linen.BareTrainState[Body, tx, {"embed": ..., "mlp": ...}]
          opt_state/0/v_col/kernel  expected one type for all sizes, found float32[1] or float32[embed]
                                    -> its type depends on the sizes: give them, linen.BareTrainState[Body, tx, {"embed": ..., "mlp": ...}]
          opt_state/0/v/kernel      expected one type for all sizes, found float32[embed mlp] or float32[1]
                                    -> its type depends on the sizes: give them, linen.BareTrainState[Body, tx, {"embed": ..., "mlp": ...}]
    """)


def test_an_optimizer_state_that_mixes_params() -> None:
    assert told(
        lambda: cs.linen.BareTrainState[Matrix, optax.flatten(optax.adam(1e-3))], cs.SchemaError
    ) == text("""
        the optimizer state of linen.BareTrainState cannot be typed for all sizes: 2 faults
          opt_state/0/mu  expected a leaf for each param, or one shape for all sizes, found float32[15]
                          -> it mixes params, whose order a layout may change: no lens can carry it
          opt_state/0/nu  expected a leaf for each param, or one shape for all sizes, found float32[15]
                          -> it mixes params, whose order a layout may change: no lens can carry it
    """)


# --- derivation  ---


class Renamed(cs.Schema):
    embed: Float32[Array, "vocab embed"]
    layers: list[NnxBlock] = cs.field(length="depth")
    head: Float32[Array, "embed vocab"]


def test_rows_without_a_place() -> None:
    tx = optax.adam(1e-3)
    assert told(
        lambda: cs.derive(cs.linen.TrainState[Linen, tx], cs.nnx.TrainState[Renamed, tx]),
        cs.DerivationError,
    ) == text("""
        no lens from linen.TrainState[Linen] to nnx.TrainState[Renamed]: 3 faults
          params/embedding  expected a partner in nnx.TrainState[Renamed], found float32[vocab embed] in linen.TrainState[Linen] alone
                            and in opt_state/0/mu, opt_state/0/nu
                            -> one of model/embed, model/head may be it: say which with a rename
          params/embed      expected a partner in linen.TrainState[Linen], found float32[vocab embed] in nnx.TrainState[Renamed] alone
                            and in opt_state/0/mu, opt_state/0/nu
                            -> it may be params/params/embedding, which nothing proves: if it is, say so with a rename
          params/head       expected a partner in linen.TrainState[Linen], found float32[embed vocab] in nnx.TrainState[Renamed] alone
                            and in opt_state/0/mu, opt_state/0/nu
                            -> it may be params/params/embedding, which nothing proves: if it is, say so with a rename
    """)


class Before(cs.Schema):
    dims: Float32[Array, "x y"]
    twice: Float32[Array, "x x y"]
    impl: cs.Key["urbg"]
    dtype: Float32[Array, " x"]
    raw: cs.Key["fry"]
    layers: Norm = cs.field(scan="depth")


class After(cs.Schema):
    dims: Float32[Array, "x z"]
    twice: Float32[Array, "y x x"]
    impl: cs.Key["rbg"]
    dtype: Int32[Array, " x"]
    raw: UInt32[Array, " 2"]
    layers: list[Norm] = cs.field(length="layers")


def test_rows_that_no_edit_relates() -> None:
    assert told(lambda: cs.derive(Before, After), cs.DerivationError) == text("""
        no lens from Before to After: 6 faults
          dims            expected float32[x z] as in the view, found float32[x y] in the source
                          -> the dims must have the same factors; they differ in: y z. Declare the same on both sides, or say apart('dims') if the two share only their name
          twice           expected float32[y x x] as in the view, found float32[x x y] in the source
                          -> x occurs twice in one leaf: name the axes apart with different dims or labels, or say the order of the axes: rename('twice', 'twice', axes='2 0 1'), or '2 1 0'
          impl            expected key<rbg>[] as in the view, found key<urbg>[] in the source
                          -> a key keeps its implementation: declare the same on both sides
          dtype           expected int32[x] as in the view, found float32[x] in the source
                          -> only integers are cast to integers, and floats to floats, where that keeps their values: declare one dtype on both sides, and cast the tree yourself
          raw             expected uint32[2] as in the view, found key<fry>[] in the source
                          -> a key is no array of its data: declare Key["..."] on both sides, or say raw_key('raw')
          layers[]/scale  expected float32[embed] as in the view, found float32[depth embed] in the source
                          -> repeats: layers in the view, depth in the source; count them with the same dim
    """)


def test_rules_that_match_nothing_or_contradict() -> None:
    rules = [cs.rename("leyers[]", "layers[]"), cs.private("dtype", 0)]
    assert told(lambda: cs.derive(Before, Before, rules=rules), cs.DerivationError) == text("""
        no lens from Before (source) to Before (view): 2 faults
          rename('leyers[]', 'layers[]')  expected a leaf of Before (source) at leyers[] or below, found none
                                          -> near: layers[]
          private('dtype', 0)             expected a leaf without a partner, found dtype, which both sides have
                                          -> drop the rule, or say apart('dtype', 0) if the two share only their name
        to paste, for 1 of 2:
        rules=[
            cs.apart('dtype', 0),
        ]
    """)


def test_two_source_leaves_for_one_view_leaf() -> None:
    class Pair(cs.Schema):
        a: Norm
        b: Norm

    class Single(cs.Schema):
        a: Norm

    assert told(
        lambda: cs.derive(Pair, Single, rules=[cs.rename("b", "a")]), cs.DerivationError
    ) == text("""
        no lens from test_two_source_leaves_for_one_view_leaf.<locals>.Pair to test_two_source_leaves_for_one_view_leaf.<locals>.Single: 1 fault
          a/scale  expected one source leaf for one view leaf, found a/scale and b/scale
                   -> rename one of them, or say that the one which no rule renames is private
    """)


def test_lenses_that_do_not_compose() -> None:
    assert told(
        lambda: cs.derive(Norm, Norm) >> cs.derive(LinenBlock, LinenBlock), cs.DerivationError
    ) == text("""
        Norm and LinenBlock are not one layout, so their lenses do not compose: 3 faults
          LayerNorm_0/scale  expected nothing, found float32[embed]
          qkv                expected nothing, found float32[embed 3*heads*head_dim]
          scale              expected float32[embed], found nothing
    """)


def test_lenses_whose_layout_between_is_declared_in_two_ways() -> None:
    class Whole(cs.Schema):
        q: Float32[Array, "heads*head_dim embed"]

    class Halves(cs.Schema):
        q: Float32[Array, "heads*2*half embed"]

    assert told(
        lambda: cs.derive(Whole, Whole) >> cs.derive(Halves, Halves), cs.DerivationError
    ) == text("""
        test_lenses_whose_layout_between_is_declared_in_two_ways.<locals>.Whole and test_lenses_whose_layout_between_is_declared_in_two_ways.<locals>.Halves are not one layout, so their lenses do not compose: 1 fault
          q  expected float32[heads*head_dim embed], found float32[heads*2*half embed]
             -> the axes are declared otherwise; if it is one array all the same, derive the second lens from the layout that the first one makes: derive(first.view, ...)
    """)


def test_a_dim_that_is_bound_and_is_none() -> None:
    assert told(lambda: LENS.bind(head=2), cs.DerivationError) == text("""
        no dims to bind between linen.TrainState[Linen] and nnx.TrainState[Nnx]: 1 fault
          head  expected a dim of either layout (depth, embed, head_dim, heads, vocab), found an unknown name
    """)


# --- trees  ---


def test_a_tree_with_many_faults() -> None:
    state = copy.deepcopy(linen_state(step=jnp.uint32(3), extra=jnp.zeros(2)))
    layers = state["params"]["params"]["layers"]
    layers["LayerNorm_1"] = layers.pop("LayerNorm_0")
    layers["qkv"] = jnp.zeros((4, 2, 17))
    assert told(
        lambda: cs.assert_conforms(LENS.source, state, {"heads": 2, "embed": 4}),
        cs.ConformanceError,
    ) == text("""
        the tree does not conform to linen.TrainState[Linen]: 5 faults
          extra                                   expected nothing, found float32[2]
          params/params/layers/LayerNorm_0/scale  expected float32[embed=4 depth=2], found nothing
                                                  -> near: params/params/layers/LayerNorm_1/scale
          params/params/layers/LayerNorm_1/scale  expected nothing, found float32[4 2]
                                                  -> near: params/params/layers/LayerNorm_0/scale
          params/params/layers/qkv                expected float32[embed=4 depth=2 3*heads*head_dim], found float32[4 2 17]
                                                  -> 17 is no multiple of 6 in 3*heads*head_dim
          step                                    expected int32[], found uint32[]
                                                  -> nothing is cast silently; cast it yourself, or declare this dtype
        dims: heads=2 (from argument), embed=4 (from argument), vocab=7 (from params/params/embedding), depth=2 (from params/params/layers/qkv)
    """)


class Keys(cs.Schema):
    typed: cs.Key["urbg"]
    raw: UInt32[Array, " 4"]
    other: cs.Key["urbg"]
    layers: list[Norm] = cs.field(length="depth")
    norms: list[Norm] = cs.field(length="depth")


def test_keys_of_both_kinds() -> None:
    urbg = jax.random.key(0, impl="unsafe_rbg")
    norm = {"scale": jnp.ones(2)}
    tree = {
        "typed": jax.random.key_data(urbg), "raw": urbg, "other": jax.random.key(0, impl="rbg"),
        "layers": {"0": norm, "1": norm}, "norms": {0: norm, 2: norm},
    }  # fmt: skip
    assert told(lambda: cs.assert_conforms(Keys, tree, {"depth": 2}), cs.ConformanceError) == text("""
        the tree does not conform to Keys: 7 faults
          layers/'{0,1}'/scale  2 leaves: expected int key {0,1}, found str key '{0,1}'
                                -> a save turns int keys into strings; pass the tree as it was loaded, or declare the keys it has
          norms/1/scale         expected float32[embed=2], found nothing
          norms/2/scale         expected 2 repeats (depth), found index 2
                                -> dims: depth=2 (from argument)
          other                 expected key<urbg>[], found key<rbg>[]
                                -> a key never changes its implementation; declare the one the state has
          raw                   expected uint32[4], found key<urbg>[]
                                -> a typed key: declare Key["..."] or take jax.random.key_data of it
          typed                 expected key<urbg>[], found uint32[4]
                                -> raw key data: wrap it with jax.random.wrap_key_data(data, impl=...), with the impl it was made with
        dims: depth=2 (from argument), embed=2 (from layers/'0'/scale)
    """)


def test_a_dict_with_keys_of_both_kinds() -> None:
    tree = {"layers": {0: {"scale": 1.0}, "1": {"scale": 1.0}}}
    assert told(lambda: cs.check(Keys, tree), cs.ConformanceError) == text("""
        the tree cannot be read: 1 fault
          layers  expected keys of one kind, found int key 0 and str key '1'
                  -> a dict must not have both kinds; a save turns int keys into strings
    """)


def test_a_tree_of_the_other_side() -> None:
    class Left(cs.Schema):
        a: Norm

    class Right(cs.Schema):
        a: Norm = cs.field(key="b")

    lens = cs.derive(Left, Right)
    where = "test_a_tree_of_the_other_side.<locals>"
    assert told(lambda: lens.put({"a": {"scale": jnp.ones(2)}}), cs.ConformanceError) == text(f"""
        the tree conforms to {where}.Left, not to {where}.Right; it is on the other side of the lens already, swap get and put: 2 faults
          a/scale  expected nothing, found float32[2]
                   -> near: b/scale
          b/scale  expected float32[embed], found nothing
                   -> near: a/scale
    """)


def test_a_dim_that_neither_tree_tells() -> None:
    assert told(lambda: LENS.get(linen_state()), cs.ConformanceError) == text("""
        linen.TrainState[Linen] cannot be taken to nnx.TrainState[Nnx]: 1 fault
          model/layers/{i}/qkv  expected every dim of float32[3 heads head_dim embed] bound, found no size for head_dim, heads
                                -> no tree tells: lens.bind(head_dim=..., heads=...); of the factors or terms of one axis, one follows from the others
    """)


def test_a_step_out_of_range() -> None:
    assert told(
        lambda: LENS.bind(heads=2).get(linen_state(step=jnp.int32(-1))), cs.ConformanceError
    ) == text("""
        values cannot be carried over exactly: 1 fault
          step  expected values of uint32 (0 to 4294967295), found -1
                -> int32 -> uint32 would wrap
    """)
    assert told(
        lambda: LENS.bind(heads=2).get(linen_state(step=2**31)), cs.ConformanceError
    ).splitlines()[1:3] == [
        "  step  expected int32[], found Python int 2147483648",
        "        -> the value must fit the dtype exactly",
    ]


def test_an_onto_that_disagrees() -> None:
    class Wide(cs.Schema):
        w: Float32[Array, "a b"]

    class Tall(cs.Schema):
        w: Float32[Array, "b a"]

    where = "test_an_onto_that_disagrees.<locals>"
    lens = cs.derive(Wide, Tall)
    assert told(
        lambda: lens.get({"w": jnp.ones((2, 3))}, onto={"w": jnp.ones((3, 5))}), cs.ConformanceError
    ) == text(f"""
        onto does not conform to {where}.Tall: 1 fault
          w  expected float32[b=3 a=2], found float32[3 5]
             -> dims: a=2 (from w of {where}.Wide), b=3 (from w of {where}.Wide)
        dims: a=2 (from w of {where}.Wide), b=3 (from w of {where}.Wide)
    """)


def test_a_leaf_that_has_no_value() -> None:
    class More(Norm):
        mean: Float32[Array, " embed"] | None

    tree = {"scale": jnp.ones(2)}
    onto = jax.eval_shape(lambda: {**tree, "mean": jnp.ones(2)})
    assert told(lambda: cs.derive(Norm, More).get(tree, onto=onto), cs.ConformanceError) == text("""
        test_a_leaf_that_has_no_value.<locals>.More cannot be filled from Norm: 1 fault
          mean  expected a value for float32[embed], found an abstract leaf
                -> pass a concrete tree, or declare a default
    """)


# --- inference  ---


def test_a_tree_no_layout_can_be_read_off() -> None:
    assert told(
        lambda: cs.infer({"params": {"name": "gpt", "w": jnp.ones(2)}}), cs.SchemaError
    ) == text("""
        no layout (inferred) can be read off the tree: 1 fault
          params/name  expected an array, an abstract value or a number, found a str
                       -> no array of jax holds text: keep it beside the state, as save(also=...) does
    """)


def test_options_that_do_not_fit_the_tree() -> None:
    tree = {"params": {"layers": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}}}
    assert told(
        lambda: cs.infer(tree, scan={"layers": 1, "blocks": 0}, lists=["head_{i}"]), cs.SchemaError
    ) == text("""
        scan= and lists= do not fit the tree: 3 faults
          layers/b  expected a leaf with axis 1, found float32[3]
                    -> give it its own beside, as scan={'layers/b': 0}, or None where it is not stacked
          blocks    expected a node of the model, found no leaf below it
                    -> write its path in the model, without params or model in front
          head_{i}  expected a repeated node of the model, found no such node
                    -> write its path in the model, without params or model in front; outside of the model, its whole key path
    """)


# --- what nobody guesses: the cause, and the way around  ---


def test_a_plain_schema_against_weights_is_one_of_weights() -> None:
    class Lin(cs.Schema):
        w: Float32[Array, "a b"] = cs.field(key="weight")

    class Left(cs.Schema):
        lin: Lin
        emb: Float32[Array, "v a"]

    class Right(cs.Schema):
        lin: Lin = cs.field(key="linear")
        emb: Float32[Array, "a v"]

    assert len(cs.derive(Left, cs.nnx.Params[Right]).joins) == 2
    assert len(cs.derive(cs.linen.BareParams[Left], cs.nnx.Params[Right]).joins) == 2


def test_keys_that_hold_a_slash() -> None:
    class Slashed(cs.Schema):
        w: Float32[Array, "a b"] = cs.field(key="layer_0/mlp/linear")

    w = jnp.ones((2, 3))
    cure = "the tree has it as one key: key=\"'layer_0/mlp/linear'\", or class ...(cs.Schema, joined='/')"
    assert told(
        lambda: cs.assert_conforms(Slashed, {"layer_0/mlp/linear": w}), cs.ConformanceError
    ) == text(f"""
        the tree does not conform to test_keys_that_hold_a_slash.<locals>.Slashed: 2 faults
          'layer_0/mlp/linear'  expected nothing, found float32[2 3]
                                -> {cure}
          layer_0/mlp/linear    expected float32[a b], found nothing
                                -> {cure}
    """)
    lens = lambda: cs.derive(  # noqa: E731
        cs.infer({"mlp/~/lin": {"w": w}}),
        cs.infer({"lin": {"w": w}}),
        rules=[cs.rename("mlp/~/lin", "lin")],
    )
    assert told(lens, cs.DerivationError) == text("""
        no lens from inferred (source) to inferred (view): 3 faults
          rename('mlp/~/lin', 'lin')  expected a leaf of inferred (source) at mlp/~/lin or below, found none
                                      -> one key that holds a slash is written in quotes: 'mlp/~/lin'
          params/'mlp/~/lin'/w        expected a partner in inferred (view), found float32[2 3] in inferred (source) alone
                                      -> only lin/w can be it; rename("'mlp/~/lin'", 'lin') joins them
          params/lin/w                expected a partner in inferred (source), found float32[2 3] in inferred (view) alone
                                      -> only 'mlp/~/lin'/w can be it; rename("'mlp/~/lin'", 'lin') joins them
        to paste, for 2 of 3:
        rules=[
            cs.rename("'mlp/~/lin'", 'lin'),
        ]
    """)


def test_layers_that_are_no_list() -> None:
    w = jnp.ones((4, 4))
    side = {"params": {f"layer_{i}": {"w": w, "v": w} for i in range(60)}}
    listed = cs.infer({"params": {"layers": [{"w": w, "v": w}] * 60}}, lists=["layers/{i}"])
    assert told(lambda: cs.derive(cs.infer(side), listed), cs.DerivationError) == text("""
        no lens from inferred (source) to inferred (view): 1 fault
          params/layer_{0..59}  expected one list of layers, as in inferred (view), found 60 nodes side by side in inferred (source)
                                -> infer(tree, lists=["layer_{i}"]) reads them as one; in a class, list[...] = field(key="layer_{i}", length=...)
    """)


class Cell(cs.Schema):
    w: Float32[Array, " c"]


def test_a_list_that_may_run_into_another() -> None:
    class Net(cs.Schema):
        a: list[Cell] = cs.field(key="Block_{i}", length="few")
        b: list[Cell] = cs.field(key="Block_{i+2}", length="more", dims={"c": "d"})

    class Known(Net):
        a: list[Cell] = cs.field(key="Block_{i}", length=2)

    assert told(lambda: cs.layout(Net), cs.SchemaError) == text("""
        layout test_a_list_that_may_run_into_another.<locals>.Net is not well formed: 1 fault
          Block_{i+2}/w  expected one leaf at a key path, found a[]/w (Block_{i}/w) and b[]/w
                         -> two leaves cannot share a key path: say how many a[] there are as a number, length=2, so that they end before Block_{i+2} begins; or give one of them another key=
    """)
    assert len(cs.layout(Known).rows) == 2


def test_another_number_of_layers() -> None:
    class Net(cs.Schema):
        layers: list[Cell] = cs.field(key="layers_{i}", length=6)

    tx = optax.adam(1e-3)
    params = {f"layers_{i}": {"w": jnp.ones(3)} for i in range(60)}
    state = {"step": jnp.int32(0), "params": params, "opt_state": tx.init(params)}
    assert told(
        lambda: cs.assert_conforms(cs.linen.BareTrainState[Net, tx], state), cs.ConformanceError
    ) == text("""
        the tree does not conform to linen.BareTrainState[Net]: 162 faults
          params/layers_{6..59}/w  54 leaves: expected 6 repeats, found index {6..59}
                                   and in opt_state/0/mu, opt_state/0/nu
                                   -> their number is declared, by length=
        dims: c=3 (from opt_state/0/mu/layers_0/w)
    """)


def test_a_leaf_that_may_be_lacking_is_written_as_in_a_dataclass() -> None:
    class Lacking(cs.Schema):
        w: Float32[Array, "a b"]
        bias: Float32[Array, " b"] | None = None

    assert cs.check(Lacking, {"w": jnp.ones((2, 3))}).ok

    def declare() -> None:
        class Required(cs.Schema):
            bias: Float32[Array, " b"] = None

    assert "a leaf that a tree may lack is written bias: ... | None" in told(
        declare, cs.SchemaError
    )


def test_an_inferred_layout_as_the_body_of_another_framework() -> None:
    table: Any = cs.infer({"params": {"w": jnp.ones(2)}})
    assert told(lambda: cs.nnx.TrainState[table, optax.sgd(0.1)], cs.SchemaError) == text("""
        inferred has no place in this train state: 1 fault
          params  expected a model of Variables, found a model in dicts
                  -> infer the model of the same framework, or declare it as a class
    """)


def test_parts_of_which_one_lacks_the_axis() -> None:
    class Whole(cs.Schema):
        qkv: Float32[Array, "1+2 heads dim"]

    class Parts(cs.Schema):
        q: Float32[Array, "heads dim"]
        kv: Float32[Array, "2 heads dim"]

    class Named(cs.Schema):
        qkv: Float32[Array, "a+b heads dim"]

    class Around(cs.Schema):
        q: Float32[Array, "a heads dim"]
        kv: Float32[Array, "b heads dim"]

    rule = [cs.fuse("qkv", ["q", "kv"])]
    where = "test_parts_of_which_one_lacks_the_axis.<locals>"
    whole = {"qkv": jnp.arange(30.0).reshape(3, 2, 5)}
    lens = cs.derive(Whole, Parts, rules=rule)
    got = lens.get(whole)
    assert (got["q"].shape, got["kv"].shape) == ((2, 5), (2, 2, 5))
    cs.assert_trees_identical(lens.put(got), whole)
    sizes = {"a": 1, "b": 2}
    assert told(
        lambda: cs.derive(Named, Parts, rules=rule, dims=sizes), cs.DerivationError
    ) == text(f"""
        no lens from {where}.Named to {where}.Parts: 1 fault
          qkv  expected float32[a heads dim] in q, a part of it, found float32[heads dim]
               -> the dims must have the same factors; they differ in: a
    """)
    got = cs.derive(Named, Around, rules=rule, dims={"a": 1, "b": 2}).get(
        {"qkv": jnp.ones((3, 2, 5))}
    )
    assert (got["q"].shape, got["kv"].shape) == ((1, 2, 5), (2, 2, 5))


def test_a_train_state_with_more_fields() -> None:
    w = {"w": jnp.ones(3)}
    tree = {"step": jnp.int32(0), "params": w, "opt_state": TX.init(w), "ema": w}
    tree["key"] = jax.random.key(0)
    table = cs.linen.BareTrainState[Cell, optax.adam(1e-3)]
    tree["opt_state"] = optax.adam(1e-3).init(w)
    more = "linen.BareTrainState[Cell] holds step, params, opt_state: declare what is beside it in a schema of your own, or pass these alone"
    assert told(lambda: cs.assert_conforms(table, tree), cs.ConformanceError) == text(f"""
        the tree does not conform to linen.BareTrainState[Cell]: 2 faults
          ema/w  expected nothing, found float32[3]
                 -> {more}
          key    expected nothing, found key<fry>[]
                 -> {more}
        dims: c=3 (from opt_state/0/mu/w)
    """)


# --- the formatter  ---


def faults(paths: Iterable[str], *said: str) -> list[Mismatch]:
    """The same fault at several paths."""
    return [Mismatch(path, *(said or ("missing", "float32[2]", "nothing", ""))) for path in paths]


def test_faults_that_differ_in_numbers_alone_are_one_pattern() -> None:
    found = faults(f"layers/{i}/w" for i in range(100))
    found += faults(f"experts_{i:02}/{j}/w" for i in range(8, 12) for j in (0, 1, 5))
    found += faults(["layers/1/v"])
    found += [
        Mismatch(f"d_{i}/k", "extra", "nothing", "float32[3]", f"near: b/d_{i}/l")
        for i in (3, 4, 5, 7)
    ]
    assert format_faults("header", found, ["note"]) == text("""
        header: 117 faults
          layers/{0..99}/w            100 leaves: expected float32[2], found nothing
          experts_{08..11}/{0,1,5}/w  12 leaves: expected float32[2], found nothing
          layers/1/v                  expected float32[2], found nothing
          d_{3..5,7}/k                4 leaves: expected nothing, found float32[3]
                                      -> near: b/d_{3..5,7}/l
        note
    """)


def test_the_size_of_an_axis_is_no_number_of_a_layer() -> None:
    found = [
        Mismatch(f"layers_{i}/w", "shape", "float32[8]", f"float32[{i} 32]") for i in (2, 3, 32)
    ]
    assert len(format_faults("header", found).splitlines()) == 1 + 3


def test_a_moment_is_told_with_its_param() -> None:
    said = ("dtype", "float32[8]", "float16[8]", "cast it")
    found: list[Mismatch] = []
    for place in ("opt_state/0/mu", "opt_state/0/nu", "params"):
        mirrored = "" if place == "params" else "params"
        for layer in range(3):
            own, other = f"{place}/layers_{layer}/w", f"{mirrored}/layers_{layer}/w"
            found.append(Mismatch(own, *said, mirrors=other if mirrored else ""))
    found.append(Mismatch("opt_state/0/mu/b", *said, mirrors="params/b"))
    found.append(Mismatch("opt_state/0/nu/b", *said, mirrors="params/b"))
    found.append(Mismatch("params/c", "unplaced", "a partner", "none", also=("opt_state/0/mu",)))
    assert format_faults("header", found) == text("""
        header: 12 faults
          params/layers_{0..2}/w  3 leaves: expected float32[8], found float16[8]
                                  and in opt_state/0/mu, opt_state/0/nu
                                  -> cast it
          opt_state/0/mu/b        expected float32[8], found float16[8]
                                  and in opt_state/0/nu
                                  -> cast it
          params/c                expected a partner, found none
                                  and in opt_state/0/mu
    """)


def test_a_message_has_forty_lines_at_most_and_counts_the_rest() -> None:
    names = [a + b for a in "abcdefghij" for b in "abcdefghij"]
    found = faults(f"{name}/{i}" for name in names for i in range(3))
    found = [
        dataclasses.replace(one, hint="look", rules=(cs.rename(one.path, "x"),)) for one in found
    ]
    error = cs.DerivationError("header", found, [f"note {n}" for n in range(30)])
    lines = str(error).splitlines()
    assert len(lines) <= 40
    assert lines[0] == "header: 300 faults"
    assert "  ... and 95 more patterns (285 leaves) in .mismatches" in lines
    assert "    # ... and 284 more in .rules" in lines
    assert lines[-1] == "... and 23 more lines in .notes"
    assert len(error.mismatches) == len(error.rules) == 300
    assert len(error.notes) == 30


def test_what_is_left_out_of_a_message_makes_no_column_wide() -> None:
    faults = [cs.Mismatch(f"{a}{b}/w", "missing", "a", "b") for a in "abcdefgh" for b in "abcdefgh"]
    long = cs.Mismatch("z" * 50, "missing", "a", "b")
    lines = str(cs.ConformanceError("x", [*faults, long])).splitlines()
    assert "zzz" not in "".join(lines)
    assert lines[1] == "  aa/w  expected a, found b"


def test_rules_are_printed_as_code_to_paste() -> None:
    found = [
        Mismatch("a", "unplaced", "x", "y", rules=(cs.rename("a", "b"),)),
        Mismatch("b", "unplaced", "x", "z", rules=(cs.rename("a", "b"),)),
        Mismatch("k", "unplaced", "x", "z", rules=(cs.private("k", cs.fresh_key(0)),)),
        Mismatch("c", "unplaced", "x", "z"),
    ]
    error = cs.DerivationError("header", found)
    assert str(error) == text("""
        header: 4 faults
          a  expected x, found y
          b  expected x, found z
          k  expected x, found z
          c  expected x, found z
        to paste, for 3 of 4:
        rules=[
            cs.rename('a', 'b'),
            cs.private('k', cs.fresh_key(0)),
        ]
    """)
    assert error.rules == (cs.rename("a", "b"), cs.private("k", cs.fresh_key(0)))


def test_a_message_survives_a_process_boundary() -> None:
    error = cs.ConformanceError("header", faults(["a/1", "a/2"]), ["note"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.mismatches, again.notes) == (error.mismatches, error.notes)


def test_no_number_of_faults_is_left_open() -> None:
    """``1 fault`` and ``3 faults`` are said by the formatter, once; a header has no number."""
    root = Path(cs.__file__).parent
    pages = [*root.rglob("*.py"), *(root.parent / "docs").glob("*.md"), root.parent / "README.md"]
    open_number = re.compile(
        r"(?:fault|difference|leaf|checkpoint|symbol|error|rule|file)\(s\)|: 1 fault\"|\)\} faults?\""
    )
    assert not [
        (page, open_number.findall(page.read_text()))
        for page in pages
        if open_number.search(page.read_text())
    ]


def test_the_root_has_a_name() -> None:
    assert (
        str(Mismatch("", "extra", "nothing", "float32[2]"))
        == "(root): expected nothing, found float32[2]"
    )
    assert (
        str(Mismatch("a", "dtype", "int8", "int4", "cast it"))
        == "a: expected int8, found int4 (cast it)"
    )
    assert (
        format_faults("h", [Mismatch("", "extra", "nothing", "float32[2]")])
        == "h: 1 fault\n  (root)  expected nothing, found float32[2]"
    )


def test_every_error_of_the_library_has_one_base() -> None:
    for error in (
        cs.SchemaError,
        cs.DerivationError,
        cs.ConformanceError,
        cs.CheckpointMismatchError,
    ):
        assert issubclass(error, cs.CkptSchemaError)
        assert error("header").mismatches == ()
    assert issubclass(cs.CheckpointMismatchError, cs.ConformanceError)

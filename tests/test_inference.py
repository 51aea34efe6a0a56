"""``infer``: a layout read off any tree, the same from every container, and good for a lens without a class."""

from __future__ import annotations

import collections
import copy
import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from flax_models import (
    DEPTH,
    OPTIMIZERS,
    NnxDecoder,
    NnxSchema,
    NnxTrainState,
    ScannedSchema,
    UnrolledSchema,
    linen_logits,
    linen_state,
    linen_variables,
    nnx_logits,
    nnx_module,
    nnx_state,
    on_disk,
)

import ckpt_schema as cs
from ckpt_schema._trees.containers import flatten_plain

TX = OPTIMIZERS["chain schedule"]
SCAN = {"layers": 1}
LINEN_TO_NNX = [
    cs.rename("layers[]/LayerNorm_0", "layers[]/norm1"),
    cs.rename("layers[]/LayerNorm_1", "layers[]/norm2"),
    cs.rename("layers[]/MultiHeadDotProductAttention_0", "layers[]/attention"),
    cs.rename("layers[]/Dense_0", "layers[]/wi"),
    cs.rename("layers[]/Dense_1", "layers[]/wo"),
    cs.private("layers[]/dropout", cs.fresh_key(0)),
    cs.private("layers[]/attention/rngs", cs.fresh_key(0)),
]


def sds(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    """An abstract leaf."""
    return jax.ShapeDtypeStruct(shape, dtype)


def spelled(layout: cs.Layout) -> dict[str, tuple[str, str, Any]]:
    """Key path, stored leaf and repeats of every row, by logical path."""
    return {
        "/".join(r.path): (
            "/".join(map(str, r.key)),
            str(r.stored),
            [(s.size, s.axis) for s in r.repeats],
        )
        for r in layout.rows
    }


def fixed(declared: type[cs.Schema], sizes: dict[str, int]) -> cs.Layout:
    """A declared layout with its dims replaced by their sizes."""
    layout = cs.layout(declared)

    def repeat(r: Any) -> Any:
        axis = r.axis
        return dataclasses.replace(r, size=tuple(sizes.get(n, n) for n in r.size), axis=axis)

    rows = [
        dataclasses.replace(
            row,
            leaf=dataclasses.replace(
                row.leaf, dims=tuple(tuple(sizes.get(n, n) for n in dim) for dim in row.leaf.dims)
            ),
            repeats=tuple(map(repeat, row.repeats)),
        )
        for row in layout.rows
    ]
    return dataclasses.replace(layout, rows=tuple(rows))


SIZES = {"vocab": 11, "embed": 8, "mlp": 16, "heads": 2, "head_dim": 4, "depth": DEPTH}


# --- every container  ---


@pytest.mark.parametrize("bare", [False, True], ids=["variables", "bare"])
@pytest.mark.parametrize(
    "optimizer", ["sgd", "sgd momentum", "adam", "adamw bfloat16 mu", "chain schedule"]
)
@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_what_is_inferred_is_what_would_be_declared(optimizer: str, scan: bool, bare: bool) -> None:
    tx = OPTIMIZERS[optimizer]
    state = linen_state(tx, scan=scan, bare=bare)
    inferred = cs.infer(state, **({"scan": SCAN} if scan else {"lists": ["layers_{i}"]}))
    envelope = cs.linen.BareTrainState if bare else cs.linen.TrainState
    declared = fixed(envelope[ScannedSchema if scan else UnrolledSchema, tx], SIZES)
    keys = {key: (leaf, repeats) for key, leaf, repeats in spelled(inferred).values()}
    assert keys == {key: (leaf, repeats) for key, leaf, repeats in spelled(declared).values()}
    assert set(inferred.nodes) == set(declared.nodes)
    assert cs.check(inferred, state) == []


@pytest.mark.parametrize("optimizer", ["sgd", "adamw bfloat16 mu", "chain schedule"])
def test_what_is_inferred_of_nnx_is_what_is_declared(optimizer: str) -> None:
    tx = OPTIMIZERS[optimizer]
    state = nnx_state(tx)
    inferred, declared = cs.infer(state), fixed(cs.nnx.TrainState[NnxSchema, tx], SIZES)
    assert {k[0]: k[1:] for k in spelled(inferred).values()} == {
        k[0]: k[1:] for k in spelled(declared).values()
    }
    kinds = {row.key: (row.kind, row.metadata) for row in declared.rows}
    assert {row.key: (row.kind, row.metadata) for row in inferred.rows} == kinds


def _linen_containers() -> dict[str, Any]:
    state = linen_state(TX)
    fields = {"step": jnp.int32(state.step), "params": state.params, "opt_state": state.opt_state}
    return {
        "TrainState": state,
        "abstract": jax.eval_shape(lambda: state),
        "dict": fields,
        "frozen": flax.core.freeze(fields),
        "on disk": on_disk(state),
    }


def _nnx_containers() -> dict[str, Any]:
    module = nnx_module(TX)
    state = nnx.state(module)
    return {
        "module": module,
        "abstract module": nnx.eval_shape(lambda: NnxTrainState(NnxDecoder(nnx.Rngs(0)), TX)),
        "State": state,
        "abstract": jax.eval_shape(lambda: state),
        "pure dict": nnx.to_pure_dict(state),
        "on disk": on_disk(state),
        "pure dict on disk": on_disk(nnx.to_pure_dict(state)),
    }


@pytest.mark.parametrize(
    ("containers", "options"), [(_linen_containers, {"scan": SCAN}), (_nnx_containers, {})]
)
def test_every_container_has_one_layout(
    containers: Callable[[], dict[str, Any]], options: dict[str, Any]
) -> None:
    trees = containers()
    layouts = {name: cs.infer(tree, **options) for name, tree in trees.items()}
    first = next(iter(layouts.values()))
    for name, layout in layouts.items():
        assert spelled(layout) == spelled(first), name
        for other, tree in trees.items():
            assert cs.check(layout, tree) == [], f"the layout of {name} against {other}"


def test_every_container_of_weights_has_one_layout() -> None:
    variables = linen_variables(scan=False)
    layouts = [
        cs.infer(tree)
        for tree in (variables, flax.core.freeze(variables), jax.eval_shape(lambda: variables))
    ]
    assert spelled(layouts[0]) == spelled(layouts[1]) == spelled(layouts[2])
    model = nnx_module(TX).model
    state = nnx.state(model)
    trees = (
        model,
        state,
        nnx.to_pure_dict(state),
        on_disk(state),
        on_disk(nnx.to_pure_dict(state)),
    )
    first, *others = [spelled(cs.infer(tree)) for tree in trees]
    assert all(other == first for other in others)
    assert "params/layers[]/attention/value/kernel" in first


# --- lenses without classes  ---


def _inferred_lens(*, scan: bool = True) -> cs.Lens:
    options: dict[str, Any] = {"scan": SCAN} if scan else {"lists": ["layers_{i}"]}
    source = cs.infer(linen_state(TX, scan=scan), name="linen", **options)
    return cs.derive(source, cs.infer(nnx_state(TX), name="nnx"), rules=LINEN_TO_NNX)


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "unrolled"])
def test_a_lens_between_inferred_layouts_translates_a_real_model(scan: bool) -> None:
    lens = _inferred_lens(scan=scan)
    state, module = linen_state(TX, scan=scan), nnx_module(TX)
    made = lens.get(state)
    assert jax.tree.structure(made) == jax.tree.structure(nnx.state(module))
    nnx.update(module, made)
    np.testing.assert_allclose(
        nnx_logits(module.model), linen_logits(state.params, scan=scan), rtol=1e-5, atol=1e-6
    )
    cs.assert_trees_identical(lens.put(made, onto=state), state)


def test_the_inferred_lens_does_what_the_declared_one_does() -> None:
    declared = cs.derive(cs.linen.TrainState[ScannedSchema, TX], cs.nnx.TrainState[NnxSchema, TX])
    state, view = linen_state(TX), nnx_state(TX)
    # Default keys follow the logical paths, which infer spells as the tree does: `onto` has its own.
    cs.assert_trees_identical(
        _inferred_lens().get(state, onto=view), declared.get(state, onto=view)
    )
    cs.assert_trees_identical(_inferred_lens().put(view), declared.put(view))


def test_abstract_trees_are_enough_for_the_lens() -> None:
    source = (
        cs.infer(jax.eval_shape(lambda: linen_state(TX)), scan=SCAN)
        if False
        else cs.infer(_abstract_linen(), scan=SCAN)
    )
    view = cs.infer(nnx.eval_shape(lambda: NnxTrainState(NnxDecoder(nnx.Rngs(0)), TX)))
    cs.assert_trees_identical(
        cs.derive(source, view, rules=LINEN_TO_NNX).get(linen_state(TX)),
        _inferred_lens().get(linen_state(TX)),
    )


def _abstract_linen() -> Any:
    return jax.eval_shape(
        lambda v: TrainState.create(apply_fn=None, params=v, tx=TX), linen_variables(scan=True)
    )


def test_an_inferred_layout_derives_to_a_declared_one_of_fixed_sizes() -> None:
    inferred = cs.infer(linen_variables(scan=False), lists=["layers_{i}"])
    declared = cs.derive(inferred, inferred)
    cs.assert_trees_identical(
        declared.get(linen_variables(scan=False)), linen_variables(scan=False)
    )


def test_sizes_of_an_inferred_layout_are_fixed() -> None:
    layout = cs.infer({"params": {"w": sds(2, 3)}})
    assert [(m.path, m.kind) for m in cs.check(layout, {"params": {"w": sds(2, 4)}})] == [
        ("params/w", "shape")
    ]


# --- repeated nodes  ---


def tree(count: int = 3, **more: Any) -> dict[str, Any]:
    """A variables dict with ``count`` blocks."""
    block = {"w": sds(2, 3), "deep": {"b": sds(3)}}
    return {"params": {**{f"block_{i}": block for i in range(count)}, **more}}


def test_lists_are_named_by_their_pattern() -> None:
    rows = spelled(cs.infer(tree(11), lists=["block_{i}"]))
    assert rows == {
        "params/block[]/w": ("params/block_{i}/w", "float32[2 3]", [((11,), None)]),
        "params/block[]/deep/b": ("params/block_{i}/deep/b", "float32[3]", [((11,), None)]),
    }
    assert len(cs.infer(tree(11)).rows) == 22


def test_a_list_below_another_node() -> None:
    nested = {"params": {"encoder": tree()["params"], "decoder": tree()["params"]}}
    rows = spelled(cs.infer(nested, lists=["encoder/block_{i}", "decoder/block_{n}"]))
    assert sorted(rows) == [
        f"params/{side}/block[]/{leaf}"
        for side in ("decoder", "encoder")
        for leaf in ("deep/b", "w")
    ]


def test_int_keys_of_equal_members_are_a_list_and_others_are_not() -> None:
    block, other = {"w": sds(2)}, {"w": sds(3)}
    equal = {"model": {"layers": {0: block, 1: block}}, "optimizer": {"step": sds(dtype="uint32")}}
    assert "params/layers[]/w" in spelled(cs.infer(equal))
    for members in (
        {0: block, 1: other},
        {0: block, 2: block},
        {0: block, 1: {"w": sds(2), "b": sds(2)}},
    ):
        layout = cs.infer({**equal, "model": {"layers": members}})
        assert not any("[]" in path for path in spelled(layout))
        assert cs.check(layout, {**equal, "model": {"layers": members}}) == []


def test_scanned_nodes_have_the_axis_taken_out_of_each_leaf() -> None:
    stacked = {"params": {"layers": {"w": sds(2, 5, 3), "b": sds(3, 5)}, "head": sds(3)}}
    layout = cs.infer(stacked, scan={"layers": 1})
    assert {"/".join(r.path): str(r.leaf) for r in layout.rows} == {
        "params/layers[]/w": "float32[2 3]", "params/layers[]/b": "float32[3]", "params/head": "float32[3]",
    }  # fmt: skip
    last = cs.infer(stacked, scan={"layers": -1})
    assert {str(r.leaf) for r in last.rows} == {"float32[2 5]", "float32[3]"}


# --- what a tree may hold  ---


class Net(nn.Module):
    """A network with batch normalization."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The network in evaluation mode."""
        return nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))


class Custom(TrainState):
    """A train state with more fields, as users write it."""

    batch_stats: Any = None
    key: Any = None
    ema: Any = None


def _custom() -> Custom:
    variables = Net().init(jax.random.key(0), jnp.ones((2, 3)))
    return Custom.create(
        apply_fn=None,
        params=variables["params"],
        tx=optax.adam(1e-3),
        batch_stats=variables["batch_stats"],
        key=jax.random.key(1, impl="rbg"),
        ema=variables["params"],
    )


def test_more_fields_of_a_train_state_keep_their_own_paths() -> None:
    state = _custom()
    layout = cs.infer(state)
    rows = spelled(layout)
    assert rows["key"] == ("key", "key<rbg>[]", [])
    assert rows["ema/Dense_0/kernel"] == ("ema/Dense_0/kernel", "float32[3 4]", [])
    assert rows["params/BatchNorm_0/mean"] == ("batch_stats/BatchNorm_0/mean", "float32[4]", [])
    assert rows["opt_state/0/mu/Dense_0/kernel"] == (
        "opt_state/0/mu/Dense_0/kernel",
        "float32[3 4]",
        [],
    )
    assert cs.check(layout, state) == []
    cs.assert_trees_identical(cs.derive(layout, layout).get(state, onto=state), state)


def test_without_an_optimizer_state_that_has_leaves() -> None:
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(2)}, tx=optax.sgd(0.1))
    assert sorted(spelled(cs.infer(state))) == ["params/w", "step"]
    assert sorted(spelled(cs.infer(on_disk(state)))) == ["params/w", "step"]


def test_collections_of_weights_alone_are_one_model() -> None:
    variables = Net().init(jax.random.key(0), jnp.ones((2, 3)))
    rows = spelled(cs.infer(variables))
    assert rows["params/BatchNorm_0/mean"][0] == "batch_stats/BatchNorm_0/mean"
    assert rows["params/BatchNorm_0/scale"][0] == "params/BatchNorm_0/scale"


def test_boxes_are_no_part_of_the_layout() -> None:
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(
                4, kernel_init=nn.with_partitioning(nn.initializers.ones, ("embed", "mlp"))
            )(x)

    boxed = Boxed().init(jax.random.key(0), jnp.ones((2, 3)))
    layout = cs.infer(boxed)
    assert sorted(spelled(layout)) == ["params/Dense_0/bias", "params/Dense_0/kernel"]
    assert cs.check(layout, boxed) == []
    assert cs.check(layout, nn.unbox(boxed)) == []
    state = TrainState.create(apply_fn=None, params=boxed, tx=optax.adam(1e-3))
    assert "opt_state/0/mu/Dense_0/kernel" in spelled(cs.infer(state))


@pytest.mark.parametrize(
    "tx",
    [
        optax.adafactor(1e-3),
        optax.lbfgs(),
        optax.masked(optax.adam(1e-3), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        optax.MultiSteps(optax.adam(1e-3), 2),
        optax.inject_hyperparams(optax.adam)(1e-3),
        optax.apply_if_finite(optax.adam(1e-3), 3),
        optax.add_noise(0.1, 0.1, 0),
        optax.partition(
            {"a": optax.adam(1e-3), "b": optax.sgd(0.1)},
            lambda p: jax.tree.map(lambda x: "ab"[x.ndim > 1], p),
        ),
    ],
    ids=["adafactor", "lbfgs", "masked", "MultiSteps", "inject", "finite", "noise", "partition"],
)
def test_any_optimizer_state_is_read_and_rebuilt(tx: optax.GradientTransformation) -> None:
    params = {
        "dense": {"kernel": jnp.ones((4, 6)), "bias": jnp.zeros(6)},
        "norm": {"scale": jnp.ones(6)},
    }
    state = TrainState.create(apply_fn=None, params=params, tx=tx)
    layout = cs.infer(state)
    assert cs.check(layout, state) == []
    assert cs.check(layout, on_disk(state)) == []
    lens = cs.derive(layout, layout)
    cs.assert_trees_identical(lens.get(state, onto=state), state)


# --- errors  ---


def faults(infer: Callable[[], Any]) -> list[tuple[str, str]]:
    """Path and kind of every fault of the error that ``infer`` raises."""
    with pytest.raises(cs.SchemaError) as caught:
        infer()
    return [(m.path, m.kind) for m in caught.value.mismatches]


def test_leaves_that_are_no_arrays_are_all_named() -> None:
    assert faults(lambda: cs.infer({"a": "x", "b": sds(2), "c": {"d": object()}})) == [
        ("a", "leaf"),
        ("c/d", "leaf"),
    ]


def test_a_scan_that_does_not_fit_is_named_leaf_by_leaf() -> None:
    stacked = {"params": {"layers": {"w": sds(2, 5, 3), "b": sds(5)}}}
    assert faults(lambda: cs.infer(stacked, scan={"layers": 1, "blocks": 0})) == [
        ("layers/b", "shape"),
        ("blocks", "rule"),
    ]


def test_a_list_that_is_none_is_named() -> None:
    ragged = tree(3, block_3={"w": sds(2, 3)})
    assert faults(lambda: cs.infer(ragged, lists=["block_{i}", "layers_{i}"])) == [
        ("block_{i}", "rule"),
        ("layers_{i}", "rule"),
    ]
    assert faults(lambda: cs.infer(tree(), lists=["block_{i}/{j}"]))
    assert faults(lambda: cs.infer(tree(), lists=["block"]))


def test_a_tree_that_jax_cannot_flatten_is_refused() -> None:
    with pytest.raises(cs.ConformanceError, match="must not have both kinds"):
        cs.infer({"a": {0: sds(2), "1": sds(2)}})


def test_what_a_mask_leaves_of_a_saved_chain_stands_where_its_leaves_do() -> None:
    """Two transformations of a partition, as MaxText saves those of Muon: dicts of digits, and None where the other is."""
    leaf = jnp.ones(2)
    masked = {"0": {"mu": {"a": leaf, "b": None}}, "2": {"count": jnp.int32(1)}}
    tree = {"params": {"a": leaf, "b": leaf}, "opt_state": {"inner_state": masked}}
    lens = cs.derive(layout := cs.infer(tree), layout)
    assert [node.key for node in layout.nodes] == [("opt_state", "inner_state", 0, "mu", "b")]
    masked = {0: masked["0"], 2: masked["2"]}
    wanted = {"params": {"a": leaf, "b": leaf}, "opt_state": {"inner_state": masked}}
    cs.assert_trees_identical(lens.put(tree), wanted)


def test_digits_beside_words_stay_strings() -> None:
    tree = {"0": jnp.ones(2), "00": jnp.ones(2), "z": {"0": jnp.ones(2), "1": jnp.ones(2)}}
    lens = cs.derive(cs.infer(tree), cs.infer(tree))
    cs.assert_trees_identical(lens.get(tree, onto=tree), tree)
    assert {type(key) for key in lens.get(tree)} == {str}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scan": ["a"]}, r"scan +expected axes by path, found \['a'\]"),
        ({"scan": {"a": "0"}}, "scan +expected axes by path"),
        ({"lists": "a_{i}"}, "lists +expected a list of patterns, found 'a_{i}'"),
        ({"scan": 0, "lists": [1]}, "2 fault"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(cs.SchemaError, match=says):
        cs.infer({"a": jnp.ones(3)}, **arguments)


@pytest.mark.parametrize("leaf", [3.0, jnp.ones(3)])
def test_a_lone_leaf_has_no_layout(leaf: Any) -> None:
    with pytest.raises(cs.SchemaError, match="expected a dict or another container"):
        cs.infer(leaf)


def test_a_layout_is_read_off_a_class_a_function_and_a_path_and_named_after_it(
    tmp_path: Path,
) -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.up = nnx.Linear(2, 3, rngs=rngs)

    class Sized(nnx.Module):
        def __init__(self, size: int, *, rngs: nnx.Rngs) -> None:
            self.up = nnx.Linear(size, 3, rngs=rngs)

    model = Model(nnx.Rngs(0))
    cs.orbax.save(tmp_path / "run", model)
    layouts = [cs.infer(given) for given in (model, Model, lambda: Sized(2, rngs=nnx.Rngs(0)))]
    layouts.append(cs.infer(str(tmp_path / "run")))
    assert [one.name for one in layouts] == ["Model", "Model", "Sized", "run"]
    assert len({tuple((row.path, row.leaf) for row in one.rows) for one in layouts}) == 1
    assert cs.infer(Model, name="mine").name == "mine"
    with pytest.raises(cs.SchemaError, match=r"lambda: Sized\(\.\.\.\)"):
        cs.infer(Sized)


def test_layers_that_share_a_stream_go_into_a_stack_and_a_list_and_back(tmp_path: Path) -> None:
    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.up = nnx.Linear(4, 5, rngs=rngs)
            self.rngs = rngs

    def unrolled() -> Any:
        rngs = nnx.Rngs(0)
        return nnx.Dict(layers=nnx.List([Block(rngs) for _ in range(3)]))

    def named() -> Any:
        rngs = nnx.Rngs(1)
        return nnx.Dict({f"layers_{i}": Block(rngs) for i in range(3)})

    def scanned() -> Any:
        axes = nnx.StateAxes({nnx.Param: 1, ...: 0})
        return nnx.Dict(layers=nnx.vmap(Block, in_axes=0, out_axes=axes)(nnx.Rngs(2).split(3)))

    def second(model: Any) -> Any:
        if "layers_1" in dir(model):
            return model["layers_1"].up.kernel[...]
        layers = model["layers"]
        return layers[1].up.kernel[...] if isinstance(layers, nnx.List) else layers.up.kernel[:, 1]

    for number, here in enumerate((unrolled, named, scanned)):
        path, wanted = tmp_path / str(number), here()
        cs.orbax.save(path, wanted)
        for there in (unrolled, named, scanned):
            if {here, there} != {unrolled, named}:
                found = cs.orbax.restore(path, there())
                assert (second(found) == second(wanted)).all()
    rules = [cs.rename("layers_0", "layers/0")]  # as the error prints it, for the stream
    found = cs.orbax.restore(tmp_path / "1", unrolled(), rules=rules)
    assert (second(found) == second(named())).all()


class Mark(NamedTuple):
    """What no save would leave."""

    value: Any


@pytest.mark.parametrize("pattern", ["blocks/{i}", "blocks/'{i}'"])
@pytest.mark.parametrize("kind", [str, int])
def test_a_list_is_named_whether_its_numbers_are_strings_or_not(pattern: str, kind: Any) -> None:
    def block() -> Any:
        return {"experts": {kind(j): {"w": jnp.ones((2, 3))} for j in range(2)}}

    blocks = {"blocks": {kind(i): block() for i in range(3)}}
    state = {"params": blocks, "mark": Mark(jnp.ones(1))}
    patterns = [pattern, f"{pattern}/experts/{{i}}"]
    layout = cs.infer(state, lists=patterns)
    assert ("params", "blocks[]", "experts[]", "w") in [row.path for row in layout.rows]
    assert cs.check(layout, state).ok
    index = "{i}" if kind is int else "'{i}'"
    assert f"params/blocks/{index}/experts/{index}/w" in str(layout)


# --- what makes large trees quick to read  ---


LEAF = jax.ShapeDtypeStruct((2, 3), "float32")
PLAIN = {"b": {"d": LEAF, "c": np.ones(2)}, "a": LEAF, "a_10": {"z": jnp.ones(3)}}
ODD = {  # one thing in each that is not a dict with string keys, or not an array
    "a list": {"b": [LEAF], "a": LEAF},
    "an int key": {"b": {1: LEAF}, "a": LEAF},
    "an empty dict": {"b": {}, "a": LEAF},
    "None": {"b": None, "a": LEAF},
    "a number": {"b": 1, "a": LEAF},
    "text": {"b": "x", "a": LEAF},
    "a module": {"b": nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "a": LEAF},
    "a leaf": LEAF,
}


def test_a_plain_tree_is_read_as_jax_reads_it() -> None:
    found = flatten_plain(PLAIN)
    assert found is not None
    flat, treedef = jax.tree_util.tree_flatten_with_path(PLAIN)
    assert found.keys == [tuple(entry.key for entry in path) for path, _ in flat]
    assert all(ours is theirs for ours, (_, theirs) in zip(found.leaves, flat, strict=True))
    assert found.treedef == treedef and found.stored


@pytest.mark.parametrize("name", ODD)
def test_nothing_else_is_taken_for_a_plain_tree(name: str) -> None:
    assert flatten_plain(ODD[name]) is None


def test_a_row_is_closed_once_it_is_made_and_can_be_copied() -> None:
    row = cs.infer({"a": LEAF}).rows[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.path = ("b",)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del row.path
    assert row.key == ("a",) and row.path == ("params", "a")
    copies = copy.copy(row), copy.deepcopy(row), pickle.loads(pickle.dumps(row))
    for one in (*copies, dataclasses.replace(row)):
        assert one == row and hash(one) == hash(row) and type(one) is type(row)
    assert dataclasses.replace(row, optional=True) != row


class Scaled(nnx.Module):
    """A module that keeps arrays and keys in no Variable."""

    def __init__(self) -> None:
        self.kernel = nnx.Param(jnp.ones(3))
        self.scale = nnx.data(jnp.full(3, 2.0))
        self.key = nnx.data(jax.random.key(5))


def test_an_array_that_is_in_no_variable_stays_one() -> None:
    state = nnx.state(Scaled())
    layout = cs.infer(state)
    kinds = {row.key: row.kind for row in layout.rows}
    assert kinds == {("kernel",): nnx.Param, ("scale",): jax.Array, ("key",): jax.Array}
    assert "float32[3]  Array" in str(layout)
    cs.assert_trees_identical(cs.adapt(state, state).get(state), state)
    assert cs.from_json(cs.to_json(layout), cs.Layout) == layout


def test_each_container_of_a_train_state_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = jax.ShapeDtypeStruct((2, 3), "float32")
    params = {f"b{i}": {"q": leaf, "mlp": {"w": leaf}} for i in range(4)}
    state = jax.eval_shape(optax.adamw(1e-3).init, params)
    tree = {"params": params, "opt_state": state, "seen": (leaf, [leaf])}
    looked: collections.Counter[int] = collections.Counter()
    real = jax.tree_util.all_leaves

    def counted(nodes: Any, *args: Any, **kwargs: Any) -> bool:
        looked.update(map(id, nodes))
        return real(nodes, *args, **kwargs)

    monkeypatch.setattr(jax.tree_util, "all_leaves", counted)
    layout = cs.infer(tree)
    assert looked and set(looked.values()) == {1}
    kinds = {node.key: node.type for node in layout.nodes}
    assert kinds["opt_state",] is tuple and kinds["seen",] is tuple

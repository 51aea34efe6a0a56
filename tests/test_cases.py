"""Real cases, each under its public number: what went wrong in a real project, and what happens here.

The origin is MaxText's pull request 3929: Linen checkpoints as drop-in for NNX training, without a converter.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
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
from jaxtyping import Array, Float32
from orbax.checkpoint import v1 as ocp
from support.profiles import sampled
from support.words import done

import ckpt_schema as cs
from ckpt_schema._lens.arrays import execution
from ckpt_schema._lens.plan import new_leaves, translation
from ckpt_schema.demo.linen_gpt import ModelSizes
from ckpt_schema.demo.training import Form, LinenForm, NnxForm, make_mesh, make_optimizer
from ckpt_schema.orbax import _metadata as metadata

TX = OPTIMIZERS["chain schedule"]


@functools.cache
def lens() -> cs.Lens:
    """From a scanned Linen train state to an NNX one with streams."""
    return cs.derive(cs.linen.TrainState[ScannedSchema, TX], cs.nnx.TrainState[NnxSchema, TX])


@functools.cache
def weights_lens() -> cs.Lens:
    """The same for weights alone."""
    return cs.derive(cs.linen.Params[ScannedSchema], cs.nnx.Params[NnxSchema])


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]


class Dense(cs.Schema):
    kernel: Float32[Array, "embed mlp"]
    bias: Float32[Array, " mlp"]


def found(use: Callable[[], Any]) -> list[tuple[str, str]]:
    """Path and kind of every fault of the error that ``use`` raises."""
    with pytest.raises(cs.CkptSchemaError) as caught:
        use()
    return [(m.path, m.kind) for m in caught.value.mismatches]


# --- the origin: checkpoints of a small GPT  ---

SIZES = ModelSizes(vocab=64, embed=32, heads=2, head_dim=16, mlp=64, depth=2, length=16)
STEPS = 3


class Gpt:
    """The demo's GPT in its four forms, and what is trained and saved once for all tests."""

    def __init__(self, folder: Path) -> None:
        tx = make_optimizer()
        self.linen: dict[bool, Form] = {False: LinenForm(SIZES, tx, scanned=False)}
        self.nnx: dict[bool, Form] = {
            scanned: NnxForm(SIZES, tx, scanned) for scanned in (True, False)
        }
        self.mesh, self.folder = make_mesh(2, 4), folder
        form = LinenForm(SIZES, tx, scanned=True)
        self.linen[True] = form
        trained, _ = train(form, form.start(jax.jit(form.init)(), self.mesh), 0, self.mesh)
        # Saved from a mesh of another shape than the one it is restored to; training there would only compile once more.
        self.state = jax.device_put(
            trained, jax.tree.map(lambda x: x.sharding, form.abstract(make_mesh(4, 2)))
        )
        self.linen_path = folder / "linen"
        ocp.save(self.linen_path, self.state)  # as any Linen user does, without this library

    def lens(self, *, scanned: bool, weights: bool = False) -> cs.Lens:
        """From the scanned Linen form on disk to an NNX form."""
        if weights:
            return cs.derive(self.linen[True].weights_layout, self.nnx[scanned].weights_layout)
        return cs.derive(self.linen[True].layout, self.nnx[scanned].layout)


def train(form: Form, state: Any, first: int, mesh: Any) -> tuple[Any, list[str]]:
    """Trains a few steps; the losses as hexadecimal floats."""
    losses = []
    for number in range(first, first + STEPS):
        batch = jax.random.randint(jax.random.key(number), (8, SIZES.length + 1), 0, SIZES.vocab)
        state, loss = form.step(
            state,
            jax.device_put(
                batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
            ),
        )
        losses.append(float(loss).hex())
    return state, losses


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Gpt:
    return Gpt(tmp_path_factory.mktemp("gpt"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often metadata and arrays were read, leaves were edited or made, and plans were compiled."""
    counts = dict.fromkeys(
        ("read_headers", "metadata", "load", "run", "default", "compile_plan"), 0
    )

    def spy(home: Any, name: str) -> None:
        real = getattr(home, name)

        def counted(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(home, name, counted)

    for home, names in (
        (metadata, ("read_headers",)),
        (ocp, ("metadata", "load")),
        (execution, ("run",)),
        (new_leaves, ("default",)),
        (translation, ("compile_plan",)),
    ):
        for name in names:
            spy(home, name)
    yield counts
    assert not counts["metadata"], "headers tell as much, at a thirtieth of the cost"


def values(tree: Any) -> list[Any]:
    """The leaves of a tree as NumPy arrays, whatever they are sharded over."""
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def test_origin_o1_the_layout_on_disk_is_found_by_one_metadata_read(
    gpt: Gpt, calls: dict[str, int]
) -> None:
    state = cs.orbax.restore(
        gpt.linen_path, gpt.nnx[False].abstract(gpt.mesh), gpt.lens(scanned=False)
    )
    assert (calls["read_headers"], calls["load"]) == (1, 1)
    assert calls["run"] > 0
    assert int(state["optimizer"]["step"].get_value()) == STEPS
    with pytest.raises(cs.CheckpointMismatchError):
        cs.orbax.restore(gpt.linen_path, nnx_state(TX), lens())
    assert (calls["read_headers"], calls["load"]) == (2, 1), (
        "a mismatch is found before anything is read"
    )


def test_origin_o1_a_same_layout_load_pays_nothing_else(gpt: Gpt, calls: dict[str, int]) -> None:
    target = gpt.linen[True].abstract(gpt.mesh)
    state = cs.orbax.restore(gpt.linen_path, target, gpt.lens(scanned=False))
    assert (calls["read_headers"], calls["load"], calls["run"], calls["default"]) == (1, 1, 0, 0)
    assert jax.tree.structure(state) == jax.tree.structure(target)
    for one, other in zip(values(state), values(gpt.state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_origin_o2_weights_alone_by_hand(gpt: Gpt) -> None:
    through = gpt.lens(scanned=False, weights=True)
    abstract = gpt.nnx[False].weights(gpt.mesh)
    wanted = through.put(abstract)
    assert set(wanted) == {"params"}
    assert set(wanted["params"]) == {"embed", "head", "layers", "norm", "positions"}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(wanted))
    assert not any(
        "value" in jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_flatten_with_path(wanted)[0]
    )
    path = gpt.folder / "variables"
    ocp.save(path, gpt.state.params)
    state = through.get(ocp.load(path, wanted), onto=abstract)
    assert isinstance(state, nnx.State)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    kernel = gpt.state.params["params"]["layers"]["wi"]["kernel"]
    np.testing.assert_array_equal(state["layers"][1]["wi"]["kernel"].get_value(), kernel[:, 1])


def test_origin_o2_weights_alone_from_a_full_checkpoint(gpt: Gpt) -> None:
    abstract = gpt.nnx[False].weights(gpt.mesh)
    state = cs.orbax.restore(gpt.linen_path, abstract, gpt.lens(scanned=False, weights=True))
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, goal in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (goal.shape, goal.dtype, goal.sharding)
    np.testing.assert_array_equal(
        state["embed"]["embedding"].get_value(), gpt.state.params["params"]["embed"]["embedding"]
    )


def test_origin_o3_step_and_optimizer_move_into_the_optimizer_module() -> None:
    moved = {
        lens().source.rows[a].key: lens().view.rows[b].key for j in lens().joins for a, b in j.pairs
    }
    assert moved["step",] == ("optimizer", "step")
    assert moved["opt_state", 1, 0, "count"] == ("optimizer", "opt_state", 1, 0, "count")
    for moment in ("mu", "nu"):
        source = ("opt_state", 1, 0, moment, "params", "embed", "embedding")
        assert moved[source] == ("optimizer", "opt_state", 1, 0, moment, "embed", "embedding")
    assert not any("params" in key for key in moved.values())
    assert len(moved) == len(lens().source.rows)


def test_origin_o3_chains_are_kept_as_numbers_and_single_transformations_unwrapped() -> None:
    for name, keys in {
        "chain": [(1, 0)],
        "adam": [(0,)],
        "sgd momentum": [(0,)],
        "chain schedule": [(1, 0), (1, 2)],
    }.items():
        layout = cs.nnx.TrainState[NnxSchema, OPTIMIZERS[name]]
        chain = {
            tuple(itertools.takewhile(lambda key: isinstance(key, int), row.key[2:]))
            for row in layout.rows
            if row.key[1] == "opt_state"
        }
        assert chain == set(keys), name
        stored = on_disk(nnx_state(OPTIMIZERS[name]))
        assert set(stored["optimizer"]["opt_state"]) == {str(key[0]) for key in keys}, name
        assert cs.check(layout, stored) == [], name


def test_origin_o3_the_whole_state_is_the_same_through_disk_forms() -> None:
    state = linen_state(TX)
    wanted = lens().get(state)
    cs.assert_trees_identical(lens().get(on_disk(state)), wanted)
    cs.assert_trees_identical(lens().put(on_disk(wanted), onto=state), state)


@pytest.mark.parametrize(
    ("tag", "impl"), [("fry", "threefry2x32"), ("rbg", "rbg"), ("urbg", "unsafe_rbg")]
)
def test_origin_o4_streams_that_nnx_alone_has_get_deterministic_defaults(
    tag: str, impl: str
) -> None:
    class Plain(cs.Schema):
        w: Norm

    class Streamed(Plain):
        dropout: cs.Stream[tag] = cs.field(default=cs.constant_key(0))
        quantizer: Float32[Array, "embed 3"] = cs.field(default=cs.constant_key(0), type=nnx.Cache)
        keys: cs.Key[tag, "embed 2"] = cs.field(default=cs.constant_key(0))

    tree = {"params": {"w": {"scale": jnp.ones(5)}}}
    with jax.default_prng_impl(
        "rbg" if impl != "rbg" else "threefry2x32"
    ):  # what the process defaults to plays no part
        state = cs.derive(cs.linen.Params[Plain], cs.nnx.Params[Streamed]).get(tree)
    key = jax.random.key(0, impl=impl)
    wanted = {
        "dropout": {"key": key, "count": jnp.uint32(0)},
        "quantizer": jnp.zeros((5, 3)),
        "w": tree["params"]["w"],
    }
    cs.assert_trees_identical(
        nnx.to_pure_dict(state), {**wanted, "keys": jnp.broadcast_to(key, (5, 2))}
    )


def test_origin_o4_defaults_for_a_scanned_stack_have_its_axis(gpt: Gpt) -> None:
    state = gpt.lens(scanned=True).get(gpt.state)
    rngs = state["model"]["layers"]["dropout"]["rngs"]
    assert (rngs["key"].shape, str(rngs["key"].dtype)) == ((SIZES.depth,), "key<urbg>")
    assert (rngs["count"].shape, str(rngs["count"].dtype)) == ((SIZES.depth,), "uint32")


def test_origin_o5_only_a_target_of_the_other_side_is_translated(
    gpt: Gpt, calls: dict[str, int]
) -> None:
    through = gpt.lens(scanned=False)
    linen, nnx_ = gpt.linen[True].abstract(gpt.mesh), gpt.nnx[False].abstract(gpt.mesh)
    restored = cs.orbax.restore(gpt.linen_path, nnx_, through)
    path = gpt.folder / "saved_by_nnx"
    ocp.save(path, restored)
    edits = []
    for where, target in (
        (gpt.linen_path, linen),
        (path, nnx_),
        (gpt.linen_path, nnx_),
        (path, linen),
    ):
        calls.update(run=0, default=0)
        made = cs.orbax.restore(where, target, through)
        assert jax.tree.structure(made) == jax.tree.structure(target)
        edits.append((calls["run"] > 0, calls["default"] > 0))
    assert edits == [(False, False), (False, False), (True, True), (True, False)]


# Each member of each list is in the sample: the whole state scanned, the weights alone unrolled.
@pytest.mark.parametrize(
    ("scanned", "weights"),
    sampled([(True, False), (True, True), (False, False), (False, True)], 3),
)
def test_origin_o6_losses_after_a_restore_are_bit_identical(
    gpt: Gpt, scanned: bool, weights: bool
) -> None:
    losses = {}
    for name, form in (("Linen", gpt.linen[scanned]), ("NNX", gpt.nnx[scanned])):
        source = gpt.linen[True]
        if weights:
            through = cs.derive(source.weights_layout, form.weights_layout)
            state = form.start(
                cs.orbax.restore(gpt.linen_path, form.weights(gpt.mesh), through), gpt.mesh
            )
        else:
            through = cs.derive(source.layout, form.layout)
            state = cs.orbax.restore(gpt.linen_path, form.abstract(gpt.mesh), through)
        _, losses[name] = train(form, state, STEPS, gpt.mesh)
    assert losses["Linen"] == losses["NNX"]
    assert len(set(losses["Linen"])) == STEPS, "it does train"


def test_origin_o6_and_back_from_nnx_to_linen(gpt: Gpt) -> None:
    nnx_, linen, through = gpt.nnx[True], gpt.linen[True], gpt.lens(scanned=True)
    state = cs.orbax.restore(gpt.linen_path, nnx_.abstract(gpt.mesh), through)
    state, _ = train(nnx_, state, STEPS, gpt.mesh)
    path = gpt.folder / "linen_saved_by_nnx"
    cs.orbax.save(path, state, through)
    plain = ocp.load(
        path, linen.abstract(gpt.mesh)
    )  # a Linen run needs nothing of this library to read it
    restored = cs.orbax.restore(path, linen.abstract(gpt.mesh), through, aux=None)
    for one, other in zip(values(plain), values(restored), strict=True):
        np.testing.assert_array_equal(one, other)
    assert train(linen, plain, 2 * STEPS, gpt.mesh)[1] == train(nnx_, state, 2 * STEPS, gpt.mesh)[1]


def test_origin_o7_a_training_step_costs_what_it_did(gpt: Gpt, calls: dict[str, int]) -> None:
    form, through = gpt.nnx[False], gpt.lens(scanned=False)
    target = form.abstract(gpt.mesh)
    fresh = form.start(
        cs.orbax.restore(
            gpt.linen_path, form.weights(gpt.mesh), gpt.lens(scanned=False, weights=True)
        ),
        gpt.mesh,
    )
    state = cs.orbax.restore(gpt.linen_path, target, through)
    batch = jnp.zeros((8, SIZES.length + 1), jnp.int32)
    jaxprs = [str(jax.make_jaxpr(form.step)(s, batch)) for s in (fresh, state, target)]
    assert jaxprs[0] == jaxprs[1] == jaxprs[2]
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    assert [x.sharding for x in jax.tree.leaves(fresh)] == [
        x.sharding for x in jax.tree.leaves(state)
    ]
    before = dict(calls)
    train(form, state, 0, gpt.mesh)
    assert calls == before, "nothing of the lens runs in a step"


def test_origin_o7_a_lens_is_compiled_once_per_structure(calls: dict[str, int]) -> None:
    through = cs.derive(lens().source, lens().view)
    state = linen_state(TX)
    view = through.get(state)
    assert calls["compile_plan"] == 1
    for step in range(3):
        through.get(state.replace(params=jax.tree.map(lambda x, s=step: x + s, state.params)))
    assert calls["compile_plan"] == 1
    for _ in range(3):
        through.put(view)
    assert calls["compile_plan"] == 2


def test_origin_o8_there_and_back_is_where_it_was() -> None:
    state, view = linen_state(TX), nnx_state(TX)
    cs.assert_trees_identical(lens().put(lens().get(state), onto=state), state)
    cs.assert_trees_identical(lens().get(lens().put(view), onto=view), view)


def test_origin_o8_quantization_state_that_one_side_has_is_private_and_kept() -> None:
    class Quantized(Dense):
        frozen: Float32[Array, " mlp"] = cs.field(
            key="AqtDotGeneral_0/qrhs/frozen", collection="aqt", default=0
        )

    class Linen(cs.Schema):
        dense: Quantized = cs.field(key="Dense_0")

    class Nnx(cs.Schema):
        dense: Dense

    through = cs.derive(cs.linen.Params[Linen], cs.nnx.Params[Nnx])
    tree = {
        "params": {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}},
        "aqt": {"Dense_0": {"AqtDotGeneral_0": {"qrhs": {"frozen": jnp.arange(3.0)}}}},
    }
    view = through.get(tree)
    cs.assert_trees_identical(through.put(view, onto=tree), tree)
    assert (
        float(through.put(view)["aqt"]["Dense_0"]["AqtDotGeneral_0"]["qrhs"]["frozen"].sum()) == 0.0
    )


# --- MaxText, after that  ---


def test_maxtext_2478_3188_extra_keys_are_named_and_never_crash_a_map() -> None:
    tree = {
        **linen_variables(scan=True),
        "to_nnx__rngs": {"default": {"key": jax.random.key(0), "count": jnp.uint32(3)}},
    }
    report = cs.check(cs.linen.Params[ScannedSchema], tree)
    assert [(m.path, m.kind) for m in report] == [
        ("to_nnx__rngs/default/count", "extra"),
        ("to_nnx__rngs/default/key", "extra"),
    ]
    inferred = cs.infer({"params": {"w": jnp.ones(2)}, "to_nnx__rngs": tree["to_nnx__rngs"]})
    plain = cs.infer({"params": {"w": jnp.ones(2)}})
    names = found(lambda: cs.derive(inferred, plain))
    assert names == [("params/default/count", "unplaced"), ("params/default/key", "unplaced")]
    kept = cs.derive(inferred, plain, rules=[cs.private("default", cs.fresh_key(0))])
    assert set(
        kept.get({"params": {"w": jnp.ones(2)}, "to_nnx__rngs": tree["to_nnx__rngs"]})["params"]
    ) == {"w"}


def test_maxtext_2478_3188_extra_keys_of_a_checkpoint_are_named(tmp_path: Path) -> None:
    variables = linen_variables(scan=True)
    ocp.save(
        tmp_path / "extra", {**variables, "to_nnx__rngs": {"default": {"count": jnp.uint32(3)}}}
    )
    target = nnx.state(nnx_module(TX).model)
    assert found(lambda: cs.orbax.restore(tmp_path / "extra", target, weights_lens())) == [
        ("to_nnx__rngs/default/count", "extra")
    ]


def test_maxtext_3191_two_leaves_never_map_to_one() -> None:
    class Blocks(cs.Schema):
        local: list[Norm] = cs.field(key="layers_{i}", length="locals")
        last: Norm = cs.field(key="layers_5")

    class Pair(cs.Schema):
        local: Norm
        last: Norm

    class One(cs.Schema):
        local: Norm

    assert found(lambda: cs.linen.Params[Blocks]) == [("params/layers_5/scale", "ambiguous")]
    assert found(lambda: cs.derive(Pair, One, rules=[cs.rename("last", "local")])) == [
        ("local/scale", "ambiguous")
    ]


class Local(cs.Schema):
    scale: Float32[Array, " embed"]
    noise: cs.Stream["fry"] = cs.field(default=cs.fresh_key(0))


class Six(cs.Schema):
    """A scanned block of five local layers and a global one, each under a name of its own."""

    local: list[Local] = cs.field(key="local_{i}", length=5)
    last: list[Local] = cs.field(key="global_{i}", length=1)


class Interleaved(cs.Schema):
    blocks: Six = cs.field(scan="blocks", axis=1)
    rest: list[Local] = cs.field(key="rest_{i}", length="rest")


class InOrder(cs.Schema):
    layers: list[Local] = cs.field(key="layers_{i}", length="6*blocks+rest")


class SixInOrder(cs.Schema):
    layers: list[Local] = cs.field(key="layers_{i}", length=6)


class InBlocks(cs.Schema):
    blocks: SixInOrder = cs.field(scan="blocks", axis=1)
    rest: list[Local] = cs.field(key="rest_{i}", length="rest")
    layers = cs.series("blocks[]/layers[]", "rest[]")


def numbered_layers(count: int) -> dict[str, Any]:
    """Layers that are told apart by each of their leaves."""

    def noise(i: int) -> dict[str, Any]:
        return {"count": jnp.uint32(i), "key": jax.random.key(i)}

    return {
        f"layers_{i}": {"scale": jnp.full(2, i, "float32"), "noise": noise(i)} for i in range(count)
    }


def test_maxtext_3191_every_layer_of_interleaved_blocks_and_a_remainder_survives() -> None:
    through = cs.derive(InOrder, InBlocks, dims={"blocks": 4})
    state = numbered_layers(26)
    view = through.get(state)
    for i in range(6):
        stacked = view["blocks"][f"layers_{i}"]["scale"]
        assert stacked.shape == (2, 4)
        np.testing.assert_array_equal(stacked[0], [i, 6 + i, 12 + i, 18 + i])
    assert [int(view[f"rest_{i}"]["scale"][0]) for i in range(2)] == [24, 25]
    cs.assert_trees_identical(through.put(view), state)


def test_maxtext_3191_a_layer_that_two_parts_claim_is_an_error() -> None:
    assert found(lambda: cs.series("blocks[]/layers[]", "rest[]", "rest[]")) == [
        ("series", "declaration")
    ]
    assert found(lambda: cs.fuse("qkv", ["q", "k", "k"])) == [("parts", "declaration")]
    # Without an order, local and global layers are no layers of the other side: nothing is guessed from their names.
    faults = found(lambda: cs.derive(InOrder, Interleaved))
    assert {("layers[]/scale", "unplaced"), ("blocks[]/last[]/scale", "unplaced")} <= set(faults)


def test_maxtext_4369_in_a_block_each_leaf_is_stacked_on_its_own_axis() -> None:
    through = cs.derive(InBlocks, InOrder, dims={"blocks": 2})
    view = numbered_layers(13)
    blocks = through.put(view)["blocks"]
    assert blocks["layers_0"]["scale"].shape == (2, 2)
    assert blocks["layers_0"]["noise"]["key"].shape == (2,)
    np.testing.assert_array_equal(blocks["layers_3"]["noise"]["count"], [3, 9])
    assert {"{6} embed blocks -> {blocks*6} embed", "{6} blocks -> {blocks*6}"} <= {*done(through)}
    cs.assert_trees_identical(through.get(through.put(view)), view)


def test_maxtext_4099_4344_4443_blocks_on_disk_go_into_an_unrolled_model_and_back(
    tmp_path: Path,
) -> None:
    through = cs.derive(InBlocks, InOrder, dims={"blocks": 2})
    unrolled = numbered_layers(13)
    cs.orbax.save(tmp_path / "blocks", through.put(unrolled), through)
    cs.assert_trees_identical(
        cs.orbax.restore(tmp_path / "blocks", abstract_of(unrolled), through), unrolled
    )
    cs.orbax.save(tmp_path / "layers", unrolled, ~through)
    target = abstract_of(through.put(unrolled))
    cs.assert_trees_identical(
        cs.orbax.restore(tmp_path / "layers", target, through), through.put(unrolled)
    )


def abstract_of(tree: Any) -> Any:
    """Its leaves without values."""
    return jax.eval_shape(lambda x: x, tree)


def test_maxtext_3836_4555_the_step_keeps_its_value_or_is_an_error() -> None:
    for step in (0, 7, 2**31 - 1):
        assert (
            int(lens().get(linen_state(TX).replace(step=step))["optimizer"]["step"].get_value())
            == step
        )
    assert found(lambda: lens().get(linen_state(TX).replace(step=-1))) == [("step", "cast")]
    view = nnx_state(TX)
    view["optimizer"]["step"].set_value(jnp.uint32(2**31))
    assert found(lambda: lens().put(view)) == [("optimizer/step/value", "cast")]


def test_maxtext_4099_4344_4443_a_scanned_checkpoint_goes_into_an_unrolled_model_and_back(
    tmp_path: Path,
) -> None:
    through = cs.derive(
        cs.linen.TrainState[ScannedSchema, TX], cs.linen.TrainState[UnrolledSchema, TX]
    )
    scanned, unrolled = linen_state(TX, scan=True), linen_state(TX, scan=False)
    ocp.save(tmp_path / "scanned", scanned)
    made = cs.orbax.restore(tmp_path / "scanned", unrolled, through)
    np.testing.assert_allclose(
        linen_logits(made.params, scan=False),
        linen_logits(scanned.params, scan=True),
        rtol=1e-5,
        atol=1e-6,
    )
    ocp.save(tmp_path / "unrolled", made)
    back = cs.orbax.restore(tmp_path / "unrolled", scanned, through)
    cs.assert_trees_identical(back.params, scanned.params)


def test_maxtext_4322_4372_the_abstract_tree_a_manager_needs_is_exact() -> None:
    abstract = jax.eval_shape(lambda s: s, nnx_state(TX))
    wanted = lens().put(abstract)
    real = lens().put(nnx_state(TX))
    assert jax.tree.structure(wanted) == jax.tree.structure(real)
    for leaf, value in zip(jax.tree.leaves(wanted), jax.tree.leaves(real), strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (value.shape, value.dtype)


def test_maxtext_4343_a_missing_weight_is_an_error_and_never_stays_abstract() -> None:
    state = on_disk(linen_state(TX))
    del state["params"]["params"]["head"]["bias"]
    assert found(lambda: lens().get(state)) == [("params/params/head/bias", "missing")]
    abstract = nnx.state(nnx.eval_shape(lambda: NnxTrainState(NnxDecoder(nnx.Rngs(0)), TX)))
    filled = lens().get(linen_state(TX), onto=abstract)
    assert not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(filled))


def test_maxtext_4343_streams_that_were_drawn_from_are_kept_at_a_resume() -> None:
    view = nnx_state(TX)
    count = view["model"]["layers"][0]["dropout"]["rngs"]["count"]
    count.set_value(jnp.uint32(99))
    resumed = lens().get(lens().put(view), onto=view)
    assert int(resumed["model"]["layers"][0]["dropout"]["rngs"]["count"].get_value()) == 99


def test_maxtext_4369_the_stack_axis_is_each_leaf_s_own(gpt: Gpt) -> None:
    through = cs.derive(gpt.nnx[True].layout, gpt.nnx[False].layout)
    rows = [through.source.rows[join.sources[0]] for join in through.joins]
    keys = ["/".join(map(str, row.key[-2:])) for row in rows]
    axes = dict(zip(keys, done(through), strict=True))
    assert axes["rngs/key"] == axes["rngs/count"] == "depth -> {depth}"
    assert axes["wi/kernel"] == "embed depth mlp -> {depth} embed mlp"
    stacked = gpt.lens(scanned=True).get(gpt.state)
    unrolled = through.get(stacked)
    assert unrolled["model"]["layers"][1]["dropout"]["rngs"]["key"].shape == ()
    cs.assert_trees_identical(through.put(unrolled), stacked)


def test_maxtext_4403_streams_are_told_by_variable_type_and_not_by_name() -> None:
    class Weights(nnx.Module):
        def __init__(self) -> None:
            self.dropout = nnx.Param(jnp.ones(3))
            self.count = nnx.Param(jnp.ones(3))
            self.noise = nnx.Rngs(params=0).params
            self.qrhs = nnx.Dict(frozen=nnx.Cache(jnp.ones(3)))

    class Named(cs.Schema):
        dropout: Float32[Array, " n"]
        count: Float32[Array, " n"]
        noise: cs.Stream["fry"] = cs.field(tag="params", default=cs.fresh_key(0))
        frozen: Float32[Array, " n"] = cs.field(key="qrhs/frozen", type=nnx.Cache, optional=False)

    layout = cs.nnx.TrainState[Named, optax.adam(1e-3)]
    assert sorted({row.key[-1] for row in layout.rows if "mu" in row.key}) == ["count", "dropout"]
    weights = cs.nnx.Params[Named]
    assert sorted(row.key for row in weights.rows if not row.optional) == [("count",), ("dropout",)]
    assert cs.check(weights, Weights()) == []
    assert found(lambda: cs.assert_conforms(weights, {"count": jnp.ones(3)})) == [
        ("dropout", "missing")
    ]


def test_maxtext_4464_4504_4619_unrolled_layers_under_any_name() -> None:
    class Layers(cs.Schema):
        layers: list[Norm] = cs.field(key="layers_{i}", length="depth")

    class Listed(cs.Schema):
        layers: list[Norm] = cs.field(key="layers/{i}", length="depth")

    class Named(cs.Schema):
        layers: list[Norm] = cs.field(key="layers/'{i}'", length="depth")

    class Dotted(cs.Schema):
        layers: list[Norm] = cs.field(key="layers.{i}", length="depth")

    scales = [{"scale": jnp.full(2, i, jnp.float32)} for i in range(11)]
    trees = {
        Layers: {f"layers_{i}": s for i, s in enumerate(scales)},
        Listed: {"layers": dict(enumerate(scales))},
        Named: {"layers": {str(i): s for i, s in enumerate(scales)}},
        Dotted: {f"layers.{i}": s for i, s in enumerate(scales)},
    }
    for source, tree in trees.items():
        for view, wanted in trees.items():
            cs.assert_trees_identical(cs.derive(source, view).get(tree), wanted)


def test_maxtext_4464_4504_4619_a_near_miss_is_suggested() -> None:
    class Expected(cs.Schema):
        layers: list[Norm] = cs.field(key="dense_layers_{i}", length="depth")

    report = cs.check(Expected, {f"dense_layer_{i}": {"scale": jnp.ones(2)} for i in range(2)})
    hints = {m.path: m.hint for m in report}
    assert hints["dense_layer_0/scale"] == "near: dense_layers_{i}/scale"
    source = cs.infer(
        {"params": {f"dense_layer_{i}": {"scale": jnp.ones(2)} for i in range(2)}},
        lists=["dense_layer_{i}"],
    )
    view = cs.infer(
        {"params": {f"dense_layers_{i}": {"scale": jnp.ones(2)} for i in range(2)}},
        lists=["dense_layers_{i}"],
    )
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(source, view)
    assert "rename('dense_layer[]', 'dense_layers[]')" in caught.value.mismatches[0].hint
    assert (
        len(cs.derive(source, view, rules=[cs.rename("dense_layer[]", "dense_layers[]")]).joins)
        == 1
    )


def test_maxtext_4525_the_name_of_the_stack_axis_goes_and_no_other() -> None:
    class Layered(cs.Schema):
        layers: Dense = cs.field(scan="depth", axis=1)
        norm: Norm

    class Unrolled(cs.Schema):
        layers: list[Dense] = cs.field(length="depth")
        norm: Norm

    through = cs.derive(cs.linen.Params[Layered], cs.nnx.Params[Unrolled])

    def state(kernel: tuple[Any, ...], bias: tuple[Any, ...]) -> Any:
        layers = {
            "kernel": nn.LogicallyPartitioned(jnp.ones((2, 3, 4)), names=kernel),
            "bias": nn.LogicallyPartitioned(jnp.ones((4, 3)), names=bias),
        }
        return {
            "params": {
                "layers": layers,
                "norm": {"scale": nn.LogicallyPartitioned(jnp.ones(2), names=("norm",))},
            }
        }

    # Whatever the axis is called: "layers", nothing, or as another one is.
    for name in ("layers", None, "mlp", "stage"):
        view = through.get(state(("embed", name, "mlp"), ("mlp", name)))
        for layer in range(3):
            assert view["layers"][layer]["kernel"].get_metadata()["out_sharding"] == (
                "embed",
                "mlp",
            )
            assert view["layers"][layer]["bias"].get_metadata()["out_sharding"] == ("mlp",)
        assert view["norm"]["scale"].get_metadata()["out_sharding"] == ("norm",)
    for kernel, bias in (
        (("embed", "mlp"), ("mlp",)),
        (("layers", "embed", "mlp", "x"), ("a", "b", "c")),
    ):
        with pytest.raises(cs.ConformanceError) as caught:
            through.get(state(kernel, bias))
        assert [(m.path, m.kind, m.expected, m.found) for m in caught.value.mismatches] == [
            (
                "params/layers/kernel/value",
                "sharding",
                "3 names, for float32[embed depth mlp]",
                str(kernel),
            ),
            ("params/layers/bias/value", "sharding", "2 names, for float32[mlp depth]", str(bias)),
        ]


def test_maxtext_4555_a_leaf_that_a_newer_model_grew_is_named() -> None:
    class Newer(NnxSchema):
        aqt: cs.Stream["fry"] = cs.field(key="dropout/rngs/aqt")

    view = cs.nnx.TrainState[Newer, TX]
    missing = [m.path for m in cs.check(view, nnx_state(TX))]
    assert missing == ["model/dropout/rngs/aqt/count", "model/dropout/rngs/aqt/key"]
    faults = found(lambda: cs.derive(cs.linen.TrainState[ScannedSchema, TX], view))
    assert faults == [("params/aqt/key", "unplaced"), ("params/aqt/count", "unplaced")]


def test_maxtext_4566_int_chain_keys_survive_and_derivation_is_total() -> None:
    ints = [key for row in lens().view.rows for key in row.key if isinstance(key, int)]
    assert ints.count(1) > 0
    pure = nnx.to_pure_dict(lens().get(linen_state(TX)))
    assert set(pure["optimizer"]["opt_state"]) == {1}
    assert set(pure["optimizer"]["opt_state"][1]) == {0, 2}
    placed = lens().joined
    assert placed[0] == set(range(len(lens().source.rows)))
    alone = [row for n, row in enumerate(lens().view.rows) if n not in placed[1]]
    assert alone
    assert all(row.default is not None for row in alone)


# --- Others  ---


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_orbax_1105_1337_2540_states_with_typed_keys_are_saved_and_restored(
    tmp_path: Path, impl: str
) -> None:
    class Streams(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.arange(3.0))
            self.rngs = nnx.Rngs(dropout=jax.random.key(5, impl=impl))

    state = nnx.state(Streams())
    layout = cs.infer(state)
    cs.orbax.save(tmp_path / "keys", state, cs.derive(layout, layout))
    restored = cs.orbax.restore(
        tmp_path / "keys", jax.eval_shape(lambda s: s, state), cs.derive(layout, layout)
    )
    cs.assert_trees_identical(nnx.to_pure_dict(restored), nnx.to_pure_dict(state))


def test_flax_5030_int_keys_that_a_save_turned_into_strings_come_back() -> None:
    state = nnx_state(TX)
    layout = cs.nnx.TrainState[NnxSchema, TX]
    for stored in (on_disk(state), on_disk(nnx.to_pure_dict(state))):
        cs.assert_trees_identical(cs.derive(layout, layout).get(stored), state)


def test_goodfire_spd_870_a_refactor_renames_squeezes_and_makes_tuples_of_dicts_in_two_optimizers_too(
    tmp_path: Path,
) -> None:
    class OldComponent(cs.Schema):
        left: Float32[Array, "1 inputs rank"] = cs.field(key="V")
        right: Float32[Array, "1 rank outputs"] = cs.field(key="U")
        gate: Float32[Array, "rank hidden"]

    class NewFactors(cs.Schema):
        left: Float32[Array, "inputs rank"] = cs.field(key="0")
        right: Float32[Array, "rank outputs"] = cs.field(key="1")

    class NewComponent(cs.Schema):
        factors: NewFactors = cs.field(value=tuple)
        gate: Float32[Array, "rank hidden"] = cs.field(key="ci_fn/kernel")

    class Old(cs.Schema):
        components: list[OldComponent] = cs.field(key="components_{i}", length="depth")

    class New(cs.Schema):
        components: list[NewComponent] = cs.field(length="depth")

    def labels(params: Any) -> Any:  # gates have an optimizer of their own
        return jax.tree.map(lambda x: "gates" if x.shape[-1] == 7 else "factors", params)

    tx = optax.partition({"factors": optax.adamw(1e-3), "gates": optax.adam(1e-2)}, labels)
    sizes = {"inputs": 2, "rank": 3, "outputs": 4, "hidden": 7, "depth": 16}
    renames = [
        cs.rename(f"components[]/{side}", f"components[]/factors/{side}")
        for side in ("left", "right")
    ]
    lens = cs.derive(
        cs.linen.BareTrainState[Old, tx, sizes],
        cs.linen.BareTrainState[New, tx, sizes],
        rules=renames,
    )

    def component(seed: int) -> dict[str, Any]:
        shapes = {"V": (1, 2, 3), "U": (1, 3, 4), "gate": (3, 7)}
        return {
            name: jax.random.normal(jax.random.key(seed), shape) for name, shape in shapes.items()
        }

    params = {f"components_{i}": component(i) for i in range(16)}
    moments = jax.tree.map(lambda x: x + 1 if x.ndim else x, tx.init(params))
    old = {"step": jnp.int32(3), "params": params, "opt_state": moments}
    assert (
        len(jax.tree.leaves((old["params"], old["opt_state"]))) == 146
    )  # 48 params, their two moments, two counts
    new = lens.get(old)
    assert new["params"]["components"][15]["factors"][0].shape == (2, 3)
    assert jax.tree.structure(new["opt_state"]) == jax.tree.structure(tx.init(new["params"]))
    cs.assert_trees_identical(lens.put(new, onto=old), old)
    cs.orbax.save(tmp_path / "0", old, lens)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", new, lens), new)


def test_olmo_core_226_layers_and_experts_and_permuted_dims_all_at_once(tmp_path: Path) -> None:
    class HfExpert(cs.Schema):
        gate: Float32[Array, "ffn embed"] = cs.field(key="gate_proj/weight")
        up: Float32[Array, "ffn embed"] = cs.field(key="up_proj/weight")
        down: Float32[Array, "embed ffn"] = cs.field(key="down_proj/weight")

    class HfLayer(cs.Schema):
        q: Float32[Array, "heads*dim embed"] = cs.field(key="self_attn/q_proj/weight")
        k: Float32[Array, "kv*dim embed"] = cs.field(key="self_attn/k_proj/weight")
        v: Float32[Array, "kv*dim embed"] = cs.field(key="self_attn/v_proj/weight")
        experts: list[HfExpert] = cs.field(key="mlp/experts/'{i}'", length="experts")

    class Hf(cs.Schema):
        layers: list[HfLayer] = cs.field(key="model/layers/'{i}'", length="depth")

    class OlmoExperts(cs.Schema):
        gate: Float32[Array, "embed ffn"] = cs.field(key="w1")
        down: Float32[Array, "ffn embed"] = cs.field(key="w2")
        up: Float32[Array, "embed ffn"] = cs.field(key="w3")

    class OlmoLayer(cs.Schema):
        qkv: Float32[Array, "embed heads*dim+2*kv*dim"] = cs.field(key="attention/w_qkv")
        experts: OlmoExperts = cs.field(key="feed_forward_moe", scan="experts", axis=0)

    class Olmo(cs.Schema):
        layers: list[OlmoLayer] = cs.field(key="blocks/{i}", length="depth")

    fused = cs.fuse("layers[]/qkv", [f"layers[]/{name}" for name in "qkv"])
    through = cs.derive(Hf, Olmo, rules=[fused], dims={"heads": 4, "kv": 2, "dim": 2})
    depth, experts, embed, ffn = 3, 11, 6, 5
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype("float32")

    def hf_layer() -> dict[str, Any]:
        shapes = {"gate_proj": (ffn, embed), "up_proj": (ffn, embed), "down_proj": (embed, ffn)}
        each = {
            str(j): {name: {"weight": draw(*shape)} for name, shape in shapes.items()}
            for j in range(experts)
        }
        heads = {
            name: {"weight": draw(size, embed)}
            for name, size in (("q_proj", 8), ("k_proj", 4), ("v_proj", 4))
        }
        return {"self_attn": heads, "mlp": {"experts": each}}

    state = {"model": {"layers": {str(i): hf_layer() for i in range(depth)}}}
    view = through.get(state)
    for i in range(depth):
        block, source = view["blocks"][i], state["model"]["layers"][str(i)]
        by_hand = [source["self_attn"][f"{name}_proj"]["weight"].T for name in "qkv"]
        np.testing.assert_array_equal(block["attention"]["w_qkv"], np.concatenate(by_hand, axis=1))
        for name, own in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
            by_hand = [source["mlp"]["experts"][str(j)][own]["weight"].T for j in range(experts)]
            np.testing.assert_array_equal(block["feed_forward_moe"][name], np.stack(by_hand))
    cs.assert_trees_identical(through.put(view), state)
    ocp.save(tmp_path / "hf", jax.tree.map(jnp.asarray, state))
    restored = cs.orbax.restore(tmp_path / "hf", abstract_of(view), through)
    cs.assert_trees_identical(jax.tree.map(np.asarray, restored), view)


def test_transformers_42396_what_has_no_inverse_is_refused_when_the_lens_is_derived() -> None:
    class Wide(cs.Schema):
        w: Float32[Array, "n m"]

    class Sum(cs.Schema):
        w: Float32[Array, " n"]

    assert found(lambda: cs.derive(Wide, Sum)) == [("w", "dims")]


def test_transformers_46650_46651_a_tree_that_is_already_in_the_other_layout_is_an_error() -> None:
    class Old(cs.Schema):
        layers: list[Norm] = cs.field(length="depth")

    class Encoder(cs.Schema):
        layers: list[Norm] = cs.field(length="depth")

    class New(cs.Schema):
        encoder: Encoder

    through = cs.derive(Old, New, rules=[cs.rename("layers[]", "encoder/layers[]")])
    old = {"layers": {0: {"scale": jnp.ones(2)}}}
    new = through.get(old)
    cs.assert_trees_identical(new, {"encoder": old})
    cs.assert_trees_identical(through.put(new), old)
    for use, tree in ((through.get, new), (through.put, old)):
        with pytest.raises(
            cs.ConformanceError, match="on the other side of the lens already, swap get and put"
        ):
            use(tree)


def test_transformers_48075_a_rule_for_names_that_no_checkpoint_has_is_an_error() -> None:
    class Model(cs.Schema):
        norm: Norm

    rules = [cs.rename("LayerNorm", "norm"), cs.private("dropout", 0)]
    assert found(lambda: cs.derive(Model, Model, rules=rules)) == [
        (str(rule), "rule") for rule in reversed(rules)
    ]


def test_nothing_is_changed_when_a_translation_is_refused() -> None:
    state, view = on_disk(linen_state(TX)), nnx_state(TX)
    before = copy.deepcopy(jax.tree.map(np.asarray, jax.tree.leaves(state)))
    kept = jax.tree.map(lambda x: x, view)
    state["step"] = -1
    assert found(lambda: lens().get(state, onto=view)) == [("step", "cast")]
    cs.assert_trees_identical(view, kept)
    state["step"] = 7
    for one, other in zip(jax.tree.leaves(state), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_restored_nnx_model_computes_what_the_linen_model_did(tmp_path: Path) -> None:
    state = linen_state(TX)
    ocp.save(tmp_path / "linen", state)
    module = cs.orbax.restore(tmp_path / "linen", nnx_module(TX), lens())
    assert isinstance(module, nnx.Module)
    np.testing.assert_allclose(
        nnx_logits(module.model), linen_logits(state.params, scan=True), rtol=1e-5, atol=1e-6
    )
    assert len(module.model.layers) == DEPTH

"""Layouts as Python text: what is executed is the layout that was written."""

from __future__ import annotations

import random
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax_models
import gemma
import jax
import jax.numpy as jnp
import optax
import pair_models
import pytest
import whisper_models
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array, Float32
from support import flax_layers, optimizers

import ckpt_schema as cs
from ckpt_schema._source.mixed_lists_text import items_text

Reading = Callable[[], cs.Layout]


def executed(text: str) -> Any:
    """The layout that a text declares, as a fresh module has it."""
    module = types.ModuleType("written")
    exec(compile(text, "written.py", "exec"), vars(module))
    return module.layout


def told(layout: cs.Layout) -> tuple[Any, ...]:
    """What a layout says: its rows and containers in any order."""
    rows = sorted(layout.rows, key=lambda row: row.path)
    nodes = sorted((str(node.key), node.type, node.counts) for node in layout.nodes)
    rest = layout.name, layout.container, layout.homes, layout.sizes, layout.series
    return rows, nodes, rest, layout.parts, layout.states


def lists(depth: int) -> cs.Layout:
    layers = {f"layers_{n}": {"wi": {"kernel": jnp.zeros((4, 8))}} for n in range(depth)}
    params = {"params": layers}
    state = {"step": jnp.int32(0), "params": params, "opt_state": optax.adam(1.0).init(params)}
    return cs.infer(state, lists=["layers_{i}"])


TX = optax.sgd(0.1, momentum=0.9)


def linen(model: Any, batch: Any) -> cs.Layout:
    run = pair_models.LinenRun(model, TX, True, batch)
    return cs.infer(jax.eval_shape(lambda: run.start))


def training(model: Any, wrt: Any = nnx.Param) -> Any:
    return pair_models.Training(model(nnx.Rngs(1)), TX, wrt)


def two_optimizers() -> Any:
    """A state in which no moments are of all params: they are written leaf by leaf."""
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    parts = {"x": optax.adam(1.0), "y": optax.sgd(1.0)}
    tx = optax.multi_transform(parts, {"a": "x", "b": "y"})
    return {"params": params, "opt_state": tx.init(params)}


READINGS: dict[str, Reading] = {
    "Linen, scanned": lambda: cs.infer(
        flax_models.linen_state(flax_models.OPTIMIZERS["chain schedule"]), scan={"layers": 1}
    ),
    "Linen, unrolled": lambda: cs.infer(
        flax_models.linen_state(flax_models.OPTIMIZERS["adamw bfloat16 mu"], scan=False, bare=True),
        lists=["layers_{i}"],
    ),
    "NNX": lambda: cs.infer(flax_models.nnx_state(flax_models.OPTIMIZERS["chain schedule"])),
    "nothing kept": lambda: cs.infer(flax_models.nnx_state(flax_models.OPTIMIZERS["sgd"])),
    "Linen's ResNet": lambda: linen(pair_models.LinenResNet(), pair_models.images),
    "NNX's ResNet": lambda: cs.infer(nnx.eval_shape(lambda: training(pair_models.NnxResNet))),
    "Linen's adapters": lambda: linen(pair_models.LinenAdapted(), pair_models.tokens),
    "NNX's adapters": lambda: cs.infer(
        nnx.eval_shape(lambda: training(pair_models.NnxAdapted, nnx.LoRAParam))
    ),
    "Linen's Gemma": lambda: cs.infer(gemma.start("Linen scanned")),
    "NNX's Gemma": lambda: cs.infer(gemma.start("NNX unrolled")),
    "Linen's Whisper": lambda: cs.infer(jax.eval_shape(whisper_models.linen_train_state)),
    "NNX's Whisper": lambda: cs.infer(nnx.eval_shape(whisper_models.nnx_training)),
    "averages": lambda: cs.infer(
        {
            "step": jnp.int32(0),
            "params": {"a": {"kernel": jnp.zeros((2, 3))}},
            "ema_params": {"a": {"kernel": jnp.zeros((2, 3))}},
        }
    ),
    "collections": lambda: cs.infer(
        {
            "params": {"d": {"scale": jnp.zeros(4)}},
            "batch_stats": {"d": {"mean": jnp.zeros(4)}},
        }
    ),
    "keys of all kinds": lambda: cs.infer(
        {
            "mlp/~/linear_0": {"w": jnp.zeros((2, 3)), "it's {": jnp.zeros(1, bool)},
            "class": {"0": jnp.zeros(3, jnp.float8_e4m3fn), "Array": jnp.zeros(2, jnp.int4)},
            "cs": {"__x": jax.random.key(0), "list": jax.random.split(jax.random.key(0), 3)},
            "blocks": [{"w": jnp.zeros((0, 1))}, {"w": jnp.zeros((0, 1))}],
            "pair": (jnp.zeros(2), jnp.zeros((2, 2))),
            "nothing": {},
        }
    ),
    "flat keys": lambda: cs.infer(
        {f"model.layers.{n}.w": jnp.zeros((2, 3)) for n in range(3)},
        joined=".",
        lists=["model/layers/{i}"],
    ),
    "an optimizer for each param": lambda: cs.infer(two_optimizers()),
    "modules": lambda: cs.infer(
        nnx.Dict(
            a=nnx.Sequential(
                nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
            ),
            d=nnx.Dropout(0.1, rngs=nnx.Rngs(0)),
            rngs=nnx.Rngs(0, params=1),
        )
    ),
}


class FlatNorm(cs.Schema):
    """A norm in a flat file."""

    scale: Float32[Array, " embed"]


class FlatLayer(cs.Schema):
    """A layer in a flat file."""

    norm: FlatNorm = cs.field(key="LayerNorm_0")
    up: Float32[Array, "embed mlp"] = cs.field(key="mlp/up")


class FlatFile(cs.Schema, joined="."):
    """Layers under joined keys."""

    blocks: list[FlatLayer] = cs.field(key="model/blocks/{i}", length="depth")
    norm: FlatNorm = cs.field(key="model/norm")


class FlatItem(cs.Schema):
    """A flat file beside a leaf and a class whose keys are apart."""

    flat: FlatFile
    apart: FlatLayer
    step: Float32[Array, ""]


class FlatElsewhere(cs.Schema):
    """The same below a key of another name, and once more below a longer one."""

    flat: FlatFile = cs.field(key="weights")
    other: FlatFile = cs.field(key="old/weights")


class FlatFiles(cs.Schema):
    """Several, with slashes below a list."""

    files: list[FlatFile] = cs.field(key="files/{i}", length=2)


class FlatModel(cs.Schema):
    """A model whose keys are joined, and what its optimizer keeps."""

    params: FlatFile = cs.field(key={...: "{collection}"})
    opt_state: cs.OptState = cs.optimizer(optax.adam(1e-3))


@pytest.mark.parametrize("schema", [FlatFile, FlatItem, FlatElsewhere, FlatFiles, FlatModel])
def test_keys_that_are_joined_below_a_key_are_written(schema: type[cs.Schema]) -> None:
    layout = cs.layout(schema)
    text = cs.to_source(layout, tx="optax.adam(1e-3)")
    assert told(executed(text)) == told(layout)
    assert text.count('joined="."') == 1


@pytest.mark.parametrize("name", READINGS)
def test_what_is_executed_is_the_layout_that_was_written(name: str) -> None:
    layout = READINGS[name]()
    text = cs.to_source(layout)
    assert told(executed(text)) == told(layout)
    assert cs.to_source(READINGS[name]()) == text


LAYERS = {
    **{f"Linen's {name}": (flax_layers.of_linen, name) for name in flax_layers.LINEN},
    **{f"NNX's {name}": (flax_layers.of_nnx, name) for name in flax_layers.NNX},
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:keep_rngs")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_of_flax_is_written(layer: str, full: bool) -> None:
    make, name = LAYERS[layer]
    state = make(name, 2, full)
    layout = cs.infer(state)
    found = executed(cs.to_source(layout))
    assert told(found) == told(layout)
    assert cs.check(found, state).ok
    if layout.rows:  # what is made anew is of the same kinds, plain arrays too
        cs.assert_trees_identical(cs.derive(found, found).get(state), state)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:keep_rngs")
@pytest.mark.parametrize("layer", flax_layers.MADE_OTHERWISE)
def test_each_layer_of_flax_that_is_made_otherwise_is_written(layer: str) -> None:
    state = flax_layers.MADE_OTHERWISE[layer]()
    layout = cs.infer(state)
    found = executed(cs.to_source(layout))
    assert told(found) == told(layout)
    cs.assert_trees_identical(cs.derive(found, found).get(state), state)


WRITTEN = {
    "Linen's Dense": "blocks.linen.Dense",
    "Linen's BatchNorm": "blocks.linen.BatchNorm",
    "Linen's MultiHeadAttention": "blocks.linen.MultiHeadAttention",
    "NNX's BatchNorm": "blocks.nnx.BatchNorm",
    "NNX's Conv": "blocks.nnx.Conv",
    "NNX's Einsum": "blocks.nnx.Einsum",
    "NNX's Embed": "blocks.nnx.Embed",
    "NNX's LSTMCell": "blocks.nnx.LSTMCell",
    "NNX's LayerNorm": "blocks.nnx.RMSNorm",  # which is what it is without a bias
    "NNX's Linear": "blocks.nnx.Linear",
    "NNX's LoRALinear": "blocks.nnx.LoRALinear",
    "NNX's MultiHeadAttention": "blocks.nnx.MultiHeadAttention",
    "NNX's PReLU": "blocks.nnx.PReLU",
}


@pytest.mark.parametrize("layer", WRITTEN)
def test_a_layer_of_flax_is_written_as_its_block(layer: str) -> None:
    make, name = LAYERS[layer]
    text = cs.to_source(cs.infer(make(name, 2, False)))
    assert f"    layer: {WRITTEN[layer]}" in text


def classes(params: Any, **options: Any) -> list[str]:
    """The names of the classes that are written for a model."""
    text = cs.to_source(cs.infer({"params": params}, **options))
    return re.findall(r"^class (\w+)", text, re.MULTILINE)[:-2]


def part(*shapes: tuple[int, ...]) -> dict[str, Any]:
    return {f"w{n}": jnp.zeros(shape) for n, shape in enumerate(shapes)}


def test_a_class_is_called_by_what_its_attributes_have_in_common() -> None:
    both = {"self_attention": part((2, 3)), "cross_attention": part((2, 3))}
    assert classes(both) == ["Attention"]
    assert classes({"encoder": part((2, 3)), "decoder": part((2, 3))}) == ["Decoder"]


def test_the_plain_name_is_that_of_the_class_that_stands_in_most_places() -> None:
    usual, other = part((2, 3)), part((2, 3), (3, 4))
    assert classes({"layers": [other, usual, usual]})[:2] == ["Layer0", "Layer"]
    assert classes({"layer_0": usual, "layer_1": other, "layer_2": usual}) == ["Layer", "Layer1"]


def test_of_two_classes_in_as_many_places_none_has_the_plain_name() -> None:
    several = [part((2, 3))] * 2, [part((2, 3), (3, 4))] * 2
    model = {"encoder": {"layers": several[0]}, "decoder": {"layers": several[1]}}
    assert classes(model) == ["DecoderLayer", "Decoder", "EncoderLayer", "Encoder"]


def test_a_group_of_layers_leaves_the_plain_name_to_the_layers() -> None:
    group = {"local_layer": part((5, 2, 3)), "global_layer": part((5, 2, 3))}
    assert classes({"layers": group}, scan={"layers": 0}) == ["Layer", "LayerGroup"]


def test_parts_that_differ_in_dtypes_alone_contend_for_no_name() -> None:
    layer = {"up": {"kernel": jnp.zeros((2, 3))}, "norm": {"scale": jnp.zeros(3)}}
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), layer)
    assert classes({"encoder": {"layer": layer}, "decoder": {"layer": half}})[0] == "Layer"


def test_the_leaves_of_each_layer_of_a_list_are_counted_and_a_stack_once() -> None:
    layer = {"up": {"kernel": jnp.zeros((2, 3))}, "norm": {"scale": jnp.zeros(3)}}
    model = {"layers": [layer] * 5, "head": {"kernel": jnp.zeros((3, 2))}}
    text = cs.to_source(cs.infer({"params": model}))
    assert f'"""{len(jax.tree.leaves(model))} leaves, 51 parameters."""' in text
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[layer] * 5)
    text = cs.to_source(cs.infer({"params": {**model, "layers": stack}}, scan={"layers": 0}))
    assert '"""3 leaves, 51 parameters."""' in text
    assert "leaves with one item in each list." in cs.to_source(FlatModel, tx="optax.adam(1e-3)")


def test_of_two_widths_each_is_called_by_where_it_is() -> None:
    def mlp(width: int) -> dict[str, Any]:
        return {"up": {"kernel": jnp.zeros((4, width))}, "down": {"kernel": jnp.zeros((width, 4))}}

    text = cs.to_source(cs.infer({"params": {"shared": mlp(6), "last": {"mlp": mlp(8)}}}))
    sizes: dict[str, Any] = {}
    exec(text, sizes)
    assert sizes["SIZES"] == {"embed": 4, "mlp": 8, "shared_mlp": 6}
    assert 'shared: Mlp = cs.field(dims={"mlp": "shared_mlp"})' in text


def test_what_an_optimizer_keeps_stands_after_the_model_it_is_of() -> None:
    text = cs.to_source(lists(3))
    assert text.index("    params: ") < text.index("    opt_state: ") < text.index("    step: ")


def test_the_rows_of_a_relative_embedding_are_buckets() -> None:
    model = {
        "relative": {"embedding": jnp.zeros((32, 4))},
        "words": {"embedding": jnp.zeros((9, 5))},
    }
    written: dict[str, Any] = {}
    exec(cs.to_source(cs.infer({"params": model})), written)
    assert written["SIZES"] == {"buckets": 32, "heads": 4, "vocab": 9, "embed": 5}


def test_a_name_that_stands_for_more_says_so() -> None:
    kernel = {"kernel": jnp.zeros((4, 4, 3, 8))}
    text = cs.to_source(cs.infer({"params": {"conv": kernel, "norm": {"scale": jnp.zeros(4)}}}))
    assert '"height": 4,  # stands for width and embed too, of the same size' in text


def test_where_a_block_says_something_else_a_class_is_written() -> None:
    kernel, bias = jnp.zeros((2, 3)), jnp.zeros(3)
    others: list[dict[str, Any]] = [
        {"kernel": kernel, "bias": jnp.zeros(2)},
        {"kernel": kernel.astype(int), "bias": bias},
        {"kernel": kernel, "bias": bias, "more": bias},
        {"bias": bias},
        {"kernel": [kernel, kernel]},
    ]
    for layer in others:
        layout = cs.infer({"params": {"layer": layer}})
        text = cs.to_source(layout)
        assert "blocks" not in text and told(executed(text)) == told(layout)
    text = cs.to_source(cs.infer({"params": {"layer": {"kernel": kernel, "bias": bias}}}))
    assert "    layer: blocks.linen.Dense = " in text


def test_an_attribute_called_blocks_hides_no_block() -> None:
    layer = {"up": {"kernel": jnp.zeros((2, 3))}}
    layout = cs.infer({"params": {"blocks": [layer, layer], "head": layer["up"]}})
    text = cs.to_source(layout)
    assert "    blocks: list[Block]" in text and "    head: cs.blocks.linen.Dense" in text
    assert told(executed(text)) == told(layout)


def test_layers_of_several_dtypes_are_told_by_globs() -> None:
    norm = {"scale": jnp.zeros(3)}
    layer = {"up": {"kernel": jnp.zeros((2, 3), "bfloat16")}, "norm": norm}
    layout = cs.infer({"params": {"a": layer, "b": layer, "c": {"up": layer["up"]}}})
    text = cs.to_source(layout)
    assert 'dtype={"**": "bfloat16", "**/scale": "float32"}' in text
    assert told(executed(text)) == told(layout)


def test_equal_parts_with_an_embedding_of_three_axes_are_one_class() -> None:
    """As of rotary tables, one for each head: two places of other sizes, whose dims the class has to name."""
    tables = {
        "short": {"embedding": jnp.zeros((2, 4, 6))},
        "long": {"embedding": jnp.zeros((3, 8, 9))},
    }
    layout = cs.infer({"params": tables})
    text = cs.to_source(layout)
    assert told(executed(text)) == told(layout)
    assert 'embedding: Float32[Array, "embedding_0 rows features"]' in text


def test_parts_without_elements_are_not_the_class_of_parts_that_have_some() -> None:
    """No place can say ``dims={"inputs": 0}``; and places that all have none are one class."""
    shapes = {"a": (0, 4), "b": (3, 5), "c": (3, 0), "d": (0, 6)}
    params = {
        name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])}
        for name, shape in shapes.items()
    }
    layout = cs.infer({"params": params})
    text = cs.to_source(layout)
    assert told(executed(text)) == told(layout)
    assert text.count('kernel: Float32[Array, "0 outputs"]') == 1


def test_a_small_change_of_a_model_is_a_small_change_of_the_text() -> None:
    def text(bias: bool) -> list[str]:
        layer: dict[str, Any] = {"kernel": jnp.zeros((2, 3))}
        changed = {**layer, "bias": jnp.zeros(3)} if bias else layer
        layers = {f"layer_{n}": layer for n in range(20)}
        return cs.to_source(cs.infer({"params": {**layers, "layer_7": changed}})).splitlines()

    pair = text(False), text(True)
    assert len(set(pair[0]) ^ set(pair[1])) <= 6


def test_a_schema_of_blocks_is_written_as_itself() -> None:
    class Layer(cs.Schema):
        up: cs.blocks.linen.Dense = cs.field(dims={"out_features": "mlp"})
        norm: cs.blocks.linen.BatchNorm = cs.field(dims={"features": "mlp"})

    for schema in (Layer, cs.linen.Params[Layer], cs.nnx.Params[Layer]):
        text = cs.to_source(schema)
        assert told(executed(text)) == told(cs.layout(schema))
        assert "dtype=" not in text and "has=" not in text
        assert "up: blocks." in text and "norm: blocks." in text


def states(names: list[str]) -> list[str]:
    """The transformations of optax whose states are not written as they are."""
    wrong: list[str] = []
    for name in names:
        sizes = optimizers.SIZED.get(name, optimizers.SIZES)
        tx = optimizers.make(name)
        linen = cs.infer(optimizers.linen_state(tx, sizes), lists=["layers_{i}"])
        view = cs.infer(nnx.state(optimizers.NnxTrainState(tx, sizes)))
        for layout in (linen, view):
            if told(executed(cs.to_source(layout))) != told(layout):
                wrong.append(name)
    return wrong


def test_what_each_kind_of_optimizer_keeps_is_written() -> None:
    assert not states(
        ["adafactor", "sm3", "lars", "masked", "multi_transform", "schedule_free_adamw"]
    )


def test_a_text_is_taken_by_the_checkers_of_types() -> None:
    # mypy and pyright, both strict, read that file.
    written = Path(__file__).parent / "typing" / "written.py"
    assert written.read_text() == cs.to_source(READINGS["NNX"]())


def test_the_text_does_not_grow_with_the_depth() -> None:
    few, many = (cs.to_source(lists(depth)).splitlines() for depth in (3, 48))
    assert len(few) == len(many)


BLOCKS = {
    "LayerNorm_0": "norm1",
    "LayerNorm_1": "norm2",
    "Dense_0": "wi",
    "Dense_1": "wo",
    "MultiHeadDotProductAttention_0": "attention",
}


def adapted() -> cs.Lens:
    tx = flax_models.OPTIMIZERS["chain schedule"]
    rules = [cs.rename(f"layers[]/{old}", f"layers[]/{new}") for old, new in BLOCKS.items()]
    states = flax_models.linen_state(tx), flax_models.nnx_state(tx)
    return cs.adapt(*states, scan={"layers": 1}, rules=rules)


def derived() -> cs.Lens:
    tx = optax.adamw(1e-3)
    source = cs.linen.TrainState[flax_models.ScannedSchema, tx]
    return cs.derive(source, cs.nnx.TrainState[flax_models.NnxSchema, tx])


class Tied(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    head: Float32[Array, "vocab embed"] = cs.field(optional=True, default=cs.same_as("embedding"))


def falls_back() -> cs.Lens:
    return cs.derive(Tied, Tied)


LENSES: dict[str, tuple[Callable[[], cs.Lens], str]] = {
    "adapted": (adapted, ""),
    "derived": (derived, "optax.adamw(1e-3)"),
    "composed": (lambda: adapted() >> ~adapted(), ""),
    "falls back": (falls_back, ""),
    "bound": (lambda: derived().bind(depth=3), "optax.adamw(1e-3)"),
}


def test_a_transformation_may_be_named_in_a_module_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_training.py").write_text("import optax\n\ntx = optax.adamw(1e-3)\n")
    text = cs.to_source(derived(), tx="own_training.tx")
    assert "import own_training\n" in text and "tx = own_training.tx\n" in text
    module = types.ModuleType("written")
    exec(compile(text, "written.py", "exec"), vars(module))
    assert sorted(str(module.lens).splitlines()) == sorted(str(derived()).splitlines())
    said = "(lambda rate: optax.adamw(rate))(float(jnp.float32(1e-3)))"
    assert "import jax.numpy as jnp\n" in cs.to_source(derived(), tx=said)
    with pytest.raises(cs.SchemaError, match="names of modules, found no_such_module") as caught:
        cs.to_source(derived(), tx="no_such_module.tx")
    assert 'tx="my_training.tx"' in str(caught.value)


CHAINS = (
    "optax.adamw(1e-3)",
    "optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(1e-3))",
)


def of_two_chains() -> cs.Lens:
    old, new = (eval(text, {"optax": optax}) for text in CHAINS)
    source = cs.linen.TrainState[flax_models.ScannedSchema, old]
    view = cs.nnx.TrainState[flax_models.NnxSchema, new]
    return cs.derive(source, view, rules=[cs.reset(source="opt_state/0", view="opt_state")])


def test_each_side_of_a_lens_may_have_a_transformation_of_its_own() -> None:
    lens = of_two_chains()
    text = cs.to_source(lens, tx=CHAINS)
    assert f"source_tx = {CHAINS[0]}\nview_tx = {CHAINS[1]}\n" in text
    module = types.ModuleType("written")
    exec(compile(text, "written.py", "exec"), vars(module))
    assert sorted(str(module.lens).splitlines()) == sorted(str(lens).splitlines())
    assert (module.source.parts, module.view.parts) == (lens.source.parts, lens.view.parts)


@pytest.mark.parametrize("number", [0, 1])
def test_one_transformation_for_two_optimizers_is_told(number: int) -> None:
    with pytest.raises(cs.SchemaError) as caught:
        cs.to_source(of_two_chains(), tx=CHAINS[number])
    [fault] = caught.value.mismatches
    assert fault.path == "tx"
    # The text is wrong for the other side.
    kept = ("ScaleByAdamState", "TraceState")
    assert kept[1 - number] in fault.expected
    assert kept[number] in fault.found
    assert 'pass one for each, tx=("run.source_tx", "run.view_tx")' in fault.hint


def test_the_transformation_of_another_layout_is_told() -> None:
    with pytest.raises(cs.SchemaError, match="pass the one that it was made with") as caught:
        cs.to_source(FlatModel, tx="optax.sgd(1e-3)")
    [fault] = caught.value.mismatches
    assert "ScaleByAdamState" in fault.expected
    # Of two chains of the same parts, a leaf tells them apart.
    with pytest.raises(cs.SchemaError, match="bfloat16"):
        cs.to_source(FlatModel, tx='optax.adam(1e-3, mu_dtype="bfloat16")')


@pytest.mark.parametrize(
    ("tx", "said"),
    [
        (("optax.adamw(1e-3)",), "a text, or one for each of 2 layouts"),
        (("optax.adamw(1e-3)",) * 3, "a text, or one for each of 2 layouts"),
        (optax.adamw(1e-3), "a text, or one for each of 2 layouts"),
        (("optax.adamw(1e-3)", ""), "the transformation of the optimizer of"),
        ("optax.adamw(1e-3", "an expression of Python"),
        ("optax.no_such_name(1e-3)", "which raises AttributeError"),
    ],
    ids=range(6),
)
def test_what_is_no_transformation_is_told(tx: Any, said: str) -> None:
    with pytest.raises(cs.SchemaError, match=said) as caught:
        cs.to_source(derived(), tx=tx)
    assert {fault.path for fault in caught.value.mismatches} == {"tx"}


@pytest.mark.parametrize("name", LENSES)
def test_what_is_executed_is_the_lens_that_was_written(name: str) -> None:
    make, tx = LENSES[name]
    lens = make()
    module = types.ModuleType("written")
    exec(compile(cs.to_source(lens, tx=tx), "written.py", "exec"), vars(module))
    assert sorted(str(module.lens).splitlines()) == sorted(str(lens).splitlines())
    assert module.lens.dims == lens.dims
    state = flax_models.linen_state(flax_models.OPTIMIZERS["chain schedule"])
    if name != "adapted":
        return
    cs.assert_trees_identical(module.lens.get(state), lens.get(state))


def test_a_layout_that_starts_an_optimizer_asks_how_that_is_written() -> None:
    with pytest.raises(cs.SchemaError, match="pass tx="):
        cs.to_source(derived())


RULES = [
    cs.rename("a", "b"),
    cs.rename("a/kernel", "b", axes="1 0"),
    cs.rename("q", "query", axes="heads*dim embed -> embed heads dim"),
    cs.private("a", 0.0),
    cs.private("it's/b", float("-inf")),
    cs.private("a", cs.own),
    cs.private("**/x_*", cs.fresh_key(3)),
    cs.private("a", cs.constant_key(3)),
    cs.private("a", 0.5, small="v", large="w"),
    cs.private(nnx.RngState, cs.fresh_key(0)),
    cs.apart("a"),
    cs.apart("a", 1),
    cs.apart("a", cs.fresh_key(0)),
    cs.move("opt_state/0", "opt_state/1"),
    cs.reset(source="a"),
    cs.reset(source="a", view="b"),
    cs.raw_key("a"),
    cs.tie("a", "b"),
    cs.tie("a", "b", axes="1 0"),
    cs.replicated(0),
    cs.replicated(1, side="view"),
    cs.fuse("a", ["b", "c"]),
    cs.fuse("a", ["b", "c"], "3*heads"),
    cs.total("a", ["b", "c"]),
    cs.dequantize("a", scale="b"),
    cs.dequantize("a", scale="b", block=(1, None), rounding="nearest"),
    cs.lora("a", a="b", b="c", alpha=16),
    cs.scale("a", 0.125),
    cs.flip("a", "b"),
    cs.pad("a", "b", "c"),
    cs.pad("a", "b", "c", float("nan")),
    cs.repeat("a", "rep"),
    cs.repeat("a", 4, axis="kv*4"),
    cs.series("a[]", "b[]", name="c[]"),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_repr_of_a_rule_rebuilds_it(rule: Any) -> None:
    assert eval(repr(rule), {name: getattr(cs, name) for name in dir(cs)}) == rule


def test_what_classes_cannot_say_is_an_error() -> None:
    class Local:
        """A container that no module gives out."""

        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf

    jax.tree_util.register_pytree_node(Local, lambda x: ((x.leaf,), None), lambda _, x: Local(*x))
    with pytest.raises(cs.SchemaError, match="a class that a module gives out"):
        cs.to_source(cs.infer({1: Local(jnp.zeros(2))}))


def mixed(depth: int, kind: str) -> cs.Layout:
    """Layers of two kinds: a first one that differs, or one of each in turn; as a list, or side by side."""
    dense = {"up": jnp.zeros((3, 4)), "down": jnp.zeros((4, 3))}
    experts = {"router": jnp.zeros((3, 5)), "up": jnp.zeros((5, 3, 4))}
    is_dense = [n % 2 == 0 if "turns" in kind else n == 0 for n in range(depth)]
    layers = [dense if one else experts for one in is_dense]
    if "list" in kind:
        return cs.infer({"model": {"layers": layers, "head": jnp.zeros((3, 7))}})
    beside = {f"layers_{n}": layer for n, layer in enumerate(layers)}
    if "bare" in kind:
        return cs.layout(cs.infer(beside))
    return cs.infer({"params": {**beside, "head": jnp.zeros((3, 7))}})


@pytest.mark.parametrize("kind", ["list", "list, in turns", "beside", "beside, in turns", "bare"])
def test_a_list_whose_items_differ_does_not_grow_with_the_depth(kind: str) -> None:
    texts = [cs.to_source(mixed(depth, kind)) for depth in (6, 40)]
    for text, depth in zip(texts, (6, 40), strict=True):
        assert told(executed(text)) == told(mixed(depth, kind))
        assert "items=" in text
    counts = [text.count("\n") for text in texts]
    assert counts[0] == counts[1]


@given(
    st.lists(st.sampled_from("ABC"), min_size=1, max_size=40),
    st.integers(1, 4),
    st.lists(st.sampled_from("ABC"), max_size=5),
)
def test_the_text_of_items_is_these_items(group: list[str], times: int, rest: list[str]) -> None:
    """Whatever takes turns in it, groups longer than those that are looked for too."""
    names = group * times + rest
    assert eval(items_text(names), {name: name for name in "ABC"}) == names


def test_the_text_of_many_irregular_items_is_soon_made() -> None:
    """Each is compared with those near it, not with all."""
    draw = random.Random(0)
    names = Counted([draw.choice("AB") for _ in range(1000)])
    items_text(names)
    assert Counted.taken < 50 * len(names)


class Counted(list[str]):
    """Names of items, which count how often some of them are asked for."""

    taken = 0

    def __getitem__(self, asked: Any) -> Any:
        """What is asked for."""
        Counted.taken += 1
        return super().__getitem__(asked)


def test_items_whose_fields_differ_keep_a_line_each() -> None:
    """Of which a list would lose what the field of one says."""
    layers = [{"up": jnp.zeros((3, 4))}, {"up": jnp.zeros((3, 6))}, {"up": jnp.zeros((3, 4))}]
    layout = cs.infer({"model": {"layers": layers}})
    text = cs.to_source(layout)
    assert "items=" not in text
    assert told(executed(text)) == told(layout)


def test_a_schema_is_written_with_the_names_of_its_dims() -> None:
    text = cs.to_source(flax_models.ScannedSchema)
    assert told(executed(text)) == told(cs.layout(flax_models.ScannedSchema))
    assert "SIZES" not in text
    assert "heads head_dim" in text


def test_sizes_of_which_nothing_tells_what_they_are_are_doubted() -> None:
    text = cs.to_source(cs.infer({"params": {"x": {"w": jnp.zeros((5, 7))}}}))
    assert '"size_5": 5,  # nothing tells what it is' in text


if __name__ == "__main__":  # all of optax, which takes half a minute
    every = [name for name in optimizers.found() if name not in optimizers.EXCEPTIONS]
    failed = states(every)
    print(f"{len(every)} transformations, written otherwise: {failed or 'none'}")

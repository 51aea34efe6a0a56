"""Leaves that are computed of several: cs.dequantize and cs.lora. Values are held against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16, Float8e4m3fn, Float32, Int8
from support.outcomes import refused

import ckpt_schema as cs
from ckpt_schema.testing import check_laws

RNG = np.random.default_rng(0)
E4M3 = ml_dtypes.float8_e4m3fn


def same(found: Any, wanted: Any) -> None:
    cs.assert_trees_identical(found, wanted)


def on_host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


# --- Numbers with scales  ---


class Proj(cs.Schema):
    w: Float8e4m3fn[Array, "out in"] = cs.field(key="weight")
    scale: Float32[Array, "rows columns"] = cs.field(key="weight_scale_inv")


class File(cs.Schema, joined="."):
    """As DeepSeek's files are: numbers of e4m3, and a scale for each block."""

    layers: list[Proj] = cs.field(key="model.layers.{i}.q_proj", length="depth")
    norm: Float32[Array, " in"] = cs.field(key="model.norm.weight")


class Dense(cs.Schema):
    w: Float32[Array, "in out"] = cs.field(key="kernel")


class Model(cs.Schema):
    layers: Dense = cs.field(scan="depth", axis=0)
    norm: Float32[Array, " in"]


PARTS = cs.dequantize("**/w", scale="**/scale", block=(4, 4))
ANEW = cs.dequantize("**/w", scale="**/scale", block=(4, 4), rounding="nearest")
LENS, ROUNDED = (cs.derive(File, Model, rules=[rule]) for rule in (PARTS, ANEW))


def quantized(out: int = 6, inner: int = 8, depth: int = 2) -> dict[str, Any]:
    file: dict[str, Any] = {"model.norm.weight": RNG.normal(size=inner).astype(np.float32)}
    for number in range(depth):
        name = f"model.layers.{number}.q_proj.weight"
        file[name] = RNG.normal(size=(out, inner)).astype(E4M3)
        grid = -(-out // 4), -(-inner // 4)
        file[f"{name}_scale_inv"] = RNG.uniform(0.5, 2, size=grid).astype(np.float32)
    return file


def by_hand(file: dict[str, Any], number: int = 0) -> np.ndarray[Any, Any]:
    """The products, element by element."""
    name = f"model.layers.{number}.q_proj.weight"
    values, scales = file[name].astype(np.float32), file[f"{name}_scale_inv"]
    made = np.empty_like(values)
    for i, j in np.ndindex(*values.shape):
        made[i, j] = values[i, j] * scales[i // 4, j // 4]
    return made


def test_each_number_has_the_scale_of_its_block() -> None:
    file = quantized()
    found = LENS.get(file)
    same(found["layers"]["kernel"], np.stack([by_hand(file, n).T for n in (0, 1)]))
    same(found["norm"], file["model.norm.weight"])
    for make in (LENS.get, jax.jit(LENS.get)):
        same(on_host(make(jax.tree.map(jnp.asarray, file))), found)
    assert LENS.get(jax.eval_shape(lambda: file))["layers"]["kernel"].shape == (2, 8, 6)
    arrays = jax.tree.map(jnp.asarray, file)
    same(on_host(jax.jit(lambda: LENS.get(arrays))()), found)  # no leaf is traced itself


def test_numbers_that_nobody_touched_are_what_they_were() -> None:
    file = quantized()
    again = LENS.put(LENS.get(file), onto=file)
    assert all(again[name] is file[name] for name in file if "q_proj" in name)
    model = LENS.get(file)
    model["layers"]["kernel"] = model["layers"]["kernel"].copy()
    model["layers"]["kernel"][1] *= 2
    refused(
        lambda: LENS.put(model, onto=file),
        "model.layers.1.q_proj.weight  expected a rule that says what becomes of the parts",
        'dequantize(..., rounding="nearest")',
    )
    refused(lambda: LENS.put(model), "q_proj.weight_scale_inv", "pass onto=")
    refused(lambda: jax.jit(lambda v: LENS.put(v, onto=file))(model), "a tracer")
    other = ROUNDED.put(model, onto=file)
    for name in (n for n in file if ".0." in n):
        assert other[name] is file[name]  # this layer is as it was
    far = np.abs(by_hand(other, 1) - 2 * by_hand(file, 1))
    assert far.max() <= np.abs(by_hand(file, 1)).max() * 2 * 2.0**-4
    scales = other["model.layers.1.q_proj.weight_scale_inv"]
    blocks = 2 * np.abs(by_hand(file, 1))
    assert scales[1, 1] == np.float32(blocks[4:, 4:].max() / np.float32(448))
    alone = ROUNDED.put(model)  # so many scales as there are blocks
    same(on_host(alone)["model.layers.1.q_proj.weight_scale_inv"], scales)
    model["layers"]["kernel"][0, 0, 0] = np.inf
    refused(lambda: ROUNDED.put(model), "expected a finite number")


@pytest.mark.parametrize(
    ("dtype", "block", "scales"),
    [(np.int8, (1, None), (6,)), (np.int8, (None, None), ()), (ml_dtypes.int4, (2, 3), (3, 3))],
)
def test_scales_of_rows_of_all_and_of_blocks(dtype: Any, block: Any, scales: Any) -> None:
    values = RNG.integers(-8, 8, size=(6, 8)).astype(dtype)
    tree = {"w": values, "s": RNG.uniform(1, 2, size=scales).astype(np.float32)}
    source = cs.infer(tree)
    view = cs.infer({"w": np.zeros((6, 8), np.float32)})
    rule = cs.dequantize("w", scale="s", block=block, rounding="nearest")
    lens = cs.derive(source, view, rules=[rule])
    whole = (6 if block[0] is None else block[0]), (8 if block[1] is None else block[1])
    grid = tree["s"].reshape(-(-6 // whole[0]), -(-8 // whole[1]))
    index = np.indices((6, 8))
    by_element = grid[index[0] // whole[0], index[1] // whole[1]]
    found = lens.get(tree)
    same(found["w"], values.astype(np.float32) * by_element)
    same(lens.put(found, onto=tree), tree)
    again = lens.get(on_host(lens.put({"w": found["w"] * 3})))
    top = 7 if dtype is ml_dtypes.int4 else 127
    assert np.abs(again["w"] - 3 * found["w"]).max() <= np.abs(3 * found["w"]).max() / top * 0.51


def test_a_block_of_zeros_has_the_scale_one() -> None:
    model = {"layers": {"kernel": np.zeros((1, 8, 6), np.float32)}, "norm": np.ones(8, np.float32)}
    model["layers"]["kernel"][0, 0, 0] = 448
    found = on_host(ROUNDED.put(model))
    name = "model.layers.0.q_proj.weight"
    same(found[f"{name}_scale_inv"], np.ones((2, 2), np.float32))
    same(by_hand(found), model["layers"]["kernel"][0].T)


def test_on_a_mesh_the_bits_are_the_same_and_nothing_moves() -> None:
    file = quantized(16, 8)
    wanted = LENS.get(file)
    for shape in ((8, 1), (4, 2), (2, 4)):
        mesh = jax.make_mesh(shape, ("x", "y"))
        spread = {
            name: jax.device_put(x, NamedSharding(mesh, PartitionSpec("x", "y")))
            if name.endswith("weight") and x.ndim == 2
            else jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
            for name, x in file.items()
        }
        found = LENS.get(spread)
        assert found["layers"]["kernel"].sharding.spec == PartitionSpec(None, "y", "x")
        same(on_host(found), wanted)
        same(LENS.put(found, onto=spread), spread)


def test_files_are_read_streamed_and_written_back_to_the_bit(tmp_path: Path) -> None:
    file = quantized()
    cs.hf.save(tmp_path / "fp8", file)
    target = jax.eval_shape(lambda: LENS.get(file))
    found = cs.hf.restore(tmp_path / "fp8", target, LENS)
    same(on_host(found), LENS.get(file))
    cs.hf.save(tmp_path / "back", found, LENS, onto=cs.hf.load(tmp_path / "fp8"))
    same(cs.hf.load(tmp_path / "back"), file)
    streamed = dict(LENS.stream(file))
    same(streamed["layers/kernel"], LENS.get(file)["layers"]["kernel"])
    cs.hf.save(tmp_path / "anew", found, ROUNDED)
    assert cs.hf.load(tmp_path / "anew").keys() == file.keys()
    cs.orbax.save(tmp_path / "orbax", file)
    cs.orbax.convert(tmp_path / "orbax", tmp_path / "dense", LENS, verify=True)
    same(on_host(cs.orbax.load(tmp_path / "dense"))["layers"], LENS.get(file)["layers"])


def test_what_is_lost_is_said_and_it_is_written_as_text() -> None:
    (lost,) = ROUNDED.loss.values()
    assert "rounded in float32; back, other values are rounded to float8_e4m3fn" in lost
    for lens in (LENS, ROUNDED):
        again = cs.from_json(cs.to_json(lens), cs.Lens)
        assert str(again) == str(lens)
        assert "by blocks" in str(lens)
    assert 'scale="**/scale", block=(4, 4), rounding="nearest")' in cs.to_source(ROUNDED)


class Narrow(cs.Schema):
    layers: Dense = cs.field(scan="depth", axis=0)
    norm: BFloat16[Array, " in"]


class Rounded(cs.Schema):
    w: BFloat16[Array, "out in"] = cs.field(key="weight")


def test_another_dtype_takes_a_cast() -> None:
    class One(cs.Schema):
        w: Float8e4m3fn[Array, "out in"]
        scale: Float32[Array, "rows columns"]

    rule = cs.dequantize("w", scale="scale", block=(4, 4))
    cast = cs.cast("w", rounding="nearest")
    lens = cs.derive(One, Rounded, rules=[rule, cast])
    file = quantized()
    one = {"w": file["model.layers.0.q_proj.weight"]}
    one["scale"] = file["model.layers.0.q_proj.weight_scale_inv"]
    found = lens.get(one)
    same(found["weight"], by_hand(file).astype(ml_dtypes.bfloat16))
    again = lens.put(found, onto=one)
    assert again["w"] is one["w"] and again["scale"] is one["scale"]
    exact = cs.derive(One, Rounded, rules=[rule])
    refused(lambda: exact.get(one), "w  expected values that bfloat16 has")


class Missing(cs.Schema):
    w: Float8e4m3fn[Array, "out in"]


class Plain(cs.Schema):
    w: Float32[Array, "out in"]
    scale: Float32[Array, "rows columns"]


class Integers(cs.Schema):
    w: Int8[Array, "out in"]
    scale: Int8[Array, "rows columns"]


ONE = cs.dequantize("w", scale="scale")


@pytest.mark.parametrize(
    ("source", "rule", "words"),
    [
        (Missing, ONE, "expected w and scale on one side, found no scale"),
        (Missing, cs.dequantize("*", scale="**/scale"), "the same stars in each path"),
        (Missing, cs.dequantize("*", scale="*_scale"), "found no w_scale"),
        (Plain, ONE, "w  expected float8_*, int8, int4, found float32[out in]"),
        (Integers, ONE, "expected scales that are floats"),
        (Missing, cs.dequantize("v", scale="scale"), "found no v and no scale"),
    ],
)
def test_what_cannot_be_dequantized_is_an_error(source: Any, rule: Any, words: str) -> None:
    refused(lambda: cs.derive(source, Rounded, rules=[rule]), words)


def test_blocks_are_as_many_as_scales() -> None:
    file = quantized()
    file["model.layers.1.q_proj.weight_scale_inv"] = np.ones((2, 3), np.float32)
    file["model.layers.0.q_proj.weight_scale_inv"] = np.ones((2, 3), np.float32)
    refused(
        lambda: LENS.get(file),
        "q_proj.weight_scale_inv",
        "expected [2, 2], a scale for each block of 4 4 of [6, 8], found [2, 3]",
    )
    huge = quantized(depth=1)
    huge["model.layers.0.q_proj.weight_scale_inv"][:] = 3e38
    refused(lambda: LENS.get(huge), "expected a finite number")


@pytest.mark.parametrize("block", [(), (0, 4), "128", (1.5,), 128])
def test_a_block_is_made_of_numbers(block: Any) -> None:
    refused(lambda: cs.dequantize("w", scale="s", block=block), "whole numbers of at least 1")


def test_a_rounding_is_a_known_word() -> None:
    rounding: Any = "up"
    refused(lambda: cs.dequantize("w", scale="s", rounding=rounding), '"nearest"')


# --- Adapters of low rank  ---


class Lora(cs.Schema):
    kernel: Float32[Array, "in out"]
    a: Float32[Array, "in rank"] = cs.field(key="lora_a")
    b: Float32[Array, "rank out"] = cs.field(key="lora_b")


class Adapted(cs.Schema):
    layers: list[Lora] = cs.field(key="layers_{i}", length="depth")
    head: Float32[Array, "in vocab"]


class Merged(cs.Schema):
    kernel: Float32[Array, "out in"] = cs.field(key="weight")


class Served(cs.Schema):
    layers: Merged = cs.field(scan="depth", axis=1)
    head: Float32[Array, "in vocab"]


MERGE = cs.lora("**/kernel", a="**/a", b="**/b", alpha=8)
LORA = cs.derive(Adapted, Served, rules=[MERGE])
TOLD = [MERGE, cs.private("**/a", cs.own), cs.private("**/b", 0.0)]
LEFT = cs.derive(Adapted, Served, rules=TOLD)


def adapted(depth: int = 2, draw: Any = None) -> dict[str, Any]:
    def whole(*shape: int) -> Any:  # whose products and sums are exact
        return RNG.integers(-9, 9, size=shape).astype(np.float32)

    make = draw or whole
    shapes = {"kernel": (8, 16), "lora_a": (8, 4), "lora_b": (4, 16)}
    layers = {
        f"layers_{n}": {name: make(*shape) for name, shape in shapes.items()} for n in range(depth)
    }
    return {**layers, "head": make(8, 3)}


def merged(layer: dict[str, Any]) -> np.ndarray[Any, Any]:
    return (layer["kernel"] + 2 * (layer["lora_a"] @ layer["lora_b"])).T


def test_an_adapter_is_merged() -> None:
    tree = adapted()
    found = LORA.get(tree)
    wanted = np.stack([merged(tree["layers_0"]), merged(tree["layers_1"])], axis=1)
    same(found, {"layers": {"weight": wanted}, "head": tree["head"]})
    arrays = jax.tree.map(jnp.asarray, tree)
    same(on_host(LORA.get(arrays)), found)
    same(on_host(jax.jit(lambda: LORA.get(arrays))()), found)
    assert LORA.get(jax.eval_shape(lambda: tree))["layers"]["weight"].shape == (16, 2, 8)
    again = LORA.put(found, onto=tree)
    assert again["layers_1"]["kernel"] is tree["layers_1"]["kernel"]
    assert again["layers_1"]["lora_a"] is tree["layers_1"]["lora_a"]


def test_a_merged_leaf_does_not_tell_its_parts() -> None:
    tree, made = adapted(), LORA.get(adapted())
    refused(
        lambda: LORA.put(made, onto=tree),
        "layers_{0,1}/kernel",
        "add private('layers[]/a', own) and private('layers[]/b', own)",
        "the adapter stays",
    )
    left = LEFT.put(made, onto=tree)
    for number in range(2):
        own = tree[f"layers_{number}"]
        base = made["layers"]["weight"][:, number].T - 2 * (own["lora_a"] @ own["lora_b"])
        same(left[f"layers_{number}"], {**own, "kernel": base})
    refused(lambda: LEFT.put(made), "no size for rank")
    refused(lambda: LEFT.bind(rank=4).put(made), "lora_a", "pass onto=")
    both = [MERGE, cs.private("**/a", 0.0), cs.private("**/b", 0.0)]
    new = on_host(cs.derive(Adapted, Served, rules=both).bind(rank=4).put(made))
    same(new["layers_1"]["kernel"], made["layers"]["weight"][:, 1].T)
    assert not new["layers_1"]["lora_b"].any()


def test_it_is_the_same_on_every_mesh_to_the_last_bit() -> None:
    def floats(*shape: int) -> Any:
        return RNG.normal(size=shape).astype(np.float32)

    tree = adapted(draw=floats)
    wanted = LORA.get(tree)
    exact = np.stack(
        [merged(jax.tree.map(np.float64, tree[f"layers_{n}"])) for n in (0, 1)], axis=1
    )
    assert np.abs(wanted["layers"]["weight"] - exact).max() < 1e-5
    arrays = jax.tree.map(jnp.asarray, tree)
    same(on_host(jax.jit(LORA.get)(arrays)), wanted)
    for shape in ((8, 1), (4, 2), (1, 8)):
        mesh = jax.make_mesh(shape, ("x", "y"))
        spread = jax.tree.map(
            lambda x, mesh=mesh: jax.device_put(
                x, NamedSharding(mesh, PartitionSpec("x" if x.shape[0] == 8 else None))
            ),
            tree,
        )
        same(on_host(LORA.get(spread)), wanted)
        same(LORA.put(LORA.get(spread), onto=spread), spread)


class Peft(cs.Schema):
    kernel: Float32[Array, "out in"] = cs.field(key="base_layer.weight")
    a: Float32[Array, "r in"] = cs.field(key="lora_A.weight")
    b: Float32[Array, "out r"] = cs.field(key="lora_B.weight")


def test_axes_are_told_by_names_or_as_peft_has_them() -> None:
    one = {name: RNG.integers(-9, 9, size=s).astype(np.float32) for name, s in PEFT_SHAPES.items()}
    wanted = one["w"] + 4 * (one["b"] @ one["a"])
    view = cs.infer({"w": one["w"]})
    found = cs.derive(cs.infer(one), view, rules=[cs.lora("w", a="a", b="b", alpha=8)])
    same(found.get(one), {"w": wanted})
    square = {name: np.ones((2, 2), np.float32) for name in one}
    refused(
        lambda: cs.derive(
            cs.infer(square),
            cs.infer({"w": square["w"]}),
            rules=[cs.lora("w", a="a", b="b", alpha=8)],
        ),
        "expected one axis that is the rank",
    )
    wrong = {**one, "b": np.ones((4, 3), np.float32)}
    refused(
        lambda: cs.derive(cs.infer(wrong), view, rules=[cs.lora("w", a="a", b="b", alpha=8)]),
        "two leaves whose product is float32[4 6]",
    )


PEFT_SHAPES = {"w": (4, 6), "a": (2, 6), "b": (4, 2)}


def test_an_adapter_is_restored_merged_streamed_and_converted(tmp_path: Path) -> None:
    tree = adapted()
    wanted = LORA.get(tree)
    cs.orbax.save(tmp_path / "lora", jax.tree.map(jnp.asarray, tree))
    target = jax.tree.map(jnp.zeros_like, wanted)
    same(on_host(cs.orbax.restore(tmp_path / "lora", target, LORA)), wanted)
    cs.orbax.convert(tmp_path / "lora", tmp_path / "merged", LORA)
    same(on_host(cs.orbax.load(tmp_path / "merged")), wanted)
    same(dict(LORA.stream(tree))["layers/weight"], wanted["layers"]["weight"])


def test_what_an_adapter_loses_is_said() -> None:
    assert LORA.loss == {
        "layers[]/kernel": "layers[]/kernel plus 8/rank times layers[]/b times layers[]/a alone "
        "is kept, rounded in float32"
    }
    again = cs.from_json(cs.to_json(LEFT), cs.Lens)
    assert str(again) == str(LEFT) and "merged, not exact" in str(again)
    assert 'cs.lora("**/kernel", a="**/a", b="**/b", alpha=8.0)' in cs.to_source(LORA)


@pytest.mark.parametrize("alpha", [None, 0, True, "16", float("nan")])
def test_alpha_is_a_number(alpha: Any) -> None:
    refused(lambda: cs.lora("w", a="a", b="b", alpha=alpha), "alpha", "lora_alpha")


class Half(cs.Schema):
    kernel: Float32[Array, "in out"]
    a: Float32[Array, "in rank"]


def test_half_an_adapter_is_an_error() -> None:
    for rule in (MERGE, cs.lora("kernel", a="a", b="b", alpha=1)):
        refused(lambda rule=rule: cs.derive(Half, Merged, rules=[rule]), "found no b")


class TwoProjs(cs.Schema):
    p: Proj
    q: Proj
    norm: Float32[Array, " in"]


class NoProj(cs.Schema):
    norm: Float32[Array, " in"]


def test_all_rules_whose_product_nobody_takes_are_told_at_once() -> None:
    rules = [cs.dequantize(f"{name}/w", scale=f"{name}/scale") for name in ("p", "q")]
    rules += [cs.private(name, cs.own) for name in ("p", "q")]
    wrong = "expected a partner of p/w, for what is computed", "expected a partner of q/w, for"
    refused(lambda: cs.derive(TwoProjs, NoProj, rules=rules), *wrong)


# --- Laws  ---


@pytest.mark.parametrize("lens", [ROUNDED, LEFT, LORA, LENS], ids=["anew", "left", "lora", "fp8"])
def test_the_laws(lens: cs.Lens) -> None:
    check_laws(lens, ["GetPut", "PutGet", "PutPut", "Naming", "Sharding"], max_examples=1)

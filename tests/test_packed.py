"""Numbers that stand several in a word: cs.dequantize(..., packed=...). Values are held against loops over bits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16, Float32, Int8, Int32, Int64, UInt8
from support.outcomes import refused

import ckpt_schema as cs
from ckpt_schema.testing import check_laws

RNG = np.random.default_rng(0)
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def same(found: Any, wanted: Any) -> None:
    cs.assert_trees_identical(found, wanted)


def on_host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def number(code: int, numbers: str) -> float:
    """What four or eight bits stand for."""
    if numbers == "float4_e2m1fn":
        return E2M1[code] if code < 8 else -E2M1[code - 8]
    bits = int(numbers.removeprefix("u").removeprefix("int"))
    is_negative = numbers.startswith("int") and code >> (bits - 1)
    return code - (1 << bits if is_negative else 0)


def by_hand(words: Any, numbers: str, axis: int = -1) -> np.ndarray[Any, Any]:
    """The numbers in words, bit by bit, the lowest first."""
    bits = 8 if numbers.endswith("8") else 4
    moved = np.moveaxis(words, axis, -1)
    count = words.dtype.itemsize * 8 // bits
    made = np.empty((*moved.shape[:-1], moved.shape[-1] * count), np.float64)
    for at in np.ndindex(*moved.shape):
        word = int.from_bytes(moved[at].tobytes(), "little")
        for n in range(count):
            code = word >> (n * bits) & ((1 << bits) - 1)
            made[(*at[:-1], at[-1] * count + n)] = number(code, numbers)
    return np.moveaxis(made, -1, axis)


def spread(grid: Any, shape: Any, block: Any) -> np.ndarray[Any, Any]:
    """What each element's block has."""
    made = np.empty(shape, grid.dtype)
    for at in np.ndindex(*shape):
        made[at] = grid[tuple(0 if b is None else i // b for i, b in zip(at, block, strict=True))]
    return made


# --- As gpt-oss's files are  ---


class Projection(cs.Schema):
    w: UInt8[Array, "experts out groups 16"] = cs.field(key="blocks")
    scale: UInt8[Array, "experts out groups"] = cs.field(key="scales")


class File(cs.Schema):
    """Two numbers a byte, 32 in a block, and exponents of two for scales; layers in a list."""

    layers: list[Projection] = cs.field(key="layers_{i}", length="depth")
    norm: BFloat16[Array, " groups"]


class Dense(cs.Schema):
    w: BFloat16[Array, "experts groups*32 out"] = cs.field(key="kernel")


class Model(cs.Schema):
    layers: Dense = cs.field(scan="depth", axis=0)
    norm: BFloat16[Array, " groups"]


SAID: dict[str, Any] = {"scale": "**/scale", "block": (32,), "packed": "float4_e2m1fn"}
PARTS = cs.dequantize("**/w", **SAID)
ANEW = cs.dequantize("**/w", **SAID, rounding="nearest")
LENS, ROUNDED = (cs.derive(File, Model, rules=[rule]) for rule in (PARTS, ANEW))


def blocks(experts: int = 2, out: int = 5, groups: int = 3, depth: int = 2, top: int = 252) -> Any:
    file: dict[str, Any] = {"norm": RNG.normal(size=groups).astype(ml_dtypes.bfloat16)}
    for n in range(depth):
        shape = experts, out, groups
        exponents = RNG.integers(0, top, shape).astype(np.uint8)
        words = RNG.integers(0, 256, (*shape, 16)).astype(np.uint8)
        file[f"layers_{n}"] = {"blocks": words, "scales": exponents}
    return file


def dense(layer: Any) -> Any:
    """What a layer stands for, as gpt-oss computes it: two to the exponent less 127."""
    numbers = by_hand(layer["blocks"], "float4_e2m1fn")
    made = numbers * 2.0 ** (layer["scales"].astype(np.float64)[..., None] - 127)
    flat = made.reshape(*made.shape[:2], -1)
    return flat.astype(ml_dtypes.bfloat16).swapaxes(1, 2)


def test_each_half_byte_is_a_number_times_two_to_an_exponent() -> None:
    file = blocks()
    file["layers_0"]["blocks"].reshape(-1)[:256] = np.arange(256)
    found = LENS.get(file)
    wanted = np.stack([dense(file["layers_0"]), dense(file["layers_1"])])
    same(found, {"layers": {"kernel": wanted}, "norm": file["norm"]})
    arrays = jax.tree.map(jnp.asarray, file)
    for make in (LENS.get, jax.jit(LENS.get)):  # subnormal products too
        same(on_host(make(arrays)), found)
    same(on_host(jax.jit(lambda: LENS.get(arrays))()), found)
    assert LENS.get(jax.eval_shape(lambda: file))["layers"]["kernel"].shape == (2, 2, 96, 5)


def test_what_nobody_touched_comes_back_and_what_is_another_is_refused() -> None:
    file = blocks()
    again = LENS.put(LENS.get(file), onto=file)
    for n, name in itertools.product(range(2), ("blocks", "scales")):
        assert again[f"layers_{n}"][name] is file[f"layers_{n}"][name]
    model = LENS.get(file)
    model["layers"]["kernel"] = model["layers"]["kernel"].copy()
    model["layers"]["kernel"][1] = 1
    refused(
        lambda: LENS.put(model, onto=file),
        "layers_1/blocks  expected a rule that says what becomes of the parts",
        'dequantize(..., rounding="nearest")',
    )
    other = ROUNDED.put(model, onto=file)
    assert other["layers_0"]["blocks"] is file["layers_0"]["blocks"]
    same(other["layers_1"]["blocks"], np.full((2, 5, 3, 16), 0x66, np.uint8))  # 4, times 1/4
    same(other["layers_1"]["scales"], np.full((2, 5, 3), 125, np.uint8))
    refused(lambda: LENS.put(model), "layers_{0,1}/scales", "pass onto=")


def test_of_other_values_each_block_has_the_least_scale_and_the_nearest_numbers() -> None:
    values = (RNG.normal(size=(1, 2, 64, 3)) * 2.0 ** RNG.integers(-9, 9, 3)).astype(
        ml_dtypes.bfloat16
    )
    values[0, 0, :32, 0] = 0
    model = {"layers": {"kernel": values}, "norm": np.ones(2, ml_dtypes.bfloat16)}
    made = on_host(ROUNDED.put(model))
    layer = made["layers_0"]
    numbers = by_hand(layer["blocks"], "float4_e2m1fn")
    for e, o, g in np.ndindex(2, 3, 2):
        given = values[0, e, 32 * g : 32 * g + 32, o].astype(np.float64)
        exponent = int(layer["scales"][e, o, g]) - 127
        if not given.any():
            assert exponent == 0 and not numbers[e, o, g].any()
            continue
        most = np.abs(given).max()
        assert most <= 6 * 2.0**exponent < 2 * most  # the half of it would not hold the greatest
        far = np.abs(given / 2.0**exponent - numbers[e, o, g])
        nearest = np.min([np.abs(np.abs(given) / 2.0**exponent - n) for n in E2M1], axis=0)
        np.testing.assert_array_equal(far, nearest)
    same(on_host(ROUNDED.put(jax.tree.map(jnp.asarray, model))), made)
    back = ROUNDED.get(made)
    same(ROUNDED.put(ROUNDED.get(made), onto=made), made)
    same(ROUNDED.get(on_host(ROUNDED.put(back))), back)  # nothing more is lost


def test_an_exponent_that_is_none_and_a_product_beyond_all_numbers_are_errors() -> None:
    file = blocks()
    file["layers_1"]["scales"][1, 2, 0] = 255
    none = "layers_1/scales  expected a finite number, found an exponent of 255, which is none"
    refused(lambda: LENS.get(file), none)
    refused(lambda: LENS.get(jax.tree.map(jnp.asarray, file)), none)
    file["layers_1"]["scales"][1, 2, 0] = 254
    file["layers_1"]["blocks"][1, 2, 0, 3] = 0x70  # 6 times 2**127
    refused(lambda: LENS.get(file), "layers_1/blocks  expected a finite number")


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_on_a_mesh_the_bits_are_the_same_and_words_stay_where_they_are(shape: Any) -> None:
    file = blocks(experts=2, out=8, groups=2)
    wanted, mesh = LENS.get(file), jax.make_mesh(shape, ("x", "y"))

    def put(x: Any) -> Any:
        # Words of one block are on several devices, and so are the experts' rows.
        spec = (None, "x", None, "y") if x.ndim == 4 else ()
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    spread_ = jax.tree.map(put, file)
    found = LENS.get(spread_)
    kernel_ = found["layers"]["kernel"]
    assert np.prod(kernel_.sharding.shard_shape(kernel_.shape)) * 8 == kernel_.size
    same(on_host(found), wanted)
    same(LENS.put(found, onto=spread_), spread_)
    # Doubled by NumPy: a device takes subnormal numbers for zero when it multiplies.
    doubled = jax.tree.map(lambda x: x * 2, wanted)
    moved = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), doubled, found)
    same(on_host(ROUNDED.get(ROUNDED.put(moved, onto=spread_))), doubled)


# --- Integers, and what stands for zero  ---


class Linear(cs.Schema):
    """As compressed-tensors packs a linear layer: eight numbers of four bits a word, and 8 for zero."""

    w: Int32[Array, "out words"] = cs.field(key="weight_packed")
    scale: BFloat16[Array, "out groups"] = cs.field(key="weight_scale")
    shape: Int64[Array, "2"] = cs.field(key="weight_shape")


class Uneven(cs.Schema):
    """The same with what stands for zero in each block, eight rows a word."""

    w: Int32[Array, "out words"] = cs.field(key="weight_packed")
    scale: BFloat16[Array, "out groups"] = cs.field(key="weight_scale")
    zero: Int32[Array, "rows groups"] = cs.field(key="weight_zero_point")
    shape: Int64[Array, "2"] = cs.field(key="weight_shape")


class Kernel(cs.Schema):
    w: BFloat16[Array, "words*8 out"] = cs.field(key="kernel")


OWN = cs.private("shape", cs.own)
EVEN = cs.derive(
    Linear,
    Kernel,
    rules=[cs.dequantize("w", scale="scale", block=(1, 4), packed="uint4", zero=8), OWN],
)
ZEROS: dict[str, Any] = {"scale": "scale", "block": (1, 4), "packed": "uint4", "zero": "zero"}
UNEVEN = cs.derive(Uneven, Kernel, rules=[cs.dequantize("w", **ZEROS), OWN])


def linear(out: int = 10, words: int = 2, *, zeros: bool = False) -> dict[str, Any]:
    file: dict[str, Any] = {
        "weight_packed": RNG.integers(-(2**31), 2**31, (out, words)).astype(np.int32),
        "weight_scale": RNG.uniform(0.01, 2, (out, 2 * words)).astype(ml_dtypes.bfloat16),
        "weight_shape": np.int64([out, 8 * words]),
    }
    if zeros:
        rows = -(-out // 8)
        file["weight_zero_point"] = RNG.integers(-(2**31), 2**31, (rows, 2 * words)).astype("i4")
    return file


def kernel(file: dict[str, Any], zero: Any = 8) -> Any:
    numbers = by_hand(file["weight_packed"], "uint4")
    scales = spread(file["weight_scale"], numbers.shape, (1, 4)).astype(np.float64)
    return ((numbers - zero) * scales).astype(ml_dtypes.bfloat16).T


def test_integers_less_what_stands_for_zero() -> None:
    file = linear()
    found = EVEN.get(file)
    same(found, {"kernel": kernel(file)})
    # Of 64 bits jax has no arrays.
    arrays = {name: jnp.asarray(x) for name, x in file.items() if x.dtype != np.int64}
    same(on_host(EVEN.get({**file, **arrays})), found)
    same(on_host(jax.jit(lambda some: EVEN.get({**file, **some}))(arrays)), found)
    again = EVEN.put(found, onto=file)
    assert all(again[name] is file[name] for name in file)


def test_zeros_of_each_block_are_packed_along_rows_or_not_at_all() -> None:
    file = linear(zeros=True)
    full = by_hand(file["weight_zero_point"], "uint4", axis=0)[:10]
    zeros = spread(full, (10, 16), (1, 4))
    found = UNEVEN.get(file)
    same(found, {"kernel": kernel(file, zeros)})
    again = UNEVEN.put(found, onto=file)
    assert all(again[name] is file[name] for name in file)
    plain = {**file, "weight_zero_point": full.astype(np.int32)}
    same(UNEVEN.get(plain), found)
    wrong = {**file, "weight_zero_point": np.zeros((3, 4), np.int32)}
    expected = (
        "expected [10, 4], what is zero for each block of 1 4 of [10, 16], or words of as many"
    )
    refused(lambda: UNEVEN.get(wrong), "weight_zero_point", expected, "found [3, 4]")


@pytest.mark.parametrize("uneven", [False, True])
def test_integers_are_made_anew(uneven: bool) -> None:
    said: dict[str, Any] = {**ZEROS, "rounding": "nearest"}
    source = Uneven if uneven else Linear
    if not uneven:
        said["zero"] = 8
    lens = cs.derive(source, Kernel, rules=[cs.dequantize("w", **said), OWN])
    file = linear(zeros=uneven)
    values = RNG.normal(1, 1, (16, 10)).astype(ml_dtypes.bfloat16)
    made = lens.put({"kernel": values}, onto=file)
    scales = spread(np.asarray(made["weight_scale"]), (10, 16), (1, 4)).astype(np.float64)
    zero: Any = 8
    if uneven:
        zero = spread(
            by_hand(on_host(made)["weight_zero_point"], "uint4", 0)[:10], (10, 16), (1, 4)
        )
    found = kernel(on_host(made), zero)
    same(lens.get(on_host(made)), {"kernel": found})
    far = np.abs(found.astype(np.float64) - values.astype(np.float64))
    assert (far <= 0.51 * scales.T + np.abs(values.astype(np.float64)) * 2.0**-7).all()
    # The greatest of a block is the greatest number, on either side of zero.
    top = by_hand(on_host(made)["weight_packed"], "uint4").reshape(10, 4, 4)
    assert (top.max(-1) == 15).any() and (uneven or (np.abs(top - 8).max(-1) == 7).all())


def test_two_numbers_a_byte() -> None:
    tree = {"w": np.uint8([[0x1F, 0x80], [0x7A, 0x05]]), "s": np.float32([[2], [0.5]])}
    view = cs.infer({"w": np.zeros((2, 4), np.float32)})
    said: dict[str, Any] = {"scale": "s", "block": (1, None), "packed": "int4"}
    lens = cs.derive(cs.infer(tree), view, rules=[cs.dequantize("w", **said)])
    found = lens.get(tree)
    same(found["w"], np.float32([[-2, 2, 0, -16], [-3, 3.5, 2.5, 0]]))
    anew = cs.derive(cs.infer(tree), view, rules=[cs.dequantize("w", **said, rounding="nearest")])
    other = on_host(anew.put({"w": found["w"] * np.float32([[1], [2]])}))
    same(other["s"], np.float32([[16 / 7], [1]]))
    same(other["w"][1], np.uint8([0x7A, 0x05]))


# --- Of every shape  ---


@st.composite
def packings(draw: Any) -> Any:
    numbers = draw(st.sampled_from(["float4_e2m1fn", "int4", "uint4", "int8", "uint8"]))
    words = draw(st.sampled_from(["uint8", "int16", "int32", "uint32"]))
    hypothesis.assume(not (numbers.endswith("8") and words == "uint8"))
    rank = draw(st.integers(1, 3))
    shape = [draw(st.integers(1, 4)) for _ in range(rank)]
    along = draw(st.integers(-rank, -1))
    count = np.dtype(words).itemsize * (1 if numbers.endswith("8") else 2)
    whole = [*shape]
    whole[along] *= count
    block = [draw(st.sampled_from([None, 1, 2, 3, n])) for n in whole]
    is_float = numbers == "float4_e2m1fn"
    kind = draw(st.sampled_from(["float32", "bfloat16", "float16"] + ["uint8"] * is_float))
    zero = 0 if is_float else draw(st.sampled_from([0, 3, "plain", "packed"]))
    return numbers, words, shape, along, whole, block, kind, zero, draw(st.integers(0, 2**32 - 1))


@hypothesis.settings(max_examples=60)
@hypothesis.given(packings())
def test_every_shape_block_and_word_is_as_loops_over_bits_say(packed: Any) -> None:
    numbers, words, shape, along, whole, block, kind, zero, seed = packed
    rng = np.random.default_rng(seed)
    info = np.iinfo(words)
    tree: dict[str, Any] = {
        "w": rng.integers(info.min, info.max, shape, dtype=words, endpoint=True)
    }
    grid = [1 if b is None else -(-n // b) for n, b in zip(whole, block, strict=True)]
    if kind == "uint8":
        tree["s"] = rng.integers(0, 250, grid).astype(np.uint8)
        scales = 2.0 ** (tree["s"].astype(np.float64) - 127)
    else:
        power = 2.0 ** rng.integers(-14, 9, grid)
        tree["s"] = (rng.normal(size=grid) * power).astype(jnp.dtype(kind))
        scales = tree["s"].astype(np.float64)
    off: Any = zero if isinstance(zero, int) else 0
    if zero == "plain":
        tree["z"] = rng.integers(0, 8, grid).astype(np.int8)
        off = spread(tree["z"], whole, block).astype(np.float64)
    elif zero == "packed":
        axis, count = rng.integers(len(grid)), whole[along] // shape[along]
        stored = [*grid]
        stored[axis] = -(-grid[axis] // count)
        tree["z"] = rng.integers(info.min, info.max, stored, dtype=words, endpoint=True)
        every = by_hand(tree["z"], numbers, axis)[tuple(slice(n) for n in grid)]
        off = spread(every, whole, block)
    dtype = ml_dtypes.bfloat16 if kind == "uint8" else tree["s"].dtype
    wanted = ((by_hand(tree["w"], numbers, along) - off) * spread(scales, whole, block)).astype(
        dtype
    )
    hypothesis.assume(np.isfinite(wanted.astype(np.float64)).all())
    said: dict[str, Any] = {"scale": "s", "block": block, "packed": numbers, "along": along}
    if zero:
        said["zero"] = zero if isinstance(zero, int) else "z"
    lens = cs.derive(cs.infer(tree), cs.infer({"w": wanted}), rules=[cs.dequantize("w", **said)])
    found = lens.get(tree)
    same(found["w"], wanted)
    again = lens.put(found, onto=tree)
    assert all(again[name] is tree[name] for name in tree)
    if seed % 8 == 0:  # programs are compiled for each shape
        same(on_host(lens.get(jax.tree.map(jnp.asarray, tree)))["w"], wanted)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_subnormal_scales_and_products_are_the_same_on_devices(dtype: Any) -> None:
    scales = np.float32([1e-38, 3e-39, 1e-41, 6e-8, -1e-40, 2.0**-126, 1e-45, 1]).astype(dtype)
    tree = {"w": RNG.integers(-128, 128, (8, 16)).astype(np.int8), "s": scales}
    view = cs.infer({"w": np.zeros((8, 16), dtype)})
    lens = cs.derive(cs.infer(tree), view, rules=[cs.dequantize("w", scale="s", block=(1, None))])
    wanted = (tree["w"].astype(np.float64) * scales.astype(np.float64)[:, None]).astype(dtype)
    same(lens.get(tree)["w"], wanted)
    arrays = jax.tree.map(jnp.asarray, tree)
    for make in (lens.get, jax.jit(lens.get)):
        same(np.asarray(make(arrays)["w"]), wanted)
    # What is multiplied as integers has the derivative of a product.
    along = jax.grad(lambda s: lens.get({**arrays, "s": s})["w"].astype("float32").sum())
    rows = tree["w"].astype(np.float32).sum(1)
    np.testing.assert_allclose(along(arrays["s"]).astype(np.float32), rows, rtol=0.02)


# --- On disk  ---


def test_files_are_read_streamed_and_written_back_to_the_bit(tmp_path: Path) -> None:
    class Flat(cs.Schema, joined="."):
        layers: list[Projection] = cs.field(key="model.layers.{i}.mlp", length="depth")
        norm: BFloat16[Array, " groups"] = cs.field(key="model.norm.weight")

    lens = cs.derive(Flat, Model, rules=[PARTS])
    tree = blocks(top=200)
    file = {"model.norm.weight": tree["norm"]}
    for n, name in itertools.product(range(2), ("blocks", "scales")):
        file[f"model.layers.{n}.mlp.{name}"] = tree[f"layers_{n}"][name]
    cs.hf.save(tmp_path / "mxfp4", file)
    wanted = LENS.get(tree)
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    specs = {"layers": {"kernel": PartitionSpec(None, "x", "y")}, "norm": PartitionSpec()}
    target = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec)),
        wanted,
        specs,
    )
    for goal in (jax.eval_shape(lambda: wanted), target):
        same(on_host(cs.hf.restore(tmp_path / "mxfp4", goal, lens)), wanted)
    found = cs.hf.restore(tmp_path / "mxfp4", target, lens)
    assert found["layers"]["kernel"].sharding.spec == PartitionSpec(None, "x", "y")
    cs.hf.save(tmp_path / "back", found, lens, onto=cs.hf.load(tmp_path / "mxfp4"))
    same(cs.hf.load(tmp_path / "back"), file)
    first, again = (next((tmp_path / name).glob("*.safetensors")) for name in ("mxfp4", "back"))
    assert first.read_bytes() == again.read_bytes()
    same(dict(lens.stream(file))["layers/kernel"], wanted["layers"]["kernel"])
    cs.orbax.save(tmp_path / "orbax", file)
    cs.orbax.convert(tmp_path / "orbax", tmp_path / "dense", lens, verify=True)
    same(on_host(cs.orbax.load(tmp_path / "dense"))["layers"], wanted["layers"])
    same(on_host(cs.orbax.restore(tmp_path / "orbax", target, lens)), wanted)


def test_what_is_lost_is_said_and_it_is_written_as_text() -> None:
    (lost,) = ROUNDED.loss.values()
    assert "rounded in bfloat16; back, other values are rounded to float4_e2m1fn" in lost
    for lens in (LENS, ROUNDED, EVEN, UNEVEN):
        again = cs.from_json(cs.to_json(lens), cs.Lens)
        assert str(again) == str(lens)
        assert again.derivations[0].rules == lens.derivations[0].rules
        assert "numbers a word" in lens.in_full()
    assert json.loads(cs.to_json(EVEN))
    assert 'block=(32,), packed="float4_e2m1fn", rounding="nearest")' in cs.to_source(ROUNDED)
    assert 'packed="uint4", zero=8)' in cs.to_source(EVEN)
    assert 'packed="uint4", zero="zero")' in cs.to_source(UNEVEN)
    rule = cs.dequantize("w", scale="s", packed="int4", along=-2)
    assert str(rule) == "dequantize('w', scale='s', block=(128, 128), packed='int4', along=-2)"


# --- What is wrong  ---


class Wrong(cs.Schema):
    w: Float32[Array, "out words"]
    scale: Float32[Array, "out groups"]


class Bytes(cs.Schema):
    w: UInt8[Array, "out words"]
    scale: Float32[Array, "out groups"]


class Exponents(cs.Schema):
    w: Int32[Array, "out words"]
    scale: UInt8[Array, "out groups"]


class Floats(cs.Schema):
    w: Int32[Array, "out words"]
    scale: Float32[Array, "out groups"]
    zero: Float32[Array, "out groups"]


class Codes(cs.Schema):
    w: Int8[Array, "out inner"]
    scale: Float32[Array, "out groups"]


class Wide(cs.Schema):
    w: Float32[Array, "out inner"]


def test_what_cannot_be_taken_out_of_words_is_an_error() -> None:
    def said(source: Any, *words: str, **more: Any) -> None:
        rule = cs.dequantize("w", **{"scale": "scale", "block": (1, 32), **more})
        refused(lambda: cs.derive(source, Wide, rules=[rule]), *words)

    said(Wrong, "expected integers that hold several int4, found float32[out words]", packed="int4")
    said(Bytes, "expected integers that hold several int8", "takes no packed=", packed="int8")
    said(Exponents, "expected scales that are floats", packed="int4")
    said(
        Exponents,
        "float8_*, int8, int4, found int32[out words]",
        'say what they are: packed="uint4"',
    )
    said(Floats, "zero  expected integers, for zero, found float32", packed="int4", zero="zero")
    said(Floats, "expected w and scale and z on one side, found no z", packed="int4", zero="z")
    said(Bytes, "a float has a zero of its own", packed="float4_e2m1fn", zero=1)
    said(Bytes, "expected uint4, 0 to 15, found 15", packed="uint4", zero=15)
    said(Bytes, "expected 3 axes, for dequantize", packed="uint4", along=-3)
    # Two numbers a byte are no axis that the other side has.
    said(Bytes, "the dims must have the same factors", "found float32[out words*2]", packed="int4")
    refused(
        lambda: cs.derive(Bytes, Wide, rules=[cs.dequantize("*", scale="*_scale", packed="int4")]),
        "found no w_scale",
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"packed": "int3"}, "one of float4_e2m1fn, int4, uint4, int8, uint8"),
        ({"along": 0, "packed": "int4"}, "an axis counted from the end"),
        ({"zero": 1.5}, "a logical path"),
        ({"zero": True}, "a logical path"),
    ],
)
def test_a_packing_is_told_in_known_words(said: Any, words: str) -> None:
    refused(lambda: cs.dequantize("w", scale="s", **said), words)


def test_what_is_below_a_zero_that_is_the_least_number_is_refused() -> None:
    tree = {"w": np.zeros((2, 2), np.uint8), "s": np.ones((2, 1), np.float32)}
    view = cs.infer({"w": np.zeros((2, 4), np.float32)})
    said: dict[str, Any] = {"scale": "s", "block": (1, None), "rounding": "nearest"}
    lens = cs.derive(cs.infer(tree), view, rules=[cs.dequantize("w", **said, packed="uint4")])
    refused(
        lambda: lens.put({"w": np.full((2, 4), -1, np.float32)}),
        "found -1.0, and uint4 less 0 is never below 0",
    )
    # So it is of numbers that are elements, which once wrapped.
    plain = {"w": np.zeros((2, 4), np.uint8), "s": tree["s"]}
    lens = cs.derive(cs.infer(plain), view, rules=[cs.dequantize("w", **said)])
    refused(lambda: lens.put({"w": np.full((2, 4), -1, np.float32)}), "never below 0")


# --- Laws  ---


@pytest.mark.parametrize("lens", [ROUNDED, LENS], ids=["anew", "mxfp4"])
def test_the_laws(lens: cs.Lens) -> None:
    check_laws(lens, ["GetPut", "PutGet", "PutPut", "Naming", "Sharding"], max_examples=1)

"""A layer of experts as gpt-oss's files have it, read into bfloat16 and written back, all of it through cs.hf."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16, UInt8
from support.outcomes import refused

import ckpt_schema as cs

RNG = np.random.default_rng(0)


class FileExperts(cs.Schema):
    """Gate and up are interleaved, and weights stand as out, in; what the bytes of an axis are is told by its label."""

    gate_up: UInt8[Array, "experts mlp*2 blocks embed=16"] = cs.field(key="gate_up_proj_blocks")
    gate_up_scale: UInt8[Array, "experts mlp*2 blocks"] = cs.field(key="gate_up_proj_scales")
    gate_up_bias: BFloat16[Array, "experts mlp*2"] = cs.field(key="gate_up_proj_bias")
    down: UInt8[Array, "experts embed mlp_blocks mlp=16"] = cs.field(key="down_proj_blocks")
    down_scale: UInt8[Array, "experts embed mlp_blocks"] = cs.field(key="down_proj_scales")
    down_bias: BFloat16[Array, "experts embed"] = cs.field(key="down_proj_bias")


SIZES = {"embed": "blocks*32", "mlp": "mlp_blocks*32"}


class Router(cs.Schema):
    weight: BFloat16[Array, "experts embed"]
    bias: BFloat16[Array, " experts"]


class FileLayer(cs.Schema):
    router: Router = cs.field(dims={"embed": "blocks*32"})
    experts: FileExperts = cs.field(dims=SIZES)


class Files(cs.Schema, joined="."):
    layers: list[FileLayer] = cs.field(key="model.layers.{i}.mlp", length="depth")


class Experts(cs.Schema):
    gate: BFloat16[Array, "experts embed mlp"]
    up: BFloat16[Array, "experts embed mlp"]
    gate_bias: BFloat16[Array, "experts mlp"]
    up_bias: BFloat16[Array, "experts mlp"]
    down: BFloat16[Array, "experts mlp embed"]
    down_bias: BFloat16[Array, "experts embed"]


class Dense(cs.Schema):
    weight: BFloat16[Array, "embed experts"] = cs.field(key="kernel")
    bias: BFloat16[Array, " experts"]


class Layer(cs.Schema):
    router: Dense = cs.field(dims={"embed": "blocks*32"})
    experts: Experts = cs.field(dims=SIZES)


class Model(cs.Schema):
    layers: Layer = cs.field(scan="depth", axis=0)


SAID: dict[str, Any] = {"block": (32,), "packed": "float4_e2m1fn"}
RULES = [
    cs.dequantize("**/gate_up", scale="**/gate_up_scale", **SAID),
    cs.dequantize("**/down", scale="**/down_scale", **SAID),
    cs.fuse("**/gate_up", ["**/gate", "**/up"]),
    cs.fuse("**/gate_up_bias", ["**/gate_bias", "**/up_bias"]),
]
LENS = cs.derive(Files, Model, rules=RULES)


def folder(path: Path, experts: int = 4, embed: int = 64, mlp: int = 96, depth: int = 2) -> Any:
    """A folder of random experts."""
    file: dict[str, Any] = {}

    def floats(*shape: int) -> Any:
        return RNG.normal(size=shape).astype(ml_dtypes.bfloat16)

    for n in range(depth):
        node = f"model.layers.{n}.mlp"
        file[f"{node}.router.weight"] = floats(experts, embed)
        file[f"{node}.router.bias"] = floats(experts)
        for name, out, inner in (("gate_up_proj", 2 * mlp, embed), ("down_proj", embed, mlp)):
            shape = experts, out, inner // 32
            words = RNG.integers(0, 256, (*shape, 16)).astype(np.uint8)
            file[f"{node}.experts.{name}_blocks"] = words
            file[f"{node}.experts.{name}_scales"] = RNG.integers(110, 130, shape).astype(np.uint8)
            file[f"{node}.experts.{name}_bias"] = floats(experts, out)
    cs.hf.save(path, file)
    return file


def by_hand(file: Any, node: str) -> np.ndarray[Any, Any]:
    """The weight as in, out: low halves of bytes are the even numbers."""
    words, scales = file[f"{node}_blocks"], file[f"{node}_scales"]
    numbers = np.empty((*words.shape[:-1], 32), ml_dtypes.bfloat16)
    numbers[..., 0::2] = (words & 15).view(ml_dtypes.float4_e2m1fn)
    numbers[..., 1::2] = (words >> 4).view(ml_dtypes.float4_e2m1fn)
    made = np.ldexp(numbers.astype(np.float32), scales.astype(int)[..., None] - 127)
    flat = made.astype(ml_dtypes.bfloat16).reshape(*words.shape[:2], -1)
    return flat.swapaxes(1, 2)


def sharded(model: Any) -> Any:
    """The model's shapes, experts over one axis of a mesh and their last axes over the other."""
    mesh = jax.make_mesh((2, 4), ("expert", "model"))

    def of(x: Any) -> Any:
        spec = (
            PartitionSpec(None, "expert", *[None] * (x.ndim - 3), "model") if x.ndim > 3 else None
        )
        sharding = NamedSharding(mesh, spec or PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(of, model)


def test_experts_come_as_bfloat16_and_go_back_as_the_same_bytes(tmp_path: Path) -> None:
    file = folder(tmp_path / "hub")
    target = sharded(jax.eval_shape(lambda: LENS.get(file)))
    model = cs.hf.restore(tmp_path / "hub", target, LENS)
    experts = model["layers"]["experts"]
    for n in range(2):
        node = f"model.layers.{n}.mlp.experts"
        gate_up = by_hand(file, f"{node}.gate_up_proj")
        wanted = {
            "gate": gate_up[..., 0::2],
            "up": gate_up[..., 1::2],
            "gate_bias": file[f"{node}.gate_up_proj_bias"][:, 0::2],
            "up_bias": file[f"{node}.gate_up_proj_bias"][:, 1::2],
            "down": by_hand(file, f"{node}.down_proj"),
            "down_bias": file[f"{node}.down_proj_bias"],
        }
        found = {name: np.asarray(experts[name])[n] for name in wanted}
        cs.assert_trees_identical(found, {name: np.array(x) for name, x in wanted.items()})
    assert experts["gate"].sharding.shard_shape(experts["gate"].shape) == (2, 2, 64, 24)

    cs.hf.save(tmp_path / "back", model, LENS, onto=cs.hf.load(tmp_path / "hub"))
    first, again = (tmp_path / name / "model.safetensors" for name in ("hub", "back"))
    assert first.read_bytes() == again.read_bytes()


def test_what_was_trained_is_an_error_until_it_may_be_quantized_anew(tmp_path: Path) -> None:
    file = folder(tmp_path / "hub", depth=1)
    model = LENS.get(file)
    experts = model["layers"]["experts"]
    experts["down"] = experts["down"] * 2
    refused(
        lambda: LENS.put(model, onto=file),
        "model.layers.0.mlp.experts.down_proj_blocks  expected a rule",
        'dequantize(..., rounding="nearest")',
    )
    anew = cs.dequantize("**/down", scale="**/down_scale", **SAID, rounding="nearest")
    lens = cs.derive(Files, Model, rules=[RULES[0], anew, *RULES[2:]])
    made = lens.put(model, onto=file)
    changed = {name for name in file if np.asarray(made[name]).tobytes() != file[name].tobytes()}
    down = "model.layers.0.mlp.experts.down_proj"
    assert f"{down}_scales" in changed <= {f"{down}_blocks", f"{down}_scales"}
    # Twice a number of four bits is one, with twice the scale.
    cs.assert_trees_identical(lens.get({**file, **jax.tree.map(np.asarray, made)}), model)


def test_what_a_lens_does_to_experts_is_text_that_makes_it_again() -> None:
    again = cs.from_json(cs.to_json(LENS), cs.Lens)
    assert str(again) == str(LENS)
    assert json.loads(cs.to_json(LENS))

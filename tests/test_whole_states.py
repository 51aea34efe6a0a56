"""From a folder of Hugging Face into training and back, whole: weights, adapters, and two models merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import Array, BFloat16, Float32
from safetensors.numpy import load_file, save_file

import ckpt_schema as cs

llama = cs.families.llama
TOKENS = np.arange(12).reshape(2, 6) * 7 % 16
Tensors = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in bfloat16, written by the library safetensors alone."""
    made = tmp_path_factory.mktemp("hub")
    kept = load_file(families.DATA / "llama" / "model.safetensors")
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in kept.items()}
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    config = json.loads((families.DATA / "llama" / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return made


def tensors_of(folder: Path) -> Tensors:
    """As the library safetensors reads them."""
    return load_file(folder / "model.safetensors")


def in_bfloat16(array: Any) -> np.ndarray[Any, Any]:
    """Rounded to the nearest, a half to the even one, on the bits: no library casts."""
    bits = np.asarray(array, np.float32).view(np.uint32)
    rounded = bits + 0x7FFF + (bits >> 16 & 1)
    return (rounded >> 16).astype(np.uint16)


def bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(array).view(np.uint16)


def loss_of(model: Any) -> jax.Array:
    guessed = jax.nn.log_softmax(model(TOKENS))
    return -jnp.take_along_axis(guessed[:, :-1], TOKENS[:, 1:, None], -1).mean()


# --- The whole model, half of it frozen  ---


def is_frozen(params: Any) -> Any:
    """The embedding and all norms."""

    def of(key: Any, _: Any) -> bool:
        where = jax.tree_util.keystr(key)
        return "embed" in where or "norm" in where

    return jax.tree_util.tree_map_with_path(of, params)


def is_trained(params: Any) -> Any:
    return jax.tree.map(lambda frozen: not frozen, is_frozen(params))


TX = optax.chain(
    optax.masked(optax.adamw(1e-2), is_trained),
    optax.masked(optax.set_to_zero(), is_frozen),
)
STATE = cs.nnx.TrainState[llama.Decoder, TX]
BEGUN = [cs.reset(view="opt_state"), cs.private("step", 0)]


class Training(nnx.Module):
    def __init__(self, model: nnx.Module) -> None:
        self.model = model
        self.optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)


@nnx.jit
def step(training: Training) -> jax.Array:
    loss, gradients = nnx.value_and_grad(loss_of)(training.model)
    training.optimizer.update(training.model, gradients)
    return loss


def torch_form(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of a model as torch has them, by hand."""

    def flat(kernel: Any, inputs: int) -> np.ndarray[Any, Any]:
        array = np.asarray(kernel[...])
        return array.reshape(int(np.prod(array.shape[:inputs])), -1).T

    found = {
        "model.embed_tokens.weight": np.asarray(model.embed.embedding[...]),
        "model.norm.weight": np.asarray(model.norm.scale[...]),
        "lm_head.weight": flat(model.head.kernel, 1),
    }
    for number, layer in enumerate(model.layers):
        own, attention, mlp = f"model.layers.{number}", layer.attention, layer.mlp
        found |= {
            f"{own}.self_attn.q_proj.weight": flat(attention.query.kernel, 1),
            f"{own}.self_attn.k_proj.weight": flat(attention.key.kernel, 1),
            f"{own}.self_attn.v_proj.weight": flat(attention.value.kernel, 1),
            f"{own}.self_attn.o_proj.weight": flat(attention.out.kernel, 2),
            f"{own}.mlp.gate_proj.weight": flat(mlp.gate.kernel, 1),
            f"{own}.mlp.up_proj.weight": flat(mlp.up.kernel, 1),
            f"{own}.mlp.down_proj.weight": flat(mlp.down.kernel, 1),
            f"{own}.input_layernorm.weight": np.asarray(layer.attention_norm.scale[...]),
            f"{own}.post_attention_layernorm.weight": np.asarray(layer.mlp_norm.scale[...]),
        }
    return found


def test_a_folder_in_bfloat16_is_trained_in_float32_and_written_back(
    folder: Path, tmp_path: Path
) -> None:
    """What is frozen goes back to its own bits; what was trained is rounded, where that is said."""
    old = tensors_of(folder)
    lens = llama.lens_of(folder, STATE, rules=BEGUN)
    plain = llama.lens_of(folder)

    def begun() -> Training:
        return Training(families.begun(folder, plain))

    training: Any = cs.hf.restore(folder, nnx.eval_shape(begun), lens)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(nnx.state(training.model)))
    for name, array in torch_form(training.model).items():
        np.testing.assert_array_equal(array, old[name].astype(np.float32))
    fresh = Training(training.model)  # whose optimizer tx.init has started
    cs.assert_trees_identical(nnx.state(training.optimizer), nnx.state(fresh.optimizer))

    cs.hf.save(tmp_path / "same", training, lens, config_from=folder)
    assert families.unlike(folder, tmp_path / "same") == []
    first, second = step(training), step(training)
    assert second < first
    assert training.optimizer.step[...] == 2
    with pytest.raises(cs.ConformanceError) as caught:
        cs.hf.save(tmp_path / "exact", training, lens)
    assert caught.value.mismatches[0].path.startswith("model/")
    assert "add cs.cast('head/weight', rounding='nearest') to the rules" in str(caught.value)
    assert not (tmp_path / "exact").exists()

    rules = [*BEGUN, cs.cast("**", rounding="nearest")]
    rounded = llama.lens_of(folder, STATE, rules=rules)
    cs.hf.save(tmp_path / "trained", training, rounded)
    new = tensors_of(tmp_path / "trained")
    wanted = torch_form(training.model)
    assert new.keys() == old.keys() == wanted.keys()
    for name, array in new.items():
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(bits(array), in_bfloat16(wanted[name]), name)
        is_same = array.tobytes() == old[name].tobytes()
        assert is_same == ("embed" in name or "norm" in name), name


# --- Adapters, trained on it  ---

RANK, ALPHA = 2, 4


class AdaptedKernel(cs.Schema):
    weight: Float32[Array, "inner out"] = cs.field(key="kernel")
    a: Float32[Array, "inner rank"] = cs.field(key="lora/lora_a", type=nnx.LoRAParam)
    b: Float32[Array, "rank out"] = cs.field(key="lora/lora_b", type=nnx.LoRAParam)


class AdaptedLayer(llama.ModelLayer):
    gate: AdaptedKernel = cs.field(key="mlp/gate", dims={"inner": "embed", "out": "mlp"})


class AdaptedDecoder(llama.Decoder):
    layers: list[AdaptedLayer] = cs.field(length="depth")


class Low(cs.Schema):
    a: Float32[Array, "rank inner"] = cs.field(key="lora_A.weight")
    b: Float32[Array, "out rank"] = cs.field(key="lora_B.weight")


class PeftLayer(cs.Schema):
    gate: Low = cs.field(key="mlp.gate_proj", dims={"inner": "embed", "out": "mlp"})


class Peft(cs.Schema, joined="."):
    layers: list[PeftLayer] = cs.field(key="base_model.model.model.layers.{i}", length="depth")


class Scaled(nnx.LoRALinear):
    """As PEFT computes it: the product of the adapter times alpha / rank."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.Linear.__call__(self, x) + ALPHA / RANK * self.lora(x)


def adapted(folder: Path, lens: cs.Lens) -> Any:
    model: Any = families.begun(folder, lens)
    for layer in model.layers:
        inner, out = layer.mlp.gate.kernel.shape
        layer.mlp.gate = Scaled(inner, out, lora_rank=RANK, use_bias=False, rngs=nnx.Rngs(7))
    return model


def test_adapters_are_trained_and_written_for_peft_and_merged(folder: Path, tmp_path: Path) -> None:
    old = tensors_of(folder)
    plain = llama.lens_of(folder)
    own = [cs.private("**/gate/a", cs.own), cs.private("**/gate/b", cs.own)]
    lens = llama.lens_of(folder, AdaptedDecoder, rules=own)

    def begun() -> Any:
        return adapted(folder, plain)

    model = cs.hf.restore(folder, begun, lens, missing=cs.init("**/gate/a", "**/gate/b"))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.LoRAParam)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> jax.Array:
        chosen = nnx.DiffState(0, nnx.LoRAParam)
        loss, gradients = nnx.value_and_grad(loss_of, argnums=chosen)(model)
        optimizer.update(model, gradients)
        return loss

    first, second = step(model, optimizer), step(model, optimizer)
    assert second < first

    class Hub(cs.Schema):
        base: cs.hf.as_stored(llama.Files, folder)  # pyright: ignore[reportInvalidTypeForm]
        adapter: Peft

    view = cs.nnx.Params[AdaptedDecoder]
    hub = cs.derive(Hub, view, rules=[cs.rename("base", ""), cs.rename("adapter", "")])
    parts = hub.put(nnx.state(model))
    cs.hf.save(tmp_path / "adapter", parts["adapter"])
    cs.hf.save(tmp_path / "base", parts["base"])
    assert families.unlike(folder, tmp_path / "base") == []
    written = tensors_of(tmp_path / "adapter")
    assert len(written) == 2 * len(model.layers)
    for number, layer in enumerate(model.layers):
        name = f"base_model.model.model.layers.{number}.mlp.gate_proj"
        a, b = (
            np.asarray(x[...]).T for x in (layer.mlp.gate.lora.lora_a, layer.mlp.gate.lora.lora_b)
        )
        assert a.any() and b.any()
        np.testing.assert_array_equal(written[f"{name}.lora_A.weight"], a)
        np.testing.assert_array_equal(written[f"{name}.lora_B.weight"], b)

    where = {"base": folder, "adapter": tmp_path / "adapter"}
    again = cs.hf.restore(where, nnx.eval_shape(begun), hub)
    cs.assert_trees_identical(nnx.state(again), nnx.state(model))

    merging = cs.lora("**/gate/weight", a="**/gate/a", b="**/gate/b", alpha=ALPHA)
    rules = [merging, cs.cast("**/gate/weight", rounding="nearest")]
    files = cs.hf.as_stored(llama.Files, folder)
    cs.hf.save(tmp_path / "merged", nnx.state(model), ~cs.derive(view, files, rules=rules))
    new = tensors_of(tmp_path / "merged")
    assert new.keys() == old.keys()
    for name, array in new.items():
        if not name.endswith("gate_proj.weight"):
            assert array.tobytes() == old[name].tobytes(), name
            continue
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (written[f"{stem}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        exact = old[name].astype(np.float64) + ALPHA / RANK * (b @ a)
        # Rounding is monotone: float32 is as near as this, whatever the order of the sum.
        low, high = (np.asarray(exact + off, ml_dtypes.bfloat16) for off in (-1e-6, 1e-6))
        assert ((low <= array) & (array <= high)).all()
        assert (low == high).mean() > 0.9
        assert array.tobytes() != old[name].tobytes()


# --- Two models, and a projector that is new  ---


class VisionFile(cs.Schema, joined="."):
    weight: BFloat16[Array, "out inner"] = cs.field(key="vit.patches.weight")


class TextFile(cs.Schema, joined="."):
    weight: BFloat16[Array, "vocab embed"] = cs.field(key="model.embed_tokens.weight")


class Vision(cs.Schema):
    weight: Float32[Array, "inner out"] = cs.field(key="kernel")


class Text(cs.Schema):
    weight: Float32[Array, "vocab embed"] = cs.field(key="embedding")


class Projector(cs.Schema):
    kernel: Float32[Array, "out embed"]
    bias: Float32[Array, " embed"]


class Whole(cs.Schema):
    vision: Vision
    text: Text
    projector: Projector


class Seeing(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.vision = nnx.Linear(6, 4, use_bias=False, rngs=rngs)
        self.projector = nnx.Linear(4, 8, bias_init=nnx.initializers.normal(), rngs=rngs)
        self.text = nnx.Embed(16, 8, rngs=rngs)

    def __call__(self, picture: jax.Array) -> jax.Array:
        return self.text.attend(self.projector(self.vision(picture)))


def test_two_models_are_merged_with_a_projector_that_is_new_trained_and_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = np.random.default_rng(3)
    files: dict[str, Tensors] = {
        "vision": {"vit.patches.weight": drawn.normal(size=(4, 6)).astype(ml_dtypes.bfloat16)},
        "text": {
            "model.embed_tokens.weight": drawn.normal(size=(16, 8)).astype(ml_dtypes.bfloat16)
        },
    }
    for name, tensors in files.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    paths = {name: tmp_path / name for name in files}
    vision = cs.derive(VisionFile, cs.nnx.Params[Vision])
    text = cs.derive(TextFile, cs.nnx.Params[Text])
    parts = {"vision": (vision, "vision"), "text": (text, "text")}
    view = cs.nnx.Params[Whole]
    with pytest.raises(cs.DerivationError, match="projector/bias"):
        cs.merge(view, **parts)
    lens = cs.merge(view, rules=[cs.private("projector", cs.own)], **parts)

    def begun() -> Seeing:
        return Seeing(nnx.Rngs(5))

    with caplog.at_level("INFO", "ckpt_schema"):
        model = cs.hf.restore(paths, begun, lens, missing=cs.init("projector"))
    (said,) = [record.message for record in caplog.records if "made by" in record.message]
    assert "2 leaves" in said and "projector/kernel" in said and "projector/bias" in said
    before = nnx.state(begun().projector)
    for name, made in nnx.to_pure_dict(nnx.state(model.projector)).items():
        # One program makes both leaves, where begun() makes each by several: the last bit may differ.
        np.testing.assert_allclose(made, before[name][...], rtol=1e-6)
    see, read = (next(iter(tensors.values())).astype(np.float32) for tensors in files.values())
    np.testing.assert_array_equal(model.vision.kernel[...], see.T)
    np.testing.assert_array_equal(model.text.embedding[...], read)

    new = nnx.All(nnx.Param, nnx.PathContains("projector"))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=new)
    losses: list[float] = []
    for _ in range(2):
        loss, gradients = nnx.value_and_grad(
            lambda model: (model(jnp.ones((2, 6))) ** 2).mean(), argnums=nnx.DiffState(0, new)
        )(model)
        optimizer.update(model, gradients)
        losses.append(float(loss))
    assert losses[1] < losses[0]
    assert not (model.projector.kernel[...] == before["kernel"][...]).any()
    for name, part in lens.put(nnx.state(model)).items():
        cs.hf.save(tmp_path / "split" / name, part)
        assert families.unlike(paths[name], tmp_path / "split" / name) == []

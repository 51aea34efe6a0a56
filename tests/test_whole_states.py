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
    assert "cast(..., rounding=" in str(caught.value)
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

"""Families against MaxText's own converters: ``python tests/families_maxtext.py --python PATH`` runs these, and compares.

PATH is a Python that has MaxText, as `maxtext_itself.py` says. Folders of Hugging Face are made of
the configs in `families_data`, with random weights. MaxText's `to_maxtext` converts each, scanned and
unrolled, up to where it saves; its own model says what it should have made. Of Llama 2 and Mistral, which
that does not know, its `llama_or_mistral_ckpt` makes scanned layers in the place of torch with NumPy,
in float32 where it has bfloat16; these are cut here.

With ``--write`` what it makes, a shape and a digest of each leaf, is kept where the suite reads it:
`families_data/maxtext.json`. With ``--laws N`` the laws are tried on every lens instead, each on so many
examples: to MaxText, and from there to a model of NNX. Names of cases may be given to convert no other.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import types
import warnings
import zlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

import ckpt_schema as cs
from ckpt_schema.families import gemma2, gemma3, llama
from ckpt_schema.families._decoders import Attention, Ends, Heads

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "families_data"
KEPT = DATA / "maxtext.json"
SMALL = {
    "hidden_size": 12,
    "head_dim": 8,  # whose root is no power of two
    "intermediate_size": 10,
    "vocab_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SQUARE = SMALL | {"hidden_size": 16, "head_dim": 4}  # heads are as wide as all, and as 4


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder to convert.

    Attributes:
        model: What MaxText calls a model of its family.
        like: The folder that the config is from.
        changes: What the config has otherwise.
        said: What is said to MaxText besides.
        words: What is said to `lens_of`.
        dtype: That of the weights.
        prefix: What names begin with.
    """

    model: str
    like: str
    changes: Mapping[str, Any]
    said: tuple[str, ...] = ()
    words: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    dtype: str = "float32"
    prefix: str = "model."

    @property
    def config(self) -> dict[str, Any]:
        """What stands in the config."""
        return json.loads((DATA / self.like / "config.json").read_text()) | self.changes

    @property
    def family(self) -> types.ModuleType:
        """The family."""
        return getattr(cs.families, self.like)

    def write(self, folder: Path) -> Path:
        """Makes the folder: random weights, the same in every run, each drawn by its own name."""
        config = self.config
        files = self.family.TiedFiles if config["tie_word_embeddings"] else self.family.Files
        tensors: dict[str, Any] = {}
        for name, leaf in cs.abstract(files, self.family.dims_from(config)).items():
            drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(leaf.shape)
            called = self.prefix + name.removeprefix("model.") if "lm_head" not in name else name
            tensors[called] = drawn.astype(self.dtype)
        cs.hf.save(folder, tensors)
        (folder / "config.json").write_text(json.dumps(config))
        return folder


EXPERTS = ("num_experts=3", "num_experts_per_tok=2", "base_moe_mlp_dim=10")
TURNING = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}
CASES = {
    "llama2": Case("llama2-7b", "llama", SQUARE),
    "llama3.1": Case("llama3.1-8b", "llama", SMALL | TURNING),
    "llama3.1, bfloat16": Case("llama3.1-8b", "llama", SMALL | TURNING, dtype="bfloat16"),
    "qwen2.5, tied": Case("qwen2.5-1.5b", "qwen2", SMALL | {"tie_word_embeddings": True}),
    "qwen3": Case("qwen3-8b", "qwen3", SMALL),
    "qwen3_moe": Case("qwen3-30b-a3b", "qwen3_moe", SMALL | {"moe_intermediate_size": 10}, EXPERTS),
    "mixtral": Case("mixtral-8x7b", "mixtral", SMALL, EXPERTS),
    "gemma2": Case(
        "gemma2-2b",
        "gemma2",
        SMALL | {"num_hidden_layers": 4, "query_pre_attn_scalar": 8},
        ("base_num_decoder_layers=2", "vocab_size=20"),
        {"vocab": 20},
    ),
    "gemma3": Case(
        "gemma3-4b",
        "gemma3",
        SMALL | {"num_hidden_layers": 8},
        prefix="model.language_model.",
    ),
    "gemma3, no rest": Case(
        "gemma3-4b",
        "gemma3",
        SMALL | {"num_hidden_layers": 6},
        prefix="model.language_model.",
    ),
    "mistral": Case("mistral-7b", "llama", SQUARE | {"model_type": "mistral"}),
}
FORMS = "scanned", "unrolled"
BY_SCRIPT = ("llama2", "mistral")  # which `to_maxtext` does not know


def digest(array: Any) -> str:
    """What stands for an array: its dtype, its shape, and a digest of its bits."""
    value = np.asarray(array)
    bits = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return f"{value.dtype}{[*value.shape]} {bits[:12]}"


def leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their key path."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def lens_of(case: Case, folder: Path, form: str) -> cs.Lens:
    """The lens that is held against MaxText."""
    return case.family.maxtext.lens_of(folder, scan=form == "scanned", **case.words)


class TurnedAttention(Attention):
    """Heads whose halves are told apart, as those of the files are where MaxText turns them about."""

    query: Heads = cs.field(key="attention/query", dims={"head_dim": "2*half"})
    key: Heads = cs.field(key="attention/key", dims={"heads": "kv", "head_dim": "2*half"})


class TurnedLayer(TurnedAttention, llama.ModelLayer):
    """A layer of Llama 3.1."""


class TurnedDecoder(llama.Decoder):
    """Llama 3.1."""

    layers: list[TurnedLayer] = cs.field(length="depth")  # pyright: ignore[reportIncompatibleVariableOverride]


class PairedDecoder(Ends):
    """Gemma 2, layers counted by pairs."""

    local: list[gemma2.ModelLayer] = cs.field(key="layers/{2*i}", length="pairs")
    full: list[gemma2.ModelLayer] = cs.field(key="layers/{2*i+1}", length="pairs")


class BlockDecoder(gemma3.TiedDecoder):
    """Gemma 3, layers counted by blocks."""

    layers: list[gemma3.ModelLayer] = cs.field(length="6*blocks+rest")


def view_of(case: Case, folder: Path) -> type[cs.Schema]:
    """The model of NNX that a case is, its layers and halves counted as its lens to MaxText counts those of the files."""
    import families

    if case.model.startswith("llama3.1"):
        return TurnedDecoder
    counted = {"gemma2": PairedDecoder, "gemma3": BlockDecoder}
    return counted.get(case.like) or families.view_of(folder)


def model_lens_of(case: Case, folder: Path, form: str) -> cs.Lens:
    """The lens from MaxText to a model of NNX: through the files, of which none is made."""
    near = lens_of(case, folder, form)
    far = cs.derive(near.source, cs.nnx.Params[view_of(case, folder)])
    return ~near >> far


def ours(case: Case, folder: Path, form: str) -> dict[str, str]:
    """What our lens makes."""
    made = lens_of(case, folder, form).get(cs.hf.load(folder))
    return {key: digest(leaf) for key, leaf in leaves(made).items()}


# --- what runs MaxText  ---


def _config(case: Case, form: str, place: Path) -> list[str]:
    """What is said to MaxText: the sizes of a case."""
    import maxtext

    sizes = case.family.dims_from(case.config)
    base = Path(str(maxtext.__file__)).parent / "configs" / "base.yml"
    return [
        "",
        str(base),
        f"model_name={case.model}",
        "override_model_config=True",
        f"base_emb_dim={sizes['embed']}",
        f"base_num_query_heads={sizes['heads']}",
        f"base_num_kv_heads={sizes['kv']}",
        f"head_dim={sizes['head_dim']}",
        f"base_mlp_dim={sizes['mlp']}",
        f"base_num_decoder_layers={sizes['depth']}",
        f"vocab_size={sizes['vocab']}",
        f"scan_layers={form == 'scanned'}",
        f"base_output_directory={place}",
        "run_name=tiny",
        "hardware=cpu",
        "skip_jax_distributed_system=True",
        "max_target_length=8",
        "per_device_batch_size=1",
        "enable_goodput_recording=False",
        "log_config=False",
        "attention=dot_product",
        f"logits_via_embedding={case.config['tie_word_embeddings']}",
        *case.said,
    ]


def converted(case: Case, folder: Path, form: str) -> dict[str, Any]:
    """What `to_maxtext` makes of a folder, in the place of saving it."""
    from maxtext.checkpoint_conversion import to_maxtext

    config, kept = case.config, list[Any]()
    multimodal = {"text_config": config, "vision_config": {"num_hidden_layers": 0}}
    told = types.SimpleNamespace(to_dict=lambda: {**config, **multimodal})
    with (
        mock.patch.dict(to_maxtext.HF_MODEL_CONFIGS, {case.model: told}),
        mock.patch.object(
            to_maxtext, "save_weights_to_checkpoint", lambda _, tree, *__, **___: kept.append(tree)
        ),
    ):
        to_maxtext.main(
            _config(case, form, folder / "out"),
            hf_model_path=str(folder),
            save_dtype=case.dtype,
            simulated_cpu_devices_count=1,
        )
    return {key: _made(key, leaf) for key, leaf in leaves(kept[0]).items()}


def _made(key: str, leaf: Any) -> np.ndarray[Any, Any]:
    """What `to_maxtext` makes of a leaf when it is saved.

    Scanned routers of Mixtral it stacks on axis 0, as experts, and then refuses for their shape:
    these are moved to where its own model has them.
    """
    if not key.endswith("MoeBlock_0/gate/kernel") or len(leaf.shape) < 3:
        return np.array(leaf)
    wrong = np.asarray(leaf._load_fn())
    assert wrong.shape != leaf.shape, "MaxText has mended it: so may this"
    return np.moveaxis(wrong, 0, 1)


class Tensor:
    """As much of a tensor of torch as MaxText's script asks for."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def to(self, _: Any) -> Tensor:
        """The same: all is float32."""
        return self

    type = to

    def numpy(self) -> np.ndarray[Any, Any]:
        """The array."""
        return self._array


@contextlib.contextmanager
def opened(path: Any, **_: Any) -> Generator[Any]:
    """A file, as safetensors opens it for torch."""
    tensors = cs.hf.load(path)
    yield types.SimpleNamespace(keys=tensors.keys, get_tensor=lambda key: Tensor(tensors[key]))


def by_script(case: Case, folder: Path, form: str) -> dict[str, Any]:
    """What `llama_or_mistral_ckpt` makes, cut by NumPy where layers are to be unrolled."""
    import psutil

    importlib.import_module("maxtext.checkpoint_conversion.utils.utils")  # looks for torch as well
    torch = types.ModuleType("torch")
    torch.float32 = np.float32  # pyright: ignore[reportAttributeAccessIssue]
    with mock.patch.dict(sys.modules, {"torch": torch}):
        from maxtext.checkpoint_conversion.standalone_scripts import llama_or_mistral_ckpt as script
    sizes = case.family.dims_from(case.config)
    told = {
        "num_layers": sizes["depth"],
        "num_heads": sizes["heads"],
        "num_kv_heads": sizes["kv"],
        "dims_per_head": sizes["head_dim"],
        "vocab": sizes["vocab"],
    }
    with mock.patch.multiple(script, CAST_DTYPE=np.float32, safe_open=opened):
        made = script._convert_huggingface_to_jax_weights(
            str(folder), case.model, told, psutil.Process()
        )
    whole = {f"params/{key}": leaf for key, leaf in leaves(made).items()}
    if form == "scanned":
        return whole
    cut: dict[str, Any] = {}
    for key, leaf in whole.items():
        for number in range(sizes["depth"]):
            cut[key.replace("/layers/", f"/layers_{number}/")] = (
                leaf.take(number, axis=1) if "/layers/" in key else leaf
            )
    return cut


def expected_shapes(case: Case, form: str, place: Path) -> dict[str, tuple[int, ...]]:
    """What MaxText's own model has."""
    from maxtext.checkpoint_conversion import to_maxtext
    from maxtext.configs import pyconfig

    config = pyconfig.initialize(_config(case, form, place))
    found, _ = to_maxtext.get_maxtext_model_info(config)
    return {key.replace("-", "/"): tuple(shape) for key, (_, shape) in found.items()}


def told_by_maxtext(names: list[str]) -> dict[str, dict[str, str]]:
    """What MaxText makes of each case, in each form."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        for form in FORMS:
            with tempfile.TemporaryDirectory() as path:
                folder = CASES[name].write(Path(path) / "hub")
                convert = by_script if name in BY_SCRIPT else converted
                made = convert(CASES[name], folder, form)
                shapes = expected_shapes(CASES[name], form, Path(path))
                assert {key: leaf.shape for key, leaf in made.items()} == shapes, (made, shapes)
                found[f"{name}, {form}"] = {key: digest(leaf) for key, leaf in made.items()}
    return found


def lawful(name: str, count: int) -> bool:
    """Whether the lenses of a case obey the laws."""
    from families import lawful as holds

    found: list[bool] = []
    with tempfile.TemporaryDirectory() as path:
        folder = CASES[name].write(Path(path) / "hub")
        for form in FORMS:
            found.append(holds(f"{name}, {form}", lens_of(CASES[name], folder, form), count))
            through = model_lens_of(CASES[name], folder, form)
            found.append(holds(f"{name}, {form}, to NNX", through, count))
    return all(found)


def main() -> int:
    """Has MaxText convert each case, and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", help="a Python that has MaxText")
    parser.add_argument("--write", action="store_true", help="keep what it makes")
    parser.add_argument("names", nargs="*", help="the cases to convert, all unless given")
    parser.add_argument("--laws", type=int, default=0, help="try these, on so many examples")
    given = parser.parse_args()
    names = given.names or [*CASES]
    if given.laws:
        jax.config.update("jax_num_cpu_devices", 8)  # for laws on a mesh
        held = [lawful(name, given.laws) for name in names]
        return int(not all(held))
    if given.python is None:
        warnings.simplefilter("ignore")
        jax.config.update("jax_default_prng_impl", "unsafe_rbg")  # as MaxText's `main` does
        print(json.dumps(told_by_maxtext(names)))
        return 0
    where = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [given.python, __file__, *names]
    told = subprocess.run(command, env=where, stdout=subprocess.PIPE, check=True).stdout
    found: dict[str, dict[str, str]] = json.loads(told.splitlines()[-1])
    if given.write:
        before = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        KEPT.write_text(json.dumps({**before, **found}, indent=0) + "\n")
    failed = False
    for name in names:
        for form in FORMS:
            with tempfile.TemporaryDirectory() as path:
                made = ours(CASES[name], CASES[name].write(Path(path) / "hub"), form)
            theirs = found[f"{name}, {form}"]
            unlike = [key for key in {**theirs, **made} if theirs.get(key) != made.get(key)]
            print(f"{name}, {form}: {len(made)} leaves, unlike: {', '.join(unlike) or 'none'}")
            failed |= bool(unlike)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

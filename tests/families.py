"""Families against transformers: ``python tests/families.py --torch PYTHON``, an interpreter with torch and transformers.

Tiny random models are saved by transformers, with the logits that it computes; restored into NNX,
where the same logits are computed; saved from there, and loaded by transformers again, which must
find the same bits. The files are compared byte for byte. With ``--keep`` the models that the suite
tests are written to `tests/families_data`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from decoder import Decoder
from flax import nnx

import ckpt_schema as cs

DATA = Path(__file__).parent / "families_data"
KEPT = ("llama",)
MOST = 1e-4  # relative to the largest logit

_TORCH = """
import sys, numpy as np, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

SIZES = dict(hidden_size=8, intermediate_size=12, vocab_size=16, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2)
CASES = {
    "llama": (LlamaConfig(**SIZES), torch.float32, {}),
    "llama, tied": (LlamaConfig(**SIZES, tie_word_embeddings=True), torch.float32, {}),
    "llama, wide heads": (LlamaConfig(**SIZES, head_dim=6), torch.float32, {}),
    "llama, bfloat16": (LlamaConfig(**SIZES), torch.bfloat16, {}),
    "llama, several files": (LlamaConfig(**SIZES), torch.float32, {"max_shard_size": 2000}),
    "mistral": (MistralConfig(**SIZES, head_dim=2, sliding_window=None), torch.float32, {}),
}
root = Path(sys.argv[2])
if sys.argv[1] == "make":
    tokens = torch.tensor([[1, 5, 3, 9, 15, 0, 2], [7, 7, 1, 4, 12, 11, 10]])
    for seed, (name, (config, dtype, words)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():  # scales of norms too, which begin as ones
                weight.copy_((weight.ndim == 1) + 0.4 * torch.randn(weight.shape))
        model = model.to(dtype)
        model.save_pretrained(root / name, **words)
        wide = AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float32)
        with torch.no_grad():
            logits = wide.eval()(tokens).logits
        np.savez(root / name / "expected.npz", tokens=tokens.numpy(), logits=logits.numpy())
else:
    for name, (_, dtype, _) in CASES.items():
        one, other = (AutoModelForCausalLM.from_pretrained(root / f"{name}{end}", dtype=dtype)
                      for end in ("", " again"))
        left, right = one.state_dict(), other.state_dict()
        assert left.keys() == right.keys(), name
        bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
        wrong = [k for k in left if not torch.equal(left[k].view(bits), right[k].view(bits))]
        assert not wrong, (name, wrong)
"""


def restored(folder: Path) -> tuple[Decoder, cs.Lens]:
    """The model of a folder, and the lens that it came through."""
    tied = "lm_head.weight" not in cs.hf.metadata(folder)
    llama = cs.families.llama
    lens = llama.lens_of(folder, llama.TiedDecoder if tied else llama.Decoder)
    dims = llama.dims_from(folder)
    return cs.hf.restore(folder, Decoder(dims, nnx.Rngs(0), tied=tied), lens), lens


def error_of(model: Decoder, folder: Path) -> float:
    """How far the logits are from those that transformers computes, relative to the largest."""
    told = np.load(folder / "expected.npz")
    graph, state = nnx.split(model)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda weights: nnx.merge(graph, weights)(told["tokens"]))
        found = np.asarray(run(state))
    return float(np.abs(found - told["logits"]).max() / np.abs(told["logits"]).max())


def unlike(one: Path, other: Path) -> list[str]:
    """The files of weights that two folders do not have alike, byte for byte.

    Of several, only the tensors are held against each other: which is in which file is open.
    """
    if (one / "model.safetensors").exists():
        both = ((folder / "model.safetensors").read_bytes() for folder in (one, other))
        return ["model.safetensors"] if len({*both}) > 1 else []
    left, right = cs.hf.load(one), cs.hf.load(other)
    return [name for name in left if left[name].tobytes() != right[name].tobytes()]


def main() -> int:
    """Compares every family, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default=sys.executable, help="a Python with transformers")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as path:
        root = Path(path)
        command = [given.torch, "-c", _TORCH]
        subprocess.run([*command, "make", path], check=True)
        for name in sorted(folder.name for folder in root.iterdir()):
            model, lens = restored(root / name)
            words = {"shard_bytes": 2000} if "several" in name else {}
            cs.hf.save(root / f"{name} again", model, lens, config_from=root / name, **words)
            wrong = error_of(model, root / name)
            files = unlike(root / name, root / f"{name} again")
            failed |= wrong > MOST
            print(f"{name}: logits {wrong:.1e}, files unlike: {', '.join(files) or 'none'}")
            if given.keep and name in KEPT:
                (DATA / name).mkdir(parents=True, exist_ok=True)
                for file in ("config.json", "model.safetensors", "expected.npz"):
                    (DATA / name / file).write_bytes((root / name / file).read_bytes())
        done = subprocess.run([*command, "check", path], check=False)
    print("bits that transformers finds again:", "all" if not done.returncode else "not all")
    return int(failed or bool(done.returncode))


if __name__ == "__main__":
    sys.exit(main())

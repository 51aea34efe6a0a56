"""Families against transformers: ``python tests/families.py --torch PYTHON``, an interpreter with torch and transformers.

Tiny random models are saved by transformers, with the logits that it computes; restored into NNX,
where the same logits are computed; saved from there, and loaded by transformers again, which must
find the same bits. The files are compared byte for byte. Then any two tensors of one shape are
exchanged, and any square one turned: each is to be seen in the logits. With ``--laws N`` the laws
are tried on every lens, each on so many examples. With ``--keep`` the models that the suite tests
are written to `tests/families_data`; names of cases may be given to try no other.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from centered import Gpt2, Vit, Whisper
from decoder import Decoder, Settings
from flax import nnx

import ckpt_schema as cs
from ckpt_schema.testing import BrokenLawError, check_laws

HERE = Path(__file__).parent
DATA = HERE / "families_data"
KEPT = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "mixtral",
    "qwen3_moe",
    "gpt2",
    "vit",
    "whisper",
)
MOST = 1e-4  # relative to the largest logit
MODULES = {"mistral": "llama", "gemma3_text": "gemma3"}  # else called as the type of the model


def family_of(folder: Path) -> ModuleType:
    """The module of the family of a folder."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return getattr(cs.families, MODULES.get(kind, kind))


def view_of(folder: Path) -> type[cs.Schema]:
    """The model that has what a folder has."""
    family, names = family_of(folder), [*cs.hf.metadata(folder)]
    if family is cs.families.whisper:
        return family.Transcriber
    if family is cs.families.vit:
        pooled = any("pooler" in name for name in names)
        bare = family.PooledEncoder if pooled else family.Encoder
        return family.Classifier if "classifier.weight" in names else bare
    return family.Decoder if "lm_head.weight" in names else family.TiedDecoder


def begun(folder: Path, lens: cs.Lens, **said: Any) -> nnx.Module:
    """A new model of the family of a folder, with the weights that the view of a lens has.

    A decoder may be told settings that its config does not have.
    """
    dims = family_of(folder).dims_from(folder)
    config = json.loads((folder / "config.json").read_text())
    ends = {row.model_path[0] for row in lens.view.rows} & {"head", "pooler"}
    if config["model_type"] == "whisper":
        return Whisper(dims, config, nnx.Rngs(0))
    if config["model_type"] == "vit":
        return Vit(dims, config, nnx.Rngs(0), end=next(iter(ends), ""))
    if config["model_type"] == "gpt2":
        return Gpt2(dims, config, nnx.Rngs(0), tied=not ends)
    settings = dataclasses.replace(Settings.of(config, dims), **said)
    return Decoder(dims, settings, nnx.Rngs(0), tied=not ends)


def model_of(folder: Path, lens: cs.Lens) -> nnx.Module:
    """The same, abstract."""
    return nnx.eval_shape(lambda: begun(folder, lens))


def restored(folder: Path) -> tuple[Any, cs.Lens]:
    """The model of a folder, and the lens that it came through."""
    lens = family_of(folder).lens_of(folder, view_of(folder))
    return cs.hf.restore(folder, model_of(folder, lens), lens), lens


def run_of(model: nnx.Module, folder: Path) -> tuple[Callable[[Any], Any], Any, Any]:
    """What computes logits of weights, the weights of a model, and the logits that transformers computes."""
    told = dict(np.load(folder / "expected.npz"))
    logits = told.pop("logits")
    graph, state = nnx.split(model)

    def run(weights: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return nnx.merge(graph, weights)(**told)

    return jax.jit(run), state, logits


def far(found: Any, expected: Any) -> float:
    """How far logits are from others, relative to the largest."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def error_of(model: nnx.Module, folder: Path) -> float:
    """How far the logits are from those that transformers computes."""
    run, state, logits = run_of(model, folder)
    return far(run(state), logits)


def exchanges(tensors: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Two tensors of one shape in each other's place; or two axes of one size of one tensor."""
    for one, other in itertools.combinations(tensors, 2):
        if tensors[one].shape == tensors[other].shape:
            yield {one: tensors[other], other: tensors[one]}
    for name, array in tensors.items():
        for pair in itertools.combinations(range(array.ndim), 2):
            if array.shape[pair[0]] == array.shape[pair[1]] > 1:
                yield {name: array.swapaxes(*pair)}


def silent(names: Iterable[str], folder: Path) -> bool:
    """Whether all are biases of keys that no output depends on: nothing rotates them, as Qwen's are."""
    kinds = ("attention.key.bias", "attention.k_proj.bias")
    return family_of(folder) is cs.families.vit and all(name.endswith(kinds) for name in names)


def unseen(model: nnx.Module, lens: cs.Lens, folder: Path) -> tuple[int, list[list[str]]]:
    """How many exchanges there are, and those that the logits do not show."""
    run, state, logits = run_of(model, folder)
    tensors = cs.hf.load(folder)
    tried = [changed for changed in exchanges(tensors) if not silent(changed, folder)]
    return len(tried), [
        [*changed]
        for changed in tried
        if far(run(lens.get({**tensors, **changed}, onto=state)), logits) < MOST
    ]


def unlike(one: Path, other: Path) -> list[str]:
    """The files of weights that two folders do not have alike, byte for byte.

    Of several, only the tensors are held against each other: which is in which file is open.
    """
    if (one / "model.safetensors").exists():
        both = ((folder / "model.safetensors").read_bytes() for folder in (one, other))
        return ["model.safetensors"] if len({*both}) > 1 else []
    left, right = cs.hf.load(one), cs.hf.load(other)
    return [name for name in left if left[name].tobytes() != right[name].tobytes()]


def keep(folder: Path) -> None:
    """Writes a model to where the suite finds it."""
    (DATA / folder.name).mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors", "expected.npz"):
        (DATA / folder.name / file).write_bytes((folder / file).read_bytes())


def tried(folder: Path) -> bool:
    """Whether a model goes to NNX and back, and whether all exchanges are seen."""
    model, lens = restored(folder)
    words = {"shard_bytes": 2000} if "several" in folder.name else {}
    again = folder.with_name(f"{folder.name} again")
    cs.hf.save(again, model, lens, config_from=folder, **words)
    wrong, files = error_of(model, folder), unlike(folder, again)
    count, passed = unseen(model, lens, folder)
    print(
        f"{folder.name}: logits {wrong:.1e}, files unlike: {', '.join(files) or 'none'},",
        f"exchanges seen: {count - len(passed)} of {count}",
        *("unseen:", passed) if passed else (),
        flush=True,
    )
    return wrong < MOST and not files and not passed


def lenses(folders: Iterable[Path]) -> Iterator[tuple[str, cs.Lens]]:
    """The lenses of folders, each once; of one without a head, that to a model with one too."""
    seen = set[str]()
    for folder in folders:
        family = family_of(folder)
        views = dict.fromkeys([view_of(folder), getattr(family, "Decoder", view_of(folder))])
        for view in views:
            lens = family.lens_of(folder, view)
            if str(lens) not in seen:
                yield f"{folder.name} -> {view.__name__}", lens
            seen.add(str(lens))


def lawful(name: str, lens: cs.Lens, count: int) -> bool:
    """Whether a lens obeys the laws on so many examples of each."""
    try:
        check_laws(lens, max_examples=count)
    except BrokenLawError as error:
        print(f"{name}: {error}", flush=True)
        return False
    print(f"{name}: lawful", flush=True)
    return True


def main() -> int:
    """Compares every family, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default=sys.executable, help="a Python with transformers")
    parser.add_argument(
        "--laws", type=int, default=0, help="on how many examples each law is tried"
    )
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("cases", nargs="*", help="the cases to try, all unless given")
    given = parser.parse_args()
    if given.laws:
        jax.config.update("jax_num_cpu_devices", 8)  # for laws on a mesh
    with tempfile.TemporaryDirectory() as path:
        root = Path(path)
        command = [given.torch, HERE / "families_torch.py"]
        subprocess.run([*command, "make", path, *given.cases], check=True)
        folders = sorted(root.iterdir())
        right = [tried(folder) for folder in folders]
        if given.laws:
            right += [lawful(name, lens, given.laws) for name, lens in lenses(folders)]
        for folder in folders:
            if given.keep and folder.name in KEPT:
                keep(folder)
        done = subprocess.run([*command, "check", path, *given.cases], check=False)
    print("bits that transformers finds again:", "all" if not done.returncode else "not all")
    return int(not all(right) or bool(done.returncode))


if __name__ == "__main__":
    sys.exit(main())

"""The command for folders of Hugging Face: made into checkpoints of MaxText or of NNX, and back."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import jax

from ckpt_schema import hf, orbax
from ckpt_schema._frameworks.state_names import WEIGHTS
from ckpt_schema._lens.lens import Lens
from ckpt_schema._messages.text import counted

__all__ = ["FAMILIES", "answer_hf"]

FAMILIES = ("gemma2", "gemma3", "llama", "mixtral", "qwen2", "qwen3", "qwen3_moe")
"""Those that both MaxText and NNX have."""


def answer_hf(
    given: str,
    new: str,
    family: str,
    to: Literal["maxtext", "nnx"] | None,
    back: Literal["maxtext", "nnx"] | None,
    like: str | None,
    dtype: str | None,
    item: str | None,
    at: str | None,
    *,
    scan: bool,
) -> int:
    """Makes a checkpoint of a folder, or a folder of a checkpoint; prints what was done.

    Where the weights stand in the checkpoint may be said, either way.
    """
    folder = given if like is None else like
    form = to or back
    lens = _lens(folder, family, dtype, scan=scan, is_maxtext=form == "maxtext")
    # as load_parameters_path of MaxText wants it
    place: dict[str, Any] = {"item": "items", "at": WEIGHTS} if form == "maxtext" else {}
    if item is not None:
        place["item"] = item
    if at is not None:
        place["at"] = at
    if back is None:
        made = lens.get(hf.load(folder))
        orbax.save(new, made, **place)
    else:
        # What the checkpoint has to be is what the folder would become; no weights are read for that.
        target = jax.eval_shape(lens.get, hf.metadata(folder))
        made = orbax.restore(given, target, **place)
        hf.save(new, made, lens, onto=hf.load(folder), config_from=folder)
    print(f"{new}: {counted(len(jax.tree.leaves(made)), 'leaf', 'leaves')} of {given}")
    # What a narrower dtype loses is never silent.
    for path, lost in lens.loss.items():
        print(f"  {path}: {lost}")
    return 0


def _lens(folder: str, family: str, dtype: str | None, *, scan: bool, is_maxtext: bool) -> Lens:
    """The lens from a folder."""
    module = importlib.import_module(f"ckpt_schema.families.{family}")
    if is_maxtext:
        return module.maxtext.lens_of(folder, scan=scan, dtype=dtype)
    # A folder without a head of its own has the embedding for one.
    has_head = any("lm_head" in name for name in hf.metadata(folder))
    lens = module.lens_of(folder, module.Decoder if has_head else module.TiedDecoder)
    # A config tells sizes that are in no weight as well, and `bind` takes names of dims alone.
    names = lens.source.names() | lens.view.names()
    sizes = module.dims_from(folder)
    return lens.bind(**{name: size for name, size in sizes.items() if name in names})

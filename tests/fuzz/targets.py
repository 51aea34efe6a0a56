"""What a restore, a save, ``onto`` and ``bind`` are given."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import ckpt_schema as cs
from fuzz.attempts import SilentError
from fuzz.hostile import LEAVES, NUMBERS, pick
from fuzz.trees import LENS, malformed, plain, state

PATHS: tuple[Any, ...] = (
    *(None, 3, b"x", "", "/nowhere/at/all", "a\0b", "foo://bar/x", "x" * 300, Path("/nowhere")),
    *(object(), ["a"], ".", "/dev/null", "/proc/self"),
)
AUX: tuple[Any, ...] = (
    *(None, "nnx_aux", "..", ".", "a\\b", "_CHECKPOINT_METADATA", "\0", " ", "", 5, b"x"),
    *("metrics", "x" * 300, "state"),
)
SIDES: tuple[Any, ...] = (None, "source", "view", "left", "", 5, True)


@functools.cache
def checkpoint() -> Path:
    """A checkpoint of the source, for all cases of a process."""
    folder = Path(tempfile.mkdtemp(prefix="ckpt-schema-fuzz-"))
    cs.orbax.save(folder / "0", LENS.get(state(np.random.default_rng(0))), LENS)
    return folder / "0"


def abstract(tree: Any) -> Any:
    """Its shapes and dtypes, where it has any."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def attempt(rng: np.random.Generator) -> None:
    """Gives one wrong thing to a call."""
    use = int(rng.integers(7))
    good = LENS.get(state(np.random.default_rng(0)))
    if use == 0:
        target = malformed(rng, dict(good))
        restored = cs.orbax.restore(checkpoint(), target, LENS)
        if isinstance(restored, dict) and restored.keys() == good.keys():
            leaf, other = plain(restored["emb"], "float32"), plain(good["emb"], "float32")
            if leaf.tobytes() != other.tobytes():
                raise SilentError(f"emb: {leaf!r} instead of {other!r}")
    elif use == 1:
        cs.orbax.restore(pick(rng, PATHS), good, LENS)
    elif use == 2:
        folder = checkpoint().parent
        path = pick(rng, (None, 3, b"x", "", "a\0b", folder / ("x" * 300), checkpoint(), object()))
        cs.orbax.save(path, good, LENS)
    elif use == 3:
        onto = malformed(rng, dict(good))
        LENS.get(state(rng), onto=onto)
    elif use == 4:
        sides = {"target_side": pick(rng, SIDES), "disk_side": pick(rng, SIDES)}
        cs.orbax.restore(checkpoint(), abstract(good), LENS, **_known(sides), aux=pick(rng, AUX))
    elif use == 5:
        things: list[Any] = [checkpoint(), good, LENS, nnx.Rngs(0), None, pick(rng, LEAVES)()]
        chosen = [things[at] for at in rng.permutation(len(things))[:3]]
        cs.orbax.restore(*chosen)
    else:
        LENS.bind(**{pick(rng, ("a", "b", "depth", "zz")): pick(rng, NUMBERS)}).get(state(rng))


def _known(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that are given."""
    return {name: value for name, value in arguments.items() if value is not None}

"""What a restore, a save, ``onto`` and ``bind`` are given."""

from __future__ import annotations

import atexit
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import ckpt_schema as cs
from fuzz.attempts import SilentError
from fuzz.hostile import LEAVES, NUMBERS, pick
from fuzz.seen import same
from fuzz.trees import LENS, malformed, state, verify

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
    """A checkpoint of the source, for all cases of a process, which none of them may change."""
    folder = tempfile.TemporaryDirectory(prefix="ckpt-schema-fuzz-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "0"
    cs.orbax.save(path, good(), LENS)
    return path


def good() -> Any:
    """The view that is in the checkpoint."""
    return LENS.get(state(np.random.default_rng(0)))


def abstract(tree: Any) -> Any:
    """Its shapes and dtypes, where it has any."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def attempt(rng: np.random.Generator) -> None:
    """Gives one wrong thing to a call."""
    pick(rng, USES)(rng)


def target(rng: np.random.Generator) -> None:
    """A malformed target, of arrays or without values."""
    whole = good() if rng.integers(2) else abstract(good())
    same(cs.orbax.restore(checkpoint(), malformed(rng, whole), LENS), good())


def read_from(rng: np.random.Generator) -> None:
    """A path where there is nothing to read."""
    cs.orbax.restore(pick(rng, PATHS), good(), LENS)
    raise SilentError("something was read where there is nothing")


def written_to(rng: np.random.Generator) -> None:
    """A path where nothing can be written; what is there stays."""
    folder = checkpoint().parent
    path = pick(rng, (None, 3, b"x", "", "a\0b", folder / ("x" * 300), checkpoint(), object()))
    others = LENS.get(state(rng))
    try:
        cs.orbax.save(path, others, LENS)
    except cs.CkptSchemaError:
        same(cs.orbax.restore(checkpoint(), good(), LENS), good())
        raise
    raise SilentError(f"something was written to {path!r}"[:300])


def written(rng: np.random.Generator) -> None:
    """A malformed view is saved: what is accepted is on disk."""
    tree = malformed(rng, good())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0"
        try:
            cs.orbax.save(path, tree, LENS)
        except cs.CkptSchemaError:
            if list(Path(folder).iterdir()):
                raise SilentError("a save that was refused left something") from None
            raise
        same(cs.orbax.restore(path, abstract(good()), LENS), tree)


def onto(rng: np.random.Generator) -> None:
    """A malformed tree that a view is put onto."""
    tree = state(rng)
    verify(tree, LENS.get(tree, onto=malformed(rng, good())))


def sides(rng: np.random.Generator) -> None:
    """Sides and an item of private leaves that are right or not."""
    named = {"target_side": pick(rng, SIDES), "disk_side": pick(rng, SIDES)}
    given = {name: side for name, side in named.items() if side is not None}
    found = cs.orbax.restore(checkpoint(), abstract(good()), LENS, **given, aux=pick(rng, AUX))
    same(found, good())


def exchanged(rng: np.random.Generator) -> None:
    """Arguments that changed places."""
    things: list[Any] = [checkpoint(), good(), LENS, nnx.Rngs(0), None, pick(rng, LEAVES)()]
    chosen = [things[at] for at in rng.permutation(len(things))[:3]]
    same(cs.orbax.restore(*chosen), good())


def bound(rng: np.random.Generator) -> None:
    """Sizes that a lens is bound to."""
    tree = state(rng)
    sizes = {pick(rng, ("a", "b", "depth", "zz")): pick(rng, NUMBERS)}
    verify(tree, LENS.bind(**sizes).get(tree))


USES: tuple[Callable[[np.random.Generator], None], ...] = (
    *(target, target, read_from, written_to, written, onto, sides, exchanged, bound),
)

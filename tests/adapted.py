"""Random pairs of trees that nobody has declared, against NumPy: `adapt` is right or refuses, never wrong.

`python tests/adapted.py --cases 2000` prints the histogram. A pair is one model, spelled twice. What each spelling
holds is made by NumPy from the values of the layers, which the library never sees.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import ckpt_schema as cs

Path = tuple[Any, ...]
KINDS: Mapping[str, type[nnx.Variable[Any]]] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


@dataclasses.dataclass(frozen=True)
class Member:
    """A leaf of the model: where it stands, its collection, and its values, one for each layer that has it."""

    path: Path
    kind: str
    values: tuple[np.ndarray[Any, Any], ...]
    stack: str | None = None  # the stack of layers that it is in
    rest: Path = ()


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How one side has it: the axis of each stack by collection, or None where its layers are unrolled."""

    nnx: bool
    axes: Mapping[str, Mapping[str, int] | None]
    whole: bool = False  # a train state
    streams: bool = False

    def scan(self, stack: str) -> Any:
        """What a user says of a stack of this side."""
        axes = self.axes[stack]
        if axes is None:
            return None
        return {KINDS[k]: a for k, a in axes.items()} | {nnx.RngState: 0} if self.nnx else axes


def model(rng: np.random.Generator) -> list[Member]:
    """A model of few leaves, of sizes that collide."""
    sizes = rng.integers(1, 4, 3)

    def value(rank: int) -> tuple[int, ...]:
        return tuple(int(rng.choice(sizes)) for _ in range(rank))

    members: list[Member] = []

    def add(path: Path, kind: str, count: int, stack: str | None = None, rest: Path = ()) -> None:
        shape = value(int(rng.integers(1, 4)))
        values = tuple(rng.normal(size=shape).astype("float32") for _ in range(count))
        members.append(Member(path, kind, values, stack, rest))

    add(("embed", "embedding"), "params", 1)
    for stack in ("layers", "blocks")[: rng.integers(1, 3)]:
        count = int(rng.integers(1, 4))
        path = (
            ("layers",) if stack == "layers" else ("encoder", str(rng.choice(["blocks", "layers"])))
        )
        for number in range(rng.integers(1, 4)):
            name = ("up", "down", "norm")[number]
            add(path, "params", count, stack, (name, "kernel"))
        if rng.random() < 0.3:
            add(path, "batch_stats", count, stack, ("norm", "mean"))
    if rng.random() < 0.5:
        add(("head", "kernel"), "params", 1)
    return members


def spelling(rng: np.random.Generator, members: Sequence[Member]) -> Spelling:
    """One way to store it."""
    axes: dict[str, Mapping[str, int] | None] = {}
    for stack in sorted({m.stack for m in members if m.stack}):
        ranks = {
            kind: min(
                [m.values[0].ndim for m in members if (m.stack, m.kind) == (stack, kind)] or [0]
            )
            for kind in KINDS
        }
        first = {kind: int(rng.integers(0, rank + 1)) for kind, rank in ranks.items()}
        if rng.random() < 0.6:
            first = {kind: min(first["params"], ranks[kind]) for kind in ranks}
        axes[stack] = None if rng.random() < 0.4 else first
    is_nnx = bool(rng.random() < 0.4)
    return Spelling(is_nnx, axes, streams=is_nnx and bool(rng.random() < 0.5))


def stored(members: Sequence[Member], how: Spelling) -> Iterator[tuple[str, Path, Any]]:
    """Each stored leaf: its collection, its path, its array."""
    for one in members:
        axes = how.axes[one.stack] if one.stack else None
        if axes is not None:
            yield one.kind, (*one.path, *one.rest), np.stack(one.values, axis=axes[one.kind])
        elif one.stack and how.nnx:
            for number, value in enumerate(one.values):
                yield one.kind, (*one.path, number, *one.rest), value
        elif one.stack:
            for number, value in enumerate(one.values):
                name = f"{one.path[-1]}_{number}"
                yield one.kind, (*one.path[:-1], name, *one.rest), value
        else:
            yield one.kind, one.path, one.values[0]


STREAMS = "dropout", "rngs"


def tree(members: Sequence[Member], how: Spelling) -> Any:
    """The whole tree, as the framework has it: of the model alone, or of a train state with Adam's moments."""
    root: dict[Any, Any] = {}
    moments: dict[Any, dict[Any, Any]] = {"mu": {}, "nu": {}}
    for kind, path, value in stored(members, how):
        home = ("model",) if how.whole else ()
        where = (*home, *path) if how.nnx else (kind, *path)
        plant(root, where, KINDS[kind](value) if how.nnx else value)
        for number, inner in enumerate(moments.values()):
            moment = value * np.float32(2 + number)
            if kind == "params":
                plant(inner, path, nnx.optimizer.OptVariable(moment) if how.nnx else moment)
    if how.streams:
        for path, leaf in streams(members, how):
            plant(root, ("model", *path) if how.whole else path, leaf)
    count = np.int32(7)
    if how.nnx and how.whole:
        parts = {0: {"count": nnx.optimizer.OptArray(count), **moments}}
        root["optimizer"] = {"step": nnx.optimizer.OptState(count), "opt_state": parts}
    elif how.whole:
        adam = optax.ScaleByAdamState(count, moments["mu"], moments["nu"])
        root |= {"step": count, "opt_state": (adam, optax.EmptyState())}
    return nnx.State(root) if how.nnx else root


def plant(root: dict[Any, Any], path: Path, leaf: Any) -> None:
    """Puts a leaf at a path of nested dicts."""
    for key in path[:-1]:
        root = root.setdefault(key, {})
    root[path[-1]] = leaf


def streams(members: Sequence[Member], how: Spelling) -> Iterator[tuple[Path, Any]]:
    """A stream for each layer, which NNX alone has; stacked on axis 0 wherever the params are."""
    stacks = {one.path: (one.stack, len(one.values)) for one in members if one.stack}
    for path, (stack, count) in stacks.items():
        keys = jax.random.split(jax.random.key(count), count)
        counts = np.arange(count, dtype="uint32")
        if how.axes[str(stack)] is not None:
            yield (*path, *STREAMS, "key"), nnx.RngKey(keys, tag="dropout")
            yield (*path, *STREAMS, "count"), nnx.RngCount(counts, tag="dropout")
            continue
        for number in range(count):
            yield (*path, number, *STREAMS, "key"), nnx.RngKey(keys[number], tag="dropout")
            yield (*path, number, *STREAMS, "count"), nnx.RngCount(counts[number], tag="dropout")


def looks_the_same(members: Sequence[Member], sides: Sequence[Spelling]) -> bool:
    """Whether a stack has another axis on each side, and no leaf that both sides have shows such a thing.

    What shows it is a leaf whose shape differs, in that stack, or by the same move in one of as many layers or of the
    same name. Else keys, shapes and dtypes are those of equal trees; no reader can tell.
    """
    hidden: set[tuple[str | None, int, str, Any]] = set()
    shown: set[tuple[str | None, int, str, Any]] = set()
    for one in members:
        own = [how.axes[one.stack] for how in sides] if one.stack else [None]
        if any(axes is None for axes in own):
            continue
        move = tuple(axes[one.kind] for axes in own if axes is not None)
        both = [np.stack(one.values, axis=axis) for axis in move]
        about = one.stack, len(one.values), one.path[-1], move
        if both[0].shape != both[1].shape:
            shown.add(about)
        elif not np.array_equal(both[0], both[1]):
            hidden.add(about)
    for stack, count, name, move in hidden:
        if not any(
            stack == other or (move == way and (count == n or name == called))
            for other, n, called, way in shown
        ):
            return True
    return False


def leaves_of(given: Any) -> dict[str, Any]:
    """All leaves by their key path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(given)
    return {jax.tree_util.keystr(path): _array(leaf) for path, leaf in flat}


def _array(leaf: Any) -> np.ndarray[Any, Any]:
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def same(found: Any, wanted: Any) -> bool:
    """Whether all arrays are equal to the last bit."""
    both = leaves_of(found), leaves_of(wanted)
    return both[0].keys() == both[1].keys() and all(
        both[0][key].shape == both[1][key].shape and np.array_equal(both[0][key], both[1][key])
        for key in both[0]
    )


def outcome(seed: int) -> str:
    """What becomes of one pair."""
    rng = np.random.default_rng(seed)
    members = model(rng)
    sides = spelling(rng, members), spelling(rng, members)
    if looks_the_same(members, sides):
        return "not to be seen"
    if rng.random() < 0.4:
        sides = tuple(dataclasses.replace(how, whole=True) for how in sides)
    source, view = (tree(members, how) for how in sides)
    try:
        return "right" if is_right(source, view) else "wrong"
    except cs.CkptSchemaError as error:
        offered = "scan=" in str(error) or "axes=" in str(error) or bool(error.rules)
    try:
        settled = is_right(source, view, scan=truth(members, sides))
    except cs.CkptSchemaError:
        return "refused, whatever is said"
    if not settled:
        return "wrong"
    return "refused, with what settles it" if offered else "refused"


def truth(members: Sequence[Member], sides: Sequence[Spelling]) -> dict[str, Any]:
    """What a user who knows both sides says of their stacks."""
    found: dict[str, Any] = {}
    for stack, path in {one.stack: one.path for one in members if one.stack}.items():
        here, there = (how.scan(stack) for how in sides)
        if here is not None or there is not None:
            both = here is not None and there is not None
            found["/".join(path)] = (here, there) if both else here if there is None else there
    return found


def is_right(source: Any, view: Any, **words: Any) -> bool:
    """Whether both are converted to one another to the last bit; AxesWarnings apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cs.AxesWarning)
        lens = cs.adapt(source, view, **words)
    return same(lens.get(source, onto=view), view) and same(lens.put(view, onto=source), source)


def histogram(first: int, cases: int) -> collections.Counter[str]:
    """The outcomes of pairs, counted."""
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + cases):
        result = outcome(seed)
        counts[result] += 1
        if result in ("wrong", "refused", "refused, whatever is said"):
            print(f"{result}: seed {seed}")
    return counts


def main() -> None:
    """Runs as many pairs as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    counts = histogram(given.first, given.cases)
    for name, count in counts.most_common():
        if name != "wrong":
            print(f"{count:7} {name}")
    print(f"{counts['wrong']:7} wrong")
    raise SystemExit(bool(counts["wrong"]))


if __name__ == "__main__":
    main()

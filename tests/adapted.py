"""Random pairs of trees that nobody has declared, against NumPy: `adapt` is right or refuses, never wrong.

`python tests/adapted.py --cases 5000` prints the histogram; with `--kept FILE` it may be stopped, and goes on where it
was. A pair is one model, spelled twice. What each spelling
holds is made by NumPy from the values of the layers, which the library never sees.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import ckpt_schema as cs

Place = tuple[Any, ...]
SLICE = 100
OUTCOMES = (
    "right",
    "refused, with what settles it",
    "not to be seen",
    "refused",
    "refused, whatever is said",
    "wrong",
)
KINDS: Mapping[str, type[nnx.Variable[Any]]] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


@dataclasses.dataclass(frozen=True)
class Member:
    """A leaf of the model: its collection, its values, and where it stands.

    Attributes:
        kind: Its collection.
        values: Its values; an axis for each level of layers that it is in comes first.
        levels: These levels, outermost first: the name of each, and its path in the level above.
        rest: Its path in the innermost, or in the model.
    """

    kind: str
    values: np.ndarray[Any, Any]
    levels: tuple[tuple[str, Place], ...]
    rest: Place

    @property
    def rank(self) -> int:
        """The rank of the leaf of one layer."""
        return self.values.ndim - len(self.levels)


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


def model(seed: int) -> list[Member]:
    """A model of few leaves, of sizes that collide."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, 3)
    members: list[Member] = []

    def add(rest: Place, kind: str, *levels: tuple[str, Place, int]) -> None:
        shape = [int(rng.choice(sizes)) for _ in range(int(rng.integers(1, 4)))]
        values = rng.normal(size=(*(count for _, _, count in levels), *shape))
        inside = tuple((name, path) for name, path, _ in levels)
        members.append(Member(kind, values.astype("float32"), inside, rest))

    add(("embed", "embedding"), "params")
    for stack in ("layers", "blocks")[: rng.integers(1, 3)]:
        count = int(rng.integers(1, 4))
        path = (
            ("layers",) if stack == "layers" else ("encoder", str(rng.choice(["blocks", "layers"])))
        )
        level = stack, path, count
        for number in range(rng.integers(1, 4)):
            add((("up", "down", "norm")[number], "kernel"), "params", level)
        if rng.random() < 0.3:
            add(("norm", "mean"), "batch_stats", level)
    if rng.random() < 0.5:
        add(("head", "kernel"), "params")
    if rng.random() < 0.4:  # layers in layers, and a leaf beside them
        tower = "towers", (str(rng.choice(["towers", "stages"])),), int(rng.integers(1, 4))
        inner: Place = ("layers",) if rng.random() < 0.7 else ("body", "layers")
        floor = "floors", inner, int(rng.integers(1, 4))
        for name in ("up", "down")[: rng.integers(1, 3)]:
            add((name, "kernel"), "params", tower, floor)
        if rng.random() < 0.5:
            add(("out", "kernel"), "params", tower)
    return members


def spelling(rng: np.random.Generator, members: Sequence[Member]) -> Spelling:
    """One way to store it."""
    axes: dict[str, Mapping[str, int] | None] = {}
    for stack in sorted({name for m in members for name, _ in m.levels}, reverse=True):
        ranks = {
            kind: min(
                [m.rank for m in members if m.kind == kind and stack in dict(m.levels)] or [0]
            )
            for kind in KINDS
        }
        first = {kind: int(rng.integers(0, rank + 1)) for kind, rank in ranks.items()}
        if rng.random() < 0.6:
            first = {kind: min(first["params"], ranks[kind]) for kind in ranks}
        axes[stack] = None if rng.random() < 0.4 else first
    if axes.get("towers") is not None:  # no leaf is stacked twice
        axes["floors"] = None
    is_nnx = bool(rng.random() < 0.4)
    return Spelling(is_nnx, axes, streams=is_nnx and bool(rng.random() < 0.5))


def stored(members: Sequence[Member], how: Spelling) -> Iterator[tuple[str, Place, Any]]:
    """Each stored leaf: its collection, its path, its array."""
    for one in members:
        for path, value in cut(one, how, one.levels, (), one.values, None):
            yield one.kind, path, value


def cut(
    one: Member,
    how: Spelling,
    levels: Sequence[tuple[str, Place]],
    above: Place,
    value: np.ndarray[Any, Any],
    stacked: int | None,
) -> Iterator[tuple[Place, Any]]:
    """The arrays of a member below some path, one for each layer of a list.

    Args:
        one: The member.
        how: How its levels are stored.
        levels: Those that are left.
        above: The path.
        value: The values there; axis 0 is that of the stack, if it is in one.
        stacked: The axis that this is to be.
    """
    if not levels:
        yield (*above, *one.rest), value if stacked is None else np.moveaxis(value, 0, stacked)
        return
    (name, below), *inner = levels
    axes, node = how.axes[name], (*above, *below)
    if axes is not None:
        yield from cut(one, how, inner, node, value, axes[one.kind])
        return
    at = 0 if stacked is None else 1
    for number in range(value.shape[at]):
        layer = (*node, number) if how.nnx else (*node[:-1], f"{node[-1]}_{number}")
        yield from cut(one, how, inner, layer, value.take(number, axis=at), stacked)


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


def plant(root: dict[Any, Any], path: Place, leaf: Any) -> None:
    """Puts a leaf at a path of nested dicts."""
    for key in path[:-1]:
        root = root.setdefault(key, {})
    root[path[-1]] = leaf


def streams(members: Sequence[Member], how: Spelling) -> Iterator[tuple[Place, Any]]:
    """A stream for each layer, which NNX alone has; stacked on axis 0 wherever the params are."""
    outer = {one.levels[0]: len(one.values) for one in members if one.levels}
    for (stack, path), count in outer.items():
        keys = jax.random.split(jax.random.key(count), count)
        counts = np.arange(count, dtype="uint32")
        if how.axes[stack] is not None:
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
    hidden: set[tuple[str, int, str, Any]] = set()
    shown: set[tuple[str, int, str, Any]] = set()
    for one in members:
        for at, (stack, _) in enumerate(one.levels):
            own = [how.axes[stack] for how in sides]
            if any(axes is None for axes in own):
                continue
            move = tuple(axes[one.kind] for axes in own if axes is not None)
            layers = np.moveaxis(one.values, at, 0)
            for _ in one.levels[1:]:  # those of one list, whose shapes are all the same
                layers = layers[:, 0]
            both = [np.moveaxis(layers, 0, axis) for axis in move]
            about = stack, len(layers), one.rest[-1], move
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
    rng = np.random.default_rng((seed, 1))
    members = model(seed)
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
        rules = list(error.rules)
    if rules and is_pasted_wrong(source, view, rules):
        return "wrong"
    try:
        settled = is_right(source, view, scan=truth(members, sides))
    except cs.CkptSchemaError:
        return "refused, whatever is said"
    if not settled:
        return "wrong"
    return "refused, with what settles it" if offered else "refused"


def is_pasted_wrong(source: Any, view: Any, rules: Sequence[Any]) -> bool:
    """Whether what an error calls certain makes another lens than the right one."""
    try:
        return not is_right(source, view, rules=rules)
    except cs.CkptSchemaError:
        return False


def truth(members: Sequence[Member], sides: Sequence[Spelling]) -> dict[str, Any]:
    """What a user who knows both sides says of their stacks."""
    found: dict[str, Any] = {}
    for one in members:
        path: Place = ()
        for stack, below in one.levels:
            path = *path, *below
            here, there = (how.scan(stack) for how in sides)
            if here is not None or there is not None:
                both = here is not None and there is not None
                found["/".join(path)] = (here, there) if both else here if there is None else there
            elif not any(how.nnx for how in sides):  # siblings on both, which nothing calls a list
                path = *path[:-1], f"{path[-1]}_*"
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


def resumed(cases: int, kept: Path | None) -> collections.Counter[str]:
    """The outcomes of the first so many pairs; what a file keeps of them is not tried again."""
    known = json.loads(kept.read_text()) if kept and kept.exists() else {}
    for first in range(0, cases, SLICE):
        if str(first) not in known:
            known[str(first)] = histogram(first, min(SLICE, cases - first))
            if kept:
                kept.write_text(json.dumps(known))
    counts: collections.Counter[str] = collections.Counter()
    for first in range(0, cases, SLICE):
        counts.update(known[str(first)])
    return counts


def main() -> None:
    """Runs as many pairs as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, help="one pair alone, by its seed")
    parser.add_argument(
        "--kept", type=Path, help="a file of outcomes: what it knows is not tried again"
    )
    given = parser.parse_args()
    if given.first is not None:
        print(outcome(given.first))
        return
    counts = resumed(given.cases, given.kept)
    for name in OUTCOMES:
        print(f"{counts[name]:7} {name}")
    raise SystemExit(bool(counts["wrong"]))


if __name__ == "__main__":
    main()

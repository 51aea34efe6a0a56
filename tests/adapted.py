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

import numpy as np
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
    return Spelling(bool(rng.random() < 0.4), axes)


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


def tree(members: Sequence[Member], how: Spelling) -> Any:
    """The whole tree, as the framework has it."""
    root: dict[Any, Any] = {}
    for kind, path, value in stored(members, how):
        node = root if how.nnx else root.setdefault(kind, {})
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = KINDS[kind](value) if how.nnx else value
    if how.nnx:
        return nnx.State(root)
    return root


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


def leaves_of(given: Any) -> dict[tuple[str, ...], Any]:
    """All leaves by their key path."""
    if isinstance(given, nnx.State):
        flat = nnx.to_flat_state(given)
        return {tuple(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}
    found: dict[tuple[str, ...], Any] = {}

    def walk(node: Any, at: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            for key, inner in node.items():
                walk(inner, (*at, str(key)))
        else:
            found[at] = np.asarray(node)

    walk(given, ())
    return found


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
    source, view = (tree(members, how) for how in sides)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cs.AxesWarning)
            lens = cs.adapt(source, view)
    except cs.CkptSchemaError as error:
        return (
            "refused, with what settles it" if "scan=" in str(error) or error.rules else "refused"
        )
    if not same(lens.get(source, onto=view), view) or not same(lens.put(view, onto=source), source):
        return "wrong"
    return "right"


def histogram(first: int, cases: int) -> collections.Counter[str]:
    """The outcomes of pairs, counted."""
    counts: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + cases):
        result = outcome(seed)
        counts[result] += 1
        if result == "wrong":
            print(f"wrong: seed {seed}")
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

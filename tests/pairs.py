"""Random pairs of layouts of one model, each held against NumPy to the last bit: ``python tests/pairs.py``.

Three layouts are drawn at a time (`support/mingling.py`), each of which keeps every leaf in any
combination of ways; that is three pairs, and one composition through the middle. Of each, ``get``
and ``put`` must be what NumPy makes. What the library refuses is counted by the kind of fault, and
the ``dims=`` that an error gives is followed. ``--state`` names a file that keeps what is done: the
command can be interrupted, and goes on there.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

if __name__ == "__main__":
    from ckpt_schema.testing import virtual_devices

    virtual_devices()

from support.mingled import Keeping, Pairing, paired, tree
from support.mingling import Case, drawn

import ckpt_schema as cs

Tree = Any
Counts = collections.Counter[str]


@dataclasses.dataclass
class Tally:
    """What was found.

    Attributes:
        done: How many draws of three layouts.
        pairs: How many pairs have been compared.
        composed: How many compositions.
        printed: Of how many of these the print is that of the derived lens, for it has to be.
        decided: How many pairs needed the sizes that an error asked for.
        kinds: How many leaves differ in so many kinds at once.
        mixed: How many leaves differ in each kind.
        refused: How often the library refused, by what it said.
        examples: For each of these, one draw.
        wrong: What is not what NumPy says.
    """

    done: int = 0
    pairs: int = 0
    composed: int = 0
    printed: int = 0
    decided: int = 0
    kinds: Counts = dataclasses.field(default_factory=Counts)
    mixed: Counts = dataclasses.field(default_factory=Counts)
    refused: Counts = dataclasses.field(default_factory=Counts)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)
    wrong: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Tally:
        """From what a file keeps."""
        counts = {name: Counts(kept[name]) for name in ("kinds", "mixed", "refused")}
        return cls(**{**kept, **counts})


# --- Comparing  ---


def flat(tree: Tree) -> dict[str, np.ndarray[Any, Any]]:
    """The leaves by path, whatever the containers are; keys as their words."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        names = (getattr(e, "key", getattr(e, "name", getattr(e, "idx", None))) for e in path)
        spelled = "/".join(str(name) for name in names if name not in (None, "value"))
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[spelled] = np.asarray(leaf)
    return found


def differences(found: Tree, expected: Tree) -> Iterator[str]:
    """Where a tree is not to the last bit what it must be."""
    ours, theirs = flat(found), flat(expected)
    if ours.keys() != theirs.keys():
        yield f"leaves {sorted(ours.keys() ^ theirs.keys())}"
        return
    for path, value in theirs.items():
        kinds = [(x.dtype, x.shape) for x in (ours[path], value)]
        if kinds[0] != kinds[1]:
            yield f"{path}: {kinds[0]} instead of {kinds[1]}"
        elif ours[path].tobytes() != value.tobytes():
            yield f"{path}: {ours[path].tolist()} instead of {value.tolist()}"


# --- One draw  ---


def bound(lens: cs.Lens, case: Case) -> cs.Lens:
    """With all sizes that its layouts have."""
    names = lens.source.names() | lens.view.names()
    names.update(*(join.names for join in lens.joins))
    # A dim of both ends that the middle of a composition lacks has a name of its own in the view.
    own = {name: name.removesuffix("_view") for name in names}
    return lens.bind(**{n: case.sizes[of] for n, of in own.items() if of in case.sizes})


def names_of(keeping: Keeping) -> set[str]:
    """The units that a layout has."""
    return {
        kept.unit.name
        for place in keeping.places
        for member in place.members
        for kept in member.leaves
    }


def held(case: Case, keeping: Keeping, *, lost: frozenset[str] = frozenset()) -> Tree:
    """The state as a layout has it."""
    return tree(keeping, case.values, case.sizes, case.count, lost)


def derived(
    case: Case, source: Keeping, view: Keeping, told: Pairing, tally: Tally
) -> cs.Lens | None:
    """The lens of a pair; what an error says is followed, and if that does not help, it is refused."""
    try:
        return cs.derive(source.schema, view.schema, rules=told.rules)
    except cs.DerivationError as error:
        found = error
    dims: dict[str, int] = {}
    while more := _asked_for(found) - dims.keys():  # what an error says is followed
        dims |= {name: case.sizes[name] for name in more}
        try:
            lens = cs.derive(source.schema, view.schema, rules=told.rules, dims=dims)
        except cs.DerivationError as again:
            found = again
        else:
            tally.decided += 1
            return lens
    for fault in found.mismatches:
        refuse(tally, fault)
    return None


def _asked_for(error: cs.DerivationError) -> set[str]:
    """The sizes that an error asks for."""
    hints = (fault.hint for fault in error.mismatches if "give dims=" in fault.hint)
    return {name for hint in hints for name in re.findall(r'"(\w+)": \.\.\.', hint)}


_NAMED = [
    re.compile(pattern)
    for pattern in (
        r"\([^()]*\)",
        r"'[^']*'",
        r"\w+\[[^]]*\]",
        r"\S*(?:[wu]\d|[*+/])\S*",
        r"\b(?:embed|mlp|heads|kv|dim|groups|per|depth|blocks|rest)\b(?: …)*",
        r"(?:… ?)+",
    )
]
"""What an error calls by name."""


def refuse(tally: Tally, fault: cs.Mismatch) -> None:
    """Counts a refusal by its kind, and by what it says but for names."""
    text = f"{fault.expected} | {fault.hint}"
    for pattern in _NAMED:
        text = pattern.sub("…", text)
    said = f"{fault.kind}: {text[:160]}"
    tally.refused[said] += 1


Place = Callable[[Tree], Tree]


def tried(seed: str, tally: Tally, place: Place = lambda tree: tree, **drawing: Any) -> None:
    """Draws three layouts, and holds their pairs and the composition against NumPy."""
    case = drawn(seed, **drawing)
    first, middle, last = case.layouts
    lenses: list[cs.Lens | None] = []
    for source, view in ((first, middle), (middle, last), (first, last)):
        told = paired(source, view)
        for kinds in told.kinds:
            tally.kinds[str(len(kinds))] += 1
            tally.mixed.update(kinds)
        lens = guarded(tally, seed, derived, case, source, view, told, tally)
        lenses.append(lens)
        tally.pairs += lens is not None
        if lens is not None:
            passing = names_of(source) & names_of(view)
            guarded(tally, seed, compare, case, lens, (source, view), passing, place)
    one, other, _ = lenses
    if one is None or other is None:
        return
    composite = guarded(tally, seed, composed, one, other, case, tally)
    if composite is not None:
        tally.composed += 1
        passing = names_of(first) & names_of(middle) & names_of(last)
        guarded(tally, seed, compare, case, composite, (first, last), passing, place)


def guarded(tally: Tally, seed: str, attempt: Callable[..., Any], *given: Any) -> Any:
    """What an attempt gives; whatever it raises is a fault, and a refusal gets an example."""
    before = tally.refused.copy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cs.ShardingWarning)
            return attempt(*given)
    except Exception as error:
        tally.wrong.append(f"{seed}: {type(error).__name__}: {str(error)[:600]}")
    finally:
        for said in tally.refused - before:
            tally.examples.setdefault(said, seed)
    return None


def composed(one: cs.Lens, other: cs.Lens, case: Case, tally: Tally) -> cs.Lens | None:
    """The composite; where it is open, of both at their sizes."""
    try:
        return one >> other
    except cs.DerivationError as error:
        if not all("give dims=" in fault.hint for fault in error.mismatches):
            for fault in error.mismatches:
                refuse(tally, fault)
            return None
    tally.decided += 1
    return bound(one, case) >> bound(other, case)


class DifferenceError(AssertionError):
    """A tree is not what NumPy says it is."""


def compare(
    case: Case, lens: cs.Lens, ends: tuple[Keeping, Keeping], passing: set[str], place: Place
) -> None:
    """Holds both ways of a lens against NumPy, with and without something private to keep."""
    lens = bound(lens, case)
    source, view = (held(case, end) for end in ends)
    new = [held(case, end, lost=frozenset(names_of(end) - passing)) for end in ends]
    source, view = place(source), place(view)
    found: list[str] = []
    for way, made, expected in (
        ("get", lens.get(source), new[1]),
        ("put", lens.put(view), new[0]),
        ("get onto", lens.get(source, onto=view), view),
        ("put onto", lens.put(view, onto=source), source),
    ):
        found += (f"{way}: {each}" for each in differences(made, expected))
    if found:
        raise DifferenceError("; ".join(found))


# --- On devices, and through disk  ---


def sharded(seed: str) -> Place:
    """Puts leaves on a mesh, each sharded at random along axes that the mesh divides."""
    rng = random.Random(seed)
    shape = rng.choice(((8,), (2, 4), (4, 2), (2, 2, 2)))
    mesh = jax.make_mesh(shape, ("x", "y", "z")[: len(shape)])

    def leaf(value: Any) -> Any:
        spec: list[str | None] = [None] * value.ndim
        for name, length in mesh.shape.items():
            fits = [n for n, s in enumerate(value.shape) if s and s % length == 0 and not spec[n]]
            if fits and rng.random() < 0.7:
                spec[rng.choice(fits)] = name
        return jax.device_put(
            value, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        )

    return lambda tree: jax.tree.map(leaf, tree)


def on_devices(seed: str, tally: Tally) -> None:
    """The same with leaves on eight devices."""
    tried(seed, tally, sharded(seed), lengths=(1, 2, 4))


def through_disk(seed: str, tally: Tally) -> None:
    """Saves the state of a view in the layout of its source, reads it as what it is, and restores it."""
    case = drawn(seed)
    source, view = random.Random(seed).sample(case.layouts, 2)
    told = paired(source, view)
    lens = guarded(tally, seed, derived, case, source, view, told, tally)
    if lens is not None:
        tally.pairs += 1
        guarded(tally, seed, _kept_on_disk, case, bound(lens, case), source, view)


def _kept_on_disk(case: Case, lens: cs.Lens, source: Keeping, view: Keeping) -> None:
    both = names_of(source) & names_of(view)
    ours = held(case, source, lost=frozenset(names_of(source) - both))
    theirs = held(case, view)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "saved"
        cs.orbax.save(path, theirs, lens)
        abstract = jax.tree.map(_abstract, theirs)
        found = [f"restored {each}" for each in differences(restored(path, abstract, lens), theirs)]
        abstract = jax.tree.map(_abstract, ours)
        found += [f"saved {each}" for each in differences(restored(path, abstract, lens), ours)]
    if found:
        raise DifferenceError("; ".join(found))


def restored(path: Path, target: Tree, lens: cs.Lens) -> Tree:
    """What a restore gives."""
    return cs.orbax.restore(path, target, lens)


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


# --- The command  ---

WAYS: dict[str, Callable[[str, Tally], None]] = {
    "cases": tried,
    "devices": on_devices,
    "disk": through_disk,
}


def report(tallies: dict[str, Tally]) -> Iterator[str]:
    """What was found, as a text."""
    yield "| | draws | pairs | compositions | open, and decided by the dims told | refused | wrong |"
    yield "|---|---|---|---|---|---|---|"
    titles = {"cases": "NumPy", "devices": "8 devices", "disk": "disk"}
    for way, tally in tallies.items():
        yield (
            f"| {titles[way]} | {tally.done} | {tally.pairs} | {tally.composed} | {tally.decided} "
            f"| {tally.refused.total()} | {len(tally.wrong)} |"
        )
    kinds, mixed, refused = Counts(), Counts(), Counts()
    for tally in tallies.values():
        kinds, mixed = kinds + tally.kinds, mixed + tally.mixed
        refused += tally.refused
    leaves = max(1, kinds.total())
    three = sum(count for number, count in kinds.items() if int(number) >= 3)
    yield f"\n{leaves} leaves; {three / leaves:.0%} of them differ in three kinds or more:\n"
    yield "| kinds at once | " + " | ".join(sorted(kinds, key=int)) + " |"
    yield "|---" * (len(kinds) + 1) + "|"
    yield "| leaves | " + " | ".join(str(kinds[n]) for n in sorted(kinds, key=int)) + " |"
    yield "\n| kind | leaves |\n|---|---|"
    yield from (f"| {kind} | {count} |" for kind, count in mixed.most_common())
    if refused:
        yield "\n| refused | times |\n|---|---|"
        yield from (f"| {said} | {count} |" for said, count in refused.most_common())
        examples = {
            said: seed for tally in tallies.values() for said, seed in tally.examples.items()
        }
        yield from (f"{seed}: {said}" for said, seed in examples.items())
    for way, tally in tallies.items():
        yield from (f"{way} {fault}" for fault in tally.wrong[:20])


def main() -> int:
    """Tries as many as are asked for, and prints what was found."""
    parser = argparse.ArgumentParser(description="Random pairs of layouts against NumPy.")
    parser.add_argument("--cases", type=int, default=10_000, help="pairs on NumPy's arrays")
    parser.add_argument("--devices", type=int, default=500, help="pairs on devices")
    parser.add_argument("--disk", type=int, default=200, help="pairs through disk")
    parser.add_argument("--seed", default="0", help="says everything that is drawn")
    parser.add_argument("--state", type=Path, help="a file that keeps what is done")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = given.state is not None and given.state.exists()
    stored = json.loads(given.state.read_text()) if kept else {"seed": given.seed}
    if stored["seed"] != given.seed:
        parser.error(f"{given.state} is of --seed {stored['seed']}")
    tallies = {way: Tally.of(stored[way]) if way in stored else Tally() for way in WAYS}
    for way, attempt in WAYS.items():
        tally, wanted = tallies[way], getattr(given, way)
        while tally.pairs < wanted and tally.done < wanted:
            attempt(f"{given.seed}/{way}/{tally.done}", tally)
            tally.done += 1
            if given.state is not None and (tally.done % 25 == 0 or tally.pairs >= wanted):
                state = {"seed": given.seed} | {name: vars(each) for name, each in tallies.items()}
                half = given.state.with_suffix(".part")
                half.write_text(json.dumps(state))
                half.replace(given.state)
                print(f"{way}: {tally.pairs} of {wanted}", file=sys.stderr, flush=True)
    print("\n".join(report(tallies)))
    return int(any(tally.wrong or tally.refused for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())

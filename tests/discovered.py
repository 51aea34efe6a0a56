"""Discovery against lenses that were declared by hand: which pairs it finds, and whether each is right.

`python tests/discovered.py` runs every pair of models of the tests, with all names of the source
replaced by random words and its leaves shuffled, and prints a table. `python tests/discovered.py NAME
--seeds 3` runs some, with several seeds. `python tests/discovered.py --wrong` runs other functions of
the same leaves, which must be refused or left open. A pair that is wrong makes the exit status 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent))

import exchange_models
import flax_models
import pair_schemas
import rewritten
import whisper_models

import ckpt_schema as cs
from ckpt_schema.discovery import Discovery, discover
from ckpt_schema.testing._discovered import drawn_floats, named_floats

Leaves = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Twins:
    """Two implementations of one function, and a state of each that holds the same.

    Attributes:
        runs: What both compute, of their trees.
        trees: Their leaves: each a random number that no other leaf has.
    """

    runs: tuple[Callable[[Any], Any], Callable[[Any], Any]]
    trees: tuple[Any, Any]


def _decoder(scan: bool) -> Twins:
    variables = drawn_floats(flax_models.linen_variables(scan=scan))
    schema = flax_models.ScannedSchema if scan else flax_models.UnrolledSchema
    lens = cs.derive(cs.linen.Params[schema], cs.nnx.Params[flax_models.NnxSchema])
    graph, _ = nnx.split(flax_models.nnx_decoder())
    return Twins(
        (
            lambda params: flax_models.Decoder(scan).apply(params, flax_models.TOKENS),
            lambda model: nnx.merge(graph, model)(flax_models.TOKENS),
        ),
        (variables, lens.get(variables)),
    )


def _pair(name: str) -> Twins:
    pair = pair_schemas.pair(name)
    inputs = pair.linen.batch(0)[0]
    state = pair.linen.start
    statistics = getattr(state, "batch_stats", None)
    fresh = {"params": drawn_floats(state.params)}
    if statistics is not None:
        fresh["batch_stats"] = drawn_floats(statistics, 1)
    state = state.replace(**fresh)
    view = pair.lens.get(state)["model"]

    quiet = {"train": False} if statistics is not None else {}
    tree = {"params": state.params} if pair.linen.bare else state.params
    if statistics is not None:
        tree["batch_stats"] = state.batch_stats

    def source(variables: Any) -> Any:
        return pair.linen.model.apply(variables, inputs, **quiet)

    graph, _ = nnx.split(pair.nnx.model(nnx.Rngs(0)))

    def view_run(model: Any) -> Any:
        merged = nnx.merge(graph, model)
        merged.eval()
        return merged(inputs)

    return Twins((source, view_run), (tree, view))


def _whisper() -> Twins:
    from test_whisper import Linen, Nnx

    inputs = whisper_models.mel, whisper_models.tokens
    model = whisper_models.LinenWhisper()
    variables = drawn_floats(jax.jit(model.init)(jax.random.key(0), *inputs))
    lens = cs.derive(cs.linen.Params[Linen], cs.nnx.Params[Nnx])
    graph, _ = nnx.split(whisper_models.NnxWhisper(nnx.Rngs(0)))

    def view_run(tree: Any) -> Any:
        merged = nnx.merge(graph, tree)
        merged.set_attributes(deterministic=True)
        return merged(*inputs)

    return Twins(
        (lambda given: model.apply(given, *inputs), view_run), (variables, lens.get(variables))
    )


def _small(name: str) -> Twins:
    lens, source, _, runs = exchange_models.small(name)
    drawn_source = drawn_floats(source)
    return Twins(runs, (drawn_source, lens.get(drawn_source)))


def _rewritten(name: str) -> Twins:
    way = {**rewritten.WAYS, **rewritten.GAUGES}[name]
    own = rewritten.leaves()
    model = rewritten.Model()
    return Twins(
        (
            lambda tree: model(rewritten.flattened(tree)),
            lambda tree: model(way.back(rewritten.flattened(tree))),
        ),
        (rewritten.nested(own), rewritten.nested(way.there(own))),
    )


CASES: dict[str, Callable[[], Twins]] = {
    "decoder": lambda: _decoder(False),
    "decoder, scanned": lambda: _decoder(True),
    "ResNet": lambda: _pair("ResNet"),
    "LSTM": lambda: _pair("LSTM"),
    "Whisper": _whisper,
    "tied embeddings": lambda: _pair("tied embeddings"),
    **{
        f"decoder, {name}": functools.partial(_rewritten, name)
        for name in (*rewritten.WAYS, *rewritten.GAUGES)
    },
    **{name: functools.partial(_small, name) for name in exchange_models.SMALL},
}


# --- Names that say nothing  ---


def scrambled(run: Callable[[Any], Any], tree: Any, seed: int) -> tuple[Callable[[Any], Any], Any]:
    """The same function of a dict of leaves with random words as names, in another order."""
    leaves, treedef = jax.tree.flatten(tree)
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghjkmnpqrstuvwxyz"), 7)) for _ in leaves]
    order = random.permutation(len(leaves))
    named = {words[at]: leaves[at] for at in order}

    def renamed(given: Mapping[str, Any]) -> Any:
        return run(jax.tree.unflatten(treedef, [given[word] for word in words]))

    return renamed, named


# --- What is right  ---


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of one discovery.

    Attributes:
        status: What it says of itself.
        right: How many pieces of the view have the values that the declared lens gives them.
        wrong: Which do not.
        open: How many leaves are open.
        seconds: How long it took.
    """

    status: str
    right: int
    wrong: tuple[str, ...]
    open: int
    seconds: float


def judged(found: Discovery, source: Any, view: Any, seconds: float) -> Verdict:
    """Holds what was found against values that are known to be right."""
    before, after = named_floats(source), named_floats(view)
    right, wrong = 0, list[str]()
    for pairing in found.pairings:
        goal = after[pairing.view.leaf].reshape(-1)[pairing.view.places]
        if np.allclose(pairing.made_of(before), goal, rtol=1e-5, atol=1e-12):
            right += 1
        else:
            wrong.append(f"{pairing.view} <- {' and '.join(map(str, pairing.sources))}")
    return Verdict(found.status, right, tuple(wrong), len(found.open), seconds)


def run(name: str, seed: int, *, words: bool) -> tuple[Discovery, Verdict]:
    """Discovers one pair of twins."""
    twins = CASES[name]()
    source_run, source = twins.runs[0], twins.trees[0]
    if words:
        source_run, source = scrambled(source_run, source, seed)
    start = time.monotonic()
    found = discover(source_run, source, twins.runs[1], twins.trees[1], seed=seed)
    return found, judged(found, source, twins.trees[1], time.monotonic() - start)


# --- Other functions  ---


def gives_lens(found: Discovery) -> bool:
    """Whether a discovery gives a lens without a word of the user's."""
    try:
        found.lens()
    except cs.CkptSchemaError:
        return False
    return True


def wrong_twins(budget: float, seeds: int) -> bool:
    """Prints what comes of other functions of the same leaves; whether any was taken for the same function.

    It is taken where `.lens()` gives a lens. A factor that undoes the change may be said: it is open.
    """
    taken = False
    own = rewritten.leaves()
    for name, model in rewritten.WRONG.items():
        for kept in ("as they are", "as torch's", "stacked", "qkv side by side"):
            for seed in range(seeds):
                way = rewritten.WAYS[kept]
                view = rewritten.nested(way.there(own))
                found = discover(
                    lambda tree: rewritten.Model()(rewritten.flattened(tree)),
                    rewritten.nested(own),
                    lambda tree, model=model, way=way: model(way.back(rewritten.flattened(tree))),
                    view,
                    seed=seed,
                    budget=budget,
                )
                is_taken = gives_lens(found)
                taken |= is_taken
                mark = "  TAKEN" if is_taken else ""
                print(f"{name:20} {kept:20} seed {seed}: {found.status}{mark}", flush=True)
    return taken


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--names-kept", action="store_true", help="do not replace the names")
    parser.add_argument("--wrong", action="store_true", help="other functions, each to be refused")
    parser.add_argument(
        "--budget", type=float, default=10, help="seconds of search for each of these"
    )
    given = parser.parse_args()
    if given.wrong:
        return int(wrong_twins(given.budget, given.seeds))
    failed = False
    for name in given.names or CASES:
        for seed in range(given.seeds):
            found, verdict = run(name, seed, words=not given.names_kept)
            print(
                f"{name:32} {verdict.status:28} {verdict.right:4} right {len(verdict.wrong):3} wrong "
                f"{verdict.open:3} open {verdict.seconds:6.1f} s"
            )
            for each in verdict.wrong:
                print("    WRONG", each)
            for each in found.open:
                print("    open", str(each)[:300])
            failed |= bool(verdict.wrong)
            sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Discovery of models drawn at random, against the record of how their twins keep the same weights.

`python tests/discovered_drawn.py --count 100` draws so many models, half of them with sizes that
collide, and two ways to keep the weights of each; prints a line for each that is not complete and
right, and a table. `--kept FILE` remembers outcomes, so that a run that was interrupted goes on. A
wrong piece, or a share that is complete of less than 95 %, makes the exit status 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from discovered import DISCOVERY, TESTS
from drawn_models import Leaves, drawn
from keepings import keeping
from rewritten import flattened, nested
from support.kept import Kept

import ckpt_schema as cs
from ckpt_schema.discovery import discover

MODULES = ("drawn_models.py", "keepings.py", "discovered_drawn.py")
SOURCES = (DISCOVERY, *(TESTS / name for name in MODULES))


def attempt(seed: int, budget: int) -> dict[str, Any]:
    """Discovers one drawn model; what came of it."""
    random = np.random.default_rng([23, seed])
    collide = bool(seed % 2)
    model = drawn(random, collide=collide)
    ways = keeping(random, model), keeping(random, model)
    own = model.leaves(seed)
    kept = [_shuffled(way.there(own), random) for way in ways]
    start = time.process_time()
    found = discover(
        lambda tree: model(ways[0].back(flattened(tree))),
        nested(kept[0]),
        lambda tree: model(ways[1].back(flattened(tree))),
        nested(kept[1]),
        seed=seed,
        budget=budget,
    )
    wrong: list[str] = []
    for pairing in found.pairings:
        goal = kept[1][pairing.view.leaf].reshape(-1)[pairing.view.places]
        if not np.allclose(pairing.made_of(kept[0]), goal, rtol=1e-9, atol=0):
            wrong.append(f"{pairing.view} <- {' and '.join(map(str, pairing.sources))}")
    lens = "none"
    if found.status == "complete":
        try:
            made = flattened(found.lens().get(nested(kept[0])))
        except cs.CkptSchemaError as error:
            lens = f"none: {' '.join(str(error).split())[:200]}"
        else:
            alike = made.keys() == kept[1].keys() and all(
                np.array_equal(made[name], kept[1][name]) for name in made
            )
            lens = "right" if alike else "wrong"
    return {
        "sizes": "colliding" if collide else "distinct",
        "model": [type(block.inner).__name__ for block in model.layers[0]],
        "layers": len(model.layers),
        "keepings": [way.words for way in ways],
        "status": found.status,
        "right": len(found.pairings) - len(wrong),
        "wrong": wrong,
        "open": [str(each)[:200] for each in found.open],
        "lens": lens,
        "seconds": time.process_time() - start,
    }


def _shuffled(leaves: Leaves, random: np.random.Generator) -> Leaves:
    names = list(leaves)
    return {names[at]: leaves[names[at]] for at in random.permutation(len(names))}


def described(seed: int, outcome: dict[str, Any]) -> str:
    """One that is not complete and right, on a line."""
    both = " / ".join(", ".join(words) or "as it is" for words in outcome["keepings"])
    layers = f"{outcome['layers']} x {' + '.join(outcome['model'])}"
    why = "; ".join([*(f"WRONG {each}" for each in outcome["wrong"]), *outcome["open"]])
    lens = "" if outcome["lens"] in ("none", "right") else f" lens {outcome['lens']}"
    return f"seed {seed}: {layers}, {both}: {outcome['status']}{lens} {why[:300]}"


def main() -> int:
    """Prints what is not right, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="how many models")
    parser.add_argument("--seeds", type=int, nargs="*", help="these models alone")
    parser.add_argument("--budget", type=int, default=12_000, help="readings of each to try")
    parser.add_argument("--kept", type=Path, help="a file of outcomes: these are not tried again")
    given = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes long
    kept = Kept(given.kept, SOURCES)
    outcomes: list[dict[str, Any]] = []
    for seed in given.seeds or range(given.count):
        name = f"{seed} {given.budget}"
        outcome = kept.outcome(name, lambda seed=seed: attempt(seed, given.budget))
        outcomes.append(outcome)
        if not is_complete(outcome) or outcome["wrong"] or outcome["lens"] == "wrong":
            print(described(seed, outcome), flush=True)
    print(f"{'sizes':12}{'models':>8}{'complete':>10}{'pieces right':>14}{'wrong':>7}{'lenses':>8}")
    for sizes in ("distinct", "colliding"):
        own = [each for each in outcomes if each["sizes"] == sizes]
        complete, right, wrong, lenses = (
            sum(map(is_complete, own)),
            sum(each["right"] for each in own),
            sum(len(each["wrong"]) for each in own),
            sum(each["lens"] == "right" for each in own),
        )
        print(f"{sizes:12}{len(own):8}{complete:10}{right:14}{wrong:7}{lenses:8}")
    share = sum(map(is_complete, outcomes)) / len(outcomes)
    seconds = sorted(each["seconds"] for each in outcomes)
    print(
        f"{share:.0%} complete; CPU seconds a model: median {seconds[len(seconds) // 2]:.1f}, most {seconds[-1]:.1f}"
    )
    is_wrong = any(each["wrong"] or each["lens"] == "wrong" for each in outcomes)
    return int(is_wrong or share < 0.95)


def is_complete(outcome: dict[str, Any]) -> bool:
    """Whether everything that has a gradient has its place."""
    return outcome["status"].startswith("complete")


if __name__ == "__main__":
    sys.exit(main())

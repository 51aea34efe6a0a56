"""Discovery of twins that are other functions: none may get a lens.

`python tests/discovered_wrong.py --count 200` plants so many wrong twins, verifies that each is another
function, and prints what discovery says, a row for each kind. Verified is that the outputs are
others under the pairing that would be right, by *gap*, and that they are others under each
rearrangement of all numbers, by how far means at random numbers are from chance (`support/exchangeable.py`).
Where that does not tell, the reason alone says so that stands with the kind in `wrong_twins.py`.
Of those that are drawn there are models of fewer layers, so discovery is to tell at which layer they
begin to differ; which that is, their outputs under the right pairing show.
`--kept FILE` remembers outcomes, so that a run that was interrupted goes on; `--only WORD` tries those
whose names have it. A lens that is given, a discovery that calls itself complete, or the layer told of
less than four fifths, makes the exit status 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).parent))

import wrong_twins
from discovered import DISCOVERY, TESTS, gives_lens
from support.exchangeable import CERTAIN, deviation
from support.kept import Kept

from ckpt_schema.discovery import Discovery, discover

MODULES = (
    *("drawn_models.py", "exchange_models.py", "flax_models.py", "whisper_models.py"),
    *("keepings.py", "pair_schemas.py", "rewritten.py", "wrong_twins.py"),
    "support/exchangeable.py",
)
PLANTED = tuple(TESTS / name for name in MODULES)
SOURCES = (DISCOVERY, *PLANTED, TESTS / "discovered_wrong.py")
LEAST = 1e-5
"""By how much the outputs of a wrong twin differ at least, relative to their size."""
_MOST_DRAWS = 750  # what these do not tell is told by reason alone; more take longer than discovery

LOCALISED = 0.8
"""The share of those with depth of which the layer is told, at least."""


def verified(name: str, count: int) -> dict[str, Any]:
    """How far a wrong twin is from being the same function.

    Raises:
        AssertionError: It is the same function, under the pairing that would be right.
    """
    twin = wrong_twins.planted(count)[name]()
    gap = twin.gap
    if not gap > LEAST:
        raise AssertionError(f"{name} is no wrong twin: its outputs differ by {gap:.1e} alone")
    return {
        "gap": gap,
        "deviation": deviation(twin.runs, twin.trees, most=_MOST_DRAWS),
        "layer": twin.differs_from(LEAST),
    }


def attempt(name: str, count: int, seed: int, budget: int) -> dict[str, Any]:
    """Discovers one wrong twin; what came of it."""
    twin = wrong_twins.planted(count)[name]()
    start = time.process_time()
    runs, trees = twin.runs, twin.trees
    found = discover(
        *(runs[0], trees[0], runs[1], trees[1]),
        with_layers=twin.factories,
        seed=seed,
        budget=budget,
    )
    return {
        "kind": twin.kind,
        "status": found.status,
        "layer told": found.differ_from,
        "lens": lens_given(twin, found),
        "rules": [str(rule) for rule in found.rules],
        "open": [str(each)[:200] for each in found.open],
        "seconds": time.process_time() - start,
    }


def lens_given(twin: wrong_twins.Wrong, found: Discovery) -> str:
    """Whether a discovery gives a lens, and whether that makes the outputs equal."""
    if not gives_lens(found):
        return "none"
    made = found.lens().get(twin.trees[0])
    return "equal outputs" if twin.gap_of(made) < LEAST else "other outputs"


def is_taken(outcome: dict[str, Any]) -> bool:
    """Whether a twin passes for the same function."""
    return outcome["lens"] != "none" or outcome["status"] == "complete"


def has_depth(outcome: dict[str, Any]) -> bool:
    """Whether it is another function, and a model of fewer layers shows where that begins."""
    return outcome["layer"] is not None and outcome["status"] in ("refused", "incomplete")


def is_localised(outcome: dict[str, Any]) -> bool:
    """Whether it is said at which layer the difference begins."""
    return has_depth(outcome) and outcome["layer told"] == outcome["layer"]


def main() -> int:
    """Prints what was taken, and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="how many wrong twins")
    parser.add_argument("--seed", type=int, default=0, help="of the random values")
    parser.add_argument("--only", default="", help="a word of the names of those to try")
    parser.add_argument("--budget", type=int, default=3000, help="readings of each to try")
    parser.add_argument("--kept", type=Path, help="a file of outcomes: these are not tried again")
    given = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes long
    kept = Kept(given.kept, SOURCES)
    checked = Kept(given.kept, PLANTED)
    names = [name for name in wrong_twins.planted(given.count) if given.only in name]
    outcomes: dict[str, dict[str, Any]] = {}
    for name in names:
        settings = name, given.count, given.seed, given.budget
        outcome = kept.outcome(repr(settings), lambda each=settings: attempt(*each))
        outcomes[name] = dict(outcome)
        if is_taken(outcome):
            said = "; ".join([*outcome["rules"], *outcome["open"]])[:300]
            print(f"TAKEN {name}: {outcome['status']}, lens: {outcome['lens']}: {said}", flush=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, outcome in outcomes.items():
        planted = name, given.count
        outcome |= checked.outcome(repr(planted), lambda each=planted: verified(*each))
        rows.setdefault(outcome["kind"], []).append(outcome)
        if has_depth(outcome) and not is_localised(outcome):
            told, right = outcome["layer told"], outcome["layer"]
            print(f"ELSEWHERE {name}: begins in layer {right}, told is {told}", flush=True)
    print(
        f"{'':34}{'twins':>6}{'refused':>8}{'open':>6}{'taken':>6}{'least gap':>10}"
        f"{'by draws':>9}{'by reason':>10}{'with depth':>11}{'layer told':>11}"
    )
    for kind, own in rows.items():
        print(_row(kind, own))
    everything = [outcome for own in rows.values() for outcome in own]
    print(_row("all", everything))
    localised = sum(map(is_localised, everything))
    is_localising = localised >= LOCALISED * sum(map(has_depth, everything))
    return int(any(map(is_taken, everything)) or not is_localising)


def _row(kind: str, outcomes: list[dict[str, Any]]) -> str:
    taken = sum(map(is_taken, outcomes))
    refused = sum(each["status"] == "refused" for each in outcomes)
    least = min(each["gap"] for each in outcomes)
    drawn = sum(each["deviation"] > CERTAIN for each in outcomes)
    counts = f"{len(outcomes):6}{refused:8}{len(outcomes) - refused - taken:6}{taken:6}"
    depth, localised = sum(map(has_depth, outcomes)), sum(map(is_localised, outcomes))
    shares = f"{drawn:9}{len(outcomes) - drawn:10}{depth:11}{localised:11}"
    return f"{kind:34}{counts}{least:10.1e}{shares}"


if __name__ == "__main__":
    sys.exit(main())

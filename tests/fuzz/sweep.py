"""Runs many cases of each kind: ``python tests/fuzz/sweep.py --cases 5000`` prints a table, and what went wrong.

``--kinds trees`` runs one kind, ``--seed 1234`` one case of it. The exit code is 1 where anything is raw, silent or hangs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):
    sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz import declarations, rules, targets, trees
from fuzz.attempts import SECONDS, Attempt, Outcome, ended

KINDS: dict[str, Attempt] = {
    "trees": trees.attempt,
    "declarations": declarations.attempt,
    "rules": rules.attempt,
    "targets": targets.attempt,
}
CHUNK = 100


def outcomes(kind: str, seeds: range) -> list[Outcome]:
    """How the cases of one kind ended."""
    # What XLA and Orbax log of inputs that are wrong on purpose helps nobody.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return [ended(KINDS[kind], seed) for seed in seeds]


def swept(kind: str, cases: int) -> tuple[Counter[str], dict[str, list[int]]]:
    """How many ended in which way, and the seeds of each fault by what is said of it."""
    counts: Counter[str] = Counter()
    faults: dict[str, list[int]] = {}
    for start in range(0, cases, CHUNK):
        seeds = range(start, min(start + CHUNK, cases))
        # A new process each time: what a case leaves behind is no business of the next hundred.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                ends = pool.submit(outcomes, kind, seeds).result(timeout=SECONDS * 10)
            except (BrokenProcessPool, TimeoutError) as error:
                ends = [Outcome("hang", f"the process ended or hung: {type(error).__name__}")]
        for seed, end in zip(seeds, ends, strict=False):
            counts[end.kind] += 1
            if end.fault:
                faults.setdefault(f"{end.kind}: {end.said}", []).append(seed)
    return counts, faults


def main() -> int:
    """Runs all kinds, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="of each kind")
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], choices=[*KINDS])
    parser.add_argument("--seed", type=int, help="one case alone")
    given = parser.parse_args()
    if given.seed is not None:
        for kind in given.kinds:
            print(kind, ended(KINDS[kind], given.seed))
        return 0
    columns = ("named", "accepted", "raw", "silent", "hang")
    print(f"| kind | cases | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    told: list[str] = []
    for kind in given.kinds:
        counts, faults = swept(kind, given.cases)
        row = " | ".join(str(counts[column]) for column in columns)
        print(f"| {kind} | {counts.total()} | {row} |", flush=True)
        for said, seeds in sorted(faults.items(), key=lambda item: -len(item[1])):
            told.append(f"{kind}, {len(seeds)} times, such as --seed {seeds[0]}: {said}")
    if told:
        print("\n" + "\n".join(told))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs many cases of each kind: ``python tests/fuzz/sweep.py --cases 5000`` prints a table, and what went wrong.

``--kinds trees`` runs one kind, ``--seed 1234`` one case of it. The exit code is 1 where anything is raw, silent or hangs.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):
    sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz import commands, declarations, rules, targets, texts, trees
from fuzz.attempts import SECONDS, Attempt, Outcome, ended

KINDS: dict[str, Attempt] = {
    "trees": trees.attempt,
    "declarations": declarations.attempt,
    "rules": rules.attempt,
    "targets": targets.attempt,
    "texts": texts.attempt,
    "commands": commands.attempt,
}
CHUNK = 250


def run(kind: str, seeds: Sequence[int], told: Connection, folder: str) -> None:
    """Tells how the cases of one kind end, one after the other; what they write is in the folder."""
    tempfile.tempdir = folder
    # What XLA and Orbax log of inputs that are wrong on purpose helps nobody.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.disable(logging.CRITICAL)
    for seed in seeds:
        told.send(ended(KINDS[kind], seed))


def outcomes(kind: str, seeds: Sequence[int], patience: float = SECONDS * 2) -> Iterator[Outcome]:
    """How each case of one kind ended, whatever it does to the process that it runs in.

    Args:
        kind: The kind.
        seeds: The cases.
        patience: For how long a process may say nothing. It is more than what ends a case from
            within, which does not reach compiled code.
    """
    spawn = multiprocessing.get_context("spawn")
    while seeds:
        reading, writing = spawn.Pipe(duplex=False)
        # A process that is killed removes nothing: its folder is this one's.
        place = tempfile.TemporaryDirectory(prefix="ckpt-schema-sweep-")
        process = spawn.Process(target=run, args=(kind, seeds, writing, place.name))
        process.start()
        writing.close()
        done = 0
        try:
            while done < len(seeds):
                known = reading.poll(patience)
                end = reading.recv() if known else Outcome("hang", "the process says nothing")
                done += 1
                yield end
                if not known:
                    break
        except EOFError:
            done += 1
            yield Outcome("raw", "the process ended")
        finally:
            process.kill()
            process.join()
            place.cleanup()
        seeds = seeds[done:]


def swept(kind: str, cases: int) -> tuple[Counter[str], dict[str, list[int]]]:
    """How many ended in which way, and the seeds of each fault by what is said of it."""
    counts: Counter[str] = Counter()
    faults: dict[str, list[int]] = {}
    for start in range(0, cases, CHUNK):
        seeds = range(start, min(start + CHUNK, cases))
        # A new process each time: what a case leaves behind is no business of the next chunk.
        for seed, end in zip(seeds, outcomes(kind, seeds), strict=True):
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
    total: Counter[str] = Counter()
    for kind in given.kinds:
        counts, faults = swept(kind, given.cases)
        row = " | ".join(str(counts[column]) for column in columns)
        total += counts
        print(f"| {kind} | {counts.total()} | {row} |", flush=True)
        for said, seeds in sorted(faults.items(), key=lambda item: -len(item[1])):
            told.append(f"{kind}, {len(seeds)} times, such as --seed {seeds[0]}: {said}")
    faults = ", ".join(f"{total[column]} {column}" for column in columns[2:])
    print(f"\n{total.total()} cases: {faults}")
    print("\n".join(told))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())

"""Compares lenses with the oracle, dtype by layout by place: ``python tests/oracle/sweep.py`` prints a table.

``--every 7`` takes each seventh. It exits with 1 where anything differs, or is refused.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import numpy as np

if __name__ in ("__main__", "__mp_main__"):
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from ckpt_schema.testing import virtual_devices

    virtual_devices()

import ckpt_schema as cs
from oracle.cases import CASES
from oracle.places import PLACES
from oracle.values import DTYPES

PRODUCT = [*itertools.product(DTYPES, CASES, PLACES)]


def differences(found: Any, expected: Any, path: str = "") -> Iterator[str]:
    """Where a nested dict is not to the last bit what it must be."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            names = list(found) if isinstance(found, dict) else type(found).__name__
            yield f"{path or '(root)'}: {names} instead of {list(expected)}"
            return
        for name, value in expected.items():
            yield from differences(found[name], value, f"{path}/{name}")
        return
    leaf = np.asarray(found)
    if (leaf.dtype, leaf.shape) != (expected.dtype, expected.shape):
        yield f"{path}: {leaf.dtype}{leaf.shape} instead of {expected.dtype}{expected.shape}"
    elif leaf.tobytes() != expected.tobytes():
        yield f"{path}: other bits"


def compared(dtype: str, name: str, place: str) -> list[str] | None:
    """What differs from the oracle, both ways; None where there is no such case."""
    case = CASES[name](dtype)
    if case is None:
        return None
    lens = cs.derive(*case.layouts, rules=case.rules, dims=case.dims)
    put, traced = PLACES[place]
    source, view = (jax.tree.map(put, tree) for tree in case.trees)
    # What is looked for by value cannot be seen under a trace, and is an error there by design.
    if traced and name in ("tied", "recast", "padded"):
        return None
    there, back = lens.get, lens.put
    if traced:
        there, back = jax.jit(there), jax.jit(back)
    faults: list[str] = []
    for way, translate, tree, expected in (
        ("get", there, source, case.trees[1]),
        ("put", back, view, case.trees[0]),
    ):
        try:
            found = translate(tree)
        except cs.ConformanceError as error:
            # XLA cannot cut, join or reshard arrays of two bits: they may be refused, by name.
            if dtype not in ("int2", "uint2") or f"no jax array of {dtype}" not in str(error):
                raise
        else:
            faults += differences(found, expected, way)
    return faults


def counted(dtype: str, every: int) -> tuple[Counter[str], list[str]]:
    """The comparisons of one dtype by place, and what differs."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    for at in [at for at in PRODUCT[::every] if at[0] == dtype]:
        try:
            found = compared(*at)
        except Exception as error:  # whatever is raised is a fault of the lens
            found = [f"{type(error).__name__}: {error}"]
        if found is not None:
            counts[at[2]] += 2
            faults += (f"{' '.join(at)}: {fault}" for fault in found)
    return counts, faults


def main() -> int:
    """Compares all, or a sample; each dtype in a process of its own, which XLA may end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="take each n-th")
    parser.add_argument("--dtypes", nargs="*", default=DTYPES, help="these alone")
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    faults: list[str] = []
    for dtype in given.dtypes:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            try:
                some, wrong = pool.submit(counted, dtype, given.every).result()
            except BrokenProcessPool:
                some, wrong = Counter(), [f"{dtype}: the process ended"]
        counts += some
        faults += wrong
    print("| place | comparisons |\n|---|---|")
    for place, count in counts.items():
        print(f"| {place} | {count} |")
    kinds = f"{len(given.dtypes)} dtypes, {len(CASES)} kinds of layouts"
    print(f"\n{counts.total()} comparisons, {kinds}: {len(faults)} differ")
    print("\n".join(faults[:50]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

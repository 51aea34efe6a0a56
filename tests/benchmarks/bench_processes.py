"""Prints what processes read that restore together what others saved, as a ratio to what their shards hold.

``python tests/benchmarks/bench_processes.py``: four processes save 38 MB; one, two and four restore them through a lens. The
parts that a process needs are cut along the axes of the save, or across them; the chunks on disk are the shards of the save, or
smaller ones: those that a caller names, or those that `read_as` chooses for four processes whose parts are cut across. Bytes
are those that TensorStore read, and all that the process did.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import distributed_jobs as jobs

from ckpt_schema.testing import run_distributed


def main() -> None:
    """Saves, restores and prints."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        run_distributed(4, jobs.save_linen, root, True)
        print(
            "| restored by | cut | MB held by each | read by TensorStore | read in all |\n|---|---|---|---|---|"
        )
        for n in (1, 2, 4):
            found = run_distributed(n, jobs.read_big, root)
            for cut in found[0]:
                held, stored, every = (max(each[cut][at] for each in found) for at in range(3))
                print(
                    f"| {n} | {cut} | {held / 1e6:.1f} | {stored / held:.2f} | {every / held:.2f} |"
                )


if __name__ == "__main__":
    main()

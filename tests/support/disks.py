"""Disks that are too small, and one that takes nothing: what a save, an asynchronous one and a conversion leave there.

``python tests/support/disks.py`` needs to be allowed to mount. It prints how often each was whole, and
how often an error of the library or of Orbax said why not, and exits with 1 where anything was left
of one that failed, or where one that had returned was not whole.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path

from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a command
from support import killed

SMALLEST, LARGEST = 4, 120  # KiB: of these, the last takes all that is written


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Generator[Path]:
    """A disk of its own in memory.

    Raises:
        PermissionError: This process may not mount.
    """
    path.mkdir()
    call = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if subprocess.run(call, capture_output=True, check=False).returncode:
        raise PermissionError("only root may mount")
    try:
        yield path
    finally:
        # What a write that failed has started may still be there.
        subprocess.run(["umount", "-l", str(path)], check=True)


def outcome(name: str, root: Path, disk: Path) -> str:
    """How a job ends that writes to a disk: ``whole``, ``named``, ``raw`` by Orbax's own error, or ``wrong``."""
    place = disk / "1"
    try:
        killed.JOBS[name](root, place)
    except cs.CkptSchemaError:
        ended = "named"
    except Exception:  # of an asynchronous save, which is Orbax's own
        ended = "raw" if name == "async save" else "wrong"
    else:
        return "whole" if killed.holds(place, killed.new()) else "wrong"
    left = [path.name for path in disk.iterdir()]
    is_clean = not place.exists() if name == "async save" else not left
    return ended if is_clean else "wrong"


def main() -> int:
    """Runs each job on disks of many sizes, and on one that takes nothing, and prints how they ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="sizes for each")
    rounds = parser.parse_args().rounds
    logging.disable(logging.CRITICAL)
    ends = ("whole", "named", "raw", "wrong")
    counts = {name: Counter[str]() for name in killed.JOBS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ocp.save(root / "old", killed.old())
        step = (LARGEST - SMALLEST) / max(1, rounds - 1)
        sizes = [f"size={round(SMALLEST + number * step)}k" for number in range(rounds)]
        for name, count in counts.items():
            for number, options in enumerate([*sizes, "ro"]):
                with mounted(root / f"{name} {number}", options) as disk:
                    count[outcome(name, root, disk)] += 1
    print("| on full disks and a read-only one | whole | named | Orbax's own error | wrong |")
    print("|---|---|---|---|---|")
    for name, count in counts.items():
        print(f"| {name} | {' | '.join(str(count[end]) for end in ends)} |")
    return int(any(count["wrong"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())

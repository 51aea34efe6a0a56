"""Runs what takes long and writes what it prints into docs/figures.md: ``python tests/figures.py`` for all, or by name.

Each name is a block of that page, between two comments. A command that fails leaves its block as it
was, and the exit code says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "figures.md"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command whose output is a block of the page.

    Attributes:
        arguments: What follows ``python``.
        last: How many of its last lines are kept; None keeps all.
        environment: Variables it is run with.
    """

    arguments: tuple[str, ...]
    last: int | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """The command as a shell takes it, from the top of the project."""
        given = [f"{name}={value}" for name, value in self.environment]
        return " ".join([*given, "python", *self.arguments])

    def run(self) -> str:
        """What it prints on standard output.

        Raises:
            CalledProcessError: It fails.
        """
        others = os.environ.get("PYTHONPATH")  # where torch is, for what needs it
        paths = [str(ROOT), *([others] if others else [])]
        done = subprocess.run(
            [sys.executable, *self.arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **dict(self.environment)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        lines = done.stdout.rstrip().split("\n")
        return "\n".join(lines if self.last is None else lines[-self.last :])


KEPT = ("--kept", ".discovered.json")
DRAWN = ("--cases", "1700", "--devices", "0", "--disk", "0")
COMMANDS = {
    "speed": Command(("tests/benchmarks/bench_lens.py",)),
    "memory": Command(("tests/benchmarks/bench_memory.py",)),
    "gpu": Command(("-W", "ignore", "tests/on_gpu.py")),
    "restore": Command(("-W", "ignore", "tests/benchmarks/bench_restore.py")),
    "hf": Command(("-W", "ignore", "tests/benchmarks/bench_hf.py")),
    "processes": Command(("tests/benchmarks/bench_processes.py",)),
    "convert": Command(("-W", "ignore", "tests/benchmarks/bench_convert.py")),
    "kills": Command(("-W", "ignore", "tests/support/killed.py")),
    "interrupted": Command(("-W", "ignore", "tests/interrupted.py")),
    "disks": Command(("-W", "ignore", "tests/support/disks.py")),
    "remote": Command(("-W", "ignore", "tests/remote.py")),
    "discovered": Command(("-W", "ignore", "tests/discovered.py", *KEPT)),
    "discovered_declared": Command(
        ("-W", "ignore", "tests/discovered.py", "--declared", *KEPT),
    ),
    "discovered_families": Command(("-W", "ignore", "tests/discovered_families.py", *KEPT)),
    "discovered_torch": Command(("-W", "ignore", "tests/discovered_torch.py")),
    "discovered_drawn": Command(("-W", "ignore", "tests/discovered_drawn.py", *KEPT)),
    "discovered_wrong": Command(("-W", "ignore", "tests/discovered_wrong.py", *KEPT)),
    "discovered_choices": Command(("-W", "ignore", "tests/discovered_choices.py", *KEPT)),
    "discovery_cost": Command(("-W", "ignore", "tests/benchmarks/bench_discovery.py")),
    "states": Command(("tests/benchmarks/bench_states.py",)),
    "growth": Command(("tests/benchmarks/bench_growth.py", "--repeats", "1")),
    "forgetting": Command(("tests/benchmarks/bench_growth.py", "--memory")),
    "oracle": Command(("tests/oracle/sweep.py",)),
    "pairs": Command(("-W", "ignore", "tests/pairs.py", *DRAWN, "--state", ".pairs.json")),
    "adapted": Command(
        ("-W", "ignore", "tests/adapted.py", "--cases", "5000", "--kept", ".adapted.json"),
        last=6,
    ),
    "damage": Command(("tests/fuzz/damage.py",)),
    "headers": Command(("tests/fuzz/headers.py",)),
    "races": Command(("tests/support/races.py",)),
    "peers": Command(("-W", "ignore", "tests/support/peers.py")),
    "fuzz": Command(("tests/fuzz/sweep.py", "--cases", "5000")),
    "planted": Command(("-W", "ignore", "tests/planted_faults.py", "--kept", ".planted.json")),
    "thorough": Command(
        ("-m", "pytest", "-q", "-n", "2", "--dist", "worksteal"),
        last=1,
        environment=(("HYPOTHESIS_PROFILE", "ci"),),
    ),
}


def marks(name: str) -> tuple[str, str]:
    """The comments around a block."""
    return f"<!-- figures: {name} -->", f"<!-- end: {name} -->"


def replaced(page: str, name: str, body: str) -> str:
    """The page with another body in the block of this name."""
    start, end = marks(name)
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{PAGE.name}: expected {start} ... {end}")
    return f"{before}{start}\n{body}\n{end}{after}"


def block(command: Command) -> str:
    """The body of a block: the command, what it ran on, and what it printed."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax"))
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
    return f"`{command}`, on {where}:\n\n```text\n{command.run()}\n```"


def main() -> int:
    """Runs the commands that are named, and writes each block as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=", ".join(COMMANDS))
    names = parser.parse_args().names or [*COMMANDS]
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        parser.error(f"no figures are called {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    failed = False
    for name in names:
        print(f"{name}: {COMMANDS[name]}", file=sys.stderr, flush=True)
        try:
            body = block(COMMANDS[name])
        except subprocess.CalledProcessError as error:
            print(f"{name}: {error}\n{error.stdout}", file=sys.stderr)
            failed = True
        else:
            PAGE.write_text(replaced(PAGE.read_text(), name, body))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

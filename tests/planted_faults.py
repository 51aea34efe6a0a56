"""Plants faults in the package, one at a time, and sees whether two lines of laws find them.

``python tests/planted_faults.py`` tries every fault of ``tests/planted/``, or those that are named,
each in a copy of the package in a temporary folder and in a process of its own, and prints whether
it was found, survived, or does not apply.

A fault is a file ``tests/planted/NAME.fault``: a line that says what it breaks, then its changes::

    breaks: the sign of a scaled query is lost
    module: ckpt_schema/_lens/partial.py
    === old
                scaled = np.ldexp(value.astype(np.float64), self.exponent)
    === new
                scaled = np.abs(np.ldexp(value.astype(np.float64), self.exponent))

The old text stands in the module exactly once. Two more lines may come before the first module:
``beyond: ...`` says why no law on a lens can see the fault, and which test does; such a fault is
tried all the same. ``family: ...`` names the family that is tried first, for speed alone.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FAULTS = TESTS / "planted"
LIMIT = 1800.0
"""For how many seconds a process may run; a fault that makes one hang is found."""
RAN = 3
"""The exit status of a child process that has found a fault."""

_PROGRAMS = tempfile.TemporaryDirectory(prefix="planted-programs-")
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Most programs are the same with and without a fault.
    "JAX_COMPILATION_CACHE_DIR": _PROGRAMS.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@dataclasses.dataclass(frozen=True)
class Change:
    """Old text of a module and what stands there instead."""

    module: str
    old: str
    new: str


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault by name, what it breaks, how, why no law can see it, and the family tried first."""

    name: str
    breaks: str
    changes: tuple[Change, ...]
    beyond: str = ""
    family: str = ""

    def planted(self, root: Path) -> str:
        """Makes the changes below a folder; why they do not apply, or nothing."""
        for change in self.changes:
            module = root / change.module
            text = module.read_text() if module.exists() else ""
            if text.count(change.old) != 1:
                return f"its old text stands {text.count(change.old)} times in {change.module}"
            module.write_text(text.replace(change.old, change.new))
        return ""


def parsed(name: str, text: str) -> Fault:
    """The fault that a file tells."""
    head, *blocks = text.split("\nmodule:")
    changes: list[Change] = []
    for block in blocks:
        module, _, rest = block.partition("\n=== old\n")
        old, _, new = rest.partition("\n=== new\n")
        changes.append(Change(module.strip(), old, new.rstrip("\n")))
    found = re.split(r"^(breaks|beyond|family):", head.strip(), flags=re.MULTILINE)[1:]
    told = {key: " ".join(text.split()) for key, text in zip(found[::2], found[1::2], strict=True)}
    breaks = told.get("breaks", "")
    if not breaks or not changes or any(not change.old for change in changes):
        raise SystemExit(f"{name} is no fault: see the head of {Path(__file__).name}")
    return Fault(name, breaks, tuple(changes), told.get("beyond", ""), told.get("family", ""))


def faults(names: Sequence[str] = ()) -> list[Fault]:
    """The faults of these names, or all there are."""
    paths = [FAULTS / f"{name}.fault" for name in names] or sorted(FAULTS.glob("*.fault"))
    return [parsed(path.stem, path.read_text()) for path in paths]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a fault, by which law, and how long it took.

    The verdict is ``found``, ``survived``, ``argued`` where it is beyond all laws, or that it
    ``does not apply``.
    """

    fault: Fault
    verdict: str
    by: str
    seconds: float

    def __str__(self) -> str:
        """All of it in a line."""
        by = f" by {self.by}" if self.by else ""
        why = f"; {self.fault.beyond}" if self.verdict == "argued" else ""
        took = f"({self.seconds:.0f} s)"
        return f"{self.verdict}{by}: {self.fault.name}: {self.fault.breaks}{why} {took}"


def attempt(fault: Fault, families: Sequence[str]) -> Outcome:
    """Tries the suite on a copy of the package with the fault in it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        shutil.copytree(
            ROOT / "ckpt_schema",
            Path(folder) / "ckpt_schema",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        why = fault.planted(Path(folder))
        verdict, by = (
            ("does not apply", why) if why else _suite(Path(folder), families, fault.family)
        )
    return Outcome(fault, verdict, by, time.perf_counter() - start)


class Kept:
    """Outcomes in a file, by all that they depend on: fault, package, families, this module."""

    def __init__(self, path: Path | None) -> None:
        """Reads the file, if there is one."""
        self.path = path
        there = path is not None and path.exists()
        self.found: dict[str, list[Any]] = json.loads(path.read_text()) if path and there else {}

    def attempt(self, fault: Fault, families: Sequence[str]) -> Outcome:
        """What became of a fault; it is tried where that is not known."""
        text = "\n".join([_sources(), repr(fault.changes), *families])
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self.found:
            new = attempt(fault, families)
            self.found[key] = [new.verdict, new.by, new.seconds]
            if self.path is not None:
                self.path.write_text(json.dumps(self.found))
        verdict, by, seconds = self.found[key]
        argued = verdict == "survived" and bool(fault.beyond)
        return Outcome(fault, "argued" if argued else verdict, by, seconds)


@functools.cache
def _sources() -> str:
    """What outcomes depend on besides the fault."""
    paths = [*sorted((ROOT / "ckpt_schema").rglob("*.py")), TESTS / "planted_families.py"]
    texts = (path.read_bytes() for path in [*paths, Path(__file__)])
    return hashlib.sha256(b"\n".join(texts)).hexdigest()


def _suite(folder: Path, families: Sequence[str], first: str) -> tuple[str, str]:
    """Whether a process with this package finds a fault, and by which law."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *families]
    command += ["--families", first] if first and not families else []
    path = os.pathsep.join([str(folder), str(TESTS)])
    env = {**os.environ, **SETTINGS, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=env, cwd=folder, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return "found", "a time limit"
    if done.returncode == 0:
        return "survived", ""
    if done.returncode == RAN:
        return "found", done.stdout.strip().splitlines()[-1]
    return "found", f"an import or a crash: {done.stderr.strip().splitlines()[-1:]}"


# --- In the child process  ---


def child(names: Sequence[str], first: Sequence[str] = ()) -> int:
    """Tries all laws with default settings on families, quick laws first, up to one that breaks."""
    from ckpt_schema.testing import LAWS, BrokenLawError, virtual_devices

    virtual_devices()
    import hypothesis
    from planted_families import FAMILIES

    from ckpt_schema.testing._suite import Options, check_law, idle

    hypothesis.settings.register_profile("planted", derandomize=True, database=None)
    hypothesis.settings.load_profile("planted")
    options, seconds = Options(shrinking=0.0), dict[str, float]()
    costs = {"Naming": 0, "Defaults": 0, "sharded": 2, "jit": 3, "disk": 4}
    laws = sorted(LAWS.values(), key=lambda law: costs.get(law.name, costs.get(law.kind, 1)))
    rest = [name for name in names or FAMILIES if name not in first]
    for names in filter(None, (first, rest)):
        for law, name in itertools.product(laws, names):
            start = time.perf_counter()
            try:
                lens = FAMILIES[name]()
                if not idle(lens, law, options):
                    check_law(lens, law, options)
            except (BrokenLawError, Exception) as error:
                print(str(error)[:2000], file=sys.stderr)
                print(
                    f"{law.name} of {name}"
                    if isinstance(error, BrokenLawError)
                    else f"{type(error).__name__} of {name}"
                )
                return RAN
            seconds[f"{law.name} of {name}"] = round(time.perf_counter() - start, 2)
    print(json.dumps(seconds))
    return 0


# --- The command  ---


def outcomes(
    tried: Sequence[Fault], families: Sequence[str], jobs: int, kept: Path | None = None
) -> Iterator[Outcome]:
    """What becomes of each fault, as it is known."""
    known = Kept(kept)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(known.attempt, fault, families) for fault in tried]
        for done in concurrent.futures.as_completed(waiting):
            yield done.result()


def main() -> int:
    """Prints what became of each fault; exits with 1 where laws find fewer than 95 % of theirs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="which faults; all of tests/planted unless given")
    parser.add_argument(
        "--families", nargs="*", default=[], help="which families; all unless given"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument(
        "--sound", action="store_true", help="try the package as it is, which must survive"
    )
    parser.add_argument(
        "--kept", type=Path, help="a file of outcomes: what it knows is not tried again"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        return child(told.names, told.families)
    tried = [Fault("sound", "nothing", ())] if told.sound else faults(told.names)
    found: list[Outcome] = []
    for outcome in outcomes(tried, told.families, told.jobs, told.kept):
        print(outcome, flush=True)
        found.append(outcome)
    by_verdict = collections.Counter(each.verdict for each in found)
    hits, seen = by_verdict["found"], by_verdict["found"] + by_verdict["survived"]
    print()
    for each in sorted(found, key=lambda each: (each.verdict, each.fault.name)):
        if each.verdict != "found":
            print(each)
    share = f", {hits / seen:.1%}" if seen else ""
    print(
        f"{len(found)} faults: {hits} found of {seen} that a law can see{share}; "
        f"{by_verdict['argued']} beyond all laws; {by_verdict['does not apply']} do not apply"
    )
    return int(bool(hits)) if told.sound else int(hits < 0.95 * seen)


if __name__ == "__main__":
    sys.exit(main())

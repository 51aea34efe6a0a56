"""Plants faults in the package, one at a time, and sees whether the two lines of the law suite find them.

``python tests/planted_faults.py`` tries every fault of ``tests/planted/``, or those that are named, each in a copy of the
package in a temporary folder and in a process of its own, and prints whether it was found, survived, or does not apply.

A fault is a file ``tests/planted/NAME.fault``: a line that says what it breaks, then one change or several::

    breaks: the sign of a scaled query is lost
    module: ckpt_schema/lens/partial.py
    === old
                scaled = np.ldexp(value.astype(np.float64), self.exponent)
    === new
                scaled = np.abs(np.ldexp(value.astype(np.float64), self.exponent))

The old text stands in the module exactly once.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FAULTS = TESTS / "planted"
LIMIT = 900.0
"""For how many seconds a process may run; a fault that makes one hang is found."""
RAN = 3
"""The exit status of a child process that has found a fault."""

_PROGRAMS = tempfile.TemporaryDirectory(prefix="planted-programs-")
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONDONTWRITEBYTECODE": "1",
    "JAX_COMPILATION_CACHE_DIR": _PROGRAMS.name,  # most programs are the same with and without a fault
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
    """A fault by name, what it breaks, and how."""

    name: str
    breaks: str
    changes: tuple[Change, ...]

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
    breaks = head.strip().removeprefix("breaks:").strip()
    if not breaks or not changes or any(not change.old for change in changes):
        raise SystemExit(f"{name} is no fault: see the head of {Path(__file__).name}")
    return Fault(name, " ".join(breaks.split()), tuple(changes))


def faults(names: Sequence[str] = ()) -> list[Fault]:
    """The faults of these names, or all there are."""
    paths = [FAULTS / f"{name}.fault" for name in names] or sorted(FAULTS.glob("*.fault"))
    return [parsed(path.stem, path.read_text()) for path in paths]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a fault: ``found``, ``survived`` or ``does not apply``, by which law, and how long it took."""

    fault: Fault
    verdict: str
    by: str
    seconds: float

    def __str__(self) -> str:
        """All of it in a line."""
        by = f" by {self.by}" if self.by else ""
        return f"{self.verdict}{by}: {self.fault.name}: {self.fault.breaks} ({self.seconds:.0f} s)"


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
        verdict, by = ("does not apply", why) if why else _suite(Path(folder), families)
    return Outcome(fault, verdict, by, time.perf_counter() - start)


def _suite(folder: Path, families: Sequence[str]) -> tuple[str, str]:
    """Whether a process with this package finds a fault, and by which law."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *families]
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


def child(names: Sequence[str]) -> int:
    """Tries all laws with default settings on families, the quick laws of all families first, up to the first that breaks."""
    from ckpt_schema.testing import LAWS, BrokenLawError, virtual_devices

    virtual_devices()
    import hypothesis
    from planted_families import FAMILIES

    from ckpt_schema.testing.suite import Options, check_law, idle

    hypothesis.settings.register_profile("planted", derandomize=True, database=None)
    hypothesis.settings.load_profile("planted")
    options, seconds = Options(shrinking=0.0), dict[str, float]()
    costs = {"Naming": 0, "Defaults": 0, "sharded": 2, "jit": 3, "disk": 4}
    for law in sorted(LAWS.values(), key=lambda law: costs.get(law.name, costs.get(law.kind, 1))):
        for name in names or FAMILIES:
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


def outcomes(tried: Sequence[Fault], families: Sequence[str], jobs: int) -> Iterator[Outcome]:
    """What becomes of each fault, as it is known."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(attempt, fault, families) for fault in tried]
        for done in concurrent.futures.as_completed(waiting):
            yield done.result()


def main() -> int:
    """Prints what became of each fault; exits with 1 where fewer than 95 % of those that apply were found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", help="which faults; all of tests/planted unless given")
    parser.add_argument(
        "--families", nargs="*", default=[], help="which families; all unless given"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument(
        "--sound", action="store_true", help="try the package as it is, which must survive"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        return child(told.names)
    tried = [Fault("sound", "nothing", ())] if told.sound else faults(told.names)
    found: list[Outcome] = []
    for outcome in outcomes(tried, told.families, told.jobs):
        print(outcome, flush=True)
        found.append(outcome)
    applied = [each for each in found if each.verdict != "does not apply"]
    hits = [each for each in applied if each.verdict == "found"]
    share = f", {len(hits) / len(applied):.0%}" if applied else ""
    print(f"\n{len(hits)} of {len(applied)} found{share}; {len(found) - len(applied)} do not apply")
    for each in found:
        if each.verdict != "found":
            print(f"{each.verdict}: {each.fault.name}: {each.fault.breaks}")
    if told.sound:
        return int(bool(hits))
    return int(len(hits) < 0.95 * len(applied))


if __name__ == "__main__":
    sys.exit(main())

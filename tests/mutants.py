"""Plants one fault at a time in lenses, and sees whether the law suite finds it: ``python tests/mutants.py`` prints a table."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from faults import Planted, mutants
from hypothesis import settings
from jaxtyping import Array, Float32, Int32
from pair_models import Run, train
from pair_schemas import NAMES, pair
from support.models import LinenDecoder, NnxDecoder

import ckpt_schema as cs
from ckpt_schema._lens.rules import Rule
from ckpt_schema.testing import LAWS, Sample, strategies, virtual_devices
from ckpt_schema.testing._meshes import MESHES
from ckpt_schema.testing._outputs import Outputs
from ckpt_schema.testing._states import bound
from ckpt_schema.testing._suite import BrokenLawError, Options, check_law, idle

# --- What is attacked  ---


@dataclasses.dataclass(frozen=True)
class Target:
    """A lens that faults are planted in.

    Attributes:
        name: For the report.
        lens: The lens.
        rules: Those it is derived by.
        source: A state of the real model of its source, if there is one.
        view: One of the view's.
        outputs: What the models compute.
    """

    name: str
    lens: cs.Lens
    rules: tuple[Rule, ...] = ()
    source: Any = None
    view: Any = None
    outputs: Outputs | None = None

    @property
    def options(self) -> Options:
        """How the laws are tried on it: with their default settings."""
        return Options(
            source=self.source,
            view=self.view,
            outputs=self.outputs,
            gradients=False,  # two steps of training have none that is cheap; `exchanged.py` compares them
            shrinking=1.0,
        )


class Plain(cs.Schema):
    """What `Ruled` is made of."""

    table: Float32[Array, "vocab embed"]
    head: Float32[Array, "vocab embed"]
    kernel: Float32[Array, "width embed"]
    query: Float32[Array, "embed heads"]
    names: Int32[Array, " vocab"]


class Ruled(cs.Schema):
    """The same in other values: padded, tied, reversed and scaled."""

    table: Float32[Array, "padded embed"]
    kernel: Float32[Array, "embed width"]
    query: Float32[Array, "embed heads"]
    names: Int32[Array, " padded"]


_PADS = cs.pad("table", "vocab", "padded"), cs.pad("names", "vocab", "padded", fill=-1)
RULES = (*_PADS, cs.tie("head", "table"), cs.flip("kernel", "width"), cs.scale("query", 0.125))
OTHERS = ("decoder", "rules")


@functools.cache
def target(name: str) -> Target:
    """One of the pairs of models; the weights of a decoder with keys of all implementations; or what only rules say."""
    if name == "decoder":
        return _drawn(name, cs.derive(cs.linen.Params[LinenDecoder], cs.nnx.Params[NnxDecoder]))
    if name == "rules":
        return _drawn(name, cs.derive(Plain, Ruled, rules=RULES), RULES)
    at = pair(name)
    return Target(
        name, at.lens, (), at.linen.start, at.nnx.start, (losses(at.linen), losses(at.nnx))
    )


def losses(run: Run) -> Callable[[Any], list[float]]:
    """What a model computes: two losses, so that the second depends on what the optimizer keeps."""
    return lambda state: [float.fromhex(loss) for loss in train(run, state, range(2))[1]]


def _drawn(name: str, lens: cs.Lens, rules: tuple[Rule, ...] = ()) -> Target:
    """A target without real models: states of the layouts as they are before there are mistakes in them take their place."""
    sizes = {dim: 3 + at for at, dim in enumerate(sorted(lens.source.names() | lens.view.names()))}
    sample = Sample(strategies.space(lens, sizes).picked(_random(0), even=False))
    return Target(name, lens, rules, sample.source(lens), sample.view(lens))


# --- Whether faults are found  ---

_COSTS = {
    "given": 0,
    "disk": 2,
}  # laws that take no time are tried first, and those that take much last


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        lens: The name of the lens.
        kind: Which fault.
        where: In which of its parts.
        way: In which direction.
        law: The law that it broke, ``derive`` where that refused it, or None where nothing did.
        seconds: How long it took.
    """

    lens: str
    kind: str
    where: str
    way: str
    law: str | None
    seconds: float

    def __str__(self) -> str:
        """All of it in a line."""
        return f"{self.seconds:6.1f} s  {self.law}: {self.kind} ({self.where}, {self.way}) of {self.lens}"


def attack(planted: Planted, at: Target) -> Outcome:
    """Tries all laws with their default settings, up to the first that is broken."""
    start = time.perf_counter()
    law = "derive" if planted.lens is None else _broken(planted.lens, at)
    return Outcome(
        at.name, planted.kind, planted.where, planted.way, law, time.perf_counter() - start
    )


def _broken(lens: cs.Lens, at: Target) -> str | None:
    options = dataclasses.replace(at.options, shrinking=0.0)
    for law in sorted(LAWS.values(), key=lambda law: _COSTS.get(law.kind, 1)):
        if idle(lens, law, options):
            continue
        try:
            check_law(lens, law, options)
        except BrokenLawError:
            return law.name
    return None


def works(planted: Planted) -> bool:
    """Whether a fault finds anything to work on in a few states: one that never does makes no mutant."""
    lens = planted.lens
    if lens is None or planted.fault is None:
        return True
    for number, place in enumerate(("numpy", "numpy", "jax", MESHES[0])):
        sample = Sample(
            strategies.space(lens, {}, empty=False).picked(_random(number), even=True),
            number,
            leaves=place,
        )
        at = bound(lens, sample.sizes)
        s, v = sample.source(lens), sample.view(lens)
        try:
            at.get(s), at.put(v), at.get(s, onto=v), at.put(v, onto=s)
        except Exception:  # so it does
            return True
        if planted.fault.hit:
            return True
    return False


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- What the suite says  ---

SHOWN = {
    "GetPut": ("decoder", "one bit flipped", "moved", "get"),
    "PutGet": ("decoder", "NaN payloads lost", "edited", "put"),
    "PutPut": ("decoder", "one bit flipped", "kept", "put"),
    "GetGet": ("decoder", "one bit flipped", "kept", "get"),
    "Conformance": ("decoder", "another dtype", "edited", "get"),
    "Abstraction": ("decoder", "gathered on one device", "edited", "get"),
    "Naming": ("LSTM", "two leaves exchanged", "joins", "both"),
    "Defaults": ("decoder", "one bit flipped", "made", "get"),
    "Refusal": ("decoder", "another dtype accepted", "moved", "get"),
    "Values": ("rules", "values not verified", "edited", "get"),
    "Sharing": ("decoder", "copied", "moved", "get"),
    "Inverse": ("decoder", "not in the inverse", "moved", "get"),
    "Sharding": ("decoder", "replicated", "edited", "get"),
    "Jit": ("decoder", "two swapped", "edited", "put"),
    "Restore": ("decoder", "sharding of onto ignored", "edited", "get"),
    "SaveRestore": ("decoder", "rolled", "edited", "put"),
    "Declaration": ("rules", "a key misspelt", "layout", "source"),
    "Function": ("LSTM", "keys of two leaves alike exchanged", "layout", "view"),
}
"""For each law a lens and a fault in it, by kind, where and way, that the law is there to find."""


def shown(law: str) -> tuple[Target, cs.Lens]:
    """The lens that is shown to break a law, without the fault and with it."""
    name, *fault = SHOWN[law]
    at = target(name)
    lens = next(
        each.lens
        for each in mutants(at.lens, at.rules)
        if [each.kind, each.where, each.way] == fault
    )
    assert lens is not None
    return at, lens


def failure(law: str) -> BrokenLawError:
    """What is raised for it."""
    at, lens = shown(law)
    try:
        check_law(lens, LAWS[law], dataclasses.replace(at.options, shrinking=Options.shrinking))
    except BrokenLawError as error:
        return error
    raise AssertionError(f"{law} is not broken")


def failures() -> Iterator[str]:
    """The failures of all laws, in Markdown."""
    for name in LAWS:
        _, kind, where, way = SHOWN[name]
        error = failure(name)
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        yield f"## {name}\n\nPlanted: {kind} ({where}, {way}).\n\n```text\n{said}\n```\n"


# --- The command  ---


def _prepare() -> None:
    virtual_devices()
    settings.register_profile("mutants", derandomize=True, database=None)
    settings.load_profile("mutants")


def outcomes(name: str, every: int, alone: bool) -> list[Outcome]:
    """What becomes of every mutant of a lens, or of every so many of them; with the lens alone, or real models beside it."""
    _prepare()
    at = target(name)
    at = dataclasses.replace(at, source=None, view=None, outputs=None) if alone else at
    sound = _broken(at.lens, at)
    if sound is not None:
        raise SystemExit(f"{name} breaks {sound} without any fault")
    real = filter(works, mutants(at.lens, at.rules))
    found = [attack(each, at) for each in itertools.islice(real, 0, None, every)]
    print(
        f"{name}: {len(found)} mutants in {sum(each.seconds for each in found):.0f} s",
        file=sys.stderr,
    )
    return found


def report(found: Sequence[Outcome]) -> Iterator[str]:
    """A table in Markdown: a line for each kind, how many mutants of it there were, and by which laws they were found."""
    yield "| planted | in | mutants | found | by |\n|---|---|---|---|---|"
    for (where, kind), several in itertools.groupby(found, lambda each: (each.where, each.kind)):
        laws = [each.law for each in several]
        by = ", ".join(name for name in ("derive", *LAWS) if name in laws)
        yield f"| {kind} | {where} | {len(laws)} | {len(laws) - laws.count(None)} | {by} |"


def main() -> int:
    """Prints the table, and the survivors; exits with 1 where fewer than 95 % of those that can be found were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--lenses", nargs="*", default=[*OTHERS, *NAMES], help="which of: %(default)s"
    )
    parser.add_argument(
        "--failures",
        action="store_true",
        help="print what is said when each law is broken, and nothing else",
    )
    parser.add_argument("--every", type=int, default=1, help="take every n-th mutant only")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="try what two lines try, without states of the real models",
    )
    told = parser.parse_args()
    if told.failures:
        _prepare()
        print("\n".join(failures()))
        return 0
    with ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        tried = [pool.submit(outcomes, name, told.every, told.alone) for name in told.lenses]
    found = sorted(
        (each for one in tried for each in one.result()), key=lambda each: (each.where, each.kind)
    )
    print("\n".join(report(found)))
    kinds, left = (
        len({(each.kind, each.where) for each in found}),
        [each for each in found if each.law is None],
    )
    print(f"\n{_share(found)} of {kinds} kinds, in {sum(each.seconds for each in found):.0f} s")
    layouts, lenses = (
        [each for each in found if (each.where == "layout") == at] for at in (True, False)
    )
    print(f"In plans and joins {_share(lenses)}; in layouts {_share(layouts)}")
    print("\n".join(f"survivor: {each}" for each in left))
    asked = (
        lenses if told.alone else found
    )  # that a layout is declared wrong shows in nothing but a real state
    return int(sum(each.law is None for each in asked) > 0.05 * len(asked))


def _share(found: Sequence[Outcome]) -> str:
    hit = sum(each.law is not None for each in found)
    return f"{hit} of {len(found)} mutants found, {hit / len(found):.1%}" if found else "none tried"


if __name__ == "__main__":
    sys.exit(main())

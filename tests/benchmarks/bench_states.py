"""How many random states a second the strategies make: ``python tests/benchmarks/bench_states.py``."""

from __future__ import annotations

import argparse
import time
import types

import hypothesis
from jaxtyping import Array, BFloat16, Float32, Int32

import ckpt_schema as cs
from ckpt_schema.testing import strategies

LEAVES = 50
KINDS = (Float32, BFloat16, Int32)


def schema(leaves: int) -> type[cs.Schema]:
    """A schema of so many leaves of several dtypes, two of which are keys."""
    annotations = {
        f"leaf{i}": KINDS[i % len(KINDS)][Array, "a b" if i % 2 else "b c"]
        for i in range(leaves - 2)
    }
    annotations |= {"noise": cs.Key["urbg"], "dropout": cs.Key["fry", "a"]}
    return types.new_class(
        "Many", (cs.Schema,), exec_body=lambda body: body.update(__annotations__=annotations)
    )


def main() -> None:
    """Prints a line: states per second, and the share of the time that hypothesis takes without them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=500)
    count = parser.parse_args().states
    many = schema(LEAVES)
    settings = hypothesis.settings(
        max_examples=count, deadline=None, database=None, derandomize=True
    )
    seconds: list[float] = []
    for strategy in (strategies.samples(many), strategies.states(many)):
        made = 0

        @settings
        @hypothesis.given(strategy)
        def draw(_: object) -> None:
            nonlocal made
            made += 1

        start = time.perf_counter()
        draw()
        seconds.append((time.perf_counter() - start) / made)
    print(
        f"{1 / seconds[1]:.0f} states of {LEAVES} leaves a second, {seconds[0] / seconds[1]:.0%} of the time to choose them"
    )


if __name__ == "__main__":
    main()

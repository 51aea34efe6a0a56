"""As many programs for many layers as for three, whatever is done to each besides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.leaf import both_ways, run
from support.tasks import made, words

from ckpt_schema import assert_trees_identical
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, PaddedAxis, Told
from ckpt_schema.testing._values import hostile

PADDED = Told(fills=(PaddedAxis.of(("a",), ("p",), 1),))
LAYERS: dict[str, tuple[str, str, tuple[int | None, int | None], Told]] = {
    "stacked": ("a b", "a b", (None, 1), UNTOLD),
    "stacked and turned": ("a b", "b a", (None, 0), UNTOLD),
    "stacked and padded": ("a b", "p b", (None, 0), PADDED),
    "stacked on another axis": ("a b", "a b", (0, 2), UNTOLD),
    "unstacked": ("a b", "a b", (1, None), UNTOLD),
    "unstacked and padded": ("a b", "b p", (0, None), PADDED),
    "padded in a stack": ("a b", "p b", (0, 0), PADDED),
}
each_way = pytest.mark.parametrize("name", LAYERS)


def tasks(name: str, depth: int, size: int = 3) -> tuple[Any, Any]:
    before, after, stacked, told = LAYERS[name]
    sizes = {"a": size, "b": size + 1, "p": size + 2, "depth": depth}
    return both_ways(before, after, sizes, stacked=stacked, told=told)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The names of the programs that XLA compiles from here on."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **details: Any) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.clear_event_listeners()


@each_way
def test_the_number_of_programs_is_that_of_few_layers(name: str, compilations: list[str]) -> None:
    counts: list[int] = []
    for depth in (3, 11, 23):
        jax.clear_caches()  # or else what does for one number of layers does for the next
        there, back = tasks(name, depth)
        rng = np.random.default_rng(depth)
        values = [hostile(rng, "float32", kind.shape) for kind in there.inputs]
        placed = [jnp.asarray(value) for value in values]
        compilations.clear()
        results = run(there, placed)
        again = run(back, results)
        counts.append(len(compilations))
        assert_trees_identical([words(each) for each in results], made(there, values))
        assert_trees_identical([words(each) for each in again], values)
    assert len(set(counts)) == 1, counts
    assert counts[0] <= 8

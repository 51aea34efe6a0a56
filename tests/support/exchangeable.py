"""Whether one function can be another of rearranged numbers: a check that looks at no name and at no leaf.

Numbers that are drawn alike, each by itself, are as likely in one order as in another. So where a
function is another one with the same numbers elsewhere, what both do at such numbers has one
distribution: outputs, and slopes by all numbers in any order. Where a mean differs by more than chance
allows, no rearrangement makes one function of the other, whichever leaves it cuts, joins or turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CERTAIN = 7.0
"""Deviations that chance has in one of 10 ** 11 means; some hundred are looked at."""
_AT_ONCE = 250
_DRAWS = ((0.0, 1.0), (0.5, 0.45), (0.4, 0.8))
"""Centers, and how far from them numbers are: about zero, positive, and between."""

Run = Callable[[Any], Any]


def deviation(
    runs: tuple[Run, Run], trees: tuple[Any, Any], *, most: int = 3_000, seed: int = 0
) -> float:
    """By how many standard deviations of chance two functions differ.

    Args:
        runs: Both.
        trees: Leaves of both. Numbers that both have are drawn once for both, so that less is left to
            chance: those of either are drawn alike, each by itself, whatever the other's are.
        most: How often numbers are drawn at most; less often where the difference is plain.
        seed: Of what is drawn.

    Returns:
        The largest of all means that are compared.
    """
    both = [_Flat(*each) for each in zip(runs, trees, strict=True)]
    count, places = _places(both[0].values, both[1].values)

    def gaps(key: Any, center: Any, spread: Any) -> Any:
        drawn = center + spread * jax.random.uniform(key, (count,), jnp.float32, -1, 1)
        one, other = (_looks(each, drawn[at]) for each, at in zip(both, places, strict=True))
        return one - other

    sampled = jax.jit(jax.vmap(gaps, (0, None, None)))
    keys = iter(jax.random.split(jax.random.key(seed), most // _AT_ONCE * len(_DRAWS)))
    found: dict[tuple[float, float], list[Any]] = {draw: [] for draw in _DRAWS}
    best = 0.0
    for _ in range(most // _AT_ONCE):
        for draw, gap in found.items():
            gap.append(sampled(jax.random.split(next(keys), _AT_ONCE), *draw))
        best = max(_deviation(np.concatenate(gap)) for gap in found.values())
        if best > 2 * CERTAIN:
            break
    return best


def _places(one: np.ndarray, other: np.ndarray) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """How many numbers there are, and which each side has at each of its places.

    A number that a side has twice is not the other's: of that side no two places may be drawn as one.
    """
    own = np.arange(one.size), one.size + np.arange(other.size)
    once = [np.unique(side, return_counts=True) for side in (one, other)]
    common = np.intersect1d(*(numbers[counts == 1] for numbers, counts in once))
    first = {number: at for at, number in enumerate(one.tolist())}
    for at in np.flatnonzero(np.isin(other, common)):
        own[1][at] = first[float(other[at])]
    return one.size + other.size, own


class _Flat:
    """A function of all floats of a tree in a row."""

    def __init__(self, run: Run, tree: Any) -> None:
        self._leaves, self._treedef = jax.tree.flatten(tree)
        self._run = run
        floats = [np.ravel(leaf) for leaf in self._leaves if _is_float(leaf)]
        self.values = np.concatenate(floats).astype(np.float64)

    def __call__(self, values: Any) -> Any:
        given: list[Any] = []
        first = 0
        for leaf in self._leaves:
            if _is_float(leaf):
                given.append(values[first : first + leaf.size].reshape(leaf.shape))
                first += leaf.size
            else:
                given.append(leaf)
        outputs = jax.tree.leaves(self._run(jax.tree.unflatten(self._treedef, given)))
        return jnp.concatenate([jnp.ravel(each) for each in outputs]).astype(jnp.float32)


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _looks(function: Callable[[Any], Any], numbers: Any) -> Any:
    """What is looked at: single outputs, sums of them, and slopes; each bounded, or a logarithm."""
    random = np.random.default_rng(0)
    outputs, back = jax.vjp(function, numbers)
    some = np.linspace(0, outputs.size - 1, 40).astype(int)
    sums = np.asarray(random.normal(size=(outputs.size, 40)) / outputs.size**0.5, np.float32)
    each = jnp.concatenate([outputs[some], outputs @ sums])
    size = jnp.sqrt(jnp.mean(outputs**2)) + 1e-9
    whole = [
        jnp.mean(jnp.tanh(outputs)),
        jnp.mean(jnp.tanh(outputs) ** 2),
        jnp.tanh(jnp.log(size)),
        jnp.mean(jnp.abs(outputs)) / size,
        jnp.tanh(jnp.mean(outputs**3) / size**3),
    ]
    alone = np.eye(outputs.size, dtype=np.float32)[some[[0, 20]]]
    for cotangent in (sums[:, 0], *alone):
        (slopes,) = back(jnp.asarray(cotangent))
        whole += [
            jnp.log1p(jnp.sum(slopes**2)),
            jnp.log1p(jnp.sum(jnp.abs(slopes))),
            jnp.log1p(jnp.sum(slopes**4)),
            jnp.tanh(jnp.sum(slopes * numbers)),
            jnp.log1p(jnp.sum((slopes * numbers) ** 2)),
            jnp.sum(slopes != 0).astype(jnp.float32),  # how many numbers an output depends on
        ]
    looks = [jnp.tanh(each), jnp.tanh(each) ** 2, jnp.tanh(each / size), jnp.stack(whole)]
    found = jnp.concatenate(looks)
    # Outputs that are no numbers are a look too: one that no number gives.
    return jnp.where(jnp.isfinite(found), found, 2.0)


def _deviation(gaps: np.ndarray) -> float:
    error = np.sqrt(gaps.var(0, dtype=np.float64) / len(gaps))
    # What does not vary is compared to the last digits of float32.
    return float(np.max(np.abs(gaps.mean(0, np.float64)) / (error + 1e-6)))

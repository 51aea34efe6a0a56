"""What discovery costs, and whether it grows with the pieces: ``python tests/benchmarks/bench_discovery.py``.

The first table has models of jax, and CPU times as ratios to that of two gradients, one of each model,
once they are compiled: of compiling both, of a discovery after that, and of that part of it which is
neither a run nor a gradient.

The second has models of NumPy whose leaves are all of one shape, turned and in another order on the
other side, so that each could be each: CPU time a piece as a ratio to that of the least number. It
exits with 1 where that grows by more than half.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import rewritten

import ckpt_schema as cs
from ckpt_schema.discovery._models import JaxModel

PIECES = (500, 1_000, 5_000)
STEEPEST = 1.5
LEAVES_OF_A_LAYER = 10
WAYS = ("as they are", "as torch's", "stacked", "norms about one")

Array = np.ndarray[Any, Any]


class Timed:
    """A model that counts the CPU time of its runs and gradients."""

    def __init__(self, model: JaxModel) -> None:
        self._model = model
        self.shapes, self.skipped, self.tree = model.shapes, model.skipped, model.tree
        self.seconds = 0.0

    @property
    def wide(self) -> bool:
        """Whether it computes in float64."""
        return self._model.wide

    def run(self, leaves: Mapping[str, Array]) -> Array:
        """Its outputs."""
        return self._timed(lambda: self._model.run(leaves))

    def pullback(self, leaves: Mapping[str, Array], cotangent: Array) -> dict[str, Array]:
        """Its gradients."""
        return self._timed(lambda: self._model.pullback(leaves, cotangent))

    def _timed(self, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        try:
            return call()
        finally:
            self.seconds += time.process_time() - start


def of_gradients(way: str) -> str:
    """The row of a model that is kept another way."""
    kept, own = rewritten.WAYS[way], rewritten.leaves()
    model = rewritten.Model()
    both = (
        Timed(
            JaxModel(lambda tree: model(rewritten.flattened(tree)), rewritten.nested(own), "source")
        ),
        Timed(
            JaxModel(
                lambda tree: model(kept.back(rewritten.flattened(tree))),
                rewritten.nested(kept.there(own)),
                "view",
            )
        ),
    )
    compiling = sum(map(_gradient, both))
    gradients = sum(map(_gradient, both))
    for each in both:
        each.seconds = 0.0
    start = time.process_time()
    found = cs.discover(None, both[0], None, both[1])
    whole = time.process_time() - start
    matching = whole - sum(each.seconds for each in both)
    return (
        f"{way:20}{found.status:10}{len(found.pairings):8}"
        f"{compiling / gradients:12.0f}{whole / gradients:12.0f}{matching / gradients:12.0f}"
    )


def _gradient(model: Timed) -> float:
    """The CPU time of outputs and a gradient, the least of several; the first time, that of compiling too."""
    random = np.random.default_rng(0)
    leaves = {name: random.normal(size=shape) for name, shape in model.shapes.items()}
    seconds: list[float] = []
    for _ in range(1 if not model.seconds else 20):
        start = time.process_time()
        model.pullback(leaves, np.ones_like(model.run(leaves)))
        seconds.append(time.process_time() - start)
    return min(seconds)


# --- Growth  ---


class Branches:
    """Branches that are added up, each with a leaf and an input of its own; of NumPy, so that nothing is compiled."""

    wide = True
    skipped: Sequence[str] = ()

    def __init__(self, names: Sequence[str], inputs: Array, *, turned: bool) -> None:
        self._names, self._inputs, self._turned = names, inputs, turned
        self.shapes = dict.fromkeys(names, (4, 3) if turned else (3, 4))
        leaf = jax.ShapeDtypeStruct((4, 3) if turned else (3, 4), np.float32)
        self.tree = rewritten.nested(dict.fromkeys(names, leaf))

    def run(self, leaves: Mapping[str, Array]) -> Array:
        """The sum of all branches."""
        return self._each(leaves).sum(0).ravel()

    def pullback(self, leaves: Mapping[str, Array], cotangent: Array) -> dict[str, Array]:
        """The gradient of each."""
        bent = (1 - self._each(leaves) ** 2) * cotangent.reshape(5, 4)
        found = np.einsum("nbi,nbo->nio", self._inputs, bent)
        found = found.swapaxes(1, 2) if self._turned else found
        return dict(zip(self._names, found, strict=True))

    def _each(self, leaves: Mapping[str, Array]) -> Array:
        kernels = np.stack([leaves[name] for name in self._names])
        kernels = kernels.swapaxes(1, 2) if self._turned else kernels
        return np.tanh(np.einsum("nbi,nio->nbo", self._inputs, kernels))


def of_pieces(count: int) -> float:
    """The CPU time of a piece, of so many."""
    random = np.random.default_rng(count)
    inputs = random.normal(size=(count, 5, 3))
    layers = [divmod(at, LEAVES_OF_A_LAYER) for at in range(count)]
    own = [f"layers/{layer}/{'abcdefghij'[at]}" for layer, at in layers]
    words = {"abcdefghij"[at]: word for at, word in enumerate(random.permutation([*"klmnopqrst"]))}
    others = [f"body/{name.split('/')[1]}/{words[name[-1]]}" for name in own]
    models = Branches(own, inputs, turned=False), Branches(others, inputs, turned=True)
    start = time.process_time()
    found = cs.discover(None, models[0], None, models[1])
    seconds = time.process_time() - start
    told = {each.view.leaf: each.sources[0].leaf for each in found.pairings}
    assert (found.status, told) == ("complete", dict(zip(others, own, strict=True)))
    return seconds / count


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pieces", type=int, nargs="*", default=PIECES)
    parser.add_argument("--ways", nargs="*", default=WAYS, help="of keeping the same decoder")
    given = parser.parse_args()
    if given.ways:
        print(
            f"{'a decoder':20}{'':10}{'pieces':>8}{'compiling':>12}{'discovery':>12}{'matching':>12}"
        )
    for way in given.ways:
        print(of_gradients(way), flush=True)
    grew = 1.0
    least = 0.0
    for count in given.pieces:
        each = of_pieces(count)
        least = least or each
        grew = each / least
        print(
            f"{count:6,} pieces: {1000 * each:.2f} ms a piece, {grew:.2f} times the first",
            flush=True,
        )
    return int(grew > STEEPEST)


if __name__ == "__main__":
    sys.exit(main())

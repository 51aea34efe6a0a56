"""Samples: random states of the layouts of a lens, each told by a few words that are also the code that makes it again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jax.sharding import AxisType

from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.containers import Tree
from ckpt_schema.testing._container_kinds import container_kinds
from ckpt_schema.testing._meshes import MeshSpec, Mixed, Placer, Sharded, as_jax, as_numpy, mesh
from ckpt_schema.testing._states import Maker, bound, maker
from ckpt_schema.testing._values import Values

__all__ = ["Sample", "SideName"]

SideName = Literal["source", "view"]


@dataclasses.dataclass(frozen=True, repr=False)
class Sample:
    """A random state: of a schema, or of either side of a lens, which can carry it then.

    Attributes:
        sizes: The size of every dim, in elements, and of every number of layers.
        seed: Draws the values.
        values: What stands in leaves: ``"counted"`` or ``"hostile"``; see
            `ckpt_schema.testing._values.make`.
        container: The name of the container; see `ckpt_schema.testing._container_kinds.containers`.
            The layout's own unless given.
        absent: The logical paths of optional leaves that it lacks.
        leaves: ``"numpy"``, ``"jax"``, or the shape and axis type of a mesh that the leaves are
            sharded over.
        spec: Which of the ways to shard over it.
        number: Whether a step is a Python number.
        free: The logical path of a leaf that has any values, also such as a lens refuses.
        flipped: That of a leaf of whose values one bit is another than a lens carries.
        mixed: Whether every other leaf is NumPy's, where the leaves are sharded.

    Example:
        >>> from jaxtyping import Array, Float32
        >>> class Dense(Schema):
        ...     kernel: Float32[Array, "inputs outputs"]
        >>> Sample({"inputs": 2, "outputs": 3}, values="counted").of(Dense)["kernel"]
        array([[1., 2., 3.],
               [4., 5., 6.]], dtype=float32)
    """

    sizes: Mapping[str, int]
    seed: int = 0
    values: Values = "hostile"
    container: str | None = None
    absent: tuple[str, ...] = ()
    leaves: Literal["numpy", "jax"] | MeshSpec = "numpy"
    spec: int = 0
    number: bool = False
    free: str | None = None
    flipped: str | None = None
    mixed: bool = False

    def of(self, schema: type[Schema] | Layout) -> Tree:
        """The state of a schema or layout."""
        return self._made(
            Maker(layout(schema), {**dict(layout(schema).sizes), **self.sizes}, number=self.number)
        )

    def source(self, lens: Lens) -> Tree:
        """The state of the source of a lens."""
        return self._made(_maker(lens, self, 0))

    def view(self, lens: Lens) -> Tree:
        """The state of the view of a lens."""
        return self._made(_maker(lens, self, 1))

    def _made(self, make: Maker) -> Tree:
        absent: set[int] = set()
        for at, row in enumerate(make.layout.rows):
            if "/".join(row.path) in self.absent:
                absent.add(at)
        tree = make(np.random.default_rng(self.seed), self.place, absent, self.values)
        kinds = container_kinds(make.layout)
        return kinds[self.container if self.container is not None else next(iter(kinds))](tree)

    @property
    def place(self) -> Placer:
        """What makes leaves of values."""
        if isinstance(self.leaves, str):
            return as_numpy if self.leaves == "numpy" else as_jax
        # A mesh is named by its shape, for a `Mesh` is nothing that could be written as code.
        place = Sharded(mesh(*self.leaves), self.spec)
        return Mixed(place) if self.mixed else place

    def __repr__(self) -> str:
        """The code that makes it."""
        # These three are always written; of all others what is not as it is unless given.
        told = [repr(dict(self.sizes)), f"seed={self.seed}", f"values={self.values!r}"]
        for field in dataclasses.fields(self)[3:]:
            value = getattr(self, field.name)
            if value != field.default:
                told.append(f"{field.name}={_code(value)}")
        return f"Sample({', '.join(told)})"


def _code(value: Any) -> str:
    """A value as code, which `repr` is not of the type of mesh axes."""
    if isinstance(value, tuple) and value and isinstance(value[-1], AxisType):
        return f"({value[0]!r}, AxisType.{value[-1].name})"
    return repr(value)


def _maker(lens: Lens, sample: Sample, side: int) -> Maker:
    told = sample.number, sample.free, sample.flipped
    # Samples of one lens and of the same sizes have one maker, which is slow to make.
    return _kept(lens, tuple(sorted(sample.sizes.items())), side, *told)


@functools.lru_cache(maxsize=64)
def _kept(
    lens: Lens,
    sizes: tuple[tuple[str, int], ...],
    side: int,
    number: bool,
    free: str | None,
    flipped: str | None,
) -> Maker:
    number = number and side == 0  # what a lens makes of such a step is an array
    return maker(bound(lens, dict(sizes)), side, number=number, free=free, flipped=flipped)

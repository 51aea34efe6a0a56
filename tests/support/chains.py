"""Random edits of leaves, each with everything that is needed to apply it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from ckpt_schema.dims import Dim, Dims, factors
from ckpt_schema.leaves import Leaf
from ckpt_schema.lens.edits import Chain, Edit
from ckpt_schema.lens.partial import Cast
from ckpt_schema.lens.rearranged import Rearrange
from ckpt_schema.lens.stacks import Stack, Unstack
from ckpt_schema.testing.meshes import Place
from ckpt_schema.testing.values import DTYPES, INTEGERS, Bounds, hostile

NAMES = ("a", "b", "c", "d")
REPEATS = "repeats"


@dataclasses.dataclass(frozen=True)
class Case:
    """A chain of edits, and leaves it applies to.

    Attributes:
        chain: The edits.
        dims: The dims of each input.
        after: The dims of each result.
        dtype: The dtype of the inputs.
        after_dtype: The dtype of the results.
        arity: How many inputs there are.
        results: How many results.
        sizes: The size of every name.
        bounds: For casts: the integers that every dtype on the way can hold.
        seed: Draws the values.
    """

    chain: Chain
    dims: Dims
    after: Dims
    dtype: str
    after_dtype: str
    arity: int
    results: int
    sizes: Mapping[str, int]
    bounds: Bounds | None
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each input."""
        return tuple(
            int(np.prod([f if isinstance(f, int) else self.sizes[f] for f in dim]))
            for dim in self.dims
        )

    @property
    def needed(self) -> dict[str, int]:
        """The sizes a plan would pass: those of the names the chain asks for."""
        return {name: self.sizes[name] for name in sorted(self.chain.names)}

    @property
    def leaf(self) -> Leaf:
        """What each input is declared to be."""
        return Leaf(self.dims, self.dtype)

    def inputs(self, place: Place) -> list[Any]:
        """The input leaves."""
        rng = np.random.default_rng(self.seed)
        return [place(hostile(rng, self.dtype, self.shape, self.bounds)) for _ in range(self.arity)]


@st.composite
def groupings(draw: st.DrawFn, atoms: tuple[Any, ...]) -> Dims:
    """The factors in this order, some neighbors merged into one axis."""
    dims: list[Dim] = []
    for atom in atoms:
        if dims and draw(st.integers(0, 2)) == 0:
            dims[-1] = (*dims[-1], atom)
        else:
            dims.append((atom,))
    return tuple(dims)


@st.composite
def rearranges(draw: st.DrawFn, before: Dims) -> Rearrange:
    """A rearrangement of these dims, which may drop axes of size 1, or add one."""
    atoms = [f for f in factors(before) if f != 1] + [1] * draw(st.integers(0, 1))
    return Rearrange(before, draw(groupings(tuple(draw(st.permutations(atoms))))))


@dataclasses.dataclass
class _Draft:
    """Leaves on their way through a chain that is being drawn: one, or one per repeat."""

    dims: Dims
    dtype: str
    many: bool
    edits: list[Edit]
    dtypes: list[str]


@st.composite
def cases(
    draw: st.DrawFn,
    *kinds: type[Edit],
    length: int = 1,
    sizes: tuple[int, ...] = (0, 1, 2, 3, 4, 6),
    dtypes: tuple[str, ...] = DTYPES,
) -> Case:
    """A chain of up to ``length`` edits of these kinds, the first of which is there in any case."""
    pool = [name for name in NAMES if draw(st.booleans())] + [
        n for n in (1, 3, 5) if draw(st.integers(0, 3)) == 0
    ]
    bound = {name: draw(st.sampled_from(sizes)) for name in NAMES} | {
        REPEATS: draw(st.integers(1, 4))
    }
    first = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from(INTEGERS if first is Cast else dtypes))
    atoms = (REPEATS, *pool) if first is Unstack else tuple(pool)
    dims = draw(groupings(tuple(draw(st.permutations(atoms)))))
    if first is Unstack:
        dims = tuple(dict.fromkeys(d if REPEATS not in d else (REPEATS,) for d in dims))
    draft = _Draft(dims, dtype, first is Stack, [], [dtype])
    for step in range(length):
        _extend(draw, draft, first if step == 0 else draw(st.sampled_from(kinds)))
    arity, results = ((bound[REPEATS] if many else 1) for many in (first is Stack, draft.many))
    bounds = _bounds(draft.dtypes) if len(draft.dtypes) > 1 else None
    seed = draw(st.integers(0, 2**32 - 1))
    return Case(
        Chain(tuple(draft.edits)),
        dims,
        draft.dims,
        dtype,
        draft.dtype,
        arity,
        results,
        bound,
        bounds,
        seed,
    )


def _bounds(dtypes: list[str]) -> Bounds:
    """The integers that all of these dtypes hold."""
    infos = [jnp.iinfo(dtype) for dtype in dtypes]
    return max(int(info.min) for info in infos), min(int(info.max) for info in infos)


def _extend(draw: st.DrawFn, draft: _Draft, kind: type[Edit]) -> None:
    """Adds one edit of this kind, if the leaves as they are now allow one."""
    if kind is Rearrange:
        edit = draw(rearranges(draft.dims))
        draft.edits.append(edit)
        draft.dims = edit.view
    elif kind is Cast and draft.dtype in INTEGERS:
        after = draw(st.sampled_from(INTEGERS))
        draft.edits.append(Cast(draft.dtype, after))
        draft.dtypes.append(after)
        draft.dtype = after
    elif kind is Unstack and not draft.many and (REPEATS,) in draft.dims:
        axis = draft.dims.index((REPEATS,))
        draft.edits.append(Unstack(axis, (REPEATS,)))
        draft.dims, draft.many = (*draft.dims[:axis], *draft.dims[axis + 1 :]), True
    elif kind is Stack and draft.many:
        axis = draw(st.integers(0, len(draft.dims)))
        draft.edits.append(Stack(axis, (REPEATS,)))
        draft.dims, draft.many = (*draft.dims[:axis], (REPEATS,), *draft.dims[axis:]), False

"""The law of defaults: what they are is written down here once more, and not asked of the code that makes them."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ckpt_schema._layouts.leaves import ConstantKey, Fill, FreshKey
from ckpt_schema._layouts.paths import format_path
from ckpt_schema._layouts.table import Row
from ckpt_schema._lens.derived_lens import derive
from ckpt_schema._lens.lens import Lens
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import Mismatch
from ckpt_schema.testing._held import by_key, first, same, whole_array
from ckpt_schema.testing._laws import LawError, gathered_leaves, identical
from ckpt_schema.testing._named_arrays import frame_of, size

__all__ = ["defaults_made", "stated", "stepwise"]

_IMPLS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


def defaults_made(lens: Lens, s: Tree) -> None:
    """``get(s)[private] == default``: what the source has no place for is made as it is declared."""
    result = by_key(lens.get(s))
    faults: list[Mismatch] = []
    for number, row in enumerate(lens.view.rows):
        if number in lens.joined[1] or not isinstance(row.default, (Fill, FreshKey, ConstantKey)):
            continue
        # The fill of a param is no fill of its moments: `tx.init` makes these.
        if _starts_anew(lens, row):
            where = format_path(row.key)
            expected = "what the optimizer starts with, for it keeps this of a leaf"
            faults.append(Mismatch(where, "default", expected, str(row.default)))
            continue
        value = whole_array(row, result, lens.dims)
        if value is None:
            continue  # there are no such layers, or it may be missing
        made = stated(row, lens.dims)
        if value.dtype != made.dtype or not same(made, value):
            expected = f"{row.default}, {made.dtype}{list(made.shape)}"
            other = f"{value.dtype}{list(value.shape)}"
            where = format_path(row.key)
            faults.append(Mismatch(where, "default", expected, other, first(made, value)))
    if faults:
        raise LawError("private leaves are not as declared", faults)


def _starts_anew(lens: Lens, row: Row) -> bool:
    """Whether a leaf is what an optimizer keeps of another one, and no rule speaks of it at its own place."""
    if not row.mirrors or lens.view.initial is None:
        return False
    for each in lens.derivations:
        for rule in each.rules:
            path = getattr(rule, "path", ())
            if path and row.path[: len(path)] == path:
                return False
    return True


def stepwise(lens: Lens, s: Tree) -> None:
    """``(a >> b).get(s) == b.get(a.get(s))``, each derived anew: what neither end has the layout between them fills in."""
    if len(lens.derivations) < 2:
        return
    state = s
    for step in _steps(lens):
        state = step.get(state)
    identical(gathered_leaves(state), gathered_leaves(lens.get(s)))


@functools.lru_cache(maxsize=64)
def _steps(lens: Lens) -> tuple[Lens, ...]:
    """What a lens is composed of."""
    steps: list[Lens] = []
    for each in lens.derivations:
        step = derive(each.source, each.view, rules=each.rules)
        names = step.source.names() | step.view.names()
        # A step may lack dims that others have, and may call one otherwise.
        sizes = {name: size for name, size in each.sized(lens.dims).items() if name in names}
        step = step.bind(**sizes)
        steps.append(~step if each.inverted else step)
    return tuple(steps)


def stated(row: Row, sizes: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """All leaves of a row that holds its default, unrolled levels first; keys as their data.

    A number fills the leaf. Of a key, what is no key is 0. A fresh key is ``fold_in(key(seed),
    crc32(path))``, with the path of the row in its model, and where that is repeated ``fold_in(...,
    n)`` of this, n the number of the repeat through all levels.
    """
    frame = frame_of(row)
    shape = frame.shape(sizes)
    default = row.default
    if row.leaf.dtype not in _IMPLS:
        number = default.value if isinstance(default, Fill) else 0
        return np.full(shape, np.asarray(number).astype(jnp.dtype(row.leaf.dtype)))
    impl = _IMPLS[row.leaf.dtype]
    seed = 0 if isinstance(default, Fill) else getattr(default, "seed", 0)
    path = "/".join(row.model_path) if isinstance(default, FreshKey) else None
    repeated = bool(row.repeats) and path is not None
    # Each key is made once, however many elements hold it: jax takes long for one.
    numbers = _numbers(row, sizes) if repeated else np.zeros((1,) * (len(shape) - 1), np.int64)
    top = int(numbers.max()) + 1 if numbers.size else 1
    table = np.stack([_key(impl, seed, path, n if repeated else None) for n in range(top)])
    return np.broadcast_to(table[numbers], shape)


def _numbers(row: Row, sizes: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """The number of the repeat that each element of a row's leaves is of, the words of keys aside."""
    frame = frame_of(row)
    places = np.indices(frame.shape(sizes)[:-1], sparse=True)
    number: Any = np.zeros((), np.int64)
    # Layer 1 of stage 2, of 4 layers in each stage, is number 2 * 4 + 1.
    for level, repeat in enumerate(row.repeats):
        number = number * size(repeat.size, sizes) + places[frame.levels.index(level)]
    return np.broadcast_to(number, frame.shape(sizes)[:-1])


@functools.lru_cache(maxsize=4096)
def _key(impl: str, seed: int, path: str | None, number: int | None) -> np.ndarray[Any, Any]:
    """The data of one default key."""
    key = jax.random.key(seed, impl=impl)
    if path is not None:
        key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    if number is not None:
        key = jax.random.fold_in(key, number)
    return np.asarray(jax.random.key_data(key))

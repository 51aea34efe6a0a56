"""One joined pair of rows: the edits that take the leaf of one to that of the other, or why there are none."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from ckpt_schema import dims as dims_
from ckpt_schema import leaves
from ckpt_schema.dims import Dim, Dims
from ckpt_schema.errors import Mismatch
from ckpt_schema.leaves import Leaf
from ckpt_schema.lens.edits import Cast, Chain, Rearrange, Unstack
from ckpt_schema.lens.keys import WrapKey
from ckpt_schema.lens.symbolic import typed
from ckpt_schema.table import Row

__all__ = ["relate"]


def relate(source: Row, view: Row, *, raw: bool = False) -> tuple[Chain, int | None] | Mismatch:
    """The chain from one row to the other and the level it converts, or why there is none.

    Args:
        source: The source's row.
        view: The view's row.
        raw: Whether one of them may be a key and the other its raw data.
    """
    if raw and source.leaf.is_key != view.leaf.is_key:
        return _raw(source, view)
    if source.leaf == view.leaf and source.repeats == view.repeats:
        return Chain(), None
    cast = _cast(source, view)
    if isinstance(cast, Mismatch):
        return cast
    shaped = _reshape(source, view)
    if isinstance(shaped, Mismatch):
        return shaped
    chain, level = shaped
    chain = chain >> cast
    return _type_fault(source, view, chain, level) or (chain, level)


def _raw(source: Row, view: Row) -> tuple[Chain, int | None] | Mismatch:
    """The chain from raw data to keys, or back; the words of each key stand on the last axis."""
    if source.leaf.is_key:
        turned = _raw(view, source)
        return turned if isinstance(turned, Mismatch) else (~turned[0], turned[1])
    words, stacks = leaves.key_words(view.leaf.dtype), [r.axis for r in source.repeats if r.axis is not None]
    if source.leaf.dtype != "uint32" or source.dims[-1:] != ((words,),) or any(axis < 0 for axis in stacks):
        return _fault(source, view, "dtype", f"raw data of such a key is uint32, with {words} words on the last axis")
    keys = dataclasses.replace(source, leaf=Leaf(source.leaf.dims[:-1], view.leaf.dtype))
    made = relate(keys, view)
    return made if isinstance(made, Mismatch) else (WrapKey(view.leaf.dtype) >> made[0], made[1])


def _cast(source: Row, view: Row) -> Chain | Mismatch:
    before, after = source.leaf.dtype, view.leaf.dtype
    if before == after:
        return Chain()
    if (
        not source.leaf.is_key
        and not view.leaf.is_key
        and all(jnp.issubdtype(jnp.dtype(d), jnp.integer) for d in (before, after))
    ):
        return Chain((Cast(before, after),))
    if source.leaf.is_key and view.leaf.is_key:
        return _fault(source, view, "impl", "a key keeps its implementation: declare the same on both sides")
    if source.leaf.is_key or view.leaf.is_key:
        return _fault(
            source, view, "dtype", 'a key is no array of its data: declare Key["..."] on both sides, or say raw_key(...)'
        )
    hint = "only integers are cast, where that keeps their values: declare one dtype on both sides, and cast the tree yourself"
    return _fault(source, view, "dtype", hint)


def _fault(source: Row, view: Row, kind: str, hint: str) -> Mismatch:
    return Mismatch("/".join(view.path), kind, f"{view.stored} as in the view", f"{source.stored} in the source", hint)


def _reshape(source: Row, view: Row) -> tuple[Chain, int | None] | Mismatch:
    if [r.size for r in source.repeats] != [r.size for r in view.repeats]:
        counts = [" ".join(dims_.format_dim(r.size) for r in row.repeats) or "none" for row in (view, source)]
        hint = f"repeats: {counts[0]} in the view, {counts[1]} in the source; count them with the same dim"
        return _fault(source, view, "dims", hint)
    pairs = zip(source.repeats, view.repeats, strict=True)
    levels = [i for i, (a, b) in enumerate(pairs) if (a.axis is None) != (b.axis is None)]
    if len(levels) > 1:
        hint = "one level of stacking is converted at a time: apply two lenses in turn, through a layout between them"
        return _fault(source, view, "dims", hint)
    if not levels:
        made = _rearranged(source, view, _axes(source), _axes(view))
        return made if isinstance(made, Mismatch) else (made, None)
    level = levels[0]
    if source.repeats[level].axis is None:
        turned = _reshape(view, source)
        return turned if isinstance(turned, Mismatch) else (~turned[0], level)
    stacked = _axes(source)
    axis = next(i for i, a in enumerate(stacked) if a.level == level)
    tail = _rearranged(source, view, (*stacked[:axis], *stacked[axis + 1 :]), _axes(view))
    if isinstance(tail, Mismatch):
        return tail
    return Unstack(axis, source.repeats[level].size) >> tail, level


@dataclasses.dataclass(frozen=True, slots=True)
class _Axis:
    """An axis of a stored leaf: its dim, and which level of repetition it stacks, if it does."""

    dim: Dim
    level: int | None = None

    @property
    def mark(self) -> Dim:
        """The dim under a name of its own, where it stacks a level: two axes of one size are told apart by what they are."""
        return self.dim if self.level is None else (f"{dims_.format_dim(self.dim)}@{self.level}",)


def _axes(row: Row) -> tuple[_Axis, ...]:
    """The axes of a leaf as it is stored, in the order that `Row.dims` has them."""
    stored = [_Axis(dim) for dim in row.leaf.dims]
    for level, repeat in reversed(list(enumerate(row.repeats))):
        if repeat.axis is not None:
            stored.insert(repeat.axis if repeat.axis >= 0 else len(stored) + 1 + repeat.axis, _Axis(repeat.size, level))
    return tuple(stored)


def _rearranged(source: Row, view: Row, before: Sequence[_Axis], after: Sequence[_Axis]) -> Chain | Mismatch:
    """The edit that takes axes in one order and grouping to those in another."""
    marked = tuple(a.mark for a in before), tuple(a.mark for a in after)
    if marked[0] == marked[1]:
        return Chain()
    plain = tuple(a.dim for a in before), tuple(a.dim for a in after)
    atoms, others = ([f for f in dims_.factors(dims) if f != 1] for dims in plain)
    if sorted(map(str, atoms)) != sorted(map(str, others)):
        lacking = " ".join(sorted(set(map(str, atoms)) ^ set(map(str, others)))) or "how often each occurs"
        return _fault(source, view, "dims", f"the dims must have the same factors; they differ in: {lacking}")
    if len(set(atoms)) == len(atoms) and not _anonymous(marked):
        return Chain((Rearrange(*plain),))
    # Names that occur twice, or no names at all: only where the stack axes stand may differ.
    order = [[a.dim for a in axes if a.level is None] for axes in (before, after)]
    if order[0] == order[1] and all(len(dim) == 1 for dims in marked for dim in dims):
        return Chain((Rearrange(_numbered(before), _numbered(after)),))
    if _anonymous(marked):
        return _fault(source, view, "ambiguous", "sizes alone do not say which axis is which: declare the axes with named dims")
    twice = " ".join(sorted({str(f) for f in atoms if atoms.count(f) > 1}))
    return _fault(source, view, "ambiguous", f"{twice} occurs twice in one leaf: name the axes apart with different dims")


def _numbered(axes: Sequence[_Axis]) -> Dims:
    """Marks under which each axis has a name of its own: those that share a dim are numbered in order."""
    plain = [a.dim for a in axes if a.level is None]
    seen: collections.Counter[Dim] = collections.Counter()
    found: list[Dim] = []
    for axis in axes:
        if axis.level is not None or plain.count(axis.dim) == 1:
            found.append(axis.mark)
        else:
            seen[axis.dim] += 1
            found.append((f"{dims_.format_dim(axis.dim)}#{seen[axis.dim]}",))
    return tuple(found)


def _anonymous(marked: tuple[Dims, Dims]) -> bool:
    """Whether several axes that are no stack axes trade places, and none of the leaf's dims has a name."""
    order = [[f for f in dims_.factors(dims) if not (isinstance(f, str) and "@" in f)] for dims in marked]
    return order[0] != order[1] and not any(isinstance(f, str) for f in order[0])


def _type_fault(source: Row, view: Row, chain: Chain, level: int | None) -> Mismatch | None:
    """Types the chain for all sizes, both ways."""
    for before, after, edits in ((source, view, chain), (view, source, ~chain)):
        counts = frozenset(dims_.names((before.repeats[level].size,))) if level is not None else frozenset[str]()
        fanned = level is not None and before.repeats[level].axis is None
        count = before.repeats[level].size[0] if level is not None else 1
        arity = (count if isinstance(count, int) else 2) if fanned else 1
        found = typed(edits, before.dims, before.leaf.dtype, arity, counts)
        wanted = typed(Chain(), after.dims, after.leaf.dtype, 1, counts)
        if set(found) != set(wanted):
            return _fault(source, view, "dims", f"{edits} gives {found[0]}, not {wanted[0]}")
    return None

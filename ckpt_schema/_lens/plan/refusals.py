"""Why a tree cannot be taken to the other side: leaves without a source, dims without a size."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Layout, Row, Slot
from ckpt_schema._lens.arrays.fold_tasks import untold_parts
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.plan.folded_leaves import UntoldWhole
from ckpt_schema._trees.conformance import Match
from ckpt_schema.errors import Mismatch

__all__ = ["absent", "all_untold", "gap", "homeless", "not_read", "too_short", "unbound"]


def not_read(
    source: Layout,
    view: Layout,
    joins: Sequence[Join],
    tree: Match,
    used: set[Slot],
    sizes: Mapping[str, int],
) -> Iterator[Mismatch]:
    """Stacks of no layers: nothing is made of them on the other side."""
    positions: dict[int, list[int]] = {}  # of what is empty, by row
    for slot, position in tree.slots.items():
        if slot not in used and 0 in getattr(tree.flat.leaves[position], "shape", ()):
            positions.setdefault(slot[0], []).append(position)
    if not positions:
        return
    for join in joins:
        after = view.rows[join.views[0]]
        for number in join.sources:
            # A row of several joins is told once.
            for position in positions.pop(number, ()):
                yield _no_layers(source.rows[number], tree.flat.keys[position], after, sizes)


def _no_layers(before: Row, key: KeyPath, after: Row, sizes: Mapping[str, int]) -> Mismatch:
    """A stack of nothing, or no copy, of which the other side would keep no shape."""
    kind, hint = "layer", "a list of no layers cannot be stacked again"
    none = _of_size_0([repeat.size for repeat in before.repeats], sizes)
    if not none:
        kind, hint = "copy", "of no copies nothing is left to be read"
        none = _of_size_0(before.leaf.dims, sizes)
    expected = f"at least one {kind}, for {paths.format_path(after.key)} to be made of"
    return Mismatch(paths.format_path(key), "dims", expected, " ".join(none), hint)


def _of_size_0(dims: Iterable[Dim], sizes: Mapping[str, int]) -> list[str]:
    """The factors that make dims empty, ``layers=0`` each."""
    empty: list[str] = []
    for dim in dims:
        for factor in dim:
            if dims_.size_of((factor,), sizes) == 0:
                empty.append(f"{dims_.format_dim((factor,))}=0")
    return empty


def gap(row: Row, join: Join, sizes: Mapping[str, int]) -> Mismatch:
    """A leaf of which not every element is written once, where a dim is 0."""
    # Blocks are derived for sizes of at least 1: only a 0 makes one of them lie in another.
    told = ", ".join(f"{name}=0" for name in sorted(join.names) if sizes[name] == 0)
    hint = (
        "where a dim is 0, this lens does not know which element is which: derive it for these dims"
    )
    where = paths.format_path(row.key)
    return Mismatch(where, "dims", f"every element of {row.stored} once", told or "gaps", hint)


def too_short(join: Join, row: Row, sizes: Mapping[str, int]) -> Iterator[Mismatch]:
    """Axes that are to be padded to less than they have."""
    seen: set[Size] = set()
    for cell in join.cells:
        # Padding is a constant, of as many elements as the axis is longer: padded-vocab.
        if not cell.is_constant:
            continue
        for digit in cell.geometry.digits:
            size = digit.size
            if size in seen or size.at(sizes) >= 0:
                continue
            seen.add(size)
            large, small = size.parts
            expected = f"{large} of {small} or more"
            found = f"{large}={large.at(sizes)}, {small}={small.at(sizes)}"
            where = paths.format_path(row.key)
            yield Mismatch(where, "dims", expected, found, "pad to a larger size")


def unbound(row: Row, sizes: Mapping[str, int], needed: Sequence[str] = ()) -> Mismatch:
    """A leaf with dims that neither tree tells: those that are needed, or else all without a size."""
    unknown = [*needed] or sorted(dims_.dim_names(row.all_dims) - sizes.keys())
    arguments = ", ".join(f"{name}=..." for name in unknown)
    hint = f"no tree tells: lens.bind({arguments})"
    # Of heads*head_dim the tree tells the product: who says one has said both.
    if len(unknown) > 1:
        hint += "; of the factors or terms of one axis, one follows from the others"
    where = paths.format_path(row.key)
    return Mismatch(
        where, "dims", f"every dim of {row.stored} bound", f"no size for {', '.join(unknown)}", hint
    )


def absent(row: Row, slot: Slot) -> Mismatch:
    """A leaf that a tree lacks, of several that are made into one."""
    where = paths.format_path(paths.fill(row.key, slot[1]))
    hint = (
        "optional leaves that are stacked on the other side are there for all repeats, or for none"
    )
    return Mismatch(
        where, "missing", str(row.stored), "nothing, though other repeats have it", hint
    )


def homeless(row: Row, slot: Slot, abstract: bool) -> Mismatch:
    """A leaf of the result that is made of nothing; or of an abstract leaf of onto alone."""
    where = paths.format_path(paths.fill(row.key, slot[1]))
    if abstract:
        return Mismatch(
            where,
            "abstract",
            f"a value for {row.stored}",
            "an abstract leaf",
            "pass a concrete tree, or declare a default",
        )
    return Mismatch(
        where,
        "missing",
        f"a source for {row.stored}",
        "neither partner, onto nor default",
        "pass onto=, or give a default: field(default=...), private(path, ...), apart(path, ...)",
    )


def all_untold(wholes: Sequence[UntoldWhole], known: Collection[Slot]) -> list[Mismatch]:
    """Leaves that stand for several where nothing tells the parts, with what to do of each.

    Args:
        wholes: These leaves.
        known: The slots of the result that have a place. Of a part without one its own fault tells.
    """
    faults: list[Mismatch] = []
    for whole in wholes:
        if all(slot in known for slot in whole.lacking):
            faults.append(untold_parts(whole.where, whole.cure))
    return faults

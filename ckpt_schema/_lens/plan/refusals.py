"""Why a tree cannot be taken to the other side: leaves without a source, dims without a size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.paths import KeyPath
from ckpt_schema._layouts.sizes import Size
from ckpt_schema._layouts.table import Layout, Row, Slot
from ckpt_schema._lens.arrays.fold_tasks import untold_parts
from ckpt_schema._lens.derive.joins import Join
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
    flat = tree.flat.leaves
    empty = [
        (slot, at)
        for slot, at in tree.slots.items()
        if slot not in used and 0 in getattr(flat[at], "shape", ())
    ]
    if not empty:
        return
    by_row: dict[int, list[int]] = {}
    for (number, _), at in empty:
        by_row.setdefault(number, []).append(at)
    for join in joins:
        after = view.rows[join.views[0]]
        for number in join.sources:
            for at in by_row.pop(number, ()):
                yield _no_layers(source.rows[number], tree.flat.keys[at], after, sizes)


def _no_layers(before: Row, key: KeyPath, after: Row, sizes: Mapping[str, int]) -> Mismatch:
    """A stack of nothing, or no copy, of which the other side would keep no shape."""
    counts = [factor for repeat in before.repeats for factor in repeat.size]
    own = [factor for dim in before.leaf.dims for factor in dim]
    what = "layer", "a list of no layers cannot be stacked again"
    none = [factor for factor in counts if dims_.size_of((factor,), sizes) == 0]
    if not none:
        what = "copy", "of no copies nothing is left to be read"
        none = [factor for factor in own if dims_.size_of((factor,), sizes) == 0]
    told = " ".join(f"{dims_.format_dim((factor,))}=0" for factor in none)
    expected = f"at least one {what[0]}, for {paths.format_path(after.key)} to be made of"
    return Mismatch(paths.format_path(key), "dims", expected, told, what[1])


def gap(row: Row, join: Join, sizes: Mapping[str, int]) -> Mismatch:
    """A leaf of which not every element is written once, where a dim is 0."""
    told = ", ".join(f"{name}=0" for name in sorted(join.names) if sizes[name] == 0)
    hint = (
        "where a dim is 0, this lens does not know which element is which: derive it for these dims"
    )
    where = paths.format_path(row.key)
    return Mismatch(where, "dims", f"every element of {row.stored} once", told or "gaps", hint)


def too_short(join: Join, row: Row, sizes: Mapping[str, int]) -> Iterator[Mismatch]:
    """Axes that are to be padded to less than they have."""
    told: set[Size] = set()
    for cell in join.cells:
        more = [digit.size for digit in cell.geometry.digits] if cell.is_constant else []
        for size in more:
            if size in told or size.at(sizes) >= 0:
                continue
            told.add(size)
            large, small = size.parts
            expected = f"{large} of {small} or more"
            found = ", ".join(f"{each}={each.at(sizes)}" for each in (large, small))
            where = paths.format_path(row.key)
            yield Mismatch(where, "dims", expected, found, "pad to a larger size")


def unbound(row: Row, sizes: Mapping[str, int], needed: Sequence[str] = ()) -> Mismatch:
    unknown = [*needed] or sorted(dims_.dim_names(row.all_dims) - sizes.keys())
    several = (
        "; of the factors or terms of one axis, one follows from the others"
        if len(unknown) > 1
        else ""
    )
    hint = f"no tree tells: lens.bind({', '.join(f'{name}=...' for name in unknown)}){several}"
    where = paths.format_path(row.key)
    return Mismatch(
        where, "dims", f"every dim of {row.stored} bound", f"no size for {', '.join(unknown)}", hint
    )


def absent(row: Row, slot: Slot) -> Mismatch:
    where = paths.format_path(paths.fill(row.key, slot[1]))
    hint = (
        "optional leaves that are stacked on the other side are there for all repeats, or for none"
    )
    return Mismatch(
        where, "missing", str(row.stored), "nothing, though other repeats have it", hint
    )


def homeless(row: Row, slot: Slot, abstract: bool) -> Mismatch:
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


def all_untold(wholes: Sequence[tuple[str, str]]) -> list[Mismatch]:
    """Leaves that stand for several where nothing tells the parts, with what to do of each."""
    return [untold_parts(where, cure) for where, cure in wholes]

"""States that a manager reads: what to ask it for, and what becomes of what it gives.

Whoever manages checkpoints, Orbax's managers of either API, those of emergencies and of several
tiers, takes abstract trees by item and gives trees by item. Nothing here touches a disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from etils import epath

from ckpt_schema._frameworks import boxes, variables
from ckpt_schema._layouts import leaves
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.registry import Registry
from ckpt_schema._trees import placement
from ckpt_schema._trees.containers import Tree, flatten, verify_readable
from ckpt_schema.errors import CheckpointMismatchError, ConformanceError, Mismatch
from ckpt_schema.orbax._items import STATE
from ckpt_schema.orbax._metadata import DiskTree
from ckpt_schema.orbax._places import verify_name
from ckpt_schema.orbax._private_leaves import PrivateLeaves, find, private_leaves
from ckpt_schema.orbax._raw_keys import abstract_words, rewrapped
from ckpt_schema.orbax._sides import (
    Fit,
    Side,
    ambiguous,
    interchangeable,
    locate,
    toward,
    verify_arguments,
    verify_written,
)
from ckpt_schema.orbax._targets import (
    abstracted,
    declared,
    goals,
    identity_on,
    placed_abstract,
    restarted,
    spare_sharding,
    verify_meshes,
    with_values,
)
from ckpt_schema.orbax._versions import reading_of, version_of
from ckpt_schema.orbax._whereabouts import part_below

__all__ = ["abstract_items", "state_of"]

Target = TypeVar("Target")


def abstract_items(
    target: Any,
    lens: Lens,
    *,
    target_side: Side | None = None,
    disk_side: Side = "source",
    item: str = STATE,
    aux: str | None = "nnx_aux",
    raw_keys: bool = False,
) -> dict[str, Tree]:
    """What a manager is asked for, so that `state_of` makes the target of it: abstract items by name.

    They are those of `items_of`, with the shapes, dtypes and shardings that the lens makes of the
    target's: arrays are read straight to where they are needed. A manager that wants to know the
    form of a state beforehand is given these too.

    Args:
        target: An abstract or concrete state of either side, or a module.
        lens: The lens.
        target_side: The side that the target is on, for targets that conform to both.
        disk_side: The side whose layout the checkpoints have; `items_of` writes the source's.
        item: The name of the item that holds the state.
        aux: The name of the item that holds the private leaves. With None there is none, as in
            checkpoints of a run that has no such leaves.
        raw_keys: Whether typed keys are asked for as their raw data, as `items_of` made them.

    Raises:
        ConformanceError: The target is on neither side, or could be on either; or an argument is
            none.

    Example:
        ``manager.restore(step, args=Composite(state=StandardRestore(abstract_items(state,
        lens)["state"])))``
    """
    verify_arguments(lens, target_side=target_side, disk_side=disk_side)
    verify_name(item, "item", "the state")
    if aux is not None:
        verify_name(aux, "aux", "the private leaves", (item,))
    verify_readable(target)
    state = goals(declared(variables.state_of(target), lens))
    verify_meshes(state)
    side, match = toward(state, lens, "the target", target_side, "target_side")
    goal = abstracted(state, side, match)
    spare = spare_sharding(goal)
    wanted = lens.source if disk_side == "source" else lens.view
    if side.view is not wanted:
        verify_written(wanted, lens)
    items: dict[str, Tree] = {item: goal}
    if side.view is not wanted:
        items[item] = side.put(goal)
        held = with_values(state, dict(enumerate(jax.tree.leaves(goal))))
        private = private_leaves(_matched(match, held), side)
        items |= {aux: private} if aux is not None and private else {}
    asked = jax.tree.map(lambda leaf: placed_abstract(leaf, spare), boxes.unboxed(items))
    return abstract_words(asked) if raw_keys else asked


def _matched(match: Any, tree: Tree) -> Any:
    """A match of another tree of the same structure."""
    return type(match)(flatten(tree), match.slots, match.report)


def state_of(
    items: Mapping[str, Any],
    target: Target,
    lens: Lens | Registry,
    *,
    target_side: Side | None = None,
    disk_side: Side | None = None,
    item: str = STATE,
    at: str | None = None,
    aux: str | None = "nnx_aux",
    raw_keys: bool = False,
) -> Target:
    """The target's form of what a manager has read: `items_of` in the other direction.

    What was read may be of either side of the lens, with or without a target, in jax arrays or
    NumPy's. Each leaf is proved to be what the layout says, and goes to the target's sharding.

    Args:
        items: What was read, by item. Items that are none of the state are left alone.
        target: An abstract or concrete state of either side, or a module, as `restore` takes it.
        lens: The lens; or the versions that it may be of, which its structure tells.
        target_side: The side that the target is on, for targets that conform to both.
        disk_side: The side that was read, for states that could be of either.
        item: The name of the item that holds the state.
        at: The key path in it where the state stands.
        aux: The name of the item that holds the private leaves. They are taken if they are there.
        raw_keys: Whether keys are to be made of raw data, where the state that was read has keys.
            Raw data do not tell the implementation: it is that of the target. ``disk_side`` is the
            source unless given, which `items_of` writes.

    Returns:
        A state of the target's own kind; modules are updated, and returned.

    Raises:
        CheckpointMismatchError: What was read is of neither side, or could be of either, or does
            not fit the target; or there is no such item.
        ConformanceError: The target is on neither side, or could be on either.

    Example:
        >>> import jax.numpy as jnp
        >>> import ckpt_schema as cs
        >>> items_of = cs.orbax.items_of
        >>> old, new = {"a": {"w": jnp.ones(2)}}, {"b": {"w": jnp.zeros(2)}}
        >>> lens = cs.adapt(old, new, rules=[cs.rename("a", "b")])
        >>> state_of(items_of(new, lens), new, lens)
        {'b': {'w': Array([0., 0.], dtype=float32)}}
    """
    if isinstance(lens, Registry):
        disk = _read(items, item, at, aux)
        lens = reading_of([disk], version_of(target, lens), lens, aux).lens
        target_side, disk_side = target_side or "view", disk_side or "source"
    verify_arguments(lens, target_side=target_side, disk_side=disk_side)
    if raw_keys:
        disk_side = disk_side or "source"
        wanted = abstract_items(
            target, lens, target_side=target_side, disk_side=disk_side, item=item, aux=aux
        )
        items = rewrapped(items, wanted, at)
    disk = _read(items, item, at, aux)
    verify_readable(target)
    whole = variables.state_of(target)
    state = goals(declared(whole, lens))
    verify_meshes(state)
    side, match = toward(state, lens, "the target", target_side, "target_side")
    place = _place(disk.without(aux), side, lens, disk_side)
    through = identity_on(side) if place.layout is side.view else side
    spare = spare_sharding(abstracted(state, through, match))
    # Of the target's own layout nothing stands beside: its private leaves are in it.
    private = None if through is not side else _private(disk, items, aux)
    held = state
    if private is not None:
        orders = private.wanted(state, through, match)
        flat = flatten(private.tree)
        by_key = dict(zip(flat.keys, flat.leaves, strict=True))
        # A manager has read them already: what is ordered is looked up, and no disk is touched.
        values: dict[int, Any] = {}
        for position, (key, _) in orders.items():
            values[position] = by_key[key]
        held = with_values(state, values)
    try:
        made = through.get(place.tree, onto=restarted(held, through, match), drop=True)
    except ConformanceError as error:
        header = f"the item {item} does not fit the target"
        raise CheckpointMismatchError(header, error.mismatches, error.notes) from error
    result = jax.tree.map(lambda like, value: _like(like, value, spare), state, made)
    return variables.updated(target, variables.completed(result, whole))


def _read(items: Any, item: str, at: str | None, aux: str | None) -> DiskTree:
    """What was read of the state, looked at as what stands on a disk.

    Raises:
        CheckpointMismatchError: There is no such item, or nothing at this key path.
    """
    names = list(items) if isinstance(items, Mapping) or hasattr(items, "keys") else []
    if item not in names or items[item] is None:
        hint = f"say item=, one of {', '.join(map(str, names))}" if names else "pass items by name"
        fault = Mismatch("items", "checkpoint", f"an item {item}", "none", hint)
        raise CheckpointMismatchError("what was read has no state", [fault])
    return part_below(DiskTree(epath.Path("what was read"), item, items[item], frozenset()), at)


def _place(disk: DiskTree, side: Lens, lens: Lens, told: Side | None) -> Fit:
    """Which part of what was read is of which side.

    Raises:
        CheckpointMismatchError: None is; or it could be of either.
    """
    fits = locate(disk, side)
    if told is not None and len(fits) > 1:
        wanted = lens.source if told == "source" else lens.view
        fits = [fit for fit in fits if fit.layout is wanted]
    if len(fits) > 1 and not interchangeable(lens):
        raise ambiguous(CheckpointMismatchError, "what was read is a state", lens, "disk_side")
    return fits[0]


def _private(disk: DiskTree, items: Any, aux: str | None) -> PrivateLeaves | None:
    """The private leaves that were read beside the state, or inside of it."""
    if aux is None or disk.at((aux,)) is not None:
        return find(disk, aux)
    tree = items[aux] if aux in list(items) else None
    return None if tree is None else PrivateLeaves(DiskTree(disk.path, aux, tree), (), tree)


def _like(like: Any, value: Any, spare: Any) -> Any:
    """A leaf as the target has it: a number, or an array with its sharding."""
    if leaves.is_scalar(like):
        return type(like)(value)
    # jax would cut an int64 of NumPy's to 32 bits.
    if leaves.is_narrowed(value.dtype) and not isinstance(value, jax.Array):
        return value
    sharding = placed_abstract(like, spare).sharding
    is_there = isinstance(value, jax.Array) and value.sharding == sharding
    return value if is_there else placement.placed(value, sharding)

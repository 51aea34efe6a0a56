"""A layout read off a tree, off what makes one, or off what a checkpoint's metadata tells of one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.read_sides import made_abstract, name_of
from ckpt_schema._trees.inference import infer_tree
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["infer"]


def infer(
    tree: Any,
    *inputs: Any,
    scan: Mapping[str, int | Mapping[Any, int] | None] | None = None,
    lists: Sequence[str] = (),
    joined: str | None = None,
    name: str | None = None,
    item: str | None = None,
    at: str | None = None,
    items: Mapping[str, str] | None = None,
    tx: Any = None,
) -> Layout:
    """The layout of a tree.

    Train states of Linen (``params``, ``opt_state``, perhaps ``step``, and a tree like the params, ``ema_params``)
    and NNX (``model``, ``optimizer``, or under other names where Variables tell which is which), variables dicts,
    model states and plain dicts are told apart by structure. The state of an optimizer anywhere else is an error.
    Int keys ``0 .. n-1`` with equal contents, as ``nnx.List`` makes,
    become one repeated node.

    Args:
        tree: Arrays or abstract values in any container, or an ``nnx.Module``; a function without
            arguments that makes either, or a class of modules that needs none but ``rngs``: these are
            traced, and nothing is computed. Or the path of a checkpoint, of a folder of Hugging Face
            or of a safetensors file, of which the metadata alone is read. Or a module of Linen.
        *inputs: What a module of Linen is called with, which its variables depend on: arrays, or abstract ones.
            Whatever else makes variables is a function, ``lambda: Model(...).init(...)``.
        scan: For each node under ``nn.scan`` or ``nnx.scan``, by its path in the model: the axis its
            leaves are stacked on; or the axis by collection or Variable type,
            ``{"layers": {nnx.Param: 1, nnx.RngState: 0}}``, as `nnx.StateAxes` has it. A path inside of
            a stacked node gives leaves there another axis, ``{"layers": 1, "layers/**/rngs": 0}``; None
            says that they are not stacked.
        lists: Patterns of other repeated nodes: in the model by their path in it, ``"layers_{i}"``; outside
            of it by the whole key path, ``"extra/blocks_{i}"``.
        joined: What joins the segments of a path to one key: the keys at the root are read as paths,
            ``"layers.0.norm"`` as the first of a list. Unless given, the dot does where all leaves are
            at the root and dots part names, as in files of Hugging Face.
        name: What messages call the layout; unless given, it is that of the path, or of the class.
        item: Which pytree of a checkpoint, where it holds several. Where none is called ``state`` and none is
            named, all are read, each at the key that is its name.
        at: The key path at which the state stands in a checkpoint; what is beside it is not read.
        items: The pytree that holds what is at each key of the state, as ``restore`` has it.
        tx: The transformation that made the optimizer state. A tree that was saved, or is an ``nnx.State``,
            does not tell what each part of its chain is; told, a lens aligns the parts of two chains.

    Returns:
        A layout whose dims are all fixed.

    Raises:
        CheckpointMismatchError: The path is of nothing of the kind, or its files are damaged.
        SchemaError: With every leaf that is no array, every stack axis a leaf does not have, and every pattern or node in
            ``scan`` and ``lists`` that the tree does not have, or that is none; or ``tx`` makes another state.

    Example:
        >>> import jax
        >>> leaf = jax.ShapeDtypeStruct((2, 3), "float32")
        >>> print(infer({"params": {"layers_0": {"kernel": leaf}, "layers_1": {"kernel": leaf}}}, lists=["layers_{i}"]))
        inferred: 1 row
          params/layers[]/kernel  params/layers_{i}/kernel  float32[2 3]  params
    """
    told = {"item": item, "at": at, "items": items}
    how: dict[str, Any] = {"scan": scan, "lists": lists, "tx": tx}
    if isinstance(tree, (str, os.PathLike)) and not inputs:
        # Orbax is loaded for those alone who have a checkpoint.
        from ckpt_schema.orbax._whereabouts import all_meant

        disk = all_meant(tree, item=item, at=at, items=items)
        how.update(joined=joined or disk.joined, name=name or name_of(tree, "inferred"))
        try:
            return infer_tree(disk.tree, **how)
        except SchemaError as error:
            if len(disk.parts) < 2 or items is not None:
                raise
            held = ", ".join(str(part.item) for _, part in disk.parts)
            note = f"it holds {held}: item= says which is meant, and items= which is at which key"
            raise SchemaError(error.header, error.mismatches, [*error.notes, note]) from None
    _verify_no_path(told)
    made = made_abstract(tree, inputs)
    # A function is called lambda as a rule: what it makes has the better name.
    called = name_of(tree, name_of(made, "inferred"))
    return infer_tree(made, joined=joined, name=name or called, **how)


def _verify_no_path(told: Mapping[str, object]) -> None:
    """Raises where it is said of a tree in memory where in a checkpoint it stands.

    Raises:
        SchemaError: With every such argument.
    """
    faults = [
        Mismatch(name, "argument", "the path of a checkpoint", "a tree", f"leave {name}= out")
        for name, given in told.items()
        if given is not None
    ]
    if faults:
        raise SchemaError("the arguments of infer are not well formed", faults)

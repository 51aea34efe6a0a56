"""A folder of Hugging Face restored into a target, sharded as the target says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from ckpt_schema._lens.adapt.stacks import Scan
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Rule
from ckpt_schema._safetensors.weights import read_weights
from ckpt_schema.orbax import _restore as orbax_restore
from ckpt_schema.orbax._agreement import raised_by_all
from ckpt_schema.orbax._metadata import of_weights
from ckpt_schema.orbax._missing import Missing
from ckpt_schema.orbax._sides import Side
from ckpt_schema.orbax._whereabouts import part_below, read_several, verify_standing

__all__ = ["restore"]

Target = TypeVar("Target")


def restore(
    path: epath.PathLike | Mapping[str, epath.PathLike],
    target: Target | Callable[[], Target],
    lens: Lens | None = None,
    *,
    rules: Sequence[Rule] = (),
    scan: Scan | None = None,
    lists: Sequence[str] | None = None,
    missing: Missing | None = None,
    at: str | Mapping[str, str] | None = None,
    target_side: Side | None = None,
    disk_side: Side | None = None,
    donate_target: bool = False,
    times: Callable[[orbax_restore.RestoreTimes], None] | None = None,
) -> Target:
    """Restores the tensors of a folder of Hugging Face into the form of ``target``.

    It is what `ckpt_schema.orbax.restore` is for checkpoints of Orbax: headers are read and
    everything is validated before a byte of a tensor is; each process then reads the byte ranges of
    what its own devices hold of the tensors that the target has a place for.

    Without a lens the folder is adapted to the target: `ckpt_schema.adapt` makes the lens, and is
    an error where anything can be read in two ways.

    Args:
        path: A folder, a safetensors file, or the index of several; of a lens that
            `ckpt_schema.merge` made, a path for each part, by its name. Nothing is downloaded.
        target: What is restored, as in `ckpt_schema.orbax.restore`: a module, a state, a dict, or a
            function that makes one.
        lens: The lens; one of its sides has dotted names, ``class Weights(cs.Schema, joined=".")``.
        rules: What names and shapes do not tell, where no lens is given; see `ckpt_schema.adapt`. A
            dot of a name is a slash in a path: ``cs.rename("model/layers[]/mlp", "layers[]/mlp")``.
        scan: The axis of stacked nodes, where no lens is given.
        lists: Patterns of lists of layers, where no lens is given.
        missing: What the folder lacks and the target's own function makes, `ckpt_schema.init`.
        at: What the names of the tensors begin with, ``"language_model"``: no others are read, and
            the lens, or the rules, name them without it. Of several paths, that of each part by its
            name; of one that is a checkpoint of Orbax, the key path at which the state stands.
        target_side: The side of the lens that the target is on, for targets that conform to both.
        disk_side: The side that is on disk, for folders that could be of either.
        donate_target: Whether the caller gives up the arrays of the target, which are freed just
            before the read.
        times: Called once with the time each part took.

    Returns:
        A tree of the target's own kind; see `ckpt_schema.orbax.restore`.

    Raises:
        CheckpointMismatchError: There is no such folder, its files are damaged, it is of neither
            side, or differs from the target, with every fault.
        ConformanceError: The target is on neither side, or could be on either.

    Example:
        >>> import tempfile
        >>> import jax
        >>> import numpy as np
        >>> import ckpt_schema as cs
        >>> from safetensors.numpy import save_file
        >>> folder = tempfile.mkdtemp()
        >>> save_file({"fc.weight": np.ones((2, 3), "float32")}, folder + "/model.safetensors")
        >>> target = {"head": {"kernel": jax.ShapeDtypeStruct((3, 2), "float32")}}
        >>> rule = cs.rename("fc/weight", "head/kernel", axes="1 0")
        >>> cs.hf.restore(folder, target, rules=[rule])["head"]["kernel"].shape
        (3, 2)
    """
    with raised_by_all():
        if isinstance(path, Mapping):
            # Of several checkpoints one may be Orbax's: an adapter over weights of Hugging Face.
            disk = read_several(path, at)
        else:
            verify_standing(at, None)
            assert not isinstance(at, Mapping)
            # Not `orbax.restore` with the path: it would take a checkpoint of Orbax too.
            disk = part_below(of_weights(read_weights(path)), at)
    # What has been read goes on in the place of a path, so that headers are not read twice.
    checkpoint: Any = disk
    return orbax_restore.restore(
        checkpoint,
        target,
        lens,
        rules=rules,
        scan=scan,
        lists=lists,
        missing=missing,
        target_side=target_side,
        disk_side=disk_side,
        aux=None,
        donate_target=donate_target,
        times=times,
    )

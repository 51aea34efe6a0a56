"""All laws of lenses: what each says, the states it is about, and how it is tried on them."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from ckpt_schema._layouts import leaves
from ckpt_schema._lens.lens import Lens
from ckpt_schema.errors import CkptSchemaError
from ckpt_schema.orbax import restore, save
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._applied import looked_at
from ckpt_schema.testing._axis_law import axes_kept
from ckpt_schema.testing._default_law import defaults_made, stepwise
from ckpt_schema.testing._known import known, set_apart
from ckpt_schema.testing._laws import backward
from ckpt_schema.testing._lossy import excused
from ckpt_schema.testing._malformed import refusal_law
from ckpt_schema.testing._naming import naming
from ckpt_schema.testing._outputs import function
from ckpt_schema.testing._own_values import keeps_own
from ckpt_schema.testing._trials import GivenTrial, Trial, TrialKind

__all__ = ["LAWS", "Law", "weakened"]


@dataclasses.dataclass(frozen=True)
class Law:
    """A law of lenses.

    Attributes:
        name: What it is called.
        equation: What it says; ``s`` and ``t`` are states of the source, ``v`` and ``w`` of the view.
        states: The names of the states that it is about.
        check: Raises where it is broken.
        kind: What leaves it is tried on.
        share: How many examples it is tried on, of the number for all: those on disk take a hundred times as long.
        long: Whether some states have many layers, or a long axis: for a law that sees every element, wherever it goes.
        lossy: What it says of leaves that do not come back to the last bit, where that is less; see `Lens.loss`.
    """

    name: str
    equation: str
    states: str
    check: Callable[[Trial], None]
    kind: TrialKind = "any"
    share: float = 1.0
    long: bool = False
    lossy: str = ""


# --- The laws  ---


def _get_put(at: Trial) -> None:
    laws.get_put(at.lens, at["s"])


def _put_get(at: Trial) -> None:
    laws.put_get(at.lens, at["v"])


def _put_put(at: Trial) -> None:
    laws.put_put(at.lens, at["s"], at["v"], at["w"])


def _get_get(at: Trial) -> None:
    laws.get_get(at.lens, at["s"], at["t"], at["v"])


def _conformance(at: Trial) -> None:
    laws.conforms(at.lens, at["s"], at["v"])
    laws.conforms(backward(at.lens), at["v"], at["s"])
    # What sizes a tree tells does not depend on values: now and then is enough.
    if at.names_axes:
        known(at.lens.source, at["s"], at.lens.dims)
        known(at.lens.view, at["v"], at.lens.dims)
        set_apart(at.lens)


def _abstraction(at: Trial) -> None:
    if at.mixed:
        return  # where NumPy arrays beside sharded ones are put, no abstract leaf tells
    laws.abstraction(at.lens, at["s"], at["v"])
    laws.abstraction(backward(at.lens), at["v"], at["s"])


def _defaults(at: Trial) -> None:
    defaults_made(at.lens, at["s"])
    defaults_made(backward(at.lens), at["v"])
    keeps_own(at.given, at["s"])
    keeps_own(backward(at.given), at["v"])
    # A lens that was given defaults for the laws has them in no layout that it is derived from.
    if at.given is at.lens:
        stepwise(at.lens, at["s"])
        stepwise(backward(at.lens), at["v"])


def _naming(at: Trial) -> None:
    naming(at.lens, at["s"])
    naming(backward(at.lens), at["v"])
    # By abstract states of sizes of its own, for of an axis of one element nothing is seen.
    if at.names_axes:
        axes_kept(at.wide)
        axes_kept(backward(at.wide))


def _refusal(at: Trial) -> None:
    for lens, names in ((at.lens, "sv"), (backward(at.lens), "vs")):
        refusal_law(lens, at[names[0]], at[names[1]])


def _values(at: Trial) -> None:
    for lens, name in ((at.lens, "s"), (backward(at.lens), "v")):
        # To refuse is right as well; what is wrong is to carry on with another value.
        if laws.carries(lens, at[name]):
            laws.get_put(lens, at[name])
            naming(lens, at[name])


def _declaration(at: Trial) -> None:
    laws.declared_layouts(at.lens, at["s"], at["v"])


def _function(at: Trial) -> None:
    assert isinstance(at, GivenTrial) and at.outputs is not None
    function(at.lens, at["s"], at["v"], at.outputs, at.tolerance, gradients=at.gradients)


def _sharing(at: Trial) -> None:
    laws.sharing(at.lens, at["s"], at["v"])
    laws.sharing(backward(at.lens), at["v"], at["s"])


def _inverse(at: Trial) -> None:
    laws.inverse(at.lens, at["s"], at["v"])


def _sharding(at: Trial) -> None:
    s, v = at["s"], at["v"]
    for lens, one, other in ((at.lens, s, v), (backward(at.lens), v, s)):
        laws.sharding_kept(lens, one, other)
        laws.sharding(lens, one)
    # Each state is made again, for the arrays of one are given up.
    for lens, name in ((at.lens, "s"), (backward(at.lens), "v")):
        laws.donates(lens, at[name], at[name])


def _jit(at: Trial) -> None:
    for lens, name in ((at.lens, "s"), (backward(at.lens), "v")):
        # A value that is looked at has none under a trace, and is refused there.
        if not looked_at(lens):
            laws.jit(lens, at[name])


def _restore(at: Trial) -> None:
    saved, target = at["s"], at["v"]
    goal = target if at.concrete else abstract(target)
    with tempfile.TemporaryDirectory() as root:
        save(Path(root) / "0", saved, at.lens, side="source")
        restored = _restored(Path(root) / "0", goal, at)
    # The target that was given up has no values any more: an equal one stands for it.
    if at.gives_up:
        goal = target = at["v"]
    onto = laws.started(at.lens, goal)
    laws.identical(restored, laws.placed_like(at.lens.get(saved, onto=onto, drop=True), target))


def _save_restore(at: Trial) -> None:
    state, other = at["v"], at["w"]
    with tempfile.TemporaryDirectory() as root:
        save(Path(root) / "0", state, at.lens, side="view")
        # A target whose arrays are gone will do: nothing of its values may come into the result.
        goal = laws.donated(at["w"]) if at.concrete else abstract(other)
        lens = _asked(at)
        restored = restore(Path(root) / "0", goal, lens, target_side="view", disk_side="source")
    expected = laws.placed_like(state, other)
    laws.identical(excused(backward(at.lens), restored, expected), expected)


def _restored(path: Path, goal: Any, at: Trial) -> Any:
    """What is restored without a word of sides, unless it is refused for want of it."""
    through = functools.partial(restore, path, goal, _asked(at), donate_target=at.gives_up)
    try:
        return through()
    except CkptSchemaError as error:
        # Both layouts may fit the tree, or the disk: then it is for the user to say which it is.
        if {fault.kind for fault in error.mismatches} != {"ambiguous"}:
            raise
    return through(target_side="view", disk_side="source")


def _asked(at: Trial) -> Lens:
    """The lens of a restore: an abstract target has no value of its own to keep."""
    return at.given if at.concrete else at.lens


def abstract(tree: Any) -> Any:
    """The abstract values of a tree, with their shardings."""
    return jax.tree.map(leaves.abstract, tree)


# Laws on devices and on disk have a small share: each example of theirs takes long.
_ALL = (
    Law("GetPut", "put(get(s), onto=s) == s", "s", _get_put),
    Law("PutGet", "get(put(v), onto=v) == v", "v", _put_get),
    Law(
        "PutPut",
        "put(w, onto=put(v, onto=s)) == put(w, onto=s)",
        "svw",
        _put_put,
        lossy="where w == get(s), up to the loss of s",
    ),
    Law(
        "GetGet",
        "get(t, onto=get(s, onto=v)) == get(t, onto=v)",
        "stv",
        _get_get,
        lossy="where t == put(v), up to the loss of v",
    ),
    Law(
        "Conformance",
        "check(View, get(s)) == [] and check(Source, put(v)) == []",
        "sv",
        _conformance,
    ),
    Law(
        "Abstraction",
        "abstract(get(s)) == get(abstract(s)), and the same for put",
        "sv",
        _abstraction,
    ),
    Law(
        "Naming",
        "get(s)[name][i] == s[name][i], i by the names of dims and layers",
        "sv",
        _naming,
        long=True,
        lossy="up to rounding",
    ),
    Law("Defaults", "get(s)[private] is its declared default", "sv", _defaults),
    Law(
        "Refusal",
        "get, put and check refuse what is not of its layout, and name the leaf",
        "sv",
        _refusal,
        "plain",
        0.3,
    ),
    Law(
        "Values",
        "get(s) raises, or put(get(s), onto=s) == s with every element where its name says, whatever is in s",
        "sv",
        _values,
        "free",
        1.5,
    ),
    Law("Sharing", "a leaf that only moves is the same object", "sv", _sharing),
    Law("Inverse", "(~l).get == l.put and (~l).put == l.get", "sv", _inverse),
    Law(
        "Sharding",
        "leaves stay on the mesh, go where onto has them, and lose no mesh axis they could keep",
        "sv",
        _sharding,
        "sharded",
        0.3,
    ),
    Law("Jit", "jit(get)(s) == get(s), where no value is looked at", "sv", _jit, "jit", 0.2),
    Law(
        "Restore",
        "restore(saved s, abstract(v)) == get(s, onto=abstract(v))",
        "sv",
        _restore,
        "disk",
        0.2,
    ),
    Law(
        "SaveRestore",
        "restore(saved v, abstract(w)) == v, saved in the layout of the source",
        "vw",
        _save_restore,
        "disk",
        0.2,
        lossy="up to the loss of v",
    ),
    Law(
        "Declaration",
        "check(Source, s) == [] == check(View, v), and get(s, onto=v) is of v's shapes, for s and v of the real models",
        "sv",
        _declaration,
        "given",
    ),
    Law(
        "Function",
        "g(get(s, onto=v)) == f(s), and so are their gradients, up to rounding, for what the models f and g compute",
        "sv",
        _function,
        "given",
    ),
)
LAWS: Mapping[str, Law] = {law.name: law for law in _ALL}


def weakened(lens: Lens) -> Mapping[str, str]:
    """The laws that say less of leaves which do not come back to the last bit, and what they say of these.

    Example:
        >>> from jaxtyping import Array, Float32
        >>> import ckpt_schema as cs
        >>> class Norm(cs.Schema):
        ...     scale: Float32[Array, " embed"]
        >>> weakened(cs.derive(Norm, Norm, rules=[cs.shift("scale", 1.0)]))["PutPut"]
        'where w == get(s), up to the loss of s'
        >>> weakened(cs.derive(Norm, Norm))
        {}
    """
    if lens.exact:
        return {}
    return {law.name: law.lossy for law in LAWS.values() if law.lossy}

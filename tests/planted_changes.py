"""Changes of a layout that break checkpoints, and some that do not, each against what is on disk.

``python tests/planted_changes.py`` saves a state of the old and of the new code, restores each into the other, and holds
what `ckpt_schema.breaking` says of the two layouts against how that ends. Rule by rule: a restore of the model, the other
way round, a restore of the whole, and whether each element is the one that was saved.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.core import FrozenDict
from jaxtyping import Array, Float32

import ckpt_schema as cs

ADAM = optax.adam(1e-3)
State = Any


def model() -> dict[str, Any]:
    """A small model, no two axes of which are as long."""
    layer = {
        "norm": {"scale": jnp.ones(4)},
        "wi": {"kernel": jnp.ones((4, 6))},
        "q": {"kernel": jnp.ones((4, 2, 5))},
    }
    return {
        "embed": {"embedding": jnp.ones((11, 4))},
        "layers_0": layer,
        "layers_1": layer,
        "head": {"kernel": jnp.ones((4, 7))},
        "table": {"rows": jnp.ones((3, 9), jnp.int32)},
    }


def state(params: Any = None, tx: Any = ADAM, **more: Any) -> State:
    """A state of training."""
    params = model() if params is None else params
    floats = {name: node for name, node in params.items() if name != "table"}
    return {"step": jnp.int32(0), "params": params, "opt_state": tx.init(floats), **more}


def with_leaf(path: str, leaf: Any) -> dict[str, Any]:
    """The model with another leaf at a path, or with none."""
    params = jax.tree.map(lambda x: x, model())
    *above, last = path.split("/")
    node = params
    for name in above:
        node = node.setdefault(name, {})
    node.pop(last, None)
    if leaf is not None:
        node[last] = leaf
    return params


def renamed(old: str, new: str) -> dict[str, Any]:
    params = model()
    params[new] = params.pop(old)
    return params


def layers(count: int) -> dict[str, Any]:
    params = model()
    layer = params.pop("layers_0")
    params.pop("layers_1")
    return {**params, **{f"layers_{n}": layer for n in range(count)}}


def stacked() -> dict[str, Any]:
    params = model()
    both = [params.pop("layers_0"), params.pop("layers_1")]
    return {**params, "layers": jax.tree.map(lambda *each: jnp.stack(each), *both)}


class Net(nnx.Module):
    """The same for NNX."""

    def __init__(self, kind: type[nnx.Variable[Any]] = nnx.Param, streams: int = 0) -> None:
        self.kernel = nnx.Param(jnp.ones((4, 6)))
        self.scale = kind(jnp.ones(5))
        if streams:
            self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(1))


class Training(nnx.Module):
    def __init__(self, net: Net, tx: Any = ADAM) -> None:
        self.model = net
        self.optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)


def trained(*given: Any, tx: Any = ADAM) -> Any:
    return nnx.state(Training(Net(*given), tx))


class Averaged(Training):
    """A training that keeps an average of its model."""

    def __init__(self) -> None:
        super().__init__(Net())
        self.ema = Net()


def averaged() -> Any:
    return nnx.state(Averaged())


class Cached(nnx.Module):
    """A model that keeps what a pass leaves behind."""

    def __init__(self) -> None:
        self.kernel, self.scale = nnx.Param(jnp.ones((4, 6))), nnx.Param(jnp.ones(5))
        self.seen = nnx.Cache(jnp.zeros(3))


class Straight(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]


class Turned(cs.Schema):
    kernel: Float32[Array, "outputs inputs"]


class More(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"] = cs.field(optional=True)


class Filled(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"] = cs.field(default=0.0)


SQUARE = {"inputs": 4, "outputs": 4}


def kernel(schema: type[cs.Schema]) -> tuple[cs.Layout, State]:
    """A layout, and a state of it."""
    layout = cs.layout(schema, dims=SQUARE)
    values = cs.abstract(layout)
    return layout, jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), values)


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of a layout.

    Attributes:
        old: Makes a state of the old code, or its layout and a state.
        new: The same of the new code.
        broken: The rules that it breaks of its own accord, by their first letters: R, W, S (RESUME), E.
        meant: What a right restore makes of an old model; unless given, the same elements.
    """

    old: Callable[[], Any]
    new: Callable[[], Any]
    broken: str = ""
    meant: Callable[[Any], Any] | None = None


def to(*new: Any, broken: str, tx: Any = ADAM, **more: Any) -> Change:
    """A change of the usual state."""
    return Change(state, lambda: state(*new, tx=tx, **more), broken)


HALF = {"head": {"kernel": jnp.ones((4, 7), jnp.bfloat16)}}
CHAIN = optax.chain(optax.clip_by_global_norm(1.0), ADAM)

PLANTED: Mapping[str, Change] = {
    "a node renamed": to(renamed("embed", "tokens"), broken="RW"),
    "a leaf renamed": to(
        {**model(), "head": {"weight": jnp.ones((4, 7))}},
        broken="RW",
    ),
    "heads merged": to(with_leaf("layers_0/q/kernel", jnp.ones((4, 10))), broken="RW"),
    "a square leaf turned": Change(
        lambda: kernel(Straight),
        lambda: kernel(Turned),
        "RW",
        lambda tree: {"kernel": tree["kernel"].T},
    ),
    "floats made narrower": to({**model(), **HALF}, broken="RE"),
    "floats made wider": Change(lambda: state({**model(), **HALF}), state, "WE"),
    "ints made narrower": to(with_leaf("table/rows", jnp.ones((3, 9), jnp.int8)), broken="RE"),
    "ints made wider": Change(
        lambda: state(with_leaf("table/rows", jnp.ones((3, 9), jnp.int8))), state, "WE"
    ),
    "ints made floats": to(with_leaf("table/rows", jnp.ones((3, 9))), broken="RWE"),
    "a leaf removed": to(with_leaf("layers_1/norm/scale", None), broken="RW"),
    "a node removed": to(with_leaf("head", None), broken="RW"),
    "a leaf added": to(with_leaf("head/bias", jnp.ones(7)), broken="RW"),
    "a node added": to({**model(), "value_head": {"kernel": jnp.ones((4, 3))}}, broken="RW"),
    "a leaf with a default added": Change(lambda: kernel(Straight), lambda: kernel(Filled), "RW"),
    "a layer more": to(layers(3), broken="RW"),
    "a layer less": to(layers(1), broken="RW"),
    "a vocabulary grown": to(with_leaf("embed/embedding", jnp.ones((13, 4))), broken="RW"),
    "an axis padded": to(with_leaf("layers_0/wi/kernel", jnp.ones((4, 8))), broken="RW"),
    "a kernel turned": to(with_leaf("head/kernel", jnp.ones((7, 4))), broken="RW"),
    "kernels fused": Change(
        lambda: {"params": {"q": jnp.ones((4, 5)), "k": jnp.ones((4, 5))}},
        lambda: {"params": {"qk": jnp.ones((4, 10))}},
        "RW",
    ),
    "statistics added": to(batch_stats={"norm": {"mean": jnp.ones(4)}}, broken="RW"),
    "a level above a leaf": to(with_leaf("head/inner/kernel", jnp.ones((4, 7))), broken="RW"),
    "a chain grown": to(tx=CHAIN, broken="S"),
    "a chain with momentum": to(tx=optax.chain(optax.trace(0.9), ADAM), broken="S"),
    "an optimizer without moments": to(tx=optax.sgd(1e-3), broken="S"),
    "another optimizer": to(tx=optax.sgd(1e-3, momentum=0.9), broken="S"),
    "moments made narrower": to(tx=optax.adam(1e-3, mu_dtype=jnp.bfloat16), broken="SE"),
    "moments made wider": Change(
        lambda: state(tx=optax.adam(1e-3, mu_dtype=jnp.bfloat16)), state, "E"
    ),
    "gradients gathered": to(tx=optax.MultiSteps(ADAM, 2), broken="S"),
    "a Variable that is trained no more": Change(trained, lambda: trained(nnx.BatchStat), "S"),
    "a stream added to a module": Change(trained, lambda: trained(nnx.Param, 1), "S"),
    "a key added": to(rng=jax.random.key(1), broken="S"),
    "averages added": to(ema_params=model(), broken="S"),
    "averages added to a module": Change(trained, averaged, "S"),
    "what a pass leaves behind": Change(lambda: nnx.state(Net()), lambda: nnx.state(Cached()), "W"),
    "another implementation of a key": Change(
        lambda: state(rng=jax.random.key(0)), lambda: state(rng=jax.random.key(0, impl="rbg")), "SE"
    ),
    "a counter of another dtype": Change(state, lambda: {**state(), "step": jnp.uint32(0)}, "E"),
}

HARMLESS: Mapping[str, Change] = {
    "nothing": Change(state, state),
    "another order": Change(state, lambda: dict(reversed(state().items()))),
    "a list made a stack": Change(state, lambda: state(stacked())),
    "a stack made a list": Change(lambda: state(stacked()), state),
    "variables around the params": Change(
        state, lambda: {**state(), "params": {"params": model()}}
    ),
    "an axis of one added": to(with_leaf("head/kernel", jnp.ones((4, 7, 1))), broken=""),
    "an optional leaf": Change(lambda: kernel(Straight), lambda: kernel(More)),
    "a frozen dict": Change(state, lambda: {**state(), "params": FrozenDict(model())}),
    "a key removed": Change(lambda: state(rng=jax.random.key(0)), state),
    "Linen made NNX": Change(
        lambda: {"params": {"kernel": jnp.ones((4, 6)), "scale": jnp.ones(5)}},
        lambda: nnx.state(Net()),
    ),
    "a tuple made a list": Change(
        lambda: {"params": {"blocks": (jnp.ones(3), jnp.ones((2, 2)))}},
        lambda: {"params": {"blocks": [jnp.ones(3), jnp.ones((2, 2))]}},
    ),
}

RULES = {"R": "READ", "W": "WRITE", "S": "RESUME", "E": "EXACT"}


# --- What is on disk  ---


def random(tree: Any, seed: int) -> Any:
    """The same with values of which no two are alike, and no dtype that is narrower holds any."""
    rng = np.random.default_rng(seed)

    def drawn(leaf: Any) -> Any:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(leaf, (seed + 2, *leaf.shape))[seed + 1]
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            most = jnp.iinfo(leaf.dtype).max
            values = rng.integers(most // 2, most, leaf.shape) if leaf.shape else 1 + seed
            return jnp.asarray(values, leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(drawn, tree)


def data(leaf: Any) -> np.ndarray[Any, Any]:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def elements(tree: Any) -> collections.Counter[tuple[str, bytes]]:
    """Each element with its dtype, however they are arranged."""
    found: collections.Counter[tuple[str, bytes]] = collections.Counter()
    for leaf in jax.tree.leaves(tree):
        array = data(leaf)
        found.update((str(leaf.dtype), one.tobytes()) for one in array.ravel())
    return found


def body(tree: Any) -> Any:
    """The model in a state: told by the test's own names."""
    if not isinstance(tree, (dict, FrozenDict)) and not isinstance(tree, nnx.State):
        return tree
    if "model" in tree:
        return tree["model"]
    if "params" not in tree:
        return tree
    if "batch_stats" in tree:
        return {"params": tree["params"], "batch_stats": tree["batch_stats"]}
    return tree["params"]


def restored(path: Path, target: Any) -> Any:
    """What a restore in one line gives; None where it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cs.orbax.restore(path, target)
        except cs.CkptSchemaError:
            return None


def broken_on_disk(change: Change, folder: Path) -> str:
    """The rules that are broken, those that follow from others too, by what restores do."""
    old, new = (random(made_state(make), seed) for make, seed in ((change.old, 0), (change.new, 1)))
    for name, tree in (("old", old), ("new", new)):
        cs.orbax.save(folder / name, tree)
    found = ""
    loaded = restored(folder / "old", body(new))
    if loaded is None or not _right(change, body(old), loaded):
        found += "R"
    back = restored(folder / "new", body(old))
    turned = change.meant  # a transpose is its own inverse
    if back is None or (turned and elements_differ(turned(body(new)), back)):
        found += "W"
    whole = restored(folder / "old", new)
    if whole is None or "R" in found or _kept(whole, new):
        found += "S"
    strange = whole is not None and elements(without_kept(whole, new)) - elements(old)
    if whole is None or "R" in found or strange:
        found += "E"
    return found


def _right(change: Change, old: Any, loaded: Any) -> bool:
    return change.meant is None or not elements_differ(change.meant(old), loaded)


def elements_differ(a: Any, b: Any) -> bool:
    """Whether two trees of one structure differ anywhere."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(data(x), data(y)) for x, y in pairs)


def _kept(result: Any, target: Any) -> list[Any]:
    """Leaves of the result that are the target's own, but for those of a cache."""
    flat = [jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (result, target)]
    same = [
        key
        for (key, leaf), (_, own) in zip(*flat, strict=True)
        if leaf.dtype == own.dtype and np.array_equal(data(leaf), data(own))
    ]
    return [key for key in same if "seen" not in jax.tree_util.keystr(key)]


def without_kept(result: Any, target: Any) -> list[Any]:
    """The leaves of the result that came from the checkpoint."""
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(target), strict=True)
    return [x for x, own in pairs if x.dtype != own.dtype or not np.array_equal(data(x), data(own))]


def made_state(make: Callable[[], Any]) -> Any:
    made = make()
    return made[1] if isinstance(made, tuple) and isinstance(made[0], cs.Layout) else made


def side(make: Callable[[], Any]) -> Any:
    """What `breaking` is given: the layout where there is one, else the state, without values."""
    made = make()
    if isinstance(made, tuple) and isinstance(made[0], cs.Layout):
        return made[0]
    return jax.eval_shape(lambda: made)


def found_broken(change: Change) -> tuple[cs.Breaking, str, str]:
    """What is said of a change: the rules that it breaks of its own accord, and all that do not pass."""
    told = cs.breaking(side(change.old), side(change.new))
    own = "".join(letter for letter, rule in RULES.items() if told[rule].faults)
    every = "".join(letter for letter, rule in RULES.items() if not told[rule].passes)
    return told, own, every


def fault(change: Change) -> str:
    """What is wrong with what is said of a change; nothing where it is right."""
    _, own, every = found_broken(change)
    with tempfile.TemporaryDirectory() as folder:
        on_disk = broken_on_disk(change, Path(folder))
    wrong = [] if own == change.broken else [f"breaks {own or 'nothing'}, not {change.broken}"]
    if every != on_disk:
        wrong.append(f"says {every or 'nothing'}, on disk {on_disk or 'nothing'}")
    return ", ".join(wrong)


def main(chosen: Sequence[str]) -> int:
    """Tries all, and prints those of which something else is said."""
    logging.disable(logging.INFO)
    wrong = 0
    for group in (PLANTED, HARMLESS):
        for name, change in group.items():
            if chosen and name not in chosen:
                continue
            told = fault(change)
            wrong += bool(told)
            print(f"{'right' if not told else 'WRONG'}  {name:40} {told or change.broken or '-'}")
            if told and chosen:
                print(found_broken(change)[0])
    print(f"{len(PLANTED)} planted, {len(HARMLESS)} harmless, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

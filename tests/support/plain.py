"""What every value of the versions must be, in plain NumPy: no lens, only names and arrays.

A state is two dicts by name: what all versions have, and what is private to Linen or to NNX. Numbers are float64 here, and each
is exact as the float32 that it stands for.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from support import versions
from support.branches import DEPTH, EMBED, FEATURES, VOCAB, batch

Values = Mapping[str, np.ndarray[Any, Any]]
LINEN = ("scanned", "unrolled")
_KEY = f"key {versions.IMPL}"
_DEFAULTS = {  # by the version whose layout declares them
    "scanned": {"seen": np.int32(versions.SEEN)},
    "unrolled": {"seen": np.int32(versions.OTHER_SEEN)},
    "listed": {_KEY: np.uint32([0, versions.FRESH] * 2), "draws": np.uint32(0)},
    "stacked": {_KEY: np.uint32([0, versions.OTHER_FRESH] * 2), "draws": np.uint32(0)},
}


@dataclasses.dataclass(frozen=True)
class Plain:
    """The values of a state.

    Attributes:
        shared: Weights, momenta and counters.
        private: What Linen has seen in each layer, or the key and the count of each layer's stream in NNX.
    """

    shared: Values
    private: Values

    @property
    def step(self) -> int:
        """How many steps have been trained."""
        return int(self.shared["step"])


# --- What actions do  ---


def trained(state: Plain) -> Plain:
    """A step of SGD with momentum, by the formulas of the gradients."""
    tokens, x, targets = (each.astype(np.float64) for each in batch(state.step))
    made = {"step": state.shared["step"] + 1, "count": state.shared["count"] + 1}
    private = dict(state.private)
    rate = 0.25 / (1 + int(state.shared["count"]) % 2)
    gradients = {"embed": (tokens[:, None] == np.arange(VOCAB)).T @ targets}
    for i in range(DEPTH):
        rolled = np.roll(x, i, -1)
        gradients |= {
            f"{i}/bias": targets.sum(0),
            f"{i}/wi": rolled.T @ targets,
            f"{i}/mix": rolled[:, ::-1].T @ targets,
        }
        for name, more in (("seen", np.int32(rolled[0, 0])), ("draws", np.uint32(1))):
            if f"{i}/{name}" in private:
                private[f"{i}/{name}"] = private[f"{i}/{name}"] + more
    for name, gradient in gradients.items():
        made[f"trace/{name}"] = gradient + 0.5 * state.shared[f"trace/{name}"]
        made[f"params/{name}"] = state.shared[f"params/{name}"] - rate * made[f"trace/{name}"]
    return Plain(made, private)


def carried(route: Sequence[str]) -> bool:
    """Whether private values get from the first version on a route to the last: they do within one framework."""
    return len({name in LINEN for name in route}) == 1


def converted(state: Plain, route: Sequence[str], own: Values | None) -> Plain:
    """What a lens along a route makes of a state; ``own`` is what the result keeps of its own where nothing is carried."""
    private = state.private
    for before, after in itertools.pairwise(route):
        private = private if carried((before, after)) else defaults(after)
    return Plain(state.shared, private if own is None or carried(route) else own)


def defaults(version: str) -> Values:
    """The private values that the layout of a version declares."""
    return {
        f"{i}/{name}": value for i in range(DEPTH) for name, value in _DEFAULTS[version].items()
    }


# --- What real trees hold  ---


def read(version: str, tree: Any) -> Plain:
    """The values of a version's tree, by plain indexing."""
    fields = ("step", "params", "opt_state", "seen")
    pure = (
        {name: getattr(tree, name) for name in fields}
        if version in LINEN
        else nnx.to_pure_dict(tree)
    )
    host = jax.tree.map(_host, pure)
    if version in LINEN:
        trace, schedule = host["opt_state"] if version == "scanned" else host["opt_state"][1]
        step, params, momenta, count = host["step"], host["params"], trace.trace, schedule.count
    else:
        optimizer, params = host["optimizer"], host["model"]
        trace, schedule = (
            optimizer["opt_state"] if version == "listed" else optimizer["opt_state"][1]
        ).values()
        step, momenta, count = np.int32(optimizer["step"]), trace["trace"], schedule["count"]
    shared = {"step": step, "count": count}
    for part, root in (("params", params), ("trace", momenta)):
        shared[f"{part}/embed"] = root[_TABLES[version]]["embedding"]
        for i in range(DEPTH):
            shared |= {
                f"{part}/{i}/{name}": value for name, value in _layer(version, root, i).items()
            }
    private = {
        f"{i}/{name}": value
        for i in range(DEPTH)
        for name, value in _private(version, host, i).items()
    }
    return Plain(shared, private)


def _host(leaf: Any) -> Any:
    """A NumPy array; of keys, what tells them, by the name of their implementation."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return {f"key {jax.random.key_impl(leaf)}": np.asarray(jax.random.key_data(leaf))}
    return np.asarray(leaf)


_TABLES = {"scanned": "Embed_0", "unrolled": "embed", "listed": "table", "stacked": "embed"}


def _layer(version: str, root: Any, i: int) -> dict[str, Any]:
    """The weights of a layer, or their momenta."""
    if version == "scanned":
        wi, mix = root["layers"]["Dense_0"], root["layers"]["Dense_1"]
        return {"wi": wi["kernel"][:, i], "bias": wi["bias"][:, i], "mix": mix["kernel"][:, i]}
    if version == "stacked":
        wi, mix = root["layers"]["wi"], root["layers"]["mix"]
        return {"wi": wi["kernel"][i], "bias": wi["bias"][i], "mix": mix["kernel"][i].T}
    layer = root[f"layers_{i}"] if version == "unrolled" else root["layers"][i]
    wi = layer["wi" if version == "unrolled" else "up"]
    return {
        "wi": wi["kernel"],
        "bias": wi["bias"],
        "mix": layer["mix"]["kernel"].reshape(FEATURES, EMBED),
    }


def _private(version: str, host: Any, i: int) -> dict[str, Any]:
    """What a layer has for itself."""
    if version == "scanned":
        return {"seen": host["seen"]["layers"]["first"][i]}
    if version == "unrolled":
        return {"seen": host["seen"][f"layers_{i}"]["first"]}
    layers = host["model"]["layers"]
    stream = layers["drop"]["rngs"] if version == "stacked" else layers[i]["dropout"]["rngs"]
    ((impl, data),) = stream["key"].items()
    found = {impl: data, "draws": stream["count"]}
    return {name: value[i] for name, value in found.items()} if version == "stacked" else found


def assert_same(found: Plain, expected: Plain) -> None:
    """Raises unless all values are equal to the last bit."""
    for part, goal in ((found.shared, expected.shared), (found.private, expected.private)):
        assert part.keys() == goal.keys()
        wrong = [name for name, value in part.items() if not _same(value, goal[name])]
        assert not wrong, f"not as in the plain model: {', '.join(wrong)}"


def _same(found: np.ndarray[Any, Any], goal: np.ndarray[Any, Any]) -> bool:
    exact = np.asarray(goal, np.float32 if goal.dtype == np.float64 else None)
    assert np.array_equal(exact, goal), "the plain model has left what float32 tells exactly"
    return (
        found.dtype == exact.dtype
        and found.shape == exact.shape
        and found.tobytes() == exact.tobytes()
    )

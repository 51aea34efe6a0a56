"""Every optimizer and wrapper of the installed optax, found by inspection, with arguments to make one of each.

``python tests/support/optimizers.py`` prints what the state of each is made of.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema._frameworks.degrees import Degree, Degrees, NoDegree

SIZES = {"vocab": 7, "embed": 4, "mlp": 5}
DEPTH = 2


class Layer(cs.Schema):
    kernel: Float32[Array, "embed mlp"]
    scale: Float32[Array, " embed"]


class LinenSchema(cs.Schema):
    """The params as Linen names them, so that their leaves are in the order of NNX."""

    embed: Float32[Array, "vocab embed"] = cs.field(key="embed/embedding")
    layers: list[Layer] = cs.field(key="layers_{i}", length="depth")


class NnxSchema(cs.Schema):
    """The params as NNX names them."""

    embed: Float32[Array, "vocab embed"]
    layers: list[Layer] = cs.field(length="depth")


def params(sizes: dict[str, int]) -> dict[str, Any]:
    """Linen's params, each leaf with values of its own."""

    def leaf(seed: int, *names: str) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), [sizes[name] for name in names])

    layers = {
        f"layers_{i}": {"kernel": leaf(2 * i, "embed", "mlp"), "scale": leaf(2 * i + 1, "embed")}
        for i in range(DEPTH)
    }
    return {"embed": {"embedding": leaf(9, "vocab", "embed")}, **layers}


class NnxLayer(nnx.Module):
    """Two params."""

    def __init__(self, values: Any) -> None:
        """Takes the values of Linen's layer."""
        self.kernel = nnx.Param(values["kernel"])
        self.scale = nnx.Param(values["scale"])


class NnxModel(nnx.Module):
    """A list of layers after an embedding."""

    def __init__(self, values: Any) -> None:
        """Takes the values of Linen's params."""
        self.embed = nnx.Param(values["embed"]["embedding"])
        self.layers = nnx.List([NnxLayer(values[f"layers_{i}"]) for i in range(DEPTH)])


class NnxTrainState(nnx.Module):
    """A model and its optimizer."""

    def __init__(self, tx: Any, sizes: dict[str, int]) -> None:
        """Makes both from `params`."""
        self.model = NnxModel(params(sizes))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)


def linen_state(tx: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """A train state in dicts, as ``tx.init`` makes it."""
    values = params(sizes)
    return {"step": jnp.int32(0), "params": values, "opt_state": tx.init(values)}


def matrices(tree: Any) -> Any:
    """A mask that takes the matrices, and hides the rest."""
    return jax.tree.map(lambda x: x.ndim == 2, tree)


def labels(tree: Any) -> Any:
    """A label for matrices, another for the rest."""
    return jax.tree.map(lambda x: "matrix" if x.ndim == 2 else "other", tree)


ARGUMENTS: dict[str, Any] = {
    "adv_optimizer": optax.sgd(0.1),
    "clipping": 0.1,
    "decay": 0.9,
    "eta": 0.1,
    "f": lambda updates, _: updates,
    "freeze_mask": matrices,
    "gamma": 0.5,
    "key": jax.random.key(0),
    "l2_norm_clip": 1.0,
    "learning_rate": 1e-2,
    "mask": matrices,
    "max_backtracking_steps": 5,
    "max_consecutive_errors": 3,
    "max_delta": 1.0,
    "max_linesearch_steps": 5,
    "max_norm": 1.0,
    "measure": lambda updates, *_, **__: optax.tree.norm(updates),
    "measure_name": "norm",
    "measures": {"norm": lambda updates, *_, **__: optax.tree.norm(updates)},
    "noise_multiplier": 1.0,
    "param_labels": labels,
    "seed": 0,
    "should_transform_fn": lambda *_, **__: True,
    "slow_step_size": 0.5,
    "step_size": 0.1,
    "step_size_fn": lambda count: 0.1,
    "sync_period": 2,
    "threshold": 1.0,
    "transforms": {"matrix": optax.adam(1e-2), "other": optax.sgd(0.1, momentum=0.9)},
    **dict.fromkeys(
        ("base_optimizer", "fast_optimizer", "inner", "optimizer", "tx"), optax.adam(1e-2)
    ),
}
VARIADIC: dict[str, Callable[[], Any]] = {
    "chain": lambda: optax.chain(optax.clip(1.0), optax.adamw(1e-2)),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(1.0)), ("adam", optax.adam(1e-2))),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(
        learning_rate=1e-2
    ),
}


def _public(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in sorted(vars(module)):
        function = getattr(module, name)
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        says = inspect.signature(function).return_annotation
        if "GradientTransformation" in str(says) or (
            says is inspect.Signature.empty and _makes_one(function)
        ):
            yield name, function


def _makes_one(function: Callable[..., Any]) -> bool:
    """Whether a function that does not say what it returns returns a transformation."""
    needed = required(function)
    if not ARGUMENTS.keys() >= set(needed):
        return False
    try:
        return hasattr(function(**{argument: ARGUMENTS[argument] for argument in needed}), "init")
    except TypeError:
        return False


@functools.cache
def found() -> dict[str, Callable[..., Any]]:
    """Every public function of optax and optax.contrib that returns a transformation."""
    return {
        name: function for module in (optax, optax.contrib) for name, function in _public(module)
    }


def required(function: Callable[..., Any]) -> list[str]:
    """The arguments without which it makes nothing."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters
    needed = [
        p.name
        for p in parameters.values()
        if p.name == "key" or (p.default is p.empty and p.kind not in kinds)
    ]
    return [
        name for name in needed if name != "seed" or "key" not in parameters
    ]  # the older name of the same


def make(name: str, **given: Any) -> Any:
    """The transformation of that name.

    Raises:
        KeyError: It needs an argument that nobody has thought of yet.
    """
    if name in VARIADIC:
        return VARIADIC[name]()
    function = found()[name]
    return function(**{argument: ARGUMENTS[argument] for argument in required(function)} | given)


# What makes another state of larger params has to be told their sizes: here some that make a difference.
SIZED = {
    "adafactor": {"vocab": 130, "embed": 129, "mlp": 131},
    "galore": {"vocab": 130, "embed": 129, "mlp": 131},
    "scale_by_factored_rms": {"vocab": 130, "embed": 129, "mlp": 131},
    "scale_by_galore": {"vocab": 130, "embed": 129, "mlp": 131},
}
EXCEPTIONS = {
    "flatten": "its state is one vector of all params, in an order that a layout may change",
}


@functools.cache
def lens(name: str, wrapped: str = "alone") -> cs.Lens:
    """The lens between the two layouts of the train state."""
    tx = WRAPPERS[wrapped](name)
    sizes = ({**SIZED[name], "depth": DEPTH},) if name in SIZED else ()
    return cs.derive(
        cs.linen.BareTrainState[(LinenSchema, tx, *sizes)],
        cs.nnx.TrainState[(NnxSchema, tx, *sizes)],
    )


WRAPPERS: dict[str, Callable[[str], Any]] = {
    "alone": make,
    "after clipping": lambda name: optax.chain(optax.clip_by_global_norm(1.0), make(name)),
    "with a schedule": lambda name: make(name, learning_rate=optax.linear_schedule(1e-2, 0.0, 10)),
    "MultiSteps": lambda name: optax.MultiSteps(make(name), every_k_schedule=2),
    "masked": lambda name: optax.masked(make(name), matrices),
    "partition": lambda name: optax.partition(
        {"matrix": make(name), "other": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "apply_if_finite": lambda name: optax.apply_if_finite(make(name), 3),
    "inject_hyperparams": lambda name: optax.inject_hyperparams(found()[name])(learning_rate=1e-2),
    "named_chain": lambda name: optax.named_chain(("clip", optax.clip(1.0)), ("inner", make(name))),
}


def takes_a_schedule(name: str) -> bool:
    """Whether its learning rate may be a function of the count, as its signature says."""
    says = str(inspect.signature(found()[name]).parameters["learning_rate"].annotation)
    return "Callable" in says or "Schedule" in says


def applicable(name: str, wrapped: str) -> bool:
    """Whether a wrapper goes around it: schedules and injected hyperparameters need a learning rate."""
    if wrapped not in ("with a schedule", "inject_hyperparams"):
        return True
    if required(found()[name]) != ["learning_rate"]:
        return False
    if wrapped == "with a schedule":
        return takes_a_schedule(name)
    return name != "galore"  # whose `init` needs the number itself


def degrees(name: str) -> str:
    """The degrees of what an optimizer keeps for params, as `docs/design.md` has them: ``mu 1, nu 2``; ``-`` for none."""
    layout = lens(name).source
    found: dict[str, list[Degree | NoDegree]] = {}
    for row in layout.rows:
        if row.mirrors:
            found.setdefault(row.path[(row.body or 0) - 1], []).append(Degrees(layout).of(row))
    return ", ".join(f"{field} {_spelled(several)}" for field, several in found.items())


def _spelled(several: list[Degree | NoDegree]) -> str:
    """What is said of one field; the placeholders that stand beside another's factors say nothing."""
    if not all(isinstance(each, Degree) for each in several):
        return "-"
    pairs = {(each.gradient, each.param) for each in several if isinstance(each, Degree)}
    pairs = pairs - {(0, 0)} or pairs
    return " or ".join(
        f"{gradient} and {param}" if param else f"{gradient}" for gradient, param in sorted(pairs)
    )


def main() -> None:
    """Prints a line for every optimizer: how many leaves of each kind its state has, and what it needs."""
    print(f"{'optimizer':<36}{'params':>7}{'mirror':>7}{'own':>5}{'holes':>6}  degrees; remarks")
    for name in sorted(found()):
        if name in EXCEPTIONS:
            print(f"{name:<36}{'':25}  not carried: {EXCEPTIONS[name]}")
            continue
        layout = lens(name).source
        state = [row for row in layout.rows if row.path[0] == "opt_state"]
        weights = {row.path[1:]: row for row in layout.rows if row.path[0] == "params"}
        mirrors = [row for row in state if row.body is not None]
        shaped = [
            row
            for row in mirrors
            if getattr(weights.get(row.path[row.body :]), "dims", None) == row.dims
        ]
        holes = sum(node.type is optax.MaskedNode for node in layout.nodes)
        remark = "; ".join(filter(None, [degrees(name), "sizes must be given" * (name in SIZED)]))
        counts = f"{len(weights):>7}{len(shaped):>7}{len(state) - len(shaped):>5}{holes:>6}"
        print(f"{name:<36}{counts}  {remark}".rstrip())


if __name__ == "__main__":
    main()

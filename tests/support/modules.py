"""Random module trees: from one drawn tree a real Linen module, a real NNX module, and the schemas of both."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from hypothesis import strategies as st
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema.testing._meshes import Placer
from ckpt_schema.testing._values import hostile

WIDTH = 3
_NAMES = ("value", "key", "params", "step", "wi", "model", "Dense_0", "mu")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One of Flax's layers, or variables of the module's own.

    Attributes:
        kind: ``dense``, ``norm``, ``batch_norm``, ``scale`` (a param), ``stat`` (a custom collection) or ``dropout``.
    """

    kind: str


@dataclasses.dataclass(frozen=True)
class Block:
    """A module of layers, by attribute name."""

    layers: tuple[tuple[str, Layer | Block | Repeat], ...]


@dataclasses.dataclass(frozen=True)
class Repeat:
    """A block that is repeated.

    Attributes:
        block: The block.
        times: How often.
        axis: The axis that Linen stacks it on, or None where it is unrolled.
        listed: Whether NNX has a list of it, and not one stack.
    """

    block: Block
    times: int
    axis: int | None
    listed: bool


@st.composite
def blocks(draw: st.DrawFn, depth: int = 0, *, repeated: bool = False) -> Block:
    """A tree of modules up to three deep, with one level of repetition at most on any way down."""
    names = draw(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3, unique=True))
    kinds = ["dense", "norm", "batch_norm", "scale", "stat", "dropout"]
    layers: list[tuple[str, Layer | Block | Repeat]] = []
    for at, name in enumerate(names):
        what = draw(st.integers(0, 5 if depth < 2 else 3))
        if at == 0 and not depth:
            layers.append((name, Layer("dense")))  # an optimizer needs a param
        elif what <= 3:
            layers.append((name, Layer(draw(st.sampled_from(kinds)))))
        elif what == 4 or repeated:
            layers.append((name, draw(blocks(depth + 1, repeated=repeated))))
        else:
            block = draw(blocks(depth + 1, repeated=True))
            axis = draw(st.sampled_from((None, 0, 1)))
            layers.append((name, Repeat(block, draw(st.integers(1, 3)), axis, draw(st.booleans()))))
    return Block(tuple(layers))


# --- Linen  ---


class LinenBlock(nn.Module):
    """The block in Linen; what is repeated is called by its name and number."""

    block: Block

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """The layers, one after the other."""
        for name, layer in self.block.layers:
            x = self._applied(name, layer, x)
        return x, None

    def _applied(self, name: str, layer: Layer | Block | Repeat, x: jax.Array) -> jax.Array:
        if isinstance(layer, Block):
            return LinenBlock(layer, name=name)(x)[0]
        if isinstance(layer, Repeat):
            return self._repeated(name, layer, x)
        if layer.kind == "dense":
            return nn.Dense(WIDTH, name=name)(x)
        if layer.kind == "norm":
            return nn.LayerNorm(name=name)(x)
        if layer.kind == "batch_norm":
            return nn.BatchNorm(use_running_average=False, name=name)(x)
        if layer.kind == "scale":
            return x * self.param(name, nn.initializers.ones, (WIDTH,))
        if layer.kind == "stat":
            return x + self.variable("stats", name, jnp.zeros, (WIDTH,)).value
        return x  # dropout has no state in Linen

    def _repeated(self, name: str, layer: Repeat, x: jax.Array) -> jax.Array:
        if layer.axis is None:
            for number in range(layer.times):
                x = LinenBlock(layer.block, name=f"{name}_{number}")(x)[0]
            return x
        axes = dict.fromkeys(("params", "batch_stats", "stats"), layer.axis)
        stack = nn.scan(
            LinenBlock, variable_axes=axes, split_rngs={"params": True}, length=layer.times
        )
        return stack(layer.block, name=name)(x, None)[0]


def linen_state(block: Block, tx: optax.GradientTransformation, *, bare: bool) -> dict[str, Any]:
    """The abstract train state of the block in Linen."""
    variables = dict(
        jax.eval_shape(LinenBlock(block).init, jax.random.key(0), jnp.ones((1, WIDTH)))
    )
    params = variables.pop("params")
    params = params if bare else {"params": params}
    step = jax.ShapeDtypeStruct((), "int32")
    return {
        "step": step,
        "params": params,
        "opt_state": jax.eval_shape(tx.init, params),
        **variables,
    }


# --- NNX  ---


class Stat(nnx.Variable[Any]):
    """What is neither param nor batch statistic."""


class NnxBlock(nnx.Module):
    """The block in NNX."""

    def __init__(self, block: Block, rngs: nnx.Rngs) -> None:
        """Makes the layers."""
        for name, layer in block.layers:
            setattr(self, name, _made(layer, rngs))


def _made(layer: Layer | Block | Repeat, rngs: nnx.Rngs) -> Any:
    if isinstance(layer, Block):
        return NnxBlock(layer, rngs)
    if isinstance(layer, Repeat):
        if layer.listed:
            return nnx.List([NnxBlock(layer.block, rngs) for _ in range(layer.times)])
        return nnx.split_rngs(splits=layer.times)(
            nnx.vmap(lambda split: NnxBlock(layer.block, split))
        )(rngs)
    makers: dict[str, Callable[[], Any]] = {
        "dense": lambda: nnx.Linear(WIDTH, WIDTH, rngs=rngs),
        "norm": lambda: nnx.LayerNorm(WIDTH, rngs=rngs),
        "batch_norm": lambda: nnx.BatchNorm(WIDTH, rngs=rngs),
        "scale": lambda: nnx.Param(jnp.ones(WIDTH)),
        "stat": lambda: Stat(jnp.zeros(WIDTH)),
        "dropout": lambda: nnx.Dropout(0.5, rngs=rngs),
    }
    return makers[layer.kind]()


class Training(nnx.Module):
    """The block and its optimizer."""

    def __init__(self, block: Block, tx: optax.GradientTransformation) -> None:
        """Makes both."""
        self.model = NnxBlock(block, nnx.Rngs(0, dropout=1))
        self.optimizer = nnx.Optimizer(self.model, tx, wrt=nnx.Param)


def nnx_state(block: Block, tx: optax.GradientTransformation) -> Any:
    """The abstract train state of the block in NNX."""
    return nnx.state(nnx.eval_shape(lambda: Training(block, tx)))


# --- schemas  ---


class _Dense(cs.Schema):
    kernel: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


class _Norm(cs.Schema):
    scale: Float32[Array, " width"]
    bias: Float32[Array, " width"]


class _BatchNorm(_Norm):
    mean: Float32[Array, " width"] = cs.field(collection="batch_stats", type=nnx.BatchStat)
    var: Float32[Array, " width"] = cs.field(collection="batch_stats", type=nnx.BatchStat)


def schema(block: Block, *, linen: bool, at: str = "n") -> type[cs.Schema]:
    """The layout of the block on one side."""
    annotations: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for name, layer in block.layers:
        told = _declared(name, layer, linen, f"{at}_{name}")
        if told is not None:
            annotations[name], fields[name] = told
    body = {"__annotations__": annotations, **fields}
    return types.new_class(
        "Drawn", (cs.Schema,), exec_body=lambda namespace: namespace.update(body)
    )


def _declared(
    name: str, layer: Layer | Block | Repeat, linen: bool, at: str
) -> tuple[Any, Any] | None:
    if isinstance(layer, Block):
        return schema(layer, linen=linen, at=at), cs.field()
    if isinstance(layer, Repeat):
        inner = schema(layer.block, linen=linen, at=at)
        if linen and layer.axis is None:
            return list[inner], cs.field(key=f"{name}_{{i}}", length=at)  # type: ignore[valid-type]
        if not linen and layer.listed:
            return list[inner], cs.field(length=at)  # type: ignore[valid-type]
        return inner, cs.field(scan=at, axis=layer.axis if linen else 0)
    if layer.kind == "dropout":
        stream = cs.field(key=f"{name}/rngs", default=cs.fresh_key(0), tag="dropout")
        return None if linen else (cs.Stream["fry"], stream)
    vector = Float32[Array, " width"]
    layers: dict[str, tuple[Any, Any]] = {
        "dense": (_Dense, cs.field()),
        "norm": (_Norm, cs.field()),
        "batch_norm": (_BatchNorm, cs.field()),
        "scale": (vector, cs.field()),
        "stat": (vector, cs.field(collection="stats", type=Stat)),
    }
    return layers[layer.kind]


def sizes(block: Block, at: str = "n") -> dict[str, int]:
    """How often each of its repeats is repeated, by the name that `schema` gives it."""
    found: dict[str, int] = {}
    for name, layer in block.layers:
        if isinstance(layer, Repeat):
            found |= {f"{at}_{name}": layer.times} | sizes(layer.block, f"{at}_{name}")
        elif isinstance(layer, Block):
            found |= sizes(layer, f"{at}_{name}")
    return found


# --- optimizers  ---


def _kernels(params: Any) -> Any:
    """A mask that means the same for layers in a stack as for layers in a list."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "kernel" in jax.tree_util.keystr(path), params
    )


def _labels(params: Any) -> Any:
    return jax.tree.map(lambda hit: "kernels" if hit else "others", _kernels(params))


_PLAIN: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "clip": lambda: optax.clip_by_global_norm(1.0),
    "lion": lambda: optax.lion(1e-3, mu_dtype="bfloat16"),
    "rms": lambda: optax.scale_by_rms(),
    "noise": lambda: optax.add_noise(0.1, 0.5, jax.random.key(1)),
    "ema": lambda: optax.ema(0.9),
}
_WRAPPED: dict[str, Callable[[Any], Any]] = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, every_k_schedule=2),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, _kernels),
    "partition": lambda tx: optax.partition(
        {"kernels": tx, "others": optax.sgd(0.1, momentum=0.9)}, _labels
    ),
    "named": lambda tx: optax.named_chain(("inner", tx), ("rms", optax.scale_by_rms())),
    "chained": lambda tx: optax.chain(optax.clip(1.0), tx),
}


@dataclasses.dataclass(frozen=True)
class Composed:
    """A chain of transformations, wrapped some times.

    Attributes:
        parts: The names of the transformations.
        wrappers: The names of what is around them, innermost first.
    """

    parts: tuple[str, ...]
    wrappers: tuple[str, ...]

    def __call__(self) -> optax.GradientTransformation:
        """The transformation."""
        tx = optax.chain(*(_PLAIN[part]() for part in self.parts))
        for wrapper in self.wrappers:
            tx = _WRAPPED[wrapper](tx)
        return tx


composed = st.builds(
    Composed,
    st.lists(st.sampled_from(list(_PLAIN)), min_size=1, max_size=3).map(tuple),
    st.lists(st.sampled_from(list(_WRAPPED)), max_size=2).map(tuple),
)


def filled(abstract: Any, rng: np.random.Generator, place: Placer) -> Any:
    """A tree of the same structure whose leaves hold the worst bits there are; integers fit every dtype on the way."""

    def leaf(like: jax.ShapeDtypeStruct) -> Any:
        bounds = (0, 2**31 - 1) if jnp.issubdtype(like.dtype, jnp.integer) else None
        return place(hostile(rng, str(like.dtype), like.shape, bounds))

    return jax.tree.map(leaf, abstract)

"""User code as the type checkers must take it, with the types that they must reveal.

Nothing here is run: ``mypy`` and ``pyright``, both strict, read it. Each ``assert_type`` is an
expected revealed type, and each ``ignore`` a mistake of a user's that must be found: both checkers
are told to report an ``ignore`` that nothing needs.
"""

from __future__ import annotations

from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws

# --- Declarations, as users write them  ---


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]


class Dense(cs.Schema):
    kernel: Float32[Array, "in=embed out=embed"]
    bias: Float32[Array, " embed"] | None = cs.field(optional=True)


class Block(cs.Schema):
    norm: Norm = cs.field(key="LayerNorm_0")
    qkv: Float32[Array, "embed 3*heads*head_dim"]
    mean: Float32[Array, " embed"] = cs.field(collection="batch_stats", type=nnx.BatchStat)


class Stacked(cs.Schema):
    embed: Float32[Array, "vocab embed"] = cs.field(default=0.0)
    layers: Block = cs.field(scan="depth", axis=1)


class NnxBlock(Block):
    dense: Dense
    dropout: cs.Stream["urbg"] = cs.field(default=cs.fresh_key(0))
    key: cs.Key["fry"] = cs.field(default=cs.fresh_key(1))
    counts: Int32[Array, "2 heads"]


class Listed(cs.Schema):
    embed: Float32[Array, "vocab embed"]
    layers: list[NnxBlock] = cs.field(length="depth")
    named: list[Norm] = cs.field(key="norm_{i}", length=3)


# --- What the library makes of them  ---

tx = optax.adamw(1e-3)
linen = cs.linen.TrainState[Stacked, tx]
training = cs.nnx.TrainState[Listed, tx]
assert_type(linen, type[cs.Schema])
assert_type(training, type[cs.Schema])
assert_type(cs.layout(Stacked), cs.Layout)
assert_type(cs.infer({"a": jnp.zeros(3)}), cs.Layout)

lens = cs.derive(linen, training, rules=[cs.rename("wi", "up")], dims={"heads": 4})
assert_type(lens, cs.Lens)
assert_type(cs.derive(Stacked, Listed), cs.Lens)
assert_type(cs.derive(Stacked, cs.infer({}), rules=(cs.private("head", 0.0),)), cs.Lens)
assert_type(lens.bind(heads=4), cs.Lens)
assert_type(lens >> ~lens, cs.Lens)
assert_type(lens.get({"step": 0}), Any)
assert_type(lens.put({"step": 0}, onto={"step": 1}), Any)


class Run(cs.Schema):
    step: Int32[Array, ""] = cs.field(default=0)
    params: Stacked = cs.field(key="params/params")
    ema_params: Stacked = cs.field(optional=True)
    opt_state: cs.OptState = cs.optimizer(tx, of="params")
    dropout_rng: cs.Key["fry"] = cs.field(default=cs.fresh_key(0))


class Training(cs.nnx.State):
    params: Listed = cs.field(key="net")
    opt_state: cs.OptState = cs.optimizer(tx, key="opt/opt_state", wrt=nnx.Param)


def train_step(state: Run, x: Float[Array, "batch embed"]) -> Run:
    """A step of training, its state annotated with its schema."""
    params, optimizer = state["params"], state.opt_state
    updates, optimizer = tx.update(params, optimizer, params)
    params = optax.apply_updates(params, updates)
    trained: Run = state.replace(params=params, opt_state=optimizer)
    return trained


def is_run(tree: object) -> bool:
    return isinstance(tree, Run)


assert_type(cs.layout(Run), cs.Layout)
assert_type(cs.derive(Run, Training), cs.Lens)
assert_type(cs.abstract(Run, {"embed": 4}, None, {"embed": "fsdp"}), Any)
report = cs.check(Stacked, {"embed": jnp.zeros((2, 3))})
assert_type(report, cs.Report)
assert_type(report.mismatches, tuple[cs.Mismatch, ...])
cs.assert_conforms(linen, {"step": 0})
cs.assert_trees_identical({"a": 1}, {"a": 1})


def restored(model: nnx.Module) -> nnx.Module:
    """A target keeps its type."""
    return cs.orbax.restore("run/1000", model, lens)


def step(state: Listed) -> Listed:
    """What is annotated with a schema is used as any tree is."""
    assert_type(state["layers"], Any)
    losses: dict[str, jax.Array] = jax.tree.map(jnp.sum, state)
    del losses
    return state


def any_float(x: Float[Array, "a b"]) -> Float[Array, "b a"]:
    """Jaxtyping's own types beside ours."""
    return x.T


class TestListed(LensLaws):
    """A test of each law."""

    lens = lens


# --- Mistakes that both checkers must find  ---

cs.derive(Stacked)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
cs.derive({"embed": 1}, Listed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
cs.derive(Norm, Norm, rules=["wi"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
cs.rename("wi", 3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
cs.check(Stacked)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
cs.layout(dict)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
cs.field(keys="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
lens.gets({"a": 1})  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]

"""States of MaxText's shapes, run in NNX and saved as Linen has them: `python tests/maxtext_states.py` runs all 24.

{scanned, unrolled} x {adamw, muon, wrapped} x {plain, blocks, lora, fp8}, dropout on. A run is saved in Linen's layout and
restored into a new one, in one line or with what the error says to paste; both go on with losses equal to the last bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from optax import contrib

import ckpt_schema as cs

FORMS = "scanned", "unrolled"
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optax.adamw(1e-2),
    "muon": lambda: contrib.muon(1e-2),
    "wrapped": lambda: optax.apply_if_finite(optax.adamw(1e-2), 5),
}
SHAPES = "plain", "blocks", "lora", "fp8"
LAYERS, EMBED, MLP, RANK, VOCAB = 3, 4, 6, 2, 7
FP8 = "_overwrite_with_gradient"
TOKENS = jnp.arange(10).reshape(2, 5) % VOCAB


# --- as Linen has it  ---


class LinenBlock(nn.Module):
    shape: str

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        y = nn.Dense(MLP, use_bias=False, name="wi")(nn.LayerNorm(name="norm")(x))
        y = nn.Dense(EMBED, name="wo", param_dtype=jnp.bfloat16)(nn.gelu(y))
        if self.shape == "lora":
            down = self.param("lora_a", nn.initializers.normal(), (EMBED, RANK))
            y = y + x @ down @ self.param("lora_b", nn.initializers.zeros, (RANK, EMBED))
        if self.shape == "fp8":
            y = y * self.variable(FP8, "scale", lambda: jnp.ones(1)).value
            self.variable(FP8, "amax", lambda: jnp.zeros(8))
        return x + y, None


class LinenLayer(nn.Module):
    """A layer: one block, or two."""

    shape: str

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        for number in range(2):
            x, _ = LinenBlock(self.shape, name=f"block_{number}")(x)
        return x, None


class LinenModel(nn.Module):
    form: str
    shape: str

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(VOCAB, EMBED, name="embed")(tokens)
        layer = LinenLayer if self.shape == "blocks" else LinenBlock
        if self.form == "scanned":
            axes: Any = {"params": 1, FP8: 0}
            scan = nn.scan(layer, variable_axes=axes, split_rngs={"params": True}, length=LAYERS)
            x, _ = scan(self.shape, name="layers")(x, None)
        else:
            for number in range(LAYERS):
                x, _ = layer(self.shape, name=f"layers_{number}")(x)
        return nn.Dense(VOCAB, name="head")(x)


def linen_state(form: str, optimizer: str, shape: str) -> Any:
    """The abstract train state, as MaxText has written it: all collections below ``params``."""

    def made() -> Any:
        variables = LinenModel(form, shape).init(jax.random.key(0), TOKENS)
        trained = variables["params"] if shape == "fp8" else {"params": variables["params"]}
        states = OPTIMIZERS[optimizer]().init(trained)
        return {"step": jnp.int32(0), "params": dict(variables), "opt_state": states}

    return jax.eval_shape(made)


# --- as NNX runs it  ---


class OverwriteWithGradient(nnx.Variable[jax.Array]):
    """What a pass of fp8 writes."""


class Block(nnx.Module):
    def __init__(self, shape: str, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(EMBED, rngs=rngs)
        self.wi = nnx.Linear(EMBED, MLP, use_bias=False, rngs=rngs)
        self.wo = nnx.Linear(MLP, EMBED, param_dtype=jnp.bfloat16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)
        self.rngs = rngs  # which the layers of an unrolled model share
        self.shape = shape
        if shape == "lora":
            self.lora_a = nnx.LoRAParam(jax.random.normal(rngs.params(), (EMBED, RANK)))
            self.lora_b = nnx.LoRAParam(jnp.zeros((RANK, EMBED)))
        if shape == "fp8":
            self.scale = OverwriteWithGradient(jnp.ones(1))
            self.amax = OverwriteWithGradient(jnp.zeros(8))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.wo(nnx.gelu(self.wi(self.norm(x))))
        if self.shape == "lora":
            y = y + x @ self.lora_a[...] @ self.lora_b[...]
        if self.shape == "fp8":
            self.amax[...] = jnp.roll(self.amax[...], 1).at[0].set(jnp.abs(y).max())
            self.scale[...] = 1 + self.amax[...].max(keepdims=True) / 448
            y = y * self.scale[...]
        return x + self.dropout(y, rngs=self.rngs)


class Layer(nnx.Module):
    def __init__(self, shape: str, rngs: nnx.Rngs) -> None:
        self.block_0, self.block_1 = Block(shape, rngs), Block(shape, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.block_1(self.block_0(x))


AXES = nnx.StateAxes({nnx.Param: 1, nnx.LoRAParam: 1, ...: 0})


class Model(nnx.Module):
    def __init__(self, form: str, shape: str, seed: int) -> None:
        rngs = nnx.Rngs(jax.random.key(seed, impl="unsafe_rbg"))
        self.form = form
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        layer = Layer if shape == "blocks" else Block
        if form == "scanned":
            made = nnx.vmap(lambda rngs: layer(shape, rngs), in_axes=0, out_axes=AXES)
            self.layers = made(rngs.split(LAYERS))
        else:
            for number in range(LAYERS):
                setattr(self, f"layers_{number}", layer(shape, rngs))
        self.head = nnx.Linear(EMBED, VOCAB, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens)
        if self.form == "scanned":
            scan = nnx.scan(
                lambda x, layer: layer(x), in_axes=(nnx.Carry, AXES), out_axes=nnx.Carry
            )
            x = scan(x, self.layers)
        else:
            for number in range(LAYERS):
                x = getattr(self, f"layers_{number}")(x)
        return self.head(x)


class Training(nnx.Module):
    def __init__(self, form: str, optimizer: str, shape: str, seed: int) -> None:
        self.model = Model(form, shape, seed)
        wrt = nnx.LoRAParam if shape == "lora" else nnx.Param
        self.optimizer = nnx.Optimizer(self.model, OPTIMIZERS[optimizer](), wrt=wrt)


def training_of(form: str, optimizer: str, shape: str, seed: int) -> Training:
    """A new run, made in one program."""
    return nnx.jit(lambda: Training(form, optimizer, shape, seed))()


def step_of(shape: str) -> Callable[[Training], jax.Array]:
    """One training step, compiled."""
    trained = nnx.DiffState(0, nnx.LoRAParam if shape == "lora" else nnx.Param)

    def loss_of(model: Model) -> jax.Array:
        logits = model(TOKENS)
        return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS).mean()

    @nnx.jit
    def step(training: Training) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of, argnums=trained)(training.model)
        training.optimizer.update(training.model, gradients)
        return loss

    return step


# --- saved and restored  ---


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one combination: the words that had to be pasted, and whether losses are equal."""

    words: tuple[str, ...]
    equal: bool


def pasted(error: Exception) -> list[Any]:
    """What an error says to paste: what is certain, and the open lines."""
    lines = [line.split("# ")[1] for line in str(error).split("\n") if line.startswith("    # cs.")]
    return [*getattr(error, "rules", ()), *eval(f"[{' '.join(lines)}]", {"cs": cs})]


def settled(call: Callable[[list[Any]], Any], rules: list[Any]) -> Any:
    """What a call gives once the rules of its errors are pasted, which are added to ``rules``."""
    for _ in range(3):
        try:
            return call(rules)
        except cs.DerivationError as error:
            more = pasted(error)
            if not more:
                raise
            rules += more
    return call(rules)


def outcome(form: str, optimizer: str, shape: str, folder: Path, steps: int = 10) -> Outcome:
    """One combination, saved as Linen has it and restored."""
    step = step_of(shape)
    training = training_of(form, optimizer, shape, 0)
    for _ in range(2):
        step(training)
    rules: list[Any] = []
    linen = linen_state(form, optimizer, shape)
    path = folder / "run"
    lens = settled(lambda rules: cs.adapt(linen, training, rules=rules), rules)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), linen)
    written = lens.put(nnx.state(training), onto=zeros)
    cs.orbax.save(path, training, lens, onto=zeros)
    fresh = training_of(form, optimizer, shape, 1)
    fresh = settled(lambda rules: cs.orbax.restore(path, fresh, rules=rules), rules)
    losses = [[float(step(one)) for _ in range(steps)] for one in (training, fresh)]
    read = cs.orbax.restore(path, linen)
    same = jax.tree.map(np.array_equal, read, written)
    return Outcome(tuple(map(str, rules)), losses[0] == losses[1] and all(jax.tree.leaves(same)))


def combinations() -> Iterator[tuple[str, str, str]]:
    """All 24."""
    yield from itertools.product(FORMS, OPTIMIZERS, SHAPES)


def main() -> None:
    """Runs them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="combinations, as scanned/adamw/plain")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = 0
    for one in combinations():
        if given.only and "/".join(one) not in given.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = outcome(*one, Path(folder))
                told = "equal" if found.equal else "DIFFERENT"
                told += f", pasted: {', '.join(found.words)}" if found.words else ", in one line"
            except cs.CkptSchemaError as error:
                told, found = f"REFUSED: {error}", None
        failed += found is None or not found.equal
        print(f"{'/'.join(one)}: {told}", flush=True)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()

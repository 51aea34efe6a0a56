r"""Writes one of the archives ``tests/older/nnx-*.tar.xz`` with the releases that it runs under.

Each was written once, by an environment of old releases that was made so:

    python3.10 -m venv b && b/bin/pip install jax==0.4.25 jaxlib==0.4.25 flax==0.8.3 \
        orbax-checkpoint==0.5.3 optax==0.2.1 "numpy<2" "scipy<1.13"
    python3.11 -m venv d && d/bin/pip install jax==0.4.33 jaxlib==0.4.33 flax==0.9.0 \
        orbax-checkpoint==0.6.4 optax==0.2.3 tensorstore==0.1.64 numpy==1.26.4
    python3.11 -m venv c && c/bin/pip install jax==0.4.38 jaxlib==0.4.38 flax==0.10.4 \
        orbax-checkpoint==0.11.0 optax==0.2.4
    python3.11 -m venv e && e/bin/pip install jax==0.6.2 jaxlib==0.6.2 flax==0.11.0 \
        orbax-checkpoint==0.11.20 optax==0.2.5
    b/bin/python tests/older/write_nnx.py tests/older/nnx-0.8.3.tar.xz

It imports nothing of this package. It trains a small model, saves it in the ways that people did,
and writes beside them what it holds itself, as NumPy sees it: ``values.npz``, by key path.
"""

from __future__ import annotations

import pathlib
import sys
import tarfile
import tempfile

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

try:
    from flax import nnx
except ImportError:
    from flax.experimental import nnx

EMBED, HEADS, VOCAB, LENGTH, DEPTH = 4, 2, 5, 3, 2
ORBAX = tuple(map(int, ocp.__version__.split(".")[:3]))
TOKENS = np.arange(2 * LENGTH).reshape(2, LENGTH) % VOCAB


class Block(nnx.Module):
    """A layer with streams, statistics, and a projection that is called as a Variable's level is."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(EMBED, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=HEADS, in_features=EMBED, decode=False, rngs=rngs
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(self.attention(self.norm(x)))


class Net(nnx.Module):
    """Embeddings, layers in a list, a head."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCAB, EMBED, rngs=rngs)
        self.blocks = listed([Block(rngs) for _ in range(DEPTH)])
        self.head = nnx.Linear(EMBED, VOCAB, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def listed(members):
    """A list as this release of Flax has it in a module."""
    return nnx.List(members) if hasattr(nnx, "List") else members


def optimizer_of(model, tx):
    """An optimizer; until Flax 0.10 it has no ``wrt`` or need not be told."""
    try:
        return nnx.Optimizer(model, tx, wrt=nnx.Param)
    except TypeError:
        return nnx.Optimizer(model, tx)


def loss_of(model):
    """A loss of no meaning."""
    return (model(jnp.asarray(TOKENS)) ** 2).mean()


def trained(rngs):
    """A model and its optimizer, a few steps on."""
    model = Net(rngs)
    optimizer = optimizer_of(model, optax.adam(1e-2))
    model.train()
    for _ in range(3):
        gradients = nnx.grad(loss_of)(model)
        try:
            optimizer.update(gradients)
        except TypeError:
            optimizer.update(model, gradients)
    return model, optimizer


def is_key(leaf):
    """Whether a leaf is a typed key."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def raw(state):
    """The same with keys as their data: Orbax knew no others until 0.11."""
    return jax.tree_util.tree_map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)


def plain(node):
    """Nested dicts of arrays: what people saved who knew that Variables would change."""
    if isinstance(node, (dict, nnx.State)):
        return {key: plain(node[key]) for key in node}
    return node.raw_value if hasattr(node, "raw_value") else node.value


def forms():
    """What is saved, by name, and what the model computes."""
    model, optimizer = trained(nnx.Rngs(0))
    named = Net(nnx.Rngs(params=1, dropout=2))
    state, kept = nnx.state(model), nnx.state(optimizer)
    made = {"pure": raw(plain(state)), "named": raw(nnx.state(named))}
    # Until Flax 0.10 an optimizer held its model.
    made["run"] = raw(kept) if "model" in kept else {"model": raw(state), "optimizer": raw(kept)}
    if ORBAX >= (0, 11, 10):
        made["typed"] = {"model": state}
    model.eval()
    return made, np.asarray(model(jnp.asarray(TOKENS)))


def values(made):
    """What the old release itself holds, by form and key path."""
    held = {}
    for name, tree in made.items():
        flat, _ = jax.tree_util.tree_flatten_with_path(raw(tree))
        for path, leaf in flat:
            keys = [
                str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", None)))) for k in path
            ]
            held["/".join([name, *keys])] = np.asarray(leaf)
    return held


def main():
    """Writes the archive of the first argument."""
    archive = sys.argv[1]
    made, output = forms()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        for name, state in made.items():
            ocp.PyTreeCheckpointer().save(str(out / name), state)
            print(name, sum(f.stat().st_size for f in (out / name).rglob("*") if f.is_file()))
        np.savez(out / "values.npz", output=output, **values(made))
        with tarfile.open(archive, "w:xz") as packed:
            for part in sorted(out.iterdir()):
                packed.add(str(part), part.name)
    print(flax.__version__, pathlib.Path(archive).stat().st_size)


main()

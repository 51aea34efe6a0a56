r"""Writes one of the archives of ``tests/older`` with the releases of Orbax and Flax that it runs under.

Each was written once, by an environment of old releases that was made so:

    python3.10 -m venv a && a/bin/pip install jax==0.4.20 jaxlib==0.4.20 flax==0.7.5 \
        orbax-checkpoint==0.3.5 optax==0.1.7 "numpy<2" "scipy<1.13"
    python3.10 -m venv b && b/bin/pip install jax==0.4.25 jaxlib==0.4.25 flax==0.8.3 \
        orbax-checkpoint==0.5.3 optax==0.2.1 "numpy<2" "scipy<1.13"
    python3.11 -m venv c && c/bin/pip install jax==0.4.38 jaxlib==0.4.38 flax==0.10.4 \
        orbax-checkpoint==0.11.0 optax==0.2.4
    a/bin/python tests/older/write.py tests/older/orbax-0.3.5.tar.xz

It imports nothing of this package, which does not run there. What a release cannot write is left
out and named. The values are those of `tests/older/values.py`, which both sides import.
"""

from __future__ import annotations

import pathlib
import shutil
import sys
import tarfile
import tempfile

import flax
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import serialization
from flax.training import checkpoints, orbax_utils
from flax.training.train_state import TrainState

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from values import STEP, params

try:
    from flax import nnx
except ImportError:
    try:
        from flax.experimental import nnx
    except ImportError:
        nnx = None

JOBS = {}


def job(function):
    """A form to write, by the name of its folder."""
    JOBS[function.__name__] = function
    return function


def state():
    """A train state as people had them."""
    made = jax.tree_util.tree_map(jax.numpy.asarray, params())
    whole = TrainState.create(apply_fn=None, params=made, tx=optax.adam(1e-3))
    mu = jax.tree_util.tree_map(lambda x: x * 2, made)
    nu = jax.tree_util.tree_map(lambda x: x * 3, made)
    adam = whole.opt_state[0]._replace(count=jax.numpy.int32(STEP), mu=mu, nu=nu)
    return whole.replace(step=STEP, opt_state=(adam, *whole.opt_state[1:]))


def legacy(on):
    """Whether `flax.training.checkpoints` writes msgpack, as it did before it knew Orbax."""
    flax.config.update("flax_use_orbax_checkpointing", not on)


@job
def to_bytes(at):
    at.write_bytes(serialization.to_bytes(state()))


@job
def flax_legacy(at):
    legacy(True)
    checkpoints.save_checkpoint(str(at), state(), step=STEP)
    checkpoints.save_checkpoint(str(at), state(), step=STEP + 1, keep=2)


@job
def flax_on_orbax(at):
    legacy(False)
    checkpoints.save_checkpoint(str(at), state(), step=STEP)


@job
def pytree(at):
    ocp.PyTreeCheckpointer().save(str(at), state())


@job
def pytree_files(at):
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)).save(str(at), state())


@job
def pytree_database(at):
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)).save(str(at), state())


@job
def pytree_zarr3(at):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    ocp.Checkpointer(handler).save(str(at), state())


@job
def pytree_zarr3_files(at):
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)
    ocp.Checkpointer(handler).save(str(at), state())


@job
def aggregated(at):
    """As Flax's guide wrote: small leaves, and by this function all, stand in one file."""
    whole = as_dict(state())
    told = orbax_utils.save_args_from_target(whole)
    ocp.PyTreeCheckpointer().save(str(at), whole, save_args=told)


@job
def aggregated_partly(at):
    """The params in one file, all else in arrays."""
    whole = {"params": state().params, "step": np.int32(STEP), "scale": state().opt_state[0].mu}
    told = {
        name: jax.tree_util.tree_map(lambda _: ocp.SaveArgs(aggregate=name == "params"), part)  # noqa: B023
        for name, part in whole.items()
    }
    ocp.PyTreeCheckpointer().save(str(at), whole, save_args=told)


@job
def standard(at):
    saver = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    if hasattr(ocp.args, "StandardSave") if hasattr(ocp, "args") else False:
        saver.save(str(at), args=ocp.args.StandardSave(as_dict(state())))
    else:
        saver.save(str(at), as_dict(state()))


def as_dict(whole):
    return {"step": whole.step, "params": whole.params, "opt_state": whole.opt_state}


@job
def manager(at):
    """The root of a manager as it was before `args`, which is still taken today for one pytree."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    kept = ocp.CheckpointManager(str(at), ocp.PyTreeCheckpointer(), options)
    kept.save(STEP, state())
    kept.close() if hasattr(kept, "close") else None


@job
def manager_of_items(at):
    """The same with several checkpointers, one an item, and a prefix of steps."""
    savers = {"params": ocp.PyTreeCheckpointer(), "rest": ocp.PyTreeCheckpointer()}
    options = ocp.CheckpointManagerOptions(step_prefix="step")
    kept = ocp.CheckpointManager(str(at), savers, options)
    whole = as_dict(state())
    own = whole.pop("params")
    kept.save(STEP, {"params": own, "rest": whole})
    kept.close() if hasattr(kept, "close") else None


@job
def manager_of_args(at):
    """The root of a manager since `args`."""
    kept = ocp.CheckpointManager(str(at))
    kept.save(STEP, args=ocp.args.StandardSave(as_dict(state())))
    kept.wait_until_finished()
    kept.close()


@job
def manager_composite(at):
    """The same with two items, one of which is no pytree."""
    kept = ocp.CheckpointManager(str(at), item_names=("state", "told"))
    told = ocp.args.JsonSave({"run": "old"})
    args = ocp.args.Composite(state=ocp.args.StandardSave(as_dict(state())), told=told)
    kept.save(STEP, args=args)
    kept.wait_until_finished()
    kept.close()


@job
def module(at):
    """The state of an optimizer of NNX, which held its module, as its guide saved it."""
    if nnx is None or not hasattr(nnx, "Optimizer"):
        raise NotImplementedError("no nnx.Optimizer")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(2, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    saved = nnx.state(nnx.Optimizer(Net(nnx.Rngs(0)), optax.adam(1e-3)))
    saved = jax.tree_util.tree_map_with_path(filled, saved)
    ocp.PyTreeCheckpointer().save(str(at), saved)


def filled(path, leaf):
    """A leaf of the module with what the train state has in its place; keys as their raw data."""
    text = jax.tree_util.keystr(path)
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    if leaf.dtype != np.float32:
        return jax.numpy.full(leaf.shape, STEP, leaf.dtype)
    times = 2 if "mu" in text else 3 if "nu" in text else 1
    own = params()["dense"]["kernel" if "kernel" in text else "bias"]
    return jax.numpy.asarray(own, "float32") * times


def written(names, out):
    """Writes the forms of these names into a folder, and says what became of each."""
    for name in names:
        at = out / name
        try:
            JOBS[name](at)
        except Exception as error:  # what a release does not know differs in each
            print(f"{name}: not written: {type(error).__name__}: {str(error)[:150]}")
            continue
        files = [at, *at.rglob("*")]
        print(f"{name}: {sum(f.stat().st_size for f in files if f.is_file())} bytes")
    for left in out.glob("*.orbax-checkpoint-tmp-*"):
        shutil.rmtree(left)


def main():
    """Writes the archive of the first argument; the others are names of forms, all unless given."""
    archive, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        written(names or list(JOBS), out)
        with tarfile.open(archive, "w:xz") as packed:
            for part in sorted(out.iterdir()):
                packed.add(str(part), part.name)


main()

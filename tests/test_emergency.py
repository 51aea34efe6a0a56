"""Managers that are told a state's form when they are made: two processes, each a slice, save through a lens and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as v0
import pytest
from absl import flags
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from support.profiles import sampled

import ckpt_schema as cs
from ckpt_schema.testing._distributed import run_distributed

SLICES = 2


def old() -> Any:
    """What checkpoints look like."""
    return {"params": {"dense": {"kernel": np.arange(32, dtype="float32").reshape(4, 8)}}}


def run(times: float) -> Any:
    """What the run has: no level of params, the axes the other way round, and a stream."""
    kernel = jnp.asarray(old()["params"]["dense"]["kernel"].T) * times
    return {"mlp": {"up": kernel}, "rngs": {"key": jax.random.key(round(times), impl="rbg")}}


RULES = [cs.rename("dense/kernel", "mlp/up", axes="1 0")]


def lens() -> cs.Lens:
    """Each run's."""
    return cs.adapt(old(), run(1), rules=RULES)


def placed(tree: Any, mesh: Any) -> Any:
    """Cut within each slice, and the same in all."""

    def put(leaf: Any) -> Any:
        spec = PartitionSpec("x") if leaf.ndim else PartitionSpec()
        return jax.jit(lambda: leaf, out_shardings=NamedSharding(mesh, spec))()

    return jax.tree.map(put, tree)


def slices() -> Any:
    """A mesh whose first axis goes over the slices, each of them the devices of a process."""
    return jax.make_mesh((SLICES, jax.local_device_count()), ("slice", "x"))


def emergency(folder: Path, number: int) -> list[Any]:
    """The manager of emergencies."""
    from orbax.checkpoint.experimental.emergency import checkpoint_manager as managers

    options = managers.CheckpointManagerOptions(
        local=managers.LocalCheckpointOptions(save_interval_steps=1, max_to_keep=2),
        persistent=managers.PersistentCheckpointOptions(save_interval_steps=5, max_to_keep=2),
    )
    return resumed(
        lambda mesh, form: managers.CheckpointManager(
            folder / f"local-{number}", folder / "all", mesh, form, options=options
        )
    )


def replicated(folder: Path, number: int) -> list[Any]:
    """The manager of several tiers, whose second one copies what it writes."""
    from orbax.checkpoint.experimental.emergency import replicator_checkpoint_manager as managers

    options = managers.ReplicatorCheckpointManagerOptions(save_interval_steps=1)
    return resumed(
        lambda mesh, form: managers.ReplicatorCheckpointManager(
            epath.Path(folder / f"local-{number}"), options, global_mesh=mesh
        )
    )


def resumed(manager_of: Any) -> list[Any]:
    """Saves twice, and what one who comes later has of the last save, to the last bit."""
    mesh, through = slices(), lens()
    form = cs.orbax.abstract_items(placed(run(0), mesh), through, raw_keys=True)  # <-
    state = placed(run(3), mesh)
    with manager_of(mesh, form) as manager:
        for step, each in ((1, placed(run(1), mesh)), (2, state)):
            items = cs.orbax.items_of(each, through, raw_keys=True)  # <-
            manager.save(step, args=v0.args.Composite(state=v0.args.PyTreeSave(items)))
            manager.wait_until_finished()
    with manager_of(mesh, form) as manager:
        step = manager.latest_step()
        found = manager.restore(step, args=v0.args.Composite(state=v0.args.PyTreeRestore(form)))
        target = placed(run(0), mesh)
        again = cs.orbax.state_of(found["state"], target, through, raw_keys=True)  # <-
    cs.assert_trees_identical(again, state)
    return [step, sorted(found["state"])]


JOBS = {"emergency": emergency, "replicated": replicated}


def in_a_slice(name: str, folder: Path) -> list[Any]:
    """One process."""
    from orbax.checkpoint import multihost

    flags.FLAGS.mark_as_parsed()  # both ask for one of absl's
    number = jax.process_index()
    (folder / f"local-{number}").mkdir()
    (folder / "all").mkdir(exist_ok=True)
    multihost.initialize_runtime_to_distributed_ids()
    multihost.initialize_distributed_to_device_ids()
    return JOBS[name](folder, number)


@pytest.mark.parametrize("name", sampled([*JOBS], 2))
def test_a_run_of_slices_goes_on_through_a_lens(tmp_path: Path, name: str) -> None:
    found = run_distributed(SLICES, in_a_slice, name, tmp_path, devices=2)
    assert found == [[2, ["nnx_aux", "state"]]] * SLICES

"""What `ckpt_schema._compat` takes from other packages is there, and does what the package relies on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from ckpt_schema import _compat

ITEM = "state"
"""What `save` of Orbax v1 calls its one pytree."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compat") / "0"
    ocp.save(path, {"sub": {"key": jax.random.key(0, impl="rbg"), "w": jnp.ones(2)}})
    return path


def test_each_name_has_a_test() -> None:
    assert sorted(TESTED) == sorted(_compat.__all__)


def test_a_tracer_is_what_a_traced_function_sees() -> None:
    seen: list[bool] = []
    jax.jit(lambda x: seen.append(isinstance(x, _compat.Tracer)) or x)(jnp.ones(2))
    assert seen == [True]
    assert not isinstance(jnp.ones(2), _compat.Tracer)


def test_one_process_gathers_what_it_has() -> None:
    found = _compat.process_allgather(np.arange(3))
    assert np.asarray(found).reshape(-1).tolist() == [0, 1, 2]


def test_part_of_a_program_is_run_by_itself() -> None:
    program = jax.make_jaxpr(lambda x, y: (x + 1.0, y * 2.0))(1.0, 3.0)
    first = program.jaxpr.eqns[0]
    assert isinstance(first.invars[1], _compat.Literal)
    assert not isinstance(first.invars[0], _compat.Literal)
    part = program.jaxpr.replace(
        invars=program.jaxpr.invars[:1],
        outvars=program.jaxpr.outvars[:1],
        eqns=[first],
    )
    closed = _compat.ClosedJaxpr(part, program.consts)
    assert _compat.jaxpr_as_fun(closed)(1.0) == [2.0]


def test_orbax_writes_its_files_under_these_names(checkpoint: Path) -> None:
    assert (checkpoint / _compat.CHECKPOINT_FILE).is_file()
    told = json.loads((checkpoint / ITEM / _compat.PYTREE_FILE).read_text())
    assert set(told["tree_metadata"]) == {"('sub', 'key')", "('sub', 'w')"}
    names = {file.name for file in (checkpoint / ITEM).iterdir()}
    assert _compat.DATABASE_FILE in names
    assert _compat.OLD_PYTREE_FILE not in names
    [file] = (checkpoint / ITEM / _compat.ARRAY_METADATA_FILES).iterdir()
    named = {
        entry["array_metadata"]["param_name"]: entry["array_metadata"]["ext_metadata"]
        for entry in json.loads(file.read_text())["array_metadatas"]
    }
    assert named["sub.key"]["random_key_impl"] == "rbg"


def test_orbax_knows_a_remote_checkpoint_by_this_file() -> None:
    from orbax.checkpoint._src.path import atomicity

    assert atomicity.COMMIT_SUCCESS_FILE == _compat.COMMIT_FILE


def test_a_manager_keeps_its_own_file_beside_checkpoints(tmp_path: Path) -> None:
    with ocp.training.Checkpointer(tmp_path, custom_metadata={"run": 1}):
        assert (tmp_path / _compat.ROOT_FILE).is_file()


SERVICE = """
import jax, socket
from ckpt_schema import _compat

assert _compat.coordination_client() is None
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"127.0.0.1:{port}", 1, 0)
client = _compat.coordination_client()
client.key_value_set_bytes("a/0", b"x")
client.wait_at_barrier("together", 10_000)
assert client.key_value_dir_get_bytes("a/") == [("a/0", b"x")]
client.key_value_delete("a/")
assert client.key_value_dir_get_bytes("a/") == []
jax.distributed.shutdown()
"""


def test_the_service_of_processes_has_what_is_asked_of_it() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SERVICE], env=env, capture_output=True, text=True)
    assert not run.returncode, run.stderr


TESTED = {
    "coordination_client": test_the_service_of_processes_has_what_is_asked_of_it,
    "Tracer": test_a_tracer_is_what_a_traced_function_sees,
    "process_allgather": test_one_process_gathers_what_it_has,
    **dict.fromkeys(
        ("ClosedJaxpr", "Literal", "jaxpr_as_fun"), test_part_of_a_program_is_run_by_itself
    ),
    **dict.fromkeys(
        (
            "CHECKPOINT_FILE",
            "PYTREE_FILE",
            "OLD_PYTREE_FILE",
            "ARRAY_METADATA_FILES",
            "DATABASE_FILE",
        ),
        test_orbax_writes_its_files_under_these_names,
    ),
    "COMMIT_FILE": test_orbax_knows_a_remote_checkpoint_by_this_file,
    "ROOT_FILE": test_a_manager_keeps_its_own_file_beside_checkpoints,
}

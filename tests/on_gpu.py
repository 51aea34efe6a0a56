"""What is held on a GPU: `python tests/on_gpu.py` where jax has one.

The tests of this file, and those of random tasks and of conversions of numbers that need no mesh, run on it without
`conftest.py`, which takes CPUs. Then follow the rows of memory and speed, against the GPU's own counter of bytes.
The suite does not collect this file, for CPUs have neither a memory of the host beside their own nor programs that
flush what is subnormal.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")

import jax  # noqa: E402  jax reads the variables above once, when it starts
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402
from flax import nnx  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402
from jaxtyping import Array, BFloat16, Float32  # noqa: E402

import ckpt_schema as cs  # noqa: E402

DEPTH, WIDTH = 3, 8
ELSEWHERE = (
    ("arrays/test_random_tasks.py", "not mesh and not abstract and not another_memory"),
    ("arrays/test_conversions.py", "not where_an_array_is"),
)


class Dense(cs.Schema):
    """One layer."""

    kernel: Float32[Array, "width width"]
    bias: BFloat16[Array, "width"]


class Stacked(cs.Schema):
    """The layers on the first axis."""

    layers: Dense = cs.field(scan="depth", axis=0)
    key: cs.Key["fry"]


class Listed(cs.Schema):
    """The layers as a list."""

    layers: list[Dense] = cs.field(length="depth", key="layer_{i}")
    key: cs.Key["fry"]


def placed(kind: str) -> NamedSharding:
    """Whole on the GPU, or in the memory of its host."""
    mesh = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])
    return NamedSharding(mesh, PartitionSpec(), memory_kind=kind)


def hostile(seed: int) -> dict[str, Any]:
    """Stacked layers whose bits are drawn: NaNs of every payload, infinities, minus zeros, subnormals."""
    drawn = np.random.default_rng(seed)
    kernel = drawn.integers(0, 2**32, (DEPTH, WIDTH, WIDTH), np.uint32)
    bias = drawn.integers(0, 2**16, (DEPTH, WIDTH), np.uint16)
    layers = {"kernel": kernel.view(np.float32), "bias": bias.view(jnp.bfloat16.dtype)}
    return {"layers": layers, "key": jax.random.key(seed)}


def on_gpu(tree: Any, kind: str) -> Any:
    """The tree in this memory of the GPU's; key arrays on the GPU itself."""
    own = placed("device")
    return jax.tree.map(
        lambda x: jax.device_put(x, own if _is_key(x) else placed(kind)),
        tree,
    )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def bits(leaf: Any) -> bytes:
    """The bits of a leaf, as NumPy has them."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf).tobytes()


def unstacked(tree: dict[str, Any]) -> dict[str, bytes]:
    """What the list is to hold, cut by NumPy."""
    found = {"key": bits(tree["key"])}
    for name, stack in tree["layers"].items():
        for at in range(DEPTH):
            found[f"layer_{at}/{name}"] = bits(np.asarray(stack)[at])
    return found


def flat(tree: dict[str, Any]) -> dict[str, bytes]:
    """The bits of a list's leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): bits(leaf)
        for path, leaf in _leaves(tree)
    }


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def numbers(tree: Any) -> list[Any]:
    """The leaves that are no keys."""
    return [leaf for leaf in jax.tree.leaves(tree) if not _is_key(leaf)]


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
@pytest.mark.parametrize("seed", range(4))
def test_each_bit_and_each_memory_is_kept(kind: str, seed: int) -> None:
    lens = cs.derive(Stacked, Listed)
    given = hostile(seed)
    source = on_gpu(given, kind)
    view = lens.get(source)
    assert flat(view) == unstacked(given)
    back = lens.put(view)
    assert jax.tree.map(bits, back) == jax.tree.map(bits, source)
    for made in numbers([view, back]):
        assert made.sharding.memory_kind == kind
        assert made.devices() == {jax.devices()[0]}
    assert jax.tree.map(bits, jax.jit(lens.get)(on_gpu(given, "device"))) == jax.tree.map(
        bits, view
    )


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_a_checkpoint_is_restored_into_each_memory(kind: str, tmp_path: Path) -> None:
    lens = cs.derive(Stacked, Listed)
    given = hostile(7)
    cs.orbax.save(tmp_path / "stacked", on_gpu(given, kind))
    target = jax.eval_shape(lens.get, given)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=placed("device" if _is_key(x) else kind)
        ),
        target,
    )
    view = cs.orbax.restore(tmp_path / "stacked", abstract, lens)
    assert flat(view) == unstacked(given)
    for made in numbers(view):
        assert made.sharding.memory_kind == kind


class Model(nnx.Module):
    """Two layers with dropout between them."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(WIDTH, 32, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.down = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.drop(jax.nn.gelu(self.up(x))))


class Renamed(nnx.Module):
    """The same under other names."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(WIDTH, 32, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.drop(jax.nn.gelu(self.first(x))))


@nnx.jit
def step(training: nnx.ModelAndOptimizer[Any], x: jax.Array) -> jax.Array:
    loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - x[:, :1]) ** 2))(
        training.model
    )
    training.update(grads)
    return loss


def started(model: type[nnx.Module]) -> nnx.ModelAndOptimizer[Any]:
    """A model and its optimizer, as they start."""
    return nnx.ModelAndOptimizer(model(nnx.Rngs(0)), optax.adamw(1e-2))


def test_training_goes_on_with_equal_losses_to_the_last_bit(tmp_path: Path) -> None:
    x = jax.random.normal(jax.random.key(1), (16, WIDTH))
    whole = started(Model)
    losses = [bits(step(whole, x)) for _ in range(20)]
    first = started(Model)
    for _ in range(10):
        step(first, x)
    cs.orbax.save(tmp_path / "run", nnx.state(first))
    second = started(Renamed)
    rules = [cs.rename("**/up", "**/first"), cs.rename("**/down", "**/last")]
    cs.orbax.restore(tmp_path / "run", second, rules=rules)
    assert [bits(step(second, x)) for _ in range(10)] == losses[10:]
    assert len(set(losses)) == 20


def main() -> int:
    """Runs the tests, then the rows of memory and speed."""
    if jax.default_backend() != "gpu":
        print(f"jax has no GPU here: {jax.devices()}")
        return 3
    print(f"{jax.devices()[0].device_kind}, one device\n", flush=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "support.few_examples"]
    options += ["-o", "filterwarnings=default", "-n", "5"]
    failed = False
    for file, words in ((Path(__file__).name, ""), *ELSEWHERE):
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *options, str(TESTS / file), "-k", words],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        shown = ran.stdout.rstrip().split("\n")
        print(f"{file}: {re.sub(r' in .*', '', shown[-1])}", flush=True)
        if ran.returncode:
            print(ran.stdout, file=sys.stderr)
            failed = True
    bench = [sys.executable, str(TESTS / "benchmarks" / "bench_memory.py"), "--gigabytes", "4"]
    return int(failed or subprocess.run(bench, env=environment).returncode != 0)


if __name__ == "__main__":
    sys.exit(main())

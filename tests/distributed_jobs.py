"""What the processes of `test_distributed` do: each job is done by all of them at once, and each looks at its own shards."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorstore
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32, UInt32
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs
from ckpt_schema._lens.arrays.comparison import difference
from ckpt_schema._safetensors import ranges
from ckpt_schema._trees import placement
from ckpt_schema.orbax._agreement import raised_by_all
from ckpt_schema.orbax._metadata import alone
from ckpt_schema.testing._meshes import Sharded, as_jax
from ckpt_schema.testing._states import makers
from ckpt_schema.testing._values import hostile

SIZES = {"vocab": 16, "embed": 8, "mlp": 16, "depth": 4}
BIG = {"vocab": 2048, "embed": 512, "mlp": 1024, "depth": 4}  # 38 MB with the optimizer's state
MANY = 10_000  # elements: what has more is sharded where bytes are counted
TX = optax.adamw(1e-3)


class LinenBlock(cs.Schema):
    scale: Float32[Array, " embed"] = cs.field(key="LayerNorm_0/scale")
    kernel: Float32[Array, "embed mlp"]
    noise: cs.Key["urbg"] = cs.field(axis=0, collection="batch_stats")


class LinenModel(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    layers: LinenBlock = cs.field(scan="depth", axis=1)


class NnxBlock(cs.Schema):
    scale: Float32[Array, " embed"]
    kernel: Float32[Array, "mlp embed"]
    noise: cs.Key["urbg"]
    dropout: cs.Stream["urbg"] = cs.field(default=cs.fresh_key(0))


class NnxModel(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    layers: list[NnxBlock] = cs.field(length="depth")


class Signed(cs.Schema):
    ids: Int32[Array, " n"]


class Unsigned(cs.Schema):
    ids: UInt32[Array, " n"]


class Tied(cs.Schema):
    embedding: Float32[Array, "a b"]
    head: Float32[Array, "a b"]


class Single(cs.Schema):
    embedding: Float32[Array, "a b"]


WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)


LENS = cs.derive(cs.linen.TrainState[LinenModel, TX], cs.nnx.TrainState[NnxModel, TX])
LINEN, NNX = makers(SIZES, LENS.source, LENS.view)


def mesh(*shape: int) -> Mesh:
    return jax.make_mesh(shape, ("x", "y")[: len(shape)])


def linen_state(seed: int, place: Callable[[Any], Any] = as_jax) -> Any:
    return LINEN(np.random.default_rng(seed), place)


def nnx_state(seed: int, place: Callable[[Any], Any] = as_jax) -> Any:
    return NNX(np.random.default_rng(seed), place)


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def unlike(tree: Any, alone: Any) -> list[str]:
    """Where the shards that this process has of a tree are not the same part of one that it made alone, to the last bit."""
    assert jax.tree.structure(tree) == jax.tree.structure(alone)
    both = zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(alone), strict=True)
    return [
        f"{jax.tree_util.keystr(path)} at {shard.index}"
        for (path, leaf), whole in both
        for shard in data(leaf).addressable_shards
        if np.asarray(shard.data).tobytes() != np.asarray(data(whole))[shard.index].tobytes()
        or shard.data.dtype != data(whole).dtype
    ]


def not_of_all(tree: Any) -> list[str]:
    """The leaves that are not over the devices of all processes."""
    devices = set(jax.devices())
    return [
        jax.tree_util.keystr(p)
        for p, leaf in jax.tree.leaves_with_path(tree)
        if leaf.sharding.device_set != devices
    ]


def elsewhere(tree: Any, target: Any) -> list[str]:
    """The leaves that are not sharded as the target says."""
    both = zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(target), strict=True)
    return [
        jax.tree_util.keystr(p)
        for (p, x), t in both
        if not x.sharding.is_equivalent_to(t.sharding, x.ndim)
    ]


def caught(run: Callable[[], Any]) -> tuple[str, list[str], str]:
    """The class of what it raises, the paths of the faults, and the message."""
    try:
        run()
    except cs.CkptSchemaError as error:
        return type(error).__name__, [fault.path for fault in error.mismatches], str(error)
    return "", [], ""


# --- Saved by some, restored by others  ---


def save_linen(root: Path, bytes_too: bool) -> bool:
    """Saves a Linen state; where bytes are counted a large one too, in three ways.

    As it is; in chunks that the axes cut which a caller names; and for a reader of four processes
    whose parts are cut across those of the save.
    """
    cs.orbax.save(root / "linen", linen_state(5, Sharded(mesh(2, 2), 1)), LENS)
    seen = (root / "linen").exists()
    if not bytes_too:
        return seen
    large = big(0, {3: (None, None, "x"), 2: ("x",)})
    cs.orbax.save(root / "big", large, LENS)
    with saved_in_chunks():
        cs.orbax.save(root / "chunks", large, LENS)
    cs.orbax.save(root / "read_as", large, LENS, read_as=across())
    return seen


def saved_in_chunks() -> Any:
    saving = ocp.options.ArrayOptions.Saving

    def options(key: Any, value: Any) -> Any:
        axes = (0,) if value.ndim == 3 else (1,)  # that of `embed`
        return (
            saving.StorageOptions(chunk_byte_size=1 << 18, shard_axes=axes)
            if value.size > MANY
            else None
        )

    return ocp.Context(
        array_options=ocp.options.ArrayOptions(
            saving=saving(scoped_storage_options_creator=options)
        )
    )


def restore_nnx(root: Path, shape: Sequence[int], again: str) -> dict[str, Any]:
    """Restores the Linen state as NNX, and saves what it got."""
    target = nnx_state(9, Sharded(mesh(*shape), 2))
    found = cs.orbax.restore(root / "linen", abstract(target), LENS)
    alone = LENS.get(linen_state(5))
    into = cs.orbax.restore(root / "linen", target, LENS)  # its own streams stay
    cs.orbax.save(root / again, found, LENS)
    loose = cs.orbax.restore(root / again, with_loose_step(abstract(target)), LENS)
    return {
        "unlike": unlike(found, alone)
        + unlike(into, LENS.get(linen_state(5), onto=nnx_state(9)))
        + unlike(loose, alone),
        "elsewhere": elsewhere(found, target) + elsewhere(into, target),
        "not of all": not_of_all(found) + not_of_all(into) + not_of_all(loose),
    }


def with_loose_step(state: Any) -> Any:
    """The state with a step that each process has made for itself, as `nnx.Optimizer` does outside of jit."""
    return jax.tree.map_with_path(
        lambda path, x: jnp.uint32(0) if "step" in jax.tree_util.keystr(path) else x, state
    )


def translate() -> list[str]:
    """What is wrong with states that are translated in memory: a step that is a Python number, and NumPy arrays to go onto."""
    state = {**linen_state(5, Sharded(mesh(4), 1)), "step": 3}
    alone = {**linen_state(5), "step": 3}
    found = LENS.get(state)
    host = jax.tree.map(lambda x: x if x is not data(x) else np.asarray(x), nnx_state(9))
    gathered = LENS.get(state, onto=host)
    both = zip(jax.tree.leaves(gathered), jax.tree.leaves(LENS.get(alone, onto=host)), strict=True)
    worse = [str(x) for x, y in both if isinstance(y, np.ndarray) and x.tobytes() != y.tobytes()]
    back = LENS.put(found, onto=state)
    worse += [] if back["step"] == 3 else ["the step is another"]
    return worse + not_of_all(found) + unlike(found, LENS.get(alone))


def save_nnx(root: Path) -> tuple[list[str], list[str]]:
    """Saves an NNX state in Linen's layout, and again with the private leaves that are read back."""
    state = nnx_state(7, Sharded(mesh(2, 2), 3))
    cs.orbax.save(root / "nnx", state, LENS)
    private = cs.orbax.load_private(root / "nnx")
    linen = cs.orbax.restore(
        root / "nnx", abstract(linen_state(1, Sharded(mesh(4), 4))), LENS, aux=None
    )
    with jax.set_mesh(mesh(4)):
        cs.orbax.save(root / "kept", linen, LENS, private=private)
    return not_of_all(private), unlike(linen, LENS.put(nnx_state(7))) + translate()


def restore_streams(root: Path) -> list[str]:
    target = abstract(nnx_state(1, Sharded(mesh(2, 2), 5)))
    both = [cs.orbax.restore(root / name, target, LENS) for name in ("nnx", "kept")]
    cs.assert_trees_identical(*both)
    return [
        place for each in both for place in (*unlike(each, nnx_state(7)), *elsewhere(each, target))
    ]


# --- Bytes that are read  ---


def big(side: int, specs: Mapping[int, Sequence[Any]]) -> Any:
    """A large state of random bits, which do not compress; leaves of so many axes are sharded so."""
    over = mesh(jax.device_count())

    def place(value: Any) -> Any:
        spec = specs.get(value.ndim, ()) if math.prod(value.shape) > MANY else ()
        if spec:
            value = np.frombuffer(
                np.random.default_rng(0).bytes(value.nbytes), value.dtype
            ).reshape(value.shape)
        return placement.placed(value, NamedSharding(over, PartitionSpec(*spec)))

    return makers(BIG, LENS.source, LENS.view)[side](
        np.random.default_rng(0), place, values="counted"
    )


def read_big(root: Path) -> dict[str, tuple[int, int, int]]:
    """Bytes that a process holds, that TensorStore read, and that the process read in all: cut as on disk, and across."""
    along = abstract(big_nnx(kernel=("x",), embedding=("x",)))
    counted(root / "big", along)  # what is imported and compiled is read too
    orders = {
        "along": ("big", along),
        "across": ("big", across()),
        "along, chunks": ("chunks", along),
        "across, chunks": ("chunks", across()),
        "along, read_as": ("read_as", along),
        "across, read_as": ("read_as", across()),
    }
    return {name: counted(root / path, target) for name, (path, target) in orders.items()}


def across() -> Any:
    """The large state cut across the axes of the save."""
    return abstract(big_nnx(kernel=(None, "x"), embedding=(None, "x")))


def big_nnx(kernel: Sequence[Any], embedding: Sequence[Any]) -> Any:
    over = mesh(jax.device_count())

    def place(value: Any) -> Any:
        spec = {(BIG["mlp"], BIG["embed"]): kernel, (BIG["vocab"], BIG["embed"]): embedding}.get(
            tuple(value.shape), ()
        )
        return placement.placed(value, NamedSharding(over, PartitionSpec(*spec)))

    return makers(BIG, LENS.source, LENS.view)[1](np.random.default_rng(0), place, values="counted")


def counted(path: Path, target: Any) -> tuple[int, int, int]:
    before = bytes_read()
    found = jax.block_until_ready(cs.orbax.restore(path, target, LENS))
    stored, every = (after - start for after, start in zip(bytes_read(), before, strict=True))
    blocks = [
        {str(s.index): s.data.nbytes for s in data(leaf).addressable_shards}
        for leaf in jax.tree.leaves(found)
    ]
    return sum(sum(each.values()) for each in blocks), stored, every


def bytes_read() -> tuple[int, int]:
    name = "/tensorstore/kvstore/file/bytes_read"
    metrics = tensorstore.experimental_collect_matching_metrics(name)
    stored = sum(
        value["value"] for each in metrics if each["name"] == name for value in each["values"]
    )
    lines = Path("/proc/self/io").read_text().splitlines()
    return stored, next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


# --- Faults  ---


def refused(root: Path) -> dict[str, tuple[str, list[str], str]]:
    """What each process raises where something is wrong in all, in one shard, or in one process."""
    over, first = mesh(jax.device_count()), jax.process_index() == 0
    rows = NamedSharding(over, PartitionSpec("x"))
    ids = placement.placed(np.array([1, 2, 3, -4], "int32"), rows)
    cast = cs.derive(Signed, Unsigned)
    ocp.save(root / "signed", {"ids": ids})
    values = np.ones((4, 2), "float32")
    copy = values.copy()
    copy[3, 1] = -0.0
    tied = {"embedding": placement.placed(values, rows), "head": placement.placed(copy, rows)}
    tie = cs.derive(Tied, Single, rules=[cs.tie("head", "embedding")])
    state = nnx_state(7, Sharded(over))
    host = {**linen_state(5, Sharded(over)), "step": jnp.int32(3)}
    short = {"ids": ids} if first else {"ids": jax.ShapeDtypeStruct((4,), "int32")}
    (root / "taken").mkdir(exist_ok=True)
    target = {"ids": jax.ShapeDtypeStruct((4,), "uint32", sharding=rows)}
    return {
        "exists": caught(lambda: cs.orbax.save(root / "taken", state, LENS)),
        "cast": caught(lambda: cast.get({"ids": ids})),
        "cast, saved": caught(lambda: cs.orbax.save(root / "no", {"ids": ids}, ~cast, side="view")),
        "cast, restored": caught(
            lambda: cs.orbax.restore(root / "signed", target, cast, disk_side="source")
        ),
        "tie": caught(lambda: tie.get(tied)),
        "on one host": caught(lambda: cs.orbax.save(root / "no", host, LENS)),
        "without a value in one": caught(
            lambda: cs.orbax.save(root / "no", short, cast, side="source")
        ),
        "not there for one": caught(
            lambda: cs.orbax.restore(root / ("signed" if first else "no"), target, cast)
        ),
        "unequal shard": caught(
            lambda: cs.assert_trees_identical([tied["head"]], [tied["embedding"]])
        ),
    }


def alone_in_one(root: Path) -> dict[str, tuple[str, list[str], str]]:
    """What each process raises where the others have, read or are asked for something else, or one is interrupted."""
    first = jax.process_index() == 0
    rows = NamedSharding(mesh(jax.device_count()), PartitionSpec("x"))
    cast, states = cs.derive(Signed, Unsigned), Sharded(mesh(4), 1)
    ids = np.array([1, 2, 3, 4 if first else -4], "int32")
    for seed in (5, 6):
        cs.orbax.save(root / f"{seed}", linen_state(seed, states), LENS)
    cs.orbax.save(root / "private", nnx_state(7, states), LENS)
    large = placement.placed(np.random.default_rng(0).random((64, 4096), np.float32), rows)
    matrix = cs.derive(Single, Single)
    cs.orbax.save(root / "damaged", {"embedding": large}, matrix, side="source")
    multihost_utils.sync_global_devices("saved")
    for path in (root / "damaged").glob("**/ocdbt.process_1/d/*") if first else ():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    multihost_utils.sync_global_devices("damaged")
    target = {"embedding": jax.ShapeDtypeStruct(large.shape, large.dtype, sharding=rows)}
    linen = abstract(linen_state(1, states))
    number = {**linen_state(5, states), "step": 3 if first else 4}
    return {
        "damaged": caught(
            lambda: cs.orbax.restore(
                root / "damaged", target, matrix, target_side="view", disk_side="source"
            )
        ),
        "arrays": caught(lambda: cs.orbax.save(root / "no", {"ids": ids}, ~cast, side="view")),
        "numbers": caught(lambda: cs.orbax.save(root / "no", number, LENS)),
        "paths": caught(lambda: cs.orbax.restore(root / ("5" if first else "6"), linen, LENS)),
        "private": caught(lambda: cs.orbax.load_private(root / ("private" if first else "no"))),
        "warned": caught(
            lambda: warned(lambda: cs.orbax.restore(root / "private", linen, LENS), error=not first)
        ),
        "interrupted": caught(lambda: interrupted(first)),
    }


def warned(run: Callable[[], Any], *, error: bool) -> None:
    with contextlib.suppress(UserWarning), warnings.catch_warnings():
        warnings.simplefilter("error" if error else "ignore")
        run()


def interrupted(first: bool) -> None:
    with contextlib.suppress(KeyboardInterrupt), raised_by_all():
        if not first:
            raise KeyboardInterrupt


def payloads() -> list[tuple[str, str]]:
    """The dtypes and ways in which floats do not get all of their bits to where other processes have them."""
    over = mesh(jax.device_count())
    rows, columns = (NamedSharding(over, PartitionSpec(*spec)) for spec in (("x",), (None, "x")))
    lost: list[tuple[str, str]] = []
    for dtype in ("float32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3fn", "complex64"):
        value = hostile(np.random.default_rng(0), dtype, (8, 8))
        spread = placement.placed(value, rows)
        ways = {"moved": unlike([placement.placed(spread, columns)], [value])}
        ways["gathered"] = (
            [] if placement.gathered(spread).tobytes() == value.tobytes() else ["all"]
        )
        ways["compared"] = (
            [] if difference(spread, placement.placed(value, columns)) is None else ["all"]
        )
        lost += [(dtype, way) for way, found in ways.items() if found]
    return lost


def context() -> tuple[bool, bool]:
    """What is said in the context that Orbax reads in: the caller's own, but for whom it waits for."""
    mine = ocp.options.ArrayOptions(
        loading=ocp.options.ArrayOptions.Loading(enable_padding_and_truncation=True)
    )
    with ocp.Context(array_options=mine), alone() as found:
        told = found.multiprocessing_options
        return found.array_options.loading.enable_padding_and_truncation, told.active_processes == {
            jax.process_index()
        }


@dataclasses.dataclass(frozen=True)
class Found:
    """What a process finds in all that two of them are asked."""

    refused: dict[str, tuple[str, list[str], str]]
    alone: dict[str, tuple[str, list[str], str]]
    lost: list[tuple[str, str]]
    context: tuple[bool, bool]
    folder: dict[str, tuple[float, list[str]]]


def found_by_two(root: Path) -> Found:
    return Found(refused(root), alone_in_one(root), payloads(), context(), folder(root))


def folder(root: Path) -> dict[str, tuple[float, list[str]]]:
    """By the sharding of a tensor of Hugging Face: what part of it this process reads, and which shards are wrong.

    Both processes then save all of them.
    """
    reading: Any = ranges._Reading  # pyright: ignore[reportPrivateUsage]
    read = reading._read
    counts: list[int] = []
    found: dict[str, tuple[float, list[str]]] = {}
    both: dict[str, Any] = {}

    def counting(self: Any, start: int, made: Any) -> None:
        counts.append(made.nbytes)
        read(self, start, made)

    reading._read = counting
    for spec in ((), ("x",), (None, "x"), ("y", "x"), ("x", "y")):
        sharding = NamedSharding(mesh(2, 2), PartitionSpec(*spec))
        target = {"a": {"w": jax.ShapeDtypeStruct((8, 8), "float32", sharding=sharding)}}
        restored = cs.hf.restore(root / "hub", target)
        wrong = unlike(restored, {"a": {"w": WEIGHT}}) + elsewhere(restored, target)
        found[str(spec)] = sum(counts) / WEIGHT.nbytes, wrong
        counts.clear()
        both["-".join(map(str, spec))] = restored["a"]["w"]
    reading._read = read
    cs.hf.save(root / "both", both)
    return found


# --- What goes wrong with processes  ---


def ranks(number: int) -> tuple[int, int, int, int, list[int]]:
    every = multihost_utils.process_allgather(np.int32(jax.process_index() + number))
    return (
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        os.getpid(),
        every.tolist(),
    )


def raising(pids: Path, who: Sequence[int]) -> None:
    told(pids)
    if jax.process_index() in who:
        time.sleep(0.2 * jax.process_index())
        raise ValueError(f"no luck in {jax.process_index()}")
    multihost_utils.sync_global_devices("all")


def killed(pids: Path, who: int) -> None:
    told(pids)
    if jax.process_index() == who:
        print("these are my last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    multihost_utils.sync_global_devices("all")


def stuck(pids: Path) -> None:
    told(pids)
    if jax.process_index() == 1:
        time.sleep(1000)


def started(pids: Path) -> None:
    """Starts a process of its own, tells of both, and waits."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    told(pids, child.pid)
    time.sleep(1000)


def forked() -> None:
    """Leaves a forked process behind that holds all that this one had open, and dies."""
    if os.fork() == 0:
        time.sleep(1000)
    os.kill(os.getpid(), signal.SIGKILL)


def large(size: int) -> bytes:
    return bytes(size)


def listening() -> str:
    return sys.stdin.read()


def leaving() -> None:
    os._exit(3)


def told(pids: Path, *more: int) -> None:
    """Leaves the numbers of this process, and of others, where the test finds them."""
    for pid in (os.getpid(), *more):
        (pids / str(pid)).touch()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("told")


if __name__ == "__main__":  # the parent that a test kills
    from distributed_jobs import started as function

    from ckpt_schema.testing._distributed import run_distributed

    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell has its background jobs ignore it
    run_distributed(2, function, Path(sys.argv[1]))

"""MaxText itself, through this library: `python tests/maxtext_itself.py --python PATH [--linen FOLDER]` runs all of it.

PATH is a Python of 3.12 or newer that has this library's requirements, and MaxText with what its imports ask for:

    pip install --no-deps maxtext==0.2.5
    pip install pydantic omegaconf pathwaysutils qwix aqtp drjax tokamax grain transformers tiktoken sentencepiece sympy \
        tensorboardX psutil pillow jinja2 fastapi

Each run is made, trained for two steps and saved as MaxText does it: in Linen's layout, and what that has no place for, as
streams, below ``nnx_aux``. Then, with dropout on where the model has any:

- ``cs.orbax.restore(path, state)`` into a run of other values, and ten more steps of both, of equal losses;
- ``cs.orbax.save(new, state, layout=path)``, which MaxText's own loader reads to the last bit;
- scanned into unrolled, and back to the last bit.

FOLDER holds MaxText 0.2.0, which runs in Linen: ``pip install --no-deps --target FOLDER maxtext==0.2.0``. A run of it is
saved, restored into a run of 0.2.5 in one line, where it trains as what MaxText's own loader makes of it, and is
saved back in one line, read by 0.2.0, and goes on there with the losses of the run that never stopped.

``--write`` keeps what each state holds in tests/maxtext_data, which the suite reads.
"""

from __future__ import annotations

import argparse
import functools
import importlib.machinery
import json
import os
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "maxtext_data"
STEPS = 10
VOCAB = 32

# What is said to MaxText besides its base.yml: as small as it goes, dropout on, on a CPU.
SMALL = (
    "hardware=cpu",
    "skip_jax_distributed_system=True",
    "base_emb_dim=16",
    "base_num_query_heads=2",
    "base_num_kv_heads=2",
    "head_dim=8",
    "base_mlp_dim=32",
    "base_num_decoder_layers=3",
    f"vocab_size={VOCAB}",
    "max_target_length=8",
    "per_device_batch_size=2",
    "dataset_type=synthetic",
    "steps=50",
    "checkpoint_period=2",
    "async_checkpointing=False",
    "enable_goodput_recording=False",
    "log_config=False",
    "attention=dot_product",
    "dropout_rate=0.1",
    "enable_dropout=True",
    "learning_rate=0.01",
)
UNROLLED = ("scan_layers=False",)
GEMMA = (
    "model_name=gemma3-4b",  # two blocks of six layers of two kinds, and the rest
    "override_model_config=True",
    "base_num_decoder_layers=8",
    "dropout_rate=0.0",
)
EXPERTS = (
    "decoder_block=mixtral",
    "num_experts=4",
    "num_experts_per_tok=2",
    "base_moe_mlp_dim=32",
    "sparse_matmul=False",
    "megablox=False",
)
RUNS: Mapping[str, tuple[str, ...]] = {
    "scanned-adamw": (),
    "unrolled-adamw": UNROLLED,
    "scanned-muon": ("opt_type=muon",),
    "unrolled-adam_pax": ("opt_type=adam_pax", *UNROLLED),
    "scanned-spikes": ("skip_step_on_spikes=True",),
    "scanned-fp8": ("quantization=fp8",),
    "unrolled-fp8": ("quantization=fp8", *UNROLLED),
    "scanned-blocks": GEMMA,
    "unrolled-blocks": (*GEMMA, *UNROLLED),
    "scanned-experts": EXPERTS,
    "unrolled-experts": (*EXPERTS, *UNROLLED),
    "scanned-lora": (
        "lora.enable_lora=True",
        "lora.lora_rank=2",
        "lora.lora_alpha=4.0",
        "dtype=float32",
    ),
}
LINEN = "linen-scanned", "linen-unrolled"


def batch_of(shapes: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The tokens of a step, by its number."""
    import jax

    batch: dict[str, Any] = {}
    for key, leaf in shapes.items():
        drawn = jax.random.randint(
            jax.random.key(number, impl="threefry2x32"), leaf.shape, 0, VOCAB
        )
        batch[key] = drawn if key in ("inputs", "targets") else jax.numpy.ones_like(drawn)
    return batch


class Run:
    """A run of MaxText 0.2.5, set up as its own training loop does it, but for the data."""

    def __init__(self, folder: Path, name: str, *more: str) -> None:
        import maxtext
        from flax import nnx
        from maxtext.common import train_state_nnx
        from maxtext.configs import pyconfig
        from maxtext.utils import maxtext_utils, model_creation_utils, train_utils

        base = Path(str(maxtext.__file__)).parent / "configs" / "base.yml"
        places = f"base_output_directory={folder}", f"run_name={name}"
        self.config: Any = pyconfig.initialize(["", str(base), *SMALL, *places, *more])
        self.mesh: Any = maxtext_utils.get_mesh_from_config(self.config)
        make, model = model_creation_utils.create_nnx_abstract_model(self.config, self.mesh)
        _, tx = train_utils.create_training_optimizer(self.config, model, mesh=self.mesh)
        self.has_adapters = bool(self.config.lora.enable_lora)

        def made() -> Any:
            model = self._with_adapters(make()) if self.has_adapters else make()
            trained = nnx.LoRAParam if self.has_adapters else nnx.Param
            return train_state_nnx.TrainStateNNX(model, nnx.Optimizer(model, tx, wrt=trained))

        self.made = made
        self.state: Any
        if self.has_adapters:  # as its fine-tuning makes them: not in one program
            self.graph, self.state = nnx.split(made())
        else:
            self.graph = nnx.graphdef(nnx.eval_shape(made))
            self.state, _, self.shardings, _, _ = maxtext_utils.setup_training_state(
                None, self.config, self.mesh, None, made
            )
        self._step: Callable[..., Any] | None = None

    def _with_adapters(self, model: Any) -> Any:
        import jax
        from flax import nnx
        from flax.linen import partitioning
        from maxtext.utils import lora_utils

        with jax.set_mesh(self.mesh), partitioning.axis_rules(self.config.logical_axis_rules):
            model = lora_utils.apply_lora_to_model(model, self.mesh, self.config)
        nnx.pop(model, nnx.Intermediate)
        return model

    @property
    def number(self) -> int:
        """How many steps it has trained."""
        return int(self.state.optimizer.step[...])

    def train(self, steps: int = STEPS) -> list[float]:
        """The losses of so many steps from here, by MaxText's own step."""
        import jax
        from flax.linen import partitioning
        from maxtext.trainers.pre_train import train
        from maxtext.utils import maxtext_utils, sharding, train_utils

        if self._step is None and self.has_adapters:
            given = self.graph, self.config, None, None
            self._step = jax.jit(functools.partial(train.train_step, *given))
        elif self._step is None:
            params, shardings = sharding.maybe_update_params_sharding_with_opt(
                self.config, self.shardings
            )
            self._step, _ = train_utils.jit_train_and_eval_step(
                self.config,
                self.graph,
                self.mesh,
                self.state,
                shardings,
                train.train_step,
                params_shardings=params,
            )
        shapes = maxtext_utils.get_shaped_batch(self.config)
        losses: list[float] = []
        for _ in range(steps):
            batch = batch_of(shapes, self.number)
            with jax.set_mesh(self.mesh), partitioning.axis_rules(self.config.logical_axis_rules):
                self.state, metrics = self._step(self.state, batch)
            losses.append(float(metrics["scalar"]["learning/loss"]))
        return losses

    def save(self) -> Path:
        """Saves as MaxText does, and returns where."""
        from maxtext.common import checkpointing
        from maxtext.utils import train_utils

        manager = train_utils.create_checkpoint_manager(self.config, self.mesh, self.made)
        assert checkpointing.save_checkpoint(
            manager, self.number, self.state, self.config, force=True
        )
        checkpointing.wait_until_finished(manager)
        return Path(self.config.checkpoint_dir) / str(self.number)


def leaves_of(tree: Any) -> dict[str, Any]:
    """All leaves as NumPy has them, by their key path."""
    import jax
    import numpy as np

    found: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.asarray(
            jax.random.key_data(leaf) if is_key else leaf
        )
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two trees hold the same bits."""
    here, there = leaves_of(one), leaves_of(other)
    return here.keys() == there.keys() and all(
        here[key].dtype == there[key].dtype and here[key].tobytes() == there[key].tobytes()
        for key in here
    )


def settled(call: Callable[..., Any], words: list[str]) -> Any:
    """What a call gives, where its errors are answered with what they say to paste, which is added to ``words``."""
    from maxtext_states import settled as pasted

    rules: list[Any] = []
    try:
        return pasted(lambda rules: call(rules=rules), rules)
    finally:
        words += map(str, rules)


def apart(state: Any) -> Any:
    """What MaxText keeps below ``nnx_aux``, copied: what is neither a weight nor the optimizer's."""
    import jax
    from flax import nnx

    return jax.tree.map(jax.numpy.copy, nnx.filter_state(state.model, nnx.Not(nnx.Param)))


def went(folder: Path, name: str) -> Iterator[tuple[str, bool]]:
    """What became of one run: sentences, and whether each is as it should be."""
    from flax import nnx

    import ckpt_schema as cs

    run, words = Run(folder, name, *RUNS[name]), list[str]()
    run.train(2)
    path, aside = run.save(), apart(run.state)
    fresh = Run(folder, f"{name}-fresh", *RUNS[name], "init_weights_seed=5")
    before = leaves_of(fresh.state)
    fresh.state = settled(functools.partial(cs.orbax.restore, path, fresh.state), words)
    if run.has_adapters:
        yield told("restored", words), adapters_alone(run.state, before, fresh.state)
        return  # the counts of its optimizer are not saved, so that none goes on as it went
    yield told("restored", words), same(run.state, fresh.state)

    words, out = list[str](), folder / "out"
    settled(functools.partial(cs.orbax.save, out, run.state, layout=path, item="items"), words)
    place = f"load_full_state_path={out}/items"
    theirs = Run(folder, f"{name}-theirs", *RUNS[name], "init_weights_seed=7", place)
    kinds = nnx.Any(nnx.Param, nnx.OptState)
    mine, read = (nnx.filter_state(one.state, kinds) for one in (run, theirs))
    yield told("saved, and read by MaxText", words), same(mine, read)
    nnx.update(theirs.state.model, aside)
    yield from unrolled_and_back(folder, name, run, path)

    losses = run.train()
    yield f"{STEPS} losses after each", fresh.train() == losses == theirs.train()


def adapters_alone(saved: Any, before: Mapping[str, Any], restored: Any) -> bool:
    """Whether what MaxText saves of adapters is restored, and all else is as it was."""
    old, new = leaves_of(saved), leaves_of(restored)
    for key, leaf in new.items():
        is_adapter = "['model']" in key and "lora" in key
        is_saved = is_adapter or key.startswith("['optimizer']['step']")
        wanted = old if is_saved else before
        if leaf.tobytes() != wanted[key].tobytes():
            return False
    return old.keys() == new.keys()


def unrolled_and_back(folder: Path, name: str, run: Run, path: Path) -> Iterator[tuple[str, bool]]:
    """A scanned run into an unrolled one, and back."""
    import jax
    from flax import nnx

    import ckpt_schema as cs

    partner = name.replace("scanned", "unrolled")
    if partner == name or partner not in RUNS:
        return
    words, other = list[str](), Run(folder, f"{name}-unrolled", *RUNS[partner])
    try:
        other.state = settled(functools.partial(cs.orbax.restore, path, other.state), words)
    except cs.DerivationError as error:
        yield f"unrolled is refused: {error.mismatches[0]}", True
        return
    kinds = nnx.Any(nnx.Param, nnx.OptState)
    scanned, unrolled = (leaves_of(nnx.filter_state(s, kinds)) for s in (run.state, other.state))
    cut: dict[str, Any] = {}
    for key, leaf in scanned.items():  # by NumPy alone
        for number in range(3 if "['layers']" in key else 0):
            layer = leaf.take(number, axis=1)
            cut[key.replace("['layers']", f"['layers_{number}']")] = layer
        if "['layers']" not in key:
            cut[key] = leaf
    equal = cut.keys() == unrolled.keys() and all(
        cut[key].tobytes() == unrolled[key].tobytes() for key in cut
    )
    yield told("unrolled", words), equal
    words, back = list[str](), jax.tree.map(jax.numpy.zeros_like, run.state)
    back = settled(functools.partial(cs.orbax.restore, other.save(), back), words)
    yield (
        told("scanned again", words),
        same(*(nnx.filter_state(one, kinds) for one in (run.state, back))),
    )


def told(what: str, words: list[str]) -> str:
    """A sentence about what was done, and what was pasted."""
    return f"{what} in one line" if not words else f"{what}, pasted {', '.join(words)}"


# --- MaxText 0.2.0, which runs in Linen  ---


class LinenRun:
    """A run of MaxText 0.2.0."""

    def __init__(self, folder: Path, name: str, *more: str) -> None:
        import jax
        from maxtext.configs import pyconfig
        from maxtext.utils import maxtext_utils, model_creation_utils, train_utils

        base = Path(str(pyconfig.__file__)).parent / "base.yml"
        places = f"base_output_directory={folder}", f"run_name={name}"
        self.config: Any = pyconfig.initialize(["", str(base), *SMALL, *places, *more])
        self.model: Any = model_creation_utils.from_config(self.config)
        self.rng, self.manager, _, tx = train_utils.create_training_tools(
            self.config, self.model, self.model.mesh
        )
        self.state: Any
        self.state, _, self.shardings, _ = maxtext_utils.setup_training_state(
            self.model, None, tx, self.config, self.rng, self.model.mesh, None
        )
        self.key: Callable[..., Any] = jax.jit(jax.random.fold_in)

    def train(self, steps: int = STEPS) -> list[float]:
        """The losses of so many steps from here, by MaxText's own step."""
        import jax
        from flax.linen import partitioning
        from maxtext.trainers.pre_train import train
        from maxtext.utils import maxtext_utils, sharding, train_utils

        config, mesh = self.config, self.model.mesh
        params, shardings = sharding.maybe_update_params_sharding_with_opt(config, self.shardings)
        step, _ = train_utils.jit_train_and_eval_step(
            config,
            self.model,
            mesh,
            self.state,
            shardings,
            train.train_step,
            params_shardings=params,
        )
        shapes = maxtext_utils.get_shaped_batch(config)
        losses: list[float] = []
        for _ in range(steps):
            number = int(self.state.step)
            given = self.state, batch_of(shapes, number), self.key(self.rng, number)
            with jax.set_mesh(mesh), partitioning.axis_rules(config.logical_axis_rules):
                self.state, metrics = step(*given)
            losses.append(float(metrics["scalar"]["learning/loss"]))
        return losses

    def save(self) -> Path:
        """Saves as MaxText does, and returns where."""
        from maxtext.common import checkpointing

        number = int(self.state.step)
        checkpointing.save_checkpoint(self.manager, number, self.state, self.config, force=True)
        self.manager.wait_until_finished()
        return Path(self.config.checkpoint_dir) / str(number)


def as_linen(package: Path, folder: Path, name: str, place: str | None = None) -> dict[str, Any]:
    """One run of MaxText 0.2.0 in a process of its own: a new one that is saved, or one that is read."""
    os.environ["DECOUPLE_GCLOUD"] = "TRUE"
    for missing in (
        "tensorflow",
        "tensorflow_datasets",
    ):  # it reads data with them, which nobody asks for
        sys.modules[missing] = mock.MagicMock()
        sys.modules[missing].__spec__ = importlib.machinery.ModuleSpec(missing, None)
    maxtext = types.ModuleType("maxtext")  # which has no __init__, so that one that has would win
    maxtext.__path__ = [str(package / "maxtext")]
    sys.modules["maxtext"] = maxtext
    more = (UNROLLED if "unrolled" in name else ()) + (
        () if place is None else (f"load_full_state_path={place}",)
    )
    run = LinenRun(folder, name if place is None else f"{name}-read", *more)
    if place is not None:
        return {"losses": run.train()}
    run.train(2)
    path = run.save()
    return {"path": str(path), "losses": run.train()}


def child(package: Path, folder: Path, *given: str) -> dict[str, Any]:
    """What `as_linen` returns in a process of its own."""
    name, *place = given
    words = [sys.executable, __file__, "--linen", str(package), "--child", name, str(folder)]
    done = subprocess.run([*words, *place], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.rstrip().rsplit("\n", 1)[-1])


def from_linen(package: Path, folder: Path, name: str) -> Iterator[tuple[str, bool]]:
    """A run of MaxText 0.2.0, of Linen, into one of 0.2.5, of NNX, and back."""
    from flax import nnx

    import ckpt_schema as cs

    old = child(package, folder, name)
    path, more, words = Path(old["path"]), UNROLLED * ("unrolled" in name), list[str]()
    run = Run(folder, f"{name}-nnx", *more)
    aside = apart(run.state)
    run.state = settled(functools.partial(cs.orbax.restore, path, run.state), words)
    theirs = Run(folder, f"{name}-theirs", *more, f"load_full_state_path={path}/items")
    nnx.update(theirs.state.model, aside)
    yield told("restored into NNX", words), same(run.state, theirs.state)
    words, out = list[str](), folder / f"{name}-out"
    settled(functools.partial(cs.orbax.save, out, run.state, layout=path, item="items"), words)
    read = child(package, folder, name, f"{out}/items")
    equal = read["losses"] == old["losses"]
    yield told(f"saved, and {STEPS} losses of Linen after it", words), equal
    yield f"{STEPS} losses of NNX", run.train() == theirs.train()


# --- what the states hold  ---


def text_of(leaf: Any) -> str:
    """A leaf as the data has it: its Variable type, if it has one, its dtype and its shape."""
    kind = f"{type(leaf).__name__} " if hasattr(leaf, "get_metadata") else ""
    return f"{kind}{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def held(path: Path, state: Any = None) -> dict[str, Any]:
    """What a state holds on disk, as Orbax tells it, and in memory, by key."""
    import jax
    from flax import nnx
    from orbax.checkpoint import v1 as ocp

    found = {"disk": jax.tree.map(text_of, ocp.checkpointables_metadata(path).metadata["items"])}
    if state is not None:
        found["nnx"] = {}
        for key, variable in nnx.to_flat_state(state):
            if not jax.tree.leaves(variable):  # what a mask leaves out
                continue
            node = found["nnx"]
            for segment in key[:-1]:
                node = node.setdefault(segment, {})
            node[key[-1]] = text_of(variable)
    return found


def write(package: Path | None, folder: Path, name: str) -> None:
    """Keeps what a state holds."""
    if name in RUNS:
        run = Run(folder, name, *RUNS[name])
        found = held(run.save(), run.state)
    else:
        assert package is not None
        found = held(Path(child(package, folder, name)["path"]))
    DATA.mkdir(exist_ok=True)
    text = json.dumps(found, indent=0, sort_keys=True, separators=(",", ":"))
    (DATA / f"{name}.json").write_text(text + "\n")


def main() -> None:
    """Runs what is named, or all of it, in the Python that is given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=", ".join((*RUNS, *LINEN)))
    parser.add_argument("--python", help="a Python that has MaxText")
    parser.add_argument("--linen", type=Path, help="a folder that holds MaxText 0.2.0")
    parser.add_argument("--write", action="store_true", help="keep what the states hold")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.python is not None:
        at = sys.argv.index("--python")
        rest = sys.argv[1:at] + sys.argv[at + 2 :]
        where = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        raise SystemExit(subprocess.call([given.python, __file__, *rest], env=where))
    import jax

    warnings.simplefilter("ignore")
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")  # as MaxText's `initialize` does
    if given.child:
        name, folder, *place = given.names
        print(json.dumps(as_linen(given.linen, Path(folder), name, *place)))
        return
    names = given.names or [*RUNS, *(LINEN if given.linen else ())]
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            if given.write:
                write(given.linen, Path(folder), name)
                continue
            place = Path(folder)
            run = name in RUNS
            for sentence, right in (
                went(place, name) if run else from_linen(given.linen, place, name)
            ):
                print(f"{name}: {sentence}: {'right' if right else 'WRONG'}", flush=True)
                failed |= not right
    raise SystemExit(failed)


if __name__ == "__main__":
    main()

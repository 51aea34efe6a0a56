"""The demo's run: train in Linen, save, resume everywhere, compare to the last bit."""

from __future__ import annotations

import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import ckpt_schema as cs
from ckpt_schema.demo.corpus import standard_library
from ckpt_schema.demo.linen_gpt import ModelSizes
from ckpt_schema.demo.report import DemoReport, Difference, Duration, Outcome, show
from ckpt_schema.demo.training import Form, LinenForm, NnxForm, make_mesh, make_optimizer, train
from ckpt_schema.orbax import RestoreTimes

__all__ = ["run_demo"]

DEVICES = 8
TRAINED = 40  # steps in Linen before anything is saved
RESUMED = 20  # steps after each restore
LAYERS = {True: "scanned", False: "unrolled"}


def run_demo(console: Console | None = None) -> int:
    """Runs the demo and prints what it found.

    Returns:
        0 when every pair of runs has the same losses to the last bit, 1 otherwise.

    Raises:
        RuntimeError: jax has fewer than 8 devices.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    if len(jax.devices()) < DEVICES:
        raise RuntimeError(
            f"the demo needs {DEVICES} devices and jax has {len(jax.devices())}: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={DEVICES} before jax starts, as `ckpt-schema demo` does"
        )
    with (
        tempfile.TemporaryDirectory(prefix="ckpt_schema_demo_") as folder,
        _progress(console) as task,
    ):
        report = _Demo(pathlib.Path(folder), task).report()
    show(report, console)
    return 0 if report.passed else 1


@contextlib.contextmanager
def _progress(console: Console) -> Generator[Callable[[str], Callable[[], None]]]:
    """Gives a function that starts a line of progress and returns what counts its steps.

    Plain lines without a terminal.
    """
    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not console.is_terminal) as bars:

        def start(name: str) -> Callable[[], None]:
            if not console.is_terminal:
                console.print(name, highlight=False)
            task = bars.add_task(name, total=TRAINED if name.startswith("train") else RESUMED)
            return lambda: bars.advance(task)

        yield start


class _Demo:
    """One run: the forms, the checkpoint they all start from, and what was measured so far."""

    def __init__(self, folder: pathlib.Path, task: Callable[[str], Callable[[], None]]) -> None:
        self.folder, self.task = folder, task
        self.text, self.mesh = standard_library(), make_mesh(2, 4)
        sizes, tx = ModelSizes(), make_optimizer()
        self.linen = {scanned: LinenForm(sizes, tx, scanned) for scanned in LAYERS}
        self.nnx = {scanned: NnxForm(sizes, tx, scanned) for scanned in LAYERS}
        self.durations: list[Duration] = []

    def report(self) -> DemoReport:
        """Trains, saves, resumes and compares."""
        checkpoint = self.folder / "linen"
        self._train(checkpoint)
        cells: list[Outcome] = []
        full: dict[tuple[str, bool], list[float]] = {}
        for scanned in LAYERS:
            for what in ("full state", "weights only"):
                runs = [self._resume(f, scanned, what, checkpoint) for f in ("Linen", "NNX")]
                linen, nnx = (losses for _, losses in runs)
                cells.append(
                    Outcome(LAYERS[scanned], what, ("Linen -> Linen", linen), ("Linen -> NNX", nnx))
                )
                if what == "full state":
                    full |= {("Linen", scanned): linen, ("NNX", scanned): nnx}
                    cells.append(self._back(scanned, runs[1][0]))
        differences = tuple(_difference(f, full[f, True], full[f, False]) for f in ("Linen", "NNX"))
        return DemoReport(tuple(cells), tuple(self.durations), differences)

    def _form(self, framework: str, scanned: bool) -> Form:
        return self.linen[scanned] if framework == "Linen" else self.nnx[scanned]

    def _train(self, checkpoint: pathlib.Path) -> None:
        """Trains the scanned Linen model on a mesh of its own shape, and saves it as any Linen user would."""
        form, mesh = self.linen[True], make_mesh(4, 2)
        state = form.start(form.init(), mesh)
        state, _ = train(
            form,
            state,
            self.text,
            mesh,
            0,
            TRAINED,
            self.task("train Linen, scanned, on mesh (4, 2)"),
        )
        cs.orbax.save(checkpoint, state, cs.derive(form.layout, form.layout))

    def _resume(
        self, framework: str, scanned: bool, what: str, checkpoint: pathlib.Path
    ) -> tuple[Any, list[float]]:
        """Restores the Linen checkpoint into a form on the other mesh, and trains on."""
        name = f"{framework}, {LAYERS[scanned]}, {what}"
        form, source = self._form(framework, scanned), self.linen[True]
        if what == "full state":
            state = self._restore(
                name, checkpoint, form.abstract(self.mesh), cs.derive(source.layout, form.layout)
            )
        else:
            lens = cs.derive(source.weights_layout, form.weights_layout)
            weights = self._restore(name, checkpoint, form.weights(self.mesh), lens)
            state = form.start(weights, self.mesh)
        return train(
            form, state, self.text, self.mesh, TRAINED, RESUMED, self.task(f"resume {name}")
        )

    def _back(self, scanned: bool, state: Any) -> Outcome:
        """The NNX run goes on, and beside it a Linen run from a checkpoint that the NNX run saved in Linen's layout."""
        nnx, linen = self.nnx[scanned], self.linen[scanned]
        checkpoint = self.folder / f"nnx_{LAYERS[scanned]}"
        cs.orbax.save(checkpoint, state, cs.derive(self.linen[True].layout, nnx.layout))
        first = TRAINED + RESUMED
        _, on = train(
            nnx,
            state,
            self.text,
            self.mesh,
            first,
            RESUMED,
            self.task(f"go on in NNX, {LAYERS[scanned]}"),
        )
        name = f"NNX -> Linen, {LAYERS[scanned]}, full state"
        lens = cs.derive(self.linen[True].layout, linen.layout)
        back = self._restore(name, checkpoint, linen.abstract(self.mesh), lens, aux=None)
        _, losses = train(
            linen, back, self.text, self.mesh, first, RESUMED, self.task(f"resume {name}")
        )
        return Outcome(
            LAYERS[scanned], "full state, back", ("NNX -> NNX", on), ("NNX -> Linen", losses)
        )

    def _restore(
        self,
        name: str,
        checkpoint: pathlib.Path,
        target: Any,
        lens: cs.Lens,
        aux: str | None = "nnx_aux",
    ) -> Any:
        def note(times: RestoreTimes) -> None:
            self.durations.append(Duration(name, times.metadata, times.read, times.lens))

        return cs.orbax.restore(checkpoint, target, lens, aux=aux, times=note)


def _difference(framework: str, scanned: list[float], unrolled: list[float]) -> Difference:
    pairs = list(zip(scanned, unrolled, strict=True))
    step = next((i for i, (a, b) in enumerate(pairs) if a.hex() != b.hex()), None)
    return Difference(framework, step, *pairs[step or 0])

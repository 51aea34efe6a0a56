"""What the demo measured, and how it is told."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.table import Table
from rich.text import Text as Styled

__all__ = ["DemoReport", "Difference", "Duration", "Outcome", "show"]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """Two runs that must have the same losses.

    Attributes:
        layers: ``scanned`` or ``unrolled``.
        what: What was restored.
        left: How the first run came to be, and its losses.
        right: The same of the second.
    """

    layers: str
    what: str
    left: tuple[str, list[float]]
    right: tuple[str, list[float]]

    @property
    def equal(self) -> int:
        """How many of the losses, from the first on, are the same to the last bit."""
        pairs = zip(self.left[1], self.right[1], strict=True)
        return next((i for i, (a, b) in enumerate(pairs) if a.hex() != b.hex()), len(self.left[1]))

    @property
    def passed(self) -> bool:
        """Whether all of them are."""
        return self.equal == len(self.left[1])


@dataclasses.dataclass(frozen=True, slots=True)
class Duration:
    """Where the time of one restore went, in seconds."""

    name: str
    metadata: float
    read: float
    lens: float


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """The first step at which scanned and unrolled layers compute different losses, in one framework; None if there is none."""

    framework: str
    step: int | None
    scanned: float
    unrolled: float


@dataclasses.dataclass(frozen=True, slots=True)
class DemoReport:
    """All of it."""

    cells: tuple[Outcome, ...]
    durations: tuple[Duration, ...]
    differences: tuple[Difference, ...]

    @property
    def passed(self) -> bool:
        """Whether every pair of runs is equal to the last bit."""
        return all(cell.passed for cell in self.cells)


def show(report: DemoReport, console: Console) -> None:
    """Prints the matrix, the evidence and the times."""
    console.print(_matrix(report))
    for difference in report.differences:
        console.print(_evidence(difference), highlight=False, soft_wrap=True)
    console.print(_times(report))
    verdict = (
        "PASS: every pair of runs is equal to the last bit"
        if report.passed
        else "FAIL: some losses differ"
    )
    console.print(Styled(verdict, style="bold green" if report.passed else "bold red"))


def _matrix(report: DemoReport) -> Table:
    table = Table(
        title="Losses after a restore onto another mesh, as hex floats", title_justify="left"
    )
    for name in ("layers", "restored", "run", "first loss", "last loss", "equal", ""):
        table.add_column(name, no_wrap=True)
    for cell in report.cells:
        verdict = Styled(
            "PASS" if cell.passed else "FAIL", style="green" if cell.passed else "bold red"
        )
        for row, (name, losses) in enumerate((cell.left, cell.right)):
            equal = "" if row == 0 else f"{cell.equal}/{len(losses)}"
            head = (cell.layers, cell.what) if row == 0 else ("", "")
            table.add_row(
                *map(Styled, (*head, name, losses[0].hex(), losses[-1].hex(), equal)),
                verdict if row else Styled(""),
            )
        table.add_section()
    return table


def _evidence(difference: Difference) -> Styled:
    if difference.step is None:
        return Styled(
            f"{difference.framework}: scanned and unrolled layers computed the same losses in every step."
        )
    return Styled(
        f"{difference.framework}: scanned and unrolled layers are different programs to XLA, which adds in another order. "
        f"{difference.step} steps after the restore their losses first differ ({difference.scanned.hex()} and "
        f"{difference.unrolled.hex()}), so scanned is compared with scanned, and unrolled with unrolled."
    )


def _times(report: DemoReport) -> Table:
    table = Table(title="Seconds per restore", title_justify="left")
    for name in ("restore", "metadata", "read", "lens"):
        table.add_column(name, justify="left" if name == "restore" else "right")
    for d in report.durations:
        table.add_row(*map(Styled, (d.name, f"{d.metadata:.3f}", f"{d.read:.3f}", f"{d.lens:.3f}")))
    return table

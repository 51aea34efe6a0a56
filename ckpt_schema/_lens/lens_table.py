"""The table of a lens, as text and as a notebook shows it: where each leaf goes, what is edited, what is private."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.table import Layout, Row, called
from ckpt_schema._lens.derive.joins import Join
from ckpt_schema._lens.derive.middle import Joined
from ckpt_schema._lens.description import described
from ckpt_schema._messages.html import Section
from ckpt_schema._messages.pictures import Picture
from ckpt_schema._messages.text import PRINT_WIDTH, printed_table

__all__ = ["LensTable"]


class _Line(NamedTuple):
    """One line of the table.

    Attributes:
        source: The key paths there; ``-`` where it has none.
        view: The same.
        done: What happens on the way, or that the leaf is private.
        row: The row that the line is about: of the view, where it has one.
    """

    source: str
    view: str
    done: str
    row: Row


class LensTable:
    """The lines of a lens, joined leaves and private ones.

    Args:
        lens: The lens.
        losses: What is lost, by the logical path in the view.
    """

    def __init__(self, lens: Joined, losses: Mapping[str, str]) -> None:
        self._tables = lens.source, lens.view
        self._wholes = lens.wholes
        self._losses = losses
        self._folds = lens.folds
        self.joined: list[_Line] = []
        here: set[int] = set()
        there: set[int] = set()
        for join in lens.joins:
            self.joined.append(self._line(join))
            for before, after in join.pairs:
                here.add(before)
                there.add(after)
        self.private: tuple[list[_Line], list[_Line]] = ([], [])
        for row in _others(lens.source, here):
            self.private[0].append(_Line(_key(row), "-", _private(row), row))
        for row in _others(lens.view, there):
            self.private[1].append(_Line("-", _key(row), _private(row), row))

    def _line(self, join: Join) -> _Line:
        """The line of leaves that go from side to side."""
        source, view = self._tables
        # The joins speak of what is computed of several leaves, and so do their words.
        words = [described(join, (self._wholes[0].rows, self._wholes[1].rows))]
        # It is a copy of what another carries.
        if any(join.compares):
            words.append("tied")
        for table, folds, rows in zip(
            self._tables, self._folds, (join.sources, join.views), strict=True
        ):
            for fold in folds:
                if fold.row in rows:
                    words.append(fold.kind.told(_keys(table, fold.parts)))
        if any(_path(view.rows[number]) in self._losses for number in join.views):
            words.append("not exact")
        row = view.rows[join.views[0]] if join.views else source.rows[join.sources[0]]
        keys = _keys(source, join.sources), _keys(view, join.views)
        return _Line(*keys, ", ".join(filter(None, words)), row)

    @property
    def title(self) -> str:
        """Which layouts, and how much of them is joined."""
        here, there = called(*self._tables)
        title = (
            f"{here} -> {there}: {len(self.joined)} joined, "
            f"{len(self.private[0])} private to {here}, {len(self.private[1])} private to {there}"
        )
        if self._losses:
            title += f", {len(self._losses)} not exact (lens.loss says by how much)"
        return title

    def text(self, *, in_full: bool = False) -> str:
        """Every leaf.

        Args:
            in_full: Whether each leaf is one line, however long.
        """
        lines = [*self.joined, *self.private[0], *self.private[1]]
        cells = [(line.source, line.view, line.done) for line in lines]
        return printed_table(self.title, cells, None if in_full else PRINT_WIDTH)

    def picture(self) -> Picture:
        """First what is edited, then what is private, then what only moves; a moment stands beside its param."""
        here, there = called(*self._tables)
        followed, lines = _folded(self.joined)
        # What only moves is most of a lens, and folded away: what is done is to be seen at once.
        edited, moved = [], []
        for line in lines:
            moments = ", ".join(followed.get(_path(line.row), ()))
            cells = line.source, line.view, line.done, moments
            (edited if line.done else moved).append(cells)
        header = here, there, "what happens", "optimizer"
        sections = [Section("edited", header, edited)]
        for name, lines in zip((here, there), self.private, strict=True):
            cells = [(_there(line.source), _there(line.view), _bare(line.done)) for line in lines]
            sections.append(Section(f"private to {name}", (here, there, "leaf"), cells))
        sections.append(Section("moved, and nothing else", header, moved, folded=bool(edited)))
        return Picture(self.title, sections)


def _folded(lines: Sequence[_Line]) -> tuple[dict[str, list[str]], list[_Line]]:
    """Which moments go the way of their params, by the paths of these; and the lines of all other leaves."""
    params = {_path(line.row): line for line in lines if not line.row.mirrors}
    followed: dict[str, list[str]] = {}
    left: list[_Line] = []
    for line in lines:
        param = params.get(line.row.mirrors)
        # What is done otherwise than to the param is told: a scale of its own, another dtype.
        if param is None or param.done != line.done:
            left.append(line)
            continue
        # opt_state/0/mu/dense/kernel stands beside dense/kernel as 0/mu.
        in_state = line.row.path[line.row.optimizer :]
        moment = in_state[: len(in_state) - len(param.row.model_path)]
        followed.setdefault(_path(param.row), []).append("/".join(moment))
    return followed, left


def _others(table: Layout, joined: set[int]) -> Iterator[Row]:
    """The rows that have no partner."""
    return (row for number, row in enumerate(table.rows) if number not in joined)


def _keys(table: Layout, rows: Sequence[int]) -> str:
    return " ".join(_key(table.rows[number]) for number in rows)


def _path(row: Row) -> str:
    return "/".join(row.path)


def _key(row: Row) -> str:
    return paths.format_path(row.key)


def _there(keys: str) -> str:
    """Key paths; nothing for those of a side that has none."""
    return "" if keys == "-" else keys


def _bare(done: str) -> str:
    """What is said of a private leaf, but that it is private."""
    return done.removeprefix("private, ")


def _private(row: Row) -> str:
    """What a leaf without a partner is, and what becomes of it where no tree has it."""
    if row.default is None:
        return f"private, {row.stored}, {'optional' if row.optional else 'from onto'}"
    # The count beside the key of a stream has the default of the stream, and starts at 0.
    is_of_stream = isinstance(row.default, leaves.FreshKey | leaves.ConstantKey)
    default = 0 if is_of_stream and not row.leaf.is_key else row.default
    return f"private, {row.stored}, default {default}"

"""An optimizer state of another chain, told as such: by parts that are missing or extra, and the two chains side by side."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

from ckpt_schema._layouts.paths import Pattern, format_path
from ckpt_schema._layouts.table import Layout
from ckpt_schema._messages.text import columns
from ckpt_schema.errors import Mismatch

__all__ = ["OptimizerChain", "side_by_side", "with_mirrors"]

_ROOT = "opt_state"
_HINT = "declare the transformation that made the state; a lens between both chains then aligns their parts"


_Part = tuple[str, ...]


def _spelled(key: Pattern) -> _Part:
    """A key path without the difference between numbers and strings of digits, which a save does not keep."""
    return tuple(k if isinstance(k, str) else str(k) for k in key)


class OptimizerChain:
    """The optimizer state of a layout, by parts: what stands below one position of the chain."""

    def __init__(self, table: Layout) -> None:
        """Reads the rows of ``table``."""
        keys = [row.key for row in table.rows if row.path[0] == _ROOT and _ROOT in row.key]
        self._name = table.name
        self._head = _spelled(keys[0][: keys[0].index(_ROOT) + 1]) if keys else None
        types = {part.path[1:]: part.type.__name__ for part in table.parts}
        fields = self._fields(keys)
        self._parts = {
            part: f"{types[part]}: {told}" if part in types else told
            for part, told in fields.items()
        }

    @property
    def parts(self) -> Sequence[_Part]:
        """The positions of the chain that keep something; none where there is no optimizer state."""
        return tuple(self._parts)

    def part(self, key: Pattern) -> _Part | None:
        """The position of the chain that a leaf stands at; None outside of the optimizer state.

        Example:
            >>> chain = OptimizerChain(Layout("none", ()))
            >>> chain.part(("opt_state", 0, "mu")) is None
            True
        """
        if self._head is None or _spelled(key[: len(self._head)]) != self._head:
            return None
        if len(key) == len(self._head):
            return None  # a leaf where a chain should be
        below = itertools.takewhile(str.isdecimal, _spelled(key[len(self._head) : -1]))
        return (*self._head, *below)

    def _fields(self, keys: Iterable[Pattern]) -> dict[_Part, str]:
        """What each part keeps, by name."""
        found: dict[_Part, dict[str, None]] = collections.defaultdict(dict)
        for key in keys:
            part = self.part(key)
            if part is not None:
                found[part[len(self._head or ()) :]][str(key[len(part)])] = None
        return {part: ", ".join(names) for part, names in found.items()}

    def faults(
        self, absent: Sequence[Pattern], strays: Sequence[Pattern], present: Sequence[Pattern]
    ) -> Iterator[Mismatch]:
        """A fault for each part that is missing as a whole, or extra as a whole.

        Args:
            absent: The key paths of leaves that are missing.
            strays: Those of leaves that no row has.
            present: Those of the others.
        """
        there = {self.part(key) for key in present}
        for keys, missing in ((absent, True), (strays, False)):
            whole = [key for key in keys if self.part(key) not in {None, *there}]
            for part, told in self._fields(whole).items():
                kept = self._parts.get(part, told) if missing else told
                where = "/".join((*(self._head or ()), *part))
                yield Mismatch(
                    where, "chain", *((kept, "nothing") if missing else ("nothing", kept)), _HINT
                )

    def notes(self, keys: Sequence[Pattern]) -> list[str]:
        """Both chains side by side, as lines: this one, and that of a tree with leaves at ``keys``."""
        found = self._fields(keys)
        sides = [
            [f"{'/'.join(part) or '-'}  {told}" for part, told in parts.items()]
            for parts in (self._parts, found)
        ]
        return side_by_side((self._name, "the tree"), (sides[0], sides[1]))

    def inside(self, key: Pattern, wholes: set[str]) -> bool:
        """Whether a leaf stands in one of the parts at these places."""
        part = self.part(key)
        return part is not None and "/".join(part) in wholes


def with_mirrors(table: Layout, faults: Iterable[Mismatch]) -> Iterator[Mismatch]:
    """The faults, each in a moment or the like with the path of the leaf that this mirrors."""
    homes = dict(_homes(table))
    if not homes:
        yield from faults
        return
    for fault in faults:
        place = next((place for place in homes if fault.path.startswith(place)), None)
        if place is None:
            yield fault
        else:
            param = homes[place] + fault.path[len(place) :]
            yield dataclasses.replace(fault, mirrors=param)


def _homes(table: Layout) -> Iterator[tuple[str, str]]:
    """For each place in the optimizer's state that mirrors the model: where the model itself stands."""
    params = {
        row.path[row.body :]: row.key
        for row in table.rows
        if row.body is not None and not row.mirrors
    }
    for row in table.rows:
        param = params.get(row.path[row.body or 0 :]) if row.mirrors else None
        if param is None:
            continue
        place, home = _ends(row.key, param)
        for spelled in (place, _spelled(place)):  # as it is declared, and as a save has it
            yield _before(spelled), _before(home)


def _ends(mirror: Pattern, param: Pattern) -> tuple[Pattern, Pattern]:
    """What stands before the part of both keys that is the same."""
    while param and mirror[-1] == param[-1]:
        mirror, param = mirror[:-1], param[:-1]
    return mirror, param


def _before(place: Pattern) -> str:
    """What every key path below a place begins with."""
    return f"{format_path(place)}/" if place else ""


def side_by_side(names: tuple[str, str], sides: tuple[Sequence[str], Sequence[str]]) -> list[str]:
    """Two chains, as lines below a header."""
    length = max(map(len, sides))
    cells = [names, *zip(*([*side, *[""] * (length - len(side))] for side in sides), strict=True)]
    return ["  the two chains:", *columns(cells, indent=4)]

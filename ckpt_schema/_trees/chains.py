"""An optimizer state of another chain, told as such: by parts that are missing or extra, and the two chains side by side."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ckpt_schema._layouts.paths import Pattern, format_path
from ckpt_schema._layouts.table import Layout
from ckpt_schema._messages.text import columns
from ckpt_schema.errors import Mismatch

__all__ = ["OptimizerChain", "side_by_side", "with_mirrors"]

_HINT = "declare the transformation that made the state; a lens between both chains then aligns their parts"


_Part = tuple[str, ...]


def _spelled(key: Pattern) -> _Part:
    """A key path without the difference between numbers and strings of digits, which a save does not keep."""
    return tuple(k if isinstance(k, str) else str(k) for k in key)


class OptimizerChain:
    """The optimizer state of a layout, by parts: what stands below one position of the chain."""

    def __init__(self, table: Layout) -> None:
        """Reads the rows of ``table``."""
        self._name = table.name
        self._heads = tuple(_spelled(key) for _, key in table.states)
        types: dict[_Part, str] = {}
        for path, key in table.states:
            for part in table.parts:
                if part.path[: len(path)] == path:
                    types[(*_spelled(key), *part.path[len(path) :])] = part.type.__name__
        fields = self._fields(row.key for row in table.rows if row.optimizer)
        self._models: dict[_Part, str] = {}
        for row in table.rows:
            part = self.part(row.key) if row.mirrors else None
            if part is not None:
                self._models.setdefault(part, row.mirrors.partition("/")[0])
        self._parts = {
            part: f"{types[part]}: {told}" if part in types else told
            for part, told in fields.items()
        }

    @property
    def parts(self) -> Sequence[_Part]:
        """The positions of the chain that keep something.

        None where there is no optimizer state.
        """
        return tuple(self._parts)

    def _head(self, key: _Part) -> _Part | None:
        """Where the state stands that a key path is in."""
        return next((head for head in self._heads if key[: len(head)] == head), None)

    def part(self, key: Pattern) -> _Part | None:
        """The position of the chain that a leaf stands at; None outside of the optimizer state.

        Example:
            >>> chain = OptimizerChain(Layout("none", ()))
            >>> chain.part(("opt_state", 0, "mu")) is None
            True
        """
        spelled = _spelled(key)
        head = self._head(spelled)
        if head is None or len(key) == len(head):
            return None  # outside, or a leaf where a chain should be
        return (*head, *itertools.takewhile(str.isdecimal, spelled[len(head) : -1]))

    def _fields(self, keys: Iterable[Pattern]) -> dict[_Part, str]:
        """What each part keeps, by name."""
        fields: dict[_Part, dict[str, None]] = collections.defaultdict(dict)
        for key in keys:
            part = self.part(key)
            if part is not None:
                fields[part][str(key[len(part)])] = None
        return {part: ", ".join(names) for part, names in fields.items()}

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
        lost, extra = (
            [key for key in keys if self.part(key) not in {None, *there}]
            for keys in (absent, strays)
        )
        fields = self._fields(lost), self._fields(extra)
        for part, told in fields[0].items():
            if part not in self._models or fields[1].get(part) != told:
                yield Mismatch("/".join(part), "chain", self._parts[part], "nothing", _HINT)
                continue
            ends = [next(k for k in keys if self.part(k) == part) for keys in (lost, extra)]
            leaves = [format_path(key[len(part) + 1 :]) for key in ends]
            model = self._models[part]
            expected = f"{self._parts[part]}, for the leaves of {model}, such as {leaves[0]}"
            found = f"the same for other leaves, such as {leaves[1]}"
            hint = f"it was made of another model than {model}: say which, optimizer(tx, of=...)"
            yield Mismatch("/".join(part), "chain", expected, found, hint)
        for part, told in fields[1].items():
            if fields[0].get(part) != told or part not in self._models:
                yield Mismatch("/".join(part), "chain", "nothing", told, _HINT)

    def notes(self, keys: Sequence[Pattern]) -> list[str]:
        """Both chains side by side, as lines: this one, and that of a tree with leaves at ``keys``."""
        fields = self._fields(keys)
        declared, there = self._lines(self._parts), self._lines(fields)
        return side_by_side((self._name, "the tree"), (declared, there))

    def _lines(self, parts: Mapping[_Part, str]) -> list[str]:
        return [f"{self._position(part)}  {kept}" for part, kept in parts.items()]

    def _position(self, part: _Part) -> str:
        """Where in its chain a part stands.

        With that chain's own place, where there are several.
        """
        head = self._head(part) or ()
        return "/".join(part[len(head) :] if len(self._heads) == 1 else part) or "-"

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
    params = {"/".join(row.path): row.key for row in table.rows if not row.optimizer}
    for row in table.rows:
        param = params.get(row.mirrors) if row.mirrors else None
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

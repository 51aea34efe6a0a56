"""An optimizer state of another chain, told as such: by parts that are missing or extra, and the two chains side by side.

`conformance` asks where leaves are missing or extra. Without this a chain that has grown at its front
would be an error for each leaf of each moment, since all later parts have other numbers.
"""

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


# Such as ("opt_state", "1", "0"): the first part of a chain that is the second of another.
_Part = tuple[str, ...]


def _spelled(key: Pattern) -> _Part:
    """A key path without the difference between numbers and strings of digits, which a save does not keep."""
    return tuple(map(str, key))


class OptimizerChain:
    """The optimizer state of a layout, by parts: what stands below one position of the chain."""

    def __init__(self, table: Layout) -> None:
        """Reads the rows of ``table``."""
        self._name = table.name
        self._heads = tuple(_spelled(key) for _, key in table.states)
        # The layout names parts by logical paths, faults are told by key paths.
        types: dict[_Part, str] = {}
        for path, key in table.states:
            for part in table.parts:
                if part.path[: len(path)] == path:
                    types[(*_spelled(key), *part.path[len(path) :])] = part.type.__name__
        # Which model each part keeps moments of: of two models, their chains may be equal.
        self._models: dict[_Part, str] = {}
        for row in table.rows:
            part = self.part(row.key) if row.mirrors else None
            if part is not None:
                self._models.setdefault(part, row.mirrors.partition("/")[0])
        # What an error says of each part: "ScaleByAdamState: count, mu, nu".
        self._parts: dict[_Part, str] = {}
        keys: list[Pattern] = []
        for row in table.rows:
            if row.optimizer:
                keys.append(row.key)
        for part, names in self._fields(keys).items():
            self._parts[part] = f"{types[part]}: {names}" if part in types else names

    @property
    def parts(self) -> Sequence[_Part]:
        """The positions of the chain that keep something.

        None where there is no optimizer state.
        """
        return tuple(self._parts)

    def _head(self, key: _Part) -> _Part | None:
        """Where the state stands that a key path is in."""
        for head in self._heads:
            if key[: len(head)] == head:
                return head
        return None

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
        # opt_state/1/0/mu/w stands in opt_state/1/0: positions are numbers, fields have names.
        return (*head, *itertools.takewhile(str.isdecimal, spelled[len(head) : -1]))

    def _fields(self, keys: Iterable[Pattern]) -> dict[_Part, str]:
        """What each part keeps, by name."""
        # Dicts instead of sets: names stand in the order in which the state has them.
        fields: dict[_Part, dict[str, None]] = collections.defaultdict(dict)
        for key in keys:
            part = self.part(key)
            if part is not None:
                fields[part][str(key[len(part)])] = None
        joined: dict[_Part, str] = {}
        for part, names in fields.items():
            joined[part] = ", ".join(names)
        return joined

    def faults(
        self, absent: Sequence[Pattern], strays: Sequence[Pattern], present: Sequence[Pattern]
    ) -> Iterator[Mismatch]:
        """A fault for each part that is missing as a whole, or extra as a whole.

        Args:
            absent: The key paths of leaves that are missing.
            strays: Those of leaves that no row has.
            present: Those of the others.
        """
        # A part of which one leaf is there is not missing as a whole: its leaves are told one by one.
        partly_there = {None, *map(self.part, present)}
        lost: list[Pattern] = []
        for key in absent:
            if self.part(key) not in partly_there:
                lost.append(key)
        extra: list[Pattern] = []
        for key in strays:
            if self.part(key) not in partly_there:
                extra.append(key)
        lost_fields, extra_fields = self._fields(lost), self._fields(extra)
        for part, names in lost_fields.items():
            if part not in self._models or extra_fields.get(part) != names:
                yield Mismatch("/".join(part), "chain", self._parts[part], "nothing", _HINT)
                continue
            # The same part with the same fields, and not one leaf in common: of another model.
            expected_leaf, found_leaf = self._leaf_of(part, lost), self._leaf_of(part, extra)
            model = self._models[part]
            expected = f"{self._parts[part]}, for the leaves of {model}, such as {expected_leaf}"
            found = f"the same for other leaves, such as {found_leaf}"
            hint = f"it was made of another model than {model}: say which, optimizer(tx, of=...)"
            yield Mismatch("/".join(part), "chain", expected, found, hint)
        # A part of another model has been told already, above.
        for part, names in extra_fields.items():
            if lost_fields.get(part) != names or part not in self._models:
                yield Mismatch("/".join(part), "chain", "nothing", names, _HINT)

    def _leaf_of(self, part: _Part, keys: Iterable[Pattern]) -> str:
        """The path below a field of a part, of the first of some keys that stands in it."""
        own = filter(lambda key: self.part(key) == part, keys)
        return format_path(next(own)[len(part) + 1 :])

    def notes(self, keys: Sequence[Pattern]) -> list[str]:
        """Both chains side by side, as lines: this one, and that of a tree with leaves at ``keys``."""
        # Of a tree's parts the types are not known, for a save keeps none.
        declared, there = self._lines(self._parts), self._lines(self._fields(keys))
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
    # opt_state/0/mu/dense/kernel mirrors params/dense/kernel: opt_state/0/mu/ is replaced by params/.
    for fault in faults:
        place = next(filter(fault.path.startswith, homes), None)
        if place is None:
            yield fault
        else:
            param = homes[place] + fault.path[len(place) :]
            yield dataclasses.replace(fault, mirrors=param)


def _homes(table: Layout) -> Iterator[tuple[str, str]]:
    """For each place in the optimizer's state that mirrors the model: where the model itself stands."""
    # Mirrors name their params by written paths.
    params: dict[str, Pattern] = {}
    for row in table.rows:
        if not row.optimizer:
            params["/".join(row.path)] = row.key
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
    # The shorter chain is filled up with empty cells.
    rows = itertools.zip_longest(*sides, fillvalue="")
    return ["  the two chains:", *columns([names, *rows], indent=4)]

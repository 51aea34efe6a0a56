"""Objects of JSON, read name by name; everything that is wrong is noted, with the place where it stands.

Each thing that is read gives a value, a right one or one of its kind in its place, so that reading goes on to the end.
Who asks looks at the faults then: with one of them, what was read is of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["JsonObject"]

_Value = TypeVar("_Value")

_LARGEST = 10**18
"""No size, axis or number of segments is larger."""


class JsonObject:
    """One object of a text.

    Attributes:
        where: Where it stands, ``rows/3``.
        faults: What is wrong with the whole text.
    """

    def __init__(self, told: object, where: str, faults: list[Mismatch]) -> None:
        """Has read nothing yet."""
        self.where, self.faults = where, faults
        # Of what is no object, nothing is told of any name.
        self._entries: Mapping[str, Any] = {}
        if isinstance(told, dict):
            self._entries = cast(dict[str, Any], told)
        else:
            self.say("", "an object", told)
        self._read: set[str] = set()

    def say(self, name: str, expected: str, found: object, hint: str = "") -> None:
        """Notes that something else was expected of a name."""
        self.faults.append(Mismatch(self.at(name), "text", expected, shown(found), hint))

    def at(self, name: str) -> str:
        """Where a name of it stands."""
        return "/".join(filter(None, (self.where, name)))

    def has(self, name: str) -> bool:
        """Whether it tells something of a name."""
        return name in self._entries

    def value(self, name: str) -> Any:
        """What it tells of a name."""
        self._read.add(name)
        return self._entries.get(name)

    def taken(
        self, name: str, expected: str, takes: Callable[[Any], bool], otherwise: _Value
    ) -> _Value:
        """What it tells of a name that it must tell; something else where that is wrong."""
        value = self.value(name)
        # A null that is written is another mistake than a name that is not there.
        if name not in self._entries:
            self.faults.append(Mismatch(self.at(name), "text", expected, "nothing"))
        elif takes(value):
            return value
        else:
            self.say(name, expected, value)
        return otherwise

    def text(self, name: str) -> str:
        """A text."""
        return self.taken(name, "a text", is_text, "")

    def number(self, name: str) -> int:
        """A number of things, 0 where nothing is told."""
        if not self.has(name):
            return 0
        return self.taken(name, "a whole number from 0 on", is_count, 0)

    def flag(self, name: str) -> bool:
        """Whether something is so, not where nothing is told."""
        return self.has(name) and self.taken(
            name, "true or false", lambda x: type(x) is bool, False
        )

    def each(self, name: str) -> Sequence[tuple[str, Any]]:
        """The members of a list, each with where it stands; none where nothing is told."""
        if not self.has(name):
            return ()
        members: list[Any] = self.taken(name, "a list", lambda x: isinstance(x, list), [])
        return [(f"{self.at(name)}/{number}", value) for number, value in enumerate(members)]

    def objects(self, name: str) -> Iterator[JsonObject]:
        """The objects of a list."""
        for where, value in self.each(name):
            yield JsonObject(value, where, self.faults)

    def parsed(self, name: str, parse: Callable[[str], _Value], otherwise: _Value) -> _Value:
        """What a text means; something else where it means nothing."""
        known = len(self.faults)
        text = self.text(name)
        # What is no text is told of once: nothing is asked of its meaning.
        if len(self.faults) > known:
            return otherwise
        return meaning(text, parse, otherwise, self.at(name), self.faults)

    def several(self, name: str, parse: Callable[[str], _Value]) -> list[_Value]:
        """What the texts of a list mean."""
        values: list[_Value] = []
        for where, text in self.each(name):
            if not is_text(text):
                self.faults.append(Mismatch(where, "text", "a text", shown(text)))
                continue
            value = meaning(text, parse, None, where, self.faults)
            if value is not None:
                values.append(value)
        return values

    def close(self) -> None:
        """Notes every name that nobody has asked for."""
        # A misspelled name, or one of a later version, would be passed over in silence.
        for name in self._entries:
            if name not in self._read:
                known = ", ".join(sorted(self._read))
                fault = Mismatch(self.at(shown(name)), "text", f"one of {known}", "another name")
                self.faults.append(fault)


def meaning(
    text: str,
    parse: Callable[[str], _Value],
    otherwise: _Value,
    where: str,
    faults: list[Mismatch],
) -> _Value:
    """What a text means, or something else; what is wrong with it is added to the faults."""
    try:
        return parse(text)
    except SchemaError as error:
        # The parser knows the text alone; where that stands is known here.
        for fault in error.mismatches:
            faults.append(Mismatch(where, "text", fault.expected, fault.found, fault.hint))
    return otherwise


def is_text(value: object) -> bool:
    """Whether this is a text that can be written."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()  # half of a pair of surrogates is no text
    except UnicodeError:
        return False
    return True


def is_count(value: object) -> bool:
    """Whether this is a number of things."""
    # To Python, `true` is an int as well.
    return type(value) is int and 0 <= value < _LARGEST

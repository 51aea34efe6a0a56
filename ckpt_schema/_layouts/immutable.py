"""Dataclasses that nothing changes once they are made, and that are as cheap to make as open ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, dataclass_transform

__all__ = ["immutable", "object_maker", "replaced"]

_Kind = TypeVar("_Kind", bound=type)
_Made = TypeVar("_Made")


@dataclass_transform(field_specifiers=(dataclasses.field,), frozen_default=True)
def immutable(kind: _Kind) -> _Kind:
    """A dataclass with slots and a hash, whose objects nothing changes.

    ``dataclasses.dataclass(frozen=True)`` sets each field of an object by a call, which is most of what an object costs that
    there is one of for each leaf. Here an object is made open, by plain stores, and closed when it is whole.

    Example:
        >>> @immutable
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> Point(1), dataclasses.replace(Point(1), y=2) == Point(1, 2)
        (Point(x=1, y=0), True)
        >>> Point(1).x = 3
        Traceback (most recent call last):
        dataclasses.FrozenInstanceError: cannot assign to field 'x'
    """
    # Two classes: the open one has the slots and plain stores, the closed one refuses every store.
    # An object is made as an open one, and given the closed class when all its fields are stored.
    opened: Any = dataclasses.dataclass(slots=True, unsafe_hash=True)(kind)
    names = _field_names(opened)

    def rebuilt(self: Any) -> tuple[Any, tuple[Any, ...]]:
        """What a copy is made of."""
        values: list[Any] = []
        for name in names:
            values.append(getattr(self, name))
        return type(self), tuple(values)

    members = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        # No slots of its own: Python lets an object change class only between classes of one form.
        "__slots__": (),
        "__new__": _maker(opened),
        "_replaced": _changer(opened),
        # The dataclass's own would store all fields again, into an object that is closed by then.
        "__init__": object.__init__,
        "__setattr__": _refuse_assignment,
        "__delattr__": _refuse_deletion,
        # What copies and pickles would do otherwise is to store the fields one by one, which is refused.
        "__reduce__": rebuilt,
    }
    closed: Any = type(kind.__name__, (opened,), members)
    return closed


def _field_names(opened: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(opened)]


def _maker(opened: Any) -> Any:
    """What makes an object, open until each of its fields is stored: written out for the fields, as dataclasses do."""
    # Of `Point` above: def __new__(cls, x, y=_y), where _y is 0 among the names that the text knows.
    defaults: dict[str, Any] = {}
    parameters: list[str] = []
    stores: list[str] = []
    for field in dataclasses.fields(opened):
        name = field.name
        stores.append(f"    made.{name} = {name}")
        if field.default is dataclasses.MISSING:
            parameters.append(name)
        else:
            defaults[f"_{name}"] = field.default
            parameters.append(f"{name}=_{name}")
    lines = [
        f"def __new__(cls, {', '.join(parameters)}):",
        "    made = new(opened)",
        *stores,
        "    made.__class__ = cls",
        "    return made",
    ]
    known: dict[str, Any] = {**defaults, "new": object.__new__, "opened": opened}
    return _written_out("__new__", lines, known)


def _changer(opened: Any) -> Any:
    """What makes an object like another one but for some fields."""
    # The copy is open while `setattr` is called, which is why a name that is no field raises
    # AttributeError here: an open object has slots for its fields alone.
    lines = [
        "def _replaced(self, changes):",
        "    made = new(opened)",
        *[f"    made.{name} = self.{name}" for name in _field_names(opened)],
        "    for name, value in changes.items():",
        "        setattr(made, name, value)",
        "    made.__class__ = self.__class__",
        "    return made",
    ]
    return _written_out("_replaced", lines, {"new": object.__new__, "opened": opened})


def _written_out(name: str, lines: list[str], known: dict[str, Any]) -> Any:
    """The function of this name that the lines define, with the names that they know."""
    exec("\n".join(lines), known)
    return known[name]


def replaced(made: _Made, **changes: Any) -> _Made:
    """What ``dataclasses.replace`` gives of an immutable object, at the price of making one.

    Raises:
        AttributeError: It has no such field.

    Example:
        >>> @immutable
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> replaced(Point(1), y=2)
        Point(x=1, y=2)
    """
    whole: Any = made
    return whole._replaced(changes)


def object_maker(kind: type[_Made]) -> Callable[..., _Made]:
    """What makes objects of an immutable class as a call of the class does, in half of the time.

    Python looks for ``__new__`` and ``__init__`` whenever a class is called, which costs as much as the object. It is for
    loops that make one for each leaf.

    Example:
        >>> @immutable
        ... class Point:
        ...     x: int
        ...     y: int = 0
        >>> made = object_maker(Point)
        >>> made(1, y=2)
        Point(x=1, y=2)
    """
    made: Any = kind.__new__
    return functools.partial(made, kind)


def _refuse_assignment(self: object, name: str, value: object) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deletion(self: object, name: str) -> NoReturn:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

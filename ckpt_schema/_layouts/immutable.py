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
    opened: Any = dataclasses.dataclass(slots=True, unsafe_hash=True)(kind)
    fields = dataclasses.fields(opened)

    def rebuilt(self: Any) -> tuple[Any, tuple[Any, ...]]:
        """What a copy is made of."""
        return type(self), tuple([getattr(self, field.name) for field in fields])

    members = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__slots__": (),
        "__new__": _maker(opened),
        "_replaced": _changer(opened),
        "__init__": object.__init__,
        "__setattr__": _refuse_assignment,
        "__delattr__": _refuse_deletion,
        "__reduce__": rebuilt,
    }
    closed: Any = type(kind.__name__, (opened,), members)
    return closed


def _maker(opened: Any) -> Any:
    """What makes an object, open until each of its fields is stored: written out for the fields, as dataclasses do."""
    fields = dataclasses.fields(opened)
    defaults = {f"_{f.name}": f.default for f in fields if f.default is not dataclasses.MISSING}
    names = [f"{f.name}=_{f.name}" if f"_{f.name}" in defaults else f.name for f in fields]
    lines = [
        f"def __new__(cls, {', '.join(names)}):",
        "    made = new(opened)",
        *[f"    made.{field.name} = {field.name}" for field in fields],
        "    made.__class__ = cls",
        "    return made",
    ]
    known: dict[str, Any] = {**defaults, "new": object.__new__, "opened": opened}
    exec("\n".join(lines), known)
    return known["__new__"]


def _changer(opened: Any) -> Any:
    """What makes an object like another one but for some fields."""
    lines = [
        "def _replaced(self, changes):",
        "    made = new(opened)",
        *[f"    made.{field.name} = self.{field.name}" for field in dataclasses.fields(opened)],
        "    for name, value in changes.items():",
        "        setattr(made, name, value)",
        "    made.__class__ = self.__class__",
        "    return made",
    ]
    known: dict[str, Any] = {"new": object.__new__, "opened": opened}
    exec("\n".join(lines), known)
    return known["_replaced"]


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

"""Types by their names: Variable types, containers and the parts of optimizers, as a text tells of them.

Nothing is imported and nothing is called for a name. It stands for a type of Flax or optax, or for one that
the caller has in another layout; any other name for a stand-in, of which nothing can be made.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jax
from flax import nnx

from ckpt_schema._layouts.paths import Key
from ckpt_schema._layouts.table import Layout, Node, is_part
from ckpt_schema.errors import ConformanceError, Mismatch

__all__ = [
    "KnownTypes",
    "TypeTraits",
    "UntoldStructure",
    "given_out_by",
    "traits_of",
    "type_name",
    "types_in",
]

_PLAIN: Mapping[str, type] = {
    "None": type(None),
    "tuple": tuple,
    "list": list,
    "dict": dict,
    "collections.OrderedDict": collections.OrderedDict,
    "jax.Array": jax.Array,
}
_LIBRARIES = ("flax", "optax")
"""What is loaded already, and may be named."""

_CURE = "read the text with like=, a layout that has the type; or pass onto=, a tree that has one"


def given_out_by(kind: type) -> str | None:
    """The module that gives a type out: the outermost of those above where it is written.

    Example:
        >>> given_out_by(nnx.Param), given_out_by(collections.OrderedDict)
        ('flax.nnx', 'collections')
    """
    # Users write flax.nnx.Param, though the class is in flax/nnx/variablelib.py: a text says the same.
    parts = kind.__module__.split(".")
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        if getattr(sys.modules.get(module), kind.__qualname__, None) is kind:
            return module
    return None


@functools.lru_cache(maxsize=256)
def type_name(kind: type) -> str:
    """The name of a type.

    Example:
        >>> type_name(tuple), type_name(type(None)), type_name(nnx.BatchStat)
        ('tuple', 'None', 'flax.nnx.BatchStat')
    """
    # By identity: a class of the user's may derive from tuple, and be named tuple.
    for name, plain in _PLAIN.items():
        if kind is plain:
            return name
    return f"{given_out_by(kind) or kind.__module__}.{kind.__qualname__}"


@dataclasses.dataclass(frozen=True, slots=True)
class TypeTraits:
    """What is kept of a type besides its name, for those who do not have it.

    Attributes:
        variable: The name of the Variable type of Flax that it is a kind of; empty for a container.
        fields: The fields of a NamedTuple; None for anything else.
    """

    variable: str = ""
    fields: tuple[str, ...] | None = None


def traits_of(kind: type) -> TypeTraits | None:
    """What is to be kept of a type; nothing where its name says it to everybody."""
    if _of_library(type_name(kind)) is kind:
        return None
    if issubclass(kind, nnx.Variable):
        # The nearest base that everybody has: of a LoRAParam of the user's own it is nnx.LoRAParam.
        for base in kind.__mro__:
            if _of_library(type_name(base)) is base:
                return TypeTraits(variable=type_name(base))
    fields: Any = getattr(kind, "_fields", None)
    return TypeTraits(fields=None if fields is None else tuple(fields))


def _of_library(name: str) -> type | None:
    """The type of this name in Flax, optax or Python: found among what is loaded, without a call."""
    if name in _PLAIN:
        return _PLAIN[name]
    module, _, own = name.rpartition(".")
    if module.partition(".")[0] not in _LIBRARIES:
        return None
    # vars and not getattr: a module may make what it is asked for, and a name in a text must run nothing.
    found = vars(sys.modules[module]).get(own) if module in sys.modules else None
    # A text may name any class of these libraries, and only some are safe to make.
    is_used = isinstance(found, type) and (issubclass(found, nnx.Variable) or _is_container(found))
    return found if is_used else None


def _is_container(kind: type) -> bool:
    """Whether making one of its children does nothing else."""
    return (issubclass(kind, tuple) and is_part(kind)) or issubclass(kind, Mapping)


class KnownTypes:
    """The types that names stand for.

    Args:
        like: Layouts whose types are known besides; of two of one name that of the first.
    """

    def __init__(self, like: Iterable[Layout] = ()) -> None:
        """Knows the types of these layouts."""
        self._known: dict[str, type] = {}
        self._nodes: dict[tuple[Any, type], Node] = {}
        self._traits: dict[str, TypeTraits] = {}
        for table in like:
            # The first of a name stays, so that the order of the layouts decides.
            for kind in types_in(table):
                self._known.setdefault(type_name(kind), kind)
            for node in table.nodes:
                self._nodes.setdefault((node.key, node.type), node)

    def tell(self, name: str, traits: TypeTraits) -> None:
        """Notes what a text says of a type."""
        self._traits[name] = traits

    def variable(self, name: str) -> type | None:
        """The Variable type of this name, or that of a plain array; None where it stands for something else."""
        found = self._found(name)
        if found is jax.Array:
            return found
        if found is None:
            # What a text says of a type's base is held against Flax as well: it may name anything.
            base = self._traits.get(name, TypeTraits()).variable
            whole = _of_library(base) if base else nnx.Variable
            found = None if whole is None else _stand_in(name, whole)
        return found if found is not None and issubclass(found, nnx.Variable) else None

    def container(self, name: str) -> type | None:
        """The container of this name; None where it stands for something else."""
        found = self._found(name)
        if found is None:
            found = _stand_in(name, object, self._traits.get(name, TypeTraits()).fields)
        return None if found is jax.Array or issubclass(found, nnx.Variable) else found

    def structure(self, key: Any, kind: type, names: tuple[Key, ...]) -> Any:
        """What a found container is built by anew: what a known layout has there, or what nobody tells."""
        node = self._nodes.get((key, kind))
        # The names of the children have to be the same too, or the data could be of another shape.
        if node is not None and node.static is not None and node.static[1] == names:
            return node.static
        return UntoldStructure(type_name(kind)), names

    def _found(self, name: str) -> type | None:
        # Flax's own first: no layout can put another class under a name of Flax.
        return _of_library(name) or self._known.get(name)


def types_in(table: Layout) -> Iterator[type]:
    """Every type that a layout speaks of."""
    for row in table.rows:
        if isinstance(row.kind, type):
            yield row.kind
        for _, container in row.held:
            yield container
    for node in table.nodes:
        yield node.type
    for part in table.parts:
        yield part.type


@dataclasses.dataclass(frozen=True, slots=True)
class UntoldStructure:
    """Stands for the structure of a container with data that no leaf tells.

    Attributes:
        name: The container's class.
    """

    name: str

    def unflatten(self, children: Iterable[Any]) -> NoReturn:
        """Raises, for nobody has told the data.

        Raises:
            ConformanceError: Always.
        """
        raise _unmade(self.name)


# Cached, so that two layouts of one text have one type, and are equal.
@functools.cache
def _stand_in(name: str, base: type, fields: tuple[str, ...] | None = None) -> type:
    """A type that has nothing but a name, and is equal to those of the same name alone."""
    module, _, own = name.rpartition(".")

    def refuse(cls: type, *values: Any, **named: Any) -> NoReturn:
        raise _unmade(name)

    # Everything may be asked of a stand-in but an object of it.
    def fill(body: dict[str, Any]) -> None:
        body.update(__module__=module, __qualname__=own, __new__=refuse, __doc__="A stand-in.")
        if fields is not None:
            body["_fields"] = fields

    return types.new_class(own or name, (base if fields is None else tuple,), {}, fill)


def _unmade(name: str) -> ConformanceError:
    expected, found = "the class that has this name", "its name alone"
    fault = Mismatch(name, "container", expected, found, _CURE)
    return ConformanceError(f"{name} cannot be made", [fault])

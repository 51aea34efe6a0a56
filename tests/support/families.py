"""Random layouts of one model: schema classes with the same logical names, spelled, stacked and shaped differently."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

import jaxtyping
from hypothesis import strategies as st

import ckpt_schema as cs
from ckpt_schema._layouts.dims import Dim, Dims, format_dims
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema.testing._values import IMPLS

NAMES = ("a", "b", "c", "d")
SIDES = 3
_CLASSES = {
    "float32": "Float32",
    "bfloat16": "BFloat16",
    "int32": "Int32",
    "uint32": "UInt32",
    "bool": "Bool",
    "int8": "Int8",
}
SYMBOLS = ("/{i}", "_{i}", "/'{i}'", "/block{i}", "/{i+1}", "_{i+1:02}", "_{2*i}")
_FLOATS = ("float32", "bfloat16", "float8_e5m2")
_OTHERS = ("int32", "bool", "int8", "key")


@st.composite
def groupings(draw: st.DrawFn, atoms: tuple[Any, ...]) -> Dims:
    """The factors in this order, some neighbors merged into one axis."""
    dims: list[Dim] = []
    for atom in atoms:
        if dims and draw(st.integers(0, 2)) == 0:
            dims[-1] = (*dims[-1], atom)
        else:
            dims.append((atom,))
    return tuple(dims)


@dataclasses.dataclass(frozen=True)
class Family:
    """Schemas of one model, any two of which have a lens between them, and the sizes of all their dims.

    Attributes:
        schemas: The schemas.
        sizes: In elements.
    """

    schemas: tuple[type[cs.Schema], ...]
    sizes: Mapping[str, int]

    def __repr__(self) -> str:
        """All tables, for hypothesis to print when a law fails."""
        return "\n".join(
            [*(str(cs.layout(schema)) for schema in self.schemas), str(dict(self.sizes))]
        )


@dataclasses.dataclass
class _Side:
    """One schema class while it is drawn."""

    annotations: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def declare(self, name: str, annotation: Any, **told: Any) -> None:
        """Adds an attribute."""
        self.annotations[name] = annotation
        self.fields[name] = cs.field(**told)

    def close(self, name: str) -> type[cs.Schema]:
        """The class."""
        body = {"__annotations__": self.annotations, **self.fields}
        return types.new_class(
            name, (cs.Schema,), exec_body=lambda namespace: namespace.update(body)
        )


_Sides = tuple[_Side, ...]


@dataclasses.dataclass(frozen=True)
class _Level:
    """Where a node is drawn.

    Attributes:
        depth: How many nodes it is in.
        floats: Whether every leaf is a float that all sides have, so that an optimizer can be made for any side.
    """

    depth: int
    floats: bool


@st.composite
def families(draw: st.DrawFn, *, floats: bool = False) -> Family:
    """A family; with ``floats``, one whose leaves are all floats that every side has."""
    schemas = draw(_schemas(_Level(0, floats), "model"))
    sizes: dict[str, int] = {name: draw(st.sampled_from((0, 1, 2, 3))) for name in NAMES}
    sizes |= {name: draw(st.integers(1, 3)) for name in ("layers0", "layers1")}
    return Family(schemas, sizes)


@st.composite
def _schemas(draw: st.DrawFn, level: _Level, name: str) -> tuple[type[cs.Schema], ...]:
    sides = tuple(_Side() for _ in range(SIDES))
    for number in range(draw(st.integers(1, 3))):
        draw(_leaf(level, sides, f"leaf{number}", required=level.floats or number == 0))
    if level.depth < 2:
        for number in range(draw(st.integers(0, 2))):
            draw(_node(level, sides, f"node{number}"))
        if draw(st.booleans()):
            draw(_repeated(level, sides, f"layers{level.depth}"))
    if not level.floats and draw(st.integers(0, 2)) == 0:
        draw(_private(sides, "own"))
    return tuple(side.close(name) for side in sides)


def _annotation(dims: Dims, dtype: str) -> Any:
    if dtype in _CLASSES:
        return getattr(jaxtyping, _CLASSES[dtype])[jaxtyping.Array, format_dims(dims)]
    return cs.Key[dtype[4:-1], format_dims(dims)] if dtype in IMPLS else Leaf(dims, dtype)


def _default(dtype: str) -> Any:
    return cs.fresh_key(5) if dtype in IMPLS else True if dtype == "bool" else 1


@st.composite
def _spelling(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """How one side spells an attribute: as it is called, otherwise, or a level deeper."""
    key = draw(
        st.sampled_from(
            (None, f"{name.title()}_0", f"{name}/kernel", f"{name}/'0'", f"value/{name}")
        )
    )
    return {} if key is None else {"key": key}


@st.composite
def _leaf(draw: st.DrawFn, level: _Level, sides: _Sides, name: str, *, required: bool) -> None:
    dtype = draw(st.sampled_from(_FLOATS if level.floats else (*_FLOATS, *_OTHERS)))
    dtype = draw(st.sampled_from(list(IMPLS))) if dtype == "key" else dtype
    atoms = tuple(n for n in NAMES if draw(st.booleans())) + (
        (3,) if draw(st.integers(0, 3)) == 0 else ()
    )
    atoms = atoms[:1] if dtype in IMPLS else atoms
    optional = not required and draw(st.integers(0, 3)) == 0
    defaulted = optional and draw(st.booleans())
    for side in sides:
        dims = draw(groupings(tuple(draw(st.permutations(atoms)))))
        kind = draw(st.sampled_from(("int32", "uint32", "int8"))) if dtype == "int32" else dtype
        told = {"default": _default(kind)} if defaulted else {}
        side.declare(
            name, _annotation(dims, kind), **draw(_spelling(name)), **told, optional=optional
        )


@st.composite
def _private(draw: st.DrawFn, sides: _Sides, name: str) -> None:
    """A leaf or a stream that some sides have, and not all."""
    dtype = draw(st.sampled_from(("float32", "int32", "bool", *IMPLS)))
    stream = dtype in IMPLS and draw(st.booleans())
    annotation = (
        cs.Stream[dtype[4:-1]]
        if stream
        else _annotation((("a",),) if draw(st.booleans()) else (), dtype)
    )
    default = cs.fresh_key(draw(st.integers(0, 2))) if dtype in IMPLS else _default(dtype)
    for at in draw(st.sampled_from([(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])):
        sides[at].declare(
            name,
            annotation,
            **draw(_spelling(name)),
            default=default,
            optional=draw(st.integers(0, 3)) == 0,
        )


@st.composite
def _node(draw: st.DrawFn, level: _Level, sides: _Sides, name: str) -> None:
    below = draw(_schemas(dataclasses.replace(level, depth=level.depth + 1), name))
    for side, schema in zip(sides, below, strict=True):
        side.declare(name, schema, **draw(_spelling(name)))


@st.composite
def _repeated(draw: st.DrawFn, level: _Level, sides: _Sides, name: str) -> None:
    """A node that is repeated, stacked on some sides and unrolled on others."""
    stacked = [draw(st.booleans()) for _ in sides]
    below = draw(_schemas(dataclasses.replace(level, depth=level.depth + 1), name))
    for side, schema, scan in zip(sides, below, stacked, strict=True):
        if scan:
            side.declare(
                name,
                schema,
                scan=name,
                axis=draw(st.sampled_from((0, -1))),
                **draw(_spelling(name)),
            )
        else:
            key = draw(st.sampled_from([f"{name}{symbol}" for symbol in SYMBOLS]))
            side.declare(name, list[schema], key=key, length=name)  # type: ignore[valid-type]

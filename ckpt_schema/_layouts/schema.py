"""Schema classes: annotations in, rows of a `Layout` out. The only module that does reflection.

A schema declares one layout of a model: attribute names are logical names, ``field(key=...)`` says how this layout spells
them, annotations give shape and dtype. Schemas nest, inherit, and are never instantiated.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.fields import Field, count, declaration, is_dim, verify_field
from ckpt_schema._layouts.leaves import ConstantKey, Default, Fill, FreshKey, Leaf, Made
from ckpt_schema._layouts.table import Layout, Repeat, Row, Series, holders, verify_table
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["Schema", "Stream", "body_rows", "body_series", "layout"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Attribute:
    """A declared attribute: its name, what it is made of, whether it is a list, and its field."""

    name: str
    target: Leaf | type[Schema]
    many: bool
    field: Field


@dataclasses.dataclass(frozen=True, slots=True)
class _Joined:
    """What joins the segments of a key path to one key, and how many of the last ones it does not join."""

    separator: str
    nested: int

    def __call__(self, draft: _Draft) -> _Draft:
        key = draft.row.key
        end = len(key) - self.nested
        if end < 2:
            return draft
        key = (paths.joined_key(key[:end], self.separator), *key[end:])
        return dataclasses.replace(draft, row=dataclasses.replace(draft.row, key=key))


if TYPE_CHECKING:

    class _Open(Any):
        """What makes a value annotated with a schema usable as any tree, as jaxtyping's types are."""

        def __getitem__(self, key: Any) -> Any: ...
else:
    _Open = object


class Schema(_Open):
    """The base of schema classes.

    Keyword arguments of the class statement, ``class Weights(cs.Schema, joined="."):``

    - **joined**: what joins the segments of a key path to one key on disk, for this schema and all in it: ``"."`` for the
      flat keys of Hugging Face's files, ``"layers.{i}.mlp.weight"``.
    - **nested**: how many of the last segments stay keys of their own: with ``joined="/", nested=1``, the
      ``{"mlp/~/linear_0": {"w": ...}}`` of Haiku.

    Raises:
        SchemaError: At class creation, with every attribute that is no leaf, schema or list of one.

    Example:
        >>> from jaxtyping import Array, Float32
        >>> from ckpt_schema._layouts.fields import field
        >>> class Norm(Schema):
        ...     scale: Float32[Array, " embed"]
        >>> class Block(Schema):
        ...     norm: Norm = field(key="LayerNorm_0")
        >>> print(layout(Block))
        Block: 1 rows
          norm/scale  LayerNorm_0/scale  float32[embed]
        >>> class Flat(Schema, joined="."):
        ...     blocks: list[Block] = field(key="model/blocks/{i}", length="depth")
        >>> print(layout(Flat))
        Flat: 1 rows
          blocks[]/norm/scale  model.blocks.{i}.LayerNorm_0.scale  float32[embed]
    """

    __joined__: ClassVar[_Joined | None] = None
    __attributes__: ClassVar[tuple[_Attribute, ...]] = ()
    __series__: ClassVar[tuple[Series, ...]] = ()

    if not TYPE_CHECKING:  # a `NoReturn` here makes mypy take every schema for a function

        def __new__(cls) -> typing.NoReturn:
            """Refuses: a schema is a declaration, not a container of values."""
            raise TypeError(
                f"{cls.__name__} declares a layout and has no instances; "
                f"use ckpt_schema.layout({cls.__name__})"
            )

    def __init_subclass__(cls, *, joined: str | None = None, nested: int = 0) -> None:
        """Reads the annotations of the class and of its bases, once, and reports every fault in them."""
        super().__init_subclass__()
        faults: list[Mismatch] = []
        if joined is not None or nested:
            faults += _joined_faults(cls, joined, nested)
            cls.__joined__ = _Joined(str(joined), nested)
        own: dict[str, _Attribute] = {}
        scope = _scope(inspect.currentframe())
        for name, annotation in _annotations(cls, scope, faults):
            try:
                own[name] = _attribute(cls, name, annotation)
                _verify_below(own[name])
            except SchemaError as error:
                faults.extend(_located(cls, name, error))
        faults.extend(_strays(cls, own))
        faults.extend(_foreign(cls))
        if cls.__joined__ is not None and not faults:
            faults.extend(_parted_values(cls, own.values(), cls.__joined__))
        if faults:
            raise SchemaError(f"schema {cls.__qualname__} is not well formed", faults)
        cls.__attributes__ = tuple({**_inherited(cls), **own}.values())
        cls.__series__ = (*cls.__series__, *_series(cls))


def _joined_faults(cls: type, joined: Any, nested: Any) -> Iterator[Mismatch]:
    """What is wrong with the keyword arguments of a class statement."""
    if not isinstance(joined, str) or not joined or any(map(str.isdigit, joined)):
        hint = 'such as joined="." or joined="/", for keys like "layers.0.weight"'
        expected = "a text without digits as joined="
        yield Mismatch(cls.__name__, "declaration", expected, shown(joined), hint)
    if not isinstance(nested, int) or isinstance(nested, bool) or nested < 0:
        hint = "how many of the last segments of a key path stay keys of their own"
        expected = "a number of segments as nested="
        yield Mismatch(cls.__name__, "declaration", expected, shown(nested), hint)


def _parted_values(cls: type, attributes: Iterable[_Attribute], how: _Joined) -> Iterator[Mismatch]:
    """Values with parts whose parts would not stand in a container of their own."""
    for attribute in attributes:
        for draft in _attribute_drafts(attribute):
            row = draft.row
            if any(inside > how.nested for inside, _ in row.held):
                hint = f"keep the parts of the value apart: nested={max(n for n, _ in row.held)}"
                found = paths.format_path(row.key)
                where = f"{cls.__name__}.{'/'.join(row.path)}"
                yield Mismatch(where, "declaration", "a value in one key", found, hint)


def _inherited(cls: type) -> dict[str, _Attribute]:
    """The attributes of the bases, each as the first class in the method resolution order that declares it has it."""
    found: dict[str, _Attribute] = {}
    for base in reversed(cls.__mro__[1:]):
        own = inspect.get_annotations(base)
        found |= {a.name: a for a in base.__dict__.get("__attributes__", ()) if a.name in own}
    return found


def _located(cls: type, name: str, error: SchemaError) -> Iterator[Mismatch]:
    """The faults of ``error`` at the attribute they belong to, or at the leaf below it that they name."""
    for fault in error.mismatches:
        below = fault.path.split("/")[0].removesuffix("[]") == name
        yield dataclasses.replace(fault, path=f"{cls.__name__}.{fault.path if below else name}")


def _scope(frame: types.FrameType | None) -> dict[str, Any]:
    """The names that the class statement itself can see, locals included: annotations may be strings that use them."""
    caller = frame.f_back if frame is not None else None
    return {**caller.f_globals, **caller.f_locals} if caller is not None else {}


def _annotations(
    cls: type, scope: dict[str, Any], faults: list[Mismatch]
) -> Iterator[tuple[str, Any]]:
    """The class's own annotations, evaluated one by one, so that each that fails is named."""
    for name, annotation in inspect.get_annotations(cls).items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, scope, dict(vars(cls)))
            except SchemaError as error:
                faults.extend(_located(cls, name, error))
                continue
            except Exception as error:
                cure = "define or import what it names before the class"
                found = f"{annotation!r}: {type(error).__name__}: {error}"
                faults.append(
                    Mismatch(
                        f"{cls.__name__}.{name}",
                        "declaration",
                        "an annotation that evaluates",
                        found,
                        cure,
                    )
                )
                continue
        if typing.get_origin(annotation) is not ClassVar and annotation is not ClassVar:
            yield name, annotation


def _strays(cls: type, own: Mapping[str, Any]) -> Iterator[Mismatch]:
    for name, value in vars(cls).items():
        if (
            isinstance(value, Field)
            and name not in own
            and name not in inspect.get_annotations(cls)
        ):
            yield Mismatch(
                f"{cls.__name__}.{name}",
                "declaration",
                "an annotation beside field(...)",
                "none",
                f"write {name}: ...",
            )


def _series(cls: type[Schema]) -> Iterator[Series]:
    """The series that the class declares, each under the name of its attribute.

    Raises:
        SchemaError: With every member that is no repeated node of the class.
    """
    known = {row.path[:end] for row, _ in body_rows(cls) for end in range(1, len(row.path) + 1)}
    nodes = (
        ", ".join(sorted("/".join(path) for path in known if path[-1].endswith("[]")))
        or "there is none"
    )
    faults: list[Mismatch] = []
    for name, value in vars(cls).items():
        if isinstance(value, Series):
            for path in value.members:
                if path not in known:
                    where, hint = (
                        f"{cls.__name__}.{name}",
                        "declare it before, by scan= or as a list[...]",
                    )
                    faults.append(
                        Mismatch(
                            where,
                            "rule",
                            f"a repeated node of the class ({nodes})",
                            "/".join(path),
                            hint,
                        )
                    )
            yield Series(value.path or (f"{name}[]",), value.members)
    if faults:
        raise SchemaError(f"schema {cls.__qualname__} is not well formed", faults)


def _foreign(cls: type) -> Iterator[Mismatch]:
    """Annotations of bases that are no schemas, which declare nothing."""
    for base in cls.__mro__[1:]:
        if "__attributes__" not in vars(base):
            for name in inspect.get_annotations(base):
                where, hint = (
                    f"{base.__name__}.{name}",
                    f"derive {base.__name__} from ckpt_schema.Schema",
                )
                yield Mismatch(
                    where,
                    "declaration",
                    "leaves declared by schemas",
                    "a base that is no schema",
                    hint,
                )


def _attribute(cls: type, name: str, annotation: Any) -> _Attribute:
    given = vars(cls).get(name, Field())
    inner, optional = _strip_optional(annotation)
    if given is None:
        # `leaf: T | None = None` is how a dataclass says that there may be none.
        if not optional:
            hint = f"a leaf that a tree may lack is written {name}: ... | None"
            raise declaration(name, "field(...) as its value", "None", hint)
        given = Field()
    if not isinstance(given, Field):
        raise declaration(
            name,
            "field(...) as its value",
            shown(given),
            f"write {name}: ... = field(default={shown(given)})",
        )
    many = typing.get_origin(inner) is list
    target = _target(name, typing.get_args(inner)[0] if many else inner)
    tag: Any = given.tag  # of any type still, an array among them
    if tag is None or (isinstance(tag, str) and not tag):
        tag = name
    optional = optional if given.optional is False else given.optional
    spec = dataclasses.replace(given, optional=optional, tag=tag)
    verify_field(name, spec, many=many)
    if spec.value is not None and isinstance(target, Leaf):
        raise declaration(
            name, "value= on a schema", f"on the leaf {target}", "a leaf is a value without parts"
        )
    return _Attribute(name, target, many, spec)


def _strip_optional(annotation: Any) -> tuple[Any, bool]:
    if isinstance(annotation, leaves.OrNone):
        return annotation.leaf, True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(members) == 1 and len(typing.get_args(annotation)) == 2:
            return members[0], True
    return annotation, False


def _target(name: str, annotation: Any) -> Leaf | type[Schema]:
    if isinstance(annotation, type) and issubclass(annotation, Schema) and annotation is not Schema:
        return annotation
    leaf = leaves.from_annotation(annotation)
    if leaf is None:
        hint = 'write Float32[Array, "embed mlp"], Key["urbg"], Stream["urbg"], a Schema class, or list[...] of one of them'
        raise declaration(name, "a leaf or a schema", _spell(annotation), hint)
    return leaf


def _spell(annotation: Any) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else repr(annotation)


def _verify_below(attribute: _Attribute) -> None:
    """Raises with everything in which a field contradicts the leaves below it."""
    faults = [*_rename_faults(attribute)]
    for draft in _below(attribute):
        try:
            _lift(draft, attribute, ())
        except SchemaError as error:
            faults += error.mismatches
    if faults:
        raise SchemaError(f"{attribute.name} is not well declared", faults)


def _rename_faults(attribute: _Attribute) -> Iterator[Mismatch]:
    rows = [draft.row for draft in _below(attribute)]
    known = set[str]().union(
        *(dims_.dim_names((*row.leaf.dims, *(r.size for r in row.repeats))) for row in rows)
    )
    for name, new in attribute.field.dims.items():
        if name not in known:
            expected = (
                f"dims= to rename a dim used below ({', '.join(sorted(known)) or 'there is none'})"
            )
            yield Mismatch(
                attribute.name, "rule", expected, repr(name), 'write dims={"old": "new"}'
            )
        if not is_dim(new):
            hint = 'such as "heads", 8, "kv*groups" or "6*blocks+rest"'
            yield Mismatch(
                attribute.name,
                "declaration",
                "the name or size of one axis in dims=",
                repr(new),
                hint,
            )


@dataclasses.dataclass(frozen=True, slots=True)
class _Draft:
    """A row on its way up through nested schemas, with the stack axis its own field asks for."""

    row: Row
    axis: int | None
    collection: str | None


@functools.lru_cache(maxsize=256)  # classes of the models at work; what is kept here is never freed
def _drafts(schema: type[Schema]) -> tuple[_Draft, ...]:
    drafts = [draft for one in schema.__attributes__ for draft in _attribute_drafts(one)]
    return tuple(drafts if schema.__joined__ is None else map(schema.__joined__, drafts))


def _attribute_drafts(attribute: _Attribute) -> Iterator[_Draft]:
    text = attribute.field.key or (f"{attribute.name}/{{i}}" if attribute.many else attribute.name)
    for draft in _below(attribute):
        yield _lift(draft, attribute, paths.parse_pattern(text))


def _below(attribute: _Attribute) -> tuple[_Draft, ...]:
    """What an attribute is made of, as its own schema sees it."""
    target = attribute.target
    if isinstance(target, Leaf):
        return (_Draft(Row((), (), target), None, None),)
    return _drafts(target)


def _lift(draft: _Draft, attribute: _Attribute, key: paths.Pattern) -> _Draft:
    """One draft seen from the schema above: its path, key, repeats, dims and inherited declarations."""
    spec, row = attribute.field, draft.row
    name = "/".join((attribute.name, *row.path))
    repeats = _renamed(row.repeats, spec.dims)
    repeated = attribute.many or spec.scan is not None
    axis = draft.axis
    if attribute.many:
        repeats = (Repeat(count(attribute.name, spec.length), None), *repeats)
    elif spec.scan is not None:
        repeats = (
            Repeat(count(attribute.name, spec.scan), (spec.axis or 0) if axis is None else axis),
            *repeats,
        )
        axis = None
    elif spec.axis is not None and axis is None:
        axis = spec.axis
    lifted = dataclasses.replace(
        row,
        path=(attribute.name + ("[]" if repeated else ""), *row.path),
        key=(*key, *row.key),
        leaf=row.leaf.renamed(spec.dims),
        repeats=repeats,
        kind=row.kind if row.kind is not None else spec.type,
        metadata=row.metadata
        or ((("tag", spec.tag),) if row.kind in ("RngKey", "RngCount") else ()),
        default=row.default if row.default is not None else _default(name, spec.default, row.leaf),
        optional=row.optional or spec.optional or spec.ephemeral,
        ephemeral=row.ephemeral or spec.ephemeral,
        held=row.held if spec.value is None else ((len(row.key), spec.value), *row.held),
    )
    _verify_axis(lifted)
    return _Draft(lifted, axis, draft.collection or spec.collection)


def _renamed(repeats: tuple[Repeat, ...], renames: Mapping[str, str | int]) -> tuple[Repeat, ...]:
    return tuple(
        dataclasses.replace(r, size=dims_.renamed_dims((r.size,), renames)[0]) for r in repeats
    )


def _default(name: str, value: Any, leaf: Leaf) -> Default | None:
    """The declared default as it applies to one leaf, refused where the leaf could not hold it exactly."""
    if value is None:
        return None
    default = value if isinstance(value, Made) else Fill(value)
    if leaf.is_key and not isinstance(default, (FreshKey, ConstantKey)):
        raise declaration(
            name,
            "fresh_key(seed) as the default of a key",
            shown(value),
            "write default=fresh_key(0)",
        )
    if not leaves.holds(leaf, default):
        raise declaration(
            name,
            f"a default that {leaf.dtype} can hold",
            shown(value),
            "a number of the leaf's own kind",
        )
    return default


def _verify_axis(row: Row) -> None:
    rank = len(row.leaf.dims) + sum(r.axis is not None for r in row.repeats[1:])
    first = row.repeats[0].axis if row.repeats else None
    if first is not None and not -rank - 1 <= first <= rank:
        raise declaration(
            "/".join(row.path),
            f"a stack axis between {-rank - 1} and {rank}",
            f"axis {first} for {row.leaf}",
            "give the leaf's own field axis=, as for rank-0 RNG leaves on axis 0",
        )


if TYPE_CHECKING:
    from typing import Literal as Stream  # to a type checker, Stream["urbg"] is a legal annotation
else:

    class Stream:
        """The annotation of an RNG stream: ``Stream["urbg"]`` is a schema of ``key`` and ``count``, as in ``nnx.RngStream``."""

        def __class_getitem__(cls, impl: str) -> type[Schema]:
            """The schema of a stream whose key has implementation ``impl``."""
            return _stream(impl)


@functools.cache
def _stream(impl: str) -> type[Schema]:
    names: dict[str, Any] = {
        "__annotations__": {"key": Leaf((), leaves.key_dtype(impl)), "count": Leaf((), "uint32")},
        "key": Field(type="RngKey", axis=0),
        "count": Field(type="RngCount", axis=0),
    }
    return types.new_class(f"Stream[{impl}]", (Schema,), exec_body=lambda body: body.update(names))


def body_rows(schema: type[Schema]) -> tuple[tuple[Row, str | None], ...]:
    """The rows of a schema, each with its Linen collection (None: not said), keys relative to the schema's root.

    Raises:
        SchemaError: It is no schema.
    """
    if not (isinstance(schema, type) and issubclass(schema, Schema)):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = "declare a class ...(ckpt_schema.Schema), or read a layout off a tree with ckpt_schema.infer(tree)"
        if isinstance(schema, Layout):
            hint = (
                "a layout is no body of an envelope yet: declare the body as a class, "
                "or infer the whole state, params and optimizer together"
            )
        found = (
            f"the class {schema.__qualname__}"
            if isinstance(schema, type)
            else f"a {type(schema).__name__}"
        )
        fault = Mismatch("argument", "declaration", "a Schema class", found, hint)
        raise SchemaError("cannot make a layout", [fault])
    kind: type = schema  # which a checker knows to be hashable, whatever a schema is open to
    return tuple((draft.row, draft.collection) for draft in _drafts(kind))


def body_series(schema: type[Schema]) -> tuple[Series, ...]:
    """The series that a schema and the schemas in it declare, relative to the schema's root."""
    found = list(schema.__series__)
    for attribute in schema.__attributes__:
        if not isinstance(attribute.target, Leaf):
            repeated = attribute.many or attribute.field.scan is not None
            head = (attribute.name + ("[]" if repeated else ""),)
            inner = body_series(attribute.target)
            found += [
                Series((*head, *s.path), tuple((*head, *member) for member in s.members))
                for s in inner
            ]
    return tuple(found)


def layout(source: type[Schema] | Layout) -> Layout:
    """The layout of a schema on its own: nested dicts, spelled as the schema says. A `Layout` is returned as it is.

    Raises:
        SchemaError: It is no schema, or two leaves have one key path.
    """
    if isinstance(source, Layout):
        return source
    rows = tuple(dataclasses.replace(row, body=0) for row, _ in body_rows(source))
    return verify_table(
        Layout(source.__qualname__, rows, holders(rows), series=body_series(source))
    )

"""Schema classes: annotations in, rows of a `Layout` out. The only module that does reflection.

A schema declares one layout of a model: attribute names are logical names, ``field(key=...)`` says how this layout spells
them, annotations give shape and dtype. Schemas nest, inherit, and are never instantiated.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import itertools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.annotations import (
    from_annotation,
    spelled_annotation,
    strip_optional,
)
from ckpt_schema._layouts.drafts import (
    Attribute,
    JoinedKeys,
    Open,
    OptState,
    below,
    drafts_of,
    lift,
    models_of,
    read_off,
    table_of,
    verify_fallbacks,
    with_inherited,
    written_nodes,
)
from ckpt_schema._layouts.fields import (
    Field,
    StateField,
    declaration,
    faults_in_dims,
    verify_field,
)
from ckpt_schema._layouts.immutable import replaced
from ckpt_schema._layouts.kinds import Dicts
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.mixed_lists import named_items
from ckpt_schema._layouts.paths import LogicalPath
from ckpt_schema._layouts.precision import Dtypes, typed
from ckpt_schema._layouts.presence import with_presence
from ckpt_schema._layouts.table import Layout, Node, Row, Series, holders, verify_table
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "OptState",
    "Schema",
    "SchemaType",
    "body_rows",
    "body_series",
    "layout",
    "schema_name",
]


class SchemaType(type):
    """What makes a schema class a layout, and a type: its trees are its instances.

    ``isinstance(tree, Schema)`` holds where ``check`` finds nothing, so that jaxtyping and a checker
    of types take a schema as an annotation. Its rows, nodes and so on are those of its layout.
    """

    def __instancecheck__(cls, tree: Any) -> bool:
        """Whether a tree conforms to the layout."""
        return not _report(cls, tree)

    def __instancecheck_str__(cls, tree: Any) -> str:
        """Why a tree does not conform, for those who tell it to users."""
        return _report(cls, tree)

    def __getattr__(cls, name: str) -> Any:
        """What the layout of the class is called by this name."""
        if name.startswith("_") or name not in _OF_LAYOUT or not cls.__dict__.get("__attributes__"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return getattr(_layout(cls), name)

    def __str__(cls) -> str:
        """The name of the class, as messages of type checkers show it.

        ``print(layout(...))`` shows the table.
        """
        return cls.__name__


_OF_LAYOUT = frozenset({f.name for f in dataclasses.fields(Layout)} | {"bound", "entries", "names"})
"""What a class gives out of its layout, so that it may stand in the place of one."""


def _report(schema: Any, tree: Any) -> str:
    """What is wrong with a tree; empty where nothing is."""
    if not schema.__attributes__:
        return f"{schema.__name__} declares nothing"
    # What holds trees against layouts stands below what layouts are; only a type is both.
    conformance = importlib.import_module("ckpt_schema._trees.conformance")
    found = conformance.check(schema, tree)
    return "" if found.ok else str(found)


class Schema(Open, metaclass=SchemaType):
    """The base of schema classes.

    Keyword arguments of the class statement, ``class Weights(cs.Schema, joined="."):``

    - **joined**: what joins the segments of a key path to one key on disk, for this schema and all in it: ``"."`` for the
      flat keys of Hugging Face's files, ``"layers.{i}.mlp.weight"``.
    - **nested**: how many of the last segments stay keys of their own: with ``joined="/", nested=1``, the
      ``{"mlp/~/linear_0": {"w": ...}}`` of Haiku.
    - **containers**: the classes of containers that are no dicts, by their key paths from here:
      ``{"blocks": tuple}``.

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
        Block: 1 row
          norm/scale  LayerNorm_0/scale  float32[embed]
        >>> class Flat(Schema, joined="."):
        ...     blocks: list[Block] = field(key="model/blocks/{i}", length="depth")
        >>> print(layout(Flat))
        Flat: 1 row
          blocks[]/norm/scale  model.blocks.{i}.LayerNorm_0.scale  float32[embed]
    """

    __joined__: ClassVar[JoinedKeys | None] = None
    __attributes__: ClassVar[tuple[Attribute, ...]] = ()
    __series__: ClassVar[tuple[Series, ...]] = ()
    __kinds__: ClassVar[Dicts] = Dicts()
    __containers__: ClassVar[tuple[Node, ...]] = ()

    if not TYPE_CHECKING:  # a `NoReturn` here makes mypy take every schema for a function

        def __new__(cls) -> typing.NoReturn:
            """Refuses: a schema is a declaration, not a container of values."""
            raise TypeError(
                f"{cls.__name__} declares a layout and has no instances; "
                f"use ckpt_schema.layout({cls.__name__})"
            )

    def __init_subclass__(
        cls,
        *,
        joined: str | None = None,
        nested: int = 0,
        name: str | None = None,
        containers: Mapping[str, Any] | None = None,
    ) -> None:
        """Reads the annotations of the class and of its bases, once, and reports every fault in them.

        Args:
            joined: See above.
            nested: See above.
            name: What messages call the class, where that is not its own name.
            containers: See above.
        """
        super().__init_subclass__()
        if name is not None:
            cls.__name__ = cls.__qualname__ = name
        faults: list[Mismatch] = []
        if joined is not None or nested:
            faults += _joined_faults(cls, joined, nested)
            cls.__joined__ = JoinedKeys(str(joined), nested)
        cls.__containers__ = with_inherited(cls, written_nodes("containers", containers or {}))
        own: dict[str, tuple[Attribute, ...]] = {}
        # Annotations that are strings may name what is defined in the function around the class.
        scope = _scope(inspect.currentframe())
        for name, annotation in _annotations(cls, scope, faults):
            try:
                own[name] = _attributes(name, annotation, vars(cls).get(name, _UNTOLD))
                for attribute in own[name]:
                    _verify_below(attribute)
            except SchemaError as error:
                faults.extend(_located(cls, name, error))
        faults.extend(_strays(cls, own))
        faults.extend(_foreign(cls))
        # Asked of the rows, which there are where all attributes are well formed.
        if cls.__joined__ is not None and not faults:
            attributes = itertools.chain.from_iterable(own.values())
            faults.extend(_parted_values(cls, attributes, cls.__joined__))
        if faults:
            raise SchemaError(f"schema {cls.__qualname__} is not well formed", faults)
        # An attribute that is declared anew stays in the place that it has in the base.
        declared = {**_inherited(cls), **own}
        cls.__attributes__ = tuple(itertools.chain.from_iterable(declared.values()))
        kind: Any = cls  # hashable, whatever a schema is open to
        table_of(kind)  # what is wrong with rows, such as those of an optimizer, is told here
        cls.__series__ = tuple(_series(cls))
        if models_of(kind):
            layout(cls)  # and so is what is wrong with a train state


def _joined_faults(cls: type, joined: Any, nested: Any) -> Iterator[Mismatch]:
    """What is wrong with the keyword arguments of a class statement."""
    # A digit would run together with the numbers of layers.
    if not isinstance(joined, str) or not joined or any(map(str.isdigit, joined)):
        hint = 'such as joined="." or joined="/", for keys like "layers.0.weight"'
        expected = "a text without digits as joined="
        yield Mismatch(cls.__name__, "declaration", expected, shown(joined), hint)
    if not isinstance(nested, int) or isinstance(nested, bool) or nested < 0:
        hint = "how many of the last segments of a key path stay keys of their own"
        expected = "a number of segments as nested="
        yield Mismatch(cls.__name__, "declaration", expected, shown(nested), hint)


def _parted_values(
    cls: type, attributes: Iterable[Attribute], how: JoinedKeys
) -> Iterator[Mismatch]:
    """Values with parts whose parts would not stand in a container of their own."""
    for attribute in attributes:
        for draft in drafts_of(attribute):
            row = draft.row
            # How many segments stand in the outermost container of the value.
            deepest = max([inside for inside, _ in row.held], default=0)
            if deepest > how.nested:
                hint = f"keep the parts of the value apart: nested={deepest}"
                found = paths.format_path(row.key)
                where = f"{cls.__name__}.{'/'.join(row.path)}"
                yield Mismatch(where, "declaration", "a value in one key", found, hint)


def _inherited(cls: type) -> dict[str, tuple[Attribute, ...]]:
    """The attributes of the bases, each as the first class in the method resolution order that declares it has it."""
    inherited: dict[str, tuple[Attribute, ...]] = {}
    for base in reversed(cls.__mro__[1:]):
        attributes: tuple[Attribute, ...] = base.__dict__.get("__attributes__", ())
        # It has those of its bases too: those it has written itself are looked for, of items= several.
        for name in inspect.get_annotations(base):
            declared = tuple([one for one in attributes if one.written == name])
            if declared:
                inherited[name] = declared
    return inherited


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
    own = dict(vars(cls))
    for name, annotation in inspect.get_annotations(cls).items():
        # All are strings under `from __future__ import annotations`.
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, scope, own)
            except SchemaError as error:
                faults.extend(_located(cls, name, error))
                continue
            # It is code of the user's, and may raise anything.
            except Exception as error:
                where, expected = f"{cls.__name__}.{name}", "an annotation that evaluates"
                found = f"{annotation!r}: {type(error).__name__}: {error}"
                hint = "define or import what it names before the class"
                faults.append(Mismatch(where, "declaration", expected, found, hint))
                continue
        # What Python says is of the class is no leaf of it.
        if typing.get_origin(annotation) is not ClassVar and annotation is not ClassVar:
            yield name, annotation


def _strays(cls: type, own: Mapping[str, Any]) -> Iterator[Mismatch]:
    """Fields without an annotation, which would declare nothing in silence."""
    annotated = inspect.get_annotations(cls)
    for name, value in vars(cls).items():
        if isinstance(value, Field) and name not in own and name not in annotated:
            where, expected = f"{cls.__name__}.{name}", "an annotation beside field(...)"
            yield Mismatch(where, "declaration", expected, "none", f"write {name}: ...")


def _series(cls: Any) -> Iterator[Series]:
    """The series that the class and its bases declare, each under the name of its attribute.

    Raises:
        SchemaError: With every member that is no repeated node of the class.
    """
    declared: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        declared |= vars(base)
    series = {name: value for name, value in declared.items() if isinstance(value, Series)}
    if not series:
        return
    nodes, repeated = _nodes(cls)
    faults: list[Mismatch] = []
    hint = "declare it before, by scan= or as a list[...]"
    expected = f"a repeated node of the class ({', '.join(sorted(repeated)) or 'there is none'})"
    for name, value in series.items():
        for path in value.members:
            if path not in nodes:
                where = f"{cls.__name__}.{name}"
                faults.append(Mismatch(where, "rule", expected, "/".join(path), hint))
        yield Series(value.path or (f"{name}[]",), value.members)
    if faults:
        raise SchemaError(f"schema {cls.__qualname__} is not well formed", faults)


def _nodes(cls: Any) -> tuple[set[LogicalPath], set[str]]:
    """The paths of a class and of all that is above them; and those of repeated nodes, as they are written."""
    nodes: set[LogicalPath] = set()
    repeated: set[str] = set()
    for draft in table_of(cls).drafts:
        path = draft.row.path
        for end in range(1, len(path) + 1):
            nodes.add(path[:end])
            if path[end - 1].endswith("[]"):
                repeated.add("/".join(path[:end]))
    return nodes, repeated


def _foreign(cls: type) -> Iterator[Mismatch]:
    """Annotations of bases that are no schemas, which declare nothing."""
    expected, found = "leaves declared by schemas", "a base that is no schema"
    for base in cls.__mro__[1:]:
        if "__attributes__" in vars(base):
            continue
        for name in inspect.get_annotations(base):
            hint = f"derive {base.__name__} from ckpt_schema.Schema"
            yield Mismatch(f"{base.__name__}.{name}", "declaration", expected, found, hint)


_UNTOLD = Field()
"""That of an attribute of which the annotation says all."""


def _attributes(name: str, annotation: Any, given: Any) -> tuple[Attribute, ...]:
    """What an annotation and its value declare: one attribute, or one for each item of a list."""
    if not isinstance(given, Field) or given.items is None:
        return (_attribute(name, annotation, given),)
    # A tree may lack such a list as a whole: list[A | B] | None.
    inner, optional = strip_optional(annotation)
    spec = dataclasses.replace(given, optional=True) if optional else given
    # The fields of items differ in name and key alone: those of one schema are looked through as one.
    like: dict[int, Attribute] = {}
    attributes: list[Attribute] = []
    for target, own in named_items(name, inner, spec, Schema):
        one = like.get(id(target)) or like.setdefault(id(target), _attribute(name, target, own))
        attributes.append(Attribute(own.name or one.name, one.target, one.many, own, name))
    return tuple(attributes)


def _attribute(name: str, annotation: Any, given: Any) -> Attribute:
    """One attribute, of its name, its annotation, and its value in the class: a field, None, or by mistake a default."""
    inner, optional = strip_optional(annotation)
    if given is None:
        # `leaf: T | None = None` is how a dataclass says that there may be none.
        if not optional:
            hint = f"a leaf that a tree may lack is written {name}: ... | None"
            raise declaration(name, "field(...) as its value", "None", hint)
        given = Field()
    if not isinstance(given, Field):
        hint = f"write {name}: ... = field(default={shown(given)})"
        raise declaration(name, "field(...) as its value", shown(given), hint)
    many = typing.get_origin(inner) is list
    target = _target(name, typing.get_args(inner)[0] if many else inner)
    spec = given
    # `T | None` says what optional=True says.
    if optional and given.optional is False:
        spec = dataclasses.replace(given, optional=True)
    if isinstance(spec, StateField) != (target is OptState):
        expected, found = "OptState beside optimizer(...)", spelled_annotation(annotation)
        hint = f"write {name}: cs.OptState = cs.optimizer(tx)"
        raise declaration(name, expected, found, hint)
    key: Any = spec.key  # of any type still, an array among them
    if isinstance(key, str) and not key and (many or isinstance(target, Leaf)):
        paths.parse_pattern("")  # which says that a leaf stands somewhere
    # Most leaves have no field: there is nothing to look at.
    if many or spec is not _UNTOLD:
        verify_field(name, spec, many=many)
    if spec.value is not None and isinstance(target, Leaf):
        raise declaration(
            name, "value= on a schema", f"on the leaf {target}", "a leaf is a value without parts"
        )
    return Attribute(name if spec.name is None else spec.name, target, many, spec, name)


def _target(name: str, annotation: Any) -> Leaf | type[Schema] | type[OptState] | Layout:
    """What an attribute is, or each of a list: a leaf, a schema, an optimizer state, or a layout that was read off."""
    if annotation is OptState or isinstance(annotation, Layout):
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, Schema) and annotation is not Schema:
        return annotation
    leaf = from_annotation(annotation)
    if leaf is None:
        hint = 'write Float32[Array, "embed mlp"], Key["urbg"], Stream["urbg"], a Schema class, or list[...] of one of them'
        raise declaration(name, "a leaf or a schema", spelled_annotation(annotation), hint)
    return leaf


def _verify_below(attribute: Attribute) -> None:
    """Raises with everything in which a field contradicts the leaves below it."""
    spec = attribute.field
    told = spec.dims or spec.default is not None or spec.axis is not None or spec.scan is not None
    if not told and not attribute.many:
        return  # of leaves that are what they are below
    drafts = below(attribute)
    faults = [*faults_in_dims(attribute.name, spec.dims, [draft.row for draft in drafts])]
    for draft in drafts:
        # Tried on each leaf, so that each that a default or an axis does not fit is named.
        try:
            lift(draft, attribute, ())
        except SchemaError as error:
            faults += error.mismatches
    if faults:
        raise SchemaError(f"{attribute.name} is not well declared", faults)


def body_rows(schema: type[Schema] | Layout) -> tuple[tuple[Row, str | None], ...]:
    """The rows of a schema, each with its Linen collection (None: not said), keys relative to the schema's root.

    Raises:
        SchemaError: It is no schema.
    """
    if isinstance(schema, Layout):
        return tuple([(draft.row, draft.collection) for draft in read_off(schema)])
    _verify_schema(schema)
    kind: type = schema  # which a checker knows to be hashable, whatever a schema is open to
    return tuple([(draft.row, draft.collection) for draft in table_of(kind).drafts])


def _verify_schema(schema: object) -> None:
    """Raises where something else stands in the place of a schema."""
    if not (isinstance(schema, type) and issubclass(schema, Schema)):
        hint = "declare a class ...(ckpt_schema.Schema), or read a layout off a tree with ckpt_schema.infer(tree)"
        # An instance says its class; a class, a model's most often, its name.
        found = f"a {type(schema).__name__}"
        if isinstance(schema, type):
            found = f"the class {schema.__qualname__}"
        fault = Mismatch("argument", "declaration", "a Schema class", found, hint)
        raise SchemaError("cannot make a layout", [fault])


@functools.lru_cache(maxsize=256)
def body_series(schema: Any) -> tuple[Series, ...]:
    """The series that a schema and the schemas in it declare, relative to the schema's root."""
    series, models = list(schema.__series__), models_of(schema)
    for attribute in schema.__attributes__:
        target = attribute.target
        if not isinstance(target, Leaf) and target is not OptState:
            repeated = attribute.many or attribute.field.scan is not None
            head = (attribute.name + ("[]" if repeated else ""),)
            inner = target.series if isinstance(target, Layout) else body_series(target)
            for one in inner:
                if attribute.name not in models:
                    members = tuple([(*head, *member) for member in one.members])
                    series.append(Series((*head, *one.path), members))
                # Those of a model are told from its own root: a model and its average have the same.
                elif one not in series:
                    series.append(one)
    return tuple(series)


def schema_name(body: Any) -> str:
    """What messages call a schema or a layout.

    Raises:
        SchemaError: It is neither.
    """
    body_rows(body)
    return body.name if isinstance(body, Layout) else body.__name__


def layout(
    source: type[Schema] | Layout,
    *,
    dims: Mapping[str, int] | None = None,
    dtype: Dtypes | None = None,
    has: Iterable[str] | None = None,
) -> Layout:
    """The layout of a schema on its own: nested dicts, spelled as the schema says. A `Layout` is returned as it is.

    Args:
        source: The schema.
        dims: Sizes in elements, of all dims or of some: the layout is for trees of these sizes alone.
        dtype: Which floats its leaves of any float are: one dtype, or several by globs of logical
            paths, ``{"**": "bfloat16", "norm": "float32"}``, of which the one that names more decides.
        has: Which of the leaves that a tree may lack it has, by globs of logical paths, ``["**/bias"]``:
            a tree has to have these, and has none of the others. Unless given, a tree may lack them all.

    Raises:
        SchemaError: It is no schema, or two leaves have one key path, or a size is none, or a leaf
            of any float has no dtype or two, or a glob means no leaf that a tree may lack.

    Example:
        >>> from jaxtyping import Array, Float32
        >>> class Dense(Schema):
        ...     kernel: Float32[Array, "embed mlp"]
        >>> print(layout(Dense, dims={"embed": 4}))
        Dense: 1 row
          kernel  kernel  float32[4 mlp]
    """
    if not isinstance(source, Layout):
        _verify_schema(source)
        source = _layout(source)
    table = source if has is None else with_presence(source, has)
    table = table if dtype is None else typed(table, dtype)
    return table if dims is None else table.sized(dims)


@functools.lru_cache(maxsize=256)
def _layout(source: Any) -> Layout:
    """The layout of a schema, made once: classes do not change."""
    table, kinds, models = table_of(source), source.__kinds__, models_of(source)
    rows = tuple([draft.row for draft in table.drafts])
    # The whole tree is one model.
    if not models and not table.states:
        rows = tuple([replaced(row, body=0) for row in rows])
    verify_fallbacks(source.__qualname__, rows)
    # Parents before children.
    nodes = sorted((*holders(rows), *table.nodes), key=lambda node: len(node.key))
    # Weights alone: a whole train state has such a tree in it, at these homes.
    are_alone = bool(models) and not table.states and all(row.body is not None for row in rows)
    return verify_table(
        Layout(
            source.__qualname__,
            rows,
            tuple(nodes),
            kinds.container,
            homes=kinds.homes if are_alone else (),
            sizes=table.sizes,
            parts=table.parts,
            initial=table.initial,
            series=body_series(source),
            states=table.states,
        )
    )

"""What a schema says of an attribute beside its annotation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.dims import Dims
from ckpt_schema._layouts.kinds import Dicts
from ckpt_schema._layouts.paths import Pattern
from ckpt_schema._layouts.table import Initial, Node, Part, Row, Series
from ckpt_schema._messages.text import counted, shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "Body",
    "Field",
    "OptimizerTable",
    "StateField",
    "count",
    "declaration",
    "faults_in_dims",
    "field",
    "series",
    "verify_field",
    "wrong_types",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """What `field` was told; see there."""

    key: str | Mapping[Any, str] | tuple[Any, ...] | None = None
    default: Any = None
    scan: str | int | None = None
    axis: int | None = None
    length: str | int | None = None
    dims: Mapping[str, str | int] = dataclasses.field(default_factory=dict[str, str | int])
    type: Any = None
    collection: str | None = None
    optional: bool = False
    ephemeral: bool = False
    value: type | None = None
    tag: str | None = None
    name: str | None = None
    items: tuple[Any, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Body:
    """A model in a schema, as an optimizer of it sees it.

    Attributes:
        name: The attribute.
        key: Where it stands.
        rows: Its rows, as the schema sees them.
        kinds: What its leaves are.
    """

    name: str
    key: Pattern
    rows: tuple[Row, ...]
    kinds: Dicts


@dataclasses.dataclass(frozen=True, slots=True)
class OptimizerTable:
    """What an optimizer keeps, as its state sees itself: paths and keys are relative to it, but for what it mirrors."""

    rows: tuple[Row, ...]
    nodes: tuple[Node, ...]
    parts: tuple[Part, ...]
    initial: Initial | None
    sizes: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class StateField(Field):
    """What an attribute was told whose rows are made for another one.

    See ``ckpt_schema.optimizer``.
    """

    of: Any = ""

    def state(self, owner: str, key: Pattern, body: Body) -> OptimizerTable:
        """What stands there.

        Args:
            owner: The schema, for messages.
            key: Where it stands.
            body: The attribute that ``of`` names.

        Raises:
            SchemaError: There is no such state for the body.
        """
        raise NotImplementedError


def field(
    *,
    key: str | Mapping[Any, str] | tuple[Any, ...] | None = None,
    default: Any = None,
    scan: str | int | None = None,
    axis: int | None = None,
    length: str | int | None = None,
    dims: Mapping[str, str | int] | None = None,
    type: Any = None,
    collection: str | None = None,
    optional: bool = False,
    ephemeral: bool = False,
    value: type | None = None,
    tag: str | None = None,
    name: str | None = None,
    items: Sequence[Any] | None = None,
) -> Any:
    """Says of a schema's attribute what its annotation cannot.

    Args:
        key: How this layout spells the attribute, where that is not its name: ``"LayerNorm_0"``, ``"dropout/rngs"``, with an
            index symbol for a list: ``"layers/{i}"`` (int keys), ``"layers_{i}"``, ``"layers/'{i}'"`` (string keys), also
            ``{i+1}``, ``{2*i+1}`` and ``{i:02}``. Empty for a schema whose leaves stand beside this attribute's own, not below
            it. Of a model with Linen collections, the key of each: ``{"params": "params", ...: "{collection}"}``. A tuple is
            the keys themselves, where one is neither text nor a number: ``("batch_stats", ("kernel", "u"))``.
        default: What the leaves below hold where the other layout has no place for them: a number, `fresh_key`
            or `constant_key`; or another leaf, `same_as`, which an optional leaf falls back on.
        scan: The dim that counts the repeats which are stacked in each leaf below, as ``nn.scan`` does.
        axis: The axis they are stacked on, 0 unless given. On a leaf inside a scanned schema: this leaf's own axis.
        length: The dim that counts the items of a ``list[...]`` attribute.
        dims: New names (or fixed sizes) for dims of the schema used here: ``{"mlp": "ff"}``. An axis
            may become several: ``{"out_features": "heads head_dim"}``.
        type: The NNX Variable type of the leaves below, as a class or by its name in ``flax.nnx``; ``Param`` unless given.
            ``jax.Array`` is that of a plain array, which no Variable holds.
        collection: The Linen variable collection of the leaves below; ``params`` unless given.
        optional: Whether a tree may lack this attribute.
        ephemeral: Whether it is left out of checkpoints, as caches and intermediates are; a tree may lack it. A restore leaves
            what a concrete target has of it, and makes it from its default where the target is abstract.
        value: The class of the container of the leaves below, where they are the parts of one value, as of a quantized array:
            ``dict``, ``tuple``, ``list``, a NamedTuple or a dataclass that is a pytree. NNX keeps it in one Variable. Fields
            that are not declared are None.
        tag: The stream name a new RNG Variable carries; the attribute's name unless given.
        name: The logical name, where no attribute of a class can be called so: ``"0"``, ``"'a/b'"``. With ``items``, the
            logical name of each, ``"layers_{i}"``, where they stand side by side.
        items: The schema of each item of a ``list[...]`` whose items differ: ``[Dense, *[Experts] * 27]``, beside the
            annotation ``list[Dense | Experts]``. Each item has rows of its own, ``layers/0``; ``key`` spells them.

    Returns:
        A marker that the schema class reads; typed ``Any`` so that any annotation may stand beside it.
    """
    # A copy, for a dict that is changed after the class statement would change the class.
    given: Any = {} if dims is None else dims
    renames = dict(given) if isinstance(given, Mapping) else given
    several: Any = tuple(items) if isinstance(items, list) else items
    return Field(
        key,
        default,
        scan,
        axis,
        length,
        renames,
        type,
        collection,
        optional,
        ephemeral,
        value,
        tag,
        name,
        several,
    )


def series(*members: str, name: str | None = None) -> Any:
    """Says that repeated nodes of a schema are one list of layers, and in which order.

    The layers ``layers[]`` of the other layout are those of the first member, repeat by repeat, then those of the second. Of a
    member in several levels, ``"blocks[]/layers[]"``, the outer level counts last: all layers of the first block come first.

    Args:
        *members: Logical paths of repeated nodes, each ending in ``[]``.
        name: The logical path of the list; that of the attribute unless given. As a rule for `derive` it must be given.

    Returns:
        What a schema class reads as the value of an attribute, without an annotation; or a rule.

    Raises:
        SchemaError: There are no members, or one is there twice, or a path is not that of a repeated node.

    Example:
        >>> print(series("blocks[]/layers[]", "rest[]", name="layers[]"))
        series('blocks[]/layers[]', 'rest[]', name='layers[]')
    """
    given: list[Any] = [*members]
    if name is not None:
        given.append(name)
    hint = 'logical paths, such as "blocks[]/layers[]"; print the layout to see them'
    faults: list[Mismatch] = []
    for path in given:
        if not isinstance(path, str) or not path.endswith("[]"):
            expected = "the path of a repeated node, ending in []"
            faults.append(Mismatch("series", "declaration", expected, repr(path), hint))
    if not members:
        faults.append(
            Mismatch("series", "declaration", "the nodes that the list consists of", "none", hint)
        )
    # What is no string is a fault already, and may not be hashable.
    named = [path for path in given[: len(members)] if isinstance(path, str)]
    twice = sorted({path for path in named if named.count(path) > 1})
    for path in twice:
        found, cure = f"{path!r} twice", "a layer has one place"
        faults.append(Mismatch("series", "declaration", "each node once", found, cure))
    if faults:
        raise SchemaError("series(...) is not well formed", faults)
    return Series(
        () if name is None else paths.parse_path(name),
        tuple(paths.parse_path(path) for path in members),
    )


def wrong_types(spec: Field) -> Iterator[tuple[str, str, str]]:
    """The arguments of `field` that are of another type than declared: each with what is expected, and what was found.

    Example:
        >>> list(wrong_types(field(key=0, axis=True)))
        [('key', 'a string', '0'), ('axis', 'an integer', 'True')]
    """
    for argument in ("key", "collection", "tag", "name"):
        value = getattr(spec, argument)
        if argument == "key" and isinstance(value, Mapping):
            several: list[Any] = list(value.values())
            if not all(isinstance(each, str) for each in several):
                yield argument, "a string for each collection", shown(dict(value))
            continue
        # A tuple is the keys themselves, of whatever kind they are.
        if argument == "key" and isinstance(value, tuple) and value:
            continue
        if value is not None and not isinstance(value, str):
            yield argument, "a string", shown(value)
    for argument in ("scan", "length"):
        value = getattr(spec, argument)
        if (
            value is not None
            and not isinstance(value, str)
            and not (_is_integer(value) and value > 0)
        ):
            yield argument, "the name of a dim, or a positive integer", shown(value)
    if not _are_renames(spec.dims):
        yield "dims", "a dict from names to names or positive integers", shown(spec.dims)
    for argument in ("optional", "ephemeral"):
        value = getattr(spec, argument)
        if not isinstance(value, bool):
            yield argument, "True or False", shown(value)
    if spec.type is not None and not isinstance(spec.type, (type, str)):
        yield "type", "a Variable type, or its name", shown(spec.type)
    if spec.value is not None and not isinstance(spec.value, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        yield "value", "the class of a container", shown(spec.value)
    if spec.axis is not None and not _is_integer(spec.axis):
        yield "axis", "an integer", shown(spec.axis)
    if spec.items is not None and not isinstance(spec.items, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
        yield "items", "a list of schemas", shown(spec.items)


def _are_renames(given: Any) -> bool:
    if not isinstance(given, Mapping):
        return False
    items: Iterable[tuple[Any, Any]] = given.items()
    return all(
        isinstance(old, str) and (isinstance(new, str) or (_is_integer(new) and new > 0))
        for old, new in items
    )


def _is_integer(value: Any) -> bool:
    # Python takes True for a 1.
    return isinstance(value, int) and not isinstance(value, bool)


def verify_field(name: str, spec: Field, *, many: bool) -> None:
    """Rejects values of other types, and contradictions that need no more than the field to be seen."""
    # Nothing else can be asked of a field while a value in it is of another type.
    for argument, expected, found in wrong_types(spec):
        raise declaration(name, f"{expected} as {argument}=", found, "see ckpt_schema.field")
    pattern = paths.parse_pattern(spec.key) if isinstance(spec.key, str) and spec.key else ()
    symbols = paths.symbols(pattern)
    # Without a key a list is spelled layers/{i}, with the one symbol that it needs.
    if spec.key is None or isinstance(spec.key, Mapping):
        symbols = int(many)
    if many and spec.length is None:
        raise declaration(name, "length= on a list", "none", 'write field(length="depth")')
    if not many and spec.length is not None:
        raise declaration(
            name, "a list[...] annotation beside length=", "none", "use scan= for stacked repeats"
        )
    if many and spec.scan is not None:
        raise declaration(
            name,
            "scan= or list[...], not both",
            "both",
            "nest one schema in another for two levels",
        )
    if symbols != int(many):
        raise declaration(
            name,
            f"{counted(int(many), 'index symbol')} in key=",
            f"{symbols} in {spec.key!r}",
            'a list is spelled key="layers/{i}"',
        )
    if spec.value is not None and many:
        raise declaration(
            name,
            "value= on one schema",
            "on a list",
            "give value= to the attributes of the schema in the list",
        )
    if spec.name is not None and len(paths.parse_path(spec.name)) != 1:
        hint = "a name with a slash in it stands in quotes, name=\"'a/b'\""
        raise declaration(name, "one segment of a logical path as name=", shown(spec.name), hint)
    if spec.collection is not None and not spec.collection:
        raise declaration(
            name, "a collection's name", repr(spec.collection), "leave collection= out for params"
        )
    if repeats := spec.length if many else spec.scan:
        count(name, repeats)


def faults_in_dims(
    name: str, renames: Mapping[str, str | int], rows: Iterable[Row]
) -> Iterator[Mismatch]:
    """What is wrong with new names for dims of some rows."""
    known, single = set[str](), set[str]()
    for row in rows:
        known |= dims_.dim_names(row.all_dims)
        single |= dims_.dim_names([repeat.size for repeat in row.repeats])
        # A name that is no whole axis of a leaf stays one axis.
        single |= dims_.dim_names([dim for dim in row.leaf.dims if dim != (str(dim[0]),)])
    for old, new in renames.items():
        if old not in known:
            expected = (
                f"dims= to rename a dim used below ({', '.join(sorted(known)) or 'there is none'})"
            )
            yield Mismatch(name, "rule", expected, repr(old), 'write dims={"old": "new"}')
        if not _axes(new):
            hint = 'such as "heads", 8, "kv*groups", "6*blocks+rest", or axes, "heads head_dim"'
            yield Mismatch(name, "declaration", "a name or a size in dims=", repr(new), hint)
        elif len(_axes(new)) > 1 and old in single:
            hint = 'write a product, "heads*head_dim", or rename an axis that is this dim alone'
            expected = f"one axis in dims= for {old}, which is part of an axis or counts layers"
            yield Mismatch(name, "declaration", expected, repr(new), hint)


def _axes(size: str | int) -> Dims:
    """The axes that have this size; none where it is no size."""
    if isinstance(size, int) and size > dims_.LARGEST:
        return ()
    try:
        return dims_.parse_dims(str(size))
    except SchemaError:
        return ()


def count(name: str, size: str | int | None) -> dims_.Dim:
    """The number of repeats that an attribute declares.

    Raises:
        SchemaError: It is none.
    """
    # A string may spell several axes, of which none would be the number of layers.
    axes = () if size is None else _axes(size)
    if len(axes) != 1:
        hint = 'such as "depth", 6, "stages*layers" or "6*blocks+rest"'
        raise declaration(name, "one dim as the number of repeats", shown(size), hint)
    return axes[0]


def declaration(path: str, expected: str, found: str, hint: str) -> SchemaError:
    """The error for an attribute that is not well declared."""
    fault = Mismatch(path, "declaration", expected, found, hint)
    return SchemaError(f"{path} is not well declared", [fault])

"""What the attributes of a schema declare, lifted through nested schemas: rows, optimizer states, and what makes these."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from ckpt_schema._frameworks.state_names import USUAL_COLLECTION
from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.fields import Body, Field, StateField, count, declaration
from ckpt_schema._layouts.immutable import immutable, object_maker, replaced
from ckpt_schema._layouts.kinds import Dicts
from ckpt_schema._layouts.leaves import ConstantKey, Default, Fill, FreshKey, Leaf, Made, holds
from ckpt_schema._layouts.paths import Index, KeyPath, LogicalPath, Pattern
from ckpt_schema._layouts.table import Initial, Layout, Node, Part, Repeat, Row
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = [
    "Attribute",
    "Declared",
    "Draft",
    "JoinedKeys",
    "OptState",
    "below",
    "drafts_of",
    "lift",
    "models_of",
    "read_off",
    "table_of",
    "verify_fallbacks",
    "with_inherited",
    "written_nodes",
]


if TYPE_CHECKING:

    class Open(Any):
        """What makes a value annotated with a schema usable as any tree, as jaxtyping's types are."""

        def __getitem__(self, key: Any) -> Any: ...
else:
    Open = object


class OptState(Open):
    """The annotation of an attribute that is ``ckpt_schema.optimizer(...)``: what optax keeps, whatever that is."""


@dataclasses.dataclass(frozen=True, slots=True)
class JoinedKeys:
    """What joins the segments of a key path to one key, and how many of the last ones it does not join."""

    separator: str
    nested: int

    def __call__(self, draft: Draft) -> Draft:
        """The draft, its key joined."""
        key = draft.row.key
        end = len(key) - self.nested
        if end < 2:
            return draft
        key = (paths.joined_key(key[:end], self.separator), *key[end:])
        return Draft(replaced(draft.row, key=key), draft.axis, draft.collection)


class Declared(Protocol):
    """A schema class, as far as its attributes are concerned."""

    __attributes__: tuple[Attribute, ...]
    __kinds__: Dicts
    __joined__: JoinedKeys | None
    __containers__: tuple[Node, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Attribute:
    """A declared attribute: its name, what it is made of, whether it is a list, and its field.

    The class itself may know it by another name, where its own is none that Python has.
    """

    name: str
    target: Leaf | Declared | type[OptState] | Layout
    many: bool
    field: Field
    written: str = ""


@immutable
class Draft:
    """A row on its way up through nested schemas, with the stack axis its own field asks for."""

    row: Row
    axis: int | None
    collection: str | None

    def seen_by(self, kinds: Dicts) -> Draft:
        """The same, with the kind of a leaf that is of no model and no optimizer."""
        if self.row.body is not None or self.row.optimizer:
            return self
        row = kinds.leaf(self.row)
        return self if row is self.row else Draft(row, self.axis, self.collection)


_made_row, _made_draft = object_maker(Row), object_maker(Draft)


@immutable
class Table:
    """All that a schema declares, as it sees it itself."""

    drafts: tuple[Draft, ...] = ()
    nodes: tuple[Node, ...] = ()
    parts: tuple[Part, ...] = ()
    states: tuple[tuple[LogicalPath, Pattern], ...] = ()
    initial: Initial | None = None
    sizes: tuple[tuple[str, int], ...] = ()

    @classmethod
    def together(cls, several: Sequence[Table]) -> Table:
        """Tables that stand beside one another, as one."""
        # Of optimizer states each has to be known, or none is.
        kept = [table for table in several if table.states]
        known = [table.initial for table in kept if table.initial is not None]
        initial: Initial | None = None
        if len(known) == len(kept):
            for one in known:
                initial = one if initial is None else initial.beside(one)
        drafts: list[Draft] = []
        nodes: list[Node] = []
        parts: list[Part] = []
        states: list[tuple[LogicalPath, Pattern]] = []
        sizes: list[tuple[str, int]] = []
        for table in several:
            drafts += table.drafts
            nodes += table.nodes
            parts += table.parts
            states += table.states
            sizes += table.sizes
        return cls(tuple(drafts), tuple(nodes), tuple(parts), tuple(states), initial, tuple(sizes))


@functools.lru_cache(maxsize=256)  # classes of the models at work; what is kept here is never freed
def table_of(schema: Declared) -> Table:
    """What a schema declares."""
    tables: dict[str, Table] = {}
    models, kinds = models_of(schema), schema.__kinds__
    # These last, for each needs the finished table of the model that it is of.
    states = {a.name: a for a in schema.__attributes__ if isinstance(a.field, StateField)}
    for attribute in schema.__attributes__:
        if attribute.name in states:
            continue
        table = _attribute_table(attribute, is_model=attribute.name in models)
        if attribute.name in models:
            table = replaced(table, drafts=_as_model(attribute, table.drafts, kinds))
        elif type(kinds).leaf is not Dicts.leaf:  # which leaves each as it is
            drafts = tuple([draft.seen_by(kinds) for draft in table.drafts])
            table = replaced(table, drafts=drafts)
        tables[attribute.name] = table
    for name, attribute in states.items():
        tables[name] = _state_table(schema, attribute, tables)
    # In the order of the class, whatever was made first.
    whole = Table.together([tables[attribute.name] for attribute in schema.__attributes__])
    whole = replaced(whole, nodes=whole.nodes + schema.__containers__)
    if schema.__joined__ is None:
        return whole
    return replaced(whole, drafts=tuple(map(schema.__joined__, whole.drafts)))


@functools.lru_cache(maxsize=256)
def models_of(schema: Declared) -> set[str]:
    """The attributes that are models: what optimizers are of, what has the same schema, and what says so by its key."""
    trained = _trained(schema)
    models: set[str] = set()
    for attribute in schema.__attributes__:
        if isinstance(attribute.target, Leaf) or isinstance(attribute.field, StateField):
            continue
        # By identity: two layouts that are equal may be of two models.
        is_trained = any(attribute.target is target for target in trained)
        # A key of nothing, or one for each collection, is how weights alone are spelled.
        key = attribute.field.key
        if is_trained or key == "" or isinstance(key, Mapping):
            models.add(attribute.name)
    return models


@functools.lru_cache(maxsize=256)
def _trained(schema: Declared) -> list[Any]:
    """What the optimizers in a schema, and in the schemas in it, are of."""
    trained: list[Any] = []
    for attribute in schema.__attributes__:
        if isinstance(attribute.field, StateField):
            trained += (a.target for a in schema.__attributes__ if a.name == attribute.field.of)
        elif not isinstance(attribute.target, (Leaf, Layout)):
            trained += _trained(cast(Declared, attribute.target))
    return trained


def _as_model(attribute: Attribute, drafts: tuple[Draft, ...], kinds: Dicts) -> tuple[Draft, ...]:
    """The drafts of a model, known for such from here on."""
    models: list[Draft] = []
    faults: list[Mismatch] = []
    if isinstance(attribute.target, Layout) and attribute.target.container != kinds.container:
        both = {"dict": "a model in dicts", "nnx": "a model of Variables"}
        expected, told = both[kinds.container], both[attribute.target.container]
        hint = "infer the model of the same framework, or declare it as a class"
        fault = Mismatch(attribute.name, "declaration", expected, told, hint)
        raise SchemaError(f"{attribute.target.name} has no place in this train state", [fault])
    # One key for all collections would put params and batch_stats into one dict.
    together = kinds.container == "dict" and not isinstance(attribute.field.key, Mapping)
    for draft in drafts:
        try:
            row = kinds.model(draft.row, draft.collection)
        except SchemaError as error:
            where = "/".join(draft.row.path[1:])
            faults += (dataclasses.replace(fault, path=where) for fault in error.mismatches)
            continue
        if together and draft.collection not in (None, USUAL_COLLECTION):
            where = "/".join(draft.row.path[1:])
            hint = 'say where, key={"params": "params", ...: "{collection}"}'
            expected = "a model of params alone, or the key of each collection"
            told = f"a leaf of {draft.collection}"
            faults.append(Mismatch(where, "declaration", expected, told, hint))
        is_same = row is draft.row and draft.collection is None
        models.append(draft if is_same else _made_draft(row, draft.axis, None))
    if faults:
        called = getattr(attribute.target, "__name__", attribute.name)
        what = "Variable type" if kinds.container == "nnx" else "place"
        raise SchemaError(f"{called} has leaves of no {what}", faults)
    return tuple(models)


def drafts_of(attribute: Attribute, *, is_model: bool = False) -> tuple[Draft, ...]:
    """The rows of an attribute, as its own schema's class has them."""
    drafts = below(attribute)
    keys = {name: _key(attribute, name) for name in {draft.collection for draft in drafts}}
    # A field without a word on what is below it, as most are: each row gets a longer path and key alone.
    is_plain = _said_below(attribute.field) == _NOTHING_SAID
    lifted: list[Draft] = []
    for draft in drafts:
        key = keys[draft.collection]
        if is_plain and draft.row.kind not in _OF_STREAMS:
            lifted.append(_moved_up(draft, attribute.name, key, is_model=is_model))
        else:
            lifted.append(lift(draft, attribute, key, is_model=is_model))
    return tuple(lifted)


_said_below = operator.attrgetter(
    *[field.name for field in dataclasses.fields(Field) if field.name not in ("key", "name")]
)
"""What a field says of the leaves below it; its key and its name are of the attribute itself."""

_NOTHING_SAID = _said_below(Field())

_OF_STREAMS = ("RngKey", "RngCount")
"""The kinds of leaves that are told by the name of the attribute above them."""


def _attribute_table(attribute: Attribute, *, is_model: bool) -> Table:
    drafts = drafts_of(attribute, is_model=is_model)
    if isinstance(attribute.target, (Leaf, Layout)) or attribute.target is OptState:
        return Table(drafts)
    inner, key = table_of(attribute.target), _key(attribute, None)
    repeated = attribute.many or attribute.field.scan is not None
    name = attribute.name + ("[]" if repeated else "")
    counts = (count(name, attribute.field.length),) if attribute.many else ()
    # A list of optimizer states is not made by one call.
    initial = None if repeated or inner.initial is None else inner.initial.below(name, _plain(key))
    renames = attribute.field.dims
    # All of the inner schema, as it is seen from here: one name and one key further down.
    nodes: list[Node] = []
    for node in inner.nodes:
        below_key, all_counts = (*key, *node.key), (*counts, *node.counts)
        nodes.append(dataclasses.replace(node, key=below_key, counts=all_counts))
    return Table(
        drafts,
        tuple(nodes),
        tuple([Part((name, *part.path), part.type) for part in inner.parts]),
        tuple([((name, *path), (*key, *at)) for path, at in inner.states]),
        initial,
        tuple([(str(renames.get(dim, dim)), size) for dim, size in inner.sizes]),
    )


def _plain(key: Pattern) -> KeyPath:
    """A key without index symbols."""
    return tuple(segment for segment in key if not isinstance(segment, Index))


def _key(attribute: Attribute, collection: str | None) -> Pattern:
    """How the layout spells an attribute: for a model whose collections stand apart, the leaves of one."""
    text: Any = attribute.field.key
    if isinstance(text, tuple):
        return text
    if isinstance(text, Mapping):
        name = collection or USUAL_COLLECTION
        text = text.get(name, text.get(..., "")).replace("{collection}", name)
    elif text is None:
        text = f"{attribute.name}/{{i}}" if attribute.many else attribute.name
    return paths.parse_pattern(text) if text else ()


def _state_table(schema: Declared, attribute: Attribute, others: Mapping[str, Table]) -> Table:
    """An optimizer state, made for the model that it is of."""
    spec = attribute.field
    assert isinstance(spec, StateField)
    model = next((a for a in schema.__attributes__ if a.name == spec.of), None)
    if model is None or model.name not in models_of(schema) or model.many or model.field.scan:
        names = [a.name for a in schema.__attributes__ if not isinstance(a.target, Leaf)]
        others_ = ", ".join(n for n in names if n != attribute.name) or "there is none"
        expected = f"the name of an attribute that is one model ({others_})"
        raise declaration(
            attribute.name, expected, f"of={spec.of!r}", 'write of="params", params: Body beside it'
        )
    key = _key(attribute, None)
    rows = tuple(draft.row for draft in others[model.name].drafts)
    state = spec.state(
        str(getattr(schema, "__name__", "")),
        key,
        Body(model.name, _key(model, None), rows, schema.__kinds__),
    )
    drafts: list[Draft] = []
    for row in state.rows:
        # Its place in the model, and what it mirrors, are told from the schema's own root.
        bare = replaced(row, body=None, mirrors="")
        lifted = lift(Draft(bare, None, None), attribute, key).row
        body = None if row.body is None else 1 + row.body
        made = replaced(lifted, body=body, optimizer=1, mirrors=row.mirrors)
        drafts.append(Draft(made, None, None))
    return Table(
        tuple(drafts),
        tuple(dataclasses.replace(n, key=(*key, *n.key)) for n in state.nodes),
        tuple(Part((attribute.name, *part.path), part.type) for part in state.parts),
        (((attribute.name,), key),),
        state.initial,
        tuple(sorted(state.sizes.items())),
    )


def below(attribute: Attribute) -> tuple[Draft, ...]:
    """What an attribute is made of, as its own schema sees it."""
    target = attribute.target
    if isinstance(target, Leaf):
        return (Draft(Row((), (), target), None, None),)
    if isinstance(target, Layout):
        return tuple(read_off(target))
    return () if target is OptState else table_of(target).drafts


def read_off(table: Layout) -> Iterator[Draft]:
    """The model that a layout describes, without what stands around it."""
    for row in table.rows:
        if row.body is None or row.optimizer:
            continue
        own = isinstance(row.kind, str) and row.key[:1] == (row.kind,)
        key = row.key[1:] if own else row.key
        collection = row.kind if isinstance(row.kind, str) else None
        path = row.path[row.body :]
        yield Draft(replaced(row, path=path, key=key, body=None), None, collection)


def lift(
    draft: Draft, attribute: Attribute, key: paths.Pattern, *, is_model: bool = False
) -> Draft:
    """One draft seen from the schema above: its path, key, repeats, dims and inherited declarations.

    Args:
        draft: The draft, as the schema below has it.
        attribute: The attribute that it is below.
        key: How the attribute is spelled.
        is_model: Whether the attribute is a model, at whose root its path in the model begins.
    """
    spec, row = attribute.field, draft.row
    repeats, leaf, axis = row.repeats, row.leaf, draft.axis
    if spec.dims:
        repeats, leaf = _renamed(repeats, spec.dims), leaf.renamed(spec.dims)
    name = attribute.name
    if attribute.many:
        name += "[]"
        repeats = (Repeat(count(attribute.name, spec.length), None), *repeats)
    elif spec.scan is not None:
        name += "[]"
        stacked = (spec.axis or 0) if axis is None else axis
        repeats = (Repeat(count(attribute.name, spec.scan), stacked), *repeats)
        axis = None
    elif axis is None:
        axis = spec.axis
    metadata, default = row.metadata, row.default
    if not metadata and row.kind in _OF_STREAMS:
        metadata = (("tag", spec.tag or attribute.name),)
    if default is None and spec.default is not None:
        default = _default(attribute.name, spec.default, row)
    said = replaced(
        row,
        leaf=leaf,
        repeats=repeats,
        kind=spec.type if row.kind is None else row.kind,
        metadata=metadata,
        default=default,
        optional=row.optional or spec.optional or spec.ephemeral,
        ephemeral=row.ephemeral or spec.ephemeral,
        held=row.held if spec.value is None else ((len(row.key), spec.value), *row.held),
    )
    collection = draft.collection or spec.collection
    lifted = _moved_up(_made_draft(said, axis, collection), name, key, is_model=is_model)
    if repeats:
        _verify_axis(lifted.row)
    return lifted


def _moved_up(draft: Draft, name: str, key: Pattern, *, is_model: bool) -> Draft:
    """A draft below an attribute of this name and key, of which all else that is said is in it."""
    row = draft.row
    body = 0 if is_model else row.body
    moved = _made_row(
        (name, *row.path),
        (*key, *row.key),
        row.leaf,
        row.repeats,
        row.kind,
        row.metadata,
        row.default,
        row.optional,
        row.ephemeral,
        None if body is None else 1 + body,
        row.inside,
        row.held,
        row.reshaped,
        row.optimizer and 1 + row.optimizer,
        row.mirrors and f"{name}/{row.mirrors}",
    )
    return _made_draft(moved, draft.axis, draft.collection)


def _renamed(repeats: tuple[Repeat, ...], renames: Mapping[str, str | int]) -> tuple[Repeat, ...]:
    renamed: list[Repeat] = []
    for repeat in repeats:
        (size,) = dims_.renamed_dims((repeat.size,), renames)
        renamed.append(dataclasses.replace(repeat, size=size))
    return tuple(renamed)


def _default(name: str, value: Any, row: Row) -> Default | None:
    """The declared default as it applies to one leaf, refused where the leaf could not hold it exactly."""
    if value is None:
        return None
    if isinstance(value, SameAs):
        return value.below(row.path)
    leaf, name = row.leaf, "/".join((name, *row.path))
    default = value if isinstance(value, Made) else Fill(value)
    if leaf.is_key and not isinstance(default, (FreshKey, ConstantKey)):
        expected, hint = "fresh_key(seed) as the default of a key", "write default=fresh_key(0)"
        raise declaration(name, expected, shown(value), hint)
    # A default that is rounded would not be what the class says.
    if not holds(leaf, default):
        expected, hint = f"a default that {leaf.dtype} can hold", "a number of the leaf's own kind"
        raise declaration(name, expected, shown(value), hint)
    return default


def verify_fallbacks(name: str, rows: Sequence[Row]) -> None:
    """Raises where a default is another leaf that is not there, that may be missing too, or that is another thing.

    Raises:
        SchemaError: With every such default.
    """
    faults: list[Mismatch] = []
    others = [(row, row.default) for row in rows if isinstance(row.default, SameAs)]
    by_path = {row.path: row for row in rows} if others else {}
    for row, default in others:
        path = default.of(row.path)
        other = by_path.get(path)
        alike = other is not None and (other.leaf, other.repeats) == (row.leaf, row.repeats)
        if other is None or not alike or other.optional:
            expected = f"a leaf at {'/'.join(path)} that every tree has, {row.stored}"
            found = "none" if other is None else f"{'an optional ' * other.optional}{other.stored}"
            where, hint = "/".join(row.path), f"name another leaf than {row.default}"
            faults.append(Mismatch(where, "declaration", expected, found, hint))
    if faults:
        raise SchemaError(f"layout {name} is not well formed", faults)


def _verify_axis(row: Row) -> None:
    # The outermost level alone: those inside were looked at when they were the outermost.
    rank = len(row.leaf.dims) + sum(repeat.axis is not None for repeat in row.repeats[1:])
    first = row.repeats[0].axis
    if first is not None and not -rank - 1 <= first <= rank:
        raise declaration(
            "/".join(row.path),
            f"a stack axis between {-rank - 1} and {rank}",
            f"axis {first} for {row.leaf}",
            "give the leaf's own field axis=, as for rank-0 RNG leaves on axis 0",
        )


def written_nodes(argument: str, given: object) -> tuple[Node, ...]:
    """Containers as they are declared: their classes by key path, with their number where there is a symbol.

    Raises:
        SchemaError: With everything that is no such declaration.

    Example:
        >>> nodes = written_nodes("containers", {"blocks/{i}": (tuple, 2), "end": None})
        >>> [(paths.format_path(node.key), node.type.__name__) for node in nodes]
        [('blocks/0', 'tuple'), ('blocks/1', 'tuple'), ('end', 'NoneType')]
    """
    nodes: list[Node] = []
    faults: list[Mismatch] = []
    items: Mapping[Any, Any] = given if isinstance(given, Mapping) else {given: given}
    for text, value in items.items():
        kind, *counts = value if isinstance(value, tuple) else (value,)
        pattern = paths.parse_pattern(text) if isinstance(text, str) and text else ()
        numbers = [n for n in counts if type(n) is int and n > 0]
        fits = len(numbers) == len(counts) == paths.symbols(pattern)
        if not isinstance(text, str) or not fits or not (kind is None or isinstance(kind, type)):
            hint = f'write {argument}={{"blocks": tuple, "blocks/{{i}}": (list, 4)}}'
            expected = "classes by key path, each symbol with a number of keys"
            found = f"{shown(text)}: {shown(value)}"
            faults.append(Mismatch(argument, "declaration", expected, found, hint))
            continue
        node = type(None) if kind is None else kind
        several = itertools.product(*map(range, numbers))
        nodes += (Node(paths.fill(pattern, indices), node) for indices in several)
    if faults:
        raise SchemaError(f"{argument}= is not well formed", faults)
    return tuple(nodes)


def with_inherited(cls: type, own: tuple[Node, ...]) -> tuple[Node, ...]:
    """The containers that a schema declares, after those of its bases at other keys, the nearest base deciding."""
    declared = {node.key for node in own}
    inherited: dict[KeyPath | Pattern, Node] = {}
    for base in reversed(cls.__mro__[1:]):
        nodes: tuple[Node, ...] = base.__dict__.get("__containers__", ())
        for node in nodes:
            if node.key not in declared:
                inherited[node.key] = node
    return (*inherited.values(), *own)

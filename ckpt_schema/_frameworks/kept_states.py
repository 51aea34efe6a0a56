"""What an optimizer keeps, written out: a state whose transformation is not known, as one that was read off a tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_schema._layouts import paths
from ckpt_schema._layouts.annotations import from_annotation
from ckpt_schema._layouts.drafts import written_nodes
from ckpt_schema._layouts.fields import Body, OptimizerTable, StateField
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema._layouts.paths import LogicalPath, Pattern
from ckpt_schema._layouts.table import Node, Part, Repeat, Row, is_part
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["kept"]


def kept(
    *,
    of: str,
    key: str | None = None,
    mirrors: Sequence[str] | Mapping[str, Sequence[str] | None] = (),
    leaves: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, str] | None = None,
    axes: Mapping[str, int] | None = None,
    containers: Mapping[str, Any] | None = None,
    root: str = "",
) -> Any:
    """Says of a schema's attribute what an optimizer keeps for a model beside it, where its transformation is not at hand.

    A lens carries such a state. What starts anew needs the transformation itself, see `optimizer`.

    Args:
        of: The name of the attribute that is the model.
        key: How this layout spells the attribute, where that is not its name; see `field`.
        mirrors: Where the state has a leaf for each param, of its shape: ``["0/mu", "0/nu"]``; or the
            logical paths of the params that have one, ``{"0/mu": ["head/kernel"], "0/nu": None}``.
        leaves: Annotations of all others by their logical path, ``{"0/count": Int32[Array, ""]}``;
            below one of ``mirrors``, of those in a shape or dtype of their own.
        dtypes: The dtype of what a mirror keeps, where it is not that of each param.
        axes: The axis on which layers are stacked in leaves of their own shape, where it is not that of the param.
        containers: The classes of containers that are no dicts, by key path in the state, ``{"": tuple}``.
        root: The key path in what ``tx.init`` was given at which the model stands: ``"params"`` for a whole variables dict.

    Returns:
        A marker that the schema class reads, beside the annotation ``OptState``.

    Example:
        >>> import ckpt_schema as cs, optax
        >>> from jaxtyping import Array, Float32, Int32
        >>> class Dense(cs.Schema):
        ...     kernel: Float32[Array, "a b"]
        >>> class Run(cs.Schema):
        ...     params: Dense
        ...     state: cs.OptState = cs.kept(
        ...         of="params",
        ...         mirrors=["0/mu", "0/nu"],
        ...         leaves={"0/count": Int32[Array, ""]},
        ...         containers={"": tuple, "0": optax.ScaleByAdamState, "1": optax.EmptyState},
        ...     )
        >>> print(cs.layout(Run))
        Run: 4 rows
          params/kernel      params/kernel      float32[a b]  params
          state/0/mu/kernel  state/0/mu/kernel  float32[a b]
          state/0/nu/kernel  state/0/nu/kernel  float32[a b]
          state/0/count      state/0/count      int32[]
    """
    return _Kept(
        key=key,
        of=of,
        mirrors=mirrors,
        leaves={} if leaves is None else leaves,
        dtypes={} if dtypes is None else dtypes,
        axes={} if axes is None else axes,
        containers={} if containers is None else containers,
        root=root,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept(StateField):
    """What `kept` was told; see there."""

    mirrors: Any = ()
    leaves: Any = dataclasses.field(default_factory=dict[str, Any])
    dtypes: Any = dataclasses.field(default_factory=dict[str, str])
    axes: Any = dataclasses.field(default_factory=dict[str, int])
    containers: Any = dataclasses.field(default_factory=dict[str, Any])
    root: str = ""

    def state(self, owner: str, key: Pattern, body: Body) -> OptimizerTable:
        """What stands there."""
        faults = [*self._faults()]
        if faults:
            raise SchemaError(f"what an optimizer of {owner} keeps is not well declared", faults)
        reader = _Reader(self, body)
        rows = [*reader.rows()]
        if reader.faults:
            raise SchemaError(f"what an optimizer of {owner} keeps has no params", reader.faults)
        nodes = written_nodes("containers", self.containers)
        parts: list[Part] = []
        for node in nodes:
            # A NamedTuple where a param stands is a param's factors, and no step of the chain.
            if is_part(node.type) and not reader.is_mirrored(node):
                parts.append(Part(tuple(map(paths.named, node.key)), node.type))
        return OptimizerTable(tuple(rows), nodes, tuple(parts), None, {})

    def _faults(self) -> Iterator[Mismatch]:
        """What is of another type than declared."""
        by_path = {"leaves": self.leaves, "dtypes": self.dtypes, "axes": self.axes}
        for argument, given in by_path.items():
            if not isinstance(given, Mapping):
                yield Mismatch(argument, "declaration", "a dict by path", shown(given))
        # A text is a sequence too, and "0/mu" would be read as four paths of one letter.
        if isinstance(self.mirrors, str) or not isinstance(self.mirrors, (Sequence, Mapping)):
            hint = 'write mirrors=["0/mu", "0/nu"]'
            yield Mismatch("mirrors", "declaration", "a list of paths", shown(self.mirrors), hint)


class _Reader:
    """Makes the rows of a state for the params of a body."""

    def __init__(self, spec: _Kept, body: Body) -> None:
        is_trained = body.kinds.trained(None)
        self._spec, self._body = spec, body
        self.faults: list[Mismatch] = []
        self._root: Pattern = paths.parse_pattern(spec.root) if spec.root else ()
        # Paths are told from the model's own root, as the state has them.
        self._params = {row.path[1:]: row for row in body.rows}
        self._trained = [path for path, row in self._params.items() if is_trained(row, ())]
        self._heads = [paths.parse_pattern(text) if text else () for text in spec.mirrors]
        # Leaves that are written out, by path: a mirror makes none of its own there.
        self._written = {paths.parse_path(text): text for text in spec.leaves}
        self._written_heads = {head for path in self._written for head in self._heads_of(path)}

    def is_mirrored(self, node: Node) -> bool:
        """Whether a container stands where a param does."""
        for head in self._heads:
            place = (*head, *self._root)
            if node.key[: len(place)] == place:
                return True
        # Moments that are written leaf by leaf have no mirror, and stand where params do all the same.
        return not self._written_heads.isdisjoint(self._heads_of(tuple(map(paths.named, node.key))))

    def _heads_of(self, path: LogicalPath) -> Iterator[LogicalPath]:
        """What stands before the path of a param at the end of a path."""
        for at in range(len(path)):
            if path[at:] in self._params:
                yield path[:at]

    def rows(self) -> Iterator[Row]:
        """All rows, those of mirrors first."""
        for text, head in zip(self._spec.mirrors, self._heads, strict=True):
            start = tuple(map(paths.named, head))
            for path in self._wanted(text):
                if (*start, *path) not in self._written:
                    param = self._params[path]
                    # As by optax.adam(mu_dtype="bfloat16"), whose mu is narrower than its params.
                    dtype = self._spec.dtypes.get(text, param.leaf.dtype)
                    leaf = dataclasses.replace(param.leaf, dtype=dtype)
                    yield self._mirror(head, param, dataclasses.replace(param, leaf=leaf), ())
        for path, text in self._written.items():
            leaf = from_annotation(self._spec.leaves[text])
            if leaf is None:
                hint = 'write leaves={"0/count": Int32[Array, ""]}'
                expected = "the annotation of a leaf"
                found = shown(self._spec.leaves[text])
                self.faults.append(Mismatch(text, "declaration", expected, found, hint))
                continue
            # What stands at no param's place is a leaf of the state itself, as Adam's count.
            yield self._shaped(path, text, leaf) or Row(
                path, paths.parse_pattern(text), leaf, kind=self._kind(mirror=False)
            )

    def _wanted(self, text: str) -> Sequence[LogicalPath]:
        """The params that a mirror has leaves for."""
        given = self._spec.mirrors[text] if isinstance(self._spec.mirrors, Mapping) else None
        if given is None:
            return self._trained
        wanted: list[LogicalPath] = []
        for path in map(paths.parse_path, given):
            if path in self._params:
                wanted.append(path)
            else:
                expected = f"a param of {self._body.name}"
                found = "/".join(path)
                self.faults.append(Mismatch(text, "declaration", expected, found))
        return wanted

    def _shaped(self, path: LogicalPath, text: str, leaf: Leaf) -> Row | None:
        """The row of a leaf that is kept for a param in a shape of its own.

        None for any other leaf.
        """
        # The deepest mirror first: with mirrors "" and "0/mu", a leaf at 0/mu/w is of the second.
        for head in sorted(self._heads, key=len, reverse=True):
            start = tuple(map(paths.named, head))
            if path[: len(start)] != start:
                continue
            rest = path[len(start) :]
            # Of kernel/0 the param is kernel, and 0 the number of a factor that is kept for it.
            for end in range(len(rest), 0, -1):
                place, tail = rest[:end], rest[end:]
                param = self._params.get(place)
                if param is not None:
                    return self._mirror(head, param, self._stacked(param, text, leaf), tail)
                # A leaf that does not share the stack of its param is no repetition: it is written
                # layers/w where the param is layers[]/w.
                alike = [p for p in self._params if paths.path_names(p) == place]
                if alike:
                    param = self._params[alike[0]]
                    lone = dataclasses.replace(param, path=("", *place), repeats=(), leaf=leaf)
                    return self._mirror(head, param, lone, tail)
        return None

    def _stacked(self, param: Row, text: str, leaf: Leaf) -> Row:
        """The param with a leaf of another shape, its layers on the axis that the leaf has them on."""
        axis = self._spec.axes.get(text)
        repeats: list[Repeat] = []
        for repeat in param.repeats:
            # A level without an axis is a list of leaves, which no array stacks.
            if axis is not None and repeat.axis is not None:
                repeat = dataclasses.replace(repeat, axis=axis)
            repeats.append(repeat)
        return dataclasses.replace(param, leaf=leaf, repeats=tuple(repeats))

    def _mirror(self, head: Pattern, param: Row, shape: Row, tail: LogicalPath) -> Row:
        """The row of what is kept for a param, of the leaf and the repeats of ``shape``."""
        param_key = param.key[len(self._body.key) :]
        boxed = self._body.kinds.container == "nnx"
        tail_key = paths.parse_pattern("/".join(tail)) if tail else ()
        start = tuple(map(paths.named, head))
        made = Row(
            (*start, *shape.path[1:], *tail),
            (*head, *self._root, *param_key, *tail_key),
            shape.leaf,
            shape.repeats,
            self._kind(mirror=True),
            optional=param.optional,  # of a leaf that a tree lacks nothing is kept
            body=len(start),
            inside=len(tail) if boxed else 0,
            mirrors="/".join(param.path),
        )
        # Only the finished row knows its dims with the stack in them.
        return dataclasses.replace(made, reshaped=made.dims != param.dims)

    def _kind(self, *, mirror: bool) -> Any:
        """The Variable type of a leaf; what a tree of dicts keeps is of no collection."""
        boxed = self._body.kinds.container == "nnx"
        return self._body.kinds.kept(mirror=mirror, boxed=mirror) if boxed else None

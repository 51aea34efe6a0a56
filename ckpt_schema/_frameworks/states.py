"""An optimizer as an attribute of a schema: its rows come from the transformation, and mirror the model that it is of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import optax

from ckpt_schema._frameworks.optimizer_rows import Start, Starts, optimizer_state
from ckpt_schema._frameworks.tracing import Box
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.fields import Body, OptimizerTable, StateField
from ckpt_schema._layouts.paths import Index, KeyPath, Pattern
from ckpt_schema._layouts.table import Node, Row
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["arguments", "optimizer", "remembered"]


_Made = TypeVar("_Made")


def remembered(make: Callable[[Any, Any], _Made]) -> Callable[[Any, Any], _Made]:
    """What makes a class of what stands in its brackets: of the same, the same one again."""
    # With it, Params[Body] in two annotations is one class, and its layout is made once.
    known = functools.lru_cache(maxsize=64)(make)

    @functools.wraps(make)
    def made(self: Any, item: Any) -> _Made:
        try:
            hash(item)
        except TypeError:  # as of sizes, which are a dict
            return make(self, item)
        return known(self, item)

    return made


def arguments(name: str, item: Any) -> tuple[Any, optax.GradientTransformation, Mapping[str, int]]:
    """The arguments in the brackets of a train state: a schema, a transformation, and sizes if they are given.

    Raises:
        SchemaError: They are not two or three, the second is no optax transformation, or the third
            no sizes.
    """
    given: tuple[Any, ...] = item if isinstance(item, tuple) else (item,)
    hint = f"write {name}[Body, optax.adamw(3e-4)]; for weights alone, {name.split('.')[0]}.Params[Body]"
    expected = "a Schema class and an optax transformation"
    found = ""  # what is wrong, in a few words; empty where nothing is
    if len(given) not in (2, 3):
        found = f"{len(given)} arguments" if isinstance(item, tuple) else "no transformation"
    elif not callable(getattr(given[1], "init", None)):
        found = "no transformation"
    elif len(given) == 3 and not _are_sizes(given[2]):
        found, expected = repr(given[2]), f"{expected}, then sizes of dims by name"
        hint = f'write {name}[Body, tx, {{"embed": 512}}]'
    if found:
        raise SchemaError(
            f"{name}[...] is not well formed",
            [Mismatch("argument", "declaration", expected, found, hint)],
        )
    return given[0], given[1], given[2] if len(given) == 3 else {}


def _are_sizes(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return all(isinstance(n, str) and isinstance(s, int) and s > 0 for n, s in value.items())


def optimizer(
    tx: optax.GradientTransformation,
    *,
    of: str = "params",
    key: str | None = None,
    wrt: Any = None,
    sizes: Mapping[str, int] | None = None,
    root: str | None = None,
    optional: bool = False,
) -> Any:
    """Says of a schema's attribute that it is what an optimizer keeps for a model beside it.

    Args:
        tx: The transformation that made the state. Its leaves, and which of them mirror the
            model's, come from it.
        of: The name of the attribute that is the model.
        key: How this layout spells the attribute, where that is not its name; see ``field``.
        wrt: What is trained. Of dicts, collections by name, ``params`` unless given; of an
            ``nnx.State``, any filter of ``flax.nnx`` by type and path, ``nnx.Param`` unless given.
        sizes: The sizes of the dims that the state is declared for, where its type depends on them.
        root: The key path of the tree that ``tx.init`` was given, where that is not where the model
            stands: ``"params"`` for a whole variables dict at ``params/params``, which a key that
            ends in one name twice says already.
        optional: Whether a tree may lack it.

    Returns:
        A marker that the schema class reads, beside the annotation ``OptState``.

    Example:
        >>> import ckpt_schema as cs, optax
        >>> from jaxtyping import Array, Float32
        >>> class Dense(cs.Schema):
        ...     kernel: Float32[Array, "a b"]
        >>> class Run(cs.Schema):
        ...     weights: Dense
        ...     average: Dense
        ...     momentum: cs.OptState = cs.optimizer(optax.sgd(0.1, momentum=0.9), of="weights")
        >>> print(cs.layout(Run))
        Run: 3 rows
          weights/kernel                   weights/kernel                   float32[a b]  params
          average/kernel                   average/kernel                   float32[a b]  params
          momentum/0/trace/kernel          momentum/0/trace/kernel          float32[a b]  params
    """
    return _Optimizer(
        key=key,
        optional=optional,
        of=of,
        tx=tx,
        wrt=wrt,
        sizes={} if sizes is None else sizes,
        root=root,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Optimizer(StateField):
    """What `optimizer` was told; see there."""

    tx: Any = None
    wrt: Any = None
    sizes: Any = dataclasses.field(default_factory=dict[str, int])
    root: str | None = None

    def state(self, owner: str, key: Pattern, body: Body) -> OptimizerTable:
        """What the transformation keeps for the model."""
        self._verify()
        head = self._head(body)
        is_trained = _told(body.kinds.trained(self.wrt), body)
        trained = [row for row in body.rows if is_trained(row)]
        # With root="params", a trained leaf at `batch_stats/mean` is not in what tx.init was given.
        outside = [row for row in trained if row.key[: len(head)] != head]
        if outside:
            where, found = paths.format_path(head), paths.format_path(outside[0].key)
            expected = f"trained leaves below {where}, where the tree stands that tx.init was given"
            fault = Mismatch("root", "declaration", expected, found, "give root=, or another wrt=")
            raise SchemaError(f"the optimizer state of {owner} belongs to no params", [fault])
        box = body.kinds.box or Box()
        # The transformation sees the params alone, so their keys begin at the tree that it is given.
        given = [dataclasses.replace(row, key=row.key[len(head) :]) for row in trained]
        try:
            name = owner.split("[")[0]
            spelled = self._spelled(name, owner)
            typed = optimizer_state(name, self.tx, given, self.sizes, box, spelled)
        except SchemaError as error:
            # Where params have parts, these are the cause, whatever the trace said of it.
            raise body.kinds.parted(owner, trained) or _placed(error, key) from None
        rows: list[Row] = []
        for leaf in typed.leaves:
            kind = body.kinds.kept(mirror=leaf.param is not None, boxed=leaf.boxed)
            rows.append(leaf.row(kind))
        names = frozenset("/".join(row.path) for row in trained)
        start = Start(self.tx, _fixed(head), _fixed(key), names, box)
        nodes: tuple[Node, ...] = typed.nodes
        if body.kinds.container == "nnx":
            # Outside of Variables, a state has no containers but dicts, and nothing where there is no leaf.
            nodes = tuple([node for node in nodes if node in typed.inner])
        return OptimizerTable(tuple(rows), nodes, typed.parts, Starts((start,)), self.sizes)

    def _head(self, body: Body) -> Pattern:
        """Where the tree stands that the transformation was given."""
        if self.root is not None:
            return paths.parse_pattern(self.root) if self.root else ()
        # A variables dict at `params` has its weights at `params/params`, and Linen users hand tx.init
        # the whole dict.
        twice = len(body.key) > 1 and body.key[-1] == body.key[-2]
        return body.key[:-1] if twice and body.kinds.container == "dict" else body.key

    def _spelled(self, name: str, owner: str) -> str:
        """How sizes are given, for a cure to say it with."""
        # A train state is named with its brackets, `linen.TrainState[Body]`; a schema has none.
        if name != owner:
            return f"{name}[Body, tx, {{SIZES}}]"
        return f"cs.optimizer(tx, of={self.of!r}, sizes={{SIZES}})"

    def _verify(self) -> None:
        faults: list[Mismatch] = []
        if not callable(getattr(self.tx, "init", None)):
            hint = "pass the transformation itself, as optax.adamw(3e-4)"
            found = shown(self.tx)
            faults.append(Mismatch("tx", "declaration", "an optax transformation", found, hint))
        if not _are_sizes(self.sizes):
            hint = 'write sizes={"embed": 512}'
            expected = "the sizes of dims by name"
            faults.append(Mismatch("sizes", "declaration", expected, shown(self.sizes), hint))
        if self.root is not None and not isinstance(self.root, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            faults.append(Mismatch("root", "declaration", "a key path", shown(self.root)))
        if faults:
            raise SchemaError("an optimizer is not well declared", faults)


def _fixed(key: Pattern) -> KeyPath:
    return tuple(segment for segment in key if not isinstance(segment, Index))


def _told(is_trained: Any, body: Body) -> Any:
    """Whether a row is trained, which has to be the same for all members of a list.

    Raises:
        SchemaError: When it is not.
    """

    def trains(row: Row) -> bool:
        key = row.key[len(body.key) :]
        symbols = paths.symbols(key)
        # A filter by path may ask for the layer's number: three layers are tried in the place of all.
        answers: set[bool] = set()
        for member in range(3):
            answers.add(bool(is_trained(row, paths.fill(key, (member,) * symbols))))
        if len(answers) > 1:
            where = "/".join(row.path)
            hint = "declare the members that are trained as attributes of their own"
            expected = "a filter that takes all members of a list, or none"
            fault = Mismatch(where, "ambiguous", expected, "some of them", hint)
            raise SchemaError("an optimizer trains members of a list differently", [fault])
        return answers.pop()

    return trains


def _placed(error: SchemaError, key: Pattern) -> SchemaError:
    """The error, its faults where the state stands in this schema."""
    # What types a state knows no schema, and calls the state `opt_state`; here it may be `run/momentum`.
    home, usual = paths.format_path(key), "opt_state"
    if home == usual:
        return error
    faults: list[Mismatch] = []
    for fault in error.mismatches:
        if fault.path.split("/")[0] == usual:
            fault = dataclasses.replace(fault, path=home + fault.path.removeprefix(usual))
        faults.append(fault)
    return SchemaError(error.header, faults, error.notes)

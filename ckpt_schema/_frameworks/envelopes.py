"""Where a tree keeps the weights of a model, and where the state of their optimizer.

Envelopes are known by what is in them: the keys of a train state, Variable types, leaves that stand where the weights do. The
state of an optimizer anywhere else is an error: taken for weights, it would not follow the weights that it mirrors.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.kinds import Dicts
from ckpt_schema._layouts.paths import Key, KeyPath
from ckpt_schema._layouts.table import Node, Part, is_part
from ckpt_schema.errors import Mismatch

__all__ = ["Envelope", "Found", "Read", "envelope", "param_of", "parts_of", "strays"]

_COLLECTIONS = (
    "batch_stats",
    "cache",
    "_overwrite_with_gradient",
)  # those of Flax's own layers that a train state keeps beside the params


class Found(NamedTuple):
    """A leaf as it was found."""

    key: KeyPath
    value: Any
    kind: Any = None
    metadata: tuple[tuple[str, Any], ...] = ()
    inside: int = 0


@dataclasses.dataclass(frozen=True)
class Read:
    """All leaves, without the levels that Variables add; and whether there were Variables."""

    leaves: list[Found]
    variables: bool

    @functools.cached_property
    def segments(self) -> set[Key]:
        """Every key on the way to a leaf: where none of them is of a kind, no leaf need be asked."""
        return set(itertools.chain.from_iterable([leaf.key for leaf in self.leaves]))

    @functools.cached_property
    def signatures(self) -> list[leaves.LeafSignature | None]:
        """The shape and dtype of each leaf, or None where it is none."""
        return [leaves.signature(leaf.value) for leaf in self.leaves]


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """Where a tree keeps what.

    Attributes:
        weights: Key prefixes under which the model's own leaves stand, longest first, each with its Linen collection or None.
        optimizer: The key prefix of the optimizer state, or None.
        mirrors: Key prefixes, inside the optimizer state, of subtrees that mirror the params.
        homes: See `Layout`.
        copies: Key prefixes of other trees like the weights, such as their moving average.
    """

    weights: tuple[tuple[KeyPath, str | None], ...]
    optimizer: KeyPath | None
    mirrors: frozenset[KeyPath]
    homes: tuple[KeyPath, ...]
    copies: tuple[KeyPath, ...] = ()

    def body(self, key: KeyPath) -> KeyPath | None:
        """The part of a weight's key that is the model's; None for other leaves."""
        for head, _ in self.weights:
            if key[: len(head)] == head:
                return key[len(head) :]
        return None

    def collection(self, key: KeyPath) -> str | None:
        """The Linen collection that a weight is in; None where that is not told."""
        return next((kind for p, kind in self.weights if key[: len(p)] == p), None)


def envelope(read: Read) -> Envelope:
    """Where a tree keeps what."""
    top = {leaf.key[0] for leaf in read.leaves if leaf.key}
    if "params" in top and not read.variables and top & {"step", "opt_state"}:
        inner: KeyPath = (
            ("params", "params")
            if all(_in_collection(leaf.key) for leaf in read.leaves)
            else ("params",)
        )
        # Other fields of a TrainState, such as a key, are no collections of the model: they keep their own paths.
        below = {leaf.key[1] for leaf in read.leaves if leaf.key[0] == "params" and inner[1:]}
        beside: list[tuple[KeyPath, str]] = [((c,), c) for c in _COLLECTIONS if c in top]
        beside += [held for held in _held_collections(read) if held[1] not in top]
        beside += [(("params", c), c) for c in _COLLECTIONS if c in below]
        weights = ((inner, "params"), *beside)
        found = _mirrored(read, weights, ("opt_state",), inner[1:])
        if inner[1:] and not found.mirrors:  # the optimizer was made of the params themselves
            found = _mirrored(read, weights, ("opt_state",), ())
        return dataclasses.replace(found, copies=tuple(_copies(read, inner, "opt_state")))
    states = (
        [leaf.key for leaf in read.leaves if leaf.key[0] == "optimizer"]
        if "optimizer" in top
        else []
    )
    kept = {key[1] for key in states if len(key) > 1}
    may_be_run = read.variables or "opt_state" in read.segments
    pair = _model_and_optimizer(read) if may_be_run else None
    if {"model", "optimizer"} <= top and kept <= {"step", "opt_state"}:
        pair = "model", "optimizer"
    if {"model", "opt_state"} <= top <= {"model", "opt_state", "step"} and _keeps_state(read):
        # An ``nnx.ModelAndOptimizer``, and what ``nnx.Optimizer`` was until Flax 0.11: it holds its model.
        return _mirrored(read, ((("model",), None),), ("opt_state",), ())
    if pair is not None:
        model, optimizer = pair
        found = _mirrored(read, (((model,), None),), (optimizer, "opt_state"), ())
        copies = tuple(_copies(read, (model,), optimizer, of_params=True))
        return dataclasses.replace(found, copies=copies)
    if not read.variables and read.segments >= {"mu", "nu"}:
        found = _under_other_names(read)
        if found is not None:
            return found
    if "params" in top and not read.variables:
        copies = tuple(_copies(read, ("params",), "opt_state"))
        own = sorted(top - {copy[0] for copy in copies}, key=str)
        weights = tuple(((c,), str(c)) for c in own)
        return Envelope(weights, None, frozenset(), Dicts.homes, copies)
    return Envelope(
        (((), None),),
        None,
        frozenset(),
        (("model",),) if read.variables else (("params",), ("model",)),
    )


def _held_collections(read: Read) -> Iterator[tuple[KeyPath, str]]:
    """Where a field of a train state holds collections, and nothing else, as ``model_state`` does.

    Of several that hold the same one, an average is not the model's. Where this leaves more than
    one, none is: each keeps its own path.
    """
    held: dict[Key, set[Key]] = {}
    for leaf in read.leaves:
        held.setdefault(leaf.key[0], set()).update(leaf.key[1:2])
    fields: list[Key] = []
    for name, inside in held.items():
        if name not in ("params", "opt_state") and inside and inside <= {*_COLLECTIONS}:
            fields.append(name)
    for collection in _COLLECTIONS:
        holders = [name for name in fields if collection in held[name]]
        trained = [name for name in holders if not _EMA.search(str(name))]
        if len(trained) == 1:
            yield (trained[0], collection), collection


def _under_other_names(read: Read) -> Envelope | None:
    """A train state whose weights and optimizer have names of the user's, told by the moments that mirror them.

    None where there is none, or more than one reading.
    """
    states = {key[0] for key in _moments([leaf.key for leaf in read.leaves]) if len(key) > 1}
    names = {leaf.key[0] for leaf in read.leaves if len(leaf.key) > 1} - states
    if len(states) != 1 or not all(isinstance(name, str) for name in (*states, *names)):
        return None
    [state] = states
    found: dict[Key, Envelope] = {}
    beside = [*_held_collections(read)]
    for name in sorted(names, key=str):
        made = _mirrored(read, (((name,), "params"), *beside), (state,), ())
        if made.mirrors:
            found[name] = made
    trained = [name for name in found if not _EMA.search(str(name))]
    models = trained if len(trained) == 1 else [*found]
    if len(models) != 1:
        return None
    [model] = models
    return dataclasses.replace(found[model], copies=tuple(_copies(read, (model,), state)))


def _model_and_optimizer(read: Read) -> tuple[Any, Any] | None:
    """The names of a model and of its optimizer, where one reading of what is kept beside them exists."""
    optimizer, models = _may_be_trained(read)
    return (models[0], optimizer) if len(models) == 1 else None


def _may_be_trained(read: Read) -> tuple[Any, Sequence[Any]]:
    """The name of the one optimizer at the root, and those of what may be its model.

    Variable types and what the optimizer mirrors tell, whatever the names; keys, metrics and
    counters beside them are neither. Of several like it, one called an EMA is no model.
    """
    below: dict[Any, set[Any]] = {}
    kinds: dict[Any, set[Any]] = {}
    for leaf in read.leaves:
        below.setdefault(leaf.key[0], set()).update(leaf.key[1:2])
        kinds.setdefault(leaf.key[0], set()).add(leaf.kind)
    states: list[Any] = []
    for name, keys in below.items():
        is_state = "opt_state" in keys and (read.variables or keys <= {"opt_state", "step"})
        if is_state and (not read.variables or all(map(_of_optimizer, kinds[name]))):
            states.append(name)
    if len(states) != 1:
        return None, ()
    [optimizer] = states
    names = [name for name in below if name != optimizer and below[name]]
    if read.variables:
        names = [name for name in names if any(map(_is_param, kinds[name]))]
    mirrored: list[Any] = []
    for name in names:
        found = _mirrored(read, (((name,), None),), (optimizer, "opt_state"), ())
        mirrored += [name] if found.mirrors else []
    # Without moments, types alone tell; what was saved has lost them.
    models = mirrored or (names if read.variables or len(below) == 2 else [])
    trained = [name for name in models if not _EMA.search(str(name))]
    return optimizer, trained if len(trained) == 1 else models


_EMA = re.compile(r"(?:^|_)ema(?:_|$)", re.IGNORECASE)


def _is_param(kind: Any) -> bool:
    """Whether a Variable type is that of weights."""
    return isinstance(kind, type) and any(base.__name__ == "Param" for base in kind.__mro__)


def _keeps_state(read: Read) -> bool:
    """Whether all leaves at ``opt_state`` are an optimizer's, as far as Variable types tell."""
    kinds = [leaf.kind for leaf in read.leaves if leaf.key[0] == "opt_state"]
    return not read.variables or all(map(_of_optimizer, kinds))


def _of_optimizer(kind: Any) -> bool:
    """Whether a Variable type is that of an optimizer's state."""
    return isinstance(kind, type) and any(base.__name__ == "OptState" for base in kind.__mro__)


def _copies(
    read: Read, weights: KeyPath, optimizer: Any, *, of_params: bool = False
) -> Iterator[KeyPath]:
    """Key prefixes of trees that have the leaves of the weights, and of the same shapes.

    With ``of_params`` also of those that have a module's params and leave its other state out.
    """
    known = (weights[0], optimizer, "step", *_COLLECTIONS)
    shapes: dict[Any, dict[KeyPath, Any]] = {}
    params: set[KeyPath] = set()
    for leaf, signature in zip(read.leaves, read.signatures, strict=True):
        shapes.setdefault(leaf.key[0], {})[leaf.key[1:]] = signature and signature[0]
        if leaf.key[0] == weights[0] and _is_param(leaf.kind):
            params.add(leaf.key[1:])
    inner = weights[1:]
    own = {
        key[len(inner) :]: shape
        for key, shape in shapes[weights[0]].items()
        if key[: len(inner)] == inner
    }
    for name, found in shapes.items():
        if name in known:
            continue
        # A save loses which leaves of a module are params.
        is_part = params <= found.keys() if params else len(found) > 1
        if found == own or (of_params and is_part and found.items() <= own.items()):
            yield (name,)
        elif found == {(*inner, *key): shape for key, shape in own.items()}:
            yield (name, *inner)


def strays(
    read: Read, kinds: Envelope, containers: Iterable[tuple[KeyPath, Any]]
) -> Iterator[Mismatch]:
    """The states of optimizers that stand where none is known to, beside weights that they would be taken for."""
    home = (kinds.optimizer or ())[:1]
    found: dict[KeyPath, str] = {}
    for leaf in read.leaves if read.variables or "opt_state" in read.segments else ():
        if _of_optimizer(leaf.kind):
            found.setdefault(_state(leaf.key), f"Variables of an optimizer, {leaf.kind.__name__}")
        elif "opt_state" in leaf.key[1:] and not read.variables:  # whose types tell, whatever names
            found.setdefault(_state(leaf.key), "an opt_state")
    for key, node in containers:
        if is_part(type(node)) and type(node).__module__.partition(".")[0] == "optax":
            found.setdefault(_state(key), f"optax's {type(node).__name__}")
    told = not read.variables and read.segments >= {"mu", "nu"}
    for key in _moments([leaf.key for leaf in read.leaves]) if told else ():
        found.setdefault(_state(key), "mu and nu, which mirror other leaves")
    apart = {key: what for key, what in found.items() if not home or key[:1] != home}
    if not apart:
        return
    optimizer, models = _may_be_trained(read)
    others = [leaf for leaf in read.leaves if not any(_below(leaf.key, key) for key in found)]
    for key, what in apart.items():
        if others and not any(key != above and _below(key, above) for above in apart):
            yield _stray(key, what, models if key[:1] == (optimizer,) else ())


def _below(key: KeyPath, node: KeyPath) -> bool:
    return key[: len(node)] == node


def _state(key: KeyPath) -> KeyPath:
    """The state that a key of an optimizer's is in: what is above its chain, which has numbers."""
    if "opt_state" in key:
        return key[: key.index("opt_state") + 1]
    return next((key[:at] for at, segment in enumerate(key) if isinstance(segment, int)), key[:-1])


def _moments(keys: Sequence[KeyPath]) -> Iterator[KeyPath]:
    """Nodes whose ``mu`` and ``nu`` hold the same leaves, which stand elsewhere in the tree as well: Adam's, on disk."""
    below: dict[KeyPath, dict[str, set[KeyPath]]] = {}
    for key in keys:
        for at, segment in enumerate(key):
            if segment in ("mu", "nu"):
                below.setdefault(key[:at], {}).setdefault(segment, set()).add(key[at + 1 :])
    everything = set(keys) if below else set[KeyPath]()
    for node, sides in below.items():
        if len(sides) < 2 or sides["mu"] != sides["nu"]:
            continue
        first, *_ = sides["mu"]
        ends = (
            key[: len(key) - len(first)] for key in keys if key[len(key) - len(first) :] == first
        )
        for head in ends:
            if not _below(head, node) and all((*head, *rest) in everything for rest in sides["mu"]):
                yield (*node, "mu")
                break


def _stray(key: KeyPath, what: str, models: Sequence[Any]) -> Mismatch:
    hint = (
        "give infer one train state at a time, {step, params, opt_state} or {model, optimizer}, as "
        "by infer(tree[...]), or declare the layout as a class"
    )
    if len(models) > 1:
        names = " and ".join(map(str, models))
        hint = f"it may be that of each of {names}: say which, {_as_dict(models, key[0])}"
    expected = "weights, or the optimizer of a train state that infer knows"
    found = f"{what}: it would be taken for weights, and not follow those that it mirrors"
    return Mismatch(paths.format_path(key) or "the tree", "container", expected, found, hint)


def _as_dict(models: Sequence[Any], optimizer: Any) -> str:
    """A tree that says which of several is the model, as a program writes it of a module ``run``."""
    first, *others = models
    more = "".join(f', "{name}": run.{name}' for name in others)
    return f'{{"model": run.{first}, "optimizer": run.{optimizer}{more}}}, or another as the model'


def parts_of(nodes: Sequence[Node], kinds: Envelope) -> Iterator[Part]:
    """The parts of the optimizer state whose types the tree tells."""
    head = kinds.optimizer or ()
    for node in nodes:
        mirrored = any(node.key[:end] in kinds.mirrors for end in range(len(node.key) + 1))
        # What a mask leaves stands for a leaf, and tells no part of the chain.
        mirrored = mirrored or node.type.__name__ == "MaskedNode"
        if head and node.key[: len(head)] == head and is_part(node.type) and not mirrored:
            yield Part(("opt_state", *map(paths.named, node.key[len(head) :])), node.type)


def _in_collection(key: KeyPath) -> bool:
    return key[0] != "params" or (len(key) > 1 and key[1] in ("params", *_COLLECTIONS))


def _mirrored(
    read: Read, weights: tuple[tuple[KeyPath, str | None], ...], optimizer: KeyPath, inner: KeyPath
) -> Envelope:
    """The envelope of a train state; a subtree of the optimizer state mirrors the params when all its leaves do."""
    bare = Envelope(weights, optimizer, frozenset(), ())
    params = {(*inner, *body) for leaf in read.leaves if (body := bare.body(leaf.key)) is not None}
    total: collections.Counter[KeyPath] = collections.Counter()
    hits: collections.Counter[KeyPath] = collections.Counter()
    for leaf in read.leaves:
        if leaf.key[: len(optimizer)] == optimizer:
            for end in range(len(optimizer), len(leaf.key)):
                total[leaf.key[:end]] += 1
                hits[leaf.key[:end]] += param_of(leaf.key[end:], params) is not None
    found = {(*p, *inner) for p, n in hits.items() if n == total[p] and (n > 1 or n == len(params))}
    return dataclasses.replace(bare, mirrors=frozenset(found))


def param_of(key: KeyPath, params: Container[KeyPath]) -> KeyPath | None:
    """The param at whose place a leaf of a mirror stands, or inside of whose place it does."""
    for end in range(len(key), 0, -1):
        if key[:end] in params:
            return key[:end]
    return None

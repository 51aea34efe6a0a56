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
from collections.abc import Container, Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

from ckpt_schema._layouts import leaves, paths
from ckpt_schema._layouts.kinds import Dicts
from ckpt_schema._layouts.paths import Key, KeyPath
from ckpt_schema._layouts.table import Node, Part, is_part
from ckpt_schema.errors import Mismatch

__all__ = [
    "Envelope",
    "Found",
    "Read",
    "envelope",
    "has_train_state",
    "lost_params",
    "param_of",
    "parts_of",
    "strays",
]

# Those of Flax's own layers that a train state keeps beside the params.
_COLLECTIONS = ("batch_stats", "cache", "_overwrite_with_gradient")


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
        for head, collection in self.weights:
            if key[: len(head)] == head:
                return collection
        return None


_Weights = tuple[tuple[KeyPath, str | None], ...]
"""See `Envelope`."""


def envelope(read: Read) -> Envelope:
    """Where a tree keeps what."""
    # From what says the most to what says the least: a tree that none of them knows is weights alone.
    top = {leaf.key[0] for leaf in read.leaves if leaf.key}
    if has_train_state(top) and not read.variables:
        return _linen_state(read, top)
    kept: set[Key] = set()
    for leaf in read.leaves if "optimizer" in top else ():
        if leaf.key[0] == "optimizer":
            kept.update(leaf.key[1:2])
    # Most trees have neither, and their leaves need not be asked one by one.
    may_be_run = read.variables or "opt_state" in read.segments
    pair = _model_and_optimizer(read) if may_be_run else None
    # A state that was saved has lost its types; under these names it needs none.
    if {"model", "optimizer"} <= top and kept <= {"step", "opt_state"}:
        pair = "model", "optimizer"
    if {"model", "opt_state"} <= top <= {"model", "opt_state", "step"} and _keeps_state(read):
        # An ``nnx.ModelAndOptimizer``, and what ``nnx.Optimizer`` was until Flax 0.11: it holds its model.
        return _mirrored(read, ((("model",), None),), ("opt_state",), ())
    if pair is not None:
        model, optimizer = pair
        made = _mirrored(read, (((model,), None),), (optimizer, "opt_state"), ())
        copies = tuple(_copies(read, (model,), optimizer, of_params=True))
        return dataclasses.replace(made, copies=copies)
    if not read.variables and read.segments >= {"mu", "nu"}:
        renamed = _under_other_names(read)
        if renamed is not None:
            return renamed
    if "params" in top and not read.variables:
        # The variables of a Linen model: each key at the root is a collection, but for averages of it.
        copies = tuple(_copies(read, ("params",), "opt_state"))
        averages = {copy[0] for copy in copies}
        weights: list[tuple[KeyPath, str]] = []
        for name in sorted(top - averages, key=str):
            weights.append(((name,), str(name)))
        return Envelope(tuple(weights), None, frozenset(), Dicts.homes, copies)
    homes: tuple[KeyPath, ...] = (("model",),) if read.variables else (("params",), ("model",))
    return Envelope((((), None),), None, frozenset(), homes)


def has_train_state(top: Set[Key]) -> bool:
    """Whether the keys at the root of a tree are those of a train state, as Linen has it."""
    return "params" in top and not top.isdisjoint(("step", "opt_state"))


def _linen_state(read: Read, top: set[Key]) -> Envelope:
    """That of a Linen train state; ``top`` are the keys at its root."""
    # A whole variables dict at `params` has its weights at `params/params`.
    is_whole = all(_in_collection(leaf.key) for leaf in read.leaves)
    inner: KeyPath = ("params", "params") if is_whole else ("params",)
    below: set[Key] = set()
    for leaf in read.leaves if is_whole else ():
        if leaf.key[0] == "params":
            below.add(leaf.key[1])
    # Other fields of a TrainState, such as a key, are no collections of the model: they keep their own paths.
    beside: list[tuple[KeyPath, str]] = []
    for collection in _COLLECTIONS:
        if collection in top:
            beside.append(((collection,), collection))
    for prefix, collection in _held_collections(read):
        # What stands at the root is the model's own, and what a field holds a copy of it.
        if collection not in top:
            beside.append((prefix, collection))
    for collection in _COLLECTIONS:
        if collection in below:
            beside.append((("params", collection), collection))
    weights = ((inner, "params"), *beside)
    made = _mirrored(read, weights, ("opt_state",), inner[1:])
    if is_whole and not made.mirrors:  # the optimizer was made of the params themselves
        made = _mirrored(read, weights, ("opt_state",), ())
    return dataclasses.replace(made, copies=tuple(_copies(read, inner, "opt_state")))


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
        models = [name for name in holders if not _EMA.search(str(name))]
        if len(models) == 1:
            yield (models[0], collection), collection


def _under_other_names(read: Read) -> Envelope | None:
    """A train state whose weights and optimizer have names of the user's, told by the moments that mirror them.

    None where there is none, or more than one reading.
    """
    states = {key[0] for key in _moments([leaf.key for leaf in read.leaves]) if len(key) > 1}
    names = {leaf.key[0] for leaf in read.leaves if len(leaf.key) > 1} - states
    # A train state names its fields: numbers at the root are those of a list, or of a chain alone.
    if len(states) != 1 or not all(isinstance(name, str) for name in (*states, *names)):
        return None
    [state] = states
    # Each field is tried as the model: it is one where the moments mirror it.
    readings: dict[Key, Envelope] = {}
    beside = [*_held_collections(read)]
    for name in sorted(names, key=str):
        made = _mirrored(read, (((name,), "params"), *beside), (state,), ())
        if made.mirrors:
            readings[name] = made
    models = _trained(readings)
    if len(models) != 1:
        return None
    [model] = models
    return dataclasses.replace(readings[model], copies=tuple(_copies(read, (model,), state)))


def _model_and_optimizer(read: Read) -> tuple[Any, Any] | None:
    """The names of a model and of its optimizer, where one reading of what is kept beside them exists."""
    optimizer, models = _may_be_trained(read)
    return (models[0], optimizer) if len(models) == 1 else None


def _may_be_trained(read: Read) -> tuple[Any, Sequence[Any]]:
    """The name of the one optimizer at the root, and those of what may be its model.

    Variable types and what the optimizer mirrors tell, whatever the names; keys, metrics and
    counters beside them are neither. Of several like it, one called an EMA is no model.
    """
    below: dict[Any, set[Any]] = {}  # by the key at the root, those under it
    kinds: dict[Any, set[Any]] = {}  # and the types of its Variables
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
    names: list[Any] = []
    for name, keys in below.items():
        # A counter is a leaf at the root, and has nothing below it.
        if name != optimizer and keys and (not read.variables or any(map(_is_param, kinds[name]))):
            names.append(name)
    mirrored: list[Any] = []
    for name in names:
        made = _mirrored(read, (((name,), None),), (optimizer, "opt_state"), ())
        if made.mirrors:
            mirrored.append(name)
    # Without moments, types alone tell; what was saved has lost them.
    models = mirrored or (names if read.variables or len(below) == 2 else [])
    return optimizer, _trained(models)


def _trained(models: Iterable[Any]) -> list[Any]:
    """Of trees that may be the model, the one that is no average; all where that leaves none, or several."""
    several = [*models]
    trained = [name for name in several if not _EMA.search(str(name))]
    return trained if len(trained) == 1 else several


# As `ema`, `params_ema`, `ema_model`, and not `schema`.
_EMA = re.compile(r"(?:^|_)ema(?:_|$)", re.IGNORECASE)


def _is_param(kind: Any) -> bool:
    """Whether a Variable type is that of weights."""
    # By name: this module imports no framework, which a tree of dicts does not need.
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
    model: dict[KeyPath, Any] = {}
    for key, shape in shapes[weights[0]].items():
        if key[: len(inner)] == inner:
            model[key[len(inner) :]] = shape
    wrapped = {(*inner, *key): shape for key, shape in model.items()}
    for name, held in shapes.items():
        if name in known:
            continue
        # A save loses which leaves of a module are params; one leaf alone may be like one by chance.
        has_params = params <= held.keys() if params else len(held) > 1
        if held == model or (of_params and has_params and held.items() <= model.items()):
            yield (name,)
        # An average of a whole variables dict, as the weights of a train state may stand in one.
        elif held == wrapped:
            yield (name, *inner)


def strays(
    read: Read, kinds: Envelope, containers: Iterable[tuple[KeyPath, Any]]
) -> Iterator[Mismatch]:
    """The states of optimizers that stand where none is known to, beside weights that they would be taken for."""
    home = (kinds.optimizer or ())[:1]
    # By the key of each state, what it was known by; the surest sign is asked first, and stays.
    found: dict[KeyPath, str] = {}
    for leaf in read.leaves if read.variables or "opt_state" in read.segments else ():
        if _of_optimizer(leaf.kind):
            found.setdefault(_state(leaf.key), f"Variables of an optimizer, {leaf.kind.__name__}")
        elif "opt_state" in leaf.key[1:] and not read.variables:  # whose types tell, whatever names
            found.setdefault(_state(leaf.key), "an opt_state")
    for key, node in containers:
        if is_part(type(node)) and type(node).__module__.partition(".")[0] == "optax":
            found.setdefault(_state(key), f"optax's {type(node).__name__}")
    may_have_moments = not read.variables and read.segments >= {"mu", "nu"}
    for key in _moments([leaf.key for leaf in read.leaves]) if may_have_moments else ():
        found.setdefault(_state(key), "mu and nu, which mirror other leaves")
    # Those at home are where the envelope has them.
    apart: dict[KeyPath, str] = {}
    for key, what in found.items():
        if not home or key[:1] != home:
            apart[key] = what
    if not apart:
        return
    optimizer, models = _may_be_trained(read)
    # An optimizer state by itself has no weights beside it, which it could be taken for.
    if all(_is_in_any(leaf.key, found) for leaf in read.leaves):
        return
    for key, what in apart.items():
        others = apart.keys() - {key}
        # A state inside another, as of a chain in a chain, is told with the outer one.
        if not _is_in_any(key, others):
            yield _stray(key, what, models if key[:1] == (optimizer,) else ())


def lost_params(read: Read, kinds: Envelope) -> Iterator[Mismatch]:
    """The model whose params stand elsewhere, as those of a module do that holds the same Variables twice."""
    home = kinds.optimizer or ()
    if not read.variables or not home or kinds.mirrors:
        return
    [(model, _), *_] = kinds.weights
    others: dict[Key, None] = {}
    for leaf in read.leaves:
        if _is_param(leaf.kind):
            others[leaf.key[0]] = None
    # Where the model has a param of its own, what is elsewhere is another one's.
    if not model or model[0] in others:
        return
    for name in others:
        if _mirrored(read, (((name,), None),), home, ()).mirrors:
            expected = "the params that the optimizer trains"
            found = f"none: they stand at {name}, which holds the same Variables"
            hint = (
                "a Variable has one place: keep a copy there, nnx.clone(model), or "
                "jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))"
            )
            yield Mismatch(paths.format_path(model), "container", expected, found, hint)
            return


def _is_in_any(key: KeyPath, nodes: Iterable[KeyPath]) -> bool:
    return any(_below(key, node) for node in nodes)


def _below(key: KeyPath, node: KeyPath) -> bool:
    return key[: len(node)] == node


def _state(key: KeyPath) -> KeyPath:
    """The state that a key of an optimizer's is in: what is above its chain, which has numbers."""
    if "opt_state" in key:
        return key[: key.index("opt_state") + 1]
    for place, segment in enumerate(key):
        if isinstance(segment, int):
            return key[:place]
    return key[:-1]


def _moments(keys: Sequence[KeyPath]) -> Iterator[KeyPath]:
    """Nodes whose ``mu`` and ``nu`` hold the same leaves, which stand elsewhere in the tree as well: Adam's, on disk."""
    below: dict[KeyPath, dict[str, set[KeyPath]]] = {}
    for key in keys:
        for place, segment in enumerate(key):
            if segment in ("mu", "nu"):
                sides = below.setdefault(key[:place], {})
                sides.setdefault(segment, set()).add(key[place + 1 :])
    everything = set(keys) if below else set[KeyPath]()
    for node, sides in below.items():
        if len(sides) < 2 or sides["mu"] != sides["nu"]:
            continue
        # Where one leaf of mu stands elsewhere too, all of them have to, below the same node.
        first, *_ = sides["mu"]
        for key in keys:
            cut = len(key) - len(first)
            head = key[:cut]
            if key[cut:] != first or _below(head, node):
                continue
            if all((*head, *rest) in everything for rest in sides["mu"]):
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
    entries = [f'"model": run.{first}', f'"optimizer": run.{optimizer}']
    for name in others:
        entries.append(f'"{name}": run.{name}')
    return f"{{{', '.join(entries)}}}, or another as the model"


def parts_of(nodes: Sequence[Node], kinds: Envelope) -> Iterator[Part]:
    """The parts of the optimizer state whose types the tree tells."""
    head = kinds.optimizer or ()
    for node in nodes:
        if not head or node.key[: len(head)] != head or not is_part(node.type):
            continue
        # Below a mirror a NamedTuple holds the factors of a param, and is no step of the chain.
        is_mirrored = any(node.key[:end] in kinds.mirrors for end in range(len(node.key) + 1))
        # What a mask leaves stands for a leaf, and tells no part of the chain.
        if not is_mirrored and node.type.__name__ != "MaskedNode":
            yield Part(("opt_state", *map(paths.named, node.key[len(head) :])), node.type)


def _in_collection(key: KeyPath) -> bool:
    return key[0] != "params" or (len(key) > 1 and key[1] in ("params", *_COLLECTIONS))


def _mirrored(read: Read, weights: _Weights, optimizer: KeyPath, inner: KeyPath) -> Envelope:
    """The envelope of a train state; a subtree of the optimizer state mirrors the params when all its leaves do."""
    bare = Envelope(weights, optimizer, frozenset(), ())
    params: set[KeyPath] = set()
    for leaf in read.leaves:
        body = bare.body(leaf.key)
        if body is not None:
            params.add((*inner, *body))
    # By node of the optimizer state: how many leaves it has, and how many of them stand at a param's place.
    total: collections.Counter[KeyPath] = collections.Counter()
    hits: collections.Counter[KeyPath] = collections.Counter()
    for leaf in read.leaves:
        if leaf.key[: len(optimizer)] == optimizer:
            for end in range(len(optimizer), len(leaf.key)):
                total[leaf.key[:end]] += 1
                hits[leaf.key[:end]] += param_of(leaf.key[end:], params) is not None
    mirrors: set[KeyPath] = set()
    for node, count in hits.items():
        # A mask may hide params, but one leaf alone at a place like a param's may be there by chance.
        if count == total[node] and (count > 1 or count == len(params)):
            mirrors.add((*node, *inner))
    return dataclasses.replace(bare, mirrors=frozenset(mirrors))


def param_of(key: KeyPath, params: Container[KeyPath]) -> KeyPath | None:
    """The param at whose place a leaf of a mirror stands, or inside of whose place it does."""
    # The whole key first: with params `w` and `w/scale`, a leaf at w/scale is of the second.
    for end in range(len(key), 0, -1):
        if key[:end] in params:
            return key[:end]
    return None

"""Other functions of the same leaves: models drawn at random, and those of the tests, with one thing changed.

Each change says why no rearrangement of the leaves undoes it: it is that which makes its twin wrong, not
that discovery refuses it. What is undone by a rearrangement is no wrong twin, and not here: gate and up
exchanged, heads of the value alone in another order, rotary pairs for halves in query and key, taps of a
convolution in reverse, layers in another order, experts in another order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import discovered
import drawn_models as m
import exchange_models
import jax
import jax.numpy as jnp
import keepings
import numpy as np
from discovered import Surgery
from drawn_models import Attention, Block, Convolution, Experts, Gate, Mlp, Model
from flax import nnx
from rewritten import flattened, nested

Factory = Callable[[int], tuple[Callable[[Any], Any], Any]]
Changed = Callable[[Model, int], Model | None]
"""A model with one layer changed; None where the change does not apply."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of a model's function.

    Attributes:
        name: What is changed.
        why: Why no rearrangement of the leaves undoes it.
        change: Changes it in a layer.
        is_scale: Whether a factor in a leaf would undo it: nothing that is said is to be taken.
    """

    name: str
    why: str
    change: Changed
    is_scale: bool = False


def _in_block(edit: Callable[[Block], Block | None]) -> Changed:
    """A change of the first block of a layer that it applies to."""

    def change(model: Model, layer: int) -> Model | None:
        for at, block in enumerate(model.layers[layer]):
            other = edit(block)
            if other is not None and other != block:
                return m.with_block(model, layer, at, other)
        return None

    return change


def _in(kind: Any, edit: Callable[[Any], Mapping[str, Any] | None]) -> Changed:
    """A change of the first layer of some kind."""

    def edited(block: Block) -> Block | None:
        if not isinstance(block.inner, kind):
            return None
        fields: Any = edit(block.inner)
        if fields is None:
            return None
        return dataclasses.replace(block, inner=dataclasses.replace(block.inner, **fields))

    return _in_block(edited)


def _of_norm(**fields: Any) -> Changed:
    return _in_block(
        lambda block: dataclasses.replace(block, norm=dataclasses.replace(block.norm, **fields))
    )


def _of_block(**fields: Any) -> Changed:
    return _in_block(lambda block: dataclasses.replace(block, **fields))


def _of_model(edit: Callable[[Model, int], Mapping[str, Any] | None]) -> Changed:
    def change(model: Model, layer: int) -> Model | None:
        fields: Any = edit(model, layer)
        return None if fields is None else dataclasses.replace(model, **fields)

    return change


def _another_act(act: str) -> str:
    acts = ["gelu", "silu", "tanh", "relu"]
    return acts[(acts.index(act) + 1) % len(acts)]


def _centered(block: Block) -> Block:
    norm = dataclasses.replace(block.norm, centered=not block.norm.centered)
    return dataclasses.replace(block, norm=norm)


def _reads_first(model: Model, layer: int) -> Mapping[str, Any] | None:
    if len(model.layers) < 2:
        return None
    own = list(range(len(model.layers)))
    later = max(layer, 1)
    own[later] = own[later - 1]
    return {"reads": tuple(own)}


def _several_blocks(model: Model, field: str, layer: int) -> Mapping[str, Any] | None:
    return {field: (layer,)} if len(model.layers[layer]) > 1 else None


CHANGES = (
    Change(
        "another activation",
        "no weights around it make one of gelu, silu, tanh and relu of another",
        _in((Mlp, Gate, Convolution, Experts), lambda inner: {"act": _another_act(inner.act)}),
    ),
    Change(
        "norm behind",
        "what is added to the residual has a norm of its own",
        _of_block(behind=True),
    ),
    Change(
        "no residual",
        "the layer's own input is not added, whatever its leaves are",
        _of_block(residual="none"),
    ),
    Change(
        "added to the normed",
        "the residual is divided by its size",
        _of_block(residual="normed"),
    ),
    Change(
        "mean kept or taken",
        "an input with a mean is moved by it in one alone",
        _in_block(_centered),
    ),
    Change(
        "another epsilon",
        "inputs are shrunk by what depends on their own size",
        _of_norm(eps=0.3),
    ),
    Change(
        "norm along time",
        "a position depends on later ones",
        _of_norm(axis=1),
    ),
    Change(
        "a bias more",
        "the twin has a leaf that moves the outputs, and the source has none",
        _in(
            (Mlp, Attention, Convolution), lambda inner: None if inner.biased else {"biased": True}
        ),
    ),
    Change(
        "bias behind the activation",
        "the activation gets what goes through zero",
        _in(Mlp, lambda inner: {"biased_after": True} if inner.biased else None),
    ),
    Change(
        "activation of the product",
        "the outputs are not linear in the second kernel",
        _in(Gate, lambda inner: {"act_of_product": True}),
    ),
    Change(
        "softmax along queries",
        "the shares of a query do not add up to one",
        _in(Attention, lambda inner: {"axis": -2}),
    ),
    Change(
        "another mask",
        "a query sees other keys",
        _in(Attention, lambda inner: {"mask": "none" if inner.mask == "causal" else "causal"}),
    ),
    Change(
        "a window",
        "a query does not see keys that are far",
        _in(Attention, lambda inner: {"mask": "window"}),
    ),
    Change(
        "rotary or not",
        "scores depend on the distance in one alone",
        _in(
            Attention,
            lambda inner: {"rotary": ("", "") if inner.rotary[0] else ("halves", "halves")},
        ),
    ),
    Change(
        "rotary pairs in the key alone",
        "numbers of a query and a key that meet are turned by other angles",
        _in(Attention, lambda inner: {"rotary": ("halves", "pairs")} if inner.head > 3 else None),
    ),
    Change(
        "rotary in the query alone",
        "scores depend on the place of the query, not on the distance",
        _in(
            Attention,
            lambda inner: {"rotary": ("halves", "") if inner.rotary[0] else ("", "halves")},
        ),
    ),
    Change(
        "values of other groups",
        "each key meets two values, where it met one",
        _in(Attention, lambda inner: {"tiled": "v"} if 1 < inner.groups < inner.heads else None),
    ),
    Change(
        "taps apart",
        "an output does not see its neighbours",
        _in(Convolution, lambda inner: {"apart": 2}),
    ),
    Change(
        "taps behind",
        "an output does not see what is ahead",
        _in(Convolution, lambda inner: {"ahead": 2}),
    ),
    Change(
        "shares that do not add up",
        "the shares of equal experts are not one over their number",
        _in(Experts, lambda inner: {"shares": "sigmoid"}),
    ),
    Change(
        "one layer twice",
        "the outputs do not depend on one layer's leaves, and the source's do",
        _of_model(_reads_first),
    ),
    Change(
        "blocks beside each other",
        "the second block does not see what the first makes",
        _of_model(lambda model, layer: _several_blocks(model, "beside", layer)),
    ),
    Change(
        "blocks in the other order",
        "the first block sees what the second makes; they are of two kinds",
        _of_model(
            lambda model, layer: (
                _several_blocks(model, "backward", layer)
                if len({type(block.inner) for block in model.layers[layer]}) > 1
                else None
            )
        ),
    ),
    Change(
        "last norm first",
        "logits are linear in what the last layer adds",
        _of_model(lambda model, layer: {"norm_first": True}),
    ),
    Change(
        "positions last",
        "no layer sees them",
        _of_model(lambda model, layer: {"positions": "last"} if model.positions else None),
    ),
    Change(
        "a table for a head",
        "the source's head need not be its table",
        _of_model(lambda model, layer: None if model.tied else {"tied": True}),
    ),
    Change(
        "logits capped",
        "no weights bound what is linear in the head",
        _of_model(lambda model, layer: {"capped": 2.0}),
    ),
    Change(
        "a layer less",
        "the source's outputs depend on it",
        _of_model(
            lambda model, layer: {"layers": model.layers[:-1]} if len(model.layers) > 1 else None
        ),
    ),
    Change(
        "scores times two",
        "a scale: in the query or in the key, and not the library's to put there",
        _in(Attention, lambda inner: {"times": 2.0}),
        is_scale=True,
    ),
    Change(
        "a layer times a half",
        "a scale: not the library's to put into a kernel",
        _of_block(times=0.5),
        is_scale=True,
    ),
    Change(
        "the table times three",
        "a scale: not the library's to put into the table",
        _of_model(lambda model, layer: {"times": 3.0}),
        is_scale=True,
    ),
)


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A wrong twin.

    Attributes:
        name: What is changed, in what.
        kind: What is changed.
        runs: What both compute, of their trees.
        trees: Random values of both: the same under the pairing that would be right.
        is_scale: Whether a factor in a leaf would undo it.
        factories: What makes both with so many layers, their runs and such values; None where only
            the whole is there.
    """

    name: str
    kind: str
    runs: tuple[Callable[[Any], Any], Callable[[Any], Any]]
    trees: tuple[Any, Any]
    is_scale: bool = False
    factories: tuple[Factory, Factory] | None = None

    @property
    def gap(self) -> float:
        """How far the outputs differ under the pairing that would be right, relative to their size."""
        return self.gap_of(self.trees[1])

    def gap_of(self, view: Any) -> float:
        """How far the outputs differ where the twin has these leaves."""
        return _gap(self.runs, (self.trees[0], view))

    def differs_from(self, least: float, most: int = 8) -> int | None:
        """With how many layers the outputs differ first by this much, under the pairing that would be right."""
        for count in range(most if self.factories is not None else 0):
            (run, tree), (other, view) = (factory(count) for factory in self.factories or ())
            if _gap((run, other), (tree, view)) > least:
                return count
        return None


def _gap(runs: tuple[Callable[[Any], Any], ...], trees: tuple[Any, ...]) -> float:
    """How far the outputs of two runs differ, relative to their size."""
    each: list[Any] = []
    with jax.enable_x64(True):
        for run, tree in zip(runs, trees, strict=True):
            outputs = jax.tree.leaves(run(jax.tree.map(jnp.asarray, tree)))
            each.append(np.concatenate([np.ravel(x) for x in outputs]))
    return float(np.linalg.norm(each[0] - each[1]) / np.linalg.norm(each[0]))


# --- Of models that are drawn  ---


def drawn(seed: int) -> Wrong:
    """A wrong twin of a model that is drawn: the changes in turn, each of the next model that has its place."""
    change = CHANGES[seed % len(CHANGES)]
    for more in range(1000):
        random = np.random.default_rng([17, seed, more])
        model = m.drawn(random, layers=2 + more % 2)
        layer = int(random.integers(len(model.layers)))
        other = change.change(model, layer)
        if other is not None:
            return _of(change, seed, model, other, random)
    raise AssertionError(f"no model has a place for {change.name}")


def _of(
    change: Change, seed: int, model: Model, other: Model, random: np.random.Generator
) -> Wrong:
    keeping = keepings.keeping(random, other)
    kinds = " + ".join(type(block.inner).__name__ for block in model.layers[0])
    values = model.leaves(seed)
    for name, leaf in other.leaves(seed + 1).items():
        values.setdefault(name, leaf)

    def source(count: int) -> tuple[Callable[[Any], Any], Any]:
        own = m.with_layers(model, count)
        tree = {name: values[name] for name in own.shapes()}
        return lambda tree: own(flattened(tree)), nested(tree)

    def view(count: int) -> tuple[Callable[[Any], Any], Any]:
        own = m.with_layers(other, count)
        shapes = own.shapes()
        kept = dataclasses.replace(keeping, shapes=shapes)
        tree = kept.there({name: values[name] for name in shapes})
        return lambda tree: own(kept.back(flattened(tree))), nested(tree)

    count = len(model.layers)
    both = source(count), view(count)
    return Wrong(
        f"{change.name} in {count} x {kinds}, drawn {seed}",
        change.name,
        (both[0][0], both[1][0]),
        (both[0][1], both[1][1]),
        change.is_scale,
        (source, view),
    )


# --- Of the models of the tests  ---

_ALIKE = [
    *[
        (f"gated by {x}", f"gated by {y}")
        for x, y in (("gelu", "silu"), ("silu", "tanh"), ("tanh", "gelu"))
    ],
    *[(f"{x} of 3 experts", f"{y} of 3 experts") for x, y in ((1, 2), (2, 3), (3, 1))],
    ("two tables, sum", "two tables, product"),
    ("two convolutions", "two convolutions, residual"),
    ("two convolutions, residual", "two convolutions"),
    ("an adapter beside", "an adapter before"),
    ("an adapter before", "an adapter in a branch"),
    ("an adapter in a branch", "an adapter beside"),
]
"""Small models of the same leaves that are no one function."""


def exchanged(one: str, other: str) -> Wrong:
    """A small model of the tests, and another as its twin."""
    lens, source, _, runs = exchange_models.small(one)
    _, _, _, others = exchange_models.small(other)
    values = discovered.drawn_floats(source)
    return Wrong(
        f"{other} for {one}",
        "another model of the same leaves",
        (runs[0], others[1]),
        (values, lens.get(values)),
    )


def _set(path: str, **fields: Any) -> Surgery:
    """Other attributes of a module below."""

    def surgery(module: Any) -> None:
        for part in path.split("/"):
            module = module[int(part)] if part.isdecimal() else getattr(module, part)
        for name, value in fields.items():
            setattr(module, name, value)

    return surgery


def _patched(owner: Any, name: str, value: Any) -> Surgery:
    """Another function while the module runs."""
    return lambda module: mock.patch.object(owner, name, value)


def _twice(path: str, one: int, other: int) -> Surgery:
    """One layer in the place of another."""

    def surgery(module: Any) -> None:
        layers = getattr(module, path)
        layers[one] = layers[other]

    return surgery


def _skipped(path: str) -> Surgery:
    """A module that gives back what it is given."""

    def surgery(module: Any) -> None:
        *above, last = path.split("/")
        for part in above:
            module = module[int(part)] if part.isdecimal() else getattr(module, part)
        setattr(module, last, lambda x, *_, **__: x)

    return surgery


SURGERIES: dict[str, dict[str, Surgery]] = {
    "decoder": {
        "relu is gelu": _patched(nnx, "relu", nnx.gelu),
        "another epsilon": _set("layers/1/norm1", epsilon=3.0),
        "another epsilon at the end": _set("norm", epsilon=3.0),
        "one layer twice": _twice("layers", 2, 0),
        "a norm is missing": _skipped("layers/1/norm2"),
        "the last norm is missing": _skipped("norm"),
    },
    "ResNet": {
        "relu is silu": _patched(nnx, "relu", nnx.silu),
        "another epsilon": _set("blocks/0/norm1", epsilon=0.5),
        "one block twice": _twice("blocks", 1, 0),
        "taps apart": _set("blocks/1/conv2", kernel_dilation=(2, 2)),
        "a norm is missing": _skipped("down/norm1"),
        "the shortcut has no norm": _skipped("down/projection_norm"),
    },
    "LSTM": {
        "another activation": _set("upper/cell", activation_fn=nnx.gelu),
        "another gate": _set("lower/cell", gate_fn=nnx.hard_sigmoid),
        "read from the end": _set("lower", reverse=True),
    },
    "Whisper": {
        "gelu is silu": _patched(nnx, "gelu", nnx.silu),
        "no mask": _patched(
            nnx, "make_causal_mask", lambda x: jnp.ones((1, 1, x.shape[-1], x.shape[-1]))
        ),
        "another epsilon": _set("encoder/1/mlp_norm", epsilon=3.0),
        "one layer twice": _twice("decoder", 1, 0),
        "taps apart": _set("conv1", kernel_dilation=(2,)),
        "a norm is missing": _skipped("ln_post"),
    },
    "tied embeddings": {
        "gelu is silu": _patched(nnx, "gelu", nnx.silu),
        "another epsilon": _set("decoder/norm", epsilon=0.3),
        "a norm is missing": _skipped("decoder/norm"),
    },
}
"""Changes of the tests' own models; none is undone by a rearrangement, for the reasons above."""


def operated(name: str, what: str) -> Wrong:
    """A model of the tests, and its twin after surgery."""
    twins = discovered.LARGE[name](SURGERIES[name][what])
    return Wrong(f"{what} in {name}", "another function of a Flax module", twins.runs, twins.trees)


def planted(count: int) -> dict[str, Callable[[], Wrong]]:
    """So many wrong twins by name: of the models of the tests, and the rest of drawn ones."""
    found: dict[str, Callable[[], Wrong]] = {}
    for pair in _ALIKE:
        found[" for ".join(pair[::-1])] = functools.partial(exchanged, *pair)
    for name, surgeries in SURGERIES.items():
        for what in surgeries:
            found[f"{what} in {name}"] = functools.partial(operated, name, what)
    for seed in range(count - len(found)):
        found[f"{CHANGES[seed % len(CHANGES)].name}, drawn {seed}"] = functools.partial(drawn, seed)
    return dict(list(found.items())[:count])

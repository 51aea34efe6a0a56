"""The other ways in which a twin keeps the weights of a drawn model.

A `Keeping` moves numbers about and records where each went. Nothing here knows of lenses or of
discovery: what is right is this record.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from drawn_models import Leaves, Model

Step = Callable[[Leaves], Leaves]
"""From leaves to others that hold the same numbers elsewhere; NumPy arrays."""


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Another way to keep a model's weights.

    Attributes:
        shapes: The shapes of the model's own leaves.
        steps: What is done to them.
        words: What was done, for people.
    """

    shapes: Mapping[str, tuple[int, ...]]
    steps: tuple[Step, ...]
    words: tuple[str, ...] = ()

    def there(self, leaves: Mapping[str, Any]) -> Leaves:
        """The leaves that the twin keeps."""
        found = dict(leaves)
        for step in self.steps:
            found = step(found)
        return found

    def back(self, leaves: Mapping[str, Any]) -> Leaves:
        """The model's own leaves, of those that the twin keeps; of jax arrays.

        It is read off `there`: where each number went, it is taken from.
        """
        numbers: Leaves = {}
        first = 0
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            numbers[name] = np.arange(first, first + size).reshape(shape)
            first += size
        moved = self.there(numbers)
        flat = jnp.concatenate([jnp.ravel(leaves[name]) for name in moved])
        origins = np.concatenate([np.ravel(each) for each in moved.values()])
        whence = np.zeros(first, int)
        whence[origins] = np.arange(len(origins))
        return {name: flat[whence[own]] for name, own in numbers.items()}


def kind_of(name: str) -> str:
    """A path without the number of its layer."""
    return re.sub(r"^layers/\d+/", "layers/*/", name)


def flat_heads(leaves: Leaves) -> Leaves:
    """Heads side by side."""
    found: Leaves = {}
    for name, x in leaves.items():
        last = name.rsplit("/", 1)[-1]
        if last in ("q", "k", "v"):
            x = x.reshape(len(x), -1)
        elif last in ("q_bias", "k_bias", "v_bias"):
            x = x.reshape(-1)
        elif last == "o":
            x = x.reshape(-1, x.shape[-1])
        found[name] = x
    return found


def fused(parts: Sequence[str], whole: str, how: str) -> Step:
    """Some leaves of a block as one: beside each other, one by one, or on an axis of their own."""

    def step(leaves: Leaves) -> Leaves:
        found: Leaves = {}
        for name, x in leaves.items():
            head, _, last = name.rpartition("/")
            own = [leaves.get(f"{head}/{part}") for part in parts]
            if last not in parts or any(each is None for each in own):
                found[name] = x
            elif last == parts[0]:
                found[f"{head}/{whole}"] = _together(own, how)
        return found

    return step


def _together(own: list[Any], how: str) -> Any:
    if how == "beside" or len({x.shape for x in own}) > 1:
        return np.concatenate(own, -1)
    if how == "on an axis":
        return np.stack(own, -2)
    return np.stack(own, -1).reshape(*own[0].shape[:-1], -1)


def turned(orders: Mapping[str, Sequence[int]]) -> Step:
    """The axes of some kinds of leaves in other orders."""

    def step(leaves: Leaves) -> Leaves:
        found: Leaves = {}
        for name, x in leaves.items():
            order = orders.get(kind_of(name))
            found[name] = x if order is None else x.transpose(order)
        return found

    return step


def stacked(axis: int) -> Step:
    """The leaves of all layers as one, along this axis or the last."""

    def step(leaves: Leaves) -> Leaves:
        found: Leaves = {}
        for name, x in leaves.items():
            if not name.startswith("layers/"):
                found[name] = x
            elif name.startswith("layers/0/"):
                rest = name.removeprefix("layers/0/")
                own = [each for other, each in leaves.items() if kind_of(other) == kind_of(name)]
                found[f"layers/{rest}"] = np.stack(own, min(axis, x.ndim))
        return found

    return step


def experts_apart(leaves: Leaves) -> Leaves:
    """Each expert's kernels as leaves of their own."""
    found: Leaves = {}
    for name, x in leaves.items():
        head, _, last = name.rpartition("/")
        if f"{head}/router" in leaves and last in ("up", "down"):
            found |= {f"{head}/experts/{number}/{last}": each for number, each in enumerate(x)}
        else:
            found[name] = x
    return found


def named(words: Mapping[str, str]) -> Step:
    """Other names, one for each part of a path; numbers stay."""

    def step(leaves: Leaves) -> Leaves:
        found: Leaves = {}
        for name, x in leaves.items():
            parts = [part if part.isdecimal() else words[part] for part in name.split("/")]
            found["/".join(parts)] = x
        return found

    return step


def keeping(random: np.random.Generator, model: Model) -> Keeping:
    """A random way to keep a model's weights."""

    def chance(share: float) -> bool:
        return bool(random.random() < share)

    shapes = model.shapes()
    found = {name: np.zeros(shape) for name, shape in shapes.items()}
    steps: list[Step] = []
    words: list[str] = []

    def add(word: str, step: Step) -> bool:
        """Does a step, if it changes anything here."""
        nonlocal found
        before = {name: x.shape for name, x in found.items()}
        after = step(found)
        if before == {name: x.shape for name, x in after.items()} and "turned" not in word:
            return False
        found = after
        steps.append(step)
        words.append(word)
        return True

    if chance(0.5) and add("heads side by side", flat_heads) and chance(0.5):
        add("qkv fused", fused(("q", "k", "v"), "qkv", "beside"))
        add("qkv biases fused", fused(("q_bias", "k_bias", "v_bias"), "qkv_bias", "beside"))
    if chance(0.3):
        how = ("beside", "one by one", "on an axis")[random.integers(3)]
        add(f"gate and up {how}", fused(("gate", "up"), "wi", how))
    if chance(0.3):
        add("experts apart", experts_apart)
    orders: dict[str, Sequence[int]] = {}
    for name, x in found.items():
        if x.ndim > 1 and chance(0.4):
            orders.setdefault(kind_of(name), _order(random, name, x.ndim))
    if orders:
        add(f"{len(orders)} turned", turned(orders))
    if len(model.layers) > 1 and chance(0.4):
        axis = int(random.integers(2))
        add(f"stacked on axis {axis}", stacked(axis))
    parts = sorted({part for name in found for part in name.split("/") if not part.isdecimal()})
    letters = list("abcdefghjkmnpqrstuvwxyz")
    own = {part: "".join(random.choice(letters, 6)) for part in parts}
    steps.append(named(own))
    return Keeping(shapes, tuple(steps), tuple(words))


def _order(random: np.random.Generator, name: str, rank: int) -> tuple[int, ...]:
    """An order of axes; heads stand before what is in them, mostly."""
    order = [int(at) for at in random.permutation(rank)]
    heads = {"q": (1, 2), "k": (1, 2), "v": (1, 2), "o": (0, 1)}.get(name.rsplit("/", 1)[-1])
    if heads is not None and rank == 3 and random.random() < 0.9:
        first, second = sorted(order.index(axis) for axis in heads)
        order[first], order[second] = heads
    return tuple(order)

"""At which layer two models begin to differ: both are built with none of their layers, with one, with two, and compared."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ckpt_schema.discovery._models import DiscoveryError, RunnableModel, model_of
from ckpt_schema.errors import Mismatch

__all__ = ["LayerFactory", "OtherFrom", "first_other", "verify_factories"]

Models = tuple[RunnableModel, RunnableModel]

LayerFactory = Callable[[int], tuple[Callable[[Any], Any] | None, Any]]
"""Makes one side with so many layers: what `discover` takes of it, its run and its leaves."""

_DEEPEST = 48  # more layers than this are no small configuration


@dataclasses.dataclass(frozen=True)
class OtherFrom:
    """Where two models begin to differ.

    Attributes:
        layers: With how many layers they are other functions, ...
        same_with: ... and with how many they are one; None where that is with none.
    """

    layers: int
    same_with: int | None

    def __str__(self) -> str:
        """In words."""
        if self.layers == 0:
            return "they differ without any layer: in what stands before or behind the layers"
        if self.same_with is None:
            return (
                "they differ with one layer: in it, or in what stands before or behind the layers"
            )
        words = "no layers" if not self.same_with else f"the first {self.same_with} of their layers"
        return f"they begin to differ in layer {self.layers}: with {words} they are one function"


def verify_factories(factories: object) -> None:
    """Raises unless these are two functions."""
    several: tuple[object, ...] = factories if isinstance(factories, tuple) else ()
    if len(several) != 2 or not all(map(callable, several)):
        hint = "with_layers=(old, new): each takes a number and gives a run, and leaves for it"
        expected = "two functions of a number of layers"
        fault = Mismatch("with_layers", "argument", expected, type(factories).__name__, hint)
        raise DiscoveryError("wrong arguments", [fault])


def first_other(
    factories: tuple[LayerFactory, LayerFactory],
    whole: Models,
    names: tuple[str, str],
    is_same: Callable[[Models], bool],
) -> OtherFrom:
    """The fewest layers with which two models are other functions; with all of them they are.

    Args:
        factories: What makes each side with fewer layers.
        whole: Both with all of them.
        names: What messages call the two.
        is_same: Whether two models are one function.

    Raises:
        DiscoveryError: A factory fails, or makes other models than those that are given.
    """
    # From none on, and not by halves: a model with fewer layers takes less to run.
    same: int | None = None
    for count in range(_DEEPEST):
        models = _made(factories, count, names)
        # There is no model without layers.
        if models is None:
            continue
        both = [*zip(models, whole, strict=True)]
        # These are the whole models, which are known to differ.
        if all(_sizes(model) == _sizes(given) for model, given in both):
            return OtherFrom(count, same)
        # A factory that passes the given model by would never come to an end.
        for (model, given), name in zip(both, names, strict=True):
            if _size(model) > _size(given):
                raise _misfit(name, count, "no more leaves than the model that is given", "more")
        if not is_same(models):
            return OtherFrom(count, same)
        same = count
    raise _misfit(
        names[0], _DEEPEST, "the model that is given", "another one, at any number of layers"
    )


def _made(
    factories: tuple[LayerFactory, LayerFactory], count: int, names: tuple[str, str]
) -> Models | None:
    """Both models with so many layers; None where there are none without."""
    models: list[RunnableModel] = []
    for factory, name in zip(factories, names, strict=True):
        try:
            run, given = factory(count)
            model = model_of(run, given, name)
            # Many a model without layers is made, and fails when it runs.
            if not count:
                model.run({leaf: np.ones(shape) for leaf, shape in model.shapes.items()})
            models.append(model)
        except Exception as error:
            if not count:
                return None
            hint = "with_layers=(old, new): each takes a number and gives a run, and leaves for it"
            fault = Mismatch(name, "layers", f"a model of {count}", type(error).__name__, hint)
            raise DiscoveryError("with_layers cannot be used", [fault]) from error
    return models[0], models[1]


def _sizes(model: RunnableModel) -> collections.Counter[tuple[int, ...]]:
    return collections.Counter(tuple(shape) for shape in model.shapes.values())


def _size(model: RunnableModel) -> int:
    return sum(map(math.prod, model.shapes.values()))


def _misfit(name: str, count: int, expected: str, found: str) -> DiscoveryError:
    hint = "with_layers=(old, new) makes the very models that are given, with fewer of their layers"
    fault = Mismatch(name, f"{count} layers", expected, found, hint)
    return DiscoveryError("with_layers does not fit the models", [fault])

"""Modules of Linen, whose variables are known once the inputs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ckpt_schema._frameworks.variables import abstract_of
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["abstract_variables", "is_linen"]


def is_linen(given: Any) -> bool:
    """Whether this is a module of Linen, or a class of them."""
    return isinstance(given, nn.Module) or (
        isinstance(given, type) and issubclass(given, nn.Module)
    )


def abstract_variables(module: Any, inputs: Sequence[Any]) -> Any:
    """The variables that a module of Linen has for some inputs, abstract; nothing is computed.

    Args:
        module: The module.
        inputs: What it is called with; arrays may be abstract.

    Raises:
        SchemaError: It is no such module, there are no inputs, or it fails when it is traced.
    """
    if not isinstance(module, nn.Module):
        name = getattr(module, "__name__", type(module).__name__)
        expected, found = "a module of Linen, called with inputs", "another thing, and inputs"
        hint = "leave the inputs out, or pass what makes the tree, lambda: ..."
        # `infer(MLP, x)` for `infer(MLP(), x)` is a slip that the hint can spell out.
        if is_linen(module):
            found, hint = "its class", f"pass {name}(...) and the inputs"
        raise _unreadable(name, expected, found, hint)
    name = type(module).__name__
    # Linen makes a kernel when it sees its input: Dense(8) alone does not say how many rows it has.
    if not inputs:
        hint = f"infer({name}(...), x), or pass what makes them, lambda: {name}(...).init(...)"
        raise _unreadable(name, "the inputs too, which its variables depend on", "none", hint)

    def make() -> Any:
        # Any key will do: shapes and dtypes do not depend on it, and nothing is drawn.
        return module.init(jax.random.key(0), *jax.tree.map(_value, tuple(inputs)))

    make.__name__ = name  # what an error calls it, if the module fails
    return abstract_of(make)


def _value(leaf: Any) -> Any:
    """A value in the place of an abstract one, which nothing makes where it is traced."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return leaf


def _unreadable(name: str, expected: str, found: str, hint: str) -> SchemaError:
    fault = Mismatch(name, "argument", expected, found, hint)
    return SchemaError(f"no layout ({name}) can be read off the module", [fault])

"""What the arguments of a rule are verified for, whatever it says."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.dims import Dim
from ckpt_schema._layouts.fallbacks import SameAs
from ckpt_schema._layouts.leaves import Default, Fill
from ckpt_schema._messages.text import shown
from ckpt_schema.errors import Mismatch, SchemaError

__all__ = ["default_of", "not_well_formed", "one_dim", "verify_paths"]


def not_well_formed(rule: str, *faults: Mismatch) -> SchemaError:
    """The error of a rule that is not well formed."""
    return SchemaError(f"{rule}(...) is not well formed", list(faults))


def verify_paths(rule: str, **given: object) -> None:
    """Raises unless all arguments are logical paths.

    Args:
        rule: The name of the rule.
        given: The arguments by their names.

    Raises:
        SchemaError: With each that is none.
    """
    expected = 'a logical path, such as "layers[]/norm"'
    hint = "print the layout to see its paths"
    faults: list[Mismatch] = []
    for argument, value in given.items():
        # A Variable type stands for all leaves of it.
        if not isinstance(value, (str, type)) or not value:
            faults.append(Mismatch(argument, "declaration", expected, shown(value), hint))
    if faults:
        raise not_well_formed(rule, *faults)


def one_dim(rule: str, text: object) -> Dim:
    """The dim that an argument spells, which is one axis."""
    # A text with a space in it is several axes.
    parsed = dims_.parse_dims(text) if isinstance(text, str) else ()
    if len(parsed) != 1:
        fault = Mismatch(
            "dim", "declaration", "one dim, as the leaf declares it", shown(text), 'such as "vocab"'
        )
        raise SchemaError(f"{rule}(...) is not well formed", [fault])
    return parsed[0]


def default_of(rule: str, given: object) -> Default:
    """The default that an argument is."""
    if isinstance(given, Default) and not isinstance(given, SameAs):
        return given
    # Of a number of another kind than the leaf's, whoever knows the leaf says what is wrong.
    if isinstance(given, (bool, int, float, complex, np.generic)):
        number: Any = given
        return Fill(number)
    hint = "a leaf that another one stands for is declared so, field(default=same_as(...))"
    if not isinstance(given, SameAs):
        hint = (
            "for keys and streams, fresh_key(0); own, for a whole leaf, to keep what the target has"
        )
    fault = Mismatch("default", "declaration", "a number, or fresh_key(...)", shown(given), hint)
    raise SchemaError(f"{rule}(...) is not well formed", [fault])

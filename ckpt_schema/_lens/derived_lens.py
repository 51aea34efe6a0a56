"""Deriving: the lens between two layouts that are declared, by rules for what their types cannot say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ckpt_schema._layouts import dims as dims_
from ckpt_schema._layouts.schema import Schema, layout
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.axis_rules import Replicated
from ckpt_schema._lens.known_sizes import with_known_sizes
from ckpt_schema._lens.lens import Lens, joined_lens
from ckpt_schema._lens.replicas import replicated_layout
from ckpt_schema._lens.rules import Rule, verify_rules, without_lesser
from ckpt_schema._lens.square_leaves import verify_squares

__all__ = ["derive", "derive_anew", "of_copies"]


def derive(
    source: type[Schema] | Layout,
    view: type[Schema] | Layout,
    *,
    rules: Sequence[Rule] = (),
    dims: Mapping[str, int] | None = None,
) -> Lens:
    """The lens between two layouts, joined on their logical paths.

    What differs within a joined leaf is derived from the declared types: a spelling moves it, ``scan`` against a list
    stacks or unstacks it, other dims transpose and reshape it, another dtype of
    integers or of floats casts it where that keeps its values.

    Args:
        source: The left layout.
        view: The right layout.
        rules: What the types cannot say: `rename`, `private`, `fuse`, `series`, `flip`, `pad`, `cast`, `scale`,
            `shift`, `tie`, `total`, `raw_key`, `move`, `reset`, `repeat`, `replicated`.
        dims: Sizes that no tree tells, in elements; see `Lens.bind`.

    Returns:
        A lens that obeys the laws for all conforming trees, of any size.

    Raises:
        DerivationError: With every row that has no place, every pair of rows that no edit relates, every ambiguity, and every
            rule that matches nothing. A square leaf is ambiguous if a rule turns the axes of a leaf with the same last names.
        SchemaError: One of the schemas is wrong in itself.

    Warns:
        AxesWarning: With every square leaf of an inferred layout that a rule gives another name without ``axes=``: it is
            joined as it stands, and its sizes would allow the transpose. Where a rule turns another leaf, those that keep
            their name are among them.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxtyping import Array, Float32
        >>> from ckpt_schema._layouts.fields import field
        >>> class Old(Schema):
        ...     kernel: Float32[Array, "embed mlp"] = field(key="Dense_0/kernel")
        >>> class New(Schema):
        ...     kernel: Float32[Array, "mlp embed"]
        >>> lens = derive(Old, New)
        >>> lens.get({"Dense_0": {"kernel": jnp.zeros((2, 3))}})["kernel"].shape
        (3, 2)
        >>> print(lens)
        Old -> New: 1 joined, 0 private to Old, 0 private to New
          Dense_0/kernel  kernel  embed mlp -> mlp embed
    """
    dims_.verify_sizes({} if dims is None else dims)
    verify_rules(rules)
    lens, sizes = _of_one_copy(source, view, rules, dims or {})
    verify_squares(lens)
    return _with_copies(lens, rules).bind(**sizes)


def derive_anew(
    source: type[Schema] | Layout, view: type[Schema] | Layout, rules: Sequence[Rule]
) -> Lens:
    """The lens of a record: who made it was asked about square leaves then, and an older release asked less."""
    lens, sizes = _of_one_copy(source, view, rules, {})
    return _with_copies(lens, rules).bind(**sizes)


def _of_one_copy(
    source: type[Schema] | Layout,
    view: type[Schema] | Layout,
    rules: Sequence[Rule],
    dims: Mapping[str, int],
) -> tuple[Lens, Mapping[str, int]]:
    """The lens between trees of one copy, and the sizes that are known."""
    rules = without_lesser(rules)
    sides, dims = with_known_sizes(layout(source), layout(view), rules, dims)
    sizes = {**dict(sides[1].sizes), **dict(sides[0].sizes), **dims}
    # All other rules speak of one copy.
    one_copy = [rule for rule in rules if not isinstance(rule, Replicated)]
    return joined_lens(sides, one_copy, sizes), sizes


def _with_copies(lens: Lens, rules: Sequence[Rule]) -> Lens:
    """The lens for trees that are kept once for each device, where a rule says so."""
    for rule in rules:
        if isinstance(rule, Replicated):
            lens = of_copies(lens, rule)
    return lens


def of_copies(
    lens: Lens, rule: Replicated, count: int | None = None, single: Collection[int] = ()
) -> Lens:
    """A lens for trees of which one side is kept once for each device.

    Args:
        lens: The lens between trees of one copy.
        rule: Says which side, and on which axis the copies are.
        count: How many there are, where that is known.
        single: The numbers of that side's rows that are there once.
    """
    table = lens.view if rule.is_view else lens.source
    # A model may have a dim of that name itself.
    name, taken = "devices", lens.source.names() | lens.view.names()
    while name in taken:
        name += "_"
    every, rules = replicated_layout(table, rule, name, single)
    copies = derive(every, table, rules=rules)
    whole = lens >> ~copies if rule.is_view else copies >> lens
    return whole if count is None else whole.bind(**{name: count})

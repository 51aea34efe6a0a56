"""The lens between two trees that nobody has declared: both layouts are read off, and derived between.

Leaves join by equal paths. What a tree cannot show is which siblings are a list of layers, and on which axis layers are
stacked. Here both trees together show it: what is a list on one side, and has one more axis on the other, was stacked. It is
taken only where one reading exists; where two do, the error has the line that settles it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.adapt.one_sided import Keeps, derived
from ckpt_schema._lens.adapt.open_names import with_discovery
from ckpt_schema._lens.adapt.siblings import with_lists
from ckpt_schema._lens.adapt.stacks import Scan, with_stacks
from ckpt_schema._lens.axis_rules import Replicated
from ckpt_schema._lens.derived_lens import of_copies
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.read_sides import ReadSide, ReadSides
from ckpt_schema._lens.replicas import CopiedTree, copies_fault, count_of_copies
from ckpt_schema._lens.rules import Rule, verify_rules
from ckpt_schema._trees.containers import Tree
from ckpt_schema.errors import DerivationError

__all__ = ["adapt_trees"]


def adapt_trees(
    source: Tree | type[Schema] | Layout,
    view: Tree | type[Schema] | Layout,
    *,
    rules: Sequence[Rule] = (),
    scan: Scan | None = None,
    lists: Sequence[str] | None = None,
    names: tuple[str, str] = ("source", "view"),
    own: Keeps | None = None,
    joined: tuple[str | None, str | None] = (None, None),
) -> Lens:
    """The lens between two trees; see `ckpt_schema.adapt`, which takes checkpoints besides.

    Args:
        source: A tree, or the layout of one.
        view: Another.
        rules: As in `derive`; they name leaves by the logical paths of the layouts that were read off.
        scan: As in `infer`, for either side; a pair where both are stacked.
        lists: As in `infer`, for either side.
        names: What messages call the two layouts.
        own: Which leaves that the view alone has keep their own values; unless given, none does.
        joined: What joins the paths of each tree to one key, as in files of Hugging Face.

    Raises:
        DerivationError: With everything that more than one reading fits, or that has no partner.
        SchemaError: A tree holds what is no leaf, or `scan` and `lists` fit neither tree.
    """
    verify_rules(rules)
    copied = [rule for rule in rules if isinstance(rule, Replicated)]
    one_copy: list[Rule] = [rule for rule in rules if not isinstance(rule, Replicated)]
    several = [CopiedTree.of((source, view)[rule.is_view], rule) for rule in copied]
    for rule, each in zip(copied, several, strict=True):
        source, view = (source, each.tree) if rule.is_view else (each.tree, view)
    sides = (
        ReadSide.of(source, names[0], joined[0]),
        ReadSide.of(view, names[1], joined[1]),
    )
    plain = sides
    try:
        sides = with_lists(sides, lists, one_copy)
        sides = with_stacks(sides, scan or {})
        left, right = (side.layout for side in sides)
        lens = derived(left, right, one_copy, own)
    except DerivationError as error:
        left, right = (side.layout for side in sides)
        raise _as_copies(plain) or with_discovery(error, left, right) from None
    for rule, each in zip(copied, several, strict=True):
        table = lens.view if rule.is_view else lens.source
        lens = of_copies(lens, rule, each.count, each.single_rows(table))
    return lens


def _as_copies(sides: ReadSides) -> DerivationError | None:
    """The error of trees of which one has copies of the other's leaves, and nobody said so: all else follows from it."""
    for number, name in enumerate(("source", "view")):
        near, far = sides[number], sides[1 - number]
        count = count_of_copies(near.layout, far.layout)
        if count is not None:
            fault = copies_fault(near.name, count, Replicated(0, is_view=name == "view"))
            return DerivationError(f"no lens from {sides[0].name} to {sides[1].name}", [fault])
    return None

"""The lens between two trees that nobody has declared: both layouts are read off, and derived between.

Leaves join by equal paths. What a tree cannot show is which siblings are a list of layers, and on which axis layers are
stacked. Here both trees together show it: what is a list on one side, and has one more axis on the other, was stacked. It is
taken only where one reading exists; where two do, the error has the line that settles it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_schema._layouts.schema import Schema
from ckpt_schema._layouts.table import Layout
from ckpt_schema._lens.adapt.candidate_renames import with_discovery
from ckpt_schema._lens.adapt.one_sided import Keeps, derived
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
    # Layouts are read off one copy of each leaf: an axis of copies would look like stacked layers.
    one_copy: list[Rule] = []
    copied: list[tuple[Replicated, CopiedTree]] = []
    given = source, view
    for rule in rules:
        if not isinstance(rule, Replicated):
            one_copy.append(rule)
            continue
        copies = CopiedTree.of(given[rule.is_view], rule)
        copied.append((rule, copies))
        if rule.is_view:
            view = copies.tree
        else:
            source = copies.tree
    plain = (
        ReadSide.of(source, names[0], joined[0]),
        ReadSide.of(view, names[1], joined[1]),
    )
    sides = plain
    try:
        # A stack is known by the list that the other side has, so lists are read first.
        sides = with_lists(sides, lists, one_copy)
        sides = with_stacks(sides, scan or {})
        lens = derived(sides[0].layout, sides[1].layout, one_copy, own)
    except DerivationError as error:
        # If one side is a state of copies, no leaf fits: that is the one thing to say.
        cause = _as_copies(plain)
        raise cause or with_discovery(error, sides[0].layout, sides[1].layout) from None
    # The axis of copies comes back last, on the lens between single copies.
    for rule, copies in copied:
        table = lens.view if rule.is_view else lens.source
        lens = of_copies(lens, rule, copies.count, copies.single_rows(table))
    return lens


def _as_copies(sides: ReadSides) -> DerivationError | None:
    """The error of trees of which one has copies of the other's leaves, and nobody said so: all else follows from it."""
    source, view = sides
    for near, far in ((source, view), (view, source)):
        count = count_of_copies(near.layout, far.layout)
        if count is not None:
            # `pmap` and `flax.jax_utils.replicate` put the axis of devices in front.
            rule = Replicated(0, is_view=near is view)
            fault = copies_fault(near.name, count, rule)
            return DerivationError(f"no lens from {source.name} to {view.name}", [fault])
    return None

"""The lens between two layouts that were read off, whose one-sided leaves nobody has named.

Streams, caches and records that one side alone has are private to it, and streams of older releases
go where they stand today; what else has no partner is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ckpt_schema._layouts.table import Layout, Row
from ckpt_schema._lens.adapt.candidate_renames import candidate_renames
from ckpt_schema._lens.adapt.lone_nodes import lone_nodes
from ckpt_schema._lens.adapt.lone_stacks import with_lone_stacks
from ckpt_schema._lens.adapt.older_streams import older_streams
from ckpt_schema._lens.derived_lens import derive
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.rules import Private, Rule
from ckpt_schema.errors import DerivationError

__all__ = ["Keeps", "derived"]

Keeps = Callable[[Layout], Iterable[Row]]
"""Which rows of the view keep their own values where the source has no partner for them."""


def derived(left: Layout, right: Layout, rules: list[Rule], keeps: Keeps | None) -> Lens:
    """The lens; streams, caches and records that one side alone has are private to it."""
    try:
        return derive(left, right, rules=rules)
    except DerivationError as error:
        # Those that are among the rules were tried: without this it would never end.
        streams = [rule for rule in older_streams(error, left, right) if rule not in rules]
        if streams:
            return derived(left, right, [*rules, *streams], keeps)
        # What derive calls certain of such leaves is a rule for each. A rename is never taken unasked:
        # it would carry the weights of one node into another that nobody has named.
        private = [rule for rule in error.rules if isinstance(rule, Private)]
        if keeps is not None:
            private += _kept(error, right, keeps, private)
        if not private:
            raise _with_candidates(error, left, right, rules) from None
        first = error
    try:
        return derive(left, right, rules=[*rules, *private])
    except DerivationError as error:
        # Only what is wrong besides is left in this error: private leaves are out of the way.
        raise _with_candidates(error, left, right, rules) from first


def _with_candidates(
    error: DerivationError, left: Layout, right: Layout, rules: Sequence[Rule]
) -> DerivationError:
    """The same error, with renames of whole nodes that shapes allow, and with nodes that no shape of the other side allows."""
    with_stacks = with_lone_stacks(error, left, right, rules)
    # What may be a layer of the other side, stacked, or one of several parts has something there.
    told = {
        fault.path
        for fault, before in zip(with_stacks.mismatches, error.mismatches, strict=True)
        if fault != before or fault.guesses
    }
    error = with_stacks
    notes = [
        *error.notes,
        *candidate_renames(error, left, right),
        *lone_nodes(error, left, right, told),
    ]
    return DerivationError(error.header, error.mismatches, notes)


def _kept(
    error: DerivationError, view: Layout, keeps: Keeps, streams: Sequence[Private]
) -> list[Private]:
    """Rules for the leaves without a partner that keep their own values, but for streams, which have one."""
    by_path = {"/".join(row.path): row for row in keeps(view)}
    ruled = {rule.path for rule in streams}
    kept: list[Private] = []
    for fault in error.mismatches:
        row = by_path.get(fault.path)
        # What an optimizer keeps for a leaf goes where that goes, and needs no rule.
        if row is None or row.body is None or row.mirrors:
            continue
        if row.model_path not in ruled:
            kept.append(Private(row.model_path, None))
    return kept

"""How leaves may be cut: every choice that comes out even, the cheapest first, and forms without pieces."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import numpy as np
import pytest

from ckpt_schema.discovery._even_choices import PieceOption, even_choices
from ckpt_schema.discovery._leaf_ways import cuts_into, forms_of_cuts


def drawn_options(seed: int) -> list[list[PieceOption]]:
    """Groups of both sides with a few options each, of three forms."""
    random = np.random.default_rng(seed)
    forms = [(4,), (6,), (4, 6)]
    groups: list[list[PieceOption]] = []
    for group in range(random.integers(2, 6)):
        sign = -1 if group % 2 else 1
        options: list[PieceOption] = []
        for number in range(random.integers(1, 5)):
            counts = {form: sign * int(random.integers(0, 4)) for form in forms}
            changes = frozenset({(group, number)} if number else ())
            cost = int(random.integers(0, 12))
            options.append(PieceOption(collections.Counter(counts), cost, changes))
        groups.append(options)
    return groups


@pytest.mark.parametrize("seed", range(60))
def test_even_choices_are_all_that_there_are_and_the_cheapest_come_first(seed: int) -> None:
    groups = drawn_options(seed)
    costs: dict[frozenset[Any], int] = {}
    for several in itertools.product(*groups):
        totals: collections.Counter[Any] = collections.Counter()
        for option in several:
            totals.update(option.counts)
        if not any(totals.values()):
            changes = frozenset().union(*(option.changes for option in several))
            costs[changes] = sum(option.cost for option in several)
    found = [*even_choices(groups)]
    assert len(found) == len(set(found)) == min(len(costs), 24)
    assert [costs[changes] for changes in found] == sorted(costs.values())[:24]


@pytest.mark.parametrize("shape", [(2, 3, 4), (6, 4), (4, 2, 6), (12,), (2, 12, 5), (1, 6, 3)])
def test_the_forms_of_cuts_are_those_of_the_pieces(shape: tuple[int, ...]) -> None:
    """They are found without making a piece."""
    forms = {(4,), (6,), (2, 4), (4, 6), (4, 5), (2, 5), (3, 4), (2, 3), (12,), (3,)}
    of_pieces: set[tuple[int, ...]] = set()
    for way in cuts_into(shape, forms):
        pieces = [*way]
        assert len(pieces) == len(way)
        assert collections.Counter(piece.form for piece in pieces) == way.forms
        of_pieces |= way.forms.keys()
    assert forms_of_cuts(shape, forms, joins=True) == of_pieces

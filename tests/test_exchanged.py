"""Equals that change places are found by the law of functions, and no right lens is: a sample of what `exchanged.py` tries."""

from __future__ import annotations

import pytest
from exchanged import KINDS, SYMMETRIES, Exchange, outcome
from support.profiles import THOROUGH, sampled

SAMPLE = (
    "gated by gelu",
    "2 of 3 experts",
    "LSTMs both ways, side by side",
    "two tables, sum",
    "two convolutions, residual",
    "an adapter before",
    "decoder, unrolled",
)


def chosen(kinds: dict[str, list[tuple[str, Exchange]]]) -> list[tuple[str, str, Exchange]]:
    """The first exchange of each kind in each pair of the sample, the pairs one after the other."""
    found: dict[tuple[str, str], Exchange] = {}
    for kind, several in kinds.items():
        for name, exchange in several:
            found.setdefault((name, kind), exchange)
    return [(name, kind, found[name, kind]) for name, kind in sorted(found) if name in SAMPLE]


@pytest.mark.parametrize("name", sampled(SAMPLE, 3))
def test_no_right_lens_is_found_wrong(name: str) -> None:
    tried = outcome("", name, None, 2 if THOROUGH else 1)
    assert not tried.found, tried
    assert tried.units < 8, "the tolerance is far from what right lenses need"


@pytest.mark.parametrize(("name", "kind", "exchange"), sampled(chosen(KINDS), 3))
def test_every_exchange_is_found(name: str, kind: str, exchange: Exchange) -> None:
    tried = outcome(kind, name, exchange, 1)
    assert tried.found == 1, tried
    assert tried.units > 1000, "and the tolerance is far from what wrong ones show"


@pytest.mark.parametrize(("name", "kind", "exchange"), sampled(chosen(SYMMETRIES), 2))
def test_what_changes_no_function_passes(name: str, kind: str, exchange: Exchange) -> None:
    tried = outcome(kind, name, exchange, 1)
    assert not tried.found, tried

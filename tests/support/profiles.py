"""What the hypothesis profile says of a run: how many examples a property test draws, and how many cases are tried.

``dev`` is for every day: few examples, and of a long list of equal cases a sample. ``ci`` is thorough: many examples, and
every case there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import hypothesis
import pytest

THOROUGH = hypothesis.settings.default.max_examples >= 100
"""Whether the profile is a thorough one."""

thorough_only = pytest.mark.skipif(
    not THOROUGH, reason="takes many seconds; HYPOTHESIS_PROFILE=ci runs it"
)
"""Marks a test that is dear, and of whose kind the file has cheaper ones that always run."""

Case = TypeVar("Case")


def examples(times: float) -> Callable[[Any], Any]:
    """Settings with ``times`` the profile's number of examples, for tests that are cheaper or dearer than most."""
    return hypothesis.settings(
        max_examples=max(2, round(hypothesis.settings.default.max_examples * times)),
        suppress_health_check=[
            hypothesis.HealthCheck.too_slow,
            hypothesis.HealthCheck.filter_too_much,
        ],
    )


def sampled(cases: Sequence[Case], every: int, start: int = 0) -> Sequence[Case]:
    """Each ``every``-th of the cases, from the ``start``-th on; all of them where the profile is thorough.

    Where the cases are products, ``every`` is to have no factor in common with the lengths of the
    lists that they are products of: then each member of each list is in the sample.
    """
    return cases if THOROUGH else cases[start::every]

"""How many examples a property test draws: a multiple of what the profile says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis


def examples(times: float) -> Callable[[Any], Any]:
    """Settings with ``times`` the profile's number of examples, for tests that are cheaper or dearer than most."""
    return hypothesis.settings(
        max_examples=max(1, round(hypothesis.settings.default.max_examples * times)),
        suppress_health_check=[
            hypothesis.HealthCheck.too_slow,
            hypothesis.HealthCheck.filter_too_much,
        ],
    )

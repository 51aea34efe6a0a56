"""A plugin of pytest for runs without `conftest.py`: a few examples of each property, the same in every run."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile(
    "few", derandomize=True, deadline=None, database=None, max_examples=8
)
hypothesis.settings.load_profile("few")

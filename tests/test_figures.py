"""The page of figures has a block for each command that writes one."""

from __future__ import annotations

import re

import pytest
from figures import COMMANDS, PAGE, marks, replaced


def test_each_command_has_its_block() -> None:
    assert re.findall(r"<!-- figures: (\w+) -->", PAGE.read_text()) == [*COMMANDS]
    assert re.findall(r"<!-- end: (\w+) -->", PAGE.read_text()) == [*COMMANDS]


def test_a_block_is_replaced_and_nothing_else() -> None:
    start, end = marks("speed")
    page = f"a\n{start}\nold\n{end}\nb"
    assert replaced(page, "speed", "new") == f"a\n{start}\nnew\n{end}\nb"
    with pytest.raises(SystemExit, match=r"expected <!-- figures: memory -->"):
        replaced(page, "memory", "new")

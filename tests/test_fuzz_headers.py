"""A sample of damaged folders of Hugging Face; ``python tests/fuzz/headers.py`` tries thousands."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import pytest
from fuzz import headers as fuzzing

CASES = 60


@pytest.mark.parametrize("form", ["one", "several"])
def test_no_damaged_folder_is_restored_to_other_values(tmp_path: Path, form: str) -> None:
    folder = fuzzing.Folder(form, tmp_path)
    damages = itertools.islice(folder.damages(seed=7), CASES)
    outcomes = [folder.outcome(damage) for damage in damages]
    assert [outcome for outcome in outcomes if outcome.end not in fuzzing.GOOD] == []
    assert {outcome.end for outcome in outcomes} == {"named", "right"}  # some damages are none


def test_what_is_whole_is_right_and_the_fuzz_can_fail(tmp_path: Path) -> None:
    folder = fuzzing.Folder("one", tmp_path)
    file = "model.safetensors"
    assert folder.outcome(fuzzing.Damage("none", file, lambda whole: whole)).end == "right"

    def exchanged(whole: bytes) -> bytes:
        (length,) = struct.unpack("<Q", whole[:8])
        told = json.loads(whole[8 : 8 + length])
        one, other = (told[f"model.layers.{n}.fc.bias"] for n in (0, 1))
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
        text = json.dumps(told).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    assert folder.outcome(fuzzing.Damage("of one type", file, exchanged)).end == "silent"

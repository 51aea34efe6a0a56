"""The laws of a lens of any float: tried in a few precisions, each told by the code that makes it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from jaxtyping import Array, Float

import ckpt_schema as cs
from ckpt_schema.testing import LAWS, BrokenLawError, LensLaws, Sample, check_laws
from ckpt_schema.testing._suite import Options, check_law
from ckpt_schema.testing._trials import Trial


class OldBlock(cs.Schema):
    qkv: Float[Array, "embed 3*heads"]
    scale: Float[Array, " embed"]


class Old(cs.Schema):
    layers: OldBlock = cs.field(scan="depth", axis=1)


class NewBlock(cs.Schema):
    q: Float[Array, "heads embed"]
    k: Float[Array, "heads embed"]
    v: Float[Array, "heads embed"]
    scale: Float[Array, " embed"] = cs.field(default=1.0)


class New(cs.Schema):
    layers: list[NewBlock] = cs.field(length="depth")


FUSE = cs.fuse("layers[]/qkv", [f"layers[]/{name}" for name in "qkv"])


class TestRounded(LensLaws):
    lens = cs.derive(Old, New, rules=[FUSE, cs.cast("**", rounding="nearest")])
    max_examples = 2


LENS = cs.derive(Old, New, rules=[FUSE])


def test_what_is_not_rounded_is_refused_in_every_precision() -> None:
    check_laws(LENS, ["GetPut", "Refusal", "Jit"], max_examples=3)


def test_a_broken_law_says_which_floats_it_was_tried_with() -> None:
    seen: list[Trial] = []

    def fails(trial: Trial) -> None:
        seen.append(trial)
        raise AssertionError("it never holds")

    law = dataclasses.replace(LAWS["GetPut"], check=fails)
    with pytest.raises(BrokenLawError) as caught:
        check_law(LENS, law, Options(max_examples=3))
    text = str(caught.value)
    line = next(line.strip() for line in text.splitlines() if "lens.at(" in line)
    code = "\n".join(seen[-1].code("s"))
    assert line in code
    names: dict[str, Any] = {"lens": LENS, "Sample": Sample}
    exec(code, names)
    assert not names["lens"].is_open
    cs.assert_trees_identical(names["s"], seen[-1]["s"])


def test_every_precision_is_tried() -> None:
    tried: set[tuple[str, str]] = set()

    def notes(trial: Trial) -> None:
        tables = trial.lens.source, trial.lens.view
        tried.add((tables[0].rows[0].leaf.dtype, tables[1].rows[0].leaf.dtype))

    check_law(LENS, dataclasses.replace(LAWS["GetPut"], check=notes), Options(max_examples=40))
    assert tried == {("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")}


def test_a_law_of_given_states_is_of_one_precision() -> None:
    state = {
        "layers": {"qkv": np.ones((2, 2, 3), np.float32), "scale": np.ones((2, 2), np.float32)}
    }
    with pytest.raises(cs.DerivationError, match="a law of states that are given needs one dtype"):
        check_laws(LENS, ["Declaration"], source=state)

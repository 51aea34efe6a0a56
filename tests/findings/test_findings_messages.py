"""Errors that can be read and followed: how faults are shown, and what they cost."""

from __future__ import annotations

import cProfile
import pstats
from typing import Any

import jax
import pytest
from jaxtyping import Array, Float32

import ckpt_schema as cs


class Layer(cs.Schema):
    w: Float32[Array, "a b"]
    v: Float32[Array, " b"]


class Model(cs.Schema):
    layers: list[Layer] = cs.field(length="depth")


def sds(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    """An abstract leaf."""
    return jax.ShapeDtypeStruct(shape, dtype)


# --- 2.6  ---


def test_2_6_a_report_has_no_truth_value() -> None:
    good, bad = cs.check(Layer, {"w": sds(3, 4), "v": sds(4)}), cs.check(Layer, {"w": sds(3, 4)})
    assert good.ok
    assert not bad.ok
    for report in (good, bad):
        with pytest.raises(TypeError, match=r"report\.ok .*report\.mismatches"):
            assert report
    assert good == []
    assert [fault.path for fault in bad] == ["v"]


# --- 5: 100,000 wrong leaves  ---


def calls(tree: Any) -> tuple[int, int, str]:
    """How many functions are called to check a tree, how many to write what is wrong, and that text."""
    cs.check(Model, tree)  # what is done once
    checking, writing = cProfile.Profile(), cProfile.Profile()
    report = checking.runcall(cs.check, Model, tree)
    text = writing.runcall(str, report)
    return total(checking), total(writing), text


def total(profile: cProfile.Profile) -> int:
    """The number of calls that were counted."""
    counted: Any = pstats.Stats(profile)
    return counted.total_calls


def layers(count: int, w: Any, v: Any) -> dict[str, Any]:
    """A tree of so many layers."""
    return {"layers": {n: {"w": w, "v": v} for n in range(count)}}


def test_5_a_check_of_wrong_leaves_costs_at_most_twice_that_of_good_ones() -> None:
    good, _, _ = calls(layers(500, sds(3, 4), sds(4)))
    for wrong in (layers(500, sds(4), sds(4)), layers(500, sds(3, 4, dtype="int8"), sds(9))):
        checking, writing, text = calls(wrong)
        assert checking <= 2 * good
        assert writing <= good
        assert len(text.splitlines()) <= 40
        assert "layers/{0..499}/w  500 leaves: expected float32[a" in text


def test_5_a_check_grows_as_the_tree_does() -> None:
    trees = {
        "wrong": lambda n: layers(n, sds(4), sds(4)),
        "elsewhere": lambda n: {"blocks": layers(n, sds(3, 4), sds(4))["layers"]},
        "other names": lambda n: {"layers": {k: {"w": sds(3, 4), "u": sds(4)} for k in range(n)}},
    }
    for make in trees.values():
        small, large = calls(make(300)), calls(make(1200))
        assert large[0] <= 4.4 * small[0]
        assert large[1] <= 4.4 * small[1] + 100
        assert len(large[2].splitlines()) <= 40

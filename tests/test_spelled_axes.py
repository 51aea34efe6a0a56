"""Rules that spell the axes of leaves which no class declares, against NumPy's own reshapes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest
from support.profiles import thorough_only

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws


def leaf(*shape: int) -> np.ndarray:
    """Each element is another number."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


QKV = leaf(36, 8)
GROUPED = leaf(2 * 5 * 4, 8)

JOINED = {
    "split and turned": ("h*d e -> e h d", leaf(12, 8), lambda w: w.T.reshape(8, 3, 4), (8, 3, 4)),
    "joined and turned": ("e h d -> h*d e", leaf(8, 3, 4), lambda w: w.reshape(8, 12).T, (12, 8)),
    "all sizes equal": ("e h d -> h*d e", leaf(4, 4, 4), lambda w: w.reshape(4, 16).T, (16, 4)),
    "the minor first": (
        "e d*h -> h d e",
        leaf(8, 12),
        lambda w: w.reshape(8, 4, 3).transpose(2, 1, 0),
        (3, 4, 8),
    ),
    "a number": (
        "e 2*d -> e d*2",
        leaf(4, 16),
        lambda w: w.reshape(4, 2, 8).swapaxes(1, 2).reshape(4, 16),
        (4, 16),
    ),
    "an axis of one": (
        "e h*d -> 1 h d e",
        leaf(8, 12),
        lambda w: w.T.reshape(1, 3, 4, 8),
        (1, 3, 4, 8),
    ),
}


@pytest.mark.parametrize("case", JOINED)
def test_a_rename_spells_the_axes_of_both_sides(case: str) -> None:
    axes, whole, oracle, shape = JOINED[case]
    old, new = {"params": {"a": {"w": whole}}}, {"params": {"b": {"w": leaf(*shape)}}}
    lens = cs.adapt(old, new, rules=[cs.rename("a/w", "b/w", axes=axes)])
    np.testing.assert_array_equal(lens.get(old)["params"]["b"]["w"], oracle(whole), strict=True)
    cs.assert_trees_identical(lens.put(lens.get(old)), old)


def _head_by_head(number: int) -> np.ndarray:
    return QKV.reshape(3, 3, 4, 8)[:, number].transpose(2, 0, 1)


def _one_by_one(number: int) -> np.ndarray:
    return QKV.reshape(3, 3, 4, 8)[number].transpose(2, 0, 1)


def _uneven(number: int) -> np.ndarray:
    return np.split(QKV, [20, 28])[number].T


def _in_groups(number: int) -> np.ndarray:
    each = np.split(GROUPED.reshape(2, 5, 4, 8), [3, 4], axis=1)[number]
    return each.transpose(3, 0, 1, 2).reshape(8, -1, 4)


FUSED = {
    "one after the other": ("3*h*d e -> e h d", QKV, _one_by_one),
    "head by head": ("h*3*d e -> e h d", QKV, _head_by_head),
    "of other sizes": ("q+k+v e -> e q, e k, e v", QKV, _uneven),
    "in groups": ("g*(p+1+1)*d e -> e g*p d, e g d, e g d", GROUPED, _in_groups),
}


@pytest.mark.parametrize("case", FUSED)
def test_a_fused_leaf_spells_its_axes_and_those_of_its_parts(case: str) -> None:
    axes, whole, oracle = FUSED[case]
    parts = {name: np.ascontiguousarray(oracle(at)) for at, name in enumerate("qkv")}
    sizes = None if case != "of other sizes" else {"q": (8, 20), "k": (8, 8), "v": (8, 8)}
    assert sizes is None or {name: part.shape for name, part in parts.items()} == sizes
    old, new = {"params": {"qkv": whole}}, {"params": parts}
    lens = cs.adapt(old, new, rules=[cs.fuse("qkv", ["q", "k", "v"], axes=axes)])
    cs.assert_trees_identical(lens.get(old), new)
    cs.assert_trees_identical(lens.put(new), old)


@pytest.mark.parametrize("case", [*JOINED, *FUSED])
def test_a_lens_with_spelled_axes_is_written_as_text(case: str) -> None:
    if case in JOINED:
        axes, old, _, shape = JOINED[case]
        trees = {"a": {"w": old}}, {"b": {"w": leaf(*shape)}}
        rule = cs.rename("a/w", "b/w", axes=axes)
    else:
        axes, old, oracle = FUSED[case]
        trees = {"qkv": old}, {name: oracle(at) for at, name in enumerate("qkv")}
        rule = cs.fuse("qkv", ["q", "k", "v"], axes=axes)
    lens = cs.derive(*map(cs.infer, trees), rules=[rule])
    written: dict[str, Any] = {}
    exec(cs.to_source(lens), written)
    cs.assert_trees_identical(written["lens"].get(trees[0]), lens.get(trees[0]))
    assert str(cs.from_json(cs.to_json(lens), cs.Lens)) == str(lens)


def _stacked(axis: int) -> tuple[dict, dict]:
    """A stack with its optimizer against a list with its own."""
    tx = optax.adamw(1e-3)
    layers = [{"wq": leaf(12, 8) + 1000 * at, "up": leaf(8, 6) + at} for at in range(3)]
    stack = {"q": np.stack([layer["wq"].T.reshape(8, 3, 4) for layer in layers], axis)}
    stack["up"] = np.stack([layer["up"] for layer in layers], axis)
    old = {f"block_{at}": layer for at, layer in enumerate(layers)}
    new = {"layers": stack}
    return (
        {"params": old, "opt_state": tx.init(old)},
        {"params": new, "opt_state": tx.init(new)},
    )


RULES = [
    cs.rename("block[]", "layers[]"),
    cs.rename("block[]/wq", "layers[]/q", axes="h*d e -> e h d"),
]


def test_stacks_and_moments_follow() -> None:
    old, new = _stacked(axis=1)
    lens = cs.adapt(old, new, rules=RULES, scan={"layers": 1}, lists=["block_{i}"])
    cs.assert_trees_identical(lens.get(old)["params"], new["params"])
    moment = lens.get(old)["opt_state"][0].mu["layers"]["q"]
    assert moment.shape == (8, 3, 3, 4)
    cs.assert_trees_identical(lens.put(lens.get(old)), old)


class TestSpelledLens(LensLaws):
    """The oracle of the law suite has never heard of how the lens goes about it."""

    lens = cs.adapt(*_stacked(axis=0), rules=RULES, scan={"layers": 0}, lists=["block_{i}"])
    test_restore = thorough_only(LensLaws.test_restore)
    test_save_restore = thorough_only(LensLaws.test_save_restore)


def test_one_rule_speaks_of_many_leaves_whose_sizes_differ() -> None:
    old = {"params": {"one": {"w": leaf(12, 8)}, "two": {"w": leaf(10, 4)}}}
    new = {"params": {"one": {"k": leaf(8, 3, 4)}, "two": {"k": leaf(4, 5, 2)}}}
    lens = cs.adapt(old, new, rules=[cs.rename("*/w", "*/k", axes="h*d e -> e h d")])
    found = lens.get(old)["params"]
    np.testing.assert_array_equal(found["one"]["k"], leaf(12, 8).T.reshape(8, 3, 4))
    np.testing.assert_array_equal(found["two"]["k"], leaf(10, 4).T.reshape(4, 5, 2))


WRONG = {
    "h*d e -> e h x": "found x behind the arrow",
    "h*d e f -> e h d": "found f before the arrow alone",
    "h*h e -> e h": "found h again",
    "3*d e -> e d": "expected the same numbers on both sides",
    "2*d e*2 -> e d 2 2": "expected each number once on each side",
    "q+k e -> e q+k": "expected names and products of them",
    "-> e h d": "on both sides of an arrow",
    "h*d e -> e h d, e h d": "expected axes for each of 1 leaves",
}


@pytest.mark.parametrize("axes", WRONG)
def test_what_is_no_spelling_says_so(axes: str) -> None:
    with pytest.raises(cs.SchemaError) as caught:
        cs.rename("a", "b", axes=axes)
    assert WRONG[axes] in str(caught.value)


UNFIT = {
    "h*d e f -> e h d f": "spells 3 axes, and the leaf has 2",
    "e h*d -> h e d": "the sizes differ",
    "a*b c -> c b*a 1": "no axis of either side tells the size of a and b",
}


@pytest.mark.parametrize("axes", UNFIT)
def test_a_spelling_that_does_not_fit_its_leaf_says_so(axes: str) -> None:
    old, new = {"params": {"a": leaf(12, 8)}}, {"params": {"b": leaf(8, 3, 4)}}
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(old, new, rules=[cs.rename("a", "b", axes=axes)])
    assert UNFIT[axes] in str(caught.value)


def test_a_class_that_declares_its_axes_is_not_spelled_again() -> None:
    from jaxtyping import Array, Float32

    class Old(cs.Schema):
        a: Float32[Array, "heads*dim embed"]

    class New(cs.Schema):
        b: Float32[Array, "embed heads dim"]

    with pytest.raises(cs.DerivationError, match="a class declares its axes already"):
        cs.derive(Old, New, rules=[cs.rename("a", "b", axes="h*d e -> e h d")])


def test_what_splits_an_axis_is_offered() -> None:
    old, new = {"params": {"q": leaf(8, 12)}}, {"params": {"q": leaf(8, 3, 4)}}
    with pytest.raises(cs.DerivationError) as caught:
        cs.adapt(old, new)
    line = "rename('q', 'q', axes='a b*c -> a b c')"
    assert line in str(caught.value)
    lens = cs.adapt(old, new, rules=[cs.rename("q", "q", axes="a b*c -> a b c")])
    np.testing.assert_array_equal(lens.get(old)["params"]["q"], leaf(8, 12).reshape(8, 3, 4))
    assert jax.tree.structure(lens.put(new)) == jax.tree.structure(old)

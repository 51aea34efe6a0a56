"""How leaves are cut: layers and parts of one number, leaves of the shape of a fused one, and choices that come out even."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ckpt_schema as cs
from ckpt_schema.discovery import discover
from ckpt_schema.discovery._even_choices import PieceOption, even_choices
from ckpt_schema.discovery._leaf_ways import cuts_into, forms_of_cuts

LAYERS, WIDTH, HEADS, HEAD = 3, 7, 2, 5
X = jnp.linspace(-1.0, 1.0, 4 * WIDTH).reshape(4, WIDTH)


def attention(y: Any, kernels: Sequence[Any], biases: Sequence[Any], out: Any) -> Any:
    """Three projections, no two of which play one role; each bias matters."""
    parts = zip(kernels, biases, strict=True)
    q, k, v = (jnp.einsum("te,ehd->thd", y, kernel) + bias for kernel, bias in parts)
    weights = jnp.tanh(jnp.einsum("qhd,khd->hqk", q, k) / 4)
    return jnp.einsum("hqk,khd,hde->qe", weights, jnp.tanh(v), out) / 4


def scanned(p: Any) -> Any:
    """Layers in stacks, their projections apart."""
    y = X
    stack = p["encoder"]
    for layer in range(LAYERS):
        kernels = [stack[name]["kernel"][layer] for name in ("query", "key", "value")]
        biases = [stack[name]["bias"][layer] for name in ("query", "key", "value")]
        y = y + attention(y, kernels, biases, stack["out"][layer])
    return y


def listed(p: Any) -> Any:
    """The same layers in a list, their projections in one leaf."""
    y = X
    for layer in p["blocks"]:
        kernels, biases = jnp.moveaxis(layer["qkv"], 1, 0), layer["shift"]
        y = y + attention(y, [*kernels], [*biases], layer["proj"])
    return y


def drawn(shapes: Any, seed: int = 0) -> Any:
    """Random values in each leaf."""
    random = np.random.default_rng(seed)

    def value(shape: tuple[int, ...]) -> Any:
        return (random.normal(size=shape) / 3).astype("float32")

    return jax.tree.map(value, shapes, is_leaf=lambda node: isinstance(node, tuple))


def test_as_many_layers_as_parts_are_told_apart() -> None:
    """Three stacks of three layers, and three leaves of three parts: none of them is a leaf of the other side."""
    part = {"kernel": (LAYERS, WIDTH, HEADS, HEAD), "bias": (LAYERS, HEADS, HEAD)}
    stack = dict.fromkeys(("query", "key", "value"), part)
    old = drawn({"encoder": {**stack, "out": (LAYERS, HEADS, HEAD, WIDTH)}})
    layer = {
        "qkv": (WIDTH, 3, HEADS, HEAD),
        "shift": (3, HEADS, HEAD),
        "proj": (HEADS, HEAD, WIDTH),
    }
    found = discover(scanned, old, listed, {"blocks": drawn([layer] * LAYERS)})
    assert found.status == "complete", str(found)
    new = found.lens().get(old)
    wanted = [old["encoder"][name]["bias"][1] for name in ("query", "key", "value")]
    np.testing.assert_array_equal(new["blocks"][1]["shift"], np.stack(wanted))
    blocks = [new["blocks"][layer] for layer in range(LAYERS)]
    np.testing.assert_allclose(listed({"blocks": blocks}), scanned(old), atol=1e-5)
    cs.assert_trees_identical(found.lens().put(new), old)


def test_a_leaf_of_the_shape_of_a_fused_one_is_one_leaf() -> None:
    """All leaves of one shape are cut alike, but no rule says of one leaf that it is four parts of another."""
    inner = 4 * WIDTH
    gates = {f"gate_{word}": (WIDTH, WIDTH) for word in "abcd"}

    def apart(p: Any) -> Any:
        a, b, c, d = (X @ p[f"gate_{word}"] for word in "abcd")
        y = jnp.tanh(a) * b + jnp.sin(c) * jax.nn.sigmoid(d)
        return jnp.tanh(jax.nn.silu(y @ p["up"]) @ p["down"])

    def fused(p: Any) -> Any:
        a, b, c, d = jnp.split(X @ p["cell"], 4, axis=1)
        y = jnp.tanh(a) * b + jnp.sin(c) * jax.nn.sigmoid(d)
        return jnp.tanh(jax.nn.silu(y @ p["wide"]) @ p["narrow"])

    old = drawn({**gates, "up": (WIDTH, inner), "down": (inner, 5)})
    view = {"cell": (WIDTH, inner), "wide": (WIDTH, inner), "narrow": (inner, 5)}
    found = discover(apart, old, fused, drawn(view))
    assert found.status == "complete", str(found)
    new = found.lens().get(old)
    np.testing.assert_array_equal(new["wide"], old["up"])
    cs.assert_trees_identical(found.lens().put(new), old)
    # It is told as one leaf too, and of the four that are fused each has a line.
    told = {str(each.view): str(each.sources[0]) for each in found.pairings}
    assert told["wide"] == "up" and told["narrow"] == "down"
    assert {*gates} == {source for view, source in told.items() if view.startswith("cell")}
    assert len(told) == len(found.pairings) == 6


# --- Choices that come out even  ---


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

"""Dims of one name at both ends of composed lenses, which the layout between them does not have, are two things."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_combinations import schema

import ckpt_schema as cs
from ckpt_schema.testing import check_laws

Padded, Plain = schema("Padded", w="padded embed"), schema("Plain", w="vocab embed")
Turned = schema("Turned", w="embed padded")
PAD = cs.pad("w", "vocab", "padded", 9)
W = np.arange(6, dtype="float32").reshape(3, 2)


def padded(rows: int) -> np.ndarray[Any, Any]:
    return np.pad(W, ((0, rows - 3), (0, 0)), constant_values=9)


def test_each_end_is_padded_to_its_own_size() -> None:
    first, second = cs.derive(Padded, Plain, rules=[PAD]), cs.derive(Plain, Turned, rules=[PAD])
    lens = first >> second
    assert lens.view.names() == {"embed", "padded_view"}
    made = {"w": np.ascontiguousarray(padded(6).T)}
    ours = {"w": padded(4)}
    known = first.bind(vocab=3, padded=4) >> second.bind(vocab=3, padded=6)
    assert known.dims == {"vocab": 3, "padded": 4, "padded_view": 6}
    cs.assert_trees_identical(known.get(ours), made)
    cs.assert_trees_identical(known.put(made), ours)
    cs.assert_trees_identical((~known).get(made), ours)
    second.bind(vocab=3, padded=6).get(first.bind(vocab=3, padded=4).get(ours))  # as in turn
    check_laws(known, ["GetPut", "PutGet", "Naming"], max_examples=3)


def test_layers_too() -> None:
    layer = schema("Layer", w="a")
    few, many = (
        schema(f"L{n}", layers=(list[layer], cs.field(length=n))) for n in ("depth", "more")
    )
    grown = cs.private("layers[]", 0.0, small="depth", large="more")
    lens = ~cs.derive(few, many, rules=[grown]) >> cs.derive(few, many, rules=[grown])
    lens = lens.bind(more=3, more_view=4)
    assert "more_view" in lens.view.names() and "more_view" not in lens.source.names()


def test_copies_too() -> None:
    many, once = schema("Many", w="kv*rep embed"), schema("Once", w="kv embed")
    rule = cs.repeat("w", "rep")
    first, second = cs.derive(many, once, rules=[rule]), cs.derive(once, many, rules=[rule])
    lens = first.bind(kv=3, rep=2) >> second.bind(rep=4)
    assert lens.dims == {"kv": 3, "rep": 2, "rep_view": 4}
    made = lens.get({"w": np.repeat(W, 2, 0)})
    cs.assert_trees_identical(made, {"w": np.repeat(W, 4, 0)})


def test_what_both_ends_have_in_common_is_one_thing() -> None:
    lens = cs.derive(Plain, Padded, rules=[PAD])
    assert (lens >> ~lens).view.names() == {"embed", "vocab"}
    cs.assert_trees_identical((lens >> ~lens).bind(vocab=3).get({"w": W}), {"w": W})


def test_what_the_layout_between_has_is_one_thing() -> None:
    lens = cs.derive(Padded, Turned)
    assert (lens >> ~lens).view.names() == {"embed", "padded"}
    with pytest.raises(cs.DerivationError, match="as in the first"):
        _ = lens.bind(padded=3) >> (~lens).bind(padded=4)

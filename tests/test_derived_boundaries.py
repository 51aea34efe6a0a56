"""Where sizes alone say which elements meet: `derive` and `>>` give the cells, or an error with the sizes that decide it.

The cells themselves, and what a middle loses, are in `cells/test_boundaries.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from test_combinations import schema

import ckpt_schema as cs


def layers(*levels: str, name: str = "layers") -> Any:
    """A schema of lists in one another, of so many items each, the outermost first."""
    node: Any = schema("Layer", w="e")
    for level, length in [*enumerate(levels)][::-1]:
        attribute = "each" if level else name
        node = schema("Node", **{attribute: (list[node], cs.field(length=length))})
    return node


def parts(**axes: str) -> Any:
    return schema("Parts", **axes)


FUSE_QK, FUSE_BC = cs.fuse("m", ["q", "k"]), cs.fuse("m", ["b", "c"])
OPEN: dict[str, tuple[Any, Any, list[Any], dict[str, int]]] = {
    "q|kv against kv|q": (
        parts(q="q", k="kv"),
        parts(b="kv", c="q"),
        [FUSE_QK, FUSE_BC],
        {"q": 3, "kv": 2},
    ),
    "layers in 6*a and in 4*b, as one dim": (
        layers("2*k", "6"),
        layers("3*k", "4"),
        [],
        {},
    ),
}


def given(error: cs.DerivationError) -> set[str]:
    """The sizes that an error asks for."""
    return set(re.findall(r'"(\w+)": \.\.\.', str(error)))


def test_cuts_that_sizes_do_not_order_are_named_and_decided_by_dims() -> None:
    source, view, rules, sizes = OPEN["q|kv against kv|q"]
    with pytest.raises(cs.DerivationError, match="the sizes decide it") as caught:
        cs.derive(source, view, rules=rules)
    assert given(caught.value) == set(sizes)
    lens = cs.derive(source, view, rules=rules, dims=sizes)
    assert sum(len(join.cells) for join in lens.joins) == 3


def test_some_of_the_sizes_are_not_enough() -> None:
    source, view, rules, _ = OPEN["q|kv against kv|q"]
    with pytest.raises(cs.DerivationError, match="the sizes decide it"):
        cs.derive(source, view, rules=rules, dims={"q": 3})


def test_the_same_cuts_in_a_composition() -> None:
    whole = schema("Whole", m="q+kv")
    turned = schema("Whole", m="kv+q")
    first = cs.derive(parts(q="q", k="kv"), whole, rules=[FUSE_QK])
    second = cs.derive(turned, parts(b="kv", c="q"), rules=[FUSE_BC])
    with pytest.raises(cs.DerivationError, match="are not one layout"):
        first >> second  # declared as different sums, they are different leaves


def test_blocks_of_6_against_blocks_of_4_are_decided_for_all_sizes() -> None:
    source, view, _, _ = OPEN["layers in 6*a and in 4*b, as one dim"]
    (join,) = cs.derive(source, view).joins
    assert len(join.cells) == 4


@pytest.mark.parametrize(
    ("source", "view"),
    [(("6", "a"), ("4", "b")), (("heads",), ("kv", "rep"))],
    ids=["6*a against 4*b", "heads against kv*rep"],
)
def test_counts_that_are_not_one_name_what_to_declare(
    source: Sequence[str], view: Sequence[str]
) -> None:
    with pytest.raises(cs.DerivationError, match="count them with the same dim"):
        cs.derive(layers(*source), layers(*view), rules=_listed(source, view))


def test_heads_against_groups_of_heads_are_one_where_that_is_told() -> None:
    heads, groups = schema("Heads", w="heads dim"), schema("Groups", w="kv rep dim")
    with pytest.raises(cs.DerivationError, match="must have the same factors"):
        cs.derive(schema("A", body=heads), schema("B", body=groups))
    told = schema("A", body=(heads, cs.field(dims={"heads": "kv*rep"})))
    (join,) = cs.derive(told, schema("B", body=groups)).joins
    assert len(join.cells) == 1


def _listed(source: Sequence[str], view: Sequence[str]) -> list[Any]:
    if len(source) == len(view):
        return []
    return [cs.series("layers[]/each[]", name="layers[]")]


def test_a_rest_may_be_of_none() -> None:
    layer = schema("Layer", w="e")
    body = schema(
        "Nodes",
        blocks=(schema("B", each=(list[layer], cs.field(length="6"))), cs.field(scan="n", axis=0)),
        rest=(list[layer], cs.field(length="rest")),
    )
    several = type("Series", (body,), {"layers": cs.series("blocks[]/each[]", "rest[]")})
    lens = cs.derive(several, layers("6*n+rest"))
    back = lens >> ~lens
    assert not any(len(join.cells) != 1 for join in back.joins), "there and back only moves"


def test_a_pad_that_the_next_lens_cuts_with_another_fill_is_an_error() -> None:
    plain, padded = schema("Plain", w="n"), schema("Padded", w="more")
    first = cs.derive(plain, padded, rules=[cs.pad("w", "n", "more", 0)])
    second = cs.derive(padded, plain, rules=[cs.pad("w", "n", "more", 1)])
    with pytest.raises(cs.DerivationError, match="one fill in the padding"):
        first >> second

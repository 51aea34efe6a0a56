"""Dimension strings, and the binding of their names to sizes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_schema._layouts import dims
from ckpt_schema._layouts.dims import Binder, parse_dims
from ckpt_schema.errors import SchemaError

NAMES = st.sampled_from(["embed", "heads", "head_dim", "mlp", "x_1", "B"])
FACTORS = st.one_of(NAMES, st.integers(0, 999))
PRODUCTS = st.lists(FACTORS, min_size=1, max_size=3).map(tuple)
SUMS = st.lists(PRODUCTS, min_size=1, max_size=3).map(dims.add)
NESTED = st.lists(st.one_of(PRODUCTS, SUMS), min_size=1, max_size=3).map(
    lambda factors: tuple(factor for each in factors for factor in each)
)
DIMS = st.lists(st.lists(NESTED, min_size=1, max_size=3).map(dims.add), max_size=4).map(tuple)


@given(DIMS)
def test_parsing_undoes_formatting(parsed: dims.Dims) -> None:
    assert parse_dims(dims.format_dims(parsed)) == parsed


def test_order_of_factors_is_kept_and_blanks_do_not_matter() -> None:
    assert parse_dims(" embed  3*heads*head_dim ") == (("embed",), (3, "heads", "head_dim"))
    assert parse_dims("") == ()
    assert dims.factors(parse_dims("a 2*b")) == ("a", 2, "b")


def test_a_sum_in_parentheses_is_a_factor() -> None:
    (axis,) = parse_dims("groups*(per+2)*dim")
    assert axis == ("groups", dims.Sum((("per",), (2,))), "dim")
    assert dims.size_of(axis, {"groups": 3, "per": 4, "dim": 5}) == 90
    assert parse_dims("(a) (a*b) a*(b) (3+4)*a ((a+b))") == parse_dims("a a*b a*b 7*a a+b")
    assert dims.format_dims(parse_dims("a+(b+c) a*((b+1)*c+2)")) == "a+b+c a*((b+1)*c+2)"


def test_a_name_in_parentheses_is_solved_for() -> None:
    binder = Binder({"groups": 3, "dim": 5})
    binder.see(parse_dims("groups*(per+2)*dim"), (90,), "w")
    assert binder.sizes["per"] == 4


@pytest.mark.parametrize(
    "axis",
    [
        "...",
        "(a",
        "a)",
        "()",
        "(a+)",
        "a(b)",
        "(a)(b)",
        "(" * 3000 + "a",
        "a.b",
        "*batch",
        "#embed",
        "_",
        "_embed",
        "_*",
        "embed-1",
        "embed+",
        "embed++1",
        "2*",
        "*",
        "a**b",
        "?x",
        "a=3",
        "heads/2",
        "heads*_",
    ],
)
def test_an_axis_without_a_size_is_an_error_that_names_it(axis: str) -> None:
    with pytest.raises(SchemaError, match="no dimension string") as caught:
        parse_dims(f"embed {axis} mlp")
    (fault,) = caught.value.mismatches
    assert fault.found == repr(axis)
    assert fault.kind == "declaration"
    assert "3*heads*head_dim" in fault.hint


def test_sizes_print_beside_the_dims_they_belong_to() -> None:
    text = dims.format_dims(parse_dims("embed 3*heads 4 depth"), {"embed": 512, "heads": 2})
    assert text == "embed=512 3*heads=6 4 depth"


def test_a_name_binds_once_and_says_where() -> None:
    binder = Binder()
    binder.see(parse_dims("embed mlp"), (4, 8), "a")
    binder.see(parse_dims("mlp embed"), (9, 5), "b")
    assert binder.sizes == {"embed": 4, "mlp": 8}
    assert binder.notes() == ["dims: embed=4 (from a), mlp=8 (from a)"]
    assert binder.notes({"mlp"}) == ["dims: mlp=8 (from a)"]
    assert Binder().notes() == []


def test_what_is_given_is_not_bound_anew() -> None:
    binder = Binder({"embed": 3})
    binder.see(parse_dims("embed"), (4,), "a")
    assert binder.sizes == {"embed": 3}
    assert binder.notes() == ["dims: embed=3 (from argument)"]


@given(heads=st.integers(1, 64), width=st.integers(1, 64), first=st.booleans())
def test_a_product_is_solved_for_its_one_unbound_factor_whatever_the_order(
    heads: int, width: int, first: bool
) -> None:
    binder = Binder()
    product, single = (
        (parse_dims("3*heads*width"), (3 * heads * width,), "p"),
        (parse_dims("heads"), (heads,), "s"),
    )
    for sight in (single, product) if first else (product, single):
        binder.see(*sight)
    binder.settle()
    assert binder.sizes == {"heads": heads, "width": width}
    assert binder.origins["width"] == "p"


@given(
    heads=st.integers(1, 64), kv=st.integers(0, 64), blocks=st.integers(1, 64), first=st.booleans()
)
def test_a_sum_is_solved_for_its_one_unbound_name_whatever_the_order(
    heads: int, kv: int, blocks: int, first: bool
) -> None:
    binder = Binder()
    sights = [
        (
            parse_dims("2*heads+3*kv*heads 6*blocks+2"),
            (2 * heads + 3 * kv * heads, 6 * blocks + 2),
            "s",
        ),
        (parse_dims("heads"), (heads,), "h"),
    ]
    for sight in sights if first else sights[::-1]:
        binder.see(*sight)
    binder.settle()
    assert binder.sizes == {"heads": heads, "kv": kv, "blocks": blocks}
    assert binder.size(parse_dims("2*heads+3*kv*heads")[0]) == 2 * heads + 3 * kv * heads


def test_what_was_seen_of_a_dim_counts_while_it_is_open() -> None:
    binder = Binder({"rest": 2})
    binder.see(parse_dims("a+b 6*c+rest"), (7, 25), "p")
    binder.settle()
    assert binder.sizes == {"rest": 2}
    assert [binder.copy().size(dim) for dim in parse_dims("a+b 6*c+rest rest+2 a")] == [
        7,
        25,
        4,
        None,
    ]


def test_products_settle_through_one_another() -> None:
    binder = Binder()
    binder.see(parse_dims("a*b*c"), (30,), "p")
    binder.see(parse_dims("a*b"), (6,), "q")
    binder.see(parse_dims("a"), (2,), "r")
    binder.settle()
    assert binder.sizes == {"a": 2, "b": 3, "c": 5}


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("3*heads", (7,)),
        ("heads*heads", (9,)),
        ("0*heads", (0,)),
        ("a*b", (6,)),
        ("a+b", (6,)),
        ("a+7", (6,)),
        ("2*a+7", (8,)),
    ],
)
def test_what_does_not_follow_is_not_guessed(text: str, shape: tuple[int, ...]) -> None:
    binder = Binder()
    binder.see(parse_dims(text), shape, "p")
    binder.settle()
    assert binder.sizes == {}


def test_credit_names_the_tree_that_sizes_came_from() -> None:
    binder = Binder({"depth": 2})
    binder.see(parse_dims("embed"), (4,), "a/b")
    binder.credit("Linen")
    binder.see(parse_dims("mlp"), (8,), "c")
    assert binder.origins == {"depth": "argument", "embed": "a/b of Linen", "mlp": "c"}


@given(DIMS, st.dictionaries(NAMES, st.integers(0, 9)))
def test_sizes_are_products_of_known_factors(parsed: dims.Dims, sizes: dict[str, int]) -> None:
    shape = dims.sizes_of(parsed, sizes)
    unbound = dims.dim_names(parsed) - sizes.keys()
    assert (shape is None) == bool(unbound)
    if shape is not None:
        text = [
            re.sub(r"[A-Za-z_]\w*", lambda m: str(sizes[m[0]]), dims.format_dim(dim))
            for dim in parsed
        ]
        assert shape == tuple(eval(product) for product in text)


def test_renaming_replaces_names_inside_products_and_can_fix_them() -> None:
    assert dims.renamed_dims(parse_dims("a 3*b*a"), {"a": "x", "b": 7}) == (("x",), (3, 7, "x"))
    assert dims.renamed_dims(parse_dims("a b"), {"a": "b", "b": "a"}) == (("b",), ("a",))
    assert dims.renamed_dims(parse_dims("a*c+b"), {"a": 2, "b": 1, "c": 3}) == ((7,),)
    assert dims.format_dims(dims.renamed_dims(parse_dims("3*a"), {"a": "b+c"})) == "3*(b+c)"

"""Lenses of any float, one after the other: the layout between them is of the floats that come in."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, BFloat16, Float, Float32, Int32

import ckpt_schema as cs

FLOATS = ("float32", "bfloat16", "float16")


class A(cs.Schema):
    qkv: Float[Array, "3*heads*dim embed"]
    scale: Float[Array, " embed"]


class M(cs.Schema):
    q: Float[Array, "embed heads dim"]
    k: Float[Array, "embed heads dim"]
    v: Float[Array, "embed heads dim"]
    scale: Float[Array, " embed"]


class C(cs.Schema):
    q: Float[Array, "heads dim embed"]
    kv: Float[Array, "2 heads dim embed"]
    scale: Float[Array, " embed"]


CAST = cs.cast("**", rounding="nearest")
FIRST = cs.derive(A, M, rules=[cs.fuse("qkv", ["q", "k", "v"]), CAST], dims={"heads": 2})
SECOND = cs.derive(M, C, rules=[cs.fuse("kv", ["k", "v"]), cs.scale("q", 3.0), CAST])
BOTH = FIRST >> SECOND


def given(qkv: str, scale: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "qkv": random.normal(size=(3 * 2 * 4, 5)).astype(np.float32).astype(jnp.dtype(qkv)),
        "scale": random.normal(size=5).astype(np.float32).astype(jnp.dtype(scale)),
    }


def same(found: Any, wanted: Any) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        one, other = np.asarray(found[key]), np.asarray(value)
        assert (one.dtype, one.shape) == (other.dtype, other.shape), key
        assert one.tobytes() == other.tobytes(), key


@pytest.mark.parametrize("after", FLOATS)
@pytest.mark.parametrize("before", FLOATS)
def test_the_composite_is_both_in_turn(before: str, after: str) -> None:
    tree = given(before, "float16")
    names = {"**": before, "scale": "float16"}
    between = FIRST.get(tree, dtype=names)
    wanted = SECOND.get(between, dtype=after)
    found = BOTH.get(tree, dtype=after)
    same(found, wanted)
    if "float32" in (before, after):  # then it is scaled in that, which is the wider one
        q = tree["qkv"].reshape(3, 2, 4, 5)[0].astype(np.float32) * np.float32(3.0)
        assert np.asarray(found["q"]).tobytes() == q.astype(jnp.dtype(after)).tobytes()
    same(BOTH.put(found, onto=tree), tree)
    middle = {"**": before, "scale": "float16"}
    end = {"qkv": before, "scale": "float16"}
    back = FIRST.put(SECOND.put(found, dtype=middle), dtype=end)
    same(BOTH.put(found, dtype=end), back)


def test_it_is_the_composite_of_these_dtypes() -> None:
    sides = {"qkv": "bfloat16", "scale": "float32"}, {"**": "float16"}
    middle = {"**": "bfloat16", "scale": "float32"}
    closed = FIRST.at(source=sides[0], view=middle) >> SECOND.at(source=middle, view=sides[1])
    bound = BOTH.at(source=sides[0], view=sides[1])
    assert str(bound) == str(closed)
    assert str(~bound) == str(~closed)
    assert str((~BOTH).at(source=sides[1], view=sides[0])) == str(~closed)
    assert str(BOTH.at(view=sides[1]).at(source=sides[0])) == str(closed)


def test_an_end_that_is_fixed_binds_what_is_between() -> None:
    fixed = cs.layout(A, dtype="bfloat16")
    first = cs.derive(fixed, M, rules=[cs.fuse("qkv", ["q", "k", "v"])], dims={"heads": 2})
    second = cs.derive(M, cs.layout(C, dtype="float32"), rules=[cs.fuse("kv", ["k", "v"])])
    both = first >> second
    assert not both.is_open
    assert not any(
        row.leaf.is_open for step in both.derivations for table in step.ends for row in table.rows
    )
    tree = given("bfloat16", "bfloat16")
    same(both.get(tree), second.get(first.get(tree, dtype="bfloat16")))
    same(both.put(both.get(tree)), tree)


def test_what_one_lens_declares_of_the_middle_holds_for_the_other() -> None:
    class Narrow(cs.Schema):
        scale: BFloat16[Array, " embed"]

    class Wide(cs.Schema):
        scale: Float[Array, " embed"]

    first, second = cs.derive(Wide, Wide, rules=[CAST]), cs.derive(Narrow, Wide)
    both = first >> second
    tree = {"scale": np.float32([1.001, -2.5, 1e-3])}
    rounded = tree["scale"].astype(jnp.bfloat16).astype(np.float32)
    same(both.get(tree, dtype="float32"), {"scale": rounded})
    same((~both).put({"scale": tree["scale"]}, dtype="float32"), {"scale": rounded})
    # And the other way round: the first lens says it.
    other = cs.derive(Wide, Narrow, rules=[CAST]) >> cs.derive(Wide, Wide)
    same(other.get(tree, dtype="float32"), {"scale": rounded})


def test_three_in_any_order_are_one() -> None:
    steps = [cs.derive(A, A, rules=[CAST]), FIRST, SECOND]
    one = (steps[0] >> steps[1]) >> steps[2]
    other = steps[0] >> (steps[1] >> steps[2])
    assert str(one) == str(other)
    said = {"source": "float32", "view": "bfloat16"}
    assert str(one.at(**said)) == str(other.at(**said))
    tree = given("float32", "bfloat16")
    same(one.get(tree, dtype="float16"), other.get(tree, dtype="float16"))
    same(
        functools.reduce(lambda a, b: a >> b, steps).get(tree, dtype="float16"),
        one.get(tree, dtype="float16"),
    )


def test_dims_that_are_told_apart_stay_so() -> None:
    class Padded(cs.Schema):
        table: Float[Array, "padded embed"]

    class Plain(cs.Schema):
        table: Float[Array, "vocab embed"]

    rule = [cs.pad("table", "vocab", "padded")]
    there, back = cs.derive(Padded, Plain, rules=rule), cs.derive(Plain, Padded, rules=rule)
    both = (there >> back).bind(padded_view=9)
    tree = {"table": np.zeros((7, 3), np.float32)}
    tree["table"][:5] = np.arange(15).reshape(5, 3)
    for lens in (both, both.at(source="float32", view="bfloat16")):
        found = lens.bind(vocab=5).get(tree, **({"dtype": "bfloat16"} if lens is both else {}))
        assert (found["table"].shape, str(found["table"].dtype)) == ((9, 3), "bfloat16")
        assert np.array_equal(np.asarray(found["table"], np.float32)[:5], tree["table"][:5])
    for turned in (~both, (~both).at(source="bfloat16", view="float32")):
        assert turned.source.names() == {"padded_view", "embed"}
        said = {"dtype": "float32"} if turned.is_open else {}
        again = turned.bind(vocab=5, padded=7).get(found, **said)
        same(again, tree)


def test_layouts_that_are_not_one_are_told_as_they_were_declared() -> None:
    class Other(cs.Schema):
        q: Float[Array, "embed heads dim"]
        k: Float[Array, "heads embed dim"]
        v: Int32[Array, "embed heads dim"]
        scale: Float32[Array, " embed"]

    with pytest.raises(cs.DerivationError, match="not one layout") as caught:
        FIRST >> cs.derive(Other, Other)
    assert [(fault.path, fault.expected, fault.found) for fault in caught.value.mismatches] == [
        ("k", "Float[embed heads dim]", "Float[heads embed dim]"),
        ("v", "Float[embed heads dim]", "int32[embed heads dim]"),
    ]


def test_what_the_middle_alone_has_is_what_its_own_side_is() -> None:
    class Less(cs.Schema):
        scale: Float[Array, " embed"]

    class More(cs.Schema):
        scale: Float[Array, " embed"]
        bias: Float[Array, " embed"] = cs.field(default=0.5)

    both = cs.derive(Less, More) >> cs.derive(More, More)
    tree = {"scale": np.ones(3, np.float32)}
    found = both.get(tree, dtype={"**": "float32", "bias": "bfloat16"})
    same(found, {"scale": tree["scale"], "bias": np.full(3, 0.5, jnp.bfloat16)})


def test_the_print_says_what_is_open_at_the_ends() -> None:
    lines = [" ".join(line.split()) for line in str(BOTH).splitlines()]
    assert "scale scale Float -> Float" in lines
    assert not any("float32" in line for line in lines)


def test_one_copy_for_each_device_of_any_float() -> None:
    class Norm(cs.Schema):
        scale: Float[Array, " embed"]

    lens = cs.derive(Norm, Norm, rules=[cs.replicated(0)])
    tree = {"scale": np.ones((2, 3), jnp.bfloat16)}
    same(lens.get(tree, dtype="float32"), {"scale": np.ones(3, np.float32)})

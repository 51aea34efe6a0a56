"""What a lens loses: `Lens.loss`, and the laws of leaves that do not come back to the last bit."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, BFloat16, Float16, Float32, Int32
from support.profiles import thorough_only

import ckpt_schema as cs
from ckpt_schema._lens.arrays import execution, own_bits
from ckpt_schema._lens.arrays.conversions import converted
from ckpt_schema._lens.codecs import Exact, Plus, Rounded, Times, inverted
from ckpt_schema.testing import BrokenLawError, check_laws, weakened
from ckpt_schema.testing import _lossy as lossy


class Old(cs.Schema):
    q: Float32[Array, "embed heads*dim"]
    norm: Float32[Array, " embed"]
    layers: Float32[Array, "embed mlp"] = cs.field(scan="depth", axis=0)
    count: Int32[Array, ""]


class New(cs.Schema):
    q: Float32[Array, "heads dim embed"]
    norm: Float16[Array, " embed"]
    layers: list[BFloat16[Array, "mlp embed"]] = cs.field(length="depth")
    count: Int32[Array, ""]


RULES = [
    cs.scale("q", "dim ** -0.5"),
    cs.scale("norm", -0.3),
    cs.shift("norm", 1.0),
    cs.cast("**", rounding="nearest"),
    cs.scale("layers[]", 0.25),
]
LENS = cs.derive(Old, New, rules=RULES)
BF16 = np.dtype(jnp.bfloat16)
SIZES = {
    "embed": 3,
    "heads": 2,
    "dim": 2,
    "mlp": 2,
    "depth": 2,
}  # one size: programs are compiled once


def tried(lens: cs.Lens, *laws: str, **options: Any) -> None:
    check_laws(lens, laws, **{"sizes": SIZES, "max_examples": 3, "meshes": (), **options})


# --- What is lost ---


def test_a_loss_is_told_leaf_by_leaf_and_by_how_much() -> None:
    assert LENS.loss == {
        "q": "times dim ** -0.5 and back is rounded in float32: at most 2**-23 of each value",
        "norm": "times -0.3 and back is rounded in float32: at most 2**-23 of each value; "
        "plus 1.0 is rounded in float32: at most 2**-24 of the sum; float16 keeps 11 of the 24 bits "
        "of float32: at most 2**-11 of each value, or 2**-25 in all where it is below 2**-14",
        "layers[]": "bfloat16 keeps 8 of the 24 bits of float32: at most 2**-8 of each value",
    }
    assert not LENS.exact
    assert (~LENS).loss.keys() == LENS.loss.keys()


def test_a_table_marks_what_is_not_exact() -> None:
    header, q, _, _, count = str(LENS).splitlines()
    assert header.endswith("3 not exact (lens.loss says by how much)")
    assert q.endswith("times dim ** -0.5, not exact")
    assert "not exact" not in count


@pytest.mark.parametrize(
    "rules", [[], [cs.scale("q", 0.5)], [cs.scale("q", -2)], [cs.flip("q", "embed")]]
)
def test_what_is_undone_to_the_last_bit_is_exact(rules: list[Any]) -> None:
    lens = cs.derive(Old, Old, rules=rules)
    assert lens.exact and not lens.loss and not weakened(lens)
    assert "exact" not in str(lens)


def test_a_wider_float_is_exact_and_a_narrower_one_is_without_a_rule() -> None:
    class Wide(cs.Schema):
        q: Float32[Array, "embed"]

    class Narrow(cs.Schema):
        q: BFloat16[Array, "embed"]

    assert cs.derive(Narrow, Wide).exact and cs.derive(Wide, Narrow).exact
    rounded = cs.derive(Wide, Narrow, rules=[cs.cast("q", rounding="nearest")])
    assert not rounded.exact
    # A middle that has every value of both ends loses nothing.
    assert ((~rounded) >> rounded).exact


def test_parts_and_moments_have_losses_of_their_own() -> None:
    class Parts(cs.Schema):
        q: Float32[Array, "embed n"]
        k: Float32[Array, "embed n"]

    class Whole(cs.Schema):
        qk: Float32[Array, "embed 2*n"]

    tx = optax.sgd(0.1, momentum=0.9)
    sides = [cs.linen.BareTrainState[side, tx] for side in (Parts, Whole)]
    lens = cs.derive(*sides, rules=[cs.fuse("qk", ["q", "k"]), cs.scale("q", 0.3)])
    assert lens.loss.keys() == {"params/qk", "opt_state/0/trace/qk"}


@pytest.mark.parametrize(
    "codec",
    [
        (Rounded("float32", "bfloat16"),),
        (Rounded("bfloat16", "float32"),),
        (Times(0.3), Plus(1.0), Rounded("float32", "float16")),
        (Exact("bfloat16", "float32"), Times(-7.1), Plus(-3.0)),
        (Times(0.3, divides=True),),
    ],
)
def test_what_comes_back_is_within_the_bound_and_hardly_more_would_be(codec: Any) -> None:
    dtype = np.dtype("float32") if not isinstance(codec[0], Exact) else BF16
    dtype = BF16 if codec == (Rounded("bfloat16", "float32"),) else dtype
    value = np.random.default_rng(0).normal(size=400).astype(dtype)
    back = converted(converted(value, codec), inverted(codec))
    assert lossy.within_loss(value, back, codec).all()
    moved = (value.astype("float64") * 1.1 + np.sign(value)).astype(dtype)
    assert not lossy.within_loss(value, moved, codec).any()


# --- Laws ---


LAWS_TRIED = ("GetPut", "PutGet", "PutPut", "Naming", "SaveRestore")


@thorough_only
def test_the_laws_hold_of_leaves_that_are_rounded() -> None:
    """A sample; all of it is ``python tests/test_lossy_laws.py``."""
    tried(LENS, *LAWS_TRIED, max_examples=2, meshes=())


def test_the_laws_hold_where_the_way_back_refuses_what_only_its_own_bits_bring_back() -> None:
    class Small(cs.Schema):
        norm: BFloat16[Array, " embed"]

    class Large(cs.Schema):
        norm: Float32[Array, " embed"]

    lens = cs.derive(Small, Large, rules=[cs.shift("norm", 0.1)])
    tried(lens, "GetPut", "PutPut", "Values", sizes={"embed": 5})


def test_gradients_go_by_the_factor_and_do_not_know_the_amount() -> None:
    class Norm(cs.Schema):
        w: Float32[Array, "embed mlp"]

    inputs = np.linspace(-1, 2, 12).reshape(4, 3).astype("float32")

    def old(state: Any) -> Any:
        return jnp.tanh(inputs @ (state["w"] * 0.3 + 1.0))

    def new(state: Any) -> Any:
        return jnp.tanh(inputs @ state["w"])

    source = {"w": jnp.asarray(np.linspace(-2, 3, 6).reshape(3, 2), "float32")}
    rules = [cs.scale("w", 0.3), cs.shift("w", 1.0)]
    tried(cs.derive(Norm, Norm, rules=rules), "Function", source=source, outputs=(old, new))
    with pytest.raises(BrokenLawError):
        wrong = cs.derive(Norm, Norm, rules=rules[:1])
        tried(wrong, "Function", source=source, outputs=(old, new))


def test_the_laws_that_say_less_are_named() -> None:
    assert weakened(LENS).keys() == {"PutPut", "GetGet", "Naming", "SaveRestore"}


def test_put_put_is_not_bitwise_where_the_own_bits_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ckpt_schema.testing._laws.excused", lambda lens, found, expected: found)
    with pytest.raises(BrokenLawError) as caught:
        tried(LENS, "PutPut")
    assert "it is asked where w == get(s), up to the loss of s" in str(caught.value)


def test_a_lens_without_own_bits_breaks_get_put(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(task: Any, echoes: Any, values: Any, likes: Any, pool: Any, count: int) -> Any:
        del echoes, count
        return execution.run(task, values, likes, pool)

    monkeypatch.setattr(own_bits, "with_own_bits", plain)
    for law in ("GetPut", "PutGet"):
        with pytest.raises(BrokenLawError):
            tried(LENS, law)


@pytest.mark.parametrize("law", ["PutGet", "Naming"])
def test_a_lens_that_loses_more_than_it_says_is_found(
    law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = cs.derive(Old, Old, rules=[cs.scale("q", 0.3)])
    real = execution.run

    def coarse(task: Any, values: Any, likes: Any, pool: Any = ()) -> Any:
        made = real(task, values, likes, pool)
        return [x.astype("float16").astype(x.dtype) if x.dtype == "float32" else x for x in made]

    monkeypatch.setattr(execution, "run", coarse)
    with pytest.raises(BrokenLawError):
        tried(lens, law)


if __name__ == "__main__":
    from ckpt_schema.testing import virtual_devices

    virtual_devices(8)
    check_laws(LENS, sizes={"dim": (1, 4)})
    print("all laws hold")

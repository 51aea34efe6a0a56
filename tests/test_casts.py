"""Floats of one dtype on one side and of another one on the other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, BFloat16, Float16, Float32
from support.profiles import thorough_only

import ckpt_schema as cs
from ckpt_schema.testing import check_laws


class Disk(cs.Schema):
    """As a checkpoint keeps it."""

    w: BFloat16[Array, "embed mlp"]
    b: Float16[Array, " mlp"]
    n: Float32[Array, " mlp"]


class Train(cs.Schema):
    """As it is trained."""

    w: Float32[Array, "mlp embed"]
    b: Float32[Array, " mlp"]
    n: BFloat16[Array, " mlp"]


def test_the_laws_hold() -> None:
    check_laws(cs.derive(Disk, Train), max_examples=4)


@thorough_only
def test_the_laws_hold_in_the_model_and_its_moments() -> None:
    tx = optax.adam(1e-3)
    check_laws(cs.derive(cs.linen.TrainState[Disk, tx], cs.nnx.TrainState[Train, tx]))


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray], ids=["NumPy", "jax"])
def test_a_wider_float_has_every_bit_and_what_does_not_fit_is_refused(place: Any) -> None:
    words = np.array([0x7F81, 0xFFC1, 0x8000, 0x0001, 0x3F80, 0x7F80], "uint16")
    narrow = words.view(jnp.bfloat16)
    wide = (words.astype("uint32") << 16).view("float32")

    class One(cs.Schema):
        x: BFloat16[Array, " n"]

    class Other(cs.Schema):
        x: Float32[Array, " n"]

    lens = cs.derive(One, Other)
    assert np.asarray(lens.get({"x": place(narrow)})["x"]).tobytes() == wide.tobytes()
    back = np.asarray(lens.put({"x": place(wide)})["x"])
    assert back.tobytes() == narrow.tobytes()
    with pytest.raises(cs.ConformanceError, match=r"x  expected .*bfloat16.*1\.0000001"):
        lens.put({"x": place(np.float32([1, 1 + 2**-23]))})


def test_a_fused_leaf_has_parts_of_a_wider_dtype() -> None:
    class Apart(cs.Schema):
        q: BFloat16[Array, "embed heads"]
        k: Float32[Array, "embed kv"]

    class Fused(cs.Schema):
        qk: Float32[Array, "embed heads+kv"]

    rules = [cs.fuse("qk", ["q", "k"]), cs.scale("q", 0.5)]
    lens = cs.derive(Apart, Fused, rules=rules, dims={"heads": 2, "kv": 1})
    tree = {"q": jnp.ones((3, 2), "bfloat16"), "k": jnp.full((3, 1), 0.1)}
    made = lens.get(tree)["qk"]
    assert made.dtype == jnp.float32
    assert np.asarray(made[0]).tolist() == [0.5, 0.5, np.float32(0.1)]
    cs.assert_trees_identical(lens.put({"qk": made}), tree)

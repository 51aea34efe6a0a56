"""Every kind of leaf there is: all dtypes that jax has, scalars, empty arrays, Python numbers, NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from support.profiles import sampled

import ckpt_schema as cs
from ckpt_schema._layouts.leaves import Leaf
from ckpt_schema.testing import _laws as laws
from ckpt_schema.testing._values import hostile

FLOATS = sorted(
    name for name in dir(ml_dtypes) if name.startswith(("float8", "bfloat16", "float4"))
)
PLAIN = [
    "float16",
    "float32",
    "complex64",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32)),
]
DTYPES = [name for name in (*FLOATS, *PLAIN) if name in {str(jnp.dtype(name))}]
UNSTORED = {"uint2", "uint4", "float8_e4m3"}  # TensorStore has no such dtypes


def schemas(dtype: str) -> tuple[type[cs.Schema], type[cs.Schema]]:
    matrix, vector, scalar, empty = (
        Leaf(dims, dtype) for dims in ((("a",), ("b",)), (("b",),), (), (("a",), (0,)))
    )

    class Layer(cs.Schema):
        matrix: matrix  # type: ignore[valid-type]
        vector: vector  # type: ignore[valid-type]
        scalar: scalar  # type: ignore[valid-type]
        empty: empty | None  # type: ignore[valid-type]

    class Turned(Layer):
        matrix: Leaf((("b",), ("a",)), dtype)  # type: ignore[valid-type]

    class Stacked(cs.Schema):
        layers: Layer = cs.field(scan="n")

    class Listed(cs.Schema):
        layers: list[Turned] = cs.field(length="n")

    return Stacked, Listed


def bits(dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """Every bit pattern there is, where an element has no more than eight."""
    kind = jnp.dtype(dtype)
    if kind.itemsize > 1 or kind == np.bool_:
        return hostile(np.random.default_rng(1), dtype, shape)
    count = int(np.prod(shape))
    width = jnp.iinfo(kind).bits if jnp.issubdtype(kind, jnp.integer) else jnp.finfo(kind).bits
    if width < 8 and jnp.issubdtype(kind, jnp.integer):
        low = int(jnp.iinfo(kind).min)
        return (low + np.arange(count) % 2**width).astype(kind).reshape(shape)
    return (np.arange(count) % 2**width).astype("uint8").view(kind).reshape(shape)


def state(dtype: str, *, empty: bool = True) -> dict[str, Any]:
    layers = {
        "matrix": bits(dtype, 2, 8, 16),
        "vector": bits(dtype, 2, 16),
        "scalar": bits(dtype, 2),
    }
    layers |= {"empty": bits(dtype, 2, 8, 0)} if empty else {}
    return {"params": {"layers": jax.tree.map(jnp.asarray, layers)}}


def test_no_float_of_eight_bits_is_left_out() -> None:
    assert {
        "float8_e3m4",
        "float8_e4m3",
        "float8_e4m3b11fnuz",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
    } <= set(DTYPES)
    assert {"float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn", "bfloat16"} <= set(
        DTYPES
    )


# Of every dtype by itself, and of every kind of layout, the oracle tells: test_oracle.py.
@pytest.mark.parametrize("dtype", sampled(DTYPES, 3))
def test_no_bit_changes_on_the_way(dtype: str) -> None:
    stacked, listed = schemas(dtype)
    lens = cs.derive(cs.linen.Params[stacked], cs.nnx.Params[listed])
    tree = state(dtype)
    view = lens.get(tree)
    assert len(jax.tree.leaves(view)) == 8
    found = np.asarray(view["layers"][1]["matrix"].get_value())
    expected = np.asarray(tree["params"]["layers"]["matrix"])[1].T
    cs.assert_trees_identical(np.ascontiguousarray(found), np.ascontiguousarray(expected))
    laws.get_put(lens, tree)
    laws.put_get(lens, view)
    laws.abstraction(lens, tree, view)
    numpy = jax.tree.map(np.asarray, tree)
    cs.assert_trees_identical(
        jax.tree.map(np.asarray, lens.get(numpy)), jax.tree.map(np.asarray, view)
    )


@pytest.mark.parametrize("dtype", sampled(DTYPES, 5))
def test_what_orbax_stores_comes_back_and_what_it_cannot_is_refused_by_name(
    dtype: str, tmp_path: Path
) -> None:
    stacked, listed = schemas(dtype)
    lens = cs.derive(cs.linen.Params[stacked], cs.nnx.Params[listed])
    view = lens.get(state(dtype, empty=False))
    if dtype in UNSTORED:
        with pytest.raises(cs.ConformanceError) as caught:
            cs.orbax.save(tmp_path / "0", view, lens)
        assert {fault.path for fault in caught.value.mismatches} == {
            f"params/layers/{name}" for name in NAMES
        }
        assert all(fault.found.startswith(dtype) for fault in caught.value.mismatches)
        assert not any(tmp_path.iterdir())
        return
    cs.orbax.save(tmp_path / "0", view, lens)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), view)
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "0", target, lens), view)


NAMES = ("matrix", "vector", "scalar")


def test_an_empty_array_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    stacked, listed = schemas("float32")
    lens = cs.derive(cs.linen.Params[stacked], cs.nnx.Params[listed])
    with pytest.raises(
        cs.ConformanceError, match=r"params/layers/empty +expected at least one element"
    ):
        cs.orbax.save(tmp_path / "0", lens.get(state("float32")), lens)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (7, "int32"),
        (True, "bool"),
        (0.5, "float32"),
        (1 + 2j, "complex64"),
        (np.float32(-0.0), "float32"),
    ],
)
def test_numbers_are_leaves_and_stay_numbers(value: Any, dtype: str, tmp_path: Path) -> None:
    class One(cs.Schema):
        x: Leaf((), dtype)  # type: ignore[valid-type]
        w: Leaf((("n",),), "float32")  # type: ignore[valid-type]

    lens = cs.derive(cs.linen.Params[One], cs.nnx.Params[One])
    tree = {"params": {"x": value, "w": jnp.ones(3)}}
    view = lens.get(tree)
    cs.assert_trees_identical(lens.put(view, onto=tree), tree)
    if not isinstance(value, complex):  # Orbax knows no complex numbers, only arrays of them
        cs.orbax.save(tmp_path / "0", tree, lens)
        restored = cs.orbax.restore(
            tmp_path / "0", nnx.State({"x": nnx.Param(jnp.zeros((), dtype)), "w": view["w"]}), lens
        )
        assert restored["x"].get_value().dtype == dtype
        np.testing.assert_array_equal(
            np.signbit(np.asarray(restored["x"][...], "float32")), np.signbit(np.float32(value))
        )
        assert complex(restored["x"][...]) == value

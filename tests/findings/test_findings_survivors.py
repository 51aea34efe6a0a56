"""Faults of readers that no law on a lens can see, for they are in what is refused before there is one."""

from __future__ import annotations

import pytest
from jaxtyping import Array, Float16, Float32

import ckpt_schema as cs


def test_a_default_that_its_dtype_makes_infinite_is_refused() -> None:
    with pytest.raises(cs.SchemaError, match="a default that float16 can hold"):

        class Net(cs.Schema):
            bias: Float16[Array, " embed"] = cs.field(default=1e6)


def test_parts_that_may_share_either_axis_are_refused() -> None:
    class Whole(cs.Schema):
        both: Float32[Array, "2*heads 2*embed"]

    class Apart(cs.Schema):
        one: Float32[Array, "heads 2*embed"]
        two: Float32[Array, "heads 2*embed"]

    with pytest.raises(cs.DerivationError, match="expected one axis that 2 leaves share"):
        cs.derive(Whole, Apart, [cs.fuse("both", ["one", "two"])])

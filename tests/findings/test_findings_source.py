"""What writing layouts as text has found to be wrong elsewhere."""

from __future__ import annotations

import jax.numpy as jnp
import optax

import ckpt_schema as cs


def test_24_1_what_a_mirror_in_parts_is_kept_for_is_its_param() -> None:
    params = {"a": {"kernel": jnp.zeros((2, 3))}}
    tx = optax.sm3(0.1)
    layout = cs.infer({"step": jnp.int32(0), "params": params, "opt_state": tx.init(params)})
    assert {row.mirrors for row in layout.rows if row.mirrors} == {"params/a/kernel"}

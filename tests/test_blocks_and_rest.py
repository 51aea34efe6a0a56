"""Lists of so many blocks and a rest, on both sides: as lists, or as stacks of blocks and a list of the rest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.words import done
from test_combinations import held, schema

import ckpt_schema as cs
from ckpt_schema.testing import _naming
from ckpt_schema.testing._laws import LawError
from ckpt_schema.testing._naming import naming

PER, BLOCKS, REST = 3, 2, 1
LENGTH = f"{PER}*blocks+rest"
SIZES = {"blocks": BLOCKS, "rest": REST}


def listed(key: str | None = None, **leaves: str) -> Any:
    """A list of layers, as Hugging Face's."""
    layer = schema("Layer", **leaves)
    field = cs.field(length=LENGTH) if key is None else cs.field(length=LENGTH, key=key)
    return schema("Listed", layers=(list[layer], field))


def blocked(axis: int, **leaves: str) -> Any:
    """A stack for each place in a block, and the rest, as MaxText's."""
    layer = schema("Layer", **leaves)
    block = schema("Block", layers=(list[layer], cs.field(length=PER, key="layers_{i}")))
    body = schema(
        "Blocked",
        blocks=(block, cs.field(scan="blocks", axis=axis)),
        rest=(list[layer], cs.field(length="rest", key="rest_{i}")),
    )
    return type("Scanned", (body,), {"layers": cs.series("blocks[]/layers[]", "rest[]")})


def tree_of(layers: Any, leaf: str = "w") -> Any:
    return {"layers": {i: {leaf: np.ascontiguousarray(w)} for i, w in enumerate(layers)}}


def blocks_of(layers: Any, axis: int, blocks: int = BLOCKS) -> Any:
    """The same as MaxText keeps it, by plain indexing."""
    found: dict[str, Any] = {"blocks": {}}
    for place in range(PER if blocks else 0):
        several = [layers[block * PER + place] for block in range(blocks)]
        stacked = np.ascontiguousarray(np.stack(several, axis))
        found["blocks"][f"layers_{place}"] = {"w": stacked}
    rest = layers[blocks * PER :]
    return found | {f"rest_{i}": {"w": np.ascontiguousarray(w)} for i, w in enumerate(rest)}


def test_two_such_lists_are_one_cell_for_any_number() -> None:
    lens = cs.derive(listed(w="a b"), listed("layers_{i}", w="b a"))
    assert [len(join.cells) for join in lens.joins] == [1]
    w = np.arange(7 * 2 * 3, dtype="float32").reshape(7, 2, 3)
    theirs = {f"layers_{i}": {"w": np.ascontiguousarray(each.T)} for i, each in enumerate(w)}
    held(lens.bind(**SIZES), tree_of(w), theirs)


def test_what_only_moves_between_them_is_the_same_object_under_another_name() -> None:
    lens = cs.derive(
        listed(w="a"), listed("layers_{i+1}", v="a"), rules=[cs.rename("layers[]/w", "layers[]/v")]
    )
    ours = jax.tree.map(jnp.asarray, tree_of(np.zeros((7, 2), "float32")))
    made = lens.bind(**SIZES).get(ours)
    assert sorted(made) == [f"layers_{i + 1}" for i in range(7)]
    assert all(made[f"layers_{i + 1}"]["v"] is ours["layers"][i]["w"] for i in range(7))
    assert not any(done(lens >> ~lens))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize(("blocks", "rest"), [(2, 1), (1, 2), (2, 0)])
def test_a_list_against_blocks_and_a_rest(axis: int, blocks: int, rest: int) -> None:
    lens = cs.derive(listed(w="a b"), blocked(axis, w="a b")).bind(blocks=blocks, rest=rest)
    w = np.arange((PER * blocks + rest) * 6, dtype="float32").reshape(-1, 2, 3)
    held(lens, tree_of(w), blocks_of(w, axis, blocks))
    held(~lens, blocks_of(w, axis, blocks), tree_of(w))


def test_there_and_back_is_moves_alone_for_any_number() -> None:
    """Hugging Face, MaxText, Hugging Face: nine leaves, among them fused, transposed and scaled ones."""
    leaves = {"q": "heads*dim embed", "k": "kv*dim embed", "v": "kv*dim embed", "norm": "embed"}
    mlp = {"gate": "mlp embed", "up": "mlp embed", "down": "embed mlp"}
    ours = listed(**leaves, **mlp, o="embed heads*dim", post="embed")
    fused = {"qkv": "embed heads*dim+2*kv*dim", "norm": "embed", "post": "embed"}
    more = {"wi": "embed 2 mlp", "down": "mlp embed", "o": "heads dim embed"}
    rules = [
        cs.fuse("layers[]/qkv", [f"layers[]/{name}" for name in "qkv"]),
        cs.fuse("layers[]/wi", ["layers[]/gate", "layers[]/up"]),
        cs.scale("layers[]/q", 0.125),
    ]
    there = cs.derive(ours, blocked(1, **fused, **more), rules=rules)
    both = there >> ~there
    assert len(both.joins) == 9 and not any(done(both))
    assert [len(join.cells) for join in both.joins] == [1] * 9


@pytest.mark.parametrize("turned", [False, True])
def test_parts_in_one_list_are_fused_in_blocks_and_a_rest(turned: bool) -> None:
    """Two parts of a leaf, and two of the list: they are not each other."""
    ours, theirs = listed(gate="mlp embed", up="mlp embed"), blocked(1, w="embed 2 mlp")
    rules = [cs.fuse("layers[]/w", ["layers[]/gate", "layers[]/up"])]
    sides = (theirs, ours) if turned else (ours, theirs)
    scaled = [] if turned else [cs.scale("layers[]/up", 0.5)]
    lens = cs.derive(*sides, rules=[*rules, *scaled]).bind(**SIZES)
    gate, up = np.random.default_rng(5).normal(size=(2, 7, 4, 3)).astype("float32")
    apart = {"layers": {i: {"gate": gate[i], "up": up[i]} for i in range(7)}}
    factor = np.float32(1 if turned else 0.5)
    w = np.stack([gate, up * factor], 1).transpose(0, 3, 1, 2)
    trees = apart, blocks_of(w, 1)
    held(lens, *(trees[::-1] if turned else trees))


def test_moments_go_along() -> None:
    tx = optax.adam(0.1)
    lens = cs.derive(
        cs.linen.TrainState[listed("layers_{i}", w="a"), tx],
        cs.linen.TrainState[blocked(0, w="a"), tx],
    )
    assert not any(done(lens >> ~lens))
    params = {"params": {f"layers_{i}": {"w": jnp.full(2, 1.0 + i)} for i in range(7)}}
    state = {"step": jnp.int32(1), "params": params, "opt_state": tx.init(params)}
    state["opt_state"][0].mu["params"]["layers_4"]["w"] = jnp.full(2, 9.0)
    made = lens.bind(**SIZES).get(state)
    mu = made["opt_state"][0].mu["params"]["blocks"]["layers_1"]["w"]
    assert np.asarray(mu).tolist() == [[0, 0], [9, 9]]  # layer 4: the second block's second


def test_two_ways_of_keeping_the_blocks() -> None:
    one, other = blocked(0, w="a b"), blocked(2, w="b a")
    w = np.arange(7 * 2 * 3, dtype="float32").reshape(7, 2, 3)
    turned = w.transpose(0, 2, 1)
    held(cs.derive(one, other).bind(**SIZES), blocks_of(w, 0), blocks_of(turned, 2))
    through = cs.derive(one, listed(w="a b")) >> cs.derive(listed(w="a b"), other)
    held(through.bind(**SIZES), blocks_of(w, 0), blocks_of(turned, 2))


def test_abstract_values() -> None:
    lens = cs.derive(listed(w="a b"), blocked(1, w="a b")).bind(**SIZES)
    ours = tree_of(np.zeros((7, 2, 3), "float32"))
    made = jax.eval_shape(lens.get, ours)
    assert made["blocks"]["layers_0"]["w"].shape == (2, BLOCKS, 3)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), ours)
    assert jax.tree.map(np.shape, lens.get(like)) == jax.tree.map(np.shape, lens.get(ours))


@pytest.mark.parametrize(("blocks", "rest"), [(2, 1), (2, 0)])
@pytest.mark.parametrize("path", ["layers[]/w", "blocks[]/layers[]/w", "**/w"])
@pytest.mark.parametrize("edit", [cs.shift, cs.scale], ids=["shift", "scale"])
def test_the_law_naming_expects_what_rules_say_of_all_layers_by_any_name(
    edit: Any, path: str, blocks: int, rest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that of the layers, of a part of them, or by a glob."""

    def lens_of(number: float) -> cs.Lens:
        paths = [path, "rest[]/w"] if path.startswith("blocks") else [path]
        rules = [edit(each, number) for each in paths]
        lens = cs.derive(listed(w="a b"), blocked(1, w="a b"), rules=rules)
        return lens.bind(a=2, b=3, blocks=blocks, rest=rest)

    lens = lens_of(3.0)
    count = PER * blocks + rest
    s = tree_of(np.arange(count * 6, dtype="float32").reshape(count, 2, 3))
    v = lens.get(s)
    naming(lens, s)
    naming(~lens, v)
    other = _naming.origins_of(lens_of(2.0)), _naming.origins_of(~lens_of(2.0))
    for one, tree, told in ((lens, s, other[0]), (~lens, v, other[1])):
        monkeypatch.setattr(_naming, "origins_of", lambda _, told=told: told)
        with pytest.raises(LawError, match="not where their names say"):
            naming(one, tree)

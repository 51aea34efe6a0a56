"""Leaves that are handed over one after the other: `Lens.stream` and `Lens.transfer` give what `Lens.get` gives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ckpt_schema as cs

LAYERS, WIDTH = 4, 64


def tree(start: float = 0.0) -> dict[str, Any]:
    """Layers in a stack, two leaves that are fused on the other side, a leaf that only moves, and one that is scaled."""

    def leaf(*shape: int) -> jax.Array:
        return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) / 7 + start

    layers = {"w": leaf(LAYERS, WIDTH, 3), "b": leaf(LAYERS, WIDTH)}
    return {"layers": layers, "q": leaf(WIDTH, 8), "k": leaf(WIDTH, 8), "emb": leaf(16, WIDTH)}


def other(start: float = 0.0, seed: int = 7) -> dict[str, Any]:
    """The same as the other side has it, with a leaf of its own; it shares no code with the lens."""
    one = tree(start)
    layers = {
        f"layer_{at}": {"w": one["layers"]["w"][at].T, "b": one["layers"]["b"][at]}
        for at in range(LAYERS)
    }
    fused = jnp.concatenate([one["q"], one["k"]], 1)
    return {**layers, "qk": fused, "table": 2 * one["emb"], "rng": jax.random.key(seed)}


def lens() -> cs.Lens:
    """Between both."""
    rules = [
        cs.rename("layers[]", "layer[]"),
        cs.rename("layers[]/w", "layer[]/w", axes="embed mlp -> mlp embed"),
        cs.fuse("qk", ["q", "k"], axes="e q+k -> e q, e k"),
        cs.rename("emb", "table"),
        cs.scale("table", 2.0),
    ]
    return cs.adapt(tree(), other(), rules=rules, scan={"layers": 0}, lists=["layer_{i}"])


def on(tree: Any, mesh: Mesh) -> Any:
    """A tree on a mesh, split along the last axis where that divides."""

    def placed(x: jax.Array) -> jax.Array:
        parts = mesh.shape["x"]
        axes = [None] * (x.ndim - 1) + ["x"] if x.ndim and x.shape[-1] % parts == 0 else []
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))

    return jax.tree.map(placed, tree)


def halves() -> tuple[Mesh, Mesh]:
    """Two meshes that share no device: a trainer's, and an engine's."""
    devices = np.array(jax.devices())
    return Mesh(devices[:4], ("x",)), Mesh(devices[4:6], ("x",))


def names(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts by name."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(entry.key for entry in path): leaf for path, leaf in flat}


# --- `Lens.stream`  ---


def test_a_stream_has_every_leaf_once_and_as_it_is_to_be() -> None:
    pairs = list(lens().stream(tree(1.5), onto=other(seed=9)))
    assert len(pairs) == len(dict(pairs))
    cs.assert_trees_identical(dict(pairs), names(other(1.5, seed=9)))


def test_a_stream_of_the_way_back() -> None:
    pairs = dict((~lens()).stream(other(1.5)))
    cs.assert_trees_identical(pairs, names(tree(1.5)))


def test_a_stream_without_onto_makes_what_has_a_default() -> None:
    pairs = dict(lens().stream(tree()))
    cs.assert_trees_identical(pairs["rng"], lens().get(tree())["rng"])


def test_names_are_those_of_messages_and_dotted_ones_are_as_they_are() -> None:
    dotted = {"model.0.weight": jnp.ones(2)}
    assert [name for name, _ in cs.adapt(dotted, dotted).stream(dotted)] == ["model.0.weight"]
    numbered = {"a": {"0": jnp.ones(2)}, "b/c": {"d": jnp.ones(3)}}
    found = [name for name, _ in cs.adapt(numbered, numbered).stream(numbered, onto=numbered)]
    assert found == ["a/'0'", "'b/c'/d"]
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert sorted(dict(cs.adapt(state, state).stream(state))) == ["bias", "kernel"]


def test_no_more_is_held_than_what_is_made_at_once() -> None:
    given, through = tree(), lens()
    list(through.stream(given))  # what is compiled and kept is not counted
    start = sum(x.nbytes for x in jax.live_arrays())
    largest = max(x.nbytes for x in jax.tree.leaves((given, other())))
    held = []
    for _name, _value in through.stream(given):
        held.append(sum(x.nbytes for x in jax.live_arrays()) - start)
    assert max(held) <= 2 * largest


def test_what_is_no_tree_of_the_source_is_an_error_before_the_first_leaf() -> None:
    with pytest.raises(cs.ConformanceError, match="does not conform"):
        lens().stream({"layers": {}})
    abstract = jax.eval_shape(tree)
    with pytest.raises(cs.ConformanceError, match=r"(?s)without values.*layers/w.*an abstract|emb"):
        lens().stream(abstract)
    unlike = {"a": jnp.ones(3), "b": jnp.zeros(3)}
    tied = cs.adapt(unlike, {"a": jnp.ones(3)}, rules=[cs.tie("b", "a")])
    with pytest.raises(cs.ConformanceError, match="tied leaves are not one"):
        list(tied.stream(unlike))


# --- `Lens.transfer`  ---


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 2**28])
def test_a_transfer_is_what_get_makes_where_the_other_tree_is(
    donate: bool, chunk_bytes: int
) -> None:
    trainer, engine = halves()
    given, before = on(tree(1.5), trainer), on(other(seed=9), engine)
    wanted = on(other(1.5, seed=9), engine)
    key = jax.random.key_data(before["rng"])
    result = lens().transfer(given, before, chunk_bytes=chunk_bytes, donate_onto=donate)
    cs.assert_trees_identical(result, wanted)
    cs.assert_trees_identical(given, on(tree(1.5), trainer))
    gone = {name for name, leaf in names(before).items() if leaf.is_deleted()}
    assert gone == (names(before).keys() - {"rng"} if donate else set())
    np.testing.assert_array_equal(jax.random.key_data(result["rng"]), key)


def test_a_transfer_shares_no_memory_with_the_trainer() -> None:
    trainer, _ = halves()
    same = {"a": np.arange(8, dtype=np.float32), "b": np.ones(3, np.float32)}
    given = on(same, trainer)
    result = cs.adapt(same, same).transfer(given, on(same, trainer))
    jax.tree.map(lambda leaf: leaf.delete(), given)
    cs.assert_trees_identical(result, on(same, trainer))


def test_a_transfer_compiles_once() -> None:
    trainer, engine = halves()
    through, before = lens(), on(other(), engine)
    through.transfer(on(tree(), trainer), before)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled: list[Any] = []
        patch.setattr("ckpt_schema._lens.plan.translation.compile_plan", compiled.append)
        through.transfer(on(tree(2.0), trainer), before)
    assert not compiled


def test_a_transfer_that_is_refused_frees_nothing() -> None:
    trainer, engine = halves()
    wide = {"a": jnp.array([1.0, 2.0**-30]), "b": jnp.ones(4)}
    narrow = {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(4)}
    through = cs.adapt(wide, narrow)
    before = on(narrow, engine)
    with pytest.raises(cs.ConformanceError, match="a "):
        through.transfer(on(wide, trainer), before, donate_onto=True)
    assert not any(leaf.is_deleted() for leaf in before.values())
    with pytest.raises(cs.ConformanceError, match="chunk_bytes"):
        through.transfer(on(wide, trainer), before, chunk_bytes=0)

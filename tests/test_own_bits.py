"""GetPut by bits: a leaf that still is what a lens made of ``onto`` gives the own bits of that back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, BFloat16, Float32

import ckpt_schema as cs
from ckpt_schema._lens.lens import planned

NEAREST = cs.cast("**", rounding="nearest")


class Wide(cs.Schema):
    layers: Float32[Array, "embed heads"] = cs.field(scan="depth", axis=0)
    norm: Float32[Array, " embed"]


class Narrow(cs.Schema):
    layers: list[BFloat16[Array, "heads embed"]] = cs.field(length="depth")
    norm: Float32[Array, " embed"]


RULES = [cs.cast("layers[]", rounding="nearest"), cs.scale("norm", 0.3), cs.shift("norm", 1.0)]
LENS = cs.derive(Wide, Narrow, rules=RULES)


def wide(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found = {"layers": rng.normal(size=(3, 4, 8)), "norm": rng.normal(size=4)}
    return {name: value.astype("float32") for name, value in found.items()}


def on_devices(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def octets(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def with_another_layer(view: dict[str, Any]) -> dict[str, Any]:
    """A view whose second layer is another one."""
    return {**view, "layers": {**view["layers"], 1: view["layers"][0] * 2}}


KINDS: list[Callable[[Any], Any]] = [lambda tree: tree, on_devices]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trace", [lambda function: function, jax.jit])
def test_what_is_as_it_was_gives_every_bit_back(kind: Any, trace: Any) -> None:
    state = kind(wide())
    view = LENS.get(state)
    assert octets(LENS.put(view)) != octets(state)  # something is lost
    assert octets(trace(LENS.put)(view, state)) == octets(state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trace", [lambda function: function, jax.jit])
def test_a_leaf_that_is_another_is_made_anew_and_those_beside_it_are_not(
    kind: Any, trace: Any
) -> None:
    state = kind(wide())
    changed = with_another_layer(LENS.get(state))
    found, plain = trace(LENS.put)(changed, state), LENS.put(changed)
    for layer in (0, 2):
        assert octets(found["layers"][layer]) == octets(state["layers"][layer])
        assert octets(found["layers"][layer]) != octets(plain["layers"][layer])
    assert octets(found["layers"][1]) == octets(plain["layers"][1])
    # And so the other direction: what is put is got again, by the bits of the view.
    assert octets(trace(LENS.get)(found, changed)) == octets(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_one_other_element_makes_all_of_its_leaf_anew(kind: Any) -> None:
    state = kind(wide())
    view = LENS.get(state)
    row = np.asarray(view["norm"]).copy()
    row[1] += 1
    changed = {**view, "norm": kind({"": row})[""]}
    found = LENS.put(changed, state)
    assert octets(found["norm"]) == octets(LENS.put(changed)["norm"])
    assert octets(found["layers"]) == octets(state["layers"])


def test_a_leaf_of_many_results_gives_all_of_them_or_none() -> None:
    class Parts(cs.Schema):
        q: Float32[Array, "embed q"]
        k: Float32[Array, "embed k"]

    class Whole(cs.Schema):
        qk: BFloat16[Array, "embed q+k"]

    rules = [cs.fuse("qk", ["q", "k"]), cs.cast("qk", rounding="nearest"), cs.scale("q", 0.3)]
    lens = cs.derive(Parts, Whole, rules=rules).bind(q=2, k=3)
    rng = np.random.default_rng(1)
    state = {"q": rng.normal(size=(2, 2)), "k": rng.normal(size=(2, 3))}
    state = {name: value.astype("float32") for name, value in state.items()}
    for given in (state, on_devices(state)):
        view = lens.get(given)
        assert octets(lens.put(view, given)) == octets(state)
        other = {"qk": view["qk"] * 2}
        assert octets(lens.put(other, given)) == octets(lens.put(other))
        # One of two parts is another: of the whole, the elements of the other part are its own.
        parts = lens.put(view)
        assert octets(lens.get(parts, view)) == octets(view)
        mixed = np.asarray(lens.get({**parts, "k": parts["k"] * 2}, view)["qk"])
        assert octets(mixed[:, :2]) == octets(np.asarray(view["qk"])[:, :2])
        assert octets(mixed[:, 2:]) == octets(2 * np.asarray(view["qk"])[:, 2:])


def test_on_a_mesh_nothing_is_gathered() -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"))

    def placed(value: Any, *spec: str | None) -> Any:
        return jax.device_put(value, NamedSharding(mesh, PartitionSpec(*spec)))

    tree = wide()
    state = {
        "layers": placed(tree["layers"], None, "data", "model"),
        "norm": placed(tree["norm"], "data"),
    }
    view = LENS.get(state)
    for put in (LENS.put, jax.jit(LENS.put)):
        found = put(view, state)
        assert octets(found) == octets(tree)
        mixed = put(with_another_layer(view), state)
        assert octets(mixed["layers"][0]) == octets(tree["layers"][0])
        for each in (found, mixed):
            for name in tree:
                assert each[name].sharding.is_equivalent_to(state[name].sharding, each[name].ndim)


def test_what_is_all_of_a_leaf_is_the_same_object() -> None:
    state = on_devices(wide())
    found = LENS.put(LENS.get(state), state)
    assert all(found[name] is state[name] for name in state)


def test_payloads_of_nans_come_back() -> None:
    state = wide()
    state["layers"].view("uint32")[1, 2, :4] = [0x7FC0_0001, 0xFFFF_FFFF, 0x8000_0000, 0x0000_0001]
    for given in (state, on_devices(state)):
        view = LENS.get(given)
        for put in (LENS.put, jax.jit(LENS.put)):
            assert octets(put(view, given)) == octets(state)
            changed = {**view, "layers": {**view["layers"], 0: view["layers"][2] * 2}}
            assert octets(put(changed, given)["layers"][1:]) == octets(state["layers"][1:])


def test_a_derivative_is_that_of_what_is_made_anew() -> None:
    state = on_devices(wide())
    view = LENS.get(state)

    def total(view: Any, onto: Any | None) -> Any:
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(LENS.put(view, onto)))

    assert octets(jax.grad(total)(view, state)) == octets(jax.grad(total)(view, None))


def test_padding_and_parts_of_their_own_stay() -> None:
    class Small(cs.Schema):
        table: Float32[Array, "vocab embed"]

    class Large(cs.Schema):
        table: BFloat16[Array, "large embed"]

    for rule in (
        cs.pad("table", "vocab", "large"),
        cs.private("table", 0.5, small="vocab", large="large"),
    ):
        lens = cs.derive(Small, Large, rules=[rule, NEAREST]).bind(large=5)
        state = {"table": wide()["layers"][0]}
        for given in (state, on_devices(state)):
            view = lens.get(given)
            assert octets(lens.put(view, given)) == octets(state)
            assert octets(jax.jit(lens.get)(given, view)) == octets(view)
    grown = {"table": np.asarray(view["table"]).copy()}
    grown["table"][4] = 7  # which the other side does not have
    assert octets(lens.put(grown, state)) == octets(state)
    assert octets(lens.get(state, grown)) == octets(grown)


def test_what_is_given_up_and_what_has_no_values() -> None:
    state = on_devices(wide())
    view = LENS.get(state)
    shapes = jax.eval_shape(lambda: state)
    assert octets(LENS.put(view, shapes)) == octets(LENS.put(view))
    made = LENS.put(jax.eval_shape(lambda: view), state)
    assert jax.tree.map(lambda x: x.shape, made) == jax.tree.map(lambda x: x.shape, state)
    expected = octets(state)
    assert octets(LENS.put(view, state, donate=True)) == expected
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_numbers_and_leaves_of_other_libraries_keep_their_kind() -> None:
    class Scalars(cs.Schema):
        rate: Float32[Array, ""]

    lens = cs.derive(Scalars, Scalars, rules=[cs.scale("rate", 0.3)])
    for rate in (0.75, np.float32(0.1), np.asarray(0.1, "float32"), jnp.float32(0.1)):
        found = lens.put(lens.get({"rate": rate}), {"rate": rate})["rate"]
        assert type(found) is type(rate)
        assert found == rate


def test_a_composed_lens_gives_every_bit_back() -> None:
    class Third(cs.Schema):
        layers: Float32[Array, "heads embed"] = cs.field(scan="depth", axis=1)
        norm: BFloat16[Array, " embed"]

    rules = [cs.scale("layers[]", 1.7), cs.cast("**", rounding="nearest")]
    both = LENS >> cs.derive(Narrow, Third, rules=rules)
    state = wide()
    for given in (state, on_devices(state)):
        view = both.get(given)
        assert octets(both.put(view)) != octets(state)
        assert octets(both.put(view, given)) == octets(state)
        assert octets(both.get(both.put(view, given), view)) == octets(view)


def test_exact_lenses_look_at_nothing() -> None:
    class Exact(cs.Schema):
        layers: list[Float32[Array, "heads embed"]] = cs.field(length="depth")
        norm: Float32[Array, " embed"]

    state = wide()
    lens = cs.derive(Wide, Exact, rules=[cs.scale("norm", 0.5)])
    view = lens.get(state)
    assert not any(job.echoes for job in planned(~lens, view, state).jobs)
    assert all(job.echoes for job in planned(~LENS, LENS.get(state), state).jobs)
    # Of a wider float the way back makes the narrower one again by itself.
    jobs = planned(LENS, state, LENS.get(state)).jobs
    (layers,) = (job for job in jobs if len(job.likes) > 1)
    assert not layers.echoes


def test_a_folder_of_hugging_face_gets_the_own_bits_too(tmp_path: Path) -> None:
    class File(cs.Schema):
        q: Float32[Array, "embed q"] = cs.field(key="model.q.weight")
        k: Float32[Array, "embed k"] = cs.field(key="model.k.weight")

    class Model(cs.Schema):
        qk: BFloat16[Array, "embed q+k"]

    rules = [cs.fuse("qk", ["q", "k"]), cs.cast("qk", rounding="nearest")]
    lens = cs.derive(File, Model, rules=rules).bind(q=2, k=3)
    rng = np.random.default_rng(2)
    shapes = {"model.q.weight": (4, 2), "model.k.weight": (4, 3)}
    state = {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    view = lens.get(state)
    for number, given in enumerate((state, None)):
        cs.hf.save(tmp_path / str(number), view, lens, onto=given)
        saved = cs.hf.load(tmp_path / str(number))
        assert octets(saved) == octets(lens.put(view, given))
    assert octets(cs.hf.load(tmp_path / "0")) == octets(state)


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_its_own_bits_bring_back_is_refused_without_them(kind: Any) -> None:
    class Small(cs.Schema):
        norm: BFloat16[Array, " embed"]

    class Large(cs.Schema):
        norm: Float32[Array, " embed"]

    lens = cs.derive(Small, Large, rules=[cs.shift("norm", 0.1)])  # and no word of rounding
    state = kind({"norm": wide()["layers"].reshape(-1).astype(jnp.bfloat16)})
    view = lens.get(state)
    assert octets(lens.put(view, state)) == octets(state)
    other = {"norm": view["norm"] + kind({"": np.float32(0.1)})[""]}
    for onto in (None, state):
        with pytest.raises(cs.ConformanceError, match="bfloat16 does not have it"):
            lens.put(other if onto else view, onto)

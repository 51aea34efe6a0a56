"""States of MaxText itself, from what `python tests/maxtext_itself.py --write` kept of them: abstract, and counted up.

What is to come out is said by MaxText: by the layout that it saved the same state in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from maxtext_states import settled
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

DATA = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "maxtext_data").glob("*.json"))
}
WHOLE = [name for name in DATA if "lora" not in name and "linen" not in name]


class OverwriteWithGradient(nnx.Variable[jax.Array]):
    """What a pass of fp8 writes; MaxText's own is made as it runs."""


KINDS = {
    **{kind.__name__: kind for kind in (nnx.Param, nnx.RngKey, nnx.RngCount, nnx.LoRAParam)},
    **{name: getattr(nnx.optimizer, name) for name in ("OptState", "OptArray", "OptVariable")},
    "_overwrite_with_gradient": OverwriteWithGradient,
}


def array(text: str, number: int) -> Any:
    """A leaf of this dtype and shape, of values that no other has."""
    dtype, _, shape = text.rstrip("]").partition("[")
    sizes = tuple(map(int, shape.split(","))) if shape else ()
    if dtype.startswith("key"):
        keys = jax.random.split(jax.random.key(number, impl="unsafe_rbg"), math.prod(sizes) or 1)
        return keys.reshape(sizes)
    values = np.arange(math.prod(sizes)).reshape(sizes) + 1000 * number
    return jnp.asarray(values.astype(dtype))


def variables(held: Any, start: int = 1) -> nnx.State[Any, Any]:
    """A state of NNX, as the data has it."""
    count = iter(range(start, 100_000))

    def made(node: Any) -> Any:
        if isinstance(node, dict):
            return {int(key) if key.isdigit() else key: made(node[key]) for key in node}
        kind, _, text = node.partition(" ")
        extra = {"tag": "some"} if kind.startswith("Rng") else {}
        return KINDS[kind](array(text, next(count)), **extra)

    return nnx.State(made(held))


def flat(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Leaves by keys, with those of tuples and of lists as numbers."""
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield from flat(child, (*above, key))
    elif isinstance(tree, list):
        for number, child in enumerate(tree):
            yield from flat(child, (*above, number))
    elif tree is not None:
        yield above, tree


def place(key: tuple[Any, ...], variable: Any) -> tuple[Any, ...]:
    """Where MaxText keeps a leaf of its state on disk, by the rules of its `to_checkpoint_dict`."""
    region, *rest = key
    if region == "model" and not isinstance(variable, nnx.Param):
        return "nnx_aux", *key
    if region == "model":
        return "params", "params", *rest
    if rest[0] == "step":
        return ("step",)
    at = next((at for at in (1, 2) if rest[at : at + 1] in (["mu"], ["nu"])), None)
    return tuple(rest) if at is None else (*rest[: at + 1], "params", *rest[at + 1 :])


def saved(state: nnx.State[Any, Any], held: Any) -> Any:
    """What MaxText saves of a state: its containers from the data, its values from the state."""
    values: dict[tuple[str, ...], Any] = {}
    for key, variable in nnx.to_flat_state(state):
        value = variable[...]
        is_step = key == ("optimizer", "step")
        values[tuple(map(str, place(key, variable)))] = value.astype("int32") if is_step else value
    assert {tuple(map(str, key)) for key, _ in flat(held)} == values.keys()

    def filled(node: Any, above: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return {key: filled(child, (*above, key)) for key, child in node.items()}
        if isinstance(node, list):
            return [filled(child, (*above, str(at))) for at, child in enumerate(node)]
        return None if node is None else values[above]

    return filled(held, ())


def without_aside(tree: Any) -> Any:
    return {key: child for key, child in tree.items() if key != "nnx_aux"}


def kept(state: nnx.State[Any, Any]) -> nnx.State[Any, Any]:
    """The weights and the optimizer."""
    return nnx.filter_state(state, nnx.Any(nnx.Param, nnx.OptState))


@pytest.mark.parametrize("name", [name for name in WHOLE if "fp8" not in name])
def test_what_maxtext_saves_is_what_it_runs(name: str) -> None:
    """Both ways, without a word: streams apart, which Linen's layout has no place for."""
    state, other = (variables(DATA[name]["nnx"], start) for start in (1, 500))
    disk = without_aside(saved(state, DATA[name]["disk"]))
    lens = cs.adapt(*jax.eval_shape(lambda: (disk, other)))
    cs.assert_trees_identical(kept(lens.get(disk, onto=other)), kept(state))
    cs.assert_trees_identical(lens.put(state, onto=disk), disk)


@pytest.mark.parametrize("name", ["scanned-fp8", "unrolled-fp8", "scanned-blocks"])
def test_what_stands_beside_is_read_from_there(name: str, tmp_path: Path) -> None:
    """Streams, and what MaxText's layout has no place for else: the scales of fp8, which no stream is."""
    state, other = (variables(DATA[name]["nnx"], start) for start in (1, 500))
    ocp.save(tmp_path / "run", saved(state, DATA[name]["disk"]))
    cs.assert_trees_identical(cs.orbax.restore(tmp_path / "run", other), state)
    lens = cs.adapt(tmp_path / "run", jax.eval_shape(lambda: other))
    cs.assert_trees_identical(lens.put(state), without_aside(saved(state, DATA[name]["disk"])))


@pytest.mark.parametrize("model", ["adamw", "experts"])
def test_scanned_layers_are_unrolled_and_scanned_again(model: str) -> None:
    """Every leaf of a layer is cut on axis 1, by NumPy."""
    scanned, unrolled = (
        variables(DATA[f"{form}-{model}"]["nnx"]) for form in ("scanned", "unrolled")
    )
    disk = without_aside(saved(scanned, DATA[f"scanned-{model}"]["disk"]))
    lens = cs.adapt(*jax.eval_shape(lambda: (disk, unrolled)))
    found = {key: each[...] for key, each in nnx.to_flat_state(kept(lens.get(disk, onto=unrolled)))}
    for key, each in nnx.to_flat_state(kept(scanned)):
        if "layers" not in key:
            assert np.array_equal(found.pop(key), each[...])
            continue
        at = key.index("layers")
        for number in range(3):
            layer = found.pop((*key[:at], f"layers_{number}", *key[at + 1 :]))
            assert np.array_equal(layer, np.take(np.asarray(each[...]), number, axis=1))
    assert not found
    cs.assert_trees_identical(lens.put(lens.get(disk, onto=unrolled), onto=disk), disk)


@pytest.mark.parametrize("form", ["scanned", "unrolled"])
def test_what_linen_ran_is_what_nnx_runs(form: str) -> None:
    """The train state of MaxText 0.2.0, of Linen, and that of 0.2.5."""
    state = variables(DATA[f"{form}-adamw"]["nnx"])
    disk = without_aside(saved(state, DATA[f"{form}-adamw"]["disk"]))
    held = DATA[f"linen-{form}"]["disk"]
    assert dict(flat(held)) == {
        key: f"{each.dtype}[{','.join(map(str, each.shape))}]" for key, each in flat(disk)
    }
    lens = cs.adapt(*jax.eval_shape(lambda: (disk, state)))
    cs.assert_trees_identical(lens.put(state, onto=disk), disk)


def test_what_lora_does_not_save_is_told_and_pasted() -> None:
    """MaxText keeps adapters and the step: the error has the lines by which the rest stays as it is."""
    held = DATA["scanned-lora"]
    state, other = (variables(held["nnx"], start) for start in (1, 500))
    disk: dict[str, Any] = {}
    for key, variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.LoRAParam):
            place_in(disk, ("params", "params", *key[1:]), variable[...])
    disk["step"] = jnp.int32(7)
    assert {key for key, _ in flat(disk)} == {key for key, _ in flat(held["disk"])}

    forms, rules = jax.eval_shape(lambda: (disk, other)), list[Any]()
    lens = settled(lambda rules: cs.adapt(*forms, rules=rules), rules)
    assert cs.private("opt_state", cs.own) in rules
    found = dict(nnx.to_flat_state(lens.get(disk, onto=other)))
    adapters, step = nnx.to_flat_state(state), ("optimizer", "step")
    assert found[step][...] == 7
    wanted = {key: each for key, each in adapters if isinstance(each, nnx.LoRAParam)}
    for key, each in nnx.to_flat_state(other):
        if key != step:
            cs.assert_trees_identical(found[key], wanted.get(key, each))


def place_in(tree: dict[str, Any], path: tuple[Any, ...], leaf: Any) -> None:
    """Puts a leaf into nested dicts."""
    *above, last = path
    for key in above:
        tree = tree.setdefault(key, {})
    tree[last] = leaf

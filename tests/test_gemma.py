"""A decoder of 26 layers in interleaved blocks (of 14 every day): one model in all forms, on disk, on meshes, in training."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import gemma
import jax
import numpy as np
import pytest
from flax import nnx
from gemma import BLOCKS, INSIDE, LAYERS, LAYOUTS, REST, lens, run, start
from jax.sharding import AxisType, Mesh
from orbax.checkpoint import v1 as ocp
from pair_models import make_mesh, placed, sharded, train
from support.profiles import THOROUGH, sampled, thorough_only

import ckpt_schema as cs

BEFORE, AFTER = range(2), range(2, 4)
PAIRS = [
    ("Linen scanned", "Linen unrolled"),
    ("Linen scanned", "NNX unrolled"),
    ("Linen unrolled", "NNX scanned"),
    ("Linen scanned", "NNX scanned"),
    ("NNX unrolled", "NNX scanned"),
    ("Linen unrolled", "NNX unrolled"),
]
each_pair = pytest.mark.parametrize(
    "pair", sampled(PAIRS, 3, 1), ids=lambda pair: " to ".join(pair)
)


@functools.cache
def state(form: str) -> Any:
    """One trained state, in each form: two steps in scanned Linen, and what the lenses make of it."""
    if form == "Linen scanned":
        return train(run(form), run(form).start, BEFORE)[0]
    return lens("Linen scanned", form).get(state("Linen scanned"), onto=start(form))


# --- The order of layers, with plain NumPy  ---


def layers(form: str, tree: Any) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The layers' params, mu and nu, one by one, in the order that they are applied in."""
    if form.startswith("NNX"):
        pure = nnx.to_pure_dict(tree)
        adam = pure["optimizer"]["opt_state"][1][0]
        parts = {"params": pure["model"], "mu": adam["mu"], "nu": adam["nu"]}
    else:
        fields = tree if isinstance(tree, dict) else vars(tree)
        adam = fields["opt_state"][1][0]
        parts = {
            "params": fields["params"]["params"],
            "mu": adam.mu["params"],
            "nu": adam.nu["params"],
        }
    found = []
    for number in range(LAYERS):
        each: dict[str, np.ndarray[Any, Any]] = {}
        for part, root in parts.items():
            node, column = _layer(form, root, number)
            for path, leaf in jax.tree_util.tree_flatten_with_path(node)[0]:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                if not name.startswith("dropout"):
                    value = np.asarray(leaf)
                    each[f"{part}/{name}"] = value if column is None else value[:, column]
        found.append(each)
    return found


def _layer(form: str, root: Any, number: int) -> tuple[Any, int | None]:
    """Where a layer is, and which column of its leaves is its own."""
    block, inside = divmod(number, INSIDE)
    if form == "Linen unrolled":
        return root[f"layers_{number}"], None
    if form == "NNX unrolled":
        return root["layers"][number], None
    if block == BLOCKS:
        return (root[f"rest_{inside}"] if form.startswith("Linen") else root["rest"][inside]), None
    return (
        root["blocks"][f"layers_{inside}"]
        if form.startswith("Linen")
        else root["blocks"]["layers"][inside]
    ), block


@each_pair
def test_every_layer_is_in_its_place_both_ways(pair: tuple[str, str]) -> None:
    before = layers("Linen scanned", state("Linen scanned"))
    assert len({each["params/q/kernel"].tobytes() for each in before}) == LAYERS, (
        "a permutation would show"
    )
    assert len({each["nu/wo/kernel"].tobytes() for each in before}) == LAYERS
    source, view = (state(form) for form in pair)
    there = lens(*pair).get(source)
    back = lens(*pair).put(view)
    for form, tree in ((pair[0], source), (pair[1], there), (pair[0], back)):
        for number, (found, expected) in enumerate(zip(layers(form, tree), before, strict=True)):
            assert found.keys() == expected.keys()
            for name, value in found.items():
                np.testing.assert_array_equal(
                    value, expected[name], f"{form}, layer {number}, {name}", strict=True
                )


def test_the_order_is_written_once_in_each_schema_that_has_blocks() -> None:
    for form, layout in LAYOUTS.items():
        assert len(layout.series) == (1 if form.endswith("scanned") else 0)


# --- Disk and meshes  ---

MESHES = {
    "(2, 4)": make_mesh(2, 4),
    "(8,)": jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a checkpoint of each form, written from a mesh of (4, 2)."""
    folder, mesh = tmp_path_factory.mktemp("gemma"), make_mesh(4, 2)

    @functools.cache
    def path(form: str) -> Path:
        if form.startswith("Linen"):
            ocp.save(
                folder / form, placed(state(form), mesh)
            )  # as any Linen user does, without this library
        else:
            cs.orbax.save(folder / form, placed(state(form), mesh), lens("Linen unrolled", form))
        return folder / form

    return path


def restored(path: Path, pair: tuple[str, str], mesh: Mesh) -> Any:
    """What is in a checkpoint of the pair's first form, as its second, sharded over a mesh."""
    target = sharded(state(pair[1]), mesh)
    made = cs.orbax.restore(
        path, target, lens(*pair), aux=None if pair[1].startswith("Linen") else "nnx_aux"
    )
    found = [x.sharding for x in jax.tree.leaves(made)]
    assert found == [x.sharding for x in jax.tree.leaves(target)]
    assert sum(not sharding.is_fully_replicated for sharding in found) > len(found) / 3
    return made


@pytest.mark.parametrize(
    ("pair", "name"), sampled([*itertools.product(PAIRS[1:4], MESHES)], 4), ids=str
)
def test_a_checkpoint_is_restored_on_another_mesh_to_the_last_bit(
    pair: tuple[str, str], name: str, saved: Any
) -> None:
    mesh = MESHES[name]
    cs.assert_trees_identical(restored(saved(pair[0]), pair, mesh), placed(state(pair[1]), mesh))


def test_and_from_nnx_into_scanned_linen(saved: Any) -> None:
    mesh = MESHES["(8,)"]
    # What an NNX run saves through a lens is a checkpoint of Linen; here of the unrolled form.
    linen = restored(saved("NNX unrolled"), ("Linen unrolled", "Linen scanned"), mesh)
    cs.assert_trees_identical(linen, placed(state("Linen scanned"), mesh))


# --- Training  ---


@thorough_only  # other models train on in tests/test_model_pairs.py
@pytest.mark.parametrize("kind", ["scanned", "unrolled"])
def test_training_goes_on_with_the_same_losses_in_the_other_framework(
    kind: str, saved: Any
) -> None:
    mesh = MESHES["(2, 4)"]
    linen, other = f"Linen {kind}", f"NNX {kind}"
    stayed = train(run(linen), placed(state(linen), mesh), AFTER, mesh)
    moved = train(
        run(other), restored(saved("Linen scanned"), ("Linen scanned", other), mesh), AFTER, mesh
    )
    assert moved[1] == stayed[1]
    assert len(set(moved[1])) == len(AFTER)
    cs.assert_trees_identical(lens(linen, other).put(moved[0], onto=stayed[0]), stayed[0])


# --- What does not fit  ---


def without(*names: str) -> Any:
    """An unrolled Linen state as it is on disk, with some layers lost everywhere."""
    tree = lens("Linen scanned", "Linen unrolled").get(state("Linen scanned"))
    adam = tree["opt_state"][1][0]
    lost = [
        {key: value for key, value in root["params"].items() if key not in names}
        for root in (tree["params"], adam.mu, adam.nu)
    ]
    adam = adam._replace(mu={"params": lost[1]}, nu={"params": lost[2]})
    clip, (_, *others) = tree["opt_state"]
    return {**tree, "params": {"params": lost[0]}, "opt_state": (clip, (adam, *others))}


@pytest.mark.parametrize(
    ("lost", "view"),
    sampled(
        [
            *itertools.product(
                (f"layers_{LAYERS - 1}", f"layers_{LAYERS // 2}"), ("Linen scanned", "NNX unrolled")
            )
        ],
        3,
    ),
)
def test_a_lost_layer_is_named_before_anything_is_read(
    lost: str, view: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ocp.save(tmp_path / "0", without(lost))
    monkeypatch.setattr(ocp, "load", lambda *_, **__: pytest.fail("arrays were read"))
    with pytest.raises(cs.CkptSchemaError) as caught:
        cs.orbax.restore(
            tmp_path / "0", sharded(state(view), MESHES["(2, 4)"]), lens("Linen unrolled", view)
        )
    message = str(caught.value)
    for part in ("params", "mu", "nu"):
        for name in ("q/kernel", "attention_norm/scale"):
            assert any(
                part in m.path and m.path.endswith(f"{lost}/{name}")
                for m in caught.value.mismatches
            ), message


def test_the_number_of_blocks_is_the_same_on_both_sides() -> None:
    assert (4 if THOROUGH else 2, 6, 2) == (BLOCKS, INSIDE, REST)
    target = start("NNX unrolled")
    tree = jax.tree.map(lambda x: x, state("Linen scanned"))
    params = {**tree.params["params"]}
    for i in range(INSIDE):
        params[f"rest_{REST + i}"] = params["rest_0"]
    with pytest.raises(cs.ConformanceError) as caught:
        lens("Linen scanned", "NNX unrolled").get(
            tree.replace(params={"params": params}), onto=target
        )
    assert any("rest" in m.path or "rest" in m.found for m in caught.value.mismatches)


def test_local_layers_do_attend_to_less() -> None:
    """The blocks are no blocks of equals: a layer in another's place would compute something else."""
    x = jax.random.normal(jax.random.key(0), (3, 1, 6, gemma.HEADS * gemma.HEAD_DIM))
    local, whole = (gemma.attention(*x, local=local) for local in (True, False))
    assert not np.array_equal(local, whole)

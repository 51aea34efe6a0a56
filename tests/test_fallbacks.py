"""Leaves that a tree may lack and that another leaf then stands for: one lens for files with a head and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema.testing import LensLaws


class File(cs.Schema):
    embedding: Float32[Array, "vocab embed"] = cs.field(key="embed_tokens.weight")
    head: Float32[Array, "vocab embed"] = cs.field(
        key="lm_head.weight", optional=True, default=cs.same_as("embedding")
    )
    norm: Float32[Array, " embed"] = cs.field(key="norm.weight")


class Model(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    head: Float32[Array, "embed vocab"] = cs.field(key="lm_head")
    norm: Float32[Array, " embed"]


LENS = cs.derive(File, Model)
EMBEDDING = np.arange(6, dtype=np.float32).reshape(3, 2)
HEAD = np.arange(6, 12, dtype=np.float32).reshape(3, 2)
NORM = np.float32([1, 2])
TIED = {"embed_tokens.weight": EMBEDDING, "norm.weight": NORM}
WHOLE = {**TIED, "lm_head.weight": HEAD}


def model(head: Any) -> dict[str, Any]:
    return {"embedding": EMBEDDING, "lm_head": head, "norm": NORM}


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_vllm_53170_mlx_lm_1298_one_lens_for_files_with_a_head_and_without(place: Any) -> None:
    for file, head in ((WHOLE, HEAD), (TIED, EMBEDDING)):
        found = LENS.get(jax.tree.map(place, file))
        cs.assert_trees_identical(found, jax.tree.map(place, model(head.T)))
        onto = jax.tree.map(np.zeros_like, model(head.T))
        found = LENS.get(jax.tree.map(place, file), onto=onto)
        np.testing.assert_array_equal(found["lm_head"], head.T)


def test_what_is_written_has_a_head_unless_it_goes_onto_a_file_without_one() -> None:
    cs.assert_trees_identical(LENS.put(model(HEAD.T)), WHOLE)
    cs.assert_trees_identical(LENS.put(model(EMBEDDING.T), onto=TIED), TIED)
    cs.assert_trees_identical(LENS.put(model(HEAD.T), onto=WHOLE), WHOLE)


def test_a_head_that_differs_is_not_lost() -> None:
    other = EMBEDDING.copy()
    other[1, 1] = 7
    with pytest.raises(cs.ConformanceError) as error:
        LENS.put(model(other.T), onto=TIED)
    assert str(error.value) == (
        "tied leaves are not one: 1 fault\n"
        "  lm_head  expected what embedding has, 3.0 (0x40400000) at embed_tokens.weight[1 1], found "
        "7.0 (0x40e00000) at embed_tokens.weight[1 1]\n"
        "           -> nothing else would keep it: give onto a leaf of its own there, or make both equal"
    )


def test_abstract_trees_have_shapes_and_no_bits() -> None:
    def abstract(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)

    cs.assert_trees_identical(LENS.get(abstract(TIED)), abstract(model(HEAD.T)))
    cs.assert_trees_identical(
        LENS.put(abstract(model(HEAD.T)), onto=abstract(TIED)), abstract(TIED)
    )


def test_a_checkpoint_without_a_head_fills_both(tmp_path: Path) -> None:
    for name, file, head in (("tied", TIED, EMBEDDING), ("whole", WHOLE, HEAD)):
        cs.orbax.save(tmp_path / name, jax.tree.map(jnp.asarray, file))
        target = jax.tree.map(jnp.zeros_like, model(HEAD.T))
        found = cs.orbax.restore(tmp_path / name, target, LENS)
        cs.assert_trees_identical(found, jax.tree.map(jnp.asarray, model(head.T)))
    cs.orbax.convert(tmp_path / "tied", tmp_path / "new", LENS, verify=True)
    found = cs.orbax.load(tmp_path / "new")
    np.testing.assert_array_equal(found["lm_head"], EMBEDDING.T)


class Bare(cs.Schema):
    head: Float32[Array, "embed vocab"] = cs.field(key="lm_head")


def test_what_stands_for_a_leaf_is_read_though_nothing_else_asks_for_it(tmp_path: Path) -> None:
    cs.orbax.save(tmp_path / "1", jax.tree.map(jnp.asarray, TIED))
    rules = [cs.private("embedding", cs.own), cs.private("norm", cs.own)]
    lens = cs.derive(File, Bare, rules=rules)
    found = cs.orbax.restore(tmp_path / "1", {"lm_head": jnp.zeros((2, 3))}, lens)
    np.testing.assert_array_equal(found["lm_head"], EMBEDDING.T)


# --- Layers, and both sides  ---


class Layer(cs.Schema):
    key: Float32[Array, "embed heads"]
    value: Float32[Array, "embed heads"] = cs.field(optional=True, default=cs.same_as("key"))


class Listed(cs.Schema):
    layers: list[Layer] = cs.field(length="depth")


class Fused(cs.Schema):
    both: Float32[Array, "embed 2*heads"]


class Stacked(cs.Schema):
    layers: Fused = cs.field(scan="depth")


def test_a_layer_without_a_leaf_has_another_ones_in_a_stack_of_fused_leaves() -> None:
    rule = cs.fuse("layers[]/both", ["layers[]/key", "layers[]/value"])
    lens = cs.derive(Listed, Stacked, rules=[rule])
    keys = [EMBEDDING, HEAD]
    listed = {"layers": {n: {"key": key} for n, key in enumerate(keys)}}
    both = np.stack([np.concatenate([key, key], 1) for key in keys])
    cs.assert_trees_identical(lens.get(listed), {"layers": {"both": both}})


def test_a_leaf_that_both_may_lack_stays_away() -> None:
    lens = cs.derive(File, File)
    cs.assert_trees_identical(lens.get(TIED), TIED)
    cs.assert_trees_identical(lens.get(TIED, onto=TIED), TIED)
    found = lens.get(TIED, onto=WHOLE)
    np.testing.assert_array_equal(found["lm_head.weight"], EMBEDDING)


class Tied(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    norm: Float32[Array, " embed"]


class Whole(cs.Schema):
    embedding: Float32[Array, "vocab embed"]
    head: Float32[Array, "vocab embed"] = cs.field(default=cs.same_as("embedding"))
    norm: Float32[Array, " embed"]


def test_a_side_without_such_a_leaf_makes_it_of_the_other_where_it_must() -> None:
    tied = {"embedding": EMBEDDING, "norm": NORM}
    cs.assert_trees_identical(cs.derive(Tied, File).get(tied), TIED)
    cs.assert_trees_identical(cs.derive(Tied, Whole).get(tied), {**tied, "head": EMBEDDING})


def test_it_composes_and_is_written_as_python() -> None:
    whole = LENS >> cs.derive(Model, Model)
    cs.assert_trees_identical(whole.get(TIED), model(EMBEDDING.T))
    with pytest.raises(cs.DerivationError, match="declare it on the outer layout"):
        cs.derive(Tied, File) >> LENS
    found: dict[str, Any] = {}
    exec(cs.to_source(LENS), found)
    cs.assert_trees_identical(found["lens"].get(TIED), model(EMBEDDING.T))


# --- Declarations that cannot be  ---


def test_declarations() -> None:
    class Missing(cs.Schema):
        head: Float32[Array, " a"] = cs.field(optional=True, default=cs.same_as("body"))

    class Unlike(cs.Schema):
        body: Float32[Array, " b"]
        head: Float32[Array, " a"] = cs.field(optional=True, default=cs.same_as("body"))

    class Both(cs.Schema):
        body: Float32[Array, " a"] = cs.field(optional=True)
        head: Float32[Array, " a"] = cs.field(optional=True, default=cs.same_as("body"))

    for schema, found in ((Missing, "none"), (Unlike, "float32[b]"), (Both, "an optional float32")):
        with pytest.raises(cs.SchemaError) as error:
            cs.layout(schema)
        assert f"a leaf at body that every tree has, float32[a], found {found}" in str(error.value)
    with pytest.raises(cs.SchemaError, match=r"path +expected a logical path"):
        cs.same_as("")
    with pytest.raises(cs.SchemaError, match="is declared so"):
        cs.private("head", cs.same_as("body"))  # pyright: ignore[reportArgumentType]


class TestFallbacks(LensLaws):
    """All laws, with a head in the file and without."""

    max_examples = 4
    meshes = ()
    lens = LENS

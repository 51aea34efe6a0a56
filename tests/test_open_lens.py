"""Lenses of leaves of any float: bound leaf by leaf as trees have them, and held against NumPy's own casts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, BFloat16, Float, Float32, Int32

import ckpt_schema as cs

EMBED, HEADS, DIM, MLP, DEPTH = 3, 2, 4, 5, 2


class Norm(cs.Schema):
    scale: Float[Array, " embed"]


class OldBlock(cs.Schema):
    norm: Norm
    qkv: Float[Array, "embed 3*heads*dim"]
    wi: Float[Array, "embed mlp"]
    count: Int32[Array, ""] = cs.field(axis=0)


class Old(cs.Schema):
    layers: OldBlock = cs.field(scan="depth", axis=1)


class NewBlock(cs.Schema):
    norm: Norm
    q: Float[Array, "embed heads dim"]
    k: Float[Array, "embed heads dim"]
    v: Float[Array, "embed heads dim"]
    up: Float32[Array, "mlp embed"]
    count: Int32[Array, ""]


class New(cs.Schema):
    layers: list[NewBlock] = cs.field(length="depth")


RULES = [
    cs.fuse("layers[]/qkv", ["layers[]/q", "layers[]/k", "layers[]/v"]),
    cs.rename("layers[]/wi", "layers[]/up"),
    cs.scale("layers[]/q", 0.5),
    cs.cast("layers[]", rounding="nearest"),
]
LENS = cs.derive(Old, New, rules=RULES, dims={"heads": HEADS})
FLOATS = ("float32", "bfloat16", "float16")


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return values.astype(jnp.dtype(dtype))


def old(norm: str, qkv: str, wi: str) -> dict[str, Any]:
    return {
        "layers": {
            "norm": {"scale": numbers((EMBED, DEPTH), norm, 0)},
            "qkv": numbers((EMBED, DEPTH, 3 * HEADS * DIM), qkv, 1),
            "wi": numbers((EMBED, DEPTH, MLP), wi, 2),
            "count": np.arange(DEPTH, dtype=np.int32),
        }
    }


def as_dtype(value: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(value).astype(jnp.dtype(dtype))


def expected(tree: dict[str, Any], norm: str, qkv: dict[str, str]) -> dict[str, Any]:
    """What NumPy makes of it: scaled in the wider dtype of both, which a half of is exact in."""
    layers = tree["layers"]
    parts = layers["qkv"].reshape(EMBED, DEPTH, 3, HEADS, DIM)
    found: list[Any] = []
    for n in range(DEPTH):
        block: dict[str, Any] = {
            "norm": {"scale": as_dtype(layers["norm"]["scale"][:, n], norm)},
            "up": as_dtype(layers["wi"][:, n].T, "float32"),
            "count": layers["count"][n],
        }
        for at, (name, dtype) in enumerate(qkv.items()):
            part = parts[:, n, at].astype(np.float32) * (0.5 if name == "q" else 1.0)
            block[name] = as_dtype(part, dtype)
        found.append(block)
    return {"layers": dict(enumerate(found))}


def same(found: Any, wanted: Any) -> None:
    cs.assert_trees_identical(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, wanted))


@pytest.mark.parametrize("after", FLOATS)
@pytest.mark.parametrize("before", FLOATS)
def test_every_float_goes_to_every_float(before: str, after: str) -> None:
    tree = old(before, before, before)
    found = LENS.get(tree, dtype=after)
    same(found, expected(tree, after, dict.fromkeys("qkv", after)))
    back = LENS.put(found, onto=tree)
    same(back, tree)  # bit for bit, whatever was rounded


def test_each_leaf_is_what_its_own_target_is() -> None:
    tree = old("float16", "float32", "bfloat16")
    target = {"norm": "float32", "q": "bfloat16", "k": "float32", "v": "float16"}
    wanted = expected(tree, "float32", {name: target[name] for name in "qkv"})
    for onto in (
        jax.tree.map(np.zeros_like, wanted),
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), wanted),
    ):
        same(LENS.get(tree, onto=onto), wanted)
    same(LENS.get(tree, dtype={f"layers[]/{name}": each for name, each in target.items()}), wanted)


def test_one_lens_keeps_the_plans_of_every_precision() -> None:
    trees = [old(dtype, dtype, dtype) for dtype in FLOATS]
    for _ in range(2):
        for tree in trees:
            for dtype in FLOATS:
                wanted = expected(tree, dtype, dict.fromkeys("qkv", dtype))
                same(LENS.get(tree, dtype=dtype), wanted)


def test_it_does_what_a_lens_of_these_dtypes_does() -> None:
    tree, said = old("float16", "bfloat16", "float32"), {"**": "float32", "**/norm": "bfloat16"}
    names = {"layers[]/norm": "float16", "layers[]/qkv": "bfloat16", "layers[]/wi": "float32"}
    closed = cs.derive(
        cs.layout(Old, dtype=names),
        cs.layout(New, dtype=said),
        rules=RULES,
        dims={"heads": HEADS},
    )
    bound = LENS.at(source=names, view=said)
    assert str(bound) == str(closed)
    assert bound.loss == closed.loss
    same(LENS.get(tree, dtype=said), closed.get(tree))
    same(bound.put(closed.get(tree)), closed.put(closed.get(tree)))
    # One end alone, and the other later; and the way back.
    again = LENS.at(view=said).at(source=names)
    assert str(again) == str(closed)
    assert str((~LENS).at(source=said, view=names)) == str(~closed)


def test_a_value_that_a_narrower_float_lacks_is_refused_without_a_word() -> None:
    lens = cs.derive(Norm, Norm)
    tree = {"scale": np.float32([1.0, 1.001, 2.0])}
    with pytest.raises(cs.ConformanceError, match="bfloat16"):
        lens.get(tree, dtype="bfloat16")
    exact = {"scale": np.float32([1.0, 1.5, 2.0])}
    same(lens.get(exact, dtype="bfloat16"), {"scale": exact["scale"].astype(jnp.bfloat16)})
    same(lens.get(exact, dtype="float32"), exact)


def test_what_only_moves_is_the_same_object() -> None:
    lens = cs.derive(Norm, Norm)
    value = jnp.ones(4, "bfloat16")
    assert lens.get({"scale": value}, dtype="bfloat16")["scale"] is value


def test_under_jit_and_for_abstract_trees() -> None:
    lens, scale = cs.derive(Norm, Norm), {"scale": np.ones(3, jnp.bfloat16)}
    jitted = jax.jit(lambda s: lens.get(s, dtype="float32"))
    same(jitted(scale), {"scale": np.ones(3, np.float32)})
    tree = old("bfloat16", "float32", "float16")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    told = LENS.get(abstract, dtype="bfloat16")
    assert told["layers"][0]["q"].dtype == jnp.bfloat16
    LENS.dry_run(abstract, dtype="bfloat16")


def test_what_neither_tree_has_needs_no_dtype() -> None:
    class Spare(cs.Schema):
        scale: Float[Array, " embed"]
        bias: Float[Array, " embed"] = cs.field(optional=True)

    lens = cs.derive(Spare, Spare)
    tree = {"scale": np.ones(3, np.float16)}
    found = lens.get(tree, onto={"scale": jax.ShapeDtypeStruct((3,), "float32")})
    same(found, {"scale": np.ones(3, np.float32)})
    same(lens.get(tree, dtype="float32"), found)


def test_a_default_is_made_in_the_dtype_that_is_said() -> None:
    class More(cs.Schema):
        scale: Float[Array, " embed"]
        bias: Float[Array, " embed"] = cs.field(default=0.1)

    lens = cs.derive(Norm, More)
    found = lens.get({"scale": np.ones(3, np.float32)}, dtype={"**": "float32", "bias": "float16"})
    same(found, {"bias": np.full(3, 0.1, np.float16), "scale": np.ones(3, np.float32)})


# --- what is not said  ---


def test_a_result_without_onto_is_told_its_dtypes() -> None:
    tree = old("float32", "float32", "float32")
    with pytest.raises(cs.SchemaError, match="a result without onto needs one dtype") as caught:
        LENS.get(tree)
    paths = [fault.path for fault in caught.value.mismatches]
    assert paths == [f"layers[]/{name}" for name in ("norm/scale", "q", "k", "v")]
    assert 'add dtype="bfloat16", or give onto=' in str(caught.value)
    view = LENS.get(tree, dtype="float32")
    with pytest.raises(cs.SchemaError, match="told twice"):
        LENS.put(view, onto=tree, dtype="float32")
    with pytest.raises(cs.SchemaError, match="expected one dtype"):
        LENS.put(view, dtype={"layers[]/qkv": "float32"})


def test_a_lens_that_leaves_nothing_open_takes_no_dtype() -> None:
    lens = cs.derive(cs.layout(Norm, dtype="float32"), Norm)
    tree = {"scale": np.ones(3, np.float32)}
    with pytest.raises(cs.SchemaError, match="leaves that are any float, found none"):
        lens.put(tree, dtype="float32")
    with pytest.raises(cs.SchemaError, match="leaves that are any float, found none"):
        lens.at(source="float32")
    assert lens.at() is lens


def test_what_a_rule_cannot_do_to_narrow_floats_is_an_error() -> None:
    lens = cs.derive(Norm, Norm, rules=[cs.scale("scale", 3.0)])
    lens.at(source="float16", view="float32")
    with pytest.raises(cs.DerivationError, match="too few values to be scaled"):
        lens.at(source="float8_e5m2", view="float8_e5m2")


@pytest.mark.parametrize(
    "ask",
    [
        lambda lens: lens.loss,
        lambda lens: lens.exact,
        lambda lens: cs.orbax.save("/nowhere", {"scale": jnp.ones(3)}, lens, side="view"),
        lambda lens: cs.orbax.items_of({"scale": jnp.ones(3)}, lens, side="view"),
        lambda lens: cs.orbax.abstract_items({"scale": jnp.ones(3)}, lens, target_side="view"),
        lambda lens: cs.hf.save("/nowhere", {"scale": jnp.ones(3)}, lens, side="view"),
    ],
)
def test_what_needs_one_dtype_of_each_leaf_says_so(ask: Any) -> None:
    lens = cs.derive(Norm, cs.layout(Norm, dtype="float32"))
    with pytest.raises(cs.CkptSchemaError) as caught:
        ask(lens)
    assert 'say which, lens.at(source="bfloat16")' in str(caught.value)


# --- as it is printed, and written  ---


def test_the_print_says_what_is_open() -> None:
    lines = [" ".join(line.split()) for line in str(LENS).splitlines()]
    assert (
        "layers/norm/scale layers/{i}/norm/scale embed depth -> {depth} embed, Float -> Float"
        in lines
    )
    assert "layers/wi layers/{i}/up embed depth mlp -> {depth} mlp embed, Float -> float32" in lines
    assert "layers/count layers/{i}/count depth -> {depth}" in lines


def test_a_lens_of_any_float_is_written_as_text() -> None:
    lens = cs.derive(Norm, cs.layout(Norm, dtype="float32"))
    written: dict[str, Any] = {}
    exec(cs.to_source(lens), written)
    assert str(written["lens"]) == str(lens)
    tree = {"scale": np.ones(3, np.float16)}
    same(written["lens"].get(tree), lens.get(tree))


def test_a_rule_for_many_leaves_is_written_for_those_that_it_changes() -> None:
    class Wide(cs.Schema):
        kernel: Float32[Array, "embed mlp"]
        scale: Float32[Array, " embed"]

    class Narrow(cs.Schema):
        kernel: BFloat16[Array, "embed mlp"]
        scale: Float32[Array, " embed"]

    lens = cs.derive(Wide, Narrow, rules=[cs.cast("*", rounding="nearest")])
    written: dict[str, Any] = {}
    exec(cs.to_source(lens), written)
    assert str(written["lens"]) == str(lens)


def test_a_lens_of_these_floats_is_written_as_one() -> None:
    said = {"source": "float32", "view": "float32"}
    for lens in (LENS.at(**said), LENS.at(source="bfloat16"), LENS):
        for written in (_executed(cs.to_source(lens)), cs.from_json(cs.to_json(lens), cs.Lens)):
            assert sorted(str(written).splitlines()) == sorted(str(lens).splitlines())
    # A cast between equal dtypes does nothing, and is no rule of the lens.
    rules = [str(rule) for rule in LENS.at(**said).derivations[0].rules]
    assert not any(rule.startswith("cast") for rule in rules)


def _executed(text: str) -> cs.Lens:
    names: dict[str, Any] = {}
    exec(text, names)
    return names["lens"]


def test_what_has_no_partner_is_told_as_it_was_declared() -> None:
    class Other(cs.Schema):
        weight: Float[Array, " embed"]

    with pytest.raises(cs.DerivationError, match=r"Float\[embed\]"):
        cs.derive(Norm, Other)

    class Count(cs.Schema):
        scale: Int32[Array, " embed"]

    with pytest.raises(cs.DerivationError, match=r"only integers are cast to integers"):
        cs.derive(Norm, Count)

"""Leaves that are any float: which one they are is said by a tree, or by a user, and never guessed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Float32, Int32

import ckpt_schema as cs
import ckpt_schema.testing
from ckpt_schema._layouts.formats import FORMATS

# Those of which NumPy makes arrays; of the others jax has none on every machine.
FLOATS = [name for name in FORMATS if name != "float64"]


class Norm(cs.Schema):
    scale: Float[Array, " embed"]


class Block(cs.Schema):
    norm: Norm
    kernel: Float[Array, "embed mlp"]
    count: Int32[Array, ""]


class Model(cs.Schema):
    embed: Float[Array, "vocab embed"] = cs.field(key="wte")
    layers: list[Block] = cs.field(length="depth")


class Closed(cs.Schema):
    kernel: Float32[Array, "embed mlp"]


def of(dtype: Any, shape: tuple[int, ...] = (4,)) -> np.ndarray[Any, Any]:
    return np.zeros(shape, jnp.dtype(dtype))


def model(embed: Any = "float32", layers: Any = "float32", norm: Any = None) -> dict[str, Any]:
    several = [layers, layers] if isinstance(layers, str) else layers
    blocks = [
        {
            "norm": {"scale": of(norm or dtype)},
            "kernel": of(dtype, (4, 6)),
            "count": of("int32", ()),
        }
        for dtype in several
    ]
    return {"wte": of(embed, (8, 4)), "layers": dict(enumerate(blocks))}


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_leaf_of_any_float_is_every_float_that_jax_has(dtype: str) -> None:
    assert cs.check(Norm, {"scale": of(dtype)}).ok
    assert cs.check(Norm, {"scale": jax.ShapeDtypeStruct((4,), jnp.dtype(dtype))}).ok


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64", ">f4", "longdouble"])
def test_it_is_nothing_else(dtype: str) -> None:
    found = cs.check(Norm, {"scale": np.zeros(4, dtype)})
    assert [fault.kind for fault in found] == ["dtype"]
    assert found.mismatches[0].expected == "Float[embed=4]"


def test_each_row_has_a_dtype_of_its_own() -> None:
    assert isinstance(model("float16", "bfloat16", "float32"), Model)


def test_the_layers_of_a_list_are_one_dtype() -> None:
    found = cs.check(Model, model(layers=["float32", "bfloat16", "bfloat16"]))
    said = [(fault.path, fault.expected, fault.found) for fault in found]
    assert said == [
        ("layers/0/kernel", "Float[embed=4 mlp=6]", "float32[4 6]"),
        ("layers/0/norm/scale", "Float[embed=4]", "float32[4]"),
    ]
    assert {fault.hint for fault in found} == {
        "all of a list are one dtype, and most are bfloat16: cast it, or declare it apart"
    }


def test_a_wrong_shape_is_told_beside_a_dtype_that_is_open() -> None:
    tree = model()
    tree["layers"][1]["kernel"] = of("float32", (4, 5))
    (fault,) = cs.check(Model, tree)
    assert (fault.kind, fault.path) == ("shape", "layers/1/kernel")


def test_a_python_number_does_not_say_which_float_it_is() -> None:
    class Scaled(cs.Schema):
        factor: Float[Array, ""]

    (fault,) = cs.check(Scaled, {"factor": 0.5})
    assert "make it an array" in fault.hint
    assert cs.check(Scaled, {"factor": np.float32(0.5)}).ok


def dtypes(table: cs.Layout) -> dict[str, str]:
    return {"/".join(row.path): row.leaf.dtype for row in table.rows}


def test_one_dtype_is_that_of_all_leaves_of_any_float() -> None:
    assert dtypes(cs.layout(Model, dtype=jnp.bfloat16)) == {
        "embed": "bfloat16",
        "layers[]/norm/scale": "bfloat16",
        "layers[]/kernel": "bfloat16",
        "layers[]/count": "int32",
    }


def test_of_several_globs_the_one_that_names_more_decides() -> None:
    given = {"**": "bfloat16", "layers[]": "float16", "layers[]/norm": jnp.float32}
    wanted = {
        "embed": "bfloat16",
        "layers[]/norm/scale": "float32",
        "layers[]/kernel": "float16",
        "layers[]/count": "int32",
    }
    assert dtypes(cs.layout(Model, dtype=given)) == wanted
    assert dtypes(cs.layout(Model, dtype=dict(reversed(given.items())))) == wanted


@pytest.mark.parametrize(
    ("dtype", "fault"),
    [
        ("int32", "a dtype of floats"),
        (float, "a dtype of floats"),
        ("Float", "a dtype of floats"),
        ({"**": "float32", "head": "float32"}, "leaves that are any float, found none"),
        ({"**": "float32", "layers[]/count": "float32"}, "leaves that are any float, found none"),
        ({"embed": "float32"}, "name it in dtype="),
        ({"layers[]/*": "float32", "*/kernel": "float16", "**": "float32"}, "two, by"),
    ],
)
def test_what_is_no_answer_is_an_error(dtype: Any, fault: str) -> None:
    with pytest.raises(cs.SchemaError, match=fault.replace("*", ".")):
        cs.layout(Model, dtype=dtype)


def test_a_dtype_for_a_layout_that_leaves_none_open_is_an_error() -> None:
    with pytest.raises(cs.SchemaError, match="leaves that are any float, found none"):
        cs.layout(Closed, dtype="bfloat16")


def test_a_default_is_held_against_the_dtype_once_it_is_known() -> None:
    class Filled(cs.Schema):
        scale: Float[Array, " embed"] = cs.field(default=1e30)

    assert dtypes(cs.layout(Filled, dtype="bfloat16")) == {"scale": "bfloat16"}
    with pytest.raises(cs.SchemaError, match=r"a default that float16 can hold, found 1e\+30"):
        cs.layout(Filled, dtype="float16")
    with pytest.raises(cs.SchemaError, match="a default that Float can hold"):

        class Wrong(cs.Schema):
            scale: Float[Array, " embed"] = cs.field(default=True)


def test_what_needs_one_dtype_says_so() -> None:
    typed = cs.layout(Model, dtype="bfloat16")
    for ask in (
        lambda given: cs.testing.Sample({"vocab": 1, "embed": 1, "mlp": 1, "depth": 1}).of(given),
    ):
        with pytest.raises(cs.SchemaError) as caught:
            ask(Model)
        assert [fault.path for fault in caught.value.mismatches] == [
            "embed",
            "layers[]/norm/scale",
            "layers[]/kernel",
        ]
        assert 'say which, cs.layout(Model, dtype="bfloat16")' in str(caught.value)
        ask(typed)


def test_an_abstract_state_is_told_its_dtypes() -> None:
    sizes = {"vocab": 8, "embed": 4, "mlp": 6, "depth": 2}
    with pytest.raises(cs.SchemaError, match='add dtype="bfloat16"'):
        cs.abstract(Model, sizes)
    given = {"**": jnp.float16, "**/norm": "float32"}
    state = cs.abstract(Model, sizes, dtype=given)
    flat = {jax.tree_util.keystr(key): x for key, x in jax.tree.leaves_with_path(state)}
    assert {key: str(x.dtype) for key, x in flat.items()} == {
        "['layers'][0]['count']": "int32",
        "['layers'][0]['kernel']": "float16",
        "['layers'][0]['norm']['scale']": "float32",
        "['layers'][1]['count']": "int32",
        "['layers'][1]['kernel']": "float16",
        "['layers'][1]['norm']['scale']": "float32",
        "['wte']": "float16",
    }
    assert cs.check(cs.layout(Model, dtype=given), state).ok


@pytest.mark.parametrize("framework", [cs.linen, cs.nnx])
def test_weights_alone_are_told_their_dtypes_as_their_schema_is(framework: Any) -> None:
    assert cs.layout(framework.Params[Model], dtype="bfloat16").rows[0].leaf.dtype == "bfloat16"


def test_a_leaf_of_any_float_does_not_differ_from_a_float() -> None:
    typed = cs.layout(Model, dtype={"embed": "float16", "layers[]": "bfloat16"})
    for one, other in ((Model, typed), (typed, Model), (Model, Model)):
        assert cs.diff(one, other).same
    (change,) = cs.diff(typed, cs.layout(Model, dtype={"**": "bfloat16"})).changes
    assert (change.kind, change.path) == ("recast", "embed")
    sized = cs.layout(cs.linen.Params[Norm], dims={"embed": 4})
    assert not cs.diff(sized, {"scale": of("float16")}).changes
    assert [each.kind for each in cs.diff(sized, {"scale": of("int32")}).changes] == ["recast"]


def test_a_layout_with_dtypes_is_one_that_was_declared_so() -> None:
    class Wide(cs.Schema):
        kernel: Float[Array, "embed mlp"]

    class Narrow(cs.Schema):
        kernel: Float[Array, "mlp embed"]

    lens = cs.derive(cs.layout(Wide, dtype="float32"), cs.layout(Narrow, dtype="bfloat16"))
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert lens.get({"kernel": given})["kernel"].tobytes() == (
        np.ascontiguousarray(given.T).astype(jnp.bfloat16).tobytes()
    )


def test_the_source_of_a_leaf_of_any_float_says_so() -> None:
    text = cs.to_source(cs.layout(Model))
    assert 'Float[Array, "vocab embed"]' in text
    assert "import Array, Float, Int32" in text

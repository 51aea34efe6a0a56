"""Schema classes: what each way of declaring means, and what each way of getting it wrong is told.

No ``from __future__ import annotations`` here: annotations are values, and `STRINGS` below is the same as strings.
"""

import sys
import textwrap
import types
from collections.abc import Callable
from typing import Any, ClassVar, Optional

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import (
    Array,
    BFloat16,
    Bool,
    Float32,
    Inexact,
    Int8,
    Int32,
    Key,
    Num,
    PRNGKeyArray,
    Shaped,
    UInt32,
)

import ckpt_schema as cs
from ckpt_schema._layouts import paths
from ckpt_schema._layouts.leaves import Fill, FreshKey


class Norm(cs.Schema):
    scale: Float32[Array, " embed"]


class Mlp(cs.Schema):
    wi: Float32[Array, "embed mlp"]
    wo: Float32[Array, "mlp embed"]


def rows(schema: type[cs.Schema]) -> list[str]:
    """Logical path, key path and leaf of each row."""
    return [f"{'/'.join(row.path)} | {row}" for row in cs.layout(schema).rows]


def faults(declare: Callable[[], Any]) -> list[tuple[str, str, str]]:
    """Path, kind and what was found, for every fault of the error that ``declare`` raises."""
    with pytest.raises(cs.SchemaError) as caught:
        declare()
    assert str(caught.value).count("\n  ") >= len(caught.value.mismatches)
    return [(m.path, m.kind, m.found) for m in caught.value.mismatches]


# --- what is declared  ---


def test_attributes_become_rows_in_the_order_of_the_class() -> None:
    class Block(cs.Schema):
        norm: Norm = cs.field(key="LayerNorm_0")
        qkv: Float32[Array, "embed 3*heads*head_dim"] = cs.field(key="attention/qkv")
        mlp: Mlp

    assert rows(Block) == [
        "norm/scale | LayerNorm_0/scale  float32[embed]",
        "qkv | attention/qkv  float32[embed 3*heads*head_dim]",
        "mlp/wi | mlp/wi  float32[embed mlp]",
        "mlp/wo | mlp/wo  float32[mlp embed]",
    ]


def test_inheritance_adds_overrides_and_keeps_its_place() -> None:
    class Base(cs.Schema):
        a: Float32[Array, " x"]
        b: Float32[Array, " x"]

    class Narrow(Base):
        a: BFloat16[Array, " x"] = cs.field(key="A")
        c: Norm

    assert rows(Narrow) == [
        "a | A  bfloat16[x]",
        "b | b  float32[x]",
        "c/scale | c/scale  float32[embed]",
    ]
    assert rows(Base) == ["a | a  float32[x]", "b | b  float32[x]"]


def test_several_bases_are_resolved_as_python_resolves_attributes() -> None:
    class Base(cs.Schema):
        a: Float32[Array, " base"]

    class Plain(Base): ...

    class Changed(Base):
        a: Float32[Array, " changed"]

    class Both(Plain, Changed): ...

    assert rows(Both) == ["a | a  float32[changed]"]


def test_class_keywords_and_series_of_several_bases_are_all_kept() -> None:
    class Joined(cs.Schema, joined=".", containers={"a": list, "b": list}):
        first: list[Mlp] = cs.field(key="a/{i}", length="one")
        last: list[Mlp] = cs.field(key="b/{i}", length="two")
        layers = cs.series("first[]", "last[]")

    class Tuples(cs.Schema, containers={"c": tuple, "d": tuple}):
        upper: list[Mlp] = cs.field(key="c/{i}", length="three")
        lower: list[Mlp] = cs.field(key="d/{i}", length="four")
        others = cs.series("upper[]", "lower[]")

    class Turned(Joined, containers={"b": tuple}):
        layers = cs.series("last[]", "first[]")

    class Both(Tuples, Turned): ...

    assert [*map(str, cs.layout(Both).series)] == [
        "series('last[]', 'first[]', name='layers[]')",
        "series('upper[]', 'lower[]', name='others[]')",
    ]
    assert {paths.format_path(node.key): node.type for node in Both.__containers__} == {
        "a": list,
        "b": tuple,
        "c": tuple,
        "d": tuple,
    }
    assert len(Both.__containers__) == 4
    assert rows(Both)[0] == "first[]/wi | a.{i}.wi  float32[embed mlp]"
    assert len(cs.layout(Joined).series) == len(cs.layout(Turned).series) == 1


def test_dims_are_renamed_and_fixed_where_a_class_is_used() -> None:
    class Pair(cs.Schema):
        small: Mlp = cs.field(dims={"mlp": "narrow"})
        fixed: Mlp = cs.field(dims={"mlp": 64, "embed": "mlp"})

    class Outer(cs.Schema):
        pair: Pair = cs.field(dims={"narrow": "n", "embed": "e"})

    assert rows(Outer) == [
        "pair/small/wi | pair/small/wi  float32[e n]",
        "pair/small/wo | pair/small/wo  float32[n e]",
        "pair/fixed/wi | pair/fixed/wi  float32[mlp 64]",
        "pair/fixed/wo | pair/fixed/wo  float32[64 mlp]",
    ]


def test_an_axis_becomes_several_where_a_class_is_used() -> None:
    class Dense(cs.Schema):
        kernel: Float32[Array, "inputs outputs"]
        bias: Float32[Array, " outputs"]

    class Outer(cs.Schema):
        query: Dense = cs.field(dims={"inputs": "embed", "outputs": "heads head_dim"})
        square: Dense = cs.field(dims={"inputs": "a b", "outputs": "a b"})

    class Renamed(cs.Schema):
        outer: Outer = cs.field(dims={"heads": "kv*groups"})

    assert rows(Renamed) == [
        "outer/query/kernel | outer/query/kernel  float32[embed kv*groups head_dim]",
        "outer/query/bias | outer/query/bias  float32[kv*groups head_dim]",
        "outer/square/kernel | outer/square/kernel  float32[a b a b]",
        "outer/square/bias | outer/square/bias  float32[a b]",
    ]


def test_the_number_of_repeats_is_renamed_too() -> None:
    class Stack(cs.Schema):
        layers: Norm = cs.field(scan="depth")
        listed: list[Norm] = cs.field(length="depth")

    class Two(cs.Schema):
        encoder: Stack = cs.field(dims={"depth": "encoder_depth"})
        decoder: Stack = cs.field(dims={"depth": 2})

    assert [r.repeats[0].size for r in cs.layout(Two).rows] == [("encoder_depth",)] * 2 + [(2,)] * 2


def test_one_schema_may_be_used_often() -> None:
    class Twice(cs.Schema):
        a: Norm = cs.field(key="x")
        b: Norm = cs.field(key="y")

    assert rows(Twice) == ["a/scale | x/scale  float32[embed]", "b/scale | y/scale  float32[embed]"]


@pytest.mark.parametrize(
    ("axis", "stored"),
    [
        (None, "depth embed mlp"),
        (0, "depth embed mlp"),
        (1, "embed depth mlp"),
        (-1, "embed mlp depth"),
    ],
)
def test_scan_inserts_the_stack_axis(axis: int | None, stored: str) -> None:
    class Stack(cs.Schema):
        layers: Mlp = cs.field(scan="depth", axis=axis)

    assert rows(Stack)[0] == f"layers[]/wi | layers/wi  float32[{stored}]"


def test_a_leaf_may_have_a_stack_axis_of_its_own() -> None:
    class Block(cs.Schema):
        scale: Float32[Array, " embed"] = cs.field(axis=0)
        bias: Float32[Array, " embed"]
        inner: Norm = cs.field(axis=0)
        dropout: cs.Stream["fry"]

    class Stack(cs.Schema):
        layers: Block = cs.field(scan="depth", axis=1)

    assert rows(Stack) == [
        "layers[]/scale | layers/scale  float32[depth embed]",
        "layers[]/bias | layers/bias  float32[embed depth]",
        "layers[]/inner/scale | layers/inner/scale  float32[depth embed]",
        "layers[]/dropout/key | layers/dropout/key  key<fry>[depth]",
        "layers[]/dropout/count | layers/dropout/count  uint32[depth]",
    ]


def test_a_scan_within_a_list_and_within_a_scan() -> None:
    class Inner(cs.Schema):
        blocks: Norm = cs.field(scan="inner", axis=1)

    class Listed(cs.Schema):
        layers: list[Inner] = cs.field(key="layers_{i}", length="outer")

    class Scanned(cs.Schema):
        layers: Inner = cs.field(scan="outer", axis=0)

    assert rows(Listed) == [
        "layers[]/blocks[]/scale | layers_{i}/blocks/scale  float32[embed inner]"
    ]
    assert rows(Scanned) == [
        "layers[]/blocks[]/scale | layers/blocks/scale  float32[outer embed inner]"
    ]


@pytest.mark.parametrize(
    ("key", "keys"),
    [
        (None, [("layers", 0, "scale"), ("layers", 1, "scale")]),
        ("layers/{i}", [("layers", 0, "scale"), ("layers", 1, "scale")]),
        ("layers_{i}", [("layers_0", "scale"), ("layers_1", "scale")]),
        ("layers/'{i}'", [("layers", "0", "scale"), ("layers", "1", "scale")]),
        ("a/{n}/b", [("a", 0, "b", "scale"), ("a", 1, "b", "scale")]),
        ("h{i}_block", [("h0_block", "scale"), ("h1_block", "scale")]),
        ("layers/{i+1}", [("layers", 1, "scale"), ("layers", 2, "scale")]),
        ("layers_{i:02}", [("layers_00", "scale"), ("layers_01", "scale")]),
        ("layers/'{i+9:02}'", [("layers", "09", "scale"), ("layers", "10", "scale")]),
        ("layers_{3*i+1}", [("layers_1", "scale"), ("layers_4", "scale")]),
    ],
)
def test_a_list_is_spelled_as_its_key_says(key: str | None, keys: list[tuple[Any, ...]]) -> None:
    class Stack(cs.Schema):
        layers: list[Norm] = cs.field(key=key, length=2)

    table = cs.layout(Stack)
    assert [entry.key for entry in table.entries({"embed": 3})] == keys
    assert cs.check(Stack, built(keys)) == []
    assert paths.parse_pattern(paths.format_path(table.rows[0].key)) == table.rows[0].key


def built(keys: list[tuple[Any, ...]]) -> Any:
    tree: dict[Any, Any] = {}
    for key in keys:
        node = tree
        for segment in key[:-1]:
            node = node.setdefault(segment, {})
        node[key[-1]] = jax.ShapeDtypeStruct((3,), "float32")
    return tree


class Local(cs.Schema):
    window: Float32[Array, "embed mlp"]


class Global(cs.Schema):
    wide: Float32[Array, "mlp embed"]


@pytest.mark.parametrize(
    ("given", "paths", "keys"),
    [
        ({}, ["layers/0", "layers/1", "layers/2"], [("layers", n) for n in range(3)]),
        (
            {"key": "model/layers/'{i}'"},
            ["layers/0", "layers/1", "layers/2"],
            [("model", "layers", str(n)) for n in range(3)],
        ),
        (
            {"key": "block_{i+1}/inner"},
            ["layers/0", "layers/1", "layers/2"],
            [(f"block_{n + 1}", "inner") for n in range(3)],
        ),
        (
            {"name": "layers_{i}"},
            ["layers_0", "layers_1", "layers_2"],
            [(f"layers_{n}",) for n in range(3)],
        ),
        (
            {"name": "layers_{i}", "key": "model/{i}"},
            ["layers_0", "layers_1", "layers_2"],
            [("model", n) for n in range(3)],
        ),
    ],
)
def test_items_of_a_list_may_differ(
    given: dict[str, Any], paths: list[str], keys: list[tuple[Any, ...]]
) -> None:
    class Model(cs.Schema):
        first: Norm
        layers: list[Local | Global] = cs.field(
            items=[Local, *[Global] * 2], dims={"mlp": "ff"}, **given
        )
        last: Norm

    table = cs.layout(Model)
    rows = table.rows[1:-1]
    assert ["/".join(row.path[:-1]) for row in rows] == paths
    assert [row.path[-1] for row in rows] == ["window", "wide", "wide"]
    assert [row.key[:-1] for row in rows] == keys
    assert [str(row.leaf) for row in rows] == ["float32[embed ff]", *["float32[ff embed]"] * 2]
    assert [row.path for row in (table.rows[0], table.rows[-1])] == [
        ("first", "scale"),
        ("last", "scale"),
    ]


def test_a_list_of_items_is_inherited_and_overridden_and_may_be_lacking() -> None:
    class Base(cs.Schema):
        layers: list[Local | Global] = cs.field(items=[Local, Global], name="layers_{i}")
        head: Norm

    class More(Base):
        extra: list[Local] | None = cs.field(items=[Local] * 2)

    class Fewer(Base):
        layers: list[Local] = cs.field(items=[Local], name="layers_{i}")

    def named(schema: Any) -> list[str]:
        return ["/".join(row.path) for row in cs.layout(schema).rows]

    base = ["layers_0/window", "layers_1/wide", "head/scale"]
    assert named(More) == [*base, "extra/0/window", "extra/1/window"]
    assert [row.optional for row in cs.layout(More).rows] == [False] * 3 + [True] * 2
    assert named(Fewer) == ["layers_0/window", "head/scale"]


@pytest.mark.parametrize(
    ("annotation", "given", "expected"),
    [
        (Local, {"items": [Local, Global]}, "a list[...] annotation beside items="),
        (list[Local], {"items": [Local, Global]}, "the schemas of items= in the annotation"),
        (list[Local | Global], {"items": [Local]}, "the schemas of items= in the annotation"),
        (list[Local], {"items": []}, "at least one schema in items="),
        (list[Local], {"items": 3}, "a list of schemas as items="),
        (list[Local], {"items": [Local], "length": 1}, "items= alone to say how many there are"),
        (list[Local], {"items": [Local], "scan": 1}, "items= alone to say how many there are"),
        (list[Local], {"items": [Local], "tag": "t"}, "value= and tag= on one schema"),
        (list[Local], {"items": [Local], "key": "x"}, "one index symbol in key= beside items="),
        (
            list[Local],
            {"items": [Local], "name": "a/{i}"},
            "one segment with one index symbol as name=",
        ),
        (list[int], {"items": [int]}, "a leaf or a schema"),
    ],
)
def test_what_is_no_list_of_items_is_a_fault(
    annotation: Any, given: dict[str, Any], expected: str
) -> None:
    with pytest.raises(cs.SchemaError) as caught:
        types.new_class(
            "Model",
            (cs.Schema,),
            {},
            lambda body: body.update(
                __annotations__={"layers": annotation}, layers=cs.field(**given)
            ),
        )
    (fault,) = caught.value.mismatches
    assert fault.path.startswith("Model.layers")
    assert fault.expected == expected


def test_a_list_of_leaves() -> None:
    class Tables(cs.Schema):
        tables: list[Int32[Array, "rows 4"]] = cs.field(length="n")

    assert rows(Tables) == ["tables[] | tables/{i}  int32[rows 4]"]
    assert cs.check(Tables, {"tables": [jax.ShapeDtypeStruct((2, 4), "int32")] * 3}).dims == {
        "rows": 2,
        "n": 3,
    }


def test_keys_may_be_ints_and_strings_of_digits() -> None:
    class Odd(cs.Schema):
        a: Norm = cs.field(key="blocks/0")
        b: Norm = cs.field(key="others/'1'")

    assert [r.key for r in cs.layout(Odd).rows] == [
        ("blocks", 0, "scale"),
        ("others", "1", "scale"),
    ]


@pytest.mark.parametrize(
    ("annotation", "leaf"),
    [
        (Float32[Array, ""], "float32[]"),
        (BFloat16[Array, "4 n"], "bfloat16[4 n]"),
        (Int8[Array, " n"], "int8[n]"),
        (UInt32[np.ndarray, " n"], "uint32[n]"),
        (Bool[Array, " n"], "bool[n]"),
        (Float32[jax.ShapeDtypeStruct, " n"], "float32[n]"),
        (cs.Key["fry"], "key<fry>[]"),
        (cs.Key["rbg"], "key<rbg>[]"),
        (cs.Key["urbg", "layers 2"], "key<urbg>[layers 2]"),
        (cs.Key["threefry2x32"], "key<fry>[]"),
        (cs.Key["unsafe_rbg"], "key<urbg>[]"),
    ],
)
def test_a_leaf_is_what_its_annotation_says(annotation: Any, leaf: str) -> None:
    schema = types.new_class(
        "One", (cs.Schema,), exec_body=lambda body: body.update(__annotations__={"x": annotation})
    )
    assert str(cs.layout(schema).rows[0].leaf) == leaf


@pytest.mark.parametrize(
    ("tag", "name"), [("fry", "threefry2x32"), ("rbg", "rbg"), ("urbg", "unsafe_rbg")]
)
def test_streams_conform_to_those_nnx_makes(tag: str, name: str) -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.rngs = nnx.Rngs(dropout=jax.random.key(3, impl=name))

    schema = types.new_class(
        "Streams",
        (cs.Schema,),
        exec_body=lambda b: b.update(__annotations__={"dropout": cs.Stream[tag]}),
    )
    layout = cs.nnx.Params[
        types.new_class(
            "Top", (cs.Schema,), exec_body=lambda b: b.update(__annotations__={"rngs": schema})
        )
    ]
    state = nnx.state(Model())
    assert cs.check(layout, state) == []
    cs.assert_trees_identical(cs.derive(layout, layout).get(nnx.to_pure_dict(state)), state)
    other = "rbg" if tag != "rbg" else "fry"
    state["rngs"]["dropout"]["key"].set_value(
        jax.random.key(3, impl="rbg" if other == "rbg" else "threefry2x32")
    )
    assert [m.kind for m in cs.check(layout, state)] == ["impl"]


def test_variable_types_collections_and_defaults_hold_for_all_below_unless_said_nearer() -> None:
    class Inner(cs.Schema):
        plain: Float32[Array, " n"]
        own: Float32[Array, " n"] = cs.field(type="BatchStat", collection="stats", default=1)
        stream: cs.Stream["rbg"]

    class Outer(cs.Schema):
        inner: Inner = cs.field(type=nnx.Cache, collection="cache", default=cs.fresh_key(5))

    found = {row.path[-1]: row for row in cs.nnx.Params[Outer].rows}
    assert {name: row.kind for name, row in found.items()} == {
        "plain": nnx.Cache, "own": nnx.BatchStat, "key": nnx.RngKey, "count": nnx.RngCount,
    }  # fmt: skip
    assert {name: row.default for name, row in found.items()} == {
        "plain": FreshKey(5), "own": Fill(1), "key": FreshKey(5), "count": FreshKey(5),
    }  # fmt: skip
    assert [row.key[0] for row in cs.linen.Params[Outer].rows] == [
        "cache",
        "stats",
        "cache",
        "cache",
    ]


def test_optional_attributes_may_be_missing() -> None:
    class Dense(cs.Schema):
        kernel: Float32[Array, "i o"]
        bias: Float32[Array, " o"] | None
        scale: Optional[Float32[Array, " o"]]  # noqa: UP045  both spellings are annotations
        norm: Norm = cs.field(optional=True)
        layers: list[Norm] | None = cs.field(length="depth")

    assert [row.optional for row in cs.layout(Dense).rows] == [False, True, True, True, True]

    class Keyed(cs.Schema):
        rng: cs.Key["urbg"] | None
        other: cs.Key["fry", "n"] | None

    assert [(str(row.leaf), row.optional) for row in cs.layout(Keyed).rows] == [
        ("key<urbg>[]", True),
        ("key<fry>[n]", True),
    ]
    kernel = jax.ShapeDtypeStruct((2, 3), "float32")
    assert cs.check(Dense, {"kernel": kernel}) == []
    assert [
        m.kind
        for m in cs.check(Dense, {"kernel": kernel, "bias": jax.ShapeDtypeStruct((4,), "float32")})
    ] == ["shape"]


def test_class_variables_and_plain_values_are_left_alone() -> None:
    class Documented(cs.Schema):
        version: ClassVar[int] = 3
        note = "not a leaf"
        scale: Float32[Array, " embed"]

    assert rows(Documented) == ["scale | scale  float32[embed]"]
    assert Documented.version == 3


def test_a_schema_has_no_instances() -> None:
    with pytest.raises(TypeError, match="declares a layout and has no instances"):
        Norm()


def test_names_that_collide_with_containers_are_attributes_like_any_other() -> None:
    class Attention(cs.Schema):
        key: Norm
        value: Norm
        items: Norm
        params: Norm

    assert [row.path[0] for row in cs.layout(Attention).rows] == ["key", "value", "items", "params"]


# --- annotations as strings  ---

STRINGS = """
from __future__ import annotations
from jaxtyping import Array, Float32
import ckpt_schema as cs

class Norm(cs.Schema):
    scale: Float32[Array, " embed"]

def make():
    class Local(cs.Schema):
        bias: Float32[Array, " embed"]

    class Block(cs.Schema):
        norm: Norm = cs.field(key="LayerNorm_0")
        local: Local | None
        layers: list[Local] = cs.field(length="depth")
        dropout: cs.Stream["urbg"] = cs.field(default=cs.fresh_key(0))
        key: cs.Key["rbg", "n"]
    return Block

class Wrong(cs.Schema):
    later: Later
    typo: Float32[Aray, " embed"]
    stream: cs.Stream["unknown"]
    fine: Norm
"""


def _module(source: str) -> types.ModuleType:
    module = types.ModuleType("declared_as_strings")
    sys.modules[module.__name__] = module
    exec(compile(textwrap.dedent(source), module.__name__, "exec"), vars(module))
    return module


def test_annotations_may_be_strings_that_name_local_classes() -> None:
    block = _module(STRINGS.partition("class Wrong")[0]).make()
    assert rows(block) == [
        "norm/scale | LayerNorm_0/scale  float32[embed]",
        "local/bias | local/bias  float32[embed]",
        "layers[]/bias | layers/{i}/bias  float32[embed]",
        "dropout/key | dropout/key  key<urbg>[]",
        "dropout/count | dropout/count  uint32[]",
        "key | key  key<rbg>[n]",
    ]


def test_each_string_that_does_not_evaluate_is_named() -> None:
    found = faults(lambda: _module(STRINGS))
    assert [path for path, _, _ in found] == ["Wrong.later", "Wrong.typo", "Wrong.stream"]
    assert found[0][2] == "'Later': NameError: name 'Later' is not defined"
    assert found[2] == ("Wrong.stream", "impl", "'unknown'")


# --- what is wrong  ---


def test_every_fault_of_a_class_is_told_at_once() -> None:
    def declare() -> None:
        class Fused(cs.Schema):
            kernel: Float32[Array, "embed 3*heads"]

        class Stack(cs.Schema):
            layers: Norm = cs.field(scan="depth")

        class Bad(cs.Schema):
            module: nnx.Linear
            plain: int
            listed: list
            several: Inexact[Array, " n"]
            anything: Num[Array, " n"]
            shaped: Shaped[Array, " n"]
            key: Key[Array, ""]
            prng: PRNGKeyArray
            rest: Float32[Array, "*batch n"]
            dots: Float32[Array, "... n"]
            nameless: list[Norm]
            counted: Norm = cs.field(length="depth")
            both: list[Norm] = cs.field(length="depth", scan="depth")
            unindexed: list[Norm] = cs.field(key="layers", length="depth")
            indexed: Norm = cs.field(key="layers/{i}")
            twice: list[Norm] = cs.field(key="a/{i}/{j}", length="depth")
            product: Norm = cs.field(scan="2 depth")
            empty: Float32[Array, " n"] = cs.field(key="")
            slash: Norm = cs.field(key="a//b")
            brace: Norm = cs.field(key="a{b")
            collection: Norm = cs.field(collection="")
            renamed: Norm = cs.field(dims={"embd": "e"})
            widened: Fused = cs.field(dims={"heads": "2 e"})
            layered: Stack = cs.field(dims={"depth": "a b"})
            word: Float32[Array, " n"] = cs.field(default="zero")
            fraction: Int32[Array, " n"] = cs.field(default=0.5)
            negative: UInt32[Array, " n"] = cs.field(default=-1)
            filled: cs.Key["fry"] = cs.field(default=0)
            deep: Norm = cs.field(scan="depth", axis=2)
            direct: Float32[Array, " n"] = 3  # type: ignore[assignment]
            forgotten = cs.field(key="f")
            fine: Norm

    found = faults(declare)
    names = [path for path, _, _ in found]
    assert names == [
        "Bad.module", "Bad.plain", "Bad.listed", "Bad.several", "Bad.anything", "Bad.shaped", "Bad.key", "Bad.prng", "Bad.rest",
        "Bad.dots", "Bad.nameless", "Bad.counted", "Bad.both", "Bad.unindexed", "Bad.indexed", "Bad.twice", "Bad.product",
        "Bad.empty", "Bad.slash", "Bad.brace", "Bad.collection", "Bad.renamed", "Bad.widened", "Bad.layered", "Bad.word",
        "Bad.fraction",
        "Bad.negative", "Bad.filled", "Bad.deep[]/scale", "Bad.direct", "Bad.forgotten",
    ]  # fmt: skip


def test_a_default_is_refused_at_the_leaf_below_that_cannot_hold_it() -> None:
    def declare() -> None:
        class Bad(cs.Schema):
            dropout: cs.Stream["fry"] = cs.field(default=1)
            norm: Norm = cs.field(default="one")

    assert faults(declare) == [
        ("Bad.dropout/key", "declaration", "1"),
        ("Bad.norm/scale", "declaration", "'one'"),
    ]


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (Float32[Array, " n"], 0),
        (Float32[Array, " n"], float("nan")),
        (BFloat16[Array, " n"], 0.1),
        (Int8[Array, " n"], -128),
        (Bool[Array, " n"], True),
        (cs.Key["fry"], cs.fresh_key(7)),
        (UInt32[Array, " n"], cs.fresh_key(7)),
    ],
)
def test_defaults_that_fit_are_taken(annotation: Any, default: Any) -> None:
    names = {"__annotations__": {"x": annotation}, "x": cs.field(default=default)}
    schema = types.new_class("One", (cs.Schema,), exec_body=lambda body: body.update(names))
    assert cs.layout(schema).rows[0].default is not None


@pytest.mark.parametrize("tag", ["", "threefry", "key<fry>", "URBG"])
def test_an_unknown_key_implementation_is_an_error(tag: str) -> None:
    assert faults(lambda: cs.Key[tag]) == [(repr(tag), "impl", repr(tag))]
    assert faults(lambda: cs.Stream[tag]) == [(repr(tag), "impl", repr(tag))]


def test_two_leaves_never_have_one_key_path() -> None:
    class Same(cs.Schema):
        a: Norm = cs.field(key="x")
        b: Mlp = cs.field(key="y")
        c: Norm = cs.field(key="x")

    class Above(cs.Schema):
        a: Float32[Array, " n"] = cs.field(key="x")
        b: Norm = cs.field(key="x/y")

    assert faults(lambda: cs.layout(Same)) == [("x/scale", "ambiguous", "a/scale and c/scale")]
    assert faults(lambda: cs.layout(Above)) == [("x/y/scale", "ambiguous", "the leaf x")]
    assert faults(lambda: cs.linen.Params[Same])[0][0] == "params/x/scale"
    assert faults(lambda: cs.nnx.TrainState[Same, optax.sgd(0.1)])[0][0] == "model/x/scale"


def test_an_index_symbol_never_spells_the_key_of_another_leaf() -> None:
    class First(cs.Schema):
        layers: list[Norm] = cs.field(key="layers_{i}", length="depth")
        first: Norm = cs.field(key="layers_0")

    class Tens(cs.Schema):
        layers: list[Norm] = cs.field(key="layers_{i}", length="depth")
        tens: list[Norm] = cs.field(key="layers_1{i}", length="depth")

    class Apart(cs.Schema):
        layers: list[Norm] = cs.field(key="layers_{i}", length="depth")
        other: list[Norm] = cs.field(key="layer_{i}", length="depth")
        last: Norm = cs.field(key="layers_x")
        zero: Norm = cs.field(key="layers_00")
        deep: Norm = cs.field(key="layers_0/inner")
        ints: list[Norm] = cs.field(key="blocks/{i}", length="depth")
        text: Norm = cs.field(key="words/'0'")

    class Turns(cs.Schema):
        dense: list[Norm] = cs.field(key="layers_{2*i}", length="blocks")
        moe: list[Mlp] = cs.field(key="layers_{2*i+1}", length="blocks")

    class Later(cs.Schema):
        dense: list[Norm] = cs.field(key="layers_{i}", length=3)
        moe: list[Norm] = cs.field(key="layers_{i+3}", length="moe")

    class Early(Later):
        moe: list[Norm] = cs.field(key="layers_{i+2}", length="moe")

    assert len(cs.layout(Turns).rows) == 3
    assert [path for path, _, _ in faults(lambda: cs.layout(Early))] == ["layers_{i+2}/scale"]
    tree = built([(f"layers_{i}", "scale") for i in range(5)])
    assert cs.check(Later, tree).dims == {"embed": 3, "moe": 2}
    assert cs.check(Later, tree) == []
    assert [path for path, _, _ in faults(lambda: cs.layout(First))] == ["layers_0/scale"]
    assert [path for path, _, _ in faults(lambda: cs.layout(Tens))] == ["layers_1{i}/scale"]
    assert len(cs.layout(Apart).rows) == 7


@pytest.mark.parametrize("source", [int, {"a": 1}, None, "Norm", Norm.__mro__[2], nnx.Linear])
def test_what_is_no_schema_is_told_so(source: Any) -> None:
    for use in (
        cs.layout,
        lambda s: cs.check(s, {}),
        lambda s: cs.derive(s, Norm),
        lambda s: cs.derive(Norm, s),
    ):
        ((path, kind, _),) = faults(lambda use=use: use(source))
        assert (path, kind) == ("argument", "declaration")


def test_a_layout_is_returned_as_it_is() -> None:
    table = cs.layout(Norm)
    assert cs.layout(table) is table
    assert cs.layout(Norm) == table


# --- what is of another type than asked for  ---


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"key": 0}, "0"),
        ({"collection": 3}, "3"),
        ({"tag": 3}, "3"),
        ({"scan": 1.5}, "1.5"),
        ({"scan": 0}, "0"),
        ({"scan": "depth", "axis": "1"}, "'1'"),
        ({"scan": "depth", "axis": True}, "True"),
        ({"dims": "n"}, "'n'"),
    ],
    ids=str,
)
def test_an_argument_of_another_type_is_a_fault(given: dict[str, Any], found: str) -> None:
    def declare() -> None:
        class Model(cs.Schema):
            w: Norm = cs.field(**given)

    assert faults(declare) == [("Model.w", "declaration", found)]


def test_annotations_of_a_base_that_is_no_schema_are_faults() -> None:
    class Plain:
        b: int

    def declare() -> None:
        class Model(Plain, cs.Schema):
            w: Float32[Array, " n"]

    assert faults(declare) == [("Plain.b", "declaration", "a base that is no schema")]

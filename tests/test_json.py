"""Layouts and lenses as JSON: what is read is what was written, and nothing in a text is run."""

from __future__ import annotations

import enum
import json
import random
import sys
from typing import Any, NamedTuple, get_args

import flax_models
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import test_source
from flax import nnx
from fuzz import texts
from hypothesis import given
from hypothesis import strategies as st
from support import flax_layers, optimizers
from support.families import families
from support.layers import Layers, layers
from support.profiles import examples, sampled

import ckpt_schema as cs
from ckpt_schema._frameworks.named_types import KnownTypes
from ckpt_schema._json.json_objects import JsonObject
from ckpt_schema._json.rules_json import rule_json, rule_read
from ckpt_schema._lens.rules import Rule


def read_again(layout: cs.Layout) -> cs.Layout:
    """What the text of a layout is read as, with no help but that of the transformation."""
    made = cs.from_json(cs.to_json(layout), cs.Layout, like=[layout] if layout.initial else [])
    names = [[row.leaf.names for row in table.rows] for table in (layout, made)]
    assert names[0] == names[1], "equal leaves may call their axes otherwise"
    return made


def _sides(drawn: Layers) -> list[cs.Layout]:
    return [drawn.lens.source, drawn.lens.view]


@pytest.mark.parametrize("name", sampled([*test_source.READINGS], 3))
def test_what_is_read_is_the_layout_that_was_written(name: str) -> None:
    layout = test_source.READINGS[name]()
    assert read_again(layout) == layout


@examples(0.3)
@given(st.one_of(families().map(lambda drawn: drawn.schemas), layers().map(_sides)))
def test_layouts_that_are_drawn_are_read_as_they_were_written(several: Any) -> None:
    for each in several:
        layout = cs.layout(each)
        assert read_again(layout) == layout


@examples(0.1)
@given(layers(tx=optax.sgd(0.1, momentum=0.9)))
def test_lenses_that_are_drawn_do_what_they_did(drawn: Layers) -> None:
    lens, like = drawn.lens, [drawn.lens.source, drawn.lens.view]
    made = cs.from_json(cs.to_json(lens), cs.Lens, like=like)
    (state,) = drawn.states(0)
    cs.assert_trees_identical(made.get(state), lens.get(state))


@pytest.mark.parametrize("name", test_source.LENSES)
def test_what_is_read_is_the_lens_that_was_written(name: str) -> None:
    lens = test_source.LENSES[name][0]()
    like = [table for each in lens.derivations for table in (each.source, each.view)]
    made = cs.from_json(cs.to_json(lens), cs.Lens, like=like)
    assert sorted(str(made).splitlines()) == sorted(str(lens).splitlines())
    assert made.dims == lens.dims
    assert [each.rules for each in made.derivations] == [each.rules for each in lens.derivations]


@pytest.mark.parametrize("rule", test_source.RULES, ids=str)
def test_a_rule_is_made_of_its_data_again(rule: Any) -> None:
    faults: list[cs.Mismatch] = []
    data = json.loads(json.dumps(rule_json(rule), allow_nan=False))
    made = rule_read(JsonObject(data, "rule", faults), KnownTypes())
    assert (made, faults) == (rule, [])
    assert repr(made) == repr(rule)


def test_each_kind_of_rule_is_among_them() -> None:
    more = [cs.cast("a", rounding="nearest"), cs.shift("a", 1.0), cs.scale("a", "dim ** -0.5")]
    more += [cs.replicated(0), cs.replicated(-1, side="view")]
    assert {type(rule) for rule in (*test_source.RULES, *more)} == set(get_args(Rule))
    for rule in more:
        test_a_rule_is_made_of_its_data_again(rule)


NUMBERS = [0, -0.0, 0.1, 1e300, 2**70, True, float("nan"), -float("nan"), float("-inf"), 1j]
NUMBERS += [complex(float("nan"), -0.0), np.float32(0.1), np.int8(-3), ml_dtypes.bfloat16(1.5)]


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_a_number_is_read_to_the_last_bit(number: Any) -> None:
    rule = cs.private("a", number)
    made = rule_read(JsonObject(json.loads(json.dumps(rule_json(rule))), "", []), KnownTypes())
    assert made == rule


def test_a_schema_is_read_as_it_was_declared() -> None:
    layout = cs.layout(texts.Old)  # labels, a sum, a NaN, a Variable type of nobody's, any float
    assert read_again(layout).rows != layout.rows
    assert cs.from_json(cs.to_json(layout), cs.Layout, like=[layout]) == layout


# --- Keys  ---

OWN_KEYS = [
    ("k",),
    (),
    ("kernel", 1, None),
    (("a/b", ("c",)), 0.5),
    None,
    True,
    1.5,
    2j,
    ("{i}", "'"),
]


@pytest.mark.parametrize("key", OWN_KEYS, ids=repr)
def test_a_key_of_any_kind_is_read_as_it_was_written(key: Any) -> None:
    leaf = jnp.zeros(2)
    below = {"w": leaf, "layers": [{"x": leaf}, {"x": leaf}]}
    for layout in (cs.infer({"a": {key: leaf}}), cs.infer({"a": {key: below}})):
        made = read_again(layout)
        assert made == layout
        assert [[*map(type, row.key)] for row in made.rows] == [
            [*map(type, row.key)] for row in layout.rows
        ]


@pytest.mark.parametrize("name", ["SpectralNorm", "WeightNorm"])
def test_a_layer_whose_keys_are_tuples_is_read_as_it_was_written(name: str) -> None:
    layout = cs.infer(flax_layers.of_nnx(name, 2, True))
    assert read_again(layout) == layout


class Color(enum.Enum):
    """Keys of a type of the test's own."""

    RED = 1


@pytest.mark.parametrize("key", [Color.RED, frozenset({1}), (Color.RED,), range(3)], ids=repr)
def test_a_key_of_a_type_of_ones_own_is_refused(key: Any) -> None:
    layout = cs.infer({"a": {key: {"w": jnp.zeros(2)}}})
    for write in (cs.to_json, cs.to_source):
        with pytest.raises(cs.SchemaError) as raised:
            write(layout)
        assert "texts, numbers, None, or tuples of them" in str(raised.value)


@pytest.mark.parametrize(
    "key",
    [
        ["a", 1],
        ["a", {"key": {}}],
        ["a/b"],
        ["a", {"key": 1, "more": 2}],
        {"key": "a"},
        ["a", ""],
        "",
        [],
    ],
    ids=repr,
)
def test_keys_that_are_none_are_told(key: Any) -> None:
    told = json.loads(cs.to_json(cs.infer({"a": {("k",): jnp.zeros(2)}})))
    told["rows"][0]["key"] = key
    with pytest.raises(cs.SchemaError) as raised:
        cs.from_json(json.dumps(told), cs.Layout)
    assert raised.value.mismatches[0].path.startswith("rows/0/key")


# --- Types  ---


class Running(nnx.BatchStat):
    """A Variable type of the test's own."""


class Both(NamedTuple):
    """A container of the test's own."""

    first: Any
    second: Any


def own_types() -> cs.Layout:
    state = {"a": {"mean": Running(jnp.zeros(3))}, "b": nnx.Param(Both(jnp.zeros(2), jnp.zeros(3)))}
    return cs.infer(nnx.State(state))


def test_a_type_is_the_one_that_the_caller_has() -> None:
    layout = own_types()
    assert cs.from_json(cs.to_json(layout), cs.Layout, like=[layout]) == layout


def test_a_type_that_nobody_has_is_told_by_its_name_alone() -> None:
    text = cs.to_json(own_types())
    one, other = (cs.from_json(text, cs.Layout) for _ in range(2))
    assert one == other
    assert str(one) == str(own_types())
    assert one != own_types()
    kinds = [row.kind for row in one.rows if row.kind.__name__ == "Running"]
    assert [issubclass(kind, nnx.BatchStat) for kind in kinds] == [True]
    # What would need the type itself is an error, and no tree of another type.
    with pytest.raises(cs.CkptSchemaError, match="read the text with like="):
        cs.abstract(one)


def test_two_types_of_one_name_cannot_be_written() -> None:
    def made() -> type[nnx.Variable[Any]]:
        class Local(nnx.Variable[Any]):
            """One of many."""

        return Local

    state = nnx.State({"a": made()(jnp.zeros(2)), "b": made()(jnp.zeros(2))})
    with pytest.raises(cs.SchemaError, match="one type of a name"):
        cs.to_json(cs.infer(state))


def test_the_transformation_is_that_of_the_layout_that_the_caller_has() -> None:
    layout = cs.layout(cs.linen.TrainState[flax_models.ScannedSchema, optax.adamw(1e-3)])
    text = cs.to_json(layout)
    assert cs.from_json(text, cs.Layout).initial is None
    assert cs.from_json(text, cs.Layout, like=[layout]).initial is layout.initial
    other = cs.layout(cs.linen.TrainState[flax_models.ScannedSchema, optax.sgd(1e-3)])
    assert cs.from_json(text, cs.Layout, like=[other]).initial is None


# --- Damaged texts  ---


def test_damage_is_told_all_at_once_with_the_place() -> None:
    told = json.loads(cs.to_json(cs.infer({"params": {"a": jnp.zeros(2), "b": jnp.zeros(3)}})))
    told["rows"][0]["leaf"] = "float33[2]"
    told["rows"][1]["repeats"] = [["4", 7]]
    told["more"] = 1
    with pytest.raises(cs.SchemaError) as error:
        cs.from_json(json.dumps(told), cs.Layout)
    places = [fault.path for fault in error.value.mismatches]
    assert places == ["rows/0/leaf", "rows/1/repeats", "rows/1/repeats", "'more'"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "JSON"),
        ("<<<<<<< HEAD", "a merge may have left marks"),
        ("[" * 100_000, "lists in lists"),
        ('{"ckpt_schema": "layout", "ckpt_schema": "layout"}', "twice"),
        ('{"ckpt_schema": "layout", "version": NaN}', "NaN"),
        ('{"ckpt_schema": "layout", "version": 2}', "which this release reads"),
        ('{"ckpt_schema": "lens", "version": 1}', "'lens'"),
        ("\ud800", "surrogates"),
    ],
    ids=range(8),
)
def test_what_is_no_text_of_a_layout_is_said(text: str, said: str) -> None:
    with pytest.raises(cs.SchemaError, match=said):
        cs.from_json(text, cs.Layout)


class Watch:
    """Notes what Python runs, imports or opens, where it is told to; no hook can be taken away again."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: Any) -> None:
        watched = ("exec", "compile", "import", "open", "os.system", "subprocess.Popen")
        if self.on and event in watched:
            self.seen.append(event)


def test_nothing_in_a_text_is_evaluated_or_imported() -> None:
    layouts = [text for text in texts.whole() if '"ckpt_schema": "layout"' in text]
    every = [(text, random.Random(seed)) for seed in range(40) for text in layouts]
    damaged = [texts.damaged(text, drawn) for text, drawn in every]
    watch, ends = Watch(), {"taken": 0, "refused": 0}
    watch.on = True
    for text in damaged:
        try:
            cs.from_json(text, cs.Layout)
        except cs.SchemaError:
            ends["refused"] += 1
        else:
            ends["taken"] += 1
    watch.on = False
    assert not watch.seen
    assert min(ends.values()) > 10
    watch.on = True
    eval("1")  # which it does see
    watch.on = False
    assert watch.seen


# --- The text  ---


def test_a_change_of_a_model_is_a_small_change_of_its_text() -> None:
    def text(width: int) -> list[str]:
        layer = {"up": jnp.zeros((4, width)), "down": jnp.zeros((8, 4))}
        params = {f"layers_{n}": layer for n in range(12)}
        return cs.to_json(cs.infer({"params": params}, lists=["layers_{i}"])).splitlines()

    before, after = text(8), text(16)
    assert len(before) == len(after)
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_what_json_has_nothing_like_is_an_error() -> None:
    with pytest.raises(cs.SchemaError, match="cannot be written as JSON"):
        cs.to_json(cs.layout(cs.infer({"\ud800": jnp.zeros(2)})))


if __name__ == "__main__":  # all of optax, which takes half a minute
    names = [name for name in optimizers.found() if name not in optimizers.EXCEPTIONS]
    wrong: list[str] = []
    for name in names:
        sizes = optimizers.SIZED.get(name, optimizers.SIZES)
        tx = optimizers.make(name)
        for state in (
            optimizers.linen_state(tx, sizes),
            nnx.state(optimizers.NnxTrainState(tx, sizes)),
        ):
            layout = cs.infer(jax.eval_shape(lambda state=state: state))
            if read_again(layout) != layout:
                wrong.append(name)
    print(f"{len(names)} transformations, read otherwise: {wrong or 'none'}")

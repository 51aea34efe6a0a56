"""Whatever a caller declares or passes, what is wrong with it is a named error: never another exception, and never a hang."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jaxtyping import Array, Float32, Int32

import ckpt_schema as cs

X = jnp.zeros(2)
HUGE = 10**400
LONG = 10**5000  # which Python does not even write
DIGITS = "9" * 5000


class Plain(cs.Schema):
    step: Int32[Array, ""]
    w: Float32[Array, " a"]


class Other(cs.Schema):
    step: Int32[Array, ""]
    w: Float32[Array, " a"] = cs.field(key="ww")


class Listed(cs.Schema):
    w: list[Float32[Array, " a"]] = cs.field(key="w_{i}", length="n")


class Ints(cs.Schema):
    w: list[Float32[Array, " a"]] = cs.field(length="n")


LENS = cs.derive(Plain, Other)
STATE = cs.linen.TrainState[Other, optax.adam(1e-3)]


def schema(annotation: Any, value: Any = None, name: str = "w") -> Any:
    """A schema of one attribute."""
    body = {"__annotations__": {name: annotation}}
    return type("Declared", (cs.Schema,), body if value is None else {**body, name: value})


def declared(**spec: Any) -> Callable[[], Any]:
    """What declares a leaf with these arguments of ``field``."""
    return lambda: cs.layout(schema(Float32[Array, "a b"], cs.field(**spec)))


def checked(table: Any, tree: Any) -> Callable[[], Any]:
    """What raises what is wrong with a tree."""
    return lambda: cs.assert_conforms(table, tree)


def nested(levels: int) -> Any:
    """A tree of so many dicts, one in the other."""
    tree: Any = X
    for _ in range(levels):
        tree = {"a": tree}
    return tree


def mixed() -> Any:
    """A schema with an int key beside a string key."""
    pair = {"a": Float32[Array, " x"], "b": Float32[Array, " x"]}
    return type("Mixed", (cs.Schema,), {"__annotations__": pair, "a": cs.field(key="0")})


DEEP = nested(3000)

# What is done, and a word of each of: where, what was expected, what was found, the cure.
RAW: dict[str, tuple[Callable[[], Any], list[str]]] = {
    # trees
    "a number that no dtype holds": (
        lambda: cs.infer({"step": 2**31}),
        ["step", "integers hold", "2147483648", "jax_enable_x64"],
    ),
    "nothing": (lambda: cs.infer(None), ["the tree", "a dict", "None", "pass the state"]),
    "a lone leaf": (lambda: cs.infer(X), ["the tree", "a dict", "float32[2]", "a name"]),
    "a leaf for a chain": (
        checked(STATE, {"opt_state": X, "step": jnp.int32(0), "params": {"params": {"ww": X}}}),
        ["opt_state", "nothing", "float32[2]"],
    ),
    "5000 digits in a key": (checked(Listed, {f"w_{DIGITS}": X}), ["w_99", "nothing", "float32"]),
    "5000 digits as a key": (checked(Ints, {"w": {DIGITS: X}}), ["w/'99", "nothing", "float32"]),
    "an int key of 5000 digits": (
        checked(Ints, {"w": {LONG: X}}),
        ["w ", "int keys up to", "too many digits"],
    ),
    "a tuple as a key": (checked(Listed, {("a", "b"): X}), ["('a', 'b')", "nothing", "float32"]),
    "None as a key": (checked(Listed, {None: X}), ["None", "nothing", "float32[2]"]),
    "bytes as a key": (checked(Listed, {b"w_0": X}), ["b'w_0'", "nothing", "float32[2]"]),
    "a float as a key": (checked(Listed, {1.0: X}), ["1.0", "nothing", "float32[2]"]),
    "a bool as a key": (checked(Ints, {"w": {False: X}}), ["w/False", "nothing", "float32[2]"]),
    "int and string keys": (
        lambda: cs.check(Plain, {"step": {0: X, "a": X}}),
        ["step", "keys of one kind", "int key 0 and str key 'a'", "not have both"],
    ),
    "keys without an order": (
        lambda: cs.infer({"a": {object(): X, object(): X}}),
        ["a ", "keys of one kind", "object", "use strings"],
    ),
    "int and string keys of a target": (
        lambda: cs.orbax.restore("nowhere", {"step": 0, 1: 2}, LENS),
        ["(root)", "keys of one kind", "str key 'step' and int key 1", "not have both"],
    ),
    "int and string keys of two trees": (
        lambda: cs.differences({"a": {0: X, "a": X}}, {}),
        ["a ", "keys of one kind", "int key 0 and str key 'a'", "not have both"],
    ),
    "3000 levels, inferred": (lambda: cs.infer(DEEP), ["a/a/a/...", "300 levels", "more"]),
    "3000 levels, checked": (lambda: cs.check(Plain, DEEP), ["a/a/a/...", "300 levels", "more"]),
    "3000 levels, compared": (
        lambda: cs.differences(DEEP, DEEP),
        ["a/a/a/...", "300 levels", "more", "the state itself"],
    ),
    "3000 levels, taken": (lambda: LENS.get(DEEP), ["a/a/a/...", "300 levels", "more"]),
    "3000 levels, as a target": (
        lambda: cs.orbax.restore("nowhere", DEEP, LENS),
        ["a/a/a/...", "300 levels", "more"],
    ),
    "3000 levels, saved": (
        lambda: cs.orbax.save("nowhere", DEEP, LENS),
        ["a/a/a/...", "300 levels", "more"],
    ),
    # declarations
    "a key among the params": (
        lambda: cs.linen.TrainState[schema(cs.Key["fry"], name="k"), optax.adam(1e-3)],
        ["k ", "params that are arrays", "key<fry>[]", "field(collection="],
    ),
    "an int key beside a string key": (
        lambda: cs.layout(mixed()),
        ["0  expected", "keys of one kind", "int key 0 and the string key b", "in quotes"],
    ),
    "type": (declared(type=object()), ["Declared.w", "a Variable type", "object", "field"]),
    "type, a key": (declared(type=cs.fresh_key(0)), ["Declared.w", "a Variable type", "FreshKey"]),
    "dims to None": (declared(dims={"a": None}), ["Declared.w", "names", "{'a': None}"]),
    "dims from a number": (declared(dims={1: "a"}), ["Declared.w", "names", "{1: 'a'}"]),
    "dims, an array": (declared(dims=X), ["Declared.w", "a dict from names", "Array([0., 0."]),
    "optional, an array": (declared(optional=X), ["Declared.w", "True or False", "Array([0., 0."]),
    "optional, a number": (declared(optional=1), ["Declared.w", "True or False", "found 1"]),
    "ephemeral, an array": (declared(ephemeral=X), ["Declared.w", "True or False", "Array([0."]),
    "default, an array": (declared(default=X), ["Declared.w", "default"]),
    "default, too large": (declared(default=HUGE), ["Declared.w", "default"]),
    "default, too long": (declared(default=LONG), ["Declared.w", "default"]),
    "axis, a float": (declared(axis=0.5), ["Declared.w", "an integer", "0.5"]),
    "scan, too large": (declared(scan=HUGE), ["Declared.w", "one dim", "1000000"]),
    "scan, too long": (declared(scan=LONG), ["Declared.w", "one dim", "too many digits"]),
    "key, a number": (declared(key=0), ["Declared.w", "a string", "found 0"]),
    "key, a wide symbol": (
        lambda: cs.layout(schema(list[Plain], cs.field(key="a{i:0999999999}", length="n"))),
        ["a{i:0999999999}", "index symbols in braces"],
    ),
    "key, a long step": (
        lambda: cs.layout(schema(list[Plain], cs.field(key=f"a{{{DIGITS}*i}}", length="n"))),
        ["index symbols in braces", "layers_{2*i}"],
    ),
    "key, a quote": (declared(key="'"), ["Declared.w", "a closing quote", "written twice"]),
    "key, empty": (declared(key=""), ["Declared.w", "the empty key is written ''"]),
    "key, an empty part": (declared(key="a//b"), ["Declared.w", "a key between two slashes"]),
    "key, an open brace": (
        declared(key="{"),
        ["Declared.w", "index symbols in braces", "layers_{i}"],
    ),
    "a size of 5000 digits": (
        lambda: cs.layout(schema(Float32[Array, DIGITS])),
        ["a product of names, integers and sums", "99999"],
    ),
    # arguments
    "scale by an int that no float holds": (
        lambda: cs.scale("w", HUGE),
        ["factor", "a finite number", "1000000"],
    ),
    "scale by nan": (lambda: cs.scale("w", float("nan")), ["factor", "a finite number", "nan"]),
    "private, too large": (
        lambda: cs.derive(
            Plain, cs.layout(schema(Float32[Array, ""])), rules=[cs.private("w", HUGE)]
        ),
        ["private("],
    ),
    "private, an array": (
        lambda: cs.private("w", X),  # type: ignore[arg-type]
        ["default", "a number", "Array([0., 0.]", "fresh_key(0)"],
    ),
    "apart, a word": (
        lambda: cs.apart("w", "x"),  # type: ignore[arg-type]
        ["default", "a number", "'x'", "fresh_key(0)"],
    ),
    "dims by numbers": (
        lambda: cs.derive(Plain, Other, dims={1: 2}),  # type: ignore[dict-item]
        ["1 ", "the name of a dim", 'dims={"embed": 512}'],
    ),
    "fuse, an axis that is none": (
        lambda: cs.fuse("qk", ["q", "k"], axis=1.5),  # type: ignore[arg-type]
        ["fuse(...)", "one dim", "1.5", "vocab"],
    ),
    "pad, a dim that is none": (
        lambda: cs.pad("w", 3, "b"),  # type: ignore[arg-type]
        ["pad(...)", "one dim", "found 3"],
    ),
    "dims that are none": (
        lambda: cs.derive(Plain, Other, dims={"a": 1.5}),  # type: ignore[dict-item]
        ["a ", "1.5"],
    ),
}


@pytest.mark.parametrize("what", RAW)
def test_4_a_raw_exception_is_a_named_error(what: str) -> None:
    do, words = RAW[what]
    with pytest.raises(cs.CkptSchemaError) as caught:
        do()
    text = str(caught.value)
    assert caught.value.mismatches
    assert [word for word in words if word not in text] == [], text
    assert len(text) < 8000


def test_4_a_length_that_no_list_has_takes_no_time() -> None:
    table = cs.layout(schema(list[Plain], cs.field(length=10**17)))
    assert not cs.check(table, {"w": {0: {"step": jnp.int32(1), "w": X}}}).ok


def test_4_virtual_devices_need_no_hypothesis(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("hypothesis", "ckpt_schema.testing"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delattr(cs, "testing", raising=False)
    from ckpt_schema import testing

    testing.virtual_devices(len(jax.devices()))
    with pytest.raises(cs.CkptSchemaError, match="hypothesis, which LensLaws needs") as caught:
        _ = testing.LensLaws
    assert isinstance(caught.value, ImportError)
    assert "pip install" in str(caught.value)


def test_4_a_key_that_ends_with_a_quote_is_declared_as_it_is_told() -> None:
    for key in ("a'", "'", "'a"):
        written = "'" + key.replace("'", "''") + "'"
        table = cs.layout(schema(Float32[Array, " a"], cs.field(key=written)))
        assert cs.check(table, {key: X}).ok
        assert cs.check(table, {}).mismatches[0].path == written


def levels_left() -> int:
    """How deep Python still may call."""
    try:
        return 1 + levels_left()
    except RecursionError:
        return 0


def test_4_trees_that_jax_cannot_flatten_cost_no_levels_of_calls() -> None:
    """A flatten that fails takes a level from the process for good: none is tried."""
    before = levels_left()
    for _ in range(40):
        for do in (
            lambda: cs.check(Plain, {"step": {0: X, "a": X}}),
            lambda: LENS.get({"step": 0, 1: 2}),
        ):
            with pytest.raises(cs.CkptSchemaError):
                do()
    assert levels_left() > before - 10


class Tied(cs.Schema):
    emb: Float32[Array, "v e"]
    head: Float32[Array, "e v"]


@pytest.mark.parametrize("view", ["emb2", "params"])
def test_4_a_rename_that_leads_out_of_the_model_is_a_named_error(view: str) -> None:
    table = cs.layout(cs.linen.Params[Tied])
    with pytest.raises(cs.DerivationError) as raised:
        cs.derive(table, table, rules=[cs.rename("params/emb", view)])
    assert "params/emb" in str(raised.value)
    assert not raised.value.rules  # that the leaf has a rule already is no secret


class Parts(cs.Schema):
    q: Float32[Array, "e h"]
    k: Float32[Array, "e h"]
    n: Float32[Array, " e"]


class Whole(cs.Schema):
    qk: Float32[Array, "e 2*h"]
    n: Float32[Array, " e"]


def test_4_a_leaf_that_is_renamed_to_the_whole_of_others_is_a_named_error() -> None:
    rules = [cs.fuse("qk", ["q", "k"]), cs.rename("n", "qk")]
    with pytest.raises(cs.DerivationError) as raised:
        cs.derive(Parts, Whole, rules=rules)
    assert "rename one of them" in str(raised.value)

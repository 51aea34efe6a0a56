"""Rules for the numbers in leaves: rounded, scaled by any factor, shifted; and floats that are cast without a word."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, BFloat16, Complex64, Float32, Int32

import ckpt_schema as cs
from ckpt_schema._lens import expressions
from ckpt_schema._lens.codecs import Codec, Exact, Plus, Rounded, Times, inverted
from ckpt_schema._lens.derive.leaf_rules import UNTOLD, Told, codec_of
from ckpt_schema.testing._values import hostile


class Wide(cs.Schema):
    q: Float32[Array, "embed heads*head_dim"]
    norm: Float32[Array, " embed"]
    count: Int32[Array, ""]


class Narrow(cs.Schema):
    q: BFloat16[Array, "heads*head_dim embed"]
    norm: Float32[Array, " embed"]
    count: Int32[Array, ""]


DIMS = {"heads": 2, "head_dim": 3}
ROUNDED = cs.cast("q", rounding="nearest")


def wide(seed: int = 0, dtype: str = "float32") -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "q": hostile(rng, dtype, (4, 6)),
        "norm": rng.normal(size=4).astype("float32"),
        "count": np.int32(3),
    }


def octets(value: Any) -> bytes:
    return np.asarray(value).tobytes()


def text_of(use: Any, error: type[Exception] = cs.CkptSchemaError) -> str:
    with pytest.raises(error) as caught:
        use()
    return str(caught.value)


# --- Casts ---


def test_a_wider_float_holds_every_bit_and_the_way_back_gives_it() -> None:
    lens = cs.derive(Narrow, Wide).bind(**DIMS)
    state = {**wide(), "q": hostile(np.random.default_rng(1), "bfloat16", (6, 4))}
    for given in (state, jax.tree.map(jnp.asarray, state)):
        view = lens.get(given)
        assert view["q"].dtype == "float32"
        assert octets(view["q"]) == octets(state["q"].T.view("u2").astype("u4") << 16)
        assert octets(lens.put(view)["q"]) == octets(state["q"])
    traced = jax.jit(lens.get)(
        jax.tree.map(jnp.asarray, state)
    )  # whatever the values, none is lost
    assert octets(traced["q"]) == octets(view["q"])


def test_a_narrower_float_refuses_what_it_does_not_have() -> None:
    lens = cs.derive(Wide, Narrow).bind(**DIMS)
    state = {**wide(), "q": np.ones((4, 6), "float32")}
    assert lens.get(state)["q"].dtype == "bfloat16"
    state["q"][1, 2] = 1.001
    for given in (state, jax.tree.map(jnp.asarray, state)):
        said = text_of(lambda given=given: lens.get(given), cs.ConformanceError)
        assert "q  expected values that bfloat16 has" in said
        assert "at [1 2], which comes back as 1.0" in said
        assert "add cs.cast('q', rounding='nearest') to the rules" in said
    traced = text_of(lambda: jax.jit(lens.get)(jax.tree.map(jnp.asarray, state)))
    assert "is checked by value: translate outside of jit" in traced


def test_the_line_that_rounds_is_in_the_words_of_the_view_both_ways() -> None:
    """A stack against layers, under another name: the line pasted, the refused values go through."""
    layers = {f"layers_{n}": {"kernel": np.full((2, 3), 1.001, "float32")} for n in range(2)}
    stack = {"blocks": {"kernel": np.ones((2, 2, 3), "bfloat16")}}
    rules = [cs.rename("layers[]", "blocks[]")]
    for turned in (False, True):
        sides = [{"params": layers}, {"params": stack}]
        if turned:
            sides, rules = sides[::-1], [cs.rename("blocks[]", "layers[]")]
        words: Any = {"scan": {"blocks": 0}, "lists": ["layers_{i}"]}
        lens = cs.adapt(*sides, rules=rules, **words)
        said = text_of(
            lambda lens=lens, turned=turned: (lens.put if turned else lens.get)({"params": layers}),
            cs.ConformanceError,
        )
        [line] = re.findall(r"add (cs\.cast\(.*\)) to the rules", said)
        assert line == f"cs.cast('{'layers' if turned else 'blocks'}[]/kernel', rounding='nearest')"
        lens = cs.adapt(*sides, rules=[*rules, eval(line, {"cs": cs})], **words)
        made = (lens.put if turned else lens.get)({"params": layers})
        assert (made["params"]["blocks"]["kernel"] == 1).all()


def test_a_rule_lets_floats_be_rounded() -> None:
    lens = cs.derive(Wide, Narrow, rules=[ROUNDED]).bind(**DIMS)
    state = {**wide(), "q": np.random.default_rng(2).normal(size=(4, 6)).astype("float32")}
    expected = state["q"].T.astype(jnp.bfloat16)
    given = jax.tree.map(jnp.asarray, state)
    for view in (lens.get(state), lens.get(given), jax.jit(lens.get)(given)):
        assert octets(view["q"]) == octets(expected)
    back = lens.put(lens.get(state))
    assert octets(back["q"]) == octets(expected.T.astype("float32"))
    state["q"][0, 0] = 3.4e38
    assert "comes back as inf" in text_of(lambda: lens.get(state), cs.ConformanceError)


def test_what_an_optimizer_keeps_is_rounded_as_its_param_is() -> None:
    tx = optax.sgd(0.1, momentum=0.9)
    sides = cs.linen.BareTrainState[Wide, tx], cs.linen.BareTrainState[Narrow, tx]
    lens = cs.derive(*sides, rules=[ROUNDED]).bind(**DIMS)
    params = jax.tree.map(jnp.asarray, {**wide(), "q": np.full((4, 6), 1 / 3, "float32")})
    state = {"params": params, "opt_state": tx.init(params), "step": jnp.int32(0)}
    made = lens.get(state)
    assert made["opt_state"][0].trace["q"].dtype == jnp.bfloat16
    assert octets(made["params"]["q"]) == octets(np.full((6, 4), 1 / 3, jnp.bfloat16))


def test_a_cast_to_no_float_is_refused() -> None:
    class Whole(cs.Schema):
        q: Int32[Array, "embed heads*head_dim"]
        norm: Complex64[Array, " embed"]
        count: Int32[Array, ""]

    said = text_of(lambda: cs.derive(Wide, Whole), cs.DerivationError)
    assert said.count("only integers are cast to integers, and floats to floats") == 2


# --- Factors and sums ---


@pytest.mark.parametrize("factor", [0.3, -2.5, "head_dim ** -0.5", "-(heads + 2*head_dim) / 3"])
def test_any_factor_multiplies_and_the_way_back_divides(factor: float | str) -> None:
    lens = cs.derive(Wide, Wide, rules=[cs.scale("q", factor)]).bind(**DIMS)
    number = eval(factor, {}, DIMS) if isinstance(factor, str) else factor
    by = np.float32(number)
    state = {**wide(), "q": np.random.default_rng(3).normal(size=(4, 6)).astype("float32")}
    for given in (state, jax.tree.map(jnp.asarray, state)):
        view = lens.get(given)
        assert octets(view["q"]) == octets(state["q"] * by)
        assert octets(view["norm"]) == octets(state["norm"])
        assert octets(lens.put(view)["q"]) == octets(state["q"] * by / by)
    traced = jax.jit(lens.get)(jax.tree.map(jnp.asarray, state))
    assert octets(traced["q"]) == octets(state["q"] * by)


def test_an_expression_takes_the_sizes_of_the_tree() -> None:
    lens = cs.derive(Narrow, Wide, rules=[cs.scale("q", "(2*embed) ** -1")])
    state = {**wide(), "q": np.full((6, 4), 24.0, jnp.bfloat16)}
    assert lens.bind(**DIMS).get(state)["q"].tolist() == [[3.0] * 6] * 4


def test_a_power_of_two_is_as_exact_as_it_was_whatever_its_sign() -> None:
    for factor in (0.125, "2 ** -3", -0.125):
        rule = cs.scale("q", factor)
        lens = cs.derive(Wide, Wide, rules=[rule]).bind(**DIMS)
        state = {**wide(), "q": np.full((4, 6), 1e-37, "float32")}
        assert octets(lens.get(state)["q"]) == octets(state["q"] * np.float32(rule.factor))
        state["q"][0, 3] = np.float32(1e-38) * 1.00001
        assert "over- or underflows" in text_of(lambda: lens.get(state), cs.ConformanceError)  # noqa: B023


def test_a_shift_comes_after_a_factor_and_is_taken_off_before_it() -> None:
    rules = [cs.shift("norm", 1.0), cs.scale("norm", 0.3)]
    for ordered in (rules, rules[::-1]):
        lens = cs.derive(Wide, Wide, rules=ordered).bind(**DIMS)
        state, by, one = wide(), np.float32(0.3), np.float32(1)
        view = lens.get(state)
        assert octets(view["norm"]) == octets(state["norm"] * by + one)
        assert octets(lens.put(view)["norm"]) == octets((view["norm"] - one) / by)
        assert octets((~lens).put(state)["norm"]) == octets(view["norm"])


def test_values_are_scaled_in_the_wider_dtype() -> None:
    rules = [cs.scale("q", 0.3), ROUNDED]
    state = {**wide(), "q": np.random.default_rng(5).normal(size=(4, 6)).astype("float32")}
    down = cs.derive(Wide, Narrow, rules=rules).bind(**DIMS)
    by = np.float32(0.3)
    assert octets(down.get(state)["q"]) == octets((state["q"] * by).T.astype(jnp.bfloat16))
    narrow = {**state, "q": state["q"].T.astype(jnp.bfloat16)}
    up = cs.derive(Narrow, Wide, rules=rules).bind(**DIMS)
    assert octets(up.get(narrow)["q"]) == octets(narrow["q"].T.astype("float32") * by)


class Parts(cs.Schema):
    q: Float32[Array, "embed heads head_dim"]
    k: Float32[Array, "embed heads head_dim"]


class Whole(cs.Schema):
    qk: BFloat16[Array, "2*heads*head_dim embed"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_part_is_scaled_and_the_whole_is_rounded(turned: bool) -> None:
    fuse = cs.fuse("qk", ["q", "k"])
    rules = [fuse, cs.scale("q", "head_dim ** -0.5"), cs.shift("k", 1.0)]
    rules += [cs.cast(name, rounding="nearest") for name in ("q", "k")]
    sides = (Whole, Parts) if turned else (Parts, Whole)
    lens = cs.derive(*sides, rules=rules).bind(heads=2, head_dim=3)
    rng = np.random.default_rng(6)
    parts = {name: rng.normal(size=(4, 2, 3)).astype("float32") for name in "qk"}
    by, one = np.float32(3**-0.5), np.float32(1)
    if turned:  # the view's parts are scaled, and the source's whole is not
        fused = np.concatenate([parts[name].reshape(4, 6).T for name in "qk"])
        whole = {"qk": fused.astype(jnp.bfloat16)}
        wide = whole["qk"].astype("float32").reshape(2, 6, 4).transpose(0, 2, 1)
        for given in (whole, jax.tree.map(jnp.asarray, whole)):
            made = lens.get(given)
            assert octets(made["q"]) == octets(wide[0] * by)
            assert octets(made["k"]) == octets(wide[1] + one)
        assert lens.put(made)["qk"].dtype == "bfloat16"
        return
    wanted = np.concatenate(
        [(parts["q"] * by).reshape(4, 6).T, (parts["k"] + one).reshape(4, 6).T]
    ).astype(jnp.bfloat16)
    for given in (parts, jax.tree.map(jnp.asarray, parts)):
        assert octets(lens.get(given)["qk"]) == octets(wanted)
    traced = jax.jit(lens.get)(jax.tree.map(jnp.asarray, parts))
    assert octets(traced["qk"]) == octets(wanted)


def test_what_overflows_is_an_error_though_a_product_may_be_rounded() -> None:
    lens = cs.derive(Wide, Wide, rules=[cs.scale("q", 3.0)]).bind(**DIMS)
    state = {**wide(), "q": np.full((4, 6), 2e38, "float32")}
    assert "at [0 0], which comes back as inf" in text_of(lambda: lens.get(state))


def test_derivatives_go_through_factors_and_casts() -> None:
    rules = [cs.scale("q", 0.5 + 0.25), cs.shift("norm", 1.0), ROUNDED]
    lens = cs.derive(Wide, Narrow, rules=rules).bind(**DIMS)
    floats = {name: jnp.ones(x.shape) for name, x in wide().items() if name != "count"}

    def total(tree: Any) -> Any:
        view = lens.get({**tree, "count": jnp.int32(0)})
        return view["q"].astype("float32").sum() + 2 * view["norm"].sum()

    found = jax.grad(total)(floats)
    assert found["q"].tolist() == [[0.75] * 6] * 4
    assert found["norm"].tolist() == [2.0] * 4


# --- What an optimizer keeps ---


def _trained(tx: Any) -> dict[str, Any]:
    params = {"q": jnp.full((4, 6), 0.5), "norm": jnp.full(4, 0.25), "count": jnp.int32(0)}
    floats = {name: params[name] for name in ("q", "norm")}
    grads = jax.tree.map(jnp.ones_like, floats)
    state = tx.update(grads, tx.init(floats), floats)[1]
    return {"params": floats, "opt_state": state, "step": jnp.int32(1)}


class Floats(cs.Schema):
    q: Float32[Array, "embed out"]
    norm: Float32[Array, " embed"]


def test_moments_go_by_the_powers_of_any_factor_and_are_not_shifted() -> None:
    tx = optax.adam(1e-3)
    side = cs.linen.BareTrainState[Floats, tx]
    rules = [cs.scale("q", "embed ** 0.5 * 3"), cs.shift("norm", 1.0)]
    state = _trained(tx)
    made = cs.derive(side, side, rules=rules).get(state)
    before, after = state["opt_state"][0], made["opt_state"][0]
    np.testing.assert_allclose(after.mu["q"], before.mu["q"] / 6, rtol=1e-6)
    np.testing.assert_allclose(after.nu["q"], before.nu["q"] / 36, rtol=1e-6)
    assert octets(made["params"]["q"]) == octets(state["params"]["q"] * np.float32(6))
    assert octets(after.mu["norm"]) == octets(before.mu["norm"])
    assert made["params"]["norm"].tolist() == [1.25] * 4


def test_a_copy_of_a_param_in_an_optimizer_state_is_shifted_as_it_is() -> None:
    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state
        return updates, params

    tx = optax.chain(optax.GradientTransformation(lambda params: params, update), optax.adam(0.1))
    side = cs.linen.BareTrainState[Floats, tx]
    state = _trained(tx)
    made = cs.derive(side, side, rules=[cs.shift("norm", 1.0)]).get(state)
    copy, (adam, _) = made["opt_state"]
    assert copy["norm"].tolist() == [1.25] * 4
    assert octets(copy["q"]) == octets(state["params"]["q"])
    assert octets(adam.mu["norm"]) == octets(state["opt_state"][1][0].mu["norm"])


def test_where_nothing_tells_whether_a_moment_is_shifted_a_rule_does() -> None:
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    side = cs.linen.BareTrainState[Floats, tx]
    with pytest.raises(cs.DerivationError) as caught:
        cs.derive(side, side, rules=[cs.shift("norm", 1.0)])
    said = str(caught.value)
    assert "nothing that tells whether it is shifted" in said
    assert "shift('opt_state/1/0/trace/norm', 0.0) to leave it as it is" in said
    state = _trained(tx)
    lens = cs.derive(side, side, rules=[cs.shift("norm", 1.0), *caught.value.rules])
    made = lens.get(state)
    assert made["params"]["norm"].tolist() == [1.25] * 4
    trace = [each["opt_state"][1][0].trace["norm"] for each in (state, made)]
    assert octets(trace[0]) == octets(trace[1])


# --- Rules ---


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda: cs.scale("q", 0), "expected a finite number other than 0"),
        (lambda: cs.scale("q", float("nan")), "found nan"),
        (lambda: cs.scale("q", 10**400), "finite number"),
        (lambda: cs.scale("q", True), "found True"),
        (lambda: cs.scale("q", None), "found None"),  # type: ignore[arg-type]
        (lambda: cs.scale("q", 1j), "finite number"),  # type: ignore[arg-type]
        (lambda: cs.scale("q", "1 / 0"), "finite number"),
        (lambda: cs.scale("q", "2 - 2"), "finite number"),
        (lambda: cs.scale("q", ""), "it does not parse"),
        (lambda: cs.scale("q", "sqrt(heads)"), "'sqrt(heads)' is no name, number or operator"),
        (lambda: cs.scale("q", "heads.real"), "'heads.real' is no name"),
        (lambda: cs.scale("q", "heads // 2"), "'heads // 2' is no name"),
        (lambda: cs.scale("q", "1j * heads"), "'1j' is no name"),
        (lambda: cs.scale("q", "True * heads"), "'True' is no name"),
        (lambda: cs.scale("q", "heads +" * 99 + "1"), "more than 200 characters"),
        (lambda: cs.scale("", 0.3), 'a logical path, such as "layers[]/norm"'),
        (lambda: cs.shift("q", float("inf")), "0, or a number from 2**-64 to 2**64"),
        (lambda: cs.shift("q", 1e-30), "no digit left"),
        (lambda: cs.shift("q", "1"), "found '1'"),  # type: ignore[arg-type]
        (lambda: cs.shift(3, 1.0), "expected a logical path"),  # type: ignore[arg-type]
        (lambda: cs.cast("q", rounding="up"), "expected \"nearest\", found 'up'"),  # type: ignore[arg-type]
        (lambda: cs.cast("", rounding="nearest"), "expected a logical path"),
    ],
)
def test_a_rule_that_is_not_well_formed_is_told_so(declare: Any, says: str) -> None:
    assert says in text_of(declare, cs.SchemaError)


@pytest.mark.parametrize(
    ("rule", "written"),
    [
        (cs.scale("q", 8), "scale('q', 8)"),
        (cs.scale("q", 2**-3), "scale('q', 0.125)"),
        (cs.scale("q", "2 ** -3"), "scale('q', 0.125)"),
        (cs.scale("q", -0.3), "scale('q', -0.3)"),
        (cs.scale("q", "head_dim ** -0.5"), "scale('q', 'head_dim ** -0.5')"),
        (cs.shift("q", 1), "shift('q', 1.0)"),
        (ROUNDED, "cast('q', rounding='nearest')"),
    ],
)
def test_a_rule_is_written_as_it_is_declared(rule: Any, written: str) -> None:
    assert str(rule) == written
    assert eval(f"cs.{written}") == rule


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([cs.scale("count", 0.3)], "expected a leaf of floats, at count or below"),
        ([cs.shift("count", 1.0)], "expected a leaf of floats, at count or below"),
        ([cs.cast("norm", rounding="nearest")], "a leaf of floats whose dtype is another one"),
        ([cs.scale("q", "head_dims ** -0.5")], "found head_dims"),
        ([cs.scale("q", 0.3), cs.scale("q", 0.4)], "contradict"),
        ([cs.shift("q", 1.0), cs.shift("q", 2.0)], "contradict"),
    ],
)
def test_a_rule_that_does_nothing_or_cannot_be_is_an_error(rules: list[Any], says: str) -> None:
    assert says in text_of(lambda: cs.derive(Wide, Narrow, rules=rules), cs.DerivationError)


def test_a_factor_that_is_zero_for_some_sizes_is_an_error_there() -> None:
    lens = cs.derive(Floats, Floats, rules=[cs.scale("q", "1 / (embed - 4)")])
    state = {"q": np.ones((4, 6), "float32"), "norm": np.ones(4, "float32")}
    said = text_of(lambda: lens.get(state), cs.ConformanceError)
    assert "times 1 / (embed - 4)" in said and "embed=4" in said
    state = {"q": np.ones((6, 6), "float32"), "norm": np.ones(6, "float32")}
    assert lens.get(state)["q"].tolist() == [[0.5] * 6] * 6


def test_a_factor_is_not_zero_for_the_sizes_of_a_tree() -> None:
    lens = cs.derive(Floats, Floats, rules=[cs.scale("q", "embed - 4")])
    state = {"q": np.ones((4, 6), "float32"), "norm": np.ones(4, "float32")}
    assert "it is 0, where embed=4" in text_of(lambda: lens.get(state), cs.ConformanceError)


def test_a_dim_that_only_a_factor_names_has_to_be_bound() -> None:
    lens = cs.derive(Wide, Wide, rules=[cs.scale("norm", "head_dim ** -0.5")])
    said = text_of(lambda: lens.get(wide()), cs.ConformanceError)
    assert "found no size for head_dim" in said and "lens.bind(head_dim=...)" in said
    view = lens.bind(head_dim=3).get(wide())
    assert octets(view["norm"]) == octets(wide()["norm"] * np.float32(3**-0.5))


def test_a_power_of_two_is_told_from_what_else_a_factor_is() -> None:
    factors = (0.125, -4, 0.3, 2.0**-1074, 3 * 2.0**1000)
    told = [(cs.scale("q", factor).exponent, cs.scale("q", factor).rest) for factor in factors]
    assert told == [(-3, 1), (2, -1), (0, 0.3), (-1074, 1), (0, 3 * 2.0**1000)]


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("head_dim ** -0.5", 64**-0.5),
        ("2*heads", 6.0),
        ("-(heads + 1) / 2 - +1", -3.0),
        ("2 ** 3 ** 0 * 1e-3", 2e-3),
        (" heads ", 3.0),
    ],
)
def test_an_expression_is_worth_what_python_says(text: str, worth: float) -> None:
    assert expressions.wrong(text) is None
    assert expressions.value(text, {"head_dim": 64, "heads": 3}) == worth


@pytest.mark.parametrize("text", ["(0 - heads) ** 0.5", "heads / 0", "10.0 ** 400", "0 ** -1"])
def test_an_expression_that_is_no_number_is_an_arithmetic_error(text: str) -> None:
    with pytest.raises(ArithmeticError):
        expressions.value(text, {"heads": 3})


# --- Codecs ---


@pytest.mark.parametrize(
    ("source", "view", "said", "codec"),
    [
        ("float32", "float32", UNTOLD, ()),
        ("int8", "int32", UNTOLD, (Exact("int8", "int32"),)),
        ("int8", "int8", Told(exponent=2), ()),
        ("complex64", "complex64", Told(exponent=2), ()),
        ("bool", "bool", Told(words=(Plus(1.0),)), ()),
        ("bfloat16", "float32", UNTOLD, (Exact("bfloat16", "float32"),)),
        ("float32", "float16", Told(rounds=True), (Rounded("float32", "float16"),)),
        ("float32", "float32", Told(rounds=True), ()),
        ("float32", "float32", Told(exponent=2), (Exact("float32", "float32", 2),)),
        ("bfloat16", "float32", Told(exponent=2), (Exact("bfloat16", "float32", 2),)),
        ("float32", "bfloat16", Told(exponent=2), (Exact("float32", "bfloat16", 2),)),
        (
            "float32",
            "bfloat16",
            Told(exponent=2, rounds=True),
            (Exact("float32", "float32", 2), Rounded("float32", "bfloat16")),
        ),
        (
            "bfloat16",
            "float32",
            Told(exponent=2, rounds=True),
            (Rounded("bfloat16", "float32"), Exact("float32", "float32", 2)),
        ),
        (
            "float8_e4m3fn",
            "bfloat16",
            Told(words=(Times(0.3), Plus(1.0))),
            (Exact("float8_e4m3fn", "bfloat16"), Times(0.3), Plus(1.0)),
        ),
        (
            "bfloat16",
            "float16",
            Told(words=(Times(0.3),), rounds=True),
            (Rounded("bfloat16", "float16"), Times(0.3)),
        ),
    ],
)
def test_a_codec_scales_in_the_wider_dtype(
    source: str, view: str, said: Told, codec: Codec
) -> None:
    assert codec_of(source, view, said) == codec


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("view", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("rounds", [False, True])
def test_the_codec_of_the_way_back_is_the_inverse(source: str, view: str, rounds: bool) -> None:
    said = Told(exponent=3, words=(Times(0.3), Plus(1.0)), rounds=rounds)
    found, back = codec_of(source, view, said), codec_of(view, source, said.inverse)
    assert (found if isinstance(found, str) else inverted(found)) == back
    assert said.inverse.inverse == said


@pytest.mark.parametrize(
    ("source", "view", "says"),
    [
        ("key<fry>", "key<rbg>", "a key keeps its implementation"),
        ("key<fry>", "uint32", "a key is no array of its data"),
        ("bool", "int8", "only integers are cast to integers"),
        ("complex64", "float32", "only integers are cast to integers"),
        ("float8_e4m3fn", "float8_e4m3fn", "too few values to be scaled"),
    ],
)
def test_what_has_no_codec_is_told_why(source: str, view: str, says: str) -> None:
    found = codec_of(source, view, Told(exponent=1))
    assert isinstance(found, str) and says in found

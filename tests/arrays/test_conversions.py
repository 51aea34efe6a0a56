"""What codecs do to values, against tables of all floats, and NumPy against jax bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import conversion_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conversion_cases import CODECS, octets, values
from conversion_oracle import (
    NARROW,
    WITH_INFINITY,
    bits_of,
    everything,
    is_nan,
    nearest,
    rounded,
    worth,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ckpt_schema._layouts.formats import FORMATS
from ckpt_schema._lens.arrays.conversions import (
    converted,
    expected,
    is_checked,
    linear,
    lost,
    subnormal,
)
from ckpt_schema._lens.codecs import Codec, Exact, Plus, Rounded, Times, holds, inverted
from ckpt_schema._lens.losses import loss
from ckpt_schema.testing._meshes import mesh

INTEGERS = tuple(f"{sign}int{bits}" for bits in (2, 4, 8, 16, 32, 64) for sign in ("", "u"))
ONE_NAN = {"float8_e4m3fn": 0x7F, "float8_e8m0fnu": 0xFF}  # and 0x80 where -0 would be


# --- Formats ---


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_format_is_what_the_dtype_says(dtype: str) -> None:
    form, told = FORMATS[dtype], jnp.finfo(dtype)
    assert (form.bits, form.mantissa, form.top) == (told.bits, told.nmant, float(told.max))
    smallest = Fraction(2) ** form.normal, Fraction(2) ** form.least
    assert smallest == (
        Fraction(float(told.smallest_normal)),
        Fraction(float(told.smallest_subnormal)),
    )


@pytest.mark.parametrize("wide", [*NARROW, "float32"])
def test_a_float_that_holds_another_gives_back_all_of_its_bits(wide: str) -> None:
    for narrow in NARROW:
        given = everything(narrow)
        there = converted(given, (Exact(narrow, wide),))
        back = converted(there, (Exact(wide, narrow),))
        assert holds(wide, narrow) == bool((bits_of(back) == bits_of(given)).all())
        assert (lost(given, (Exact(narrow, wide),)) is None) == holds(wide, narrow)


# --- Casts of floats ---


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("wide", ["float32", "float64"])
def test_every_narrow_float_is_widened_exactly(dtype: str, wide: str) -> None:
    made = converted(everything(dtype), (Exact(dtype, wide),))
    number = ~np.isnan(worth(dtype))
    assert made.dtype == wide
    assert (is_nan(made) == ~number).all()
    assert octets(made[number].astype("float64")) == octets(worth(dtype)[number])


@pytest.mark.parametrize("before", NARROW)
@pytest.mark.parametrize("after", NARROW)
def test_every_narrow_float_is_rounded_to_the_nearest_of_another(before: str, after: str) -> None:
    finite = np.isfinite(worth(before))
    made = converted(everything(before), (Rounded(before, after),))[finite]
    value = worth(before)[finite]
    wanted, found = nearest(abs(value), after), bits_of(made)
    signed = after != "float8_e8m0fnu"
    top = 1 << (FORMATS[after].bits - 1)
    if not signed:  # it has no zero
        wanted = np.where((value <= 0) | np.signbit(value), -1, wanted)
    beyond = wanted < 0
    negative = np.signbit(value) & signed
    if after.endswith("fnuz"):
        negative &= wanted != 0
    exact = wanted + top * negative
    assert (found[~beyond] == exact[~beyond]).all()
    turned = made[beyond].astype("float32")
    if after in WITH_INFINITY:
        assert (turned == np.copysign(np.inf, value[beyond])).all()
    elif after == "float4_e2m1fn":
        assert (turned == np.copysign(6, value[beyond])).all()
    else:
        assert np.isnan(turned).all()


@pytest.mark.parametrize("before", WITH_INFINITY)
@pytest.mark.parametrize("after", [*WITH_INFINITY, "float32", "float64"])
def test_a_nan_keeps_the_top_of_its_payload_and_its_sign(before: str, after: str) -> None:
    given = everything(before)
    given = given[is_nan(given)]
    made = converted(given, (Rounded(before, after),))
    long, short = FORMATS[before], FORMATS[after]
    for was, now in zip(bits_of(given).tolist(), bits_of(made).tolist(), strict=True):
        payload = f"{was:0{long.bits}b}"[-long.mantissa :]
        kept = payload.ljust(short.mantissa, "0")[: short.mantissa]
        if "1" not in kept:
            kept = "1".ljust(short.mantissa, "0")
        sign = f"{was:0{long.bits}b}"[0]
        assert f"{now:0{short.bits}b}" == sign + "1" * short.exponent + kept


@pytest.mark.parametrize("narrow", sorted(set(NARROW) - set(WITH_INFINITY) - {"float4_e2m1fn"}))
def test_the_one_nan_stands_for_all(narrow: str) -> None:
    given = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF], "u4").view("f4")
    made = bits_of(converted(given, (Rounded("float32", narrow),)))
    nan = ONE_NAN.get(narrow, 0x80)
    sign = 0x80 if narrow == "float8_e4m3fn" else 0
    assert made.tolist() == [nan, nan | sign, nan, nan | sign]
    back = bits_of(converted(made.view(jnp.dtype(narrow)), (Exact(narrow, "float32"),)))
    quiet = [0x7FC00000, 0xFFC00000 if sign else 0x7FC00000] * 2
    assert back.tolist() == quiet


def test_wide_floats_are_rounded_once() -> None:
    given = values("float64", 4000)
    given = given[np.isfinite(given)]
    given[:4] = [1 + 2**-24 + 2**-50, 1 + 2**-8 + 2**-40, 2**-149.0, 65519.99999999999]
    for narrow, digits, least in (("float32", 24, -149), ("float16", 11, -24)):
        made = converted(given, (Rounded("float64", narrow),)).astype("float64")
        with np.errstate(over="ignore"):
            assert octets(made) == octets(given.astype(narrow).astype("float64"))
        for was, now in zip(given[:500].tolist(), made[:500].tolist(), strict=True):
            assert not np.isfinite(now) or Fraction(now) == rounded(Fraction(was), digits, least)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("exponent", [-140, -7, 3, 140, 10_000])
def test_a_power_of_two_is_exact_or_rounded_once(dtype: str, exponent: int) -> None:
    given = values(dtype, 2000)
    made = converted(given, (Exact(dtype, dtype, exponent),))
    form = FORMATS[dtype]
    nan = is_nan(given)
    assert octets(made[nan]) == octets(given[nan])
    for was, now in zip(given[~nan][:400], made[~nan][:400], strict=True):
        if np.isinf(was):
            assert now == was
            continue
        wanted = Fraction(float(was)) * Fraction(2) ** exponent
        wanted = rounded(wanted, form.mantissa + 1, form.least)
        sign = np.signbit(was)
        assert np.signbit(now) == sign
        assert np.isinf(now) if abs(wanted) > form.top else Fraction(float(now)) == wanted


# --- Integers ---


@pytest.mark.parametrize("before", INTEGERS)
def test_integers_keep_their_number_or_are_lost(before: str) -> None:
    ends = jnp.iinfo(before)
    for after in INTEGERS:
        to = jnp.iinfo(after)
        low, high = max(int(ends.min), int(to.min)), min(int(ends.max), int(to.max))
        codec = (Exact(before, after),)
        given = np.array([low, high, 0, 1], np.uint64 if high > 2**63 else np.int64)
        given = given.astype(jnp.dtype(before))
        made = converted(given, codec)
        assert made.dtype == jnp.dtype(after)
        assert [int(one) for one in made] == [low, high, 0, 1]
        assert lost(given, codec) is None
        assert is_checked(codec) != holds(after, before)
        if "64" not in before + after:
            assert octets(converted(jnp.asarray(given), codec)) == octets(made)
        for beyond in {int(ends.min), int(ends.max)} - {low, high}:
            several = np.array([0, beyond], np.uint64 if beyond > 2**63 else np.int64)
            found = lost(several.astype(jnp.dtype(before)), codec)
            assert found is not None and "would wrap" in found[1]


# --- Factors and sums ---


def _product(value: float, factor: np.float32, divides: bool, dtype: str) -> Fraction:
    """What a product is: in a float32 with all exponents there are, and then in the dtype."""
    number, by = Fraction(value), Fraction(float(factor))
    wide = rounded(number / by if divides else number * by, 24)
    form = FORMATS[dtype]
    return rounded(wide, form.mantissa + 1, form.least)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e5m2"])
@pytest.mark.parametrize("divides", [False, True])
def test_a_factor_is_rounded_once_in_float32_and_once_in_the_dtype(
    dtype: str, divides: bool
) -> None:
    given = values(dtype, 2000)
    form = FORMATS[dtype]
    for factor in (0.1, -1 / 3, 7.0, 1.9999999, 1.99999999, 1e-20, 3e38, 0.25):
        made = converted(given, (Times(factor, divides),))
        nan = is_nan(given)
        assert octets(made[nan]) == octets(given[nan])
        for was, now in zip(given[~nan][:150], made[~nan][:150], strict=True):
            assert np.signbit(now) == (np.signbit(was) != (factor < 0))
            wanted = Fraction(0)
            if np.isfinite(was):
                wanted = _product(float(was), np.float32(factor), divides, dtype)
            if np.isinf(was) or abs(wanted) > form.top:
                assert np.isinf(now)
            else:
                assert Fraction(float(now)) == wanted


def test_factors_and_sums_are_what_numpy_makes_where_nothing_is_subnormal() -> None:
    for dtype in ("float32", "float64"):
        given = np.random.default_rng(1).normal(size=4000).astype(dtype)
        factor = given.dtype.type(1 / 3)
        assert octets(converted(given, (Times(1 / 3),))) == octets(given * factor)
        assert octets(converted(given, (Times(1 / 3, True),))) == octets(given / factor)
        assert octets(converted(given, (Plus(1 / 3),))) == octets(given + factor)


@pytest.mark.parametrize("dtype", NARROW[:6])
def test_every_narrow_float_is_added_to_in_float32(dtype: str) -> None:
    given = everything(dtype)
    made = converted(given, (Plus(1.0),))
    nan = is_nan(given)
    assert octets(made[nan]) == octets(given[nan])
    number = worth(dtype)[~nan].astype("float32") + np.float32(1)
    wanted = converted(number, (Rounded("float32", dtype),))
    assert octets(made[~nan]) == octets(wanted)


def test_complex_numbers_are_scaled_by_their_parts() -> None:
    given = np.array([3 - 5j, complex(0.0, -0.0)], "complex64")
    made = converted(given, (Times(0.1), Plus(1.0)))
    factor, one = np.float32(0.1), np.float32(1)
    assert octets(made.real) == octets(given.real * factor + one)
    assert octets(made.imag) == octets(given.imag * factor)
    assert octets(converted(given, (Exact("complex64", "complex64", 2),)).real) == octets(
        given.real * 4
    )


# --- NumPy and jax ---


def test_jax_makes_the_same_bits_as_numpy() -> None:
    assert conversion_cases.unlike(CODECS) == []


@pytest.mark.parametrize("dtype, codec", [CODECS[3], CODECS[12], CODECS[13], CODECS[17]])
def test_jax_makes_them_outside_of_a_program_too(dtype: str, codec: Codec) -> None:
    given = values(dtype, 200)
    made = converted(jnp.asarray(given), codec)
    assert octets(made) == octets(converted(given, codec))
    alone = converted(jnp.asarray(given)[3], codec)
    assert octets(alone) == octets(converted(given[3:4].reshape(()), codec))


def test_jax_makes_them_where_it_optimizes_as_it_does_not_here_and_with_64_bits() -> None:
    flips = {"1": "0", "0": "1"}
    now = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": flips.get(now, "0")}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).with_name("conversion_cases.py")), "--all"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.stdout.strip() == "unlike: []", done.stderr


def test_strided_and_empty_arrays_are_converted() -> None:
    given = values("float32", 60).reshape(3, 20)
    codec = (Rounded("float32", "float16"),)
    whole = converted(given, codec)
    assert octets(converted(given.T[::2], codec)) == octets(whole.T[::2])
    assert converted(given[:, :0], codec).shape == (3, 0)


# --- What is lost ---


@pytest.mark.parametrize("narrow", NARROW)
def test_what_a_narrow_float_does_not_have_is_lost(narrow: str) -> None:
    codec = (Exact("float16", narrow),)
    values_ = {(value, np.signbit(value)) for value in worth(narrow).tolist()}
    is_had = np.array([(v, np.signbit(v)) in values_ for v in worth("float16")[::8].tolist()])
    given = everything("float16")[::8]
    assert lost(given[is_had], codec) is None
    for other in given[~is_had & ~is_nan(given)][::499]:
        found = lost(np.array([1.0, other], "float16"), codec)
        assert found is not None and "at [1], which comes back as" in found[0]


@pytest.mark.parametrize(
    ("given", "codec", "found"),
    [
        ([1.0, 257.0], (Exact("float32", "bfloat16"),), "257.0 (0x43808000) at [1]"),
        ([1.0, 3e38], (Exact("float32", "float32", 1),), "comes back as inf"),
        ([1e-45], (Exact("float32", "float32", -1),), "comes back as 0.0"),
        ([1.0, 1e5], (Rounded("float32", "float16"),), "at [1], which comes back as inf"),
        ([-np.inf], (Rounded("float32", "float8_e4m3fn"),), "comes back as nan"),
        ([np.nan], (Rounded("float32", "float4_e2m1fn"),), "comes back as 0.0"),
        ([7.0], (Rounded("float32", "float4_e2m1fn"),), "comes back as 6.0"),
        ([3e38], (Times(1.5),), "comes back as inf"),
        ([2.0, 60000.0], (Rounded("float32", "float16"), Times(1.5)), "at [1]"),
        ([0.0], (Exact("float32", "float8_e8m0fnu"),), "comes back as nan"),
        ([-0.0], (Exact("float32", "float8_e5m2fnuz"),), "comes back as 0.0"),
        ([65504.0], (Rounded("float32", "float16"), Plus(1e4)), "comes back as inf"),
    ],
)
def test_what_is_lost_is_told(given: list[float], codec: Codec, found: str) -> None:
    for value in (np.array(given, "float32"), jnp.array(given, "float32")):
        told = lost(value, codec)
        assert told is not None and found in told[0], told


@pytest.mark.parametrize(
    ("given", "codec"),
    [
        ([1.001, np.nan, -np.inf, 1e-45], (Rounded("float32", "bfloat16"),)),
        ([1e-30, 65519.0, np.nan, -np.inf], (Rounded("float32", "float16"),)),
        ([np.nan, np.inf, -0.0], (Exact("float32", "float32", 5),)),
        ([240.0, np.nan, -0.0], (Rounded("float32", "float8_e4m3fnuz"),)),
        ([1e-40, np.inf], (Times(0.1), Plus(1.0))),
        ([2.8e-45, np.nan], (Exact("float32", "float32", -1),)),
        ([1.5, 2.0**-133], (Exact("float32", "bfloat16"),)),
        ([6.9, -0.1], (Rounded("float32", "float4_e2m1fn"),)),
    ],
)
def test_what_may_be_rounded_is_not_lost(given: list[float], codec: Codec) -> None:
    for value in (np.array(given, "float32"), jnp.array(given, "float32")):
        assert lost(value, codec) is None


@pytest.mark.parametrize("narrow", ["bfloat16", "float16", "float8_e4m3fn"])
def test_a_payload_may_be_cut_where_floats_may_be_rounded(narrow: str) -> None:
    given = np.array([0x7FC00001, 0xFF800001], "u4").view("f4")
    assert lost(given, (Rounded("float32", narrow),)) is None
    assert lost(given, (Exact("float32", narrow),)) is not None


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_what_is_lost_is_found_where_an_array_is(kind: AxisType) -> None:
    sharding = NamedSharding(mesh((4, 2), kind), PartitionSpec("y", "x"))
    given = np.ones((4, 8), "float32")
    whole = jax.device_put(given, sharding)
    codec = (Exact("float32", "bfloat16", 3),)
    assert lost(whole, codec) is None
    assert converted(whole, codec).sharding.is_equivalent_to(sharding, 2)
    given[2, 5] = 1.001
    found = lost(jax.device_put(given, sharding), codec)
    assert found is not None and "at [2 5]" in found[0]


def test_a_widening_is_not_looked_at() -> None:
    checked = {
        (Exact("bfloat16", "float32"),): False,
        (Exact("int4", "int32"),): False,
        (Exact("float16", "bfloat16"),): True,
        (Exact("int8", "uint8"),): True,
        (Exact("float32", "float32", 1),): True,
        (Rounded("float32", "bfloat16"), Times(0.1), Plus(1.0)): False,
        (Times(0.1), Exact("float32", "bfloat16")): True,
    }
    assert {codec: is_checked(codec) for codec in checked} == checked


def test_what_is_expected_is_said_by_the_word_that_refuses() -> None:
    assert expected((Exact("float32", "bfloat16"),)) == "values that bfloat16 has"
    assert expected((Exact("int32", "int8"),)) == "values of int8 (-128 to 127)"
    scaled = expected((Times(0.3), Exact("float32", "bfloat16", 2)))
    assert scaled == "values that 2**2 times themselves tell exactly in bfloat16"


def test_subnormal_floats_are_told_by_their_bits() -> None:
    given = np.array([0.0, -0.0, 1e-45, -1e-39, 2.0**-126, 1.0, np.inf, np.nan], "float32")
    for value in (given, jnp.asarray(given)):
        assert np.flatnonzero(subnormal(value)).tolist() == [2, 3]


# --- Derivatives and losses ---


def test_a_derivative_goes_along_linearly() -> None:
    codec = (Exact("float32", "bfloat16", 1), Times(0.3), Plus(1.0))
    along = jax.linear_transpose(lambda x: linear(x, codec), jnp.zeros(3))
    assert along(jnp.full(3, 2.0, "bfloat16"))[0].tolist() == pytest.approx([1.2] * 3, rel=0.01)
    assert linear(jnp.ones(1), (Times(4.0, True), Plus(9.0))).tolist() == [0.25]


@pytest.mark.parametrize("narrow", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_a_loss_is_no_greater_than_is_said(narrow: str) -> None:
    codec = (Rounded("float32", narrow),)
    form = FORMATS[narrow]
    given = np.abs(values("float32", 6000))
    inside = (given >= 2.0**form.normal) & (given <= form.top)
    given = given[inside].astype("float64")
    back = converted(converted(given.astype("float32"), codec), inverted(codec))
    bound = 2.0 ** -(form.mantissa + 1)
    assert (abs(back - given) <= bound * given).all()
    assert (abs(back - given) > 0.7 * bound * given).any()
    said = loss(codec)
    assert said is not None and f"at most 2**-{form.mantissa + 1} of each value" in said
    assert loss(inverted(codec)) == said


def test_the_loss_of_a_factor_is_no_greater_than_is_said() -> None:
    given = np.random.default_rng(3).normal(size=20000).astype("float32")
    codec = (Times(0.3),)
    back = converted(converted(given, codec), inverted(codec)).astype("float64")
    assert 0 < (abs(back - given) / abs(given)).max() <= 2.0**-23
    assert loss(codec, "float32") == (
        "times 0.3 and back is rounded in float32: at most 2**-23 of each value"
    )
    exact = (Exact("float32", "bfloat16", 3),)
    assert loss(exact) is None and loss(()) is None
    assert loss((Rounded("float32", "bfloat16"), Plus(1.0))) == (
        "bfloat16 keeps 8 of the 24 bits of float32: at most 2**-8 of each value; "
        "plus 1.0 is rounded in bfloat16: at most 2**-8 of the sum"
    )

"""The law suite: it passes for every pair of models, finds every kind of fault, and says what is wrong with all it takes."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import mutants
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jaxtyping import Array, Float32, Int32
from mutants import shown, target
from pair_schemas import NAMES
from support.profiles import THOROUGH, examples

import ckpt_schema as cs
from ckpt_schema.testing import LAWS, BrokenLawError, Law, LensLaws, Sample, check_laws, strategies
from ckpt_schema.testing._container_kinds import container_kinds
from ckpt_schema.testing._own_values import filled_lens
from ckpt_schema.testing._states import bound
from ckpt_schema.testing._suite import Options, check_law
from ckpt_schema.testing._trials import GivenTrial

# The default is for a user's one family; here are six, tried on as many where the profile is thorough.
FEW = None if THOROUGH else 2
FAILURES = Path(__file__).parent.parent / "docs" / "failures.md"


def suite(name: str) -> type[LensLaws]:
    """What a user writes for a pair of models, which are made only where a test of them runs."""
    told: dict[str, Any] = {part: _later(name, part) for part in ("lens", "source", "view")}
    told["max_examples"] = FEW
    if name in NAMES:
        told["gradients"] = False
        told |= {
            f"{side}_outputs": _computed(name, at) for at, side in enumerate(("source", "view"))
        }
    return type(name, (LensLaws,), told)


def _later(name: str, part: str) -> property:
    return property(lambda self: getattr(target(name), part))


def _computed(name: str, side: int) -> Callable[[Any, Any], Any]:
    def outputs(self: LensLaws, state: Any) -> Any:
        computed = target(name).outputs
        assert computed is not None
        return computed[side](state)

    return outputs


TestResNet = suite("ResNet")
TestLstm = suite("LSTM")
TestLora = suite("LoRA")
TestLoraAlone = suite("LoRA alone")
TestTiedEmbeddings = suite("tied embeddings")
TestRules = suite("rules")


def test_every_pair_is_tried() -> None:
    assert {*NAMES} <= {each.__name__ for each in LensLaws.__subclasses__()}


def test_every_law_is_a_test() -> None:
    asked: list[str] = []

    class Asking(LensLaws):
        lens = weights()

        def check(self, name: str) -> None:
            asked.append(name)

    for name in dir(Asking):
        if name.startswith("test_"):
            getattr(Asking(), name)()
    assert sorted(asked) == sorted(LAWS)


# --- Faults that it finds  ---


def weights() -> cs.Lens:
    """Of a decoder with private leaves on both sides, no cast, and keys."""
    return target("decoder").lens


def planted(kind: str, where: str, way: str) -> cs.Lens:
    """A mutant of the decoder."""
    found = (
        each.lens
        for each in mutants(weights())
        if (each.kind, each.where, each.way) == (kind, where, way)
    )
    lens = next(found)
    assert lens is not None
    return lens


# Of others each example takes seconds; the next test breaks them on one.
@pytest.mark.parametrize(
    "name", [name for name, law in LAWS.items() if law.kind not in ("jit", "disk")]
)
def test_each_law_finds_what_it_is_for(name: str) -> None:
    (at, lens), law = shown(name), LAWS[name]
    # How far an example shrinks is another test's: here it costs seconds a law.
    shrinking = at.options.shrinking if THOROUGH else 0.0
    with pytest.raises(BrokenLawError) as caught:
        check_law(lens, law, dataclasses.replace(at.options, shrinking=shrinking))
    said, notes = str(caught.value), "\n".join(getattr(caught.value, "__notes__", ()))
    assert said.startswith(
        f"{name} does not hold for {lens.source.name} -> {lens.view.name}: {law.equation}\n"
    )
    drawn = law.kind != "given"
    for state in law.states:
        assert f"\n  {state} = {'Sample({' if drawn else 'the `'}" in said
    assert ("reproduce = ('" in notes) == drawn
    assert "@reproduce_failure" not in notes


@pytest.mark.parametrize("name", LAWS)
def test_the_docs_show_how_each_law_fails(name: str) -> None:
    (at, lens), law = shown(name), LAWS[name]
    text = FAILURES.read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert (
        f"\n{name} does not hold for {lens.source.name} -> {lens.view.name}: {law.equation}\n"
        in text
    )
    states: dict[str, Any] = {"s": at.source, "v": at.view}
    lines = re.findall(r"^  ([stvw]) = (Sample\((\{.*?\}).*)$", text, re.MULTILINE)
    lens = ~lens if "\n  lens = ~lens\n" in text else lens
    for state, code, sizes in lines:
        states[state] = eval(
            code, {"Sample": Sample, "lens": lens, "AxisType": jax.sharding.AxisType}
        )
        lens = bound(lens, eval(sizes))
    assert [state for state, *_ in lines] == ([*law.states] if law.kind != "given" else [])
    with pytest.raises(cs.CkptSchemaError) as caught:
        law.check(GivenTrial(lens, states, at.outputs, at.options.tolerance, gradients=False))
    for line in str(caught.value).splitlines()[1:]:
        # How far rounding goes depends on the machine.
        assert line.partition(", about ")[0] in text


def test_what_is_said_is_all_that_it_takes() -> None:
    with pytest.raises(BrokenLawError) as caught:
        check_law(planted("NaN payloads lost", "edited", "get"), LAWS["GetPut"], Options())
    (fault, *_), said = caught.value.mismatches, str(caught.value)
    assert fault.kind == "bits" and fault.expected.startswith("bits 0x"), (
        "the values are told in hex"
    )
    line = next(line for line in said.splitlines() if line.startswith("  s = "))
    told: dict[str, Any] = {}
    exec(
        line.strip(), {"Sample": Sample, "lens": weights(), "AxisType": jax.sharding.AxisType}, told
    )
    at = bound(weights(), dict(eval(line[line.index("{") : line.index("}") + 1])))
    mutant = planted("NaN payloads lost", "edited", "get").bind(**at.dims)
    with pytest.raises(cs.TreesDifferError) as again:
        cs.assert_trees_identical(mutant.put(mutant.get(told["s"]), onto=told["s"]), told["s"])
    assert again.value.mismatches == caught.value.mismatches
    assert [*at.dims.values()].count(1) >= len(at.dims) - 1, "it is as small as it can be"


def test_an_example_is_tried_again_alone() -> None:
    lens, runs = planted("one bit flipped", "moved", "get"), list[str]()
    law = Law("GetPut", "", "s", lambda at: (runs.append(repr(at)), LAWS["GetPut"].check(at)))  # type: ignore[arg-type]
    with pytest.raises(BrokenLawError) as caught:
        check_law(lens, law, Options())
    (note,) = caught.value.__notes__
    found: dict[str, Any] = {}
    exec(note.removeprefix("to try it alone: "), found)
    last, runs[:] = runs[-1], []
    with pytest.raises(BrokenLawError):
        check_law(lens, law, Options(reproduce=found["reproduce"]))
    assert runs == [last]


def test_all_broken_laws_are_told_at_once() -> None:
    with pytest.raises(BrokenLawError, match="2 laws do not hold") as caught:
        check_laws(
            planted("one bit flipped", "moved", "get"),
            ["GetPut", "PutPut", "Sharing"],
            shrinking=0.0,
        )
    assert "GetPut does not hold" in str(caught.value)
    with pytest.raises(cs.CkptSchemaError, match="expected one of GetPut, PutGet"):
        check_laws(weights(), ["PutPet"])


def test_a_class_says_which_laws_and_which_sizes() -> None:
    seen: list[dict[str, int]] = []

    class Chosen(LensLaws):
        lens = weights()
        laws = ("GetPut",)
        sizes: ClassVar[Any] = {"embed": 4, "depth": (2, 3)}
        max_examples = 5
        profile = "dev"

    with pytest.raises(unittest.SkipTest, match="Naming is not among the laws of Chosen"):
        Chosen().test_naming()
    law = Law(
        "X",
        "",
        "s",
        lambda at: seen.append({name: at.lens.dims[name] for name in ("embed", "depth")}),
    )
    check_law(Chosen.lens, law, Options(Chosen.sizes, Chosen.max_examples))
    assert 0 < len(seen) <= 5
    assert all(each["embed"] == 4 and each["depth"] in (2, 3) for each in seen)


# --- Strategies  ---


class Layer(cs.Schema):
    kernel: Float32[Array, "embed 2*half"]
    steps: Int32[Array, " half"] = cs.field(optional=True)


class Model(cs.Schema):
    layers: list[Layer] = cs.field(length="4*blocks+rest")
    noise: cs.Key["urbg"] = cs.field(default=cs.fresh_key(0))


class Padded(cs.Schema):
    embedding: Float32[Array, "padded embed"]


class Plain(cs.Schema):
    embedding: Float32[Array, "vocab embed"]


@examples(2)
@given(sample=strategies.samples(Model), data=st.data())
def test_states_are_of_their_schema(sample: Sample, data: st.DataObject) -> None:
    state = sample.of(Model)
    assert cs.check(Model, state, {name: sample.sizes[name] for name in ("blocks", "rest")}) == []
    assert sample.sizes["blocks"] and sample.sizes["rest"]
    cs.assert_trees_identical(eval(repr(sample)).of(Model), state)
    on, specs = data.draw(strategies.mesh_and_specs(Model, sample.sizes))
    kernel = jnp.zeros((sample.sizes["embed"], 2 * sample.sizes["half"]))
    assert jax.device_put(kernel, NamedSharding(on, specs["layers/0/kernel"])).shape == kernel.shape


@examples(2)
@given(
    sizes=strategies.sizes(cs.derive(Plain, Padded, rules=[cs.pad("embedding", "vocab", "padded")]))
)
def test_sizes_respect_constraints(sizes: dict[str, int]) -> None:
    assert sizes["padded"] >= sizes["vocab"]


@given(sizes=strategies.sizes(Model, {"embed": (3, 20)}, multiples={"embed": 8, "half": 4}))
def test_sizes_are_within_bounds_and_multiples(sizes: dict[str, int]) -> None:
    assert sizes["embed"] in (8, 16)
    assert sizes["half"] % 4 == 0


def test_sizes_that_there_are_none_of() -> None:
    with pytest.raises(cs.SchemaError) as caught:
        strategies.sizes(Model, {"embed": (3, 5), "wide": 2}, multiples={"embed": 8})
    assert str(caught.value) == (
        "no sizes to draw: 2 faults\n"
        "  wide   expected a dim: blocks, embed, half, rest, found an unknown name\n"
        "  embed  expected a size within (3, 5) that is a multiple of 8, found none"
    )


def found(
    strategy: st.SearchStrategy[Any], condition: Callable[[Any], bool], *, smallest: bool = True
) -> Any:
    phases = [
        phase for phase in hypothesis.Phase if smallest or phase is not hypothesis.Phase.shrink
    ]
    told = hypothesis.settings(max_examples=500, database=None, derandomize=True, phases=phases)
    return hypothesis.find(strategy, condition, settings=told)


def test_every_container_and_every_optional_leaf_is_met() -> None:
    lens = weights()
    for layout in (lens.source, lens.view):
        for name in container_kinds(layout):
            assert found(
                strategies.samples(layout),
                lambda sample, name=name: sample.container == name,
                smallest=False,
            )
    assert found(strategies.samples(Model), lambda sample: bool(sample.absent)).absent == (
        "layers[]/steps",
    )


def test_states_shrink_to_what_a_person_can_read() -> None:
    sample = found(strategies.samples(Model), lambda sample: sample.sizes["embed"] > 2)
    assert repr(sample) == (
        "Sample({'blocks': 1, 'embed': 3, 'half': 1, 'rest': 1}, seed=0, values='counted', container='dict')"
    )
    np.testing.assert_array_equal(sample.of(Model)["layers"][0]["kernel"], [[1, 2], [3, 4], [5, 6]])


# --- Set-up  ---


def run(code: str) -> subprocess.CompletedProcess[str]:
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "PYTEST_CURRENT_TEST")
    }
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )


def test_one_line_makes_the_devices() -> None:
    done = run(
        "from ckpt_schema.testing import virtual_devices; virtual_devices(); import jax; print(jax.device_count())"
    )
    assert done.stdout == "8\n", done.stderr


def test_too_late_is_said_clearly() -> None:
    done = run(
        "import jax; jax.devices()\nfrom ckpt_schema.testing import virtual_devices; virtual_devices()"
    )
    assert (
        "jax has started already: 1 fault\n  jax  expected 8 CPU devices, found 1 of kind cpu\n"
        in done.stderr
    )
    assert "-> call virtual_devices() first thing in conftest.py" in done.stderr


def test_too_few_devices_are_said_clearly() -> None:
    done = run(
        "import ckpt_schema as cs\nfrom jaxtyping import Array, Float32\nfrom ckpt_schema.testing import check_laws\n"
        "class A(cs.Schema):\n    w: Float32[Array, 'a b']\n"
        "check_laws(cs.derive(A, A), ['GetPut'], meshes=())\ncheck_laws(cs.derive(A, A), ['Sharding'])"
    )
    assert "virtual_devices()` on top of conftest.py" in done.stderr


def test_nothing_of_it_is_imported_by_the_package() -> None:
    done = run(
        "import sys, ckpt_schema as cs; cs.Lens, cs.orbax, cs.nnx; print({'hypothesis', 'pytest'} & {*sys.modules})"
    )
    assert done.stdout == "set()\n", done.stderr
    done = run("import sys, ckpt_schema.testing; print('pytest' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


# --- Leaves that keep their own values  ---


class Plain(cs.Schema):
    w: Float32[Array, "embed mlp"]
    calibration: Float32[Array, " mlp"]


class Adapter(cs.Schema):
    lora: Float32[Array, " embed"]
    noise: cs.Key["fry"]


class Adapted(cs.Schema):
    w: Float32[Array, "mlp embed"]
    adapters: list[Adapter] = cs.field(length="depth")
    scale: Float32[Array, " embed"]


OWN = cs.derive(
    cs.linen.Params[Plain],
    cs.nnx.Params[Adapted],
    rules=[cs.private(path, cs.own) for path in ("calibration", "adapters[]", "scale")],
)


class TestOwnValues(LensLaws):
    """Of a lens without a default for what either side has alone."""

    max_examples = 3
    lens = OWN


class MadeUp(cs.Lens):
    """A lens that makes up what should have been its own."""

    def get(self, s: Any, *given: Any, **words: Any) -> Any:
        return filled_lens(OWN.bind(**self.dims)).get(s, *given, **words)


def test_a_value_that_is_made_up_breaks_the_law_of_defaults() -> None:
    lens = MadeUp(OWN.source, OWN.view, OWN.joins, OWN.dims, OWN.derivations)
    with pytest.raises(BrokenLawError, match=r"made of nothing") as error:
        check_laws(lens, ["Defaults"], max_examples=1)
    assert "scale  expected an error that asks for its value, found none" in str(error.value)

"""The law suite: every law of a lens, tried on random states, as tests that pytest finds or as plain function calls."""

from __future__ import annotations

import dataclasses
import math
import re
import time
import unittest
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import hypothesis
from hypothesis.errors import Flaky

from ckpt_schema._frameworks.variables import state_of
from ckpt_schema._layouts.table import Layout, slots_of
from ckpt_schema._lens.lens import Lens
from ckpt_schema._lens.step_dtypes import verify_one_dtype
from ckpt_schema._messages.progress import watched_steps
from ckpt_schema.errors import CkptSchemaError, Mismatch, ShardingWarning
from ckpt_schema.testing._applied import looked_at
from ckpt_schema.testing._devices import verify_devices
from ckpt_schema.testing._lawbook import LAWS, Law, weakened
from ckpt_schema.testing._meshes import MESHES, MeshSpec
from ckpt_schema.testing._outputs import Outputs
from ckpt_schema.testing._states import refusable
from ckpt_schema.testing._trials import GivenTrial, Trial, narrowed_trial, precisions, trials
from ckpt_schema.testing.strategies import Bound, space

__all__ = ["BrokenLawError", "LensLaws", "Options", "check_law", "check_laws"]


# As many by default, up to so many leaves; and no fewer than that.
_EXAMPLES, _LEAVES, _LEAST = 20, 150, 5


class BrokenLawError(CkptSchemaError, AssertionError):
    """A lens does not obey a law."""

    lines = 400  # the notes of several laws are the states to try them with


@dataclasses.dataclass(frozen=True)
class Options:
    """How the laws are tried.

    Attributes:
        sizes: For dims by name, in elements: the size, or the least and the greatest. Others are between 0 and 8, numbers of
            layers between 1 and 4.
        max_examples: How many examples each law is tried on; those on devices or on disk on fewer. Unless given 20, and fewer
            the more leaves beyond 150 a state has, where what is repeated is there twice.
        meshes: The shapes of the meshes that leaves are sharded over, and the type of their axes; ``()`` for no such leaves.
        profile: The name of a hypothesis profile that the rest of the settings is taken from; the one loaded unless given.
        reproduce: What a failure printed, to try that example alone.
        shrinking: For how many seconds a smaller example is looked for, once there is one.
        source: A state of the real model of the source, or a module: concrete or abstract.
        view: One of the view's.
        outputs: What each of the two models computes with a state, two functions.
        tolerance: By how much outputs and gradients may differ, as a multiple of what one rounding of every weight changes.
        gradients: Whether the gradients of the outputs are compared too.
    """

    sizes: Mapping[str, Bound] = dataclasses.field(default_factory=dict[str, Bound])
    max_examples: int | None = None
    meshes: tuple[MeshSpec, ...] = MESHES
    profile: str | None = None
    reproduce: tuple[str, bytes] | None = None
    shrinking: float = 15.0
    source: Any = None
    view: Any = None
    outputs: Outputs | None = None
    tolerance: float = 32.0
    gradients: bool = True


def check_law(lens: Lens, law: Law, options: Options) -> None:
    """Tries one law.

    Raises:
        BrokenLawError: With what differs in the smallest example found, and the code that makes it.
        DevicesError: There are fewer devices than the meshes have.
    """
    if law.kind == "given":
        return _check_given(lens, law, options)
    space(lens, options.sizes)  # whose errors hypothesis would drown
    if law.kind != "jit":
        verify_devices(max((math.prod(shape) for shape, _ in options.meshes), default=1))
    failed: dict[str, float] = {}  # what broke the law, and when
    first: list[tuple[Trial, Exception]] = []  # and how it did so the first time

    def attempt(trial: Trial) -> None:
        told = repr(trial)
        is_late = bool(failed) and time.monotonic() - min(failed.values()) > options.shrinking
        # What has failed must fail again when hypothesis asks for it, however late.
        if is_late and told not in failed:
            return  # what is known to fail is small enough
        try:
            with warnings.catch_warnings():
                # Odd sizes are not the lens's fault.
                warnings.simplefilter("ignore", ShardingWarning)
                law.check(trial)
        except Exception as error:
            failed.setdefault(told, time.monotonic())
            first.append((trial, error))
            raise _broken(law, trial, error) from error

    # What a profile without chance draws depends on this name: without it, the same for all laws.
    attempt.__name__ = "_".join(
        re.findall(r"\w+", f"{law.name} {lens.source.name} {lens.view.name}")
    )
    drawn = trials(lens, law.kind, options.sizes, options.meshes, long=law.long)
    test: Any = hypothesis.given(trial=drawn)(attempt)
    test = _settings(lens, law, options)(test)
    if options.reproduce is not None:
        test = hypothesis.reproduce_failure(*options.reproduce)(test)
    try:
        test()
    except BrokenLawError as error:
        error.__notes__ = _reproduced(error)
        raise
    except Flaky as error:
        # What failed the first time alone is a fault too, and hypothesis does not say what it was.
        if not first:
            raise
        raise _broken(law, *first[0], _UNSTEADY) from error


def _check_given(lens: Lens, law: Law, options: Options) -> None:
    """Tries a law of states that are given, once: there is nothing to draw."""
    verify_one_dtype(lens.source, lens.view, "a law of states that are given")
    states = {"s": state_of(options.source), "v": state_of(options.view)}
    trial = GivenTrial(
        lens, states, options.outputs, options.tolerance, gradients=options.gradients
    )
    try:
        law.check(trial)
    except Exception as error:
        raise _broken(law, trial, error) from error


def idle(lens: Lens, law: Law, options: Options) -> str:
    """Why there is nothing to try a law on; empty if there is."""
    # A lens of any float is tried if it is so for some of the floats.
    if lens.is_open and law.kind != "given":
        reasons = [idle(lens.at(**each), law, options) for each in precisions(lens, law.kind)]
        return "" if "" in reasons else reasons[0]
    if law.kind == "jit" and (seen := looked_at(lens)) and looked_at(~lens):
        return f"what this lens does depends on values, both ways, and is not for jit: {', '.join(seen)}"
    if law.kind in ("jit", "sharded", "disk") and (wide := narrowed_trial(lens)):
        return f"jax has no leaves of {' and '.join(wide)}, unless jax_enable_x64 is set"
    if law.kind == "free" and not refusable(lens, 0) and not refusable(lens, 1):
        return "this lens refuses no value"
    if law.name == "Function" and (options.outputs is None or options.source is None):
        return "nothing is said of what the models compute: set `source`, `source_outputs` and `view_outputs`"
    if law.kind == "given" and options.source is None and options.view is None:
        return "no states of the real models are given: set `source` and `view`"
    return ""


def _examples(lens: Lens, options: Options) -> int:
    """How many examples a law is tried on: by default no more than a minute takes for all laws, whatever the lens."""
    if options.max_examples is not None:
        return options.max_examples
    twice = dict.fromkeys(lens.source.names() | lens.view.names(), 2)
    sizes = twice | dict(lens.dims)
    leaves = max(_leaf_count(lens.source, sizes), _leaf_count(lens.view, sizes))
    # The time of a trial goes with its leaves: 300 of them are tried half as often as 150.
    return max(_LEAST, min(_EXAMPLES, _EXAMPLES * _LEAVES // leaves)) if leaves else _EXAMPLES


def _leaf_count(table: Layout, sizes: Mapping[str, int]) -> int:
    return sum(len(slots_of(row, sizes)) for row in table.rows)


def _settings(lens: Lens, law: Law, options: Options) -> hypothesis.settings:
    """The settings of a profile, but for what laws need to be otherwise."""
    settings = hypothesis.settings
    parent = settings.default if options.profile is None else settings.get_profile(options.profile)
    assert parent is not None
    # The phase that explains a failure traces every line of jax.
    phases = [phase for phase in parent.phases if phase is not hypothesis.Phase.explain]
    return hypothesis.settings(
        parent,
        max_examples=max(1, round(_examples(lens, options) * law.share)),
        deadline=None,  # which would time jax's compilations
        # The first trials of a lens compile all that it takes.
        suppress_health_check=[
            hypothesis.HealthCheck.too_slow,
            hypothesis.HealthCheck.data_too_large,
        ],
        # One law broken is one error: a second example of it tells nothing more.
        report_multiple_bugs=False,
        phases=phases,
        print_blob=True,  # which `_reproduced` reads
    )


_UNSTEADY = "tried again, the same example obeys it: is something kept from one call to the next?"


def _broken(law: Law, trial: Trial, error: Exception, *more: str) -> BrokenLawError:
    """The error of a law: what differs, and the code of the states that show it."""
    header = f"{law.name} does not hold for {trial.lens.source.name} -> {trial.lens.view.name}: {law.equation}"
    # Any other error than one of ours tells no leaves: its own text has to do.
    if isinstance(error, CkptSchemaError):
        faults, notes, said = error.mismatches, error.notes, error.header
    else:
        faults, notes, said = (), (), f"{type(error).__name__}: {error}"
    if weakened(trial.lens).get(law.name):
        notes = [*notes, f"of {', '.join(trial.lens.loss)} it is asked {law.lossy}"]
    where = ["where", *(f"  {line}" for line in trial.code(*law.states))]
    return BrokenLawError(f"{header}\n{said}", faults, [*notes, *more, *where])


def _reproduced(error: BaseException) -> list[str]:
    """How to try the example again, in place of what hypothesis says of its own decorators."""
    notes = "\n".join(getattr(error, "__notes__", ()))
    blob = re.search(r"@reproduce_failure\(('[^']*'), (b'[^']*')\)", notes)
    return [f"to try it alone: reproduce = ({blob[1]}, {blob[2]})"] if blob else []


def check_laws(lens: Lens, laws: Iterable[str] = tuple(LAWS), **options: Any) -> None:
    """Tries the laws on a lens, without pytest.

    On a terminal a bar shows which law is tried, if all of them take long; each law that takes long is a
    line to the logger ``ckpt_schema``.

    Args:
        lens: The lens.
        laws: The names of the laws, of `LAWS`.
        **options: See `Options`.

    Raises:
        BrokenLawError: With what every broken law finds in its smallest example.

    Example:
        >>> from jaxtyping import Array, Float32
        >>> import ckpt_schema as cs
        >>> class Old(cs.Schema):
        ...     kernel: Float32[Array, "inputs outputs"]
        >>> class New(cs.Schema):
        ...     kernel: Float32[Array, "outputs inputs"]
        >>> check_laws(cs.derive(Old, New), ["GetPut", "Naming"])
    """
    broken: list[BrokenLawError] = []
    told = Options(**options)
    chosen = [law for law in _named(laws) if not idle(lens, law, told)]
    what = f"laws of {lens.source.name} -> {lens.view.name}"
    with watched_steps(what, len(chosen)) as steps:
        for law in chosen:
            steps.begin(law.name)
            try:
                check_law(lens, law, told)
            except BrokenLawError as error:
                broken.append(error)
    if len(broken) == 1:
        raise broken[0]
    if broken:
        faults: list[Mismatch] = []
        texts: list[str] = []
        for error in broken:
            faults += error.mismatches
            # The notes of an error are no part of its text: how to try it again would be lost.
            texts.append("\n".join([str(error), *getattr(error, "__notes__", ())]))
        raise BrokenLawError(f"{len(broken)} laws do not hold", faults, texts)


def _named(names: Iterable[str]) -> list[Law]:
    """The laws of these names; a name that is none of theirs is an error, with all that there are."""
    laws: list[Law] = []
    faults: list[Mismatch] = []
    for name in names:
        if name in LAWS:
            laws.append(LAWS[name])
        else:
            faults.append(Mismatch(name, "law", f"one of {', '.join(LAWS)}", "no law"))
    if faults:
        raise CkptSchemaError("no such laws", faults)
    return laws


class LensLaws:
    """Tests of all laws of a lens: a class that inherits from it and says ``lens = ...`` has a test for each.

    Attributes:
        lens: The lens.
        source: A state of the real model, concrete or abstract, or an NNX module, that the declared source is to be of.
        view: One for the view.
        tolerance: By how much what the models compute, and the gradients of it, may differ, as a multiple of what one
            rounding of every weight changes.
        gradients: Whether gradients are compared; what jax cannot trace or differentiate has none.
        laws: The names of the laws to try.
        sizes: See `Options`, as for the rest.

    Example:
        class TestDecoder(LensLaws):
            lens = lens
    """

    lens: ClassVar[Lens]
    source: ClassVar[Any] = None
    view: ClassVar[Any] = None
    tolerance: ClassVar[float] = Options.tolerance
    gradients: ClassVar[bool] = Options.gradients
    laws: ClassVar[Iterable[str]] = tuple(LAWS)
    sizes: ClassVar[Mapping[str, Bound]] = {}
    max_examples: ClassVar[int | None] = Options.max_examples
    meshes: ClassVar[tuple[MeshSpec, ...]] = MESHES
    profile: ClassVar[str | None] = None
    reproduce: ClassVar[tuple[str, bytes] | None] = None

    def check(self, name: str) -> None:
        """Tries a law.

        Raises:
            BrokenLawError: It does not hold.
            unittest.SkipTest: It is not among ``laws``, or there is nothing to try it on.
        """
        (law,) = _named([name])
        # A slip in `laws` would else leave that law out, and nobody would hear of it.
        _named(self.laws)
        if name not in self.laws:
            raise unittest.SkipTest(f"{name} is not among the laws of {type(self).__name__}")
        reason = idle(self.lens, law, self._options)
        if reason:
            raise unittest.SkipTest(reason)
        check_law(self.lens, law, self._options)

    @property
    def _options(self) -> Options:
        mine, none = type(self), LensLaws
        # One of the two functions alone is nothing to compare.
        is_source_said = mine.source_outputs is not none.source_outputs
        is_view_said = mine.view_outputs is not none.view_outputs
        outputs = self.source_outputs, self.view_outputs
        return Options(
            self.sizes,
            self.max_examples,
            self.meshes,
            self.profile,
            self.reproduce,
            source=self.source,
            view=self.view,
            outputs=outputs if is_source_said and is_view_said else None,
            tolerance=self.tolerance,
            gradients=self.gradients,
        )

    def source_outputs(self, state: Any) -> Any:
        """What the model of the source computes with a state: arrays or numbers in any container. A subclass may say so."""
        raise NotImplementedError

    def view_outputs(self, state: Any) -> Any:
        """What the model of the view computes with a state."""
        raise NotImplementedError

    def test_get_put(self) -> None:
        """``put(get(s), onto=s) == s``."""
        self.check("GetPut")

    def test_put_get(self) -> None:
        """``get(put(v), onto=v) == v``."""
        self.check("PutGet")

    def test_put_put(self) -> None:
        """``put(w, onto=put(v, onto=s)) == put(w, onto=s)``."""
        self.check("PutPut")

    def test_get_get(self) -> None:
        """``get(t, onto=get(s, onto=v)) == get(t, onto=v)``."""
        self.check("GetGet")

    def test_conformance(self) -> None:
        """``check(View, get(s)) == []``, and the same for put."""
        self.check("Conformance")

    def test_abstraction(self) -> None:
        """``abstract(get(s)) == get(abstract(s))``, and the same for put."""
        self.check("Abstraction")

    def test_naming(self) -> None:
        """Every element is where its names say."""
        self.check("Naming")

    def test_defaults(self) -> None:
        """What only one side has is made as declared."""
        self.check("Defaults")

    def test_refusal(self) -> None:
        """States that are not of their layout are refused."""
        self.check("Refusal")

    def test_values(self) -> None:
        """``get(s)`` raises, or carries every value over."""
        self.check("Values")

    def test_sharing(self) -> None:
        """A leaf that only moves is the same object."""
        self.check("Sharing")

    def test_inverse(self) -> None:
        """``(~l).get == l.put``, and the other way round."""
        self.check("Inverse")

    def test_sharding(self) -> None:
        """Leaves stay on the mesh, and lose no mesh axis that they could keep."""
        self.check("Sharding")

    def test_jit(self) -> None:
        """``jit(get)(s) == get(s)``."""
        self.check("Jit")

    def test_restore(self) -> None:
        """``restore(saved s, abstract(v)) == get(s, onto=abstract(v))``, from one mesh onto another."""
        self.check("Restore")

    def test_save_restore(self) -> None:
        """What is saved in the other layout comes back, private leaves included."""
        self.check("SaveRestore")

    def test_declaration(self) -> None:
        """The declared layouts are those of the real states."""
        self.check("Declaration")

    def test_function(self) -> None:
        """The models compute the same, and have the same gradients."""
        self.check("Function")

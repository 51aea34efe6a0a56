"""Any order of training, saving, restoring, converting, renaming and moving, against a model of every value in plain NumPy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest
from faults import mutants
from flax import nnx
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from orbax.checkpoint import v1 as ocp
from support import plain, versions
from support.branches import batch
from support.plain import Plain, Values
from support.profiles import examples
from support.versions import MESHES, NAMES, VERSIONS, Nnx, placed, sharded

import ckpt_schema as cs
from ckpt_schema.orbax._private_leaves import PrivateLeaves

STEPS = 12  # of training at most: after them, float32 has no more bits for the momenta


@dataclasses.dataclass(frozen=True)
class Kept:
    """A state of a version, and what it must hold."""

    version: str
    state: Any = dataclasses.field(repr=False)
    plain: Plain = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint: what was saved, in whose layout, what it must hold there, and whose private values are beside it."""

    path: Path
    by: Kept
    layout: str
    plain: Plain = dataclasses.field(repr=False)
    beside: Kept | None


@dataclasses.dataclass(frozen=True)
class Way:
    """How a lens is come by: composed over another version or not, and its ``get``, its ``put`` or its inverse used."""

    over: str | None
    turn: str

    def route(self, source: str, view: str) -> tuple[str, ...]:
        """The versions on the way."""
        return (source, view) if self.over in (None, source, view) else (source, self.over, view)

    def get(self, source: str, view: str) -> Callable[..., Any]:
        """What translates from one version to another."""
        route = self.route(source, view)
        if self.turn == "get":
            return versions.lens(*route).get
        return (
            versions.lens(*route[::-1]).put
            if self.turn == "put"
            else (~versions.lens(*route[::-1])).get
        )

    def lens(self, source: str, view: str) -> cs.Lens:
        """The lens from one version to another."""
        route = self.route(source, view)
        return versions.lens(*route) if self.turn == "get" else ~versions.lens(*route[::-1])


names, meshes = st.sampled_from(NAMES), st.sampled_from(MESHES)
ways = st.builds(Way, st.none() | names, st.sampled_from(["get", "put", "inverted"]))
asides = st.sampled_from(
    ["nnx_aux", "nnx_aux", "nnx_aux", None]
)  # whether private values are saved beside, and asked for
OWN, ALONE = "as it was saved", "with Orbax alone"


class Journey(RuleBasedStateMachine):
    """One run of training, that is now of this version and now of that."""

    kept, checkpoints = Bundle("kept"), Bundle("checkpoints")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.written = 0

    @initialize(target=kept, version=names, mesh=meshes)
    def start(self, version: str, mesh: str) -> Kept:
        """The one thing that the plain model takes from the real trees."""
        self.mesh, state = mesh, placed(VERSIONS[version].start, mesh)
        values = plain.read(version, state)
        self.last = values.step + STEPS
        return self._go(version, state, values)

    # --- In memory  ---

    @precondition(lambda self: self.now.plain.step < self.last)
    @rule(target=kept)
    def train(self) -> Kept:
        """A step of real training."""
        before = self.now
        state = VERSIONS[before.version].step(
            placed(before.state, self.mesh), batch(before.plain.step)
        )
        return self._go(before.version, placed(state, self.mesh), plain.trained(before.plain))

    @rule(mesh=meshes, older=st.none() | kept)
    def move(self, mesh: str, older: Kept | None) -> None:
        """To another mesh, with a state of before, which nothing may have changed meanwhile, or with this one."""
        self.mesh, now = mesh, older or self.now
        self._go(now.version, placed(now.state, mesh), now.plain)

    @rule(target=kept, into=names | kept, way=ways, abstract=st.booleans(), donate=st.booleans())
    def convert(self, into: str | Kept, way: Way, abstract: bool, donate: bool) -> Kept:
        """To another version: private values are those of an older state of it, or as they are declared."""
        here, version = self.now, _version(into)
        onto = self._target(into, self.mesh) if abstract or isinstance(into, Kept) else None
        given = _copied(here.state) if donate else here.state  # older states may share its leaves
        state = way.get(here.version, version)(given, onto=onto, donate=donate)
        state = VERSIONS[version].contained(state) if onto is None else state
        return self._go(
            version,
            state,
            plain.converted(here.plain, way.route(here.version, version), _own(into)),
        )

    # --- On disk  ---

    @rule(
        target=checkpoints,
        layout=st.sampled_from([ALONE, *NAMES]) | kept,
        way=ways,
        module=st.booleans(),
        aux=asides,
    )
    def save(self, layout: str | Kept, way: Way, module: bool, aux: str | None) -> Saved:
        """In the layout of any version, whose private values are those of an older state of it, or as they are declared."""
        here, path = self.now, self._path()
        if layout == ALONE:
            ocp.save(path, here.state)
            return Saved(path, here, here.version, here.plain, None)
        disk, onto = (
            _version(layout),
            self._target(layout, self.mesh) if isinstance(layout, Kept) else None,
        )
        far = _other(disk) if disk == here.version else here.version
        cs.orbax.save(
            path, _module(here) if module else here.state, way.lens(disk, far), onto=onto, aux=aux
        )
        if disk == here.version:
            return Saved(path, here, disk, here.plain, None)
        route = way.route(here.version, disk)
        beside = here if aux is not None and not plain.carried(route) else None
        return Saved(path, here, disk, plain.converted(here.plain, route, _own(layout)), beside)

    @rule(target=checkpoints, saved=checkpoints, way=ways)
    def save_again(self, saved: Saved, way: Way) -> Any:
        """In the own layout, with what stands beside another checkpoint, for the version that it is of."""
        here, path = self.now, self._path()
        if saved.beside is None:
            with pytest.raises(cs.CheckpointMismatchError, match="keeps no private leaves"):
                cs.orbax.load_private(saved.path)
            return multiple()
        private, far = cs.orbax.load_private(saved.path), saved.beside.version
        far = _other(far) if far == here.version else far
        lens = way.lens(here.version, far)
        if far != saved.beside.version or plain.carried(way.route(here.version, far)):
            with pytest.raises(
                cs.ConformanceError, match=r"private= is not what .* has no place for"
            ):
                cs.orbax.save(path, here.state, lens, private=private)
            return multiple()
        cs.orbax.save(path, here.state, lens, private=private)
        return Saved(path, here, here.version, here.plain, saved.beside)

    @rule(
        target=checkpoints,
        layout=names,
        way=ways,
        module=st.booleans(),
        into=names | kept,
        meshes=st.tuples(meshes, meshes),
    )
    def resume_twice(
        self, layout: str, way: Way, module: bool, into: str | Kept, meshes: tuple[str, str]
    ) -> Saved:
        """From one checkpoint: first the version that has saved it, then any."""
        saved = self.save(layout, way, module, "nnx_aux")
        for target, mesh in zip((OWN, into), meshes, strict=True):
            self.restore(saved, target, mesh, way, module, "nnx_aux")
            self.every_value_is_that_of_the_plain_model()
        return saved

    @rule(
        target=kept,
        saved=checkpoints,
        into=st.sampled_from([OWN, OWN, ALONE, *NAMES]) | kept,
        mesh=meshes,
        way=ways,
        module=st.booleans(),
        aux=asides,
    )
    def restore(
        self, saved: Saved, into: str | Kept, mesh: str, way: Way, module: bool, aux: str | None
    ) -> Kept:
        """Into an abstract target, or one that keeps its own private values where the checkpoint has none."""
        if into == ALONE:
            self.mesh, target = mesh, self._target(saved.layout, mesh)
            return self._go(saved.layout, ocp.load(saved.path, target), saved.plain, target)
        into = saved.by.version if into == OWN else into
        version, target = _version(into), self._target(into, mesh)
        if module and isinstance(into, Kept):
            target = _module(dataclasses.replace(into, state=target))
        far = _other(version) if saved.layout == version else saved.layout
        route = way.route(far, version)
        fate = _fate(saved, version, route, aux)
        hypothesis.event(f"private values beside the state are {fate}")
        with _met(fate):
            result = cs.orbax.restore(saved.path, target, way.lens(far, version), aux=aux)
        if fate == "refused":
            if isinstance(into, Kept):
                plain.assert_same(plain.read(version, _state(target)), into.plain)
            return self.now
        assert (result is target) == isinstance(target, nnx.Module)
        self.mesh = mesh
        return self._go(
            version,
            _state(result),
            _restored(saved, route, fate, _own(into)),
            self._target(version, mesh),
        )

    # --- What always holds  ---

    def _go(self, version: str, state: Any, expected: Plain, target: Any = None) -> Kept:
        """Goes on with a state; its leaves are where those of the target are."""
        if target is not None:
            assert [x.sharding for x in jax.tree.leaves(state)] == [
                x.sharding for x in jax.tree.leaves(target)
            ]
        self.now = Kept(version, state, expected)
        return self.now

    @invariant()
    def every_value_is_that_of_the_plain_model(self) -> None:
        now = self.now
        assert isinstance(now.state, VERSIONS[now.version].container)
        assert cs.check(VERSIONS[now.version].layout, now.state) == []
        plain.assert_same(plain.read(now.version, now.state), now.plain)

    @invariant()
    def every_leaf_is_on_the_mesh(self) -> None:
        here = sharded(self.now.state, self.mesh)
        for leaf, goal in zip(jax.tree.leaves(self.now.state), jax.tree.leaves(here), strict=True):
            # What is made where there is no mesh is no more on the first device than a number: jit takes it along.
            assert leaf.devices() == goal.sharding.device_set or (
                self.mesh == "one" and not leaf.committed
            )

    @staticmethod
    def _target(into: str | Kept, mesh: str) -> Any:
        """On a mesh, an older state, or the abstract state of a version."""
        return (
            placed(into.state, mesh)
            if isinstance(into, Kept)
            else sharded(VERSIONS[into].start, mesh)
        )

    def teardown(self) -> None:
        self.folder.cleanup()

    def _path(self) -> Path:
        self.written += 1
        return Path(self.folder.name) / str(self.written)


def _version(into: str | Kept) -> str:
    return into.version if isinstance(into, Kept) else into


def _own(into: str | Kept) -> Values | None:
    """The private values that a target has."""
    return into.plain.private if isinstance(into, Kept) else None


def _module(kept: Kept) -> Any:
    """A module in a state of NNX; a state of Linen as it is."""
    version = VERSIONS[kept.version]
    return version.module(kept.state) if isinstance(version, Nnx) else kept.state


def _state(target: Any) -> Any:
    return nnx.state(target) if isinstance(target, nnx.Module) else target


def _copied(state: Any) -> Any:
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, state), may_alias=False)


def _other(version: str) -> str:
    """Another version, for the far side of a lens."""
    return NAMES[NAMES.index(version) - 1]


def _fate(saved: Saved, version: str, route: tuple[str, ...], aux: str | None) -> str:
    """What becomes of private values beside the state."""
    if saved.beside is None or aux is None:
        return "not there"
    if saved.layout == version:
        return "not read"
    if plain.carried(route):
        return "not read"  # what the target keeps for itself stands in the state: nothing beside it is its
    return "read" if saved.beside.version == version else "refused"


def _restored(saved: Saved, route: tuple[str, ...], fate: str, own: Values | None) -> Plain:
    """What a restore makes of a checkpoint."""
    if saved.layout == route[-1]:
        return saved.plain
    if fate == "read" and saved.beside is not None:
        return Plain(saved.plain.shared, saved.beside.plain.private)
    return plain.converted(saved.plain, route, own)


@contextlib.contextmanager
def _met(fate: str) -> Iterator[None]:
    """Says of a restore what becomes of private values beside the state."""
    if fate == "not read":
        with pytest.warns(UserWarning, match="has leaves of another layout beside its state"):
            yield
    elif fate == "refused":
        with pytest.raises(
            cs.CheckpointMismatchError,
            match=r"the private leaves in .* are not those of the target",
        ):
            yield
    else:
        yield


def _settings(times: float) -> hypothesis.settings:
    """No shrinking: it takes minutes, and what a failure prints is a program already."""
    return hypothesis.settings(
        examples(times), stateful_step_count=30, phases=[hypothesis.Phase.generate]
    )


class TestAnyOrder(Journey.TestCase):
    settings = _settings(0.2)


# --- It finds faults  ---

FAULTS = [
    ("off by one", "moved", "put"),
    ("started anew", "kept", "get"),
    ("two leaves exchanged", "joins", "both"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=", ".join)
def test_a_fault_in_every_lens_is_found(
    fault: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    derived = versions.lens

    @functools.cache
    def faulty(*route: str) -> cs.Lens:
        planted = [
            each.lens
            for each in mutants(derived(*route))
            if (each.kind, each.where, each.way) == fault
        ]
        return planted[0] if planted else derived(*route)

    monkeypatch.setattr(versions, "lens", faulty)
    assert_red()


def test_streams_that_a_restore_does_not_bring_back_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PrivateLeaves, "load", lambda self, orders: {})
    assert_red("(key|draws|seen)")


def assert_red(wrong: str = "") -> None:
    """The machine finds values, of these names, that are not those of the plain model."""
    with pytest.raises(AssertionError, match=f"not as in the plain model: .*{wrong}"):
        run_state_machine_as_test(Journey, settings=_settings(0.2))

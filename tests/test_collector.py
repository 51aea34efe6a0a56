"""Python's collector of garbage around restores and saves: aside while they run, and afterwards as the caller had it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

import ckpt_schema as cs

TREE = {"params": {"w": jnp.arange(6.0).reshape(2, 3)}}
TARGET = jax.eval_shape(lambda: TREE)


@pytest.fixture
def saved(tmp_path: Path) -> epath.Path:
    ocp.save(str(tmp_path / "saved"), TREE)
    return epath.Path(tmp_path / "saved")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    assert gc.isenabled() and gc.get_freeze_count() == 0
    yield
    gc.unfreeze()
    gc.enable()


def doors(saved: epath.Path) -> dict[str, Callable[[], Any]]:
    return {
        "restore": lambda: cs.orbax.restore(saved, TARGET),
        "load": lambda: cs.orbax.load(saved),
        "save": lambda: cs.orbax.save(saved.parent / "again", TREE),
        "convert": lambda: cs.orbax.convert(
            saved, saved.parent / "other", cs.adapt(TARGET, TARGET)
        ),
    }


@pytest.mark.parametrize("name", ["restore", "load", "save", "convert"])
def test_old_objects_are_aside_while_a_door_is_open_and_no_longer(
    name: str, saved: epath.Path
) -> None:
    call = doors(saved)[name]
    seen: list[int] = []

    def watched(*given: Any, **named: Any) -> Any:
        seen.append(gc.get_freeze_count())
        return real(*given, **named)

    # Each of the doors opens a context of Orbax's or asks for its metadata.
    real = ocp.Context.__init__
    opened = mock.patch.object(ocp.Context, "__init__", watched)
    loaded = mock.patch.object(ocp, "load", _counting(ocp.load, seen))
    with opened, loaded:
        call()
    assert seen and min(seen) > 0
    assert gc.isenabled() and gc.get_freeze_count() == 0


def _counting(call: Any, seen: list[int]) -> Any:
    def counted(*given: Any, **named: Any) -> Any:
        seen.append(gc.get_freeze_count())
        return call(*given, **named)

    return counted


@pytest.mark.parametrize("name", ["restore", "load"])
def test_a_door_that_raises_takes_them_back(name: str, tmp_path: Path) -> None:
    ocp.save(str(tmp_path / "wrong"), {"other": jnp.zeros(3)})
    with pytest.raises(cs.CkptSchemaError):
        if name == "restore":
            cs.orbax.restore(str(tmp_path / "wrong"), TARGET)
        else:
            cs.orbax.load(str(tmp_path / "none"))
    assert gc.get_freeze_count() == 0


def test_objects_that_the_caller_has_set_aside_stay_so(saved: epath.Path) -> None:
    gc.freeze()
    aside = gc.get_freeze_count()
    cs.orbax.restore(saved, TARGET)
    # Some of them have gone meanwhile, for nothing holds them any more.
    assert gc.get_freeze_count() > aside // 2


def test_a_collector_that_is_off_stays_off(saved: epath.Path) -> None:
    gc.disable()
    cs.orbax.restore(saved, TARGET)
    assert not gc.isenabled() and gc.get_freeze_count() == 0


class Knot:
    """An object that only the collector finds: it holds itself."""

    def __init__(self) -> None:
        self.own = self


def test_new_garbage_is_collected_meanwhile_and_old_garbage_afterwards(saved: epath.Path) -> None:
    old = weakref.ref(Knot())
    new: list[bool] = []
    load = ocp.load

    def leaving_garbage(*given: Any, **named: Any) -> Any:
        made = weakref.ref(Knot())
        gc.collect()
        new.append(made() is None and old() is not None)
        return load(*given, **named)

    with mock.patch.object(ocp, "load", leaving_garbage):
        cs.orbax.restore(saved, TARGET)
    gc.collect()
    assert new == [True]
    assert old() is None

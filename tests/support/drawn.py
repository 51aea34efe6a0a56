"""The laws, applied to a lens and states of its layouts that a strategy drew."""

from __future__ import annotations

from typing import Any, Protocol

import ckpt_schema as cs
from ckpt_schema.testing import _laws as laws


class Drawn(Protocol):
    """A lens, and random states."""

    lens: cs.Lens

    def states(self, *sides: int) -> list[Any]:
        """One state for each number of a side: 0 is the source, 1 the view."""
        ...


def get_put(at: Drawn) -> None:
    laws.get_put(at.lens, *at.states(0))


def put_get(at: Drawn) -> None:
    laws.put_get(at.lens, *at.states(1))


def put_put(at: Drawn) -> None:
    laws.put_put(at.lens, *at.states(0, 1, 1))


def get_get(at: Drawn) -> None:
    laws.get_get(at.lens, *at.states(0, 0, 1))


def conformance(at: Drawn) -> None:
    s, v = at.states(0, 1)
    laws.conforms(at.lens, s, v)
    laws.conforms(~at.lens, v, s)


def abstraction(at: Drawn) -> None:
    s, v = at.states(0, 1)
    laws.abstraction(at.lens, s, v)
    laws.abstraction(~at.lens, v, s)


def sharing(at: Drawn) -> None:
    s, v = at.states(0, 1)
    laws.sharing(at.lens, s, v)
    laws.sharing(~at.lens, v, s)


def inverse(at: Drawn) -> None:
    laws.inverse(at.lens, *at.states(0, 1))

"""What the law *Naming* asks of the names of axes, where factors of an axis change their places."""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float32

import ckpt_schema as cs
from ckpt_schema.testing import _axis_law
from ckpt_schema.testing._axis_law import axes_kept
from ckpt_schema.testing._laws import LawError
from ckpt_schema.testing._naming import naming
from ckpt_schema.testing._suite import check_laws


class Halves(cs.Schema):
    """All first halves of a head's columns stand before all second ones, as in a file of Llama."""

    kernel: Float32[Array, "kv*2*half embed"]


class Pairs(cs.Schema):
    """A pair of columns stands together, as where they are rotated in turns."""

    kernel: Float32[Array, "embed kv half*2"]


BOXES = _axis_law._boxes
LENS = cs.derive(Halves, cs.linen.Params[Pairs])


@pytest.mark.parametrize("kv", [2, 3, 4])
@pytest.mark.parametrize("half", [1, 2, 3, 4])
def test_a_factor_that_takes_turns_is_asked_for_no_name(kv: int, half: int) -> None:
    lens = LENS.bind(kv=kv, half=half, embed=6)
    axes_kept(lens)
    axes_kept(~lens)


def nameless(tree: Any) -> Any:
    """What boxes say of their axes, had each lost its names."""
    return {
        at: (kind, (None,) * len(names), leaf) for at, (kind, names, leaf) in BOXES(tree).items()
    }


def test_the_first_factor_is_asked_for_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_axis_law, "_boxes", nameless)
    with pytest.raises(LawError) as caught:
        axes_kept(LENS.bind(kv=2, half=2, embed=6))
    asked = [fault.expected.partition(" on ")[2] for fault in caught.value.mismatches]
    assert [text.partition(" (")[0] for text in asked] == ["axis 0", "axis 1"]


class Apart(cs.Schema):
    kernel: Float32[Array, "embed heads dim"]


class Merged(cs.Schema):
    kernel: Float32[Array, "heads*dim embed"]


def told(monkeypatch: pytest.MonkeyPatch, said: Any, lens: cs.Lens) -> list[tuple[str, str]]:
    """What the law says of a lens whose boxes are changed so."""

    def changed(tree: Any) -> Any:
        return {at: (kind, said(names), leaf) for at, (kind, names, leaf) in BOXES(tree).items()}

    axes_kept(lens)
    axes_kept.cache_clear()
    monkeypatch.setattr(_axis_law, "_boxes", changed)
    with pytest.raises(LawError) as caught:
        axes_kept(lens)
    return [(fault.expected, fault.found) for fault in caught.value.mismatches]


def test_a_factor_after_the_first_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = cs.derive(Merged, cs.linen.Params[Apart]).bind(heads=2, dim=3, embed=5)
    found = told(monkeypatch, lambda names: (*names[:2], names[1]), lens)
    assert found == [("None on axis 2", "of ('heads', 'dim')")]


@pytest.mark.parametrize("bad", ["turned", "the first alone", "the second alone", "no name"])
def test_axes_that_are_one_have_all_their_names_in_order(
    bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, dim = "of ('heads',)", "of ('dim',)"
    ways: dict[str, Any] = {
        "turned": (dim, heads),
        "the first alone": heads,
        "the second alone": dim,
        "no name": None,
    }
    lens = cs.derive(Apart, cs.linen.Params[Merged]).bind(heads=4, dim=5, embed=5)
    found = told(monkeypatch, lambda names: (ways[bad], *names[1:]), lens)
    assert found == [(f"{(heads, dim)} on axis 0", str(ways[bad]))]


def parts(inputs: int, outputs: int) -> cs.Lens:
    """A kernel that is two, each of which is turned."""
    whole = {"wi": jnp.zeros((inputs, 2 * outputs))}
    turned = {name: jnp.zeros((outputs, inputs)) for name in ("v", "g")}
    rule = cs.fuse("wi", ["v", "g"], axes="embed 2*out -> out embed")
    return cs.adapt(whole, turned, rules=[rule])


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (5, 4)])
@pytest.mark.parametrize("law", ["Naming", "Values"])
def test_parts_that_a_rule_turns_are_right_where_both_axes_are_as_long(
    law: str, inputs: int, outputs: int
) -> None:
    """Nothing but the rule tells two axes of one size apart: names alone would give them in another order."""
    lens = parts(inputs, outputs)
    for way in (lens, ~lens):
        check_laws(way, [law])


def test_parts_that_are_turned_wrongly_are_found() -> None:
    """Where names do tell: the law is still asked."""
    lens, other = parts(5, 4), parts(5, 4)
    turned = dict(lens.get({"wi": jnp.arange(40.0).reshape(5, 8)}))
    turned["v"] = turned["v"][::-1]
    spoiled = mock.patch.object(type(other), "get", lambda *_: turned)
    with spoiled, pytest.raises(LawError):
        naming(other, {"wi": jnp.arange(40.0).reshape(5, 8)})

"""The demo's parts: its declared layouts are those of its models, and its verdict can be FAIL. CI runs the whole of it."""

from __future__ import annotations

import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from support.profiles import thorough_only

import ckpt_schema as cs
from ckpt_schema.demo import matrix
from ckpt_schema.demo.corpus import standard_library
from ckpt_schema.demo.linen_gpt import ModelSizes
from ckpt_schema.demo.report import DemoReport, Difference, Duration, Outcome, show
from ckpt_schema.demo.training import Form, LinenForm, NnxForm, make_mesh, make_optimizer, train

FORMS = [
    make(ModelSizes(), make_optimizer(), scanned)
    for make in (LinenForm, NnxForm)
    for scanned in (True, False)
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{type(form).__name__}-{form.scanned}")
def test_a_declared_layout_is_that_of_the_model(form: Form) -> None:
    mesh = make_mesh(2, 4)
    assert cs.check(form.layout, form.abstract(mesh)) == []
    assert cs.check(form.weights_layout, form.weights(mesh)) == []


def test_weights_are_sharded_over_both_axes_of_either_mesh() -> None:
    for shape in ((4, 2), (2, 4)):
        specs = [
            leaf.sharding.spec for leaf in jax.tree.leaves(FORMS[0].weights(make_mesh(*shape)))
        ]
        assert {axis for spec in specs for axis in spec} >= {"data", "model"}


def test_batches_are_the_same_in_every_run() -> None:
    text = standard_library()
    assert np.array_equal(text.batch(3, 4, 16), standard_library().batch(3, 4, 16))
    assert not np.array_equal(text.batch(3, 4, 16), text.batch(4, 4, 16))


@thorough_only
def test_a_wrong_weight_shows_in_the_losses() -> None:
    mesh = make_mesh(2, 4)
    form = LinenForm(
        ModelSizes(embed=32, heads=2, mlp=32, depth=1, length=8), make_optimizer(), scanned=True
    )
    state: Any = form.start(form.init(), mesh)
    nudged = state.replace(params=jax.tree.map(lambda x: x * jnp.float32(1.001), state.params))
    losses = [
        train(form, s, standard_library(), mesh, 0, 2, lambda: None)[1]
        for s in (state, state, nudged)
    ]
    assert Outcome("scanned", "", ("", losses[0]), ("", losses[1])).passed
    assert not Outcome("scanned", "", ("", losses[0]), ("", losses[2])).passed


def report(*right: float) -> DemoReport:
    cell = Outcome(
        "scanned", "full state", ("Linen -> Linen", [1.0, 2.0]), ("Linen -> NNX", list(right))
    )
    return DemoReport(
        (cell,),
        (Duration("NNX", 0.1, 0.2, 0.3),),
        (Difference("Linen", 1, 2.0, 2.5), Difference("NNX", None, 1.0, 1.0)),
    )


@pytest.mark.parametrize(
    ("right", "equal", "verdict"),
    [
        ((1.0, 2.0), 2, "PASS"),
        ((1.0, np.nextafter(2.0, 3.0)), 1, "FAIL"),
        ((1.5, 2.0), 0, "FAIL"),
        ((-0.0, 2.0), 0, "FAIL"),
    ],
)
def test_one_bit_in_one_loss_fails(right: tuple[float, ...], equal: int, verdict: str) -> None:
    found = report(*map(float, right))
    out = io.StringIO()
    show(found, Console(file=out, width=140))
    assert found.cells[0].equal == equal
    assert found.passed == (verdict == "PASS")
    assert verdict in out.getvalue()
    assert f"{equal}/2" in out.getvalue()
    assert float(right[0]).hex() in out.getvalue()


def test_the_exit_status_is_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    for right, status in ((2.0, 0), (3.0, 1)):
        monkeypatch.setattr(matrix._Demo, "report", lambda self, right=right: report(1.0, right))
        assert matrix.run_demo(Console(file=io.StringIO(), width=140)) == status


def test_too_few_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda: [None])
    with pytest.raises(RuntimeError, match="xla_force_host_platform_device_count=8"):
        matrix.run_demo()

"""Layouts and lenses as a notebook shows them: HTML that is whole, folds what is long, and leaves nothing out."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import ckpt_schema as cs

LAYERS = 3


class Reader(HTMLParser):
    """Reads the cells of each section, and insists that all that is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.titles: list[str] = []
        self.folded: list[bool] = []
        self.cells: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        if tag == "details":
            self.folded.append(("open", None) not in attrs)
            self.cells.append([])
        if tag == "tr":
            self.cells[-1].append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "summary":
            self.titles.append(data)
        elif self.open[-1] in ("td", "th"):
            self.cells[-1][-1].append(data)


def state(stacked: bool, layers: int = LAYERS) -> Any:
    layer = {"norm": {"scale": jnp.ones(8)}, "wi": {"kernel": jnp.ones((8, 32))}}
    params: dict[str, Any] = {"embed": {"embedding": jnp.ones((100, 8))}}
    if stacked:
        params["layers"] = jax.tree.map(lambda leaf: jnp.stack([leaf] * layers), layer)
    else:
        params |= {f"layers_{number}": layer for number in range(layers)}
    return {
        "step": jnp.int32(0),
        "params": params,
        "opt_state": optax.adam(1e-3).init(params),
    }


@pytest.fixture(scope="module")
def lens() -> cs.Lens:
    return cs.adapt(state(stacked=True), state(stacked=False), scan={"layers": 0})


def test_a_lens_shows_what_is_edited_with_its_moments_beside_it(lens: cs.Lens) -> None:
    shown = Reader(lens._repr_html_())
    assert shown.titles == ["2 edited", "3 moved, and nothing else"]
    assert shown.folded == [False, True]
    assert shown.cells[0] == [
        ["source", "view", "what happens", "optimizer"],
        ["params/layers/norm/scale", "params/layers_{i}/norm/scale", "3 8 -> {3} 8", "0/mu, 0/nu"],
        ["params/layers/wi/kernel", "params/layers_{i}/wi/kernel", "3 8 32 -> {3} 8 32", "0/mu, 0/nu"],
    ]  # fmt: skip


def test_a_moment_that_goes_another_way_than_its_param_has_a_line_of_its_own() -> None:
    tree = {"q": jnp.ones((4, 4))}
    both = {"params": tree, "opt_state": optax.adam(1e-3).init(tree)}
    own = [cs.scale(f"opt_state/0/{moment}/q", 1) for moment in ("mu", "nu")]
    scaled = cs.adapt(both, both, rules=[cs.scale("q", 2), *own])
    shown = Reader(scaled._repr_html_())
    lines = [cells for section in shown.cells for cells in section[1:]]
    assert {cells[0] for cells in lines} >= {"params/q", "opt_state/0/mu/q", "opt_state/0/nu/q"}


def test_what_is_private_is_shown_and_what_is_empty_is_not(lens: cs.Lens) -> None:
    alone = cs.adapt(
        {"a": jnp.ones(2)}, {"b": jnp.ones(3)}, rules=[cs.private("a", 0.0), cs.private("b", 0.0)]
    )
    shown = Reader(alone._repr_html_())
    assert shown.titles == ["1 private to source", "1 private to view"]
    assert "optimizer" not in shown.cells[0][0]


def test_a_layout_shows_its_model_and_folds_its_optimizer() -> None:
    table = cs.infer(state(stacked=True))
    shown = Reader(table._repr_html_())
    assert shown.titles == ["3 of the model", "1 beside it", "7 of the optimizer"]
    assert shown.folded == [False, False, True]
    paths = [cells[0] for section in shown.cells for cells in section[1:]]
    assert sorted(paths) == sorted("/".join(row.path) for row in table.rows)


def test_what_is_long_is_folded() -> None:
    tree = {f"leaf_{number}x": jnp.ones(2) for number in range(61)}
    assert Reader(cs.infer(tree)._repr_html_()).folded == [True]


def test_a_name_is_text_and_no_markup() -> None:
    table = cs.infer({"<script>alert(1)</script>": jnp.ones(2), "a&b": jnp.ones(2)})
    text = table._repr_html_()
    assert "<script>" not in text
    assert {row[0] for row in Reader(text).cells[0][1:]} >= {"params/a&b"}


def test_the_text_and_the_picture_say_the_same(lens: cs.Lens) -> None:
    words = {*re.findall(r"\S+", str(lens))}
    for section in Reader(lens._repr_html_()).cells:
        for cells in section[1:]:
            assert {*" ".join(cells[:2]).split()} <= words

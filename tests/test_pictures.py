"""Layouts and lenses as a notebook shows them: HTML that is whole, folds what is long, and leaves nothing out."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

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


# --- reports, diffs, discoveries; and all of them in a terminal  ---


def wrong() -> Any:
    """A tree that lacks a leaf, has one too many, and has one of another shape."""
    made = state(stacked=True)
    del made["params"]["layers"]["wi"]
    made["params"]["layers"]["more"] = jnp.ones(2)
    made["params"]["embed"]["embedding"] = jnp.ones((100, 9))
    return made


def report() -> cs.Report:
    return cs.check(cs.infer(state(stacked=True)), wrong())


def in_terminal(given: Any) -> list[str]:
    """What Rich prints on 120 columns, without the blanks that it pads lines with."""
    file = io.StringIO()
    Console(width=120, file=file).print(given)
    return [line.rstrip() for line in file.getvalue().splitlines()]


REPORT = """\
the tree does not conform to inferred: 3 faults
3 patterns of faults
  where                    expected         found           what to do
  params/embed/embedding   float32[100 8]   float32[100 9]
  params/layers/more       nothing          float32[2]
  params/layers/wi/kernel  float32[3 8 32]  nothing         near: params/layers/more"""

DIFF = """\
source and view: 3 changes
1 removed
  path                     source           mirrored by
  params/layers/wi/kernel  float32[3 8 32]  2 leaves
1 added
  path                view
  params/layers/more  float32[2]
1 reshaped
  path                    source          view            mirrored by
  params/embed/embedding  float32[100 8]  float32[100 9]  2 leaves"""


def test_a_report_tells_each_pattern_of_faults() -> None:
    found = report()
    assert "\n".join(in_terminal(found)[:6]) == REPORT
    shown = Reader(found._repr_html_())
    assert shown.titles[0] == "3 patterns of faults"
    assert shown.cells[0][1][:3] == ["params/embed/embedding", "float32[100 8]", "float32[100 9]"]
    fine = cs.check(cs.infer(state(stacked=True)), state(stacked=True))
    assert in_terminal(fine) == ["conforms to inferred"]
    Reader(fine._repr_html_())


def test_a_diff_tells_each_kind_of_change() -> None:
    found = cs.diff(state(stacked=True), wrong())
    assert "\n".join(in_terminal(found)) == DIFF
    assert Reader(found._repr_html_()).titles == ["1 removed", "1 added", "1 reshaped"]
    same = cs.diff(wrong(), wrong())
    assert in_terminal(same) == ["source and view are the same"]
    Reader(same._repr_html_())


def test_a_discovery_tells_rules_and_evidence() -> None:
    x = jnp.linspace(-1.0, 2.0, 12).reshape(3, 4)
    old = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 5))}
    new = {"w1": jnp.ones((6, 4)), "w2": jnp.ones((5, 6))}
    found = cs.discover(
        lambda p: jnp.tanh(x @ p["up"]) @ p["down"],
        old,
        lambda p: jnp.tanh(x @ p["w1"].T) @ p["w2"].T,
        new,
    )
    lines = in_terminal(found)
    assert lines[:4] == [
        "source -> view: complete",
        "2 rules",
        "  rename('down', 'w2', axes='1 0')",
        "  rename('up', 'w1', axes='1 0')",
    ]
    shown = Reader(found._repr_html_())
    assert shown.titles == ["2 rules", "2 pairs of pieces", "3 differences"]
    assert ["down", "w2"] in shown.cells[1]


def test_a_terminal_folds_thousands_of_rows_and_wraps_none(lens: cs.Lens) -> None:
    leaf = jax.ShapeDtypeStruct((2,), "float32")
    long = "a_name_that_is_longer_than_a_hundred_and_twenty_columns_" * 3
    table = cs.infer({f"block_{n}_[bold]": {"a": leaf, long: leaf} for n in range(1000)})
    lines = in_terminal(table)
    assert len(lines) == 1 + 1 + 1 + 20 + 1  # title, heading, names of columns, rows, the rest
    assert max(map(len, lines)) <= 120 and lines[-1] == "  ... and 1980 more"
    assert any("[bold]" in line for line in lines), "keys are no markup"
    assert "7 of the optimizer (print shows them)" in in_terminal(cs.infer(state(stacked=True)))
    assert in_terminal(lens)[1] == "2 edited"

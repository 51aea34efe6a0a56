"""Layouts and lenses as a notebook shows them: HTML that is whole, folds what is long, and leaves nothing out."""

from __future__ import annotations

import dataclasses
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
from ckpt_schema._messages.terminal import fitted

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
    assert shown.titles == [
        "3 leaves of the model, 6.2 KiB",
        "1 leaf beside the model, 4 B",
        "7 leaves of the optimizer, 12.4 KiB",
    ]
    assert shown.folded == [False, False, True]
    assert shown.cells[0][0] == ["path", "key path", "leaf", "bytes"]
    kernel = "params/layers/wi/kernel"
    assert shown.cells[0][3] == [kernel, kernel, "float32[3 8 32]", "3.0 KiB"]
    paths = [cells[0] for section in shown.cells for cells in section[1:]]
    assert sorted(paths) == sorted("/".join(row.path) for row in table.rows)


def test_what_is_long_is_folded() -> None:
    tree = {f"leaf_{number}x": jnp.ones(2) for number in range(61)}
    assert Reader(cs.infer(tree)._repr_html_()).folded == [True]


def test_a_cell_of_a_page_keeps_its_line_unless_it_is_the_last() -> None:
    text = report()._repr_html_()
    assert "td {white-space: pre}" in text and "td:last-child {white-space: pre-wrap}" in text


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


def in_terminal(given: Any, width: int = 120) -> list[str]:
    """What Rich prints on so many columns, without the blanks that it pads lines with."""
    file = io.StringIO()
    Console(width=width, file=file).print(given)
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


LAYOUT = """\
inferred: 11 rows, 11 leaves, 4,778 elements, 18.7 KiB
3 leaves of the model, 6.2 KiB
  params                              6.2 KiB
    embed/embedding  float32[100 8]   3.1 KiB
    layers                            3.1 KiB
      norm/scale     float32[3 8]        96 B
      wi/kernel      float32[3 8 32]  3.0 KiB
1 leaf beside the model, 4 B
  step  int32[]  4 B
7 leaves of the optimizer, 12.4 KiB (print shows all)
  opt_state/0                              12.4 KiB
    count      int32[]                          4 B
    mu         3 leaves like their params   6.2 KiB
    nu         3 leaves like their params   6.2 KiB"""


def test_a_layout_is_a_tree_with_sizes() -> None:
    assert "\n".join(in_terminal(cs.infer(state(stacked=True)))) == LAYOUT
    assert "\n".join(in_terminal(cs.infer(state(stacked=True)), 60)) == LAYOUT, (
        "it fits into sixty columns"
    )


def test_moments_of_another_dtype_are_told_by_it_and_those_of_another_shape_one_by_one() -> None:
    whole = state(stacked=True)
    adam = whole["opt_state"][0]
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), adam.mu)
    odd = jax.tree.map(lambda leaf: leaf[..., :1], adam.nu)
    whole["opt_state"] = (adam._replace(mu=half, nu=odd), *whole["opt_state"][1:])
    text = "\n".join(in_terminal(cs.infer(whole)))
    assert re.search(r"mu +3 leaves like their params, in bfloat16 +3\.1 KiB", text)
    assert re.search(r"nu +508 B\n +embed/embedding +float32\[100 1\] +400 B", text)


def without_blanks(lines: list[str]) -> str:
    return re.sub(r"\s", "", "".join(lines))


@pytest.mark.parametrize("width", [120, 80, 60, 40, 25])
def test_nothing_is_cut_on_any_terminal(lens: cs.Lens, width: int) -> None:
    """What does not fit folds: in every width each cell is there, from its beginning to its end."""
    long = "a_name_that_is_longer_than_a_hundred_and_twenty_columns_" * 3
    odd = cs.infer({long: {"a/b": jnp.ones((2, 3)), "b": jnp.ones(3)}, "\x1b[31m": jnp.ones(2)})
    sides = cs.infer(state(stacked=True)), state(stacked=False)
    for given in (lens, report(), cs.diff(state(stacked=True), wrong()), odd, cs.check(*sides)):
        lines = in_terminal(given, width)
        assert max(map(len, lines)) <= width
        text = without_blanks(lines)
        _, sections = given._drawing()
        for section in sections:
            assert (
                section.rows and (section.folded or len(section.rows) <= 60)
            ) or not section.rows
            for row in [] if section.folded else section.rows:
                for cell in row:
                    assert without_blanks([cell]).replace("\x1b", "\\x1b") in text
        assert "\x1b[31m" not in "".join(lines), "a key moves no cursor"


def test_a_name_breaks_behind_a_slash_and_code_not_in_a_string() -> None:
    wide = cs.check(cs.infer({"a_long_node": {"of_a_long_name": jnp.ones(2)}}), {})
    assert in_terminal(wide, 22)[4:6] == ["  a_long_node/", "    of_a_long_name"]
    rule = cs.rename("a", "b", axes="embed mlp heads -> heads mlp embed")
    found = cs.diff(state(stacked=True), wrong())
    lines = in_terminal(dataclasses.replace(found, rules=(rule,), mended=True), 50)
    code = lines[lines.index("a lens goes from one to the other") + 1 :]
    compile("\n".join(code).strip(), "pasted", "eval")


ERROR = """\
no lens: 1 fault
  params/norm/scale  expected a partner
      -> only
          model/layers/{i}/norm/scale
          can be it
to paste:
rules=[
    cs.rename('layers[]/LayerNorm_0',
        'layers[]/norm'),
]"""


def test_an_error_folds_and_its_rules_are_still_code() -> None:
    wide = """\
no lens: 1 fault
  params/norm/scale  expected a partner
                     -> only model/layers/{i}/norm/scale can be it
to paste:
rules=[
    cs.rename('layers[]/LayerNorm_0', 'layers[]/norm'),
]"""
    assert fitted(wide, 40) == ERROR
    assert fitted(wide, 80) == wide


RECORDS = """\
3 patterns of faults
  params/embed/embedding
      expected: float32[100 8]   found: float32[100 9]
  params/layers/more
      expected: nothing   found: float32[2]
  params/layers/wi/kernel
      expected: float32[3 8 32]   found: nothing
      what to do: near: params/layers/more"""


def test_a_row_that_does_not_fit_is_a_record() -> None:
    assert "\n".join(in_terminal(report(), 60)[1:9]) == RECORDS


def test_what_to_do_is_said_once_of_rows_that_follow_one_another() -> None:
    table = cs.infer(state(stacked=True))
    found = cs.check(table, {"model": {"u": jnp.ones(2), "v": jnp.ones(3)}})
    hints = [row[4] for row in found._picture().sections[0].rows]
    assert hints[1] == "the same" and hints[0] not in ("", "the same")


def test_a_terminal_folds_thousands_of_rows_with_counts(lens: cs.Lens) -> None:
    leaf = jax.ShapeDtypeStruct((2,), "float32")
    other = jax.ShapeDtypeStruct((4,), "int8")
    alike = cs.infer({f"block_{n}_[bold]": {"a": leaf, "b": leaf} for n in range(1000)})
    lines = in_terminal(alike)
    assert len(lines) == 1 + 1 + 3
    name = r" +'?block_\{0\.\.999\}_\[bold\]'? +15\.6 KiB"
    assert any(re.fullmatch(name, line) for line in lines), "keys are no markup"
    assert lines[-1].split() == ["b", "float32[2]", "x", "1000", "7.8", "KiB"]
    # Where they are not alike, the first are shown, and all others counted.
    unlike = {
        f"{chr(97 + n % 26)}_{chr(97 + n // 26 % 26)}_{chr(97 + n // 676)}": {"a": leaf, "b": other}
        for n in range(1000)
    }
    lines = in_terminal(cs.infer(unlike))
    assert len(lines) <= 64 and "(print shows all)" in lines[1]
    assert lines[-1].split() == ["...", "and", "980", "more", "1960", "leaves", "11.5", "KiB"]
    assert in_terminal(lens)[1] == "2 edited"
    # Rows that are no tree are the first twenty of them.
    many = cs.check(cs.infer(unlike), {})
    assert in_terminal(many)[-1] == "  ... and 1980 more (print shows them)"

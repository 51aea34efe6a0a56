"""What `print` shows takes at most 120 columns, and leaves nothing out: only a path that is longer has a longer line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import ckpt_schema as cs
from ckpt_schema._messages.html import Section, page
from ckpt_schema._messages.text import columns, text_lines
from ckpt_schema.cli import main

WIDTH = 120

WORDS = st.text("ab_/", min_size=1, max_size=45)
CELLS = st.lists(WORDS, max_size=6).map(" ".join)
ROWS = st.integers(1, 4).flatmap(
    lambda count: st.lists(st.lists(CELLS, min_size=count, max_size=count), min_size=1, max_size=7)
)


def too_wide(text: str, width: int = WIDTH) -> list[str]:
    """The lines that are wider, but for a single word that is wider itself."""
    wide: list[str] = []
    for line in text.splitlines():
        if len(line) > width and len(line.split()) > 1:
            wide.append(line)
    return wide


@given(ROWS, st.integers(20, 90))
def test_columns_fold_and_lose_nothing(rows: Sequence[Sequence[str]], width: int) -> None:
    lines = columns(rows, width=width)
    assert too_wide("\n".join(lines), width) == []
    words: Counter[str] = Counter()
    for row in rows:
        for cell in row:
            words.update(cell.split())
    assert Counter(" ".join(lines).split()) == words
    # A row stays above the next one.
    firsts = [row[0].split()[0] for row in rows if row[0]]
    found = iter(line.split()[0] for line in lines if line[2:].strip() and line[2] != " ")
    assert all(first in found for first in firsts)


@given(st.integers(10, 90))
def test_a_rule_is_never_broken_inside_of_a_string(width: int) -> None:
    rule = "cs.fuse('h[]/w', ['h[]/gate/kernel', 'h[]/up'], axes='a 2*b c -> a b c', key=\"it's\")"
    lines = text_lines(rule, width, hang=4)
    assert " ".join([line.strip() for line in lines]) == rule
    assert all(line.count("'") % 2 == ('"' in line) for line in lines)


@given(ROWS)
def test_columns_that_fit_are_as_they_were(rows: Sequence[Sequence[str]]) -> None:
    assert columns(rows, width=10_000) == columns(rows)


# --- pictures  ---

LENGTHS = st.integers(1, 40)


@st.composite
def trees(draw: st.DrawFn) -> tuple[Any, Any, list[Any]]:
    """A tree that has one leaf where another one has several parts, and the rules between them."""
    depth, count = draw(st.integers(0, 4)), draw(st.integers(2, 6))
    lengths = draw(st.lists(LENGTHS, min_size=depth + count + 2, max_size=depth + count + 2))
    names = [f"{chr(97 + number)}{'_x' * length}" for number, length in enumerate(lengths)]
    above, (whole, alone, *parts) = names[:depth], names[depth:]
    axes = draw(st.integers(1, 8))
    shape = tuple(range(2, 2 + axes))

    def tree(leaves: dict[str, tuple[int, ...]]) -> Any:
        made: Any = {name: jax.ShapeDtypeStruct(own, "float32") for name, own in leaves.items()}
        for name in reversed(above):
            made = {name: made}
        return {"params": made}

    wide = (count * shape[0], *shape[1:])
    one = tree({whole: wide, alone: (3,)})
    several = tree({**dict.fromkeys(parts, shape), alone: (3,)})
    at = "/".join([*above, ""])
    rule = cs.fuse(at + whole, [at + part for part in parts])
    return one, several, [rule]


@given(trees())
def test_no_line_of_what_is_printed_is_wider(drawn: tuple[Any, Any, list[Any]]) -> None:
    one, several, rules = drawn
    try:
        lens = cs.adapt(one, several, rules=rules)
    except cs.DerivationError:  # of a product of axes nobody knows which is shared
        assume(False)
        raise
    layouts = cs.infer(one), cs.infer(several)
    difference = cs.diff(one, several)
    for shown in (lens, ~lens, *layouts, difference):
        assert too_wide(str(shown)) == []
    # One line for each leaf, for other programs.
    lines = lens.in_full().splitlines()
    assert len(lines) == 1 + len(lens._table().joined)  # pyright: ignore[reportPrivateUsage]
    assert Counter(str(lens).split()) == Counter(lens.in_full().split())
    assert Counter(str(difference).split()) == Counter(difference.in_full().split())


PRINTED = """\
source -> view: 2 joined, 0 private to source, 0 private to view
  decoder/layers/self_attention/query/kernel  decoder/layers/self_attention/query_key_value_gate/kernel
  decoder/layers/self_attention/key/kernel
  decoder/layers/self_attention/value/kernel
  decoder/layers/self_attention/gate/kernel
      4 8 -> 4 8:+8, 4 8 -> 4 16:+8, 4 8 -> 4 24:+8
  decoder/norm/scale                          decoder/norm/scale"""


def attentions() -> cs.Lens:
    parts = [f"decoder/layers/self_attention/{name}" for name in ("query", "key", "value", "gate")]
    whole = "decoder/layers/self_attention/query_key_value_gate"
    kernel, fused = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((4, 8), (4, 32)))
    norm = {"scale": jax.ShapeDtypeStruct((8,), "float32")}

    def tree(kernels: dict[str, Any]) -> Any:
        attention = {path.rpartition("/")[2]: {"kernel": leaf} for path, leaf in kernels.items()}
        return {"decoder": {"layers": {"self_attention": attention}, "norm": norm}}

    return cs.adapt(
        tree(dict.fromkeys(parts, kernel)), tree({whole: fused}), rules=[cs.fuse(whole, parts)]
    )


def test_a_lens_is_broken_between_the_parts_of_a_leaf() -> None:
    lens = attentions()
    assert str(lens) == PRINTED
    assert max(map(len, lens.in_full().splitlines())) > 200


def test_a_pipe_has_a_line_for_each_leaf(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "of_attention.py"
    file.write_text("from test_printed_width import attentions\n\nlens = attentions()\n")
    assert main(["explain", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == attentions().in_full().splitlines()


def test_a_row_of_words_that_are_too_long_goes_on_below() -> None:
    name, other = "a/" * 40 + "kernel", "b/" * 40 + "kernel"
    rows = [(name, other, "float32[4 8]"), ("step", "step", "int32[]")]
    assert columns(rows, width=WIDTH) == [
        f"  {name}",
        f"      {other}  float32[4 8]",
        "  step  step  int32[]",
    ]


def test_a_cell_of_a_page_that_is_long_may_fold() -> None:
    """Else the four parts of a leaf make a line that scrolls."""
    parts = " ".join(f"attention/{name}/kernel" for name in ("query", "key", "value", "gate"))
    text = page("x", [Section("rows", ("a", "b", "c"), [(parts, "w", "y"), ("v", "w", "z")])])
    assert f'<td class="long">{parts}</td>' in text
    assert text.count('class="long"') == 1
    assert re.search(r"td\.long \{white-space: pre-wrap; min-width: \d+ch\}", text)

"""Two lists of layers in one node, in blocks that are a list or under a scan: told by the two sides together, or refused."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from flax import nnx
from nested_layers import HEAD, LAYERS, SHAPES, Style, is_right, made, of_linen, settled

import ckpt_schema as cs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Style("list", "list"), Style("stack", "named")),
        (Style("stack", "list", 0), Style("stack", "list", 1)),
        (Style("list", "stack"), Style("named", "list")),
        (Style("stack", "stack"), Style("list", "stack")),
    ],
)
def test_two_lists_in_one_node_go_into_every_other_form_and_back(
    tmp_path: Path, one: Style, other: Style
) -> None:
    cs.orbax.save(tmp_path / "one", made(one))
    cs.orbax.save(tmp_path / "other", made(other))
    assert settled(tmp_path / "one", other)[0] == "right"
    assert settled(tmp_path / "other", one)[0] == "right"


@pytest.mark.parametrize("is_linen", [False, True], ids=["NNX", "Linen"])
def test_a_list_in_a_stack_and_a_stack_in_a_list_are_settled_by_the_lines_that_are_printed(
    tmp_path: Path, is_linen: bool
) -> None:
    """The streams stand on another axis than the params, or on one side alone."""
    one, other = Style("named", "stack"), Style("stack", "list")
    cs.orbax.save(tmp_path / "one", of_linen(one) if is_linen else made(one))
    told, said = settled(tmp_path / "one", other)
    assert told == "right with its line", said
    assert ("'layers/**/rngs': (0, 0)" in said) == (not is_linen)


def test_a_run_of_linen_goes_on_in_nnx_and_writes_the_layout_of_linen(tmp_path: Path) -> None:
    style = Style("stack", "named")
    cs.orbax.save(tmp_path / "linen", of_linen(style))
    model = cs.orbax.restore(tmp_path / "linen", made(Style("list", "list")))
    assert is_right(model, Style("list", "list"))
    cs.orbax.save(tmp_path / "again", model, layout=tmp_path / "linen")
    again = cs.orbax.load(tmp_path / "again")
    assert is_right(again, style)
    assert jax.tree.structure(again) == jax.tree.structure(of_linen(style))


def test_both_lists_are_named_by_what_they_are() -> None:
    model = made(Style("list", "list"))
    names = {"/".join(row.path) for row in cs.infer(model).rows if row.kind is nnx.Param}
    wanted = {f"params/layers[]/{name}[]/{path}" for name in LAYERS for path in SHAPES}
    assert names == {*wanted, *(f"params/{path}" for path in HEAD)}
    sizes = {row.path[2]: row.repeats[1].size for row in cs.infer(model).rows if len(row.path) > 4}
    assert sizes == {f"{name}[]": (count,) for name, count in LAYERS.items()}

"""A hundred cases of each kind of input that nobody should give; ``python tests/fuzz/sweep.py`` runs thousands."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz import declarations, rules, trees
from fuzz.attempts import SilentError, ended
from fuzz.hostile import frozen
from fuzz.seen import same
from fuzz.sweep import KINDS, outcomes
from support.profiles import THOROUGH

import ckpt_schema as cs

CASES = 1000 if THOROUGH else 100


@pytest.mark.parametrize("kind", KINDS)
def test_each_input_is_named_or_taken_rightly(kind: str) -> None:
    ends = {seed: ended(KINDS[kind], seed) for seed in range(CASES)}
    assert not {seed: end for seed, end in ends.items() if end.fault}
    kinds = [end.kind for end in ends.values()]
    assert min(kinds.count("named"), kinds.count("accepted")) > CASES / 10, "the inputs are wrong"


@pytest.mark.parametrize("kind", ["commands", "targets"])
def test_a_sweep_leaves_nothing_behind(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the process that made a folder for its cases is killed."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert [end.fault for end in outcomes(kind, range(3))] == [False] * 3
    assert [*tmp_path.iterdir()] == []


def test_a_fault_is_told_from_an_error_of_ours() -> None:
    state = trees.state(np.random.default_rng(0))

    def named(_: np.random.Generator) -> None:
        cs.infer(object())

    def raw(_: np.random.Generator) -> None:
        raise KeyError("emb")

    def silent(_: np.random.Generator) -> None:
        trees.verify(state, {**trees.LENS.get(state), "emb": np.zeros((3, 2), "float32")})

    def differs(_: np.random.Generator) -> None:
        cs.assert_trees_identical({"a": 1}, {"a": 2})

    def swallows(_: np.random.Generator) -> None:
        while True:
            try:
                while True:
                    pass
            except BaseException:
                break

    assert ended(named, 0).kind == "named"
    assert ended(raw, 0).said == "KeyError at ?: 'emb'"
    assert ended(silent, 0).said.startswith("emb: ")
    assert ended(differs, 0).kind == "silent"  # though it is an error of the library's own
    assert ended(swallows, 0, seconds=0.1).kind == "hang"


def exchanged(state: trees.Tree) -> trees.Tree:
    """Two layers of one shape change places."""
    return {**state, "layers_0": state["layers_1"], "layers_1": state["layers_0"]}


def negated(state: trees.Tree) -> trees.Tree:
    """Another sign of zero, which equals it as a number."""
    return {**state, "emb": state["emb"] * np.float32(-1)}


@pytest.mark.parametrize("fault", [exchanged, negated])
def test_a_wrong_value_is_seen(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[trees.Tree], trees.Tree]
) -> None:
    """Each use that reads values tells a state from another one of its layout."""
    lens = trees.LENS

    class Faulty:
        put = staticmethod(lens.put)

        @staticmethod
        def get(state: trees.Tree) -> trees.Tree:
            return lens.get(fault(state))

    state = trees.state(np.random.default_rng(0))
    state["emb"] = np.zeros_like(state["emb"])
    for use in (trees.viewed, trees.gone_round, trees.put_back):
        use(state, state)
        with monkeypatch.context() as patch:
            patch.setattr(trees, "LENS", Faulty)
            with pytest.raises(SilentError):
                use(state, state)


def test_the_oracles_know_what_is_right() -> None:
    state = trees.state(np.random.default_rng(0))
    assert trees.sound(state)
    for wrong in (
        {**state, "more": np.zeros(2, "float32")},
        {**state, "emb": np.zeros((2, 3), "float64")},
        {**state, "layers_1": {**state["layers_1"], "w": np.zeros((3, 2), "float32")}},
        {name: leaf for name, leaf in state.items() if name != "layers_1"},
        {name: leaf for name, leaf in state.items() if name != "key"},
    ):
        assert not trees.sound(wrong)
        with pytest.raises((SilentError, KeyError)):
            trees.plain_state(wrong)
    assert declarations.shape("3*a*b q+2*k 1") == (18, 4, 1)
    assert declarations.shape("*batch a") is None
    old = rules.state(np.random.default_rng(0))
    with pytest.raises(SilentError, match="layers/0/n"):
        same(rules.other_side(old, [rules.PLAUSIBLE[3]]), rules.other_side(old))


def test_flax_copies_no_tree_that_is_nested_too_deep() -> None:
    assert frozen(trees.buried(5)) == trees.buried(5)
    assert type(frozen(trees.buried(4000))) is dict

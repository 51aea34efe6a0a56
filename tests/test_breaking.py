"""What is said of a change is what restores do: ``python tests/planted_changes.py`` tries every one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import planted_changes as planted
import pytest
import test_source
import yaml
from flax import nnx
from support import optimizers
from support.profiles import sampled, thorough_only

import ckpt_schema as cs
from ckpt_schema._breaking.saved_form import saved_form
from ckpt_schema.cli import main
from ckpt_schema.orbax._metadata import read_metadata

CHANGES = {**planted.PLANTED, **planted.HARMLESS}


def test_there_are_as_many_changes_as_were_promised() -> None:
    assert len([change for change in planted.PLANTED.values() if change.broken]) >= 30
    assert len(planted.HARMLESS) >= 10
    assert not any(change.broken for change in planted.HARMLESS.values())
    assert {*"RWSE"} == {*"".join(change.broken for change in CHANGES.values())}


@pytest.mark.parametrize("name", sampled([*CHANGES], 9))
def test_what_is_said_of_a_change_is_what_restores_do(name: str) -> None:
    assert not planted.fault(CHANGES[name])


@pytest.mark.parametrize("name", CHANGES)  # without a disk all of them take 3 seconds
def test_each_change_breaks_the_rules_that_it_should(name: str) -> None:
    _, own, _ = planted.found_broken(CHANGES[name])
    assert own == CHANGES[name].broken


# --- The metadata of a checkpoint that nobody has saved  ---


def told(tree: Any) -> Any:
    return jax.tree.map(lambda x: f"{x.dtype}{x.shape}", tree)


def trees() -> dict[str, Any]:
    found: dict[str, Any] = {
        "containers": {
            "pair": (jnp.ones(2), {"x": jnp.ones(3)}),
            "list": [jnp.ones(1)],
            "none": None,
            "empty": {},
            "numbers": {0: jnp.ones(2), 1: jnp.ones(2)},
            "nothing": (),
            "key": jax.random.key(0),
        }
    }
    for name in ("masked", "adafactor"):
        tx, sizes = optimizers.make(name), optimizers.SIZED.get(name, optimizers.SIZES)
        found[f"Linen, {name}"] = optimizers.linen_state(tx, sizes)
        found[f"NNX, {name}"] = nnx.state(optimizers.NnxTrainState(tx, sizes))
    return found


@pytest.mark.parametrize("name", trees())
def test_the_form_that_is_saved_is_what_metadata_tells(name: str, tmp_path: Path) -> None:
    state = trees()[name]
    cs.orbax.save(tmp_path / "1", state)
    assert told(saved_form(cs.infer(state)).tree) == told(read_metadata(tmp_path / "1").tree)


def test_a_layout_without_sizes_is_asked_for_them() -> None:
    with pytest.raises(cs.SchemaError, match="dims="):
        cs.breaking(planted.Straight, planted.Turned)


# --- Lenses that migrate  ---


def states(tmp_path: Path, name: str) -> tuple[Any, Any, Path]:
    """Random states of both sides of a change, the old one saved."""
    change = CHANGES[name]
    old, new = (
        planted.random(planted.made_state(make), seed)
        for make, seed in ((change.old, 0), (change.new, 1))
    )
    cs.orbax.save(tmp_path / "old", old)
    return old, new, tmp_path / "old"


def passing(found: cs.Breaking) -> str:
    return "".join(letter for letter, rule in planted.RULES.items() if found[rule].passes)


def test_a_lens_migrates_what_it_carries(tmp_path: Path) -> None:
    old, new, path = states(tmp_path, "a node renamed")
    lens = cs.adapt(old, new, rules=[cs.rename("embed", "tokens")])
    found = cs.breaking(old, new, lens)
    assert passing(found) == "RWSE"
    leaves = len(jax.tree.leaves(new))
    assert f"READ breaking, migrated by source -> view: {leaves} of {leaves} leaves, exact" in str(
        found
    )
    assert str(found).splitlines()[0].endswith(": nothing breaks, 4 rules migrated")
    # What it mends would hide what it does not mend, in a pipe as well: the data have it.
    for text in (str(found), found.in_full()):
        assert "expected" not in text and "to paste" not in text
    assert found["READ"].faults
    assert planted.elements(cs.orbax.restore(path, new, lens)) == planted.elements(old)
    # The other way round it is the same lens.
    assert passing(cs.breaking(old, new, ~lens)) == "RWSE"


def test_a_lens_that_rounds_is_not_exact(tmp_path: Path) -> None:
    old, new, path = states(tmp_path, "floats made narrower")
    lens = cs.adapt(old, new, rules=[cs.cast("head", rounding="nearest")])
    found = cs.breaking(old, new, lens)
    assert passing(found) == "RWS"
    assert "not exact" in str(found)
    assert str(found).splitlines()[0].endswith(": 1 rule broken, 2 rules migrated")
    cs.orbax.restore(path, new, lens)


def test_a_lens_that_starts_an_optimizer_anew_is_told_of(tmp_path: Path) -> None:
    old, new, path = states(tmp_path, "a key added")
    lens = cs.adapt(old, new, rules=[cs.private("rng", cs.own)])
    found = cs.breaking(old, new, lens)
    assert passing(found) == "RWE"
    migration = found["RESUME"].migration
    assert migration is not None
    assert [fault.path for fault in migration.faults] == ["rng"]
    assert migration.carried == migration.leaves - 1
    whole = cs.orbax.restore(path, new, lens)
    assert jax.random.key_data(whole["rng"]).tolist() == jax.random.key_data(new["rng"]).tolist()


def test_a_lens_between_other_layouts_migrates_nothing() -> None:
    old, new = CHANGES["a node renamed"].old(), CHANGES["a node renamed"].new()
    found = cs.breaking(old, new, cs.adapt(old, old))
    assert passing(found) == ""
    assert "not migrated" in str(found)


# --- Text and command  ---


def test_a_report_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="passes"):
        bool(cs.breaking(planted.state(), planted.state()))
    with pytest.raises(cs.SchemaError, match="READ"):
        cs.breaking(planted.state(), planted.state(), rules=["read"])


MODELS = """
import jax.numpy as jnp
import optax

import ckpt_schema as cs


def state(name={name!r}):
    params = {{name: {{"kernel": jnp.ones((4, 6))}}, "head": jnp.ones((6, 3))}}
    return {{"params": params, "opt_state": optax.adam(1e-3).init(params)}}


v1_to_v2 = cs.adapt(state("wi"), state("up"), rules=[cs.rename("wi", "up")])
"""


def test_a_pull_request_is_held_against_the_lock_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *who, *words], check=True, cwd=tmp_path, capture_output=True)

    monkeypatch.chdir(tmp_path)
    for name, text in (("wi", "old_code.py"), ("up", "new_code.py")):
        (tmp_path / text).write_text(MODELS.format(name=name))
    git("init", "-q", "-b", "main")
    assert main(["breaking", "old_code.py:state", "--against", "main"]) == 3
    assert "a commit that has ckpt.lock.json" in capsys.readouterr().err
    assert main(["lock", "old_code.py:state", "-o", "ckpt.lock.json"]) == 0
    git("add", ".")
    git("commit", "-qm", "one")
    assert main(["breaking", "old_code.py:state", "--against", "main"]) == 0
    assert main(["breaking", "new_code.py:state", "--against", "main"]) == 1
    printed = capsys.readouterr().out
    assert "ckpt.lock.json of main -> new_code.py:state: 4 rules broken" in printed
    assert "cs.rename('wi', 'up')" in printed
    given = ["--lens", "new_code.py:v1_to_v2"]
    assert main(["breaking", "new_code.py:state", "--against", "ckpt.lock.json", *given]) == 0
    assert "READ breaking, migrated by v1_to_v2: 7 of 7 leaves, exact" in capsys.readouterr().out
    assert main(["breaking", "new_code.py:state", "--against", "HEAD", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [rule["rule"] for rule in found["rules"] if rule["faults"]] == ["READ", "WRITE"]
    only = ["--rules", "exact"]
    assert main(["breaking", "old_code.py:state", "--against", "HEAD", *only]) == 0
    with pytest.raises(SystemExit):
        main(["breaking", "old_code.py:state", "--against", "HEAD", "--rules", "nothing"])


def test_a_command_prints_every_row_that_breaks_a_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Leaves of sizes of their own, so that no two rows are one pattern.
    text = "import jax.numpy as jnp\n"
    for state, first in (("old", 2), ("new", 3)):
        names = "{chr(97 + n // 26) + chr(97 + n % 26): "
        text += f"{state} = {names}jnp.ones((n + 2, n + {first})) for n in range(60)}}\n"
    (tmp_path / "wide.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert main(["lock", "wide.py:old", "-o", "ckpt.lock.json"]) == 0
    capsys.readouterr()
    assert main(["breaking", "wide.py:new", "--against", "ckpt.lock.json"]) == 1
    printed = capsys.readouterr().out
    for number in range(60):
        name = chr(97 + number // 26) + chr(97 + number % 26)
        assert f"{name}  expected float32[{number + 2} {number + 3}]" in printed, printed
    assert ".mismatches" not in printed


@pytest.mark.parametrize("name", sampled(["NNX's adapters", "Linen, unrolled", "NNX"], 3))
def test_a_real_state_breaks_nothing_of_its_own_lock(name: str) -> None:
    layout = test_source.READINGS[name]()
    locked = cs.from_json(cs.to_json(layout), cs.Layout)
    assert cs.breaking(locked, layout).passes


@thorough_only
def test_the_action_says_what_a_pull_request_breaks(tmp_path: Path) -> None:
    """Its steps, run as GitHub runs them: with what they are given in the environment."""
    docs = Path(cs.__file__).parent.parent / "docs"
    steps = yaml.safe_load((docs / "ci" / "action.yml").read_text())["runs"]["steps"]
    remote, clone = tmp_path / "remote", tmp_path / "clone"
    remote.mkdir()

    def git(where: Path, *words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *who, *words], check=True, cwd=where, capture_output=True)

    def run(number: int) -> subprocess.CompletedProcess[str]:
        given = {"TARGET": "code.py:state", "LOCK": "ckpt.lock.json", "BASE": "main"}
        given |= {"LENS": "", "RULES": "READ", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
        paths = {
            "PYTHONPATH": str(docs.parent),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        command = ["bash", "-e", "-c", steps[number]["run"]]
        return subprocess.run(
            command,
            cwd=clone,
            env={**os.environ, **given, **paths},
            capture_output=True,
            text=True,
            check=False,
        )

    (remote / "code.py").write_text(MODELS.format(name="wi"))
    assert main(["lock", f"{remote / 'code.py'}:state", "-o", str(remote / "ckpt.lock.json")]) == 0
    git(remote, "init", "-q", "-b", "main")
    git(remote, "add", ".")
    git(remote, "commit", "-qm", "one")
    git(tmp_path, "clone", "-q", str(remote), str(clone))
    (clone / "code.py").write_text(MODELS.format(name="up"))
    stale = run(0)
    assert (stale.returncode, "run ckpt-schema lock" in stale.stdout) == (1, True), stale
    broken = run(1)
    assert broken.returncode == 1, broken
    assert "READ breaking: 2 faults" in broken.stdout
    assert "cs.rename('wi', 'up')" in (tmp_path / "summary").read_text()

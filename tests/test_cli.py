"""The commands answer on stdout, fail on stderr, and say by their number how it went."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp
from support.pages import python_of

import ckpt_schema as cs
from ckpt_schema._json.json_text import lock_text
from ckpt_schema.cli import main

TX = optax.adam(1e-3)


def state(width: int = 8, *, name: str = "wi", dtype: Any = jnp.float32) -> dict[str, Any]:
    layer = {"norm": {"scale": jnp.ones(4)}, name: {"kernel": jnp.ones((4, width), dtype)}}
    params = {f"layers_{n}": layer for n in range(3)}
    return {"step": jnp.int32(5), "params": params, "opt_state": TX.init(params)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for number, tree in ((1000, state()), (2000, state(16)), (3000, state(name="up"))):
        cs.orbax.save(folder / str(number), tree)
    return folder


def test_show_prints_each_leaf(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(runs / "1000")]) == 0
    printed = capsys.readouterr().out
    assert "step 1000" in printed
    assert re.search(r"params/layers_\{i\}/wi/kernel +float32\[4 8\] +x 3 +384 B", printed)
    assert main(["show", "--json", str(runs / "1000")]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["key"]: row for row in told["rows"]}
    assert rows["params/layers_{i}/wi/kernel"]["shape"] == [4, 8]
    assert told["bytes"] == sum(row["bytes"] for row in told["rows"])


def test_show_of_a_run_shows_its_last_checkpoint(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(runs / "3000")]) == 0
    last = capsys.readouterr().out
    assert main(["show", str(runs)]) == 0
    title, note, *rest = capsys.readouterr().out.splitlines(keepends=True)
    assert title == f"{runs} is the folder of a run with 3 checkpoints: 1000, 2000, 3000\n"
    assert note.startswith("The last one is shown")
    assert "".join(rest) == last
    assert main(["show", "--json", f"{runs}/", "--at", "params"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["step"]) == (["1000", "2000", "3000"], 3000)
    # Where one checkpoint is meant, none is chosen.
    for command in (["infer"], ["lock"], ["diff", str(runs / "1000")]):
        assert main([*command, str(runs)]) == 3
        captured = capsys.readouterr()
        assert f"{runs} holds checkpoints, and is none itself" in captured.err
        assert str(runs / "3000") in captured.err
        assert not captured.out


def test_a_run_of_many_steps_names_the_last_ones(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8, 21):
        (tmp_path / f"step_{number}").symlink_to(runs / "1000")
    unfinished = tmp_path / "step_21.orbax-checkpoint-tmp-7"
    shutil.copytree(runs / "1000", unfinished)
    assert main(["show", str(tmp_path)]) == 0
    title = capsys.readouterr().out.splitlines()[0]
    assert title.endswith(
        f"with 13 checkpoints: ..., {', '.join(f'step_{n}' for n in range(11, 21))}"
    )
    # What an unfinished save has left is no checkpoint, and is told where there is nothing else.
    for number in range(8, 21):
        (tmp_path / f"step_{number}").unlink()
    assert main(["show", str(tmp_path)]) == 3
    assert "a directory with 1 unfinished save" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A terminal, as far as anybody asks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command on a terminal of some width; gives its text, without what makes it bold."""

    def run(width: int, *arguments: str, status: int = 0) -> str:
        screen = Terminal()
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm-256color")
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, screen)
        assert main([*arguments]) == status
        colours = {*re.findall(r"\x1b\[([0-9;]*)m", screen.getvalue())}
        assert colours <= {"0", "1", "2"}, "bold and dim are read on every background"
        lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
        assert max(map(len, lines)) <= width
        return "\n".join(lines)

    return run


SHOWN = """\
20 leaves, 326 elements, 1.3 KiB
6 leaves of the model, 432 B
  params/layers_{i}                     432 B
    norm/scale       float32[4]    x 3   48 B
    wi/kernel        float32[4 8]  x 3  384 B
1 leaf beside the model, 4 B
  step  int32[]  4 B
13 leaves of the optimizer, 868 B (| less shows all)
  opt_state/0                                  868 B
    count          int32[]                       4 B
    mu/layers_{i}  6 leaves like their params  432 B
    nu/layers_{i}  6 leaves like their params  432 B"""


def test_show_draws_a_tree_on_a_terminal(runs: Path, terminal: Callable[..., str]) -> None:
    for width in (120, 60):
        shown = terminal(width, "show", str(runs / "1000"))
        assert "item state, step 1000" in shown.replace("\n", " ")
        assert shown[shown.index("20 leaves") :] == SHOWN


def test_each_command_fits_a_narrow_terminal(
    runs: Path, tmp_path: Path, terminal: Callable[..., str]
) -> None:
    file = tmp_path / "ckpt.lock.json"
    assert main(["lock", str(runs / "1000"), "-o", str(file)]) == 0
    old, new = str(runs / "1000"), str(runs / "3000")
    assert "conforms to" in terminal(60, "check", str(file), old)
    assert "expected: float32[4 8]" in terminal(
        60, "check", str(file), str(runs / "2000"), status=1
    )
    assert "likely renamed" in terminal(60, "diff", old, new, status=1)
    # An error folds too, and its rules are still code.
    told = terminal(60, "explain", old, new, status=3)
    code = told[told.index("rules=[") :].split("]", 1)[0]
    assert code.count("    cs.rename('layers_") == 3
    assert "a device holds" in terminal(60, "plan", old, str(file))


def test_show_tells_how_leaves_lie_on_devices(tmp_path: Path, terminal: Callable[..., str]) -> None:
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(4, 2), ("fsdp", "tp"))
    split = NamedSharding(mesh, PartitionSpec(None, ("fsdp", "tp")))
    whole = NamedSharding(mesh, PartitionSpec())
    w, b = jnp.ones((4, 8)), jnp.ones(8)
    params = {"w": jax.device_put(w, split), "b": jax.device_put(b, whole)}
    cs.orbax.save(tmp_path / "1", {"params": params, "step": jnp.int32(1)})
    shown = terminal(120, "show", str(tmp_path / "1"))
    assert "3 leaves, 41 elements, 164 B, sharded over fsdp=4, tp=2" in shown
    assert re.search(r"w +float32\[4 8\] +128 B +P\(None, \('fsdp', 'tp'\)\)", shown)
    assert re.search(r"b +float32\[8\] +32 B +whole", shown)
    narrow = terminal(45, "show", str(tmp_path / "1"))
    assert "sharding: P(None, ('fsdp', 'tp'))" in narrow
    assert re.search("w +float32", terminal(120, "show", str(tmp_path / "1"), "--at", "params"))


def test_what_is_piped_is_all_there_is(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No picture, no colour, and no row that is left out: not even of a report with many faults."""
    tree = {chr(97 + n % 26) + "_" + chr(97 + n // 26): jnp.ones(2) for n in range(200)}
    file = tmp_path / "ckpt.lock.json"
    cs.orbax.save(tmp_path / "1", tree)
    assert main(["lock", str(tmp_path / "1"), "-o", str(file)]) == 0
    assert main(["check", str(file), str(runs / "1000")]) == 1
    printed = capsys.readouterr().out
    assert "more pattern" not in printed and "\x1b" not in printed
    assert all(f"  {name} " in printed for name in tree)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "7"
    whole = state()
    averages = {"ema": {"scale": jnp.ones(5)}, "other": jnp.ones(3)}
    parts = {name: whole[name] for name in ("params", "opt_state")}
    ocp.save_checkpointables(path, {**parts, "averages": averages})
    return path


def test_show_and_infer_take_all_items_or_one(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*arguments: str) -> dict[str, Any]:
        assert main(["show", "--json", str(several), *arguments]) == 0
        told = json.loads(capsys.readouterr().out)
        return told | {"keys": [row["key"] for row in told["rows"]]}

    whole = shown()
    assert whole["items"] == ["averages", "opt_state", "params"]
    assert whole["step"] == 7
    assert {"averages/other", "params/layers_{i}/wi/kernel"} < {*whole["keys"]}
    assert any(key.startswith("opt_state/") for key in whole["keys"])
    assert main(["show", str(several)]) == 0
    assert "items averages, opt_state, params" in capsys.readouterr().out
    assert shown("--item", "averages")["keys"] == ["ema/scale", "other"]
    one = shown("--item", "averages", "--at", "ema")
    assert (one["item"], one["at"], one["keys"]) == ("averages", "ema", ["scale"])
    assert shown("--at", "averages")["keys"] == ["ema/scale", "other"]
    # What is inferred is what is there, for `check` too.
    file = tmp_path / "schemas.py"
    assert main(["infer", str(several), "-o", str(file)]) == 0
    assert main(["check", str(file), str(several)]) == 0
    assert main(["check", str(file), str(several), "--item", "averages"]) == 1
    assert main(["show", str(file), "--item", "averages", "--at", "ema"]) == 3
    told = capsys.readouterr().err
    assert "leave --item out" in told
    assert "leave --at out" in told
    assert main(["infer", str(several), "--item", "averages", "--at", "ema"]) == 0
    assert '"embed": 5' in capsys.readouterr().out


@pytest.mark.parametrize("command", ["show", "infer", "lock"])
def test_an_item_that_is_not_there_is_told_with_those_that_are(
    command: str, several: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(several), "--item", "average"]) == 3
    told = capsys.readouterr().err
    assert all(name in told for name in ("averages", "opt_state", "params"))
    assert main([command, str(several), "--at", "average"]) == 3
    told = capsys.readouterr().err
    assert all(name in told for name in ("averages", "opt_state", "params"))


def test_what_infer_writes_is_what_check_takes(runs: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "schemas.py")
    assert main(["infer", str(runs / "1000"), "-o", file]) == 0
    assert main(["check", file, str(runs / "1000")]) == 0
    assert main(["check", f"{file}:layout", str(runs / "2000")]) == 1
    assert main(["infer", str(runs / "1000"), "-o", file]) == 3, "nothing is overwritten"


def test_a_lock_is_one_text_of_a_layout(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ckpt.lock.json"
    assert main(["lock", str(runs / "1000"), "-o", str(file)]) == 0
    assert main(["lock", str(runs / "1000")]) == 0
    assert capsys.readouterr().out == file.read_text()
    assert main(["lock", str(runs / "1000"), "-o", str(file), "--check"]) == 0
    assert main(["lock", str(runs / "2000"), "-o", str(file), "--check"]) == 1
    rows = [line for line in file.read_text().splitlines() if '"leaf"' in line]
    keys = [json.loads(line.rstrip(","))["key"] for line in rows]
    assert keys[-3:] == ["params/layers_{i}/norm/scale", "params/layers_{i}/wi/kernel", "step"]
    # It is a layout wherever a command takes one.
    assert main(["check", str(file), str(runs / "1000")]) == 0
    assert main(["check", str(file), str(runs / "2000")]) == 1
    # A lock file is written again, another one is not.
    assert main(["lock", str(runs / "2000"), "-o", str(file)]) == 0
    assert main(["check", str(file), str(runs / "2000")]) == 0
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert main(["lock", str(runs / "2000"), "-o", str(other)]) == 3


def test_the_text_of_a_lock_does_not_depend_on_the_order(tmp_path: Path) -> None:
    leaf, wide = jnp.zeros(2), jnp.zeros(3)
    a = cs.infer({"params": {"b_10": leaf, "b_2": wide, "c": {"x": leaf, "y": (leaf, wide)}}})
    b = cs.infer({"params": {"c": {"y": (leaf, wide), "x": leaf}, "b_2": wide, "b_10": leaf}})
    assert lock_text(a) == lock_text(b)
    assert lock_text(a).index("b_2") < lock_text(a).index("b_10")


def test_a_lock_that_was_merged_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ckpt.lock.json"
    main(["lock", str(runs / "1000"), "-o", str(file)])
    file.write_text(file.read_text().replace("float32[4 8]", "float32[4 9]", 1))
    assert main(["show", str(file)]) == 3
    assert "two changes were merged" in capsys.readouterr().err


def test_check_names_each_fault(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "schemas.py")
    main(["infer", str(runs / "1000"), "-o", file])
    assert main(["check", "--json", file, str(runs / "2000")]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"]
    assert {fault["kind"] for fault in told["faults"]} == {"shape"}


def test_diff_says_what_differs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(runs / "1000"), str(runs / "1000")]) == 0
    assert main(["diff", str(runs / "1000"), str(runs / "2000")]) == 1
    printed = capsys.readouterr().out
    assert "float32[4 8] -> 3 x float32[4 16]" in printed
    assert main(["diff", "--json", str(runs / "1000"), str(runs / "3000")]) == 1
    told = json.loads(capsys.readouterr().out)
    [change] = told["changes"]
    assert change["kind"] == "likely renamed"


def test_explain_prints_a_lens(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(runs / "1000"), str(runs / "1000")]) == 0
    assert "joined" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "no.such.module:layout"], "a module to import"),
        (["show", "/no/such/folder"], "no such path"),
        (["show", "optax:no_such_name"], "no no_such_name"),
        (["check", "optax:adam", "/no"], "expected"),
        (["explain", "ckpt_schema:infer"], "without arguments"),
    ],
)
def test_what_cannot_be_done_is_said_on_stderr(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 3
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out


def test_what_a_module_raises_is_said_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The faults of a lens and the rules that mend them are what the module was written to see."""
    file = tmp_path / "lens_of_mine.py"
    file.write_text(
        "import ckpt_schema as cs, numpy as np\n"
        "a, b = ({'params': {name: {'w': np.ones(3)}}} for name in ('up', 'wi'))\n"
        "lens = cs.adapt(a, b)\n"
    )
    assert main(["explain", str(file)]) == 3
    told = capsys.readouterr().err
    assert "lens_of_mine raised DerivationError: no lens" in told
    assert "cs.rename('up', 'wi')" in told
    # Nobody has the exception, so more rules than a message has room for are printed too.
    file.write_text(
        "import ckpt_schema as cs, numpy as np\n"
        "a, b = ({'params': {f'{name}_{n}x': {'w': np.ones(n)} for n in range(2, 42)}}\n"
        "        for name in ('up', 'wi'))\n"
        "lens = cs.adapt(a, b)\n"
    )
    assert main(["explain", str(file)]) == 3
    told = capsys.readouterr().err
    assert told.count("    cs.rename(") == 40
    assert ".rules" not in told
    assert ".mismatches" not in told
    file.write_text("import jax.numpy as jnp\nlens = jnp.ones(3) + jnp.ones(4)\n")
    assert main(["explain", str(file)]) == 3
    told = capsys.readouterr().err
    assert f"line 2 of {file}: lens = jnp.ones(3) + jnp.ones(4)" in told


@pytest.mark.parametrize("axis", ["layers=--1", "layers=" + "9" * 5000, "layers=²"])
def test_an_axis_that_is_no_number_is_wrong_usage(
    axis: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["show", "none", "--scan", axis])
    assert ended.value.code == 2
    assert "expected NODE=AXIS" in capsys.readouterr().err


def test_a_mesh_of_more_devices_than_there_can_be_is_wrong_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "none", "none", "--mesh", "1000000x1000000"])
    assert ended.value.code == 2
    assert "devices at most" in capsys.readouterr().err


def test_a_package_that_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(*_: Any, **__: Any) -> int:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("ckpt_schema._commands.answers.answer_show", lacking)
    assert main(["show", "gs://bucket/run"]) == 3
    assert "install gcsfs" in capsys.readouterr().err


HUB = ["hf", "folder", "new", "--family"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["llam", "--to", "nnx", "--like", "x", "--dtype", "bfloat16", "--no-scan"],
            ["--family is one of", "--from and --like", "--dtype is for", "--no-scan is for"],
        ),
        (["llama", "--from", "nnx", "--scan"], ["--from and --like", "--scan is for maxtext"]),
    ],
    ids=range(2),
)
def test_words_of_hf_that_do_not_go_together_are_all_told(
    arguments: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*HUB, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [part in line for part, line in zip(said, lines, strict=True)] == [True] * len(said)


def test_all_rules_that_there_are_not_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["breaking", "none", "--against", "none", "--rules", "READ,WRIT,,EXAKT"])
    assert "'WRIT', '', 'EXAKT' are none of READ, WRITE" in capsys.readouterr().err


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["show"], ["nothing"], ["show", "x", "--scan", "layers"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "NODE=AXIS" in capsys.readouterr().err


# --- cs.diff  ---


def told(a: Any, b: Any, **given: Any) -> list[tuple[str, str]]:
    return [(change.kind, change.path) for change in cs.diff(a, b, **given).changes]


def test_diff_tells_each_kind_of_change() -> None:
    assert cs.diff(state(), state()).same
    assert told(state(), state(16)) == [("reshaped", "params/layers[]/wi/kernel")]
    assert told(state(), state(dtype=jnp.bfloat16)) == [("recast", "params/layers[]/wi/kernel")]
    assert told(state(), state(name="up")) == [("likely renamed", "params/layers[]/wi/kernel")]
    a, b = ({"params": {"w": jnp.ones(2), **more}} for more in ({}, {"head": jnp.ones((3, 3))}))
    assert told(a, b) == [("added", "params/head")]
    assert told(b, a) == [("removed", "params/head")]


def test_diff_tells_a_layer_that_became_unlike_the_others() -> None:
    leaf, wide = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((2, 3), (2, 4)))
    old = {f"layers_{n}": {"up": leaf, "down": leaf} for n in range(3)}
    new = old | {"layers_1": {"up": wide, "down": leaf}}
    assert told(old, new) == told(new, old) == [("reshaped", "params/layers_1/up")]
    # So with lists inside of one.
    outer, inner = {f"blocks_{n}": old for n in range(2)}, {"blocks_0": old, "blocks_1": new}
    assert told(outer, inner) == [("reshaped", "params/blocks_1/layers_1/up")]
    # A list of fewer layers, and a stack, are read as such.
    assert told(old, {"layers_0": old["layers_0"]}) == [
        ("reshaped", "params/layers[]/down"),
        ("reshaped", "params/layers[]/up"),
    ]
    stack = jax.ShapeDtypeStruct((3, 2, 3), "float32")
    assert cs.diff(old, {"layers": {"up": stack, "down": stack}}).mended


def test_diff_tells_what_lies_elsewhere() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    split = NamedSharding(mesh, PartitionSpec("x"))
    a = {"params": {"w": jnp.ones(4)}}
    b = {"params": {"w": jax.device_put(jnp.ones(4), split)}}
    [change] = cs.diff(a, b).changes
    assert (change.kind, change.path) == ("resharded", "params/w")
    assert "'x'" in change.after


def test_diff_measures_values() -> None:
    a = {"w": jnp.array([1.0, 2.0, jnp.nan]), "b": jnp.zeros(2)}
    b = {"w": jnp.array([1.0, 2.5, jnp.nan]), "b": jnp.zeros(2)}
    [value] = cs.diff(a, b, values=True).values or ()
    assert (value.path, value.absolute, value.relative) == ("w", 0.5, 0.2)
    assert cs.diff(a, a, values=True).values == ()
    with pytest.raises(cs.ConformanceError, match="give lens="):
        cs.diff(a, {"w": a["w"]}, values=True)
    for other in (cs.infer(a), jax.eval_shape(lambda: a)):
        with pytest.raises(cs.ConformanceError, match="a tree that has values"):
            cs.diff(a, other, values=True)


@pytest.mark.parametrize("output", ["", "/dev/null/a", "\0", "x" * 300], ids=range(4))
@pytest.mark.parametrize("command", ["infer", "lock"])
def test_a_file_that_cannot_be_written_is_told(
    command: str, output: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(runs / "1000"), "-o", output]) == 3
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("at", ["layers_{i}", "params/layers_{i}"])
def test_a_place_that_is_many_is_told(
    at: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(runs / "1000"), "--at", at]) == 3
    assert "expected a path of keys" in capsys.readouterr().err


def test_names_that_no_file_has_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x" * 300, "\0"):
        assert main(["breaking", "fuzz.commands:state", "--against", name]) == 3
        assert main(["show", name]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_diff_measures_values_through_a_lens() -> None:
    a = {"w": jnp.ones((2, 3)), "b": jnp.zeros(2)}
    b = {"v": jnp.ones((2, 3)) * 3, "b": jnp.zeros(2)}
    lens = cs.adapt(a, b, rules=[cs.rename("w", "v")])
    [value] = cs.diff(a, b, lens=lens, values=True).values or ()
    assert (value.path, value.absolute) == ("v", 2.0)


def test_a_diff_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"diff\.same"):
        bool(cs.diff(state(), state()))


def test_what_the_page_on_the_command_line_says_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    page = page.replace("/tmp/my-runs", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(python_of(page))
    monkeypatch.syspath_prepend(str(tmp_path))
    exec(compile(python_of(page), "models.py", "exec"), {"__name__": "models"})
    lines = re.findall(r"^ckpt-schema (.*?)(?: +# exits with (\d))?$", page, re.MULTILINE)
    assert len(lines) > 6
    for line, code in lines:
        assert main(shlex.split(line)) == int(code or 0), line
    assert "class" in (tmp_path / "schemas.py").read_text()
    assert "likely renamed" in capsys.readouterr().out


# --- convert  ---


@pytest.fixture
def renaming(tmp_path: Path) -> str:
    """A lens that a command finds by its name."""
    code = """
        import jax.numpy as jnp
        import ckpt_schema as cs

        def tree(name):
            return {"net": {name: jnp.ones((4, 8)), "bias": jnp.ones(8)}, "step": 7}

        cast = {"net": {"up": jnp.ones((4, 8)), "bias": jnp.ones(8, "bfloat16")}, "step": 7}
        lens = cs.adapt(tree("wi"), cast, rules=[cs.rename("net/wi", "net/up"), cs.cast("**", rounding="nearest")])
    """
    (tmp_path / "renaming.py").write_text(textwrap.dedent(code))
    return str(tmp_path / "renaming.py")


def old(value: float = 1) -> dict[str, Any]:
    return {
        "net": {"wi": jnp.full((4, 8), float(value)), "bias": jnp.full(8, float(value))},
        "step": 7,
    }


def test_convert_says_what_it_will_do_and_does_it(
    renaming: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src, dst = str(tmp_path / "old"), tmp_path / "new"
    cs.orbax.save(src, old())
    assert main(["convert", src, str(dst), renaming, "--dry-run"]) == 0
    plan = capsys.readouterr()
    assert "2 leaves moved" in plan.out and "written anew: net/bias" in plan.out
    assert not dst.exists()
    assert main(["convert", src, str(dst), renaming, "--verify", "--json"]) == 0
    done = capsys.readouterr()
    assert json.loads(done.out)["rewritten"] == ["net/bias"]
    told, before = (re.sub(r"about .* measured", "measured", text) for text in (plan.out, done.err))
    assert told == before, "the plan stands before the work"
    assert re.search(r"(?m)^  about 1 s, at .*/s, measured of a leaf of \d+ B$", plan.out)
    found = cs.orbax.load(dst)
    assert found["net"]["bias"].dtype == jnp.bfloat16 and found["net"]["up"].shape == (4, 8)
    assert main(["convert", src, str(dst), renaming]) == 3, "nothing is overwritten"


def test_convert_takes_the_layout_of_another_checkpoint(tmp_path: Path) -> None:
    layers = {f"layers_{n}": {"w": jnp.full((2, 3), n)} for n in range(4)}
    cs.orbax.save(tmp_path / "old", {"net": layers})
    cs.orbax.save(tmp_path / "like", {"net": {"layers": {"w": jnp.zeros((4, 2, 3), int)}}})
    told = [str(tmp_path / name) for name in ("old", "new", "like")]
    assert main(["convert", *told]) == 0
    assert cs.orbax.load(told[1])["net"]["layers"]["w"][3].tolist() == [[3] * 3] * 2
    assert main(["convert", *told[:2], "optax:adam"]) == 3


def test_convert_goes_on_with_a_run_that_it_has_begun(
    renaming: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    with ocp.training.Checkpointer(run, custom_metadata={"run": 7}) as checkpointer:
        for step in (9, 10, 100):
            checkpointer.save(step, old(step))
    (run / "log.txt").write_text("not a checkpoint")
    told = ["convert", str(run), str(new), renaming]
    assert main(told) == 0
    assert "3 checkpoints: 6 leaves moved" in capsys.readouterr().out
    shutil.rmtree(new / "10")
    kept = (new / "9" / "state" / "_METADATA").stat().st_mtime_ns
    assert main(told) == 0
    assert "1 checkpoint: 2 leaves moved" in capsys.readouterr().out
    assert (new / "9" / "state" / "_METADATA").stat().st_mtime_ns == kept
    with ocp.training.Checkpointer(new) as checkpointer:
        assert [found.step for found in checkpointer.checkpoints] == [9, 10, 100]
        assert checkpointer.root_metadata().custom_metadata == {"run": 7}
    assert cs.orbax.load(new / "100")["net"]["up"][0, 0] == 100


def test_convert_of_a_run_finds_what_is_wrong_before_it_writes(
    renaming: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ocp.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(1, old())
        checkpointer.save(2, {"net": {"other": jnp.ones(3)}})
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "new"), renaming]) == 3
    assert str(tmp_path / "run" / "2") in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "run" / "1"), renaming]) == 3

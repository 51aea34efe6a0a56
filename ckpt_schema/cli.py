"""The command ``ckpt-schema``.

Results go to stdout, everything else to stderr. Exit status: 0 if all is well, 1 if something differs, 2 for wrong usage, 3 if
what was asked for cannot be done.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import ckpt_schema

DEMO_DEVICES = 8
CANNOT = 3

_TREE = (
    "a checkpoint; module:attr of a layout, a tree or a function that makes one; a file.py of "
    "`infer`; a file of `lock`"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of one command.

    Args:
        argv: the arguments without the program's name; those of the process if not given.
    """
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")
    # It needs devices, and sets up jax itself.
    if command is _demo:
        return _demo()
    # Questions are answered from metadata: no accelerator is taken for them, unless it is asked for.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    count = math.prod(size for _, size in arguments.get("mesh", ()))
    if count > 1:
        _pretend(count)
    # What imports jax is imported after that: jax reads the variables when it starts.
    from ckpt_schema._messages.pictures import put
    from ckpt_schema.errors import CkptSchemaError, format_faults

    try:
        return int(command(**arguments))
    except CkptSchemaError as error:
        # Nobody has the exception, so what is to be pasted is printed whole.
        told = error.header, error.mismatches, error.notes
        put(format_faults(*told, counts=error.counts, at_length=True), file=sys.stderr)
        return CANNOT
    except ImportError as error:  # what reads gs:// or s3:// is a package of its own, and may lack
        print(f"ckpt-schema: {error}", file=sys.stderr)
        return CANNOT


def _pretend(devices: int) -> None:
    """Makes as many devices of the CPU, for questions about a mesh that is elsewhere."""
    flags = os.environ.get("XLA_FLAGS", "")
    # A number that the user has set stays; if it is too small, the command says so.
    if "device_count" not in flags:
        flags = f"{flags} --xla_force_host_platform_device_count={devices}"
        os.environ["XLA_FLAGS"] = flags.strip()


def _hub(**arguments: Any) -> int:
    """Runs the command for families, once its words are seen to go together."""
    from ckpt_schema._commands import folders_of_families

    wrong: list[str] = []
    known = folders_of_families.FAMILIES
    if arguments["family"] not in known:
        wrong.append(f"--family is one of {', '.join(known)}, and not {arguments['family']!r}")
    if (arguments["back"] is None) != (arguments["like"] is None):
        wrong.append("--from and --like belong together")
    if "nnx" in (arguments["to"], arguments["back"]):
        if arguments["dtype"] is not None:
            wrong.append("--dtype is for maxtext")
        if arguments["scan"] is not None:
            said = "--scan" if arguments["scan"] else "--no-scan"
            wrong.append(f"{said} is for maxtext")
    for line in wrong:
        print(f"ckpt-schema hf: {line}", file=sys.stderr)
    if wrong:
        return 2
    # MaxText stacks layers unless it is told not to.
    arguments["scan"] = arguments["scan"] is not False
    return folders_of_families.answer_hf(**arguments)


def _answer(name: str, **arguments: Any) -> int:
    """Runs a command, which loads what it needs."""
    from ckpt_schema._commands import answers

    return getattr(answers, f"answer_{name}")(**arguments)


def _parser() -> argparse.ArgumentParser:
    """The words of all commands; each argument is one of the function that answers, under the same name."""
    parser = argparse.ArgumentParser(
        prog="ckpt-schema",
        description="Typed schemas of Flax checkpoints, and lenses derived between them.",
        epilog="exit status: 0 all is well, 1 something differs, 2 wrong usage, 3 it cannot be done",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {ckpt_schema.__version__}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, does: str, *, json: bool = True) -> argparse.ArgumentParser:
        """One command. Those that write a text themselves have no JSON."""
        made = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        # The answers are imported when one is asked for: `--help` needs no jax.
        made.set_defaults(command=functools.partial(_answer, name))
        if json:
            made.add_argument(
                "--json", action="store_true", dest="as_json", help="print the result as JSON"
            )
        return made

    # Commands about one side.
    show = add("show", "print what a checkpoint, a tree or a layout holds; reads metadata only")
    show.add_argument("given", metavar="WHAT", help=_TREE)
    _add_reading(show)
    infer = add("infer", "write the classes that declare a layout, as Python", json=False)
    infer.add_argument("given", metavar="WHAT", help=_TREE)
    infer.add_argument("-o", "--output", metavar="FILE", help="a file that is not there yet")
    infer.add_argument(
        "--list",
        action="append",
        dest="lists",
        metavar="PATTERN",
        help="a list of layers, layers_{i}; those that the tree shows unless given",
    )
    _add_reading(infer)
    lock = add("lock", "write a layout as the text that git keeps, a line for a row", json=False)
    lock.add_argument("given", metavar="TARGET", help=_TREE)
    lock.add_argument(
        "-o", "--output", metavar="FILE", help="ckpt.lock.json; a lock file is overwritten"
    )
    lock.add_argument(
        "--check", action="store_true", help="write nothing; 1 if the file is another"
    )
    _add_reading(lock)
    # Commands that hold two sides against each other, or show the lens between them.
    check = add("check", "print all that is wrong with a checkpoint or a tree; 1 if anything is")
    check.add_argument("declared", metavar="LAYOUT", help="module:attr, file.py or file.py:attr")
    check.add_argument("given", metavar="WHAT", help=_TREE)
    _add_place(check)
    explain = add("explain", "print where a lens brings each leaf, and what is edited on the way")
    explain.add_argument("given", metavar="LENS", help="module:attr of a lens, or a side to adapt")
    explain.add_argument("view", metavar="VIEW", nargs="?", help="the other side to adapt")
    breaking = add(
        "breaking",
        "print what a change breaks, of the checkpoints there are and of code; 1 if it does",
    )
    breaking.add_argument("given", metavar="TARGET", help=f"the new side: {_TREE}")
    breaking.add_argument(
        "--against",
        required=True,
        metavar="REF|FILE",
        help="the old side: a commit of git that has the lock file, a lock file, or what TARGET may be",
    )
    breaking.add_argument("--lens", metavar="module:attr", help="what migrates old checkpoints")
    breaking.add_argument(
        "--rules",
        type=_rules,
        default=_RULES,
        metavar="RULE,...",
        help=f"those that are asked for: {','.join(_RULES)}",
    )
    breaking.add_argument(
        "--lock", default="ckpt.lock.json", metavar="FILE", help="the lock file in the commit"
    )
    diff = add(
        "diff", "print what differs between two layouts, trees or checkpoints; 1 if anything does"
    )
    diff.add_argument("given", metavar="A", help=_TREE)
    diff.add_argument("other", metavar="B", help="the same")
    diff.add_argument(
        "--values", action="store_true", help="compare values too, of one layout or through --lens"
    )
    diff.add_argument("--lens", metavar="module:attr", help="the lens between them")
    # Commands that write checkpoints.
    convert = add("convert", "make a checkpoint of another layout on disk, or each of a run")
    convert.add_argument("given", metavar="SRC", help="a checkpoint, or a directory of such")
    convert.add_argument("new", metavar="DST", help="what is to be made")
    convert.add_argument(
        "layout",
        metavar="LAYOUT",
        help="module:attr of a lens, a registry, a tree or a function that makes one; or a checkpoint of the new layout",
    )
    _add_place(convert)
    convert.add_argument(
        "--to", metavar="VERSION", help="of a registry, module:attr of the version; the newest"
    )
    convert.add_argument(
        "--verify", action="store_true", help="read all of both again, and compare bit for bit"
    )
    convert.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be done and how long it takes, and leave nothing written",
    )
    hub = add("hf", "make a checkpoint of a folder of Hugging Face, or a folder of one", json=False)
    # Some of its words do not go together, which argparse cannot say.
    hub.set_defaults(command=_hub)
    hub.add_argument("given", metavar="SRC", help="the folder; with --from a checkpoint")
    hub.add_argument("new", metavar="DST", help="what is to be made")
    hub.add_argument("--family", required=True, metavar="NAME", help="llama, qwen3, gemma2, ...")
    way = hub.add_mutually_exclusive_group(required=True)
    forms = ("maxtext", "nnx")
    way.add_argument("--to", choices=forms, help="what the checkpoint is for")
    way.add_argument("--from", choices=forms, dest="back", help="what the checkpoint is of")
    hub.add_argument(
        "--like",
        metavar="FOLDER",
        help="with --from: whose names, dtypes, config and bits are kept",
    )
    hub.add_argument(
        "--scan",
        action=argparse.BooleanOptionalAction,
        help="whether layers are stacked, of MaxText; they are unless told",
    )
    _add_place(hub)
    hub.add_argument("--dtype", help="of all weights, of MaxText; as in the folder unless given")
    # What reads a checkpoint, and nothing of its arrays.
    plan = add("plan", "print what a restore would cost: faults, bytes that are read, memory")
    plan.add_argument("given", metavar="PATH", help="a checkpoint")
    plan.add_argument("target", metavar="TARGET", help=f"what it is restored into: {_TREE}")
    plan.add_argument(
        "lens", metavar="LENS", nargs="?", help="module:attr of a lens, or of a registry"
    )
    _add_place(plan)
    plan.add_argument(
        "--mesh",
        type=_mesh,
        default=(),
        metavar="8x16",
        help="devices to pretend, or with names data=8,model=16; a function that takes mesh= is given it",
    )
    plan.add_argument(
        "--processes", type=int, metavar="N", help="how many processes have the devices; one"
    )
    _add_demo(commands)
    return parser


_MOST_DEVICES = 2**17
"""XLA makes no more of a CPU in a time that anybody would wait for, and takes no number of more than 32 bits."""


def _mesh(text: str) -> tuple[tuple[str, int], ...]:
    """The axes of a mesh, by name: ``(("data", 8), ("model", 16))``."""
    parts = text.split(",") if "=" in text else text.split("x")
    axes: list[tuple[str, int]] = []
    for number, part in enumerate(parts):
        name, equals, size = part.rpartition("=")
        # All axes have names, or none: then they are `axis_0`, `axis_1`.
        is_named = bool(equals and name.isidentifier()) if "=" in text else True
        if not is_named or not (size.isascii() and size.isdecimal() and int(size)):
            raise argparse.ArgumentTypeError(f"expected 8x16 or data=8,model=16, found {text!r}")
        axes.append((name or f"axis_{number}", int(size)))
    count = math.prod(size for _, size in axes)
    if count > _MOST_DEVICES:
        raise argparse.ArgumentTypeError(f"expected {_MOST_DEVICES} devices at most, found {count}")
    return tuple(axes)


_RULES = ("READ", "WRITE", "RESUME", "EXACT")
"""The rules of `breaking`; written here, so that help needs no import of them."""


def _rules(text: str) -> tuple[str, ...]:
    """The rules that a text names."""
    rules = tuple(text.upper().split(","))
    unknown = dict.fromkeys(repr(rule) for rule in rules if rule not in _RULES)
    if unknown:
        verb = "is" if len(unknown) == 1 else "are"
        known = ", ".join(_RULES)
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} {verb} none of {known}")
    return rules


def _add_place(command: argparse.ArgumentParser) -> None:
    """Where in a checkpoint to look."""
    command.add_argument("--item", help="which pytree of the checkpoint, where it holds several")
    command.add_argument("--at", metavar="KEY", help="the key path in it where the state stands")


def _add_reading(command: argparse.ArgumentParser) -> None:
    """How a layout is read off a checkpoint or a tree."""
    _add_place(command)
    command.add_argument(
        "--scan",
        action=_Axes,
        default={},
        metavar="NODE=AXIS",
        help="the axis that the layers of a node are stacked on, layers=0",
    )


class _Axes(argparse.Action):
    """Gathers the axes of stacked nodes."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Adds one."""
        node, equals, axis = str(values).rpartition("=")
        # An axis may be counted from the end: -1.
        if not equals or not re.fullmatch("-?[0-9]{1,9}", axis):
            parser.error(f"argument --scan: expected NODE=AXIS, such as layers=0, found {values!r}")
        # A new dict each time: the default is one object for all calls.
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), node: int(axis)})


def _add_demo(commands: Any) -> None:
    """The command that shows a training run going on in another framework."""
    demo = commands.add_parser(
        "demo",
        help="train a small GPT in Linen, go on in NNX and back, compare every loss to the last bit",
        description=(
            f"Trains a small character-level GPT in Linen on {DEMO_DEVICES} CPU devices, saves it with Orbax, and resumes it "
            "in Linen and, through a lens, in NNX on another mesh: full state and weights only; then back to Linen. Prints "
            "the losses as hex floats and exits with 1 if any pair that must be equal is not."
        ),
    )
    demo.set_defaults(command=_demo)


def _demo() -> int:
    """Runs the demo on CPU devices, whatever else the machine has."""
    # jax reads both variables once, when it starts: they must be there before anything imports it
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEMO_DEVICES}"
    )
    os.environ["XLA_FLAGS"] = flags.strip()
    from ckpt_schema.demo import matrix

    return matrix.run_demo()

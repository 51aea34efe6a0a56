"""The command ``ckpt-schema``.

Results go to stdout, progress to stderr. Exit status: 0 if all is well, 1 if something differs, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import ckpt_schema

DEMO_DEVICES = 8


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of one command.

    Args:
        argv: the arguments without the program's name; those of the process if not given.
    """
    arguments = _parser().parse_args(argv)
    return int(arguments.command())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ckpt-schema",
        description="Typed schemas of Flax checkpoints, and lenses derived between them.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {ckpt_schema.__version__}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
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
    return parser


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

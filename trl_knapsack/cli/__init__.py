"""
The command line `trl-knapsack`: one module per command, which imports what it needs only when it runs.

A command module has `HELP`, `add_arguments(parser)` and `run(args) -> int`. Exit codes: 0 done, 1 nothing found, 2 bad usage
or input.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import KnapsackError
from .commands import allocate, evaluate, inspect, plot, probe, simulate, train


COMMANDS = {
    "train": train,
    "allocate": allocate,
    "simulate": simulate,
    "inspect": inspect,
    "plot": plot,
    "evaluate": evaluate,
    "probe": probe,
}


class Paragraphs(argparse.HelpFormatter):
    """Descriptions of several paragraphs, each broken to the width of the terminal; `--top N` in place of `--top TOP`."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return "N" if action.type is int else "X" if action.type is float else "NAME"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(Paragraphs, self)._fill_text(part, width, indent) for part in text.split("\n\n"))


class Parser(argparse.ArgumentParser):
    """An argument parser that reports mistakes in one line, and accepts no abbreviations."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, formatter_class=Paragraphs, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    from .. import __version__

    parser = Parser(prog="trl-knapsack", description="Per-prompt rollout budgets for GRPO in TRL.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_arguments(own)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments; by default those of the process.

    Returns:
        `int`: the exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["train"]:  # most of its arguments are TRL's and accelerate's
            return train.run(argv[1:])
        args = build_parser().parse_args(argv)
        return COMMANDS[args.command].run(args)
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except KnapsackError as error:  # anything else, a reward function's own mistake for example, keeps its traceback
        from ..tracking.text import printable

        print(f"trl-knapsack {argv[0]}: {printable(str(error))}", file=sys.stderr)
        return 2

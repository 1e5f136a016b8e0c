"""
Train with per-prompt rollout budgets: any model, dataset and reward functions, through `accelerate launch`.

Every field of KnapsackGRPOConfig and of TRL's ModelConfig and ScriptArguments is a flag. All other flags go to
`accelerate launch`, as in TRL's own `trl grpo`.
"""

import argparse
import os
import shutil
import sys
import textwrap
from importlib import resources
from pathlib import Path

from ...errors import InvalidInputError


HELP = "train a model (flags: KnapsackGRPOConfig, ModelConfig, ScriptArguments, accelerate launch)"
EPILOG = """
for example:
  trl-knapsack train --model_name_or_path Qwen/Qwen2.5-Math-1.5B-Instruct --dataset_name trl-lib/DeepMath-103K \\
      --reward_funcs accuracy_reward --num_generations 8 --output_dir outputs
  trl-knapsack train --config recipe.yaml --num_processes 8 --accelerate_config zero2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Only for the list of commands: `run` takes the arguments as they are."""


def run(arguments: list[str]) -> int:
    """Split the arguments, check them, and become `accelerate launch`."""
    from ..helpers.checks import check
    from ..helpers.options import check_spelling, given_options

    if {"--help", "-h"} & set(arguments):
        print(_help())
        return 0
    arguments = [part for argument in arguments for part in _split_config(argument)]
    if arguments.count("--config") > 1:
        raise InvalidInputError("--config is given twice; give one file, and override single fields with flags.")
    if "--help-all" not in arguments:  # before TRL is imported, which takes long
        given = given_options(arguments)
        check_spelling(arguments, given)
        if given is not None:
            check(given)

    from ...hub.configs import resolve_config_argument
    from ..helpers.training_script import TYPES, make_parser, parsed_options

    parser = make_parser()
    parser.description, parser.epilog = __doc__, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if "--help-all" in arguments:
        parser.print_help()
        return 0
    arguments = resolve_config_argument(arguments, TYPES)
    # What the parser does not know is accelerate's, on the command line as in the file.
    for_accelerate = parser.parse_known_args(_without_config(arguments))[1]
    launch = launch_arguments(for_accelerate, parser)
    with parsed_options():
        *parsed, remaining = parser.parse_args_and_config(arguments, return_remaining_strings=True)
    launch = launch_arguments(remaining[: len(remaining) - len(for_accelerate)], parser) + launch
    if given is None:  # a configuration of the Hub
        check({name: value for options in parsed for name, value in vars(options).items()})

    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet", *launch),
        *("--module", "trl_knapsack.cli.helpers.training_script", *without(arguments, for_accelerate)),
    ]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def launch_arguments(arguments: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """
    Arguments of `accelerate launch`, with `--accelerate_config NAME` resolved: a file, or a preset of TRL.

    Args:
        arguments (`list[str]`): What the training's parser did not know.
        parser (`ArgumentParser`): That parser, to suggest its options.

    Raises:
        `ValueError`: if accelerate does not know one of them either.
    """
    from accelerate.commands.launch import launch_command_parser

    from ..helpers.options import unknown_option

    known = launch_command_parser()._option_string_actions
    resolved, rest = [], list(arguments)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if flag == "--accelerate_config" and (equals or rest):
            resolved += ["--config_file", accelerate_config(value if equals else rest.pop(0))]
            continue
        if flag not in known:
            raise unknown_option(flag, [*known, *parser._option_string_actions])
        if known[flag].nargs == 0:  # a switch, which a YAML file sets with true or false
            switch = rest.pop(0) if rest and rest[0] in ("True", "False") else "True"
            resolved += [flag] * (switch == "True")
        elif equals or rest:
            resolved += [flag, value if equals else rest.pop(0)]
        else:
            raise InvalidInputError(f"{flag} needs a value.")
    return resolved


def accelerate_config(name: str) -> str:
    """The file of an accelerate config: `name` itself, or TRL's preset of that name."""
    if Path(name).is_file():
        return name
    presets = resources.files("trl") / "accelerate_configs"
    if (presets / f"{name}.yaml").is_file():
        return str(presets / f"{name}.yaml")
    names = sorted(file.name.removesuffix(".yaml") for file in presets.iterdir() if file.name.endswith(".yaml"))
    raise InvalidInputError(
        f"accelerate_config {name!r} is neither a file nor one of TRL's presets: {', '.join(names)}."
    )


def without(arguments: list[str], removed: list[str]) -> list[str]:
    """`arguments` less `removed`, a part of them in the same order."""
    kept, removed = [], list(removed)
    for argument in arguments:
        if removed and argument == removed[0]:
            removed.pop(0)
        else:
            kept.append(argument)
    return kept


def _help() -> str:
    """Our options; those of TRL and accelerate are behind `--help-all`, as they are more than a thousand lines."""
    from ..helpers.options import own_options

    width = shutil.get_terminal_size((100, 24)).columns - 2

    def filled(text: str, indent: str = "") -> str:
        return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

    lines = [f"  --{name}\n{filled(text, ' ' * 6)}" for name, text in own_options().items()]
    usage = "usage: trl-knapsack train [--config FILE] [options]"
    head = "options that TRL does not have (--help-all shows all, accelerate launch --help those of accelerate):"
    about = "\n\n".join(map(filled, (__doc__ or "").strip().split("\n\n")))
    return "\n".join([usage, "", about, "", filled(head), *lines, EPILOG.rstrip()])


def _split_config(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def _without_config(arguments: list[str]) -> list[str]:
    place = arguments.index("--config") if "--config" in arguments else len(arguments)
    return arguments[:place] + arguments[place + 2 :]

"""What a reader of the pages would type: Python run for real, commands run or checked by the programs' own parsers."""

import contextlib
import functools
import io
import itertools
import re
import runpy
import shlex
import sys
from pathlib import Path

import datasets
import pytest
import tiny_chat


ROOT = Path(__file__).parent.parent

# Programs that this package neither brings nor needs; their flags are not checked.
OTHERS = {
    "git",
    "hf",
    "lighteval",
    "mutmut",
    "lm-eval",
    "vllm",
    "tensorboard",
    "jupyter",
    "pre-commit",
    "pytest",
    "source",
    "scancel",
    "sbatch",
    "ls",
    "cat",
    "mkdir",
}


def blocks(page: Path, language: str) -> list[tuple[str, str | None]]:
    """Code of each block in a language, and the ```txt block right after it, which is what it prints."""
    fences = rf"^```{language}\n(.*?)^```$(?:\n\n```txt\n(.*?)```)?"
    return re.findall(fences, page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


# ---------------------------------------------------------------------------------------------------------- Python


def run_python(code: str, namespace: dict, model: str) -> str:
    """
    Run a block as it stands, but for what a machine without GPU and network has not: a tiny model and one short step.

    A comment behind a `print` says what it prints. Returns what the other ones print.
    """
    code = re.sub(r'"Qwen/[\w.-]+"', repr(model), code)
    code = re.sub(r"\b((?:Knapsack)?GRPOConfig)\(", r"_short(\1)(", code)
    lines, rest = code.splitlines(), io.StringIO()

    def checked_print(*args, **kwargs):
        text = io.StringIO()
        print(*args, **{"file": text, **kwargs})
        line = lines[sys._getframe(1).f_lineno - 1]
        if "print(" in line and "  # " in line:
            assert text.getvalue().strip() in line.rpartition("  # ")[2], (line, text.getvalue())
        else:
            rest.write(text.getvalue())

    namespace |= {"print": checked_print, "_short": short}
    exec(compile(code, "a snippet", "exec"), namespace)
    return rest.getvalue()


def short(config_class: type):
    """The configuration, for one step of a tiny model on a CPU."""
    changes = dict(
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        max_completion_length=4,
        max_steps=1,
        use_vllm=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    return lambda *args, **kwargs: config_class(*args, **{**kwargs, **changes})


_LOAD = datasets.load_dataset


def load_dataset(path: str, *args, **kwargs) -> datasets.Dataset:
    """Datasets of the Hub are a few prompts here; those on disk are what they are."""
    if Path(path).exists():
        return _LOAD(path, *args, **kwargs)
    columns = dict(solution=["$1$"] * 16, question=["1"] * 16, answer=["1"] * 16)
    return tiny_chat.prompts(16, **columns)


# -------------------------------------------------------------------------------------------------------- commands


def commands(block: str) -> list[list[str]]:
    """The words of each command; settings of the environment before it are left out."""
    lines = block.replace("\\\n", " ").splitlines()
    split = (shlex.split(re.split(r" [|>] ", line)[0], comments=True) for line in lines)
    return [list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words)) for words in split if words]


def check_command(words: list[str]) -> None:
    """Whether the command exists with these flags; those of `trl-knapsack` that need no model are run."""
    program, *arguments = words
    if program in OTHERS:
        return
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets), words
    elif program == "pip":
        extras = re.findall(r'^    "([\w-]+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
        for asked in re.findall(r"(?:\.|trl-knapsack)\[([\w,-]+)\]", " ".join(arguments)):
            assert set(asked.split(",")) <= {*extras, "dev"}, words
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments[0] == "launch", words
        launch = launch_command_parser().parse_args(arguments[1:])
        assert launch.config_file is None or (ROOT / launch.config_file).is_file(), words
        check_script(launch.training_script, launch.training_script_args)
    elif program == "python" and arguments[:2] == ["-m", "torch.distributed.run"]:
        from torch.distributed.run import get_args_parser

        launch = get_args_parser().parse_args(arguments[2:])
        check_script(launch.training_script, launch.training_script_args)
    elif program == "python":
        check_script(arguments[0], arguments[1:])
    elif program == "trl-knapsack":
        run_cli(arguments)
    else:
        pytest.fail(f"{shlex.join(words)}: no rule for {program}; add one here.")


def run_cli(arguments: list[str]) -> None:
    """Run a command of `trl-knapsack`; of those that take long, only the arguments are parsed."""
    from trl_knapsack.cli import build_parser, main
    from trl_knapsack.cli.commands import train
    from trl_knapsack.cli.helpers.training_script import make_parser

    if arguments[0] == "train":
        config = arguments.index("--config") if "--config" in arguments else len(arguments)
        parser = make_parser()
        _, unknown = parser.parse_known_args(arguments[1:config] + arguments[config + 2 :])
        train.launch_arguments(unknown, parser)
    elif arguments[0] in ("evaluate", "simulate", "probe"):  # takes long
        build_parser().parse_args(arguments)
    else:
        assert main(arguments) == 0, shlex.join(arguments)


def sessions(block: str) -> list[tuple[list[str], str]]:
    """Each command of a ```console block, after `$ `, and what it prints there."""
    parts = re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]
    split = (part.partition("\n") for part in parts)
    return [(words, output.strip()) for line, _, output in split for words in commands(line)]


def train_bundled(folder: Path, *flags: str) -> None:
    """`examples/train_math.py` in this process, a few steps of the bundled run."""
    script = "examples/train_math.py"
    short = ["--max_steps", "6", "--logging_steps", "2", "--num_eval_problems", "0"]
    with contextlib.chdir(folder), as_program(script, *short, "--per_device_train_batch_size", "64", *flags):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def check_script(script: str, arguments: list[str]) -> None:
    """Whether the script is there, and its help names each flag. `train.py` stands for the reader's own."""
    if script == "train.py":
        return
    assert (ROOT / script).is_file(), script
    flags = {word.split("=")[0] for word in arguments if word.startswith("--")}
    flags.discard("--config")  # of TrlParser, whose help does not name it
    if flags:
        text = help_of(script)
        missing = {flag for flag in flags if not re.search(rf"{flag}(?![\w-])", text)}
        assert not missing, (script, missing)


@functools.cache
def help_of(script: str) -> str:
    text = io.StringIO()
    with as_program(script, "--help"), contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return text.getvalue()


@contextlib.contextmanager
def as_program(script: str, *arguments: str):
    """`sys.argv` and `sys.path` as in `python script arguments`."""
    argv, path = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = [script, *arguments], [str((ROOT / script).parent)]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path

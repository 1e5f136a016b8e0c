"""
The options of `train`, read from the sources of TRL, transformers and accelerate without importing them.

Importing them takes many seconds, far too long to report a misspelt option. What can't be read in this way is left to the
parser, which knows everything.
"""

import ast
import difflib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError


#: Dataclasses whose fields are options: package, file in it, class. The first two are this package's own.
CLASSES = (
    ("trl_knapsack", "training/config.py", "KnapsackGRPOConfig"),
    ("trl_knapsack", "cli/helpers/training_script.py", "RewardArguments"),
    ("trl", "trainer/grpo_config.py", "GRPOConfig"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/model_config.py", "ModelConfig"),
    ("trl", "scripts/utils.py", "ScriptArguments"),
    ("trl", "scripts/utils.py", "DatasetMixtureConfig"),
    ("transformers", "training_args.py", "TrainingArguments"),
)
_OWN = {"--config", "--accelerate_config", "--help", "--help-all", "-h"}
_NO_FIELDS = {"HubConfig"}  # bases that add none


def known_options() -> set[str] | None:
    """Every option of the training and of `accelerate launch`, or None where the sources can't be read."""
    fields: dict[str, str] = {}
    bases, classes = set(), set(_NO_FIELDS)
    for package, file, name in CLASSES:
        found = fields_of(package, file, name)
        if found is None:
            return None
        own, parents = found
        fields |= own
        bases |= parents
        classes.add(name)
    launch = _source("accelerate", "commands/launch.py")
    if launch is None or bases - classes:
        return None
    of_accelerate = {
        word.value
        for node in ast.walk(launch)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        for word in node.args
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and word.value.startswith("-")
    }
    known = _OWN | of_accelerate | {f"--{no}{name}" for name in fields for no in ("", "no_")}
    return known | {option.replace("_", "-") for option in known}


def fields_of(package: str, file: str, name: str) -> tuple[dict[str, str], set[str]] | None:
    """
    A dataclass in a source file: its fields with their help, and the names of its bases; None if it is not there.

    Args:
        package (`str`): Top-level package, which is not imported.
        file (`str`): Path of the source file in it.
        name (`str`): The class.
    """
    tree = _source(package, file)
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            fields = {}
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    texts = [
                        value.value
                        for inner in ast.walk(line)
                        if isinstance(inner, ast.Dict)
                        for key, value in zip(inner.keys, inner.values, strict=True)
                        if getattr(key, "value", None) == "help" and isinstance(value, ast.Constant)
                    ]
                    fields[line.target.id] = texts[0] if texts else ""
            return fields, {getattr(base, "id", getattr(base, "attr", "?")) for base in node.bases}
    return None


def _source(package: str, file: str) -> ast.Module | None:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    path = Path(folders[0], file) if folders else None
    if path is None or not path.is_file():
        return None
    return ast.parse(path.read_text(encoding="utf-8"))


def given_options(arguments: Sequence[str]) -> dict[str, Any] | None:
    """
    What the arguments and their YAML file say, by field, before anything knows the fields' types: a value, a list of them,
    or None for a switch. None if the file is one of the Hub, which is checked when it is downloaded.

    Raises:
        `ValueError`: if the file can't be read, or is no mapping.
    """
    given: dict[str, Any] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument[2:].partition("=")
            name = flag.replace("-", "_")
            given[name] = value if equals else None
        elif name is not None:
            before = given[name]
            given[name] = (
                argument if before is None else [*(before if isinstance(before, list) else [before]), argument]
            )
    config = given.pop("config", None)
    if config is None:
        return given
    if not Path(str(config)).is_file():
        return None
    return read_yaml(config) | given


def read_yaml(path: str) -> dict[str, Any]:
    """The fields in a YAML file, but `env`, which are no options."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} must be a YAML mapping, `field: value` on each line.")
    return {str(name): value for name, value in content.items() if name != "env"}


def check_spelling(arguments: Sequence[str], given: Mapping[str, Any] | None) -> None:
    """
    Whether every option is known.

    Raises:
        `ValueError`: if one is not.
    """
    known = known_options()
    if known is None:
        return
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    for flag in [*flags, *(f"--{name}" for name in given or {} if f"--{name}" not in flags)]:
        if flag not in known:
            raise unknown_option(flag, known)


def unknown_option(flag: str, known: Iterable[str]) -> InvalidInputError:
    """The error for an option that neither the training nor accelerate has."""
    close = difflib.get_close_matches(flag, list(known), n=1, cutoff=0.8)
    remedy = f"did you mean {close[0]}?" if close else "see trl-knapsack train --help."
    return InvalidInputError(f"{flag} is not an option of the trainer or of accelerate launch; {remedy}")


def own_options() -> dict[str, str]:
    """The options that TRL does not have, with their help."""
    return {
        name: text for found in (fields_of(*own) for own in CLASSES[:2]) if found for name, text in found[0].items()
    }

"""A configuration as one YAML file: what is saved, and what is accepted when it is read."""

import dataclasses
import difflib
import functools
import logging
import os
import re
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import trl
import yaml
from yaml.composer import ComposerError

from ..errors import InvalidInputError
from ..tracking.text import printable
from .field_types import Misfit, fit, one_of
from .ownership import is_unsorted, is_yours


logger = logging.getLogger(__name__)

CONFIG_FILE = "knapsack_config.yaml"
MAX_BYTES = 64 * 1024  # a configuration with every field set has a quarter of it

# Names on the Hub are part of the recipe, places on this machine are not.
_NAMES_OR_PATHS = ("model_name_or_path", "reward_model_name_or_path", "dataset_name", "success_state_path")

_SECRET_NAME = re.compile(r"(^|[_.])(token|secret|password|passwd|api_?key|access_?key)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}|\bghp_[A-Za-z0-9]{20,}")


# ------------------------------------------------------------------------------------------------------- writing


def recipe(config: Any, script_args: Sequence[Any] = ()) -> dict[str, Any]:
    """
    The fields that differ from their defaults, as YAML can hold them; those of one machine, account or run left out.

    Args:
        config ([`KnapsackGRPOConfig`]): The configuration.
        script_args (`Sequence[dataclass]`, *optional*): Dataclasses of the script whose fields belong to the same file.

    Raises:
        `ValueError`: naming a field that YAML can't hold, or that looks like a secret.
    """
    values = {}
    for part in (config, *script_args):
        for name, value in as_given(part).items():
            if name in _NAMES_OR_PATHS and value is not None and _is_a_place(value):
                continue
            if is_unsorted(name):
                logger.warning(
                    f"{name} is not saved: this trl_knapsack does not know whether it belongs to the experiment or to your "
                    "machine; whoever uses the configuration must set it."
                )
            elif not is_yours(name, name, name, value):
                values[name] = _shared(name, name, _plain(name, value))
    return values


def as_given(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as the user gave them: TRL derives some from others."""
    given = getattr(config, "_as_given", {})
    values = {}
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if option.name in given and value == given[option.name][1]:  # as TRL left it
            before = given[option.name][0]
            value = value if isinstance(value, dict) else before  # a mapping that was given as JSON
        if value != default_of(option):
            values[option.name] = value
    return values


def default_of(option: dataclasses.Field) -> Any:
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return option.default


def write_config_file(path: str | os.PathLike, values: dict[str, Any]) -> None:
    """Write fields as YAML, with the versions that it was written with in a comment."""
    from .. import __version__

    head = f"# Knapsack GRPO: written by trl_knapsack {__version__} with trl {trl.__version__}\n"
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else "{}\n"
    Path(path).write_text(head + body, encoding="utf-8")


def _shared(name: str, path: str, value: Any) -> Any:
    """`value` without what is for the user of a machine alone to decide: others could not read it from the Hub."""
    if isinstance(value, list):
        return [_shared(name, path, item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        if not is_yours(name, f"{path}.{key}", key, item):
            kept[key] = _shared(name, f"{path}.{key}", item)
        elif item:
            logger.warning(f"{path}.{key} ({item!r}) is not saved: whoever uses the configuration must set it.")
    return kept


def _is_a_place(value: str) -> bool:
    return os.path.isabs(value) or os.path.exists(value)


def _plain(name: str, value: Any) -> Any:
    """`value` in the types of YAML."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        if _SECRET_VALUE.search(value) or (value and _SECRET_NAME.search(name)):
            raise InvalidInputError(
                f"{name} looks like a secret, and would be published; remove it from the configuration."
            )
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{place}]", item) for place, item in enumerate(value)]
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    raise InvalidInputError(
        f"{name} is a {type(value).__name__}, which a YAML file can't hold; give it in code, outside of the configuration."
    )


# ------------------------------------------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """The safe loader, without aliases: a few lines of them can stand for more values than a machine has memory."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_config_file(path: str | os.PathLike, source: str | None = None) -> dict[str, Any]:
    """
    The mapping in a YAML file. Nothing in it is executed, and no type is made but YAML's own.

    Args:
        path (`str` or `os.PathLike`): The file.
        source (`str`, *optional*, defaults to `path`): Where it is from, for messages.

    Raises:
        `ValueError`: if it is too large, no YAML, or no mapping.
    """
    source = source or str(path)
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise InvalidInputError(
            f"{source} has {size} bytes, but a configuration has at most {MAX_BYTES}; is it another file?"
        )
    try:
        values = yaml.load(Path(path).read_bytes(), Loader=_Loader)  # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _not_plain(source, error) from error
    return _mapping(values, source)


def check_own_file(path: str | os.PathLike) -> None:
    """
    Whether [`~trl.TrlParser`] can read a file of the user's own, which may say what it likes, but no Python.

    Raises:
        `InvalidInputError` (a `ValueError`): if it is no YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(Path(path).read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _not_plain(str(path), error) from error
    _mapping(values, str(path))


def _mapping(values: Any, source: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InvalidInputError(
            f"{source} holds a {type(values).__name__}, but must hold a mapping: one `field: value` per line."
        )
    return values


def _not_plain(source: str, error: Exception) -> InvalidInputError:
    reason = printable(" ".join(str(error).split())) or type(error).__name__
    return InvalidInputError(f"{source} is not plain YAML: {reason}. It was not used.")


def checked_fields(
    values: dict[str, Any], dataclass_types: Sequence[type], source: str, *, from_hub: bool = False
) -> dict[str, Any]:
    """
    The values of known fields, each checked against the type and the choices of its field.

    Args:
        values (`dict[str, Any]`): What a file says.
        dataclass_types (`Sequence[type]`): The dataclasses whose fields are known.
        source (`str`): Where the values are from, for messages.
        from_hub (`bool`, *optional*, defaults to `False`): Refuse also what someone else may not set on this machine.

    Raises:
        `ValueError`: naming the field, the value, and what to do.
    """
    known = {option.name: (option, hints) for cls in dataclass_types for option, hints in _fields_of(cls)}
    checked = {}
    for name, value in values.items():
        if name == "env":
            raise InvalidInputError(
                f"env in {source} sets environment variables, which is for you to decide; remove it there."
            )
        if name not in known:
            raise InvalidInputError(_unknown(name, known, dataclass_types, source))
        option, hint = known[name]
        try:
            value = fit(value, hint)
            choices = option.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise Misfit(one_of(choices))
        except Misfit as misfit:
            is_word = isinstance(value, bool) and ("a text" in str(misfit) or "one of" in str(misfit))
            remedy = "quote a word such as no or off, which YAML reads as false" if is_word else "correct it there"
            raise InvalidInputError(f"{name} in {source} must be {misfit}, but is {_cut(value)}; {remedy}.") from None
        if from_hub:  # after the type, as a text may hold JSON
            _check_foreign(name, value, source)
        checked[name] = value
    return checked


@functools.cache
def _fields_of(cls: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(cls)
    return [(option, hints[option.name]) for option in dataclasses.fields(cls)]


def _unknown(name: Any, known: dict[str, Any], dataclass_types: Sequence[type], source: str) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    remedy = (
        f"did you mean {close[0]!r}?"
        if close
        else f"remove it, or install a TRL that has it (this is {trl.__version__})."
    )
    return f"{_cut(name)} in {source} is no field of {', '.join(cls.__name__ for cls in dataclass_types)}; {remedy}"


def _cut(value: Any) -> str:
    return printable(repr(value), 200)


def _check_foreign(name: str, value: Any, source: str) -> None:
    """Refuse what a stranger's configuration may not decide."""
    for path, key, item in _walk(name, name, value):
        if is_yours(name, path, key, item):
            raise InvalidInputError(
                f"{printable(path)} ({_cut(item)}) in {source} is not for a configuration from the Hub to set, because it concerns "
                "your machine, your accounts, or code to run; remove it there, and set it yourself if you want it."
            )


def _walk(path: str, key: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Path, name and value of a field and of everything within it."""
    yield path, key, value
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _walk(f"{path}.{inner}", str(inner), item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(path, "", item)

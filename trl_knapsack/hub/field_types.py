"""Whether a value is of the type that a dataclass field declares."""

import json
import types
import typing
from collections.abc import Sequence
from enum import Enum
from typing import Any, Literal


class Misfit(Exception):
    """A value is not of the type of its field; the text says what it must be."""


_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", types.NoneType: "null"}


def fit(value: Any, hint: Any) -> Any:
    """
    `value` as a field of type `hint` takes it: itself, but for a number or a mapping that YAML or TRL write as text.

    Args:
        value (`Any`): What YAML can hold.
        hint (`Any`): `bool`, `int`, `float`, `str`, `None`, an `Enum`, a `Literal`, `list[...]`, `dict[...]`, or a union of
            these. Other types fit nothing.

    Raises:
        `Misfit`: with what it must be, in words.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, arguments)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            raise Misfit(one_of(arguments))
        return value
    kind = origin or hint
    if kind is list:
        if isinstance(value, str) and arguments == (str,):  # TRL takes one text for a list of one
            value = [value]
        if not isinstance(value, list):
            raise Misfit(_described(hint))
        return [_fit_item(item, arguments[0], hint) if arguments else item for item in value]
    if kind is dict:
        if isinstance(value, str) and value.lstrip().startswith("{"):  # TRL takes JSON in a text, too
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise Misfit(_described(hint)) from None
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise Misfit(_described(hint))
        return {key: _fit_item(item, arguments[1], hint) if arguments else item for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value not in [member.value for member in kind]:
            raise Misfit(_described(hint))
        return value
    if kind is float and isinstance(value, str):  # YAML reads 1e-6, without a point, as a text
        try:
            return float(value)
        except ValueError:
            raise Misfit(_described(hint)) from None
    if kind not in _SCALARS or type(value) not in ((int, float) if kind is float else (kind,)):
        raise Misfit(_described(hint))
    return value


def _fit_union(value: Any, options: Sequence[Any]) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        options = [option for option in options if dict in (option, typing.get_origin(option))] or options
    for option in sorted(_narrowed(options), key=lambda option: option is str):  # a mapping in a text is a mapping
        try:
            return fit(value, option)
        except Misfit:
            continue
    raise Misfit(" or ".join(_described(option) for option in _narrowed(options)))


def _fit_item(item: Any, hint: Any, whole: Any) -> Any:
    try:
        return fit(item, hint)
    except Misfit:
        raise Misfit(_described(whole)) from None


def _narrowed(options: Sequence[Any]) -> list[Any]:
    """`SchedulerType | str` takes the text of a `SchedulerType`, and no other."""
    has_enum = any(isinstance(option, type) and issubclass(option, Enum) for option in options)
    return [option for option in options if not (has_enum and option is str)]


def _described(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    kind = origin or hint
    if hint in _SCALARS:
        return _SCALARS[hint]
    if kind is list:
        return f"a list in which each item is {_described(arguments[0])}" if arguments else "a list"
    if kind is dict:
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return one_of([member.value for member in kind])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_described(option) for option in _narrowed(arguments))
    if origin is Literal:
        return one_of(arguments)
    return "anything" if hint is Any else f"a {getattr(hint, '__name__', hint)}, which a file can't hold"


def one_of(options: Any) -> str:
    options = list(options)
    return "one of " + ", ".join([*map(repr, options[:8]), *(["..."] if len(options) > 8 else [])])

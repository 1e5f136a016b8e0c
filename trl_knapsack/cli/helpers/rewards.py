"""Reward functions by name: one of TRL's, or the dotted path of your own."""

import ast
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError


# Arguments of TRL's reward functions that are made by a call; these are those of `trl grpo`.
_MADE_BY_A_CALL = {"get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256}}


def load_reward(name: str) -> Callable:
    """
    A reward function.

    Args:
        name (`str`): A name from `trl.rewards` such as `accuracy_reward`, or a dotted path such as `my_module.my_reward`. Modules
            in the working directory are found.

    Raises:
        `ValueError`: if there is none of that name.
    """
    check_reward(name)
    module_name, _, function_name = name.rpartition(".")
    module = importlib.import_module(module_name or "trl.rewards")
    reward = getattr(module, function_name, None)
    if not callable(reward):
        functions = [other for other in dir(module) if not other.startswith("_") and callable(getattr(module, other))]
        raise _not_there(module.__name__, function_name, functions, module.__file__)
    made: Any = reward(**_MADE_BY_A_CALL[name]) if name in _MADE_BY_A_CALL else reward
    return made


def load_success_reward(
    names: Sequence[str], deciding: str | None = None, weights: Sequence[float] | None = None
) -> tuple[Callable, str]:
    """
    The reward that decides success, as a run of the trainer with these reward functions has it.

    Args:
        names (`Sequence[str]` of length `F`): Reward functions, as [`load_reward`] takes.
        deciding (`str`, *optional*): Own name of the one that decides, as `success_reward_func` gives it.
        weights (`Sequence[float]` of length `F`, *optional*): As `reward_weights`, for their sum.

    Returns:
        `tuple[Callable, str]`: a reward function, and what it is, in words.

    Raises:
        `ValueError`: if one is not there, or there are not as many weights.
    """
    functions = [load_reward(name) for name in names]
    by_name = {getattr(function, "__name__", type(function).__name__): function for function in functions}
    if deciding is not None and deciding not in by_name:
        raise InvalidInputError(
            f"success_reward_func {deciding!r} must be one of the reward functions: {', '.join(by_name)}."
        )
    if weights is not None and len(weights) != len(functions):
        raise InvalidInputError(
            f"reward_weights ({len(weights)}) must be as many as reward_funcs ({len(functions)}); give one for each."
        )
    if deciding is not None:
        return by_name[deciding], deciding
    if len(functions) > 1:
        from ...training.checks import likely_success_func

        likely = likely_success_func(list(by_name))
        if likely is not None:
            return by_name[likely], f"{likely}, because of its name"
    elif weights is None:
        return functions[0], next(iter(by_name))
    of = weights or [1.0] * len(functions)
    return _weighted_sum(functions, of), f"the weighted sum of {', '.join(by_name)}"


def _weighted_sum(functions: Sequence[Callable], weights: Sequence[float]) -> Callable:
    """Their weighted sum, as TRL has it: a function that returns None for a completion is left out of its sum."""

    async def weighted_sum(**columns) -> list[float | None]:
        rewards = []
        for function in functions:
            returned = function(**columns)
            rewards.append(await returned if inspect.iscoroutine(returned) else returned)
        sums = []
        for of_completion in zip(*rewards, strict=True):
            known = [w * r for w, r in zip(weights, of_completion, strict=True) if r is not None and r == r]  # not NaN
            sums.append(sum(known) if known else None)
        return sums

    return weighted_sum


def check_reward(name: str) -> str | None:
    """
    Whether a reward function is there, by the source of its module, which is not imported.

    Returns:
        `str` or `None`: the function's own name, by which `success_reward_func` knows it, if the source tells.

    Raises:
        `ValueError`: if the module is not there, or has no such function.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        return _check_trl_reward(function_name)
    try:
        found = importlib.util.find_spec(module_name)
    except ImportError:
        found = None
    if found is None:
        raise InvalidInputError(
            f"reward function {name!r}: there is no module {module_name!r}; give module.function, with the module in the "
            "working directory or installed."
        )
    file = found.origin or ""
    if not file.endswith(".py"):
        return None
    tree = ast.parse(Path(file).read_text(encoding="utf-8"), file)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    if function_name in functions:
        return function_name
    constants = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    # A name may come into a module in many ways; where it is nowhere written, and nothing unnamed comes in, it is not there.
    written = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    written |= {getattr(node, "asname", None) or node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
    written |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    if function_name in constants or not written & {function_name, "*", "__getattr__", "globals", "setattr", "exec"}:
        raise _not_there(module_name, function_name, functions, file)
    return None


def _check_trl_reward(name: str) -> str | None:
    spec = importlib.util.find_spec("trl")
    file = Path(spec.submodule_search_locations[0], "rewards", "__init__.py")
    names = {
        node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.alias)
    }
    if name not in names:
        raise _not_there("trl.rewards", name, names, str(file))
    return None if name in _MADE_BY_A_CALL else name


def _not_there(module: str, name: str, functions: Iterable[str], file: str | None) -> InvalidInputError:
    close = difflib.get_close_matches(name, list(functions), n=1)
    remedy = f"did you mean {close[0]!r}?" if close else f"the module is {file}."
    return InvalidInputError(f"{module} has no reward function {name!r}; {remedy}")

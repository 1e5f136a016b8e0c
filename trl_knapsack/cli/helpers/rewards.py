"""Reward functions by name: one of TRL's, or the dotted path of your own."""

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable

from ...errors import InvalidInputError


# Arguments of TRL's reward functions that are made by a call; these are those of `trl grpo`.
_MADE_BY_A_CALL = {"get_soft_overlong_punishment": {"max_completion_len": 1280, "soft_punish_cache": 256}}


def load_reward(name: str) -> Callable:
    """
    A reward function.

    Args:
        name (`str`): A name of `trl.rewards`, as `accuracy_reward`, or a dotted path, as `my_module.my_reward`. Modules
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
        close = difflib.get_close_matches(function_name, functions, n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"the module is {module.__file__}."
        raise InvalidInputError(f"{module.__name__} has no reward function {function_name!r}; {remedy}")
    return reward(**_MADE_BY_A_CALL[name]) if name in _MADE_BY_A_CALL else reward


def check_reward(name: str) -> None:
    """
    Whether the module of a reward function is there, without importing it.

    Raises:
        `ValueError`: if it is not.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module_name = name.rpartition(".")[0] or "trl.rewards"
    try:
        found = importlib.util.find_spec(module_name)
    except ImportError:
        found = None
    if found is None:
        raise InvalidInputError(
            f"reward function {name!r}: there is no module {module_name!r}; give module.function, with the module in the "
            "working directory or installed."
        )

"""Configurations and success rates on the Hugging Face Hub, and the checks on what comes from there."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .configs import parse_script_arguments as parse_script_arguments
    from .configs import resolve_config_argument as resolve_config_argument
    from .states import SuccessStateInfo as SuccessStateInfo
    from .states import find_success_state as find_success_state

_MODULES = {
    "parse_script_arguments": "configs",
    "resolve_config_argument": "configs",
    "SuccessStateInfo": "states",
    "find_success_state": "states",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_exports(__name__, _MODULES)

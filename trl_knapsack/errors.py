"""
The errors that this package raises for what a user can put right: one sentence with the value, the rule and the remedy.

Each is also the built-in error that it resembles, so `except ValueError` works as ever. The command line shows these as one
line; anything else, a reward function's own `ValueError` for example, keeps its traceback.
"""

from typing import Any


__all__ = ["HubError", "InvalidInputError", "KnapsackError", "MissingDependencyError", "MissingFileError"]


class KnapsackError(Exception):
    """Any error of this package."""


class InvalidInputError(KnapsackError, ValueError):
    """An argument, an option, a file or a dataset is not valid."""


class MissingFileError(KnapsackError, FileNotFoundError):
    """A file or folder is not there."""


class HubError(KnapsackError, OSError):
    """The Hub can't be reached, or refuses."""


class MissingDependencyError(KnapsackError, ImportError):
    """An optional package is not installed, or one is installed that can't serve."""


def missing_extra(what: str, extra: str) -> MissingDependencyError:
    """
    The error for an optional package that is not installed.

    Args:
        what (`str`): What needs which package, for example `"Plots need matplotlib"`.
        extra (`str`): The extra of this package that has it.
    """
    return MissingDependencyError(f"{what}, which is not installed; run `{install_command(extra)}`.")


def require_matplotlib() -> Any:
    """matplotlib, or an `ImportError` that says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("Plots need matplotlib", "plots") from error
    return matplotlib


def install_command(extra: str) -> str:
    """
    How to install an extra: from a clone, because the package is in no index yet.

    The one place in the code that a release changes, to `pip install "trl-knapsack[extra]"`.
    """
    return f'pip install -e ".[{extra}]"  # in your clone of trl_knapsack'

"""Success rates published with a configuration: where they come from, and whether they fit the same prompts."""

import json
import os
import shutil
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError, MissingFileError
from ..tracking.rate_files import is_rate_file
from ..tracking.state_file import STATE_FILE, find_state
from ..tracking.text import printable
from ..tracking.tracker import SuccessRateTracker
from .config_file import MAX_BYTES
from .field_types import Misfit, fit
from .files import download_file, is_repository


ABOUT_FILE = "knapsack_state.json"
MAX_STATE_BYTES = 2 * 1024**3  # a million prompts have a twentieth of it


@dataclass(frozen=True)
class SuccessStateInfo:
    """
    Where success rates come from, kept as `knapsack_state.json` beside them.

    Attributes:
        dataset_name (`str`): Dataset of the prompts.
        dataset_config (`str` or `None`): Its configuration.
        dataset_train_split (`str`): Its split.
        model_name_or_path (`str` or `None`): Model whose success rates they are, at the start of the run.
        model_revision (`str` or `None`): Its revision.
        prompt_id_column (`str` or `None`): Column that the prompts are keyed by; `None` for a hash of the row.
        success_threshold (`float`): A completion succeeded if its reward was at least this.
        success_reward_func (`str` or `None`): Reward function that decided success; `None` for the weighted sum.
        num_prompts (`int`): Prompts with a success rate.
    """

    dataset_name: str
    dataset_config: str | None
    dataset_train_split: str
    model_name_or_path: str | None
    model_revision: str | None
    prompt_id_column: str | None
    success_threshold: float
    success_reward_func: str | None
    num_prompts: int

    def differences(self, config: Any) -> list[str]:
        """What a run with `config` does otherwise, in words; empty if the success rates mean the same to it."""
        return [
            f"{name} {getattr(self, name)!r} there, {getattr(config, name)!r} here"
            for name in ("prompt_id_column", "success_threshold", "success_reward_func")
            if getattr(self, name) != getattr(config, name)
        ]


def write_success_state(
    folder: str | os.PathLike, state: str | os.PathLike, config: Any, script_args: Sequence[Any]
) -> SuccessStateInfo:
    """
    Copy the success rates of a run into `folder`, and write beside them what they are of.

    Args:
        folder (`str` or `os.PathLike`): Folder to be published.
        state (`str` or `os.PathLike`): A checkpoint or output folder, the `knapsack_state.safetensors` in it, or a table of
            success rates.
        config ([`KnapsackGRPOConfig`]): Configuration of the run.
        script_args (`Sequence[dataclass]`): Those of TRL's `ScriptArguments` and `ModelConfig`.

    Raises:
        `FileNotFoundError`, `ValueError`: if there are no success rates, or nothing says which dataset they are of.
    """
    file = find_state(state)
    tracker = SuccessRateTracker()
    tracker.load(file)  # says what is wrong with it
    said = {name: value for part in script_args for name, value in vars(part).items()}
    if not said.get("dataset_name"):
        raise InvalidInputError(
            f"Nothing says which dataset the success rates in {file} are, and without it they help nobody; pass "
            "script_args=[ScriptArguments(dataset_name=...), ModelConfig(model_name_or_path=...)]."
        )
    model = said.get("model_name_or_path")
    info = SuccessStateInfo(
        dataset_name=_public_name(said["dataset_name"]),
        model_name_or_path=model and _public_name(model),
        dataset_config=said.get("dataset_config"),
        dataset_train_split=said.get("dataset_train_split", "train"),
        model_revision=said.get("model_revision"),
        prompt_id_column=config.prompt_id_column,
        success_threshold=float(config.success_threshold),
        success_reward_func=config.success_reward_func,
        num_prompts=len(tracker),
    )
    if is_rate_file(file):
        tracker.save(Path(folder, STATE_FILE))
    else:
        shutil.copyfile(file, Path(folder, STATE_FILE))
    Path(folder, ABOUT_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return info


def find_success_state(name: str) -> tuple[str, SuccessStateInfo | None]:
    """
    Where the success rates that `success_state_path` names are on this machine, and what they are of, if that is known.

    Args:
        name (`str`): A checkpoint or output folder, a `knapsack_state.safetensors`, a `.csv`, `.tsv` or `.jsonl` table, or a
            repository of the Hub: `owner/name`, or `owner/name@revision`.

    Raises:
        `OSError`: if a repository has none, or can't be reached.
        `ValueError`: if what a repository has is not fit for use.
    """
    if not is_repository(name):
        file = find_state(name)
        about = file.with_name(ABOUT_FILE)
        is_of_it = about.is_file() and not is_rate_file(file)  # of the state beside it, not of the table
        return str(file), _read_info(about, str(about)) if is_of_it else None
    path = download_file(name, STATE_FILE)
    size = os.path.getsize(path)
    if size > MAX_STATE_BYTES:
        raise InvalidInputError(
            f"{STATE_FILE} of {name} has {size} bytes, more than {MAX_STATE_BYTES}; it was not used."
        )
    try:
        about = download_file(name, ABOUT_FILE)
    except MissingFileError:  # a model's repository, where the trainer put the success rates alone
        return path, None
    return path, _read_info(about, f"{ABOUT_FILE} of {name}")


def _read_info(path: str | os.PathLike, source: str) -> SuccessStateInfo:
    """What a file says of success rates. It may be anyone's and goes into logs, so its text is made fit to show."""
    if os.path.getsize(path) > MAX_BYTES:
        raise InvalidInputError(f"{printable(source)} has more than {MAX_BYTES} bytes; it was not used.")
    hints = typing.get_type_hints(SuccessStateInfo)
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(said, dict) or set(said) != set(hints):
            raise ValueError("it has other fields, or none")
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{printable(source)} must be a JSON object with {', '.join(hints)}: {printable(str(error), 200)}."
        ) from None
    values = {}
    for name, hint in hints.items():
        try:
            value = fit(said[name], hint)
        except Misfit as misfit:
            raise InvalidInputError(
                f"{name} in {printable(source)} must be {misfit}, but is {printable(repr(said[name]), 200)}."
            ) from None
        values[name] = printable(value, 200) if isinstance(value, str) else value
    return SuccessStateInfo(**values)


def _public_name(name: str) -> str:
    """A dataset or model by its name, without the folders of this machine."""
    return os.path.basename(os.path.normpath(name)) if os.path.exists(name) else name

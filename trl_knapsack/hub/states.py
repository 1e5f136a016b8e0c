"""Success rates beside a published configuration: what they are of, and whether they are of the same prompts."""

import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..tracking.state_file import STATE_FILE
from ..tracking.tracker import SuccessRateTracker
from .config_file import MAX_BYTES
from .files import download_file, is_repository


ABOUT_FILE = "knapsack_state.json"
MAX_STATE_BYTES = 2 * 1024**3  # unpacked; a million prompts have a tenth of it


@dataclass(frozen=True)
class SuccessStateInfo:
    """
    What success rates are of, kept as `knapsack_state.json` beside them.

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
        state (`str` or `os.PathLike`): A checkpoint or output folder, or the `knapsack_state.safetensors` in it.
        config ([`KnapsackGRPOConfig`]): Configuration of the run.
        script_args (`Sequence[dataclass]`): Those of TRL's `ScriptArguments` and `ModelConfig`.

    Raises:
        `FileNotFoundError`, `ValueError`: if there are no success rates, or nothing says which dataset they are of.
    """
    state = Path(state)
    file = state / STATE_FILE if state.is_dir() else state
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; name a folder that KnapsackGRPOTrainer wrote.")
    tracker = SuccessRateTracker()
    tracker.load(file)  # says what is wrong with it
    said = {name: value for part in script_args for name, value in vars(part).items()}
    if not said.get("dataset_name"):
        raise ValueError(
            f"Nothing says of which dataset the success rates in {file} are, and without it they help nobody; pass "
            "script_args=[ScriptArguments(dataset_name=...), ModelConfig(model_name_or_path=...)]."
        )
    names = {name: _public_name(said.get(name)) for name in ("dataset_name", "model_name_or_path")}
    info = SuccessStateInfo(
        **names,
        dataset_config=said.get("dataset_config"),
        dataset_train_split=said.get("dataset_train_split", "train"),
        model_revision=said.get("model_revision"),
        prompt_id_column=config.prompt_id_column,
        success_threshold=float(config.success_threshold),
        success_reward_func=config.success_reward_func,
        num_prompts=len(tracker),
    )
    shutil.copyfile(file, Path(folder, STATE_FILE))
    Path(folder, ABOUT_FILE).write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return info


def find_success_state(name: str) -> tuple[str, SuccessStateInfo | None]:
    """
    Where the success rates that `success_state_path` names are on this machine, and what they are of, if that is known.

    Args:
        name (`str`): A checkpoint or output folder, a `knapsack_state.safetensors`, or a repository of the Hub: `owner/name`,
            or `owner/name@revision`.

    Raises:
        `OSError`: if a repository has none, or can't be reached.
        `ValueError`: if what a repository has is not fit for use.
    """
    if not is_repository(name):
        about = Path(name, ABOUT_FILE) if os.path.isdir(name) else Path(name).with_name(ABOUT_FILE)
        return name, _read_info(about, str(about)) if about.is_file() else None
    path = download_file(name, STATE_FILE)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{STATE_FILE} of {name} is no archive of NumPy arrays ({error}); it was not used."
        ) from error
    if unpacked > MAX_STATE_BYTES:
        raise ValueError(
            f"{STATE_FILE} of {name} unpacks to {unpacked} bytes, more than {MAX_STATE_BYTES}; it was not used."
        )
    try:
        about = download_file(name, ABOUT_FILE)
    except FileNotFoundError:  # a model's repository, where the trainer put the success rates alone
        return path, None
    return path, _read_info(about, f"{ABOUT_FILE} of {name}")


def _read_info(path: str | os.PathLike, source: str) -> SuccessStateInfo:
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"{source} has more than {MAX_BYTES} bytes; it was not used.")
    names = [field.name for field in fields(SuccessStateInfo)]
    try:
        info = SuccessStateInfo(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{source} must be a JSON object with {', '.join(names)}: {error}") from error
    return info


def _public_name(name: str | None) -> str | None:
    """A dataset or model by its name, without the folders of this machine."""
    return os.path.basename(os.path.normpath(name)) if name and os.path.exists(name) else name

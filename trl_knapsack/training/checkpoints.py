"""What TRL's trainer forgets when a run is resumed, and which checkpoints are complete."""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.trainer_callback import TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import RepeatSampler

from ..errors import InvalidInputError
from .seams import SAMPLER_FIELDS, check_attributes


# transformers writes this one last, after the model, the optimizer and the random states.
_TRAINER_STATE = "trainer_state.json"
# transformers' sign that a checkpoint made on SIGTERM is not finished.
_SENTINEL = "checkpoint-is-incomplete.txt"


class ResumableRepeatSampler(RepeatSampler):
    """
    TRL's [`~trl.trainer.utils.RepeatSampler`], which goes on with the permutation of the epoch that a run has reached.
    TRL's own begins with the first permutation again, so that the rest of a resumed epoch has other prompts.

    Args:
        sampler (`RepeatSampler`): TRL's sampler, freshly made.
        epochs_passed (`Callable[[], int]`): Whole epochs behind the run, asked when an epoch begins.
    """

    def __init__(self, sampler: RepeatSampler, epochs_passed: Callable[[], int]):
        check_attributes(sampler, SAMPLER_FIELDS)
        self.__dict__.update(sampler.__dict__)
        self.epochs_passed = epochs_passed
        self._drawn = 0

    def __iter__(self):
        while self.shuffle and self._drawn < self.epochs_passed():
            torch.randperm(self.num_samples, generator=self.generator)
            self._drawn += 1
        self._drawn += 1
        yield from super().__iter__()


class RandomState:
    """State of the random numbers of Python, NumPy and torch at one moment, on this rank's device."""

    def __init__(self):
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Go back to that moment."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


class StepBoundary(TrainerCallback):
    """
    Knows whether the trainer is between two optimizer steps or within one.

    Args:
        passes (`Callable[[], int]`): The trainer's count of forward and backward passes.
        is_needed (`bool`): Whether a checkpoint may be made within a step, so that random states must be kept.

    Attributes:
        step (`int`): That count when the last optimizer step ended.
    """

    def __init__(self, passes: Callable[[], int], is_needed: bool):
        self.passes = passes
        self.is_needed = is_needed
        self.step = 0
        self._global_step = 0
        self._random_state: RandomState | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._reached(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.update(state.global_step)

    def update(self, global_step: int) -> bool:
        """Whether a step has ended that was not known to have."""
        if global_step == self._global_step:
            return False
        self._reached(global_step)
        return True

    def _reached(self, global_step: int) -> None:
        self.step, self._global_step = self.passes(), global_step
        self.keep_random_state()

    def keep_random_state(self) -> None:
        """The random numbers of the coming step begin here."""
        if self.is_needed:
            self._random_state = RandomState()

    @contextmanager
    def random_state_of_step(self) -> Iterator[None]:
        """Within the block, random numbers are as they were when the last step ended, or the run began."""
        if self._random_state is None:
            yield
            return
        now = RandomState()
        self._random_state.restore()
        try:
            yield
        finally:
            now.restore()


def state_digest(state: dict[str, Any]) -> str:
    """Hexadecimal digest of a tracker's `state_dict`: equal for the same prompts with the same evidence, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        values = state[name]
        digest.update(values.tobytes() if isinstance(values, np.ndarray) else "\0".join(values).encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- windows


def window_path(checkpoint: str | os.PathLike, rank: int) -> str:
    """File of a rank's generation window within a checkpoint."""
    return os.path.join(checkpoint, f"knapsack_window_{rank}.safetensors")


def save_window(path: str, step: int, batches: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """
    Save where a rank is in its generation window.

    Args:
        path (`str`): File to write.
        step (`int`): The trainer's count of forward and backward passes.
        batches (`list[dict]`): The generated batches still in use, none between two windows. One dict per step; values
            are tensors, lists of numbers, or `None`.
        about (`dict`): What the run must agree on to use the window; compared when it is loaded.
    """
    tensors, others = {}, {}
    for place, batch in enumerate(batches):
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                # `clone`: the batches are views of one tensor, and safetensors stores no shared memory
                tensors[f"{place}.{name}"] = value.detach().cpu().clone().contiguous()
            else:
                others[f"{place}.{name}"] = value
    metadata = {
        name: json.dumps(value)
        for name, value in {"about": about, "others": others, "batches": len(batches), "step": step}.items()
    }
    metadata["digest"] = _window_digest(metadata, tensors)
    save_file(tensors, f"{path}.partial", metadata=metadata)
    os.replace(f"{path}.partial", path)


def load_window(path: str, about: dict[str, Any], device: torch.device) -> tuple[int, list[dict[str, Any]]]:
    """
    Load what [`save_window`] saved.

    Args:
        path (`str`): The file.
        about (`dict`): The settings of this run.
        device (`torch.device`): Where the tensors shall be.

    Returns:
        `tuple[int, list[dict]]`: step and batches.

    Raises:
        `OtherSettings`: if they belong to a run with other settings, saying which.
        `ValueError`: if the file can't be read, or was altered.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            digest = metadata.pop("digest")
            # copies: what safetensors returns are views of the file, which may change
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        if _window_digest(metadata, tensors) != digest:
            raise ValueError("its content is not what was written")
        saved = {name: json.loads(value) for name, value in metadata.items()}
        step, batches = saved["step"], [{} for _ in range(saved["batches"])]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InvalidInputError(
            f"{path} is not a readable generation window ({error}); restore it, or resume from another checkpoint."
        ) from error
    if saved["about"] != about:
        changed = [name for name in about if saved["about"].get(name) != about[name]]
        raise OtherSettings(
            ", ".join(f"{name} {saved['about'].get(name)} then, {about[name]} now" for name in changed)
        )
    for name, value in ({n: t.to(device) for n, t in tensors.items()} | saved["others"]).items():
        place, key = name.split(".", 1)
        batches[int(place)][key] = value
    return step, batches


class OtherSettings(Exception):
    """A window is of a run with other settings; the text says which."""


def _window_digest(metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(metadata):
        digest.update(f"{name}:{metadata[name]};".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ checkpoints


def what_is_torn(checkpoint: str | os.PathLike) -> str | None:
    """
    What shows that a checkpoint was not written to its end, in words, or `None` for a whole one.

    transformers writes `trainer_state.json` last but for what it deletes, and this package's files come before.
    """
    folder = Path(checkpoint)
    if (folder / _SENTINEL).exists():
        return f"it holds {_SENTINEL}"
    if not (folder / _TRAINER_STATE).is_file():
        return f"it has no {_TRAINER_STATE}"
    try:
        TrainerState.load_from_json(str(folder / _TRAINER_STATE))
    except (OSError, ValueError, TypeError):
        return f"its {_TRAINER_STATE} can't be read"
    return None


def what_is_missing(checkpoint: str | os.PathLike, expected: Iterable[str]) -> list[str]:
    """
    Files that a whole checkpoint has lost, to a copy or to a power cut. Without them transformers begins with a new
    optimizer, a new schedule or other random numbers, and does not say so.

    Args:
        checkpoint (`str` or `os.PathLike`): The checkpoint.
        expected (`Iterable[str]`): Names of files beyond those that every checkpoint of one process has.
    """
    return [name for name in ("optimizer.pt", "scheduler.pt", *expected) if not Path(checkpoint, name).exists()]


def checkpoints_of(run_folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    number = {
        folder: int(folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
        for folder in Path(run_folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if folder.is_dir() and folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdigit()
    }
    return sorted(number, key=lambda folder: -number[folder])


def newest_whole_checkpoint(run_folder: str | os.PathLike) -> Path | None:
    """The newest checkpoint that was written to its end."""
    return next((folder for folder in checkpoints_of(run_folder) if what_is_torn(folder) is None), None)

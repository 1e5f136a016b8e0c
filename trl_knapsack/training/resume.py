"""What TRL's trainer forgets when a run is resumed: the epochs that have passed, and the generation window under way."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from trl.trainer.utils import RepeatSampler


class ResumableRepeatSampler(RepeatSampler):
    """
    TRL's [`~trl.trainer.utils.RepeatSampler`], which goes on with the permutation of the epoch that a run has reached.
    TRL's own begins with the first permutation again, so that the rest of a resumed epoch has other prompts.

    Args:
        sampler (`RepeatSampler`): TRL's sampler, freshly made.
        epochs_passed (`Callable[[], int]`): Whole epochs behind the run, asked when an epoch begins.
    """

    def __init__(self, sampler: RepeatSampler, epochs_passed: Callable[[], int]):
        self.__dict__.update(sampler.__dict__)
        self.epochs_passed = epochs_passed
        self._drawn = 0

    def __iter__(self):
        while self.shuffle and self._drawn < self.epochs_passed():
            torch.randperm(self.num_samples, generator=self.generator)
            self._drawn += 1
        self._drawn += 1
        yield from super().__iter__()


def state_digest(state: dict[str, Any]) -> str:
    """Hexadecimal digest of a tracker's `state_dict`: equal for the same prompts with the same evidence, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        values = state[name]
        digest.update(values.tobytes() if isinstance(values, np.ndarray) else "\0".join(values).encode())
    return digest.hexdigest()


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
    metadata = {"about": about, "others": others, "batches": len(batches), "step": step}
    save_file(tensors, f"{path}.partial", metadata={name: json.dumps(value) for name, value in metadata.items()})
    os.replace(f"{path}.partial", path)


def load_window(path: str, about: dict[str, Any], device: torch.device) -> tuple[int, list[dict[str, Any]]] | None:
    """
    Load what [`save_window`] saved.

    Returns:
        `tuple[int, list[dict]]`: step and batches, or `None` if they belong to a run with other settings.

    Raises:
        `ValueError`: if the file can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            if metadata["about"] != about:
                return None
            values = {name: file.get_tensor(name).to(device) for name in file.keys()} | metadata["others"]
            step, batches = metadata["step"], [{} for _ in range(metadata["batches"])]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a readable generation window ({error}); restore or remove it.") from error
    for name, value in values.items():
        place, key = name.split(".", 1)
        batches[int(place)][key] = value
    return step, batches

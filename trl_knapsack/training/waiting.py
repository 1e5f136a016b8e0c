"""Prompts that were looked at and wait for the rest of their rollouts: part of a run's state, equal on all ranks."""

import hashlib
import io
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..allocation import AllocationRule, PosteriorRule, UniformRule
from ..allocation.looks import WINDOW, default_look
from ..errors import InvalidInputError
from ..tracking.keys import prompt_key
from ..tracking.records import RolloutRecord
from .config import KnapsackGRPOConfig
from .decision import Decision


logger = get_logger(__name__)

WAITING_FILE = "knapsack_waiting.safetensors"

# Modes of images that a PNG keeps as they are; the others go into a TIFF.
_PNG_MODES = {"1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"}


LEAST_WINDOWS = 4  # in a dataset, so that a short one is not spent on filling the first


def look_and_window(args: KnapsackGRPOConfig, rule: AllocationRule, dataset_size: int | None) -> tuple[int, int]:
    """
    Rollouts of a first look, and prompts that share a budget at least: as asked for, else by default.

    By default only the posterior rule has them, where its bounds leave it a choice. The other rules go by what was seen at
    the last visit, as published, and a rule of the user's own need not know of prompts that have had some of their rollouts.
    Equal shares would gain nothing, and are plain GRPO whatever was asked for.

    Args:
        args ([`KnapsackGRPOConfig`]): Options of the run.
        rule ([`AllocationRule`]): Its rule.
        dataset_size (`int` or `None`): Prompts of the dataset, `None` for a stream.

    Returns:
        `tuple[int, int]`: 0 for no look; 1 for budgets within each generation batch.
    """
    if isinstance(rule, UniformRule):
        return 0, 1
    look, window = 0, 1
    if isinstance(rule, PosteriorRule) and args.min_generations < args.num_generations < args.max_generations:
        look = default_look(args.num_generations)  # type: ignore[arg-type]  # None in TRL only before it is filled in
        look = look if look >= 2 else 0  # a single rollout has nothing to be compared with
        window = WINDOW if dataset_size is None else max(1, min(WINDOW, dataset_size // LEAST_WINDOWS))
    return (
        look if args.look_generations is None else args.look_generations,
        window if args.allocation_window is None else args.allocation_window,
    )


@dataclass(frozen=True, eq=False)
class WaitingPrompt:
    """
    A prompt in the course of a visit.

    Attributes:
        key (`str`): Its key.
        row (`dict`): Its row of the dataset.
        rewards (`torch.Tensor` of shape `(n, F)`): Rewards of its `n` rollouts so far, NaN where a function gave none.
        successes (`int`): Rollouts that succeeded.
        trials (`int`): Rollouts that were scored.
        since (`int`): Generation batch in which it came, from 0.
    """

    key: str
    row: dict[str, Any]
    rewards: torch.Tensor
    successes: int = 0
    trials: int = 0
    since: int = 0

    def with_rollouts(self, rewards: torch.Tensor, successes: int, trials: int) -> "WaitingPrompt":
        """The same with further rollouts; `rewards` is `(m, F)`."""
        return replace(
            self,
            rewards=torch.cat([self.rewards, rewards]),
            successes=self.successes + successes,
            trials=self.trials + trials,
        )


@dataclass(frozen=True, eq=False)
class WaitingPrompts:
    """
    Those that wait between two generation batches, the longest waiting first.

    Attributes:
        prompts (`tuple[WaitingPrompt, ...]`): The prompts.
        batches (`int`): Generation batches so far.
    """

    prompts: tuple[WaitingPrompt, ...] = ()
    batches: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def after(
        self,
        candidates: Sequence[WaitingPrompt],
        decision: Decision,
        record: RolloutRecord,
        rewards_per_func: torch.Tensor,
    ) -> "WaitingPrompts":
        """
        Who waits after a generation batch, with what it showed of them.

        Args:
            candidates (`Sequence[WaitingPrompt]` of length `C`): Those that could be in it, the waiting ones first.
            decision ([`Decision`]): Who was.
            record ([`RolloutRecord`]): What came of it.
            rewards_per_func (`torch.Tensor` of shape `(R, F)`): Rewards of its rollouts.
        """
        prompts: list[WaitingPrompt | None] = list(candidates)
        rewards = rewards_per_func.cpu()
        for place, candidate in enumerate(decision.candidates):
            prompts[candidate] = None
            if not decision.leaves[place]:
                own = rewards[torch.from_numpy(decision.plan.row_prompt == place)]
                prompts[candidate] = candidates[candidate].with_rollouts(
                    own, int(record.successes[place]), int(record.trials[place])
                )
        return WaitingPrompts(tuple(prompt for prompt in prompts if prompt is not None), self.batches + 1)

    def digest(self) -> str:
        """Hexadecimal digest of who waits, and of what is known of them."""
        digest = hashlib.blake2b(f"{self.batches}".encode(), digest_size=16)
        for prompt in self.prompts:
            digest.update(f"{prompt.key}:{prompt.successes}:{prompt.trials}:{prompt.since};".encode())
            digest.update(prompt.rewards.numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike) -> None:
        """
        Write them into a checkpoint.

        A row may hold what can't be stored so that loading it is safe (only plain data and images can). Such prompts are
        left out, with a warning: a resumed run then begins without them.

        Raises:
            `OSError`: if the file can't be written.
        """
        stored, unknown = [], set()
        for prompt in self.prompts:
            try:
                stored.append({**prompt.__dict__, "row": _storable(prompt.row)})
            except TypeError as error:
                unknown.add(str(error))
        if unknown:
            logger.warning(
                f"{len(self) - len(stored)} prompts that wait for rollouts are not in {folder}, because their rows hold "
                f"{', '.join(sorted(unknown))}; a run that is resumed from it goes on without their looks."
            )
        buffer = io.BytesIO()
        torch.save({"prompts": stored, "batches": self.batches}, buffer)
        content = buffer.getvalue()
        path = os.path.join(folder, WAITING_FILE)
        save_file(
            {"content": torch.frombuffer(bytearray(content), dtype=torch.uint8)},
            f"{path}.partial",
            metadata={"digest": hashlib.blake2b(content, digest_size=16).hexdigest()},
        )
        os.replace(f"{path}.partial", path)

    @classmethod
    def load(cls, folder: str | os.PathLike, prompt_id_column: str | None = None) -> "WaitingPrompts":
        """
        Those that waited when a checkpoint was made; none if it has no such file, as one without looks.

        Raises:
            `ValueError`: if the file can't be read, or was altered.
        """
        path = Path(folder, WAITING_FILE)
        if not path.exists():
            return cls()
        try:
            with safe_open(path, framework="pt") as file:
                content = file.get_tensor("content").numpy().tobytes()
                digest = (file.metadata() or {})["digest"]
            if hashlib.blake2b(content, digest_size=16).hexdigest() != digest:
                raise ValueError("its content is not what was written")
            saved = torch.load(io.BytesIO(content), weights_only=True)  # runs no code of a stranger's
            prompts = [WaitingPrompt(**{**prompt, "row": _restored(prompt["row"])}) for prompt in saved["prompts"]]
            if any(prompt_key(prompt.row, prompt_id_column) != prompt.key for prompt in prompts):
                raise ValueError("a prompt in it has another key than this run would give it")
            return cls(tuple(prompts), saved["batches"])
        except (
            OSError,
            SafetensorError,
            KeyError,
            TypeError,
            ValueError,
            RuntimeError,
            pickle.UnpicklingError,
        ) as error:
            raise InvalidInputError(
                f"{path} does not hold the prompts that waited ({error}); restore it, or resume from another checkpoint."
            ) from error


def _storable(value: Any) -> Any:
    """The same in plain data; raises TypeError with what can't be."""
    if value is None or isinstance(value, bool | int | float | str | bytes | torch.Tensor):
        return value
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_storable(item) for item in value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return {_KIND: "array", "dtype": value.dtype.str, "shape": list(value.shape), "data": value.tobytes()}
    if isinstance(value, np.generic):
        return {_KIND: "scalar", "dtype": value.dtype.str, "data": value.tobytes()}
    if type(value).__module__.startswith("PIL."):
        image: Any = value
        buffer = io.BytesIO()
        image.copy().save(buffer, format="PNG" if image.mode in _PNG_MODES else "TIFF")
        return {_KIND: "image", "data": buffer.getvalue()}
    raise TypeError(f"a {type(value).__name__}")


def _restored(value: Any) -> Any:
    if isinstance(value, dict) and _KIND in value:
        if value[_KIND] == "image":
            return Image().decode_example({"bytes": value["data"], "path": None})
        array = np.frombuffer(value["data"], dtype=np.dtype(value["dtype"]))
        return array.reshape(value["shape"]).copy() if value[_KIND] == "array" else array[0]
    if isinstance(value, dict):
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_restored(item) for item in value)
    return value


_KIND = "__kind__"

"""One rank of one training run of the tiny model, in a process that may be killed at any moment. Writes how it ended."""

import ctypes
import gc
import hashlib
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import runs
import tiny
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.errors import KnapsackError
from trl_knapsack.tracking import HISTORY_FILE, RolloutHistory


TRAINERS = {"knapsack": (KnapsackGRPOTrainer, KnapsackGRPOConfig), "grpo": (GRPOTrainer, GRPOConfig)}
STEPS = 24

# Two epochs and a half: windows of several steps, so that most checkpoints lie within one, and permutations of two epochs.
# All keep two checkpoints or one, as who has to pay for the disk does.
SETTINGS = {
    "windows": dict(per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=4),
    "accumulation": dict(per_device_train_batch_size=8, gradient_accumulation_steps=2),
    "reused rollouts": dict(
        per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=2, num_iterations=2
    ),
}
# Prompts that wait from one generation batch to another, which TRL does not know.
OWN_SETTINGS = {"looks": SETTINGS["windows"] | dict(look_generations=2, allocation_window=24)}
LIMITS = {"two kept": dict(save_total_limit=2), "one kept": dict(save_total_limit=1)}


@dataclass(frozen=True)
class Task:
    """
    What one rank does.

    Args:
        trainer (`str`): `"knapsack"` or `"grpo"`.
        model (`str`): Folder of the tiny model.
        folder (`str`): The run's output folder.
        changes (`dict`): Options of the trainer.
        resume (`bool`): Whether to go on from the newest checkpoint.
        bad_reward (`str`, *optional*): What the reward function does from `bad_from` on: a key of `BAD_REWARDS`.
        bad_rank (`int`): Rank on which it does, -1 for all.
        die_at_event (`int`, *optional*): Place, from 1, of the change to a checkpoint's files before which the rank kills
            itself.
        fill (`bool`): Whether to fill the disk of the folder just before the end.
        file_limit (`int`, *optional*): Bytes that a file may have, where no small disk can be had.
        dies_before_rng (`bool`): Whether the rank is killed before it saves its random state.
        watched (`bool`): Whether memory and time are noted at each step.
    """

    trainer: str
    model: str
    folder: str
    changes: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    bad_reward: str | None = None
    bad_from: int = 5
    bad_rank: int = -1
    die_at_event: int | None = None
    fill: bool = False
    file_limit: int | None = None
    dies_before_rng: bool = False
    watched: bool = False


def forever():
    while True:
        time.sleep(1)


def raising():
    raise ValueError("the reward service did not answer")


# Rewards of a batch in place of the right ones.
BAD_REWARDS = {
    "NaN": lambda right: [float("nan")] * len(right),
    "one NaN": lambda right: [float("nan"), *right[1:]],
    "infinity": lambda right: [float("inf")] * len(right),
    "one infinity": lambda right: [float("inf"), *right[1:]],
    "minus infinity": lambda right: [float("-inf"), *right[1:]],
    "1e38": lambda right: [1e38, *right[1:]],
    "None": lambda right: [None] * len(right),
    "one too few": lambda right: right[1:],
    "one too many": lambda right: [*right, 1.0],
    "nothing": lambda right: [],
    "text": lambda right: ["good"] * len(right),
    "not a list": lambda right: None,
    "raises": lambda right: raising(),
    "hangs": lambda right: forever(),
    "dies": lambda right: os.kill(os.getpid(), signal.SIGKILL),
}


class FillDisk(TrainerCallback):
    """Nothing is left on the disk when the last step has ended."""

    def __init__(self, folder: str):
        self.folder = folder

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            try:
                with open(os.path.join(self.folder, "filler"), "wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            except OSError:
                pass


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def own_memory() -> float:
    """MiB that this process holds, without the files that are mapped into it, and without what it has freed."""
    gc.collect()
    if _trim is not None:  # else glibc keeps some MiB that are free, now more and now less
        _trim(0)
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024


def growth(values: Sequence[float], mean: Callable = np.mean, ratio: bool = False) -> float:
    """
    How much more at the end of a run than after its beginning: the last eighth against the third one. Before that every
    prompt is met for the first time, and libraries fill their caches.
    """
    eighth = len(values) // 8
    early, late = mean(values[2 * eighth : 3 * eighth]), mean(values[-eighth:])
    return float(late / early if ratio else late - early)


class Watch(TrainerCallback):
    """Memory at each step, and the processor time that it took, which other processes do not lengthen."""

    def __init__(self):
        self.memory, self.seconds, self._before = [], [], time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.process_time()
        self.memory.append(own_memory())
        self.seconds.append(now - self._before)
        self._before = time.process_time()


def die_at(event: int) -> None:
    """End this process by `SIGKILL` before its `event`-th change to the files of a checkpoint that Python sees."""
    left = event

    def watch(name: str, arguments: tuple) -> None:
        nonlocal left
        if name not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            return
        if name == "open" and (arguments[1] is None or not set("wax+") & set(str(arguments[1]))):
            return
        if "checkpoint-" in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def train(task: Task) -> dict[str, Any]:
    """Train as the task says; what the run ended with, for comparisons."""
    rank = int(os.environ.get("RANK", 0))
    calls = 0

    def reward(prompts, completions, **kwargs):
        nonlocal calls
        calls += 1
        right = tiny.digit_reward(prompts, completions)
        is_bad = task.bad_reward and calls >= task.bad_from and task.bad_rank in (-1, rank)
        return BAD_REWARDS[task.bad_reward](right) if is_bad else right

    trainer_class, config_class = TRAINERS[task.trainer]
    if task.file_limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (task.file_limit, resource.RLIM_INFINITY))
    if task.dies_before_rng:
        trainer_class = type("Dying", (trainer_class,), {"_save_rng_state": _slow_death})
    options = runs.options(task.folder, max_steps=STEPS, num_train_epochs=99, logging_steps=8) | task.changes
    trainer = trainer_class(
        model=task.model,
        reward_funcs=reward,
        args=config_class(**options),
        train_dataset=tiny.prompts(),
        callbacks=[*([FillDisk(task.folder)] if task.fill else []), *([watch := Watch()] if task.watched else [])],
    )
    if task.die_at_event is not None:
        die_at(task.die_at_event)
    trainer.train(resume_from_checkpoint=task.resume)

    weights = hashlib.sha256()
    finite = True
    for parameter in trainer.model.parameters():
        weights.update(parameter.detach().numpy().tobytes())
        finite = finite and bool(torch.isfinite(parameter).all())
    end = {"step": trainer.state.global_step, "weights": weights.hexdigest(), "finite": finite}
    if task.watched:
        # a window of four steps is generated in its first
        end |= {"memory": growth(watch.memory), "time": growth(watch.seconds, ratio=True)}
    if task.trainer == "knapsack":
        end |= _what_is_known(trainer, rank, Path(task.folder))
    return end


def _slow_death(self, output_dir: str) -> None:
    time.sleep(0.5)  # the other ranks write all that is theirs
    os.kill(os.getpid(), signal.SIGKILL)


def _what_is_known(trainer: KnapsackGRPOTrainer, rank: int, folder: Path) -> dict[str, Any]:
    """Digests of the tracker and, on rank 0, of the counts of every batch from the first step on."""
    state = trainer.success_tracker.state_dict()
    tracker, finite = hashlib.sha256(), True
    for name in sorted(state):
        values = state[name]
        if isinstance(values, np.ndarray):
            tracker.update(values.tobytes())
            finite = finite and bool(np.isfinite(values).all() or name == "last_rate" and not np.isinf(values).any())
        else:
            tracker.update("\0".join(values).encode())
    known = {"tracker": tracker.hexdigest(), "tracker_finite": finite}
    if rank == 0 and (folder / HISTORY_FILE).exists():
        known["batches"] = len(RolloutHistory.load(folder))
        lines = [json.loads(line) for line in (folder / HISTORY_FILE).read_text(encoding="utf-8").splitlines()]
        told = [{name: line[name] for name in sorted(line) if name != "solver_seconds"} for line in lines]
        known["history"] = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return known


def run_rank(task: Task, answer: Path) -> int:
    """Train, write how that ended to `answer` as JSON, and return the exit status."""
    try:
        ended, status = {"ended": train(task)}, 0
    except KeyboardInterrupt:
        ended, status = {"interrupted": True}, 128 + signal.SIGINT
    except BaseException as error:
        traceback.print_exc()
        is_told = isinstance(error, KnapsackError) or "so no rank does." in str(error)
        ended, status = {"error": type(error).__name__, "text": str(error), "is_a_sentence": is_told}, 1
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps({"task": asdict(task), **ended}))
    os.replace(partial, answer)
    return status

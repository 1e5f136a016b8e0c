"""A run's generation batches: written to disk as one JSON line each, and read back as arrays."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .._notebook import html_table
from ..errors import InvalidInputError, MissingFileError
from .records import RolloutRecord
from .state_file import MAX_COUNT, did_you_mean
from .text import printable


#: Where the generation batches are kept in the folder of a run.
HISTORY_FILE = "knapsack_records.jsonl"

# What a line holds: type, least and most. Null stands for a number that is not known.
_PER_BATCH = {
    "step": (np.int64, 0, 1e15),
    "epoch": (np.float64, 0, 1e15),
    "allocation": (np.str_, None, None),
    "solver_seconds": (np.float64, 0, math.inf),
    "rank_imbalance": (np.float64, 0, math.inf),
}
_PER_PROMPT = {
    "counts": (np.int64, 0, MAX_COUNT),
    "successes": (np.int64, 0, MAX_COUNT),
    "trials": (np.int64, 0, MAX_COUNT),
    "tokens": (np.int64, 0, MAX_COUNT),
    "mixed": (np.bool_, 0, 1),
    "mean_reward": (np.float64, -math.inf, math.inf),
    "alpha": (np.float64, 0, math.inf),
    "beta": (np.float64, 0, math.inf),
    "last_rate": (np.float64, 0, 1),
    "visits": (np.int64, 0, MAX_COUNT),
    "predicted": (np.bool_, 0, 1),
    "looks": (np.bool_, 0, 1),
    "before": (np.int64, 0, MAX_COUNT),
}


@dataclass(frozen=True, eq=False, repr=False)  # equal is only itself: arrays have no one answer
class RolloutHistory:
    """
    The `T` generation batches of a run, in order. Their `N` groups, prompts times visits, lie one after the other.

    Attributes:
        step (`(T,)`, int64): Optimizer step in which a batch was generated, from 1. Steps may share a batch.
        epoch (`(T,)`): Passes over the dataset when it was recorded.
        allocation (`(T,)`, str): Name of the rule that shared out the rollouts.
        solver_seconds (`(T,)`): Time that the allocation took.
        rank_imbalance (`(T,)`): Completion tokens of the rank that generated most, divided by the mean over ranks.
        keys (`tuple[str, ...]` of length `K`): Keys of all prompts, in the order of their first visit.
        batch (`(N,)`, int64): Batch of each group, `0 .. T-1`, ascending.
        prompt (`(N,)`, int64): Prompt of each group, an index into `keys`.
        counts (`(N,)`, int64): Rollouts given to the group.
        successes (`(N,)`, int64): Those that succeeded.
        trials (`(N,)`, int64): Those that were scored.
        tokens (`(N,)`, int64): Completion tokens generated.
        mixed (`(N,)`, bool): Whether the group's rewards vary, so that it has a gradient.
        mean_reward (`(N,)`): Mean reward, NaN where no rollout was scored.
        alpha, beta (`(N,)`): Beta posterior of the success rate *before* the rollouts, prior included.
        last_rate (`(N,)`): Success rate at the visit before, NaN if never scored.
        visits (`(N,)`, int64): Scored visits before; 0 means unseen.
        predicted (`(N,)`, bool): Whether the success rate was predicted from difficulty columns.
        looks (`(N,)`, bool): Whether the rollouts are a first look (`look_generations`), whose rest comes later.
        before (`(N,)`, int64): Rollouts that the prompt got earlier in the same visit.

    Example:

    ```python
    >>> from trl_knapsack import RolloutHistory

    >>> history = RolloutHistory.load("outputs")  # doctest: +SKIP
    >>> history.effective_gradient_ratio  # doctest: +SKIP
    array([0.31, 0.29, 0.46, ...])
    ```
    """

    step: np.ndarray
    epoch: np.ndarray
    allocation: np.ndarray
    solver_seconds: np.ndarray
    rank_imbalance: np.ndarray
    keys: tuple[str, ...]
    batch: np.ndarray
    prompt: np.ndarray
    counts: np.ndarray
    successes: np.ndarray
    trials: np.ndarray
    tokens: np.ndarray
    mixed: np.ndarray
    mean_reward: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    last_rate: np.ndarray
    visits: np.ndarray
    predicted: np.ndarray
    looks: np.ndarray
    before: np.ndarray

    def __len__(self) -> int:
        return len(self.step)

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {value}" for name, value in self._in_short().items())
        return f"RolloutHistory({said})"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return html_table((), self._in_short().items(), caption="Rollout history")

    def _in_short(self) -> dict[str, str]:
        short = {"batches": f"{len(self):,}", "prompts": f"{len(self.keys):,}", "rollouts": f"{self.counts.sum():,}"}
        if not len(self):
            return short
        ratio = self.effective_gradient_ratio
        return short | {
            "steps": f"{self.step[0]} to {self.step[-1]}",
            "allocation": ", ".join(dict.fromkeys(printable(name, 40) for name in self.allocation)),
            "tokens": f"{self.tokens.sum():,}",
            "effective gradient ratio": f"{ratio[0]:.2f} at first, {ratio[-1]:.2f} at last",
        }

    @property
    def known(self) -> np.ndarray:
        """Whether anything told the group's prompt from others, `(N,)`: an earlier visit, its look, or a prediction."""
        return (self.visits > 0) | self.predicted

    @property
    def decided(self) -> np.ndarray:
        """Whether somebody decided upon the group's rollouts, `(N,)`: no look, or a run that consists of looks."""
        return ~self.looks if not self.looks.all() else self.looks

    @property
    def generations(self) -> np.ndarray:
        """Rollouts of the prompt so far in this visit, `(N,)`: its look and what followed."""
        return self.before + self.counts

    @property
    def believed_rate(self) -> np.ndarray:
        """Success rate that was believed before the rollouts, `(N,)`: the mean of the posterior."""
        return self.alpha / (self.alpha + self.beta)

    @cached_property
    def success_rate(self) -> np.ndarray:
        """Observed success rate of each group, `(N,)`, NaN where no rollout was scored."""
        return np.divide(self.successes, self.trials, out=np.full(len(self.trials), np.nan), where=self.trials > 0)

    @cached_property
    def effective_gradient_ratio(self) -> np.ndarray:
        """Share of each batch's rollouts that have a gradient, `(T,)`; see `docs/metrics.md`."""
        return self.per_batch(self.trials * self.mixed) / self.per_batch(self.counts)

    @cached_property
    def mixed_prompts(self) -> np.ndarray:
        """Share of each batch's prompts whose rewards vary, `(T,)`."""
        return self.per_batch(self.mixed) / self.per_batch(np.ones(len(self.batch)))

    def per_batch(self, values: np.ndarray) -> np.ndarray:
        """Sum over the groups of each batch: `(N,) -> (T,)`."""
        return np.bincount(self.batch, weights=values, minlength=len(self))

    def per_prompt(self, values: np.ndarray) -> np.ndarray:
        """Sum over the groups of each prompt: `(N,) -> (K,)`."""
        return np.bincount(self.prompt, weights=values, minlength=len(self.keys))

    @cached_property
    def by_visit(self) -> dict[str, np.ndarray]:
        """
        One row per visit of a prompt with a scored rollout: two groups of a prompt in one batch are one visit, and so are a
        look and the rest. A prompt's visits lie one after the other. `(V,)` each: `group` (the visit's first, an index into the
        groups), `prompt` and `batch` of that, `counts`, `successes`, `trials`, `success_rate`, and `first` and `last`, true at a prompt's first and last visit.
        """
        groups = np.flatnonzero(self.trials > 0)
        groups = groups[np.lexsort((groups, self.batch[groups], self.prompt[groups]))]
        prompt, batch = self.prompt[groups], self.batch[groups]
        starts = np.ones(len(groups), dtype=bool)  # of the groups of a prompt in a batch
        starts[1:] = (np.diff(prompt) > 0) | (np.diff(batch) > 0)
        begins = np.zeros(len(groups), dtype=bool)
        if len(groups):  # as for the tracker, a batch in which any of them begins a visit begins one
            first = np.flatnonzero(starts)
            begins[first] = np.minimum.reduceat(self.before[groups], first) == 0
            begins[np.flatnonzero(np.diff(prompt, prepend=-1))] = True  # its look may have had no score
        visit, slot = groups[begins], np.cumsum(begins) - 1
        rows = {"group": visit, "prompt": prompt[begins], "batch": batch[begins]}
        for name in ("counts", "successes", "trials"):
            rows[name] = np.bincount(slot, weights=getattr(self, name)[groups], minlength=len(visit))
        rows["success_rate"] = rows["successes"] / rows["trials"]
        changes = rows["prompt"][1:] != rows["prompt"][:-1]
        rows["first"] = np.concatenate([[True], changes])[: len(visit)]
        rows["last"] = np.concatenate([changes, [True]])[: len(visit)]
        return rows

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RolloutHistory":
        """
        Read a run's history. A last line that was cut short by a crash is ignored.

        Args:
            path (`str` or `os.PathLike`): The run's output folder, or the `knapsack_records.jsonl` in it.

        Raises:
            `FileNotFoundError`: if there is none.
            `ValueError`: if a line is not one of a history, with the file, the line's number and what is wrong.
        """
        return HistoryReader(path).read()


class HistoryReader:
    """
    Reads the history of a run that may be under way: each time only what is new in the file.

    Args:
        path (`str` or `os.PathLike`): The run's output folder, or the `knapsack_records.jsonl` in it.
    """

    def __init__(self, path: str | os.PathLike):
        path = Path(path)
        self.file = path / HISTORY_FILE if path.is_dir() else path
        if not self.file.is_file():
            remedy = f"name the output_dir of a run of KnapsackGRPOTrainer, or the {HISTORY_FILE} in it"
            raise MissingFileError(f"{printable(str(self.file))} does not exist; {did_you_mean(path, remedy)}")
        self._forget()

    def _forget(self) -> None:
        self._index: dict[str, int] = {}
        self._batches: list[dict[str, Any]] = []
        self._end = 0  # bytes that have been read

    def read(self) -> RolloutHistory:
        """
        All batches so far.

        Raises:
            `OSError`: if the file can't be read any more.
            `ValueError`: if a line is not one of a history, with the file, the line's number and what is wrong.
        """
        if self.file.stat().st_size < self._end:  # another run has begun in the folder, or went back to a checkpoint
            self._forget()
        for end, batch in _read(self.file, self._index, self._end, len(self._batches)):
            self._end = end
            self._batches.append(batch)
        return _joined(self._index, self._batches)


def _joined(index: dict[str, int], batches: list[dict[str, Any]]) -> RolloutHistory:
    """The history of batches whose prompts are numbered by `index`."""

    def joined(name: str, dtype: Any) -> np.ndarray:
        return np.concatenate([np.empty(0, dtype), *(batch[name] for batch in batches)])

    per_batch = {
        name: np.array([batch[name] for batch in batches], dtype=dtype) for name, (dtype, *_) in _PER_BATCH.items()
    }
    return RolloutHistory(
        keys=tuple(index),
        batch=np.repeat(np.arange(len(batches)), [len(batch["prompt"]) for batch in batches]),
        prompt=joined("prompt", np.int64),
        **per_batch,
        **{name: joined(name, dtype) for name, (dtype, *_) in _PER_PROMPT.items()},
    )


def is_history(path: str | os.PathLike) -> bool:
    """
    Whether a folder, or a `.jsonl` file, is to be read as the generation batches of a run. A table of success rates, the results
    of an evaluation for example, ends in `.jsonl`, too: its first line has columns, but no `step`.
    """
    path = Path(path)
    if path.is_dir():
        return (path / HISTORY_FILE).is_file()
    if path.suffix != ".jsonl" or path.name == HISTORY_FILE:
        return path.suffix == ".jsonl"
    try:
        with open(path, "rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError, RecursionError):  # the reader of histories says what is wrong
        return True
    return not (isinstance(first, dict) and first and "step" not in first)


class HistoryWriter:
    """
    Appends a run's generation batches to a file, a whole line at a time.

    Args:
        path (`str` or `os.PathLike`): The file. It is made with the first batch.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def begin(self, step: int) -> None:
        """
        A run begins, or goes on.

        Args:
            step (`int`):
                Optimizer steps behind the run. 0 starts anew, and what an earlier run left in the folder is renamed to
                `knapsack_records.previous.jsonl`. Else batches after `step` are cut off, as the run will do them again.
        """
        if not self.path.exists():
            return
        if step == 0:
            os.replace(self.path, self.path.with_suffix(".previous.jsonl"))
            return
        keep = max((end for end, batch in _read(self.path, {}) if batch["step"] <= step), default=0)
        os.truncate(self.path, keep)

    def append(self, record: RolloutRecord, step: int, epoch: float, allocation: str) -> None:
        """Write a batch that was generated in optimizer step `step` with the rule named `allocation`."""
        evidence = record.evidence
        arrays = {
            "counts": record.allocation.counts,
            "successes": record.successes,
            "trials": record.trials,
            "tokens": record.tokens,
            "mixed": record.mixed,
            "mean_reward": record.mean_reward,
            "alpha": evidence.alpha,
            "beta": evidence.beta,
            "last_rate": evidence.last_rate,
            "visits": evidence.visits,
            "predicted": record.predicted,
            "looks": record.looks,
            "before": record.before,
        }
        line = {
            "step": step,
            "epoch": round(epoch, 6),
            "allocation": allocation,
            "solver_seconds": round(record.solver_seconds, 6),
            "rank_imbalance": round(float(record.rank_imbalance), 6),
            "keys": record.keys,
            **{name: _plain(values, _PER_PROMPT[name][0]) for name, values in arrays.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:  # one write, so that a crash cuts at most this line short
            file.write(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")


def _plain(values: np.ndarray, dtype: Any) -> list:
    """Short JSON: whole numbers without a point, truth as 0 and 1, six decimals, null for what is not a number."""
    if dtype is not np.float64:
        return np.asarray(values).astype(np.int64).tolist()
    return [x if math.isfinite(x) else None for x in np.round(np.asarray(values, dtype=np.float64), 6).tolist()]


def _read(
    file: Path, index: dict[str, int], start: int = 0, lines_before: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where each batch ends in the file, and its arrays; keys not met before are added to `index`."""
    end = start
    with open(file, "rb") as lines:
        lines.seek(start)
        for number, line in enumerate(lines, lines_before + 1):
            if not line.endswith(b"\n"):
                return  # cut short by a crash
            end += len(line)
            try:
                yield end, _arrays_of(json.loads(line), index)
            # RecursionError of lists within lists, OverflowError of numbers without end
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
                kind = "" if isinstance(error, InvalidInputError) else f"{type(error).__name__}: "
                raise InvalidInputError(
                    f"Line {number} of {printable(str(file))} is not a generation batch "
                    f"({kind}{printable(str(error), 200)}); restore the file, or remove the line."
                ) from error


def _arrays_of(line: dict[str, Any], index: dict[str, int]) -> dict[str, Any]:
    """The fields of a line, each checked; a hand or another program may have written it."""
    line = {"allocation": ""} | line  # not vital
    arrays = {name: _checked(name, [line[name]], *rule)[0] for name, rule in _PER_BATCH.items()}
    keys = line["keys"]
    if not isinstance(keys, list) or not keys or not set(map(type, keys)) <= {str}:
        raise InvalidInputError("keys must be a list of text")
    line = {name: [0] * len(keys) for name in ("predicted", "looks", "before")} | line  # what a run has none of
    for name, rule in _PER_PROMPT.items():
        arrays[name] = _checked(name, line[name], *rule)
        if len(arrays[name]) != len(keys):
            raise InvalidInputError(f"{name} has {len(arrays[name])} values for {len(keys)} keys")
    for less, more in (("successes", "trials"), ("trials", "counts")):
        if (arrays[less] > arrays[more]).any():
            raise InvalidInputError(f"{less} must not exceed {more}")
    arrays["prompt"] = np.array([index.setdefault(key, len(index)) for key in keys], dtype=np.int64)
    return arrays


def _checked(name: str, values: Any, dtype: Any, low: float | None, high: float | None) -> np.ndarray:
    """`values` as an array of shape `(len(values),)`, if they are of the type and within the range."""
    allowed, what = {
        np.str_: ({str}, "text"),
        np.int64: ({int}, "whole numbers"),
        np.bool_: ({int}, "0 or 1"),
        np.float64: ({int, float, type(None)}, "numbers or null"),
    }[dtype]
    if not isinstance(values, list) or not set(map(type, values)) <= allowed:
        raise InvalidInputError(f"{name} must be {what}")
    if dtype is np.str_:
        return np.array(values, dtype=dtype)
    numbers = np.array(values, dtype=np.float64 if dtype is np.float64 else np.int64)  # null becomes NaN
    if not (((numbers >= low) & (numbers <= high)) | np.isnan(numbers)).all():
        within = "" if dtype is np.bool_ else f" from {low:g} to {high:g}"
        raise InvalidInputError(f"{name} must be {what}{within}")
    return numbers.astype(dtype)

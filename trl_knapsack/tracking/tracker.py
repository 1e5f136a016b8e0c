"""What is known of each prompt's success rate: discounted Beta evidence, one row of a few numbers per prompt."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._notebook import html_table
from ..allocation.difficulty import DIFFICULTIES, difficulty
from ..allocation.evidence import Evidence
from ..errors import InvalidInputError
from .difficulty_prior import DifficultyPrior
from .state_file import DIFFICULTY, FIELDS, MAX_COUNT, checked_state, read_state, write_state
from .text import printable


def check_success_threshold(success_threshold: float) -> None:
    """
    Raises:
        `ValueError`: if it is no finite reward.
    """
    if not np.isfinite(success_threshold):
        raise InvalidInputError(f"success_threshold ({success_threshold}) must be a finite reward, for example 0.5.")


class SuccessRateTracker:
    """
    Success rates of prompts under a policy that moves.

    Evidence ages because the policy moves: at each new visit of a prompt its old counts are multiplied by `decay`, then
    the newest visit is added at full weight. A prompt that was never scored keeps the prior and is reported as unseen;
    it is never counted as failed. Knows nothing of torch, of ranks, or of where files live.

    Args:
        prior (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
            Beta prior of a prompt's success rate (successes, failures). The default takes every rate for equally likely.
        decay (`float`, *optional*, defaults to `0.85`):
            Weight that old evidence keeps at each new visit, in `[0, 1]`. 0 keeps only the newest visit.
        difficulty ([`DifficultyPrior`], *optional*):
            What columns of the dataset say of prompts that were not visited yet. It learns as visits are observed.

    Example:

    ```python
    >>> from trl_knapsack import SuccessRateTracker

    >>> tracker = SuccessRateTracker()
    >>> tracker.observe(["a", "b"], successes=[3, 0], trials=[4, 4])
    >>> evidence = tracker.evidence(["a", "b", "never seen"])
    >>> evidence.alpha, evidence.beta, evidence.visits
    (array([4., 1., 1.]), array([2., 5., 1.]), array([1, 1, 0]))
    ```
    """

    def __init__(
        self, prior: Sequence[float] = (1.0, 1.0), decay: float = 0.85, difficulty: DifficultyPrior | None = None
    ):
        try:
            successes, failures = (float(x) for x in prior)
        except (TypeError, ValueError):  # not two, or no numbers
            successes = failures = np.nan
        if not (0 < successes < np.inf and 0 < failures < np.inf):
            raise InvalidInputError(f"success_prior {prior!r} must be two positive numbers, for example (1.0, 1.0).")
        if not 0.0 <= decay <= 1.0:
            raise InvalidInputError(f"success_decay ({decay}) must lie in [0, 1], for example 0.85.")
        self.prior = (successes, failures)
        self.decay = float(decay)
        self.difficulty = difficulty
        self._index: dict[str, int] = {}
        self._arrays = {name: np.empty(0, dtype) for name, dtype in FIELDS.items()}

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __repr__(self) -> str:
        prior = ", ".join(f"{x:g}" for x in self.prior)
        return f"SuccessRateTracker({len(self):,} prompts, {self._mean()}, prior ({prior}), decay {self.decay:g})"

    def _repr_html_(self) -> str:
        """For notebooks: how many prompts are how difficult, by their newest visit."""
        last_rate = self._arrays["last_rate"][: len(self)]
        scored = ~np.isnan(last_rate)
        classes = np.bincount(difficulty(last_rate[scored]), minlength=len(DIFFICULTIES))
        rows = {name.replace("_", " "): f"{n:,}" for name, n in zip(DIFFICULTIES, classes, strict=True)}
        rows["never scored"] = f"{(~scored).sum():,}"
        return html_table((), rows.items(), caption=repr(self))

    def _mean(self) -> str:
        if not len(self):
            return "nothing observed"
        successes, failures = (self._arrays[name][: len(self)] for name in ("successes", "failures"))
        rates = (successes + self.prior[0]) / (successes + failures + sum(self.prior))
        return f"mean success rate {rates.mean():.2f}"

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all prompts, in the order in which they were first observed."""
        return tuple(self._index)

    def observe(
        self,
        keys: Sequence[str],
        successes: ArrayLike,
        trials: ArrayLike,
        *,
        rollouts: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
        earlier: tuple[ArrayLike, ArrayLike] | None = None,
        features: np.ndarray | None = None,
    ) -> None:
        """
        Add one visit of each prompt. Two entries of one key are one visit, merged.

        Args:
            keys (`Sequence[str]` of length `P`): Prompt keys.
            successes (`(P,)`): Completions that succeeded.
            trials (`(P,)`): Completions that were scored. A visit without any says nothing about the success rate.
            rollouts (`(P,)`, *optional*, defaults to `trials`): Completions generated, scored or not.
            tokens (`(P,)`, *optional*): Completion tokens generated; without it, lengths are not updated.
            earlier (`tuple[(P,), (P,)]`, *optional*):
                Successes and trials of the same visit that were observed already. Where there were trials, the visit
                goes on, and what is known does not age again.
            features (`(P, D)`, *optional*):
                Features of the prompts, for `difficulty` to learn from. It learns from the beginning of each visit.
        """
        successes, trials = (np.asarray(x, dtype=np.float64) for x in (successes, trials))
        rollouts = trials if rollouts is None else np.asarray(rollouts, dtype=np.float64)
        lengths_known = tokens is not None
        tokens = np.asarray(tokens, dtype=np.float64) if lengths_known else np.zeros(len(keys))
        nothing = np.zeros(len(keys))
        won_before, tried_before = (np.asarray(x, dtype=np.float64) for x in earlier or (nothing, nothing))
        for name, array in (
            ("successes", successes),
            ("trials", trials),
            ("rollouts", rollouts),
            ("tokens", tokens),
            ("earlier[0]", won_before),
            ("earlier[1]", tried_before),
        ):
            if array.shape != (len(keys),):
                raise InvalidInputError(
                    f"{name} has shape {array.shape}, but there are {len(keys)} keys; give one per key."
                )
            if not ((array >= 0) & (array <= MAX_COUNT)).all():  # not NaN either
                raise InvalidInputError(f"{name} must be finite and not negative, at most {MAX_COUNT:g}; got {array}.")
        if (successes > trials).any():
            raise InvalidInputError(f"successes {successes} must not exceed trials {trials}.")
        for key in keys:
            if not isinstance(key, str):
                raise InvalidInputError(
                    f"Key {printable(repr(key), 80)} is a {type(key).__name__}, but keys are text; give str(key) of each."
                )

        if self.difficulty is not None and features is not None:
            first = tried_before == 0
            self.difficulty.observe(features[first], successes[first], trials[first])

        rows = self._rows_of(keys)
        visited, slot = np.unique(rows, return_inverse=True)
        begins = (trials > 0) & (tried_before == 0)
        successes, trials, rollouts, tokens, won_before, tried_before, begins = (
            np.bincount(slot, weights=x, minlength=len(visited))
            for x in (successes, trials, rollouts, tokens, won_before, tried_before, begins)
        )

        scored = trials > 0
        at, won, tried = visited[scored], successes[scored], trials[scored]
        goes_on = begins == 0
        keep = np.where(goes_on, 1.0, self.decay)
        self._arrays["successes"][at] = keep[scored] * self._arrays["successes"][at] + won
        self._arrays["failures"][at] = keep[scored] * self._arrays["failures"][at] + (tried - won)
        self._arrays["last_rate"][at] = (won + won_before[scored]) / (tried + tried_before[scored])
        self._arrays["visits"][at] += ~goes_on[scored]
        if lengths_known:
            keep = np.where(tried_before > 0, keep, self.decay)  # of a visit without a score, too
            self._arrays["rollouts"][visited] = keep * self._arrays["rollouts"][visited] + rollouts
            self._arrays["tokens"][visited] = keep * self._arrays["tokens"][visited] + tokens

    def evidence(
        self, keys: Sequence[str], features: np.ndarray | None = None, goes_on: np.ndarray | None = None
    ) -> Evidence:
        """
        What is known of these prompts; unseen ones get the prior. Does not change the tracker.

        Args:
            keys (`Sequence[str]` of length `P`): Prompt keys, in any order, repeated or not.
            features (`(P, D)`, *optional*):
                Their features. What `difficulty` predicts from them takes the place of the prior at a prompt's first visit.
            goes_on (`(P,)`, bool, *optional*): Whose newest visit is not over: they were looked at.

        Returns:
            [`Evidence`]
        """
        rows = np.array([self._index.get(key, -1) for key in keys], dtype=np.int64)  # (P,)
        known = rows >= 0

        def take(name: str, otherwise: float) -> np.ndarray:
            values = np.full(len(rows), otherwise, dtype=FIELDS[name])
            values[known] = self._arrays[name][rows[known]]
            return values

        rollouts, visits = take("rollouts", 0.0), take("visits", 0)
        prior: Any = self.prior  # (successes, failures), of all or of each
        if self.difficulty is not None and features is not None:
            first = visits <= (0 if goes_on is None else goes_on)
            prior = (
                np.where(first, p, flat) for p, flat in zip(self.difficulty.predict(features), prior, strict=True)
            )
        successes, failures = prior
        return Evidence(
            keys=tuple(keys),
            alpha=take("successes", 0.0) + successes,
            beta=take("failures", 0.0) + failures,
            last_rate=take("last_rate", np.nan),
            visits=visits,
            # Where next to nothing is left of the count, the ratio is noise, and may be infinite.
            mean_length=np.divide(
                take("tokens", 0.0), rollouts, out=np.full(len(rows), np.nan), where=rollouts > 1e-9
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        """
        Everything that was learnt: the keys, one array per field, and those of `difficulty` under names that begin with
        `"difficulty."`. `prior` and `decay` are the run's, not state.
        """
        arrays = {name: array[: len(self)].copy() for name, array in self._arrays.items()}
        return {"keys": self.keys} | arrays | self._difficulty_state()

    def _difficulty_state(self) -> dict[str, np.ndarray]:
        state = {} if self.difficulty is None else self.difficulty.state_dict()
        return {f"{DIFFICULTY}{name}": array for name, array in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Replace what was learnt by `state`, strictly.

        Raises:
            `ValueError`: if a field is missing, unknown, of the wrong length or out of its range, or a key is repeated.
        """
        expected = {"keys", *FIELDS}
        difficulty = {name: array for name, array in state.items() if name.startswith(DIFFICULTY)}
        there = set(state) - set(difficulty)
        if there != expected:
            missing, unknown = sorted(expected - there), sorted(there - expected)
            raise InvalidInputError(f"success-rate state has missing fields {missing} and unknown fields {unknown}.")
        arrays = {}
        for name, dtype in FIELDS.items():
            try:
                arrays[name] = np.array(state[name], dtype=dtype)
            except (TypeError, ValueError, OverflowError) as error:
                raise InvalidInputError(f"success-rate state field {name!r} is no array of numbers: {error}") from None
        index, arrays = checked_state(list(state["keys"]), arrays)
        self._take(index, arrays | difficulty)

    def _take(self, index: dict[str, int], arrays: dict[str, np.ndarray]) -> None:
        """All or nothing: the arrays of [`FIELDS`], and those of the difficulty columns."""
        if self.difficulty is not None:
            state = {name.removeprefix(DIFFICULTY): array for name, array in arrays.items() if name not in FIELDS}
            self.difficulty.load_state_dict(state)
        self._index, self._arrays = index, {name: arrays[name] for name in FIELDS}

    def save(self, path: str | os.PathLike) -> None:
        """
        Write the state to `path` (safetensors, with a digest), whole or not at all.

        Raises:
            `OSError`: if it can't be written; what was there before is still there.
        """
        arrays = {name: array[: len(self)] for name, array in self._arrays.items()}
        write_state(path, self._index, arrays | self._difficulty_state())

    def load(self, path: str | os.PathLike) -> None:
        """
        Replace what was learnt by the state in `path`. Nothing changes if that can't be used.

        Raises:
            `FileNotFoundError`: if there is no such file.
            `ValueError`: naming the file, if it is truncated, damaged, foreign, or of another version.
        """
        self._take(*read_state(path))

    def _rows_of(self, keys: Sequence[str]) -> np.ndarray:
        """Row of each key, `(P,)`; new keys get new rows."""
        rows = np.array([self._index.setdefault(key, len(self._index)) for key in keys], dtype=np.int64)
        capacity, needed = len(self._arrays["visits"]), len(self._index)
        if needed > capacity:
            for name, array in self._arrays.items():
                grown = np.zeros(max(needed, 2 * capacity), dtype=array.dtype)
                grown[:capacity] = array
                if name == "last_rate":
                    grown[capacity:] = np.nan
                self._arrays[name] = grown
        return rows

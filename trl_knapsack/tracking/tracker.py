"""What is known of each prompt's success rate: discounted Beta evidence, one row of a few numbers per prompt."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..allocation.evidence import Evidence


STATE_FORMAT = "trl_knapsack.success_rates"
STATE_VERSION = 1

# The arrays kept per prompt, 48 bytes in all.
_FIELDS = {
    "successes": np.float64,  # decayed count of successful completions
    "failures": np.float64,  # decayed count of failed completions
    "last_rate": np.float64,  # success rate of the newest visit, NaN while no completion was scored
    "visits": np.int64,  # visits with at least one scored completion
    "rollouts": np.float64,  # decayed count of completions, scored or not
    "tokens": np.float64,  # decayed count of completion tokens
}


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

    def __init__(self, prior: tuple[float, float] = (1.0, 1.0), decay: float = 0.85):
        prior = tuple(float(x) for x in prior)
        if len(prior) != 2 or not all(np.isfinite(x) and x > 0 for x in prior):
            raise ValueError(f"success_prior {prior} must be two positive numbers, for example (1.0, 1.0).")
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"success_decay ({decay}) must lie in [0, 1], for example 0.85.")
        self.prior = prior
        self.decay = float(decay)
        self._index: dict[str, int] = {}
        self._arrays = {name: np.empty(0, dtype) for name, dtype in _FIELDS.items()}

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: str) -> bool:
        return key in self._index

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all prompts, in the order in which they were first observed."""
        return tuple(self._index)

    def observe(
        self,
        keys: Sequence[str],
        successes: Sequence[float],
        trials: Sequence[float],
        *,
        rollouts: Sequence[float] | None = None,
        tokens: Sequence[float] | None = None,
    ) -> None:
        """
        Add one visit of each prompt. Two entries of one key are one visit, merged.

        Args:
            keys (`Sequence[str]` of length `P`): Prompt keys.
            successes (`(P,)`): Completions that succeeded.
            trials (`(P,)`): Completions that were scored. A visit without any says nothing about the success rate.
            rollouts (`(P,)`, *optional*, defaults to `trials`): Completions generated, scored or not.
            tokens (`(P,)`, *optional*): Completion tokens generated; without it, lengths are not updated.
        """
        successes, trials = (np.asarray(x, dtype=np.float64) for x in (successes, trials))
        rollouts = trials if rollouts is None else np.asarray(rollouts, dtype=np.float64)
        lengths_known = tokens is not None
        tokens = np.asarray(tokens, dtype=np.float64) if lengths_known else np.zeros(len(keys))
        for name, array in (("successes", successes), ("trials", trials), ("rollouts", rollouts), ("tokens", tokens)):
            if array.shape != (len(keys),):
                raise ValueError(f"{name} has shape {array.shape}, but there are {len(keys)} keys; give one per key.")
            if not (np.isfinite(array).all() and (array >= 0).all()):
                raise ValueError(f"{name} must be finite and not negative, got {array}.")
        if (successes > trials).any():
            raise ValueError(f"successes {successes} must not exceed trials {trials}.")
        for key in keys:
            if not isinstance(key, str):
                raise ValueError(f"Key {key!r} is a {type(key).__name__}, but keys are text; give str(key) of each.")

        rows = self._rows_of(keys)
        visited, slot = np.unique(rows, return_inverse=True)
        successes, trials, rollouts, tokens = (
            np.bincount(slot, weights=x, minlength=len(visited)) for x in (successes, trials, rollouts, tokens)
        )

        scored = trials > 0
        at, won, tried = visited[scored], successes[scored], trials[scored]
        self._arrays["successes"][at] = self.decay * self._arrays["successes"][at] + won
        self._arrays["failures"][at] = self.decay * self._arrays["failures"][at] + (tried - won)
        self._arrays["last_rate"][at] = won / tried
        self._arrays["visits"][at] += 1
        if lengths_known:
            self._arrays["rollouts"][visited] = self.decay * self._arrays["rollouts"][visited] + rollouts
            self._arrays["tokens"][visited] = self.decay * self._arrays["tokens"][visited] + tokens

    def evidence(self, keys: Sequence[str]) -> Evidence:
        """
        What is known of these prompts; unseen ones get the prior. Does not change the tracker.

        Args:
            keys (`Sequence[str]` of length `P`): Prompt keys, in any order, repeated or not.

        Returns:
            [`Evidence`]
        """
        rows = np.array([self._index.get(key, -1) for key in keys], dtype=np.int64)  # (P,)
        known = rows >= 0

        def take(name: str, otherwise: float) -> np.ndarray:
            values = np.full(len(rows), otherwise, dtype=_FIELDS[name])
            values[known] = self._arrays[name][rows[known]]
            return values

        rollouts = take("rollouts", 0.0)
        return Evidence(
            keys=tuple(keys),
            alpha=take("successes", 0.0) + self.prior[0],
            beta=take("failures", 0.0) + self.prior[1],
            last_rate=take("last_rate", np.nan),
            visits=take("visits", 0),
            mean_length=np.divide(take("tokens", 0.0), rollouts, out=np.full(len(rows), np.nan), where=rollouts > 0),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learnt: the keys and one array per field. `prior` and `decay` are the run's, not state."""
        return {"keys": self.keys} | {name: array[: len(self)].copy() for name, array in self._arrays.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Replace what was learnt by `state`, strictly.

        Raises:
            `ValueError`: if a field is missing, unknown, of the wrong length or not finite, or a key is repeated.
        """
        expected = {"keys", *_FIELDS}
        if set(state) != expected:
            missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
            raise ValueError(f"success-rate state has missing fields {missing} and unknown fields {unknown}.")
        keys = [str(key) for key in state["keys"]]
        arrays = {name: np.array(state[name], dtype=dtype) for name, dtype in _FIELDS.items()}
        for name, array in arrays.items():
            if array.shape != (len(keys),):
                raise ValueError(f"success-rate state field {name!r} has shape {array.shape} for {len(keys)} keys.")
            if (
                name != "last_rate" and not (np.isfinite(array) & (array >= 0)).all()
            ):  # it may be anyone's, from the Hub
                raise ValueError(f"success-rate state field {name!r} has values that are not finite, or negative.")
        index = {key: row for row, key in enumerate(keys)}
        if len(index) != len(keys):
            raise ValueError("success-rate state repeats a prompt key.")
        self._index, self._arrays = index, arrays

    def save(self, path: str | os.PathLike) -> None:
        """Write the state to `path` (`.npz`, no pickle), whole or not at all."""
        state = self.state_dict()
        encoded = [key.encode() for key in state.pop("keys")]
        arrays = {
            "format": np.array(STATE_FORMAT),
            "version": np.array(STATE_VERSION),
            "key_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "key_lengths": np.array([len(key) for key in encoded], dtype=np.int32),
        }
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            np.savez(file, **arrays, **state)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def load(self, path: str | os.PathLike) -> None:
        """
        Replace what was learnt by the state in `path`.

        Raises:
            `FileNotFoundError`: if there is no such file.
            `ValueError`: if it is truncated, foreign, or of a newer version.
        """
        try:
            with zipfile.ZipFile(path):  # np.load would take a pickle or a bare array for something else
                pass
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is not a readable success-rate state ({error}); restore or remove it."
            ) from error
        if str(arrays.pop("format", "")) != STATE_FORMAT or not {"version", "key_lengths", "key_bytes"} <= set(arrays):
            raise ValueError(f"{path} was not written by trl_knapsack; point to a knapsack_state.npz of a checkpoint.")
        version = int(arrays.pop("version"))
        if version != STATE_VERSION:
            raise ValueError(
                f"{path} has state version {version}, this trl_knapsack reads version {STATE_VERSION}; "
                "install the version that wrote it."
            )
        ends = np.cumsum(arrays.pop("key_lengths"))
        blob = arrays.pop("key_bytes").tobytes()
        keys = (
            [blob[start:end].decode() for start, end in zip([0, *ends[:-1]], ends, strict=True)] if len(ends) else []
        )
        self.load_state_dict({"keys": keys, **arrays})

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

"""What the dataset's difficulty columns say of a prompt before its first rollout: how they are read, and what was learnt."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from .features import DifficultyColumns
from .prior import SuccessPrior


_COLUMNS = "columns"  # of the state: how they are read, as JSON text
_MOST_FEATURES = 512  # of a state that may be anyone's: memory grows with their square


class DifficultyPrior:
    """
    A [`SuccessPrior`] on the columns of a dataset, which are read from the rows that come first.

    Args:
        columns (`Sequence[str]`): Names of columns, as for [`DifficultyColumns`].
        flat (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
            Prior while the columns predict nothing (successes, failures).

    Attributes:
        columns (`tuple[str, ...]`): Their names.

    Example:

    ```python
    >>> from trl_knapsack.tracking import DifficultyPrior

    >>> prior = DifficultyPrior(["solved"])
    >>> prior.read([{"solved": "1/8"}, {"solved": "7/8"}])
    >>> prior.features([{"solved": 0.875}])
    array([[1.]])
    >>> prior.believed
    'flat'

    ```
    """

    def __init__(self, columns: Sequence[str], flat: Sequence[float] = (1.0, 1.0)):
        self.columns = tuple(columns)
        self.flat = flat
        self._reader: DifficultyColumns | None = None
        self._prior: SuccessPrior | None = None

    def __repr__(self) -> str:
        return f"DifficultyPrior({', '.join(self.columns)}; believes {self.believed})"

    @property
    def believed(self) -> str:
        """What new prompts are predicted by: `"features"` or `"flat"`."""
        return "flat" if self._prior is None else self._prior.believed

    def read(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """
        Find out how the columns are to be read. It stays so, whatever rows come later.

        Args:
            rows (`Iterable[Mapping]`): The dataset if all of it can be read, else the first batch.

        Raises:
            `ValueError`: if a column does not exist, or holds nothing that tells prompts apart.
        """
        self._reader = DifficultyColumns(self.columns, rows)
        self._prior = SuccessPrior(len(self._reader), self.flat)

    def features(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Features of rows, `(P, D)`, NaN where unknown. If nothing was read yet, these rows are."""
        if self._reader is None:
            self.read(rows)
        assert self._reader is not None
        return self._reader.features(rows)

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pseudo-successes and pseudo-failures of prompts `(P, D)` that were never seen, as of [`SuccessPrior.predict`]."""
        return self._learning.predict(features)

    def observe(self, features: np.ndarray, successes: np.ndarray, trials: np.ndarray) -> None:
        """Score what was predicted of these prompts, then learn from them, as [`SuccessPrior.observe`]."""
        self._learning.observe(features, successes, trials)

    def reweigh(self) -> None:
        """Keep what was learnt and forget how well it predicted: for a run that goes on with another model."""
        if self._prior is not None:
            self._prior.reweigh()

    def metrics(self) -> dict[str, float]:
        """The `knapsack/prior_...` metrics. `docs/metrics.md` describes each."""
        metrics = {"knapsack/prior_strength": 0.0 if self._prior is None else self._prior.kappa}
        if self._prior is not None and not np.isnan(self._prior.gain):
            metrics["knapsack/prior_gain"] = self._prior.gain
        return metrics

    def state_dict(self) -> dict[str, np.ndarray]:
        """How the columns are read, as JSON text in uint8, and what was learnt, in float64. Empty before they were read."""
        if self._reader is None:
            return {}
        text = json.dumps(self._reader.state_dict()).encode()
        return {_COLUMNS: np.frombuffer(text, np.uint8).copy()} | self._learning.state_dict()

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """
        Replace what was learnt by `state`. If that is of other columns, or of none, nothing was learnt; it stays known
        how the columns are read. Nothing changes if it can't be used.

        Raises:
            `ValueError`: if it is not what `state_dict` gives.
        """
        if not state:
            self._forget()
            return
        state = dict(state)
        try:
            described = json.loads(bytes(np.asarray(state.pop(_COLUMNS), np.uint8)))
            reader = DifficultyColumns.from_state_dict(described)
        except (KeyError, AttributeError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InvalidInputError(
                f"the state of the difficulty columns can't be read ({error!r}); restore it from a copy."
            ) from None
        if len(reader) > _MOST_FEATURES:
            raise InvalidInputError(
                f"the state of the difficulty columns has {len(reader)} features, more than {_MOST_FEATURES}; restore it "
                "from a copy."
            )
        prior = SuccessPrior(len(reader), self.flat)
        prior.load_state_dict(state)
        if tuple(described) == self.columns:
            self._reader, self._prior = reader, prior
        else:
            self._forget()

    def _forget(self) -> None:
        self._prior = None if self._reader is None else SuccessPrior(len(self._reader), self.flat)

    @property
    def _learning(self) -> SuccessPrior:
        if self._prior is None:
            raise RuntimeError("The difficulty columns were not read yet; call read() first.")
        return self._prior

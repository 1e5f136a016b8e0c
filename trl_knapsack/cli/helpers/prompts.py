"""What the commands read: tables of success rates, and the state that a run keeps of its prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidInputError


if TYPE_CHECKING:
    import numpy as np

    from ...allocation.evidence import Evidence
    from ...tracking.tracker import SuccessRateTracker


def load_tracker(path: str | Path, prior: Sequence[float] = (1.0, 1.0), decay: float = 0.85) -> "SuccessRateTracker":
    """The tracker of a saved state, with the prior and decay that are given: a state holds neither."""
    from ...tracking.state_file import find_state
    from ...tracking.tracker import SuccessRateTracker

    tracker = SuccessRateTracker(prior, decay)
    tracker.load(find_state(path))
    return tracker


@dataclass(frozen=True)
class PromptTable:
    """
    Success rates from a file, prompt by prompt.

    Attributes:
        ids (`list[str]` of length `P`): Names of the prompts; line numbers if there is no such column.
        evidence ([`Evidence`]): What is known of them.
        rates (`np.ndarray` of shape `(P,)` or `None`): Rates that are taken as exact, without trials behind them.
        costs (`np.ndarray` of shape `(P,)` or `None`): Expected tokens of a rollout.
    """

    ids: list[str]
    evidence: "Evidence"
    rates: "np.ndarray | None" = None
    costs: "np.ndarray | None" = None


def read_prompts(path: str | Path, prior: Sequence[float] = (1.0, 1.0)) -> PromptTable:
    """
    Prompts of a table, a state file or the folder of a run.

    A table, `.csv`, `.tsv` or `.jsonl`, has the columns `success_rate`, `successes` and `trials` (or `c` and `n`), or `alpha`
    and `beta`; `id` and `cost` are optional. Other columns are ignored.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if it does not hold that, with the line.
    """
    import numpy as np

    from ...tracking.rate_files import is_rate_file

    if is_rate_file(path):
        return _of_table(path, prior)
    if Path(path).is_file() and not str(path).endswith(".safetensors"):
        raise InvalidInputError(
            f"{path} is neither a .csv, .tsv, .jsonl or .safetensors file nor the folder of a run."
        )
    tracker = load_tracker(path, prior)
    evidence = tracker.evidence(tracker.keys)
    known = np.isfinite(evidence.mean_length) & (evidence.mean_length > 0)
    mean = evidence.mean_length[known].mean() if known.any() else None
    return PromptTable(
        list(tracker.keys), evidence, None, None if mean is None else np.where(known, evidence.mean_length, mean)
    )


def _of_table(path: str | Path, prior: Sequence[float]) -> PromptTable:
    import numpy as np

    from ...allocation.evidence import Evidence
    from ...tracking.rate_files import read_table

    table = read_table(path)
    has, number = set(table.columns), len(table.rows)
    prior_a, prior_b = prior
    rates = None
    if {"successes", "trials"} <= has:
        successes, trials = table.successes_and_trials()
        alpha, beta = prior_a + successes, prior_b + trials - successes
        last_rate = np.divide(successes, trials, out=np.full(number, np.nan), where=trials > 0)
        visits = (trials > 0).astype(np.int64)
    elif {"alpha", "beta"} <= has:
        alpha, beta = table.numbers("alpha", 1e-12), table.numbers("beta", 1e-12)
        last_rate, visits = alpha / (alpha + beta), np.ones(number, np.int64)
    elif "success_rate" in has:
        rates = last_rate = table.numbers("success_rate", 0, 1)
        alpha, beta = prior_a + rates, prior_b + 1 - rates
        visits = np.ones(number, np.int64)
    else:
        raise InvalidInputError(
            f"{path} has the columns {table.columns}; it needs success_rate, or successes and trials, or alpha and beta."
        )
    costs = table.numbers("cost", 1e-12) if "cost" in has else None
    ids = [str(row.get("id")) if "id" in has else str(i + 1) for i, (_, row) in enumerate(table.rows)]
    return PromptTable(
        ids, Evidence(tuple(ids), alpha, beta, last_rate, visits, np.full(number, np.nan)), rates, costs
    )

"""What the commands read: tables of success rates, and the state that a run keeps of its prompts."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidInputError, MissingFileError


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
    Prompts of a CSV file, a state file or the folder of a run.

    A CSV file has a header with `success_rate`, with `successes` and `trials`, or with `alpha` and `beta`; `id` and `cost`
    are optional. Other columns are ignored.

    Raises:
        `FileNotFoundError`: if there is no such file.
        `ValueError`: if it does not hold that, with the line.
    """
    if not str(path).lower().endswith((".csv", ".tsv")):
        if Path(path).is_file() and not str(path).endswith(".safetensors"):
            raise InvalidInputError(f"{path} is neither a .csv, .tsv or .safetensors file nor the folder of a run.")
        import numpy as np

        tracker = load_tracker(path, prior)
        evidence = tracker.evidence(tracker.keys)
        known = np.isfinite(evidence.mean_length) & (evidence.mean_length > 0)
        mean = evidence.mean_length[known].mean() if known.any() else None
        return PromptTable(
            list(tracker.keys), evidence, None, None if mean is None else np.where(known, evidence.mean_length, mean)
        )
    return _read_csv(Path(path), prior)


def _read_csv(path: Path, prior: Sequence[float]) -> PromptTable:
    import numpy as np

    from ...allocation.evidence import Evidence

    if not path.is_file():
        raise MissingFileError(f"There is no file {path}; name a .csv or .tsv file, or the folder of a run.")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        head = reader.fieldnames or []
        rows = [(reader.line_num, row) for row in reader]
    if not rows:
        raise InvalidInputError(f"{path} has no rows; give a header and one line per prompt.")

    def numbers(name: str, at_least: float, at_most: float = float("inf")) -> np.ndarray:
        column = np.empty(len(rows))
        for i, (line, row) in enumerate(rows):
            try:
                column[i] = float(row[name])
            except (TypeError, ValueError):
                column[i] = np.nan
            if not at_least <= column[i] <= at_most:
                rule = f"between {at_least:g} and {at_most:g}" if at_most < float("inf") else f"at least {at_least:g}"
                raise InvalidInputError(f"Line {line} of {path}: {name} ({row[name]!r}) must be a number {rule}.")
        return column

    prior_a, prior_b = prior
    rates = None
    if {"successes", "trials"} <= set(head):
        successes, trials = numbers("successes", 0), numbers("trials", 0)
        for (line, _), won, tried in zip(rows, successes, trials, strict=True):
            if won > tried:
                raise InvalidInputError(
                    f"Line {line} of {path}: successes ({won:g}) must not exceed trials ({tried:g})."
                )
        alpha, beta = prior_a + successes, prior_b + trials - successes
        last_rate = np.divide(successes, trials, out=np.full(len(rows), np.nan), where=trials > 0)
        visits = (trials > 0).astype(np.int64)
    elif {"alpha", "beta"} <= set(head):
        alpha, beta = numbers("alpha", 1e-12), numbers("beta", 1e-12)
        last_rate, visits = alpha / (alpha + beta), np.ones(len(rows), np.int64)
    elif "success_rate" in head:
        rates = last_rate = numbers("success_rate", 0, 1)
        alpha, beta = prior_a + rates, prior_b + 1 - rates
        visits = np.ones(len(rows), np.int64)
    else:
        raise InvalidInputError(
            f"{path} has the columns {head}; it needs success_rate, or successes and trials, or alpha and beta."
        )
    costs = numbers("cost", 1e-12) if "cost" in head else None
    ids = [row["id"] if "id" in head else str(i + 1) for i, (_, row) in enumerate(rows)]
    return PromptTable(
        ids, Evidence(tuple(ids), alpha, beta, last_rate, visits, np.full(len(rows), np.nan)), rates, costs
    )

"""Prompts of a run that stand out, and how difficulty changed."""

import numpy as np

from ..allocation.difficulty import difficulty
from ..tracking.history import RolloutHistory


#: Scored rollouts without any success after which a prompt is called stuck.
STUCK_AFTER = 32


def standouts(history: RolloutHistory, top: int) -> dict[str, np.ndarray]:
    """
    The `top` prompts of each kind, as indices into `history.keys`, the most outstanding first.

    Returns:
        `dict[str, np.ndarray]`: `"stuck"` never succeeded in [`STUCK_AFTER`] scored rollouts or more; `"hardest"` succeeded,
        but seldom; `"improved"` have the largest rise of the success rate from the first half of their visits to the
        second; `"expensive"` took the most rollouts.
    """
    prompts, visits = len(history.keys), history.by_visit
    rollouts = history.per_prompt(history.counts)
    successes, trials = history.per_prompt(history.successes), history.per_prompt(history.trials)
    rate = np.divide(successes, trials, out=np.zeros(prompts), where=trials > 0)

    number = np.arange(len(visits["prompt"])) - np.flatnonzero(visits["first"])[np.cumsum(visits["first"]) - 1]
    late = 2 * number >= np.bincount(visits["prompt"], minlength=prompts)[visits["prompt"]]
    won, tried = (
        np.stack([np.bincount(visits["prompt"], visits[name] * half, minlength=prompts) for half in (~late, late)])
        for name in ("successes", "trials")
    )  # (2, K) each: first half, second half
    early_rate, late_rate = np.divide(won, tried, out=np.full(won.shape, np.nan), where=tried > 0)

    scores = {  # a prompt with 0 does not count
        "stuck": np.where((successes == 0) & (trials >= STUCK_AFTER), rollouts, 0),
        "hardest": np.where(successes > 0, 1 - rate, 0),
        "improved": np.maximum(np.nan_to_num(late_rate - early_rate), 0),
        "expensive": rollouts,
    }
    ranked = {kind: np.argsort(-score, kind="stable")[:top] for kind, score in scores.items()}
    return {kind: rows[scores[kind][rows] > 0] for kind, rows in ranked.items()}


def transitions(history: RolloutHistory) -> np.ndarray:
    """Prompts by difficulty class at their first visit (rows) and at their last, `(5, 5)`, of those with two or more."""
    visits = history.by_visit
    first, last = (
        visits["success_rate"][visits[end] & ~(visits["first"] & visits["last"])] for end in ("first", "last")
    )
    table = np.zeros((5, 5), dtype=np.int64)
    np.add.at(table, (difficulty(first), difficulty(last)), 1)
    return table

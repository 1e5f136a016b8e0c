"""A run prompt by prompt, from its records or from its state."""

from dataclasses import dataclass

import numpy as np

from ..allocation.difficulty import DIFFICULTIES, difficulty
from ..tracking.history import RolloutHistory
from ..tracking.tracker import SuccessRateTracker
from .standouts import transitions


@dataclass(frozen=True)
class Summary:
    """
    What became of the `K` prompts of a run.

    Attributes:
        keys (`tuple[str, ...]` of length `K`): Prompt keys.
        believed_rate (`(K,)`): Mean of the posterior: after the last visit, or as the state has it.
        successes, trials (`(K,)`): Rollouts that succeeded and that were scored.
        rollouts, tokens (`(K,)`): Rollouts generated, and completion tokens, NaN if unknown.
        visits (`(K,)`): Visits with a scored rollout.
        stuck (`(K,)`, bool): Whether the prompt never succeeded in so many scored rollouts.
        classes (`(5,)`): Prompts of each difficulty class at their last visit.
        transitions (`(5, 5)` or `None`): Prompts by class at their first and at their last visit, of those with two.
        discounted (`bool`): Whether the numbers come from a state, in which old evidence has lost weight.
        steps (`int` or `None`): Optimizer steps that the records cover.
    """

    keys: tuple[str, ...]
    believed_rate: np.ndarray
    successes: np.ndarray
    trials: np.ndarray
    rollouts: np.ndarray
    tokens: np.ndarray
    visits: np.ndarray
    stuck: np.ndarray
    classes: np.ndarray
    transitions: np.ndarray | None = None
    discounted: bool = False
    steps: int | None = None

    def tables(self, top: int) -> dict[str, np.ndarray]:
        """Rows of the `top` prompts of each kind, by name."""
        seen = np.flatnonzero(self.visits > 0)
        stuck = np.flatnonzero(self.stuck)
        return {
            "hardest": seen[np.argsort(self.believed_rate[seen], kind="stable")][:top],
            "stuck": stuck[np.argsort(-self.trials[stuck], kind="stable")][:top],
            "most rollouts": np.argsort(-self.rollouts, kind="stable")[:top],
            "most tokens": np.argsort(-np.nan_to_num(self.tokens), kind="stable")[:top],
        }

    def headline(self) -> str:
        if self.discounted:
            return (
                f"{len(self.keys):,} prompts in a state. It knows no history: old rollouts have lost weight, so sums of "
                "rollouts and tokens are lower bounds. The records of a run (knapsack_records.jsonl) say more."
            )
        return (
            f"{len(self.keys):,} prompts, {int(self.rollouts.sum()):,} rollouts, {int(self.tokens.sum()):,} completion "
            f"tokens, up to step {self.steps}."
        )

    def stuck_sentence(self) -> str:
        share = self.rollouts[self.stuck].sum() / self.rollouts.sum()
        return f"{int(self.stuck.sum()):,} of {len(self.keys):,} prompts are stuck; they took {share:.1%} of the rollouts."

    def as_dict(self, top: int, texts: dict[str, str]) -> dict:
        def prompt(i: int) -> dict:
            fields = ("believed_rate", "successes", "trials", "rollouts", "tokens", "visits")
            known = {"prompt": self.keys[i]} | {name: getattr(self, name)[i] for name in fields}
            return known | ({"text": texts.get(self.keys[i])} if texts else {})

        return {
            "prompts": len(self.keys),
            "from": "state" if self.discounted else "records",
            "steps": self.steps,
            "rollouts": self.rollouts.sum(),
            "tokens": np.nansum(self.tokens),
            "stuck_prompts": self.stuck.sum(),
            "stuck_share_of_rollouts": self.rollouts[self.stuck].sum() / self.rollouts.sum(),
            **{name.replace(" ", "_"): [prompt(i) for i in rows] for name, rows in self.tables(top).items()},
            "difficulty": dict(zip(DIFFICULTIES, self.classes, strict=True)),
            "transitions": self.transitions,
        }


def of_history(history: RolloutHistory, stuck_after: int) -> Summary:
    """Summary of a run's records."""
    successes, trials, rollouts, tokens = (
        history.per_prompt(sums).astype(np.int64)
        for sums in (history.successes, history.trials, history.counts, history.tokens)
    )
    visits, prompts = history.by_visit, len(history.keys)
    newest = np.full(prompts, -1)
    newest[history.prompt] = np.arange(len(history.prompt))
    alpha = history.alpha[newest] + history.successes[newest]
    beta = history.beta[newest] + history.trials[newest] - history.successes[newest]
    return Summary(
        keys=history.keys,
        believed_rate=alpha / (alpha + beta),
        successes=successes,
        trials=trials,
        rollouts=rollouts,
        tokens=tokens,
        visits=np.bincount(visits["prompt"], minlength=prompts),
        stuck=(successes == 0) & (trials >= stuck_after),
        classes=np.bincount(difficulty(visits["success_rate"][visits["last"]]), minlength=5),
        transitions=transitions(history),
        steps=int(history.step.max(initial=0)),
    )


def of_tracker(tracker: SuccessRateTracker, stuck_after: int) -> Summary:
    """Summary of a state. Evidence that has lost weight is never quite zero, so "never a success" is certain."""
    state = tracker.state_dict()
    evidence = tracker.evidence(tracker.keys)
    last_rate = state["last_rate"]
    trials = state["successes"] + state["failures"]
    return Summary(
        keys=tracker.keys,
        believed_rate=evidence.alpha / (evidence.alpha + evidence.beta),
        successes=state["successes"],
        trials=trials,
        rollouts=np.maximum(state["rollouts"], trials),  # the former are counted only where lengths are
        tokens=state["tokens"],
        visits=state["visits"],
        stuck=(state["successes"] == 0) & (trials >= stuck_after),
        classes=np.bincount(difficulty(last_rate[~np.isnan(last_rate)]), minlength=5),
        discounted=True,
    )

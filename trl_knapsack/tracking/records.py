"""What was decided and how it turned out: one record per generation batch, and the metrics computed from it."""

from dataclasses import dataclass

import numpy as np

from ..allocation.allocator import Allocation
from ..allocation.arrays import with_mean
from ..allocation.difficulty import DIFFICULTIES, difficulty
from ..allocation.evidence import Evidence
from ..allocation.values import expected_values


@dataclass(frozen=True, eq=False, repr=False)  # equal is only itself: arrays have no one answer
class RolloutRecord:
    """
    One generation batch of `P` prompts and `R` rollouts. Equal on every rank.

    Attributes:
        evidence ([`Evidence`]): What was known about the prompts beforehand. A prompt that the sampler drew twice appears twice.
        allocation ([`Allocation`]): What was decided; `allocation.counts` is `(P,)` and sums to `R`.
        solver_seconds (`float`): Time that the allocation took, on rank 0.
        successes (`np.ndarray` of shape `(P,)`): Completions that succeeded.
        trials (`np.ndarray` of shape `(P,)`): Completions that were scored by at least one reward function.
        tokens (`np.ndarray` of shape `(P,)`): Completion tokens generated.
        mean_reward (`np.ndarray` of shape `(P,)`): Mean reward of each group, NaN where none was scored.
        mixed (`np.ndarray` of shape `(P,)`, bool): Whether rewards within the group vary, so that it has a gradient.
        rank_imbalance (`float`): Completion tokens of the rank that generated most, divided by the mean over ranks.
        looks (`np.ndarray` of shape `(P,)`, bool): Whose first look it is; without looks, nobody's.
        before (`np.ndarray` of shape `(P,)`): Rollouts that each prompt got earlier in the same visit: its look.
        successes_before, trials_before (`np.ndarray` of shape `(P,)`): Those of them that succeeded, and were scored.
        look_age (`np.ndarray` of shape `(P,)`): Generation batches since the prompt came.
        predicted (`np.ndarray` of shape `(P,)`, bool): Whose success rate was predicted from difficulty columns.
    """

    evidence: Evidence
    allocation: Allocation
    solver_seconds: float
    successes: np.ndarray
    trials: np.ndarray
    tokens: np.ndarray
    mean_reward: np.ndarray
    mixed: np.ndarray
    rank_imbalance: float
    looks: np.ndarray = None  # type: ignore[assignment]
    before: np.ndarray = None  # type: ignore[assignment]
    successes_before: np.ndarray = None  # type: ignore[assignment]
    trials_before: np.ndarray = None  # type: ignore[assignment]
    look_age: np.ndarray = None  # type: ignore[assignment]
    predicted: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self):
        for name in ("looks", "before", "successes_before", "trials_before", "look_age", "predicted"):
            if getattr(self, name) is None:
                dtype = bool if name in ("looks", "predicted") else np.int64
                object.__setattr__(self, name, np.zeros(len(self.keys), dtype))

    def __repr__(self) -> str:
        counts = self.allocation.counts
        scored = self.trials.sum()
        rate = f"success rate {self.successes.sum() / scored:.2f}" if scored else "none scored"
        return (
            f"RolloutRecord({len(self.keys)} prompts, {counts.sum()} rollouts, {counts.min()} to {counts.max()} a prompt, "
            f"{rate}, {self.effective_rollouts} with a gradient)"
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the prompts, of length `P`."""
        return self.evidence.keys

    @property
    def success_rate(self) -> np.ndarray:
        """Observed success rate of each prompt, `(P,)`, NaN where no completion was scored."""
        return np.divide(self.successes, self.trials, out=np.full(len(self.trials), np.nan), where=self.trials > 0)

    @property
    def effective_rollouts(self) -> int:
        """Scored rollouts in groups whose rewards vary: the ones that have a gradient."""
        return int(self.trials[self.mixed].sum())

    @property
    def known(self) -> np.ndarray:
        """Of whom anything was known that told them from others, `(P,)`: an earlier visit, a look, or a prediction."""
        return (self.evidence.visits > 0) | self.predicted

    @property
    def _decided(self) -> np.ndarray:
        """Who was decided upon, `(P,)`; all, if there are only looks."""
        return ~self.looks if not self.looks.all() else self.looks

    @property
    def _totals(self) -> np.ndarray:
        """Rollouts so far in this visit of those who were decided upon."""
        return (self.before + self.allocation.counts)[self._decided]

    def value_over_uniform(self) -> float:
        """
        Value of the counts over that of equal counts, both expected under the posteriors before the rollouts. Of prompts
        that were looked at, all rollouts of the visit count; looks themselves do not, as nobody decided upon them.
        """
        evidence, counts = self.evidence.take(self._decided), self._totals
        equal = np.full(len(counts), counts.sum() // len(counts))
        equal[: counts.sum() - equal.sum()] += 1
        return expected_values(evidence.beliefs, counts).sum() / expected_values(evidence.beliefs, equal).sum()

    def tokens_over_uniform(self) -> tuple[float, float]:
        """
        Tokens of the counts over those of equal counts, `(predicted, actual)`: by the mean lengths known before the
        rollouts, and by those of the rollouts. As in [`value_over_uniform`], all rollouts of a visit count. Where no length is
        known, all are taken to be equal.
        """
        decided, totals = self._decided, self._totals
        lengths, counts = self.evidence.mean_length[decided], self.allocation.counts[decided]
        actual = np.divide(self.tokens[decided], counts, out=lengths.copy(), where=counts > 0)

        def ratio(lengths: np.ndarray) -> float:
            lengths = with_mean(lengths, lengths > 0)
            return float(totals @ lengths / (totals.mean() * lengths.sum()))

        return ratio(lengths), ratio(actual)

    def metrics(self) -> dict[str, float]:
        """The `knapsack/...` metrics of this generation batch. `docs/metrics.md` describes each."""
        counts, rate = self._totals, self.success_rate
        scored = ~np.isnan(rate)
        classes = np.bincount(difficulty(rate[scored]), minlength=len(DIFFICULTIES)) / max(scored.sum(), 1)
        waited = self.before > 0
        predicted_tokens, tokens = self.tokens_over_uniform()
        p10, p50, p90 = np.percentile(counts, [10, 50, 90])
        metrics = {
            "effective_gradient_ratio": self.effective_rollouts / self.allocation.counts.sum(),
            "mixed_prompts": self.mixed[self.allocation.counts > 0].mean(),
            "generations/min": counts.min(),
            "generations/p10": p10,
            "generations/median": p50,
            "generations/p90": p90,
            "generations/max": counts.max(),
            **{f"difficulty/{name}": share for name, share in zip(DIFFICULTIES, classes, strict=True)},
            "unseen": (self.evidence.visits == 0).mean(),
            "known_rollouts": self.allocation.counts[self.known & ~self.looks].sum() / self.allocation.counts.sum(),
            "success_rate": rate[scored].mean() if scored.any() else np.nan,
            "reward": np.nanmean(self.mean_reward) if scored.any() else np.nan,
            "value_over_uniform": self.value_over_uniform(),
            "tokens_over_uniform": tokens,
            "tokens_over_uniform/predicted": predicted_tokens,
            "rank_imbalance": self.rank_imbalance,
            "solver_time": self.solver_seconds,
            "looks": self.looks.mean(),
            "look_age": self.look_age[waited].mean() if waited.any() else 0,
        }
        return {f"knapsack/{name}": float(value) for name, value in metrics.items()}

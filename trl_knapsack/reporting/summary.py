"""A run, prompt by prompt, from its records or its state: the basis of `inspect`, the plots and the report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..allocation.difficulty import DIFFICULTIES, difficulty
from ..tracking.history import RolloutHistory
from ..tracking.tracker import SuccessRateTracker


#: Scored rollouts without any success after which a prompt is called stuck.
STUCK_AFTER = 32

#: Difficulty classes as they are shown, from the hardest.
CLASSES = tuple(name.replace("_", " ") for name in DIFFICULTIES)

#: Prompts that stand out, by kind: title, and what it means.
KINDS = {
    "hardest": ("Hardest", "lowest believed success rate"),
    "stuck": ("Stuck", "{stuck_after} scored rollouts or more, never a success"),
    "improved": ("Most improved", "largest rise of the success rate, from the first half of the visits to the second"),
    "most_rollouts": ("Most rollouts", ""),
    "most_tokens": ("Most tokens", ""),
}


_REMEDY = "set look_generations or difficulty_columns, give success_state_path, or train for more epochs"


def rate_bins(rates: np.ndarray, bins: int) -> np.ndarray:
    """Which of equally wide bins each success rate is in, `(N,)`; a rate of 1 is in the last."""
    return np.minimum((rates * bins).astype(int), bins - 1)


def budgets_by_rate(rates: np.ndarray, budgets: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Budgets by believed success rate.

    Args:
        rates (`(N,)`): Believed success rates.
        budgets (`(N,)`): Rollouts of each.
        bins (`int`): How many equally wide bins.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: how many there are in each bin, and their mean budget, 0 where there are none: both
        `(bins,)`.
    """
    place = rate_bins(rates, bins)
    number = np.bincount(place, minlength=bins)
    return number, np.bincount(place, weights=budgets, minlength=bins) / np.maximum(number, 1)


@dataclass(frozen=True, repr=False)
class Summary:
    """
    How the `K` prompts of a run turned out. Made by [`of_history`] and [`of_tracker`].

    Attributes:
        keys (`tuple[str, ...]` of length `K`): Prompt keys.
        believed_rate (`(K,)`): Mean of the tracker's posterior, the last visit included.
        successes, scored (`(K,)`): Rollouts that succeeded, and that had a reward.
        rollouts, tokens (`(K,)`): Rollouts generated, and completion tokens.
        visits (`(K,)`): Visits with a scored rollout.
        stuck (`(K,)`, bool): Whether the prompt never succeeded in `stuck_after` scored rollouts or more.
        improvement (`(K,)`): Rise of the success rate from the first half of the visits to the second, NaN if unknown.
        first_rate, last_rate (`(K,)`): Success rates at the first and at the last visit, NaN if unknown.
        transitions (`(5, 5)`): Prompts by difficulty class at their first visit (rows) and at their last (columns), of those
            with two or more.
        stuck_after (`int`): Scored rollouts without a success that make a prompt stuck.
        discounted (`bool`): Whether the numbers come from a state, in which old evidence has lost weight.
        steps (`int` or `None`): Optimizer steps that the records cover.
        known_share (`float`): Share of the rollouts at prompts that had been scored before, NaN if unknown. In batches of
            `"uniform"` none is, as nobody asked what is known.
        equal_counts (`str` or `None`): If every group had the same number of generations: how many, and why.
    """

    keys: tuple[str, ...]
    believed_rate: np.ndarray
    successes: np.ndarray
    scored: np.ndarray
    rollouts: np.ndarray
    tokens: np.ndarray
    visits: np.ndarray
    stuck: np.ndarray
    improvement: np.ndarray
    first_rate: np.ndarray
    last_rate: np.ndarray
    transitions: np.ndarray = field(default_factory=lambda: np.zeros((5, 5), np.int64))
    stuck_after: int = STUCK_AFTER
    discounted: bool = False
    steps: int | None = None
    known_share: float = float("nan")
    equal_counts: str | None = None

    def __repr__(self) -> str:
        return f"Summary({len(self.keys):,} prompts, {self.rollouts.sum():,.0f} rollouts, {self.stuck.sum():,} stuck)"

    def top(self, kind: str, number: int) -> np.ndarray:
        """
        The `number` prompts that stand out most, as indices into `keys`.

        Args:
            kind (`str`): One of [`KINDS`]. Stuck prompts come by the rollouts that they took.
            number (`int`): How many at most.
        """
        measure = {
            "hardest": np.where(self.visits > 0, 1 - self.believed_rate, 0.0),
            "stuck": np.where(self.stuck, self.rollouts, 0),
            "improved": np.nan_to_num(self.improvement),
            "most_rollouts": self.rollouts,
            "most_tokens": np.nan_to_num(self.tokens),
        }[kind]
        rows = np.argsort(-measure, kind="stable")[:number]
        return rows[measure[rows] > 0]

    def title(self, kind: str) -> str:
        """What the prompts of a kind are called, and why."""
        name, meaning = KINDS[kind]
        return f"{name}: {meaning.format(stuck_after=self.stuck_after)}" if meaning else name

    def classes(self, when: str = "last") -> np.ndarray:
        """Prompts of each difficulty class at their `"first"` or `"last"` visit, `(5,)`."""
        rates = {"first": self.first_rate, "last": self.last_rate}[when]
        return np.bincount(difficulty(rates[~np.isnan(rates)]), minlength=len(CLASSES))

    def headline(self) -> str:
        """How much there is, in a sentence."""
        if self.discounted:
            return (
                f"{len(self.keys):,} prompts in a state. It knows no history: old rollouts have lost weight, so sums of "
                "rollouts and tokens are lower bounds. The records of a run (knapsack_records.jsonl) say more."
            )
        return (
            f"{len(self.keys):,} prompts, {self.rollouts.sum():,} rollouts, {self.tokens.sum():,} completion tokens, up to "
            f"step {self.steps}."
        )

    def allocation_sentence(self) -> str | None:
        """Whether rollouts were moved, and how many of them by knowledge; `None` where a state does not tell."""
        if self.equal_counts is not None:
            return f"{self.equal_counts}."
        if math.isnan(self.known_share):
            return None
        return f"{self.known_share:.1%} of the rollouts were decided by what was known of their prompts."

    def stuck_sentence(self) -> str:
        """How many prompts are stuck, and what they cost."""
        if not self.stuck.any():
            return f"None of the {len(self.keys):,} prompts is stuck."
        return (
            f"{self.stuck.sum():,} of {len(self.keys):,} prompts are stuck; they took {self.stuck_share():.1%} of the "
            "rollouts."
        )

    def stuck_share(self) -> float:
        """Share of all rollouts that stuck prompts took."""
        return float(self.rollouts[self.stuck].sum() / max(self.rollouts.sum(), 1))

    def as_dict(self, top: int, texts: Mapping[str, str]) -> dict[str, Any]:
        """Everything that is shown, for JSON; `texts` holds the text of prompts by key."""

        def prompt(i: int) -> dict[str, Any]:
            fields = ("believed_rate", "successes", "scored", "rollouts", "tokens", "visits")
            known = {"prompt": self.keys[i]} | {name: getattr(self, name)[i] for name in fields}
            return known | ({"text": texts.get(self.keys[i])} if texts else {})

        return {
            "prompts": len(self.keys),
            "from": "state" if self.discounted else "records",
            "steps": self.steps,
            "rollouts": self.rollouts.sum(),
            "tokens": np.nansum(self.tokens),
            "known_share_of_rollouts": self.known_share,
            "equal_counts": self.equal_counts,
            "stuck_prompts": self.stuck.sum(),
            "stuck_share_of_rollouts": self.stuck_share(),
            **{
                kind: [prompt(i) for i in self.top(kind, top)]
                for kind in KINDS
                if not self.discounted or kind != "improved"
            },
            "difficulty": dict(zip(DIFFICULTIES, self.classes(), strict=True)),
            "transitions": None if self.discounted else self.transitions,
        }


def of_history(history: RolloutHistory, stuck_after: int = STUCK_AFTER) -> Summary:
    """Summary of a run's records."""
    successes, scored, rollouts, tokens = (
        history.per_prompt(sums).astype(np.int64)
        for sums in (history.successes, history.trials, history.counts, history.tokens)
    )
    visits, prompts = history.by_visit, len(history.keys)
    first_rate, last_rate = np.full((2, prompts), np.nan)
    for rates, end in ((first_rate, "first"), (last_rate, "last")):
        rates[visits["prompt"][visits[end]]] = visits["success_rate"][visits[end]]
    number = np.bincount(visits["prompt"], minlength=prompts)
    twice = number > 1
    transitions = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    np.add.at(transitions, (difficulty(first_rate[twice]), difficulty(last_rate[twice])), 1)
    return Summary(
        keys=history.keys,
        believed_rate=tracker_of(history).evidence(history.keys).beliefs.mean,
        successes=successes,
        scored=scored,
        rollouts=rollouts,
        tokens=tokens,
        visits=number,
        stuck=(successes == 0) & (scored >= stuck_after),
        improvement=_improvement(visits, number),
        first_rate=first_rate,
        last_rate=last_rate,
        transitions=transitions,
        stuck_after=stuck_after,
        steps=int(history.step.max(initial=0)),
        known_share=known_share(history),
        equal_counts=_why_equal(history),
    )


def known_share(history: RolloutHistory) -> float:
    """Share of a run's rollouts that knowledge decided: at prompts of which anything was known, by a rule that asks."""
    decided = history.known & ~history.looks & (history.allocation != "uniform")[history.batch]
    return float(history.counts[decided].sum() / max(history.counts.sum(), 1))


def equal_counts(history: RolloutHistory) -> str | None:
    """How many generations every group had, if all had as many."""
    counts = history.generations[history.decided]
    if not len(history) or counts.min() != counts.max():
        return None
    return f"All counts were equal: {counts[0]:,} generations of each prompt"


def closing_rows(
    allocation: str, logs: Sequence[Mapping[str, float]], num_generations: int | None
) -> list[tuple[str, str]]:
    """
    What a run says of its budgets when it ends, from its logs, which every rank has.

    Args:
        allocation (`str`): Name of the rule.
        logs (`Sequence[Mapping[str, float]]`): Entries with the `knapsack/...` metrics.
        num_generations (`int`): Generations of a prompt, in the mean.
    """
    least = min(entry["knapsack/generations/min"] for entry in logs)
    largest = max(entry["knapsack/generations/max"] for entry in logs)
    rows = [("largest budget", f"{largest:.0f} generations of one prompt, {num_generations} on average")]
    if allocation != "uniform":
        known = float(np.mean([entry["knapsack/known_rollouts"] for entry in logs]))
        said = f"{known:.0%} of the rollouts"
        if least == largest:
            said += "; all counts were equal" + ("" if known else f", as nothing was known: {_REMEDY}")
        rows.append(("decided by knowledge", said))
    return rows


def _why_equal(history: RolloutHistory) -> str | None:
    said = equal_counts(history)
    if said is None or (history.allocation == "uniform").all():
        return said
    if (history.per_batch(np.ones(len(history.batch))) == 1).all():
        return f"{said}, because each generation batch held one prompt; raise the batch size, or set allocation_window"
    if not known_share(history):
        return f"{said}, because nothing was known of a prompt before its visit; {_REMEDY}"
    return f"{said}, although prompts were known; see that min_generations and max_generations leave room"


def of_tracker(tracker: SuccessRateTracker, stuck_after: int = STUCK_AFTER) -> Summary:
    """Summary of a state. Evidence that has lost weight is never quite zero, so "never a success" is certain."""
    state = tracker.state_dict()
    unknown = np.full(len(tracker), np.nan)
    scored = state["successes"] + state["failures"]
    return Summary(
        keys=tracker.keys,
        believed_rate=tracker.evidence(tracker.keys).beliefs.mean,
        successes=state["successes"],
        scored=scored,
        rollouts=np.maximum(state["rollouts"], scored),  # the former are counted only where lengths are
        tokens=state["tokens"],
        visits=state["visits"],
        stuck=(state["successes"] == 0) & (scored >= stuck_after),
        improvement=unknown,
        first_rate=unknown,
        last_rate=state["last_rate"],
        stuck_after=stuck_after,
        discounted=True,
    )


def tracker_of(history: RolloutHistory) -> SuccessRateTracker:
    """
    A tracker that believes of each prompt what the run's believed after its last visit.

    The records hold what was believed *before* each visit, and neither prior nor decay. Both are inferred: at a first visit
    the prior is what was believed, and from one visit to the next all that was known of a prompt shrinks by the decay before
    the visit's rollouts are added, `T' = decay T + n`. The newest such rows count, since a resumed run may have changed
    either; where there is none, the tracker's defaults.
    """
    visits = history.by_visit
    unseen = np.flatnonzero((history.visits == 0) & ~history.predicted)
    prior = SuccessRateTracker().prior
    if len(unseen):
        prior = float(history.alpha[unseen[-1]]), float(history.beta[unseen[-1]])
    group = visits["group"]
    seen = ~history.predicted[group]  # what was predicted goes when the prompt is seen again
    won = seen * np.maximum(history.alpha[group] - prior[0], 0.0)  # (V,) rounded in the file, hence perhaps below 0
    known = won + seen * np.maximum(history.beta[group] - prior[1], 0.0)  # (V,)
    again = np.flatnonzero(~visits["last"] & (known > 0))  # visits of known prompts, followed by another
    decay = SuccessRateTracker().decay
    if len(again):
        newest = again[np.argmax(visits["batch"][again + 1])]
        decay = (known[newest + 1] - visits["trials"][newest]) / known[newest]
        decay = float(np.clip(np.round(decay, 4), 0.0, 1.0))

    tracker, last = SuccessRateTracker(prior, decay), visits["last"]
    keys = [history.keys[prompt] for prompt in visits["prompt"][last]]
    tracker.observe(keys, won[last], known[last])  # all that was known before the last visit, as if it were one
    tracker.observe(keys, visits["successes"][last], visits["trials"][last])
    return tracker


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as text: itself, or the contents of its messages."""
    if isinstance(prompt, str):
        return prompt
    parts = [message.get("content", "") for message in prompt]
    return "\n".join(part if isinstance(part, str) else "[not only text]" for part in parts)


def _improvement(visits: Mapping[str, np.ndarray], number: np.ndarray) -> np.ndarray:
    """Success rate of the second half of a prompt's visits less that of the first, `(K,)`."""
    place = np.arange(len(visits["prompt"])) - np.flatnonzero(visits["first"])[np.cumsum(visits["first"]) - 1]
    late = 2 * place >= number[visits["prompt"]]
    won, tried = (
        np.stack([np.bincount(visits["prompt"], visits[name] * half, minlength=len(number)) for half in (~late, late)])
        for name in ("successes", "trials")
    )  # (2, K) each: first half, second half
    early_rate, late_rate = np.divide(won, tried, out=np.full(won.shape, np.nan), where=tried > 0)
    return late_rate - early_rate

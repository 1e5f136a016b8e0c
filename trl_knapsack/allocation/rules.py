"""
Rules that turn what is known about prompts into rollouts: small objects with one interface.

| name | rule |
|---|---|
| `"posterior"` | exact knapsack on the expected value under each prompt's Beta posterior |
| `"paper"` | exact knapsack on the success rates of the last visit, leftover rollouts to prompts that were never solved |
| `"filter"` | `min_generations` for prompts at 0 or 1 at their last visit, equal shares for the others |
| `"uniform"` | equal shares |
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from ..errors import InvalidInputError
from .allocator import Allocation, allocate, check_budget, equal_shares
from .arrays import short, with_mean
from .evidence import BetaBeliefs, Evidence
from .values import Value, judge


@runtime_checkable
class AllocationRule(Protocol):
    """
    A rule for sharing out rollouts. Any callable with this signature is one, and the trainer takes your own in the same way.
    """

    def __call__(self, evidence: Evidence, budget: int, min_generations: int, max_generations: int) -> Allocation:
        """
        Args:
            evidence ([`Evidence`]): What is known about the `P` prompts.
            budget (`int`): Rollouts in total; all of them are given out.
            min_generations (`int`): Fewest rollouts per prompt.
            max_generations (`int`): Most rollouts per prompt.

        Returns:
            [`Allocation`]: counts `(P,)` that sum to the budget, each within the bounds.
        """
        ...


#: What [`PosteriorRule`] can keep to beside the number of rollouts.
TOKEN_BUDGETS = (None, "uniform")


@dataclass(frozen=True)
class PosteriorRule:
    """
    Exact knapsack on the expected value under each prompt's Beta posterior.

    A prompt that was never solved keeps a value, because its posterior has mass above 0: no fallback rule is needed.

    Args:
        value ([`~trl_knapsack.allocation.values.Value`], *optional*, defaults to `"knapsack"`): The value of rollouts.
        token_budget (`str`, *optional*):
            `"uniform"` for counts that take at most the tokens that equal shares are expected to take, by each prompt's mean
            length so far. Prompts whose length is unknown count as the mean of the others.
    """

    value: Value = "knapsack"
    token_budget: str | None = None

    def __post_init__(self):
        if self.token_budget not in TOKEN_BUDGETS:
            raise InvalidInputError(
                f"token_budget ({self.token_budget!r}) must be 'uniform', the tokens of equal shares, or be left out."
            )

    def __call__(self, evidence: Evidence, budget: int, min_generations: int, max_generations: int) -> Allocation:
        return allocate(
            evidence.beliefs,
            budget,
            min_generations=min_generations,
            max_generations=max_generations,
            value=self.value,
            **self._limit(evidence, budget, min_generations, max_generations),
        )

    def _limit(self, evidence: Evidence, budget: int, min_generations: Any, max_generations: Any) -> dict[str, Any]:
        lengths = evidence.mean_length
        known = lengths > 0  # neither NaN nor, as in a table that was read, no tokens at all
        if self.token_budget is None or not known.any():
            return {}
        costs = with_mean(lengths, known)
        budget, low, high = check_budget(len(evidence), budget, min_generations, max_generations)
        limit = float(costs @ equal_shares(low, high, budget))
        return {"costs": costs, "max_cost": limit * (1 + 1e-9)}  # equal lengths must not exceed it by rounding


@dataclass(frozen=True)
class PaperRule:
    """
    Knapsack RL's rule: exact knapsack on the success rates of the last visit (arXiv 2509.25849 and its code).

    Prompts never seen get an equal share of the budget, so the first epoch is uniform. The others get
    `min_generations`, and those with a rate `p` between 0 and 1 in addition the rollouts after which their group is
    mixed with the given confidence, `log(1 - confidence) / log(max(p, 1 - p))`, within `max_generations`. What is
    left over goes to the prompts that were never solved ("fallback"), then to the always solved ones, then to the
    rest, in equal shares and always within `max_generations`; the share of the mixed ones is allocated by knapsack. The
    value reported is that of the last rates, which is 0 for a prompt at 0 or 1.

    Args:
        value ([`~trl_knapsack.allocation.values.Value`], *optional*, defaults to `"knapsack"`): The value of rollouts.
        confidence (`float`, *optional*, defaults to 0.9):
            See above; the default is the published code's. With 1, only what `max_generations` forbids is left over: no fallback.
    """

    value: Value = "knapsack"
    confidence: float = 0.9

    def __post_init__(self):
        if not 0 <= self.confidence <= 1:
            raise InvalidInputError(f"confidence ({self.confidence}) must lie in [0, 1]; the published code's is 0.9.")

    def __call__(self, evidence: Evidence, budget: int, min_generations: int, max_generations: int) -> Allocation:
        rates = np.asarray(evidence.last_rate, dtype=np.float64)
        budget, low, high = check_budget(rates.size, budget, min_generations, max_generations)
        seen = ~np.isnan(rates)
        counts = equal_shares(low, high, budget)
        if seen.any():
            counts[seen] = self.share(rates[seen], int(counts[seen].sum()), low[seen], high[seen])
        return _judged(np.where(seen, rates, 0.0), counts, high, self.value, "paper")

    def share(self, rates: np.ndarray, budget: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Counts `(P,)` for prompts that were all seen; `rates`, `low` and `high` are `(P,)`."""
        mixed = (rates > 0.0) & (rates < 1.0)
        wanted = low.copy()
        if mixed.any():
            # log1p, as 1 - p is 1 for the smallest rates; over and divide, as their answer is infinite
            with np.errstate(divide="ignore", over="ignore"):
                needed = np.log1p(-self.confidence) / np.log1p(-np.minimum(rates[mixed], 1.0 - rates[mixed]))
            wanted[mixed] = np.minimum(low[mixed] + np.minimum(needed, 2.0**31).astype(np.int64), high[mixed])
        counts = low.copy()
        left = budget - int(low.sum())
        # In this order, each group takes what it can of what is left: the mixed ones first only as much as they need.
        shares = ((mixed, wanted), (rates == 0.0, high), (rates == 1.0, high), (mixed, high))
        for group, most in shares:
            if left and group.any():
                total = min(int(counts[group].sum()) + left, int(most[group].sum()))
                left -= total - int(counts[group].sum())
                counts[group] = equal_shares(low[group], most[group], total)
        if mixed.any():
            counts[mixed] = allocate(
                rates[mixed],
                int(counts[mixed].sum()),
                min_generations=low[mixed],
                max_generations=high[mixed],
                value=self.value,
            ).counts
        return counts


@dataclass(frozen=True)
class FilterRule:
    """
    `min_generations` for prompts whose last visit was all failures or all successes, equal shares for the others.

    The simple baseline. Unseen prompts are treated like the others; when all prompts are filtered, or the others can't
    take the whole budget, the filtered ones share the rest equally.

    Args:
        value ([`~trl_knapsack.allocation.values.Value`], *optional*, defaults to `"knapsack"`):
            The value of rollouts that is reported; it decides nothing.
    """

    value: Value = "knapsack"

    def __call__(self, evidence: Evidence, budget: int, min_generations: int, max_generations: int) -> Allocation:
        rates = np.asarray(evidence.last_rate, dtype=np.float64)
        filtered = (rates == 0.0) | (rates == 1.0)
        budget, low, high = check_budget(rates.size, budget, min_generations, max_generations)
        counts = low.copy()
        for group in (~filtered, filtered):
            if group.any():
                room = min(budget - int(counts[~group].sum()), int(high[group].sum()))
                counts[group] = equal_shares(low[group], high[group], room)
        return _judged(evidence.beliefs, counts, high, self.value, "filter")


@dataclass(frozen=True)
class UniformRule:
    """
    Equal shares, as in plain GRPO; a remainder goes to the first prompts.

    Args:
        value ([`~trl_knapsack.allocation.values.Value`], *optional*, defaults to `"knapsack"`):
            The value of rollouts that is reported; it decides nothing.
    """

    value: Value = "knapsack"

    def __call__(self, evidence: Evidence, budget: int, min_generations: int, max_generations: int) -> Allocation:
        budget, low, high = check_budget(len(evidence), budget, min_generations, max_generations)
        return _judged(evidence.beliefs, equal_shares(low, high, budget), high, self.value, "uniform")


def _judged(
    success_rates: np.ndarray | BetaBeliefs, counts: np.ndarray, high: np.ndarray, value: Value, solver: str
) -> Allocation:
    """Counts of a rule that optimises nothing, with what they are worth; `high` is `(P,)`."""
    values, gains = judge(success_rates, counts, value)
    price = float(gains.max(initial=0.0, where=counts < high))  # 0 where nobody may take one more
    return Allocation(counts, float(values.sum()), price, math.inf, solver)


_RULES = {"posterior": PosteriorRule, "paper": PaperRule, "filter": FilterRule, "uniform": UniformRule}

#: Names that [`get_rule`] knows.
RULES = tuple(_RULES)


def get_rule(name: str, value: Value = "knapsack") -> AllocationRule:
    """
    The rule with a given name.

    Args:
        name (`str`): One of [`RULES`].
        value ([`~trl_knapsack.allocation.values.Value`], *optional*, defaults to `"knapsack"`):
            The value of rollouts: what the rule optimises, or only reports.

    Raises:
        `ValueError`: if there is no rule with that name.
    """
    if name not in _RULES:
        raise InvalidInputError(f"allocation {name!r} is not known; choose one of {', '.join(map(repr, RULES))}.")
    return _RULES[name](value)


def check_rule(rule: Any) -> AllocationRule:
    """
    A rule of the user's own, or one sentence that says why it is none.

    Raises:
        `ValueError`: if it is a name, a class, not callable, or does not take four arguments.
    """
    if isinstance(rule, str):
        raise InvalidInputError(
            f"allocation_rule ({rule!r}) must be a rule, not a name; for a built-in rule set allocation={rule!r} in the "
            "configuration instead."
        )
    if isinstance(rule, type):
        raise InvalidInputError(
            f"allocation_rule is the class {rule.__name__}, but must be an instance; give {rule.__name__}()."
        )
    takes = "rule(evidence, budget, min_generations, max_generations)"
    if not callable(rule):
        raise InvalidInputError(f"allocation_rule ({rule!r}) must be callable; give a function or an object, {takes}.")
    try:
        signature = inspect.signature(rule)
    except ValueError:  # some that are written in C have none
        return cast(AllocationRule, rule)
    try:
        signature.bind(None, None, None, None)
    except TypeError:
        raise InvalidInputError(
            f"allocation_rule {_name(rule)} takes {signature}, but is called with four arguments; write it as {takes}."
        ) from None
    return cast(AllocationRule, rule)


def checked_allocation(
    rule: AllocationRule, evidence: Evidence, budget: int, min_generations: Any, max_generations: int
) -> Allocation:
    """
    What a rule answers, if that is an [`Allocation`] of the whole budget within the bounds. With looks `min_generations` is
    `(P,)`: what a prompt has got already can't be taken back.

    Args:
        rule ([`AllocationRule`]): The rule that is asked, with the other arguments.

    Raises:
        `ValueError`: in one sentence, if it is anything else.
    """
    allocation = rule(evidence, budget, min_generations, max_generations)
    name, prompts = f"The allocation rule {_name(rule)}", len(evidence)
    if not isinstance(allocation, Allocation):
        raise InvalidInputError(
            f"{name} returned {short(allocation)}, but must return an Allocation; return Allocation(counts)."
        )
    counts = allocation.counts
    if counts.size != prompts:
        raise InvalidInputError(
            f"{name} returned counts for {counts.size} prompts, but there are {prompts}; give one count for each."
        )
    wrong = np.flatnonzero((counts < min_generations) | (counts > max_generations))
    if wrong.size:
        i = int(wrong[0])
        least = np.broadcast_to(min_generations, counts.shape)[i]
        raise InvalidInputError(
            f"{name} gave {counts[i]} rollouts to prompt {i} ({evidence.keys[i]}), but each must get min_generations "
            f"({least}) to max_generations ({max_generations}); keep within them, or change them in the "
            "configuration."
        )
    if counts.sum() != budget:
        raise InvalidInputError(
            f"{name} gave out {counts.sum()} rollouts, but the budget is {budget}; give out all of it and no more."
        )
    return allocation


def _name(rule: object) -> str:
    """A function's own name; an object as it shows itself."""
    return getattr(rule, "__name__", None) or repr(rule)

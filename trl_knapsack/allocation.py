"""
How many rollouts each prompt gets: the checked, public side of the solvers.

    maximise   sum_i V(N_i, p_i)        subject to   sum_i N_i = B,   low_i <= N_i <= high_i

For values that are concave in `N`, which all built-in ones are, this is solved exactly by taking the largest marginal
gains. `docs/method.md` has the proof, and the other cases.
"""

import operator
from dataclasses import dataclass

import numpy as np

from .values import BetaBeliefs, MixedGroupValue, Value, WeightedSum, resolve


__all__ = ["Allocation", "BetaBeliefs", "allocate"]

_NO_SHIFT = np.zeros(1)


@dataclass(frozen=True)
class Allocation:
    """
    Rollouts for each prompt, and what they are worth.

    Attributes:
        counts (`np.ndarray` of shape `(P,)`, int64): Rollouts of each prompt; they sum to the budget.
        value (`float`): Total value of the counts.
        shadow_price (`float`): What one more rollout would bring; 0 when no prompt may take one.
        upper_bound (`float`): No allocation within the same constraints has a value above this.
        solver (`str`): What found it: `"exact"`, `"dp"`, `"genetic"`, or the name of a rule that optimises nothing.
    """

    counts: np.ndarray  # (P,) int64, sums to the budget
    value: float
    shadow_price: float
    upper_bound: float
    solver: str

    @property
    def gap(self) -> float:
        """What this allocation may at most lack: `upper_bound - value`, 0 when it is proven optimal."""
        return max(0.0, self.upper_bound - self.value)


def allocate(
    success_rates,
    budget: int,
    *,
    min_generations=2,
    max_generations=128,
    value: Value = "knapsack",
    solver: str = "exact",
) -> Allocation:
    """
    Share `budget` rollouts out over prompts so that their total value is as large as it can be.

    Among equal gains the prompt with fewer rollouts comes first, then the one with the lower index; so the result is
    determined, and equal prompts differ by at most one rollout.

    Args:
        success_rates (`np.ndarray` of shape `(P,)` or [`BetaBeliefs`]):
            Success rate of each prompt in [0, 1], or what is believed of it.
        budget (`int`):
            Rollouts to give out, all of them.
        min_generations (`int` or `(P,)`, *optional*, defaults to 2):
            Least rollouts of a prompt. 2 is the smallest group with any variance.
        max_generations (`int` or `(P,)`, *optional*, defaults to 128):
            Most rollouts of a prompt. 128 is the paper's; above 32 it hardly matters.
        value ([`~trl_knapsack.values.Value`], *optional*, defaults to `"knapsack"`):
            The value of rollouts, see [`trl_knapsack.values`].
        solver (`str`, *optional*, defaults to `"exact"`):
            See `docs/allocator.md`.

    Returns:
        [`Allocation`]

    Raises:
        `ValueError`: in one sentence, if an argument is not valid or the budget is outside what the bounds allow.

    Example:

    ```python
    >>> from trl_knapsack import allocate

    >>> allocate([0.0, 0.1, 0.4, 0.9, 1.0], budget=40).counts
    array([ 2, 18, 10,  8,  2])
    ```
    """
    tabular = not isinstance(value, (str, MixedGroupValue, WeightedSum))
    prompts = len(success_rates)
    budget, low, high = check_budget(
        prompts, budget, min_generations, max_generations, least_bound=0 if tabular else 1, spread=False
    )
    form = resolve(success_rates, value, int(high.max()))
    from .kernels import select

    counts, total, price = select(
        form.first, form.second, form.half_p, form.half_q, form.scale, _NO_SHIFT, low, high, budget, _total(low, prompts)
    )
    return Allocation(counts, total, price, total, "exact")


def check_bounds(name: str, bounds, prompts: int, least: int) -> np.ndarray:
    """A bound as int64 of shape `(1,)` or `(P,)`, or one sentence that says what is wrong with it."""
    if type(bounds) is int:
        if bounds < least:
            raise ValueError(f"{name} ({bounds}) must be at least {least}.")
        return np.array((bounds,))
    array = np.asarray(bounds)
    if array.ndim > 1 or (array.ndim == 1 and array.size != prompts):
        raise ValueError(
            f"{name} has shape {array.shape} but must be one number or have shape ({prompts},), one for each prompt."
        )
    if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and not np.all(array == np.floor(array))):
        raise ValueError(f"{name} must be integers, not {bounds!r}.")
    array = np.atleast_1d(array)
    if not np.all((array >= least) & (array < 2**31)):
        wrong = np.flatnonzero(~((array >= least) & (array < 2**31)))[0]
        which = name if array.size == 1 else f"{name}[{wrong}]"
        raise ValueError(f"{which} ({array[wrong]}) must be at least {least} and below 2^31.")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_budget(
    prompts: int, budget, min_generations, max_generations, *, least_bound: int = 1, spread: bool = True
) -> tuple[int, np.ndarray, np.ndarray]:
    """
    A budget and its bounds as `int` and two int64 arrays, of shape `(P,)`, or as given `(1,)` without `spread`.

    Raises:
        `ValueError`: in one sentence, if they are not valid or contradict each other.
    """
    if prompts == 0:
        raise ValueError("success_rates is empty; give at least one prompt.")
    try:
        budget = operator.index(budget)
    except TypeError:
        raise ValueError(f"budget ({budget!r}) must be an integer number of rollouts.") from None
    low = check_bounds("min_generations", min_generations, prompts, least_bound)
    high = check_bounds("max_generations", max_generations, prompts, 1)
    if low.size == 1 and high.size == 1:
        least, most = int(low[0]) * prompts, int(high[0]) * prompts
        crossed = 0 if low[0] > high[0] else None
    else:
        least, most = _total(low, prompts), _total(high, prompts)
        wrong = np.flatnonzero(low > high)
        crossed = int(wrong[0]) if wrong.size else None
    if crossed is not None:
        lower, upper = (int(bound[crossed if bound.size > 1 else 0]) for bound in (low, high))
        raise ValueError(
            f"max_generations ({upper}) must be at least min_generations ({lower})"
            f"{f' of prompt {crossed}' if max(low.size, high.size) > 1 else ''}; raise it or lower min_generations."
        )
    if not least <= budget <= most:
        raise ValueError(
            f"budget ({budget}) must lie between {least} and {most}, what {prompts} prompts with min_generations and "
            f"max_generations can take; {'lower min_generations' if budget < least else 'raise max_generations'} or "
            "change the budget."
        )
    if spread:
        low, high = (np.full(prompts, bound[0]) if bound.size == 1 else bound for bound in (low, high))
    return budget, low, high


def _total(bound: np.ndarray, prompts: int) -> int:
    return int(bound[0]) * prompts if bound.size == 1 else int(bound.sum())

"""
How many rollouts each prompt gets: the checked, public side of the solvers.

    maximise   sum_i V(N_i, p_i)        subject to   sum_i N_i = B,   low_i <= N_i <= high_i

For values that are concave in `N`, which all built-in ones are, this is solved exactly by taking the largest marginal
gains. `docs/method.md` has the proof, and the other cases.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from .._notebook import html_table
from ..errors import InvalidInputError
from .arrays import ArrayRecord, short
from .evidence import BetaBeliefs
from .kernels import Gains, fill_level
from .selection import select, values_and_gains
from .solvers import cheapest, dynamic_program, evolve, is_concave, limit_cost, select_from_table
from .values import MixedGroupValue, Value, WeightedSum, check_rates, resolve, tabulate


#: Solvers by name.
SOLVERS = ("exact", "dp", "genetic")


@dataclass(frozen=True, eq=False, repr=False)
class Allocation(ArrayRecord):
    """
    Rollouts for each prompt, and what they are worth. A rule of your own may return the counts alone:
    `Allocation(counts)`.

    Attributes:
        counts (`np.ndarray` of shape `(P,)`, int64): Rollouts of each prompt; they sum to the budget.
        value (`float`): Total value of the counts.
        shadow_price (`float`): What one more rollout would add, minus the price of its tokens; 0 when no prompt
            may take one.
        upper_bound (`float`): No allocation within the same constraints has a value above this. With `cost_weight`: none
            that takes as many tokens or fewer.
        solver (`str`): The solver that found it: `"exact"`, `"dp"`, `"genetic"`, or the name of a rule that optimises nothing.
        cost (`float`, *optional*): Expected tokens of all rollouts, where costs were given.
        cost_price (`float`): What one more token would add; 0 if tokens are not scarce.
    """

    counts: np.ndarray  # (P,) int64, sums to the budget
    value: float = math.nan
    shadow_price: float = math.nan
    upper_bound: float = math.inf
    solver: str = "custom"
    cost: float | None = None
    cost_price: float = 0.0

    if TYPE_CHECKING:  # what a type checker is to believe: any sequence of whole numbers will do

        def __init__(
            self,
            counts: ArrayLike,
            value: float = math.nan,
            shadow_price: float = math.nan,
            upper_bound: float = math.inf,
            solver: str = "custom",
            cost: float | None = None,
            cost_price: float = 0.0,
        ) -> None: ...

    def __post_init__(self):
        counts = self.counts
        if type(counts) is np.ndarray and counts.dtype == np.int64 and counts.ndim == 1:
            return
        try:
            array = np.asarray(counts)
        except ValueError:  # rows of different lengths
            array = np.empty(())
        if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.all(array == np.floor(array)):
            raise InvalidInputError(
                f"counts must be whole numbers of shape (P,), not {short(counts)}; give the rollouts of each prompt, "
                "rounded so that they sum to the budget."
            )
        object.__setattr__(self, "counts", array.astype(np.int64))

    def _repr_html_(self) -> str:
        counts = self.counts
        row = [
            counts.size,
            counts.sum(),
            *((counts.min(), f"{counts.mean():.1f}", counts.max()) if counts.size else "---"),
            *(f"{number:.4g}" for number in (self.value, self.shadow_price, self.gap)),
            self.solver,
        ]
        header = ["prompts", "rollouts", "least", "mean", "most", "value", "shadow price", "gap", "solver"]
        return html_table(header, [row])

    @property
    def gap(self) -> float:
        """The most that may be missing, `upper_bound - value`; 0 when the allocation is proven optimal."""
        gap = self.upper_bound - self.value
        return 0.0 if gap < 0.0 else gap


def allocate(
    success_rates: ArrayLike | BetaBeliefs,
    budget: int,
    *,
    min_generations: ArrayLike = 2,
    max_generations: ArrayLike = 128,
    value: Value = "knapsack",
    costs: ArrayLike | None = None,
    max_cost: float | None = None,
    cost_weight: float | None = None,
    solver: str = "exact",
    seed: int = 0,
) -> Allocation:
    """
    Distribute `budget` rollouts over prompts so that their total value is as large as possible.

    Among equal gains, the prompt with fewer rollouts comes first, then the one with the lower index. The result is therefore
    deterministic, and equal prompts differ by at most one rollout.

    Args:
        success_rates (`np.ndarray` of shape `(P,)` or [`BetaBeliefs`]):
            Success rate of each prompt in [0, 1], or what is believed about it.
        budget (`int`):
            Rollouts in total; all of them are given out.
        min_generations (`int` or `(P,)`, *optional*, defaults to 2):
            Fewest rollouts per prompt. 2 is the smallest group that can have any variance.
        max_generations (`int` or `(P,)`, *optional*, defaults to 128):
            Most rollouts per prompt. 128 is the paper's; above 32 it hardly matters.
        value ([`~trl_knapsack.allocation.values.Value`], *optional*, defaults to `"knapsack"`):
            The value of rollouts: a name of [`~trl_knapsack.allocation.values.VALUES`], a
            [`~trl_knapsack.allocation.values.MixedGroupValue`], a [`~trl_knapsack.allocation.values.WeightedSum`], a table `(P, M)` of the
            value of 0 .. M-1 rollouts, or a callable that returns such a table from rates `(P, 1)` (or the beliefs) and
            counts `(1, M)`. For `solver="genetic"` a callable from counts `(P,)` to one number.
        costs (`(P,)`, *optional*):
            Expected completion tokens of one rollout of each prompt, positive. Needs one of the next two.
        max_cost (`float`, *optional*):
            Most tokens that all rollouts together may take; their number is still the budget.
        cost_weight (`float`, *optional*):
            Value that one token must be worth: maximises value - cost_weight x tokens.
        solver (`str`, *optional*, defaults to `"exact"`):
            `"exact"` selects marginal gains, and switches to `"dp"` by itself where the value is not concave; under
            `max_cost` it returns a proven gap. `"dp"` is exact for any table and for integer costs, in time and memory
            that grow with budget and tokens. `"genetic"` is for values that couple prompts, and proves nothing.
        seed (`int`, *optional*, defaults to 0):
            Seed of the genetic solver.

    Returns:
        [`Allocation`]

    Raises:
        `ValueError`: in one sentence, if an argument is not valid or the budget is outside what the bounds allow.
        `ImportError`: if the genetic solver's library is missing.

    Example:

    ```python
    >>> from trl_knapsack import allocate

    >>> allocate([0.0, 0.1, 0.4, 0.9, 1.0], budget=40).counts
    array([ 2, 24,  9,  3,  2])
    ```
    """
    if solver not in SOLVERS:
        raise InvalidInputError(f"solver {solver!r} is not known; choose one of {', '.join(map(repr, SOLVERS))}.")
    known = check_rates(success_rates)
    if costs is None and max_cost is None and cost_weight is None and solver == "exact":
        own = not isinstance(value, (str, MixedGroupValue, WeightedSum))
        budget, low, high = check_budget(
            len(known), budget, min_generations, max_generations, least_bound=0 if own else 1, spread=own
        )
        form = resolve(known, value, int(high.max()))
        if isinstance(form, Gains):
            counts, total, price = select(form, low, high, budget - _total(low, len(known)))
            return Allocation(counts, total, price, total, "exact")
    return _solve(known, budget, (min_generations, max_generations), value, costs, max_cost, cost_weight, solver, seed)


def _solve(known, budget, bounds, value, costs, max_cost, cost_weight, solver, seed) -> Allocation:
    """What is not the common case: costs, tables, other solvers."""
    own = not isinstance(value, (str, MixedGroupValue, WeightedSum))
    budget, low, high = check_budget(len(known), budget, *bounds, least_bound=0 if own else 1)
    costs, max_cost, cost_weight = _check_costs(costs, max_cost, cost_weight, low, high, budget)
    if solver == "genetic":
        return _evolve(known, budget, low, high, value, costs, seed)

    form = resolve(known, value, int(high.max()))
    if solver == "dp" or (not isinstance(form, Gains) and not is_concave(form, low, high)):
        return _by_dynamic_program(form, budget, low, high, costs, max_cost, cost_weight)
    need = budget - int(low.sum())
    if isinstance(form, Gains):

        def total(counts):
            return float(values_and_gains(form, counts)[0].sum())

        def solve(mu):
            # One number added to all gains changes no choice, and keeps them from being negative.
            tokens = np.zeros(1) if costs is None else mu * costs
            lift = float(tokens.max())
            counts, worth, price = select(form._replace(shift=lift - tokens), low, high, need)
            return counts, worth, price - lift
    else:
        tokens_of = 0.0 if costs is None else costs[:, None] * np.arange(form.shape[1])  # (P, M)

        def total(counts):
            return _total_of_table(form, counts)

        def solve(mu):
            counts, price = select_from_table(form - mu * tokens_of, low, high, budget)
            return counts, total(counts), price

    if max_cost is None or costs is None:
        mu = cost_weight or 0.0
        counts, worth, price = solve(mu)
        bound = worth
    else:
        counts, price, mu, bound = limit_cost(solve, total, costs, low, high, budget, max_cost)
        worth = total(counts)
    return _allocation(counts, worth, price, bound, "exact", costs, mu, high)


def _by_dynamic_program(form, budget, low, high, costs, max_cost, cost_weight) -> Allocation:
    values = tabulate(form, int(high.max())) if isinstance(form, Gains) else form
    mu = cost_weight or 0.0
    net = values if not mu else values - mu * costs[:, None] * np.arange(values.shape[1])
    limited = (costs, max_cost) if max_cost is not None else ()
    counts, price = dynamic_program(net, low, high, budget, *limited)
    worth = _total_of_table(values, counts)
    return _allocation(counts, worth, price, worth, "dp", costs, mu, high)


def _allocation(counts, value, price, bound, solver, costs, mu, high) -> Allocation:
    if np.array_equal(counts, high):
        price = 0.0  # nobody may take one more
    # The bound comes from other sums than the value: where they are the same, rounding must not cross them.
    return Allocation(
        counts, value, price, max(bound, value), solver, None if costs is None else float(costs @ counts), mu
    )


def _total_of_table(values: np.ndarray, counts: np.ndarray) -> float:
    return float(values[np.arange(counts.size), counts].sum())


def _evolve(known, budget, low, high, value: Any, costs, seed) -> Allocation:
    if not callable(value):
        raise InvalidInputError(
            f'value ({value!r}) must be a callable from counts (P,) to one number with solver="genetic"; for a value '
            'that is a sum over prompts use solver="exact".'
        )
    if costs is not None:
        raise InvalidInputError('solver="genetic" takes no costs; let the value callable account for them.')
    value = cast(Callable[[np.ndarray], float], value)
    starts = [equal_shares(low, high, budget)]
    if low.min() >= 1:
        starts.append(select(resolve(known, "knapsack", 0), low, high, budget - int(low.sum()))[0])  # type: ignore
    counts, total = evolve(value, low, high, budget, starts, seed)
    more = [value(counts + step) - total for step in np.eye(low.size, dtype=np.int64)[counts < high]]
    return Allocation(counts, total, float(max(more, default=0.0)), math.inf, "genetic")


def _check_costs(costs, max_cost, cost_weight, low, high, budget):
    if costs is None:
        if max_cost is not None or cost_weight is not None:
            name = "max_cost" if max_cost is not None else "cost_weight"
            raise InvalidInputError(f"{name} needs costs; give the expected completion tokens of each prompt.")
        return None, None, None
    costs = np.ascontiguousarray(costs, dtype=np.float64)
    if costs.shape != low.shape:
        raise InvalidInputError(
            f"costs has shape {costs.shape} but must have shape ({low.size},), one for each prompt."
        )
    wrong = np.flatnonzero(~(np.isfinite(costs) & (costs > 0)))
    if wrong.size:
        raise InvalidInputError(
            f"costs[{wrong[0]}] is {costs[wrong[0]]} but must be positive and finite; where no length is known, give "
            "the mean of those that are."
        )
    if (max_cost is None) == (cost_weight is None):
        raise InvalidInputError(
            "costs need either max_cost, a limit on tokens, or cost_weight, a price for each; give one."
        )
    if cost_weight is not None and not (math.isfinite(cost_weight) and cost_weight >= 0):
        raise InvalidInputError(f"cost_weight ({cost_weight}) must be finite and not negative.")
    if max_cost is not None:
        least = float(costs @ cheapest(costs, low, high, budget))
        if not max_cost >= least:
            raise InvalidInputError(
                f"max_cost ({max_cost}) must be at least {least:g}, the fewest tokens that {budget} rollouts can take "
                "within the bounds; raise it or lower the budget or min_generations."
            )
    return costs, max_cost, cost_weight


def equal_shares(low: np.ndarray, high: np.ndarray, budget: int) -> np.ndarray:
    """Counts `(P,)` that are as equal as the bounds `(P,)` allow; a rest goes to the first prompts."""
    counts = low.copy()
    fill_level(counts, high, budget - int(low.sum()))
    return counts


def check_bounds(name: str, bounds: ArrayLike, prompts: int, least: int) -> np.ndarray:
    """A bound as int64 of shape `(1,)` or `(P,)`, or an error in one sentence."""
    if type(bounds) is int:
        if bounds < least:
            raise InvalidInputError(f"{name} ({bounds}) must be at least {least}.")
        return np.array((bounds,))
    array = np.asarray(bounds)
    if array.ndim > 1 or (array.ndim == 1 and array.size != prompts):
        raise InvalidInputError(
            f"{name} has shape {array.shape} but must be one number or have shape ({prompts},), one for each prompt."
        )
    if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and not np.all(array == np.floor(array))):
        raise InvalidInputError(f"{name} must be integers, not {bounds!r}.")
    array = np.atleast_1d(array)
    if not np.all((array >= least) & (array < 2**31)):
        wrong = np.flatnonzero(~((array >= least) & (array < 2**31)))[0]
        which = name if array.size == 1 else f"{name}[{wrong}]"
        raise InvalidInputError(f"{which} ({array[wrong]}) must be at least {least} and below 2^31.")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_budget(
    prompts: int,
    budget: int,
    min_generations: ArrayLike,
    max_generations: ArrayLike,
    *,
    least_bound: int = 1,
    spread: bool = True,
) -> tuple[int, np.ndarray, np.ndarray]:
    """
    A budget and its bounds as `int` and two int64 arrays, of shape `(P,)`, or as given `(1,)` without `spread`.

    Raises:
        `ValueError`: in one sentence, if they are not valid or contradict each other.
    """
    if prompts == 0:
        raise InvalidInputError("success_rates is empty; give at least one prompt.")
    try:
        budget = operator.index(budget)
    except TypeError:
        raise InvalidInputError(f"budget ({budget!r}) must be an integer number of rollouts.") from None
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
        raise InvalidInputError(
            f"max_generations ({upper}) must be at least min_generations ({lower})"
            f"{f' of prompt {crossed}' if max(low.size, high.size) > 1 else ''}; raise it or lower min_generations."
        )
    if not least <= budget <= most:
        raise InvalidInputError(
            f"budget ({budget}) must lie between {least} and {most}, what {prompts} prompts with min_generations and "
            f"max_generations can take; {'lower min_generations' if budget < least else 'raise max_generations'} or "
            "change the budget."
        )
    if spread:
        low, high = (np.full(prompts, bound[0]) if bound.size == 1 else bound for bound in (low, high))
    return budget, low, high


def _total(bound: np.ndarray, prompts: int) -> int:
    return int(bound[0]) * prompts if bound.size == 1 else int(bound.sum())

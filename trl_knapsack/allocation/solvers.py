"""
The solvers behind [`~trl_knapsack.allocation.allocate`] for what the selection kernel does not cover: value tables,
values that are not concave, a limit on tokens, and values that couple prompts.

All take bounds of shape `(P,)` that have been checked, and return counts of shape `(P,)` with what is known of them.
"""

import math
from collections.abc import Callable

import numpy as np

from ..errors import InvalidInputError, missing_extra
from .kernels import expect, knapsack_table


# Memory that the choices of the dynamic program may take.
DP_BYTES = 4 << 30


def is_concave(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether `values (P, M)` fall off in their gains between each prompt's bounds, but for rounding."""
    gains = np.diff(values, axis=1)
    step = np.arange(gains.shape[1] - 1)
    inside = (step >= low[:, None]) & (step + 2 <= high[:, None])
    return not np.any(inside & (np.diff(gains, axis=1) > 1e-12 * max(1e-300, np.abs(values).max())))


def select_from_table(values: np.ndarray, low: np.ndarray, high: np.ndarray, budget: int) -> tuple[np.ndarray, float]:
    """
    The largest marginal gains of a concave table `values (P, M)`; ties as in the kernel. Gains may be negative.

    Returns `(counts, price)`, the price being the largest gain that was not taken, 0 where all were.
    """
    gains = np.diff(values, axis=1)
    count = np.arange(gains.shape[1])
    allowed = (count >= low[:, None]) & (count < high[:, None])
    falling = -gains[allowed]
    take = budget - int(low.sum())
    price = 0.0
    if take < falling.size:
        price = -float(np.partition(falling, take)[take])
    if take == 0:
        return low.copy(), price
    threshold = -np.partition(falling, take - 1)[take - 1]
    taken = allowed & (gains > threshold)
    left = take - int(taken.sum())
    # Fewer rollouts first, then the lower index: the order of the transposed table.
    tied = np.argwhere((allowed & (gains == threshold)).T)[:left]
    counts = low + taken.sum(axis=1)
    np.add.at(counts, tied[:, 1], 1)
    return counts, price


def dynamic_program(
    values: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    budget: int,
    costs: np.ndarray | None = None,
    max_cost: float = math.inf,
) -> tuple[np.ndarray, float]:
    """
    Exact for any table `values (P, M)`, and with integer `costs (P,)` also under `sum_i costs_i N_i <= max_cost`.

    Returns `(counts, price)`, the price being the change of the optimum with one more rollout.

    Raises:
        `ValueError`: if costs are not integers, if no allocation is cheap enough, or if the table would be too large.
    """
    room = budget - int(low.sum())
    if costs is None:
        costs = np.zeros(low.size, dtype=np.int64)
        tokens = 0
    else:
        if np.any(costs != np.floor(costs)):
            wrong = np.flatnonzero(costs != np.floor(costs))[0]
            raise InvalidInputError(
                f'costs[{wrong}] is {costs[wrong]} but solver="dp" needs integer costs; round them, or use '
                'solver="exact", which returns a proven gap.'
            )
        costs = costs.astype(np.int64)
        most = int((costs * high).sum())
        tokens = int(min(math.floor(min(max_cost, most)), most) - (costs * low).sum())
    cells = low.size * (room + 2) * (tokens + 1)
    if cells * 4 > DP_BYTES:
        raise InvalidInputError(
            f"The dynamic program would need {cells * 4 / 2**30:.1f} GiB for {low.size} prompts, {room} rollouts above "
            f"min_generations and {tokens} tokens, more than {DP_BYTES >> 30} GiB; give costs in coarser units, or use "
            'solver="exact".'
        )
    # One rollout more than asked for: what it adds is the price.
    best, choices = np.empty((room + 2, tokens + 1)), np.zeros((low.size, room + 2, tokens + 1), np.int32)
    expect(cells * max(1, int((high - low).max())) // 10)  # a cell is less than a rollout
    knapsack_table(np.ascontiguousarray(values), low, high, costs, best, choices)
    counts = np.empty(low.size, dtype=np.int64)
    left, spent = room, tokens
    for i in range(low.size - 1, -1, -1):
        more = int(choices[i, left, spent])
        counts[i] = low[i] + more
        left -= more
        spent -= more * int(costs[i])
    more = best[room + 1, tokens] - best[room, tokens]
    return counts, float(more) if np.isfinite(more) else 0.0


def cheapest(costs: np.ndarray, low: np.ndarray, high: np.ndarray, budget: int) -> np.ndarray:
    """Counts `(P,)` of the fewest tokens: the rollouts above the lower bounds go to the cheapest prompts."""
    counts = low.copy()
    order = np.argsort(costs, kind="stable")
    room = (high - low)[order]
    before = np.cumsum(room) - room
    counts[order] += np.clip(budget - int(low.sum()) - before, 0, room)
    return counts


def limit_cost(
    solve: Callable[[float], tuple[np.ndarray, float, float]],
    total: Callable[[np.ndarray], float],
    costs: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    budget: int,
    max_cost: float,
) -> tuple[np.ndarray, float, float, float]:
    """
    At most `max_cost` tokens, by giving tokens a price.

    `solve(mu)` returns the `(counts, value, price)` that are best for `value - mu * tokens`, `total(counts)` the value of
    counts. The price at which the limit is met is where the dual function is lowest. Two allocations, one too dear and
    one cheap enough, are two tangents of it; their intersection is the next price, until no better allocation lies
    above it. Both are then optimal at that price, and so is all that lies between them: exchanges from the cheap one
    towards the dear one use up the tokens that are left.

    Returns `(counts, price, mu, bound)`; no allocation within the limit has a value above `bound`.
    """
    dear, dear_value, price = solve(0.0)
    dear_cost = float(costs @ dear)
    if dear_cost <= max_cost:
        return dear, price, 0.0, dear_value
    cheap = cheapest(costs, low, high, budget)
    cheap_cost = float(costs @ cheap)
    cheap_value = total(cheap)
    bound = dear_value
    while True:
        mu = max(0.0, (dear_value - cheap_value) / (dear_cost - cheap_cost))
        counts, value, price = solve(mu)
        cost = float(costs @ counts)
        dual = value - mu * (cost - max_cost)
        bound = min(bound, dual)
        # The dual has met its tangents, but for rounding: nothing better is left at this price.
        met = dual <= dear_value - mu * (dear_cost - max_cost) + 1e-12 * abs(dear_value)
        if cost <= max_cost and (not met or cost > cheap_cost):
            cheap, cheap_value, cheap_cost = counts, value, cost
        elif cost > max_cost and (not met or cost < dear_cost):
            dear, dear_value, dear_cost = counts, value, cost
        if met:
            return _between(cheap, dear, costs, max_cost - cheap_cost), price, mu, bound


def _between(cheap: np.ndarray, dear: np.ndarray, costs: np.ndarray, room: float) -> np.ndarray:
    """Counts from `cheap` towards `dear`, one exchange of two rollouts at a time, for at most `room` more tokens."""
    more = np.repeat(np.arange(costs.size), np.maximum(dear - cheap, 0))
    fewer = np.repeat(np.arange(costs.size), np.maximum(cheap - dear, 0))
    more = more[np.argsort(costs[more], kind="stable")]
    fewer = fewer[np.argsort(costs[fewer], kind="stable")]
    exchange = costs[more] - costs[fewer]
    counts = cheap.copy()
    for j in np.argsort(-exchange, kind="stable"):
        if 0.0 < exchange[j] <= room:
            room -= float(exchange[j])
            counts[more[j]] += 1
            counts[fewer[j]] -= 1
    return counts


def evolve(
    value: Callable[[np.ndarray], float],
    low: np.ndarray,
    high: np.ndarray,
    budget: int,
    starts: list[np.ndarray],
    seed: int,
    population: int = 50,
    generations: int = 100,
) -> tuple[np.ndarray, float]:
    """
    pymoo's genetic algorithm on the counts themselves, for a value `f(counts (P,)) -> float` of any kind.

    Every candidate is repaired to the budget and the bounds, and `starts` are among the first ones, so the result is
    never worse than they are. Returns `(counts, value)`; nothing is proven of them.

    Raises:
        `ImportError`: if pymoo is missing.
    """
    try:
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.problem import ElementwiseProblem
        from pymoo.core.repair import Repair
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.optimize import minimize
    except ImportError as error:
        raise missing_extra('solver="genetic" needs pymoo', "genetic") from error

    rng = np.random.default_rng(seed)

    def fit(counts: np.ndarray) -> np.ndarray:
        """The nearest counts within the bounds that sum to the budget, up to chance."""
        counts = np.clip(np.rint(counts).astype(np.int64), low, high)
        while (excess := int(counts.sum()) - budget) != 0:
            step = -np.sign(excess)
            free = np.flatnonzero(counts > low if excess > 0 else counts < high)
            counts[rng.permutation(free)[: abs(excess)]] += step
        return counts

    class Budget(Repair):
        def _do(self, problem, X, **kwargs):
            return np.array([fit(x) for x in X])

    class Rollouts(ElementwiseProblem):
        def __init__(self):
            super().__init__(n_var=low.size, n_obj=1, xl=low, xu=high, vtype=int)

        def _evaluate(self, x, out, *args, **kwargs):
            out["F"] = -float(value(x.astype(np.int64)))

    first = [fit(start) for start in starts]
    while len(first) < population:
        first.append(fit(rng.uniform(low, high)))
    algorithm = GA(
        pop_size=population,
        sampling=np.array(first),  # type: ignore[arg-type]  # an array of candidates will do
        crossover=SBX(vtype=float, repair=RoundingRepair()),
        mutation=PM(vtype=float, repair=RoundingRepair()),
        repair=Budget(),
        eliminate_duplicates=True,
    )
    result = minimize(Rollouts(), algorithm, ("n_gen", generations), seed=seed, verbose=False)
    return np.asarray(result.X, dtype=np.int64), -float(np.ravel(result.F)[0])  # type: ignore[arg-type]

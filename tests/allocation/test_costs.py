import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import check, problems

from trl_knapsack.allocation import BetaBeliefs, allocate, marginal_gains


@st.composite
def limited(draw):
    """A problem with integer costs and a limit that some allocation meets."""
    rates, low, high, budget = draw(problems(st.integers(1, 5), st.integers(0, 4)))
    costs = [float(draw(st.integers(1, 9))) for _ in rates]
    # The fewest tokens: the rollouts above the bounds to the cheapest prompts, one at a time.
    cheap = naive.greedy(lambda i, n: -costs[i], low, high, budget)
    least = sum(c * n for c, n in zip(costs, cheap, strict=True))
    return rates, low, high, budget, costs, least + draw(st.integers(0, 20))


@given(limited())
def test_limit_by_dynamic_programming_is_exact(problem):
    rates, low, high, budget, costs, limit = problem
    found = allocate(
        rates, budget, min_generations=low, max_generations=high, costs=costs, max_cost=limit, solver="dp"
    )
    check(found, low, high, budget)
    assert found.cost == np.dot(costs, found.counts) <= limit
    best = naive.brute_force(naive.table(rates, max(high)), low, high, budget, costs, limit)
    assert found.value == pytest.approx(best, rel=1e-12, abs=1e-15)
    assert found.upper_bound == found.value


@given(limited())
def test_limit_by_prices_is_feasible_and_its_bound_holds(problem):
    rates, low, high, budget, costs, limit = problem
    found = allocate(rates, budget, min_generations=low, max_generations=high, costs=costs, max_cost=limit)
    check(found, low, high, budget)
    assert found.cost <= limit
    best = naive.brute_force(naive.table(rates, max(high)), low, high, budget, costs, limit)
    assert found.value <= best + 1e-12
    assert found.upper_bound >= best - 1e-12
    assert found.gap == found.upper_bound - found.value >= 0


@given(problems(st.integers(1, 5), st.integers(0, 4)), st.integers(0, 50), st.data())
def test_weighing_tokens_is_exact(problem, weight, data):
    rates, low, high, budget = problem
    costs = np.array([data.draw(st.integers(1, 9)) for _ in rates], dtype=float)
    weight = weight / 1000
    found = allocate(rates, budget, min_generations=low, max_generations=high, costs=costs, cost_weight=weight)
    check(found, low, high, budget)
    net = np.array(naive.table(rates, max(high))) - weight * costs[:, None] * np.arange(max(high) + 1)
    best = naive.brute_force(net, low, high, budget)
    assert found.value - weight * found.cost == pytest.approx(best, rel=1e-12, abs=1e-13)
    tabled = allocate(
        rates,
        budget,
        min_generations=low,
        max_generations=high,
        costs=costs,
        cost_weight=weight,
        value=np.array(naive.table(rates, max(high))),
    )
    assert tabled.value - weight * tabled.cost == pytest.approx(best, rel=1e-12, abs=1e-13)


def test_shadow_price_is_net_of_tokens():
    rates, costs, mu = np.array([0.1, 0.4, 0.9]), np.array([7.0, 5.0, 3.0]), 1e-4
    found = allocate(rates, 30, max_generations=20, costs=costs, cost_weight=mu)
    free = found.counts < 20
    assert found.shadow_price == pytest.approx((marginal_gains(rates, found.counts) - mu * costs)[free].max())
    assert allocate(rates, 60, max_generations=20, costs=costs, cost_weight=mu).shadow_price == 0


def test_a_limit_that_does_not_bind_changes_nothing():
    rates = [0.1, 0.4, 0.9]
    free = allocate(rates, 24)
    limited = allocate(rates, 24, costs=[5, 6, 7], max_cost=1e9)
    assert limited.counts.tolist() == free.counts.tolist()
    assert limited.gap == 0 and limited.cost_price == 0


@pytest.mark.parametrize("share", [0.9, 0.97])
def test_gap_is_small_on_many_prompts(share):
    rng = np.random.default_rng(0)
    beliefs = BetaBeliefs(0.5 + rng.gamma(1, 3, 1000), 0.5 + rng.gamma(1, 3, 1000))
    costs = rng.lognormal(6, 0.5, 1000)
    free = allocate(beliefs, 8000)
    limit = share * float(costs @ free.counts)
    found = allocate(beliefs, 8000, costs=costs, max_cost=limit)
    assert found.counts.sum() == 8000 and found.cost <= limit
    assert found.gap <= 1e-4 * found.value  # less than the exchange of two rollouts
    assert found.gap == pytest.approx(found.cost_price * (limit - found.cost), abs=1e-9 * found.value)
    assert 0 < found.value < free.value and found.cost_price > 0
    # At the price that was found, weighing tokens gives a value that the limit cannot beat.
    priced = allocate(beliefs, 8000, costs=costs, cost_weight=found.cost_price)
    assert found.value - found.cost_price * found.cost <= priced.value - priced.cost_price * priced.cost + 1e-9


def test_prompts_alike_but_for_their_tokens_take_what_the_limit_leaves():
    """At the price where equal prompts tie, rollouts are exchanged one by one: none is lost, and none is made up."""
    random = np.random.default_rng(0)
    for _ in range(20):
        rates, costs = random.choice([0.2, 0.5], 12), random.choice([1.0, 2.0, 3.0], 12)
        free = allocate(rates, 48, min_generations=1, max_generations=48)
        least = costs.sum() + 36 * costs.min()
        limit = least + (free.counts @ costs - least) * random.uniform(0.3, 0.9)
        found = allocate(rates, 48, min_generations=1, max_generations=48, costs=costs, max_cost=limit)
        check(found, 1, 48, 48)
        assert found.cost == found.counts @ costs <= limit
        assert found.gap < 0.05 * found.value

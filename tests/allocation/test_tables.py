import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import check, problems

from trl_knapsack.allocation import BetaBeliefs, WeightedSum, allocate


@st.composite
def tables(draw, concave):
    """A table of values, with bounds and a budget."""
    _, low, high, budget = draw(problems(st.integers(1, 5), st.integers(0, 4)))
    longest = max(high)
    # Small integers: many ties, negative gains, and no rounding.
    gains = [[draw(st.integers(-4, 6)) for _ in range(longest)] for _ in low]
    if concave:
        gains = [sorted(row, reverse=True) for row in gains]
    start = [draw(st.integers(-3, 3)) for _ in low]
    values = [[float(s + sum(row[:n])) for n in range(longest + 1)] for s, row in zip(start, gains, strict=True)]
    return np.array(values), low, high, budget


@given(tables(concave=True))
def test_concave_tables_are_selected_from(problem):
    values, low, high, budget = problem
    found = allocate([0.5] * len(low), budget, min_generations=low, max_generations=high, value=values)
    check(found, low, high, budget)
    assert found.solver == "exact"
    assert found.value == naive.brute_force(values, low, high, budget)
    greedy = naive.greedy(lambda i, n: values[i][n + 1] - values[i][n], low, high, budget)
    assert found.counts.tolist() == greedy


@given(tables(concave=False))
def test_other_tables_are_solved_by_dynamic_programming(problem):
    values, low, high, budget = problem
    found = allocate([0.5] * len(low), budget, min_generations=low, max_generations=high, value=values)
    check(found, low, high, budget)
    best = naive.brute_force(values, low, high, budget)
    assert found.value == best == found.upper_bound
    bends = [
        np.diff(np.diff(row[lo : hi + 1])).max(initial=0.0) for row, lo, hi in zip(values, low, high, strict=True)
    ]
    assert found.solver == ("dp" if max(bends) > 0 else "exact")
    if budget < sum(high):
        more = naive.brute_force(values, low, high, budget + 1)
        assert found.shadow_price == more - best


@given(problems(st.integers(1, 6), st.integers(0, 6)))
def test_dp_and_exact_agree_on_rates(problem):
    rates, low, high, budget = problem
    exact = allocate(rates, budget, min_generations=low, max_generations=high)
    dp = allocate(rates, budget, min_generations=low, max_generations=high, solver="dp")
    check(dp, low, high, budget)
    assert dp.solver == "dp"
    assert dp.value == pytest.approx(exact.value, rel=1e-12, abs=1e-15)
    assert dp.shadow_price == pytest.approx(exact.shadow_price, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize(("prompts", "budget", "counts"), [(2, 5, [3, 2]), (4, 10, [3, 3, 2, 2])])
def test_dp_gives_what_is_left_to_the_first_of_equal_prompts(prompts, budget, counts):
    for solver in ("dp", "exact"):
        assert allocate([0.5] * prompts, budget, max_generations=9, solver=solver).counts.tolist() == counts


def test_ties_in_a_table_go_to_the_fewest_rollouts_then_the_lowest_index():
    # Every rollout gains 1: of five, the first prompt does not get them all.
    table = np.tile(np.arange(7.0), (3, 1))
    assert allocate([0.5] * 3, 5, min_generations=0, max_generations=6, value=table).counts.tolist() == [2, 2, 1]
    found = allocate([0.5] * 3, 8, min_generations=[3, 0, 1], max_generations=6, value=table)
    assert found.counts.tolist() == [3, 3, 2] and found.shadow_price == 1


def test_a_greedy_choice_would_be_wrong():
    # Two prompts, two rollouts above 0. Prompt 0 gains 1 then 0, prompt 1 gains 0 then 5: a convex piece that selection of
    # the largest single gains would pass by.
    table = np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 5.0]])
    found = allocate([0.5, 0.5], 2, min_generations=0, max_generations=2, value=table)
    assert found.counts.tolist() == [0, 2] and found.value == 5.0 and found.solver == "dp"


def test_callables_see_rates_or_beliefs():
    rates = np.array([0.2, 0.6, 0.9])

    def variance(p, n):
        return np.where(n > 0, 1 - p**n - (1 - p) ** n, 0) * p * (1 - p)

    own = allocate(rates, 30, value=variance)
    named = allocate(rates, 30, value="variance")
    assert own.counts.tolist() == named.counts.tolist() and own.solver == "exact"

    beliefs = BetaBeliefs([0.5, 3.0], [2.5, 0.5])

    def by_mean(known, n):
        return known.mean[:, None] * np.sqrt(n)

    assert allocate(beliefs, 20, value=by_mean).counts.sum() == 20


def test_sums_of_shapes_under_beliefs_go_through_a_table():
    beliefs = BetaBeliefs([0.5, 3.0, 1.5], [2.5, 0.5, 1.5])
    value = WeightedSum([(1.0, "knapsack"), (0.3, "mixed"), (0.1, np.array([0.0, 1.0, 2.0]))])
    found = allocate(beliefs, 40, value=value)
    values = [
        [naive.expected_value(a, b, n) + (0.3 + 0.1 * i) * naive.expected_value(a, b, n, "mixed") for n in range(40)]
        for i, (a, b) in enumerate(zip(beliefs.alpha, beliefs.beta, strict=True))
    ]
    counts = naive.greedy(lambda i, n: values[i][n + 1] - values[i][n], [2] * 3, [38] * 3, 40)
    assert found.counts.tolist() == counts
    assert found.value == pytest.approx(sum(values[i][n] for i, n in enumerate(counts)), rel=1e-9)

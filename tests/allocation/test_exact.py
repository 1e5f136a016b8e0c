from fractions import Fraction

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from naive import check, parameters, problems

from trl_knapsack.allocation import BetaBeliefs, WeightedSum, allocate, expected_values, marginal_gains, selection


names = st.sampled_from(list(naive.POWERS))


@given(problems(), names)
def test_rates_against_brute_force(problem, name):
    rates, low, high, budget = problem
    found = allocate(rates, budget, min_generations=low, max_generations=high, value=name)
    check(found, low, high, budget)
    best = naive.brute_force(naive.table(rates, max(high), name), low, high, budget)
    assert found.value == pytest.approx(best, rel=1e-12, abs=1e-15)
    assert found.value == pytest.approx(expected_values(rates, found.counts, name).sum(), rel=1e-12, abs=1e-15)
    assert found.upper_bound == found.value and found.gap == 0 and found.solver == "exact"


@given(problems(known=st.tuples(parameters, parameters)), names)
def test_beliefs_against_brute_force(problem, name):
    pairs, low, high, budget = problem
    beliefs = BetaBeliefs(*zip(*pairs, strict=True))
    found = allocate(beliefs, budget, min_generations=low, max_generations=high, value=name)
    check(found, low, high, budget)
    values = [[naive.expected_value(a, b, n, name) for n in range(max(high) + 1)] for a, b in pairs]
    assert found.value == pytest.approx(naive.brute_force(values, low, high, budget), rel=1e-9, abs=1e-14)


@given(problems(st.integers(1, 40), st.integers(0, 30)), names)
def test_rates_against_greedy(problem, name):
    rates, low, high, budget = problem
    found = allocate(rates, budget, min_generations=low, max_generations=high, value=name)
    check(found, low, high, budget)
    counts = naive.greedy(lambda i, n: naive.gain(rates[i], n, name), low, high, budget)
    best = sum(naive.value(p, n, name) for p, n in zip(rates, counts, strict=True))
    assert found.value == pytest.approx(best, rel=1e-11, abs=1e-14)
    left = [naive.gain(p, n, name) for p, n, hi in zip(rates, found.counts, high, strict=True) if n < hi]
    assert found.shadow_price == pytest.approx(max(left, default=0.0), rel=1e-9, abs=1e-300)


@given(problems(st.integers(1, 12), st.integers(0, 9), st.integers(0, 8).map(lambda k: Fraction(k, 8))))
def test_ties_go_to_the_fewest_rollouts_then_the_lowest_index(problem):
    # Eighths with at most 12 rollouts: doubles hold every gain exactly, and fractions decide the ties.
    rates, low, high, budget = problem
    found = allocate([float(p) for p in rates], budget, min_generations=low, max_generations=high)
    assert found.counts.tolist() == naive.greedy(lambda i, n: naive.gain(rates[i], n), low, high, budget)


@given(problems(st.integers(1, 40), st.integers(0, 30)), st.integers(0, 2**32 - 1))
def test_permuting_the_prompts_permutes_the_counts(problem, seed):
    _, low, high, budget = problem
    rng = np.random.default_rng(seed)
    rates = rng.random(len(low))  # without ties, which the order of the prompts decides
    order = rng.permutation(len(rates))
    straight = allocate(rates, budget, min_generations=low, max_generations=high)
    permuted = allocate(
        [rates[i] for i in order],
        budget,
        min_generations=[low[i] for i in order],
        max_generations=[high[i] for i in order],
    )
    assert straight.counts[order].tolist() == permuted.counts.tolist()
    assert straight.shadow_price == permuted.shadow_price


@given(st.integers(1, 60), st.integers(2, 30), parameters, parameters, st.floats(0, 1))
def test_equal_prompts_get_equal_counts(prompts, share, a, b, p):
    beliefs = BetaBeliefs([a] * prompts, [b] * prompts)
    for known in (beliefs, [p] * prompts):
        assert set(allocate(known, prompts * share, max_generations=64).counts.tolist()) == {share}


@given(problems(st.integers(2, 30), st.integers(0, 20), st.tuples(parameters, parameters)))
def test_one_more_rollout_brings_the_shadow_price(problem):
    pairs, low, high, budget = problem
    beliefs = BetaBeliefs(*zip(*pairs, strict=True))
    found = allocate(beliefs, budget, min_generations=low, max_generations=high)
    if budget == sum(high):
        assert found.shadow_price == 0
        return
    more = allocate(beliefs, budget + 1, min_generations=low, max_generations=high)
    assert more.value - found.value == pytest.approx(found.shadow_price, rel=1e-6, abs=1e-13)
    assert np.all(more.counts >= found.counts) and (more.counts - found.counts).sum() == 1


def test_bounds_that_leave_no_choice():
    assert allocate([0.1, 0.5, 1.0], 24, min_generations=8, max_generations=8).counts.tolist() == [8, 8, 8]


def test_hand_worked_allocation():
    # p = 1/2 gains 1/32, 1/64, ... after 2, 3, ... rollouts; p = 1/4 gains 27/1024 * (3/4)^(N-2) + 9/1024 * (1/4)^(N-2):
    #   N             2        3        4        5
    #   p = 1/2    .03125   .01563   .00781   .00391
    #   p = 1/4    .03516   .02197   .01538   .01126
    # The seven largest of both columns, six above the bounds:
    #   .03516 .03125 .02197 .01563 .01538 .01126 -> two for 1/2, four for 1/4
    assert allocate([0.5, 0.25], 10).counts.tolist() == [4, 6]


@pytest.mark.parametrize("power", [2, 20, 1000])
def test_long_walks(power):
    # Thousands of rollouts on few prompts: underflow to a gain of zero, and what is left after that.
    rates = np.array([0.5, 0.1, 0.0, 1e-4, 1.0])
    budget = 5 * power + 17
    found = allocate(rates, budget, max_generations=10_000)
    gains = np.array([[naive.gain(p, n) if n else 0.0 for n in range(budget)] for p in rates])
    best = sum(naive.value(p, 2) for p in rates) + naive.largest_gains(gains, [2] * 5, [10_000] * 5, budget)
    assert found.counts.sum() == budget
    assert found.value == pytest.approx(best, rel=1e-9)


def test_zero_gains_are_shared_like_any_tie():
    # Nothing is gained anywhere, so the rollouts go to the prompts with the fewest, up to their bounds.
    counts = allocate([0.0, 1.0, 0.0, 1.0], 22, min_generations=[1, 5, 2, 2], max_generations=[4, 9, 30, 30]).counts
    assert counts.tolist() == [4, 6, 6, 6]


@pytest.mark.parametrize("prompts", [600, 70_000])
def test_samples_of_samples(prompts):
    # Few enough cases for a run without compilation, which the next test is too slow for.
    p = np.random.default_rng(2).beta(0.5, 0.7, prompts)
    found = allocate(p, 8 * prompts)
    check(found, 2, 128, 8 * prompts)
    last = marginal_gains(p, found.counts - 1)[found.counts > 2]
    assert last.min() >= marginal_gains(p, found.counts).max() * (1 - 1e-12)


@pytest.mark.compiled
@pytest.mark.parametrize("prompts", [513, 5_000, 70_000])
@pytest.mark.parametrize("kind", ["uniform", "skewed", "eighths", "sorted", "periodic", "equal", "extreme"])
@pytest.mark.parametrize("share", [2.001, 8, 40])
def test_large_problems_against_sorting_all_gains(prompts, kind, share):
    rng = np.random.default_rng(prompts)
    p = {
        "uniform": lambda: rng.random(prompts),
        "skewed": lambda: rng.beta(0.3, 0.6, prompts),
        "eighths": lambda: rng.integers(0, 9, prompts) / 8,
        "sorted": lambda: np.sort(rng.beta(0.5, 0.5, prompts)),
        "periodic": lambda: np.resize(np.where(np.arange(16) % 16 == 0, 0.4, 0.02), prompts),
        "equal": lambda: np.full(prompts, 0.3),
        "extreme": lambda: rng.choice([0.0, 1e-9, 0.999, 1.0], prompts),
    }[kind]()
    budget = int(share * prompts)
    found = allocate(p, budget)
    check(found, 2, 128, budget)
    n = np.arange(128)[None, :]
    gains = naive.gain(p[:, None], n)
    best = naive.value(p, 2).sum() + naive.largest_gains(gains, np.full(prompts, 2), np.full(prompts, 128), budget)
    assert found.value == pytest.approx(best, rel=1e-10)
    assert found.value == pytest.approx(expected_values(p, found.counts).sum(), rel=1e-10)


@pytest.mark.compiled
@pytest.mark.parametrize("share", [2.001, 8, 40])
@pytest.mark.parametrize("value", ["knapsack", "root"])
def test_large_beliefs_satisfy_the_optimality_condition(share, value):
    # No gain that was taken is smaller than one that was not: with concave values this is optimality.
    rng = np.random.default_rng(0)
    prompts = 40_000
    beliefs = BetaBeliefs(0.5 + rng.gamma(1.0, 3.0, prompts), 0.5 + rng.gamma(1.0, 3.0, prompts))
    low, high = rng.integers(1, 4, prompts), rng.integers(40, 90, prompts)
    budget = int(share * prompts)
    found = allocate(beliefs, budget, min_generations=low, max_generations=high, value=value)
    check(found, low, high, budget)
    last = marginal_gains(beliefs, np.maximum(found.counts - 1, 1), value)[found.counts > low]
    following = marginal_gains(beliefs, found.counts, value)[found.counts < high]
    assert last.min() >= following.max() * (1 - 1e-12)
    assert found.shadow_price == pytest.approx(following.max(), rel=1e-12)
    assert found.value == pytest.approx(expected_values(beliefs, found.counts, value).sum(), rel=1e-11)


@pytest.mark.compiled
def test_a_weight_of_one_changes_nothing():
    rng = np.random.default_rng(1)
    p = rng.random(100_000)
    low, high = rng.integers(1, 5, p.size), rng.integers(5, 60, p.size)
    bounds = dict(min_generations=low, max_generations=high)
    plain = allocate(p, 900_000, value="mixed", **bounds)
    assert plain == allocate(p, 900_000, value=WeightedSum([(1.0, np.ones(p.size))]), **bounds)


@pytest.mark.parametrize("sampled, others", [(0.0, 0.4), (0.4, 0.0), (1e-9, 0.3), (0.3, 1e-9), (0.5, 0.05)])
@pytest.mark.parametrize("share", [2.1, 8, 20])
def test_a_sample_that_misleads_costs_time_and_nothing_else(sampled, others, share):
    # The prompts that the sample asks are unlike all the others.
    prompts = 600
    p = np.full(prompts, others) * np.linspace(0.9, 1, prompts)
    p[selection._sample(prompts, prompts // selection.STRIDE)] = sampled
    budget = int(share * prompts)
    found = allocate(p, budget, max_generations=30)
    check(found, 2, 30, budget)
    gains = naive.gain(p[:, None], np.arange(30)[None, :])
    best = naive.value(p, 2).sum() + naive.largest_gains(gains, np.full(prompts, 2), np.full(prompts, 30), budget)
    assert found.value == pytest.approx(best, rel=1e-10)


@pytest.mark.parametrize("share, most", [(3, 9), (120, 128), (120, 400), (399, 400)])
def test_extreme_beliefs_and_large_counts(share, most):
    # Parameters from 1e-6 to 1e12, budgets that leave hardly any choice, and counts beyond the default bound.
    rng = np.random.default_rng(share + most)
    beliefs = BetaBeliefs(10 ** rng.uniform(-6, 12, 90), 10 ** rng.uniform(-6, 12, 90))
    low = rng.integers(1, 3, 90)
    found = allocate(beliefs, share * 90, min_generations=low, max_generations=most)
    check(found, low, most, share * 90)
    last = marginal_gains(beliefs, np.maximum(found.counts - 1, 1))[found.counts > low]
    following = marginal_gains(beliefs, found.counts)[found.counts < most]
    assert np.all(np.isfinite(last)) and last.min() >= following.max(initial=0.0)
    assert found.shadow_price == following.max(initial=0.0)

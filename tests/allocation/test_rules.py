from dataclasses import dataclass

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_knapsack.allocation import RULES, AllocationRule, BetaBeliefs, PaperRule, allocate, get_rule


nan = float("nan")


@dataclass
class Evidence:
    """What a policy reads of the tracker's evidence."""

    alpha: np.ndarray
    beta: np.ndarray
    last_rate: np.ndarray
    visits: np.ndarray
    mean_length: np.ndarray


def evidence(last_rate):
    """One visit of eight rollouts each, none where the rate is NaN."""
    rate = np.array(last_rate, dtype=float)
    seen = ~np.isnan(rate)
    known = np.where(seen, rate, 0.0)
    return Evidence(0.5 + 8 * known * seen, 0.5 + 8 * (1 - known) * seen, rate, seen.astype(int), 100.0 * rate)


@st.composite
def situations(draw):
    size = draw(st.integers(1, 24))
    rates = [draw(st.sampled_from([nan, 0.0, 0.125, 0.5, 0.875, 1.0])) for _ in range(size)]
    low = draw(st.integers(1, 4))
    high = low + draw(st.integers(0, 30))
    budget = draw(st.one_of(st.integers(low * size, high * size), st.sampled_from([low * size, high * size])))
    return evidence(rates), budget, low, high


@pytest.mark.parametrize("name", RULES)
@given(situations())
def test_counts_sum_to_the_budget_within_the_bounds(name, situation):
    policy = get_rule(name)
    assert isinstance(policy, AllocationRule)
    counts = policy(*situation).counts
    _, budget, low, high = situation
    assert counts.dtype == np.int64 and counts.sum() == budget and counts.min() >= low and counts.max() <= high


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("rate", [nan, 0.0, 0.5, 1.0])
def test_equal_evidence_gets_equal_counts(name, rate):
    assert set(get_rule(name)(evidence([rate] * 32), 256, 2, 128).counts.tolist()) == {8}


@pytest.mark.parametrize("name", RULES)
def test_bounds_that_leave_no_choice_are_plain_grpo(name):
    assert get_rule(name)(evidence([0, 0.1, 1, nan]), 32, 8, 8).counts.tolist() == [8] * 4


def test_posterior_is_the_knapsack_of_the_beliefs():
    known = evidence([0.0, 0.25, 1.0, nan])
    expected = allocate(BetaBeliefs(known.alpha, known.beta), 32, min_generations=2, max_generations=20)
    assert get_rule("posterior")(known, 32, 2, 20).counts.tolist() == expected.counts.tolist()


def test_posterior_leaves_no_prompt_without_value():
    # One visit without a success is no proof: such a prompt still gets more than the least.
    counts = get_rule("posterior")(evidence([0.0, 0.5, 0.5, 1.0]), 48, 2, 32).counts
    assert counts[0] > 2


@given(situations())
def test_uniform_is_as_equal_as_the_bounds_allow(situation):
    counts = get_rule("uniform")(*situation).counts
    assert counts.max() - counts.min() <= 1
    assert np.all(np.diff(counts) <= 0)  # a rest goes to the first prompts


def test_filter():
    # 0 and 1 get two, the rest of 36 - 4 = 32 rollouts is shared by the other four, unseen ones among them
    assert get_rule("filter")(evidence([0, 0.5, 1, 0.1, nan, nan]), 36, 2, 128).counts.tolist() == [2, 8, 2, 8, 8, 8]
    # the others cannot take it all: what is left goes to the filtered ones
    assert get_rule("filter")(evidence([0, 0.5, 1, 0]), 32, 2, 10).counts.tolist() == [8, 10, 7, 7]


def test_paper_shares_what_unseen_prompts_leave():
    # Unseen prompts get the mean, 8. The other 16 rollouts: two for the solved one, 14 for the rate between.
    assert get_rule("paper")(evidence([nan, 1, 0.1, nan]), 32, 2, 128).counts.tolist() == [8, 2, 14, 8]


def test_paper_gives_the_left_over_to_never_solved_prompts():
    # p = 1/2 is mixed with 90 % after log(.1) / log(.5) = 3.3 more rollouts: 2 + 3. Of 32, 32 - 5 - 2 = 25 are left for
    # the two that were never solved.
    assert get_rule("paper")(evidence([0, 0.5, 1, 0]), 32, 2, 128).counts.tolist() == [13, 5, 2, 12]
    # ... but within max_generations, after which the solved one and at last the mixed one take more
    assert get_rule("paper")(evidence([0, 0.5, 1, 0]), 32, 2, 10).counts.tolist() == [10, 5, 7, 10]
    assert get_rule("paper")(evidence([0, 0.5, 1, 0]), 38, 2, 10).counts.tolist() == [10, 8, 10, 10]


def test_paper_without_fallback_keeps_never_solved_prompts_at_the_least():
    counts = PaperRule(confidence=1.0)(evidence([0, 0.5, 1, 0.1]), 32, 2, 128).counts
    assert counts[[0, 2]].tolist() == [2, 2]
    best = naive.greedy(lambda i, n: naive.gain([0.5, 0.1][i], n), [2, 2], [128, 128], 28)
    assert counts[[1, 3]].tolist() == best


def test_paper_with_nothing_left_is_the_knapsack_of_the_last_rates():
    rates = [0.1, 0.05, 0.9, 0.3]
    assert get_rule("paper")(evidence(rates), 32, 2, 128).counts.tolist() == allocate(rates, 32).counts.tolist()


def test_unknown_name():
    with pytest.raises(ValueError, match="allocation 'best' is not known; choose one of 'posterior', 'paper'"):
        get_rule("best")


def test_a_function_is_a_policy():
    def mine(evidence, budget, min_generations, max_generations):
        return allocate(BetaBeliefs(evidence.alpha, evidence.beta), budget, value="mixed")

    assert isinstance(mine, AllocationRule)

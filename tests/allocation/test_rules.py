import re
from dataclasses import replace

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_knapsack.allocation import (
    RULES,
    Allocation,
    AllocationRule,
    BetaBeliefs,
    Evidence,
    PaperRule,
    PosteriorRule,
    UniformRule,
    WeightedSum,
    allocate,
    checked_allocation,
    expected_values,
    get_rule,
    marginal_gains,
)
from trl_knapsack.allocation.rules import check_rule
from trl_knapsack.errors import InvalidInputError


nan = float("nan")


def evidence(last_rate):
    """One visit of eight rollouts each, none where the rate is NaN."""
    rate = np.array(last_rate, dtype=float)
    seen = ~np.isnan(rate)
    known = np.where(seen, rate, 0.0)
    return Evidence(
        keys=tuple(f"p{i}" for i in range(rate.size)),
        alpha=0.5 + 8 * known * seen,
        beta=0.5 + 8 * (1 - known) * seen,
        last_rate=rate,
        visits=seen.astype(int),
        mean_length=100.0 * rate,
    )


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
    rule = get_rule(name)
    assert isinstance(rule, AllocationRule)
    counts = rule(*situation).counts
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


@pytest.mark.parametrize("confidence", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e-17, 1 - 2**-53])
def test_paper_with_a_rate_next_to_0_or_1(rate, confidence):
    """A group of such a prompt is never mixed with confidence: it may have all that there is."""
    rule = PaperRule(confidence=confidence)
    counts = rule(evidence([rate, 1, 1, 0]), 32, 2, 20).counts
    assert counts.sum() == 32 and counts.min() >= 2 and counts.max() <= 20
    if confidence:
        assert counts[0] == 20


def test_unknown_name():
    with pytest.raises(ValueError, match="allocation 'best' is not known; choose one of 'posterior', 'paper'"):
        get_rule("best")


# ------------------------------------------------------------------------------------------- what a rule is judged by


@pytest.mark.parametrize("name", RULES)
def test_rules_are_judged_in_the_value_that_is_asked_for(name):
    known = evidence([0.1, 0.25, 0.9, 0.5])
    for value in ("knapsack", "variance"):
        found = get_rule(name, value)(known, 32, 2, 20)
        rates = known.last_rate if name == "paper" else known.beliefs
        gains = marginal_gains(rates, found.counts, value)
        assert found.value == pytest.approx(expected_values(rates, found.counts, value).sum())
        assert found.shadow_price == pytest.approx(gains[found.counts < 20].max())


@pytest.mark.parametrize("name", RULES)
def test_the_price_counts_only_prompts_that_may_take_more(name):
    # Prompt 1 gains most by far, and is at its maximum (of the filter and the knapsack) or everybody is.
    found = get_rule(name)(evidence([1, 0.3, 1, 1]), 19, 2, 10)
    gains = marginal_gains(evidence([1, 0.3, 1, 1]).beliefs, found.counts)
    if name in ("posterior", "filter"):
        assert found.counts[1] == 10 and found.shadow_price == pytest.approx(gains[[0, 2, 3]].max())
    assert get_rule(name)(evidence([1, 0.3, 1, 1]), 40, 2, 10).shadow_price == 0


# ----------------------------------------------------------------------------------------------- rules of the user's own


def test_a_function_is_a_rule():
    def mine(evidence, budget, min_generations, max_generations):
        return allocate(evidence.beliefs, budget, value="mixed")

    assert isinstance(mine, AllocationRule) and check_rule(mine) is mine
    assert checked_allocation(mine, evidence([0.1, 0.5]), 16, 2, 128).counts.sum() == 16


def test_weights_per_prompt_through_a_rule_that_looks_at_keys():
    weights = {"p0": 4.0, "p1": 1.0, "p2": 1.0}

    def curriculum(evidence, budget, min_generations, max_generations):
        value = WeightedSum([(1.0, np.array([weights[key] for key in evidence.keys]))])
        return PosteriorRule(value)(evidence, budget, min_generations, max_generations)

    known = evidence([0.125, 0.125, 0.125])
    found = checked_allocation(check_rule(curriculum), known, 30, 2, 20)
    # E[1 - p^n - (1-p)^n] by its gains, four times as much for the first; one rollout at a time
    a, b = known.alpha[0], known.beta[0]

    def gain(i, n):
        value = [naive.expected_value(a, b, m, "mixed") for m in (n, n + 1)]
        return [4.0, 1.0, 1.0][i] * (value[1] - value[0])

    assert found.counts.tolist() == naive.greedy(gain, [2] * 3, [20] * 3, 30)
    assert found.counts[0] > found.counts[1] >= found.counts[2]
    # The sampler brings the prompts in another order: the weights go with their keys.
    turned = Evidence(known.keys[::-1], known.alpha, known.beta, known.last_rate, known.visits, known.mean_length)
    assert curriculum(turned, 30, 2, 20).counts[2] == found.counts[0]


def test_integer_lists_and_whole_floats_are_counts():
    for counts in ([2, 3], (2, 3), np.array([2, 3], np.int32), np.array([2.0, 3.0])):
        found = Allocation(counts).counts
        assert found.tolist() == [2, 3] and found.dtype == np.int64


@pytest.mark.parametrize("counts", [[2.5, 3], [[2, 3]], 5, "ab", [True, False], [nan, 2], [[2], [3, 4]], None])
def test_other_counts_are_refused(counts):
    with pytest.raises(
        InvalidInputError, match=r"^counts must be whole numbers of shape \(P,\), not .*; give the rollouts"
    ):
        Allocation(counts)


class Callable:
    def __call__(self, evidence, budget):
        """Two arguments too few."""


NOT_RULES = [
    (
        "posterior",
        "allocation_rule ('posterior') must be a rule, not a name; for a built-in rule set allocation='posterior'",
    ),
    (UniformRule, "allocation_rule is the class UniformRule, but must be an instance; give UniformRule()."),
    (
        8,
        "allocation_rule (8) must be callable; give a function or an object, rule(evidence, budget, min_generations, max",
    ),
    (
        lambda evidence, budget: None,
        "allocation_rule <lambda> takes (evidence, budget), but is called with four arguments",
    ),
    (
        Callable(),
        "takes (evidence, budget), but is called with four arguments; write it as rule(evidence, budget, min_g",
    ),
]


@pytest.mark.parametrize("rule, sentence", NOT_RULES)
def test_what_is_no_rule_is_refused(rule, sentence):
    with pytest.raises(InvalidInputError, match=re.escape(sentence)) as error:
        check_rule(rule)
    assert "\n" not in str(error.value)


def test_every_rule_passes_its_own_check():
    for name in RULES:
        assert check_rule(get_rule(name)) == get_rule(name)


ANSWERS = [
    ([8, 8], "The allocation rule mine returned [8, 8], but must return an Allocation; return Allocation(counts)."),
    (np.array([8, 8]), "mine returned [8, 8], but must return an Allocation; return Allocation(counts)."),
    (None, "mine returned None, but must return an Allocation"),
    (Allocation([16]), "mine returned counts for 1 prompts, but there are 2; give one count for each."),
    (Allocation([1, 15]), "mine gave 1 rollouts to prompt 0 (p0), but each must get min_generations (2) to max_generations"),
    (Allocation([4, 12]), "mine gave 12 rollouts to prompt 1 (p1), but each must get min_generations (2) to max_generations (10)"),
    (Allocation([8, 7]), "mine gave out 15 rollouts, but the budget is 16; give out all of it and no more."),
]  # fmt: skip


@pytest.mark.parametrize("answer, sentence", ANSWERS, ids=range(len(ANSWERS)))
def test_a_rules_answer_is_checked(answer, sentence):
    def mine(*_):
        return answer

    with pytest.raises(InvalidInputError, match=re.escape(sentence)) as error:
        checked_allocation(mine, evidence([0.1, 0.5]), 16, 2, 10)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------- tokens


@st.composite
def with_lengths(draw):
    known, budget, low, high = draw(situations())
    lengths = draw(st.lists(st.sampled_from([nan, 0.0, 7.0, 100.0, 333.3]), min_size=len(known), max_size=len(known)))
    return replace(known, mean_length=np.array(lengths)), budget, low, high


@given(with_lengths())
def test_a_token_budget_takes_no_more_tokens_than_equal_shares(situation):
    known, budget, low, high = situation
    limited = PosteriorRule(token_budget="uniform")(known, budget, low, high)
    equal = UniformRule()(known, budget, low, high)
    given_lengths = [length for length in known.mean_length if length > 0]
    otherwise = sum(given_lengths) / len(given_lengths) if given_lengths else 1.0
    lengths = [length if length > 0 else otherwise for length in known.mean_length]

    def tokens(counts):
        return sum(n * length for n, length in zip(counts, lengths, strict=True))

    assert limited.counts.sum() == budget
    assert tokens(limited.counts) <= tokens(equal.counts) * (1 + 1e-8)
    # equal shares are within the limit, so that nothing is lost but by what the limit leaves unproven
    assert limited.value + limited.gap >= equal.value - 1e-9


@given(situations(), st.sampled_from([nan, 0.1, 333.3]))
def test_a_token_budget_changes_nothing_where_lengths_are_equal_or_unknown(situation, length):
    known, budget, low, high = situation
    known = replace(known, mean_length=np.full(len(known), length))
    limited = PosteriorRule(token_budget="uniform")(known, budget, low, high)
    assert limited.counts.tolist() == PosteriorRule()(known, budget, low, high).counts.tolist()


def test_a_token_budget_moves_rollouts_from_long_prompts_to_short_ones():
    known = replace(evidence([0.25, 0.25, 1.0, 1.0]), mean_length=np.array([900.0, 100.0, 300.0, 300.0]))
    free, limited = (PosteriorRule(token_budget=limit)(known, 32, 2, 128).counts for limit in (None, "uniform"))
    assert free[0] == free[1] > 8
    assert limited[0] < limited[1]
    assert limited @ known.mean_length <= 8 * 1600


def test_a_token_budget_that_is_not_known_is_refused():
    with pytest.raises(InvalidInputError, match=r"token_budget \('equal'\) must be 'uniform'"):
        PosteriorRule(token_budget="equal")

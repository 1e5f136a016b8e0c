from fractions import Fraction

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_knapsack.allocation import (
    VALUES,
    BetaBeliefs,
    MixedGroupValue,
    WeightedSum,
    expected_values,
    learning_progress,
    marginal_gains,
    novelty,
)


names = st.sampled_from(list(naive.POWERS))
parameters = st.floats(0.05, 60.0)


def test_hand_worked_values():
    # p = 1/2, N = 2: mixed with chance 1 - 1/4 - 1/4 = 1/2, times 1/2 * 1/4             = 1/16
    # p = 1/2, N = 3: 1 - 1/8 - 1/8 = 3/4, times 1/8                                     = 3/32
    # p = 1/4, N = 2: 1 - 1/16 - 9/16 = 3/8, times 1/4 * 9/16 = 9/64                     = 27/512
    # p = 0 and p = 1 never mix; one rollout never does.
    values = expected_values([0.5, 0.5, 0.25, 0.0, 1.0, 0.5, 0.5], [2, 3, 2, 9, 9, 1, 0])
    assert values.tolist() == [1 / 16, 3 / 32, 27 / 512, 0, 0, 0, 0]


@given(st.floats(0, 1), st.integers(0, 300), names)
def test_value_of_a_rate(p, n, name):
    assert expected_values([p], [n], name)[0] == pytest.approx(naive.value(p, n, name), rel=1e-9, abs=1e-15)


@given(parameters, parameters, st.integers(0, 130), names)
def test_expected_value_against_quadrature(a, b, n, name):
    value = expected_values(BetaBeliefs([a], [b]), [n], name)[0]
    assert value == pytest.approx(naive.expected_value(a, b, n, name), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize(
    "a, b", [("1/2", "1/2"), ("7/2", "1/2"), ("1/100", "3"), ("1000", "1/2"), ("123456", "789012")]
)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 10, 16, 17, 31, 128])
def test_expected_value_against_fractions(a, b, n):
    exact = float(naive.exact_expected_value(Fraction(a), Fraction(b), n))
    value = expected_values(BetaBeliefs([float(Fraction(a))], [float(Fraction(b))]), [n])[0]
    assert value == pytest.approx(exact, rel=1e-10)


def test_small_rates_lose_no_digits():
    # 1 - (1-p)^N cancels at p = 1e-12 when computed as it stands; N p (1 - (N-1) p / 2 ...) does not.
    p, n = 1e-12, 8
    assert expected_values([p], [n], "mixed")[0] == pytest.approx(n * p, rel=1e-10)


@given(st.floats(0, 1), parameters, parameters, names)
def test_gains_sum_to_the_value_and_fall(p, a, b, name):
    for known in ([p], BetaBeliefs([a], [b])):
        many = [p] * 40 if isinstance(known, list) else BetaBeliefs([a] * 40, [b] * 40)
        counts = np.arange(1, 41)
        gains = marginal_gains(many, counts, name)
        values = expected_values(many, counts, name)
        np.testing.assert_allclose(np.cumsum(gains)[:-1], values[1:], rtol=1e-9, atol=1e-15)
        assert np.all(np.diff(gains) <= 1e-15 * gains[0])


def test_beliefs_sharpen_to_the_rate():
    rates = np.array([0.1, 0.5, 0.9])
    sharp = BetaBeliefs(1e9 * rates, 1e9 * (1 - rates))
    np.testing.assert_allclose(expected_values(sharp, [8] * 3), expected_values(rates, [8] * 3), rtol=1e-6)


def test_weighted_sum_of_one_shape_is_that_shape():
    beliefs = BetaBeliefs([0.5, 2.5], [1.5, 0.5])
    twice = WeightedSum([(1.5, "knapsack"), (0.5, MixedGroupValue(1, 2))])
    np.testing.assert_allclose(expected_values(beliefs, [4, 9], twice), 2 * expected_values(beliefs, [4, 9]))


@pytest.mark.parametrize("known", [[0.2, 0.7], BetaBeliefs([0.5, 2.5], [1.5, 0.5])])
def test_weighted_sum_adds_up(known):
    weights = np.array([0.3, 0.0])
    value = WeightedSum([(2.0, "knapsack"), (0.5, "root"), (3.0, weights)])
    counts = [4, 9]
    parts = [expected_values(known, counts, name) for name in ("knapsack", "root", "mixed")]
    np.testing.assert_allclose(
        expected_values(known, counts, value), 2 * parts[0] + 0.5 * parts[1] + 3 * weights * parts[2], rtol=1e-12
    )


def test_callable_and_table_are_read_alike():
    rates = np.array([0.2, 0.7])
    table = np.array(naive.table(rates, 12, "variance"))

    def value(p, n):
        return np.where(n > 0, (1 - p**n - (1 - p) ** n) * p * (1 - p), 0.0)

    for own in (table, value):
        np.testing.assert_allclose(expected_values(rates, [3, 11], own), expected_values(rates, [3, 11], "variance"))


def test_components():
    assert novelty([0, 3]).tolist() == [1.0, 0.5]
    # |0.5 - 0.1| / 8; no rollouts and an unknown rate are no progress
    assert learning_progress([0.5, 0.5, np.nan], [0.1, 0.1, 0.1], [8, 0, 8]).tolist() == [0.05, 0.0, 0.0]


def test_peak_of_the_papers_value():
    rates = np.linspace(0, 1, 3001)
    assert rates[np.argmax(rates * (1 - rates) ** 2)] == pytest.approx(1 / 3, abs=1e-3)
    assert VALUES["knapsack"] == MixedGroupValue(1, 2)


def test_the_next_rollouts_gain_from_a_table():
    table = np.array([[0.0, 5.0, 8.0, 9.0, 9.5, 9.6], [0.0, 1.0, 3.0, 4.0, 4.0, 4.5]])
    assert marginal_gains([0.5, 0.5], [1, 4], table) == pytest.approx([3.0, 0.5])
    assert expected_values([0.5, 0.5], [1, 4], table) == pytest.approx([5.0, 4.0])

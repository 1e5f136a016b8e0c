"""The kernels on their own; this file also runs with NUMBA_DISABLE_JIT=1."""

import math

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_knapsack.allocation import kernels


numbers = st.lists(st.one_of(st.floats(0, 1), st.integers(0, 3).map(float)), min_size=1, max_size=60)


@given(st.floats(0, 1), st.integers(0, 200))
def test_geometric(base, terms):
    power_p, power_q, sum_p, sum_q = kernels.geometric(base, terms)
    for t, power, total in ((base, power_p, sum_p), (1 - base, power_q, sum_q)):
        assert power == pytest.approx(t**terms, rel=1e-12, abs=1e-300)
        assert total == pytest.approx(math.fsum(t**n for n in range(terms)), rel=1e-12)


@given(st.floats(1e-3, 1e6), st.integers(0, 9))
def test_half_rising(z, halves):
    whole, odd = divmod(halves, 2)
    ratio = math.prod(z + k for k in range(whole))
    if odd:  # by the duplication of small steps where lgamma loses digits: compare at a moderate size
        ratio *= math.exp(math.lgamma(z + whole + 0.5) - math.lgamma(z + whole))
    tolerance = 1e-12 if z < 100 or not odd else 1e-8
    assert kernels.half_rising(z, halves) == pytest.approx(ratio, rel=tolerance)


def test_rise8():
    assert kernels.rise8(3.0) == math.prod(range(3, 11))


@given(numbers, st.data())
def test_kth_largest(values, data):
    k = data.draw(st.integers(0, len(values) - 1))
    array = np.array(values)
    assert kernels.kth_largest(array, k) == sorted(values, reverse=True)[k]
    assert sorted(array) == sorted(values)
    assert array[:k].min(initial=np.inf) >= array[k] >= array[k:].max()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(2, 6)), min_size=0, max_size=30), st.data())
def test_take_items(items, data):
    # One item a prompt; the rule: the largest gain, then the fewest rollouts, then the lowest index.
    gains, levels = ([row[j] for row in items] for j in (0, 1))
    take = data.draw(st.integers(0, len(items)))
    counts = np.zeros(len(items), np.int64)
    value, price = kernels.take_items(
        counts, np.array(gains, float), np.arange(len(items), dtype=np.int32), np.array(levels, np.int32), take
    )
    order = sorted(range(len(items)), key=lambda i: (-gains[i], levels[i], i))
    assert np.flatnonzero(counts).tolist() == sorted(order[:take]) and counts.sum() == take
    assert value == sum(gains[i] for i in order[:take])
    assert price == (gains[order[take]] if take < len(items) else 0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20), st.data())
def test_fill_level(prompts, data):
    counts = [row[0] for row in prompts]
    high = [sum(row) for row in prompts]
    room = data.draw(st.integers(0, sum(high) - sum(counts)))
    filled = np.array(counts)
    kernels.fill_level(filled, np.array(high), room)
    assert filled.tolist() == naive.greedy(lambda i, n: 0, counts, high, sum(counts) + room)


@pytest.mark.parametrize("power", [(2, 4), (2, 2), (1, 2), (0, 0)])
@pytest.mark.parametrize("top, bottom", [(1.5e-3, 1.4e-3), (2e-8, 1e-8), (0.2, 0.1)])
def test_rate_bins_hold_for_every_rate_in_them(power, top, bottom):
    bins = 64
    least, most = kernels.rate_bins(*power, 1.0, 128, top, bottom, bins)
    name = {(2, 4): "knapsack", (2, 2): "variance", (1, 2): "root", (0, 0): "mixed"}[power]
    for p in np.linspace(0, 1, 16 * bins + 1):
        gains = [naive.gain(p, n, name) for n in range(1, 128)]
        for j in {min(int(p * bins), bins - 1), max(math.ceil(p * bins) - 1, 0)}:
            assert least[j] - 1 <= sum(g >= top for g in gains)
            assert most[j] - 1 >= sum(g >= bottom for g in gains)


@pytest.mark.parametrize("beliefs", [False, True])
def test_gains_do_not_depend_on_the_bracket(beliefs):
    # Whatever is counted and whatever is stored, the chain of a prompt's gains is bitwise the same: ties depend on it.
    first, second = np.array([0.3 if not beliefs else 2.5]), np.array([1.5] if beliefs else [])
    one, zero, low, high = np.ones(1), np.zeros(1), np.array([2]), np.array([60])

    def collect(top, bottom):
        gains, owners, levels = np.empty(200), np.empty(200, np.int32), np.empty(200, np.int32)
        above, found, value, _ = kernels.collect(
            first, second, 2, 4, one, zero, low, high, 1, top, bottom, np.empty(0, np.int64), gains, owners, levels
        )
        return above, levels[:found].tolist(), gains[:found].tolist()

    _, levels, chain = collect(np.inf, kernels.TINY)
    assert levels == list(range(2, 60)) and all(np.diff(chain) < 0)
    for cut in range(1, len(chain)):
        above, _, rest = collect(chain[cut - 1], kernels.TINY)
        assert above == cut and rest == chain[cut:] or chain[cut - 1] == chain[cut]


def test_knapsack_table():
    values = np.array([[0.0, 1.0, 1.5], [0.0, 0.2, 3.0]])
    best, choices = kernels.knapsack_table(values, np.array([0, 0]), np.array([2, 2]), np.array([1, 2]), 3, 5)
    # three rollouts within 5 tokens: (1, 2) costs 1 + 4
    assert best[3, 5] == 4.0 and choices[1, 3, 5] == 2
    # within 4 tokens only (2, 1) fits, within 3 none
    assert best[3, 4] == 1.7 and best[3, 3] == -np.inf

"""Batches of looks and rests, against what they promise, and against a greedy that shares no code."""

import random

import naive
import numpy as np
import oracle
import pytest

from trl_knapsack.allocation import Allocation, Evidence, FilterRule, PaperRule, PosteriorRule
from trl_knapsack.allocation.looks import BatchSharing


def evidence_of(won, lost):
    won, lost = np.array(won, dtype=float), np.array(lost, dtype=float)
    tried = won + lost
    return Evidence(
        keys=tuple(f"p{i}" for i in range(len(won))),
        alpha=1 + won,
        beta=1 + lost,
        last_rate=np.divide(won, tried, out=np.full(len(won), np.nan), where=tried > 0),
        visits=(tried > 0).astype(int),
        mean_length=np.full(len(won), np.nan),
    )


@pytest.mark.parametrize("rule", [PosteriorRule(), PaperRule(), FilterRule()])
def test_without_looks_and_windows_the_rule_decides_each_batch(rule):
    evidence = evidence_of([0, 3, 8, 0], [8, 5, 0, 0])
    batch = BatchSharing(rule, 2, 20).share(evidence, np.zeros(4, int), 4, 32)
    assert batch.counts.tolist() == rule(evidence, 32, 2, 20).counts.tolist()
    assert not batch.looks.any() and batch.leaves.all()


def test_a_rule_of_ones_own_sees_one_bound_without_looks():
    def rule(evidence, budget, min_generations, max_generations):
        assert (min_generations, max_generations) == (2, 20)
        return PosteriorRule()(evidence, budget, min_generations, max_generations)

    BatchSharing(rule, 2, 20).share(evidence_of([0, 3], [8, 5]), np.zeros(2, int), 2, 16)


def test_when_nothing_is_known_the_looks_take_the_batch():
    batch = BatchSharing(PosteriorRule(), 2, 128, look=3).share(evidence_of([0] * 4, [0] * 4), np.zeros(4, int), 4, 33)
    assert batch.counts.tolist() == [9, 8, 8, 8]
    assert batch.looks.all() and not batch.leaves.any() and batch.allocation is None


@pytest.mark.parametrize("least", [2, 4])
def test_the_rest_is_the_knapsack_over_those_that_wait(least):
    rng = random.Random(least)
    for _ in range(100):
        waiting = rng.randint(1, 6)
        new = rng.randint(waiting, 6)
        history = [rng.randint(0, 12) for _ in range(waiting)]  # of earlier visits, the look included
        won = [rng.randint(0, n) for n in history] + [0] * new
        lost = [n - k for n, k in zip(history, won, strict=False)] + [0] * new
        before = np.array([3] * waiting + [0] * new)
        evidence = evidence_of(won, lost)
        batch = BatchSharing(PosteriorRule(), least, 24, look=3).share(evidence, before, new, 8 * new)

        assert batch.counts.sum() == 8 * new
        assert batch.looks.tolist() == [False] * waiting + [True] * new
        assert batch.leaves.tolist() == [True] * waiting + [False] * new
        decided = range(waiting)
        rest = 8 * new - batch.counts[waiting:].sum()
        assert rest == min(5 * new, 21 * waiting)  # a look is 3, unless rows are left over

        beliefs = [(evidence.alpha[i], evidence.beta[i]) for i in decided]

        def gain(i, n, beliefs=beliefs):
            return oracle.expected_value(*beliefs[i], n + 1) - oracle.expected_value(*beliefs[i], n)

        expected = naive.greedy(gain, [max(least, 3)] * waiting, [24] * waiting, 3 * waiting + rest)
        assert (before + batch.counts)[:waiting].tolist() == expected


@pytest.mark.parametrize(
    ("per_batch", "window", "look"), [(1, 64, 3), (2, 16, 2), (4, 64, 3), (18, 64, 3), (4, 20, 0)]
)
def test_a_stream_of_prompts(per_batch, window, look):
    """Every batch is full, everyone leaves after a bounded wait with a group that has something to compare with."""
    rng = np.random.default_rng(0)
    generations, batches = 8, -(-window // per_batch)
    sharing = BatchSharing(PosteriorRule(), 2, 40, look=look, batches=batches)
    waiting, totals, ages, sizes = [], [], [], []  # prompts are [rate, won, tried, since, batches with rows]
    for number in range(600):
        new = [[rng.choice([0.0, 0.05, 0.5, 0.95, 1.0]), 0, 0, number] for _ in range(per_batch)]
        candidates = waiting + new
        won, tried = (np.array([prompt[i] for prompt in candidates]) for i in (1, 2))
        batch = sharing.share(evidence_of(won, tried - won), tried, per_batch, generations * per_batch, number)
        assert batch.counts.sum() == generations * per_batch and (batch.counts >= 0).all()
        assert not (batch.looks & batch.leaves).any()
        assert (batch.looks[: len(waiting)] == False).all()  # noqa: E712
        waiting = []
        served = np.flatnonzero((batch.counts > 0) & ~batch.looks)
        for i, prompt in enumerate(candidates):
            assert batch.counts[i] != 1 or prompt[2] > 0  # one rollout needs a look to be compared with
            prompt[1] += rng.binomial(batch.counts[i], prompt[0])
            prompt[2] += batch.counts[i]
            assert prompt[2] <= 40
            if batch.leaves[i]:
                totals.append(prompt[2])
                ages.append(number - prompt[3])
                assert prompt[2] >= 2
                assert i <= served.max(initial=-1)  # nobody leaves before those who came before
            else:
                waiting.append(prompt)
        sizes.append(len(waiting))
    assert np.mean(totals[window:]) == pytest.approx(generations, rel=0.1)
    assert len({*totals}) > 5  # the budgets differ
    assert max(sizes) <= 2 * batches * per_batch
    assert max(ages) <= 2 * batches + 1
    assert sizes[-200:] == pytest.approx([window] * 200, rel=0.6, abs=2 * per_batch)


def test_a_rule_that_takes_back_a_look_is_told_the_prompts_own_bound():
    evidence = evidence_of([1, 1], [2, 2])
    rule = lambda evidence, budget, low, high: Allocation(np.array([budget, 0]))  # noqa: E731
    with pytest.raises(
        ValueError, match=r"gave 0 rollouts to prompt 1 \(p1\), but each must get min_generations \(3\) to"
    ):
        BatchSharing(rule, 2, 128, look=3).share(evidence, np.array([3, 3]), num_new=0, budget=10)

import itertools
import random

import oracle
import pytest
import torch

from trl_knapsack.training.advantages import group_advantages


def in_order(counts):
    """[2, 3] -> [0, 0, 1, 1, 1]"""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def random_rewards(rng, rows, funcs, missing):
    # Multiples of 1/4 are exact in float32, so that "all equal" means the same to both sides.
    return [[None if rng.random() < missing else rng.randint(-4, 4) / 4 for _ in range(funcs)] for _ in range(rows)]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_unequal_groups_equal_a_loop_over_groups(scale_rewards, aggregation, missing):
    rng = random.Random(f"{scale_rewards} {aggregation} {missing}")
    for _ in range(50):
        counts = [rng.choice([2, 2, 3, 5, 8, 17]) for _ in range(rng.randint(1, 6))]
        funcs = rng.randint(1, 3)
        weights = [rng.choice([0.25, 0.5, 1.0, 2.0]) for _ in range(funcs)]
        rewards = random_rewards(rng, sum(counts), funcs, missing)
        if len(counts) > 1:
            rewards[: counts[0]] = [[None] * funcs] * counts[0]  # a group that no function scored

        groups = group_advantages(
            torch.tensor([[float("nan") if r is None else r for r in row] for row in rewards]),
            in_order(counts),
            torch.tensor(weights),
            scale_rewards,
            aggregation,
        )

        expected = oracle.advantages(rewards, counts, weights, scale_rewards, aggregation)
        assert groups.advantages.tolist() == pytest.approx(expected, rel=2e-4, abs=2e-4)
        assert groups.mixed.tolist() == oracle.mixed(rewards, counts, weights, aggregation)
        means = [oracle.mean([oracle.total(row, weights) for row in g]) for g in oracle.split(rewards, counts)]
        for ours, mean in zip(groups.mean_reward.tolist(), means, strict=True):
            assert ours == pytest.approx(mean, abs=1e-5) if mean is not None else ours != ours


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_earlier_rollouts_are_compared_with_and_nothing_else(scale_rewards, aggregation, missing):
    rng = random.Random(f"earlier {scale_rewards} {aggregation} {missing}")
    for _ in range(50):
        counts = [rng.choice([0, 1, 2, 3, 8]) for _ in range(rng.randint(2, 6))] + [2]
        sizes = [rng.choice([0, 2, 3, 8]) if count > 1 else 3 for count in counts]
        weights = [rng.choice([0.25, 0.5, 1.0, 2.0]) for _ in range(2)]
        rewards = random_rewards(rng, sum(counts), 2, missing)
        earlier = [random_rewards(rng, size, 2, missing) for size in sizes]

        def tensor(rows):
            return torch.tensor([[float("nan") if r is None else r for r in row] for row in rows]).reshape(-1, 2)

        groups = group_advantages(
            tensor(rewards),
            in_order(counts),
            torch.tensor(weights),
            scale_rewards,
            aggregation,
            (tensor([row for group in earlier for row in group]), in_order(sizes)),
        )

        expected = oracle.advantages_after(rewards, counts, earlier, weights, scale_rewards, aggregation)
        assert groups.advantages.tolist() == pytest.approx(expected, rel=5e-4, abs=5e-4)
        both = [row for pair in zip(earlier, oracle.split(rewards, counts), strict=True) for row in sum(pair, [])]
        sums = [a + b for a, b in zip(sizes, counts, strict=True)]
        assert groups.mixed.tolist() == oracle.mixed(both, sums, weights, aggregation)
        means = [oracle.mean([oracle.total(row, weights) for row in g]) for g in oracle.split(rewards, counts)]
        for ours, mean in zip(groups.mean_reward.tolist(), means, strict=True):
            assert ours == pytest.approx(mean, abs=1e-5) if mean is not None else ours != ours


def test_a_group_without_variance_has_no_advantage_whatever_its_neighbours():
    rewards = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).unsqueeze(1)
    groups = group_advantages(rewards, in_order([2, 2, 5]), torch.ones(1), "group", "sum_then_normalize")
    # std of (0, 1) is sqrt(1/2)
    half = 0.5 / (0.5**0.5 + 1e-4)
    assert groups.advantages.tolist() == pytest.approx([0, 0, -half, half, 0, 0, 0, 0, 0])
    assert groups.mixed.tolist() == [False, True, False]
    assert groups.zero_std.tolist() == [True, True, False, False, True, True, True, True, True]


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_order_of_groups_does_not_matter(scale_rewards):
    parts = {2: [0.0, 1.0], 3: [1.0, 1.0, 0.5], 4: [0.0, 0.0, 1.0, 0.25]}
    results = []
    for order in itertools.permutations(parts):
        rewards = torch.tensor([r for n in order for r in parts[n]]).unsqueeze(1)
        out = group_advantages(rewards, in_order(order), torch.ones(1), scale_rewards, "sum_then_normalize")
        by_group = dict(zip(order, oracle.split(out.advantages.tolist(), order), strict=True))
        results.append([a for n in parts for a in by_group[n]])
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-5)


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_groups_may_be_scattered_over_the_rows(aggregation):
    rewards = torch.randint(0, 3, (40, 2)).float()
    group = torch.arange(5).repeat_interleave(torch.tensor([2, 3, 5, 10, 20]))
    scatter = torch.randperm(40)
    options = (torch.ones(2), "group", aggregation)
    together = group_advantages(rewards, group, *options)
    scattered = group_advantages(rewards[scatter], group[scatter], *options)
    torch.testing.assert_close(scattered.advantages, together.advantages[scatter])
    assert scattered.mixed.tolist() == together.mixed.tolist()

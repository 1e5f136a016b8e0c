from dataclasses import replace

import numpy as np
import oracle
import pytest
from histories import record_by_hand

from trl_knapsack.allocation.difficulty import RANGES
from trl_knapsack.tracking.records import difficulty
from trl_knapsack.training.plan import plan_rollouts


def test_plan_by_hand():
    # The group of 5 fills a rank of 4, its last row joins the others.
    plan = plan_rollouts([2, 5, 1], num_ranks=2)
    assert plan.rank_rows(0).tolist() == [1, 1, 1, 1]
    assert plan.rank_rows(1).tolist() == [0, 0, 1, 2]
    assert plan.per_prompt(np.array([1, 2, 3, 4, 5, 6, 7, 8])).tolist() == [11, 17, 8]
    assert plan.imbalance([1, 1, 1, 1, 2, 2, 2, 6]) == pytest.approx(12 / 8)
    assert plan_rollouts([2, 5, 1], num_ranks=1).row_prompt.tolist() == [0, 0, 1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(("counts", "ranks"), [([4, 4, 4], 2), ([2, 5, 1], 1), ([2, 5, 1], 2)])
def test_a_plan_sums_over_prompts_and_ranks(counts, ranks):
    plan, rows = plan_rollouts(counts, ranks), np.arange(1.0, 1 + sum(counts))
    assert plan.counts.tolist() == counts and plan.num_ranks == ranks
    by_hand = [sum(rows[row] for row in range(len(rows)) if plan.row_prompt[row] == p) for p in range(len(counts))]
    assert plan.per_prompt(rows).tolist() == by_hand
    each = len(rows) // ranks
    of_ranks = [sum(rows[rank * each : (rank + 1) * each]) for rank in range(ranks)]
    assert plan.imbalance(rows) == pytest.approx(max(of_ranks) / (sum(of_ranks) / ranks))
    assert np.concatenate([plan.rank_rows(rank) for rank in range(ranks)]).tolist() == plan.row_prompt.tolist()


def test_ranks_exchange_as_many_rows_as_make_them_even():
    # Whole groups make 20, 8 and 14 tokens; one row of 10 against one of 4 makes 14 each, two would make 8, 20 and 14.
    lengths = np.array([10.0, 4.0, 7.0, 7.0])
    plan = plan_rollouts([2, 2, 1, 1], 3, lengths)
    assert [lengths[plan.rank_rows(rank)].sum() for rank in range(3)] == [14, 14, 14]


def test_two_rows_change_places_where_two_make_even():
    # Whole groups first: 6 6 6 6 8 and 5 5 5 5 8. Two of 6 against two of 5 make 30 each; one of 8 against 5 makes 29 and 31.
    plan = plan_rollouts([4, 4, 2], 2, [5.0, 6.0, 8.0])
    assert [plan.rank_rows(rank).tolist() for rank in range(2)] == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2]]


def test_a_group_stays_whole_where_it_fits_exactly():
    # 6 6 6 6 | 11 11 9, then 3 and 1 1 where they fit exactly: 27 | 33 tokens, and 6 for 9 makes 30 each.
    plan = plan_rollouts([2, 1, 1, 2, 4], 2, [1.0, 3.0, 9.0, 11.0, 6.0])
    assert [plan.rank_rows(rank).tolist() for rank in range(2)] == [[1, 2, 4, 4, 4], [0, 0, 3, 3, 4]]


def test_equally_long_groups_go_to_ranks_in_the_order_of_the_sampler():
    # Ranks that may have other processors must come to one order. 4 rows to the first rank, 2 2 to the second, then in turn.
    plan = plan_rollouts([2] * 30 + [4], 2)
    first = [*range(2, 30, 2), 30]
    assert plan.rank_rows(0).tolist() == np.repeat(first, [2] * 14 + [4]).tolist()
    assert plan.rank_rows(1).tolist() == np.repeat([0, *range(1, 30, 2)], 2).tolist()


@pytest.mark.parametrize("seed", range(50))
def test_ranks_get_even_tokens_and_whole_groups(seed):
    rng = np.random.default_rng(seed)
    counts = np.minimum(1 + rng.geometric(1 / 7, size=256), 128)
    counts[0] = 128 - counts[1:].sum() % 8  # all ranks full
    lengths = rng.lognormal(5, [0.5, 1.2][seed % 2], size=256)  # long tails
    unknown = rng.random(256) < 0.1
    plan = plan_rollouts(counts, 8, np.where(unknown, np.nan, lengths))

    assert np.bincount(plan.row_prompt).tolist() == counts.tolist()
    predicted = np.where(unknown, lengths[~unknown].mean(), lengths)
    per_rank = [predicted[plan.rank_rows(rank)].sum() for rank in range(8)]
    assert max(per_rank) <= 1.05 * sum(per_rank) / 8
    ranks_of = [sum(prompt in plan.rank_rows(rank) for rank in range(8)) for prompt in range(256)]
    assert sum(n > 1 for n in ranks_of) <= 25  # nine groups in ten stay whole
    again = plan_rollouts(counts, 8, np.where(unknown, np.nan, lengths))
    assert again.row_prompt.tolist() == plan.row_prompt.tolist()


def test_one_endless_completion_does_not_stop_the_plan():
    plan = plan_rollouts([2, 3, 3], 2, [1000.0, 1.0, 1.0])
    assert np.bincount(plan.row_prompt).tolist() == [2, 3, 3]
    assert [int((plan.rank_rows(rank) == 0).sum()) for rank in range(2)] == [1, 1]


def test_plan_of_equal_counts_is_the_order_of_trls_sampler():
    plan = plan_rollouts([4, 4, 4], num_ranks=2)
    assert plan.row_prompt.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_plan_needs_equal_ranks():
    with pytest.raises(ValueError, match="7 rollouts can't be shared out equally over 2 ranks"):
        plan_rollouts([3, 4], num_ranks=2)


def test_difficulty_classes_say_their_rates():
    assert RANGES == ("p = 0", "(0, 0.2]", "(0.2, 0.8)", "[0.8, 1)", "p = 1")


def test_difficulty_classes_of_the_paper():
    rates = [0.0, 0.01, 0.2, 0.21, 0.79, 0.8, 0.99, 1.0]
    assert difficulty(np.array(rates)).tolist() == [0, 1, 1, 2, 2, 3, 3, 4]


def test_metrics_by_hand():
    record = record_by_hand()
    metrics = record.metrics()
    value = metrics.pop("knapsack/value_over_uniform")
    assert metrics == pytest.approx(
        {
            "knapsack/effective_gradient_ratio": 12 / 25,  # of c and e; two rollouts of e have no reward
            "knapsack/mixed_prompts": 2 / 5,
            "knapsack/generations/min": 2,
            "knapsack/generations/p10": 2.4,
            "knapsack/generations/median": 4,
            "knapsack/generations/p90": 8.4,
            "knapsack/generations/max": 10,
            "knapsack/difficulty/extremely_hard": 1 / 4,  # of the four that were scored
            "knapsack/difficulty/hard": 1 / 4,
            "knapsack/difficulty/medium": 1 / 4,
            "knapsack/difficulty/easy": 0,
            "knapsack/difficulty/extremely_easy": 1 / 4,
            "knapsack/unseen": 2 / 5,
            "knapsack/known_rollouts": 18 / 25,
            "knapsack/success_rate": (1 + 0 + 0.1 + 0.5) / 4,
            "knapsack/reward": (1 + 0 + 0.1 + 0.5) / 4,
            "knapsack/tokens_over_uniform": 1,  # each completion has one token
            "knapsack/tokens_over_uniform/predicted": 1,  # no length was known
            "knapsack/rank_imbalance": 1.5,
            "knapsack/solver_time": 0.25,
            "knapsack/looks": 0,
            "knapsack/look_age": 0,
        }
    )
    pairs = list(zip(record.evidence.alpha, record.evidence.beta, strict=True))
    ours = sum(oracle.expected_value(a, b, n) for (a, b), n in zip(pairs, [2, 6, 10, 3, 4], strict=True))
    uniform = sum(oracle.expected_value(a, b, 5) for a, b in pairs)
    assert value == pytest.approx(ours / uniform)


def test_tokens_over_uniform_by_hand():
    record = record_by_hand()
    known = replace(record.evidence, mean_length=np.array([10.0, 20.0, 40.0, np.nan, 30.0]))
    looks, before = np.array([False, False, False, True, False]), np.array([3, 0, 0, 0, 1])
    tokens = np.array([40.0, 180.0, 500.0, 3.0, 100.0])  # 20, 30, 50 and 25 a completion
    predicted, actual = replace(
        record, evidence=known, looks=looks, before=before, tokens=tokens
    ).tokens_over_uniform()
    totals = [5, 6, 10, 5]  # all of the visit, of those who were decided upon
    assert predicted == pytest.approx(sum(n * t for n, t in zip(totals, [10, 20, 40, 30], strict=True)) / (6.5 * 100))
    assert actual == pytest.approx(sum(n * t for n, t in zip(totals, [20, 30, 50, 25], strict=True)) / (6.5 * 125))


def test_a_record_shows_itself_on_a_line():
    record = record_by_hand()
    assert repr(record) == (
        "RolloutRecord(5 prompts, 25 rollouts, 2 to 10 a prompt, success rate 0.20, 12 with a gradient)"
    )
    assert record == record and record != record_by_hand()  # and nothing is raised
    unscored = replace(record, trials=np.zeros(5), successes=np.zeros(5))
    assert "2 to 10 a prompt, none scored, 0 with a gradient" in repr(unscored)


def test_looks_are_not_decided_by_knowledge():
    record = replace(record_by_hand(), looks=np.array([True, False, False, True, False]))  # `a` was known a little
    assert record.metrics()["knapsack/known_rollouts"] == 16 / 25

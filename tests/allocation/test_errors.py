import re

import numpy as np
import pytest

from trl_knapsack.allocation import BetaBeliefs, MixedGroupValue, PaperRule, WeightedSum, allocate, expected_values


nan, inf = float("nan"), float("inf")

# (what is wrong, call, the sentence)
WRONG = [
    ("NaN", lambda: allocate([0.5, nan], 8), "success_rates[1] is nan but must lie in [0, 1]; for a prompt"),
    ("infinite", lambda: allocate([inf, 0.5], 8), "success_rates[0] is inf but must lie in [0, 1]"),
    ("negative", lambda: allocate([0.5, -0.1], 8), "success_rates[1] is -0.1 but must lie in [0, 1]"),
    ("a percentage", lambda: allocate([50, 20], 8), "success_rates[0] is 50.0 but must lie in [0, 1]"),
    ("no prompts", lambda: allocate([], 0), "success_rates is empty; give at least one prompt."),
    ("a matrix", lambda: allocate([[0.5]], 8), "has shape (1, 1) but must have shape (P,)"),
    ("a number", lambda: allocate(0.5, 8), "success_rates has shape () but must have shape (P,)"),
    ("words", lambda: allocate(["a"], 8), "success_rates must be numbers of shape (P,) or BetaBeliefs"),
    ("ragged", lambda: allocate([0.5, [0.5]], 8), "success_rates must be numbers of shape (P,) or BetaBeliefs"),
    ("beliefs of two sizes", lambda: BetaBeliefs([1.0], [1.0, 2.0]), "must be two arrays of one shape (P,)"),
    ("belief of zero", lambda: BetaBeliefs([1.0, 0.0], [1.0, 1.0]), "alpha[1] is 0.0 but must be positive"),
    ("belief of NaN", lambda: BetaBeliefs([1.0], [nan]), "beta[0] is nan but must be positive"),
    ("huge belief", lambda: BetaBeliefs([1.0], [1e300]), "beta[0] is 1e+300 but must be positive and at most 1e12"),
    ("budget too small", lambda: allocate([0.5] * 3, 5), "budget (5) must lie between 6 and 384"),
    ("its remedy", lambda: allocate([0.5] * 3, 5), "lower min_generations or change the budget"),
    ("budget too large", lambda: allocate([0.5] * 3, 400), "budget (400) must lie between 6 and 384"),
    ("its remedy", lambda: allocate([0.5] * 3, 400), "raise max_generations or change the budget"),
    ("fractional budget", lambda: allocate([0.5] * 3, 24.0), "budget (24.0) must be an integer number of rollouts"),
    (
        "crossing bounds",
        lambda: allocate([0.5], 8, min_generations=9, max_generations=8),
        "max_generations (8) must be at least min_generations (9); raise it or lower min_generations.",
    ),
    (
        "crossing bounds of one prompt",
        lambda: allocate([0.5] * 2, 8, min_generations=[2, 9], max_generations=[4, 8]),
        "max_generations (8) must be at least min_generations (9) of prompt 1",
    ),
    ("negative bound", lambda: allocate([0.5], 8, min_generations=-1), "min_generations (-1) must be at least 1."),
    ("zero bound", lambda: allocate([0.5], 8, min_generations=0), "min_generations (0) must be at least 1."),
    ("fractional bound", lambda: allocate([0.5], 8, min_generations=1.5), "min_generations must be integers, not 1.5"),
    ("NaN bound", lambda: allocate([0.5], 8, max_generations=nan), "max_generations must be integers, not nan"),
    ("infinite bound", lambda: allocate([0.5], 8, max_generations=inf), "max_generations (inf) must be at least 1"),
    ("wordy bound", lambda: allocate([0.5], 8, max_generations="8"), "max_generations must be integers, not '8'"),
    (
        "bounds of another length",
        lambda: allocate([0.5], 8, max_generations=[8, 8]),
        "max_generations has shape (2,) but must be one number or have shape (1,)",
    ),
    ("unknown value", lambda: allocate([0.5], 8, value="best"), "value 'best' is not known; choose one of 'knapsack'"),
    ("odd exponent", lambda: MixedGroupValue(0.3, 1), "success_power (0.3) must be a multiple of 1/2 between 0 and 32"),
    ("table of another shape", lambda: allocate([0.5], 8, value=np.ones((2, 200))), "must have shape (P, M) = (1, at"),
    ("short table", lambda: allocate([0.5], 8, value=np.ones((1, 9))), "(1, at least 129)"),
    (
        "table with a hole",
        lambda: allocate([0.5], 3, max_generations=3, value=[[0, 1, nan, 3]]),
        "entry [0, 2] is nan; every value",
    ),
    (
        "callable of another shape",
        lambda: allocate([0.5], 8, value=lambda p, n: 1.0),
        "The value callable returned an array of shape ()",
    ),
    ("negative coefficient", lambda: WeightedSum([(-1.0, "mixed")]), "coefficient of a WeightedSum (-1.0) must lie"),
    ("negative component", lambda: WeightedSum([(1.0, [0.5, -1.0])]), "weights between 0 and 1e100"),
    (
        "component of another length",
        lambda: allocate([0.5], 8, value=WeightedSum([(1.0, [1.0, 2.0])])),
        "has 2 weights for 1 prompts",
    ),
    ("infinite component", lambda: WeightedSum([(1.0, [0.5, inf])]), "weights between 0 and 1e100"),
    ("no probability", lambda: PaperRule(confidence=2.0), "confidence (2.0) must lie in [0, 1]"),
    ("unknown solver", lambda: allocate([0.5], 8, solver="lp"), "solver 'lp' is not known; choose one of 'exact', 'dp'"),
    ("limit without costs", lambda: allocate([0.5], 8, max_cost=9), "max_cost needs costs"),
    ("costs without a use", lambda: allocate([0.5], 8, costs=[1.0]), "costs need either max_cost"),
    (
        "two uses of costs",
        lambda: allocate([0.5], 8, costs=[1.0], max_cost=99, cost_weight=0.1),
        "costs need either max_cost, a limit on tokens, or cost_weight, a price for each; give one.",
    ),
    ("zero cost", lambda: allocate([0.5] * 2, 8, costs=[1.0, 0.0], max_cost=99), "costs[1] is 0.0 but must be positive"),
    ("negative cost", lambda: allocate([0.5], 8, costs=[-1.0], max_cost=99), "costs[0] is -1.0 but must be positive"),
    ("unknown cost", lambda: allocate([0.5], 8, costs=[nan], max_cost=99), "costs[0] is nan but must be positive"),
    ("one cost for two", lambda: allocate([0.5] * 2, 8, costs=[1.0], max_cost=9), "costs has shape (1,) but must have"),
    (
        "limit too low",
        lambda: allocate([0.5] * 2, 8, costs=[10.0, 20.0], max_cost=99),
        "max_cost (99) must be at least 100, the fewest tokens that 8 rollouts can take",
    ),
    ("limit of NaN", lambda: allocate([0.5], 8, costs=[1.0], max_cost=nan), "max_cost (nan) must be at least 8"),
    (
        "negative weight",
        lambda: allocate([0.5], 8, costs=[1.0], cost_weight=-1.0),
        "cost_weight (-1.0) must be finite and not negative.",
    ),
    (
        "fractional costs in dp",
        lambda: allocate([0.5], 8, costs=[1.5], max_cost=99, solver="dp"),
        'costs[0] is 1.5 but solver="dp" needs integer costs',
    ),
    (
        "a table too large for dp",
        lambda: allocate([0.5] * 100, 10_000, costs=[1e6] * 100, max_cost=2e10, solver="dp"),
        "give costs in coarser units",
    ),
    ("genetic without a callable", lambda: allocate([0.5], 8, solver="genetic"), "must be a callable from counts (P,)"),
    ("counts of another shape", lambda: expected_values([0.5], [1, 2]), "counts has shape (2,) but must have shape (1,)"),
    ("fractional counts", lambda: expected_values([0.5], [1.5]), "counts must be integers that are not negative"),
    ("negative counts", lambda: expected_values([0.5], [-1]), "counts must be integers that are not negative"),
]  # fmt: skip


@pytest.mark.parametrize("call, sentence", [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_wrong_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        call()
    assert "\n" not in str(error.value)

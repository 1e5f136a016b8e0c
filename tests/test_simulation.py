"""The simulation against plain Python: formulas by hand where a world is simple enough to have them."""

import math

import naive
import numpy as np
import pytest
from scipy import stats

from trl_knapsack import SuccessRateTracker
from trl_knapsack.allocation import Allocation, BetaBeliefs
from trl_knapsack.simulation import MIXES, Prompts, equivalent_uniform, mean_and_halfwidth, simulate


RATES = [0.0, 0.02, 0.1, 0.3, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0]


def mixed(p: float, n: float) -> float:
    return 1 - p**n - (1 - p) ** n


def value(p: float, n: float) -> float:
    """Knapsack RL, section 3."""
    return mixed(p, n) * p * (1 - p) ** 2


STILL = dict(drift=0.0, improvement=0.0)


def test_rates_that_stand_still_and_an_oracle_are_the_greedy_optimum():
    result = simulate(
        Prompts.from_rates(RATES),
        ["oracle"],
        prompts_per_batch=len(RATES),
        epochs=3,
        worlds=2,
        max_generations=20,
        **STILL,
    )
    counts = naive.greedy(lambda i, n: naive.gain(RATES[i], n), [2] * len(RATES), [20] * len(RATES), 80)
    assert max(counts) == 20  # the bound is felt
    worth = np.mean([value(p, n) for p, n in zip(RATES, counts, strict=True)])
    plain = np.mean([value(p, 8) for p in RATES])
    np.testing.assert_allclose(result.value["oracle"], worth)
    np.testing.assert_allclose(result.gain("oracle"), worth / plain - 1)
    assert (result.largest_budget["oracle"] == 20).all()
    ratio = sum(n * mixed(p, n) for p, n in zip(RATES, counts, strict=True)) / 80
    np.testing.assert_allclose(result.effective_gradient_ratio["oracle"], ratio)
    np.testing.assert_allclose(
        result.mixed_prompts["oracle"], np.mean([mixed(p, n) for p, n in zip(RATES, counts, strict=True)])
    )


def test_uniform_is_worth_what_the_formula_says():
    result = simulate(Prompts.from_rates(RATES), ["uniform"], num_generations=6, epochs=2, worlds=1, **STILL)
    np.testing.assert_allclose(result.value["uniform"], np.mean([value(p, 6) for p in RATES]))
    np.testing.assert_allclose(result.effective_gradient_ratio["uniform"], np.mean([mixed(p, 6) for p in RATES]))
    np.testing.assert_allclose(result.equivalent_generations["uniform"], 6.0)
    assert (result.largest_budget["uniform"] == 6).all() and (result.gain("uniform") == 0).all()


def test_rates_move_by_the_improvement_in_logits_and_stay_at_0_and_1():
    result = simulate(Prompts.from_rates(RATES), ["uniform"], epochs=4, worlds=1, drift=0.0, improvement=0.5)
    for epoch in range(4):
        moved = [p if p in (0, 1) else 1 / (1 + (1 - p) / p * math.exp(-0.5 * epoch)) for p in RATES]
        assert result.value["uniform"][0, epoch] == pytest.approx(np.mean([value(p, 8) for p in moved]))
    still = simulate(Prompts.from_rates([0.0, 1.0]), ["uniform"], epochs=5, worlds=1, drift=2.0)
    assert (still.mixed_prompts["uniform"] == 0).all()


def test_the_drift_has_the_standard_deviation_that_is_asked_for():
    """Mean value after one step of a normal with mean 0.4 and deviation 0.8 in logits, by quadrature."""
    result = simulate(
        Prompts.from_rates([0.2] * 4000),
        ["uniform"],
        epochs=2,
        worlds=2,
        prompts_per_batch=4000,
        drift=0.8,
        improvement=0.4,
    )
    x, weights = np.polynomial.hermite_e.hermegauss(60)
    p = 1 / (1 + np.exp(-(math.log(0.2 / 0.8) + 0.4 + 0.8 * x)))
    expected = (weights @ value(p, 8)) / weights.sum()
    assert result.value["uniform"][:, 1].mean() == pytest.approx(expected, rel=0.02)


def test_a_rule_sees_what_its_own_rollouts_showed_and_nothing_else():
    seen = []

    def rule(evidence, budget, low, high):
        seen.append(evidence)
        return Allocation(np.array([2, 6, 10, 14]))

    result = simulate(
        Prompts.from_rates([0.0] * 4), {"mine": rule}, epochs=3, worlds=1, prompts_per_batch=4, success_decay=1.0
    )
    assert [e.visits.tolist() for e in seen] == [[0] * 4, [1] * 4, [2] * 4]
    assert seen[2].beta.sum() == pytest.approx(4 * 1.0 + 2 * 32)  # 32 failures in each of two epochs, and the prior
    assert (seen[2].alpha == 1.0).all()
    assert (result.largest_budget["mine"] == 14).all()


def test_the_first_epoch_is_uniform_for_all_but_the_oracle():
    result = simulate(Prompts.from_mix("saturated", 64), epochs=2, worlds=1)
    first = {name: largest[0, 0] for name, largest in result.largest_budget.items()}
    assert {name: n for name, n in first.items() if name != "oracle"} == dict.fromkeys(
        ("posterior", "paper", "filter", "uniform"), 8
    )
    assert first["oracle"] > 8
    assert result.largest_budget["posterior"][0, 1] > 8


def test_a_posterior_that_has_seen_enough_does_as_well_as_the_oracle():
    result = simulate(
        Prompts.from_mix("saturated", 100), ["posterior", "oracle"], epochs=60, worlds=1, prompts_per_batch=100,
        num_generations=16, success_decay=1.0, **STILL,
    )  # fmt: skip
    assert result.value["oracle"][0, -1] > 1.02 * result.value["uniform"][0, -1]
    assert result.value["posterior"][0, -1] == pytest.approx(result.value["oracle"][0, -1], rel=0.005)
    assert (result.value["posterior"] <= result.value["oracle"] + 1e-12).all()


def test_a_state_is_where_a_simulation_begins():
    tracker = SuccessRateTracker()
    tracker.observe(["hard", "easy", "even"], [0, 30, 15], [30, 30, 30])
    tracker.observe(["even"], [15], [30])
    before = tracker.state_dict()
    prompts = Prompts.from_tracker(tracker)
    draws = np.array([prompts.draw(np.random.default_rng(i)) for i in range(4000)])
    alpha, beta = np.array([1.0, 31.0, 1.0 + 0.85 * 15 + 15]), np.array([31.0, 1.0, 1.0 + 0.85 * 15 + 15])
    np.testing.assert_allclose(draws.mean(0), alpha / (alpha + beta), atol=0.01)
    np.testing.assert_allclose(draws.std(0), stats.beta(alpha, beta).std(), rtol=0.1)

    seen = []

    def rule(evidence, budget, low, high):
        seen.append(evidence)
        return Allocation(np.full(3, 8))

    simulate(prompts, {"mine": rule}, epochs=1, worlds=2, prompts_per_batch=3)
    for evidence in seen:  # every world begins with the state, in whatever order the prompts come
        assert sorted(evidence.alpha) == sorted(alpha)
        assert sorted(evidence.visits) == [1, 1, 2]
    after = tracker.state_dict()
    assert before.keys() == after.keys() and all(np.array_equal(before[k], after[k]) for k in before)


def test_each_state_key_keeps_its_own_true_rate():
    """A solved and an impossible prompt, certain enough: successes must land on the solved one."""
    tracker = SuccessRateTracker(decay=1.0)
    tracker.observe(["impossible", "solved"], [0, 10_000], [10_000, 10_000])
    seen = []

    def rule(evidence, budget, low, high):
        seen.append((evidence.alpha, evidence.beta))
        return Allocation(np.array([8, 8]))

    simulate(
        Prompts.from_tracker(tracker),
        {"mine": rule},
        epochs=4,
        worlds=1,
        prompts_per_batch=2,
        success_decay=1.0,
        **STILL,
    )
    alpha, beta = seen[-1]
    assert np.minimum(alpha, beta).max() < 3


def test_worlds_are_the_same_for_every_set_of_rules_and_every_call():
    settings = dict(epochs=3, worlds=2, seed=7)
    alone = simulate(Prompts.from_mix("broad", 50), ["posterior"], **settings)
    among = simulate(Prompts.from_mix("broad", 50), ["filter", "oracle", "posterior"], **settings)
    np.testing.assert_array_equal(alone.value["posterior"], among.value["posterior"])
    np.testing.assert_array_equal(alone.value["uniform"], among.value["uniform"])
    second = simulate(Prompts.from_mix("broad", 50), ["posterior"], epochs=3, worlds=1, seed=8)
    np.testing.assert_array_equal(alone.value["posterior"][1], second.value["posterior"][0])
    assert (alone.value["posterior"][0] != alone.value["posterior"][1]).all()


def test_equivalent_generations_lie_where_equal_shares_are_worth_as_much():
    rates = np.array([0.05, 0.4, 0.8])
    five, six, thousand = (np.mean([value(p, n) for p in rates]) for n in (5, 6, 1000))
    assert equivalent_uniform(rates, five) == pytest.approx(5)
    assert equivalent_uniform(rates, (3 * five + six) / 4) == pytest.approx(5.25)
    assert equivalent_uniform(rates, 0.0) == 1
    assert equivalent_uniform(rates, thousand * (1 + 1e-6)) == math.inf


def test_intervals_are_students():
    samples = np.array([0.1, 0.12, 0.07, 0.11])
    low, high = stats.t.interval(0.95, 3, samples.mean(), stats.sem(samples))
    middle, halfwidth = mean_and_halfwidth(samples)
    assert (middle - halfwidth, middle + halfwidth) == (pytest.approx(low), pytest.approx(high))
    assert math.isnan(mean_and_halfwidth(samples[:1])[1])


def test_the_order_of_the_rules_that_the_defaults_rest_on():
    """docs/simulate.md: estimates that remember and doubt do better than the last visit, which may lose to uniform."""
    rules = ["posterior", "paper", "last_rate", "oracle"]
    for mix in ("saturated", "hard"):
        result = simulate(Prompts.from_mix(mix, 400), rules, worlds=3)
        gains = {name: result.gain(name).mean() for name in rules}
        assert gains["oracle"] > gains["posterior"] > gains["paper"] > gains["last_rate"], (mix, gains)
        assert gains["posterior"] > 0.02 and gains["last_rate"] < 0.01, (mix, gains)


@pytest.mark.parametrize("mix", MIXES)
def test_mixes_are_rates(mix):
    rates = Prompts.from_mix(mix, 500).draw(np.random.default_rng(0))
    assert rates.shape == (500,) and (rates >= 0).all() and (rates <= 1).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Prompts.from_mix("easy"), "mix 'easy' is not known; choose one of 'saturated', 'hard', 'broad'"),
        (
            lambda: Prompts.from_rates(BetaBeliefs([1.0], [1.0])),
            "success_rates are BetaBeliefs, .* one rate per prompt",
        ),
        (lambda: Prompts.from_mix("hard", 0), r"prompts \(0\) must be at least 1"),
        (lambda: Prompts.from_rates([]), "give at least one prompt"),
        (lambda: Prompts.from_rates([0.5, 1.5]), r"success_rates\[1\] is 1.5"),
        (lambda: Prompts.from_tracker(SuccessRateTracker()), "knows no prompts"),
        (lambda: simulate(Prompts.from_rates([0.5]), ["best"]), "allocation 'best' is not known"),
        (lambda: simulate(Prompts.from_rates([0.5]), epochs=0), r"epochs \(0\) must be at least 1"),
        (lambda: simulate(Prompts.from_rates([0.5]), drift=-1), r"drift \(-1\) must be finite and not negative"),
        (lambda: simulate(Prompts.from_rates([0.5]), num_generations=1), r"budget \(1\) must lie between 2"),
    ],
)
def test_mistakes_are_told_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_a_notebook_and_a_prompt_show_is_short():
    result = simulate(Prompts.from_rates(RATES), ["oracle"], epochs=2, worlds=2)
    gain = result.gain("oracle").mean()
    assert repr(result) == f"Simulation(10 prompts, 2 epochs, 2 worlds; value over uniform: oracle {gain:+.1%})"
    assert result._repr_html_().count("<tr>") == 3 and "<td>oracle</td>" in result._repr_html_()
    tracker = SuccessRateTracker()
    tracker.observe(["a"], [1], [2])
    assert repr(Prompts.from_tracker(tracker)) == "Prompts(of a state with 1)"
    assert repr(Prompts.from_rates(RATES)) == "Prompts(drawn for each world)"

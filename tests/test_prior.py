"""The prior that has learnt: its arithmetic against SciPy and plain Python, and what it believes where."""

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from trl_knapsack import allocate
from trl_knapsack.allocation import BetaBeliefs, expected_values
from trl_knapsack.errors import InvalidInputError
from trl_knapsack.tracking.prior import SuccessPrior


def sigmoid(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, dtype=float)))


def draw_batch(random, slope, base=0.0, prompts=16, num_features=1, spread=1.0, trials=8):
    """Features, successes and trials of new prompts whose logits lie about `base + slope * first feature`."""
    features = random.normal(size=(prompts, num_features))
    rates = sigmoid(base + slope * features[:, :1].sum(axis=1) + spread * random.normal(size=prompts))
    return features, random.binomial(trials, rates), np.full(prompts, trials)


def even_batch(random, prompts=16, num_features=1):
    """Success rates even from 0 to 1, as the flat prior has it, and features that say nothing."""
    features = random.normal(size=(prompts, num_features))
    return features, random.binomial(8, random.uniform(size=prompts)), np.full(prompts, 8)


def taught(batches, draw, seed=0, **options):
    prior, random = SuccessPrior(options.get("num_features", 1)), np.random.default_rng(seed)
    for _ in range(batches):
        prior.observe(*draw(random, **options))
    return prior


# ------------------------------------------------------------------------------------------------------ arithmetic


def ref_rate(mean, covariance, inputs):
    """MacKay's approximation of a logistic rate under Gaussian coefficients, in loops."""
    center = sum(m * x for m, x in zip(mean, inputs, strict=True))
    variance = sum(covariance[i][j] * inputs[i] * inputs[j] for i in range(len(inputs)) for j in range(len(inputs)))
    rate = 1 / (1 + math.exp(-center / math.sqrt(1 + math.pi * variance / 8)))
    return min(max(rate, 1e-3), 1 - 1e-3)


def ref_worth(alpha, beta):
    """What a ninth rollout is worth: the paper's value, integrated over the belief."""
    mixed = lambda p, n: 1 - p**n - (1 - p) ** n  # noqa: E731
    worth = lambda p: (mixed(p, 9) - mixed(p, 8)) * p * (1 - p) ** 2  # noqa: E731
    # the density times the worth, whose powers keep it finite at the ends
    log_scale = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    density = lambda p: math.exp(log_scale + (alpha - 1) * math.log(p) + (beta - 1) * math.log1p(-p))  # noqa: E731
    return integrate.quad(lambda p: density(p) * worth(p), 0, 1, epsabs=1e-13, limit=200)[0]


def test_scores_equal_plain_python():
    """All scores after three batches, by a loop over prompts: SciPy's beta-binomial, and integrals for the worth."""
    strengths = [0, 0.5, 1, 2, 4, 8, 16, 32]
    random = np.random.default_rng(3)
    prior = SuccessPrior(2)
    likelihoods, gains, squares = (np.zeros((2, 8)) for _ in range(3))
    sums = {}  # (regression, strength) -> weight, weighted worth expected, weighted worth observed
    for batch in range(3):
        features, successes, trials = draw_batch(random, slope=2.0, base=1.0, prompts=5, num_features=2)
        trials = trials + np.arange(5) * 3  # from 8 to 20: above 16 they count no more
        state = prior.state_dict()
        strength_of_base = int(np.argmax(likelihoods[0]))
        for array in (likelihoods, gains, squares):
            array *= (1 - 1 / 500) ** 5
        rates = [
            [
                ref_rate(state[f"{name}.mean"], state[f"{name}.covariance"], [1.0, *np.clip(x[:width], -2, 2)])
                for x in features
            ]
            for name, width in (("base", 0), ("features", 2))
        ]
        weights = [min(n, 16) for n in trials]
        observed = []
        for i in range(5):
            kappa = strengths[strength_of_base]
            a, b = (kappa * rates[0][i], kappa * (1 - rates[0][i])) if kappa else (1, 1)
            observed.append(ref_worth(a + successes[i], b + trials[i] - successes[i]))
        for which in range(2):
            for k in range(1, 8):
                beliefs = [(strengths[k] * m, strengths[k] * (1 - m)) for m in rates[which]]
                expected = [ref_worth(a, b) for a, b in beliefs]
                old = [(1 - 1 / 64) ** 5 * x for x in sums.get((which, k), (0, 0, 0))]
                weight = old[0] + sum(weights)
                mean_expected = (old[1] + sum(w * e for w, e in zip(weights, expected, strict=True))) / weight
                mean_observed = (old[2] + sum(w * o for w, o in zip(weights, observed, strict=True))) / weight
                sums[which, k] = weight, weight * mean_expected, weight * mean_observed
                for i, (a, b) in enumerate(beliefs):
                    n, s = int(trials[i]), int(successes[i])
                    likelihoods[which, k] += stats.betabinom(n, a, b).logpmf(s) - stats.betabinom(n, 1, 1).logpmf(s)
                    apart, seen = expected[i] - mean_expected, observed[i] - mean_observed
                    gain = weights[i] * (seen**2 - (apart - seen) ** 2)
                    gains[which, k] += gain
                    squares[which, k] += gain**2
        prior.observe(features, successes, trials)
        assert batch or likelihoods.any()
    scores = prior.state_dict()["scores"]
    np.testing.assert_allclose(scores[..., 0], likelihoods, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scores[..., 1], gains, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(scores[..., 2], squares, rtol=1e-6, atol=1e-12)


def test_regression_equals_a_general_optimizer():
    """Mean and covariance after two batches: the posterior's mode by SciPy, and the curvature there by differences."""
    random, size = np.random.default_rng(1), 3
    prior = SuccessPrior(size)
    mean, covariance = np.zeros(1 + size), np.diag([4.0, *[1 / math.sqrt(size)] * size])
    for _ in range(2):
        features, successes, trials = draw_batch(random, slope=1.5, base=-1.0, prompts=20, num_features=size)
        before = np.linalg.inv(covariance + 20 * np.diag([1e-3, *[1e-4 / math.sqrt(size)] * size]))
        start, cut = mean, np.clip(features, -2, 2)

        def loss(theta, x=cut, s=successes, n=trials, center=start, precision=before):
            logits = theta[0] + x @ theta[1:]
            fit = sum(3 / (2 + n) * (n * np.log1p(np.exp(logits)) - s * logits))
            return fit + 0.5 * (theta - center) @ precision @ (theta - center)

        mean = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-9}).x
        covariance = np.linalg.inv(
            [
                [
                    sum(
                        a * b * loss(mean + 1e-4 * (a * np.eye(1 + size)[i] + b * np.eye(1 + size)[j]))
                        for a in (1, -1)
                        for b in (1, -1)
                    )
                    / 4e-8
                    for j in range(1 + size)
                ]
                for i in range(1 + size)
            ]
        )
        prior.observe(features, successes, trials)
        state = prior.state_dict()
        np.testing.assert_allclose(state["features.mean"], mean, atol=1e-5)
        np.testing.assert_allclose(state["features.covariance"], covariance, rtol=1e-4, atol=1e-6)


def test_a_leap_is_followed_to_the_mode():
    """From never solved to always: Newton's method leaps too far from there unless its steps are bounded."""
    prior = SuccessPrior(0)
    for _ in range(40):
        prior.observe(np.zeros((64, 0)), np.zeros(64), np.full(64, 8))
    state = prior.state_dict()
    start, precision = state["base.mean"][0], 1 / (state["base.covariance"][0, 0] + 512 * 1e-3)
    assert start < -7
    prior.observe(np.zeros((512, 0)), np.full(512, 64), np.full(512, 64))

    def loss(logit):  # 512 prompts, each 64 successes that count as 64 * 3 / 66
        return 512 * 64 * 3 / 66 * np.log1p(np.exp(-logit)) + 0.5 * precision * (logit - start) ** 2

    mode = optimize.minimize_scalar(loss, bounds=(-10, 20), method="bounded", options={"xatol": 1e-9}).x
    assert prior.state_dict()["base.mean"][0] == pytest.approx(mode, abs=1e-5)


def test_no_prompt_is_taken_for_certain():
    prior = SuccessPrior(0)
    for _ in range(60):
        prior.observe(np.zeros((64, 0)), np.full(64, 128), np.full(64, 128))
    alpha, beta = prior.predict(np.zeros((1, 0)))
    assert prior.believed == "base rate"
    assert beta[0] / (alpha + beta)[0] == pytest.approx(1e-3)


def test_gain_is_that_of_the_predictions_that_were_given():
    random, prior = np.random.default_rng(0), SuccessPrior(1)
    assert math.isnan(prior.gain)
    total = rollouts = 0.0
    for _ in range(30):
        features, successes, trials = draw_batch(random, slope=2.0, prompts=10)
        alpha, beta = prior.predict(features)
        total *= (1 - 1 / 500) ** 10
        rollouts = rollouts * (1 - 1 / 500) ** 10 + trials.sum()
        total += (stats.betabinom(trials, alpha, beta).logpmf(successes) - math.log(1 / 9)).sum()
        prior.observe(features, successes, trials)
    assert prior.gain == pytest.approx(total / rollouts, abs=1e-12)
    assert prior.gain > 0.02


# --------------------------------------------------------------------------------------------------- what is believed


@pytest.mark.parametrize("num_features", [0, 1, 8])
def test_what_does_not_predict_is_the_flat_prior_to_the_bit(num_features):
    for seed in range(3):
        prior, random = SuccessPrior(num_features, flat=(0.75, 1.5)), np.random.default_rng(seed)
        for _ in range(40):
            alpha, beta = prior.predict(random.normal(size=(3, num_features)))
            assert alpha.tolist() == [0.75] * 3 and beta.tolist() == [1.5] * 3
            features, _, trials = even_batch(random, num_features=num_features)
            prior.observe(features, random.binomial(8, random.beta(0.75, 1.5, size=16)), trials)
        assert prior.kappa == 0 and prior.believed == "flat" and prior.gain == 0


def test_a_new_prior_is_flat():
    alpha, beta = SuccessPrior(3).predict(np.random.default_rng(0).normal(size=(4, 3)))
    assert alpha.tolist() == beta.tolist() == [1.0] * 4


@pytest.mark.parametrize("slope", [2.0, -2.0])
def test_a_feature_is_found_in_either_direction(slope):
    prior = taught(15, draw_batch, slope=slope)
    x = np.array([[-1.5], [0.0], [1.5]])
    alpha, beta = prior.predict(x)
    np.testing.assert_allclose(alpha / (alpha + beta), sigmoid(slope * x[:, 0]), atol=0.12)
    assert prior.believed == "features" and prior.kappa >= 2
    np.testing.assert_allclose(alpha + beta, prior.kappa)


def test_the_better_it_predicts_the_more_it_is_worth():
    worth = [taught(40, draw_batch, slope=2.0, spread=spread).kappa for spread in (0.2, 1.0, 2.0)]
    assert worth[0] > worth[1] > worth[2] > 0


def test_without_features_the_base_rate_is_found():
    prior = taught(25, draw_batch, slope=0.0, base=2.0, num_features=0)
    alpha, beta = prior.predict(np.zeros((2, 0)))
    assert prior.believed == "base rate"
    assert alpha[0] / (alpha + beta)[0] == pytest.approx(0.85, abs=0.05)


def test_features_that_say_nothing_leave_the_flat_prior():
    for seed in range(5):  # the base rate, which they say too, tells no prompt from another
        prior = taught(40, draw_batch, seed=seed, slope=0.0, base=2.0, num_features=8)
        alpha, beta = prior.predict(np.random.default_rng(1).normal(size=(6, 8)))
        assert prior.believed == "flat"
        assert alpha.tolist() == beta.tolist() == [1.0] * 6


@pytest.mark.parametrize(
    ("base", "features", "apart", "believed"),
    [
        (6.0, 6.5, 1.5, "flat"),  # a thousand to one is 6.9
        (7.5, 13.0, 1.5, "flat"),
        (7.5, 15.0, 1.5, "features"),
        (7.5, 15.0, 0.5, "flat"),  # likelier, but not by what rollouts are worth
        (0.0, 7.5, 1.5, "features"),
    ],
)
def test_features_need_a_thousand_to_one_and_to_tell_worth_apart(base, features, apart, believed):
    prior = SuccessPrior(1)
    state = prior.state_dict()
    state["scores"][0, 3] = base, -5.0, 1.0
    state["scores"][1, 4] = features, apart, 1.0  # likelihood, gain, and squares of the gain
    prior.load_state_dict(state)
    assert prior.believed == believed
    assert prior.kappa == {"flat": 0.0, "base rate": 2.0, "features": 4.0}[believed]


def test_likelier_but_wrong_where_rollouts_are_worth_most_is_not_believed():
    """A line can't see that the lowest scores are the half-solved problems: it takes them for hopeless."""

    def misleading(random):
        x = random.uniform(-2, 2, size=(18, 1))
        rates = np.select([x[:, 0] < -1.4, x[:, 0] < 0], [0.35, 0.01], 0.97)
        return x, random.binomial(8, rates), np.full(18, 8)

    believed = 0
    for seed in range(3):
        prior, random = SuccessPrior(1), np.random.default_rng(seed)
        for _ in range(40):
            prior.observe(*misleading(random))
            believed += prior.believed == "features"
    assert believed < 40  # of 120; by likelihood alone nearly all
    scores = prior.state_dict()["scores"][..., 0]
    assert scores[1].max() > scores[0].max() + 50


def test_one_prompt_a_batch_teaches_as_well():
    prior = taught(240, draw_batch, slope=2.0, prompts=1)
    alpha, beta = prior.predict([[-1.5], [1.5]])
    assert prior.believed == "features"
    assert alpha[0] / (alpha + beta)[0] < 0.2 and alpha[1] / (alpha + beta)[1] > 0.8


def test_a_feature_that_ceases_to_predict_is_given_up():
    prior, random = taught(20, draw_batch, slope=2.0), np.random.default_rng(1)
    assert prior.believed == "features"
    for _ in range(25):  # four hundred prompts
        prior.observe(*draw_batch(random, slope=-2.0, spread=0.5))
    alpha, beta = prior.predict([[-1.5], [1.5]])
    assert prior.believed != "features" or alpha[0] / beta[0] > alpha[1] / beta[1]


def test_unknown_features_say_as_much_as_average_ones():
    prior = taught(15, draw_batch, slope=2.0, num_features=2)
    for given, same in (([math.nan, 0.3], [0.0, 0.3]), ([math.nan, math.nan], [0.0, 0.0])):
        np.testing.assert_array_equal(prior.predict([given]), prior.predict([same]))


def test_an_outlier_says_no_more_than_two_standard_deviations():
    prior = taught(15, draw_batch, slope=2.0)
    np.testing.assert_array_equal(prior.predict([[40.0], [-40.0]]), prior.predict([[2.0], [-2.0]]))
    assert not np.array_equal(prior.predict([[1.9]]), prior.predict([[2.0]]))


def test_a_carried_prior_is_weighted_anew():
    prior = taught(20, draw_batch, slope=2.0)
    prior.reweigh()
    assert prior.believed == "flat" and prior.kappa == 0 and math.isnan(prior.gain)
    random = np.random.default_rng(5)
    batches = 0
    while prior.believed != "features" and batches < 20:
        prior.observe(*draw_batch(random, slope=2.0))
        batches += 1
    fresh, random = SuccessPrior(1), np.random.default_rng(5)
    for _ in range(batches):
        fresh.observe(*draw_batch(random, slope=2.0))
    assert batches <= 4 and fresh.believed != "features"  # it need not learn again


def value_over_equal(slope, base_of_batch, spread, seed, batches=27, prompts=18):
    """Value of the counts that the prior gives to new prompts, over equal counts, at the true rates."""
    prior, random = SuccessPrior(1), np.random.default_rng(seed)
    value = equal = 0.0
    for batch in range(batches):
        features = random.normal(size=(prompts, 1))
        rates = sigmoid(base_of_batch(batch) + slope * features[:, 0] + spread * random.normal(size=prompts))
        beliefs = BetaBeliefs(*prior.predict(features))
        counts = allocate(beliefs, 8 * prompts, min_generations=2, max_generations=128).counts
        value += expected_values(rates, counts).sum()
        equal += expected_values(rates, np.full(prompts, 8)).sum()
        prior.observe(features, random.binomial(counts, rates), counts)
    return 100 * (value / equal - 1)


def test_a_base_rate_that_runs_away_does_no_harm():
    """From 0.07 to 0.4 and on within an epoch, where a long memory lags behind and is confidently wrong."""
    rising = [value_over_equal(1.0, lambda t: -2.6 + 0.085 * t, spread=1.0, seed=seed) for seed in range(6)]
    assert np.mean(rising) > -0.25
    falling = [value_over_equal(1.0, lambda t: 2.0 - 0.15 * t, spread=1.0, seed=seed) for seed in range(6)]
    assert np.mean(falling) > -0.25


def test_it_pays_where_most_prompts_are_solved():
    """Three quarters solved and a quarter hard, told apart by one feature: the saturated regime."""
    gains = [value_over_equal(3.0, lambda t: 2.0, spread=1.0, seed=seed) for seed in range(6)]
    assert np.mean(gains) > 3.0


# -------------------------------------------------------------------------------------------- state, ranks and errors


def test_resumed_bit_for_bit():
    def batches(seed):
        random = np.random.default_rng(seed)
        return [draw_batch(random, slope=2.0, prompts=7, num_features=3) for _ in range(20)]

    whole, first = SuccessPrior(3), SuccessPrior(3)
    for batch in batches(0):
        whole.observe(*batch)
    for batch in batches(0)[:11]:
        first.observe(*batch)
    resumed = SuccessPrior(3)
    resumed.load_state_dict(first.state_dict())
    for batch in batches(0)[11:]:
        resumed.observe(*batch)
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    for name, array in whole.state_dict().items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, resumed.state_dict()[name])
    x = np.random.default_rng(9).normal(size=(5, 3))
    np.testing.assert_array_equal(whole.predict(x), resumed.predict(x))


def test_a_state_is_a_copy():
    prior = taught(3, draw_batch, slope=1.0)
    state = prior.state_dict()
    other = SuccessPrior(1)
    other.load_state_dict(state)
    for array in state.values():
        array[...] = 7.0
    np.testing.assert_array_equal(other.state_dict()["features.mean"], prior.state_dict()["features.mean"])
    prior.observe(*draw_batch(np.random.default_rng(0), slope=1.0))
    assert not np.array_equal(other.state_dict()["scores"], prior.state_dict()["scores"])


def test_predicting_changes_nothing():
    prior = taught(8, draw_batch, slope=2.0)
    before = prior.state_dict()
    prior.predict([[0.5]])[0][:] = 99.0
    for name, array in prior.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_what_has_no_reward_is_not_counted():
    with_blank, without = SuccessPrior(1), SuccessPrior(1)
    with_blank.observe([[0.5], [3.0], [-1.0]], [3, 0, 1], [8, 0, 4])
    without.observe([[0.5], [-1.0]], [3, 1], [8, 4])
    with_blank.observe([[2.0]], [0], [0])
    for name, array in with_blank.state_dict().items():
        np.testing.assert_array_equal(array, without.state_dict()[name])


def test_extremes_stay_finite_and_positive():
    prior = SuccessPrior(2)
    for _ in range(30):
        prior.observe([[50.0, -50.0], [-50.0, 50.0]], [128, 0], [128, 128])
    alpha, beta = prior.predict([[1e6, -1e6], [-1e6, 1e6], [math.nan, 0.0]])
    for parameters in (alpha, beta):
        assert np.isfinite(parameters).all() and (parameters > 0).all()
    BetaBeliefs(alpha, beta)


def test_representation():
    assert repr(SuccessPrior(2)) == "SuccessPrior(2 features, believes flat)"
    prior = taught(15, draw_batch, slope=2.0)
    assert repr(prior) == f"SuccessPrior(1 features, believes features, worth {prior.kappa:g} rollouts)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("given"), "missing fields ['given']"),
        (lambda state: state.update(more=np.zeros(2)), "unknown fields ['more']"),
        (lambda state: state.update({"features.mean": np.zeros(3)}), "has shape (3,), but 1 features need (2,)"),
        (lambda state: state["scores"].fill(np.nan), "field 'scores' of the prior's state must be finite"),
        (lambda state: state["features.covariance"].fill(1.0), "must be a symmetric, positive matrix"),
        (lambda state: state["features.covariance"].__setitem__((0, 1), 0.5), "must be a symmetric, positive matrix"),
    ],
)
def test_a_state_that_can_not_be_used_changes_nothing(change, message):
    prior = taught(3, draw_batch, slope=1.0)
    before, state = prior.state_dict(), prior.state_dict()
    change(state)
    with pytest.raises(InvalidInputError) as error:
        prior.load_state_dict(state)
    assert message in str(error.value)
    for name, array in prior.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda prior: prior.predict([0.5]), r"features have shape \(1,\) but must have shape \(P, 1\)"),
        (lambda prior: prior.predict([[0.5, 1.0]]), r"features have shape \(1, 2\)"),
        (lambda prior: prior.predict([[math.inf]]), "one is infinite"),
        (lambda prior: prior.observe([[0.5]], [1, 2], [4, 4]), r"successes has shape \(2,\)"),
        (lambda prior: prior.observe([[0.5]], [5], [4]), "must not exceed trials"),
        (lambda prior: prior.observe([[0.5]], [-1], [4]), "finite and not negative"),
        (lambda prior: prior.observe([[0.5]], [1], [math.nan]), "finite and not negative"),
        (lambda prior: SuccessPrior(-1), r"num_features \(-1\) must be a whole number"),
        (lambda prior: SuccessPrior(1, flat=(0, 1)), "must be two positive numbers"),
    ],
)
def test_errors(use, message):
    with pytest.raises(InvalidInputError, match=message):
        use(SuccessPrior(1))

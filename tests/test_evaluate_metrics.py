"""The statistics and the modules for `evaluate.load`, against enumeration, numbers by hand, and what their cards say."""

import contextlib
import doctest
import io
import itertools
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from math import comb
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_knapsack.evaluation import (
    METRICS,
    bootstrap_interval,
    exact_answers,
    majority_at_k,
    math_answers,
    mcnemar,
    metric_path,
    paired_bootstrap,
    pass_at_k,
    wilcoxon,
)


def naive_pass_at_k(successes, k):
    """Share of the subsets of size k that hold a right one."""
    subsets = list(itertools.combinations(successes, k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def naive_majority_at_k(answers, value, k):
    """Mean over the subsets of size k; a tie counts the mean of the answers that lead."""
    total = count = 0
    for subset in itertools.combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        leaders = [answer for answer in votes if votes[answer] == max(votes.values())]
        total += sum(value[answer] for answer in leaders) / len(leaders) if leaders else 0.0
        count += 1
    return total / count


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets(successes, data):
    k = data.draw(st.integers(1, len(successes)))
    assert pass_at_k(len(successes), sum(successes), k) == pytest.approx(naive_pass_at_k(successes, k), abs=1e-14)


def test_pass_at_k_by_hand():
    # 5 completions, 2 right: of 10 pairs 3 hold none, of 10 triples 1, of 5 quadruples 0
    assert [pass_at_k(5, 2, k) for k in (1, 2, 3, 4, 5)] == [0.4, 0.7, 0.9, 1.0, 1.0]
    assert pass_at_k(8, 0, 8) == 0.0
    assert isinstance(pass_at_k(5, 2, 1), float)


def test_pass_at_k_neither_overflows_nor_loses_small_probabilities():
    assert pass_at_k(10**6, 1, 3) == 3e-6
    exact = 1 - Fraction(comb(4096 - 5, 2048), comb(4096, 2048))
    assert pass_at_k(4096, 5, 2048) == float(exact)


def test_pass_at_k_of_many_problems():
    n, c = np.array([[4, 5], [6, 4]]), np.array([[1, 2], [0, 4]])
    np.testing.assert_array_equal(pass_at_k(n, c, 2), [[0.5, 0.7], [0.0, 1.0]])
    np.testing.assert_array_equal(pass_at_k(4, [0, 1, 2.0], 2), [0.0, 0.5, 5 / 6])


def test_pass_at_k_has_no_bias():
    """The mean over samples of 6 completions is what 3 completions reach, the naive estimate is not."""
    rng, p, k = np.random.default_rng(0), 0.2, 3
    c = rng.binomial(6, p, size=40_000)
    truth = 1 - (1 - p) ** k
    assert pass_at_k(6, c, k).mean() == pytest.approx(truth, abs=0.006)
    assert (1 - (1 - c / 6) ** k).mean() < truth - 0.02


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (4, 2, 5, r"k \(5\) must be at most n \(4\)"),
        ([8, 4], 2, 5, r"k \(5\) must be at most n \(4\)"),
        (4, [2, 5], 1, r"c \(5\) must be between 0 and n \(4\)"),
        (4, -1, 1, r"c \(-1\) must be between 0 and n \(4\)"),
        (4, 2, 0, r"k \(0\) must be a whole number"),
        (4, 1.5, 1, r"c \(1.5\) must be whole numbers"),
    ],
)
def test_pass_at_k_says_what_is_wrong(n, c, k, message):
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=9), st.data())
def test_majority_at_k_is_the_mean_over_subsets(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    value = {"a": 1.0, "b": 0.0, "c": 0.5, "d": 1.0}
    votes = Counter(answer for answer in answers if answer is not None)
    found = majority_at_k(list(votes.values()), [value[answer] for answer in votes], k, answers.count(None))
    assert found == pytest.approx(naive_majority_at_k(answers, value, k), abs=1e-12)


def test_majority_at_k_by_hand():
    # a a b: of three pairs one is a a, two are ties
    assert majority_at_k([2, 1], [1.0, 0.0], 2) == pytest.approx(2 / 3)
    assert majority_at_k([2, 1], [1.0, 0.0], 3) == 1.0
    assert majority_at_k([2, 1], [0.0, 1.0], 3) == 0.0
    # three answers tie
    assert majority_at_k([1, 1, 1], [1.0, 0.0, 0.0], 3) == pytest.approx(1 / 3)
    # a and two without an answer: a is drawn in one of three, and wins alone
    assert majority_at_k([1], [1.0], 1, abstentions=2) == pytest.approx(1 / 3)
    assert majority_at_k([], [], 2, abstentions=3) == 0.0


def test_majority_of_many_completions_approaches_the_leader():
    """maj@k rises from avg@k to 1 where the right answer leads, and falls to 0 where it does not."""
    leads = [majority_at_k([24, 20, 20], [1.0, 0.0, 0.0], k) for k in (1, 4, 16, 64)]
    trails = [majority_at_k([24, 20, 20], [0.0, 1.0, 0.0], k) for k in (1, 4, 16, 64)]
    assert leads == sorted(leads) and leads[0] == 24 / 64 and leads[-1] == 1.0
    assert trails == sorted(trails, reverse=True) and trails[0] == 20 / 64 and trails[-1] == 0.0


@pytest.mark.parametrize(
    ("votes", "success", "k", "message"),
    [
        ([2, 1], [1.0, 0.0], 4, r"k \(4\) must be between 1 and the number of completions \(3\)"),
        ([2, 1], [1.0, 0.0], 0, r"k \(0\)"),
        ([2, 1], [1.0], 1, r"votes \(2 answers\) and success \(1\)"),
        ([2, 0], [1.0, 0.0], 1, r"must be at least 1 each"),
    ],
)
def test_majority_at_k_says_what_is_wrong(votes, success, k, message):
    with pytest.raises(ValueError, match=message):
        majority_at_k(votes, success, k)


def test_bootstrap_interval_of_a_large_sample_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval.estimate == values.mean()
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    narrower = bootstrap_interval(values, confidence_level=0.68)
    assert narrower.high - narrower.low == pytest.approx(half, rel=0.1)


def test_bootstrap_intervals_cover_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        interval = bootstrap_interval(rng.binomial(8, 0.3, size=60) / 8, n_resamples=500)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.91 < covered / 300 < 0.985


def test_bootstrap_interval_is_the_same_for_the_same_seed():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval([0.5] * 4).low == bootstrap_interval([0.5] * 4).high == 0.5


def test_paired_bootstrap_is_narrow_where_problems_differ_more_than_runs():
    rng = np.random.default_rng(0)
    difficulty = rng.random(200)
    a, b = difficulty + 0.05, difficulty + rng.normal(0, 0.02, size=200)
    interval = paired_bootstrap(a, b)
    assert 0.04 < interval.low < 0.05 < interval.high < 0.06
    assert bootstrap_interval(a).low < bootstrap_interval(b).high  # the two intervals alone say nothing
    swapped = paired_bootstrap(b, a)
    assert swapped.estimate == -interval.estimate
    assert swapped.low == pytest.approx(-interval.high, abs=0.002)


def naive_wilcoxon(differences):
    """p value by trying all signs of the ranks."""
    size = np.abs(differences)
    ranks = np.array([(size < s).sum() + ((size == s).sum() + 1) / 2 for s in size])
    signs = np.array(list(itertools.product((0, 1), repeat=len(ranks))))
    sums = signs @ ranks
    observed = ranks[differences > 0].sum()
    return min(1.0, 2 * min((sums <= observed).mean(), (sums >= observed).mean()))


def test_wilcoxon_tries_all_signs():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.random(9), rng.random(9)
        assert wilcoxon(a, b)["p"] == pytest.approx(naive_wilcoxon(a - b), rel=1e-9)
    assert wilcoxon([0.3, 0.2, 0.5], [0.3, 0.2, 0.5]) == {"stat": 0.0, "p": 1.0}


def test_wilcoxon_does_not_rank_rounding_errors():
    # 0.3 - 0.1 > 0.2 in floating point; the five differences are three of one size and two of another
    a, b = [0.3, 0.2, 0.9, 0.1, 0.5], [0.1, 0.0, 0.7, 0.5, 0.1]
    assert wilcoxon(a, b)["stat"] == 4.5  # ranks 2 2 2 4.5 4.5, the last but one against
    assert wilcoxon(a, b)["p"] == pytest.approx(naive_wilcoxon(np.array([2.0, 2.0, 2.0, -4.0, 4.0])), rel=1e-9)


def test_mcnemar_by_hand():
    # 10 problems by the first run alone, 2 by the second: 2 * (1 + 12 + 66) / 2^12
    a = [True] * 10 + [False] * 2 + [True] * 5 + [False] * 3
    b = [False] * 10 + [True] * 2 + [True] * 5 + [False] * 3
    result = mcnemar(a, b)
    assert (result["only1"], result["only2"], result["stat"]) == (10, 2, 2.0)
    assert result["p"] == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert mcnemar([True, False], [True, False])["p"] == 1.0


@pytest.mark.parametrize(
    ("test", "a", "b", "message"),
    [
        (wilcoxon, [1.0, 2.0], [1.0], "of shape .1,. must be one number per problem"),
        (wilcoxon, [1.0, 2.0, 3.0], [1.0, 2.0], "a has 3 problems and b has 2"),
        (paired_bootstrap, [1.0, float("nan")], [1.0, 2.0], r"a\[1\] is nan"),
        (paired_bootstrap, [[1.0, 2.0]], [[1.0, 2.0]], r"a of shape \(1, 2\)"),
        (mcnemar, [0.5, 1.0], [0.0, 1.0], r"a has 0.5, and McNemar's test needs true or false"),
        (mcnemar, [True], [True, False], "a has 1 problems and b has 2"),
    ],
)
def test_paired_tests_say_what_is_wrong(test, a, b, message):
    with pytest.raises(ValueError, match=message):
        test(a, b)


def test_exact_answers():
    assert exact_answers([" 12\n", "", "  ", "1 2"]) == ["12", None, None, "1 2"]


def test_math_answers_that_are_equal_are_one_answer():
    found = math_answers([r"It is $\frac{1}{2}$.", "0.5", r"\boxed{50\%}", "no idea", r"$\boxed{3}$ or 0.5", "3"])
    assert found[0] == found[1] == found[2] is not None
    assert found[3] is None
    assert found[4] == found[5] not in (None, found[0])  # the boxed one comes first


@pytest.mark.parametrize("name", METRICS)
class TestModules:
    def test_the_examples_in_the_docstring(self, name):
        module = evaluate.load(metric_path(name))
        names = {"evaluate": evaluate, "metric_path": metric_path}
        test = doctest.DocTestParser().get_doctest(module.inputs_description, names, name, None, 0)
        assert len(test.examples) == 2
        assert doctest.DocTestRunner().run(test).failed == 0

    def test_the_examples_in_the_card(self, name):
        card = (Path(metric_path(name)) / "README.md").read_text(encoding="utf-8")
        (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, {})
        assert printed.getvalue().strip() == re.search(r"# (\{.*\})$", block, re.MULTILINE)[1]

    def test_what_a_module_says_of_itself(self, name):
        module = evaluate.load(metric_path(name))
        assert module.name == name
        assert module.module_type == ("comparison" if name in ("wilcoxon", "mcnemar") else "metric")
        assert module.citation.strip().startswith("@") and module.description.strip()
        assert all(f"{feature} (" in module.inputs_description for feature in module.features)


def test_a_metric_that_does_not_exist():
    with pytest.raises(ValueError, match="There is no metric 'pass'; choose one of avg_at_k, .*, wilcoxon"):
        metric_path("pass")


def test_metrics_take_batches_and_other_thresholds():
    rewards = [[0.2, 0.9, 0.4], [0.6, 0.1, 0.3]]
    for name, expected in (("avg_at_k", {"avg@3": 2 / 6}), ("pass_at_k", {"pass@1": 2 / 6})):
        metric = evaluate.load(metric_path(name))
        for own in rewards:
            metric.add(prediction=own, reference=None)
        assert metric.compute() == pytest.approx(expected)
    strict = evaluate.load(metric_path("pass_at_k")).compute(predictions=rewards, k=[2], success_threshold=0.8)
    assert strict == {"pass@2": pytest.approx((2 / 3 + 0) / 2)}


def test_problems_weigh_the_same_in_avg_at_k():
    metric = evaluate.load(metric_path("avg_at_k"))
    assert metric.compute(predictions=[[1, 1], [0, 0, 0, 1]]) == {"avg@2": (1 + 1 / 4) / 2}
    with pytest.raises(ValueError, match="Problem 1 has no completions"):
        metric.compute(predictions=[[1], []])


def test_math_answers_leaves_out_solutions_that_cannot_be_read():
    metric = evaluate.load(metric_path("math_answers"))
    result = metric.compute(predictions=[r"\boxed{2}", r"\boxed{2}", "2"], references=["2", "", "2"])
    assert result == {"accuracy": 0.5, "rewards": [1.0, None, 0.0]}


def test_maj_at_k_reads_mathematics():
    metric = evaluate.load(metric_path("maj_at_k"))
    # 0.5 and 1/2 outvote 4: three triples of four have two of them or a tie with what has no answer
    predictions = [["$0.5$", r"\boxed{\frac{1}{2}}", "4", "hm"]]
    expected = naive_majority_at_k(["half", "half", "4", None], {"half": 1.0, "4": 0.0}, 3)
    assert metric.compute(predictions=predictions, references=["0.5"], k=[3]) == {"maj@3": pytest.approx(expected)}
    exact = metric.compute(predictions=predictions, references=["$0.5$"], k=[4], answers="exact")
    assert exact == {"maj@4": 0.25}
    with pytest.raises(ValueError, match="answers .'latex'. must be 'math' or 'exact'"):
        metric.compute(predictions=predictions, references=["0.5"], answers="latex")


def test_the_comparisons_are_scipys():
    from scipy import stats

    rng = np.random.default_rng(3)
    a, b = rng.random(40), rng.random(40)
    module = evaluate.load(metric_path("wilcoxon"))
    expected = stats.wilcoxon(np.round(a - b, 9))
    result = module.compute(predictions1=a, predictions2=b)
    assert (result["stat"], result["p"]) == (expected.statistic, pytest.approx(expected.pvalue))
    labels = rng.integers(0, 3, size=(3, 60))
    result = evaluate.load(metric_path("mcnemar")).compute(
        predictions1=labels[0], predictions2=labels[1], references=labels[2]
    )
    only = ((labels[0] == labels[2]) & (labels[1] != labels[2])).sum()
    other = ((labels[1] == labels[2]) & (labels[0] != labels[2])).sum()
    assert (result["only1"], result["only2"]) == (only, other)
    assert result["p"] == pytest.approx(stats.binomtest(int(only), int(only + other)).pvalue)


def test_statistics_need_neither_torch_nor_evaluate():
    code = (
        "import sys; from trl_knapsack.evaluation import compare, pass_at_k, wilcoxon, metric_path, math_answers; "
        "print([name for name in ('torch', 'transformers', 'trl', 'datasets', 'evaluate') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""What the results say: estimates with intervals, paired tests, and rollouts to reach a given accuracy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from contenders import CONTENDERS
from run import options_digest
from scipy import stats
from study import PROFILES, Profile, choose_learning_rates, load_results, score

from trl_knapsack.evaluation import Interval, mcnemar, wilcoxon


RESAMPLES = 4000
LEAST_SEEDS = 3  # of a cell that is shown


def over_seeds(values: np.ndarray) -> Interval:
    """Mean over seeds `(S,)` and its 95 % interval by Student's t. With five seeds a bootstrap's covers only 84 %."""
    return pooled([values])


def pooled(cells: list[np.ndarray]) -> Interval:
    """The mean over cells of their means over seeds, each `(S,)`, and its 95 % interval by Student's t (Satterthwaite)."""
    variances = np.array([np.var(values, ddof=1) / len(values) for values in cells])
    mean = float(np.mean([values.mean() for values in cells]))
    if not variances.any():
        return Interval(mean, mean, mean, 0.95)
    freedom = variances.sum() ** 2 / sum(v**2 / (len(values) - 1) for v, values in zip(variances, cells, strict=True))
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variances.sum()) / len(cells)
    return Interval(mean, float(mean - half), float(mean + half), 0.95)


@dataclass(frozen=True)
class Cell:
    """The report runs of one task and regime: results by contender, in the order of the seeds."""

    task: str
    regime: str
    runs: dict[str, list[dict]]

    def scores(self, contender: str) -> np.ndarray:
        """Held-out accuracy of each seed, `(S,)`: the mean of the last three evaluations."""
        return np.array([score(result) for result in self.runs[contender]])

    def means(self, contender: str) -> np.ndarray:
        """Held-out accuracy of each seed, `(S,)`, in the mean over the run: less noisy than at its end."""
        return np.array([np.mean([point["accuracy"] for point in run["curve"][1:]]) for run in self.runs[contender]])

    def accuracy(self, contender: str) -> Interval:
        return over_seeds(self.scores(contender))

    def differences(self, contender: str, measure: str = "scores", against: str = "uniform") -> np.ndarray:
        """Difference to another contender of each seed that both have, `(S,)`, in `scores` or `means`."""
        ours, theirs = getattr(self, measure)(contender), getattr(self, measure)(against)
        seeds = min(len(ours), len(theirs))
        return ours[:seeds] - theirs[:seeds]

    def over(self, contender: str, measure: str = "scores", against: str = "uniform") -> Interval:
        """Held-out accuracy less another's, over paired seeds."""
        return over_seeds(self.differences(contender, measure, against))

    def mean(self, contender: str, measure: str) -> float:
        """Mean over seeds and, where it is a series, over training."""
        return float(np.mean([np.mean(result[measure]) for result in self.runs[contender]]))

    def last(self, contender: str, measure: str) -> float:
        """Mean over seeds of a measure at the end of training."""
        return float(np.mean([result["curve"][-1][measure] for result in self.runs[contender]]))

    def curve(self, contender: str, measure: str) -> np.ndarray:
        """A measure over training, `(S, E)`: one row per seed, one column per evaluation."""
        points = min(len(result["curve"]) for result in self.runs[contender])
        return np.array([[point[measure] for point in result["curve"][:points]] for result in self.runs[contender]])

    def tests(self, contender: str) -> dict[str, Any]:
        """
        Paired tests over held-out problems, against uniform: Wilcoxon on each problem's mean success rate over the
        seeds, McNemar on whether it is solved, which here means a rate above one half.
        """
        a, b = (
            np.mean([result["held_out_permille"] for result in self.runs[name]], axis=0) / 1000
            for name in (contender, "uniform")
        )
        return {
            "higher": int((a > b).sum()),
            "lower": int((a < b).sum()),
            "wilcoxon": wilcoxon(a, b)["p"],
            "mcnemar": mcnemar(a > 0.5, b > 0.5),
        }

    def cost_to_reach_uniform(self, contender: str, cost: str = "rollouts") -> tuple[float, float, float]:
        """
        Cost after which the contender's mean curve first reaches uniform's final accuracy, as a share of uniform's
        whole cost: estimate, low and high of a 95 % bootstrap over seeds. Infinite where it is not reached.
        """
        curves = {name: (self.curve(name, cost), self.curve(name, "accuracy")) for name in (contender, "uniform")}
        seeds = min(len(accuracy) for _, accuracy in curves.values())

        def share(sample: np.ndarray) -> float:
            target = curves["uniform"][1][sample, -3:].mean()
            whole = curves["uniform"][0][sample, -1].mean()
            costs, accuracy = (values[sample].mean(axis=0) for values in curves[contender])
            reached = np.flatnonzero(accuracy >= target)
            if not len(reached):
                return np.inf
            end = int(reached[0])
            if end == 0:
                return 0.0
            step = (target - accuracy[end - 1]) / (accuracy[end] - accuracy[end - 1])
            return float((costs[end - 1] + step * (costs[end] - costs[end - 1])) / whole)

        random = np.random.default_rng(0)
        sample = [share(random.integers(seeds, size=seeds)) for _ in range(RESAMPLES)]
        low, high = np.quantile(sample, [0.025, 0.975], method="inverted_cdf")
        return share(np.arange(seeds)), float(low), float(high)


def load_cells(profile_name: str) -> tuple[dict[tuple[str, str], Cell], dict[tuple[str, str], float]]:
    """The cells with all runs that are there, and the learning rates chosen."""
    profile, results = PROFILES[profile_name], load_results(profile_name)
    rates = choose_learning_rates(profile, results)
    cells: dict[tuple[str, str], Cell] = {}
    by_contender: dict[tuple[str, str, str], list[dict]] = {}
    ended = set()  # until the first seed that is missing, so that the seeds of contenders are the same
    for run in profile.report(rates):
        key = run.task, run.regime, run.contender
        if run.name not in results:
            ended.add(key)
        elif key not in ended:
            by_contender.setdefault(key, []).append(results[run.name])
    for (task, regime, contender), runs in by_contender.items():
        if len(runs) >= LEAST_SEEDS:
            cells.setdefault((task, regime), Cell(task, regime, {})).runs[contender] = runs
    return {key: cell for key, cell in cells.items() if "uniform" in cell.runs}, rates


def stale(profile_name: str) -> list[str]:
    """Results that were made under other options than their contender has now."""
    results = load_results(profile_name)
    digests = {contender: options_digest(contender) for contender in {run["contender"] for run in results.values()}}
    return [name for name, run in results.items() if run["digest"] != digests[run["contender"]]]


def pooled_over(cells: list[Cell], contender: str, measure: str = "scores", against: str = "uniform") -> Interval:
    """Held-out accuracy less another contender's over several cells, of equal weight."""
    return pooled([cell.differences(contender, measure, against) for cell in cells])


def tuning_table(profile: Profile, results: dict[str, dict]) -> dict[tuple[str, str], list[float]]:
    """Mean score over the tuning seeds of each (regime, contender), one number per learning rate."""
    table: dict[tuple[str, str], list[float]] = {}
    for regime in profile.regimes:
        for contender in profile.tuned:
            scores = []
            for learning_rate in profile.learning_rates:
                runs = [
                    run
                    for run in profile.tuning()
                    if (run.regime, run.contender, run.learning_rate) == (regime, contender, learning_rate)
                ]
                there = [score(results[run.name]) for run in runs if run.name in results]
                scores.append(float(np.mean(there)) if there else np.nan)
            table[regime, contender] = scores
    return table


def about(contender: str) -> str:
    return CONTENDERS[contender].about

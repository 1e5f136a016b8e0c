"""What the results say: estimates with intervals, paired tests, and rollouts to reach a given accuracy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from contenders import CONTENDERS
from study import PROFILES, Profile, choose_learning_rates, load_results, score

from trl_knapsack.evaluation import Interval, bootstrap_interval, mcnemar, paired_bootstrap, wilcoxon


RESAMPLES = 4000


@dataclass(frozen=True)
class Cell:
    """The report runs of one task and regime: results by contender, in the order of the seeds."""

    task: str
    regime: str
    runs: dict[str, list[dict]]

    def scores(self, contender: str) -> np.ndarray:
        """Held-out accuracy of each seed, `(S,)`: the mean of the last three evaluations."""
        return np.array([score(result) for result in self.runs[contender]])

    def accuracy(self, contender: str) -> Interval:
        return bootstrap_interval(self.scores(contender), n_resamples=RESAMPLES)

    def over_uniform(self, contender: str) -> Interval:
        """Held-out accuracy less uniform's, over paired seeds."""
        seeds = len(self.runs[contender])
        return paired_bootstrap(self.scores(contender), self.scores("uniform")[:seeds], n_resamples=RESAMPLES)

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
    for run in profile.report(rates):
        if run.name in results:
            by_contender.setdefault((run.task, run.regime, run.contender), []).append(results[run.name])
    for (task, regime, contender), runs in by_contender.items():
        if len(runs) == len(profile.report_seeds):  # else it is not finished
            cells.setdefault((task, regime), Cell(task, regime, {})).runs[contender] = runs
    return {key: cell for key, cell in cells.items() if "uniform" in cell.runs}, rates


def pooled_over_uniform(cells: list[Cell], contender: str) -> Interval:
    """Held-out accuracy less uniform's over several cells, every (cell, seed) a pair."""
    a = np.concatenate([cell.scores(contender) for cell in cells])
    b = np.concatenate([cell.scores("uniform") for cell in cells])
    return paired_bootstrap(a, b, n_resamples=RESAMPLES)


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

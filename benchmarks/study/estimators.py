"""
How much does the default depend on what it assumes of the evidence? Estimators replayed on the drift of a real run.

    python benchmarks/study/estimators.py     # a few minutes of one core; the replay alone takes one

A run of the posterior rule is recorded with the true success rates of every batch's prompts. Estimators then see the same
batches: each gives out the rollouts, draws their outcomes from the true rates, and remembers what it saw. So the drift is a
real policy's, and only the counts differ. What they are worth at the true rates is compared with equal counts.

How much more could a better estimator bring? "hindsight" was told the true rates of the other runs: what is believed of a
prompt are the true rates that prompts had there when the same was known of them.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace

import contenders
import numpy as np
from run import Run, execute
from scipy.spatial import cKDTree
from study import RESULTS, TUNING_TASK
from tasks import REGIMES
from tqdm.auto import tqdm

from trl_knapsack import SuccessRateTracker, allocate
from trl_knapsack.allocation import Allocation, Evidence, FilterRule, PaperRule, PosteriorRule, expected_values


NUM_GENERATIONS, MOST = 8, 128
HINDSIGHT = "hindsight: told the true rates of other runs"
LEARNING_RATE = 1.2e-4
Batches = list[tuple[list[str], np.ndarray]]  # keys and true rates of each batch's prompts


class Recorder:
    """The default rule, and a note of the true success rates of every batch."""

    def __init__(self, policy: contenders.Policy, batches: Batches):
        self.policy, self.batches = policy, batches

    def __call__(self, evidence: Evidence, budget: int, low: int, high: int) -> Allocation:
        self.batches.append((list(evidence.keys), self.policy.success_rates(evidence.keys).round(4)))
        return PosteriorRule()(evidence, budget, low, high)


def record(regime: str, seed: int, steps: int) -> Batches:
    batches: Batches = []
    contenders.CONTENDERS["recorder"] = replace(
        contenders.CONTENDERS["posterior"], rule=lambda policy: Recorder(policy, batches)
    )
    execute(Run(TUNING_TASK, regime, "recorder", LEARNING_RATE, seed, steps))
    return batches


class Hindsight:
    """
    The knapsack under what the true rates of other runs were, where the same was known of a prompt.

    Args:
        others (`list[Batches]`): The other runs.
        draws (`int`): Replays of each, by the posterior rule.
        neighbors (`int`): How many visits there, the nearest, make a belief.
    """

    def __init__(self, others: list[Batches], draws: int = 12, neighbors: int = 150):
        seen: list[tuple[Evidence, np.ndarray]] = []
        for batches in others:
            for draw in range(draws):
                replay(batches, PosteriorRule(), seed=1000 + draw, seen=seen)
        self.tree = cKDTree(np.concatenate([self.known(evidence) for evidence, _ in seen]))
        self.rates = np.concatenate([rates for _, rates in seen])  # (V,)
        counts = np.arange(MOST + 1)
        self.values = np.stack([expected_values(self.rates, np.full(len(self.rates), n)) for n in counts], axis=1)
        self.neighbors = neighbors

    @staticmethod
    def known(evidence: Evidence) -> np.ndarray:
        """Evidence in numbers in which a step of one means about as much: `(P, 4)`."""
        last = np.nan_to_num(evidence.last_rate, nan=0.5)
        return np.column_stack(
            [
                np.log(evidence.alpha / evidence.beta),
                0.5 * np.log(evidence.alpha + evidence.beta),
                0.7 * np.log((last + 0.06) / (1.06 - last)),
                0.3 * evidence.visits,
            ]
        )

    def __call__(self, evidence: Evidence, budget: int, low: int, high: int) -> Allocation:
        places = self.tree.query(self.known(evidence), self.neighbors)[1]  # (P, neighbors)
        means, values = self.rates[places].mean(axis=1), self.values[places].mean(axis=1)
        return allocate(means, budget, min_generations=low, max_generations=high, value=values)


def replay(
    batches: Batches,
    rule: Callable | None,
    low: int = 2,
    seed: int = 0,
    seen: list[tuple[Evidence, np.ndarray]] | None = None,
    **tracker_options,
) -> np.ndarray:
    """
    Value of the counts that a rule gives, `(T,)`, at the true rates; the oracle for None.

    Args:
        batches: Keys and true rates.
        rule (`AllocationRule`, *optional*): Evidence to counts.
        low (`int`): Fewest generations of a prompt.
        seen: Takes what was known of each batch, and its true rates.
        tracker_options: Prior and decay of the tracker.
    """
    tracker, random, values = SuccessRateTracker(**tracker_options), np.random.default_rng(seed), []
    for keys, rates in batches:
        budget, evidence = NUM_GENERATIONS * len(keys), tracker.evidence(keys)
        if rule is None:
            counts = allocate(rates, budget, min_generations=low, max_generations=MOST).counts
        else:
            counts = rule(evidence, budget, low, MOST).counts
        if seen is not None:
            seen.append((evidence, rates))
        values.append(expected_values(rates, counts).sum())
        tracker.observe(keys, random.binomial(counts, rates), counts)
    return np.array(values)


def gap_to_optimum(batches: Batches) -> float:
    """Largest relative gap between the value that the allocator finds and the optimum of a dynamic program."""
    tracker, random, largest = SuccessRateTracker(), np.random.default_rng(0), 0.0
    for keys, rates in batches:
        evidence, budget = tracker.evidence(keys), NUM_GENERATIONS * len(keys)
        found = allocate(evidence.beliefs, budget, min_generations=2, max_generations=MOST)
        optimum = allocate(evidence.beliefs, budget, min_generations=2, max_generations=MOST, solver="dp").value
        largest = max(largest, 1.0 - found.value / optimum)
        tracker.observe(keys, random.binomial(found.counts, rates), found.counts)
    return largest


def estimators() -> dict[str, dict]:
    """By name: a rule, and the options of `replay`."""
    posterior = PosteriorRule()
    table = {
        "true rates": {"rule": None},
        HINDSIGHT: {},
        "paper: last visit, fallback": {"rule": PaperRule()},
        "last visit, no fallback": {"rule": PaperRule(confidence=1.0)},
        "filter": {"rule": FilterRule()},
    }
    for prior in (0.1, 0.5, 1.0, 2.0):
        for decay in (0.0, 0.5, 0.7, 0.85, 1.0):
            options = {"rule": posterior, "prior": (prior, prior), "decay": decay}
            table[f"posterior, prior {prior:g}, decay {decay:g}"] = options
    for low in (3, 4):
        table[f"posterior, prior 1, decay 0.85, at least {low}"] = {"rule": posterior, "low": low, "prior": (1.0, 1.0)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203], help="of the recorded runs")
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--draws", type=int, default=5, help="replays of each recording")
    args = parser.parse_args()

    results: dict[str, dict] = {"gain": {}, "gap_to_optimum": {}}
    for regime in REGIMES:
        recorded = [record(regime, seed, args.steps) for seed in tqdm(args.seeds, desc=f"record {regime}")]
        first_epoch = 480 // len(recorded[0][0][0]) + 1  # uniform under every rule
        results["gap_to_optimum"][regime] = max(gap_to_optimum(batches) for batches in recorded)
        hindsight = [Hindsight(recorded[:i] + recorded[i + 1 :]) for i in range(len(recorded))]
        for name, options in tqdm(estimators().items(), desc=f"replay {regime}"):
            gains = []
            for batches, in_hindsight in zip(recorded, hindsight, strict=True):
                if name == HINDSIGHT:
                    options = {"rule": in_hindsight}
                rates = [rates for _, rates in batches[first_epoch:]]
                uniform = sum(expected_values(p, np.full(len(p), NUM_GENERATIONS)).sum() for p in rates)
                values = [replay(batches, seed=draw, **options)[first_epoch:].sum() for draw in range(args.draws)]
                gains.append(round(float(np.mean(values) / uniform - 1), 5))
            results["gain"].setdefault(name, {})[regime] = gains
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "estimators.json").write_text(json.dumps(results, indent=1) + "\n")
    for name, gains in results["gain"].items():
        print(f"{name:45}", *(f"{regime} {100 * np.mean(values):+.1f} %" for regime, values in gains.items()))
    print("largest gap to the optimum:", results["gap_to_optimum"])


if __name__ == "__main__":
    main()

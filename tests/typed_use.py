"""
What users write, for the type checker: nothing here is run.

Where a name of the package has lost its type, `assert_type` fails, and so do the lines below that hold a mistake on purpose:
a mistake that is no longer seen leaves an unnecessary comment, which is an error.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from trl_knapsack import (
    Allocation,
    AllocationRule,
    BetaBeliefs,
    Evidence,
    KnapsackGRPOConfig,
    KnapsackGRPOTrainer,
    RolloutHistory,
    SuccessRateTracker,
    allocate,
    get_rule,
)
from trl_knapsack.allocation import Explanation, explain
from trl_knapsack.evaluation import EvaluationResults, Interval, evaluate_policy, mcnemar, paired_bootstrap, pass_at_k


def reward(completions: list[str], solution: list[str], **kwargs) -> list[float | None]:
    return [float(text == answer) for text, answer in zip(completions, solution, strict=True)]


def solved(rewards: dict[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    return rewards["reward"] > 0.9


def hardest_first(evidence: Evidence, budget: int, min_generations: int, max_generations: int) -> Allocation:
    return allocate(evidence.beliefs, budget, min_generations=min_generations, max_generations=max_generations)


def train(dataset: Dataset) -> None:
    args = KnapsackGRPOConfig(
        "outputs", num_generations=8, max_generations=32, allocation="posterior", learning_rate=1e-6
    )
    trainer = KnapsackGRPOTrainer(
        "Qwen/Qwen2.5-0.5B-Instruct",
        reward,
        args,
        dataset,
        allocation_rule=hardest_first,
        success_func=solved,
    )
    trainer.train()
    assert_type(trainer.args, KnapsackGRPOConfig)
    assert_type(trainer.args.max_generations, int)
    assert_type(trainer.success_tracker, SuccessRateTracker)
    assert_type(KnapsackGRPOConfig.from_pretrained("owner/name"), KnapsackGRPOConfig)

    KnapsackGRPOConfig("outputs", max_generatons=3)  # pyright: ignore[reportCallIssue]
    KnapsackGRPOConfig("outputs", max_generations="3")  # pyright: ignore[reportArgumentType]
    KnapsackGRPOConfig("outputs", learning_rat=1e-6)  # pyright: ignore[reportCallIssue]
    KnapsackGRPOTrainer("model", reward, train_datset=dataset)  # pyright: ignore[reportCallIssue]
    KnapsackGRPOTrainer("model", reward, allocation_rule="posterior")  # pyright: ignore[reportArgumentType]


def share_out(rates: NDArray[np.float64], numbers: Sequence[float]) -> None:
    shared = allocate(rates, budget=64)
    assert_type(shared, Allocation)
    assert_type(shared.value, float)
    allocate(numbers, budget=64)
    allocate(BetaBeliefs(numbers, rates), budget=64, min_generations=0)
    assert_type(explain(shared, rates), Explanation)
    assert_type(get_rule("posterior"), AllocationRule)

    allocate(rates, 64, minimum=2)  # pyright: ignore[reportCallIssue]
    print(shared.count)  # pyright: ignore[reportAttributeAccessIssue]


def track(counts: NDArray[np.int64]) -> None:
    tracker = SuccessRateTracker(prior=(1.0, 1.0), decay=0.85)
    tracker.observe(["a", "b"], [3, 0], [4, 4])
    tracker.observe(["a", "b"], counts, counts, tokens=counts)
    assert_type(tracker.evidence(["a", "b"]), Evidence)
    assert_type(RolloutHistory.load(Path("outputs")), RolloutHistory)

    tracker.observe(["a"], successes=1)  # pyright: ignore[reportCallIssue]


def measure(dataset: Dataset) -> None:
    results = evaluate_policy("model", dataset, reward, num_generations=8)
    assert_type(results, EvaluationResults)
    assert_type(results[0].n, int)


def compared(ours: list[bool], theirs: NDArray[np.bool_]) -> None:
    assert_type(pass_at_k(8, 3, k=2), float)
    assert_type(pass_at_k([8, 8], [3, 1], k=2), float | np.ndarray)
    assert_type(paired_bootstrap(ours, theirs), Interval)
    assert_type(mcnemar(ours, theirs), dict[str, float])
    paired_bootstrap(ours)  # pyright: ignore[reportCallIssue]
    pass_at_k(8, 3, k="2")  # pyright: ignore[reportCallIssue, reportArgumentType]

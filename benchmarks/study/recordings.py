"""
What a run of the default rule went through: prompts of every batch, their true success rates, and hidden states.

    python benchmarks/study/recordings.py     # a quarter of an hour of one core; what is there already is not made again

Priors and other estimators are then replayed on it (`priors.py`): the drift is a real policy's, and only what they believe
and the counts that follow from it differ.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import contenders
import numpy as np
import torch
from run import Run, execute
from study import RESULTS
from tasks import MAIN_TASKS, REGIMES, TASKS

from trl_knapsack.allocation import Allocation, Evidence, PosteriorRule


RECORDINGS = RESULTS / "recordings"
LEARNING_RATE = 1.2e-4
SEEDS, STEPS = (201, 202), 160
LAYER = 2  # of 3: the states that go into the last layer


@dataclass(frozen=True)
class Recording:
    """`T` batches of `P` prompts of one run."""

    keys: np.ndarray  # (T, P) ids of problems
    rates: np.ndarray  # (T, P) true success rates before the batch's step
    hidden: np.ndarray  # (T, P, H) states of a middle layer at the prompt's last token, before the batch's step


class Recorder:
    """The default rule, and a note of what it could not know."""

    def __init__(self, policy: contenders.Policy, notes: list):
        self.policy, self.notes = policy, notes

    def __call__(self, evidence: Evidence, budget: int, low: int, high: int) -> Allocation:
        self.notes.append((evidence.keys, self.policy.success_rates(evidence.keys), self.hidden(evidence.keys)))
        return PosteriorRule()(evidence, budget, low, high)

    @torch.no_grad()
    def hidden(self, keys: Sequence[str]) -> np.ndarray:
        prompts = [self.policy.problems[key]["prompt"] for key in keys]
        inputs = self.policy.tokenizer(
            prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
        ).to(self.policy.model.device)
        states = self.policy.model(**inputs, output_hidden_states=True).hidden_states[LAYER]
        return states[:, -1].float().cpu().numpy()


def path_of(task: str, regime: str, seed: int, steps: int = STEPS) -> Path:
    return RECORDINGS / f"{task}-{regime}-seed{seed}-{steps}steps.npz"


def record(task: str, regime: str, seed: int, steps: int = STEPS) -> Recording:
    """The recording, from its file if there is one."""
    path = path_of(task, regime, seed, steps)
    if not path.is_file():
        notes: list = []
        contenders.CONTENDERS["recorder"] = replace(
            contenders.CONTENDERS["posterior"], rule=lambda policy: Recorder(policy, notes)
        )
        execute(Run(task, regime, "recorder", LEARNING_RATE, seed, steps))
        keys, rates, hidden = (np.array(column) for column in zip(*notes, strict=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, keys=keys, rates=rates.round(5), hidden=hidden.astype(np.float16))
    with np.load(path) as file:
        return Recording(file["keys"], file["rates"], file["hidden"].astype(np.float64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(MAIN_TASKS), choices=list(TASKS))
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=REGIMES)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    for seed in args.seeds:
        for regime in args.regimes:
            for task in args.tasks:
                recording = record(task, regime, seed, args.steps)
                first, last = recording.rates[0].mean(), recording.rates[-1].mean()
                print(
                    f"{task}, {regime}, seed {seed}: {len(recording.rates)} batches, rates {first:.2f} to {last:.2f}"
                )


if __name__ == "__main__":
    main()

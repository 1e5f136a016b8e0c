"""
What is a look worth, and how many prompts should share a budget? Looks and windows replayed on recorded runs.

    python benchmarks/study/looks.py     # a few minutes of one core, after recordings.py

Every variant sees the same prompts in the same order. It shares each batch out as the trainer does, draws the outcomes from the
true success rates of the time, and remembers them. What the rollouts of each visit are worth at the true rates is compared
with equal counts, in the first epoch and later. Prompts of the first and last batches, which gain or lose by the beginning and
the end of the window, are left out.
"""

import argparse
import json
from collections.abc import Sequence

import numpy as np
from recordings import SEEDS, Recording, record
from scipy import stats
from study import RESULTS
from tasks import MAIN_TASKS, NUM_TRAIN, REGIMES, TASKS
from tqdm.auto import tqdm

from trl_knapsack import SuccessRateTracker
from trl_knapsack.allocation import PosteriorRule, expected_values
from trl_knapsack.allocation.looks import BatchSharing


NUM_GENERATIONS, LEAST, MOST = 8, 2, 128
VARIANTS = ((0, 1), (3, 1), (2, 64), (3, 64), (4, 64), (3, 144))  # look_generations, allocation_window
LEFT_OUT = 16  # batches at either end; the longest window is 8


def replay(recording: Recording, look: int, window: int, seed: int) -> np.ndarray:
    """Rollouts of each visit, `(T, P)`."""
    batches, prompts = recording.keys.shape
    sharing = BatchSharing(PosteriorRule(), LEAST, MOST, look, batches=-(-window // prompts))
    tracker, random = SuccessRateTracker(), np.random.default_rng(seed)
    total, won = np.zeros((2, batches, prompts), dtype=np.int64)
    waiting: list[tuple[int, int]] = []  # places in these arrays
    for number in range(batches):
        places = [*waiting, *((number, prompt) for prompt in range(prompts))]
        at = tuple(np.array(places).T)
        keys = [str(key) for key in recording.keys[at]]
        batch = sharing.share(
            tracker.evidence(keys), total[at], prompts, NUM_GENERATIONS * prompts, batches_passed=number
        )
        successes = random.binomial(batch.counts, recording.rates[at])
        tracker.observe(keys, successes, batch.counts, earlier=(won[at], total[at]))
        total[at] += batch.counts
        won[at] += successes
        waiting = [place for place, leaves in zip(places, batch.leaves, strict=True) if not leaves]
    return total


def gains(recording: Recording, look: int, window: int, draws: Sequence[int]) -> np.ndarray:
    """Value over equal counts in the first epoch and later, less one; `(draws, 2)`."""
    rates = recording.rates
    epoch = NUM_TRAIN // rates.shape[1]
    parts = slice(LEFT_OUT, epoch), slice(epoch, len(rates) - LEFT_OUT)
    equal = expected_values(rates.ravel(), np.full(rates.size, NUM_GENERATIONS)).reshape(rates.shape)
    result = []
    for draw in draws:
        counts = replay(recording, look, window, draw)
        values = expected_values(rates.ravel(), counts.ravel()).reshape(rates.shape)
        # at as many rollouts: over a part of a run, a variant gives out a little more or less
        spent = [counts[part].mean() / NUM_GENERATIONS for part in parts]
        result.append(
            [values[part].sum() / equal[part].sum() / share - 1 for part, share in zip(parts, spent, strict=True)]
        )
    return np.array(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(MAIN_TASKS), choices=list(TASKS))
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=REGIMES)
    parser.add_argument("--draws", type=int, default=5, help="replays of each recording")
    args = parser.parse_args()

    table: dict[str, dict[str, list[float]]] = {}
    cells = [(task, regime) for regime in args.regimes for task in args.tasks]
    for task, regime in tqdm(cells, desc="replay"):
        for look, window in VARIANTS:
            per_draw = np.concatenate(
                [gains(record(task, regime, seed), look, window, range(args.draws)) for seed in SEEDS]
            )
            half = stats.t.ppf(0.975, len(per_draw) - 1) * per_draw.std(axis=0, ddof=1) / len(per_draw) ** 0.5
            numbers = [*per_draw.mean(axis=0), *half]
            table.setdefault(f"{task}, {regime}", {})[f"{look}, {window}"] = [round(100 * x, 2) for x in numbers]
    (RESULTS / "looks.json").write_text(json.dumps(table, indent=1) + "\n")
    print("value over equal counts, per cent: first epoch / later, +- half of a 95 % interval over the draws")
    for cell, variants in table.items():
        print(f"\n{cell}\n  look, window")
        for name, (first, later, half_first, half_later) in variants.items():
            print(f"  {name:>12}   {first:+5.1f} +-{half_first:.1f}   {later:+5.1f} +-{half_later:.1f}")


if __name__ == "__main__":
    main()

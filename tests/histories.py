"""Records and histories without a run."""

from collections import defaultdict

import numpy as np

from trl_knapsack import Allocation, Evidence, RolloutHistory, RolloutRecord
from trl_knapsack.tracking import HISTORY_FILE
from trl_knapsack.tracking.history import HistoryWriter


def record_by_hand() -> RolloutRecord:
    """Five prompts: solved, failed, mixed, unscored, and one with two of four rollouts scored."""
    return RolloutRecord(
        evidence=Evidence(
            keys=("a", "b", "c", "d", "e"),
            alpha=np.array([8.5, 0.5, 2.5, 0.5, 0.5]),
            beta=np.array([0.5, 8.5, 2.5, 0.5, 0.5]),
            last_rate=np.array([1.0, 0.0, 0.5, np.nan, np.nan]),
            visits=np.array([1, 1, 3, 0, 0]),
            mean_length=np.full(5, np.nan),
        ),
        allocation=Allocation(np.array([2, 6, 10, 3, 4])),
        solver_seconds=0.25,
        successes=np.array([2.0, 0.0, 1.0, 0.0, 1.0]),
        trials=np.array([2.0, 6.0, 10.0, 0.0, 2.0]),
        tokens=np.array([2.0, 6.0, 10.0, 3.0, 4.0]),
        mean_reward=np.array([1.0, 0.0, 0.1, np.nan, 0.5]),
        mixed=np.array([False, False, True, False, True]),
        rank_imbalance=1.5,
    )


def write(path, visits):
    """A history of batches, each `{key: (successes, trials)}`; what is believed is the mean of the visits before."""
    writer = HistoryWriter(path / HISTORY_FILE)
    past = defaultdict(lambda: [0.5, 0.5, 0])
    for step, batch in enumerate(visits, 1):
        before = np.array([past[key] for key in batch], dtype=float)
        won, tried = np.array(list(batch.values()), dtype=float).T
        record = RolloutRecord(
            evidence=Evidence(
                tuple(batch), before[:, 0], before[:, 1], np.full(len(batch), np.nan), before[:, 2], before[:, 2]
            ),
            allocation=Allocation(tried.astype(int)),
            solver_seconds=0.001,
            successes=won,
            trials=tried,
            tokens=10 * tried,
            mean_reward=won / tried,
            mixed=(won > 0) & (won < tried),
            rank_imbalance=1.0,
        )
        writer.append(record, step, step / 4, "posterior")
        for key, (successes, trials) in batch.items():
            past[key] = [past[key][0] + successes, past[key][1] + trials - successes, past[key][2] + 1]
    return RolloutHistory.load(path)


def random_visits(seed=0, steps=30, prompts=24):
    rng = np.random.default_rng(seed)
    ability = rng.random(prompts) ** 2
    for step in range(steps):
        chosen = rng.choice(prompts, 8, replace=False)
        trials = rng.integers(2, 20, 8)
        wins = rng.binomial(trials, np.minimum(1, ability[chosen] + 0.01 * step))
        yield {f"p{i}": (int(w), int(n)) for i, w, n in zip(chosen, wins, trials, strict=True)}

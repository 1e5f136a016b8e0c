"""
Is a prior that has learnt worth anything? Priors replayed on recorded runs, from the first batch on.

    python benchmarks/study/priors.py     # minutes of one core, after recordings.py

Each prior sees the same batches and the same prompts; it gives out the rollouts with the package's allocator, draws their
outcomes from the true success rates of the time, and learns from them. What its counts are worth at the true rates is
compared with the counts of the flat prior, draw by draw. In the first epoch nothing else is known of any prompt.

Features: nothing (the population's own shape); what can be read off a prompt without a model (its length, the size of its
numbers, its operators); a solve rate as datasets have it, of eight rollouts of the policy before training; the hidden state
of a middle layer; and noise, which should not be believed.
"""

import argparse
import json
import re
import time
import zlib
from collections.abc import Sequence

import numpy as np
from recordings import SEEDS, Recording, record
from scipy import stats
from study import RESULTS
from tasks import MAIN_TASKS, NUM_TRAIN, REGIMES, TASKS, load_problems, solve_rates
from tqdm.auto import tqdm

from trl_knapsack import SuccessRateTracker, allocate
from trl_knapsack.allocation import BetaBeliefs, expected_values
from trl_knapsack.tracking.features import DifficultyColumns
from trl_knapsack.tracking.prior import SuccessPrior


NUM_GENERATIONS, LEAST, MOST = 8, 2, 128
HIDDEN_FEATURES = 32
FLAT = "flat prior"
KINDS = ("population", "size", "solve rate", "hidden state", "noise")


def size_of(task: str, prompt: str) -> dict[str, float]:
    """What a column of a dataset could say of a problem without a model."""
    numbers = [int(text) for text in re.findall(r"\d+", prompt)]
    if task == "arithmetic":
        signs = {f"count of {sign}": prompt.count(sign) for sign in "*-"}
        return {"length": len(prompt), "operands": len(numbers), "largest": max(numbers), **signs}
    if task == "countdown":
        *given, target = numbers
        return {"length": len(prompt), "target": target, "largest": max(given), "missing": sum(given) - target}
    return {"length": len(prompt), "ascending": prompt[-1] == "<", "repeated": len(prompt) - len(set(prompt))}


def features_of(kind: str, task: str, regime: str, recording: Recording) -> np.ndarray:
    """Features of every batch's prompts, `(T, P, D)`."""
    batches, prompts = recording.keys.shape
    if kind == "population":
        return np.zeros((batches, prompts, 0))
    if kind == "hidden state":  # about standardised by the layer's own norm, then turned onto a few directions
        states = recording.hidden - recording.hidden.mean(axis=-1, keepdims=True)
        states /= states.std(axis=-1, keepdims=True)
        directions = np.linalg.qr(np.random.default_rng(0).normal(size=(states.shape[-1], HIDDEN_FEATURES)))[0]
        return states @ directions
    rows = load_problems(task, regime, "train")
    random = np.random.default_rng(zlib.crc32(f"{task} {regime}".encode()))
    if kind == "size":
        rows = [row | size_of(task, row["prompt"]) for row in rows]
        columns = list(size_of(task, rows[0]["prompt"]))
    elif kind == "solve rate":
        solved = solve_rates(rows, f"{task} {regime}")
        rows = [row | {"solved": rate} for row, rate in zip(rows, solved, strict=True)]
        columns = ["solved"]
    else:
        rows = [row | {f"noise {i}": random.normal() for i in range(4)} for row in rows]
        columns = [f"noise {i}" for i in range(4)]
    by_key = {row["id"]: row for row in rows}
    columns = DifficultyColumns(columns, rows)
    return np.stack([columns.features([by_key[key] for key in batch]) for batch in recording.keys])


def replay(
    recording: Recording, features: np.ndarray | None, seed: int, batches: int, beside: bool = False
) -> tuple[np.ndarray, SuccessPrior | None, float]:
    """
    Value of the counts in each batch at the true rates, `(T,)`; the prior at the end; and the seconds that it took.

    Args:
        features (`(T, P, D)`, *optional*): Without them, the flat prior.
        batches (`int`): How many batches, `T`.
        beside (`bool`): Give the prediction also to prompts with evidence of their own, on top of the flat prior.
    """
    tracker, values, seconds = SuccessRateTracker(), [], 0.0
    prior = None if features is None else SuccessPrior(features.shape[-1])
    for batch in range(batches):
        keys, rates = recording.keys[batch], recording.rates[batch]
        evidence = tracker.evidence(keys)
        alpha, beta = evidence.alpha, evidence.beta
        if prior is not None:
            started = time.perf_counter()
            successes, failures = prior.predict(features[batch])
            seconds += time.perf_counter() - started
            new = evidence.visits == 0
            seen = ~new & beside & (prior.believed != "flat")
            alpha = np.where(new, successes, alpha + np.where(seen, successes, 0.0))
            beta = np.where(new, failures, beta + np.where(seen, failures, 0.0))
        budget = NUM_GENERATIONS * len(keys)
        counts = allocate(BetaBeliefs(alpha, beta), budget, min_generations=LEAST, max_generations=MOST).counts
        values.append(expected_values(rates, counts).sum())
        # one stream a batch, so that priors which give the same counts see the same outcomes
        won = np.random.default_rng([seed, batch]).binomial(counts, rates)
        tracker.observe(keys, won, counts)
        if prior is not None:
            started = time.perf_counter()
            prior.observe(features[batch], won, counts)
            seconds += time.perf_counter() - started
    return np.array(values), prior, seconds


def interval(values: Sequence[float]) -> list[float]:
    """Mean, low and high of 95 % by Student's t."""
    values = np.asarray(values)
    error = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return [round(float(x), 3) for x in (values.mean(), values.mean() - error, values.mean() + error)]


def measure(task: str, regime: str, seeds: Sequence[int], draws: int, kinds: Sequence[str], beside: bool) -> dict:
    """Value over equal counts of true rates and flat prior, and of each kind over the flat prior, per cent."""
    gains: dict[str, list[float]] = {}
    about: dict[str, dict] = {}
    for seed in seeds:
        recording = record(task, regime, seed)
        prompts = recording.keys.shape[1]
        epoch = NUM_TRAIN // prompts  # batches of new prompts only
        start, end = (epoch + 1, len(recording.keys)) if beside else (0, epoch)
        rates = recording.rates[start:end]
        equal = expected_values(rates.ravel(), np.full(rates.size, NUM_GENERATIONS)).sum()
        budget = NUM_GENERATIONS * prompts
        best = sum(
            allocate(p, budget, min_generations=LEAST, max_generations=MOST).value for p in rates
        )  # told the truth
        gains.setdefault("true rates", []).append(100 * (best / equal - 1))
        flat = [replay(recording, None, draw, end)[0][start:].sum() for draw in range(draws)]
        gains.setdefault(FLAT, []).extend(100 * (np.array(flat) / equal - 1))
        for kind in kinds:
            features = features_of(kind, task, regime, recording)
            for draw in range(draws):
                values, prior, seconds = replay(recording, features, draw, end, beside)
                gains.setdefault(kind, []).append(100 * (values[start:].sum() - flat[draw]) / equal)
                at_end = about.setdefault(kind, {"kappa": [], "gain": [], "milliseconds": []})
                at_end["kappa"].append(prior.kappa)
                at_end["gain"].append(round(prior.gain, 4))
                at_end["milliseconds"].append(round(1000 * seconds / end, 2))
    result = {
        name: interval(values) if name != "true rates" else round(float(np.mean(values)), 3)
        for name, values in gains.items()
    }
    return result | {
        "at the end": {kind: {k: float(np.median(v)) for k, v in of.items()} for kind, of in about.items()}
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(MAIN_TASKS), choices=list(TASKS))
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=REGIMES)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the recordings")
    parser.add_argument("--draws", type=int, default=10, help="replays of each recording")
    parser.add_argument("--beside", action="store_true", help="after the first epoch, beside a prompt's own evidence")
    args = parser.parse_args()

    path = RESULTS / ("priors_beside.json" if args.beside else "priors.json")
    results = json.loads(path.read_text()) if path.is_file() else {}
    cells = [(task, regime) for regime in args.regimes for task in args.tasks]
    for task, regime in tqdm(cells):
        cell = measure(task, regime, args.seeds, args.draws, args.kinds, args.beside)
        results[f"{task}, {regime}"] = {"seeds": args.seeds, "draws": args.draws} | cell
        path.write_text(json.dumps(results, indent=1) + "\n")
        row = "  ".join(
            f"{kind} {cell[kind][0]:+.2f} [{cell[kind][1]:+.2f}, {cell[kind][2]:+.2f}]" for kind in args.kinds
        )
        print(f"{task}, {regime}: true {cell['true rates']:.1f}, flat {cell[FLAT][0]:+.2f}; {row}", flush=True)


if __name__ == "__main__":
    main()

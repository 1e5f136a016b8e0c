"""
Does the hidden state know? How well a ridge regression on the prompt's hidden state predicts the prompt's success rate.

The success rate is that of 16 completions; the hidden state is that of the prompt's last token, after each layer. Predictions are
made for prompts that the regression has not seen (five folds over the trained families), and for families that it has not seen
(each one left out in turn). Part of benchmark.py.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from profiles import Problems, Profile
from scipy import stats
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_knapsack.evaluation import bootstrap_interval, evaluate_policy


FILE = "hidden_state.json"
COMPLETIONS = 16
FOLDS = 5
PENALTIES = np.geomspace(1e-1, 1e6, 15)  # relative to features of variance 1
BINS = 5


def measure(profile: Profile, problems: Problems, model_folder: Path, cache: Path) -> dict:
    """All that is worth keeping: rates by problem, and how well they are predicted from each layer."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    results = evaluate_policy(
        str(model_folder),
        problems.probe,
        problems.gym.reward(),
        tokenizer=tokenizer,
        num_generations=COMPLETIONS,
        max_completion_length=profile.max_completion_length,
        batch_size=profile.prompts * profile.num_generations,
        prompt_id_column="problem",
        completions_path=cache / "probe.completions.jsonl",  # so that what follows may fail
    )
    rates = np.array([problem.c / problem.n for problem in results])
    family = np.array([row["family"] for row in problems.probe])
    trained = np.array([row["family"] in {row["family"] for row in problems.train} for row in problems.probe])
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    states = hidden_states(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, problems.probe)
    halves = [np.array([sum(problem.successes[i::2]) for problem in results]) for i in (0, 1)]
    everywhere = np.ones(len(rates), bool)
    one_hot = (family[:, None] == np.unique(family)).astype(float)  # (P, F): what the family alone tells
    return {
        "completions": COMPLETIONS,
        "successes": {problem.id: problem.c for problem in results},
        "families": {name: round(float(rates[family == name].mean()), 4) for name in dict.fromkeys(family.tolist())},
        # half of the completions against the other half: more than that no feature can be expected to reach
        "half_against_half": interval(spearman, halves[0][trained], halves[1][trained]),
        "family_means": score(cross_validated(one_hot, rates, folds_of(family, trained)), rates, trained, family),
        "layers": [
            {
                "layer": layer,
                "held_out_prompts": score(
                    cross_validated(x, rates, folds_of(family, trained)), rates, trained, family
                ),
                "held_out_families": score(cross_validated(x, rates, families_of(family)), rates, everywhere, family),
            }
            for layer, x in enumerate(tqdm(states.swapaxes(0, 1), desc="layers"))
        ],
    }


@torch.no_grad()
def hidden_states(model, tokenizer, rows: list[dict], batch: int = 16) -> np.ndarray:
    """Hidden state of each prompt's last token, `(P, L + 1, D)`: of the embedding, and after each layer."""
    states = []
    for start in tqdm(range(0, len(rows), batch), desc="hidden states"):
        encoded = tokenizer.apply_chat_template(
            [row["prompt"] for row in rows[start : start + batch]],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model(**encoded.to(model.device), output_hidden_states=True, logits_to_keep=1)
        states.append(torch.stack([layer[:, -1] for layer in output.hidden_states], dim=1).float().cpu().numpy())
    return np.concatenate(states)


def folds_of(family: np.ndarray, trained: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Train and test masks, `(P,)`, of folds over the prompts of the trained families, each with its share of every family."""
    fold = np.full(len(family), -1)
    for name in np.unique(family[trained]):
        places = np.flatnonzero(family == name)
        fold[places] = np.arange(len(places)) % FOLDS
    for i in range(FOLDS):
        yield trained & (fold != i), fold == i


def families_of(family: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Train and test masks that leave out one family in turn."""
    for name in np.unique(family):
        yield family != name, family == name


def cross_validated(x: np.ndarray, y: np.ndarray, folds: Iterator) -> np.ndarray:
    """Prediction of each rate, `(P,)`, by a regression that did not see it; NaN for those in no fold."""
    predicted = np.full(len(y), np.nan)
    for train, test in folds:
        predicted[test] = ridge(x[train], y[train], x[test])
    return np.clip(predicted, 0, 1)


def ridge(x: np.ndarray, y: np.ndarray, x_new: np.ndarray) -> np.ndarray:
    """Ridge regression on standardised features, with the penalty whose leave-one-out error is the least."""
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
    u, s, vt = np.linalg.svd((x - mean) / spread, full_matrices=False)
    along = u.T @ (y - y.mean())
    shrink = s**2 / (s**2 + PENALTIES[:, None])  # (A, R)
    residuals = y - y.mean() - (shrink * along) @ u.T  # (A, P)
    leverage = shrink @ (u**2).T + 1 / len(y)
    best = np.argmin(((residuals / (1 - leverage)) ** 2).mean(axis=1))
    weights = vt.T @ (s / (s**2 + PENALTIES[best]) * along)
    return y.mean() + (x_new - mean) / spread @ weights


def score(predicted: np.ndarray, rates: np.ndarray, of: np.ndarray, family: np.ndarray) -> dict:
    """Rank correlation over all prompts, the mean of those within a family, error, and calibration: each with its interval."""
    predicted, rates, family = predicted[of], rates[of], family[of]
    return {
        "rank_correlation": interval(spearman, predicted, rates),
        "within_families": interval(within(family), predicted, rates, np.arange(len(rates))),
        "absolute_error": [round(float(x), 4) for x in _ends(bootstrap_interval(np.abs(predicted - rates)))],
        "calibration_error": interval(calibration_error, predicted, rates),
    }


def _ends(found) -> tuple[float, float, float]:
    return found.estimate, found.low, found.high


def interval(statistic: Callable, *samples: np.ndarray) -> list[float]:
    """Estimate, low and high of 95 % by the percentile bootstrap over prompts."""
    found = stats.bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=False,
        n_resamples=999,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return [round(float(x), 4) for x in (statistic(*samples), found.low, found.high)]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 if either is constant."""
    a, b = stats.rankdata(a), stats.rankdata(b)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


def within(family: np.ndarray) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """Mean rank correlation within the families in which rates differ, of a sample of prompts."""

    def mean(predicted: np.ndarray, rates: np.ndarray, places: np.ndarray) -> float:
        of = family[places.astype(int)]
        values = [
            spearman(predicted[of == name], rates[of == name])
            for name in np.unique(of)
            if np.ptp(rates[of == name]) > 0
        ]
        return float(np.mean(values)) if values else 0.0

    return mean


def calibration_error(predicted: np.ndarray, rates: np.ndarray) -> float:
    """Mean distance of predicted and observed means over five bins of equally many prompts."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    return float(sum(len(part) * abs(predicted[part].mean() - rates[part].mean()) for part in parts) / len(order))


def save(result: dict, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")

"""
Make the study's policies and problems, `policies/<task>/`, from nothing but a seed.

    python benchmarks/study/policies.py

takes about ten minutes of one CPU core. Each policy is a Qwen2 of a third of a million parameters with one token per
character. A first lesson teaches it right answers; in the second, short one a careless teacher errs on some kinds of
problems more than on others, so success rates spread from 0 to 1 and the right procedure stays within reach. The
problems of each regime are then drawn by the policy's exact success rates, and none of them was in either lesson.
"""

import argparse
import json
import random

import numpy as np
import torch
from tasks import (
    NUM_HELD_OUT,
    NUM_TRAIN,
    NUM_TRAIN_ONCE,
    POLICIES,
    RARE,
    REGIMES,
    SINGLE_EPOCH,
    TASKS,
    Problem,
    is_reserved,
    load_problems,
    make_math_policy,
)
from transformers import AutoTokenizer, Qwen2ForCausalLM


encode = make_math_policy.encode
POOL = 16_000  # problems that the regimes choose from
POOL_ONCE = POOL_RARE = 24_000


@torch.no_grad()
def success_rates(model, tokenizer, prompts: list[str], solutions: list[list[str]]) -> np.ndarray:
    """
    The chance that one completion sampled at temperature 1 solves each problem, `(P,)`: exact, nothing is sampled.

    It is the sum over the accepted completions of the product of their tokens' probabilities, end included.
    """
    pairs = [(i, prompt, solution) for i, prompt in enumerate(prompts) for solution in solutions[i]]
    pairs.sort(key=lambda pair: len(pair[1]) + len(pair[2]))  # alike lengths together: less padding
    rates = np.zeros(len(prompts))
    for start in range(0, len(pairs), 512):
        some = pairs[start : start + 512]
        inputs, labels = encode(tokenizer, [(prompt, solution) for _, prompt, solution in some])
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        log_probs = model(**inputs).logits[:, :-1].float().log_softmax(-1)  # (B, L-1, V)
        targets = labels[:, 1:].to(model.device)  # (B, L-1)
        picked = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        chances = picked.masked_fill(targets == -100, 0.0).sum(-1).exp().cpu().numpy()
        np.add.at(rates, [i for i, _, _ in some], chances)
    return np.minimum(rates, 1.0)  # rounding may go above


def lessons(task: str, batch_size: int, steps: int, careless_from: int, rng: random.Random):
    """(prompt, completion) pairs of each step, none of them reserved; the careless lesson begins at its step."""
    for step in range(steps):
        batch = []
        while len(batch) < batch_size:
            problem, carelessness = TASKS[task].draw(rng)
            if not is_reserved(problem.prompt):
                errs = step >= careless_from and rng.random() < carelessness
                batch.append((problem.prompt, problem.mistake if errs else rng.choice(problem.solutions)))
        yield batch


HARD = [(0.0, 0.05, 0.5), (0.05, 0.1, 0.4), (0.1, 0.6, 0.1)]  # rates from, to, and their share
SATURATED = [(0.8, 0.9, 0.35), (0.9, 1.01, 0.4), *((low, high, share / 4) for low, high, share in HARD)]
RARELY = [(0.002, 0.02, 0.7), (0.02, 0.6, 0.3)]
BROAD = [(low / 10, low / 10 + 0.1, 0.1) for low in range(10)]
BINS = {"broad": BROAD, "hard": HARD, "saturated": SATURATED}


def draw_single_epoch(rates: np.ndarray, seed: int) -> list[int]:
    """
    Problems of the single epoch, as places in the pool: rates as in the saturated regime.

    What is rare is made up for by what is next harder, since countdown has no more than some 900 such problems.
    """
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    owed = 0
    for low, high, share in sorted(SATURATED, reverse=True):
        wanted = round(share * NUM_TRAIN_ONCE) + owed
        inside = np.setdiff1d(np.flatnonzero((rates >= low) & (rates < high)), chosen)
        chosen += rng.choice(inside, min(wanted, len(inside)), replace=False).tolist()
        owed = max(wanted - len(inside), 0)
        if owed:  # between the bins, too
            below = np.setdiff1d(np.flatnonzero(rates < low), chosen)
            nearest = below[np.argsort(-rates[below], kind="stable")[:owed]]
            chosen, owed = chosen + nearest.tolist(), 0
    rng.shuffle(chosen)
    return chosen


def draw_regimes(
    pool: list[Problem], rates: np.ndarray, bins: dict[str, list[tuple[float, float, float]]], seed: int
) -> dict[str, list[int]]:
    """
    Problems of each regime, as places in the pool; `bins` are rates from, to, and their share.

    Broad: rates even over [0, 1]. Hard: nine in ten below 0.1, the others up to 0.6. Saturated: three quarters between
    0.8 and 1 with a mean near 0.9, the rest as in the hard regime. Rare: seven in ten between 0.002 and 0.02.
    """
    rng = np.random.default_rng(seed)
    wanted = NUM_TRAIN + NUM_HELD_OUT
    regimes = {}
    for regime, shares in bins.items():
        chosen = []
        for low, high, share in shares:
            inside = np.setdiff1d(np.flatnonzero((rates >= low) & (rates < high)), chosen)
            count = round(share * wanted)
            if len(inside) < count:  # what is rare here is made up for by what is harder
                harder = np.setdiff1d(np.flatnonzero(rates < low), chosen)[: count - len(inside)]
                inside = np.concatenate([inside, harder])
            if len(inside) < count:
                raise SystemExit(
                    f"{regime}: {len(inside)} of {len(pool)} problems have rates up to {high}, {count} are needed"
                )
            chosen += rng.choice(inside, count, replace=False).tolist()
        while len(chosen) < wanted:  # what rounding left
            chosen.append(next(i for i in rng.permutation(len(pool)).tolist() if i not in chosen))
        rng.shuffle(chosen)
        regimes[regime] = chosen[:wanted]
    return regimes


def make(name: str, steps: int | None, seed: int) -> None:
    task = TASKS[name]
    steps = steps or task.warm_up_steps
    tokenizer = make_math_policy.make_tokenizer(task.alphabet)
    model = make_math_policy.make_model(tokenizer, seed, heads=3, intermediate_size=256, layers=3)
    batches = lessons(name, 128, steps, round((1 - task.careless_share) * steps), random.Random(seed))
    make_math_policy.warm_up(model, tokenizer, batches, steps, learning_rate=5e-3)

    folder = POLICIES / name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_problems(name, model, tokenizer, seed)


def write_problems(name: str, model, tokenizer, seed: int) -> None:
    """Draw the regimes by the policy's success rates, and write them beside it."""
    ids = [f"train-{i}" for i in range(NUM_TRAIN)] + [f"test-{i}" for i in range(NUM_HELD_OUT)]
    problems, rates = draw_pool(name, model, tokenizer, POOL, seed + 1)
    bins = {regime: BINS[regime] for regime in TASKS[name].regimes if regime in REGIMES}
    for regime, places in draw_regimes(problems, rates, bins, seed).items():
        write(POLICIES / name / f"{regime}.jsonl", ids, places, problems, rates)
    if RARE in TASKS[name].regimes:
        problems, rates = draw_pool(name, model, tokenizer, POOL_RARE, seed + 3)
        (places,) = draw_regimes(problems, rates, {RARE: RARELY}, seed).values()
        write(POLICIES / name / f"{RARE}.jsonl", ids, places, problems, rates)
    if SINGLE_EPOCH in TASKS[name].regimes:
        write_single_epoch(name, model, tokenizer, seed)


def write_single_epoch(name: str, model, tokenizer, seed: int) -> None:
    held_out = [row["prompt"] for row in load_problems(name, "saturated", "test")]
    problems, rates = draw_pool(name, model, tokenizer, POOL_ONCE, seed + 2, excluded=held_out)
    places = draw_single_epoch(rates, seed)
    ids = [f"train-{i}" for i in range(len(places))]
    write(POLICIES / name / f"{SINGLE_EPOCH}.jsonl", ids, places, problems, rates)


def draw_pool(name, model, tokenizer, size: int, seed: int, excluded=()) -> tuple[list[Problem], np.ndarray]:
    """Different reserved problems, as many as `size` where there are, and their success rates."""
    rng = random.Random(seed)
    pool: dict[str, Problem] = {}
    for _ in range(8 * size):
        if len(pool) == size:
            break
        problem, _ = TASKS[name].draw(rng)
        if is_reserved(problem.prompt) and problem.prompt not in excluded:
            pool[problem.prompt] = problem
    problems = list(pool.values())
    rates = success_rates(
        model, tokenizer, [problem.prompt for problem in problems], [problem.solutions for problem in problems]
    )
    print(
        name, "success rates by tenths:", np.histogram(rates, np.linspace(0, 1, 11))[0], "mean", rates.mean().round(3)
    )
    return problems, rates


def write(path, ids: list[str], places: list[int], problems: list[Problem], rates: np.ndarray) -> None:
    with open(path, "w") as file:
        for name, place in zip(ids, places, strict=True):
            row = {"id": name, "prompt": problems[place].prompt, "solutions": problems[place].solutions}
            file.write(json.dumps(row | {"rate": round(float(rates[place]), 4)}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, help="of supervised training; by default the task's own number")
    parser.add_argument(
        "--problems_only", action="store_true", help="draw them anew, with the policies that are there"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in args.tasks:
        if args.problems_only:
            model = Qwen2ForCausalLM.from_pretrained(POLICIES / name, dtype=torch.float32)
            write_problems(name, model, AutoTokenizer.from_pretrained(POLICIES / name), args.seed)
        else:
            make(name, args.steps, args.seed)


if __name__ == "__main__":
    main()

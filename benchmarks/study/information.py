"""
Does the value function mean anything? Predicted value of a prompt's rollouts against what one gradient step brings.

    python benchmarks/study/information.py     # a few minutes of one core

For prompts of the broad regime, at the bundled policy: draw groups of 8 rollouts as GRPO does, take one small step of
gradient descent on each group alone, and measure without noise what it did to the prompt's own success rate and to the
held-out accuracy. Each is then ranked against what a value function predicts from the prompt's true success rate.
"""

import argparse
import json

import numpy as np
import torch
from policies import encode, success_rates
from scipy import stats
from study import RESULTS
from tasks import MAIN_TASKS, POLICIES, TASKS, load_problems, reward
from tqdm.auto import tqdm
from transformers import AutoTokenizer, Qwen2ForCausalLM

from trl_knapsack.allocation import VALUES, expected_values


NUM_GENERATIONS = 8
GROUPS = 4  # of each prompt
STEP_SIZE = 1e-4  # of gradient descent: small enough that changes are proportional to it


def completions_of(model, tokenizer, prompt: str, count: int, max_new_tokens: int) -> list[str]:
    inputs = tokenizer([prompt] * count, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=max_new_tokens)
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def group_gradient(model, tokenizer, prompt: str, completions: list[str], rewards: np.ndarray) -> list[torch.Tensor]:
    """Gradient of GRPO's objective for one group: advantages over the standard deviation, a mean over its tokens."""
    advantages = torch.tensor((rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4), dtype=torch.float32)
    inputs, labels = encode(tokenizer, [(prompt, completion) for completion in completions])
    log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)
    targets = labels[:, 1:]
    picked = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(targets == -100, 0.0)
    objective = (picked.sum(-1) * advantages).sum() / (targets != -100).sum()
    return list(torch.autograd.grad(objective, list(model.parameters())))


@torch.no_grad()
def moved(model, gradient: list[torch.Tensor], size: float) -> None:
    for weight, direction in zip(model.parameters(), gradient, strict=True):
        weight.add_(direction, alpha=size)


def measure(task: str, prompts: int, seed: int) -> dict[str, list[float]]:
    """One row per prompt: success rate, gradient norm, and gains in success rate per unit of step size."""
    torch.manual_seed(seed)
    folder = POLICIES / task
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = load_problems(task, "broad", "test")[:128]

    def accuracy(rows: list[dict]) -> float:
        return success_rates(model, tokenizer, [r["prompt"] for r in rows], [r["solutions"] for r in rows]).mean()

    columns: dict[str, list[float]] = {"rate": [], "gradient_norm": [], "own_gain": [], "held_out_gain": []}
    before_held_out = accuracy(held_out)
    for row in tqdm(load_problems(task, "broad", "train")[:prompts], desc=task):
        before = accuracy([row])
        drawn = completions_of(
            model, tokenizer, row["prompt"], GROUPS * NUM_GENERATIONS, TASKS[task].max_completion_length
        )
        norms, own, others = [], [], []
        for start in range(0, len(drawn), NUM_GENERATIONS):
            group = drawn[start : start + NUM_GENERATIONS]
            rewards = np.array(reward(group, [row["solutions"]] * NUM_GENERATIONS))
            if rewards.std() == 0:  # no gradient: nothing moves
                norms, own, others = [*norms, 0.0], [*own, 0.0], [*others, 0.0]
                continue
            gradient = group_gradient(model, tokenizer, row["prompt"], group, rewards)
            norms.append(float(torch.stack([part.norm() for part in gradient]).norm()))
            moved(model, gradient, STEP_SIZE)
            own.append((accuracy([row]) - before) / STEP_SIZE)
            others.append((accuracy(held_out) - before_held_out) / STEP_SIZE)
            moved(model, gradient, -STEP_SIZE)
        for name, value in zip(columns, (before, np.mean(norms), np.mean(own), np.mean(others)), strict=True):
            columns[name].append(round(float(value), 6))
    return columns


def correlations(columns: dict[str, list[float]], resamples: int = 1000) -> dict[str, dict[str, list[float]]]:
    """Spearman's correlation of every value function with every measured quantity: estimate, low and high of 95 %."""
    rate = np.array(columns["rate"])
    counts = np.full(len(rate), NUM_GENERATIONS)
    random = np.random.default_rng(0)
    table: dict[str, dict[str, list[float]]] = {}
    for value in VALUES:
        predicted = expected_values(rate, counts, value)
        table[value] = {}
        for name in ("gradient_norm", "own_gain", "held_out_gain"):
            measured = np.array(columns[name])
            drawn = [random.integers(len(rate), size=len(rate)) for _ in range(resamples)]
            sample = [stats.spearmanr(predicted[i], measured[i]).statistic for i in drawn]
            estimate = stats.spearmanr(predicted, measured).statistic
            table[value][name] = [round(float(x), 3) for x in (estimate, *np.quantile(sample, [0.025, 0.975]))]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(MAIN_TASKS), choices=list(TASKS))
    parser.add_argument("--prompts", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for task in args.tasks:
        columns = measure(task, args.prompts, args.seed)
        results[task] = {"columns": columns, "correlations": correlations(columns)}
        print(task, json.dumps(results[task]["correlations"], indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "information.json").write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()

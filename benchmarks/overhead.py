"""
Share of a training step that is spent in this package's own code, at 256 prompts x 8 rollouts.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --prompts 16    # to see that it starts

With equal counts, and with the default: budgets after a look. On a GPU where there is one. The bundled policy has a million
parameters, so its steps are short and the share is an upper bound for larger models.
"""

import argparse
import functools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from transformers import TrainerCallback
from trl import GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
GENERATIONS, STEPS = 8, 6


class Clock:
    """Seconds spent in a method over all calls, inner calls of other clocks included."""

    def __init__(self, cls: type, method: str):
        self.seconds, inner = 0.0, getattr(cls, method)

        @functools.wraps(inner)
        def timed(instance, *args, **kwargs):
            started = time.perf_counter()
            try:
                return inner(instance, *args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.seconds += time.perf_counter() - started

        setattr(cls, method, timed)


class Steps(TrainerCallback):
    """What `seconds()` returns at the beginning of each step, and at the end."""

    def __init__(self, seconds):
        self.read, self.seconds = seconds, []

    def on_step_begin(self, *args, **kwargs):
        self.seconds.append(self.read())

    on_train_end = on_step_begin


def exact_match(completions, solution, **kwargs):
    return [float(completion.strip() == answer) for completion, answer in zip(completions, solution, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=256, help="of a generation batch (default: %(default)s)")
    prompts = parser.parse_args().prompts

    # What this package adds is what its override takes, less what TRL's method takes within it; for each override.
    overrides = ["_generate_and_score_completions", "_generate", "_calculate_rewards", "log"]
    clocks = [(Clock(GRPOTrainer, name), Clock(KnapsackGRPOTrainer, name)) for name in overrides]
    step = Clock(KnapsackGRPOTrainer, "training_step")

    def own() -> float:
        # `_generate` and `_calculate_rewards` run within TRL's `_generate_and_score_completions`
        return sum(ours.seconds - theirs.seconds for theirs, ours in clocks)

    print(f"{prompts} prompts x {GENERATIONS} rollouts, share of a step, median of {STEPS}:")
    for name, options in {"equal counts": {"allocation": "uniform"}, "default": {}}.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = KnapsackGRPOTrainer(
                model=str(EXAMPLES / "math_policy"),
                reward_funcs=exact_match,
                args=KnapsackGRPOConfig(
                    output_dir=folder,
                    num_generations=GENERATIONS,
                    per_device_train_batch_size=prompts * GENERATIONS,
                    max_completion_length=8,
                    max_steps=STEPS + 1,
                    logging_steps=1,
                    save_strategy="no",
                    use_cpu=not torch.cuda.is_available(),
                    bf16=False,
                    gradient_checkpointing=False,
                    disable_tqdm=True,
                    **options,
                ),
                train_dataset=load_dataset(str(EXAMPLES / "math_problems"), split="train"),
            )
            steps = Steps(lambda: (own(), step.seconds))
            trainer.add_callback(steps)
            trainer.train()
        took = np.diff(steps.seconds, axis=0)[1:]  # the first compiles the allocator, and fills caches
        print(f"  {name}: {np.median(took[:, 0] / took[:, 1]):.2%}")


if __name__ == "__main__":
    main()

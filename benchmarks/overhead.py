"""
Share of a training step that is spent in this package's own code, at 256 prompts x 8 rollouts.

    python benchmarks/overhead.py

The bundled policy has a million parameters, so its steps are short and the share is an upper bound for larger models.
"""

import functools
import tempfile
import time
from pathlib import Path

import numpy as np
from datasets import load_dataset
from trl import GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROMPTS, GENERATIONS, STEPS = 256, 8, 6


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
                self.seconds += time.perf_counter() - started

        setattr(cls, method, timed)


def exact_match(completions, solution, **kwargs):
    return [float(completion.strip() == answer) for completion, answer in zip(completions, solution, strict=True)]


def main() -> None:
    # What this package adds is what its override takes, less what TRL's method takes within it; for each override.
    overrides = ["_generate_and_score_completions", "_generate", "_calculate_rewards", "log"]
    clocks = [(Clock(GRPOTrainer, name), Clock(KnapsackGRPOTrainer, name)) for name in overrides]
    step = Clock(KnapsackGRPOTrainer, "training_step")

    with tempfile.TemporaryDirectory() as folder:
        trainer = KnapsackGRPOTrainer(
            model=str(EXAMPLES / "math_policy"),
            reward_funcs=exact_match,
            args=KnapsackGRPOConfig(
                output_dir=folder,
                allocation="uniform",
                num_generations=GENERATIONS,
                per_device_train_batch_size=PROMPTS * GENERATIONS,
                max_completion_length=8,
                max_steps=1,
                logging_steps=1,
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
            ),
            train_dataset=load_dataset(str(EXAMPLES / "math_problems"), split="train"),
        )
        trainer.train()  # compiles the allocator, fills caches

        def own() -> float:
            # `_generate` and `_calculate_rewards` run within TRL's `_generate_and_score_completions`
            return sum(ours.seconds - theirs.seconds for theirs, ours in clocks)

        shares = []
        for _ in range(STEPS):
            before, total = own(), step.seconds
            trainer.train()
            shares.append((own() - before) / (step.seconds - total))
    print(f"{PROMPTS} prompts x {GENERATIONS} rollouts: {np.median(shares):.2%} of a step (median of {STEPS})")


if __name__ == "__main__":
    main()

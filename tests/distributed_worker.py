"""
One rank of real training runs, started by test_distributed.py. Several runs share a launch, because starting the processes
takes longer than they do. Writes what it saw of each run to a JSON file of its own.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import tiny
import transformers
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, get_rule


RANK = int(os.environ["RANK"])


def only_rank_0_decides(evidence, budget, min_generations, max_generations):
    assert RANK == 0
    return get_rule("posterior")(evidence, budget, min_generations, max_generations)


def disk_full(self, output_dir):
    raise OSError("No space left on device")


def train(
    model: str,
    out: Path,
    seen: dict,
    trainer_name: str,
    dataset: Dataset,
    resume: str | None,
    changes: dict,
    rng_state_fails: bool = False,
):
    """Run one trainer; `seen` is filled while it runs."""
    is_knapsack = trainer_name == "knapsack"
    trainer_class, config_class = GRPOTrainer, GRPOConfig
    policy = {}
    if is_knapsack:
        trainer_class, config_class = KnapsackGRPOTrainer, KnapsackGRPOConfig
        if changes.get("allocation", "posterior") == "posterior" and "token_budget" not in changes:
            policy["allocation_rule"] = only_rank_0_decides
    seen.update(generated=[], records=[], advantages=[], gradients=[])

    def digit_reward(prompts, completions, completion_ids, **kwargs):
        rewards = tiny.digit_reward(prompts, completions)
        seen["generated"].append(
            [list(row) for row in zip(prompts, completions, completion_ids, rewards, strict=True)]
        )
        return rewards

    class Watch(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            if len(seen["advantages"]) == len(seen["generated"]):
                return  # still the same generation batch
            seen["advantages"].append(list(trainer._logs["advantages"]))
            if is_knapsack:
                record = trainer.success_rate_callback.last_record
                seen["records"].append(
                    {
                        "keys": record.keys,
                        "counts": record.allocation.counts.tolist(),
                        "looks": record.looks.tolist(),
                        "before": record.before.tolist(),
                    }
                )

        on_step_end = on_substep_end

        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            digest = hashlib.sha256()
            for parameter in model.parameters():
                digest.update(parameter.grad.numpy().tobytes())
            seen["gradients"].append(digest.hexdigest())

    if rng_state_fails:  # below this package's trainer, as a disk would
        transformers.Trainer._save_rng_state = disk_full

    trainer = trainer_class(
        model=model,
        reward_funcs=digit_reward,
        args=config_class(
            **{
                "output_dir": str(out),
                "max_completion_length": 6,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "save_strategy": "no",
                "bf16": False,
                "gradient_checkpointing": False,
                "use_cpu": True,
                "report_to": "none",
                "disable_tqdm": True,
                **changes,
            }
        ),
        train_dataset=dataset,
        callbacks=[Watch()],
        **policy,
    )
    seen["world_size"] = trainer.accelerator.num_processes
    trainer.train(resume_from_checkpoint=resume)
    seen["weights"] = [p.double().sum().item() for p in trainer.model.parameters()]
    seen["logs"] = trainer.state.log_history
    if is_knapsack:
        state = trainer.success_tracker.state_dict()
        seen["tracker"] = {name: list(map(str, values)) for name, values in state.items()}


def main(model: str, out: Path, runs: dict) -> None:
    for name, run in runs.items():
        run = {**run, **run.get("on_rank_1", {})} if RANK == 1 else run
        seen = {}
        try:
            train(
                model,
                out / name,
                seen,
                run["trainer"],
                tiny.prompts(kinds=run.get("kinds", "eeem"), solve_rates=True).select(run.get("rows", range(32))),
                run.get("resume"),
                run.get("changes", {}) | run.get("more", {}),
                run.get("rng_state_fails", False),
            )
        except Exception as error:
            if not run.get("fails"):
                raise
            seen["error"] = f"{type(error).__name__}: {error}"
        (out / f"{name}.rank{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))

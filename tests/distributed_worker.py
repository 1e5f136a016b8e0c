"""One rank of a real training run, started by test_distributed.py. Writes what it saw to a JSON file of its own."""

import json
import os
import sys
from pathlib import Path

import tiny
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, get_policy


def only_rank_0_decides(evidence, budget, min_generations, max_generations):
    assert os.environ["RANK"] == "0"
    return get_policy("posterior")(evidence, budget, min_generations, max_generations)


def main(model: str, out: Path, trainer_name: str, changes: dict) -> None:
    is_knapsack = trainer_name == "knapsack"
    trainer_class = KnapsackGRPOTrainer if is_knapsack else GRPOTrainer
    config_class = KnapsackGRPOConfig if is_knapsack else GRPOConfig
    seen = {"generated": [], "records": [], "advantages": []}

    def digit_reward(prompts, completions, completion_ids, **kwargs):
        rewards = tiny.digit_reward(prompts, completions)
        seen["generated"].append(
            [list(row) for row in zip(prompts, completions, completion_ids, rewards, strict=True)]
        )
        return rewards

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen["advantages"].append(list(trainer._logs["advantages"]))
            if is_knapsack:
                record = trainer.success_rate_callback.last_record
                seen["records"].append({"keys": record.keys, "counts": record.allocation.counts.tolist()})

    trainer = trainer_class(
        model=model,
        reward_funcs=digit_reward,
        args=config_class(
            output_dir=str(out / "run"),
            max_completion_length=6,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **changes,
        ),
        train_dataset=tiny.prompts(kinds="eeem"),
        callbacks=[Watch()],
        **({"allocation_policy": only_rank_0_decides} if is_knapsack else {}),
    )
    seen["world_size"] = trainer.accelerator.num_processes
    trainer.train()
    seen["weights"] = [p.double().sum().item() for p in trainer.model.parameters()]
    seen["logs"] = trainer.state.log_history
    if is_knapsack:
        state = trainer.success_tracker.state_dict()
        seen["tracker"] = {name: list(map(str, values)) for name, values in state.items()}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))

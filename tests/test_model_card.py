"""The card that TRL writes, and what is added to it."""

import pytest
import tiny
import yaml
from huggingface_hub import ModelCard
from trl import GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


OPTIONS = {
    **{"num_generations": 4, "max_generations": 10, "per_device_train_batch_size": 16, "max_completion_length": 6},
    **{"gradient_accumulation_steps": 2, "max_steps": 5, "logging_steps": 1, "save_strategy": "no", "seed": 3},
    **{"report_to": "none", "disable_tqdm": True, "use_cpu": True, "bf16": False, "gradient_checkpointing": False},
}


def trained(model, out, trainer_class=KnapsackGRPOTrainer, trainer_options=None, **options):
    args = KnapsackGRPOConfig(**{"output_dir": str(out), **OPTIONS, **options})
    trainer = trainer_class(model, tiny.digit_reward, args, tiny.prompts(16), **(trainer_options or {}))
    trainer.train()
    return trainer


def section(card: str) -> dict[str, str]:
    """The table of the section, as a reader sees it."""
    text = card.split("## Rollout budgets")[1].split("<!--")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return dict(rows[1:])


def test_the_card_says_what_the_run_did(model, tmp_path):
    trainer = trained(model, tmp_path)
    trainer.create_model_card(model_name="tiny", dataset_name="owner/data", tags="math")
    content = (tmp_path / "README.md").read_text()

    card = ModelCard(content)
    assert {"trl", "grpo", "knapsack-rl", "math"} <= set(card.data.tags)
    assert "trained with Knapsack GRPO, a method introduced in" in content
    assert content.count("https://huggingface.co/papers/2509.25849") == 2

    logs = [entry for entry in trainer.state.log_history if "knapsack/generations/max" in entry]
    assert len(logs) == 5
    ratio = [f"{entry['knapsack/effective_gradient_ratio']:.2f}" for entry in logs]
    mean = sum(entry["knapsack/effective_gradient_ratio"] for entry in logs) / 5
    medians = sorted(entry["knapsack/generations/median"] for entry in logs)
    least = min(entry["knapsack/generations/min"] for entry in logs)
    most = max(entry["knapsack/generations/max"] for entry in logs)
    assert (least, most) != (4, 4)  # else nothing is shown
    assert section(content) == {
        "Allocation": "`posterior`",
        "Generations of a prompt": "4 on average, between 2 and 10; 8 prompts share 32",
        "Generations seen": f"smallest {least:.0f}, median {medians[2]:g}, largest {most:.0f}",
        "Effective gradient ratio": f"first {ratio[0]}, mean {mean:.2f}, last {ratio[-1]}",
        "Rollouts": "160",  # 5 steps of 2 passes of 16
        "Prompts with a success rate": "16",
        "A completion succeeds if": "the weighted reward is at least 0.5",
    }
    saved = yaml.safe_load((tmp_path / "knapsack_config.yaml").read_text())
    mine = {"report_to", "disable_tqdm", "use_cpu", "save_strategy"}
    assert saved == {name: value for name, value in OPTIONS.items() if name not in mine}

    # All else is as TRL has it, and a second card has one section.
    ours = content
    GRPOTrainer.create_model_card(trainer, model_name="tiny", dataset_name="owner/data", tags="math")
    plain = (tmp_path / "README.md").read_text()
    assert ModelCard(ours).text.startswith(ModelCard(plain).text.rstrip())
    trainer.create_model_card(model_name="tiny")
    assert (tmp_path / "README.md").read_text().count("## Rollout budgets") == 1


def test_a_run_without_logs_and_with_rules_of_its_own(model, tmp_path, caplog):
    def my_policy(evidence, budget, low, high):
        from trl_knapsack import get_rule

        return get_rule("uniform")(evidence, budget, low, high)

    trainer = trained(
        model,
        tmp_path,
        trainer_options={"allocation_rule": my_policy, "success_func": lambda rewards: rewards["digit_reward"] > 0},
        **{"logging_strategy": "no", "max_steps": 3, "num_iterations": 2},
    )
    trainer.args.model_init_kwargs = {"token": "abc"}
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    (log,) = [entry for entry in trainer.state.log_history if "knapsack/generations/max" in entry]  # at the end
    assert section(card) == {
        "Allocation": "`my_policy`",
        "Generations of a prompt": "4 on average, between 2 and 10; 8 prompts share 32",
        "Generations seen": "smallest 4, median 4, largest 4",
        "Effective gradient ratio": f"mean {log['knapsack/effective_gradient_ratio']:.2f}",
        "Rollouts": "64",  # each batch serves two steps
        "Prompts with a success rate": "16",
        "A completion succeeds if": "a rule of the user's own",
    }
    # A secret is kept out of the file, and does not end the run.
    assert not (tmp_path / "knapsack_config.yaml").exists()
    assert "knapsack_config.yaml" not in card
    assert "not saved beside the model card: model_init_kwargs.token looks like a secret" in caplog.text


def test_other_ranks_write_nothing(model, tmp_path):
    class Elsewhere(KnapsackGRPOTrainer):
        def is_world_process_zero(self):
            return False

    trainer = trained(model, tmp_path / "out", Elsewhere, max_steps=1)
    trainer.create_model_card()
    assert not (tmp_path / "out" / "README.md").exists()
    assert not (tmp_path / "out" / "knapsack_config.yaml").exists()


@pytest.mark.parametrize("strategy", ["end", "checkpoint"])
def test_pushed_to_the_hub(hub, model, tmp_path, strategy):
    """A model's repository is one of a configuration and of success rates, too."""
    trainer = trained(
        model,
        tmp_path / "model",
        **{"push_to_hub": True, "hub_model_id": "me/model", "hub_strategy": strategy, "max_steps": 2},
        **{"save_strategy": "steps", "save_steps": 1},
    )
    trainer.push_to_hub(dataset_name="owner/data")
    files = hub.files("me/model")
    assert section(files["README.md"].decode())["Rollouts"] == "64"
    assert {"model.safetensors", "knapsack_state.safetensors"} <= set(files)
    assert ModelCard(files["README.md"].decode()).data.datasets == "owner/data"

    args = KnapsackGRPOConfig.from_pretrained(
        "me/model", output_dir=str(tmp_path / "next"), use_cpu=True, success_state_path="me/model"
    )
    assert (args.num_generations, args.max_generations, args.seed, args.push_to_hub) == (4, 10, 3, False)
    following = KnapsackGRPOTrainer(model, tiny.digit_reward, args, tiny.prompts(16))
    assert following.success_tracker.keys == trainer.success_tracker.keys

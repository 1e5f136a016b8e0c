"""
TRL's scripts after the change that the README asks for: the import and the class, nothing else.

The first is the script that TRL installs, `trl/scripts/grpo.py`. The others make the same calls as `grpo_agent.py` (tools)
and `grpo_vlm.py` (images) among TRL's examples, on tiny local models and data.
"""

import json
import runpy
import sys
from pathlib import Path

import pytest
import tiny_chat
import trl
from datasets import Dataset


FLAGS = [
    *("--per_device_train_batch_size", "64", "--num_generations", "8", "--max_completion_length", "12"),
    *("--max_steps", "3", "--logging_steps", "1", "--learning_rate", "1e-3", "--save_strategy", "no"),
    *("--use_cpu", "--bf16", "false", "--gradient_checkpointing", "false", "--disable_tqdm", "true"),
]

AGENT = '''
from datasets import load_from_disk
from trl import GRPOConfig, GRPOTrainer, ModelConfig, ScriptArguments, TrlParser


def correctness_reward(completions, answer, **kwargs):
    return [0.6 if completion[-1]["content"][:1] < guess else -0.5 for completion, guess in zip(completions, answer)]


def structure_reward(completions, **kwargs):
    return [0.1 if any(turn.get("tool_calls") for turn in completion) else 0.0 for completion in completions]


def look(digit: str) -> str:
    """
    Look a digit up.

    Args:
        digit: What to look up.

    Returns:
        What was found.
    """
    return digit * 3


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_and_config()
    training_args.chat_template_kwargs = {"enable_thinking": False}
    trainer = GRPOTrainer(
        model=model_args.model_name_or_path,
        train_dataset=load_from_disk(script_args.dataset_name),
        eval_dataset=None,
        tools=[look],
        reward_funcs=[correctness_reward, structure_reward],
        args=training_args,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
'''

VLM = """
from datasets import load_from_disk
from trl import GRPOConfig, GRPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config
from trl.rewards import think_format_reward


def accuracy_reward(completions, answer, **kwargs):
    return [float(completion[0]["content"][:1] < right) for completion, right in zip(completions, answer)]


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_and_config()
    training_args.model_init_kwargs = dict(revision=model_args.model_revision, dtype="float32")
    trainer = GRPOTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        reward_funcs=[think_format_reward, accuracy_reward],
        train_dataset=load_from_disk(script_args.dataset_name),
        eval_dataset=None,
        peft_config=get_peft_config(model_args),
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
"""


def converted(script: str) -> str:
    """Change the import and the class."""
    changed = script.replace("GRPOTrainer(", "KnapsackGRPOTrainer(")
    changed = changed.replace(
        "from trl import GRPOTrainer, ", "from trl_knapsack import KnapsackGRPOTrainer\n    from trl import "
    )
    changed = changed.replace(
        "from trl import GRPOConfig, GRPOTrainer, ",
        "from trl_knapsack import KnapsackGRPOTrainer\nfrom trl import GRPOConfig, ",
    )
    assert changed.count("KnapsackGRPOTrainer") == 2
    return changed


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script; returns what it logged."""

    def run(script: str, *arguments: str) -> list[dict]:
        (tmp_path / "script.py").write_text(script)
        output = tmp_path / "output"
        monkeypatch.setattr(sys, "argv", ["script.py", *arguments, *FLAGS, "--output_dir", str(output)])
        monkeypatch.chdir(tmp_path)
        names = runpy.run_path(str(tmp_path / "script.py"), run_name="__main__")
        if "trainer" not in names:  # the script of TRL trains within a function, and saves no state
            return []
        return json.loads((output / "trainer_state.json").read_text())["log_history"]

    return run


def test_math_with_lora(run, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"prompt": [{"role": "user", "content": f"m{i:02d}"}], "solution": f"${i}$"} for i in range(32)]
    Dataset.from_list(rows).to_json(tmp_path / "data" / "train.jsonl")
    script = converted((Path(trl.__file__).parent / "scripts" / "grpo.py").read_text())
    run(
        script,
        *("--model_name_or_path", tiny_chat.save_model(tmp_path / "model"), "--dataset_name", str(tmp_path / "data")),
        *("--reward_funcs", "accuracy_reward", "think_format_reward", "--use_peft", "--lora_r", "4"),
    )
    assert (tmp_path / "output" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "output" / "knapsack_state.safetensors").is_file()


@pytest.mark.parametrize("kind", ["tools", "images"])
def test_examples(run, tmp_path, kind):
    answers = [str(i % 10) for i in range(16)]
    if kind == "tools":
        model, script = tiny_chat.save_model(tmp_path / "model"), AGENT
        tiny_chat.prompts(16, answer=answers).save_to_disk(tmp_path / "data")
    else:
        model, script = tiny_chat.save_vlm(tmp_path / "model"), VLM
        images = [tiny_chat.image(i) for i in range(16)]
        tiny_chat.prompts(16, answer=answers, image=images).save_to_disk(tmp_path / "data")
    arguments = ["--model_name_or_path", model, "--dataset_name", str(tmp_path / "data")]
    before = run(script, *arguments)
    after = run(converted(script), *arguments)
    assert "knapsack/unseen" not in before[0]
    assert [entry["knapsack/unseen"] for entry in after[:3]] == [1.0, 0.5, 0.0]
    # Nothing is known in the first batch, so it is plain GRPO; then budgets differ.
    own = {name for name in before[0] if "time" not in name}
    assert {name: after[0][name] for name in own} == {name: before[0][name] for name in own}
    assert max(entry["knapsack/generations/max"] for entry in after[1:3]) > 8

"""The example as a stranger runs it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict


SCRIPT = Path(__file__).parent.parent / "examples" / "train_math.py"
SHORT = ["--max_steps", "2", "--logging_steps", "1", "--num_eval_problems", "8", "--per_device_eval_batch_size", "16"]
TINY = [
    *("--per_device_train_batch_size", "16", "--num_generations", "4", "--max_completion_length", "6"),
    *("--num_generations_eval", "2", "--use_cpu", "--bf16", "false", "--gradient_checkpointing", "false"),
]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script in this process; returns what it printed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def problems(count: int, conversational: bool) -> Dataset:
    rows = [(f"{i}+{i}", f"${2 * i}$") for i in range(count)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": q}] if conversational else q for q, _ in rows],
            "solution": [a for _, a in rows],
        }
    )


@pytest.fixture
def chat_model(model, tmp_path) -> str:
    """The tiny model with a chat template, saved to disk as a model of the Hub would be."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat_model")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "chat_model")
    return str(tmp_path / "chat_model")


def test_one_command_from_anywhere(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", str(SCRIPT), *SHORT]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step     2   success rate" in done.stdout + done.stderr
    table = done.stdout.splitlines()[-7:]
    assert [line.split("   ")[0].rstrip() for line in table[:-1]] == [
        "allocation",
        "held-out accuracy",
        "effective gradient ratio",
        "largest budget",
        "decided by knowledge",
        "outputs",
    ]
    assert "0% of the rollouts; all counts were equal, as nothing was known: set look_generations" in table[4]
    output = tmp_path / "outputs" / "train_math-posterior"
    assert (output / "model.safetensors").is_file()
    assert (output / "trainer_state.json").is_file()


@pytest.mark.slow
def test_the_baseline_is_one_flag(run, tmp_path):
    out = run(*SHORT, "--allocation", "uniform", "--output_dir", str(tmp_path / "out"))
    assert "allocation                 uniform" in out
    assert "8 generations of one prompt, 8 on average" in out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json lines, conversational, LoRA", "save_to_disk, plain text, config file"])
def test_a_model_and_a_dataset_from_disk(run, chat_model, tmp_path, kind):
    out = tmp_path / "out"
    arguments = ["--model_name_or_path", chat_model, "--dataset_name", str(tmp_path / "data"), *SHORT, *TINY]
    if kind.startswith("json"):
        (tmp_path / "data").mkdir()
        problems(32, True).to_json(tmp_path / "data" / "train.jsonl")
        problems(8, True).to_json(tmp_path / "data" / "test.jsonl")
        printed = run(*arguments, "--use_peft", "--lora_r", "4", "--output_dir", str(out))
        assert (out / "adapter_model.safetensors").is_file()
        assert not (out / "model.safetensors").exists()
    else:
        DatasetDict(train=problems(80, False)).save_to_disk(tmp_path / "data")
        (tmp_path / "config.yaml").write_text(f"allocation: filter\noutput_dir: {out}\n")
        printed = run(*arguments, "--config", str(tmp_path / "config.yaml"))
        assert (out / "model.safetensors").is_file()
        assert "allocation                 filter" in printed
    assert "held-out accuracy          0.000 before, 0.000 after (2 samples a problem)" in printed


def test_answers_are_checked_with_math_verify():
    accuracy = runpy.run_path(str(SCRIPT))["accuracy"]
    completions = [r"so \boxed{\frac{1}{2}}", [{"role": "assistant", "content": r"\boxed{0.5}"}], r"\boxed{2}", "no"]
    assert accuracy(completions, [r"$\frac{1}{2}$"] * 4) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_name_or_path", "MODEL"], "Give both --model_name_or_path and --dataset_name"),
        (["--model_name_or_path", "MODEL", "--dataset_name", "DATA"], "has no column 'solution', only ['prompt']"),
        (
            ["--model_name_or_path", "MODEL", "--dataset_name", "DATA", "--dataset_train_split", "training"],
            "has no split 'training', only ['train']",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(run, model, tmp_path, arguments, message):
    DatasetDict(train=problems(8, False).remove_columns("solution")).save_to_disk(tmp_path / "data")
    named = {"MODEL": model, "DATA": str(tmp_path / "data")}
    with pytest.raises(SystemExit) as exit:
        run(*(named.get(argument, argument) for argument in arguments), *TINY)
    assert message in str(exit.value)

"""The evaluation example as a stranger runs it."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict


SCRIPT = Path(__file__).parent.parent / "examples" / "evaluate_math.py"
POLICY = SCRIPT.parent / "math_policy"
SHORT = ["--num_eval_problems", "24", "--num_generations", "4"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the script in this process, in an empty folder; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # as `python examples/evaluate_math.py` does

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_command_from_anywhere(tmp_path):
    command = [sys.executable, str(SCRIPT), *SHORT]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    _, *table, _ = done.stdout.splitlines()[-10:]
    assert [line.split("   ")[0].rstrip() for line in table] == [
        "model",
        "problems",
        "completions",
        "avg@4",
        "pass@2",
        "pass@4",
        "maj@4",
        "intervals",
    ]
    results = lines_of(tmp_path / "outputs" / "evaluate_math" / "examples--math_policy.jsonl")
    assert [line["n"] for line in results] == [4] * 24 and results[0]["id"] == "test-sub3-036"
    said = float(next(line for line in table if line.startswith("avg@4")).split()[1])
    assert said == pytest.approx(sum(line["c"] for line in results) / 96, abs=0.0006)
    assert 0.2 < said < 0.8  # the policy is right for about half of the problems
    solutions = [json.loads(line) for line in (SCRIPT.parent / "math_problems" / "test.jsonl").open()][:24]
    for line, problem in zip(results, solutions, strict=True):
        assert line["rewards"] == [float(answer == problem["solution"]) for answer in line["answers"]]


def test_compare_a_model_and_a_file_of_results(run):
    """A file of results is read; the same sampling gives no difference, another seed some."""
    run(*SHORT, "--log_completions")
    file = Path("outputs/evaluate_math/examples--math_policy.jsonl").rename("first.jsonl")
    assert all(len(line["completions"]) == 4 for line in lines_of(file))
    out = run(*SHORT, "--compare", str(file))
    assert "+0.000 [+0.000, +0.000]" in out
    assert "0 only by math_policy, 0 only by first: p = 1" in out
    out = run(*SHORT, "--seed", "1", "--compare", str(file))
    table = {line.split()[0]: line for line in out.splitlines() if line and not line.startswith("-")}
    assert out.splitlines()[-8].split() == ["math_policy", "first", "difference,", "95%", "interval"]
    assert "+0.000 [+0.000, +0.000]" not in table["avg@4"]
    assert table["Wilcoxon"].startswith("Wilcoxon   success rates of 24 problems: p = ")
    # nothing is sampled for two files
    assert run("--model_name_or_path", str(file), "--compare", str(file)).count("results of") == 0


def test_a_file_that_is_not_there(run):
    with pytest.raises(SystemExit, match="There is no file nowhere.jsonl; evaluate a model first"):
        run("--model_name_or_path", "nowhere.jsonl")


def test_a_configuration_that_is_not_there(run):
    with pytest.raises(SystemExit, match="me/nothing is not in the cache"):
        run("--config", "me/nothing")


def conversations(tmp_path) -> str:
    """Held-out problems of another kind, as they lie on the Hub: conversations, and answers in LaTeX."""
    rows = [([{"role": "user", "content": f"{i}+{i}"}], f"${2 * i}$") for i in range(6)]
    held_out = Dataset.from_dict(
        {"prompt": [prompt for prompt, _ in rows], "solution": [answer for _, answer in rows]}
    )
    DatasetDict({"validation": held_out}).save_to_disk(tmp_path / "problems")
    return str(tmp_path / "problems")


def test_other_problems_are_checked_with_math_verify(run, tmp_path):
    import tiny_chat

    model = tiny_chat.save_model(tmp_path / "chat")
    options = ["--model_name_or_path", model, "--dataset_name", conversations(tmp_path), "--num_generations", "2"]
    out = run(*options, "--dataset_test_split", "validation", "--max_completion_length", "6")
    assert "problems      6" in out and "completions   12, 2 a problem" in out
    (file,) = Path("outputs/evaluate_math").glob("*--chat.jsonl")
    assert [len(line["rewards"]) for line in lines_of(file)] == [2] * 6


@pytest.mark.parametrize(
    ("split", "rename", "message"),
    [
        ("test", None, r"has no split 'test', only \['validation'\]; name one with --dataset_test_split"),
        ("validation", "answer", r"has no column 'solution', only \['prompt', 'answer'\]; rename"),
    ],
)
def test_a_dataset_that_does_not_fit(run, tmp_path, split, rename, message):
    from datasets import load_from_disk

    name = conversations(tmp_path)
    if rename:
        load_from_disk(name).rename_column("solution", rename).save_to_disk(tmp_path / "renamed")
        name = str(tmp_path / "renamed")
    with pytest.raises(SystemExit, match=message):
        run("--dataset_name", name, "--dataset_test_split", split)

"""The recipes: every line is an option of the script that reads it, and the budgets are what the comments say."""

import os
import re
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from datasets import Dataset, load_from_disk
from trl import ModelConfig, TrlParser
from trl.scripts.vllm_serve import ScriptArguments as VllmServeArguments

from trl_knapsack import KnapsackGRPOConfig


ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAPER = FOLDER / "qwen2.5_math_7b_dapo_paper.yaml"
BUDGET = re.compile(
    r"^# (\d+) process(?:es)?: (\d+) rollouts a generation batch = (\d+) prompts x (\d+), then (\d+) optimizer steps? of (\d+) "
    r"rollouts",
    re.MULTILINE,
)


ARGUMENTS = {"train_math": "MathArguments", "train_reasoning_gym": "ReasoningGymArguments"}


def script_of(recipe: Path) -> str:
    """The example that the recipe's comment launches."""
    return "train_reasoning_gym" if recipe.name.startswith("reasoning_gym") else "train_math"


def parse(*arguments: str, script: str = "train_math") -> tuple:
    own = runpy.run_path(str(ROOT / "examples" / f"{script}.py"))[ARGUMENTS[script]]
    return TrlParser((own, KnapsackGRPOConfig, ModelConfig)).parse_args_and_config([*arguments, "--use_cpu"])


def budget(config: KnapsackGRPOConfig, processes: int) -> list[int]:
    rows = config.per_device_train_batch_size * processes
    rollouts, step = rows * config.steps_per_generation, rows * config.gradient_accumulation_steps
    assert rollouts % config.num_generations == 0 and rollouts % step == 0
    prompts = rollouts // config.num_generations
    assert config.min_generations * prompts <= rollouts <= config.max_generations * prompts
    return [processes, rollouts, prompts, config.num_generations, rollouts // step, step]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_are_options_with_the_budget_of_their_comment(recipe):
    script, config, model = parse("--config", str(recipe), script=script_of(recipe))
    said = [int(number) for number in BUDGET.search(recipe.read_text()).groups()]
    assert budget(config, said[0]) == said
    values = yaml.safe_load(recipe.read_text())
    for name, value in values.items():
        (read,) = [getattr(part, name) for part in (script, config, model) if hasattr(part, name)]
        assert value in (read, [read], getattr(read, "value", None)), name  # enums, and a list of one module
    assert config.max_steps % said[4] == 0  # no generation batch is left half used


def test_a_misspelt_option_is_an_error(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPES[0].read_text() + "max_generation: 5\n")
    with pytest.raises((SystemExit, ValueError), match="max_generation"):
        parse("--config", str(tmp_path / "recipe.yaml"))


def test_every_line_of_the_papers_recipe_says_where_it_is_from():
    """And a number after an equals sign is the value, for all that are not computed from several."""
    computed = {"gradient_accumulation_steps", "steps_per_generation", "max_steps", "save_steps", "num_iterations"}
    computed |= {"vllm_max_model_length", "max_completion_length", "dataset_name", "num_eval_problems", "top_k"}
    words = {"lr_scheduler_type", "scale_rewards", "allocation", "loss_type"}
    compared = 0
    for line in PAPER.read_text().splitlines():
        if line.startswith("#") or not line.strip() or line.startswith("output_dir"):
            continue
        setting, _, source = line.partition("  #")
        if not source:
            setting, _, source = line.partition(" # ")
        name, value = next(iter(yaml.safe_load(setting).items()))
        assert re.search(r"\[(script|paper|ours)\]( |$)", source), line
        if name not in computed | words:
            for number in re.findall(r"=(-?\d[\d.e-]*)\b(?!/)", source.split("[paper]")[0]):
                assert float(number) == float(value), line
                compared += 1
    assert compared >= 15


def test_the_computed_values_of_the_papers_recipe():
    """The script's own arithmetic, beside ours."""
    total, off_policy, per_prompt, steps, save_every, prompt, response = 2048, 8, 8, 1000, 20, 1024 * 2, 1024 * 4
    config = parse("--config", str(PAPER))[1]
    assert budget(config, 8) == [8, total, total // per_prompt, per_prompt, off_policy, total // off_policy]
    assert (config.max_steps, config.save_steps) == (steps * off_policy, save_every * off_policy)
    assert (config.max_completion_length, config.vllm_max_model_length) == (response, prompt + response)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_commands_of_the_recipes(recipe):
    """Files exist, and options of `trl vllm-serve` and `accelerate launch` are theirs."""
    comment = "\n".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    comment = comment.replace("\\\n", " ")
    for file in re.findall(r"examples/[\w./-]+\.(?:yaml|py)", comment):
        assert (ROOT / file).is_file() or "github.com" in comment, file
    (launch,) = re.findall(r"accelerate launch (.*)", comment)
    assert f"--config examples/recipes/{recipe.name}" in launch
    arguments = [str(ROOT / a) if a.startswith("examples/") else a for a in launch.split()]
    args = launch_command_parser().parse_args(arguments)
    assert args.training_script == str(ROOT / "examples" / f"{script_of(recipe)}.py")
    parse(*args.training_script_args, script=script_of(recipe))
    if "--num_processes" in launch:
        assert args.num_processes == int(BUDGET.search(recipe.read_text())[1])
    for serve in re.findall(r"trl vllm-serve (.*)", comment):
        options = re.findall(r"--(\w+)", serve)
        assert {"model", *options} <= {field.name for field in fields(VllmServeArguments)}
        served = dict(re.findall(r"--(\w+) (\S+)", serve))
        assert served["model"] == parse("--config", str(recipe))[2].model_name_or_path
        config = parse("--config", str(recipe))[1]
        assert int(served["max_model_len"]) > config.max_completion_length


def test_every_recipe_is_listed():
    readme = (ROOT / "examples" / "README.md").read_text()
    for file in FOLDER.iterdir():
        if file.suffix in (".yaml", ".slurm", ".py"):
            assert f"(recipes/{file.name})" in readme, file.name


def test_dapo_math_as_train_math_reads_it(tmp_path, monkeypatch, capsys):
    question = "What is $2 + 3$?\n\nGive an integer."
    framed = (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: $Answer "
        f"(without quotes) where $Answer is the answer to the problem.\n\n{question}\n\nRemember to put your answer on its own "
        'line after "Answer:".'
    )
    (tmp_path / "raw").mkdir()
    Dataset.from_dict({"prompt": [framed, question], "solution": ["5", "5"], "ability": ["MATH"] * 2}).to_parquet(
        tmp_path / "raw" / "train.parquet"
    )
    script = FOLDER / "prepare_dapo_math.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "out"), str(tmp_path / "raw")])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.startswith("2 problems in ")
    prompts = load_from_disk(tmp_path / "out")["train"]["prompt"]
    wanted = question + "\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert list(prompts) == [[{"role": "user", "content": wanted}]] * 2
    math = runpy.run_path(str(ROOT / "examples" / "train_math.py"))
    train, _ = math["load_problems"](math["MathArguments"](dataset_name=str(tmp_path / "out"), num_eval_problems=0))
    assert train.column_names == ["prompt", "solution"]
    assert math["accuracy"]([r"\boxed{5}", "Answer: 5"], train["solution"]) == [1.0, 0.0]  # why the frame is taken off


# SLURM's commands, for a job of two machines: the step is run once for each, as `srun` does.
SRUN = """#!/bin/bash
shift
for node in 0 1; do SLURM_NODEID=$node "$@"; done
"""
ACCELERATE = """#!/bin/bash
printf '%s\\n' "$@" > "$OUT/$SLURM_NODEID"
"""


@pytest.mark.parametrize("given", [[], ["--config", "my recipe.yaml", "--seed", "1"]], ids=["the paper's", "another"])
def test_several_machines(tmp_path, given):
    for name, text in {
        "srun": SRUN,
        "accelerate": ACCELERATE,
        "scontrol": "#!/bin/bash\necho node7\nsleep 0.2\necho node9\n",  # a reader that leaves early would end it
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7,9]", "SLURM_NNODES": "2", "OUT": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(FOLDER / "multi_node.slurm"), *given],
        cwd=ROOT,
        env={**os.environ, **job, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for node in (0, 1):
        command = (tmp_path / str(node)).read_text().splitlines()
        arguments = [str(ROOT / a) if a.startswith("examples/") else a for a in command[1:]]
        args = _validate_launch_command(launch_command_parser().parse_args(arguments))[0]
        assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, node)
        assert (args.main_process_ip, args.main_process_port, args.use_fsdp) == ("node7", 29500, True)
        assert args.training_script == str(ROOT / "examples" / "train_math.py")
        if given:
            assert args.training_script_args == given
        else:
            assert budget(parse(*args.training_script_args)[1], 16) == [16, 2048, 256, 8, 8, 256]

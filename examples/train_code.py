# /// script
# dependencies = [
#     "trl-knapsack",
# ]
# requires-python = ">=3.11"
#
# [tool.uv.sources]  # `uv run` takes the package from this clone: it is in no index yet
# trl-knapsack = { path = "..", editable = true }
# ///

r"""
Train a model to write Python functions that pass tests, run in a sandbox.

    accelerate launch examples/train_code.py \
        --model_name_or_path Qwen/Qwen2.5-Coder-1.5B-Instruct \
        --num_generations 8 --per_device_train_batch_size 16 --gradient_accumulation_steps 8 \
        --max_completion_length 1024 --use_vllm --vllm_mode colocate --output_dir outputs/code

Without `--dataset_name`, it trains on the 20 bundled problems. Your dataset needs the columns `prompt` and `tests`: a list of
assertions, each `assert <expression> == <literal>`, like most in MBPP's `test_list`; leave out rows with any others.
`examples/sandbox.py` explains how candidates are run, and what that protects against. Linux only.
"""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import load_dataset
from transformers.utils import is_peft_available
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.hub import parse_script_arguments


HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for sandbox.py, wherever the script is started from

from sandbox import SandboxError, check_sandbox, passes, split_test  # noqa: E402


CODE_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def tests_passed(completions: list, tests: list[list[str]], **kwargs) -> list[float]:
    """1 if the last code block of the completion, or all of it if there is none, passes every test of the row."""
    programs = [code(c if isinstance(c, str) else c[-1]["content"]) for c in completions]
    workers = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    with ThreadPoolExecutor(workers) as pool:
        return [float(passed) for passed in pool.map(passes, programs, tests)]


def code(text: str) -> str:
    blocks = CODE_BLOCK.findall(text)
    return blocks[-1] if blocks else text


def main() -> None:
    script_args, training_args, model_args = parse_script_arguments((ScriptArguments, KnapsackGRPOConfig, ModelConfig))
    if model_args.model_name_or_path is None:
        sys.exit("Give a model with --model_name_or_path, for example Qwen/Qwen2.5-Coder-1.5B-Instruct.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }

    name = script_args.dataset_name or str(HERE / "code_problems")
    dataset = load_dataset(name, script_args.dataset_config, split=script_args.dataset_train_split)
    missing = {"prompt", "tests"} - set(dataset.column_names)
    if missing:
        sys.exit(f"{name} has no column {min(missing)!r}, only {dataset.column_names}; rename or add it.")
    try:  # what is wrong is found here, and not after hours
        check_sandbox()
        for tests in dataset["tests"]:
            for test in tests:
                split_test(test)
    except (SandboxError, ValueError) as error:
        sys.exit(str(error))

    trainer = KnapsackGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=tests_passed,
        args=training_args,
        train_dataset=dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args) if is_peft_available() else None,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()


if __name__ == "__main__":
    main()

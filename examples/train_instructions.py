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
Train a model to follow instructions that a program can check: a number of words, no commas, three bullets, ...

    accelerate launch examples/train_instructions.py \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --num_generations 8 --per_device_train_batch_size 16 --gradient_accumulation_steps 8 \
        --max_completion_length 512 --use_vllm --vllm_mode colocate --output_dir outputs/instructions

Without `--dataset_name`, it trains on the bundled prompts. Your dataset needs the columns `prompt` and `constraints`, a JSON
object: `{"min_words": 20, "no_commas": true, "keywords": ["tide"]}`. `CHECKS` below lists every constraint. The instructions
are similar to IFEval's (arXiv 2311.07911); the code, the prompts and their wording are our own.

There are two reward functions: the share of constraints that are met gives the gradient, and meeting all of them counts as a
success in a prompt's success rate.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers.utils import is_peft_available
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.hub import parse_script_arguments


BUNDLED_DATASET = Path(__file__).resolve().parent / "instruction_problems"


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def is_json(text: str) -> bool:
    block = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", text, re.DOTALL)
    try:
        json.loads(block[1] if block else text)
    except (ValueError, RecursionError):
        return False
    return True


# What a constraint asks of a completion without its outer white space; a flag that is false asks for nothing.
CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "min_words": lambda text, n: len(words(text)) >= n,
    "max_words": lambda text, n: len(words(text)) <= n,
    "sentences": lambda text, n: len(re.findall(r"[^.!?]*\w[^.!?]*(?:[.!?]+|$)", text)) == n,
    "paragraphs": lambda text, n: len([p for p in re.split(r"\n\s*\n", text) if p.strip()]) == n,
    "bullets": lambda text, n: len(re.findall(r"^\s*[-*] +\S", text, re.MULTILINE)) == n,
    "keywords": lambda text, listed: all(has_word(text, word) for word in listed),
    "forbidden": lambda text, listed: not any(has_word(text, word) for word in listed),
    "starts_with": lambda text, start: text.startswith(start),
    "ends_with": lambda text, end: text.endswith(end),
    "no_commas": lambda text, flag: not flag or "," not in text,
    "lowercase": lambda text, flag: not flag or text == text.lower(),
    "uppercase": lambda text, flag: not flag or text == text.upper(),
    "json": lambda text, flag: not flag or is_json(text),
    "quoted": lambda text, flag: not flag or (len(text) > 2 and text[0] == text[-1] == '"'),
}


def followed(completion: str | list[dict], constraints: str) -> list[bool]:
    """Which constraints a completion meets, in their order. One without a word meets none."""
    text = (completion if isinstance(completion, str) else completion[-1]["content"]).strip()
    asked = json.loads(constraints)
    if not isinstance(asked, dict) or not asked:
        raise ValueError(f"constraints {constraints!r} must be a JSON object with at least one constraint.")
    unknown = asked.keys() - CHECKS.keys()
    if unknown:
        raise ValueError(f"constraint {min(unknown)!r} must be one of {', '.join(CHECKS)}.")
    return [bool(words(text)) and CHECKS[name](text, value) for name, value in asked.items()]


def share_followed(completions: list, constraints: list[str], **kwargs) -> list[float]:
    """Share of the constraints that are met."""
    met = [followed(*row) for row in zip(completions, constraints, strict=True)]
    return [sum(each) / len(each) for each in met]


def all_followed(completions: list, constraints: list[str], **kwargs) -> list[float]:
    """1 if every constraint is met."""
    return [float(all(followed(*row))) for row in zip(completions, constraints, strict=True)]


def main() -> None:
    script_args, training_args, model_args = parse_script_arguments((ScriptArguments, KnapsackGRPOConfig, ModelConfig))
    if model_args.model_name_or_path is None:
        sys.exit("Give a model with --model_name_or_path, for example Qwen/Qwen2.5-0.5B-Instruct.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    if training_args.success_reward_func is None:
        training_args.success_reward_func = all_followed.__name__

    name = script_args.dataset_name or str(BUNDLED_DATASET)
    dataset = load_dataset(name, script_args.dataset_config, split=script_args.dataset_train_split)
    missing = {"prompt", "constraints"} - set(dataset.column_names)
    if missing:
        sys.exit(f"{name} has no column {min(missing)!r}, only {dataset.column_names}; rename or add it.")
    for constraints in dataset["constraints"]:
        followed("", constraints)  # a wrong one is found here, and not after hours

    trainer = KnapsackGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=[share_followed, all_followed],
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

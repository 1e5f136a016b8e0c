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
Train a model to use a calculator: TRL's `tools=`, with per-prompt rollout budgets.

    accelerate launch examples/train_tools.py \
        --model_name_or_path Qwen/Qwen3-0.6B --chat_template_kwargs '{"enable_thinking": false}' \
        --num_generations 8 --per_device_train_batch_size 16 --gradient_accumulation_steps 8 \
        --max_completion_length 512 --max_tool_calling_iterations 3 --output_dir outputs/tools

Without `--dataset_name`, it trains on the bundled arithmetic. Your dataset needs the columns `prompt` and `solution`, a
number. The model's chat template has to support tools; TRL tells you if it does not.
"""

import ast
import math
import operator
import re
import sys
from pathlib import Path

from datasets import load_dataset
from transformers.utils import is_peft_available
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.hub import parse_script_arguments


BUNDLED_DATASET = Path(__file__).resolve().parent / "math_problems"
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def calculate(expression: str) -> str:
    """
    Calculate an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % and parentheses, for example "(17 + 4) * 3".

    Returns:
        The result, or what is wrong with the expression.
    """
    try:
        if len(expression) > 200:
            raise ValueError("longer than 200 characters")
        value = value_of(ast.parse(expression.strip(), mode="eval").body)
        return f"{value:.15g}" if isinstance(value, float) else str(value)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        return f"error: {error}"  # the model reads it, and may try again


def value_of(node: ast.AST) -> float:
    """The value of a parsed expression, without `eval`: numbers and `OPERATORS` only, so nothing else can be reached."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value_of(node.operand))
    raise ValueError(f"{type(node).__name__} is not arithmetic")


def correct(completions: list[list[dict]], solution: list[str], **kwargs) -> list[float]:
    """1 if the last number of the last message, which has to be the assistant's, is the solution."""
    return [float(answer(messages) == number(right)) for messages, right in zip(completions, solution, strict=True)]


def answer(messages: list[dict]) -> float | None:
    if not messages or messages[-1]["role"] != "assistant":
        return None  # ended in a call: the tool's answer is not the model's
    numbers = re.findall(r"-?\d[\d,]*\.?\d*", messages[-1].get("content") or "")
    return number(numbers[-1]) if numbers else None


def number(text: str) -> float:
    value = float(str(text).replace(",", "").rstrip("."))
    if not math.isfinite(value):
        raise ValueError(f"solution {text!r} must be a finite number.")
    return value


def as_question(row: dict) -> dict:
    """`"590-123="` -> a conversation; conversations stay as they are."""
    if not isinstance(row["prompt"], str):
        return row
    question = f"What is {row['prompt'].rstrip('=')}? Use the calculator, then answer with the number."
    return {"prompt": [{"role": "user", "content": question}]}


def main() -> None:
    script_args, training_args, model_args = parse_script_arguments((ScriptArguments, KnapsackGRPOConfig, ModelConfig))
    if model_args.model_name_or_path is None:
        sys.exit("Give a model with --model_name_or_path, for example Qwen/Qwen3-0.6B.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }

    name = script_args.dataset_name or str(BUNDLED_DATASET)
    dataset = load_dataset(name, script_args.dataset_config, split=script_args.dataset_train_split)
    missing = {"prompt", "solution"} - set(dataset.column_names)
    if missing:
        sys.exit(f"{name} has no column {min(missing)!r}, only {dataset.column_names}; rename or add it.")

    trainer = KnapsackGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=correct,
        tools=[calculate],
        args=training_args,
        train_dataset=dataset.map(as_question),
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

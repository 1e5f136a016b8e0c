# /// script
# dependencies = [
#     "trl-knapsack[math]",
#     "pillow",
#     "torchvision",
# ]
# requires-python = ">=3.11"
#
# [tool.uv.sources]  # `uv run` takes the package from this clone: it is in no index yet
# trl-knapsack = { path = "..", editable = true }
# ///

r"""
Train a vision-language model on problems with an image, with per-prompt rollout budgets.

    accelerate launch --config_file examples/accelerate_configs/deepspeed_zero3.yaml examples/train_vlm.py \
        --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct \
        --dataset_name lmms-lab/multimodal-open-r1-8k-verified \
        --num_generations 8 --per_device_train_batch_size 2 --gradient_accumulation_steps 16 \
        --max_completion_length 1024 --learning_rate 1e-5 --use_vllm --vllm_mode colocate \
        --use_peft --lora_target_modules q_proj v_proj --output_dir outputs/vlm

Columns: `image` (or `images`, a list), `prompt` or `problem`, and `solution`. Rows with an image of more than
`--max_image_size` pixels on a side are skipped, since each image costs hundreds of tokens.
"""

import sys
from dataclasses import dataclass, field

from datasets import Dataset, load_dataset
from transformers.utils import is_peft_available
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config
from trl.import_utils import is_math_verify_available
from trl.rewards import accuracy_reward

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.errors import install_command
from trl_knapsack.hub import parse_script_arguments


@dataclass
class VLMArguments(ScriptArguments):
    """
    Script arguments, besides TRL's.

    Args:
        max_image_size (`int`, *optional*, defaults to `512`):
            Largest width and height of an image, in pixels; rows with larger ones are skipped.
    """

    max_image_size: int = field(
        default=512,
        metadata={"help": "Largest width and height of an image, in pixels; rows with larger ones are skipped."},
    )


def accuracy(completions: list[list[dict]], solution: list[str], **kwargs) -> list[float]:
    """TRL's `accuracy_reward` (math-verify); solutions that it can't read, such as names, are compared as text."""
    verified = accuracy_reward(completions, solution, **kwargs)
    return [
        float(plain(completion[-1]["content"]) == plain(right)) if reward is None else reward
        for reward, completion, right in zip(verified, completions, solution, strict=True)
    ]


def plain(text: str) -> str:
    return text.strip().rstrip(".").lower()


def prepare(dataset: Dataset, max_image_size: int) -> Dataset:
    """Rows as the trainer takes them: a conversation, and images that are neither large nor other than RGB."""
    column = "images" if "images" in dataset.column_names else "image"

    def images_of(row: dict) -> list:
        return row[column] if column == "images" else [row[column]]

    def small(row: dict) -> bool:
        return all(max(image.size) <= max_image_size for image in images_of(row))

    def convert(row: dict) -> dict:
        images = [image.convert("RGB") for image in images_of(row)]
        prompt = row["prompt"] if "prompt" in row else row["problem"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        return {"prompt": prompt, column: images if column == "images" else images[0]}

    return dataset.filter(small).map(convert)


def main() -> None:
    script_args, training_args, model_args = parse_script_arguments((VLMArguments, KnapsackGRPOConfig, ModelConfig))
    if model_args.model_name_or_path is None or script_args.dataset_name is None:
        sys.exit("Give both --model_name_or_path and --dataset_name; the docstring of this script has examples.")
    if not is_math_verify_available():
        sys.exit(f"Answers are checked with math-verify, which is not installed; run `{install_command('math')}`.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }

    name = script_args.dataset_name
    dataset = load_dataset(name, script_args.dataset_config, split=script_args.dataset_train_split)
    for choices in (("image", "images"), ("prompt", "problem"), ("solution",)):
        if not set(choices) & set(dataset.column_names):
            sys.exit(f"{name} has no column {choices[0]!r}, only {dataset.column_names}; rename or add it.")

    trainer = KnapsackGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=accuracy,
        args=training_args,
        train_dataset=prepare(dataset, script_args.max_image_size),
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

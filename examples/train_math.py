# /// script
# dependencies = [
#     "trl-knapsack[math]",
# ]
# requires-python = ">=3.11"
#
# [tool.uv.sources]  # `uv run` takes the package from this clone: it is in no index yet
# trl-knapsack = { path = "..", editable = true }
# ///

"""
Train a language model on math problems with per-prompt rollout budgets.

Without arguments, a small bundled policy on bundled problems, no network and no GPU needed:

    accelerate launch examples/train_math.py
    accelerate launch examples/train_math.py --allocation uniform      # plain GRPO, to compare

With a model and a dataset (columns `prompt` and `solution`), from the Hub or from disk:

    accelerate launch examples/train_math.py \
        --model_name_or_path Qwen/Qwen2.5-Math-1.5B-Instruct \
        --dataset_name trl-lib/DeepMath-103K \
        --num_generations 8 --per_device_train_batch_size 16 --gradient_accumulation_steps 8 \
        --max_completion_length 2048 --learning_rate 1e-6 \
        --use_vllm --vllm_mode colocate --use_peft --output_dir outputs/deepmath

Every field of `KnapsackGRPOConfig` and of TRL's `ModelConfig` is a flag, and `--config file.yaml` sets any of them, as
does `--config owner/name` with a configuration from the Hub.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from transformers import ProgressCallback
from transformers.utils import is_peft_available
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config
from trl.import_utils import is_math_verify_available
from trl.rewards import accuracy_reward

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.errors import install_command
from trl_knapsack.hub import parse_script_arguments
from trl_knapsack.reporting.summary import closing_rows
from trl_knapsack.training import KnapsackProgressCallback


HERE = Path(__file__).resolve().parent
BUNDLED_MODEL = HERE / "math_policy"
BUNDLED_DATASET = HERE / "math_problems"
BUNDLED_CONFIG = HERE / "train_math.yaml"


@dataclass
class MathArguments(ScriptArguments):
    """
    Script arguments, besides TRL's.

    Args:
        num_eval_problems (`int`, *optional*, defaults to `512`):
            Held-out problems to measure accuracy on, before and after. 0 measures nothing.
    """

    num_eval_problems: int = field(
        default=512,
        metadata={"help": "Held-out problems to measure accuracy on, before and after. 0 measures nothing."},
    )


def exact_match(completions: list, solution: list[str], **kwargs) -> list[float]:
    """1 if the completion is the solution to the letter: for the bundled problems, whose answers are bare numbers."""
    return [
        float(text(completion).strip() == answer) for completion, answer in zip(completions, solution, strict=True)
    ]


def accuracy(completions: list, solution: list[str], **kwargs) -> list[float | None]:
    """TRL's `accuracy_reward` (math-verify), also for prompts and completions that are plain text."""
    conversations = [[{"role": "assistant", "content": text(completion)}] for completion in completions]
    return accuracy_reward(conversations, solution, **kwargs)


def text(completion: str | list[dict[str, str]]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def load_problems(script_args: MathArguments) -> tuple[Dataset, Dataset | None]:
    """Train and held-out problems; the latter are set apart from the train split if the dataset has no test split."""
    name, count = script_args.dataset_name, script_args.num_eval_problems
    if (Path(name) / "dataset_dict.json").is_file():  # saved with `save_to_disk`
        dataset = load_from_disk(name)
    else:
        dataset = load_dataset(name, script_args.dataset_config, streaming=script_args.dataset_streaming)
    train_split, test_split = script_args.dataset_train_split, script_args.dataset_test_split
    if train_split not in dataset:
        sys.exit(f"{name} has no split {train_split!r}, only {list(dataset)}; name one with --dataset_train_split.")
    for column in ("prompt", "solution"):
        columns = dataset[train_split].column_names
        if columns is not None and column not in columns:
            sys.exit(
                f"{name} has no column {column!r}, only {columns}; rename the columns to `prompt` and `solution`."
            )
    if count == 0:
        return dataset[train_split], None
    if test_split in dataset:
        test = dataset[test_split]
        return dataset[train_split], test.take(count)
    if script_args.dataset_streaming:
        sys.exit(
            f"{name} has no split {test_split!r}; name one with --dataset_test_split, or set --num_eval_problems 0."
        )
    held_out: DatasetDict = dataset[train_split].train_test_split(min(count, len(dataset[train_split]) // 10), seed=0)
    return held_out["train"], held_out["test"]


def main() -> None:
    arguments = sys.argv[1:]
    given = {argument.split("=")[0] for argument in arguments}
    bundled = not given & {"--model_name_or_path", "--dataset_name", "--config"}
    if bundled:
        arguments = ["--config", str(BUNDLED_CONFIG), *arguments]
    script_args, training_args, model_args = parse_script_arguments(
        (MathArguments, KnapsackGRPOConfig, ModelConfig), arguments
    )
    if bundled:
        script_args.dataset_name, model_args.model_name_or_path = str(BUNDLED_DATASET), str(BUNDLED_MODEL)
        if not given & {"--output_dir"}:
            training_args.output_dir = f"outputs/train_math-{training_args.allocation}"
    elif script_args.dataset_name is None or model_args.model_name_or_path is None:
        sys.exit("Give both --model_name_or_path and --dataset_name, or neither for the bundled model and problems.")
    elif not is_math_verify_available():
        sys.exit(f"Answers are checked with math-verify, which is not installed; run `{install_command('math')}`.")

    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    train_dataset, eval_dataset = load_problems(script_args)
    reward = exact_match if bundled else accuracy
    trainer = KnapsackGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=reward,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args) if is_peft_available() else None,
    )
    if not training_args.disable_tqdm:
        # one line of what matters each time, in a log file as in a terminal, where the trainer has put it already
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(KnapsackProgressCallback(lambda: trainer.success_rate_callback.last_record))

    args = trainer.args
    trainer.accelerator.print(
        f"{model_args.model_name_or_path}: allocation {args.allocation!r} shares out {args.generation_batch_size} rollouts "
        f"over {args.generation_batch_size // args.num_generations} prompts at a time, {args.min_generations} to "
        f"{args.max_generations} each"
    )

    def held_out_accuracy() -> float | None:
        return None if eval_dataset is None else trainer.evaluate()[f"eval_rewards/{reward.__name__}/mean"]

    before = held_out_accuracy()
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    after = held_out_accuracy()

    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    trainer.accelerator.print(summary(trainer, before, after))
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()


def summary(trainer: KnapsackGRPOTrainer, before: float | None, after: float | None) -> str:
    """The closing table."""
    logs = [entry for entry in trainer.state.log_history if "knapsack/effective_gradient_ratio" in entry]
    ratios = [entry["knapsack/effective_gradient_ratio"] for entry in logs]
    args = trainer.args
    rows = [("allocation", args.allocation)]
    if before is not None:
        samples = f"{args.num_generations_eval or args.num_generations} samples a problem"
        rows.append(("held-out accuracy", f"{before:.3f} before, {after:.3f} after ({samples})"))
    if ratios:
        rows.append(
            ("effective gradient ratio", f"{sum(ratios) / len(ratios):.2f} over the run, {ratios[-1]:.2f} at its end")
        )
        rows += closing_rows(args.allocation, logs, args.num_generations)
    rows.append(("outputs", args.output_dir))
    width = max(len(name) for name, _ in rows)
    rule = "-" * max(len(f"{name:<{width}}   {value}") for name, value in rows)
    return "\n".join(["", rule, *(f"{name:<{width}}   {value}" for name, value in rows), rule])


if __name__ == "__main__":
    main()

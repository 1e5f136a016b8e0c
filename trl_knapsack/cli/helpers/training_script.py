"""What `accelerate launch` runs for `trl-knapsack train`: `python -m trl_knapsack.cli.helpers.training_script`."""

import contextlib
import sys
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import is_peft_available
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from ...errors import InvalidInputError, KnapsackError
from ...reporting.summary import closing_rows
from ...tracking.keys import check_prompt_column
from ...training.config import KnapsackGRPOConfig
from ...training.trainer import KnapsackGRPOTrainer
from .data import load_splits, split_of
from .rewards import load_reward


@dataclass
class RewardArguments(ScriptArguments):
    """
    Script arguments, besides TRL's.

    Args:
        reward_funcs (`list[str]`, *optional*):
            Reward functions: names from `trl.rewards` such as `accuracy_reward`, or dotted paths to your own such as
            `my_module.my_reward`.
        reward_model_name_or_path (`str`, *optional*):
            Reward model on the Hub or on disk, placed before the functions.
    """

    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Reward functions: names from trl.rewards such as accuracy_reward, or dotted paths to your own "
            "such as my_module.my_reward."
        },
    )
    reward_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Reward model on the Hub or on disk, placed before the functions."}
    )

    def __post_init__(self):
        if isinstance(self.reward_funcs, str):  # one name in a YAML file
            self.reward_funcs = [self.reward_funcs]


TYPES: tuple[Any, ...] = (RewardArguments, KnapsackGRPOConfig, ModelConfig, DatasetMixtureConfig)


class Parser(TrlParser):
    """TRL's parser, which reports mistakes in one line instead of five hundred."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> Parser:
    return Parser(TYPES, prog="trl-knapsack train", allow_abbrev=False)


@contextlib.contextmanager
def parsed_options():
    """Turns what TRL, transformers and accelerate object to in the options into one sentence."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:  # nothing of the user's runs here
        raise InvalidInputError(" ".join(str(error).split())) from error


def make_trainer(
    script_args: RewardArguments,
    training_args: KnapsackGRPOConfig,
    model_args: ModelConfig,
    dataset_args: DatasetMixtureConfig,
) -> KnapsackGRPOTrainer:
    """The trainer that the arguments describe."""
    rewards: list[Any] = [load_reward(name) for name in script_args.reward_funcs or []]
    if script_args.reward_model_name_or_path is not None:
        rewards.insert(0, script_args.reward_model_name_or_path)
    name: Any = script_args.dataset_name  # the command has checked that there is one, and a model
    model: Any = model_args.model_name_or_path
    if dataset_args.datasets:  # as in `trl grpo`, it counts for more than dataset_name
        name, splits = "datasets", get_dataset(dataset_args)
    else:
        splits = load_splits(name, script_args.dataset_config, script_args.dataset_streaming)
    train_dataset = split_of(splits, name, script_args.dataset_train_split, "dataset_train_split")
    check_prompt_column(train_dataset.column_names, name)
    eval_dataset = None
    if training_args.eval_strategy != "no":
        eval_dataset = split_of(splits, name, script_args.dataset_test_split, "dataset_test_split")
    trust = getattr(training_args, "trust_remote_code", False) or getattr(model_args, "trust_remote_code", False)
    init_kwargs: Any = training_args.model_init_kwargs or {}  # text only before `__post_init__`
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "trust_remote_code": trust,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **init_kwargs,
    }
    return KnapsackGRPOTrainer(
        model=model,
        reward_funcs=rewards,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args) if is_peft_available() else None,
    )


def main() -> None:
    try:
        # The file may hold accelerate's options, too, which the command has read.
        with parsed_options():
            parsed = make_parser().parse_args_and_config(fail_with_unknown_args=False)
        trainer = make_trainer(*parsed)
    except KnapsackError as error:
        sys.exit(f"trl-knapsack train: {error}")
    script_args, training_args, *_ = parsed
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    trainer.accelerator.print(summary(trainer))
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.end()


def summary(trainer: KnapsackGRPOTrainer) -> str:
    """The closing lines."""
    args, history = trainer.args, trainer.state.log_history
    logs = [entry for entry in history if "knapsack/effective_gradient_ratio" in entry]
    rows: list[tuple[str, Any]] = [("allocation", args.allocation)]
    if logs:
        first, last = logs[0], logs[-1]
        for title, name in (
            ("success rate", "knapsack/success_rate"),
            ("effective gradient ratio", "knapsack/effective_gradient_ratio"),
        ):
            rows.append((title, f"{first[name]:.3f} at step {first['step']}, {last[name]:.3f} at step {last['step']}"))
        rows += closing_rows(args.allocation, logs, trainer.num_generations)
    evaluations = [entry for entry in history if "eval_reward" in entry]
    if evaluations:
        rows.append(
            (
                "evaluation reward",
                f"{evaluations[0]['eval_reward']:.3f} first, {evaluations[-1]['eval_reward']:.3f} last",
            )
        )
    rows.append(("outputs", args.output_dir))
    width = max(len(title) for title, _ in rows)
    return "\n".join(["", *(f"{title:<{width}}   {value}" for title, value in rows)])


if __name__ == "__main__":
    main()

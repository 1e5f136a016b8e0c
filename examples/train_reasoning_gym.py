# /// script
# dependencies = [
#     "trl-knapsack[reasoning-gym]",
# ]
# requires-python = ">=3.11"
#
# [tool.uv.sources]  # `uv run` takes the package from this clone: it is in no index yet
# trl-knapsack = { path = "..", editable = true }
# ///

r"""
Train a model on any mix of the hundred families of tasks in reasoning-gym (arXiv 2505.24760), which have verifiers.

    accelerate launch examples/train_reasoning_gym.py \
        --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct \
        --families "chain_sum {max_terms: 4}" gcd letter_counting "spell_backward {max_word_len: 6, weight: 0.5}" \
        --num_generations 8 --per_device_train_batch_size 16 --gradient_accumulation_steps 8 \
        --max_completion_length 512 --use_vllm --vllm_mode colocate --output_dir outputs/reasoning_gym

A family may be followed by difficulty options in braces, the fields of its configuration; a wrong one, or `"gcd {help: 1}"`, is
answered with those that there are. Needs `pip install -e ".[reasoning-gym]"`, and a C compiler for one of its dependencies. A few
of the verifiers evaluate what the model wrote, for example those of `simple_integration` and `puzzle24`: train on these in a
container.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from datasets import Dataset
from transformers.utils import is_peft_available
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.errors import install_command
from trl_knapsack.hub import parse_script_arguments


try:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS
    from reasoning_gym.utils import SYSTEM_PROMPTS, extract_answer
except ImportError:  # said in `main`, so that --help works without it
    reasoning_gym, DATASETS, SYSTEM_PROMPTS = None, {}, {}

DRAWS = 4  # a family is asked for so many times the problems that are needed, since some occur more than once


@dataclass
class ReasoningGymArguments:
    """
    Arguments of this script.

    Args:
        families (`list[str]`, *optional*):
            Families of tasks, each with difficulty options if need be: `gcd`, or `"gcd {max_value: 50}"`. `weight` among
            the options scales the number of its problems. A family may occur several times, with other options.
        num_problems (`int`, *optional*, defaults to `1000`):
            Training problems of each family. They are all different.
        num_eval_problems (`int`, *optional*, defaults to `0`):
            Held-out problems of each family, for `--eval_strategy`. None of them is among the training problems.
        system_prompt (`str`, *optional*, defaults to `"default"`):
            A text, or the name of one of reasoning-gym's: `"default"` asks for working and an answer between `<answer>`
            tags, `"direct"` for the answer alone.
        partial_credit (`bool`, *optional*, defaults to `False`):
            Whether the reward is the verifier's score, which may lie between 0 and 1. By default it is 1 for full marks
            and 0 for anything less.
        problem_seed (`int`, *optional*, defaults to `0`):
            Seed of the problems.
    """

    families: list[str] = field(
        default_factory=lambda: ["chain_sum", "gcd", "letter_counting", "simple_equations", "spell_backward"],
        metadata={
            "help": "Families of tasks, each with difficulty options if need be: gcd, or 'gcd {max_value: 50}'. "
            "'weight' among the options scales the number of its problems."
        },
    )
    num_problems: int = field(default=1000, metadata={"help": "Training problems of each family."})
    num_eval_problems: int = field(
        default=0, metadata={"help": "Held-out problems of each family, for --eval_strategy."}
    )
    system_prompt: str = field(
        default="default",
        metadata={"help": "A text, or the name of one of reasoning-gym's, for example 'default' or 'direct'."},
    )
    partial_credit: bool = field(
        default=False,
        metadata={"help": "Reward the verifier's score. By default the reward is 1 for full marks, else 0."},
    )
    problem_seed: int = field(default=0, metadata={"help": "Seed of the problems."})


class ReasoningGym:
    """
    Problems of some families, and the reward for answers to them.

    Args:
        families (`Sequence[str]`): As in [`ReasoningGymArguments`].
        system_prompt (`str`): First message of every prompt; none if it is empty.
        seed (`int`, *optional*, defaults to `0`): Of the problems.

    Raises:
        `SystemExit`: with one sentence, if reasoning-gym is missing, a family is unknown, or an option of it is wrong.
    """

    def __init__(self, families: Sequence[str], system_prompt: str, seed: int = 0):
        if reasoning_gym is None:
            sys.exit(
                f"The tasks are reasoning-gym's, which is not installed; run `{install_command('reasoning-gym')}`."
            )
        if len(set(families)) != len(families) or not families:
            sys.exit(
                f"families {list(families)} must name at least one, and none of them twice with the same options."
            )
        self.system_prompt = SYSTEM_PROMPTS.get(system_prompt, system_prompt)
        self.seed = seed
        self.families = {text: parse_family(text) for text in families}
        self._problems: dict[str, tuple[Any, dict]] = {}  # family's dataset and entry of each problem

    def split(self, *counts: int, families: Sequence[str] | None = None) -> list[list[dict]]:
        """
        Problems as rows of a dataset, all different: so many of each family for the first part, then for the second, ...

        Args:
            counts (`int`): Problems of each family in each part.
            families (`Sequence[str]`, *optional*): Only some of the families.

        Returns:
            `list[list[dict]]`: for each count rows with `prompt`, `family`, and `problem`, by which the reward knows it.
        """
        parts: list[list[dict]] = [[] for _ in counts]
        for text in families or self.families:
            name, options, weight = self.families[text]
            wanted = [round(count * weight) for count in counts]
            size = DRAWS * sum(wanted) + 1
            dataset = create(text, name, options, size, self.seed)
            seen, rows = set(), []
            for place in range(size):
                if len(rows) == sum(wanted):
                    break
                entry = dataset[place]
                if entry["question"] in seen:
                    continue
                seen.add(entry["question"])
                problem = f"{text}-{place}"
                self._problems[problem] = dataset, entry
                rows.append({"prompt": self.prompt(entry["question"]), "family": name, "problem": problem})
            if len(rows) < sum(wanted):
                sys.exit(
                    f"{text!r} has only {len(rows)} different problems in {size} draws, and {sum(wanted)} are wanted; ask "
                    "for fewer, or choose options with more variety."
                )
            for part, count in zip(parts, wanted, strict=True):
                part += rows[:count]
                rows = rows[count:]
        return parts

    def prompt(self, question: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": question}]

    def score(self, completion: str, problem: str) -> float:
        """
        The verifier's score from 0 to 1 of what stands between the last `<answer>` tags, or of all of the completion if it
        has none.
        """
        answer = extract_answer(completion)
        dataset, entry = self._problems[problem]
        try:
            return float(dataset.score_answer(completion.strip() if answer is None else answer, entry))
        except Exception:  # some verifiers raise on what they can't read
            return 0.0

    def answer(self, problem: str) -> str:
        """A right answer."""
        return self._problems[problem][1]["answer"]

    def reward(self, partial_credit: bool = False) -> Callable[..., list[float]]:
        """The reward function for the trainer."""

        def scores(completions: list, problem: list[str], **kwargs) -> list[float]:
            texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
            return [self.score(text, its) for text, its in zip(texts, problem, strict=True)]

        def solved(completions: list, problem: list[str], **kwargs) -> list[float]:
            return [float(score >= 1) for score in scores(completions, problem)]

        return scores if partial_credit else solved


def parse_family(text: str) -> tuple[str, dict[str, Any], float]:
    """`"gcd {max_value: 50, weight: 2}"` -> `("gcd", {"max_value": 50}, 2.0)`"""
    name, _, braces = text.partition(" ")
    if name not in DATASETS:
        sys.exit(f"families: {name!r} is no family of reasoning-gym; choose from {', '.join(sorted(DATASETS))}.")
    try:
        options = yaml.safe_load(braces) or {}
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        sys.exit(f"families: the options in {text!r} must stand in braces, for example 'gcd {{max_value: 50}}'.")
    weight = options.pop("weight", 1)
    if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        sys.exit(f"families: weight ({weight!r}) in {text!r} must be a positive number.")
    create(text, name, options, 1, 0)  # what is wrong is found here, and not after the model was loaded
    return name, options, float(weight)


def create(text: str, name: str, options: dict[str, Any], size: int, seed: int):
    """A dataset of reasoning-gym."""
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **options)
    except (AssertionError, TypeError, ValueError) as error:
        sys.exit(f"families: {text!r} is refused by reasoning-gym ({error}); its options are {describe(name)}.")


def describe(name: str) -> str:
    """The difficulty options of a family with their defaults."""
    config = DATASETS[name][1]()
    options = {option: value for option, value in vars(config).items() if option not in ("seed", "size")}
    return ", ".join(f"{option}={value!r}" for option, value in options.items()) or "none"


def main() -> None:
    gym_args, training_args, model_args = parse_script_arguments(
        (ReasoningGymArguments, KnapsackGRPOConfig, ModelConfig)
    )
    gym = ReasoningGym(gym_args.families, gym_args.system_prompt, gym_args.problem_seed)
    if model_args.model_name_or_path is None:
        sys.exit("Give a model with --model_name_or_path, for example Qwen/Qwen2.5-1.5B-Instruct.")
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }
    train, held_out = gym.split(gym_args.num_problems, gym_args.num_eval_problems)
    trainer = KnapsackGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=gym.reward(gym_args.partial_credit),
        args=training_args,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args) if is_peft_available() else None,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    trainer.save_state()
    if training_args.push_to_hub:
        trainer.push_to_hub()
    trainer.end()


if __name__ == "__main__":
    main()

"""Checks of the dataset and the options, before the model is loaded; what TRL checks itself is left to TRL."""

import math
import re
from collections.abc import Sequence
from typing import Any

from ..errors import InvalidInputError
from ..tracking.keys import check_prompt_column
from .config import KnapsackGRPOConfig


def check_train_dataset(dataset: Any, args: KnapsackGRPOConfig, has_environment: bool) -> None:
    """
    Refuse a dataset without prompts, without the column of ids, or with too few rows for one generation batch.

    Raises:
        `ValueError`: in one sentence.
    """
    columns = getattr(dataset, "column_names", None)  # None for a stream that does not know
    if not has_environment:
        check_prompt_column(columns, "train_dataset")
    if columns is not None and args.prompt_id_column is not None and args.prompt_id_column not in columns:
        raise InvalidInputError(
            f"prompt_id_column {args.prompt_id_column!r} is not a column of train_dataset, which has {columns}; "
            "name one of those, or leave it unset to key prompts by content."
        )
    if hasattr(dataset, "__len__"):
        needed = args.generation_batch_size // args.num_generations
        if len(dataset) < needed:
            raise InvalidInputError(
                f"train_dataset has {len(dataset)} prompts, but one generation batch needs {needed} "
                f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}); "
                "add prompts, or lower the batch size."
            )


def check_server_seed(args: KnapsackGRPOConfig) -> None:
    """
    With unequal groups each row is a request of its own, and a vLLM server answers equal requests equally.

    Raises:
        `ValueError`: if a seed would make all completions of a prompt the same.
    """
    kwargs: Any = args.generation_kwargs or {}  # text only before `__post_init__`
    seed = kwargs.get("seed")
    if seed is not None and args.use_vllm and args.vllm_mode == "server":
        raise InvalidInputError(
            f"generation_kwargs has a seed ({seed}), and vllm_mode is 'server': all completions of a prompt would be "
            "the same, because with unequal groups each is a request of its own; remove the seed, or set "
            "allocation='uniform'."
        )


def check_success_rule(args: KnapsackGRPOConfig, reward_func_names: list[str], has_success_func: bool) -> None:
    """
    Refuse two rules for what counts as a success, and one that names a reward function which is not there.

    Raises:
        `ValueError`: in one sentence.
    """
    name = args.success_reward_func
    if name is not None and has_success_func:
        raise InvalidInputError(
            f"Both success_func and success_reward_func ({name!r}) decide success; give one of them."
        )
    if name is not None and name not in reward_func_names:
        raise InvalidInputError(
            f"success_reward_func {name!r} must be one of the reward functions: {', '.join(reward_func_names)}."
        )


def likely_success_func(reward_func_names: Sequence[str]) -> str | None:
    """The reward function for correctness by its name, if there is exactly one that says so."""
    likely = [name for name in reward_func_names if re.search("correct|accura", name.lower())]
    return likely[0] if len(likely) == 1 else None


def why_nothing_moves(
    args: KnapsackGRPOConfig,
    prompts_per_batch: int,
    look: int,
    window: int,
    dataset_size: int | None,
    steps: int,
    anything_known: bool,
) -> str | None:
    """
    Why a run will give every prompt the same number of generations, though it was not asked to.

    Args:
        args ([`KnapsackGRPOConfig`]): Options of the run.
        prompts_per_batch (`int`): Prompts of a generation batch.
        look (`int`): Rollouts of a first look, 0 for none.
        window (`int`): Prompts that share a budget at least.
        dataset_size (`int` or `None`): Prompts of the dataset; `None` for a stream, of which nobody knows when it begins anew.
        steps (`int`): Optimizer steps of the run; negative for as many as `num_train_epochs` makes.
        anything_known (`bool`):
            Whether anything is known of a new prompt: there are success rates to begin with, columns, or a rule that knows
            otherwise.

    Returns:
        `str` or `None`: a sentence with the reason and what to do about it; `None` if rollouts can move.
    """
    generations = args.num_generations
    if args.allocation == "uniform":
        return None
    so = f"so every prompt gets {generations} generations, as in plain GRPO"
    for name, remedy in (("min_generations", "lower it"), ("max_generations", "raise it")):
        if getattr(args, name) == generations:
            return f"{name} ({generations}) is num_generations, {so}; {remedy}."
    if max(prompts_per_batch, window) == 1:
        return (
            f"A generation batch holds one prompt (generation_batch_size {args.generation_batch_size} / num_generations "
            f"{generations}), which shares its rollouts with no other, {so}; raise per_device_train_batch_size or "
            "gradient_accumulation_steps, or set allocation_window, for example to 64."
        )
    if dataset_size is None and steps <= 0:
        return None  # TRL says what is wrong
    # generation batches of an epoch; TRL's sampler leaves out what does not fill one
    epoch = math.inf if dataset_size is None else dataset_size // prompts_per_batch
    if steps > 0:
        batches = math.ceil(
            steps * args.gradient_accumulation_steps / (args.steps_per_generation * args.num_iterations)
        )
    else:
        batches = math.ceil(args.num_train_epochs * epoch)
    first = math.ceil(window / prompts_per_batch)  # batches until enough prompts are together
    if (look or first > 1) and batches <= first:
        return (
            f"The run ends before the first budgets are decided ({batches * prompts_per_batch} prompts, of which "
            f"{first * prompts_per_batch} are waited for), {so}; train for more steps, or lower allocation_window."
        )
    if anything_known or look or dataset_size is None or batches > epoch:
        return None
    return (
        f"The run ends within its first epoch ({batches * prompts_per_batch} prompts of {dataset_size}), and nothing is known "
        f"of a prompt before its first visit, {so}; set look_generations or difficulty_columns, give success_state_path "
        "(`trl-knapsack probe` makes one), or train for more epochs."
    )

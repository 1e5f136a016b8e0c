"""Evaluate a policy: sample completions, score them with a reward function, keep what became of every problem."""

import asyncio
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from ..tracking.keys import prompt_key
from .answers import AnswerFunc
from .results import EvaluationResults, ProblemResult
from .sampling import load_tokenizer, sample_completions


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def evaluate_policy(
    model: "str | PreTrainedModel",
    dataset: Iterable[Mapping[str, Any]],
    reward_func: Callable[..., list[float | None]],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    success_threshold: float = 0.5,
    answer_func: AnswerFunc | None = None,
    prompt_id_column: str | None = None,
    keep_completions: bool = False,
    **sampling,
) -> EvaluationResults:
    """
    Sample completions of every problem and score them as the trainer does. Completions are texts of one turn: tools and
    environments are not called, and a tokenizer's response template is not used. With one TRL takes completions apart
    (content, reasoning, tool calls) before the reward function sees them; here it sees the whole text.

    Args:
        model (`str` or `PreTrainedModel`):
            Name on the Hub, folder of a checkpoint (also one of a PEFT adapter), or a loaded model.
        dataset (`Dataset` or `Iterable[Mapping[str, Any]]`):
            Rows with a `prompt`, a text or a conversation, and the columns that the reward function takes.
        reward_func (`Callable`):
            A reward function for TRL, sync or async: called with `prompts`, `completions`, `completion_ids` and all
            other columns by name, returns a reward or `None` for each completion. One without a reward is not counted.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer; by default the one that lies with the model.
        success_threshold (`float`, *optional*, defaults to `0.5`):
            A completion succeeds if its reward is at least this.
        answer_func (`Callable[[Sequence[str]], list[str | None]]`, *optional*):
            What the completions of one problem vote for, for maj@k: [`math_answers`], [`exact_answers`] or your own.
            Without it there is no maj@k.
        prompt_id_column (`str`, *optional*):
            Column with the ids by which two runs are compared; by default a hash of the row's content.
        keep_completions (`bool`, *optional*, defaults to `False`):
            Whether the results keep the texts.
        **sampling:
            `num_generations`, `temperature`, `max_completion_length`, `seed`, `batch_size`, `use_vllm` and more, see
            [`sample_completions`].

    Returns:
        [`EvaluationResults`]: one [`ProblemResult`] per row, in the order of the dataset.

    Raises:
        `ValueError`: if a row has no prompt, two rows have one id, or the reward function returns another number of
            rewards than it got completions.

    Example:
        ```python
        results = evaluate_policy("outputs/run", test_set, accuracy_reward, answer_func=math_answers, num_generations=8)
        results.save("outputs/run/results.jsonl")
        for name, interval in results.summary().items():
            print(name, interval)
        ```
    """
    rows = [dict(row) for row in dataset]
    for number, row in enumerate(rows):
        if not row.get("prompt"):
            raise ValueError(f"Row {number} has no prompt, only {sorted(row)}; name the column of problems `prompt`.")
    keys = [prompt_key(row, prompt_id_column) for row in rows]
    EvaluationResults(ProblemResult(key, ()) for key in keys)  # two equal ids are told before hours of sampling
    tokenizer = tokenizer or load_tokenizer(model)
    prompts = [row["prompt"] for row in rows]
    completion_ids = sample_completions(model, prompts, tokenizer=tokenizer, **sampling)
    texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in completion_ids]
    rewards = _rewards(reward_func, rows, texts, completion_ids)

    problems = []
    for key, own_texts, own_rewards in zip(keys, texts, rewards, strict=True):
        answers = answer_func(own_texts) if answer_func is not None else [None] * len(own_texts)
        scored = [i for i, reward in enumerate(own_rewards) if reward is not None and not math.isnan(reward)]
        problems.append(
            ProblemResult(
                id=key,
                rewards=tuple(float(own_rewards[i]) for i in scored),
                answers=tuple(answers[i] for i in scored) if answer_func is not None else None,
                completions=tuple(own_texts[i] for i in scored) if keep_completions else None,
                threshold=success_threshold,
            )
        )
    return EvaluationResults(problems)


def _rewards(
    reward_func: Callable, rows: list[dict], texts: list[list[str]], completion_ids: list[list[list[int]]]
) -> list[list[float | None]]:
    """Rewards of all completions, from one call, with every row repeated once for each of its completions."""
    repeated = [row for row, own in zip(rows, texts, strict=True) for _ in own]
    columns = {name for row in rows for name in row} - {"prompt", "completion", "completion_ids"}
    completions = [
        text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
        for row, own in zip(rows, texts, strict=True)
        for text in own
    ]
    rewards = reward_func(
        prompts=[row["prompt"] for row in repeated],
        completions=completions,
        completion_ids=[ids for own in completion_ids for ids in own],
        **{name: [row.get(name) for row in repeated] for name in columns},
    )
    if inspect.iscoroutine(rewards):
        rewards = asyncio.run(rewards)
    rewards = list(rewards)
    if len(rewards) != len(completions):
        name = getattr(reward_func, "__name__", type(reward_func).__name__)
        raise ValueError(
            f"{name} returned {len(rewards)} rewards for {len(completions)} completions; it must return one for each, "
            "None where there is none."
        )
    remaining = iter(rewards)
    return [[next(remaining) for _ in own] for own in texts]

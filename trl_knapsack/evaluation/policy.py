"""Evaluate a policy: sample completions, score them with a reward function, keep the results of every problem."""

import asyncio
import hashlib
import inspect
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase, TrainerState

from ..errors import InvalidInputError
from ..tracking.keys import prompt_key
from .answers import AnswerFunc
from .results import EvaluationResults, ProblemResult
from .sampling import load_tokenizer, sample_completions


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


def evaluate_policy(
    model: "str | PreTrainedModel",
    dataset: "Dataset | Iterable[Mapping[str, Any]]",
    reward_func: Callable[..., list[float | None]],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    success_threshold: float = 0.5,
    answer_func: AnswerFunc | None = None,
    prompt_id_column: str | None = None,
    keep_completions: bool = False,
    completions_path: str | os.PathLike | None = None,
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
            A reward function for TRL, sync or async: called with `prompts`, `completions`, `completion_ids`, all
            other columns by name, and TRL's `trainer_state`, `log_extra` and `log_metric`: the state is that of a run at
            its end, and nothing is logged. Returns a reward or `None` for each completion. One without a reward is not
            counted.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer; by default the model's own.
        success_threshold (`float`, *optional*, defaults to `0.5`):
            A completion succeeds if its reward is at least this.
        answer_func (`Callable[[Sequence[str]], list[str | None]]`, *optional*):
            What the completions of one problem vote for, for maj@k: [`math_answers`], [`exact_answers`] or your own.
            Without it there is no maj@k.
        prompt_id_column (`str`, *optional*):
            Column with the ids by which two runs are compared; by default a hash of the row's content.
        keep_completions (`bool`, *optional*, defaults to `False`):
            Whether the results keep the texts.
        completions_path (`str` or `os.PathLike`, *optional*):
            JSON lines file in which the sampled token ids are kept before they are scored, so that a reward function
            that fails costs no sampling. The next call takes them from there, if model, prompts and sampling are the
            same; a folder whose files have changed is another model, and a loaded model is never taken for the same.
            Without it they are kept only if scoring fails, in a temporary file.
        **sampling:
            `num_generations`, `temperature`, `max_completion_length`, `seed`, `batch_size`, `use_vllm` and more, see
            [`sample_completions`].

    Returns:
        [`EvaluationResults`]: one [`ProblemResult`] per row, in the order of the dataset.

    Raises:
        `ValueError`: if a row has no prompt, two rows have one id, or the reward function returns another number of
            rewards than it got completions.
        What `reward_func` and `answer_func` raise gets the texts of the completions, a list for each problem, as an
        attribute `completions`, and a note that says in which file they are.

    Example:
        ```python
        results = evaluate_policy("outputs/run", test_set, accuracy_reward, answer_func=math_answers, num_generations=8)
        results.save("outputs/run/results.jsonl")
        for name, interval in results.summary().items():
            print(name, interval)
        ```
    """
    rows = [dict(row) for row in dataset]
    check_prompts(rows)
    keys = [prompt_key(row, prompt_id_column) for row in rows]
    EvaluationResults(ProblemResult(key, ()) for key in keys)  # duplicate ids are reported before hours of sampling
    tokenizer = tokenizer or load_tokenizer(model)
    prompts = [row["prompt"] for row in rows]
    source = _source(model, tokenizer, prompts, sampling)
    kept = None if completions_path is None else Path(completions_path)
    completion_ids = None if kept is None else _kept_completions(kept, source)
    if completion_ids is None:
        completion_ids = sample_completions(model, prompts, tokenizer=tokenizer, **sampling)
        if kept is not None:
            _keep_completions(kept, source, keys, completion_ids)
    texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in completion_ids]
    try:
        rewards = _rewards(reward_func, rows, texts, completion_ids)
        answers = [[None] * len(own) if answer_func is None else answer_func(own) for own in texts]
    except BaseException as error:  # Ctrl-C too, while a reward function hangs
        vars(error)["completions"] = texts
        error.add_note(_where_completions_are(kept, source, keys, completion_ids))
        raise

    problems = []
    for key, own_texts, own_rewards, own_answers, own_ids in zip(
        keys, texts, rewards, answers, completion_ids, strict=True
    ):
        scored = {i: float(r) for i, r in enumerate(own_rewards) if r is not None and not math.isnan(r)}
        problems.append(
            ProblemResult(
                id=key,
                rewards=tuple(scored.values()),
                answers=tuple(own_answers[i] for i in scored) if answer_func is not None else None,
                completions=tuple(own_texts[i] for i in scored) if keep_completions else None,
                threshold=success_threshold,
                tokens=sum(len(own_ids[i]) for i in scored),
            )
        )
    return EvaluationResults(problems)


def _where_completions_are(
    kept: Path | None, source: dict, keys: list[str], completion_ids: list[list[list[int]]]
) -> str:
    """
    A sentence that goes with an error after sampling. Completions that nobody asked to keep are written now, to a file for
    temporary ones: a library has no business writing them where all goes well, and a process that ends loses the rest.
    """
    number = sum(map(len, completion_ids))
    here = f"The {number:,} completions that were sampled are this error's attribute `completions`"
    if source["model"] is None:
        return f"{here}, a list of texts for each problem."
    try:
        if kept is None:
            handle, name = tempfile.mkstemp(prefix="completions-", suffix=".jsonl")
            os.close(handle)
            kept = Path(name)
            _keep_completions(kept, source, keys, completion_ids)
    except OSError as error:
        return f"{here}, and could not be written to a file ({error})."
    return f"{here}, and in {kept}: with completions_path={str(kept)!r} the next call takes them from there."


def check_prompts(rows: Iterable[Mapping[str, Any]]) -> None:
    """
    Refuse rows without a prompt.

    Raises:
        `ValueError`: naming the first such row.
    """
    for number, row in enumerate(rows):
        if not row.get("prompt"):
            raise InvalidInputError(
                f"Row {number} has no prompt, only {sorted(row)}; name the column of problems `prompt`."
            )


def model_files(model: Any) -> list[list] | None:
    """Name, size and time of each file in a model's folder; a run may have written another model there."""
    if not isinstance(model, str | Path) or not Path(model).is_dir():
        return None
    return sorted([f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in Path(model).iterdir() if f.is_file())


def _source(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: list, sampling: Mapping[str, Any]) -> dict:
    """What decides which completions are sampled, as the first line of the file that keeps them."""
    asked = json.dumps([prompts, getattr(tokenizer, "chat_template", None)], default=str, ensure_ascii=False)
    return {
        "model": str(model) if isinstance(model, str | Path) else None,
        "files": model_files(model),
        "prompts": hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        "sampling": {name: repr(value) for name, value in sorted(sampling.items()) if name != "progress"},
    }


def _kept_completions(path: Path, source: dict) -> list[list[list[int]]] | None:
    """Token ids that were kept for just this evaluation, if there are any."""
    if source["model"] is None or not path.is_file():
        return None
    with path.open(encoding="utf-8") as file:
        try:
            head, *lines = map(json.loads, file)
            return [line["completion_ids"] for line in lines] if head == source else None
        except (ValueError, KeyError, TypeError):
            return None  # another file, which is written anew


def _keep_completions(path: Path, source: dict, keys: list[str], completion_ids: list[list[list[int]]]) -> None:
    """Write the token ids, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(source) + "\n")
        for key, ids in zip(keys, completion_ids, strict=True):
            file.write(json.dumps({"id": key, "completion_ids": ids}) + "\n")
    os.replace(partial, path)


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
        **{
            **{name: [row.get(name) for row in repeated] for name in columns},
            "trainer_state": TrainerState(epoch=1.0, global_step=1, max_steps=1, num_train_epochs=1),
            "log_extra": lambda column, values: None,
            "log_metric": lambda name, value: None,
        },
    )
    if inspect.iscoroutine(rewards):
        rewards = asyncio.run(rewards)
    rewards = list(rewards)
    if len(rewards) != len(completions):
        name = getattr(reward_func, "__name__", type(reward_func).__name__)
        raise InvalidInputError(
            f"{name} returned {len(rewards)} rewards for {len(completions)} completions; it must return one for each, "
            "None where there is none."
        )
    remaining = iter(rewards)
    return [[next(remaining) for _ in own] for own in texts]

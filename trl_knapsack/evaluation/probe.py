"""A few completions of every prompt before training: success rates to begin with, in a file that a run takes."""

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import InvalidInputError
from ..tracking.keys import prompt_key
from ..tracking.text import printable
from .policy import check_prompts, evaluate_policy, model_files
from .results import EvaluationResults, problem_of_line
from .sampling import load_sampler, load_tokenizer


#: Completions that vLLM is given at a time; it makes its own batches, and idles at the end of each call.
_VLLM_CHUNK = 4096


@dataclass(frozen=True)
class Probe:
    """
    What a probe found, and what it cost. Made by [`probe_policy`].

    Attributes:
        results ([`EvaluationResults`]): Completions and successes of each prompt.
        rollouts (`int`): Completions sampled, those without a reward too.
        tokens (`int`): Their tokens.
        seconds (`float`): Time of sampling and scoring, without the loading of the model, over all sittings.
    """

    results: EvaluationResults
    rollouts: int
    tokens: int
    seconds: float

    def bill(self) -> str:
        """What it cost, in a sentence."""
        return (
            f"{len(self.results):,} prompts, {self.rollouts:,} rollouts, {self.tokens:,} completion tokens, "
            f"{self.seconds:,.1f} s"
        )


def probe_policy(
    model: str | os.PathLike,
    dataset: Iterable[Mapping[str, Any]],
    reward_func: Callable[..., list[float | None]],
    path: str | os.PathLike,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    success_threshold: float = 0.5,
    prompt_id_column: str | None = None,
    num_generations: int = 4,
    batch_size: int = 64,
    seed: int = 42,
    use_vllm: bool = False,
    vllm_kwargs: dict[str, Any] | None = None,
    progress: bool = True,
    **sampling,
) -> Probe:
    """
    Sample a few completions of every prompt, score them, and write how many succeeded: `path` is then a
    `success_state_path` for [`KnapsackGRPOConfig`], which finds its prompts there under the same keys.

    What is done is kept in `path` + `.partial` after each batch, so that a probe which was stopped, anywhere, goes on when it
    is called again, and ends in the same file as one that was not stopped.

    Args:
        model (`str` or `os.PathLike`): Name on the Hub, or folder of a checkpoint (with transformers also one of a PEFT
            adapter).
        dataset (`Dataset` or `Iterable[Mapping[str, Any]]`): As for [`evaluate_policy`]; of rows with one key the first.
        reward_func (`Callable`): As for [`evaluate_policy`].
        path (`str` or `os.PathLike`): The `.jsonl` file to write, as [`EvaluationResults.save`] does.
        tokenizer, success_threshold, prompt_id_column: As for [`evaluate_policy`].
        num_generations (`int`, *optional*, defaults to `4`): Completions of each prompt.
        batch_size, seed, use_vllm, vllm_kwargs, progress: As for [`sample_completions`].
        **sampling: `temperature`, `max_completion_length` and more, as for [`sample_completions`]. They should be those of
            the training.

    Returns:
        [`Probe`]: the results, and the bill.

    Raises:
        `ValueError`: if `path` is no `.jsonl` file or is there already, what was kept is of another probe, or as
            [`evaluate_policy`].
    """
    path, model = Path(path), os.fspath(model)
    if path.suffix != ".jsonl":
        raise InvalidInputError(f"{printable(str(path))} must end in .jsonl; a run knows the file's format by that.")
    kept = path.with_name(path.name + ".partial")
    if path.exists() and not kept.exists():
        raise InvalidInputError(
            f"{printable(str(path))} is there already; give it to a run as success_state_path, or write to another file."
        )
    rows: dict[str, dict[str, Any]] = {}
    for row in dataset:
        rows.setdefault(prompt_key(row, prompt_id_column), dict(row))
    keys = list(rows)
    check_prompts(rows.values())
    about = {
        "model": model,
        "files": model_files(model),
        "prompts": hashlib.blake2b("\0".join(keys).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        "reward_func": getattr(reward_func, "__name__", type(reward_func).__name__),
        "success_threshold": success_threshold,
        "num_generations": num_generations,
        "seed": seed,
        **sampling,
    }
    chunks = _begin(kept, about)
    done = sum(len(chunk["prompts"]) for chunk in chunks)
    at_a_time = max(1, (_VLLM_CHUNK if use_vllm else batch_size) // max(1, num_generations))
    tokenizer = tokenizer or load_tokenizer(model)
    sampler = None
    with tqdm(total=len(keys), initial=done, desc="probe", unit="prompt", disable=not progress) as bar:
        for start in range(done, len(keys), at_a_time):
            if sampler is None:
                sampler = load_sampler(model, use_vllm=use_vllm, vllm_kwargs=vllm_kwargs, seed=seed)
            began, bill = time.perf_counter(), {"rollouts": 0, "tokens": 0}
            results = evaluate_policy(
                sampler,
                [rows[key] for key in keys[start : start + at_a_time]],
                _counted(reward_func, bill),
                tokenizer=tokenizer,
                success_threshold=success_threshold,
                prompt_id_column=prompt_id_column,
                num_generations=num_generations,
                batch_size=batch_size,
                seed=seed + start,  # of the place in the dataset, so that a stop in between changes nothing
                use_vllm=use_vllm,
                progress=False,
                **sampling,
            )
            seconds = round(time.perf_counter() - began, 3)
            chunks.append({"prompts": [problem.as_line() for problem in results], **bill, "seconds": seconds})
            _append(kept, chunks[-1])
            bar.update(len(results))

    results = EvaluationResults(problem_of_line(line) for chunk in chunks for line in chunk["prompts"])
    results.save(path)
    kept.unlink()
    rollouts, tokens, seconds = (sum(chunk[name] for chunk in chunks) for name in ("rollouts", "tokens", "seconds"))
    return Probe(results, rollouts, tokens, seconds)


def _counted(reward_func: Callable, bill: dict[str, int]) -> Callable:
    """`reward_func`, which adds what it is given to the bill: also completions that get no reward were paid for."""

    @functools.wraps(reward_func)
    def counted(*, completion_ids: list[list[int]], **columns):
        bill["rollouts"] += len(completion_ids)
        bill["tokens"] += sum(map(len, completion_ids))
        return reward_func(completion_ids=completion_ids, **columns)

    return counted


def _begin(kept: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an earlier call has done of the same probe; a line that was cut short is taken out of the file."""
    about = json.loads(json.dumps(about, default=repr))
    end, whole = 0, []
    if kept.exists():
        with kept.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    end += len(line)
                    whole.append(line)
        os.truncate(kept, end)
    if not whole:
        kept.parent.mkdir(parents=True, exist_ok=True)
        _append(kept, about)
        return []
    shown = printable(str(kept))
    try:
        before, *chunks = map(json.loads, whole)
        before = dict(before)
        found = [problem_of_line(line) for chunk in chunks for line in chunk["prompts"]]
        EvaluationResults(found)  # two probes at once would have written some twice
        float(sum(chunk[name] for chunk in chunks for name in ("rollouts", "tokens", "seconds")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidInputError(
            f"{shown} can't be gone on with ({printable(str(error), 200)}); write to another file."
        ) from error
    for name in before | about:
        was, now = before.get(name), about.get(name)
        if was != now:
            what = f"the {name} of the dataset" if name == "prompts" else f"the {name} of the model"
            said = f"{name} was {was!r} and is {now!r} now"
            said = f"{what} have changed" if name in ("prompts", "files") else said
            raise InvalidInputError(
                f"{shown} is of another probe: {printable(said, 300)}; give what was given then, or write to another file."
            )
    return chunks


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """A whole line, to the disk."""
    with path.open("ab") as file:
        file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        file.flush()
        os.fsync(file.fileno())

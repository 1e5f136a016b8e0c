"""Several completions of every prompt, by transformers or by vLLM."""

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from ..errors import InvalidInputError, missing_extra


if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from vllm import LLM


Prompt = str | list[dict[str, Any]]


def sample_completions(
    model: "str | PreTrainedModel | LLM",
    prompts: Sequence[Prompt],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    num_generations: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_completion_length: int = 512,
    seed: int = 42,
    batch_size: int = 64,
    use_vllm: bool = False,
    vllm_kwargs: dict[str, Any] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    progress: bool = True,
) -> list[list[list[int]]]:
    """
    Sample completions as TRL does in training: plain prompts as they are, conversations through the chat template.

    Args:
        model (`str`, `PreTrainedModel` or `vllm.LLM`):
            Name on the Hub, folder of a checkpoint (also one of a PEFT adapter), or a loaded model; for vLLM its engine.
        prompts (`Sequence[str | list[dict]]` of length `P`):
            Plain texts or conversations.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer; by default the model's own.
        num_generations (`int`, *optional*, defaults to `8`):
            Completions of each prompt.
        temperature (`float`, *optional*, defaults to `1.0`):
            0 takes the most likely token each time, for which one completion is enough.
        top_p, top_k (*optional*, default to `1.0` and `0`):
            As in `GRPOConfig`: all tokens. The model's own generation config is not used, except for its end tokens.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Tokens at most.
        seed (`int`, *optional*, defaults to `42`):
            Seed. The same completions come back for the same batch size, software and machine.
        batch_size (`int`, *optional*, defaults to `64`):
            Completions at a time, with transformers. vLLM makes its own batches.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether vLLM generates.
        vllm_kwargs (`dict[str, Any]`, *optional*):
            Options for `vllm.LLM`, for example `{"tensor_parallel_size": 2}`.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Options for the chat template.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        `list[list[list[int]]]`: token ids, `num_generations` completions for each of the `P` prompts, the end token
        included as in TRL.

    Raises:
        `ValueError`: for options that exclude each other, or a model that can't be loaded.
        `ImportError`: if vLLM is asked for and missing.
    """
    if num_generations < 1:
        raise InvalidInputError(f"num_generations ({num_generations}) must be at least 1.")
    if temperature < 0:
        raise InvalidInputError(f"temperature ({temperature}) must be at least 0.")
    if temperature == 0 and num_generations > 1:
        raise InvalidInputError(
            f"With temperature 0 all {num_generations} completions of a prompt are identical; set num_generations to 1, "
            "or raise the temperature."
        )
    tokenizer = tokenizer or load_tokenizer(model)
    prompt_ids = [_prompt_ids(tokenizer, prompt, chat_template_kwargs or {}) for prompt in prompts]
    options = {
        "num_generations": num_generations,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "max_completion_length": max_completion_length,
        "seed": seed,
        "progress": progress,
    }
    sampler = load_sampler(model, use_vllm=use_vllm, vllm_kwargs=vllm_kwargs, seed=seed)
    if not use_vllm:
        return _with_transformers(sampler, tokenizer, prompt_ids, batch_size=batch_size, **options)
    completions = _with_vllm(sampler, prompt_ids, **options)
    if sampler is not model:
        del sampler
        gc.collect()  # stops the engine, so that its memory is free for the next model
    return completions


def load_sampler(
    model: "str | PreTrainedModel | LLM",
    *,
    use_vllm: bool = False,
    vllm_kwargs: dict[str, Any] | None = None,
    seed: int = 42,
) -> "PreTrainedModel | LLM":
    """
    What [`sample_completions`] samples from, loaded once for several calls; what is loaded already comes back as it is.

    Args:
        model, use_vllm, vllm_kwargs, seed: As for [`sample_completions`].

    Raises:
        `ValueError`: for options that exclude each other, or a model that vLLM does not take.
        `ImportError`: if vLLM is asked for and missing.
    """
    if use_vllm:
        return _load_engine(model, vllm_kwargs or {}, seed)
    if vllm_kwargs:
        raise InvalidInputError(
            f"vllm_kwargs ({vllm_kwargs}) have no effect without use_vllm; set it, or leave them out."
        )
    if not isinstance(model, str | Path):
        return model
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    return loaded.to(torch.accelerator.current_accelerator() or "cpu")


def load_tokenizer(model: "str | os.PathLike | PreTrainedModel") -> PreTrainedTokenizerBase:
    """
    The model's own tokenizer.

    Raises:
        `ValueError`: if the name is neither a folder with one nor a model on the Hub that can be reached.
    """
    name = model if isinstance(model, str | os.PathLike) else model.config._name_or_path
    try:
        return AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise InvalidInputError(f"No tokenizer of {name}: {' '.join(str(error).split())}") from error


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, chat_template_kwargs: dict[str, Any]) -> list[int]:
    encoded: Any
    if isinstance(prompt, str):
        encoded = tokenizer(text=prompt)
    else:
        encoded = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **chat_template_kwargs
        )
    return encoded["input_ids"]


def _end_tokens(tokenizer: PreTrainedTokenizerBase, config: GenerationConfig) -> list[int]:
    """A chat model's generation config may know more end tokens than its tokenizer."""
    known: Any = config.eos_token_id
    ends = [*(known if isinstance(known, list) else [known]), tokenizer.eos_token_id]
    return sorted({token for token in ends if token is not None})


@torch.no_grad()
def _with_transformers(
    model: Any,  # whose class transformers' types do not know to generate
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: list[list[int]],
    *,
    num_generations: int,
    temperature: float,
    top_p: float,
    top_k: int,
    max_completion_length: int,
    seed: int,
    batch_size: int,
    progress: bool,
) -> list[list[list[int]]]:
    ends = _end_tokens(tokenizer, model.generation_config)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0] if ends else 0
    sampling = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    config = GenerationConfig(
        max_new_tokens=max_completion_length,
        pad_token_id=pad,
        eos_token_id=ends or None,
        disable_compile=True,
        **sampling,
    )
    # [5, 3], two generations -> rows 5 5 3 3
    rows = [ids for ids in prompt_ids for _ in range(num_generations)]
    completions: list[list[int]] = []
    was_training, own_config = model.training, model.generation_config
    devices = [model.device.index or 0] if model.device.type == "cuda" else []
    bar = tqdm(total=len(rows), desc="completions", unit="completion", disable=not progress)
    try:
        model.eval()
        model.generation_config = config  # else `generate` fills in what the config leaves at its default
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                longest = max(map(len, batch))
                input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in batch])  # (B, L), left-padded
                mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch])  # (B, L)
                output = model.generate(
                    input_ids=input_ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    generation_config=config,
                )
                completions += [_until(ids, ends) for ids in output[:, longest:].tolist()]
                bar.update(len(batch))
    finally:
        bar.close()
        model.generation_config = own_config
        model.train(was_training)
    return [completions[i : i + num_generations] for i in range(0, len(rows), num_generations)]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    """Up to the first end token, without what is padded behind it."""
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]


def _load_engine(model: "str | PreTrainedModel | LLM", vllm_kwargs: dict[str, Any], seed: int) -> "LLM":
    if hasattr(model, "llm_engine"):
        return model
    if not isinstance(model, str | Path):
        raise InvalidInputError(
            "vLLM loads models itself; give the name or the folder of the model instead of the model."
        )
    if (Path(model) / "adapter_config.json").is_file():
        raise InvalidInputError(
            f"{model} is a PEFT adapter, and vLLM needs a whole model here; merge it with `merge_and_unload()` and save "
            "that, or leave use_vllm out."
        )
    try:
        from vllm import LLM
    except ImportError as error:
        raise missing_extra("use_vllm needs vLLM", "vllm") from error
    return LLM(model=str(model), seed=seed, **vllm_kwargs)


def _with_vllm(
    llm: "LLM",
    prompt_ids: list[list[int]],
    *,
    num_generations: int,
    temperature: float,
    top_p: float,
    top_k: int,
    max_completion_length: int,
    seed: int,
    progress: bool,
) -> list[list[list[int]]]:
    from vllm import SamplingParams

    sampling = SamplingParams(
        n=num_generations,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_completion_length,
        seed=seed,  # each of the n completions of a request gets a seed of its own
        detokenize=False,
    )
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompt_ids], sampling_params=sampling, use_tqdm=progress
    )
    return [[list(completion.token_ids) for completion in output.outputs] for output in outputs]

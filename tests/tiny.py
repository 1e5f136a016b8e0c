"""A policy of a few thousand parameters, prompts, and rewards: small enough for real training runs in tests."""

from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


ALPHABET = "0123456789ehmn"


def characters(vocabulary: dict[str, int]) -> Tokenizer:
    """A token for each character, and for each of the special tokens."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def save_model(path: Path) -> str:
    """Save a randomly initialised character-level model with its tokenizer; returns the folder."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *ALPHABET])}
    PreTrainedTokenizerFast(
        tokenizer_object=characters(vocabulary),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(path)
    return str(path)


SOLVE_RATES = {"e": "8/8", "m": "3/8", "h": "0/8"}


def prompts(count: int = 32, kinds: str = "ehmm", solve_rates: bool = False) -> Dataset:
    """
    Easy (always rewarded), hard (never), and medium prompts (sometimes), each with a digit and a name, and with solve rates
    as another model may have found them.
    """
    kinds = (kinds * count)[:count]
    columns = {
        "prompt": [f"{kind}{i // 10}{i % 10}" for i, kind in enumerate(kinds)],
        "name": [f"prompt {i}" for i in range(count)],
    }
    if solve_rates:
        columns["about"] = [{"solved": SOLVE_RATES[kind]} for kind in kinds]
    return Dataset.from_dict(columns)


def digit_reward(prompts, completions, **kwargs):
    """1 if the completion holds the prompt's last digit; easy prompts always succeed, hard ones never."""
    return [
        {"e": 1.0, "h": 0.0}.get(prompt[0], float(prompt[-1] in completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def graded_reward(prompts, completions, **kwargs):
    """Share of digits in the completion, None for a completion that starts with an odd digit."""
    return [
        None if completion[:1] in tuple("13579") else sum(c.isdigit() for c in completion) / 8
        for completion in completions
    ]

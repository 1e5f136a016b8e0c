"""A chat tokenizer whose model calls a tool by `!` and a digit, and a vision-language model of a few thousand weights."""

from pathlib import Path

import numpy as np
import tiny
import torch
from datasets import Dataset
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)


SPECIAL = ["<pad>", "<eos>", "<unk>", "<u>", "<a>", "<t>", "<image>"]
VOCABULARY = {token: i for i, token in enumerate([*SPECIAL, *tiny.ALPHABET, "!"])}
CALL, IMAGE = VOCABULARY["!"], VOCABULARY["<image>"]

# [{"role": "user", "content": "m07"}] -> "<u>m07<a>"
CHAT_TEMPLATE = """
{%- for message in messages %}{{ {"user": "<u>", "assistant": "<a>", "tool": "<t>"}[message.role] }}
{%- if message.content is string %}{{ message.content }}{% else %}
{%- for part in message.content %}{{ "<image>" if part.type == "image" else part.text }}{% endfor %}{% endif %}
{%- for call in message.tool_calls or [] %}!{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}
{%- if message.role == "assistant" %}<eos>{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"""

# "12!7" -> {"content": "12", "tool_calls": [look(digit="7")]}
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<a>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"!(?P<digit>[0-9])",
            "close_pattern": r"",
            "repeats": True,
            "content": "text",
            "transform": {"type": "function", "function": {"name": "look", "arguments": {"digit": "{digit}"}}},
        },
        "content": {"close_pattern": r"<eos>|$", "content": "text"},
    },
}


def text_config(**changes) -> Qwen2Config:
    return Qwen2Config(
        **{
            "vocab_size": len(VOCABULARY),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": None,
            "initializer_range": 0.3,  # large, so that the greedy completions of different prompts differ
            **changes,
        }
    )


def tokenizer() -> PreTrainedTokenizerFast:
    result = PreTrainedTokenizerFast(
        tokenizer_object=tiny.characters(VOCABULARY),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=SPECIAL[3:],
    )
    result.chat_template = CHAT_TEMPLATE
    result.response_template = RESPONSE_TEMPLATE
    return result


def save_model(path: Path, **changes) -> str:
    """Save a language model that now and then calls the tool; returns the folder."""
    tokenizer().save_pretrained(path)
    torch.manual_seed(0)
    Qwen2ForCausalLM(text_config(**changes)).save_pretrained(path)
    return str(path)


def save_reward_model(path: Path) -> str:
    tokenizer().save_pretrained(path)
    torch.manual_seed(1)
    Qwen2ForSequenceClassification(text_config(num_labels=1)).save_pretrained(path)
    return str(path)


def save_vlm(path: Path) -> str:
    """Save a vision-language model for images of 8 x 8 pixels, four tokens each; returns the folder."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=8,
        patch_size=4,
        initializer_range=0.3,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text_config(), image_token_index=IMAGE, tie_word_embeddings=False
    )
    model = LlavaForConditionalGeneration(config)
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        torch.nn.init.normal_(layer.weight, std=0.5)  # large too, for images
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(path)
    pixels = LlavaImageProcessorPil(
        do_resize=False, do_center_crop=False, do_normalize=False, do_pad=False, do_convert_rgb=True
    )
    LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(path)
    return str(path)


def prompts(count: int = 8, kinds: str = "ehmm", **columns) -> Dataset:
    """The prompts of `tiny`, as conversations."""
    rows = tiny.prompts(count, kinds)
    conversations = [[{"role": "user", "content": prompt}] for prompt in rows["prompt"]]
    return Dataset.from_dict({"prompt": conversations, "name": rows["name"], **columns})


def image(seed: int) -> Image.Image:
    """Four blocks of one colour each, so that the greedy completions of different images differ."""
    blocks = np.random.default_rng(seed).integers(0, 2, (2, 2, 3), dtype=np.uint8) * 255
    return Image.fromarray(blocks.repeat(4, axis=0).repeat(4, axis=1))

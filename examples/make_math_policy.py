"""
Make the small policy and the math problems that `train_math.py` runs on when it is given no arguments.

    python examples/make_math_policy.py --output_dir examples

writes `math_problems/` (train and test as JSON lines) and `math_policy/` (a Qwen2 model of one million parameters with
its tokenizer), from nothing but a seed, in six to eight minutes of one CPU core.

The policy has to look like a language model late in GRPO: most prompts solved, the rest hard, and the right procedure
present but improbable. Supervised warm-up therefore has two lessons. The *careful* lesson teaches the right answers to
all kinds of problems. The *careless* lesson, a short one, goes on with a teacher who makes a school child's mistakes:
forgets carries, borrows and parentheses, adds before multiplying. How often is set per kind (`carelessness` below), so
the probability that the policy leaves to right answers is graded by construction. Careless answers exist in this script
only: every `solution` in the data set is right.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer


# --- Problems: every kind draws operands and answers either carefully or carelessly -----------------------------------

Draw = Callable[[int, int], int]  # an integer between two bounds, both included
Forget = Callable[[], bool]  # whether the teacher forgets this time; never, for a careful one


def add(*numbers: int, forget: Forget) -> int:
    """Column addition that loses each carry for which `forget()` is true: 37 + 58 = 95, or 85 without the carry."""
    total, carry, place = 0, 0, 1
    while place <= max(numbers):
        column = sum(number // place % 10 for number in numbers) + carry
        last = place * 10 > max(numbers)  # the leading digits have nowhere to be carried to: they are written down
        carry = 0 if column >= 10 and not last and forget() else column // 10
        total, place = total + column % 10 * place, place * 10
    return total + carry * place


def subtract(a: int, b: int, forget: Forget) -> int:
    """Column subtraction, a >= b, that takes the smaller digit from the larger if `forget()`: 52 - 37 = 15, or 25."""
    total, borrow = 0, 0
    for place in (1, 10, 100):
        column = a // place % 10 - b // place % 10 - borrow
        if column < 0 and forget():
            total, borrow = total - column * place, 0
        else:
            total, borrow = total + column % 10 * place, int(column < 0)
    return total


def multiply(a: int, b: int, forget: Forget) -> int:
    """Column product by a one-digit b that loses each carry for which `forget()` is true: 27 * 6 = 162, or 122."""
    total, carry = 0, 0
    for place in (1, 10):
        column = a // place % 10 * b + carry
        carry = 0 if column >= 10 and place == 1 and forget() else column // 10
        total += column % 10 * place
    return total + carry * 100


def _table(draw: Draw, forget: Forget) -> tuple[str, int]:
    a, b = draw(0, 9), draw(0, 9)
    return f"{a}*{b}=", a * b


def _add2(draw: Draw, forget: Forget) -> tuple[str, int]:
    a, b = draw(1, 99), draw(1, 99)
    return f"{a}+{b}=", add(a, b, forget=forget)


def _sub2(draw: Draw, forget: Forget) -> tuple[str, int]:
    b, a = sorted((draw(1, 99), draw(1, 99)))
    return f"{a}-{b}=", subtract(a, b, forget=forget)


def _mul2(draw: Draw, forget: Forget) -> tuple[str, int]:
    a, b = draw(10, 99), draw(2, 9)
    return f"{a}*{b}=", multiply(a, b, forget=forget)


def _add3(draw: Draw, forget: Forget) -> tuple[str, int]:
    a, b = draw(100, 999), draw(100, 999)
    return f"{a}+{b}=", add(a, b, forget=forget)


def _sub3(draw: Draw, forget: Forget) -> tuple[str, int]:
    b, a = sorted((draw(100, 999), draw(100, 999)))
    return f"{a}-{b}=", subtract(a, b, forget=forget)


def _sum3(draw: Draw, forget: Forget) -> tuple[str, int]:
    a, b, c = draw(10, 99), draw(1, 9), draw(1, 9)
    return f"{a}+{b}+{c}=", add(a, b, c, forget=forget)


def _mixed(draw: Draw, forget: Forget) -> tuple[str, int]:
    a, b, c = draw(1, 30), draw(2, 9), draw(2, 9)
    return f"{a}+{b}*{c}=", (a + b) * c if forget() else a + b * c


def _paren(draw: Draw, forget: Forget) -> tuple[str, int]:
    a, b, c = draw(2, 9), draw(1, 9), draw(1, 9)
    return f"{a}*({b}+{c})=", a * b + c if forget() else a * (b + c)


def _product(draw: Draw, forget: Forget) -> tuple[str, int]:
    a, b = draw(11, 99), draw(11, 99)
    return f"{a}*{b}=", a * b


@dataclass(frozen=True)
class Kind:
    """One family of problems."""

    make: Callable[[Draw, Forget], tuple[str, int]]  # one problem: its prompt, and an answer to it
    warm_up: int  # weight in the warm-up mixture
    carelessness: float  # how often the careless teacher forgets
    train: int  # problems in the train split
    test: int  # problems in the test split


KINDS = {
    "table": Kind(_table, warm_up=3, carelessness=0.0, train=80, test=0),  # too few problems to hold any out
    "add2": Kind(_add2, warm_up=16, carelessness=0.0, train=330, test=80),
    "sub2": Kind(_sub2, warm_up=14, carelessness=0.0, train=330, test=80),
    "mul2": Kind(_mul2, warm_up=4, carelessness=0.2, train=60, test=30),
    "add3": Kind(_add3, warm_up=18, carelessness=0.8, train=130, test=90),
    "sub3": Kind(_sub3, warm_up=18, carelessness=0.82, train=130, test=90),
    "sum3": Kind(_sum3, warm_up=9, carelessness=0.75, train=60, test=40),
    "mixed": Kind(_mixed, warm_up=10, carelessness=0.75, train=70, test=40),
    "paren": Kind(_paren, warm_up=9, carelessness=0.78, train=70, test=40),
    "product": Kind(_product, warm_up=0, carelessness=0.0, train=20, test=10),  # never taught: beyond this policy
}


def make_problems(seed: int) -> dict[str, list[dict[str, str]]]:
    """The train and test splits: right answers only, and no prompt twice, neither within a split nor across them."""
    rng = random.Random(seed)
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    seen: set[str] = set()
    for name, kind in KINDS.items():
        for split, count in (("train", kind.train), ("test", kind.test)):
            for number in range(count):
                while (problem := kind.make(rng.randint, lambda: False))[0] in seen:
                    pass
                prompt, answer = problem
                seen.add(prompt)
                row = {"id": f"{split}-{name}-{number:03d}", "kind": name, "prompt": prompt, "solution": str(answer)}
                splits[split].append(row)
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


def warm_up_batches(
    batch_size: int, steps: int, careless_from: int, reserved: set[str], seed: int
) -> Iterator[list[tuple[str, str]]]:
    """Fresh (prompt, answer) pairs for each step, none of them reserved; the careless lesson begins at its step."""
    rng = random.Random(seed)
    kinds, weights = list(KINDS.values()), [kind.warm_up for kind in KINDS.values()]
    for step in range(steps):
        batch = []
        while len(batch) < batch_size:
            kind = rng.choices(kinds, weights)[0]
            carelessness = kind.carelessness if step >= careless_from else 0.0
            prompt, answer = kind.make(rng.randint, lambda rate=carelessness: rng.random() < rate)
            if prompt not in reserved:
                batch.append((prompt, str(answer)))
        yield batch


# --- Policy -----------------------------------------------------------------------------------------------------------


ALPHABET = "0123456789+-*()="


def make_tokenizer(alphabet: str = ALPHABET) -> Qwen2Tokenizer:
    """One token per character: a byte-level BPE without merges. `AutoTokenizer` gives this class to any Qwen2 model."""
    vocab = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<eos>",  # as Qwen has it; other characters are dropped
        padding_side="left",
        model_max_length=64,
    )


def make_model(
    tokenizer: Qwen2Tokenizer, seed: int, heads: int = 4, intermediate_size: int = 512, layers: int = 4
) -> Qwen2ForCausalLM:
    """An untrained Qwen2, by default of 1.06 million parameters; heads of 32, which vLLM's kernels support too."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32 * heads,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=64,
        rope_theta=1000.0,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def encode(tokenizer: Qwen2Tokenizer, pairs: list[tuple[str, str]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Left-padded (B, L) model inputs of prompt + answer + EOS, and labels that are -100 except on answer and EOS."""
    texts = [prompt + answer + tokenizer.eos_token for prompt, answer in pairs]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    position = torch.arange(batch["input_ids"].shape[1])  # (L,)
    answer_length = torch.tensor([len(answer) + 1 for _, answer in pairs])  # (B,)
    in_answer = position >= len(position) - answer_length[:, None]  # (B, L)
    return dict(batch), batch["input_ids"].masked_fill(~in_answer, -100)


@torch.no_grad()
def success_rates(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, rows: list[dict[str, str]]) -> list[float]:
    """Each problem's chance that one completion sampled at temperature 1 is exactly its solution and then ends.

    Nothing is sampled: there is one right completion, and its probability is the product over its tokens and EOS.
    """
    rates = []
    for start in range(0, len(rows), 256):
        inputs, labels = encode(tokenizer, [(row["prompt"], row["solution"]) for row in rows[start : start + 256]])
        log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)  # (B, L-1, V)
        targets = labels[:, 1:]  # (B, L-1)
        picked = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        rates += picked.masked_fill(targets == -100, 0.0).sum(-1).exp().tolist()
    return rates


def warm_up(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, batches: Iterator, steps: int, learning_rate: float
) -> None:
    """Supervised training on answers and EOS: Muon for the matrices, AdamW for the rest, linear warm-up and decay."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    model.train()
    progress = tqdm(batches, total=steps, desc="Warm-up")
    for step, pairs in enumerate(progress):
        inputs, labels = encode(tokenizer, pairs)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate * min(1.0, 20 * (step + 1) / steps) * (1 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


# --- Cards and files --------------------------------------------------------------------------------------------------

# No `configs` in this card: with them, `load_dataset` of a local folder returns its cached copy when the files change.
PROBLEMS_CARD = """\
---
license: apache-2.0
task_categories: [text-generation]
---

# Math problems

Arithmetic of graded difficulty for `examples/train_math.py`, written by `examples/make_math_policy.py`. They are
generated, not collected: the columns are those of the usual math datasets, and the problems are what a policy of a million
parameters can learn on a CPU.

| column | example |
| --- | --- |
| `id` | `train-add3-007` |
| `kind` | `add3` |
| `prompt` | `{prompt}` |
| `solution` | `{solution}` |

There are {train} training and {test} test problems. No prompt occurs twice, and every `solution` is correct. `table` has too few
problems to hold any out, so it is in the train split only.

```python
from datasets import load_dataset

problems = load_dataset("examples/math_problems")
```
"""

POLICY_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Math policy

A Qwen2 model of {parameters:,} parameters that answers short arithmetic prompts such as `37+58=`, one token per
character. `examples/make_math_policy.py` trained it from scratch, from a seed; it is the policy that
`examples/train_math.py` starts from when no other is named. It knows no language, and is useful only for
trying out reinforcement learning on a CPU.

## Its mistakes are deliberate

Late in a real run, GRPO meets prompts that are solved and prompts that are hard, where the right procedure is within the
policy's reach but improbable. A small model trained on correct answers alone does not look like that, so its warm-up had
two lessons: correct answers to everything and then, for the last steps, the answers of a careless teacher, who forgets carries
(`add3`, `sum3`, `mul2`) and borrows (`sub3`), adds before multiplying (`mixed`) and overlooks parentheses (`paren`). The
policy therefore knows the right procedures but rarely uses them. `product` was never taught and stays near zero. What
GRPO gains here is mostly the correction of a habit, on held-out problems too; how much it gains on a real model is
another question. Neither lesson contained a problem of the train or test split, except for the one-digit `table`.

## Success rates

The chance that one completion at temperature 1 is exactly the solution, exact for each problem (the probability of
the solution's tokens and of EOS):

{table}
"""


def rate_table(splits: dict[str, list[dict[str, str]]], rates: dict[str, list[float]]) -> str:
    """A Markdown table with the distribution of success rates per kind and split."""
    edges = {"below 0.01": (0.0, 0.01), "to 0.15": (0.01, 0.15), "to 0.85": (0.15, 0.85), "above": (0.85, 1.1)}
    lines = [f"| split | kind | problems | mean | {' | '.join(edges)} |", "|" + " --- |" * (len(edges) + 4)]
    for split, rows in splits.items():
        for kind in [*KINDS, "all"]:
            values = [rate for row, rate in zip(rows, rates[split], strict=True) if kind in (row["kind"], "all")]
            if values:
                counts = [sum(low <= value < high for value in values) for low, high in edges.values()]
                mean = sum(values) / len(values)
                lines.append(f"| {split} | {kind} | {len(values)} | {mean:.2f} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def write_problems(folder: Path, splits: dict[str, list[dict[str, str]]]) -> None:
    """One JSON line per problem and a card, as `datasets.load_dataset(folder)` expects them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    example = next(row for row in splits["train"] if row["id"] == "train-add3-007")
    counts = {split: len(rows) for split, rows in splits.items()}
    (folder / "README.md").write_text(PROBLEMS_CARD.format(**counts, **example), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="where math_problems/ and math_policy/ go")
    parser.add_argument("--steps", type=int, default=1800, help="warm-up steps, both lessons together")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=5e-3)
    parser.add_argument("--careless_share", type=float, default=0.15, help="share of the steps in the second lesson")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    splits = make_problems(args.seed)
    write_problems(args.output_dir / "math_problems", splits)

    tokenizer = make_tokenizer()
    model = make_model(tokenizer, args.seed)
    careless_from = round(args.steps * (1 - args.careless_share))
    reserved = {row["prompt"] for rows in splits.values() for row in rows if row["kind"] != "table"}
    batches = warm_up_batches(args.batch_size, args.steps, careless_from, reserved, args.seed + 1)
    warm_up(model, tokenizer, batches, args.steps, args.learning_rate)

    folder = args.output_dir / "math_policy"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    table = rate_table(splits, {split: success_rates(model, tokenizer, rows) for split, rows in splits.items()})
    (folder / "README.md").write_text(
        POLICY_CARD.format(parameters=model.num_parameters(), table=table), encoding="utf-8"
    )
    print(table)


if __name__ == "__main__":
    main()

"""Runs with a chat model, in which everything that the reward functions saw is kept and compared row by row."""

import random

import oracle
import pytest
import tiny_chat
from datasets import Dataset, Image
from runs import Records, options

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


class Watched(KnapsackGRPOTrainer):
    """Keeps what comes back of every generation batch."""

    def __init__(self, *args, **kwargs):
        self.outputs, self.rewards = [], []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs):
        self.outputs.append(super()._generate_and_score_completions(inputs))
        return dict(self.outputs[-1])

    def _calculate_rewards(self, *args):
        rewards = super()._calculate_rewards(*args)
        self.rewards.append([[None if r != r else r for r in row] for row in rewards.tolist()])
        return rewards


class Spy:
    """A reward function that keeps what it sees: easy prompts always succeed, hard ones never, of the others half do."""

    def __init__(self):
        self.calls, self.coin = [], random.Random(0)
        self.__name__ = "spy"

    def __call__(self, **seen):
        self.calls.append(seen)
        return [
            {"e": 1.0, "h": 0.0}.get(text(prompt)[0], float(self.coin.random() < 0.5)) for prompt in seen["prompts"]
        ]


def text(prompt):
    """[{"role": "user", "content": "m07"}] -> "m07", and so for a string and for content in blocks."""
    if isinstance(prompt, str):
        return prompt
    content = prompt[0]["content"]
    return content if isinstance(content, str) else "".join(b["text"] for b in content if b["type"] == "text")


def config(tmp_path, **changes):
    """Eight prompts: all of them in every generation batch, so that groups are unequal from the second one."""
    changes = {"max_steps": 3, "look_generations": 0, "allocation_window": 1, **changes}
    return KnapsackGRPOConfig(**options(tmp_path, prompt_id_column="name", **changes))


def run(model, args, *, rewards, dataset, trainer_class=Watched, **kwargs):
    """Train, and return the trainer with `.records`, `.outputs` and `.rewards` of every generation batch."""
    records = Records()
    trainer = records.trainer = trainer_class(
        model=model, reward_funcs=rewards, args=args, train_dataset=dataset, callbacks=[records], **kwargs
    )
    trainer.train()
    trainer.records = records.records
    return trainer


def unpadded(ids, mask):
    return [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]


def assert_rows(trainer, spy, dataset, tokenizer, weights=(1.0,), prompt_text=text):
    """
    Row by row: the prompt that was planned, its columns, what was generated for it, and its advantage.

    Returns the names of the rows, per generation batch.
    """
    of_name = {row["name"]: row for row in dataset}
    names = []
    for record, output, rewards, seen in zip(
        trainer.records, trainer.outputs, trainer.rewards, spy.calls, strict=True
    ):
        counts = record.allocation.counts.tolist()
        names.append([name for name, count in zip(record.keys, counts, strict=True) for _ in range(count)])
        assert len(names[-1]) == 32
        assert seen["name"] == names[-1]
        wanted = [text(of_name[name]["prompt"]) for name in names[-1]]
        assert [prompt_text(prompt) for prompt in seen["prompts"]] == wanted
        prompts = tokenizer.batch_decode(unpadded(output["prompt_ids"], output["prompt_mask"]))
        assert all(text in prompt for text, prompt in zip(wanted, prompts, strict=True))
        assert unpadded(output["completion_ids"], output["completion_mask"]) == seen["completion_ids"]
        advantages = oracle.advantages(rewards, counts, weights, "group", "sum_then_normalize")
        assert output["advantages"].tolist() == pytest.approx(advantages, rel=1e-3, abs=1e-3)
    assert all(len(set(record.allocation.counts)) > 1 for record in trainer.records[1:])
    assert len(trainer.records) == trainer.state.global_step >= 3
    return names


def greedy(model, inputs, length=6):
    """The completion of one prompt alone, without any batch or trainer."""
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    output = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    return output[0, inputs["input_ids"].size(1) :].tolist()


class Tool:
    """Answers `look` with the number of the question, and keeps the questions."""

    def __init__(self):
        self.asked = []

    def answer(self, digit):
        self.asked.append(digit)
        return f"{len(self.asked) - 1:03d}"

    def look(self, digit: str) -> str:
        """
        Look a digit up.

        Args:
            digit: What to look up.
        """
        return self.answer(digit)


def assert_answers(trainer, spy, tool, tokenizer):
    """Every answer of the tool is in the row that asked for it, in its messages and in its tokens."""
    answers = 0
    for seen, output in zip(spy.calls, trainer.outputs, strict=True):
        for messages, ids, mask in zip(seen["completions"], seen["completion_ids"], output["tool_mask"], strict=True):
            outside = [token for token, ours in zip(ids, mask.tolist(), strict=False) if not ours]
            expected = ""  # what the model did not write: <t>000<t>001<a>
            for message in messages:
                if message["role"] == "assistant":
                    expected += "<a>" if message is not messages[0] else ""
                    calls = [call["function"]["arguments"]["digit"] for call in message.get("tool_calls") or []]
                else:
                    expected += f"<t>{message['content']}"
                    assert tool.asked[int(message["content"])] == calls.pop(0)
                    answers += 1
            assert tokenizer.decode(outside).removesuffix("<a>") == expected.removesuffix("<a>")
    assert answers >= 8
    assert trainer.state.log_history[0]["tools/call_frequency"] > 0


def same_text_other_images(column):
    """All prompts of a kind have the same text: only the images tell them apart. In a column of lists some have two."""
    images = [[tiny_chat.image(row), *([tiny_chat.image(row + 100)] if row % 3 == 0 else [])] for row in range(8)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"{kind}00"}] for kind in "ehmmehmm"],
            "name": [f"prompt {row}" for row in range(8)],
            column: [several[0] if column == "image" else several for several in images],
        }
    ).cast_column(column, Image() if column == "image" else [Image()])

"""
Every way in which TRL generates and scores, run for real with unequal groups.

Each test would fail if rows were mixed up: what the reward functions saw, what the loss gets, and the advantages are
compared row by row with the dataset and with plain Python.
"""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_chat
import torch
from backends import (
    Spy,
    Tool,
    Watched,
    assert_answers,
    assert_rows,
    config,
    greedy,
    run,
    same_text_other_images,
    text,
)
from runs import Gradients, assert_same_run, options
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return tiny_chat.save_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return tiny_chat.save_vlm(tmp_path_factory.mktemp("vlm"))


# ------------------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize(
    "backend",
    [
        {},
        {
            "use_transformers_continuous_batching": True,
            # half of the memory otherwise, filled with zeros in every step
            "transformers_continuous_batching_config": {"num_blocks": 16, "max_batch_tokens": 64},
        },
    ],
    ids=["generate", "continuous batching"],
)
def test_every_completion_is_that_of_its_prompt(chat_model, tmp_path, backend):
    """With greedy decoding and a learning rate of 0, the completion of a row is known from its prompt alone."""
    dataset, spy = tiny_chat.prompts(), Spy()
    args = config(tmp_path, top_k=1, learning_rate=0.0, **backend)
    trainer = run(chat_model, args, rewards=spy, dataset=dataset)

    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    names = assert_rows(trainer, spy, dataset, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(chat_model)
    expected = {
        row["name"]: greedy(
            model,
            tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            ),
        )
        for row in dataset
    }
    assert len({tuple(ids) for ids in expected.values()}) >= 6
    for seen, rows in zip(spy.calls, names, strict=True):
        assert seen["completion_ids"] == [expected[name] for name in rows]


def test_rollout_func(chat_model, tmp_path):
    """Extra fields, log-probabilities and the mask of what the environment said stay with their rows."""
    dataset, spy = tiny_chat.prompts(), Spy()
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    serial = iter(range(10**6))

    def rollout(prompts, trainer):
        prompt_ids, completion_ids, numbers = [], [], []
        for prompt in prompts:
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            number = next(serial)
            prompt_ids.append(ids)
            completion_ids.append([*ids[1:4], *tokenizer(f"{number}")["input_ids"], 1])  # the prompt, and a number
            numbers.append(number)
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "logprobs": [[-float(number)] * len(ids) for number, ids in zip(numbers, completion_ids, strict=True)],
            "env_mask": [[0, 0, 0] + [1] * (len(ids) - 3) for ids in completion_ids],
            "number": numbers,
        }

    trainer = run(chat_model, config(tmp_path), rewards=spy, dataset=dataset, rollout_func=rollout)
    assert_rows(trainer, spy, dataset, tokenizer)
    for seen, output in zip(spy.calls, trainer.outputs, strict=True):
        completions = [completion[0]["content"] for completion in seen["completions"]]
        prompts = [text(prompt) for prompt in seen["prompts"]]
        assert completions == [f"{prompt}{n}" for prompt, n in zip(prompts, seen["number"], strict=True)]
        assert (-output["sampling_per_token_logps"][:, 0]).tolist() == seen["number"]
        lengths = [len(ids) for ids in seen["completion_ids"]]
        assert [mask[:n].tolist() for mask, n in zip(output["tool_mask"], lengths, strict=True)] == [
            [0, 0, 0] + [1] * (n - 3) for n in lengths
        ]


def test_a_rollout_func_that_asks_the_trainer_how_often_a_prompt_is_repeated(chat_model, tmp_path):
    """With unequal groups the answer is once, so that one which samples several completions of a prompt is right."""
    dataset, spy, asked = tiny_chat.prompts(), Spy(), []
    tokenizer = AutoTokenizer.from_pretrained(chat_model)

    def rollout(prompts, trainer):
        asked.append(trainer.num_generations)
        ids = [
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            for prompt in prompts[:: trainer.num_generations]
            for _ in range(trainer.num_generations)
        ]
        return {"prompt_ids": ids, "completion_ids": [[*row[1:4], 1] for row in ids], "logprobs": None}

    trainer = run(chat_model, config(tmp_path), rewards=spy, dataset=dataset, rollout_func=rollout)
    assert_rows(trainer, spy, dataset, tokenizer)
    assert asked == [4, 1, 1]
    assert trainer.num_generations == 4


# ----------------------------------------------------------------------------------------------- tools, environments


class AsyncTool(Tool):
    async def look(self, digit: str) -> str:
        """
        Look a digit up.

        Args:
            digit: What to look up.
        """
        await asyncio.sleep(random.random() / 1000)
        return self.answer(digit)


@pytest.mark.parametrize("tool_class", [Tool, AsyncTool], ids=["sync", "async"])
def test_tools(chat_model, tmp_path, tool_class):
    dataset, spy, tool = tiny_chat.prompts(), Spy(), tool_class()
    args = config(tmp_path, max_completion_length=24)
    trainer = run(chat_model, args, rewards=spy, dataset=dataset, tools=[tool.look])
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    assert_rows(trainer, spy, dataset, tokenizer)
    assert_answers(trainer, spy, tool, tokenizer)


class Board:
    """Owns its reward, and writes into what it was given: the list of one rollout must not be that of another."""

    def reset(self, name, squares, **columns):
        self.name, self.squares, self.columns, self.looked = name, squares, columns, []
        self.untouched = list(squares)

    def look(self, digit: str) -> str:
        """
        Look a digit up.

        Args:
            digit: What to look up.
        """
        self.looked.append(digit)
        self.squares[0] += 1
        return self.name.removeprefix("prompt ")

    def get_reward(self):
        return {"e": 1.0, "h": 0.0}.get(text(self.columns["prompt"])[0], float(len(self.looked) > 0))


def test_environments_with_a_dataset(chat_model, tmp_path):
    dataset, spy = tiny_chat.prompts(squares=[[row, -row] for row in range(8)]), Spy()
    args = config(tmp_path, max_completion_length=24, reward_weights=[0.0])
    looked = 0

    def reward(environments, name, **columns):
        assert [environment.name for environment in environments] == name
        return spy(environments=environments, name=name, **columns)

    class Checked(Watched):
        def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
            nonlocal looked
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            for row, environment in enumerate(self.environments):
                number = int(environment.name.removeprefix("prompt "))
                assert environment.name == inputs[row]["name"]
                assert environment.columns["prompt"] == inputs[row]["prompt"]
                assert environment.untouched == [number, -number]
                assert environment.squares == [number + len(environment.looked), -number]  # its own moves only
                said = [message["content"] for message in completions[row] if message["role"] == "tool"]
                assert said == [str(number)] * len(said)
                asked = [
                    call["function"]["arguments"]["digit"]
                    for message in completions[row]
                    for call in message.get("tool_calls") or []
                ]
                assert asked[: len(environment.looked)] == environment.looked
                looked += len(environment.looked)
            return rewards

    trainer = run(chat_model, args, trainer_class=Checked, rewards=reward, dataset=dataset, environment_factory=Board)
    assert looked > 10
    assert_rows(trainer, spy, dataset, AutoTokenizer.from_pretrained(chat_model), weights=[0.0, 1.0])


class Left(Board):
    def reset(self, **columns):
        super().reset(**columns, squares=[0])
        return "1"


class Right(Board):
    def reset(self, **columns):
        super().reset(**columns, squares=[0])
        return "2"


def test_rows_that_choose_their_environment(chat_model, tmp_path):
    dataset = tiny_chat.prompts(environment=["left", "right"] * 4)
    args = config(tmp_path, max_completion_length=24)
    spy = Spy()
    trainer = run(
        chat_model,
        args,
        rewards=spy,
        dataset=dataset,
        environment_factory={"left": Left, "right": Right},
    )
    # what the environment said stands behind the prompt, and the reward of the other environment's class is missing
    assert_rows(
        trainer,
        spy,
        dataset,
        AutoTokenizer.from_pretrained(chat_model),
        weights=[1.0] * 3,
        prompt_text=lambda prompt: text(prompt)[:-1],
    )
    for seen, rewards in zip(spy.calls, trainer.rewards, strict=True):
        for prompt, name, environment, row in zip(
            seen["prompts"], seen["environment"], seen["environments"], rewards, strict=True
        ):
            assert type(environment) is {"left": Left, "right": Right}[name]
            assert text(prompt)[-1] == {"left": "1", "right": "2"}[name]
            assert (row[1] is None, row[2] is None) == (name == "right", name == "left")


def test_rows_that_hold_no_prompt(chat_model, tmp_path):
    """The environment of a row says the prompt, and what is believed of the prompt is believed of the row."""

    class Teller(Board):
        def reset(self, name, kind):
            super().reset(name=name, squares=[0], prompt=[{"role": "user", "content": kind}])
            return f"{kind}0{name[-1]}"

    dataset = tiny_chat.prompts().remove_columns("prompt").add_column("kind", list("ehmmehmm"))
    spy = Spy()
    args = config(tmp_path, max_completion_length=24)
    trainer = run(chat_model, args, rewards=spy, dataset=dataset, environment_factory=Teller)
    told = [{**row, "prompt": prompt} for row, prompt in zip(dataset, tiny_chat.prompts()["prompt"], strict=True)]
    assert_rows(trainer, spy, told, AutoTokenizer.from_pretrained(chat_model), weights=[1.0, 1.0])


class Dealer:
    """Owns the prompts too."""

    cards = random.Random(0)

    def reset(self, **columns):
        self.digit = str(self.cards.randrange(10))
        return self.digit

    def look(self, digit: str) -> str:
        """
        Look a digit up.

        Args:
            digit: What to look up.
        """
        return self.digit

    def get_reward(self):
        return float(int(self.digit) % 2)


def test_an_environment_that_owns_its_prompts_is_left_to_trl(chat_model, tmp_path):
    runs = []
    for trainer_class, config_class in ((GRPOTrainer, GRPOConfig), (KnapsackGRPOTrainer, KnapsackGRPOConfig)):
        Dealer.cards = random.Random(0)
        trainer = trainer_class(
            model=chat_model,
            args=config_class(**options(tmp_path, max_steps=10, max_completion_length=24)),
            environment_factory=Dealer,
            callbacks=[gradients := Gradients()],
        )
        trainer.train()
        trainer.gradients = gradients.digests
        runs.append(trainer)
    theirs, ours = runs
    assert_same_run(ours, theirs)
    assert not any(name.startswith("knapsack/") for entry in ours.state.log_history for name in entry)


# ----------------------------------------------------------------------------------------------------------- rewards


def test_async_rewards(chat_model, tmp_path):
    """Two at once, of which the one that starts first is done last."""
    dataset, spy = tiny_chat.prompts(), Spy()

    async def slow(prompts, completion_ids, name, **columns):
        await asyncio.sleep(0.01)
        return [None if n.endswith("7") else len(ids) / 6 for ids, n in zip(completion_ids, name, strict=True)]

    async def quick(**columns):
        return spy(**columns)

    args = config(tmp_path, reward_weights=[0.5, 1.0], success_reward_func="quick")
    trainer = run(chat_model, args, rewards=[slow, quick], dataset=dataset)
    assert_rows(trainer, spy, dataset, AutoTokenizer.from_pretrained(chat_model), weights=[0.5, 1.0])
    for seen, rewards in zip(spy.calls, trainer.rewards, strict=True):
        for ids, name, row in zip(seen["completion_ids"], seen["name"], rewards, strict=True):
            assert row[0] == (None if name.endswith("7") else pytest.approx(len(ids) / 6))


@pytest.mark.parametrize("loaded", [False, True], ids=["from a folder", "as a model"])
def test_reward_models(chat_model, tmp_path, loaded):
    """The score of every row is that of its own prompt and completion."""
    path = tiny_chat.save_reward_model(tmp_path / "reward")
    judge = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    dataset, spy = tiny_chat.prompts(), Spy()
    args = config(tmp_path, reward_weights=[1.0, 0.5], success_reward_func="spy")
    trainer = run(chat_model, args, rewards=[judge if loaded else path, spy], dataset=dataset)

    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    assert_rows(trainer, spy, dataset, tokenizer, weights=[1.0, 0.5])
    scores = set()
    for seen, rewards in zip(spy.calls, trainer.rewards, strict=True):
        for prompt, completion, row in zip(seen["prompts"], seen["completions"], rewards, strict=True):
            ids = tokenizer.apply_chat_template(prompt + completion, return_dict=True, return_tensors="pt")
            with torch.no_grad():
                assert row[0] == pytest.approx(judge(**ids).logits.item(), abs=1e-4)
            scores.add(round(row[0], 3))
    assert len(scores) > 20


# ------------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("column", ["image", "images"])
def test_images_travel_with_their_prompt(vlm, tmp_path, column):
    dataset, spy = same_text_other_images(column), Spy()
    args = config(tmp_path, top_k=1, learning_rate=0.0)
    trainer = run(vlm, args, rewards=spy, dataset=dataset)

    processor = AutoProcessor.from_pretrained(vlm)
    names = assert_rows(trainer, spy, dataset, processor)
    model = AutoModelForImageTextToText.from_pretrained(vlm)
    expected = {}
    for row in dataset:
        several = row[column] if column == "images" else [row[column]]
        content = [{"type": "image", "image": one} for one in several]
        content.append({"type": "text", "text": text(row["prompt"])})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        expected[row["name"]] = (several, inputs["pixel_values"], greedy(model, inputs))
    assert len({tuple(ids) for _, _, ids in expected.values()}) > len({text(row["prompt"]) for row in dataset})
    for seen, output, rows in zip(spy.calls, trainer.outputs, names, strict=True):
        shown = [[one] for one in seen["image"]] if column == "image" else seen["images"]
        for name, several in zip(rows, shown, strict=True):
            assert [np.asarray(one).tolist() for one in several] == [
                np.asarray(one).tolist() for one in expected[name][0]
            ]
        assert seen["completion_ids"] == [expected[name][2] for name in rows]
        assert torch.equal(output["pixel_values"], torch.cat([expected[name][1] for name in rows]))
        assert output["num_images"] == [len(expected[name][0]) for name in rows]


@pytest.mark.slow
def test_images_travel_to_the_rank_of_their_row(vlm, tmp_path):
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).parent / "images_worker.py"), vlm, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [(tmp_path / f"rank{rank}.txt").read_text().split("\n") for rank in (0, 1)]
    assert len(rows[0]) == len(rows[1]) == 32
    assert len(set(rows[0] + rows[1])) == 8


# ----------------------------------------------------------------------------------------------------------- refused


def test_a_seed_for_a_vllm_server_is_refused(chat_model, tmp_path):
    """`tests/with_vllm/test_server.py` shows why: every row of a prompt would be the same completion."""
    server = {"use_vllm": True, "vllm_mode": "server", "generation_kwargs": {"seed": 1}}
    with pytest.raises(ValueError, match=r"generation_kwargs has a seed \(1\)"):
        run(chat_model, config(tmp_path, **server), rewards=Spy(), dataset=tiny_chat.prompts())


@pytest.mark.parametrize("changes", [{"allocation": "uniform"}, {"generation_kwargs": {"top_k": 3}}])
def test_without_such_a_seed_the_server_is_asked(chat_model, tmp_path, changes):
    args = config(
        tmp_path,
        **{
            "use_vllm": True,
            "vllm_mode": "server",
            "generation_kwargs": {"seed": 1},
            "vllm_server_base_url": "http://127.0.0.1:9",  # where nobody answers
            "vllm_server_timeout": 0.0,
            **changes,
        },
    )
    with pytest.raises((ImportError, ConnectionError), match="vLLM"):
        run(chat_model, args, rewards=Spy(), dataset=tiny_chat.prompts())


def test_continuous_batching_with_images_is_refused_by_trl(vlm, tmp_path):
    args = config(tmp_path, use_transformers_continuous_batching=True)
    with pytest.raises(ValueError, match="does not support multimodal models"):
        run(vlm, args, rewards=Spy(), dataset=same_text_other_images("image"))

"""A vLLM server on the CPU, asked by the trainer over HTTP."""

import pytest
import tiny_chat
from backends import Spy, Tool, Watched, assert_answers, assert_rows, config, greedy, run
from log_probabilities import assert_same_log_probabilities
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from trl_knapsack import KnapsackGRPOTrainer


def prompt_inputs(tokenizer, prompt):
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")


@pytest.fixture(scope="module")
def expected(server):
    """The greedy completion of every prompt, by transformers and one prompt at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(server[1]), AutoModelForCausalLM.from_pretrained(server[1])
    completions = {row["name"]: greedy(model, prompt_inputs(tokenizer, row["prompt"])) for row in tiny_chat.prompts()}
    assert len({tuple(ids) for ids in completions.values()}) >= 6
    return completions


@pytest.fixture
def without_weight_sync(monkeypatch):
    """
    New weights travel to the server over NCCL, hence between GPUs only. With a learning rate of 0 nothing has to: all
    else, the requests and what becomes of the answers, is as in a run with GPUs.
    """
    from trl.generation.vllm_client import VLLMClient
    from trl.generation.vllm_generation import VLLMGeneration

    monkeypatch.setattr(VLLMClient, "init_communicator", lambda self, device: None)
    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: None)


def server_args(tmp_path, server, **changes):
    return config(
        tmp_path,
        **{
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_base_url": server[0],
            "vllm_server_timeout": 10.0,
            "learning_rate": 0.0,
            **changes,
        },
    )


def test_server_mode(server, expected, tmp_path, without_weight_sync):
    dataset, spy = tiny_chat.prompts(), Spy()
    args = server_args(tmp_path, server, top_k=1)
    trainer = run(server[1], args, rewards=spy, dataset=dataset)
    names = assert_rows(trainer, spy, dataset, AutoTokenizer.from_pretrained(server[1]))
    for seen, rows in zip(spy.calls, names, strict=True):
        assert seen["completion_ids"] == [expected[name] for name in rows]


def test_server_mode_samples_with_the_log_probabilities_of_the_trainer(server, tmp_path, without_weight_sync):
    dataset, spy = tiny_chat.prompts(), Spy()
    trainer = run(server[1], server_args(tmp_path, server), rewards=spy, dataset=dataset)
    assert_rows(trainer, spy, dataset, AutoTokenizer.from_pretrained(server[1]))
    assert_same_log_probabilities(trainer)
    assert len({tuple(ids) for seen in spy.calls for ids in seen["completion_ids"]}) > 30


def test_server_mode_with_tools(server, tmp_path, without_weight_sync):
    dataset, spy, tool = tiny_chat.prompts(), Spy(), Tool()
    args = server_args(tmp_path, server, max_completion_length=24)
    trainer = run(server[1], args, rewards=spy, dataset=dataset, tools=[tool.look])
    tokenizer = AutoTokenizer.from_pretrained(server[1])
    assert_rows(trainer, spy, dataset, tokenizer)
    assert_answers(trainer, spy, tool, tokenizer)
    assert_same_log_probabilities(trainer)


def test_server_mode_answers_wrongly_without_one_request_per_row(server, expected, tmp_path, without_weight_sync):
    """The test above sees rows that are mixed up: TRL's own requests put completions behind other rows' prompts."""

    class AsTRLDoes(Watched):
        _generate = GRPOTrainer._generate

    dataset, spy = tiny_chat.prompts(), Spy()
    args = server_args(tmp_path, server, top_k=1)
    trainer = run(server[1], args, rewards=spy, dataset=dataset, trainer_class=AsTRLDoes)
    names = assert_rows(trainer, spy, dataset, AutoTokenizer.from_pretrained(server[1]))
    wrong = [
        sum(ids != expected[name] for ids, name in zip(seen["completion_ids"], rows, strict=True))
        for seen, rows in zip(spy.calls, names, strict=True)
    ]
    assert wrong[0] == 0  # equal groups
    assert min(wrong[1:]) > 0


def test_a_seed_gives_all_rows_of_a_prompt_one_completion(server, tmp_path):
    """Why a seed is refused in server mode: only completions of one request get seeds of their own."""
    from trl.generation.vllm_client import VLLMClient

    client = VLLMClient(base_url=server[0])
    prompt = [3, 19, 7, 8, 4]
    options = {"max_tokens": 6, "generation_kwargs": {"seed": 1}}
    of_one_request = client.generate([prompt], n=8, **options)["completion_ids"]
    of_eight = client.generate([prompt] * 8, n=1, **options)["completion_ids"]
    assert len({tuple(ids) for ids in of_one_request}) > 4
    assert len({tuple(ids) for ids in of_eight}) == 1

    args = server_args(tmp_path, server, generation_kwargs={"seed": 1})
    with pytest.raises(ValueError, match=r"generation_kwargs has a seed \(1\)"):
        KnapsackGRPOTrainer(model=server[1], reward_funcs=Spy(), args=args, train_dataset=tiny_chat.prompts())

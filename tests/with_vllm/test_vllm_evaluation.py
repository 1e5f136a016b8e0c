"""Evaluation with vLLM on the CPU, in a process of its own, as `make test-vllm` runs it."""

import numpy as np
import pytest
import tiny_chat
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_knapsack.evaluation import evaluate_policy, probe_policy, sample_completions


OPTIONS = {"max_completion_length": 6, "progress": False}
VLLM = {"use_vllm": True, "vllm_kwargs": {"dtype": "float32", "max_model_len": 64}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return tiny_chat.save_model(tmp_path_factory.mktemp("model"))


def test_vllm_and_transformers_complete_alike(folder):
    """Greedy completions of plain prompts and of conversations, token by token, the end token included."""
    prompts = [*tiny_chat.prompts()["prompt"], "m1", "e023", "h", "n99n", "7e"]
    greedy = {"num_generations": 1, "temperature": 0.0, **OPTIONS}
    expected = sample_completions(folder, prompts, **greedy)
    assert len({tuple(ids) for (ids,) in expected}) >= 8
    assert sample_completions(folder, prompts, **greedy, **VLLM) == expected


def test_vllm_samples_with_the_probabilities_of_the_model(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        p = model(torch.tensor([tokenizer("m4")["input_ids"]])).logits[0, -1].double().softmax(0).numpy()
    options = {"num_generations": 2000, "max_completion_length": 1, "progress": False, **VLLM}
    (completions,) = sample_completions(folder, ["m4"], seed=1, **options)
    seen = np.bincount([ids[0] for ids in completions], minlength=len(p)) / 2000
    assert np.abs(seen - p).max() < 0.05
    assert np.abs(np.sort(p)[::-1][:3] - 1 / len(p)).max() > 0.1  # and p is far from even


def test_evaluate_with_vllm(folder):
    """The reward function sees every row's own completions, and a seed repeats."""
    seen = []

    def reward(prompts, completions, name, **kwargs):
        seen.append((prompts, completions, name))
        return [float(len(completion[0]["content"]) % 2) for completion in completions]

    dataset = tiny_chat.prompts()
    runs = [
        evaluate_policy(
            folder, dataset, reward, prompt_id_column="name", num_generations=4, seed=seed, **OPTIONS, **VLLM
        )
        for seed in (0, 0)
    ]
    assert [problem.id for problem in runs[0]] == dataset["name"]
    assert {problem.n for problem in runs[0]} == {4}
    assert seen[0][2] == [name for name in dataset["name"] for _ in range(4)]
    assert seen[0] == seen[1]
    of_one_prompt = [completion[0]["content"] for completion in seen[0][1][:4]]
    assert len(set(of_one_prompt)) > 1


def test_probe_with_vllm(folder, tmp_path, monkeypatch):
    """One engine for several calls, and a rate for every prompt."""
    monkeypatch.setattr("trl_knapsack.evaluation.probe._VLLM_CHUNK", 8)
    dataset = tiny_chat.prompts()
    found = probe_policy(
        folder, dataset, lambda completions, **kwargs: [1.0] * len(completions), tmp_path / "rates.jsonl",
        prompt_id_column="name", **OPTIONS, **VLLM,
    )  # fmt: skip
    assert [(problem.id, problem.n, problem.c) for problem in found.results] == [(i, 4, 4) for i in dataset["name"]]
    assert found.rollouts == 4 * len(dataset) and found.tokens >= found.rollouts

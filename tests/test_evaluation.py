"""Sampling against the model's own probabilities and TRL's evaluation; results and comparisons against plain Python."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_chat
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack.errors import install_command
from trl_knapsack.evaluation import (
    EvaluationResults,
    ProblemResult,
    compare,
    evaluate_policy,
    exact_answers,
    sample_completions,
)


QUIET = {"progress": False, "max_completion_length": 6}


@pytest.fixture(scope="module")
def lively(tmp_path_factory) -> str:
    """A plain model with large weights, so that prompts differ, and a generation config that must not matter."""
    folder = tmp_path_factory.mktemp("lively")
    tiny_chat.save_model(folder)
    tokenizer = tiny_chat.tokenizer()
    del tokenizer.response_template  # TRL takes completions apart with it, for tools
    tokenizer.save_pretrained(folder)
    own = {"do_sample": True, "top_k": 1, "temperature": 0.1, "min_p": 0.9, "max_length": 3}
    GenerationConfig(**own, eos_token_id=[1, 13]).save_pretrained(folder)
    return str(folder)


def alone(model, tokenizer, prompt, length=6):
    """Greedy completion of one prompt, token by token and without padding, up to an end token."""
    ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else None
    if ids is None:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    found = []
    with torch.no_grad():
        while len(found) < length and (not found or found[-1] not in (1, 13)):
            found.append(int(model(torch.tensor([ids + found])).logits[0, -1].argmax()))
    return found


def test_greedy_completions_do_not_depend_on_the_batch(lively):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lively), AutoTokenizer.from_pretrained(lively)
    prompts = ["m1", "e023456", "h", "n99n99", "m2", "7e"]  # of different lengths, hence padded
    expected = [alone(model, tokenizer, prompt) for prompt in prompts]
    assert len({tuple(ids) for ids in expected}) >= 5
    assert any(ids[-1] in (1, 13) and len(ids) < 6 for ids in expected)  # an end token of either kind
    for batch_size in (1, 4, 64):
        found = sample_completions(lively, prompts, num_generations=1, temperature=0.0, batch_size=batch_size, **QUIET)
        assert found == [[ids] for ids in expected]


def test_a_completion_ends_at_the_end_tokens_of_model_and_tokenizer(lively):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lively), AutoTokenizer.from_pretrained(lively)
    prompts = ["m1", "e023456", "h", "n99n99", "m2", "7e"]
    ids = max((alone(model, tokenizer, prompt) for prompt in prompts), key=lambda ids: len(set(ids)))
    prompt = next(prompt for prompt in prompts if alone(model, tokenizer, prompt) == ids)
    first, second = ids[0], next(token for token in ids if token != ids[0])

    def greedy(of_model, of_tokenizer):
        model.generation_config.eos_token_id = of_model
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(of_tokenizer)
        ((found,),) = sample_completions(
            model, [prompt], tokenizer=tokenizer, num_generations=1, temperature=0.0, **QUIET
        )
        return found

    unseen = next(token for token in range(2, 20) if token not in ids)
    until_second = ids[: ids.index(second) + 1]
    assert greedy(first, unseen) == greedy([unseen, first], unseen) == greedy(unseen, first) == [first]
    assert greedy(second, unseen) == greedy([unseen, second], unseen) == greedy(None, second) == until_second


def test_conversations_go_through_the_chat_template(lively):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lively), AutoTokenizer.from_pretrained(lively)
    prompts = tiny_chat.prompts()["prompt"]
    found = sample_completions(model, prompts, tokenizer=tokenizer, num_generations=1, temperature=0.0, **QUIET)
    assert found == [[alone(model, tokenizer, prompt)] for prompt in prompts]


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}],
    ids=["plain", "temperature", "top_k", "top_p"],
)
def test_tokens_come_with_the_probabilities_of_the_model(lively, sampling):
    """The first tokens of many completions, against the softmax by hand: the model's generation config has no say."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lively), AutoTokenizer.from_pretrained(lively)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("m4")["input_ids"]])).logits[0, -1].double()
    p = (logits / sampling.get("temperature", 1.0)).softmax(0).numpy()
    order = np.argsort(-p)
    if "top_k" in sampling:
        p[order[3:]] = 0.0
    if "top_p" in sampling:  # the fewest tokens that reach it together
        p[order[int(np.searchsorted(np.cumsum(p[order]), 0.6)) + 1 :]] = 0.0
    p /= p.sum()
    (completions,) = sample_completions(
        model,
        ["m4"],
        tokenizer=tokenizer,
        num_generations=4000,
        batch_size=4000,
        max_completion_length=1,
        progress=False,
        **sampling,
    )
    seen = np.bincount([ids[0] for ids in completions], minlength=len(p))
    assert seen[p == 0].sum() == 0
    likely = p > 0.002
    assert likely.sum() >= 2
    expected = np.append(p[likely], p[~likely].sum() + 1e-12) * 4000
    observed = np.append(seen[likely], seen[~likely].sum())
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_a_seed_repeats_and_nothing_else_is_disturbed(lively):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lively), AutoTokenizer.from_pretrained(lively)
    model.train()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)

    def sample(seed):
        return sample_completions(model, ["m1", "e22"], tokenizer=tokenizer, seed=seed, **QUIET)

    modes = []
    handle = model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    first = sample(0)
    handle.remove()
    assert modes and not any(modes)  # no dropout while sampling
    assert torch.equal(torch.rand(3), expected)
    assert sample(0) == first != sample(1)
    assert len(first) == 2 and all(len({tuple(ids) for ids in own}) > 1 for own in first)
    assert model.training and model.generation_config.top_k == 1


def test_evaluation_is_that_of_trl(lively, tmp_path):
    """The same completions, columns and token ids reach the reward function, and the mean reward is the same."""
    calls = []

    def reward(prompts, completions, completion_ids, name, **kwargs):
        rows = zip(name, prompts, completions, completion_ids, strict=True)
        calls.append(sorted(rows, key=lambda row: row[0]))  # TRL has them in another order
        return [float(len(completion[0]["content"]) % 2) for completion in completions]

    dataset = tiny_chat.prompts()
    args = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_eval_batch_size=16,
        num_generations=2,
        max_completion_length=6,
        top_k=1,  # no chance left
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(lively, reward, args=args, train_dataset=dataset, eval_dataset=dataset)
    metrics = trainer.evaluate()
    by_trl = calls.pop()
    results = evaluate_policy(lively, dataset, reward, prompt_id_column="name", num_generations=2, top_k=1, **QUIET)
    assert calls.pop() == by_trl
    assert np.mean([problem.rewards for problem in results]) == pytest.approx(metrics["eval_reward"])
    assert 0 < metrics["eval_reward"] < 1


def test_a_peft_adapter_is_evaluated_with_its_weights(lively, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(lively)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(lively), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prompts, greedy = ["m1", "e2", "h3", "n4"], {"num_generations": 1, "temperature": 0.0, **QUIET}
    found = sample_completions(str(tmp_path), prompts, **greedy)
    merged = model.merge_and_unload()
    assert found == [[alone(merged, tokenizer, prompt)] for prompt in prompts]
    assert found != sample_completions(lively, prompts, **greedy)
    with pytest.raises(ValueError, match="is a PEFT adapter, and vLLM needs a whole model here; merge it"):
        sample_completions(str(tmp_path), prompts, use_vllm=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 0}, r"num_generations \(0\) must be at least 1"),
        ({"temperature": -1.0}, r"temperature \(-1.0\) must be at least 0"),
        ({"temperature": 0.0}, "With temperature 0 all 8 completions"),
        ({"vllm_kwargs": {"seed": 1}}, "have no effect without use_vllm"),
    ],
)
def test_options_that_exclude_each_other(model, options, message):
    with pytest.raises(ValueError, match=message):
        sample_completions(model, ["m1"], **options)


def test_vllm_has_to_be_installed_and_loads_models_itself(model):
    with pytest.raises(ValueError, match="vLLM loads models itself; give the name or the folder"):
        sample_completions(AutoModelForCausalLM.from_pretrained(model), ["m1"], use_vllm=True)
    try:
        import vllm  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=re.escape(f"run `{install_command('vllm')}`")):
            sample_completions(model, ["m1"], use_vllm=True)


def problems(count=6):
    return tiny.prompts(count).add_column("solution", [str(i) for i in range(count)])


def test_what_becomes_of_rewards(model):
    """None and NaN are not counted; success is the reward's threshold; the rest follows the completions' order."""
    seen = {}

    def reward(completions, solution, **kwargs):
        seen.update(kwargs, completions=completions, solution=solution)
        values = itertools.cycle([0.0, 0.4, 0.6, None, 1.0, float("nan")])
        return [next(values) for _ in completions]

    results = evaluate_policy(
        model,
        problems(2),
        reward,
        num_generations=6,
        prompt_id_column="name",
        keep_completions=True,
        answer_func=exact_answers,
        success_threshold=0.6,
        **QUIET,
    )
    assert seen["solution"] == ["0"] * 6 + ["1"] * 6
    assert seen["name"] == ["prompt 0"] * 6 + ["prompt 1"] * 6
    assert [problem.id for problem in results] == ["prompt 0", "prompt 1"]
    for problem, texts in zip(results, (seen["completions"][:6], seen["completions"][6:]), strict=True):
        assert problem.rewards == (0.0, 0.4, 0.6, 1.0)
        assert problem.successes == (False, False, True, True)
        assert (problem.n, problem.c) == (4, 2)
        assert problem.completions == (*texts[:3], texts[4])
        assert problem.answers == tuple(text.strip() or None for text in problem.completions)


def test_async_reward_functions(model):
    async def reward(completions, **kwargs):
        return [float(len(completion) > 3) for completion in completions]

    results = evaluate_policy(model, problems(), reward, **QUIET)
    assert len(results) == 6 and {problem.n for problem in results} == {8}


def test_a_reward_function_gets_everything_that_trl_passes(model, tmp_path):
    """The arguments by name in TRL's own evaluation and in ours."""
    calls = []

    def reward(completions, trainer_state, log_extra, log_metric, **kwargs):
        log_extra("length", [len(completion) for completion in completions])
        log_metric("mean_length", 1.5)
        calls.append({*kwargs, type(trainer_state).__name__})
        assert 0 <= trainer_state.global_step <= max(trainer_state.max_steps, 0)
        return [1.0] * len(completions)

    dataset = tiny.prompts(8)
    args = GRPOConfig(
        str(tmp_path),
        per_device_eval_batch_size=8,
        max_completion_length=4,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    GRPOTrainer(model, reward, args=args, train_dataset=dataset, eval_dataset=dataset).evaluate()
    by_trl = calls.pop()
    evaluate_policy(model, dataset, reward, **QUIET)
    assert calls[-1] == by_trl


def test_what_was_sampled_survives_a_reward_function_that_fails(model, tmp_path, monkeypatch):
    from trl_knapsack.evaluation import policy

    sampled = []

    def counted(*args, **kwargs):
        sampled.append(kwargs)
        return sample_completions(*args, **kwargs)

    def broken(completions, **kwargs):
        raise ZeroDivisionError("a mistake of the user")

    def reward(completions, **kwargs):
        return [float("1" in completion) for completion in completions]

    monkeypatch.setattr(policy, "sample_completions", counted)
    path = tmp_path / "new" / "results.completions.jsonl"
    settings = dict(num_generations=2, completions_path=path, **QUIET)
    with pytest.raises(ZeroDivisionError):
        evaluate_policy(model, problems(), broken, **settings)
    found = evaluate_policy(model, problems(), reward, **settings)
    assert len(sampled) == 1 and not list(path.parent.glob("*.partial"))
    assert found.problems == evaluate_policy(model, problems(), reward, num_generations=2, **QUIET).problems
    assert len(sampled) == 2

    evaluate_policy(model, problems(), reward, **settings, seed=1)  # other sampling
    evaluate_policy(model, problems(5), reward, **settings, seed=1)  # other prompts
    weights = Path(model) / "model.safetensors"
    touched = weights.stat().st_mtime_ns + 1
    os.utime(weights, ns=(touched, touched))
    evaluate_policy(model, problems(5), reward, **settings, seed=1)  # another model in the folder
    loaded = AutoModelForCausalLM.from_pretrained(model)
    evaluate_policy(loaded, problems(5), reward, **settings)
    evaluate_policy(loaded, problems(5), reward, **settings)  # nobody knows whether it is the same
    assert len(sampled) == 7
    path.write_text("not JSON")
    evaluate_policy(model, problems(5), reward, **settings)
    assert len(sampled) == 8


def test_an_error_after_sampling_has_the_completions(model, tmp_path, monkeypatch):
    """Nobody asked to keep them, and sampling took longest."""
    from trl_knapsack.evaluation import policy

    def broken(completions, **kwargs):
        raise ZeroDivisionError("a mistake of the user")

    def interrupted(completions):
        raise KeyboardInterrupt

    def reward(completions, **kwargs):
        return [float("1" in completion) for completion in completions]

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = dict(num_generations=2, **QUIET)
    found = evaluate_policy(model, problems(), reward, keep_completions=True, **settings)
    assert not list(tmp_path.iterdir())  # all went well
    with pytest.raises(ZeroDivisionError) as caught:
        evaluate_policy(model, problems(), broken, **settings)
    assert caught.value.completions == [list(problem.completions) for problem in found.problems]
    (note,), (path,) = caught.value.__notes__, tmp_path.iterdir()
    number = 2 * len(found.problems)
    assert (
        note.startswith(f"The {number} completions that were sampled are ")
        and f"completions_path={str(path)!r}" in note
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate_policy(model, problems(), reward, answer_func=interrupted, **settings)
    assert len(caught.value.completions) == len(found.problems)

    monkeypatch.setattr(policy, "sample_completions", lambda *args, **kwargs: pytest.fail("sampled again"))
    again = evaluate_policy(model, problems(), reward, completions_path=path, keep_completions=True, **settings)
    assert again.problems == found.problems
    with pytest.raises(ZeroDivisionError) as caught:
        evaluate_policy(model, problems(), broken, completions_path=path, **settings)
    assert f"and in {path}" in caught.value.__notes__[0]


def test_an_error_after_sampling_with_a_loaded_model_has_the_completions(model, tmp_path, monkeypatch):
    """No later call could know that it is the same model, so there is no file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loaded = AutoModelForCausalLM.from_pretrained(model)
    with pytest.raises(ValueError, match="returned 1 rewards") as caught:
        evaluate_policy(loaded, problems(), lambda **_: [1.0], num_generations=2, **QUIET)
    assert {len(texts) for texts in caught.value.completions} == {2} and not list(tmp_path.iterdir())
    assert caught.value.__notes__[0].endswith("`completions`, a list of texts for each problem.")


def test_a_model_that_is_not_there_is_a_sentence():
    with pytest.raises(ValueError, match="No tokenizer of ./nowhere: ") as caught:
        evaluate_policy("./nowhere", problems(), lambda **_: [], **QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "reward", "options", "message"),
    [
        ([{"question": "m1"}], lambda **_: [], {}, r"Row 0 has no prompt, only \['question'\]"),
        ([{"prompt": "m1"}] * 2, lambda **_: [], {}, "Two problems have the id '[0-9a-f]{32}'"),
        ([{"prompt": "m1"}], lambda **_: [], {"prompt_id_column": "id"}, "prompt_id_column 'id' has no value"),
        ([{"prompt": "m1"}], lambda **_: [1.0], {}, "<lambda> returned 1 rewards for 8 completions"),
    ],
)
def test_bad_input_is_told(model, dataset, reward, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_policy(model, dataset, reward, **options, **QUIET)


def test_results_come_back_from_their_file(tmp_path):
    results = EvaluationResults(
        [
            ProblemResult("a", (1.0, 0.0, 1.0), ("7", None, "7"), ("7", "", "7 ")),
            ProblemResult("b", (0.0, 0.0, 0.0)),
            ProblemResult("ü", ()),
        ]
    )
    results.save(tmp_path / "new" / "results.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "results.jsonl").read_text("utf-8").splitlines()]
    assert lines[0] == {
        "id": "a",
        "n": 3,
        "c": 2,
        "rewards": [1.0, 0.0, 1.0],
        "threshold": 0.5,
        "answers": ["7", None, "7"],
        "completions": ["7", "", "7 "],
    }
    assert lines[1] == {"id": "b", "n": 3, "c": 0, "rewards": [0.0, 0.0, 0.0], "threshold": 0.5}
    loaded = EvaluationResults.load(tmp_path / "new" / "results.jsonl")
    assert loaded.problems == results.problems
    assert [problem.id for problem in loaded.scored()] == ["a", "b"]


def test_the_threshold_comes_back_with_the_results(tmp_path):
    """Scored at 0.9, saved, and read: the same successes, unless another threshold is asked for."""
    path = tmp_path / "results.jsonl"
    EvaluationResults([ProblemResult("a", (0.6, 0.8, 1.0), threshold=0.9)]).save(path)
    assert EvaluationResults.load(path)[0].successes == (False, False, True)
    assert EvaluationResults.load(path, success_threshold=0.7)[0].successes == (False, True, True)
    path.write_text('{"id": "a", "rewards": [0.4, 0.6]}\n{"id": "b", "n": 2, "c": 1}\n')  # no threshold: 0.5
    assert [problem.c for problem in EvaluationResults.load(path)] == [1, 1]
    assert [problem.c for problem in EvaluationResults.load(path, success_threshold=2.0)] == [0, 1]


def test_results_of_other_tools(tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text('{"id": 1, "n": 4, "c": 3}\n\n{"id": 2, "rewards": [0.2, 0.9]}\n')
    results = EvaluationResults.load(path, success_threshold=0.1)
    assert [(problem.id, problem.n, problem.c) for problem in results] == [("1", 4, 3), ("2", 2, 2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1}', "line 2: not a result .KeyError: 'n'.; every line needs an id"),
        ('{"id": 1, "n": 2, "c": 3}', r"c \(3\) must be between 0 and n \(2\)"),
        ('{"id": 1, "rewards": [1.0], "answers": ["1", "2"]}', "2 answers for 1 rewards"),
        ("[1]", "line 2: not a result"),
        ("{", "line 2: not a result"),
    ],
)
def test_a_line_that_is_no_result_is_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": 0, "n": 1, "c": 1}\n' + line)
    with pytest.raises(ValueError, match=message):
        EvaluationResults.load(path)


def test_scores_by_hand():
    results = EvaluationResults(
        [
            ProblemResult("a", (1.0, 1.0, 0.0, 0.0), ("1", "1", "2", None)),
            ProblemResult("b", (0.0, 0.0, 0.0, 1.0), ("3", "3", "4", "5")),
        ]
    )
    scores = results.scores()
    assert list(scores) == ["avg@4", "pass@2", "pass@4", "maj@4"]
    np.testing.assert_allclose(scores["avg@4"], [0.5, 0.25])
    np.testing.assert_allclose(scores["pass@2"], [5 / 6, 1 / 2])
    np.testing.assert_allclose(scores["maj@4"], [1.0, 0.0])
    # three of four: 1 1 2, 1 1 -, and twice 1 2 -, a tie; 3 3 4, 3 3 5, and twice 3 4 5, a tie of three
    np.testing.assert_allclose(results.scores([3])["maj@3"], [3 / 4, (2 * 1 / 3) / 4])
    summary = results.summary([1, 3])
    assert list(summary) == ["avg@4", "pass@1", "pass@3", "maj@3"]
    assert summary["pass@1"].estimate == pytest.approx(0.375)
    assert summary["pass@1"].low <= 0.375 <= summary["pass@1"].high


def test_an_answer_is_as_right_as_its_completions():
    """With rewards that are not for the answer alone, such as a format: three of four votes for 1 were rewarded."""
    problem = ProblemResult("a", (1.0, 1.0, 0.0, 1.0, 0.0), ("1", "1", "1", "1", "2"))
    assert problem.majority_at_k(5) == 0.75


def test_without_answers_there_is_no_vote():
    with pytest.raises(
        ValueError, match="Problem 'a' has no answers to vote with; give `evaluate_policy` an `answer_func`"
    ):
        ProblemResult("a", (1.0, 0.0)).majority_at_k(2)


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ([], "There are no problems"),
        ([ProblemResult("a", (1.0,)), ProblemResult("b", ())], "1 problems have no completion .* the first is 'b'"),
    ],
)
def test_what_cannot_be_summarised(problems, message):
    with pytest.raises(ValueError, match=message):
        EvaluationResults(problems).summary()


def simulated(rates, n, seed, prefix="p"):
    rng = np.random.default_rng(seed)
    return EvaluationResults(
        ProblemResult(f"{prefix}{i}", tuple(float(x) for x in rng.random(n) < rate)) for i, rate in enumerate(rates)
    )


RATES = np.linspace(0.02, 0.95, 150)


def test_a_better_run_is_seen_and_an_equal_one_is_not():
    base = simulated(RATES, 8, seed=0)
    better = compare(simulated(np.minimum(RATES + 0.15, 1.0), 8, seed=1), base)
    assert better.differences["avg@8"].low > 0.09
    assert better.wilcoxon["p"] < 1e-6 and better.mcnemar["p"] < 0.05
    assert better.mcnemar["only1"] > better.mcnemar["only2"]
    p_values = [compare(simulated(RATES, 8, seed), base).wilcoxon["p"] for seed in range(10, 16)]
    assert min(p_values) > 0.005 and max(p_values) > 0.2
    same = compare(base, base)
    assert same.wilcoxon["p"] == same.mcnemar["p"] == 1.0
    assert {(i.estimate, i.low, i.high) for i in same.differences.values()} == {(0.0, 0.0, 0.0)}


def test_first_minus_second():
    a, b = simulated(RATES, 4, seed=0), simulated(RATES, 4, seed=1)
    one, other = compare(a, b), compare(b, a)
    for name, (first, second) in one.estimates.items():
        assert other.estimates[name] == (second, first)
        assert one.differences[name].estimate == pytest.approx(first - second)
        assert other.differences[name].estimate == pytest.approx(second - first)
    assert one.estimates["avg@4"][0] == pytest.approx(np.mean([problem.c / 4 for problem in a]))
    assert (one.mcnemar["only1"], one.mcnemar["only2"]) == (other.mcnemar["only2"], other.mcnemar["only1"])
    assert one.wilcoxon["p"] == pytest.approx(other.wilcoxon["p"])
    solved = [{problem.id for problem in results if problem.c} for results in (a, b)]
    assert one.mcnemar["only1"] == len(solved[0] - solved[1]) > 0


def test_problems_are_matched_by_id_and_completions_by_number():
    """Order does not matter, other problems are left out, and a run with more completions has no advantage."""
    a, b = simulated(RATES, 16, seed=0), simulated(RATES, 4, seed=1)
    mixed = EvaluationResults([*reversed(b.problems), ProblemResult("other", (1.0,) * 4), ProblemResult("none", ())])
    found = compare(EvaluationResults([*a, ProblemResult("none", (1.0,) * 16)]), mixed)
    assert (found.problems, found.left_out, found.n) == (150, 2, 4)
    assert list(found.differences) == ["avg@4", "pass@2", "pass@4"]
    assert found.estimates["avg@4"][0] == pytest.approx(np.mean([problem.c / 16 for problem in a]))
    few = EvaluationResults(ProblemResult(problem.id, problem.rewards[:4]) for problem in a)
    assert found.mcnemar == compare(few, b).mcnemar


def test_runs_on_other_problems_cannot_be_compared():
    with pytest.raises(ValueError, match="have 0 problems in common, of 150 and 150 .for example 'p0' and 'q0'."):
        compare(simulated(RATES, 4, 0), simulated(RATES, 4, 1, prefix="q"))


def test_the_table_of_a_comparison():
    a = EvaluationResults(
        [ProblemResult("x", (1.0, 1.0)), ProblemResult("y", (1.0, 0.0)), ProblemResult("z", (0.0, 0.0))]
    )
    b = EvaluationResults(
        [ProblemResult("x", (1.0, 0.0)), ProblemResult("y", (0.0, 0.0)), ProblemResult("w", (0.0, 0.0))]
    )
    found = compare(a, b, names=("mine", "the other"))
    table = str(found).splitlines()
    assert table[0].split() == ["mine", "the", "other", "difference,", "95%", "interval"]
    assert table[1].split()[:4] == ["avg@2", "0.750", "0.250", "+0.500"]
    assert table[-2] == "Wilcoxon   success rates of 2 problems (2 left out): p = 0.5"
    assert table[-1] == "McNemar    solved at least once in 2: 1 only by mine, 0 only by the other: p = 1"
    assert json.loads(json.dumps(found.to_dict()))["differences"]["avg@2"]["estimate"] == 0.5


def test_results_are_read_without_torch(tmp_path):
    path = tmp_path / "results.jsonl"
    simulated(RATES, 4, seed=0).save(path)
    code = (
        "import sys; from trl_knapsack.evaluation import EvaluationResults, compare; "
        f"results = EvaluationResults.load({str(path)!r}); compare(results, results); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.split() == ["False", "False"]


def test_a_dataset_or_rows(model):
    def reward(completions, **kwargs):
        return [float("1" in completion) for completion in completions]

    rows = [{"prompt": "m1"}, {"prompt": "m2"}]
    found = evaluate_policy(model, rows, reward, **QUIET)
    assert found.problems == evaluate_policy(model, Dataset.from_list(rows), reward, **QUIET).problems


def test_what_a_notebook_and_a_prompt_show_is_short():
    """One line each, and tables in which nothing is markup."""
    results = simulated(RATES, 8, seed=0)
    share = sum(problem.c for problem in results) / 1200
    assert repr(results) == f"EvaluationResults(150 problems, 1200 completions, {share:.1%} right)"
    assert "<th>metric</th>" in results._repr_html_() and "<td>avg@8</td>" in results._repr_html_()
    assert repr(EvaluationResults([])) == "EvaluationResults(0 problems, 0 completions)"
    assert EvaluationResults([])._repr_html_().startswith("<p>EvaluationResults(0 problems")
    found = compare(results, simulated(RATES, 8, seed=1), names=("<b>mine</b>", "other"))
    assert repr(found).startswith("Comparison('<b>mine</b>' - 'other', 150 problems, avg@8 ") and "\n" not in repr(
        found
    )
    assert "<b>" not in found._repr_html_() and "&lt;b&gt;mine" in found._repr_html_()

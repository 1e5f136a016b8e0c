"""The study of docs/results.md: its problems, its exact measures, and that every contender really runs."""

import ast
import json
import operator
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch


STUDY = Path(__file__).parent.parent / "benchmarks" / "study"
sys.path.append(str(STUDY))

from contenders import CONTENDERS, DynamicSampling, RootShares, can_run  # noqa: E402
from policies import success_rates  # noqa: E402
from run import ROLLOUTS_PER_STEP, Run, execute  # noqa: E402
from tasks import POLICIES, REGIMES, TASKS, is_reserved, load_problems  # noqa: E402
from transformers import AutoTokenizer, Qwen2ForCausalLM  # noqa: E402


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value_of(expression):
    """The value of an expression, and the numbers in it, by a parser of its own."""

    def walk(node):
        if isinstance(node, ast.Constant):
            return node.value, [node.value]
        (left, some), (right, others) = walk(node.left), walk(node.right)
        return OPERATORS[type(node.op)](left, right), some + others

    return walk(ast.parse(expression, mode="eval").body)


def is_solved(task, prompt, completion):
    if task == "arithmetic":
        return completion == str(value_of(prompt.rstrip("="))[0])
    if task == "countdown":
        numbers, target = prompt.rstrip(":").split(">")
        value, used = value_of(completion)
        return value == int(target) and sorted(used) == sorted(map(int, numbers.split(",")))
    if task == "sums":
        first, *terms = map(int, prompt.rstrip("=").split("+"))
        return completion.split(",") == [str(first + sum(terms[: i + 1])) for i in range(len(terms))]
    letters = prompt[:-1]
    return completion == "[" + "".join(sorted(letters, reverse=prompt[-1] == ">")) + "]"


def load_policy(task):
    folder = POLICIES / task
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("task", TASKS)
def test_problems_are_right_and_as_hard_as_their_regime_says(task):
    model, tokenizer = load_policy(task)
    means = {}
    for regime in TASKS[task].regimes:
        train, held_out = (load_problems(task, regime, split) for split in ("train", "test"))
        assert len(train) == (2880 if regime == "once" else 480)
        assert len(held_out) == 320
        prompts = [row["prompt"] for row in train + held_out]
        assert len(set(prompts)) == len(prompts)
        assert all(is_reserved(prompt) for prompt in prompts)  # none was in the policy's training
        for row in train + held_out:
            assert row["solutions"]
            assert all(is_solved(task, row["prompt"], solution) for solution in row["solutions"]), row
            assert all(len(solution) < TASKS[task].max_completion_length for solution in row["solutions"])
        some = held_out[:40]
        exact = success_rates(model, tokenizer, [r["prompt"] for r in some], [r["solutions"] for r in some])
        assert exact == pytest.approx([row["rate"] for row in some], abs=2e-4)
        means[regime] = np.array([row["rate"] for row in train + held_out])
    tenths = np.histogram(means["broad"], np.linspace(0, 1, 11))[0]
    if task == "sums":  # its policy solves few nearly always: 20 of the last tenth are made up for by harder ones
        assert tenths[9] == 60
        tenths = tenths[:1]
    assert tenths == pytest.approx(np.full(len(tenths), 80), abs=2)
    if "hard" in means:
        assert (means["hard"] <= 0.1).mean() == pytest.approx(0.9, abs=0.01)
    if "saturated" in means:
        easy = means["saturated"] >= 0.8
        assert easy.mean() == pytest.approx(0.75, abs=0.01)
        assert means["saturated"][easy].mean() == pytest.approx(0.9, abs=0.03)
    if "rare" in means:
        assert (means["rare"] <= 0.02).mean() == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("task", TASKS)
def test_exact_success_rates_are_what_sampling_finds(task):
    model, tokenizer = load_policy(task)
    torch.manual_seed(0)
    for row in load_problems(task, "broad", "test")[:4]:
        (exact,) = success_rates(model, tokenizer, [row["prompt"]], [row["solutions"]])
        inputs = tokenizer([row["prompt"]] * 500, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=TASKS[task].max_completion_length)
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        sampled = np.mean([text in row["solutions"] for text in texts])
        assert sampled == pytest.approx(exact, abs=4 * np.sqrt(0.25 / 500))


def test_root_shares_are_in_proportion_to_the_expected_deviation():
    class Evidence:
        alpha = np.array([50.0, 5.0, 90.0])
        beta = np.array([50.0, 95.0, 10.0])

    counts = RootShares()(Evidence, 1000, 2, 900).counts
    assert counts.sum() == 1000
    samples = np.random.default_rng(0).beta(Evidence.alpha, Evidence.beta, (200_000, 3))
    expected = np.sqrt(samples * (1 - samples)).mean(axis=0)
    assert counts / 1000 == pytest.approx(expected / expected.sum(), abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("contender", CONTENDERS)
def test_every_contender_runs_and_spends_the_same(contender):
    if not can_run(contender):
        pytest.skip(f"{CONTENDERS[contender].needs} is not installed")
    before = 480 * 4 if contender == "probe-4" else 0  # of its own budget, but not in training
    steps = 16 if before else 4
    result = execute(Run("arithmetic", "saturated", contender, 1e-4, seed=1, steps=steps))
    spent = result["curve"][-1]["rollouts"]
    budget = steps * ROLLOUTS_PER_STEP * CONTENDERS[contender].budget
    if contender == "dynamic":  # the step that spends the last rollouts may take several batches
        assert budget <= spent < budget + DynamicSampling.most_batches * ROLLOUTS_PER_STEP
    elif contender == "conformal":  # 18 prompts of 2 to 16 rollouts each, and perhaps a calibration on 32 prompts
        assert budget <= spent < budget + (18 + 32) * 16
    elif before:
        assert budget <= spent < budget + ROLLOUTS_PER_STEP
    else:
        assert spent == budget
    assert spent - before == sum(count * visits for count, visits in enumerate(result["budgets"]))
    assert spent - before == sum(result["rollouts_per_prompt"])
    assert json.loads(json.dumps(result)) == result


def test_a_contender_that_cannot_run_here_is_left_out_and_said_so(tmp_path, monkeypatch, capsys):
    import study

    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "can_run", lambda contender: contender != "conformal")
    study.run_all("quick", [Run("arithmetic", "hard", "conformal", 1e-4, 1, steps=2)], workers=1, label="")
    assert capsys.readouterr().err == "conformal is left out: trl_cgrpo is not installed\n"
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(tmp_path, monkeypatch):
    import study

    monkeypatch.setattr(study, "RESULTS", tmp_path)
    runs = [Run("sorting", "broad", "uniform", 1e-4, seed, steps=2) for seed in (1, 2)]
    study.run_all("quick", runs[:1], workers=1, label="first")
    before = (tmp_path / "quick" / "sorting-broad.jsonl").read_text()
    study.run_all("quick", runs, workers=1, label="both")
    after = (tmp_path / "quick" / "sorting-broad.jsonl").read_text()
    assert after.startswith(before)
    assert [json.loads(line)["seed"] for line in after.splitlines()] == [1, 2]
    again = execute(runs[0])  # in another process, with other runs before it
    assert {k: v for k, v in json.loads(before).items() if k not in ("name", "curve")} == {
        k: v for k, v in again.items() if k != "curve"
    }


def test_contenders_that_a_profile_does_not_run_are_an_error_that_names_those_that_it_runs(monkeypatch, capsys):
    import study

    monkeypatch.setattr(sys, "argv", ["study.py", "--profile", "quick", "--contenders", "warm"])
    with pytest.raises(SystemExit) as exit:
        study.main()
    assert exit.value.code == 2
    assert (
        "profile 'quick' does not run warm on arithmetic, countdown, sorting, only posterior, uniform"
        in capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="does not run filter on sorting, only fewer-later, look, look-2, "):
        study.narrowed("full", ["filter"], ["sorting"])


def test_a_contender_that_is_not_tuned_alone_brings_the_one_whose_learning_rate_it_takes():
    import study

    profile = study.narrowed("full", ["warm"], ["arithmetic"])
    assert profile.tuned == ("posterior",)
    assert {run.contender for run in profile.report({(regime, "posterior"): 1e-4 for regime in REGIMES})} == {"warm"}
    assert study.narrowed("full") == study.PROFILES["full"]


def test_the_page_shows_the_results():
    import report

    made = report.tables("full")
    page = report.PAGE.read_text()
    for match in report.MARKED.finditer(page):
        assert match[0] == match[1] + made.pop(match[2]) + match[3]
    assert not made


@pytest.mark.parametrize("profile", ["full", "once", "two", "four", "tokens", "rare"])
def test_no_result_is_older_than_the_options_of_its_contender(profile, monkeypatch):
    import analysis
    import study

    assert len(study.load_results(profile)) >= 6
    assert analysis.stale(profile) == []
    other = CONTENDERS["look-64"].options | {"success_decay": 0.5}
    monkeypatch.setitem(CONTENDERS, "look-64", replace(CONTENDERS["look-64"], options=other))
    assert {"-look-64-" in name for name in analysis.stale(profile)} == {True}

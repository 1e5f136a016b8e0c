"""A probe before training: what it writes, that it goes on where it stopped, and that a run begins with it."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
from peft import LoraConfig, get_peft_model
from runs import options, train
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.cli import main
from trl_knapsack.evaluation import EvaluationResults, evaluate_policy, probe_policy
from trl_knapsack.tracking import prompt_key


QUIET = {"progress": False, "max_completion_length": 6}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a dataset on disk and reward functions of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "data").mkdir()
    tiny.prompts(24).to_json(tmp_path / "data" / "train.jsonl")
    (tmp_path / "probe_rewards.py").write_text(
        "def digit(prompts, completions, **kwargs):\n"
        "    rows = zip(prompts, completions, strict=True)\n"
        "    return [{'e': 1.0, 'h': 0.0}.get(p[0], float(p[-1] in c)) for p, c in rows]\n"
        "def short(completions, **kwargs):\n    return [float(len(c) < 4) for c in completions]\n"
        "async def odd(completions, **kwargs):\n    return [None if c[:1] in tuple('13579') else 1.0 for c in completions]\n"
        "def correctness(completions, **kwargs):\n    return [1.0] * len(completions)\n"
        "def none(completions, **kwargs):\n    return [None] * len(completions)\n"
    )
    yield tmp_path
    sys.modules.pop("probe_rewards", None)


@pytest.fixture
def probe(project, model, capsys):
    """The command; returns the exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        given = ["--model_name_or_path", model, "--dataset_name", "data", "--max_completion_length", "6"]
        try:
            code = main(["probe", *given, *map(str, arguments)])
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def lines(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("column", [None, "name"])
def test_a_run_begins_with_what_the_probe_found(probe, model, project, column, caplog):
    """The same keys as the trainer's, and one visit of each prompt: no uniform first epoch."""
    ids = [] if column is None else ["--prompt_id_column", column]
    code, out, err = probe("--reward_funcs", "probe_rewards.digit", "--output", "new/rates.jsonl", *ids)
    assert code == 0, err
    found = {line["id"]: line for line in lines("new/rates.jsonl")}
    rows = list(tiny.prompts(24))
    assert list(found) == [prompt_key(row, column) for row in rows]
    by_kind = {row["prompt"][0]: found[prompt_key(row, column)] for row in rows}
    assert by_kind["e"]["c"] == 4 and by_kind["h"]["c"] == 0 and {line["n"] for line in found.values()} == {4}

    never, always = (sum(line["c"] == c for line in found.values()) for c in (0, 4))
    tokens = sum(line["tokens"] for line in found.values())
    assert f"24 prompts, 96 rollouts, {tokens:,} completion tokens, " in out
    assert f"{never} prompts never succeeded, {24 - never - always} sometimes, {always} always" in out
    assert out.splitlines()[-1] == "--success_state_path new/rates.jsonl"

    changes = dict(max_steps=1, num_generations=8, per_device_train_batch_size=64)
    args = KnapsackGRPOConfig(
        **options(project / "out", prompt_id_column=column, success_state_path="new/rates.jsonl", **changes)
    )
    trainer = train(KnapsackGRPOTrainer, model, args, dataset=tiny.prompts(24))
    assert "None of the first" not in caplog.text
    record = trainer.records[0]
    won = np.array([found[key]["c"] for key in record.keys])
    assert record.evidence.alpha.tolist() == (1 + won).tolist()
    assert record.evidence.beta.tolist() == (1 + 4 - won).tolist()
    assert record.evidence.visits.tolist() == [1] * len(won)
    lengths = [found[key]["tokens"] / 4 for key in record.keys]
    assert record.evidence.mean_length.tolist() == lengths  # ranks are even from the first batch on
    assert len(set(record.allocation.counts)) > 1


def test_a_probe_is_an_evaluation(project, model):
    """In one batch, the very completions: there is no second sampler."""
    dataset = tiny.prompts(12)
    kwargs = dict(num_generations=3, batch_size=64, seed=5, temperature=0.7, top_k=9, **QUIET)
    probed = probe_policy(model, dataset, tiny.digit_reward, project / "rates.jsonl", **kwargs)
    evaluated = evaluate_policy(model, dataset, tiny.digit_reward, **kwargs)
    assert list(probed.results) == list(evaluated) == list(EvaluationResults.load(project / "rates.jsonl"))
    assert (probed.rollouts, probed.tokens) == (36, sum(problem.tokens for problem in evaluated))


class Stop(BaseException):
    """What neither the probe nor a reward function catches, as a signal."""


def stopping(reward, after):
    """`reward`, which is interrupted in its `after + 1`st call; and the prompts of each call."""
    calls = []

    def digit(prompts, **kwargs):
        calls.append(prompts)
        if len(calls) > after:
            raise Stop
        return reward(prompts=prompts, **kwargs)

    return digit, calls


@pytest.mark.parametrize("cut", [b"", b'{"prompts": [{"id": "pro', b"\xff"], ids=["whole", "cut", "garbled"])
@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_probe_that_was_stopped_goes_on(project, model, after, cut):
    dataset = tiny.prompts(24)
    kwargs = dict(num_generations=2, batch_size=8, prompt_id_column="name", **QUIET)  # 4 prompts in each of 6 calls
    whole = probe_policy(model, dataset, stopping(tiny.digit_reward, 99)[0], project / "whole.jsonl", **kwargs)
    reward, _ = stopping(tiny.digit_reward, after)
    with pytest.raises(Stop):
        probe_policy(model, dataset, reward, project / "rates.jsonl", **kwargs)
    assert not (project / "rates.jsonl").exists()
    with (project / "rates.jsonl.partial").open("ab") as file:
        file.write(cut)  # a line that a kill cut short
    done = after
    if after < 5:  # and once more, behind what was cut
        with pytest.raises(Stop):
            probe_policy(model, dataset, stopping(tiny.digit_reward, 1)[0], project / "rates.jsonl", **kwargs)
        done += 1
    reward, calls = stopping(tiny.digit_reward, 99)
    resumed = probe_policy(model, dataset, reward, project / "rates.jsonl", **kwargs)
    assert len(calls) == 6 - done  # nothing is sampled twice
    assert (project / "rates.jsonl").read_bytes() == (project / "whole.jsonl").read_bytes()
    assert (resumed.rollouts, resumed.tokens) == (whole.rollouts, whole.tokens) == (48, whole.tokens)
    assert not (project / "rates.jsonl.partial").exists()


def test_a_probe_goes_on_with_smaller_batches(project, model):
    """Out of memory is the likeliest reason for having stopped."""
    dataset, kwargs = tiny.prompts(24), dict(num_generations=2, **QUIET)
    with pytest.raises(Stop):
        probe_policy(model, dataset, stopping(tiny.digit_reward, 1)[0], project / "r.jsonl", batch_size=16, **kwargs)
    reward, calls = stopping(tiny.digit_reward, 99)
    results = probe_policy(model, dataset, reward, project / "r.jsonl", batch_size=4, **kwargs).results
    assert len(results) == 24 and len(calls) == 8  # 16 prompts left, 2 in a call


def test_a_probe_that_was_killed_goes_on(project, model):
    """By a signal that nothing catches, while it samples."""
    line = [sys.executable, "-m", "trl_knapsack", "probe", "--model_name_or_path", model, "--dataset_name", "data"]
    line += ["--max_completion_length", "6", "--per_device_eval_batch_size", "4", "--output", "rates.jsonl"]
    line += ["--reward_funcs", "slow_reward.digit"]
    (project / "slow_reward.py").write_text(
        "import time, probe_rewards\n\n"
        "def digit(**kwargs):\n    time.sleep(0.3)\n    return probe_rewards.digit(**kwargs)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(line, cwd=project, env=environment, stderr=subprocess.DEVNULL)
    kept = project / "rates.jsonl.partial"
    for _ in range(1200):
        if kept.exists() and kept.read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = kept.read_bytes().count(b"\n") - 1
    assert 3 <= done < 24
    again = subprocess.run(line, cwd=project, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "24 prompts, 96 rollouts" in again.stdout
    assert len(lines(project / "rates.jsonl")) == 24 and not kept.exists()


def test_what_does_not_belong_together_is_refused(probe, model, project):
    dataset = tiny.prompts(24)

    def call(path="rates.jsonl", reward=tiny.digit_reward, dataset=dataset, **changes):
        return probe_policy(model, dataset, reward, project / path, **{"batch_size": 4, **QUIET, **changes})

    with pytest.raises(Stop):
        call(reward=stopping(tiny.digit_reward, 2)[0])
    named = stopping(tiny.digit_reward, 99)[0]
    partial = (project / "rates.jsonl.partial").read_bytes()
    for changes, message in (
        ({"temperature": 0.5}, "temperature was None and is 0.5 now"),
        ({"num_generations": 2}, "num_generations was 4 and is 2 now"),
        ({"success_threshold": 0.9}, "success_threshold was 0.5 and is 0.9 now"),
        ({"reward": tiny.digit_reward}, "reward_func was 'digit' and is 'digit_reward' now"),
        ({"dataset": tiny.prompts(23)}, "the prompts of the dataset have changed"),
        ({"prompt_id_column": "name"}, "the prompts of the dataset have changed"),
    ):
        with pytest.raises(ValueError) as error:
            call(**{"reward": named, **changes})
        assert message in str(error.value) and str(error.value).endswith(
            "give what was given then, or write to another file."
        )
        assert (project / "rates.jsonl.partial").read_bytes() == partial  # hours of sampling, perhaps
    for damage in (b"[1]\n", b'{"prompts": 3}\n', partial.splitlines(keepends=True)[1], b"not json\n"):
        (project / "rates.jsonl.partial").write_bytes(partial + damage)
        with pytest.raises(ValueError, match="rates.jsonl.partial can't be gone on with .*; write to another file"):
            call(reward=named)
        assert (project / "rates.jsonl.partial").read_bytes() == partial + damage
    (project / "rates.jsonl.partial").write_bytes(partial)
    call(reward=named)
    with pytest.raises(ValueError, match="rates.jsonl is there already; give it to a run as success_state_path"):
        call(reward=named)
    with pytest.raises(ValueError, match="rates.csv must end in .jsonl"):
        call("rates.csv")
    with pytest.raises(ValueError, match="Row 1 has no prompt, only \\['text'\\]"):
        call("b.jsonl", dataset=[{"prompt": "e1"}, {"text": "e2"}])


def test_a_model_that_has_changed_is_another_one(project, model, tmp_path):
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "own")
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "own")
    reward, _ = stopping(tiny.digit_reward, 1)
    kwargs = dict(batch_size=4, **QUIET)
    with pytest.raises(Stop):
        probe_policy(str(tmp_path / "own"), tiny.prompts(8), reward, project / "rates.jsonl", **kwargs)
    os.utime(tmp_path / "own" / "model.safetensors", (1, 1))
    with pytest.raises(ValueError, match="the files of the model have changed"):
        probe_policy(str(tmp_path / "own"), tiny.prompts(8), reward, project / "rates.jsonl", **kwargs)


def test_rows_with_one_key_are_probed_once(project, model):
    """By the first of them, if they differ."""
    rows = [
        {"prompt": "e1", "id": 1},
        {"prompt": "m22", "id": 2},
        {"prompt": "e1", "id": 1},
        {"prompt": "h3", "id": 2},
    ]
    for column, expected in ((None, ["e1", "m22", "h3"]), ("id", ["e1", "m22"])):
        reward, calls = stopping(tiny.digit_reward, 99)
        found = probe_policy(model, rows, reward, project / f"{column}.jsonl", prompt_id_column=column, **QUIET)
        assert Counter(prompt for call in calls for prompt in call) == dict.fromkeys(expected, 4)
        keys = dict.fromkeys(prompt_key(row, column) for row in rows)
        assert [problem.id for problem in found.results] == list(keys)


def test_what_has_no_reward_is_paid_for_and_not_counted_as_failed(probe, project):
    code, out, _ = probe(
        "--reward_funcs", "probe_rewards.odd", "--output", "r.jsonl", "--num_generations", 8, "--json"
    )
    said, found = json.loads(out), lines("r.jsonl")
    assert code == 0 and said["rollouts"] == 24 * 8 and said["file"] == "r.jsonl"
    assert 0 < sum(line["n"] for line in found) < 24 * 8
    assert all(line["c"] == line["n"] == len(line["rewards"]) for line in found)
    assert said["tokens"] > sum(line["tokens"] for line in found)
    assert said["without_reward"] == sum(line["n"] == 0 for line in found)
    code, out, err = probe("--reward_funcs", "probe_rewards.none", "--output", "n.jsonl")
    assert (code, out) == (1, "") and "no completion has a reward (24 prompts, 96 rollouts" in err.splitlines()[-1]


def test_several_rewards_decide_as_in_training(probe, project, model):
    """The sum, weighted, without those that returned None; or the one that is named, or whose name says so."""

    def successes(*flags) -> dict[str, list[float]]:
        name = f"{len(list(project.glob('*.jsonl')))}.jsonl"
        code, _, err = probe("--output", name, "--seed", 3, *flags)
        assert code == 0, err
        return {line["id"]: line["rewards"] for line in lines(name)}, err

    both = ["--reward_funcs", "probe_rewards.digit", "probe_rewards.short"]
    digit, short = (successes("--reward_funcs", f"probe_rewards.{name}")[0] for name in ("digit", "short"))
    weighted, err = successes(*both, "--reward_weights", 1, -0.5)
    assert "success: the weighted sum of digit, short, at least 0.5" in err
    assert weighted == {
        key: [d - 0.5 * s for d, s in zip(digit[key], short[key], strict=True)] for key in digit
    } and any(len(set(values)) > 1 for values in weighted.values())
    assert successes(*both, "--success_reward_func", "short")[0] == short
    found, err = successes(*both, "probe_rewards.correctness")
    assert set(sum(found.values(), [])) == {1.0} and "success: correctness, because of its name" in err
    odd, _ = successes("--reward_funcs", "probe_rewards.odd")
    with_odd, _ = successes("--reward_funcs", "probe_rewards.odd", "probe_rewards.short")
    assert {len(rewards) for rewards in with_odd.values()} == {4}  # short gives each completion a reward
    assert {key: sum(rewards) for key, rewards in with_odd.items()} == {
        key: sum(rewards) + sum(short[key]) for key, rewards in odd.items()
    }
    for flags, message in (
        ([*both, "--success_reward_func", "long"], "success_reward_func 'long' must be one of the reward functions: digit, short"),
        ([*both, "--reward_weights", 1], "reward_weights (1) must be as many as reward_funcs (2)"),
        (["--reward_funcs", "probe_rewards.digi"], "did you mean 'digit'?"),
        (["--reward_funcs", "probe_rewards.digit", "--num_generations", 0], "num_generations (0) must be at least 1"),
        (["--reward_funcs", "probe_rewards.digit", "--temperature", 0], "With temperature 0 all 4 completions"),
        (["--reward_funcs", "probe_rewards.digit", "--chat_template_kwargs", "no"], "'no' is no JSON object"),
        (["--reward_funcs", "probe_rewards.digit", "--dataset_train_split", "x"], "has no split 'x'"),
    ):  # fmt: skip
        code, out, err = probe("--output", "wrong.jsonl", *flags)
        assert (code, out) == (2, "") and message in err.splitlines()[-1], err


def test_an_adapter_is_probed_with_its_weights(project, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    adapted.save_pretrained(project / "adapter")
    tokenizer.save_pretrained(project / "adapter")
    kwargs = dict(num_generations=2, batch_size=64, **QUIET)
    found = probe_policy(project / "adapter", tiny.prompts(24), tiny.graded_reward, project / "a.jsonl", **kwargs)
    merged = adapted.merge_and_unload()
    expected = evaluate_policy(merged, tiny.prompts(24), tiny.graded_reward, tokenizer=tokenizer, **kwargs)
    assert list(found.results) == list(expected)
    plain = probe_policy(model, tiny.prompts(24), tiny.graded_reward, project / "b.jsonl", **kwargs)
    assert list(plain.results) != list(found.results)


def test_vllm_is_started_once_for_all_prompts(project, model, monkeypatch):
    """A stand-in for the engine, as vLLM needs an environment of its own; the real one is in tests/with_vllm."""
    started, asked = [], []

    class Engine:
        llm_engine = None

        def __init__(self, model, seed, **kwargs):
            started.append((model, kwargs))

        def generate(self, prompts, sampling_params, use_tqdm):
            asked.append((len(prompts), sampling_params["seed"]))
            out = types.SimpleNamespace(token_ids=[3, 1])
            return [types.SimpleNamespace(outputs=[out] * sampling_params["n"]) for _ in prompts]

    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=Engine, SamplingParams=lambda **kwargs: kwargs))
    monkeypatch.setattr("trl_knapsack.evaluation.probe._VLLM_CHUNK", 40)
    found = probe_policy(
        model,
        tiny.prompts(24),
        tiny.digit_reward,
        project / "rates.jsonl",
        use_vllm=True,
        vllm_kwargs={"a": 1},
        **QUIET,
    )
    assert started == [(model, {"a": 1})]
    assert asked == [(10, 42), (10, 52), (4, 62)]
    assert (found.rollouts, found.tokens, len(found.results)) == (96, 192, 24)


def test_an_interrupt_says_how_to_go_on(probe, project, monkeypatch):
    (project / "interrupted.py").write_text("def reward(completions, **kwargs):\n    raise KeyboardInterrupt\n")
    code, out, err = probe("--reward_funcs", "interrupted.reward", "--output", "rates.jsonl")
    assert (code, out) == (130, "") and err.splitlines()[-1] == (
        "stopped; the same command goes on from rates.jsonl.partial"
    )

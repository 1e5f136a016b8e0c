import json
from dataclasses import replace

import numpy as np
import pytest
from histories import record_by_hand
from runs import knapsack

from trl_knapsack import RolloutHistory
from trl_knapsack.errors import InvalidInputError
from trl_knapsack.tracking import HISTORY_FILE
from trl_knapsack.tracking.history import HistoryWriter


def lines(path):
    """The file as anyone may read it, without what only a clock decides."""
    batches = [json.loads(line) for line in (path / HISTORY_FILE).read_text().splitlines()]
    return [{name: value for name, value in batch.items() if name != "solver_seconds"} for batch in batches]


def test_a_batch_by_hand(tmp_path):
    writer = HistoryWriter(tmp_path / "new" / HISTORY_FILE)
    writer.append(record_by_hand(), step=3, epoch=0.25, allocation="posterior")
    writer.append(record_by_hand(), step=4, epoch=0.5, allocation="posterior")
    assert lines(tmp_path / "new")[0] == {
        "step": 3,
        "epoch": 0.25,
        "allocation": "posterior",
        "rank_imbalance": 1.5,
        "keys": ["a", "b", "c", "d", "e"],
        "counts": [2, 6, 10, 3, 4],
        "successes": [2, 0, 1, 0, 1],
        "trials": [2, 6, 10, 0, 2],
        "tokens": [2, 6, 10, 3, 4],
        "mixed": [0, 0, 1, 0, 1],
        "mean_reward": [1.0, 0.0, 0.1, None, 0.5],
        "alpha": [8.5, 0.5, 2.5, 0.5, 0.5],
        "beta": [0.5, 8.5, 2.5, 0.5, 0.5],
        "last_rate": [1.0, 0.0, 0.5, None, None],
        "visits": [1, 1, 3, 0, 0],
        "predicted": [0, 0, 0, 0, 0],
        "looks": [0, 0, 0, 0, 0],
        "before": [0, 0, 0, 0, 0],
    }
    history = RolloutHistory.load(tmp_path / "new")
    assert len(history) == 2
    assert history.step.tolist() == [3, 4]
    assert history.epoch.tolist() == [0.25, 0.5]
    assert history.allocation.tolist() == ["posterior", "posterior"]
    assert history.solver_seconds.tolist() == [0.25, 0.25]
    assert history.keys == ("a", "b", "c", "d", "e")
    assert history.batch.tolist() == [0] * 5 + [1] * 5
    assert history.prompt.tolist() == [0, 1, 2, 3, 4] * 2
    assert history.counts.tolist() == [2, 6, 10, 3, 4] * 2
    assert history.mixed.tolist() == [False, False, True, False, True] * 2
    np.testing.assert_array_equal(history.success_rate, [1, 0, 0.1, np.nan, 0.5] * 2)
    np.testing.assert_array_equal(history.last_rate, [1, 0, 0.5, np.nan, np.nan] * 2)
    assert history.believed_rate[:3] == pytest.approx([8.5 / 9, 0.5 / 9, 0.5])
    assert history.effective_gradient_ratio == pytest.approx([12 / 25] * 2)
    assert history.mixed_prompts == pytest.approx([2 / 5] * 2)
    assert history.per_prompt(history.tokens).tolist() == [4, 12, 20, 6, 8]


def test_visits_of_each_prompt(tmp_path):
    """Two rows of one key in a batch are one visit, a visit without a score is none."""
    writer = HistoryWriter(tmp_path / HISTORY_FILE)
    record = record_by_hand()
    twice = replace(record, evidence=replace(record.evidence, keys=("a", "b", "a", "d", "e")))
    for step, record in enumerate((record_by_hand(), twice, record_by_hand()), 1):
        writer.append(record, step, 0.0, "posterior")
    visits = RolloutHistory.load(tmp_path).by_visit
    keys = [["a", "b", "c", "d", "e"][i] for i in visits["prompt"]]
    #                                   a: once, rows 1 and 3, once          b         c       e
    assert keys == ["a"] * 3 + ["b"] * 3 + ["c"] * 2 + ["e"] * 3
    assert visits["batch"].tolist() == [0, 1, 2] + [0, 1, 2] + [0, 2] + [0, 1, 2]
    assert visits["counts"].tolist() == [2, 12, 2] + [6] * 3 + [10] * 2 + [4] * 3
    assert visits["success_rate"] == pytest.approx([1, 3 / 12, 1] + [0] * 3 + [0.1] * 2 + [0.5] * 3)
    assert visits["first"].tolist() == [True, False, False] * 2 + [True, False] + [True, False, False]
    assert visits["last"].tolist() == [False, False, True] * 2 + [False, True] + [False, False, True]


def test_a_run_is_written_down_as_it_was(model, tmp_path):
    trainer = knapsack(model, tmp_path, prompt_id_column="name", max_steps=10, gradient_accumulation_steps=1)
    history = RolloutHistory.load(tmp_path)
    assert history.step.tolist() == list(range(1, 11))
    assert len(history.keys) == 32
    for batch, record in enumerate(trainer.records):
        groups = history.batch == batch
        assert [history.keys[i] for i in history.prompt[groups]] == list(record.keys)
        assert history.counts[groups].tolist() == record.allocation.counts.tolist()
        assert history.successes[groups].tolist() == record.successes.tolist()
        assert history.mixed[groups].tolist() == record.mixed.tolist()
        assert history.visits[groups].tolist() == record.evidence.visits.tolist()
        np.testing.assert_allclose(history.alpha[groups], record.evidence.alpha, atol=1e-6)
        np.testing.assert_allclose(history.mean_reward[groups], record.mean_reward, atol=1e-6)
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    for ours, name in (
        (history.effective_gradient_ratio, "effective_gradient_ratio"),
        (history.mixed_prompts, "mixed_prompts"),
    ):
        assert ours == pytest.approx([entry[f"knapsack/{name}"] for entry in logs])
    assert len(set(history.counts)) > 1
    assert set(history.allocation) == {"posterior"}


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        (dict(per_device_train_batch_size=8, gradient_accumulation_steps=2), [1, 2, 3, 4]),
        (dict(per_device_train_batch_size=8, gradient_accumulation_steps=2, steps_per_generation=4), [1, 3]),
        (dict(per_device_train_batch_size=8, gradient_accumulation_steps=2, steps_per_generation=1), [1, 1, 2, 2, 3, 3, 4, 4]),
        (dict(per_device_train_batch_size=8, gradient_accumulation_steps=2, steps_per_generation=3), [1, 2, 4]),
    ],
    ids=["a step", "two steps", "half a step", "one and a half"],
)  # fmt: skip
def test_a_batch_belongs_to_the_step_that_generated_it(model, tmp_path, changes, steps):
    knapsack(model, tmp_path, prompt_id_column="name", max_steps=4, **changes)
    assert RolloutHistory.load(tmp_path).step.tolist() == steps


def test_a_resumed_run_goes_on_with_its_history(model, tmp_path):
    knapsack(model, tmp_path, prompt_id_column="name", max_steps=8, save_strategy="steps", save_steps=5)
    whole = lines(tmp_path)
    with open(tmp_path / HISTORY_FILE, "a") as file:  # died while it wrote
        file.write('{"step":9,"epoch":1.1,"ke')
    knapsack(
        model,
        tmp_path,
        prompt_id_column="name",
        max_steps=8,
        save_strategy="steps",
        save_steps=5,
        resume=str(tmp_path / "checkpoint-5"),
    )
    assert lines(tmp_path) == whole
    assert not (tmp_path / "knapsack_records.previous.jsonl").exists()


def test_a_fresh_run_starts_anew_and_keeps_the_last(model, tmp_path):
    knapsack(model, tmp_path, prompt_id_column="name", max_steps=3)
    first = lines(tmp_path)
    knapsack(model, tmp_path, prompt_id_column="name", max_steps=2)
    assert [batch["step"] for batch in lines(tmp_path)] == [1, 2]
    (tmp_path / "knapsack_records.previous.jsonl").rename(tmp_path / HISTORY_FILE)
    assert lines(tmp_path) == first


def test_a_torn_last_line_is_left_out(tmp_path):
    writer = HistoryWriter(tmp_path / HISTORY_FILE)
    for step in (1, 2, 3):
        writer.append(record_by_hand(), step, 0.0, "paper")
    whole = (tmp_path / HISTORY_FILE).read_bytes()
    two = len(b"".join(whole.splitlines(keepends=True)[:2]))
    for length in (two + 1, two + 100, len(whole) - 1):
        (tmp_path / HISTORY_FILE).write_bytes(whole[:length])
        assert RolloutHistory.load(tmp_path).step.tolist() == [1, 2]
    (tmp_path / HISTORY_FILE).write_bytes(b"")
    assert len(RolloutHistory.load(tmp_path)) == len(RolloutHistory.load(tmp_path).counts) == 0
    assert {len(values) for values in RolloutHistory.load(tmp_path).by_visit.values()} == {0}


def test_a_file_that_is_no_history_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{HISTORY_FILE} does not exist; name the output_dir"):
        RolloutHistory.load(tmp_path)
    HistoryWriter(tmp_path / HISTORY_FILE).append(record_by_hand(), 1, 0.0, "paper")
    good = (tmp_path / HISTORY_FILE).read_text()
    batch = json.loads(good)
    for bad, message in (
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        (json.dumps({k: v for k, v in batch.items() if k != "alpha"}), "KeyError: 'alpha'"),
        (json.dumps(batch | {"beta": [1.0]}), "beta has 1 values for 5 keys"),
        (json.dumps(batch | {"counts": ["many"] * 5}), "counts must be whole numbers"),
        (json.dumps(batch | {"counts": ["5"] * 5}), "counts must be whole numbers"),
        (json.dumps(batch | {"counts": [2.5] * 5}), "counts must be whole numbers"),
        (json.dumps(batch | {"counts": 5}), "counts must be whole numbers"),
        (json.dumps(batch | {"counts": [[1]] * 5}), "counts must be whole numbers"),
        (json.dumps(batch | {"counts": [10**30] * 5}), "OverflowError"),
        (json.dumps(batch | {"counts": [10**18] * 5}), "counts must be whole numbers from 0 to 1e.11"),
        (json.dumps(batch | {"counts": [-2, 6, 10, 3, 4]}), "counts must be whole numbers from 0"),
        (json.dumps(batch | {"visits": [-1] * 5}), "visits must be whole numbers from 0"),
        (json.dumps(batch | {"successes": [3, 0, 1, 0, 1]}), "successes must not exceed trials"),
        (json.dumps(batch | {"trials": [3, 6, 10, 0, 2]}), "trials must not exceed counts"),
        (json.dumps(batch | {"mixed": [2] * 5}), "mixed must be 0 or 1."),
        (json.dumps(batch | {"last_rate": [1.5] * 5}), "last_rate must be numbers or null from 0 to 1"),
        (json.dumps(batch | {"alpha": [-1.0] * 5}), "alpha must be numbers or null from 0"),
        (json.dumps(batch | {"mean_reward": [True] * 5}), "mean_reward must be numbers or null"),
        (json.dumps(batch | {"step": 10**400}), "OverflowError"),
        (json.dumps(batch | {"step": "1"}), "step must be whole numbers"),
        (json.dumps(batch).replace('"step": 1', '"step": 1e400'), "step must be whole numbers"),
        (json.dumps(batch).replace('"step": 1', '"step": NaN'), "step must be whole numbers"),
        (json.dumps(batch | {"step": -1}), "step must be whole numbers from 0"),
        (json.dumps({"step": 1}), "KeyError: 'epoch'"),
        (json.dumps(batch | {"keys": [1, 2, 3, 4, 5]}), "keys must be a list of text"),
        (json.dumps(batch | {"keys": "abcde"}), "keys must be a list of text"),
        (json.dumps(batch | {"keys": []}), "keys must be a list of text"),
        (json.dumps(batch | {"allocation": 3}), "allocation must be text"),
        ('{"keys": ' + "[" * 100_000, "RecursionError"),
        ("\x1b[31m", "JSONDecodeError"),
    ):
        (tmp_path / HISTORY_FILE).write_text(f"{good}{bad}\n{good}")
        with pytest.raises(
            InvalidInputError, match=f"Line 2 of .*{HISTORY_FILE} is not a generation batch .*{message}"
        ):
            RolloutHistory.load(tmp_path)


def test_a_history_that_can_not_be_written_does_not_stop_the_run(model, tmp_path, caplog):
    (tmp_path / HISTORY_FILE / "in the way").mkdir(parents=True)
    (tmp_path / "knapsack_records.previous.jsonl").write_text("in the way too")
    trainer = knapsack(model, tmp_path, prompt_id_column="name", max_steps=2)
    assert "No more generation batches are recorded, training goes on" in caplog.text
    assert trainer.state.global_step == 2
    assert set(trainer.success_tracker.evidence(trainer.records[0].keys).visits) == {1}


def test_rewards_without_end_are_still_json(tmp_path):
    record = replace(record_by_hand(), mean_reward=np.array([np.inf, -np.inf, np.nan, 1e30, 0.0]))
    HistoryWriter(tmp_path / HISTORY_FILE).append(record, 1, 0.0, "paper")
    assert lines(tmp_path)[0]["mean_reward"] == [None, None, None, 1e30, 0.0]


def test_a_misspelt_folder_gets_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(FileNotFoundError, match="output does not exist; did you mean 'outputs'\\?$"):
        RolloutHistory.load("output")


def test_it_shows_itself_on_a_line_and_in_a_notebook(tmp_path):
    (tmp_path / HISTORY_FILE).touch()
    assert repr(RolloutHistory.load(tmp_path)) == "RolloutHistory(batches 0, prompts 0, rollouts 0)"
    for step, allocation in ((1, "posterior"), (2, "<b>\x1b[31m")):
        HistoryWriter(tmp_path / HISTORY_FILE).append(record_by_hand(), step, 0.0, allocation)
    history = RolloutHistory.load(tmp_path)
    assert repr(history) == (
        r"RolloutHistory(batches 2, prompts 5, rollouts 50, steps 1 to 2, allocation posterior, <b>\x1b[31m, tokens 50, "
        "effective gradient ratio 0.48 at first, 0.48 at last)"
    )
    assert r"<td>posterior, &lt;b&gt;\x1b[31m</td>" in history._repr_html_()
    assert history == history and history != RolloutHistory.load(tmp_path)  # and nothing is raised
    assert len({history, history}) == 1

"""First looks and budgets over several batches, in real training runs."""

import io
import math
from pathlib import Path

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny
import torch
from datasets import Dataset
from PIL import Image
from runs import options, train

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, RolloutHistory, get_rule
from trl_knapsack.reporting.summary import tracker_of
from trl_knapsack.training.waiting import WAITING_FILE, WaitingPrompt, WaitingPrompts, look_and_window


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
@pytest.mark.parametrize("window", [1, 20])
def test_looks_and_rests_equal_plain_python(model, tmp_path, window, scale_rewards, aggregation):
    weights = [1.0, 0.5]
    args = KnapsackGRPOConfig(
        **options(
            tmp_path,
            look_generations=2,
            allocation_window=window,
            max_steps=8,
            multi_objective_aggregation=aggregation,
            scale_rewards=scale_rewards,
            reward_weights=weights,
            success_reward_func="digit_reward",
            log_completions=True,
            num_completions_to_print=1,
        )
    )
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=[tiny.digit_reward, tiny.graded_reward])

    visits, by_key = oracle.Visits(), {}
    rests_of_one_kind = 0
    for step, record in enumerate(trainer.records, 1):
        table = pd.read_parquet(Path(args.output_dir) / "completions" / f"completions_{step:05d}.parquet")
        counts = record.allocation.counts.tolist()
        assert sum(counts) == len(table) == 32
        for key, group in zip(record.keys, oracle.split(table["prompt"].tolist(), counts), strict=True):
            assert not group or set(group) == {by_key.setdefault(key, group[0])}
        rewards = [
            [None if math.isnan(r) else r for r in row]
            for row in table[["digit_reward", "graded_reward"]].to_numpy().tolist()
        ]
        earlier = visits.batch(record.keys, counts, record.looks, record.before, rewards)
        expected = oracle.advantages_after(rewards, counts, earlier, weights, scale_rewards, aggregation)
        assert table["advantage"].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)

        for group, before, won in zip(oracle.split(rewards, counts), earlier, record.successes_before, strict=True):
            assert sum(row[0] >= 0.5 for row in before) == won
            if group and before and len({row[0] for row in group}) == 1 != len({row[0] for row in before + group}):
                rests_of_one_kind += 1  # without its look, it would have no gradient
        logs = trainer.state.log_history[step - 1]
        assert logs["knapsack/looks"] == pytest.approx(np.mean(record.looks))
        if record.before.any():
            assert logs["knapsack/look_age"] == pytest.approx(record.look_age[record.before > 0].mean())
            assert window > 1 or logs["knapsack/look_age"] == 1
    assert rests_of_one_kind > 0
    history = RolloutHistory.load(tmp_path)
    assert history.looks.tolist() == [look for record in trainer.records for look in record.looks]
    assert history.generations.tolist() == [
        n for record in trainer.records for n in record.before + record.allocation.counts
    ]
    assert history.decided.tolist() == [not look for look in history.looks]
    assert len({n for record in trainer.records for n in record.before + record.allocation.counts}) > 3


def test_a_look_and_its_rest_are_one_visit(model, tmp_path):
    args = KnapsackGRPOConfig(
        **options(tmp_path, look_generations=2, max_steps=3, prompt_id_column="name", success_decay=0.5)
    )
    trainer = train(KnapsackGRPOTrainer, model, args)
    won, tried, visits = {}, {}, {}
    for record in trainer.records:  # within the first epoch, so that nothing has aged
        for i, key in enumerate(record.keys):
            won[key] = won.get(key, 0) + record.successes[i]
            tried[key] = tried.get(key, 0) + record.trials[i]
            visits[key] = visits.get(key, 0) + (record.before[i] == 0)
    assert set(visits.values()) == {1}
    known = trainer.success_tracker.evidence(list(won))
    assert known.alpha.tolist() == [1 + n for n in won.values()]
    assert (known.alpha + known.beta).tolist() == [2 + n for n in tried.values()]
    assert known.visits.tolist() == [1] * len(won)
    assert known.last_rate.tolist() == [won[key] / tried[key] for key in won]


def test_the_history_of_looks_counts_visits_as_the_tracker_does(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, look_generations=2, max_steps=14, prompt_id_column="name"))
    trainer = train(KnapsackGRPOTrainer, model, args)
    history, tracker = RolloutHistory.load(tmp_path), trainer.success_tracker
    visits = history.by_visit
    assert visits["counts"].sum() == history.counts.sum()
    number = np.bincount(visits["prompt"], minlength=len(history.keys))
    known = tracker.evidence(history.keys)
    assert number.tolist() == known.visits.tolist() and number.max() > 2
    # A prompt that the next epoch brings back while it waits has two visits at once, which nobody can tell apart.
    at_once = {
        key
        for record in trainer.records
        for key in record.keys
        if len({before > 0 for k, before in zip(record.keys, record.before, strict=True) if k == key}) == 2
    }
    apart = np.array([key not in at_once for key in history.keys])
    assert apart.mean() > 0.6
    assert visits["success_rate"][visits["last"]][apart] == pytest.approx(known.last_rate[apart])
    found = tracker_of(history).evidence(history.keys)
    np.testing.assert_allclose(found.alpha[apart], known.alpha[apart], rtol=1e-4)
    np.testing.assert_allclose(found.beta[apart], known.beta[apart], rtol=1e-4)


def test_a_first_epoch_is_not_uniform(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, look_generations=2, max_steps=4))
    trainer = train(KnapsackGRPOTrainer, model, args)
    assert trainer.state.epoch == 1
    assert all(len(set(record.allocation.counts)) > 1 for record in trainer.records[1:])


def test_one_prompt_in_a_batch_shares_a_budget_with_its_window(model, tmp_path):
    arguments = options(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=40)
    args = KnapsackGRPOConfig(**arguments, look_generations=2, allocation_window=8)
    trainer = train(KnapsackGRPOTrainer, model, args)
    totals = [
        total for record in trainer.records for total in (record.before + record.allocation.counts)[~record.looks]
    ]
    assert min(totals) < 4 < max(totals)
    assert all(record.allocation.counts.sum() == 4 for record in trainer.records)


@pytest.mark.parametrize("allocation", ["uniform", "paper", "filter"])
def test_equal_shares_never_wait(model, tmp_path, allocation):
    args = KnapsackGRPOConfig(**options(tmp_path, allocation=allocation, look_generations=2, max_steps=3))
    trainer = train(KnapsackGRPOTrainer, model, args)
    assert any(record.looks.any() for record in trainer.records) == (allocation != "uniform")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"look_generations": 1}, r"look_generations \(1\) must be 0 or lie between 2 and num_generations - 1 \(3\)"),
        ({"look_generations": 4}, r"look_generations \(4\) must be 0 or lie between 2 and num_generations - 1 \(3\)"),
        ({"look_generations": -1}, r"look_generations \(-1\) must be 0 or lie"),
        ({"allocation_window": 0}, r"allocation_window \(0\) must be at least 1"),
    ],
)
def test_bad_options(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        KnapsackGRPOConfig(**options(tmp_path, **changes))


# -------------------------------------------------------------------------------------------- the file of a checkpoint


def of(row, key="a"):
    return WaitingPrompt(key, row, torch.tensor([[1.0, math.nan], [0.0, 0.5]]), successes=1, trials=2, since=3)


def assert_same_waiting(ours, theirs):
    assert ours.digest() == theirs.digest() and ours.batches == theirs.batches
    for a, b in zip(ours.prompts, theirs.prompts, strict=True):
        assert a.key == b.key and torch.equal(a.rewards.nan_to_num(-1), b.rewards.nan_to_num(-1))
        assert (a.successes, a.trials, a.since) == (b.successes, b.trials, b.since)


def test_rows_come_back_as_they_were(tmp_path):
    rng = np.random.default_rng(0)
    row = {
        "prompt": [{"role": "user", "content": "1 + 1 = ? \ud83d\ude00", "tool_calls": None}],
        "numbers": (1, 2.5, True, None, b"\x00", float("inf")),
        "array": rng.normal(size=(2, 3)).astype(np.float32),
        "scalar": np.int64(4),
        "tensor": torch.arange(3),
        "image": Image.fromarray(rng.integers(0, 255, (5, 4, 3), dtype=np.uint8)),
        "cmyk": Image.fromarray(rng.integers(0, 255, (5, 4, 4), dtype=np.uint8), mode="CMYK"),
    }
    from trl_knapsack.tracking import prompt_key

    waiting = WaitingPrompts((of(row, prompt_key(row)),), batches=7)
    waiting.save(tmp_path)
    loaded = WaitingPrompts.load(tmp_path)
    assert_same_waiting(waiting, loaded)
    again = loaded.prompts[0].row
    assert again["prompt"] == row["prompt"] and again["numbers"] == row["numbers"]
    assert again["array"].dtype == np.float32 and (again["array"] == row["array"]).all()
    assert type(again["scalar"]) is np.int64 and torch.equal(again["tensor"], row["tensor"])
    for name in ("image", "cmyk"):
        assert again[name].mode == row[name].mode and again[name].tobytes() == row[name].tobytes()


def test_an_image_that_came_as_jpeg_keeps_its_pixels(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, "JPEG")
    row = Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}], "id": ["a"]})
    from datasets import Image as ImageFeature

    row = row.cast_column("image", ImageFeature())[0]
    WaitingPrompts((of(row),)).save(tmp_path)
    again = WaitingPrompts.load(tmp_path, prompt_id_column="id").prompts[0].row["image"]
    assert again.tobytes() == row["image"].tobytes()


def test_a_row_that_can_not_be_stored_is_named(tmp_path, caplog):
    WaitingPrompts((of({"prompt": "1", "id": "a"}), of({"prompt": "2", "thing": Path("x")}, "b"))).save(tmp_path)
    assert "1 prompts that wait" in caplog.text and "PosixPath" in caplog.text
    assert [prompt.key for prompt in WaitingPrompts.load(tmp_path, "id").prompts] == ["a"]


def test_nobody_waits_where_there_is_no_file(tmp_path):
    assert len(WaitingPrompts.load(tmp_path)) == 0


@pytest.mark.parametrize("what", ["flip", "cut", "foreign"])
def test_a_file_that_was_altered_is_refused(tmp_path, what):
    WaitingPrompts((of({"prompt": "1", "id": "a"}),)).save(tmp_path)
    path = tmp_path / WAITING_FILE
    content = bytearray(path.read_bytes())
    if what == "flip":
        content[-40] ^= 1
    path.write_bytes({"flip": content, "cut": content[:-9], "foreign": b"not a file"}[what])
    with pytest.raises(ValueError, match=f"{WAITING_FILE} does not hold the prompts that waited .*; restore it"):
        WaitingPrompts.load(tmp_path, "id")


def test_rows_of_another_dataset_are_refused(tmp_path):
    WaitingPrompts((of({"prompt": "1", "id": "a"}, key="b"),)).save(tmp_path)
    with pytest.raises(ValueError, match="another key than this run would give it"):
        WaitingPrompts.load(tmp_path, "id")


@pytest.mark.parametrize(
    ("changes", "size", "expected"),
    [
        ({}, 2000, (3, 64)),
        ({}, 40, (3, 10)),
        ({}, None, (3, 64)),  # a stream
        ({"num_generations": 16, "per_device_train_batch_size": 16}, 2000, (3, 64)),
        ({"num_generations": 4}, 2000, (2, 64)),
        ({"num_generations": 2, "min_generations": 2}, 2000, (0, 1)),  # all of it would be a look
        ({"max_generations": 8}, 2000, (0, 1)),  # the bounds leave no choice
        ({"min_generations": 8}, 2000, (0, 1)),
        ({"allocation": "paper"}, 2000, (0, 1)),
        ({"allocation": "filter"}, 2000, (0, 1)),
        ({"allocation": "uniform"}, 2000, (0, 1)),
        ({"look_generations": 0}, 2000, (0, 64)),
        ({"allocation_window": 1}, 2000, (3, 1)),
        ({"allocation": "filter", "look_generations": 4}, 2000, (4, 1)),
        ({"allocation": "uniform", "look_generations": 4, "allocation_window": 9}, 2000, (0, 1)),
    ],
)
def test_who_looks_by_default(tmp_path, changes, size, expected):
    arguments = {"num_generations": 8, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    args = KnapsackGRPOConfig(**options(tmp_path, **arguments | changes))
    assert look_and_window(args, get_rule(args.allocation), size) == expected


def test_a_rule_of_ones_own_decides_whole_visits_by_default(model, tmp_path):
    seen = []

    def rule(evidence, budget, min_generations, max_generations):
        seen.append(min_generations)
        return get_rule("posterior")(evidence, budget, min_generations, max_generations)

    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=2))
    trainer = KnapsackGRPOTrainer(model, tiny.digit_reward, args, tiny.prompts(), allocation_rule=rule)
    trainer.train()
    assert seen == [2, 2]


def test_the_defaults_move_rollouts_in_the_first_epoch_whatever_a_batch_holds(model, tmp_path):
    """As a user would begin: TRL's own batch size of 8, one prompt of 8 generations, and nothing said of looks."""
    arguments = dict(per_device_train_batch_size=8, gradient_accumulation_steps=1, num_generations=8, max_steps=64)
    args = KnapsackGRPOConfig(**options(tmp_path, **arguments))
    trainer = KnapsackGRPOTrainer(model, tiny.digit_reward, args, tiny.prompts(64))
    trainer.train()
    history = RolloutHistory.load(tmp_path)
    assert trainer.state.epoch == 1
    assert (history.per_batch(history.counts) == 8).all()
    left = history.generations[history.decided]
    assert left.min() < 8 < left.max()
    looks = history.counts[history.looks]
    assert (looks[-20:] == 3).all()

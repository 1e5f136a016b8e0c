"""Budgets from the dataset's difficulty columns, before anything else is known of a prompt, in real training runs."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from runs import assert_same_run, options, train

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, RolloutHistory, SuccessRateTracker
from trl_knapsack.reporting.summary import known_share, tracker_of
from trl_knapsack.tracking import DifficultyColumns, DifficultyPrior, SuccessPrior


COLUMNS = ["about.solved"]


def dataset(count=200, kinds="ehmeh"):
    return tiny.prompts(count, kinds, solve_rates=True)


def run(model, path, *, data=None, resume=None, **changes):
    # a policy that hardly moves: else all prompts soon succeed always or never, and no column tells what they are worth
    changes = {"learning_rate": 1e-4} | changes
    changes = {"difficulty_columns": COLUMNS, "max_steps": 25, "prompt_id_column": "name"} | changes
    args = KnapsackGRPOConfig(**options(path, **changes))
    return train(KnapsackGRPOTrainer, model, args, dataset=data or dataset(), resume=resume)


def test_a_first_epoch_is_shared_out_by_what_the_columns_have_shown(model, tmp_path):
    trainer = run(model, tmp_path)
    assert trainer.state.epoch == 1
    assert all((record.evidence.visits == 0).all() for record in trainer.records)

    # The same regression, fed by hand with what the batches before showed.
    by_name = {row["name"]: row for row in dataset()}
    columns = DifficultyColumns(COLUMNS, dataset())
    prior = SuccessPrior(1)
    for record in trainer.records:
        features = columns.features([by_name[key] for key in record.keys])
        alpha, beta = prior.predict(features)
        np.testing.assert_array_equal(record.evidence.alpha, alpha)
        np.testing.assert_array_equal(record.evidence.beta, beta)
        assert record.predicted.all() == record.predicted.any() == (prior.believed == "features")
        prior.observe(features, record.successes, record.trials)

    last = trainer.records[-8:]
    mean = {
        kind: np.mean(
            [
                n
                for r in last
                for key, n in zip(r.keys, r.allocation.counts, strict=True)
                if by_name[key]["prompt"][0] == kind
            ]
        )
        for kind in "emh"
    }
    assert mean["m"] > 4 > max(mean["e"], mean["h"])  # rollouts went to the prompts that are neither easy nor hopeless
    logs = [entry for entry in trainer.state.log_history if "knapsack/prior_strength" in entry]
    assert logs[0]["knapsack/prior_strength"] == 0 and "knapsack/prior_gain" not in logs[0]
    assert logs[-1]["knapsack/prior_strength"] >= 2 and logs[-1]["knapsack/prior_gain"] > 0.1
    assert logs[0]["knapsack/known_rollouts"] == 0 and logs[-1]["knapsack/known_rollouts"] == 1
    assert logs[-1]["knapsack/unseen"] == 1

    history = RolloutHistory.load(tmp_path)
    assert history.predicted.tolist() == [p for record in trainer.records for p in record.predicted]
    assert known_share(history) == pytest.approx(np.mean([entry["knapsack/known_rollouts"] for entry in logs]))
    believed, found = (
        tracker.evidence(trainer.success_tracker.keys) for tracker in (trainer.success_tracker, tracker_of(history))
    )
    np.testing.assert_allclose(found.alpha, believed.alpha)  # what was predicted is not taken for evidence
    np.testing.assert_allclose(found.beta, believed.beta)


def test_own_evidence_takes_the_place_of_the_prediction(model, tmp_path):
    trainer = run(model, tmp_path, data=dataset(40), max_steps=10)
    flat = SuccessRateTracker()
    for record in trainer.records:
        again = record.evidence.visits > 0
        expected = flat.evidence(record.keys)
        assert record.evidence.alpha[again].tolist() == expected.alpha[again].tolist()
        assert record.evidence.beta[again].tolist() == expected.beta[again].tolist()
        assert not record.predicted[again].any()
        flat.observe(record.keys, record.successes, record.trials)
    assert (trainer.records[-1].evidence.visits == 1).all()


def test_a_look_is_judged_by_what_the_columns_say(model, tmp_path):
    trainer = run(model, tmp_path, look_generations=2)
    rests = 0
    for record in trainer.records:
        rest = np.flatnonzero((record.before > 0) & record.predicted)
        for i in rest:  # what was predicted, and on top of it the look
            look = record.successes_before[i], record.trials_before[i] - record.successes_before[i]
            assert record.evidence.alpha[i] > look[0] and record.evidence.beta[i] > look[1]
            flat = record.evidence.alpha[i] == look[0] + 1 and record.evidence.beta[i] == look[1] + 1
            assert not flat
        rests += len(rest)
    assert rests > 50


def test_a_column_of_noise_changes_nothing(model, tmp_path):
    random = np.random.default_rng(0)
    data = dataset(40, "ehmm").add_column("noise", random.normal(size=40))
    plain = run(model, tmp_path / "plain", data=data, difficulty_columns=None, max_steps=12)
    noisy = run(model, tmp_path / "noisy", data=data, difficulty_columns=["noise"], max_steps=12)
    assert {r.allocation.counts.tolist() != [4] * 8 for r in plain.records} == {True, False}
    assert_same_run(noisy, plain)


@pytest.mark.parametrize("changes", [{}, {"look_generations": 2}])
def test_a_resumed_run_knows_what_the_columns_are_worth(model, tmp_path, changes):
    changes |= {"save_strategy": "steps", "save_steps": 13, "max_steps": 20}
    whole = run(model, tmp_path, **changes)
    assert whole.records[14].predicted.any()
    resumed = run(model, tmp_path, resume=str(tmp_path / "checkpoint-13"), **changes)
    assert resumed.gradients == whole.gradients[13:]
    state = resumed.success_tracker.state_dict()
    for name, values in whole.success_tracker.state_dict().items():
        np.testing.assert_array_equal(values, state[name])
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_stream_is_read_by_its_first_batch_and_resumed_with_that(model, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 13, "max_steps": 16}
    whole = run(model, tmp_path, data=dataset().to_iterable_dataset(), **changes)
    resumed = run(
        model, tmp_path, data=dataset().to_iterable_dataset(), resume=str(tmp_path / "checkpoint-13"), **changes
    )
    assert whole.records[-1].predicted.all()
    assert resumed.gradients == whole.gradients[13:]


def test_a_state_brings_its_prior_along_and_weighs_it_anew(model, tmp_path):
    first = run(model, tmp_path / "first")
    learnt = first.success_tracker.difficulty.state_dict()
    other = dataset(220).select(range(200, 220))  # prompts that the first run has not seen
    second = KnapsackGRPOTrainer(
        model=model,
        reward_funcs=tiny.digit_reward,
        args=KnapsackGRPOConfig(
            **options(tmp_path / "second", difficulty_columns=COLUMNS, success_state_path=str(tmp_path / "first"))
        ),
        train_dataset=other,
    )
    carried = second.success_tracker.difficulty.state_dict()
    for name in ("columns", "features.mean", "features.covariance"):
        np.testing.assert_array_equal(carried[name], learnt[name])
    assert not carried["scores"].any() and second.success_tracker.difficulty.believed == "flat"


def test_another_runs_columns_are_not_taken_for_these(tmp_path):
    tracker = SuccessRateTracker(difficulty=DifficultyPrior(["a"]))
    tracker.difficulty.read([{"a": 0}, {"a": 1}])
    tracker.observe(["x"], [1], [2], features=tracker.difficulty.features([{"a": 1}]))
    tracker.save(tmp_path / "state.safetensors")

    other = SuccessRateTracker(difficulty=DifficultyPrior(["b"]))
    other.difficulty.read([{"b": 0}, {"b": 1}])
    before = other.difficulty.state_dict()
    other.load(tmp_path / "state.safetensors")
    assert other.keys == ("x",)
    for name, values in other.difficulty.state_dict().items():
        np.testing.assert_array_equal(values, before[name])
    without = SuccessRateTracker()
    without.load(tmp_path / "state.safetensors")
    assert without.keys == ("x",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("difficulty.columns", np.frombuffer(b"[1, 2", np.uint8)),
        ("difficulty.columns", np.frombuffer(b'{"a": {"kind": "number", "scales": {"a": [0, 0]}}}', np.uint8)),
        ("difficulty.columns", np.frombuffer(b"[]", np.uint8)),
        ("difficulty.scores", np.full((2, 8, 3), np.nan)),
        ("difficulty.features.covariance", -np.eye(2)),
        ("difficulty.unknown", np.zeros(3)),
    ],
)
def test_a_state_of_columns_that_cannot_be_right_is_refused_and_changes_nothing(tmp_path, name, value):
    def tracker():
        made = SuccessRateTracker(difficulty=DifficultyPrior(["a"]))
        made.difficulty.read([{"a": 0}, {"a": 1}])
        return made

    good, target = tracker(), tracker()
    good.observe(["x"], [1], [2], features=good.difficulty.features([{"a": 1}]))
    state = good.state_dict() | {name: value}
    with pytest.raises(ValueError, match=r"difficulty|prior"):
        target.load_state_dict(state)
    assert len(target) == 0
    target.load_state_dict(good.state_dict())
    assert target.keys == ("x",)


@pytest.mark.parametrize("damaged", ["difficulty.scores", "difficulty.columns"])
def test_flipped_bits_of_the_columns_are_noticed(tmp_path, damaged):
    tracker = SuccessRateTracker(difficulty=DifficultyPrior(["a"]))
    tracker.difficulty.read([{"a": 0}, {"a": 1}])
    tracker.observe(["x"], [1], [2], features=tracker.difficulty.features([{"a": 1}]))
    path = tmp_path / "state.safetensors"
    tracker.save(path)
    content = bytearray(path.read_bytes())
    at = content.find(tracker.state_dict()[damaged].tobytes())
    assert at > 0
    content[at + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its digest"):
        SuccessRateTracker().load(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["solved"], "difficulty column 'solved' is not a column of train_dataset, which has"),
        (["about.sloved"], "difficulty column 'about.sloved' does not exist: 'about' has 'solved'; name one of these"),
        ("about.solved", "must be a list of column names"),
        ([], "must be a list of column names"),
        (["name", "name"], "names a column twice"),
    ],
)
def test_columns_that_are_not_there_are_told_before_the_model_is_loaded(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        KnapsackGRPOTrainer(
            model="no such model",
            reward_funcs=tiny.digit_reward,
            args=KnapsackGRPOConfig(**options(tmp_path, difficulty_columns=columns)),
            train_dataset=dataset(),
        )


def test_columns_survive_the_removal_of_unused_ones(model, tmp_path):
    trainer = run(model, tmp_path, remove_unused_columns=True, max_steps=14)
    assert trainer.records[-1].predicted.all()


def test_uniform_runs_do_not_read_them(model, tmp_path):
    data = dataset(kinds="m")
    grpo = run(model, tmp_path / "a", data=data, allocation="uniform", difficulty_columns=None, max_steps=10)
    ours = run(model, tmp_path / "b", data=data, allocation="uniform", difficulty_columns=["no such"], max_steps=10)
    assert_same_run(ours, grpo)


def test_a_column_that_a_transform_makes_is_read_as_it_comes(model, tmp_path):
    plain = dataset()
    texts = Dataset.from_dict({"prompt": plain["prompt"], "name": plain["name"]})

    def transform(batch):
        return batch | {"level": [tiny.SOLVE_RATES[prompt[0]] for prompt in batch["prompt"]]}

    trainer = run(model, tmp_path, data=texts.with_transform(transform), difficulty_columns=["level"], max_steps=14)
    assert trainer.records[-1].predicted.all()


def test_the_record_says_of_whom_anything_was_known(model, tmp_path):
    trainer = run(model, tmp_path, max_steps=2)
    record = dataclasses.replace(trainer.records[0], predicted=np.array([True] + [False] * 7))
    assert record.known.tolist() == [True] + [False] * 7
    assert record.metrics()["knapsack/known_rollouts"] == 4 / 32

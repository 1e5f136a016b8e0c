"""Datasets that are streamed, that grow, and that hold one prompt with several answers."""

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset, concatenate_datasets
from runs import WINDOW, assert_same_run, options, train
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


def stream(count=32):
    return tiny.prompts(count).to_iterable_dataset(num_shards=4)


def counts_of(trainer):
    return [record.allocation.counts.tolist() for record in trainer.records]


@pytest.mark.parametrize("changes", [{}, {"num_iterations": 2, "steps_per_generation": 4}], ids=["", "windows"])
def test_equal_groups_of_a_stream_are_bit_for_bit_grpo(model, tmp_path, changes):
    arguments = options(tmp_path, max_steps=10, **changes)
    theirs = train(GRPOTrainer, model, GRPOConfig(**arguments), dataset=stream())
    ours = train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments, allocation="uniform"), dataset=stream())
    assert_same_run(ours, theirs)


@pytest.mark.parametrize(
    ("stop", "changes", "repeated"),
    [(3, {}, False), (6, WINDOW, False), (6, {}, True), (22, WINDOW, True)],
    ids=["", "within a window", "repeated", "repeated, within a window"],
)
def test_a_stream_has_budgets_and_goes_on_after_a_stop(model, tmp_path, stop, changes, repeated):
    arguments = options(tmp_path, **changes, save_strategy="steps", save_steps=stop)
    arguments["max_steps"] = 2 * stop + 6
    whole, resumed = (
        train(
            KnapsackGRPOTrainer,
            model,
            KnapsackGRPOConfig(**arguments, prompt_id_column="name"),
            dataset=stream().repeat(None) if repeated else stream(),
            resume=resume,
        )
        for resume in (None, str(tmp_path / f"checkpoint-{stop}"))
    )
    assert any(len(set(counts)) > 1 for counts in counts_of(resumed))
    assert all(sum(counts) == 32 for counts in counts_of(whole))
    assert all(key.startswith("prompt ") for key in whole.success_tracker.keys)
    assert [r.keys for r in resumed.records] == [r.keys for r in whole.records][-len(resumed.records) :]
    assert counts_of(resumed) == counts_of(whole)[-len(resumed.records) :]
    assert resumed.gradients == whole.gradients[stop:]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_stream_that_ended_before_the_stop_says_that_it_begins_again(model, tmp_path, caplog):
    arguments = options(tmp_path, save_strategy="steps", save_steps=6, max_steps=8)
    for resume, said in ((None, False), (str(tmp_path / "checkpoint-6"), True)):
        trainer = train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments), dataset=stream(), resume=resume)
        assert ("begins again with this stream" in caplog.text) == said
    assert trainer.state.global_step == 8
    assert len(trainer.success_tracker) == 32


def test_a_stream_without_max_steps_is_refused(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=-1))
    with pytest.raises(ValueError, match="max_steps"):
        train(KnapsackGRPOTrainer, model, args, dataset=stream())


def test_a_dataset_that_grew_keeps_what_is_known(model, tmp_path):
    old, new = tiny.prompts(16), tiny.prompts(32).select(range(16, 32))
    arguments = options(tmp_path / "first", prompt_id_column="name", max_steps=4)
    first = train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments), dataset=old)
    known = {
        key: (a, b)
        for key, a, b in zip(
            first.success_tracker.keys,
            first.success_tracker.state_dict()["successes"],
            first.success_tracker.state_dict()["failures"],
            strict=True,
        )
    }
    assert len(known) == 16

    arguments = options(
        tmp_path / "second", prompt_id_column="name", max_steps=4, success_state_path=str(tmp_path / "first")
    )
    grown = train(
        KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments), dataset=concatenate_datasets([old, new])
    )
    assert set(grown.success_tracker.keys) == {f"prompt {i}" for i in range(32)}
    seen = set()
    for record in grown.records:  # one epoch: each prompt once, with the belief that the first run left
        for key, alpha, beta in zip(record.keys, record.evidence.alpha, record.evidence.beta, strict=True):
            successes, failures = known.get(key, (0.0, 0.0))
            assert (alpha, beta) == pytest.approx((1.0 + successes, 1.0 + failures))
        seen.update(record.keys)
    assert len(seen) == 32
    assert any(len(set(counts)) > 1 for counts in counts_of(grown))


def test_a_dataset_that_grew_between_stop_and_resume(model, tmp_path):
    arguments = options(tmp_path, prompt_id_column="name", save_strategy="steps", save_steps=2, max_steps=2)
    first = train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments), dataset=tiny.prompts(16))
    arguments["max_steps"] = 8
    args = KnapsackGRPOConfig(**arguments)
    grown = train(KnapsackGRPOTrainer, model, args, dataset=tiny.prompts(32), resume=str(tmp_path / "checkpoint-2"))
    kept = first.success_tracker.keys
    assert grown.success_tracker.keys[: len(kept)] == kept
    assert set(grown.success_tracker.keys) == {f"prompt {i}" for i in range(32)}
    visits = grown.success_tracker.evidence(kept).visits
    assert visits.sum() > len(kept)


def test_one_prompt_with_several_answers_is_several_prompts(model, tmp_path):
    prompts = [f"m{i}" for i in range(4)]
    dataset = Dataset.from_dict({"prompt": prompts * 2, "answer": ["0123456789"] * 4 + ["x"] * 4})

    def answered(completions, answer, **kwargs):
        return [float(any(c in a for c in completion)) for completion, a in zip(completions, answer, strict=True)]

    # 8 prompts make a batch, so both answers of a prompt are always together in it.
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=3))
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=answered, dataset=dataset)
    assert len(set(trainer.records[0].keys)) == 8
    evidence = trainer.success_tracker.evidence(trainer.success_tracker.keys)
    assert evidence.visits.tolist() == [3] * 8
    rates = evidence.alpha / (evidence.alpha + evidence.beta)
    assert np.sum(rates < 0.2) == np.sum(rates > 0.5) == 4

    # The same rows under an id that only names the prompt are one prompt each: the user decides.
    named = dataset.add_column("id", prompts * 2)
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=3, prompt_id_column="id"))
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=answered, dataset=named)
    assert sorted(trainer.success_tracker.keys) == prompts
    assert trainer.success_tracker.evidence(prompts).visits.tolist() == [3] * 4

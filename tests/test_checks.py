"""A run in which no rollout can move says so when it is built, with what to do about it; one in which they can is silent."""

import pytest
import tiny
from runs import options, train

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, SuccessRateTracker
from trl_knapsack.training.checks import why_nothing_moves


SAYS = "as in plain GRPO"

ALONE = {"look_generations": 0, "allocation_window": 1}  # each batch decides by earlier visits

# A generation batch is 32 rollouts of 8 prompts, unless said otherwise; there are 32 prompts.
SILENT = [
    {"max_steps": 2},
    {"max_steps": 9, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    {"max_steps": 5, **ALONE},
    {"max_steps": -1, "num_train_epochs": 2, **ALONE},
    {"max_steps": 1, "allocation": "uniform", "min_generations": 4},
    {"max_steps": 2, "look_generations": 2, "allocation_window": 1},
    {"max_steps": 9, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "allocation_window": 8, "look_generations": 2},
    {"max_steps": 5, "steps_per_generation": 1, **ALONE},  # 16 rollouts of 4 prompts, two of them in a step
]  # fmt: skip
SPEAKING = [
    ({"max_steps": 4, **ALONE}, "The run ends within its first epoch (32 prompts of 32)"),
    ({"max_steps": -1, "num_train_epochs": 1, **ALONE}, "The run ends within its first epoch (32 prompts of 32)"),
    ({"max_steps": -1, "num_train_epochs": 0.5, **ALONE}, "The run ends within its first epoch (16 prompts of 32)"),
    ({"max_steps": 8, "num_iterations": 2, **ALONE}, "The run ends within its first epoch (32 prompts of 32)"),
    ({"max_steps": 4, "steps_per_generation": 4, **ALONE}, "The run ends within its first epoch (32 prompts of 32)"),
    ({"max_steps": 4, "steps_per_generation": 1, **ALONE}, "The run ends within its first epoch (32 prompts of 32)"),
    ({"min_generations": 4, "max_steps": 50}, "min_generations (4) is num_generations"),
    ({"max_generations": 4, "max_steps": 50}, "max_generations (4) is num_generations"),
    ({"max_generations": 4, "max_steps": 50, "look_generations": 2}, "max_generations (4) is num_generations"),
    ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 99, **ALONE}, "A generation batch holds one prompt (generation_batch_size 4 / num_generations 4)"),
    ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": 99, "look_generations": 2, "allocation_window": 1}, "A generation batch holds one prompt"),
    ({"max_steps": 1}, "The run ends before the first budgets are decided (8 prompts, of which 8 are waited for)"),
    ({"max_steps": 3, "allocation_window": 20}, "The run ends before the first budgets are decided (24 prompts, of which 24 are waited for)"),
]  # fmt: skip


def trainer_of(model, path, **changes):
    args = KnapsackGRPOConfig(**options(path, **changes))
    return KnapsackGRPOTrainer(model, tiny.digit_reward, args, tiny.prompts())


def said(caplog):
    messages = [record.getMessage().removeprefix("[RANK 0] ") for record in caplog.records]
    return [message for message in messages if SAYS in message]


@pytest.mark.parametrize(("changes", "message"), SPEAKING)
def test_a_run_that_can_not_allocate_says_so(model, tmp_path, caplog, changes, message):
    trainer_of(model, tmp_path, **changes)
    (sentence,) = said(caplog)
    assert sentence.startswith(message) and "every prompt gets 4 generations" in sentence
    remedy = sentence.rpartition("; ")[2]
    assert remedy in (
        "lower it.",
        "raise it.",
        "raise per_device_train_batch_size or gradient_accumulation_steps, or set allocation_window, for example to 64.",
        "set look_generations or difficulty_columns, give success_state_path (`trl-knapsack probe` makes one), or train "
        "for more epochs.",
        "train for more steps, or lower allocation_window.",
    )


@pytest.mark.parametrize("changes", SILENT)
def test_a_run_that_can_is_silent(model, tmp_path, caplog, changes):
    trainer_of(model, tmp_path, **changes)
    assert said(caplog) == []


def test_what_is_known_or_decided_otherwise_is_silent(model, tmp_path, caplog):
    tracker = SuccessRateTracker()
    tracker.observe([f"prompt {i}" for i in range(32)], [1] * 32, [4] * 32)
    tracker.save(tmp_path / "known.safetensors")
    known = dict(prompt_id_column="name", success_state_path=str(tmp_path / "known.safetensors"), **ALONE)
    trainer_of(model, tmp_path, max_steps=1, **known)
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=1))
    rule = lambda evidence, budget, low, high: [budget // len(evidence)] * len(evidence)  # noqa: E731
    KnapsackGRPOTrainer(model, tiny.digit_reward, args, tiny.prompts(), allocation_rule=rule)
    stream = tiny.prompts().to_iterable_dataset()  # nobody knows when it begins anew
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=1, **ALONE))
    KnapsackGRPOTrainer(model, tiny.digit_reward, args, stream)
    assert said(caplog) == []
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=8))
    KnapsackGRPOTrainer(model, tiny.digit_reward, args, stream)
    assert len(said(caplog)) == 1  # 64 prompts are waited for


@pytest.mark.parametrize(
    ("changes", "ends"), [(ALONE, (4, 8)), ({"look_generations": 2, "allocation_window": 24}, (3, 5))]
)
def test_it_says_what_then_happens(model, tmp_path, caplog, changes, ends):
    """The last step in which nothing is known, and some further ones, on real runs: equal counts, and others."""
    for steps, equal in zip(ends, (True, False), strict=True):
        caplog.clear()
        trainer = train(
            KnapsackGRPOTrainer,
            model,
            KnapsackGRPOConfig(**options(tmp_path / str(steps), max_steps=steps, success_prior=[0.5, 0.5], **changes)),
        )
        assert ({len(set(record.allocation.counts.tolist())) for record in trainer.records} == {1}) == equal
        assert bool(said(caplog)) == equal


def test_what_does_not_fill_a_batch_is_no_part_of_an_epoch():
    """TRL's sampler leaves the last prompts out: 20 prompts are 2 batches of 8, and the third begins the second epoch."""
    args = KnapsackGRPOConfig(**options("out"))
    assert why_nothing_moves(args, 8, 0, 1, 20, 3, anything_known=False) is None
    assert "(16 prompts of 20)" in why_nothing_moves(args, 8, 0, 1, 20, 2, anything_known=False)

"""Real training runs of a tiny model, compared with TRL's own trainer and with plain-Python oracles."""

import ast
import inspect
import math
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny
import torch
import trl
from datasets import Dataset
from runs import WINDOW, assert_same_run, options, train
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from trl_knapsack import Allocation, KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.allocation import PosteriorRule
from trl_knapsack.training.seams import check_seams, check_unsloth


# ----------------------------------------------------------------------------------- parity with TRL, bit for bit


@pytest.mark.parametrize(
    "knapsack",
    [{"allocation": "uniform"}, {"allocation": "posterior", "min_generations": 4, "max_generations": 4}, None],
    ids=["uniform", "bounds equal", "plain GRPOConfig, uniform policy"],
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_iterations": 2, "steps_per_generation": 4, "beta": 0.1},
        {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "batch"},
    ],
    ids=["defaults", "off-policy with reference", "two rewards"],
)
def test_equal_groups_are_bit_for_bit_grpo(model, tmp_path, knapsack, changes):
    arguments = options(tmp_path, max_steps=10, **changes)
    rewards = tiny.digit_reward
    if "multi_objective_aggregation" in changes:
        rewards, arguments["reward_weights"] = [tiny.digit_reward, tiny.graded_reward], [1.0, 0.5]
    theirs = train(GRPOTrainer, model, GRPOConfig(**arguments), rewards=rewards)
    if knapsack is None:
        ours = train(
            KnapsackGRPOTrainer, model, GRPOConfig(**arguments), rewards=rewards, allocation_rule=equal_counts
        )
    else:
        ours = train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments, **knapsack), rewards=rewards)
    assert_same_run(ours, theirs)
    assert all((record.allocation.counts == 4).all() for record in ours.records)


def equal_counts(evidence, budget, min_generations, max_generations):
    prompts = len(evidence.alpha)
    return allocation([budget // prompts] * prompts)


def allocation(counts):
    """What a user's own policy returns."""
    return Allocation(np.array(counts))


def test_evaluation_is_not_touched(model, tmp_path):
    results = []
    for trainer_class, config_class in ((GRPOTrainer, GRPOConfig), (KnapsackGRPOTrainer, KnapsackGRPOConfig)):
        trainer = trainer_class(
            model=model,
            reward_funcs=tiny.digit_reward,
            args=config_class(**options(tmp_path, per_device_eval_batch_size=8, num_generations_eval=2)),
            train_dataset=tiny.prompts(),
            eval_dataset=tiny.prompts(8),
        )
        metrics = trainer.evaluate()
        results.append({k: v for k, v in metrics.items() if "time" not in k and "per_second" not in k})
    assert results[0] == results[1]
    assert results[0]["eval_reward"] > 0


# ------------------------------------------------------------------------------- unequal groups against an oracle


@pytest.mark.parametrize("allocation", ["posterior", "paper", "filter"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_unequal_groups_equal_plain_python(model, tmp_path, allocation, aggregation, scale_rewards):
    weights = [1.0, 0.5]
    args = KnapsackGRPOConfig(
        **options(
            tmp_path,
            allocation=allocation,
            multi_objective_aggregation=aggregation,
            scale_rewards=scale_rewards,
            reward_weights=weights,
            success_reward_func="digit_reward",
            log_completions=True,
            num_completions_to_print=1,
        )
    )
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=[tiny.digit_reward, tiny.graded_reward])

    assert any(len(set(record.allocation.counts)) > 1 for record in trainer.records)
    by_key = {}  # key -> prompt
    for step, record in enumerate(trainer.records, 1):
        table = pd.read_parquet(Path(args.output_dir) / "completions" / f"completions_{step:05d}.parquet")
        counts = record.allocation.counts.tolist()
        assert sum(counts) == len(table) == 32
        assert min(counts) >= 2
        assert len(counts) == 8
        for key, group in zip(record.keys, oracle.split(table["prompt"].tolist(), counts), strict=True):
            assert set(group) == {by_key.setdefault(key, group[0])}  # each row holds the prompt that was planned
        rewards = [
            [None if math.isnan(r) else r for r in row]
            for row in table[["digit_reward", "graded_reward"]].to_numpy().tolist()
        ]
        expected = oracle.advantages(rewards, counts, weights, scale_rewards, aggregation)
        assert table["advantage"].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)

        logs = trainer.state.log_history[step - 1]
        zero_std = oracle.frac_reward_zero_std(rewards, counts, weights, scale_rewards, aggregation)
        assert zero_std is None or logs["frac_reward_zero_std"] == pytest.approx(zero_std)
        mixed = oracle.mixed(rewards, counts, weights, aggregation)
        scored = [sum(any(r is not None for r in row) for row in group) for group in oracle.split(rewards, counts)]
        effective = sum(n for n, varies in zip(scored, mixed, strict=True) if varies)
        assert logs["knapsack/effective_gradient_ratio"] == pytest.approx(effective / 32)
        assert logs["knapsack/mixed_prompts"] == pytest.approx(sum(mixed) / 8)
        assert logs["knapsack/generations/max"] == max(counts)
        assert logs["knapsack/generations/min"] == min(counts)
        successes = [sum(row[0] >= 0.5 for row in group) for group in oracle.split(rewards, counts)]
        rates = [s / n for s, n in zip(successes, counts, strict=True)]
        assert logs["knapsack/success_rate"] == pytest.approx(sum(rates) / 8)
        assert logs["knapsack/difficulty/extremely_hard"] == pytest.approx(sum(p == 0 for p in rates) / 8)
        assert logs["knapsack/difficulty/extremely_easy"] == pytest.approx(sum(p == 1 for p in rates) / 8)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_gradients_of_unequal_groups_are_those_of_the_logged_advantages(model, tmp_path, power):
    """The advantages in the log are those in the loss: the gradient of one step, recomputed from the logged rows."""
    args = KnapsackGRPOConfig(
        **options(
            tmp_path,
            max_steps=1,
            gradient_accumulation_steps=1,
            loss_type="grpo",
            group_weight_power=power,
            log_completions=True,
            num_completions_to_print=1,
            max_grad_norm=0.0,
        )
    )
    gradient, completions_seen = {}, []

    def reward(completions, completion_ids, **kwargs):
        completions_seen.extend(completion_ids)
        return tiny.graded_reward(None, completions)

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradient.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    def counts_by_place(evidence, budget, low, high):
        return allocation([2, 9, 3, 2])

    trainer = KnapsackGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=tiny.prompts(),
        callbacks=[Keep()],
        allocation_rule=counts_by_place,
    )
    trainer.train()
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")

    # A group weighs in the loss as its size to the power, and all groups together as all rollouts.
    counts = [2, 9, 3, 2]
    weights = [16 * n**power / sum(m**power for m in counts) for n in counts]
    rewards = [[None if math.isnan(r) else r] for r in table["reward"].tolist()]
    plain = oracle.split(oracle.advantages(rewards, counts, [1.0], "group", "sum_then_normalize"), counts)
    expected = [a * w / n for group, w, n in zip(plain, weights, counts, strict=True) for a in group]
    assert table["advantage"].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)

    fresh = type(trainer.model).from_pretrained(model)
    losses = []
    for prompt, completion_ids, advantage in zip(table["prompt"], completions_seen, table["advantage"], strict=True):
        prompt_ids = trainer.processing_class(prompt)["input_ids"]
        logits = fresh(torch.tensor([prompt_ids + completion_ids])).logits[0, len(prompt_ids) - 1 : -1]
        logps = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(completion_ids).unsqueeze(1))
        losses.append(-advantage * logps.mean())
    torch.stack(losses).mean().backward()
    for name, parameter in fresh.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_trainer_learns_of_prompts_what_the_rewards_say(model, tmp_path):
    """Tracker and counts of a run, against a tally kept by the reward function itself."""
    visits = []

    def digit_reward(prompts, completions, name, trainer_state, **kwargs):
        rewards = tiny.digit_reward(prompts, completions)
        visits.append({})
        for n, reward in zip(name, rewards, strict=True):
            visits[-1].setdefault(n, []).append(reward)
        return rewards

    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=12, prompt_id_column="name"))
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=digit_reward)

    beliefs = oracle.Beliefs()
    for visit, record in zip(visits, trainer.records, strict=True):
        alphas, betas = beliefs.of(record.keys)
        np.testing.assert_allclose(record.evidence.alpha, alphas)
        np.testing.assert_allclose(record.evidence.beta, betas)
        assert beliefs.is_best(record.keys, record.allocation.counts.tolist())
        assert [len(visit[name]) for name in record.keys] == record.allocation.counts.tolist()
        for name, rewards in visit.items():
            beliefs.visit(name, rewards)

    last = trainer.state.log_history[len(trainer.records) - 1]
    assert last["knapsack/unseen"] == 0.0
    assert trainer.state.log_history[0]["knapsack/unseen"] == 1.0
    # Nothing is known in the first epoch, so all prompts get the same.
    assert trainer.state.log_history[0]["knapsack/generations/max"] == 4
    assert last["knapsack/generations/max"] > 4
    assert last["knapsack/value_over_uniform"] > 1.0


def test_completions_are_logged_with_the_size_of_their_group(model, tmp_path):
    args = KnapsackGRPOConfig(
        **options(
            tmp_path,
            max_steps=6,
            log_completions=True,
            num_completions_to_print=1,
            eval_strategy="steps",
            eval_steps=3,
            num_generations_eval=2,
        )
    )
    trainer = train(KnapsackGRPOTrainer, model, args, eval_dataset=tiny.prompts(8))
    for step, record in enumerate(trainer.records, 1):
        table = pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        counts = record.allocation.counts
        if step % 3:  # else an evaluation has written its own over it
            assert table["generations"].tolist() == [n for n in counts for _ in range(n)]
    assert any(len(set(record.allocation.counts)) > 1 for record in trainer.records)


def test_extremes_of_several_batches_are_not_averaged(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=12, logging_steps=6))
    trainer = train(KnapsackGRPOTrainer, model, args)
    logs = trainer.state.log_history
    for window, records in ((0, trainer.records[:6]), (1, trainer.records[6:])):
        counts = np.array([record.allocation.counts for record in records])
        assert logs[window]["knapsack/generations/max"] == counts.max()
        assert logs[window]["knapsack/generations/min"] == counts.min()
        assert logs[window]["knapsack/generations/p90"] == pytest.approx(np.percentile(counts, 90, axis=1).mean())
    assert logs[1]["knapsack/generations/max"] > logs[1]["knapsack/generations/p90"]


def test_unequal_groups_ask_for_one_completion_per_row(model, tmp_path, monkeypatch):
    """vLLM's server mode would otherwise take every `num_generations`-th row and repeat it."""
    asked = []
    theirs = GRPOTrainer._generate_single_turn

    def spy(self, *args, **kwargs):
        # TRL before 1.15 reads it here; since then it was read just before, and is the fourth argument.
        asked.append(args[3] if len(args) > 3 else self.num_generations if self.model.training else 2)
        return theirs(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", spy)
    args = KnapsackGRPOConfig(
        **options(tmp_path, max_steps=12, eval_strategy="steps", eval_steps=12, num_generations_eval=2)
    )
    trainer = train(KnapsackGRPOTrainer, model, args, eval_dataset=tiny.prompts(8))
    expected = [4 if (record.allocation.counts == 4).all() else 1 for record in trainer.records]
    assert asked == expected + [2] * 2
    assert set(expected) == {1, 4}
    assert trainer.num_generations == 4


def test_extra_fields_of_a_rollout_func_reach_their_own_rows(model, tmp_path):
    seen = []

    def rollout(prompts, trainer):
        rows = range(len(prompts))
        return {
            "prompt_ids": [[3]] * len(prompts),
            "completion_ids": [[3 + row % 10, 1] for row in rows],
            "logprobs": None,
            "row": list(rows),
        }

    def reward(completions, row, **kwargs):
        seen.append(row)
        return [float(r % 3 == 0) for r in row]

    train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**options(tmp_path)), rewards=reward, rollout_func=rollout)
    assert seen == [list(range(32))] * 6


def test_the_id_column_outlives_remove_unused_columns(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, prompt_id_column="name", remove_unused_columns=True, max_steps=1))
    trainer = train(KnapsackGRPOTrainer, model, args)
    assert all(key.startswith("prompt ") for key in trainer.success_tracker.keys)


def test_prompts_in_the_order_of_the_dataset(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, shuffle_dataset=False, prompt_id_column="name"))
    trainer = train(KnapsackGRPOTrainer, model, args)
    visited = [key for record in trainer.records for key in record.keys]
    assert visited == [f"prompt {i % 32}" for i in range(len(visited))]
    assert len(visited) == 48


@pytest.mark.parametrize(("threshold", "rate"), [(0.9, 1.0), (0.91, 0.0)])
def test_a_reward_at_the_threshold_succeeds(model, tmp_path, threshold, rate):
    def almost(completions, **kwargs):
        return [0.9] * len(completions)  # 0.9 is not a float32

    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=1, success_threshold=threshold))
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=almost)
    assert trainer.state.log_history[0]["knapsack/success_rate"] == rate


def test_your_own_rule_of_success(model, tmp_path):
    seen = {}

    def both(rewards):
        seen.update(rewards)
        success = (rewards["digit_reward"] > 0) & (rewards["graded_reward"] > 0.5)
        return np.where(np.isnan(rewards["graded_reward"]), np.nan, success)

    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=1))
    rewards = [tiny.digit_reward, tiny.graded_reward]
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=rewards, success_func=both)
    record = trainer.records[0]
    digit, graded = oracle.split(seen["digit_reward"], [4] * 8), oracle.split(seen["graded_reward"], [4] * 8)
    assert np.isnan(graded).any()
    assert record.trials.tolist() == [sum(not math.isnan(x) for x in group) for group in graded]
    assert record.successes.tolist() == [
        sum(a > 0 and b > 0.5 for a, b in zip(*groups, strict=True)) for groups in zip(digit, graded, strict=True)
    ]


@pytest.mark.parametrize("answer", [[1.0] * 31, [0.5] * 32])
def test_a_rule_of_success_that_does_not_decide_is_refused(model, tmp_path, answer):
    with pytest.raises(ValueError, match="must return true, false or NaN for each of 32 rollouts"):
        train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**options(tmp_path)), success_func=lambda _: answer)


def test_two_rules_of_success_are_refused(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, success_reward_func="digit_reward"))
    with pytest.raises(ValueError, match="Both success_func and success_reward_func"):
        train(KnapsackGRPOTrainer, model, args, success_func=lambda rewards: rewards["digit_reward"])


@pytest.mark.parametrize("odd", [float("inf"), -5.0, float("nan")])
def test_odd_rewards_do_not_spoil_the_rest(model, tmp_path, odd):
    """As in GRPO, a group with an infinite reward has no advantage, and no other group notices."""

    def reward(prompts, completions, **kwargs):
        rewards = tiny.digit_reward(prompts, completions)
        return [odd, *rewards[1:]]

    args = KnapsackGRPOConfig(**options(tmp_path))
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=reward)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    evidence = trainer.success_tracker.evidence(trainer.success_tracker.keys)
    assert np.isfinite(evidence.alpha).all()
    assert np.isfinite(evidence.beta).all()
    lost = 1 if math.isnan(odd) else 0
    assert [record.trials.sum() for record in trainer.records] == [32 - lost] * 6


def named(name, reward):
    def function(**kwargs):
        return reward(**kwargs)

    function.__name__ = name
    return function


NOTEBOOK = ["xmlcount", "soft_format", "strict_format", "int_reward", "correctness_reward"]  # of a popular notebook


@pytest.mark.parametrize(
    ("names", "options_", "decides"),
    [
        (["digit_reward", "graded_reward"], {}, "The weighted sum of digit_reward, graded_reward decides success"),
        (["think_format_reward", "accuracy_reward"], {}, "accuracy_reward decides success, because of its name"),
        (NOTEBOOK, {}, "correctness_reward decides success, because of its name"),
        (["accuracy", "correctness"], {}, "The weighted sum of accuracy, correctness decides success"),
        (NOTEBOOK, {"success_reward_func": "int_reward"}, None),
        (["digit_reward"], {}, None),
    ],
)
def test_what_decides_success_is_said_at_both_ends(model, tmp_path, caplog, names, options_, decides):
    def never(prompts, **kwargs):
        return [0.0] * len(prompts)

    def always(prompts, **kwargs):
        return [1.0] * len(prompts)

    rewards = [named(name, never if "correct" in name or "accuracy" in name else always) for name in names]
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=1, **options_))
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=rewards)
    said = [record.message for record in caplog.records if "decides success" in record.message]
    assert len(said) == (0 if decides is None else 2)
    assert all(decides in message and "Set success_reward_func to one of" in message for message in said)
    # The function for correctness fails always, all others succeed always.
    fails = decides is not None and "because of its name" in decides
    assert trainer.state.log_history[0]["knapsack/success_rate"] == (
        0.0 if fails else 1.0 if names != ["accuracy", "correctness"] else 0.0
    )


def test_two_rows_of_one_prompt_are_one_visit(model, tmp_path):
    dataset = Dataset.from_dict({"prompt": ["m01", "m02"] * 4})
    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=1))
    trainer = train(KnapsackGRPOTrainer, model, args, dataset=dataset)
    record = trainer.records[0]
    assert len(set(record.keys)) == 2
    evidence = trainer.success_tracker.evidence(sorted(set(record.keys)))
    assert evidence.visits.tolist() == [1, 1]
    assert (evidence.alpha + evidence.beta).tolist() == [18.0, 18.0]  # 4 groups of 4, and the prior


def test_batches_without_any_reward(model, tmp_path):
    def no_reward(completions, **kwargs):
        return [None] * len(completions)

    args = KnapsackGRPOConfig(**options(tmp_path, max_steps=2))
    trainer = train(KnapsackGRPOTrainer, model, args, rewards=no_reward)
    assert trainer.success_tracker.evidence(trainer.success_tracker.keys).visits.max() == 0
    assert trainer.state.log_history[0]["knapsack/effective_gradient_ratio"] == 0
    assert trainer.state.log_history[0]["knapsack/success_rate"] is None


# -------------------------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize(
    ("stop", "changes", "trl_goes_on_exactly"),
    [
        (3, {}, True),  # within the first epoch, between two windows
        (6, {}, False),  # in the second epoch
        (4, {}, None),  # at the end of the first epoch
        (3, {"allocation": "paper"}, None),
        (6, {"shuffle_dataset": False}, True),
        (3, {"look_generations": 2}, None),
        (6, {"look_generations": 2, "allocation_window": 20}, None),
        (6, {"look_generations": 2, "allocation_window": 20, "token_budget": "uniform"}, None),
        (6, {**WINDOW, "look_generations": 2, "allocation_window": 20}, None),
        (6, WINDOW, False),  # in the middle of a window
        (7, {**WINDOW, "num_iterations": 2, "beta": 0.1}, False),
        (8, {**WINDOW, "gradient_accumulation_steps": 3}, False),  # epochs end within an accumulation
    ],
)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(model, tmp_path, stop, changes, trl_goes_on_exactly):
    arguments = options(tmp_path, save_strategy="steps", save_steps=stop, max_steps=2 * stop + 2, num_train_epochs=9)
    arguments.update(changes)

    def whole_and_resumed(trainer_class, config_class):
        whole = train(trainer_class, model, config_class(**arguments))
        resumed = train(trainer_class, model, config_class(**arguments), resume=str(tmp_path / f"checkpoint-{stop}"))
        return whole, resumed

    whole, resumed = whole_and_resumed(KnapsackGRPOTrainer, KnapsackGRPOConfig)
    assert resumed.gradients == whole.gradients[stop:]
    for a, b in zip(reversed(whole.records), reversed(resumed.records), strict=False):
        assert a.keys == b.keys
        assert a.allocation.counts.tolist() == b.allocation.counts.tolist()
        assert a.successes.tolist() == b.successes.tolist()
    assert whole.success_rate_callback.waiting.digest() == resumed.success_rate_callback.waiting.digest()
    for key, value in whole.success_tracker.state_dict().items():
        np.testing.assert_array_equal(value, resumed.success_tracker.state_dict()[key])
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)

    if trl_goes_on_exactly is not None:
        arguments = {k: v for k, v in arguments.items() if k != "allocation"}
        whole, resumed = whole_and_resumed(GRPOTrainer, GRPOConfig)
        assert (resumed.gradients == whole.gradients[stop:]) == trl_goes_on_exactly


def test_resuming_without_success_rates_on_request(model, tmp_path, caplog):
    arguments = options(tmp_path, save_strategy="steps", save_steps=2, max_steps=4)
    train(GRPOTrainer, model, GRPOConfig(**arguments))
    args = KnapsackGRPOConfig(**arguments, resume_success_state=False)
    resumed = train(KnapsackGRPOTrainer, model, args, resume=str(tmp_path / "checkpoint-2"))
    assert "checkpoint-2, if any, are not used" in caplog.text
    assert resumed.state.global_step == 4
    assert resumed.records[0].evidence.visits.max() == 0


@pytest.mark.parametrize("where", ["run", "run/checkpoint-6", "run/knapsack_state.safetensors"])
def test_success_rates_are_carried_into_another_run(model, tmp_path, where, caplog):
    arguments = options(tmp_path / "run", save_strategy="steps", save_steps=6, max_steps=6, prompt_id_column="name")
    first = train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments))
    arguments.update(output_dir=str(tmp_path / "next"), success_state_path=str(tmp_path / where), seed=1)
    second = train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments))
    assert "None of the first" not in caplog.text
    evidence = second.records[0].evidence
    known = first.success_tracker.evidence(second.records[0].keys)
    assert evidence.visits.tolist() == known.visits.tolist()
    assert min(evidence.visits) >= 1
    assert evidence.alpha.tolist() == known.alpha.tolist()
    assert len(set(second.records[0].allocation.counts)) > 1  # no uniform first epoch

    del arguments["prompt_id_column"]
    train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments))
    assert "None of the first 32 prompts is known" in caplog.text


def test_a_state_that_is_not_there_is_refused(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, success_state_path=str(tmp_path / "nowhere")))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        train(KnapsackGRPOTrainer, model, args)


def test_a_window_of_other_settings_is_generated_again(model, tmp_path, caplog):
    arguments = options(tmp_path, **WINDOW, save_strategy="steps", save_steps=2, max_steps=6)
    train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments))
    arguments["steps_per_generation"] = 2
    args = KnapsackGRPOConfig(**arguments)
    resumed = train(KnapsackGRPOTrainer, model, args, resume=str(tmp_path / "checkpoint-2"))
    assert "are generated again" in caplog.text
    assert resumed.state.global_step == 6


def test_a_window_that_can_not_be_read_is_refused(model, tmp_path):
    arguments = options(tmp_path, **WINDOW, save_strategy="steps", save_steps=2, max_steps=2)
    train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments))
    path = tmp_path / "checkpoint-2" / "knapsack_window_0.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="knapsack_window_0.safetensors is not a readable generation window"):
        train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments), resume=str(tmp_path / "checkpoint-2"))


def test_resuming_without_success_rates_is_refused(model, tmp_path):
    arguments = options(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    train(GRPOTrainer, model, GRPOConfig(**arguments))
    with pytest.raises(
        FileNotFoundError, match="checkpoint-2 holds no knapsack_state.safetensors.*resume_success_state=False"
    ):
        train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments), resume=str(tmp_path / "checkpoint-2"))


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_generations": 1}, r"min_generations \(1\) must be at least 2"),
        ({"min_generations": 5}, r"min_generations \(5\) must be at most num_generations \(4\)"),
        ({"max_generations": 3}, r"max_generations \(3\) must be at least num_generations \(4\)"),
        ({"group_weight_power": 1.5}, r"group_weight_power \(1.5\) must lie between 0, every prompt weighs the same"),
        ({"group_weight_power": -0.5}, r"group_weight_power \(-0.5\) must lie between 0"),
        ({"group_weight_power": float("nan")}, r"group_weight_power \(nan\) must lie between 0"),
        ({"token_budget": "equal"}, r"token_budget \('equal'\) must be 'uniform', the tokens of equal shares"),
        (
            {"token_budget": "uniform", "allocation": "paper"},
            r"token_budget \('uniform'\) needs allocation='posterior', not 'paper'",
        ),
        ({"allocation": "greedy"}, r"allocation 'greedy' must be one of 'posterior'"),
        ({"success_prior": [0.0, 0.5]}, r"success_prior \[0.0, 0.5\] must be two positive numbers"),
        ({"success_prior": 1.0}, r"success_prior 1.0 must be two positive numbers, for example \(1.0, 1.0\)"),
        ({"success_decay": 1.5}, r"success_decay \(1.5\)"),
        ({"success_threshold": float("nan")}, r"success_threshold \(nan\)"),
    ],
)
def test_bad_options(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        KnapsackGRPOConfig(**options(tmp_path, **changes))


@pytest.mark.parametrize(
    ("dataset", "changes", "message"),
    [
        (Dataset.from_dict({"prompt": []}), {}, r"train_dataset has 0 prompts, but one generation batch needs 8"),
        (tiny.prompts(7), {}, r"train_dataset has 7 prompts, but one generation batch needs 8"),
        (Dataset.from_dict({"question": ["a"] * 8}), {}, r"no column 'prompt', only \['question'\]"),
        (tiny.prompts(), {"prompt_id_column": "uid"}, r"prompt_id_column 'uid' is not a column"),
        (tiny.prompts(), {"success_reward_func": "accuracy"}, r"'accuracy' must be one of .*: digit_reward"),
    ],
)
def test_bad_data(model, tmp_path, dataset, changes, message):
    with pytest.raises(ValueError, match=message):
        KnapsackGRPOTrainer(
            model=model,
            reward_funcs=tiny.digit_reward,
            args=KnapsackGRPOConfig(**options(tmp_path, **changes)),
            train_dataset=dataset,
        )


def test_a_plain_config_with_too_many_generations_says_what_to_raise(model, tmp_path):
    args = GRPOConfig(**options(tmp_path, per_device_train_batch_size=256, num_generations=256))
    with pytest.raises(ValueError, match=r"max_generations \(128\) must be at least num_generations \(256\)"):
        KnapsackGRPOTrainer(model=model, reward_funcs=tiny.digit_reward, args=args, train_dataset=tiny.prompts())


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ([4] * 6 + [8], r"returned counts for 7 prompts, but there are 8; give one count for each"),
        ([4] * 7 + [5], r"gave out 33 rollouts, but the budget is 32; give out all of it and no more"),
        ([1, 7] + [4] * 6, r"gave 1 rollouts to prompt 0 .* min_generations \(2\) to max_generations \(128\)"),
    ],
)
def test_an_answer_that_breaks_the_rules_is_refused(model, tmp_path, counts, sentence):
    args = KnapsackGRPOConfig(**options(tmp_path))
    with pytest.raises(ValueError, match=sentence):
        train(KnapsackGRPOTrainer, model, args, allocation_rule=lambda *_: allocation(counts))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("posterior", r"allocation_rule \('posterior'\) must be a rule, not a name"),
        (PosteriorRule, r"allocation_rule is the class PosteriorRule, but must be an instance"),
        (lambda evidence, budget: None, r"takes \(evidence, budget\), but is called with four arguments"),
    ],
)
def test_what_is_no_rule_is_refused_at_construction(model, tmp_path, rule, sentence):
    with pytest.raises(ValueError, match=sentence):
        KnapsackGRPOTrainer(
            model, tiny.digit_reward, KnapsackGRPOConfig(**options(tmp_path)), tiny.prompts(), allocation_rule=rule
        )


def test_a_token_budget_beside_a_rule_of_ones_own_is_refused(model, tmp_path):
    args = KnapsackGRPOConfig(**options(tmp_path, token_budget="uniform"))
    with pytest.raises(
        ValueError, match=r"token_budget \('uniform'\) is an option of .* but allocation_rule is given"
    ):
        KnapsackGRPOTrainer(model, tiny.digit_reward, args, tiny.prompts(), allocation_rule=PosteriorRule())


@pytest.mark.parametrize("changes", [{}, {"look_generations": 2, "allocation_window": 16}], ids=["alone", "looks"])
def test_a_token_budget_keeps_to_the_tokens_of_equal_shares(model, tmp_path, changes):
    """Prompts that are often solved but not always have long completions here, and are wanted most."""

    def generate(prompts, trainer):
        random = np.random.default_rng(trainer.state.global_step)
        ids = []
        for prompt in prompts:
            length = 6 if prompt.startswith("m") else 1
            ids.append([*random.integers(3, 13, length - 1).tolist(), 1])
        encoded = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": encoded, "completion_ids": ids, "logprobs": None}

    def reward(prompts, completion_ids, **kwargs):
        return [
            float(prompt.startswith("m") and ids[0] % 2) for prompt, ids in zip(prompts, completion_ids, strict=True)
        ]

    over = {}
    for limit in (None, "uniform"):
        args = KnapsackGRPOConfig(
            **options(tmp_path / str(limit), max_steps=16, learning_rate=0.0, token_budget=limit, **changes)
        )
        trainer = train(
            KnapsackGRPOTrainer, model, args, rewards=reward, rollout_func=generate, dataset=tiny.prompts(kinds="eemh")
        )
        logs = [log for log in trainer.state.log_history if "knapsack/tokens_over_uniform" in log]
        over[limit] = np.array([log["knapsack/tokens_over_uniform"] for log in logs[6:]])
        tokens = [record.tokens.sum() for record in trainer.records]
        assert over[limit].min() > 0.5 and len(tokens) == 16
    assert over[None].mean() > 1.1
    assert over["uniform"].mean() < 1.02


def test_a_sampler_that_does_not_repeat_prompts_is_refused(model, tmp_path):
    class Unrepeated(KnapsackGRPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    with pytest.raises(RuntimeError, match="must repeat each prompt num_generations"):
        train(Unrepeated, model, KnapsackGRPOConfig(**options(tmp_path)))


def test_a_trl_without_a_seam_is_refused(model, tmp_path, monkeypatch):
    check_seams(GRPOTrainer)

    class Renamed(GRPOTrainer):
        def _calculate_rewards(self, batch):
            pass

    with pytest.raises(ImportError, match=r"has no Renamed._calculate_rewards\(inputs, .*install a TRL that works"):
        check_seams(Renamed)
    with pytest.raises(ImportError, match=r"object._generate_and_score_completions"):
        check_seams(object)
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", Renamed._calculate_rewards)
    with pytest.raises(ImportError, match=r"has no GRPOTrainer._calculate_rewards"):
        train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**options(tmp_path)))


def test_a_trl_with_other_advantages_is_refused(model, tmp_path, monkeypatch):
    theirs = GRPOTrainer._generate_and_score_completions

    def changed(self, inputs):
        output = theirs(self, inputs)
        output["advantages"] = output["advantages"] * 2
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", changed)
    with pytest.raises(RuntimeError, match="computes other advantages"):
        train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**options(tmp_path)))


@pytest.mark.parametrize("missing", ["reward_weights", "_buffered_inputs", "shuffle_dataset"])
def test_a_trl_without_an_attribute_is_refused(model, tmp_path, monkeypatch, missing):
    theirs = GRPOTrainer.__init__

    def renamed(self, *args, **kwargs):
        theirs(self, *args, **kwargs)
        delattr(self, missing)

    monkeypatch.setattr(GRPOTrainer, "__init__", renamed)
    with pytest.raises(ImportError, match=rf"has no KnapsackGRPOTrainer.{missing}, which .*install a TRL that works"):
        train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**options(tmp_path)))


def test_a_sampler_without_a_field_is_refused(model, tmp_path, monkeypatch):
    theirs = RepeatSampler.__init__

    def renamed(self, *args, **kwargs):
        theirs(self, *args, **kwargs)
        del self.num_samples

    monkeypatch.setattr(RepeatSampler, "__init__", renamed)
    with pytest.raises(ImportError, match=r"has no RepeatSampler.num_samples, which trl_knapsack reads"):
        train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**options(tmp_path)))


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("UNSLOTH_GRPO_ZERO_VARIANCE_EXCLUDE", "1", True),
        ("UNSLOTH_GRPO_ZERO_VARIANCE_EXCLUDE", "0", False),
        ("UNSLOTH_GRPO_LOSS_AGGREGATION", "prompt", True),
        ("UNSLOTH_GRPO_LOSS_AGGREGATION", "token", False),
    ],
)
def test_unsloth_with_groups_of_equal_size_is_refused(monkeypatch, name, value, refused):
    monkeypatch.setenv(name, value)
    check_unsloth(KnapsackGRPOTrainer)  # not imported, so its options mean nothing
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    with pytest.raises(ImportError, match=f"{name}={value} makes Unsloth") if refused else nullcontext():
        check_unsloth(KnapsackGRPOTrainer)


def test_unsloth_imported_too_late_is_refused(model, tmp_path, monkeypatch):
    """It replaces `trl.GRPOTrainer`, and whoever has imported it before keeps TRL's."""
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    monkeypatch.setattr(trl, "GRPOTrainer", type("UnslothGRPOTrainer", (GRPOTrainer,), {}))
    with pytest.raises(ImportError, match="put `import unsloth` before `import trl_knapsack`"):
        train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**options(tmp_path)))


def test_the_arguments_are_trls_and_two_more():
    """As an editor reads them from the source, and as `help` shows them."""
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert list(inspect.signature(KnapsackGRPOTrainer).parameters) == [*theirs[1:], "allocation_rule", "success_func"]
    source = ast.parse(Path(inspect.getfile(KnapsackGRPOTrainer)).read_text())
    (written,) = (
        [argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]]
        for node in ast.walk(source)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and len(node.args.args) > 5
    )
    newer = {"quantization_config"}  # than the oldest TRL; what is written is that of the newest
    assert [name for name in written if name not in newer - set(theirs)] == [
        *theirs,
        "allocation_rule",
        "success_func",
    ]

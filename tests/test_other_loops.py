"""docs/other_loops.md: RLOO by options, environments whose turns cost something, and what PPO's rollouts buy."""

import itertools
import re

import numpy as np
import pytest
import tiny
import tiny_chat
import torch
from backends import config, run
from runs import options
from snippets import ROOT, blocks, short
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
from trl_knapsack.allocation import BetaBeliefs, Evidence, PosteriorRule, UniformRule, allocate
from trl_knapsack.training.advantages import group_advantages
from trl_knapsack.training.seams import ATTRIBUTES, check_seams


PAGE = ROOT / "docs" / "other_loops.md"


def of_page(*names):
    """What the page's blocks define, without those that train."""
    namespace = {"print": lambda *args: None}
    for code, _ in blocks(PAGE, "python"):
        code = re.sub(r"^trainer = .*?^\)\n|^trainer\.train\(\)\n", "", code, flags=re.DOTALL | re.MULTILINE)
        exec(code, namespace)
    return [namespace[name] for name in names]


# ------------------------------------------------------------------------------------------------------------- RLOO


class Watch(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))


def rloo_or_ours(model, path, trainer_class, config_class, **changes):
    changes = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": 3, **changes}
    watch = Watch()
    trainer = trainer_class(
        model=model,
        reward_funcs=tiny.digit_reward,
        args=config_class(**options(path, **changes)),
        train_dataset=tiny.prompts(),
        callbacks=[watch],
    )
    trainer.train()
    return trainer, watch.gradients


def test_with_the_options_of_the_page_gradients_are_those_of_rloo(model, tmp_path):
    (as_rloo,) = of_page("as_rloo")
    n = options(tmp_path)["num_generations"]
    rate = 1e-2
    rloo, theirs = rloo_or_ours(model, tmp_path, RLOOTrainer, RLOOConfig, beta=0.0, learning_rate=rate)
    changes = dict(allocation="uniform", learning_rate=rate * n / (n - 1), **as_rloo)
    trainer, ours = rloo_or_ours(model, tmp_path, KnapsackGRPOTrainer, KnapsackGRPOConfig, **changes)
    assert len(ours) == len(theirs) == 3
    for our, their in zip(ours, theirs, strict=True):
        assert their.abs().max() > 1e-3
        torch.testing.assert_close(our, their * (1 - 1 / n), rtol=1e-4, atol=1e-5 * their.abs().max().item())
    assert list(trainer._logs["completion"]) == list(rloo._logs["completion"])
    assert len(set(trainer._logs["advantages"])) > 2
    assert list(trainer._logs["advantages"]) == pytest.approx([a * (1 - 1 / n) for a in rloo._logs["advantages"]])


def test_the_seams_are_in_rloo_too():
    check_seams(RLOOTrainer)


def test_rloo_lacks_only_what_scales_rewards(model, tmp_path):
    args = RLOOConfig(**options(tmp_path, beta=0.0))
    trainer = RLOOTrainer(model, reward_funcs=tiny.digit_reward, args=args, train_dataset=tiny.prompts())
    missing = {name for name in ATTRIBUTES if not hasattr(trainer, name)}
    assert missing == {"scale_rewards", "multi_objective_aggregation"}


def test_unequal_groups_are_leave_one_out_up_to_the_factor_of_each():
    rewards, sizes, looked = torch.rand(17, 1), [2, 3, 5, 7], [0, 3, 0, 3]
    group = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    looks, look_group = torch.rand(6, 1), torch.arange(4).repeat_interleave(torch.tensor(looked))
    ours = group_advantages(rewards, group, torch.ones(1), "none", "sum_then_normalize", (looks, look_group))
    wanted = []
    for j, i in enumerate(group.tolist()):
        others = [r.item() for k, r in enumerate(rewards) if group[k] == i and k != j]
        others += looks[look_group == i].flatten().tolist()
        n = len(others) + 1
        assert n == sizes[i] + looked[i]
        wanted.append((1 - 1 / n) * (rewards[j].item() - sum(others) / (n - 1)))
    assert ours.advantages.tolist() == pytest.approx(wanted, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- PPO

BASELINES = {
    "critic": (lambda rewards, j: 0.9, lambda n: 1.0),
    "leave one out": (lambda rewards, j: (sum(rewards) - rewards[j]) / (len(rewards) - 1), lambda n: 1.0),
    "group mean": (lambda rewards, j: sum(rewards) / len(rewards), lambda n: 1 - 1 / n),
}


@pytest.mark.parametrize("name", BASELINES)
def test_expected_gradient_with_each_baseline(name):
    """All outcomes of a policy that succeeds with probability sigmoid(z): d log pi / dz is r - p, and dp / dz is p (1 - p)."""
    baseline, factor = BASELINES[name]
    p = 0.2
    for n in range(1 if name == "critic" else 2, 6):
        expected = 0.0
        for rewards in itertools.product((0, 1), repeat=n):
            chance = np.prod([p if r else 1 - p for r in rewards])
            expected += chance * sum((r - baseline(rewards, j)) * (r - p) for j, r in enumerate(rewards)) / n
        assert expected == pytest.approx(factor(n) * p * (1 - p))


def test_the_counts_for_a_critic_are_the_best_there_are():
    (less_variance,) = of_page("less_variance")
    beliefs = BetaBeliefs(alpha=[1, 3, 9, 20], beta=[17, 15, 9, 2])
    p = beliefs.mean
    strength = beliefs.alpha + beliefs.beta
    variance = p * (1 - p) * strength / (strength + 1)  # of the reward, expected: E[p] - E[p^2]
    best = min(
        (counts for counts in itertools.product(range(1, 18), repeat=4) if sum(counts) == 20),
        key=lambda counts: (variance / counts).sum(),
    )
    allocation = allocate(beliefs, 20, min_generations=1, value=less_variance)
    assert tuple(allocation.counts) == best
    assert -allocation.value == pytest.approx((variance / best).sum())


# ----------------------------------------------------------------------------------------------- tools, environments


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> str:
    return tiny_chat.save_model(tmp_path_factory.mktemp("chat_model"))


@pytest.mark.parametrize("what", ["tokens", "turns"])
def test_turns_as_a_cost(chat_model, tmp_path, what):
    Drawers, found, mean_turns, dataset, of_turns = of_page("Drawers", "found", "mean_turns", "dataset", "TurnBudget")
    rule_class = PosteriorRule if what == "tokens" else of_turns
    turns, costs = {}, []

    def seen(environments, name, **columns):
        for key, environment in zip(name, environments, strict=True):
            turns.setdefault(key, []).append(environment.turns)
        return found(environments, name, **columns)

    class Rule(rule_class):
        def __call__(self, evidence, *others):
            costs.append(
                evidence.mean_length
                if what == "tokens"
                else np.array([mean_turns.get(key, np.nan) for key in evidence.keys])
            )
            return super().__call__(evidence, *others)

    args = config(tmp_path, max_completion_length=24, max_steps=4)
    trainer = run(
        chat_model,
        args,
        rewards=seen,
        dataset=dataset.select(range(8)),
        environment_factory=Drawers,
        allocation_rule=Rule(token_budget="uniform"),
    )

    tracker, tokens, rollouts = trainer.success_tracker, np.zeros(8), np.zeros(8)
    for record, output, cost in zip(trainer.records, trainer.outputs, costs, strict=True):
        assert record.keys == record.evidence.keys and set(record.keys) == set(dataset["name"][:8])
        if not np.isnan(cost).any():
            equal = UniformRule()(record.evidence, 32, 2, 128).counts
            assert record.allocation.counts @ cost <= (equal @ cost) * (1 + 1e-9)
        order = np.argsort(record.keys)
        tokens = 0.85 * tokens + np.asarray(record.tokens)[order]  # the default of success_decay
        rollouts = 0.85 * rollouts + record.allocation.counts[order]
        assert sum(record.tokens) == output["completion_mask"].sum()
    assert tracker.evidence(sorted(dataset["name"][:8])).mean_length == pytest.approx(tokens / rollouts)
    assert any((output["completion_mask"] > output["tool_mask"]).any() for output in trainer.outputs)  # results count
    assert len(set(trainer.records[-1].allocation.counts)) > 1
    assert max(max(of) for of in turns.values()) > 2
    for key, of in turns.items():
        running = of[0]
        for now in of:
            running = 0.8 * running + 0.2 * now
        assert mean_turns[key] == pytest.approx(running)


def test_a_rule_that_minds_costs_always_finds_counts():
    """Also where equal shares are the cheapest there are, and the bounds those of prompts that wait."""
    rng = np.random.default_rng(0)
    for case in range(100):
        prompts = int(rng.integers(2, 20))
        lengths = np.full(prompts, rng.random()) if case % 2 else rng.random(prompts) * 1000
        lengths[rng.random(prompts) < 0.2] = np.nan
        alpha, beta = rng.random((2, prompts)) * 5 + 0.1
        low = rng.integers(1, 5, prompts)
        budget = int(low.sum() + rng.integers(0, 50))
        evidence = Evidence(tuple("p" * prompts), alpha, beta, alpha * 0, np.ones(prompts, int), lengths)
        counts = PosteriorRule(token_budget="uniform")(evidence, budget, low, 128).counts
        assert counts.sum() == budget and (counts >= low).all()


def test_it_has_looks_by_default_as_the_posterior_rule(chat_model, tmp_path):
    Drawers, found, dataset, rule_class = of_page("Drawers", "found", "dataset", "TurnBudget")
    trainer = KnapsackGRPOTrainer(
        model=chat_model,
        reward_funcs=found,
        environment_factory=Drawers,
        args=short(KnapsackGRPOConfig)(str(tmp_path), num_generations=8, prompt_id_column="name"),
        train_dataset=dataset,
        allocation_rule=rule_class(token_budget="uniform"),
    )
    assert (trainer._look, trainer._window > 1) == (3, True)
    assert isinstance(trainer.allocation_rule, PosteriorRule)

"""What is compared: rules for sharing rollouts out and weighing them, all in one trainer."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from policies import success_rates
from trl.trainer.utils import RepeatSampler, pad

from trl_knapsack import KnapsackGRPOTrainer, allocate
from trl_knapsack.allocation import Allocation
from trl_knapsack.policies import PaperPolicy, PosteriorPolicy, UniformPolicy


@dataclass(frozen=True)
class Contender:
    """
    One way to spend a budget of rollouts.

    Args:
        about (`str`): What it is, for the tables.
        num_generations (`int`): Mean generations of a prompt.
        budget (`float`): Rollouts per step, as a multiple of the others'.
        options (`dict`): Options of `KnapsackGRPOConfig`.
        policy (`Callable`, *optional*): Allocation policy, else `options["allocation"]`.
        trainer (`type`): The trainer.
        lr_of (`str`, *optional*): The contender whose learning rate is used, for variants that are not tuned alone.
    """

    about: str
    num_generations: int = 8
    budget: float = 1.0
    options: dict = field(default_factory=dict)
    policy: Callable | None = None
    trainer: type[KnapsackGRPOTrainer] = KnapsackGRPOTrainer
    lr_of: str | None = None


class RootShares:
    """
    Counts in proportion to the standard deviation that is expected of each prompt's reward, `E[sqrt(p (1-p))]`.

    The shares that make the sum of the prompts' mean rewards least uncertain (Neyman 1934), when every prompt weighs the
    same.
    """

    def __call__(self, evidence, budget, min_generations, max_generations) -> Allocation:
        grid = (np.arange(200) + 0.5) / 200  # (T,)
        a, b = evidence.alpha[:, None], evidence.beta[:, None]
        log_density = (a - 1) * np.log(grid) + (b - 1) * np.log1p(-grid)  # (P, T)
        density = np.exp(log_density - log_density.max(axis=1, keepdims=True))
        spread = (density * np.sqrt(grid * (1 - grid))).sum(axis=1) / density.sum(axis=1)  # (P,)

        def counts_at(scale):
            return np.clip(np.floor(scale * spread), min_generations, max_generations).astype(np.int64)

        low, high = 0.0, 1e9
        while high - low > 1e-9 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if counts_at(middle).sum() <= budget else (low, middle)
        counts = counts_at(low)
        rest = budget - int(counts.sum())
        room = np.flatnonzero(counts < max_generations)
        counts[room[np.argsort(-spread[room], kind="stable")[:rest]]] += 1
        return Allocation(counts, solver="root shares")


class Oracle(KnapsackGRPOTrainer):
    """Knows every prompt's success rate under the present policy exactly."""

    def _gather_prompts(self, inputs):
        self._prompts = super()._gather_prompts(inputs)
        return self._prompts

    def _allocate(self, evidence, budget):
        rates = success_rates(
            self.model,
            self.processing_class,
            [p["prompt"] for p in self._prompts],
            [p["solutions"] for p in self._prompts],
        )
        low, high = self.args.min_generations, self.args.max_generations
        return allocate(rates, budget, min_generations=low, max_generations=high)


class WeightsOnly(KnapsackGRPOTrainer):
    """Equal counts, and the loss weights that the knapsack's counts would have had: weighting without exploring."""

    def _allocate(self, evidence, budget):
        low, high = self.args.min_generations, self.args.max_generations
        self._wanted = PosteriorPolicy()(evidence, budget, low, high).counts
        return UniformPolicy()(evidence, budget, low, high)

    def _group_weights(self, evidence, allocation):
        return self._wanted / self._wanted.mean()


class DynamicSampling(KnapsackGRPOTrainer):
    """
    Uniform groups of which those without variance are replaced by groups of further prompts until the batch is full, as
    in DAPO (arXiv 2503.14476). All rollouts count, also those thrown away: `rollouts` and `tokens`.
    """

    most_batches = 6  # of one step; then it trains on what it has

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.records = []
        self._further = None

    def _further_rows(self, count: int) -> list[dict]:
        """The next rows of a stream of prompts of its own."""
        rows = []
        while len(rows) < count:
            if self._further is None:
                sampler = RepeatSampler(
                    self.train_dataset, self.num_generations, count // self.num_generations, seed=self.args.seed + 1
                )
                self._further = iter([])
                self._sampler = sampler
            index = next(self._further, None)
            if index is None:
                self._further = iter(self._sampler)
                continue
            rows.append(self.train_dataset[index])
        return rows

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        size, groups = self.num_generations, len(inputs) // self.num_generations
        kept, spare, self.records = [], [], []
        for _ in range(self.most_batches):
            output = super()._generate_and_score_completions(inputs)
            record = self.success_rate_callback.last_record
            self.records.append(record)
            for group in range(groups):  # equal groups keep TRL's order
                rows = {
                    name: value[group * size : (group + 1) * size]
                    for name, value in output.items()
                    if isinstance(value, torch.Tensor) and value.ndim
                }
                (kept if record.mixed[group] else spare).append(rows)
            if len(kept) >= groups:
                break
            inputs = self._further_rows(len(inputs))
        return self._joined((kept + spare)[:groups], output)

    def _joined(self, groups: list[dict], output: dict) -> dict:
        sides = {"prompt_ids": "left", "prompt_mask": "left", "completion_ids": "right", "completion_mask": "right"}
        joined = dict(output)
        for name in groups[0]:
            rows = [row for group in groups for row in group[name]]
            if name in sides:
                filler = self.processing_class.pad_token_id if name.endswith("ids") else 0
                joined[name] = pad(rows, padding_value=filler, padding_side=sides[name])
            else:
                joined[name] = torch.stack(rows)
        if joined.keys() != output.keys() or any(
            name not in sides and value.ndim > 1 for name, value in joined.items() if isinstance(value, torch.Tensor)
        ):
            raise RuntimeError(f"TRL's batch has fields that this contender can't join: {sorted(joined)}.")
        joined["num_items_in_batch"] = joined["completion_mask"].sum()
        return joined


def _posterior(about: str, value: str = "knapsack", **options) -> Contender:
    return Contender(about, options={"success_prior": [0.5, 0.5]} | options, policy=PosteriorPolicy(value))


UNIFORM = {"allocation": "uniform"}

CONTENDERS = {
    "uniform": Contender("8 rollouts a prompt, plain GRPO", options=UNIFORM),
    "posterior": _posterior("knapsack under the posterior, every rollout weighs the same"),
    "posterior-half": _posterior("the same, weights by the root of the counts", group_weight_power=0.5),
    "posterior-equal": _posterior("the same, every prompt weighs the same: counts only", group_weight_power=0.0),
    "mixed": _posterior("value: chance of a mixed group", "mixed"),
    "mixed-half": _posterior("the same, weights by the root of the counts", "mixed", group_weight_power=0.5),
    "mixed-equal": _posterior("the same, every prompt weighs the same", "mixed", group_weight_power=0.0),
    "root-shares": Contender(
        "counts in proportion to E sqrt(p (1-p)), every prompt weighs the same",
        options={"group_weight_power": 0.0},
        policy=RootShares(),
    ),
    "filter": Contender("fewest rollouts for prompts last at 0 or 1", options={"allocation": "filter"}),
    "paper": Contender("the paper's rule: last visit, fallback", options={"allocation": "paper"}),
    "oracle": Contender("knapsack with the true rates", trainer=Oracle),
    "weights-only": Contender("equal counts, the posterior knapsack's weights", trainer=WeightsOnly),
    "dynamic": Contender(
        "dynamic sampling as in DAPO, its extra rollouts counted", options=UNIFORM, trainer=DynamicSampling
    ),
    "paper-no-fallback": Contender("the paper's rule without its fallback", policy=PaperPolicy(confidence=1.0)),
    "variance": _posterior("value: p (1-p)", "variance"),
    "root": _posterior("value: sqrt(p) (1-p)", "root"),
    "prior-1": _posterior("posterior with the prior (1, 1)", success_prior=[1.0, 1.0]),
    "prior-1-half": _posterior(
        "posterior-half with the prior (1, 1)", group_weight_power=0.5, success_prior=[1.0, 1.0]
    ),
    "least-4": _posterior("posterior, at least 4 rollouts a prompt", min_generations=4),
    "uniform-16": Contender("16 rollouts for half the prompts", num_generations=16, options=UNIFORM),
    "uniform-24": Contender("24 rollouts for a third of the prompts", num_generations=24, options=UNIFORM),
    "uniform-twice": Contender(
        "16 rollouts a prompt: twice the budget", num_generations=16, budget=2.0, options=UNIFORM
    ),
}

# How much the default depends on what it assumes of the evidence; at the default's learning rate.
for _name, _options in {
    "decay-0": {"success_decay": 0.0},
    "decay-0.5": {"success_decay": 0.5},
    "decay-1": {"success_decay": 1.0},
    "prior-0.1": {"success_prior": [0.1, 0.1]},
    "prior-2": {"success_prior": [2.0, 2.0]},
    "most-16": {"max_generations": 16},
}.items():
    CONTENDERS[_name] = replace(
        CONTENDERS["posterior"],
        about=f"posterior, {_name.replace('-', ' ')}",
        options=CONTENDERS["posterior"].options | _options,
        lr_of="posterior",
    )

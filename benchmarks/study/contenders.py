"""What is compared: rules for sharing rollouts out and weighing them, all in one trainer."""

import importlib.util
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from policies import success_rates
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import RepeatSampler, pad
from variants import FewerLater, MoreLater, Novelty, Progress, Replay, TokenPrice, Uncertainty

from trl_knapsack import KnapsackGRPOTrainer, SuccessRateTracker, allocate
from trl_knapsack.allocation import Allocation, AllocationRule, PaperRule, PosteriorRule, UniformRule
from trl_knapsack.tracking import STATE_FILE


@dataclass(frozen=True)
class Contender:
    """
    One way to spend a budget of rollouts.

    Args:
        about (`str`): What it is, for the tables.
        num_generations (`int`): Mean generations of a prompt.
        budget (`float`): Rollouts per step, as a multiple of the others'.
        options (`dict`): Options of `KnapsackGRPOConfig`.
        rule (`Callable[[Policy], AllocationRule]`, *optional*):
            Makes the rule that shares rollouts out, else `options["allocation"]`. It is shown the policy that trains.
        trainer (`Callable`): The trainer's class, or what makes one.
        lr_of (`str`, *optional*): The contender whose learning rate is used, for variants that are not tuned alone.
        needs (`str`, *optional*): A package without which it can't run.
    """

    about: str
    num_generations: int = 8
    budget: float = 1.0
    options: dict = field(default_factory=dict)
    rule: "Callable[[Policy], AllocationRule] | None" = None
    trainer: Callable = KnapsackGRPOTrainer
    lr_of: str | None = None
    needs: str | None = None


@dataclass(frozen=True)
class Policy:
    """
    The policy that a run trains, which its rule may look at.

    Args:
        model (`PreTrainedModel`): The model, as it is at the time.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        problems (`dict[str, dict]`): Training problems by id.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    problems: dict[str, dict]

    def success_rates(self, keys: Sequence[str]) -> np.ndarray:
        """True success rates of problems, `(P,)`."""
        rows = [self.problems[key] for key in keys]
        prompts, solutions = [row["prompt"] for row in rows], [row["solutions"] for row in rows]
        return success_rates(self.model, self.tokenizer, prompts, solutions)


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


class Oracle:
    """Knows every prompt's success rate under the present policy exactly."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def __call__(self, evidence, budget, min_generations, max_generations) -> Allocation:
        rates = self.policy.success_rates(evidence.keys)
        return allocate(rates, budget, min_generations=min_generations, max_generations=max_generations)


class Warm(KnapsackGRPOTrainer):
    """
    Begins with what `COMPLETIONS` completions of each prompt showed before training, as from a dataset with solve rates or
    from an earlier run: `success_state_path`. They are not counted.
    """

    COMPLETIONS = 16

    def __init__(self, model, args, train_dataset, processing_class, **kwargs):
        rates = success_rates(model, processing_class, train_dataset["prompt"], train_dataset["solutions"])
        successes = np.random.default_rng(args.seed).binomial(self.COMPLETIONS, rates)
        tracker = SuccessRateTracker()
        tracker.observe(train_dataset["id"], successes, np.full(len(rates), self.COMPLETIONS))
        args.success_state_path = os.path.join(args.output_dir, STATE_FILE)
        tracker.save(args.success_state_path)
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, processing_class=processing_class, **kwargs
        )


class Probed(Warm):
    """Begins with `COMPLETIONS` completions of each prompt, as from `trl-knapsack probe`. They are counted."""

    COMPLETIONS = 4

    def __init__(self, model, args, train_dataset, processing_class, **kwargs):
        super().__init__(
            model=model, args=args, train_dataset=train_dataset, processing_class=processing_class, **kwargs
        )
        self.rollouts_before = self.COMPLETIONS * len(train_dataset)


class EqualCounts:
    """Equal counts, and a note of the counts that the knapsack would have given."""

    def __call__(self, evidence, budget, min_generations, max_generations) -> Allocation:
        self.wanted = PosteriorRule()(evidence, budget, min_generations, max_generations).counts
        return UniformRule()(evidence, budget, min_generations, max_generations)


class WeightsOnly(KnapsackGRPOTrainer):
    """Equal counts, and the loss weights that the knapsack's counts would have had: weighting without exploring."""

    def _group_weights(self, counts):  # no rule can ask for weights apart from counts
        return self.allocation_rule.wanted / self.allocation_rule.wanted.mean()


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
        if self._further is None:
            prompts = count // self.num_generations
            sampler = RepeatSampler(self.train_dataset, self.num_generations, prompts, seed=self.args.seed + 1)
            epochs = itertools.chain.from_iterable(itertools.repeat(sampler))
            self._further = (self.train_dataset[index] for index in epochs)
        return list(itertools.islice(self._further, count))

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


def _conformal(**kwargs):
    from conformal import Conformal  # needs an older TRL than the others

    return Conformal(**kwargs)


UNIFORM = {"allocation": "uniform"}
ALONE = {"look_generations": 0, "allocation_window": 1}  # each generation batch decides by earlier visits
LOOK = {"look_generations": 3, "allocation_window": 1}
DEFAULT = {"look_generations": 3, "allocation_window": 64}  # also for rules of our own here
COLUMN = {"difficulty_columns": ["solved"]}


def variant(about: str, rule=None, trainer: Callable = KnapsackGRPOTrainer, **options) -> Contender:
    """The package's default with one thing changed."""
    about = f"the package's default, {about}"
    return Contender(about, options=DEFAULT | options, rule=rule, trainer=trainer, lr_of="posterior")


# "look-64" is the package's default.
CONTENDERS = {
    "uniform": Contender("8 rollouts a prompt, plain GRPO", options=UNIFORM),
    "posterior": Contender("knapsack under the posterior, by earlier visits alone", options=ALONE),
    "warm": Contender(
        "the same, success rates known before from 16 completions each", options=ALONE, trainer=Warm, lr_of="posterior"
    ),
    "look": Contender("the same, after a look of 3 at each prompt", options=LOOK, lr_of="posterior"),
    "look-64": Contender(
        "the same, budgets shared by 64 prompts: the package's default",
        options=DEFAULT,
        lr_of="posterior",
    ),
    "look-2": Contender("the package's default with a look of 2", options={"look_generations": 2}, lr_of="posterior"),
    "look-4": Contender("the package's default with a look of 4", options={"look_generations": 4}, lr_of="posterior"),
    "probe-4": Contender(
        "no look, but 4 completions of each prompt before training, which are counted",
        options=ALONE,
        trainer=Probed,
        lr_of="posterior",
    ),
    "column": Contender(
        "no look, but a column with solve rates from before training", options=COLUMN | ALONE, lr_of="posterior"
    ),
    "column-look": Contender("the same, and a look of 3 at each prompt", options=COLUMN | LOOK, lr_of="posterior"),
    "posterior-half": Contender(
        "the same, weights by the root of the counts", options=ALONE | {"group_weight_power": 0.5}
    ),
    "posterior-equal": Contender(
        "the same, every prompt weighs the same: exploring without weighting",
        options=ALONE | {"group_weight_power": 0.0},
    ),
    "weights-only": Contender(
        "equal counts, the knapsack's weights: weighting without exploring",
        rule=lambda policy: EqualCounts(),
        trainer=WeightsOnly,
    ),
    "root-shares": Contender(
        "counts in proportion to E sqrt(p (1-p)), every prompt weighs the same",
        options=ALONE | {"group_weight_power": 0.0},
        rule=lambda policy: RootShares(),
        lr_of="posterior-equal",
    ),
    "filter": Contender("fewest rollouts for prompts last at 0 or 1", options={"allocation": "filter"}),
    "dynamic": Contender(
        "dynamic sampling as in DAPO, its extra rollouts counted", options=UNIFORM, trainer=DynamicSampling
    ),
    "paper": Contender("the paper's rule: last visit, fallback", options={"allocation": "paper"}),
    "paper-no-fallback": Contender(
        "the paper's rule without its fallback", rule=lambda policy: PaperRule(confidence=1.0), lr_of="paper"
    ),
    "oracle": Contender("knapsack with the true rates", rule=Oracle),
    "uniform-16": Contender("16 rollouts for half the prompts", num_generations=16, options=UNIFORM),
    "uniform-24": Contender(
        "24 rollouts for a third of the prompts", num_generations=24, options=UNIFORM, lr_of="uniform-16"
    ),
    "uniform-twice": Contender(
        "16 rollouts a prompt: twice the budget", num_generations=16, budget=2.0, options=UNIFORM, lr_of="uniform-16"
    ),
    "prior-0.5": Contender("posterior, Jeffreys' prior (0.5, 0.5)", options=ALONE | {"success_prior": [0.5, 0.5]}),
    "least-4": Contender(
        "posterior, at least 4 rollouts a prompt", options=ALONE | {"min_generations": 4}, lr_of="posterior"
    ),
    "mixed": Contender(
        "posterior, value 1: chance of a mixed group",
        options=ALONE,
        rule=lambda policy: PosteriorRule("mixed"),
        lr_of="posterior",
    ),
    "value-variance": Contender(
        "the package's default, value p (1-p)", rule=lambda policy: PosteriorRule("variance"), lr_of="posterior"
    ),
    "value-root": Contender(
        "the package's default, value sqrt(p) (1-p)", rule=lambda policy: PosteriorRule("root"), lr_of="posterior"
    ),
    "value-mixed": Contender(
        "the package's default, value 1", rule=lambda policy: PosteriorRule("mixed"), lr_of="posterior"
    ),
    "novelty": variant("and 0.05 x novelty in the value", rule=lambda policy: Novelty(0.05)),
    "uncertainty": variant(
        "and 0.2 x the belief's standard deviation in the value", rule=lambda policy: Uncertainty(0.2)
    ),
    "progress": variant("and 0.2 x the change since the last visit in the value", rule=lambda policy: Progress(0.2)),
    "tokens": variant("within the tokens of equal shares", token_budget="uniform"),
    "token-price": variant("a token costs half of what it brings on average", rule=lambda policy: TokenPrice(0.5)),
    "fewer-later": variant("from 12 rollouts a prompt to 4", trainer=FewerLater),
    "more-later": variant("from 4 rollouts a prompt to 12", trainer=MoreLater),
    "replay": variant("and rare successes replayed", trainer=Replay),
    "conformal": Contender(
        "conformal early stopping (trl-cgrpo), its calibration rollouts counted", trainer=_conformal, needs="trl_cgrpo"
    ),
}


def can_run(contender: str) -> bool:
    """Whether what a contender needs is installed."""
    needs = CONTENDERS[contender].needs
    return needs is None or importlib.util.find_spec(needs) is not None

"""Parts of the method that were tried in the study: values of several components, tokens, a budget over training, replay."""

import numpy as np
import torch
from torch.utils.data import Sampler

from trl_knapsack import KnapsackGRPOTrainer, allocate
from trl_knapsack.allocation import Allocation, PosteriorRule
from trl_knapsack.allocation.arrays import with_mean
from trl_knapsack.allocation.values import WeightedSum, novelty


# --- values of several components -------------------------------------------------------------------------------------


class Added:
    """The posterior rule, with a further component of the value: `coefficient * weights(evidence)`, weights `(P,)`."""

    def __init__(self, coefficient: float):
        self.coefficient = coefficient

    def weights(self, evidence) -> np.ndarray:
        raise NotImplementedError

    def __call__(self, evidence, budget, min_generations, max_generations) -> Allocation:
        value = WeightedSum([(1.0, "knapsack"), (self.coefficient, self.weights(evidence))])
        return PosteriorRule(value)(evidence, budget, min_generations, max_generations)


class Novelty(Added):
    """Rarely visited prompts."""

    def weights(self, evidence):
        return novelty(evidence.visits)


class Uncertainty(Added):
    """Prompts whose rate is uncertain: the standard deviation of the belief, what rollouts would tell."""

    def weights(self, evidence):
        a, b = evidence.alpha, evidence.beta
        return np.sqrt(a * b / (a + b + 1)) / (a + b)


class Progress(Added):
    """Prompts whose rate moves: how far the belief is from that at the last visit."""

    def __init__(self, coefficient: float):
        super().__init__(coefficient)
        self.earlier: dict[str, float] = {}
        self.newest: dict[str, tuple[int, float]] = {}

    def weights(self, evidence):
        means = evidence.beliefs.mean
        weights = np.zeros(len(means))
        for i, (key, visits, mean) in enumerate(zip(evidence.keys, evidence.visits, means, strict=True)):
            before = self.newest.get(key)
            if before is not None and before[0] != visits:
                self.earlier[key] = before[1]
            self.newest[key] = int(visits), float(mean)
            weights[i] = abs(mean - self.earlier.get(key, mean))
        return weights


# --- tokens -----------------------------------------------------------------------------------------------------------


class TokenPrice:
    """The posterior rule, whose value falls by `price` for each token, in units of what a token brings on average."""

    def __init__(self, price: float):
        self.price = price

    def __call__(self, evidence, budget, min_generations, max_generations) -> Allocation:
        bounds = {"min_generations": min_generations, "max_generations": max_generations}
        free = allocate(evidence.beliefs, budget, **bounds)
        known = evidence.mean_length > 0
        if not known.any():
            return free
        costs = with_mean(evidence.mean_length, known)
        price = self.price * free.value / (costs @ free.counts)
        return allocate(evidence.beliefs, budget, **bounds, costs=costs, cost_weight=price)


# --- a budget over training -------------------------------------------------------------------------------------------


class ScheduledSampler(Sampler):
    """Batches of `rows` rows, each with `rows / size` prompts that are repeated `size` times; a size for each batch."""

    def __init__(self, num_prompts: int, rows: int, sizes: list[int], seed: int):
        self.num_prompts, self.rows, self.sizes, self.seed = num_prompts, rows, sizes, seed

    def __len__(self):
        return self.rows * len(self.sizes)

    def __iter__(self):
        random = np.random.default_rng(self.seed)
        order: list[int] = []
        for size in self.sizes:
            prompts = self.rows // size
            while len(order) < prompts:
                order += random.permutation(self.num_prompts).tolist()
            for prompt in order[:prompts]:
                yield from [prompt] * size
            del order[:prompts]


class Scheduled(KnapsackGRPOTrainer):
    """The mean number of generations changes in equal parts of the run, `SIZES`; the rows of a step do not."""

    SIZES: tuple[int, ...]

    def _size(self, step: int) -> int:
        return self.SIZES[min(step * len(self.SIZES) // self.args.max_steps, len(self.SIZES) - 1)]

    def _get_train_sampler(self, dataset=None):
        sizes = [self._size(step) for step in range(self.args.max_steps)]
        return ScheduledSampler(len(self.train_dataset), self.args.generation_batch_size, sizes, self.args.seed)

    def _gather_prompts(self, inputs):
        return inputs[:: self._size(self.state.global_step)]


class FewerLater(Scheduled):
    SIZES = (12, 9, 8, 6, 4)


class MoreLater(Scheduled):
    SIZES = (4, 6, 8, 9, 12)


# --- replay -----------------------------------------------------------------------------------------------------------


class Replay(KnapsackGRPOTrainer):
    """
    A rare success takes the place of a failure where a new group has none.

    The newest success of each prompt is kept with the log-probabilities of its tokens at the time, and used while no more
    than `RARE` of the prompt's rollouts succeeded. TRL's loss corrects for its age by its own ratio. One process, one
    step a batch.
    """

    RARE = 1 / 8
    MOST_AGE = 80  # steps
    MOST_SHARE = 0.1  # of the rollouts of a batch

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # By prompt: step, completion (T,), log-probabilities (T,)
        self.kept: dict[str, tuple[int, torch.Tensor, torch.Tensor]] = {}

    def _correct_advantages(self, output, decision, prompts, rewards_per_func):
        row_prompt = torch.from_numpy(decision.plan.row_prompt)
        won = rewards_per_func[:, 0] > 0.5
        a, b = decision.evidence.alpha - 1, decision.evidence.beta - 1  # less the prior
        rates = a / np.maximum(a + b, 1e-9)
        replays: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of rows
        for place, prompt in enumerate(prompts):
            rows = torch.nonzero(row_prompt == place).flatten()
            kept = self.kept.get(prompt.key)
            if not len(rows) or won[rows].any() or prompt.successes or kept is None or rates[place] > self.RARE:
                continue
            if self.state.global_step - kept[0] <= self.MOST_AGE and len(replays) < self.MOST_SHARE * len(row_prompt):
                replays[int(rows[0])] = kept[1:]
        log_probs = self._log_probs(output)
        self._keep(output, decision, prompts, won, log_probs)
        if replays:
            self._replace(output, log_probs, replays)
            rewards_per_func = rewards_per_func.clone()
            rewards_per_func[list(replays)] = 1.0
        return super()._correct_advantages(output, decision, prompts, rewards_per_func)

    def _log_probs(self, output) -> torch.Tensor:
        """Log-probabilities of the batch's completions as the policy is now, `(R, T)`."""
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            return self._get_per_token_logps_and_entropies(self.model, ids, mask, output["completion_ids"].size(1))[0]

    def _keep(self, output, decision, prompts, won, log_probs):
        for row in torch.nonzero(won).flatten().tolist():
            length = int(output["completion_mask"][row].sum())
            self.kept[prompts[int(decision.plan.row_prompt[row])].key] = (
                self.state.global_step,
                output["completion_ids"][row, :length].clone(),
                log_probs[row, :length].clone(),
            )

    def _replace(self, output, log_probs, replays):
        longest = max(output["completion_ids"].size(1), *(len(ids) for ids, _ in replays.values()))
        fillers = {"completion_ids": self.processing_class.pad_token_id, "completion_mask": 0}
        wide = {
            name: torch.nn.functional.pad(output[name], (0, longest - output[name].size(1)), value=filler)
            for name, filler in fillers.items()
        }
        old = torch.nn.functional.pad(log_probs, (0, longest - log_probs.size(1)))
        for row, (ids, its_log_probs) in replays.items():
            wide["completion_ids"][row] = fillers["completion_ids"]
            wide["completion_ids"][row, : len(ids)] = ids
            wide["completion_mask"][row] = (torch.arange(longest) < len(ids)).to(wide["completion_mask"])
            old[row] = 0.0
            old[row, : len(ids)] = its_log_probs
        output.update(wide, old_per_token_logps=old, num_items_in_batch=wide["completion_mask"].sum())

"""
C-GRPO (trl-cgrpo) as a contender. It needs a TRL before 1.15, so it only runs where both are installed:

    pip install --no-deps --target trl-1.14 trl==1.14.2 trl-cgrpo==0.2.0
    PYTHONPATH=trl-1.14 python benchmarks/study/study.py --profile full --contenders conformal --tasks arithmetic

`uniform` gives the same curve under TRL 1.14.2 and 1.16 (16 steps, seed 1), so results of both can stand in one table.
"""

from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset
from trl_cgrpo import CGRPOConfig, CGRPOTrainer


CALIBRATION_PROMPTS = 32  # set aside from the training problems: nobody trains on them
BUDGET_GRID = (2, 4, 8, 16)  # the package's without 32, four times the others' mean
_COPIED = (
    *("output_dir", "seed", "learning_rate", "lr_scheduler_type", "max_completion_length", "use_cpu", "bf16"),
    *("gradient_checkpointing", "report_to", "save_strategy", "logging_strategy", "disable_tqdm"),
)


@dataclass
class Counts:
    """Rollouts of each prompt, as of an [`Allocation`]."""

    counts: np.ndarray


@dataclass
class Batch:
    """What the study notes of rollouts, as of a [`RolloutRecord`]: `(P,)` each."""

    keys: tuple[str, ...]
    counts: np.ndarray
    successes: np.ndarray
    tokens: np.ndarray
    trained: bool = True
    allocation: Counts = field(init=False)

    def __post_init__(self):
        self.allocation = Counts(self.counts)

    @property
    def mixed(self) -> np.ndarray:
        return (self.successes > 0) & (self.successes < self.counts) & self.trained

    @property
    def effective_rollouts(self) -> int:
        return int(self.counts[self.mixed].sum())


class Conformal(CGRPOTrainer):
    """
    Each prompt is sampled up to 2, 4, 8 and 16 times, until a conformal set over its answers holds one answer. As many
    prompts a step as for the others, so a step takes fewer rollouts or more. Those of the calibration count: `records`.
    """

    def __init__(self, model, args, train_dataset, allocation_rule=None, **kwargs):
        prompts = args.generation_batch_size // args.num_generations
        widest = BUDGET_GRID[-1]
        config = CGRPOConfig(
            **{name: getattr(args, name) for name in _COPIED},
            budget_grid=list(BUDGET_GRID),
            per_device_train_batch_size=prompts * widest,
            max_steps=args.max_steps * widest,  # the study ends a run that has spent its rollouts
        )
        aside = set(np.random.default_rng(args.seed).choice(len(train_dataset), CALIBRATION_PROMPTS, replace=False))
        rest = [i for i in range(len(train_dataset)) if i not in aside]
        calibration = train_dataset.select(sorted(aside))
        calibration = calibration.add_column("answer", [solutions[0] for solutions in calibration["solutions"]])
        self.records: list[Batch] = []
        self._tokens: list[int] = []
        super().__init__(
            model=model,
            args=config,
            train_dataset=train_dataset.select(rest),
            calibration_dataset=calibration,
            answer_extractor=str.strip,
            **kwargs,
        )

    def calibrate(self):
        dataset: Dataset = self.calibration_dataset
        self._tokens, self._outcomes_seen = [], []
        thresholds = super().calibrate()
        widest = BUDGET_GRID[-1]
        right = [
            sum(answer == row["answer"] for answer in answers)
            for row, answers in zip(dataset, self._outcomes_seen, strict=True)
        ]
        tokens = np.array(self._tokens).reshape(len(dataset), widest).sum(axis=1)
        counts = np.full(len(dataset), widest)
        self.records.append(Batch(tuple(dataset["id"]), counts, np.array(right), tokens, trained=False))
        return thresholds

    def _outcomes(self, texts, example):
        outcomes = super()._outcomes(texts, example)
        if self._batch_inputs is None:
            self._outcomes_seen.append(outcomes)
        return outcomes

    def _base_generate(self, *args, **kwargs):
        ids, logprobs = super()._base_generate(*args, **kwargs)
        self._tokens += [len(completion) for completion in ids]
        return ids, logprobs

    def _generate_and_score_completions(self, inputs):
        self.records = []  # of this step; a calibration before it is added first
        return super()._generate_and_score_completions(inputs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._padded_rows is not None:
            shape = (-1, self.num_generations)
            real = ~np.array(self._padded_rows).reshape(shape)  # (P, widest)
            won = np.nan_to_num(rewards[:, 0].cpu().numpy()).reshape(shape)
            tokens = np.array([len(ids) for ids in completion_ids_list]).reshape(shape)
            keys = tuple(row["id"] for row in inputs[:: self.num_generations])
            counts = real.sum(axis=1)
            self.records.append(Batch(keys, counts, (won * real).sum(axis=1).astype(int), (tokens * real).sum(axis=1)))
        return rewards

"""`GRPOTrainer` in which every prompt has its own number of generations."""

import copy
import inspect
import os
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import trl
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from packaging.version import Version
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, get_config_model_id

from ..allocation.allocator import Allocation
from ..allocation.evidence import Evidence
from ..allocation.rules import AllocationRule, get_rule
from ..hub.cards import complete_model_card
from ..hub.states import SuccessStateInfo, find_success_state
from ..tracking.keys import prompt_key
from ..tracking.records import RolloutRecord
from ..tracking.tracker import SuccessRateTracker
from .advantages import group_advantages, weighted_rewards
from .callbacks import PlotCallback, SuccessRateCallback
from .config import KnapsackGRPOConfig
from .plan import RolloutPlan, plan_rollouts
from .ranks import RankAgreement, all_ranks_or_none
from .resume import ResumableRepeatSampler, load_window, save_window, state_digest, window_path


logger = get_logger(__name__)

# Rewards by the name of their function, each (R,) -> success of each rollout, (R,)
SuccessFunc = Callable[[dict[str, np.ndarray]], np.ndarray]

OLDEST_TRL = "1.6"  # before it, TRL computed other advantages
WORKING_TRL = f"trl>={OLDEST_TRL},<1.17"

# What is overridden, and the parameters relied upon.
_SEAMS = {
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate": ("prompts",),
    "_get_train_sampler": ("dataset",),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_set_signature_columns_if_needed": (),
    "log": ("logs", "start_time"),
}

# The options that decide which rollouts a run does, hence must not differ from rank to rank.
_SHARED_OPTIONS = [
    *sorted(
        {option.name for option in fields(KnapsackGRPOConfig)}
        - {option.name for option in fields(GRPOConfig)}
        - {"success_state_path", "resume_success_state"}  # the success rates themselves are compared
    ),
    *("seed", "data_seed", "shuffle_dataset", "num_generations", "max_steps", "num_train_epochs"),
]


class KnapsackGRPOTrainer(GRPOTrainer):
    """
    Trainer for GRPO with per-prompt rollout budgets, as proposed in [Knapsack RL](https://huggingface.co/papers/2509.25849).

    The only change with respect to [`~trl.GRPOTrainer`] is how many completions each prompt of a generation batch gets:
    the total stays `generation_batch_size`, and rollouts move from prompts that always succeed or always fail to prompts
    that teach. Advantages are then normalised within each real group. Evaluation is untouched, and with
    `allocation="uniform"` a run is bit for bit that of [`~trl.GRPOTrainer`].

    Args:
        model, reward_funcs, args, ...:
            As for [`~trl.GRPOTrainer`]. `args` is a [`KnapsackGRPOConfig`], or a plain [`~trl.GRPOConfig`], which is
            copied and gets the default knapsack options.
        allocation_rule ([`AllocationRule`], *optional*):
            Your own rule for sharing the rollouts out, in place of the one that `args.allocation` names.
        success_func (`Callable[[dict[str, np.ndarray]], np.ndarray]`, *optional*):
            Your own rule for what counts as a success, in place of `args.success_threshold`. It is given the rewards of
            all rollouts by the name of their function, each `(R,)` with NaN where the function returned None, and
            returns `(R,)` true or false, or NaN for a rollout that shall not count.

    Example:

    ```python
    from datasets import load_dataset
    from trl.rewards import accuracy_reward
    from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer

    trainer = KnapsackGRPOTrainer(
        model="Qwen/Qwen2.5-0.5B-Instruct",
        reward_funcs=accuracy_reward,
        args=KnapsackGRPOConfig(output_dir="outputs"),
        train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train"),
    )
    trainer.train()
    ```
    """

    _tag_names = ["trl", "grpo", "knapsack-rl"]
    _name = "Knapsack GRPO"
    _paper = {
        "title": "Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation",
        "id": "2509.25849",
        # docstyle-ignore
        "citation": """\
@article{li2025knapsack,
    title        = {{Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation}},
    author       = {Li, Ziniu and Chen, Congliang and Yang, Tianyun and Ding, Tian and Sun, Ruoyu and Zhang, Ge and Huang, Wenhao and Luo, Zhi-Quan},
    year         = 2025,
    eprint       = {arXiv:2509.25849},
}""",
    }

    def __init__(
        self,
        model,
        reward_funcs=None,
        args=None,
        train_dataset=None,
        *others,
        allocation_rule: AllocationRule | None = None,
        success_func: SuccessFunc | None = None,
        **kwargs,
    ):
        check_seams(GRPOTrainer)
        if args is None:
            name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = KnapsackGRPOConfig(f"{name.split('/')[-1]}-Knapsack-GRPO")
        elif not isinstance(args, KnapsackGRPOConfig):
            args = KnapsackGRPOConfig.from_grpo_config(args)
        _check_train_dataset(train_dataset, args, has_environment=kwargs.get("environment_factory") is not None)
        if train_dataset is not None and (allocation_rule is not None or args.allocation != "uniform"):
            _check_seed(args)
        super().__init__(model, reward_funcs, args, train_dataset, *others, **kwargs)

        self.allocation_rule = allocation_rule or get_rule(args.allocation)
        self.success_func = success_func
        self.success_tracker = SuccessRateTracker(args.success_prior, args.success_decay)
        name = args.allocation
        if allocation_rule is not None:  # a function has a name of its own
            name = getattr(allocation_rule, "__name__", type(allocation_rule).__name__)
        self.success_rate_callback = SuccessRateCallback(self.success_tracker, self._run_folder, name)
        self.add_callback(self.success_rate_callback)
        if args.plot_steps > 0:
            self.add_callback(PlotCallback(args.plot_steps, self._run_folder, lambda: self.callback_handler.callbacks))
        self._check_success_rule()
        self.add_callback(RankAgreement(self._shared_by_ranks))
        with all_ranks_or_none():
            if args.success_state_path is not None:
                path, info = find_success_state(args.success_state_path)
                self.success_rate_callback.load(path)
                self._warn_of_foreign_state(info)
        # Without a dataset the environment owns the prompts, and all rows look alike: nothing to allocate.
        self._prompts_are_known = train_dataset is not None

        self._plan: RolloutPlan | None = None  # of the generation batch under way, None outside of training
        self._rewards_per_func: torch.Tensor | None = None  # its rewards over all ranks, (R, F)
        self._advantages_checked = False

    # ------------------------------------------------------------------------------------------ what TRL calls

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training or not self._prompts_are_known:
            return super()._generate_and_score_completions(inputs)

        prompts = self._gather_prompts(inputs)  # (P,) rows, one per prompt
        keys = tuple(prompt_key(prompt, self.args.prompt_id_column) for prompt in prompts)
        evidence = self.success_tracker.evidence(keys)
        allocation, self._plan, solver_seconds = self._decide(evidence, len(inputs) * self.accelerator.num_processes)

        try:
            # A copy per row, as from TRL's data loader: TRL writes the extra fields of `rollout_func` into the row,
            # and environments write into its lists.
            rows = [copy.deepcopy(prompts[i]) for i in self._plan.rank_rows(self.accelerator.process_index)]
            output = super()._generate_and_score_completions(rows)
            self._learn_from(output, keys, evidence, allocation, solver_seconds)
        finally:
            self._plan = self._rewards_per_func = None
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_per_func = rewards_per_func
        return rewards_per_func

    def _generate(self, prompts):
        if self._plan is None or (self._plan.counts == self.num_generations).all():
            return super()._generate(prompts)
        # vLLM's server mode takes every `num_generations`-th row and asks for that many completions of it: with unequal
        # groups it would answer wrongly without an error. So while rows are generated, each asks for its own.
        mean, self.num_generations = self.num_generations, 1
        try:
            return super()._generate(prompts)
        finally:
            self.num_generations = mean

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        column = self.args.prompt_id_column
        if column is not None and column not in self._signature_columns:  # else `remove_unused_columns` drops it
            self._signature_columns.append(column)

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        if type(sampler) is RepeatSampler:
            sampler = ResumableRepeatSampler(sampler, epochs_passed=lambda: int(self.state.epoch or 0))
        return sampler

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        under_way = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        save_window(
            window_path(os.path.join(self._get_output_dir(trial=trial), folder), self.accelerator.process_index),
            self._step,
            self._buffered_inputs if under_way else [],
            self._window_settings(),
        )

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if not self.args.resume_success_state:
            logger.warning(f"Success rates in {checkpoint}, if any, are not used: resume_success_state is False.")
        if isinstance(self.train_dataset, IterableDataset) and (self.state.epoch or 0) >= 1:
            logger.warning(
                "The stream of prompts ended before this checkpoint, and the run begins again with this stream instead of "
                "going on within it; train_dataset.repeat(None) has no end, and a run on it goes on exactly."
            )
        # TRL counts its steps from 0 again, and generates the window under way once more.
        path, window = window_path(checkpoint, self.accelerator.process_index), None
        with all_ranks_or_none():
            if self.args.resume_success_state:
                self.success_rate_callback.load(checkpoint)
            if os.path.isfile(path):
                window = load_window(path, self._window_settings(), self.accelerator.device)
        if len(set(gather_object([window and window[0]]))) > 1:
            window = None  # one rank can't go on with its rollouts, so none does
        if window is None:
            logger.warning(
                f"{checkpoint} was not saved with the settings {self._window_settings()}: the rollouts under way, if "
                "any, are generated again, so the run does not go on exactly as it would have."
            )
        else:
            self._step, batches = window
            self._buffered_inputs = batches or None

    def _window_settings(self) -> dict[str, int]:
        """What a resumed run must share with the one that stopped, to go on with its rollouts."""
        args = self.args
        return {
            "num_processes": self.accelerator.num_processes,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "steps_per_generation": args.steps_per_generation,
            "num_iterations": self.num_iterations,
        }

    def _shared_by_ranks(self) -> dict[str, Any]:
        """What must be the same on all ranks, because each reads its own; see [`RankAgreement`]."""
        shared = {name: getattr(self.args, name) for name in _SHARED_OPTIONS} | self._window_settings()
        dataset = self.train_dataset
        if isinstance(dataset, Dataset):
            shared["The number of prompts"] = len(dataset)
            if dataset.format["type"] != "custom":  # else the rows of a rank may be random
                rows = [dataset[i] for i in (0, len(dataset) // 2, len(dataset) - 1)]
                shared["The digest of the first, middle and last prompt"] = [
                    prompt_key(row, self.args.prompt_id_column) for row in rows
                ]
        shared["The step to go on from"] = self.state.global_step
        shared["The digest of the success rates"] = state_digest(self.success_tracker.state_dict())
        return shared

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL logs means over the logging steps; the largest budget of several batches is not a mean.
        metrics = self._metrics["train"]
        for name, extreme in (("knapsack/generations/min", min), ("knapsack/generations/max", max)):
            if metrics.get(name):
                metrics[name] = [extreme(metrics[name])]
        super().log(logs, start_time)

    def create_model_card(self, *args, **kwargs):
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            complete_model_card(self)

    # ---------------------------------------------------------------------------------------------- our steps

    def _run_folder(self) -> str:
        """Where the run under way keeps its checkpoints: `output_dir`, or a trial's folder in it."""
        return self._get_output_dir(trial=self._trial)

    def _gather_prompts(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One row per prompt of the generation batch, in the sampler's order, on every rank."""
        start = self.accelerator.process_index * len(inputs)
        firsts = []
        for row, example in enumerate(inputs, start):
            if row % self.num_generations == 0:
                firsts.append(example)
            elif row > start and example.get("prompt") != inputs[row - start - 1].get("prompt"):
                raise RuntimeError(
                    f"Row {row} of the generation batch has another prompt than row {row - 1}, but the train sampler "
                    f"must repeat each prompt num_generations ({self.num_generations}) times; use TRL's own sampler."
                )
        return gather_object(firsts)  # only one copy of each prompt travels: images are heavy

    def _decide(self, evidence: Evidence, budget: int) -> tuple[Allocation, RolloutPlan, float]:
        """Rank 0 decides, and all ranks use its decision; what fails there fails everywhere, so that no rank waits."""
        decision: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                started = time.perf_counter()
                allocation = self._allocate(evidence, budget)
                seconds = time.perf_counter() - started
                plan = plan_rollouts(allocation.counts, self.accelerator.num_processes, evidence.mean_length)
                decision = [(allocation, plan, seconds)]
            except Exception as error:
                decision = [error]
        decision = broadcast_object_list(decision)
        if isinstance(decision[0], Exception):
            raise decision[0]
        return decision[0]

    def _allocate(self, evidence: Evidence, budget: int) -> Allocation:
        low, high = self.args.min_generations, self.args.max_generations
        allocation = self.allocation_rule(evidence, budget, low, high)
        counts, prompts = allocation.counts, len(evidence.alpha)
        if counts.shape != (prompts,) or counts.sum() != budget or not ((low <= counts) & (counts <= high)).all():
            raise ValueError(
                f"The allocation policy {self.allocation_rule!r} returned the counts {counts}, but it must give each "
                f"of {prompts} prompts {low} to {high} generations, {budget} in all."
            )
        return allocation

    def _group_weights(self, evidence: Evidence, allocation: Allocation) -> np.ndarray:
        """Factor on the advantages of each prompt's group, `(P,)`; the mean over rollouts is 1."""
        counts = allocation.counts
        if (counts == counts[0]).all():
            return np.ones(len(counts))
        weights = counts ** (self.args.group_weight_power - 1.0)
        return weights * (counts.sum() / (counts * weights).sum())

    def _learn_from(self, output: dict[str, Any], keys, evidence, allocation, solver_seconds) -> None:
        """Put right what TRL computed for equal groups, and take note of what came of this generation batch."""
        plan, rewards_per_func = self._plan, self._rewards_per_func
        options = (self.reward_weights, self.scale_rewards, self.multi_objective_aggregation)
        device = self.accelerator.device
        rank_rows = slice(
            self.accelerator.process_index * len(output["advantages"]),
            (self.accelerator.process_index + 1) * len(output["advantages"]),
        )

        if not self._advantages_checked:
            equal = torch.arange(len(keys)).repeat_interleave(self.num_generations)
            ours = group_advantages(rewards_per_func, equal, *options).advantages[rank_rows]
            # Equal bits on a CPU, as the tests prove; a GPU may add in another order.
            if not torch.allclose(ours, output["advantages"], rtol=1e-3, atol=1e-5):
                raise RuntimeError(
                    f"trl {trl.__version__} computes other advantages than trl_knapsack knows of; "
                    f"install a TRL that works: {WORKING_TRL}."
                )
            self._advantages_checked = True

        row_prompt = torch.from_numpy(plan.row_prompt)
        groups = group_advantages(rewards_per_func, row_prompt, *options)
        advantages = groups.advantages
        weights = self._group_weights(evidence, allocation)
        if (weights != 1).any():
            # Every loss of TRL is linear in the size of the advantage, so this weighs the group in any of them.
            advantages = advantages * torch.from_numpy(weights).to(advantages)[row_prompt.to(device)]
        output["advantages"] = advantages[rank_rows]
        self._metrics["train"]["frac_reward_zero_std"][-1] = groups.zero_std.float().mean().item()
        logged = self._logs["advantages"]
        for _ in range(len(plan.row_prompt)):
            logged.pop()
        logged.extend(advantages.tolist())

        lengths = output["completion_mask"].sum(dim=1)
        # `mask_truncated_completions` empties the mask of the longest ones
        lengths = torch.where(lengths > 0, lengths, output["completion_mask"].size(1))
        tokens = self.accelerator.gather(lengths.to(device)).cpu().numpy()  # (R,)
        success = self._success(rewards_per_func).cpu().numpy()  # (R,)
        record = RolloutRecord(
            keys=keys,
            evidence=evidence,
            allocation=allocation,
            solver_seconds=solver_seconds,
            successes=plan.per_prompt(np.nan_to_num(success, nan=0.0)),
            trials=plan.per_prompt(~np.isnan(success)),
            tokens=plan.per_prompt(tokens),
            mean_reward=groups.mean_reward.cpu().numpy(),
            mixed=groups.mixed.cpu().numpy(),
            rank_imbalance=plan.imbalance(tokens),
        )
        for name, value in record.metrics().items():
            self._metrics["train"][name].append(value)
        self.success_rate_callback.record(record)

    def _success(self, rewards_per_func: torch.Tensor) -> torch.Tensor:
        """1 where a completion succeeded, 0 where it failed, NaN where it has no reward: `(R, F) -> (R,)`."""
        if self.success_func is not None:
            rewards = rewards_per_func.cpu().numpy()
            by_name = {name: rewards[:, i].copy() for i, name in enumerate(self.reward_func_names)}
            success = np.asarray(self.success_func(by_name), dtype=np.float32)
            if success.shape != rewards.shape[:1] or not np.isin(success[~np.isnan(success)], (0, 1)).all():
                raise ValueError(
                    f"success_func returned {success}, but it must return true, false or NaN for each of "
                    f"{len(rewards)} rollouts."
                )
            return torch.from_numpy(success)
        if self.args.success_reward_func is None:
            reward = weighted_rewards(rewards_per_func, self.reward_weights)
        else:
            reward = rewards_per_func[:, self.reward_func_names.index(self.args.success_reward_func)]
        return (reward >= self.args.success_threshold).float().masked_fill(torch.isnan(reward), torch.nan)

    def _check_success_rule(self) -> None:
        name, names = self.args.success_reward_func, self.reward_func_names
        if name is not None and self.success_func is not None:
            raise ValueError(f"Both success_func and success_reward_func ({name!r}) decide success; give one of them.")
        if name is not None and name not in names:
            raise ValueError(f"success_reward_func {name!r} must be one of the reward functions: {', '.join(names)}.")
        if name is None and self.success_func is None and len(names) > 1:
            logger.warning(
                f"The weighted sum of {', '.join(names)} decides success: at least {self.args.success_threshold} "
                "(success_threshold). Name the function for correctness with success_reward_func to let it decide alone."
            )

    def _warn_of_foreign_state(self, info: SuccessStateInfo | None) -> None:
        """Success rates that were kept under other keys help nobody, and nothing else would show it."""
        differences = [] if info is None else info.differences(self.args)
        if differences:
            logger.warning(
                f"The success rates in {self.args.success_state_path} were kept otherwise: {'; '.join(differences)}."
            )
        if not hasattr(self.train_dataset, "__len__"):
            return
        rows = [self.train_dataset[i] for i in range(min(100, len(self.train_dataset)))]
        if not any(prompt_key(row, self.args.prompt_id_column) in self.success_tracker for row in rows):
            kept_of = "" if info is None else f", which are of {info.dataset_name}, split {info.dataset_train_split}"
            logger.warning(
                f"None of the first {len(rows)} prompts is known in {self.args.success_state_path}{kept_of}; is it of this "
                f"dataset, and with the same prompt_id_column ({self.args.prompt_id_column})?"
            )


def check_seams(trainer_class: type) -> None:
    """
    Refuse a TRL that is too old, or whose trainer lacks what [`KnapsackGRPOTrainer`] overrides.

    Raises:
        `ImportError`: naming the version or the missing seam, and the versions that work.
    """
    if Version(trl.__version__) < Version(OLDEST_TRL):
        raise ImportError(
            f"trl {trl.__version__} is too old for trl_knapsack; install a TRL that works: {WORKING_TRL}."
        )
    for method, parameters in _SEAMS.items():
        present = inspect.signature(getattr(trainer_class, method, lambda: None)).parameters
        if not hasattr(trainer_class, method) or not set(parameters) <= set(present):
            raise ImportError(
                f"trl {trl.__version__} has no {trainer_class.__name__}.{method}({', '.join(parameters)}), which "
                f"trl_knapsack overrides; install a TRL that works: {WORKING_TRL}."
            )


def _check_train_dataset(dataset: Any, args: KnapsackGRPOConfig, has_environment: bool) -> None:
    """Say what is wrong with a dataset before the model is loaded; what TRL itself checks is left to it."""
    columns = getattr(dataset, "column_names", None)  # None for a stream that does not know
    if columns is not None:
        if "prompt" not in columns and not has_environment:
            raise ValueError(
                f"train_dataset has no column 'prompt', only {columns}; rename the one that holds prompts."
            )
        if args.prompt_id_column is not None and args.prompt_id_column not in columns:
            raise ValueError(
                f"prompt_id_column {args.prompt_id_column!r} is not a column of train_dataset, which has {columns}; "
                "name one of those, or leave it unset to key prompts by content."
            )
    if hasattr(dataset, "__len__"):
        needed = args.generation_batch_size // args.num_generations
        if len(dataset) < needed:
            raise ValueError(
                f"train_dataset has {len(dataset)} prompts, but one generation batch needs {needed} "
                f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}); "
                "add prompts, or lower the batch size."
            )


def _check_seed(args: KnapsackGRPOConfig) -> None:
    """With unequal groups each row is a request of its own, and a vLLM server answers equal requests equally."""
    seed = (args.generation_kwargs or {}).get("seed")
    if seed is not None and args.use_vllm and args.vllm_mode == "server":
        raise ValueError(
            f"generation_kwargs has a seed ({seed}), and vllm_mode is 'server': all completions of a prompt would be "
            "the same, because with unequal groups each is a request of its own; remove the seed, or set "
            "allocation='uniform'."
        )

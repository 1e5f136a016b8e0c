"""`GRPOTrainer` in which every prompt has its own number of generations."""

import copy
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence, Sized
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import trl
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import ProgressCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, get_config_model_id

from ..allocation import AllocationRule, PosteriorRule, get_rule
from ..allocation.looks import BatchSharing
from ..allocation.rules import check_rule
from ..errors import InvalidInputError
from ..hub.cards import PAPER, TAGS, complete_model_card
from ..hub.states import SuccessStateInfo, find_success_state
from ..tracking.difficulty_prior import DifficultyPrior
from ..tracking.features import roots_of
from ..tracking.keys import prompt_key
from ..tracking.records import RolloutRecord
from ..tracking.tracker import SuccessRateTracker
from .advantages import GroupAdvantages, group_advantages, weighted_rewards
from .callbacks import PlotCallback, SuccessRateCallback
from .checkpoints import (
    OtherSettings,
    ResumableRepeatSampler,
    StepBoundary,
    load_window,
    newest_whole_checkpoint,
    save_window,
    state_digest,
    what_is_missing,
    what_is_torn,
    window_path,
)
from .checks import (
    check_server_seed,
    check_success_rule,
    check_train_dataset,
    likely_success_func,
    why_nothing_moves,
)
from .config import KnapsackGRPOConfig
from .decision import Decision, decide
from .folder_lock import RunFolderLock
from .progress import KnapsackProgressCallback
from .ranks import RankAgreement, all_ranks_or_none
from .seams import ATTRIBUTES, WORKING_TRL, check_attributes, check_seams, check_unsloth
from .waiting import WAITING_FILE, WaitingPrompt, WaitingPrompts, look_and_window


if TYPE_CHECKING:
    from datasets import DatasetDict, IterableDatasetDict
    from peft import PeftConfig, PeftModel
    from transformers import (
        BitsAndBytesConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
        TrainerCallback,
    )
    from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc


logger = get_logger(__name__)

# Rewards by the name of their function, each (R,) -> success of each rollout, (R,)
SuccessFunc = Callable[[dict[str, np.ndarray]], np.ndarray]

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
        args=KnapsackGRPOConfig(
            output_dir="outputs",
            num_generations=8,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=8,  # 128 rollouts in a generation batch
        ),
        train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train[:2000]"),
    )
    trainer.train()
    ```
    """

    _tag_names = list(TAGS)
    _name = "Knapsack GRPO"
    _paper = PAPER

    args: KnapsackGRPOConfig
    num_generations: int  # None in TRL only before its config is filled in
    num_generations_eval: int
    allocation_rule: AllocationRule
    success_func: SuccessFunc | None
    success_tracker: SuccessRateTracker
    success_rate_callback: SuccessRateCallback
    _folder_lock: RunFolderLock
    _step_boundary: StepBoundary
    _success_name: str | None
    _success_note: str | None

    # Set here as well as in `__init__`, for subclasses and tests that build a trainer without it.
    _trial: Any = None  # of a hyperparameter search; transformers sets it when `train` begins
    _prompts_are_known = False
    _look, _window = 0, 1
    _decision: Decision | None = None  # on the generation batch under way, None outside of training
    _rewards_per_func: Any = None  # its rewards over all ranks, (R, F)
    _advantages_checked = False

    if TYPE_CHECKING:  # what editors and type checkers see; a test compares it with TRL's

        def __init__(
            self,
            model: "str | PreTrainedModel | PeftModel",
            reward_funcs: "RewardFunc | list[RewardFunc] | None" = None,
            args: GRPOConfig | None = None,
            train_dataset: Dataset | IterableDataset | None = None,
            eval_dataset: "Dataset | IterableDataset | DatasetDict | IterableDatasetDict | dict[str, Dataset | IterableDataset] | None" = None,
            processing_class: "PreTrainedTokenizerBase | ProcessorMixin | None" = None,
            reward_processing_classes: "PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None" = None,
            callbacks: "list[TrainerCallback] | None" = None,
            optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
            quantization_config: "BitsAndBytesConfig | None" = None,
            peft_config: "PeftConfig | None" = None,
            tools: list[Callable] | None = None,
            rollout_func: "RolloutFunc | None" = None,
            environment_factory: "EnvironmentFactory | dict[str, EnvironmentFactory] | None" = None,
            *,
            allocation_rule: AllocationRule | None = None,
            success_func: SuccessFunc | None = None,
        ) -> None: ...

    else:

        def __init__(
            self,
            model,
            reward_funcs=None,
            args=None,
            train_dataset=None,
            *others,
            allocation_rule=None,
            success_func=None,
            **kwargs,
        ):
            check_seams(GRPOTrainer)
            check_unsloth(type(self))
            if args is None:
                name = model if isinstance(model, str) else get_config_model_id(model.config)
                args = KnapsackGRPOConfig(f"{name.split('/')[-1]}-Knapsack-GRPO")
            elif not isinstance(args, KnapsackGRPOConfig):
                args = KnapsackGRPOConfig.from_grpo_config(args)
            rule = self._rule(args, allocation_rule)
            has_environment = kwargs.get("environment_factory") is not None
            check_train_dataset(train_dataset, args, has_environment)
            difficulty = self._difficulty_prior(args, train_dataset)  # before the model is loaded: it may be misspelt
            if train_dataset is not None and (allocation_rule is not None or args.allocation != "uniform"):
                check_server_seed(args)
            super().__init__(model, reward_funcs, args, train_dataset, *others, **kwargs)
            check_attributes(self, ATTRIBUTES)
            check_success_rule(args, self.reward_func_names, success_func is not None)

            self.allocation_rule = rule
            self._look, self._window = look_and_window(args, rule, self._dataset_size)
            self.success_func = success_func
            self.success_tracker = SuccessRateTracker(args.success_prior, args.success_decay, difficulty)
            name = args.allocation
            if allocation_rule is not None:  # a function has a name of its own
                name = getattr(rule, "__name__", type(rule).__name__)
            self._step_boundary = StepBoundary(
                lambda: self._step, is_needed=getattr(args, "enable_jit_checkpoint", False)
            )
            self._folder_lock = RunFolderLock(self._run_folder)  # before the next, which begins to write there
            self.success_rate_callback = SuccessRateCallback(self.success_tracker, self._run_folder, name)
            self.add_callback(self._step_boundary)
            self.add_callback(self._folder_lock)
            self.add_callback(self.success_rate_callback)
            if args.plot_steps > 0:
                self.add_callback(
                    PlotCallback(args.plot_steps, self._run_folder, lambda: self.callback_handler.callbacks)
                )
            self.add_callback(RankAgreement(self._shared_by_ranks))
            if sys.stderr.isatty() and self.pop_callback(ProgressCallback) is not None:
                self.add_callback(KnapsackProgressCallback(lambda: self.success_rate_callback.last_record))
            self._success_name, self._success_note = self._what_decides_success()
            if self._success_note is not None:
                logger.warning(self._success_note)
            with all_ranks_or_none():
                if args.success_state_path is not None:
                    path, info = find_success_state(args.success_state_path)
                    self.success_rate_callback.load(path)
                    if difficulty is not None:
                        difficulty.reweigh()
                    self._warn_of_foreign_state(info)
            # Without a dataset the environment owns the prompts, and all rows look alike: nothing to allocate.
            self._prompts_are_known = train_dataset is not None
            self._warn_if_nothing_moves(has_other_rule=allocation_rule is not None)

    # ------------------------------------------------------------------------------------------ what TRL calls

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        As [`~trl.GRPOTrainer.train`]. With `resume_from_checkpoint=True` a newest checkpoint that was not written to its
        end is passed over, with a warning.

        Raises:
            `ValueError`: if the checkpoint was not written to its end, naming the newest that was.
        """
        try:
            output = super().train(self._whole(resume_from_checkpoint), *args, **kwargs)
        finally:
            self._folder_lock.release()
        if self._success_note is not None:  # once more, where it is not lost among the messages of the start
            logger.warning(self._success_note)
        return output

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._prompts_are_known:
            return super()._generate_and_score_completions(inputs)
        if not self.model.training:
            self._log_group_sizes([self.num_generations_eval] * len(inputs))
            return super()._generate_and_score_completions(inputs)

        self.success_rate_callback.learn(self.state.global_step + 1, self.state.epoch)
        waiting = self.success_rate_callback.waiting
        new = [
            WaitingPrompt(
                prompt_key(row, self.args.prompt_id_column),
                row,
                rewards=torch.empty(0, len(self.reward_func_names)),
                since=waiting.batches,
            )
            for row in self._gather_prompts(inputs)
        ]
        candidates = [*waiting.prompts, *new]  # (C,)
        features = self._features(candidates)
        evidence = self.success_tracker.evidence(
            [prompt.key for prompt in candidates],
            features,
            goes_on=np.array([prompt.trials > 0 for prompt in candidates]),
        )
        self._decision = decide(
            self._batch_sharing(len(new)),
            evidence,
            np.array([len(prompt.rewards) for prompt in candidates]),
            len(new),
            len(inputs) * self.accelerator.num_processes,
            waiting.batches,
            self.accelerator,
        )
        prompts = [candidates[i] for i in self._decision.candidates]  # (P,)
        try:
            # A copy per row, as from TRL's data loader: TRL writes the extra fields of `rollout_func` into the row,
            # and environments write into its lists.
            rank_rows = self._decision.plan.rank_rows(self.accelerator.process_index)
            self._log_group_sizes(self._decision.allocation.counts[rank_rows].tolist())
            output = super()._generate_and_score_completions([copy.deepcopy(prompts[i].row) for i in rank_rows])
            groups = self._correct_advantages(output, self._decision, prompts, self._rewards_per_func)
            record = self._record(output, self._decision, prompts, self._rewards_per_func, groups)
            difficulty = self.success_tracker.difficulty
            for name, value in (record.metrics() | (difficulty.metrics() if difficulty else {})).items():
                self._metrics["train"][name].append(value)
            if self._may_wait:
                waiting = waiting.after(candidates, self._decision, record, self._rewards_per_func)
            if features is not None:
                features = features[self._decision.candidates]
            self.success_rate_callback.record(record, waiting, features)
        finally:
            self._decision = self._rewards_per_func = None
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_per_func = rewards_per_func
        return rewards_per_func

    def _generate(self, prompts):
        if self._decision is None or (self._decision.allocation.counts == self.num_generations).all():
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
        columns = [self.args.prompt_id_column, *roots_of(self.args.difficulty_columns or (), self.train_dataset)]
        for column in columns:
            if column is not None and column not in self._signature_columns:  # else `remove_unused_columns` drops it
                self._signature_columns.append(column)

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        if type(sampler) is RepeatSampler and self.shuffle_dataset:  # else there is no permutation to go on with
            sampler = ResumableRepeatSampler(sampler, epochs_passed=lambda: int(self.state.epoch or 0))
        return sampler

    def _save_checkpoint(self, model, trial):
        # Before transformers' own files: its last act is to delete an older checkpoint, and until `trainer_state.json`
        # is there, this one does not count.
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self._step_boundary.update(self.state.global_step):  # transformers' callback on SIGTERM comes before ours
            self.success_rate_callback.learn(self.state.global_step, self.state.epoch)
        with all_ranks_or_none():
            os.makedirs(folder, exist_ok=True)
            if self.args.should_save:  # of an earlier run in this folder: until the end, the two are mixed
                Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)
        with all_ranks_or_none():  # no rank goes on to delete before every rank has written
            if self.args.should_save:
                self.success_rate_callback.save(folder)
                if self._may_wait:
                    self.success_rate_callback.waiting.save(folder)
            if not self.args.save_only_model:  # else nobody can resume from it
                self._save_window(folder)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir):
        # The last that every rank writes. `trainer_state.json`, which says that a checkpoint is whole, and deleting an
        # older one come after: without the wait, rank 1 could be killed in between, and nothing would show it.
        with all_ranks_or_none(), self._step_boundary.random_state_of_step():
            super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        self._step_boundary.keep_random_state()

    def _save_window(self, folder: str) -> None:
        per_window = self.args.steps_per_generation * self.num_iterations
        step, batches = self._step, self._buffered_inputs if self._step % per_window != 0 else []
        if self._step_boundary.step != step:
            # Within a step, whose beginning the resumed run goes back to: with its window if that began before it.
            step = self._step_boundary.step
            is_same_window = step % per_window != 0 and (self._step - 1) // per_window == step // per_window
            batches = self._buffered_inputs if is_same_window else []
        path = window_path(folder, self.accelerator.process_index)
        save_window(path, step, batches or [], self._window_settings())

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
        path, window, why = window_path(checkpoint, self.accelerator.process_index), None, None
        with all_ranks_or_none():
            if self.args.resume_success_state:
                self.success_rate_callback.load(checkpoint)
                if self._may_wait:
                    self.success_rate_callback.waiting = WaitingPrompts.load(checkpoint, self.args.prompt_id_column)
            try:
                if os.path.isfile(path):
                    window = load_window(path, self._window_settings(), self.accelerator.device)
                else:
                    why = f"it has no {os.path.basename(path)}, as one with save_only_model or of another trainer"
            except OtherSettings as settings:
                why = f"it was saved with other settings: {settings}"
        if len(set(gather_object([window and window[0]]))) > 1:
            # One rank can't go on with its rollouts, so none does.
            window, why = None, why or "the windows of its ranks do not belong together"
        if window is None:
            logger.warning(
                f"The rollouts under way in {checkpoint}, if any, are generated again, so the run does not go on exactly "
                f"as it would have: {why}."
            )
        else:
            self._step, batches = window
            self._buffered_inputs = batches or None
            self._warn_of_missing_files(checkpoint)

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

    def _whole(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """The checkpoint to resume from, if it was written to its end; of `True`, the newest such."""
        if not resume_from_checkpoint:
            return resume_from_checkpoint
        if resume_from_checkpoint is True:
            folder = self.args.output_dir or ""
            newest = get_last_checkpoint(folder) if os.path.isdir(folder) else None
        else:
            newest = resume_from_checkpoint
        if newest is None or not os.path.isdir(newest):
            return resume_from_checkpoint  # transformers says what is wrong
        torn = what_is_torn(newest)
        if torn is None:
            return newest
        whole = newest_whole_checkpoint(os.path.dirname(os.path.normpath(newest)))
        said = f"{newest} was not written to its end ({torn})"
        if whole is None:
            raise InvalidInputError(f"{said}, and there is no other checkpoint beside it; begin anew.")
        if resume_from_checkpoint is True:
            logger.warning(f"{said}; the run goes on from {whole}.")
            return str(whole)
        raise InvalidInputError(f"{said}; resume from {whole}, the newest that was.")

    def _run_folder(self) -> str:
        """Where the run under way keeps its checkpoints: `output_dir`, or a trial's folder in it."""
        return self._get_output_dir(trial=self._trial)

    def _warn_of_missing_files(self, checkpoint: str) -> None:
        """Of a checkpoint with a window, which is none of the model alone."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # they have files of their own
            return
        ranks = self.accelerator.num_processes
        expected = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
        if self._may_wait and self.args.resume_success_state:
            expected.append(WAITING_FILE)
        missing = what_is_missing(checkpoint, expected)
        if missing:
            logger.warning(
                f"{checkpoint} has no {', no '.join(missing)}, so the run does not go on exactly as it would have; restore "
                "what is missing, or resume from another checkpoint."
            )

    def _window_settings(self) -> dict[str, int | None]:
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
        shared["The digest of the prompts that wait"] = self.success_rate_callback.waiting.digest()
        return shared

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

    @staticmethod
    def _rule(args: KnapsackGRPOConfig, own: AllocationRule | None) -> AllocationRule:
        """The rule that decides: the user's own, or the one that the options describe."""
        if own is None:
            return (
                get_rule(args.allocation)
                if args.token_budget is None
                else PosteriorRule(token_budget=args.token_budget)
            )
        if args.token_budget is not None:
            raise InvalidInputError(
                f"token_budget ({args.token_budget!r}) is an option of allocation='posterior', but allocation_rule is given; "
                "leave one of them out, or give PosteriorRule(token_budget=...) as the rule."
            )
        return check_rule(own)

    @staticmethod
    def _difficulty_prior(args: KnapsackGRPOConfig, dataset: Any) -> DifficultyPrior | None:
        """The prior that learns from the difficulty columns, which are read from the whole dataset where it can be."""
        if args.difficulty_columns is None or dataset is None or args.allocation == "uniform":
            return None
        prior = DifficultyPrior(args.difficulty_columns, args.success_prior)
        if isinstance(dataset, Dataset) and dataset.format["type"] != "custom":  # else its rows are made one by one
            rows: Any = dataset.select_columns(roots_of(args.difficulty_columns, dataset))
            prior.read(rows)
        return prior

    def _features(self, prompts: list[WaitingPrompt]) -> np.ndarray | None:
        """What the difficulty columns say of prompts, `(C, D)`."""
        if self.success_tracker.difficulty is None:
            return None
        return self.success_tracker.difficulty.features([prompt.row for prompt in prompts])

    def _log_group_sizes(self, sizes: list[int]) -> None:
        """Beside each completion that is logged, how many its prompt got: one number for each row of this rank."""
        if self.log_completions:
            self._log_completion_extra("generations", sizes)

    def _group_weights(self, counts: np.ndarray) -> np.ndarray:
        """Factor on the advantages of each prompt's group, `(P,)`; the mean over rollouts is 1."""
        if (counts == counts[0]).all():
            return np.ones(len(counts))
        weights = np.maximum(counts, 1) ** (self.args.group_weight_power - 1.0)
        return weights * (counts.sum() / (counts * weights).sum())

    @property
    def _may_wait(self) -> bool:
        """Whether prompts may wait from one generation batch to another."""
        return self._look > 0 or self._window > 1

    def _batch_sharing(self, prompts_per_batch: int) -> BatchSharing:
        """How generation batches of so many new prompts are shared out."""
        bounds = self.args.min_generations, self.args.max_generations
        return BatchSharing(self.allocation_rule, *bounds, self._look, math.ceil(self._window / prompts_per_batch))

    def _correct_advantages(
        self,
        output: dict[str, Any],
        decision: Decision,
        prompts: list[WaitingPrompt],
        rewards_per_func: torch.Tensor,
    ) -> GroupAdvantages:
        """Put right, in place, what TRL computed for equal groups, and return what it should have been."""
        options = (self.reward_weights, self.scale_rewards, self.multi_objective_aggregation)
        rows = len(output["advantages"])
        start = self.accelerator.process_index * rows
        rank_rows = slice(start, start + rows)

        if not self._advantages_checked:
            equal = torch.arange(len(rewards_per_func) // self.num_generations).repeat_interleave(self.num_generations)
            ours = group_advantages(rewards_per_func, equal, *options).advantages[rank_rows]
            # Equal bits on a CPU, as the tests prove; a GPU may add in another order.
            if not torch.allclose(ours, output["advantages"], rtol=1e-3, atol=1e-5):
                raise RuntimeError(
                    f"trl {trl.__version__} computes other advantages than trl_knapsack knows of; "
                    f"install a TRL that works: {WORKING_TRL}."
                )
            self._advantages_checked = True

        row_prompt = torch.from_numpy(decision.plan.row_prompt)  # (R,)
        earlier = None
        if any(len(prompt.rewards) for prompt in prompts):
            sizes = torch.tensor([len(prompt.rewards) for prompt in prompts])
            group = torch.arange(len(prompts)).repeat_interleave(sizes)
            earlier = torch.cat([prompt.rewards for prompt in prompts]), group
        groups = group_advantages(rewards_per_func, row_prompt, *options, earlier)
        advantages = groups.advantages  # (R,)
        weights = self._group_weights(decision.allocation.counts)  # (P,)
        if (weights != 1).any():
            # Every loss of TRL is linear in the size of the advantage, so this weighs the group in any of them.
            by_prompt = torch.from_numpy(weights).to(advantages)
            advantages = advantages * by_prompt[row_prompt.to(self.accelerator.device)]
        output["advantages"] = advantages[rank_rows]
        self._metrics["train"]["frac_reward_zero_std"][-1] = groups.zero_std.float().mean().item()
        logged = self._logs["advantages"]
        for _ in range(len(advantages)):
            logged.pop()
        logged.extend(advantages.tolist())
        return groups

    def _record(
        self,
        output: dict[str, Any],
        decision: Decision,
        prompts: list[WaitingPrompt],
        rewards_per_func: torch.Tensor,
        groups: GroupAdvantages,
    ) -> RolloutRecord:
        """What came of the generation batch, for the metrics, the tracker and the history."""
        plan = decision.plan
        lengths = output["completion_mask"].sum(dim=1)
        # `mask_truncated_completions` empties the mask of the longest ones
        lengths = torch.where(lengths > 0, lengths, output["completion_mask"].size(1))
        tokens: Any = self.accelerator.gather(lengths.to(self.accelerator.device))
        tokens = tokens.cpu().numpy()  # (R,)
        success = self._success(rewards_per_func).cpu().numpy()  # (R,)
        return RolloutRecord(
            evidence=decision.evidence,
            allocation=decision.allocation,
            solver_seconds=decision.seconds,
            successes=plan.per_prompt(np.nan_to_num(success, nan=0.0)),
            trials=plan.per_prompt(~np.isnan(success)),
            tokens=plan.per_prompt(tokens),
            mean_reward=groups.mean_reward.cpu().numpy(),
            mixed=groups.mixed.cpu().numpy(),
            rank_imbalance=plan.imbalance(tokens),
            looks=decision.looks,
            predicted=self._predicted(decision, prompts),
            before=np.array([len(prompt.rewards) for prompt in prompts]),
            successes_before=np.array([prompt.successes for prompt in prompts]),
            trials_before=np.array([prompt.trials for prompt in prompts]),
            look_age=np.array([self.success_rate_callback.waiting.batches - prompt.since for prompt in prompts]),
        )

    def _predicted(self, decision: Decision, prompts: list[WaitingPrompt]) -> np.ndarray:
        """Whose success rate the difficulty columns predicted, `(P,)`: prompts that had no visit but this."""
        difficulty = self.success_tracker.difficulty
        if difficulty is None or difficulty.believed != "features":
            return np.zeros(len(prompts), dtype=bool)
        return decision.evidence.visits <= np.array([prompt.trials > 0 for prompt in prompts])

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
        if self._success_name is None:
            reward = weighted_rewards(rewards_per_func, self.reward_weights)
        else:
            reward = rewards_per_func[:, self.reward_func_names.index(self._success_name)]
        return (reward >= self.args.success_threshold).float().masked_fill(torch.isnan(reward), torch.nan)

    def _what_decides_success(self) -> tuple[str | None, str | None]:
        """The reward function that decides success, `None` for the weighted sum, and what is to be said about it."""
        names, name = self.reward_func_names, self.args.success_reward_func
        if len(names) == 1 or name is not None or self.success_func is not None:
            return name, None
        remedy = f"Set success_reward_func to one of {', '.join(names)} to decide otherwise, or to confirm it."
        name = likely_success_func(names)
        if name is not None:
            return name, f"Of several reward functions {name} decides success, because of its name. {remedy}"
        return None, (
            f"The weighted sum of {', '.join(names)} decides success: at least {self.args.success_threshold} "
            f"(success_threshold), which the right format alone may reach. {remedy}"
        )

    def _warn_if_nothing_moves(self, has_other_rule: bool) -> None:
        if not self._prompts_are_known:
            return
        args = self.args
        prompts = args.generation_batch_size // args.num_generations
        known = has_other_rule or len(self.success_tracker) > 0  # a rule of the user's own may know prompts otherwise
        known |= self.success_tracker.difficulty is not None
        why = why_nothing_moves(args, prompts, self._look, self._window, self._dataset_size, args.max_steps, known)
        if why is not None:
            logger.warning(why)

    @property
    def _dataset_size(self) -> int | None:
        """Prompts of the dataset, `None` for a stream."""
        return len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None

    def _warn_of_foreign_state(self, info: SuccessStateInfo | None) -> None:
        """Success rates that were kept under other keys help nobody, and nothing else would show it."""
        differences = [] if info is None else info.differences(self.args)
        if differences:
            logger.warning(
                f"The success rates in {self.args.success_state_path} were kept differently: {'; '.join(differences)}."
            )
        dataset: Any = self.train_dataset
        if not hasattr(dataset, "__len__"):
            return
        rows = [dataset[i] for i in range(min(100, len(dataset)))]
        if not any(prompt_key(row, self.args.prompt_id_column) in self.success_tracker for row in rows):
            kept_of = "" if info is None else f", which are of {info.dataset_name}, split {info.dataset_train_split}"
            logger.warning(
                f"None of the first {len(rows)} prompts is known in {self.args.success_state_path}{kept_of}; is it of this "
                f"dataset, and with the same prompt_id_column ({self.args.prompt_id_column})?"
            )


def _trl_signature() -> inspect.Signature:
    """TRL's arguments and ours, which `help(KnapsackGRPOTrainer)` and a notebook show."""
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters.values())
    ours = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _OWN_ARGUMENTS]
    return inspect.Signature([*theirs, *ours])


_OWN_ARGUMENTS: Sequence[str] = ("allocation_rule", "success_func")
KnapsackGRPOTrainer.__init__.__signature__ = _trl_signature()

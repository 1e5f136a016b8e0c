"""
Rollouts for TRL's `AsyncGRPOTrainer`, each prompt with its own number of them.

TRL's loop asks for one rollout at a time and hands over a group when `num_generations` of its rollouts have come back. Here
`num_generations` is 1 for the loop, so it hands over every rollout by itself as soon as that has come back, and the rounds are put together
in the method that scores a group:

    _repeat_iterator     3 rollouts of prompt 7, its look      the rest of prompt 5      3 of prompt 8 ...
    _generate_loop       asks vLLM for each, in flight with all others
    _score_group         1 of prompt 7: [];   2: [];   3: scored by TRL, 3 rows to train on, and the rest is decided
    _repeat_iterator     ... 9 more of prompt 7, its rest
"""

import functools
import itertools
import logging
import multiprocessing
import os
import queue
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import trl
from transformers import TrainerCallback

from ..errors import InvalidInputError, MissingDependencyError
from ..tracking.keys import prompt_key
from ..tracking.state_file import STATE_FILE, find_state
from ..tracking.tracker import SuccessRateTracker, check_success_threshold
from .async_seams import WORKING_TRL, check_async_seams
from .running_knapsack import RunningKnapsack, round_advantages


try:
    from trl.experimental.async_grpo import AsyncGRPOTrainer, async_rollout_worker
    from trl.experimental.async_grpo.async_rollout_worker import (
        AsyncRolloutWorker,
        RolloutGroup,
        RolloutSample,
        TrainingSequence,
        _AsyncRolloutLoop,
    )
    from trl.trainer.utils import get_callable_name
except ImportError as error:
    raise MissingDependencyError(
        f"trl {trl.__version__} has no asynchronous trainer that KnapsackRolloutWorker can serve ({error}); install a TRL "
        f"that works: {WORKING_TRL}."
    ) from error


logger = logging.getLogger(__name__)  # accelerate's wants its state, which a worker may be built before

# Groups of TRL's that may wait to be scored; here a rollout is a group, so it is times `num_generations`.
_SCORE_QUEUE = 16


class _Observation(NamedTuple):
    """What the tracker is told of a scored round, in the child that decides and in the trainer's process that saves."""

    key: str
    successes: int
    trials: int
    rollouts: int
    tokens: int
    successes_before: int
    trials_before: int

    def tell(self, tracker: SuccessRateTracker) -> None:
        tracker.observe(
            [self.key],
            [self.successes],
            [self.trials],
            rollouts=[self.rollouts],
            tokens=[self.tokens],
            earlier=([self.successes_before], [self.trials_before]),
        )


@dataclass(eq=False)
class _Visit:
    """A prompt in the course of a visit: its look, and then the rest."""

    number: int  # of the prompt, from 0 in the order of the dataset, as TRL counts groups
    row: dict[str, Any]
    key: str
    rewards: np.ndarray = field(default_factory=lambda: np.empty(0))  # (k,), of the look once it is scored
    successes: int = 0
    trials: int = 0
    generations: int | None = None  # in total, once it is decided


@dataclass(eq=False)
class _Round:
    """Rollouts of a prompt that are asked for together, and scored when the last one has come back."""

    visit: _Visit
    rollouts: int
    asked: int = 0
    returned: list[RolloutGroup] = field(default_factory=list)

    def whole(self) -> RolloutGroup:
        """One group of all its rollouts, in the order in which they came back."""
        group, *others = self.returned
        for other in others:
            for name in _LISTS:
                getattr(group, name).extend(getattr(other, name))
            for column, values in other.reward_kwargs.items():
                group.reward_kwargs[column].extend(values)
        group.group_id = self.visit.number
        return group


# Of a `RolloutGroup`: one entry for each rollout.
_LISTS = (
    *("prompts", "completions", "completions_ids", "completions_sequences"),
    *("tool_call_counts", "tool_failure_counts", "env_rewards", "rollout_rewards"),
)


class _KnapsackRolloutLoop(_AsyncRolloutLoop):
    """TRL's loop in the child process. See [`KnapsackRolloutWorker`] for the arguments."""

    def __init__(
        self,
        *,
        knapsack: RunningKnapsack,
        success_tracker: SuccessRateTracker,
        success_threshold: float,
        success_reward_func: str | None,
        prompt_id_column: str | None,
        observations: Any,
        **loop_kwargs: Any,
    ):
        super().__init__(num_generations=1, score_queue_maxsize=_SCORE_QUEUE * knapsack.num_generations, **loop_kwargs)
        if success_reward_func is not None:
            _check_reward_name(success_reward_func, self.reward_func_names)  # environments have theirs by now
        self._knapsack = knapsack
        self._tracker = success_tracker
        self._success_threshold = success_threshold
        self._success_column = "reward" if success_reward_func is None else f"rewards/{success_reward_func}"
        self._prompt_id_column = prompt_id_column
        self._observations = observations
        self._observations.cancel_join_thread()  # when the run is over, nobody may be reading them any more
        self._to_ask: deque[_Round] = deque()
        self._in_flight: dict[int, _Round] = {}  # by the number under which TRL knows the rollout

    def _repeat_iterator(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The next rollout to ask for: of a rest, and if none is due of the next prompt's look."""
        rollouts = itertools.count()
        for number, row in super()._repeat_iterator():  # each prompt once
            visit = _Visit(number, row, prompt_key(row, self._prompt_id_column))
            self._to_ask.append(_Round(visit, self._knapsack.look_generations))
            while self._to_ask:  # a rest may have been added since
                due = self._to_ask[0]
                due.asked += 1
                if due.asked == due.rollouts:
                    self._to_ask.popleft()
                rollout = next(rollouts)
                self._in_flight[rollout] = due
                yield rollout, due.visit.row

    async def _score_group(self, group: RolloutGroup) -> list[RolloutSample]:
        """Takes in one rollout. The last one of a round brings the rows of all of them."""
        due = self._in_flight.pop(group.group_id)
        due.returned.append(group)
        if len(due.returned) < due.rollouts:
            self._total_groups_scored -= 1  # TRL adds one for every call
            return []
        versions = [one.model_version for one in due.returned]
        whole, visit = due.whole(), due.visit
        # A completion without any token to train has no row, so nothing would say its reward; an empty row does.
        whole.completions_sequences = [
            rows or [TrainingSequence([], [], [], "")] for rows in whole.completions_sequences
        ]
        samples = await super()._score_group(whole)

        rows = np.array([len(rows) for rows in whole.completions_sequences])  # (m,)
        first = np.cumsum(rows) - rows  # (m,), the first row of each rollout
        rewards = np.array([samples[i].metrics["reward"] for i in first])  # (m,)
        self._check_advantages(rewards, np.array([samples[i].advantage for i in first]))
        advantages, std = round_advantages(rewards, visit.rewards)
        for sample, rollout in zip(samples, np.repeat(np.arange(len(rows)), rows), strict=True):
            sample.model_version = versions[rollout]  # else a long round is as stale as its first rollout
            if len(visit.rewards):
                sample.advantage = float(advantages[rollout])
                sample.metrics["reward_std"] = std

        success = np.array([samples[i].metrics[self._success_column] for i in first])  # (m,), NaN where not scored
        self._learn(due, success, tokens=sum(map(len, whole.completions_ids)))
        effective = (~np.isnan(rewards)).sum() if std > 1e-8 else 0
        self._push_metrics({"knapsack/effective_gradient_ratio": (float(effective), float(due.rollouts))})
        visit.rewards = np.concatenate([visit.rewards, rewards])
        if visit.generations is None:
            self._decide(visit)
        return [sample for sample in samples if len(sample.input_ids)]

    def _learn(self, due: _Round, success: np.ndarray, tokens: int) -> None:
        visit = due.visit
        successes, trials = int((success >= self._success_threshold).sum()), int((~np.isnan(success)).sum())
        observation = _Observation(visit.key, successes, trials, due.rollouts, tokens, visit.successes, visit.trials)
        observation.tell(self._tracker)
        self._observations.put(observation)
        visit.successes += successes
        visit.trials += trials

    def _decide(self, visit: _Visit) -> None:
        evidence = self._tracker.evidence([visit.key])
        visit.generations = self._knapsack.decide(float(evidence.alpha[0]), float(evidence.beta[0]))
        rest = visit.generations - len(visit.rewards)
        if rest:
            self._to_ask.append(_Round(visit, rest))
        metrics: dict[str, float | tuple[float, float]] = {
            "knapsack/generations/mean": float(visit.generations),
            "knapsack/generations/min": float(visit.generations),
            "knapsack/generations/max": float(visit.generations),
            "knapsack/shadow_price": self._knapsack.shadow_price,
        }
        if visit.trials:
            metrics["knapsack/success_rate"] = (float(visit.successes), float(visit.trials))  # of the looks
        self._push_metrics(metrics)

    def _check_advantages(self, rewards: np.ndarray, theirs: np.ndarray) -> None:
        """The advantages of a rest are replaced; a TRL with another formula must not be."""
        ours, _ = round_advantages(rewards, np.empty(0))
        if not np.allclose(ours, theirs, rtol=1e-5, atol=1e-6):
            raise MissingDependencyError(
                f"trl {trl.__version__} gives the rewards {rewards} the advantages {theirs}, and KnapsackRolloutWorker "
                f"expects {ours}; install a TRL that works: {WORKING_TRL}."
            )


class KnapsackRolloutWorker(AsyncRolloutWorker):
    """
    TRL's [`~trl.experimental.async_grpo.AsyncRolloutWorker`]; the only change is that prompts get unequal numbers of rollouts.

    Each prompt gets a look of a few rollouts. When they are scored, its belief is updated, and it gets one rollout more while the
    expected gain is above the price of a rollout; the price follows what was spent, so that the mean stays
    `num_generations` ([`RunningKnapsack`]). No prompt waits for another. See `docs/async.md`.

    [`~KnapsackRolloutWorker.for_trainer`] builds one with a trainer's own arguments. Success rates are saved in every
    checkpoint then.

    Args:
        num_generations (`int`, *optional*, defaults to 8):
            Mean number of generations of a prompt.
        max_generations (`int`, *optional*, defaults to 128):
            Most generations of a prompt.
        look_generations (`int`, *optional*):
            Generations of a prompt before it is decided upon. By default 3, but at most half of `num_generations`, and at least 2.
        success_threshold (`float`, *optional*, defaults to 0.5):
            A completion succeeds if its reward is at least this.
        success_reward_func (`str`, *optional*):
            Name of the reward function whose reward decides success. By default the sum of all.
        prompt_id_column (`str`, *optional*):
            Dataset column that identifies a prompt. By default the content of the row is hashed.
        success_tracker ([`SuccessRateTracker`], *optional*):
            What is known of the prompts, with the prior and the decay of your choice. By default a new one.
        success_state_path (`str`, *optional*):
            Success rates to begin with: the checkpoint that is resumed from, or another file or folder that
            [`~trl_knapsack.tracking.find_state`] takes.
        worker_kwargs:
            The other arguments of [`~trl.experimental.async_grpo.AsyncRolloutWorker`].

    Raises:
        `ValueError`: in one sentence, if an option is not valid.
        `ImportError`: if TRL's asynchronous loop is another than the one this was written for.
    """

    def __init__(
        self,
        *,
        num_generations: int = 8,
        max_generations: int = 128,
        look_generations: int | None = None,
        success_threshold: float = 0.5,
        success_reward_func: str | None = None,
        prompt_id_column: str | None = None,
        success_tracker: SuccessRateTracker | None = None,
        success_state_path: str | os.PathLike | None = None,
        **worker_kwargs: Any,
    ):
        check_async_seams(async_rollout_worker)
        check_success_threshold(success_threshold)
        self._tracker = SuccessRateTracker() if success_tracker is None else success_tracker
        if self._tracker.difficulty is not None:
            raise InvalidInputError(
                "success_tracker has difficulty columns, which KnapsackRolloutWorker does not read; give one without."
            )
        if success_state_path is not None:
            self._tracker.load(find_state(success_state_path))
        names = [get_callable_name(function) for function in worker_kwargs.get("reward_funcs", ())]
        if worker_kwargs.get("environment_factory") is None:  # an environment may have a reward of its own
            if success_reward_func is not None:
                _check_reward_name(success_reward_func, names)
            elif len(names) > 1:
                logger.warning(
                    f"The sum of {', '.join(names)} decides success: at least {success_threshold} (success_threshold), "
                    "which the right format alone may reach. Set success_reward_func to one of them to decide otherwise."
                )
        super().__init__(
            knapsack=RunningKnapsack(num_generations, max_generations, look_generations),
            success_tracker=self._tracker,
            success_threshold=success_threshold,
            success_reward_func=success_reward_func,
            prompt_id_column=prompt_id_column,
            **worker_kwargs,
        )
        self._observations = multiprocessing.get_context("spawn").Queue()
        # Not among the arguments: TRL pickles those on trial, and a queue can be handed to a new process only.
        self._loop_cls = functools.partial(_KnapsackRolloutLoop, observations=self._observations)  # type: ignore[assignment]

    @classmethod
    def for_trainer(cls, trainer: AsyncGRPOTrainer, **options: Any) -> "KnapsackRolloutWorker | None":
        """
        Put a worker with the same arguments in the place of the one that a trainer built, before it trains.

        Args:
            trainer ([`~trl.experimental.async_grpo.AsyncGRPOTrainer`]): A trainer that was built without `rollout_worker`.
            options: Options of [`KnapsackRolloutWorker`].

        Returns:
            [`KnapsackRolloutWorker`], or `None` where the trainer has no worker: on all processes but the main one.

        Raises:
            `ValueError`: if the trainer has a worker that is not TRL's own, or has started it.
        """
        built = trainer.rollout_worker
        if built is None:
            return None
        if type(built) is not AsyncRolloutWorker or built._process is not None:
            raise InvalidInputError(
                f"The trainer's rollout worker ({type(built).__name__}) must be TRL's own and not have started; call "
                "for_trainer once, right after the trainer is built without rollout_worker."
            )
        worker = cls(child_ready_timeout=built._child_ready_timeout, **(built._loop_kwargs | options))
        trainer.rollout_worker, trainer.rollout_queue = worker, worker.rollout_buffer
        trainer.add_callback(SaveSuccessRatesCallback(worker))
        return worker

    @property
    def success_tracker(self) -> SuccessRateTracker:
        """What is known of the prompts: all that the child process has reported so far."""
        while True:
            try:
                observation = self._observations.get_nowait()
            except queue.Empty:
                return self._tracker
            observation.tell(self._tracker)

    def start(self) -> None:
        if self._loop_kwargs["dataset_start_index"] and not len(self._tracker):
            logger.warning(
                "The run is resumed without success rates, so nothing is known of any prompt before its look; give "
                "success_state_path, the checkpoint that is resumed from."
            )
        super().start()

    def stop(self) -> None:
        if self._process is not None and not self._process.is_alive():
            self._process = None  # TRL would wait forever for a child that was killed to take note of the stop event
        super().stop()

    def update_model_version(self, model_version: int) -> None:
        super().update_model_version(model_version)
        _ = self.success_tracker  # so that the reports do not pile up


class SaveSuccessRatesCallback(TrainerCallback):
    """
    Saves a worker's success rates in every checkpoint, and in the output folder at the end.

    [`KnapsackRolloutWorker.for_trainer`] adds it. Where a trainer is given `rollout_worker=` instead, add it yourself.

    Args:
        worker ([`KnapsackRolloutWorker`]): The worker.
    """

    def __init__(self, worker: KnapsackRolloutWorker):
        self.worker = worker

    def on_save(self, args: Any, state, control, **kwargs):
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        self.worker.success_tracker.save(os.path.join(folder, STATE_FILE))

    def on_train_end(self, args: Any, state, control, **kwargs):
        try:
            os.makedirs(args.output_dir, exist_ok=True)
            self.worker.success_tracker.save(os.path.join(args.output_dir, STATE_FILE))
        except OSError as error:  # a full disk, say: the model is trained, and `train` shall return
            logger.error(f"The success rates are not saved in {args.output_dir}: {error}")


def _check_reward_name(name: str, names: list[str]) -> None:
    if name not in names:
        raise InvalidInputError(
            f"success_reward_func {name!r} is not a reward of this run; choose one of {', '.join(map(repr, names))}."
        )

"""One run of the study: a contender on a task and regime, with a learning rate and a seed."""

import functools
import hashlib
import json
import logging
import math
import subprocess
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from contenders import CONTENDERS, Policy
from datasets import Dataset
from policies import success_rates
from tasks import NUM_TRAIN, POLICIES, TASKS, load_problems, reward, solve_rates
from transformers import AutoTokenizer, Qwen2ForCausalLM, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig

from trl_knapsack import KnapsackGRPOConfig, get_rule
from trl_knapsack.tracking.records import difficulty
from trl_knapsack.training.waiting import look_and_window


PROMPTS = 18  # of a generation batch, unless the run says otherwise
ROLLOUTS_PER_STEP = 144  # 18 prompts x 8, or 9 x 16, or 6 x 24
NUM_EVALUATIONS = 10


@dataclass(frozen=True, order=True)
class Run:
    """
    What is run, and the name of its result.

    Args:
        task (`str`): One of `TASKS`.
        regime (`str`): Its problems, a file of the policy's folder.
        contender (`str`): One of `CONTENDERS`.
        learning_rate (`float`): It is constant.
        seed (`int`): Of the order of problems and of the rollouts.
        steps (`int`): How long, in steps of `ROLLOUTS_PER_STEP` rollouts.
        prompts (`int`): Prompts of a generation batch. With fewer than 18 an optimizer step takes several of them, so
            that it holds about as many rollouts.
    """

    task: str
    regime: str
    contender: str
    learning_rate: float
    seed: int
    steps: int
    prompts: int = PROMPTS

    @property
    def name(self) -> str:
        small = "" if self.prompts == PROMPTS else f"-{self.prompts}prompts"
        return f"{self.task}-{self.regime}-{self.contender}-lr{self.learning_rate:g}-seed{self.seed}-{self.steps}steps{small}"


def options_digest(contender: str) -> str:
    """
    What a contender's results depend on: its rule, its trainer, and the value of every option of ours, defaults among
    them. A default that changes makes the results that were made under the old one visibly stale.
    """
    this = CONTENDERS[contender]
    args = KnapsackGRPOConfig("unused", bf16=False, use_cpu=True, **this.options)
    inherited = {field.name for field in fields(GRPOConfig)}
    ours = {field.name: getattr(args, field.name) for field in fields(args) if field.name not in inherited}
    ours["look_generations"], ours["allocation_window"] = look_and_window(
        args, this.rule or get_rule(args.allocation), NUM_TRAIN
    )
    content = {
        # what is off is left out, so that a new option makes nothing stale
        "options": {name: value for name, value in ours.items() if value not in (None, False, 0)},
        "num_generations": this.num_generations,
        "budget": this.budget,
        "trainer": this.trainer.__name__,
        "rule": this.rule and contender,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def commit() -> str:
    """The commit that runs, with a plus where a program of it was changed since; results are not programs."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(POLICIES.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(git("status", "--porcelain", "--", ":/*.py"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # no clone


class Measure(TrainerCallback):
    """
    Measures the policy at even distances of rollouts, and notes what became of each generation batch.

    A run ends when it has spent its rollouts, also if it needed more of them for a step than others.
    """

    def __init__(self, trainer, task: str, regime: str, rollouts: int):
        self.trainer, self.rollouts_to_spend = trainer, rollouts
        self.train = load_problems(task, regime, "train")
        self.held_out = load_problems(task, regime, "test")
        self.place = {row["id"]: place for place, row in enumerate(self.train)}
        self.rollouts, self.tokens = getattr(trainer, "rollouts_before", 0), 0
        self.cpu_seconds, self._started = 0.0, None
        self.curve: list[dict] = []
        self.steps: list[dict] = []
        self.visits: list[tuple[int, int, int, int]] = []  # step, prompt, rollouts, successes
        self._records = []  # of the step that runs

    def rates(self, rows: list[dict]) -> np.ndarray:
        trainer = self.trainer
        return success_rates(
            trainer.model,
            trainer.processing_class,
            [row["prompt"] for row in rows],
            [row["solutions"] for row in rows],
        )

    def measure(self) -> None:
        p = self.rates(self.held_out)
        self.curve.append(
            {
                "rollouts": self.rollouts,
                "tokens": self.tokens,
                "cpu_seconds": round(self.cpu_seconds, 2),
                "accuracy": round(float(p.mean()), 5),
                "pass@8": round(float((1 - (1 - p) ** 8).mean()), 5),
                "solved": round(float((p > 0.5).mean()), 5),
            }
        )

    def on_train_begin(self, args, state, control, **kwargs):
        self.measure()
        self.first_train_rates = self.rates(self.train)
        self._started = time.process_time()

    def on_substep_end(self, args, state, control, **kwargs):
        self._records.append(self.trainer.success_rate_callback.last_record)

    def on_step_end(self, args, state, control, **kwargs):
        self.cpu_seconds += time.process_time() - self._started
        self._records.append(self.trainer.success_rate_callback.last_record)
        records, self._records = getattr(self.trainer, "records", None) or self._records, []
        rollouts = sum(int(record.allocation.counts.sum()) for record in records)
        self.steps.append(
            {
                "effective_gradient_ratio": sum(record.effective_rollouts for record in records) / rollouts,
                "mixed_prompts": float(np.mean(np.concatenate([record.mixed for record in records]))),
                "most": max(int(record.allocation.counts.max()) for record in records),
            }
        )
        for record in records:
            for key, count, won in zip(record.keys, record.allocation.counts, record.successes, strict=True):
                self.visits.append((state.global_step, self.place[key], int(count), int(won)))
            self.tokens += int(record.tokens.sum())
        before, self.rollouts = self.rollouts, self.rollouts + rollouts
        every = self.rollouts_to_spend / NUM_EVALUATIONS
        if self.rollouts // every > before // every:
            self.measure()
        control.should_training_stop |= self.rollouts >= self.rollouts_to_spend
        self._started = time.process_time()


def load_dataset(task: str, regime: str) -> Dataset:
    rows = load_problems(task, regime, "train")
    dataset = Dataset.from_list([{name: row[name] for name in ("id", "prompt", "solutions")} for row in rows])
    return dataset.add_column("solved", solve_rates(rows, f"{task} {regime}"))


def execute(run: Run) -> dict:
    """Run it, and return what is worth keeping."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    torch.set_num_threads(1)
    contender, folder = CONTENDERS[run.contender], POLICIES / run.task
    rows_per_step = round(ROLLOUTS_PER_STEP * contender.budget)
    batches = round(PROMPTS / run.prompts)  # of a step
    rows = rows_per_step if batches == 1 else run.prompts * contender.num_generations  # of a batch
    rollouts = round(run.steps * ROLLOUTS_PER_STEP * contender.budget)
    with tempfile.TemporaryDirectory() as output_dir:
        args = KnapsackGRPOConfig(
            output_dir,
            seed=run.seed,
            max_steps=math.ceil(rollouts / (rows * batches)),
            learning_rate=run.learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=batches,
            steps_per_generation=1,
            num_generations=contender.num_generations,
            max_completion_length=TASKS[run.task].max_completion_length,
            prompt_id_column="id",
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **contender.options,
        )
        problems = load_problems(run.task, run.regime, "train")
        model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        policy = Policy(model, tokenizer, {row["id"]: row for row in problems})
        trainer = contender.trainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=reward,
            args=args,
            train_dataset=load_dataset(run.task, run.regime),
            allocation_rule=contender.rule and contender.rule(policy),
        )
        measure = Measure(trainer, run.task, run.regime, rollouts)
        trainer.add_callback(measure)
        trainer.train()
    return asdict(run) | {"commit": commit(), "digest": options_digest(run.contender)} | summary(measure, run)


def summary(measure: Measure, run: Run) -> dict:
    visits = np.array(measure.visits)  # (V, 4): step, prompt, rollouts, successes
    prompts = len(measure.train)
    last = measure.rates(measure.train)
    order = np.argsort(visits[:, 0], kind="stable")
    visits = visits[order]
    seen, first_place = np.unique(visits[:, 1], return_index=True)
    last_place = len(visits) - 1 - np.unique(visits[::-1, 1], return_index=True)[1]
    observed = visits[:, 3] / visits[:, 2]
    transitions = np.zeros((5, 5), dtype=int)
    np.add.at(transitions, (difficulty(observed[first_place]), difficulty(observed[last_place])), 1)
    successes = np.bincount(visits[:, 1], weights=visits[:, 3], minlength=prompts)
    per_tenth = np.array_split(np.arange(len(measure.steps)), NUM_EVALUATIONS)
    series = {
        name: [round(float(np.mean([measure.steps[i][name] for i in part])), 4) for part in per_tenth if len(part)]
        for name in ("effective_gradient_ratio", "mixed_prompts")
    }
    return {
        "curve": measure.curve,
        **series,
        "largest": max(step["most"] for step in measure.steps),
        "budgets": np.bincount(visits[:, 2]).tolist(),
        "transitions": transitions.tolist(),
        "never_solved": int((successes[seen] == 0).sum()),
        "train_rates": [round(float(p), 4) for p in (measure.first_train_rates.mean(), last.mean())],
        "held_out_permille": np.round(1000 * measure.rates(measure.held_out)).astype(int).tolist(),
        "rollouts_per_prompt": np.bincount(visits[:, 1], weights=visits[:, 2], minlength=prompts).astype(int).tolist(),
    }

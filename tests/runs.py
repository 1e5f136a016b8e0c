"""Real training runs of the tiny model, watched step by step."""

import hashlib

import tiny
import torch
from transformers import TrainerCallback

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


OPTIONS = dict(
    per_device_train_batch_size=16,
    gradient_accumulation_steps=2,
    num_generations=4,
    max_completion_length=6,
    max_steps=6,
    learning_rate=1e-2,
    logging_steps=1,
    save_strategy="no",
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)


def options(path, **changes):
    return {**OPTIONS, "output_dir": str(path), **changes}


class Gradients(TrainerCallback):
    """A digest of all gradients, before every optimizer step."""

    def __init__(self):
        self.digests = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        digest = hashlib.sha256()
        for parameter in model.parameters():
            if parameter.grad is not None:  # else below an adapter
                digest.update(parameter.grad.float().cpu().numpy().tobytes())
        self.digests.append(digest.hexdigest())


class Records(TrainerCallback):
    """Every generation batch's record, in order."""

    def __init__(self):
        self.records = []

    def on_step_end(self, args, state, control, **kwargs):
        record = self.trainer.success_rate_callback.last_record
        if record is not None and (not self.records or self.records[-1] is not record):
            self.records.append(record)


def train(trainer_class, model, args, *, rewards=tiny.digit_reward, dataset=None, resume=None, **kwargs):
    """
    Train, and return the trainer with `.gradients` and `.records` of the run.

    A run that says nothing of looks has none: most tests are about one thing, and tests of looks ask for them.
    """
    gradients, records = Gradients(), Records()
    is_knapsack = issubclass(trainer_class, KnapsackGRPOTrainer)
    if is_knapsack and getattr(args, "look_generations", 0) is None and args.allocation_window is None:
        args.look_generations, args.allocation_window = 0, 1
    trainer = trainer_class(
        model=model,
        reward_funcs=rewards,
        args=args,
        train_dataset=tiny.prompts() if dataset is None else dataset,
        callbacks=[gradients, *([records] if is_knapsack else [])],
        **kwargs,
    )
    records.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)
    trainer.gradients, trainer.records = gradients.digests, records.records
    return trainer


def knapsack(model, path, resume=None, callbacks=(), **changes):
    """Train with budgets in the folder `path`, watched by `callbacks`, which get the trainer."""

    class Watched(KnapsackGRPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for callback in callbacks:
                callback.trainer = self
                self.add_callback(callback)

    return train(Watched, model, KnapsackGRPOConfig(**options(path, **changes)), resume=resume)


# Four steps share a generation batch.
WINDOW = dict(per_device_train_batch_size=8, gradient_accumulation_steps=1, steps_per_generation=4)


def own_logs(trainer):
    """What TRL logs, without what only a clock decides."""
    clock = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
    return [
        {k: v for k, v in entry.items() if not k.startswith("knapsack/") and k not in clock}
        for entry in trainer.state.log_history
    ]


def assert_same_run(ours, theirs):
    assert ours.state.global_step == theirs.state.global_step >= 10
    assert len(set(theirs.gradients)) == len(theirs.gradients)
    assert ours.gradients == theirs.gradients
    assert own_logs(ours) == own_logs(theirs)
    for (name, a), (_, b) in zip(ours.model.named_parameters(), theirs.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name

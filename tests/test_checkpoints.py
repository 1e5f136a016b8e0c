"""Checkpoints on bad days: cut, rotated away, made on SIGTERM, altered, or in a folder that another run holds."""

import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers.trainer
from runs import WINDOW, knapsack, options, train
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, SuccessRateTracker
from trl_knapsack.tracking import STATE_FILE


def files(folder):
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------- what is in the folder


def test_our_files_are_there_before_an_older_checkpoint_is_deleted(model, tmp_path, monkeypatch):
    """A run that is killed while transformers deletes has one whole checkpoint at least."""
    theirs, seen = transformers.trainer.rotate_checkpoints, []

    def watch(output_dir, **kwargs):
        newest = max(tmp_path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
        seen.append((newest.name, {STATE_FILE, "knapsack_window_0.safetensors"} <= files(newest)))
        theirs(output_dir=output_dir, **kwargs)

    monkeypatch.setattr(transformers.trainer, "rotate_checkpoints", watch)
    knapsack(model, tmp_path, save_strategy="steps", save_steps=2, save_total_limit=1)
    assert seen == [("checkpoint-2", True), ("checkpoint-4", True), ("checkpoint-6", True)]
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


def test_a_checkpoint_of_the_model_alone_has_success_rates_but_no_window(model, tmp_path):
    knapsack(model, tmp_path, save_strategy="steps", save_steps=2, max_steps=2, save_only_model=True)
    assert STATE_FILE in files(tmp_path / "checkpoint-2")
    assert not list((tmp_path / "checkpoint-2").glob("knapsack_window_*"))


class Sigterm(TrainerCallback):
    """What a cluster does before it takes the machine away; the flag is what transformers' timer would set."""

    def __init__(self, step, event):
        self.step, self.event = step, event

    def _ask(self, state, event):
        if event == self.event and state.global_step == self.step:
            for callback in self.trainer.callback_handler.callbacks:
                if type(callback).__name__ == "JITCheckpointCallback":
                    callback.jit_manager.is_checkpoint_requested = True

    def on_substep_end(
        self, args, state, control, **kwargs
    ):  # the checkpoint is then made before the optimizer's step
        self._ask(state, "within a step")

    def on_step_begin(self, args, state, control, **kwargs):
        self._ask(state, "as a step begins")

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._ask(state, "as a step ends")


@pytest.mark.parametrize(
    ("event", "step", "at"),
    [
        ("within a step", 3, 3),
        ("within a step", 2, 2),  # which has begun with a generation, that is done once more
        ("within a step", 0, 0),  # the first of the run
        ("within a step", 8, 8),  # the first of an epoch
        ("as a step ends", 3, 4),
        ("as a step ends", 4, 5),  # a step whose own batch the tracker has not heard of yet
        ("as a step begins", 3, 3),
        ("as a step begins", 8, 8),
    ],
)
def test_a_checkpoint_made_on_sigterm_is_whole(model, tmp_path, event, step, at):
    handler = signal.getsignal(signal.SIGTERM)
    changes = dict(num_train_epochs=9, max_steps=10, enable_jit_checkpoint=True, **WINDOW)
    changes["gradient_accumulation_steps"] = 2
    try:
        whole = knapsack(model, tmp_path / "whole", **changes)
        knapsack(model, tmp_path / "run", callbacks=[Sigterm(step, event)], **changes)
        checkpoint = tmp_path / "run" / f"checkpoint-{at}"
        assert {STATE_FILE, "knapsack_window_0.safetensors"} <= files(checkpoint)
        resumed = knapsack(model, tmp_path / "run", resume=str(checkpoint), **changes)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert resumed.state.global_step == 10
    assert resumed.gradients == whole.gradients[at:]
    for name, values in whole.success_tracker.state_dict().items():
        np.testing.assert_array_equal(values, resumed.success_tracker.state_dict()[name])


def test_two_checkpoints_made_on_sigterm_in_one_step(model, tmp_path):
    """The second run is stopped in the step with which it begins."""
    handler = signal.getsignal(signal.SIGTERM)
    changes = dict(num_train_epochs=9, max_steps=10, enable_jit_checkpoint=True, **WINDOW)
    changes["gradient_accumulation_steps"] = 2
    try:
        whole = knapsack(model, tmp_path / "whole", **changes)
        for step in (2, 8):
            for resume in (None if step == 2 else True, True):
                knapsack(model, tmp_path / "run", callbacks=[Sigterm(step, "within a step")], resume=resume, **changes)
        resumed = knapsack(model, tmp_path / "run", resume=True, **changes)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert resumed.gradients == whole.gradients[8:]


# ------------------------------------------------------------------------------------------------ torn checkpoints


@pytest.fixture
def two_checkpoints(model, tmp_path):
    knapsack(model, tmp_path, save_strategy="steps", save_steps=2, max_steps=4)
    return tmp_path


def tear(checkpoint, how):
    state = checkpoint / "trainer_state.json"
    if how == "no trainer state":
        state.unlink()
    elif how == "half a trainer state":
        state.write_text(state.read_text()[:100])
    else:
        (checkpoint / "checkpoint-is-incomplete.txt").write_text("in progress")


@pytest.mark.parametrize("how", ["no trainer state", "half a trainer state", "sentinel"])
def test_a_torn_checkpoint_is_passed_over(model, two_checkpoints, how, caplog):
    tear(two_checkpoints / "checkpoint-4", how)
    resumed = knapsack(model, two_checkpoints, resume=True, max_steps=6)
    assert "checkpoint-4 was not written to its end" in caplog.text
    assert f"the run goes on from {two_checkpoints / 'checkpoint-2'}" in caplog.text
    assert resumed.state.global_step == 6
    assert len(resumed.gradients) == 4  # steps 3 to 6

    with pytest.raises(ValueError, match=r"checkpoint-4 was not written to its end .*; resume from .*checkpoint-2"):
        knapsack(model, two_checkpoints, resume=str(two_checkpoints / "checkpoint-4"))


def test_torn_checkpoints_alone_are_no_beginning(model, two_checkpoints):
    for number in (2, 4):
        tear(two_checkpoints / f"checkpoint-{number}", "no trainer state")
    with pytest.raises(ValueError, match=r"checkpoint-4 was not .* no other checkpoint beside it; begin anew"):
        knapsack(model, two_checkpoints, resume=True)


def test_the_newest_checkpoint_is_used_if_it_is_whole(model, two_checkpoints, caplog):
    resumed = knapsack(model, two_checkpoints, resume=True, max_steps=6)
    assert len(resumed.gradients) == 2
    assert "was not written to its end" not in caplog.text


def test_a_checkpoint_that_is_written_anew_is_torn_until_its_end(model, two_checkpoints, monkeypatch):
    """A run begun anew in an old folder, and killed while it saves, must not leave a mixture that looks whole."""

    def full(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(transformers.trainer.Trainer, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        knapsack(model, two_checkpoints, save_strategy="steps", save_steps=2, max_steps=4, seed=7)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"checkpoint-2 was not written to its end \(it has no trainer_state.json\)"):
        knapsack(model, two_checkpoints, resume=str(two_checkpoints / "checkpoint-2"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_lost_a_file_says_so(model, two_checkpoints, name, caplog):
    """transformers begins with a new one, without a word."""
    (two_checkpoints / "checkpoint-4" / name).unlink()
    resumed = knapsack(model, two_checkpoints, resume=True, max_steps=6)
    assert resumed.state.global_step == 6
    assert f"checkpoint-4 has no {name}, so the run does not go on exactly as it would have" in caplog.text


def test_prompts_that_waited_and_are_lost_are_missed(model, tmp_path, caplog):
    changes = dict(save_strategy="steps", save_steps=2, look_generations=2, allocation_window=16)
    knapsack(model, tmp_path, max_steps=2, **changes)
    knapsack(model, tmp_path, resume=True, max_steps=3, **changes)
    assert "so the run does not go on exactly" not in caplog.text
    (tmp_path / "checkpoint-2" / "knapsack_waiting.safetensors").unlink()
    knapsack(model, tmp_path, resume=str(tmp_path / "checkpoint-2"), max_steps=3, **changes)
    assert "checkpoint-2 has no knapsack_waiting.safetensors, so the run does not go on exactly" in caplog.text


def test_a_checkpoint_with_all_its_files_says_nothing(model, two_checkpoints, caplog):
    knapsack(model, two_checkpoints, resume=True, max_steps=6)
    assert "so the run does not go on exactly as it would have" not in caplog.text


def test_a_checkpoint_of_the_model_alone_has_lost_nothing(model, tmp_path, caplog):
    knapsack(model, tmp_path, save_strategy="steps", save_steps=2, max_steps=2, save_only_model=True)
    knapsack(model, tmp_path, resume=True, max_steps=4)
    assert "checkpoint-2 has no" not in caplog.text
    assert "it has no knapsack_window_0.safetensors, as one with save_only_model" in caplog.text


@pytest.mark.parametrize("config_class", [KnapsackGRPOConfig, GRPOConfig])
def test_a_run_that_had_ended_does_one_more_step_when_resumed(model, tmp_path, config_class):
    """docs/launch.md says so; transformers looks at max_steps after a step."""
    trainer_class = KnapsackGRPOTrainer if config_class is KnapsackGRPOConfig else GRPOTrainer
    args = config_class(**options(tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
    for steps in (2, 3):
        assert train(trainer_class, model, args, resume=steps == 3).state.global_step == steps


# --------------------------------------------------------------------------------------------------------- windows


@pytest.fixture(scope="module")
def window_run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("window")
    knapsack(model, folder, **WINDOW, save_strategy="steps", save_steps=2, max_steps=2)
    return folder / "checkpoint-2" / "knapsack_window_0.safetensors"


def load(path, about=None):
    from trl_knapsack.training.checkpoints import load_window

    settings = dict(num_processes=1, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    return load_window(path, about or settings | dict(steps_per_generation=4, num_iterations=1), torch.device("cpu"))


def test_an_altered_window_is_refused(window_run, tmp_path):
    content, rng = window_run.read_bytes(), np.random.default_rng(0)
    step, batches = load(window_run)
    assert step == 2
    assert len(batches) == 4
    for bit in rng.integers(0, 8 * len(content), 300).tolist():
        altered = bytearray(content)
        altered[bit // 8] ^= 1 << bit % 8
        path = tmp_path / "window.safetensors"
        path.write_bytes(altered)
        try:
            loaded_step, loaded = load(path)
        except ValueError as error:
            assert "window.safetensors is not a readable generation window" in str(error)
            continue
        # Only what means nothing may differ, white space in the header for example.
        assert loaded_step == step
        for a, b in zip(batches, loaded, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def test_a_cut_window_is_refused(window_run, tmp_path):
    content = window_run.read_bytes()
    for length in range(0, len(content), len(content) // 50):
        path = tmp_path / "window.safetensors"
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a readable generation window"):
            load(path)


def test_a_window_does_not_change_with_its_file(window_run, tmp_path):
    path = tmp_path / "window.safetensors"
    path.write_bytes(window_run.read_bytes())
    _, batches = load(path)
    tensors = [value for batch in batches for value in batch.values() if isinstance(value, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    with open(path, "r+b") as file:
        file.write(b"\xff" * os.path.getsize(path))
    assert len(tensors) >= 4
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True))


def test_a_window_that_is_not_used_says_why(model, tmp_path, caplog):
    changes = dict(**WINDOW, save_strategy="steps", save_steps=2)
    knapsack(model, tmp_path, max_steps=2, **changes)
    knapsack(model, tmp_path, resume=str(tmp_path / "checkpoint-2"), **{**changes, "steps_per_generation": 2})
    assert "other settings: steps_per_generation 4 then, 2 now" in caplog.text
    (tmp_path / "checkpoint-2" / "knapsack_window_0.safetensors").unlink()
    knapsack(model, tmp_path, resume=str(tmp_path / "checkpoint-2"), **changes)
    assert "it has no knapsack_window_0.safetensors" in caplog.text


# --------------------------------------------------------------------------------------------------- full disk, locks


def test_a_disk_that_is_full_at_the_end_does_not_lose_the_run(model, tmp_path, monkeypatch, caplog):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SuccessRateTracker, "save", full)
    trainer = knapsack(model, tmp_path, max_steps=2)
    assert trainer.state.global_step == 2
    assert "The success rates are not saved" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_folder_is_one_runs(model, tmp_path):
    refused = []

    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                try:
                    knapsack(model, tmp_path, max_steps=1)
                except ValueError as error:
                    refused.append(str(error))

    first = knapsack(model, tmp_path, callbacks=[Second()], max_steps=2)
    assert first.state.global_step == 2
    (sentence,) = refused
    assert f"{tmp_path} is in use by another run, process {os.getpid()} on " in sentence
    assert len((tmp_path / "knapsack_records.jsonl").read_text().splitlines()) == 2
    assert knapsack(model, tmp_path, max_steps=1).state.global_step == 1  # free again


def test_a_run_that_failed_does_not_keep_its_folder(model, tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        knapsack(model, tmp_path, callbacks=[Fail()])
    assert knapsack(model, tmp_path, max_steps=1).state.global_step == 1


def test_a_run_that_was_killed_does_not_keep_its_folder(model, tmp_path):
    script = textwrap.dedent(f"""
        import os, signal
        from runs import knapsack
        from transformers import TrainerCallback
        class Kill(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                os.kill(os.getpid(), signal.SIGKILL)
        knapsack({model!r}, {str(tmp_path)!r}, callbacks=[Kill()])
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=os.path.dirname(__file__), capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "knapsack_run.json").exists()
    assert knapsack(model, tmp_path, max_steps=1).state.global_step == 1


# ------------------------------------------------------------------------------------------- a trainer half built


def test_what_is_overridden_works_without_init(monkeypatch):
    """TRL's own tests build trainers so, and so do some subclasses."""
    trainer = object.__new__(KnapsackGRPOTrainer)
    monkeypatch.setattr(GRPOTrainer, "_generate", lambda self, prompts: ("generated", prompts))
    assert trainer._generate(["a"]) == ("generated", ["a"])

    trainer.args, trainer.hp_search_backend = SimpleNamespace(output_dir="out"), None
    assert trainer._run_folder() == "out"  # transformers sets the trial when training begins

    rewards = torch.zeros(2, 1)
    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", lambda self, *args: rewards)
    assert trainer._calculate_rewards([], [], [], []) is rewards

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", lambda self, inputs: {"inputs": inputs})
    trainer.model = torch.nn.Linear(1, 1)
    assert trainer._generate_and_score_completions([1]) == {"inputs": [1]}

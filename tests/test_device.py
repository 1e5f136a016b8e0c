"""
The trainer on the device of this machine: a GPU where there is one, else the CPU. `make gpu` runs these there.

Other tests are of what is the same on any device, and run on the CPU.
"""

import os
import shutil

import pytest
import tiny
import torch
from runs import assert_same_run, options, train
from trl import GRPOConfig, GRPOTrainer

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer


@pytest.fixture
def on_device(monkeypatch):
    """Options for the device; on a GPU, those without which two runs differ anyway."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        for name in ("CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING"):  # full determinism sets them
            monkeypatch.setenv(name, os.environ.get(name, ""))
    yield {"use_cpu": not on_gpu, "full_determinism": on_gpu}
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_uniform_is_grpo_bit_for_bit(model, tmp_path, on_device, bf16):
    arguments = options(tmp_path, max_steps=10, bf16=bf16, **on_device)
    theirs = train(GRPOTrainer, model, GRPOConfig(**arguments))
    ours = train(KnapsackGRPOTrainer, model, KnapsackGRPOConfig(**arguments, allocation="uniform"))
    assert ours.model.device.type == ("cpu" if on_device["use_cpu"] else "cuda")
    assert_same_run(ours, theirs)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_run_with_looks_is_resumed_bit_for_bit(model, tmp_path, on_device, bf16):
    def run(folder, steps, resume=None):
        looks = {"look_generations": 2, "allocation_window": 16}
        args = KnapsackGRPOConfig(
            **options(
                tmp_path / folder,
                max_steps=steps,
                save_strategy="steps",
                save_steps=6,
                lr_scheduler_type="constant",
                bf16=bf16,
                **on_device,
            ),
            **looks,
        )
        return train(KnapsackGRPOTrainer, model, args, resume=resume)

    whole = run("whole", 12)
    run("parts", 6)
    second = run("parts", 12, resume=str(tmp_path / "parts" / "checkpoint-6"))
    assert second.gradients == whole.gradients[6:]
    rows = 32
    for record in whole.records:
        assert record.allocation.counts.sum() == rows
    assert len({tuple(record.allocation.counts) for record in whole.records}) > 1
    for (name, a), (_, b) in zip(second.model.named_parameters(), whole.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.cuda.is_available() and shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU"
)
def test_compiled_it_trains_as_it_does_plain(model, tmp_path, on_device):
    """Compiled kernels round differently, so rewards that do not depend on a token here and there are compared."""

    def reward(prompts, **kwargs):
        return [float(row % 3 == 0) for row in range(len(prompts))]

    runs = [
        train(
            KnapsackGRPOTrainer,
            model,
            KnapsackGRPOConfig(**options(tmp_path, max_steps=4, torch_compile=compiled, **on_device)),
            rewards=reward,
            dataset=tiny.prompts(8),
        )
        for compiled in (False, True)
    ]
    counts = [[record.allocation.counts.tolist() for record in run.records] for run in runs]
    assert counts[0] == counts[1] and len(counts[0]) == 4
    assert all(torch.isfinite(parameter).all() for parameter in runs[1].model.parameters())

"""Two real processes. `accelerate launch --cpu --num_processes 2` would silently run one: the world size is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import oracle
import pytest


WORKER = Path(__file__).parent / "distributed_worker.py"


def launch(model, out, trainer, processes=2, **changes):
    """What each rank of the run saw."""
    out.mkdir()
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(WORKER), model, str(out), trainer, json.dumps(changes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(processes)]
    assert [rank["world_size"] for rank in ranks] == [processes] * processes
    return ranks


def test_two_ranks_hold_one_plan_and_generate_exactly_their_rows(model, tmp_path):
    # 4 prompts x 4 generations over 2 ranks of 8 rows: a group of more than 8 straddles the ranks.
    ranks = launch(
        model,
        tmp_path / "out",
        "knapsack",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_generations=4,
        num_train_epochs=4,
        max_steps=28,
    )
    first, second = ranks
    assert first["records"] == second["records"]
    assert first["tracker"] == second["tracker"]
    assert first["weights"] == second["weights"]
    assert first["advantages"] == second["advantages"]
    assert max(max(record["counts"]) for record in first["records"]) > 8

    prompt_of = {}  # key -> prompt
    for step, record in enumerate(first["records"]):
        rows = first["generated"][step] + second["generated"][step]  # rank order is row order
        assert len(first["generated"][step]) == len(second["generated"][step]) == 8
        counts = record["counts"]
        assert sum(counts) == 16
        for key, group in zip(record["keys"], oracle.split([row[0] for row in rows], counts), strict=True):
            assert set(group) == {prompt_of.setdefault(key, group[0])}
        rewards = [[row[3]] for row in rows]
        expected = oracle.advantages(rewards, counts, [1.0], "group", "sum_then_normalize")
        assert first["advantages"][step] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert len(set(prompt_of.values())) == len(prompt_of)


def test_equal_groups_on_two_ranks_are_bit_for_bit_grpo(model, tmp_path):
    # 6 rows a rank: the middle group of 4 straddles the ranks.
    changes = dict(per_device_train_batch_size=3, gradient_accumulation_steps=2, num_generations=4, max_steps=10)
    theirs = launch(model, tmp_path / "grpo", "grpo", **changes)
    ours = launch(model, tmp_path / "knapsack", "knapsack", **changes, min_generations=4, max_generations=4)
    for us, them in zip(ours, theirs, strict=True):
        assert us["generated"] == them["generated"]
        assert us["advantages"] == them["advantages"]
        assert us["weights"] == them["weights"]
        for ours_logged, theirs_logged in zip(us["logs"], them["logs"], strict=True):
            same = {k for k in theirs_logged if "time" not in k and "per_second" not in k}
            assert {k: ours_logged[k] for k in same} == {k: theirs_logged[k] for k in same}

"""Two real processes. `accelerate launch --cpu --num_processes 2` would silently run one: the world size is asserted."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import oracle
import pytest
import tiny


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


def by_prompt(rows):
    """Advantages of rows (prompt, completion, ids, reward), each normalised among the rows of its prompt."""
    result = [None] * len(rows)
    for prompt in {row[0] for row in rows}:
        places = [i for i, row in enumerate(rows) if row[0] == prompt]
        group = oracle.advantages([[rows[i][3]] for i in places], [len(places)], [1.0], "group", "sum_then_normalize")
        for i, advantage in zip(places, group, strict=True):
            result[i] = advantage
    return result


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
        prompt_id_column="name",
    )
    first, second = ranks
    assert first["records"] == second["records"]
    assert first["tracker"] == second["tracker"]
    assert first["weights"] == second["weights"]
    assert first["advantages"] == second["advantages"]
    assert max(max(record["counts"]) for record in first["records"]) > 8

    name_to_prompt = {row["name"]: row["prompt"] for row in tiny.prompts(kinds="eeem")}
    beliefs = oracle.Beliefs()
    for step, record in enumerate(first["records"]):
        rows = first["generated"][step] + second["generated"][step]  # rank order is row order
        assert len(first["generated"][step]) == len(second["generated"][step]) == 8
        counts = record["counts"]
        assert sum(counts) == 16
        prompts = [name_to_prompt[key] for key in record["keys"]]
        assert Counter(row[0] for row in rows) == Counter(dict(zip(prompts, counts, strict=True)))
        assert first["advantages"][step] == pytest.approx(by_prompt(rows), rel=1e-3, abs=1e-3)
        assert beliefs.is_best(prompts, counts)
        for prompt in prompts:
            beliefs.visit(prompt, [row[3] for row in rows if row[0] == prompt])


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

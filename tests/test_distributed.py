"""Real processes. `accelerate launch --cpu --num_processes 2` would silently run one: the world size is asserted."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import oracle
import pytest
import tiny

from trl_knapsack.tracking import STATE_FILE


WORKER = Path(__file__).parent / "distributed_worker.py"


def launch(model, out, runs, processes=2, timeout=300):
    """What each rank saw of each run: `{run: [rank, ...]}`."""
    out.mkdir(parents=True)
    (out / "runs.json").write_text(json.dumps(runs))
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(WORKER.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(WORKER), model, str(out), str(out / "runs.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = {
        name: [json.loads((out / f"{name}.rank{rank}.json").read_text()) for rank in range(processes)] for name in runs
    }
    for ranks in seen.values():
        assert {rank.get("world_size", processes) for rank in ranks} == {processes}
    return seen


def by_prompt(rows):
    """Advantages of rows (prompt, completion, ids, reward), each normalised among the rows of its prompt."""
    result = [None] * len(rows)
    for prompt in {row[0] for row in rows}:
        places = [i for i, row in enumerate(rows) if row[0] == prompt]
        group = oracle.advantages([[rows[i][3]] for i in places], [len(places)], [1.0], "group", "sum_then_normalize")
        for i, advantage in zip(places, group, strict=True):
            result[i] = advantage
    return result


# Rows of a rank (per_device_train_batch_size x steps_per_generation) and num_generations, by processes. They are no
# multiples of each other where that can be, so that also equal groups straddle ranks.
#     processes:    1           2           3           4
EVERY_STEP = {1: (8, 4), 2: (6, 4), 3: (8, 6), 4: (6, 8)}
WINDOWS = {1: (8, 4), 2: (12, 8), 3: (8, 6), 4: (8, 16)}
RESUMED = {  # stop, settings
    "second_epoch": (9, dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=12)),
    "looks": (
        9,
        dict(
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            look_generations=2,
            allocation_window=10,
            token_budget="uniform",
            max_steps=12,
        ),
    ),
    "columns": (
        9,
        dict(
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            look_generations=2,
            difficulty_columns=["about.solved"],
            max_steps=12,
        ),
    ),
    "within_window": (
        19,
        dict(per_device_train_batch_size=4, gradient_accumulation_steps=1, steps_per_generation=2, max_steps=24),
    ),
}


def settings(processes):
    """By name, one run whose windows are one step, and one whose rollouts are used twice over two optimizer steps."""
    rows, generations = EVERY_STEP[processes]
    every_step = dict(
        per_device_train_batch_size=rows // 2, gradient_accumulation_steps=2, num_generations=generations
    )
    rows, generations = WINDOWS[processes]
    windows = dict(
        per_device_train_batch_size=rows // 4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=2,
        num_generations=generations,
    )
    return {"every_step": every_step, "windows": windows}


def runs_of(processes):
    runs = {}
    for name, changes in settings(processes).items():
        steps = 24 if name == "every_step" else 48
        budgets = changes | dict(prompt_id_column="name", max_steps=steps)
        # Few prompts, so that they are soon known; and for parity only prompts that always give a gradient.
        runs[f"{name}.budgets"] = {"trainer": "knapsack", "changes": budgets, "rows": list(range(12))}
        changes = changes | {"max_steps": 10}
        runs[f"{name}.grpo"] = {"trainer": "grpo", "changes": changes, "kinds": "m"}
        changes = changes | {"allocation": "uniform"}
        runs[f"{name}.uniform"] = {"trainer": "knapsack", "changes": changes, "kinds": "m"}
    looks = settings(processes)["every_step"] | dict(look_generations=2, allocation_window=6)
    looks |= dict(prompt_id_column="name", max_steps=8)  # within the first epoch
    runs["looks.budgets"] = {"trainer": "knapsack", "changes": looks}
    return runs


@pytest.fixture(scope="module")
def runs(request, model, tmp_path_factory):
    """One launch for all runs of a number of processes: that number, its folder, and what each rank saw of each run."""
    processes, out = request.param, tmp_path_factory.mktemp("ranks") / "out"
    runs = runs_of(processes)
    if processes == 2:
        for name, (stop, changes) in RESUMED.items():
            whole = changes | dict(num_generations=4, save_strategy="steps", save_steps=stop)
            runs[f"{name}.whole"] = {"trainer": "knapsack", "changes": whole}
            checkpoint = str(out / f"{name}.whole" / f"checkpoint-{stop}")
            runs[f"{name}.resumed"] = {"trainer": "knapsack", "changes": whole, "resume": checkpoint}
        model_alone = dict(num_generations=4, per_device_train_batch_size=8, max_steps=2)
        model_alone |= dict(save_strategy="steps", save_steps=1, save_only_model=True, save_total_limit=1)
        runs["model_alone"] = {"trainer": "knapsack", "changes": model_alone}
    return processes, out, launch(model, out, runs, processes)


ALL_PROCESSES = pytest.mark.parametrize(
    "runs",
    [2, *(pytest.param(processes, marks=pytest.mark.slow) for processes in (1, 3, 4))],
    indirect=True,
    ids="{} processes".format,
)
TWO_PROCESSES = pytest.mark.parametrize("runs", [2], indirect=True, ids="{} processes".format)


@ALL_PROCESSES
@pytest.mark.parametrize("name", ["every_step", "windows"])
def test_ranks_hold_one_plan_and_generate_exactly_their_rows(runs, name):
    processes, _, seen = runs
    rows, generations = (EVERY_STEP if name == "every_step" else WINDOWS)[processes]
    ranks = seen[f"{name}.budgets"]
    first = ranks[0]
    for other in ranks[1:]:
        for what in ("records", "tracker", "weights", "advantages", "gradients"):
            assert first[what] == other[what], what
    # A group larger than a rank's rows straddles ranks.
    assert processes == 1 or max(max(record["counts"]) for record in first["records"]) > rows
    assert len({tuple(record["counts"]) for record in first["records"]}) > 2

    name_to_prompt = {row["name"]: row["prompt"] for row in tiny.prompts(kinds="eeem")}
    assert len(first["records"]) == len(first["generated"]) >= 12
    for step, record in enumerate(first["records"]):
        generated = [rank["generated"][step] for rank in ranks]
        assert [len(share) for share in generated] == [rows] * processes
        counts = record["counts"]
        assert sum(counts) == rows * processes == len(counts) * generations
        prompts = [name_to_prompt[key] for key in record["keys"]]
        all_rows = [row for share in generated for row in share]  # rank order is row order
        assert Counter(row[0] for row in all_rows) == Counter(dict(zip(prompts, counts, strict=True)))
        assert first["advantages"][step] == pytest.approx(by_prompt(all_rows), rel=1e-3, abs=1e-3)


@ALL_PROCESSES
def test_ranks_compare_rests_with_their_looks(runs):
    processes, _, seen = runs
    first, *others = seen["looks.budgets"]
    for other in others:
        for what in ("records", "tracker", "weights", "advantages", "gradients"):
            assert first[what] == other[what], what
    name_to_prompt = {row["name"]: row["prompt"] for row in tiny.prompts(kinds="eeem")}
    visits, waited = oracle.Visits(), 0
    for step, record in enumerate(first["records"]):
        rows = [row for rank in seen["looks.budgets"] for row in rank["generated"][step]]
        prompts = [name_to_prompt[key] for key in record["keys"]]
        assert Counter(row[0] for row in rows) == Counter(
            {prompt: n for prompt, n in zip(prompts, record["counts"], strict=True) if n}
        )
        order = sorted(range(len(rows)), key=lambda i: prompts.index(rows[i][0]))
        rewards = [[rows[i][3]] for i in order]
        earlier = visits.batch(record["keys"], record["counts"], record["looks"], record["before"], rewards)
        options = ([1.0], "group", "sum_then_normalize")
        expected = oracle.advantages_after(rewards, record["counts"], earlier, *options)
        assert [first["advantages"][step][i] for i in order] == pytest.approx(expected, rel=1e-3, abs=1e-3)
        waited += sum(before > 0 for before in record["before"])
    assert waited > 3 and len({tuple(record["counts"]) for record in first["records"]}) > 2


@ALL_PROCESSES
@pytest.mark.parametrize("name", ["every_step", "windows"])
def test_equal_groups_are_bit_for_bit_grpo(runs, name):
    _, _, seen = runs
    for us, them in zip(seen[f"{name}.uniform"], seen[f"{name}.grpo"], strict=True):
        assert len(set(them["gradients"])) > 5  # some batches have no reward
        for what in ("generated", "advantages", "gradients", "weights"):
            assert us[what] == them[what], what
        for ours, theirs in zip(us["logs"], them["logs"], strict=True):
            same = {k for k in theirs if "time" not in k and "per_second" not in k}
            assert {k: ours[k] for k in same} == {k: theirs[k] for k in same}


@TWO_PROCESSES
@pytest.mark.parametrize("name", RESUMED)
def test_two_ranks_go_on_as_if_they_had_not_stopped(runs, name):
    _, _, seen = runs
    stop, _ = RESUMED[name]
    for whole, resumed in zip(seen[f"{name}.whole"], seen[f"{name}.resumed"], strict=True):
        assert resumed["gradients"] == whole["gradients"][stop:]
        assert len(set(resumed["gradients"])) == len(resumed["gradients"]) >= 3
        for what in ("generated", "records", "advantages"):
            assert resumed[what] == whole[what][-len(resumed[what]) :], what
        assert len(resumed["generated"]) >= 2
        for what in ("weights", "tracker"):
            assert resumed[what] == whole[what], what
    assert len({tuple(record["counts"]) for record in seen[f"{name}.resumed"][0]["records"]}) > 1


@ALL_PROCESSES
@pytest.mark.parametrize("name", ["every_step", "windows"])
def test_one_history_of_all_ranks(runs, name):
    _, out, seen = runs
    written = [
        json.loads(line) for line in (out / f"{name}.budgets" / "knapsack_records.jsonl").read_text().splitlines()
    ]
    for batch, record in zip(written, seen[f"{name}.budgets"][0]["records"], strict=True):
        assert (batch["keys"], batch["counts"]) == (record["keys"], record["counts"])


@TWO_PROCESSES
def test_checkpoints_of_the_model_alone(runs):
    """Rank 1 may be the first to reach a checkpoint, before rank 0 has made its folder."""
    _, out, _ = runs
    (checkpoint,) = (out / "model_alone").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-2"
    assert STATE_FILE in {path.name for path in checkpoint.iterdir()}
    assert not list(checkpoint.glob("knapsack_window_*"))


# ------------------------------------------------------------------------------------------- a rank that goes astray


@TWO_PROCESSES
def test_a_rank_that_would_diverge_stops_all(runs, model, tmp_path):
    """What differs on rank 1 is told by every rank, in one sentence; none waits for another until it is killed."""
    _, out, _ = runs
    stop, changes = RESUMED["within_window"]
    changes = changes | {"num_generations": 4}
    good = out / "within_window.whole" / f"checkpoint-{stop}"

    def checkpoint(name):  # rank 1's own, as on a node without a shared folder
        return Path(shutil.copytree(good, tmp_path / name))

    other_rates = checkpoint("other_rates")
    shutil.copy(out / "within_window.whole" / STATE_FILE, other_rates)
    no_rates = checkpoint("no_rates")
    (no_rates / STATE_FILE).unlink()
    no_window = checkpoint("no_window")
    (no_window / "knapsack_window_1.safetensors").unlink()

    def astray(resume=False, fails=True, **on_rank_1):
        run = {"trainer": "knapsack", "changes": changes, "on_rank_1": on_rank_1, "fails": fails}
        return run | ({"resume": str(good)} if resume else {})

    seen = launch(
        model,
        tmp_path / "out",
        {
            "options": astray(more={"max_generations": 64}),
            "fewer_rows": astray(rows=list(range(30))),
            "other_rows": astray(rows=list(range(31, -1, -1))),
            "no_state": astray(more={"success_state_path": str(tmp_path / "nothing.safetensors")}),
            "other_rates": astray(resume=True) | {"on_rank_1": {"resume": str(other_rates)}},
            "no_rates": astray(resume=True) | {"on_rank_1": {"resume": str(no_rates)}},
            "no_window": astray(resume=True, fails=False) | {"on_rank_1": {"resume": str(no_window)}},
            # The last, as it stays so
            "no_random_state": astray(rng_state_fails=True)
            | {"changes": changes | dict(save_strategy="steps", save_steps=stop)},
        },
    )
    rule = "and must be the same on all ranks; start every rank with the same options, dataset and checkpoint."
    for name, sentence in {
        "options": f"RuntimeError: max_generations is 64 on rank 1 but 128 on rank 0, {rule}",
        "fewer_rows": f"RuntimeError: The number of prompts is 30 on rank 1 but 32 on rank 0, {rule}",
        "other_rows": "RuntimeError: The digest of the first, middle and last prompt is [",
        "other_rates": "RuntimeError: The digest of the success rates is '",
    }.items():
        assert seen[name][0]["error"] == seen[name][1]["error"]
        assert seen[name][0]["error"].startswith(sentence)
        assert seen[name][0]["error"].endswith(rule)
    for name in ("no_state", "no_rates"):
        first, second = seen[name]
        assert "so there are no success rates to continue with" in second["error"]
        assert first["error"] == f"RuntimeError: Rank 1 can't go on, so no rank does. {second['error']}"

    # Without rank 1's window both generate it again, and end with the same.
    first, second = seen["no_window"]
    assert first["tracker"] == second["tracker"]
    assert first["weights"] == second["weights"]
    assert len(first["generated"]) == len(second["generated"]) == 3

    # `trainer_state.json` says that a checkpoint is whole, so it waits for what every rank has to write.
    first, second = seen["no_random_state"]
    assert second["error"] == "OSError: No space left on device"
    assert first["error"] == f"RuntimeError: Rank 1 can't go on, so no rank does. {second['error']}"
    checkpoint = tmp_path / "out" / "no_random_state" / f"checkpoint-{stop}"
    assert (checkpoint / "rng_state_0.pth").exists()
    assert not (checkpoint / "trainer_state.json").exists()

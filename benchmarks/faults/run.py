"""
What a run survives: kills, cut and damaged files, ranks that fail, bad rewards, full disks. Runs of a tiny model on the CPU
are disturbed on purpose, and what they end with is compared, bit for bit, with what the undisturbed run ends with. TRL's own
trainer stands the same tests beside.

    python benchmarks/faults/run.py --profile short      # two minutes
    python benchmarks/faults/run.py --profile long       # at least 50 kills; the table of docs/reliability.md

Writes one JSON file with every test, and prints a table. The exit status is 1 if a test of this package did not end well.
"""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "1"}

import argparse  # noqa: E402
import faulthandler  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import random  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from datetime import date  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402


HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / "tests"), str(ROOT)]

from tqdm import tqdm  # noqa: E402


tqdm.monitor_interval = 0  # its thread would not survive a fork
tqdm.set_lock(
    threading.RLock()
)  # its own is shared with forks, and one that is killed while it holds it keeps it for ever

import transformers  # noqa: E402
import trl  # noqa: E402
from processes import Lab  # noqa: E402
from scenarios import (  # noqa: E402
    ERROR,
    Outcome,
    References,
    astray_ranks,
    bad_rewards,
    cut_checkpoints,
    damaged_files,
    full_disks,
    hostile_files,
    kill_and_resume,
    killed_scenario,
    long_runs,
    lost_files,
    many_batches,
    rank_killed_before_its_random_state,
    two_runs,
)
from table import heading, table  # noqa: E402
from training import BAD_REWARDS, LIMITS, OWN_SETTINGS, SETTINGS  # noqa: E402


Test = Callable[[], Iterator[Outcome]]
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
REWARDS = [kind for kind in BAD_REWARDS if kind not in ("hangs", "dies")]


def one(outcome: Callable[[], Outcome]) -> Iterator[Outcome]:
    yield outcome()


def tests_of(profile: str, lab: Lab, references: References, rng: random.Random) -> list[tuple[str, Test]]:
    """The tests of a profile, each with the name of its scenario."""
    is_long = profile == "long"
    tests: list[tuple[str, Test]] = []

    def chain(trainer, processes, settings, limits, how, kills, jit=False):
        mine = random.Random(rng.random())  # so that no test depends on the ones before
        call = partial(kill_and_resume, lab, references, mine, trainer, processes, settings, limits, how, kills, jit)
        tests.append((killed_scenario(processes, jit), partial(one, call)))

    trainers = ("knapsack", "grpo") if is_long else ("knapsack",)
    for trainer in trainers:
        if is_long:
            all_settings = SETTINGS | (OWN_SETTINGS if trainer == "knapsack" else {})
            for settings in all_settings:
                for limits in LIMITS:
                    for how in SIGNALS:
                        chain(trainer, 1, settings, limits, how, 3)
                    chain(trainer, 1, settings, limits, "SIGTERM", 2, jit=True)
            for settings in all_settings:
                for limits in LIMITS:
                    for how in SIGNALS:
                        chain(trainer, 2, settings, limits, how, 2)
        else:
            for how in SIGNALS:
                chain(trainer, 1, "windows", "one kept", how, 2)
            chain(trainer, 1, "windows", "one kept", "SIGTERM", 2, jit=True)
            chain(trainer, 1, "looks", "one kept", "SIGKILL", 2)
            chain(trainer, 2, "windows", "one kept", "SIGKILL", 2)

        def add(scenario: str, test: Test) -> None:
            tests.append((scenario, test))

        seeded = random.Random(rng.random())
        add("cut checkpoint", partial(cut_checkpoints, lab, references, seeded, trainer, 1, None if is_long else 4))
        if is_long:
            add("cut checkpoint", partial(cut_checkpoints, lab, references, seeded, trainer, 2, 10))
            add("lost file", partial(lost_files, lab, references, seeded, trainer, None))
        add("cut checkpoint", partial(one, partial(rank_killed_before_its_random_state, lab, references, trainer)))
        add("rank astray", partial(astray_ranks, lab, trainer, ("raises", "dies", "hangs") if is_long else ("dies",)))
        kinds = REWARDS if is_long else ["NaN", "one infinity", "None", "one too few", "raises"]
        add("bad rewards", partial(bad_rewards, lab, references, trainer, kinds))
        add("full disk", partial(full_disks, lab, references, trainer))
        add("two runs in a folder", partial(one, partial(two_runs, lab, references, trainer)))
    add("damaged file", partial(damaged_files, lab, references, seeded, 3000 if is_long else 300))
    add("hostile file", partial(hostile_files, lab, seeded, *((3000, 1000) if is_long else (300, 60))))
    batches, steps = (10_000, 2000) if is_long else (4000, 400)
    add("long run", partial(one, partial(many_batches, lab, batches, rng.randrange(1000), is_long)))
    add("long run", partial(long_runs, lab, steps, is_long))
    return tests


def of_no_machine(text: str) -> str:
    """Without the names of this machine and its folders: the results are published."""
    for name, instead in ((str(ROOT), "."), (sys.prefix, "venv"), (socket.gethostname(), "host")):
        text = text.replace(name, instead)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=["short", "long"], default="short")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="how the name of a scenario begins, for example killed")
    parser.add_argument("--output", type=Path, help="the JSON file; by default in outputs/faults")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds that one start of a run may take")
    options = parser.parse_args()
    output = options.output or ROOT / "outputs" / "faults" / f"{options.profile}-{options.seed}.json"
    output.parent.mkdir(parents=True, exist_ok=True)

    begin, outcomes = time.monotonic(), []
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    about = {
        "command": f"python benchmarks/faults/run.py --profile {options.profile} --seed {options.seed}",
        "commit": commit.stdout.strip(),
        "date": date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "trl": trl.__version__,
            "transformers": transformers.__version__,
        },
    }
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        lab = Lab(Path(folder), options.limit)
        references = References(lab)
        tests = tests_of(options.profile, lab, references, random.Random(options.seed))
        tests = [test for test in tests if test[0].startswith(options.only)]
        bar = tqdm(tests, unit="test", disable=not sys.stderr.isatty())
        for scenario, test in bar:
            bar.set_description(scenario)
            faulthandler.dump_traceback_later(1800, exit=True)  # no test takes a third of it: the harness itself hangs
            try:
                for outcome in test():
                    outcomes.append(outcome)
                    if not outcome.is_well and outcome.trainer == "knapsack":
                        tqdm.write(f"{outcome.scenario}, {outcome.case}: {outcome.verdict}, {outcome.detail}")
            except Exception:  # the harness itself; the other tests are still worth their while
                outcomes.append(Outcome(scenario, "knapsack", "the harness", ERROR, traceback.format_exc()[-600:]))
                tqdm.write(traceback.format_exc())
            told = about | {"seconds": round(time.monotonic() - begin), "outcomes": [o.plain() for o in outcomes]}
            output.write_text(of_no_machine(json.dumps(told, indent=1)) + "\n")
    kills = sum(o.kills for o in outcomes if o.trainer == "knapsack")
    print(f"\n{heading(told)}")
    print(
        f"{lab.starts} processes, {kills} kills of KnapsackGRPOTrainer, {told['seconds']} s; every test in {output}\n"
    )
    print(table(told["outcomes"]))
    return int(any(not o.is_well for o in outcomes if o.trainer == "knapsack"))


if __name__ == "__main__":
    sys.exit(main())

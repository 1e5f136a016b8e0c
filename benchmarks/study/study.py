"""
Does it teach a model more for the same rollouts? The study behind docs/results.md.

    python benchmarks/study/study.py --profile quick    # ten minutes of two cores: the same code, nothing to conclude
    python benchmarks/study/study.py --profile full     # the published tables: about six hours of two cores
    python benchmarks/study/study.py --profile once     # a single epoch; then `two` and `four`: prompts of a batch
    python benchmarks/study/study.py --profile long     # four times the steps, twice the seeds, all contenders everywhere
    python benchmarks/study/report.py                   # tables and figures from what is there

Learning rates are chosen first, for each contender and regime, on tuning seeds and one task; then every contender runs
with its own on the report seeds. Each result is a line in `results/<profile>/<task>-<regime>.jsonl`; what is there
already is not run again, so a study that was stopped goes on where it was. Each worker keeps to one core, and uses the
GPU where there is one.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from contenders import CONTENDERS, can_run
from run import PROMPTS, Run, execute
from tasks import MAIN_TASKS, RARE, REGIMES, SINGLE_EPOCH, TASKS
from tqdm.auto import tqdm


HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TUNING_TASK = "arithmetic"
TUNED = tuple(name for name, contender in CONTENDERS.items() if contender.lr_of is None)
VARIANTS = (
    *("look-2", "look-4", "probe-4", "value-variance", "value-root", "value-mixed"),
    *("novelty", "uncertainty", "progress", "fewer-later", "more-later"),
)
ELSEWHERE = ("tokens", "token-price", "replay")  # in profiles of their own
ON_ALL_TASKS = ("uniform", "posterior", "look", "look-64", "warm", "paper", "oracle", *VARIANTS)


@dataclass(frozen=True)
class Profile:
    """
    How much is run; everything else is the same.

    Args:
        steps (`int`): How long, in steps of `run.ROLLOUTS_PER_STEP` rollouts.
        learning_rates (`tuple[float, ...]`): What to choose from.
        tuning_seeds, report_seeds (`tuple[int, ...]`): Seeds to choose learning rates on, and seeds to report.
        tuned (`tuple[str, ...]`): Contenders with a learning rate of their own.
        on_one_task, on_all_tasks (`tuple[str, ...]`): Contenders that run on `TUNING_TASK`, and on the others.
        tasks, regimes (`tuple[str, ...]`): Where.
        prompts (`int`): Prompts of a generation batch.
        claimed (`tuple[str, ...]`), further_seeds (`tuple[int, ...]`):
            Contenders that the page claims something of, and the seeds that they run more in the first regime.
        variants (`tuple[str, ...]`): Contenders that run in the first regime only.
        rates_of (`tuple[str, str]`, *optional*): Profile and regime whose learning rates are taken, instead of tuning.
    """

    steps: int
    learning_rates: tuple[float, ...]
    tuning_seeds: tuple[int, ...]
    report_seeds: tuple[int, ...]
    tuned: tuple[str, ...] = TUNED
    on_one_task: tuple[str, ...] = tuple(name for name in CONTENDERS if name not in ELSEWHERE)
    on_all_tasks: tuple[str, ...] = ON_ALL_TASKS
    tasks: tuple[str, ...] = MAIN_TASKS
    regimes: tuple[str, ...] = REGIMES
    prompts: int = PROMPTS
    claimed: tuple[str, ...] = ()
    further_seeds: tuple[int, ...] = ()
    variants: tuple[str, ...] = ()
    rates_of: tuple[str, str] | None = None

    def tuning(self) -> list[Run]:
        return [
            Run(TUNING_TASK, regime, contender, learning_rate, seed, self.steps)
            for seed in self.tuning_seeds
            for contender in self.tuned
            for regime in self.regimes
            for learning_rate in self.learning_rates
        ]

    def report(self, learning_rates: dict[tuple[str, str], float]) -> list[Run]:
        """The runs that the tables are made of, given the learning rate of each (regime, contender)."""
        runs = []
        for task in self.tasks:
            for contender in self.on_one_task if task == TUNING_TASK else self.on_all_tasks:
                for regime in self.regimes:
                    learning_rate = learning_rates.get((regime, CONTENDERS[contender].lr_of or contender))
                    if learning_rate is None:  # not tuned yet
                        continue
                    for seed in self.seeds(contender, regime):
                        runs.append(Run(task, regime, contender, learning_rate, seed, self.steps, self.prompts))
        return runs

    def seeds(self, contender: str, regime: str) -> tuple[int, ...]:
        """The seeds that a contender is to run in a regime."""
        first = regime == self.regimes[0]
        if contender in self.variants and not first:
            return ()
        return self.report_seeds + self.further_seeds * (contender in self.claimed and first)


# What is known sooner: the saturated regime in other situations, at the learning rates that were chosen there.
SOONER = Profile(
    steps=160,
    learning_rates=(),
    tuning_seeds=(),
    report_seeds=(1, 2, 3, 4, 5),
    tuned=(),
    on_one_task=("uniform", "look", "look-64", "column", "column-look", "oracle"),
    on_all_tasks=("uniform", "look", "look-64", "column", "column-look", "oracle"),
    regimes=("saturated",),
    rates_of=("full", "saturated"),
)
PROFILES = {
    "quick": Profile(
        steps=64,  # the first 27 are an epoch, in which nothing is known
        learning_rates=(1e-4, 2e-4),
        tuning_seeds=(101,),
        report_seeds=(1, 2),
        tuned=("uniform", "posterior"),
        on_one_task=("uniform", "posterior"),
        on_all_tasks=("uniform", "posterior"),
    ),
    "full": Profile(
        steps=160,
        learning_rates=(3e-5, 6e-5, 1.2e-4),
        tuning_seeds=(101, 102),
        report_seeds=(1, 2, 3, 4, 5),
        claimed=("uniform", "posterior", "look-64"),
        further_seeds=(6, 7, 8, 9, 10),
        variants=VARIANTS,
    ),
    "once": replace(SOONER, regimes=(SINGLE_EPOCH,)),
    "two": replace(SOONER, prompts=2),
    "four": replace(SOONER, prompts=4),
    "tokens": replace(
        SOONER,
        tasks=("sums",),
        regimes=("broad",),
        on_one_task=(),
        on_all_tasks=("uniform", "look-64", "tokens", "token-price", "oracle"),
        rates_of=("full", "broad"),
    ),
    "rare": replace(
        SOONER,
        tasks=tuple(task for task in TASKS if RARE in TASKS[task].regimes),
        regimes=(RARE,),
        on_one_task=("uniform", "look-64", "replay"),
        on_all_tasks=("uniform", "look-64", "replay"),
        rates_of=("full", "hard"),
    ),
    "long": Profile(
        steps=640,
        learning_rates=(1.5e-5, 3e-5, 6e-5, 1.2e-4, 2.4e-4),
        tuning_seeds=(101, 102, 103, 104),
        report_seeds=tuple(range(1, 11)),
        on_all_tasks=tuple(name for name in CONTENDERS if name not in ELSEWHERE),
    ),
}


def narrowed(name: str, contenders: Sequence[str] | None = None, tasks: Sequence[str] | None = None) -> Profile:
    """
    A profile with these contenders and tasks only, and the contenders whose learning rates they take.

    Raises:
        `ValueError`: if the profile does not run one of them, naming those that it runs.
    """
    profile = PROFILES[name]
    tasks = tasks or profile.tasks
    here = {*(profile.on_one_task if TUNING_TASK in tasks else ()), *profile.on_all_tasks}
    absent = [contender for contender in contenders or () if contender not in here]
    contenders = contenders or tuple(CONTENDERS)
    if absent:
        raise ValueError(
            f"profile {name!r} does not run {', '.join(absent)} on {', '.join(tasks)}, only {', '.join(sorted(here))}"
        )
    rates_of = {CONTENDERS[contender].lr_of or contender for contender in contenders}
    return replace(
        profile,
        tuned=tuple(contender for contender in profile.tuned if contender in rates_of),
        tasks=tuple(task for task in profile.tasks if task in tasks),
        **{
            group: tuple(contender for contender in getattr(profile, group) if contender in contenders)
            for group in ("on_one_task", "on_all_tasks")
        },
    )


def load_results(profile: str) -> dict[str, dict]:
    """All results so far, by the run's name."""
    results = {}
    for path in sorted((RESULTS / profile).glob("*.jsonl")):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            results[result["name"]] = result
    return results


def score(result: dict) -> float:
    """What a learning rate is chosen by: held-out accuracy, a mean of the last three evaluations against the noise."""
    return float(np.mean([point["accuracy"] for point in result["curve"][-3:]]))


def choose_learning_rates(profile: Profile, results: dict[str, dict]) -> dict[tuple[str, str], float]:
    """The best learning rate over the tuning seeds of each (regime, contender) whose tuning is complete."""
    if profile.rates_of is not None:
        source, regime = profile.rates_of
        chosen = choose_learning_rates(PROFILES[source], load_results(source))
        return {
            (here, contender): learning_rate
            for (there, contender), learning_rate in chosen.items()
            for here in profile.regimes
            if there == regime
        }
    scores: dict[tuple[str, str, float], list[float]] = {}
    incomplete = set()
    for run in profile.tuning():
        if run.name in results:
            scores.setdefault((run.regime, run.contender, run.learning_rate), []).append(score(results[run.name]))
        else:
            incomplete.add((run.regime, run.contender))
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for (regime, contender, learning_rate), values in scores.items():
        if (regime, contender) in incomplete:
            continue
        best[regime, contender] = max(
            best.get((regime, contender), (-1.0, 0.0)), (float(np.mean(values)), learning_rate)
        )
    return {key: learning_rate for key, (_, learning_rate) in best.items()}


def run_all(profile: str, runs: Iterable[Run], workers: int, label: str) -> None:
    """Run what has no result yet and can run here, and save each result as it comes."""
    done = load_results(profile)
    missing = [run for run in runs if run.name not in done]
    for contender in sorted({run.contender for run in missing if not can_run(run.contender)}):
        print(f"{contender} is left out: {CONTENDERS[contender].needs} is not installed", file=sys.stderr)
    missing = [run for run in missing if can_run(run.contender)]
    if not missing:
        return
    (RESULTS / profile).mkdir(parents=True, exist_ok=True)
    total = sum(weight(run) for run in missing)
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} < {remaining}{postfix}"
    with (
        multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=40) as pool,
        tqdm(total=total, desc=label, bar_format=bar_format) as bar,
    ):
        for finished, (run, result) in enumerate(pool.imap_unordered(_work, missing), 1):
            line = json.dumps({"name": run.name} | result, separators=(",", ":"))
            with open(RESULTS / profile / f"{run.task}-{run.regime}.jsonl", "a") as file:
                file.write(line + "\n")
            bar.set_postfix_str(f"{finished}/{len(missing)} runs, {run.name}", refresh=False)
            bar.update(weight(run))


def weight(run: Run) -> float:
    """About how long a run takes, in the unit of the progress bar."""
    return (
        run.steps
        * CONTENDERS[run.contender].budget
        * {"arithmetic": 1.0, "countdown": 1.6, "sorting": 1.6, "sums": 2.0}[run.task]
    )


def _work(run: Run) -> tuple[Run, dict]:
    try:
        return run, execute(run)
    except Exception as error:
        raise RuntimeError(f"{run.name} failed: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes, one core each")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="only these, to begin with")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="only these, to begin with")
    parser.add_argument("--tuning_only", action="store_true", help="stop when the learning rates are known")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"

    try:
        profile = narrowed(args.profile, args.contenders, args.tasks)
    except ValueError as error:
        parser.error(str(error))
    run_all(args.profile, profile.tuning(), args.workers, "learning rates")
    if args.tuning_only:
        return
    chosen = choose_learning_rates(profile, load_results(args.profile))
    run_all(args.profile, profile.report(chosen), args.workers, "report")


if __name__ == "__main__":
    main()

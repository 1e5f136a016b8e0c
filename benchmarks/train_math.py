"""
The bundled run with and without per-prompt budgets, over several seeds: the table and the figure of the README.

    python benchmarks/train_math.py --seeds 42 1 2

Each run is a run of `examples/train_math.py`, three to five minutes on two cores; those that are there already in
`--output_dir` are not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tqdm.auto import tqdm


ROOT = Path(__file__).resolve().parent.parent
COLORS = {"uniform": "#888888", "posterior": "#1f77b4"}
ACCURACY = "eval_rewards/exact_match/mean"


def history(output_dir: Path, allocation: str, seed: int) -> list[dict]:
    """Log of one run, which is run first if it has not been."""
    folder = output_dir / f"{allocation}-{seed}"
    if not (folder / "trainer_state.json").is_file():
        options = ["--allocation", allocation, "--seed", str(seed), "--output_dir", str(folder)]
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
        subprocess.run([*command, str(ROOT / "examples" / "train_math.py"), *options], check=True, capture_output=True)
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def series(log: list[dict], metric: str) -> tuple[list[int], list[float]]:
    entries = [entry for entry in log if metric in entry]
    return [entry["step"] for entry in entries], [entry[metric] for entry in entries]


def table(runs: dict[str, list[list[dict]]], seeds: list[int]) -> str:
    lines = [
        "| seed | allocation | held-out accuracy | effective gradient ratio | largest budget |",
        "|--:|---|--:|--:|--:|",
    ]
    for i, seed in enumerate(seeds):
        for allocation, logs in runs.items():
            after = series(logs[i], ACCURACY)[1][-1]
            ratio = np.mean(series(logs[i], "knapsack/effective_gradient_ratio")[1])
            largest = max(series(logs[i], "knapsack/generations/max")[1])
            lines.append(f"| {seed} | {allocation} | {after:.3f} | {ratio:.2f} | {largest:.0f} |")
    return "\n".join(lines)


def figure(runs: dict[str, list[list[dict]]], path: Path) -> None:
    _, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    panels = (
        ("effective gradient ratio", "knapsack/effective_gradient_ratio"),
        ("success rate on training prompts", "knapsack/success_rate"),
    )
    for axis, (title, metric) in zip(axes, panels, strict=False):
        for allocation, logs in runs.items():
            steps = series(logs[0], metric)[0]
            values = np.array([series(log, metric)[1] for log in logs])  # (seeds, logs)
            axis.plot(steps, values.mean(axis=0), color=COLORS[allocation], label=allocation)
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=COLORS[allocation], alpha=0.2, lw=0)
        axis.set(title=title, xlabel="step", ylim=(0, None))
        axis.legend(frameon=False)
    log = runs["posterior"][0]
    bands = (("min", "p90", 0.25, "nine prompts in ten"), ("p90", "max", 0.1, "the others, up to the largest"))
    for low, high, alpha, label in bands:
        steps, bottom = series(log, f"knapsack/generations/{low}")
        top = series(log, f"knapsack/generations/{high}")[1]
        axes[2].fill_between(steps, bottom, top, color=COLORS["posterior"], alpha=alpha, lw=0, label=label)
    axes[2].axhline(8, color=COLORS["uniform"], label="uniform")
    axes[2].set(title="generations of one prompt", xlabel="step", ylim=(0, None))
    axes[2].legend(frameon=False, fontsize="small", loc="upper left")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    plt.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/benchmark"))
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "train_math.png")
    args = parser.parse_args()

    runs: dict[str, list[list[dict]]] = {"uniform": [], "posterior": []}
    bar = tqdm(total=len(args.seeds) * len(runs), unit="run")
    for seed in args.seeds:
        for allocation, logs in runs.items():
            logs.append(history(args.output_dir, allocation, seed))
            bar.update()
    bar.close()
    print(table(runs, args.seeds))
    figure(runs, args.figure)
    print(f"figure: {args.figure}")


if __name__ == "__main__":
    main()

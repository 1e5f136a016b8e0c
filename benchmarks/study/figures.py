"""The figures of docs/results.md, and the README's."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from analysis import Cell
from study import HERE, TUNING_TASK
from tasks import load_problems

from trl_knapsack.allocation import expected_values
from trl_knapsack.tracking.records import DIFFICULTIES


FOLDER = HERE.parent.parent / "docs" / "figures" / "study"
COLORS = {
    "uniform": "#888888",
    "filter": "#8c6d31",
    "paper": "#d62728",
    "posterior": "#17becf",
    "look-64": "#1f77b4",
    "warm": "#ff7f0e",
    "oracle": "#9467bd",
}
Cells = dict[tuple[str, str], Cell]


def save(figure: plt.Figure, name: str, dpi: int = 110) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", dpi=dpi)
    plt.close(figure)


def learning_curves(cells: Cells) -> None:
    """Held-out accuracy over rollouts: mean over seeds, and the band of one standard error."""
    tasks, regimes = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    figure, axes = plt.subplots(
        len(tasks), len(regimes), figsize=(3.8 * len(regimes), 2.8 * len(tasks)), layout="constrained", squeeze=False
    )
    for (task, regime), cell in cells.items():
        axis = axes[tasks.index(task), regimes.index(regime)]
        for contender in ("uniform", "paper", "posterior", "look-64", "oracle"):
            if contender in cell.runs:
                rollouts = cell.curve(contender, "rollouts").mean(axis=0) / 1000
                values = cell.curve(contender, "accuracy")
                mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
                axis.plot(rollouts, mean, color=COLORS[contender], label=contender)
                axis.fill_between(rollouts, mean - error, mean + error, color=COLORS[contender], alpha=0.15, lw=0)
        axis.set(title=f"{task}, {regime}")
    figure.supxlabel("thousand rollouts")
    figure.supylabel("held-out accuracy")
    axes[0, 0].legend(frameon=False, fontsize="small")
    save(figure, "learning_curves")


def held_out_accuracy(cells: Cells) -> None:
    """The README's figure: the saturated regime alone, every task on the same scale below uniform's final accuracy."""
    labels = {
        "uniform": "plain GRPO",
        "posterior": "budgets by earlier visits alone",
        "look-64": "budgets after a look (default)",
        "oracle": "budgets, true success rates (for reference)",
    }
    shown = {task: cell for (task, regime), cell in cells.items() if regime == "saturated"}
    figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.5), layout="constrained", squeeze=False)
    for axis, (task, cell) in zip(axes[0], shown.items(), strict=True):
        for contender, label in labels.items():
            rollouts = cell.curve(contender, "rollouts").mean(axis=0) / 1000
            values = cell.curve(contender, "accuracy")
            mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
            axis.plot(rollouts, mean, color=COLORS[contender], lw=2, label=label)
            axis.fill_between(rollouts, mean - error, mean + error, color=COLORS[contender], alpha=0.15, lw=0)
        target = cell.accuracy("uniform").estimate
        axis.axhline(target, color=COLORS["uniform"], lw=1, ls=":")
        axis.set(title=task, xlabel="thousand rollouts", ylim=(target - 0.1, target + 0.03))
    axes[0, 0].set_ylabel("held-out accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    save(figure, "held_out_accuracy", dpi=150)


def effective_gradient_ratio(cells: Cells) -> None:
    """The paper's Figure 2: the share of rollouts that have a gradient, over training."""
    regimes = [regime for task, regime in cells if task == TUNING_TASK]
    figure, axes = plt.subplots(1, len(regimes), figsize=(3.8 * len(regimes), 3), layout="constrained", sharey=True)
    for axis, regime in zip(np.atleast_1d(axes), regimes, strict=True):
        cell = cells[TUNING_TASK, regime]
        for contender in ("uniform", "filter", "paper", "posterior", "look-64", "oracle"):
            if contender in cell.runs:
                values = np.mean([result["effective_gradient_ratio"] for result in cell.runs[contender]], axis=0)
                axis.plot(np.linspace(0.05, 0.95, len(values)), values, color=COLORS[contender], label=contender)
        axis.set(title=f"{TUNING_TASK}, {regime}", xlabel="share of training", ylim=(0, 1))
    np.atleast_1d(axes)[0].set_ylabel("effective gradient ratio")
    np.atleast_1d(axes)[0].legend(frameon=False, fontsize="small")
    save(figure, "effective_gradient_ratio")


def budgets(cells: Cells) -> None:
    """How often a prompt got how many rollouts, with the tail; and mean rollouts by the prompt's first success rate."""
    regimes = [regime for task, regime in cells if task == TUNING_TASK]
    figure, axes = plt.subplots(2, len(regimes), figsize=(3.8 * len(regimes), 5.6), layout="constrained", sharey="row")
    for column, regime in enumerate(regimes):
        cell = cells[TUNING_TASK, regime]
        rates = np.array([row["rate"] for row in load_problems(TUNING_TASK, regime, "train")])
        for contender in ("paper", "posterior"):
            if contender in cell.runs:
                runs, color = cell.runs[contender], COLORS[contender]
                counts = np.zeros(max(len(result["budgets"]) for result in runs))
                for result in runs:
                    counts[: len(result["budgets"])] += result["budgets"]
                edges = np.arange(0, len(counts) + 4, 4)
                axes[0, column].stairs(
                    np.add.reduceat(np.append(counts, np.zeros(4)), edges[:-1]), edges, color=color, label=contender
                )
                rollouts = np.mean([result["rollouts_per_prompt"] for result in runs], axis=0)
                bins = np.quantile(rates, np.linspace(0, 1, 11))
                place = np.clip(np.searchsorted(bins, rates, side="right") - 1, 0, 9)
                means = [rollouts[place == i].mean() for i in range(10) if (place == i).any()]
                at = [rates[place == i].mean() for i in range(10) if (place == i).any()]
                axes[1, column].plot(at, means, "o-", color=color, label=contender)
        axes[0, column].set(title=f"{TUNING_TASK}, {regime}", yscale="log", xlabel="rollouts of a prompt in one visit")
        uniform = np.mean([result["rollouts_per_prompt"] for result in cell.runs["uniform"]])
        axes[1, column].axhline(uniform, color=COLORS["uniform"], label="uniform")
        axes[1, column].set(xlabel="success rate before training", xlim=(0, 1))
    axes[0, 0].set_ylabel("visits")
    axes[1, 0].set_ylabel("rollouts of a prompt in all")
    axes[1, 0].set_ylim(0, None)
    axes[0, 0].legend(frameon=False)
    axes[1, 0].legend(frameon=False)
    save(figure, "budgets")


def transitions(cells: Cells) -> None:
    """Difficulty class at a prompt's first visit against that at its last: rows sum to 1."""
    cell = cells[TUNING_TASK, "saturated"]
    shown = [name for name in ("uniform", "posterior") if name in cell.runs]
    figure, axes = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 4.2), layout="constrained", squeeze=False)
    labels = [name.replace("_", "\n") for name in DIFFICULTIES]
    for axis, contender in zip(axes[0], shown, strict=True):
        counts = np.sum([result["transitions"] for result in cell.runs[contender]], axis=0)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row in range(5):
            for column in range(5):
                color = "white" if shares[row, column] > 0.6 else "black"
                axis.text(column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=color)
        axis.set(title=contender, xlabel="last visit", xticks=range(5), yticks=range(5))
        axis.set_xticklabels(labels, fontsize="small")
        axis.set_yticklabels(labels, fontsize="small")
    axes[0, 0].set_ylabel("first visit")
    save(figure, "transitions")


def value_per_rollout(_: Cells) -> None:
    """What one prompt's rollouts are worth in all, and what the next one adds."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    counts = np.arange(2, 65)
    for rate, color in zip((0.02, 0.1, 0.33, 0.7, 0.95), plt.cm.viridis(np.linspace(0, 0.9, 5)), strict=True):
        values = np.array([expected_values(np.array([rate]), np.array([n]))[0] for n in counts])
        axes[0].plot(counts, values, color=color, label=f"p = {rate}")
        axes[1].plot(counts[:-1], np.diff(values), color=color)
    axes[0].set(xlabel="rollouts", ylabel="value")
    axes[1].set(xlabel="rollouts", ylabel="value of one more", yscale="log", ylim=(1e-6, None))
    axes[0].legend(frameon=False, fontsize="small")
    save(figure, "value_per_rollout")


def draw_all(cells: Cells) -> list[Path]:
    every = (learning_curves, held_out_accuracy, effective_gradient_ratio, budgets, transitions, value_per_rollout)
    for draw in every:
        draw(cells)
    return sorted(FOLDER.glob("*.png"))

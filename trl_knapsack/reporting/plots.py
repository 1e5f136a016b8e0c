"""Figures of a run, from its history. matplotlib is loaded with the first figure; torch never."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from ..allocation.difficulty import RANGES
from ..errors import InvalidInputError, require_matplotlib
from ..tracking.history import RolloutHistory
from ..tracking.text import printable
from .summary import CLASSES, KINDS, equal_counts, of_history, rate_bins


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK = "#3d4451"  # of all text and lines that are no data
_RULE = "#b8bec8"
_GREY, _BLUE, _ORANGE, _GREEN, _RED = "#9aa3b2", "#3b76d0", "#e07b27", "#3a9d6a", "#cf4a4a"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _RULE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a figure looks the same everywhere
    "font.size": 9,
    "grid.alpha": 0.35,
    "grid.color": _RULE,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
_MOST_POINTS = 20_000
_VISITS = (
    ("never", 0, 0, _GREY),
    ("once", 1, 1, _ORANGE),
    ("2 to 3 times", 2, 3, _GREEN),
    ("4 or more", 4, np.inf, _BLUE),
)
_LEAST_GROUPS = 5  # of a point in the figure of calibration


def _styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(plot)
    def styled(history: RolloutHistory, *args, **kwargs) -> Figure:
        matplotlib = require_matplotlib()
        if len(history) == 0:
            raise InvalidInputError("The history has no generation batch yet, so there is nothing to plot.")
        with matplotlib.rc_context(_STYLE):
            return plot(history, *args, **kwargs)

    return styled


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    return figure, figure.subplots()


@_styled
def plot_counts(history: RolloutHistory) -> Figure:
    """Rollouts of each prompt against the success rate that was believed before, coloured by step."""
    figure, axes = _figure()
    counts = history.generations
    mean = counts[history.decided].mean()
    known = np.flatnonzero(history.known & history.decided)
    axes.axhline(mean, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"mean {mean:.3g}", (1.0, mean), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
    )  # fmt: skip
    if known.size:
        shown = known[:: -(-known.size // _MOST_POINTS)]
        jitter = np.random.default_rng(0).uniform(-0.3, 0.3, shown.size)  # whole numbers lie over each other
        points = axes.scatter(
            history.believed_rate[shown],
            counts[shown] + jitter,
            c=history.step[history.batch[shown]],
            s=9,
            alpha=0.6,
            linewidths=0,
            cmap=_steps_colormap(),
            rasterized=True,
        )
        bar = figure.colorbar(points, ax=axes, label="step", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        bar.solids.set_alpha(1)
        edges = np.linspace(0, 1, 21)
        slot = np.clip(np.digitize(history.believed_rate[known], edges) - 1, 0, 19)
        filled = [i for i in range(20) if (slot == i).sum() >= 5]
        medians = [np.median(counts[known[slot == i]]) for i in filled]
        axes.plot((edges[filled] + 0.025), medians, color=INK, linewidth=1.6, label="median")
        _legend_above(axes)
    else:
        _say(axes, "Every prompt is at its first visit", 0.65)  # not on the line of the mean
    axes.set_yscale("log", base=2)
    if (equal := equal_counts(history)) is not None:
        _say(axes, equal, 0.9)
        axes.set_ylim(mean / 4, mean * 4)
    _whole_numbers(axes.yaxis)
    axes.set(xlim=(-0.02, 1.02), xlabel="believed success rate before the rollouts", ylabel="generations")
    axes.set_title("Generations by believed success rate")
    return figure


@_styled
def plot_budgets(history: RolloutHistory) -> Figure:
    """How many groups had how many rollouts, with a logarithmic axis for the tail."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    counts, unseen = history.generations[history.decided], ~history.known[history.decided]
    width = max(1, -(-int(counts.max()) // 64))
    bins = np.arange(counts.min() - 0.5, counts.max() + width + 0.5, width)
    axes.hist(
        [counts[~unseen], counts[unseen]],
        bins,
        stacked=True,
        color=[_BLUE, _GREY],
        label=["known prompts", "first visits, equal shares"],
        rwidth=0.86,
    )
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    mean, p99, most = counts.mean(), np.percentile(counts, 99), counts.max()
    top = axes.get_ylim()[1]
    marked = ((mean, "mean"), (p99, "99th percentile"), (most, "largest"))
    if (equal := equal_counts(history)) is not None:  # three lines would strike the one bar through
        marked = ()
        axes.set(xlim=(most - 3, most + 3), ylim=(0.7, 4 * top))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _say(axes, equal, 0.9)
    # Labels from the top down, so that those of near lines do not collide.
    for place, (value, name) in enumerate(marked):
        axes.axvline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        right = value < (counts.min() + most) / 2
        axes.annotate(
            f"{name} {value:.3g}", (value, top), (4 if right else -4, -11 - 12 * place),
            textcoords="offset points", ha="left" if right else "right",
        )  # fmt: skip
    axes.set(xlabel="generations of one prompt at one visit", ylabel="groups")
    axes.set_title("Budgets")
    _legend_above(axes)
    return figure


@_styled
def plot_effective_gradient_ratio(history: RolloutHistory) -> Figure:
    """Share of rollouts that have a gradient, and of prompts whose rewards vary, over the run."""
    figure, axes = _figure()
    window = max(1, len(history) // 20)
    for values, color, name in (
        (history.mixed_prompts, _GREY, "mixed prompts"),
        (history.effective_gradient_ratio, _BLUE, "effective gradient ratio"),
    ):
        axes.plot(history.step, values, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(history.step, _running_mean(values, window), color=color, linewidth=2, label=name)
    mostly_known = np.flatnonzero(history.per_batch(history.known) * 2 > history.per_batch(history.visits >= 0))
    if mostly_known.size and mostly_known[0] > 0:
        begin = float(history.step[mostly_known[0]])
        axes.axvline(begin, color=INK, linewidth=1, linestyle=(0, (1, 2)))
        axes.annotate(
            "most prompts known", (begin, 1.0), (4, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top",
        )  # fmt: skip
    axes.set(ylim=(0, 1), xlim=(history.step[0] - 0.5, history.step[-1] + 0.5), xlabel="step")
    axes.set_ylabel("share" if window == 1 else f"share; mean of {window} batches")
    axes.set_title("Effective gradient ratio")
    _legend_above(axes)
    return figure


@_styled
def plot_transitions(history: RolloutHistory) -> Figure:
    """The paper's difficulty class of each prompt at its first visit (rows) and at its last (columns)."""
    figure, axes = _figure()
    table = of_history(history).transitions
    of_row = table.sum(axis=1, keepdims=True)
    share = np.divide(table, of_row, out=np.zeros(table.shape), where=of_row > 0)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, alpha=0.9, aspect="auto")
    for row, column in np.ndindex(5, 5) if table.any() else ():
        count = table[row, column]
        axes.text(
            column, row, f"{count:,}\n{share[row, column]:.0%}" if count else "0", ha="center", va="center",
            color="white" if share[row, column] > 0.55 else "#23324a",
        )  # fmt: skip
    classes = [f"{name}\n{rates}" for name, rates in zip(CLASSES, RANGES, strict=True)]
    axes.set_xticks(range(5), classes, fontsize=8)
    axes.set_yticks(
        range(5), [f"{name}\n{int(n):,} prompts" for name, n in zip(classes, of_row[:, 0], strict=True)], fontsize=8
    )
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="success rate at the last visit", ylabel="at the first visit")
    if not table.any():
        _say(axes, "No prompt has had two visits yet")
    axes.set_title(f"Difficulty of {int(table.sum()):,} prompts with two visits or more")
    return figure


@_styled
def plot_prompts(history: RolloutHistory, keys: Sequence[str] | None = None) -> Figure:
    """
    Success rate and generations at each visit of single prompts.

    Args:
        keys (`Sequence[str]`, *optional*):
            The prompts, at most 30. By default three each of those that are stuck, most expensive and most improved.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if keys is None:
        summary, kinds = of_history(history), {}
        for kind in ("stuck", "improved", "most_rollouts"):
            free = [i for i in summary.top(kind, 9) if i not in kinds][:3]
            kinds |= dict.fromkeys(free, KINDS[kind][0])
        chosen = [(name, i) for i, name in kinds.items()]
    else:
        if not 1 <= len(keys) <= 30:
            raise InvalidInputError(f"{len(keys)} prompts do not fit into one figure; give 1 to 30 keys.")
        index = {key: i for i, key in enumerate(history.keys)}
        unknown = [key for key in keys if key not in index]
        if unknown:
            raise InvalidInputError(
                f"No prompt of this run has the key {unknown[0]!r}; its keys begin with {history.keys[:3]}."
            )
        chosen = [("", index[key]) for key in keys]
    rows = max(1, -(-len(chosen) // 3))
    figure = Figure(figsize=(8.4, 0.5 + 1.85 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False, sharex=True)
    for axes in grid.flat[len(chosen) :]:
        axes.set_axis_off()
    if not chosen:
        grid[0, 1].text(0.5, 0.5, "No prompt has been scored yet", ha="center", transform=grid[0, 1].transAxes)
    visits = history.by_visit
    most = max((int(visits["counts"][visits["prompt"] == i].max(initial=1)) for _, i in chosen), default=1)
    width = max(1.0, (history.step[-1] - history.step[0]) / 60)
    for place, (axes, (name, prompt)) in enumerate(zip(grid.flat, chosen, strict=False)):
        at = visits["prompt"] == prompt
        steps = history.step[visits["batch"][at]]
        axes.bar(steps, visits["counts"][at], width=width, color=_ORANGE, alpha=0.55, label="generations")
        axes.set_ylim(0, most * 1.08)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.tick_params(axis="y", colors=_ORANGE)
        axes.grid(False)
        rate = axes.twinx()
        rate.plot(steps, visits["success_rate"][at], color=_BLUE, marker="o", markersize=3.5, label="success rate")
        rate.set(ylim=(-0.06, 1.06), yticks=(0, 0.5, 1))
        rate.tick_params(axis="y", colors=_BLUE)
        rate.spines["right"].set_visible(True)
        key = printable(history.keys[prompt], 24)  # on a line of its own, no wider than the panel
        axes.set_title(f"{name}\n{key}" if name else key, fontsize=8, parse_math=False)
        if place % 3 == 0:
            axes.set_ylabel("generations", color=_ORANGE)
        if place % 3 == 2 or place == len(chosen) - 1:
            rate.set_ylabel("success rate", color=_BLUE)
        if place + 3 >= len(chosen):
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
    figure.suptitle("Single prompts", x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


@_styled
def plot_calibration(history: RolloutHistory) -> Figure:
    """
    Success rate that was observed against the one believed before, by how often prompts had been scored. On the diagonal the
    beliefs are right on average. Every group weighs the same; bars are one standard error of the mean over groups.
    """
    figure, axes = _figure()
    scored = history.trials > 0
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    shift = 0.0
    for name, least, most, color in _VISITS:
        of = scored & (history.visits >= least) & (history.visits <= most)
        if not of.any():
            continue
        believed, observed = history.believed_rate[of], history.success_rate[of]
        slot = rate_bins(believed, 10)
        groups = np.bincount(slot, minlength=10)
        filled = np.flatnonzero(groups >= _LEAST_GROUPS)
        if not filled.size:
            continue
        x, y, squares = (
            np.bincount(slot, values, minlength=10)[filled] / groups[filled]
            for values in (believed, observed, observed**2)
        )
        error = np.sqrt(np.maximum(squares - y**2, 0) / (groups[filled] - 1))
        axes.errorbar(
            x + shift, y, error, color=color, marker="o", markersize=4.5, linewidth=1.4, elinewidth=1,
            label=f"{name} ({of.sum():,} groups)",
        )  # fmt: skip
        shift += 0.004  # bars of equal beliefs side by side
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0, title="scored before")
    else:
        _say(axes, f"No tenth of the believed rates has {_LEAST_GROUPS} scored groups yet", 0.9)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xlabel="believed success rate before the rollouts", ylabel="observed success rate")
    axes.set_title("Calibration")
    return figure


#: The figures by name.
PLOTS: dict[str, Callable[[RolloutHistory], Figure]] = {
    "counts": plot_counts,
    "budgets": plot_budgets,
    "effective_gradient_ratio": plot_effective_gradient_ratio,
    "calibration": plot_calibration,
    "transitions": plot_transitions,
    "prompts": plot_prompts,
}


def to_image(figure: Figure, dpi: int = 110) -> np.ndarray:
    """The figure's pixels: `(height, width, 3)`, uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _say(axes: Axes, sentence: str, height: float = 0.5) -> None:
    """Write into a figure that has little else."""
    axes.text(0.5, height, sentence, transform=axes.transAxes, ha="center")


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the `window - 1` before it, fewer at the beginning."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - window, 0)
    return (total[end] - total[begin]) / (end - begin)


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.985), ncols=2, borderaxespad=0)  # never over the data


def _whole_numbers(axis) -> None:
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    axis.set_major_locator(LogLocator(base=2))
    axis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axis.set_minor_locator(LogLocator(base=2, subs=()))


def _steps_colormap():
    """viridis without its ends, which are lost on a dark or a light ground."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.15, 0.92, 256)))

"""Why an allocation looks the way it does: a table and a plot for any allocation, compared with the paper's rule and uniform."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .._notebook import html_table
from ..errors import require_matplotlib
from .allocator import Allocation, check_budget, equal_shares
from .arrays import ArrayRecord
from .difficulty import FINE_EDGES, classify
from .evidence import BetaBeliefs
from .rules import PaperRule
from .values import MixedGroupValue, Value, check_rates, expected_values, judge


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(ArrayRecord):
    """
    An allocation, prompt by prompt. Made by [`explain`], and shown as a table, in a notebook too.

    Attributes:
        allocation ([`Allocation`]): What is explained.
        rates (`np.ndarray` of shape `(P,)`): Success rates, or the means of the beliefs.
        values (`np.ndarray` of shape `(P,)`): Value of each prompt's rollouts; they sum to `totals["allocation"]`.
        last_gains (`np.ndarray` of shape `(P,)`): What each prompt's last rollout added.
        next_gains (`np.ndarray` of shape `(P,)`): What one more would add; their maximum, among the prompts that may
            take one, is the shadow price.
        totals (`dict[str, float]`): Total values of `"allocation"`, `"uniform"`, `"paper"` and `"bound"`.
    """

    allocation: Allocation
    rates: np.ndarray
    values: np.ndarray
    last_gains: np.ndarray
    next_gains: np.ndarray
    totals: dict[str, float]

    def rows(self) -> list[dict[str, float]]:
        """
        One row per class of success rates that has prompts, with the keys `from`, `to`, `prompts`, `rollouts`, `least`,
        `mean`, `most` (rollouts of a prompt), `last_gain` (mean) and `value` (share of the total). The classes are the
        paper's five, the wide ones split; edges below 1/2 belong to the row that ends there, the others to the row that
        begins there.
        """
        counts = self.allocation.counts
        row = classify(self.rates, FINE_EDGES)
        edges = [0.0, 0.0, *FINE_EDGES, 1.0, 1.0]
        total = self.values.sum()
        rows = []
        for j in np.unique(row):
            own = row == j
            rows.append(
                {
                    "from": float(edges[j]),
                    "to": float(edges[j + 1]),
                    "prompts": int(own.sum()),
                    "rollouts": int(counts[own].sum()),
                    "least": int(counts[own].min()),
                    "mean": float(counts[own].mean()),
                    "most": int(counts[own].max()),
                    "last_gain": float(self.last_gains[own].mean()),
                    "value": float(self.values[own].sum() / total) if total else 0.0,
                }
            )
        return rows

    def __str__(self) -> str:
        header, rows, summary = self._table()
        widths = (-13, 9, 10, 8, 8, 8, 13, 8)
        lines = [
            "".join(f"{cell:<{-w}}" if w < 0 else f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True))
            for row in [header, *rows]
        ]
        return "\n".join([*lines, summary])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, rows, summary = self._table()
        return html_table(header, rows, note=summary)

    def _table(self) -> tuple[list[str], list[list[str]], str]:
        """Header, rows and the line below them, all in words."""
        header = ["success rate", "prompts", "rollouts", "least", "mean", "most", "last gain", "value"]
        rows = [
            [
                f"{row['from']:.2f} - {row['to']:.2f}" if row["from"] < row["to"] else f"{row['from']:.0f}",
                *(str(row[name]) for name in ("prompts", "rollouts", "least")),
                f"{row['mean']:.1f}",
                str(row["most"]),
                f"{row['last_gain']:.2e}",
                f"{row['value']:.1%}",
            ]
            for row in self.rows()
        ]
        value = self.totals["allocation"]
        shares = [
            f"{_percent(value, self.totals[name])} of {shown}"
            for name, shown in (("uniform", "uniform"), ("paper", "the paper's rule"), ("bound", "the bound"))
            if np.isfinite(self.totals[name])
        ]
        price = f"one more rollout adds {self.allocation.shadow_price:.2e}"
        return header, rows, f"value {value:.6g}: {', '.join(shares)}; {price}"

    def plot(self, path: str | None = None) -> "Figure":
        """
        Counts and last gains against success rates, and the values side by side.

        Args:
            path (`str`, *optional*): Where to save the figure (PNG, SVG or PDF by the ending).

        Returns:
            `matplotlib.figure.Figure`

        Raises:
            `ImportError`: if matplotlib is missing.
        """
        require_matplotlib()
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 3.6), layout="constrained")
        many, last, bars = figure.subplots(1, 3, width_ratios=(3, 3, 2))
        counts = self.allocation.counts
        _bubbles(many, self.rates, counts, "tab:blue")
        many.axhline(counts.mean(), color="0.5", linewidth=1, linestyle="--")
        many.annotate("uniform", (0.99, counts.mean()), ha="right", va="bottom", color="0.35", fontsize=9)
        many.set(xlabel="success rate", ylabel="rollouts", title="What each prompt gets", xlim=(-0.03, 1.03), ylim=0)

        price = self.allocation.shadow_price
        _bubbles(last, self.rates, self.last_gains, "tab:orange")
        last.axhline(price, color="0.5", linewidth=1, linestyle="--")
        last.annotate("shadow price", (0.99, price), ha="right", va="top", color="0.35", fontsize=9)
        last.set(
            xlabel="success rate", ylabel="gain in value", title="What its last rollout added", xlim=(-0.03, 1.03)
        )
        top = max(3.0 * price, 1.5 * float(np.quantile(self.last_gains, 0.9)), 1e-300)
        last.set_ylim(-0.05 * top, top)

        labels = {"uniform": "uniform", "paper": "paper", "allocation": "this", "bound": "bound"}
        names = [name for name in labels if np.isfinite(self.totals[name])]
        heights = [self.totals[name] for name in names]
        colors = {"uniform": "0.7", "paper": "0.55", "allocation": "tab:blue", "bound": "0.85"}
        drawn = bars.bar([labels[name] for name in names], heights, color=[colors[name] for name in names])
        bars.bar_label(drawn, [_percent(height, self.totals["uniform"]) for height in heights], fontsize=9)
        bars.set(ylabel="value", title="Value, in % of uniform")
        bars.margins(y=0.12)
        for axes in (many, last, bars):
            axes.spines[["top", "right"]].set_visible(False)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def explain(
    allocation: Allocation,
    success_rates: ArrayLike | BetaBeliefs,
    *,
    value: Value = "knapsack",
    min_generations: ArrayLike = 2,
    max_generations: ArrayLike = 128,
    last_rates: ArrayLike | None = None,
) -> Explanation:
    """
    Explain an allocation, whichever rule it came from.

    Args:
        allocation ([`Allocation`]): What to explain.
        success_rates (`np.ndarray` of shape `(P,)` or [`BetaBeliefs`]): What was known about the prompts.
        value ([`~trl_knapsack.allocation.values.Value`], *optional*, defaults to `"knapsack"`):
            Values are compared in its units. The paper's rule shares out by it, too, where it is a name or a
            [`MixedGroupValue`]; beside any other value, it is the rule as published, with `"knapsack"`.
        min_generations (`int` or `(P,)`, *optional*, defaults to 2): As in [`~trl_knapsack.allocation.allocate`].
        max_generations (`int` or `(P,)`, *optional*, defaults to 128): As in [`~trl_knapsack.allocation.allocate`].
        last_rates (`(P,)`, *optional*):
            Success rates of the last visit, which the paper's rule goes by. By default the rates, or the beliefs' means.

    Returns:
        [`Explanation`]

    Raises:
        `ValueError`: if an argument is not valid.

    Example:

    ```python
    >>> from trl_knapsack.allocation import allocate, explain

    >>> rates = [0.0, 0.1, 0.4, 0.9, 1.0]
    >>> explain(allocate(rates, budget=40), rates)
    success rate   prompts  rollouts   least    mean    most    last gain   value
    0                    1         2       2     2.0       2     0.00e+00    0.0%
    0.05 - 0.10          1        24      24    24.0      24     7.18e-04   34.0%
    0.20 - 0.40          1         9       9     9.0       9     1.02e-03   64.9%
    0.90 - 0.95          1         3       3     3.0       3     8.10e-04    1.1%
    1                    1         2       2     2.0       2     0.00e+00    0.0%
    value 0.21948: 113.9% of uniform, 100.0% of the paper's rule, 100.0% of the bound; one more rollout adds 6.64e-04
    ```
    """
    known = check_rates(success_rates)
    rates = _means(known)
    counts = allocation.counts
    budget, low, high = check_budget(len(counts), int(counts.sum()), min_generations, max_generations, least_bound=0)
    values, next_gains = judge(success_rates, counts, value)
    _, last_gains = judge(success_rates, np.maximum(counts - 1, 0), value)
    visited = rates if last_rates is None else _means(check_rates(last_rates))
    # Any other value is made for these prompts in this order, and the rule shares out among some of them at a time.
    paper = PaperRule(value if isinstance(value, str | MixedGroupValue) else "knapsack")
    rules = {"uniform": equal_shares(low, high, budget), "paper": paper.share(visited, budget, low, high)}
    totals = {name: float(expected_values(success_rates, other, value).sum()) for name, other in rules.items()}
    totals |= {"allocation": float(values.sum()), "bound": allocation.upper_bound}
    return Explanation(allocation, rates, values, last_gains, next_gains, totals)


def _means(known: np.ndarray | BetaBeliefs) -> np.ndarray:
    """Rates, or the means of beliefs, `(P,)`."""
    return known.mean if isinstance(known, BetaBeliefs) else known


def _bubbles(axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """A scatter plot in which prompts at one point show as one larger dot."""
    points, prompts = np.unique(np.column_stack([x, y]), axis=0, return_counts=True)
    axes.scatter(*points.T, s=16 * np.sqrt(prompts), alpha=0.6, color=color, edgecolors="none")


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"

"""What happened in a run: a summary, plots, and the HTML report."""

from .plots import (
    PLOTS,
    plot_budgets,
    plot_calibration,
    plot_counts,
    plot_effective_gradient_ratio,
    plot_prompts,
    plot_transitions,
)
from .report import write_report


__all__ = [
    "PLOTS",
    "plot_budgets",
    "plot_calibration",
    "plot_counts",
    "plot_effective_gradient_ratio",
    "plot_prompts",
    "plot_transitions",
    "write_report",
]

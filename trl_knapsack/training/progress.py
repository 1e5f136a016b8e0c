"""The progress bar, with one line of what matters in place of all metrics."""

import shutil
import sys
from collections.abc import Callable
from datetime import timedelta

import numpy as np
from transformers import ProgressCallback

from ..reporting.summary import budgets_by_rate
from ..tracking.records import RolloutRecord


_BARS = "▁▂▃▄▅▆▇█"


class KnapsackProgressCallback(ProgressCallback):
    """
    transformers' progress bar. Each time metrics are logged, it writes one line with the success rate, the effective
    gradient ratio, the smallest and largest budget, and the newest batch's mean budgets by believed success rate, from 0 at
    the left to 1. All metrics still go where `report_to` says.

    [`KnapsackGRPOTrainer`] puts it in the place of transformers' own where output is a terminal. To have it elsewhere too, in
    a log file for example:

    ```python
    trainer.remove_callback(ProgressCallback)  # of transformers, or this one
    trainer.add_callback(KnapsackProgressCallback(lambda: trainer.success_rate_callback.last_record))
    ```

    Args:
        last_record (`Callable[[], RolloutRecord | None]`): The newest generation batch.
    """

    def __init__(self, last_record: Callable[[], RolloutRecord | None]):
        super().__init__()
        self.last_record = last_record

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "train_runtime" in logs:
            line = f"step {state.global_step:>5}   done in {timedelta(seconds=round(logs['train_runtime']))}"
        elif "knapsack/generations/max" in logs:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            line = progress_line(state.global_step, logs, self.last_record(), width)
        else:  # of an evaluation
            super().on_log(args, state, control, logs=logs, **kwargs)
            return
        self.training_bar.write(line)


def progress_line(
    step: int, logs: dict[str, float | None], record: RolloutRecord | None, width: int | None = None
) -> str:
    """
    What is written of the metrics `logs`, and of the newest generation batch. In a terminal of `width` columns, the least
    useful parts are left out until the line fits.

    ```txt
    step   120   success rate 0.640   effective gradient ratio 0.42   generations 2 to 35   0 ▁▅█▆▄▂▂▁▁▁ 1
    ```
    """
    rate = logs["knapsack/success_rate"]  # None if no completion had a reward
    parts = [
        f"step {step:>5}",
        f"success rate {'-' if rate is None else f'{rate:.3f}'}",
        f"effective gradient ratio {logs['knapsack/effective_gradient_ratio']:.2f}",
        f"generations {logs['knapsack/generations/min']:.0f} to {logs['knapsack/generations/max']:.0f}",
    ]
    if record is not None:
        parts.append(f"0 {budget_bars(record)} 1")
    for least in (parts[3], parts[2]):
        if width is not None and len("   ".join(parts)) > width:
            parts.remove(least)
    return "   ".join(parts)


def budget_bars(record: RolloutRecord, bins: int = 10) -> str:
    """Mean budget of the prompts in each tenth of believed success rates, as bars; a space where there is none."""
    prompts, means = budgets_by_rate(record.evidence.beliefs.mean, record.allocation.counts, bins)
    heights = np.ceil(means / means.max() * len(_BARS)).astype(int)
    return "".join(_BARS[h - 1] if n else " " for h, n in zip(heights, prompts, strict=True))

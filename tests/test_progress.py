"""The line that is written beside the progress bar."""

import os
import pty
import re
import subprocess
import sys
import textwrap

import numpy as np
from histories import record_by_hand

from trl_knapsack.training.progress import budget_bars, progress_line


LOGS = {
    "knapsack/success_rate": 0.64,
    "knapsack/effective_gradient_ratio": 0.42,
    "knapsack/generations/min": 2.0,
    "knapsack/generations/max": 35.0,
}


def test_a_line_by_hand():
    line = "step   120   success rate 0.640   effective gradient ratio 0.42   generations 2 to 35"
    assert progress_line(120, LOGS, None) == line
    assert "success rate -   " in progress_line(1, LOGS | {"knapsack/success_rate": None}, None)


def test_a_narrow_terminal_gets_what_matters_most():
    record = record_by_hand()
    whole = progress_line(120, LOGS, record)
    assert progress_line(120, LOGS, record, width=len(whole)) == whole
    bars = whole[-14:]
    assert (
        progress_line(120, LOGS, record, 80)
        == f"step   120   success rate 0.640   effective gradient ratio 0.42   {bars}"
    )
    assert progress_line(120, LOGS, record, 60) == f"step   120   success rate 0.640   {bars}"


def test_bars_are_mean_budgets_by_believed_rate():
    record = record_by_hand()
    bars = budget_bars(record)
    rates = record.evidence.alpha / (record.evidence.alpha + record.evidence.beta)
    places = np.minimum((10 * rates).astype(int), 9)
    assert len(bars) == 10
    assert [i for i, bar in enumerate(bars) if bar != " "] == sorted(set(places))
    means = {i: record.allocation.counts[places == i].mean() for i in set(places)}
    highest = max(means, key=means.get)
    assert bars[highest] == "█"
    order = sorted(means, key=means.get)
    assert [bars[i] for i in order] == sorted(bars[i] for i in order)


def test_it_is_there_where_output_is_a_terminal(model, tmp_path):
    script = textwrap.dedent(f"""
        import tiny
        from runs import options
        from trl_knapsack import KnapsackGRPOConfig, KnapsackGRPOTrainer
        args = KnapsackGRPOConfig(**options({str(tmp_path)!r}, max_steps=2, disable_tqdm=False))
        trainer = KnapsackGRPOTrainer({model!r}, tiny.digit_reward, args, tiny.prompts())
        print([type(callback).__name__ for callback in trainer.callback_handler.callbacks])
        trainer.train()
    """)
    command = [sys.executable, "-c", script]
    plain = subprocess.run(command, cwd=os.path.dirname(__file__), capture_output=True, text=True, timeout=120)
    assert "ProgressCallback" in plain.stdout and "KnapsackProgressCallback" not in plain.stdout
    assert "knapsack/success_rate" in plain.stdout  # transformers' own line, with every metric

    ours, theirs = pty.openpty()
    run = subprocess.run(command, cwd=os.path.dirname(__file__), stdout=subprocess.PIPE, stderr=theirs, timeout=120)
    os.close(theirs)
    os.close(ours)
    assert "KnapsackProgressCallback" in run.stdout.decode()
    assert "step     2   success rate 0." in run.stdout.decode()
    assert re.search(r"^step     2   done in 0:00:\d\d$", run.stdout.decode(), re.MULTILINE)
    assert "train_runtime" not in run.stdout.decode()

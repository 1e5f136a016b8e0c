"""A run that is under way, on one screen: `inspect --watch`."""

import io
import math
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidInputError, MissingFileError
from ...reporting.summary import budgets_by_rate, rate_bins
from ...tracking.history import HISTORY_FILE, HistoryReader, RolloutHistory
from ...tracking.run_holder import RunHolder
from ...tracking.state_file import did_you_mean
from ...tracking.text import printable


if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

SECONDS = 1.0  # between two looks at the run's folder
TALL = (
    34  # lines that have room for tenths of believed success rates, and for ten batches; fifths where there are fewer
)
NEWEST = 10  # batches whose budgets are averaged
NARROWEST = 60  # columns


def watch(folder: Path, stuck_after: int) -> int:
    """
    Show a run until it ends, or until Ctrl-C. If output is not a terminal, or no run is under way, show it once and say so.

    Args:
        folder (`Path`): The run's folder.
        stuck_after (`int`): Scored rollouts without any success after which a prompt is stuck.

    Returns:
        `int`: the exit code: 1 if there is nothing to show.

    Raises:
        `FileNotFoundError`: if there is no such folder.
        `ValueError`: if it is a file, or if the history can't be read.
    """
    from rich.console import Console
    from rich.live import Live

    if folder.is_file():
        raise InvalidInputError(f"{folder} is a file; --watch follows a run, so name its folder.")
    if not folder.is_dir():
        remedy = did_you_mean(folder, "name the output_dir of a run that has begun to train")
        raise MissingFileError(f"{folder} does not exist; {remedy}")
    holder = RunHolder.read(folder)
    begun = (folder / HISTORY_FILE).is_file()
    under_way = holder is not None and not holder.is_gone()
    if not under_way or not sys.stdout.isatty():
        why = "output is not a terminal, so the run is" if under_way else f"no run is under way in {folder}; it is"
        if not begun:
            print(f"trl-knapsack inspect: {folder} has no record of a generation batch yet.", file=sys.stderr)
            return 1
        print(f"trl-knapsack inspect: {why} shown once.", file=sys.stderr)
        history = HistoryReader(folder).read()
        written = io.StringIO()
        console = Console(file=None if sys.stdout.isatty() else written, width=_width())
        rows = console.height - 3 if sys.stdout.isatty() else 100  # the sentence above, and the shell's prompt below
        console.print(screen(folder, history, holder if under_way else None, stuck_after, _width(), rows))
        if not sys.stdout.isatty():
            print(*(line.rstrip() for line in written.getvalue().splitlines()), sep="\n")
        return 0

    console, reader, history = Console(), None, None
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                now = RunHolder.read(folder)
                over = now != holder or holder.is_gone()  # looked at before the file, so that nothing is missed
                if reader is None and (folder / HISTORY_FILE).is_file():
                    reader = HistoryReader(folder)
                if reader is not None:
                    try:
                        history = reader.read()
                    except FileNotFoundError as error:
                        raise MissingFileError(f"{error.filename} has been removed while it was watched.") from error
                end = None
                if over:
                    end = "The run has ended." if now != holder else f"The run was killed: {holder} is gone."
                height = console.height - 1  # a screen that is full would scroll
                live.update(screen(folder, history, holder, stuck_after, console.width, height, end), refresh=True)
                if over:
                    return 0
                time.sleep(SECONDS)
    except KeyboardInterrupt:  # how a reader ends it, and no mistake
        return 0


def screen(
    folder: Path,
    history: RolloutHistory | None,
    holder: RunHolder | None,
    stuck_after: int,
    width: int,
    rows: int,
    end: str | None = None,
) -> "Group":
    """
    The run so far, for rich to print.

    Args:
        folder (`Path`): The run's folder.
        history ([`RolloutHistory`], *optional*): What it has recorded; None before its first batch.
        holder ([`RunHolder`], *optional*): The process that trains; None if none does.
        stuck_after (`int`): Scored rollouts without any success after which a prompt is stuck.
        width, rows (`int`): Of the terminal. As many of the last batches are shown as have room.
        end (`str`, *optional*): How the run ended.
    """
    from rich.console import Group
    from rich.text import Text

    from ...reporting.summary import of_history

    width = max(width, NARROWEST)
    rule = "" if history is None or not len(history) else printable(history.allocation[-1], 20)
    parts: list[Any] = [Text(f"{printable(str(folder), width - 2 - len(rule))}  {rule}".rstrip(), style="bold")]
    done = holder.step if holder is not None else 0
    if history is not None and len(history):
        done = max(done, int(history.step[-1]))
    parts.append(Text(progress(done, holder, history, width, running=end is None)))
    if holder is not None and holder.max_steps > 0:
        filled = min(width, width * done // holder.max_steps)
        parts.append(Text.assemble(("━" * filled, "green"), ("─" * (width - filled), "dim")))
    if history is None or not len(history):
        parts.append(Text(end or "Waiting for the first generation batch."))
        return Group(*parts)
    summary = of_history(history, stuck_after)
    bins = 10 if rows >= TALL else 5
    beliefs = belief_table(history, summary.believed_rate, width, bins)
    stuck = Text(summary.stuck_sentence())
    parts += [Text(""), beliefs, stuck, Text("")]
    # heads are three lines each; a narrow terminal has the sentence in two; one line is left for how the run ends
    room = rows - (len(parts) - 1) - (3 + bins) - (stuck.cell_len > width) - 3 - 1
    parts.append(batch_table(history, max(1, min(room, NEWEST))))
    if end is not None:
        parts.append(Text(end))
    return Group(*parts)


def progress(done: int, holder: RunHolder | None, history: RolloutHistory | None, width: int, running: bool) -> str:
    """
    Steps so far, the time left at the current pace, epochs, rollouts and prompts: as many of these as fit.

    Args:
        done (`int`): Optimizer steps so far.
        holder ([`RunHolder`], *optional*): The process that trains.
        history ([`RolloutHistory`], *optional*): What it has recorded.
        width (`int`): Columns of the terminal.
        running (`bool`): Whether it goes on.
    """
    most = holder.max_steps if holder is not None else 0
    said = [f"step {done:,} of {most:,}" if most else f"step {done:,}"]
    if running and holder is not None and most >= done > holder.step:
        spent = (datetime.now() - holder.since).total_seconds()
        left = max(0, round(spent / (done - holder.step) * (most - done)))
        said.append(f"{timedelta(seconds=left)} left")
    if history is not None and len(history):
        said.append(f"epoch {history.epoch[-1]:.2f}")
        said.append(f"{history.counts.sum():,} rollouts")
        said.append(f"{len(history.keys):,} prompts")
    while len("   ".join(said)) > width:
        said.pop()
    return "   ".join(said)


def belief_table(history: RolloutHistory, believed_rate: np.ndarray, width: int, bins: int) -> "Table":
    """
    Prompts by believed success rate, and the budgets that the latest batches gave them.

    Args:
        history ([`RolloutHistory`]): At least one batch.
        believed_rate (`(K,)`): What is believed of each prompt now.
        width (`int`): Columns of the terminal.
        bins (`int`): Rows of the table.
    """
    table = _table(
        "believed\nsuccess rate", "\nprompts", "", f"mean budget,\nlast {min(NEWEST, len(history))} batches", ""
    )
    table.columns[2].justify = table.columns[4].justify = "left"
    longest = min(30, (width - 44) // 2)  # numbers and gaps take 44 columns

    prompts = np.bincount(rate_bins(believed_rate, bins), minlength=bins)
    new = (history.batch >= len(history) - NEWEST) & history.decided  # a look's budget is yet to come
    groups, budgets = budgets_by_rate(history.believed_rate[new], history.generations[new], bins)
    for i in range(bins):
        known = f"{prompts[i]:,}", bar(prompts[i], prompts.max(), longest)
        given = (f"{budgets[i]:.1f}", bar(budgets[i], budgets.max(), longest)) if groups[i] else ("-", "")
        table.add_row(f"{i / bins:.1f} - {(i + 1) / bins:.1f}", *known, *given)
    return table


def batch_table(history: RolloutHistory, number: int) -> "Table":
    """The last `number` batches, the newest below."""
    table = _table(
        "\nstep", "success\nrate", "effective\ngradient ratio", "smallest\nbudget", "largest\nbudget", "\ntokens"
    )
    scored = ~np.isnan(history.success_rate)
    rate = np.nan_to_num(history.success_rate)
    rates = history.per_batch(rate) / np.maximum(history.per_batch(scored), 1)
    scored_batches = history.per_batch(scored) > 0
    tokens = history.per_batch(history.tokens)
    for t in range(max(0, len(history) - number), len(history)):
        here = history.batch == t
        decided = here & history.decided
        counts = history.generations[decided if decided.any() else here]
        table.add_row(
            f"{history.step[t]:,}",
            f"{rates[t]:.3f}" if scored_batches[t] else "-",
            f"{history.effective_gradient_ratio[t]:.2f}",
            f"{counts.min():,}",
            f"{counts.max():,}",
            f"{tokens[t]:,.0f}",
        )
    return table


def bar(value: float, most: float, longest: int) -> str:
    """`value` as a bar of at most `longest` characters; something is there for whatever is not 0."""
    return "█" * min(longest, math.ceil(value / most * longest)) if value > 0 else ""


def _table(*heads: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _width() -> int:
    import shutil

    return max(NARROWEST, shutil.get_terminal_size((100, 24)).columns)

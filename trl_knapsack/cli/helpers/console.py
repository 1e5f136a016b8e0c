"""What the commands print: tables, which rich lays out, and JSON for machines."""

import io
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any


GAP = 2  # between columns
LEAST = 16  # what a text is cut to before columns are left out
MOST = 80  # and what it is cut to anywhere


def print_text(text: str) -> None:
    """Print sentences: in a terminal, lines break between words; in a pipe, they stay as they are."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in text.split("\n"))
    print(text)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], least: Sequence[str] = ()) -> None:
    """
    Print a table: in a terminal, drawn and no wider than it; in a pipe, plain aligned text with one line per row.

    If the terminal is too narrow, first heads take two lines, then texts are shortened, then the least useful columns are
    left out. Numbers are never cut.

    Args:
        title (`str`): Said above it.
        columns (`Sequence[str]` of length `C`): Heads.
        rows (`Sequence[Sequence]`, each of length `C`): Cells. Numbers and percentages are aligned to the right.
        least (`Sequence[str]`, *optional*): Heads of columns that may be left out, the first one first.
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = sys.stdout.isatty()
    written = io.StringIO()
    console = Console(file=None if drawn else written)
    cells = [[shown(cell) for cell in row] for row in rows]
    is_text = [
        not any(isinstance(row[c], int | float) or str(row[c]).endswith("%") for row in rows)
        for c in range(len(columns))
    ]
    body = [max((cell_len(row[c]) for row in cells), default=0) for c in range(len(columns))]
    one_line = [max(cell_len(head), own) for head, own in zip(columns, body, strict=True)]
    two_lines = [max(*map(cell_len, head.split()), own) for head, own in zip(columns, body, strict=True)]
    leave_out = [columns.index(head) for head in least]
    kept, widths = (
        fit(one_line, two_lines, is_text, console.width, leave_out) if drawn else (range(len(columns)), one_line)
    )

    if drawn:
        table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), show_edge=False, header_style="bold")
    else:
        table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False)
        console.width = sum(widths) + GAP * len(widths)
    for c in kept:
        table.add_column(columns[c], justify="left" if is_text[c] else "right", width=widths[c])
    for row in cells:
        cut = (
            row[c] if cell_len(row[c]) <= widths[c] else set_cell_size(row[c], widths[c] - 1).rstrip() + "…"
            for c in kept
        )
        table.add_row(*map(Text, cut))  # as text, in which brackets are no markup
    if drawn:
        console.print(Text(title, style="bold"), table, "", sep="\n")
    else:
        console.print(table)
        print(title, *(line.rstrip() for line in written.getvalue().splitlines()), "", sep="\n")


def fit(
    one_line: Sequence[int], two_lines: Sequence[int], is_text: Sequence[bool], width: int, leave_out: Sequence[int]
) -> tuple[list[int], list[int]]:
    """
    Columns and their widths in a terminal.

    Args:
        one_line, two_lines (`Sequence[int]` of length `C`): Width of each column, with its head on one line or over two.
        is_text (`Sequence[bool]` of length `C`): Columns that may be cut.
        width (`int`): Of the terminal.
        leave_out (`Sequence[int]`): Columns that may be left out, the first one first.

    Returns:
        `tuple[list[int], list[int]]`: the columns that are shown, and the widths of all.
    """
    kept, widths = list(range(len(one_line))), list(two_lines)
    for dropped in (None, *leave_out):
        kept = [c for c in kept if c != dropped]
        for needed in (one_line, two_lines):
            room = width - GAP * len(kept) - sum(needed[c] for c in kept if not is_text[c])
            texts = [needed[c] for c in kept if is_text[c]]
            level = max([1, *texts])
            while level > 1 and sum(min(text, level) for text in texts) > room:
                level -= 1
            widths = [min(own, level) if text else own for own, text in zip(needed, is_text, strict=True)]
            if sum(widths[c] for c in kept) + GAP * len(kept) <= width and level >= max(texts, default=1):
                return kept, widths
        if sum(widths[c] for c in kept) + GAP * len(kept) <= width and level >= LEAST:
            return kept, widths
    return kept, widths


def shown(cell: Any) -> str:
    """A cell as text: four digits of a number, a dash for what is not known; text on one line, escaped and cut."""
    from ...tracking.text import printable

    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return printable(str(cell), MOST)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"


def print_json(value: Any) -> None:
    """Print a value as JSON; arrays become lists, what is not a finite number null, and escapes of a terminal `\\u....`."""
    text = json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False)
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def percent(share: float) -> str:
    """A share as a percentage with one digit, a dash for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"

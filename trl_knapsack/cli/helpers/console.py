"""What the commands print: tables, which rich draws in a terminal, and JSON for machines."""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """
    Print a table: drawn by rich in a terminal, aligned plain text in a pipe.

    Args:
        title (`str`): Said above it.
        columns (`Sequence[str]` of length `C`): Heads.
        rows (`Sequence[Sequence]`, each of length `C`): Cells. Numbers and percentages are aligned to the right.
    """
    right = [
        any(isinstance(row[c], int | float) or str(row[c]).endswith("%") for row in rows) for c in range(len(columns))
    ]
    cells = [[shown(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
        for name, is_number in zip(columns, right, strict=True):
            table.add_column(name, justify="right" if is_number else "left", overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))  # as text, in which brackets are no markup
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(title)
    for row in [columns, *cells]:
        aligned = (
            f"{cell:>{width}}" if is_number else f"{cell:<{width}}"
            for cell, width, is_number in zip(row, widths, right, strict=True)
        )
        print("  ".join(aligned).rstrip())
    print()


def shown(cell: Any) -> str:
    """A cell as text: four digits of a number, a dash for what is not known."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return " ".join(str(cell).split())
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"


def print_json(value: Any) -> None:
    """Print a value as JSON; arrays become lists, and what is not a finite number null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False))


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

"""Tables as a notebook shows them."""

from collections.abc import Sequence
from html import escape


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text as HTML, in which no text is markup."""
    lines = [
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in [("th", columns), *(("td", row) for row in rows)]
    ]
    return "<table>" + "".join(lines) + "</table>"

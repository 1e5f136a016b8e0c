"""Tables as a notebook shows them."""

from collections.abc import Iterable, Sequence
from html import escape


def html_table(header: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "", note: str = "") -> str:
    """
    A table as HTML, in which no text is markup. Without a header, the first cell of each row is its head.

    Args:
        header (`Sequence` of length `C`, or empty): Heads of the columns.
        rows (`Iterable[Sequence]`, each of length `C`): Cells, shown by `str`.
        caption, note (`str`, *optional*): Text above and below.
    """
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    below = f"<p>{escape(note)}</p>" if note else ""
    lines = [_line(header, heads=len(header))] if header else []
    lines += [_line(row, heads=0 if header else 1) for row in rows]
    return f"<table>{above}{''.join(lines)}</table>{below}"


def _line(cells: Sequence[object], heads: int) -> str:
    tags = ["th"] * heads + ["td"] * (len(cells) - heads)
    return (
        "<tr>"
        + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for tag, cell in zip(tags, cells, strict=True))
        + "</tr>"
    )

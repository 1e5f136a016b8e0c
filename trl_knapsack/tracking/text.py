"""Text from outside, made safe to show: keys and prompts of a dataset, a line of a file, what a stranger published."""


def printable(text: str, width: int | None = None) -> str:
    r"""
    `text` on one line, as it is safe to show in a terminal, a log or an error.

    Whatever Python does not call printable (`str.isprintable`: line ends, escapes, NUL, bidirectional and zero-width
    marks, lone surrogates, private characters) is shown as the escape that Python would write. Letters of all languages,
    emoji and a backslash stay.

    Args:
        text (`str`): Anything; anything but text is converted by `str`.
        width (`int`, *optional*): Most characters of the answer; longer text ends in `…`. Only so much of it is looked at,
            so a text of any length costs the same.

    Example:

    ```python
    >>> from trl_knapsack.tracking.text import printable

    >>> print(printable("2 + 2 = ?\n\x1b[31mred\u202e"))
    2 + 2 = ?\n\x1b[31mred\u202e
    >>> printable("a very long prompt", 8)
    'a very …'

    ```
    """
    text = str(text)
    if width is None:
        return text if text.isprintable() else "".join(map(_shown, text))
    head = text[: width + 1]  # an escape only makes it longer
    shown = head if head.isprintable() else "".join(map(_shown, head))
    if len(shown) <= width:
        return shown
    return shown[: max(width - 1, 0)] + "…"[:width]


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")

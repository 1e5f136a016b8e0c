import doctest
import time

import pytest

from trl_knapsack.tracking import text
from trl_knapsack.tracking.text import printable


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("2 + 2 = ?", "2 + 2 = ?"),
        ("π ≠ 3, 你好, 🦜, naïve", "π ≠ 3, 你好, 🦜, naïve"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),  # sets a terminal's title, wipes it
        ("nul\0", r"nul\x00"),
        ("\u202eevil\u2066\u200b\ufeff", r"\u202eevil\u2066\u200b\ufeff"),  # right to left, zero width
        ("\x9b31m\x85\u2028", r"\x9b31m\x85\u2028"),  # escapes of one byte, other line ends
        ("lone \ud800", r"lone \ud800"),
        ("\U000e0041", r"\U000e0041"),  # an invisible tag
        (r"\frac{1}{2}", r"\frac{1}{2}"),  # LaTeX stays readable
        (7, "7"),
    ],
)
def test_what_is_not_ours_is_shown_on_one_line(given, shown):
    assert printable(given) == shown
    assert printable(given).isprintable()


def test_every_character_is_safe():
    for code in range(0x110000):
        assert printable(chr(code)).isprintable()


@pytest.mark.parametrize("width", [0, 1, 2, 5, 8, 9, 10, 11])
def test_a_width_is_kept(width):
    for given in ("0123456789", "\x1b\x1b\x1b", "0123\n", ""):
        shown = printable(given, width)
        assert len(shown) <= width
        if len(printable(given)) <= width:
            assert shown == printable(given)
        elif width:
            assert shown == printable(given)[: width - 1] + "…"


def test_ten_megabytes_cost_no_more_than_a_line():
    text = "\x1b" * 10_000_000
    start = time.perf_counter()
    assert len(printable(text, 60)) == 60
    assert time.perf_counter() - start < 0.1


def test_the_example():
    assert doctest.testmod(text).failed == 0

"""Every snippet of the allocator's page runs, and prints what the page says."""

import contextlib
import io
import os
import re
from pathlib import Path

import pytest


PAGE = Path(__file__).resolve().parents[2] / "docs" / "allocator.md"


def test_snippets_of_the_page(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    names = {}
    compared = 0
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(block, names)
        said = [re.search(r"#\s+(.*)$", line) for line in block.splitlines() if line.startswith("print(")]
        for line, comment in zip(printed.getvalue().splitlines(), said, strict=False):
            if comment:
                assert line in comment[1]
                compared += 1
    assert compared == 8
    assert str(names["explanation"]) in text
    assert os.path.getsize("allocation.png") > 10_000

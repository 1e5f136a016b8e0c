"""The notebook: as it is committed, and run again from top to bottom."""

import re
from pathlib import Path

import nbformat
import pytest


NOTEBOOK = Path(__file__).parent.parent / "examples" / "knapsack_grpo.ipynb"


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def pictures(cell) -> int:
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def test_the_committed_outputs_are_those_of_one_run_from_top_to_bottom():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert all(output.output_type in ("stream", "display_data") for output in cell.outputs)
        assert all(output.name == "stdout" for output in cell.outputs if output.output_type == "stream")
        assert pictures(cell) == cell.source.count("plt.show()") + cell.source.count("display(")
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 500_000
    assert "site-packages" not in text
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", text)
    assert re.findall(r"(?<![\w/.<])/\w+/", without_pictures) == []  # no absolute path of any machine


@pytest.mark.slow
def test_it_runs_from_top_to_bottom():
    """What is printed before the training, and how many pictures there are, is as committed; the numbers are this machine's."""
    from nbclient import NotebookClient

    committed = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(fresh):
        cell.outputs = []
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(fresh, timeout=1200, kernel_name="python3", resources=folder).execute()
    for before, after in zip(code_cells(committed), code_cells(fresh), strict=True):
        assert pictures(after) == pictures(before)
        if "allocate(" in before.source:
            assert printed(after) == printed(before)
    ratios = [line.split() for cell in code_cells(fresh) for line in printed(cell).splitlines() if "ratio" in line]
    uniform, posterior = (float(line[4]) for line in ratios)
    assert posterior > uniform > 0

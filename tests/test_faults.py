"""The harness of faults: its short profile passes, and the page shows the results of the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
FAULTS = ROOT / "benchmarks" / "faults"


@pytest.mark.slow
def test_the_short_profile_ends_well(tmp_path):
    output = tmp_path / "short.json"
    command = [sys.executable, str(FAULTS / "run.py"), "--profile", "short", "--limit", "240", "--output", str(output)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outcomes = json.loads(output.read_text())["outcomes"]
    assert sum(outcome["kills"] for outcome in outcomes) >= 5
    assert {outcome["scenario"] for outcome in outcomes} >= {"cut checkpoint", "full disk", "hostile file", "long run"}


@pytest.fixture(scope="module")
def results():
    return json.loads((FAULTS / "results" / "long.json").read_text())


def test_the_page_shows_the_results(results, monkeypatch):
    monkeypatch.syspath_prepend(str(FAULTS))
    from table import heading, table

    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    shown = page.split("<!-- results -->")[1].split("<!-- end of results -->")[0]
    assert shown.strip() == f"{heading(results)}\n\n{table(results['outcomes'])}"


def test_what_the_page_claims_of_them(results):
    ours = [outcome for outcome in results["outcomes"] if outcome["trainer"] == "knapsack"]
    assert sum(outcome["kills"] for outcome in ours) >= 50
    killed = [outcome for outcome in ours if outcome["scenario"].startswith("killed")]
    assert {outcome["verdict"] for outcome in killed} == {"equal"}
    assert not [outcome for outcome in ours if outcome["verdict"].isupper()]

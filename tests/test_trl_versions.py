"""One range of supported TRL versions, said in one way everywhere; an older one is really refused."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trl
from packaging.requirements import Requirement

from trl_knapsack.training.seams import OLDEST_TRL, WORKING_TRL


ROOT = Path(__file__).parent.parent


def test_the_declared_range_is_the_one_that_is_tested():
    declared = re.search(r'"(trl[<>=][^"]+)"', (ROOT / "setup.py").read_text())[1]
    assert declared == WORKING_TRL
    working = Requirement(WORKING_TRL).specifier
    assert working.contains(trl.__version__)
    for file, pattern in (
        (".ci/run", r"make test-trl TRL=([\d.]+)"),
        ("Makefile", r"TRL \?= ([\d.]+)"),
    ):
        oldest = re.search(pattern, (ROOT / file).read_text())[1]
        assert oldest == f"{OLDEST_TRL}.0", file
    newest = re.search(r"trl==([\d.]+)", (ROOT / "constraints.txt").read_text())[1]
    major, minor, _ = newest.split(".")
    assert working.contains(newest)
    assert not working.contains(f"{major}.{int(minor) + 1}.0")  # nobody has tried it


@pytest.mark.slow
def test_an_older_trl_is_refused(tmp_path):
    """The last TRL before the range, installed for real."""
    target = tmp_path / "trl"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), "trl==1.5.1"]
    subprocess.run(install, check=True, timeout=300)
    script = "from trl_knapsack import KnapsackGRPOTrainer; KnapsackGRPOTrainer(model='not reached')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    sentence = f"trl_knapsack.errors.MissingDependencyError: trl 1.5.1 is too old for trl_knapsack; install a TRL that works: {WORKING_TRL}."
    assert done.stderr.strip().splitlines()[-1] == sentence

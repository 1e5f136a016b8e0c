"""What GitHub runs: files that can be read, commands that exist, and the canary's report, run with a `gh` of our own."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parent.parent
WORKFLOWS = {path.stem: path for path in (ROOT / ".github" / "workflows").glob("*.yml")}
GH = """#!/bin/bash
echo "$@" >> calls
[ "$2" = list ] && echo "$OPEN_ISSUE"
exit 0
"""


def load(name: str) -> dict:
    workflow = yaml.safe_load(WORKFLOWS[name].read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in workflow.items()}  # YAML 1.1 takes `on` for true


def steps(name: str) -> list[dict]:
    return [step for job in load(name)["jobs"].values() for step in job["steps"]]


def commands(name: str) -> list[str]:
    return [step["run"] for step in steps(name) if "run" in step]


def test_when_they_run():
    assert set(WORKFLOWS) == {"tests", "canary", "release"}
    assert load("tests")["on"] == {"pull_request": None, "push": {"branches": ["main"]}}
    assert set(load("canary")["on"]) == {"schedule", "workflow_dispatch"}
    assert load("release")["on"] == {"push": {"tags": ["v*"]}}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_command_is_there(name):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(name):
        shell = re.sub(r"\$\{\{.*?\}\}", "x", command)
        subprocess.run(["bash", "-n"], input=shell, text=True, check=True)
        assert set(re.findall(r"^make ([\w-]+)", command, re.MULTILINE)) <= targets
    for step in steps(name):
        assert ("run" in step) != ("uses" in step)
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    assert load(name)["permissions"] == {"contents": "read"}


def test_a_pull_request_runs_what_ci_runs_first():
    first = re.search(r"^make .*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[0]
    assert commands("tests") == [first]


@pytest.mark.parametrize("open_issue", ["", "17"])
def test_the_canary_reports_once(tmp_path, open_issue):
    """A new issue, or a comment on the one that is open, with what failed and with which versions."""
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    (tmp_path / "versions.txt").write_text("trl 9.9.9\n")
    (tmp_path / "tests.txt").write_text("....F\nFAILED tests/test_a.py::test_b - Asse...\n1 failed, 4 passed in 1s\n")
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "OPEN_ISSUE": open_issue, "RUN": "https://run"}
    subprocess.run(["bash", "-e", "-c", commands("canary")[-1]], cwd=tmp_path, env=env, check=True)
    said = (tmp_path / "report.md").read_text()
    assert said.splitlines() == [
        "https://run", "```txt", "trl 9.9.9", "FAILED tests/test_a.py::test_b - Asse...", "1 failed, 4 passed in 1s", "```",
    ]  # fmt: skip
    asked, told = (tmp_path / "calls").read_text().splitlines()
    assert asked.startswith("issue list --state open")
    assert told.startswith(
        f"issue comment {open_issue} --body-file" if open_issue else "issue create --title The canary"
    )

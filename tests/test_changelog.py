"""One version everywhere, and a changelog that follows it."""

import re
from pathlib import Path

from packaging.version import Version

import trl_knapsack


ROOT = Path(__file__).parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_newest_entry_is_this_version():
    entries = re.findall(r"^## \[(\S+)\] - (?:\d{4}-\d\d-\d\d|unreleased)$", CHANGELOG, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^## ", CHANGELOG, re.MULTILINE)), "a heading is not `## [version] - date`"
    assert entries[0] == trl_knapsack.__version__
    assert entries == sorted(entries, key=Version, reverse=True)


def test_only_the_newest_entry_may_be_unreleased():
    assert "- unreleased" not in CHANGELOG.split("\n## ", 2)[-1] or CHANGELOG.count("\n## ") == 1


def test_every_change_is_of_a_kind():
    kinds = re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)
    assert kinds and set(kinds) <= KINDS


def test_the_citation_has_the_same_version():
    (version,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert version == trl_knapsack.__version__

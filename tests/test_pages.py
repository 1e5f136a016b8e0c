"""What the pages say is what the code does."""

import contextlib
import io
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from test_records import record_by_hand
from trl import GRPOConfig

from trl_knapsack import KnapsackGRPOConfig


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith("http"):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), link
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}, link


def test_the_allocator_snippet_prints_what_the_readme_says():
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import allocate" in b)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {})
    assert printed.getvalue().strip() == re.search(r"# (\[.*\])", block)[1]


def test_python_snippets_are_python():
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")


def test_every_option_is_in_the_readme_with_its_default():
    said = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", README.split("## Options")[1], re.MULTILINE))
    own = {f.name: f for f in fields(KnapsackGRPOConfig) if f.name not in {g.name for g in fields(GRPOConfig)}}
    assert said.keys() == own.keys()
    for name, field in own.items():
        default = field.default_factory() if field.default is MISSING else field.default
        if default is not None:  # what None stands for is said in words
            assert said[name].strip("`") == str(default).replace("posterior", '"posterior"'), name


def test_every_metric_is_described():
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    said = set()
    for cell in re.findall(r"^\| (`knapsack/[^|]*) \|", page, re.MULTILINE):
        first, *others = re.findall(r"`([^`]*)`", cell)
        said |= {first, *(first.rsplit("/", 1)[0] + other for other in others)}
    assert said == record_by_hand().metrics().keys()

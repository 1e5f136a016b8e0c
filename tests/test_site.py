"""The docs site, built as `make docs` builds it."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest


DOCS = Path(__file__).parent.parent / "docs"

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page loads, where its links lead, and the anchors in it."""

    def __init__(self, file: Path):
        super().__init__()
        self.loads, self.links, self.anchors = [], [], set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif "src" in attributes:
            self.loads.append(attributes["src"])
        elif tag == "link" and attributes.get("rel") not in ("canonical", "next", "prev", "index", "search"):
            self.loads.append(attributes["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(folder / "doctrees")]
    done = subprocess.run([*command, str(DOCS), str(folder / "html")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_every_page_is_there_and_in_the_navigation(site):
    reachable = {unquote(urlparse(link).path) for link in Page(site / "index.html").links}
    for page in DOCS.glob("*.md"):
        assert f"{page.stem}.html" in reachable or page.stem == "index", page


def test_it_opens_without_a_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("*.md")))
    for page in pages:
        for load in Page(page).loads:
            assert not urlparse(load).netloc, (page, load)
            assert load.startswith("data:") or (page.parent / unquote(urlparse(load).path)).is_file(), (page, load)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import\s+['\"]?http", style.read_text(encoding="utf-8")), style


def test_links_within_the_site_lead_somewhere(site):
    pages = {page: Page(page) for page in site.rglob("*.html")}
    for page, content in pages.items():
        for link in content.links:
            parts = urlparse(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), (page, link)
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (page, link)


def test_docstrings_became_html(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    assert "KnapsackGRPOTrainer" in text
    body = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    assert "```" not in body and not re.search(r"\[<code|\]\(http", body)

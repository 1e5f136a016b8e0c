"""What setup.py makes of the README for a package index, which has neither docs nor figures."""

import re
from pathlib import Path

import setuptools


ROOT = Path(__file__).parent.parent


def metadata(monkeypatch, repository: str) -> dict:
    """The arguments of `setup`, with the address of the repository."""
    called = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: called.update(arguments))
    code, replaced = re.subn(
        r'^REPOSITORY = ".*?"', f'REPOSITORY = "{repository}"', (ROOT / "setup.py").read_text(), flags=re.MULTILINE
    )
    assert replaced == 1
    exec(compile(code, "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    return called


def test_links_are_absolute_once_the_repository_has_an_address(monkeypatch):
    made = metadata(monkeypatch, "https://example.org/owner/name")
    links = re.findall(r"\]\(([^)]+)\)", made["long_description"])
    assert len(links) > 20
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", made["long_description"]):
        assert re.match(r"https://example\.org/owner/name/raw/v[^/]+/docs/figures/", image)
    assert made["project_urls"].keys() == {"Changelog", "Issues"}


def test_without_an_address_the_readme_is_as_it_is(monkeypatch):
    made = metadata(monkeypatch, "")
    assert made["long_description"] == (ROOT / "README.md").read_text(encoding="utf-8")
    assert not made["url"] and not made["project_urls"]

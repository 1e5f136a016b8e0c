import re
from html.parser import HTMLParser

import pytest
from histories import random_visits, write

from trl_knapsack.reporting import PLOTS, write_report


class Page(HTMLParser):
    """What a browser would make of it: elements with their attributes, and text by element."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "br", "img", "use", "path", "image"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if "svg" not in self.open and "style" not in self.open and data.strip():
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report(path, visits, **kwargs):
    write_report(write(path, visits), path / "new" / "report.html", **kwargs)
    return (path / "new" / "report.html").read_text(encoding="utf-8")


def test_the_report_says_what_the_history_says(tmp_path):
    visits = list(random_visits())
    page = Page(report(tmp_path, visits, title="My run", prompts={"p3": "What is 3?", "p4": [{"content": "And 4?"}]}))
    text = [data for _, data in page.text]
    tile = {text[i]: text[i + 1] for i in reversed(range(len(text) - 1))}  # the first of a name
    everything = [(key, *visit) for batch in visits for key, visit in batch.items()]
    mixed = [[0 < won < tried for won, tried in batch.values()] for batch in visits]
    tried = [[tried for _, tried in batch.values()] for batch in visits]
    assert text[0] == "My run" and "My run" in text[1:]  # tab and heading
    assert "Allocation posterior. Steps 1 to 30, 7.50 epochs, 30 generation batches." in text
    # four batches are an epoch, of which the first and the last are compared, every rollout alike
    ends = [
        sum(t for ts, ms in zip(tried[end], mixed[end], strict=True) for t, m in zip(ts, ms, strict=True) if m)
        / sum(map(sum, tried[end]))
        for end in (slice(0, 4), slice(-4, None), slice(None))
    ]
    behind = f"first and last epoch, {sum(map(sum, tried[:4]))} and {sum(map(sum, tried[-4:]))} rollouts"
    assert tile["Effective gradient ratio"] == f"{ends[0]:.2f} → {ends[1]:.2f}"
    assert f"{behind}; {ends[2]:.2f} over the run" in text
    rates = [[won / n for batch in visits[end] for won, n in batch.values()] for end in (slice(0, 4), slice(-4, None))]
    assert tile["Success rate of a prompt"] == " → ".join(f"{sum(own) / len(own):.2f}" for own in rates)
    assert tile["Rollouts"] == f"{sum(tried for _, _, tried in everything):,}"
    assert tile["Prompts"] == str(len({key for key, _, _ in everything}))
    assert tile["Largest budget"] == f"{max(tried for _, _, tried in everything)} generations"

    seen, decided = set(), 0
    for batch in visits:
        decided += sum(n for key, (_, n) in batch.items() if key in seen)
        seen |= batch.keys()
    share = decided / sum(n for _, _, n in everything)
    assert tile["Decided by knowledge"] == f"{share:.0%} of the rollouts" and 0 < share < 1

    first, last = {}, {}
    for key, won, n in everything:
        first.setdefault(key, won / n)
        last[key] = won / n
    cells = [data for tag, data in page.text if tag == "td"]
    for name, rates in (("At its first visit", first), ("At its last visit", last)):
        at = cells.index(name)
        never, always = (sum(p == q for p in rates.values()) / len(rates) for q in (0, 1))
        assert (cells[at + 1], cells[at + 5]) == (f"{never:.0%}", f"{always:.0%}")

    sums = {key: sum(n for k, _, n in everything if k == key) for key in first}
    dearest = max(sums, key=sums.get)
    at = cells.index(dearest) if dearest in cells else None
    codes = [data for tag, data in page.text if tag == "code"]
    assert codes[-10] == dearest and at is None  # keys are in <code>; the last table has ten rows
    shown = {"What is 3?", "And 4?"} & set(cells)
    assert shown == {t for k, t in (("p3", "What is 3?"), ("p4", "And 4?")) if k in codes} != set()


def test_the_headline_of_a_short_run_compares_tenths(tmp_path):
    """Less than two epochs: of 7 batches one at each end, with the rollouts behind it."""
    page = Page(report(tmp_path, [{f"p{step}": (step, 8)} for step in range(1, 8)]))
    text = [data for _, data in page.text]
    assert text[text.index("Success rate of a prompt") + 1] == "0.12 → 0.88"
    assert "first and last batch, 8 and 8 rollouts; every prompt weighs the same" in text


def test_the_report_needs_nothing_but_itself(tmp_path):
    html = report(tmp_path, random_visits())
    page = Page(html)
    assert len(page.all("svg")) == len(PLOTS)
    assert not page.all("script") and not page.all("link") and not page.all("iframe") and not page.all("img")
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action"):
                assert value.startswith(("#", "data:image/png;base64,")), (tag, value[:80])
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


EVIL = [
    "<script>alert(1)</script>",
    "</code><img src=x onerror=alert(1)>",
    "--><svg onload=alert(1)>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}",
    "]]></style><b>x</b>",
]


def test_prompts_are_text_never_markup(tmp_path):
    """The page has the elements and attributes that it has with harmless prompts, and the text as it was."""
    pages = []
    for keys in ([f"key {i}" for i in range(len(EVIL))], EVIL):
        batch = dict.fromkeys(keys, (1, 2))
        page = Page(
            report(tmp_path / str(len(pages)), [batch] * 2, title="".join(keys), prompts={key: key for key in keys})
        )
        drawing = ("use", "path", "g", "defs")  # letters
        pages.append([(tag, sorted(names)) for tag, names in page.elements if tag not in drawing])
        assert ("h1", "".join(keys)) in page.text
        assert {data for tag, data in page.text if tag == "code"} == set(keys)
        assert set(keys) <= {data for tag, data in page.text if tag == "td"}
    assert pages[0] == pages[1]


def test_a_long_prompt_is_cut(tmp_path):
    page = Page(report(tmp_path, [{"a": (1, 2)}], prompts={"a": "word " * 1000}))
    assert max(len(data) for tag, data in page.text if tag == "td") == 400


def test_an_empty_history_has_no_report(tmp_path):
    with pytest.raises(ValueError, match="no generation batch yet"):
        (tmp_path / "knapsack_records.jsonl").touch()
        report(tmp_path, [])


def test_the_same_run_gives_the_same_file(tmp_path):
    visits = list(random_visits(steps=3))
    assert report(tmp_path / "a", visits) == report(tmp_path / "b", visits)


def test_a_run_in_which_nothing_moved_says_so(tmp_path):
    page = Page(report(tmp_path, [{"a": (1, 8), "b": (2, 8)}, {"c": (3, 8), "d": (0, 8)}]))
    text = [data for _, data in page.text]
    assert text[text.index("Decided by knowledge") + 1] == "0% of the rollouts"
    assert (
        "All counts were equal: 8 generations of each prompt, because nothing was known of a prompt before its visit; set "
        "look_generations or difficulty_columns, give success_state_path, or train for more epochs"
    ) in text

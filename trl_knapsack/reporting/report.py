"""One HTML file per run, with all its figures, that opens without a network."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import InvalidInputError, require_matplotlib
from ..tracking.history import RolloutHistory
from ..tracking.text import printable
from .plots import INK, PLOTS
from .summary import CLASSES, Summary, of_history, prompt_text


TEMPLATE = Path(__file__).with_name("report.html")

_CAPTIONS = {
    "counts": "Each point is a prompt in a batch, after its first visit. Prompts believed to succeed always or never get "
    "few generations, those in between many.",
    "budgets": "How many generations prompts got in a batch. A long tail means that single prompts take a large "
    "part of a batch; max_generations limits it.",
    "effective_gradient_ratio": "Share of rollouts in groups whose rewards vary, so that they have a gradient, and share of "
    "prompts with such a group. A diagnostic: it can rise even when the model learns less.",
    "calibration": "Observed against believed success rates, by how often a prompt had been scored before. On the diagonal "
    "the beliefs are right on average; above it prompts did better than believed, as while the policy learns.",
    "transitions": "Where prompts of each difficulty ended. Right of the diagonal they got easier, left of it they were "
    "forgotten.",
    "prompts": "Prompts that never succeeded, that improved most, and that took the most generations.",
}
_ADVICE = {
    "stuck": "Those that took most rollouts first. Is the reference answer right, and the completion long enough?",
    "hardest": "The believed success rate is that of the run's tracker, after the last visit.",
}


def write_report(
    history: RolloutHistory,
    path: str | os.PathLike,
    *,
    title: str = "Knapsack GRPO",
    prompts: Mapping[str, str | Sequence[Mapping[str, Any]]] | None = None,
    top: int = 10,
) -> None:
    """
    Write the report of a run.

    Args:
        history ([`RolloutHistory`]): The run.
        path (`str` or `os.PathLike`): The HTML file to write; its folder is made.
        title (`str`, *optional*): Heading.
        prompts (`Mapping[str, str]`, *optional*):
            Text (or messages) of prompts by key, to be shown beside the keys. The history has keys only:
            `{prompt_key(row): row["prompt"] for row in dataset}` makes it, with [`~trl_knapsack.tracking.keys.prompt_key`].
        top (`int`, *optional*, defaults to 10): Prompts in each table.

    Raises:
        `ValueError`: if the history is empty.
    """
    from jinja2 import Environment

    if len(history) == 0:
        raise InvalidInputError("The history has no generation batch yet, so there is nothing to report.")
    summary = of_history(history)
    html = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    path = Path(path)
    page = html.render(
        title=title,
        subtitle=_subtitle(history),
        tiles=_tiles(history, summary),
        figures=[
            {"svg": _svg(plot(history), name), "caption": _CAPTIONS[name], "wide": name == "prompts"}
            for name, plot in PLOTS.items()
        ],
        difficulty=_difficulty(summary),
        has_texts=prompts is not None,
        tables=_tables(summary, prompts or {}, top),
        footer=f"Written by trl_knapsack {__version__} from knapsack_records.jsonl.",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _subtitle(history: RolloutHistory) -> str:
    names = [name for name in dict.fromkeys(history.allocation.tolist()) if name]
    return (
        f"Allocation {', then '.join(names) or 'unknown'}. Steps {history.step[0]:,} to {history.step[-1]:,}, "
        f"{history.epoch[-1]:.2f} epochs, {len(history):,} generation batches."
    )


def _tiles(history: RolloutHistory, summary: Summary) -> list[dict[str, str]]:
    per_batch = history.per_batch(np.ones(len(history.batch)))
    ends, (first, last) = _ends(history)
    largest, mean = int(history.generations.argmax()), history.generations[history.decided].mean()

    def ratio(groups: np.ndarray) -> float:
        return float((history.trials * history.mixed)[groups].sum() / history.counts[groups].sum())

    def rate(groups: np.ndarray) -> float:  # as logged: every prompt weighs the same
        scored = groups & (history.trials > 0)
        return float(history.success_rate[scored].mean()) if scored.any() else float("nan")

    behind = f"{ends}, {history.counts[first].sum():,} and {history.counts[last].sum():,} rollouts"
    whole = np.ones(len(history.batch), bool)
    tiles = [
        (
            "Effective gradient ratio",
            f"{ratio(first):.2f} → {ratio(last):.2f}",
            f"{behind}; {ratio(whole):.2f} over the run",
        ),
        (
            "Success rate of a prompt",
            f"{rate(first):.2f} → {rate(last):.2f}",
            f"{behind}; every prompt weighs the same",
        ),
        ("Rollouts", f"{summary.rollouts.sum():,}", f"{summary.tokens.sum():,} completion tokens"),
        (
            "Prompts",
            f"{len(summary.keys):,}",
            f"{per_batch.mean():.3g} in a batch, {summary.stuck.sum():,} of all stuck",
        ),
        (
            "Largest budget",
            f"{history.generations[largest]:,} generations",
            f"of {printable(history.keys[history.prompt[largest]], 32)}, {mean:.3g} on average",
        ),
        (
            "Decided by knowledge",
            f"{summary.known_share:.0%} of the rollouts",
            summary.equal_counts or "those of prompts that had been scored before",
        ),
        ("Allocation time", f"{np.median(history.solver_seconds) * 1e3:.2g} ms", "median per batch, on rank 0"),
    ]
    return [dict(zip(("name", "value", "note"), tile, strict=True)) for tile in tiles]


def _ends(history: RolloutHistory) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    """
    What the headline compares, and its groups `(N,)` at either end: the first and the last epoch, in which all prompts are
    seen once, where there are two; else a tenth of the batches each, which is too few to tell much of a short run.
    """
    epoch, tenth = history.epoch, max(1, len(history) // 10)
    if epoch[-1] >= 2:
        batches = epoch <= 1, epoch > epoch[-1] - 1
        name = "first and last epoch"
    else:
        number = np.arange(len(history))
        batches = number < tenth, number >= len(history) - tenth
        name = "first and last batch" if tenth == 1 else f"first and last {tenth} batches"
    if not batches[0].any():  # a run that was resumed without its records
        every = np.ones(len(history.batch), bool)
        return "all batches", (every, every)
    first, last = (end[history.batch] for end in batches)
    return name, (first, last)


def _difficulty(summary: Summary) -> list[dict[str, str]]:
    shares = [summary.classes(when) / max(summary.classes(when).sum(), 1) for when in ("first", "last")]
    return [
        {"name": name, "first": f"{first:.0%}", "last": f"{last:.0%}"}
        for name, first, last in zip(CLASSES, *shares, strict=True)
    ]


def _tables(summary: Summary, texts: Mapping[str, Any], top: int) -> list[dict[str, Any]]:
    def shown(rate: float) -> str:
        return "" if np.isnan(rate) else f"{rate:.2f}"

    def row(i: int) -> dict[str, Any]:
        return {
            "key": printable(summary.keys[i], 64),
            "text": _cut(prompt_text(texts.get(summary.keys[i], ""))),
            "believed": f"{summary.believed_rate[i]:.3f}",
            "first": shown(summary.first_rate[i]),
            "last": shown(summary.last_rate[i]),
            **{
                name: f"{getattr(summary, name)[i]:,}"
                for name in ("successes", "scored", "rollouts", "tokens", "visits")
            },
        }

    tables = []
    for kind in ("stuck", "hardest", "improved", "most_rollouts", "most_tokens"):
        rows = summary.top(kind, top)
        note = _ADVICE.get(kind, "") if len(rows) else "None."
        tables.append({"title": summary.title(kind), "note": note, "rows": [row(i) for i in rows.tolist()]})
    return tables


def _cut(text: str, width: int = 400) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _svg(figure: Any, name: str) -> Any:
    """The figure as inline SVG, whose text and axes take the colour of the page."""
    from markupsafe import Markup

    file = io.StringIO()
    with require_matplotlib().rc_context({"svg.hashsalt": name}):  # the same file each time, no id twice in a page
        figure.savefig(file, format="svg", transparent=True, dpi=150, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}"', 1))

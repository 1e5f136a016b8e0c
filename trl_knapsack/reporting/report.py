"""One HTML file per run, with all its figures, that opens without a network."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..allocation.difficulty import DIFFICULTIES, difficulty
from ..tracking.history import RolloutHistory
from .plots import INK, PLOTS, require_matplotlib, shorten
from .standouts import STUCK_AFTER, standouts


TEMPLATE = Path(__file__).with_name("report.html")

_CAPTIONS = {
    "counts": "Each point is a prompt in a batch, after its first visit. Prompts believed to succeed always or never get "
    "few generations, those in between many.",
    "budgets": "How often a prompt got how many generations in a batch. A long tail means that single prompts take a large "
    "part of a batch; max_generations limits it.",
    "effective_gradient_ratio": "Share of rollouts in groups whose rewards vary, so that they have a gradient, and share of "
    "prompts with such a group. A diagnostic: it rises also where less is learnt.",
    "transitions": "Where prompts of each difficulty ended. Right of the diagonal they got easier, left of it they were "
    "forgotten.",
    "prompts": "Prompts that never succeeded, that improved most, and that took the most generations.",
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
        raise ValueError("The history has no generation batch yet, so there is nothing to report.")
    html = Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    path = Path(path)
    page = html.render(
        title=title,
        subtitle=_subtitle(history),
        tiles=_tiles(history),
        figures=[
            {"svg": _svg(plot(history), name), "caption": _CAPTIONS[name], "wide": name == "prompts"}
            for name, plot in PLOTS.items()
        ],
        difficulty=_difficulty(history),
        has_texts=prompts is not None,
        tables=_tables(history, prompts or {}, top),
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


def _tiles(history: RolloutHistory) -> list[dict[str, str]]:
    window = max(1, len(history) // 20)
    ratio = history.effective_gradient_ratio
    per_batch = history.per_batch(np.ones(len(history.batch)))
    # as logged: every prompt weighs the same
    rate = history.per_batch(np.nan_to_num(history.success_rate)) / np.maximum(
        history.per_batch(history.trials > 0), 1
    )
    never = history.per_prompt(history.successes)[history.per_prompt(history.trials) >= STUCK_AFTER] == 0
    largest = int(history.counts.argmax())

    def first_and_last(values: np.ndarray) -> str:
        return f"{values[:window].mean():.2f} → {values[-window:].mean():.2f}"

    ends = "first and last batch" if window == 1 else f"first and last {window} batches"
    tiles = [
        ("Effective gradient ratio", first_and_last(ratio), f"{ends}; {ratio.mean():.2f} over the run"),
        ("Success rate of a prompt", first_and_last(rate), f"{ends}; mean over the prompts of a batch"),
        ("Rollouts", f"{history.counts.sum():,}", f"{history.tokens.sum():,} completion tokens"),
        ("Prompts", f"{len(history.keys):,}", f"{per_batch.mean():.3g} in a batch, {never.sum():,} of all stuck"),
        (
            "Largest budget",
            f"{history.counts[largest]:,} generations",
            f"of {shorten(history.keys[history.prompt[largest]])}, {history.counts.mean():.3g} in the mean",
        ),
        ("Time to share out", f"{np.median(history.solver_seconds) * 1e3:.2g} ms", "median of a batch, on rank 0"),
    ]
    return [dict(zip(("name", "value", "note"), tile, strict=True)) for tile in tiles]


def _difficulty(history: RolloutHistory) -> list[dict[str, str]]:
    visits = history.by_visit
    shares = [
        np.bincount(difficulty(visits["success_rate"][visits[end]]), minlength=5) / max(visits[end].sum(), 1)
        for end in ("first", "last")
    ]
    names = [name.replace("_", " ") for name in DIFFICULTIES]
    return [
        {"name": name, "first": f"{first:.0%}", "last": f"{last:.0%}"}
        for name, first, last in zip(names, *shares, strict=True)
    ]


def _tables(history: RolloutHistory, texts: Mapping[str, Any], top: int) -> list[dict[str, Any]]:
    visits, found = history.by_visit, standouts(history, top)
    sums = {name: history.per_prompt(getattr(history, name)) for name in ("counts", "tokens", "successes", "trials")}
    number = np.bincount(visits["prompt"], minlength=len(history.keys))
    ends = {
        end: dict(zip(visits["prompt"][visits[end]].tolist(), visits["success_rate"][visits[end]], strict=True))
        for end in ("first", "last")
    }

    def row(i: int) -> dict[str, Any]:
        successes, trials = sums["successes"][i], sums["trials"][i]
        return {
            "key": shorten(history.keys[i], 64),
            "text": _text(texts.get(history.keys[i], "")),
            "visits": number[i],
            "rollouts": f"{sums['counts'][i]:,.0f}",
            "tokens": f"{sums['tokens'][i]:,.0f}",
            "successes": f"{successes:,.0f}",
            "trials": f"{trials:,.0f}",
            "rate": f"{successes / trials:.2f}" if trials else "",
            **{end: f"{rates[i]:.2f}" if i in rates else "" for end, rates in ends.items()},
        }

    return [
        {"title": title, "note": note if len(found[kind]) else "None.", "rows": [row(i) for i in found[kind].tolist()]}
        for kind, title, note in (
            (
                "stuck",
                "Stuck prompts",
                f"No success in {STUCK_AFTER} scored rollouts or more; the most expensive first. Is the reference answer "
                "right, and the completion long enough?",
            ),
            ("hardest", "Hardest prompts", "Those that succeeded, but most seldom."),
            (
                "improved",
                "Most improved prompts",
                "Largest rise of the success rate from the first half of a prompt's visits to the second.",
            ),
            ("expensive", "Most expensive prompts", "Those that took the most rollouts."),
        )
    ]


def _text(prompt: str | Sequence[Mapping[str, Any]], width: int = 400) -> str:
    """The prompt's text, or that of its messages, cut to `width` characters."""
    if not isinstance(prompt, str):
        parts = [message.get("content", "") for message in prompt]
        prompt = "\n".join(part if isinstance(part, str) else "[not only text]" for part in parts)
    return prompt if len(prompt) <= width else prompt[: width - 1] + "…"


def _svg(figure: Any, name: str) -> Any:
    """The figure as inline SVG, whose text and axes take the colour of the page."""
    from markupsafe import Markup

    file = io.StringIO()
    with require_matplotlib().rc_context({"svg.hashsalt": name}):  # the same file each time, no id twice in a page
        figure.savefig(file, format="svg", transparent=True, dpi=150, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}"', 1))

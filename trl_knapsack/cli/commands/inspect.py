"""
Look into a run: its hardest prompts, those that are stuck, those that took most, and how difficulty changed.

Reads the knapsack_records.jsonl in the folder of a run. Where there is only a state (a checkpoint, or a
knapsack_state.safetensors), less is known, and old evidence is discounted.
"""

import argparse
import sys
from pathlib import Path

from ..helpers.console import percent, print_json, print_table


HELP = "hardest, stuck and most expensive prompts of a run"
CLASSES = ("extremely hard", "hard", "medium", "easy", "extremely easy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="the folder of a run, its knapsack_records.jsonl, or a knapsack_state.safetensors"
    )
    parser.add_argument("--top", type=int, default=10, help="prompts in each table (default: 10)")
    parser.add_argument(
        "--stuck_after",
        type=int,
        default=32,
        help="a prompt is stuck after this many scored rollouts without any success (default: 32)",
    )
    parser.add_argument("--dataset", help="dataset of the run, on the Hub or on disk, to show the prompts' text")
    parser.add_argument("--dataset_config", help="its configuration")
    parser.add_argument("--dataset_split", default="train", help="its split (default: train)")
    parser.add_argument("--prompt_id_column", help="as in the run: without it, prompts are known by their content")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    from ...reporting.summary import of_history, of_tracker

    if args.top < 1 or args.stuck_after < 1:
        raise ValueError(f"top ({args.top}) and stuck_after ({args.stuck_after}) must be at least 1.")
    source = Path(args.source)
    if source.suffix == ".jsonl" or (source / "knapsack_records.jsonl").is_file():
        from ...tracking.history import RolloutHistory

        summary = of_history(RolloutHistory.load(source), args.stuck_after)
    else:
        from ..helpers.prompts import load_tracker

        summary = of_tracker(load_tracker(source), args.stuck_after)
    if not summary.keys:
        print(f"trl-knapsack inspect: {source} knows no prompts yet.", file=sys.stderr)
        return 1
    texts = _texts(args, summary) if args.dataset else {}
    if args.json:
        print_json(summary.as_dict(args.top, texts))
        return 0
    _print(summary, args, texts)
    return 0


def _texts(args: argparse.Namespace, summary) -> dict[str, str]:
    """Text of each prompt that a table may show, by key."""
    from ...tracking.keys import prompt_key
    from ..helpers.data import load_split

    wanted = {summary.keys[i] for rows in summary.tables(args.top).values() for i in rows}
    texts = {}
    for row in load_split(args.dataset, args.dataset_config, args.dataset_split):
        key = prompt_key(row, args.prompt_id_column)
        if key in wanted:
            prompt = row.get("prompt", "")
            texts[key] = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
    if not texts:
        raise ValueError(
            f"No prompt of {args.source} is in {args.dataset}; name the dataset, split and prompt_id_column of the run."
        )
    return texts


def _print(summary, args: argparse.Namespace, texts: dict[str, str]) -> None:
    print(summary.headline() + "\n")
    titles = {
        "hardest": "Hardest: lowest believed success rate",
        "stuck": f"Stuck: {args.stuck_after} scored rollouts or more, never a success",
        "most rollouts": "Most rollouts",
        "most tokens": "Most tokens",
    }
    columns = ("successes", "trials", "rollouts", "tokens", "visits")
    number = (lambda x: round(float(x), 1)) if summary.discounted else int
    for name, rows in summary.tables(args.top).items():
        if not len(rows):
            print(f"{titles[name]}: none\n")
            continue
        cells = [
            [
                summary.keys[i],
                float(summary.believed_rate[i]),
                *(number(getattr(summary, column)[i]) for column in columns),
                *([" ".join(texts.get(summary.keys[i], "").split())[:60]] if texts else []),
            ]
            for i in rows
        ]
        heads = ["prompt", "believed rate", "successes", "scored", "rollouts", "tokens", "visits"]
        print_table(titles[name], heads + (["text"] if texts else []), cells)
        if name == "stuck":
            print(summary.stuck_sentence() + "\n")
    if summary.transitions is not None and summary.transitions.any():
        print_table(
            "Difficulty: prompts by the class of their first visit (rows) and of their last (columns)",
            ["first visit", *CLASSES],
            [[name, *map(int, row)] for name, row in zip(CLASSES, summary.transitions, strict=True)],
        )
    else:
        total = max(int(summary.classes.sum()), 1)
        print_table(
            "Difficulty at the last visit",
            ["class", "prompts", "share"],
            [[name, int(n), percent(n / total)] for name, n in zip(CLASSES, summary.classes, strict=True)],
        )

"""
Look into a run: its hardest prompts, those that are stuck, those that took the most rollouts, and how difficulty changed.

Reads the knapsack_records.jsonl in the folder of a run. With only a state (a checkpoint, or a knapsack_state.safetensors) or a
table of success rates, less is known, and the old evidence of a state is discounted. With --watch, it follows a run that is training.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InvalidInputError
from ..helpers.console import percent, print_json, print_table, print_text


if TYPE_CHECKING:
    from ...reporting.summary import Summary

HELP = "hardest, stuck and most expensive prompts of a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help="the folder of a run, its knapsack_records.jsonl, a knapsack_state.safetensors, or a table of success rates: "
        ".csv, .tsv, or the .jsonl of an evaluation or a probe",
    )
    parser.add_argument("--top", type=int, default=10, help="prompts in each table (default: 10)")
    parser.add_argument(
        "--stuck_after",
        type=int,
        default=32,
        help="a prompt is stuck after this many scored rollouts without any success (default: 32)",
    )
    parser.add_argument("--dataset_name", help="dataset of the run, on the Hub or on disk, to show the prompts' text")
    parser.add_argument("--dataset_config", help="its configuration")
    parser.add_argument("--dataset_train_split", default="train", help="its split (default: train)")
    parser.add_argument(
        "--prompt_id_column", help="as in the run: without it, prompts are identified by their content"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="follow a run that is under way on one screen, until it ends or Ctrl-C; without the tables of prompts",
    )


def run(args: argparse.Namespace) -> int:
    from ...reporting.summary import of_history, of_tracker
    from ...tracking.history import RolloutHistory, is_history

    if args.top < 1 or args.stuck_after < 1:
        raise InvalidInputError(f"top ({args.top}) and stuck_after ({args.stuck_after}) must be at least 1.")
    source = Path(args.source)
    if args.watch:
        from ..helpers.watch import watch

        for option in ("json", "dataset_name"):
            if getattr(args, option):
                raise InvalidInputError(f"--watch shows one screen without prompts; leave out --{option}, or --watch.")
        return watch(source, args.stuck_after)
    if is_history(source):
        summary = of_history(RolloutHistory.load(source), args.stuck_after)
    else:
        from ..helpers.prompts import load_tracker

        summary = of_tracker(load_tracker(source), args.stuck_after)
    if not summary.keys:
        print(f"trl-knapsack inspect: {source} knows no prompts yet.", file=sys.stderr)
        return 1
    texts = _texts(args, summary) if args.dataset_name else {}
    if args.json:
        print_json(summary.as_dict(args.top, texts))
        return 0
    _print(summary, args, texts)
    return 0


def _texts(args: argparse.Namespace, summary: "Summary") -> dict[str, str]:
    """Text of each prompt that a table may show, by key."""
    from ...reporting.summary import KINDS, prompt_text
    from ...tracking.keys import check_prompt_column, prompt_key
    from ..helpers.data import load_splits, split_of

    wanted = {summary.keys[i] for kind in KINDS for i in summary.top(kind, args.top)}
    splits = load_splits(args.dataset_name, args.dataset_config)
    dataset = split_of(splits, args.dataset_name, args.dataset_train_split, "dataset_train_split")
    check_prompt_column(dataset.column_names, args.dataset_name)
    rows = ((prompt_key(row, args.prompt_id_column), row["prompt"]) for row in dataset)
    texts = {key: prompt_text(prompt) for key, prompt in rows if key in wanted}
    if not texts:
        raise InvalidInputError(
            f"No prompt of {args.source} is in {args.dataset_name}; name the dataset, split and prompt_id_column of the run."
        )
    return texts


def _print(summary: "Summary", args: argparse.Namespace, texts: dict[str, str]) -> None:
    from ...reporting.summary import CLASSES

    print_text("\n".join([*filter(None, (summary.headline(), summary.allocation_sentence())), ""]))
    number = (lambda x: round(float(x), 1)) if summary.discounted else int
    columns = ("successes", "scored", "rollouts", "tokens", "visits")
    for kind in ("hardest", "stuck", "most_rollouts", "most_tokens"):
        rows = summary.top(kind, args.top)
        if not len(rows):
            print(f"{summary.title(kind)}: none\n")
            continue
        cells = [
            [
                summary.keys[i],
                float(summary.believed_rate[i]),
                *(number(getattr(summary, column)[i]) for column in columns),
                *([texts.get(summary.keys[i], "")] if texts else []),
            ]
            for i in rows
        ]
        least = [name for name in ("visits", "tokens", "rollouts") if not kind.endswith(name)]
        heads = ["prompt", "believed rate", *columns, *(["text"] if texts else [])]
        print_table(summary.title(kind), heads, cells, least=least)
        if kind == "stuck":
            print_text(summary.stuck_sentence() + "\n")
    if summary.transitions.any():
        print_table(
            "Difficulty: prompts by the class of their first visit (rows) and of their last (columns)",
            ["first visit", *CLASSES],
            [[name, *map(int, row)] for name, row in zip(CLASSES, summary.transitions, strict=True)],
        )
    else:
        classes = summary.classes()
        print_table(
            "Difficulty at the last visit",
            ["class", "prompts", "share"],
            [[name, int(n), percent(n / max(classes.sum(), 1))] for name, n in zip(CLASSES, classes, strict=True)],
        )

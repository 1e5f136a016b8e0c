"""
Draw a run: its budgets, effective gradient ratio, calibration, difficulty transitions and prompts, or all in one HTML
report.

Reads the knapsack_records.jsonl that KnapsackGRPOTrainer writes into its output_dir. Needs matplotlib.
"""

import argparse
import sys
from pathlib import Path

from ...errors import InvalidInputError
from ..helpers.console import print_json


HELP = "draw a run's budgets, or write its report"
PLOTS = ("counts", "budgets", "effective_gradient_ratio", "calibration", "transitions", "prompts")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", help="the folder of a run, or its knapsack_records.jsonl")
    parser.add_argument(
        "--what",
        nargs="+",
        metavar="FIGURE",
        default=[],
        help=f"figures to draw: {', '.join(PLOTS)} (default: all, if no --report)",
    )
    parser.add_argument("--format", choices=["png", "svg", "pdf"], default="png", help="default: png")
    parser.add_argument("--output_dir", help="folder for the figures (default: figures in the run's folder)")
    parser.add_argument("--report", metavar="FILE", help="write one HTML file that needs nothing else")
    parser.add_argument("--json", action="store_true", help="print the paths as JSON")


def run(args: argparse.Namespace) -> int:
    from ...tracking.history import RolloutHistory
    from ..helpers.data import written

    if args.source is None and args.what:  # `plot --what counts RUN`
        args.source = args.what.pop()
    if args.source is None or args.source in PLOTS:
        raise InvalidInputError("which run? Name its folder, or its knapsack_records.jsonl.")
    unknown = [name for name in args.what if name not in PLOTS]
    if unknown:
        raise InvalidInputError(f"--what: invalid choice: {unknown[0]!r}; choose from {', '.join(PLOTS)}.")
    history = RolloutHistory.load(args.source)
    if not len(history):
        print(f"trl-knapsack plot: {args.source} holds no generation batch yet.", file=sys.stderr)
        return 1
    files = []
    for name in args.what or ([] if args.report else PLOTS):
        from ...reporting.plots import PLOTS as draw

        run_folder = Path(args.source) if Path(args.source).is_dir() else Path(args.source).parent
        folder = Path(args.output_dir) if args.output_dir else run_folder / "figures"
        figure = draw[name](history)
        with written(folder / f"{name}.{args.format}") as path:
            figure.savefig(path, dpi=150)
        files.append(str(path))
    if args.report:
        from ...reporting.report import write_report

        with written(args.report) as path:
            write_report(history, path)
        files.append(args.report)
    if args.json:
        print_json({"files": files})
    else:
        print("\n".join(files))
    return 0

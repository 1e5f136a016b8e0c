"""
Share rollouts among prompts, and explain the result.

The prompts come from a CSV file, or from what a run knows about its prompts (its folder, or the knapsack_state.safetensors in it).
The columns of a CSV file are success_rate, or successes and trials, or alpha and beta; and id and cost, if you have them.
"""

import argparse
import csv
from typing import TYPE_CHECKING

from ...errors import InvalidInputError
from ..helpers.console import percent, print_json, print_table, print_text


if TYPE_CHECKING:
    from ...allocation.allocator import Allocation
    from ..helpers.prompts import PromptTable

HELP = "share rollouts among prompts"
SHOWN = 20  # prompts in the table; all are in the JSON and in the file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a .csv or .tsv file, a knapsack_state.safetensors, or the folder of a run")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--budget", type=int, help="rollouts in total")
    size.add_argument("--num_generations", type=int, help="mean rollouts per prompt, instead of the total")
    parser.add_argument("--min_generations", type=int, default=2, help="fewest rollouts per prompt (default: 2)")
    parser.add_argument("--max_generations", type=int, default=128, help="most rollouts per prompt (default: 128)")
    parser.add_argument(
        "--allocation",
        default="posterior",
        choices=["posterior", "paper", "filter", "uniform"],
        help="rule, as in KnapsackGRPOConfig (default: posterior; a column success_rate is taken as exact)",
    )
    parser.add_argument(
        "--value",
        default="knapsack",
        choices=["knapsack", "variance", "root", "mixed"],
        help="what rollouts are worth (default: knapsack)",
    )
    parser.add_argument(
        "--success_prior",
        type=float,
        nargs=2,
        default=[1.0, 1.0],
        metavar=("A", "B"),
        help="Beta prior of every prompt (default: 1 1)",
    )
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--max_cost", type=float, help="most tokens that all rollouts may take together")
    tokens.add_argument("--cost_weight", type=float, help="value that one token must be worth")
    parser.add_argument("--output", help="CSV file to write: id, success_rate and generations of each prompt")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    from ..helpers.prompts import read_prompts

    table = read_prompts(args.source, args.success_prior)
    if not table.ids:
        raise InvalidInputError(f"{args.source} knows no prompts yet, so there is nothing to allocate.")

    import numpy as np

    from ...allocation.explanation import explain

    allocation = _allocate(table, args)
    beliefs, last_rate = table.evidence.beliefs, table.evidence.last_rate
    explanation = explain(
        allocation,
        beliefs if table.rates is None else table.rates,
        value=args.value,
        min_generations=args.min_generations,
        max_generations=args.max_generations,
        last_rates=np.where(np.isnan(last_rate), beliefs.mean, last_rate),
    )
    rows = list(zip(table.ids, map(float, explanation.rates), map(int, allocation.counts), strict=True))
    if args.output:
        from ..helpers.data import written

        with written(args.output) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "success_rate", "generations"])
            writer.writerows((_harmless(name), f"{rate:.6g}", count) for name, rate, count in rows)
    if args.json:
        print_json(
            {
                "budget": int(allocation.counts.sum()),
                "allocation": args.allocation,
                "prompts": [{"id": name, "success_rate": rate, "generations": count} for name, rate, count in rows],
                "explanation": explanation.rows(),
                "value": explanation.totals,
                "shadow_price": allocation.shadow_price,
                "cost": allocation.cost,
            }
        )
        return 0
    _print(rows, explanation, allocation, args)
    return 0


def _allocate(table: "PromptTable", args: argparse.Namespace) -> "Allocation":
    from ...allocation.allocator import allocate
    from ...allocation.rules import get_rule

    budget = args.budget if args.budget is not None else args.num_generations * len(table.ids)
    priced = args.max_cost is not None or args.cost_weight is not None
    if priced and args.allocation != "posterior":
        raise InvalidInputError(
            f'allocation {args.allocation!r} ignores tokens; use "posterior", or leave the costs out.'
        )
    if priced and table.costs is None:
        raise InvalidInputError(
            f"{args.source} has neither a column cost nor lengths of completions; add the cost of each prompt."
        )
    if args.allocation == "posterior" and (priced or table.rates is not None):
        return allocate(
            table.evidence.beliefs if table.rates is None else table.rates,
            budget,
            min_generations=args.min_generations,
            max_generations=args.max_generations,
            value=args.value,
            costs=table.costs if priced else None,
            max_cost=args.max_cost,
            cost_weight=args.cost_weight,
        )
    rule = get_rule(args.allocation, args.value)
    return rule(table.evidence, budget, args.min_generations, args.max_generations)


def _harmless(name: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + name if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _print(rows, explanation, allocation, args) -> None:
    print_table("Prompts", ["id", "success rate", "generations"], rows[:SHOWN])
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN:,} more: --output FILE or --json shows all\n")
    classes = [
        [
            f"{row['from']:.2f} - {row['to']:.2f}" if row["from"] < row["to"] else f"{row['from']:.0f}",
            *(row[name] for name in ("prompts", "rollouts", "least", "mean", "most", "last_gain")),
            percent(row["value"]),
        ]
        for row in explanation.rows()
    ]
    print_table(
        f"Why: {args.allocation}",
        ["success rate", "prompts", "rollouts", "least", "mean", "most", "last gain", "value"],
        classes,
        least=["last gain", "least", "most"],
    )
    print_text(str(explanation).splitlines()[-1])
    if allocation.cost is not None:
        print_text(f"expected tokens {allocation.cost:,.0f}; one more token would add {allocation.cost_price:.2e}")

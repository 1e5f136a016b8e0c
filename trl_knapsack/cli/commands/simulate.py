"""
What a budget would buy, before it is spent.

Each rule visits prompts with known, drifting success rates for some epochs, and the value of its rollouts at the true rates is
compared with equal shares. Nothing is trained: whether more value means more learning, and how much more, is not simulated.
"""

import argparse

from ...errors import InvalidInputError
from ..helpers.console import percent, print_json, print_table, print_text


HELP = "what a budget would buy, before it is spent"
CAVEAT = (
    "Value is what the allocator maximises. No simulation can tell you whether more of it means more learning, or how much "
    "more: here, rates drift in the same way under every rule."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--mix",
        nargs="+",
        choices=["saturated", "hard", "broad"],
        metavar="MIX",
        help="how hard the prompts are: saturated, hard, broad (default: all three)",
    )
    source.add_argument("--rates", help="CSV file with a column success_rate, or successes and trials: the true rates")
    source.add_argument(
        "--state", help="folder of a run, or its knapsack_state.safetensors: true rates drawn from what it knows"
    )
    parser.add_argument("--prompts", type=int, default=1000, help="prompts of a mix (default: 1000)")
    parser.add_argument(
        "--allocation",
        nargs="+",
        default=["posterior", "paper", "filter", "oracle"],
        choices=["posterior", "paper", "filter", "uniform", "last_rate", "oracle"],
        metavar="RULE",
        help="rules to compare with uniform: the trainer's (posterior, paper, filter), last_rate (paper without its "
        "fallback), and oracle, which knows the true rates (default: posterior paper filter oracle)",
    )
    parser.add_argument("--num_generations", type=int, default=8, help="mean generations per prompt (default: 8)")
    parser.add_argument("--min_generations", type=int, default=2, help="fewest rollouts per prompt (default: 2)")
    parser.add_argument("--max_generations", type=int, default=128, help="most rollouts per prompt (default: 128)")
    parser.add_argument("--prompts_per_batch", type=int, default=32, help="prompts that share a budget (default: 32)")
    parser.add_argument("--epochs", type=int, default=10, help="visits of each prompt (default: 10)")
    parser.add_argument(
        "--drift", type=float, default=0.3, help="random step of a rate between epochs, in logits (default: 0.3)"
    )
    parser.add_argument("--improvement", type=float, default=0.1, help="mean of that step (default: 0.1)")
    parser.add_argument(
        "--success_prior", type=float, nargs=2, default=[1.0, 1.0], metavar=("A", "B"), help="default: 1 1"
    )
    parser.add_argument("--success_decay", type=float, default=0.85, help="default: 0.85")
    parser.add_argument("--worlds", type=int, default=5, help="simulated worlds, for the intervals (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first world (default: 0)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, each epoch of each world")


def run(args: argparse.Namespace) -> int:
    from ...simulation import simulate

    results = []
    for name, prompts in _starts(args):
        simulation = simulate(
            prompts,
            args.allocation,
            num_generations=args.num_generations,
            prompts_per_batch=args.prompts_per_batch,
            epochs=args.epochs,
            drift=args.drift,
            improvement=args.improvement,
            min_generations=args.min_generations,
            max_generations=args.max_generations,
            success_prior=args.success_prior,
            success_decay=args.success_decay,
            worlds=args.worlds,
            seed=args.seed,
        )
        results.append((name, simulation))
        if not args.json:
            _print(name, simulation, args)
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name not in ("command", "json")}
        print_json({"settings": settings, "simulations": [_as_dict(*each) for each in results], "caveat": CAVEAT})
    else:
        print_text(CAVEAT)
    return 0


def _starts(args: argparse.Namespace):
    from ...simulation import Prompts
    from ..helpers.prompts import load_tracker, read_prompts

    if args.rates:
        table = read_prompts(args.rates, args.success_prior)
        rates = table.rates
        if rates is None:
            rates = table.evidence.last_rate
            if (rates != rates).any():
                raise InvalidInputError(f"{args.rates} has prompts without trials, so no true rate; leave them out.")
        yield args.rates, Prompts.from_rates(rates)
    elif args.state:
        yield args.state, Prompts.from_tracker(load_tracker(args.state, args.success_prior, args.success_decay))
    else:
        for mix in args.mix or ["saturated", "hard", "broad"]:
            yield mix, Prompts.from_mix(mix, args.prompts)


def _print(name: str, simulation, args: argparse.Namespace) -> None:
    rows = [
        [
            row["allocation"],
            percent(row["gain"]),
            percent(row["gain_halfwidth"]),
            row["equivalent_generations"],
            row["effective_gradient_ratio"],
            row["mixed_prompts"],
            row["largest_budget"],
        ]
        for row in simulation.rows()
    ]
    print_table(
        f"{name}: {simulation.prompts:,} prompts x {simulation.num_generations} generations, {args.epochs} epochs, "
        f"{args.worlds} worlds",
        [
            "allocation",
            "value over uniform",
            "+/- (95%)",
            "equivalent uniform",
            "effective ratio",
            "mixed prompts",
            "largest budget",
        ],
        rows,
        least=["mixed prompts", "effective ratio", "largest budget"],
    )


def _as_dict(name: str, simulation) -> dict:
    metrics = ("value", "effective_gradient_ratio", "mixed_prompts", "largest_budget")
    return {
        "prompts_from": name,
        "prompts": simulation.prompts,
        "allocations": simulation.rows(),
        "by_world_and_epoch": {metric: getattr(simulation, metric) for metric in metrics},
    }

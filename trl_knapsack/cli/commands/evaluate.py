"""
Evaluate a model on held-out prompts: avg@k, pass@k and maj@k with 95 % intervals, or compare two evaluations.

A model is a name on the Hub or a folder, and needs --dataset_name and --reward_funcs; a .jsonl file holds the results of an
earlier evaluation.
"""

import argparse
import sys
from pathlib import Path

from ...errors import InvalidInputError
from ..helpers.console import print_json, print_table


HELP = "avg@k, pass@k and maj@k of a model, or two compared"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name or folder of a model, or a .jsonl file of results")
    parser.add_argument("--compare", metavar="MODEL", help="a second model or file, compared problem by problem")
    parser.add_argument("--dataset_name", help="dataset on the Hub or on disk, with a column prompt")
    parser.add_argument("--dataset_config", help="its configuration")
    parser.add_argument("--dataset_test_split", default="test", help="its split (default: test)")
    parser.add_argument("--reward_funcs", help="a name from trl.rewards, or a dotted path such as my_module.my_reward")
    parser.add_argument(
        "--success_threshold",
        type=float,
        help="reward that counts as a success (default: 0.5, or what the results file says)",
    )
    parser.add_argument(
        "--answers", choices=["exact", "math"], help="what completions vote for in maj@k (default: no maj@k)"
    )
    parser.add_argument(
        "--prompt_id_column", help="column of IDs; without it, problems are identified by their content"
    )
    parser.add_argument("--num_eval_problems", type=int, help="evaluate only this many problems, from the first")
    parser.add_argument("--num_generations", type=int, default=8, help="completions per problem (default: 8)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    parser.add_argument("--top_p", type=float, default=1.0, help="default: 1.0")
    parser.add_argument("--top_k", type=int, default=0, help="default: 0, all tokens")
    parser.add_argument("--max_completion_length", type=int, default=512, help="tokens (default: 512)")
    parser.add_argument(
        "--per_device_eval_batch_size", type=int, default=64, help="completions at a time (default: 64)"
    )
    parser.add_argument("--seed", type=int, default=42, help="default: 42")
    parser.add_argument("--use_vllm", action="store_true", help="generate with vLLM")
    parser.add_argument(
        "--log_completions", action="store_true", help="keep the text of the completions in the results file"
    )
    parser.add_argument("--output_dir", default="outputs/evaluate", help="folder for results (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")


def run(args: argparse.Namespace) -> int:
    from ...evaluation import compare

    results = _results(args.model, args)
    if args.compare is not None:
        names = (Path(args.model).stem, Path(args.compare).stem)
        if names[0] == names[1]:
            names = (args.model, args.compare)
        comparison = compare(results, _results(args.compare, args), names=names)
        if args.json:
            print_json(comparison.to_dict())
            return 0
        print_table(f"{comparison.problems} problems", comparison.columns(), comparison.rows())
        print("\n".join(comparison.sentences()))
        return 0
    scored = results.scored()
    if not len(scored):
        print(f"trl-knapsack evaluate: no completion of {args.model} has a reward.", file=sys.stderr)
        return 1
    summary = scored.summary()
    if args.json:
        estimates = {name: [it.estimate, it.low, it.high] for name, it in summary.items()}
        print_json({"problems": len(scored), "without_reward": len(results) - len(scored), "metrics": estimates})
        return 0
    rows = [[name, f"{it.estimate:.3f}", f"{it.low:.3f} - {it.high:.3f}"] for name, it in summary.items()]
    print_table(f"{args.model}: {len(scored)} problems", ["metric", "mean", "95 % interval"], rows)
    if len(scored) < len(results):
        print(f"{len(results) - len(scored)} problems without any reward are left out")
    return 0


def _results(model: str, args: argparse.Namespace):
    from ...evaluation import EvaluationResults

    if model.endswith(".jsonl"):
        return EvaluationResults.load(model, success_threshold=args.success_threshold)
    for option in ("dataset_name", "reward_funcs"):
        if getattr(args, option) is None:
            raise InvalidInputError(
                f"{model} is not a .jsonl file of results, so it is taken as a model, which needs --{option}."
            )

    from ...evaluation import evaluate_policy, exact_answers, math_answers
    from ...tracking.keys import check_prompt_column
    from ..helpers.data import load_splits, split_of, written
    from ..helpers.rewards import load_reward

    splits = load_splits(args.dataset_name, args.dataset_config)
    problems = split_of(splits, args.dataset_name, args.dataset_test_split, "dataset_test_split")
    check_prompt_column(problems.column_names, args.dataset_name)
    if args.num_eval_problems is not None:
        problems = problems.take(args.num_eval_problems)
    file = Path(args.output_dir) / f"{'--'.join(Path(model).parts[-2:])}.jsonl"
    completions = file.with_suffix(".completions.jsonl")
    results = evaluate_policy(
        model,
        problems,
        load_reward(args.reward_funcs),
        success_threshold=0.5 if args.success_threshold is None else args.success_threshold,
        answer_func={"exact": exact_answers, "math": math_answers, None: None}[args.answers],
        prompt_id_column=args.prompt_id_column,
        keep_completions=args.log_completions,
        num_generations=args.num_generations,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_completion_length=args.max_completion_length,
        seed=args.seed,
        batch_size=args.per_device_eval_batch_size,
        use_vllm=args.use_vllm,
        completions_path=completions,
    )
    with written(file):
        results.save(file)
    completions.unlink()  # they were kept in case that the reward function fails
    print(f"results of {model}: {file}", file=sys.stderr)
    return results

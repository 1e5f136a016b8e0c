"""
Probe a model before training: a few completions of each prompt, for a run that knows its prompts from the first step on.

The file that it writes is a success_state_path for `trl-knapsack train`, and results for `trl-knapsack evaluate`. Give the
flags of the training. A probe that was stopped goes on where it was when the same command is given again.
"""

import argparse
import json
import sys
from typing import Any

from ...errors import InvalidInputError
from ..helpers.console import print_json


HELP = "a few completions of each prompt, for success rates to begin a run with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_name_or_path", required=True, help="name or folder of the model, also of an adapter")
    parser.add_argument("--dataset_name", required=True, help="dataset on the Hub or on disk, with a column prompt")
    parser.add_argument("--dataset_config", help="its configuration")
    parser.add_argument("--dataset_train_split", default="train", help="its split (default: train)")
    parser.add_argument(
        "--reward_funcs",
        required=True,
        nargs="+",
        help="names of trl.rewards, or dotted paths, as my_module.my_reward",
    )
    parser.add_argument("--reward_weights", type=float, nargs="+", help="of the reward functions (default: 1 each)")
    parser.add_argument(
        "--success_reward_func", help="the function that decides success (default: as in training, the weighted sum)"
    )
    parser.add_argument("--success_threshold", type=float, default=0.5, help="reward of a success (default: 0.5)")
    parser.add_argument("--prompt_id_column", help="as in training: without it, prompts are known by their content")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .jsonl file to write")
    parser.add_argument("--num_generations", type=int, default=4, help="completions of a prompt (default: 4)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    parser.add_argument("--top_p", type=float, default=1.0, help="default: 1.0")
    parser.add_argument("--top_k", type=int, default=0, help="default: 0, all tokens")
    parser.add_argument("--max_completion_length", type=int, default=512, help="tokens (default: 512)")
    parser.add_argument(
        "--chat_template_kwargs",
        type=_json_object,
        metavar="JSON",
        help="options for the chat template, as in training",
    )
    parser.add_argument(
        "--per_device_eval_batch_size", type=int, default=64, help="completions at a time (default: 64)"
    )
    parser.add_argument("--seed", type=int, default=42, help="default: 42")
    parser.add_argument("--use_vllm", action="store_true", help="generate with vLLM")
    parser.add_argument("--json", action="store_true", help="print the bill as JSON")


def run(args: argparse.Namespace) -> int:
    from ...evaluation import probe_policy
    from ...tracking.keys import check_prompt_column
    from ..helpers.data import load_splits, split_of, written
    from ..helpers.rewards import load_success_reward

    for name in ("num_generations", "per_device_eval_batch_size", "max_completion_length"):
        if getattr(args, name) < 1:
            raise InvalidInputError(f"{name} ({getattr(args, name)}) must be at least 1.")
    reward, decides = load_success_reward(args.reward_funcs, args.success_reward_func, args.reward_weights)
    splits = load_splits(args.dataset_name, args.dataset_config)
    dataset = split_of(splits, args.dataset_name, args.dataset_train_split, "dataset_train_split")
    check_prompt_column(dataset.column_names, args.dataset_name)
    if len(args.reward_funcs) > 1:
        print(f"success: {decides}, at least {args.success_threshold:g}", file=sys.stderr)
    try:
        with written(args.output) as path:
            probe = probe_policy(
                args.model_name_or_path,
                dataset,
                reward,
                path,
                success_threshold=args.success_threshold,
                prompt_id_column=args.prompt_id_column,
                num_generations=args.num_generations,
                temperature=args.temperature,
                top_p=args.top_p,
                top_k=args.top_k,
                max_completion_length=args.max_completion_length,
                chat_template_kwargs=args.chat_template_kwargs,
                batch_size=args.per_device_eval_batch_size,
                seed=args.seed,
                use_vllm=args.use_vllm,
            )
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {args.output}.partial", file=sys.stderr)
        raise
    scored = [problem for problem in probe.results if problem.n]
    never = sum(problem.c == 0 for problem in scored)
    always = sum(problem.c == problem.n for problem in scored)
    if args.json:
        bill = {"prompts": len(probe.results), "rollouts": probe.rollouts, "tokens": probe.tokens}
        found = {"without_reward": len(probe.results) - len(scored), "never": never, "always": always}
        print_json({**bill, "seconds": probe.seconds, **found, "file": args.output})
        return 0 if scored else 1
    if not scored:
        print(f"trl-knapsack probe: no completion has a reward ({probe.bill()}).", file=sys.stderr)
        return 1
    print(probe.bill())
    some = len(scored) - never - always
    print(f"{never:,} prompts never succeeded, {some:,} sometimes, {always:,} always")
    if len(scored) < len(probe.results):
        print(f"{len(probe.results) - len(scored):,} prompts without any reward stay unknown")
    print(f"--success_state_path {args.output}")
    return 0


def _json_object(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, as '{{\"enable_thinking\": false}}'") from None

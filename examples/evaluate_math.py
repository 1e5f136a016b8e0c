# /// script
# dependencies = [
#     "trl-knapsack[math]",
# ]
# requires-python = ">=3.11"
#
# [tool.uv.sources]  # `uv run` takes the package from this clone: it is in no index yet
# trl-knapsack = { path = "..", editable = true }
# ///

"""
Evaluate a checkpoint on held-out math problems: avg@k, pass@k and maj@k with intervals, and a comparison of two runs.

Without arguments, the bundled policy on the bundled problems, no network and no GPU needed:

    python examples/evaluate_math.py

Two runs of `examples/train_math.py`, problem by problem; each is the folder of a model or a file of results:

    python examples/evaluate_math.py \
        --model_name_or_path outputs/train_math-posterior --compare outputs/train_math-uniform

With a model and a dataset (columns `prompt` and `solution`), from the Hub or from disk:

    python examples/evaluate_math.py \
        --model_name_or_path outputs/deepmath --dataset_name my/held-out-problems --dataset_test_split test \
        --num_generations 16 --max_completion_length 2048 --use_vllm
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk
from train_math import BUNDLED_DATASET, BUNDLED_MODEL, accuracy, exact_match
from trl.import_utils import is_math_verify_available

from trl_knapsack.errors import install_command
from trl_knapsack.evaluation import EvaluationResults, compare, evaluate_policy, exact_answers, math_answers
from trl_knapsack.hub import parse_script_arguments


@dataclass
class EvaluationArguments:
    """
    What to evaluate, and how to sample. Names and defaults are those of `GRPOConfig` where it has them.

    Args:
        model_name_or_path (`str`, *optional*, defaults to the bundled policy):
            Name or folder of a model, or a `.jsonl` file that this script wrote.
        compare (`str`, *optional*):
            The same for a second run, to compare with.
        dataset_name (`str`, *optional*, defaults to the bundled problems):
            Name or folder of a dataset with the columns `prompt` and `solution`.
        dataset_config (`str`, *optional*):
            Its configuration.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            Split with the held-out problems.
        prompt_id_column (`str`, *optional*):
            Column with the ids of the problems; a hash of the row's content without it.
        num_eval_problems (`int`, *optional*):
            The first so many problems only.
        num_generations (`int`, *optional*, defaults to `8`):
            Completions of each problem.
        temperature, top_p, top_k (*optional*, default to `1.0`, `1.0` and `0`):
            Sampling.
        max_completion_length (`int`, *optional*, defaults to `512`):
            Tokens of a completion at most.
        per_device_eval_batch_size (`int`, *optional*, defaults to `64`):
            Completions at a time, without vLLM.
        seed (`int`, *optional*, defaults to `42`):
            Seed.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Generate with vLLM.
        vllm_tensor_parallel_size, vllm_gpu_memory_utilization, vllm_max_model_length (*optional*):
            Options for vLLM.
        log_completions (`bool`, *optional*, defaults to `False`):
            Keep the texts in the file of results.
        output_dir (`str`, *optional*, defaults to `"outputs/evaluate_math"`):
            Folder for the files of results.
    """

    model_name_or_path: str = field(
        default=str(BUNDLED_MODEL),
        metadata={"help": "Name or folder of a model, or a .jsonl file of results. Default: the bundled policy."},
    )
    compare: str | None = field(
        default=None, metadata={"help": "A second model or a second .jsonl file of results, to compare with."}
    )
    dataset_name: str = field(
        default=str(BUNDLED_DATASET),
        metadata={"help": "Dataset with columns `prompt` and `solution`. Default: the bundled problems."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split with the held-out problems."})
    prompt_id_column: str | None = field(
        default=None, metadata={"help": "Column with the ids of the problems; a hash of the content without it."}
    )
    num_eval_problems: int | None = field(default=None, metadata={"help": "The first so many problems only."})
    num_generations: int = field(default=8, metadata={"help": "Completions of each problem."})
    temperature: float = field(default=1.0, metadata={"help": "0 takes the most likely token each time."})
    top_p: float = field(default=1.0, metadata={"help": "1 considers all tokens."})
    top_k: int = field(default=0, metadata={"help": "0 considers all tokens."})
    max_completion_length: int = field(default=512, metadata={"help": "Tokens of a completion at most."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Completions at a time, without vLLM."})
    seed: int = field(default=42, metadata={"help": "Seed of the sampling."})
    use_vllm: bool = field(default=False, metadata={"help": "Generate with vLLM."})
    vllm_tensor_parallel_size: int | None = field(default=None, metadata={"help": "GPUs that share the model."})
    vllm_gpu_memory_utilization: float | None = field(default=None, metadata={"help": "Share of the GPU's memory."})
    vllm_max_model_length: int | None = field(default=None, metadata={"help": "Tokens of prompt and completion."})
    log_completions: bool = field(default=False, metadata={"help": "Keep the texts in the file of results."})
    output_dir: str = field(default="outputs/evaluate_math", metadata={"help": "Folder for the files of results."})


def load_problems(args: EvaluationArguments) -> Dataset:
    name, split = args.dataset_name, args.dataset_test_split
    saved = (Path(name) / "dataset_dict.json").is_file()  # with `save_to_disk`
    dataset = load_from_disk(name) if saved else load_dataset(name, args.dataset_config)
    if split not in dataset:
        sys.exit(f"{name} has no split {split!r}, only {list(dataset)}; name one with --dataset_test_split.")
    problems = dataset[split]
    for column in ("prompt", "solution"):
        if column not in problems.column_names:
            sys.exit(
                f"{name} has no column {column!r}, only {problems.column_names}; rename the columns to `prompt` and "
                "`solution`."
            )
    return problems if args.num_eval_problems is None else problems.take(args.num_eval_problems)


def results_of(model: str, args: EvaluationArguments) -> EvaluationResults:
    """Results of a model, which are read if `model` is a file of them."""
    if model.endswith(".jsonl"):
        if not Path(model).is_file():
            sys.exit(f"There is no file {model}; evaluate a model first, or name the model.")
        return EvaluationResults.load(model)
    bundled = args.dataset_name == str(BUNDLED_DATASET)
    if not bundled and not is_math_verify_available():
        sys.exit(f"Answers are checked with math-verify, which is not installed; run `{install_command('math')}`.")
    vllm_kwargs = {
        "tensor_parallel_size": args.vllm_tensor_parallel_size,
        "gpu_memory_utilization": args.vllm_gpu_memory_utilization,
        "max_model_len": args.vllm_max_model_length,
    }
    results = evaluate_policy(
        model,
        load_problems(args),
        exact_match if bundled else accuracy,
        answer_func=exact_answers if bundled else math_answers,
        prompt_id_column="id" if bundled else args.prompt_id_column,
        keep_completions=args.log_completions,
        num_generations=args.num_generations,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_completion_length=8 if bundled else args.max_completion_length,
        seed=args.seed,
        batch_size=args.per_device_eval_batch_size,
        use_vllm=args.use_vllm,
        vllm_kwargs={name: value for name, value in vllm_kwargs.items() if value is not None},
    )
    file = Path(args.output_dir) / f"{'--'.join(Path(model).parts[-2:])}.jsonl"
    results.save(file)
    print(f"results of {model}: {file}")
    return results


def main() -> None:
    (args,) = parse_script_arguments((EvaluationArguments,))
    results = results_of(args.model_name_or_path, args)
    if args.compare is None:
        lines = summary(args.model_name_or_path, results)
    else:
        other = results_of(args.compare, args)
        lines = str(compare(results, other, names=names(args.model_name_or_path, args.compare))).splitlines()
    rule = "-" * max(map(len, lines))
    print("\n".join(["", rule, *lines, rule]))


def summary(model: str, results: EvaluationResults) -> list[str]:
    """The closing table of one run."""
    scored = results.scored()
    completions = sum(problem.n for problem in scored)
    left_out = len(results) - len(scored)
    rows = [
        ("model", model),
        ("problems", f"{len(scored)}" + (f" ({left_out} without a reward left out)" if left_out else "")),
        ("completions", f"{completions}, {completions / max(1, len(scored)):.3g} a problem"),
        *((name, str(interval)) for name, interval in scored.summary().items()),
        ("intervals", "95%, bootstrap over the problems"),
    ]
    return [f"{name:<11}   {value}" for name, value in rows]


def names(first: str, second: str) -> tuple[str, str]:
    """The last parts of two names, or all of them if those are equal."""
    short = Path(first).stem, Path(second).stem
    return short if short[0] != short[1] else (first, second)


if __name__ == "__main__":
    main()

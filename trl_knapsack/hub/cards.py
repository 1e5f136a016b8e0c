"""Sections of README files on the Hub: of a published configuration, and of a model that was trained."""

import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub
import transformers
import trl
import yaml
from accelerate.logging import get_logger
from huggingface_hub import ModelCard

from ..errors import InvalidInputError
from .config_file import CONFIG_FILE


logger = get_logger(__name__)

TAGS = ("trl", "grpo", "knapsack-rl")
PAPER_TITLE = "Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation"
PAPER_ID = "2509.25849"


def with_section(text: str, name: str, section: str) -> str:
    """`text` with the section of that name replaced, or added at its end; comments mark where it begins and ends."""
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    marked = f"{begin}\n{section.strip()}\n{end}"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: marked, text, count=1)
    return f"{text.rstrip()}\n\n{marked}\n"


def table(rows: Mapping[str, str]) -> str:
    """A Markdown table of two columns, without a head."""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(text: Any) -> str:
    return " ".join(str(text).replace("|", "\\|").split())


# ---------------------------------------------------------------------------------------------- a configuration


def config_card(
    repo_id: str,
    values: Mapping[str, Any],
    existing: str | None,
    metrics: Mapping[str, Any] | None = None,
    description: str | None = None,
    has_state: bool = False,
) -> ModelCard:
    """
    README of a repository with a configuration.

    Args:
        repo_id (`str`): The repository.
        values (`Mapping[str, Any]`): What its configuration says.
        existing (`str`, *optional*): The README that is there: all but the section on the configuration is kept.
        metrics (`Mapping[str, Any]`, *optional*): What was measured; see
            [`~KnapsackGRPOConfig.push_config_to_hub`].
        description (`str`, *optional*): Markdown for the top of the section.
        has_state (`bool`, *optional*, defaults to `False`): Whether success rates are published beside it.
    """
    if existing is None:
        card = ModelCard(f"---\nlibrary_name: trl\n---\n\n# {repo_id.split('/')[-1]}\n")
    else:
        card = ModelCard(existing, ignore_metadata_errors=True)
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
    if card.data.datasets is None and values.get("dataset_name"):
        card.data.datasets = [values["dataset_name"]]
    card.text = with_section(
        card.text, "knapsack config", _config_section(repo_id, values, metrics, description, has_state)
    )
    return card


def _config_section(repo_id, values, metrics, description, has_state) -> str:
    from .. import __version__

    parts = [
        "## Configuration for Knapsack GRPO",
        description,
        f"`{CONFIG_FILE}` is a configuration of [TRL](https://github.com/huggingface/trl)'s GRPO with a rollout budget "
        f"for every prompt, as in [{PAPER_TITLE}](https://huggingface.co/papers/{PAPER_ID}). It says what differs from the "
        f"defaults:\n\n```yaml\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}```",
        "### How to use it",
        "With trl_knapsack, in a script that reads its arguments with TRL's "
        f"`TrlParser`:\n\n```bash\naccelerate launch examples/train_math.py --config {repo_id}\n```",
        "or in Python, where any field can be set anew:\n\n```python\nfrom trl_knapsack import KnapsackGRPOConfig\n\n"
        f'args = KnapsackGRPOConfig.from_pretrained("{repo_id}", output_dir="outputs")\n```',
    ]
    if has_state:
        parts.append(
            "`knapsack_state.safetensors` holds the success rates of the prompts, and `knapsack_state.json` says what they are "
            "of. A run on the same prompts needs no uniform first epoch with them:\n\n"
            f'```python\nargs.success_state_path = "{repo_id}"\n```'
        )
    if metrics:
        parts += ["### Measured effect", _metrics_table(metrics)]
    parts += [
        "### Versions",
        table(
            {
                "trl_knapsack": __version__,
                "TRL": trl.__version__,
                "Transformers": transformers.__version__,
                "huggingface_hub": huggingface_hub.__version__,
            }
        ),
    ]
    return "\n\n".join(part.strip() for part in parts if part)


def _metrics_table(metrics: Mapping[str, Any]) -> str:
    by_contender = {name: value if isinstance(value, Mapping) else {"value": value} for name, value in metrics.items()}
    columns = list(dict.fromkeys(column for row in by_contender.values() for column in row))
    lines = ["| metric | " + " | ".join(map(_cell, columns)) + " |", "|---|" + "--:|" * len(columns)]
    for name, row in by_contender.items():
        for column, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidInputError(f"metrics[{name!r}] ({column}: {value!r}) must be a number that was measured.")
        lines.append(f"| {_cell(name)} | " + " | ".join(_number(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------- a model


def complete_model_card(trainer: Any) -> None:
    """
    Add to the model card that TRL wrote what was particular to the run, and save its configuration beside it.

    Args:
        trainer ([`KnapsackGRPOTrainer`]): The trainer, on the main process.
    """
    folder = trainer.args.output_dir
    try:
        trainer.args.save_pretrained(folder)
    except ValueError as error:  # not worth the run
        logger.warning(f"The configuration is not saved beside the model card: {error}")
    path = os.path.join(folder, "README.md")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            card = file.read()
        section = _training_section(trainer, os.path.isfile(os.path.join(folder, CONFIG_FILE)))
        with open(path, "w", encoding="utf-8") as file:
            file.write(with_section(card, "knapsack training", section))


def _training_section(trainer: Any, has_config: bool) -> str:
    from .. import __version__

    args, tracker = trainer.args, trainer.success_tracker
    if trainer.success_func is not None:
        success = "a rule of the user's own"
    else:
        success = f"{args.success_reward_func or 'the weighted reward'} is at least {args.success_threshold}"
    budget = (
        f"{args.num_generations} in the mean, between {args.min_generations} and {args.max_generations}; "
        f"{args.generation_batch_size // args.num_generations} prompts share {args.generation_batch_size}"
    )
    rows = {"Allocation": f"`{trainer.success_rate_callback.allocation}`", "Generations of a prompt": budget}
    rows |= _seen(trainer.state.log_history)
    # As the trainer counts: a generation batch for so many forward and backward passes
    passes = trainer.state.global_step * args.gradient_accumulation_steps
    batches = math.ceil(passes / (args.steps_per_generation * args.num_iterations))
    rows |= {
        "Rollouts": f"{batches * args.generation_batch_size:,}",
        "Prompts with a success rate": f"{len(tracker):,}",
        "A completion succeeds if": success,
    }
    parts = [
        "## Rollout budgets",
        "Every prompt had its own number of generations, by what was known of its success rate, out of the same total: "
        f"[{PAPER_TITLE}](https://huggingface.co/papers/{PAPER_ID}), with trl_knapsack {__version__}.",
        table(rows),
    ]
    if has_config:
        parts.append(f"All options are in `{CONFIG_FILE}`, which `KnapsackGRPOConfig.from_pretrained` reads.")
    return "\n\n".join(parts)


def _seen(log_history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """What the logs of a run say of budgets and of effective gradients; nothing where there are none."""
    logs = [entry for entry in log_history if "knapsack/effective_gradient_ratio" in entry]
    if not logs:
        return {}
    least, middle, most = (
        [entry[f"knapsack/generations/{name}"] for entry in logs] for name in ("min", "median", "max")
    )
    ratios = [entry["knapsack/effective_gradient_ratio"] for entry in logs]
    mean = f"mean {statistics.fmean(ratios):.2f}"
    return {
        "Generations seen": f"smallest {min(least):.0f}, median {statistics.median(middle):g}, largest {max(most):.0f}",
        "Effective gradient ratio": mean
        if len(logs) == 1
        else f"first {ratios[0]:.2f}, {mean}, last {ratios[-1]:.2f}",
    }

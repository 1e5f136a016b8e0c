"""Sections of README files on the Hub: of a published configuration, and of a model that was trained."""

import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import transformers
import trl
import yaml
from accelerate.logging import get_logger
from huggingface_hub import ModelCard, ModelCardData

from ..errors import InvalidInputError
from ..tracking.state_file import STATE_FILE
from .config_file import CONFIG_FILE
from .states import ABOUT_FILE


logger = get_logger(__name__)

TAGS = ("trl", "grpo", "knapsack-rl")
PAPER = {
    "title": "Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation",
    "id": "2509.25849",
    # docstyle-ignore
    "citation": """\
@article{li2025knapsack,
    title        = {{Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation}},
    author       = {Li, Ziniu and Chen, Congliang and Yang, Tianyun and Ding, Tian and Sun, Ruoyu and Zhang, Ge and Huang, Wenhao and Luo, Zhi-Quan},
    year         = 2025,
    eprint       = {arXiv:2509.25849},
}""",
}


def with_section(text: str, name: str, rendered: str) -> str:
    """
    `text` with its section of that name replaced, or added at its end, by the one in `rendered`; comments mark where one
    begins and ends. All else in `text` stays.
    """
    pattern = re.compile(rf"<!-- {re.escape(name)} begins -->.*<!-- {re.escape(name)} ends -->", re.DOTALL)
    section = pattern.search(rendered)[0]
    if pattern.search(text):
        return pattern.sub(lambda _: section, text, count=1)
    return f"{text.rstrip()}\n\n{section}\n"


def _rendered(template: str, data: ModelCardData, **values: Any) -> ModelCard:
    path = Path(__file__).with_name("templates") / template
    return ModelCard.from_template(data, str(path), paper=PAPER, **values)


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
    from .. import __version__

    card = _rendered(
        "config_card.md",
        ModelCardData(library_name="trl"),
        repo_id=repo_id,
        description=description,
        config_file=CONFIG_FILE,
        state_file=STATE_FILE,
        about_file=ABOUT_FILE,
        has_state=has_state,
        values_yaml=yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True),
        metrics=_metrics(metrics) if metrics else None,
        versions={
            "trl_knapsack": __version__,
            "TRL": trl.__version__,
            "Transformers": transformers.__version__,
            "huggingface_hub": huggingface_hub.__version__,
        },
    )
    if existing is not None:
        text = card.text
        card = ModelCard(existing, ignore_metadata_errors=True)
        card.text = with_section(card.text, "knapsack config", text)
    data: Any = card.data  # huggingface_hub's types say only that it is some card's
    data.tags = list(dict.fromkeys([*(data.tags or []), *TAGS]))
    if data.datasets is None and values.get("dataset_name"):
        data.datasets = [values["dataset_name"]]
    return card


def _metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the table of metrics, and its rows: a name and the numbers under each column."""
    by_contender = {name: value if isinstance(value, Mapping) else {"value": value} for name, value in metrics.items()}
    columns = list(dict.fromkeys(column for row in by_contender.values() for column in row))
    for name, row in by_contender.items():
        for column, value in row.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InvalidInputError(f"metrics[{name!r}] ({column}: {value!r}) must be a number that was measured.")
    rows = [(_cell(name), [_number(row.get(column)) for column in columns]) for name, row in by_contender.items()]
    return {"columns": [_cell(column) for column in columns], "rows": rows}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------- a model


def complete_model_card(trainer: Any) -> None:
    """
    Add to the model card that TRL wrote what was particular to the run, and save its configuration beside it.

    Args:
        trainer ([`KnapsackGRPOTrainer`]): The trainer, on the main process.
    """
    from .. import __version__

    folder = trainer.args.output_dir
    try:
        trainer.args.save_pretrained(folder)
    except ValueError as error:  # not worth the run
        logger.warning(f"The configuration is not saved beside the model card: {error}")
    path = os.path.join(folder, "README.md")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            card = file.read()
        rendered = _rendered(
            "training_section.md",
            ModelCardData(library_name="trl"),
            version=__version__,
            rows={name: _cell(value) for name, value in _of_run(trainer).items()},
            config_file=CONFIG_FILE if os.path.isfile(os.path.join(folder, CONFIG_FILE)) else None,
        )
        with open(path, "w", encoding="utf-8") as file:
            file.write(with_section(card, "knapsack training", rendered.text))


def _of_run(trainer: Any) -> dict[str, str]:
    """What was particular to the run, for a table."""
    args, tracker = trainer.args, trainer.success_tracker
    if trainer.success_func is not None:
        success = "a rule of the user's own"
    else:
        success = f"{args.success_reward_func or 'the weighted reward'} is at least {args.success_threshold}"
    budget = (
        f"{args.num_generations} on average, between {args.min_generations} and {args.max_generations}; "
        f"{args.generation_batch_size // args.num_generations} prompts share {args.generation_batch_size}"
    )
    rows = {"Allocation": f"`{trainer.success_rate_callback.allocation}`", "Generations of a prompt": budget}
    rows |= _seen(trainer.state.log_history)
    # As the trainer counts: a generation batch for so many forward and backward passes
    passes = trainer.state.global_step * args.gradient_accumulation_steps
    batches = math.ceil(passes / (args.steps_per_generation * args.num_iterations))
    return rows | {
        "Rollouts": f"{batches * args.generation_batch_size:,}",
        "Prompts with a success rate": f"{len(tracker):,}",
        "A completion succeeds if": success,
    }


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

"""Sections of README files on the Hub: of a published configuration, and of a model that was trained."""

import math
import re
from collections.abc import Mapping
from typing import Any

import huggingface_hub
import transformers
import trl
import yaml
from huggingface_hub import ModelCard

from .config_file import CONFIG_FILE


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
    from . import __version__

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
            "`knapsack_state.npz` holds the success rates of the prompts, and `knapsack_state.json` says what they are "
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
                raise ValueError(f"metrics[{name!r}] ({column}: {value!r}) must be a number that was measured.")
        lines.append(f"| {_cell(name)} | " + " | ".join(_number(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

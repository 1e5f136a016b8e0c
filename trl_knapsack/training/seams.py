"""What this package relies on in TRL, and the error for a TRL, or an order of imports, that does not provide it."""

import inspect
import os
import sys
from typing import Any

import trl
from packaging.version import Version

from ..errors import MissingDependencyError


OLDEST_TRL = "1.6"  # before it, TRL computed other advantages
WORKING_TRL = f"trl>={OLDEST_TRL},<1.17"

# What is overridden, and the parameters relied upon.
METHODS = {
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_generate": ("prompts",),
    "_get_train_sampler": ("dataset",),
    "_save_checkpoint": ("model", "trial"),
    "_save_rng_state": ("output_dir",),
    "_load_rng_state": ("checkpoint",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_set_signature_columns_if_needed": (),
    "_get_output_dir": ("trial",),
    "_hp_search_setup": ("trial",),  # sets `_trial`, which says in which folder a trial is kept
    "train": ("resume_from_checkpoint",),
    "log": ("logs", "start_time"),
    "create_model_card": (),
    "_log_completion_extra": ("column", "values"),
}

# What is read or set, once the trainer is built.
ATTRIBUTES = (
    *("num_generations", "num_generations_eval", "num_iterations", "shuffle_dataset", "log_completions"),
    *("reward_weights", "reward_func_names", "scale_rewards", "multi_objective_aggregation"),
    *("_step", "_buffered_inputs", "_metrics", "_logs", "_signature_columns"),
)

# Of `RepeatSampler`.
SAMPLER_FIELDS = ("num_samples", "shuffle", "generator")

# With these, Unsloth's patched trainer takes rows for groups of `num_generations`, whatever their prompts are.
_UNSLOTH_SWITCHES = {"UNSLOTH_GRPO_ZERO_VARIANCE_EXCLUDE": ("1",), "UNSLOTH_GRPO_LOSS_AGGREGATION": ("prompt",)}


def check_seams(trainer_class: type) -> None:
    """
    Refuse a TRL that is too old, or whose trainer lacks what [`KnapsackGRPOTrainer`] overrides.

    Raises:
        `ImportError`: naming the version or the missing seam, and the versions that work.
    """
    if Version(trl.__version__) < Version(OLDEST_TRL):
        raise MissingDependencyError(
            f"trl {trl.__version__} is too old for trl_knapsack; install a TRL that works: {WORKING_TRL}."
        )
    for method, parameters in METHODS.items():
        present = inspect.signature(getattr(trainer_class, method, lambda: None)).parameters
        if not hasattr(trainer_class, method) or not set(parameters) <= set(present):
            raise MissingDependencyError(
                f"trl {trl.__version__} has no {trainer_class.__name__}.{method}({', '.join(parameters)}), which "
                f"trl_knapsack overrides; install a TRL that works: {WORKING_TRL}."
            )


def check_attributes(owner: Any, names: tuple[str, ...]) -> None:
    """
    Refuse a TRL whose trainer or sampler lacks what is read from it.

    Raises:
        `ImportError`: naming what is missing, and the versions that work.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise MissingDependencyError(
            f"trl {trl.__version__} has no {type(owner).__name__}.{missing[0]}, which trl_knapsack reads; install a TRL "
            f"that works: {WORKING_TRL}."
        )


def check_unsloth(trainer_class: type) -> None:
    """
    Refuse what would be silently wrong with Unsloth, which replaces `trl.GRPOTrainer` when it is imported.

    Args:
        trainer_class (`type`): [`KnapsackGRPOTrainer`], or a subclass.

    Raises:
        `ImportError`: if Unsloth was imported after this package, so that its trainer is not the one that is extended, or
            if one of its options groups rows by `num_generations`.
    """
    if "unsloth" not in sys.modules:
        return
    if trl.GRPOTrainer not in trainer_class.__mro__:
        raise MissingDependencyError(
            "unsloth was imported after trl_knapsack, so its faster trainer would not be used; put `import unsloth` "
            "before `import trl_knapsack`."
        )
    for name, values in _UNSLOTH_SWITCHES.items():
        if os.environ.get(name) in values:
            raise MissingDependencyError(
                f"{name}={os.environ[name]} makes Unsloth take every num_generations rows for a group, which is wrong for "
                "groups of unequal size; unset it."
            )

"""What `train` can know before anything is launched, and before TRL is imported."""

from collections.abc import Mapping
from typing import Any

from ...errors import InvalidInputError
from .data import load_splits, split_of
from .rewards import check_reward


def check(options: Mapping[str, Any]) -> None:
    """
    Check that a model, a dataset and rewards are given, and that they exist.

    Args:
        options (`Mapping[str, Any]`): The options that are given, by field.

    Raises:
        `ValueError`: naming the first thing that is missing.
    """
    if options.get("model_name_or_path") is None:
        raise InvalidInputError("no model; give --model_name_or_path.")
    if options.get("dataset_name") is None and not options.get("datasets"):
        raise InvalidInputError("no dataset; give --dataset_name.")
    rewards, reward_model = options.get("reward_funcs") or [], options.get("reward_model_name_or_path")
    if not rewards and reward_model is None:
        raise InvalidInputError("no rewards; give --reward_funcs, or --reward_model_name_or_path.")
    names = [check_reward(name) for name in ([rewards] if isinstance(rewards, str) else rewards)]
    if reward_model is not None:
        names.append(None)  # the model's configuration says what it is called
    deciding = options.get("success_reward_func")
    if deciding is not None and None not in names and deciding not in names:
        raise InvalidInputError(
            f"success_reward_func {deciding!r} must be one of the reward functions: {', '.join(map(str, names))}."
        )
    if not options.get("datasets"):
        _check_dataset(options)


def _check_dataset(options: Mapping[str, Any]) -> None:
    from ...tracking.keys import check_prompt_column  # loads NumPy, which the help has no need of

    name, streaming = options["dataset_name"], str(options.get("dataset_streaming", False)).lower()
    splits = load_splits(name, options.get("dataset_config"), streaming in ("none", "true", "1"))
    train = split_of(splits, name, options.get("dataset_train_split") or "train", "dataset_train_split")
    check_prompt_column(train.column_names, name)
    if str(options.get("eval_strategy") or "no").lower() not in ("no", "false"):
        split_of(splits, name, options.get("dataset_test_split") or "test", "dataset_test_split")
    column, columns = options.get("prompt_id_column"), train.column_names
    if column is not None and columns is not None and column not in columns:
        raise InvalidInputError(f"prompt_id_column {column!r} is not a column of {name}, which has {columns}.")

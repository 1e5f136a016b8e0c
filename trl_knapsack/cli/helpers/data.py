"""Datasets by name, from the Hub or from disk, and files that the commands write."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError


#: Files that are a dataset by themselves, by their ending.
BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_splits(name: str, config: str | None = None, streaming: bool = False) -> Mapping[Any, Any]:
    """
    All splits of a dataset: one saved with `save_to_disk` (without splits it is "train"), a `.csv`, `.json`, `.jsonl` or
    `.parquet` file, or whatever `load_dataset` knows by that name.

    Raises:
        `ValueError`: if there is no such dataset, or it can't be read.
    """
    from datasets import Dataset, DatasetDict, load_dataset
    from datasets.exceptions import DatasetsError

    path = Path(name)
    try:
        if (path / "dataset_dict.json").is_file():
            return DatasetDict.load_from_disk(name)
        if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
            return {"train": Dataset.load_from_disk(name)}
        if path.is_file() and path.suffix in BUILDERS:
            return load_dataset(BUILDERS[path.suffix], data_files=name, streaming=streaming)
        return load_dataset(name, config, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:
        raise InvalidInputError(f"dataset {name!r} can't be loaded: {' '.join(str(error).split())}") from error


def split_of(splits: Mapping[Any, Any], name: str, split: str, option: str) -> Any:
    """
    One split of a dataset.

    Raises:
        `ValueError`: if there is none of that name, naming those that are there and the option.
    """
    if split not in splits:
        raise InvalidInputError(f"{name} has no split {split!r}, only {list(splits)}; name one with --{option}.")
    return splits[split]


@contextlib.contextmanager
def written(path: str | os.PathLike) -> Iterator[Path]:
    """
    A file to write, in a folder that is made.

    Raises:
        `ValueError`: if the folder or the file can't be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)
    except OSError as error:
        raise InvalidInputError(
            f"{path} can't be written ({error.strerror}: {error.filename}); name another."
        ) from error

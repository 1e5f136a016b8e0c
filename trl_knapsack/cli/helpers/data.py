"""Datasets by name, from the Hub or from disk."""

from pathlib import Path


def load_splits(name: str, config: str | None = None, streaming: bool = False):
    """
    All splits of a dataset: one saved with `save_to_disk`, a `.csv`, `.json`, `.jsonl` or `.parquet` file, or whatever
    `load_dataset` knows by that name.
    """
    from datasets import load_dataset, load_from_disk

    path = Path(name)
    if (path / "dataset_dict.json").is_file():
        return load_from_disk(name)
    builders = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    if path.is_file() and path.suffix in builders:
        return load_dataset(builders[path.suffix], data_files=name, streaming=streaming)
    return load_dataset(name, config, streaming=streaming)


def split_of(splits, name: str, split: str, option: str):
    """
    One split of a dataset.

    Raises:
        `ValueError`: if there is none of that name, naming those that are there and the option.
    """
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}, only {list(splits)}; name one with --{option}.")
    return splits[split]


def load_split(name: str, config: str | None, split: str):
    """A split of a dataset, for `--dataset_split`."""
    return split_of(load_splits(name, config), name, split, "dataset_split")

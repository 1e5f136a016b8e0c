"""Success rates in files that people and other programs write: CSV tables, and the JSON lines of an evaluation."""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidInputError, MissingFileError
from .text import printable


MAX_COUNT = 1e11  # of rollouts or tokens of a prompt: the allocator takes up to 1e12, the prior included

#: Endings of the files that are read here.
ENDINGS = (".csv", ".tsv", ".jsonl")

#: Rollouts that a success rate is worth if nothing says how many it is of: TRL's default group.
TRIALS_OF_A_RATE = 8

_OTHER_NAMES = {"n": "trials", "c": "successes"}  # what an evaluation calls them
_NEEDED = "successes and trials (or c and n), or success_rate"


@dataclass(frozen=True)
class RateTable:
    """
    The rows of a table.

    Attributes:
        path (`Path`): The file.
        columns (`list[str]`): Columns, as in the head of the file or in its first line; `n` and `c` as `trials` and
            `successes`.
        rows (`list[tuple[int, dict]]` of length `P`): The number of each line, and its cells by column.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[int, dict[str, Any]]]

    def numbers(self, name: str, at_least: float, at_most: float = MAX_COUNT) -> np.ndarray:
        """
        A column of numbers, `(P,)`.

        Raises:
            `ValueError`: naming the first line in which it is no number, or out of its range.
        """
        column = np.empty(len(self.rows))
        for i, (line, row) in enumerate(self.rows):
            try:
                column[i] = float(row[name])
            except (KeyError, TypeError, ValueError, OverflowError):
                column[i] = np.nan
            if not at_least <= column[i] <= at_most:
                rule = f"at most {at_most:g}" if column[i] > at_most else f"at least {at_least:g}"
                rule = f"between {at_least:g} and {at_most:g}" if at_most < MAX_COUNT else rule
                value = printable(repr(row.get(name)), 80)
                raise InvalidInputError(f"{self.place(line)}: {name} ({value}) must be a number {rule}.")
        return column

    def successes_and_trials(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Their columns, `(P,)` each.

        Raises:
            `ValueError`: naming the first line in which they are no numbers, or there are more successes than trials.
        """
        successes, trials = self.numbers("successes", 0), self.numbers("trials", 0)
        for (line, _), won, tried in zip(self.rows, successes, trials, strict=True):
            if won > tried:
                raise InvalidInputError(f"{self.place(line)}: successes ({won:g}) must not exceed trials ({tried:g}).")
        return successes, trials

    def ids(self) -> list[str]:
        """
        The column `id` as text, each once.

        Raises:
            `ValueError`: naming the line in which there is none, or one that was there before.
        """
        first: dict[str, int] = {}
        for line, row in self.rows:
            value = row.get("id")
            if not isinstance(value, str | int) or value == "":
                raise InvalidInputError(
                    f"{self.place(line)}: id ({printable(repr(value), 80)}) must be text; give each prompt the value of "
                    "your prompt_id_column."
                )
            if str(value) in first:
                raise InvalidInputError(
                    f"{self.place(line)}: id {printable(repr(value), 80)} is that of line {first[str(value)]}, too; give "
                    "each prompt one line."
                )
            first[str(value)] = line
        return list(first)

    def place(self, line: int) -> str:
        """A line of the file, as errors name it."""
        return f"Line {line} of {printable(str(self.path))}"


def is_rate_file(path: str | os.PathLike) -> bool:
    """Whether a file is one of these, by its ending."""
    return str(path).lower().endswith(ENDINGS)


def read_table(path: str | os.PathLike) -> RateTable:
    """
    Read a `.csv` or `.tsv` file with a head, or a `.jsonl` file with an object on each line.

    Raises:
        `MissingFileError` (a `FileNotFoundError`): if there is no such file.
        `InvalidInputError` (a `ValueError`): if it is none, or has no rows.
    """
    path = Path(path)
    shown = printable(str(path))
    if not path.is_file():
        raise MissingFileError(f"There is no file {shown}; name a .csv, .tsv or .jsonl file, or the folder of a run.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(_lines(file, path) if path.suffix.lower() == ".jsonl" else _records(file, path))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{shown} is no text in UTF-8 with a line for each prompt ({printable(str(error), 200)}); save it as that."
        ) from error
    if not rows:
        raise InvalidInputError(f"{shown} has no rows; give one line for each prompt.")
    columns = list(rows[0][1])
    names = {old: new for old, new in _OTHER_NAMES.items() if new not in columns}
    rows = [(line, {names.get(name, name): value for name, value in row.items()}) for line, row in rows]
    return RateTable(path, list(rows[0][1]), rows)


def read_rates(path: str | os.PathLike) -> tuple[list[str], dict[str, np.ndarray]]:
    """
    Success rates of a table with `id` and either `successes` and `trials` (or `c` and `n`) or `success_rate`, as one visit of
    each prompt. A rate alone is worth [`TRIALS_OF_A_RATE`] rollouts, or as many as its `trials` say. `tokens`, those of all
    rollouts of a prompt together, are read where they are there. Other columns are left alone.

    Returns:
        `tuple[list[str], dict[str, np.ndarray]]`: the `P` keys, and `successes`, `trials` and `tokens`, `(P,)` each; NaN for
        tokens that are not known.

    Raises:
        `InvalidInputError` (a `ValueError`): if it does not hold that, with the line.
    """
    table = read_table(path)
    has = set(table.columns)
    if "id" not in has or not ({"successes", "trials"} <= has or "success_rate" in has):
        columns = printable(", ".join(map(str, table.columns)), 200)
        raise InvalidInputError(
            f"{printable(str(path))} has the columns {columns}; it needs id, and either {_NEEDED}."
        )
    keys = table.ids()
    if {"successes", "trials"} <= has:
        successes, trials = table.successes_and_trials()
    else:
        trials = table.numbers("trials", 0) if "trials" in has else np.full(len(keys), TRIALS_OF_A_RATE)
        successes = table.numbers("success_rate", 0, 1) * trials
    tokens = table.numbers("tokens", 0) if "tokens" in has else np.full(len(keys), np.nan)
    return keys, {"successes": successes, "trials": trials.astype(np.float64), "tokens": tokens}


def _records(file: Any, path: Path):
    """The number and the cells of each line of a CSV file."""
    reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    for row in reader:
        yield reader.line_num, {name: value for name, value in row.items() if name is not None}


def _lines(file: Any, path: Path):
    """The number and the fields of each line of JSON."""
    for number, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            row = error
        if not isinstance(row, dict):
            said = f" ({printable(str(row), 200)})" if isinstance(row, Exception) else ""
            raise InvalidInputError(
                f"Line {number} of {printable(str(path))} is no JSON object{said}; it needs id, and either {_NEEDED}."
            )
        yield number, row

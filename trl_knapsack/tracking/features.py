"""What a dataset says of its prompts' difficulty, as numbers: solve rates, scores and categories, however they are written."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from .text import printable


MOST_CATEGORIES = 24  # the most frequent have a feature each; others count as unknown
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FRACTION = re.compile(rf"({_NUMBER})\s*/\s*({_NUMBER})")
_PER_CENT = re.compile(rf"({_NUMBER})\s*%")
_UNKNOWN = {"", "n/a", "na", "nan", "none", "null", "unknown", "-", "?"}


class DifficultyColumns:
    """
    Columns of a dataset as features for a [`SuccessPrior`].

    How a column is to be read follows from its values: numbers, and texts that are numbers, `"5/8"` or `"62.5 %"`, are one
    feature, a rate from 0 to 1 if all lie there or all are per cent from 0 to 100; any other text is a category, with a
    feature for each of its most frequent values. Which direction is harder does not matter. Features have mean 0 and
    standard deviation 1 over the rows that were read; what is unknown (None, NaN, `"n/a"`) is NaN.

    Args:
        columns (`Sequence[str]`):
            Names of columns. A dot leads into a nested field, as in `"extra_info.model_difficulty"`.
        rows (`Iterable[Mapping]`):
            The dataset if all of it can be read, else the first batch.

    Attributes:
        names (`tuple[str, ...]` of length `D`): What each feature is.

    Raises:
        `ValueError`: if a column does not exist, naming those that do, or holds nothing that tells prompts apart.

    Example:

    ```python
    >>> from trl_knapsack.tracking.features import DifficultyColumns

    >>> rows = [{"solved": "2/8", "topic": "algebra"}, {"solved": "6/8", "topic": "geometry"}]
    >>> columns = DifficultyColumns(["solved", "topic"], rows)
    >>> columns.names
    ('solved', 'topic=algebra', 'topic=geometry')
    >>> columns.features([{"solved": 0.75, "topic": None}])
    array([[ 1., nan, nan]])

    ```
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]):
        check_columns(columns)
        values: dict[str, list] = {column: [] for column in columns}
        count = 0
        for row in rows:
            count += 1
            for column in columns:
                values[column].append(_field(row, column))
        if not count:
            raise InvalidInputError("difficulty_columns can't be read from no rows; give at least one.")
        self._readers = {column: _reader(column, of_column) for column, of_column in values.items()}

    def __repr__(self) -> str:
        return f"DifficultyColumns({', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(
            f"{column}={value}" if kind == "category" else column
            for column, (kind, scales) in self._readers.items()
            for value in scales
        )

    def __len__(self) -> int:
        """Number of features, `D`."""
        return len(self.names)

    def features(self, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """
        Features of rows, `(P, D)` float64, NaN where unknown.

        Args:
            rows (`Sequence[Mapping]` of length `P`): Rows of the dataset.

        Raises:
            `ValueError`: if a row lacks a column.
        """
        return np.array(
            [
                [
                    feature
                    for column, reader in self._readers.items()
                    for feature in _read(_field(row, column), *reader)
                ]
                for row in rows
            ],
            dtype=np.float64,
        ).reshape(len(rows), len(self))

    def state_dict(self) -> dict[str, Any]:
        """How each column is read, of plain types that JSON keeps: kind, and mean and standard deviation by feature."""
        return {
            column: {"kind": kind, "scales": {value: list(scale) for value, scale in scales.items()}}
            for column, (kind, scales) in self._readers.items()
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "DifficultyColumns":
        """
        What `state_dict` described, so that a run which goes on reads as before whatever it sees first.

        Raises:
            `ValueError`: if the state is not of that form.
        """
        columns = cls.__new__(cls)
        columns._readers = {}
        for column, reader in state.items():
            try:
                kind, scales = reader["kind"], {str(k): (float(m), float(s)) for k, (m, s) in reader["scales"].items()}
            except (TypeError, KeyError, ValueError, AttributeError):
                kind, scales = None, {}
            sound = all(
                math.isfinite(mean) and math.isfinite(spread) and spread > 0 for mean, spread in scales.values()
            )
            if kind not in ("number", "per cent", "category") or not scales or not sound:
                raise InvalidInputError(
                    f"the state of difficulty column {printable(str(column), 80)!r} is {printable(repr(reader), 80)}, which "
                    "is not what state_dict gives; restore it from a copy."
                )
            columns._readers[str(column)] = (kind, scales)
        return columns


def check_columns(columns: Any) -> None:
    """
    Refuse what are no names of columns, or the same twice.

    Raises:
        `ValueError`: in one sentence.
    """
    if isinstance(columns, str) or not columns or not all(isinstance(column, str) for column in columns):
        raise InvalidInputError(
            f"difficulty_columns {printable(repr(columns), 80)} must be a list of column names, for example "
            "['solve_rate']."
        )
    if len(set(columns)) != len(columns):
        raise InvalidInputError(f"difficulty_columns {list(columns)} names a column twice; name each once.")


def roots_of(columns: Sequence[str], dataset: Any) -> list[str]:
    """
    Columns of a dataset that hold these: the first part of those that are nested.

    Raises:
        `ValueError`: if the dataset has no such column.
    """
    there = getattr(dataset, "column_names", None)  # None for a stream that does not know
    roots = {column: column if column in (there or ()) else column.split(".")[0] for column in columns}
    absent = [root for root in roots.values() if there is not None and root not in there]
    if absent:
        raise InvalidInputError(
            f"difficulty column {printable(absent[0], 80)!r} is not a column of train_dataset, which has {there}; name one "
            "of those."
        )
    return list(dict.fromkeys(roots.values()))


def _field(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, by its whole name or else down its dots."""
    if column in row:
        return row[column]
    value: Any = row
    for depth, part in enumerate(parts := column.split(".")):
        if value is None:  # a nested field that this row leaves out
            return None
        if not isinstance(value, Mapping) or part not in value:
            there = sorted(map(str, value)) if isinstance(value, Mapping) else []
            within = f"{'.'.join(parts[:depth])!r}" if depth else "the dataset"
            has = f"has {', '.join(map(repr, there))}" if there else f"holds a {type(value).__name__}, no fields"
            raise InvalidInputError(
                f"difficulty column {printable(column, 80)!r} does not exist: {printable(within, 80)} {printable(has, 300)}; "
                "name one of these."
            )
        value = value[part]
    return value


def _number(value: Any) -> tuple[float, bool]:
    """A value as a number, NaN if it is none, and whether it is written as a rate (per cent or a fraction)."""
    if value is None:
        return math.nan, False
    if isinstance(value, str):
        text = value.strip()
        if match := _PER_CENT.fullmatch(text):
            return float(match[1]) / 100, True
        if match := _FRACTION.fullmatch(text):
            return (float(match[1]) / float(match[2]) if float(match[2]) else math.nan), True
        return (float(text) if re.fullmatch(_NUMBER, text) else math.nan), False
    try:
        number = float(value)  # Python's and NumPy's numbers, booleans among them
    except (TypeError, ValueError, OverflowError):
        return math.nan, False
    return (number if math.isfinite(number) else math.nan), False


def _category(value: Any) -> str | None:
    """A value as a category, None if it says nothing."""
    text = str(value).strip() if isinstance(value, str | bool | int) else ""
    return None if text.lower() in _UNKNOWN else text


def _reader(column: str, values: list) -> tuple[str, dict[str, tuple[float, float]]]:
    """Kind of a column, and by feature the mean and standard deviation of its values."""
    numbers = [_number(value) for value in values]
    known = [number for number, _ in numbers if not math.isnan(number)]
    texts = Counter(text for value in values if isinstance(value, str) and (text := _category(value)))
    words = sum(count for text, count in texts.items() if math.isnan(_number(text)[0]))
    if words > len(known):  # a stray word in a column of numbers is unknown
        most = dict(sorted(texts.items(), key=lambda item: (-item[1], item[0]))[:MOST_CATEGORIES])
        total = sum(texts.values())
        shares = {text: count / total for text, count in most.items()}
        scales = {text: (p, math.sqrt(p * (1 - p))) for text, p in shares.items() if p < 1}
        if not scales:
            raise InvalidInputError(
                f"difficulty column {printable(column, 80)!r} is {printable(repr(next(iter(texts))), 40)} in every row, which "
                "tells no prompt from another; leave it out."
            )
        return "category", scales
    if not known:
        raise InvalidInputError(
            f"difficulty column {printable(column, 80)!r} holds neither numbers nor texts, but for example "
            f"{printable(repr(values[0]), 40)}; name another."
        )
    # 62.5 beside "5/8": a column with numbers from 1 to 100 is in per cent where others in it are written as rates
    plain = [number for number, is_rate in numbers if not is_rate and not math.isnan(number)]
    per_cent = len(plain) < len(known) and bool(plain) and 1 < max(plain) <= 100 and min(plain) >= 0
    kind = "per cent" if per_cent else "number"
    scaled = np.array([x for value in values if not math.isnan(x := _scaled(value, kind))])
    mean, spread = float(scaled.mean()), float(scaled.std())
    if not spread > 1e-12 * max(1.0, abs(mean)):
        raise InvalidInputError(
            f"difficulty column {printable(column, 80)!r} is {mean:g} in every row, which tells no prompt from another; leave "
            "it out."
        )
    return kind, {column: (mean, spread)}


def _scaled(value: Any, kind: str) -> float:
    number, is_rate = _number(value)
    return number / 100 if kind == "per cent" and not is_rate else number


def _read(value: Any, kind: str, scales: Mapping[str, tuple[float, float]]) -> list[float]:
    """Features of one value."""
    if kind == "category":
        text = _category(value)
        if text is None or text not in scales:
            return [math.nan] * len(scales)
        return [((text == category) - mean) / spread for category, (mean, spread) in scales.items()]
    ((mean, spread),) = scales.values()
    return [(_scaled(value, kind) - mean) / spread]

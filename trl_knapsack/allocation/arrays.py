"""What frozen records of arrays have in common: equality and short representations; and what is filled in where unknown."""

from dataclasses import fields

import numpy as np


class ArrayRecord:
    """
    A frozen dataclass with arrays in it. Two are equal if all their fields are, NaN being equal to NaN; declare it with
    `@dataclass(frozen=True, eq=False, repr=False)`.
    """

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(same(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]  # arrays can change

    def __repr__(self) -> str:
        parts = (f"{field.name}={short(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"


def same(first: object, second: object) -> bool:
    """Whether two values, arrays and containers of arrays among them, are equal, NaN being equal to NaN."""
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        first, second = np.asarray(first), np.asarray(second)
        return np.array_equal(first, second, equal_nan=first.dtype.kind == second.dtype.kind == "f")
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return bool(first == second or (first != first and second != second))


def with_mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Values `(P,)`, with the mean of those that are known, `(P,)`, in the place of the others; 1 where none is."""
    return np.where(known, values, values[known].mean() if known.any() else 1.0)


def short(value: object) -> str:
    """A value in at most a line: `[2, 24, 9, ..., 3, 2, 2] (256)` for an array of 256."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        shown = [f"{x:.4g}" if value.dtype.kind == "f" else str(x) for x in (*value[:3], *value[-3:])]
        if value.size <= 8:
            return f"[{', '.join(f'{x:.4g}' if value.dtype.kind == 'f' else str(x) for x in value)}]"
        return f"[{', '.join(shown[:3])}, ..., {', '.join(shown[3:])}] ({value.size})"
    if isinstance(value, tuple) and len(value) > 4:
        return f"({value[0]!r}, {value[1]!r}, ..., {value[-1]!r}) ({len(value)})"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)

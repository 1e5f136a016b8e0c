"""Modules for `evaluate.load`: each is a folder with a script of the same name and a card."""

from pathlib import Path

from ...errors import InvalidInputError


#: Names of the metrics and comparisons for `evaluate.load`.
METRICS = ("avg_at_k", "maj_at_k", "math_answers", "mcnemar", "pass_at_k", "wilcoxon")


def metric_path(name: str) -> str:
    """
    Folder of a metric or comparison of this package, for `evaluate.load`.

    Args:
        name (`str`):
            `"avg_at_k"`, `"pass_at_k"`, `"maj_at_k"` and `"math_answers"` are metrics, `"wilcoxon"` and `"mcnemar"`
            comparisons.

    Returns:
        `str`

    Raises:
        `ValueError`: if there is no such module.

    Example:
        ```python
        >>> import evaluate
        >>> evaluate.load(metric_path("pass_at_k")).compute(predictions=[[1, 0, 0, 0]], k=[1, 2])
        {'pass@1': 0.25, 'pass@2': 0.5}
        ```
    """
    if name not in METRICS:
        raise InvalidInputError(f"There is no metric {name!r}; choose one of {', '.join(METRICS)}.")
    return str(Path(__file__).parent / name)

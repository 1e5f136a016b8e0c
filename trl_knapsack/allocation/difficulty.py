"""The paper's classes of difficulty, by success rate."""

import numpy as np


#: Names of the classes, from the hardest.
DIFFICULTIES = ("extremely_hard", "hard", "medium", "easy", "extremely_easy")


def difficulty(success_rate: np.ndarray) -> np.ndarray:
    """
    The paper's five difficulty classes (arXiv 2509.25849): extremely hard p = 0, hard (0, 0.2], medium (0.2, 0.8),
    easy [0.8, 1), extremely easy p = 1.

    Args:
        success_rate (`(P,)`): Rates in [0, 1], without NaN.

    Returns:
        `np.ndarray` of shape `(P,)`: indices into `DIFFICULTIES`.
    """
    p = np.asarray(success_rate)
    return np.select([p <= 0, p <= 0.2, p < 0.8, p < 1], [0, 1, 2, 3], default=4)

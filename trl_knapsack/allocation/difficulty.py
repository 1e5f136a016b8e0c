"""Classes of difficulty by success rate: the paper's five, and the finer rows of a table that split them."""

import numpy as np


#: Names of the classes, from the hardest.
DIFFICULTIES = ("extremely_hard", "hard", "medium", "easy", "extremely_easy")

# Between 0 and 1, which are classes of their own. An edge below 1/2 belongs to the harder side, as 0 does, one above 1/2
# to the easier side, as 1 does: both ends are alike.
EDGES = np.array([0.2, 0.8])
FINE_EDGES = np.array([0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95])

#: The classes' success rates as text, in the order of [`DIFFICULTIES`].
RANGES = (
    "p = 0",
    "(0, {:g}]".format(*EDGES[:1]),
    "({:g}, {:g})".format(*EDGES),
    "[{:g}, 1)".format(*EDGES[1:]),
    "p = 1",
)


def difficulty(success_rate: np.ndarray) -> np.ndarray:
    """
    The paper's five difficulty classes (arXiv 2509.25849): extremely hard p = 0, hard (0, 0.2], medium (0.2, 0.8),
    easy [0.8, 1), extremely easy p = 1.

    Args:
        success_rate (`(P,)`): Rates in [0, 1], without NaN.

    Returns:
        `np.ndarray` of shape `(P,)`: indices into `DIFFICULTIES`.
    """
    return classify(success_rate, EDGES)


def classify(success_rate: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """
    Index of the class of each rate, `(P,)`: 0 for exactly 0, then one for each interval, and the last for exactly 1.

    Args:
        success_rate (`(P,)`): Rates in [0, 1], without NaN.
        edges (`(E,)`): Rising, strictly between 0 and 1. Those below 1/2 close their interval, the others open one.
    """
    p = np.asarray(success_rate)
    hard, easy = edges[edges < 0.5], edges[edges >= 0.5]
    row = 1 + np.searchsorted(hard, p, side="left") + np.searchsorted(easy, p, side="right")
    return np.where(p <= 0.0, 0, np.where(p >= 1.0, edges.size + 2, row))

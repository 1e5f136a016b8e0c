"""How many rollouts each prompt gets: the exact allocator, the value of rollouts, and the rules. NumPy and Numba only."""

from .allocator import SOLVERS, Allocation, allocate
from .difficulty import DIFFICULTIES, difficulty
from .evidence import BetaBeliefs, Evidence
from .explanation import Explanation, explain
from .rules import (
    RULES,
    AllocationRule,
    FilterRule,
    PaperRule,
    PosteriorRule,
    UniformRule,
    checked_allocation,
    get_rule,
)
from .values import (
    VALUES,
    MixedGroupValue,
    Value,
    WeightedSum,
    expected_values,
    learning_progress,
    marginal_gains,
    novelty,
)


__all__ = [
    "Allocation",
    "AllocationRule",
    "BetaBeliefs",
    "DIFFICULTIES",
    "Evidence",
    "Explanation",
    "FilterRule",
    "MixedGroupValue",
    "PaperRule",
    "PosteriorRule",
    "RULES",
    "SOLVERS",
    "UniformRule",
    "VALUES",
    "Value",
    "WeightedSum",
    "allocate",
    "checked_allocation",
    "difficulty",
    "expected_values",
    "explain",
    "get_rule",
    "learning_progress",
    "marginal_gains",
    "novelty",
]

"""Knapsack GRPO for TRL: per-prompt rollout budgets for the trainer you already use."""

from typing import TYPE_CHECKING

from ._lazy import lazy_exports


__version__ = "0.1.0"

if TYPE_CHECKING:
    from .allocation import Allocation as Allocation
    from .allocation import AllocationRule as AllocationRule
    from .allocation import BetaBeliefs as BetaBeliefs
    from .allocation import Evidence as Evidence
    from .allocation import allocate as allocate
    from .allocation import get_rule as get_rule
    from .tracking import RolloutHistory as RolloutHistory
    from .tracking import RolloutRecord as RolloutRecord
    from .tracking import SuccessRateTracker as SuccessRateTracker
    from .training import KnapsackGRPOConfig as KnapsackGRPOConfig
    from .training import KnapsackGRPOTrainer as KnapsackGRPOTrainer
    from .training import SuccessRateCallback as SuccessRateCallback

_MODULES = {
    "Allocation": "allocation",
    "BetaBeliefs": "allocation",
    "Evidence": "allocation",
    "allocate": "allocation",
    "AllocationRule": "allocation",
    "get_rule": "allocation",
    "SuccessRateTracker": "tracking",
    "RolloutRecord": "tracking",
    "RolloutHistory": "tracking",
    "SuccessRateCallback": "training",
    "KnapsackGRPOConfig": "training",
    "KnapsackGRPOTrainer": "training",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_exports(__name__, _MODULES)

"""Knapsack GRPO for TRL: per-prompt rollout budgets for the trainer you already use."""

import importlib


__version__ = "0.1.0"

# Imported on first use, so that the allocator and the tracker load neither torch nor trl.
_EXPORTS = {
    "Allocation": "allocation",
    "BetaBeliefs": "allocation",
    "allocate": "allocation",
    "AllocationPolicy": "policies",
    "get_policy": "policies",
    "Evidence": "tracker",
    "SuccessRateTracker": "tracker",
    "RolloutRecord": "records",
    "RolloutHistory": "history",
    "SuccessRateCallback": "callbacks",
    "KnapsackGRPOConfig": "config",
    "KnapsackGRPOTrainer": "trainer",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

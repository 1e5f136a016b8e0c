"""Sample completions from a policy, score them, estimate avg@k, pass@k and maj@k, and compare two runs."""

import importlib


# Imported on first use: the statistics need neither torch nor evaluate.
_EXPORTS = {
    "Interval": "statistics",
    "bootstrap_interval": "statistics",
    "majority_at_k": "statistics",
    "mcnemar": "statistics",
    "paired_bootstrap": "statistics",
    "pass_at_k": "statistics",
    "wilcoxon": "statistics",
    "Comparison": "results",
    "EvaluationResults": "results",
    "ProblemResult": "results",
    "compare": "results",
    "evaluate_policy": "policy",
    "sample_completions": "sampling",
    "exact_answers": "answers",
    "math_answers": "answers",
    "METRICS": "metrics",
    "metric_path": "metrics",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

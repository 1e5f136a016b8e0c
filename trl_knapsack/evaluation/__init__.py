"""Sample completions from a policy, score them, estimate avg@k, pass@k and maj@k, and compare two runs."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .answers import exact_answers as exact_answers
    from .answers import math_answers as math_answers
    from .metrics import METRICS as METRICS
    from .metrics import metric_path as metric_path
    from .policy import evaluate_policy as evaluate_policy
    from .probe import Probe as Probe
    from .probe import probe_policy as probe_policy
    from .results import Comparison as Comparison
    from .results import EvaluationResults as EvaluationResults
    from .results import ProblemResult as ProblemResult
    from .results import compare as compare
    from .sampling import sample_completions as sample_completions
    from .statistics import Interval as Interval
    from .statistics import bootstrap_interval as bootstrap_interval
    from .statistics import majority_at_k as majority_at_k
    from .statistics import mcnemar as mcnemar
    from .statistics import paired_bootstrap as paired_bootstrap
    from .statistics import pass_at_k as pass_at_k
    from .statistics import wilcoxon as wilcoxon

_MODULES = {
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
    "Probe": "probe",
    "probe_policy": "probe",
    "sample_completions": "sampling",
    "exact_answers": "answers",
    "math_answers": "answers",
    "METRICS": "metrics",
    "metric_path": "metrics",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_exports(__name__, _MODULES)

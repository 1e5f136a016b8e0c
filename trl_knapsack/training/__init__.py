"""The trainer: what TRL calls, and what is put right for groups of unequal size."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .callbacks import PlotCallback as PlotCallback
    from .callbacks import SuccessRateCallback as SuccessRateCallback
    from .config import KnapsackGRPOConfig as KnapsackGRPOConfig
    from .progress import KnapsackProgressCallback as KnapsackProgressCallback
    from .trainer import KnapsackGRPOTrainer as KnapsackGRPOTrainer

_MODULES = {
    "KnapsackGRPOConfig": "config",
    "KnapsackGRPOTrainer": "trainer",
    "KnapsackProgressCallback": "progress",
    "PlotCallback": "callbacks",
    "SuccessRateCallback": "callbacks",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_exports(__name__, _MODULES)

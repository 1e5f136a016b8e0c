"""For trainers of `trl.experimental`; they change without notice, and so may this."""

from typing import TYPE_CHECKING

from .._lazy import lazy_exports


if TYPE_CHECKING:
    from .async_worker import KnapsackRolloutWorker as KnapsackRolloutWorker
    from .async_worker import SaveSuccessRatesCallback as SaveSuccessRatesCallback
    from .running_knapsack import RunningKnapsack as RunningKnapsack

_MODULES = {
    "KnapsackRolloutWorker": "async_worker",
    "RunningKnapsack": "running_knapsack",
    "SaveSuccessRatesCallback": "async_worker",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_exports(__name__, _MODULES)

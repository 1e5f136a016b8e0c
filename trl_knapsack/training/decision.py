"""One generation batch as it was decided: what was known, how many rollouts, and where they are generated."""

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..allocation import Allocation, Evidence
from ..allocation.looks import BatchSharing
from .plan import RolloutPlan, plan_rollouts


@dataclass(frozen=True, eq=False)
class Decision:
    """
    What was decided for a generation batch of `P` prompts and `R` rows, the same on every rank.

    The `C` candidates for it are the prompts that waited and the new ones, in this order. `P` of them were decided upon:
    they have rows in the batch, or leave without further ones.

    Attributes:
        evidence ([`Evidence`]): What was known of the `P` prompts.
        allocation ([`Allocation`]): Rollouts of each in this batch; `allocation.counts` is `(P,)` and sums to `R`.
        plan ([`RolloutPlan`]): Which prompt each of the `R` rows holds, and which rank generates it.
        seconds (`float`): Time that the allocation took, on rank 0.
        candidates (`np.ndarray` of shape `(P,)`, int64): Which candidate each prompt is.
        looks (`np.ndarray` of shape `(P,)`, bool): Who gets a first look.
        leaves (`np.ndarray` of shape `(P,)`, bool): Who gets nothing more after this batch.
    """

    evidence: Evidence
    allocation: Allocation
    plan: RolloutPlan
    seconds: float
    candidates: np.ndarray
    looks: np.ndarray
    leaves: np.ndarray


def decide(
    sharing: BatchSharing,
    evidence: Evidence,
    before: np.ndarray,
    num_new: int,
    budget: int,
    batches_passed: int,
    accelerator: Accelerator,
) -> Decision:
    """
    Rank 0 decides, and all ranks use its decision. What fails there fails everywhere, so that no rank waits.

    The arguments are those of [`BatchSharing.share`].

    Raises:
        `ValueError`: if the rule returns anything but counts within the bounds that sum to the budget.
    """
    shared: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            started = time.perf_counter()
            batch = sharing.share(evidence, before, num_new, budget, batches_passed)
            seconds = time.perf_counter() - started
            chosen = np.flatnonzero((batch.counts > 0) | batch.leaves)
            known = evidence.take(chosen)
            allocation = replace(
                batch.allocation or Allocation(batch.counts, solver="look"), counts=batch.counts[chosen]
            )
            plan = plan_rollouts(allocation.counts, accelerator.num_processes, known.mean_length)
            shared = [Decision(known, allocation, plan, seconds, chosen, batch.looks[chosen], batch.leaves[chosen])]
        except Exception as error:
            shared = [error]
    (decision,) = broadcast_object_list(shared)
    if isinstance(decision, Exception):
        raise decision
    return decision

"""One generation batch as it was decided: what was known, how many rollouts, and where they are generated."""

import time
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..allocation import Allocation, AllocationRule, Evidence
from ..allocation.rules import checked_allocation
from .plan import RolloutPlan, plan_rollouts


@dataclass(frozen=True, eq=False)
class Decision:
    """
    What was decided for a generation batch of `P` prompts and `R` rows, the same on every rank.

    Attributes:
        evidence ([`Evidence`]): What was known of the `P` prompts.
        allocation ([`Allocation`]): Rollouts of each; `allocation.counts` is `(P,)` and sums to `R`.
        plan ([`RolloutPlan`]): Which prompt each of the `R` rows holds, and which rank generates it.
        seconds (`float`): Time that the allocation took, on rank 0.
    """

    evidence: Evidence
    allocation: Allocation
    plan: RolloutPlan
    seconds: float

    @property
    def is_equal(self) -> bool:
        """Whether every prompt gets the same, as in plain GRPO."""
        return bool((self.allocation.counts == self.allocation.counts[0]).all())


def decide(
    rule: AllocationRule,
    evidence: Evidence,
    budget: int,
    min_generations: int,
    max_generations: int,
    accelerator: Accelerator,
) -> Decision:
    """
    Rank 0 decides, and all ranks use its decision. What fails there fails everywhere, so that no rank waits.

    Raises:
        `ValueError`: if the rule returns anything but counts within the bounds that sum to the budget.
    """
    shared: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            started = time.perf_counter()
            allocation = checked_allocation(rule, evidence, budget, min_generations, max_generations)
            seconds = time.perf_counter() - started
            plan = plan_rollouts(allocation.counts, accelerator.num_processes, evidence.mean_length)
            shared = [Decision(evidence, allocation, plan, seconds)]
        except Exception as error:
            shared = [error]
    (decision,) = broadcast_object_list(shared)
    if isinstance(decision, Exception):
        raise decision
    return decision

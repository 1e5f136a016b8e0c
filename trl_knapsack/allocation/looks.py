"""
A generation batch shared out: a first look at new prompts, the rest for those that wait.

Rollouts that are given before anything is known of a prompt are given blindly, and what was known in the last epoch is old. So
a prompt first gets a look, a few rollouts, and waits. The next batches hold looks at further prompts, and the rest for prompts
that wait, decided by what their looks showed. No batch is added for it, and nothing waits for a second round of generation.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .allocator import Allocation, equal_shares
from .evidence import Evidence
from .rules import AllocationRule, checked_allocation


LOOK, WINDOW = 3, 64  # where the study found the most, see docs/results.md


def default_look(num_generations: int) -> int:
    """Rollouts of a look where nobody says otherwise: at most half of a prompt's mean, so that the rest can be decided."""
    return min(LOOK, (num_generations + 1) // 2)


class SharedBatch(NamedTuple):
    """
    One generation batch for `C` candidates.

    Attributes:
        counts (`np.ndarray` of shape `(C,)`, int64): Rollouts of each in this batch; they sum to its budget.
        looks (`np.ndarray` of shape `(C,)`, bool): Who gets a look.
        leaves (`np.ndarray` of shape `(C,)`, bool): Who was decided upon and gets no more after this batch.
        allocation ([`Allocation`] or `None`): The rule's answer for those decided upon, their looks included.
    """

    counts: np.ndarray
    looks: np.ndarray
    leaves: np.ndarray
    allocation: Allocation | None


@dataclass(frozen=True)
class BatchSharing:
    """
    How the generation batches of a run are shared out.

    Args:
        rule ([`AllocationRule`]): Decides the rollouts of prompts that are known, over all that wait at once.
        min_generations (`int`): Least rollouts of a prompt, its look included.
        max_generations (`int`): Most rollouts of a prompt, its look included.
        look (`int`, *optional*, defaults to 0): Rollouts of a look; 0 for none, so that nobody waits for one.
        batches (`int`, *optional*, defaults to 1):
            Batches whose prompts share a budget. With 1, a prompt is decided upon in the batch after its look, and
            without a look at once.
    """

    rule: AllocationRule
    min_generations: int
    max_generations: int
    look: int = 0
    batches: int = 1

    def share(
        self,
        evidence: Evidence,
        before: np.ndarray,
        num_new: int,
        budget: int,
        batches_passed: int = 0,
    ) -> SharedBatch:
        """
        Share one generation batch out.

        Args:
            evidence ([`Evidence`]):
                What is known of the `C` candidates: first the prompts that wait, the longest waiting first, then the new
                ones.
            before (`np.ndarray` of shape `(C,)`, int64):
                Rollouts that each got since it came, its look among them.
            num_new (`int`):
                New prompts, the last of the candidates.
            budget (`int`):
                Rollouts of the batch. All are given out.
            batches_passed (`int`):
                Batches before this one. During the first `batches` too few prompts wait to choose between, and the
                looks take the whole batch in equal shares.

        Raises:
            `ValueError`: if the rule returns anything but counts within the bounds that sum to what it was given.
        """
        candidates = len(evidence)
        is_new = np.arange(candidates) >= candidates - num_new
        too_early = self.batches > 1 and batches_passed < self.batches
        looks = is_new if too_early or self.look else np.zeros_like(is_new)
        decided = np.zeros_like(looks) if too_early else ~looks

        room = int((self.max_generations - before[decided]).sum())
        free = min(budget - self.look * int(looks.sum()), room) if decided.any() else 0
        counts, leaves = np.zeros(candidates, dtype=np.int64), np.zeros(candidates, dtype=bool)
        if looks.any():
            seats = np.zeros(int(looks.sum()), dtype=np.int64)
            counts[looks] = equal_shares(seats, seats + budget, budget - free)
        if not decided.any():
            return SharedBatch(counts, looks, leaves, None)

        known, had = evidence.take(decided), before[decided]
        low: Any = np.maximum(had, self.min_generations)
        rows = int(had.sum()) + self._rows_to_share(len(known), num_new, free, int((low - had).sum()), room)
        if not had.any():
            low = self.min_generations  # one number, as a rule of the user's own may expect where there are no looks
        allocation = checked_allocation(self.rule, known, rows, low, self.max_generations)
        more = np.zeros_like(counts)
        more[decided] = allocation.counts - had
        if self.batches == 1:  # all that is decided is also given
            return SharedBatch(counts + more, looks, decided, allocation)
        self._give(counts, leaves, more, before, decided, free)
        return SharedBatch(counts, looks, leaves, allocation)

    def _rows_to_share(self, waiting: int, num_new: int, free: int, least: int, room: int) -> int:
        """Rows that those decided upon share, in this batch and in later ones: from `least`, and `free`, to `room`."""
        if self.batches == 1:
            return free
        # Each batch brings as many prompts as leave, on average. The factor keeps their number near `batches` times
        # that of a batch: with fewer, a prompt gets more, so that they leave later, and with more the reverse.
        filled = waiting / num_new
        rows = round(free * filled * max(0.0, 2.0 - filled / self.batches))
        return min(max(rows, free, least), room)

    def _give(
        self,
        counts: np.ndarray,
        leaves: np.ndarray,
        more: np.ndarray,
        before: np.ndarray,
        decided: np.ndarray,
        free: int,
    ) -> None:
        """Give the `free` rows to those who wait longest, in place; one may get a part now and wait for the other."""
        for i in np.flatnonzero(decided):
            if not free:
                break
            given = min(int(more[i]), free)
            if given == 1 and before[i] == 0:
                continue  # a single rollout without a look has nothing to be compared with
            counts[i], leaves[i] = given, given == more[i]
            free -= given
        while free:  # what was too little for anyone
            able = np.flatnonzero((counts > 0) & (before + counts < self.max_generations))[:free]
            counts[able] += 1
            free -= len(able)

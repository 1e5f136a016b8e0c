"""Where the rollouts go: counts -> which prompt every row of the generation batch holds, and which rank generates it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RolloutPlan:
    """
    One generation batch laid out for `W` ranks of `L` rows each.

    Rows of a prompt stay together; a group may be longer than a rank's rows and straddle ranks.

    ```txt
    counts = [2, 5, 1], 2 ranks          rank 0         rank 1
    prompt of each row                [0, 0, 1, 1]   [1, 1, 1, 2]
    ```

    Attributes:
        counts (`np.ndarray` of shape `(P,)`, int64): Rollouts of each prompt, in the sampler's order.
        row_prompt (`np.ndarray` of shape `(R,)`, int64): Prompt of each row, over all ranks in rank order; `R = W L`.
        num_ranks (`int`): `W`.
    """

    counts: np.ndarray
    row_prompt: np.ndarray
    num_ranks: int

    def rank_rows(self, rank: int) -> np.ndarray:
        """Prompt of each row that `rank` generates, `(L,)`."""
        rows = len(self.row_prompt) // self.num_ranks
        return self.row_prompt[rank * rows : (rank + 1) * rows]

    def per_prompt(self, rows: np.ndarray) -> np.ndarray:
        """Sum of a per-row quantity over each prompt's rows: `(R,) -> (P,)`."""
        return np.bincount(self.row_prompt, weights=rows, minlength=len(self.counts))


def plan_rollouts(counts: np.ndarray, num_ranks: int) -> RolloutPlan:
    """
    Lay the rollouts of a generation batch out over the ranks.

    With equal counts this is the order of TRL's own sampler.

    Args:
        counts (`(P,)`, int): Rollouts of each prompt.
        num_ranks (`int`): Ranks, each of which generates the same number of rows.

    Returns:
        [`RolloutPlan`]

    Raises:
        `ValueError`: if the rows can't be shared out equally.
    """
    counts = np.asarray(counts, dtype=np.int64)
    if counts.sum() % num_ranks:
        raise ValueError(f"{counts.sum()} rollouts can't be shared out equally over {num_ranks} ranks.")
    return RolloutPlan(counts, np.repeat(np.arange(len(counts)), counts), num_ranks)

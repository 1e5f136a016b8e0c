"""Where the rollouts go: counts -> which prompt every row of the generation batch holds, and which rank generates it."""

from dataclasses import dataclass

import numpy as np

from ..allocation.arrays import with_mean


# Ranks wait for the one with the most tokens, so it may have this much more than the mean.
_TOLERANCE = 0.02


@dataclass(frozen=True)
class RolloutPlan:
    """
    One generation batch laid out for `W` ranks of `L` rows each.

    Rows of a prompt stay together where they can; a group may be longer than a rank's rows, and is split where that
    makes the ranks' predicted tokens even.

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
        return self.row_prompt.reshape(self.num_ranks, -1)[rank]

    def per_prompt(self, rows: np.ndarray) -> np.ndarray:
        """Sum of a per-row quantity over each prompt's rows: `(R,) -> (P,)`."""
        return np.bincount(self.row_prompt, weights=rows, minlength=len(self.counts))

    def imbalance(self, tokens: np.ndarray) -> float:
        """Tokens of the rank that has most, over the mean of the ranks, from the tokens of each row `(R,)`."""
        per_rank = np.asarray(tokens, dtype=np.float64).reshape(self.num_ranks, -1).sum(axis=1)
        return float(per_rank.max() / per_rank.mean()) if per_rank.any() else 1.0


def plan_rollouts(counts: np.ndarray, num_ranks: int, lengths: np.ndarray | None = None) -> RolloutPlan:
    """
    Lay the rollouts of a generation batch out over the ranks.

    Equal counts keep the order of TRL's own sampler. Otherwise prompts go to ranks longest first, each to the rank with
    the fewest tokens that has room; then the fullest rank exchanges rows with the emptiest until they are even.

    Args:
        counts (`(P,)`, int): Rollouts of each prompt.
        num_ranks (`int`): Ranks, each of which generates the same number of rows.
        lengths (`(P,)`, *optional*): Predicted tokens of one completion of each prompt, NaN where unknown.

    Returns:
        [`RolloutPlan`]

    Raises:
        `ValueError`: if the rows can't be shared out equally.
    """
    counts = np.asarray(counts, dtype=np.int64)
    rows, rest = divmod(int(counts.sum()), num_ranks)
    if rest:
        raise ValueError(f"{counts.sum()} rollouts can't be shared out equally over {num_ranks} ranks.")
    if num_ranks == 1 or (counts == counts[0]).all():
        return RolloutPlan(counts, np.repeat(np.arange(len(counts)), counts), num_ranks)

    lengths = np.full(len(counts), np.nan) if lengths is None else np.asarray(lengths, dtype=np.float64)
    lengths = with_mean(lengths, ~np.isnan(lengths))
    shares = _whole_groups_first(counts, lengths, num_ranks, rows)
    _even_out(shares, lengths)
    return RolloutPlan(
        counts, np.concatenate([np.repeat(np.arange(len(counts)), share) for share in shares]), num_ranks
    )


def _whole_groups_first(counts: np.ndarray, lengths: np.ndarray, num_ranks: int, rows: int) -> np.ndarray:
    """Rollouts of each prompt on each rank, `(W, P)`: every rank full, few groups split."""
    shares = np.zeros((num_ranks, len(counts)), dtype=np.int64)
    room = np.full(num_ranks, rows)
    for prompt in np.argsort(-counts * lengths, kind="stable"):
        left = counts[prompt]
        while left:
            fits = room >= left
            ranks = np.flatnonzero(fits if fits.any() else room == room.max())
            rank = ranks[np.argmin(shares[ranks] @ lengths)]
            taken = min(left, room[rank])
            shares[rank, prompt] += taken
            room[rank] -= taken
            left -= taken
    return shares


def _even_out(shares: np.ndarray, lengths: np.ndarray) -> None:
    """Exchange rows between the fullest and the emptiest rank, in place, until their tokens are even."""
    tokens = shares @ lengths  # (W,)
    for _ in range(4 * shares.size):
        full, empty = int(tokens.argmax()), int(tokens.argmin())
        excess = tokens[full] - tokens[empty]
        if tokens[full] <= (1 + _TOLERANCE) * tokens.mean():
            return
        # Every pair of a prompt on the fullest rank and a shorter one on the emptiest; `number` of rows change places.
        longer, shorter = np.flatnonzero(shares[full]), np.flatnonzero(shares[empty])
        difference = lengths[longer][:, None] - lengths[shorter]  # (longer, shorter)
        most = np.minimum(shares[full, longer][:, None], shares[empty, shorter])
        with np.errstate(divide="ignore"):
            number = np.clip(np.rint(excess / 2 / np.where(difference > 0, difference, np.nan)), 1, most)
        remaining = np.nan_to_num(np.abs(excess - 2 * number * difference), nan=np.inf)
        best = np.unravel_index(remaining.argmin(), remaining.shape)
        if remaining[best] >= excess:
            return  # no exchange makes it better: a single completion is too long
        moved, out, back = int(number[best]), longer[best[0]], shorter[best[1]]
        shares[full, [out, back]] += [-moved, moved]
        shares[empty, [out, back]] += [moved, -moved]
        tokens = shares @ lengths

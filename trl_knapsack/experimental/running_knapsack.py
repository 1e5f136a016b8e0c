"""How many rollouts each prompt gets, and their advantages, where prompts end one by one and no batch is shared out."""

from collections import deque

import numpy as np

from ..allocation import BetaBeliefs, allocate
from ..allocation.looks import WINDOW, default_look
from ..errors import InvalidInputError


class RunningKnapsack:
    """
    The knapsack for prompts that are decided upon one by one.

    A prompt is decided upon in one knapsack with those that were decided upon just before it, up to 64 of them. It gets one
    rollout more while its expected gain is above the shadow price of that knapsack. The budget is `num_generations` for
    each, and in addition what all earlier decisions left over, or less what they spent too much: so the price follows, and
    the mean stays `num_generations`. The counts depend on the beliefs and their order alone.

    Args:
        num_generations (`int`, *optional*, defaults to 8): Mean rollouts of a prompt.
        max_generations (`int`, *optional*, defaults to 128): Most rollouts of a prompt.
        look_generations (`int`, *optional*):
            Rollouts of a prompt before it is decided upon, and so its least. By default 3, but at most half of
            `num_generations`, and at least 2.

    Attributes:
        owed (`int`): Rollouts that the decisions so far left over; negative if they spent too much.
        shadow_price (`float`): Price of a rollout at the newest decision, in units of the value; NaN before the first.

    Raises:
        `ValueError`: if the numbers contradict each other.

    Example:

    ```python
    >>> from trl_knapsack.experimental import RunningKnapsack

    >>> knapsack = RunningKnapsack(num_generations=8)
    >>> [knapsack.decide(alpha, beta) for alpha, beta in [(1, 4), (4, 1), (2, 3), (4, 1), (1, 4)]]
    [8, 6, 9, 6, 11]
    >>> knapsack.owed
    0
    ```
    """

    def __init__(self, num_generations: int = 8, max_generations: int = 128, look_generations: int | None = None):
        look = max(2, default_look(num_generations)) if look_generations is None else look_generations
        if num_generations < 3:
            raise InvalidInputError(
                f"num_generations ({num_generations}) must be at least 3, because a look of 2 has to leave something to "
                "decide; raise it."
            )
        if not 2 <= look < num_generations:
            raise InvalidInputError(
                f"look_generations ({look}) must lie between 2 and num_generations - 1 ({num_generations - 1}), because a "
                "look has to leave something to decide; leave it unset for the default."
            )
        if max_generations < num_generations:
            raise InvalidInputError(
                f"max_generations ({max_generations}) must be at least num_generations ({num_generations}), the mean; "
                "raise it or lower num_generations."
            )
        self.num_generations = num_generations
        self.max_generations = max_generations
        self.look_generations = look
        self.owed = 0
        self.shadow_price = np.nan
        self._window: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def decide(self, alpha: float, beta: float) -> int:
        """
        Rollouts of the next prompt in total, its look included.

        Args:
            alpha (`float`): First parameter of the Beta belief of its success rate after the look.
            beta (`float`): Second parameter.

        Returns:
            `int`: from `look_generations` to `max_generations`.
        """
        self._window.append((alpha, beta))
        prompts, beliefs = len(self._window), np.array(self._window, dtype=np.float64)  # (W, 2)
        budget = prompts * self.num_generations + self.owed
        budget = min(max(budget, prompts * self.look_generations), prompts * self.max_generations)
        allocation = allocate(
            BetaBeliefs(beliefs[:, 0], beliefs[:, 1]),
            budget,
            min_generations=self.look_generations,
            max_generations=self.max_generations,
        )
        count = int(allocation.counts[-1])
        self.owed += self.num_generations - count
        self.shadow_price = allocation.shadow_price
        return count


def round_advantages(rewards: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, float]:
    """
    TRL's asynchronous advantages for rollouts that were asked for together, compared also with those before them.

    Rollouts that were asked for because of a reward must not be in its baseline, or they would bias it. Those before may:
    `docs/async.md` has the proof.

    Args:
        rewards (`np.ndarray` of shape `(m,)`): Rewards of this round, NaN where no function gave one.
        earlier (`np.ndarray` of shape `(k,)`): Rewards of the same prompt's rounds before, NaN likewise.

    Returns:
        `tuple[np.ndarray, float]`: advantages `(m,)`, 0 where there is no reward; and the standard deviation of all rewards,
        NaN if there is none.
    """
    known = np.concatenate([earlier, rewards])
    known = known[~np.isnan(known)]
    if not known.size:
        return np.zeros(len(rewards)), np.nan
    std = float(known.std())
    return np.nan_to_num((rewards - known.mean()) / (std + 1e-8), nan=0.0), std

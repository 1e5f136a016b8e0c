"""
The loops over rollouts, which Numba compiles. `selection.py` puts them together.

Kernels take checked arrays, hold no strings and raise nothing: [`trl_knapsack.allocation`] checks above them. They walk the
gains of each prompt along one chain (derived in `docs/method.md`):

    gain(N)  = k (x_N + y_N) + shift,  N >= 1       what rollout N + 1 adds to a prompt that has N; x_1 = y_1 = 1
    success rate p:     x_(N+1) = x_N p                  y_(N+1) = y_N (1 - p)
    p ~ Beta(a, b):     x_(N+1) = x_N (a+r+N) / (c+N)    y_(N+1) = y_N (b+s+N) / (c+N)        c = a + b + r + s + 1

The chain begins at one rollout and goes in single steps, whatever the bounds are. The same prompt therefore has bitwise the
same gains in every pass, and equal prompts tie exactly.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


# Rollouts that a process gives out in plain Python, at some two microseconds each, before it loads Numba for the rest, which
# takes about a second, and two where nothing is cached yet.
PATIENCE = 200_000


class Gains(NamedTuple):
    """
    The marginal gains of `P` prompts, as the kernels walk them. Made by [`~trl_knapsack.allocation.values.resolve`].

    Attributes:
        p (`np.ndarray` of shape `(P,)`): Success rates, or `alpha + r` of beliefs.
        q (`np.ndarray` of shape `(P,)`): `1 - p`, or `beta + s` of beliefs.
        k (`np.ndarray` of shape `(P,)`): Half of the first gain, `w(p) p (1-p)` or its expectation.
        shift (`np.ndarray` of shape `(1,)` or `(P,)`): Added to each gain; 0, or a constant less the worth of the tokens.
        beliefs (`bool`): Whether `p` and `q` are beliefs.
    """

    p: np.ndarray
    q: np.ndarray
    k: np.ndarray
    shift: np.ndarray
    beliefs: bool


class Compiled:
    """
    A kernel: plain Python at first, and compiled from the moment that [`expect`] has been told of enough work.

    Both give the same bits. So a process that allocates for a few prompts never waits for Numba, which takes longer to
    load than they take. Compiled code is cached on disk, if any folder can be written to.
    """

    expected = 0  # rollouts so far, and whether they are enough, for all kernels together
    ready = False
    warned = False

    def __init__(self, function: Callable):
        self.plain = function
        self.fast: Callable | None = None
        self.__doc__ = function.__doc__

    def __call__(self, *args):
        if not Compiled.ready:
            return self.plain(*args)
        if self.fast is None:
            self.fast = self.compile()
        return self.fast(*args)

    def compile(self) -> Callable:
        from numba import njit

        try:
            return njit(cache=True)(self.plain)
        except RuntimeError:  # Numba has tried the package's folder and the user's cache
            if not Compiled.warned:
                Compiled.warned = True
                warnings.warn(
                    "The compiled allocator can't be cached, because no folder for it can be written to, so each process "
                    "compiles it anew; set NUMBA_CACHE_DIR to a folder that can be.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return njit(self.plain)


def expect(rollouts: int) -> None:
    """Take note of rollouts that are about to be walked; more than [`PATIENCE`] in all turn compilation on."""
    Compiled.expected += rollouts
    Compiled.ready = Compiled.expected > PATIENCE


@Compiled
def collect(gains, low, high, top, bottom, counts, items, owners):
    """
    One pass over all prompts: count the gains at or above `top`, and store those in `[bottom, top)`.

    Args:
        gains ([`Gains`]): Of `P` prompts.
        low (`(1,)` or `(P,)`, int64), high (`(1,)` or `(P,)`, int64): Least and most rollouts of a prompt, from 1.
        top (`float`), bottom (`float`): The bracket, positive.
        counts (`(P,)`, int64): Written: `low` and the gains at or above `top`.
        items (`(room,)`, float64): Written: the gains in the bracket, as far as there is room.
        owners (`(room,)`, int64): Written: the index of each one's prompt.

    Returns:
        `(above, found, value, below)`: gains at or above `top`, gains in the bracket (those without room too), the value
        of `counts` without the shift, and the largest gain below `bottom` that a prompt may still take, or 0.
    """
    low_step = 1 if low.size > 1 else 0
    high_step = 1 if high.size > 1 else 0
    shift_step = 1 if gains.shift.size > 1 else 0
    above = 0
    found = 0
    value = 0.0
    below = 0.0
    for i in range(gains.k.size):
        p = float(gains.p[i])
        q = float(gains.q[i])
        x = float(gains.k[i])
        y = x
        lowest = int(low[i * low_step])
        highest = int(high[i * high_step])
        shift = float(gains.shift[i * shift_step])
        worth = 0.0
        n = 1
        while True:
            if n >= lowest:
                gain = x + y + shift
                if gain < top or n == highest:
                    break
            worth += x + y
            if gains.beliefs:
                inverse = 1.0 / (p + q + 1.0 + n)
                x *= (p + n) * inverse
                y *= (q + n) * inverse
            else:
                x *= p
                y *= q
            n += 1
        counts[i] = n
        above += n - lowest
        value += worth
        while n < highest and gain >= bottom:
            if found < items.size:
                items[found] = gain
                owners[found] = i
            found += 1
            if gains.beliefs:
                inverse = 1.0 / (p + q + 1.0 + n)
                x *= (p + n) * inverse
                y *= (q + n) * inverse
            else:
                x *= p
                y *= q
            n += 1
            gain = x + y + shift
        if n < highest and gain > below:
            below = gain
    return above, found, value, below


@Compiled
def take(items, owners, last, counts, caps):
    """
    Give one rollout to the owner of each gain above `last`, and note who is owed one that gains as much as `last`.

    Args:
        items (`(F,)`, float64), owners (`(F,)`, int64): Gains and the indices of their prompts.
        last (`float`): The smallest gain that is taken.
        counts (`(P,)`, int64): Raised by the gains above `last`.
        caps (`(P,)`, int64): Raised by the gains at or above `last`.

    Returns:
        `(taken, value, below)`: how many are above `last`, their sum, and the largest below it, or 0.
    """
    taken = 0
    value = 0.0
    below = 0.0
    for j in range(items.size):
        if items[j] > last:
            counts[owners[j]] += 1
            caps[owners[j]] += 1
            taken += 1
            value += items[j]
        elif items[j] == last:
            caps[owners[j]] += 1
        elif items[j] > below:
            below = items[j]
    return taken, value, below


@Compiled
def fill_level(counts, caps, room):
    """
    Hand out rollouts that all gain the same: each to the prompt with the fewest, then to the lower index.

    Args:
        counts (`(P,)`, int64): Raised to a common water level, never beyond `caps`.
        caps (`(P,)`, int64): Most rollouts of each prompt.
        room (`int`): Rollouts to hand out, at most what `caps` can take.
    """
    # The highest level that the room reaches, by bisection.
    level = 0
    over = 1
    for i in range(counts.size):
        over = max(over, caps[i] + 1)
    while over - level > 1:
        middle = (level + over) >> 1
        cost = 0
        for i in range(counts.size):
            cost += max(0, min(middle, caps[i]) - counts[i])
        if cost <= room:
            level = middle
        else:
            over = middle
    for i in range(counts.size):
        goal = min(level, caps[i])
        if goal > counts[i]:
            room -= goal - counts[i]
            counts[i] = goal
    for i in range(counts.size):
        if room > 0 and counts[i] == level and counts[i] < caps[i]:
            counts[i] += 1
            room -= 1


@Compiled
def evaluate(gains, counts, values, following):
    """
    What counts are worth, prompt by prompt, without the shift.

    Args:
        gains ([`Gains`]): Of `P` prompts.
        counts (`(P,)`, int64): Rollouts, not negative.
        values (`(P,)`, float64): Written: the value of `counts`.
        following (`(P,)`, float64): Written: what one more adds.
    """
    for i in range(counts.size):
        p = float(gains.p[i])
        q = float(gains.q[i])
        x = float(gains.k[i])
        y = x
        worth = 0.0
        for n in range(1, counts[i]):
            worth += x + y
            if gains.beliefs:
                inverse = 1.0 / (p + q + 1.0 + n)
                x *= (p + n) * inverse
                y *= (q + n) * inverse
            else:
                x *= p
                y *= q
        values[i] = worth
        following[i] = x + y if counts[i] > 0 else 0.0


@Compiled
def knapsack_table(values, low, high, costs, best, choices):
    """
    Dynamic program over rollouts and tokens above the lower bounds: the best value of the first `i` prompts with exactly
    `r` rollouts and at most `t` tokens.

    Args:
        values (`(P, M)`, float64): Value of 0 .. M-1 rollouts.
        low (`(P,)`, int64), high (`(P,)`, int64): Least and most rollouts of a prompt.
        costs (`(P,)`, int64): Tokens of a rollout.
        best (`(R+1, T+1)`, float64): Written: the best value with `r` rollouts and `t` tokens, -inf where nothing fits.
        choices (`(P, R+1, T+1)`, int32): Written: rollouts of each prompt above its lower bound.
    """
    rollouts = best.shape[0] - 1
    tokens = best.shape[1] - 1
    best[:] = -np.inf
    best[0, :] = 0.0
    reach = 0
    for i in range(values.shape[0]):
        lowest = low[i]
        room = high[i] - lowest
        cost = costs[i]
        reach = min(reach + room, rollouts)
        # Downwards and in place: what is read at r - n has not been written yet, but for n = 0, which comes first.
        for r in range(reach, -1, -1):
            for t in range(tokens, -1, -1):
                top = best[r, t] + values[i, lowest]
                choice = 0
                for n in range(1, min(room, r) + 1):
                    if n * cost > t:
                        break
                    candidate = best[r - n, t - n * cost] + values[i, lowest + n]
                    if candidate > top:
                        top = candidate
                        choice = n
                best[r, t] = top
                choices[i, r, t] = choice

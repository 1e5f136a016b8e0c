"""
The exact selection of the largest marginal gains: a threshold is found, and what lies above it is taken.

`docs/method.md` says why that is optimal, and what it costs.
"""

import math
from functools import lru_cache

import numpy as np

from .kernels import Gains, collect, evaluate, expect, fill_level, take


# So few prompts have all their gains sorted. Of more, a sample of one in STRIDE, of at most SAMPLE, tells where to look.
FEW = 16
STRIDE = 16
SAMPLE = 1 << 14
# The smallest positive double: a gain below it is worth nothing.
TINY = 5e-324


def select(gains: Gains, low: np.ndarray, high: np.ndarray, need: int) -> tuple[np.ndarray, float, float]:
    """
    The `need` largest gains of all prompts; of equal ones the prompt with fewer rollouts first, then the lower index.

    Args:
        gains ([`Gains`]): Of `P` prompts.
        low (`(1,)` or `(P,)`, int64), high (`(1,)` or `(P,)`, int64): Least and most rollouts of a prompt, from 1.
        need (`int`): Rollouts to give out above `low`, at most what `high` allows.

    Returns:
        `(counts, value, price)`: counts `(P,)`, int64, their value without the shift, and the largest gain not taken, 0
        where all were.
    """
    prompts = gains.k.size
    expect(need + prompts)
    if need == 0:
        counts = np.array(np.broadcast_to(low, prompts))
        values, following = values_and_gains(gains, counts)
        return counts, float(values.sum()), float((following + gains.shift).max(initial=0.0, where=counts < high))
    last, counts, left, items, owners, value, price = around(gains, low, high, need)
    # All gains above the last one that is taken, and of those equal to it as many as are left.
    caps = counts.copy()
    taken, more, following = take(items, owners, last, counts, caps)
    left -= taken
    value += more + left * last
    if last == 0.0:
        caps = np.array(np.broadcast_to(high, prompts))  # nothing more is gained anywhere
    if left == int(caps.sum()) - int(counts.sum()):
        counts, price = caps, max(price, following)
    else:
        fill_level(counts, caps, left)
        price = last
    if gains.shift.size > 1:
        value = float(values_and_gains(gains, counts)[0].sum())
    return counts, float(value), float(price)


def around(gains: Gains, low: np.ndarray, high: np.ndarray, place: int):
    """
    The gain of a place, from 1 for the largest, and what lies around it. Arguments as in [`select`].

    A sample says where it is, one pass over all prompts counts the gains above and stores those around, and selection
    finds it among them. A sample that misleads costs another pass, never exactness.

    Returns:
        `(last, counts, left, items, owners, value, below)`: the gain, exactly 0 if fewer are positive; `low` and the gains
        above the bracket, `(P,)`; how many in the bracket are to be taken; these gains and their prompts; the value of
        `counts`; and the largest gain below the bracket.
    """
    prompts = gains.k.size
    top, bottom, ratio = math.inf, TINY, 1.0
    if prompts > FEW:
        size = min(max(FEW, prompts // STRIDE), SAMPLE)
        chosen = _sample(prompts, size)
        rank = max(1, round(place * (size / prompts)))
        sample = Gains(gains.p[chosen], gains.q[chosen], gains.k[chosen], _of(gains.shift, chosen), gains.beliefs)
        guess = around(sample, _of(low, chosen), _of(high, chosen), rank)[0]
        # Four deviations of a sample in which a deviation of one prompt's count is one e-fold of its gain.
        ratio = math.exp(4.0 / math.sqrt(size))
        top, bottom = max(guess, 1e-300) * ratio, max(guess / ratio, TINY)
    counts = np.empty(prompts, np.int64)
    room = 2 * prompts + 2048
    while True:
        items, owners = np.empty(room), np.empty(room, np.int64)
        above, found, value, below = collect(gains, low, high, top, bottom, counts, items, owners)
        if above >= place:
            bottom, top = top, top * ratio
        elif above + found < place and bottom > TINY:
            top, bottom = bottom, max(bottom / ratio, TINY)
        elif found > room:
            room = found
            continue
        else:
            break
        ratio *= ratio
    items, owners, left = items[:found], owners[:found], place - above
    last = float(np.partition(items, found - left)[found - left]) if left <= found else 0.0
    return last, counts, left, items, owners, value, below


def values_and_gains(gains: Gains, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `counts (P,)` are worth, and what one more rollout adds, without the shift: two arrays `(P,)`."""
    expect(int(counts.sum()))
    values, following = np.empty(counts.size), np.empty(counts.size)
    evaluate(gains, counts, values, following)
    return values, following


@lru_cache(maxsize=16)
def _sample(prompts: int, size: int) -> np.ndarray:
    """Indices of `size` prompts, `(size,)`, one in each block: scattered, so that data with a period is met fairly."""
    block = np.arange(size)
    stride = prompts // size
    return block * stride + (block * 2654435761 >> 8) % stride


def _of(array: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Entries `(S,)` of an array `(P,)`, or the array `(1,)` that holds for all."""
    return array[prompts] if array.size > 1 else array

"""
Every compiled loop of the package, in one file.

Kernels take checked arrays, hold no strings and raise nothing: [`trl_knapsack.allocation`] checks above them. They are
compiled on first use and cached on disk. With `NUMBA_DISABLE_JIT=1` the same code runs as plain Python, which the tests
use.

Notation, shared by all kernels (derived in `docs/method.md`):

    weight w(p) = scale * p^r (1-p)^s              r, s are given as half_p = 2r, half_q = 2s: integers, so that
                                                   sqrt(p) needs no floating-point exponent
    gain(N)     = k (x_N + y_N),  N >= 1           what rollout N + 1 adds to a prompt that has N
        success rate p:     k = w(p) p (1-p)            x_1 = y_1 = 1, then x *= p and y *= 1 - p
        p ~ Beta(a, b):     k = E[w(p) p (1-p)]         x_1 = y_1 = 1, then x *= (a+r+N)/(c+N) and y *= (b+s+N)/(c+N),
                                                        c = a + b + r + s + 1

A gain is always computed along the same chain: from `low` in jumps of `JUMP` rollouts, then in single steps. The same
prompt therefore has bitwise the same gains in every pass, and equal prompts tie exactly.
"""

import math

import numpy as np
from numba import njit


JUMP = 8
# Sampled levels: each is this many times smaller than the next, until about BASE prompts are left.
LEVEL = 16
BASE = 512
# How many standard deviations of a sample's count a bracket reaches to either side.
MARGIN = 2.5
# Bins of the success rate, and the longest walk for which they are filled.
BINS = 1 << 14
LONGEST = 1 << 10
# The smallest positive double: a bottom below which no gain is worth anything.
TINY = 5e-324


@njit(cache=True)
def geometric(p, terms):
    """
    Powers and sums of `p` and of `q = 1 - p`: `(p^terms, q^terms, 1 + p + ... + p^(terms-1), 1 + q + ... )`.

    In O(log terms) steps by `S_(m+n) = S_m + p^m S_n`, which subtracts nothing. Both at once, because what this costs is
    the branches.
    """
    q = 1.0 - p
    power_p = 1.0
    power_q = 1.0
    sum_p = 0.0
    sum_q = 0.0
    step_p = 1.0  # the sum of as many terms as the bit stands for
    step_q = 1.0
    while terms > 0:
        if terms & 1:
            sum_p += power_p * step_p
            sum_q += power_q * step_q
            power_p *= p
            power_q *= q
        step_p *= 1.0 + p
        step_q *= 1.0 + q
        p *= p
        q *= q
        terms >>= 1
    return power_p, power_q, sum_p, sum_q


@njit(cache=True)
def half_power(base, halves):
    """`base^(halves / 2)`."""
    power = 1.0
    for _ in range(halves >> 1):
        power *= base
    if halves & 1:
        power *= math.sqrt(base)
    return power


@njit(cache=True)
def half_rising(z, halves):
    """`Gamma(z + halves / 2) / Gamma(z)`: a rising factorial, and for odd `halves` one ratio half a step apart."""
    ratio = 1.0
    for _ in range(halves >> 1):
        ratio *= z
        z += 1.0
    if halves & 1:
        while z < 32.0:
            ratio *= z / (z + 0.5)
            z += 1.0
        # Asymptotic series of Gamma(z + 1/2) / Gamma(z) (DLMF 5.11.13); the first dropped term is below 1e-15 at z = 32.
        t = 1.0 / z
        series = 869.0 / 4194304.0 + t * (39325.0 / 33554432.0)
        series = -21.0 / 32768.0 + t * (-399.0 / 262144.0 + t * series)
        series = 1.0 / 128.0 + t * (5.0 / 1024.0 + t * series)
        ratio *= math.sqrt(z) * (1.0 + t * (-0.125 + t * series))
    return ratio


@njit(cache=True)
def rate_factor(p, half_p, half_q):
    """`k = w(p) p (1-p)` of a success rate, without the scale."""
    return half_power(p, half_p + 2) * half_power(1.0 - p, half_q + 2)


@njit(cache=True)
def belief_factor(a, b, half_p, half_q):
    """`k = E[w(p) p (1-p)]` under Beta(a, b), without the scale."""
    return half_rising(a, half_p + 2) * half_rising(b, half_q + 2) / half_rising(a + b, half_p + half_q + 4)


@njit(cache=True)
def rise8(z):
    """`z (z+1) ... (z+7)` with four multiplications: the factors z+j and z+7-j pair up."""
    t = z * (z + 7.0)
    return t * (t + 6.0) * (t + 10.0) * (t + 12.0)


@njit(cache=True)
def walk_rate(p, k, shift, low, high, top, bottom, owner, gains, owners, levels, found):
    """
    Count the gains of one prompt at or above `top` and store those in `[bottom, top)`.

    Returns `(count, found, value)`: `low` plus the gains at or above `top`, the items found so far over all prompts
    (also those beyond the room in `gains`), and the value of `count` rollouts without the shift.
    """
    q = 1.0 - p
    x, y, value_x, value_y = geometric(p, low - 1)
    value = k * (value_x + value_y)
    x *= k
    y *= k
    n = low
    following = low + JUMP  # the next point that jumps start from
    first_end = min(high, following)
    gain = x + y + shift
    while gain >= top and n < first_end:
        value += x + y
        x *= p
        y *= q
        n += 1
        gain = x + y + shift
    anchor_x = x
    anchor_y = y
    if n == following:
        p8, q8, sum_p, sum_q = geometric(p, JUMP)
        while n + JUMP <= high and x * p8 + y * q8 + shift >= top:
            value += x * sum_p + y * sum_q
            x *= p8
            y *= q8
            n += JUMP
        anchor_x = x
        anchor_y = y
        following = n + JUMP
        gain = x + y + shift
    count = n
    while gain >= bottom and n < high:
        if gain >= top:
            value += x + y
            count += 1
        else:
            if found < gains.size:
                gains[found] = gain
                owners[found] = owner
                levels[found] = n
            found += 1
        n += 1
        if n < following or n == low + JUMP:
            x *= p
            y *= q
        else:
            p8, q8, _, _ = geometric(p, JUMP)
            x = anchor_x * p8
            y = anchor_y * q8
        if n == following:
            anchor_x = x
            anchor_y = y
            following += JUMP
        gain = x + y + shift
    return count, found, value


@njit(cache=True)
def walk_belief(a, b, k, shift, low, high, top, bottom, owner, gains, owners, levels, found):
    """
    As [`walk_rate`] under p ~ Beta. `a` and `b` are the parameters plus the exponents of the weight, `alpha + r` and
    `beta + s`.
    """
    c = a + b + 1.0
    x, y = belief_chain(a, b, low)
    x *= k
    y *= k
    n = low
    following = low + JUMP
    first_end = min(high, following)
    gain = x + y + shift
    while gain >= top and n < first_end:
        inverse = 1.0 / (c + n)
        x *= (a + n) * inverse
        y *= (b + n) * inverse
        n += 1
        gain = x + y + shift
    anchor_x = x
    anchor_y = y
    if n == following:
        while n + JUMP <= high:
            inverse = 1.0 / rise8(c + n)
            next_x = x * (rise8(a + n) * inverse)
            next_y = y * (rise8(b + n) * inverse)
            if next_x + next_y + shift < top:
                break
            x = next_x
            y = next_y
            n += JUMP
        anchor_x = x
        anchor_y = y
        following = n + JUMP
        gain = x + y + shift
    count = n
    count_x = x
    count_y = y
    while gain >= bottom and n < high:
        above = gain >= top
        if not above:
            if found < gains.size:
                gains[found] = gain
                owners[found] = owner
                levels[found] = n
            found += 1
        n += 1
        if n < following or n == low + JUMP:
            inverse = 1.0 / (c + n - 1.0)
            x *= (a + n - 1.0) * inverse
            y *= (b + n - 1.0) * inverse
        else:
            start = n - JUMP
            inverse = 1.0 / rise8(c + start)
            x = anchor_x * (rise8(a + start) * inverse)
            y = anchor_y * (rise8(b + start) * inverse)
        if n == following:
            anchor_x = x
            anchor_y = y
            following += JUMP
        gain = x + y + shift
        if above:
            count += 1
            count_x = x
            count_y = y
    return count, found, belief_value(a, b, k, count, count_x, count_y)


@njit(cache=True)
def belief_chain(a, b, count):
    """`(x_N, y_N)` under p ~ Beta at `N = count >= 1`; `a` and `b` as in [`walk_belief`]."""
    c = a + b + 1.0
    x = 1.0
    y = 1.0
    n = 1
    while n + JUMP <= count:
        inverse = 1.0 / rise8(c + n)
        x *= rise8(a + n) * inverse
        y *= rise8(b + n) * inverse
        n += JUMP
    while n < count:
        inverse = 1.0 / (c + n)
        x *= (a + n) * inverse
        y *= (b + n) * inverse
        n += 1
    return x, y


@njit(cache=True)
def belief_value(a, b, k, count, kx, ky):
    """Value of `count` rollouts, the telescoped sum of the gains, from `kx = k x_N` and `ky = k y_N`."""
    total = a + b + 1.0
    rest = total + (count - 1.0)
    return ((k * total - rest * kx) * a + (k * total - rest * ky) * b) / (a * b)  # one division instead of two


@njit(cache=True)
def kth_largest(values, k):
    """
    Partially sort `values` in place so that `values[k]` is the element number `k` (from 0) in falling order and
    everything before it is at least as large. Hoare's FIND with a median of three; equal values split evenly.
    """
    left = 0
    right = values.size - 1
    while left < right:
        middle = (left + right) >> 1
        if values[left] < values[middle]:
            values[left], values[middle] = values[middle], values[left]
        if values[middle] < values[right]:
            values[middle], values[right] = values[right], values[middle]
            if values[left] < values[middle]:
                values[left], values[middle] = values[middle], values[left]
        pivot = values[middle]
        i = left
        j = right
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            right = j
        elif k >= i:
            left = i
        else:
            break
    return values[k]


@njit(cache=True)
def gains_above(first, p, q, threshold, longest):
    """Terms `first * p^n + first * q^n` for n = 0, 1, .. that are at or above `threshold`, counted from 1 to `longest`."""
    x = first
    y = first
    n = 1
    while n < longest and x + y >= threshold:
        x *= p
        y *= q
        n += 1
    return n


@njit(cache=True)
def rate_bins(half_p, half_q, scale, longest, top, bottom, bins):
    """
    Which counts the success rates of a bin can lead to.

    Bin `j` of `bins` (a power of two) holds the rates in `[j, j + 1] / bins`. Each term `p^i (1-p)^j` of a gain is at
    most its factors' values at the ends where they are largest, and at least those where they are smallest. So
    `least[j]` gains of every rate in the bin are at or above `top`, and at most `most[j]` at or above `bottom`; where
    the two are the same, no gain of the bin has to be computed at all.

    Returns `(least, most)`, both int32 of shape `(bins,)`, counted from 1 and at most `longest`.
    """
    least = np.empty(bins, np.int32)
    most = np.empty(bins, np.int32)
    for j in range(bins):
        p0 = j / bins
        p1 = (j + 1) / bins
        q0 = 1.0 - p1
        q1 = 1.0 - p0
        # A part in 1e12 covers the rounding of the products.
        x = scale * half_power(p0, half_p + 2) * half_power(q0, half_q + 2) * (1.0 - 1e-12)
        least[j] = gains_above(x, p0, q0, top, longest)
        x = scale * half_power(p1, half_p + 2) * half_power(q1, half_q + 2) * (1.0 + 1e-12)
        most[j] = gains_above(x, p1, q1, bottom, longest)
    return least, most


@njit(cache=True)
def collect(
    first, second, half_p, half_q, scale, shift, low, high, stride, top, bottom, counts, gains, owners, levels
):
    """
    One pass over every prompt (`stride` 1) or over a sample of one prompt in each block of `stride`.

    Returns `(above, found, value, spread)`: the gains at or above `top`, the items in `[bottom, top)`, the value of the
    counts, and the variance of the counts over the prompts. Counts are written when `counts` has room for them.
    """
    size = first.size // stride
    beliefs = second.size > 0
    scale_step = 1 if scale.size > 1 else 0
    shift_step = 1 if shift.size > 1 else 0
    low_step = 1 if low.size > 1 else 0
    high_step = 1 if high.size > 1 else 0
    write = counts.size > 0
    above = 0
    found = np.int64(0)  # typed, or numba compiles what takes it twice: for a literal and for an integer
    value = 0.0
    squares = 0.0
    r = 0.5 * half_p
    s = 0.5 * half_q
    bins = 0
    least = np.empty(0, np.int32)
    most = least
    if size >= 3 * BINS and not beliefs and scale.size == 1 and shift.size == 1 and shift[0] == 0.0:
        longest = np.int64(1)
        for i in range(high.size):
            longest = max(longest, high[i])
        # A walk that long would cost more than the bins save.
        if longest <= LONGEST:
            bins = BINS
            least, most = rate_bins(half_p, half_q, scale[0], longest, top, bottom, bins)
    for block in range(size):
        i = block
        if stride > 1:
            # A fixed scatter inside the block, so that data with a period does not meet a sample with the same one.
            i = block * stride + ((block * 2654435761) >> 8) % stride
        lowest = low[i * low_step]
        highest = high[i * high_step]
        settled = False
        count = 0
        worth = 0.0
        if bins > 0:
            j = min(int(first[i] * bins), bins - 1)
            count = min(max(least[j], lowest), highest)
            settled = count == min(max(most[j], lowest), highest)
        if settled:
            _, _, sum_p, sum_q = geometric(first[i], count - 1)
            worth = scale[0] * rate_factor(first[i], half_p, half_q) * (sum_p + sum_q)
        elif beliefs:
            k = scale[i * scale_step] * belief_factor(first[i], second[i], half_p, half_q)
            count, found, worth = walk_belief(
                first[i] + r, second[i] + s, k, shift[i * shift_step], lowest, highest,
                top, bottom, i, gains, owners, levels, found,
            )  # fmt: skip
        else:
            k = scale[i * scale_step] * rate_factor(first[i], half_p, half_q)
            count, found, worth = walk_rate(
                first[i], k, shift[i * shift_step], lowest, highest,
                top, bottom, i, gains, owners, levels, found,
            )  # fmt: skip
        if write:
            counts[i] = count
        count -= lowest
        above += count
        squares += float(count) * count
        value += worth
    mean = above / size
    return above, found, value, max(0.0, squares / size - mean * mean)


@njit(cache=True)
def fill_level(counts, high, room):
    """
    Hand out `room` rollouts that all gain the same: each to the prompt with the fewest, then to the lower index.

    `counts (P,)` is raised in place to a common water level, never beyond `high (1,) or (P,)`.
    """
    step = 1 if high.size > 1 else 0
    if room <= 0:
        return
    # The highest level whose cost is within the room, by bisection over integers.
    below = counts[0]
    over = counts[0]
    for i in range(counts.size):
        below = min(below, counts[i])
        over = max(over, high[i * step])
    over += 1
    while over - below > 1:
        level = (below + over) >> 1
        cost = 0
        for i in range(counts.size):
            goal = min(level, high[i * step])
            if goal > counts[i]:
                cost += goal - counts[i]
        if cost <= room:
            below = level
        else:
            over = level
    for i in range(counts.size):
        goal = min(below, high[i * step])
        if goal > counts[i]:
            room -= goal - counts[i]
            counts[i] = goal
    for i in range(counts.size):
        if room == 0:
            break
        if counts[i] == below and counts[i] < high[i * step]:
            counts[i] += 1
            room -= 1


@njit(cache=True)
def take_items(counts, gains, owners, levels, take):
    """
    Give one rollout to the owners of the `take` largest of `gains (F,)`.

    Equal gains at the threshold: the prompt with fewer rollouts (`levels`) first, then the lower index. Returns
    `(value, price)`: the sum of the gains taken and the largest gain not taken (0 when all are).
    """
    if gains.size == 0:
        return 0.0, 0.0
    order = gains.copy()
    price = 0.0
    if take < gains.size:
        price = kth_largest(order, take)
    if take == 0:
        return 0.0, price
    threshold = order[0]
    for j in range(take):
        threshold = min(threshold, order[j])
    value = 0.0
    ties = 0
    left = take
    for j in range(gains.size):
        if gains[j] > threshold:
            counts[owners[j]] += 1
            value += gains[j]
            left -= 1
        elif gains[j] == threshold:
            ties += 1
    if ties == left:
        cut = np.inf
        at_cut = 0
    else:
        tied = np.empty(ties)
        ties = 0
        for j in range(gains.size):
            if gains[j] == threshold:
                tied[ties] = -levels[j]
                ties += 1
        cut = -kth_largest(tied, left - 1)
        at_cut = left
        for j in range(ties):
            if tied[j] > -cut:
                at_cut -= 1
    for j in range(gains.size):
        if gains[j] == threshold and (levels[j] < cut or (levels[j] == cut and at_cut > 0)):
            if levels[j] == cut:
                at_cut -= 1
            counts[owners[j]] += 1
            value += threshold
    return value, price


@njit(cache=True)
def value_and_gain(first, second, beliefs, half_p, half_q, scale, count):
    """Value of `count` rollouts of one prompt, and what one more adds."""
    if count < 1:
        return 0.0, 0.0
    if beliefs:
        k = scale * belief_factor(first, second, half_p, half_q)
        a = first + 0.5 * half_p
        b = second + 0.5 * half_q
        x, y = belief_chain(a, b, count)
        return belief_value(a, b, k, count, k * x, k * y), k * x + k * y
    k = scale * rate_factor(first, half_p, half_q)
    x, y, sum_x, sum_y = geometric(first, count - 1)
    return k * (sum_x + sum_y), k * x + k * y


@njit(cache=True)
def values_and_gains(first, second, half_p, half_q, scale, counts):
    """Value of `counts (P,)` and what one more rollout adds, two arrays `(P,)`."""
    values = np.empty(counts.size)
    gains = np.empty(counts.size)
    beliefs = second.size > 0
    step = 1 if scale.size > 1 else 0
    for i in range(counts.size):
        values[i], gains[i] = value_and_gain(
            first[i], second[i] if beliefs else 0.0, beliefs, half_p, half_q, scale[i * step], counts[i]
        )
    return values, gains


@njit(cache=True)
def value_table(first, second, half_p, half_q, scale, table):
    """Add the value of 0 .. M-1 rollouts to `table (P, M)` in place."""
    beliefs = second.size > 0
    step = 1 if scale.size > 1 else 0
    for i in range(table.shape[0]):
        total = 0.0
        for count in range(1, table.shape[1]):
            table[i, count] += total
            total += value_and_gain(
                first[i], second[i] if beliefs else 0.0, beliefs, half_p, half_q, scale[i * step], count
            )[1]


@njit(cache=True)
def next_up(x):
    """The smallest double above `x >= 0`."""
    return np.nextafter(x, np.inf)


@njit(cache=True)
def enclose(
    first, second, half_p, half_q, scale, shift, low, high, stride, first_rank, last_rank, top, bottom,
    counts, gains, owners, levels,
):  # fmt: skip
    """
    Move `[bottom, top)` until it holds the gains of the ranks `first_rank + 1 .. last_rank` (in falling order, among
    the prompts of this `stride`), and few enough to store. All gains are positive; zero ones are never items.

    Returns what [`collect`] does, then the bracket and the three buffers.
    """
    ratio = min(32.0, max(1.1, top / bottom))  # how far a bracket that missed is moved: further each time
    limit = np.inf  # a top known to be high enough
    floor = TINY  # a bottom known to be low enough
    narrowed = 0
    while True:
        above, found, value, spread = collect(
            first, second, half_p, half_q, scale, shift, low, high, stride, top, bottom, counts, gains, owners, levels
        )
        if above > first_rank:
            if above >= last_rank:
                bottom = top
                floor = max(floor, top)
            top = min(top * ratio, limit)
            ratio *= ratio
            continue
        limit = min(limit, top)
        if above + found < last_rank and bottom > TINY:
            if above + found <= first_rank:
                top = bottom
                limit = min(limit, top)
            bottom = max(bottom / ratio, floor)
            ratio *= ratio
            continue
        floor = max(floor, bottom)
        if found <= gains.size:
            return above, found, value, spread, top, bottom, gains, owners, levels
        # Too many to store. Those that were stored tell where in the bracket the ranks lie.
        room = gains.size
        order = gains.copy()
        new_top = top
        new_bottom = bottom
        start = int((float(first_rank - above) / found - 0.1) * room)
        end = int((float(last_rank - above) / found + 0.1) * room)
        if narrowed < 4:
            if start > 0:
                new_top = min(top, next_up(kth_largest(order, start)))
            if end < room - 1:
                new_bottom = kth_largest(order, end)
        narrowed += 1
        if new_top == top and new_bottom == bottom:
            gains = np.empty(found)
            owners = np.empty(found, np.int32)
            levels = np.empty(found, np.int32)
        top = new_top
        bottom = new_bottom


@njit(cache=True)
def select(first, second, half_p, half_q, scale, shift, low, high, budget, lowest_total):
    """
    Give out `budget` rollouts: the `budget - lowest_total` largest marginal gains of all prompts.

    A threshold is bracketed on a small sample of the prompts, the bracket is narrowed on larger samples, and one pass
    over all prompts counts the gains above it and stores the few inside it, among which selection finds the exact
    answer. A bracket that turns out wrong costs another pass, never exactness.

    Returns `(counts, value, price)`.
    """
    prompts = first.size
    need = budget - lowest_total
    counts = np.empty(prompts, np.int64)
    no_counts = np.empty(0, np.int64)

    stride = 1
    while prompts // stride > BASE:
        stride *= LEVEL

    # The first bracket: from the largest gain of the coarsest sample down.
    largest = 0.0
    for block in range(prompts // stride):
        i = block * stride
        _, gain = value_and_gain(
            first[i], second[i] if second.size > 0 else 0.0, second.size > 0, half_p, half_q,
            scale[i if scale.size > 1 else 0], low[i if low.size > 1 else 0],
        )  # fmt: skip
        largest = max(largest, gain + shift[i if shift.size > 1 else 0])
    top = next_up(largest)
    bottom = max(largest / 32.0, TINY)

    gains = np.empty(0)
    owners = np.empty(0, np.int32)
    levels = np.empty(0, np.int32)
    spread = -1.0  # variance of the counts over the prompts, not known yet
    while stride > 1:
        size = prompts // stride
        room = min(4 * size + 2048, prompts)
        if gains.size < room:
            gains = np.empty(room)
            owners = np.empty(room, np.int32)
            levels = np.empty(room, np.int32)
        centre = need * (size / prompts)
        margin = MARGIN * math.sqrt(size * max(spread, 0.0)) + 2.0
        first_rank = max(0, int(centre - margin))
        last_rank = int(centre + margin) + 1
        above, found, _, new_spread, top, bottom, gains, owners, levels = enclose(
            first, second, half_p, half_q, scale, shift, low, high, stride, first_rank, last_rank, top, bottom,
            no_counts, gains, owners, levels,
        )  # fmt: skip
        # The gains of the two ranks bracket the threshold of the next, larger sample.
        order = gains[:found].copy()
        new_bottom = TINY
        if last_rank - above <= found:
            new_bottom = kth_largest(order, last_rank - above - 1)
        if spread < 0.0:
            # The first bracket is wide: how much the counts vary is measured at the threshold found in it.
            _, _, _, spread = collect(
                first, second, half_p, half_q, scale, shift, low, high, stride, new_bottom, new_bottom,
                no_counts, gains, owners, levels,
            )  # fmt: skip
            continue
        if first_rank == 0:
            top = np.inf
        elif first_rank > above:
            top = next_up(kth_largest(order, first_rank - above - 1))
        bottom = new_bottom
        spread = new_spread
        stride //= LEVEL

    room = max(prompts, min(16 * prompts, 16 * BASE))
    if gains.size < room:
        gains = np.empty(room)
        owners = np.empty(room, np.int32)
        levels = np.empty(room, np.int32)
    above, found, value, _, _, _, gains, owners, levels = enclose(
        first, second, half_p, half_q, scale, shift, low, high, stride, need, need + 1, top, bottom,
        counts, gains, owners, levels,
    )  # fmt: skip
    take = min(need - above, found)
    more, price = take_items(counts, gains[:found], owners[:found], levels[:found], take)
    left = need - above - take
    if left > 0:
        fill_level(counts, high, left)
    return counts, value + more, price


@njit(cache=True)
def knapsack_table(values, low, high, costs, rollouts, tokens):
    """
    Dynamic program over `rollouts` and `tokens` above the lower bounds: the best value of the first `i` prompts with
    exactly `r` rollouts and at most `t` tokens.

    Args: `values (P, M)`, `low, high, costs (P,)`. Returns `best (rollouts + 1, tokens + 1)`, -inf where nothing fits,
    and `choices (P, rollouts + 1, tokens + 1)`, the rollouts of each prompt above its lower bound.
    """
    prompts = values.shape[0]
    best = np.full((rollouts + 1, tokens + 1), -np.inf)
    best[0, :] = 0.0
    choices = np.zeros((prompts, rollouts + 1, tokens + 1), np.int32)
    reach = 0
    for i in range(prompts):
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
    return best, choices

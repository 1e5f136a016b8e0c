"""
What the asynchronous worker must have decided, from the order of scored completions alone. Exact fractions and a plain loop;
imports nothing of the package, of TRL, or of torch.
"""

import functools
import heapq
import math
from fractions import Fraction

from oracle import mean


WINDOW = 64


@functools.cache
def gain(a, b, n):
    """E[V(n+1) - V(n)] for p ~ Beta(a, b) and V(n) = (1 - p^n - q^n) p q^2: E[p^(n+1) q^3 + p^2 q^(n+2)]."""
    return moment(a, b, n + 1, 3) + moment(a, b, 2, n + 2)


def moment(a, b, i, j):
    """E[p^i q^j] = (a)_i (b)_j / (a+b)_(i+j), with rising factorials."""
    return rising(a, i) * rising(b, j) / rising(a + b, i + j)


def rising(z, n):
    return math.prod((z + k for k in range(n)), start=Fraction(1))


def last_count(beliefs, budget, look, most):
    """Give out the budget rollout by rollout; equal gains go to whoever has fewer, then to the first. The last one's count."""
    counts = [look] * len(beliefs)
    able = [(-gain(*belief, look), look, i) for i, belief in enumerate(beliefs) if look < most]
    heapq.heapify(able)
    for _ in range(budget - sum(counts)):
        _, _, best = heapq.heappop(able)
        counts[best] += 1
        if counts[best] < most:
            heapq.heappush(able, (-gain(*beliefs[best], counts[best]), counts[best], best))
    return counts[-1]


class Prompts:
    """Beliefs: a prior of (1, 1), and old counts times 0.85 at each new visit."""

    def __init__(self, known=()):
        self.counts = {key: (Fraction(won), Fraction(lost)) for key, won, lost in known}

    def learn(self, key, won, lost, new_visit):
        before = self.counts.get(key, (Fraction(0), Fraction(0)))
        keep = Fraction(0.85) if new_visit and won + lost else 1
        self.counts[key] = (keep * before[0] + won, keep * before[1] + lost)

    def belief(self, key):
        won, lost = self.counts.get(key, (Fraction(0), Fraction(0)))
        return won + 1, lost + 1


def advantages(rewards, earlier):
    """Of a round, compared with itself and with the rounds before; None (not scored) has 0."""
    known = [r for r in [*earlier, *rewards] if r is not None]
    if not known:
        return [0.0] * len(rewards)
    middle = mean(known)
    spread = math.sqrt(sum((r - middle) ** 2 for r in known) / len(known))
    return [0.0 if r is None else (r - middle) / (spread + 1e-8) for r in rewards]


def replay(calls, dataset_size, mean_generations, look, most, known=()):
    """
    calls: (prompt, rewards) of each scored round, in order; `prompt` is its place in the dataset.

    Returns a dictionary from (prompt, visit) to its rounds, each a list of (reward, advantage), the decided count of each
    visit that was decided upon, and what is known of the prompts afterwards.
    """
    prompts, window, owed = Prompts(known), [], 0
    rounds, decided, visit_of = {}, {}, {}
    for prompt, rewards in calls:
        visit = visit_of.get(prompt, 0)
        so_far = rounds.setdefault((prompt, visit), [])
        earlier = [r for group in so_far for r, _ in group]
        expected = decided[prompt, visit] - look if earlier else look
        assert len(rewards) == expected, (prompt, visit, len(rewards), expected)
        so_far.append(list(zip(rewards, advantages(rewards, earlier), strict=True)))
        scored = [r for r in rewards if r is not None]
        won = sum(r >= 0.5 for r in scored)
        prompts.learn(prompt, won, len(scored) - won, new_visit=all(r is None for r in earlier))
        if not earlier:
            window = [*window, prompts.belief(prompt)][-WINDOW:]
            budget = len(window) * mean_generations + owed
            budget = min(max(budget, len(window) * look), len(window) * most)
            decided[prompt, visit] = last_count(window, budget, look, most)
            owed += mean_generations - decided[prompt, visit]
        if earlier or decided[prompt, visit] == look:
            visit_of[prompt] = visit + 1
    return rounds, decided, prompts

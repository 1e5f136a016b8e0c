"""Slow and obvious oracles in plain Python. Imports nothing of the package, of TRL, or of torch."""

import math

import naive


def split(rows, counts):
    """[a, b, c, d, e], [2, 3] -> [[a, b], [c, d, e]]"""
    groups, start = [], 0
    for count in counts:
        groups.append(rows[start : start + count])
        start += count
    assert start == len(rows)
    return groups


def valid(values):
    return [v for v in values if v is not None]


def mean(values):
    values = valid(values)
    return sum(values) / len(values) if values else None


def std(values):
    """Sample standard deviation of what is there, None where fewer than two are."""
    values = valid(values)
    if len(values) < 2:
        return None
    m = sum(values) / len(values)
    return math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1))


def total(row, weights):
    """Weighted sum of a rollout's rewards; None where no function gave one."""
    parts = [r * w for r, w in zip(row, weights, strict=True) if r is not None]
    return sum(parts) if parts else None


def advantages(rewards, counts, weights, scale_rewards, aggregation):
    """
    rewards: one list of F rewards (None where a function gave none) per rollout. Returns one advantage per rollout; a
    rollout without any reward has 0.
    """
    totals = [total(row, weights) for row in rewards]
    if aggregation == "sum_then_normalize":
        result = []
        for group in split(totals, counts):
            m = mean(group)
            s = {"group": std(group), "batch": std(totals), "none": None}[scale_rewards]
            for r in group:
                if r is None or (scale_rewards != "none" and s is None):
                    result.append(0.0)
                elif scale_rewards == "none":
                    result.append(r - m)
                else:
                    result.append((r - m) / (s + 1e-4))
        return result

    scores = []
    for group in split(rewards, counts):
        for row in group:
            if all(r is None for r in row):
                scores.append(None)
                continue
            score = 0.0
            for f, r in enumerate(row):
                column = [other[f] for other in group]
                if r is not None and std(column) is not None:
                    score += weights[f] * (r - mean(column)) / (std(column) + 1e-4)
            scores.append(score)
    m, s = mean(scores), std(scores)
    return [0.0 if score is None or s is None else (score - m) / (s + 1e-4) for score in scores]


def advantages_after(rewards, counts, earlier, weights, scale_rewards, aggregation):
    """
    As `advantages`, where the prompt of each group got rollouts before: `earlier[g]` is a list of their rewards, which
    count in what the group is compared with, and in nothing else.
    """
    groups = split(rewards, counts)
    scores = []
    for group, before in zip(groups, earlier, strict=True):
        for row in group:
            score = 0.0
            if aggregation == "sum_then_normalize":
                known = [total(other, weights) for other in before + group]
                score = None if total(row, weights) is None else total(row, weights) - mean(known)
                spread = {"group": std(known), "batch": std([total(r, weights) for r in rewards]), "none": None}
                if score is not None and scale_rewards != "none":
                    s = spread[scale_rewards]
                    score = 0.0 if s is None else score / (s + 1e-4)
            elif all(r is None for r in row):
                score = None
            else:
                for f, r in enumerate(row):
                    column = [other[f] for other in before + group]
                    if r is not None and std(column) is not None:
                        score += weights[f] * (r - mean(column)) / (std(column) + 1e-4)
            scores.append(score)
    if aggregation == "normalize_then_sum":
        m, s = mean(scores), std(scores)
        scores = [None if score is None or s is None else (score - m) / (s + 1e-4) for score in scores]
    return [0.0 if score is None else score for score in scores]


class Visits:
    """Rewards that prompts got since they came, from what a run shows of its batches; names are those of a record."""

    def __init__(self):
        self.waiting = []  # [key, rewards], in the order of arrival

    def batch(self, keys, counts, looks, before, rewards):
        """Rewards of each group's earlier rollouts, a list of lists; then those of this batch are added."""
        earlier, used = [], []
        for key, is_look, number in zip(keys, looks, before, strict=True):
            if is_look or number == 0:
                visit = [key, []]
            else:
                visit = next(v for v in self.waiting if v[0] == key and len(v[1]) == number and v not in used)
            used.append(visit)
            earlier.append(list(visit[1]))
        for visit, group in zip(used, split(rewards, counts), strict=True):
            if visit not in self.waiting:
                self.waiting.append(visit)
            visit[1] = visit[1] + group
        return earlier


def mixed(rewards, counts, weights, aggregation):
    """Whether the rewards vary within each group."""
    result = []
    for group in split(rewards, counts):
        if aggregation == "sum_then_normalize":
            values = valid([total(row, weights) for row in group])
            result.append(len(set(values)) > 1)
        else:
            columns = [valid([row[f] for row in group]) for f in range(len(weights))]
            result.append(any(len(set(column)) > 1 for column in columns))
    return result


def frac_reward_zero_std(rewards, counts, weights, scale_rewards, aggregation):
    """Share of rollouts for which TRL's metric finds no deviation; one that is not defined is not zero."""
    totals = [total(row, weights) for row in rewards]
    if aggregation == "normalize_then_sum":
        return None
    if scale_rewards == "batch":
        return float(std(totals) == 0)
    flat = sum(count for count, group in zip(counts, split(totals, counts), strict=True) if std(group) == 0)
    return flat / sum(counts)


def log_beta(a, b):
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def expected_value(alpha, beta, n):
    """E[(1 - p^n - (1-p)^n) p (1-p)^2] for p ~ Beta(alpha, beta)."""

    def moment(i, j):  # E[p^i (1-p)^j]
        return math.exp(log_beta(alpha + i, beta + j) - log_beta(alpha, beta))

    return moment(1, 2) - moment(1 + n, 2) - moment(1, 2 + n)


def greedy(alphas, betas, budget, low, high):
    """One rollout after the other to the prompt that gains most by it."""

    def gain(i, n):
        return expected_value(alphas[i], betas[i], n + 1) - expected_value(alphas[i], betas[i], n)

    return naive.greedy(gain, [low] * len(alphas), [high] * len(alphas), budget)


class Beliefs:
    """Successes and failures of each prompt, in a dictionary: what the tracker should believe, and what follows."""

    def __init__(self):
        self.seen = {}

    def of(self, keys):
        """Alphas and betas."""
        pairs = [self.seen.get(key, (0.0, 0.0)) for key in keys]
        return [1.0 + s for s, _ in pairs], [1.0 + f for _, f in pairs]

    def visit(self, key, rewards):
        s, f = self.seen.get(key, (0.0, 0.0))
        self.seen[key] = (0.85 * s + sum(rewards), 0.85 * f + len(rewards) - sum(rewards))

    def is_best(self, keys, counts, high=128):
        """Whether no other counts are worth more than these. Ties are why values are compared, and not counts."""
        alphas, betas = self.of(keys)
        best = greedy(alphas, betas, sum(counts), 2, high)
        ours, theirs = (sum(map(expected_value, alphas, betas, n)) for n in (counts, best))
        return math.isclose(ours, theirs, rel_tol=1e-9)

"""
Slow and obvious oracles of the allocator, and the problems that they are asked. Nothing of the package is imported here.

`value` and `gain` follow the formulas of the paper with plain powers, beliefs are integrated by Gauss-Jacobi quadrature or
summed exactly in fractions, and the solvers enumerate, sort or take one rollout at a time.
"""

import math
from fractions import Fraction
from itertools import product

import numpy as np
from hypothesis import strategies as st


# (r, s) of w(p) = p^r (1-p)^s by the name of the value
POWERS = {"knapsack": (1, 2), "variance": (1, 1), "root": (0.5, 1), "mixed": (0, 0)}


def value(p, n, name="knapsack"):
    """V(N, p): zero for 0 and for 1 rollout."""
    r, s = POWERS[name]
    if n < 2:
        return 0 * p
    return (1 - p**n - (1 - p) ** n) * p**r * (1 - p) ** s


def gain(p, n, name="knapsack"):
    """V(N + 1, p) - V(N, p) without subtracting numbers that are nearly equal, for N >= 1."""
    r, s = POWERS[name]
    return (p**n * (1 - p) + (1 - p) ** n * p) * p**r * (1 - p) ** s


def gauss_jacobi(a, b, nodes):
    """Nodes and weights that integrate polynomials of degree < 2 nodes under Beta(a, b) exactly (Golub and Welsch)."""
    alpha, beta = b - 1.0, a - 1.0  # on [-1, 1] with weight (1-x)^alpha (1+x)^beta
    k = np.arange(1, nodes)
    total = 2 * k + alpha + beta
    diagonal = np.empty(nodes)
    diagonal[0] = (beta - alpha) / (alpha + beta + 2)
    diagonal[1:] = (beta**2 - alpha**2) / (total * (total + 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        square = 4 * k * (k + alpha) * (k + beta) * (k + alpha + beta) / (total**2 * (total + 1) * (total - 1))
    # k = 1 without the factor (1 + alpha + beta), which cancels and may be zero
    square[0] = 4 * (1 + alpha) * (1 + beta) / ((2 + alpha + beta) ** 2 * (3 + alpha + beta))
    matrix = np.diag(diagonal) + np.diag(np.sqrt(square), 1) + np.diag(np.sqrt(square), -1)
    x, vectors = np.linalg.eigh(matrix)
    return (1 + x) / 2, vectors[0] ** 2


def expected_value(a, b, n, name="knapsack"):
    """E[V(N, p)] under Beta(a, b). A half power of p moves into the density, whose norm then changes."""
    r, s = POWERS[name]
    half = r % 1
    norm = math.exp(math.lgamma(a + half) - math.lgamma(a) + math.lgamma(a + b) - math.lgamma(a + b + half))
    p, weights = gauss_jacobi(a + half, b, (n + 4) // 2 + 4)
    if n < 2:
        return 0.0
    q = 1 - p
    mixed = p * q * sum(p**j + q**j for j in range(n - 1))  # 1 - p^n - q^n without cancellation
    return norm * float(weights @ (mixed * p ** (r - half) * q**s))


def exact_expected_value(a: Fraction, b: Fraction, n: int) -> Fraction:
    """E[V(N, p)] of the paper's value under Beta(a, b), in fractions, from the moments of the Beta distribution."""

    def moment(i, j):  # E[p^i (1-p)^j]
        top = math.prod((a + k for k in range(i)), start=Fraction(1)) * math.prod(
            (b + k for k in range(j)), start=Fraction(1)
        )
        return top / math.prod((a + b + k for k in range(i + j)), start=Fraction(1))

    return moment(1, 2) - moment(1 + n, 2) - moment(1, 2 + n) if n >= 2 else Fraction(0)


def table(rates, longest, name="knapsack"):
    """Values of 0 .. longest rollouts, a list of lists."""
    return [[value(p, n, name) for n in range(longest + 1)] for p in rates]


def brute_force(values, low, high, budget, costs=None, max_cost=math.inf):
    """The best total value over every count vector there is; -inf if there is none."""
    best = -math.inf
    for counts in product(*(range(lo, hi + 1) for lo, hi in zip(low, high, strict=True))):
        if sum(counts) != budget:
            continue
        if costs is not None and sum(c * n for c, n in zip(costs, counts, strict=True)) > max_cost:
            continue
        best = max(best, sum(values[i][n] for i, n in enumerate(counts)))
    return best


def greedy(gain_of, low, high, budget):
    """
    One rollout at a time to the largest gain; among equal ones to the prompt with the fewest, then the lowest index.

    `gain_of(i, n)` is what prompt `i` gains from one more than `n`.
    """
    counts = list(low)
    for _ in range(budget - sum(low)):
        free = [i for i in range(len(counts)) if counts[i] < high[i]]
        i = min(free, key=lambda i: (-gain_of(i, counts[i]), counts[i], i))
        counts[i] += 1
    return counts


def largest_gains(gains, low, high, budget):
    """Sum of the largest gains of a matrix `(P, M)`, column n for the step from n to n + 1, by sorting all of them."""
    n = np.arange(gains.shape[1])
    allowed = (n >= np.asarray(low)[:, None]) & (n < np.asarray(high)[:, None])
    return np.sort(gains[allowed])[::-1][: budget - int(np.sum(low))].sum()


rates = st.one_of(
    st.floats(0, 1),
    st.integers(0, 8).map(lambda k: k / 8),
    st.sampled_from([0.0, 1.0, 0.5, 1e-12, 1e-3, 1 - 1e-3, 1 - 1e-12, 5e-324]),
)
parameters = st.one_of(st.floats(1e-3, 50.0), st.integers(0, 8).map(lambda k: k + 0.5))


few = st.integers(1, 5)
little = st.integers(0, 4)


@st.composite
def problems(draw, prompts=few, room=little, known=rates):
    """Rates, bounds per prompt and a budget; both ends of the possible budgets are drawn often."""
    size = draw(prompts)
    low = [draw(st.integers(1, 3)) for _ in range(size)]
    high = [lo + draw(room) for lo in low]
    budget = draw(st.one_of(st.integers(sum(low), sum(high)), st.sampled_from([sum(low), sum(high)])))
    return [draw(known) for _ in range(size)], low, high, budget


def check(allocation, low, high, budget):
    counts = allocation.counts
    assert counts.dtype == np.int64 and counts.sum() == budget
    assert np.all(counts >= low) and np.all(counts <= high)

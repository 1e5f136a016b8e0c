"""Estimates from `n` completions of every problem, and paired comparisons of two runs: NumPy and SciPy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from ..errors import InvalidInputError


@dataclass(frozen=True)
class Interval:
    """
    An estimate and its confidence interval.

    Attributes:
        estimate (`float`): Mean of the sample.
        low (`float`): Lower end.
        high (`float`): Upper end.
        confidence_level (`float`): Share of such intervals that cover the truth, for example 0.95.
    """

    estimate: float
    low: float
    high: float
    confidence_level: float

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@overload
def pass_at_k(n: int, c: int, k: int) -> float: ...
@overload
def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> float | np.ndarray: ...
def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> float | np.ndarray:
    r"""
    Probability that at least one of `k` completions is right, estimated without bias from `n` completions of which `c`
    are right (Chen et al., 2021, [Evaluating Large Language Models Trained on Code](https://huggingface.co/papers/2107.03374)):

    $$1 - \binom{n-c}{k} / \binom{n}{k}$$

    Computed with whole numbers, so that neither large `n` overflows nor small probabilities are lost.

    Args:
        n (`int` or array of `int`): Completions of each problem.
        c (`int` or array of `int`): Right ones among them, 0 to `n`.
        k (`int`): Completions that may be tried, 1 to `n`.

    Returns:
        `float`, or `np.ndarray` of the shape of `n` and `c` broadcast together.

    Raises:
        `ValueError`: if `k` is larger than some `n`, or `c` is not within 0 and `n`.

    Example:
        ```python
        >>> pass_at_k(n=4, c=1, k=2)  # three of the six pairs hold the right one
        0.5
        ```
    """
    n, c = np.broadcast_arrays(_whole(n, "n"), _whole(c, "c"))
    if k != int(k) or k < 1:
        raise InvalidInputError(f"k ({k}) must be a whole number of at least 1.")
    k = int(k)
    if n.size and n.min() < k:
        raise InvalidInputError(f"k ({k}) must be at most n ({n.min()}); sample more completions, or lower k.")
    wrong = (c < 0) | (c > n)
    if wrong.any():
        raise InvalidInputError(
            f"c ({c[wrong].flat[0]}) must be between 0 and n ({n[wrong].flat[0]}): it counts the right ones among the n."
        )
    pairs, index = np.unique(np.stack([n.ravel(), c.ravel()], axis=1), axis=0, return_inverse=True)  # (U, 2), (P,)
    values = np.array([(comb(n, k) - comb(n - c, k)) / comb(n, k) for n, c in pairs.tolist()])  # (U,)
    return values[index.ravel()].reshape(n.shape) if n.ndim else float(values[0])


def majority_at_k(votes: Sequence[int], success: Sequence[float], k: int, abstentions: int = 0) -> float:
    """
    Expected success of the majority vote (the most frequent answer) among `k` of the completions, drawn without
    replacement: the exact mean over all subsets of size `k`. Among answers that are equally frequent the vote falls on
    each with the same probability.

    Args:
        votes (`Sequence[int]` of length `A`): How many completions gave each of the `A` different answers.
        success (`Sequence[float]` of length `A`): 1 for a right answer, 0 for a wrong one. Something between is the
            mean reward of the completions that gave it.
        k (`int`): Completions that vote, 1 to the number of completions.
        abstentions (`int`, *optional*, defaults to `0`): Completions without an answer. They are drawn like the others
            and vote for nothing; if all abstain the vote fails.

    Returns:
        `float`

    Raises:
        `ValueError`: if `k` is larger than the number of completions.

    Example:
        ```python
        >>> majority_at_k(votes=[2, 1], success=[1.0, 0.0], k=2)  # both right: 1 of 3 pairs; a tie: 2 of 3
        0.6666666666666666
        ```
    """
    votes = [int(count) for count in votes]
    if len(votes) != len(success):
        raise InvalidInputError(
            f"votes ({len(votes)} answers) and success ({len(success)}) must be of the same length."
        )
    if min(votes, default=1) < 1 or abstentions < 0:
        raise InvalidInputError(
            f"votes ({votes}) must be at least 1 each, and abstentions ({abstentions}) at least 0."
        )
    n = sum(votes) + abstentions
    if not 1 <= k <= n:
        raise InvalidInputError(
            f"k ({k}) must be between 1 and the number of completions ({n}); sample more, or lower k."
        )
    total = 0.0
    for answer, value in enumerate(success):
        if value:
            others = votes[:answer] + votes[answer + 1 :]
            total += float(value) * float(_wins(votes[answer], others, abstentions, k) / comb(n, k))
    return total


def _wins(own: int, others: list[int], abstentions: int, k: int) -> Fraction:
    """Subsets of size `k` in which an answer with `own` completions wins; a tie of `m` answers counts `1 / m`."""
    total = Fraction(0)
    for top in range(1, min(own, k) + 1):  # it wins with `top` votes, so nobody else has more
        rivals = [count for count in others if count >= top]
        harmless = abstentions + sum(count for count in others if count < top)  # can't reach `top`, however drawn
        ways = {(0, 0): 1}  # (votes drawn from the rivals, rivals at `top`) -> ways
        for count in rivals:
            longer: dict[tuple[int, int], int] = {}
            for (drawn, tied), number in ways.items():
                for votes in range(min(top, count, k - top - drawn) + 1):
                    key = (drawn + votes, tied + (votes == top))
                    longer[key] = longer.get(key, 0) + number * comb(count, votes)
            ways = longer
        for (drawn, tied), number in ways.items():
            total += Fraction(comb(own, top) * number * comb(harmless, k - top - drawn), 1 + tied)
    return total


def bootstrap_interval(
    values: ArrayLike, *, confidence_level: float = 0.95, n_resamples: int = 9999, seed: int | None = 0
) -> Interval:
    """
    Mean of `values` with its bias-corrected and accelerated bootstrap interval (`scipy.stats.bootstrap`). One value per
    problem: problems are resampled, so the interval says what another set of problems of the same kind could have given.

    Args:
        values (array of shape `(P,)`): One number per problem, for example its avg@k or pass@k.
        confidence_level (`float`, *optional*, defaults to `0.95`): Within 0 and 1.
        n_resamples (`int`, *optional*, defaults to `9999`): Bootstrap samples.
        seed (`int`, *optional*, defaults to `0`): Seed of the resampling; `None` takes another one each time.

    Returns:
        [`Interval`]. If all values are equal, both ends are that value: the bootstrap can't say more.

    Raises:
        `ValueError`: if there are fewer than 2 values, or one is not finite.
    """
    values = _sample(values, "values")
    if np.ptp(values) < 1e-12:
        return Interval(float(values[0]), float(values[0]), float(values[0]), confidence_level)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=n_resamples,
        batch=max(1, 10_000_000 // len(values)),
        confidence_level=confidence_level,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(values.mean()), float(interval.low), float(interval.high), confidence_level)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, confidence_level: float = 0.95, n_resamples: int = 9999, seed: int | None = 0
) -> Interval:
    """
    Mean of `a - b` over the same problems with its bootstrap interval. An interval that does not hold 0 is evidence of
    a difference. Because the problems are the same, it is narrower than the intervals of the two runs suggest.

    Args:
        a (array of shape `(P,)`): One number per problem from the first run.
        b (array of shape `(P,)`): The same problems in the same order from the second run.
        confidence_level, n_resamples, seed: See [`bootstrap_interval`].

    Returns:
        [`Interval`]: positive where `a` is larger.

    Raises:
        `ValueError`: as [`bootstrap_interval`], and if the lengths differ.
    """
    a, b = _pair(a, b)
    return bootstrap_interval(a - b, confidence_level=confidence_level, n_resamples=n_resamples, seed=seed)


def wilcoxon(a: ArrayLike, b: ArrayLike) -> dict[str, float]:
    """
    Wilcoxon's signed-rank test on numbers of the same problems from two runs (`scipy.stats.wilcoxon`, two-sided).
    Problems with equal numbers say nothing and are left out; differences that are equal up to rounding share their rank.

    Args:
        a (array of shape `(P,)`): One number per problem from the first run, for example its success rate.
        b (array of shape `(P,)`): The same problems in the same order from the second run.

    Returns:
        `dict[str, float]`: `"stat"`, the smaller sum of ranks, and `"p"`; 0 and 1 if all numbers are equal.

    Raises:
        `ValueError`: if the lengths differ, there are fewer than 2 problems, or a number is not finite.
    """
    a, b = _pair(a, b)
    difference = np.round(a - b, 9)  # 0.3 - 0.1 and 0.2 - 0.0 differ in the last bit, and would not tie
    if not difference.any():
        return {"stat": 0.0, "p": 1.0}
    result: Any = stats.wilcoxon(difference)
    return {"stat": float(result.statistic), "p": float(result.pvalue)}


def mcnemar(a: ArrayLike, b: ArrayLike) -> dict[str, float]:
    """
    McNemar's exact test on two runs' outcomes of the same problems: only problems that one run solves and the other does
    not say anything, and without a difference each falls to either run with probability 1/2 (`scipy.stats.binomtest`).

    Args:
        a (array of `bool` of shape `(P,)`): Whether the first run solves each problem.
        b (array of `bool` of shape `(P,)`): The same problems in the same order for the second run.

    Returns:
        `dict[str, float]`: `"stat"`, the smaller of the two numbers below; `"p"`, two-sided; `"only1"` and `"only2"`,
        problems that only the first and only the second run solves.

    Raises:
        `ValueError`: if the lengths differ, or an outcome is neither true nor false.
    """
    a, b = _pair(a, b, least=1)
    for name, outcomes in (("a", a), ("b", b)):
        if not np.isin(outcomes, (0.0, 1.0)).all():
            value = outcomes[~np.isin(outcomes, (0.0, 1.0))][0]
            raise InvalidInputError(
                f"{name} has {value:g}, and McNemar's test needs true or false; compare rates with `wilcoxon`."
            )
    only1, only2 = int((a > b).sum()), int((b > a).sum())
    p = stats.binomtest(only1, only1 + only2).pvalue if only1 + only2 else 1.0
    return {"stat": float(min(only1, only2)), "p": float(p), "only1": only1, "only2": only2}


def _whole(value: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "iub":
        if array.size and (array.dtype.kind != "f" or (array != np.floor(array)).any()):
            raise InvalidInputError(f"{name} ({value!r}) must be whole numbers.")
    return array.astype(np.int64)


def _sample(values: ArrayLike, name: str, least: int = 2) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise InvalidInputError(
            f"{name} of shape {array.shape} must be one number per problem, {least} problems at least."
        )
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InvalidInputError(
            f"{name}[{where}] is {array[where]}; leave problems without a number out, in both runs if two are compared."
        )
    return array


def _pair(a: ArrayLike, b: ArrayLike, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a, b = _sample(a, "a", least), _sample(b, "b", least)
    if len(a) != len(b):
        raise InvalidInputError(
            f"a has {len(a)} problems and b has {len(b)}; paired tests need the same problems in the same order."
        )
    return a, b

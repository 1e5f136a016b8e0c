"""
What a number of rollouts is worth for a prompt: the formula, in one place.

The value of `N` rollouts is the chance that their group is mixed (some succeed, some fail, so that the gradient is not
zero) times a weight of the prompt:

    V(N, p) = (1 - p^N - (1-p)^N) w(p)          Knapsack RL, arXiv 2509.25849, section 3
    w(p)    = p (1-p)^2                         the paper's: expected gain of one gradient step, largest at p = 1/3
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InvalidInputError
from .arrays import ArrayRecord
from .evidence import BetaBeliefs
from .kernels import Gains
from .selection import values_and_gains


@dataclass(frozen=True)
class MixedGroupValue:
    """
    Chance of a mixed group times the weight `w(p) = p^success_power (1-p)^failure_power`.

    Concave in the number of rollouts, for rates and (as a mean of concave functions) under beliefs.

    Args:
        success_power (`float`): Exponent of `p`, a non-negative multiple of 1/2.
        failure_power (`float`): Exponent of `1 - p`, a non-negative multiple of 1/2.
    """

    success_power: float
    failure_power: float

    def __post_init__(self):
        for name in ("success_power", "failure_power"):
            power = getattr(self, name)
            if not (0 <= power <= 32 and float(2 * power).is_integer()):
                raise InvalidInputError(
                    f"{name} ({power}) must be a multiple of 1/2 between 0 and 32; for any other shape give a callable "
                    "or a table as the value."
                )

    @property
    def half_powers(self) -> tuple[int, int]:
        """Twice the exponents, as the kernels take them."""
        return int(2 * self.success_power), int(2 * self.failure_power)


#: Values by name.
VALUES = {
    "knapsack": MixedGroupValue(1, 2),  # the paper's: expected gain in success rate of one step, peak at p = 1/3
    "variance": MixedGroupValue(1, 1),  # variance of the reward, peak at 1/2
    "root": MixedGroupValue(0.5, 1),  # leans further to hard prompts, peak at 1/3
    "mixed": MixedGroupValue(0, 0),  # only the chance that a group is mixed
}


@dataclass(frozen=True, eq=False, repr=False)
class WeightedSum(ArrayRecord):
    """
    A weighted sum of components, each multiplied by the chance of a mixed group.

    A component is a name of [`VALUES`], a [`MixedGroupValue`], or an array `(P,)` of non-negative weights, one for each
    prompt: information gain, novelty, learning progress, long-term value, or what else you know of them.

    Args:
        components (`Sequence[tuple[float, component]]`): Pairs of a non-negative coefficient and a component.

    Example:

    ```python
    >>> from trl_knapsack.allocation import allocate
    >>> from trl_knapsack.allocation.values import WeightedSum, novelty

    >>> value = WeightedSum([(1.0, "knapsack"), (0.05, novelty([0, 4, 9]))])
    >>> allocate([0.3, 0.3, 0.9], budget=24, value=value).counts
    array([10, 10,  4])
    ```
    """

    components: Sequence[tuple[float, "str | MixedGroupValue | ArrayLike"]]

    def __post_init__(self):
        components = []
        for coefficient, component in self.components:
            if not 0 <= coefficient <= 1e100:
                raise InvalidInputError(
                    f"A coefficient of a WeightedSum ({coefficient}) must lie between 0 and 1e100."
                )
            if isinstance(component, str):
                component = _named(component)
            elif not isinstance(component, MixedGroupValue):
                component = np.asarray(component, dtype=np.float64)
                if component.ndim != 1 or not np.all((component >= 0) & (component <= 1e100)):
                    raise InvalidInputError(
                        "A component of a WeightedSum must be a name, a MixedGroupValue or an array (P,) of weights "
                        f"between 0 and 1e100, not {component!r}."
                    )
            components.append((float(coefficient), component))
        object.__setattr__(self, "components", tuple(components))


def novelty(visits: ArrayLike) -> np.ndarray:
    """
    `1 / sqrt(1 + visits)`, `(P,)`: large for prompts that were seldom seen, a component for [`WeightedSum`].

    Args:
        visits (`(P,)`): How often each prompt was visited.
    """
    return 1.0 / np.sqrt(1.0 + np.asarray(visits, dtype=np.float64))


def learning_progress(rates: ArrayLike, earlier_rates: ArrayLike, rollouts: ArrayLike) -> np.ndarray:
    """
    Change of the success rate per rollout spent, `|rate - earlier rate| / rollouts`, `(P,)`: large where training moves
    a prompt, up or down (Graves et al. 2017, arXiv 1704.03003). A component for [`WeightedSum`].

    Args:
        rates (`(P,)`): Success rates now; NaN (unknown) counts as no progress.
        earlier_rates (`(P,)`): Success rates at the visit before.
        rollouts (`(P,)`): Rollouts spent between the two; 0 counts as no progress.
    """
    now, before, spent = (np.asarray(x, dtype=np.float64) for x in (rates, earlier_rates, rollouts))
    progress = np.abs(now - before) / np.where(spent > 0, spent, np.inf)
    return np.where(np.isfinite(progress), progress, 0.0)


#: What `value=` accepts: a name, a built-in shape, a weighted sum, a table `(P, M)` of the value of 0 .. M-1 rollouts, or
#: a callable that fills such a table from rates `(P, 1)` (or beliefs) and counts `(1, M)`.
Value = str | MixedGroupValue | WeightedSum | np.ndarray | Callable


_UNSHIFTED = np.zeros(1)


def _named(name: str) -> MixedGroupValue:
    if name not in VALUES:
        raise InvalidInputError(f"value {name!r} is not known; choose one of {', '.join(map(repr, VALUES))}.")
    return VALUES[name]


def check_rates(success_rates: "ArrayLike | BetaBeliefs") -> "np.ndarray | BetaBeliefs":
    """Beliefs as they are; anything else as success rates, float64 of shape `(P,)`, each in [0, 1]."""
    if isinstance(success_rates, BetaBeliefs):
        return success_rates
    try:
        rates = np.asarray(success_rates, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"success_rates must be numbers of shape (P,) or BetaBeliefs: {error}.") from None
    if rates.ndim != 1:
        raise InvalidInputError(
            f"success_rates has shape {rates.shape} but must have shape (P,), one rate for each prompt."
        )
    # NaN fails both comparisons.
    if not (rates.size == 0 or (rates.min() >= 0.0 and rates.max() <= 1.0)):
        wrong = np.flatnonzero(~((rates >= 0.0) & (rates <= 1.0)))[0]
        raise InvalidInputError(
            f"success_rates[{wrong}] is {rates[wrong]} but must lie in [0, 1]; for a prompt that was never seen, give "
            "BetaBeliefs that hold only the prior."
        )
    return rates


def resolve(known: "np.ndarray | BetaBeliefs", value: Value, longest: int) -> "Gains | np.ndarray":
    """
    What is known of the prompts together with a value, in the form that the solvers take.

    Args:
        known (`np.ndarray` of shape `(P,)` or [`BetaBeliefs`]): From [`check_rates`].
        value ([`Value`]): The value of rollouts.
        longest (`int`): Largest count that a table must reach.

    Returns:
        [`~trl_knapsack.allocation.kernels.Gains`], or where no such form exists a table `(P, longest + 1)` of the value
        of 0 .. `longest` rollouts.
    """
    if isinstance(value, str):
        value = _named(value)
    if isinstance(value, MixedGroupValue):
        return _gains(known, value)
    if isinstance(value, WeightedSum):
        return _resolve_sum(known, value, longest)
    origin = "value is"
    if callable(value):
        value = value(known if isinstance(known, BetaBeliefs) else known[:, None], np.arange(longest + 1)[None, :])
        origin = "The value callable returned"
    table = np.asarray(value, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != len(known) or table.shape[1] <= longest:
        raise InvalidInputError(
            f"{origin} an array of shape {table.shape} but must have shape (P, M) = ({len(known)}, at least "
            f"{longest + 1}): the value of 0 .. max_generations ({longest}) rollouts for each prompt."
        )
    table = table[:, : longest + 1]
    if not np.all(np.isfinite(table)):
        row, column = np.argwhere(~np.isfinite(table))[0]
        raise InvalidInputError(
            f"{origin} a table whose entry [{row}, {column}] is {table[row, column]}; every value of 0 .. "
            "max_generations rollouts must be finite."
        )
    return table


def _resolve_sum(known: "np.ndarray | BetaBeliefs", value: WeightedSum, longest: int) -> "Gains | np.ndarray":
    shapes: dict[MixedGroupValue, float | np.ndarray] = {}
    own: np.ndarray = np.zeros(1)
    for coefficient, component in value.components:
        if isinstance(component, MixedGroupValue):
            shapes[component] = shapes.get(component, 0.0) + coefficient
        else:
            weights = np.asarray(component, dtype=np.float64)
            if weights.size != len(known):
                raise InvalidInputError(
                    f"A component of the WeightedSum has {weights.size} weights for {len(known)} prompts; give one "
                    "weight for each prompt."
                )
            own = own + coefficient * weights
    if own.any() or not shapes:
        mixed = VALUES["mixed"]
        shapes[mixed] = own + shapes.get(mixed, 0.0)
    if len(shapes) == 1:
        ((shape, scale),) = shapes.items()
        return _gains(known, shape, scale)
    parts = [_gains(known, shape, scale) for shape, scale in shapes.items()]
    if not isinstance(known, BetaBeliefs):
        # With known rates every weight is a number, and one array holds their sum.
        return parts[0]._replace(k=np.sum([part.k for part in parts], axis=0))
    # Expectations of different shapes follow different recurrences: add up tables.
    return np.sum([tabulate(part, longest) for part in parts], axis=0)


def _gains(known: "np.ndarray | BetaBeliefs", shape: MixedGroupValue, scale: "float | np.ndarray" = 1.0) -> Gains:
    """Gains of `scale * w(p) * chance of a mixed group`; `scale` is a number or has shape `(P,)`."""
    half_p, half_q = shape.half_powers
    if not isinstance(known, BetaBeliefs):
        k = _half_power(known, half_p + 2) * _half_power(1.0 - known, half_q + 2)
        return Gains(known, 1.0 - known, scale * k, _UNSHIFTED, False)
    # k = E[p^(r+1) q^(s+1)] = (a)_(r+1) (b)_(s+1) / (a+b)_(r+s+2), as quotients below 1: nothing overflows.
    a, b = known.alpha, known.beta
    total = a + b
    whole_p, whole_q = (half_p + 2) >> 1, (half_q + 2) >> 1
    k = a / total
    for i in range(1, whole_p):
        k *= (a + i) / (total + i)
    for i in range(whole_q):
        k *= (b + i) / (total + (whole_p + i))
    if half_p & 1:
        k *= _half_step(a + whole_p)
    if half_q & 1:
        k *= _half_step(b + whole_q)
    if (half_p | half_q) & 1:
        rest = total + (whole_p + whole_q)
        k /= rest if half_p & half_q & 1 else _half_step(rest)
    return Gains(a + shape.success_power, b + shape.failure_power, scale * k, _UNSHIFTED, True)


def _half_power(base: np.ndarray, halves: int) -> np.ndarray:
    """`base^(halves / 2)` with products and a root alone, for `halves` from 2: equal bases have bitwise equal powers."""
    power = base
    for _ in range((halves >> 1) - 1):
        power = power * base
    return power * np.sqrt(base) if halves & 1 else power


def _half_step(z: np.ndarray) -> np.ndarray:
    """`Gamma(z + 1/2) / Gamma(z)`, `(P,)`."""
    ratio = np.ones_like(z)
    # Up to 32 by Gamma(z + 1) = z Gamma(z); from there on the first dropped term of the series is below 1e-15.
    while (small := z < 32.0).any():
        ratio = np.where(small, ratio * (z / (z + 0.5)), ratio)
        z = np.where(small, z + 1.0, z)
    t = 1.0 / z  # asymptotic series, DLMF 5.11.13
    series = 869.0 / 4194304.0 + t * (39325.0 / 33554432.0)
    series = -21.0 / 32768.0 + t * (-399.0 / 262144.0 + t * series)
    series = 1.0 / 128.0 + t * (5.0 / 1024.0 + t * series)
    return ratio * (np.sqrt(z) * (1.0 + t * (-0.125 + t * series)))


def tabulate(gains: Gains, longest: int) -> np.ndarray:
    """Values of 0 .. `longest` rollouts, `(P, longest + 1)`, without the shift."""
    n = np.arange(1, longest)
    p, q, k = (array[:, None] for array in (gains.p, gains.q, gains.k))  # (P, 1)
    if gains.beliefs:
        falls = (p + n) / (p + q + 1.0 + n), (q + n) / (p + q + 1.0 + n)
    else:
        falls = np.repeat(p, n.size, axis=1), np.repeat(q, n.size, axis=1)
    table = np.zeros((gains.k.size, longest + 1))
    # V(2) is the first gain, V(3) that and the second ...
    for fall in falls:
        table[:, 2:] += np.cumprod(np.hstack([k, fall]), axis=1)[:, : longest - 1]
    return np.cumsum(table, axis=1)


def expected_values(
    success_rates: "ArrayLike | BetaBeliefs", counts: ArrayLike, value: Value = "knapsack"
) -> np.ndarray:
    """
    Value of each prompt's rollouts: `V(N_i, p_i)`, or its expectation under beliefs.

    Args:
        success_rates (`np.ndarray` of shape `(P,)` or [`BetaBeliefs`]): Point rates in [0, 1], or beliefs.
        counts (`np.ndarray` of shape `(P,)`, int): Rollouts of each prompt, not negative.
        value ([`Value`], *optional*, defaults to `"knapsack"`): The value of rollouts.

    Returns:
        `np.ndarray` of shape `(P,)`: in units of the value function; 0 for 0 and for 1 rollout of the built-in values.

    Raises:
        `ValueError`: if the rates, the counts or the value are not valid, naming the entry.

    Example:

    ```python
    >>> expected_values([0.5, 0.5, 1.0], [2, 8, 8])
    array([0.0625    , 0.12402344, 0.        ])
    ```
    """
    return judge(success_rates, counts, value)[0]


def marginal_gains(
    success_rates: "ArrayLike | BetaBeliefs", counts: ArrayLike, value: Value = "knapsack"
) -> np.ndarray:
    """
    What one more rollout would add to each prompt: `V(N_i + 1, p_i) - V(N_i, p_i)`, `(P,)`.

    Arguments and errors as in [`expected_values`].
    """
    return judge(success_rates, counts, value)[1]


def judge(success_rates: "ArrayLike | BetaBeliefs", counts: ArrayLike, value: Value) -> tuple[np.ndarray, np.ndarray]:
    """[`expected_values`] and [`marginal_gains`] at once."""
    known = check_rates(success_rates)
    counts = np.asarray(counts)
    if counts.shape != (len(known),):
        raise InvalidInputError(
            f"counts has shape {counts.shape} but must have shape ({len(known)},), one for each prompt."
        )
    if counts.size and (counts.dtype.kind not in "iu" or counts.min() < 0):
        raise InvalidInputError(f"counts must be integers that are not negative, not {counts!r}.")
    counts = np.ascontiguousarray(counts, dtype=np.int64)
    form = resolve(known, value, int(counts.max(initial=0)) + 1)
    if isinstance(form, Gains):
        return values_and_gains(form, counts)
    prompts = np.arange(counts.size)
    values = form[prompts, counts]
    return values, form[prompts, counts + 1] - values

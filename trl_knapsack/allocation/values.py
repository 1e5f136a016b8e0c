"""
What a number of rollouts is worth for a prompt: the formula, once.

The value of `N` rollouts is the chance that their group is mixed (some succeed, some fail, so that the gradient is not
zero) times a weight of the prompt:

    V(N, p) = (1 - p^N - (1-p)^N) w(p)          Knapsack RL, arXiv 2509.25849, section 3
    w(p)    = p (1-p)^2                         the paper's: expected gain of one gradient step, largest at p = 1/3
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .evidence import BetaBeliefs


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
                raise ValueError(
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


@dataclass(frozen=True)
class WeightedSum:
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

    components: Sequence[tuple[float, "str | MixedGroupValue | np.ndarray"]]

    def __post_init__(self):
        components = []
        for coefficient, component in self.components:
            if not 0 <= coefficient <= 1e100:
                raise ValueError(f"A coefficient of a WeightedSum ({coefficient}) must lie between 0 and 1e100.")
            if isinstance(component, str):
                component = _named(component)
            elif not isinstance(component, MixedGroupValue):
                component = np.asarray(component, dtype=np.float64)
                if component.ndim != 1 or not np.all((component >= 0) & (component <= 1e100)):
                    raise ValueError(
                        "A component of a WeightedSum must be a name, a MixedGroupValue or an array (P,) of weights "
                        f"between 0 and 1e100, not {component!r}."
                    )
            components.append((float(coefficient), component))
        object.__setattr__(self, "components", tuple(components))


def novelty(visits: Sequence[int]) -> np.ndarray:
    """
    `1 / sqrt(1 + visits)`, `(P,)`: large for prompts that were seldom seen, a component for [`WeightedSum`].

    Args:
        visits (`(P,)`): How often each prompt was visited.
    """
    return 1.0 / np.sqrt(1.0 + np.asarray(visits, dtype=np.float64))


def learning_progress(rates: Sequence[float], earlier_rates: Sequence[float], rollouts: Sequence[float]) -> np.ndarray:
    """
    Change of the success rate per rollout spent, `|rate - earlier rate| / rollouts`, `(P,)`: large where training moves
    a prompt, up or down (Graves et al. 2017, arXiv 1704.03003). A component for [`WeightedSum`].

    Args:
        rates (`(P,)`): Success rates now; NaN (unknown) counts as no progress.
        earlier_rates (`(P,)`): Success rates at the visit before.
        rollouts (`(P,)`): Rollouts spent between the two; 0 counts as no progress.
    """
    rates, earlier_rates, rollouts = (np.asarray(x, dtype=np.float64) for x in (rates, earlier_rates, rollouts))
    progress = np.abs(rates - earlier_rates) / np.where(rollouts > 0, rollouts, np.inf)
    return np.where(np.isfinite(progress), progress, 0.0)


#: What `value=` accepts: a name, a built-in shape, a weighted sum, a table `(P, M)` of the value of 0 .. M-1 rollouts, or
#: a callable that fills such a table from rates `(P, 1)` (or beliefs) and counts `(1, M)`.
Value = str | MixedGroupValue | WeightedSum | np.ndarray | Callable


@dataclass(frozen=True)
class ClosedForm:
    """Values in the form that the kernels take: `scale * w(p) * chance of a mixed group` with rates or beliefs."""

    first: np.ndarray  # (P,) success rates, or alpha
    second: np.ndarray  # (0,), or (P,) beta
    half_p: int
    half_q: int
    scale: np.ndarray  # (1,) or (P,)


@dataclass(frozen=True)
class Table:
    """Values in a table."""

    values: np.ndarray = field(repr=False)  # (P, M) value of 0 .. M-1 rollouts


_ONE = np.ones(1)
_NOTHING = np.empty(0)


def _named(name: str) -> MixedGroupValue:
    if name not in VALUES:
        raise ValueError(f"value {name!r} is not known; choose one of {', '.join(map(repr, VALUES))}.")
    return VALUES[name]


def check_rates(success_rates) -> tuple[np.ndarray, np.ndarray]:
    """Success rates or beliefs as the two arrays that the kernels take: `(rates, empty)` or `(alpha, beta)`."""
    if isinstance(success_rates, BetaBeliefs):
        return success_rates.alpha, success_rates.beta
    try:
        rates = np.ascontiguousarray(success_rates, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"success_rates must be numbers of shape (P,) or BetaBeliefs: {error}.") from None
    if rates.ndim != 1 or np.ndim(success_rates) != 1:
        raise ValueError(
            f"success_rates has shape {np.shape(success_rates)} but must have shape (P,), one rate for each prompt."
        )
    # NaN fails both comparisons.
    if not (rates.size == 0 or (rates.min() >= 0.0 and rates.max() <= 1.0)):
        wrong = np.flatnonzero(~((rates >= 0.0) & (rates <= 1.0)))[0]
        raise ValueError(
            f"success_rates[{wrong}] is {rates[wrong]} but must lie in [0, 1]; for a prompt that was never seen, give "
            "BetaBeliefs that hold only the prior."
        )
    return rates, _NOTHING


def resolve(first: np.ndarray, second: np.ndarray, value: Value, longest: int) -> ClosedForm | Table:
    """
    Rates or beliefs together with a value, in the form that the solvers take.

    Args:
        first (`np.ndarray` of shape `(P,)`), second (`np.ndarray` of shape `(0,)` or `(P,)`): From [`check_rates`].
        value ([`Value`]): The value of rollouts.
        longest (`int`): Largest count that a table must reach.
    """
    if isinstance(value, str):
        value = _named(value)
    if isinstance(value, MixedGroupValue):
        return ClosedForm(first, second, *value.half_powers, _ONE)
    if isinstance(value, WeightedSum):
        return _resolve_sum(first, second, value, longest)
    if callable(value):
        shown = BetaBeliefs(first, second) if second.size else first[:, None]
        value = value(shown, np.arange(longest + 1)[None, :])
        origin = "The value callable returned"
    else:
        origin = "value is"
    values = np.asarray(value, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != first.size or values.shape[1] <= longest:
        raise ValueError(
            f"{origin} an array of shape {values.shape} but must have shape (P, M) = ({first.size}, at least "
            f"{longest + 1}): the value of 0 .. max_generations ({longest}) rollouts for each prompt."
        )
    values = values[:, : longest + 1]
    if not np.all(np.isfinite(values)):
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"{origin} a table whose entry [{row}, {column}] is {values[row, column]}; every value of 0 .. "
            "max_generations rollouts must be finite."
        )
    return Table(values)


def _resolve_sum(first: np.ndarray, second: np.ndarray, value: WeightedSum, longest: int) -> ClosedForm | Table:
    shapes = {}
    own = np.zeros(1)
    for coefficient, component in value.components:
        if isinstance(component, MixedGroupValue):
            shapes[component] = shapes.get(component, 0.0) + coefficient
        else:
            if component.size != first.size:
                raise ValueError(
                    f"A component of the WeightedSum has {component.size} weights for {first.size} prompts; give one "
                    "weight for each prompt."
                )
            own = own + coefficient * component
    if own.any() or not shapes:
        mixed = VALUES["mixed"]
        shapes[mixed] = own + shapes.get(mixed, 0.0)
    if len(shapes) == 1:
        ((shape, scale),) = shapes.items()
        return ClosedForm(first, second, *shape.half_powers, np.atleast_1d(np.asarray(scale, dtype=np.float64)))
    if second.size == 0:
        # With known rates every weight is a number, and one array holds their sum.
        scale = sum(
            np.asarray(scale) * first**shape.success_power * (1.0 - first) ** shape.failure_power
            for shape, scale in shapes.items()
        )
        return ClosedForm(first, second, 0, 0, scale)
    # Expectations of different shapes follow different recurrences: add up tables.
    from .kernels import value_table

    table = np.zeros((first.size, longest + 1))
    for shape, scale in shapes.items():
        value_table(first, second, *shape.half_powers, np.atleast_1d(np.asarray(scale, dtype=np.float64)), table)
    return Table(table)


def expected_values(success_rates, counts: Sequence[int], value: Value = "knapsack") -> np.ndarray:
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
    return values_and_gains(success_rates, counts, value)[0]


def marginal_gains(success_rates, counts: Sequence[int], value: Value = "knapsack") -> np.ndarray:
    """
    What one more rollout would add to each prompt: `V(N_i + 1, p_i) - V(N_i, p_i)`, `(P,)`.

    Arguments and errors as in [`expected_values`].
    """
    return values_and_gains(success_rates, counts, value)[1]


def values_and_gains(success_rates, counts, value) -> tuple[np.ndarray, np.ndarray]:
    """[`expected_values`] and [`marginal_gains`] at once."""
    first, second = check_rates(success_rates)
    counts = np.asarray(counts)
    if counts.shape != first.shape:
        raise ValueError(f"counts has shape {counts.shape} but must have shape ({first.size},), one for each prompt.")
    if counts.size and (counts.dtype.kind not in "iu" or counts.min() < 0):
        raise ValueError(f"counts must be integers that are not negative, not {counts!r}.")
    counts = np.ascontiguousarray(counts, dtype=np.int64)
    form = resolve(first, second, value, int(counts.max(initial=0)) + 1)
    if isinstance(form, Table):
        prompts = np.arange(counts.size)
        values = form.values[prompts, counts]
        return values, form.values[prompts, counts + 1] - values
    from . import kernels

    return kernels.values_and_gains(form.first, form.second, form.half_p, form.half_q, form.scale, counts)

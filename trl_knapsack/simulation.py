"""
What a budget would buy, before it is spent: prompts with known, drifting success rates, and rules that learn about them
through a real tracker.

Value is the allocator's, at the true rates. Whether more of it means more learning is not simulated: nothing is trained here,
and the rates drift in the same way under every rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ._notebook import html_table
from .allocation.allocator import Allocation, allocate
from .allocation.evidence import BetaBeliefs
from .allocation.rules import PaperRule, get_rule
from .allocation.values import check_rates, expected_values
from .errors import InvalidInputError
from .tracking.tracker import SuccessRateTracker


__all__ = ["Prompts", "Simulation", "simulate"]

#: Mixes of success rates by name: what draws `P` of them.
MIXES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    # three prompts in four nearly solved, the rest hard: late in training, the paper's case
    "saturated": lambda rng, prompts: np.where(
        rng.random(prompts) < 0.75, rng.beta(9, 1, prompts), rng.beta(0.6, 6, prompts)
    ),
    # most prompts far out of reach: a small model, or a hard dataset
    "hard": lambda rng, prompts: rng.beta(0.4, 2, prompts),
    # rates spread evenly
    "broad": lambda rng, prompts: rng.beta(1, 1, prompts),
}

#: Rules by name: the trainer's, and two that only a simulation has.
ALLOCATIONS = ("posterior", "paper", "filter", "uniform", "last_rate", "oracle")


@dataclass(frozen=True, repr=False)
class Prompts:
    """
    The prompts that a simulation begins with.

    Args:
        draw (`Callable[[np.random.Generator], np.ndarray]`): Draws the true success rates `(P,)` of one simulated world.
        state (`dict`, *optional*): What a tracker knows about them at the start ([`SuccessRateTracker.state_dict`]), in the
            order of the rates. By default nothing, so that the first epoch is uniform.
    """

    draw: Callable[[np.random.Generator], np.ndarray]
    state: dict | None = None

    def __repr__(self) -> str:
        return (
            f"Prompts(of a state with {len(self.state['keys']):,})" if self.state else "Prompts(drawn for each world)"
        )

    @classmethod
    def from_mix(cls, name: str, prompts: int = 1000) -> "Prompts":
        """`prompts` prompts of a mix, one of [`MIXES`]."""
        if name not in MIXES:
            raise InvalidInputError(f"mix {name!r} is not known; choose one of {', '.join(map(repr, MIXES))}.")
        if prompts < 1:
            raise InvalidInputError(f"prompts ({prompts}) must be at least 1.")
        return cls(lambda rng: MIXES[name](rng, prompts))

    @classmethod
    def from_rates(cls, success_rates: ArrayLike) -> "Prompts":
        """Prompts with these success rates `(P,)`. A rate of 0 or 1 stays what it is, whatever the drift."""
        rates = check_rates(success_rates)
        if isinstance(rates, BetaBeliefs):
            raise InvalidInputError(
                "success_rates are BetaBeliefs, but true rates are drawn; give one rate per prompt."
            )
        if not rates.size:
            raise InvalidInputError("success_rates is empty; give at least one prompt.")
        return cls(lambda rng: rates)

    @classmethod
    def from_tracker(cls, tracker: SuccessRateTracker) -> "Prompts":
        """Prompts of a run: each world draws their rates from the tracker's posteriors, and begins with what it knows."""
        if not len(tracker):
            raise InvalidInputError("The state knows no prompts, so there is nothing to simulate; give a mix instead.")
        evidence = tracker.evidence(tracker.keys)
        return cls(lambda rng: rng.beta(evidence.alpha, evidence.beta), tracker.state_dict())


@dataclass(frozen=True, repr=False)
class Simulation:
    """
    The outcome of `S` simulated worlds of `E` epochs under each rule. Every figure is exact for the true rates of its
    world, not counted from drawn outcomes.

    Attributes:
        num_generations (`int`): Mean number of generations of a prompt.
        prompts (`int`): Prompts of a world.
        value (`dict[str, np.ndarray]`, each `(S, E)`): Mean value of a prompt's rollouts at its true rate.
        effective_gradient_ratio (`dict[str, np.ndarray]`, each `(S, E)`): Expected share of rollouts in mixed groups.
        mixed_prompts (`dict[str, np.ndarray]`, each `(S, E)`): Expected share of prompts with a mixed group.
        largest_budget (`dict[str, np.ndarray]`, each `(S, E)`): Most generations of one prompt.
        equivalent_generations (`dict[str, np.ndarray]`, each `(S,)`): How many generations for every prompt would be
            worth as much.
    """

    num_generations: int
    prompts: int
    value: dict[str, np.ndarray]
    effective_gradient_ratio: dict[str, np.ndarray]
    mixed_prompts: dict[str, np.ndarray]
    largest_budget: dict[str, np.ndarray]
    equivalent_generations: dict[str, np.ndarray]

    def __repr__(self) -> str:
        worlds, epochs = self.value["uniform"].shape
        gains = ", ".join(f"{name} {self.gain(name).mean():+.1%}" for name in self.value if name != "uniform")
        return f"Simulation({self.prompts:,} prompts, {epochs} epochs, {worlds} worlds; value over uniform: {gains or 'none'})"

    def _repr_html_(self) -> str:
        rows = self.rows()
        cells = [[cell if isinstance(cell, str) else f"{cell:.4g}" for cell in row.values()] for row in rows]
        return html_table([name.replace("_", " ") for name in rows[0]], cells)

    def gain(self, name: str) -> np.ndarray:
        """Value gained over uniform by a rule over all epochs, `(S,)`: 0.05 is five per cent more."""
        return self.value[name].sum(1) / self.value["uniform"].sum(1) - 1.0

    def rows(self) -> list[dict[str, float | str]]:
        """
        A row per rule: means over worlds and epochs, and for the gain half the width of a 95 % interval over worlds
        (NaN for one world). `largest_budget` is the largest of all.
        """
        rows = []
        for name in self.value:
            gain, halfwidth = mean_and_halfwidth(self.gain(name))
            rows.append(
                {
                    "allocation": name,
                    "gain": gain,
                    "gain_halfwidth": halfwidth,
                    "effective_gradient_ratio": float(self.effective_gradient_ratio[name].mean()),
                    "mixed_prompts": float(self.mixed_prompts[name].mean()),
                    "largest_budget": int(self.largest_budget[name].max()),
                    "equivalent_generations": float(self.equivalent_generations[name].mean()),
                }
            )
        return rows


def simulate(
    prompts: Prompts,
    allocations: Sequence[str] | Mapping[str, Callable] = ("posterior", "paper", "filter", "uniform", "oracle"),
    *,
    num_generations: int = 8,
    prompts_per_batch: int = 32,
    epochs: int = 10,
    drift: float = 0.3,
    improvement: float = 0.1,
    min_generations: int = 2,
    max_generations: int = 128,
    success_prior: tuple[float, float] = (1.0, 1.0),
    success_decay: float = 0.85,
    value: str = "knapsack",
    worlds: int = 5,
    seed: int = 0,
) -> Simulation:
    """
    Let each rule share out the rollouts of the same worlds.

    A world is its prompts' true rates, their drift and the order of the prompts in each epoch. A rule sees them only
    through the successes of the rollouts that it gave, as in training.

    Args:
        prompts ([`Prompts`]): The prompts to begin with.
        allocations (`Sequence[str]` or `Mapping[str, AllocationRule]`, *optional*):
            Names of [`ALLOCATIONS`], or rules of your own by name. `"last_rate"` is `"paper"` without the fallback for
            prompts that were never solved, `"oracle"` the knapsack on the true rates. `"uniform"` is always there.
        num_generations (`int`, *optional*, defaults to 8): Mean number of generations of a prompt.
        prompts_per_batch (`int`, *optional*, defaults to 32): Prompts among which rollouts are shared out.
        epochs (`int`, *optional*, defaults to 10): Visits of each prompt.
        drift (`float`, *optional*, defaults to 0.3):
            Standard deviation of the random step that each rate takes between two epochs, in logits.
        improvement (`float`, *optional*, defaults to 0.1): Mean of that step.
        min_generations (`int`, *optional*, defaults to 2): Fewest generations of a prompt.
        max_generations (`int`, *optional*, defaults to 128): Most generations of a prompt.
        success_prior (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`): Prior of the tracker.
        success_decay (`float`, *optional*, defaults to 0.85): Decay of the tracker.
        value (`str`, *optional*, defaults to `"knapsack"`): Value that is reported, and that the oracle maximises.
        worlds (`int`, *optional*, defaults to 5): Worlds to simulate, each with a seed of its own.
        seed (`int`, *optional*, defaults to 0): Seed of the first world.

    Returns:
        [`Simulation`]

    Raises:
        `ValueError`: in one sentence, if an argument is not valid.
    """
    for name, number in (("prompts_per_batch", prompts_per_batch), ("epochs", epochs), ("worlds", worlds)):
        if number < 1:
            raise InvalidInputError(f"{name} ({number}) must be at least 1.")
    if not (np.isfinite(drift) and drift >= 0 and np.isfinite(improvement)):
        raise InvalidInputError(
            f"drift ({drift}) must be finite and not negative, improvement ({improvement}) finite."
        )
    rules = dict(allocations) if isinstance(allocations, Mapping) else {name: _rule(name) for name in allocations}
    rules.setdefault("uniform", get_rule("uniform"))
    measured = ("value", "effective_gradient_ratio", "mixed_prompts", "largest_budget")
    results = {metric: {name: np.empty((worlds, epochs)) for name in rules} for metric in measured}
    equivalent = {name: np.empty(worlds) for name in rules}
    bounds = (min_generations, max_generations)

    for w in range(worlds):
        rates, orders = _world(
            prompts, epochs, drift, improvement, np.random.default_rng([seed + w, 0])
        )  # (E, P) each
        keys = [str(i) for i in range(rates.shape[1])] if prompts.state is None else list(prompts.state["keys"])
        for name, rule in rules.items():
            tracker = SuccessRateTracker(success_prior, success_decay)
            if prompts.state is not None:
                tracker.load_state_dict(prompts.state)
            rng = np.random.default_rng([seed + w, 1])
            for e in range(epochs):
                counts = _epoch(
                    rule, tracker, keys, rates[e], orders[e], num_generations, prompts_per_batch, bounds, value, rng
                )
                mixed = expected_values(rates[e], counts, "mixed")  # (P,) chance of a mixed group
                results["value"][name][w, e] = expected_values(rates[e], counts, value).mean()
                results["effective_gradient_ratio"][name][w, e] = (counts * mixed).sum() / counts.sum()
                results["mixed_prompts"][name][w, e] = mixed.mean()
                results["largest_budget"][name][w, e] = counts.max()
            equivalent[name][w] = equivalent_uniform(rates.ravel(), results["value"][name][w].mean(), value)
    return Simulation(num_generations, rates.shape[1], **results, equivalent_generations=equivalent)


def equivalent_uniform(success_rates: np.ndarray, worth: float, value: str = "knapsack") -> float:
    """
    Generations that every prompt alike would need for a mean value of `worth`; between two whole numbers, linearly.

    Args:
        success_rates (`np.ndarray` of shape `(P,)`): True rates.
        worth (`float`): Mean value of a prompt's rollouts.
        value (`str`, *optional*, defaults to `"knapsack"`): The value of rollouts.

    Returns:
        `float`: at most 65,536, inf if more is needed.
    """

    def uniform(generations: int) -> float:
        return float(expected_values(success_rates, np.full(len(success_rates), generations), value).mean())

    low, high = 1, 2
    while uniform(high) < worth:
        low, high = high, 2 * high
        if high > 65_536:
            return float("inf")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if uniform(middle) < worth else (low, middle)
    at_low, at_high = uniform(low), uniform(high)
    return low + (worth - at_low) / (at_high - at_low) if at_high > at_low else float(low)


def mean_and_halfwidth(samples: np.ndarray) -> tuple[float, float]:
    """Mean of samples `(S,)` and half the width of its 95 % interval (Student's t), NaN for one sample."""
    from scipy.special import stdtrit

    count = len(samples)
    if count < 2:
        return float(samples.mean()), float("nan")
    return float(samples.mean()), float(stdtrit(count - 1, 0.975) * samples.std(ddof=1) / np.sqrt(count))


def _rule(name: str) -> Callable | None:
    """A rule by name; None for the oracle, which is no rule: it knows what no tracker does."""
    if name not in ALLOCATIONS:
        raise InvalidInputError(
            f"allocation {name!r} is not known; choose one of {', '.join(map(repr, ALLOCATIONS))}."
        )
    return None if name == "oracle" else PaperRule(confidence=1) if name == "last_rate" else get_rule(name)


def _world(prompts: Prompts, epochs: int, drift: float, improvement: float, rng) -> tuple[np.ndarray, np.ndarray]:
    """True rates and the order of the prompts in each epoch, `(E, P)` both."""
    first = np.asarray(prompts.draw(rng), dtype=np.float64)
    steps = rng.normal(improvement, drift, (epochs - 1, first.size)).cumsum(0)
    with np.errstate(divide="ignore", over="ignore"):
        logits = np.log(first) - np.log1p(-first)  # of 0 and 1: minus and plus infinity, which no step leaves
        rates = np.concatenate([first[None], 1.0 / (1.0 + np.exp(-(logits + steps)))])
    return rates, rng.permuted(np.tile(np.arange(first.size), (epochs, 1)), axis=1)


def _epoch(rule, tracker, keys, rates, order, num_generations, prompts_per_batch, bounds, value, rng) -> np.ndarray:
    """Counts `(P,)` of one epoch; the tracker learns what came of them."""
    counts = np.empty(rates.size, dtype=np.int64)
    for start in range(0, rates.size, prompts_per_batch):
        rows = order[start : start + prompts_per_batch]
        budget = num_generations * rows.size
        own = [keys[row] for row in rows]
        if rule is None:
            allocation: Allocation = allocate(
                rates[rows], budget, min_generations=bounds[0], max_generations=bounds[1], value=value
            )
        else:
            allocation = rule(tracker.evidence(own), budget, *bounds)
        counts[rows] = allocation.counts
        tracker.observe(own, rng.binomial(allocation.counts, rates[rows]), allocation.counts)
    return counts

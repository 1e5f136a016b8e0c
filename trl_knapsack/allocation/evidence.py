"""What is known about prompts before their rollouts are allocated."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InvalidInputError
from .arrays import ArrayRecord


@dataclass(frozen=True, eq=False, repr=False)
class BetaBeliefs(ArrayRecord):
    """
    What is believed about `P` success rates: `p_i ~ Beta(alpha_i, beta_i)`.

    With a prior of (1, 1), a prompt with 3 successes in 4 rollouts has `alpha = 4`, `beta = 2`.

    Args:
        alpha (`np.ndarray` of shape `(P,)`): First parameters, positive; prior plus successes.
        beta (`np.ndarray` of shape `(P,)`): Second parameters, positive; prior plus failures.
    """

    alpha: np.ndarray  # (P,) float64
    beta: np.ndarray  # (P,) float64

    if TYPE_CHECKING:  # what a type checker is to believe: lists will do

        def __init__(self, alpha: ArrayLike, beta: ArrayLike) -> None: ...

    def __post_init__(self):
        for name in ("alpha", "beta"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))
        if self.alpha.ndim != 1 or self.alpha.shape != self.beta.shape:
            raise InvalidInputError(
                f"alpha {self.alpha.shape} and beta {self.beta.shape} must be two arrays of one shape (P,); give one "
                "pair of parameters for each prompt."
            )
        for name in ("alpha", "beta"):
            parameters = getattr(self, name)
            wrong = np.flatnonzero(~((parameters > 0) & (parameters <= 1e12)))
            if wrong.size:
                raise InvalidInputError(
                    f"{name}[{wrong[0]}] is {parameters[wrong[0]]} but must be positive and at most 1e12; add the prior "
                    "to the counts of successes and failures."
                )

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def mean(self) -> np.ndarray:
        """Expected success rates, `(P,)`."""
        return self.alpha / (self.alpha + self.beta)


@dataclass(frozen=True, eq=False, repr=False)
class Evidence(ArrayRecord):
    """
    What is known about `P` prompts before their rollouts are allocated.

    Attributes:
        keys (`tuple[str, ...]` of length `P`): Prompt keys, so that a rule can tell prompts apart.
        alpha (`np.ndarray` of shape `(P,)`): First parameter of each prompt's Beta posterior, prior included.
        beta (`np.ndarray` of shape `(P,)`): Second parameter of each prompt's Beta posterior, prior included.
        last_rate (`np.ndarray` of shape `(P,)`): Success rate of the newest visit, NaN if never scored.
        visits (`np.ndarray` of shape `(P,)`, int64): Visits with a scored completion; 0 means unseen, not failed.
        mean_length (`np.ndarray` of shape `(P,)`): Mean completion length in tokens, NaN if unknown.
    """

    keys: tuple[str, ...]
    alpha: np.ndarray  # (P,) float64
    beta: np.ndarray  # (P,) float64
    last_rate: np.ndarray  # (P,) float64
    visits: np.ndarray  # (P,) int64
    mean_length: np.ndarray  # (P,) float64

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, prompts: np.ndarray) -> "Evidence":
        """What is known of some of the prompts; `prompts` are their indices, or `(P,)` true or false."""
        index = np.arange(len(self))[prompts]
        arrays = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name != "keys"}
        return Evidence(keys=tuple(self.keys[i] for i in index), **arrays)

    @property
    def beliefs(self) -> BetaBeliefs:
        """The success rates as the allocator takes them."""
        return BetaBeliefs(self.alpha, self.beta)

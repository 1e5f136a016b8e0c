"""
What to expect of a prompt before its first rollout: a small regression, learnt online, apart from the policy.

    successes_i ~ BetaBinomial(n_i; kappa m_i, kappa (1 - m_i)),    m_i = sigmoid(b + w . x_i)

This is the value estimator that the method's authors leave open (arXiv 2509.25849, section 7).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..allocation.evidence import BetaBeliefs
from ..allocation.values import marginal_gains
from ..errors import InvalidInputError


#: How many rollouts a prediction may be worth.
STRENGTHS = np.array([0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0])  # (K,)

MEMORY = 500  # visits that the scores look back on
BASE_DRIFT, WEIGHT_DRIFT = 1e-3, 1e-4  # variance that a visit adds: the base rate moves fast, the weights hardly
BASE_VARIANCE, WEIGHT_VARIANCE = 4.0, 1.0  # before anything is known; weights share theirs by the root of their number
LIMIT = 2.0  # standard deviations beyond which a feature says no more: few prompts lie there, and a line leads far off
SPREAD = 2.0  # rollouts of a prompt beyond this many say little more of the others: prompts differ by more than features say
GROUP = 8  # rollouts of a prompt, at which one more is judged; TRL's default
SURE = 16.0  # rollouts beyond which what was seen of a prompt counts for no more
NEIGHBORS = 64  # prompts whose mean worth a prompt's is compared with
ENOUGH = math.log(1000.0)  # a useless prior of one strength gets that likely once in a thousand times (Ville 1939)
CAUTION = 1.0  # standard errors by which the features must have told prompts apart

_log_gamma: Any = np.frompyfunc(math.lgamma, 1, 1)


class SuccessPrior:
    """
    Expected success rates of prompts, from features that are known before a rollout, and how far to believe them.

    Each prediction is scored on outcomes that it did not know. Only what the scores bear out is used: features that predict
    better than the base rate of all prompts does, else the prior is `flat`, to the bit. Without features it is the base rate
    that has to predict; beside them it is not used alone, since it tells no prompt from another. The prior is for a prompt's
    first visit: in a replay, adding it to older evidence of the prompt's own gained nothing and lost where nearly all are
    solved (`benchmarks/study/priors.py --beside`).

    Args:
        num_features (`int`, *optional*, defaults to 0):
            Features of each prompt, `D`. With 0 only the base rate is learnt.
        flat (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
            Prior where nothing predicts (successes, failures).

    Attributes:
        kappa (`float`): How many rollouts the prediction is worth. 0 means the flat prior.
        believed (`str`): What prompts are predicted by: `"features"`, `"base rate"` where there are none, or `"flat"`.
        gain (`float`): Log-likelihood of the predictions that were given over that of the flat prior, per rollout. NaN at
            first.

    Example:

    ```python
    >>> import numpy as np
    >>> from trl_knapsack.tracking.prior import SuccessPrior

    >>> prior, random = SuccessPrior(num_features=1), np.random.default_rng(0)
    >>> for _ in range(20):
    ...     x = random.normal(size=(16, 1))
    ...     prior.observe(x, successes=random.binomial(8, 1 / (1 + np.exp(-2 * x[:, 0]))), trials=np.full(16, 8))
    >>> alpha, beta = prior.predict([[-1.0], [1.0]])
    >>> prior.believed, (alpha / (alpha + beta)).round(1)
    ('features', array([0.1, 0.9]))

    ```
    """

    def __init__(self, num_features: int = 0, flat: Sequence[float] = (1.0, 1.0)):
        if num_features != int(num_features) or num_features < 0:
            raise InvalidInputError(
                f"num_features ({num_features}) must be a whole number, 0 for the base rate alone."
            )
        flat = tuple(float(x) for x in flat)
        if len(flat) != 2 or not all(0 < x < math.inf for x in flat):
            raise InvalidInputError(f"flat {flat} must be two positive numbers, for example (1.0, 1.0).")
        self.num_features, self.flat = int(num_features), flat
        # The base rate first; without features, alone.
        self._regressions = [_Regression(0), *([_Regression(self.num_features)] if num_features else [])]
        self.reweigh()

    def __repr__(self) -> str:
        worth = "" if self.believed == "flat" else f", worth {self.kappa:g} rollouts"
        return f"SuccessPrior({self.num_features} features, believes {self.believed}{worth})"

    @property
    def kappa(self) -> float:
        return float(STRENGTHS[self._choice()[1]])

    @property
    def believed(self) -> str:
        which, strength = self._choice()
        return ("base rate", "features")[which] if strength else "flat"

    @property
    def gain(self) -> float:
        return float(self._given[0] / self._given[1]) if self._given[1] > 0 else math.nan

    def predict(self, features: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """
        Pseudo-successes `kappa m` and pseudo-failures `kappa (1 - m)` of prompts that were never seen, to be added to what
        their first rollouts show. Does not change the prior.

        Args:
            features (`(P, D)`): About standardised, cut at two standard deviations; NaN is unknown.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: both `(P,)`, positive.
        """
        features = self._checked(features)
        which, strength = self._choice()
        if not strength:
            return np.full(len(features), self.flat[0]), np.full(len(features), self.flat[1])
        prediction = STRENGTHS[strength] * self._rates(features)[which]  # (P, 2)
        return prediction[:, 0].copy(), prediction[:, 1].copy()

    def observe(self, features: ArrayLike, successes: ArrayLike, trials: ArrayLike) -> None:
        """
        Score the predictions of these prompts, then learn from them. The result depends on the order of prompts by
        rounding, so give every rank the same order.

        Args:
            features (`(P, D)`): As in `predict`.
            successes (`(P,)`): Completions that succeeded.
            trials (`(P,)`): Completions that were scored. A prompt without any is passed over.

        Raises:
            `ValueError`: if a shape is wrong, or successes are not between 0 and trials.
        """
        features = self._checked(features)
        successes, trials = (np.asarray(x, dtype=np.float64) for x in (successes, trials))
        for name, array in (("successes", successes), ("trials", trials)):
            if array.shape != (len(features),):
                raise InvalidInputError(
                    f"{name} has shape {array.shape}, but there are features of {len(features)} prompts; give one per prompt."
                )
            if not (np.isfinite(array) & (array >= 0)).all():
                raise InvalidInputError(f"{name} must be finite and not negative; got {array}.")
        if (successes > trials).any():
            raise InvalidInputError(f"successes {successes} must not exceed trials {trials}.")
        scored = trials > 0
        if not scored.any():
            return
        features, successes, trials = features[scored], successes[scored], trials[scored]

        outcome = np.column_stack([successes, trials - successes])  # (V, 2)
        flat = np.array(self.flat)
        likelihood_of_flat = _log_likelihood(outcome, np.tile(flat, (len(outcome), 1)))  # (V,)
        given = np.column_stack(self.predict(features))
        self._given *= (1 - 1 / MEMORY) ** len(outcome)
        self._given += (_log_likelihood(outcome, given) - likelihood_of_flat).sum(), trials.sum()

        beliefs = STRENGTHS[1:, None, None] * np.stack(self._rates(features))[:, None]  # (E, K-1, V, 2)
        likelihood = _log_likelihood(outcome, beliefs) - likelihood_of_flat  # (E, K-1, V)
        strength = int(np.argmax(self._scores[0, :, 0]))  # of the base rate; 0 is the flat prior
        population = beliefs[0, strength - 1] if strength else flat
        gain = self._gain(_worth(beliefs), _worth(outcome + population), np.minimum(trials, SURE))  # (E, K-1, V)
        self._scores *= (1 - 1 / MEMORY) ** len(outcome)
        self._scores[:, 1:] += np.stack([likelihood.sum(-1), gain.sum(-1), (gain**2).sum(-1)], axis=-1)
        for regression, columns in zip(self._regressions, self._columns(features), strict=True):
            regression.learn(columns, successes, trials)

    def reweigh(self) -> None:
        """Keep what was learnt and forget how well it predicted: for a prior that is carried to another run or model."""
        self._scores = np.zeros((len(self._regressions), len(STRENGTHS), 3))  # likelihood, gain, its squares
        self._means = np.zeros(
            (len(self._regressions), len(STRENGTHS) - 1, 3)
        )  # see _gain: weights, and two weighted sums
        self._given = np.zeros(2)  # log-likelihood of what was given over the flat prior's, and rollouts

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that was learnt, as arrays of float64: `(D + 1)^2` numbers and a few dozen."""
        state = {"scores": self._scores, "means": self._means, "given": self._given}
        for name, regression in zip(("base", "features"), self._regressions, strict=False):
            state |= {f"{name}.mean": regression.mean, f"{name}.covariance": regression.covariance}
        return {name: array.copy() for name, array in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Replace what was learnt by `state`, strictly. Nothing changes if that can't be used.

        Raises:
            `ValueError`: if a field is missing, unknown, of another shape (another number of features), or not finite.
        """
        expected = self.state_dict()
        if set(state) != set(expected):
            missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
            raise InvalidInputError(
                f"the state of the prior has missing fields {missing} and unknown fields {unknown}; build the prior with "
                "the features of the run that wrote it."
            )
        arrays = {}
        for name, now in expected.items():
            array = np.array(state[name], dtype=np.float64)
            if array.shape != now.shape:
                raise InvalidInputError(
                    f"field {name!r} of the prior's state has shape {array.shape}, but {self.num_features} features need "
                    f"{now.shape}; build the prior with the features of the run that wrote it."
                )
            if not np.isfinite(array).all():
                raise InvalidInputError(f"field {name!r} of the prior's state must be finite; restore it from a copy.")
            if name.endswith("covariance") and not (
                np.array_equal(array, array.T) and (np.linalg.eigvalsh(array) > 0).all()
            ):
                raise InvalidInputError(
                    f"field {name!r} of the prior's state must be a symmetric, positive matrix; restore it from a copy."
                )
            arrays[name] = array
        self._scores, self._means, self._given = (arrays[name] for name in ("scores", "means", "given"))
        for name, regression in zip(("base", "features"), self._regressions, strict=False):
            regression.mean, regression.covariance = arrays[f"{name}.mean"], arrays[f"{name}.covariance"]

    def _choice(self) -> tuple[int, int]:
        """
        Which regression, and which strength: the likeliest, if it is so by far enough.

        The likelihood tells the strength well, but also improves where the value does not: a confident prediction whose
        level lags is right about most prompts and wrong about those that rollouts are for. So the features must also have
        told apart the prompts that rollouts are worth most for.
        """
        likelihood, gain, squares = np.moveaxis(self._scores, -1, 0)  # (E, K) each
        told_apart = gain - CAUTION * np.sqrt(squares) > 0
        believed, enough = (0, 0), ENOUGH
        for which in range(
            len(self._regressions)
        ):  # features have to be better than the base rate, not only than nothing
            best = int(np.argmax(likelihood[which]))
            if likelihood[which, best] > enough and (which == 0 or told_apart[which, best]):
                believed, enough = (which, best), likelihood[which, best] + ENOUGH
        return believed if believed[0] == len(self._regressions) - 1 else (0, 0)

    def _gain(self, expected: np.ndarray, observed: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """
        How much better than equal worth the expected worth of rollouts fits what was seen: squared errors, `(E, K-1, V)`.

        Both are taken from their mean over the last few dozen prompts, since rollouts are moved between prompts: the flat
        prior expects the same of all. The mean has a memory of its own, so that batches of one prompt teach too.

        Args:
            expected (`(E, K-1, V)`): Worth that each regression at each strength expected of a prompt's rollouts.
            observed (`(V,)`): Worth after the outcome, under the flat prior.
            weights (`(V,)`): How well that is known.
        """
        self._means *= (1 - 1 / NEIGHBORS) ** len(weights)
        self._means[..., 0] += weights.sum()
        self._means[..., 1] += (weights * expected).sum(axis=-1)
        self._means[..., 2] += (weights * observed).sum()
        expected = expected - (self._means[..., 1] / self._means[..., 0])[..., None]
        observed = observed - (self._means[..., 2] / self._means[..., 0])[..., None]
        return weights * (observed**2 - (expected - observed) ** 2)

    def _columns(self, features: np.ndarray) -> list[np.ndarray]:
        return [features[:, :0], features][: len(self._regressions)]

    def _rates(self, features: np.ndarray) -> list[np.ndarray]:
        """Of each regression, expected success and failure rates `(P, 2)`."""
        rates = []
        for regression, columns in zip(self._regressions, self._columns(features), strict=True):
            rate = np.clip(regression.predict(columns), 1e-3, 1 - 1e-3)
            rates.append(np.column_stack([rate, 1 - rate]))
        return rates

    def _checked(self, features: ArrayLike) -> np.ndarray:
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise InvalidInputError(
                f"features have shape {features.shape} but must have shape (P, {self.num_features}), a row for each prompt."
            )
        if np.isinf(features).any():
            raise InvalidInputError("features must be finite, or NaN where unknown; one is infinite.")
        return np.clip(np.nan_to_num(features, nan=0.0), -LIMIT, LIMIT)


class _Regression:
    """
    Logistic regression whose coefficients take a random walk: belief of them is a Gaussian, widened before each batch.

    It forgets as a window would, the base rate sooner than the weights, and keeps no visits.
    """

    def __init__(self, num_features: int):
        share = math.sqrt(max(num_features, 1))
        weights = np.full(num_features, 1.0 / share)
        self.mean = np.zeros(num_features + 1)  # (1 + D,) base rate first, in logits
        self.covariance = np.diag(np.concatenate([[BASE_VARIANCE], WEIGHT_VARIANCE * weights]))
        self._drift = np.concatenate([[BASE_DRIFT], WEIGHT_DRIFT * weights])

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Expected rates, `(P,)`: the less sure the coefficients, the nearer to 1/2 (MacKay 1992)."""
        inputs = _with_ones(features)
        variance = ((inputs @ self.covariance) * inputs).sum(axis=1)
        return _sigmoid(inputs @ self.mean / np.sqrt(1.0 + math.pi / 8.0 * variance))

    def learn(self, features: np.ndarray, successes: np.ndarray, trials: np.ndarray) -> None:
        """Laplace's approximation after these visits, by Newton's method."""
        inputs = _with_ones(features)
        weight = (SPREAD + 1.0) / (SPREAD + trials)  # (P,) of a rollout: those of one prompt are alike
        precision = np.linalg.inv(self.covariance + len(features) * np.diag(self._drift))
        mean = self.mean
        for _ in range(20):
            rates = _sigmoid(inputs @ mean)
            slope = inputs.T @ (weight * (successes - trials * rates)) - precision @ (mean - self.mean)
            curvature = (inputs.T * (weight * trials * rates * (1 - rates))) @ inputs + precision
            step = np.linalg.solve(curvature, slope)
            largest = np.abs(step).max()
            mean = mean + step * min(1.0, 2.0 / max(largest, 1e-300))  # a full step from far away may overshoot
            if largest < 1e-10:
                break
        self.mean = mean
        covariance = np.linalg.inv(curvature)
        self.covariance = (covariance + covariance.T) / 2


def _with_ones(features: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(features)), features])


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))  # never overflows


def _log_likelihood(outcome: np.ndarray, belief: np.ndarray) -> np.ndarray:
    """Of outcomes `(..., 2)`, successes and failures, under Beta beliefs, less what is the same under any belief: `(...)`."""

    def log_beta(counts: np.ndarray) -> np.ndarray:
        both, total = _log_gamma(counts), _log_gamma(counts.sum(axis=-1))
        return both.astype(np.float64).sum(axis=-1) - total.astype(np.float64)

    return log_beta(belief + outcome) - log_beta(belief)


def _worth(belief: np.ndarray) -> np.ndarray:
    """What one more rollout is worth in a group of usual size, which is what an allocation compares: `(...)`."""
    alpha, beta = belief.reshape(-1, 2).T
    return marginal_gains(BetaBeliefs(alpha, beta), np.full(alpha.size, GROUP)).reshape(belief.shape[:-1])

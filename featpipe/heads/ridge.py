"""Least squares on classes as -1 and 1, with an L2 penalty: the closed form."""

from numbers import Real

import numpy as np
import scipy.linalg
from sklearn.utils._param_validation import Interval

from featpipe.heads import WeightedHead

ALPHAS = np.logspace(-3, 5, 33)  # tried, times the features' mean variance


class Head(WeightedHead):
    """Ridge regression on one column of -1 and 1 for each class.

    Its scores are no logits: probabilities are to be calibrated before they are believed.

    Parameters
    ----------
    alpha : float or None
        Penalty. None: of 33 penalties the one whose squared error on rows left out, one at a
        time, is smallest; all of them come from one eigendecomposition.
    standardize : bool
        Standardise the features by the training rows.

    Attributes
    ----------
    alpha_ : float
        The penalty that was used.

    References
    ----------
    Golub, Heath, Wahba, "Generalized cross-validation as a method for choosing a good ridge
    parameter", Technometrics 1979 (the error on rows left out, in closed form).
    """

    _parameter_constraints = {  # noqa: RUF012
        "alpha": [Interval(Real, 0, None, closed="neither"), None],
        "standardize": ["boolean"],
    }

    def __init__(self, alpha: float | None = None, standardize: bool = True) -> None:
        self.alpha = alpha
        self.standardize = standardize

    def _solve(
        self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        used = weights > 0
        X, codes, weights = X[used].astype(np.float64), codes[used], weights[used]
        outputs = np.arange(len(self.classes_)) if len(self.classes_) > 2 else np.array([1])
        targets = np.where(codes[:, None] == outputs, 1.0, -1.0)
        mean, middle = (np.average(part, axis=0, weights=weights) for part in (X, targets))
        root = np.sqrt(weights)[:, None]
        rows, wanted = root * (X - mean), root * (targets - middle)
        # rows = left * lengths @ directions.T
        if len(rows) < rows.shape[1]:
            values, left = _largest(rows @ rows.T)
            directions = rows.T @ (left / np.sqrt(values))
        else:
            values, directions = _largest(rows.T @ rows)
            left = rows @ (directions / np.sqrt(values))
        inside = left.T @ wanted
        self.alpha_ = self.alpha or _left_out(values, left, inside, wanted, weights, X.shape[1])
        shrunk = np.sqrt(values)[:, None] / (values[:, None] + self.alpha_) * inside
        coef = (directions @ shrunk).T
        return coef, middle - coef @ mean


def _largest(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors, without those that are only rounding."""
    values, vectors = scipy.linalg.eigh(square)
    kept = values > len(values) * np.finfo(float).eps * max(values[-1], 1e-300)
    return values[kept], vectors[:, kept]


def _left_out(
    values: np.ndarray,
    left: np.ndarray,
    inside: np.ndarray,
    wanted: np.ndarray,
    weights: np.ndarray,
    features: int,
) -> float:
    """The penalty of the smallest squared error on each row by a fit without it."""
    alphas = ALPHAS * max(float(values.sum()) / features, 1e-300)
    errors = []
    for alpha in alphas:
        share = values / (values + alpha)
        residual = wanted - left @ (share[:, None] * inside)
        # Of a row of weight 2 one copy is left out, and the other stays.
        leverage = (left**2) @ share / weights + 1 / weights.sum()
        alone = np.maximum(1 - leverage, 1e-12)
        errors.append(float(((residual / alone[:, None]) ** 2).sum()))
    return float(alphas[int(np.argmin(errors))])

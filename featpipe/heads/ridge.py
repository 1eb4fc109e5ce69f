"""Least squares on classes as -1 and 1, with an L2 penalty: the closed form."""

import time
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Self

import numpy as np
import scipy.linalg
from sklearn.utils._param_validation import Interval

from featpipe.linear_head import WeightedHead, both_columns
from featpipe.streamed import StreamedRows
from featpipe.targets import probabilities
from featpipe.tasks import Outcome, Task

ALPHAS = np.logspace(-3, 5, 33)  # tried, times the features' mean variance


class Head(WeightedHead):
    """Ridge regression on one column of -1 and 1 for each class.

    Its scores are no logits: probabilities are to be calibrated before they are believed.

    Parameters
    ----------
    alpha : float or None
        Penalty. None: of 33 penalties the one whose squared error on rows left out, one at a
        time, or on images with all their views, is smallest; all of them come from one
        eigendecomposition.
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
        spectrum = _Spectrum(X, codes, weights, len(self.classes_), self._views)
        self.alpha_ = self.alpha or spectrum.left_out()
        return spectrum.solve(self.alpha_)

    @classmethod
    def cross_fit(
        cls,
        heads: Sequence[Self],
        X: np.ndarray | StreamedRows,
        targets: np.ndarray,
        n_classes: int,
        tasks: Sequence[Task],
    ) -> Iterator[Outcome]:
        """Every penalty of a task from one eigendecomposition; see `Head.cross_fit`."""
        assert isinstance(X, np.ndarray)
        for place, task in enumerate(tasks):
            begun = time.perf_counter()
            every, views = task.every, task.views
            classes, codes = np.unique(targets[every], return_inverse=True)
            weights = np.full(len(every), 1 / views)
            spectrum = _Spectrum(X[every], codes, weights, len(classes), views)
            for number, head in enumerate(heads):
                coef, intercept = spectrum.solve(head.alpha or spectrum.left_out())
                proba = np.zeros((len(task.scored), n_classes))
                logits = both_columns(X[task.scored] @ coef.T + intercept)
                proba[:, classes] = probabilities(logits)
                now = time.perf_counter()
                yield Outcome(number, place, proba, now - begun)
                begun = now


class _Spectrum:
    """The training rows' singular values, from which every penalty's solution follows."""

    def __init__(
        self,
        X: np.ndarray,
        codes: np.ndarray,
        weights: np.ndarray,
        classes: int,
        views: int = 1,
    ) -> None:
        used, self._views = weights > 0, views
        X, codes, self._weights = X[used].astype(np.float64), codes[used], weights[used]
        outputs = np.arange(classes) if classes > 2 else np.array([1])
        targets = np.where(codes[:, None] == outputs, 1.0, -1.0)
        self._mean, self._middle = (
            np.average(part, axis=0, weights=self._weights) for part in (X, targets)
        )
        root = np.sqrt(self._weights)[:, None]
        rows, self._wanted = root * (X - self._mean), root * (targets - self._middle)
        # rows = left * sqrt(values) @ directions.T
        if len(rows) < rows.shape[1]:
            self._values, self._left = _largest(rows @ rows.T)
            self._directions = rows.T @ (self._left / np.sqrt(self._values))
        else:
            self._values, self._directions = _largest(rows.T @ rows)
            self._left = rows @ (self._directions / np.sqrt(self._values))
        self._inside = self._left.T @ self._wanted

    def solve(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and intercepts at one penalty."""
        shrunk = np.sqrt(self._values)[:, None] / (self._values[:, None] + alpha) * self._inside
        coef = (self._directions @ shrunk).T
        return coef, self._middle - coef @ self._mean

    def left_out(self) -> float:
        """The penalty of the smallest squared error on each row by a fit without it."""
        alphas = ALPHAS * max(float(self._values.sum()) / len(self._mean), 1e-300)
        errors = []
        for alpha in alphas:
            share = self._values / (self._values + alpha)
            residual = self._wanted - self._left @ (share[:, None] * self._inside)
            if self._views > 1:
                errors.append(self._without_image(share, residual))
                continue
            # Of a row of weight 2 one copy is left out, and the other stays.
            leverage = (self._left**2) @ share / self._weights + 1 / self._weights.sum()
            alone = np.maximum(1 - leverage, 1e-12)
            errors.append(float(((residual / alone[:, None]) ** 2).sum()))
        return float(alphas[int(np.argmin(errors))])

    def _without_image(self, share: np.ndarray, residual: np.ndarray) -> float:
        """Squared error on each image's views by a fit without all of them."""
        left = self._left.reshape(-1, self._views, len(share))
        root = np.sqrt(self._weights).reshape(-1, self._views, 1)
        own = (left * share) @ left.transpose(0, 2, 1)
        own += root @ root.transpose(0, 2, 1) / self._weights.sum()
        apart = np.eye(self._views) * (1 + 1e-12) - own
        alone = np.linalg.solve(apart, residual.reshape(len(left), self._views, -1))
        return float((alone**2).sum())


def _largest(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors, without those that are only rounding."""
    values, vectors = scipy.linalg.eigh(square)
    kept = values > len(values) * np.finfo(float).eps * max(values[-1], 1e-300)
    return values[kept], vectors[:, kept]

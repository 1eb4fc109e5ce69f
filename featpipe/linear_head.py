"""What heads share whose logits are linear in the features, or whose classes are their means."""

from typing import Any, Self

import numpy as np
from scipy.sparse import csr_array

from featpipe.head import Head, Validation


class LinearHead(Head):
    """A head whose logits are linear in the features.

    A subclass implements ``_solve``, which may give one vector for two classes.
    """

    def _learn(
        self,
        X: np.ndarray,
        codes: np.ndarray,
        validation: Validation | None,
        weights: np.ndarray | None,
    ) -> None:
        given = np.ones(len(X)) if weights is None else weights
        self._coef, self._intercept = self._solve(X, codes, given)

    def _solve(
        self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients, shape (classes or 1, d), and intercepts, shape (classes or 1,)."""
        raise TypeError(f"{type(self).__name__} does not implement _solve.")

    def _decision(self, X: np.ndarray) -> np.ndarray:
        return both_columns(X @ self._coef.T + self._intercept)

    def arrays(self) -> dict[str, np.ndarray]:
        """Coefficients, shape (classes or 1, d), and intercepts."""
        return {"coef": self._coef, "intercept": self._intercept}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self._coef, self._intercept = arrays["coef"], arrays["intercept"]


class WeightedHead(LinearHead):
    """A linear head whose rows may be weighted."""

    def fit(
        self, X: Any, y: Any, validation: Validation | None = None, sample_weight: Any = None
    ) -> Self:
        """Fit on features `X`, shape (n, d), and labels `y`, shape (n,).

        Parameters
        ----------
        X, y : arrays
        validation : pair of arrays
            Not used: there are no epochs.
        sample_weight : array, shape (n,)
            At least 0; a row of weight 2 counts as if it were there twice.
        """
        return self._fit_weighted(X, y, validation, sample_weight)


def both_columns(logits: np.ndarray) -> np.ndarray:
    """Logits of every class; two classes may share one vector, shape (n, 1)."""
    if logits.shape[1] > 1:
        return logits
    return np.concatenate([np.zeros_like(logits), logits], axis=1)


def class_means(X: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean of each class's rows, shape (classes, d), float64; every class has rows."""
    counts = np.bincount(codes)
    members = csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    means: np.ndarray = (members @ X) / counts[:, None]
    return means

"""scikit-learn's multinomial logistic regression."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from featpipe.linear_head import WeightedHead


class Head(WeightedHead):
    """`sklearn.linear_model.LogisticRegression` with the L2 penalty, on standardised features.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty. Standardised features of a pretrained network want
        a strong one.
    max_iter : int
        Of L-BFGS.
    tol : float
        Of L-BFGS.
    standardize : bool
        Standardise the features by the training rows.
    """

    _parameter_constraints = {  # noqa: RUF012
        name: LogisticRegression._parameter_constraints[name] for name in ("C", "max_iter", "tol")
    }

    def __init__(
        self, C: float = 0.01, max_iter: int = 1000, tol: float = 1e-4, standardize: bool = True
    ) -> None:
        self.C = C
        self.max_iter = max_iter
        self.tol = tol
        self.standardize = standardize

    def _solve(
        self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=self.C, max_iter=self.max_iter, tol=self.tol)
        model.fit(X, codes, sample_weight=weights)
        self.n_iter_ = model.n_iter_
        return model.coef_, model.intercept_

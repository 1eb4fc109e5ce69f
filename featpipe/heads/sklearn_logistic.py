"""scikit-learn's multinomial logistic regression."""

import numpy as np
from sklearn.linear_model import LogisticRegression

from featpipe.heads import Head as BaseHead
from featpipe.heads import Validation


class Head(BaseHead):
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

    def _fit(self, X: np.ndarray, codes: np.ndarray, validation: Validation | None) -> None:
        model = LogisticRegression(C=self.C, max_iter=self.max_iter, tol=self.tol)
        model.fit(X, codes)
        self.n_iter_ = model.n_iter_
        self._coef, self._intercept = model.coef_, model.intercept_

    def _decision(self, X: np.ndarray) -> np.ndarray:
        logits: np.ndarray = X @ self._coef.T + self._intercept
        if logits.shape[1] == 1:  # two classes share one vector
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        return logits

    def arrays(self) -> dict[str, np.ndarray]:
        """Coefficients, shape (classes or 1, d), and intercepts."""
        return {"coef": self._coef, "intercept": self._intercept}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self._coef, self._intercept = arrays["coef"], arrays["intercept"]

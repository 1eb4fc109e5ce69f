"""The nearest class mean."""

from numbers import Real

import numpy as np
from sklearn.preprocessing import normalize
from sklearn.utils._param_validation import Interval, StrOptions

from featpipe.head import Head as BaseHead
from featpipe.head import Validation
from featpipe.linear_head import class_means


class Head(BaseHead):
    """Each row goes to the class whose mean is nearest.

    Parameters
    ----------
    metric : {"cosine", "euclidean"}
        By cosine, rows and means have length 1; by Euclidean distance, probabilities are those
        of classes with one spherical covariance.
    temperature : float
        Of probabilities by cosine.
    standardize : bool
        Standardise the features by the training rows.
    """

    _parameter_constraints = {  # noqa: RUF012
        "metric": [StrOptions({"cosine", "euclidean"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "standardize": ["boolean"],
    }

    def __init__(
        self, metric: str = "cosine", temperature: float = 0.07, standardize: bool = True
    ) -> None:
        self.metric = metric
        self.temperature = temperature
        self.standardize = standardize

    def _fit(self, X: np.ndarray, codes: np.ndarray, validation: Validation | None) -> None:
        rows = self._placed(X.astype(np.float64))
        means = class_means(rows, codes)
        within = float(((rows - means[codes]) ** 2).mean())
        # A spread of nothing would make every probability 0 or 1, and some of them 0 / 0.
        self._spread = np.array([max(within, 1e-12 * float((rows**2).mean()), 1e-300)])
        self._means = self._placed(means)

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        placed: np.ndarray = normalize(rows) if self.metric == "cosine" else rows
        return placed

    def _decision(self, X: np.ndarray) -> np.ndarray:
        similar: np.ndarray = self._placed(X.astype(np.float64)) @ self._means.T
        if self.metric == "cosine":
            return similar / self.temperature
        logits: np.ndarray = (similar - (self._means**2).sum(axis=1) / 2) / self._spread
        return logits

    def arrays(self) -> dict[str, np.ndarray]:
        """The classes' means, and the mean square distance to them by feature."""
        return {"means": self._means, "spread": self._spread}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self._means, self._spread = arrays["means"], arrays["spread"]

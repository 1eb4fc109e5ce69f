"""Linear discriminant analysis with a shrunk covariance."""

from numbers import Real

import numpy as np
import scipy.linalg
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.utils._param_validation import Interval, StrOptions

from featpipe.linear_head import LinearHead, class_means

LEAST = 1e-10  # of the shrinkage: the covariance is to be invertible


class Head(LinearHead):
    """Classes of one covariance, which is shrunk towards a sphere.

    Parameters
    ----------
    shrinkage : "auto" or float
        From 0, the covariance within the classes as it is, to 1, the sphere of equal mean
        variance. ``auto`` is Ledoit's and Wolf's, the views of an image being one draw.
    standardize : bool
        Standardise the features by the training rows.

    Attributes
    ----------
    shrinkage_ : float
        What was used.

    References
    ----------
    Ledoit, Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis 2004.
    """

    _parameter_constraints = {  # noqa: RUF012
        "shrinkage": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "standardize": ["boolean"],
    }

    def __init__(self, shrinkage: float | str = "auto", standardize: bool = True) -> None:
        self.shrinkage = shrinkage
        self.standardize = standardize

    def _solve(
        self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        X = X.astype(np.float64)
        means = class_means(X, codes)
        middle = X.mean(axis=0)
        within = X - means[codes]
        sphere = float((within**2).mean())
        if self.shrinkage == "auto":
            self.shrinkage_ = _ledoit_wolf(within, self._views)
        else:
            self.shrinkage_ = float(self.shrinkage)
        share = max(self.shrinkage_, LEAST)
        between = (means - middle).T
        coef = _solved(within, 1 - share, max(share * sphere, 1e-300), between).T
        intercept = np.log(np.bincount(codes) / len(X)) - (coef * (means + middle)).sum(axis=1) / 2
        return coef, intercept


def _ledoit_wolf(rows: np.ndarray, views: int) -> float:
    """Their shrinkage; views of an image are one draw, whose products are averaged."""
    if views == 1:
        return float(ledoit_wolf_shrinkage(rows, assume_centered=True))
    n, d = rows.shape
    square = rows.T @ rows if d <= n else rows @ rows.T
    norm = float((square**2).sum()) / n**2  # of the covariance
    away = norm - float((rows**2).sum() / n) ** 2 / d
    images = rows.reshape(-1, views, d)
    inner = images @ images.transpose(0, 2, 1)
    spread = (float((inner**2).sum()) / views**2 / len(images) - norm) / len(images)
    return min(1.0, max(0.0, spread) / away) if away > 0 else 0.0


def _solved(rows: np.ndarray, share: float, sphere: float, right: np.ndarray) -> np.ndarray:
    """``(share * rows.T @ rows / n + sphere * I)^-1 @ right``, by the smaller side of `rows`."""
    n, d = rows.shape
    if not share:
        return right / sphere
    if d <= n:
        covariance = (share / n) * (rows.T @ rows)
        covariance[np.diag_indices(d)] += sphere
        found: np.ndarray = scipy.linalg.solve(covariance, right, assume_a="pos")
        return found
    inner = rows @ rows.T
    inner[np.diag_indices(n)] += sphere * n / share
    found = (right - rows.T @ scipy.linalg.solve(inner, rows @ right, assume_a="pos")) / sphere
    return found

"""Multinomial logistic regression, by featpipe's own second-order solver."""

import warnings
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_sample_weight

from featpipe.device import choose_double
from featpipe.errors import HeadError
from featpipe.heads import WeightedHead
from featpipe.logistic import Rows, fit_path


class Head(WeightedHead):
    """Logistic regression with an L2 penalty, on standardised features.

    The objective is that of `sklearn.linear_model.LogisticRegression`.

    Parameters
    ----------
    C : float
        Inverse strength of the penalty. Standardised features of a pretrained network want a
        strong one.
    class_weight : dict, "balanced" or None
        Of each class, beside the rows' own weights.
    fit_intercept : bool
        The intercept is not penalised.
    tol : float
        Share of the objective by which it may lie above its minimum, as estimated.
    max_iter : int
        Of L-BFGS.
    standardize : bool
        Standardise the features by the training rows.
    device : str
        ``auto``, ``cpu``, ``cuda``, ...

    Attributes
    ----------
    n_iter_ : int
    gap_ : float
        By how much of itself the objective may lie above its minimum.
    """

    _parameter_constraints = {  # noqa: RUF012
        "C": [Interval(Real, 0, None, closed="neither")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "fit_intercept": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "standardize": ["boolean"],
    }

    def __init__(
        self,
        C: float = 0.01,
        class_weight: dict[object, float] | str | None = None,
        fit_intercept: bool = True,
        tol: float = 1e-8,
        max_iter: int = 1000,
        standardize: bool = True,
        device: str = "auto",
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize
        self.device = device

    def _solve(
        self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        device = choose_double(self.device)
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, self.classes_[codes])
        if not weights.any():
            raise HeadError("class_weight leaves no row any weight.")
        (found,) = fit_path(
            Rows.of(torch.as_tensor(X, device=device)),
            torch.as_tensor(codes, device=device),
            len(self.classes_),
            [self.C],
            torch.as_tensor(weights, device=device)[None],
            self.fit_intercept,
            self.tol,
            self.max_iter,
        )
        self.n_iter_, self.gap_ = int(found.iterations), float(found.gap)
        if not found.converged:
            warnings.warn(
                f"The objective may lie {self.gap_:.1e} of itself above its minimum after "
                f"{self.n_iter_} iterations, more than tol={self.tol:g}. Raise max_iter or tol, or "
                "standardize the features.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return found.coef[0].cpu().numpy(), found.intercept[0].cpu().numpy()

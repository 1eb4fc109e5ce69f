"""Heads: classifiers of features. Each file here is one, a scikit-learn classifier.

A plug-in has one class ``Head``, derived from `featpipe.heads.Head`, whose constructor's
parameters are its options.
"""

import inspect
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from featpipe.descent import Epochs
from featpipe.errors import HeadError
from featpipe.registry import load_plugin, no_such

Validation = tuple[np.ndarray, np.ndarray]


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What every head is: a scikit-learn classifier whose state is a few arrays.

    A subclass stores its parameters in ``__init__``, and implements ``_fit``,
    ``_decision`` and ``arrays``, and may list what its parameters can be in scikit-learn's
    ``_parameter_constraints``. If it has a parameter ``standardize``, features are
    standardised by the training rows' mean and deviation before it sees them.

    Attributes
    ----------
    classes_ : array, shape (classes,)
    n_features_in_ : int
    curves_ : list of dict
        One an epoch, where there are epochs; else empty.
    """

    def fit(self, X: Any, y: Any, validation: Validation | None = None) -> Self:
        """Fit on features `X`, shape (n, d), and labels `y`, shape (n,).

        Parameters
        ----------
        X, y : arrays
        validation : pair of arrays
            Rows that only select the epoch; heads without epochs ignore them.
        """
        return self._fit_weighted(X, y, validation, None)

    def _fit_weighted(
        self, X: Any, y: Any, validation: Validation | None, sample_weight: Any
    ) -> Self:
        try:
            self._validate_params()
        except InvalidParameterError as error:
            raise HeadError(str(error)) from error
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise HeadError(f"There is only one class among the labels: {self.classes_[0]!r}.")
        held_out = None
        if validation is not None and len(validation[0]):
            X_val = validate_data(self, validation[0], reset=False, dtype=[np.float64, np.float32])
            known = np.isin(validation[1], self.classes_)
            if known.any():
                held_out = X_val[known], np.searchsorted(self.classes_, validation[1][known])
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        self._mean: np.ndarray | None = None
        self._scale: np.ndarray | None = None
        if getattr(self, "standardize", False):
            mean, deviation = _moments(X, weights)
            self._mean, scale = mean.astype(X.dtype), deviation.astype(X.dtype)
            self._scale = np.where(scale > 1e-6 * np.abs(self._mean) + 1e-12, scale, 1)
            X = self._standardized(X)
            if held_out is not None:
                held_out = self._standardized(held_out[0]), held_out[1]
        self.curves_: Epochs = []
        self._learn(X, codes, held_out, weights)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, shape (n, classes); rows sum to 1."""
        check_is_fitted(self, "classes_")
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        logits = self._decision(self._standardized(X)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        exponential = np.exp(logits)
        proba: np.ndarray = exponential / exponential.sum(axis=1, keepdims=True)
        return proba

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape (n,)."""
        proba = self.predict_proba(X)
        predicted: np.ndarray = self.classes_[proba.argmax(axis=1)]
        return predicted

    def _standardized(self, X: np.ndarray) -> np.ndarray:
        if self._mean is None:
            return X
        result: np.ndarray = (X - self._mean) / self._scale
        return result

    def _learn(
        self,
        X: np.ndarray,
        codes: np.ndarray,
        validation: Validation | None,
        weights: np.ndarray | None,
    ) -> None:
        self._fit(X, codes, validation)

    def _fit(self, X: np.ndarray, codes: np.ndarray, validation: Validation | None) -> None:
        raise TypeError(f"{type(self).__name__} does not implement _fit.")

    def _decision(self, X: np.ndarray) -> np.ndarray:
        """Logits, shape (n, classes), of standardised features."""
        raise TypeError(f"{type(self).__name__} does not implement _decision.")

    def arrays(self) -> dict[str, np.ndarray]:
        """What fitting learnt, apart from the standardisation."""
        raise TypeError(f"{type(self).__name__} does not implement arrays.")

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        raise TypeError(f"{type(self).__name__} does not implement set_arrays.")

    def state(self) -> dict[str, np.ndarray]:
        """Everything `predict_proba` needs, as arrays by name."""
        check_is_fitted(self, "classes_")
        state = self.arrays()
        if self._mean is not None and self._scale is not None:
            state |= {"mean": self._mean, "scale": self._scale}
        return {name: np.ascontiguousarray(array) for name, array in state.items()}

    def restore(self, state: dict[str, np.ndarray], classes: np.ndarray, n_features: int) -> Self:
        """Become the fitted head that `state` was taken from."""
        state = dict(state)
        self._mean, self._scale = state.pop("mean", None), state.pop("scale", None)
        self.classes_, self.n_features_in_, self.curves_ = classes, n_features, []
        self.set_arrays(state)
        return self

    @property
    def n_parameters(self) -> int:
        """How many numbers fitting learnt (standardisation not counted)."""
        return sum(array.size for array in self.arrays().values())


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


def _moments(X: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature, float64."""
    if weights is None:
        return X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    mean = np.average(X, axis=0, weights=weights)
    return mean, np.sqrt(np.average((X - mean) ** 2, axis=0, weights=weights))


def make_head(name: str, options: dict[str, Any] | None = None) -> Head:
    """Build an unfitted head by name.

    Raises
    ------
    UnknownNameError
        If there is no such head.
    HeadError
        If it does not take one of the options.
    """
    kind: type[Head] = load_plugin("heads", name).Head
    known = list(inspect.signature(kind).parameters)
    for option in options or {}:
        if option not in known:
            raise HeadError(
                f"{no_such(f'option of {name}', option, known)} It takes {', '.join(known)}."
            )
    return kind(**(options or {}))

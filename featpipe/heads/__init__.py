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
from sklearn.utils.validation import check_is_fitted, validate_data

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
        self._mean: np.ndarray | None = None
        self._scale: np.ndarray | None = None
        if getattr(self, "standardize", False):
            self._mean = X.mean(axis=0, dtype=np.float64).astype(X.dtype)
            scale = X.std(axis=0, dtype=np.float64).astype(X.dtype)
            self._scale = np.where(scale > 1e-6 * np.abs(self._mean) + 1e-12, scale, 1)
            X = self._standardized(X)
            if held_out is not None:
                held_out = self._standardized(held_out[0]), held_out[1]
        self.curves_: Epochs = []
        self._fit(X, codes, held_out)
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

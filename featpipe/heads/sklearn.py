"""Any classifier of scikit-learn: ``sklearn:neighbors.KNeighborsClassifier``."""

import contextlib
import importlib
import inspect
import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import all_estimators
from sklearn.utils.validation import has_fit_parameter

from featpipe.errors import HeadError
from featpipe.estimators import estimator_from_bytes, estimator_to_bytes
from featpipe.head import Head as BaseHead
from featpipe.head import Validation
from featpipe.registry import no_such

# What scikit-learn raises for rows or options it cannot take, or a fitted state that makes no
# sense because a file was damaged.
REFUSALS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
log = logging.getLogger(__name__)


class Head(BaseHead):
    """A classifier of scikit-learn, by name, on standardised features.

    Its probabilities are the classifier's own where it gives any; else the softmax of its
    decision values; else 1 for the class it predicts.

    Parameters
    ----------
    estimator : str
        Module and class within scikit-learn, such as ``ensemble.RandomForestClassifier``.
    params : dict
        The classifier's own parameters; `set_params` takes them by their own names as well.
    standardize : bool
        Standardise the features by the training rows.
    seed : int
        The classifier's ``random_state``, where it has one that is not among `params`.

    Notes
    -----
    Views of an image are rows of a weight of 1 / views where the classifier takes weights; what it
    chooses by folds of its own, such as LogisticRegressionCV, tears them apart.

    Where neighbours are searched for and ``algorithm`` is not said it is ``brute``, which
    ``auto`` is from 16 features on: a search tree cannot be saved without pickle.
    """

    _parameter_constraints = {  # noqa: RUF012
        "estimator": [str],
        "params": [dict, None],
        "standardize": ["boolean"],
    }

    def __init__(
        self,
        estimator: str = "linear_model.LogisticRegression",
        params: dict[str, Any] | None = None,
        standardize: bool = True,
        seed: int = 0,
    ) -> None:
        self.estimator = estimator
        self.params = params
        self.standardize = standardize
        self.seed = seed

    def set_params(self, **params: Any) -> Self:
        """Set the head's parameters, and the classifier's by their own names.

        Raises
        ------
        HeadError
            If neither has a parameter of that name, or there is no such classifier.
        """
        own = inspect.signature(type(self)).parameters
        super().set_params(**{name: params[name] for name in params if name in own})
        theirs = {name: params[name] for name in params if name not in own}
        if theirs:
            known = [*own, *self._names()]
            for name in theirs:
                if name not in known:
                    raise HeadError(
                        f"{no_such(f'option of {self.estimator}', name, known)} It takes "
                        f"{', '.join(known)}."
                    )
            self.params = {**(self.params or {}), **theirs}
        return self

    def _names(self) -> list[str]:
        return list(inspect.signature(find_classifier(self.estimator)).parameters)

    def _build(self) -> ClassifierMixin:
        kind, names, given = find_classifier(self.estimator), self._names(), self.params or {}
        for name in given:
            if name not in names:
                raise HeadError(no_such(f"option of {self.estimator}", name, names))
        defaults: dict[str, Any] = {}
        if "random_state" in names:
            defaults["random_state"] = self.seed
        if "algorithm" in names and kind.__module__.startswith("sklearn.neighbors."):
            defaults["algorithm"] = "brute"
        try:
            return kind(**{**defaults, **given})
        except TypeError as error:
            raise HeadError(
                f"{self.estimator} cannot be made of options that are plain values: {error}. "
                "Take another classifier."
            ) from error

    def _fit(self, X: np.ndarray, codes: np.ndarray, validation: Validation | None) -> None:
        estimator, weights = self._build(), {}
        if self._views > 1 and has_fit_parameter(estimator, "sample_weight"):
            weights["sample_weight"] = np.full(len(X), 1 / self._views)
        with self._as_ours():
            self.estimator_ = estimator.fit(X, codes, **weights)

    def _decision(self, X: np.ndarray) -> np.ndarray:
        fitted, classes = self.estimator_, len(self.classes_)
        with self._as_ours():
            if hasattr(fitted, "predict_proba"):
                proba: np.ndarray = np.asarray(fitted.predict_proba(X), np.float64)
                if proba.shape != (len(X), classes):
                    raise HeadError(f"{self.estimator} gives probabilities of {proba.shape}.")
                return _logarithm(proba)
            # One against one has as many columns for three classes, of another meaning.
            pairs = getattr(fitted, "decision_function_shape", "ovr") == "ovo" and classes > 2
            if hasattr(fitted, "decision_function") and not pairs:
                found: np.ndarray = np.asarray(fitted.decision_function(X), np.float64)
                if found.ndim == 1:
                    found = np.stack([np.zeros_like(found), found], axis=1)
                if found.shape[1] == classes:
                    return found
            return _logarithm(np.eye(classes)[fitted.predict(X)])

    @contextlib.contextmanager
    def _as_ours(self) -> Iterator[None]:
        """What scikit-learn warns of as notes, each once; what it refuses as a HeadError."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            except HeadError:
                raise
            except REFUSALS as error:
                hint = ""
                if self.standardize and "egative" in str(error):
                    hint = " Standardised features are negative as well: try standardize=False."
                raise HeadError(f"{self.estimator}: {error}{hint}") from error
            finally:
                texts = [" ".join(str(one.message).split()) for one in caught]
                for text in dict.fromkeys(texts):
                    log.warning("%s: %s", self.estimator, text)

    def arrays(self) -> dict[str, np.ndarray]:
        """The classifier as bytes, without pickle.

        Raises
        ------
        HeadError
            If it holds what could not be read again safely.
        MissingExtraError
            Without skops.
        """
        try:
            json.dumps(self.params, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise HeadError(f"The options of {self.estimator} are no plain values: {error}.") from (
                error
            )
        with self._as_ours():
            content = np.frombuffer(estimator_to_bytes(self.estimator_), np.uint8)
        # An artefact's largest array is at least as long as its features are many, so that no
        # small file can ask for much memory; an archive may have something before it.
        return {"estimator": np.pad(content, (max(0, self.n_features_in_ - len(content)), 0))}

    def set_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        kind, content = find_classifier(self.estimator), arrays["estimator"].tobytes()
        with self._as_ours():
            self.estimator_ = estimator_from_bytes(content, kind, self.n_features_in_)
        if not np.array_equal(self.estimator_.classes_, np.arange(len(self.classes_))):
            raise HeadError(f"The saved {self.estimator} has other classes than its file says.")

    @property
    def n_parameters(self) -> int:
        """How many coefficients the classifier has; else how many numbers it holds in arrays."""
        held, counter = vars(self.estimator_), _Counter()
        for names in (("coef_", "intercept_"), ("coefs_", "intercepts_")):
            if all(name in held for name in names):
                held = {name: held[name] for name in names}
        counter.dump(held)
        return counter.numbers


def make(name: str, options: dict[str, Any]) -> Head:
    """The head called ``sklearn:NAME``, with options of its own and of the classifier.

    Raises
    ------
    HeadError
        If there is no such classifier, or it does not take one of the options.
    """
    head = Head(name) if name else Head()
    return head.set_params(**options)


def find_classifier(name: str) -> type[ClassifierMixin]:
    """The class of scikit-learn called ``module.Class``; nothing else is ever imported.

    Raises
    ------
    HeadError
        If there is none, or it is no classifier.
    """
    module, _, title = name.removeprefix("sklearn.").rpartition(".")
    parts = module.split(".")
    found = None
    if all(part.isidentifier() and not part.startswith("_") for part in [*parts, title]):
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(f"sklearn.{module}"), title, None)
    if not inspect.isclass(found) or not found.__module__.startswith("sklearn."):
        raise HeadError(no_such("classifier of scikit-learn", name, _known()))
    if not issubclass(found, BaseEstimator) or not issubclass(found, ClassifierMixin):
        raise HeadError(
            f"{name} of scikit-learn is no classifier. There are {', '.join(_known())}."
        )
    return found


def _known() -> list[str]:
    """Names of all classifiers, by their public modules."""
    return [
        f"{kind.__module__.partition('._')[0].removeprefix('sklearn.')}.{title}"
        for title, kind in all_estimators("classifier")
    ]


def _logarithm(proba: np.ndarray) -> np.ndarray:
    """Logits whose softmax is `proba`."""
    logits: np.ndarray = np.log(np.maximum(proba, 1e-300))
    return logits


class _Counter(pickle.Pickler):
    """Goes through an object, as if to pickle it, and counts the numbers in its arrays."""

    def __init__(self) -> None:
        super().__init__(_Nowhere())
        self.numbers = 0

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray) and obj.ndim and obj.dtype.kind in "fiuV":
            self.numbers += obj.size * len(obj.dtype.names or "1")
        return NotImplemented


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)

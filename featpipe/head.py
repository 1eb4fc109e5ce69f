"""What every head is."""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from featpipe.descent import Epochs
from featpipe.errors import HeadError
from featpipe.settings import SEEDS
from featpipe.spec import Spec
from featpipe.streamed import StreamedRows, moments, scales
from featpipe.targets import probabilities
from featpipe.tasks import Outcome, Task, every_view

Validation = tuple[np.ndarray, np.ndarray]


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """What every head is: a scikit-learn classifier whose state is a few arrays.

    A subclass stores its parameters in ``__init__``, and implements ``_fit``,
    ``_decision`` and ``arrays``, and may list what its parameters can be in scikit-learn's
    ``_parameter_constraints``. If it has a parameter ``standardize``, features are
    standardised by the training rows' mean and deviation before it sees them. If its
    ``multilabel`` is true it also takes one column of 0 and 1 for each label; its logits are
    then those of each label by itself. If its ``streams`` is true it implements
    ``_learn_streamed``, and its ``cross_fit`` takes `StreamedRows`, too. If its ``halves`` is
    true it takes float16 features as they are, in half the memory.

    Attributes
    ----------
    classes_ : array, shape (classes,)
        For multi-label targets, the columns' numbers.
    n_features_in_ : int
    multilabel_ : bool
        Whether it was fitted on multi-label targets.
    curves_ : list of dict
        One an epoch, where there are epochs; else empty.
    on_epoch : callable or None
        Is given each row of the curves while a head with epochs of its own is fitted.
    """

    multilabel = False
    streams = False
    halves = False
    on_epoch: Callable[[dict[str, float]], None] | None = None
    _views = 1  # of each image, while it is being fitted

    def on(self, spec: Spec, layer: str, shape: tuple[int, ...]) -> Self:
        """The head to be fitted on features of a layer: this one, or an unfitted copy.

        Parameters
        ----------
        spec : Spec
            Of the features.
        layer : str
        shape : tuple of int
            Of one image's features.
        """
        return self

    def check_width(self, n_features: Any, state: dict[str, np.ndarray]) -> None:
        """Raise ValueError if a head of such arrays cannot have so many features.

        Asked of a file before anything as large as that is made.
        """
        most = max((array.size for array in state.values()), default=0)
        if type(n_features) is not int or not 1 <= n_features <= most:
            raise ValueError(f"n_features is {n_features!r}, its largest array has {most} values")

    @property
    def _types(self) -> list[Any]:
        return [np.float64, np.float32, *([np.float16] if self.halves else [])]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.multilabel
        tags.target_tags.multi_output = self.multilabel
        return tags

    def fit(self, X: Any, y: Any, validation: Validation | None = None) -> Self:
        """Fit on features `X`, shape (n, d), and labels `y`, shape (n,) or (n, labels).

        Parameters
        ----------
        X, y : arrays
        validation : pair of arrays
            Rows that only select the epoch; heads without epochs ignore them.
        """
        return self._fit_weighted(X, y, validation, None)

    def fit_views(
        self, X: np.ndarray, y: np.ndarray, validation: Validation | None, views: int
    ) -> Self:
        """As `fit`, on several views of each image.

        Heads with epochs draw one of them for each in every epoch; to others they are rows that
        together weigh as much as one.

        Parameters
        ----------
        X : float array, shape (n * views, d)
            Image `i` has the rows from ``i * views`` on.
        y : array, shape (n,) or (n, labels)
        validation : pair of arrays
            A row an image.
        views : int
        """
        if views == 1:
            return self.fit(X, y, validation=validation)
        self._views = views
        try:
            weights = np.full(len(X), 1 / views)
            return self._fit_weighted(X, np.repeat(y, views, axis=0), validation, weights)
        finally:
            del self._views

    def _fit_weighted(
        self, X: Any, y: Any, validation: Validation | None, sample_weight: Any
    ) -> Self:
        self.validate_options()
        X, y = validate_data(self, X, y, dtype=self._types, multi_output=self.multilabel)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        codes = self._targets(y)
        held_out = None
        if validation is not None and len(validation[0]):
            X_val = validate_data(self, validation[0], reset=False, dtype=self._types)
            held_out = self._known(X_val, np.asarray(validation[1]))
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        self._mean: np.ndarray | None = None
        self._scale: np.ndarray | None = None
        if getattr(self, "standardize", False):
            # Weights of views are all alike.
            self._mean, self._scale = moments(X, weights if self._views == 1 else None)
            X = self._standardized(X)
            if held_out is not None:
                held_out = self._standardized(held_out[0]), held_out[1]
        self.curves_: Epochs = []
        self._learn(X, codes, held_out, weights)
        return self

    def fit_streamed(
        self,
        rows: StreamedRows,
        y: np.ndarray,
        train: np.ndarray,
        select: np.ndarray,
        views: int = 1,
    ) -> Self:
        """As `fit` or `fit_views`, on features that are read block by block.

        Parameters
        ----------
        rows : StreamedRows, shape (n, d)
            As they are: they are standardised on the way, if the head wants that.
        y : array, shape (n,) or (n, labels)
        train, select : int arrays, ascending
            Row numbers; those of `select` only select the epoch, and may be none. Their classes
            occur in training.
        views : int
            Rows of each image, of which `train` names the first.
        """
        self.validate_options()
        self._targets(y[train])
        codes = y if self.multilabel_ else np.searchsorted(self.classes_, y)
        self.n_features_in_, self.curves_ = rows.shape[1], []
        self._mean = self._scale = None
        if getattr(self, "standardize", False):
            mean, variance = rows.moments(every_view(train, views))
            self._mean, self._scale = scales(mean, np.sqrt(variance), np.dtype(np.float32))
            rows = rows.standardised(self._mean, self._scale)
        self._views = views
        try:
            self._learn_streamed(rows, codes, train, select)
        finally:
            del self._views
        return self

    def _learn_streamed(
        self, rows: StreamedRows, codes: np.ndarray, train: np.ndarray, select: np.ndarray
    ) -> None:
        raise TypeError(f"{type(self).__name__} does not implement _learn_streamed.")

    def validate_options(self) -> None:
        """Raise HeadError if a parameter has a value that it cannot have."""
        try:
            self._validate_params()
        except InvalidParameterError as error:
            raise HeadError(str(error).replace("parameter of Head", "option")) from error

    def _targets(self, y: np.ndarray) -> np.ndarray:
        """Labels as numbers of classes, or float32 columns; sets `classes_`."""
        self.multilabel_ = y.ndim == 2
        if self.multilabel_:
            if type_of_target(y) != "multilabel-indicator":
                raise HeadError("Columns of labels must hold 0 and 1, and be at least two.")
            self.classes_ = np.arange(y.shape[1])
            indicators: np.ndarray = y.astype(np.float32)
            return indicators
        codes: np.ndarray
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise HeadError(f"There is only one class among the labels: {self.classes_[0]!r}.")
        return codes

    def _known(self, X: np.ndarray, y: np.ndarray) -> Validation | None:
        """Validation rows whose classes occur in training, with the classes' numbers."""
        if self.multilabel_:
            return X, y.astype(np.float32)
        known = np.isin(y, self.classes_)
        if not known.any():
            return None
        if known.all():  # without a copy of what may be all that memory holds
            return X, np.searchsorted(self.classes_, y)
        return X[known], np.searchsorted(self.classes_, y[known])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, shape (n, classes); rows sum to 1 unless it is multi-label."""
        check_is_fitted(self, "classes_")
        X = validate_data(self, X, reset=False, dtype=self._types)
        return probabilities(self._decision(self._standardized(X)), self.multilabel_)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, shape (n,); of labels, 0 and 1 for each."""
        proba = self.predict_proba(X)
        predicted: np.ndarray
        if self.multilabel_:
            predicted = (proba >= 0.5).astype(np.int64)
        else:
            predicted = self.classes_[proba.argmax(axis=1)]
        return predicted

    @classmethod
    def cross_fit(
        cls,
        heads: Sequence[Self],
        X: np.ndarray | StreamedRows,
        targets: np.ndarray,
        n_classes: int,
        tasks: Sequence[Task],
    ) -> Iterator[Outcome]:
        """Fit each head on each task and predict the task's scored rows, in any order.

        A head that can do several at once for less than their sum does so; none of `heads`
        is changed.

        Parameters
        ----------
        heads : sequence of Head
            Of this class. Their ``standardize`` is not looked at.
        X : float array, shape (n, d), or StreamedRows for heads that stream
            Standardised already, where that is wanted.
        targets : int array, shape (n,), or float32 array, shape (n, classes)
            Numbers of classes; 0 and 1 for multi-label.
        n_classes : int
        tasks : sequence of Task

        Yields
        ------
        Outcome
        """
        assert isinstance(X, np.ndarray)
        for number, head in enumerate(heads):
            for place, task in enumerate(tasks):
                begun = time.perf_counter()
                fitted = clone(head.drawing(task))
                if "standardize" in fitted.get_params():
                    fitted.set_params(standardize=False)
                select = (X[task.select], targets[task.select])
                proba, note = np.zeros((len(task.scored), n_classes)), ""
                try:
                    fitted.fit_views(X[task.every], targets[task.train], select, task.views)
                    proba[:, fitted.classes_] = fitted.predict_proba(X[task.scored])
                except (HeadError, ValueError) as error:  # scikit-learn's own, too
                    note = str(error)
                seconds = time.perf_counter() - begun
                yield Outcome(number, place, None if note else proba, seconds, 0, note)

    def drawing(self, task: Task) -> Self:
        """This head; a copy with a seed of its own, where it has one and the task says so."""
        if not task.seed or "seed" not in self.get_params():
            return self
        other = copy(self)
        other.seed = (self.seed + task.seed) % (SEEDS + 1)
        return other

    def refit(self, epochs: Sequence[int]) -> Self:
        """An unfitted copy for all rows at once, when parts of them have been tried.

        Parameters
        ----------
        epochs : sequence of int
            How many each trial's fit had seen; empty for heads without epochs.
        """
        fresh: Self = clone(self)
        return fresh

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

    def restore(
        self,
        state: dict[str, np.ndarray],
        classes: np.ndarray,
        n_features: int,
        multilabel: bool = False,
    ) -> Self:
        """Become the fitted head that `state` was taken from."""
        state, self.multilabel_ = dict(state), multilabel
        self._mean, self._scale = state.pop("mean", None), state.pop("scale", None)
        self.classes_, self.n_features_in_, self.curves_ = classes, n_features, []
        self.set_arrays(state)
        return self

    @property
    def n_parameters(self) -> int:
        """How many numbers fitting learnt (standardisation not counted)."""
        return sum(array.size for array in self.arrays().values())

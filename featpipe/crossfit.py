"""Fitting heads many times over the same rows of a cache: folds, repeats, label budgets."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.heads import Head, moments
from featpipe.targets import Targets
from featpipe.tasks import Outcome, Task


def features_of(cache: FeatureCache, layer: str, rows: np.ndarray) -> np.ndarray:
    """Features of some rows of the table, float32, shape (rows, values of the layer)."""
    return cache.features(layer, rows).reshape(len(rows), -1).astype(np.float32, copy=False)


class SharedRows:
    """Rows of one layer, in memory.

    Parameters
    ----------
    cache : FeatureCache
    layer : str
    rows : int array, ascending
        Of the table; all that any task names.
    pool : int array
        By which features are standardised, for heads that want that. Mean and deviation of all
        of them are known to every task, as where a StandardScaler stands before
        scikit-learn's LogisticRegressionCV; labels are not.
    targets : Targets
    """

    def __init__(
        self,
        cache: FeatureCache,
        layer: str,
        rows: np.ndarray,
        pool: np.ndarray,
        targets: Targets,
    ) -> None:
        self._rows, self._targets = rows, targets
        self._X = features_of(cache, layer, rows)
        self._pool = np.searchsorted(rows, pool)
        self._standard = False

    def run(self, heads: Sequence[Head], tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Fit heads of one class on tasks of table rows; see `Head.cross_fit`."""
        positions = [
            Task(*(np.searchsorted(self._rows, part) for part in (t.train, t.select, t.scored)))
            for t in tasks
        ]
        targets = self._targets.values[self._rows]
        # Those that want features as they are come first: standardising is done in place.
        for standard in (False, True):
            numbers = [
                number
                for number, head in enumerate(heads)
                if getattr(head, "standardize", False) == standard
            ]
            if not numbers:
                continue
            X = self._standardised() if standard else self._X
            some = [heads[number] for number in numbers]
            classes = len(self._targets.classes)
            for outcome in type(some[0]).cross_fit(some, X, targets, classes, positions):
                yield replace(outcome, head=numbers[outcome.head])

    def _standardised(self) -> np.ndarray:
        if not self._standard:
            mean, scale = moments(self._X[self._pool])
            self._X -= mean
            self._X /= scale
            self._standard = True
        return self._X

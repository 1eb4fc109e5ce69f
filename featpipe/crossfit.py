"""Fitting heads many times over the same rows of a cache: folds, repeats, label budgets."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.device import memory_bytes
from featpipe.errors import HeadError
from featpipe.heads import Head, scales
from featpipe.settings import TrainSettings
from featpipe.streamed import StreamedRows, moments_of
from featpipe.targets import Targets
from featpipe.tasks import Outcome, Task

PARTS = 64  # in which rows are standardised: none is long a copy


def features_of(cache: FeatureCache, layer: str, rows: np.ndarray, head: Head) -> np.ndarray:
    """Features of some rows of the table, shape (rows, values of the layer).

    float32, or as they are stored for a head that takes that.
    """
    found = cache.features(layer, rows).reshape(len(rows), -1)
    return found if head.halves else found.astype(np.float32, copy=False)


def most_bytes(settings: TrainSettings) -> int:
    """How much memory features may take."""
    return memory_bytes() // 4 if settings.memory is None else int(settings.memory * 2**30)


def streamed(
    cache: FeatureCache, layer: str, rows: np.ndarray, settings: TrainSettings, head: Head
) -> StreamedRows | None:
    """Rows that are read block by block; None if memory holds them.

    Raises
    ------
    HeadError
        If memory does not hold them, and the head needs that.
    """
    width = int(np.prod(cache.layers[layer]))
    dtype = np.float16 if head.halves and cache.spec.dtype == "float16" else np.float32
    needed, allowed = np.dtype(dtype).itemsize * len(rows) * width, most_bytes(settings)
    if needed <= allowed:
        return None
    if not head.streams:
        raise HeadError(
            f"{len(rows)} rows of {width} features take {needed / 2**30:.2f} GiB, more than the "
            f"{allowed / 2**30:.2f} that features may take. linear, mlp, logistic and tail read "
            "them block by block; this head needs a higher --memory, or a layer that is pooled."
        )
    return StreamedRows(
        lambda some: features_of(cache, layer, rows[some], head),
        (len(rows), width),
        allowed,
        dtype=dtype,
    )


class SharedRows:
    """Rows of one layer, in memory where it holds them.

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
    settings : TrainSettings
        ``memory`` is used.
    head : Head
        One of those to be fitted.
    """

    def __init__(
        self,
        cache: FeatureCache,
        layer: str,
        rows: np.ndarray,
        pool: np.ndarray,
        targets: Targets,
        settings: TrainSettings,
        head: Head,
    ) -> None:
        self._rows, self._targets = rows, targets
        self._cache, self._layer, self._head = cache, layer, head
        stream = streamed(cache, layer, rows, settings, head)
        self._X: np.ndarray | StreamedRows = stream or features_of(cache, layer, rows, head)
        self._pool = np.searchsorted(rows, pool)
        self._standard = False

    def run(self, heads: Sequence[Head], tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Fit heads of one class on tasks of table rows; see `Head.cross_fit`."""
        positions = [
            Task(*(np.searchsorted(self._rows, part) for part in (t.train, t.select, t.scored)))
            for t in tasks
        ]
        targets = self._targets.values[self._rows]
        shape = self._cache.layers[self._layer]
        heads = [head.on(self._cache.spec, self._layer, shape) for head in heads]
        for standard in (False, True):
            numbers = [
                number
                for number, head in enumerate(heads)
                if getattr(head, "standardize", False) == standard
            ]
            if not numbers:
                continue
            X = self._standardised() if standard else self._as_they_are()
            some = [heads[number] for number in numbers]
            classes = len(self._targets.classes)
            for outcome in type(some[0]).cross_fit(some, X, targets, classes, positions):
                yield replace(outcome, head=numbers[outcome.head])

    def _as_they_are(self) -> np.ndarray | StreamedRows:
        if self._standard and isinstance(self._X, np.ndarray):
            self._X, self._standard = (
                features_of(self._cache, self._layer, self._rows, self._head),
                False,
            )
        return self._X

    def _standardised(self) -> np.ndarray | StreamedRows:
        if isinstance(self._X, StreamedRows):
            mean, variance = self._X.moments(self._pool)
            return self._X.standardised(*scales(mean, np.sqrt(variance), np.dtype(np.float32)))
        if not self._standard:  # in place: they may be all that memory holds
            parts = (self._X[rows] for rows in np.array_split(self._pool, PARTS))
            mean, variance = moments_of(parts, self._X.shape[1])
            mean, scale = scales(mean, np.sqrt(variance), self._X.dtype)
            self._X -= mean
            self._X /= scale
            self._standard = True
        return self._X

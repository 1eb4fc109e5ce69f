"""Fitting heads many times over the same rows of a cache: folds, repeats, label budgets."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from featpipe import checkpoint
from featpipe.cache import FeatureCache
from featpipe.device import memory_bytes
from featpipe.errors import HeadError
from featpipe.head import Head
from featpipe.settings import TrainSettings
from featpipe.streamed import StreamedRows, moments_of, scales
from featpipe.targets import Targets
from featpipe.tasks import Outcome, Task, every_view
from featpipe.viewing import Viewing, features_of, items_of

PARTS = 64  # in which rows are standardised: none is long a copy


def most_bytes(settings: TrainSettings) -> int:
    """How much memory features may take."""
    return memory_bytes() // 4 if settings.memory is None else int(settings.memory * 2**30)


def streamed(
    cache: FeatureCache, layer: str, rows: np.ndarray, settings: TrainSettings, head: Head
) -> StreamedRows | None:
    """Items of rows that are read block by block; None if memory holds them.

    Raises
    ------
    HeadError
        If memory does not hold them, and the head needs that.
    """
    width, held = int(np.prod(cache.layers[layer])), Viewing.of(cache, settings).held
    dtype = np.float16 if head.halves and cache.spec.dtype == "float16" else np.float32
    needed = np.dtype(dtype).itemsize * len(rows) * held * width
    allowed = most_bytes(settings)
    if needed <= allowed:
        return None
    if not head.streams:
        raise HeadError(
            f"{len(rows) * held} rows of {width} features take {needed / 2**30:.2f} GiB, more than "
            f"the {allowed / 2**30:.2f} that features may take. linear, mlp, logistic and tail "
            "read them block by block; this head needs a higher --memory, or a layer that is "
            "pooled" + (", or --views plain without --tta." if held > 1 else ".")
        )
    return StreamedRows(
        lambda some: items_of(cache, layer, rows, some, held, head.halves),
        (len(rows) * held, width),
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
        ``memory``, ``views`` and ``tta`` are used.
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
        self._cache, self._layer, self._halves = cache, layer, head.halves
        self._viewing = Viewing.of(cache, settings)
        self._X: np.ndarray | StreamedRows = (
            streamed(cache, layer, rows, settings, head) or self._read()
        )
        first = np.searchsorted(rows, pool) * self._viewing.held
        self._pool = every_view(first, self._viewing.trained)
        self._standard = False

    def run(self, heads: Sequence[Head], tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Fit heads of one class on tasks of table rows; see `Head.cross_fit`."""
        viewing = self._viewing
        positions = [viewing.task(self._places(task)) for task in tasks]
        targets = np.repeat(self._targets.values[self._rows], viewing.held, axis=0)
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
            told = (self._layer, self._rows, self._pool, viewing, standard)
            with checkpoint.about(*told):
                for outcome in type(some[0]).cross_fit(some, X, targets, classes, positions):
                    proba = None if outcome.proba is None else viewing.mean(outcome.proba)
                    yield replace(outcome, head=numbers[outcome.head], proba=proba)

    def _places(self, task: Task) -> Task:
        """A task of rows of the table as one of the rows that are shared."""
        parts = (task.train, task.select, task.scored)
        train, select, scored = (np.searchsorted(self._rows, part) for part in parts)
        return Task(train, select, scored, seed=task.seed)

    def _read(self) -> np.ndarray:
        return features_of(self._cache, self._layer, self._rows, self._viewing.held, self._halves)

    def _as_they_are(self) -> np.ndarray | StreamedRows:
        if self._standard and isinstance(self._X, np.ndarray):
            self._X, self._standard = self._read(), False
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

"""Figures of weighted images: of all, each weighing 1, and of bootstrap resamples.

A resample's images weigh as often as they were drawn. Weights have shape (n, resamples).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array, hstack

from featpipe.calibration import wilson
from featpipe.errors import SettingsError

# A bootstrap looks at no more values than this (a few seconds); past it there are fewer
# resamples, and where fewer than LEAST are left, no interval. Values are images or, where each
# class sorts them by probability (ROC-AUC, average precision), images times classes.
MOST_VALUES, LEAST = 2 * 10**8, 200
CHUNK = 2**18  # weights held at once, 2 MB


class Figure(NamedTuple):
    """A value and its 95 % interval; None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


_Counted = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Sample:
    """Scored images, arranged so that any number of resamples is scored by products.

    `means` are figures that are means of something of each image, shape (n,); `counted` those
    made of hits, true and predicted images of each class, shape (classes, resamples).
    """

    counted: dict[str, _Counted]
    gaps: np.ndarray | None = None
    proba: np.ndarray | None = None

    def __init__(
        self, truth: csr_array, predicted: csr_array, means: dict[str, np.ndarray]
    ) -> None:
        self.truth, self.means = truth, means
        self.counts = hstack([truth.multiply(predicted), truth, predicted]).T.tocsr()

    def score(
        self, classes: Sequence[str], resamples: int, seed: int
    ) -> tuple[dict[str, Figure], list[dict[str, Any]]]:
        """Figures with their intervals, and rows of the classes."""
        n, count = self.truth.shape
        whole = np.ones((n, 1))
        values = self._figures(whole)
        draws = affordable(resamples, n)
        ranked_draws = min(draws, affordable(resamples, n * count))
        hits, true, predicted = self.counts.sum(axis=1).reshape(3, count)
        columns = {
            "precision": _share(hits, predicted),
            "recall": _share(hits, true),
            "f1": _f1(hits, true, predicted),
        }
        rankings: Iterable[_Ranking] = () if self.proba is None else self._rankings()
        if self.proba is not None:
            if ranked_draws:
                rankings = list(rankings)
            ranked = np.stack([ranking.figures(whole)[:, 0] for ranking in rankings], axis=1)
            columns |= dict(zip(_RANKED, ranked, strict=True))
            values |= dict(zip(_RANKED, _mean_of_defined(ranked[..., None]), strict=True))
        drawn = defaultdict(list)
        done = 0
        for weights in resampled(n, draws, seed):
            found = self._figures(weights)
            if self.proba is not None and done < ranked_draws:
                some = weights[:, : ranked_draws - done]
                by_class = np.stack([ranking.figures(some) for ranking in rankings], axis=1)
                found |= dict(zip(_RANKED, _mean_of_defined(by_class), strict=True))
            for name, of_resamples in found.items():
                drawn[name].append(of_resamples)
            done += weights.shape[1]
        figures = with_intervals({name: value[0] for name, value in values.items()}, drawn)
        accuracy = self.means["accuracy"]
        figures["accuracy"] = Figure(values["accuracy"][0].item(), *wilson(int(accuracy.sum()), n))
        per_class = [
            {
                "class": name,
                **{column: _or_none(of_classes[i]) for column, of_classes in columns.items()},
                # The rows that were predicted, and those that are there, as samples of their like.
                "precision_interval_95": _wilson_or_none(hits[i], predicted[i]),
                "recall_interval_95": _wilson_or_none(hits[i], true[i]),
                "images": int(true[i]),
            }
            for i, name in enumerate(classes)
        ]
        return figures, per_class

    def _figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """All figures but the ranked ones, each of shape (resamples,)."""
        n, resamples = weights.shape
        means = np.stack(list(self.means.values())).astype(float) @ weights / n
        found = dict(zip(self.means, means, strict=True))
        if self.gaps is not None:
            gaps = np.abs(self.gaps.T @ weights / n).sum(axis=0)
            found["expected_calibration_error"] = gaps
        counts = (self.counts @ weights).reshape(3, -1, resamples)
        return found | {name: figure(*counts) for name, figure in self.counted.items()}

    def _rankings(self) -> "Iterator[_Ranking]":
        assert self.proba is not None
        truth = self.truth.tocsc()
        for i in range(truth.shape[1]):
            positive = np.zeros(truth.shape[0], bool)
            positive[truth[:, [i]].nonzero()[0]] = True
            yield _Ranking(self.proba[:, i], positive)


_RANKED = ("roc_auc", "average_precision")


class _Ranking:
    """One class's images in falling order of probability; equal ones count as one step."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        falling = -scores[order]
        places = np.flatnonzero(positive[order])
        self.hits = order[places]
        # Of each positive: how many images, and how many positives, come before and through it.
        before, through = (
            np.searchsorted(falling, falling[places], side) for side in ("left", "right")
        )
        self.hits_before, self.hits_through = np.searchsorted(places, [before, through])
        # Images are summed between these places only: a class has few positives.
        edges = np.unique(np.concatenate([before, through, [0, len(order)]]))
        self.before, self.through = np.searchsorted(edges, [before, through])
        self.steps = csr_array(
            (np.ones(len(order)), order, edges), shape=(len(edges) - 1, len(order))
        )

    def figures(self, weights: np.ndarray) -> np.ndarray:
        """ROC-AUC and average precision, shape (2, resamples); NaN where undefined."""
        own = weights[self.hits]
        seen, found = _cumulated(self.steps @ weights), _cumulated(own)
        before, through = found[self.hits_before], found[self.hits_through]
        others = seen[self.before] - before + seen[self.through] - through
        positives, negatives = found[-1], seen[-1] - found[-1]
        lost = (own * others).sum(axis=0) / 2
        precise = (own * _share(through, seen[self.through])).sum(axis=0)
        return np.stack(
            [
                1 - _share(lost, positives * negatives, np.nan),
                _share(precise, positives, np.nan),
            ]
        )


def _cumulated(weights: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... rows."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]))
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def resampled(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights of bootstrap resamples, shape (n, some), `resamples` in all."""
    rng, width = np.random.default_rng(seed), max(1, CHUNK // n)
    for start in range(0, resamples, width):
        some = min(width, resamples - start)
        places = rng.integers(n, size=(some, n)) * some + np.arange(some)[:, None]
        counts = np.bincount(places.ravel(), minlength=n * some)
        yield counts.reshape(n, some).astype(float)


def affordable(resamples: int, values: int) -> int:
    """How many resamples of so many values are made."""
    if resamples < 0:
        raise SettingsError(f"The number of resamples is 0 or more, not {resamples}.")
    most = MOST_VALUES // values
    return min(resamples, most) if most >= LEAST else 0


def with_intervals(values: dict[Any, Any], drawn: dict[Any, list[np.ndarray]]) -> dict[Any, Figure]:
    figures = {}
    for name, value in values.items():
        found = np.concatenate(drawn[name]) if drawn.get(name) else np.empty(0)
        found = found[~np.isnan(found)]  # resamples that happen to miss all that it needs
        if np.isnan(value) or not len(found):
            figures[name] = Figure(_or_none(value))
            continue
        low, high = np.quantile(found, [0.025, 0.975])
        figures[name] = Figure(float(value), float(min(low, value)), float(max(high, value)))
    return figures


def one_hot(codes: np.ndarray, classes: int) -> csr_array:
    rows = np.arange(len(codes) + 1)
    return csr_array((np.ones(len(codes)), codes, rows), shape=(len(codes), classes))


def _share(part: np.ndarray, whole: np.ndarray, empty: float = 0.0) -> np.ndarray:
    shares = np.full(np.shape(part), empty)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return _share(2 * hits, true + predicted)


def macro_f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return _mean_of_defined(np.where(true > 0, _f1(hits, true, predicted), np.nan))


def micro_f1(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return _f1(hits.sum(axis=0), true.sum(axis=0), predicted.sum(axis=0))


def macro_recall(hits: np.ndarray, true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return _mean_of_defined(_share(hits, true, np.nan))


def _mean_of_defined(by_class: np.ndarray) -> np.ndarray:
    """Mean over the classes, the last axis but one, that have a value; NaN if none has."""
    defined = ~np.isnan(by_class)
    return _share(np.where(defined, by_class, 0).sum(axis=-2), defined.sum(axis=-2), np.nan)


def _wilson_or_none(right: float, n: float) -> list[float] | None:
    return list(wilson(int(right), int(n))) if n else None


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

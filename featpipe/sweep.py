"""Choosing among candidates, layers and options of a head, on validation rows only."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from featpipe.cache import FeatureCache
from featpipe.calibration import log_losses
from featpipe.crossfit import SharedRows
from featpipe.errors import HeadError, SplitError
from featpipe.head import Head
from featpipe.heads import build_head
from featpipe.metrics import Figure, corrected_interval
from featpipe.settings import TrainSettings
from featpipe.split import Split
from featpipe.targets import Targets
from featpipe.tasks import Outcome, Task

MOST_KEPT = 1 << 25  # probabilities: 256 MB
LOWER_IS_BETTER = ("log_loss",)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One layer with one setting of the swept options.

    Attributes
    ----------
    layer : str
    options : dict
        The swept ones.
    folds : dict of str to list of float
        ``accuracy``, ``balanced_accuracy`` and ``log_loss`` of each fold's validation rows; for
        multi-label targets ``average_precision`` (mAP) and ``log_loss``.
    test_share : float
        Validation rows to training rows of a fold.
    epochs : list of int
        How many each fold's fit has seen; empty for heads without epochs.
    seconds : float
        Fitting and predicting on all folds.
    note : str
        Why it cannot be chosen; empty if it can.
    """

    layer: str
    options: dict[str, Any]
    folds: dict[str, list[float]]
    test_share: float
    epochs: list[int]
    seconds: float
    note: str = ""

    def figure(self, name: str) -> Figure:
        """Mean over the folds with its corrected 95 % interval."""
        values = self.folds.get(name)
        if not values:
            return Figure(None)
        mean, low, high = corrected_interval(values, self.test_share)
        if low is None or high is None or name == "log_loss":
            return Figure(mean, low, high)
        return Figure(mean, max(low, 0.0), min(high, 1.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        figures = {name: self.figure(name) for name in self.folds}
        return {
            "layer": self.layer,
            "options": {name: plain(value) for name, value in self.options.items()},
            **{name: figure.value for name, figure in figures.items()},
            "intervals_95": {
                name: None if figure.low is None else [figure.low, figure.high]
                for name, figure in figures.items()
            },
            "spread": {
                name: float(np.std(values, ddof=1)) if len(values) > 1 else None
                for name, values in self.folds.items()
            },
            "folds": self.folds,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class Sweep:
    """All candidates, and the one that was chosen.

    Attributes
    ----------
    candidates : list of Candidate
        In the order of the grid.
    metric : str
        The figure that chose.
    best : int
        Number of the chosen one.
    head : Head
        The chosen one, to be fitted on all training rows.
    held_out : pair of arrays
        Rows of the table, and the probabilities that the chosen one's folds gave them: each row
        once, by a fit that has not seen it.
    folds : int
    """

    candidates: list[Candidate]
    metric: str
    best: int
    head: Head
    held_out: tuple[np.ndarray, np.ndarray]
    folds: int

    @property
    def chosen(self) -> Candidate:
        """The best candidate."""
        return self.candidates[self.best]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "metric": self.metric,
            "folds": self.folds,
            "best": self.best,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }


def run_sweep(
    cache: FeatureCache,
    head: str,
    settings: TrainSettings,
    options: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    layers: Sequence[str],
    targets: Targets,
    split: Split,
    on_progress: Progress | None = None,
) -> Sweep:
    """Fit every candidate on every fold, or on the training rows where there are no folds.

    Features are standardised, where the head wants that, by all of the split's training rows:
    the mean and deviation of a fold's validation rows are known to it, its labels are not.

    Parameters
    ----------
    cache : FeatureCache
    head : str
    settings : TrainSettings
        ``select``, ``seed`` and ``device`` are used.
    options : mapping
        Of the head, for all candidates.
    grid : mapping of str to sequence
        Values of each swept option; every combination is a candidate. May be empty.
    layers : sequence of str
    targets : Targets
    split : Split
    on_progress : callable
        Is given fits done and fits in all.

    Raises
    ------
    SplitError
        If there are neither folds nor validation rows.
    HeadError
        If an option is none of the head's, or no candidate could be fitted.
    """
    if not split.folds and not len(split.val):
        raise SplitError("A sweep is chosen on validation rows: give --folds, or --val above 0.")
    for name, values in grid.items():
        if not len(values):
            raise HeadError(f"The sweep of {name} has no values.")
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    heads = [build_head(head, settings, {**options, **some}) for some in combinations]
    rows = np.union1d(split.train, split.val)
    folds = split.folds or ((split.train, split.val),)
    tasks = [Task(train, val, val) for train, val in folds]
    total = len(layers) * len(heads) * len(tasks)
    candidates: list[Candidate] = []
    # What all candidates said of their rows, while that is little: the winner's is wanted.
    once = _once(tasks)
    said: dict[int, dict[int, Outcome]] = {}
    validated = sum(len(tasks[place].scored) for place in once)
    keeps = len(layers) * len(heads) * validated * len(targets.classes) <= MOST_KEPT
    shared: SharedRows | None
    for layer in layers:
        shared = None  # the layer before is not held beside this one
        shared = SharedRows(cache, layer, rows, split.train, targets, settings, heads[0])
        fits: list[dict[int, _Fit]] = [{} for _ in heads]
        for outcome in shared.run(heads, tasks):
            truth = targets.values[tasks[outcome.task].scored]
            if keeps and outcome.task in once:
                said.setdefault(len(candidates) + outcome.head, {})[outcome.task] = outcome
            fits[outcome.head][outcome.task] = _Fit.of(outcome, truth)
            if on_progress:
                on_progress(len(candidates) * len(tasks) + sum(map(len, fits)), total)
        candidates += [
            _candidate(layer, some, [found[place] for place in sorted(found)], tasks)
            for some, found in zip(combinations, fits, strict=True)
        ]
    metric = settings.select
    if targets.multilabel and metric != "log_loss":
        metric = "average_precision"
    best = _best(candidates, metric)
    chosen, winner = candidates[best], heads[best % len(heads)]
    if not keeps:
        if chosen.layer != layers[-1]:
            shared = None
            shared = SharedRows(cache, chosen.layer, rows, split.train, targets, settings, winner)
        assert shared is not None
        again = shared.run([winner], [tasks[place] for place in once])
        said[best] = {once[outcome.task]: outcome for outcome in again}
    held_out = _held_out(said[best], tasks, len(targets.classes))
    final = winner.refit(chosen.epochs) if split.folds else winner
    return Sweep(candidates, metric, best, final, held_out, len(tasks))


@dataclass(frozen=True)
class _Fit:
    """What is kept of an outcome."""

    values: dict[str, float]
    seconds: float
    epochs: int
    note: str

    @classmethod
    def of(cls, outcome: Outcome, truth: np.ndarray) -> "_Fit":
        values = {} if outcome.proba is None else validation_figures(truth, outcome.proba)
        return cls(values, outcome.seconds, outcome.epochs, outcome.note)


def validation_figures(truth: np.ndarray, proba: np.ndarray) -> dict[str, float]:
    """What candidates are compared by, of one fold.

    Parameters
    ----------
    truth : int array, shape (n,), or 0 and 1, shape (n, labels)
    proba : float array, shape (n, classes)

    Returns
    -------
    dict of str to float
        ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that occur) and
        ``log_loss``; of labels ``average_precision``, the mean over labels that occur (0 where
        none does), and ``log_loss``.
    """
    if truth.ndim == 2:
        occurs = np.flatnonzero(truth.any(axis=0))
        precisions = [average_precision_score(truth[:, i], proba[:, i]) for i in occurs]
        return {
            "average_precision": float(np.mean(precisions)) if precisions else 0.0,
            "log_loss": float(log_losses(proba, truth.astype(bool)).mean()),
        }
    right = proba.argmax(axis=1) == truth
    counts = np.bincount(truth, minlength=proba.shape[1])
    recall = np.bincount(truth, weights=right, minlength=proba.shape[1])[counts > 0]
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float((recall / counts[counts > 0]).mean()),
        "log_loss": float(log_losses(proba, truth).mean()),
    }


def _candidate(
    layer: str, options: dict[str, Any], fits: Sequence[_Fit], tasks: Sequence[Task]
) -> Candidate:
    note = next((fit.note for fit in fits if fit.note), "")
    names = fits[0].values if not note else ()
    share = float(np.mean([len(task.scored) / len(task.train) for task in tasks]))
    return Candidate(
        layer,
        options,
        {name: [fit.values[name] for fit in fits] for name in names},
        share,
        [fit.epochs for fit in fits if fit.epochs],
        sum(fit.seconds for fit in fits),
        note,
    )


def _best(candidates: Sequence[Candidate], metric: str) -> int:
    """The best mean; of equal ones the lower log-loss, then the first."""
    usable = [number for number, one in enumerate(candidates) if not one.note]
    if not usable:
        notes = ", ".join(sorted({one.note for one in candidates}))
        raise HeadError(f"No candidate could be fitted: {notes}. Sweep over lower learning rates.")

    def merit(number: int) -> tuple[float, float]:
        means = {name: float(np.mean(v)) for name, v in candidates[number].folds.items()}
        sign = -1 if metric in LOWER_IS_BETTER else 1
        return round(sign * means[metric], 12), -means["log_loss"]

    return max(usable, key=merit)


def _once(tasks: Sequence[Task]) -> list[int]:
    """Tasks that score each row once: the first repetition of the folds."""
    places: list[int] = []
    seen: set[int] = set()
    for place, task in enumerate(tasks):
        scored = set(task.scored.tolist())
        if seen.isdisjoint(scored):
            places.append(place)
            seen |= scored
    return places


def _held_out(
    said: Mapping[int, Outcome], tasks: Sequence[Task], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Validated rows, ascending, and what fits without them say of them."""
    rows = np.sort(np.concatenate([tasks[place].scored for place in said]))
    proba = np.zeros((len(rows), classes))
    for place, outcome in said.items():
        if outcome.proba is not None:
            proba[np.searchsorted(rows, tasks[place].scored)] = outcome.proba
    return rows, proba


def plain(value: Any) -> Any:
    """An option as JSON has it."""
    return list(value) if isinstance(value, tuple) else value

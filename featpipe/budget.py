"""How accuracy grows with the number of labelled images a class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.crossfit import SharedRows
from featpipe.errors import SplitError
from featpipe.heads import build_head
from featpipe.metrics import Figure
from featpipe.settings import TrainSettings
from featpipe.split import Split
from featpipe.sweep import Progress
from featpipe.targets import Targets
from featpipe.tasks import Task

RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class BudgetPoint:
    """What a number of labelled images a class comes to.

    Attributes
    ----------
    budget : int
        Labelled images a class; of a class that has fewer, all of them.
    images : int
        Labelled images in all.
    accuracies : list of float
        Of each repeat, on the same scored images.
    accuracy : Figure
        Mean, with a 95 % interval of a bootstrap over the repeats and the scored images.
    """

    budget: int
    images: int
    accuracies: list[float]
    accuracy: Figure

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        mean, low, high = self.accuracy
        return {
            "budget": self.budget,
            "images": self.images,
            "mean": mean,
            "low": low,
            "high": high,
            "accuracies": self.accuracies,
        }


@dataclass(frozen=True, eq=False)
class BudgetCurve:
    """Accuracy by labelled images a class.

    Attributes
    ----------
    points : list of BudgetPoint
        By growing budget.
    scored_on : str
        ``test`` or ``val``.
    scored : int
        Images scored.
    repeats : int
    """

    points: list[BudgetPoint]
    scored_on: str
    scored: int
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "scored_on": self.scored_on,
            "scored": self.scored,
            "repeats": self.repeats,
            "points": [point.to_dict() for point in self.points],
        }


def budget_curve(
    cache: FeatureCache,
    layer: str,
    head: str,
    settings: TrainSettings,
    options: Mapping[str, Any],
    budgets: Sequence[int | None],
    targets: Targets,
    split: Split,
    on_progress: Progress | None = None,
) -> BudgetCurve:
    """Train a head on a few labelled images of each class, more and more of them.

    Each repeat draws its images once; a smaller budget is a part of a larger one. No other label
    is used, not to choose an epoch either: heads with epochs run all of them. Features are
    standardised, where the head wants that, by all images that could have been drawn, which needs
    no labels. Test rows are scored; without any, the validation rows.

    Parameters
    ----------
    cache : FeatureCache
    layer, head : str
    settings : TrainSettings
        ``repeats``, ``seed`` and ``device`` are used.
    options : mapping
        Of the head.
    budgets : sequence of int or None
        Labelled images a class; None for all.
    targets : Targets
    split : Split
    on_progress : callable
        Is given fits done and fits in all.

    Raises
    ------
    SplitError
        If there are no rows to score, or targets are multi-label.
    """
    if targets.multilabel:
        raise SplitError("A label budget counts images of each class: leave the separator out.")
    scored_on = "test" if len(split.test) else "val"
    scored = split.parts().get(scored_on)
    if scored is None:
        raise SplitError("A label budget is scored on test or validation rows: give --test.")
    pool = np.union1d(split.train, split.val) if scored_on == "test" else split.train
    labels = targets.values[pool]
    most = int(np.bincount(labels).max())
    sizes = sorted({most if size is None else min(size, most) for size in budgets})
    if not sizes or sizes[0] < 1:
        raise SplitError("A label budget is at least 1 image a class.")
    tasks: list[Task] = []
    of_size: dict[int, list[int]] = {size: [] for size in sizes}
    nothing = pool[:0]
    for repeat in range(settings.repeats):
        order = np.random.default_rng([settings.seed, repeat]).permutation(len(pool))
        drawn = [pool[order[labels[order] == label]] for label in np.unique(labels)]
        for size in sizes:
            if size == most and repeat:  # the same images again
                continue
            of_size[size].append(len(tasks))
            few = np.sort(np.concatenate([rows[:size] for rows in drawn]))
            tasks.append(Task(few, nothing, scored))
    unfitted = build_head(head, settings, options)
    rows = np.union1d(pool, scored)
    shared = SharedRows(cache, layer, rows, pool, targets, settings, unfitted)
    right = np.zeros((len(tasks), len(scored)), bool)
    notes: dict[int, str] = {}
    for done, outcome in enumerate(shared.run([unfitted], tasks), 1):
        if outcome.proba is None:
            notes[outcome.task] = outcome.note
        else:
            right[outcome.task] = outcome.proba.argmax(axis=1) == targets.values[scored]
        if on_progress:
            on_progress(done, len(tasks))
    if notes:
        raise SplitError(
            f"{len(notes)} of {len(tasks)} fits failed: {next(iter(notes.values()))}. Lower the "
            "learning rate."
        )
    points = [
        BudgetPoint(
            size,
            len(tasks[places[0]].train),
            right[places].mean(axis=1).tolist(),
            _interval(right[places], settings.seed),
        )
        for size, places in of_size.items()
    ]
    return BudgetCurve(points, scored_on, len(scored), settings.repeats)


def _interval(right: np.ndarray, seed: int) -> Figure:
    """Of hits, shape (repeats, images), drawing both anew."""
    repeats, images = right.shape
    random = np.random.default_rng(seed)
    of_repeats = random.multinomial(repeats, np.full(repeats, 1 / repeats), RESAMPLES) / repeats
    means = []
    for start in range(0, RESAMPLES, 100):
        some = of_repeats[start : start + 100]
        of_images = random.multinomial(images, np.full(images, 1 / images), len(some)) / images
        means.append(((some @ right) * of_images).sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Figure(float(right.mean()), float(low), float(high))

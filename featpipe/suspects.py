"""Labels that are likely wrong: confident learning on out-of-fold probabilities."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featpipe.cache import FeatureCache
from featpipe.copies import Copies
from featpipe.errors import HeadError
from featpipe.preparation import check_classes
from featpipe.settings import TrainSettings
from featpipe.split import split_rows
from featpipe.sweep import run_sweep
from featpipe.targets import targets_of

log = logging.getLogger(__name__)

# Chosen by log-loss on the labels as they are, wrong ones among them: what is regularised too
# little learns these, and then tells right labels from wrong ones less well.
STRENGTHS = tuple(10 ** (exponent / 2) for exponent in range(-8, 0))


@dataclass(frozen=True)
class Suspect:
    """A row whose label is likely wrong.

    Attributes
    ----------
    row : int
        Of the table.
    given, suggested : int
        Numbers of its class, and of the one that is more likely.
    score : float
        Of how wrong the label looks, from 0 to 1: see `label_scores`.
    """

    row: int
    given: int
    suggested: int
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as results have them."""
        return {
            "row": self.row,
            "given": self.given,
            "suggested": self.suggested,
            "score": round(self.score, 6),
        }


def label_scores(labels: np.ndarray, proba: np.ndarray) -> np.ndarray:
    """How wrong each label looks, from 0, surely right, to 1, surely wrong.

    Half of one less the normalised margin: the probability of the given class less that of the
    likeliest other one. Labels of 0.5 and more are not what the head says.

    Parameters
    ----------
    labels : int array, shape (n,)
    proba : array, shape (n, classes)
        Of heads that have not seen the row.

    Raises
    ------
    HeadError
        If the shapes do not match, a probability is not finite, or a label is none of the classes.
    """
    _check(labels, proba)
    rows = np.arange(len(labels))
    others = proba.astype(np.float64)
    given = others[rows, labels].copy()
    others[rows, labels] = -np.inf
    scores: np.ndarray = (1 - given + others.max(axis=1)) / 2
    return scores


def likely_wrong(labels: np.ndarray, proba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose labels confident learning calls wrong, the likeliest errors first.

    A row is counted as of the class that is more probable in it than it is on average in rows of
    that label, and the most probable of such classes if there are several: so a class that the
    head is generally unsure of is held to less than one that it knows well, and no threshold is
    anybody's choice. These counts, the confident joint, say how many rows of each label are of
    each other class; so many of them, those with the largest margins, are called wrong.

    Parameters
    ----------
    labels : int array, shape (n,)
        None is missing.
    proba : array, shape (n, classes)
        Of heads that have not seen the row.

    Returns
    -------
    rows : int array
        By `label_scores`, highest first.
    suggested : int array
        The class that each is likelier to belong to.

    Raises
    ------
    HeadError
        As `label_scores` does.

    References
    ----------
    Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels",
    JAIR 2021: thresholds of equation 2, the calibrated joint of equation 3, pruning by noise rate
    (their method 4), in the order of the normalised margin. A class that is not the more probable
    one is never suggested.
    """
    scores = label_scores(labels, proba)
    suggested = np.full(len(labels), -1)
    for given, row in enumerate(_expected(labels, proba)):
        of_given = np.flatnonzero(labels == given)
        margins = proba[of_given] - proba[of_given, given, None]
        for other in np.flatnonzero(row):
            most = np.argsort(-margins[:, other], kind="stable")[: row[other]]
            chosen = of_given[most[margins[most, other] > 0]]
            # Of several classes that a row may be of, the most probable one.
            before = suggested[chosen]
            better = (before < 0) | (proba[chosen, other] > proba[chosen, before])
            suggested[chosen[better]] = other
    rows = np.flatnonzero(suggested >= 0)
    order = rows[np.lexsort((rows, -scores[rows]))]
    return order, suggested[order]


def _expected(labels: np.ndarray, proba: np.ndarray) -> np.ndarray:
    """How many rows of each label are of each other class: int array, shape (classes, classes)."""
    classes = proba.shape[1]
    sizes = np.bincount(labels, minlength=classes)
    thresholds = np.full(classes, np.inf)  # of a class that no row has
    for label in np.flatnonzero(sizes):
        thresholds[label] = proba[labels == label, label].mean()
    confident = np.where(proba >= thresholds, proba, -1.0)
    counted = confident.max(axis=1) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels[counted], confident.argmax(axis=1)[counted]), 1)
    joint *= (sizes / np.maximum(joint.sum(axis=1), 1))[:, None]  # as many as there are in all
    np.fill_diagonal(joint, 0)
    expected: np.ndarray = np.rint(joint).astype(np.int64)
    return expected


def list_suspects(rows: np.ndarray, labels: np.ndarray, proba: np.ndarray) -> list[Suspect]:
    """Name the labels that are likely wrong, the likeliest errors first.

    Parameters
    ----------
    rows : int array, shape (n,)
        Of the table, such as the first of `featpipe.sweep.Sweep.held_out`.
    labels : int array, shape (n,)
        Of these rows.
    proba : array, shape (n, classes)
        Of these rows, by heads that have not seen them; the second of `held_out`.

    Raises
    ------
    HeadError
        As `label_scores` does.
    """
    scores = label_scores(labels, proba)
    wrong, suggested = likely_wrong(labels, proba)
    return [
        Suspect(int(rows[at]), int(labels[at]), int(to), float(scores[at]))
        for at, to in zip(wrong, suggested, strict=True)
    ]


def find_suspects(
    cache: FeatureCache,
    head: str = "logistic",
    settings: TrainSettings | None = None,
    copies: Copies | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Suspect]:
    """Cross-validate a head on all labelled rows, and list the labels that it does not believe.

    Parameters
    ----------
    cache : FeatureCache
    head : str
    settings : TrainSettings
        ``layer``, ``group``, ``folds`` (5 if 0), ``seed``, ``device`` and ``memory`` are used.
        Every row is in some fold, whatever part of a split it is in.
    copies : Copies
        Rows that show one picture and must not be in several folds.
    on_progress : callable
        Is given fits done and fits in all.
    **options
        The head's; without any, the strength of logistic is chosen by log-loss.

    Returns
    -------
    list of Suspect
        The likeliest errors first.

    Raises
    ------
    SplitError
        If a class has too few rows for the folds.
    """
    base = settings or TrainSettings()
    base = replace(
        base, split="random", val=0.0, test=0.0, folds=base.folds or 5, leave_one_group_out=False,
        repeats=1, select="log_loss", views="plain", tta=False, separator=None, leaks=None,
    )  # fmt: skip
    targets = targets_of(cache.table)
    split = split_rows(cache.table, base, cache.ok, copies=copies)
    check_classes(targets, split)
    layer = cache.layer(base.layer)
    grid = {"C": STRENGTHS} if head == "logistic" and not options else {}
    found = run_sweep(cache, head, base, options, grid, [layer], targets, split, on_progress)
    rows, proba = found.held_out
    return list_suspects(rows, targets.values[rows], proba)


def _check(labels: np.ndarray, proba: np.ndarray) -> None:
    if proba.ndim != 2 or proba.shape[1] < 2 or len(proba) != len(labels):
        raise HeadError(
            f"probabilities of shape {proba.shape} for {len(labels)} labels; give one row an image "
            "and one column a class, two at least."
        )
    if not np.isfinite(proba).all():
        raise HeadError("Some probabilities are not finite; give those of fits that succeeded.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < proba.shape[1]:
        raise HeadError(
            f"labels from {labels.min()} to {labels.max()} for {proba.shape[1]} classes; leave "
            "rows without a label out."
        )

"""How good predictions are, and how far each figure can be trusted.

Every figure has a 95 % interval for the scored images as a sample of their like: accuracy
Wilson's, the others the percentiles of a seeded bootstrap over the images, in which a figure is
made of each resample just as of the whole. An interval is stretched to its figure where it would
leave it out: resampling biases the calibration error upwards, and the average precision of
classes with few images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import binomtest, t
from sklearn.metrics import confusion_matrix

from featpipe.bootstrap import (
    Figure as Figure,  # its readers know it from here
)
from featpipe.bootstrap import (
    Sample,
    affordable,
    macro_f1,
    macro_recall,
    micro_f1,
    one_hot,
    resampled,
    with_intervals,
)
from featpipe.calibration import calibration_gaps, check_probabilities, log_losses
from featpipe.errors import SettingsError

MOST_CONFUSED = 1000  # classes of which every pair is counted


@dataclass(frozen=True, eq=False)
class _Found:
    n: int
    figures: dict[str, Figure]
    per_class: list[dict[str, Any]]

    @property
    def accuracy(self) -> float:
        """The share of images that are right in everything."""
        return _value(self.figures["accuracy"])

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        _, low, high = self.figures["accuracy"]
        assert low is not None
        assert high is not None
        return low, high

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur."""
        return _value(self.figures["macro_f1"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, None for what is undefined."""
        return {
            "n": self.n,
            **{name: figure.value for name, figure in self.figures.items()},
            "accuracy_interval_95": list(self.interval),
            "intervals_95": {
                name: None if figure.low is None else [figure.low, figure.high]
                for name, figure in self.figures.items()
            },
            "per_class": self.per_class,
        }


@dataclass(frozen=True, eq=False)
class Scores(_Found):
    """What `score` found.

    Attributes
    ----------
    n : int
        Images scored.
    figures : dict of str to Figure
        ``accuracy``, ``balanced_accuracy``, ``macro_f1``; with probabilities also
        ``top_5_accuracy`` or ``top_2_accuracy``, ``log_loss``, ``brier``,
        ``expected_calibration_error``, ``roc_auc``, ``average_precision``.
    per_class : list of dict
        ``class``, ``precision``, ``recall``, both with a 95 % Wilson interval, None where there
        is nothing to count (``precision_interval_95``), ``f1``, ``images``; with probabilities also
        ``roc_auc`` and ``average_precision``, None where they are undefined.
    confusion : int array, shape (classes, classes), or None
        Rows are true classes, columns predicted ones; None of more than 1,000 classes.
    """

    confusion: np.ndarray | None

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that occur."""
        return _value(self.figures["balanced_accuracy"])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, None for what is undefined."""
        confusion = None if self.confusion is None else self.confusion.tolist()
        return {**super().to_dict(), "confusion": confusion}


@dataclass(frozen=True, eq=False)
class MultilabelScores(_Found):
    """What `score_multilabel` found; attributes as in `Scores`.

    Its figures are ``accuracy`` (images whose labels are all right), ``hamming_loss``,
    ``macro_f1``, ``micro_f1``, ``log_loss``, ``brier``, ``expected_calibration_error``,
    ``roc_auc`` and ``average_precision`` (mAP); ``images`` of a class are those that have it.
    """

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, None for what is undefined."""
        return {**super().to_dict(), "multilabel": True}


def score(
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    proba: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score predicted class numbers, and probabilities, against true ones.

    Parameters
    ----------
    labels, predicted : int arrays, shape (n,)
        Indices into `classes`.
    classes : sequence of str
    proba : float array, shape (n, classes), optional
        Rows sum to 1.
    resamples : int
        Of the bootstrap; 0 for no intervals but the accuracy's. At most 2 * 10^8 / n are made
        (for ROC-AUC and average precision, / n / classes); were that fewer than 200, none.
    seed : int
        Of the bootstrap.

    Raises
    ------
    HeadError
        If `proba` is no probabilities of these labels.

    Notes
    -----
    Balanced accuracy is the mean recall of the classes that occur among `labels`; macro-F1,
    ROC-AUC (one against the rest) and average precision are means over these classes too. A
    class that was never predicted has a precision of 0. Top-k accuracy takes k = 5 of more than
    5 classes, k = 2 of 3 to 5; of equal probabilities the first come first. The Brier score is
    the sum over classes of squared differences, in [0, 2]. The calibration error is of the
    predicted class's probability, in 15 bins.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    n, count = len(labels), len(classes)
    means = {"accuracy": labels == predicted}
    sample = Sample(one_hot(labels, count), one_hot(predicted, count), means)
    sample.counted = {"balanced_accuracy": macro_recall, "macro_f1": macro_f1}
    if proba is not None:
        proba = sample.proba = check_probabilities(proba, labels)
        k = 5 if count > 5 else 2
        if k < count:
            means[f"top_{k}_accuracy"] = _ranks(proba, labels) < k
        means["log_loss"] = log_losses(proba, labels)
        truth = np.take_along_axis(proba, labels[:, None], axis=1)[:, 0]
        # The label's own term, (1 - p)^2, stands in for its p^2.
        means["brier"] = np.square(proba).sum(axis=1) + 1 - 2 * truth
        sample.gaps = calibration_gaps(proba, labels)
    figures, per_class = sample.score(classes, resamples, seed)
    confusion = None
    if count <= MOST_CONFUSED:
        confusion = confusion_matrix(labels, predicted, labels=np.arange(count))
    return Scores(n, figures, per_class, confusion)


def score_multilabel(
    targets: np.ndarray,
    proba: np.ndarray,
    classes: Sequence[str],
    threshold: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
) -> MultilabelScores:
    """Score probabilities of labels of which an image may have any number.

    Parameters
    ----------
    targets : bool or int array, shape (n, classes)
        1 where the image has the label.
    proba : float array, shape (n, classes)
        In [0, 1].
    classes : sequence of str
    threshold : float
        Labels with this probability or more are predicted.
    resamples, seed : int
        As in `score`.

    Raises
    ------
    HeadError
        If shapes differ, or `proba` is outside [0, 1].

    Notes
    -----
    Macro figures are means over the labels that some image has; ROC-AUC also needs an image
    without it. Hamming loss, log-loss and Brier score are means over images and labels. The
    calibration error pools all probabilities.
    """
    targets = np.asarray(targets, dtype=bool)
    proba = check_probabilities(proba, targets)
    predicted = proba >= threshold
    wrong = predicted != targets
    means = {
        "accuracy": ~wrong.any(axis=1),
        "hamming_loss": wrong.mean(axis=1),
        "log_loss": log_losses(proba, targets),
        "brier": np.square(proba - targets).mean(axis=1),
    }
    sample = Sample(csr_array(targets, dtype=float), csr_array(predicted, dtype=float), means)
    sample.counted = {"macro_f1": macro_f1, "micro_f1": micro_f1}
    sample.proba, sample.gaps = proba, calibration_gaps(proba, targets)
    return MultilabelScores(len(targets), *sample.score(classes, resamples, seed))


@dataclass(frozen=True)
class PairedTest:
    """What `compare_predictions` found; differences are the first's figure less the second's.

    Attributes
    ----------
    n : int
    first_only, second_only : int
        Images that only the one or the other has right.
    p_value : float
        Of McNemar's exact test, two-sided: both being right equally often.
    accuracy_difference, log_loss_difference : Figure
        With 95 % intervals of a bootstrap over the images, which both share.
    """

    n: int
    first_only: int
    second_only: int
    p_value: float
    accuracy_difference: Figure
    log_loss_difference: Figure


def compare_predictions(
    labels: np.ndarray,
    first_proba: np.ndarray,
    second_proba: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedTest:
    """Compare two heads on the same images.

    Parameters
    ----------
    labels : int array, shape (n,)
    first_proba, second_proba : float arrays, shape (n, classes)
        Rows sum to 1.
    resamples, seed : int
        As in `score`.

    Raises
    ------
    HeadError
        If one is no probabilities of these labels.

    References
    ----------
    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 1947.
    """
    labels = np.asarray(labels)
    both = [check_probabilities(proba, labels) for proba in (first_proba, second_proba)]
    first, second = (proba.argmax(axis=1) == labels for proba in both)
    first_only, second_only = int((first & ~second).sum()), int((second & ~first).sum())
    apart = first_only + second_only
    differences = np.stack(
        [first * 1.0 - second, np.subtract(*(log_losses(p, labels) for p in both))]
    )
    n = len(labels)
    drawn = [differences @ weights / n for weights in resampled(n, affordable(resamples, n), seed)]
    found = with_intervals(
        dict(enumerate(differences.mean(axis=1))), {i: [row[i] for row in drawn] for i in range(2)}
    )
    p_value = float(binomtest(first_only, apart).pvalue) if apart else 1.0
    return PairedTest(n, first_only, second_only, p_value, found[0], found[1])


def corrected_interval(
    values: Sequence[float], test_share: float, confidence: float = 0.95
) -> Figure:
    """The mean over folds or repeated splits, and an interval that knows their overlap.

    Training rows that splits share make their figures alike; the plain t interval is too narrow.

    Parameters
    ----------
    values : sequence of float
        One a split.
    test_share : float
        Test rows to training rows of a split: 1 / (k - 1) for k folds.
    confidence : float

    Returns
    -------
    Figure
        ``(mean, low, high)``, not cut off at 0 or 1; of one value, no interval.

    Raises
    ------
    SettingsError
        If there is no value.

    References
    ----------
    Nadeau and Bengio, "Inference for the generalization error", Machine Learning 2003.
    """
    if not len(values):
        raise SettingsError("An interval needs at least one value.")
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Figure(mean)
    deviation = np.sqrt((1 / count + test_share) * np.var(values, ddof=1))
    reach = float(t.ppf((1 + confidence) / 2, count - 1) * deviation)
    return Figure(mean, mean - reach, mean + reach)


def _value(figure: Figure) -> float:
    assert figure.value is not None
    return figure.value


def _ranks(proba: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the true one, shape (n,)."""
    truth = np.take_along_axis(proba, labels[:, None], axis=1)
    earlier = np.arange(proba.shape[1]) < labels[:, None]
    ranks: np.ndarray = ((proba > truth) | ((proba == truth) & earlier)).sum(axis=1)
    return ranks

"""Whether probabilities mean what they say, and the one number that mends them.

Labels are class numbers, shape (n,), one a row of `proba`, whose rows then sum to 1; or, for
images with several labels each, a matrix of 0 and 1 of the shape of `proba`.
"""

import logging
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logit, softmax
from scipy.stats import binomtest

from featpipe.errors import HeadError, SettingsError

log = logging.getLogger(__name__)

# The smallest probability that a logarithm is taken of, scikit-learn's.
SMALLEST = float(np.finfo(np.float64).eps)
TEMPERATURES = (0.05, 20.0)


def check_probabilities(proba: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`proba` as float64, if it is probabilities that fit the labels.

    Raises
    ------
    HeadError
        If shapes differ, a value is outside [0, 1], a row of exclusive classes does not sum to
        1 within 1e-3, or a label is none of its columns.
    """
    several = np.ndim(labels) == 2
    proba = np.asarray(proba, dtype=np.float64)
    expected = np.shape(labels) if several else (len(labels), *proba.shape[1:])
    if proba.ndim != 2 or proba.shape != expected or not proba.size:
        raise HeadError(
            f"Probabilities of shape {proba.shape} do not fit labels of shape {np.shape(labels)}: "
            "give one row an image and one column a class."
        )
    if not ((proba >= 0) & (proba <= 1 + 1e-3)).all():
        raise HeadError("Some probabilities are outside [0, 1], or not numbers.")
    limited: np.ndarray = np.minimum(proba, 1)
    if several:
        return limited
    furthest = float(np.abs(proba.sum(axis=1) - 1).max())
    if furthest > 1e-3:
        raise HeadError(
            f"A row of probabilities is {furthest:.3g} away from the sum of 1. "
            "Where images have several labels each, give them as a matrix of 0 and 1."
        )
    if not 0 <= np.min(labels) <= np.max(labels) < proba.shape[1]:
        raise HeadError(
            f"Labels run from {np.min(labels)} to {np.max(labels)}, "
            f"but probabilities are of classes 0 to {proba.shape[1] - 1}."
        )
    return limited


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, `right` of `n`.

    References
    ----------
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def fit_temperature(proba: np.ndarray, labels: np.ndarray, multilabel: bool = False) -> float:
    """The temperature at which the log-loss of these rows is lowest, in [0.05, 20].

    Above 1 the probabilities were too sure of themselves, below 1 not sure enough. Rows that
    the head was fitted on say nothing: give validation rows. When these are all right, no
    temperature is too low for them, and one close to 0.05 comes back.

    Parameters
    ----------
    proba : float array, shape (n, classes)
        Exact zeros and ones are taken as 2.2e-16 and what is left of 1.
    labels : int array, shape (n,), or bool or int array, shape (n, classes)
    multilabel : bool
        Each class for itself: logits are divided, not logarithms.

    Raises
    ------
    HeadError
        If `proba` is no probabilities of these labels.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    logits = _logits(check_probabilities(proba, labels), multilabel)
    rows = np.arange(len(logits))
    signed = np.where(labels, logits, -logits) if multilabel else logits

    def loss(log_temperature: float) -> float:
        scaled = signed / np.exp(log_temperature)
        if multilabel:
            return -float(log_expit(scaled).mean())
        return -float(log_softmax(scaled, axis=1)[rows, labels].mean())

    low, high = np.log(TEMPERATURES)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x))


def apply_temperature(
    proba: np.ndarray, temperature: float, multilabel: bool = False
) -> np.ndarray:
    """Probabilities at another temperature; the order of a row's classes stays.

    Parameters
    ----------
    proba : float array, shape (n, classes)
    temperature : float
        1 changes nothing.
    multilabel : bool
        As in `fit_temperature`.

    Returns
    -------
    float64 array, shape (n, classes)

    Raises
    ------
    SettingsError
        If the temperature is not above 0.
    """
    if not 0 < temperature < np.inf:
        raise SettingsError(f"A temperature is above 0 and finite, not {temperature}.")
    proba = np.asarray(proba, dtype=np.float64)
    if temperature == 1:
        return proba
    scaled = _logits(proba, multilabel) / temperature
    found: np.ndarray = expit(scaled) if multilabel else softmax(scaled, axis=1)
    return found


def _logits(proba: np.ndarray, multilabel: bool) -> np.ndarray:
    clipped = np.clip(proba, SMALLEST, 1 - SMALLEST if multilabel else 1)
    found: np.ndarray = logit(clipped) if multilabel else np.log(clipped)
    return found


def log_losses(proba: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-loss of each image, shape (n,), in nats; with several labels, the mean of theirs."""
    if np.ndim(labels) == 2:
        of_truth = np.where(labels, proba, 1 - proba)
    else:
        of_truth = np.take_along_axis(proba, labels[:, None], axis=1)
    losses: np.ndarray = -np.log(np.clip(of_truth, SMALLEST, 1)).mean(axis=1)
    return losses


def calibration_gaps(proba: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """How much confidence exceeds being right, of each image in each bin, shape (n, bins).

    The mean over images, of absolute values and summed, is the expected calibration error;
    that of any resample of the images too.
    """
    confidence, right = _outcomes(proba, labels)
    n, each = confidence.shape
    places = np.arange(n)[:, None] * bins + _bin(confidence, bins)
    gaps = np.bincount(places.ravel(), (confidence - right).ravel(), n * bins)
    found: np.ndarray = gaps.reshape(n, bins) / each
    return found


def expected_calibration_error(proba: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean gap between confidence and being right, over bins of equal width, in [0, 1].

    Of the predicted class's probability; with several labels, of all probabilities pooled.

    Parameters
    ----------
    proba : float array, shape (n, classes)
    labels : int array, shape (n,), or bool or int array, shape (n, classes)
    bins : int
        A confidence on an edge belongs to the bin below it.

    Raises
    ------
    HeadError
        If `proba` is no probabilities of these labels.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
    """
    gaps = calibration_gaps(check_probabilities(proba, labels), labels, bins)
    return float(np.abs(gaps.mean(axis=0)).sum())


def reliability(proba: np.ndarray, labels: np.ndarray, bins: int = 15) -> list[dict[str, Any]]:
    """The rows of a reliability diagram: bins of confidence that have predictions.

    Parameters and errors are those of `expected_calibration_error`.

    Returns
    -------
    list of dict
        ``start`` and ``stop`` of the bin, mean ``confidence``, ``accuracy``, its 95 % Wilson
        interval ``low`` to ``high``, and ``count``.
    """
    confidence, right = _outcomes(check_probabilities(proba, labels), labels)
    places = _bin(confidence, bins)
    rows = []
    for place in np.unique(places):
        inside = places == place
        count, hits = int(inside.sum()), int(right[inside].sum())
        low, high = wilson(hits, count)
        rows.append(
            {
                "start": float(place / bins),
                "stop": float((place + 1) / bins),
                "confidence": float(confidence[inside].mean()),
                "accuracy": hits / count,
                "low": low,
                "high": high,
                "count": count,
            }
        )
    return rows


def confidence_threshold(proba: np.ndarray, labels: np.ndarray, precision: float) -> float | None:
    """The lowest confidence at which predictions are right often enough.

    Parameters
    ----------
    proba : float array, shape (n, classes)
        Of validation rows.
    labels : int array, shape (n,)
    precision : float
        In (0, 1]: how often predictions of that confidence or more must be right here.

    Returns
    -------
    float or None
        None if not even the surest predictions are right so often. `coverage` says how many
        are that sure.

    Raises
    ------
    SettingsError
        If `precision` is outside (0, 1].
    HeadError
        If `proba` is no probabilities of these labels.
    """
    if not 0 < precision <= 1:
        raise SettingsError(f"A precision is above 0 and at most 1, not {precision}.")
    confidence, right = (
        values.ravel() for values in _outcomes(check_probabilities(proba, labels), labels)
    )
    levels, places = np.unique(confidence, return_inverse=True)
    # Equal confidences stand or fall together.
    counts, hits = np.bincount(places), np.bincount(places, right)
    above = np.cumsum(hits[::-1])[::-1] / np.cumsum(counts[::-1])[::-1]
    enough = np.flatnonzero(above >= precision)
    return float(levels[enough[0]]) if len(enough) else None


def coverage(proba: np.ndarray, threshold: float) -> float:
    """The share of rows, shape (n, classes), whose highest probability reaches a threshold."""
    return float((np.max(proba, axis=1) >= threshold).mean())


def calibrate(
    raw: dict[str, np.ndarray],
    truth: dict[str, np.ndarray],
    fitted_on: str | None,
    min_precision: float | None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fit a temperature, and perhaps a threshold, and say what becomes of every part.

    Parameters
    ----------
    raw : dict of str to float array, shape (rows, classes)
        Probabilities of each part.
    truth : dict of str to array
        Labels of these parts, as in `reliability`.
    fitted_on : str or None
        The part of validation rows.
    min_precision : float or None
        For `confidence_threshold`.

    Returns
    -------
    calibration : dict
        As in `featpipe.result.Result`; empty without validation rows, and without a threshold
        where no confidence reaches the precision.
    proba : dict of str to float array
        As `raw`, at that temperature.
    """
    if fitted_on is None:
        return {}, raw
    labels = truth[fitted_on]
    multilabel = labels.ndim == 2
    mistakes = (
        ((raw[fitted_on] >= 0.5) != labels)
        if multilabel
        else (raw[fitted_on].argmax(axis=1) != labels)
    )
    # Where validation knows no mistake, nothing says how often there will be one.
    temperature = fit_temperature(raw[fitted_on], labels, multilabel) if mistakes.any() else 1.0
    proba = {name: apply_temperature(p, temperature, multilabel) for name, p in raw.items()}
    shown = "test" if "test" in raw else fitted_on
    calibration: dict[str, Any] = {
        "temperature": temperature,
        "fitted_on": fitted_on,
        "n": len(labels),
        "shown": shown,
        "before": reliability(raw[shown], truth[shown]),
        "after": reliability(proba[shown], truth[shown]),
    }
    if min_precision is not None:
        threshold = confidence_threshold(proba[fitted_on], labels, min_precision)
        calibration["min_precision"] = min_precision
        if threshold is None:  # what was trained is not lost for it
            log.warning(
                "No confidence makes validation predictions right in %.1f %% of the cases: the "
                "classifier never abstains. Ask for a lower --min-precision, or train a better "
                "head.",
                100 * min_precision,
            )
        else:
            calibration["threshold"] = threshold
            calibration["abstention"] = {
                name: _abstention(proba[name], truth[name], threshold) for name in raw
            }
    return calibration, proba


def _abstention(proba: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, Any]:
    """What share is predicted at all, and how often that is right."""
    sure = proba.max(axis=1) >= threshold
    right = proba[sure].argmax(axis=1) == labels[sure]
    return {
        "coverage": coverage(proba, threshold),
        "precision": float(right.mean()) if sure.any() else None,
    }


def _outcomes(proba: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and whether they were right, both shape (n, 1) or (n, classes)."""
    if np.ndim(labels) == 2:
        return proba, np.asarray(labels, dtype=bool)
    return proba.max(axis=1, keepdims=True), (proba.argmax(axis=1) == labels)[:, None]


def _bin(confidence: np.ndarray, bins: int) -> np.ndarray:
    places: np.ndarray = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return places

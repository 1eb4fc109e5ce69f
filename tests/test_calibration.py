"""Calibration: temperatures found again, bins counted by hand, thresholds that hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit, softmax
from scipy.stats import binomtest
from sklearn.metrics import log_loss

from featpipe.calibration import (
    apply_temperature,
    calibration_gaps,
    check_probabilities,
    confidence_threshold,
    coverage,
    expected_calibration_error,
    fit_temperature,
    log_losses,
    reliability,
)
from featpipe.errors import HeadError, SettingsError

SEEDS = st.integers(0, 10_000)


def drawn(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from them: calibrated by construction."""
    rng = np.random.default_rng(seed)
    proba = softmax(1.5 * rng.normal(size=(n, classes)), axis=1)
    labels = (proba.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return proba, labels


def drawn_sets(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same with any number of labels an image."""
    rng = np.random.default_rng(seed)
    proba = expit(1.5 * rng.normal(size=(n, classes)))
    return proba, rng.random((n, classes)) < proba


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoiled_probabilities_is_found(temperature: float) -> None:
    proba, labels = drawn(20_000, 4)
    spoiled = apply_temperature(proba, 1 / temperature)
    assert fit_temperature(spoiled, labels) == pytest.approx(temperature, rel=0.05)
    sets, targets = drawn_sets(5_000, 4)
    spoiled = apply_temperature(sets, 1 / temperature, multilabel=True)
    assert fit_temperature(spoiled, targets, multilabel=True) == pytest.approx(
        temperature, rel=0.05
    )


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.floats(0.2, 5))
def test_no_temperature_has_a_lower_log_loss(seed: int, other: float) -> None:
    proba, labels = drawn(60, 3, seed)
    best = fit_temperature(proba, labels)
    found = log_loss(labels, apply_temperature(proba, best), labels=range(3))
    assert found <= log_loss(labels, apply_temperature(proba, other), labels=range(3)) + 1e-9


def test_the_temperature_is_that_of_a_solver_without_bounds() -> None:
    proba, labels = drawn(500, 3, 5)
    solved = minimize(
        lambda x: log_loss(labels, softmax(np.log(proba) * np.exp(x[0]), axis=1)), [0.3]
    )
    assert fit_temperature(proba, labels) == pytest.approx(np.exp(-solved.x[0]), rel=1e-3)


@settings(deadline=None)
@given(SEEDS, st.floats(0.05, 20))
def test_a_temperature_keeps_the_order_and_the_sum(seed: int, temperature: float) -> None:
    proba, _ = drawn(20, 5, seed)
    found = apply_temperature(proba, temperature)
    assert np.allclose(found.sum(axis=1), 1)
    ordered = np.take_along_axis(found, proba.argsort(axis=1), axis=1)
    assert (np.diff(ordered, axis=1) >= 0).all()


def test_a_temperature_divides_log_odds_of_single_labels() -> None:
    proba, _ = drawn_sets(20, 3)
    found = apply_temperature(proba, 2.5, multilabel=True)
    assert np.allclose(logit(found), logit(proba) / 2.5)


def test_temperature_one_changes_nothing() -> None:
    proba = np.array([[0.0, 1.0], [0.3, 0.7]])
    assert np.array_equal(apply_temperature(proba, 1.0), proba)
    assert np.array_equal(apply_temperature(proba, 1.0, multilabel=True), proba)


def test_certainty_is_calibrated_too() -> None:
    # Zeros and ones, wrong in a tenth: the best temperature makes them 0.9.
    labels = np.arange(1000) % 2
    sure = np.eye(2)[np.where(np.arange(1000) % 10 == 0, 1 - labels, labels)]
    for multilabel in (False, True):
        truth = np.eye(2, dtype=bool)[labels] if multilabel else labels
        temperature = fit_temperature(sure, truth, multilabel)
        found = apply_temperature(sure, temperature, multilabel)
        assert np.isfinite(found).all()
        assert found.max() == pytest.approx(0.9, abs=0.05)
        assert expected_calibration_error(found, truth) < expected_calibration_error(sure, truth)


def test_predictions_that_are_all_right_stay_within_bounds() -> None:
    labels = np.array([0, 1, 1, 0])
    assert 0.05 <= fit_temperature(np.eye(2)[labels] * 0.8 + 0.1, labels) < 0.1


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf])
def test_temperatures_that_are_none_are_refused(temperature: float) -> None:
    with pytest.raises(SettingsError, match="above 0"):
        apply_temperature(np.full((1, 2), 0.5), temperature)


def test_the_calibration_error_is_the_worked_example() -> None:
    # Bins of 0.2: (0.5, right), (0.6, wrong) and (0.9, right), (0.95, right).
    proba = np.array([[0.5, 0.5], [0.6, 0.4], [0.1, 0.9], [0.05, 0.95]])
    labels = np.array([0, 1, 1, 1])
    expected = 2 / 4 * abs(0.55 - 0.5) + 2 / 4 * abs(0.925 - 1)
    assert expected_calibration_error(proba, labels, bins=5) == pytest.approx(expected)


@settings(deadline=None)
@given(SEEDS, st.booleans())
def test_the_calibration_error_is_that_of_its_bins(seed: int, several: bool) -> None:
    proba, labels = (drawn_sets if several else drawn)(80, 4, seed)
    rows = reliability(proba, labels)
    total = sum(row["count"] for row in rows)
    assert total == (proba.size if several else len(proba))
    by_bins = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in rows) / total
    assert expected_calibration_error(proba, labels) == pytest.approx(by_bins)
    for row in rows:
        assert row["start"] - 1e-12 <= row["confidence"] <= row["stop"] + 1e-12
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        wilson = binomtest(round(row["accuracy"] * row["count"]), row["count"])
        assert row["low"] == wilson.proportion_ci(method="wilson").low


def test_gaps_of_images_make_the_error_of_any_resample() -> None:
    for proba, labels in (drawn(50, 3), drawn_sets(50, 3)):
        again = np.random.default_rng(1).integers(50, size=50)
        gaps = calibration_gaps(proba, labels)[again]
        assert np.abs(gaps.mean(axis=0)).sum() == pytest.approx(
            expected_calibration_error(proba[again], labels[again])
        )


def test_edges_belong_to_the_bin_below() -> None:
    proba = np.array([[0.0, 0.2, 0.4, 0.6, 1.0]])
    rows = reliability(proba, np.array([[0, 0, 0, 1, 1]]), bins=5)
    assert [(row["start"], row["count"]) for row in rows] == [
        (0.0, 2), (0.2, 1), (0.4, 1), (0.8, 1),
    ]  # fmt: skip


def test_log_losses_are_those_of_scikit_learn() -> None:
    proba, labels = drawn(200, 4)
    proba[0] = np.eye(4)[(labels[0] + 1) % 4]  # certain, and wrong
    assert log_losses(proba, labels).mean() == pytest.approx(log_loss(labels, proba))
    sets, targets = drawn_sets(200, 3)
    by_label = [log_loss(targets[:, i], sets[:, i]) for i in range(3)]
    assert log_losses(sets, targets).mean() == pytest.approx(np.mean(by_label))


@settings(deadline=None)
@given(SEEDS, st.integers(1, 20))
def test_the_threshold_is_the_lowest_that_is_right_enough(seed: int, twentieths: int) -> None:
    proba, labels = drawn(40, 2, seed)
    proba = np.round(proba, 1)  # many ties
    precision = twentieths / 20
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == labels
    holds = [c for c in np.unique(confidence) if right[confidence >= c].mean() >= precision]
    found = confidence_threshold(proba, labels, precision)
    assert found == (min(holds) if holds else None)
    if found is not None:
        assert coverage(proba, found) == (confidence >= found).mean()


def test_a_precision_out_of_reach_has_no_threshold() -> None:
    proba = np.array([[0.9, 0.1], [0.8, 0.2]])
    assert confidence_threshold(proba, np.array([1, 0]), 0.9) is None
    assert confidence_threshold(proba, np.array([0, 1]), 0.9) == 0.9


@pytest.mark.parametrize("precision", [0.0, 1.01, np.nan])
def test_precisions_that_are_none_are_refused(precision: float) -> None:
    with pytest.raises(SettingsError, match="at most 1"):
        confidence_threshold(np.full((1, 2), 0.5), np.array([0]), precision)


@pytest.mark.parametrize(
    ("proba", "labels", "said"),
    [
        ([[0.5, 0.6]], [0], "sum of 1"),
        ([[0.5, np.nan]], [0], "not numbers"),
        ([[1.2, -0.2]], [0], r"outside \[0, 1\]"),
        ([[0.5, 0.5]], [0, 1], "do not fit"),
        ([[0.5, 0.5]], [2], "classes 0 to 1"),
        ([[0.5, 0.5]], [-1], "from -1"),
        ([[0.5, 0.5]], [[1]], "do not fit"),
        ([0.5, 0.5], [0, 1], "do not fit"),
        (np.empty((0, 2)), [], "do not fit"),
    ],
)
def test_what_is_no_probabilities_is_refused(proba: list, labels: list, said: str) -> None:
    with pytest.raises(HeadError, match=said):
        check_probabilities(np.array(proba), np.array(labels))

"""Scores: equal to scikit-learn's, honest at the edges."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import binomtest, ttest_1samp
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    hamming_loss,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)

from featpipe import bootstrap
from featpipe.bootstrap import resampled
from featpipe.calibration import expected_calibration_error
from featpipe.errors import HeadError, SettingsError
from featpipe.metrics import (
    Figure,
    compare_predictions,
    corrected_interval,
    score,
    score_multilabel,
)

NAMES = tuple("abcdef")
NAMES7 = tuple("abcdefg")
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=80)


@settings(deadline=None)
@given(PAIRS)
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    found = score(labels, predicted, NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of predicted classes without labels
        balanced = balanced_accuracy_score(labels, predicted)
    present = sorted(set(labels.tolist()))
    by_class = f1_score(labels, predicted, labels=present, average=None, zero_division=0)
    assert found.accuracy == pytest.approx(np.mean(labels == predicted))
    assert found.balanced_accuracy == pytest.approx(balanced)
    assert found.macro_f1 == pytest.approx(by_class.mean())
    assert found.n == len(labels)


@settings(deadline=None)
@given(PAIRS)
def test_the_interval_contains_the_accuracy(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    found = score(labels, predicted, NAMES)
    low, high = found.interval
    assert 0 <= low <= found.accuracy + 1e-12
    assert found.accuracy - 1e-12 <= high <= 1
    assert low < high


@settings(deadline=None)
@given(PAIRS)
def test_confusion_has_true_classes_as_rows(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    found = score(labels, predicted, NAMES)
    counted = np.zeros((6, 6), dtype=int)
    for label, guess in pairs:
        counted[label, guess] += 1
    assert np.array_equal(found.confusion, counted)
    assert [entry["images"] for entry in found.per_class] == counted.sum(axis=1).tolist()
    assert [entry["class"] for entry in found.per_class] == list(NAMES)


def test_the_interval_is_wilsons() -> None:
    # 81 of 263: the worked example of Newcombe, Statistics in Medicine 17 (1998), table I.
    labels = np.zeros(263, dtype=int)
    predicted = np.r_[np.zeros(81, dtype=int), np.ones(182, dtype=int)]
    assert score(labels, predicted, ("a", "b")).interval == pytest.approx(
        (0.2553, 0.3662), abs=5e-5
    )


def test_perfect_predictions_score_one() -> None:
    labels = np.array([0, 1, 2, 2, 1])
    found = score(labels, labels, ("a", "b", "c"))
    assert (found.accuracy, found.balanced_accuracy, found.macro_f1) == (1, 1, 1)
    assert found.interval[1] == pytest.approx(1)
    assert found.interval[0] < 1


def test_all_wrong_predictions_score_zero() -> None:
    labels = np.array([0, 1, 0, 1])
    found = score(labels, 1 - labels, ("a", "b"))
    assert (found.accuracy, found.balanced_accuracy, found.macro_f1) == (0, 0, 0)
    assert found.interval[0] == pytest.approx(0)
    assert found.interval[1] > 0


def test_a_class_never_predicted_has_precision_zero() -> None:
    found = score(np.array([0, 0, 1, 1]), np.zeros(4, dtype=int), ("a", "b"))
    assert found.per_class[1] == {
        "class": "b", "precision": 0.0, "recall": 0.0, "f1": 0.0, "images": 2,
        "precision_interval_95": None, "recall_interval_95": pytest.approx([0, 0.6576], abs=1e-4),
    }  # fmt: skip
    assert found.balanced_accuracy == 0.5


def test_a_class_absent_from_the_labels_does_not_count() -> None:
    found = score(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), ("a", "b", "c"))
    assert found.balanced_accuracy == pytest.approx((1 + 0.5) / 2)
    assert found.macro_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert found.per_class[2]["images"] == 0


def test_scores_can_be_written_as_json() -> None:
    found = score(np.array([0, 1, 1]), np.array([0, 1, 0]), ("a", "b"))
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again == found.to_dict()
    assert again["confusion"] == [[1, 0], [1, 1]]
    assert again["accuracy_interval_95"] == list(found.interval)


def drawn(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that know a little of them, rounded so that many are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += 1
    proba = np.round(softmax(logits, axis=1), 2) + 0.01
    return labels, proba / proba.sum(axis=1, keepdims=True)


def drawn_sets(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same with any number of labels an image."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, classes)) < 0.4
    return targets, np.round(expit(rng.normal(size=(n, classes)) + targets), 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 7), st.integers(0, 10_000))
def test_figures_of_probabilities_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    labels, proba = drawn(60, classes, seed)
    found = score(labels, proba.argmax(axis=1), NAMES7[:classes], proba, resamples=0).figures
    present = np.unique(labels)
    one_hot = labels[:, None] == np.arange(classes)
    areas = [roc_auc_score(one_hot[:, c], proba[:, c]) for c in present]
    precisions = [average_precision_score(one_hot[:, c], proba[:, c]) for c in present]
    assert found["roc_auc"].value == pytest.approx(np.mean(areas))
    assert found["average_precision"].value == pytest.approx(np.mean(precisions))
    every = range(classes)
    assert found["log_loss"].value == pytest.approx(log_loss(labels, proba, labels=every))
    assert found["brier"].value == pytest.approx(
        np.square(proba - one_hot).sum(axis=1).mean(), abs=1e-12
    )
    assert found["expected_calibration_error"].value == pytest.approx(
        expected_calibration_error(proba, labels)
    )


@pytest.mark.parametrize(("classes", "k"), [(2, None), (3, 2), (5, 2), (6, 5), (7, 5)])
def test_top_k_is_that_of_scikit_learn(classes: int, k: int | None) -> None:
    labels, _ = drawn(200, classes)
    proba = np.random.default_rng(1).dirichlet(np.ones(classes), size=200)
    found = score(labels, proba.argmax(axis=1), NAMES7[:classes], proba).to_dict()
    assert [key for key in found if key.startswith("top_")] == (
        [] if k is None else [f"top_{k}_accuracy"]
    )
    if k is not None:
        expected = top_k_accuracy_score(labels, proba, k=k, labels=range(classes))
        assert found[f"top_{k}_accuracy"] == pytest.approx(expected)


def test_equal_probabilities_are_no_luck() -> None:
    labels = np.arange(4).repeat(5)
    found = score(labels, np.zeros(20, int), NAMES[:4], np.full((20, 4), 0.25)).figures
    assert found["top_2_accuracy"].value == 0.5
    assert found["roc_auc"].value == 0.5
    assert found["average_precision"].value == 0.25


def test_intervals_are_percentiles_of_scikit_learns_figures_of_weighted_images() -> None:
    labels, proba = drawn(40, 3)
    predicted, one_hot = proba.argmax(axis=1), labels[:, None] == np.arange(3)
    found = score(labels, predicted, NAMES[:3], proba, resamples=50, seed=4).figures
    again: dict[str, list[float]] = {name: [] for name in found}
    for weights in np.concatenate(list(resampled(40, 50, 4)), axis=1).T:
        assert weights.sum() == 40
        shared = {"sample_weight": weights}
        drawn_images = np.arange(40).repeat(weights.astype(int))
        present = np.unique(labels[drawn_images])
        again["roc_auc"].append(
            np.mean([roc_auc_score(one_hot[:, c], proba[:, c], **shared) for c in present])
        )
        again["average_precision"].append(
            np.mean(
                [average_precision_score(one_hot[:, c], proba[:, c], **shared) for c in present]
            )
        )
        again["log_loss"].append(log_loss(labels, proba, **shared))
        again["balanced_accuracy"].append(balanced_accuracy_score(labels, predicted, **shared))
        again["macro_f1"].append(
            f1_score(labels, predicted, labels=present, average="macro", zero_division=0, **shared)
        )
        again["expected_calibration_error"].append(
            expected_calibration_error(proba[drawn_images], labels[drawn_images])
        )
    for name in ("roc_auc", "average_precision", "log_loss", "balanced_accuracy", "macro_f1",
                 "expected_calibration_error"):  # fmt: skip
        low, high = np.quantile(again[name], [0.025, 0.975])
        value = found[name].value
        assert found[name] == pytest.approx((value, min(low, value), max(high, value))), name


def test_intervals_do_not_depend_on_how_many_weights_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, proba = drawn(50, 3)
    whole = score(labels, proba.argmax(axis=1), NAMES[:3], proba).figures
    monkeypatch.setattr(bootstrap, "CHUNK", 50 * 7)
    parts = score(labels, proba.argmax(axis=1), NAMES[:3], proba).figures
    for name, figure in whole.items():
        assert parts[name].value == figure.value
        # Other chunks draw in another order; the intervals agree as two bootstraps do.
        assert parts[name][1:] == pytest.approx(figure[1:], abs=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = score(*_guessed(20_000, 999), NAMES[:3], resamples=0).macro_f1
    inside = 0
    for seed in range(200):
        _, low, high = score(*_guessed(150, seed), NAMES[:3], resamples=300).figures["macro_f1"]
        assert low is not None
        assert high is not None
        inside += low <= truth <= high
    assert 176 <= inside <= 199  # 0.95 of 200, give or take; the percentile falls a little short


def _guessed(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels, proba = drawn(n, 3, seed)
    return labels, proba.argmax(axis=1)


@settings(deadline=None, max_examples=30)
@given(PAIRS)
def test_every_interval_contains_its_figure(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    proba = np.eye(6)[predicted] * 0.7 + 0.05
    found = score(labels, predicted, NAMES, proba, resamples=40)
    for name, (value, low, high) in found.figures.items():
        if value is not None:
            assert low is not None, name
            assert high is not None, name
            assert low <= value <= high, name
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_is_undefined_is_none() -> None:
    found = score(np.zeros(4, int), np.zeros(4, int), ("a", "b"), np.full((4, 2), 0.5))
    assert found.figures["roc_auc"] == Figure(None, None, None)
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["roc_auc"] is None
    assert again["intervals_95"]["roc_auc"] is None
    assert again["per_class"][0]["roc_auc"] is None
    assert again["per_class"][0]["average_precision"] == 1
    assert again["per_class"][1]["average_precision"] is None


def test_classes_have_figures_of_their_own() -> None:
    labels, proba = drawn(80, 3)
    found = score(labels, proba.argmax(axis=1), NAMES[:3], proba).per_class
    for c, row in enumerate(found):
        assert row["roc_auc"] == pytest.approx(roc_auc_score(labels == c, proba[:, c]))
        expected = average_precision_score(labels == c, proba[:, c])
        assert row["average_precision"] == pytest.approx(expected)
    assert "roc_auc" not in score(labels, labels, NAMES[:3]).per_class[0]


def test_too_many_values_have_fewer_resamples_and_then_no_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, proba = drawn(50, 4)
    arguments = (labels, proba.argmax(axis=1), NAMES[:4], proba)
    monkeypatch.setattr(bootstrap, "MOST_VALUES", 50 * 200)  # 200 resamples, but 50 of each class
    found = score(*arguments).figures
    assert found["roc_auc"].low is None
    assert found["average_precision"].high is None
    assert found["roc_auc"].value is not None
    monkeypatch.undo()
    assert found["log_loss"] == score(*arguments, resamples=200).figures["log_loss"]
    none = score(*arguments, resamples=0)
    assert [name for name, figure in none.figures.items() if figure.low is not None] == ["accuracy"]
    assert none.to_dict()["intervals_95"]["macro_f1"] is None
    with pytest.raises(SettingsError, match="0 or more"):
        score(*arguments, resamples=-1)


def test_probabilities_of_other_images_are_refused() -> None:
    labels, proba = drawn(10, 3)
    with pytest.raises(HeadError, match="do not fit"):
        score(labels, labels, NAMES[:3], proba[:9])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5]))
def test_multilabel_figures_are_those_of_scikit_learn(seed: int, threshold: float) -> None:
    targets, proba = drawn_sets(40, 4, seed)
    targets[0], targets[1] = True, False  # each label occurs, and is missing
    found = score_multilabel(targets, proba, NAMES[:4], threshold, resamples=0)
    predicted, shared = proba >= threshold, {"zero_division": 0}
    expected = {
        "accuracy": accuracy_score(targets, predicted),
        "hamming_loss": hamming_loss(targets, predicted),
        "macro_f1": f1_score(targets, predicted, average="macro", **shared),
        "micro_f1": f1_score(targets, predicted, average="micro", **shared),
        "roc_auc": roc_auc_score(targets, proba, average="macro"),
        "average_precision": average_precision_score(targets, proba, average="macro"),
        "log_loss": np.mean([log_loss(targets[:, c], proba[:, c]) for c in range(4)]),
        "brier": np.mean([brier_score_loss(targets[:, c], proba[:, c]) for c in range(4)]),
        "expected_calibration_error": expected_calibration_error(proba, targets),
    }
    assert {name: figure.value for name, figure in found.figures.items()} == pytest.approx(expected)
    by_label = precision_recall_fscore_support(targets, predicted, **shared)
    for name, values in zip(("precision", "recall", "f1", "images"), by_label, strict=True):
        assert [row[name] for row in found.per_class] == pytest.approx(list(values))


def test_multilabel_scores_read_like_others() -> None:
    targets, proba = drawn_sets(60, 3)
    targets[:, 2] = False  # a label that no image has
    found = score_multilabel(targets.astype(int), proba, NAMES[:3])
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert again["multilabel"] is True
    assert again["n"] == 60
    right = int((targets == (proba >= 0.5)).all(axis=1).sum())
    assert again["accuracy"] == right / 60
    wilson = binomtest(right, 60).proportion_ci(method="wilson")
    assert again["accuracy_interval_95"] == [wilson.low, wilson.high]
    assert again["per_class"][2]["average_precision"] is None
    assert all(again["intervals_95"][name] is not None for name in found.figures)
    assert again["average_precision"] == pytest.approx(
        np.mean([average_precision_score(targets[:, c], proba[:, c]) for c in range(2)])
    )


def test_a_head_compared_with_itself_differs_in_nothing() -> None:
    labels, proba = drawn(50, 3)
    found = compare_predictions(labels, proba, proba)
    assert (found.first_only, found.second_only, found.p_value) == (0, 0, 1.0)
    assert found.accuracy_difference == found.log_loss_difference == Figure(0, 0, 0)


def test_mcnemars_test_is_exact() -> None:
    # 10 images only the first has right, 2 only the second: 2 (1 + 12 + 66) / 2^12.
    labels = np.zeros(30, int)
    right, wrong = [0.8, 0.2], [0.3, 0.7]
    first = np.array([right] * 10 + [wrong] * 2 + [right] * 18)
    second = np.array([wrong] * 10 + [right] * 2 + [right] * 18)
    found = compare_predictions(labels, first, second)
    assert (found.n, found.first_only, found.second_only) == (30, 10, 2)
    assert found.p_value == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    value, low, high = found.accuracy_difference
    assert value == pytest.approx(8 / 30)
    # The bootstrap's interval is close to the normal one of paired differences.
    differences = np.r_[np.ones(10), -np.ones(2), np.zeros(18)]
    reach = 1.96 * differences.std() / np.sqrt(30)
    assert (low, high) == pytest.approx((8 / 30 - reach, 8 / 30 + reach), abs=0.03)
    swapped = compare_predictions(labels, second, first)
    assert swapped.p_value == found.p_value
    assert swapped.log_loss_difference.value == pytest.approx(-found.log_loss_difference.value)


def test_pairing_narrows_the_interval() -> None:
    labels, proba = drawn(300, 3)
    nudged = 0.95 * proba + 0.05 / 3
    paired = compare_predictions(labels, proba, nudged).log_loss_difference
    alone = score(labels, labels, NAMES[:3], proba).figures["log_loss"]
    assert paired.high - paired.low < (alone.high - alone.low) / 3


def test_the_corrected_interval_is_nadeaus_and_bengios() -> None:
    values = [0.80, 0.84, 0.79, 0.86, 0.81]
    mean, low, high = corrected_interval(values, 1 / 4)
    deviation = np.std(values, ddof=1) * np.sqrt(1 / 5 + 1 / 4)
    assert mean == pytest.approx(0.82)
    assert high - mean == pytest.approx(2.776445 * deviation)
    assert mean - low == pytest.approx(2.776445 * deviation)
    plain = ttest_1samp(values, 0).confidence_interval()
    assert corrected_interval(values, 0) == pytest.approx((0.82, plain.low, plain.high))


def test_one_fold_has_no_interval_and_none_no_mean() -> None:
    assert corrected_interval([0.9], 0.25) == (0.9, None, None)
    with pytest.raises(SettingsError, match="at least one"):
        corrected_interval([], 0.25)

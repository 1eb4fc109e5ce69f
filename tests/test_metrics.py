"""Scores: equal to scikit-learn's, honest at the edges."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score

from featpipe.metrics import score

NAMES = tuple("abcdef")
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
